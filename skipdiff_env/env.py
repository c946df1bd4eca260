"""SkipDiff-v0, the scalar environment."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from numpy.typing import NDArray

from skipdiff_env.metrics import MetricLike
from skipdiff_env.pictures import Rgb
from skipdiff_env.rendering import METADATA, check_render_mode
from skipdiff_env.task import Episode, InvalidActionError, ResetNeededError, StartOutcomes, Task


class SkipDiffEnv(gym.Env[NDArray[np.floating], np.int64]):
    """Which denoising steps of a super-resolution diffusion model can be skipped?

    ## Description
    A conditional DDPM enlarges a picture. S - 1 coarse steps bring Gaussian noise down to the noise level of diffusion
    step N (coarse skip approximation, Eq. 8-12 of SkipDiff, AAAI 2024); that happens in `reset`. The fine steps
    N, N - 1, …, 2 are then decided one by one (fine skip refinement, Eq. 13-15): each env step either performs a
    reverse diffusion step or skips it. Diffusion step 1 is always performed and gives the result. With `fine_steps` the
    decisions begin earlier than at N, up to T.

    An *env step* is one decision; a *diffusion step* `t` counts noise levels, from T (noise) down to 0 (the picture).

    All noise is a function of (noise seed, stage, t). A picture and a noise seed therefore fix every transition: the
    environment is deterministic given both, and what was once computed is remembered (`cache_mb`).

    ## Action space
    `Discrete(2)`, see `skipdiff_env.Action`.

    | Num | Action  | `skip_mode="restart"`                   | `skip_mode="hold"`              | UNet forwards |
    |-----|---------|-----------------------------------------|---------------------------------|---------------|
    | 0   | DENOISE | u ← D_t(u), the reverse diffusion step  | the same                        | 1             |
    | 1   | SKIP    | u ← x_S1, back to the coarse latent     | u stays as it is                | 0             |

    ## Observation space
    The latent u: `Box(-b, b, (3, image_size, image_size))`, float32 or float16. It starts as the coarse latent x_S1,
    noisy by about √(1 - ᾱ_N); at the end of an episode it is the clean latent. What it stands for, the picture or the
    scaled difference from the bicubic enlargement, is the `target` of the checkpoint. The bound b follows from the
    clamped estimates and the bounded noise of the process, so that no latent can leave it and nothing is clipped.

    ## Reward
    0 until the last env step, then 1/M of the result if a lower metric M is better (NIQE, LPIPS), else M itself, less
    `nfe_penalty` for each fine UNet forward of the episode, thrown away or not. Where the metric fails (a flat picture
    has no NIQE) M counts as infinitely bad, 0 instead of 1/M or M, and `reward_failures` goes up by one. In 1/M, M counts
    as at least 0.001.

    ## Episode start and end
    `reset` draws a picture and a noise seed. Every episode has N - 1 env steps (`fine_steps` - 1, where that is given) and
    then terminates; none is truncated.

    `reset(options={"image": i, "noise_seed": k})` fixes either or both; `image` is an index or a uint8 array
    (height, width, 3), whose centre is taken.

    ## Info
    | Key               | When   | What                                                                                  |
    |-------------------|--------|---------------------------------------------------------------------------------------|
    | `diffusion_step`  | always | step t that is decided next; 0 at the end                                             |
    | `nfe`             | always | UNet forwards of this episode, coarse and fine (whether computed or remembered)       |
    | `image_index`     | always | place of the picture, -1 for an array                                                 |
    | `noise_seed`      | always | noise seed of the episode                                                             |
    | `metrics`         | at end | name → value: the reward's metric and those of `report_metrics`; NaN where one failed |
    | `start`           | at end | diffusion step at which the surviving chain began                                     |
    | `reward_failures` | at end | episodes of this environment whose reward's metric failed, so far                     |

    The result itself is at `env.unwrapped.sr` until the next episode ends.

    ## Rendering
    `render_mode="rgb_array"`: the input, the coarse estimate, what the net sees in the latent now, and at the end the
    result, over a strip of the decisions. `gymnasium.wrappers.RecordVideo` makes a film of an episode
    (`pip install "skipdiff[video]"`).

    ## Worked traces
    N = 4, "restart", actions (1, 0, 0):

    | env step | t | action   | u afterwards        | fine forwards |
    |----------|---|----------|---------------------|---------------|
    | 1        | 4 | SKIP     | x_S1                | 0             |
    | 2        | 3 | DENOISE  | D_3(x_S1)           | 1             |
    | 3        | 2 | DENOISE  | D_2(D_3(x_S1))      | 2             |
    |          | 1 | (always) | D_1(D_2(D_3(x_S1))) | 3             |

    and actions (0, 1, 0), where the first step is thrown away:

    | env step | t | action   | u afterwards        | fine forwards |
    |----------|---|----------|---------------------|---------------|
    | 1        | 4 | DENOISE  | D_4(x_S1)           | 1             |
    | 2        | 3 | SKIP     | x_S1                | 1             |
    | 3        | 2 | DENOISE  | D_2(x_S1)           | 2             |
    |          | 1 | (always) | D_1(D_2(x_S1))      | 3             |

    With "restart" only the place of the last SKIP matters to the result: a picture and a noise seed have exactly N
    possible results, which `start_outcomes` tabulates.

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
    `gym.make_vec("SkipDiff-v0", num_envs=16)` gives the same environment in batches,
    `skipdiff_env.vector_env.SkipDiffVectorEnv`.

    ## Version history
    * v0: initial version

    Args:
        checkpoint: name of a shipped checkpoint, a folder, or a Hub id.
        images: target pictures: None, crops of photographs that scikit-image carries; a folder, file or pattern; or
            several of them. The low-resolution input is made from the target.
        image_size: side of the target in pixels; of larger pictures the centre is taken.
        scale: how many times to enlarge; None: what the checkpoint does.
        steps: (S, N), coarse steps, and diffusion steps that each spans; S · N is the checkpoint's T.
        metric: the reward's metric: "niqe", "lpips", "psnr", "ssim", or any name that `skipdiff_env.make_metric` takes, but not
            the judges "dists" and "lpips-vgg"; or a `Metric`, or a function of results and targets, as
            `skipdiff_env.metrics.as_metric` says. With one that is not a name `spec.to_json()` raises a TypeError.
        report_metrics: further metrics for `info`, the judges among them.
        skip_mode: what SKIP does, "restart" (the paper) or "hold".
        coarse: what runs the S - 1 coarse steps: "ddpm" (the paper), one of the samplers that add no noise, "ddim" or
            "dpmsolver++", or "ddim:ETA" with the share ETA of ddpm's noise, 0 … 1; the coarse latent stands at the same
            noise level, after as many forwards. None: what the checkpoint says, "ddpm" where it says nothing.
        fine_steps: the diffusion step that is decided first, N … T; None: N. The coarse latent stands at the noise level of
            step N all the same: with T this is case 4 of the paper's Table 4, which decides on all T steps.
        noise_seeds: how many different noises a picture may get: its noise seeds are 0 … noise_seeds - 1. None: no
            limit; then hardly an episode comes twice, and nothing is gained from remembering.
        nfe_penalty: subtracted from the terminal reward for each fine UNet forward.
        obs_dtype: "float32" or "float16".
        cache_mb: room for remembered pictures, latents and metrics, in MiB; the least recently used go first. A latent
            takes 12 · image_size² bytes, and all starts of one picture and noise N · (N + 1)/2 + 1 latents (`fine_steps`
            for N, where that is given).
        device: where the net and the metrics run: "cpu", "cuda", …
        render_mode: "rgb_array", or None.

    Raises:
        SkipDiffError: an argument is wrong: `ConfigError`, `CheckpointError` or `ImageError`.
    """

    metadata: dict[str, Any] = METADATA

    def __init__(
        self,
        checkpoint: str | Path = "natural-x4",
        images: str | Path | Sequence[str | Path] | None = None,
        image_size: int = 128,
        scale: int | None = None,
        steps: Sequence[int] = (10, 10),
        metric: MetricLike = "niqe",
        report_metrics: MetricLike | Sequence[MetricLike] = (),
        skip_mode: str = "restart",
        coarse: str | None = None,
        fine_steps: int | None = None,
        noise_seeds: int | None = None,
        nfe_penalty: float = 0.0,
        obs_dtype: str = "float32",
        cache_mb: float = 512,
        device: str = "cpu",
        render_mode: str | None = None,
    ) -> None:
        check_render_mode(render_mode)
        self.render_mode = render_mode
        self.task = Task(
            checkpoint, images, image_size, scale, steps, metric, report_metrics, skip_mode, coarse, fine_steps,
            noise_seeds, nfe_penalty, obs_dtype, cache_mb, device,
        )  # fmt: skip
        self.observation_space = self.task.observation_space
        self.action_space = self.task.action_space
        self.sr: NDArray[np.float32] | None = None
        self.reward_failures = 0
        self._episode: Episode | None = None

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.floating], dict[str, Any]]:
        """Starts an episode: picture, noise seed, coarse stage.

        Args:
            seed: seed of `np_random`, from which picture and noise seed are drawn.
            options: "image" (index or uint8 array) and "noise_seed" fix what would be drawn.

        Raises:
            ConfigError: an option is unknown or out of range.
            ImageError: the picture cannot be used.
        """
        super().reset(seed=seed)
        image, noise_seed = self.task.draw(self.np_random, options)
        (self._episode,) = self.task.begin([image], [noise_seed])
        return self.task.observe([self._episode])[0], self._episode.info()

    def step(self, action: int | np.int64) -> tuple[NDArray[np.floating], float, bool, bool, dict[str, Any]]:
        """Decides one diffusion step; the last decision also performs diffusion step 1.

        Raises:
            InvalidActionError: the action is neither 0 nor 1.
            ResetNeededError: there is no episode, or it has ended.
        """
        episode = self._episode
        if episode is None or episode.ended:
            raise ResetNeededError(f"the episode has {'ended' if episode else 'not begun'}; call reset() before step()")
        if not self.action_space.contains(action):
            raise InvalidActionError(f"an action must be 0 (DENOISE) or 1 (SKIP), a whole number, got {action!r}")
        self.task.step([episode], [int(action)])
        info = episode.info()
        if episode.sr is not None:
            self.sr = episode.sr.cpu().numpy()
            self.reward_failures += self.task.failed(episode)
            info["reward_failures"] = self.reward_failures
        return self.task.observe([episode])[0], episode.reward, episode.ended, False, info

    def render(self) -> NDArray[np.uint8] | None:
        """A frame (height, width, 3): input, coarse estimate, current estimate, result, over the decisions so far.

        Costs up to two UNet forwards, which `nfe` does not count.

        Raises:
            ResetNeededError: there is no episode yet.
        """
        if self.render_mode is None:
            gym.logger.warn('render() without a render mode; make the environment with render_mode="rgb_array"')
            return None
        if self._episode is None:
            raise ResetNeededError("the episode has not begun; call reset() before render()")
        return self.task.render(self._episode)

    def start_outcomes(self, images: Sequence[int | Rgb], noise_seeds: Sequence[int]) -> StartOutcomes:
        """Rewards and metrics of all starts for every picture and noise seed; see `Task.start_outcomes`."""
        return self.task.start_outcomes(images, noise_seeds)
