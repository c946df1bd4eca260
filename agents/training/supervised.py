"""The simplest agent: it predicts what each number of even steps would give, and takes the best for its price.

No reinforcement is needed for that: a table of outcomes is computed for crops of photographs, and a small net learns
it. The price of a forward comes in after the net, so one agent draws the whole curve of quality against forwards.
"""

import itertools
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import mse_loss

from agents.agent import Agent, AgentConfig
from agents.algorithms import SUPERVISED
from agents.networks.schedule_predictor import SchedulePredictor
from agents.training.even_outcomes import EVEN_NUMBERS, Outcomes, check_numbers, crops_of, gather
from ddpm.pictures.images import find_images
from ddpm.training.configs import MOST_CHANNELS, check_least
from ddpm.training.runs import check_new_run, lock_run, pictures_digest, start_run
from ddpm.util.checks import check_positive, check_types, shown
from ddpm.util.errors import ConfigError
from ddpm.util.files import read_json
from ddpm.util.progress import progress
from skipdiff_env.config import TaskConfig
from skipdiff_env.pictures import Pictures, Rgb
from skipdiff_env.task import Task

TABLE = "outcomes.npz"
# Each net is trained without one part of so many.
FOLDS = 5


@dataclass(frozen=True)
class SupervisedConfig:
    """Settings of a training; `config.json` in the run's folder.

    Attributes:
        env: arguments of `skipdiff_env.env.SkipDiffEnv`: pictures (their crops are taken), plan, metric, `nfe_penalty`
            as the range of prices that the agent is offered for.
        minutes: for the table; training the net takes a minute or two more.
        crops: most crops that are tabulated; None: as many as there is time for.
        noises: noises of each crop.
        forwards: numbers of even steps that are tabulated, and that the agent chooses among.
        epochs: passes over the table at most; each net keeps the weights of its best one.
        learning_rate: of Adam, falling to 0 by a cosine.
        weight_decay: of the weights.
        members: nets whose predictions are averaged.
        channels: of their convolutions.
        seed: seed of everything random.
        device: where to compute.
    """

    env: Mapping[str, Any] = field(default_factory=dict)
    minutes: float | None = 15.0
    crops: int | None = None
    noises: int = 1
    forwards: Sequence[int] = EVEN_NUMBERS
    epochs: int = 40
    learning_rate: float = 2e-3
    weight_decay: float = 1e-2
    members: int = 3
    channels: Sequence[int] = (24, 48, 64)
    seed: int = 0
    device: str = "cpu"

    def __post_init__(self) -> None:
        check_types(self)
        check_least(self, 1, "noises", "epochs", "members", *(() if self.crops is None else ("crops",)))
        check_least(self, 0, "seed", "weight_decay")
        check_positive(learning_rate=self.learning_rate)
        if not self.channels or min(self.channels) < 1 or max(self.channels) > MOST_CHANNELS:
            raise ConfigError(f"channels must be whole numbers in 1 … {MOST_CHANNELS}, got {shown(self.channels)}")
        if self.minutes is None and self.crops is None:
            raise ConfigError("give minutes or crops, or the table never ends")
        if self.minutes is not None and not self.minutes > 0:
            raise ConfigError(f"minutes must be positive, got {self.minutes}")


def fit(
    predictor: SchedulePredictor,
    conditions: Tensor,
    values: NDArray[np.float64],
    photographs: Sequence[int],
    config: SupervisedConfig,
) -> list[float]:
    """Trains the nets of a predictor on a table.

    Only differences between the schedules of a picture matter for the choice; its level, which varies far more, is
    taken off. Each net leaves out a fifth of the photographs, every net another one, and keeps the weights of the
    epoch that explained these best; the predictions of several are averaged.

    Args:
        predictor: changed in place, on the device where it is.
        conditions: (pictures, 3, H, W).
        values: the metric, (pictures, noises, len(forwards)); pictures where it failed are left out.
        photographs: number of the photograph that each picture is a crop of.
        config: epochs, learning rate, weight decay and seed.

    Returns:
        For each net the part of the variance that it leaves unexplained on the pictures that it was not trained on.
    """
    curves = torch.tensor(values.mean(axis=1), dtype=torch.float32)
    good = curves.isfinite().all(dim=1)
    conditions, folds = conditions[good], torch.tensor(photographs)[good] % FOLDS
    curves = (curves[good] - curves[good].mean(dim=1, keepdim=True)).to(predictor.device)
    predictor.mean.copy_(curves.mean(dim=0))
    predictor.scale.copy_((curves - curves.mean(dim=0)).square().mean().sqrt().clamp(min=1e-8))
    targets = (curves - predictor.mean) / predictor.scale
    return [
        _fit_member(member, conditions, targets, folds, place, config)
        for place, member in enumerate(progress(predictor.members, desc="nets", unit="net"))
    ]


