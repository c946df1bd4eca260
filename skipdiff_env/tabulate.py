"""Tables of what schedules give, for `skipdiff_env.table`, and episodes for offline learning."""

import hashlib
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from ddpm.schedule import even_levels
from ddpm.training.runs import lock_run
from ddpm.util.checks import check_whole
from ddpm.util.errors import ConfigError
from ddpm.util.files import atomic_path, read_json, write_json
from ddpm.util.progress import progress
from skipdiff_env.config import TaskConfig
from skipdiff_env.outcome_env import PRICE
from skipdiff_env.plan import Plan
from skipdiff_env.rules import Action
from skipdiff_env.scoring import tree_of
from skipdiff_env.table import ARRAYS, DESCRIPTION, FEATURES, FORMAT, SHIPPED, Table, features
from skipdiff_env.table_env import SkipDiffTableEnv
from skipdiff_env.task import Task, fingerprint

# Up to so many levels a table holds every schedule.
ALL_UP_TO = 10
# Decisions of a schedule are the bits of one 64-bit number.
LARGEST = 64
# What a table says of paths, which may be spelt in several ways.
PATHS = frozenset({"checkpoint", "pictures"})
# What is finished is written so often.
SECONDS = 20


def family(plan: Plan, count: int = 512) -> list[tuple[int, ...]]:
    """The schedules of a table, as the levels at which the network runs.

    Args:
        plan: the steps.
        count: how many, where there are too many to hold all.

    Returns:
        With "restart", the chain of each start from 1 on; with "jump" all schedules of up to 10 levels, and of more the
        evenly spaced ones and others at random, which are as often short as long.

    Raises:
        ConfigError: `count` is too small for the even schedules, or there are too many levels.
    """
    first = plan.first
    if plan.skip_mode == "restart":
        return [tuple(range(start, 0, -1)) for start in range(1, first + 1)]
    if first <= ALL_UP_TO:
        below = range(first - 1, 0, -1)
        return [(first, *(level for level in below if code >> (level - 1) & 1)) for code in range(2 ** (first - 1))]
    if first > LARGEST:
        raise ConfigError(f"a table has at most {LARGEST} levels, got {first}; lower N of steps S,N")
    if count < first:
        raise ConfigError(f"schedules must be at least {first}, one for each number of even steps, got {count}")
    found = dict.fromkeys(even_levels(first, n) for n in range(1, first + 1))
    rng = np.random.default_rng(0)
    while len(found) < count:
        inner = rng.choice(np.arange(1, first), rng.integers(first), replace=False)
        found[first, *sorted(inner.tolist(), reverse=True)] = None
    return list(found)


# Plain data of the pictures that are done, from that of the pictures to do: what `make_rows` gives.
Rows = Callable[[list[int]], list[dict[str, Any]]]
# Has chunks of pictures done, in any order.
Spread = Callable[[list[list[int]]], Iterable[list[dict[str, Any]]]]


