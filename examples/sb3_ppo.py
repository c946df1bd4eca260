"""PPO of Stable-Baselines3 learns how many steps a picture needs, and the commands use the trained agent.

PPO with MlpPolicy plays SkipDiffBandit-v0. An action is the number of even steps that a picture gets, and the
observation is 42 statistics of the condition. The agent trains on random crops of --images, or of two photographs of
scikit-image, and then plays on crops of --test-images, or of the two other photographs.

The table compares the agent with fixed numbers of even steps on the same crops. The fair comparison is with the number
that is best on crops of the training photographs. The number that is best on the crops of the comparison, and the best
number for each picture and noise, are chosen by their results, which an agent does not know.

The program prints a table of means: reward, LPIPS (lower is better), and forwards of the network. It writes the agent
to --out, so that `skipdiff upscale --agent OUT` uses it. On one CPU core, the training takes --minutes, and the
comparison takes a few minutes more. For a quick run, pass --minutes 3 --test-pictures 16.
"""

import time
from typing import Any

import click
import gymnasium as gym
import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecMonitor

from agents import export_agent
from agents.training.vec_env import SkipDiffVecEnv, VecPictureBaseline
from ddpm.schedule import even_levels
from skipdiff_env import OutcomeTable

ENV = "skipdiff_env:SkipDiffBandit-v0"
# Numbers of even steps that the agent chooses among.
NUMBERS = (1, 2, 3, 5, 7, 10, 14, 20)
SCHEDULES = [even_levels(20, number) for number in NUMBERS]


class Clock(BaseCallback):
    """Ends the training when its time is over, and prints how it goes."""

    def __init__(self, minutes: float) -> None:
        super().__init__()
        self.began, self.seconds, self.rollouts = time.monotonic(), 60 * minutes, 0

    def _on_step(self) -> bool:
        return time.monotonic() - self.began < self.seconds

    def _on_rollout_end(self) -> None:
        if self.rollouts % 10 == 0:
            episodes: Any = self.model.ep_info_buffer
            reward = np.mean([episode["r"] for episode in episodes])
            print(f"{self.num_timesteps:7d} env steps: mean reward of the last 100 episodes {reward:.4f}", flush=True)
        self.rollouts += 1


def train(minutes: float, env_steps: int, num_envs: int, seed: int, out: str, **settings: Any) -> PPO:
    """Train an agent for some minutes, or for so many env steps if they are done before; write it to a folder."""
    env: Any = gym.make_vec(ENV, num_envs=num_envs, autoreset_mode="SameStep", crop="random", **settings)
    venv = VecMonitor(SkipDiffVecEnv(env))
    venv.seed(seed)
    model = PPO(
        "MlpPolicy",
        VecPictureBaseline(venv),  # pictures differ more than schedules: an episode counts by how it did on its picture
        n_steps=16,
        batch_size=4 * num_envs,
        learning_rate=1e-3,
        gamma=1.0,
        ent_coef=0.1,  # as PPO scales advantages to 1, less would let it settle on one number before it looks
        policy_kwargs={"net_arch": [64]},
        seed=seed,
    )
    model.learn(env_steps, Clock(minutes))
    export_agent(model, venv, out)
    return model


def tabulate(env: gym.Env[Any, Any], count: int, noises: list[int]) -> tuple[list[int], OutcomeTable]:
    """Return some pictures of an environment, evenly spread, and the outcomes of all numbers of even steps on them."""
    inner: Any = env.unwrapped
    places = np.linspace(0, len(inner.task.pictures) - 1, min(count, len(inner.task.pictures)))
    pictures = places.astype(int).tolist()
    return pictures, inner.schedule_outcomes(pictures, noises, SCHEDULES)


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.option(
    "--minutes", default=12.0, type=click.FloatRange(min=0, min_open=True), help="Time limit of the training."
)
@click.option(
    "--env-steps", default=10**6, type=click.IntRange(min=1), help="Largest number of decisions in the training."
)
@click.option("--images", multiple=True, help="Photographs to train on.  [default: two of scikit-image's]")
@click.option("--test-images", multiple=True, help="Photographs to test on.  [default: the two others]")
@click.option("--test-pictures", default=100, type=click.IntRange(min=1), help="Largest number of test crops.")
@click.option("--test-noises", default=2, type=click.IntRange(min=1), help="Number of noises of each test crop.")
@click.option("--num-envs", default=32, type=click.IntRange(min=1), help="Number of environments in a batch.")
@click.option("--nfe-penalty", default=0.002, help="Price of a forward of the network.")
@click.option("--checkpoint", default="natural-x4", help="The diffusion model.")
@click.option("--seed", default=0)
@click.option("--out", default="runs/sb3-ppo", help="Folder of the agent.")
def main(
    minutes: float,
    env_steps: int,
    images: tuple[str, ...],
    test_images: tuple[str, ...],
    test_pictures: int,
    test_noises: int,
    num_envs: int,
    nfe_penalty: float,
    checkpoint: str,
    seed: int,
    out: str,
) -> None:
    """Train and compare."""
    settings: dict[str, Any] = {"nfe_penalty": nfe_penalty, "checkpoint": checkpoint, "schedules": SCHEDULES}
    seen: dict[str, Any] = {"images": list(images)} if images else {"split": "train"}
    model = train(minutes, env_steps, num_envs, seed, out, **seen, **settings)

    unseen: dict[str, Any] = {"images": list(test_images)} if test_images else {"split": "test"}
    env = gym.make(ENV, **unseen, **settings)
    pictures, outcomes = tabulate(env, test_pictures, list(range(test_noises)))
    rewards, lpips = outcomes.rewards(), outcomes.metrics["lpips"]  # (pictures, noises, numbers)
    best = rewards.mean(axis=(0, 1)).argmax()
    trained_on = tabulate(gym.make(ENV, **seen, **settings), test_pictures, [0])[1]
    rival = trained_on.rewards().mean(axis=(0, 1)).argmax()
    own = rewards.argmax(axis=2)[..., None]

    def show(name: str, reward: float, distance: float, forwards: float) -> None:
        print(f"{name} | {reward:.4f} | {distance:.4f} | {forwards:.1f}")

    print(f"\n{len(pictures)} pictures, {test_noises} noises | reward | LPIPS | forwards\n---|---|---|---")
    for place, number in enumerate(NUMBERS):
        note = ", the best number on the photographs of the training" if place == rival else ""
        note += ", the best number on these" if place == best else ""
        show(f"{number} even steps{note}", rewards[..., place].mean(), lpips[..., place].mean(), number)
    observations = np.stack([env.reset(options={"image": picture})[0] for picture in pictures])
    chosen, _ = model.predict(observations, deterministic=True)
    agent = np.broadcast_to(chosen[:, None, None], (*rewards.shape[:2], 1))
    for name, choice in (
        (f"PPO after {model.num_timesteps} env steps", agent),
        ("best number for each picture and noise", own),
    ):
        reward, distance = (np.take_along_axis(values, choice, 2).mean() for values in (rewards, lpips))
        show(name, reward, distance, np.take(NUMBERS, choice).mean())


if __name__ == "__main__":
    main()
