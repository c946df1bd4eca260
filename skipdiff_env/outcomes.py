"""Tables of outcomes: what a choice among schedules gives for crops of photographs under several noises."""

import hashlib
import multiprocessing
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ddpm.pictures.images import find_images, read_picture
from ddpm.schedule import Schedule
from ddpm.training.runs import lock_run
from ddpm.util.checks import check_one_of, check_whole
from ddpm.util.errors import ConfigError
from ddpm.util.files import atomic_path, read_json, write_json
from ddpm.util.progress import progress
from skipdiff_env.pictures import photographs_of
from skipdiff_env.plan import Plan
from skipdiff_env.rules import check_price
from skipdiff_env.table import ARRAYS, DESCRIPTION, FEATURES, SHIPPED, features

# Goes up when tables of older versions cannot be read.
FORMAT = 2
# Tables that ship.
TABLES = SHIPPED.parent
SPLITS = ("train", "validation", "test")
# The first parts of all photographs that are for training, and for training or validation.
SHARES = 0.68, 0.80
# Seconds between two writings of an unfinished table.
SECONDS = 30
# Megabytes for the states of a crop.
ROOM_MB = 64
# Resamples of a bootstrap interval.
RESAMPLES = 10_000

Array = NDArray[np.float64]
# Of each forward the level that it goes to, and its substeps.
Jumps = tuple[tuple[int, int], ...]


def split_of(photograph: str) -> str:
    """Return the split of a photograph, which depends on its name alone."""
    number = int.from_bytes(hashlib.blake2b(photograph.encode(), digest_size=8).digest(), "big") / 2**64
    return SPLITS[int(np.searchsorted(SHARES, number, side="right"))]


def states_of(schedules: Iterable[Schedule]) -> tuple[Jumps, ...]:
    """Return the states in which schedules are begun but not ended, each as the jumps that lead to it."""
    jumps = [tuple(schedule.jumps()) for schedule in schedules]
    return tuple(sorted({each[:count] for each in jumps for count in range(1, len(each))}))


