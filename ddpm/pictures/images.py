"""Finding, reading and writing pictures."""

import glob
import os
import tempfile
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageCms, ImageOps, UnidentifiedImageError
from torch import Tensor

from ddpm.pictures.bit_depth import deep_tiff, grey_levels, keyed_alpha, stored_mode
from ddpm.pictures.formats import (
    HEIF,
    SUFFIXES,
    Details,
    Format,
    clean_exif,
    clean_xmp,
    details_of,
    metadata,
    output_format,
    register_heif,
    suited,
)
from ddpm.util.errors import ImageError, one_line
from ddpm.util.files import atomic_path

# Pillow's names of the formats in which several pictures are frames, and not pages, layers or previews.
ANIMATED = frozenset({"GIF", "PNG", "WEBP", "AVIF"})


@dataclass
class Picture:
    """A decoded picture, upright.

    Attributes:
        rgb: uint8, (H, W, 3); a grey picture has three equal channels.
        alpha: uint8, (H, W), or None.
        grey: whether all visible pixels are grey, whatever the file's mode.
        icc_profile: the file's colour profile, or None.
        exif: the file's EXIF without thumbnail, with orientation 1, or None.
        xmp: the file's XMP packet, or None.
        details: other metadata of a PNG or JPEG.
    """

    rgb: NDArray[np.uint8]
    alpha: NDArray[np.uint8] | None = None
    grey: bool = False
    icc_profile: bytes | None = None
    exif: bytes | None = None
    xmp: bytes | None = None
    details: Details = field(default_factory=Details)


@dataclass
class Animation:
    """The frames of an animation, all of one size.

    Attributes:
        frames: the pictures; either all of them have alpha, or none.
        durations: duration of each frame, in milliseconds.
        plays: number of times that it is played; 0: without end.
        still_first: whether the first picture is not a frame, but only shown by programs that do not support animations
            (APNG).
    """

    frames: list[Picture]
    durations: list[float]
    plays: int = 0
    still_first: bool = False


@dataclass(frozen=True)
class Header:
    """The facts in the header of a file.

    Attributes:
        width: width in pixels, before any EXIF rotation.
        height: height in pixels.
        frames: number of pictures in the file.
        animated: whether these are the frames of an animation.
    """

    width: int
    height: int
    frames: int
    animated: bool


def find_images(paths: Iterable[str | Path]) -> list[Path]:
    """Expand files, folders (all pictures below them) and glob patterns, in a stable order and without repeats.

    A file that is named directly is kept, whatever its ending. Inside folders, hidden files and folders (among them
    macOS's ._*) are left out, and links to folders are not followed.

    Raises:
        ImageError: a path is empty, does not exist or cannot be read, a pattern matches nothing, or a folder does not
            hold a picture.
    """
    return list(dict.fromkeys(path for given in paths for path, _ in expand(given)))


