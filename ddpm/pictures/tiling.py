"""Large pictures in overlapping tiles: where the tiles lie, how they are blended, and a net that works in them."""

import math
from dataclasses import dataclass
from types import EllipsisType
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from ddpm.util.errors import ConfigError

if TYPE_CHECKING:
    from ddpm.nets.unet import UNet


class Box(NamedTuple):
    """A part of a picture, in pixels, as Pillow has it; right and bottom are the first pixels outside."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def area(self) -> tuple[EllipsisType, slice, slice]:
        """The index of this part in arrays of shape (…, H, W)."""
        return ..., slice(self.top, self.bottom), slice(self.left, self.right)


@dataclass(frozen=True)
class Tiling:
    """How pictures are cut into overlapping tiles.

    Attributes:
        tile: side of a tile in pixels of the result; along a side that is shorter, a tile is as long as the picture.
        overlap: pixels that neighbouring tiles share at least.
        longest: how long the side of a tile may become where fewer tiles then cover the picture, which saves overlaps:
            two tiles of 144 pixels cover 256, and three of 128. 0: no longer than `tile`.
        multiple: tiles that are longer are so by a multiple of this, the stride of the net.

    Raises:
        ConfigError: the overlap does not fit the tile.
    """

    tile: int
    overlap: int
    longest: int = 0
    multiple: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.overlap <= self.tile // 2:
            raise ConfigError(f"overlap must lie between 0 and half a tile ({self.tile // 2}), got {self.overlap}")

    def length(self, side: int) -> int:
        """How long tiles are along a side of a picture: as long as makes them overlap least."""
        longest = max(self.longest, self.tile)
        if side <= longest:
            return side

        def covered(length: int) -> int:
            return length * math.ceil((side - self.overlap) / (length - self.overlap))

        return min(range(self.tile, longest + 1, self.multiple), key=covered)

    def starts(self, side: int) -> list[int]:
        """First pixels of the tiles along a side; the last tile ends with the picture."""
        length = self.length(side)
        return [*range(0, side - length, max(length - self.overlap, 1)), side - length]

    def boxes(self, height: int, width: int) -> list[Box]:
        """The tiles of a picture of this size, row by row; all of them are of one size."""
        tall, wide = self.length(height), self.length(width)
        return [Box(x, y, x + wide, y + tall) for y in self.starts(height) for x in self.starts(width)]

    def divides(self, height: int, width: int) -> bool:
        """Whether a picture of this size takes more than one tile."""
        return self.length(height) < height or self.length(width) < width

    def area(self, height: int, width: int) -> int:
        """Pixels of all tiles of a picture of this size, overlaps counted as often as they are seen."""
        return sum((box.right - box.left) * (box.bottom - box.top) for box in self.boxes(height, width))


class Blend:
    """A picture that is put together from overlapping tiles.

    Inside a tile its weight is 1; towards its borders it falls, so that one tile fades into the next.

    Args:
        tiling: how the picture is cut.
        like: a tensor (…, H, W) of the picture's shape, type and device.
    """

    def __init__(self, tiling: Tiling, like: Tensor) -> None:
        self.overlap = tiling.overlap
        self.total = torch.zeros_like(like)
        self.weight = torch.zeros(like.shape[-2:], device=like.device)

    def _ramp(self, size: int) -> Tensor:
        """Weights (size,) of a tile along one side: 1 inside, a ramp over the overlap."""
        ramp = torch.arange(1, size + 1, device=self.weight.device).clamp(max=self.overlap + 1) / (self.overlap + 1)
        return torch.minimum(ramp, ramp.flip(0))

    def add(self, box: Box, part: Tensor) -> None:
        """Adds a tile (…, h, w) at its place; `part` is changed."""
        height, width = part.shape[-2:]
        window = self._ramp(height)[:, None] * self._ramp(width)
        self.total[box.area] += part.mul_(window)
        self.weight[box.area] += window

    def result(self) -> Tensor:
        """The picture, once all its tiles are there."""
        return self.total.div_(self.weight)


class TiledUNet:
    """Stands in for a `UNet` in every sampler; memory is bounded by the tile, not by the picture.

    Since what is blended is the prediction at each diffusion step, neighbouring tiles never drift apart and no seam
    can form.

    Args:
        unet: the net.
        tile: side of a tile in pixels of the result, a multiple of the net's stride.
        overlap: pixels that neighbouring tiles share.
        stretch: by how many pixels tiles may be longer where fewer of them are then enough, see `Tiling.longest`.

    Raises:
        ConfigError: the tile does not fit the net, or the overlap the tile.
    """

    def __init__(self, unet: "UNet", tile: int = 256, overlap: int = 32, stretch: int = 0) -> None:
        if tile < unet.stride or tile % unet.stride:
            raise ConfigError(f"tile must be a multiple of the net's stride {unet.stride}, got {tile}")
        longest = tile + stretch // unet.stride * unet.stride
        self.unet, self.tiling = unet, Tiling(tile, overlap, longest, unet.stride)
        self.prediction, self.target, self.residual_scale = unet.prediction, unet.target, unet.residual_scale

    def __call__(self, lr_up: Tensor, x_t: Tensor, noise_level: Tensor, *jump: Tensor) -> Tensor:
        """As `UNet.forward`; `jump` is empty, or `to_level` and `substeps`. H and W are multiples of the stride."""
        height, width = x_t.shape[-2:]
        if not self.tiling.divides(height, width):
            return self.unet(lr_up, x_t, noise_level, *jump)
        blend = Blend(self.tiling, x_t)
        for box in self.tiling.boxes(height, width):
            blend.add(box, self.unet(lr_up[box.area], x_t[box.area], noise_level, *jump))
        return blend.result()
