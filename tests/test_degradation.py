"""Low-resolution inputs as photographs have them: what is drawn, what is done, and that all parts make the same."""

import io
import math
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
import torch
from click.testing import CliRunner
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file

from agents.cli import main
from agents.study import methods as ways
from agents.study.methods import Batch
from agents.study.running import Runner, load_crops
from ddpm.checkpoints import load_denoiser
from ddpm.pictures.crops import CropDataset
from ddpm.pictures.degradation import (
    KERNELS,
    OPERATIONS,
    PLAIN,
    Blur,
    Degradation,
    Jpeg,
    Noise,
    Recipe,
    Shrink,
    Sizes,
    downsample,
    picture_key,
)
from ddpm.pictures.images import to_tensor, to_uint8
from ddpm.training import trainer
from ddpm.training.configs import DDPMConfig, PredictorConfig
from ddpm.training.predictor import train_predictor
from ddpm.training.trainer import resumed_config
from ddpm.training.unet import train
from ddpm.util.errors import ConfigError, ImageError
from skipdiff_env.config import TaskConfig
from skipdiff_env.env import SkipDiffEnv
from skipdiff_env.outcomes import OutcomeTable
from skipdiff_env.tabulate import tabulate
from skipdiff_env.task import Task
from tests.conftest import TINY, Photo, tiny_unet

SIZES = Sizes((128, 96), (32, 24))
WRONG = [
    "phto",
    "photo:1.01",
    "photo:-0.1",
    "photo:",
    "photo:x",
    "photo:nan",
    "photo3",
    "bicubic:0.5",
    "",
    "photo:0.5:1",
]


def amounts(recipe: Recipe, kind: type) -> list[Any]:
    return [operation for operation in recipe.operations if isinstance(operation, kind)]


@pytest.fixture
def hr(photo: Photo) -> torch.Tensor:
    return torch.stack([to_tensor(photo(64, 48, seed=i)) for i in range(6)])


# --- names and strengths ---


@pytest.mark.parametrize("text", ["bicubic", "photo", "photo:0", "photo:0.5", "photo2:1", "photo2:0.123456789"])
def test_names(text: str) -> None:
    assert str(Degradation.parse(text)) == text
    assert Degradation.parse("photo:.50") == Degradation("photo", 0.5)


@pytest.mark.parametrize("text", WRONG)
def test_wrong_names(text: str) -> None:
    with pytest.raises(
        ConfigError, match=r"degradation must be bicubic, photo or photo2, .* 0 … 1 as in photo:0.5, got"
    ) as error:
        Degradation.parse(text)
    assert repr(text) in str(error.value)
    assert "\n" not in str(error.value)
    with pytest.raises(ConfigError, match="degradation must be"):
        TaskConfig(degradation=text)
    with pytest.raises(ConfigError, match="degradation must be"):
        DDPMConfig(images=["x"], degradation=text)


def test_wrong_types() -> None:
    with pytest.raises(ConfigError, match="got None"):
        Degradation.parse(None)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="got 'photo' with strength 2"):
        Degradation("photo", 2)


@pytest.mark.parametrize(
    "arguments",
    [
        ["train-ddpm", "--images=x"],
        ["train-predictor", "--images=x"],
        ["train-agent", "--env=SkipDiff-v0"],
        ["evaluate"],
        ["reproduce"],
        ["tabulate"],
        ["enjoy", "--agent=x"],
    ],
)
def test_commands_refuse_wrong_names(arguments: list[str], tmp_path: Path) -> None:
    result = CliRunner().invoke(main, [*arguments, f"--out={tmp_path / 'out'}", "--degradation=photo:2"])
    assert result.exit_code == 2, (result.output, result.exception)
    assert "as in photo:0.5, got 'photo:2'" in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


# --- what is drawn ---


