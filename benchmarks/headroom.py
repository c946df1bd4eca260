"""What there is to learn: how much better pictures fare with schedules of their own, and how much of that is luck.

python -m benchmarks.headroom --images TEST --train-images TRAIN                     jumps, -LPIPS
python -m benchmarks.headroom --images TEST --train-images TRAIN --skip-mode restart --metric niqe

"Under the other noises" means: each picture and noise gets the number of steps (or the start) that is best on average
under the picture's other noises, so that luck with a noise counts for nothing. DISTS and LPIPS-VGG choose nothing; they
judge.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field

import click
import numpy as np
from numpy.typing import NDArray

from ddpm.progress import progress
from ddpm.schedule import even_levels
from skipdiff_env.config import TaskConfig
from skipdiff_env.judges import JUDGES, judge_file
from skipdiff_env.rules import qualities
from skipdiff_env.task import Task

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
                parts.append(self.task.start_outcomes([i], seeds))
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


def row(outcomes: Outcomes, name: str, schedules: Sequence[Levels], chosen: NDArray[np.intp]) -> list[str]:
    """A line of the table: the means of what was chosen, (pictures, noises) of places among the schedules."""
    pictures, noises = np.indices(chosen.shape)
    cells = []
    for metric in outcomes.task.metrics:
        values = np.stack([outcomes.metrics[levels][metric] for levels in schedules])
        mean = float(np.nanmean(values[chosen, pictures, noises]))
        cells.append(f"{mean:.2f}" if metric in ("psnr", "niqe") else f"{mean:.4f}")
    return [name, *cells, f"{np.mean([len(schedules[i]) for i in chosen.ravel().tolist()]):.1f}"]


@click.command(context_settings={"show_default": True})
@click.option("--images", multiple=True, help="Photographs.  [default: scikit-image's of the test split]")
@click.option(
    "--train-images",
    multiple=True,
    help="Others, to choose what is fixed.  [default: scikit-image's of the train split]",
)
@click.option("--checkpoint", default="natural-x4")
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
@click.option("--cache-dir", help="Folder in which latents and metrics are kept.")
@click.option("--device", default="cpu")
def main(
    images: tuple[str, ...],
    train_images: tuple[str, ...],
    checkpoint: str,
    skip_mode: str,
    steps: str | None,
    fine_sampler: str | None,
    metric: str,
    image_size: int,
    noise_seeds: int,
    train_noise_seeds: int,
    prices: str,
    search_minutes: float,
    limit: int | None,
    cache_dir: str | None,
    device: str,
) -> None:
    """Prints what fixed schedules, a choice for each picture, and the oracle give."""
    jump = skip_mode == "jump"
    pair = tuple(map(int, steps.split(","))) if steps else ((1, 20) if jump else None)
    judges = [name for name in JUDGES if judge_file().is_file()]
    reported = [name for name in ("lpips", "psnr") if name != metric]

    def of(paths: tuple[str, ...], split: str, noises: int, report: list[str]) -> Outcomes:
        config = TaskConfig(
            checkpoint=checkpoint, images=list(paths) or None, split=None if paths else split, image_size=image_size,
            steps=pair, skip_mode=skip_mode, fine_sampler=fine_sampler or ("ddim" if jump else "ddpm"), metric=metric,
            report_metrics=report, cache_dir=cache_dir, cache_mb=2048, device=device,
        )  # fmt: skip
        task = Task(config)
        count = min(limit or len(task.pictures), len(task.pictures))
        pictures = [i * len(task.pictures) // count for i in range(count)]
        return Outcomes(task, pictures, noises, "negative" if jump else "inverse")

    test, train = of(images, "test", noise_seeds, reported + judges), of(train_images, "train", train_noise_seeds, [])
    first = test.task.plan.first
    if jump:
        thing, ways = "n", [even_levels(first, n) for n in range(1, first + 1)]
    else:
        thing, ways = "start", [tuple(range(start, 0, -1)) for start in range(1, first + 1)]
    for outcomes in (test, train):
        outcomes.compute(ways)
    click.echo(
        f"{len(test.pictures)} pictures of {image_size} px, {noise_seeds} noises; what is fixed was chosen on "
        f"{len(train.pictures)} others; {test.task.plan.describe()}\n"
    )
    names = [*test.task.metrics, "NFE"]
    click.echo(f"| | {' | '.join(names)} |\n{'|---' * (len(names) + 1)}|")
    whole = len(test.pictures), noise_seeds

    def show(name: str, schedules: Sequence[Levels], chosen: NDArray[np.intp]) -> None:
        click.echo(f"| {' | '.join(row(test, name, schedules, chosen))} |")

    for place in range(first):
        show(f"fixed {thing} = {place + 1}", ways, np.full(whole, place))
    shares = []
    for price in map(float, prices.split(",")):
        fixed = int(np.argmax([train.worth(levels, price).mean() for levels in ways]))
        show(f"price {price:g}: best fixed {thing} = {fixed + 1}", ways, np.full(whole, fixed))
        if jump and search_minutes > 0:
            best = local_search(train, ways[fixed], price, search_minutes)
            test.compute([best])
            show(f"price {price:g}: best fixed schedule {','.join(map(str, best))}", [best], np.zeros(whole, np.intp))
        own, oracle = choose(test, ways, price, others=True), choose(test, ways, price, others=False)
        show(f"price {price:g}: {thing} per picture, under the other noises", ways, own)
        show(f"price {price:g}: oracle", ways, oracle)
        worth = np.stack([test.worth(levels, price) for levels in ways])
        means = [float(worth[(each, *np.indices(whole))].mean()) for each in (own, oracle)]
        fixed_means = worth.mean(axis=(1, 2))
        shares.append((price, *(mean - base for base in (fixed_means[fixed], fixed_means.max()) for mean in means)))
    click.echo(
        f"\nGains in reward over the best fixed {thing}, as it was chosen on the other pictures, and as it is best on "
        f"these:\n\n"
        f"| price | {thing} per picture | oracle | {thing} per picture, over the best on these | oracle | not luck |"
    )
    click.echo("|---" * 6 + "|")
    for price, gain, most, strict, strict_most in shares:
        share = f"{strict / strict_most:.0%}" if strict_most > 0 else "-"
        click.echo(f"| {price:g} | {gain:+.5f} | {most:+.5f} | {strict:+.5f} | {strict_most:+.5f} | {share} |")


if __name__ == "__main__":
    main()
