"""Tiles: the same as without, no seam, every size."""

import pytest
import torch
from torch import Tensor

from ddpm.errors import ConfigError
from ddpm.images import to_tensor
from ddpm.tiling import TiledUNet
from ddpm.unet import UNet
from skipdiff_env.upscaler import Upscaler
from tests.conftest import Photo


class Pointwise:
    """Stands in for a net without receptive field: tiling must not change what it gives."""

    stride, prediction, target, residual_scale, coarse = 8, "v", "residual", 4.0, "ddpm"

    def __call__(self, lr_up: Tensor, x_t: Tensor, noise_level: Tensor) -> Tensor:
        return 2 * x_t + lr_up**2 * noise_level[:, None, None, None]


@pytest.mark.parametrize("size", [(32, 32), (40, 104), (96, 32), (8, 72), (72, 80)])
@pytest.mark.parametrize("overlap", [0, 8, 16])
def test_blending_keeps_what_needs_no_neighbours(size: tuple[int, int], overlap: int) -> None:
    net = Pointwise()
    tiled = TiledUNet(net, 32, overlap)  # type: ignore[arg-type]
    lr_up, x_t, level = torch.rand(2, 3, *size), torch.randn(2, 3, *size), torch.tensor([0.3, 0.9])
    torch.testing.assert_close(tiled(lr_up, x_t, level), net(lr_up, x_t, level))


def test_area_counts_every_pixel_that_is_seen(unet: UNet) -> None:
    tiled, seen = TiledUNet(unet, 32, 8), []
    unet.register_forward_hook(lambda net, args, out: seen.append(out.numel() // 3))
    tiled(torch.rand(1, 3, 72, 80), torch.randn(1, 3, 72, 80), torch.tensor([0.5]))
    assert sum(seen) == tiled.tiling.area(72, 80)
    assert max(seen) == 32 * 32, "memory is bounded by the tile"


@pytest.mark.parametrize(("tile", "overlap"), [(30, 0), (0, 0), (2, 0), (32, 17), (32, -1)])
def test_bad_tiles(unet: UNet, tile: int, overlap: int) -> None:
    with pytest.raises(ConfigError, match=r"tile|overlap"):
        TiledUNet(unet, tile, overlap)


def seam_ratio(image: Tensor, borders: list[int]) -> float:
    """Mean step across the borders over the mean step elsewhere, along the last axis."""
    steps = image.diff(dim=-1).abs().mean(dim=(0, 1))
    at_borders = torch.zeros(len(steps), dtype=torch.bool)
    at_borders[[b - 1 for b in borders]] = True
    return (steps[at_borders].mean() / steps[~at_borders].mean()).item()


def test_no_seam(photo: Photo, capsys: pytest.CaptureFixture[str]) -> None:
    """With the shipped net: at the borders of tiles the picture steps as it does elsewhere."""
    lr = [to_tensor(photo(48, 192, seed=3))]
    steps = (4, 25)
    tiled = Upscaler(steps=steps, start=4, tile=64)
    whole = Upscaler(steps=steps, start=4, tile=0)
    a, b = tiled.upscale(lr, [0])[0].sr, whole.upscale(lr, [0])[0].sr
    assert isinstance(tiled.denoiser, TiledUNet)
    starts = tiled.denoiser.tiling.starts(a.shape[-1])
    borders = sorted({*starts[1:], *(s + 64 for s in starts[:-1])})
    assert len(borders) > 20
    # pictures differ from column to column by themselves: the untiled result says by how much
    ratio = seam_ratio(a, borders) / seam_ratio(b, borders)
    difference = (a - b).abs().mean().item() * 127.5
    with capsys.disabled():
        print(f"\ntiled against whole: mean difference {difference:.2f} of 255 levels, step at borders {ratio:.3f}")
    assert ratio == pytest.approx(1, abs=0.05)
    assert difference < 3
