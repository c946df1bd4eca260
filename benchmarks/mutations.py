"""Damage, drawn from a generator: to bytes, to JSON, to safetensors files; and pictures of odd modes and sizes."""

import io
import json
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

from benchmarks import tiny
from ddpm.pictures.formats import register_heif

Rng = np.random.Generator

# What stands in for a value of JSON: numbers and texts that are odd, and words that some setting takes.
ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 2, 3, 7, 0.5, -0.0, 1e308, float("nan"), float("inf"), 10**9, 2**31, 2**63, 10**30, "",
    "x", "\0", "é" * 300, "../x", [], [1], [0, -1], [3, 2, 1], ["a"], [[1]], {}, {"a": 1}, "3", [1, 4], 10**400,
    "v", "eps", "image", "residual", "ddpm", "ddim", "ddim:0.5", "dpmsolver++", "jump", "restart", "ppo", "dqn", "a2c",
    "recurrent-ppo", "latent", "dict", "features", "lpips", "niqe", "cosine", "step", "l2", "bf16",
    "fp16", "negative", "cpu", "cuda", "low-rank", "even:2*8", "20*4,9",
)  # fmt: skip
SIDES = (1, 2, 3, 5, 8, 13, 24)
# The modes in which pictures of an ending are written; of TIFF also the compressions.
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
}  # fmt: skip
PILLOW_NAMES = {"jpg": "JPEG", "tif": "TIFF", "jp2": "JPEG2000", "heic": "HEIF", "pfm": "PPM"}
COMPRESSIONS = ("raw", "tiff_lzw", "tiff_adobe_deflate", "packbits")  # others end the process in some modes
MOVING = ("gif", "webp", "png", "avif")


def pick(rng: Rng, items: Any) -> Any:
    """Return one of several things of any kind."""
    items = list(items)
    return items[int(rng.integers(len(items)))]


def damaged(data: bytes, rng: Rng) -> bytes:
    """Return the bytes with one to three pieces cut, doubled, overwritten or inserted, mostly with right checksums."""
    for _ in range(int(rng.integers(1, 4))):
        first = int(rng.integers(min(len(data), pick(rng, (96, 2**62))) + 1))  # often in the header
        length = int(pick(rng, (0, 1, 2, 4, 30, len(data))))
        piece = data[first : first + length]
        flipped = bytes(byte ^ 1 << int(rng.integers(8)) for byte in piece)
        new = (b"", piece * 2, bytes(len(piece)), b"\xff" * len(piece), rng.bytes(len(piece)), flipped, rng.bytes(9))
        data = data[:first] + pick(rng, new) + data[first + length :]
    return with_checksums(data) if rng.random() < 0.7 else data


def with_checksums(data: bytes) -> bytes:
    """Return a PNG with right checksums, so that decoders look farther than those; other bytes as they are."""
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
    """Return JSON in which one to three values are odd, missing, unknown or of another kind; or damaged text."""
    content = json.loads(json.dumps(content))
    for _ in range(int(rng.integers(1, 4))):
        content = _with_an_odd_value(content, rng)
    text = json.dumps(content, indent=2)
    way = rng.random()
    if way < 0.08:
        return damaged(text.encode(), rng)
    return text.encode(pick(rng, ("utf-16", "utf-8-sig")) if way < 0.1 else "utf-8")


