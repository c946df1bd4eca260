"""Planning: a tree search finds the schedule of one picture, with get_state() and set_state().

The planner plays an episode many times and observes the reward. The reward needs the original picture, so planning
cannot be used to enlarge pictures, but it shows how much a good schedule can gain. The planner searches the 2^19
sequences of decisions of SkipDiffJump-v0 with Monte Carlo tree search. Given a picture and a noise, the environment is
deterministic, so the value of a node is the best reward that was found below it.

The program compares the schedule that it found with even schedules. It prints the levels at which the network runs,
LPIPS, forwards, the reward, and the mean reward of the same schedule under other noises. A gain that exists only under
the noise of the planner is luck. The program takes about a minute on one CPU core.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import click
import gymnasium as gym
import numpy as np

from ddpm.schedule import even_levels
from skipdiff_env import Action

ENV = "skipdiff_env:SkipDiffJump-v0"
# Numbers of even steps to compare with.
NUMBERS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20)


@dataclass
class Node:
    """Where some decisions lead.

    Attributes:
        state: what `set_state` takes; None after the last decision.
        children: by the next decision.
        visits: episodes that went through here.
        best: the best reward among them.
        done: whether all that can follow has been played.
    """

    state: dict[str, Any] | None
    children: dict[Action, "Node"] = field(default_factory=dict)
    visits: int = 0
    best: float = -math.inf
    done: bool = False


class Planner:
    """Monte Carlo tree search over the decisions of one episode.

    Args:
        env: an environment whose episode has begun.
        exploration: how much a decision gains from having been tried seldom.
        seed: of the random continuations.
    """

    def __init__(self, env: Any, exploration: float, seed: int) -> None:
        self.env, self.exploration, self.rng = env, exploration, np.random.default_rng(seed)
        self.root = Node(env.get_state())
        self.best, self.levels, self.worst = -math.inf, (), math.inf

    def search(self, episodes: int) -> None:
        """Plays that many episodes, fewer if there are no others."""
        for _ in range(episodes):
            if self.root.done:
                break
            self.simulate()

    def simulate(self) -> None:
        """Goes down the tree, adds a node, and finishes the episode at random."""
        path = [self.root]
        while len(path[-1].children) == len(Action):
            path.append(self.promising(path[-1]))
        node = path[-1]
        action = next(action for action in Action if action not in node.children)
        self.env.set_state(node.state)
        _, reward, ended, _, info = self.env.step(action)
        leaf = node.children[action] = Node(None if ended else self.env.get_state(), done=ended)
        path.append(leaf)
        # drawn for each episode, from seldom to always, so that short schedules are tried as often as long ones
        denoise = max(info["diffusion_step"], 1) ** -self.rng.random()
        while not ended:
            choice = Action.DENOISE if self.rng.random() < denoise else Action.SKIP
            _, reward, ended, _, info = self.env.step(choice)
        self.learn(path, float(reward))
        if reward > self.best:
            self.best, self.levels = float(reward), info["levels"]

    def promising(self, node: Node) -> Node:
        """The child to go on with: good so far, or seldom tried."""

        def score(child: Node) -> float:
            spread = max(self.best - self.worst, 1e-9)
            seldom = math.sqrt(math.log(node.visits) / child.visits)
            return (child.best - self.worst) / spread + self.exploration * seldom

        return max((child for child in node.children.values() if not child.done), key=score)

    def learn(self, path: list[Node], reward: float) -> None:
        """Tells all nodes of an episode what came of it."""
        self.worst = min(self.worst, reward)
        for node in reversed(path):
            node.visits += 1
            node.best = max(node.best, reward)
            if len(node.children) == len(Action):
                node.done = all(child.done for child in node.children.values())


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.option(
    "--picture", default=3, type=click.IntRange(min=0), help="Index of the picture among the crops of the test split."
)
@click.option("--noise-seed", default=0, type=click.IntRange(min=0))
@click.option(
    "--other-noises", default=3, type=click.IntRange(min=1), help="Number of noises that the planner does not use."
)
@click.option("--episodes", default=300, type=click.IntRange(min=1), help="Number of episodes that the planner plays.")
@click.option("--exploration", default=1.0, help="Weight of decisions that were tried seldom.")
@click.option(
    "--levels",
    default=20,
    type=click.IntRange(min=2),
    help="Number of noise levels; there is a decision at each but one.",
)
@click.option("--checkpoint", default="natural-x4", help="The diffusion model.")
@click.option("--seed", default=0)
def main(
    picture: int, noise_seed: int, other_noises: int, episodes: int, exploration: float, levels: int, checkpoint: str,
    seed: int,
) -> None:  # fmt: skip
    """Searches, and compares with even steps."""
    env: Any = gym.make(ENV, split="test", steps=(1, levels), checkpoint=checkpoint).unwrapped
    env.reset(options={"image": picture, "noise_seed": noise_seed})
    planner = Planner(env, exploration, seed)
    planner.search(episodes)

    schedules = {f"{n} even steps": even_levels(levels, n) for n in NUMBERS if n <= levels}
    schedules[f"found in {planner.root.visits} episodes"] = planner.levels
    seeds = [noise_seed, *range(noise_seed + 1, noise_seed + 1 + other_noises)]
    outcomes = env.schedule_outcomes([picture], seeds, list(schedules.values()))
    print(f"{env.task.pictures.names[picture]} | LPIPS | forwards | reward | under other noises | levels")
    print("---|---|---|---|---|---")
    for place, (name, schedule) in enumerate(schedules.items()):
        reward, *others = outcomes.rewards()[0, :, place]
        lpips = outcomes.metrics["lpips"][0, 0, place]
        figures = f"{lpips:.4f} | {len(schedule)} | {reward:.4f} | {np.mean(others):.4f}"
        print(f"{name} | {figures} | {' '.join(map(str, schedule))}")


if __name__ == "__main__":
    main()
