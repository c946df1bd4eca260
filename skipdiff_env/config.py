"""The arguments of the environments."""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ddpm.nets.denoiser import Denoiser, check_denoiser
from ddpm.pictures.degradation import Degradation
from ddpm.util.checks import LARGEST, check_most, check_one_of, check_whole, is_number
from ddpm.util.errors import ConfigError
from skipdiff_env.metrics import MetricLike
from skipdiff_env.plan import PARTS, Plan
from skipdiff_env.rules import REWARDS, price_range

CROPS = ("center", "random")
OBSERVATIONS = ("latent", "dict", "features")
DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """The arguments of the environments, `skipdiff_env.env.SkipDiffEnv`.

    Attributes:
        checkpoint: name of a shipped checkpoint, a folder, or a Hub id, also of a model of diffusers.
        denoiser: another diffusion model in place of `checkpoint`: a `ddpm.nets.denoiser.Denoiser`, or any source that
            `ddpm.checkpoints.load_denoiser` takes. With an object, `spec.to_json()` raises a TypeError.
        images: target pictures: None, crops of the photographs in scikit-image; a folder, file or pattern; a uint8
            array (height, width, 3); or several of these. The low-resolution input is made from the target.
        degradation: degradation of the low-resolution inputs: "bicubic"; "photo", like photographs that people enlarge;
            or "photo2", the same twice. The last two may have a strength in 0 … 1, as in "photo:0.5"; without it, each
            picture draws its strengths. The draw depends on the pixels of the picture, but not on the noise seed.
        split: "train" or "test", two separate parts of scikit-image's photographs; None: all of them.
        image_size: side of the target in pixels. The target is a crop of the picture.
        crop: "center", the middle of each picture; or "random", another crop for each episode. With "random", the noise
            of an episode depends on its crop and its noise seed, so every crop has a different noise. With "center",
            all pictures have the same noise under one noise seed.
        scale: factor of the enlargement, which must be that of the checkpoint; None: the checkpoint's.
        steps: (S, N), the number of coarse steps, and the number of diffusion steps in each; None: the checkpoint's.
            With `skip_mode="restart"`, S · N must be the checkpoint's T. With "jump", S · N may be any number, and the
            schedule has S · N steps.
        coarse_sampler: sampler of the S - 1 coarse steps: "ddpm" (the paper); "ddim" or "dpmsolver++", which do not add
            noise; or "ddim:ETA" with the share ETA of ddpm's noise, 0 … 1. The noise level of the coarse latent and the
            number of forwards are the same for all. None: the checkpoint's under "restart", "ddpm" under "jump".
        fine_sampler: sampler of the fine steps: "ddpm" (the paper), "ddim", "ddim:ETA", or with `skip_mode="jump"` also
            "dpmsolver++".
        skip_mode: meaning of SKIP, "restart" (the paper) or "jump".
        first_step: the diffusion step of the first decision, N … T; None: N. The coarse latent keeps the noise level of
            step N. With T, there is a decision on each of the T steps, as in case 4 of the paper's Table 4.
        decisions: kind of decision in an env step: "skip", whether to perform a diffusion step (the paper); "stride",
            the number of levels that the next forward covers, and the number of steps whose work it does; "continuous",
            the same as numbers in -1 … 1; or "schedule", one of several schedules for the picture. All but the first
            need `skip_mode="jump"`; see `skipdiff_env.decisions`.
        substeps: numbers of substeps that the agent chooses among with "stride", or up to the largest of them with
            "continuous"; None: the powers of 2 that the network has learnt.
        schedules: schedules that the agent chooses among with "schedule", in any form that `ddpm.schedule.as_schedule`
            takes; None: one forward with each number of `substeps`, or, for a network without substeps, even schedules
            of 1, 2, 4, 8 … forwards.
        observation: "latent"; "dict", a dictionary of latent, condition, step, level, and the price of a forward if it
            is drawn; or "features", a vector of the 42 statistics of the condition
            (`skipdiff_env.features.features`), the level, the price if it is drawn, and the statistics of the last
            estimate of the picture. The decision "schedule" is made before the first forward, so its vector does not
            contain the level and the last statistics.
        metric: the reward's metric: "niqe", "lpips", "psnr", "ssim", or any name that `skipdiff_env.make_metric` takes,
            but not the judges "dists" and "lpips-vgg"; or a `Metric`, or a function of results and targets, see
            `skipdiff_env.metrics.as_metric`. With a metric that is not a name, `spec.to_json()` raises a TypeError.
        report_metrics: further metrics for `info`, which may include the judges.
        reward: "inverse", 1/M for a metric M that is lower for better pictures, or "negative", -M; if a higher metric
            is better, the reward is M itself in both cases.
        nfe_penalty: subtracted from the terminal reward for each fine UNet forward; or a pair (lowest, highest) above
            0, from which the price of each episode is drawn, uniformly in the logarithm.
        noise_seeds: number of different noises of a picture; the noise seeds are 0 … noise_seeds - 1. None: no limit.
            Then episodes are hardly ever repeated, so remembering values saves no time.
        obs_dtype: type of latents and conditions, "float32" or "float16".
        cache_mb: memory for remembered pictures, latents and metrics, in MiB; the least recently used are dropped
            first. A latent takes 12 · image_size² bytes, and all starts of one picture and noise N · (N + 1)/2 + 1
            latents (with `first_step`, that number in place of N).
        cache_dir: folder on disk for the same values, which other environments, processes and later runs also read;
            None: memory only. A value belongs to the weights of the network, the plan, the picture and the noise. The
            values of metrics that are functions are not stored.
        cache_dir_mb: space on disk for all users of the folder, in MiB.
        device: device of the net and the metrics: "cpu", "cuda", …
        batch_size: largest number of pictures in one UNet forward and in one metric call.

    Raises:
        ConfigError: a value is out of range or of the wrong type.
    """

    checkpoint: str | Path | Denoiser = "natural-x4"
    denoiser: str | Path | Denoiser | None = None
    images: Any = None
    degradation: str = "bicubic"
    split: str | None = None
    image_size: int = 128
    crop: str = "center"
    scale: int | None = None
    steps: Sequence[int] | None = None
    coarse_sampler: str | None = None
    fine_sampler: str = "ddpm"
    skip_mode: str = "restart"
    first_step: int | None = None
    decisions: str = "skip"
    substeps: Sequence[int] | None = None
    schedules: Sequence[Any] | None = None
    observation: str = "latent"
    metric: MetricLike = "niqe"
    report_metrics: MetricLike | Sequence[MetricLike] = ()
    reward: str = "inverse"
    nfe_penalty: float | Sequence[float] = 0.0
    noise_seeds: int | None = None
    obs_dtype: str = "float32"
    cache_mb: float = 512
    cache_dir: str | Path | None = None
    cache_dir_mb: float = 4096
    device: str = "cpu"
    batch_size: int = 32

    def __post_init__(self) -> None:
        if self.denoiser is not None:
            object.__setattr__(self, "checkpoint", self.denoiser)
        check_denoiser(self.checkpoint)
        Degradation.parse(self.degradation)
        for name in ("image_size", "batch_size"):
            check_whole(**{name: getattr(self, name)})
        for name in ("noise_seeds", "first_step", "scale"):
            if getattr(self, name) is not None:
                check_whole(**{name: getattr(self, name)})
                check_most(LARGEST, **{name: getattr(self, name)})
        for name in ("cache_mb", "cache_dir_mb"):
            if not is_number(getattr(self, name)):
                raise ConfigError(f"{name} must be a number of at least 0, got {getattr(self, name)!r}")
        # copies, so that the caller cannot change them afterwards
        if isinstance(self.images, np.ndarray):
            object.__setattr__(self, "images", self.images.copy())
        elif isinstance(self.images, list | tuple):
            own = [each.copy() if isinstance(each, np.ndarray) else each for each in self.images]
            object.__setattr__(self, "images", own)
        if not isinstance(self.cache_dir, str | Path | None):
            raise ConfigError(f"cache_dir must be the path of a folder, or None, got {self.cache_dir!r}")
        with contextlib.suppress(TypeError, ValueError, SyntaxError):  # np.float16 is accepted like "float16"
            object.__setattr__(self, "obs_dtype", np.dtype(self.obs_dtype).name)
        check_one_of(DTYPES, obs_dtype=self.obs_dtype)
        check_one_of(OBSERVATIONS, observation=self.observation)
        check_one_of(REWARDS, reward=self.reward)
        check_one_of(CROPS, crop=self.crop)
        if self.split not in (None, "train", "test"):
            raise ConfigError(f"split must be train, test or None, got {self.split!r}")
        if self.split is not None and self.images is not None:
            raise ConfigError("split divides scikit-image's photographs; give images or split, not both")
        self.price_range  # checks it  # noqa: B018

    @classmethod
    def of(cls, settings: Mapping[str, Any]) -> "TaskConfig":
        """Return the configuration with these settings.

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
        """Lowest and highest price of a forward if each episode draws its price; None if it is fixed."""
        return price_range(self.nfe_penalty)

    @property
    def name(self) -> str:
        """Name of the checkpoint or denoiser: its name, folder or Hub id, or the class of an object."""
        return str(self.checkpoint) if isinstance(self.checkpoint, str | Path) else type(self.checkpoint).__name__

    def plan(self, unet: Denoiser) -> Plan:
        """Return the plan of the episodes on a denoiser.

        Raises:
            ConfigError: the steps or a sampler do not fit.
        """
        return Plan.resolve(unet.settings, **{part: getattr(self, part) for part in PARTS})
