"""Where the environments' target pictures come from."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddpm.errors import ImageError
from ddpm.images import find_images, picture_size, read_picture

Rgb = NDArray[np.uint8]
# What scikit-image carries in its wheel, so that nothing is downloaded.
PHOTOGRAPHS = ("astronaut", "chelsea", "coffee", "rocket")


def crop(rgb: Rgb, size: int, name: str = "the picture") -> Rgb:
    """The central (size, size, 3) of an array.

    Raises:
        ImageError: it is no uint8 array (H, W, 3), or smaller than that; `name` says which.
    """
    if rgb.dtype != np.uint8 or rgb.ndim != 3 or rgb.shape[2] != 3:
        raise ImageError(f"{name} must be a uint8 array (height, width, 3), got {rgb.dtype} {rgb.shape}")
    _check_size(rgb.shape[1], rgb.shape[0], size, name)
    top, left = ((side - size) // 2 for side in rgb.shape[:2])
    return rgb[top : top + size, left : left + size]


def _check_size(width: int, height: int, size: int, name: str) -> None:
    if min(width, height) < size:
        raise ImageError(f"{name} is {width} x {height}, smaller than image_size {size}; lower image_size or remove it")


class Pictures:
    """Square target pictures; files are checked at once and decoded when they are asked for.

    Args:
        images: None, the crops that tile scikit-image's photographs; a folder, file or pattern; or several of them.
            Of a file, the centre is taken.
        size: side of a picture, in pixels.

    Raises:
        ImageError: there is no picture, a file cannot be read, or one is smaller than `size`.
    """

    def __init__(self, images: str | Path | Sequence[str | Path] | None, size: int) -> None:
        self.size = size
        self._sources: list[Path | Rgb] = []
        if images is None:
            self._sources.extend(_tiles(size))
            return
        self._sources.extend(find_images([images] if isinstance(images, str | Path) else images))
        if not self._sources:
            raise ImageError("images is empty; name a folder or files, or leave it out for scikit-image's photographs")
        for path in self._sources:
            assert isinstance(path, Path)
            _check_size(*picture_size(path), size, str(path))

    def __len__(self) -> int:
        return len(self._sources)

    def __getitem__(self, index: int) -> Rgb:
        """Picture `index`, uint8 (size, size, 3).

        Raises:
            ImageError: the file is damaged, or has changed since it was checked.
        """
        source = self._sources[index]
        return crop(read_picture(source).rgb, self.size, str(source)) if isinstance(source, Path) else source


def _tiles(size: int) -> list[Rgb]:
    """All crops of `size` that fit side by side into the photographs."""
    from skimage import data

    tiles = []
    for name in PHOTOGRAPHS:
        rgb = getattr(data, name)()
        height, width = rgb.shape[:2]
        rows, columns = (range(side % size // 2, side - size + 1, size) for side in (height, width))
        tiles += [rgb[y : y + size, x : x + size, :3] for y in rows for x in columns]
    if not tiles:
        raise ImageError(f"scikit-image's photographs have no crop of {size} x {size}; lower image_size or give images")
    return tiles
