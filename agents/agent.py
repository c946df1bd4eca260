"""Trained agents: saving and loading without pickle, and playing them on the refinement process."""

import json
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from ddpm.checkpoints import resolve_checkpoint, shipped_checkpoints
from ddpm.errors import CheckpointError, ConfigError
from ddpm.images import atomic_path
from ddpm.runs import read_json, write_json
from skipdiff_env.plan import Plan
from skipdiff_env.refinement import Policy, Refinement
from skipdiff_env.task import Episode, Task

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

    from agents.extractors import SkipProposalExtractor

# name → module and class
ALGORITHMS = {
    "ppo": ("stable_baselines3", "PPO"),
    "a2c": ("stable_baselines3", "A2C"),
    "dqn": ("stable_baselines3", "DQN"),
    "qrdqn": ("sb3_contrib", "QRDQN"),
    "trpo": ("sb3_contrib", "TRPO"),
    "recurrent-ppo": ("sb3_contrib", "RecurrentPPO"),
}
RECURRENT = "recurrent-ppo"
CONFIG, WEIGHTS = "config.json", "model.safetensors"


def algorithm_class(name: str) -> "type[BaseAlgorithm]":
    """The Stable-Baselines3 class of an algorithm.

    Raises:
        ConfigError: the algorithm is unknown.
    """
    if name not in ALGORITHMS:
        raise ConfigError(f"unknown algorithm {name!r}; known are {', '.join(ALGORITHMS)}")
    module, attribute = ALGORITHMS[name]
    return getattr(import_module(module), attribute)


def policy_alias(algorithm: str) -> str:
    """The name under which an algorithm has its policy for pictures."""
    return "CnnLstmPolicy" if algorithm == RECURRENT else "CnnPolicy"


@dataclass(frozen=True)
class AgentConfig:
    """What an agent was built for; `config.json` beside its weights.

    Attributes:
        algorithm: which one trained it.
        decisions: decisions of its episodes.
        image_size: side of the latents it was trained on; others are resized to it.
        latent_bound: bound of the latents in the observation space it was trained on.
        plan: the episodes it decides; None: not known, as for a file of Stable-Baselines3.
        policy_kwargs: settings of the policy; `features_extractor_kwargs` are those of `SkipProposalExtractor`.
        training: how it was trained, for the record.
    """

    algorithm: str
    decisions: int
    image_size: int
    latent_bound: float
    plan: Plan | None = None
    policy_kwargs: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        algorithm_class(self.algorithm)
        if self.decisions < 1 or self.image_size < 1 or not self.latent_bound > 0:
            raise ConfigError(
                "decisions, image_size and latent_bound must be positive, got "
                f"{self.decisions}, {self.image_size} and {self.latent_bound}"
            )
        if self.plan is not None and self.plan.decisions != self.decisions:
            raise ConfigError(f"the plan has {self.plan.decisions} decisions, got decisions {self.decisions}")

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> "AgentConfig":
        """The configuration that a JSON file holds.

        Raises:
            ConfigError: a setting is unknown, missing or wrong.
        """
        known = [f.name for f in fields(cls)]
        unknown = sorted(content.keys() - set(known))
        if unknown:
            raise ConfigError(f"unknown setting {', '.join(unknown)}; known are {', '.join(known)}")
        plan = content.get("plan")
        try:
            return cls(**{**content, "plan": None if plan is None else Plan(**plan)})
        except (KeyError, TypeError) as error:
            raise ConfigError(f"a setting is missing or of the wrong type ({error})") from None

    @property
    def observation_shape(self) -> tuple[int, int, int]:
        """(3 · decisions, H, W), the whole episode; of one latent for an algorithm with a state of its own."""
        frames = 1 if self.algorithm == RECURRENT else self.decisions
        return 3 * frames, self.image_size, self.image_size