def test_the_amounts_of_fixed_strengths() -> None:
    """Those of the tables: blur 0.75 and 1.5 pixels, noise 6 and 12 grey levels, JPEG 72 and 45."""
    for strength, sigma, noise, quality in ((0.5, 0.75, 6, 72), (1.0, 1.5, 12, 45)):
        for n in range(30):
            recipe = Degradation("photo", strength).recipe([n])
            assert recipe.strengths == dict.fromkeys(OPERATIONS, strength)
            (blur,), (made,), (jpeg,) = (amounts(recipe, kind) for kind in (Blur, Noise, Jpeg))
            assert math.prod(blur.sigmas) ** 0.5 == pytest.approx(sigma)
            assert 1 <= blur.sigmas[0] / blur.sigmas[1] <= 3
            assert (made.sigma, jpeg.quality) == (noise, quality)


def test_orders_and_kinds() -> None:
    recipes = [Degradation("photo", 1.0).recipe([7, n]) for n in range(400)]
    orders = Counter(tuple(type(operation).__name__ for operation in recipe.operations) for recipe in recipes)
    assert len(orders) == 12, "all orders of four operations in which compression follows shrinking"
    assert all(order.index("Jpeg") > order.index("Shrink") for order in orders)
    blurs, noises = ([amounts(recipe, kind)[0] for recipe in recipes] for kind in (Blur, Noise))
    assert 150 < sum(blur.sigmas[0] == blur.sigmas[1] for blur in blurs) < 250
    assert {noise.kind for noise in noises} == {"gaussian", "poisson"}
    assert {noise.grey for noise in noises} == {True, False}
    assert all(amounts(recipe, Jpeg)[0].subsampling for recipe in recipes)
    assert {amounts(recipe, Shrink)[0].kernel for recipe in recipes} == set(KERNELS)
    other = [Degradation("photo", 0.3).recipe([7, n]) for n in range(400)]
    for strong, weak in zip(recipes, other, strict=True):
        assert [type(operation) for operation in strong.operations] == [
            type(operation) for operation in weak.operations
        ]
        assert amounts(strong, Noise)[0] == replace(amounts(weak, Noise)[0], sigma=12.0)
        assert amounts(weak, Shrink)[0].kernel in (amounts(strong, Shrink)[0].kernel, "bicubic")
    assert 60 < sum(amounts(recipe, Shrink)[0].kernel != "bicubic" for recipe in other) < 100, "two of three kernels"
    assert 95 < sum(amounts(recipe, Jpeg)[0].subsampling for recipe in other) < 145


def test_drawn_strengths() -> None:
    """Each is 0 in a third of the pictures and uniform in the others; what has strength 0 is left out."""
    recipes = [Degradation("photo").recipe([0, 2, n]) for n in range(900)]
    for name, kind in (("blur", Blur), ("noise", Noise), ("jpeg", Jpeg), ("shrink", None)):
        strengths = np.array([recipe.strengths[name] for recipe in recipes])
        assert 0.28 < (strengths == 0).mean() < 0.39
        np.testing.assert_allclose(np.quantile(strengths[strengths > 0], [0.1, 0.5, 0.9]), [0.1, 0.5, 0.9], atol=0.06)
        if kind is not None:
            assert [bool(amounts(recipe, kind)) for recipe in recipes] == (strengths > 0).tolist()
    recipe = next(recipe for recipe in recipes if amounts(recipe, Jpeg))
    assert amounts(recipe, Jpeg)[0].quality == round(100 - 55 * recipe.strengths["jpeg"])
    assert Degradation().recipe([3]) == Recipe(dict.fromkeys(OPERATIONS, 0.0), (Shrink("bicubic"),))


def test_the_second_order() -> None:
    places = []
    for n in range(50):
        recipe = Degradation("photo2", 1.0).recipe([n])
        assert Counter(type(operation) for operation in recipe.operations) == dict.fromkeys(
            (Blur, Shrink, Noise, Jpeg), 2
        )
        first, second = amounts(recipe, Shrink)
        assert (0 <= first.place <= 1, second.place) == (True, 0)
        places.append(first.place)
    assert min(places) < 0.2
    assert max(places) > 0.8


# --- what is done ---


