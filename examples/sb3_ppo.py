"""Stable-Baselines3 as it comes learns how many steps a picture needs.

PPO with the stock MultiInputPolicy plays SkipDiffJump-v0 through the wrapper VecEvenSteps: an action is the number of
even steps that a picture gets. JumpExtractor, its features extractor, sees the condition.

It trains on crops of --images and is then played on crops of --test-images. Without these options, it trains on crops
of two of scikit-image's photographs and is played on crops of the two others.

Beside it stand fixed numbers of even steps on the same crops. Its rival is the number that is best on the crops that it
trained on, since it is chosen from what the agent has seen, and from no more. The number that is best on the very crops
of the comparison, and the best number for each picture and noise, look at the results, which no agent can.

It prints how the training goes, and then a table of means: reward, LPIPS (lower is better), forwards of the net. It
takes --minutes on one CPU core, and a few more for the comparison. --minutes 3 --crops 100 --test-pictures 16 is a
quick look.
"""

import itertools
import time
from typing import Any

import click
import gymnasium as gym
import numpy as np
from stable_baselines3 import PPO
from stable_baselines3.common.callbacks import BaseCallback
from stable_baselines3.common.vec_env import VecEnv, VecEnvWrapper, VecMonitor

from agents.networks.jump_extractor import JumpExtractor
from agents.training.even_outcomes import EVEN_NUMBERS, crops_of
from agents.training.vec_env import SkipDiffVecEnv, VecEvenSteps, VecPictureBaseline
from ddpm.schedule import even_levels
from skipdiff_env import StartOutcomes

ENV = "skipdiff_env:SkipDiffJump-v0"
# Side of its pictures.
SIZE = 64
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
        if self.rollouts % 10 == 0:
            episodes: Any = self.model.ep_info_buffer
            reward = np.mean([episode["r"] for episode in episodes])
            print(f"{self.num_timesteps:7d} env steps: mean reward of the last 100 episodes {reward:.4f}", flush=True)
        self.rollouts += 1


class Turned(VecEnvWrapper):
    """Shows conditions turned and mirrored at random, lest the agent learns the pictures by heart."""

    def __init__(self, venv: VecEnv, seed: int) -> None:
        super().__init__(venv)
        self.rng = np.random.default_rng(seed)

    def turned(self, observations: Any) -> dict[str, Any]:
        """All of them the same way."""
        conditions = np.rot90(observations["condition"], int(self.rng.integers(4)), axes=(2, 3))
        return {**observations, "condition": np.ascontiguousarray(conditions[..., :: self.rng.choice([1, -1])])}

    def reset(self) -> Any:
        """Begins."""
        return self.turned(self.venv.reset())

    def step_wait(self) -> Any:
        """Plays an episode in each environment."""
        observations, *rest = self.venv.step_wait()
        return self.turned(observations), *rest


def train(minutes: float, env_steps: int, num_envs: int, seed: int, **settings: Any) -> PPO:
    """Trains an agent for some minutes, or for so many env steps if they are done before."""
    env: Any = gym.make_vec(ENV, num_envs=num_envs, autoreset_mode="SameStep", noise_seeds=1, **settings)
    venv = VecMonitor(Turned(VecEvenSteps(SkipDiffVecEnv(env)), seed))
    venv.seed(seed)
    clock = Clock(minutes)
    model = PPO(
        "MultiInputPolicy",
        VecPictureBaseline(venv),  # pictures differ more than schedules: an episode counts by how it did on its picture
        n_steps=32,
        batch_size=4 * num_envs,
        n_epochs=4,
        learning_rate=lambda _: 1e-3 * min(1, 2.5 * clock.left()),
        gamma=1.0,
        ent_coef=0.03,  # as PPO scales advantages to 1, less would let it settle on one number before it looks
        policy_kwargs={
            "features_extractor_class": JumpExtractor,
            "features_extractor_kwargs": {"see_latent": False},
            "normalize_images": False,  # they are no bytes
        },
        seed=seed,
    )
    return model.learn(env_steps, clock)


def pictures_of(images: tuple[str, ...], count: int) -> dict[str, Any]:
    """An environment's argument with crops of photographs; none without photographs."""
    crops = crops_of(images, SIZE) if images else iter(())
    found = [rgb for _, rgb in itertools.islice(crops, count)]
    return {"images": found} if found else {}


def tabulate(env: gym.Env[Any, Any], count: int, noises: list[int]) -> tuple[list[int], StartOutcomes]:
    """Some pictures of an environment, evenly spread, and what the numbers of even steps come to on them."""
    inner: Any = env.unwrapped
    places = np.linspace(0, len(inner.task.pictures) - 1, min(count, len(inner.task.pictures)))
    pictures = places.astype(int).tolist()
    schedules = [even_levels(inner.task.plan.first, number) for number in NUMBERS]
    return pictures, inner.schedule_outcomes(pictures, noises, schedules)


def choose(model: PPO, env: gym.Env[Any, Any], picture: int) -> int:
    """The number of steps that the agent thinks best for a picture, as its place among NUMBERS."""
    observation, _ = env.reset(options={"image": picture})
    action, _ = model.predict({key: observation[key] for key in model.observation_space}, deterministic=True)  # type: ignore[attr-defined]
    return NUMBERS.index(EVEN_NUMBERS[int(action)])


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.option("--minutes", default=12.0, type=click.FloatRange(min=0, min_open=True), help="Of training.")
@click.option("--env-steps", default=10**6, type=click.IntRange(min=1), help="Of training, if it has not ended before.")
@click.option("--images", multiple=True, help="Photographs to train on.  [default: two of scikit-image's]")
@click.option("--crops", default=1500, type=click.IntRange(min=1), help="Of these, at most.")
@click.option("--test-images", multiple=True, help="Others to play.  [default: the two others]")
@click.option("--test-pictures", default=100, type=click.IntRange(min=1), help="Crops of these, at most.")
@click.option("--test-noises", default=2, type=click.IntRange(min=1), help="Noises of each, not those of training.")
@click.option("--num-envs", default=32, type=click.IntRange(min=1), help="Environments in a batch.")
@click.option("--nfe-penalty", default=0.002, help="What a forward of the net costs.")
@click.option("--cache-mb", default=4096, help="Memory for what was computed.")
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
    cache_mb: int,
    checkpoint: str,
    seed: int,
) -> None:
    """Trains and compares."""
    settings: dict[str, Any] = {"nfe_penalty": nfe_penalty, "checkpoint": checkpoint, "cache_mb": cache_mb}
    seen = pictures_of(images, crops) or {"split": "train"}
    model = train(minutes, env_steps, num_envs, seed, **seen, **settings)

    unseen = pictures_of(test_images, test_pictures) or {"split": "test"}
    env = gym.make(ENV, **unseen, **settings)
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
    agent = np.broadcast_to([[[choose(model, env, picture)]] for picture in pictures], (*rewards.shape[:2], 1))
    for name, choice in (
        (f"PPO after {model.num_timesteps} env steps", agent),
        ("best number for each picture and noise", own),
    ):
        reward, distance = (np.take_along_axis(values, choice, 2).mean() for values in (rewards, lpips))
        show(name, reward, distance, np.take(NUMBERS, choice).mean())


if __name__ == "__main__":
    main()
