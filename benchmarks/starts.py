"""Whether pictures' best starts differ by more than the noise does: what there is to learn, and what is luck.

python -m benchmarks.starts --images DIR [--train-images DIR] [--noise-seeds 4] [--metrics niqe,lpips]
"""

import click
import numpy as np
from numpy.typing import NDArray

from agents.study.rows import best_of_other_noises, gap_closed
from agents.study.tables import markdown
from agents.training import tabulate
from skipdiff_env.task import Task, TaskConfig, quality

HEADINGS = (
    "reward", "best fixed start", "each picture's best start", "oracle", "share of the gap", "picture x start", "noise x start",
    "same best start", "by chance",
)  # fmt: skip


def spreads(rewards: NDArray[np.float64]) -> tuple[float, float]:
    """Standard deviations of a start's merit on a picture: from picture to picture, and from noise to noise.

    Args:
        rewards: (P, K, N) of pictures, noises and starts.

    Returns:
        The two components of a random-effects model of reward = picture and noise + start + picture x start + noise x start.
    """
    K = rewards.shape[1]
    merit = rewards - rewards.mean(axis=2, keepdims=True)
    of_picture = merit.mean(axis=1) - merit.mean(axis=(0, 1))
    noise = ((merit - merit.mean(axis=1, keepdims=True)) ** 2).mean() * K / (K - 1)
    return float(np.sqrt(max(0.0, (of_picture**2).mean() - noise / K))), float(np.sqrt(noise))


def agreement(best: NDArray[np.intp]) -> tuple[float, float]:
    """How often two noises of a picture have the same best start, and how often two drawn from anywhere; best (P, K)."""
    K = best.shape[1]
    same = np.mean([best[:, i] == best[:, j] for i in range(K) for j in range(i)])
    return float(same), float(((np.bincount(best.ravel()) / best.size) ** 2).sum())


@click.command(context_settings={"show_default": True})
@click.option("--images", multiple=True, help="Photographs.  [default: scikit-image's]")
@click.option(
    "--train-images", multiple=True, help="Photographs to choose the best fixed start on.  [default: --images]"
)
@click.option("--checkpoint", default="natural-x4")
@click.option("--metrics", default="niqe,lpips", help="Metrics, comma-separated; each is the reward of a line.")
@click.option("--image-size", default=128)
@click.option("--noise-seeds", default=4, type=click.IntRange(min=2), help="Noises of each picture.")
@click.option("--device", default="cpu")
def main(
    images: tuple[str, ...],
    train_images: tuple[str, ...],
    checkpoint: str,
    metrics: str,
    image_size: int,
    noise_seeds: int,
    device: str,
) -> None:
    """Tabulates every start of every picture under several noises."""
    first, *others = metrics.split(",")

    def outcomes(paths: tuple[str, ...], seeds: int) -> dict[str, NDArray[np.float64]]:
        config = TaskConfig(
            checkpoint=checkpoint, images=list(paths) or None, image_size=image_size, metric=first, report_metrics=others,
            device=device,
        )  # fmt: skip
        task = Task(config)
        values = tabulate(task, seeds).metrics
        better = {name: task.metrics[name].lower_better for name in values}
        return {name: np.vectorize(quality)(column, better[name]) for name, column in values.items()}

    rewards = outcomes(images, noise_seeds)
    chosen_on = outcomes(train_images, 1) if train_images else rewards
    lines = []
    for name, table in rewards.items():
        start = int(chosen_on[name].mean(axis=(0, 1)).argmax())
        fixed, oracle = float(table[:, :, start].mean()), float(table.max(axis=2).mean())
        own = float(np.mean([own[range(noise_seeds), best_of_other_noises(own)] for own in table]))
        share = gap_closed(own, fixed, oracle)
        (of_picture, of_noise), (same, chance) = spreads(table), agreement(table.argmax(axis=2))
        figures = (f"{fixed:.4f} ({start + 1})", f"{own:.4f}", f"{oracle:.4f}", f"{share:.0%}")
        lines.append((name, *figures, f"{of_picture:.4f}", f"{of_noise:.4f}", f"{same:.0%}", f"{chance:.0%}"))
    click.echo(markdown(HEADINGS, lines))
    for name, table in rewards.items():
        best = np.bincount(table.argmax(axis=2).ravel(), minlength=table.shape[2])
        click.echo(f"{name}: how often each start from 1 to {table.shape[2]} is the best: {' '.join(map(str, best))}")


if __name__ == "__main__":
    main()
