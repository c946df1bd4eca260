"""What the scalar and the batched environment share: pictures, process, reward, spaces."""

import functools
import hashlib
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from ddpm.checkpoints import load_unet, resolve_checkpoint
from ddpm.degradation import downsample
from ddpm.errors import ConfigError, SkipDiffError
from ddpm.images import to_tensor, to_uint8
from ddpm.unet import UNet
from skipdiff_env.judges import refuse_judge
from skipdiff_env.memo import Memo
from skipdiff_env.metrics import MetricLike, as_metric
from skipdiff_env.pictures import Pictures, Rgb, crop
from skipdiff_env.refinement import Action, Refinement, RefinementProcess
from skipdiff_env.rendering import draw_frame

# Where the number of noises of a picture is not limited, this many is enough.
NOISE_SEEDS = 2**31
# Keeps 1/M finite for a perfect picture (LPIPS is 0 there).
SMALLEST_METRIC = 1e-3


class InvalidActionError(SkipDiffError, gymnasium.error.InvalidAction):
    """An action is neither DENOISE nor SKIP."""


class ResetNeededError(SkipDiffError, gymnasium.error.ResetNeeded):
    """There is no episode, or it has ended."""


@dataclass
class Episode:
    """One picture with one noise, from the coarse latent to the result.

    Attributes:
        image_index: place among the environment's pictures, -1 for one that was passed to `reset`.
        hr: target, (3, H, W) in [-1, 1].
        refinement: state of the process.
        actions: decisions so far.
        sr: result, (3, H, W) in [-1, 1]; None until the end.
        metrics: name → value, NaN where a metric failed; empty until the end.
        reward: terminal reward; 0 until the end.
        coarse_estimate: the picture that the net sees in the coarse latent; only where episodes are rendered.
    """

    image_index: int
    hr: Tensor
    refinement: Refinement
    actions: list[Action] = field(default_factory=list)
    sr: Tensor | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    reward: float = 0.0
    coarse_estimate: Tensor | None = None

    @property
    def ended(self) -> bool:
        """Whether the result is there."""
        return self.sr is not None

    def info(self) -> dict[str, Any]:
        """What `step` and `reset` report; scalars only."""
        state = self.refinement
        info: dict[str, Any] = {
            "diffusion_step": state.t,
            "nfe": state.nfe,
            "image_index": self.image_index,
            "noise_seed": state.noise_seed,
        }
        return info | {"metrics": dict(self.metrics), "start": state.start} if self.ended else info


@dataclass(frozen=True)
class StartOutcomes:
    """What every start of the fine chain gives for every (picture, noise seed).

    The last axis is the start: index `s - 1` holds the chain that skips until diffusion step s and denoises from there.
    With `skip_mode="restart"` an episode can have no other result, so the oracle is the maximum over the last axis, the
    best fixed start has the largest mean over the first two, and a regret is the distance from the oracle. There are N
    starts, or as many as `fine_steps`.

    Attributes:
        rewards: float64, (pictures, noise seeds, N); `nfe_penalty` is paid for the chain itself, s forwards.
        metrics: name → float64, (pictures, noise seeds, N); NaN where the metric failed.
    """

    rewards: NDArray[np.float64]
    metrics: dict[str, NDArray[np.float64]]


def quality(value: float, lower_better: bool) -> float:
    """What a metric M is worth: 1/M where a lower one is better, else M.

    A metric that failed (NaN) counts as 0: what 1/M comes to as a picture gets worse, and the worst of PSNR, SSIM and
    other metrics that grow with quality.
    """
    if math.isnan(value):
        return 0.0
    return 1 / max(value, SMALLEST_METRIC) if lower_better else value


@functools.lru_cache(maxsize=4)
def _load_once(source: str, device: str, changed: int) -> UNet:
    """The net of a checkpoint, shared by all environments of the process; `changed` notices a checkpoint that is new."""
    return load_unet(source, device)


def shared_unet(checkpoint: str | Path, device: str) -> UNet:
    """As `load_unet`, but the same checkpoint is loaded once."""
    source = resolve_checkpoint(checkpoint)
    weights = Path(source) / "model.safetensors"
    return _load_once(source, device, weights.stat().st_mtime_ns if weights.exists() else 0)


