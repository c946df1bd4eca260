"""Hyperparameters of the algorithms: the shipped files, and overrides from the command line."""

import contextlib
import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from importlib.resources import files
from typing import Any

import yaml

from agents.algorithms import ALGORITHMS, RECURRENT, algorithm_class, frame_stacked, policy_alias
from ddpm.util.checks import check_most, check_types, check_whole
from ddpm.util.errors import ConfigError

ENV_ID = "SkipDiff-v0"
MOST_ENVS = 2**16
# The section of an algorithm's file for each kind of observation.
SECTIONS = {"latent": ENV_ID, "dict": "SkipDiffJump-v0", "features": "SkipDiffBandit-v0"}
OFF_POLICY = frozenset({"dqn", "qrdqn"})
# On-policy algorithms that learn in minibatches.
MINIBATCHES = frozenset({"ppo", "trpo", "recurrent-ppo"})
# Arguments of the algorithms that are counts: with 0, an algorithm fails in the middle of a training.
COUNTS = frozenset({"n_epochs", "batch_size", "buffer_size", "train_freq", "n_critic_updates", "cg_max_steps"})
# Arguments of the algorithms that the training sets, or that have no effect here.
RESERVED = frozenset(
    {
        "self", "policy", "env", "n_steps", "policy_kwargs", "tensorboard_log", "verbose", "seed", "device",
        "_init_setup_model", "use_sde", "sde_sample_freq", "rollout_buffer_class", "rollout_buffer_kwargs",
        "replay_buffer_class", "replay_buffer_kwargs", "optimize_memory_usage", "stats_window_size",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Hyperparameters:
    """The complete settings of one training.

    Attributes:
        env_steps: number of decisions, over all environments.
        n_envs: number of environments.
        episodes_per_rollout: number of whole episodes of each environment between two updates (on-policy algorithms).
        episodes_per_minibatch: number of whole episodes in a minibatch (PPO, TRPO's critic, RecurrentPPO); None: those
            of the rollout.
        picture_baseline: whether the reward of an episode is relative to earlier episodes on its picture; see
            `VecPictureBaseline`.
        normalize_decisions: whether advantages are normalised decision by decision; see `EpisodeRolloutBuffer`.
        undone_price: exclude decisions that a later SKIP undid from the advantage of the result; see
            `EpisodeRolloutBuffer`. None: they are included.
        lr_schedule: "constant", or "linear", which falls to 0 over `env_steps`.
        norm: normalisation of the SPN, "batch" or "group".
        hidden_size: size of the GRU's state; None: the paper's 1536.
        tell_step: whether the SPN observes the number of the decision, see `SkipProposalExtractor`.
        spn_size: side of the latents that the SPN takes; None: that of the environment's latents.
        crop_size: side of the crops of a `JumpExtractor`.
        channels: channels of its convolutions.
        skip_probability: initial probability of SKIP; None: one half. Only the last SKIP of an episode counts, so with
            many decisions and one half, no early start occurs; at 1 / decisions, every start does.
        policy_kwargs: further settings of the algorithm's policy.
        algorithm: further arguments of the algorithm.
    """

    env_steps: int = 40_000
    n_envs: int = 16
    episodes_per_rollout: int = 1
    episodes_per_minibatch: int | None = None
    picture_baseline: bool = False
    normalize_decisions: bool = False
    undone_price: float | None = None
    lr_schedule: str = "constant"
    norm: str = "batch"
    hidden_size: int | None = None
    spn_size: int | None = None
    tell_step: bool = False
    crop_size: int = 64
    channels: Sequence[int] = (24, 48, 64)
    skip_probability: float | None = None
    policy_kwargs: Mapping[str, Any] = field(default_factory=dict)
    algorithm: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_types(self)
        for name in ("env_steps", "n_envs", "episodes_per_rollout"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        check_most(MOST_ENVS, n_envs=self.n_envs, episodes_per_rollout=self.episodes_per_rollout)
        check_whole(**{name: value for name, value in self.algorithm.items() if name in COUNTS})
        if self.lr_schedule not in ("constant", "linear"):
            raise ConfigError(f"lr_schedule must be constant or linear, got {self.lr_schedule!r}")
        if self.undone_price is not None and self.undone_price < 0:
            raise ConfigError(f"undone_price must be at least 0, got {self.undone_price}")
        if self.skip_probability is not None and not 0 < self.skip_probability < 1:
            raise ConfigError(f"skip_probability must lie between 0 and 1, got {self.skip_probability}")
        rollout = self.n_envs * self.episodes_per_rollout
        if self.episodes_per_minibatch is not None and not 1 <= self.episodes_per_minibatch <= rollout:
            raise ConfigError(
                f"episodes_per_minibatch must lie in 1 … {rollout}, the episodes of a rollout, "
                f"got {self.episodes_per_minibatch}"
            )

    def policy_settings(self, name: str, observation: str = "latent") -> dict[str, Any]:
        """Return `policy_kwargs` for the algorithm of a name, with the features extractor for an observation."""
        from agents.networks.extractors import SkipProposalExtractor
        from agents.networks.jump_extractor import JumpExtractor

        if observation == "features":
            return dict(self.policy_kwargs)
        if observation == "dict":
            kind: type = JumpExtractor
            extractor: dict[str, Any] = {"crop_size": self.crop_size, "channels": list(self.channels)}
        else:
            kind = SkipProposalExtractor
            extractor = {
                "recurrent": name != RECURRENT, "norm": self.norm, "hidden_size": self.hidden_size,
                "image_size": self.spn_size, "tell_step": self.tell_step,
            }  # fmt: skip
        return {
            "net_arch": [64] if observation == "dict" else [], **self.policy_kwargs, "features_extractor_class": kind,
            "features_extractor_kwargs": extractor, "normalize_images": False,
        }  # fmt: skip

    def algorithm_settings(self, name: str, decisions: int, observation: str = "latent") -> dict[str, Any]:
        """Return arguments of the algorithm for episodes of `decisions` env steps."""
        settings = dict(self.algorithm)
        from stable_baselines3.common.utils import LinearSchedule

        from agents.training.buffers import EpisodeReplayBuffer, EpisodeRolloutBuffer

        if self.lr_schedule == "linear":
            settings["learning_rate"] = LinearSchedule(settings["learning_rate"], 0.0, 1.0)
        if name in OFF_POLICY:
            own = {"replay_buffer_class": EpisodeReplayBuffer} if observation == "latent" else {}
            return settings | own
        settings["n_steps"] = self.episodes_per_rollout * decisions
        if frame_stacked(name, observation):
            settings["rollout_buffer_class"] = EpisodeRolloutBuffer
            settings["rollout_buffer_kwargs"] = {
                "normalize_decisions": self.normalize_decisions,
                "undone_price": self.undone_price,
            }
        if name in MINIBATCHES:
            settings["batch_size"] = decisions * (
                self.episodes_per_minibatch or self.episodes_per_rollout * self.n_envs
            )
        return settings


OWN = frozenset(each.name for each in fields(Hyperparameters)) - {"algorithm"}


def _own(algorithm: str, observation: str) -> set[str]:
    """Return the hyperparameters of this project that an algorithm takes for a kind of observation."""
    names = set(OWN)
    if algorithm in OFF_POLICY:
        names -= {"episodes_per_rollout", "skip_probability"}
    if algorithm not in MINIBATCHES:
        names -= {"episodes_per_minibatch"}
    if algorithm in OFF_POLICY or not frame_stacked(algorithm, observation):
        names -= {"normalize_decisions", "undone_price"}
    if not frame_stacked(algorithm, observation):
        names -= {"hidden_size", "tell_step"}
    if observation != "dict":
        names -= {"crop_size", "channels"}
    if observation != "latent":
        names -= {"norm", "spn_size"}
    return names - ({"skip_probability"} if observation == "features" else set())


def _parameters(algorithm: str) -> dict[str, Any]:
    """Return the arguments of an algorithm that may be set, with their defaults."""
    signature = inspect.signature(algorithm_class(algorithm).__init__).parameters
    reserved = RESERVED | {"batch_size"} if algorithm in MINIBATCHES else RESERVED
    return {name: parameter.default for name, parameter in signature.items() if name not in reserved}


def parse_overrides(pairs: Iterable[str]) -> dict[str, Any]:
    """Read key=value pairs, the value as YAML.

    Raises:
        ConfigError: an entry is not a key=value pair.
    """
    parsed = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"expected key=value, got {pair!r}")
        try:
            value = yaml.safe_load(text)
        except yaml.YAMLError:
            raise ConfigError(f"the value of {key} is not YAML: {text!r}") from None
        if isinstance(value, str):  # in YAML 1.1, 3e-4 is a string
            with contextlib.suppress(ValueError):
                value = float(value)
        parsed[key.strip()] = value
    return parsed


def load_hyperparameters(
    algorithm: str, overrides: Mapping[str, Any] | None = None, observation: str = "latent"
) -> Hyperparameters:
    """Return the shipped hyperparameters of an algorithm, with overrides.

    Args:
        algorithm: name of the algorithm.
        overrides: name → value. `policy_kwargs` are merged with the shipped ones.
        observation: kind of observation, one of `skipdiff_env.config.OBSERVATIONS`.

    Raises:
        ConfigError: the algorithm or a hyperparameter is unknown, or a value has the wrong type or range.
    """
    algorithm_class(algorithm)  # raises ConfigError if it is unknown
    if algorithm not in ALGORITHMS:
        raise ConfigError(
            f"there are no hyperparameters for {algorithm}, only for {', '.join(ALGORITHMS)}; train it with "
            "Stable-Baselines3 itself, and write the agent with `agents.export_agent`"
        )
    parameters = _parameters(algorithm)
    section = SECTIONS[observation]
    overrides = overrides or {}
    file = files("agents.training") / "hyperparams" / f"{algorithm}.yml"
    sections = yaml.safe_load(file.read_text(encoding="utf-8"))
    shipped = sections[section]
    values = {**shipped, **overrides}
    if isinstance(values.get("policy_kwargs"), dict):
        values["policy_kwargs"] = {**shipped.get("policy_kwargs", {}), **values["policy_kwargs"]}
    known = {*_own(algorithm, observation), *parameters}
    unknown = sorted(values.keys() - known)
    if unknown:
        raise ConfigError(
            f"{algorithm} on {section} has no hyperparameter {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        )
    own = {name: values.pop(name) for name in list(values) if name in OWN}
    for name, value in values.items():
        # an int only in the defaults of DQN
        expected = float if name == "max_grad_norm" else type(parameters[name])
        if not _fits(value, expected, parameters[name] is None):
            raise ConfigError(f"{name} must be {_describe(expected)}, got {value!r}")
    found = Hyperparameters(**own, algorithm=values)
    _check_policy_kwargs(algorithm, found.policy_kwargs, observation)
    return found


def table_hyperparameters(algorithm: str, env_id: str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the shipped hyperparameters of an algorithm for an environment with a table, with overrides.

    They have the form of RL Baselines3 Zoo: "n_timesteps", "n_envs", "policy", and arguments of the algorithm.

    Args:
        algorithm: name of the algorithm.
        env_id: id of the environment.
        overrides: name → value; `policy_kwargs` are merged with the shipped ones.

    Raises:
        ConfigError: the algorithm is unknown or does not learn on tables, or a hyperparameter is unknown.
    """
    parameters = inspect.signature(algorithm_class(algorithm).__init__).parameters
    file = files("agents.training") / "hyperparams" / f"{algorithm}.yml"
    shipped = yaml.safe_load(file.read_text(encoding="utf-8")).get(env_id)
    if shipped is None:
        raise ConfigError(f"{algorithm} has no hyperparameters for {env_id}; take another algorithm")
    overrides = dict(overrides or {})
    known = {"n_timesteps", "n_envs", "policy", *shipped, *parameters} - {
        "self",
        "env",
        "seed",
        "device",
        "_init_setup_model",
    }
    if unknown := sorted(overrides.keys() - known):
        raise ConfigError(
            f"{algorithm} on {env_id} has no hyperparameter {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        )
    if isinstance(overrides.get("policy_kwargs"), Mapping):
        overrides["policy_kwargs"] = {**shipped.get("policy_kwargs", {}), **overrides["policy_kwargs"]}
    values = {**shipped, **overrides}
    check_whole(n_timesteps=values["n_timesteps"], n_envs=values["n_envs"])
    check_most(MOST_ENVS, n_envs=values["n_envs"])
    return values


def _fits(value: Any, expected: type, optional: bool) -> bool:
    if value is None:
        return optional
    if expected is type(None):  # a number, or None to switch it off
        return isinstance(value, int | float) and not isinstance(value, bool)
    if expected is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    return isinstance(value, expected) and (expected is bool or not isinstance(value, bool))


def _describe(expected: type) -> str:
    return {int: "a whole number", bool: "true or false", str: "a word"}.get(expected, "a number")


def _check_policy_kwargs(algorithm: str, policy_kwargs: Mapping[str, Any], observation: str) -> None:
    policy_class = algorithm_class(algorithm).policy_aliases[policy_alias(algorithm, observation)]
    known = inspect.signature(policy_class.__init__).parameters.keys() - {
        "self", "observation_space", "action_space", "lr_schedule", "features_extractor_class", "normalize_images",
        "features_extractor_kwargs", "optimizer_class", "use_sde", "log_std_init", "full_std", "use_expln",
        "squash_output", "activation_fn",
    }  # fmt: skip
    unknown = sorted(policy_kwargs.keys() - known)
    if unknown:
        raise ConfigError(
            f"the policy of {algorithm} has no setting {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        )