def tabulate(
    config: TaskConfig,
    out: Path,
    noise_seeds: int = 2,
    schedules: int = 512,
    limit: int | None = None,
    spread: Spread | None = None,
) -> Table:
    """Computes the table of a task's pictures, and writes it into a folder; goes on with one that is unfinished.

    Args:
        config: the task; its metric and report_metrics are what is tabulated.
        out: the folder.
        noise_seeds: noises of each picture.
        schedules: how many, where there are too many to hold all; see `family`.
        limit: take only so many pictures, evenly spread.
        spread: has the work of `make_rows` done elsewhere; None: it is done here.

    Raises:
        ConfigError: the folder holds a table of other settings, or a setting is wrong.
    """
    check_whole(noise_seeds=noise_seeds)
    if limit is not None:
        check_whole(limit=limit)
    task = Task(replace(config, noise_seeds=noise_seeds))
    wanted = family(task.plan, schedules)
    count = min(limit or len(task.pictures), len(task.pictures))
    pictures = [i * len(task.pictures) // count for i in range(count)]
    digest = hashlib.blake2b(digest_size=16)
    for i in pictures:
        digest.update(task.pictures[i].tobytes())
    shape = count, noise_seeds, len(wanted)
    description = {
        "format": FORMAT,
        "checkpoint": config.name,
        "net": fingerprint(task.unet),
        "plan": task.plan.settings(),
        "image_size": config.image_size,
        "degradation": str(task.degradation),
        "metrics": {name: metric.lower_better for name, metric in task.metrics.items()},
        "noise_seeds": noise_seeds,
        "schedules": [list(levels) for levels in wanted],
        "pictures": [task.pictures.names[i] for i in pictures],
        "splits": [task.pictures.splits[i] for i in pictures] if task.pictures.splits else None,
        "digest": digest.hexdigest(),
    }
    with lock_run(out):
        arrays: dict[str, NDArray[Any]] = {
            "done": np.zeros(1, np.int64),
            "features": np.zeros((count, FEATURES), np.float32),
        }
        arrays |= {f"metrics.{name}": np.full(shape, np.nan, np.float32) for name in task.metrics}
        if not _begun(out, description, arrays):
            write_json(out / DESCRIPTION, description)
        if spread is None:
            rows = _rows(task, noise_seeds, wanted)
            _fill(arrays, pictures, lambda chunks: map(rows, chunks), out)
        else:
            _fill(arrays, pictures, spread, out)
    return Table.load(out)


def make_rows(settings: Mapping[str, Any], noise_seeds: int, schedules: int) -> Rows:
    """What computes the rows of a table.

    Args:
        settings: of `TaskConfig`; their paths must mean the same wherever this is called.
        noise_seeds: noises of each picture.
        schedules: as of `tabulate`.

    Returns:
        A function of numbers of pictures. It gives for each "picture", "features", and "metrics", name → (noises,
        schedules).
    """
    task = Task(TaskConfig.of({**settings, "noise_seeds": noise_seeds}))
    return _rows(task, noise_seeds, family(task.plan, schedules))


def _rows(task: Task, noise_seeds: int, schedules: list[tuple[int, ...]]) -> Rows:
    """As `make_rows`."""

    def row(index: int) -> dict[str, Any]:
        if task.plan.skip_mode == "restart":
            outcomes = task.start_outcomes([index], range(noise_seeds))
        else:
            outcomes = task.schedule_outcomes([index], range(noise_seeds), schedules)
        (episode,) = task.begin([index], [0])
        return {
            "picture": index,
            "features": features(episode.refinement.lr_up.cpu().numpy()).tolist(),
            "metrics": {name: values[0].tolist() for name, values in outcomes.metrics.items()},
        }

    return lambda pictures: [row(index) for index in pictures]


def _begun(out: Path, description: dict[str, Any], arrays: dict[str, NDArray[Any]]) -> bool:
    """Fills in the arrays of an unfinished table of the same description; whether there is one.

    Raises:
        ConfigError: the table is another one, or damaged.
    """
    if not (out / DESCRIPTION).exists():
        return False
    known = read_json(out / DESCRIPTION)
    if isinstance(known, dict):
        known = {"degradation": "bicubic", **known}  # tables of the time when there was no other
    # names of files do not matter, since the network and the pictures have digests
    names = [name for name in description if name not in PATHS]
    names = [name for name in names if not isinstance(known, dict) or known.get(name) != description[name]]
    if not names and list(known["metrics"]) != list(description["metrics"]):
        names = ["order of metrics"]  # the first is the reward's
    if names:
        raise ConfigError(f"{out} holds a table of another {', '.join(names)}; name another folder, or remove it")
    if not (out / ARRAYS).exists():
        return False
    try:
        found = load_file(out / ARRAYS)
        for name, array in arrays.items():
            if found[name].shape != array.shape or found[name].dtype != array.dtype:
                raise ValueError(f"{name} is {found[name].dtype} {found[name].shape}")
            array[...] = found[name]
        if not 0 <= arrays["done"][0] <= len(description["pictures"]):
            raise ValueError(f"{arrays['done'][0]} pictures are done")
    except (OSError, KeyError, ValueError, SafetensorError) as error:
        raise ConfigError(f"the unfinished table {out} is damaged ({error}); remove {out / ARRAYS}") from None
    return True


def _fill(arrays: dict[str, NDArray[Any]], pictures: list[int], spread: Spread, out: Path) -> None:
    """Computes what is missing, picture by picture; what counts as done is what no earlier one is missing before."""

    def write() -> None:
        with atomic_path(out / ARRAYS) as temporary:
            save_file(arrays, temporary)

    written, done = time.monotonic(), int(arrays["done"][0])
    ready = [place < done for place in range(len(pictures))] + [False]
    places = {picture: place for place, picture in enumerate(pictures)}
    try:
        with progress(total=len(pictures), initial=done, desc="tabulate", unit="picture") as bar:
            for rows in spread([[picture] for picture in pictures[done:]]):
                for row in rows:
                    place = places[row["picture"]]
                    arrays["features"][place] = row["features"]
                    for name, values in row["metrics"].items():
                        arrays[f"metrics.{name}"][place] = values
                    ready[place] = True
                    bar.update()
                arrays["done"][0] = ready.index(False)
                if time.monotonic() - written > SECONDS:
                    write()
                    written = time.monotonic()
    finally:
        write()


def check_minari(name: str) -> None:
    """Refuses a name that no new Minari dataset can have.

    Raises:
        ConfigError: Minari is not installed, the name is taken, or it is no name of a dataset.
    """
    try:
        import h5py  # noqa: F401
        import minari.storage.local
        from minari.dataset.minari_dataset import parse_dataset_id
    except ImportError as error:
        raise ConfigError(f"Minari is not installed ({error}); pip install 'skipdiff[offline]'") from None
    try:
        parse_dataset_id(name)
    except (ValueError, TypeError):
        raise ConfigError(f"{name!r} is no name of a Minari dataset, expected one like skipdiff/table-v0") from None
    if minari.storage.local.get_dataset_path(name).exists():
        raise ConfigError(f"there is a Minari dataset {name} already; name another, or `minari delete {name}`")


def write_minari(table: str | Path | None, name: str, episodes: int = 1000, seed: int = 0) -> Path:
    """Plays episodes from a table and writes them as a Minari dataset.

    In each episode the probability of SKIP is drawn anew, uniformly, so that short and long schedules are equally
    frequent.

    Args:
        table: folder of the table; None: the one that is shipped.
        name: of the dataset, as in "skipdiff/table-v0".
        episodes: how many.
        seed: of pictures, noises, prices and decisions.

    Returns:
        Folder of the dataset, below $MINARI_DATASETS_PATH or in the user's home.

    Raises:
        ConfigError: Minari is not installed, the name is taken or no name of a dataset, or there is no such table.
    """
    check_whole(episodes=episodes)
    check_minari(name)
    import gymnasium

    folder = None if table is None else str(Path(table).absolute())
    env: Any = gymnasium.make("SkipDiffTable-v0", table=folder)
    inner = env.unwrapped
    assert isinstance(inner, SkipDiffTableEnv)
    rng = np.random.default_rng(seed)

    def skipping() -> Callable[[], int]:
        skip = rng.random()

        def act() -> int:
            action = Action(int(rng.random() < skip))
            return int(action if inner.action_masks()[action] else 1 - action)

        return act

    source = SHIPPED if folder is None else folder
    return _record(
        env, name, episodes, seed, skipping, ("image_index", "noise_seed", "nfe_penalty"),
        description=f"SkipDiffTable-v0 from the table {Path(source).name}; the probability of SKIP is uniform over "
        f"episodes.",
    )  # fmt: skip


def write_benchmark_minari(env_id: str, name: str, split: str = "train", episodes: int = 1000, seed: int = 0) -> Path:
    """Play episodes of an environment of the benchmark at random, and write them as a Minari dataset.

    The possible actions have equal probabilities. `ref_min_score` and `ref_max_score` are the mean rewards of the best
    fixed schedule and of the best one under the other noises, so that `minari.get_normalized_score` of mean rewards on
    the split is the score of `skipdiff_env.score`.

    Args:
        env_id: the environment, one of `skipdiff_env.scoring.BENCHMARKS`.
        name: of the dataset, as in "skipdiff/bandit-train-v0".
        split: "train", "validation" or "test".
        episodes: how many.
        seed: of crops, noises and decisions.

    Returns:
        Folder of the dataset, below $MINARI_DATASETS_PATH or in the user's home.

    Raises:
        ConfigError: as for `write_minari`, or the environment or the split is unknown.
    """
    check_whole(episodes=episodes)
    check_minari(name)
    import gymnasium

    whole = tree_of(env_id).table
    fixed, part = whole.split("train").best_fixed(PRICE), whole.split(split)
    offset = part.rewards(PRICE).mean(axis=2)
    everywhere = np.full(len(part.features), fixed)
    low, high = (
        float(part.per_photograph(part.chosen(choices, PRICE) - offset).mean())
        for choices in (everywhere, part.best_of_others(PRICE))
    )
    env: Any = gymnasium.make(env_id, split=split)
    rng = np.random.default_rng(seed)

    def uniform() -> Callable[[], int]:
        return lambda: int(rng.choice(np.flatnonzero(env.unwrapped.action_masks())))

    return _record(
        env, name, episodes, seed, uniform, ("image_index", "noise_seed"), ref_min_score=low, ref_max_score=high,
        description=f"{env_id}, {split} photographs; all possible actions are equally probable.",
    )  # fmt: skip


def _record(
    env: Any,
    name: str,
    episodes: int,
    seed: int,
    begin: Callable[[], Callable[[], int]],
    told: Sequence[str],
    **metadata: Any,
) -> Path:
    """Plays episodes and writes them as a dataset.

    Args:
        env: the environment.
        name: of the dataset.
        episodes: how many.
        seed: of the first episode, the others counting up.
        begin: gives what acts in a new episode.
        told: what of the `info` of `reset` is kept of each episode.
        metadata: of the dataset.
    """
    import minari
    from minari.data_collector import EpisodeBuffer
    from minari.storage.local import get_dataset_path

    buffers = []
    for i in progress(range(episodes), desc="episodes", unit="episode"):
        observation, info = env.reset(seed=seed + i)
        act, observations, actions, rewards, terminated = begin(), [observation], [], [], False
        while not terminated:
            action = act()
            observation, reward, terminated, _, _ = env.step(action)
            observations.append(observation)
            actions.append(action)
            rewards.append(float(reward))
        ends = [False] * (len(actions) - 1)
        buffers.append(
            EpisodeBuffer(
                id=i, seed=seed + i, options={key: info[key] for key in told}, observations=np.stack(observations),
                actions=np.array(actions), rewards=rewards, terminations=[*ends, True], truncations=[*ends, False],
            )
        )  # fmt: skip
    dataset = minari.create_dataset_from_buffers(
        name, buffers, env=env, algorithm_name="random", data_format="hdf5",
        description=metadata.pop("description"),
    )  # fmt: skip
    if metadata:
        dataset.storage.update_metadata(metadata)
    return Path(get_dataset_path(name))
