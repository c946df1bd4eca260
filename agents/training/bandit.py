"""Agents that choose a schedule for each picture, trained on a table of outcomes: a contextual bandit."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv
from stable_baselines3.common.vec_env.base_vec_env import VecEnvIndices, VecEnvObs, VecEnvStepReturn

from agents.agent import FEATURES, Agent, AgentConfig, features_space
from agents.algorithms import algorithm_class, policy_alias
from agents.study.tables import write_csv
from agents.training.even_steps import action_values
from ddpm.training.configs import check_least
from ddpm.training.runs import check_new_run, lock_run, start_run
from ddpm.util.checks import check_types
from ddpm.util.errors import ConfigError
from ddpm.util.progress import progress
from skipdiff_env.outcomes import OutcomeTable, Score
from skipdiff_env.plan import Plan
from skipdiff_env.rules import check_price

# The learning curve: decisions, and the score on validation photographs.
CURVE = "curve.csv"
# What an agent of a table does not use, but its configuration holds.
NO_LATENT = 1.0


class TableBandit(VecEnv):
    """Environments whose one decision is the schedule of a crop; outcomes come from a table, and no network runs.

    The observation is the 42 features of the crop's condition. The reward is -M less the price of the forwards; with
    `relative` the mean of the rewards of all schedules is taken off, so that easy and hard pictures count alike.

    Args:
        table: the outcomes, such as `OutcomeTable.load(FOLDER).split("train")`.
        num_envs: number of environments.
        price: of a forward.
        relative: whether rewards are relative to the crop's mean.
        seed: of the crops and noises that are drawn.
    """

    def __init__(
        self, table: OutcomeTable, num_envs: int = 256, price: float = 0.0, relative: bool = True, seed: int = 0
    ) -> None:
        rewards = table.rewards(price)
        good = np.isfinite(rewards).all(axis=2)
        self.crops, self.noises = np.nonzero(good)
        self.rewards = rewards - rewards.mean(axis=2, keepdims=True) if relative else rewards
        self.table, self.price = table, check_price(price)
        self.rng = np.random.default_rng(seed)
        self.place = np.zeros(num_envs, dtype=np.intp)
        self.actions = np.zeros(num_envs, dtype=np.intp)
        self.render_mode = None
        super().__init__(num_envs, features_space(None), spaces.Discrete(len(table.schedules)))

    def _draw(self) -> NDArray[np.float32]:
        self.place = self.rng.integers(len(self.crops), size=self.num_envs)
        return self.table.features[self.crops[self.place]]

    def reset(self) -> VecEnvObs:
        """Draw a crop and a noise for each environment."""
        return self._draw()

    def step_async(self, actions: NDArray[Any]) -> None:
        """Keep the actions for `step_wait`."""
        self.actions = actions

    def step_wait(self) -> VecEnvStepReturn:
        """Return the rewards of the choices, and the first observations of the next episodes."""
        before = self.table.features[self.crops[self.place]]
        rewards = self.rewards[self.crops[self.place], self.noises[self.place], self.actions].astype(np.float32)
        infos = [{"terminal_observation": row, "TimeLimit.truncated": False} for row in before]
        return self._draw(), rewards, np.ones(self.num_envs, dtype=np.bool_), infos

    def close(self) -> None:
        """Nothing is open."""

    def get_attr(self, attr_name: str, indices: VecEnvIndices = None) -> list[Any]:
        """Return an attribute once for each environment; all share it."""
        return [getattr(self, attr_name)] * len(list(self._get_indices(indices)))

    def set_attr(self, attr_name: str, value: Any, indices: VecEnvIndices = None) -> None:
        """Refuse to change an attribute, since all environments share it.

        Raises:
            ConfigError: always.
        """
        raise ConfigError(f"{attr_name} cannot be set; make the environment anew with the value you want")

    def env_method(
        self, method_name: str, *method_args: Any, indices: VecEnvIndices = None, **method_kwargs: Any
    ) -> list[Any]:
        """Call a method once, and return its result for each environment."""
        return [getattr(self, method_name)(*method_args, **method_kwargs)] * len(list(self._get_indices(indices)))

    def env_is_wrapped(self, wrapper_class: type, indices: VecEnvIndices = None) -> list[bool]:
        """Return False for each environment."""
        return [False] * len(list(self._get_indices(indices)))


@dataclass(frozen=True)
class BanditConfig:
    """Settings of a training on a table; `config.json` in the run's folder.

    Attributes:
        table: folder of the table, as `skipdiff tabulate --ways` writes it, or the name of one that ships.
        algorithm: which one trains.
        price: of a forward.
        env_steps: decisions in all.
        num_envs: environments.
        n_steps: env steps of a rollout.
        learning_rate: of Adam.
        ent_coef: weight of the entropy.
        net_arch: width of the layers of the policy.
        seed: of everything random.
        settings: further arguments of the algorithm's class.
    """

    table: str
    algorithm: Literal["ppo"] = "ppo"
    price: float = 0.0
    env_steps: int = 400_000
    num_envs: int = 256
    n_steps: int = 8
    learning_rate: float = 1e-3
    ent_coef: float = 0.1
    net_arch: Sequence[int] = (64,)
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)
        check_price(self.price)
        check_least(self, 1, "env_steps", "num_envs", "n_steps")
        check_least(self, 0, "seed")


def choices(agent: Agent, table: OutcomeTable) -> NDArray[np.intp]:
    """Return the place of the schedule that an agent chooses for each crop of a table, (crops,)."""
    return agent.scores(table.features).argmax(dim=1).cpu().numpy()


def export_agent(model: BaseAlgorithm, table: OutcomeTable, folder: str | Path, **training: Any) -> Agent:
    """Write the policy of a trained model as an agent, which other commands take as --agent; no pickle is written.

    Args:
        model: trained on a `TableBandit`, by an algorithm of `agents.algorithms`.
        table: its outcomes.
        folder: where config.json and model.safetensors go.
        training: how it was trained, for the record.

    Returns:
        The agent.
    """
    plan = Plan(**table.description["plan"])
    name = type(model).__name__.lower()
    arch: Any = getattr(model.policy, "net_arch", None)
    kwargs = {} if arch is None else {"net_arch": list(arch)}
    config = AgentConfig(
        name, plan.decisions, table.description["size"], NO_LATENT, plan, kwargs, training, FEATURES, None, None,
        tuple(str(schedule) for schedule in table.schedules),
    )  # fmt: skip
    agent = Agent(config, model.policy)
    agent.save(folder)
    return agent


class _Watch(BaseCallback):
    """Shows progress and, now and then, the score on validation photographs; keeps the best weights."""

    def __init__(self, table: OutcomeTable, fixed: int, config: BanditConfig) -> None:
        super().__init__()
        self.validation, self.fixed, self.config = table, fixed, config
        self.best = -np.inf
        self.weights: dict[str, torch.Tensor] = {}
        self.curve: list[tuple[int, float]] = []
        self.bar = progress(total=config.env_steps, desc=config.algorithm, unit="decision")

    def _on_step(self) -> bool:
        self.bar.update(self.training_env.num_envs)
        return True

    def _on_rollout_end(self) -> None:
        every = max(1, self.config.env_steps // 40)
        if self.curve and self.num_timesteps - self.curve[-1][0] < every:
            return
        with torch.no_grad():
            obs = torch.as_tensor(self.validation.features, device=self.model.device)
            chosen = action_values(self.model.policy, obs).argmax(dim=1).cpu().numpy()
        score = self.validation.score(chosen, self.fixed, self.config.price).value
        self.curve.append((self.num_timesteps, score))
        self.bar.set_postfix(score=f"{score:.3f}", best=f"{max(self.best, score):.3f}")
        if score > self.best:
            self.best = score
            self.weights = {name: value.clone() for name, value in self.model.policy.state_dict().items()}

    def _on_training_end(self) -> None:
        self.bar.close()


def train_bandit(config: BanditConfig, folder: Path) -> tuple[Path, Score]:
    """Train an agent on the table's training photographs; the weights with the best validation score are kept.

    Args:
        config: the settings.
        folder: of the run; the agent goes to `best`, the learning curve to `curve.csv`.

    Returns:
        The agent's folder, and its score on the table's test photographs.

    Raises:
        ConfigError: the folder holds a run, the table is damaged, or a setting does not fit.
    """
    check_new_run(folder, resume=False)
    table = OutcomeTable.load(config.table)
    train, validation, test = (table.split(name) for name in ("train", "validation", "test"))
    fixed = train.best_fixed(config.price)
    env = TableBandit(train, config.num_envs, config.price, seed=config.seed)
    make: Any = algorithm_class(config.algorithm)
    arguments = {"n_steps": config.n_steps, "batch_size": config.num_envs * config.n_steps // 8, "gamma": 1.0}
    model = make(
        policy_alias(config.algorithm, FEATURES), env, learning_rate=config.learning_rate, ent_coef=config.ent_coef,
        seed=config.seed, policy_kwargs={"net_arch": list(config.net_arch)}, device="cpu",
        **{**arguments, **config.settings},
    )  # fmt: skip
    with lock_run(folder):
        start_run(folder, asdict(config))
        watch, began = _Watch(validation, fixed, config), time.monotonic()
        model.learn(config.env_steps, callback=watch)
        model.policy.load_state_dict(watch.weights)
        write_csv(folder / CURVE, [{"decisions": steps, "score": score} for steps, score in watch.curve])
        agent = export_agent(
            model, table, folder / "best", checkpoint=table.description["checkpoint"], price=config.price,
            env_steps=config.env_steps, seed=config.seed, seconds=round(time.monotonic() - began, 1),
            validation_score=round(watch.best, 4), env={"metric": table.metric, "reward": "negative"},
        )  # fmt: skip
    return folder / "best", test.score(choices(agent, test), fixed, config.price)
