"""Stable-Baselines3 as it comes learns how many steps a picture needs.

PPO with the stock MultiInputPolicy trains on crops of two of scikit-image's photographs and is then played on crops of
the two others, beside fixed numbers of even steps on these same crops, so that the best of them is the hardest rival
there can be. "Best number for each picture" tries all of them on each picture and looks at the results, which no agent
can.

It prints how the training goes, and then a table of means: reward, LPIPS (lower is better), forwards of the net. On one
CPU core it takes about a quarter of an hour; what the net gives is kept in --cache-dir, and further runs are faster.
--env-steps 10000 --test-pictures 16 is a quick look.
"""

from typing import Any

import click
import gymnasium as gym
import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from ddpm.schedule import even_levels

ENV = "skipdiff_env:SkipDiffJump-v0"
# Numbers of even steps that are compared.
NUMBERS = (1, 2, 3, 4, 5, 6, 8, 10, 12, 16, 20)


class Report(BaseCallback):
    """Prints how the training goes, after every eighth collection of episodes."""

    rollouts = 0

    def _on_step(self) -> bool:
        return True

    def _on_rollout_end(self) -> None:
        if self.rollouts % 8 == 0:
            reward = np.mean([episode["r"] for episode in self.model.ep_info_buffer or []])
            print(f"{self.num_timesteps:7d} env steps: mean reward of the last 100 episodes {reward:.4f}", flush=True)
        self.rollouts += 1


def train(env_steps: int, num_envs: int, seed: int, **settings: Any) -> PPO:
    """Trains an agent on the photographs of the train split."""
    envs = make_vec_env(ENV, num_envs, seed=seed, env_kwargs={**settings, "split": "train", "noise_seeds": 1})
    decisions = envs.get_attr("task")[0].decisions
    model = PPO(
        "MultiInputPolicy",
        envs,
        n_steps=4 * decisions,  # whole episodes
        batch_size=2 * decisions * num_envs,
        gamma=1.0,  # the reward comes at the end, and an episode is short
        ent_coef=0.005,
        policy_kwargs={"normalize_images": False},  # they are no bytes, and go to the stock CNN as they are
        seed=seed,
    )
    model.learn(env_steps, Report())
    return model


def play(model: PPO, env: gym.Env[Any, Any], picture: int) -> tuple[float, float, int]:
    """Reward, LPIPS and forwards of an episode in which the agent takes what it thinks best."""
    observation, _ = env.reset(options={"image": picture, "noise_seed": 0})
    terminated = False
    while not terminated:
        action, _ = model.predict(observation, deterministic=True)
        observation, reward, terminated, _, info = env.step(int(action))
    return float(reward), info["metrics"]["lpips"], info["nfe"]


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.option(
    "--env-steps", default=50_000, type=click.IntRange(min=1), help="Decisions to learn from; an episode has 19."
)
@click.option("--num-envs", default=8, type=click.IntRange(min=1), help="Environments that are played in turn.")
@click.option("--test-pictures", default=88, type=click.IntRange(min=1), help="Crops of the test split to play.")
@click.option("--nfe-penalty", default=0.002, help="What a forward of the net costs.")
@click.option("--cache-dir", default="runs/sb3-cache", help="Folder for what was computed.")
@click.option("--checkpoint", default="natural-x4", help="The diffusion model.")
@click.option("--seed", default=0)
def main(
    env_steps: int, num_envs: int, test_pictures: int, nfe_penalty: float, cache_dir: str, checkpoint: str, seed: int
) -> None:
    """Trains and compares."""
    settings: dict[str, Any] = {"nfe_penalty": nfe_penalty, "checkpoint": checkpoint}
    settings |= {"cache_dir": cache_dir, "cache_mb": 64}  # all share the folder, and each has a memory of its own
    model = train(env_steps, num_envs, seed, **settings)

    env: Any = gym.make(ENV, split="test", **settings).unwrapped
    task = env.task
    pictures = np.linspace(0, len(task.pictures) - 1, min(test_pictures, len(task.pictures))).astype(int).tolist()
    schedules = [even_levels(task.plan.first, number) for number in NUMBERS]
    outcomes = env.schedule_outcomes(pictures, [0], schedules)
    rewards, lpips = outcomes.rewards[:, 0], outcomes.metrics["lpips"][:, 0]  # (pictures, numbers)
    best, own = rewards.mean(axis=0).argmax(), (np.arange(len(pictures)), rewards.argmax(axis=1))

    def show(name: str, reward: float, distance: float, forwards: float) -> None:
        print(f"{name} | {reward:.4f} | {distance:.4f} | {forwards:.1f}")

    print(f"\n{len(pictures)} pictures of the test split | reward | LPIPS | forwards\n---|---|---|---")
    for place, number in enumerate(NUMBERS):
        note = ", the best fixed number" if place == best else ""
        show(f"{number} even steps{note}", rewards[:, place].mean(), lpips[:, place].mean(), number)
    played = np.mean([play(model, env, picture) for picture in pictures], axis=0)
    show(f"PPO after {model.num_timesteps} env steps", *played)
    show("best number for each picture", rewards[own].mean(), lpips[own].mean(), np.take(NUMBERS, own[1]).mean())


if __name__ == "__main__":
    main()