@settings(max_examples=60, deadline=None)
@given(
    name=st.sampled_from(["photo", "photo2"]), strength=st.none() | st.floats(0, 1),
    scale=st.sampled_from([1, 2, 4, 8]),
    height=st.integers(1, 6), width=st.integers(1, 6), key=st.lists(st.integers(0, 2**63), min_size=1, max_size=3),
    grey=st.integers(0, 255),
)  # fmt: skip
def test_any_strength_gives_pictures(
    name: str, strength: float | None, scale: int, height: int, width: int, key: list[int], grey: int
) -> None:
    rgb = np.random.default_rng(0).integers(0, 256, (height * scale, width * scale, 3), dtype=np.uint8)
    hr = torch.stack([to_tensor(rgb), to_tensor(np.full_like(rgb, grey))])
    before = hr.clone()
    lr = Degradation(name, strength)(hr, scale, [key, key])
    assert torch.equal(hr, before), "the targets are left as they are"
    assert (lr.shape, lr.dtype) == ((2, 3, height, width), torch.float32)
    assert torch.equal(torch.stack([to_tensor(to_uint8(picture)) for picture in lr]), lr), "8 bits in [-1, 1]"


@pytest.mark.parametrize("name", ["bicubic", "photo:0", "photo2:0"])
def test_strength_0_is_bicubic(name: str, hr: torch.Tensor) -> None:
    assert torch.equal(Degradation.parse(name)(hr, 4), downsample(hr, 4))


@pytest.mark.parametrize("name", ["photo", "photo:0.7", "photo2"])
def test_a_function_of_the_key(name: str, hr: torch.Tensor) -> None:
    """Neither the batch nor any global generator has a say in it; without keys the picture's own pixels decide."""
    degradation = Degradation.parse(name)
    keys = [[3, n] for n in range(len(hr))]
    whole = degradation(hr, 4, keys)
    torch.manual_seed(1)
    np.random.seed(1)  # noqa: NPY002
    for i in (4, 0, 2):
        assert torch.equal(degradation(hr[i : i + 1], 4, keys[i : i + 1])[0], whole[i])
    assert not torch.equal(degradation(hr, 4, keys[::-1]), whole)
    own = degradation(hr, 4)
    assert torch.equal(own, degradation(hr, 4, [picture_key(each) for each in hr]))
    assert torch.equal(own[[5, 1]], degradation(hr[[5, 1]], 4))


def test_stronger_is_worse(hr: torch.Tensor) -> None:
    errors = [
        float((Degradation.parse(name)(hr, 4) - downsample(hr, 4)).square().mean())
        for name in ("photo:0.1", "photo:0.3", "photo:0.6", "photo:1", "photo2:1")
    ]
    assert errors == sorted(errors)
    assert errors[-2] > 4 * errors[0] > 0


def test_sides_that_do_not_fit(hr: torch.Tensor) -> None:
    for name in ("bicubic", "photo"):
        with pytest.raises(ImageError, match="multiples of 5, got 48 x 64"):
            Degradation.parse(name)(hr, 5)


@pytest.mark.parametrize("smaller", [1, 2])
def test_blur(smaller: int) -> None:
    """The spread of a point along the angle and across it, in pixels of the target, in whatever size it is applied."""
    sigmas, angle, rng = (2.4, 1.2), 0.6, np.random.default_rng(0)
    point = torch.zeros(1, 3, 65, 49)
    point[..., 32, 24] = 1
    spread = Blur(sigmas, angle)(point, Sizes((65 * smaller, 49 * smaller), (5, 5)), rng)
    assert spread.shape == point.shape
    assert torch.equal(spread[:, 0], spread[:, 2])
    weights = spread[0, 0].double().numpy()
    assert weights.sum() == pytest.approx(1, abs=1e-4)
    y, x = np.mgrid[-32:33, -24:25]
    along, across = x * math.cos(angle) + y * math.sin(angle), y * math.cos(angle) - x * math.sin(angle)
    for axis, sigma in ((along, sigmas[0]), (across, sigmas[1])):
        assert math.sqrt((weights * axis**2).sum()) == pytest.approx(sigma / smaller, rel=0.03)


