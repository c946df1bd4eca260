"""Every algorithm, several seeds, one environment: what each reaches on pictures and noises that training never saw.

python -m benchmarks.algorithms --images DIR --eval-images DIR --out DIR [--env SkipDiffJump-v0] [--seeds 5]
[--env-steps 40000]

What is finished is not computed again by a command of the same settings. Figures are interquartile means over the
seeds, with 95 % bootstrap intervals.
`curves.webp` in the output folder shows the learning curves.
"""

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap, trim_mean

from agents.agent import load_agent
from agents.algorithms import ALGORITHMS
from agents.cli.command import Command
from agents.cli.options import STEPS, environment
from agents.playing import AgentPolicy, play
from agents.plots import compared_curves, save
from agents.study.methods import skipping_policy
from agents.study.running import SETTINGS, digest, settle
from agents.study.tables import markdown
from agents.training.config import AgentTrainingConfig
from agents.training.evaluator import tabulate
from agents.training.hyperparameters import load_hyperparameters, parse_overrides
from agents.training.learning_curve import CurvePoint, read_curve
from agents.training.sb3 import train_agent
from ddpm.util.errors import ConfigError
from ddpm.util.files import atomic_path, read_json, write_json
from skipdiff_env.memo import Memo
from skipdiff_env.refinement import Policy
from skipdiff_env.task import Episode, Task, TaskConfig, fingerprint

Figures = dict[str, float]


def iqm(values: Sequence[float] | NDArray[np.float64]) -> float:
    """The mean of the middle half."""
    return float(trim_mean(values, 0.25))


def interval(values: Sequence[float], seed: int = 0) -> tuple[float, float]:
    """95 % bootstrap interval of the interquartile mean; of a single value, or equal ones, that value."""
    if len(values) < 2 or np.ptp(values) == 0:
        return float(values[0]), float(values[0])
    found = bootstrap(
        (np.asarray(values),), lambda x, axis: trim_mean(x, 0.25, axis=axis), method="percentile", vectorized=True,
        rng=np.random.default_rng(seed),
    ).confidence_interval  # fmt: skip
    return float(found.low), float(found.high)


def figures(task: Task, episodes: Sequence[Episode]) -> Figures:
    """Mean reward, metrics and forwards of episodes."""
    means = {name: float(np.nanmean([episode.metrics[name] for episode in episodes])) for name in task.metrics}
    return {
        "reward": float(np.mean([episode.reward for episode in episodes])),
        **means,
        "nfe": float(np.mean([episode.refinement.nfe for episode in episodes])),
    }


def references(task: Task, seeds: Sequence[int]) -> dict[str, Figures]:
    """What needs no learning: the best fixed start or number of steps, the best by the other noises, and the oracle."""
    table = tabulate(task, seeds)
    rewards, metrics = table.rewards(), {k: np.asarray(v, np.float64) for k, v in table.metrics.items()}
    forwards = np.arange(1, task.plan.first + 1) + task.plan.coarse_forwards
    what = "start" if task.plan.skip_mode == "restart" else "number of steps"

    def chosen(choice: NDArray[np.integer]) -> Figures:
        def at(values: NDArray[np.float64]) -> float:
            return float(np.nanmean(np.take_along_axis(values, choice[..., None], 2)))

        return {"reward": at(rewards), **{k: at(v) for k, v in metrics.items()}, "nfe": float(forwards[choice].mean())}

    shape = rewards.shape[:2]
    fixed = int(rewards.mean(axis=(0, 1)).argmax())
    found = {f"best fixed {what} ({fixed + 1})": chosen(np.full(shape, fixed))}
    if len(seeds) > 1:
        found["best by the other noises"] = chosen((rewards.sum(axis=1, keepdims=True) - rewards).argmax(axis=2))
    return found | {"oracle": chosen(rewards.argmax(axis=2))}


def random_play(task: Task, seeds: Sequence[int]) -> Figures:
    """Every decision by a throw of a coin."""
    return _played(task, skipping_policy((task.plan.first + 1) / 2, task.plan.first, np.random.default_rng(0)), seeds)


def _played(task: Task, policy: Policy, seeds: Sequence[int]) -> Figures:
    images = [image for image in range(len(task.pictures)) for _ in seeds]
    return figures(task, play(task, policy, images, [seed for _ in task.pictures for seed in seeds]))


def report(known: Mapping[str, Figures], runs: Mapping[str, Sequence[Figures]]) -> str:
    """The table: a line for each algorithm, and for each reference."""
    names = list(next(iter(known.values())))
    lines: list[Sequence[Any]] = [(name, "", *(f"{own[key]:.4f}" for key in names)) for name, own in known.items()]
    for algorithm, own in runs.items():
        cells = []
        for key in names:
            values = [run[key] for run in own]
            low, high = interval(values)
            cells.append(f"{iqm(values):.4f} [{low:.4f}, {high:.4f}]")
        lines.append((algorithm, len(own), *cells))
    return markdown(("method", "seeds", *names), lines)


