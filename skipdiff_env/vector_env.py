"""SkipDiff-v0 in batches."""

from collections.abc import Mapping, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from ddpm.schedule import Schedule
from ddpm.util.errors import ConfigError
from skipdiff_env.batches import Array, BatchedEnv, set_generators
from skipdiff_env.config import TaskConfig
from skipdiff_env.episode import Episode, array
from skipdiff_env.observations import Observation, one_observation
from skipdiff_env.outcomes import OutcomeTable
from skipdiff_env.pictures import Rgb
from skipdiff_env.rendering import METADATA, check_render_mode
from skipdiff_env.rules import FixedPrice, ResetNeededError
from skipdiff_env.task import Task


class SkipDiffVectorEnv(BatchedEnv):
    """`num_envs` environments like `skipdiff_env.env.SkipDiffEnv`, computed together.

    All environments that denoise at an env step share one UNet forward. New episodes share their coarse stage, and
    results share one call of each metric. All environments share one network and one memory (`cache_mb`). With the same
    seeds, observations, rewards and `info` are those of Gymnasium's `SyncVectorEnv` over scalar environments, up to
    float rounding.

    `reset(seed=s)` seeds environment i with s + i; a list contains one seed for each environment. The options "image"
    and "noise_seed" of `reset` are one value for all environments, or a list with one value for each (None: draw it).
    The option "reset_mask", a bool array, selects the environments to reset.

    Episodes with decisions "skip" have the same number of env steps, so environments that are reset together also end
    together. The list `sr` contains the results as arrays (3, H, W), and `hr` contains their targets. They stay there
    until the next episode of their environment ends.

    Args:
        num_envs: number of environments.
        autoreset_mode: "NextStep", "SameStep" or "Disabled" (or a `gymnasium.vector.AutoresetMode`).
        render_mode: "rgb_array", or None.
        max_episode_steps: the env steps of an episode or more, since episodes are never truncated; or None.
        settings: the other arguments of `skipdiff_env.env.SkipDiffEnv`, see `skipdiff_env.config.TaskConfig`.

    Raises:
        SkipDiffError: an argument is wrong: `ConfigError`, `CheckpointError` or `ImageError`.
    """

    metadata: dict[str, Any] = METADATA | {"autoreset_mode": AutoresetMode.NEXT_STEP}
    nfe_penalty = FixedPrice()

    def __init__(
        self,
        num_envs: int = 1,
        *,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        max_episode_steps: int | None = None,
        **settings: Any,
    ) -> None:
        super().__init__(num_envs, autoreset_mode)
        check_render_mode(render_mode)
        self.task = Task(TaskConfig.of({"batch_size": max(num_envs, 32), **settings}))
        self._check_length(self.task.decisions, max_episode_steps)
        self.render_mode = render_mode
        self._set_spaces(self.task.observation_space, self.task.action_space)
        self.sr: list[NDArray[np.float32] | None] = [None] * self.num_envs
        self.hr: list[NDArray[np.float32] | None] = [None] * self.num_envs
        self._price = self.task.config.nfe_penalty
        self._episodes: list[Episode | None] = [None] * self.num_envs

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode in every environment, or in those of `options["reset_mask"]`.

        Args:
            seed: seed of the first environment, the others counting up from there; or one for each.
            options: see the class.

        Returns:
            Observations (num_envs, 3, H, W) of all environments, and `info` of those that were reset.

        Raises:
            ConfigError: an option or the number of seeds is wrong.
            ImageError: a picture cannot be used.
            ResetNeededError: the mask leaves an environment without an episode.
        """
        envs, columns = self._prepare_reset(seed, options)
        infos = self._begin(envs, {}, columns)
        return self._observe(), infos

    def step(self, actions: Array) -> tuple[Observation, Array, Array, Array, dict[str, Any]]:
        """Make one decision in every environment.

        Args:
            actions: actions of `action_space`; for the decisions "skip", whole numbers (num_envs,), each 0 (DENOISE) or
                1 (SKIP). Those of environments that "NextStep" resets are ignored.

        Returns:
            Observations, rewards (float64), terminations, truncations (all False), and `info`.

        Raises:
            InvalidActionError: the actions are not in `action_space`.
            ResetNeededError: an environment has no episode, or with "Disabled" one that has ended.
        """
        actions = self._checked(actions)
        episodes = self._all_episodes("step")
        waiting = [i for i, episode in enumerate(episodes) if episode.ended]
        self._check_going(waiting)
        rewards = np.zeros(self.num_envs)
        terminations = np.zeros(self.num_envs, dtype=np.bool_)
        going = [i for i, episode in enumerate(episodes) if not episode.ended]
        self.task.step([episodes[i] for i in going], [actions[i] for i in going])
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

    def _actions_are(self) -> str:
        return f"an array {self.action_space.shape}, in each row {self.task.process.decisions.describe()}"

    def action_masks(self) -> NDArray[np.bool_]:
        """Return for each environment and action whether it is possible now, (num_envs, actions)."""
        masks = self.task.process.decisions.masks
        return np.stack([masks(episode.refinement) for episode in self._all_episodes("action_masks")])

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """Return a frame for each environment, see `SkipDiffEnv.render`."""
        if self.render_mode is None:
            gym.logger.warn('render() without a render mode; make the environment with render_mode="rgb_array"')
            return None
        return tuple(self.task.render(episode) for episode in self._all_episodes("render"))

    def get_state(self) -> dict[str, Any]:
        """Return the current episodes and the random generators as plain data, for `set_state` and pickle."""
        episodes = self._all_episodes("get_state")
        return {
            "episodes": [self.task.save(episode) for episode in episodes],
            "generators": [generator.bit_generator.state for generator in self.np_random],
        }

    def set_state(self, state: Mapping[str, Any]) -> Observation:
        """Continue from where `get_state` was called, and return the observations of that moment; no network runs.

        Raises:
            ConfigError: it is not such a state, or one of another number of environments, of other pictures, or of
                another checkpoint, plan or degradation.
        """
        if not isinstance(state, Mapping) or state.keys() != {"episodes", "generators"}:
            raise ConfigError("this is not a state that get_state() returned")
        restored = [self.task.restore(each) for each in self._one_each("episodes", state["episodes"])]
        set_generators(self.np_random, self._one_each("generators", state["generators"]))
        self._episodes = [*restored]
        return self._observe()

    def schedule_outcomes(
        self,
        images: Sequence[int | Rgb],
        noise_seeds: Sequence[int],
        schedules: Sequence[Schedule | str | Sequence[int]] | None = None,
    ) -> OutcomeTable:
        """Run schedules for every picture and noise seed; see `skipdiff_env.task.Task.schedule_outcomes`."""
        return self.task.schedule_outcomes(images, noise_seeds, schedules)

    def _begin(self, envs: Sequence[int], infos: dict[str, Any], options: dict[str, list[Any]]) -> dict[str, Any]:
        """Start episodes in some environments, and add their `info`."""
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
            self.sr[i], self.hr[i] = array(episode.sr), array(episode.hr)
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