def test_blur_keeps_flat_pictures_and_is_nothing_at_0() -> None:
    flat, rng = torch.full((1, 3, 5, 4), 0.25), np.random.default_rng(0)
    torch.testing.assert_close(Blur((9.0, 3.0), 1.0)(flat, Sizes((5, 4), (5, 4)), rng), flat)
    picture = torch.rand(1, 3, 7, 6)
    torch.testing.assert_close(Blur((0.0, 0.0), 1.0)(picture, Sizes((7, 6), (7, 6)), rng), picture)


@pytest.mark.parametrize("kind", ["gaussian", "poisson"])
@pytest.mark.parametrize("grey", [False, True])
def test_noise(kind: str, grey: bool) -> None:
    rng = np.random.default_rng(0)
    half, dark = torch.zeros(1, 3, 160, 240), torch.full((1, 3, 160, 240), -0.8)
    sizes = Sizes((640, 960), (160, 240))
    added = Noise(kind, 6.0, grey)(half, sizes, rng) - half
    assert added.mean() == pytest.approx(0, abs=1e-3)
    assert float(added.std()) * 127.5 == pytest.approx(6, rel=0.02)
    assert torch.equal(added[:, 0], added[:, 1]) == grey
    weaker = float((Noise(kind, 6.0, grey)(dark, sizes, rng) - dark).std()) * 127.5
    assert weaker == pytest.approx(6 if kind == "gaussian" else 6 * math.sqrt(0.1 / 0.5), rel=0.02)
    # on the target it is so strong that shrinking leaves about as much
    large = torch.zeros(1, 3, 640, 960)
    noisy = Noise(kind, 6.0, grey)(large, sizes, rng)
    assert float(noisy.std()) * 127.5 == pytest.approx(24, rel=0.02)
    assert float(Shrink("area")(noisy, sizes, rng).std()) * 127.5 == pytest.approx(6, rel=0.02)


def test_jpeg_is_pillows(photo: Photo) -> None:
    rgb = photo(32, 24)
    for subsampling, name in ((True, "4:2:0"), (False, "4:4:4")):
        file = io.BytesIO()
        Image.fromarray(rgb).save(file, "JPEG", quality=60, subsampling=name)
        expected = to_tensor(np.array(Image.open(file)))
        made = Jpeg(60, subsampling)(to_tensor(rgb)[None], SIZES, np.random.default_rng(0))
        assert torch.equal(made[0], expected)


def test_shrink() -> None:
    picture, rng = torch.rand(1, 3, *SIZES.target), np.random.default_rng(0)
    for kernel in KERNELS:
        assert Shrink(kernel)(picture, SIZES, rng).shape[-2:] == SIZES.lr
        assert Shrink(kernel, 0.5)(picture, SIZES, rng).shape[-2:] == (64, 48)
        assert Shrink(kernel, 1.0)(picture, SIZES, rng).shape[-2:] == SIZES.target
    means = Shrink("area")(picture, SIZES, rng)
    torch.testing.assert_close(means[0, :, 0, 0], picture[0, :, :4, :4].mean((1, 2)))


# --- trainings ---


class StoppedError(Exception):
    pass


def stopping(monkeypatch: pytest.MonkeyPatch, after: int) -> None:
    """Stops the training after so many iterations of this process."""
    iterate, left = trainer.Training._iterate, iter(range(after))

    def stop(self: trainer.Training, *args: Any) -> Any:
        if next(left, None) is None:
            raise StoppedError
        return iterate(self, *args)

    monkeypatch.setattr(trainer.Training, "_iterate", stop)


def trainings(photos: Path) -> Iterator[tuple[Any, Any]]:
    common: dict[str, Any] = {
        "images": [str(photos)], "crop": 32, "batch_size": 2, "iterations": 4, "save_every": 2, "warmup": 1,
    }  # fmt: skip
    yield train, DDPMConfig(unet={**TINY, "dropout": 0.2}, **common)
    yield train_predictor, PredictorConfig(channels=8, **common)


