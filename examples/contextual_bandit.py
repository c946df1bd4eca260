"""The simplest thing that could work: ridge regression decides how many steps a picture needs.

Each number of even steps is an arm of a contextual bandit, and the context is 42 statistics of the gradients of the
condition, the picture that the net starts from. What every arm gives is computed for crops of two of scikit-image's
photographs, a ridge regression for each arm predicts LPIPS from the statistics, and the arm with the best prediction,
less the price of its forwards, is taken for crops of the two other photographs.

It prints, for several prices of a forward, mean rewards on the test split: of the number of steps that is best on
average for the crops of the train split, of the bandit, of the best number under the crop's other noises (which says
how much is due to the crop and not to luck), and of the oracle, the best number for each crop and noise; and which
share of the way from the fixed number to the oracle the bandit goes.

On one CPU core the outcomes take a few minutes; they are kept in --cache-dir, so that further runs take seconds.
--pictures 16 is a quick look.
"""

from typing import Any

import click
import gymnasium as gym
import numpy as np
from numpy.typing import NDArray
from tqdm import tqdm

from ddpm.schedule import even_levels
from skipdiff_env.features import features

ENV = "skipdiff_env:SkipDiffJump-v0"
# The arms: numbers of even steps.
NUMBERS = np.array([1, 2, 3, 4, 6, 8, 12])
PRICES = (0.0005, 0.001, 0.002, 0.004, 0.008)
# Weights of the penalty that are tried; the training crops choose.
RIDGES = 10.0 ** np.arange(-1, 5)

Array = NDArray[np.float64]


def tabulate(split: str, limit: int | None, noises: int, **settings: Any) -> tuple[Array, Array]:
    """Statistics of the crops of a split, (crops, 42), and the LPIPS of every arm, (crops, noises, arms)."""
    env: Any = gym.make(ENV, split=split, **settings).unwrapped
    schedules = [even_levels(env.task.plan.first, number) for number in NUMBERS.tolist()]
    count = min(limit or len(env.task.pictures), len(env.task.pictures))
    contexts, lpips = [], []
    for picture in tqdm(np.linspace(0, len(env.task.pictures) - 1, count).astype(int).tolist(), desc=split):
        observation, _ = env.reset(options={"image": picture, "noise_seed": 0})
        contexts.append(features(observation["condition"]))
        lpips.append(env.schedule_outcomes([picture], range(noises), schedules).metrics["lpips"][0])
    return np.array(contexts, dtype=np.float64), np.array(lpips)


class Ridge:
    """One ridge regression for each arm, with the penalty that predicts left-out crops best."""

    def __init__(self, contexts: Array, targets: Array) -> None:
        self.mean, self.scale = contexts.mean(axis=0), contexts.std(axis=0) + 1e-6
        self.offset = targets.mean(axis=0)
        x, y = (contexts - self.mean) / self.scale, targets - self.offset
        fits = []
        for ridge in RIDGES:
            solve = np.linalg.solve(x.T @ x + ridge * np.eye(x.shape[1]), x.T)
            own_weight = np.diag(x @ solve) + 1 / len(x)  # how much a crop has to say about its own prediction
            error = np.square((y - x @ solve @ y) / np.maximum(1 - own_weight, 1e-6)[:, None]).mean()
            fits.append((error, ridge, solve @ y))
        self.error, self.ridge, self.weights = min(fits, key=lambda fit: fit[0])

    def __call__(self, contexts: Array) -> Array:
        """Predictions, (crops, arms)."""
        return (contexts - self.mean) / self.scale @ self.weights + self.offset


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.option("--pictures", type=click.IntRange(min=2), help="Crops of each split.  [default: all]")
@click.option("--noises", default=2, type=click.IntRange(min=2), help="Noises of each crop.")
@click.option("--cache-dir", default="runs/bandit-cache", help="Folder for what was computed.")
@click.option("--checkpoint", default="natural-x4", help="The diffusion model.")
def main(pictures: int | None, noises: int, cache_dir: str, checkpoint: str) -> None:
    """Computes outcomes, learns from those of the train split, compares on the test split."""
    settings = {"cache_dir": cache_dir, "checkpoint": checkpoint}
    train_contexts, train_lpips = tabulate("train", pictures, noises, **settings)
    contexts, lpips = tabulate("test", pictures, noises, **settings)
    predict = Ridge(train_contexts, train_lpips.mean(axis=1))
    predicted = predict(contexts)
    print(
        f"{len(train_lpips)} crops to learn from, {len(lpips)} to judge by, {noises} noises; ridge {predict.ridge:g}\n"
    )
    print("price | fixed number | its reward | bandit | under other noises | oracle | bandit's share | its forwards")
    print("---|---|---|---|---|---|---|---")
    for price in PRICES:
        rewards = -lpips - price * NUMBERS  # (crops, noises, arms)
        fixed = (-train_lpips - price * NUMBERS).mean(axis=(0, 1)).argmax()
        chosen = (-predicted - price * NUMBERS).argmax(axis=1)
        others = (rewards.sum(axis=1, keepdims=True) - rewards).argmax(axis=2)
        base, oracle = rewards[..., fixed].mean(), rewards.max(axis=2).mean()
        bandit = np.take_along_axis(rewards, chosen[:, None, None], axis=2).mean()
        under_others = np.take_along_axis(rewards, others[..., None], axis=2).mean()
        cells = [f"{price:g}", f"{NUMBERS[fixed]}", *(f"{mean:.4f}" for mean in (base, bandit, under_others, oracle))]
        share = f"{(bandit - base) / (oracle - base):.0%}" if oracle > base else "-"
        print(" | ".join([*cells, share, f"{NUMBERS[chosen].mean():.1f}"]))


if __name__ == "__main__":
    main()
