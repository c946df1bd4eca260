"""How a low-resolution input is made from a photograph, and brought back to its size."""

import torch.nn.functional as F
from torch import Tensor

from ddpm.errors import ImageError


def upsample(lr_image: Tensor, scale: int) -> Tensor:
    """Bicubic upsample of (B, 3, h, w) in [-1, 1] to (B, 3, scale·h, scale·w), clamped to [-1, 1]."""
    # antialias=True also selects the cubic kernel a = -0.5 that Pillow and MATLAB use
    return F.interpolate(lr_image, scale_factor=scale, mode="bicubic", antialias=True).clamp_(-1, 1)


def downsample(hr: Tensor, scale: int) -> Tensor:
    """Antialiased bicubic downsample of (B, 3, H, W) in [-1, 1], quantised to 8 bits as a file on disk would be.

    Raises:
        ImageError: H or W is not a multiple of `scale`.
    """
    height, width = hr.shape[-2:]
    if height % scale or width % scale:
        raise ImageError(
            f"a picture to be shrunk {scale} times must have sides that are multiples of {scale}, got {width} x "
            f"{height}"
        )
    lr_image = F.interpolate(hr, size=(height // scale, width // scale), mode="bicubic", antialias=True)
    return (lr_image.add_(1).mul_(127.5).round_().clamp_(0, 255)).div_(127.5).sub_(1)


def degrade(hr: Tensor, scale: int) -> Tensor:
    """The condition `lr_up` of a target `hr`: down, to 8 bits, and up again; shape and range as `hr`."""
    return upsample(downsample(hr, scale), scale)
