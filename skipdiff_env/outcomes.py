"""Tables of outcomes: metrics of schedules for pictures under several noises. This module does not need torch."""

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ddpm.schedule import Schedule
from ddpm.util.checks import check_one_of, check_whole
from ddpm.util.errors import ConfigError
from ddpm.util.files import read_json
from skipdiff_env.features import FEATURES
from skipdiff_env.plan import Plan
from skipdiff_env.rules import REWARDS, check_price, episode_reward, quality

# Increased when tables of older versions cannot be read.
FORMAT = 3
DESCRIPTION, ARRAYS = "table.json", "table.safetensors"
# The shipped tables.
TABLES = Path(str(files("skipdiff_env"))) / "tables"
SPLITS = ("train", "validation", "test")
# Upper bounds of the hashed names for training, and for validation.
SHARES = 0.68, 0.80
# Number of resamples of a bootstrap interval.
RESAMPLES = 10_000

Array = NDArray[np.float64]
# For each forward the next level, and its substeps.
Jumps = tuple[tuple[int, int], ...]


def split_of(photograph: str) -> str:
    """Return the split of a photograph, which depends only on its name."""
    number = int.from_bytes(hashlib.blake2b(photograph.encode(), digest_size=8).digest(), "big") / 2**64
    return SPLITS[int(np.searchsorted(SHARES, number, side="right"))]


def states_of(schedules: Iterable[Schedule]) -> tuple[Jumps, ...]:
    """Return the states between the first and the last forward of schedules, each as the jumps that lead to it."""
    jumps = [tuple(schedule.jumps()) for schedule in schedules]
    return tuple(sorted({each[:count] for each in jumps for count in range(1, len(each))}))


@dataclass(frozen=True)
class Score:
    """The score of a policy. The best fixed schedule has the score 0, and the best one under the other noises has 1.

    Attributes:
        value: the score.
        low: lower end of the 95 % bootstrap interval over photographs.
        high: upper end of the interval.
        reward: mean reward of the policy.
        fixed: mean reward of the best fixed schedule.
        others: mean reward of the schedule that is best for each crop under its other noises.
        values: the score of each training seed, whose mean is `value`.
    """

    value: float
    low: float
    high: float
    reward: float
    fixed: float
    others: float
    values: tuple[float, ...] = ()

    @property
    def iqm(self) -> float:
        """The interquartile mean of the seeds' scores."""
        from scipy.stats import trim_mean

        return float(trim_mean(self.values, 0.25))


