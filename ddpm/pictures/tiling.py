"""Large pictures in overlapping tiles: places of the tiles, their blending, and a denoiser that works tile by tile."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import EllipsisType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ddpm.nets.denoiser import AlphaBar, Denoiser, Estimate, NetworkDenoiser, Step, geometry
from ddpm.schedule import FloatArray
from ddpm.util.errors import ConfigError


class Box(NamedTuple):
    """A part of a picture, in pixels, as in Pillow; right and bottom are the first pixels outside."""

    left: int
    top: int
    right: int
    bottom: int

    @property
    def area(self) -> tuple[EllipsisType, slice, slice]:
        """The index of this part in arrays of shape (…, H, W)."""
        return ..., slice(self.top, self.bottom), slice(self.left, self.right)

    def enlarged(self, times: int) -> "Box":
        """Return the same part of a picture that is larger by a factor."""
        return Box(*(side * times for side in self))

    def shrunk(self, times: int) -> "Box":
        """Return the same part of a picture that is smaller by a factor, which must divide all sides."""
        return Box(*(side // times for side in self))


@dataclass(frozen=True)
class Tiling:
    """A division of pictures into overlapping tiles.

    Attributes:
        tile: side of a tile in pixels of the result; along a shorter side, a tile is as long as the picture.
        overlap: least number of pixels that neighbouring tiles share.
        longest: largest side of a tile. Tiles become longer than `tile` where fewer of them then cover the picture,
            which saves overlaps: 256 pixels are covered by two tiles of 144, or three of 128. 0: the same as `tile`.
        multiple: the length that longer tiles have beyond `tile` is a multiple of this.

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

    def shrunk(self, times: int) -> "Tiling":
        """Return the tiling of a picture that is smaller by a factor, which must divide all lengths."""
        return Tiling(self.tile // times, self.overlap // times, self.longest // times, self.multiple // times)

    def length(self, side: int) -> int:
        """Return the length of tiles along a side of a picture, for which they overlap least."""
        longest = max(self.longest, self.tile)
        if side <= longest:
            return side

        def covered(length: int) -> int:
            return length * math.ceil((side - self.overlap) / (length - self.overlap))

        return min(range(self.tile, longest + 1, self.multiple), key=covered)

    def starts(self, side: int) -> list[int]:
        """Return the first pixels of the tiles along a side; the last tile ends with the picture."""
        length = self.length(side)
        return [*range(0, side - length, max(length - self.overlap, 1)), side - length]

    def boxes(self, height: int, width: int) -> list[Box]:
        """Return the tiles of a picture of this size, row by row; all tiles have the same size."""
        tall, wide = self.length(height), self.length(width)
        return [Box(x, y, x + wide, y + tall) for y in self.starts(height) for x in self.starts(width)]

    def divides(self, height: int, width: int) -> bool:
        """Return whether a picture of this size needs more than one tile."""
        return self.length(height) < height or self.length(width) < width

    def area(self, height: int, width: int) -> int:
        """Return the number of pixels in all tiles of a picture of this size; overlaps are counted several times."""
        return sum((box.right - box.left) * (box.bottom - box.top) for box in self.boxes(height, width))


class Blend:
    """A picture that is composed of overlapping tiles.

    The weight of a tile is 1 inside and falls towards its borders, so that one tile fades into the next.

    Args:
        tiling: the division of the picture.
        like: a tensor (…, H, W) of the picture's shape, type and device.
    """

    def __init__(self, tiling: Tiling, like: Tensor) -> None:
        self.overlap = tiling.overlap
        self.total = torch.zeros_like(like)
        self.weight = torch.zeros(like.shape[-2:], device=like.device)

    def _ramp(self, size: int) -> Tensor:
        """Return the weights (size,) of a tile along one side: 1 inside, a ramp over the overlap."""
        ramp = torch.arange(1, size + 1, device=self.weight.device).clamp(max=self.overlap + 1) / (self.overlap + 1)
        return torch.minimum(ramp, ramp.flip(0))

    def add(self, box: Box, part: Tensor) -> None:
        """Add a tile (…, h, w) at its place; `part` is changed in place."""
        height, width = part.shape[-2:]
        window = self._ramp(height)[:, None] * self._ramp(width)
        self.total[box.area] += part.mul_(window)
        self.weight[box.area] += window

    def result(self) -> Tensor:
        """Return the picture, once all its tiles are added."""
        return self.total.div_(self.weight)


class TiledDenoiser(Denoiser):
    """A denoiser that runs another one tile by tile; memory is bounded by the tile, not by the picture.

    Since the prediction is blended at each diffusion step, neighbouring tiles never drift apart and no seam can form.
    Where latents are smaller than pictures, the decoder runs tile by tile as well.

    Args:
        denoiser: the denoiser.
        tile: side of a tile in pixels of the result; a multiple that the denoiser determines.
        overlap: pixels of the result that neighbouring tiles share.
        stretch: number of pixels by which tiles may be longer where fewer of them then suffice, see `Tiling.longest`.

    Attributes:
        tiling: the division of results.
        pixels: side in pixels of the result that one latent value covers.

    Raises:
        ConfigError: the tile does not fit the denoiser, or the overlap the tile.
    """

    def __init__(self, denoiser: Denoiser, tile: int = 256, overlap: int = 32, stretch: int = 0) -> None:
        self.pixels = geometry(denoiser)[1]
        multiple = denoiser.multiple * self.pixels
        if tile < multiple or tile % multiple:
            raise ConfigError(f"tile must be a multiple of {multiple} for this network, got {tile}")
        self.denoiser = denoiser
        longest = tile + stretch // multiple * multiple
        self.tiling = Tiling(tile, overlap // self.pixels * self.pixels, longest, multiple)
        self.latent_tiling = self.tiling.shrunk(self.pixels)
        self.scale, self.multiple, self.alphas_cumprod = denoiser.scale, denoiser.multiple, denoiser.alphas_cumprod
        self.forwards_per_call, self.substeps = denoiser.forwards_per_call, denoiser.substeps
        self.x0_bound = denoiser.x0_bound

    @property
    def settings(self) -> Mapping[str, Any]:
        """The settings of the denoiser."""
        return self.denoiser.settings

    def schedule(self, steps: int) -> FloatArray:
        """Return the schedule of the denoiser."""
        return self.denoiser.schedule(steps)

    def condition(self, lr_image: Tensor) -> Tensor:
        """Return the condition of the denoiser."""
        return self.denoiser.condition(lr_image)

    def latent_shape(self, lr_image: Tensor) -> tuple[int, int, int, int]:
        """Return the shape of the denoiser's latents."""
        return self.denoiser.latent_shape(lr_image)

    def predict(self, x: Tensor, alpha_bar: AlphaBar, condition: Tensor) -> Estimate:
        """See `Denoiser.predict`; the sides of `x` are divisible by `multiple`."""
        return self._predict(x, alpha_bar, condition, None)

    def predict_substeps(
        self, x: Tensor, alpha_bar: AlphaBar, condition: Tensor, to_alpha_bar: AlphaBar, substeps: Step
    ) -> Estimate:
        """See `Denoiser.predict_substeps`."""
        return self._predict(x, alpha_bar, condition, (to_alpha_bar, substeps))

    def _predict(
        self, x: Tensor, alpha_bar: AlphaBar, condition: Tensor, jump: tuple[AlphaBar, Step] | None
    ) -> Estimate:
        """Return the blended output of a network, or the blended estimates of any other denoiser."""
        inner = self.denoiser
        if isinstance(inner, NetworkDenoiser):
            network = inner

            def output(box: Box) -> Tensor:
                return network.output(x[box.area], alpha_bar, condition[box.area], jump)

            return inner.estimate(self._blended(output, x), x, alpha_bar, condition)

        def both(box: Box) -> Tensor:
            part = x[box.area], alpha_bar, condition[box.area]
            x0, eps = inner.predict(*part) if jump is None else inner.predict_substeps(*part, *jump)
            return x0 if eps is None else torch.cat([x0, eps], dim=1)

        found = self._blended(both, x)
        channels = x.shape[1]
        return found[:, :channels], found[:, channels:] if found.shape[1] > channels else None

    def _blended(self, run: Callable[[Box], Tensor], x: Tensor) -> Tensor:
        """Return the blended results of `run` for the tiles of latents."""
        height, width = x.shape[-2:]
        if not self.latent_tiling.divides(height, width):
            return run(Box(0, 0, width, height))
        blend: Blend | None = None
        for box in self.latent_tiling.boxes(height, width):
            part = run(box)
            if blend is None:
                blend = Blend(self.latent_tiling, part.new_empty(*part.shape[:2], height, width))
            blend.add(box, part)
        assert blend is not None, "a picture has at least one tile"
        return blend.result()

    def decode(self, latent: Tensor, condition: Tensor) -> Tensor:
        """See `Denoiser.decode`."""
        height, width = latent.shape[-2:]
        if self.pixels == 1 or not self.latent_tiling.divides(height, width):
            return self.denoiser.decode(latent, condition)
        n = self.pixels
        blend = Blend(self.tiling, latent.new_empty(len(latent), 3, height * n, width * n))
        for box in self.latent_tiling.boxes(height, width):
            blend.add(box.enlarged(n), self.denoiser.decode(latent[box.area], condition[box.area]))
        return blend.result()
