"""Metrics against known values, closed forms and each other; nothing here needs the network."""

import urllib.error
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from skimage import data
from torch import Tensor

from ddpm.errors import ConfigError
from ddpm.images import to_tensor
from skipdiff_env.metrics import make_metric

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


@pytest.mark.parametrize("name", ["niqe", "lpips", "psnr", "ssim"])
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


@pytest.mark.parametrize(("name", "lower_better"), [("niqe", True), ("lpips", True), ("psnr", False), ("ssim", False)])
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


def test_no_network_is_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr("socket.socket.connect", refuse)
    make_metric.cache_clear()
    sr, hr = pair(128, 1)
    for name in ("niqe", "lpips", "psnr", "ssim", "colour"):
        assert np.isfinite(make_metric(name)(sr, hr)).all()


def test_colour_error_is_the_cast_in_grey_levels() -> None:
    hr = torch.zeros(2, 3, 32, 32)
    sr = hr.clone()
    sr[0, 0] += 6 / 127.5  # a red cast of six levels
    sr[1, :, :16] += 10 / 127.5  # errors that cancel are no cast
    sr[1, :, 16:] -= 10 / 127.5
    np.testing.assert_allclose(make_metric("colour")(sr, hr), [2.0, 0.0], atol=0.02)
