"""What fixed schedules of jumps give for many pictures: the table that an agent is compared with, or learns from."""

import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ddpm.pictures.images import find_images, read_picture
from ddpm.schedule import even_levels
from ddpm.util.checks import is_whole
from ddpm.util.errors import ConfigError
from ddpm.util.files import atomic_path
from ddpm.util.progress import progress
from skipdiff_env.pictures import Rgb
from skipdiff_env.task import Task

# Numbers of even steps to choose among; a choice among more gains hardly anything, and takes longer to learn.
EVEN_NUMBERS = (2, 3, 5, 7, 10)


def check_numbers(name: str, numbers: Sequence[int], first: int) -> tuple[int, ...]:
    """The numbers of even steps that an agent is to choose among.

    Args:
        name: of the argument, for the message.
        numbers: rising, each 1 … `first`.
        first: the plan's first step.

    Raises:
        ConfigError: they are out of range, do not rise, or there are none.
    """
    chosen = list(numbers)
    whole = all(is_whole(number) for number in chosen)
    if not chosen or not whole or sorted(set(chosen)) != chosen or not 1 <= chosen[0] <= chosen[-1] <= first:
        raise ConfigError(f"{name} must be rising whole numbers in 1 … {first}, got {chosen}")
    return tuple(int(number) for number in chosen)


@dataclass(frozen=True)
class Outcomes:
    """What schedules of even steps come to, for every picture under every noise.

    Attributes:
        forwards: numbers of even steps, rising.
        metrics: name → float64, (pictures, noise seeds, schedules); NaN where the metric failed.
    """

    forwards: tuple[int, ...]
    metrics: dict[str, NDArray[np.float64]]

    def rewards(self, metric: str, price: float) -> NDArray[np.float64]:
        """-M less the price of the forwards, of the same shape; M is a metric that is lower for better pictures."""
        return -self.metrics[metric] - price * np.array(self.forwards)

    def best_of_others(self, metric: str, price: float) -> NDArray[np.intp]:
        """For each picture and noise, the schedule that is best under the other noises, so that luck is excluded.

        Raises:
            ConfigError: there is one noise only.
        """
        rewards = self.rewards(metric, price)
        if rewards.shape[1] < 2:
            raise ConfigError("the choice by other noises needs at least 2 noise seeds")
        return (rewards.sum(axis=1, keepdims=True) - rewards).argmax(axis=2)

    def at(self, choices: NDArray[np.integer]) -> dict[str, float]:
        """Mean metrics and `nfe` where each picture and noise gets the schedule of that place."""
        means = {
            name: float(np.nanmean(np.take_along_axis(values, choices[..., None], 2)))
            for name, values in self.metrics.items()
        }
        return means | {"nfe": float(np.array(self.forwards)[choices].mean())}

    @classmethod
    def join(cls, parts: "Sequence[Outcomes]") -> "Outcomes":
        """The table of the pictures of several."""
        names = parts[0].metrics
        return cls(parts[0].forwards, {name: np.concatenate([part.metrics[name] for part in parts]) for name in names})

    def save(self, path: Path) -> None:
        """Writes an .npz file."""
        with atomic_path(path) as temporary, temporary.open("wb") as file:
            np.savez(file, forwards=np.array(self.forwards), **self.metrics)  # type: ignore[arg-type]

    @classmethod
    def load(cls, path: Path) -> "Outcomes":
        """Reads what `save` wrote.

        Raises:
            ConfigError: the file is damaged.
        """
        try:
            with np.load(path) as file:
                metrics = {name: file[name] for name in file.files if name != "forwards"}
                table = cls(tuple(int(n) for n in file["forwards"]), metrics)
        except Exception as error:  # of damaged archives, NumPy raises nearly anything
            raise ConfigError(f"{path} is no table of outcomes ({' '.join(str(error).split())})") from None
        if any(values.ndim != 3 or values.shape[2] != len(table.forwards) for values in metrics.values()):
            raise ConfigError(f"{path} is no table of outcomes: its arrays do not fit together")
        if any(not np.issubdtype(values.dtype, np.floating) or not values.size for values in metrics.values()):
            raise ConfigError(f"{path} is no table of outcomes: it holds no numbers")
        return table


