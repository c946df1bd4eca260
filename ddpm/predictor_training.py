"""Training of a predictor: spandrel's SPAN, for enlargements for which there is none yet."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from ddpm import trainer
from ddpm.degradation import downsample, upsample
from ddpm.errors import CheckpointError, ConfigError
from ddpm.images import atomic_path
from ddpm.predictor import PREDICTOR, load_predictor, refuse_not_finite
from ddpm.torchvision_ops import ensure_torchvision
from ddpm.trainer import Trainee


@dataclass(frozen=True, kw_only=True)
class PredictorConfig(trainer.TrainingConfig):
    """Settings of a training of SPAN (Wan et al. 2024), the "Swift Parameter-free Attention Network".

    Attributes:
        init: file of a SPAN of the same scale and width whose weights training begins with.
        scale: how many times the net enlarges.
        channels: feature channels of the net.
    """

    scale: int = 4
    channels: int = 48
    crop: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("scale", "channels"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")


def _span(config: PredictorConfig) -> nn.Module:
    ensure_torchvision()
    from spandrel.architectures.SPAN import SPAN

    # without the normalisation to 255 levels, which a net with random weights is slow to learn with
    return SPAN(num_in_ch=3, num_out_ch=3, feature_channels=config.channels, upscale=config.scale, norm=False)


def _load_weights(net: nn.Module, file: str, scale: int) -> None:
    """Raises CheckpointError where the file is no SPAN of this scale and width."""
    load_predictor(file, scale)  # refuses what is damaged
    try:
        net.load_state_dict(load_file(file))
    except (RuntimeError, ValueError) as error:
        reason = " ".join(str(error).split())[:160]
        raise CheckpointError(f"training cannot begin with {file}: {reason}; take a SPAN of the same width") from None


def train_predictor(config: PredictorConfig, folder: str | Path, resume: bool = False) -> Path:
    """Trains SPAN; its averaged weights go to `folder/checkpoint/predictor.safetensors`, which `train-ddpm` takes.

    Args:
        config: the settings.
        folder: the run's folder.
        resume: go on from the newest state in the folder (or start, if there is none yet).

    Returns:
        The file of the trained predictor.

    Raises:
        ConfigError: as `ddpm.trainer.fit`.
        CheckpointError: the weights that training begins with do not fit.
        ImageError: the photographs cannot be used.
    """

    def enlarge(net: nn.Module, hr: Tensor) -> Tensor:
        lr = downsample(hr, config.scale)
        return net((lr + 1) / 2) * 2 - 1

    def make(fresh: bool) -> Trainee:
        net = _span(config)
        if config.init is not None and fresh:
            _load_weights(net, config.init, config.scale)

        def loss(model: nn.Module, hr: Tensor) -> Tensor:
            return config.distance(enlarge(model, hr), hr)

        def export(averaged: nn.Module, checkpoint: Path) -> None:
            tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in averaged.state_dict().items()}
            refuse_not_finite(tensors, "the predictor")
            with atomic_path(checkpoint / PREDICTOR) as temporary:
                save_file(tensors, temporary)

        @torch.inference_mode()
        def preview(averaged: nn.Module, hr: Tensor) -> np.ndarray:
            lr_up = upsample(downsample(hr, config.scale), config.scale)
            images = torch.stack([lr_up, enlarge(averaged, hr).clamp(-1, 1), hr])
            columns = images.permute(1, 3, 0, 4, 2).reshape(-1, len(images) * hr.shape[3], 3)
            return ((columns + 1) * 127.5).round().to(torch.uint8).cpu().numpy()

        return Trainee(net, loss, export, preview, {"scale": config.scale})

    return trainer.fit(config, folder, resume, make, "train-predictor") / PREDICTOR
