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
from ddpm.util.checks import LARGEST, check_most, check_whole, is_number
from ddpm.util.errors import ConfigError
from skipdiff_env.metrics import MetricLike
from skipdiff_env.plan import Plan
from skipdiff_env.rules import REWARDS, price_range

CROPS = ("center", "random")
OBSERVATIONS = ("latent", "dict", "features")
DTYPES = {"float32": torch.float32, "float16": torch.float16}


@dataclass(frozen=True, kw_only=True)
class TaskConfig:
    """The arguments of the environments, `skipdiff_env.env.SkipDiffEnv`.

    Attributes:
        checkpoint: name of a shipped checkpoint, a folder, or a Hub id, also of a model of diffusers.
        denoiser: another diffusion model that takes the place of `checkpoint`: a `ddpm.nets.denoiser.Denoiser`, or what
            `ddpm.checkpoints.load_denoiser` takes. With an object `spec.to_json()` raises a TypeError.
        images: target pictures: None, crops of photographs that scikit-image carries; a folder, file or pattern; a
            uint8 array (height, width, 3); or several of them. The low-resolution input is made from the target.
        degradation: how the low-resolution inputs are made: "bicubic", or as photographs that people enlarge: "photo",
            or "photo2" for all of it twice; with a strength in 0 … 1, as in "photo:0.5", or without, and then drawn for
            each picture. What is drawn is a function of the picture's pixels, whatever the noise seed.
        split: of scikit-image's photographs "train" or "test", which share no photograph; None: all of them.
        image_size: side of the target in pixels, a crop of the picture.
        crop: "center", the middle of each picture; or "random", another crop for each episode. Then the crops of
            scikit-image's photographs may lie anywhere, and the noise of an episode belongs to its crop and noise seed
            together, so that `noise_seeds=1` gives each crop a noise that no other crop has. With "center" all pictures
            have the same noise under one noise seed.
        scale: how many times to enlarge; None: what the checkpoint does.
        steps: (S, N), coarse steps, and diffusion steps that each spans; None: the checkpoint's. With
            `skip_mode="restart"` S · N is the checkpoint's T; with "jump" it may be any number, and the schedule has S
            · N steps.
        coarse_sampler: what runs the S - 1 coarse steps: "ddpm" (the paper), one of the samplers that add no noise,
            "ddim" or "dpmsolver++", or "ddim:ETA" with the share ETA of ddpm's noise, 0 … 1; the coarse latent stands
            at the same noise level, after as many forwards. None: what the checkpoint says under "restart", "ddpm"
            under "jump".
        fine_sampler: what runs the fine steps: "ddpm" (the paper), "ddim", "ddim:ETA", or with `skip_mode="jump"` also
            "dpmsolver++".
        skip_mode: what SKIP does, "restart" (the paper) or "jump".
        first_step: the diffusion step that is decided first, N … T; None: N. The coarse latent stands at the noise
            level of step N all the same: with T this is case 4 of the paper's Table 4, which decides on all T steps.
        decisions: what an env step decides: "skip", whether to perform a diffusion step (the paper); "stride", how many
            levels the next forward covers, and the work of how many steps it does; "continuous", the same as numbers in
            -1 … 1; or "schedule", which of some schedules the picture gets. All but the first need `skip_mode="jump"`;
            see `skipdiff_env.decisions`.
        substeps: numbers of substeps that "stride" chooses among; None: the powers of 2 that the network has learnt.
        schedules: those that "schedule" chooses among, as `ddpm.schedule.as_schedule` takes them; None: one forward
            with each of these numbers of substeps, or without substeps even schedules of 1, 2, 4, 8 … forwards.
        observation: "latent"; "dict": latent, condition, step, level, and the price of a forward if it is drawn; or
            "features", a vector: the 42 statistics of the condition (`skipdiff_env.features.features`), the level, the
            price if it is drawn, and the statistics of the last estimate of the picture. With decisions "schedule",
            which are made before the first forward, the level and the last statistics are left out.
        metric: the reward's metric: "niqe", "lpips", "psnr", "ssim", or any name that `skipdiff_env.make_metric` takes,
            but not the judges "dists" and "lpips-vgg"; or a `Metric`, or a function of results and targets, as
            `skipdiff_env.metrics.as_metric` says. With one that is not a name `spec.to_json()` raises a TypeError.
        report_metrics: further metrics for `info`, the judges among them.
        reward: "inverse", 1/M for a metric M that is lower for better pictures, or "negative", -M; where a higher
            metric is better the reward is M itself in both.
        nfe_penalty: subtracted from the terminal reward for each fine UNet forward; or a pair (lowest, highest) above
            0, out of which each episode draws its own, uniformly in the logarithm.
        noise_seeds: how many different noises a picture may get: its noise seeds are 0 … noise_seeds - 1. None: no
            limit; then hardly an episode comes twice, and nothing is gained from remembering.
        obs_dtype: "float32" or "float16", of latents and conditions.
        cache_mb: room for remembered pictures, latents and metrics, in MiB; the least recently used go first. A latent
            takes 12 · image_size² bytes, and all starts of one picture and noise N · (N + 1)/2 + 1 latents
            (`first_step` for N, where that is given).
        cache_dir: folder on disk for the same, which other environments, processes and later runs read as well; None:
            none. What it holds belongs to the net's weights, the plan, the picture and the noise; functions as metrics
            are not stored.
        cache_dir_mb: room on disk for all that share the folder, in MiB.
        device: where the net and the metrics run: "cpu", "cuda", …
        batch_size: pictures of one UNet forward and of one metric call.

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
        # copies, so that nobody changes them afterwards
        if isinstance(self.images, np.ndarray):
            object.__setattr__(self, "images", self.images.copy())
        elif isinstance(self.images, list | tuple):
            own = [each.copy() if isinstance(each, np.ndarray) else each for each in self.images]
            object.__setattr__(self, "images", own)
        if not isinstance(self.cache_dir, str | Path | None):
            raise ConfigError(f"cache_dir must be the path of a folder, or None, got {self.cache_dir!r}")
        with contextlib.suppress(TypeError, ValueError, SyntaxError):  # np.float16 is as good as "float16"
            object.__setattr__(self, "obs_dtype", np.dtype(self.obs_dtype).name)
        for name, known in (
            ("obs_dtype", DTYPES), ("observation", OBSERVATIONS), ("reward", REWARDS), ("crop", CROPS),
        ):  # fmt: skip
            if getattr(self, name) not in tuple(known):  # which takes values that have no hash as well
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
        return price_range(self.nfe_penalty)

    @property
    def name(self) -> str:
        """What the checkpoint or denoiser is called: its name, folder or Hub id, or the class of an object."""
        return str(self.checkpoint) if isinstance(self.checkpoint, str | Path) else type(self.checkpoint).__name__

    def plan(self, unet: Denoiser) -> Plan:
        """The plan of the episodes on a denoiser.

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
