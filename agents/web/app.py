"""The functions behind `skipdiff web`; `agents.web.page` lays out the page."""

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import log
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from agents.upscaling.jobs import make_upscaler
from ddpm.checkpoints import resolve_checkpoint
from ddpm.pictures.degradation import downsample
from ddpm.pictures.images import Picture, read_header, read_picture, to_tensor, to_uint8
from ddpm.schedule import Schedule, even_levels
from ddpm.util.errors import ConfigError, ImageError
from skipdiff_env.pictures import PHOTOGRAPHS, Rgb
from skipdiff_env.rendering import draw_map
from skipdiff_env.upscaler import Upscaled, Upscaler, check_room

# Number of levels of the schedules of even steps on the slider.
LEVELS = 20
# Largest side of the crops from which samples are made, in pixels.
SAMPLE_SIDE = 384
# Words for the detail of a part, from the least to the most.
AMOUNTS = ("little", "some", "much")

# Arguments of Gradio's slider.
Knob = dict[str, Any]
DETAIL: Knob = {
    "label": "Detail", "info": "0 (faithful) … 1 (rich)", "minimum": 0, "maximum": 1, "step": 0.05, "value": 0.5,
}  # fmt: skip
EVEN_STEPS: Knob = {
    "label": "Number of even steps", "info": "Forwards of the network", "minimum": 1, "maximum": LEVELS, "step": 1,
    "value": 8,
}  # fmt: skip


@dataclass(frozen=True)
class Enlarged:
    """A result, and the parts of the page that show it.

    Attributes:
        picture: the result, with alpha and metadata of the source.
        before: the source, enlarged by bicubic interpolation, uint8 (H, W, 3).
        map: the steps of each tile, drawn over the result, uint8.
        summary: sentences with the sizes, the seconds, and the number of forwards.
        parts: number of tiles with separately chosen steps.
    """

    picture: Picture
    before: Rgb
    map: Rgb
    summary: str
    parts: int


