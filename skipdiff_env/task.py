"""What the scalar and the batched environment share: pictures, process, reward, spaces."""

import contextlib
import functools
import hashlib
import math
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
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
from skipdiff_env.plan import Plan
from skipdiff_env.refinement import Action, Refinement, RefinementProcess
from skipdiff_env.rendering import draw_frame

# Where the number of noises of a picture is not limited, this many is enough.
NOISE_SEEDS = 2**31
# Keeps 1/M finite for a perfect picture (LPIPS is 0 there).
SMALLEST_METRIC = 1e-3
# What a metric that failed counts as where the reward is -M.
WORST_METRIC = 100.0
OBSERVATIONS = ("latent", "dict")
REWARDS = ("inverse", "negative")
DTYPES = {"float32": torch.float32, "float16": torch.float16}

# One observation, or a batch of them: an array of latents, or a dictionary of arrays.
Observation = Any


def one_observation(batch: Observation, i: int) -> Observation:
    """Observation i out of a batch."""
    return {name: part[i] for name, part in batch.items()} if isinstance(batch, dict) else batch[i]


class InvalidActionError(SkipDiffError, gymnasium.error.InvalidAction):
    """An action is neither DENOISE nor SKIP."""


class ResetNeededError(SkipDiffError, gymnasium.error.ResetNeeded):
    """There is no episode, or it has ended."""


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """The arguments of the environments, `skipdiff_env.env.SkipDiffEnv`.

    Attributes:
        checkpoint: name of a shipped checkpoint, a folder, or a Hub id.
        images: target pictures: None, crops of photographs that scikit-image carries; a folder, file or pattern; a uint8
            array (height, width, 3); or several of them. The low-resolution input is made from the target.
        split: of scikit-image's photographs "train" or "test", which share no photograph; None: all of them.
        image_size: side of the target in pixels; of larger pictures the centre is taken.
        scale: how many times to enlarge; None: what the checkpoint does.
        steps: (S, N), coarse steps, and diffusion steps that each spans; None: the checkpoint's. With `skip_mode="restart"`
            S · N is the checkpoint's T; with "jump" it may be any number, and the schedule has S · N steps.
        coarse_sampler: what runs the S - 1 coarse steps: "ddpm" (the paper), one of the samplers that add no noise, "ddim" or
            "dpmsolver++", or "ddim:ETA" with the share ETA of ddpm's noise, 0 … 1; the coarse latent stands at the same
            noise level, after as many forwards. None: what the checkpoint says under "restart", "ddpm" under "jump".
        fine_sampler: what runs the fine steps: "ddpm" (the paper), "ddim", or "ddim:ETA".
        skip_mode: what SKIP does, "restart" (the paper) or "jump".
        first_step: the diffusion step that is decided first, N … T; None: N. The coarse latent stands at the noise level of
            step N all the same: with T this is case 4 of the paper's Table 4, which decides on all T steps.
        observation: "latent", or "dict": latent, condition, step, level, and the price of a forward if it is drawn.
        metric: the reward's metric: "niqe", "lpips", "psnr", "ssim", or any name that `skipdiff_env.make_metric` takes, but not
            the judges "dists" and "lpips-vgg"; or a `Metric`, or a function of results and targets, as
            `skipdiff_env.metrics.as_metric` says. With one that is not a name `spec.to_json()` raises a TypeError.
        report_metrics: further metrics for `info`, the judges among them.
        reward: "inverse", 1/M for a metric M that is lower for better pictures, or "negative", -M; where a higher metric is
            better the reward is M itself in both.
        nfe_penalty: subtracted from the terminal reward for each fine UNet forward; or a pair (lowest, highest) above 0, out
            of which each episode draws its own, uniformly in the logarithm.
        noise_seeds: how many different noises a picture may get: its noise seeds are 0 … noise_seeds - 1. None: no
            limit; then hardly an episode comes twice, and nothing is gained from remembering.
        obs_dtype: "float32" or "float16", of latents and conditions.
        cache_mb: room for remembered pictures, latents and metrics, in MiB; the least recently used go first. A latent
            takes 12 · image_size² bytes, and all starts of one picture and noise N · (N + 1)/2 + 1 latents (`first_step`
            for N, where that is given).
        device: where the net and the metrics run: "cpu", "cuda", …
        batch_size: pictures of one UNet forward and of one metric call.

    Raises:
        ConfigError: a value is out of range or of the wrong type.
    """

    checkpoint: str | Path = "natural-x4"
    images: Any = None
    split: str | None = None
    image_size: int = 128
    scale: int | None = None
    steps: Sequence[int] | None = None
    coarse_sampler: str | None = None
    fine_sampler: str = "ddpm"
    skip_mode: str = "restart"
    first_step: int | None = None
    observation: str = "latent"
    metric: MetricLike = "niqe"
    report_metrics: MetricLike | Sequence[MetricLike] = ()
    reward: str = "inverse"
    nfe_penalty: float | Sequence[float] = 0.0
    noise_seeds: int | None = None
    obs_dtype: str = "float32"
    cache_mb: float = 512
    device: str = "cpu"
    batch_size: int = 32

    def __post_init__(self) -> None:
        for name in ("image_size", "batch_size"):
            _check_whole(name, getattr(self, name))
        for name in ("noise_seeds", "first_step", "scale"):
            if getattr(self, name) is not None:
                _check_whole(name, getattr(self, name))
        if not _is_number(self.cache_mb):
            raise ConfigError(f"cache_mb must be a number of at least 0, got {self.cache_mb!r}")
        with contextlib.suppress(TypeError):  # np.float16 is as good as "float16"
            object.__setattr__(self, "obs_dtype", np.dtype(self.obs_dtype).name)
        for name, known in (("obs_dtype", DTYPES), ("observation", OBSERVATIONS), ("reward", REWARDS)):
            if getattr(self, name) not in known:
                raise ConfigError(f"{name} must be {' or '.join(known)}, got {getattr(self, name)!r}")
        if self.split not in (None, "train", "test"):
            raise ConfigError(f"split must be train, test or None, got {self.split!r}")
        if self.split is not None and self.images is not None:
            raise ConfigError("split divides scikit-image's photographs; give images or split, not both")
        self.price_range  # checks it  # noqa: B018

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "TaskConfig":
        """The configuration with these settings.

        Raises:
            ConfigError: a setting is unknown or wrong.
        """
        known = [f.name for f in fields(cls)]
        unknown = sorted(settings.keys() - set(known))
        if unknown:
            raise ConfigError(f"unknown argument {', '.join(unknown)} of the environment; known are {', '.join(known)}")
        return cls(**settings)

    @property
    def price_range(self) -> tuple[float, float] | None:
        """Lowest and highest price of a forward where each episode draws its own; None where it is fixed."""
        price = self.nfe_penalty
        if _is_number(price):
            return None
        if (
            isinstance(price, tuple | list)
            and len(price) == 2
            and all(map(_is_number, price))
            and 0 < price[0] <= price[1]
        ):
            return float(price[0]), float(price[1])
        raise ConfigError(
            f"nfe_penalty must be a number of at least 0, or a pair of rising numbers above 0, got {price!r}"
        )

    def plan(self, unet: UNet) -> Plan:
        """The plan of the episodes on a net.

        Raises:
            ConfigError: the steps or a sampler do not fit.
        """
        return Plan.resolve(
            unet.settings,
            steps=self.steps,
            coarse_sampler=self.coarse_sampler,
            fine_sampler=self.fine_sampler,
            skip_mode=self.skip_mode,
            first_step=self.first_step,
        )


