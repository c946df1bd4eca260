"""The names of the algorithms that train agents."""

from importlib import import_module
from typing import TYPE_CHECKING

from ddpm.util.errors import ConfigError

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

# name → module and class; `skipdiff train-agent` has hyperparameters for the first ones
ALGORITHMS = {
    "ppo": ("stable_baselines3", "PPO"),
    "a2c": ("stable_baselines3", "A2C"),
    "dqn": ("stable_baselines3", "DQN"),
    "qrdqn": ("sb3_contrib", "QRDQN"),
    "trpo": ("sb3_contrib", "TRPO"),
    "recurrent-ppo": ("sb3_contrib", "RecurrentPPO"),
}
# Algorithms that learn only on tables of outcomes.
ON_TABLES = {
    "maskable-ppo": ("sb3_contrib", "MaskablePPO"),
    "sac": ("stable_baselines3", "SAC"),
    "td3": ("stable_baselines3", "TD3"),
}
# Algorithms whose agents can be exported.
EXPORTED = {
    **ALGORITHMS,
    **ON_TABLES,
    "ddpg": ("stable_baselines3", "DDPG"),
    "tqc": ("sb3_contrib", "TQC"),
    "crossq": ("sb3_contrib", "CrossQ"),
}
RECURRENT = "recurrent-ppo"
MASKABLE = "maskable-ppo"


def algorithm_class(name: str) -> "type[BaseAlgorithm]":
    """Return the Stable-Baselines3 class of an algorithm.

    Raises:
        ConfigError: the algorithm is unknown.
    """
    if name not in EXPORTED:
        raise ConfigError(f"unknown algorithm {name!r}; known are {', '.join(EXPORTED)}")
    module, attribute = EXPORTED[name]
    return getattr(import_module(module), attribute)


def algorithm_name(kind: type) -> str:
    """Return the name of an algorithm, given its class in Stable-Baselines3.

    Raises:
        ConfigError: the class is not in `EXPORTED`.
    """
    for name, (_, attribute) in EXPORTED.items():
        if kind.__name__ == attribute:
            return name
    raise ConfigError(f"{kind.__name__} is none of the algorithms {', '.join(EXPORTED)}, whose agents can be exported")


def policy_alias(algorithm: str, observation: str = "latent") -> str:
    """Return the name of an algorithm's policy for an observation, "latent" or "dict"."""
    kind = {"latent": "Cnn", "features": "Mlp"}.get(observation, "MultiInput")
    return f"{kind}LstmPolicy" if algorithm == RECURRENT else f"{kind}Policy"


def frame_stacked(algorithm: str, observation: str = "latent") -> bool:
    """Return whether an algorithm observes the latents of the whole episode.

    RecurrentPPO has a state, and a dictionary observation is complete without the earlier latents.
    """
    return algorithm != RECURRENT and observation == "latent"
