"""Training of substeps: one forward of a network learns to do the work of several even DDIM steps.

The idea comes from progressive distillation (Salimans and Ho 2022) and shortcut models (Frans et al. 2024). Here the
number of substeps m is an input, so that one network serves every m. The plain network, which is m = 1, does not change
and is the teacher for every m. (If a jump is taught by two halves of m/2 substeps, as in these papers, errors add up
from one m to the next, and the results become grainier and grainier.)
"""

import math
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ddpm.checkpoints import load_unet, save_checkpoint
from ddpm.nets.denoiser import image_multiple, per_member, to_latent
from ddpm.nets.unet import UNet
from ddpm.noise import KeyedNoise, Stage
from ddpm.pictures.degradation import Degradation
from ddpm.pictures.images import find_images, read_picture, to_tensor
from ddpm.sampling import p_sample, run_levels
from ddpm.schedule import FloatArray, cosine_alphas_cumprod
from ddpm.training import trainer
from ddpm.training.configs import SubstepsConfig
from ddpm.training.trainer import Trainee
from ddpm.training.unet import samples
from ddpm.util.errors import ConfigError, ImageError
from ddpm.util.progress import say

# Parts of all jumps that span the whole way, that begin at pure noise, and that end at the clean image.
WHOLE, FROM_NOISE, TO_CLEAN = 0.6, 0.3, 0.3
# The shortest jump, as a part of the way; and the largest number of substeps in the whole way, so that jumps of many
# substeps are longer.
SHORTEST, FINEST = 0.05, 48
# Signal levels √ᾱ that pure noise has in cosine schedules of one step to a hundred, see `max_beta` there.
NOISIEST = 5e-4, 0.032
# The validation table: forwards and substeps.
VALIDATED = ((1, 1), (1, 2), (1, 4), (1, 8), (1, 12), (1, 16), (2, 4), (2, 8), (3, 4))

# (LPIPS or another distance of two batches of pictures in [-1, 1]) → one number for each.
Distance = Callable[[Tensor, Tensor], Tensor]


