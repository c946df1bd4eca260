"""Image quality: PSNR and SSIM on luma, LPIPS, DISTS, NIQE, PIQE, colour error, and all metrics of pyiqa."""

import contextlib
import difflib
import functools
import io
import re
import urllib.error
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.util.errors import ConfigError, SkipDiffError, one_line
from ddpm.util.files import stamp
from ddpm.util.packages import ensure_torchvision
from skipdiff_env.judges import JUDGES, judge_file, make_judge

WEIGHTS = Path(str(files("skipdiff_env"))) / "weights"
# Y of BT.601 with studio swing, as in the super-resolution literature.
LUMA = {"test_y_channel": True, "color_space": "ycbcr"}
# Smallest side on which a metric is defined; NIQE fits its model to blocks of 96 x 96, PIQE uses blocks of 16 x 16,
# and VGG16 halves its pictures four times.
MIN_SIDE = {
    "niqe": 96, "niqe_matlab": 96, "ilniqe": 96, "piqe": 16, "ssim": 11, "lpips": 32, "dists": 16, "lpips-vgg": 16,
}  # fmt: skip

# Errors of metrics for pictures on which they are not defined.
FAILURES = RuntimeError, ValueError, AssertionError, np.linalg.LinAlgError


@dataclass(frozen=True)
class Metric:
    """A quality metric over batches of pictures.

    A metric from `make_metric` is pickled by its name and device and made anew when it is loaded, which needs the same
    files and packages. Any other metric is pickled with its function.

    Attributes:
        name: its name.
        lower_better: whether a smaller value means a better picture.
        needs_reference: whether the target picture must be given.
        min_side: smallest side, in pixels, on which it is defined.
        measure: (results, targets or None), both (B, 3, H, W) float32 in [0, 1] on the 256 levels of a file on disk →
            (B,). The errors `FAILURES` count as a failure on that picture.
        device: the device for which `make_metric` made it; None: it was made in another way.
    """

    name: str
    lower_better: bool
    needs_reference: bool
    min_side: int
    measure: Callable[[Tensor, Tensor | None], Tensor]
    device: str | None = None

    def __reduce__(self) -> tuple[Callable[..., "Metric"], tuple[Any, ...]]:
        if self.device is not None:
            return make_metric, (self.name, self.device)
        return Metric, (self.name, self.lower_better, self.needs_reference, self.min_side, self.measure)

    def check_size(self, height: int, width: int) -> None:
        """Raise ConfigError if the metric is undefined for pictures of this size."""
        if min(height, width) < self.min_side:
            raise ConfigError(
                f"metric {self.name} needs pictures of at least {self.min_side} pixels a side, got {width} x {height}; "
                "take larger pictures or another metric"
            )

    def __call__(self, sr: Tensor, hr: Tensor | None = None) -> NDArray[np.float64]:
        """Measure a batch.

        Args:
            sr: results, (B, 3, H, W) in [-1, 1].
            hr: targets of the same shape; only for metrics with `needs_reference`.

        Returns:
            float64, (B,); NaN for a picture on which the metric fails (a flat one, for example).

        Raises:
            ConfigError: the pictures are too small, or the target is missing.
        """
        self.check_size(*sr.shape[-2:])
        if self.needs_reference and hr is None:
            raise ConfigError(f"metric {self.name} compares with a target picture, and none was given")
        with torch.inference_mode():
            sr, hr = _quantise(sr), None if hr is None else _quantise(hr)
            try:
                return self._measure_finite(sr, hr)
            except SkipDiffError:
                raise
            except FAILURES:
                # one bad picture makes some metrics fail on a whole batch
                values = np.full(len(sr), np.nan)
                for i in range(len(sr)):
                    with contextlib.suppress(*FAILURES):
                        values[i] = self._measure_finite(sr[i : i + 1], None if hr is None else hr[i : i + 1])[0]
                return values

    def _measure_finite(self, sr: Tensor, hr: Tensor | None) -> NDArray[np.float64]:
        values = self.measure(sr, hr).double().cpu().numpy().reshape(len(sr))
        return np.where(np.isfinite(values), values, np.nan)


