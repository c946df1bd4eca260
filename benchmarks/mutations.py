"""Damage, drawn from a generator: to bytes, to JSON, to safetensors files; and pictures of odd modes and sizes."""

import io
import json
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from benchmarks import tiny
from ddpm.pictures.formats import register_heif

# What stands in for a value of JSON.
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 7, 0.5, -0.0, 1e308, float("nan"), float("inf"), 10**9, 2**31, 2**63, 10**30, "",
    "x", "ddpm", "jump", "cpu", "cuda", "\0", "é" * 300, "../x", [], [1], [0, -1], [3, 2, 1], ["a"], [[1]], {},
    {"a": 1}, "3", "ddim:0.5", [1, 4], 10**400,
)  # fmt: skip
# Words that some setting takes.
WORDS = (
    "v", "eps", "image", "residual", "ddpm", "ddim", "ddim:0.5", "dpmsolver++", "jump", "restart", "ppo", "dqn", "a2c",
    "recurrent-ppo", "supervised", "latent", "dict", "lpips", "niqe", "cosine", "step", "l2", "bf16", "fp16",
    "negative",
)  # fmt: skip
EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**31 - 1, 2**31, 2**32 - 1)
SIDES = (1, 2, 3, 5, 8, 13, 24)
MODES: dict[str, tuple[str, ...]] = {
    "png": ("1", "L", "LA", "P", "RGB", "RGBA", "I;16", "I"),
    "jpg": ("L", "RGB", "CMYK"),
    "webp": ("RGB", "RGBA"),
    "avif": ("RGB", "RGBA"),
    "tif": ("1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "YCbCr", "LAB", "I;16", "I", "F"),
    "gif": ("1", "L", "P", "RGB"),
    "bmp": ("1", "L", "P", "RGB", "RGBA"),
    "ppm": ("1", "L", "RGB", "I"),
    "pfm": ("F",),
    "jp2": ("L", "LA", "RGB", "RGBA", "I;16"),
    "tga": ("1", "L", "LA", "P", "RGB", "RGBA"),
    "mpo": ("RGB",),
    "ico": ("RGB", "RGBA"),
    "pcx": ("1", "L", "P", "RGB"),
    "sgi": ("L", "RGB", "RGBA"),
    "dds": ("RGB", "RGBA"),
    "heic": ("L", "RGB", "RGBA"),
}
PILLOW_NAMES = {"jpg": "JPEG", "tif": "TIFF", "jp2": "JPEG2000", "heic": "HEIF", "pfm": "PPM"}
# Of TIFF; where one does not fit the mode, libtiff ends the whole process.
COMPRESSIONS = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits")
MORE_COMPRESSIONS = {"1": ("group3", "group4"), "L": ("jpeg",), "RGB": ("jpeg",)}
MOVING = ("gif", "webp", "png", "avif")

Rng = np.random.Generator


def pick(rng: Rng, items: Any) -> Any:
    """One of several things of any kind."""
    items = list(items)
    return items[int(rng.integers(len(items)))]


def _flipped(data: bytearray, rng: Rng) -> bytearray:
    for _ in range(int(rng.integers(1, 9))):
        data[int(rng.integers(len(data)))] ^= 1 << int(rng.integers(8))
    return data


def _cut(data: bytearray, rng: Rng) -> bytearray:
    return data[: int(rng.integers(len(data)))]


def _without_a_piece(data: bytearray, rng: Rng) -> bytearray:
    first = int(rng.integers(len(data)))
    del data[first : first + int(rng.integers(1, 64))]
    return data


def _with_a_piece_twice(data: bytearray, rng: Rng) -> bytearray:
    first, place = (int(rng.integers(len(data))) for _ in range(2))
    data[place:place] = data[first : first + int(rng.integers(1, 64))]
    return data


def _overwritten(data: bytearray, rng: Rng) -> bytearray:
    first = int(rng.integers(len(data)))
    length = min(int(rng.integers(1, 33)), len(data) - first)
    data[first : first + length] = pick(rng, (bytes(length), b"\xff" * length, rng.bytes(length)))
    return data


def _with_an_extreme(data: bytearray, rng: Rng) -> bytearray:
    """Puts an extreme number into the header."""
    size, order = pick(rng, (1, 2, 4)), pick(rng, "<>")
    value = pick(rng, EXTREMES) & (256**size - 1)
    first = int(rng.integers(max(1, min(len(data), 96) - size)))
    data[first : first + size] = struct.pack(order + {1: "B", 2: "H", 4: "I"}[size], value)
    return data


def _followed_by_noise(data: bytearray, rng: Rng) -> bytearray:
    return data + rng.bytes(int(rng.integers(1, 64)))


DAMAGES: tuple[Callable[[bytearray, Rng], bytearray], ...] = (
    _flipped, _flipped, _cut, _without_a_piece, _with_a_piece_twice, _overwritten, _with_an_extreme, _with_an_extreme,
    _followed_by_noise,
)  # fmt: skip


def damaged(data: bytes, rng: Rng) -> bytes:
    """The bytes after one to three damages; at times empty."""
    changed = bytearray(data)
    for _ in range(int(rng.integers(1, 4))):
        if changed:
            changed = pick(rng, DAMAGES)(changed, rng)
    return with_checksums(bytes(changed)) if rng.random() < 0.7 else bytes(changed)


def with_checksums(data: bytes) -> bytes:
    """A PNG with right checksums, so that decoders look farther than those; other bytes as they are."""
    if not data.startswith(b"\x89PNG\r\n\x1a\n"):
        return data
    whole, place = bytearray(data), 8
    while place + 12 <= len(whole):
        (length,) = struct.unpack_from(">I", whole, place)
        end = place + 8 + length
        if end + 4 > len(whole):
            break
        struct.pack_into(">I", whole, end, zlib.crc32(whole[place + 4 : end]))
        place = end + 4
    return bytes(whole)


def damaged_json(content: Any, rng: Rng) -> bytes:
    """JSON in which one to three values are odd, missing, unknown or of another kind; or text that is damaged."""
    content = json.loads(json.dumps(content))
    for _ in range(int(rng.integers(1, 4))):
        content = _with_an_odd_value(content, rng)
    text = json.dumps(content, indent=2).encode()
    way = rng.random()
    if way < 0.08:
        return damaged(text, rng)
    return text.decode().encode(pick(rng, ("utf-16", "utf-8-sig"))) if way < 0.1 else text


def _with_an_odd_value(content: Any, rng: Rng) -> Any:
    """Goes down to a random place and changes what is there."""
    if not isinstance(content, dict | list) or not content or rng.random() < 0.03:
        return pick(rng, ODD_VALUES)
    keys = list(content) if isinstance(content, dict) else list(range(len(content)))
    key, way = pick(rng, keys), rng.random()
    if way < 0.1:
        del content[key]
    elif way < 0.15 and isinstance(content, dict):
        content[pick(rng, ("unknown", "", "self", "key"))] = pick(rng, ODD_VALUES)
    elif isinstance(content[key], dict | list) and rng.random() < 0.8:
        content[key] = _with_an_odd_value(content[key], rng)
    elif isinstance(content[key], int | float) and rng.random() < 0.5:
        content[key] = pick(rng, (content[key] * 2, content[key] + 1, content[key] // 2, content[key] * 1000, 1, 2, 4))
    elif isinstance(content[key], str) and rng.random() < 0.4:
        content[key] = pick(rng, WORDS)
    else:
        content[key] = pick(rng, ODD_VALUES)
    return content


def damaged_safetensors(data: bytes, rng: Rng) -> bytes:
    """A file of tensors with a damaged header, or with other numbers."""
    way = rng.random()
    if way < 0.3:
        return damaged(data, rng)
    (length,) = struct.unpack_from("<Q", data)
    header, body = data[8 : 8 + length], bytearray(data[8 + length :])
    if way < 0.6:
        header = damaged_json(json.loads(header), rng)
    elif body:
        first = int(rng.integers(len(body)))
        noise = pick(rng, (rng.bytes(64), b"\xff" * 64, b"\0\0\xc0\x7f" * 16, b"\xff\xff\x7f\x7f" * 16))
        body[first : first + 64] = noise[: len(body) - first]
    return struct.pack("<Q", len(header)) + header + bytes(body)


def _array(rng: Rng, mode: str) -> np.ndarray:
    height, width = pick(rng, SIDES), pick(rng, SIDES)
    if mode == "I;16":
        return rng.integers(0, 2 ** int(rng.integers(1, 17)), (height, width)).astype(np.uint16)
    if mode == "I":
        return rng.integers(0, 2 ** int(rng.integers(1, 17)), (height, width)).astype(np.int32)
    if mode == "F":
        values = rng.normal(0, 10.0 ** int(rng.integers(-3, 6)), (height, width)).astype(np.float32)
        if rng.random() < 0.3:
            values[0, 0] = pick(rng, (np.nan, np.inf, -np.inf))
        return values
    return tiny.pixels(rng, height, width)


def _image(rng: Rng, mode: str) -> Image.Image:
    image = Image.fromarray(_array(rng, mode))
    if mode == "LAB":
        return Image.frombytes("LAB", image.size, image.tobytes())
    return image if image.mode == mode else image.convert(mode)


def _save_options(rng: Rng, ending: str, mode: str) -> dict[str, Any]:
    """Metadata, some of it nonsense, and what a format can be told."""
    options: dict[str, Any] = {}
    if rng.random() < 0.3:
        exif = Image.Exif()
        exif[0x0112] = pick(rng, (1, 3, 6, 8, 0, 99))
        exif[0x010E] = pick(rng, ("text", "ü" * 40))
        options["exif"] = exif if rng.random() < 0.7 else b"Exif\0\0" + rng.bytes(40)
    if rng.random() < 0.2:
        options["icc_profile"] = rng.bytes(int(rng.integers(1, 200)))
    if rng.random() < 0.2 and ending != "png":
        options["xmp"] = pick(rng, (b"<x:xmpmeta/>", rng.bytes(40)))
    if rng.random() < 0.2 and mode in ("L", "P", "RGB", "I;16", "1"):
        options["transparency"] = (1, 2, 3) if mode == "RGB" else 0
    if ending == "tif":
        options["compression"] = pick(rng, (*COMPRESSIONS, *MORE_COMPRESSIONS.get(mode, ())))
    return options


def deep_tiff(rng: Rng) -> bytes:
    """A TIFF of the kinds that Pillow does not read: many bits, colours in floats, planes, several pages."""
    kind = pick(rng, (np.uint8, np.uint16, np.uint32, np.uint64, np.int16, np.float16, np.float32, np.float64))
    samples = int(rng.integers(1, 6))
    shape = (pick(rng, SIDES), pick(rng, SIDES))
    values = (rng.random((*shape, samples)) * pick(rng, (1, 255, 65535))).astype(kind)
    planar = bool(rng.random() < 0.3) and samples > 1
    planes = ("separate" if planar else "contig") if samples > 1 else None
    values = values.transpose(2, 0, 1) if planar else values if samples > 1 else values[..., 0]
    file = io.BytesIO()
    photometric = "rgb" if samples >= 3 else "minisblack"
    tifffile.imwrite(file, values, photometric=photometric, bigtiff=bool(rng.random() < 0.3), planarconfig=planes)
    return file.getvalue()


def picture(rng: Rng) -> tuple[bytes, str]:
    """A file of a random format, mode and size, perhaps animated, and its ending."""
    ending = pick(rng, MODES)
    if ending == "tif" and rng.random() < 0.4:
        return deep_tiff(rng), ending
    if ending == "heic" and not register_heif():
        ending = "png"
    mode = pick(rng, MODES[ending])
    image, options = _image(rng, mode), _save_options(rng, ending, mode)
    if ending in MOVING and rng.random() < 0.3:
        further = [image.copy().rotate(90) for _ in range(int(rng.integers(1, 4)))]
        if ending == "avif":
            options.pop("exif", None)  # Pillow 11.3 crashes on animations that are turned
        options |= {"save_all": True, "append_images": further, "duration": pick(rng, (0, 40)), "loop": 0}
    name = PILLOW_NAMES.get(ending, ending.upper())
    for tried in (options, {}):
        file = io.BytesIO()
        try:
            image.save(file, format=name, **tried)
        except Exception:  # not every mode takes every option, and Pillow raises nearly anything
            continue
        return file.getvalue(), ending
    return b"", ending


def damaged_picture(path: Path, rng: Rng) -> None:
    """Writes a picture of an odd kind, mostly damaged."""
    data, _ = picture(rng)
    path.write_bytes(damaged(data, rng) if data and rng.random() < 0.8 else data)
