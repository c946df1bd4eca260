"""Tiles: the same as without, no seam, every size; and tiles that are decided about one by one."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from ddpm.nets.denoiser import NoiseLevelDenoiser
from ddpm.nets.unet import UNet
from ddpm.noise import KeyedNoise, Stage
from ddpm.pictures.images import to_tensor
from ddpm.pictures.tiling import Blend, Box, TiledDenoiser, Tiling
from ddpm.sampling import run_levels
from ddpm.schedule import Schedule, cosine_alphas_cumprod
from ddpm.util.errors import ConfigError
from skipdiff_env.plan import Plan
from skipdiff_env.refinement import Refinement, RefinementProcess
from skipdiff_env.rules import Action
from skipdiff_env.upscaler import Fixed, Upscaled, Upscaler
from tests.conftest import Photo, counting


class Pointwise(NoiseLevelDenoiser):
    """Stands in for a net without receptive field: tiling must not change what it gives."""

    scale, multiple, prediction, target, residual_scale = 4, 8, "v", "residual", 4.0

    def __call__(self, lr_up: Tensor, x_t: Tensor, noise_level: Tensor) -> Tensor:
        return 2 * x_t + lr_up**2 * noise_level[:, None, None, None]


@pytest.mark.parametrize("size", [(32, 32), (40, 104), (96, 32), (8, 72), (72, 80)])
@pytest.mark.parametrize("overlap", [0, 8, 16])
def test_blending_keeps_what_needs_no_neighbours(size: tuple[int, int], overlap: int) -> None:
    net = Pointwise()
    tiled = TiledDenoiser(net, 32, overlap)
    lr_up, x_t, level = torch.rand(2, 3, *size), torch.randn(2, 3, *size), np.array([0.1, 0.8])
    torch.testing.assert_close(tiled.predict(x_t, level, lr_up), net.predict(x_t, level, lr_up))


def test_longer_tiles_where_fewer_are_enough() -> None:
    tiling = Tiling(128, 16, 144, 16)
    for side, length, count in [
        (64, 64, 1), (128, 128, 1), (144, 144, 1), (160, 128, 2), (256, 144, 2), (272, 144, 2), (288, 128, 3),
        (384, 144, 3), (512, 144, 4), (1024, 128, 9), (1056, 128, 10),
    ]:  # fmt: skip
        starts = tiling.starts(side)
        assert (tiling.length(side), len(starts)) == (length, count), side
        assert starts[0] == 0
        assert starts[-1] + length == side
        assert all(b - a <= length - 16 for a, b in itertools.pairwise(starts))
        assert tiling.area(side, side) <= Tiling(128, 16).area(side, side)
        assert tiling.divides(side, 16) == (count > 1)


def test_area_counts_every_pixel_that_is_seen(unet: UNet) -> None:
    tiled, seen = TiledDenoiser(unet, 32, 8), []
    unet.register_forward_hook(lambda net, args, out: seen.append(out.numel() // 3))
    tiled.predict(torch.rand(1, 3, 72, 80), 0.5, torch.randn(1, 3, 72, 80))
    assert sum(seen) == tiled.tiling.area(72, 80)
    assert max(seen) == 32 * 32, "memory is bounded by the tile"


@pytest.mark.parametrize(("tile", "overlap"), [(30, 0), (0, 0), (2, 0), (32, 17), (32, -1)])
def test_bad_tiles(unet: UNet, tile: int, overlap: int) -> None:
    with pytest.raises(ConfigError, match=r"tile|overlap"):
        TiledDenoiser(unet, tile, overlap)


def seam_ratio(image: Tensor, tiling: Tiling) -> float:
    """Mean step across the borders of tiles over the mean step elsewhere, along the last axis."""
    starts = tiling.starts(image.shape[-1])
    length = tiling.length(image.shape[-1])
    borders = sorted({*starts[1:], *(start + length for start in starts[:-1])})
    assert len(borders) > 20
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
    assert isinstance(tiled.denoiser, TiledDenoiser)
    # pictures differ from column to column by themselves: the untiled result says by how much
    ratio = seam_ratio(a, tiled.denoiser.tiling) / seam_ratio(b, tiled.denoiser.tiling)
    difference = (a - b).abs().mean().item() * 127.5
    with capsys.disabled():
        print(f"\ntiled against whole: mean difference {difference:.2f} of 255 levels, step at borders {ratio:.3f}")
    assert ratio == pytest.approx(1, abs=0.05)
    assert difference < 3


PLAN = Plan(1, 6, fine_sampler="ddim:0.5", skip_mode="jump")
FEW, MANY = (6, 3), (6, 5, 4, 3, 2, 1)


def by_texture(states: Sequence[Refinement]) -> list[int]:
    """Few steps where the condition is smooth, many where it is not."""
    textured = [bool(state.lr_up.diff(dim=-1).abs().mean() > 0.02) for state in states]
    return [
        Action.DENOISE if state.t - 1 in (MANY if many else FEW) else Action.SKIP
        for state, many in zip(states, textured, strict=True)
    ]


def half_sky(height: int = 17, width: int = 41) -> Tensor:
    """A low-resolution picture whose left half is smooth and whose right half is not."""
    picture = torch.zeros(3, height, width)
    picture[:, :, width // 2 :] = torch.from_numpy(
        np.random.default_rng(0).uniform(-1, 1, (3, height, width - width // 2))
    )
    return picture


@pytest.fixture
def chooser(checkpoint: str) -> Upscaler:
    """A policy that decides for each tile of 32 px."""
    return Upscaler(checkpoint, policy=by_texture, plan=PLAN, tile=32, batch_size=4)


def test_each_tile_has_decisions_of_its_own(chooser: Upscaler) -> None:
    with counting(chooser.unet) as batches:
        result = chooser.upscale([half_sky()], [0])[0]
    assert result.sr.shape == (3, 68, 164)
    for tile in result.tiles:
        levels = tile.schedule.levels
        assert levels == (FEW if tile.box.right <= 80 else MANY if tile.box.left > 84 else levels)
        assert tile.nfe == len(tile.schedule.levels)
    forwards = [tile.nfe for tile in result.tiles]
    assert set(forwards) == {2, 6}
    assert result.nfe == pytest.approx(np.mean(forwards))
    assert sum(batches) == sum(forwards), "a tile that skips costs nothing"
    assert max(batches) == 4, "tiles share batches"
    covered = torch.zeros(68, 164)
    for tile in result.tiles:
        covered[tile.box.area] += 1
    assert covered.min() == 1
    assert all(t.box.bottom <= 68 and t.box.right <= 164 for t in result.tiles)
    assert result.seconds > 0


@pytest.mark.parametrize("plan", [PLAN, Plan(3, 6, "ddim", "ddpm", "jump")])
def test_a_tile_is_its_part_of_the_picture_by_its_own_schedule(checkpoint: str, plan: Plan) -> None:
    """By hand: the whole picture's coarse latent and noise, cut into tiles, one chain for each, blended."""
    upscaler = Upscaler(checkpoint, policy=by_texture, plan=plan, tile=32)
    lr, seed = half_sky(16, 24), 7
    result = upscaler.upscale([lr], [seed])[0]
    unet, alphas_cumprod = upscaler.unet, cosine_alphas_cumprod(plan.length)
    condition = unet.condition(lr[None])
    (state,) = RefinementProcess(upscaler.denoiser, plan).begin(list(condition), [seed])
    whole = KeyedNoise([seed], (3, 64, 96))
    if plan.coarse_forwards == 0:
        torch.testing.assert_close(state.latent[None], whole(Stage.INITIAL, 6))
    blend = Blend(Tiling(32, 8), condition)
    for tile in result.tiles:
        latent, lr_up = state.latent[None][tile.box.area], condition[tile.box.area]
        x_0 = run_levels(
            unet, alphas_cumprod, latent, lr_up, lambda stage, t, area=tile.box.area: whole(stage, t)[area],  # type: ignore[misc]
            tile.schedule.levels, upscaler.process.fine_eta,
        )  # fmt: skip
        blend.add(tile.box, unet.decode(x_0, lr_up))
        assert tile.nfe == plan.coarse_forwards + len(tile.schedule.levels)
    assert {tile.schedule.levels for tile in result.tiles} == {FEW, MANY}
    torch.testing.assert_close(result.sr, blend.result()[0], atol=1e-4, rtol=0)