def _quantise(images: Tensor) -> Tensor:
    """Convert [-1, 1] to the 256 levels of a file on disk in [0, 1], so that metrics are those of the saved picture."""
    return ((images.float() + 1) * 127.5).round_().clamp_(0, 255).div_(255)


def _luma(images: Tensor) -> Tensor:
    """Return the luma of (B, 3, H, W) in [0, 1], rounded to 256 levels: float64, (B, 1, H, W) in [0, 1].

    pyiqa rounds luma as well, but the luma of 8-bit levels often lies halfway between two whole numbers, and the
    rounding of its matrix product then depends on the processor's instruction set: NIQE changes in its third digit.
    Plain float32 operations in this order have the same result everywhere.
    """
    red, green, blue = images.unbind(1)
    return (red * 0.299 + green * 0.587 + blue * 0.114).mul_(255).round_().double().div_(255)[:, None]


def _colour_error(sr: Tensor, hr: Tensor | None) -> Tensor:
    assert hr is not None
    return (sr.double().mean((2, 3)) - hr.double().mean((2, 3))).abs().mean(1) * 255


@dataclass(frozen=True)
class _Given:
    """A function of two batches (B, 3, H, W) in [-1, 1] as a `Metric.measure`.

    Its errors are raised and do not count as failures.
    """

    function: Callable[[Tensor, Tensor], Tensor | NDArray[Any]]
    name: str

    def __call__(self, sr: Tensor, hr: Tensor | None) -> Tensor:
        assert hr is not None
        try:
            values = torch.as_tensor(self.function(sr * 2 - 1, hr * 2 - 1))
        except Exception as error:
            raise ConfigError(f"the metric {self.name} raised {error!r}") from error
        if values.shape != sr.shape[:1]:
            raise ConfigError(
                f"the metric {self.name} must return one value per picture, ({len(sr)},), got {tuple(values.shape)}"
            )
        return values


MetricLike = str | Metric | Callable[[Tensor, Tensor], Tensor | NDArray[Any]]


def as_metric(given: MetricLike, device: str = "cpu") -> Metric:
    """Return the `Metric` of a name or function.

    Args:
        given: a name for `make_metric`; a `Metric`, which is returned unchanged; or a function (sr, hr) → (B,) of two
            batches (B, 3, H, W), float32 in [-1, 1] on the levels of 8-bit files, for which higher values are better.
            The name of the metric is its `__name__`, or else that of its class. For a function with lower values for
            better pictures, pass a `Metric` with `lower_better`.
        device: device of a metric that is given by name.

    Raises:
        ConfigError: it is none of these, or `make_metric` refuses the name.
    """
    if isinstance(given, Metric):
        return given
    if isinstance(given, str):
        return make_metric(given, device)
    if isinstance(given, type) or not callable(given):
        raise ConfigError(f"a metric is a name, a Metric or a function (sr, hr) → (B,), got {given!r}")
    name = getattr(given, "__name__", type(given).__name__)
    return Metric(name, False, True, 1, _Given(given, name))


def make_metric(name: str, device: str = "cpu") -> Metric:
    """Return a metric. Each metric is made once for a device.

    NIQE, PIQE, LPIPS, PSNR, SSIM and the colour error do not need a download or a file. DISTS and LPIPS-VGG need a file
    (`skipdiff_env.judges`). Other metrics may download weights at their first use. "psnr" and "ssim" are measured on
    luma. "lpips" is version 0.1 with AlexNet, and "lpips-vgg" is version 0.1 with VGG16. "niqe" and "piqe" are those of
    pyiqa.

    "piqe" (Venkatanath et al. 2015) does not need a target or a trained model. It checks the blocks of 16 x 16 pixels
    that have structure: a block is distorted if a stretch of its border is flat (blur, blocks of JPEG), or if it
    resembles white noise. Its range is 0 … 100, and lower is better; a flat picture has 100.

    "colour" is the difference between the mean colours of result and target in grey levels, 0 … 255, averaged over the
    channels. It measures colour casts.

    Args:
        name: "niqe", "piqe", "lpips", "lpips-vgg", "dists", "psnr", "ssim", "colour" or any name in
            `pyiqa.list_models()`.
        device: device of the computation.

    Raises:
        ConfigError: the metric is unknown, or its weights are missing and cannot be fetched.
    """
    return _make_metric(name, str(device), (judge_file(), *stamp(judge_file())) if name in JUDGES else None)