def expand(given: str | Path) -> list[tuple[Path, Path]]:
    """Return the pictures of a file, folder or pattern, each with its named folder (for a file, the folder it lies in).

    Raises:
        ImageError: see `find_images`.
    """
    if not str(given).strip():
        raise ImageError("an empty path; name a file, a folder or a pattern")
    path = Path(given)
    try:
        if path.is_dir():
            found = [(p, path) for p in _below(path)]
            if not found:
                raise ImageError(f"no picture in the folder {path}; looked for {', '.join(sorted(SUFFIXES))}")
        elif path.is_file():
            found = [(path, path.parent)]
        elif path.exists():
            raise ImageError(f"neither a file nor a folder: {path}")
        elif path.is_symlink():
            raise ImageError(f"a link that leads nowhere: {path}")
        elif glob.has_magic(str(given)):
            found = _matching(str(given))
            if not found:
                raise ImageError(f"no file matches the pattern {given}")
        else:
            raise ImageError(f"no such file or folder: {path}")
    except (OSError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(
            f"cannot look up {given}: {error.strerror if isinstance(error, OSError) and error.strerror else error}"
        ) from None
    return found


def _below(folder: Path) -> list[Path]:
    """Return all pictures below a folder, sorted."""

    def refuse(error: OSError) -> None:
        raise ImageError(f"cannot read the folder {error.filename}: {error.strerror}")

    found = []
    for place, folders, names in os.walk(folder, onerror=refuse):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in names:
            path = Path(place, name)
            if not name.startswith(".") and path.suffix.lower() in SUFFIXES and path.is_file():
                found.append(path)
    return sorted(found)


def _matching(pattern: str) -> list[tuple[Path, Path]]:
    """Return the pictures that match a pattern, and those in folders that match it.

    Files of other endings are taken only where there is no picture.
    """
    parts = Path(pattern).parts
    if "**" in parts:
        first = next(i for i, part in enumerate(parts) if glob.has_magic(part))
        root = Path(*parts[:first])
        # unlike that of glob, the ** of pathlib does not follow links, which might lead in a circle
        hits = [
            p
            for p in root.glob(str(Path(*parts[first:])))
            if not any(part.startswith(".") for part in p.relative_to(root).parts)
        ]
    else:
        hits = [Path(p) for p in glob.glob(pattern)]
    hits.sort()
    found: dict[Path, Path] = {}
    others: list[Path] = []
    for hit in hits:
        if hit.is_dir():
            for path in _below(hit):
                found.setdefault(path, hit)
        elif hit.is_file() and hit.suffix.lower() in SUFFIXES:
            found.setdefault(hit, hit.parent)
        elif hit.is_file():
            others.append(hit)
    return list(found.items()) or [(path, path.parent) for path in others]


def _exif(image: Image.Image) -> Image.Exif:
    """Return the picture's EXIF; empty if it is damaged."""
    try:
        return image.getexif()
    except Exception:  # Pillow raises nearly anything on damaged EXIF
        return Image.Exif()


def from_pil(image: Image.Image) -> Picture:
    """Convert a Pillow picture of any mode to 8 bits a channel, and apply its EXIF orientation."""
    stored = stored_mode(image)  # forgotten once the picture is loaded
    image.load()
    exif = _exif(image)
    icc_profile, xmp = image.info.get("icc_profile"), clean_xmp(image.info.get("xmp"))
    if image.mode in ("CMYK", "LAB", "HSV", "YCbCr"):
        icc_profile = None  # it describes the file's colour space, which is not that of the result
    alpha = keyed_alpha(image, stored)
    if image.mode.startswith("I") or image.mode == "F":
        rgb = np.repeat(grey_levels(image, stored)[..., None], 3, axis=-1)
    elif image.mode == "LAB":
        lab, srgb = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        rgb = np.array(ImageCms.profileToProfile(image, lab, srgb, outputMode="RGB"))
    elif alpha is None and (image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info):
        rgba = np.array((image.convert("LA") if image.mode == "La" else image).convert("RGBA"))
        rgb, alpha = rgba[..., :3], rgba[..., 3]
    else:
        rgb = np.array(image.convert("RGB"))
    orientation = exif.get(0x0112, 1)
    if orientation in range(2, 9):
        rgb = _upright(rgb, orientation)
        alpha = None if alpha is None else _upright(alpha, orientation)
    coloured = (rgb[..., 0] != rgb[..., 1]) | (rgb[..., 1] != rgb[..., 2])
    grey = not (coloured if alpha is None else coloured & (alpha > 0)).any()
    return Picture(rgb, alpha, grey, icc_profile, clean_exif(exif), xmp, details_of(image))


def _upright(pixels: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Return pixels turned from their EXIF orientation, 2 … 8."""
    image = Image.fromarray(pixels)
    image.getexif()[0x0112] = orientation
    return np.asarray(ImageOps.exif_transpose(image))


def visible_colours(picture: Picture) -> NDArray[np.uint8]:
    """Return `rgb` with the colours of wholly transparent pixels replaced by those of the nearest visible ones.

    The hidden colours, mostly black or white, then do not affect the edge of a shape in the enlargement.
    """
    if picture.alpha is None or picture.alpha.all() or not picture.alpha.any():
        return picture.rgb
    from scipy.ndimage import distance_transform_edt

    y, x = distance_transform_edt(picture.alpha == 0, return_distances=False, return_indices=True)
    return picture.rgb[y, x]


def to_pil(picture: Picture) -> Image.Image:
    """Return the picture as a Pillow image: L, LA, RGB or RGBA.

    L and LA are for a grey picture whose profile is not a colour profile.
    """
    image = Image.fromarray(np.ascontiguousarray(picture.rgb))
    if picture.grey and (not picture.icc_profile or picture.icc_profile[16:20] == b"GRAY"):
        image = image.convert("L")
    if picture.alpha is not None:
        image.putalpha(Image.fromarray(picture.alpha))
    if picture.icc_profile:
        image.info["icc_profile"] = picture.icc_profile
    return image


def resized(picture: Picture, width: int, height: int) -> Picture:
    """Return the picture in another size, resized by Lanczos' filter."""
    image = to_pil(picture).resize((width, height), Image.Resampling.LANCZOS)
    other = from_pil(image)
    return replace(picture, rgb=other.rgb, alpha=other.alpha)


def _decoder(path: str | Path) -> Image.Image:
    """Return Pillow's image of a file; for a TIFF that Pillow cannot hold or garbles, the decoded picture."""
    try:
        image = Image.open(path)
    except UnidentifiedImageError:
        deep = deep_tiff(path)
        if deep is None:
            raise
        return deep
    tags = getattr(image, "tag_v2", {})
    if tags.get(284) == 2 and (image.mode == "LA" or max(tags.get(258, (8,))) > 8):  # planes that Pillow garbles
        image.close()
        return deep_tiff(path) or image
    if image.format == "TIFF":
        image.filename = ""  # no memory map, with which Pillow swaps width and height of turned pictures too early
    return image


@contextmanager
def _open(path: str | Path) -> Iterator[Image.Image]:
    """Open a picture; any error until the block ends becomes an ImageError."""
    heif = Path(path).suffix.lower() in HEIF
    if heif:
        register_heif()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # about odd metadata
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with _decoder(path) as image:
                yield image
    except FileNotFoundError:
        raise ImageError(f"no such file: {path}") from None
    except PermissionError:
        raise ImageError(f"no permission to read {path}") from None
    except IsADirectoryError:
        raise ImageError(f"expected a picture, got a folder: {path}") from None
    except UnidentifiedImageError:
        hint = "" if not heif or register_heif() else "; HEIC needs pillow-heif: pip install 'skipdiff[heif]'"
        raise ImageError(f"not a picture that Pillow can read: {path}{hint}") from None
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise ImageError(
            f"{path} claims more than {Image.MAX_IMAGE_PIXELS:,} pixels; refused as a decompression bomb"
        ) from None
    except ImageError:
        raise
    except Exception as error:  # Pillow's decoders raise nearly anything on damaged files
        raise ImageError(f"{path} is damaged or truncated ({one_line(error)})") from None


def picture_size(path: str | Path) -> tuple[int, int]:
    """Return width and height from the file's header, before any EXIF rotation.

    Raises:
        ImageError: the file cannot be opened, is not a picture, or has too many pixels.
    """
    with _open(path) as image:
        return image.size


def read_header(path: str | Path) -> Header:
    """Return size and number of pictures of a file, without decoding it.

    Raises:
        ImageError: the file cannot be opened, is not a picture, is damaged, or has too many pixels.
    """
    with _open(path) as image:
        frames = int(getattr(image, "n_frames", 1))
        return Header(*image.size, frames, frames > 1 and image.format in ANIMATED)


def read_picture(path: str | Path) -> Picture:
    """Read a picture of any mode as 8 bits a channel, and apply its EXIF orientation; of several, read the first.

    Raises:
        ImageError: the file cannot be opened, is not a picture, is damaged or truncated, has no pixels, or has too
            many.
    """
    with _open(path) as image:
        picture = from_pil(image)
    if picture.rgb.size == 0:
        raise ImageError(f"{path} has no pixels ({picture.rgb.shape[1]} x {picture.rgb.shape[0]})")
    return picture


def read_animation(path: str | Path) -> Animation:
    """Read all frames of an animation, GIF, PNG, WebP or AVIF; a still picture is an animation of one frame.

    Raises:
        ImageError: see `read_picture`.
    """
    frames, durations = [], []
    with _open(path) as image:
        for i in range(getattr(image, "n_frames", 1)):
            image.seek(i)
            frames.append(from_pil(image))
            durations.append(float(image.info.get("duration", 0)))
        plays = int(image.info.get("loop", 0))
        if image.format == "GIF":  # which stores the number of repetitions
            plays = 1 if "loop" not in image.info else plays + 1 if plays else 0
        still_first = bool(getattr(image, "default_image", False))
    grey = all(frame.grey for frame in frames)
    if any(frame.alpha is not None for frame in frames):
        for frame in frames:
            frame.alpha = np.full(frame.rgb.shape[:2], 255, np.uint8) if frame.alpha is None else frame.alpha
    return Animation([replace(frame, grey=grey) for frame in frames], durations, plays, still_first)


def to_tensor(rgb: NDArray[np.uint8]) -> Tensor:
    """Return a picture (H, W, 3) uint8 as (3, H, W) float32 in [-1, 1]."""
    return torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1))).float().div_(127.5).sub_(1)


