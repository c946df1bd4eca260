"""SkipDiff-v0, the scalar environment."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.envs.registration import EnvSpec
from numpy.typing import NDArray

from ddpm.schedule import Schedule
from ddpm.util.errors import ConfigError
from skipdiff_env.batches import set_generators
from skipdiff_env.config import TaskConfig
from skipdiff_env.episode import Episode, array
from skipdiff_env.observations import Observation, one_observation
from skipdiff_env.outcomes import OutcomeTable
from skipdiff_env.pictures import Rgb
from skipdiff_env.rendering import METADATA, check_render_mode
from skipdiff_env.rules import FixedPrice, InvalidActionError, ResetNeededError
from skipdiff_env.task import Task

# Env steps of an episode in the specification: the largest int32, in which Gymnasium counts.
UNLIMITED = 2**31 - 1


class SkipDiffEnv(gym.Env[Observation, np.int64]):
    """A diffusion model for super-resolution whose denoising steps can be skipped.

    A conditional DDPM enlarges a picture. In `reset`, S - 1 coarse steps bring Gaussian noise down to the noise level
    of diffusion step N (coarse skip approximation, Eq. 8-12 of SkipDiff, AAAI 2024). The agent then decides on the fine
    steps N, N - 1, …, 2 one by one (fine skip refinement, Eq. 13-15): each env step either performs a reverse diffusion
    step, DENOISE (0), or skips it, SKIP (1). The last step, to the clean latent, is always performed and yields the
    result. With `first_step` the decisions begin earlier than at N, up to T. Other kinds of decision are those of
    `skipdiff_env.decisions`.

    Observations are the latent, a dictionary or features, see `skipdiff_env.observations.Observer`. The reward is 0
    until the last env step, then that of `skipdiff_env.rules.qualities`, minus `nfe_penalty` for each fine forward.
    Every episode terminates; it is never truncated. The pages of the environments in the documentation describe all of
    this, the entries of `info`, and worked traces.

    All noise is a function of (noise seed, stage, t). A picture and a noise seed therefore determine every
    transition: the environment is deterministic given both, and computed latents are remembered (`cache_mb`).

    `env.unwrapped.sr` and `env.unwrapped.hr` hold result and target, `schedule_outcomes` tabulates the results of
    schedules, and `get_state()` and `set_state()` save and restore an episode, as planning algorithms need it. The
    environment can be pickled and copied. `skipdiff_env.vector_env.SkipDiffVectorEnv` is its batched form.

    Args:
        render_mode: "rgb_array", or None.
        settings: the attributes of `skipdiff_env.config.TaskConfig`.

    Raises:
        SkipDiffError: an argument is wrong: `ConfigError`, `CheckpointError` or `ImageError`.
    """

    metadata: dict[str, Any] = METADATA
    nfe_penalty = FixedPrice()

    def __init__(self, render_mode: str | None = None, **settings: Any) -> None:
        check_render_mode(render_mode)
        self.render_mode = render_mode
        self.task = Task(TaskConfig.of(settings))
        self.observation_space = self.task.observation_space
        self.action_space = self.task.action_space
        self.sr: NDArray[np.float32] | None = None
        self.hr: NDArray[np.float32] | None = None
        self.reward_failures = 0
        self._price = self.task.config.nfe_penalty
        self._episode: Episode | None = None
        self._spec: EnvSpec | None = None

    @property
    def spec(self) -> EnvSpec | None:
        """The specification from which Gymnasium made the environment."""
        return self._spec

    @spec.setter
    def spec(self, spec: EnvSpec | None) -> None:
        # TimeAwareObservation needs a number, although no episode is truncated
        self._spec = None if spec is None else replace(spec, max_episode_steps=UNLIMITED)

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Observation, dict[str, Any]]:
        """Start an episode: picture, noise seed, coarse stage.

        Args:
            seed: seed of `np_random`, from which picture and noise seed are drawn.
            options: "image" (index or uint8 array), "noise_seed", "nfe_penalty" and "crop" replace the drawn values.

        Raises:
            ConfigError: an option is unknown or out of range.
            ImageError: the picture cannot be used.
        """
        super().reset(seed=seed)
        image, noise_seed, price = self.task.draw(self.np_random, options)
        (self._episode,) = self.task.begin([image], [noise_seed], [price])
        self.hr = array(self._episode.hr)
        return self._observe(), self._episode.info()

    def _observe(self) -> Observation:
        assert self._episode is not None
        return one_observation(self.task.observe([self._episode]), 0)

    def step(self, action: Any) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Perform one decision; after the last one the episode runs to its result.

        Raises:
            InvalidActionError: the action does not belong to the action space.
            ResetNeededError: there is no episode, or it has ended.
        """
        episode = self._episode
        if episode is None or episode.ended:
            raise ResetNeededError(f"the episode has {'ended' if episode else 'not begun'}; call reset() before step()")
        if not self.action_space.contains(action):
            raise InvalidActionError(
                f"an action must be {self.task.process.decisions.describe()}, got {action!r}"
            )  # fmt: skip
        self.task.step([episode], [action])
        info = episode.info()
        if episode.sr is not None:
            self.sr = array(episode.sr)
            self.reward_failures += self.task.failed(episode)
            info["reward_failures"] = self.reward_failures
        return self._observe(), episode.reward, episode.ended, False, info

    def action_masks(self) -> NDArray[np.bool_]:
        """Return for each action whether it is possible now, for MaskablePPO; see `Decisions.masks`.

        Raises:
            ResetNeededError: there is no episode yet.
        """
        if self._episode is None:
            raise ResetNeededError("the episode has not begun; call reset() before action_masks()")
        return self.task.process.decisions.masks(self._episode.refinement)

    def render(self) -> NDArray[np.uint8] | None:
        """Return a frame (height, width, 3): input, coarse estimate, current estimate and result above the decisions so far.

        This takes up to two UNet forwards, which `nfe` does not count.

        Raises:
            ResetNeededError: there is no episode yet.
        """
        if self.render_mode is None:
            gym.logger.warn('render() without a render mode; make the environment with render_mode="rgb_array"')
            return None
        if self._episode is None:
            raise ResetNeededError("the episode has not begun; call reset() before render()")
        return self.task.render(self._episode)

    def get_state(self) -> dict[str, Any]:
        """Return the current episode and the random generator as plain data, for `set_state` and pickle."""
        if self._episode is None:
            raise ResetNeededError("the episode has not begun; call reset() before get_state()")
        return {"episode": self.task.save(self._episode), "generator": self.np_random.bit_generator.state}

    def set_state(self, state: Mapping[str, Any]) -> Observation:
        """Continue from a state of this environment, or of another one with the same arguments; no network runs.

        Args:
            state: the state that `get_state` returned.

        Returns:
            The observation of that moment.

        Raises:
            ConfigError: it is not such a state, or one of another picture, checkpoint, plan or degradation.
        """
        if not isinstance(state, Mapping) or state.keys() != {"episode", "generator"}:
            raise ConfigError("this is not a state that get_state() returned")
        episode = self.task.restore(state["episode"])
        set_generators([self.np_random], [state["generator"]])
        self._episode, self.hr = episode, array(episode.hr)
        self.sr = None if episode.sr is None else array(episode.sr)
        return self._observe()

    def schedule_outcomes(
        self,
        images: Sequence[int | Rgb],
        noise_seeds: Sequence[int],
        schedules: Sequence[Schedule | str | Sequence[int]] | None = None,
    ) -> OutcomeTable:
        """Run schedules for every picture and noise seed; see `skipdiff_env.task.Task.schedule_outcomes`."""
        return self.task.schedule_outcomes(images, noise_seeds, schedules)