class LowRank(nn.Module):
    """A low-rank addition to the weight of a convolution, zero at first; for `torch.nn.utils.parametrize`."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        rows, columns = weight.shape[0], weight[0].numel()
        self.right = nn.Parameter(torch.randn(rank, columns) / math.sqrt(columns))
        self.left = nn.Parameter(torch.zeros(rows, rank))

    def forward(self, weight: Tensor) -> Tensor:
        """Return the weight with the addition."""
        return weight + (self.left @ self.right).view_as(weight)


def _trainable(jumps: UNet, config: SubstepsConfig) -> None:
    """Freeze the weights that are not trained, and add those that are."""
    for module in jumps.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0  # the targets are exact, so no regularisation is needed
    jumps.requires_grad_(config.trained == "all")
    if config.trained == "low-rank":
        for module in [module for module in jumps.modules() if isinstance(module, nn.Conv2d)]:
            parametrize.register_parametrization(module, "weight", LowRank(module.weight, config.rank))
    assert jumps.jump is not None
    jumps.jump.requires_grad_(True)


def _merged(jumps: nn.Module, unet: UNet) -> UNet:
    """Return a network of jumps for `unet` with the weights of `jumps`, additions included."""
    merged = unet.jump_network()
    places = [(name, *name.rpartition(".")[::2]) for name in merged.state_dict()]
    merged.load_state_dict({name: getattr(jumps.get_submodule(module), leaf) for name, module, leaf in places})
    return merged.eval().requires_grad_(False)


def signal_level(t: FloatArray) -> FloatArray:
    """Return √ᾱ of the cosine schedule (Eq. 9) at parts t of the way from the clean image, 0, to pure noise, 1."""
    s = 0.008
    return np.cos((t + s) / (1 + s) * np.pi / 2) / np.cos(s / (1 + s) * np.pi / 2)


def draw_jumps(rng: np.random.Generator, count: int, most: int) -> tuple[FloatArray, FloatArray, NDArray[np.integer]]:
    """Draw jumps to train on.

    Returns:
        (begin, end, substeps), each (count,); begin and end in parts of the way, begin above end.
    """
    substeps = 2 ** rng.integers(1, most.bit_length(), count)
    shortest = np.maximum(SHORTEST, substeps / FINEST)
    length = np.exp(rng.uniform(np.log(np.minimum(shortest, 1)), 0))
    length[rng.random(count) < WHOLE] = 1
    place = rng.random(count)
    begin = length + rng.random(count) * (1 - length)
    begin[place < FROM_NOISE] = 1
    ending = (place >= FROM_NOISE) & (place < FROM_NOISE + TO_CLEAN)
    begin[ending] = length[ending]
    return begin, np.maximum(begin - length, 0), substeps


def substeps_loss(
    model: nn.Module,
    unet: UNet,
    hr: Tensor,
    lr_image: Tensor,
    most: int,
    distance: Callable[[Tensor, Tensor], Tensor],
) -> Tensor:
    """Return the distance between the v of jumps with m substeps and the v that arrives where m even steps do.

    With φ = arccos √ᾱ, a DDIM step (η = 0) turns (x, v) by the angle D = φ_l - φ_s: x_s = cos D·x_l - sin D·v.

    Args:
        model: network of the jumps, perhaps wrapped for several processes.
        unet: the plain network, which runs the even steps; it is not changed.
        hr: target crops (B, 3, H, W) in [-1, 1].
        lr_image: their low-resolution pictures, (B, 3, h, w) in [-1, 1].
        most: largest number of substeps.
        distance: (prediction, truth) → scalar.
    """
    count = len(hr)
    # seeded by torch's generator, which the trainer seeds for each iteration
    rng = np.random.default_rng(int(torch.randint(2**31, ())))
    begin, end, substeps = draw_jumps(rng, count, most)
    # the levels of the even steps, (most + 1, count)
    done = np.minimum(np.arange(most + 1)[:, None] / substeps, 1)
    levels = signal_level(begin + (end - begin) * done)
    lowest, highest = np.log(NOISIEST)
    noisiest = np.exp(rng.uniform(lowest, highest, count))
    levels[0] = np.where(begin == 1, noisiest, levels[0])
    # a table of all levels, so that the sampler can refer to them by number
    table, numbers = levels.ravel() ** 2, np.arange(levels.size).reshape(levels.shape)

    noise_level, to_level = per_member(levels[0], hr), per_member(levels[-1], hr)
    with torch.no_grad():
        lr_up = unet.condition(lr_image)
        x_0 = to_latent(unet, hr, lr_up)
        a = noise_level[:, None, None, None]
        x_l = a * x_0 + (1 - a**2).sqrt() * torch.randn_like(x_0)
        x_s = x_l.clone()
        for step in range(most):
            left = substeps > step
            if left.any():
                now, to = numbers[step, left], numbers[step + 1, left]
                x_s[left] = p_sample(unet, table, now, x_s[left], lr_up[left], None, 0.0, to)
        angle = (noise_level.arccos() - to_level.arccos())[:, None, None, None]
        truth = (angle.cos() * x_l - x_s) / angle.sin()
    return distance(model(lr_up, x_l, noise_level, to_level, per_member(substeps, hr)), truth)


def even_jumps(unet: UNet, lr_up: Tensor, noise: KeyedNoise, forwards: int, substeps: int) -> Tensor:
    """Return the clean latents after even DDIM steps (η = 0) from pure noise, each with the same substeps."""
    alphas_cumprod, latents = cosine_alphas_cumprod(forwards), noise(Stage.INITIAL, forwards)
    return run_levels(unet, alphas_cumprod, latents, lr_up, noise, range(forwards, 0, -1), 0.0, substeps=substeps)


@torch.inference_mode()
def validation_table(
    unet: UNet, pictures: Sequence[tuple[Tensor, Tensor]], perceptual: Distance, most: int
) -> dict[tuple[int, int], tuple[float, float]]:
    """Return the mean perceptual distance and PSNR (RGB) over pictures, by forwards and substeps.

    Args:
        unet: the network.
        pictures: targets (1, 3, H, W) and their low-resolution pictures, both in [-1, 1].
        perceptual: LPIPS or another distance.
        most: largest number of substeps.
    """
    rows: dict[tuple[int, int], list[tuple[float, float]]] = {}
    for seed, (hr, lr_image) in enumerate(pictures):
        lr_up = unet.condition(lr_image)
        for forwards, substeps in VALIDATED:
            if substeps <= most:
                noise = KeyedNoise([seed], hr.shape[1:], hr.device)
                sr = unet.decode(even_jumps(unet, lr_up, noise, forwards, substeps), lr_up)
                psnr = -10 * ((sr - hr).square().mean() / 4).log10()
                rows.setdefault((forwards, substeps), []).append((float(perceptual(sr, hr).mean()), float(psnr)))
    return {key: (float(np.mean([a for a, _ in found])), float(np.mean([b for _, b in found])))
            for key, found in rows.items()}  # fmt: skip


def train_substeps(
    config: SubstepsConfig, folder: str | Path, resume: bool = False, perceptual: Distance | None = None
) -> Path:
    """Train substeps; the checkpoint with the add-on goes to `folder/checkpoint`, the state to `folder/state-*`.

    Args:
        config: the settings.
        folder: the run's folder.
        resume: whether to continue from the newest state in the folder (or start, if there is none yet).
        perceptual: the distance of the validation table; None: do not make a table.

    Returns:
        The folder of the trained checkpoint.

    Raises:
        ConfigError: the network does not predict v; see also `ddpm.training.trainer.fit`.
        CheckpointError: the checkpoint cannot be loaded.
        ImageError: the photographs cannot be used.
    """
    folder = Path(folder)

    def make(fresh: bool) -> Trainee:
        assert config.init is not None, "the configuration refuses it"
        unet = load_unet(config.init)
        if unet.prediction != "v":
            raise ConfigError(
                f"substeps need a network that predicts v, but {config.init} predicts {unet.prediction}; "
                "train one with --prediction v"
            )
        jumps = unet.jump_network() if unet.substeps == 1 else deepcopy(unet._jumps[0])
        _trainable(jumps, config)
        pictures = _validation_pictures(config, unet) if perceptual is not None else []

        def loss(model: nn.Module, hr: Tensor, lr_image: Tensor) -> Tensor:
            return substeps_loss(model, unet.to(hr.device), hr, lr_image, config.most, trainer.distance(config.loss))

        def whole(averaged: nn.Module) -> UNet:
            unet.add_substeps(config.most, _merged(averaged, unet))
            return unet

        def export(averaged: nn.Module, checkpoint: Path) -> None:
            shipped, jumps = load_unet(str(config.init)), _merged(averaged, unet).cpu()
            if all(torch.equal(tensor, tensor.half().float()) for tensor in shipped.state_dict().values()):
                shipped, jumps = shipped.half(), jumps.half()  # like the weights in its file
            shipped.add_substeps(config.most, jumps)
            save_checkpoint(shipped, checkpoint)

        def preview(averaged: nn.Module, hr: Tensor, lr_image: Tensor) -> list[Tensor]:
            one_jump = partial(even_jumps, forwards=1, substeps=config.most)
            return samples(whole(averaged), hr, lr_image, one_jump)

        def validate(averaged: nn.Module) -> Mapping[str, float]:
            assert perceptual is not None
            device = next(averaged.parameters()).device
            if isinstance(perceptual, nn.Module):
                perceptual.to(device)
            moved = [(hr.to(device), lr_image.to(device)) for hr, lr_image in pictures]
            table = validation_table(whole(averaged).to(device), moved, perceptual, config.most)
            cells = [f"{n}x{m} {lpips:.4f}/{psnr:.2f}" for (n, m), (lpips, psnr) in table.items()]
            say(f"forwards x substeps, LPIPS/PSNR: {', '.join(cells)}")
            return {
                f"{name}/{n}x{m}": value
                for (n, m), pair in table.items()
                for name, value in zip(("lpips", "psnr"), pair, strict=True)
            }

        return Trainee(
            jumps, unet.scale, loss, export, preview, {"stride": unet.multiple}, validate if pictures else None
        )

    return trainer.fit(config, folder, resume, make, "train-substeps")


def _validation_pictures(config: SubstepsConfig, unet: UNet) -> list[tuple[Tensor, Tensor]]:
    """Return centre crops of the photographs of the validation table, and their low-resolution pictures."""
    if not config.eval_images:
        return []
    multiple = image_multiple(unet)
    if config.eval_size % multiple:
        raise ConfigError(f"eval_size must be a multiple of {multiple} for this checkpoint, got {config.eval_size}")
    degradation = Degradation.parse(config.degradation)
    pictures = []
    for number, path in enumerate(find_images(config.eval_images)):
        rgb = read_picture(path).rgb
        top, left = ((side - config.eval_size) // 2 for side in rgb.shape[:2])
        if min(top, left) < 0:
            raise ImageError(
                f"{path} is {rgb.shape[1]} x {rgb.shape[0]}, smaller than the eval_size of {config.eval_size}"
            )
        hr = to_tensor(rgb[top : top + config.eval_size, left : left + config.eval_size])[None]
        pictures.append((hr, degradation(hr, unet.scale, [(config.seed, 3, number)])))
    return pictures
