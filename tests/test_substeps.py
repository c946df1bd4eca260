"""Substeps: schedules with them, the network of the jumps, what the process makes of them, and their training."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from agents.cli import main
from ddpm.checkpoints import load_unet, save_checkpoint
from ddpm.nets.denoiser import to_image, to_latent
from ddpm.nets.unet import ADD_ON, UNet
from ddpm.noise import KeyedNoise, Stage
from ddpm.sampling import p_sample
from ddpm.schedule import Schedule, as_schedule, cosine_alphas_cumprod
from ddpm.training import substeps
from ddpm.training.configs import SubstepsConfig
from ddpm.training.substeps import draw_jumps, even_jumps, signal_level, substeps_loss, train_substeps
from ddpm.training.trainer import latest_state
from ddpm.util.errors import CheckpointError, ConfigError
from skipdiff_env.decisions import Choice
from skipdiff_env.memo import Memo
from skipdiff_env.plan import Plan
from skipdiff_env.refinement import RefinementProcess
from skipdiff_env.task import fingerprint
from skipdiff_env.upscaler import Fixed, Upscaler, detail_schedule
from tests.conftest import counting, tiny_unet

MOST = 8


def with_substeps(seed: int = 1) -> UNet:
    """The tiny network with random substeps, which change its results visibly."""
    unet = tiny_unet()
    torch.manual_seed(seed)
    jumps = unet.jump_network()
    assert jumps.jump is not None
    for parameter in jumps.jump.mlp[2].parameters():
        torch.nn.init.normal_(parameter, std=3.0)
    unet.add_substeps(MOST, jumps.eval().requires_grad_(False))
    return unet


def inputs(count: int = 4) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    """Conditions, latents, noise levels, and the levels gone to."""
    generator = torch.Generator().manual_seed(0)
    lr_up, x_t = (torch.randn(count, 3, 16, 16, generator=generator) for _ in range(2))
    return lr_up.clamp(-1, 1), x_t, torch.linspace(0.1, 0.6, count), torch.linspace(0.7, 1, count)


@pytest.fixture(scope="session")
def jumping(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of the tiny network with substeps."""
    folder = tmp_path_factory.mktemp("jumping")
    save_checkpoint(with_substeps(), folder)
    return str(folder)


@pytest.mark.parametrize(
    ("text", "levels", "counts"),
    [
        ("20,13,6,2", (20, 13, 6, 2), (1, 1, 1, 1)),
        ("20*4,9", (20, 9), (4, 1)),
        ("even:3", (3, 2, 1), (1, 1, 1)),
        ("even:2*8", (2, 1), (8, 8)),
        ("even:1*12", (1,), (12,)),
    ],
)
def test_schedules_have_one_text(text: str, levels: tuple[int, ...], counts: tuple[int, ...]) -> None:
    schedule = Schedule.parse(text)
    assert (schedule.levels, schedule.substeps) == (levels, counts)
    assert str(schedule) == text
    assert as_schedule(text) == as_schedule(schedule) == schedule
    assert list(schedule.jumps()) == list(zip((*levels[1:], 0), counts, strict=True))
    assert schedule.plain == (set(counts) == {1})


@pytest.mark.parametrize("text", ["", "even:0", "even:x", "even:2,1", "odd:3", "3*", "*3", "even:2*x", "5,5*2", "1.5"])
def test_texts_that_say_no_schedule(text: str) -> None:
    with pytest.raises(ConfigError, match="levels must be falling whole numbers"):
        Schedule.parse(text)


@pytest.mark.parametrize("counts", [(0, 1), (1,), (1, 2.5), (2000, 1), (True, 1)])
def test_substeps_out_of_range(counts: Any) -> None:
    with pytest.raises(ConfigError, match="substeps must be a whole number in 1 … 1024 for each of 2 levels"):
        Schedule((2, 1), counts)


