"""Time of a UNet forward, and the sampler's overhead over its forwards.

python -m benchmarks.forward [--checkpoint natural-x4] [--device cpu]
"""

import statistics
import time
from collections.abc import Callable

import click
import torch

from agents.cli.command import Command
from agents.tables import markdown
from skipdiff_env.upscaler import Upscaler


def seconds(work: Callable[[], object], device: str) -> float:
    """Return the wall time of one call."""
    began = time.perf_counter()
    work()
    if torch.device(device).type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - began


@click.command(cls=Command)
@click.option("--checkpoint", default="natural-x4", show_default=True)
@click.option("--device", default="cpu", show_default=True)
@click.option("--size", default=128, show_default=True, help="Side of the result, in pixels.")
@click.option("--repeats", default=5, show_default=True)
def main(checkpoint: str, device: str, size: int, repeats: int) -> None:
    """Print the wall time of an upscale and of its UNet forwards, measured in turns in the same run."""
    click.echo(f"{torch.get_num_threads()} threads, {size} x {size}, {checkpoint} on {device}, median of {repeats}\n")
    lines = []
    for batch in (1, 8):
        upscaler = Upscaler(checkpoint, device=device, tile=0, batch_size=batch)
        unet, nfe = upscaler.unet, upscaler.expected_nfe
        lr = [torch.rand(3, size // upscaler.scale, size // upscaler.scale) * 2 - 1 for _ in range(batch)]
        inputs = torch.rand(batch, 3, size, size, device=device), torch.randn(batch, 3, size, size, device=device)
        level = torch.full((batch,), 0.9, device=device)

        @torch.inference_mode()
        def forwards(unet=unet, inputs=inputs, level=level, nfe=nfe) -> None:  # type: ignore[no-untyped-def]
            for _ in range(nfe):
                unet(*inputs, level)

        def upscale(upscaler=upscaler, lr=lr, batch=batch) -> None:  # type: ignore[no-untyped-def]
            upscaler.upscale(lr, range(batch))

        seconds(forwards, device), seconds(upscale, device)
        pairs = [(seconds(forwards, device), seconds(upscale, device)) for _ in range(repeats)]
        forward = statistics.median(a for a, _ in pairs) / nfe
        whole = statistics.median(b for _, b in pairs)
        ratio = statistics.median(b / a for a, b in pairs)
        figures = (f"{1e3 * forward:.1f}", f"{1e3 * forward / batch:.1f}", f"{whole:.2f}", nfe, f"{ratio:.3f}")
        lines.append((batch, *figures))
    headings = ("batch", "forward, ms", "per picture, ms", "upscale, s", "NFE", "upscale / (NFE x forward)")
    click.echo(markdown(headings, lines))


if __name__ == "__main__":
    main()
