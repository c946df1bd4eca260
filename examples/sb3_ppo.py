"""Stable-Baselines3 as it comes learns how many steps a picture needs.

PPO with the stock MultiInputPolicy plays SkipDiffJump-v0 through the wrapper Stride, whose action says how many noise
levels the next step covers. It trains on crops of --images and is then played on crops of --test-images. A third of
these photographs is taken as they are, and the others are enlarged first, since photographs from a camera are as soft
as that. Without the options, it trains on crops of two of scikit-image's photographs and is played on crops of the two
others.

Beside it stand fixed numbers of even steps on the same crops. Its rival is the number that is best on the crops that it
trained on, since it is chosen from what the agent has seen, and from no more. The number that is best on the very crops
of the comparison, and the best number for each picture and noise, look at the results, which no agent can.

It prints how the training goes, and then a table of means: reward, LPIPS (lower is better), forwards of the net. It
takes --minutes on one CPU core, and a few more for the comparison; what the net gives is kept in --cache-dir, and
further runs are faster. --minutes 3 --test-pictures 16 is a quick look.
"""

import itertools
import time
from typing import Any

import click
import gymnasium as gym
import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.env_util import make_vec_env

from agents.outcomes import crops_of
from agents.vec_env import VecPictureBaseline
from ddpm.schedule import even_levels
from skipdiff_env import StartOutcomes, Stride

ENV = "skipdiff_env:SkipDiffJump-v0"
# Side of its pictures.
SIZE = 64
# By how much the photographs are enlarged before crops are taken, in turns.
ZOOMS = (1.0, 1.5, 2.0)
# Numbers of even steps that are compared.
NUMBERS = (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 12, 14, 16, 18, 20)


class Clock(BaseCallback):
    """Ends the training when its time is over, and prints how it goes."""

    def __init__(self, minutes: float) -> None:
        super().__init__()
        self.began, self.seconds, self.rollouts = time.monotonic(), 60 * minutes, 0

    def left(self) -> float:
        """The share of the time that is left, 0 … 1."""
        return max(0.0, 1 - (time.monotonic() - self.began) / self.seconds)

    def _on_step(self) -> bool:
        return self.left() > 0

    def _on_rollout_end(self) -> None:
        if self.rollouts % 8 == 0:
            episodes: Any = self.model.ep_info_buffer
            reward = np.mean([episode["r"] for episode in episodes])
            print(f"{self.num_timesteps:7d} env steps: mean reward of the last 100 episodes {reward:.4f}", flush=True)
        self.rollouts += 1


def train(minutes: float, env_steps: int, num_envs: int, seed: int, **settings: Any) -> PPO:
    """Trains an agent for some minutes, or for so many env steps if they are done before."""
    envs = make_vec_env(ENV, num_envs, seed=seed, wrapper_class=Stride, env_kwargs={**settings, "noise_seeds": 1})
    clock = Clock(minutes)
    model = PPO(
        "MultiInputPolicy",
        VecPictureBaseline(envs),  # pictures differ more than schedules: an episode counts by how it did on its picture
        n_steps=128,
        batch_size=32 * num_envs,
        n_epochs=5,
        learning_rate=lambda _: 5e-4 * clock.left(),
        gamma=1.0,  # the reward comes at the end, and an episode is short
        ent_coef=0.005,
        policy_kwargs={"normalize_images": False},  # they are no bytes, and go to the stock CNN as they are
        seed=seed,
    )
    return model.learn(env_steps, clock)


def pictures_of(images: tuple[str, ...], count: int) -> dict[str, Any]:
    """An environment's argument with crops of photographs; none without photographs."""
    crops = crops_of(images, SIZE, zooms=ZOOMS) if images else iter(())
    found = [rgb for _, rgb in itertools.islice(crops, count)]
    return {"images": found} if found else {}


def tabulate(env: gym.Env[Any, Any], count: int, noises: list[int]) -> tuple[list[int], StartOutcomes]:
    """Some pictures of an environment, evenly spread, and what the numbers of even steps come to on them."""
    inner: Any = env.unwrapped
    places = np.linspace(0, len(inner.task.pictures) - 1, min(count, len(inner.task.pictures)))
    pictures = places.astype(int).tolist()
    schedules = [even_levels(inner.task.plan.first, number) for number in NUMBERS]
    return pictures, inner.schedule_outcomes(pictures, noises, schedules)


