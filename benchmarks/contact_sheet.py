"""A contact sheet of small, noisy and compressed photographs, enlarged, to be judged by eye without an original.

python -m benchmarks.contact_sheet -o sheet.webp [--checkpoint natural-x4 --checkpoint photo-x4]
python -m benchmarks.contact_sheet -o limits.webp --limits
"""

import io
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
from PIL import Image, ImageDraw

from agents.cli.command import Command
from ddpm.pictures.images import to_tensor, to_uint8
from ddpm.util.files import atomic_path
from skipdiff_env.pictures import PHOTOGRAPHS, Rgb, crop
from skipdiff_env.upscaler import Upscaler

# Quality of JPEG, and standard deviation of Gaussian noise in grey levels: twelve cases with two photographs each.
JPEG, NOISE = (30, 50, 70), (5, 10, 20)
COLUMNS, LABEL = 3, 16
# Standard deviation of the noise of a camera in the dark, which exceeds that in the training of photo-x4.
CAMERA = 30


def cases(side: int) -> list[tuple[str, Rgb]]:
    """Return twelve small pictures, uint8 (side, side, 3), by their degradation.

    scikit-image's photographs are shrunk to half their size first, so that a crop shows enough of them.
    """
    from skimage import data

    found = []
    treatments = [("JPEG", strength) for strength in JPEG] + [("noise", strength) for strength in NOISE]
    names = list(PHOTOGRAPHS)
    for place, (kind, strength) in enumerate([each for each in treatments for _ in range(2)]):
        name = names[(place + place // len(names)) % len(names)]
        with Image.fromarray(getattr(data, name)()[..., :3]) as photograph:
            small = crop(np.asarray(photograph.reduce(2)), side, name)
        found.append(
            (f"{name}, {kind} {strength}", _jpeg(small, strength) if kind == "JPEG" else _noisy(small, strength))
        )
    return found


def limits(side: int) -> list[tuple[str, Rgb]]:
    """Return three small pictures that cannot be enlarged well: text, a face of a few pixels, and strong noise.

    Each is uint8 (side, side, 3).
    """
    from skimage import data

    page = np.repeat(data.page()[:, :, None], 3, axis=2)
    face = np.asarray(Image.fromarray(data.astronaut()[:200, 120:320]).reduce(5))
    cat = np.asarray(Image.fromarray(data.chelsea()).reduce(2))
    return [
        ("text", crop(np.asarray(Image.fromarray(page[:, :256]).reduce(2)), side, "page")),
        ("a face", crop(np.asarray(Image.fromarray(face).resize((max(side, 40),) * 2)), side, "astronaut")),
        (f"noise {CAMERA}", _noisy(crop(cat, side, "chelsea"), CAMERA)),
    ]


def _jpeg(picture: Rgb, quality: int) -> Rgb:
    file = io.BytesIO()
    Image.fromarray(picture).save(file, "JPEG", quality=quality)
    with Image.open(file) as image:
        return np.array(image)


def _noisy(picture: Rgb, sigma: int) -> Rgb:
    noise = np.random.default_rng(sigma).normal(0, sigma, picture.shape)
    return (picture + noise).round().clip(0, 255).astype(np.uint8)


def draw(pictures: Sequence[tuple[str, Rgb]], upscalers: dict[str, Upscaler]) -> Image.Image:
    """Return the sheet, with the bicubic enlargement and the result of each upscaler side by side for each case."""
    inputs = [to_tensor(picture) for _, picture in pictures]
    results = [upscaler.upscale(inputs, range(len(inputs))) for upscaler in upscalers.values()]
    height, width = results[0][0].sr.shape[1:]
    block = width * (1 + len(upscalers)) + 8
    rows = -(-len(pictures) // COLUMNS)
    sheet = Image.new("RGB", (block * COLUMNS, (height + LABEL) * rows), "white")
    pen = ImageDraw.Draw(sheet)
    for place, (label, picture) in enumerate(pictures):
        left, top = place % COLUMNS * block, place // COLUMNS * (height + LABEL)
        pen.text((left + 2, top + 2), f"{label}: bicubic, {', '.join(upscalers)}", fill="black")
        plain = Image.fromarray(picture).resize((width, height), Image.Resampling.BICUBIC)
        ours = [Image.fromarray(to_uint8(each[place].sr)) for each in results]
        for i, each in enumerate([plain, *ours]):
            sheet.paste(each, (left + i * width, top + LABEL))
    return sheet


@click.command(cls=Command)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Picture to write.")
@click.option("--checkpoint", multiple=True, default=["natural-x4", "photo-x4"], show_default=True)
@click.option("--side", default=64, show_default=True, help="Side of the inputs, in pixels.")
@click.option("--limits", "hopeless", is_flag=True, help="Draw three pictures that cannot be enlarged well instead.")
def main(out: Path, checkpoint: Sequence[str], side: int, hopeless: bool) -> None:
    """Draw twelve noisy or compressed photographs and their enlargements."""
    sheet = draw((limits if hopeless else cases)(side), {name: Upscaler(name) for name in checkpoint})
    with atomic_path(out) as temporary:
        sheet.save(temporary, format=Image.registered_extensions()[out.suffix.lower()], quality=85)


if __name__ == "__main__":
    main()
