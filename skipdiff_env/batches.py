"""The common part of the batched environments: generators, resets, checks. This module does not need torch."""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from ddpm.util.checks import is_whole
from ddpm.util.errors import ConfigError
from skipdiff_env.rules import InvalidActionError, ResetNeededError

Array = NDArray[Any]


def set_generators(generators: Sequence[np.random.Generator], states: Sequence[Any]) -> None:
    """Set generators to states of their bit generators.

    Raises:
        ConfigError: these are not such states.
    """
    try:
        for generator, state in zip(generators, states, strict=True):
            generator.bit_generator.state = state
    except (TypeError, ValueError, KeyError, AttributeError) as error:
        raise ConfigError(f"this is not a state that get_state() returned ({error!r})") from None


def one_info(infos: Mapping[str, Any], i: int) -> dict[str, Any]:
    """Return the `info` of one environment from Gymnasium's arrays and their masks ("_name")."""
    own: dict[str, Any] = {}
    for name, column in infos.items():
        mask = infos.get(f"_{name}")  # other wrappers may leave it out
        if name.startswith("_") or (mask is not None and not mask[i]):
            continue
        if isinstance(column, dict):
            own[name] = one_info(column, i)
        else:
            own[name] = column[i].item() if isinstance(column[i], np.generic) else column[i]
    return own


class BatchedEnv(VectorEnv[Any, Array, Array]):
    """Environments that step together, each with its own generator, as in Gymnasium's `SyncVectorEnv`.

    Args:
        num_envs: number of environments.
        autoreset_mode: "NextStep", "SameStep" or "Disabled" (or a `gymnasium.vector.AutoresetMode`).

    Raises:
        ConfigError: one of these is wrong.
    """

    def __init__(self, num_envs: int, autoreset_mode: str | AutoresetMode) -> None:
        if not is_whole(num_envs) or num_envs < 1:
            raise ConfigError(f"num_envs must be a whole number of at least 1, got {num_envs!r}")
        modes = [mode.value for mode in AutoresetMode]
        if not isinstance(autoreset_mode, AutoresetMode) and autoreset_mode not in modes:
            raise ConfigError(f"autoreset_mode must be one of {', '.join(modes)}, got {autoreset_mode!r}")
        self.num_envs = int(num_envs)
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = type(self).metadata | {"autoreset_mode": self.autoreset_mode}
        self.reward_failures = [0] * self.num_envs
        self._generators: list[tuple[np.random.Generator, int] | None] = [None] * self.num_envs

    def _set_spaces(self, observation_space: gym.Space[Any], action_space: gym.Space[Any]) -> None:
        """Set the spaces of one environment, and those of all."""
        self.single_observation_space, self.single_action_space = observation_space, action_space
        self.observation_space = batch_space(observation_space, self.num_envs)
        self.action_space = batch_space(action_space, self.num_envs)

    @staticmethod
    def _check_length(decisions: int, max_episode_steps: int | None) -> None:
        """Refuse a limit that would truncate episodes."""
        if max_episode_steps is not None and max_episode_steps < decisions:
            raise ConfigError(
                f"an episode has {decisions} env steps and is never truncated, "
                f"got max_episode_steps {max_episode_steps}; leave it out"
            )

    def _generator(self, i: int, seed: int | None = None) -> tuple[np.random.Generator, int]:
        """Return the generator of environment i and its seed; a given seed, or the first call, makes it anew."""
        known = self._generators[i]
        if known is None or seed is not None:
            known = self._generators[i] = seeding.np_random(seed)
        return known

    @property  # type: ignore[misc]
    def np_random(self) -> tuple[np.random.Generator, ...]:  # type: ignore[override]
        """The generators of the environments."""
        return tuple(self._generator(i)[0] for i in range(self.num_envs))

    @property
    def np_random_seed(self) -> tuple[int, ...]:  # type: ignore[override]
        """The seeds of the generators."""
        return tuple(self._generator(i)[1] for i in range(self.num_envs))

    def _prepare_reset(
        self, seed: int | Sequence[int | None] | None, options: Mapping[str, Any] | None
    ) -> tuple[list[int], dict[str, list[Any]]]:
        """Seed the generators; return the environments to reset, and the value of every option for each environment.

        Raises:
            ConfigError: the options are not a dictionary, or an option does not have a value for every environment.
        """
        if is_whole(seed):
            seed = [int(seed) + i for i in range(self.num_envs)]  # type: ignore[arg-type]
        seeds = [None if s is None else int(s) for s in self._one_each("seed", seed)]
        if options is not None and not isinstance(options, Mapping):
            raise ConfigError(f"the options of reset must be a dictionary, got {options!r}")
        options = dict(options or {})
        mask = options.pop("reset_mask", None)
        mask = np.ones(self.num_envs, dtype=np.bool_) if mask is None else np.asarray(mask)
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
            raise ConfigError(
                f"reset_mask must be a bool array ({self.num_envs},) with at least one True, "
                f"got {mask.dtype} {mask.shape}"
            )
        columns = {name: self._one_each(name, value) for name, value in options.items()}
        envs = np.flatnonzero(mask).tolist()
        for i in envs:
            self._generator(i, seeds[i])
        return envs, columns

    def _checked(self, actions: Any) -> Array:
        """Return the actions as an array.

        Raises:
            InvalidActionError: the actions have another shape or type, or one is out of range.
        """
        actions = np.asarray(actions)
        if not self.action_space.contains(actions):
            raise InvalidActionError(
                f"actions must be {self._actions_are()}, got "
                f"{actions.dtype} {actions.shape}: {np.array2string(actions, threshold=8)}"
            )
        return actions

    @abstractmethod
    def _actions_are(self) -> str:
        """Return a description of the actions, for messages."""

    def _check_going(self, waiting: Sequence[int]) -> None:
        """Refuse to step environments whose episodes have ended, if they are not reset automatically."""
        if len(waiting) and self.autoreset_mode == AutoresetMode.DISABLED:
            raise ResetNeededError(
                f"the episodes of environments {', '.join(map(str, waiting))} have ended; "
                'reset them by reset(options={"reset_mask": …}) before step()'
            )

    def _one_each(self, name: str, value: Any) -> list[Any]:
        """Return one value for each environment, from a list of values or from one for all."""
        several = isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim in (1, 4))
        if several and len(value) != self.num_envs:
            raise ConfigError(f"{name} must be one value, or one for each of {self.num_envs} envs, got {len(value)}")
        return list(value) if several else [value] * self.num_envs