@dataclass(frozen=True)
class OutcomeTable:
    """Metrics of the results of several schedules, for pictures under several noises, without the pictures.

    A picture is a crop of a photograph. `skipdiff_env.tabulate.tabulate` writes tables, and `schedule_outcomes` of the
    environments returns them.

    Attributes:
        schedules: the schedules; under "restart", the chains of each start.
        metrics: name → float (crops, noises, schedules); NaN if the metric failed. The first one is the reward's.
        features: features of the crops' conditions, float32 (crops, 42), see `skipdiff_env.features.features`.
        photographs: the photograph of each crop.
        description: plain data. "metrics": name → whether a lower value is better; "plan", "size", "checkpoint",
            "network" (its fingerprint), "degradation"; "splits" of the crops, if these do not depend on the names;
            "forwards_per_call" of a guided network; "reward" and "nfe_penalty" of an environment.
        estimates: features of the network's last estimate at each of `states`, float32 (crops, noises, states, 42).
    """

    schedules: tuple[Schedule, ...]
    metrics: Mapping[str, NDArray[np.floating]]
    features: NDArray[np.float32]
    photographs: tuple[str, ...]
    description: Mapping[str, Any] = field(default_factory=dict)
    estimates: NDArray[np.float32] | None = None

    @classmethod
    def load(cls, table: str | Path = "natural-x4") -> "OutcomeTable":
        """Read a table that `skipdiff tabulate` wrote.

        Args:
            table: its folder, or the name of a shipped one: "natural-x4", "photo-x4", "natural-x4-stride" or
                "natural-x4-skip".

        Raises:
            ConfigError: the table does not exist, or is damaged or unfinished.
        """
        folder = TABLES / str(table) if (TABLES / str(table)).is_dir() else Path(table)
        if not (folder / DESCRIPTION).is_file() or not (folder / ARRAYS).is_file():
            raise ConfigError(f"{folder} holds no table; `skipdiff tabulate --out {folder}` makes one")
        description = read_json(folder / DESCRIPTION)
        version = description.get("format") if isinstance(description, dict) else None
        if version != FORMAT:
            raise ConfigError(f"the table {folder} has format {version!r:.40}, expected {FORMAT}; make it anew")
        try:
            arrays = load_file(folder / ARRAYS)
            _check_names(description)
            description["plan"] = Plan(**description["plan"]).settings()  # with the defaults of what is missing
            schedules = tuple(Schedule.parse(text) for text in description["schedules"])
            photographs = tuple(description["photographs"])
            metrics = {name: arrays[f"metrics.{name}"] for name in description["metrics"]}
            shape = len(photographs), description["noises"], len(schedules)
            if arrays["features"].shape != (shape[0], FEATURES) or any(m.shape != shape for m in metrics.values()):
                raise ValueError("its arrays do not fit together")
            estimates = arrays.get("estimates")
            if estimates is not None and estimates.shape != (*shape[:2], len(states_of(schedules)), FEATURES):
                raise ValueError("its estimates do not fit its schedules")
            if not all(np.isfinite(seen).all() for seen in (arrays["features"], estimates) if seen is not None):
                raise ValueError("its features are not finite")
            done = int(arrays["done"].sum())
        except (OSError, KeyError, TypeError, ValueError, AttributeError, SafetensorError) as error:
            raise ConfigError(f"the table {folder} is damaged ({error}); make it anew") from None
        if done < shape[0]:
            raise ConfigError(
                f"the table {folder} has {done} of {shape[0]} crops; the same `skipdiff tabulate` continues it"
            )
        return cls(schedules, metrics, arrays["features"], photographs, description, estimates)

    def __deepcopy__(self, memo: Any) -> "OutcomeTable":
        """Return the table itself, since copies of an environment share it."""
        return self

    @cached_property
    def splits(self) -> NDArray[np.str_]:
        """The split of each crop, one of `SPLITS`."""
        known = self.description.get("splits")
        return np.array(known or [split_of(photograph) for photograph in self.photographs])

    def split(self, name: str) -> "OutcomeTable":
        """Return the part of the table that belongs to a split.

        Raises:
            ConfigError: the name is unknown, or the split is empty.
        """
        check_one_of(SPLITS, split=name)
        rows = np.flatnonzero(self.splits == name)
        if not len(rows):
            raise ConfigError(f"the table has no photograph of the split {name}; make it from more photographs")
        metrics = {metric: values[rows] for metric, values in self.metrics.items()}
        photographs = tuple(self.photographs[row] for row in rows)
        estimates = None if self.estimates is None else self.estimates[rows]
        description = {**self.description, "splits": [name] * len(rows)}
        return replace(
            self, metrics=metrics, features=self.features[rows], photographs=photographs, estimates=estimates,
            description=description,
        )  # fmt: skip

    @cached_property
    def states(self) -> tuple[Jumps, ...]:
        """The states between the forwards of the schedules, each as the jumps that lead to it; see `states_of`."""
        return states_of(self.schedules)

    @property
    def metric(self) -> str:
        """The name of the reward's metric."""
        return next(iter(self.metrics))

    @property
    def forwards(self) -> NDArray[np.int64]:
        """Network forwards of each schedule, including those of guidance."""
        return np.array([schedule.forwards for schedule in self.schedules]) * self.forwards_per_call

    @property
    def forwards_per_call(self) -> int:
        """Network forwards of one prediction: 2 with guidance, else 1."""
        return int(self.description.get("forwards_per_call", 1))

    @property
    def restart(self) -> bool:
        """Whether a skip goes back to the coarse latent. The schedules are then the chains of each start."""
        return bool(self.description.get("plan", {}).get("skip_mode") == "restart")

    def rewards(self, price: float | None = None, metric: str | None = None, reward: str | None = None) -> Array:
        """Return the rewards of episodes that follow each schedule, float64 (crops, noises, schedules).

        The best fixed schedule has the largest mean over the first two axes, and the oracle is the maximum over the
        last one. Discarded forwards, which episodes with restarts may have, do not count.

        Args:
            price: price of a forward; None: that of the environment that made the table, or 0.
            metric: the metric M of the reward; None: the first one.
            reward: "negative" (-M) or "inverse" (1/M), if a lower value of the metric is better; None: that of the
                environment that made the table, or "negative".

        Raises:
            ConfigError: the table does not have this metric, or another argument is out of range.
        """
        metric = self.metric if metric is None else metric
        check_one_of(self.metrics, metric=metric)
        reward = self.description.get("reward", "negative") if reward is None else reward
        check_one_of(REWARDS, reward=reward)
        price = check_price(self.description.get("nfe_penalty", 0.0) if price is None else price)
        lower_better = self.description.get("metrics", {}).get(metric, True)
        return episode_reward(quality(self.metrics[metric], lower_better, reward), price, self.forwards)

    def best_fixed(self, price: float | None = None) -> int:
        """Return the index of the schedule with the largest mean reward."""
        return best_fixed(self.rewards(price))

    def best_of_others(self, price: float | None = None) -> NDArray[np.intp]:
        """Return for each crop and noise the schedule that is best under the crop's other noises, (crops, noises).

        Raises:
            ConfigError: there is only one noise.
        """
        return best_of_others(self.rewards(price))

    def per_photograph(self, values: Array) -> Array:
        """Return the mean of values (crops, noises) over the crops and noises of each photograph, (photographs,)."""
        names, places = np.unique(self.photographs, return_inverse=True)
        return np.bincount(places, values.mean(axis=1)) / np.bincount(places, minlength=len(names))

    def chosen(self, choices: NDArray[np.integer], price: float | None = None) -> Array:
        """Return the rewards of choices, (crops, noises); choices are (crops,) or (crops, noises)."""
        rewards = self.rewards(price)
        places = np.broadcast_to(choices.reshape(len(choices), -1), rewards.shape[:2])
        return np.take_along_axis(rewards, places[..., None], axis=2)[..., 0]

    def score(
        self,
        choices: NDArray[np.integer] | Sequence[NDArray[np.integer]],
        fixed: int,
        price: float | None = None,
        seed: int = 0,
    ) -> Score:
        """Return the score of a policy: its gain over the best fixed schedule, as a part of that of `best_of_others`.

        Args:
            choices: index of the schedule for each crop, (crops,), or for each crop and noise; or a list of these, one
                for each training seed.
            fixed: index of the best fixed schedule of the training photographs.
            price: price of a forward.
            seed: seed of the resampling.

        Returns:
            The score; NaN if the schedules that are best under the other noises are no better than the fixed one.
        """
        each = [choices] if isinstance(choices, np.ndarray) else list(choices)
        everywhere = np.full(len(self.features), fixed)
        every = *each, everywhere, self.best_of_others(price)
        parts = [self.per_photograph(self.chosen(own, price)) for own in every]
        *rewards, base, best = (float(part.mean()) for part in parts)
        value, low, high = share_of_gain(np.mean(parts[: len(each)], axis=0), parts[-2], parts[-1], seed)
        values = tuple(gap_closed(reward, base, best) for reward in rewards)
        return Score(value, low, high, float(np.mean(rewards)), base, best, values)

    def check_score(self, fixed: int, price: float | None = None) -> None:
        """Check that a policy can be better than the best fixed schedule, which a score needs.

        Raises:
            ConfigError: the schedules that are best under the other noises are no better than the fixed one.
        """
        if np.isnan(self.score(np.full(len(self.features), fixed), fixed, price).value):
            raise ConfigError(
                f"none of these {len(set(self.photographs))} photographs gains by another schedule at the price "
                f"{price or 0:g}, so there is no score; take another price, or a table of more photographs"
            )