def lower_better(name: str) -> bool:
    """Return whether lower values of a metric of `make_metric` are better; no weights are loaded."""
    if name in ("colour", "lpips", *JUDGES):
        return True
    ensure_torchvision()
    from pyiqa.default_model_configs import DEFAULT_CONFIGS

    return bool(DEFAULT_CONFIGS.get(name, {}).get("lower_better", False))


@functools.cache
def _make_metric(name: str, device: str, judge: tuple[Any, ...] | None) -> Metric:
    """Return a metric, see `make_metric`; `judge` identifies the file of the judges' weights."""
    if name == "colour":
        return Metric(name, True, True, 1, _colour_error, device)
    if name == "lpips":
        lpips = make_lpips(device)
        return Metric(name, True, True, MIN_SIDE[name], lambda sr, hr: lpips(sr, hr, normalize=True), device)
    if name in JUDGES:
        return Metric(name, True, True, MIN_SIDE[name], make_judge(name, device), device)
    ensure_torchvision()
    import pyiqa

    options: dict[str, dict[str, Any]] = {
        "psnr": LUMA,
        "ssim": LUMA,
        "niqe": {"pretrained_model_path": str(WEIGHTS / "niqe_modelparameters.mat")},
    }
    known = pyiqa.list_models()
    if name not in known:
        close = difflib.get_close_matches(name, known, n=3) or ["niqe", "lpips", "psnr", "ssim", "colour"]
        raise ConfigError(f"unknown metric {name!r}; did you mean {', '.join(close)}? pyiqa.list_models() names all")
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            model = pyiqa.create_metric(name, device=torch.device(device), **options.get(name, {}))
    except ImportError as error:
        raise ConfigError(
            f"metric {name} needs a package that is not installed ({one_line(error)}); install it with pip"
        ) from None
    except (urllib.error.URLError, OSError) as error:
        wanted = re.findall(r'Downloading: "(.+?)" to (\S+)', said.getvalue())
        source = f"download {wanted[-1][0]} and put it at {wanted[-1][1]}" if wanted else "see pyiqa's documentation"
        raise ConfigError(
            f"the weights of metric {name} are missing and could not be fetched ({error}); {source}"
        ) from None

    def measure(sr: Tensor, hr: Tensor | None) -> Tensor:
        if name == "niqe":
            return model(_luma(sr))
        return model(sr, hr) if model.metric_mode == "FR" else model(sr)

    return Metric(name, model.lower_better, model.metric_mode == "FR", MIN_SIDE.get(name, 1), measure, device)


def make_lpips(device: str = "cpu") -> Any:
    """Return LPIPS v0.1 (AlexNet) with the shipped convolutions and the linear heads of the lpips package.

    Returns:
        The package's module: two batches (B, 3, H, W) in [-1, 1], or in [0, 1] with `normalize=True`, → (B, 1, 1, 1).
        It is differentiable; its weights are fixed.
    """
    ensure_torchvision()
    import lpips
    from safetensors.torch import load_file

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # lpips calls torchvision in the way of older versions
        model = lpips.LPIPS(net="alex", pnet_rand=True, verbose=False)
    weights = load_file(WEIGHTS / "alexnet_features.safetensors")
    # the package's slice2.3.weight is torchvision's features.3.weight
    names = {name: f"features.{name.partition('.')[2]}" for name in model.net.state_dict()}
    model.net.load_state_dict({name: weights[own] for name, own in names.items()})
    return model.eval().requires_grad_(False).to(device)
