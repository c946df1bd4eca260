"""Import of optional packages, and of torchvision's CUDA wheel beside a CPU-only torch."""

from importlib import import_module
from typing import Any

from ddpm.util.errors import ConfigError

_library = None  # keeps the declarations alive


def ensure_torchvision() -> None:
    """Import torchvision; if its compiled operators are missing, declare them and import it again.

    pyiqa, lpips, transformers and diffusers import torchvision. PyPI's Linux wheel of it is built for CUDA: beside a
    CPU-only torch its library cannot be loaded, and registering fake versions of two operators then fails. Nothing is
    declared if the first import succeeds.
    """
    global _library
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::nms" not in str(error):
            raise
        import torch

        _library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            _library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401


def package(name: str, extra: str) -> Any:
    """Import an optional package.

    Args:
        name: its name.
        extra: the extra of this project that installs it.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        return import_module(name)
    except ImportError as error:
        raise ConfigError(f"the package {name} is needed ({error}); pip install 'skipdiff[{extra}]'") from None
