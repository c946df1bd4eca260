"""Drawings of decisions: a picture of an episode, and a map of the work done for each tile of a picture."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ddpm.util.errors import ConfigError
from skipdiff_env.rules import Action

if TYPE_CHECKING:
    from skipdiff_env.upscaler import Tile

METADATA: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 2}
PANEL = 128  # smallest side of a panel, so that its heading fits
MARGIN = 8
HEADING = 16
STRIP = 24
BACKGROUND, EMPTY, TEXT = (24, 24, 28), (48, 48, 54), (235, 235, 235)
COLOURS = {Action.DENOISE: (46, 125, 80), Action.SKIP: (176, 108, 24)}


def check_render_mode(render_mode: str | None) -> None:
    """Raise ConfigError for a mode that the environments do not have."""
    if render_mode is not None and render_mode not in METADATA["render_modes"]:
        raise ConfigError(f"render_mode must be rgb_array or None, got {render_mode!r}")


def draw_frame(
    panels: Mapping[str, NDArray[np.uint8] | None], actions: Sequence[Action], first_step: int
) -> NDArray[np.uint8]:
    """Draw panels side by side above a strip with one cell for each decision.

    Args:
        panels: heading → square picture (H, H, 3) of any size; None leaves the panel empty.
        actions: decisions so far.
        first_step: diffusion step of the first decision; that of the last is 2.

    Returns:
        uint8 (height, width, 3); both sides are even, as video codecs require.
    """
    largest = max(len(picture) for picture in panels.values() if picture is not None)
    side = largest * -(-PANEL // largest)
    side += side % 2
    width = len(panels) * (side + MARGIN) + MARGIN
    image = Image.new("RGB", (width, HEADING + side + STRIP + 3 * MARGIN), BACKGROUND)
    draw = ImageDraw.Draw(image)
    for i, (heading, picture) in enumerate(panels.items()):
        left = MARGIN + i * (side + MARGIN)
        draw.text((left, MARGIN // 2), heading, fill=TEXT)
        corner = (left, HEADING + MARGIN // 2)
        if picture is None:
            draw.rectangle((*corner, corner[0] + side - 1, corner[1] + side - 1), fill=EMPTY)
        else:
            image.paste(Image.fromarray(picture).resize((side, side), Image.Resampling.NEAREST), corner)
    top, cells = image.height - STRIP - MARGIN, first_step - 1
    edges = np.linspace(MARGIN, width - MARGIN, cells + 1).round().astype(int)
    for i in range(cells):
        done = i < len(actions)
        box = (int(edges[i]), top, int(edges[i + 1]) - 2, top + STRIP - 1)
        draw.rectangle(box, fill=COLOURS[actions[i]] if done else EMPTY)
        room = box[2] - box[0]
        if room >= 16:
            name = f" {actions[i].name.lower()}" if done and room >= 68 else ""
            draw.text((box[0] + 4, top + 6), f"{first_step - i}{name}", fill=TEXT)
    return np.asarray(image)


def draw_outcomes(rewards: NDArray[np.float64], names: Sequence[str], chosen: int | None) -> NDArray[np.uint8]:
    """Draw the rewards of several schedules for one crop and noise as bars; a higher bar is a higher reward.

    Args:
        rewards: rewards (schedules,).
        names: the text form of each schedule.
        chosen: index of the schedule that the episode followed; None: it has not ended.

    Returns:
        uint8 (height, width, 3); both sides are even, as video codecs require.
    """
    side = 2 * PANEL
    image = Image.new("RGB", (2 * side, side + 2 * HEADING), BACKGROUND)
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, MARGIN // 2), f"rewards, {rewards.min():.3f} to {rewards.max():.3f}", fill=TEXT)
    edges = np.linspace(MARGIN, image.width - MARGIN, len(rewards) + 1).round().astype(int).tolist()
    heights = (rewards - rewards.min()) / max(float(np.ptp(rewards)), 1e-12) * (side - 2 * MARGIN) + 2
    for i, (left, right) in enumerate(pairwise(edges)):
        box = (left, HEADING + side - int(heights[i]), max(left, right - 2), HEADING + side)
        draw.rectangle(box, fill=COLOURS[Action.DENOISE if i == chosen else Action.SKIP])
        if draw.textlength(names[i]) < right - left:
            draw.text((left, HEADING + side + 2), names[i], fill=TEXT)
    return np.asarray(image)


def draw_map(picture: NDArray[np.uint8], tiles: Sequence["Tile"]) -> NDArray[np.uint8]:
    """Draw the number of steps whose work was done for each tile as colours over the grey picture, with a legend.

    Args:
        picture: the result, (H, W, 3).
        tiles: the tiles of `skipdiff_env.upscaler.Upscaled`; where two overlap, each is drawn up to the middle.

    Returns:
        uint8, (H + legend, at least W, 3); the picture is in the upper left corner. The colours range from the fewest
        steps of a tile to the most.
    """
    import matplotlib

    numbers = [tile.steps for tile in tiles]
    steps = range(min(numbers), max(numbers) + 1)
    scale = matplotlib.colormaps["viridis"](np.linspace(0, 1, len(steps)), bytes=True)[:, :3]
    colours = dict(zip(steps, map(tuple, scale.tolist()), strict=True))
    across = _apart((tile.box.left, tile.box.right) for tile in tiles)
    down = _apart((tile.box.top, tile.box.bottom) for tile in tiles)
    height, width = picture.shape[:2]
    unit = _unit(width)
    image = Image.new("RGB", map_size(width, height), BACKGROUND)
    image.paste(Image.fromarray(picture).convert("L"))
    draw = ImageDraw.Draw(image)
    for tile in tiles:
        (left, right), (top, bottom) = across[tile.box.left, tile.box.right], down[tile.box.top, tile.box.bottom]
        part = image.crop((left, top, right, bottom))
        image.paste(Image.blend(part, Image.new("RGB", part.size, colours[tile.steps]), 0.5), (left, top))
        size = min(unit, (right - left) // 3, (bottom - top) // 2)
        if size >= 8:
            _number(draw, tile.steps, ((left + right) // 2, (top + bottom) // 2), size)
    draw.text((unit // 2, height + unit // 4), "Steps done in each tile", TEXT, font_size=0.8 * unit)
    edges = np.linspace(0, image.width, len(colours) + 1).round().astype(int).tolist()
    for (number, colour), (left, right) in zip(colours.items(), pairwise(edges), strict=True):
        draw.rectangle((left, height + 3 * unit // 2, right - 1, image.height - 1), colour)
        if right - left >= unit:
            _number(draw, number, ((left + right) // 2, height + 9 * unit // 4), 0.7 * unit)
    return np.asarray(image)


def map_size(width: int, height: int) -> tuple[int, int]:
    """Return width and height, in pixels, of the map that `draw_map` makes for a result of this size."""
    return max(width, 16 * _unit(width)), height + 3 * _unit(width)


def _unit(width: int) -> int:
    """Return the height of the largest letters on the map of a result of this width, in pixels."""
    return max(18, width // 50)


def _number(draw: ImageDraw.ImageDraw, number: int, place: tuple[int, int], size: float) -> None:
    """Write a number centred at a place, readable on every colour."""
    draw.text(place, str(number), TEXT, anchor="mm", font_size=size, stroke_width=1, stroke_fill=BACKGROUND)


def _apart(spans: Iterable[tuple[int, int]]) -> dict[tuple[int, int], tuple[int, int]]:
    """Return overlapping spans along a side, each with its part if neighbours meet in the middle of the overlap."""
    rising = sorted(set(spans))
    cuts = [rising[0][0], *((end + start) // 2 for (_, end), (start, _) in pairwise(rising)), rising[-1][1]]
    return dict(zip(rising, pairwise(cuts), strict=True))