def play(model: PPO, env: gym.Env[Any, Any], picture: int, noise_seed: int) -> tuple[float, float, int]:
    """Reward, LPIPS and forwards of an episode in which the agent takes what it thinks best."""
    observation, _ = env.reset(options={"image": picture, "noise_seed": noise_seed})
    terminated = False
    while not terminated:
        action, _ = model.predict(observation, deterministic=True)
        observation, reward, terminated, _, info = env.step(int(action))
    return float(reward), info["metrics"]["lpips"], info["nfe"]


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.option("--minutes", default=20.0, type=click.FloatRange(min=0, min_open=True), help="Of training.")
@click.option("--env-steps", default=10**6, type=click.IntRange(min=1), help="Of training, if it has not ended before.")
@click.option("--images", multiple=True, help="Photographs to train on.  [default: two of scikit-image's]")
@click.option("--crops", default=600, type=click.IntRange(min=1), help="Of these, at most.")
@click.option("--test-images", multiple=True, help="Others to play.  [default: the two others]")
@click.option("--test-pictures", default=100, type=click.IntRange(min=1), help="Crops of these, at most.")
@click.option("--test-noises", default=2, type=click.IntRange(min=1), help="Noises of each, not those of training.")
@click.option("--num-envs", default=8, type=click.IntRange(min=1), help="Environments that are played in turn.")
@click.option("--nfe-penalty", default=0.002, help="What a forward of the net costs.")
@click.option("--cache-dir", default="runs/sb3-cache", help="Folder for what was computed.")
@click.option("--checkpoint", default="natural-x4", help="The diffusion model.")
@click.option("--seed", default=0)
def main(
    minutes: float,
    env_steps: int,
    images: tuple[str, ...],
    crops: int,
    test_images: tuple[str, ...],
    test_pictures: int,
    test_noises: int,
    num_envs: int,
    nfe_penalty: float,
    cache_dir: str,
    checkpoint: str,
    seed: int,
) -> None:
    """Trains and compares."""
    settings: dict[str, Any] = {"nfe_penalty": nfe_penalty, "checkpoint": checkpoint}
    settings |= {"cache_dir": cache_dir, "cache_mb": 64}  # all share the folder, and each has a memory of its own
    seen = pictures_of(images, crops) or {"split": "train"}
    model = train(minutes, env_steps, num_envs, seed, **seen, **settings)

    unseen = pictures_of(test_images, test_pictures) or {"split": "test"}
    env = Stride(gym.make(ENV, **unseen, **settings))
    noises = list(range(1, 1 + test_noises))  # training has noise 0
    pictures, outcomes = tabulate(env, test_pictures, noises)
    rewards, lpips = outcomes.rewards, outcomes.metrics["lpips"]  # (pictures, noises, numbers)
    best = rewards.mean(axis=(0, 1)).argmax()
    trained_on = tabulate(gym.make(ENV, **seen, **settings), test_pictures, [0])[1]
    rival = trained_on.rewards.mean(axis=(0, 1)).argmax()
    own = rewards.argmax(axis=2)[..., None]

    def show(name: str, reward: float, distance: float, forwards: float) -> None:
        print(f"{name} | {reward:.4f} | {distance:.4f} | {forwards:.1f}")

    print(f"\n{len(pictures)} pictures, {test_noises} noises | reward | LPIPS | forwards\n---|---|---|---")
    for place, number in enumerate(NUMBERS):
        note = ", the best number on the crops of the training" if place == rival else ""
        note += ", the best number on these" if place == best else ""
        show(f"{number} even steps{note}", rewards[..., place].mean(), lpips[..., place].mean(), number)
    played = np.mean([play(model, env, picture, noise) for picture in pictures for noise in noises], axis=0)
    show(f"PPO after {model.num_timesteps} env steps", *played)
    chosen = np.take_along_axis(rewards, own, 2).mean(), np.take_along_axis(lpips, own, 2).mean()
    show("best number for each picture and noise", *chosen, np.take(NUMBERS, own).mean())


if __name__ == "__main__":
    main()