class Task:
    """Pictures, process and reward behind any number of episodes; arguments as `skipdiff_env.env.SkipDiffEnv`.

    Args:
        batch_size: pictures of one UNet forward and of one metric call.

    Raises:
        SkipDiffError: an argument is wrong; a subclass says which.
    """

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
        batch_size: int = 32,
    ) -> None:
        _check_whole("image_size", image_size)
        for name, number in (("noise_seeds", noise_seeds), ("fine_steps", fine_steps)):
            if number is not None:
                _check_whole(name, number)
        for name, value in (("nfe_penalty", nfe_penalty), ("cache_mb", cache_mb)):
            if not isinstance(value, int | float) or not 0 <= value < math.inf:
                raise ConfigError(f"{name} must be a number of at least 0, got {value!r}")
        if obs_dtype not in ("float32", "float16"):
            raise ConfigError(f"obs_dtype must be float32 or float16, got {obs_dtype!r}")
        if not isinstance(steps, tuple | list) or len(steps) != 2 or not all(_is_whole(n) for n in steps):
            raise ConfigError(f"steps must be two whole numbers (S, N), got {steps!r}")
        S, N = (int(n) for n in steps)

        self.unet = shared_unet(checkpoint, device)
        if scale is not None and scale != self.unet.scale:
            raise ConfigError(
                f"the checkpoint {checkpoint} enlarges {self.unet.scale} times, got scale {scale}; "
                "take a checkpoint for that scale, or leave scale out"
            )
        multiple = math.lcm(self.unet.stride, self.unet.scale)
        if image_size % multiple:
            raise ConfigError(f"image_size must be a multiple of {multiple} for this checkpoint, got {image_size}")
        self.memo = Memo(cache_mb)
        self.process = RefinementProcess(
            self.unet, self.unet.diffusion_steps, (S, N), skip_mode, self.memo, batch_size, device, coarse, fine_steps
        )
        if self.process.fine_steps < 2:
            raise ConfigError(f"N in steps (S, N) must be at least 2, or there is nothing to decide; got {S}, {N}")
        # NumPy's float64 operations behind some metrics do not exist on Apple's GPUs
        self.metric_device = "cpu" if torch.device(device).type == "mps" else device
        refuse_judge(metric)
        several = isinstance(report_metrics, Sequence) and not isinstance(report_metrics, str)
        given: list[Any] = [metric, *(report_metrics if several else [report_metrics])]  # type: ignore[misc]
        made = [as_metric(each, self.metric_device) for each in given]
        self.metric, self.metrics = made[0], {each.name: each for each in made}
        for each in made:
            each.check_size(image_size, image_size)
            if each != self.metrics[each.name]:
                raise ConfigError(f"two different metrics are called {each.name}; give one of them another name")
        self.pictures = Pictures(images, image_size)
        self.image_size, self.noise_seeds, self.nfe_penalty = image_size, noise_seeds, float(nfe_penalty)
        self.batch_size, self.device = batch_size, device

        # whole numbers, so that rounding to float16 cannot leave the bounds
        bound = math.ceil(self.process.latent_bound())
        dtype: Any = np.dtype(obs_dtype).type
        self.obs_dtype = getattr(torch, obs_dtype)
        self.observation_space = spaces.Box(-bound, bound, (3, image_size, image_size), dtype)
        self.action_space = spaces.Discrete(len(Action))

    def remember_in(self, memo: Memo) -> None:
        """Remembers what it computes in `memo`, perhaps that of another task with the same pictures, process and metrics."""
        self.memo = self.process.memo = memo

    @property
    def decisions(self) -> int:
        """Env steps of an episode, N - 1 or `fine_steps` - 1."""
        return self.process.fine_steps - 1

    def draw(self, rng: np.random.Generator, options: Mapping[str, Any] | None) -> tuple[int | Rgb, int]:
        """Picture and noise seed of a new episode, as `options` wants it or else at random.

        Both are always drawn, so that fixing one leaves the other as the generator has it.

        Raises:
            ConfigError: `options` has an unknown key, or a value outside its range.
        """
        options = options or {}
        unknown = sorted(map(str, options.keys() - {"image", "noise_seed"}))
        if unknown:
            raise ConfigError(f"unknown reset option {', '.join(unknown)}; known are image and noise_seed")
        index, drawn = int(rng.integers(len(self.pictures))), int(rng.integers(self.noise_seeds or NOISE_SEEDS))
        image, noise_seed = options.get("image"), options.get("noise_seed")
        return index if image is None else image, drawn if noise_seed is None else noise_seed

    def begin(self, images: Sequence[int | Rgb], noise_seeds: Sequence[int]) -> list[Episode]:
        """New episodes after their coarse stage, which runs for all of them together.

        Raises:
            ConfigError: an index or a noise seed is out of range.
            ImageError: a picture cannot be used.
        """
        for seed in noise_seeds:
            if not _is_whole(seed) or not 0 <= seed < 2**63:
                raise ConfigError(f"noise_seed must be a whole number of at least 0 and below 2**63, got {seed!r}")
        pictures = [self._picture(image) for image in images]
        states = self.process.begin(
            [lr_up for _, _, (_, lr_up) in pictures],
            [int(seed) for seed in noise_seeds],
            [key for _, key, _ in pictures],
        )
        return [
            Episode(index, hr, state) for (index, _, (hr, _)), state in zip(pictures, states, strict=True)
        ]  # fmt: skip

    def step(self, episodes: Sequence[Episode], actions: Sequence[int]) -> None:
        """One decision for each episode; those that made their last one run to the end and get their reward."""
        self.process.step([episode.refinement for episode in episodes], actions)
        for episode, action in zip(episodes, actions, strict=True):
            episode.actions.append(Action(action))
        last = [episode for episode in episodes if episode.refinement.t == 1]
        states = [episode.refinement for episode in last]
        results = self.process.finish(states)
        measured = self._measure(states, results, [episode.hr for episode in last])
        for episode, sr, metrics in zip(last, results, measured, strict=True):
            episode.sr, episode.metrics = sr, dict(metrics)
            episode.reward = self.reward(metrics, episode.refinement)

    def reward(self, metrics: Mapping[str, float], state: Refinement) -> float:
        """`quality` of the reward's metric, less the penalty for each fine forward."""
        gained = quality(metrics[self.metric.name], self.metric.lower_better)
        return gained - self.nfe_penalty * (state.nfe - (self.process.S - 1))

    def failed(self, episode: Episode) -> bool:
        """Whether the reward's metric failed on the episode's result."""
        return math.isnan(episode.metrics[self.metric.name])

    def observe(self, episodes: Sequence[Episode]) -> NDArray[np.floating]:
        """The latents of the episodes, (B, 3, H, W), in memory of their own."""
        return torch.stack([episode.refinement.latent for episode in episodes]).to(self.obs_dtype).cpu().numpy()

    def render(self, episode: Episode) -> NDArray[np.uint8]:
        """A frame (height, width, 3) of an episode; up to two forwards, which are not counted."""
        state = episode.refinement
        if episode.coarse_estimate is None:
            beginning = replace(state, latent=state.coarse, t=self.process.N)
            episode.coarse_estimate = self.process.estimate(beginning)
        estimate = self.process.estimate(state) if episode.actions else episode.coarse_estimate
        panels = {
            f"input, {self.image_size // self.unet.scale} px": downsample(episode.hr[None], self.unet.scale)[0],
            "coarse estimate": episode.coarse_estimate,
            f"estimate at t = {state.t}": estimate,
            "result": episode.sr,
        }
        pictures = {name: None if image is None else to_uint8(image) for name, image in panels.items()}
        return draw_frame(pictures, episode.actions, self.process.fine_steps)

    def start_outcomes(self, images: Sequence[int | Rgb], noise_seeds: Sequence[int]) -> StartOutcomes:
        """Rewards and metrics of all starts for every picture and every noise seed; each chain runs once.

        Args:
            images: indices of the environment's pictures, or uint8 arrays (H, W, 3).
            noise_seeds: noise seeds, each of which every picture gets.

        Raises:
            SkipDiffError: as `begin`.
        """
        shape = len(images), len(noise_seeds), self.process.fine_steps
        pairs = [(image, seed) for image in images for seed in noise_seeds]
        rewards: list[float] = []
        values: dict[str, list[float]] = {name: [] for name in self.metrics}
        for i in range(0, len(pairs), self.batch_size):
            episodes = self.begin(*zip(*pairs[i : i + self.batch_size], strict=True))
            chains = self.process.run_all_starts([episode.refinement for episode in episodes])
            states = [state for chain in chains for state, _ in chain]
            results = [sr for chain in chains for _, sr in chain]
            hr = [episode.hr for episode in episodes for _ in range(self.process.fine_steps)]
            for state, metrics in zip(states, self._measure(states, results, hr), strict=True):
                rewards.append(self.reward(metrics, state))
                for name, value in metrics.items():
                    values[name].append(value)
        return StartOutcomes(
            np.reshape(rewards, shape), {name: np.reshape(column, shape) for name, column in values.items()}
        )

    def _picture(self, image: int | Rgb) -> tuple[int, Hashable, Tensor]:
        """Index, memo key, and target and condition as one tensor (2, 3, H, W)."""
        key: Hashable
        if isinstance(image, np.ndarray) and image.ndim:
            rgb = crop(image, self.image_size)
            index, key = -1, hashlib.blake2b(rgb.tobytes(), digest_size=16).digest()
        elif _is_whole(image) and 0 <= image < len(self.pictures):
            index = key = int(image)
        else:
            raise ConfigError(
                f"image must be an index from 0 to {len(self.pictures) - 1} or a uint8 array (height, width, 3), "
                f"got {image!r}"
            )
        known = self.memo.get(("picture", key))
        if known is None:
            hr = to_tensor(self.pictures[index] if index >= 0 else rgb)[None].to(self.device)
            known = torch.cat([hr, self.unet.condition(downsample(hr, self.unet.scale))])
            self.memo.put(("picture", key), known)
        return index, key, known

    def _measure(
        self, states: Sequence[Refinement], results: Sequence[Tensor], hr: Sequence[Tensor]
    ) -> list[Mapping[str, float]]:
        """All metrics of finished pictures, in one call each for those that are not remembered."""
        keys = [("metrics", state.key, state.noise_seed, state.history) for state in states]
        found: list[Mapping[str, float]] = [self.memo.get(key) for key in keys]
        missing = [i for i, known in enumerate(found) if known is None]
        for first in range(0, len(missing), self.batch_size):
            chunk = missing[first : first + self.batch_size]
            ours, truth = (torch.stack([x[i] for i in chunk]).to(self.metric_device) for x in (results, hr))
            columns = {name: metric(ours, truth) for name, metric in self.metrics.items()}
            for place, i in enumerate(chunk):
                found[i] = {name: float(column[place]) for name, column in columns.items()}
                self.memo.put(keys[i], found[i])
        return found


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _check_whole(name: str, value: Any) -> None:
    if not _is_whole(value) or value < 1:
        raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}")
