"""The cosine noise schedule (Eq. 9)."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from ddpm.util.checks import is_whole, shown
from ddpm.util.errors import ConfigError

FloatArray = NDArray[np.float64]
# The largest number of diffusion steps.
LONGEST = 100_000


def cosine_alphas_cumprod(T: int, s: float = 0.008, max_beta: float = 0.999) -> FloatArray:
    """Return the cumulative products of the cosine schedule, Eq. 9: f(t) = cos²((t/T + s)/(1 + s) · π/2).

    Args:
        T: number of diffusion steps.
        s: offset that keeps the first steps from being too small.
        max_beta: upper bound of every beta; only the last one reaches it.

    Returns:
        `alphas_cumprod`, float64, shape (T + 1,). Index 0 is the clean image (exactly 1.0), index T is pure noise.

    Raises:
        ConfigError: T is not a whole number in 1 … 100 000.
    """
    if not isinstance(T, int | np.integer) or not 1 <= T <= LONGEST:
        raise ConfigError(f"the number of diffusion steps must be a whole number in 1 … {LONGEST}, got {shown(T)}")
    f = np.cos((np.arange(T + 1) / T + s) / (1 + s) * np.pi / 2) ** 2
    betas = np.minimum(1 - f[1:] / f[:-1], max_beta)
    return np.concatenate([[1.0], np.cumprod(1 - betas)])


def even_steps(start: int, forwards: int) -> NDArray[np.int64]:
    """Return the diffusion steps from 0 to `start` that a chain of evenly spaced steps visits, (forwards + 1,).

    Raises:
        ConfigError: `forwards` is not a whole number in 1 … start.
    """
    if not isinstance(forwards, int | np.integer) or not 1 <= forwards <= start:
        raise ConfigError(f"forwards must be a whole number in 1 … {start}, the steps of the chain, got {forwards!r}")
    return np.linspace(0, start, forwards + 1).round().astype(np.int64)


def even_levels(start: int, forwards: int) -> tuple[int, ...]:
    """Return the falling levels at which a chain of evenly spaced steps runs the network: `even_steps` above 0.

    Raises:
        ConfigError: see `even_steps`.
    """
    return tuple(even_steps(start, forwards)[:0:-1].tolist())


def check_levels(levels: Sequence[int], T: int | None = None) -> tuple[int, ...]:
    """Check a schedule that is given by the steps at which the network runs.

    Args:
        levels: the steps.
        T: the step with which they must begin; None: they may begin with any step.

    Raises:
        ConfigError: the levels are not falling whole numbers, or begin with another step, or end below 1.
    """
    levels = levels if isinstance(levels, tuple | list) else []
    first = T if T is not None else levels[0] if levels else 1
    falling = all(map(is_whole, levels)) and all(a > b for a, b in pairwise([*levels, 0]))
    if not levels or not falling or levels[0] != first:
        raise ConfigError(
            f"levels must be falling whole numbers that begin with {first}, the noisiest step, and end at 1 or above, "
            f"got {','.join(map(str, levels)) or 'none'}"
        )
    return tuple(int(level) for level in levels)


# Largest number of steps whose work one forward does.
MOST_SUBSTEPS = 1024


@dataclass(frozen=True)
class Schedule:
    """The levels at which the network runs, and the number of substeps of each forward.

    Attributes:
        levels: falling levels, the first of which is the number of steps of the cosine schedule; the clean image, level
            0, is added.
        substeps: number of even steps whose work the forward at each level does; empty: 1 each.

    Raises:
        ConfigError: the levels do not fall, or a number of substeps is out of range.
    """

    levels: tuple[int, ...]
    substeps: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        levels = check_levels(self.levels)
        substeps = self.substeps or (1,) * len(levels)
        if len(substeps) != len(levels) or not all(is_whole(m) and 1 <= m <= MOST_SUBSTEPS for m in substeps):
            raise ConfigError(
                f"substeps must be a whole number in 1 … {MOST_SUBSTEPS} for each of {len(levels)} levels, "
                f"got {','.join(map(str, substeps))}"
            )
        object.__setattr__(self, "levels", levels)
        object.__setattr__(self, "substeps", tuple(int(m) for m in substeps))

    @classmethod
    def even(cls, forwards: int, substeps: int = 1) -> "Schedule":
        """Return the schedule of even forwards, each with the same number of substeps."""
        return cls(even_levels(forwards, forwards), (substeps,) * forwards)

    @classmethod
    def parse(cls, text: str) -> "Schedule":
        """Return the schedule of a text.

        Args:
            text: levels, optionally with substeps, as in "20,13,6,2" or "20*4,9"; or even forwards, as in "even:8" or,
                with 8 substeps each, "even:2*8".

        Raises:
            ConfigError: the text is not a schedule.
        """
        word, colon, rest = text.partition(":")
        try:
            pairs = [
                (int(level), int(m) if star else 1)
                for level, star, m in (part.partition("*") for part in (rest if colon else text).split(","))
            ]
            if colon and (word != "even" or len(pairs) != 1 or not 1 <= pairs[0][0] <= LONGEST):
                raise ValueError
        except ValueError:
            raise ConfigError(
                "levels must be falling whole numbers as in 20,13,6,2, or even:8 for 8 even steps; *M behind one means "
                f"M substeps, as in even:2*8; got {text!r}"
            ) from None
        if colon:
            return cls.even(*pairs[0])
        return cls(tuple(level for level, _ in pairs), tuple(m for _, m in pairs))

    def __str__(self) -> str:
        first = self.levels[0]

        def part(number: int, m: int) -> str:
            return f"{number}*{m}" if m > 1 else str(number)

        if self.levels == tuple(range(first, 0, -1)) and len(set(self.substeps)) == 1:
            return f"even:{part(first, self.substeps[0])}"
        return ",".join(part(level, m) for level, m in zip(self.levels, self.substeps, strict=True))

    @property
    def forwards(self) -> int:
        """Number of forwards of the network."""
        return len(self.levels)

    @property
    def length(self) -> int:
        """Number of steps of the cosine schedule that the levels belong to."""
        return self.levels[0]

    @property
    def plain(self) -> bool:
        """Whether every forward does the work of one step."""
        return max(self.substeps) == 1

    def jumps(self) -> Iterator[tuple[int, int]]:
        """Return the level that each forward goes to, and its substeps."""
        return zip((*self.levels[1:], 0), self.substeps, strict=True)


def as_schedule(levels: "Schedule | str | Sequence[int]") -> Schedule:
    """Return a schedule that is given as a `Schedule`, a text, or falling levels.

    Raises:
        ConfigError: it is none of these.
    """
    if isinstance(levels, Schedule):
        return levels
    return Schedule.parse(levels) if isinstance(levels, str) else Schedule(check_levels(levels))
