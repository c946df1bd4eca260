"""Comparison of ways to enlarge a picture on the same pictures and the same noise."""

import csv
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ddpm.checkpoints import load_unet
from ddpm.degradation import degrade
from ddpm.errors import ConfigError, ImageError
from ddpm.images import atomic_path, find_images, read_picture, to_tensor
from ddpm.noise import KeyedNoise
from ddpm.runs import write_json
from ddpm.sampling import refine, sample, to_image
from skipdiff_env.metrics import Metric, make_metric
from skipdiff_env.refinement import RefinementProcess, fixed_start

BICUBIC = "bicubic"


@dataclass(frozen=True)
class Row:
    """What one method made of one picture under one noise seed.

    Attributes:
        method: name of the method.
        image: index of the picture.
        seed: noise seed.
        nfe: UNet forwards.
        seconds: wall time of its batch over the pictures in it.
        metrics: name → value.
    """

    method: str
    image: int
    seed: int
    nfe: int
    seconds: float
    metrics: dict[str, float]


@dataclass(frozen=True)
class Result:
    """What one method made of a batch: pictures (B, 3, H, W), forwards each, seconds each."""

    sr: Tensor
    nfe: int
    seconds: float


def load_crops(paths: Iterable[str | Path], size: int, limit: int | None = None) -> list[Tensor]:
    """Centre crops of photographs, each (3, size, size) in [-1, 1].

    Raises:
        ImageError: there is no picture, or one is smaller than the crop.
    """
    crops = []
    for path in find_images(paths)[:limit]:
        rgb = read_picture(path).rgb
        top, left = ((side - size) // 2 for side in rgb.shape[:2])
        if top < 0 or left < 0:
            raise ImageError(f"{path} is {rgb.shape[1]} x {rgb.shape[0]}, smaller than the crop of {size}")
        crops.append(to_tensor(rgb[top : top + size, left : left + size]))
    return crops


def compare(
    process: RefinementProcess, lr_up: Tensor, seeds: Sequence[int], starts: Iterable[int]
) -> dict[str, Result]:
    """Enlarges a batch in every way.

    Args:
        process: the coarse and fine stages; its net also runs the full chain.
        lr_up: conditions (B, 3, H, W).
        seeds: noise seed of each.
        starts: starts of the fine chain to try.

    Returns:
        Method → result: bicubic, the full DDPM, the coarse chain run to its end, coarse + fine from each start.
    """
    unet, T, S = process.unet, len(process.alphas_cumprod) - 1, process.S
    noise = KeyedNoise(seeds, lr_up.shape[1:], process.device)

    def timed(work: Callable[[], Tensor]) -> tuple[Tensor, float]:
        began = time.perf_counter()
        with torch.inference_mode():
            sr = work()
        return sr, (time.perf_counter() - began) / len(lr_up)

    results = {BICUBIC: Result(lr_up, 0, 0.0)}
    sr, seconds = timed(lambda: to_image(unet, sample(unet, process.alphas_cumprod, lr_up, noise), lr_up))
    results[f"DDPM-{T}"] = Result(sr, T, seconds)

    began = time.perf_counter()
    states = process.begin(list(lr_up), seeds)
    coarse_seconds = (time.perf_counter() - began) / len(lr_up)
    coarse = torch.stack([state.coarse for state in states])
    # the coarse chain's own last step; refine() from 1 on the coarse schedule
    sr, seconds = timed(
        lambda: to_image(unet, refine(unet, process.coarse_alphas_cumprod, coarse, lr_up, noise, 1), lr_up)
    )
    results[f"CSA({S})"] = Result(sr, S, coarse_seconds + seconds)
    for start in sorted(starts, reverse=True):
        chain = [replace(state) for state in states]
        sr, seconds = timed(lambda chain=chain, start=start: torch.stack(process.run(chain, fixed_start(start))))  # type: ignore[misc]
        results[f"CSA({S}) + FSR({start})"] = Result(sr, S - 1 + start, coarse_seconds + seconds)
    return results


def measure(
    results: Mapping[str, Result], metrics: Sequence[Metric], hr: Tensor, seed: int, first: int = 0
) -> list[Row]:
    """Measures a batch of results against their targets (B, 3, H, W); `first` is the index of the first picture."""
    rows = []
    for method, result in results.items():
        values = {m.name: m(result.sr, hr if m.needs_reference else None) for m in metrics}
        rows += [
            Row(method, first + i, seed, result.nfe, result.seconds, {k: float(v[i]) for k, v in values.items()})
            for i in range(len(hr))
        ]
    return rows


def evaluate(
    crops: Sequence[Tensor],
    checkpoint: str = "natural-x4",
    steps: tuple[int, int] | None = None,
    seeds: int = 1,
    metrics: Sequence[str] = ("psnr", "ssim", "niqe", "lpips"),
    device: str = "cpu",
    batch_size: int = 16,
) -> list[Row]:
    """Runs every method on every picture under every noise seed.

    Args:
        crops: targets, each (3, H, W) in [-1, 1], of one size.
        checkpoint: name, folder or Hub id.
        steps: (S, N); None: the checkpoint's own.
        seeds: number of noise seeds; picture i under seed k has the noise of key k.
        metrics: names of metrics.
        device: where to compute.
        batch_size: pictures per batch.

    Raises:
        ConfigError: a metric or the steps do not fit.
        CheckpointError: the checkpoint is unknown or damaged.
    """
    unet = load_unet(checkpoint, device)
    measures = [make_metric(name, device) for name in metrics]
    if crops[0].shape[-1] % unet.stride or crops[0].shape[-2] % unet.stride:
        raise ConfigError(f"the crops must have sides that are multiples of {unet.stride}, got {crops[0].shape[-1]}")
    for metric in measures:
        metric.check_size(*crops[0].shape[-2:])
    S = unet.coarse_steps
    process = RefinementProcess(
        unet, unet.diffusion_steps, steps or (S, unet.diffusion_steps // S), batch_size=batch_size, device=device
    )
    rows = []
    batches = [(seed, i) for seed in range(seeds) for i in range(0, len(crops), batch_size)]
    for seed, first in tqdm(batches, desc="evaluate", unit="batch", dynamic_ncols=True):
        hr = torch.stack(list(crops[first : first + batch_size])).to(device)
        lr_up = degrade(hr, unet.scale)
        results = compare(process, lr_up, [seed] * len(hr), range(1, process.N + 1))
        rows += measure(results, measures, hr, seed, first)
    return rows


def summarise(rows: Sequence[Row]) -> list[dict[str, object]]:
    """One entry a method: mean over pictures, then mean and standard deviation over noise seeds.

    A value that is NaN (the metric failed on that picture) is left out; `failures` counts them.
    """
    summary: list[dict[str, object]] = []
    for method in dict.fromkeys(row.method for row in rows):
        own = [row for row in rows if row.method == method]
        seeds = sorted({row.seed for row in own})
        entry: dict[str, object] = {"method": method, "pictures": len(own) // len(seeds), "seeds": len(seeds)}
        for name in own[0].metrics:
            means = [np.nanmean([row.metrics[name] for row in own if row.seed == seed]) for seed in seeds]
            entry[name], entry[f"{name}_std"] = float(np.mean(means)), float(np.std(means))
        entry["nfe"] = float(np.mean([row.nfe for row in own]))
        entry["seconds"] = float(np.mean([row.seconds for row in own]))
        entry["failures"] = sum(int(np.isnan(value)) for row in own for value in row.metrics.values())
        summary.append(entry)
    return summary


# name → (heading, digits)
COLUMNS = {
    "psnr": ("PSNR-Y", 2), "ssim": ("SSIM-Y", 4), "niqe": ("NIQE", 2), "lpips": ("LPIPS", 4),
    "nfe": ("NFE", 1), "seconds": ("s/picture", 2),
}  # fmt: skip


def to_markdown(rows: Sequence[Row]) -> str:
    """The summary as a Markdown table; ± is the standard deviation over noise seeds, where there are several."""
    summary = summarise(rows)
    names = [*rows[0].metrics, "nfe", "seconds"]
    headings = ["method", *(COLUMNS.get(name, (name, 4))[0] for name in names)]
    lines = ["| " + " | ".join(headings) + " |", "|---" * len(headings) + "|"]
    for entry in summary:
        cells = [str(entry["method"])]
        for name in names:
            digits = COLUMNS.get(name, (name, 4))[1]
            text = f"{entry[name]:.{digits}f}"
            if entry["seeds"] != 1 and f"{name}_std" in entry:
                text += f" ± {entry[f'{name}_std']:.{digits}f}"
            cells.append(text)
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def write_tables(rows: Sequence[Row], folder: Path) -> None:
    """Writes `table.md`, `table.csv`, `table.json` (the summary) and `rows.csv` (every picture) into a folder."""
    summary = summarise(rows)
    write_json(folder / "table.json", summary)
    with atomic_path(folder / "table.md") as temporary:
        temporary.write_text(to_markdown(rows) + "\n")
    every = [
        {"method": r.method, "image": r.image, "seed": r.seed, "nfe": r.nfe, "seconds": r.seconds, **r.metrics}
        for r in rows
    ]
    for name, content in (("table.csv", summary), ("rows.csv", every)):
        with atomic_path(folder / name) as temporary, temporary.open("w", newline="") as file:
            writer = csv.DictWriter(file, fieldnames=list(content[0]))
            writer.writeheader()
            writer.writerows(content)
