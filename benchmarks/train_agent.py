"""How long an agent takes from random weights to the best fixed start, and how much of the way to the oracle it goes.

python -m benchmarks.train_agent --images DIR [--eval-images DIR] [--metric niqe] [--seeds 3] [--minutes 15]
"""

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import click
import numpy as np
import torch

from agents.cli.command import Command
from agents.study.rows import gap_closed
from agents.study.tables import markdown
from agents.training.config import AgentTrainingConfig
from agents.training.hyperparameters import load_hyperparameters, parse_overrides
from agents.training.learning_curve import CurvePoint, read_curve
from agents.training.sb3 import train_agent
from skipdiff_env.memo import Memo


def reached(curve: Sequence[CurvePoint], part: float = 0.01) -> float:
    """Seconds until the reward first comes within `part` of the best fixed start's; infinite if it never does."""
    return next((e.seconds for e in curve if e.reward >= (1 - part) * e.best_fixed_reward), float("inf"))


def closed_by(evaluation: CurvePoint) -> float:
    """Share of the gap between best fixed start and oracle that an evaluated agent closes."""
    return gap_closed(evaluation.reward, evaluation.best_fixed_reward, evaluation.oracle_reward)


@click.command(cls=Command, context_settings={"show_default": True})
@click.option("--images", multiple=True, help="Photographs to train on.  [default: scikit-image's]")
@click.option("--eval-images", multiple=True, help="Photographs to evaluate on.  [default: those of the training]")
@click.option("--checkpoint", default="natural-x4")
@click.option("--algo", default="ppo")
@click.option("--metric", default="niqe", help="The reward's metric.")
@click.option("--nfe-penalty", default=0.0)
@click.option("--image-size", default=128)
@click.option("--noise-seeds", default=1, help="Noises of each picture.")
@click.option("--minutes", default=15.0, help="Longest training of each seed.")
@click.option("--seeds", default=1, help="Trainings, with seeds 0, 1, …")
@click.option("--eval-every", default=200, help="Episodes between evaluations.")
@click.option("-p", "overrides", multiple=True, metavar="KEY=VALUE", help="Changes a hyperparameter.")
@click.option("--out", type=click.Path(path_type=Path), help="Keep the runs in this folder.")
@click.option("--device", default="cpu")
def main(
    images: tuple[str, ...],
    eval_images: tuple[str, ...],
    checkpoint: str,
    algo: str,
    metric: str,
    nfe_penalty: float,
    image_size: int,
    noise_seeds: int,
    minutes: float,
    seeds: int,
    eval_every: int,
    overrides: tuple[str, ...],
    out: Path | None,
    device: str,
) -> None:
    """Trains agents and prints their learning curves."""
    env = {
        "checkpoint": checkpoint, "images": list(images) or None, "image_size": image_size, "metric": metric,
        "noise_seeds": noise_seeds, "nfe_penalty": nfe_penalty,
    }  # fmt: skip
    hyperparameters = load_hyperparameters(algo, parse_overrides(overrides))
    curves = []
    memory = Memo(0), Memo(0)  # train_agent gives them their room; the seeds share what they hold
    with tempfile.TemporaryDirectory() as temporary:
        folder = out or Path(temporary)
        for seed in range(seeds):
            config = AgentTrainingConfig(
                algo, env, hyperparameters, list(eval_images) or None, eval_every=eval_every, minutes=minutes,
                seed=seed, device=device,
            )  # fmt: skip
            began = time.perf_counter()
            train_agent(config, folder / f"seed-{seed}", memory=memory)
            curves.append((read_curve(folder / f"seed-{seed}" / "evaluations.csv"), time.perf_counter() - began))
    click.echo(f"{torch.get_num_threads()} threads, {algo}, {metric}, {checkpoint} on {device}")
    headings = ("seed", "episodes", "seconds", "reward", "best fixed", "oracle", "gap closed", "mean start", "NFE")
    lines = [
        (
            seed,
            e.episodes,
            f"{e.seconds:.0f}",
            f"{e.reward:.4f}",
            f"{e.best_fixed_reward:.4f}",
            f"{e.oracle_reward:.4f}",
            f"{closed_by(e):.0%}",
            f"{e.start:.2f}",
            f"{e.nfe:.2f}",
        )
        for seed, (curve, _) in enumerate(curves)
        for e in curve
    ]
    click.echo(markdown(headings, lines))
    for seed, (curve, whole) in enumerate(curves):
        best = max(curve, key=lambda e: e.reward)
        rate = curve[-1].episodes / max(curve[-1].seconds, 1e-9)
        click.echo(
            f"seed {seed}: within 1 % of the best fixed start after {reached(curve):.0f} s; best reward "
            f"{best.reward:.4f} "
            f"({closed_by(best):.0%} of the gap to the oracle); {rate:.1f} episodes/s; {whole:.0f} s with everything"
        )
    closed = [closed_by(max(curve, key=lambda e: e.reward)) for curve, _ in curves]
    click.echo(f"gap closed, mean ± std over seeds: {np.mean(closed):.0%} ± {np.std(closed):.0%}")


if __name__ == "__main__":
    main()
