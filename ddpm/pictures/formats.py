"""Picture formats: the endings that are read and written, and the content that each format can hold."""

import re
import struct
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

from PIL import Image, PngImagePlugin

from ddpm.util.errors import ImageError

HEIF = frozenset({".heic", ".heif", ".hif"})
# Endings of pictures inside folders. A file that is named directly may have any ending.
SUFFIXES = HEIF | {
    ".png", ".apng", ".jpg", ".jpeg", ".jpe", ".jfif", ".mpo", ".webp", ".avif", ".avifs", ".tif", ".tiff", ".gif",
    ".bmp", ".dib", ".ppm", ".pgm", ".pbm", ".pnm", ".pfm", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".tga",
    ".qoi",
}  # fmt: skip


@dataclass(frozen=True)
class Format:
    """The capabilities of an output format.

    Attributes:
        name: Pillow's name of the format.
        modes: Pillow's modes that it holds.
        max_side: its largest width and height.
        metadata: whether it has a place for EXIF, XMP and a colour profile.
        animated: whether it can hold several frames with durations.
    """

    name: str
    modes: tuple[str, ...] = ("L", "LA", "RGB", "RGBA")
    max_side: int = 2**31 - 1
    metadata: bool = False
    animated: bool = False


_PNG = Format("PNG", metadata=True, animated=True)
_JPEG = Format("JPEG", ("L", "RGB"), 65_500, metadata=True)
_TIFF = Format("TIFF", metadata=True)
# larger sides can be written, but libavif, and so Pillow and browsers, do not read them by default
_AVIF = Format("AVIF", ("RGB", "RGBA"), 32_768, metadata=True, animated=True)
_PPM = Format("PPM", ("L", "RGB"))
OUTPUTS = {
    ".png": _PNG,
    ".apng": _PNG,
    **dict.fromkeys((".jpg", ".jpeg", ".jpe", ".jfif"), _JPEG),
    ".webp": Format("WEBP", ("RGB", "RGBA"), 16_383, metadata=True, animated=True),
    ".avif": _AVIF,
    ".tif": _TIFF,
    ".tiff": _TIFF,
    ".gif": Format("GIF", ("L", "RGB", "RGBA"), 65_535, animated=True),
    ".bmp": Format("BMP", ("L", "RGB")),  # few programs look for alpha there
    ".ppm": _PPM,
    ".pnm": _PPM,
    ".pgm": Format("PPM", ("L",)),
    ".jp2": Format("JPEG2000"),
    ".tga": Format("TGA", max_side=65_535),
}

# Tags about the storage of the pixels in the source file, or about their places on the Earth.
_STRUCTURE = frozenset({
    *range(254, 260), *range(262, 267), 273, *range(277, 282), 284, *range(288, 294), 297, 301, *range(317, 326), 330,
    *range(332, 348), *range(512, 522), *range(529, 533), 700, 33550, 33723, 33922, 34264, 34377, 34675,
    *range(34735, 34738), 42112, 42113, 50838, 50839,
})  # fmt: skip
# The largest density that a JPEG holds; the length from which texts are compressed in PNG.
LARGEST_DPI, LONG_TEXT = 65_535, 1024
_ORIENTATION, _EXIF_IFD, _MAKER_NOTE, _WIDTH, _HEIGHT = 0x0112, 0x8769, 0x927C, 0xA002, 0xA003
_JPEG_SEGMENT = 65_533
_JPEG_XMP = _JPEG_SEGMENT - 29
_JPEG_ICC = 255 * (_JPEG_SEGMENT - 14)

# Pillow refuses PNG files whose text or profile unpacks to more than 1 MB; XMP of photo editors and profiles of
# printers can be larger.
PngImagePlugin.MAX_TEXT_CHUNK = max(PngImagePlugin.MAX_TEXT_CHUNK, 16 * 2**20)


def output_format(path: Path) -> Format:
    """Return the format of a file's ending.

    Raises:
        ImageError: the ending is not that of a format that can be written.
    """
    known = OUTPUTS.get(path.suffix.lower())
    if known is None:
        raise ImageError(
            f"cannot write {path}: unknown file extension {path.suffix!r}; known are {', '.join(sorted(OUTPUTS))}"
        )
    return known


