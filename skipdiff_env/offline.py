"""Episodes for offline learning, as Minari datasets."""

from pathlib import Path
from typing import Any

import gymnasium
import numpy as np

from ddpm.util.checks import check_whole
from ddpm.util.errors import ConfigError
from ddpm.util.packages import package
from ddpm.util.progress import progress
from skipdiff_env.outcomes import OutcomeTable
from skipdiff_env.rules import PRICE


def check_minari(name: str) -> None:
    """Refuse a name that a new Minari dataset cannot have.

    Raises:
        ConfigError: Minari is not installed, the name is taken, or it is not the name of a dataset.
    """
    for each in ("h5py", "minari"):
        package(each, "offline")
    import minari.storage.local
    from minari.dataset.minari_dataset import parse_dataset_id

    try:
        parse_dataset_id(name)
    except (ValueError, TypeError):
        raise ConfigError(
            f"{name!r} is not the name of a Minari dataset, expected one like skipdiff/table-v0"
        ) from None
    if minari.storage.local.get_dataset_path(name).exists():
        raise ConfigError(f"there is a Minari dataset {name} already; name another, or `minari delete {name}`")


def write_minari(
    name: str,
    env_id: str = "SkipDiffBanditTable-v0",
    table: str | Path | None = None,
    split: str | None = "train",
    episodes: int = 1000,
    seed: int = 0,
) -> Path:
    """Play episodes of an environment with a table at random, and write them as a Minari dataset.

    The possible actions have equal probabilities. In `SkipDiffTable-v0` the probability of SKIP is drawn anew for each
    episode, so that short and long schedules are equally frequent. `ref_min_score` and `ref_max_score` are the mean
    rewards of the best fixed schedule of the training photographs and of the best one under the other noises, so that
    `minari.get_normalized_score` of mean rewards on the split equals the score of `skipdiff_env.score`.

    Args:
        name: name of the dataset, as in "skipdiff/bandit-train-v0".
        env_id: the environment.
        table: its table; None: the shipped one.
        split: "train", "validation" or "test"; None: all pictures.
        episodes: number of episodes.
        seed: seed of crops, noises and decisions.

    Returns:
        Folder of the dataset, below $MINARI_DATASETS_PATH or in the user's home.

    Raises:
        ConfigError: Minari is not installed, the name is taken or not the name of a dataset, or an argument is wrong.
    """
    check_whole(episodes=episodes)
    check_minari(name)
    import minari
    from minari.data_collector import EpisodeBuffer
    from minari.storage.local import get_dataset_path

    arguments: dict[str, Any] = {"split": split}
    if table is not None:
        arguments["table"] = str(Path(table).absolute())
    env: Any = gymnasium.make(env_id, **arguments)
    inner, rng = env.unwrapped, np.random.default_rng(seed)
    whole = OutcomeTable.load(arguments.get("table", env.spec.kwargs["table"]))
    buffers = []
    for i in progress(range(episodes), desc="episodes", unit="episode"):
        observation, info = env.reset(seed=seed + i)
        skip = rng.random() if inner.tree.kind == "skip" else None
        observations, actions, rewards, terminated = [observation], [], [], False
        while not terminated:
            possible = inner.action_masks()
            if skip is None:
                action = int(rng.choice(np.flatnonzero(possible)))
            else:
                action = int(rng.random() < skip)
                action = action if possible[action] else 1 - action
            observation, reward, terminated, _, _ = env.step(action)
            observations.append(observation)
            actions.append(action)
            rewards.append(float(reward))
        ends = [False] * (len(actions) - 1)
        options = {key: info[key] for key in ("image_index", "noise_seed", "nfe_penalty")}
        buffers.append(
            EpisodeBuffer(
                id=i, seed=seed + i, options=options, observations=np.stack(observations), actions=np.array(actions),
                rewards=rewards, terminations=[*ends, True], truncations=[*ends, False],
            )
        )  # fmt: skip
    dataset = minari.create_dataset_from_buffers(
        name, buffers, env=env, algorithm_name="random", data_format="hdf5",
        description=f"{env_id}, {split or 'all'} photographs, random actions.",
    )  # fmt: skip
    dataset.storage.update_metadata(_reference(whole, inner))
    return Path(get_dataset_path(name))


def _reference(whole: OutcomeTable, env: Any) -> dict[str, float]:
    """Return the mean rewards that have the scores 0 and 1; empty if each picture has one noise."""
    part = env.table
    if next(iter(part.metrics.values())).shape[1] < 2:
        return {}
    fixed = (whole.split("train") if "train" in whole.splits else whole).best_fixed(PRICE)
    relative = env.tree.kind != "skip"
    offset = part.rewards(PRICE).mean(axis=2) if relative else np.zeros(())
    choices = np.full(len(part.features), fixed), part.best_of_others(PRICE)
    low, high = (float(part.per_photograph(part.chosen(each, PRICE) - offset).mean()) for each in choices)
    return {"ref_min_score": low, "ref_max_score": high}