@dataclass
class Episode:
    """One picture with one noise, from the coarse latent to the result.

    Attributes:
        image_index: place among the environment's pictures, -1 for one that was passed to `reset`.
        hr: target, (3, H, W) in [-1, 1].
        refinement: state of the process.
        price: what the reward pays for each fine forward.
        rgb: the picture where it was passed to `reset`, uint8 (H, W, 3).
        actions: decisions so far.
        sr: result, (3, H, W) in [-1, 1]; None until the end.
        metrics: name → value, NaN where a metric failed; empty until the end.
        reward: terminal reward; 0 until the end.
        coarse_estimate: the picture that the net sees in the coarse latent; only where episodes are rendered.
    """

    image_index: int
    hr: Tensor
    refinement: Refinement
    price: float = 0.0
    rgb: Rgb | None = None
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
            "nfe_penalty": self.price,
        }
        if self.ended:
            info |= {"metrics": dict(self.metrics), "start": state.start, "levels": state.levels}
        return info


@dataclass(frozen=True)
class StartOutcomes:
    """What every start of the fine chain gives for every (picture, noise seed).

    The last axis is the start: index `s - 1` holds the chain that skips until diffusion step s and denoises from there.
    With `skip_mode="restart"` an episode can have no other result, so the oracle is the maximum over the last axis, the
    best fixed start has the largest mean over the first two, and a regret is the distance from the oracle. There are N
    starts, or as many as `first_step`.

    Attributes:
        rewards: float64, (pictures, noise seeds, N); `nfe_penalty` is paid for the chain itself, s forwards.
        metrics: name → float64, (pictures, noise seeds, N); NaN where the metric failed.
    """

    rewards: NDArray[np.float64]
    metrics: dict[str, NDArray[np.float64]]


