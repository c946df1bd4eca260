"""Policies of Stable-Baselines3 as plain data, from which they can be built again without pickle."""

import json
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from torch import Tensor, nn

from agents.algorithms import RECURRENT, algorithm_class
from ddpm.util.checks import shown
from ddpm.util.errors import CheckpointError, ConfigError, first_line

# Names of the last layers of policies, whose outputs determine the actions.
LAST_LAYERS = ("action_net", "mu", "q_net", "quantile_net")
# The largest number of values in an observation.
LARGEST_OBSERVATION = 2**28
# Settings that matter only for learning.
LEARNING = frozenset({"lr_schedule", "optimizer_class", "optimizer_kwargs", "observation_space", "action_space"})


def acting_part(policy: Any) -> Any:
    """Return the network that chooses actions: the policy, its Q-network, or its actor without the critic."""
    for name in ("q_net", "quantile_net"):
        if hasattr(policy, f"{name}_target"):
            return getattr(policy, name)
    return getattr(policy, "actor", policy)


class NotFiniteError(CheckpointError):
    """An error: the outputs of a policy are not finite."""

    def __init__(self) -> None:
        super().__init__(
            "the agent returns numbers that are not finite, so its weights or its configuration are damaged; take "
            "another agent"
        )


def check_outputs(policy: Any) -> None:
    """Make the last layer of a policy raise `NotFiniteError` for outputs that are not finite.

    The distributions of PyTorch check their parameters as well, but not after `torch.compile` or an export has run in
    the process, since these switch off the validation for all distributions.
    """
    for name in LAST_LAYERS:
        layer = getattr(policy, name, None)
        if isinstance(layer, nn.Module) and _check_finite not in layer._forward_hooks.values():
            layer.register_forward_hook(_check_finite)


def _check_finite(layer: nn.Module, inputs: Any, outputs: Tensor) -> None:
    if not outputs.isfinite().all():
        raise NotFiniteError


# --- spaces ---


def space_settings(space: spaces.Space[Any]) -> dict[str, Any]:
    """Return a space as plain data.

    Raises:
        ConfigError: no environment of this project has a space of this kind.
    """
    if isinstance(space, spaces.Box):
        bounds = {name: _bound(getattr(space, name)) for name in ("low", "high")}
        return {"Box": {**bounds, "shape": list(space.shape), "dtype": str(space.dtype)}}
    if isinstance(space, spaces.Discrete):
        return {"Discrete": int(space.n)}
    if isinstance(space, spaces.MultiDiscrete):
        return {"MultiDiscrete": space.nvec.tolist()}
    if isinstance(space, spaces.Dict):
        return {"Dict": {name: space_settings(part) for name, part in space.spaces.items()}}
    raise ConfigError(f"a space of an agent must be Box, Discrete, MultiDiscrete or Dict, got {space}")


def _bound(values: np.ndarray) -> float | list[Any]:
    return float(values.flat[0]) if (values == values.flat[0]).all() else values.tolist()


def make_space(settings: Any) -> spaces.Space[Any]:
    """Return the space that `space_settings` described.

    Raises:
        ConfigError: the settings do not describe a space.
    """
    try:
        ((kind, own),) = settings.items()
        if kind == "Discrete":
            return spaces.Discrete(own)
        if kind == "MultiDiscrete":
            return spaces.MultiDiscrete(own)
        if kind == "Dict":
            return spaces.Dict({name: make_space(part) for name, part in own.items()})
        if kind != "Box" or not 0 < math.prod(own["shape"]) <= LARGEST_OBSERVATION:
            raise ValueError(f"a {kind} of {own}")
        shape, dtype = tuple(own["shape"]), np.dtype(own["dtype"])
        low, high = (np.broadcast_to(np.array(own[name], dtype), shape) for name in ("low", "high"))
        return spaces.Box(low, high, shape, dtype.type)
    except (AttributeError, KeyError, TypeError, ValueError, AssertionError, OverflowError) as error:
        raise ConfigError(f"{shown(settings)} is not a space ({error})") from None


# --- policies ---


def _extractors() -> dict[str, type]:
    from stable_baselines3.common import torch_layers

    from agents.networks.extractors import SkipProposalExtractor
    from agents.networks.jump_extractor import JumpExtractor

    kinds = [torch_layers.FlattenExtractor, torch_layers.NatureCNN, torch_layers.CombinedExtractor]
    return {kind.__name__: kind for kind in [*kinds, SkipProposalExtractor, JumpExtractor]}


def policy_description(algorithm: str, policy: Any) -> dict[str, Any]:
    """Return a policy of Stable-Baselines3 as plain data: its name, settings and spaces.

    Raises:
        ConfigError: its class or one of its settings could not be built again.
    """
    aliases = algorithm_class(algorithm).policy_aliases
    name = next((name for name, kind in aliases.items() if kind is type(policy)), None)
    if name is None:
        raise ConfigError(
            f"a policy of the class {type(policy).__name__} cannot be built again elsewhere; train with one of "
            f"{', '.join(aliases)}"
        )
    settings = {key: value for key, value in policy._get_constructor_parameters().items() if key not in LEARNING}
    if algorithm == RECURRENT:
        lstm = policy.lstm_actor
        settings |= {
            "lstm_hidden_size": lstm.hidden_size, "n_lstm_layers": lstm.num_layers,
            "shared_lstm": policy.shared_lstm, "enable_critic_lstm": policy.enable_critic_lstm,
            "lstm_kwargs": policy.lstm_kwargs,
        }  # fmt: skip
    extractor: Any = settings.pop("features_extractor_class")
    if extractor not in _extractors().values():
        raise ConfigError(
            f"the features extractor {extractor.__name__} is not known to other programs; train with one of "
            f"{', '.join(_extractors())}"
        )
    activation: Any = settings.pop("activation_fn")
    if activation not in vars(torch.nn).values():
        raise ConfigError(f"activation_fn must be a class of torch.nn, got {activation}")
    try:
        settings = json.loads(json.dumps(settings))
    except TypeError as error:
        raise ConfigError(f"policy_kwargs of an agent must be plain values, got {settings} ({error})") from None
    return {
        "class": name, "observation_space": space_settings(policy.observation_space),
        "action_space": space_settings(policy.action_space), "features_extractor": extractor.__name__,
        "activation": activation.__name__, "settings": settings,
    }  # fmt: skip


def build_policy(algorithm: str, description: Mapping[str, Any]) -> Any:
    """Return the policy that `policy_description` described, untrained.

    Raises:
        ConfigError: the description is damaged.
    """
    try:
        aliases = algorithm_class(algorithm).policy_aliases
        kind, extractor = aliases[description["class"]], _extractors()[description["features_extractor"]]
        activation = getattr(torch.nn, description["activation"])
        if not issubclass(activation, torch.nn.Module):
            raise TypeError(f"{description['activation']} is not an activation")
        observation, action = (make_space(description[f"{name}_space"]) for name in ("observation", "action"))
        make: Any = kind
        return make(
            observation, action, lambda _: 0.0, features_extractor_class=extractor, activation_fn=activation,
            **description["settings"],
        )  # fmt: skip
    except ConfigError:
        raise
    except Exception as error:  # for unusual settings, policies raise nearly any error
        raise ConfigError(
            f"the policy of the agent cannot be built ({type(error).__name__}: {first_line(error)})"
        ) from None
