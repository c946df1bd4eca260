"""The training loop that the diffusion net and the predictor share: run folder, states, averaged weights, resuming.

All randomness is a function of (seed, iteration): a run that is killed and resumed ends with the weights of one that
was not.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import MISSING, asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.data import DataLoader

from ddpm.pictures.crops import CropDataset
from ddpm.pictures.degradation import Degradation
from ddpm.pictures.images import find_images, to_uint8
from ddpm.training.configs import TrainingConfig
from ddpm.training.runs import check_new_run, lock_run, pictures_digest, start_run
from ddpm.util.checks import shown
from ddpm.util.errors import CheckpointError, ConfigError, first_line
from ddpm.util.files import atomic_folder, read_json, remove_folder
from ddpm.util.progress import progress

C = TypeVar("C", bound="TrainingConfig")


def distance(loss: str) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the function (prediction, truth) → scalar of a loss, "l1" or "l2"."""
    return nn.functional.l1_loss if loss == "l1" else nn.functional.mse_loss


@dataclass(frozen=True)
class Trainee:
    """A network in training, and its loss and outputs.

    Attributes:
        model: the network with random or initial weights; trained in place.
        scale: factor by which it enlarges.
        loss: (the model, perhaps wrapped for several processes; targets (B, 3, H, W) and their low-resolution pictures,
            both in [-1, 1]) → scalar loss.
        export: (averaged model, folder) → None; writes a copy of the model, which it may change, into a folder that
            other commands can load.
        preview: (averaged model in inference mode, targets, low-resolution pictures) → columns of pictures, each
            (B, 3, H, W) in [-1, 1], for TensorBoard.
        multiples: name → further numbers that must divide the side of a crop, beside the scale.
        validate: (averaged model in inference mode) → name → figure, for TensorBoard; None: no validation.
    """

    model: nn.Module
    scale: int
    loss: Callable[[nn.Module, Tensor, Tensor], Tensor]
    export: Callable[[nn.Module, Path], None]
    preview: Callable[[Any, Tensor, Tensor], Sequence[Tensor]]
    multiples: Mapping[str, int] = field(default_factory=dict)
    validate: Callable[[nn.Module], Mapping[str, float]] | None = None


def latest_state(folder: Path) -> Path | None:
    """Return the newest whole training state in a run's folder."""
    states = _states(folder)
    return states[-1] if states else None


def _states(folder: Path) -> list[Path]:
    return sorted(path for path in folder.glob("state-*") if re.fullmatch(r"state-\d+", path.name))


def resumed_config(kind: type[C], folder: Path, given: Mapping[str, Any]) -> C:
    """Return the configuration of a run that continues, with the given changes.

    Args:
        kind: class of the configuration.
        folder: the run's folder.
        given: setting → value; settings of a nested mapping, such as those of the net, may be named directly.

    Raises:
        ConfigError: the folder does not hold a run, its configuration is damaged, or a change would make it another
            run.
    """
    if not (folder / "config.json").exists():
        raise ConfigError(f"nothing to resume: {folder} holds no config.json; leave out --resume to start a run")
    saved = read_json(folder / "config.json")
    if not isinstance(saved, dict):
        raise ConfigError(f"{folder / 'config.json'} does not hold the settings of a run, got {shown(saved)}")
    unknown = sorted(set(saved) - {f.name for f in fields(kind)})
    if unknown:
        raise ConfigError(f"unknown settings in {folder / 'config.json'}: {', '.join(unknown)}")
    missing = [f.name for f in fields(kind) if f.default is f.default_factory is MISSING and f.name not in saved]
    if missing:
        raise ConfigError(f"{folder / 'config.json'} lacks the settings {', '.join(missing)}; start the run anew")
    config = kind(**saved)
    nested = [value for value in saved.values() if isinstance(value, dict)]
    old = {name: value for mapping in nested for name, value in mapping.items()} | {
        k: getattr(config, k) for k in saved
    }
    for name, value in given.items():
        if name not in config.RESUMABLE and (name not in old or _plain(old[name]) != _plain(value)):
            raise ConfigError(
                f"a resumed run keeps its {name} ({old.get(name, 'the default')}), got {value}; "
                f"only {', '.join(sorted(config.RESUMABLE))} may change"
            )
    return replace(config, **{k: v for k, v in given.items() if k in config.RESUMABLE})


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, list | tuple) else value


