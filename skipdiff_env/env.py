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

    ## Description
    A conditional DDPM enlarges a picture. In `reset`, S - 1 coarse steps bring Gaussian noise down to the noise level
    of diffusion step N (coarse skip approximation, Eq. 8-12 of SkipDiff, AAAI 2024). The agent then decides on the fine
    steps N, N - 1, …, 2 one by one (fine skip refinement, Eq. 13-15): each env step either performs a reverse diffusion
    step or skips it. The last step, to the clean latent, is always performed and returns the result. With `first_step`,
    the decisions begin before step N, at most at T.

    An *env step* is one decision. A *diffusion step* `t` counts noise levels, from T (noise) down to 0 (the picture).

    All noise is a function of (noise seed, stage, t). Given a picture and a noise seed, the environment is therefore
    deterministic, and computed latents are remembered (`cache_mb`).

    ## Action space
    `Discrete(2)`, see `skipdiff_env.Action`.

    | Num | Action  | `skip_mode="restart"` (the paper)      | `skip_mode="jump"`                              | UNet forwards |
    |-----|---------|----------------------------------------|-------------------------------------------------|---------------|
    | 0   | DENOISE | u ← D_t(u), the reverse diffusion step | from the level l that u stands at, straight to  | 1             |
    |     |         |                                        | t - 1; l ← t - 1                                |               |
    | 1   | SKIP    | u ← x_S1, back to the coarse latent    | u and l stay; the next step that is performed   | 0             |
    |     |         |                                        | covers what was skipped                         |               |

    Under "jump", the latent and its noise level always match, and the decisions of an episode form a schedule: the levels
    at which the network runs. The last step goes from l to the clean latent.

    ## Observation space
    `observation="latent"`, the default: the latent u, `Box(-b, b, (3, image_size, image_size))`, float32 or float16. It
    starts as the coarse latent x_S1, whose noise has a standard deviation of about √(1 - ᾱ_N). At the end of an episode
    it is the clean latent. The `target` of the checkpoint determines its meaning: the picture, or the scaled difference
    between the picture and the condition. The bound b follows from the clamped estimates and the bounded noise of the
    process. No latent exceeds it, so observations are not clipped.

    A latent does not determine the step: with "restart", an episode of SKIPs has the same observation N - 1 times. An
    agent that needs the step can count its observations (by stacked frames, as in `train-agent`, or by a recurrent
    policy), use a wrapper such as `gymnasium.wrappers.TimeAwareObservation(env)`, or observe the dictionary:

    `observation="dict"`:

    | Key         | Space                                     | Meaning                                                      |
    |-------------|-------------------------------------------|--------------------------------------------------------------|
    | `latent`    | `Box(-b, b, (3, image_size, image_size))` | the latent u                                                 |
    | `condition` | `Box(-1, 1, (3, image_size, image_size))` | the condition: the predictor's picture, or the bicubic one   |
    | `step`      | `Box(0, 1, (1,))`                         | t / (S · N), the step of the next decision                   |
    | `level`     | `Box(0, 1, (1,))`                         | l / (S · N), the level of the latent                         |
    | `price`     | `Box(0, highest, (1,))`                   | price of a forward; only if each episode draws its price     |

    ## Reward
    The reward is 0 until the last env step. Then it is 1/M of the result, or -M with `reward="negative"`, for a metric M
    for which lower is better (NIQE, LPIPS); in 1/M, M counts as at least 0.001. For a metric for which higher is
    better, it is M. `nfe_penalty` is subtracted for each fine UNet forward of the episode, also for those whose result
    was discarded. If the metric fails (a flat picture does not have a NIQE), the reward is 0 instead of 1/M or M, or
    -100 instead of -M, and `reward_failures` increases by one. `env.unwrapped.sr` and `env.unwrapped.hr` hold the
    result and the target, so a wrapper can define any other reward.

    ## Episode start and end
    `reset` draws a picture and a noise seed. Every episode has N - 1 env steps (`first_step` - 1, if that is given) and
    then terminates; it is never truncated.

    `reset(options={"image": i, "noise_seed": k})` sets either or both. `image` is an index, or a uint8 array (height,
    width, 3) whose centre is used. The option `nfe_penalty` sets the price. With `crop="random"`, the option `crop` sets
    the first row and column.

    `get_state()` and `set_state()` save and restore an episode for planning algorithms. The environment can be pickled
    and copied.

    ## Info
    | Key               | When   | Meaning                                                                               |
    |-------------------|--------|---------------------------------------------------------------------------------------|
    | `diffusion_step`  | always | step t of the next decision; 0 at the end                                             |
    | `nfe`             | always | UNet forwards of this episode, coarse and fine (whether computed or remembered)       |
    | `image_index`     | always | index of the picture, -1 for an array                                                 |
    | `noise_seed`      | always | noise seed of the episode                                                             |
    | `crop`            | always | first row and column of the crop; only with `crop="random"`                           |
    | `metrics`         | at end | name → value: the reward's metric and those of `report_metrics`; NaN if one failed    |
    | `nfe_penalty`     | always | price of each fine forward                                                            |
    | `degradation`     | always | strengths of "blur", "shrink", "noise" and "jpeg"; missing for "bicubic"              |
    | `start`           | at end | diffusion step at which the surviving chain began                                     |
    | `levels`          | at end | diffusion steps at which the network ran on the surviving chain                       |
    | `substeps`        | at end | number of even steps whose work each of these forwards did                            |
    | `reward_failures` | at end | number of earlier and present episodes in which the reward's metric failed            |

    The result is in `env.unwrapped.sr` until the next episode ends.

    ## Rendering
    `render_mode="rgb_array"` shows the input, the coarse estimate, the network's estimate from the current latent, and at
    the end the result, above a strip of the decisions. `gymnasium.wrappers.RecordVideo` records a video of an episode
    (`pip install "skipdiff[video]"`).

    ## Worked traces
    N = 4, "restart", actions (1, 0, 0):

    | env step | t | action   | u afterwards        | fine forwards |
    |----------|---|----------|---------------------|---------------|
    | 1        | 4 | SKIP     | x_S1                | 0             |
    | 2        | 3 | DENOISE  | D_3(x_S1)           | 1             |
    | 3        | 2 | DENOISE  | D_2(D_3(x_S1))      | 2             |
    |          | 1 | (always) | D_1(D_2(D_3(x_S1))) | 3             |

    Actions (0, 1, 0), which discard the first step:

    | env step | t | action   | u afterwards        | fine forwards |
    |----------|---|----------|---------------------|---------------|
    | 1        | 4 | DENOISE  | D_4(x_S1)           | 1             |
    | 2        | 3 | SKIP     | x_S1                | 1             |
    | 3        | 2 | DENOISE  | D_2(x_S1)           | 2             |
    |          | 1 | (always) | D_1(D_2(x_S1))      | 3             |

    Under "jump", actions (1, 0, 1), the schedule 4 → 2 → 0:

    | env step | t | action   | level of u afterwards  | fine forwards |
    |----------|---|----------|------------------------|---------------|
    | 1        | 4 | SKIP     | level 4                | 0             |
    | 2        | 3 | DENOISE  | level 2                | 1             |
    | 3        | 2 | SKIP     | level 2                | 1             |
    |          |   | (always) | level 0, the result    | 2             |

    With "restart", the result depends only on the place of the last SKIP. A picture and a noise seed have exactly N
    possible results, and `schedule_outcomes` computes all of them. With "jump", `schedule_outcomes` takes a list of
    schedules, for example fixed ones as baselines for an agent.

    ## Example
    ```python
    import gymnasium as gym
    import skipdiff_env

    env = gym.make("SkipDiff-v0", report_metrics=["psnr", "lpips"])
    observation, info = env.reset(seed=0)
    terminated = False
    while not terminated:
        observation, reward, terminated, truncated, info = env.step(env.action_space.sample())
    print(reward, info["start"], info["metrics"])
    ```
    `gym.make_vec("SkipDiff-v0", num_envs=16)` makes the batched environment,
    `skipdiff_env.vector_env.SkipDiffVectorEnv`.

    ## Arguments
    `gym.make` takes the [arguments of the environments](arguments.md) as keywords.

    ## Version history
    * v0: initial version

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
