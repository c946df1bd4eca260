"""Training of the conditional DDPM (step 1 of the paper, Eq. 7).

All randomness is a function of (seed, iteration): a run that is killed and resumed gives the weights of one that was not.
"""

import math
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from PIL import Image
from torch import Tensor
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader, Dataset, Subset
from tqdm import tqdm

from ddpm.checkpoints import load_unet, save_checkpoint
from ddpm.degradation import degrade
from ddpm.errors import ConfigError, ImageError
from ddpm.images import find_images, read_picture, to_tensor
from ddpm.noise import KeyedNoise
from ddpm.runs import read_json, start_run
from ddpm.sampling import coarse_sampler, refine, to_image, to_latent, x0_weights
from ddpm.schedule import FloatArray, cosine_alphas_cumprod
from ddpm.unet import UNet, tensor_mismatch

Distance = Callable[[Tensor, Tensor], Tensor]

# What may change when a run goes on.
RESUMABLE = frozenset({"images", "iterations", "save_every", "workers", "cache_mb"})


@dataclass(frozen=True)
class TrainingConfig:
    """Settings of a training run; `config.json` in the run's folder.

    Attributes:
        images: folders, files or patterns of photographs.
        unet: settings of `ddpm.unet.UNet`.
        init: checkpoint (name, folder or Hub id) whose weights training begins with; None: random ones.
        crop: side of the random crops, in pixels of the target.
        batch_size: crops per iteration and process.
        iterations: optimizer steps in all.
        lr: peak learning rate of Adam.
        lr_schedule: "cosine" to zero, "step" (tenfold lower after 60 % and 85 %) or "constant".
        warmup: iterations of linear warm-up.
        perceptual_weight: weight of the perceptual distance between the estimate of the picture and the target; 0: none.
        clip: largest norm of the gradient.
        ema_decay: decay per iteration of the averaged weights, which are the ones that ship.
        mixed_precision: "no", "fp16", "bf16", or "auto": bf16 on a GPU that has it, else none.
        seed: seed of everything random.
        save_every: iterations between checkpoints and sample grids.
        workers: processes that load pictures; 0 loads in the training process.
        cache_mb: decoded pictures kept in memory, per loading process.
    """

    images: Sequence[str]
    unet: Mapping[str, Any] = field(default_factory=dict)
    init: str | None = None
    crop: int = 64
    batch_size: int = 16
    iterations: int = 10_000
    lr: float = 4e-4
    lr_schedule: str = "cosine"
    warmup: int = 100
    perceptual_weight: float = 0.0
    clip: float = 1.0
    ema_decay: float = 0.999
    mixed_precision: str = "auto"
    seed: int = 0
    save_every: int = 500
    workers: int = 0
    cache_mb: int = 1024

    def __post_init__(self) -> None:
        for name in ("crop", "batch_size", "iterations", "save_every"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("warmup", "seed", "workers", "cache_mb"):
            if getattr(self, name) < 0:
                raise ConfigError(f"{name} must be at least 0, got {getattr(self, name)}")
        if not (self.lr > 0 and self.clip > 0 and 0 <= self.ema_decay < 1):
            raise ConfigError(
                f"lr and clip must be positive and ema_decay in [0, 1), got {self.lr}, {self.clip}, {self.ema_decay}"
            )
        if not 0 <= self.perceptual_weight < math.inf:
            raise ConfigError(f"perceptual_weight must be a number of at least 0, got {self.perceptual_weight}")
        if self.lr_schedule not in ("cosine", "step", "constant"):
            raise ConfigError(f"lr_schedule must be cosine, step or constant, got {self.lr_schedule!r}")
        if self.mixed_precision not in ("auto", "no", "fp16", "bf16"):
            raise ConfigError(f"mixed_precision must be auto, no, fp16 or bf16, got {self.mixed_precision!r}")

    def learning_rate(self, iteration: int) -> float:
        """Learning rate of one iteration, counted from 0."""
        progress = iteration / self.iterations
        factor = {
            "cosine": 0.5 * (1 + math.cos(math.pi * progress)),
            "step": 1.0 if progress < 0.6 else 0.1 if progress < 0.85 else 0.01,
            "constant": 1.0,
        }[self.lr_schedule]
        return self.lr * factor * min(1.0, (iteration + 1) / (self.warmup + 1))


class CropDataset(Dataset[Tensor]):
    """Sample n of an endless, shuffled stream of random crops; a function of (seed, n) alone.

    Args:
        paths: pictures, each at least `crop` pixels on both sides.
        crop: side of a crop.
        length: number of samples.
        seed: seed of order, places and flips.
        cache_mb: decoded pictures kept in memory.

    Raises:
        ImageError: a file is no picture, or is smaller than the crop.
    """

    def __init__(self, paths: Sequence[Path], crop: int, length: int, seed: int, cache_mb: int) -> None:
        self.paths, self.crop, self.length, self.seed = paths, crop, length, seed
        self.cache: dict[Path, np.ndarray] = {}
        self.cache_left = cache_mb * 2**20
        for path in tqdm(paths, desc="checking pictures", leave=False, delay=2):
            try:
                with Image.open(path) as image:  # reads the header alone
                    size = image.size
            except OSError as error:
                raise ImageError(f"{path} cannot be trained on ({error}); remove it from the folder") from None
            if min(size) < crop:
                raise ImageError(
                    f"{path} is {size[0]} x {size[1]}, smaller than the crop of {crop}; remove it or lower --crop"
                )

    def __len__(self) -> int:
        return self.length

    def _read(self, path: Path) -> np.ndarray:
        if path in self.cache:
            return self.cache[path]
        rgb = read_picture(path).rgb
        if rgb.nbytes <= self.cache_left:
            self.cache[path] = rgb
            self.cache_left -= rgb.nbytes
        return rgb

    def __getitem__(self, n: int) -> Tensor:
        """Crop n, (3, crop, crop) in [-1, 1]."""
        epoch, place = divmod(n, len(self.paths))
        order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.paths))
        rng = np.random.default_rng([self.seed, 1, n])
        rgb = self._read(self.paths[order[place]])
        y, x = (rng.integers(side - self.crop + 1) for side in rgb.shape[:2])
        rgb = rgb[y : y + self.crop, x : x + self.crop]
        return to_tensor(rgb[:, ::-1] if rng.random() < 0.5 else rgb)