def quality(value: float, lower_better: bool, reward: str = "inverse") -> float:
    """What a metric M is worth: 1/M ("inverse") or -M ("negative") where a lower one is better, else M.

    A metric that failed (NaN) counts as 0: what 1/M comes to as a picture gets worse, and the worst of PSNR, SSIM and
    other metrics that grow with quality; as -`WORST_METRIC` where the reward is -M.
    """
    if not lower_better:
        return 0.0 if math.isnan(value) else value
    if reward == "negative":
        return -(WORST_METRIC if math.isnan(value) else value)
    return 0.0 if math.isnan(value) else 1 / max(value, SMALLEST_METRIC)


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
    """Pictures, process and reward behind any number of episodes.

    Args:
        config: the arguments of the environment.

    Raises:
        SkipDiffError: an argument is wrong; a subclass says which.
    """

    def __init__(self, config: TaskConfig) -> None:
        self.config = config
        self.unet = shared_unet(config.checkpoint, config.device)
        if config.scale not in (None, self.unet.scale):
            raise ConfigError(
                f"the checkpoint {config.checkpoint} enlarges {self.unet.scale} times, got scale {config.scale}; "
                "take a checkpoint for that scale, or leave scale out"
            )
        multiple = math.lcm(self.unet.stride, self.unet.scale)
        if config.image_size % multiple:
            raise ConfigError(
                f"image_size must be a multiple of {multiple} for this checkpoint, got {config.image_size}"
            )
        self.plan = config.plan(self.unet)
        if self.plan.decisions < 1:
            raise ConfigError(
                f"N in steps (S, N) must be at least 2, or there is nothing to decide; got {self.plan.S}, {self.plan.N}"
            )
        self.memo = Memo(config.cache_mb)
        self.process = RefinementProcess(self.unet, self.plan, self.memo, config.batch_size, config.device)
        self._make_metrics()
        self.pictures = Pictures(config.images, config.image_size, config.split)
        self.observation_space = self._observation_space()
        self.action_space = spaces.Discrete(len(Action))

    def _make_metrics(self) -> None:
        """The reward's metric and all that are reported, checked against the size of the pictures."""
        config = self.config
        # NumPy's float64 operations behind some metrics do not exist on Apple's GPUs
        self.metric_device = "cpu" if torch.device(config.device).type == "mps" else config.device
        refuse_judge(config.metric)
        reported = config.report_metrics
        several = isinstance(reported, Sequence) and not isinstance(reported, str)
        given: list[Any] = [config.metric, *(reported if several else [reported])]  # type: ignore[misc]
        made = [as_metric(each, self.metric_device) for each in given]
        self.metric, self.metrics = made[0], {each.name: each for each in made}
        for each in made:
            each.check_size(config.image_size, config.image_size)
            if each != self.metrics[each.name]:
                raise ConfigError(f"two different metrics are called {each.name}; give one of them another name")

    def _observation_space(self) -> spaces.Space[Any]:
        # whole numbers, so that rounding to float16 cannot leave the bounds
        bound = math.ceil(self.process.latent_bound())
        dtype: Any = np.dtype(self.config.obs_dtype).type
        shape = (3, self.config.image_size, self.config.image_size)
        latent = spaces.Box(-bound, bound, shape, dtype)
        if self.config.observation == "latent":
            return latent
        share = spaces.Box(0, 1, (1,), np.float32)
        parts: dict[str, spaces.Space[Any]] = {
            "latent": latent, "condition": spaces.Box(-1, 1, shape, dtype), "step": share, "level": share,
        }  # fmt: skip
        if (prices := self.config.price_range) is not None:
            parts["price"] = spaces.Box(0, np.float32(prices[1]), (1,), np.float32)
        return spaces.Dict(parts)

    def remember_in(self, memo: Memo) -> None:
        """Remembers what it computes in `memo`, perhaps that of another task with the same pictures, process and metrics."""
        self.memo = self.process.memo = memo

    @property
    def decisions(self) -> int:
        """Env steps of an episode, one less than the plan's first step."""
        return self.plan.decisions

    @property
    def price(self) -> float:
        """What the reward pays for each fine forward; the lowest where each episode draws its own."""
        prices = self.config.price_range
        return prices[0] if prices is not None else float(self.config.nfe_penalty)  # type: ignore[arg-type]

    def draw(self, rng: np.random.Generator, options: Mapping[str, Any] | None) -> tuple[int | Rgb, int, float]:
        """Picture, noise seed and price of a new episode, as `options` wants it or else at random.

        All are always drawn, so that fixing one leaves the others as the generator has them.

        Raises:
            ConfigError: `options` has an unknown key, or a value outside its range.
        """
        options = {} if options is None else options
        if not isinstance(options, Mapping):
            raise ConfigError(f"the options of reset must be a dictionary, got {options!r}")
        unknown = sorted(map(str, options.keys() - {"image", "noise_seed", "nfe_penalty"}))
        if unknown:
            raise ConfigError(f"unknown reset option {', '.join(unknown)}; known are image, noise_seed and nfe_penalty")
        drawn: dict[str, Any] = {
            "image": int(rng.integers(len(self.pictures))),
            "noise_seed": int(rng.integers(self.config.noise_seeds or NOISE_SEEDS)),
            "nfe_penalty": self.price,
        }
        if (prices := self.config.price_range) is not None:
            drawn["nfe_penalty"] = min(float(np.exp(rng.uniform(*np.log(prices)))), prices[1])
        drawn |= {name: value for name, value in options.items() if value is not None}
        price = drawn["nfe_penalty"]
        highest = math.inf if prices is None else prices[1]
        if not _is_number(price) or price > highest:
            raise ConfigError(f"nfe_penalty must be a number in 0 … {highest}, got {price!r}")
        return drawn["image"], drawn["noise_seed"], float(price)

    def begin(
        self, images: Sequence[int | Rgb], noise_seeds: Sequence[int], prices: Sequence[float] | None = None
    ) -> list[Episode]:
        """New episodes after their coarse stage, which runs for all of them together.

        Args:
            images: indices of the environment's pictures, or uint8 arrays (H, W, 3).
            noise_seeds: one for each.
            prices: what the reward of each pays for a fine forward; None: `price`.

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
            Episode(index, hr, state, price, None if isinstance(image, int | np.integer) else np.asarray(image))
            for (index, _, (hr, _)), state, price, image in zip(
                pictures, states, [self.price] * len(images) if prices is None else prices, images, strict=True
            )
        ]

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
            episode.reward = self.reward(metrics, episode.refinement, episode.price)

    def reward(self, metrics: Mapping[str, float], state: Refinement, price: float) -> float:
        """`quality` of the reward's metric, less the price of each fine forward."""
        gained = quality(metrics[self.metric.name], self.metric.lower_better, self.config.reward)
        return gained - price * (state.nfe - self.plan.coarse_forwards)

    def failed(self, episode: Episode) -> bool:
        """Whether the reward's metric failed on the episode's result."""
        return math.isnan(episode.metrics[self.metric.name])

    def observe(self, episodes: Sequence[Episode]) -> Observation:
        """What is seen of the episodes, in memory of its own: latents (B, 3, H, W), or a dictionary of arrays (B, …)."""
        states = [episode.refinement for episode in episodes]

        def pictures(tensors: Sequence[Tensor]) -> NDArray[Any]:
            return torch.stack(list(tensors)).to(DTYPES[self.config.obs_dtype]).cpu().numpy()

        def shares(numbers: Sequence[float]) -> NDArray[np.float32]:
            return np.array(numbers, dtype=np.float32)[:, None]

        latents = pictures([state.latent for state in states])
        if self.config.observation == "latent":
            return latents
        parts = {
            "latent": latents,
            "condition": pictures([state.lr_up for state in states]),
            "step": shares([state.t / self.plan.length for state in states]),
            "level": shares([state.level / self.plan.length for state in states]),
        }
        if self.config.price_range is not None:
            parts["price"] = shares([episode.price for episode in episodes])
        return parts

    def save(self, episode: Episode) -> dict[str, Any]:
        """An episode as plain data, which pickle takes; `restore` makes it one again."""
        state = episode.refinement
        return {
            "image": episode.image_index if episode.rgb is None else episode.rgb,
            "noise_seed": state.noise_seed,
            "price": episode.price,
            "coarse_latent": state.coarse_latent.cpu().numpy(),
            "latent": state.latent.cpu().numpy(),
            **{name: getattr(state, name) for name in ("t", "level", "nfe", "path")},
            "actions": [int(action) for action in episode.actions],
            "sr": None if episode.sr is None else episode.sr.cpu().numpy(),
            "metrics": dict(episode.metrics),
            "reward": episode.reward,
        }

    def restore(self, saved: Mapping[str, Any]) -> Episode:
        """The episode that `save` took down; runs no net.

        Raises:
            ConfigError: it is no saved episode, or one of other pictures.
        """

        def tensor(array: NDArray[np.float32]) -> Tensor:
            return torch.from_numpy(array).to(self.config.device)

        try:
            index, key, (hr, lr_up) = self._picture(saved["image"])
            state = Refinement(
                lr_up, saved["noise_seed"], key, tensor(saved["coarse_latent"]), tensor(saved["latent"]),
                saved["t"], saved["level"], saved["nfe"], tuple(saved["path"]),
            )  # fmt: skip
            return Episode(
                index, hr, state, saved["price"], saved["image"] if index < 0 else None,
                [Action(action) for action in saved["actions"]],
                None if saved["sr"] is None else tensor(saved["sr"]), dict(saved["metrics"]), saved["reward"],
            )  # fmt: skip
        except (KeyError, TypeError) as error:
            raise ConfigError(f"this is no state that get_state() gave ({error!r})") from None

    def render(self, episode: Episode) -> NDArray[np.uint8]:
        """A frame (height, width, 3) of an episode; up to two forwards, which are not counted."""
        state = episode.refinement
        if episode.coarse_estimate is None:
            beginning = replace(state, latent=state.coarse_latent, t=self.plan.N, level=self.plan.N)
            episode.coarse_estimate = self.process.estimate(beginning)
        estimate = self.process.estimate(state) if episode.actions else episode.coarse_estimate
        panels = {
            f"input, {self.config.image_size // self.unet.scale} px": downsample(episode.hr[None], self.unet.scale)[0],
            "coarse estimate": episode.coarse_estimate,
            f"estimate at t = {state.t}": estimate,
            "result": episode.sr,
        }
        pictures = {name: None if image is None else to_uint8(image) for name, image in panels.items()}
        return draw_frame(pictures, episode.actions, self.plan.first)

    def start_outcomes(self, images: Sequence[int | Rgb], noise_seeds: Sequence[int]) -> StartOutcomes:
        """Rewards and metrics of all starts for every picture and every noise seed; each chain runs once.

        Args:
            images: indices of the environment's pictures, or uint8 arrays (H, W, 3).
            noise_seeds: noise seeds, each of which every picture gets.

        Raises:
            SkipDiffError: as `begin`.
        """
        shape = len(images), len(noise_seeds), self.plan.first
        pairs = [(image, seed) for image in images for seed in noise_seeds]
        rewards: list[float] = []
        values: dict[str, list[float]] = {name: [] for name in self.metrics}
        for i in range(0, len(pairs), self.config.batch_size):
            episodes = self.begin(*zip(*pairs[i : i + self.config.batch_size], strict=True))
            chains = self.process.run_all_starts([episode.refinement for episode in episodes])
            states = [state for chain in chains for state, _ in chain]
            results = [sr for chain in chains for _, sr in chain]
            hr = [episode.hr for episode in episodes for _ in range(self.plan.first)]
            for state, metrics in zip(states, self._measure(states, results, hr), strict=True):
                rewards.append(self.reward(metrics, state, self.price))
                for name, value in metrics.items():
                    values[name].append(value)
        return StartOutcomes(
            np.reshape(rewards, shape), {name: np.reshape(column, shape) for name, column in values.items()}
        )

    def _picture(self, image: int | Rgb) -> tuple[int, Hashable, Tensor]:
        """Index, memo key, and target and condition as one tensor (2, 3, H, W)."""
        key: Hashable
        if isinstance(image, np.ndarray) and image.ndim:
            rgb = crop(image, self.config.image_size)
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
            hr = to_tensor(self.pictures[index] if index >= 0 else rgb)[None].to(self.config.device)
            known = torch.cat([hr, self.unet.condition(downsample(hr, self.unet.scale))])
            self.memo.put(("picture", key), known)
        return index, key, known

    def _measure(
        self, states: Sequence[Refinement], results: Sequence[Tensor], hr: Sequence[Tensor]
    ) -> list[Mapping[str, float]]:
        """All metrics of finished pictures, in one call each for those that are not remembered."""
        keys = [("metrics", state.key, state.noise_seed, state.path) for state in states]
        found: list[Mapping[str, float]] = [self.memo.get(key) for key in keys]
        missing = [i for i, known in enumerate(found) if known is None]
        for first in range(0, len(missing), self.config.batch_size):
            chunk = missing[first : first + self.config.batch_size]
            ours, truth = (torch.stack([x[i] for i in chunk]).to(self.metric_device) for x in (results, hr))
            columns = {name: metric(ours, truth) for name, metric in self.metrics.items()}
            for place, i in enumerate(chunk):
                found[i] = {name: float(column[place]) for name, column in columns.items()}
                self.memo.put(keys[i], found[i])
        return found


def _is_whole(value: Any) -> bool:
    return isinstance(value, int | np.integer) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    """Whether it is a finite number of at least 0."""
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value < math.inf


def _check_whole(name: str, value: Any) -> None:
    if not _is_whole(value) or value < 1:
        raise ConfigError(f"{name} must be a whole number of at least 1, got {value!r}")