@dataclass(frozen=True)
class Score:
    """The score of a policy: 0 is that of the best fixed schedule, 1 that of the best one under the other noises.

    Attributes:
        value: the score.
        low: lower end of the 95 % bootstrap interval over photographs.
        high: its upper end.
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
        ordered = np.sort(self.values)
        # as scipy.stats.trim_mean cuts a quarter off at both ends
        cut = len(ordered) // 4
        return float(ordered[cut : len(ordered) - cut].mean())


@dataclass(frozen=True)
class OutcomeTable:
    """Metrics of the results of several schedules, for crops of photographs under several noises. It holds no pictures.

    Attributes:
        schedules: the schedules.
        metrics: name → float32 (crops, noises, schedules); NaN where the metric failed. The first one rewards, and is
            lower for better pictures.
        features: of the crops' conditions, float32 (crops, 42), see `skipdiff_env.table.features`.
        photographs: for each crop the photograph that it is cut from.
        description: plain data: checkpoint, fingerprint of the network, degradation, size of the crops.
        estimates: features of the network's last estimate at each of `states`, float32 (crops, noises, states, 42).
    """

    schedules: tuple[Schedule, ...]
    metrics: Mapping[str, NDArray[np.float32]]
    features: NDArray[np.float32]
    photographs: tuple[str, ...]
    description: Mapping[str, Any] = field(default_factory=dict)
    estimates: NDArray[np.float32] | None = None

    @classmethod
    def load(cls, table: str | Path = "natural-x4") -> "OutcomeTable":
        """Read a table that `tabulate_schedules` has written.

        Args:
            table: its folder, or the name of one that ships: "natural-x4", "photo-x4" or "natural-x4-stride".

        Raises:
            ConfigError: there is none, or it is damaged or unfinished.
        """
        named = [TABLES / f"{table}-schedules", TABLES / str(table)]
        folder = next((shipped for shipped in named if shipped.is_dir()), Path(table))
        if not (folder / DESCRIPTION).is_file() or not (folder / ARRAYS).is_file():
            raise ConfigError(f"{folder} holds no table; `skipdiff tabulate --ways … --out {folder}` makes one")
        description = read_json(folder / DESCRIPTION)
        version = description.get("format") if isinstance(description, dict) else None
        if version != FORMAT:
            raise ConfigError(f"the table {folder} has format {version!r:.40}, expected {FORMAT}")
        try:
            arrays = load_file(folder / ARRAYS)
            _check_names(description)
            schedules = tuple(Schedule.parse(text) for text in description["schedules"])
            photographs = tuple(description["photographs"])
            metrics = {name: arrays[f"metrics.{name}"] for name in description["metrics"]}
            shape = len(photographs), description["noises"], len(schedules)
            if arrays["features"].shape != (shape[0], FEATURES) or any(m.shape != shape for m in metrics.values()):
                raise ValueError("its arrays do not fit together")
            states, estimates = len(states_of(schedules)), arrays.get("estimates")
            if states and (estimates is None or estimates.shape != (*shape[:2], states, FEATURES)):
                raise ValueError("it lacks the estimates of the states within its schedules")
            done = int(arrays["done"].sum())
        except (OSError, KeyError, TypeError, ValueError, AttributeError, SafetensorError) as error:
            raise ConfigError(f"the table {folder} is damaged ({error}); make it anew") from None
        if done < shape[0]:
            raise ConfigError(
                f"the table {folder} has {done} of {shape[0]} crops; the same `skipdiff tabulate` continues it"
            )
        return cls(schedules, metrics, arrays["features"], photographs, description, estimates)

    @cached_property
    def splits(self) -> NDArray[np.str_]:
        """The split of each crop, one of `SPLITS`."""
        return np.array([split_of(photograph) for photograph in self.photographs])

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
        return replace(
            self, metrics=metrics, features=self.features[rows], photographs=photographs, estimates=estimates
        )

    @cached_property
    def states(self) -> tuple[Jumps, ...]:
        """The states in the midst of the schedules, each as the jumps that lead to it; see `states_of`."""
        return states_of(self.schedules)

    @property
    def metric(self) -> str:
        """The metric that rewards."""
        return next(iter(self.metrics))

    @property
    def forwards(self) -> NDArray[np.int64]:
        """Network forwards of each schedule, those of guidance counted."""
        return np.array([schedule.forwards for schedule in self.schedules]) * self.forwards_per_call

    @property
    def forwards_per_call(self) -> int:
        """Network forwards of one prediction: 2 with guidance, else 1."""
        return int(self.description.get("forwards_per_call", 1))

    def rewards(self, price: float = 0.0) -> Array:
        """Return the rewards, -M less the price of the forwards, float64 (crops, noises, schedules)."""
        return -self.metrics[self.metric].astype(np.float64) - check_price(price) * self.forwards

    def best_fixed(self, price: float = 0.0) -> int:
        """Return the place of the schedule with the largest mean reward."""
        return int(np.nanmean(self.rewards(price), axis=(0, 1)).argmax())

    def best_of_others(self, price: float = 0.0) -> NDArray[np.intp]:
        """Return for each crop and noise the schedule that is best under the crop's other noises, (crops, noises).

        Raises:
            ConfigError: there is one noise only.
        """
        rewards = self.rewards(price)
        if rewards.shape[1] < 2:
            raise ConfigError("the choice by other noises needs at least 2 noises")
        return (rewards.sum(axis=1, keepdims=True) - rewards).argmax(axis=2)

    def per_photograph(self, values: Array) -> Array:
        """Return the mean of values (crops, noises) over the crops and noises of each photograph, (photographs,)."""
        names, places = np.unique(self.photographs, return_inverse=True)
        return np.bincount(places, values.mean(axis=1)) / np.bincount(places, minlength=len(names))

    def chosen(self, choices: NDArray[np.integer], price: float = 0.0) -> Array:
        """Return the rewards of choices, (crops, noises); choices are (crops,) or (crops, noises)."""
        rewards = self.rewards(price)
        places = np.broadcast_to(choices.reshape(len(choices), -1), rewards.shape[:2])
        return np.take_along_axis(rewards, places[..., None], axis=2)[..., 0]

    def score(
        self,
        choices: NDArray[np.integer] | Sequence[NDArray[np.integer]],
        fixed: int,
        price: float = 0.0,
        seed: int = 0,
    ) -> Score:
        """Return the score of a policy: the part of the gain from the best fixed schedule to the best one of others.

        Args:
            choices: place of the schedule for each crop, (crops,), or for each crop and noise; or a list of these, one
                for each training seed.
            fixed: place of the best fixed schedule, which is found on training photographs.
            price: of a forward.
            seed: of the resampling.

        Returns:
            The score; NaN where the schedules that are best under the other noises are no better than the fixed one.
        """
        each = [choices] if isinstance(choices, np.ndarray) else list(choices)
        everywhere = np.full(len(self.features), fixed)
        every = *each, everywhere, self.best_of_others(price)
        parts = [self.per_photograph(self.chosen(own, price)) for own in every]
        *rewards, base, best = (float(part.mean()) for part in parts)
        gain = best - base if best > base else np.nan
        mean = np.mean(parts[: len(each)], axis=0)  # over the seeds
        rng = np.random.default_rng(seed)
        rows = rng.integers(0, len(mean), (RESAMPLES, len(mean)))
        resampled = [part[rows].mean(axis=1) for part in (mean, *parts[-2:])]
        with np.errstate(divide="ignore", invalid="ignore"):  # a few photographs may all want the same schedule
            shares = (resampled[0] - resampled[1]) / (resampled[2] - resampled[1])
            low, high = [np.nan] * 2 if np.isnan(gain) else np.nanquantile(shares, [0.025, 0.975])
        values = tuple((reward - base) / gain for reward in rewards)
        reward = float(np.mean(rewards))
        return Score((reward - base) / gain, float(low), float(high), reward, base, best, values)

    def check_score(self, fixed: int, price: float = 0.0) -> None:
        """Check that a policy can be better than the best fixed schedule, without which there is no score.

        Raises:
            ConfigError: the schedules that are best under the other noises are no better than the fixed one.
        """
        if np.isnan(self.score(np.full(len(self.features), fixed), fixed, price).value):
            raise ConfigError(
                f"of these {len(set(self.photographs))} photographs none gains by a schedule of its own at the price "
                f"{price:g}, so there is no score; take another price, or a table of more photographs"
            )


def _check_names(description: Mapping[str, Any]) -> None:
    """Check what agents of the table take over: the network, the plan, the size of the crops; and the photographs.

    Raises:
        ConfigError: one is of another kind.
        KeyError, TypeError: one is missing, or there is another.
    """
    texts = (description["checkpoint"], *description["photographs"])
    if odd := [text for text in texts if not isinstance(text, str)]:
        raise ConfigError(f"checkpoint and photographs must be texts, got {odd[0]!r:.80}")
    check_whole(1, size=description["size"])
    Plan(**description["plan"])


# --- making a table ---


@dataclass(frozen=True)
class _Cut:
    """A crop of a photograph: the file, its left and top, and its number, which its noises depend on."""

    file: str
    left: int
    top: int
    number: int


def _cuts(files: Sequence[Path], size: int, crops: int, seed: int) -> list[_Cut]:
    """Random crops of photographs, `crops` of each."""
    from ddpm.pictures.images import picture_size

    cuts = []
    for number, path in enumerate(files):
        width, height = picture_size(path)
        if min(width, height) < size:
            raise ConfigError(f"{path} is {width} x {height}, smaller than the crops of {size}; remove it, or lower it")
        rng = np.random.default_rng([seed, number])
        for k in range(crops):
            left, top = (int(rng.integers(side - size + 1)) for side in (width, height))
            cuts.append(_Cut(str(path), left, top, number * crops + k))
    return cuts


_task: Any = None


def _prepare(settings: Mapping[str, Any]) -> None:
    """Makes the task of a worker process."""
    global _task
    import torch

    from skipdiff_env.config import TaskConfig
    from skipdiff_env.task import Task

    torch.set_num_threads(1)
    _task = Task(TaskConfig.of(settings))


def _row(cut: _Cut, size: int, noises: int, schedules: Sequence[str]) -> dict[str, Any]:
    """The features and outcomes of a crop."""
    rgb = read_picture(cut.file).rgb[cut.top : cut.top + size, cut.left : cut.left + size]
    rgb = np.ascontiguousarray(rgb)
    seeds = [cut.number * noises + k for k in range(noises)]
    outcomes = _task.schedule_outcomes([rgb], seeds, schedules)
    states = states_of(Schedule.parse(text) for text in schedules)
    return {
        "features": features(_task.condition(rgb).cpu().numpy()),
        **{f"metrics.{name}": values[0].astype(np.float32) for name, values in outcomes.metrics.items()},
        **({"estimates": _estimates(rgb, seeds, states)} if states else {}),
    }


def _estimates(rgb: NDArray[np.uint8], seeds: Sequence[int], states: Sequence[Jumps]) -> NDArray[np.float32]:
    """The features of the last estimate at each state, (noises, states, 42); what is remembered runs no network."""
    import torch

    episodes = _task.begin([rgb] * len(seeds), seeds)
    found = np.empty((len(seeds), len(states), FEATURES), np.float32)
    for place, jumps in enumerate(states):
        reached = [replace(episode.refinement) for episode in episodes]
        for to, substeps in jumps:
            _task.process.jump([(state, to, substeps) for state in reached])
        for noise, state in enumerate(reached):
            with torch.no_grad():
                estimate = _task.unet.decode(state.before[None], state.lr_up[None])[0]
            found[noise, place] = features(estimate.cpu().numpy())
    return found


def tabulate_schedules(
    settings: Mapping[str, Any],
    out: Path,
    schedules: Sequence[Schedule],
    *,
    crops: int = 1,
    noises: int = 2,
    sources: Path | None = None,
    jobs: int = 1,
    seed: int = 0,
) -> OutcomeTable:
    """Run every schedule for crops of photographs, and write the table into a folder; continue one that is unfinished.

    Args:
        settings: arguments of the environment, `skipdiff_env.config.TaskConfig`; `images` are the photographs, and the
            first metric, that of the reward, is lower for better pictures.
        out: the folder.
        schedules: of one length, that of the steps.
        crops: random crops of each photograph.
        noises: noises of each crop, independent of those of all others.
        sources: tab-separated file whose second column says which photograph a file is cut from, so that crops of one
            photograph stay in one split; None: each file is a photograph.
        jobs: processes that work at once.
        seed: of the places of the crops.

    Raises:
        ConfigError: the folder holds a table of other settings, or a setting is wrong.
    """
    from skipdiff_env.config import TaskConfig
    from skipdiff_env.task import Task, fingerprint

    check_whole(crops=crops, noises=noises, jobs=jobs)
    files = [Path(path) for path in find_images(settings["images"])]
    settings = {**settings, "images": [str(files[0])], "cache_mb": 0}
    states = states_of(schedules)
    if states:  # the states keep estimates, and are remembered until their features are computed
        settings |= {"decisions": "stride", "observation": "features", "cache_mb": ROOM_MB}
    task = Task(TaskConfig.of(settings))
    for schedule in schedules:
        task.process.check(schedule)
    if not task.metric.lower_better:
        raise ConfigError(f"the first metric must be lower for better pictures, got {task.metric.name}")
    size = task.config.image_size
    cuts, names = _cuts(files, size, crops, seed), photographs_of([str(path) for path in files], sources)
    description = {
        "format": FORMAT, "checkpoint": task.config.name, "network": fingerprint(task.unet),
        "plan": task.plan.settings(), "degradation": str(task.degradation), "size": size, "seed": seed,
        "metrics": list(task.metrics), "noises": noises, "schedules": [str(schedule) for schedule in schedules],
        "photographs": [name for name in names for _ in range(crops)], "files": [path.name for path in files],
        **({"forwards_per_call": calls} if (calls := task.unet.forwards_per_call) > 1 else {}),
    }  # fmt: skip
    shape = len(cuts), noises, len(schedules)
    if states:
        description["states"] = [[list(jump) for jump in jumps] for jumps in states]
    arrays: dict[str, NDArray[Any]] = {
        "done": np.zeros(len(cuts), np.uint8), "features": np.zeros((len(cuts), FEATURES), np.float32),
        **{f"metrics.{name}": np.full(shape, np.nan, np.float32) for name in task.metrics},
    }  # fmt: skip
    if states:
        arrays["estimates"] = np.zeros((len(cuts), noises, len(states), FEATURES), np.float32)
    with lock_run(out):
        _resume(out, description, arrays)
        write_json(out / DESCRIPTION, description)
        todo = [int(place) for place in np.flatnonzero(arrays["done"] == 0)]
        work = partial(_row, size=size, noises=noises, schedules=[str(schedule) for schedule in schedules])
        if jobs == 1:
            _prepare(settings)
            _collect(map(work, (cuts[place] for place in todo)), todo, arrays, out)
        elif todo:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(jobs, context, _prepare, (settings,)) as pool:
                _collect(pool.map(work, [cuts[place] for place in todo], chunksize=4), todo, arrays, out)
    return OutcomeTable.load(out)


def _resume(out: Path, description: Mapping[str, Any], arrays: dict[str, NDArray[Any]]) -> None:
    """Fills in the arrays of an unfinished table of the same description, if there is one."""
    if not (out / DESCRIPTION).exists():
        return
    known = read_json(out / DESCRIPTION)
    if known != description:
        other = [k for k in description if not isinstance(known, dict) or known.get(k) != description[k]]
        raise ConfigError(f"{out} holds a table of another {', '.join(other)}; name another folder, or remove it")
    if (out / ARRAYS).exists():
        try:
            found = load_file(out / ARRAYS)
            for name, array in arrays.items():
                array[...] = found[name]
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise ConfigError(f"the unfinished table {out} is damaged ({error}); remove {out / ARRAYS}") from None


def _collect(
    rows: Iterable[Mapping[str, Any]], places: Sequence[int], arrays: dict[str, NDArray[Any]], out: Path
) -> None:
    """Puts rows into the arrays as they come, and writes these now and then."""

    def write() -> None:
        with atomic_path(out / ARRAYS) as temporary:
            save_file(arrays, temporary)

    written = time.monotonic()
    try:
        with progress(total=len(arrays["done"]), initial=len(arrays["done"]) - len(places), desc="tabulate") as bar:
            for place, row in zip(places, rows, strict=True):
                for name, values in row.items():
                    arrays[name][place] = values
                arrays["done"][place] = 1
                bar.update()
                if time.monotonic() - written > SECONDS:
                    write()
                    written = time.monotonic()
    finally:
        write()