def best_fixed(rewards: Array) -> int:
    """Return the index of the schedule with the largest mean of rewards (crops, noises, schedules)."""
    return int(rewards.mean(axis=(0, 1)).argmax())


def best_of_others(rewards: Array) -> NDArray[np.intp]:
    """Return the schedule that is best under the crop's other noises, (crops, noises); see `OutcomeTable`."""
    if rewards.shape[1] < 2:
        raise ConfigError("the choice by other noises needs at least 2 noises")
    return (rewards.sum(axis=1, keepdims=True) - rewards).argmax(axis=2)


def gap_closed(reward: float, fixed: float, best: float) -> float:
    """Return the share of the gap between two rewards that a policy closes: 0 at `fixed`, 1 at `best`.

    It is NaN if there is no gap.

    Args:
        reward: mean reward of a policy.
        fixed: that of the best fixed schedule.
        best: that of the best choice, such as the schedules that are best under the other noises.
    """
    return (reward - fixed) / (best - fixed) if best > fixed else math.nan


def share_of_gain(own: Array, fixed: Array, best: Array, seed: int = 0) -> tuple[float, float, float]:
    """Return the share of the gap that is closed on average over photographs, with its interval.

    Args:
        own: reward of the policy for each photograph, (photographs,).
        fixed: that of the best fixed schedule.
        best: that of the schedules that are best under the other noises.
        seed: seed of the resampling.

    Returns:
        (share, low, high) with the 95 % bootstrap interval over photographs; NaN if the best choice has no gain.
    """
    if not best.mean() > fixed.mean():
        return (np.nan,) * 3
    rows = np.random.default_rng(seed).integers(0, len(own), (RESAMPLES, len(own)))
    gain, possible = own - fixed, best - fixed
    with np.errstate(divide="ignore", invalid="ignore"):  # a few photographs may all have the same best schedule
        low, high = np.nanquantile(gain[rows].mean(axis=1) / possible[rows].mean(axis=1), [0.025, 0.975])
    return gap_closed(float(own.mean()), float(fixed.mean()), float(best.mean())), float(low), float(high)


def _check_names(description: Mapping[str, Any]) -> None:
    """Check the network and the size of the crops, which agents of the table use, and the photographs.

    Raises:
        ConfigError: a value is of the wrong kind.
        KeyError, TypeError: a value is missing, or is not a known one.
    """
    texts = (description["checkpoint"], *description["photographs"])
    if odd := [text for text in texts if not isinstance(text, str)]:
        raise ConfigError(f"checkpoint and photographs must be texts, got {odd[0]!r:.80}")
    for split in description.get("splits") or ():
        check_one_of(SPLITS, split=split)
    if not isinstance(description["metrics"], dict):
        raise TypeError("metrics must say for each name whether a lower value is better")
    check_whole(1, size=description["size"])