def test_one_substep_is_the_plain_network_bit_for_bit() -> None:
    plain, unet = tiny_unet(), with_substeps()
    lr_up, x_t, level, to = inputs()
    expected = plain(lr_up, x_t, level)
    assert torch.equal(unet(lr_up, x_t, level), expected)
    assert torch.equal(unet(lr_up, x_t, level, to, torch.ones(4)), expected)
    several = unet(lr_up, x_t, level, to, torch.full((4,), 4.0))
    assert (several - expected).abs().amax(dim=(1, 2, 3)).min() > 1e-3
    mixed = unet(lr_up, x_t, level, to, torch.tensor([1.0, 4.0, 1.0, 4.0]))
    torch.testing.assert_close(
        mixed, torch.where(torch.tensor([1, 0, 1, 0])[:, None, None, None] > 0, expected, several)
    )


def test_the_embedding_is_zero_at_one_substep() -> None:
    jump = with_substeps()._jumps[0].jump
    assert jump is not None
    angle = torch.linspace(0, 1.5, 7)
    assert torch.equal(jump(angle, torch.ones(7)), torch.zeros(7, 8))
    assert (jump(angle, torch.full((7,), 1.1)).abs().amax(dim=1) > 0).all()


def test_substeps_are_stored_apart(jumping: str, tmp_path: Path) -> None:
    unet, again = with_substeps(), load_unet(jumping)
    assert again.substeps == MOST
    assert load_file(f"{jumping}/{ADD_ON}").keys() == {f"jump.mlp.{i}.{n}" for i in (0, 2) for n in ("weight", "bias")}
    lr_up, x_t, level, to = inputs()
    counts = torch.tensor([1.0, 2.0, 3.0, 8.0])
    torch.testing.assert_close(again(lr_up, x_t, level, to, counts), unet(lr_up, x_t, level, to, counts))
    assert fingerprint(again) != fingerprint(tiny_unet())
    other = with_substeps(seed=2)
    assert fingerprint(other) != fingerprint(unet), "two add-ons are told apart"


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: {}, "it lacks jump.mlp.0"),
        (lambda t: {**t, "foo": torch.zeros(1)}, "unknown foo"),
        (lambda t: {**t, "jump.mlp.2.bias": torch.zeros(3)}, "has shape"),
        (lambda t: {**t, "jump.mlp.2.bias": torch.full((8,), float("nan"))}, "not finite"),
        (None, "missing or damaged"),
    ],
)
def test_damaged_add_ons(change: Any, message: str, jumping: str, tmp_path: Path) -> None:
    folder = tmp_path / "net"
    save_checkpoint(load_unet(jumping), folder)
    if change is None:
        (folder / ADD_ON).unlink()
    else:
        save_file(change(load_file(folder / ADD_ON)), folder / ADD_ON)
    with pytest.raises(CheckpointError, match=message):
        load_unet(folder)


def test_what_has_no_substeps() -> None:
    lr_up, x_t, level, to = inputs()
    with pytest.raises(ConfigError, match="at most 8 steps, got 9 substeps"):
        with_substeps()(lr_up, x_t, level, to, torch.full((4,), 9.0))
    with pytest.raises(ConfigError, match="at most 1 steps, got 2 substeps; train them"):
        tiny_unet()(lr_up, x_t, level, to, torch.full((4,), 2.0))
    with pytest.raises(ConfigError, match="substeps need a network that predicts v"):
        tiny_unet(prediction="eps", substeps=4)


def test_the_process_runs_schedules_with_substeps() -> None:
    unet, noise = with_substeps(), KeyedNoise([5], (3, 16, 16))
    lr_up = inputs(1)[0]
    process = RefinementProcess(unet, Plan(1, 6, fine_sampler="ddim", skip_mode="jump"), Memo(16))
    schedules = [Schedule((6, 3), (2, 4)), Schedule((6, 3)), Schedule((6, 3), (2, 1)), Schedule((6,), (8,))]
    table = process.run_all_schedules(process.begin([lr_up[0]], [5], ["key"]), schedules)[0]
    for schedule, (state, sr) in zip(schedules, table, strict=True):
        latents = noise(Stage.INITIAL, 6)
        for level, (to, count) in zip(schedule.levels, schedule.jumps(), strict=True):
            latents = p_sample(unet, process.alphas_cumprod, level, latents, lr_up, None, 0.0, to, count)
        torch.testing.assert_close(sr, to_image(unet, latents, lr_up)[0], atol=1e-5, rtol=0)
        assert (state.schedule, state.nfe) == (schedule, schedule.forwards)
        with counting(unet) as forwards:
            (((_, again),),) = process.run_all_schedules(process.begin([lr_up[0]], [5], ["key"]), [schedule])
        assert torch.equal(again, sr)
        assert not forwards, "what is remembered belongs to its substeps"
    assert len({tuple(sr.flatten().tolist()) for _, sr in table}) == len(schedules)


