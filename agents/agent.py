"""Trained agents: what they decide, and saving and loading them without pickle."""

import json
import math
import zipfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from agents.algorithms import MASKABLE, RECURRENT, SUPERVISED, algorithm_class, algorithm_name, policy_alias
from agents.networks.frames import frames_of
from agents.policies import acting_part, action_values, build_policy, check_outputs
from agents.training.even_outcomes import EVEN_NUMBERS
from ddpm.checkpoints import check_device, hub_folder, is_hub_id, shipped_checkpoints
from ddpm.schedule import Schedule, even_levels
from ddpm.util.checks import check_one_of, check_types, shown
from ddpm.util.errors import CheckpointError, ConfigError
from ddpm.util.files import atomic_path, read_json, stamp, write_json
from skipdiff_env.config import OBSERVATIONS
from skipdiff_env.decisions import KINDS, Decisions, make_decisions
from skipdiff_env.plan import Plan
from skipdiff_env.rules import Action

if TYPE_CHECKING:
    from gymnasium import spaces

CONFIG, WEIGHTS = "config.json", "model.safetensors"
# Folder of a shipped agent that decides step by step.
STEPS = "agent-steps"
# Folder of a shipped agent that chooses the detail of one forward; the agent that a checkpoint's name stands for.
DETAIL = "agent-detail"
# Pixels of all latents of an episode.
LARGEST_EPISODE = 2**28