def _with_an_odd_value(content: Any, rng: Rng) -> Any:
    """Go down to a random place and change what is there."""
    if not isinstance(content, dict | list) or not content or rng.random() < 0.03:
        return pick(rng, ODD_VALUES)
    key, way = pick(rng, content if isinstance(content, dict) else range(len(content))), rng.random()
    value = content[key]
    if way < 0.1:
        del content[key]
    elif way < 0.15 and isinstance(content, dict):
        content[pick(rng, ("unknown", "", "self", "key"))] = pick(rng, ODD_VALUES)
    elif isinstance(value, dict | list) and rng.random() < 0.8:
        content[key] = _with_an_odd_value(value, rng)
    elif isinstance(value, int | float) and rng.random() < 0.5:
        content[key] = pick(rng, (value * 2, value + 1, value // 2, value * 1000, 1, 2, 4))
    else:
        content[key] = pick(rng, ODD_VALUES)
    return content


def damaged_safetensors(data: bytes, rng: Rng) -> bytes:
    """Return a file of tensors with a damaged header, or with other numbers."""
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


def _image(rng: Rng, mode: str) -> Image.Image:
    """Return a small picture of a mode."""
    shape = (pick(rng, SIDES), pick(rng, SIDES))
    if mode in ("I;16", "I"):
        values = rng.integers(0, 2 ** int(rng.integers(1, 17)), shape)
        return Image.fromarray(values.astype(np.uint16 if mode == "I;16" else np.int32))
    if mode == "F":
        numbers = rng.normal(0, 10.0 ** int(rng.integers(-3, 6)), shape).astype(np.float32)
        numbers[0, 0] = pick(rng, (0, np.nan, np.inf, -np.inf))
        return Image.fromarray(numbers)
    image = Image.fromarray(tiny.pixels(rng, *shape))
    return Image.frombytes("LAB", image.size, image.tobytes()) if mode == "LAB" else image.convert(mode)


def _save_options(rng: Rng, ending: str, mode: str, image: Image.Image) -> dict[str, Any]:
    """Return metadata, some of it nonsense, and what a format can be told."""
    options: dict[str, Any] = {}
    if rng.random() < 0.3:
        exif = Image.Exif()
        exif[0x0112] = pick(rng, (1, 3, 6, 8, 0, 99))
        options["exif"] = exif if rng.random() < 0.7 else b"Exif\0\0" + rng.bytes(40)
    if rng.random() < 0.2:
        options["icc_profile"] = rng.bytes(int(rng.integers(1, 200)))
    if rng.random() < 0.2 and ending != "png":
        options["xmp"] = pick(rng, (b"<x:xmpmeta/>", rng.bytes(40)))
    if rng.random() < 0.2 and mode in ("L", "P", "RGB", "I;16", "1"):
        options["transparency"] = (1, 2, 3) if mode == "RGB" else 0
    if ending == "tif":
        options["compression"] = pick(rng, COMPRESSIONS)
    if ending in MOVING and rng.random() < 0.3:
        further = [image.copy().rotate(90) for _ in range(int(rng.integers(1, 4)))]
        options |= {"save_all": True, "append_images": further, "duration": pick(rng, (0, 40)), "loop": 0}
        if ending == "avif":
            options.pop("exif", None)  # Pillow 11.3 crashes on animations that are turned
    return options


def deep_tiff(rng: Rng) -> bytes:
    """Return a TIFF of the kinds that Pillow does not read: many bits, colours in floats, planes."""
    kind = pick(rng, (np.uint8, np.uint16, np.uint32, np.uint64, np.int16, np.float16, np.float32, np.float64))
    samples = int(rng.integers(1, 6))
    values = rng.random((pick(rng, SIDES), pick(rng, SIDES), samples)) * pick(rng, (1, 255, 65535))
    planes = None if samples == 1 else pick(rng, ("separate", "contig"))
    values = values[..., 0] if samples == 1 else values.transpose(2, 0, 1) if planes == "separate" else values
    file = io.BytesIO()
    photometric, big = "rgb" if samples >= 3 else "minisblack", bool(rng.random() < 0.3)
    tifffile.imwrite(file, values.astype(kind), photometric=photometric, bigtiff=big, planarconfig=planes)
    return file.getvalue()


def picture(rng: Rng) -> bytes:
    """Return a file of a random format, mode and size, perhaps animated."""
    ending = pick(rng, MODES)
    if ending == "tif" and rng.random() < 0.4:
        return deep_tiff(rng)
    if ending == "heic" and not register_heif():
        ending = "png"
    mode = pick(rng, MODES[ending])
    image = _image(rng, mode)
    for options in (_save_options(rng, ending, mode, image), {}):
        file = io.BytesIO()
        try:
            image.save(file, format=PILLOW_NAMES.get(ending, ending.upper()), **options)
        except Exception:  # not every mode takes every option, and Pillow raises nearly anything
            continue
        return file.getvalue()
    return b""


def damaged_picture(path: Path, rng: Rng) -> None:
    """Write a picture of an odd kind, mostly damaged."""
    data = picture(rng)
    path.write_bytes(damaged(data, rng) if rng.random() < 0.8 else data)
