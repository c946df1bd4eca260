"""Training of agents on a table of outcomes, without a network."""

import csv
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.noise import NormalActionNoise
from stable_baselines3.common.utils import LinearSchedule
from stable_baselines3.common.vec_env.base_vec_env import VecEnvStepReturn

from agents.agent import CONFIG
from agents.algorithms import algorithm_class
from agents.exporting import export_agent
from agents.study.tables import write_csv
from agents.training.hyperparameters import table_hyperparameters
from agents.training.vec_env import SkipDiffVecEnv
from ddpm.training.configs import check_least
from ddpm.training.runs import check_new_run, lock_run, start_run
from ddpm.util.checks import check_types
from ddpm.util.errors import ConfigError
from ddpm.util.files import atomic_path, read_json, write_json
from ddpm.util.progress import progress
from skipdiff_env.outcomes import OutcomeTable, Score
from skipdiff_env.rules import check_price
from skipdiff_env.scoring import BENCHMARKS, play, tree_of
from skipdiff_env.table_env import PRICE, SkipDiffTableVectorEnv
from skipdiff_env.tree import Tree

# The learning curve: decisions, and the score on validation photographs.
CURVE = "curve.csv"
# The score of a finished training.
RESULT = "result.json"
# The trained model as Stable-Baselines3 saves it, with the weights that were best on validation photographs.
MODEL = "model.zip"
# Largest number of scores in a learning curve.
POINTS = 40


class TableVecEnv(SkipDiffVecEnv):
    """The batched environment of a table as a `VecEnv` of Stable-Baselines3, with short `infos`.

    Args:
        num_envs: number of environments.
        seed: seed for drawing crops and noises.
        settings: arguments of `skipdiff_env.table_env.SkipDiffTableVectorEnv`.
    """

    def __init__(self, num_envs: int = 256, seed: int | None = None, **settings: Any) -> None:
        env: Any = SkipDiffTableVectorEnv(num_envs, autoreset_mode="SameStep", **settings)
        super().__init__(env)
        self.seed(seed)

    def step_wait(self) -> VecEnvStepReturn:
        """Perform the actions; `infos` has only the entries that Stable-Baselines3 needs."""
        assert self._actions is not None, "step_wait() without step_async()"
        observations, rewards, dones, _, infos = self.env.step(self._actions)
        self._actions = None
        final = infos.get("final_obs", [None] * self.num_envs)
        each: list[dict[str, Any]] = [
            {"terminal_observation": last, "TimeLimit.truncated": False} if done else {}
            for done, last in zip(dones, final, strict=True)
        ]
        return observations, rewards.astype(np.float32), dones, each


@dataclass(frozen=True)
class TableTrainingConfig:
    """Settings of a training on a table; `config.json` in the run's folder.

    Attributes:
        env: the environment, one of `skipdiff_env.scoring.BENCHMARKS`.
        table: folder of the table, as `skipdiff tabulate --levels` writes it, or the name of a table that ships; None:
            the table of the environment.
        algorithm: name of the algorithm.
        nfe_penalty: price of a forward.
        env_steps: number of decisions; None: the number in the hyperparameters.
        minutes: time limit of the training.
        seed: seed of everything random.
        settings: changes to the hyperparameters that ship, see `agents/training/hyperparams`.
    """

    env: str = "SkipDiffBanditTable-v0"
    table: str | None = None
    algorithm: str = "ppo"
    nfe_penalty: float = PRICE
    env_steps: int | None = None
    minutes: float | None = None
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)
        check_price(self.nfe_penalty)
        if self.env not in BENCHMARKS:
            raise ConfigError(f"tables are for the environments {', '.join(BENCHMARKS)}, got {self.env!r}")
        if self.env_steps is not None:
            check_least(self, 1, "env_steps")
        if self.minutes is not None and not self.minutes > 0:
            raise ConfigError(f"minutes must be positive, got {self.minutes}")
        check_least(self, 0, "seed")


class _Watch(BaseCallback):
    """Callback that shows the progress, evaluates on validation photographs, and keeps the best weights."""

    def __init__(self, tree: Tree, fixed: int, config: TableTrainingConfig, env_steps: int) -> None:
        super().__init__()
        self.validation, self.fixed, self.config, self.env_steps = tree, fixed, config, env_steps
        self.best = -np.inf
        self.weights: dict[str, torch.Tensor] = {}
        self.curve: list[tuple[int, float]] = []
        self.began = time.monotonic()
        self.bar = progress(total=env_steps, desc=config.algorithm, unit="decision")

    def _on_step(self) -> bool:
        self.bar.update(self.training_env.num_envs)
        minutes = self.config.minutes
        return minutes is None or time.monotonic() - self.began < 60 * minutes

    def _on_rollout_end(self) -> None:
        if not self.curve or self.num_timesteps - self.curve[-1][0] >= self.env_steps // POINTS:
            self.evaluate()

    def evaluate(self) -> None:
        """Score the policy on validation photographs, and keep its weights if the score is the best so far."""
        chosen = play(self.validation, self.model)
        score = self.validation.table.score([chosen], self.fixed, self.config.nfe_penalty).value
        self.curve.append((self.num_timesteps, score))
        self.bar.set_postfix(score=f"{score:.3f}", best=f"{max(self.best, score):.3f}")
        if score > self.best:
            self.best = score
            self.weights = {name: value.clone() for name, value in self.model.policy.state_dict().items()}

    def _on_training_end(self) -> None:
        self.evaluate()
        self.bar.close()


