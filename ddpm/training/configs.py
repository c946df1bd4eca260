"""Settings of trainings. This module does not need torch, so that the command line shows the defaults at once."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

from ddpm.util.checks import MOST_TIMES, check_most, check_types
from ddpm.util.errors import ConfigError

# Largest number of iterations and similar counts (all samples of a run together must fit an integer of C), and of
# worker processes.
MOST, MOST_WORKERS = 10**9, 256
# Largest number of a predictor's channels.
MOST_CHANNELS = 4096


def check_least(config: Any, least: int, *names: str) -> None:
    """Raise ConfigError if one of these fields of a dataclass is smaller than `least`."""
    for name in names:
        if getattr(config, name) < least:
            raise ConfigError(f"{name} must be at least {least}, got {getattr(config, name)}")


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Settings that every training run has; `config.json` in the run's folder.

    Attributes:
        images: Folder, file or pattern of photographs; may be repeated.
        init: Weights with which training begins, instead of random ones.
        degradation: Degradation of low-resolution inputs: "bicubic"; "photo", like photographs that people enlarge; or
            "photo2", the same twice. The last two may have a strength in 0 … 1, as in "photo:0.5"; without it,
            strengths are drawn for each crop.
        crop: Side of the random crops, in pixels of the target.
        turns: Also turn crops, by 90 degrees and upside down; without it, crops are only mirrored.
        batch_size: Crops per iteration and process.
        iterations: Optimizer steps in all.
        lr: Peak learning rate of Adam.
        lr_schedule: Course of the learning rate: "cosine" to zero, "step" (tenfold lower after 60 % and 85 %) or
            "constant".
        warmup: Iterations of linear warm-up.
        loss: Distance that is minimised, L1 as in SR3, or L2.
        clip: Largest norm of the gradient.
        ema_decay: Decay per iteration of the averaged weights, which the checkpoint holds.
        mixed_precision: Number format; "auto" is bf16 on a GPU that supports it, else none.
        seed: Seed of all random numbers, 0 … 2⁶³ - 1.
        save_every: Iterations between checkpoints and sample grids.
        workers: Processes that load pictures; 0 loads in the training process.
        cache_mb: Size of the decoded pictures kept in memory, in MiB, per loading process.

    Raises:
        ConfigError: a setting is out of range.
    """

    images: Sequence[str]
    init: str | None = None
    degradation: str = "bicubic"
    crop: int = 64
    turns: bool = False
    batch_size: int = 16
    iterations: int = 10_000
    lr: float = 4e-4
    lr_schedule: Literal["cosine", "step", "constant"] = "cosine"
    warmup: int = 100
    loss: Literal["l1", "l2"] = "l1"
    clip: float = 1.0
    ema_decay: float = 0.998
    mixed_precision: Literal["auto", "no", "fp16", "bf16"] = "auto"
    seed: int = 0
    save_every: int = 500
    workers: int = 0
    cache_mb: int = 1024

    # Settings that may change when a run continues.
    RESUMABLE: ClassVar[frozenset[str]] = frozenset({"images", "iterations", "save_every", "workers", "cache_mb"})

    def __post_init__(self) -> None:
        from ddpm.pictures.degradation import Degradation  # needs torch

        check_types(self)
        Degradation.parse(self.degradation)
        check_least(self, 1, "crop", "batch_size", "iterations", "save_every")
        check_least(self, 0, "warmup", "seed", "workers", "cache_mb")
        check_most(MOST, **{name: getattr(self, name) for name in ("crop", "batch_size", "iterations", "save_every")})
        check_most(MOST_WORKERS, workers=self.workers)
        if not (self.lr > 0 and self.clip > 0 and 0 <= self.ema_decay < 1):
            raise ConfigError(
                f"lr and clip must be positive and ema_decay in [0, 1), got {self.lr}, {self.clip}, {self.ema_decay}"
            )

    def learning_rate(self, iteration: int) -> float:
        """Return the learning rate of one iteration, counted from 0."""
        progress = iteration / self.iterations
        factor = {
            "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
            "step": 1.0 if progress < 0.6 else 0.1 if progress < 0.85 else 0.01,
            "constant": 1.0,
        }[self.lr_schedule]
        return self.lr * factor * min(1.0, (iteration + 1) / (self.warmup + 1))


@dataclass(frozen=True, kw_only=True)
class DDPMConfig(TrainingConfig):
    """Settings of a training of the diffusion net.

    Attributes:
        init: Checkpoint (name, folder or Hub id) whose weights, settings and predictor training begins with.
        unet: Settings of the net, see `ddpm.nets.unet.UNetConfig`.
        predictor: Super-resolution net (any file that spandrel loads) whose picture is the condition.
        perceptual_weight: Weight of LPIPS between the estimate of the picture and the target; 0: none.
    """

    unet: Mapping[str, Any] = field(default_factory=dict)
    predictor: str | None = None
    perceptual_weight: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 <= self.perceptual_weight < math.inf:
            raise ConfigError(f"perceptual_weight must be a number of at least 0, got {self.perceptual_weight}")


@dataclass(frozen=True, kw_only=True)
class PredictorConfig(TrainingConfig):
    """Settings of a training of SPAN (Wan et al. 2024), the "Swift Parameter-free Attention Network".

    Attributes:
        init: File of a SPAN of the same scale and width whose weights training begins with.
        scale: Factor by which the net enlarges.
        channels: Feature channels of the net.
    """

    scale: int = 4
    channels: int = 48
    crop: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, 1, "scale", "channels")
        check_most(MOST_TIMES, scale=self.scale)
        check_most(MOST_CHANNELS, channels=self.channels)


@dataclass(frozen=True, kw_only=True)
class SubstepsConfig(TrainingConfig):
    """Settings of a training of substeps: one forward learns to do the work of several steps of the network.

    Attributes:
        init: Checkpoint (name, folder or Hub id) whose network learns substeps.
        most: The most steps whose work one forward learns to do, a power of 2; an iteration takes longer with more.
        trained: Weights that are trained beside the embedding of the jump: "all", a copy of the network that runs where
            there are substeps; "low-rank", a low-rank addition to each of its convolutions; "embedding", none. With one
            substep the network stays the same in all three cases.
        rank: Rank of the additions of "low-rank".
        eval_images: Folder, file or pattern of photographs of the validation table; may be repeated.
        eval_size: Side of their centre crops, in pixels.
    """

    init: str | None = "natural-x4"
    most: int = 16
    trained: Literal["all", "low-rank", "embedding"] = "all"
    rank: int = 8
    eval_images: Sequence[str] = ()
    eval_size: int = 128
    iterations: int = 2000
    lr: float = 2e-4
    loss: Literal["l1", "l2"] = "l2"
    ema_decay: float = 0.995

    RESUMABLE: ClassVar[frozenset[str]] = TrainingConfig.RESUMABLE | {"eval_images", "eval_size"}

    def __post_init__(self) -> None:
        super().__post_init__()
        check_least(self, 2, "most")
        check_least(self, 1, "rank", "eval_size")
        if self.init is None:
            raise ConfigError("init is missing: name the checkpoint whose network learns substeps")
        if self.most & (self.most - 1):
            raise ConfigError(f"most must be a power of 2, such as 8 or 16, got {self.most}")
