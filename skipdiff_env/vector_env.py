"""SkipDiff-v0 in batches."""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.utils import seeding
from gymnasium.vector import AutoresetMode, VectorEnv
from gymnasium.vector.utils import batch_space
from numpy.typing import NDArray

from ddpm.errors import ConfigError
from skipdiff_env.pictures import Rgb
from skipdiff_env.rendering import METADATA, check_render_mode
from skipdiff_env.rules import InvalidActionError, ResetNeededError
from skipdiff_env.task import (
    Episode,
    Observation,
    StartOutcomes,
    Task,
    TaskConfig,
    one_observation,
)

Array = NDArray[Any]


class SkipDiffVectorEnv(VectorEnv[Any, Array, Array]):
    """`num_envs` environments as `skipdiff_env.env.SkipDiffEnv`, computed together.

    One UNet forward serves all environments that denoise at an env step, none is run for those that skip; fresh
    episodes share their coarse stage, and results one call of each metric. All environments share one net and one
    memory (`cache_mb`). With the same seeds, observations, rewards and `info` are those of Gymnasium's `SyncVectorEnv`
    over scalar environments, up to float rounding.

    `reset(seed=s)` seeds environment i with s + i; a list gives each its own. `reset(options={"image": …, "noise_seed":
    …, "reset_mask": …})`: each of the first two is one value for all environments or a list with one for each (None:
    draw it); the mask (bool array) says which environments are reset.

    Since all episodes have equally many env steps, environments that are reset together also end together. The results, as
    arrays (3, H, W), are in the list `sr`, where each stays until the next episode of its environment has ended.

    Args:
        num_envs: number of environments.
        autoreset_mode: "NextStep", "SameStep" or "Disabled" (or a `gymnasium.vector.AutoresetMode`).
        render_mode: "rgb_array", or None.
        max_episode_steps: the env steps of an episode or more, since episodes are never truncated; or None.
        settings: the other arguments of `skipdiff_env.env.SkipDiffEnv`, see `skipdiff_env.task.TaskConfig`.

    Raises:
        SkipDiffError: an argument is wrong: `ConfigError`, `CheckpointError` or `ImageError`.
    """

    metadata: dict[str, Any] = METADATA | {"autoreset_mode": AutoresetMode.NEXT_STEP}

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        max_episode_steps: int | None = None,
        **settings: Any,
    ) -> None:
        if not isinstance(num_envs, int | np.integer) or num_envs < 1:
            raise ConfigError(f"num_envs must be a whole number of at least 1, got {num_envs!r}")
        modes = [mode.value for mode in AutoresetMode]
        if not isinstance(autoreset_mode, AutoresetMode) and autoreset_mode not in modes:
            raise ConfigError(f"autoreset_mode must be one of {', '.join(modes)}, got {autoreset_mode!r}")
        check_render_mode(render_mode)
        self.task = Task(TaskConfig.of({"batch_size": max(num_envs, 32), **settings}))
        if max_episode_steps is not None and max_episode_steps < self.task.decisions:
            raise ConfigError(
                f"an episode has {self.task.decisions} env steps and is never truncated, "
                f"got max_episode_steps {max_episode_steps}; leave it out"
            )
        self.num_envs = int(num_envs)
        self.render_mode = render_mode
        self.autoreset_mode = AutoresetMode(autoreset_mode)
        self.metadata = type(self).metadata | {"autoreset_mode": self.autoreset_mode}
        self.single_observation_space = self.task.observation_space
        self.single_action_space = self.task.action_space
        self.observation_space = batch_space(self.single_observation_space, self.num_envs)
        self.action_space = batch_space(self.single_action_space, self.num_envs)
        self.sr: list[NDArray[np.float32] | None] = [None] * self.num_envs
        self.reward_failures = [0] * self.num_envs
        self._episodes: list[Episode | None] = [None] * self.num_envs
        self._generators: list[tuple[np.random.Generator, int] | None] = [None] * self.num_envs

    def _generator(self, i: int, seed: int | None = None) -> tuple[np.random.Generator, int]:
        """Generator of environment i and its seed; made anew where a seed is given, or there is none yet."""
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

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Starts an episode in every environment, or in those of `options["reset_mask"]`.

        Args:
            seed: seed of the first environment, the others counting up from there; or one for each.
            options: see the class.

        Returns:
            Observations (num_envs, 3, H, W) of all environments, and `info` of those that were reset.

        Raises:
            ConfigError: an option or the number of seeds is wrong.
            ImageError: a picture cannot be used.
            ResetNeededError: the mask leaves an environment without any episode.
        """
        if isinstance(seed, int | np.integer):
            seed = [int(seed) + i for i in range(self.num_envs)]
        seeds = [None if s is None else int(s) for s in self._one_each("seed", seed)]
        if options is not None and not isinstance(options, Mapping):
            raise ConfigError(f"the options of reset must be a dictionary, got {options!r}")
        options = dict(options or {})
        chosen = self._mask(options.pop("reset_mask", None))
        columns = {name: self._one_each(name, value) for name, value in options.items()}
        envs = [i for i in range(self.num_envs) if chosen[i]]
        for i in envs:
            self._generator(i, seeds[i])
        infos = self._begin(envs, {}, columns)
        return self._observe(), infos

    def step(self, actions: Array) -> tuple[Observation, Array, Array, Array, dict[str, Any]]:
        """One decision in every environment.

        Args:
            actions: whole numbers (num_envs,), each 0 (DENOISE) or 1 (SKIP); not looked at where "NextStep" resets.

        Returns:
            Observations, rewards (float64), terminations, truncations (all False), and `info`.

        Raises:
            InvalidActionError: the actions have another shape or type, or one is neither 0 nor 1.
            ResetNeededError: an environment has no episode, or with "Disabled" one that has ended.
        """
        actions = np.asarray(actions)
        if not self.action_space.contains(actions):
            raise InvalidActionError(
                f"actions must be whole numbers ({self.num_envs},), each 0 (DENOISE) or 1 (SKIP), got "
                f"{actions.dtype} {actions.shape}: {np.array2string(actions, threshold=8)}"
            )
        episodes = self._all_episodes("step")
        waiting = [i for i, episode in enumerate(episodes) if episode.ended]
        if waiting and self.autoreset_mode == AutoresetMode.DISABLED:
            raise ResetNeededError(
                f"the episodes of environments {', '.join(map(str, waiting))} have ended; "
                'reset them by reset(options={"reset_mask": …}) before step()'
            )
        rewards = np.zeros(self.num_envs)
        terminations = np.zeros(self.num_envs, dtype=np.bool_)
        going = [i for i, episode in enumerate(episodes) if not episode.ended]
        self.task.step([episodes[i] for i in going], [int(actions[i]) for i in going])
        ended = [i for i in going if episodes[i].ended]
        rewards[ended] = [episodes[i].reward for i in ended]
        terminations[ended] = True
        infos: dict[str, Any] = {}
        if self.autoreset_mode == AutoresetMode.SAME_STEP and ended:
            final = self.task.observe([episodes[i] for i in ended])
            for place, i in enumerate(ended):
                report = {"final_obs": one_observation(final, place), "final_info": self._final_info(i, episodes[i])}
                infos = self._add_info(infos, report, i)
            waiting, going = ended, [i for i in going if i not in ended]
        for i in going:
            infos = self._add_info(infos, self._final_info(i, episodes[i]), i)
        infos = self._begin(waiting, infos, {})
        return self._observe(), rewards, terminations, np.zeros_like(terminations), infos

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """A frame for each environment, as `SkipDiffEnv.render`."""
        if self.render_mode is None:
            gym.logger.warn('render() without a render mode; make the environment with render_mode="rgb_array"')
            return None
        return tuple(self.task.render(episode) for episode in self._all_episodes("render"))

    def get_state(self) -> dict[str, Any]:
        """The episodes as they stand and the random generators, as plain data that `set_state` takes and pickle stores."""
        episodes = self._all_episodes("get_state")
        return {
            "episodes": [self.task.save(episode) for episode in episodes],
            "generators": [generator.bit_generator.state for generator in self.np_random],
        }

    def set_state(self, state: Mapping[str, Any]) -> Observation:
        """Goes on from where `get_state` was called; runs no net.

        Raises:
            ConfigError: it is no such state, or one of another number of environments or of other pictures.
        """
        if not isinstance(state, Mapping) or state.keys() != {"episodes", "generators"}:
            raise ConfigError("this is no state that get_state() gave")
        saved = self._one_each("episodes", state["episodes"])
        self._episodes = [self.task.restore(each) for each in saved]
        for generator, inner in zip(self.np_random, state["generators"], strict=True):
            generator.bit_generator.state = inner
        return self._observe()

    def start_outcomes(self, images: Sequence[int | Rgb], noise_seeds: Sequence[int]) -> StartOutcomes:
        """Rewards and metrics of all starts for every picture and noise seed; see `Task.start_outcomes`."""
        return self.task.start_outcomes(images, noise_seeds)

    def _begin(self, envs: Sequence[int], infos: dict[str, Any], options: dict[str, list[Any]]) -> dict[str, Any]:
        """Starts episodes in some environments; adds their `info`."""
        if not envs:
            return infos
        drawn = [
            self.task.draw(self._generator(i)[0], {name: column[i] for name, column in options.items()}) for i in envs
        ]
        images, noise_seeds, prices = zip(*drawn, strict=True)
        fresh = self.task.begin(images, noise_seeds, prices)
        for i, episode in zip(envs, fresh, strict=True):
            self._episodes[i] = episode
            infos = self._add_info(infos, episode.info(), i)
        return infos

    def _final_info(self, i: int, episode: Episode) -> dict[str, Any]:
        info = episode.info()
        if episode.sr is not None:
            self.sr[i] = episode.sr.cpu().numpy()
            self.reward_failures[i] += self.task.failed(episode)
            info["reward_failures"] = self.reward_failures[i]
        return info

    def _observe(self) -> Observation:
        return self.task.observe(self._all_episodes("step"))

    def _all_episodes(self, call: str) -> list[Episode]:
        episodes = [episode for episode in self._episodes if episode is not None]
        if len(episodes) < self.num_envs:
            raise ResetNeededError(f"an environment has no episode; call reset() before {call}()")
        return episodes

    def _one_each(self, name: str, value: Any) -> list[Any]:
        """One value for each environment, from a list of them or from one for all."""
        several = isinstance(value, list | tuple) or (isinstance(value, np.ndarray) and value.ndim in (1, 4))
        if several and len(value) != self.num_envs:
            raise ConfigError(f"{name} must be one value, or one for each of {self.num_envs} envs, got {len(value)}")
        return list(value) if several else [value] * self.num_envs

    def _mask(self, mask: Any) -> NDArray[np.bool_]:
        if mask is None:
            return np.ones(self.num_envs, dtype=np.bool_)
        mask = np.asarray(mask)
        if mask.shape != (self.num_envs,) or mask.dtype != np.bool_ or not mask.any():
            raise ConfigError(
                f"reset_mask must be a bool array ({self.num_envs},) with at least one True, "
                f"got {mask.dtype} {mask.shape}"
            )
        return mask
