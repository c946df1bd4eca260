"""Enlargement of pictures: coarse stage, then fine refinement by a policy, for a whole picture or tile by tile."""

import threading
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import psutil
import torch
import torch.nn.functional as F
from PIL import Image, ImageOps
from torch import Tensor

from ddpm.checkpoints import load_denoiser
from ddpm.nets.backends import run_by
from ddpm.nets.denoiser import Denoiser, geometry, watching
from ddpm.nets.unet import UNet
from ddpm.pictures.formats import check_output, output_format
from ddpm.pictures.images import (
    Animation,
    Picture,
    from_pil,
    read_animation,
    read_header,
    read_picture,
    to_pil,
    to_tensor,
    to_uint8,
    visible_colours,
    write_picture,
)
from ddpm.pictures.tiling import Blend, Box, TiledDenoiser, Tiling
from ddpm.schedule import Schedule, as_schedule
from ddpm.util.checks import check_whole, is_number, is_whole
from ddpm.util.errors import CheckpointError, ConfigError, ImageError, out_of_memory
from skipdiff_env.plan import Plan
from skipdiff_env.refinement import Decider, Fixed, Policy, Refinement, RefinementProcess, fixed_start, wanted_by

# Largest number of float32 pictures in memory at once during a diffusion step.
LIVE_PICTURES = 9
# Default side of a tile.
TILE = 256
# Number of pixels in a group of tiles that are decided on separately.
GROUP_PIXELS = 2**22
# The largest noise seed: the key of a generator has 64 bits.
MAX_SEED = 2**64 - 1


@dataclass(frozen=True)
class Tile:
    """A part of a picture with a separately chosen schedule.

    Attributes:
        box: its place in the result, in pixels; neighbours overlap.
        schedule: schedule of the surviving fine chain.
        nfe: UNet forwards, coarse and fine.
    """

    box: Box
    schedule: Schedule
    nfe: int

    @classmethod
    def of(cls, box: Box, state: Refinement) -> "Tile":
        """Return the tile of a finished state."""
        assert state.schedule is not None, "a finished state has run at least one forward"
        return cls(box, state.schedule, state.nfe)

    @property
    def steps(self) -> int:
        """Number of steps whose work was done: the substeps of all forwards."""
        return sum(self.schedule.substeps)


@dataclass(frozen=True)
class Upscaled:
    """One enlarged picture.

    Attributes:
        sr: the result, (3, H, W) in [-1, 1].
        start: diffusion step at which the surviving fine chain began.
        nfe: UNet forwards, coarse and fine; the mean over the tiles.
        tiles: the parts with separate decisions; a single one if the decision was about the whole picture.
        seconds: time from the decoded picture to the result; for pictures that ran together, the mean.
    """

    sr: Tensor
    start: int
    nfe: float
    tiles: tuple[Tile, ...]
    seconds: float


def detail_schedule(detail: float, most: int) -> Schedule:
    """Return the schedule of one forward for an amount of detail.

    Args:
        detail: 0 … 1, for 1 to `most` substeps on a logarithmic scale.
        most: the most substeps that the network has learnt.

    Raises:
        ConfigError: the detail is out of range, or the network has not learnt substeps.
    """
    if not is_number(detail) or detail > 1:
        raise ConfigError(f"detail must be a number in 0 … 1, got {detail!r}")
    if most == 1:
        raise ConfigError(
            "detail needs a checkpoint with substeps, which this one does not have; give levels instead, or train "
            "substeps with `skipdiff train-substeps`"
        )
    return Schedule.even(1, round(most**detail))


