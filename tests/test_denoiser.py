"""Other people's diffusion models: the same results as diffusers' own pipelines, in every part of the project."""

import json
import warnings
from pathlib import Path
from typing import Any

import gymnasium as gym
import huggingface_hub
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from gymnasium.utils.env_checker import check_env
from huggingface_hub.utils import filter_repo_objects
from PIL import Image
from stable_baselines3 import PPO
from stable_baselines3.common.env_checker import check_env as check_env_sb3
from torch import Tensor

import skipdiff_env  # noqa: F401  # registers the environments
from agents.cli import main
from agents.exporting import export_agent
from agents.training.vec_env import TableVecEnv
from ddpm.checkpoints import load_denoiser, load_unet
from ddpm.nets.denoiser import Denoiser, fingerprint, geometry, image_multiple
from ddpm.noise import KeyedNoise, Stage, keyed_noise
from ddpm.pictures.degradation import upsample
from ddpm.pictures.images import Picture
from ddpm.pictures.tiling import TiledDenoiser
from ddpm.schedule import Schedule
from ddpm.util.errors import CheckpointError, ConfigError
from skipdiff_env.observations import Observer
from skipdiff_env.outcomes import OutcomeTable
from skipdiff_env.plan import Plan
from skipdiff_env.refinement import RefinementProcess
from skipdiff_env.task import Task, TaskConfig
from skipdiff_env.upscaler import Upscaler
from tests.conftest import Photo, tiny_unet
from tests.foreign import (
    SCALED_LINEAR,
    DDIMScheduler,
    DDPMScheduler,
    Smoother,
    concat_unet,
    latent_pipeline,
    save_concat,
    upscale_pipeline,
)
from tests.test_env import EXPECTED

LDM_MODULE = "diffusers.pipelines.latent_diffusion.pipeline_latent_diffusion_superresolution"
UPSCALE_MODULE = "diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_upscale"
SIZES = [(1, 8, 8), (3, 12, 8), (2, 16, 24)]


def low_resolution(batch: int, height: int, width: int) -> Tensor:
    """Pictures (B, 3, h, w) in [-1, 1]."""
    return torch.rand(batch, 3, height, width, generator=torch.Generator().manual_seed(7)) * 2 - 1


def initial_noise(batch: int, channels: int, height: int, width: int, steps: int) -> Tensor:
    """What the chains of `ours` begin with."""
    return KeyedNoise(range(batch), (channels, height, width))(Stage.INITIAL, steps)


def ours(source: str | Path | Denoiser, lr: Tensor, steps: int) -> Tensor:
    """Results in [0, 1] of our DDIM in so many steps of the model's own schedule."""
    upscaler = Upscaler(source, levels=f"even:{steps}", fine_sampler="ddim", tile=0)
    results = upscaler.upscale(list(lr), range(len(lr)))
    assert all(result.nfe == steps * upscaler.unet.forwards_per_call for result in results)
    return (torch.stack([result.sr for result in results]) + 1) / 2


@pytest.fixture(scope="module")
def latent_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("ldm")
    latent_pipeline().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def upscale_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("upscale")
    upscale_pipeline(folder / "files").save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def concat_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_concat(tmp_path_factory.mktemp("concat"), DDIMScheduler())


# --- the same as diffusers ---


