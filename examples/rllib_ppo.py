"""RLlib's PPO on SkipDiffTable-v0.

The environment plays from a table of outcomes, without a net. The policy sees statistics of the picture's gradients,
the step, the level and the price of a forward. It learns on pictures of the train split and is then played on both
splits, beside the schedule that is best on average for the pictures of the train split, and beside the oracle, the best
schedule for each picture and noise.

It wants `pip install "skipdiff[rllib]"`. It prints the mean reward of each iteration and a table of mean rewards. It
takes about two minutes on one CPU core.
"""

import os
import sys
import time
from typing import Any

import click
import gymnasium as gym
import numpy as np
import torch

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
try:
    import ray
    from ray.rllib.algorithms.ppo import PPO, PPOConfig
    from ray.rllib.core.columns import Columns
except ImportError as error:
    sys.exit(f'RLlib is not there ({error}); pip install "skipdiff[rllib]"')

ENV = "skipdiff_env:SkipDiffTable-v0"


def train(iterations: int, num_envs: int, learning_rate: float, seed: int, **settings: Any) -> PPO:
    """Trains an agent on the pictures of the train split, in this process."""
    ray.tune.register_env("skipdiff", lambda config: gym.make(ENV, **config))
    decisions = gym.make(ENV, **settings).unwrapped.table.first - 1  # type: ignore[attr-defined]
    batch = 4 * decisions * num_envs  # four whole episodes in each environment
    config = (
        PPOConfig()
        .environment("skipdiff", env_config={**settings, "split": "train"})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=num_envs)
        .training(
            train_batch_size_per_learner=batch, minibatch_size=batch // 4, num_epochs=4, gamma=1.0, lambda_=0.95,
            lr=[[0, learning_rate], [batch * iterations, 0.0]], clip_param=0.2, use_kl_loss=False,
            vf_loss_coeff=0.5, entropy_coeff=0.01, grad_clip=0.5,
        )
        .rl_module(model_config={"fcnet_hiddens": [64, 64], "vf_share_layers": False})
        .debugging(seed=seed)
    )  # fmt: skip
    algorithm = config.build_algo()
    for _ in range(iterations):
        result = algorithm.train()
        steps, reward = result["num_env_steps_sampled_lifetime"], result["env_runners"]["episode_return_mean"]
        print(f"{int(steps):8d} env steps: mean reward {reward:.4f}", flush=True)
    return algorithm


def play(algorithm: PPO, split: str, pictures: int, noises: int, **settings: Any) -> tuple[float, float]:
    """Mean reward and forwards on all pictures and noises of a split, always with the likelier action."""
    envs = gym.make_vec(ENV, num_envs=pictures * noises, split=split, autoreset_mode="Disabled", **settings)
    options = {"image": np.repeat(np.arange(pictures), noises), "noise_seed": np.tile(np.arange(noises), pictures)}
    observation, _ = envs.reset(options=options)
    module, ended = algorithm.get_module(), np.zeros(envs.num_envs, dtype=bool)
    while not ended.all():  # all episodes are equally long
        with torch.no_grad():
            found = module.forward_inference({Columns.OBS: torch.from_numpy(observation)})
        action = found[Columns.ACTION_DIST_INPUTS].argmax(dim=-1)
        observation, reward, ended, _, info = envs.step(action.numpy())
    return float(reward.mean()), float(info["nfe"].mean())


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.option("--iterations", default=100, type=click.IntRange(min=1), help="Each of four episodes per environment.")
@click.option("--num-envs", default=64, type=click.IntRange(min=1), help="Environments that are played together.")
@click.option("--learning-rate", default=1e-3)
@click.option("--nfe-penalty", default=0.002, help="What a forward of the net costs.")
@click.option("--table", help="Folder that `skipdiff tabulate` wrote.  [default: the table that is shipped]")
@click.option("--seed", default=0)
def main(
    iterations: int, num_envs: int, learning_rate: float, nfe_penalty: float, table: str | None, seed: int
) -> None:
    """Trains and compares."""
    settings: dict[str, Any] = {"table": None if table is None else os.path.abspath(table), "nfe_penalty": nfe_penalty}
    known = gym.make(ENV, **settings).unwrapped.table  # type: ignore[attr-defined]
    outcomes = {
        split: known.rewards(nfe_penalty, split) for split in ("train", "test")
    }  # (pictures, noises, schedules)
    began = time.perf_counter()
    ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR")
    try:
        algorithm = train(iterations, num_envs, learning_rate, seed, **settings)
        played = {split: play(algorithm, split, *own.shape[:2], **settings) for split, own in outcomes.items()}
        algorithm.stop()
    finally:
        ray.shutdown()

    fixed = outcomes["train"].mean(axis=(0, 1)).argmax()
    lengths = np.array([len(levels) for levels in known.schedules])
    print(f"\n{time.perf_counter() - began:.0f} s\n")
    for split, own in outcomes.items():
        rows = {
            f"schedule {known.schedules[fixed]} for all": (own[..., fixed].mean(), lengths[fixed]),
            "RLlib's PPO": played[split],
            "oracle": (own.max(axis=-1).mean(), lengths[own.argmax(axis=-1)].mean()),
        }
        print(f"{split} split, {len(own)} pictures | reward | forwards\n---|---|---")
        print("".join(f"{name} | {reward:.4f} | {forwards:.1f}\n" for name, (reward, forwards) in rows.items()))


if __name__ == "__main__":
    main()