class Upscaler:
    """An upscaler for pictures of any size, with few diffusion steps.

    `Upscaler().upscale_file("small.jpg", "large.png")` enlarges a file; `Upscaler()(image)` enlarges a Pillow image.

    Args:
        checkpoint: name of a shipped checkpoint, a folder, or a Hub id, also of a model of diffusers, see
            `ddpm.checkpoints.load_denoiser`; or a `Denoiser` whose networks are on `device`.
        steps: (S, N), the number of coarse steps, and of diffusion steps in each; None: the checkpoint's.
        start: diffusion step 1 … N (or `first_step`) at which the fine chain begins, under "restart".
        levels: a schedule in any form that `ddpm.schedule.as_schedule` takes: with "20,13,6,2" the network runs at
            20/20 of the way (pure noise), at 13/20, 6/20 and 2/20; with "even:1*8" it runs once and does the work of 8
            steps. Without `levels`, `detail`, `start`, `steps` and a policy, the checkpoint's schedule, or else its
            start, is used.
        detail: the amount of invented detail, 0 … 1. One forward has 1 substep for 0, the most that the checkpoint has
            learnt for 1, and a number between them on a logarithmic scale for other values.
        coarse_sampler: sampler of the coarse stage, "ddpm", "ddim", "ddim:ETA" with ETA in 0 … 1, or "dpmsolver++";
            None: the checkpoint's.
        fine_sampler: sampler of the fine steps, "ddpm", "ddim", "ddim:ETA", or for `levels` also "dpmsolver++"; None:
            the checkpoint's for `levels`, else "ddpm".
        first_step: the diffusion step of the first decision, N … T; None: N.
        policy: a policy that decides step by step or chooses schedules, in place of `start` or `levels`, on the
            episodes of `plan`. Under "jump", it decides for each tile of a picture that is larger than `tile`; the
            tiles use the noise of the picture, and their results are blended. Under "restart", it decides for the whole
            picture.
        plan: plan of the policy's episodes; None: that of the arguments above.
        device: device of the computation.
        backend: library that runs the networks, one of `BACKENDS`; all but torch need the device cpu.
        tile: side of the overlapping tiles of larger pictures, in pixels of the result; 0: no tiles. None: 256, or the
            attribute `tile` of a policy that decides for each tile.
        batch_size: largest number of pictures of one size that are enlarged together, and of tiles in one forward. It
            is lowered if memory is short.

    Raises:
        CheckpointError: the checkpoint is unknown or damaged.
        ConfigError: the steps do not fit the checkpoint, `start`, `levels` or `first_step` is out of range, several of
            them are given, a sampler or the device is unknown, or the backend is not installed or does not run on the
            device.
    """

    def __init__(
        self,
        checkpoint: str | Path | Denoiser = "natural-x4",
        *,
        steps: tuple[int, int] | None = None,
        start: int | None = None,
        levels: Schedule | str | Sequence[int] | None = None,
        detail: float | None = None,
        coarse_sampler: str | None = None,
        fine_sampler: str | None = None,
        first_step: int | None = None,
        policy: Policy | Decider | None = None,
        plan: Plan | None = None,
        device: str = "cpu",
        backend: str = "torch",
        tile: int | None = None,
        batch_size: int = 8,
    ) -> None:
        if sum(given is not None for given in (start, levels, detail, policy)) > 1:
            raise ConfigError("start, levels, detail and policy all determine the steps; give one of them")
        if tile is not None:
            check_whole(0, tile=tile)
        self.unet: Denoiser = load_denoiser(checkpoint, device)
        if backend != "torch":
            if not isinstance(self.unet, UNet):
                raise ConfigError(f"the backend {backend} runs our own networks only; take the backend torch")
            run_by(backend, self.unet, device)
        settings = self.unet.settings
        chooses = policy is not None
        if detail is not None:
            levels = detail_schedule(detail, self.unet.substeps)
        elif levels is None and not any((start, policy, plan, steps, coarse_sampler, first_step)):
            levels = settings["levels"]
        schedule = None if levels is None else as_schedule(levels)
        if schedule is not None:
            own = settings["fine_sampler"] if schedule.plain else "ddim"
            plan = Plan.of_schedule(schedule, fine_sampler or own)
        elif plan is None:
            plan = Plan.resolve(
                settings, steps=steps, coarse_sampler=coarse_sampler, fine_sampler=fine_sampler, first_step=first_step
            )
        chooses = chooses and plan.skip_mode == "jump"
        if tile is None:
            tile = getattr(policy, "tile", TILE) if chooses else TILE
        self.scale, self.device, self.tile = self.unet.scale, device, tile
        # blended results need smaller overlaps than blended predictions, and overlaps cost time
        overlap = min(max(8, tile // 8) if chooses else 32, tile // 4)
        stretch = tile // 8 if chooses else 0
        self.denoiser: Denoiser = TiledDenoiser(self.unet, tile, overlap, stretch) if tile else self.unet
        # side in pixels of the result that one latent value covers
        self.pixels = geometry(self.unet)[1]
        # the division of pictures if the policy decides for each tile
        self.choosing = self.denoiser.tiling if chooses and isinstance(self.denoiser, TiledDenoiser) else None
        if schedule is not None:
            policy = Fixed(schedule, plan)
        self.process = RefinementProcess(
            self.denoiser, plan, batch_size=batch_size, device=device, **wanted_by(policy)
        )  # fmt: skip
        if start is not None and not (is_whole(start) and 1 <= start <= plan.first):
            raise ConfigError(f"start must lie in 1 … {plan.first}, the fine steps, a whole number, got {start!r}")
        # with a policy the number of forwards is known only afterwards
        fine = self.process.decisions.forwards
        if policy is None:
            # the checkpoint's start belongs to its N, and cannot be beyond another N
            fine = start or min(settings["start"] or plan.N, plan.N)
        self.policy = policy or fixed_start(fine)
        self.expected_nfe = self.process.coarse_forwards + fine * self.unet.forwards_per_call
        self.batch_size = batch_size

    def upscale(
        self,
        lr_images: Sequence[Tensor],
        seeds: Sequence[int],
        progress: Callable[[float], object] | None = None,
    ) -> list[Upscaled]:
        """Enlarge pictures of one size.

        Args:
            lr_images: pictures, each (3, h, w) in [-1, 1]; at most `batch_size` of them run together, or as many as fit
                into the free memory.
            seeds: noise seed of each picture, 0 … 2⁶⁴ - 1; a picture and a seed have the same result in any batch.
            progress: function that is called after each forward with its share of one step of one picture.

        Returns:
            The result of each picture, whose `sr` is (3, scale·h, scale·w).

        Raises:
            ImageError: the result of a single picture would not fit into memory.
            ConfigError: a seed lies outside its range.
            CheckpointError: the net returns numbers that are not finite.
        """
        if not all(0 <= seed <= MAX_SEED for seed in seeds):
            raise ConfigError(f"noise seeds must lie in 0 … {MAX_SEED}, got {', '.join(map(str, seeds))}")
        height, width = (side * self.scale for side in lr_images[0].shape[-2:])
        multiple = self.unet.multiple
        sides = height // self.pixels, width // self.pixels
        canvas = tuple(side + -side % multiple for side in sides)
        padding = (0, canvas[1] - sides[1], 0, canvas[0] - sides[0])
        area = canvas[0] * canvas[1]
        if isinstance(self.denoiser, TiledDenoiser):
            area = self.denoiser.latent_tiling.area(*canvas)
        thread = threading.get_ident()

        def advance(pictures: int, values: int) -> None:
            if progress is not None and threading.get_ident() == thread:  # other threads may enlarge pictures as well
                progress(values / area)

        results: list[Upscaled] = []
        with watching(self.unet, advance) if progress is not None else nullcontext():
            largest = self.batch_size
            while len(results) < len(lr_images):
                done = len(results)
                size = min(largest, self.largest_batch(height, width), len(lr_images) - done)
                try:
                    results += self._batch(lr_images[done : done + size], seeds[done : done + size], padding)
                except (RuntimeError, MemoryError) as error:
                    if not out_of_memory(error):
                        raise
                    if size == 1:
                        raise ImageError(
                            f"a result of {width} x {height} does not fit into memory; cut the picture up"
                        ) from None
                    largest = size // 2
        return results

    def _batch(
        self, lr_images: Sequence[Tensor], seeds: Sequence[int], padding: tuple[int, int, int, int]
    ) -> list[Upscaled]:
        """Enlarge pictures together."""
        began = time.perf_counter()
        height, width = (side * self.scale for side in lr_images[0].shape[-2:])
        condition = self.unet.condition(torch.stack(list(lr_images)).to(self.device))
        condition = F.pad(condition, padding, mode="replicate")
        states = self.process.begin(list(condition), seeds)
        canvas = Box(0, 0, condition.shape[-1], condition.shape[-2]).enlarged(self.pixels)
        if self.choosing is not None and self.choosing.divides(canvas.bottom, canvas.right):
            images, tiles = self._tile_by_tile(states, self.choosing)
        else:
            images = self.process.run(states, self.policy)
            tiles = [[Tile.of(canvas, state)] for state in states]
        if not all(bool(image.isfinite().all()) for image in images):
            raise CheckpointError("the net returns numbers that are not finite; its weights are damaged, take another")
        seconds = (time.perf_counter() - began) / len(lr_images)
        results = []
        for sr, state, own in zip(images, states, tiles, strict=True):
            # the padding is not part of the result
            inside = [replace(t, box=Box(*t.box[:2], min(t.box.right, width), min(t.box.bottom, height))) for t in own]
            nfe = inside[0].nfe if len(own) == 1 else sum(tile.nfe for tile in own) / len(own)
            results.append(Upscaled(sr[:, :height, :width], state.start, nfe, tuple(inside), seconds))
        return results

    def _tile_by_tile(self, states: Sequence[Refinement], tiling: Tiling) -> tuple[list[Tensor], list[list[Tile]]]:
        """Run each tile of pictures at their first decision by separate decisions, and blend the results.

        Tiles are independent, so they run in groups, whose memory does not grow with the picture. The tiles of a group
        that are denoised at the same step share batches of the net.
        """
        height, width = (side * self.pixels for side in states[0].latent.shape[-2:])
        boxes = tiling.boxes(height, width)
        places = [(i, box) for i in range(len(states)) for box in boxes]
        size = max(self.batch_size, GROUP_PIXELS // (tiling.area(height, width) // len(boxes)))
        blends = [Blend(tiling, state.latent.new_empty(3, height, width)) for state in states]
        tiles: list[list[Tile]] = [[] for _ in states]
        for first in range(0, len(places), size):
            group = places[first : first + size]
            parts = [states[i].tile(box.shrunk(self.pixels)) for i, box in group]
            for (i, box), part, sr in zip(group, parts, self.process.run(parts, self.policy), strict=True):
                blends[i].add(box, sr)
                tiles[i].append(Tile.of(box, part))
        return [blend.result() for blend in blends], tiles

    def largest_batch(self, height: int, width: int) -> int:
        """Return the number of results of this size that run together: `batch_size`, or as many as fit into memory.

        Raises:
            ImageError: a single result does not fit into the free memory.
        """
        if torch.device(self.device).type != "cpu":
            return self.batch_size  # on other devices it is found by trying
        needed = LIVE_PICTURES * 12 * height * width
        available = psutil.virtual_memory().available
        if needed > available:
            raise ImageError(
                f"a result of {width} x {height} needs about {needed / 2**30:.1f} GiB of memory, "
                f"{available / 2**30:.1f} GiB are free; cut the picture up"
            )
        return min(self.batch_size, available // max(needed, 1))

    def enlarge(
        self, pictures: Sequence[Picture], seeds: Sequence[int], progress: Callable[[float], object] | None = None
    ) -> list[tuple[Picture, Upscaled]]:
        """Enlarge decoded pictures of one size; alpha (by bicubic), greyness, colour profile and metadata are kept."""
        results = self.upscale([to_tensor(visible_colours(p)) for p in pictures], seeds, progress)
        return [(self._enlarged(p, result), result) for p, result in zip(pictures, results, strict=True)]

    def enlarge_animation(
        self, animation: Animation, seed: int, progress: Callable[[float], object] | None = None
    ) -> tuple[Animation, Upscaled]:
        """Enlarge all frames with the same noise, so that still parts do not flicker.

        Returns:
            The animation, and the first frame's result with the forwards and seconds of all frames.

        Raises:
            ImageError: the frames of the result would not fit into memory.
        """
        frames = animation.frames
        height, width = (side * self.scale for side in frames[0].rgb.shape[:2])
        check_room(len(frames), width, height)
        first: Upscaled | None = None
        enlarged: list[Picture] = []
        forwards: float = 0
        seconds = 0.0
        while len(enlarged) < len(frames):
            chunk = frames[len(enlarged) : len(enlarged) + self.largest_batch(height, width)]
            results = self.enlarge(chunk, [seed] * len(chunk), progress)
            first = first or results[0][1]
            forwards += sum(result.nfe for _, result in results)
            seconds += sum(result.seconds for _, result in results)
            enlarged += [picture for picture, _ in results]
        assert first is not None, "an animation has at least one frame"
        return replace(animation, frames=enlarged), replace(first, nfe=forwards, seconds=seconds)

    def _enlarged(self, picture: Picture, result: Upscaled) -> Picture:
        """Return the result as a picture with the alpha, greyness and metadata of the source."""
        rgb = to_uint8(result.sr)
        if picture.grey:  # the net may have added colour
            rgb = np.repeat(np.asarray(Image.fromarray(rgb).convert("L"))[..., None], 3, axis=-1)
        alpha = picture.alpha
        if alpha is not None:
            alpha = np.asarray(ImageOps.scale(Image.fromarray(alpha), self.scale, Image.Resampling.BICUBIC))
        return replace(picture, rgb=rgb, alpha=alpha)

    def __call__(self, image: Image.Image, seed: int = 0) -> Image.Image:
        """Enlarge a Pillow image of any mode."""
        return to_pil(self.enlarge([from_pil(image)], [seed])[0][0])

    def upscale_file(self, path: str | Path, out: str | Path, seed: int = 0) -> Upscaled:
        """Enlarge a file into another, whose ending determines the format.

        All frames of an animation are enlarged if that format supports animations.

        Raises:
            ImageError: the picture cannot be read, or the result cannot be written.
        """
        out, header = Path(out), read_header(path)
        check_output(out, header.width * self.scale, header.height * self.scale)
        large: Picture | Animation
        if header.animated and output_format(out).animated:
            large, result = self.enlarge_animation(read_animation(path), seed)
        else:
            large, result = self.enlarge([read_picture(path)], [seed])[0]
        write_picture(large, out)
        return result


def check_room(pictures: int, width: int, height: int) -> None:
    """Raise ImageError unless so many decoded results, of four bytes per pixel, fit twice into the free memory."""
    needed, available = 8 * pictures * width * height, psutil.virtual_memory().available
    if needed > available:
        raise ImageError(
            f"{pictures} x {width} x {height} pixels need about {needed / 2**30:.1f} GiB of memory, "
            f"{available / 2**30:.1f} GiB are free; ask for less"
        )
