"""Grey levels and transparency as files store them: numbers of any range and width become 8 bits."""

import logging
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from ddpm.util.errors import ImageError, one_line

# Share of the pixels that may be brighter than white: highlights, and defective pixels.
OUTLIERS = 0.01


def stored_mode(image: Image.Image) -> str:
    """Return Pillow's name for the pixel format in the file of a picture that is not loaded yet.

    It is "" if the format is not known.
    """
    tiles = getattr(image, "tile", None)
    if not tiles:
        return ""
    arguments = tiles[0][3]
    return str(arguments[0] if isinstance(arguments, tuple) and arguments else arguments)


def _white(values: NDArray[np.float64], whole: bool) -> float:
    """Return the value of white in a picture whose file does not contain it.

    It is the smallest of the usual ranges 1, 2⁸ - 1, 2¹² - 1, …, 2³² - 1 that holds all but a hundredth of the pixels,
    so that a single highlight or a defective pixel does not turn the rest black. Floats that are not whole may exceed
    it somewhat, as they do after sharpening. Floats up to 4 are still taken for a range of 0 … 1 with highlights.
    """
    if not values.size:
        return 1.0
    brightest = float(np.quantile(values, 1 - OUTLIERS, method="lower"))
    whole = whole or bool((values == np.round(values)).all())
    if brightest <= (1 if whole else 4):
        # whole numbers beyond 1 are levels, however dark the picture is
        return 255.0 if whole and values.max() > 1 else 1.0
    slack = 1.0 if whole else 1.25
    widths = (2.0**bits - 1 for bits in (8, 12, 16, 20, 24, 28, 31, 32))
    return next((width for width in widths if brightest <= slack * width), brightest)


def to_8_bit(values: NDArray[np.generic], white: float | None = None) -> NDArray[np.uint8]:
    """Convert numbers of any range and width to 8 bits; NaN and values below 0 become black, infinity becomes white.

    Args:
        values: numbers, of any shape.
        white: the value of white; None: determined from the values.
    """
    with np.errstate(invalid="ignore"):  # raised for signalling NaN
        numbers = np.asarray(values, dtype=np.float64)
    if white is None:
        white = _white(numbers[np.isfinite(numbers)], whole=values.dtype.kind in "iub")
    numbers = np.nan_to_num(numbers, nan=0.0, posinf=white, neginf=0.0)
    return np.round(numbers.clip(0, white) * (255 / white)).astype(np.uint8)


def grey_levels(image: Image.Image, stored: str) -> NDArray[np.uint8]:
    """Return a picture of one of Pillow's deep modes, I, I;16 or F, converted to 8 bits, (H, W).

    Args:
        image: the loaded picture.
        stored: the pixel format that `stored_mode` returns.
    """
    values = np.asarray(image)
    white: float | None = None
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PNG", "PPM")):
        white = 65535.0  # the range of these formats
    elif stored in ("I;16S", "I;16BS"):
        white = 32767.0
    elif stored == "I;32N":  # unsigned, unlike Pillow's mode I
        values = values.view(np.uint32)
    levels = to_8_bit(values, white)
    tags = getattr(image, "tag_v2", {})
    return 255 - levels if tags.get(262) == 0 else levels  # TIFF: 0 is white


def keyed_alpha(image: Image.Image, stored: str) -> NDArray[np.uint8] | None:
    """Return the alpha channel of a picture in which one grey level or colour means transparent.

    It is None if there is no such colour.

    Args:
        image: the loaded picture.
        stored: the pixel format that `stored_mode` returns.
    """
    key = image.info.get("transparency")
    if isinstance(key, int) and (image.mode in ("1", "L") or image.mode.startswith("I")):
        values = np.asarray(image)
        if image.mode == "1":
            return np.where(values == bool(key), 0, 255).astype(np.uint8)
        # PNG stores the key in the bit depth of the file
        return np.where(values == key * {"L;2": 85, "L;4": 17}.get(stored, 1), 0, 255).astype(np.uint8)
    if isinstance(key, tuple) and image.mode == "RGB":
        if stored.startswith("RGB;16"):
            key = tuple(value >> 8 for value in key)
        return np.where((np.asarray(image) == np.array(key)).all(-1), 0, 255).astype(np.uint8)
    return None


def deep_tiff(path: str | Path) -> Image.Image | None:
    """Read the first page of a TIFF that Pillow cannot hold, such as colours in floats or grey in 64 bits.

    Args:
        path: any file.

    Returns:
        L, LA, RGB or RGBA with colour profile and orientation; None if the file is not a TIFF.

    Raises:
        ImageError: the TIFF is damaged, too large, or of a kind that is not supported.
    """
    with Path(path).open("rb") as file:
        if file.read(4) not in (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"):
            return None
    import tifffile

    tifffile.logger().setLevel(logging.CRITICAL)  # its messages are in the error already
    try:
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            pixels = page.imagewidth * page.imagelength
            if Image.MAX_IMAGE_PIXELS is not None and pixels > Image.MAX_IMAGE_PIXELS:
                raise Image.DecompressionBombError
            samples = page.samplesperpixel
            colours = {"MINISBLACK": 1, "MINISWHITE": 1, "RGB": 3}.get(getattr(page.photometric, "name", ""), 0)
            values = page.asarray()
            tags = {code: page.tags[code].value for code in (274, 34675) if code in page.tags}
            inverted = getattr(page.photometric, "name", "") == "MINISWHITE"
        if not colours or samples < colours or values.dtype.kind not in "iuf":
            raise ValueError(f"{values.dtype} pixels of {samples} samples")
        values = values.reshape(-1, *values.shape[-2:]) if samples > 1 and values.shape[-1] != samples else values
        if samples > 1 and values.shape[-1] != samples:  # one plane after the other
            values = values.transpose(1, 2, 0)
        values = values.reshape(page.imagelength, page.imagewidth, samples)
    except Image.DecompressionBombError:
        raise
    except Exception as error:  # tifffile raises nearly anything on damaged files and missing codecs
        raise ImageError(f"{path} is a TIFF that cannot be read ({one_line(error)})") from None
    narrow = values.dtype.kind in "iu" and values.dtype.itemsize <= 2
    white = float(np.iinfo(values.dtype).max) if narrow else None
    levels = to_8_bit(values[..., :colours], white)
    if inverted:
        levels = 255 - levels
    image = Image.fromarray(levels[..., 0] if colours == 1 else np.ascontiguousarray(levels))
    if samples > colours:
        image.putalpha(Image.fromarray(to_8_bit(values[..., colours], white)))
    if isinstance(tags.get(34675), bytes):
        image.info["icc_profile"] = tags[34675]
    if 274 in tags:
        image.getexif()[274] = int(tags[274])
    return image
