"""Settings of a training run of an agent, and of a run that is resumed."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agents.algorithms import algorithm_class
from agents.training.hyperparameters import Hyperparameters
from ddpm.util.checks import check_types
from ddpm.util.errors import ConfigError
from ddpm.util.files import read_json

# The largest seed of NumPy's old generator, which Stable-Baselines3 uses.
MAX_SEED = 2**32 - 1
# The file of Stable-Baselines3's state; it exists once a run can be resumed.
STATE = "state.zip"
# Settings that may change when a run is resumed.
RESUMABLE = frozenset({"env_steps", "minutes", "eval_every", "cache_mb", "cache_dir", "device"})


@dataclass(frozen=True)
class AgentTrainingConfig:
    """Settings of a training run; `config.json` in the run's folder.

    Attributes:
        algorithm: "ppo", "a2c", "dqn", "qrdqn", "trpo" or "recurrent-ppo".
        env: arguments of `skipdiff_env.env.SkipDiffEnv`, without `cache_mb`, `cache_dir`, `device` and `render_mode`.
        hyperparameters: hyperparameters of the algorithm.
        eval_images: pictures of the evaluation; None: those of the training, of which random crops are replaced by the
            centres.
        eval_noise_seeds: number of noises of each picture in the evaluation.
        eval_first_seed: the first noise seed of the evaluation, from which the others count up; seeds from the
            environment's `noise_seeds` on do not occur in training.
        eval_every: number of episodes between two evaluations.
        oracle: whether to compute every start of the evaluation's pictures, for the best fixed start and the oracle.
            This takes N (N + 1) / 2 forwards for each picture and noise, which are many if the plan's first step is T.
            Under "jump" every number of even steps takes the place of the starts.
        minutes: time limit of the training, which includes the computations before the first episode.
        cache_mb: memory for latents; None: as much as they need, if it is available.
        cache_dir: folder for latents and metrics, which later runs read as well; None: no folder.
        seed: seed of everything random.
        device: device of the networks.
    """

    algorithm: str = "ppo"
    env: Mapping[str, Any] = field(default_factory=dict)
    hyperparameters: Hyperparameters = field(default_factory=Hyperparameters)
    eval_images: Sequence[str] | None = None
    eval_noise_seeds: int = 1
    eval_first_seed: int = 0
    eval_every: int = 400
    oracle: bool = True
    minutes: float | None = None
    cache_mb: float | None = None
    cache_dir: str | None = None
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_types(self)
        algorithm_class(self.algorithm)
        for name in ("eval_noise_seeds", "eval_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("seed", "eval_first_seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}")
        if self.seed > MAX_SEED:
            raise ConfigError(f"seed must be at most {MAX_SEED}, the largest of Stable-Baselines3, got {self.seed}")
        if self.minutes is not None and not self.minutes > 0:
            raise ConfigError(f"minutes must be positive, got {self.minutes}")
        skip_mode = self.env.get("skip_mode", "restart")
        if self.hyperparameters.undone_price is not None and skip_mode != "restart":
            raise ConfigError(
                f"undone_price needs skip_mode restart, got {skip_mode}: there no decision is undone; leave it out"
            )

    @property
    def observation(self) -> str:
        """Kind of the agent's observations, such as "latent" or "dict"."""
        return str(self.env.get("observation", "latent"))


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
    changes = dict(changes)
    try:
        hyperparameters = Hyperparameters(**stored.pop("hyperparameters"))
        if "env_steps" in changes:
            hyperparameters = replace(hyperparameters, env_steps=changes.pop("env_steps"))
        return AgentTrainingConfig(**{**stored, **changes}, hyperparameters=hyperparameters)
    except (TypeError, KeyError, AttributeError) as error:
        raise ConfigError(f"{folder}/config.json does not hold the settings of a training ({error})") from None