def training_loss(
    unet: torch.nn.Module,
    config: UNet,
    alphas_cumprod: FloatArray,
    hr: Tensor,
    perceptual: Distance | None = None,
    perceptual_weight: float = 0.0,
) -> Tensor:
    """Eq. 7: L1 between what the net predicts and the truth, at noise levels drawn between neighbouring steps.

    With `perceptual`, plus its weight times √ᾱ times the distance between the picture that the prediction stands for and the
    target. √ᾱ keeps the gradient bounded where a picture estimated from eps is nearly all noise.

    Args:
        unet: the net, perhaps wrapped for several processes.
        config: the bare net, which knows prediction, target and scale.
        alphas_cumprod: (T + 1,), index 0 is the clean image.
        hr: target crops (B, 3, H, W) in [-1, 1].
        perceptual: differentiable distance of two batches of pictures in [-1, 1], (B,) or (B, 1, 1, 1).
        perceptual_weight: its weight.

    Returns:
        Scalar loss.
    """
    batch, device = len(hr), hr.device
    levels = torch.as_tensor(np.sqrt(alphas_cumprod), dtype=hr.dtype, device=device)
    t = torch.randint(1, len(levels), (batch,), device=device)
    signal = levels[t] + (levels[t - 1] - levels[t]) * torch.rand(batch, device=device)
    sigma = (1 - signal**2).sqrt()
    lr_up = degrade(hr, config.scale)
    x_0 = to_latent(config, hr, lr_up)
    eps = torch.randn_like(x_0)
    a, b = signal[:, None, None, None], sigma[:, None, None, None]
    x_t = a * x_0 + b * eps
    truth = eps if config.prediction == "eps" else a * eps - b * x_0
    predicted = unet(lr_up, x_t, signal)
    loss = (predicted - truth).abs().mean()
    if perceptual is not None:
        of_predicted, of_x_t = x0_weights(config.prediction, a, b)
        estimate = of_predicted * predicted + of_x_t * x_t
        distance = perceptual(to_image(config, estimate.float(), lr_up), hr)
        loss = loss + perceptual_weight * (signal * distance.flatten()).mean()
    return loss


