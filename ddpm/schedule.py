"""The cosine noise schedule (Eq. 9)."""

import numpy as np
from numpy.typing import NDArray

from ddpm.errors import ConfigError

FloatArray = NDArray[np.float64]


def cosine_alphas_cumprod(T: int, s: float = 0.008, max_beta: float = 0.999) -> FloatArray:
    """Cumulative products of the cosine schedule, Eq. 9: f(t) = cos²((t/T + s)/(1 + s) · π/2).

    Args:
        T: number of diffusion steps.
        s: offset that keeps the first steps from being too small.
        max_beta: upper bound of every beta; only the last one reaches it.

    Returns:
        `alphas_cumprod`, float64, shape (T + 1,). Index 0 is the clean image (exactly 1.0), index T is pure noise.

    Raises:
        ConfigError: T is not a positive whole number.
    """
    if not isinstance(T, int | np.integer) or T < 1:
        raise ConfigError(f"the number of diffusion steps must be a whole number of at least 1, got {T!r}")
    f = np.cos((np.arange(T + 1) / T + s) / (1 + s) * np.pi / 2) ** 2
    betas = np.minimum(1 - f[1:] / f[:-1], max_beta)
    return np.concatenate([[1.0], np.cumprod(1 - betas)])


def check_steps(T: int, S: int, N: int) -> None:
    """Checks that S coarse steps of N diffusion steps each make up the T steps of the schedule.

    Raises:
        ConfigError: S or N is below 1, or S · N differs from T.
    """
    if S < 1 or N < 1 or S * N != T:
        pairs = ", ".join(f"{n},{T // n}" for n in range(2, T) if T % n == 0)
        raise ConfigError(
            f"steps S,N must multiply to the {T} diffusion steps of the checkpoint, got {S},{N}; try one of {pairs}"
        )
