"""The names of the algorithms of agents."""

from importlib import import_module
from typing import TYPE_CHECKING

from ddpm.util.errors import ConfigError

if TYPE_CHECKING:
    from stable_baselines3.common.base_class import BaseAlgorithm

# name → module and class; `agents/training/hyperparams` has the hyperparameters of most of them
ALGORITHMS = {
    "ppo": ("stable_baselines3", "PPO"),
    "a2c": ("stable_baselines3", "A2C"),
    "dqn": ("stable_baselines3", "DQN"),
    "qrdqn": ("sb3_contrib", "QRDQN"),
    "trpo": ("sb3_contrib", "TRPO"),
    "recurrent-ppo": ("sb3_contrib", "RecurrentPPO"),
    "maskable-ppo": ("sb3_contrib", "MaskablePPO"),
    "sac": ("stable_baselines3", "SAC"),
    "td3": ("stable_baselines3", "TD3"),
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
    if name not in ALGORITHMS:
        raise ConfigError(f"unknown algorithm {name!r}; known are {', '.join(ALGORITHMS)}")
    module, attribute = ALGORITHMS[name]
    return getattr(import_module(module), attribute)


def algorithm_name(kind: type) -> str:
    """Return the name of an algorithm, given its class in Stable-Baselines3.

    Raises:
        ConfigError: the class is not in `ALGORITHMS`.
    """
    for name, (_, attribute) in ALGORITHMS.items():
        if kind.__name__ == attribute:
            return name
    known = ", ".join(ALGORITHMS)
    raise ConfigError(f"{kind.__name__} is none of the algorithms {known}, whose agents can be exported")