@torch.inference_mode()
def sample_grid(unet: UNet, hr: Tensor) -> np.ndarray:
    """Rows of bicubic, coarse, coarse + fine and target; uint8 (rows · H, 4 · W, 3)."""
    alphas_cumprod = cosine_alphas_cumprod(unet.diffusion_steps)
    coarse = cosine_alphas_cumprod(unet.coarse_steps)
    lr_up = degrade(hr, unet.scale)
    noise = KeyedNoise(range(len(hr)), hr.shape[1:], hr.device)
    latents = coarse_sampler(unet.coarse)(unet, coarse, lr_up, noise)
    fine = refine(unet, alphas_cumprod, latents, lr_up, noise, unet.start)
    images = torch.stack([lr_up, to_image(unet, latents, lr_up), to_image(unet, fine, lr_up), hr])
    columns = images.permute(1, 3, 0, 4, 2).reshape(-1, 4 * hr.shape[3], 3)
    return ((columns + 1) * 127.5).round().to(torch.uint8).cpu().numpy()


def latest_state(folder: Path) -> Path | None:
    """The newest whole training state in a run's folder."""
    states = sorted(p for p in folder.glob("state-*") if p.suffix != ".tmp")
    return states[-1] if states else None


def resumed_config(folder: Path, given: Mapping[str, Any]) -> TrainingConfig:
    """The configuration of a run that goes on, with the given changes.

    Raises:
        ConfigError: the folder holds no run, its configuration is damaged, or a change would make it another run.
    """
    if not (folder / "config.json").exists():
        raise ConfigError(f"nothing to resume: {folder} holds no config.json; leave out --resume to start a run")
    saved = read_json(folder / "config.json")
    unknown = sorted(set(saved) - {f.name for f in fields(TrainingConfig)})
    if unknown:
        raise ConfigError(f"unknown settings in {folder / 'config.json'}: {', '.join(unknown)}")
    config = TrainingConfig(**saved)
    for name, value in given.items():
        old = dict(config.unet) | {k: getattr(config, k) for k in saved}
        if name not in RESUMABLE and (name not in old or _plain(old[name]) != _plain(value)):
            raise ConfigError(
                f"a resumed run keeps its {name} ({old.get(name, 'the default')}), got {value}; "
                f"only {', '.join(sorted(RESUMABLE))} may change"
            )
    return replace(config, **{k: v for k, v in given.items() if k in RESUMABLE})


def initial_settings(checkpoint: str) -> dict[str, Any]:
    """Settings of a net that begins with a checkpoint's weights: the checkpoint's, less `start` and `coarse`, chosen anew."""
    return {name: value for name, value in load_unet(checkpoint).settings.items() if name not in ("start", "coarse")}