def test_each_picture_has_its_schedule() -> None:
    unet, lr_up = with_substeps(), inputs(2)[0]
    plan = Plan(1, 6, fine_sampler="ddim", skip_mode="jump")
    schedules = [Schedule((6, 2), (2, 1)), Schedule((6,), (8,))]
    process = RefinementProcess(unet, plan, decisions=Choice(plan, schedules))
    together = process.run(process.begin(list(lr_up), [1, 2]), lambda states: range(len(states)))
    for i, schedule in enumerate(schedules):
        (((_, alone),),) = process.run_all_schedules(process.begin([lr_up[i]], [i + 1]), [schedule])
        torch.testing.assert_close(together[i], alone, atol=1e-5, rtol=0)


@pytest.mark.parametrize("sampler", ["ddpm", "ddim:0.5", "dpmsolver++"])
def test_substeps_need_ddim(sampler: str) -> None:
    process = RefinementProcess(with_substeps(), Plan(1, 2, fine_sampler=sampler, skip_mode="jump"))
    with pytest.raises(ConfigError, match=f"substeps need the sampler ddim, which adds no noise, got {sampler}"):
        process.run_all_schedules([], [Schedule.parse("even:2*2")])


def test_more_substeps_than_were_learnt() -> None:
    plan = Plan(1, 1, fine_sampler="ddim", skip_mode="jump")
    with pytest.raises(ConfigError, match="has learnt at most 8 substeps, got 9 in even:1"):
        RefinementProcess(with_substeps(), plan).check(Schedule.parse("even:1*9"))
    with pytest.raises(ConfigError, match="has learnt no substeps, got 2"):
        RefinementProcess(tiny_unet(), plan).check(Schedule.parse("even:1*2"))


def test_the_upscaler_turns_detail_into_substeps(jumping: str, checkpoint: str) -> None:
    assert [detail_schedule(d, 16).substeps[0] for d in (0, 0.25, 0.5, 0.75, 1)] == [1, 2, 4, 8, 16]
    lr = inputs()[0][0, :, :8, :8]
    results = [Upscaler(jumping, detail=detail).upscale([lr], [0])[0] for detail in (0.0, 1.0)]
    assert [(r.nfe, r.tiles[0].schedule, r.tiles[0].steps) for r in results] == [
        (1, Schedule.even(1), 1), (1, Schedule.even(1, MOST), MOST)
    ]  # fmt: skip
    assert not torch.allclose(results[0].sr, results[1].sr, atol=1e-3)
    given = Upscaler(jumping, levels="even:1*8").upscale([lr], [0])[0]
    assert torch.equal(given.sr, results[1].sr)
    for detail in (-0.1, 1.1, float("nan"), "much"):
        with pytest.raises(ConfigError, match="detail must be a number in 0 … 1"):
            Upscaler(jumping, detail=detail)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="detail needs a checkpoint with substeps"):
        Upscaler(checkpoint, detail=0.5)
    with pytest.raises(ConfigError, match="give one of them"):
        Upscaler(jumping, detail=0.5, levels="even:2")


def test_tiles_with_substeps_agree_with_each_other(jumping: str) -> None:
    """Alone, in a batch and in a group, a tile gives the same."""
    lr = torch.randn(3, 24, 40, generator=torch.Generator().manual_seed(3)).clamp(-1, 1)
    plan = Plan(1, 1, fine_sampler="ddim", skip_mode="jump")
    chosen = Fixed(Schedule.parse("even:1*8"), plan)
    one, many = (
        Upscaler(jumping, policy=chosen, plan=plan, tile=32, batch_size=size).upscale([lr], [0])[0] for size in (1, 8)
    )
    assert len(one.tiles) > 4
    assert one.tiles == many.tiles
    torch.testing.assert_close(one.sr, many.sr, atol=1e-5, rtol=0)