def resumed_table_config(folder: Path, changes: Mapping[str, Any] | None = None) -> TableTrainingConfig:
    """Return the settings of a run on a table, which cannot be changed.

    Raises:
        ConfigError: the folder does not hold such a run, or a setting differs from the run's.
    """
    if not (folder / CONFIG).is_file():
        raise ConfigError(f"{folder} holds no run to resume; leave --resume out")
    known = read_json(folder / CONFIG)
    if not isinstance(known, dict):
        raise ConfigError(f"{folder / CONFIG} must hold an object of settings, got {known!r:.80}")
    for name, value in (changes or {}).items():
        if known.get(name) != value:
            raise ConfigError(f"the run in {folder} has {name} {known.get(name)!r}, got {value!r}; name another folder")
    try:
        return TableTrainingConfig(**known)
    except TypeError as error:
        raise ConfigError(f"{folder / CONFIG} does not hold settings of a training on a table ({error})") from None


def make_model(config: TableTrainingConfig, table: OutcomeTable) -> tuple[Any, int]:
    """Return an untrained algorithm on the table's training photographs, and the number of decisions of its training.

    Raises:
        ConfigError: the algorithm does not learn on tables, or does not take a hyperparameter.
    """
    values = table_hyperparameters(config.algorithm, config.env, config.settings)
    env_steps = config.env_steps or int(values.pop("n_timesteps"))
    values.pop("n_timesteps", None)
    _, kind = BENCHMARKS[config.env]
    env = TableVecEnv(
        values.pop("n_envs"), config.seed, table=table, decisions=kind, nfe_penalty=config.nfe_penalty, split="train"
    )
    make: Any = algorithm_class(config.algorithm)
    rate = values["learning_rate"]
    if isinstance(rate, str) and rate.startswith("lin_"):  # a rate that falls to 0, in the zoo's notation
        values["learning_rate"] = LinearSchedule(float(rate.removeprefix("lin_")), 0.0, 1.0)
    if values.pop("noise_type", None) is not None:  # "normal", as the zoo calls it
        zeros = np.zeros(env.action_space.shape or ())
        values["action_noise"] = NormalActionNoise(zeros, zeros + values.pop("noise_std"))
    try:
        return make(values.pop("policy"), env, seed=config.seed, device="cpu", **values), env_steps
    except Exception as error:  # for unusual settings, algorithms raise nearly any error
        reason = (str(error).splitlines() or [""])[0]
        raise ConfigError(
            f"{config.algorithm} does not take these hyperparameters ({type(error).__name__}: {reason})"
        ) from None


def train_on_table(config: TableTrainingConfig, folder: Path, resume: bool = False) -> tuple[Path, Score]:
    """Train an agent on the table's training photographs, and keep the weights with the best validation score.

    Args:
        config: the settings.
        folder: folder of the run; the agent is written to `best`, the learning curve to `curve.csv`, and the model of
            Stable-Baselines3 to `model.zip`.
        resume: return the result of a finished run, or start an unfinished run again, since it takes only a minute.

    Returns:
        The agent's folder, or the model's file where the decisions are strides; and the score on the table's test
        photographs.

    Raises:
        ConfigError: the folder holds a run, possibly with other settings, the table is damaged, or a setting does not
            fit.
    """
    check_new_run(folder, resume)
    whole = tree_of(config.env, config.table)
    train, validation, test = (whole.table.split(name) for name in ("train", "validation", "test"))
    fixed = train.best_fixed(config.nfe_penalty)
    if (folder / RESULT).exists():
        return _result(folder)
    for part in (validation, test):
        part.check_score(fixed, config.nfe_penalty)
    model, env_steps = make_model(config, whole.table)
    with lock_run(folder):
        if not resume:
            start_run(folder, asdict(config))
        watch = _Watch(Tree(validation, whole.kind), fixed, config, env_steps)
        model.learn(env_steps, callback=watch)
        model.policy.load_state_dict(watch.weights)
        write_csv(folder / CURVE, [{"decisions": steps, "score": score} for steps, score in watch.curve])
        with atomic_path(folder / MODEL) as temporary, temporary.open("wb") as file:
            model.save(file)
        path = folder / MODEL
        if whole.kind == "schedule":
            path = folder / "best"
            export_agent(
                model, whole.table, path, price=config.nfe_penalty, env_steps=env_steps, seed=config.seed,
                seconds=round(time.monotonic() - watch.began, 1), validation_score=round(watch.best, 4),
                env={"metric": whole.table.metric, "reward": "negative"},
            )  # fmt: skip
        score = test.score([play(Tree(test, whole.kind), model)], fixed, config.nfe_penalty)
        write_json(folder / RESULT, {"agent": path.name, "score": asdict(score)})
    return path, score


def _result(folder: Path) -> tuple[Path, Score]:
    """Return the results of a finished run, as `train_on_table` returned them."""
    known = read_json(folder / RESULT)
    try:
        score = Score(**{**known["score"], "values": tuple(known["score"]["values"])})
        check_types(score)
        return folder / known["agent"], score
    except (KeyError, TypeError, ConfigError) as error:
        raise ConfigError(f"{folder / RESULT} is damaged ({error}); remove it, and the run begins anew") from None


def read_curve(path: Path) -> list[tuple[int, float]]:
    """Return the learning curve of a training on a table: decisions and scores."""
    with path.open(newline="", encoding="utf-8") as file:
        return [(int(row["decisions"]), float(row["score"])) for row in csv.DictReader(file)]
