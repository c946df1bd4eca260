"""Trained agents, and their files, which hold no pickle."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray

from agents.algorithms import MASKABLE, RECURRENT, algorithm_class
from agents.policies import acting_part, build_policy, check_outputs
from ddpm.checkpoints import check_device, hub_folder, is_hub_id, shipped_checkpoints
from ddpm.util.checks import check_one_of, check_types, shown
from ddpm.util.errors import CheckpointError, ConfigError
from ddpm.util.files import atomic_path, read_settings, write_json
from skipdiff_env.config import OBSERVATIONS
from skipdiff_env.decisions import KINDS, Decisions, make_decisions
from skipdiff_env.plan import Plan

CONFIG, WEIGHTS = "config.json", "model.safetensors"
# Folder of a shipped agent that chooses the detail of one forward. The name of a checkpoint stands for this agent.
DETAIL = "agent-detail"
# State of a recurrent policy: arrays (layers, B, size).
State = tuple[NDArray[np.float32], ...]


@dataclass(frozen=True)
class AgentConfig:
    """The configuration of an agent, which `config.json` beside its weights holds.

    Attributes:
        algorithm: name of the algorithm that trained it.
        plan: the episodes that it decides.
        policy: description of its policy, see `agents.policies.policy_description`.
        image_size: side of the pictures it was trained on.
        latent_bound: bound of the latents in the observation space it was trained on.
        observation: kind of its observations, one of `skipdiff_env.config.OBSERVATIONS`.
        price_range: lowest and highest price of a forward that it was trained for. It observes a price from this range
            when it is used. None: it has learnt one price.
        kind: kind of its decisions, a name in `skipdiff_env.decisions.KINDS`.
        schedules: texts of the schedules from which it chooses one for each picture, for the kind "schedule".
        substeps: numbers of substeps that it chooses from ("stride"), or only the largest of them ("continuous").
        training: a record of its training.
    """

    algorithm: str
    plan: Plan
    policy: Mapping[str, Any]
    image_size: int
    latent_bound: float
    observation: str = "latent"
    price_range: tuple[float, float] | None = None
    kind: str = "skip"
    schedules: tuple[str, ...] | None = None
    substeps: tuple[int, ...] | None = None
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)
        algorithm_class(self.algorithm)
        check_one_of(OBSERVATIONS, observation=self.observation)
        check_one_of(KINDS, kind=self.kind)
        if self.price_range is not None:
            if len(self.price_range) != 2 or not 0 < self.price_range[0] <= self.price_range[1]:
                raise ConfigError(f"price_range must be two rising numbers above 0, got {self.price_range}")
            object.__setattr__(self, "price_range", tuple(map(float, self.price_range)))
        if self.image_size < 1 or not self.latent_bound > 0:
            raise ConfigError(
                f"image_size and latent_bound must be positive, got {self.image_size} and {self.latent_bound}"
            )
        if not isinstance(self.training.get("env", {}), Mapping):
            raise ConfigError(f"env of training must be a mapping, got {shown(self.training['env'])}")
        trained = self.training.get("env", {}).get("checkpoint")
        if not isinstance(trained, str | Path | None):
            raise ConfigError(f"checkpoint in env of training must be a name or a folder, got {shown(trained)}")
        if (self.schedules is not None) != ("schedules" in KINDS[self.kind].takes):
            verb = "need" if self.schedules is None else "do not take"
            raise ConfigError(f'agents of the kind "{self.kind}" {verb} schedules, got {shown(self.schedules)}')
        if self.schedules is not None:
            object.__setattr__(self, "schedules", tuple(self.schedules))
        self.make_decisions()  # refuses what does not fit

    def make_decisions(self) -> Decisions:
        """Return the decisions of the agent, which give its actions their meaning.

        Raises:
            ConfigError: the settings do not fit together.
        """
        substeps = self.substeps or (1,)
        return make_decisions(self.kind, self.plan, max(substeps), self.substeps, self.schedules)

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> "AgentConfig":
        """Return the configuration that a JSON file holds.

        Raises:
            ConfigError: a setting is unknown, missing or wrong, or version 0.2 wrote the file.
        """
        if "policy_kwargs" in content and content.get("policy") is None:
            raise ConfigError(
                "this agent was made by version 0.2, whose files are no longer read; train it again, or take an agent "
                "that ships with version 0.3"
            )
        known = [f.name for f in fields(cls)]
        unknown = sorted(content.keys() - set(known))
        if unknown:
            raise ConfigError(f"unknown setting {', '.join(unknown)}; known are {', '.join(known)}")
        try:
            return cls(**{**content, "plan": Plan(**content["plan"])})
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"a setting is missing or of the wrong type ({error})") from None

    def price(self, quality: float | None = None, price: float | None = None) -> float | None:
        """Return the price of a forward that the agent observes.

        Args:
            quality: 0 … 1, from the highest price that the agent was trained for (few forwards) to the lowest (many).
                In between the price falls by equal factors. None: one half.
            price: the price, above 0, instead of a quality.

        Returns:
            The price; None if the agent has learnt one price and neither argument is given.

        Raises:
            ConfigError: the agent has learnt one price, both arguments are given, or one is out of range.
        """
        if quality is not None and price is not None:
            raise ConfigError("quality and price say the same; give one of them")
        if self.price_range is None:
            if quality is not None or price is not None:
                raise ConfigError("the agent has learnt one price of a forward, and takes neither quality nor price")
            return None
        lowest, highest = self.price_range
        if price is not None:
            if not 0 < price < math.inf:
                raise ConfigError(f"price must be a number above 0, got {price!r}")
            return min(max(float(price), lowest), highest)
        quality = 0.5 if quality is None else quality
        if not 0 <= quality <= 1:
            raise ConfigError(f"quality must lie in 0 … 1, got {quality!r}")
        return float(highest * (lowest / highest) ** quality)


class Agent:
    """A policy that maps observations of its environment to actions of its environment.

    Args:
        config: its configuration.
        policy: policy of a Stable-Baselines3 algorithm.
    """

    def __init__(self, config: AgentConfig, policy: Any) -> None:
        self.config = config
        self.policy = acting_part(policy)
        check_outputs(self.policy)

    @classmethod
    def build(cls, config: AgentConfig, device: str = "cpu") -> "Agent":
        """Return an untrained agent.

        Raises:
            ConfigError: the settings of the policy do not exist or do not fit.
        """
        policy = build_policy(config.algorithm, config.policy)
        space = config.make_decisions().space
        if policy.action_space != space:
            raise ConfigError(f"the policy of the agent acts in {policy.action_space}, its decisions in {space}")
        return cls(config, policy.to(device))

    def first_state(self, batch: int) -> State:
        """Return the state of a batch of episodes at their first decision; () where the policy has no state."""
        if self.config.algorithm != RECURRENT:
            return ()
        layers, _, size = self.policy.lstm_hidden_state_shape
        return (np.zeros((layers, batch, size), np.float32),) * 2

    def predict(
        self,
        observations: Any,
        state: State | None = None,
        episode_starts: NDArray[np.bool_] | None = None,
        masks: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[Any], Any]:
        """Return the actions for a batch of observations. The agent is deterministic.

        Args:
            observations: arrays (B, …), or dictionaries of arrays, in the agent's observation space.
            state: for an agent with a state, the state that the last call returned; None: no episode has begun.
            episode_starts: bool (B,), whether an observation is the first of its episode; for agents with a state.
            masks: bool (B, actions), which actions are possible; for agents that take them.

        Returns:
            The actions (B, …), and the state after them.

        Raises:
            NotFiniteError: the network returns numbers that are not finite.
        """
        if self.policy.training:
            self.policy.set_training_mode(False)
        extra: dict[str, Any] = {"action_masks": masks} if self.config.algorithm == MASKABLE else {}
        if self.config.algorithm == RECURRENT:
            extra = {"state": state, "episode_start": episode_starts}
        return self.policy.predict(observations, deterministic=True, **extra)

    @torch.no_grad()
    def probabilities(
        self,
        observations: Any,
        state: State | None = None,
        episode_starts: NDArray[np.bool_] | None = None,
        masks: NDArray[np.bool_] | None = None,
    ) -> NDArray[np.float64] | None:
        """Return the probability of each action, (B, actions); None where the actions are not whole numbers.

        Where the policy has no probabilities, as for a Q-learner, the chosen action has the probability 1. The
        arguments and the errors are those of `predict`.
        """
        if not isinstance(self.policy.action_space, spaces.Discrete):
            return None
        actions, _ = self.predict(observations, state, episode_starts, masks)
        if not hasattr(self.policy, "get_distribution"):
            return np.eye(self.policy.action_space.n)[actions]
        seen, _ = self.policy.obs_to_tensor(observations)
        extra: tuple[Any, ...] = (masks,) if self.config.algorithm == MASKABLE else ()
        if self.config.algorithm == RECURRENT:
            begun = np.zeros(len(actions), bool) if episode_starts is None else episode_starts
            parts = self.first_state(len(actions)) if state is None else state
            tensors = [torch.as_tensor(part, device=self.policy.device) for part in (*parts, np.float32(begun))]
            extra = tuple(tensors[:-1]), tensors[-1]
        found = self.policy.get_distribution(seen, *extra)
        found = found[0] if self.config.algorithm == RECURRENT else found
        return found.distribution.probs.double().cpu().numpy()

    def check(self, plan: Plan) -> None:
        """Check that the agent was trained for the episodes of a plan.

        Raises:
            ConfigError: it was trained for other episodes.
        """
        if self.config.plan != plan:
            raise ConfigError(
                f"the agent was trained for episodes of {self.config.plan.describe()}, got {plan.describe()}; leave "
                "those options out, or take another agent"
            )

    def checkpoint_note(self, checkpoint: str | Path) -> str | None:
        """Return a note if the agent was trained with another network than that of a checkpoint, else None."""
        trained = self.config.training.get("env", {}).get("checkpoint")
        if trained in (None, "None", str(checkpoint)):
            return None
        weights = [_weights_of(each) for each in (trained, checkpoint)]
        if weights[0] is not None and weights[0] == weights[1]:
            return None
        return f"the agent was trained with the checkpoint {trained}, and decides for {checkpoint} here"

    def save(self, folder: str | Path) -> None:
        """Write config.json and model.safetensors."""
        from safetensors.torch import save_model

        folder = Path(folder)
        with atomic_path(folder / WEIGHTS) as temporary:
            save_model(self.policy, str(temporary))
        write_json(folder / CONFIG, asdict(self.config))


def _weights_of(checkpoint: str | Path) -> bytes | None:
    """Return the bytes of a checkpoint's weights; None if they are not on this machine."""
    file = Path(shipped_checkpoints().get(str(checkpoint), checkpoint)) / WEIGHTS
    return file.read_bytes() if file.is_file() else None


