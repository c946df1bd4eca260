"""Training of the conditional DDPM (step 1 of the paper, Eq. 7)."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ddpm.checkpoints import load_unet, save_checkpoint
from ddpm.nets.denoiser import to_image, to_latent, x0_weights
from ddpm.nets.predictor import PREDICTOR, Predictor, load_predictor
from ddpm.nets.unet import UNet, tensor_mismatch
from ddpm.noise import KeyedNoise
from ddpm.sampling import sample
from ddpm.schedule import FloatArray, cosine_alphas_cumprod
from ddpm.training import trainer
from ddpm.training.configs import DDPMConfig
from ddpm.training.trainer import Trainee
from ddpm.util.errors import ConfigError

Distance = Callable[[Tensor, Tensor], Tensor]


def training_loss(
    unet: torch.nn.Module,
    config: UNet,
    alphas_cumprod: FloatArray,
    hr: Tensor,
    lr_image: Tensor,
    perceptual: Distance | None = None,
    perceptual_weight: float = 0.0,
    distance: Distance = F.l1_loss,
) -> Tensor:
    """Return the distance between prediction and truth, at levels drawn between neighbouring steps (Eq. 7).

    `perceptual` adds its weight times √ᾱ times the distance between the picture of the prediction and the target. √ᾱ
    keeps the gradient bounded where a picture estimated from eps is nearly all noise.

    Args:
        unet: the net, perhaps wrapped for several processes.
        config: the net without a wrapper, which defines prediction, target and condition.
        alphas_cumprod: (T + 1,), index 0 is the clean image.
        hr: target crops (B, 3, H, W) in [-1, 1].
        lr_image: their low-resolution pictures, (B, 3, h, w) in [-1, 1].
        perceptual: differentiable distance of two batches of pictures in [-1, 1], (B,) or (B, 1, 1, 1).
        perceptual_weight: its weight.
        distance: (prediction, truth) → scalar; L1 as in SR3, or L2, under which v becomes the mean of its posterior.

    Returns:
        Scalar loss.
    """
    batch, device = len(hr), hr.device
    levels = torch.as_tensor(np.sqrt(alphas_cumprod), dtype=hr.dtype, device=device)
    t = torch.randint(1, len(levels), (batch,), device=device)
    signal = levels[t] + (levels[t - 1] - levels[t]) * torch.rand(batch, device=device)
    sigma = (1 - signal**2).sqrt()
    lr_up = config.condition(lr_image)
    x_0 = to_latent(config, hr, lr_up)
    eps = torch.randn_like(x_0)
    a, b = signal[:, None, None, None], sigma[:, None, None, None]
    x_t = a * x_0 + b * eps
    truth = eps if config.prediction == "eps" else a * eps - b * x_0
    predicted = unet(lr_up, x_t, signal)
    loss = distance(predicted, truth)
    if perceptual is not None:
        of_predicted, of_x_t = x0_weights(config.prediction, a, b)
        estimate = of_predicted * predicted + of_x_t * x_t
        perceived = perceptual(to_image(config, estimate.float(), lr_up), hr)
        loss = loss + perceptual_weight * (signal * perceived.flatten()).mean()
    return loss


@torch.inference_mode()
def samples(
    unet: UNet, hr: Tensor, lr_image: Tensor, sampler: Callable[[UNet, Tensor, KeyedNoise], Tensor] | None = None
) -> list[Tensor]:
    """Return condition, samples and targets, each (B, 3, H, W) in [-1, 1].

    Args:
        unet: the network.
        hr: targets (B, 3, H, W) in [-1, 1].
        lr_image: their low-resolution pictures, (B, 3, h, w) in [-1, 1].
        sampler: (network, condition, noise) → clean latents; None: a chain of ten even ancestral steps.
    """
    lr_up = unet.condition(lr_image)
    noise = KeyedNoise(range(len(hr)), hr.shape[1:], hr.device)
    if sampler is None:
        latents = sample(unet, cosine_alphas_cumprod(min(10, unet.diffusion_steps)), lr_up, noise)
    else:
        latents = sampler(unet, lr_up, noise)
    return [lr_up, unet.decode(latents, lr_up), hr]


def initial_settings(checkpoint: str) -> dict[str, Any]:
    """Return the settings for a net with a checkpoint's weights: those of the checkpoint, except for its sampling."""
    sampling = ("start", "coarse_sampler", "levels", "fine_sampler")
    return {name: value for name, value in load_unet(checkpoint).settings.items() if name not in sampling}


