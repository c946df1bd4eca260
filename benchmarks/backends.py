"""Time of an enlargement with torch, ONNX Runtime and OpenVINO on one core, measured in turns in one run.

pip install 'skipdiff[onnxruntime,openvino]'
python -m benchmarks.backends [--checkpoint natural-x4] [--sides 64,256] [--repeats 5] [--cpu-time]
"""

import time
from collections.abc import Callable
from functools import partial

import click
import numpy as np
import torch

from agents.cli.command import Command
from agents.cli.options import numbers
from benchmarks.speed import in_turns, print_table
from ddpm.nets.backends import BACKENDS
from ddpm.pictures.images import to_tensor, to_uint8
from skipdiff_env.upscaler import Upscaler

PARTS = ("predictor", "forward", "enlargement")


@torch.inference_mode()
def run(part: str, upscaler: Upscaler, lr_image: torch.Tensor) -> torch.Tensor:
    """Return the condition, the estimate, or the result of one forward."""
    if part == "enlargement":
        return upscaler.upscale([lr_image], [0])[0].sr
    if part == "predictor":
        return upscaler.unet.condition(lr_image[None])
    lr_up = torch.nn.functional.interpolate(lr_image[None], scale_factor=upscaler.scale)
    return upscaler.denoiser.predict(lr_up, 0.25, lr_up)[0]


@click.command(cls=Command, context_settings={"show_default": True})
@click.option("--checkpoint", default="natural-x4")
@click.option("--sides", callback=numbers(), default="64,256", help="Sides of the pictures that are enlarged.")
@click.option("--repeats", type=click.IntRange(min=1), default=5)
@click.option("--cpu-time", is_flag=True, help="Measure CPU time, which a busy machine disturbs less.")
def main(checkpoint: str, sides: tuple[int, ...], repeats: int, cpu_time: bool) -> None:
    """Print the seconds of each part, the speed relative to torch, and the differences of the results."""
    torch.set_num_threads(1)
    upscalers = {backend: Upscaler(checkpoint, levels=(1,), backend=backend) for backend in BACKENDS}
    rows = []
    for side in sides:
        lr_image = to_tensor(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))
        size = f"{side} to {side * upscalers['torch'].scale}"
        for part in PARTS:
            works: dict[str, Callable[[], torch.Tensor]] = {
                backend: partial(run, part, upscaler, lr_image) for backend, upscaler in upscalers.items()
            }
            seconds = in_turns(works, repeats, clock=time.process_time if cpu_time else time.perf_counter)
            expected = works["torch"]()
            for backend, work in works.items():
                found = work()
                if part == "enlargement":
                    difference = float(np.abs(to_uint8(found).astype(int) - to_uint8(expected)).max())
                else:
                    difference = float((found - expected).abs().max())
                ratio = seconds["torch"] / seconds[backend]
                rows.append((size, part, backend, 1e3 * seconds[backend], ratio, difference))
    print_table(
        f"One forward of {checkpoint} on one core, {'CPU ' if cpu_time else ''}time, median of {repeats} in turns; "
        "differences of enlargements in levels of 255",
        ("pixels", "part", "backend", "ms", "torch / backend", "largest difference"),
        rows,
    )


if __name__ == "__main__":
    main()
