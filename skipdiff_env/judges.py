"""DISTS and LPIPS with VGG16: judges that losses and rewards must not use, and their weights.

The weights (29 MB) are not shipped: the convolutions of torchvision's ImageNet VGG16, the linear heads of LPIPS v0.1,
and the weights of DISTS. The page "Results" of the documentation explains how to make the file.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch
from torch import Tensor, nn

from ddpm.util.errors import ConfigError
from ddpm.util.files import cache_folder
from ddpm.util.packages import ensure_torchvision

JUDGES = ("dists", "lpips-vgg")
# Environment variable that names the file of the weights.
VARIABLE = "SKIPDIFF_JUDGE"
# The page that explains how to make the file.
PAGE = "docs/results.md"


def judge_file() -> Path:
    """Return the expected path of the weights: SKIPDIFF_JUDGE, or skipdiff/judge.safetensors in the cache folder."""
    given = os.environ.get(VARIABLE)
    return Path(given).expanduser() if given else cache_folder() / "judge.safetensors"


def refuse_judge(metric: object) -> None:
    """Raise ConfigError if the metric of a reward, in any form that `as_metric` takes, has the name of a judge."""
    name = getattr(metric, "name", getattr(metric, "__name__", metric))
    if name in JUDGES:
        raise ConfigError(
            f"{name} is a judge and cannot be the reward's metric, so that it stays independent of what is trained; "
            "take another metric such as lpips, and report the judge beside it (report_metrics, or --metrics of "
            "evaluate)"
        )


def make_judge(name: str, device: str = "cpu") -> Callable[[Tensor, Tensor | None], Tensor]:
    """Return a judge from the file of the weights.

    DISTS is the implementation of pyiqa (Ding et al. 2020, Eq. 6 to 8), LPIPS v0.1 that of the lpips package.

    Args:
        name: "dists" or "lpips-vgg".
        device: device of the computation.

    Returns:
        Two batches (B, 3, H, W) in [0, 1] → (B,); 0 for equal pictures, the lower the better. The pictures are measured
        one by one: VGG16's features of a whole batch would take gigabytes.

    Raises:
        ConfigError: the file is missing, or does not hold the weights.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    path = judge_file()
    if not path.is_file():
        raise ConfigError(
            f"metric {name} needs weights that are not shipped, and there is no file {path}; {PAGE} explains how to "
            f"make it; if it is elsewhere, set {VARIABLE} to its path"
        )
    try:
        weights = load_file(path)
        model = (_dists if name == "dists" else _lpips_vgg)(weights)
    except (SafetensorError, OSError, KeyError, RuntimeError) as error:
        raise ConfigError(
            f"{path} does not hold the judges' weights ({error!r}); make it anew as {PAGE} explains"
        ) from None
    if not all(bool(value.isfinite().all()) for value in model.state_dict().values()):
        raise ConfigError(f"{path} holds weights that are not finite; make it anew as {PAGE} explains")
    model = model.eval().requires_grad_(False).to(device)
    options = {"normalize": True} if name == "lpips-vgg" else {}  # otherwise it takes [-1, 1]

    def measure(sr: Tensor, hr: Tensor | None) -> Tensor:
        assert hr is not None
        return torch.cat([model(*pair, **options).reshape(1) for pair in zip(sr.split(1), hr.split(1), strict=True)])

    return measure


@contextmanager
def _vgg16(weights: Mapping[str, Tensor]) -> Iterator[None]:
    """Let torchvision's `vgg16` return the convolutions with these weights, without a classifier, within the block.

    Nothing is downloaded.
    """
    ensure_torchvision()
    from torchvision import models

    features = models.vgg.make_layers(models.vgg.cfgs["D"], batch_norm=False)
    convolutions = (module for module in features if isinstance(module, nn.Conv2d))
    for i, convolution in enumerate(convolutions):
        convolution.load_state_dict({part: weights[f"conv{i}.{part}"] for part in ("weight", "bias")})
    original = models.vgg16
    models.vgg16 = lambda **options: SimpleNamespace(features=features)
    try:
        yield
    finally:
        models.vgg16 = original


def _dists(weights: Mapping[str, Tensor]) -> nn.Module:
    with _vgg16(weights):
        from pyiqa.archs.dists_arch import DISTS

        model: nn.Module = DISTS(pretrained=False)
    values = {name: weights[name].reshape(1, -1, 1, 1) for name in ("alpha", "beta")}
    model.load_state_dict({**model.state_dict(), **values})
    return model


def _lpips_vgg(weights: Mapping[str, Tensor]) -> nn.Module:
    with _vgg16(weights):
        import lpips

        model: nn.Module = lpips.LPIPS(net="vgg", pnet_rand=True, pretrained=False, verbose=False)
    for i, head in enumerate(model.lins):  # type: ignore[arg-type]
        head.model[-1].load_state_dict({"weight": weights[f"lin{i}"].reshape(1, -1, 1, 1)})
    return model
