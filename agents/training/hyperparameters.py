"""Hyperparameters of the algorithms, in the form of RL Baselines3 Zoo: the shipped files, and changes to them."""

import contextlib
import inspect
from collections.abc import Iterable, Mapping
from importlib.resources import files
from typing import Any, get_type_hints

import yaml

from agents.algorithms import ALGORITHMS, algorithm_class
from ddpm.util.checks import check_most, check_one_of, check_type, check_whole
from ddpm.util.errors import ConfigError

MOST_ENVS = 2**16
# Keys that are not arguments of the algorithms.
OWN: dict[str, Any] = {
    "n_timesteps": int, "n_envs": int, "vec_env_wrapper": str | list | None, "noise_type": str | None,
    "noise_std": float,
}  # fmt: skip
# Arguments of the algorithms that the training sets, or that a file of hyperparameters cannot hold.
RESERVED = frozenset(
    {
        "return", "env", "tensorboard_log", "verbose", "seed", "device", "action_noise", "stats_window_size",
        "rollout_buffer_class", "rollout_buffer_kwargs", "replay_buffer_class", "_init_setup_model",
    }
)  # fmt: skip
# Settings of policies that the algorithm sets.
POLICY_RESERVED = frozenset({"self", "observation_space", "action_space", "lr_schedule", "use_sde"})
# Counts: with 0, an algorithm fails in the middle of a training.
COUNTS = frozenset(
    {
        "n_timesteps", "n_envs", "n_steps", "n_epochs", "batch_size", "buffer_size", "train_freq", "n_critic_updates",
        "cg_max_steps",
    }
)  # fmt: skip


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


def load_hyperparameters(algorithm: str, env_id: str, overrides: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Return the shipped hyperparameters of an algorithm for an environment, with overrides.

    Args:
        algorithm: name of the algorithm.
        env_id: id of the environment.
        overrides: name → value. Mappings, such as `policy_kwargs`, are merged with the shipped ones.

    Raises:
        ConfigError: the algorithm or a hyperparameter is unknown, the algorithm has no hyperparameters for the
            environment, or a value has the wrong type or range.
    """
    algorithm_class(algorithm)  # raises ConfigError if it is unknown
    shipped = _shipped(algorithm).get(env_id)
    if shipped is None:
        known = ", ".join(name for name in ALGORITHMS if env_id in _shipped(name))
        if not known:
            raise ConfigError(f"unknown environment {env_id!r}; known are {', '.join(_shipped('ppo'))}")
        raise ConfigError(
            f"{algorithm} has no hyperparameters for {env_id}; take one of {known}, or train with Stable-Baselines3 "
            "itself, and write the agent with `agents.export_agent`"
        )
    values = _merged(shipped, overrides or {})
    _check(algorithm, env_id, values)
    return values


def _shipped(algorithm: str) -> dict[str, Any]:
    """Return the content of an algorithm's file: id of an environment → hyperparameters."""
    file = files("agents.training") / "hyperparams" / f"{algorithm}.yml"
    return yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}


def _merged(before: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """Return a mapping with changes, in which mappings are merged as well."""
    parts = {
        name: _merged(before[name], value)
        if isinstance(before.get(name), dict) and isinstance(value, Mapping)
        else value
        for name, value in changes.items()
    }
    return {**before, **parts}


def _check(algorithm: str, env_id: str, values: Mapping[str, Any]) -> None:
    """Raise ConfigError if a hyperparameter is unknown, or its value has the wrong type or range."""
    kind: Any = algorithm_class(algorithm)
    known = {**OWN, **get_type_hints(kind.__init__, localns={"VecEnv": object})}
    known = {name: hint for name, hint in known.items() if name not in RESERVED}
    _check_names(f"{algorithm} on {env_id} has no hyperparameter", values, known)
    for name, value in values.items():
        if isinstance(value, str) and value.startswith("lin_"):  # a number that falls to 0, in the zoo's notation
            try:
                value = float(value.removeprefix("lin_"))
            except ValueError:
                raise ConfigError(f"{name} must be a number, or lin_ and a number, got {value!r}") from None
        check_type(name, value, known[name])
        if name in COUNTS and not isinstance(value, list):
            check_whole(**{name: value})
    check_most(MOST_ENVS, n_envs=values["n_envs"])
    check_one_of(("normal", None), noise_type=values.get("noise_type"))
    check_one_of(kind.policy_aliases, policy=values["policy"])
    parameters = inspect.signature(kind.policy_aliases[values["policy"]].__init__).parameters
    settings = {name: None for name in parameters if name not in POLICY_RESERVED}
    _check_names(f"the policy of {algorithm} has no setting", values.get("policy_kwargs") or {}, settings)


def _check_names(message: str, values: Mapping[str, Any], known: Mapping[str, Any]) -> None:
    if unknown := sorted(map(str, values.keys() - known.keys())):
        raise ConfigError(f"{message} {', '.join(unknown)}; known are {', '.join(sorted(known))}")
