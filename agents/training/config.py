"""Settings of a training run of an agent, and how a run that goes on gets them back."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from agents.algorithms import algorithm_class
from agents.training.hyperparameters import Hyperparameters
from ddpm.util.checks import check_types
from ddpm.util.errors import ConfigError
from ddpm.util.files import read_json

# Stable-Baselines3 hands it to NumPy's old generator, which takes no larger one.
MAX_SEED = 2**32 - 1
# The file of Stable-Baselines3's own state, which is there once a run can go on.
STATE = "state.zip"
# What may change when a run goes on.
RESUMABLE = frozenset({"env_steps", "minutes", "eval_every", "cache_mb", "cache_dir", "device"})


@dataclass(frozen=True)
class AgentTrainingConfig:
    """Settings of a training run; `config.json` in the run's folder.

    Attributes:
        algorithm: "ppo", "a2c", "dqn", "qrdqn", "trpo" or "recurrent-ppo".
        env: arguments of `skipdiff_env.env.SkipDiffEnv`, without `cache_mb`, `cache_dir`, `device` and `render_mode`.
        hyperparameters: of the algorithm.
        eval_images: pictures that the agent is evaluated on; None: those it is trained on, their centres where it is
            trained on random crops.
        eval_noise_seeds: noises of each of these.
        eval_first_seed: the first of their noise seeds, the others counting up from there; from `noise_seeds` of the
            environment on, training never saw them.
        eval_every: episodes between two evaluations.
        oracle: whether every start of the evaluation's pictures is computed, so that the best fixed start and the
            oracle are known; N (N + 1) / 2 forwards for each picture and noise, which are many where the plan's first
            step is T. Under "jump" every number of even steps takes the place of the starts.
        minutes: when to stop, if `env_steps` have not been done by then; what is computed before the first episode
            counts too.
        cache_mb: room for remembered latents; None: as much as they need, if it is there.
        cache_dir: folder on disk for the same, which later runs read as well; None: none.
        seed: seed of everything random.
        device: where to compute.
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
        """What the agent sees, "latent" or "dict"."""
        return str(self.env.get("observation", "latent"))


def resumed_config(folder: Path, changes: Mapping[str, Any]) -> AgentTrainingConfig:
    """The configuration of the run in `folder` with some settings changed.

    Raises:
        ConfigError: there is no run, or a setting may not change.
    """
    if not (folder / "config.json").is_file():
        raise ConfigError(f"nothing to resume in {folder}: it holds no config.json")
    stored = read_json(folder / "config.json")
    fixed = sorted(changes.keys() - RESUMABLE)
    if fixed:
        raise ConfigError(
            f"{', '.join(fixed)} cannot change when a run goes on; start a new run, or change only "
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
