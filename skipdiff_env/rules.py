"""Actions, rewards and prices. This module does not need torch."""

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from ddpm.util.checks import is_number
from ddpm.util.errors import ConfigError, SkipDiffError

# Number of noises of a picture if it is not limited.
NOISE_SEEDS = 2**31
# Keeps 1/M finite for a perfect picture (LPIPS is 0 there).
SMALLEST_METRIC = 1e-3
# Value of a failed metric if the reward is -M.
WORST_METRIC = 100.0
REWARDS = ("inverse", "negative")
# Price of a forward in the registered environments of jumps and of tables.
PRICE = 0.002


class Action(IntEnum):
    """The decision at a diffusion step."""

    DENOISE = 0
    SKIP = 1


# Looking up a member of an enumeration is slow, and a remembered step takes only a few microseconds.
DENOISE, SKIP = ACTIONS = tuple(Action)


class InvalidActionError(SkipDiffError, gymnasium.error.InvalidAction):
    """An action is not in the action space."""


class ResetNeededError(SkipDiffError, gymnasium.error.ResetNeeded):
    """There is no episode, or it has ended."""


def quality(values: NDArray[Any] | float, lower_better: bool, reward: str = "inverse") -> NDArray[np.float64]:
    """Return the quality of results with a metric M: 1/M ("inverse") or -M ("negative") if a lower M is better, else M.

    The quality for a failed metric (NaN) is 0, the limit of 1/M as a picture gets worse, and the lowest value of PSNR,
    SSIM and other metrics that increase with quality; or -`WORST_METRIC` if the quality is -M.

    Args:
        values: values of M, of any shape.
        lower_better: whether a smaller M means a better picture.
        reward: one of `REWARDS`.
    """
    values = np.asarray(values, dtype=np.float64)
    failed = np.isnan(values)
    if not lower_better:
        return np.where(failed, 0.0, values)
    if reward == "negative":
        return -np.where(failed, WORST_METRIC, values)
    return np.where(failed, 0.0, 1 / np.where(failed, 1.0, np.maximum(values, SMALLEST_METRIC)))


def episode_reward(quality: Any, price: Any, forwards: Any) -> Any:
    """Return the reward of episodes: the quality of the result, minus the price of each fine forward.

    Args:
        quality: see `quality`; a number, or an array for several episodes, as the other arguments.
        price: price of a forward.
        forwards: number of fine forwards, also of those whose result was discarded.
    """
    return quality - price * forwards


def price_range(price: float | Sequence[float]) -> tuple[float, float] | None:
    """Return lowest and highest price of a forward if each episode draws its price; None if it is fixed.

    Raises:
        ConfigError: the price is neither a number of at least 0 nor a pair of rising numbers above 0.
    """
    if is_number(price):
        return None
    if isinstance(price, tuple | list) and len(price) == 2 and all(map(is_number, price)) and 0 < price[0] <= price[1]:
        return float(price[0]), float(price[1])
    raise ConfigError(f"nfe_penalty must be a number of at least 0, or a pair of rising numbers above 0, got {price!r}")


def draw_price(rng: np.random.Generator, price: float | Sequence[float]) -> float:
    """Draw the price of a forward from a range, uniformly in the logarithm; a fixed price is returned unchanged."""
    prices = price_range(price)
    if prices is None:
        return float(price)  # type: ignore[arg-type]
    return min(float(np.exp(rng.uniform(*np.log(prices)))), prices[1])


def check_price(price: Any, highest: float = math.inf) -> float:
    """Return a given price of an episode, after a check.

    Raises:
        ConfigError: it is not a number of at least 0, or is above the highest.
    """
    if not is_number(price) or price > highest:
        raise ConfigError(f"nfe_penalty must be a number in 0 … {highest:g}, got {price!r}")
    return float(price)


class FixedPrice:
    """The `nfe_penalty` of an environment: it can be read but not set, since other parts depend on it.

    Without this class, Stable-Baselines3's `set_attr` would set an attribute that is never read.
    """

    def __get__(self, env: Any, owner: type) -> Any:
        return self if env is None else env._price

    def __set__(self, env: Any, price: Any) -> None:
        raise ConfigError(
            f"nfe_penalty cannot be set in an environment that is made, got {price!r}; give reset the option "
            "nfe_penalty, or make another environment"
        )