@dataclass(frozen=True)
class AgentConfig:
    """What an agent was built for; `config.json` beside its weights.

    Attributes:
        algorithm: which one trained it.
        decisions: decisions of its episodes.
        image_size: side of the latents it was trained on; others are resized to it.
        latent_bound: bound of the latents in the observation space it was trained on.
        plan: the episodes it decides; None: not known, as for a file of Stable-Baselines3.
        policy_kwargs: settings of the policy; `features_extractor_kwargs` are those of `SkipProposalExtractor` or,
            where observations are dictionaries, of `JumpExtractor`.
        training: how it was trained, for the record.
        observation: what it sees, "latent" (the latents of the episode so far) or "dict", as the environment has it.
        price_range: lowest and highest price of a forward that it was trained for, of which it observes one at use;
            None: it has learnt one price.
        kind: what it decides, one of `skipdiff_env.decisions.KINDS`.
        schedules: texts of the schedules of which it chooses one for each picture, for the kind "schedule".
        substeps: numbers of substeps that it chooses among ("stride"), or the largest of them alone ("continuous").
        policy: how its policy is built, see `agents.policies.policy_description`; None: from `policy_kwargs`, with one
            of the extractors of this project, or as a supervised agent.
    """

    algorithm: str
    decisions: int
    image_size: int
    latent_bound: float
    plan: Plan | None = None
    policy_kwargs: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    observation: str = "latent"
    price_range: tuple[float, float] | None = None
    kind: str = "skip"
    schedules: tuple[str, ...] | None = None
    substeps: tuple[int, ...] | None = None
    policy: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        check_types(self)
        if self.algorithm != SUPERVISED:
            algorithm_class(self.algorithm)
        if self.observation not in OBSERVATIONS:
            raise ConfigError(f"observation must be {' or '.join(OBSERVATIONS)}, got {self.observation!r}")
        if self.price_range is not None:
            lowest, highest = self.price_range[0], self.price_range[-1]
            if len(self.price_range) != 2 or not 0 < lowest <= highest:
                raise ConfigError(f"price_range must be two rising numbers above 0, got {self.price_range}")
            object.__setattr__(self, "price_range", (float(lowest), float(highest)))
        if self.decisions < 1 or self.image_size < 1 or not self.latent_bound > 0:
            raise ConfigError(
                "decisions, image_size and latent_bound must be positive, got "
                f"{self.decisions}, {self.image_size} and {self.latent_bound}"
            )
        if self.decisions * self.image_size**2 > LARGEST_EPISODE:
            raise ConfigError(
                f"{self.decisions} decisions on latents of {self.image_size} pixels a side are more than any memory "
                "holds; lower decisions or image_size"
            )
        if not isinstance(self.training.get("env", {}), Mapping):
            raise ConfigError(f"env of training must be a mapping, got {shown(self.training['env'])}")
        trained = self.training.get("env", {}).get("checkpoint")
        if not isinstance(trained, str | Path | None):
            raise ConfigError(f"checkpoint in env of training must be a name or a folder, got {shown(trained)}")
        if self.plan is not None and self.plan.decisions != self.decisions:
            raise ConfigError(f"the plan has {self.plan.decisions} decisions, got decisions {self.decisions}")
        if self.algorithm == SUPERVISED and self.plan is not None:
            numbers = self.policy_kwargs.get("forwards", EVEN_NUMBERS)
            schedules = tuple(str(Schedule(even_levels(self.plan.first, number))) for number in numbers)
            object.__setattr__(self, "kind", "schedule")
            object.__setattr__(self, "schedules", schedules)
        check_one_of(KINDS, kind=self.kind)
        if (self.schedules is not None) != (self.kind == "schedule"):
            raise ConfigError(f'schedules belong to agents of the kind "schedule", got the kind {self.kind}')
        if self.plan is None and self.policy is not None:
            raise ConfigError("an agent with a policy needs a plan")
        if self.kind != "skip":
            self.make_decisions()
            object.__setattr__(self, "schedules", None if self.schedules is None else tuple(self.schedules))

    def make_decisions(self) -> Decisions:
        """Return what the actions of the agent mean.

        Raises:
            ConfigError: it has no plan, or one that does not fit its decisions.
        """
        if self.plan is None:
            raise ConfigError(f"an agent of the kind {self.kind} needs a plan")
        substeps = self.substeps or (1,)
        return make_decisions(
            self.kind, self.plan, max(substeps), substeps if self.kind == "stride" else None, self.schedules
        )  # fmt: skip

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
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"a setting is missing or of the wrong type ({error})") from None

    @property
    def choosing(self) -> bool:
        """Whether it chooses a schedule when it first sees a picture, and follows it."""
        return self.schedules is not None

    @property
    def stepwise(self) -> bool:
        """Whether DENOISE and SKIP, at one diffusion step after the other, say all that it decides."""
        return self.kind == "skip" or all(Schedule.parse(text).plain for text in self.schedules or ("1*2",))

    @property
    def env_steps(self) -> int:
        """Env steps of the longest episode of its training."""
        return self.decisions if self.kind == "skip" else self.make_decisions().longest

    @property
    def observation_shape(self) -> tuple[int, int, int]:
        """(3 · decisions, H, W), the whole episode; of one latent for an algorithm with its own state."""
        frames = 1 if self.algorithm == RECURRENT else self.decisions
        return 3 * frames, self.image_size, self.image_size

    def observation_space(self) -> "spaces.Space[Any]":
        """The space of its observations in training."""
        from gymnasium import spaces

        bound, side = self.latent_bound, self.image_size
        if self.observation == "latent":
            return spaces.Box(-bound, bound, self.observation_shape, np.float32)
        share = spaces.Box(0, 1, (1,), np.float32)
        parts: dict[str, spaces.Space[Any]] = {
            "condition": spaces.Box(-1, 1, (3, side, side), np.float32), "step": share, "level": share,
            "latent": spaces.Box(-bound, bound, (3, side, side), np.float32),
        }  # fmt: skip
        if self.price_range is not None:
            parts["price"] = spaces.Box(0, self.price_range[1], (1,), np.float32)
        return spaces.Dict(parts)

    def price(self, quality: float | None = None, price: float | None = None) -> float | None:
        """The price of a forward that the agent observes.

        Args:
            quality: 0 … 1, from the highest price it was trained for (few forwards) to the lowest (many); in between
                the price falls by equal factors. None: one half.
            price: the price itself, above 0, instead of a quality.

        Returns:
            None if it has learnt one price and none is asked for.

        Raises:
            ConfigError: it has learnt one price, both are given, or one is out of range.
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


def policy_settings(algorithm: str, policy_kwargs: Mapping[str, Any], observation: str = "latent") -> dict[str, Any]:
    """Plain settings as `policy_kwargs` for Stable-Baselines3, the features extractor filled in."""
    from agents.networks.extractors import SkipProposalExtractor
    from agents.networks.jump_extractor import JumpExtractor

    if observation == "features":
        return dict(policy_kwargs)
    own = policy_kwargs.get("features_extractor_kwargs", {})
    latent = observation == "latent"
    return {
        "net_arch": [] if latent else [64],
        **policy_kwargs,
        "features_extractor_class": SkipProposalExtractor if latent else JumpExtractor,
        "features_extractor_kwargs": {"recurrent": algorithm != RECURRENT, **own} if latent else dict(own),
        "normalize_images": False,
    }


Observations = NDArray[np.floating] | Tensor | Mapping[str, NDArray[np.floating] | Tensor]
# State of a policy that has one, (layers, B, size) each.
State = tuple[Tensor, Tensor]


def by_now(skipped: Tensor) -> Tensor:
    """Scores of the two actions, (B, 2), which are logarithms of probabilities.

    DENOISE has the probability that an agent has denoised by now, since it last did; SKIP, that it has not.

    Args:
        skipped: logarithm of the probability that it skipped at each of these steps, (B,).
    """
    return torch.stack([torch.log(-torch.expm1(skipped.clamp(max=-1e-9))), skipped], dim=1)


class Agent:
    """A policy that chooses the action of the highest probability or value.

    Args:
        config: what it was built for.
        policy: policy of a Stable-Baselines3 algorithm, or a `SchedulePredictor`.
    """

    def __init__(self, config: AgentConfig, policy: Any) -> None:
        self.config = config
        self.policy = acting_part(policy)
        check_outputs(self.policy)

    @classmethod
    def build(cls, config: AgentConfig, device: str = "cpu") -> "Agent":
        """An untrained agent.

        Raises:
            ConfigError: the settings of the policy do not exist or do not fit.
        """
        if config.policy is not None:
            built = build_policy(config.algorithm, config.policy)
            space = config.make_decisions().space
            if built.action_space != space:
                raise ConfigError(f"the policy of the agent acts in {built.action_space}, its decisions in {space}")
            return cls(config, built.to(device))
        if config.algorithm == SUPERVISED:
            from agents.networks.schedule_predictor import SchedulePredictor

            make: Any = SchedulePredictor
            arguments: tuple[Any, ...] = ()
            settings: dict[str, Any] | None = dict(config.policy_kwargs)
        else:
            from gymnasium import spaces

            alias = policy_alias(config.algorithm, config.observation)
            make = algorithm_class(config.algorithm).policy_aliases[alias]
            arguments = (config.observation_space(), spaces.Discrete(len(Action)), lambda _: 0.0)
            settings = None
        try:
            if settings is None:
                settings = policy_settings(config.algorithm, config.policy_kwargs, config.observation)
            policy: Any = make(*arguments, **settings)
        except ConfigError:
            raise
        except Exception as error:  # of odd settings, policies raise nearly anything
            reason = (str(error).splitlines() or [""])[0]
            raise ConfigError(f"policy_kwargs do not fit {make.__name__} ({type(error).__name__}: {reason})") from None
        return cls(config, policy.to(device))

    @property
    def extractor(self) -> Any:
        """What it sees with: a `SkipProposalExtractor` or a `JumpExtractor`."""
        return self.policy.features_extractor

    def predict(
        self,
        observations: Any,
        state: Any = None,
        young: NDArray[np.bool_] | None = None,
        masks: NDArray[np.bool_] | None = None,
    ) -> tuple[NDArray[Any], Any]:
        """Return the actions of its environment for observations of its environment; nothing is random.

        Args:
            observations: arrays (B, …), or dictionaries of arrays, in the agent's observation space.
            state: of an agent with a state, what the last call returned; None: none of the episodes has begun.
            young: bool (B,), whether an observation is the first of its episode; for agents with a state.
            masks: bool (B, actions), which actions are possible; for agents that take them.

        Returns:
            The actions (B, …), and the state after them.

        Raises:
            CheckpointError: the network gives numbers that are not finite.
        """
        if self.policy.training:
            self.policy.set_training_mode(False)
        extra: dict[str, Any] = {"action_masks": masks} if self.config.algorithm == MASKABLE else {}
        if self.config.algorithm == RECURRENT:
            extra = {"state": state, "episode_start": young}
        return self.policy.predict(observations, deterministic=True, **extra)

    @torch.no_grad()
    def scores(self, observations: Observations) -> Tensor:
        """Return logits of the actions, or their values for a Q-learner.

        Args:
            observations: (B, 3 · decisions, H, W), the latents of the episode so far, oldest first, zeros in front; or
                a dictionary of arrays (B, …); or features.

        Returns:
            (B, actions).
        """
        obs = self._tensors(observations)
        if self.config.algorithm == RECURRENT:
            if self.config.policy is not None:
                shape = len(next(iter(obs.values())) if isinstance(obs, dict) else obs)
                layers, _, size = self.policy.lstm_hidden_state_shape
                zeros = torch.zeros(layers, shape, size, device=self.policy.device)
                young = torch.ones(shape, device=self.policy.device)
                return self.policy.get_distribution(obs, (zeros, zeros), young)[0].distribution.logits
            if self.config.observation == "dict":
                return self.advance(obs, None)[0]
            return self._replay(obs)
        return action_values(self.policy, obs)

    def _tensors(self, observations: Observations) -> Any:
        if self.policy.training:
            self.policy.set_training_mode(False)
        if isinstance(observations, Mapping):
            return {name: torch.as_tensor(part, device=self.policy.device) for name, part in observations.items()}
        return torch.as_tensor(observations, device=self.policy.device)

    @torch.no_grad()
    def advance(self, observations: Observations, state: State | None) -> tuple[Tensor, State | None]:
        """Logits (B, 2) as `scores`, and the state of a policy that has one after this decision; None at the first."""
        if self.config.algorithm != RECURRENT or self.config.observation == "latent":
            return self.scores(observations), None
        obs = self._tensors(observations)
        layers, _, size = self.policy.lstm_hidden_state_shape
        batch = len(obs["step"])
        young = torch.full((batch,), float(state is None), device=self.policy.device)
        if state is None:
            state = (obs["step"].new_zeros(layers, batch, size), obs["step"].new_zeros(layers, batch, size))
        found, state = self.policy.get_distribution(obs, state, young)
        return found.distribution.logits, state

    def _replay(self, obs: Tensor) -> Tensor:
        """Runs the episode so far through the policy's own recurrent state."""
        layers, _, size = self.policy.lstm_hidden_state_shape
        state = tuple(obs.new_zeros(layers, len(obs), size) for _ in range(2))
        young = torch.ones(len(obs), device=obs.device)
        for frame in frames_of(obs).unbind(1):
            found, state = self.policy.get_distribution(frame, state, young)
            # the padding in front of a young episode is no part of it
            young = young * (~frame.flatten(1).any(dim=1)).float()
        return found.distribution.logits

    def act(self, observations: Observations) -> NDArray[np.int64]:
        """The actions chosen, (B,); `observations` as in `scores`.

        This is the more probable action, or the one of the higher value. Jumps are an exception for policies with
        probabilities. It makes nearly no difference there at which of two neighbouring steps the net is asked, so a
        trained policy may denoise with a small probability at every step, and SKIP is then always the more probable
        action. Such an agent denoises at the step by which it has probably (more than one half) done so since its last
        DENOISE; see `by_now`.
        """
        if self.stops and self.config.algorithm != RECURRENT:
            scores = self._since_the_last(self._tensors(observations))
        else:
            scores = self.scores(observations)
        return scores.argmax(dim=1).cpu().numpy()

    @property
    def stops(self) -> bool:
        """Whether its decisions are a matter of when: it has probabilities, and SKIP changes nothing but the step."""
        plan = self.config.plan
        jumps = plan is not None and plan.skip_mode == "jump" and self.config.observation == "dict"
        return jumps and self.config.policy is None and hasattr(self.policy, "get_distribution")

    @torch.no_grad()
    def _since_the_last(self, obs: dict[str, Tensor]) -> Tensor:
        """What `by_now` gives, from what is seen at a step: all that has changed since the last one is `step`."""
        assert self.config.plan is not None
        length = self.config.plan.length
        steps, levels = ((obs[name][:, 0] * length).round().long() for name in ("step", "level"))
        counts = (levels - steps + 1).clamp(min=1)
        rows = torch.repeat_interleave(counts)
        ages = torch.arange(len(rows), device=rows.device) - (counts.cumsum(dim=0) - counts)[rows]
        asked = {name: part[rows] for name, part in obs.items()}
        asked["step"] = ((steps + counts - 1)[rows] - ages)[:, None].to(obs["step"].dtype) / length
        skips = self.scores(asked).log_softmax(dim=1)[:, Action.SKIP]
        return by_now(torch.zeros(len(counts), device=rows.device).index_add(0, rows, skips))

    def probabilities(self, observations: Observations) -> NDArray[np.float64]:
        """Probabilities of the two actions, (B, 2); `observations` as in `scores`."""
        return self.shares(self.scores(observations))

    def shares(self, scores: Tensor) -> NDArray[np.float64]:
        """Scores (B, actions) as probabilities.

        Where there are none, as for a Q-learner, 1 for the action that it chooses.
        """
        if hasattr(self.policy, "get_distribution"):
            return scores.double().softmax(dim=1).cpu().numpy()
        return F.one_hot(scores.argmax(dim=1), scores.shape[1]).double().cpu().numpy()

    def check(self, plan: Plan) -> None:
        """Checks that the agent decides the episodes of a plan.

        Raises:
            ConfigError: it was trained for other ones.
        """
        own = self.config.plan
        if own is not None and own != plan:
            raise ConfigError(
                f"the agent was trained for episodes of {own.describe()}, got {plan.describe()}; leave those options "
                f"out, or "
                "take another agent"
            )
        if own is None and self.config.decisions != plan.decisions:
            raise ConfigError(
                f"the agent makes {self.config.decisions} decisions in an episode, but {plan.describe()} has "
                f"{plan.decisions}; give the steps it was trained for, or take another agent"
            )

    def told_of(self, checkpoint: str | Path) -> str | None:
        """Return a sentence where the agent was trained with another network than that of a checkpoint, else None."""
        trained = self.config.training.get("env", {}).get("checkpoint")
        if trained in (None, "None", str(checkpoint)):
            return None
        weights = [_weights_of(each) for each in (trained, checkpoint)]
        if weights[0] is not None and weights[0] == weights[1]:
            return None
        return f"the agent was trained with the checkpoint {trained}, and decides for {checkpoint} here"

    def save(self, folder: str | Path) -> None:
        """Writes config.json and model.safetensors."""
        from safetensors.torch import save_model

        folder = Path(folder)
        with atomic_path(folder / WEIGHTS) as temporary:
            save_model(self.policy, str(temporary))
        write_json(folder / CONFIG, asdict(self.config))