def check_output(path: Path, width: int, height: int) -> None:
    """Raise ImageError if the ending of `path` is unknown, or its format cannot hold a picture of this size."""
    wanted = output_format(path)
    if max(width, height) > wanted.max_side:
        raise ImageError(
            f"cannot write {path}: {wanted.name} holds at most {wanted.max_side} pixels a side, and this picture "
            f"would have {width} x {height}; take another format, such as png"
        )


@dataclass(frozen=True)
class Details:
    """The metadata of a file other than EXIF, XMP and colour profile.

    Attributes:
        dpi: pixels per inch, across and down; None if the file does not contain it.
        texts: the text chunks of a PNG, and as "Comment" the comment of a JPEG.
        colour: the chunks of a PNG about the meaning of its numbers: gAMA, cHRM and sRGB.
    """

    dpi: tuple[float, float] | None = None
    texts: Mapping[str, str] = field(default_factory=dict)
    colour: Mapping[bytes, bytes] = field(default_factory=dict)


def details_of(image: Image.Image) -> Details:
    """Return the details of a loaded PNG or JPEG; damaged ones are left out."""
    info: dict[Any, Any] = image.info
    texts: dict[str, str] = {}
    colour: dict[bytes, bytes] = {}
    dpi = None
    if image.format == "PNG":  # all strings in Pillow's info are texts; some are kept elsewhere
        elsewhere = ("XML:com.adobe.xmp", "Raw profile type", "Thumb::")
        texts = {k: v for k, v in info.items() if isinstance(v, str) and not k.startswith(elsewhere)}
    elif image.format == "JPEG" and isinstance(info.get("comment"), bytes):
        texts = {"Comment": info["comment"].decode("utf-8", "replace")}
    with suppress(TypeError, ValueError, OverflowError, ZeroDivisionError, struct.error):
        across, down = map(float, info.get("dpi", ()))
        dpi = (across, down) if 0 < across <= LARGEST_DPI and 0 < down <= LARGEST_DPI else None
    with suppress(TypeError, ValueError, OverflowError, struct.error):
        if "gamma" in info:
            colour[b"gAMA"] = struct.pack(">I", round(info["gamma"] * 100_000))
        if "chromaticity" in info:
            colour[b"cHRM"] = struct.pack(">8I", *(round(value * 100_000) for value in info["chromaticity"]))
        if "srgb" in info:
            colour[b"sRGB"] = struct.pack(">B", info["srgb"])
    return Details(dpi, texts, colour)


@cache
def register_heif() -> bool:
    """Register pillow-heif with Pillow, so that it reads HEIC; return whether pillow-heif is installed."""
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return False
    register_heif_opener(thumbnails=False)
    return True


def clean_exif(exif: Image.Exif) -> bytes | None:
    """Return EXIF for an upright picture with other pixels: orientation 1, without thumbnail and storage tags."""
    if _ORIENTATION in exif:
        exif[_ORIENTATION] = 1
    for tag in [tag for tag in exif if tag in _STRUCTURE]:
        del exif[tag]
    try:
        return exif.tobytes() if len(exif) else None
    except Exception:  # Pillow raises nearly anything on values that do not fit their types
        return None


def clean_xmp(xmp: Any) -> bytes | None:
    """Return XMP for an upright picture: orientation 1, no thumbnails."""
    if isinstance(xmp, tuple):
        xmp = b"".join(part if isinstance(part, bytes) else bytes([part]) for part in xmp)
    if isinstance(xmp, str):
        xmp = xmp.encode()
    if not isinstance(xmp, bytes) or not xmp:
        return None
    xmp = re.sub(rb"(tiff:Orientation=[\"'])\d", rb"\g<1>1", xmp)
    xmp = re.sub(rb"(<tiff:Orientation>)\d", rb"\g<1>1", xmp)
    return re.sub(rb"<(xmp|xap):Thumbnails>.*?</\1:Thumbnails>", b"", xmp, flags=re.DOTALL)