def _copy_weights(source: UNet, target: UNet, name: str) -> None:
    """Raises ConfigError where the two nets' tensors differ in name or shape."""
    weights = source.state_dict()
    mismatch = tensor_mismatch(*({k: v.shape for k, v in net.state_dict().items()} for net in (target, source)))
    if mismatch:
        raise ConfigError(f"training cannot begin with the weights of {name}: {mismatch}; keep the settings of its net")
    target.load_state_dict(weights)


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def train(config: TrainingConfig, folder: str | Path, resume: bool = False, perceptual: Distance | None = None) -> Path:
    """Trains a UNet; averaged weights go to `folder/checkpoint` in half precision, the training state to `folder/state-*`.

    Args:
        config: the settings.
        folder: the run's folder.
        resume: go on from the newest state in the folder (or start, if there is none yet).
        perceptual: the distance that `perceptual_weight` weighs; a module is moved to the device of the training.

    Returns:
        The folder of the trained checkpoint.

    Raises:
        ConfigError: a setting is out of range, or the folder holds a run and `resume` is not set.
        ImageError: the photographs cannot be used.
    """
    folder = Path(folder)
    state = latest_state(folder)
    if config.mixed_precision == "auto":
        bf16 = torch.cuda.is_available() and torch.cuda.is_bf16_supported()
        precision = "bf16" if bf16 else "no"
    else:
        precision = config.mixed_precision
    # without an accelerator, Accelerate joins the processes of torchrun only if it is told to use the CPU
    accelerator = Accelerator(
        cpu=not torch.accelerator.is_available(), mixed_precision=precision, log_with="tensorboard", project_dir=folder
    )
    if accelerator.is_main_process and not resume and folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; go on with its run by --resume, or give another folder")

    torch.manual_seed(config.seed)
    bare = UNet(**config.unet)
    if config.init is not None and state is None:
        _copy_weights(load_unet(config.init), bare, config.init)
    for name, multiple in (("stride", bare.stride), ("scale", bare.scale)):
        if config.crop % multiple:
            raise ConfigError(f"crop must be a multiple of the net's {name} {multiple}, got {config.crop}")
    paths = find_images(config.images)
    process, processes = accelerator.process_index, accelerator.num_processes
    # every process reads its own samples: process p takes batches p, p + processes, …
    dataset = CropDataset(
        paths, config.crop, config.iterations * processes * config.batch_size, config.seed, config.cache_mb
    )
    first = int(state.name.removeprefix("state-")) if state else 0
    order = [
        n
        for i in range(first, config.iterations)
        for n in range((i * processes + process) * config.batch_size, (i * processes + process + 1) * config.batch_size)
    ]
    loader = DataLoader(Subset(dataset, order), config.batch_size, num_workers=config.workers)

    if accelerator.is_main_process:
        start_run(folder, asdict(config))
    ema = AveragedModel(bare, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay)).to(accelerator.device)
    model, optimizer = accelerator.prepare(bare, torch.optim.Adam(bare.parameters(), lr=config.lr))
    accelerator.register_for_checkpointing(ema)
    if state:
        accelerator.load_state(str(state))
    accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": {"purge_step": first}})
    if isinstance(perceptual, torch.nn.Module):
        perceptual.to(accelerator.device)
    alphas_cumprod = cosine_alphas_cumprod(bare.diffusion_steps)
    preview = torch.stack([dataset[n] for n in range(min(4, len(paths)))]).to(accelerator.device)

    def save(iteration: int) -> None:
        accelerator.wait_for_everyone()
        if accelerator.is_main_process:
            temporary = folder / f"state-{iteration:08d}.tmp"
            shutil.rmtree(temporary, ignore_errors=True)
            accelerator.save_state(str(temporary))
            previous = latest_state(folder)
            temporary.rename(temporary.with_suffix(""))
            if previous and previous.name != temporary.stem:
                shutil.rmtree(previous)
            averaged = UNet(**config.unet)
            averaged.load_state_dict(ema.module.state_dict())
            grid = sample_grid(averaged.eval().to(accelerator.device), preview)
            save_checkpoint(averaged.half(), folder / "checkpoint")
            accelerator.get_tracker("tensorboard").log_images(
                {"samples": grid[None]}, step=iteration, dataformats="NHWC"
            )
        accelerator.wait_for_everyone()

    model.train()
    losses: list[Tensor] = []
    bar = tqdm(
        loader, desc="train-ddpm", initial=first, total=config.iterations, disable=not accelerator.is_main_process,
        smoothing=0.02, dynamic_ncols=True,
    )  # fmt: skip
    for iteration, hr in enumerate(bar, start=first):
        torch.manual_seed(int(np.random.SeedSequence([config.seed, iteration, process]).generate_state(1)[0]))
        for group in optimizer.param_groups:
            group["lr"] = config.learning_rate(iteration)
        hr = hr.to(accelerator.device)
        with accelerator.autocast():
            loss = training_loss(model, bare, alphas_cumprod, hr, perceptual, config.perceptual_weight)
        accelerator.backward(loss)
        accelerator.clip_grad_norm_(model.parameters(), config.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        ema.update_parameters(accelerator.unwrap_model(model))
        losses.append(loss.detach())
        done = iteration + 1
        if done % 20 == 0 or done == config.iterations:
            mean = torch.stack(losses).mean().item()
            losses.clear()
            if not math.isfinite(mean):
                raise ConfigError(
                    f"the loss became {mean} at iteration {done}; resume with a lower --lr from {latest_state(folder)}"
                )
            bar.set_postfix(loss=f"{mean:.4f}")
            accelerator.log({"loss": mean, "learning_rate": config.learning_rate(iteration)}, step=done)
        if done % config.save_every == 0 or done == config.iterations:
            save(done)
    accelerator.end_training()
    return folder / "checkpoint"