def _copy_weights(source: UNet, target: UNet, name: str) -> None:
    """Copy the weights; raise ConfigError if the two nets' tensors differ in name or shape."""
    weights = source.state_dict()
    if mismatch := tensor_mismatch(target.state_dict(), weights):
        raise ConfigError(f"training cannot begin with the weights of {name}: {mismatch}; keep the settings of its net")
    target.load_state_dict(weights)


def _predictor(config: DDPMConfig, folder: Path, init: UNet | None) -> Predictor | None:
    """Return the predictor of a run: the copy in its folder, or else the one in the settings."""
    scale = config.unet.get("scale", 4)
    if (folder / PREDICTOR).is_file():
        return load_predictor(folder / PREDICTOR, scale)
    if config.predictor is not None:
        return load_predictor(config.predictor, scale)
    return None if init is None else init.predictor


def train(config: DDPMConfig, folder: str | Path, resume: bool = False, perceptual: Distance | None = None) -> Path:
    """Train a UNet.

    Averaged weights go to `folder/checkpoint` in half precision, the training state to `folder/state-*`.

    Args:
        config: the settings.
        folder: the run's folder.
        resume: whether to continue from the newest state in the folder (or start, if there is none yet).
        perceptual: the distance that `perceptual_weight` applies to; a module is moved to the device of the training.

    Returns:
        The folder of the trained checkpoint.

    Raises:
        ConfigError: a setting of the net is wrong; see also `ddpm.training.trainer.fit`.
        CheckpointError: the predictor or the checkpoint that training begins with cannot be loaded.
        ImageError: the photographs cannot be used.
    """
    alphas_cumprod = cosine_alphas_cumprod(int(config.unet.get("diffusion_steps", 100)))

    def make(fresh: bool) -> Trainee:
        unet = UNet(**{**config.unet, "predictor": None})
        # a run that was killed between its first state and its first checkpoint has no copy of the predictor yet
        exported = (Path(folder) / "checkpoint" / "config.json").is_file()
        init = load_unet(config.init) if config.init is not None and (fresh or not exported) else None
        if init is not None and fresh:
            _copy_weights(init, unet, str(config.init))
        unet.start_from(_predictor(config, Path(folder), init))

        def loss(model: nn.Module, hr: Tensor, lr_image: Tensor) -> Tensor:
            if isinstance(perceptual, nn.Module):
                perceptual.to(hr.device)
            return training_loss(
                model, unet, alphas_cumprod, hr, lr_image, perceptual, config.perceptual_weight,
                trainer.distance(config.loss),
            )  # fmt: skip

        def export(averaged: nn.Module, checkpoint: Path) -> None:
            assert isinstance(averaged, UNet)
            shipped = UNet(**{**config.unet, "predictor": None})
            shipped.load_state_dict(averaged.state_dict())
            shipped.half().start_from(unet.predictor)
            # before the checkpoint, whose existence means to a resumed run that the copy is there
            if unet.predictor is not None and not (checkpoint.parent / PREDICTOR).exists():
                unet.predictor.save(checkpoint.parent / PREDICTOR)
            save_checkpoint(shipped, checkpoint)

        return Trainee(unet, unet.scale, loss, export, samples, {"stride": unet.multiple})

    return trainer.fit(config, folder, resume, make, "train-ddpm")
