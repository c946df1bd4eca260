"""How fast SkipDiff-v0 is: batched against Gymnasium's SyncVectorEnv, cold against warm memory, and what it keeps.

python benchmarks/env_throughput.py             the table of ratios
python benchmarks/env_throughput.py --memory    the memory after many episodes
"""

import argparse
import tempfile
import time
from collections.abc import Callable, Sequence
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import torch
from gymnasium.vector import VectorEnv

import skipdiff_env  # noqa: F401
from agents.study.tables import markdown
from ddpm.unet import UNet

POLICIES = {"skip-all": 0.0, "denoise-all": 1.0, "random": 0.5}  # probability of DENOISE


def actions_of(policy: str, steps: int, num_envs: int) -> np.ndarray:
    """Actions (steps, num_envs) of a policy; the same at every call."""
    return (np.random.default_rng(0).random((steps, num_envs)) >= POLICIES[policy]).astype(np.int64)


def epoch(env: VectorEnv, actions: np.ndarray, first_seed: int, clock: Callable[[], float]) -> float:
    """Seconds for one episode in every environment, given by the seed."""
    began = clock()
    env.reset(seed=first_seed)
    for row in actions:
        *_, terminations, _, _ = env.step(row)
    assert terminations.all()
    return clock() - began


def throughput(sizes: Sequence[int], rounds: int, clock: Callable[[], float], settings: dict[str, Any]) -> None:
    """Prints env steps per second, the best of some rounds, and their ratios."""
    headings = (
        "envs", "policy", "sync cold", "batched cold", "ratio", "sync warm", "batched warm", "ratio", "batched warm / cold",
    )  # fmt: skip
    lines = []
    for num_envs in sizes:
        for policy in POLICIES:
            envs = [
                gym.make_vec("SkipDiff-v0", num_envs=num_envs, vectorization_mode=mode, **settings)
                for mode in ("sync", "vector_entry_point")
            ]
            actions = actions_of(policy, settings["steps"][1] - 1, num_envs)
            # every round has new noises, so it finds nothing remembered; the two take turns, so both see the same load
            seeds = [1000 * i for i in range(rounds)]
            cold = [[epoch(env, actions, seed, clock) for env in envs] for seed in seeds]
            warm = [[epoch(env, actions, seed, clock) for env in envs] for seed in seeds * 3]
            (sync_cold, ours_cold), (sync_warm, ours_warm) = (
                [actions.size / min(column) for column in zip(*times, strict=True)] for times in (cold, warm)
            )
            cold_figures = (f"{sync_cold:.1f}", f"{ours_cold:.1f}", f"{ours_cold / sync_cold:.2f}")
            warm_figures = (f"{sync_warm:.0f}", f"{ours_warm:.0f}", f"{ours_warm / sync_warm:.2f}")
            lines.append((num_envs, policy, *cold_figures, *warm_figures, f"{ours_warm / ours_cold:.0f}"))
    print(markdown(headings, lines))


def memory(cache_mb: int) -> None:
    """Prints the memory of the process after 100 and after 2,000 episodes that never come twice."""
    process = psutil.Process()
    with tempfile.TemporaryDirectory() as folder:
        UNet(
            width=8, multipliers=(1, 2), blocks=1, attention_resolutions=(), norm_groups=4, patch_size=2
        ).save_pretrained(folder)
        env = gym.make_vec(
            "SkipDiff-v0", num_envs=4, checkpoint=folder, image_size=64, metric="psnr", cache_mb=cache_mb,
            autoreset_mode="SameStep",
        )  # fmt: skip
    env.reset(seed=0)
    env.action_space.seed(0)
    used = {}
    for episodes in range(4, 2001, 4):
        for _ in range(9):
            env.step(env.action_space.sample())
        if episodes in (100, 2000):
            used[episodes] = process.memory_info().rss / 2**20
    print(f"resident after 100 episodes {used[100]:.0f} MiB, after 2,000 {used[2000]:.0f} MiB")
    grown = used[2000] - used[100]
    print(
        f"grown by {grown:.0f} MiB with cache_mb = {cache_mb}: {'within' if grown <= cache_mb else 'ABOVE'} the limit"
    )


def main() -> None:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true", help="measure memory instead of speed")
    parser.add_argument("--num-envs", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=3, help="epochs of one episode per environment; the best counts")
    parser.add_argument(
        "--cpu-time", action="store_true", help="processor time instead of wall time: on a busy machine"
    )
    parser.add_argument("--checkpoint", default="natural-x4")
    parser.add_argument("--image-size", type=int, default=128)
    parser.add_argument("--steps", type=int, nargs=2, default=[10, 10], metavar=("S", "N"))
    parser.add_argument("--metric", default="niqe")
    parser.add_argument("--cache-mb", type=int, default=512)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory:
        memory(arguments.cache_mb)
        return
    names = ("checkpoint", "image_size", "steps", "metric", "cache_mb", "device")
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    throughput(arguments.num_envs, arguments.rounds, clock, {name: getattr(arguments, name) for name in names})


if __name__ == "__main__":
    main()