def _sized_exif(exif: bytes, size: tuple[int, int], limit: int | None) -> bytes | None:
    """Return EXIF with the new size, if it contains a size.

    The maker's note is left out if the result exceeds `limit` bytes; it is None if that does not suffice.
    """
    loaded = Image.Exif()
    loaded.load(exif)
    inner = loaded.get_ifd(_EXIF_IFD)
    for tag, side in zip((_WIDTH, _HEIGHT), size, strict=True):
        if tag in inner:
            inner[tag] = side
    data = loaded.tobytes()
    if limit is not None and len(data) > limit:
        inner.pop(_MAKER_NOTE, None)
        data = loaded.tobytes()
    return data if limit is None or len(data) <= limit else None


def suited(image: Image.Image, wanted: Format) -> tuple[Image.Image, list[str]]:
    """Return the image in a mode that the format holds, and notes about what was lost."""
    notes = []
    if image.mode in ("LA", "RGBA") and "RGBA" not in wanted.modes:
        alpha = image.getchannel("A")
        if alpha.getextrema() != (255, 255):
            notes.append(f"{wanted.name} has no transparency: flattened on white")
        white = Image.new(image.mode[:-1], image.size, "white")
        white.paste(image.convert(white.mode), mask=alpha)
        image = white
    if image.mode == "RGB" and "RGB" not in wanted.modes:
        notes.append("this ending is for grey pictures: colour left out; take .ppm for colour")
        image = image.convert("L")
    if image.mode not in wanted.modes:
        image = image.convert({"LA": "RGBA", "L": "RGB"}[image.mode])
    return image, notes


def _png_chunks(xmp: bytes | None, details: Details) -> PngImagePlugin.PngInfo:
    """Return the chunks of a PNG that Pillow does not write by default."""
    chunks = PngImagePlugin.PngInfo()
    if xmp:
        chunks.add_itxt("XML:com.adobe.xmp", xmp.decode("utf-8", "replace"))
    for chunk, value in details.colour.items():
        chunks.add(chunk, value)
    for name, text in details.texts.items():
        with suppress(ValueError):  # a name that PNG does not allow
            chunks.add_text(name, text, zip=len(text) > LONG_TEXT)
    return chunks


def metadata(
    wanted: Format, size: tuple[int, int], exif: bytes | None, xmp: bytes | None, icc: bytes | None, details: Details
) -> tuple[dict[str, Any], list[str]]:
    """Return arguments of Pillow's `save` for metadata, and the names of the metadata that the format cannot hold."""
    jpeg = wanted.name == "JPEG"
    sized = None
    if exif and wanted.metadata:
        with suppress(OSError, ValueError, SyntaxError, TypeError, KeyError, struct.error):
            sized = _sized_exif(exif, size, _JPEG_SEGMENT if jpeg else None)
    kept_xmp = xmp if xmp and wanted.metadata and (not jpeg or len(xmp) <= _JPEG_XMP) else None
    kept_icc = icc if icc and wanted.metadata and (not jpeg or len(icc) <= _JPEG_ICC) else None
    has = {"EXIF": (exif, sized), "XMP": (xmp, kept_xmp), "the colour profile": (icc, kept_icc)}
    left_out = [name for name, (given, kept) in has.items() if given and not kept]
    arguments: dict[str, Any] = {"icc_profile": kept_icc}
    if sized:
        arguments["exif"] = sized
    if details.dpi and wanted.name in ("PNG", "JPEG"):
        arguments["dpi"] = tuple(max(1, round(each)) for each in details.dpi) if jpeg else details.dpi
    if jpeg and "Comment" in details.texts:
        arguments["comment"] = details.texts["Comment"].encode()[:_JPEG_SEGMENT]
    if wanted.name == "PNG":
        arguments["pnginfo"] = _png_chunks(kept_xmp, details)
    elif kept_xmp and wanted.name == "TIFF":
        tags = Image.Exif()
        if sized:
            tags.load(sized)
        tags[700] = kept_xmp
        arguments["exif"] = tags
    elif kept_xmp:
        arguments["xmp"] = kept_xmp
    return arguments, left_out