def find_agent(path: str | Path) -> Path:
    """Return the folder of an agent, or the file that was named.

    Args:
        path: folder of an agent, of a training run (its best agent) or of a checkpoint with an agent; name of a
            shipped checkpoint, with or without one of its folders, as in natural-x4/agent-paper; id of a repository on
            the Hub, OWNER/NAME.

    Raises:
        CheckpointError: there is no agent, or its configuration is damaged.
    """
    name, _, inside = str(path).partition("/")
    shipped = shipped_checkpoints().get(name)
    given, path = path, Path(path) if shipped is None else shipped / inside
    if path.is_file():
        return path
    if shipped is None and not path.exists() and is_hub_id(given):
        path = hub_folder(str(given), "agent")
    for folder in (path / "best", path / "agent", path / DETAIL, path):
        if is_agent(folder):
            return folder
    raise CheckpointError(f"no agent in {given}; name a folder with {CONFIG} and {WEIGHTS}, as train-agent writes it")


def is_agent(folder: Path) -> bool:
    """Return whether the files of an agent lie in a folder itself."""
    files = all((folder / name).is_file() for name in (CONFIG, WEIGHTS))
    return files and "algorithm" in read_settings(folder / CONFIG)


def load_agent(path: str | Path, device: str = "cpu") -> Agent:
    """Load an agent.

    Args:
        path: see `find_agent`.
        device: device of the agent.

    Raises:
        CheckpointError: there is no agent, or its files are damaged or do not fit together.
        ConfigError: its configuration holds an unknown setting or was written by version 0.2, or there is no such
            device.
    """
    check_device(device)
    found = find_agent(path)
    if found.is_file():
        raise CheckpointError(
            f"{found} is a file, expected the folder of an agent; write a model of Stable-Baselines3 as one with "
            "`agents.export_agent(model, env, folder)`"
        )
    from safetensors import SafetensorError
    from safetensors.torch import load_model

    try:
        config = AgentConfig.read(read_settings(found / CONFIG))
    except ConfigError as error:
        raise ConfigError(f"{found / CONFIG}: {error}") from None
    agent = Agent.build(config, device)
    try:
        load_model(agent.policy, found / WEIGHTS, device=device)
    except (SafetensorError, RuntimeError, OSError) as error:
        raise CheckpointError(f"{found / WEIGHTS} is damaged or does not fit {CONFIG} ({error})") from None
    agent.policy.set_training_mode(False)
    return agent