def _fit_member(
    member: nn.Module, conditions: Tensor, targets: Tensor, folds: Tensor, place: int, config: SupervisedConfig
) -> float:
    """Trains one of the nets; see `fit`."""
    held = folds == place % FOLDS
    rows, held_rows = (~held).nonzero()[:, 0], held.nonzero()[:, 0]
    if not len(rows) or not len(held_rows):
        raise ConfigError(
            f"a table of {len(targets)} pictures is too small to learn from; give it more minutes or crops"
        )
    batch = min(32, len(rows))
    per_epoch = len(rows) // batch
    generator = torch.Generator().manual_seed(config.seed + place)
    optimizer = torch.optim.AdamW(
        member.parameters(), config.learning_rate, weight_decay=config.weight_decay, betas=(0.9, 0.99)
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.epochs * per_epoch)
    best, weights = float("inf"), member.state_dict()
    for _ in range(config.epochs):
        for chunk in rows[torch.randperm(len(rows), generator=generator)][: per_epoch * batch].split(batch):
            turned = _turned(conditions[chunk].to(targets.device), int(torch.randint(8, (), generator=generator)))
            loss = mse_loss(member(turned), targets[chunk])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
        with torch.no_grad():
            held_out = [member(conditions[chunk].to(targets.device)) for chunk in held_rows.split(64)]
            left = float(mse_loss(torch.cat(held_out), targets[held_rows]))
        if not math.isfinite(left):
            raise ConfigError(f"the loss became {left}; train with a lower learning_rate, got {config.learning_rate}")
        if left < best:
            best, weights = left, {name: value.clone() for name, value in member.state_dict().items()}
    member.load_state_dict(weights)
    return best


def _turned(pictures: Tensor, way: int) -> Tensor:
    """One of the eight turns and mirror images of pictures (B, 3, H, W)."""
    if way & 4:
        pictures = pictures.flip(3)
    return torch.rot90(pictures, way & 3, dims=(2, 3))


# What may change when a net is trained on the table of an earlier run.
RESUMABLE = frozenset({"epochs", "learning_rate", "weight_decay", "members", "channels", "device"})


def resumed_supervised(folder: Path, changes: Mapping[str, Any]) -> SupervisedConfig:
    """The configuration of the run in `folder` with some settings changed.

    Raises:
        ConfigError: there is no run, or a setting may not change.
    """
    if not (folder / "config.json").is_file():
        raise ConfigError(f"nothing to resume in {folder}: it holds no config.json")
    fixed = sorted(changes.keys() - RESUMABLE)
    if fixed:
        raise ConfigError(
            f"{', '.join(fixed)} cannot change when a run goes on; start a new run, or change only "
            f"{', '.join(sorted(RESUMABLE))}"
        )
    try:
        return SupervisedConfig(**{**read_json(folder / "config.json"), **changes})
    except TypeError as error:
        raise ConfigError(f"{folder}/config.json does not hold the settings of a training ({error})") from None


