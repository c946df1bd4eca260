"""Import of torchvision's CUDA wheel beside a CPU-only torch."""

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
