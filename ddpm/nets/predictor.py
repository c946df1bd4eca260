"""The small super-resolution net whose picture is the condition of a diffusion net, and its loading by spandrel."""

import shutil
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from safetensors import SafetensorError
from torch import Tensor, nn

from ddpm.pictures.degradation import upsample
from ddpm.util.errors import CheckpointError, first_line
from ddpm.util.files import atomic_path, stamp
from ddpm.util.packages import ensure_torchvision

# Name of the file inside a checkpoint's folder.
PREDICTOR = "predictor.safetensors"
# Side of the largest piece of a low-resolution picture that is predicted at once, and the margin around a piece that
# the net also sees.
TILE, MARGIN = 256, 24
# A prediction is replaced by bicubic enlargement where, shrunk again, it is this many levels farther from its input
# than bicubic enlargement is, on average over 3 x 3 pixels: partly from the first number on, wholly from the second on.
# This never happens on photographs, whether they are clean (12 at most, of 296 pictures) or noisy and compressed (28).
LEFT_FROM, LEFT_AT = 32.0, 40.0
# Side of the surroundings of such a place, in pixels of the input, that are replaced as well.
AROUND = 9


class Predictor(nn.Module):
    """A net that enlarges pictures in one pass; its parameters are fixed.

    Args:
        net: the network, which maps (B, 3, h, w) in [0, 1] to (B, 3, scale·h, scale·w).
        scale: factor of the enlargement.
        file: the file of the weights, which `save` copies.
    """

    def __init__(self, net: nn.Module, scale: int, file: Path) -> None:
        super().__init__()
        self.net, self.scale, self.file = net, scale, file
        self.stamp = stamp(file)
        self.eval().requires_grad_(False)

    @torch.no_grad()
    def forward(self, lr_image: Tensor) -> Tensor:
        """Return the predicted pictures.

        A picture of more than `TILE` pixels a side is predicted in pieces with a margin of `MARGIN` pixels, which is
        more than the receptive field of SPAN, so that the pieces of such a net fit exactly.

        Args:
            lr_image: low-resolution pictures, (B, 3, h, w) in [-1, 1].

        Returns:
            (B, 3, scale·h, scale·w), float32, clamped to [-1, 1].
        """
        height, width = lr_image.shape[-2:]
        if max(height, width) <= TILE:
            return self._predict(lr_image)
        scale = self.scale
        out = lr_image.new_empty(*lr_image.shape[:2], height * scale, width * scale)
        for top in range(0, height, TILE):
            for left in range(0, width, TILE):
                y, x = max(top - MARGIN, 0), max(left - MARGIN, 0)
                bottom, right = min(top + TILE, height), min(left + TILE, width)
                piece = self._predict(lr_image[..., y : bottom + MARGIN, x : right + MARGIN])
                out[..., top * scale : bottom * scale, left * scale : right * scale] = piece[
                    ..., (top - y) * scale : (bottom - y) * scale, (left - x) * scale : (right - x) * scale
                ]
        return out

    def _predict(self, lr_image: Tensor) -> Tensor:
        # float32 even in a training with mixed precision, so that training sees the condition that is used later
        with torch.autocast(lr_image.device.type, enabled=False):
            picture = self.net(lr_image.float().add(1).div_(2).contiguous(memory_format=torch.channels_last))
        return picture.float().clamp(0, 1).mul_(2).sub_(1).contiguous()

    def condition(self, lr_image: Tensor, enlarge: Callable[[Tensor, int], Tensor] = upsample) -> Tensor:
        """Return the predicted pictures, with bicubic enlargement where the prediction does not match the input.

        Networks that were trained on photographs diverge on some hard edges and pure colours, and turn text and
        drawings into noise. Everywhere else the prediction is returned unchanged, bit for bit.

        Args:
            lr_image: low-resolution pictures, (B, 3, h, w) in [-1, 1].
            enlarge: bicubic enlargement of pictures by a factor.

        Returns:
            (B, 3, scale·h, scale·w), float32, in [-1, 1].
        """
        predicted, bicubic = self(lr_image), enlarge(lr_image.float(), self.scale)
        off, near = (
            (F.avg_pool2d(each, self.scale) - lr_image).abs().amax(dim=1, keepdim=True) for each in (predicted, bicubic)
        )
        excess = F.avg_pool2d(off - near, 3, 1, 1, count_include_pad=False) * 127.5
        if torch.jit.is_tracing() or excess.max() > LEFT_FROM:  # an exported graph has no such branch
            excess = F.max_pool2d(excess, AROUND, 1, AROUND // 2)
            share = ((excess - LEFT_FROM) / (LEFT_AT - LEFT_FROM)).clamp(0, 1)
            share = F.interpolate(share, scale_factor=self.scale, mode="bilinear")
            predicted += share * (bicubic - predicted)
        return predicted

    def save(self, path: Path) -> None:
        """Copy the file of the weights, byte for byte."""
        if path.resolve() != self.file.resolve():
            with atomic_path(path) as temporary:
                shutil.copyfile(self.file, temporary)


def load_predictor(file: str | Path, scale: int | None = None) -> Predictor:
    """Load a super-resolution net of any architecture that the package spandrel knows.

    Args:
        file: weights as .safetensors, or as .pth, from which spandrel runs no stored code.
        scale: the required factor of the enlargement; None: any.

    Raises:
        CheckpointError: the file is missing or damaged, spandrel does not know the net, the net does not turn an RGB
            picture into a larger one, a weight is not finite, or the scale is a different one.
    """
    ensure_torchvision()
    import spandrel

    file = Path(file)
    if not file.is_file():
        raise CheckpointError(f"there is no predictor at {file}; name a file of weights that spandrel can load")
    try:
        model = spandrel.ModelLoader().load_from_file(file)
    except spandrel.UnsupportedModelError:
        raise CheckpointError(
            f"the package spandrel knows no super-resolution net with the weights of {file}; "
            "take a predictor of one of its architectures, such as SPAN, SwinIR or Real-ESRGAN"
        ) from None
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"the predictor {file} is damaged ({error}); copy or download it again") from None
    except Exception as error:  # a damaged or foreign file can make the loader raise anything
        raise CheckpointError(
            f"the predictor {file} cannot be loaded ({type(error).__name__}: {first_line(error)})"
        ) from None
    if not isinstance(model, spandrel.ImageModelDescriptor) or (model.input_channels, model.output_channels) != (3, 3):
        raise CheckpointError(
            f"the predictor {file} must turn an RGB picture into a larger one; it is a {model.purpose} net"
        )
    if scale is not None and model.scale != scale:
        raise CheckpointError(f"the predictor {file} enlarges {model.scale} times, but {scale} times is needed")
    refuse_not_finite(model.model.state_dict(), str(file))
    net = model.model
    if hasattr(net, "upsampler") and type(net).__name__ == "SPAN":
        fuse(net)
    else:
        net = _Padded(model)
    return Predictor(net.to(memory_format=torch.channels_last), model.scale, file)


class _Padded(nn.Module):
    """A net with its descriptor, which pads pictures to sizes that the architecture supports."""

    def __init__(self, descriptor: Any) -> None:
        super().__init__()
        self.net: nn.Module = descriptor.model
        self.descriptor = descriptor

    def forward(self, lr_image: Tensor) -> Tensor:
        return self.descriptor(lr_image)


def fuse(net: nn.Module) -> None:
    """Replace each convolution that SPAN expands in training by the equal plain one."""
    for name, module in list(net.named_modules()):
        if hasattr(module, "eval_conv"):
            module.update_params()
            net.set_submodule(name, module.eval_conv)


def refuse_not_finite(tensors: Mapping[str, Tensor], source: str) -> None:
    """Raise CheckpointError if a weight is infinite or not a number, as after a training that diverged."""
    for name, tensor in tensors.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise CheckpointError(
                f"{source} holds weights that are not finite ({name}); its training diverged, take an earlier "
                f"checkpoint"
            )
