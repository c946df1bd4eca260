"""A tiny net, photographs, and options of runs that take a second, for benchmarks that are not about quality."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from click.testing import CliRunner
from PIL import Image

from agents.cli import main
from ddpm.checkpoints import save_checkpoint
from ddpm.nets.unet import UNet

NET: dict[str, Any] = {
    "width": 8, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (), "norm_groups": 4, "patch_size": 2,
    "dropout": 0.0, "noise_level_scale": 1000.0, "prediction": "v", "target": "residual", "diffusion_steps": 12,
    "coarse_steps": 3,
}  # fmt: skip
# Options of a training of such a net that takes a second.
TRAIN_DDPM = (
    "--width=8", "--multipliers=1,2", "--norm-groups=4", "--patch-size=2", "--attention-resolutions=999", "--crop=16",
    "--batch-size=2", "--warmup=1", "--iterations=2", "--save-every=1",
)  # fmt: skip
TRAIN_AGENT = (
    "--env=SkipDiff-v0", "--steps=3,4", "--image-size=16", "--metric=psnr", "--env-steps=12", "--eval-every=2", "-p",
    "n_envs=2", "-p", "episodes_per_minibatch=1", "-p", "hidden_size=8", "-p", "norm=group",
)  # fmt: skip
TRAIN_PRICED = (
    "--env=SkipDiffJump-v0", "--steps=1,4", "--image-size=32", "--metric=psnr", "--nfe-penalty=0.001,0.1",
    "--env-steps=12", "--eval-every=2", "-p", "n_envs=2", "-p", "episodes_per_rollout=1", "-p",
    "episodes_per_minibatch=1", "-p", "channels=[4]",
)  # fmt: skip
TRAIN_SUBSTEPS = (
    "--crop=16", "--batch-size=2", "--warmup=1", "--iterations=2", "--save-every=1", "--most=4", "--rank=2",
)  # fmt: skip
TRAIN_ON_TABLE = ("--env-steps=32", "-p", "n_envs=8", "-p", "n_steps=2", "-p", "batch_size=8")
TRAIN_PREDICTOR = ("--channels=4", "--crop=16", "--batch-size=1", "--iterations=1", "--warmup=0")
EVALUATE = ("--metrics=psnr", "--image-size=96")
REPRODUCE = ("--image-size=96", "--sections=table5", "--seeds=1")
WAYS = (
    "--levels=12*4", "--levels=12*2", "--levels=12,6", "--image-size=32", "--metrics=colour,psnr", "--noise-seeds=2",
    "--crops=4",
)  # fmt: skip
TABULATE = ("--steps=1,4", "--image-size=16", "--metrics=psnr,colour", "--noise-seeds=1")


def net(folder: Path, **changes: Any) -> Path:
    """Writes a checkpoint with random weights."""
    torch.manual_seed(0)
    save_checkpoint(UNet(**{**NET, **changes}), folder)
    return folder


def pixels(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """A smooth picture with some noise, uint8 (H, W, 3)."""
    small = Image.fromarray(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8))
    smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(float)
    return (smooth + rng.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)


def photographs(folder: Path, count: int, side: int) -> Path:
    """Writes pictures of one size, 0.png and so on."""
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(count):
        Image.fromarray(pixels(np.random.default_rng(i), side, side)).save(folder / f"{i}.png")
    return folder


def run(*arguments: object) -> None:
    """Runs a command in this process; it must end well."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    if result.exit_code:
        raise RuntimeError(f"skipdiff {' '.join(map(str, arguments))}: {result.output}") from result.exception
