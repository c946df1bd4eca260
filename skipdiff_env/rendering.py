"""A picture of an episode: what went in, what the net sees, and what was decided."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from ddpm.errors import ConfigError
from skipdiff_env.rules import Action

METADATA: dict[str, Any] = {"render_modes": ["rgb_array"], "render_fps": 2}
PANEL = 128  # smallest side of a panel, so that its heading fits
MARGIN = 8
HEADING = 16
STRIP = 24
BACKGROUND, EMPTY, TEXT = (24, 24, 28), (48, 48, 54), (235, 235, 235)
COLOURS = {Action.DENOISE: (46, 125, 80), Action.SKIP: (176, 108, 24)}


def check_render_mode(render_mode: str | None) -> None:
    """Raises ConfigError for a mode that the environments do not have."""
    if render_mode is not None and render_mode not in METADATA["render_modes"]:
        raise ConfigError(f"render_mode must be rgb_array or None, got {render_mode!r}")


def draw_frame(
    panels: Mapping[str, NDArray[np.uint8] | None], actions: Sequence[Action], first_step: int
) -> NDArray[np.uint8]:
    """Panels side by side over a strip with one cell for each decision.

    Args:
        panels: heading → square picture (H, H, 3) of any size; None leaves the panel empty.
        actions: decisions so far.
        first_step: diffusion step of the first decision; the last is at step 2.

    Returns:
        uint8 (height, width, 3), both sides even, as video codecs want them.
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