def _accelerator(config: TrainingConfig, folder: Path) -> Accelerator:
    precision = config.mixed_precision
    if precision == "auto":
        precision = "bf16" if torch.cuda.is_available() and torch.cuda.is_bf16_supported() else "no"
    # Accelerate keeps the precision of an earlier training of this process, and refuses another one
    AcceleratorState._reset_state()
    # without an accelerator, Accelerate joins the processes of torchrun only with cpu=True
    return Accelerator(
        cpu=not torch.accelerator.is_available(), mixed_precision=precision, log_with="tensorboard", project_dir=folder
    )


def batches(first: int, iterations: int, size: int, processes: int = 1, process: int = 0) -> Iterator[list[int]]:
    """Yield the numbers of the samples of each batch of a process, which takes batches `process`, + processes, ….

    Args:
        first: the first iteration.
        iterations: number of iterations in all.
        size: number of samples in a batch.
        processes: number of processes.
        process: index of the process.
    """
    for batch in range(first * processes + process, iterations * processes, processes):
        yield list(range(batch * size, (batch + 1) * size))


class Training:
    """A run of `fit`, with checked pictures.

    Args:
        config: the settings.
        folder: the run's folder.
        resume: whether to continue from the newest state in the folder (or start, if there is none yet).
        make: function that returns the trainee; its argument is True if the initial weights are needed (there is no
            state yet).
        kind: name of the training, for the progress bar.
    """

    def __init__(
        self, config: TrainingConfig, folder: Path, resume: bool, make: Callable[[bool], Trainee], kind: str
    ) -> None:
        self.config, self.folder, self.kind = config, folder, kind
        self.accelerator = _accelerator(config, folder)
        self.main = self.accelerator.is_main_process
        if self.main:
            check_new_run(folder, resume)
        self.state = latest_state(folder)
        self.first = int(self.state.name.removeprefix("state-")) if self.state else 0
        torch.manual_seed(config.seed)
        self.trainee = make(self.state is None)
        for name, multiple in {**self.trainee.multiples, "scale": self.trainee.scale}.items():
            if config.crop % multiple:
                raise ConfigError(f"crop must be a multiple of the net's {name} {multiple}, got {config.crop}")
        paths = find_images(config.images)
        degradation = Degradation.parse(config.degradation)
        self.dataset = CropDataset(
            paths, config.crop, config.seed, config.cache_mb, degradation, self.trainee.scale, config.turns
        )

    def run(self) -> None:
        """Train to the last iteration."""
        # 1. the run's folder gets its configuration before anything is computed
        if self.main:
            start_run(self.folder, asdict(self.config), pictures_digest(self.dataset.paths), self.state is not None)
        # 2. model, optimizer and average, loaded from the state if there is one
        accelerator, config = self.accelerator, self.config
        model = self.trainee.model
        ema = AveragedModel(model, multi_avg_fn=get_ema_multi_avg_fn(config.ema_decay)).to(accelerator.device)
        trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        adam = torch.optim.Adam(trained, lr=config.lr, fused=accelerator.device.type == "cuda")
        wrapped, optimizer = accelerator.prepare(model, adam)
        accelerator.register_for_checkpointing(ema)
        self._load_state()
        accelerator.init_trackers("tensorboard", init_kwargs={"tensorboard": {"purge_step": self.first + 1}})
        samples = [self.dataset[n] for n in range(min(4, len(self.dataset.paths)))]
        preview = [torch.stack(pictures).to(accelerator.device) for pictures in zip(*samples, strict=True)]
        if self.state:  # the run may have been killed after the state was written and before the weights were
            self._export(ema.module)
        # 3. the iterations
        wrapped.train()
        losses: list[Tensor] = []
        with progress(
            self._batches(), desc=self.kind, initial=self.first, total=config.iterations, disable=not self.main,
            smoothing=0.02,
        ) as bar:  # fmt: skip
            for iteration, batch in enumerate(bar, start=self.first):
                losses.append(self._iterate(iteration, wrapped, optimizer, batch))
                ema.update_parameters(accelerator.unwrap_model(wrapped))
                done = iteration + 1
                saving = done % config.save_every == 0 or done == config.iterations
                if done % 20 == 0 or saving:
                    bar.set_postfix(loss=f"{self._log(losses, done):.4f}")
                if saving:
                    self._save(done, ema.module, preview)
        accelerator.end_training()

    def _load_state(self) -> None:
        """Load the newest state, if there is one."""
        if self.state is None:
            return
        try:
            self.accelerator.load_state(str(self.state))
        except Exception as error:  # torch, safetensors and Accelerate raise nearly anything on damaged files
            raise CheckpointError(
                f"the state {self.state} is damaged ({first_line(error)}); remove it, and --resume begins the run anew"
            ) from None

    def _batches(self) -> Iterator[Sequence[Tensor]]:
        """Return the batches of this process, targets and inputs, from the first remaining iteration on."""
        accelerator, config = self.accelerator, self.config
        numbers = batches(
            self.first, config.iterations, config.batch_size, accelerator.num_processes, accelerator.process_index
        )
        pinned = accelerator.device.type == "cuda"
        return iter(DataLoader(self.dataset, batch_sampler=numbers, num_workers=config.workers, pin_memory=pinned))

    def _iterate(
        self, iteration: int, model: nn.Module, optimizer: torch.optim.Optimizer, batch: Sequence[Tensor]
    ) -> Tensor:
        """Run one optimizer step and return its loss."""
        seeds = np.random.SeedSequence([self.config.seed, iteration, self.accelerator.process_index])
        torch.manual_seed(int(seeds.generate_state(1)[0]))
        for group in optimizer.param_groups:
            group["lr"] = self.config.learning_rate(iteration)
        with self.accelerator.autocast():
            pictures = (each.to(self.accelerator.device, non_blocking=True) for each in batch)
            loss = self.trainee.loss(model, *pictures)
        self.accelerator.backward(loss)
        self.accelerator.clip_grad_norm_(model.parameters(), self.config.clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss.detach()

    def _log(self, losses: list[Tensor], done: int) -> float:
        """Log the mean of the losses since the last call and return it; raise ConfigError if it is not finite."""
        mean = torch.stack(losses).mean().item()
        losses.clear()
        if not math.isfinite(mean):
            state = latest_state(self.folder)
            left = f"the state {state} is the last good one" if state else "no state was saved"
            raise ConfigError(f"the loss became {mean} at iteration {done}; train with a lower --lr ({left})")
        self.accelerator.log({"loss": mean, "learning_rate": self.config.learning_rate(done - 1)}, step=done)
        return mean

    def _save(self, done: int, averaged: nn.Module, preview: Sequence[Tensor]) -> None:
        """Write the state, remove the previous one, and export the averaged weights."""
        self.accelerator.wait_for_everyone()
        if self.main:
            state = self.folder / f"state-{done:08d}"
            with atomic_folder(state) as temporary:
                self.accelerator.save_state(str(temporary))
            for other in _states(self.folder):
                if other != state:
                    remove_folder(other)
            self._export(averaged)
            was_training = averaged.training
            columns = torch.stack(list(self.trainee.preview(averaged.eval(), *preview)))
            grid = columns.permute(2, 1, 3, 0, 4).reshape(3, -1, len(columns) * columns.shape[4])
            figures = self.trainee.validate(averaged) if self.trainee.validate else {}
            averaged.train(was_training)
            self.accelerator.log(dict(figures), step=done)
            self.accelerator.get_tracker("tensorboard").log_images(
                {"samples": to_uint8(grid)[None]}, step=done, dataformats="NHWC"
            )
        self.accelerator.wait_for_everyone()

    def _export(self, averaged: nn.Module) -> None:
        if self.main:
            self.trainee.export(averaged, self.folder / "checkpoint")


def fit(config: TrainingConfig, folder: str | Path, resume: bool, make: Callable[[bool], Trainee], kind: str) -> Path:
    """Train a network; averaged weights go to `folder/checkpoint`, the training state to `folder/state-*`.

    Args:
        config: the settings.
        folder: the run's folder.
        resume: whether to continue from the newest state in the folder (or start, if there is none yet).
        make: function that returns the trainee; its argument is True if the initial weights are needed.
        kind: name of the training, for the progress bar.

    Returns:
        The folder of the trained checkpoint.

    Raises:
        ConfigError: a setting is out of range, the folder holds a run and `resume` is not set, or another process
            trains in it.
        ImageError: the photographs cannot be used.
    """
    training = Training(config, Path(folder), resume, make, kind)
    with lock_run(training.folder, training.main):
        training.run()
    return training.folder / "checkpoint"