def test_jumps_to_train_on() -> None:
    begin, end, counts = draw_jumps(np.random.default_rng(0), 4000, 16)
    assert ((end >= 0) & (end < begin) & (begin <= 1)).all()
    assert set(counts) == {2, 4, 8, 16}
    assert 0.57 <= ((begin == 1) & (end == 0)).mean() < 0.63
    assert (begin - end >= np.maximum(0.05, counts / 48) - 1e-9).all()
    assert (begin == 1).mean() > 0.7
    assert (end == 0).mean() > 0.7
    schedule = np.sqrt(cosine_alphas_cumprod(100))
    np.testing.assert_allclose(signal_level(np.arange(100) / 100), schedule[:-1], atol=1e-12)


def test_the_loss_is_that_of_the_even_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that predicts the v that leads where even steps of the plain network lead has no loss."""
    unet = tiny_unet()
    hr = torch.rand(3, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1
    lr_image = torch.nn.functional.avg_pool2d(hr, 4)
    begin, end, counts = np.array([1.0, 0.75, 0.5]), np.array([0.0, 0.25, 0.0]), np.array([4, 2, 2])
    monkeypatch.setattr(substeps, "draw_jumps", lambda rng, count, most: (begin, end, counts))
    noisiest = float(np.sqrt(cosine_alphas_cumprod(4)[4]))
    monkeypatch.setattr(substeps, "NOISIEST", (noisiest, noisiest * (1 + 1e-12)))
    seen = []

    def model(lr_up: torch.Tensor, x_l: torch.Tensor, *levels: torch.Tensor) -> torch.Tensor:
        seen.append(x_l)
        out = []
        for i, (first, last, m) in enumerate(zip(begin, end, counts, strict=True)):
            steps = np.linspace(first, last, m + 1)
            alphas = np.where(steps == 1, noisiest, signal_level(steps)) ** 2
            x = x_l[i : i + 1]
            for j in range(m):
                x = p_sample(unet, alphas, j, x, lr_up[i : i + 1], None, 0.0, j + 1)
            turn = np.arccos(np.sqrt(alphas[0])) - np.arccos(np.sqrt(alphas[-1]))
            out.append((np.cos(turn) * x_l[i : i + 1] - x) / np.sin(turn))
        return torch.cat(out)

    torch.manual_seed(0)
    assert substeps_loss(model, unet, hr, lr_image, 4, torch.nn.functional.mse_loss) < 1e-8  # type: ignore[arg-type]
    x_0 = to_latent(unet, hr, unet.condition(lr_image))
    assert (seen[0] - x_0).abs().mean() > 0.1, "latents are noisy"


def test_even_jumps_are_those_of_the_process() -> None:
    unet, lr_up = with_substeps(), inputs(1)[0]
    process = RefinementProcess(unet, Plan(1, 2, fine_sampler="ddim", skip_mode="jump"))
    (((_, sr),),) = process.run_all_schedules(process.begin([lr_up[0]], [7]), [Schedule.parse("even:2*4")])
    latents = even_jumps(unet, lr_up, KeyedNoise([7], (3, 16, 16)), 2, 4)
    torch.testing.assert_close(to_image(unet, latents, lr_up)[0], sr, atol=1e-5, rtol=0)


@pytest.fixture
def config(checkpoint: str, photos: Path) -> SubstepsConfig:
    return SubstepsConfig(
        images=[str(photos)], init=checkpoint, most=4, crop=16, batch_size=2, iterations=4, save_every=2, warmup=0,
        lr=1e-2, ema_decay=0.5,
    )  # fmt: skip


@pytest.mark.parametrize("trained", ["all", "low-rank", "embedding"])
def test_training_leaves_the_plain_network_as_it_is(
    trained: str, config: SubstepsConfig, checkpoint: str, tmp_path: Path
) -> None:
    out = train_substeps(replace(config, trained=trained), tmp_path / "run")  # type: ignore[arg-type]
    unet, plain = load_unet(out), load_unet(checkpoint)
    assert unet.substeps == 4
    lr_up, x_t, level, to = inputs()
    assert torch.equal(unet(lr_up, x_t, level, to, torch.ones(4)), plain(lr_up, x_t, level))
    assert not torch.allclose(unet(lr_up, x_t, level, to, torch.full((4,), 4.0)), unet(lr_up, x_t, level), atol=1e-3)
    names = {name.partition(".")[0] for name in load_file(out / ADD_ON)}
    assert (names == {"jump"}) == (trained == "embedding")
    assert latest_state(tmp_path / "run") == tmp_path / "run" / "state-00000004"


def test_training_resumes_to_the_same_weights(config: SubstepsConfig, tmp_path: Path) -> None:
    whole = train_substeps(replace(config, lr_schedule="constant"), tmp_path / "whole")
    half = replace(config, lr_schedule="constant", iterations=2)
    train_substeps(half, tmp_path / "half")
    resumed = train_substeps(replace(half, iterations=4), tmp_path / "half", resume=True)
    expected, found = (load_file(each / ADD_ON) for each in (whole, resumed))
    assert expected.keys() == found.keys()
    assert all(torch.equal(expected[name], found[name]) for name in expected)


def test_training_by_the_command(checkpoint: str, photos: Path, tmp_path: Path) -> None:
    arguments = [
        "train-substeps", f"--from={checkpoint}", f"--images={photos}", f"--eval-images={photos}", "--eval-size=32",
        "--most=2", "--crop=16", "--batch-size=2", "--iterations=1", "--save-every=1", f"--out={tmp_path / 'run'}",
    ]  # fmt: skip
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    assert "forwards x substeps, LPIPS/PSNR: 1x1 " in result.output
    assert "1x2 " in result.output
    assert "1x4 " not in result.output
    assert f"checkpoint: {tmp_path / 'run' / 'checkpoint'}" in result.output


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--most=3"], "most must be a power of 2, such as 8 or 16, got 3"),
        (["--most=1"], "most must be at least 2, got 1"),
        (["--rank=0"], "rank must be at least 1, got 0"),
        (["--crop=18"], "crop must be a multiple of the net's stride 4, got 18"),
        (["--from=nothing"], "unknown checkpoint 'nothing'"),
        (["--eval-size=34"], "eval_size must be a multiple of 4"),
    ],
)
def test_bad_settings_of_a_training(
    options: list[str], message: str, checkpoint: str, photos: Path, tmp_path: Path
) -> None:
    common = ["train-substeps", f"--from={checkpoint}", f"--images={photos}", f"--eval-images={photos}"]
    result = CliRunner().invoke(main, [*common, f"--out={tmp_path / 'run'}", *options])
    assert result.exit_code == 2
    assert message in result.output
    assert not (tmp_path / "run" / "checkpoint").exists()


def test_a_network_that_predicts_noise_learns_no_substeps(config: SubstepsConfig, tmp_path: Path) -> None:
    save_checkpoint(tiny_unet(prediction="eps"), tmp_path / "eps")
    with pytest.raises(ConfigError, match=r"substeps need a network that predicts v, but .* predicts eps"):
        train_substeps(replace(config, init=str(tmp_path / "eps")), tmp_path / "run")


def test_a_checkpoint_may_name_a_schedule_with_substeps(jumping: str, tmp_path: Path) -> None:
    unet = tiny_unet(levels="even:1*8", substeps=MOST)
    unet.add_substeps(MOST, with_substeps()._jumps[0])
    save_checkpoint(unet, tmp_path)
    lr = inputs()[0][0, :, :8, :8]
    own, given = Upscaler(tmp_path).upscale([lr], [0])[0], Upscaler(jumping, levels="even:1*8").upscale([lr], [0])[0]
    assert own.tiles[0].schedule == Schedule.parse("even:1*8")
    torch.testing.assert_close(own.sr, given.sr)
    with pytest.raises(ConfigError, match="substeps of levels must be at most 4, got 8"):
        tiny_unet(levels="even:1*8", substeps=4)
