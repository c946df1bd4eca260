"""Your own diffusion model: a network that was trained with other code, and an agent that is trained on it.

`Theirs` is a small network that predicts the noise from x_t, the enlarged picture and a discrete t of 60, with a linear
schedule of betas. `train` trains it and does not use this project. `Wrapped` makes the network a `Denoiser`. The
environments, the samplers, `Upscaler` and the commands need nothing else.

PPO of Stable-Baselines3 then learns on SkipDiffBandit-v0 which of several schedules each crop of scikit-image's
photographs gets. The program prints the mean reward of each schedule and of the agent on crops that neither the network
nor the agent has seen.

With the defaults, it takes a few minutes on one CPU core. The network learns little in this time; pass --iterations
3000 for a better one.
"""

from typing import Any

import click
import gymnasium as gym
import numpy as np
import torch
import torch.nn.functional as F
from stable_baselines3 import PPO
from torch import Tensor, nn

from agents.training.vec_env import SkipDiffVecEnv
from ddpm.nets.denoiser import AlphaBar, Denoiser, Estimate
from ddpm.schedule import FloatArray
from skipdiff_env.pictures import Pictures

SCALE, T = 4, 60
BETAS = np.linspace(1e-3, 0.15, T)
SCHEDULES = ("12", "12,6", "12,8,4", "12,10,8,6,4,2", "even:12")


# --- what someone has: a network, and the code that trained it ---


class Theirs(nn.Module):
    """Predicts the noise in x_t, (B, 3, H, W)."""

    def __init__(self, width: int = 24) -> None:
        super().__init__()
        self.of_t = nn.Embedding(T, width)
        self.first = nn.Conv2d(6, width, 3, padding=1)
        self.inner = nn.ModuleList(nn.Conv2d(width, width, 3, padding=1) for _ in range(3))
        self.last = nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, x_t: Tensor, large: Tensor, t: Tensor) -> Tensor:
        """The noise, from x_t, the enlarged picture and t, (B,), 0 … T - 1."""
        x = self.first(torch.cat([x_t, large], dim=1)) + self.of_t(t)[:, :, None, None]
        for layer in self.inner:
            x = x + layer(F.silu(x))
        return self.last(x)


def train(network: Theirs, iterations: int, crops: Tensor) -> None:
    """The owner's own training."""
    alphas = torch.from_numpy(np.cumprod(1 - BETAS)).float()
    adam = torch.optim.Adam(network.parameters(), 2e-3)
    for _ in range(iterations):
        hr = crops[torch.randint(len(crops), (8,))]
        large = F.interpolate(F.avg_pool2d(hr, SCALE), scale_factor=SCALE, mode="bicubic")
        t, noise = torch.randint(T, (8,)), torch.randn_like(hr)
        a = alphas[t][:, None, None, None]
        loss = F.mse_loss(network(a.sqrt() * hr + (1 - a).sqrt() * noise, large, t), noise)
        adam.zero_grad()
        loss.backward()
        adam.step()
    network.eval().requires_grad_(False)


# --- what this project needs of it ---


class Wrapped(Denoiser):
    """The network as a `Denoiser`: it enlarges four times, takes sides of any length, and knows the levels of BETAS.

    Args:
        network: trained.
    """

    scale, multiple = SCALE, 1

    def __init__(self, network: Theirs) -> None:
        self.network = network
        # index 0 is the clean image
        self.alphas_cumprod: FloatArray = np.concatenate([[1.0], np.cumprod(1 - BETAS)])

    def condition(self, lr_image: Tensor) -> Tensor:
        """The enlarged picture, made as in their training."""
        return F.interpolate(lr_image, scale_factor=SCALE, mode="bicubic").clamp(-1, 1)

    def predict(self, x: Tensor, alpha_bar: AlphaBar, condition: Tensor) -> Estimate:
        """x_0 and ε. The level is one for all or one for each, and always one of `alphas_cumprod`."""
        levels = np.broadcast_to(alpha_bar, len(x))
        t = torch.as_tensor(np.abs(self.alphas_cumprod[1:] - levels[:, None]).argmin(axis=1))
        eps = self.network(x, condition, t)
        a = torch.as_tensor(levels.copy(), dtype=x.dtype)[:, None, None, None]
        return (x - (1 - a).sqrt() * eps) / a.sqrt(), eps


# --- an agent that is trained on it ---


def environment(denoiser: Denoiser, split: str, size: int, count: int) -> SkipDiffVecEnv:
    """Environments on crops of scikit-image's photographs; one decision gives a crop its schedule."""
    settings: dict[str, Any] = {
        "denoiser": denoiser, "split": split, "image_size": size, "steps": (1, 12), "schedules": SCHEDULES,
        "nfe_penalty": 0.002, "noise_seeds": 4, "autoreset_mode": "SameStep",
    }  # fmt: skip
    batched: Any = gym.make_vec("skipdiff_env:SkipDiffBandit-v0", num_envs=count, **settings).unwrapped
    return SkipDiffVecEnv(batched)


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.option(
    "--iterations", default=300, type=click.IntRange(min=1), help="Number of iterations in the training of the network."
)
@click.option(
    "--env-steps", default=2048, type=click.IntRange(min=1), help="Number of decisions in the training of the agent."
)
@click.option("--image-size", default=64, type=click.IntRange(min=16), help="Side of the crops in pixels.")
@click.option("--pictures", default=32, type=click.IntRange(min=1), help="Number of crops in the comparison.")
@click.option("--num-envs", default=16, type=click.IntRange(min=2), help="Number of environments in a batch.")
def main(iterations: int, env_steps: int, image_size: int, pictures: int, num_envs: int) -> None:
    """Trains the network and the agent, and compares."""
    torch.manual_seed(0)
    crops = Pictures(None, image_size, "train")
    pixels = np.stack([crops[i] for i in range(len(crops))])
    network = Theirs()
    train(network, iterations, torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1)
    denoiser = Wrapped(network)

    env = environment(denoiser, "train", image_size, num_envs)
    agent = PPO("MlpPolicy", env, n_steps=8, batch_size=4 * num_envs, learning_rate=1e-3, ent_coef=0.05, seed=0)
    agent.learn(env_steps)

    test: Any = gym.make(
        "skipdiff_env:SkipDiffBandit-v0", denoiser=denoiser, split="test", image_size=image_size, steps=(1, 12),
        schedules=SCHEDULES, nfe_penalty=0.002,
    ).unwrapped  # fmt: skip
    places = np.linspace(0, len(test.task.pictures) - 1, min(pictures, len(test.task.pictures))).astype(int).tolist()
    rewards = test.schedule_outcomes(places, [0], SCHEDULES).rewards()[:, 0]
    features = [test.reset(options={"image": place, "noise_seed": 0})[0] for place in places]
    chosen = agent.predict(np.stack(features), deterministic=True)[0]
    print(f"{len(places)} crops\n\nschedule | mean reward | share of the agent's choices\n---|---|---")
    for i, schedule in enumerate(SCHEDULES):
        print(f"{schedule} | {rewards[:, i].mean():.4f} | {np.mean(chosen == i):.0%}")
    print(f"agent | {rewards[np.arange(len(places)), chosen].mean():.4f} | -")
    print(f"best for each crop and noise | {rewards.max(axis=1).mean():.4f} | -")


if __name__ == "__main__":
    main()