@click.command(cls=Command, context_settings={"show_default": True})
@click.option("--env", "env_id", default="SkipDiffJump-v0")
@click.option("--images", multiple=True, required=True, help="Photographs to train on.")
@click.option(
    "--eval-images", multiple=True, required=True, help="Other photographs, which the agents are compared on."
)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Folder of the runs and of the table.")
@click.option("--checkpoint", help="[default: that of the environment]")
@click.option("--algos", help=f"Separated by commas.  [default: {', '.join(ALGORITHMS)}]")
@STEPS
@click.option("--seeds", default=5, help="Trainings of each algorithm, with seeds 0, 1, …")
@click.option("--env-steps", default=20_000, help="Decisions of each training.")
@click.option("--image-size", type=int, help="[default: that of the environment]")
@click.option("--noise-seeds", default=4, help="Noises of each picture in training.")
@click.option(
    "--eval-noise-seeds", default=2, help="Noises of each picture in the comparison, none of them seen before."
)
@click.option("--eval-every", default=500, help="Episodes between evaluations of a training.")
@click.option("--metrics", default="psnr", help="Further metrics of the table, separated by commas.")
@click.option("-p", "overrides", multiple=True, metavar="KEY=VALUE", help="Changes a hyperparameter of all algorithms.")
@click.option("--cache-mb", default=2048.0, help="Room for what all trainings share.")
@click.option("--device", default="cpu")
def main(
    env_id: str,
    images: tuple[str, ...],
    eval_images: tuple[str, ...],
    out: Path,
    checkpoint: str | None,
    algos: str | None,
    steps: tuple[int, int] | None,
    seeds: int,
    env_steps: int,
    image_size: int | None,
    noise_seeds: int,
    eval_noise_seeds: int,
    eval_every: int,
    metrics: str,
    overrides: tuple[str, ...],
    cache_mb: float,
    device: str,
) -> None:
    """Trains every algorithm under every seed, plays their best agents, and prints the table."""
    given: dict[str, Any] = {"checkpoint": checkpoint, "steps": steps, "image_size": image_size}
    given |= {"noise_seeds": noise_seeds, "images": list(images)}
    env = environment(env_id) | {name: value for name, value in given.items() if value is not None}
    names = [name for name in metrics.split(",") if name]
    judged = Task(
        TaskConfig.of(
            {**env, "images": list(eval_images), "report_metrics": names, "device": device, "cache_mb": cache_mb}
        )
    )
    if judged.config.price_range is not None:
        raise ConfigError("the comparison needs one price of a forward; give the environment a single nfe_penalty")
    shown = range(noise_seeds, noise_seeds + eval_noise_seeds)
    changes = {"env_steps": env_steps, **parse_overrides(overrides)}
    told = {**env, "eval_images": eval_images, "eval_noise_seeds": eval_noise_seeds, "metrics": names, **changes}
    told |= {"weights": fingerprint(judged.unet), "pictures": digest(rgb.tobytes() for rgb in judged.pictures)}
    settle(out / SETTINGS, {**told, "agents": {}})  # which runs there are is free
    kept = out / "references.json"
    if not kept.exists():
        write_json(kept, references(judged, shown) | {"random": random_play(judged, shown)})
    known: dict[str, Figures] = read_json(kept)
    memory = Memo(0), Memo(0)
    runs: dict[str, list[Figures]] = {}
    curves: dict[str, list[list[CurvePoint]]] = {}
    wanted = algos.split(",") if algos else list(ALGORITHMS)
    hyperparameters = {
        algorithm: load_hyperparameters(algorithm, changes, env.get("observation", "latent")) for algorithm in wanted
    }
    for seed in range(seeds):  # the first seed of all algorithms, then the second: what is interrupted is a comparison
        for algorithm in wanted:
            folder = out / algorithm / f"seed-{seed}"
            result = folder / "figures.json"
            if not result.exists():
                config = AgentTrainingConfig(
                    algorithm, env, hyperparameters[algorithm], list(eval_images), eval_noise_seeds, noise_seeds,
                    eval_every, oracle=False, cache_mb=cache_mb, seed=seed, device=device,
                )  # fmt: skip
                train_agent(config, folder, resume=folder.exists(), memory=memory)
                policy = AgentPolicy(load_agent(folder / "agent", device))
                write_json(result, _played(judged, policy, shown))
            runs.setdefault(algorithm, []).append(read_json(result))
            curves.setdefault(algorithm, []).append(read_curve(folder / "evaluations.csv"))
    text = report(known, runs)
    with atomic_path(out / "algorithms.md") as temporary:
        temporary.write_text(f"{text}\n", encoding="utf-8")
    with atomic_path(out / "algorithms.csv") as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "seed", *next(iter(known.values()))])
        writer.writerows([name, "", *own.values()] for name, own in known.items())
        writer.writerows([name, seed, *run.values()] for name, own in runs.items() for seed, run in enumerate(own))
    if curves:
        save(
            compared_curves(curves, {name: own for name, own in known.items() if name != "oracle"}), out / "curves.webp"
        )
    click.echo(text)


if __name__ == "__main__":
    main()