def to_uint8(image: Tensor) -> NDArray[np.uint8]:
    """Return a picture (3, H, W) in [-1, 1] as (H, W, 3) uint8, rounded."""
    scaled = (image.detach().float().cpu() + 1).mul_(127.5).round_().clamp_(0, 255)
    return scaled.to(torch.uint8).permute(1, 2, 0).numpy()


def check_folder(folder: Path) -> None:
    """Raise ImageError unless files can be written into a folder, or it can be made.

    A temporary file is written, and nothing is left behind.
    """
    place = folder
    try:
        while not place.exists():
            if place.is_symlink():
                raise ImageError(f"cannot write into {folder}: {place} is a link that leads nowhere")
            place = place.parent
        if not place.is_dir():
            raise ImageError(f"cannot write into {folder}: {place} is a file, not a folder; give another --out")
        with tempfile.TemporaryFile(prefix=".skipdiff-", dir=place) as file:
            file.write(bytes(2**16))
            file.flush()
    except OSError as error:
        raise ImageError(f"cannot write into {folder}: {error.strerror or error}") from None


def write_picture(picture: Picture | Animation, path: str | Path, quality: int = 95) -> list[str]:
    """Write a picture or an animation in the format of the file's ending; on any failure nothing is left behind.

    Args:
        picture: the picture or animation; of an animation, only the first frame is written if the format holds one
            frame.
        path: the file.
        quality: quality of JPEG, WebP and AVIF, 1 … 100.

    Returns:
        One sentence for each thing that was left out because the format cannot hold it.

    Raises:
        ImageError: the ending is unknown, the folder cannot be written, or the disk is full.
    """
    path = Path(path)
    wanted = output_format(path)
    animation = picture if isinstance(picture, Animation) else Animation([picture], [0.0])
    if not wanted.animated:
        animation = replace(animation, frames=animation.frames[:1])
    try:
        with atomic_path(path) as temporary:
            return _save(animation, temporary, wanted, quality)
    except Exception as error:  # Pillow's encoders raise nearly anything
        raise ImageError(
            f"cannot write {path}: {error.strerror if isinstance(error, OSError) and error.strerror else error}"
        ) from None