def euler(**settings: Any) -> Any:
    from diffusers import EulerDiscreteScheduler

    return EulerDiscreteScheduler(timestep_spacing="leading", **settings)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize(
    "scheduler",
    [
        DDIMScheduler(clip_sample=False, **SCALED_LINEAR),
        DDIMScheduler(prediction_type="v_prediction", set_alpha_to_one=False, steps_offset=1),
        DDIMScheduler(prediction_type="sample", clip_sample_range=0.8, timestep_spacing="trailing"),
        euler(**SCALED_LINEAR),
        euler(prediction_type="v_prediction"),
    ],
    ids=["eps", "v", "x0", "euler", "euler-v"],
)
def test_latent_diffusion(
    size: tuple[int, int, int], scheduler: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline, lr = latent_pipeline(scheduler), low_resolution(*size)
    pipeline.save_pretrained(tmp_path)
    for steps in (2, 10):
        noise = initial_noise(size[0], 3, *size[1:], steps)
        monkeypatch.setattr(f"{LDM_MODULE}.randn_tensor", lambda *args, noise=noise, **kwargs: noise)
        expected = pipeline(lr, num_inference_steps=steps, output_type="pt").images
        assert expected.std() > 0.01
        torch.testing.assert_close(ours(tmp_path, lr, steps), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("guidance", [1.0, 6.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("clip", [False, True])
def test_stable_diffusion_upscaler(
    guidance: float, prediction: str, clip: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    scheduler = DDIMScheduler(prediction_type=prediction, clip_sample=clip, set_alpha_to_one=False, steps_offset=1)
    pipeline = upscale_pipeline(tmp_path / "files", scheduler)
    pipeline.save_pretrained(tmp_path)
    prompt = "a cat" if guidance > 1 else ""
    source = f"{tmp_path}?noise_level=35" + ("&prompt=a+cat&guidance=6" if guidance > 1 else "")
    # what the pipeline draws for the picture
    monkeypatch.setattr(
        f"{UPSCALE_MODULE}.randn_tensor",
        lambda shape, **kwargs: torch.from_numpy(keyed_noise(0, Stage.INITIAL, 0, shape[1:])).expand(*shape),
    )
    for batch, height, width in SIZES:
        lr, steps = low_resolution(batch, height, width), 5
        expected = pipeline(
            [prompt] * batch, (lr + 1) / 2, num_inference_steps=steps, guidance_scale=guidance, noise_level=35,
            latents=initial_noise(batch, 4, height, width, steps), output_type="pt",
        ).images  # fmt: skip
        assert expected.std() > 0.01
        torch.testing.assert_close(ours(source, lr, steps), expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("clip", [False, True])
def test_concatenating_unet(size: tuple[int, int, int], prediction: str, clip: bool, tmp_path: Path) -> None:
    scheduler: Any = DDIMScheduler(prediction_type=prediction, clip_sample=clip)
    folder, lr, steps = save_concat(tmp_path, scheduler), low_resolution(*size), 8
    unet, condition = concat_unet(), upsample(lr, 2)
    x = initial_noise(size[0], 3, 2 * size[1], 2 * size[2], steps)
    scheduler.set_timesteps(steps)
    with torch.no_grad():
        for t in scheduler.timesteps:
            x = scheduler.step(unet(torch.cat([x, condition], dim=1), t).sample, t, x).prev_sample
    expected = (x.clamp(-1, 1) + 1) / 2
    torch.testing.assert_close(ours(f"{folder}?scale=2", lr, steps), expected, atol=1e-4, rtol=0)
    assert not torch.allclose(ours(f"{folder}?scale=2&condition_first=true", lr, steps), expected, atol=1e-3)


def test_ancestral_sampling_has_the_variance_of_diffusers(concat_folder: Path) -> None:
    """With η = 1 a step is DDIM's with the same noise."""
    denoiser = load_denoiser(f"{concat_folder}?scale=2")
    process = RefinementProcess(denoiser, Plan(1, 4, fine_sampler="ddpm", skip_mode="jump"))
    condition = denoiser.condition(low_resolution(1, 8, 8))
    (state,) = process.begin([condition[0]], [3])
    scheduler: Any = DDIMScheduler()
    scheduler.set_timesteps(4)
    t, latent = scheduler.timesteps[0], state.latent[None]
    with torch.no_grad():
        out = concat_unet()(torch.cat([latent, condition], dim=1), t).sample
    noise = KeyedNoise([3], latent.shape[1:])(Stage.FINE, 4)
    expected = scheduler.step(out, t, latent, eta=1.0, variance_noise=noise).prev_sample
    process.jump([(state, 3, 1)])
    torch.testing.assert_close(state.latent, expected[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("folder", ["latent_folder", "upscale_folder"])
def test_schedules_are_those_of_the_model(folder: str, request: pytest.FixtureRequest) -> None:
    denoiser = load_denoiser(request.getfixturevalue(folder))
    config = json.loads(
        (request.getfixturevalue(folder) / "scheduler/scheduler_config.json").read_text(encoding="utf-8")
    )
    scheduler: Any = DDIMScheduler.from_config(config)
    for steps in (1, 7, 20, 999):
        scheduler.set_timesteps(steps)
        levels = denoiser.schedule(steps)
        np.testing.assert_array_equal(levels[:0:-1], scheduler.alphas_cumprod[scheduler.timesteps].double())
        assert levels[0] == float(scheduler.final_alpha_cumprod)
    with pytest.raises(ConfigError, match="1000 noise levels, got a schedule of 1001 steps"):
        denoiser.schedule(1001)
    trailing = load_denoiser(f"{request.getfixturevalue(folder)}?spacing=trailing")
    assert trailing.schedule(4)[4] == scheduler.alphas_cumprod[-1]
    assert fingerprint(trailing) != fingerprint(denoiser)


def test_batches_of_mixed_levels(latent_folder: Path) -> None:
    """Members of a batch may stand at levels of their own."""
    denoiser = load_denoiser(latent_folder)
    levels, lr, x = denoiser.schedule(10)[[3, 9]], low_resolution(2, 8, 8), torch.randn(2, 3, 8, 8)
    together = denoiser.predict(x, levels, lr)
    for i in range(2):
        alone = denoiser.predict(x[i : i + 1], float(levels[i]), lr[i : i + 1])
        for both, one in zip(together, alone, strict=True):
            assert both is not None
            assert one is not None
            torch.testing.assert_close(both[i], one[0], atol=1e-5, rtol=1e-5)


# --- the protocol ---


def test_our_networks_are_denoisers(checkpoint: str) -> None:
    unet = load_unet(checkpoint)
    assert isinstance(unet, Denoiser)
    assert load_denoiser(checkpoint).settings == unet.settings
    assert (geometry(unet), image_multiple(unet), unet.x0_bound) == ((3, 1), 4, 8.0)
    assert tiny_unet(target="image").x0_bound == 1.0
    assert unet.schedule(7)[-1] < 1e-3


def test_what_is_missing_is_named() -> None:
    class Half:
        scale = 2

    with pytest.raises(ConfigError, match=r"Half object.*lacks .*predict.*multiple; let its class inherit"):
        load_denoiser(Half())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="does the work of one step in a forward, got 4 substeps"):
        Smoother().predict_substeps(torch.zeros(1), 0.5, torch.zeros(1), 1.0, 4)


def test_levels_are_rounded_to_those_that_the_network_knows() -> None:
    denoiser = Smoother(60)
    np.testing.assert_array_equal(denoiser.schedule(4), denoiser.alphas_cumprod[[0, 15, 30, 45, 60]])
    assert denoiser.settings["diffusion_steps"] == 60
    assert Smoother(12).settings["levels"] == "even:12"
    with pytest.raises(ConfigError, match="knows 60 noise levels, got a schedule of 61 steps"):
        denoiser.schedule(61)


def test_the_coarse_stage_ends_where_the_fine_one_begins(latent_folder: Path) -> None:
    process = RefinementProcess(load_denoiser(latent_folder), Plan(5, 4))
    np.testing.assert_array_equal(process.coarse_alphas_cumprod, process.alphas_cumprod[[0, 4, 8, 12, 16, 20]])


def test_guidance_counts_as_two_forwards(upscale_folder: Path, photo: Photo) -> None:
    source = f"{upscale_folder}?prompt=a+cat&guidance=3"
    task = Task(TaskConfig(denoiser=source, images=[photo(64, 64)], image_size=64, steps=(3, 4), metric="psnr",
                           skip_mode="jump", nfe_penalty=1.0))  # fmt: skip
    assert task.config.checkpoint == source
    (episode,) = task.begin([0], [0])
    assert episode.refinement.nfe == 4
    for _ in range(3):
        task.step([episode], [1])
    assert episode.refinement.nfe == 6, "SKIP to the end is one prediction"
    assert episode.reward == pytest.approx(episode.metrics["psnr"] - 2.0)
    table = task.schedule_outcomes([0], [0], [(4,), (4, 2)])
    assert (table.metrics["psnr"] - table.rewards())[0, 0].tolist() == [2.0, 4.0]


# --- environments ---


@pytest.mark.parametrize("name", ["latent", "upscale", pytest.param("concat", marks=pytest.mark.slow), "object"])
def test_checks_of_environments(name: str, photo: Photo, request: pytest.FixtureRequest) -> None:
    """SkipDiff-v0 on other people's models, as the paper defines it."""
    folder = "" if name == "object" else f"{request.getfixturevalue(f'{name}_folder')}"
    denoiser = {"object": Smoother(), "concat": f"{folder}?scale=4"}.get(name, folder)
    env = gym.make(
        "SkipDiff-v0", denoiser=denoiser, images=[photo(96, 96)], image_size=96,
        steps=(10, 6) if name == "object" else None,
    )  # fmt: skip
    check_env(env.unwrapped, skip_render_check=True)
    with warnings.catch_warnings():
        for message in EXPECTED:
            warnings.filterwarnings("ignore", message=message)
        check_env_sb3(env.unwrapped)
    assert isinstance(env.observation_space, gym.spaces.Box)
    side = {"object": 96, "concat": 96}.get(name, 24)
    assert env.observation_space.shape == (4 if name == "upscale" else 3, side, side)


@pytest.mark.parametrize(
    ("env_id", "settings"),
    [
        ("SkipDiffStride-v0", {}),
        ("SkipDiffJump-v0", {}),
        ("SkipDiffBandit-v0", {}),
        ("SkipDiffContinuous-v0", {}),
        ("SkipDiffJump-v0", {"fine_sampler": "dpmsolver++"}),
    ],
)
def test_other_environments(env_id: str, settings: dict[str, Any], upscale_folder: Path, photo: Photo) -> None:
    arguments = {
        "denoiser": str(upscale_folder), "images": [photo(64, 64)], "image_size": 64, "steps": (1, 5), "metric": "psnr",
        **settings,
    }  # fmt: skip
    env = gym.make(env_id, render_mode="rgb_array", **arguments)
    env.action_space.seed(0)
    first, _ = env.reset(seed=0)
    assert env.observation_space.contains(first)
    terminated = False
    while not terminated:
        observation, reward, terminated, _, info = env.step(env.action_space.sample())
        assert env.observation_space.contains(observation)
        if not terminated:
            state = env.unwrapped.get_state()  # type: ignore[attr-defined]
            env.unwrapped.set_state(state)  # type: ignore[attr-defined]
    assert np.isfinite(float(reward))
    assert info["metrics"]["psnr"] > 0
    frame: Any = env.render()
    assert frame.ndim == 3
    batched = gym.make_vec(env_id, num_envs=2, **arguments)
    observations, _ = batched.reset(seed=0)
    assert batched.observation_space.contains(observations)
    batched.step(batched.action_space.sample())


def test_what_agents_cannot_be_trained_on_says_so(upscale_folder: Path, photo: Photo, tmp_path: Path) -> None:
    Image.fromarray(photo(48, 48)).save(tmp_path / "a.png")
    source = CliRunner().invoke(main, [
        "train-agent", "--env", "SkipDiff-v0", "--denoiser", str(upscale_folder), "--images", str(tmp_path / "a.png"),
        "--image-size", "48", "--metric", "psnr", "--out", str(tmp_path / "run"),
    ])  # fmt: skip
    assert source.exit_code == 2
    assert "agents see latents of 3 channels" in source.stderr
    assert not (tmp_path / "run").exists()


def test_latents_out_of_bounds_are_shown_clipped(photo: Photo) -> None:
    class Wild(Smoother):
        def predict(self, x: Tensor, alpha_bar: Any, condition: Tensor) -> Any:
            return torch.full_like(x, 1e4), None

    env: Any = gym.make(
        "SkipDiff-v0", denoiser=Wild(), images=[photo(32, 32)], image_size=32, metric="psnr", steps=(10, 6)
    )
    observation, _ = env.reset(seed=0)
    assert env.observation_space.contains(observation)
    assert observation.max() == 20
    # an agent knows the bound of its observations alone
    task = env.unwrapped.task
    seen = Observer("latent", task.plan, None, latent_bound=20.0)([task.begin([0], [0])[0].refinement], [0.0])
    assert seen.max() == 20
    with pytest.raises(TypeError):
        env.spec.to_json()


def test_a_condition_of_another_size_is_refused(photo: Photo) -> None:
    class Odd(Smoother):
        def condition(self, lr_image: Tensor) -> Tensor:
            return lr_image

    env = gym.make("SkipDiff-v0", denoiser=Odd(), images=[photo(32, 32)], image_size=32, metric="psnr", steps=(10, 6))
    with pytest.raises(ConfigError, match=r"latents' sides \(32, 32\), got \(3, 16, 16\) from Odd.condition"):
        env.reset()


# --- large pictures ---


class Nearest(Smoother):
    """A latent denoiser without a receptive field; it keeps the areas that it decodes."""

    scale, multiple = 4, 2
    network: Any = None

    def __init__(self) -> None:
        super().__init__()
        self.network = None
        self.decoded: list[int] = []

    def condition(self, lr_image: Tensor) -> Tensor:
        return lr_image

    def latent_shape(self, lr_image: Tensor) -> tuple[int, int, int, int]:
        batch, _, height, width = lr_image.shape
        return batch, 5, height, width

    def predict(self, x: Tensor, alpha_bar: Any, condition: Tensor) -> Any:
        return torch.tanh(x) * condition.mean(dim=1, keepdim=True), None

    def decode(self, latent: Tensor, condition: Tensor) -> Tensor:
        self.decoded.append(latent.shape[-1] * latent.shape[-2])
        return (latent[:, :3] + condition).clamp(-1, 1).repeat_interleave(4, dim=2).repeat_interleave(4, dim=3)


@pytest.mark.parametrize(("height", "width"), [(31, 45), (8, 60), (16, 16)])
def test_tiles_in_latent_space(height: int, width: int) -> None:
    lr = [low_resolution(1, height, width)[0]]
    tiled, whole = (Upscaler(Nearest(), levels="even:3", tile=tile) for tile in (64, 0))
    a, b = tiled.upscale(lr, [0])[0], whole.upscale(lr, [0])[0]
    assert a.sr.shape == (3, 4 * height, 4 * width)
    torch.testing.assert_close(a.sr, b.sr, atol=1e-5, rtol=0)
    assert isinstance(tiled.unet, Nearest)
    assert max(tiled.unet.decoded) <= 16 * 16, "the decoder never sees more than a tile"


def test_no_seam_between_tiles_of_a_latent_network(latent_folder: Path) -> None:
    """At the borders of tiles the picture steps as it does elsewhere."""
    lr = low_resolution(1, 4, 16)
    lr = torch.nn.functional.interpolate(lr, size=(24, 120), mode="bicubic").clamp(-1, 1)
    tiled = Upscaler(latent_folder, levels="even:4", tile=128)
    sr = tiled.upscale(list(lr), [0])[0].sr
    assert isinstance(tiled.denoiser, TiledDenoiser)
    starts = tiled.denoiser.tiling.starts(sr.shape[-1])
    assert len(starts) > 3
    steps = sr.diff(dim=-1).abs().mean(dim=(0, 1))
    borders = torch.tensor([x - 1 for start in starts for x in (start, start + 128) if 0 < x < sr.shape[-1]])
    # a random decoder has a pattern of its own with the period 4
    elsewhere = torch.stack([steps[(borders + shift) % len(steps)].mean() for shift in range(-20, 24, 4) if shift])
    assert steps[borders].mean() < 1.15 * elsewhere.max()


def test_agents_decide_for_each_tile(upscale_folder: Path) -> None:
    seen = []

    def policy(states: Any) -> list[int]:
        seen.append({tuple(state.latent.shape) for state in states})
        return [0] * len(states)

    plan = Plan.of_schedule(Schedule.even(3), "ddim")
    upscaler = Upscaler(upscale_folder, policy=policy, plan=plan, tile=64)
    told: list[float] = []
    (result,) = upscaler.upscale(list(low_resolution(1, 20, 40)), [0], told.append)
    assert result.sr.shape == (3, 80, 160)
    assert seen[0] == {(4, 16, 16)}
    assert max(tile.box.right for tile in result.tiles) == 160
    assert {tile.nfe for tile in result.tiles} == {3}
    assert sum(told) == pytest.approx(3)


# --- what cannot work says so ---


def broken(kind: str, folder: Path) -> str:
    """A model that cannot be used, as what would be given for it."""
    if kind in ("no input", "class", "sigma", "no scheduler", "scale"):
        save_concat(folder, DDIMScheduler())
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        config |= {"no input": {"in_channels": 3}, "class": {"num_class_embeds": 3},
                   "sigma": {"time_embedding_type": "fourier"}}.get(kind, {})  # fmt: skip
        (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
        if kind == "no scheduler":
            (folder / "scheduler_config.json").unlink()
        return str(folder) if kind == "scale" else f"{folder}?scale=4"
    if kind == "other pipeline":
        (folder / "model_index.json").write_text('{"_class_name": "StableDiffusionPipeline"}', encoding="utf-8")
        return str(folder)
    if kind == "resshift":
        (folder / "resshift_realsrx4.pth").write_bytes(b"")
        return str(folder)
    latent_pipeline().save_pretrained(folder)
    scheduler, weights = folder / "scheduler/scheduler_config.json", folder / "unet/diffusion_pytorch_model.safetensors"
    if kind == "flow":
        scheduler.write_text('{"_class_name": "FlowMatchEulerDiscreteScheduler"}', encoding="utf-8")
    elif kind == "edm":
        scheduler.write_text('{"_class_name": "EDMEulerScheduler"}', encoding="utf-8")
    elif kind == "beta schedule":
        config = json.loads(scheduler.read_text(encoding="utf-8")) | {"beta_schedule": "odd"}
        scheduler.write_text(json.dumps(config), encoding="utf-8")
    elif kind == "pickle":
        weights.rename(weights.with_suffix(".bin"))
    elif kind == "weights":
        weights.unlink()
    elif kind == "damaged":
        weights.write_bytes(weights.read_bytes()[:1000])
    elif kind == "other weights":
        from safetensors.torch import load_file, save_file

        tensors = load_file(weights)
        tensors.pop("conv_in.weight")
        save_file(tensors, weights, metadata={"format": "pt"})
    elif kind == "part":
        (folder / "vqvae/config.json").unlink()
    return str(folder)


@pytest.mark.parametrize(
    ("kind", "message"),
    [
        ("no input", "3 channels in and 3 out, expected 6 and 3: it has no input for a low-resolution picture"),
        ("class", "needs a class"),
        ("sigma", "takes a standard deviation as input and is not variance-preserving"),
        ("no scheduler", "lacks scheduler_config.json"),
        ("scale", r"does not say how many times it enlarges; add it, as in .*\?scale=4"),
        (
            "other pipeline",
            "is a StableDiffusionPipeline, which does not enlarge pictures in a known way; expected LDM",
        ),
        ("resshift", "is not a checkpoint: it lacks config.json, and model_index.json"),
        ("flow", "FlowMatchEulerDiscreteScheduler is not known as one of a variance-preserving"),
        ("edm", "EDMEulerScheduler is not known as one of a variance-preserving"),
        ("beta schedule", "the scheduler's configuration is wrong"),
        ("pickle", r"diffusion_pytorch_model.bin are a pickle, which can run any code; .* pass --trust-pickle"),
        ("weights", "lacks the weights, diffusion_pytorch_model.safetensors"),
        ("damaged", "cannot be loaded"),
        ("other weights", "do not fit config.json: they lack conv_in.weight"),
        ("part", "is not a whole LDMSuperResolutionPipeline: it lacks vqvae/config.json"),
    ],
)
def test_models_that_cannot_be_used(kind: str, message: str, tmp_path: Path) -> None:
    with pytest.raises((CheckpointError, ConfigError), match=message) as raised:
        Upscaler(broken(kind, tmp_path))
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ("guidance=7", "guidance 7 needs a text to guide to, and none is given; add prompt=TEXT"),
        ("guidance=0.5&prompt=a", "guidance must be a number of at least 1, got 0.5"),
        ("guidance=much", "the setting guidance of a model must be a number, got 'much'"),
        ("noise_level=400", "noise_level must be a whole number in 0 … 350, got 400"),
        ("noise_level=-1", "noise_level must be a whole number of at least 0"),
        ("spacing=odd", "spacing must be one of"),
        ("steps=4", "unknown setting steps of a model; known are scale"),
        ("guidance", "settings must be written as in"),
    ],
)
def test_wrong_settings(settings: str, message: str, upscale_folder: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        load_denoiser(f"{upscale_folder}?{settings}")


def test_settings_of_our_own_networks_are_refused(checkpoint: str) -> None:
    with pytest.raises(ConfigError, match=r"settings behind \? are for models of diffusers"):
        load_denoiser(f"{checkpoint}?guidance=3")


def test_a_pickle_that_is_trusted(tmp_path: Path) -> None:
    latent_pipeline().save_pretrained(tmp_path, safe_serialization=False)
    with pytest.raises(CheckpointError, match="are a pickle"):
        load_denoiser(tmp_path)
    trusted = load_denoiser(tmp_path, trust_pickle=True)
    assert fingerprint(trusted) == fingerprint(load_denoiser(f"{tmp_path}?trust_pickle=true"))


def test_without_diffusers(concat_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "diffusers", None)
    with pytest.raises(ConfigError, match=r"pip install 'skipdiff\[diffusers\]'"):
        load_denoiser(f"{concat_folder}?scale=4")


def test_a_pipeline_of_a_concatenating_unet(tmp_path: Path) -> None:
    from diffusers import DDPMPipeline

    pipeline: Any = DDPMPipeline(concat_unet(), DDPMScheduler(clip_sample=False))
    pipeline.save_pretrained(tmp_path)
    whole, part = load_denoiser(f"{tmp_path}?scale=4"), load_denoiser(f"{tmp_path / 'unet'}?scale=4")
    assert fingerprint(whole) == fingerprint(part)


def test_a_repository_of_a_model(latent_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its configurations are looked at before weights are downloaded, and not in every precision."""
    asked: list[dict[str, Any]] = []

    def download(name: str, **kwargs: Any) -> str:
        assert name == "owner/model"
        asked.append(kwargs)
        return str(latent_folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    denoiser = load_denoiser("owner/model@main?spacing=trailing")
    assert fingerprint(denoiser) == fingerprint(load_denoiser(f"{latent_folder}?spacing=trailing"))
    assert [each["revision"] for each in asked] == ["main", "main"]
    assert asked[0]["allow_patterns"] == ["*.json"]
    files = {str(path.relative_to(latent_folder)) for path in latent_folder.rglob("*") if path.is_file()}
    kept = set(filter_repo_objects([*files, "unet/diffusion_pytorch_model.fp16.safetensors", "whole.safetensors"],
                                   allow_patterns=asked[1]["allow_patterns"],
                                   ignore_patterns=asked[1]["ignore_patterns"]))  # fmt: skip
    assert kept == files


def test_backends_run_our_own_networks_only(latent_folder: Path) -> None:
    with pytest.raises(ConfigError, match="the backend onnxruntime runs our own networks only"):
        Upscaler(latent_folder, backend="onnxruntime")


def test_commands_that_need_our_own_networks_say_so(latent_folder: Path) -> None:
    with pytest.raises(CheckpointError, match="is a model of diffusers; only our own networks can be used for this"):
        load_unet(latent_folder)


# --- the whole way ---


def skipdiff(*arguments: object) -> str:
    """What a command of the project prints."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


def test_from_a_table_to_an_agent_to_pictures(upscale_folder: Path, photo: Photo, tmp_path: Path) -> None:
    """tabulate, PPO on the table, export_agent, upscale and evaluate."""
    (tmp_path / "photos").mkdir()
    for i in range(24):
        Image.fromarray(photo(96, 96, seed=i)).save(tmp_path / "photos" / f"{i}.png")
    source, table = f"{upscale_folder}?prompt=a+cat&guidance=2", tmp_path / "table"
    ways = [part for text in ("4", "4,2", "4,3,1") for part in ("--levels", text)]
    output = skipdiff(
        "tabulate", "--denoiser", source, "--images", tmp_path / "photos", "--out", table, *ways, "--image-size", 48,
        "--metrics", "lpips,psnr",
    )  # fmt: skip
    assert "24 crops" in output
    outcomes = OutcomeTable.load(table)
    assert outcomes.forwards.tolist() == [2, 4, 6], "guidance counts"
    env = TableVecEnv(4, table=outcomes, split="train", nfe_penalty=0.001)
    model = PPO("MlpPolicy", env, n_steps=8, batch_size=16, policy_kwargs={"net_arch": [16]}, device="cpu").learn(64)
    export_agent(model, outcomes, tmp_path / "agent")
    Image.fromarray(photo(20, 28, seed=99)).save(tmp_path / "small.png")
    output = skipdiff(
        "upscale", tmp_path / "small.png", "-o", tmp_path / "large.png", "--denoiser", source,
        "--agent", tmp_path / "agent", "--tile", 64,
    )  # fmt: skip
    with Image.open(tmp_path / "large.png") as large:
        assert large.size == (112, 80)
    output = skipdiff(
        "evaluate", "--denoiser", source, "--agent", f"mine={tmp_path / 'agent'}", "--images", tmp_path / "photos",
        "--limit", 2, "--image-size", 96, "--metrics", "psnr,lpips", "--no-paper", "--levels", "even:4",
    )  # fmt: skip
    rows = {line.split("|")[1].strip(): line for line in output.splitlines() if line.startswith("|")}
    assert rows.keys() >= {"bicubic", "ddim, 4 even steps", "agent mine"}, output


def test_the_page_offers_other_models(concat_folder: Path) -> None:
    from agents.web.app import Workshop

    source = f"{concat_folder}?scale=4"
    shop = Workshop([source])
    picture = Picture(np.random.default_rng(0).integers(0, 256, (8, 8, 3), dtype=np.uint8))
    large, _ = shop.upscaler(source, 2).enlarge([picture], [0])[0]
    assert large.rgb.shape == (32, 32, 3)
