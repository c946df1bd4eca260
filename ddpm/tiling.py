"""A net that sees a large picture through overlapping tiles, blended at every diffusion step."""

import torch
from torch import Tensor

from ddpm.errors import ConfigError
from ddpm.unet import UNet


class TiledUNet:
    """Stands in for a `UNet` in every sampler; memory is bounded by the tile, not by the picture.

    Since what is blended is the prediction at each diffusion step, neighbouring tiles never drift apart and no seam
    can form.

    Args:
        unet: the net.
        tile: side of a tile in pixels of the result, a multiple of the net's stride.
        overlap: pixels that neighbouring tiles share.

    Raises:
        ConfigError: the tile does not fit the net, or the overlap the tile.
    """

    def __init__(self, unet: UNet, tile: int = 256, overlap: int = 32) -> None:
        if tile < unet.stride or tile % unet.stride:
            raise ConfigError(f"tile must be a multiple of the net's stride {unet.stride}, got {tile}")
        if not 0 <= overlap <= tile // 2:
            raise ConfigError(f"overlap must lie between 0 and half a tile ({tile // 2}), got {overlap}")
        self.unet, self.tile, self.overlap = unet, tile, overlap
        self.prediction, self.target, self.residual_scale = unet.prediction, unet.target, unet.residual_scale

    def _starts(self, side: int) -> list[int]:
        """First pixels of the tiles along a side; the last tile ends with the picture."""
        step = self.tile - self.overlap
        return [*range(0, max(side - self.tile, 0), step), max(side - self.tile, 0)]

    def _window(self, size: int, device: torch.device) -> Tensor:
        """Weights (size,) of a tile along one side: 1 inside, a ramp over the overlap."""
        ramp = torch.arange(1, size + 1, device=device).clamp(max=self.overlap + 1) / (self.overlap + 1)
        return torch.minimum(ramp, ramp.flip(0))

    def area(self, height: int, width: int) -> int:
        """Pixels that go through the net for one picture of this size, overlaps counted as often as they are seen."""
        tiles = len(self._starts(height)) * len(self._starts(width))
        return tiles * min(self.tile, height) * min(self.tile, width)

    def __call__(self, lr_up: Tensor, x_t: Tensor, noise_level: Tensor) -> Tensor:
        """As `UNet.forward`; H and W multiples of the net's stride."""
        height, width = x_t.shape[-2:]
        if height <= self.tile and width <= self.tile:
            return self.unet(lr_up, x_t, noise_level)
        total = torch.zeros_like(x_t)
        weight = torch.zeros(height, width, device=x_t.device)
        for y in self._starts(height):
            for x in self._starts(width):
                area = (..., slice(y, y + self.tile), slice(x, x + self.tile))
                part = self.unet(lr_up[area], x_t[area], noise_level)
                h, w = part.shape[-2:]
                window = self._window(h, x_t.device)[:, None] * self._window(w, x_t.device)
                total[area] += part.mul_(window)
                weight[area] += window
        return total.div_(weight)
