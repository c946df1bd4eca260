"""Finding, reading and writing pictures."""

import glob
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from ddpm.errors import ImageError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm", ".pbm"})


@dataclass
class Picture:
    """A decoded picture, upright.

    Attributes:
        rgb: uint8, (H, W, 3); a grey picture has three equal channels.
        alpha: uint8, (H, W), or None.
        grey: whether the file holds no colour.
        icc_profile: the file's colour profile, or None.
    """

    rgb: NDArray[np.uint8]
    alpha: NDArray[np.uint8] | None = None
    grey: bool = False
    icc_profile: bytes | None = None


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """Expands files, folders (all pictures below them) and glob patterns, in a stable order and without repeats.

    A file that is named outright is kept whatever its ending is.

    Raises:
        ImageError: a path does not exist, a pattern matches nothing, or a folder holds no picture.
    """
    found: dict[Path, None] = {}
    for given in paths:
        path = Path(given)
        if path.is_dir():
            below = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
            if not below:
                raise ImageError(f"no picture in the folder {path}; looked for {', '.join(sorted(SUFFIXES))}")
        elif path.exists():
            below = [path]
        elif glob.has_magic(str(given)):
            below = sorted(p for p in map(Path, glob.glob(str(given), recursive=True)) if p.is_file())
            if not below:
                raise ImageError(f"no file matches the pattern {given}")
        else:
            raise ImageError(f"no such file or folder: {path}")
        found.update(dict.fromkeys(below))
    return list(found)


def _to_8_bit(image: Image.Image) -> Image.Image:
    """Brings 16- and 32-bit grey modes, which Pillow would clip, to 8 bits."""
    if not (image.mode.startswith("I") or image.mode == "F"):
        return image
    values = np.nan_to_num(np.asarray(image).astype(np.float64))
    # floats are taken to lie in 0 … 1 if they fit there; integers are 16 bits wide, as in PNG and TIFF
    white = 65535.0 if image.mode != "F" else 1.0 if values.max(initial=0) <= 1 else 255.0
    return Image.fromarray(np.round(values.clip(0, white) / white * 255).astype(np.uint8))


def from_pil(image: Image.Image) -> Picture:
    """Takes a Pillow picture of any mode, applies its EXIF orientation and gives 8 bits a channel."""
    icc_profile = image.info.get("icc_profile")
    image = _to_8_bit(ImageOps.exif_transpose(image))
    if image.mode in ("CMYK", "LAB", "HSV", "YCbCr"):
        icc_profile = None  # it describes the file's own colour space, which the result is not in
    grey = image.mode in ("1", "L", "LA", "La")
    if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
        rgba = np.array(image.convert("RGBA"))
        return Picture(rgba[..., :3], rgba[..., 3], grey, icc_profile)
    return Picture(np.array(image.convert("RGB")), None, grey, icc_profile)


def to_pil(picture: Picture) -> Image.Image:
    """The picture as Pillow has it: L, LA, RGB or RGBA."""
    image = Image.fromarray(np.ascontiguousarray(picture.rgb))
    if picture.grey:
        image = image.convert("L")
    if picture.alpha is not None:
        image.putalpha(Image.fromarray(picture.alpha))
    if picture.icc_profile:
        image.info["icc_profile"] = picture.icc_profile
    return image


@contextmanager
def _open(path: str | Path) -> Iterator[Image.Image]:
    """Opens a picture; whatever goes wrong until the block ends becomes an ImageError."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as image:
                yield image
    except FileNotFoundError:
        raise ImageError(f"no such file: {path}") from None
    except PermissionError:
        raise ImageError(f"no permission to read {path}") from None
    except IsADirectoryError:
        raise ImageError(f"expected a picture, got a folder: {path}") from None
    except UnidentifiedImageError:
        raise ImageError(f"not a picture that Pillow can read: {path}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(
            f"{path} claims more than {Image.MAX_IMAGE_PIXELS:,} pixels; refused as a decompression bomb"
        ) from None
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise ImageError(f"{path} is damaged or truncated ({error})") from None


def picture_size(path: str | Path) -> tuple[int, int]:
    """Width and height as the file's header has them, before any EXIF rotation.

    Raises:
        ImageError: the file cannot be opened, is no picture, or has too many pixels.
    """
    with _open(path) as image:
        return image.size


def read_picture(path: str | Path) -> Picture:
    """Reads a picture of any mode, applies its EXIF orientation and gives 8 bits a channel.

    Raises:
        ImageError: the file cannot be opened, is no picture, is damaged or truncated, has no pixels, or has too many.
    """
    with _open(path) as image:
        picture = from_pil(image)
    if picture.rgb.size == 0:
        raise ImageError(f"{path} has no pixels ({picture.rgb.shape[1]} x {picture.rgb.shape[0]})")
    return picture


def to_tensor(rgb: NDArray[np.uint8]) -> Tensor:
    """(H, W, 3) uint8 → (3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1))).float().div_(127.5).sub_(1)


def to_uint8(image: Tensor) -> NDArray[np.uint8]:
    """(3, H, W) in [-1, 1] → (H, W, 3) uint8, rounded."""
    scaled = (image.detach().float().cpu() + 1).mul_(127.5).round_().clamp_(0, 255)
    return scaled.to(torch.uint8).permute(1, 2, 0).numpy()


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Gives a temporary name beside `path`; renames it to `path` when the block ends well, else removes it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=path.suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def write_picture(picture: Picture, path: str | Path) -> None:
    """Writes a picture in the format of the file's ending; on any failure nothing is left behind.

    Raises:
        ImageError: the ending is unknown, the folder cannot be written, or the disk is full.
    """
    image = to_pil(picture)
    try:
        with atomic_path(path) as temporary:
            image.save(temporary, icc_profile=picture.icc_profile, quality=95)
    except (OSError, ValueError) as error:
        raise ImageError(
            f"cannot write {path}: {error.strerror if isinstance(error, OSError) and error.strerror else error}"
        ) from None
