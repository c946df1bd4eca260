"""What there is to learn: how much better pictures fare with schedules of their own, and how much of that is luck.

python -m benchmarks.headroom --images TEST --train-images TRAIN                     jumps, -LPIPS
python -m benchmarks.headroom --images TEST --train-images TRAIN --skip-mode restart --metric niqe
python -m benchmarks.headroom --degradation photo:0 --degradation photo:0.5 --degradation photo:1 --plot FILE

"Under the other noises" means: each picture and noise gets the number of steps (or the start) that is best on average
under the picture's other noises, so that luck with a noise counts for nothing. DISTS and LPIPS-VGG choose nothing; they
judge. With several degradations, the last table says whether the best number of steps follows them.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click
import numpy as np
from numpy.typing import NDArray

from agents.cli.command import Command
from agents.cli.options import DegradationName
from ddpm.pictures.degradation import picture_key
from ddpm.pictures.images import to_tensor
from ddpm.schedule import even_levels
from ddpm.util.files import write_json
from ddpm.util.progress import progress
from skipdiff_env.config import TaskConfig
from skipdiff_env.judges import JUDGES, judge_file
from skipdiff_env.rules import qualities
from skipdiff_env.task import Task

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Levels = tuple[int, ...]


@dataclass
class Outcomes:
    """What schedules give for pictures under noises, each computed once.

    Attributes:
        task: pictures, net, metrics.
        pictures: places of those that are taken.
        noises: noises of each.
        reward: as in the environment.
        metrics: schedule → metric → (pictures, noises).
    """

    task: Task
    pictures: Sequence[int]
    noises: int
    reward: str
    metrics: dict[Levels, dict[str, NDArray[np.float64]]] = field(default_factory=dict)

    def compute(self, schedules: Sequence[Levels]) -> None:
        """Computes what is missing."""
        missing = [levels for levels in dict.fromkeys(schedules) if levels not in self.metrics]
        if not missing:
            return
        seeds, parts = range(self.noises), []
        for i in progress(self.pictures, desc=f"{len(missing)} schedules", unit="picture", leave=False):
            if self.task.plan.skip_mode == "restart":
                parts.append(self.task.schedule_outcomes([i], seeds))
            else:
                parts.append(self.task.schedule_outcomes([i], seeds, missing))
        for place, levels in enumerate(missing):
            self.metrics[levels] = {
                name: np.concatenate([part.metrics[name][..., place] for part in parts]) for name in self.task.metrics
            }

    def worth(self, levels: Levels, price: float) -> NDArray[np.float64]:
        """Reward of a schedule, (pictures, noises)."""
        values = self.metrics[levels][self.task.metric.name]
        return qualities(values, self.task.metric.lower_better, self.reward) - price * len(levels)


def neighbours(levels: Levels) -> list[Levels]:
    """Schedules with one level moved by one, left out, or added."""
    first, inner = levels[0], set(levels[1:])
    free = set(range(1, first)) - inner
    moved = [(inner - {level}) | {to} for level in inner for to in (level - 1, level + 1) if to in free]
    changed = [*moved, *(inner - {level} for level in inner), *(inner | {level} for level in free)]
    return [(first, *sorted(each, reverse=True)) for each in changed]


def local_search(outcomes: Outcomes, start: Levels, price: float, minutes: float) -> Levels:
    """The schedule to which steps to the first better neighbour lead, or the best so far where time is up."""
    best, deadline = start, time.monotonic() + 60 * minutes
    improved = True
    while improved:
        improved = False
        for near in neighbours(best):
            if time.monotonic() > deadline:
                return best
            outcomes.compute([near])
            if outcomes.worth(near, price).mean() > outcomes.worth(best, price).mean():
                best, improved = near, True
                break
    return best


def choose(outcomes: Outcomes, schedules: Sequence[Levels], price: float, others: bool) -> NDArray[np.intp]:
    """For each picture and noise the best schedule, under this noise or under the picture's other noises.

    (pictures, noises).
    """
    worth = np.stack([outcomes.worth(levels, price) for levels in schedules], axis=-1)
    return (worth.sum(axis=1, keepdims=True) - worth if others else worth).argmax(axis=-1)


def means(outcomes: Outcomes, schedules: Sequence[Levels], chosen: NDArray[np.intp]) -> dict[str, float]:
    """The means of what was chosen, (pictures, noises) of places among the schedules: metrics and "nfe"."""
    pictures, noises = np.indices(chosen.shape)
    found = {}
    for metric in outcomes.task.metrics:
        values = np.stack([outcomes.metrics[levels][metric] for levels in schedules])
        found[metric] = float(np.nanmean(values[chosen, pictures, noises]))
    return found | {"nfe": float(np.mean([len(schedules[i]) for i in chosen.ravel().tolist()]))}


def line(name: str, values: dict[str, float]) -> str:
    """A line of the table."""
    digits = {"psnr": 2, "niqe": 2, "nfe": 1}
    return f"| {' | '.join([name, *(f'{value:.{digits.get(each, 4)}f}' for each, value in values.items())])} |"


@dataclass(frozen=True)
class Choice:
    """What a price of forwards leads to: numbers of steps, or starts.

    Attributes:
        price: of a forward.
        fixed: the best one on the other pictures.
        fixed_here: the best one on these.
        own: for each picture and noise the one that is best under the picture's other noises.
        gains: mean reward of `own` and of the oracle over that of `fixed`, then both over that of `fixed_here`.
    """

    price: float
    fixed: int
    fixed_here: int
    own: list[list[int]]
    gains: tuple[float, float, float, float]


class Headroom:
    """Prints what fixed schedules, a choice for each picture, and the oracle give.

    Args:
        test: the pictures that are reported.
        train: others, on which what is fixed is chosen.
        prices: of a forward.
        search_minutes: time for the local search at each price; 0: none.
    """

    def __init__(self, test: Outcomes, train: Outcomes, prices: Sequence[float], search_minutes: float) -> None:
        self.test, self.train, self.prices, self.search_minutes = test, train, prices, search_minutes
        first = test.task.plan.first
        self.jump = test.task.plan.skip_mode == "jump"
        self.thing = "n" if self.jump else "start"
        self.ways = [even_levels(first, n) if self.jump else tuple(range(n, 0, -1)) for n in range(1, first + 1)]
        self.shape = len(test.pictures), test.noises
        self.rows: list[dict[str, Any]] = []

    def run(self) -> dict[str, Any]:
        """Computes and prints; gives the numbers as plain data."""
        test, task = self.test, self.test.task
        for outcomes in (test, self.train):
            outcomes.compute(self.ways)
        click.echo(
            f"{self.shape[0]} pictures of {task.config.image_size} px, {test.noises} noises; what is fixed was chosen "
            f"on {len(self.train.pictures)} others; {task.plan.describe()}; degradation {task.degradation}\n"
        )
        names = [*task.metrics, "NFE"]
        click.echo(f"| | {' | '.join(names)} |\n{'|---' * (len(names) + 1)}|")
        for place in range(len(self.ways)):
            self._show(f"fixed {self.thing} = {place + 1}", self.ways, np.full(self.shape, place))
        choices = [self._choose(price) for price in self.prices]
        self._show_gains(choices)
        return {
            "degradation": str(task.degradation), "checkpoint": str(task.config.checkpoint),
            "plan": task.plan.settings(), "image_size": task.config.image_size, "metric": task.metric.name,
            "pictures": [self._picture(i) for i in test.pictures], "rows": self.rows,
            "choices": [vars(choice) for choice in choices],
        }  # fmt: skip

    def _picture(self, i: int) -> dict[str, Any]:
        """Name of a picture, and the strengths of what made its input."""
        task = self.test.task
        recipe = task.degradation.recipe(picture_key(to_tensor(task.pictures[i])))
        return {"name": task.pictures.names[i], "strengths": dict(recipe.strengths)}

    def _show(self, name: str, schedules: Sequence[Levels], chosen: NDArray[np.intp]) -> None:
        values = means(self.test, schedules, chosen)
        self.rows.append({"name": name, **values})
        click.echo(line(name, values))

    def _choose(self, price: float) -> Choice:
        """Prints and gives what is chosen at a price."""
        test, train, ways, thing = self.test, self.train, self.ways, self.thing
        fixed = int(np.argmax([train.worth(levels, price).mean() for levels in ways]))
        self._show(f"price {price:g}: best fixed {thing} = {fixed + 1}", ways, np.full(self.shape, fixed))
        if self.jump and self.search_minutes > 0:
            best = local_search(train, ways[fixed], price, self.search_minutes)
            test.compute([best])
            name = f"price {price:g}: best fixed schedule {','.join(map(str, best))}"
            self._show(name, [best], np.zeros(self.shape, np.intp))
        own, oracle = choose(test, ways, price, others=True), choose(test, ways, price, others=False)
        self._show(f"price {price:g}: {thing} per picture, under the other noises", ways, own)
        self._show(f"price {price:g}: oracle", ways, oracle)
        worth = np.stack([test.worth(levels, price) for levels in ways])
        reached, most = (float(worth[(each, *np.indices(self.shape))].mean()) for each in (own, oracle))
        fixed_means = worth.mean(axis=(1, 2))
        base, strict = float(fixed_means[fixed]), float(fixed_means.max())
        gains = reached - base, most - base, reached - strict, most - strict
        return Choice(price, fixed + 1, int(fixed_means.argmax()) + 1, (own + 1).tolist(), gains)

    def _show_gains(self, choices: Sequence[Choice]) -> None:
        thing = self.thing
        click.echo(
            f"\nGains in reward over the best fixed {thing}, as it was chosen on the other pictures, and as it is best "
            "on these:\n"
        )
        own = f"{thing} per picture"
        click.echo(f"| price | {own} | oracle | {own}, over the best on these | oracle | not luck |")
        click.echo("|---" * 6 + "|")
        for choice in choices:
            gain, most, strict, strict_most = choice.gains
            share = f"{strict / strict_most:.0%}" if strict_most > 0 else "-"
            click.echo(
                f"| {choice.price:g} | {gain:+.5f} | {most:+.5f} | {strict:+.5f} | {strict_most:+.5f} | {share} |"
            )


def comparison(found: Sequence[dict[str, Any]], thing: str) -> str:
    """A table of what is best under each degradation at each price."""
    prices = [choice["price"] for choice in found[0]["choices"]]
    lines = [
        f"Best fixed {thing} on the other pictures / on these / mean {thing} per picture under the other noises:\n",
        f"| degradation | {' | '.join(f'price {price:g}' for price in prices)} |",
        "|---" * (len(prices) + 1) + "|",
    ]
    for each in found:
        cells = [f"{c['fixed']} / {c['fixed_here']} / {np.mean(c['own']):.1f}" for c in each["choices"]]
        lines.append(f"| {each['degradation']} | {' | '.join(cells)} |")
    return "\n".join(lines)


def plot(found: Sequence[Mapping[str, Any]]) -> "Figure":
    """The metric against the forwards of fixed schedules and of the choices for each picture, for each degradation."""
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(found), figsize=(4.2 * len(found), 3.8), squeeze=False)
    for axis, each in zip(axes[0], found, strict=True):
        metric = each["metric"]
        for kind, heading, marker in (
            ("fixed", "the same for all pictures", "o"),
            ("under the other noises", "for each picture, under the other noises", "s"),
        ):
            rows = [row for row in each["rows"] if row["name"].startswith(kind) or row["name"].endswith(kind)]
            rows.sort(key=lambda row: row["nfe"])
            axis.plot([row["nfe"] for row in rows], [row[metric] for row in rows], marker=marker, ms=4, label=heading)
        axis.set(title=each["degradation"], xlabel="UNet forwards", ylabel=metric)
        axis.grid(alpha=0.3)
    axes[0, 0].legend(fontsize=7)
    figure.tight_layout()
    return figure


@click.command(cls=Command, context_settings={"show_default": True})
@click.option("--images", multiple=True, help="Photographs.  [default: scikit-image's of the test split]")
@click.option(
    "--train-images",
    multiple=True,
    help="Others, to choose what is fixed.  [default: scikit-image's of the train split]",
)
@click.option("--checkpoint", default="natural-x4")
@click.option(
    "--degradation",
    "degradations",
    multiple=True,
    default=["bicubic"],
    type=DegradationName(),
    help="How the low-resolution pictures are made, as in photo:0.5; may be repeated.",
)
@click.option("--skip-mode", type=click.Choice(["jump", "restart"]), default="jump")
@click.option("--steps", help="S,N.  [default: 1,20 for jump, the checkpoint's for restart]")
@click.option("--fine-sampler", help="[default: ddim for jump, ddpm for restart]")
@click.option("--metric", default="lpips", help="The reward's: -M for jump, 1/M for restart.")
@click.option("--image-size", default=64)
@click.option("--noise-seeds", default=3, type=click.IntRange(min=2), help="Noises of each picture.")
@click.option("--train-noise-seeds", default=2, type=click.IntRange(min=1))
@click.option("--prices", default="0,0.0005,0.001,0.002,0.004,0.008", help="Of a forward, in units of the reward.")
@click.option("--search-minutes", default=5.0, help="Time for the local search at each price; 0: none.")
@click.option("--limit", type=click.IntRange(min=1), help="Take only so many of either pictures, evenly spread.")
@click.option("--json", "json_file", type=click.Path(path_type=Path), help="File for the numbers.")
@click.option("--plot", "plot_file", type=click.Path(path_type=Path), help="Picture of the numbers.")
@click.option("--cache-dir", help="Folder in which latents and metrics are kept.")
@click.option("--device", default="cpu")
def main(
    images: tuple[str, ...],
    train_images: tuple[str, ...],
    degradations: Sequence[str],
    skip_mode: str,
    steps: str | None,
    fine_sampler: str | None,
    metric: str,
    noise_seeds: int,
    train_noise_seeds: int,
    prices: str,
    search_minutes: float,
    limit: int | None,
    json_file: Path | None,
    plot_file: Path | None,
    **options: Any,
) -> None:
    """Prints what fixed schedules, a choice for each picture, and the oracle give."""
    jump = skip_mode == "jump"
    judges = [name for name in JUDGES if judge_file().is_file()]
    reported = [name for name in ("lpips", "psnr") if name != metric]
    options |= {
        "steps": tuple(map(int, steps.split(","))) if steps else ((1, 20) if jump else None), "skip_mode": skip_mode,
        "fine_sampler": fine_sampler or ("ddim" if jump else "ddpm"), "metric": metric, "cache_mb": 2048,
    }  # fmt: skip

    def of(paths: tuple[str, ...], split: str, noises: int, report: list[str], degradation: str) -> Outcomes:
        task = Task(
            TaskConfig(
                images=list(paths) or None, split=None if paths else split, report_metrics=report,
                degradation=degradation, **options,
            )
        )  # fmt: skip
        count = min(limit or len(task.pictures), len(task.pictures))
        pictures = [i * len(task.pictures) // count for i in range(count)]
        return Outcomes(task, pictures, noises, "negative" if jump else "inverse")

    found = []
    for degradation in degradations:
        test = of(images, "test", noise_seeds, reported + judges, degradation)
        train = of(train_images, "train", train_noise_seeds, [], degradation)
        found.append(Headroom(test, train, [float(price) for price in prices.split(",")], search_minutes).run())
        if json_file is not None:
            write_json(json_file, found)
        click.echo()
    if plot_file is not None:
        from agents.plots import save

        save(plot(found), plot_file)
    if len(found) > 1:
        click.echo(comparison(found, "n" if jump else "start"))


if __name__ == "__main__":
    main()
