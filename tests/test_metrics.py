"""Metrics against known values, closed forms and each other; nothing here needs the network."""

import copy
import io
import pickle
import re
import urllib.error
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from safetensors.torch import load_file, save_file
from skimage import data
from torch import Tensor

from ddpm.pictures.images import to_tensor
from ddpm.util.errors import ConfigError
from skipdiff_env import judges
from skipdiff_env.metrics import Metric, _make_metric, as_metric, lower_better, make_metric

# the real weights, if this machine has them
JUDGE = judges.judge_file()

# pyiqa 0.1.16 and lpips 0.1.4 with their own weights: NIQE, NIQE degraded, LPIPS of the degraded photograph
CHECK_VALUES = {
    "astronaut": (3.0624, 7.1120, 0.3051),
    "coffee": (4.0616, 7.3897, 0.3691),
    "chelsea": (2.5721, 7.7984, 0.3654),
    "rocket": (7.0356, 8.4720, 0.3721),
}


def photograph(name: str) -> tuple[Tensor, Tensor]:
    """A photograph and its bicubic degradation by Pillow, both (1, 3, H, W), sides multiples of 4."""
    rgb = getattr(data, name)()
    height, width = (side // 4 * 4 for side in rgb.shape[:2])
    image = Image.fromarray(rgb[:height, :width])
    small = image.resize((width // 4, height // 4), Image.Resampling.BICUBIC)
    degraded = small.resize((width, height), Image.Resampling.BICUBIC)
    return to_tensor(np.asarray(image))[None], to_tensor(np.asarray(degraded))[None]


@pytest.mark.parametrize("name", CHECK_VALUES)
def test_check_values(name: str) -> None:
    hr, degraded = photograph(name)
    niqe, niqe_degraded, lpips = CHECK_VALUES[name]
    assert make_metric("niqe")(hr)[0] == pytest.approx(niqe, abs=5e-4)
    assert make_metric("niqe")(degraded)[0] == pytest.approx(niqe_degraded, abs=5e-4)
    assert make_metric("lpips")(degraded, hr)[0] == pytest.approx(lpips, abs=5e-4)


def luma(images: Tensor) -> np.ndarray:
    """Y of BT.601 with studio swing, float64 (B, H, W) in [16, 235]."""
    levels = ((images.double() + 1) * 127.5).round().numpy()
    return 16 + (65.481 * levels[:, 0] + 128.553 * levels[:, 1] + 24.966 * levels[:, 2]) / 255


def pair(size: int = 48, batch: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    hr = torch.rand(batch, 3, size, size, generator=generator) * 2 - 1
    sr = (hr + 0.2 * torch.randn(hr.shape, generator=generator)).clamp(-1, 1)
    return sr, hr


def test_psnr_is_measured_on_luma() -> None:
    sr, hr = pair()
    error = ((luma(sr) - luma(hr)) ** 2).mean(axis=(1, 2))
    np.testing.assert_allclose(make_metric("psnr")(sr, hr), 10 * np.log10(255**2 / error), atol=0.02)


def test_ssim_is_measured_on_luma() -> None:
    from skimage.metrics import structural_similarity

    sr, hr = pair()
    ours = make_metric("ssim")(sr, hr)
    for a, b, value in zip(luma(sr), luma(hr), ours, strict=True):
        # the window of the original paper; without padding, as MATLAB's
        expected = structural_similarity(
            a, b, data_range=255, gaussian_weights=True, sigma=1.5, use_sample_covariance=False, win_size=11
        )
        assert value == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize("name", ["niqe", "piqe", "lpips", "psnr", "ssim"])
def test_the_same_alone_and_in_a_batch(name: str) -> None:
    hr = to_tensor(data.astronaut())
    crops = torch.stack([hr[:, i : i + 128, i : i + 128] for i in (0, 100, 300)])
    sr = (crops + 0.1 * torch.randn(crops.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    metric = make_metric(name)
    together = metric(sr, crops)
    assert together.dtype == np.float64
    assert together.shape == (3,)
    alone = [metric(sr[i : i + 1], crops[i : i + 1])[0] for i in range(3)]
    np.testing.assert_allclose(together, alone, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "lower_better"),
    [("niqe", True), ("piqe", True), ("lpips", True), ("psnr", False), ("ssim", False)],
)
def test_direction(name: str, lower_better: bool) -> None:
    hr, degraded = photograph("chelsea")
    metric = make_metric(name)
    assert metric.lower_better == lower_better
    noisy = (degraded + 0.5 * torch.randn(degraded.shape, generator=torch.Generator().manual_seed(0))).clamp(-1, 1)
    better, worse = metric(hr, hr)[0], metric(noisy, hr)[0]
    assert (better < worse) == lower_better


def test_measured_on_the_levels_of_a_file() -> None:
    sr, hr = pair()
    on_disk = ((sr + 1) * 127.5).round() / 127.5 - 1
    for name in ("psnr", "lpips"):
        assert np.array_equal(make_metric(name)(sr, hr), make_metric(name)(on_disk, hr))


def test_arguments_are_not_changed() -> None:
    sr, hr = pair()
    before = sr.clone(), hr.clone()
    make_metric("lpips")(sr, hr)
    assert torch.equal(sr, before[0])
    assert torch.equal(hr, before[1])


def test_a_flat_picture_fails_alone() -> None:
    hr, _ = photograph("astronaut")
    good = hr[..., :128, :128]
    batch = torch.cat([good, torch.zeros_like(good), good])
    values = make_metric("niqe")(batch)
    assert np.isnan(values).tolist() == [False, True, False]
    assert values[0] == pytest.approx(make_metric("niqe")(good)[0], rel=1e-6)


@pytest.mark.parametrize("name", ["psnr", "ssim", "lpips", "colour"])
def test_numbers_that_are_not_finite_fail_alone(name: str) -> None:
    sr, hr = torch.rand(3, 3, 64, 64) * 2 - 1, torch.rand(3, 3, 64, 64) * 2 - 1
    sr[1] = torch.nan
    assert np.isnan(make_metric(name)(sr, hr)).tolist() == [False, True, False]


def test_too_small_for_niqe() -> None:
    with pytest.raises(ConfigError, match=r"niqe needs pictures of at least 96 pixels.*got 128 x 64"):
        make_metric("niqe")(torch.zeros(1, 3, 64, 128))


def test_missing_target() -> None:
    with pytest.raises(ConfigError, match="none was given"):
        make_metric("psnr")(torch.zeros(1, 3, 64, 64))


@pytest.mark.parametrize(("name", "hint"), [("nique", "niqe"), ("lpps", "lpips"), ("", "niqe")])
def test_unknown_metric(name: str, hint: str) -> None:
    with pytest.raises(ConfigError, match=rf"unknown metric.*{hint}"):
        make_metric(name)


def test_missing_weights_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import pyiqa

    def create_metric(name: str, **options: Any) -> Callable[..., Tensor]:
        print('Downloading: "https://example.org/musiq.pth" to /cache/musiq.pth')
        raise urllib.error.URLError("no route to host")

    monkeypatch.setattr(pyiqa, "create_metric", create_metric)
    with pytest.raises(ConfigError, match=r"weights of metric musiq.*https://example.org/musiq.pth.*/cache/musiq.pth"):
        make_metric("musiq")


def test_no_network_is_needed(monkeypatch: pytest.MonkeyPatch, random_judge: Path) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr("socket.socket.connect", refuse)
    monkeypatch.setenv(judges.VARIABLE, str(random_judge))
    _make_metric.cache_clear()
    sr, hr = pair(128, 1)
    for name in ("niqe", "piqe", "lpips", "lpips-vgg", "dists", "psnr", "ssim", "colour"):
        assert np.isfinite(make_metric(name)(sr, hr)).all()


def test_colour_error_is_the_cast_in_grey_levels() -> None:
    hr = torch.zeros(2, 3, 32, 32)
    sr = hr.clone()
    sr[0, 0] += 6 / 127.5  # a red cast of six levels
    sr[1, :, :16] += 10 / 127.5  # errors that cancel are no cast
    sr[1, :, 16:] -= 10 / 127.5
    np.testing.assert_allclose(make_metric("colour")(sr, hr), [2.0, 0.0], atol=0.02)


# --- PIQE ---


def test_piqe_is_that_of_pyiqa() -> None:
    import pyiqa

    model = pyiqa.create_metric("piqe")
    # pyiqa 0.1.16; blocks are counted, so that a rounding may move the figure by some tenths
    for images, value in zip(photograph("astronaut"), (33.76, 87.30), strict=True):
        ours = make_metric("piqe")(images)[0]
        assert ours == pytest.approx(float(model((images + 1) / 2)), abs=0.01)
        assert ours == pytest.approx(value, abs=0.5)


def test_piqe_of_flat_and_small_pictures() -> None:
    piqe = make_metric("piqe")
    np.testing.assert_allclose(piqe(torch.zeros(2, 3, 16, 16)), 100)
    assert not piqe.needs_reference
    with pytest.raises(ConfigError, match="at least 16 pixels"):
        piqe(torch.zeros(1, 3, 15, 40))


# --- the judges ---


def plain_features(weights: dict[str, Tensor], x: Tensor, l2: bool) -> list[Tensor]:
    """What VGG16 has after its five stages.

    Between them the largest value, or (DISTS, Eq. 2) a blurred root of squares.
    """
    stages: Sequence[Sequence[int]] = ((0, 1), (2, 3), (4, 5, 6), (7, 8, 9), (10, 11, 12))
    window = torch.tensor([1.0, 2.0, 1.0], dtype=torch.float64) / 4  # Hann
    found = []
    for stage, convolutions in enumerate(stages):
        if stage and l2:
            blur = (window[:, None] * window).expand(x.shape[1], 1, 3, 3)
            x = (F.conv2d(x**2, blur, stride=2, padding=1, groups=x.shape[1]) + 1e-12).sqrt()
        elif stage:
            x = F.max_pool2d(x, 2)
        for i in convolutions:
            x = F.conv2d(x, weights[f"conv{i}.weight"], weights[f"conv{i}.bias"], padding=1).relu()
        found.append(x)
    return found


def plain_judge(weights: dict[str, Tensor], name: str, sr: Tensor, hr: Tensor) -> float:
    """DISTS (Ding et al. 2020, Eq. 6 to 8) or LPIPS (Zhang et al. 2018, Eq. 1) of one pair in [0, 1], in float64."""
    pair = [image.double()[None] for image in (sr, hr)]

    def rgb(*values: float) -> Tensor:
        return torch.tensor(values, dtype=torch.float64)[:, None, None]

    if name == "lpips-vgg":
        scaled = [(2 * image - 1 - rgb(-0.030, -0.088, -0.188)) / rgb(0.458, 0.448, 0.450) for image in pair]
        distance = torch.zeros((), dtype=torch.float64)
        for i, stage in enumerate(zip(*(plain_features(weights, image, False) for image in scaled), strict=True)):
            a, b = (x / x.norm(dim=1, keepdim=True) for x in stage)
            distance += torch.einsum("bchw,c->bhw", (a - b) ** 2, weights[f"lin{i}"]).mean()
        return float(distance)
    scaled = [(image - rgb(0.485, 0.456, 0.406)) / rgb(0.229, 0.224, 0.225) for image in pair]
    both = ([image, *plain_features(weights, x, True)] for image, x in zip(pair, scaled, strict=True))
    texture, structure = [], []
    for a, b in zip(*both, strict=True):
        a, b = a[0].flatten(1), b[0].flatten(1)
        means = a.mean(1), b.mean(1)
        covariance = ((a - means[0][:, None]) * (b - means[1][:, None])).mean(1)
        texture.append((2 * means[0] * means[1] + 1e-6) / (means[0] ** 2 + means[1] ** 2 + 1e-6))
        structure.append((2 * covariance + 1e-6) / (a.var(1, correction=0) + b.var(1, correction=0) + 1e-6))
    alike = (weights["alpha"] * torch.cat(texture)).sum() + (weights["beta"] * torch.cat(structure)).sum()
    return float(1 - alike / (weights["alpha"].sum() + weights["beta"].sum()))


@pytest.mark.parametrize("name", judges.JUDGES)
def test_judges_against_a_plain_computation(name: str, random_judge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(judges.VARIABLE, str(random_judge))
    weights = {key: value.double() for key, value in load_file(random_judge).items()}
    sr, hr = (((images + 1) * 127.5).round() / 255 for images in pair(64, 2))
    sr[1, :, 20:40] = sr[1, :, :20].clone()
    metric = make_metric(name)
    ours = metric(sr * 2 - 1, hr * 2 - 1)
    expected = [plain_judge(weights, name, a, b) for a, b in zip(sr, hr, strict=True)]
    assert abs(expected[0] - expected[1]) > 1e-3, "the pictures differ in it"
    np.testing.assert_allclose(ours, expected, rtol=2e-3)
    np.testing.assert_allclose(metric(hr * 2 - 1, hr * 2 - 1), 0, atol=1e-5)
    assert metric.lower_better
    assert metric.needs_reference


@pytest.mark.skipif(not JUDGE.is_file(), reason=f"needs the judges' weights at {JUDGE} (docs/results.md)")
@pytest.mark.parametrize(
    ("photo", "dists", "lpips"),
    [
        ("astronaut", 0.2485, 0.2873),
        ("coffee", 0.2348, 0.2780),
        ("chelsea", 0.2872, 0.3807),
        ("rocket", 0.2557, 0.2205),
    ],
)
def test_check_values_of_the_judges(photo: str, dists: float, lpips: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(judges.VARIABLE, str(JUDGE))
    hr, degraded = (images[..., 128:256, 128:256] for images in photograph(photo))
    assert make_metric("dists")(degraded, hr)[0] == pytest.approx(dists, abs=2e-4)
    assert make_metric("lpips-vgg")(degraded, hr)[0] == pytest.approx(lpips, abs=2e-4)


def test_missing_weights_of_a_judge(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        make_metric("dists")
    for part in (
        "no/judge.safetensors",
        "docs/results.md explains how to make it",
        judges.VARIABLE,
    ):
        assert part in str(raised.value)
    assert "\n" not in str(raised.value)
    monkeypatch.delenv(judges.VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with pytest.raises(ConfigError, match=str(tmp_path / "skipdiff" / "judge.safetensors")):
        make_metric("lpips-vgg")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alpha": None}, "does not hold the judges' weights.*alpha"),
        ({"alpha": torch.ones(5)}, "does not hold the judges' weights"),
        ({"conv3.bias": torch.full((128,), torch.nan)}, "not finite"),
    ],
)
def test_damaged_weights_of_a_judge(
    changes: dict[str, Tensor | None],
    message: str,
    random_judge: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    changed = {**load_file(random_judge), **changes}
    save_file({name: value for name, value in changed.items() if value is not None}, tmp_path / "judge.safetensors")
    monkeypatch.setenv(judges.VARIABLE, str(tmp_path / "judge.safetensors"))
    with pytest.raises(ConfigError, match=message):
        make_metric("dists")


def test_a_file_that_is_no_safetensors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "judge.safetensors").write_bytes(b"no weights")
    monkeypatch.setenv(judges.VARIABLE, str(tmp_path / "judge.safetensors"))
    with pytest.raises(ConfigError, match="does not hold the judges' weights"):
        make_metric("lpips-vgg")


def test_the_documentation_makes_the_file(random_judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The code of docs/results.md makes a file of the same names and types from what it downloads."""
    weights = load_file(random_judge)
    vgg = {
        f"features.{place}.{part}": weights[f"conv{i}.{part}"].float()
        for i, place in enumerate((0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28))
        for part in ("weight", "bias")
    } | {"classifier.0.weight": torch.ones(2)}
    dists = io.BytesIO()
    torch.save({name: weights[name].reshape(1, -1, 1, 1) for name in ("alpha", "beta")}, dists)
    with zipfile.ZipFile(tmp_path / "DISTS_pytorch-0.1-py3-none-any.whl", "w") as wheel:
        wheel.writestr("DISTS_pytorch/weights.pt", dists.getvalue())
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", lambda url, **options: vgg)
    page = (Path(__file__).parents[1] / judges.PAGE).read_text(encoding="utf-8")
    (code,) = re.findall(r"```python\n(.*?)```", page, re.DOTALL)
    exec(code, {})
    made = load_file("judge.safetensors")
    assert {name: (each.shape, each.dtype) for name, each in made.items()} == {
        name: (each.shape, each.dtype) for name, each in weights.items()
    }
    for name, each in weights.items():
        assert name.startswith("lin") or torch.equal(made[name], each), name
    if JUDGE.is_file():  # the heads, which the package lpips carries
        true = load_file(JUDGE)
        assert all(torch.allclose(made[f"lin{i}"], true[f"lin{i}"], atol=1e-6) for i in range(5))


# --- pickles and copies ---


@pytest.mark.parametrize("name", ["niqe", "piqe", "lpips", "lpips-vgg", "dists", "psnr", "ssim", "colour"])
def test_pickled_by_name(name: str, random_judge: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(judges.VARIABLE, str(random_judge))
    metric = make_metric(name)
    pickled = pickle.dumps(metric)
    assert len(pickled) < 200, "no weights are in it"
    assert pickle.loads(pickled) is copy.copy(metric) is copy.deepcopy(metric) is metric
    _make_metric.cache_clear()  # as in another process
    sr, hr = pair(128, 1)
    again = pickle.loads(pickled)
    assert again is not metric
    assert np.array_equal(again(sr, hr), metric(sr, hr))


def darkness(sr: Tensor, hr: Tensor) -> Tensor:
    """A metric of one's own."""
    return -(sr - hr).mean((1, 2, 3))


def test_own_metrics_are_pickled_with_their_function() -> None:
    sr, hr = pair()
    for given in (darkness, Metric("darkness", True, True, 8, darkness)):  # type: ignore[arg-type]
        metric = as_metric(given)
        for again in (pickle.loads(pickle.dumps(metric)), copy.deepcopy(metric)):
            assert again == metric
            assert np.array_equal(again(sr, hr), metric(sr, hr))


# --- metrics that are given ---


def test_a_metric_by_name_or_as_it_is() -> None:
    assert as_metric("psnr") is make_metric("psnr") is make_metric("psnr", "cpu")
    assert as_metric(make_metric("ssim")) is make_metric("ssim")
    with pytest.raises(ConfigError, match="unknown metric 'nique'"):
        as_metric("nique")


def test_a_function_as_metric() -> None:
    sr, hr = pair()
    seen: list[Tensor] = []

    def error(a: Tensor, b: Tensor) -> Tensor:
        seen.extend((a, b))
        return (a - b).abs().mean((1, 2, 3))

    metric = as_metric(error)
    assert (metric.name, metric.lower_better, metric.needs_reference) == ("error", False, True)
    values = metric(sr, hr)
    on_disk = [((images + 1) * 127.5).round() / 127.5 - 1 for images in (sr, hr)]
    np.testing.assert_allclose(values, (on_disk[0] - on_disk[1]).abs().mean((1, 2, 3)), rtol=1e-5)
    torch.testing.assert_close(seen, on_disk, atol=1e-6, rtol=0)
    assert as_metric(torch.nn.PairwiseDistance()).name == "PairwiseDistance"
    np.testing.assert_array_equal(as_metric(lambda a, b: np.arange(len(a)))(sr, hr), [0, 1, 2])


def test_mistakes_of_a_function_are_told() -> None:
    sr, hr = pair()

    def wrong(a: Tensor, b: Tensor) -> Tensor:
        return (a - b).mean((2, 3))

    def broken(a: Tensor, b: Tensor) -> Tensor:
        raise ValueError("not today")

    with pytest.raises(ConfigError, match=r"the metric wrong must return one value per picture, \(3,\), got \(3, 3\)"):
        as_metric(wrong)(sr, hr)
    with pytest.raises(ConfigError, match="the metric broken raised ValueError") as raised:
        as_metric(broken)(sr, hr)
    assert isinstance(raised.value.__cause__, ValueError)
    values = as_metric(lambda a, b: torch.tensor([1.0, float("inf"), float("nan")]))(sr, hr)
    np.testing.assert_array_equal(values, [1, np.nan, np.nan])


@pytest.mark.parametrize("given", [5, None, ["psnr"], Metric])
def test_what_is_no_metric(given: Any) -> None:
    with pytest.raises(ConfigError, match="a metric is a name, a Metric or a function"):
        as_metric(given)


def test_the_better_direction() -> None:
    """It is that of the metrics themselves, for names of this project and of pyiqa."""
    for name in ("psnr", "ssim", "niqe", "lpips", "piqe", "colour"):
        assert lower_better(name) == make_metric(name).lower_better
    assert lower_better("brisque")
    assert not lower_better("musiq")
    assert not lower_better("reward")