def _extractor_kwargs(algorithm: str, policy_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    return {"recurrent": algorithm != RECURRENT, **policy_kwargs.get("features_extractor_kwargs", {})}


def policy_settings(algorithm: str, policy_kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Plain settings as `policy_kwargs` for Stable-Baselines3, the SPN filled in."""
    from agents.extractors import SkipProposalExtractor

    return {
        "net_arch": [],
        **policy_kwargs,
        "features_extractor_class": SkipProposalExtractor,
        "features_extractor_kwargs": _extractor_kwargs(algorithm, policy_kwargs),
        "normalize_images": False,
    }


def _acting_part(policy: Any) -> Any:
    """The net that decides: the policy itself, or the value net of a Q-learner without its target."""
    for name in ("q_net", "quantile_net"):
        if hasattr(policy, f"{name}_target"):
            return getattr(policy, name)
    return policy


class Agent:
    """A policy for SkipDiff-v0 that chooses the action of the highest probability or value.

    Args:
        config: what it was built for.
        policy: policy of a Stable-Baselines3 algorithm with a `SkipProposalExtractor`.
    """

    def __init__(self, config: AgentConfig, policy: Any) -> None:
        self.config = config
        self.policy = _acting_part(policy)

    @classmethod
    def build(cls, config: AgentConfig, device: str = "cpu") -> "Agent":
        """An untrained agent.

        Raises:
            ConfigError: the settings of the policy do not exist or do not fit.
        """
        from gymnasium import spaces

        policy_class = algorithm_class(config.algorithm).policy_aliases[policy_alias(config.algorithm)]
        space = spaces.Box(-config.latent_bound, config.latent_bound, config.observation_shape, np.float32)
        settings = policy_settings(config.algorithm, config.policy_kwargs)
        try:
            policy: Any = policy_class(space, spaces.Discrete(2), lambda _: 0.0, **settings)
        except TypeError as error:
            raise ConfigError(f"policy_kwargs do not fit {policy_class.__name__} ({error})") from None
        return cls(config, policy.to(device))

    @property
    def extractor(self) -> "SkipProposalExtractor":
        """The agent's SPN."""
        return self.policy.features_extractor

    @torch.no_grad()
    def scores(self, observations: NDArray[np.floating] | Tensor) -> Tensor:
        """Logits of the two actions, or their values for a Q-learner.

        Args:
            observations: (B, 3 · decisions, H, W), the latents of the episode so far, oldest first, zeros in front.

        Returns:
            (B, 2).
        """
        self.policy.set_training_mode(False)
        obs = torch.as_tensor(observations, device=self.policy.device)
        if self.config.algorithm == RECURRENT:
            return self._replay(obs)
        if hasattr(self.policy, "get_distribution"):
            return self.policy.get_distribution(obs).distribution.logits
        values = self.policy(obs)
        return values.mean(dim=1) if values.ndim == 3 else values  # quantiles (B, n, 2), or values

    def _replay(self, obs: Tensor) -> Tensor:
        """Runs the episode so far through the policy's own recurrent state."""
        layers, _, size = self.policy.lstm_hidden_state_shape
        state = tuple(obs.new_zeros(layers, len(obs), size) for _ in range(2))
        young = torch.ones(len(obs), device=obs.device)
        for frame in obs.unflatten(1, (-1, 3)).unbind(1):
            distribution, state = self.policy.get_distribution(frame, state, young)
            # the padding in front of a young episode is no part of it
            young = young * (~frame.flatten(1).any(dim=1)).float()
        return distribution.distribution.logits

    def act(self, observations: NDArray[np.floating] | Tensor) -> NDArray[np.int64]:
        """The actions chosen, (B,); `observations` as in `scores`."""
        return self.scores(observations).argmax(dim=1).cpu().numpy()

    def probabilities(self, observations: NDArray[np.floating] | Tensor) -> NDArray[np.float64]:
        """Probabilities of the two actions, (B, 2); of a Q-learner, which has none, 1 for the action it chooses."""
        scores = self.scores(observations)
        if hasattr(self.policy, "get_distribution"):
            return scores.double().softmax(dim=1).cpu().numpy()
        return F.one_hot(scores.argmax(dim=1), 2).double().cpu().numpy()

    def check(self, plan: Plan) -> None:
        """Checks that the agent decides the episodes of a plan.

        Raises:
            ConfigError: it was trained for other ones.
        """
        own = self.config.plan
        if own is not None and own != plan:
            raise ConfigError(
                f"the agent was trained for episodes of {own.describe()}, got {plan.describe()}; leave those options out, or "
                "take another agent"
            )
        if own is None and self.config.decisions != plan.decisions:
            raise ConfigError(
                f"the agent makes {self.config.decisions} decisions in an episode, but {plan.describe()} has "
                f"{plan.decisions}; give the steps it was trained for, or take another agent"
            )

    def save(self, folder: str | Path) -> None:
        """Writes config.json and model.safetensors."""
        from safetensors.torch import save_model

        folder = Path(folder)
        with atomic_path(folder / WEIGHTS) as temporary:
            save_model(self.policy, str(temporary))
        write_json(folder / CONFIG, asdict(self.config))


def find_agent(path: str | Path) -> Path:
    """The folder (or .zip) of an agent.

    Args:
        path: folder of an agent, of a training run (its best agent) or of a checkpoint with an agent; name of a
            shipped checkpoint; .zip of Stable-Baselines3.

    Raises:
        CheckpointError: there is none.
    """
    if str(path) in shipped_checkpoints():
        path = resolve_checkpoint(path)
    path = Path(path)
    if path.is_file():
        return path
    for folder in (path / "best", path / "agent", path):
        if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file() and "algorithm" in _read_config(folder):
            return folder
    raise CheckpointError(f"no agent in {path}; name a folder with {CONFIG} and {WEIGHTS}, as train-agent writes it")


def has_agent(path: str | Path) -> bool:
    """Whether `find_agent` finds one."""
    try:
        find_agent(path)
    except CheckpointError:
        return False
    return True


def _read_config(folder: Path) -> dict[str, Any]:
    content = read_json(folder / CONFIG)
    if not isinstance(content, dict):
        raise CheckpointError(f"{folder / CONFIG} holds no settings")
    return content


def load_agent(path: str | Path, device: str = "cpu", trust_pickle: bool = False) -> Agent:
    """Loads an agent.

    Args:
        path: as `find_agent`.
        device: where it shall compute.
        trust_pickle: whether a .zip of Stable-Baselines3 may be loaded. That runs whatever code its author put into it.

    Raises:
        CheckpointError: there is no agent, its files are damaged or do not fit together, or it is a .zip that is
            not trusted.
        ConfigError: its configuration holds an unknown setting.
    """
    found = find_agent(path)
    if found.is_file():
        return _load_zip(found, device, trust_pickle)
    from safetensors import SafetensorError
    from safetensors.torch import load_model

    try:
        config = AgentConfig.read(_read_config(found))
    except ConfigError as error:
        raise ConfigError(f"{found / CONFIG}: {error}") from None
    agent = Agent.build(config, device)
    try:
        load_model(agent.policy, found / WEIGHTS, device=device)
    except (SafetensorError, RuntimeError, OSError) as error:
        raise CheckpointError(f"{found / WEIGHTS} is damaged or does not fit {CONFIG} ({error})") from None
    agent.policy.set_training_mode(False)
    return agent


def _load_zip(path: Path, device: str, trust_pickle: bool) -> Agent:
    if not trust_pickle:
        raise CheckpointError(
            f"{path} is a file of pickles, and loading it runs any code its author put into it; pass --trust-pickle "
            "(trust_pickle=True) if you made it yourself"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            settings = json.loads(archive.read("data"))
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is no .zip of Stable-Baselines3 ({error})") from None
    name = _zip_algorithm(settings)
    try:
        model: Any = algorithm_class(name).load(path, device=device)
    except Exception as error:  # pickles raise anything
        raise CheckpointError(f"{path} does not load as {name} ({error})") from None
    policy = _acting_part(model.policy)
    from agents.extractors import SkipProposalExtractor

    if not isinstance(policy.features_extractor, SkipProposalExtractor):
        raise CheckpointError(f"{path} holds no SkipProposalExtractor but a {type(policy.features_extractor).__name__}")
    if name == RECURRENT:
        raise CheckpointError(f"{path} does not say how long its episodes are; load the agent that train-agent wrote")
    channels, height, _ = model.observation_space.shape
    kwargs = {k: v for k, v in model.policy_kwargs.items() if k not in ("features_extractor_class", "normalize_images")}
    bound = float(model.observation_space.high.max())
    return Agent(AgentConfig(name, channels // 3, height, bound, policy_kwargs=kwargs), policy)


def _zip_algorithm(settings: Mapping[str, Any]) -> str:
    """Which algorithm wrote the `data` of a .zip: those that matter for deciding differ in their settings."""
    if "exploration_fraction" in settings:
        policy = json.dumps(settings.get("policy_class", ""))
        return "qrdqn" if "qrdqn" in policy.lower() else "dqn"
    if "_last_lstm_states" in settings:
        return RECURRENT
    if "cg_max_steps" in settings:
        return "trpo"
    return "ppo" if "clip_range" in settings else "a2c"


def play(
    task: Task, policy: Policy, images: Sequence[int], noise_seeds: Sequence[int], batch_size: int = 32
) -> list[Episode]:
    """Plays one episode for each picture and noise seed.

    Args:
        task: pictures, process and reward.
        policy: decides.
        images: indices of pictures.
        noise_seeds: one for each.
        batch_size: episodes that run together.

    Returns:
        The episodes, ended.
    """
    episodes: list[Episode] = []
    for first in range(0, len(images), batch_size):
        batch = task.begin(images[first : first + batch_size], noise_seeds[first : first + batch_size])
        for _ in range(task.decisions):
            task.step(batch, policy([episode.refinement for episode in batch]))
        episodes += batch
    return episodes


class AgentPolicy:
    """An agent as a `skipdiff_env.refinement.Policy`, for `RefinementProcess.run` and the upscaler.

    It keeps the latents of each picture from its first decision to its last, resized to the size the agent was trained
    on, and decides for all pictures of a call together. A picture must come with every decision, from the first on.

    Args:
        agent: the agent.
    """

    def __init__(self, agent: Agent) -> None:
        self.agent = agent
        # by identity; the state itself is kept with its latents, so that no other can take its place
        self._seen: dict[int, tuple[Refinement, list[Tensor]]] = {}

    def observe(self, states: Sequence[Refinement]) -> Tensor:
        """The stacked latents of the episodes, (B, 3 · decisions, H, W), as the agent saw them in training.

        Raises:
            ConfigError: the episodes are longer than those the agent was trained for, or were not seen from the start.
        """
        from agents.extractors import resize_latents

        first = self.agent.config.decisions + 1
        seen = {}
        for state in states:
            latent = resize_latents(state.latent[None], self.agent.config.image_size)[0]
            _, frames = self._seen.get(id(state), (state, [])) if state.t < first else (state, [])
            if len(frames) != first - state.t:
                raise ConfigError(
                    f"the agent decides episodes that it sees from t = {first} on; got one at t = {state.t} "
                    f"after {len(frames)} of its decisions"
                )
            seen[id(state)] = state, [*frames, latent]
        self._seen = seen
        padding = torch.zeros_like(latent)
        stacks = [[padding] * (first - 1 - len(frames)) + frames for _, frames in seen.values()]
        return torch.stack([torch.cat(stack) for stack in stacks])

    def __call__(self, states: Sequence[Refinement]) -> Sequence[int]:
        """The agent's decision for each picture."""
        if not states:
            return []
        if all(state.t == self.agent.config.decisions + 1 for state in states):
            self.agent.extractor.remember(True)
        actions = [int(action) for action in self.agent.act(self.observe(states))]
        if all(state.t == 2 for state in states):
            self._seen = {}
            self.agent.extractor.remember(False)
        return actions
