"""PPO in one file, in the style of CleanRL, on SkipDiffTable-v0.

The environment plays from a table of outcomes, without a net: some hundred thousand decisions a second. The policy sees
statistics of the picture's gradients, the step, the level and the price of a forward. It learns on pictures of the
train split and is judged on those of the test split, beside the schedule that is best on average for the pictures of
the train split, and beside the oracle, the best schedule for each picture and noise.

It prints a learning curve, with a bar that is full when the test reward is the oracle's, and a table of mean rewards.
It takes about half a minute on one CPU core. `skipdiff tabulate` makes larger tables than the one that is shipped.
"""

import time
from typing import Any

import click
import gymnasium as gym
import numpy as np
import torch
from torch import Tensor, nn
from torch.distributions import Categorical

from skipdiff_env import Action

ENV = "skipdiff_env:SkipDiffTable-v0"
GAMMA, LAMBDA = 1.0, 0.95
EPOCHS, MINIBATCHES = 4, 4
CLIP, VALUE_WEIGHT, ENTROPY_WEIGHT, LARGEST_GRADIENT = 0.2, 0.5, 0.01, 0.5
BAR = 40


class Agent(nn.Module):
    """Two small networks: what to do, and what to expect."""

    def __init__(self, observations: int, actions: int, width: int = 64) -> None:
        super().__init__()

        def network(outputs: int) -> nn.Sequential:
            hidden = nn.Linear(observations, width), nn.Tanh(), nn.Linear(width, width), nn.Tanh()
            return nn.Sequential(*hidden, nn.Linear(width, outputs))

        self.actor, self.critic = network(actions), network(1)

    def value(self, observations: Tensor) -> Tensor:
        """The expected reward of the rest of the episode, (B,)."""
        return self.critic(observations).squeeze(-1)

    def policy(self, observations: Tensor) -> Categorical:
        """How likely each action is."""
        return Categorical(logits=self.actor(observations))


def rollout(agent: Agent, envs: gym.vector.VectorEnv, observation: np.ndarray, steps: int) -> tuple[dict, np.ndarray]:
    """Plays all environments for some steps; gives (steps, environments, …) of everything, and the last observation."""
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
    """Generalised advantage estimates, (steps, environments)."""
    found, following = torch.zeros_like(batch["reward"]), torch.zeros_like(next_value)
    for t in reversed(range(len(found))):
        goes_on = 1 - batch["end"][t].float()
        error = batch["reward"][t] + GAMMA * goes_on * next_value - batch["value"][t]
        following = found[t] = error + GAMMA * LAMBDA * goes_on * following
        next_value = batch["value"][t]
    return found


def update(agent: Agent, optimizer: torch.optim.Optimizer, batch: dict[str, Tensor], advantage: Tensor) -> None:
    """A few epochs of PPO's clipped objective."""
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
            loss = policy_loss + VALUE_WEIGHT * value_loss - ENTROPY_WEIGHT * policy.entropy().mean()
            optimizer.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(agent.parameters(), LARGEST_GRADIENT)
            optimizer.step()


def play(agent: Agent, split: str, pictures: int, noises: int, **settings: Any) -> tuple[float, float]:
    """Mean reward and forwards on all pictures and noises of a split, without chance.

    The agent denoises at the step where it has more probably than not done so since the last time. With a probability
    of 0.2 at each of five steps it denoises about once, but always taking the likelier action it never would.
    """
    envs = gym.make_vec(ENV, num_envs=pictures * noises, split=split, autoreset_mode="Disabled", **settings)
    options = {"image": np.repeat(np.arange(pictures), noises), "noise_seed": np.tile(np.arange(noises), pictures)}
    observation, _ = envs.reset(options=options)
    ended, skipped = np.zeros(envs.num_envs, dtype=bool), torch.zeros(envs.num_envs)
    while not ended.all():  # all episodes are equally long
        with torch.no_grad():
            skipped += agent.policy(torch.from_numpy(observation)).logits[:, Action.SKIP]  # they are normalised
        denoises = skipped.exp() < 0.5
        skipped[denoises] = 0
        action = np.where(denoises.numpy(), Action.DENOISE, Action.SKIP)
        observation, reward, ended, _, info = envs.step(action)
    return float(reward.mean()), float(info["nfe"].mean())


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.option("--env-steps", default=300_000, type=click.IntRange(min=1), help="Decisions to learn from.")
@click.option("--num-envs", default=64, type=click.IntRange(min=1), help="Environments that are played together.")
@click.option("--learning-rate", default=1e-3)
@click.option("--nfe-penalty", default=0.002, help="What a forward of the net costs.")
@click.option("--table", help="Folder that `skipdiff tabulate` wrote.  [default: the table that is shipped]")
@click.option("--seed", default=0)
def main(env_steps: int, num_envs: int, learning_rate: float, nfe_penalty: float, table: str | None, seed: int) -> None:
    """Trains and compares."""
    torch.manual_seed(seed)
    settings: dict[str, Any] = {"table": table, "nfe_penalty": nfe_penalty}
    # SameStep: what follows the end of an episode is the beginning of the next, and no step is wasted between them
    envs: Any = gym.make_vec(ENV, num_envs=num_envs, split="train", autoreset_mode="SameStep", **settings)
    known = envs.unwrapped.table
    outcomes = {
        split: known.rewards(nfe_penalty, split) for split in ("train", "test")
    }  # (pictures, noises, schedules)
    random, oracle = outcomes["train"].mean(), outcomes["train"].max(axis=-1).mean()

    agent = Agent(envs.single_observation_space.shape[0], int(envs.single_action_space.n))
    optimizer = torch.optim.Adam(agent.parameters(), lr=learning_rate, eps=1e-5)
    steps = 4 * (known.first - 1)  # four whole episodes
    updates = max(1, env_steps // (steps * num_envs))
    observation, _ = envs.reset(seed=seed)
    began = time.perf_counter()
    print("env steps | train reward | test reward | train reward, from a random schedule to the oracle", flush=True)
    for done in range(1, updates + 1):
        optimizer.param_groups[0]["lr"] = learning_rate * (1 - (done - 1) / updates)
        batch, observation = rollout(agent, envs, observation, steps)
        with torch.no_grad():
            advantage = advantages(batch, agent.value(torch.from_numpy(observation)))
        update(agent, optimizer, batch, advantage)
        if done in (1, updates) or done % max(1, updates // 20) == 0:
            played = {split: play(agent, split, *own.shape[:2], **settings) for split, own in outcomes.items()}
            (reward, _), (test_reward, _) = played["train"], played["test"]
            bar = "#" * round(BAR * float(np.clip((reward - random) / (oracle - random), 0, 1)))
            print(f"{done * steps * num_envs:9d} | {reward:12.4f} | {test_reward:11.4f} | {bar}", flush=True)

    fixed = outcomes["train"].mean(axis=(0, 1)).argmax()
    lengths = np.array([len(levels) for levels in known.schedules])
    print(f"\n{time.perf_counter() - began:.0f} s\n")
    for split, own in outcomes.items():
        rows = {
            f"schedule {known.schedules[fixed]} for all": (own[..., fixed].mean(), lengths[fixed]),
            "PPO": played[split],
            "oracle": (own.max(axis=-1).mean(), lengths[own.argmax(axis=-1)].mean()),
        }
        print(f"{split} split, {len(own)} pictures | reward | forwards\n---|---|---")
        print("".join(f"{name} | {reward:.4f} | {forwards:.1f}\n" for name, (reward, forwards) in rows.items()))


if __name__ == "__main__":
    main()
