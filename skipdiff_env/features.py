"""Statistics of a picture's gradients, which agents observe in place of pixels. This module does not need torch."""

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

FEATURES = 42
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
# Smallest value inside a logarithm; below it are the bounds of all features.
SMALLEST = 1e-3
# Smallest side of a picture.
SMALLEST_SIDE = 12
FEATURE_BOUNDS = (-3.0, 1.0)


def features(condition: NDArray[np.floating]) -> NDArray[np.float32]:
    """Return statistics of a picture's structure: 14 numbers of its luma at full size, a half and a quarter of it.

    They are the mean gradients along and across, the root mean square and six quantiles of its magnitude, mean and root
    mean square of the Laplacian, and the standard deviation of the luma, all as log10(10⁻³ + x); the agreement of the
    gradients in direction, and the share of flat pixels (gradient below 2/255), both in 0 … 1.

    Args:
        condition: (C, H, W), whose first three channels are a picture, clipped to [-1, 1]. If a side has fewer than 12
            pixels, the edges are repeated.

    Returns:
        float32 (42,), each in -3 … 1.
    """
    luma = np.tensordot(
        [0.299, 0.587, 0.114], (np.asarray(condition[:3], dtype=np.float64).clip(-1, 1) + 1) / 2, axes=1
    )
    luma = np.pad(luma, [(0, max(0, SMALLEST_SIDE - side)) for side in luma.shape], mode="edge")
    found: list[float] = []
    for _ in range(3):
        right, down = np.diff(luma, axis=1), np.diff(luma, axis=0)
        x, y = right[:-1], down[:, :-1]
        magnitude = np.hypot(x, y)
        laplacian = np.diff(right, axis=1)[1:-1] + np.diff(down, axis=0)[:, 1:-1]
        sizes = [
            np.abs(right).mean(),
            np.abs(down).mean(),
            np.sqrt((magnitude**2).mean()),
            *np.quantile(magnitude, QUANTILES),
            np.abs(laplacian).mean(),
            np.sqrt((laplacian**2).mean()),
            luma.std(),
        ]
        xx, yy, xy = (x * x).mean(), (y * y).mean(), (x * y).mean()
        direction = np.hypot(xx - yy, 2 * xy) / (xx + yy) if xx + yy > 0 else 0.0
        found += [*np.log10(SMALLEST + np.array(sizes)), direction, float((magnitude < 2 / 255).mean())]
        height, width = (side // 2 * 2 for side in luma.shape)
        luma = luma[:height, :width].reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))
    return np.clip(np.array(found, dtype=np.float32), *FEATURE_BOUNDS)


def features_space(prices: tuple[float, float] | None, whole: bool = True) -> spaces.Box:
    """Return the space of the features.

    Args:
        prices: lowest and highest price, if the price of a forward is a feature; else None.
        whole: whether the only decision is made before the first forward; else the level and the statistics of the last
            estimate are features.
    """
    low, high = FEATURE_BOUNDS
    level = [] if whole else [(0.0, 1.0)]
    price = [] if prices is None else [(0.0, prices[1])]
    bounds = [(low, high)] * FEATURES + level + price + [(min(low, 0.0), high)] * (FEATURES * len(level))
    lows, highs = np.array(bounds, np.float32).T
    return spaces.Box(lows, highs)
