"""The target pictures of the environments."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.pictures.images import find_images, picture_size, read_picture
from ddpm.training.runs import pictures_digest
from ddpm.util.errors import ConfigError, ImageError

Rgb = NDArray[np.uint8]
# Index of a picture, and first row and column of a crop of it.
Crop = tuple[int, int, int]
# The photographs in scikit-image's wheel, for which nothing is downloaded, and the split of each.
PHOTOGRAPHS = {"astronaut": "train", "chelsea": "test", "coffee": "train", "rocket": "test"}

# Bytes of decoded pictures that are kept if crops may lie anywhere.
HELD = 2**28


def crop(rgb: Rgb, size: int, name: str = "the picture") -> Rgb:
    """Return the central (size, size, 3) of an array.

    Raises:
        ImageError: it is not a uint8 array (H, W, 3), or is smaller than `size`; the message contains `name`.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ImageError(f"{name} must be a uint8 array (height, width, 3), got {rgb.dtype} {rgb.shape}")
    _check_size(rgb.shape[1], rgb.shape[0], size, name)
    top, left = ((side - size) // 2 for side in rgb.shape[:2])
    return rgb[top : top + size, left : left + size]


def _check_size(width: int, height: int, size: int, name: str) -> None:
    if min(width, height) < size:
        raise ImageError(f"{name} is {width} x {height}, smaller than image_size {size}; lower image_size or remove it")


def photographs_of(names: Sequence[str], sources: Path | None) -> list[str]:
    """Return the photograph of each picture.

    Args:
        names: paths of the pictures.
        sources: tab-separated file whose first column holds the ends of paths, and whose second column the photographs;
            None: each picture is a photograph.

    Raises:
        ConfigError: the file cannot be read, or does not name a picture.
    """
    if sources is None:
        return list(names)
    try:
        lines = [line.split("\t") for line in sources.read_text(encoding="utf-8").splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{sources} cannot be read ({error}); name a file of tab-separated columns") from None
    known = {line[0]: line[1] for line in lines if len(line) > 1}
    found = []
    for name in names:
        parts = Path(name).parts
        ends = ("/".join(parts[i:]) for i in range(len(parts)))
        photograph = next((known[end] for end in ends if end in known), None)
        if photograph is None:
            raise ConfigError(f"{sources} does not name {name}; its first column must hold the ends of all paths")
        found.append(photograph)
    return found


class Pictures:
    """Square target pictures; files are checked at once and decoded when they are needed.

    Args:
        images: None, the crops that tile scikit-image's photographs; a folder, file or pattern; a uint8 array (height,
            width, 3); or several of them. Files and arrays are cropped to their centre.
        size: side of a picture, in pixels.
        split: "train" or "test", a part of scikit-image's photographs; None: all of them.
        whole: whether crops may lie anywhere. Then pictures are kept whole, also scikit-image's photographs.

    Attributes:
        names: names of the pictures: photograph and corner, path, or index of the array.

    Raises:
        ImageError: there is no picture, a file cannot be read, or one is smaller than `size`.
    """

    def __init__(self, images: Any, size: int, split: str | None = None, whole: bool = False) -> None:
        self.size, self.whole = size, whole
        # width and height of pictures before they are cropped, and decoded pictures
        self._sides: list[tuple[int, int]] = []
        self._decoded: dict[int, Rgb] = {}
        self.names: list[str] = []
        self._sources: list[Path | Rgb] = []
        if images is None:
            for name, rgb in (_photographs if whole else _tiles)(size, split):
                self._sources.append(rgb)
                self._sides.append((rgb.shape[1], rgb.shape[0]))
                self.names.append(name)
            return
        given = [images] if isinstance(images, str | Path | np.ndarray) else images
        several = isinstance(given, Sequence)
        wrong = [each for each in given if not isinstance(each, str | Path | np.ndarray)] if several else [images]
        if wrong:
            raise ImageError(
                "images must be None, a folder, a file, a pattern, a uint8 array (height, width, 3), or several of "
                "them, "
                f"got {type(wrong[0]).__name__}"
            )
        for place, each in enumerate(given):
            if isinstance(each, np.ndarray):
                middle = crop(each, size, f"picture {place}")
                self._sources.append(np.ascontiguousarray(each if whole else middle))
                self._sides.append((each.shape[1], each.shape[0]))
                self.names.append(f"array {place}")
        files = find_images([each for each in given if not isinstance(each, np.ndarray)])
        for path in files:
            self._sides.append(picture_size(path))
            _check_size(*self._sides[-1], size, str(path))
        self._sources.extend(path.absolute() for path in files)  # which stay valid after a change of the working folder
        self.names.extend(map(str, files))
        if not self._sources:
            raise ImageError("images is empty; name a folder or files, or leave it out for scikit-image's photographs")

    def __len__(self) -> int:
        return len(self._sources)

    def digest(self) -> str:
        """Return a digest of the pictures, see `ddpm.training.runs.pictures_digest`."""
        return pictures_digest(each if isinstance(each, Path) else each.tobytes() for each in self._sources)

    def __iter__(self) -> Iterator[Rgb]:
        """Iterate over the pictures in their order."""
        return (self[index] for index in range(len(self)))

    def __getitem__(self, index: int) -> Rgb:
        """Return picture `index`, uint8 (size, size, 3).

        Raises:
            ImageError: the file is damaged, or has changed since it was checked.
        """
        source = self._sources[index]
        if isinstance(source, Path):
            return crop(read_picture(source).rgb, self.size, str(source))
        return crop(source, self.size)

    def draw(self, index: int, rng: np.random.Generator) -> tuple[int, int, int]:
        """Return a random crop of picture `index`: the index, its first row and its first column."""
        width, height = self._sides[index]
        return index, int(rng.integers(height - self.size + 1)), int(rng.integers(width - self.size + 1))

    def cut(self, index: int, top: int, left: int) -> Rgb:
        """Return a crop of picture `index` by its first row and column, uint8 (size, size, 3).

        Raises:
            ConfigError: it does not lie inside the picture, or pictures are not kept whole.
            ImageError: the file is damaged, or has changed since it was checked.
        """
        width, height = self._sides[index] if self.whole else (self.size, self.size)
        if not 0 <= top <= height - self.size or not 0 <= left <= width - self.size:
            raise ConfigError(
                f"a crop must begin at most at row {height - self.size} and column {width - self.size} of picture "
                f"{index}, got {top}, {left}"
            )
        source = self._decoded.get(index, self._sources[index])
        if isinstance(source, Path):
            path, source = source, read_picture(source).rgb
            if source.shape[:2] != (height, width):
                raise ImageError(f"{path} is no longer {width} x {height}; make the environment anew")
            if sum(each.nbytes for each in self._decoded.values()) + source.nbytes <= HELD:
                self._decoded[index] = source
        return source[top : top + self.size, left : left + self.size]


def _photographs(size: int, split: str | None) -> list[tuple[str, Rgb]]:
    """Return name and pixels of the photographs of a split that are large enough."""
    from skimage import data

    found = [(name, getattr(data, name)()[..., :3]) for name, own in PHOTOGRAPHS.items() if split in (None, own)]
    large = [(name, rgb) for name, rgb in found if min(rgb.shape[:2]) >= size]
    if not large:
        raise ImageError(f"scikit-image's photographs have no crop of {size} x {size}; lower image_size or give images")
    return large


def _tiles(size: int, split: str | None) -> list[tuple[str, Rgb]]:
    """Return name and pixels of all crops that fit side by side into the photographs of a split."""
    tiles = []
    for name, rgb in _photographs(size, split):
        rows, columns = (range(side % size // 2, side - size + 1, size) for side in rgb.shape[:2])
        tiles += [(f"{name} {x},{y}", rgb[y : y + size, x : x + size]) for y in rows for x in columns]
    return tiles
