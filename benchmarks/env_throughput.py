"""Speed of the environments, batched and in Gymnasium's SyncVectorEnv, with cold and warm memory; and memory use.

python -m benchmarks.env_throughput                                     the table of SkipDiff-v0
python -m benchmarks.env_throughput --variants SkipDiffJump-v0 …        the table of other variants
python -m benchmarks.env_throughput --disk --variants SkipDiffJump-v0   the speed with a full cache_dir
python -m benchmarks.env_throughput --memory                            the memory after many episodes
"""

import argparse
import itertools
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import torch
from gymnasium.vector import VectorEnv

import skipdiff_env
from ddpm.nets.unet import UNet

POLICIES = {"skip-all": 0.0, "denoise-all": 1.0, "random": 0.5}  # probability of DENOISE


def actions_of(policy: str, steps: int, num_envs: int) -> np.ndarray:
    """Return the actions (steps, num_envs) of a policy; they are the same at every call."""
    return (np.random.default_rng(0).random((steps, num_envs)) >= POLICIES[policy]).astype(np.int64)


def epoch(env: VectorEnv, actions: np.ndarray, first_seed: int, clock: Callable[[], float]) -> float:
    """Return the seconds for one episode in every environment; the seed determines the episodes."""
    began = clock()
    env.reset(seed=first_seed)
    for row in actions:
        *_, terminations, _, _ = env.step(row)
    assert terminations.all()
    return clock() - began


def made(variant: str, num_envs: int, mode: str, settings: dict[str, Any]) -> Any:
    """Return a batched environment; settings of networks are left out for a table."""
    return gym.make_vec(variant, num_envs=num_envs, vectorization_mode=mode, **({} if "Table" in variant else settings))


def throughput(
    variants: Sequence[str],
    sizes: Sequence[int],
    policies: Sequence[str],
    rounds: int,
    clock: Callable[[], float],
    settings: dict[str, Any],
) -> None:
    """Print env steps per second, the best of several rounds, and their ratios."""
    print(
        "| variant | envs | policy | sync cold | batched cold | ratio | sync warm | batched warm | ratio | batched "
        "warm / cold |"
    )
    print("|---" * 10 + "|")
    for variant, num_envs, policy in itertools.product(variants, sizes, policies):
        envs = [made(variant, num_envs, mode, settings) for mode in ("sync", "vector_entry_point")]
        decisions = envs[1].tree.longest if "Table" in variant else envs[1].task.decisions
        actions = actions_of(policy, decisions, num_envs)
        # every round has new noises, so nothing is remembered; the two take turns, so both run under the same load
        seeds = [1000 * i for i in range(rounds)]
        cold = [[epoch(env, actions, seed, clock) for env in envs] for seed in seeds]
        warm = [[epoch(env, actions, seed, clock) for env in envs] for seed in seeds * 3]
        (sync_cold, ours_cold), (sync_warm, ours_warm) = (
            [actions.size / min(column) for column in zip(*times, strict=True)] for times in (cold, warm)
        )
        print(
            f"| {variant} | {num_envs} | {policy} | {sync_cold:.1f} | {ours_cold:.1f} | {ours_cold / sync_cold:.2f} "
            f"| {sync_warm:.0f} | {ours_warm:.0f} | {ours_warm / sync_warm:.2f} | {ours_warm / ours_cold:.0f} |",
            flush=True,
        )


def disk(
    variants: Sequence[str], sizes: Sequence[int], rounds: int, clock: Callable[[], float], settings: dict[str, Any]
) -> None:
    """Print env steps per second without cache_dir, while it is filled, and with a full cache_dir."""
    print("| variant | envs | no cache_dir | cold | warm, from disk | warm / cold | MiB |")
    print("|---" * 7 + "|")
    for variant, num_envs in itertools.product(variants, sizes):
        with tempfile.TemporaryDirectory() as folder:
            plain, cold, warm = (
                made(variant, num_envs, "vector_entry_point", {**settings, "cache_mb": 0, "cache_dir": cache})
                for cache in (None, folder, folder)
            )
            actions = actions_of("random", cold.task.decisions, num_envs)
            times = [[epoch(env, actions, 1000 * i, clock) for env in (plain, cold, warm)] for i in range(rounds)]
            speeds = [actions.size / min(column) for column in zip(*times, strict=True)]
            used = sum(file.stat().st_size for file in Path(folder).rglob("*.safetensors")) / 2**20
            print(
                f"| {variant} | {num_envs} | {speeds[0]:.1f} | {speeds[1]:.1f} | {speeds[2]:.1f} "
                f"| {speeds[2] / speeds[1]:.0f} | {used:.0f} |",
                flush=True,
            )


def memory(cache_mb: int) -> None:
    """Print the memory of the process after 100 and after 2,000 different episodes."""
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


def command_line() -> argparse.ArgumentParser:
    """Return the options."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--memory", action="store_true", help="measure memory instead of speed")
    parser.add_argument("--disk", action="store_true", help="measure cache_dir instead of memory")
    parser.add_argument("--variants", nargs="+", default=["SkipDiff-v0"], choices=skipdiff_env.VARIANTS)
    parser.add_argument("--policies", nargs="+", default=list(POLICIES), choices=POLICIES)
    parser.add_argument("--num-envs", type=int, nargs="+", default=[1, 4, 16])
    parser.add_argument("--rounds", type=int, default=3, help="epochs of one episode per environment; the best counts")
    parser.add_argument(
        "--cpu-time", action="store_true", help="processor time instead of wall time: on a busy machine"
    )
    parser.add_argument("--checkpoint", help="[default: the variant's]")
    parser.add_argument("--image-size", type=int, help="[default: the variant's]")
    parser.add_argument("--steps", type=int, nargs=2, metavar=("S", "N"), help="[default: the variant's]")
    parser.add_argument("--metric", help="[default: the variant's]")
    parser.add_argument("--cache-mb", type=int, default=512)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--device", default="cpu")
    return parser


def main() -> None:
    """Run the measurements that the command line names."""
    arguments = command_line().parse_args()
    torch.set_num_threads(arguments.threads)
    if arguments.memory:
        memory(arguments.cache_mb)
        return
    names = ("checkpoint", "image_size", "steps", "metric", "cache_mb", "device")
    settings = {name: getattr(arguments, name) for name in names if getattr(arguments, name) is not None}
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    if arguments.disk:
        disk(arguments.variants, arguments.num_envs, arguments.rounds, clock, settings)
    else:
        throughput(arguments.variants, arguments.num_envs, arguments.policies, arguments.rounds, clock, settings)


if __name__ == "__main__":
    main()
