"""PPO in one file, in the style of CleanRL, on SkipDiffBanditTable-v0, the benchmark.

The environment plays from a table of outcomes, without a network, and makes more than a hundred thousand decisions per
second. The policy observes statistics of the gradients of a picture and chooses the schedule of the picture. It learns
on training photographs. `skipdiff_env.score` computes its score on validation and test photographs: the best fixed
schedule has the score 0, and the best one under each picture's other noises has the score 1.

The program prints a learning curve, with a bar that is full at a score of 1, and the score on test photographs with its
interval. It takes less than a minute on one CPU core.
"""

import time
from typing import Any

import click
import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from skipdiff_env import score

ENV = "SkipDiffBanditTable-v0"
GAMMA, LAMBDA = 1.0, 0.95
EPOCHS, MINIBATCHES = 4, 4
CLIP, VALUE_WEIGHT, LARGEST_GRADIENT = 0.2, 0.5, 0.5
BAR = 40


class Agent(nn.Module):
    """Two small networks: what to do, and what to expect."""

    def __init__(self, observations: int, actions: int, width: int = 64) -> None:
        super().__init__()

        def network(outputs: int) -> nn.Sequential:
            return nn.Sequential(nn.Linear(observations, width), nn.Tanh(), nn.Linear(width, outputs))

        self.actor, self.critic = network(actions), network(1)

    def value(self, observations: Tensor) -> Tensor:
        """The expected reward of the rest of the episode, (B,)."""
        return self.critic(observations).squeeze(-1)

    def policy(self, observations: Tensor) -> Categorical:
        """How likely each action is."""
        return Categorical(logits=self.actor(observations))

    @torch.no_grad()
    def act(self, observations: np.ndarray) -> np.ndarray:
        """The most probable actions, (B,), without chance."""
        return self.actor(torch.from_numpy(observations)).argmax(dim=1).numpy()


def rollout(agent: Agent, envs: gym.vector.VectorEnv, observation: np.ndarray, steps: int) -> tuple[dict, np.ndarray]:
    """Play all environments for some steps; return (steps, environments, …) of everything, and the last observation."""
    kept: dict[str, list[Tensor]] = {
        name: [] for name in ("observation", "action", "log_prob", "value", "reward", "end")
    }
    for _ in range(steps):
        seen = torch.from_numpy(observation)
        with torch.no_grad():
            policy, value = agent.policy(seen), agent.value(seen)
        action = policy.sample()
        observation, reward, end, _, _ = envs.step(action.numpy())
        step = (seen, action, policy.log_prob(action), value, torch.from_numpy(reward).float(), torch.from_numpy(end))
        for name, tensor in zip(kept, step, strict=True):
            kept[name].append(tensor)
    return {name: torch.stack(column) for name, column in kept.items()}, observation


def advantages(batch: dict[str, Tensor], next_value: Tensor) -> Tensor:
    """Return generalised advantage estimates, (steps, environments)."""
    found, following = torch.zeros_like(batch["reward"]), torch.zeros_like(next_value)
    for t in reversed(range(len(found))):
        goes_on = 1 - batch["end"][t].float()
        error = batch["reward"][t] + GAMMA * goes_on * next_value - batch["value"][t]
        following = found[t] = error + GAMMA * LAMBDA * goes_on * following
        next_value = batch["value"][t]
    return found


def update(
    agent: Agent, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor], advantage: Tensor, entropy_weight: float
) -> None:
    """Perform a few epochs of PPO's clipped objective."""
    flat = {name: column.flatten(0, 1) for name, column in batch.items()} | {"advantage": advantage.flatten()}
    returns = flat["advantage"] + flat["value"]
    for _ in range(EPOCHS):
        for part in torch.randperm(len(returns)).chunk(MINIBATCHES):
            policy = agent.policy(flat["observation"][part])
            ratio = (policy.log_prob(flat["action"][part]) - flat["log_prob"][part]).exp()
            gain = flat["advantage"][part]
            gain = (gain - gain.mean()) / (gain.std() + 1e-8)
            policy_loss = -torch.min(gain * ratio, gain * ratio.clamp(1 - CLIP, 1 + CLIP)).mean()
            value_loss = 0.5 * (agent.value(flat["observation"][part]) - returns[part]).square().mean()
            loss = policy_loss + VALUE_WEIGHT * value_loss - entropy_weight * policy.entropy().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), LARGEST_GRADIENT)
            optimizer.step()


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.option("--env-steps", default=120_000, type=click.IntRange(min=1), help="Number of decisions in the training.")
@click.option("--num-envs", default=256, type=click.IntRange(min=1), help="Number of environments in a batch.")
@click.option("--learning-rate", default=1e-2)
@click.option("--entropy-weight", default=0.3, help="Weight of the entropy in the loss.")
@click.option(
    "--table", default="natural-x4", help="Folder that `skipdiff tabulate` wrote, or name of a shipped table."
)
@click.option("--seed", default=0)
def main(env_steps: int, num_envs: int, learning_rate: float, entropy_weight: float, table: str, seed: int) -> None:
    """Train and score."""
    torch.manual_seed(seed)
    # SameStep: what follows the end of an episode is the beginning of the next, and no step is wasted between them
    envs: Any = gym.make_vec(f"skipdiff_env:{ENV}", num_envs=num_envs, table=table, autoreset_mode="SameStep")
    agent = Agent(envs.single_observation_space.shape[0], int(envs.single_action_space.n))
    optimizer = torch.optim.Adam(agent.parameters(), lr=learning_rate, eps=1e-5)
    steps = 8
    updates = max(1, env_steps // (steps * num_envs))
    observation, _ = envs.reset(seed=seed)
    began = time.perf_counter()
    print("env steps | score on validation photographs | from the best fixed schedule to 1", flush=True)
    for done in range(1, updates + 1):
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - (done - 1) / updates)
        batch, observation = rollout(agent, envs, observation, steps)
        with torch.no_grad():
            advantage = advantages(batch, agent.value(torch.from_numpy(observation)))
        update(agent, optimizer, batch, advantage, entropy_weight)
        if done in (1, updates) or done % max(1, updates // 20) == 0:
            reached = score(agent.act, "validation", ENV, table).value
            bar = "#" * round(BAR * float(np.clip(reached, 0, 1)))
            print(f"{done * steps * num_envs:9d} | {reached:31.3f} | {bar}", flush=True)
    found = score(agent.act, "test", ENV, table)
    print(f"\n{time.perf_counter() - began:.0f} s\n")
    print("on test photographs | score | 95 % interval | mean reward\n---|---|---|---")
    print(f"best fixed schedule | 0 | | {found.fixed:.4f}")
    print(f"PPO | {found.value:.3f} | {found.low:.3f} … {found.high:.3f} | {found.reward:.4f}")
    print(f"best schedule under the other noises | 1 | | {found.others:.4f}")


if __name__ == "__main__":
    main()
