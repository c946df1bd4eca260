"""PPO of RLlib on SkipDiffBanditTable-v0, the benchmark.

The environment plays from a table of outcomes, without a network. The policy observes statistics of the gradients of a
picture and chooses the schedule of the picture. It learns on training photographs. `skipdiff_env.score` computes its
score on test photographs: the best fixed schedule has the score 0, and the best one under each picture's other noises
has the score 1.

The program needs `pip install "skipdiff[rllib]"`. It prints the mean reward of each iteration, and the score. It takes
about two minutes on one CPU core.
"""

import os
import sys
import time

import click
import gymnasium as gym
import numpy as np
import torch

from skipdiff_env import score

os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
try:
    import ray
    from ray.rllib.algorithms.ppo import PPO, PPOConfig
    from ray.rllib.core.columns import Columns
except ImportError as error:
    sys.exit(f'RLlib is not there ({error}); pip install "skipdiff[rllib]"')

ENV = "SkipDiffBanditTable-v0"


def train(iterations: int, num_envs: int, learning_rate: float, seed: int) -> PPO:
    """Train an agent on training photographs, in this process."""
    ray.tune.register_env("skipdiff", lambda config: gym.make(f"skipdiff_env:{ENV}", **config))
    batch = 16 * num_envs
    config = (
        PPOConfig()
        .environment("skipdiff", env_config={"split": "train"})
        .env_runners(num_env_runners=0, num_envs_per_env_runner=num_envs)
        .training(
            train_batch_size_per_learner=batch, minibatch_size=batch // 4, num_epochs=4, gamma=1.0, lambda_=0.95,
            lr=[[0, learning_rate], [batch * iterations, 0.0]], clip_param=0.2, use_kl_loss=False,
            vf_loss_coeff=0.5, entropy_coeff=0.1, grad_clip=0.5,
        )
        .rl_module(model_config={"fcnet_hiddens": [64], "vf_share_layers": False})
        .debugging(seed=seed)
    )  # fmt: skip
    algorithm = config.build_algo()
    for _ in range(iterations):
        result = algorithm.train()
        steps, reward = result["num_env_steps_sampled_lifetime"], result["env_runners"]["episode_return_mean"]
        print(f"{int(steps):8d} env steps: mean reward {reward:.4f}", flush=True)
    return algorithm


@click.command(context_settings={"show_default": True}, help=__doc__)
@click.option(
    "--iterations",
    default=60,
    type=click.IntRange(min=1),
    help="Number of iterations, each of 16 episodes per environment.",
)
@click.option("--num-envs", default=64, type=click.IntRange(min=1), help="Number of environments in a batch.")
@click.option("--learning-rate", default=1e-3)
@click.option("--seed", default=0)
def main(iterations: int, num_envs: int, learning_rate: float, seed: int) -> None:
    """Train and score."""
    began = time.perf_counter()
    ray.init(num_cpus=1, include_dashboard=False, logging_level="ERROR")
    try:
        algorithm = train(iterations, num_envs, learning_rate, seed)
        module = algorithm.get_module()

        def act(observations: np.ndarray) -> np.ndarray:
            """The most probable actions, (B,)."""
            with torch.no_grad():
                found = module.forward_inference({Columns.OBS: torch.from_numpy(observations)})
            return found[Columns.ACTION_DIST_INPUTS].argmax(dim=-1).numpy()

        reached = score(act, "test", ENV)
        algorithm.stop()
    finally:
        ray.shutdown()
    print(f"\n{time.perf_counter() - began:.0f} s\n")
    print("on test photographs | score | 95 % interval\n---|---|---")
    print(f"RLlib's PPO | {reached.value:.3f} | {reached.low:.3f} … {reached.high:.3f}")


if __name__ == "__main__":
    main()