def even_outcomes(
    task: Task, images: Sequence[int | Rgb], noise_seeds: Sequence[int], forwards: Sequence[int]
) -> Outcomes:
    """Runs schedules of even steps for every picture under every noise.

    Args:
        task: process and metrics; its plan is one of jumps.
        images: indices of the task's pictures, or uint8 arrays (H, W, 3).
        noise_seeds: noise seeds, each of which every picture gets.
        forwards: the numbers of even steps, each in 1 … the plan's first step.

    Raises:
        ConfigError: the plan is not one of jumps, or a number is out of range.
    """
    found = task.schedule_outcomes(images, noise_seeds, [even_levels(task.plan.first, n) for n in forwards])
    return Outcomes(tuple(forwards), found.metrics)


def crops_of(images: Sequence[str | Path], size: int, seed: int = 0) -> Iterator[tuple[int, Rgb]]:
    """Crops that tile photographs: one of each photograph, then a second one of each, and so on.

    Each comes as the number of its photograph and its pixels, uint8 (size, size, 3).

    After the crops that have nothing in common come those between them, half a crop further down, right, or both.

    Args:
        images: folders, files or patterns.
        size: side in pixels; photographs that are smaller are left out.
        seed: of the order of photographs and of each one's crops.
    """
    rng = np.random.default_rng(seed)
    files = [Path(path) for path in find_images(images)]
    rng.shuffle(files)
    orders: dict[Path, list[tuple[int, int]]] = {}
    place = 0
    while True:
        found = False
        for number, path in enumerate(files):
            if place and place >= len(orders[path]):
                continue
            rgb = read_picture(path).rgb
            if path not in orders:
                step = max(size // 2, 1)
                rows, columns = (range(side % size // 2, side - size + 1, step) for side in rgb.shape[:2])
                tiles = [(y, x) for y in rows[::2] for x in columns[::2]]
                between = sorted({(y, x) for y in rows for x in columns} - set(tiles))
                rng.shuffle(tiles)
                rng.shuffle(between)
                orders[path] = tiles + between
            if place < len(orders[path]):
                y, x = orders[path][place]
                found = True
                yield number, np.ascontiguousarray(rgb[y : y + size, x : x + size])
        if not found:
            return
        place += 1


def gather(
    task: Task,
    crops: Iterator[tuple[int, Rgb]],
    noises: int,
    forwards: Sequence[int],
    enough: Callable[[int], bool],
    seed: int = 0,
) -> tuple[list[Rgb], Outcomes]:
    """Tabulates crop after crop, each under its own noises, until it is enough or the crops are used up.

    Args:
        task: process and metrics.
        crops: the number of a photograph and a picture of it, one after the other, as `crops_of` gives them.
        noises: noises of each picture.
        forwards: the schedules.
        enough: told the number of pictures that are done, says whether to stop; asked after each batch.
        seed: of the noises; those of evaluations are below 2**20, these are above.

    Returns:
        The pictures and their outcomes.
    """
    rng = np.random.default_rng(seed)
    pictures: list[Rgb] = []
    parts: list[Outcomes] = []
    group = max(1, task.config.batch_size // noises)
    with progress(desc="outcomes", unit="crop") as bar:
        while True:
            batch = [rgb for _, rgb in itertools.islice(crops, group)]
            if batch:
                seeds = [int(each) for each in rng.integers(2**20, 2**31, noises)]
                parts.append(even_outcomes(task, batch, seeds, forwards))
                pictures += batch
                bar.update(len(batch))
            if len(batch) < group or enough(len(pictures)):
                break
    if not parts:
        raise ConfigError("no photograph has a crop of that size; lower image_size or name other photographs")
    return pictures, Outcomes.join(parts)