def _save(animation: Animation, path: Path, wanted: Format, quality: int) -> list[str]:
    """Save an animation, or a picture as one of a single frame; see `write_picture`."""
    images = [suited(to_pil(frame), wanted) for frame in animation.frames]
    notes = list(dict.fromkeys(note for _, notes in images for note in notes))
    frames, first = [image for image, _ in images], animation.frames[0]
    arguments, left_out = metadata(wanted, frames[0].size, first.exif, first.xmp, first.icc_profile, first.details)
    if left_out:
        notes.append(f"{wanted.name} has no place for {' and '.join(left_out)} (of this size): left out")
    if wanted.name == "GIF":  # whose transparency is all or nothing
        for frame in frames:
            if frame.mode == "RGBA":
                frame.putalpha(frame.getchannel("A").point(lambda value: 255 * (value >= 128)))
    if len(frames) > 1:
        times, plays = [round(t) for t in animation.durations], animation.plays
        arguments |= {"save_all": True, "append_images": frames[1:], "duration": times}
        if wanted.name == "GIF":
            arguments |= {"disposal": 2 if frames[0].mode == "RGBA" else 1}
            if plays != 1:
                arguments["loop"] = plays - 1 if plays else 0
        elif wanted.name in ("PNG", "WEBP"):
            arguments["loop"] = plays
        if wanted.name == "PNG":
            arguments |= {"default_image": animation.still_first, "blend": 0, "disposal": 0}
            if animation.still_first:  # it is not a frame, so it has no duration
                arguments["duration"] = times[1:]
    frames[0].save(path, format=wanted.name, quality=quality, **arguments)
    return notes
