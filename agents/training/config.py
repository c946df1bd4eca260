"""Settings of a training run of an agent, and of a run that is resumed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import gymnasium as gym

import skipdiff_env  # noqa: F401  # registers the environments
from agents.training.hyperparameters import load_hyperparameters
from ddpm.util.checks import check_most, check_positive, check_types, check_whole
from ddpm.util.errors import ConfigError
from ddpm.util.files import read_json
from skipdiff_env.scoring import BENCHMARKS

# The largest seed of NumPy's old generator, which Stable-Baselines3 uses.
MAX_SEED = 2**32 - 1
# Settings that may change when a run is resumed.
RESUMABLE = frozenset({"env_steps", "minutes", "eval_every", "cache_mb", "cache_dir", "device"})


@dataclass(frozen=True)
class AgentTrainingConfig:
    """Settings of a training run; `config.json` in the run's folder.

    On the tables of `skipdiff_env.scoring.BENCHMARKS` the agent is evaluated on the table's validation photographs, and
    the settings of evaluations on pictures and those of memory have no effect.

    Attributes:
        algorithm: name of the algorithm, one of `agents.algorithms.ALGORITHMS`.
        env: id of the environment.
        env_kwargs: arguments of the environment, in addition to the registered ones, without `cache_mb`, `cache_dir`,
            `device` and `render_mode`.
        hyperparameters: changes to the hyperparameters that ship; after construction, all hyperparameters.
        eval_images: pictures of the evaluation; None: those of the training, of which random crops are replaced by the
            centres.
        eval_noise_seeds: number of noises of each picture in the evaluation.
        eval_first_seed: the first noise seed of the evaluation, from which the others count up; seeds from the
            environment's `noise_seeds` on do not occur in training.
        eval_every: number of episodes between two evaluations; None: 400, and on a table a fortieth of the training.
        oracle: whether to compute every start of the evaluation's pictures, for the best fixed start and the oracle.
            This takes N (N + 1) / 2 forwards for each picture and noise, which are many if the plan's first step is T.
            Under "jump" every number of even steps takes the place of the starts.
        minutes: time limit of the training, which includes the computations before the first episode.
        cache_mb: memory for latents, in MiB; None: a third of the free memory, or 512 with an unlimited number of
            noises.
        cache_dir: folder for latents and metrics, which later runs read as well; None: no folder.
        seed: seed of everything random.
        device: device of the networks.
    """

    algorithm: str = "ppo"
    env: str = "SkipDiffBanditTable-v0"
    env_kwargs: Mapping[str, Any] = field(default_factory=dict)
    hyperparameters: Mapping[str, Any] = field(default_factory=dict)
    eval_images: Sequence[str] | None = None
    eval_noise_seeds: int = 1
    eval_first_seed: int = 0
    eval_every: int | None = None
    oracle: bool = True
    minutes: float | None = None
    cache_mb: float | None = None
    cache_dir: str | None = None
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_types(self)
        values = load_hyperparameters(self.algorithm, self.env, self.hyperparameters)
        object.__setattr__(self, "hyperparameters", values)
        check_whole(eval_noise_seeds=self.eval_noise_seeds)
        if self.eval_every is not None:
            check_whole(eval_every=self.eval_every)
        check_whole(0, seed=self.seed, eval_first_seed=self.eval_first_seed)
        check_most(MAX_SEED, seed=self.seed)
        if self.minutes is not None:
            check_positive(minutes=self.minutes)

    @property
    def on_table(self) -> bool:
        """Whether the environment plays from a table of outcomes."""
        return self.env in BENCHMARKS

    @property
    def env_settings(self) -> dict[str, Any]:
        """All arguments of the environment."""
        return {**gym.spec(self.env).kwargs, **self.env_kwargs}


def resumed_config(folder: Path, changes: Mapping[str, Any]) -> AgentTrainingConfig:
    """Return the configuration of the run in `folder` with some settings changed.

    Raises:
        ConfigError: there is no run, or a setting may not change.
    """
    if not (folder / "config.json").is_file():
        raise ConfigError(f"nothing to resume in {folder}: it holds no config.json")
    stored = read_json(folder / "config.json")
    fixed = sorted(changes.keys() - RESUMABLE)
    if fixed:
        raise ConfigError(
            f"{', '.join(fixed)} cannot change when a run is resumed; start a new run, or change only "
            f"{', '.join(sorted(RESUMABLE))}"
        )
    try:
        settings = {**stored, **changes}
        if "env_steps" in changes:
            settings["hyperparameters"] = {**stored["hyperparameters"], "n_timesteps": settings.pop("env_steps")}
        return AgentTrainingConfig(**settings)
    except (TypeError, KeyError) as error:
        raise ConfigError(f"{folder}/config.json does not hold the settings of a training ({error})") from None