@pytest.mark.parametrize("sampler", ["ddim:0.5", "dpmsolver++"])
def test_tiles_are_the_same_in_every_batch_and_group(
    sampler: str, checkpoint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Plan(1, 6, fine_sampler=sampler, skip_mode="jump")
    expected = Upscaler(checkpoint, policy=by_texture, plan=plan, tile=32).upscale([half_sky()], [3])[0]
    seen: list[int] = []

    def counted(states: Sequence[Refinement]) -> list[int]:
        seen.append(len(states))
        return by_texture(states)

    monkeypatch.setattr("skipdiff_env.upscaler.GROUP_PIXELS", 4 * 36 * 36)
    small = Upscaler(checkpoint, policy=counted, plan=plan, tile=32, batch_size=2)
    together = small.upscale([half_sky(), -half_sky()], [3, 4])
    assert max(seen) == 4, "what is in flight does not grow with the picture"
    assert together[0].tiles == expected.tiles
    torch.testing.assert_close(together[0].sr, expected.sr, atol=1e-4, rtol=0)
    assert (together[0].sr - together[1].sr).abs().mean() > 0.01


def test_a_picture_of_one_tile_is_not_cut(chooser: Upscaler, checkpoint: str) -> None:
    whole = Upscaler(checkpoint, policy=by_texture, plan=PLAN, tile=0)
    lr = half_sky(8, 7)
    with counting(chooser.unet) as batches:
        result = chooser.upscale([lr], [0])[0]
    assert torch.equal(result.sr, whole.upscale([lr], [0])[0].sr)
    assert batches == [1] * len(MANY)
    (tile,) = result.tiles
    assert (tile.box, tile.schedule.levels, tile.nfe) == ((0, 0, 28, 32), MANY, 6)
    assert (result.nfe, result.start) == (6, 6)
    assert len(whole.upscale([half_sky()], [0])[0].tiles) == 1, "without tiles the policy decides for the picture"


def test_schedules_that_are_given_are_blended_at_every_step(checkpoint: str) -> None:
    """Only policies decide tile by tile, and only under jumps; all else is as it was."""
    lr = half_sky(16, 24)
    given = Upscaler(checkpoint, levels=MANY, fine_sampler="ddim:0.5", tile=32).upscale([lr], [0])[0]
    assert [tile.schedule.levels for tile in given.tiles] == [MANY]
    cut = Upscaler(checkpoint, policy=Fixed(Schedule(MANY), PLAN), plan=PLAN, tile=32).upscale([lr], [0])[0]
    assert [tile.schedule.levels for tile in cut.tiles] == [MANY] * len(Tiling(32, 8, 36, 4).boxes(64, 96))
    assert not torch.allclose(given.sr, cut.sr, atol=1e-3)
    restarting = Upscaler(checkpoint, policy=by_texture, plan=Plan(10, 10), tile=32).upscale([lr], [0])[0]
    assert len(restarting.tiles) == 1


def test_the_tile_is_the_policys(checkpoint: str) -> None:
    class Policy:
        tile = 64

        def __call__(self, states: Sequence[Refinement]) -> list[int]:
            return by_texture(states)

    assert Upscaler(checkpoint, policy=Policy(), plan=PLAN).tile == 64
    assert Upscaler(checkpoint, policy=Policy(), plan=PLAN, tile=32).tile == 32
    assert Upscaler(checkpoint, policy=by_texture, plan=PLAN).tile == 256
    assert Upscaler(checkpoint, policy=Policy(), plan=Plan(10, 10)).tile == 256
    assert Upscaler(checkpoint).tile == 256


@pytest.mark.parametrize("smooth", [False, True])
@pytest.mark.parametrize("sampler", ["ddim", "ddpm"])
def test_no_seam_between_tiles_of_different_schedules(
    smooth: bool, sampler: str, checkpoint: str, photo: Photo
) -> None:
    """Every second tile has a third of its neighbours' forwards; the picture steps at the borders as elsewhere."""

    def alternate(states: Sequence[Refinement]) -> list[int]:
        boxes = [state.box or Box(0, 0, 0, 0) for state in states]
        many = [(box.left + box.top) // 24 % 2 == 0 for box in boxes]
        return [
            Action.DENOISE if state.t - 1 in (MANY if much else FEW) else Action.SKIP
            for state, much in zip(states, many, strict=True)
        ]

    lr = torch.full((3, 20, 80), 0.1) if smooth else to_tensor(photo(20, 80))
    upscaler = Upscaler(checkpoint, policy=alternate, plan=Plan(1, 6, "ddpm", sampler, "jump"), tile=32)
    result = upscaler.upscale([lr], [0])[0]
    assert upscaler.choosing is not None
    assert {tile.nfe for tile in result.tiles} == {2, 6}
    assert seam_ratio(result.sr, upscaler.choosing) == pytest.approx(1, abs=0.05)


def test_progress_of_tiles(chooser: Upscaler) -> None:
    """Counts the forwards of a picture, as the mean over its tiles."""
    parts: list[float] = []
    result: Upscaled = chooser.upscale([half_sky()], [0], parts.append)[0]
    assert sum(parts) == pytest.approx(result.nfe)
