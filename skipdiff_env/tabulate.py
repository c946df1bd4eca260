"""Computation of tables of outcomes."""

import multiprocessing
import time
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ddpm.pictures.images import find_images, picture_size, read_picture
from ddpm.schedule import Schedule, even_levels
from ddpm.training.runs import lock_run, pictures_digest
from ddpm.util.checks import check_whole
from ddpm.util.errors import ConfigError
from ddpm.util.files import atomic_path, read_json, write_json
from ddpm.util.progress import progress
from skipdiff_env.config import TaskConfig
from skipdiff_env.features import FEATURES, features
from skipdiff_env.outcomes import ARRAYS, DESCRIPTION, FORMAT, Jumps, OutcomeTable, states_of
from skipdiff_env.pictures import PHOTOGRAPHS, Pictures, Rgb, photographs_of
from skipdiff_env.plan import Plan
from skipdiff_env.task import Task, fingerprint

# Largest number of levels for which a table holds every schedule.
ALL_UP_TO = 10
# Seconds between two writings of an unfinished table.
SECONDS = 30
# Memory for the states of a crop, in MiB.
ROOM_MB = 64
# Parts of a description that are paths, which may be spelt in several ways; network and pictures have digests.
PATHS = frozenset({"checkpoint", "photographs"})


def family(plan: Plan, count: int = 512) -> tuple[Schedule, ...]:
    """Return the schedules of a table if they are not given.

    Args:
        plan: the steps.
        count: number of schedules, if there are too many to hold all.

    Returns:
        With "restart" the chain of each start, from 1 on; with "jump" and up to 10 levels all schedules, with more
        levels the evenly spaced ones and random others, of which short and long ones are equally frequent.

    Raises:
        ConfigError: `count` is too small for the even schedules.
    """
    first = plan.first
    if plan.skip_mode == "restart":
        return tuple(Schedule(tuple(range(start, 0, -1))) for start in range(1, first + 1))
    if first <= ALL_UP_TO:
        below = range(first - 1, 0, -1)
        codes = range(2 ** (first - 1))
        return tuple(Schedule((first, *(level for level in below if code >> (level - 1) & 1))) for code in codes)
    if count < first:
        raise ConfigError(f"schedules must be at least {first}, one for each number of even steps, got {count}")
    found = dict.fromkeys(even_levels(first, n) for n in range(1, first + 1))
    rng = np.random.default_rng(0)
    while len(found) < count:
        inner = rng.choice(np.arange(1, first), rng.integers(first), replace=False)
        found[first, *sorted(inner.tolist(), reverse=True)] = None
    return tuple(Schedule(levels) for levels in found)


@dataclass(frozen=True)
class _Cut:
    """A crop of a photograph.

    Attributes:
        file: the photograph; None: the task's picture `number`.
        left: first column.
        top: first row.
        number: number of the crop, on which its noises depend.
    """

    file: Path | None
    left: int
    top: int
    number: int


