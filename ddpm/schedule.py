"""The cosine noise schedule (Eq. 9)."""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ddpm.checks import shown
from ddpm.errors import ConfigError

FloatArray = NDArray[np.float64]
# The largest number of diffusion steps.
LONGEST = 100_000


def cosine_alphas_cumprod(T: int, s: float = 0.008, max_beta: float = 0.999) -> FloatArray:
    """Cumulative products of the cosine schedule, Eq. 9: f(t) = cos²((t/T + s)/(1 + s) · π/2).

    Args:
        T: number of diffusion steps.
        s: offset that keeps the first steps from being too small.
        max_beta: upper bound of every beta; only the last one reaches it.

    Returns:
        `alphas_cumprod`, float64, shape (T + 1,). Index 0 is the clean image (exactly 1.0), index T is pure noise.

    Raises:
        ConfigError: T is no whole number in 1 … 100 000.
    """
    if not isinstance(T, int | np.integer) or not 1 <= T <= LONGEST:
        raise ConfigError(f"the number of diffusion steps must be a whole number in 1 … {LONGEST}, got {shown(T)}")
    f = np.cos((np.arange(T + 1) / T + s) / (1 + s) * np.pi / 2) ** 2
    betas = np.minimum(1 - f[1:] / f[:-1], max_beta)
    return np.concatenate([[1.0], np.cumprod(1 - betas)])


def even_steps(start: int, forwards: int) -> NDArray[np.int64]:
    """The diffusion steps from 0 to `start` that a chain of so many evenly spaced steps visits, (forwards + 1,).

    Raises:
        ConfigError: `forwards` is no whole number in 1 … start.
    """
    if not isinstance(forwards, int | np.integer) or not 1 <= forwards <= start:
        raise ConfigError(f"forwards must be a whole number in 1 … {start}, the steps of the chain, got {forwards!r}")
    return np.linspace(0, start, forwards + 1).round().astype(np.int64)


def even_levels(start: int, forwards: int) -> tuple[int, ...]:
    """The steps at which a chain of so many evenly spaced steps asks the net: those of `even_steps` above 0, falling.

    Raises:
        ConfigError: as `even_steps`.
    """
    return tuple(even_steps(start, forwards)[:0:-1].tolist())


def check_levels(levels: Sequence[int], T: int) -> tuple[int, ...]:
    """Checks a schedule that is given by the steps at which the net is asked.

    Raises:
        ConfigError: they are no falling whole numbers from T on, the last of them at least 1.
    """
    levels = levels if isinstance(levels, tuple | list) else []
    whole = all(isinstance(level, int | np.integer) and not isinstance(level, bool) for level in levels)
    falling = whole and all(a > b for a, b in pairwise([*levels, 0]))
    if not levels or not falling or levels[0] != T:
        raise ConfigError(
            f"levels must be falling whole numbers that begin with {T}, the noisiest step, and end at 1 or above, "
            f"got {','.join(map(str, levels)) or 'none'}"
        )
    return tuple(int(level) for level in levels)