@pytest.mark.parametrize("which", [0, 1], ids=["ddpm", "predictor"])
def test_resumed_trainings_are_those_that_never_stopped(
    which: int, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, plain = list(trainings(photos))[which]
    config = replace(plain, degradation="photo")

    def weights(folder: str) -> dict[str, torch.Tensor]:
        (file,) = (tmp_path / folder / "checkpoint").glob("*.safetensors")
        return load_file(file)

    run(config, tmp_path / "whole")
    run(plain, tmp_path / "plain")
    stopping(monkeypatch, after=3)
    with pytest.raises(StoppedError):
        run(config, tmp_path / "stopped")
    monkeypatch.undo()
    resumed = resumed_config(type(config), tmp_path / "stopped", {"workers": 1})
    assert resumed.degradation == "photo"
    run(resumed, tmp_path / "stopped", resume=True)
    whole, again, other = weights("whole"), weights("stopped"), weights("plain")
    assert all(torch.equal(whole[name], again[name]) for name in whole)
    assert not all(torch.equal(whole[name], other[name]) for name in whole)
    with pytest.raises(ConfigError, match=r"a resumed run keeps its degradation \(photo\), got bicubic"):
        resumed_config(type(config), tmp_path / "stopped", {"degradation": "bicubic"})


def test_crops_come_with_their_inputs(photos: Path) -> None:
    degradation = Degradation("photo")
    dataset = CropDataset(sorted(photos.iterdir()), 32, 5, 10, degradation, 4)
    hr, lr = dataset[42]
    assert (hr.shape, lr.shape) == ((3, 32, 32), (3, 8, 8))
    assert torch.equal(degradation(hr[None], 4, [(5, 2, 42)])[0], lr)
    recipes = [degradation.recipe((5, 2, n)) for n in range(8)]
    assert len({str(recipe) for recipe in recipes}) == 8
    hr, lr = CropDataset(sorted(photos.iterdir()), 32, 5, 10, PLAIN, 4)[42]
    assert torch.equal(downsample(hr[None], 4)[0], lr)


# --- environments, tables, evaluations ---


@pytest.mark.parametrize("name", ["photo", "photo:0.5"])
def test_environment_and_evaluation_see_the_same(name: str, short_checkpoint: str, photos: Path) -> None:
    """Whatever the noise seed, the index, the batch, or whether the picture is named or given as an array."""
    settings: dict[str, Any] = {
        "checkpoint": short_checkpoint,
        "image_size": 96,
        "observation": "dict",
        "metric": "psnr",
    }
    env = SkipDiffEnv(images=str(photos), degradation=name, **settings)
    conditions: dict[tuple[int, int], torch.Tensor] = {}
    crops = load_crops([photos], 96)

    def keep(batch: Batch, method: ways.Method, result: ways.Result) -> None:
        for i in range(len(batch.hr)):
            conditions[batch.first + i, batch.seed] = batch.lr_up[i]

    unet = load_denoiser(short_checkpoint)
    rows = Runner(unet, ["psnr"], batch_size=3, degradation=name).run([ways.bicubic()], crops, range(2), keep=keep)
    assert len(rows) == 8
    for (i, seed), condition in conditions.items():
        rgb = to_uint8(crops[i])
        for image in (i, rgb):
            observation, info = env.reset(options={"image": image, "noise_seed": seed + 5})
            assert np.array_equal(observation["condition"], condition.numpy())
            assert info["degradation"] == Degradation.parse(name).recipe(picture_key(crops[i])).strengths
    plain = SkipDiffEnv(images=str(photos), **settings)
    observation, info = plain.reset(options={"image": 0})
    assert "degradation" not in info
    assert not np.array_equal(observation["condition"], conditions[0, 0].numpy())
    assert Runner(unet, ["psnr"]).run([ways.bicubic()], crops)[0].metrics != rows[0].metrics


def test_the_variant(checkpoint: str) -> None:
    env: Any = gym.make("SkipDiffPhoto-v0", checkpoint=checkpoint, noise_seeds=1).unwrapped
    assert str(env.task.degradation) == "photo"
    strengths = [env.reset(options={"image": i})[1]["degradation"] for i in range(4)]
    assert len({tuple(each.values()) for each in strengths}) == 4
    state = env.get_state()
    env.reset(options={"image": 0})
    env.set_state(state)
    assert env._episode.info()["degradation"] == strengths[3]
    vector: Any = gym.make_vec("SkipDiffPhoto-v0", num_envs=2, checkpoint=checkpoint)
    _, infos = vector.reset(options={"image": [2, 1]})
    assert infos["degradation"]["noise"].tolist() == [strengths[i]["noise"] for i in (2, 1)]


def test_rendering_shows_the_input(short_checkpoint: str, photo: Photo) -> None:
    task = Task(
        TaskConfig(
            checkpoint=short_checkpoint, images=photo(32, 32), image_size=32, metric="psnr", degradation="photo:1"
        )
    )
    (episode,) = task.begin([0], [0])
    expected = tiny_unet().condition(task.low_resolution(episode.hr)[None])[0]
    assert torch.equal(episode.refinement.lr_up, expected)
    assert not torch.equal(task.low_resolution(episode.hr), downsample(episode.hr[None], 4)[0])
    assert task.render(episode).ndim == 3


def test_tables_belong_to_a_degradation(short_checkpoint: str, photos: Path, tmp_path: Path) -> None:
    common: dict[str, Any] = {
        "checkpoint": short_checkpoint, "images": str(photos), "image_size": 32, "steps": (1, 4), "skip_mode": "jump",
        "metric": "psnr",
    }  # fmt: skip
    tables = {
        name: tabulate({**common, "degradation": name}, tmp_path / name[:6], noises=1, limit=2)
        for name in ("bicubic", "photo:1.0")
    }
    assert tables["photo:1.0"].description["degradation"] == "photo:1"
    assert not np.array_equal(tables["bicubic"].features, tables["photo:1.0"].features)
    assert (tables["bicubic"].metrics["psnr"] != tables["photo:1.0"].metrics["psnr"]).all()
    with pytest.raises(ConfigError, match="holds a table of another degradation"):
        tabulate(common, tmp_path / "photo:", noises=1, limit=2)


def test_commands(short_checkpoint: str, photos: Path, tmp_path: Path) -> None:
    common = [f"--images={photos}", f"--checkpoint={short_checkpoint}", "--limit=1", "--degradation=photo:0.5"]
    runs = {
        "evaluate": ["--image-size=96", "--metrics=psnr"],
        "tabulate": ["--image-size=32", "--steps=1,3", "--metrics=psnr", "--noise-seeds=1"],
        "reproduce": ["--image-size=96", "--seeds=1", "--sections=table5"],
    }
    for command, arguments in runs.items():
        result = CliRunner().invoke(main, [command, *common, *arguments, f"--out={tmp_path / command}"])
        assert result.exit_code == 0, (result.output, result.exception)
    table = OutcomeTable.load(tmp_path / "tabulate")
    assert table.description["degradation"] == "photo:0.5"
    report = (tmp_path / "reproduce" / "report.md").read_text(encoding="utf-8")
    assert "enlarged 4 times (degradation photo:0.5)" in report
    again = ["reproduce", *common[:-1], *runs["reproduce"], f"--out={tmp_path / 'reproduce'}"]
    result = CliRunner().invoke(main, again)
    assert result.exit_code == 2
    assert "holds results with pictures" in " ".join(result.output.split())


def test_reports_run_on_the_degraded_pictures(photos: Path) -> None:
    crops = load_crops([photos], 96, limit=1)
    degraded, plain = Runner(tiny_unet(), [], degradation="photo:1"), Runner(tiny_unet(), [])
    assert degraded.settings(crops, 1)["pictures"] == f"{plain.settings(crops, 1)['pictures']}, photo:1"
    hr = crops[0][None]
    assert torch.equal(next(degraded.batches(crops)).lr_image, Degradation("photo", 1.0)(hr, 4))
    assert torch.equal(next(plain.batches(crops)).lr_image, downsample(hr, 4))
