"""The algorithms that train agents: the one place where their names stand."""

from importlib import import_module
from typing import TYPE_CHECKING

from ddpm.util.errors import ConfigError

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

# name → module and class; for the first ones `skipdiff train-agent` has hyperparameters
ALGORITHMS = {
    "ppo": ("stable_baselines3", "PPO"),
    "a2c": ("stable_baselines3", "A2C"),
    "dqn": ("stable_baselines3", "DQN"),
    "qrdqn": ("sb3_contrib", "QRDQN"),
    "trpo": ("sb3_contrib", "TRPO"),
    "recurrent-ppo": ("sb3_contrib", "RecurrentPPO"),
}
# Learn on tables of outcomes alone.
ON_TABLES = {
    "maskable-ppo": ("sb3_contrib", "MaskablePPO"),
    "sac": ("stable_baselines3", "SAC"),
    "td3": ("stable_baselines3", "TD3"),
}
# Those whose agents can be written.
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
    """The Stable-Baselines3 class of an algorithm.

    Raises:
        ConfigError: the algorithm is unknown.
    """
    if name not in EXPORTED:
        raise ConfigError(f"unknown algorithm {name!r}; known are {', '.join(EXPORTED)}")
    module, attribute = EXPORTED[name]
    return getattr(import_module(module), attribute)


def algorithm_name(kind: type) -> str:
    """Return the name of the algorithm that a class of Stable-Baselines3 is.

    Raises:
        ConfigError: it is a class that `EXPORTED` does not name.
    """
    for name, (_, attribute) in EXPORTED.items():
        if kind.__name__ == attribute:
            return name
    raise ConfigError(f"{kind.__name__} is none of the algorithms {', '.join(EXPORTED)}, whose agents can be exported")


def policy_alias(algorithm: str, observation: str = "latent") -> str:
    """The name under which an algorithm has its policy for an observation, "latent" or "dict"."""
    kind = {"latent": "Cnn", "features": "Mlp"}.get(observation, "MultiInput")
    return f"{kind}LstmPolicy" if algorithm == RECURRENT else f"{kind}Policy"


def frame_stacked(algorithm: str, observation: str = "latent") -> bool:
    """Whether an algorithm is given the latents of the whole episode.

    RecurrentPPO has its own state, and an observation that is a dictionary tells all there is to know.
    """
    return algorithm != RECURRENT and observation == "latent"
