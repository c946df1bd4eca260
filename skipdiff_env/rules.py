"""What an action, a reward and a price are. Nothing here needs torch."""

import math
from collections.abc import Sequence
from enum import IntEnum
from typing import Any

import gymnasium
import numpy as np
from numpy.typing import NDArray

from ddpm.util.checks import is_number
from ddpm.util.errors import ConfigError, SkipDiffError

# Where the number of noises of a picture is not limited, this many is enough.
NOISE_SEEDS = 2**31
# Keeps 1/M finite for a perfect picture (LPIPS is 0 there).
SMALLEST_METRIC = 1e-3
# What a metric that failed counts as where the reward is -M.
WORST_METRIC = 100.0
REWARDS = ("inverse", "negative")


class Action(IntEnum):
    """What to do at a diffusion step."""

    DENOISE = 0
    SKIP = 1


class InvalidActionError(SkipDiffError, gymnasium.error.InvalidAction):
    """An action is neither DENOISE nor SKIP."""


class ResetNeededError(SkipDiffError, gymnasium.error.ResetNeeded):
    """There is no episode, or it has ended."""


def qualities(values: NDArray[Any], lower_better: bool, reward: str = "inverse") -> NDArray[np.float64]:
    """The reward for a metric M: 1/M ("inverse") or -M ("negative") where a lower one is better, else M.

    A metric that failed (NaN) counts as 0: what 1/M comes to as a picture gets worse, and the worst of PSNR, SSIM and
    other metrics that grow with quality; as -`WORST_METRIC` where the reward is -M.

    Args:
        values: M, of any shape.
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


def quality(value: float, lower_better: bool, reward: str = "inverse") -> float:
    """As `qualities`, of one value."""
    return float(qualities(np.array(value), lower_better, reward))


def price_range(price: float | Sequence[float]) -> tuple[float, float] | None:
    """Lowest and highest price of a forward where each episode draws its own; None where it is fixed.

    Raises:
        ConfigError: the price is neither a number of at least 0 nor a pair of rising numbers above 0.
    """
    if is_number(price):
        return None
    if isinstance(price, tuple | list) and len(price) == 2 and all(map(is_number, price)) and 0 < price[0] <= price[1]:
        return float(price[0]), float(price[1])
    raise ConfigError(f"nfe_penalty must be a number of at least 0, or a pair of rising numbers above 0, got {price!r}")


def draw_episode(
    rng: np.random.Generator, pictures: int, noise_seeds: int, price: float | Sequence[float]
) -> tuple[int, int, float]:
    """Picture, noise seed and price of a new episode. All are always drawn, in this order."""
    image, noise_seed = int(rng.integers(pictures)), int(rng.integers(noise_seeds))
    prices = price_range(price)
    if prices is None:
        return image, noise_seed, float(price)  # type: ignore[arg-type]
    return image, noise_seed, min(float(np.exp(rng.uniform(*np.log(prices)))), prices[1])


def check_price(price: Any, highest: float = math.inf) -> float:
    """The price of an episode that was asked for.

    Raises:
        ConfigError: it is not a number of at least 0, or above the highest.
    """
    if not is_number(price) or price > highest:
        raise ConfigError(f"nfe_penalty must be a number in 0 … {highest:g}, got {price!r}")
    return float(price)


def check_actions(actions: Sequence[Any], count: int) -> None:
    """Checks the decisions of a policy.

    Raises:
        InvalidActionError: there is not one for each picture, or one is neither 0 nor 1.
    """
    if len(actions) != count:
        raise InvalidActionError(f"a policy must give an action for each of {count} pictures, got {len(actions)}")
    for action in actions:
        if action not in tuple(Action):
            raise InvalidActionError(f"an action must be 0 (DENOISE) or 1 (SKIP), got {action!r}")


class FixedPrice:
    """The `nfe_penalty` of an environment: it can be read but not set, since not all that depends on it would follow.

    Without this, Stable-Baselines3's `set_attr` would set an attribute that nothing reads.
    """

    def __get__(self, env: Any, owner: type) -> Any:
        return self if env is None else env._price

    def __set__(self, env: Any, price: Any) -> None:
        raise ConfigError(
            f"nfe_penalty cannot be set in an environment that is made, got {price!r}; give reset the option "
            "nfe_penalty, or make another environment"
        )