def _cuts(paths: Sequence[Path], size: int, crops: int | None, seed: int) -> list[_Cut]:
    """Return random crops of photographs, `crops` of each, or the centres."""
    cuts = []
    for number, path in enumerate(paths):
        width, height = picture_size(path)
        if min(width, height) < size:
            raise ConfigError(f"{path} is {width} x {height}, smaller than the crops of {size}; remove it, or lower it")
        rng = np.random.default_rng([seed, number])
        for k in range(crops or 1):
            room = width - size, height - size
            left, top = (side // 2 if crops is None else int(rng.integers(side + 1)) for side in room)
            cuts.append(_Cut(path, left, top, number * (crops or 1) + k))
    return cuts


_task: Any = None


def _prepare(settings: Mapping[str, Any]) -> None:
    """Make the task of a worker process."""
    global _task
    torch.set_num_threads(1)
    _task = Task(TaskConfig.of(settings))


def _row(
    cut: _Cut, size: int, noises: int, schedules: Sequence[Schedule], states: Sequence[Jumps]
) -> dict[str, NDArray[Any]]:
    """Return the features and outcomes of a crop."""
    if cut.file is None:
        rgb = _task.pictures[cut.number]
    else:
        rgb = read_picture(cut.file).rgb[cut.top : cut.top + size, cut.left : cut.left + size]
    rgb = np.ascontiguousarray(rgb)
    seeds = [cut.number * noises + k for k in range(noises)]
    outcomes = _task.schedule_outcomes([rgb], seeds, None if _task.plan.skip_mode == "restart" else schedules)
    return {
        "features": outcomes.features[0],
        **{f"metrics.{name}": values[0].astype(np.float32) for name, values in outcomes.metrics.items()},
        **({"estimates": _estimates(rgb, seeds, states)} if states else {}),
    }


@torch.no_grad()
def _estimates(rgb: Rgb, seeds: Sequence[int], states: Sequence[Jumps]) -> NDArray[np.float32]:
    """Return the features of the last estimate at each state, (noises, states, 42), from remembered states."""
    episodes = _task.begin([rgb] * len(seeds), seeds)
    found = np.empty((len(seeds), len(states), FEATURES), np.float32)
    for place, jumps in enumerate(states):
        reached = [replace(episode.refinement) for episode in episodes]
        for to, substeps in jumps:
            _task.process.jump([(state, to, substeps) for state in reached])
        for noise, state in enumerate(reached):
            estimate = _task.unet.decode(state.before[None], state.lr_up[None])[0]
            found[noise, place] = features(estimate.cpu().numpy())
    return found


def tabulate(
    settings: Mapping[str, Any],
    out: Path,
    schedules: Sequence[Schedule] | None = None,
    *,
    count: int = 512,
    crops: int | None = None,
    noises: int = 2,
    sources: Path | None = None,
    limit: int | None = None,
    jobs: int = 1,
    seed: int = 0,
) -> OutcomeTable:
    """Run schedules for pictures under several noises, and write the table; continue an unfinished one.

    Args:
        settings: arguments of the environment, `skipdiff_env.config.TaskConfig`. `images` are the photographs (files,
            folders or patterns), or None, the crops of scikit-image's photographs; the first metric is the reward's.
        out: the folder of the table.
        schedules: schedules of the plan's length; None: those of `family`.
        count: number of schedules, if there are too many to hold all; see `family`.
        crops: number of random crops of each photograph; None: its centre.
        noises: number of noises of each crop, independent of those of all others.
        sources: tab-separated file whose second column names the photograph of each file, so that crops of one
            photograph stay in one split; None: each file is a photograph.
        limit: largest number of photographs, evenly spread over all; None: all.
        jobs: number of processes.
        seed: seed of the places of the crops.

    Raises:
        ConfigError: the folder holds a table of other settings, or a setting is wrong.
    """
    global _task
    check_whole(
        noises=noises, jobs=jobs, **{k: v for k, v in {"crops": crops, "limit": limit}.items() if v is not None}
    )
    images, size = settings.get("images"), settings.get("image_size", TaskConfig.image_size)
    states = states_of(schedules or ())
    settings = {**settings, "cache_mb": 0}
    splits: list[str] | None = None
    if images is None:
        pictures = Pictures(None, size, None)
        kept = min(limit or len(pictures), len(pictures))
        cuts = [_Cut(None, 0, 0, i * len(pictures) // kept) for i in range(kept)]
        digest, files = pictures.digest(), [pictures.names[cut.number] for cut in cuts]
        names = [name.split()[0] for name in files]
        splits = [PHOTOGRAPHS[name] for name in names]
    else:
        paths = [Path(path) for path in find_images([images] if isinstance(images, str | Path) else images)]
        kept = min(limit or len(paths), len(paths))
        paths = [paths[i * len(paths) // kept] for i in range(kept)]
        cuts, digest, files = _cuts(paths, size, crops, seed), pictures_digest(paths), [path.name for path in paths]
        names = [name for name in photographs_of([str(path) for path in paths], sources) for _ in range(crops or 1)]
        settings |= {"images": [str(paths[0])]}
    if states:  # states keep their estimates, and are remembered until their features are computed
        settings |= {"decisions": "stride", "observation": "features", "cache_mb": ROOM_MB}
    task = Task(TaskConfig.of(settings))
    wanted = family(task.plan, count) if schedules is None else tuple(schedules)
    for schedule in schedules or ():
        task.process.check(schedule)
    description = {
        "format": FORMAT, "checkpoint": task.config.name, "network": fingerprint(task.unet),
        "plan": task.plan.settings(), "degradation": str(task.degradation), "size": size, "crops": crops,
        "seed": seed,
        "metrics": {name: metric.lower_better for name, metric in task.metrics.items()}, "noises": noises,
        "schedules": [str(schedule) for schedule in wanted], "photographs": names, "files": files, "digest": digest,
        **({} if splits is None else {"splits": splits}),
        **({"forwards_per_call": calls} if (calls := task.unet.forwards_per_call) > 1 else {}),
    }  # fmt: skip
    shape = len(cuts), noises, len(wanted)
    arrays: dict[str, NDArray[Any]] = {
        "done": np.zeros(len(cuts), np.uint8), "features": np.zeros((len(cuts), FEATURES), np.float32),
        **{f"metrics.{name}": np.full(shape, np.nan, np.float32) for name in task.metrics},
    }  # fmt: skip
    if states:
        arrays["estimates"] = np.zeros((len(cuts), noises, len(states), FEATURES), np.float32)
    with lock_run(out):
        if not _resume(out, description, arrays):
            write_json(out / DESCRIPTION, description)
        todo = [int(place) for place in np.flatnonzero(arrays["done"] == 0)]
        work = partial(_row, size=size, noises=noises, schedules=wanted, states=states)
        if jobs == 1:
            _task = task
            _collect(map(work, (cuts[place] for place in todo)), todo, arrays, out)
        elif todo:
            context = multiprocessing.get_context("spawn")
            with ProcessPoolExecutor(jobs, context, _prepare, (settings,)) as pool:
                _collect(pool.map(work, [cuts[place] for place in todo], chunksize=4), todo, arrays, out)
    return OutcomeTable.load(out)


def _resume(out: Path, description: Mapping[str, Any], arrays: dict[str, NDArray[Any]]) -> bool:
    """Fill in the arrays of an unfinished table of the same description; return whether there is one.

    Raises:
        ConfigError: the table has another description, or is damaged.
    """
    if not (out / DESCRIPTION).exists():
        return False
    known = read_json(out / DESCRIPTION)
    known = known if isinstance(known, dict) else {}
    other = [name for name in description if name not in PATHS and known.get(name) != description[name]]
    if not other and list(known["metrics"]) != list(description["metrics"]):
        other = ["order of metrics"]  # the first is the reward's
    if other:
        raise ConfigError(f"{out} holds a table of another {', '.join(other)}; name another folder, or remove it")
    if (out / ARRAYS).exists():
        try:
            found = load_file(out / ARRAYS)
            for name, array in arrays.items():
                if found[name].shape != array.shape or found[name].dtype != array.dtype:
                    raise ValueError(f"{name} is {found[name].dtype} {found[name].shape}")
                array[...] = found[name]
        except (OSError, KeyError, ValueError, SafetensorError) as error:
            raise ConfigError(f"the unfinished table {out} is damaged ({error}); remove {out / ARRAYS}") from None
    return True


def _collect(
    rows: Iterable[Mapping[str, Any]], places: Sequence[int], arrays: dict[str, NDArray[Any]], out: Path
) -> None:
    """Put rows into the arrays as they arrive, and write the arrays from time to time."""

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