def _weights_of(checkpoint: str | Path) -> bytes | None:
    """The file of a checkpoint's weights; None where it is not on this machine."""
    file = Path(shipped_checkpoints().get(str(checkpoint), checkpoint)) / WEIGHTS
    return file.read_bytes() if file.is_file() else None


def find_agent(path: str | Path) -> Path:
    """The folder (or .zip) of an agent.

    Args:
        path: folder of an agent, of a training run (its best agent) or of a checkpoint with an agent; name of a
            shipped checkpoint, or with a folder of it behind it, as natural-x4/agent-paper; id of a repository on the
            Hub, OWNER/NAME; .zip of Stable-Baselines3.

    Raises:
        CheckpointError: there is none.
    """
    name, _, inside = str(path).partition("/")
    shipped = shipped_checkpoints().get(name)
    given, path = path, Path(path) if shipped is None else shipped / inside
    if path.is_file():
        return path
    if shipped is None and not path.exists() and is_hub_id(given):
        path = hub_folder(str(given), "agent")
    for folder in (path / "best", path / "agent", path / DETAIL, path):
        if (folder / CONFIG).is_file() and (folder / WEIGHTS).is_file() and "algorithm" in _read_config(folder):
            return folder
    raise CheckpointError(f"no agent in {given}; name a folder with {CONFIG} and {WEIGHTS}, as train-agent writes it")


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
        ConfigError: its configuration holds an unknown setting, or there is no such device.
    """
    check_device(device)
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


def load_zip(path: Path, device: str, trust_pickle: bool) -> Any:
    """Load a model of Stable-Baselines3.

    Args:
        path: the .zip.
        device: where it shall compute.
        trust_pickle: whether it may be loaded. That runs whatever code its author put into it.

    Raises:
        CheckpointError: it is not trusted, or no .zip of an algorithm of `agents.algorithms`.
    """
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
        return algorithm_class(name).load(path, device=device)
    except Exception as error:  # pickles raise anything
        raise CheckpointError(f"{path} does not load as {name} ({error})") from None


def _load_zip(path: Path, device: str, trust_pickle: bool) -> Agent:
    """The agent of a .zip, if that was trained on latents."""
    model = load_zip(path, device, trust_pickle)
    name = algorithm_name(type(model))
    policy = acting_part(model.policy)
    from agents.networks.extractors import SkipProposalExtractor

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
    if "Maskable" in json.dumps(settings.get("policy_class", "")):
        return "maskable-ppo"
    return "ppo" if "clip_range" in settings else "a2c"


def own_agent(folder: str, device: str, name: str = "agent") -> Agent | None:
    """Return the agent of that name that comes with a checkpoint, or None.

    It is loaded once, until a file of it is replaced.
    """
    agent = Path(folder) / name
    if not agent.is_dir() or not has_agent(agent):
        return None
    return _load_once(agent, device, tuple(stamp(file) for file in sorted(find_agent(agent).iterdir())))


@lru_cache(maxsize=8)
def _load_once(agent: Path, device: str, files: tuple[tuple[int, ...], ...]) -> Agent:
    """As `load_agent`; `files` notices an agent that is new."""
    return load_agent(agent, device)
