"""Evaluation of agents during a training, in comparison with fixed schedules."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.agent import Agent
from agents.playing import AgentPolicy, play
from agents.training.learning_curve import CurvePoint
from ddpm.util.progress import progress
from skipdiff_env.episode import Episode
from skipdiff_env.outcomes import OutcomeTable, best_fixed, gap_closed
from skipdiff_env.scoring import play as play_table
from skipdiff_env.task import Task
from skipdiff_env.tree import Tree

# Qualities at which an agent that observes the price of a forward is evaluated.
QUALITIES = (0.0, 0.5, 1.0)


class Evaluator:
    """Evaluator of agents on fixed pictures and noises, which compares the rewards with those of fixed schedules.

    If each episode of the training draws a price, the results are means over three prices: the highest, the lowest and
    one between them.

    Args:
        task: the task, with the pictures of the evaluation.
        noise_seeds: number of noises of each picture.
        oracle: whether to run the fixed schedules, see `tabulate`.
        first_seed: the first noise seed.
    """

    def __init__(self, task: Task, noise_seeds: int, oracle: bool = True, first_seed: int = 0) -> None:
        self.task = task
        pictures, seeds = range(len(task.pictures)), range(first_seed, first_seed + noise_seeds)
        self.images = [image for image in pictures for _ in seeds]
        self.noise_seeds = [seed for _ in pictures for seed in seeds]
        self.outcomes = tabulate(task, seeds) if oracle else None
        self.compared = "start" if task.plan.skip_mode == "restart" else "number of steps"

    def __call__(self, agent: Agent, env_steps: int, seconds: float) -> CurvePoint:
        """Evaluate an agent that has learnt from `env_steps` decisions in `seconds`."""
        told = agent.config.price_range is not None
        prices = [agent.config.price(quality) for quality in QUALITIES] if told else [None]
        episodes, fixed, oracle = list[Episode](), list[float](), list[float]()
        for price in prices:
            policy = AgentPolicy(agent, price=price)
            episodes += play(self.task, policy, self.images, self.noise_seeds, price=price)
            if self.outcomes is not None:
                rewards = self.outcomes.rewards(self.task.price if price is None else price)
                fixed.append(float(rewards[..., best_fixed(rewards)].mean()))
                oracle.append(float(rewards.max(axis=2).mean()))
        reward = float(np.mean([episode.reward for episode in episodes]))
        best = float(np.mean(oracle)) if oracle else np.nan
        plan, forwards = self.task.plan, [episode.refinement.nfe for episode in episodes]
        return CurvePoint(
            env_steps=env_steps,
            episodes=env_steps // agent.config.make_decisions().longest,
            seconds=round(seconds, 1),
            reward=reward,
            regret=best - reward,
            start=float(np.mean([episode.refinement.start for episode in episodes])),
            skips=float(np.mean([1 - (nfe - plan.coarse_forwards - 1) / plan.decisions for nfe in forwards])),
            nfe=float(np.mean(forwards)),
            best_fixed_reward=float(np.mean(fixed)) if fixed else np.nan,
            oracle_reward=best,
        )


class TableEvaluator:
    """Evaluator of models on the validation photographs of a table.

    Args:
        tree: the decisions, with the outcomes of all splits.
        price: price of a forward.

    Raises:
        ConfigError: there are no scores, since no photograph gains by another schedule.
    """

    def __init__(self, tree: Tree, price: float) -> None:
        self.price, self.tree = price, Tree(tree.table.split("validation"), tree.kind)
        fixed, table = tree.table.split("train").best_fixed(price), self.tree.table
        for part in (table, tree.table.split("test")):
            part.check_score(fixed, price)
        self.best_fixed = self._reward(np.full(len(table.features), fixed))
        self.best_of_others = self._reward(table.best_of_others(price))

    def _reward(self, choices: NDArray[np.integer]) -> float:
        table = self.tree.table
        return float(table.per_photograph(table.chosen(choices, self.price)).mean())

    def __call__(self, model: Any, env_steps: int, seconds: float) -> CurvePoint:
        """Evaluate a model of Stable-Baselines3 that has learnt from `env_steps` decisions in `seconds`."""
        chosen = play_table(self.tree, model)
        reward = self._reward(chosen)
        return CurvePoint(
            env_steps=env_steps,
            episodes=env_steps // self.tree.longest,
            seconds=round(seconds, 1),
            reward=reward,
            regret=self.best_of_others - reward,
            start=np.nan,
            skips=np.nan,
            nfe=float(self.tree.table.forwards[chosen].mean()),
            best_fixed_reward=self.best_fixed,
            oracle_reward=self.best_of_others,
            score=gap_closed(reward, self.best_fixed, self.best_of_others),
        )


def tabulate(task: Task, seeds: Sequence[int]) -> OutcomeTable:
    """Return the outcomes of the fixed schedules with which an agent is compared, for each picture and noise seed.

    They are the chains of all starts, or under jumps those of `Decisions.references`.
    """
    restart = task.plan.skip_mode == "restart"
    ways = None if restart else task.process.decisions.references(task.unet.substeps)
    # the pictures in groups that make a batch with their noises
    size, count, parts = max(1, task.config.batch_size // len(seeds)), len(task.pictures), []
    with progress(total=count, desc="reference", unit="picture", leave=False) as bar:
        for first in range(0, count, size):
            group = range(first, min(first + size, count))
            parts.append(task.schedule_outcomes(group, seeds, ways))
            bar.update(len(group))
    return replace(
        parts[0],
        metrics={name: np.concatenate([part.metrics[name] for part in parts]) for name in task.metrics},
        features=np.concatenate([part.features for part in parts]),
        photographs=tuple(name for part in parts for name in part.photographs),
    )