class Workshop:
    """The upscalers of the page, with several checkpoints.

    Args:
        checkpoints: names, folders or Hub ids.
        device: device of the networks.
        max_pixels: largest number of pixels of a photograph.

    Raises:
        SkipDiffError: a checkpoint is unknown, the first is damaged, or there is no such device.
    """

    def __init__(self, checkpoints: Sequence[str], device: str = "cpu", max_pixels: int = 2**20) -> None:
        for name in checkpoints:
            resolve_checkpoint(name)
        self.checkpoints, self.device, self.max_pixels = list(checkpoints), device, max_pixels
        self._upscalers: dict[str, Upscaler] = {}
        self._default(checkpoints[0])  # the first checkpoint of the page; the others are loaded when they are chosen

    def _default(self, checkpoint: str) -> Upscaler:
        """Return the upscaler of `skipdiff upscale` without options, which is loaded once.

        Raises:
            ConfigError: the checkpoint is not on the page.
        """
        if checkpoint not in self.checkpoints:
            raise ConfigError(f"unknown checkpoint {checkpoint!r}; known are {', '.join(self.checkpoints)}")
        if checkpoint not in self._upscalers:
            self._upscalers[checkpoint] = make_upscaler(checkpoint=checkpoint, device=self.device)
        return self._upscalers[checkpoint]

    def knob(self, checkpoint: str) -> Knob:
        """Return the slider of a checkpoint: the detail, if it has substeps, else the number of steps."""
        return DETAIL if self._default(checkpoint).unet.substeps > 1 else EVEN_STEPS

    def box(self, checkpoint: str) -> tuple[str, str]:
        """Return the label of the box beside the slider, and the line below the label."""
        if _details_to_choose(self._default(checkpoint)):
            return "An agent chooses the detail of each part", "Untick it to choose on the slider."
        if self.knob(checkpoint) is DETAIL:
            return "The checkpoint's own setting", "It has no agent for detail. Untick it to choose on the slider."
        return "The checkpoint's own steps", "As skipdiff upscale takes them. Untick it to choose on the slider."

    def upscaler(self, checkpoint: str, amount: float | None) -> Upscaler:
        """Return the upscaler for a position of the slider; None: the upscaler of `skipdiff upscale` without options.

        Raises:
            ConfigError: the position is out of range.
        """
        default, knob = self._default(checkpoint), self.knob(checkpoint)
        if amount is None:
            return default
        if not knob["minimum"] <= amount <= knob["maximum"]:
            raise ConfigError(f"the slider must stand in {knob['minimum']} … {knob['maximum']}, got {amount!r}")
        if knob is DETAIL:
            return Upscaler(default.unet, device=self.device, detail=amount)
        return Upscaler(default.unet, device=self.device, levels=even_levels(LEVELS, round(amount)))

    def read(self, path: str | Path) -> Picture:
        """Return a photograph that was uploaded.

        Raises:
            ImageError: the file is not a picture, or the picture is larger than allowed.
        """
        header = read_header(path)
        if header.width * header.height > self.max_pixels:
            raise ImageError(
                f"the photograph has {header.width} x {header.height} pixels, more than the {self.max_pixels} of "
                "--max-pixels; shrink it, or use skipdiff upscale"
            )
        return read_picture(path)

    def enlarge(
        self,
        checkpoint: str,
        picture: Picture,
        amount: float | None,
        seed: int | None,
        progress: Callable[[float], object] = lambda part: None,
    ) -> Enlarged:
        """Enlarge a picture.

        Args:
            checkpoint: a checkpoint of the page.
            picture: the source.
            amount: position of the slider, see `knob`; None: the default of `skipdiff upscale`.
            seed: seed of the noise.
            progress: function that is called with the finished share, 0 … 1.

        Raises:
            SkipDiffError: an argument is out of range, or the result does not fit into memory.
        """
        if seed is None:
            raise ConfigError("the seed is empty; give a whole number of at least 0")
        upscaler = self.upscaler(checkpoint, amount)
        height, width = picture.rgb.shape[:2]
        size = width * upscaler.scale, height * upscaler.scale
        check_room(3, *size)
        done = 0.0

        def advance(part: float) -> None:
            nonlocal done
            done += part
            progress(min(1.0, done / upscaler.expected_nfe))

        ((large, result),) = upscaler.enlarge([picture], [int(seed)], advance)
        before = np.asarray(Image.fromarray(picture.rgb).resize(size, Image.Resampling.BICUBIC))
        summary = f"{width} x {height} → {size[0]} x {size[1]} pixels in {result.seconds:.1f} s. {forwards(result)}"
        if schedules := _details_to_choose(upscaler):
            most = max(sum(schedule.substeps) for schedule in schedules)
            summary += f" {details(result, max(upscaler.unet.substeps, most, 2))}"
        drawing = draw_map(to_uint8(result.sr), result.tiles)
        return Enlarged(large, before, drawing, summary, len(result.tiles))

    def sample(self, name: str, checkpoint: str) -> Picture:
        """Return the centre of one of scikit-image's photographs, shrunk by the factor of the checkpoint.

        Raises:
            ConfigError: there is no such photograph or checkpoint.
        """
        from skimage import data

        scale = self._default(checkpoint).scale
        if name not in PHOTOGRAPHS:
            raise ConfigError(f"unknown sample {name!r}; known are {', '.join(PHOTOGRAPHS)}")
        rgb = getattr(data, name)()[..., :3]
        sides = [min(side, SAMPLE_SIDE) // scale * scale for side in rgb.shape[:2]]
        top, left = ((whole - side) // 2 for whole, side in zip(rgb.shape[:2], sides, strict=True))
        middle = np.ascontiguousarray(rgb[top : top + sides[0], left : left + sides[1]])
        return Picture(to_uint8(downsample(to_tensor(middle)[None], scale)[0]))


def _details_to_choose(upscaler: Upscaler) -> Sequence[Schedule]:
    """Return the schedules among which an agent chooses substeps; empty if there is no such agent."""
    schedules: Sequence[Schedule] = upscaler.process.decisions.schedules
    return schedules if len(schedules) > 1 and not all(schedule.plain for schedule in schedules) else ()


def forwards(result: Upscaled) -> str:
    """Return a sentence on the number of forwards for a result."""
    parts = f"each of {len(result.tiles)} parts" if len(result.tiles) > 1 else "each part"
    fewest, most = (reach(tile.nfe for tile in result.tiles) for reach in (min, max))
    if fewest < most:
        return f"The network ran {fewest} to {most} times for {parts}, {result.nfe:.1f} times on average."
    return f"The network ran {'once' if most == 1 else f'{most} times'} for {parts}."


def details(result: Upscaled, most: int) -> str:
    """Return a sentence on the detail that an agent chose for the parts of a result.

    Args:
        result: the result.
        most: number of steps of the most detail.
    """
    places = (int(len(AMOUNTS) * log(tile.steps) / log(most)) for tile in result.tiles)
    counts = Counter(AMOUNTS[min(place, len(AMOUNTS) - 1)] for place in places)
    first, *others = (word for word in AMOUNTS if counts[word])
    if not others:
        return f"The agent chose {first} detail{' for all of them' if len(result.tiles) > 1 else ''}."
    parts = [f"{first} detail for {counts[first]} part{'s' * (counts[first] > 1)}"]
    parts += [f"{word} for {counts[word]}" for word in others]
    return f"The agent chose {', '.join(parts[:-1])}{',' * (len(parts) > 2)} and {parts[-1]}."


def left_out(path: str | Path) -> str:
    """Return a sentence on the pictures of a file that the page leaves out; empty for a single picture."""
    header = read_header(path)
    if header.frames == 1:
        return ""
    kind = "frames of the animation" if header.animated else "pictures in the file"
    return f"The page enlarges only the first of the {header.frames} {kind}."