def train_supervised(config: SupervisedConfig, folder: Path, resume: bool = False) -> Path:
    """Tabulates crops of photographs, and trains a `SchedulePredictor` on the table.

    Args:
        config: settings.
        folder: of the run; the agent goes to `best`, the table to `outcomes.npz`.
        resume: train on the table that is there; without one, begin anew.

    Returns:
        Folder of the agent.

    Raises:
        ConfigError: the folder holds a run already, a setting is wrong, the plan is not one of jumps, or no range of
            prices is given.
    """
    check_new_run(folder, resume)
    env = TaskConfig.of({"batch_size": 16, "cache_mb": 256, **config.env, "device": config.device})
    prices = env.price_range
    if prices is None:
        raise ConfigError(
            f"a supervised agent needs a range of prices, got {env.nfe_penalty}; give nfe_penalty as lowest,highest, "
            "such as 0.0005,0.008"
        )
    _, first = next(_crops(env), (0, None))
    if first is None:
        raise ConfigError("no photograph has a crop of image_size; lower it or name other photographs")
    task = Task(replace(env, split=None, images=first))
    if not task.metric.lower_better:
        raise ConfigError(
            f"a supervised agent needs a metric that is lower for better pictures, got {task.metric.name}"
        )
    torch.manual_seed(config.seed)
    check_numbers("forwards", config.forwards, task.plan.first)
    predictor = SchedulePredictor(config.forwards, task.config.image_size, config.channels, members=config.members).to(
        config.device
    )
    began = time.monotonic()

    def enough(done: int) -> bool:
        late = config.minutes is not None and time.monotonic() - began > 60 * config.minutes
        return late or (config.crops is not None and done >= config.crops)

    with lock_run(folder):
        given = [env.images] if isinstance(env.images, str | Path) else env.images or []
        start_run(folder, asdict(config), pictures_digest(find_images(given)), (folder / TABLE).exists())
        if not (folder / TABLE).exists():
            gather(task, _crops(env), config.noises, config.forwards, enough, config.seed)[1].save(folder / TABLE)
        values = _values(folder / TABLE, task, config)
        found = list(itertools.islice(_crops(env), len(values)))
        if len(found) < len(values):
            raise ConfigError(
                f"{folder / TABLE} was made from other photographs; remove it, and --resume makes it anew"
            )
        photographs, pictures = zip(*found, strict=True)
        conditions = torch.stack([task.condition(picture).cpu() for picture in pictures])
        losses = fit(predictor, conditions, values, photographs, config)
        Agent(_agent_config(config, task, prices, losses, len(found)), predictor).save(folder / "best")
    return folder / "best"


def _values(path: Path, task: Task, config: SupervisedConfig) -> NDArray[np.float64]:
    """What the metric comes to in the table of a run, (pictures, noises, schedules).

    Raises:
        ConfigError: the table is damaged, or one of other settings.
    """
    table = Outcomes.load(path)
    if task.metric.name not in table.metrics or table.forwards != tuple(config.forwards):
        raise ConfigError(f"{path} holds a table of other forwards or metrics; remove it, and --resume makes it anew")
    return table.metrics[task.metric.name]


def _agent_config(
    config: SupervisedConfig,
    task: Task,
    prices: tuple[float, float],
    losses: list[float],
    crops: int,
) -> AgentConfig:
    """The configuration of the run's agent."""
    training = {
        "env": {k: v for k, v in config.env.items() if k != "images"}
        | {"checkpoint": str(config.env.get("checkpoint"))},
        "crops": crops, "noises": config.noises, "seed": config.seed, "unexplained": losses,
    }  # fmt: skip
    space = task.observation_space
    latent = space["latent"] if isinstance(space, spaces.Dict) else space
    assert isinstance(latent, spaces.Box)
    size = task.config.image_size
    kwargs = {
        "forwards": list(config.forwards), "crop_size": size, "channels": list(config.channels),
        "members": config.members,
    }  # fmt: skip
    return AgentConfig(
        SUPERVISED, task.decisions, size, float(latent.high.max()), task.plan, kwargs, training, "dict", prices
    )


def _crops(env: TaskConfig) -> Iterator[tuple[int, Rgb]]:
    """Crops of the photographs named, or of scikit-image's, each with the number of its photograph.

    Raises:
        ConfigError: `images` names no files.
    """
    if env.images is None:
        return enumerate(Pictures(None, env.image_size, env.split))
    given = [env.images] if isinstance(env.images, str | Path) else env.images
    if not isinstance(given, list | tuple) or not all(isinstance(each, str | Path) for each in given):
        raise ConfigError(
            "a supervised agent needs images that are a folder, a file, a pattern, or several of them, got "
            f"{shown(env.images)}"
        )
    return crops_of(given, env.image_size)
