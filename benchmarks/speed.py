"""Time, FLOPs, memory and start-up of SkipDiff, as ratios that are measured in turns in one run.

python -m benchmarks.speed [--checkpoint natural-x4] [--only skipdiff,memory,startup]
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence

import click
import torch

from agents.cli.command import Command
from agents.study.paper import count_flops
from agents.tables import markdown
from ddpm.checkpoints import load_unet
from ddpm.nets.denoiser import to_image
from ddpm.nets.unet import UNet
from ddpm.noise import KeyedNoise
from ddpm.sampling import sample
from ddpm.schedule import cosine_alphas_cumprod
from skipdiff_env.plan import Plan
from skipdiff_env.refinement import RefinementProcess, fixed_start

SIDE = 128


def in_turns(
    works: Mapping[str, Callable[[], object]],
    repeats: int,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Return the median seconds of each work, run in turns after one run each that is not counted."""
    for work in works.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            began = clock()
            work()
            seconds[name].append(clock() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a Markdown table under a title."""
    click.echo(f"\n{title}\n\n{markdown(headings, rows)}")


def skipdiff(unet: UNet, repeats: int) -> None:
    """Print the time and the FLOPs of the two stages, from the checkpoint's start, and of the full chain."""
    alphas_cumprod = cosine_alphas_cumprod(unet.diffusion_steps)
    plan = Plan.resolve(unet.settings)
    start = unet.settings["start"] or plan.N
    process = RefinementProcess(unet, plan)
    rows = []
    for batch in (1, 8):
        lr_up = torch.rand(batch, 3, SIDE, SIDE) * 2 - 1
        noise = KeyedNoise(range(batch), lr_up.shape[1:])

        def full(lr_up=lr_up, noise=noise) -> object:  # type: ignore[no-untyped-def]
            return to_image(unet, sample(unet, alphas_cumprod, lr_up, noise), lr_up)

        def ours(lr_up=lr_up, batch=batch) -> object:  # type: ignore[no-untyped-def]
            return process.run(process.begin(list(lr_up), range(batch)), fixed_start(start))

        with torch.inference_mode():
            seconds = in_turns({"full": full, "ours": ours}, repeats)
            counted = {"full": count_flops(full), "ours": count_flops(ours)}
        rows.append(
            (
                batch, seconds["full"] / batch, seconds["ours"] / batch, seconds["full"] / seconds["ours"],
                counted["full"] / batch / 1e9, counted["ours"] / batch / 1e9, counted["full"] / counted["ours"],
            )
        )  # fmt: skip
    T = unet.diffusion_steps
    print_table(
        f"SkipDiff (start {start}, {plan.coarse_forwards + start} forwards) against DDPM-{T}; the paper: 6.0 in time, "
        f"6.25 in FLOPs",
        (
            "batch",
            f"DDPM-{T}, s/picture",
            "SkipDiff, s/picture",
            "ratio",
            f"DDPM-{T}, GFLOPs",
            "SkipDiff, GFLOPs",
            "ratio",
        ),
        rows,
    )


def memory(checkpoint: str) -> None:
    """Print the peak memory of a process that enlarges one picture, with tiles and without."""
    code = """
import re, sys
from PIL import Image
from skipdiff_env import Upscaler
upscaler = Upscaler(sys.argv[1], steps=(2, 50), start=1, tile=int(sys.argv[3]))
side = int(sys.argv[2]) // upscaler.scale
upscaler(Image.effect_noise((side, side), 50).convert("RGB"))
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024)
"""  # only on Linux; getrusage returns the peak of the parent if that was larger
    rows = []
    for side, tile in ((512, 256), (512, 0), (1024, 256), (1024, 0), (2048, 256)):
        rows.append((f"{side} x {side}", tile or "none", round(float(_python(code, checkpoint, str(side), str(tile))))))
    print_table("Peak memory of an upscale, two forwards", ("result", "tile", "MiB"), rows)


def _python(code: str, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True
    ).stdout  # fmt: skip


def startup(checkpoint: str, repeats: int) -> None:
    """Print the seconds from the start of a process to the help, to the end of an import, and to an observation."""
    environment = f"""
import gymnasium, skipdiff_env
gymnasium.make("SkipDiff-v0", checkpoint={checkpoint!r}).reset(seed=0)
"""
    works: dict[str, Callable[[], object]] = {
        "python -c pass": lambda: _python("pass"),
        "skipdiff --help": lambda: subprocess.run(
            [sys.executable, "-m", "agents.cli", "--help"], check=True, capture_output=True
        ),
        "import skipdiff_env": lambda: _python("import skipdiff_env"),
        "gym.make to the first observation": lambda: _python(environment),
    }
    print_table("Start-up", ("what", "s"), list(in_turns(works, repeats).items()))


@click.command(cls=Command, context_settings={"show_default": True})
@click.option("--checkpoint", default="natural-x4")
@click.option("--repeats", default=5)
@click.option("--only", default="skipdiff,memory,startup", help="Parts, separated by commas.")
def main(checkpoint: str, repeats: int, only: str) -> None:
    """Print the tables."""
    unet = load_unet(checkpoint)
    parts: dict[str, Callable[[], None]] = {
        "skipdiff": lambda: skipdiff(unet, repeats),
        "memory": lambda: memory(checkpoint),
        "startup": lambda: startup(checkpoint, repeats),
    }
    unknown = [name for name in only.split(",") if name not in parts]
    if unknown:
        raise click.BadParameter(
            f"unknown part {', '.join(unknown)}; known are {', '.join(parts)}", param_hint="--only"
        )
    click.echo(f"{torch.get_num_threads()} threads, {SIDE} x {SIDE}, {checkpoint}, median of {repeats} in turns")
    for name in only.split(","):
        parts[name]()


if __name__ == "__main__":
    main()
