"""What an agent achieves on fixed pictures and noises, beside what schedules and starts would have given."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from agents.agent import Agent
from agents.playing import AgentPolicy, play
from agents.training.learning_curve import CurvePoint
from ddpm.schedule import even_levels
from ddpm.util.progress import progress
from skipdiff_env.episode import Episode, StartOutcomes
from skipdiff_env.task import Task

# Qualities at which an agent is evaluated that observes the price of a forward.
QUALITIES = (0.0, 0.5, 1.0)


class Evaluator:
    """Plays fixed pictures and noises, and compares with what each start would have given.

    Where each episode of the training has its own price, figures are means over three prices, the highest, the
    lowest and the one between.

    Args:
        task: its pictures are the ones played.
        noise_seeds: noises of each picture.
        oracle: whether to compute what each start, or each number of even steps, would have given.
        first_seed: the first of the noise seeds.
    """

    def __init__(self, task: Task, noise_seeds: int, oracle: bool = True, first_seed: int = 0) -> None:
        self.task = task
        pictures, seeds = range(len(task.pictures)), range(first_seed, first_seed + noise_seeds)
        self.images = [image for image in pictures for _ in seeds]
        self.noise_seeds = [seed for _ in pictures for seed in seeds]
        self.outcomes = tabulate(task, seeds) if oracle else None

    def _rewards(self, price: float) -> NDArray[np.float64] | None:
        """Return the rewards of everything tabulated at a price, (pictures, noises, numbers of forwards)."""
        if self.outcomes is None:
            return None
        forwards = np.arange(1, self.task.plan.first + 1) * self.task.process.unet.forwards_per_call
        return self.outcomes.rewards + (self.task.price - price) * forwards

    def _skipped(self, episode: Episode) -> float:
        """The share of the diffusion steps from the first to 2 that was not performed."""
        plan = self.task.plan
        return 1 - (episode.refinement.nfe - plan.coarse_forwards - 1) / plan.decisions

    def __call__(self, agent: Agent, env_steps: int, seconds: float) -> CurvePoint:
        """Evaluates an agent that has learnt from `env_steps` decisions in `seconds`."""
        told = agent.config.price_range is not None
        prices = [agent.config.price(quality) for quality in QUALITIES] if told else [None]
        episodes, best_fixed, oracle = [], [], []
        for price in prices:
            policy = AgentPolicy(agent, price=price)
            episodes += play(self.task, policy, self.images, self.noise_seeds, price=price)
            rewards = self._rewards(self.task.price if price is None else price)
            best_fixed.append(np.nan if rewards is None else float(rewards.mean(axis=(0, 1)).max()))
            oracle.append(np.nan if rewards is None else float(rewards.max(axis=2).mean()))
        reward = float(np.mean([episode.reward for episode in episodes]))
        return CurvePoint(
            env_steps=env_steps,
            episodes=env_steps // agent.config.make_decisions().longest,
            seconds=round(seconds, 1),
            reward=reward,
            regret=float(np.mean(oracle)) - reward,
            start=float(np.mean([episode.refinement.start for episode in episodes])),
            skips=float(np.mean([self._skipped(episode) for episode in episodes])),
            nfe=float(np.mean([episode.refinement.nfe for episode in episodes])),
            best_fixed_reward=float(np.mean(best_fixed)),
            oracle_reward=float(np.mean(oracle)),
        )


def _groups(task: Task, seeds: int, title: str) -> Iterator[range]:
    """The pictures of a task in groups that make a batch under so many noises, with a progress bar."""
    size, count = max(1, task.config.batch_size // seeds), len(task.pictures)
    with progress(total=count, desc=title, unit="picture", leave=False) as bar:
        for first in range(0, count, size):
            group = range(first, min(first + size, count))
            yield group
            bar.update(len(group))


def tabulate(task: Task, seeds: Sequence[int]) -> StartOutcomes:
    """Return what every start, or under jumps every number of even steps, gives for each picture and noise seed.

    The last axis stands for 1 … N fine forwards.
    """
    first, restarts = task.plan.first, task.plan.skip_mode == "restart"
    even = [even_levels(first, forwards) for forwards in range(1, first + 1)]
    parts = [
        task.start_outcomes(group, seeds) if restarts else task.schedule_outcomes(group, seeds, even)
        for group in _groups(task, len(seeds), "every start" if restarts else "every number of steps")
    ]
    return StartOutcomes(
        np.concatenate([part.rewards for part in parts]),
        {name: np.concatenate([part.metrics[name] for part in parts]) for name in task.metrics},
    )
