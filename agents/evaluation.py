"""Comparison of ways to enlarge a picture on the same pictures and the same noise."""

import csv
import math
import re
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from agents.agent import Agent, AgentPolicy
from ddpm.checkpoints import load_unet
from ddpm.degradation import degrade
from ddpm.errors import ConfigError
from ddpm.images import Picture, atomic_path, to_tensor, to_uint8, write_picture
from ddpm.noise import KeyedNoise
from ddpm.runs import write_json
from ddpm.sampling import Denoiser, refine, sample, to_image
from ddpm.schedule import FloatArray
from skipdiff_env.judges import judge_file, refuse_judge
from skipdiff_env.metrics import Metric, make_metric
from skipdiff_env.pictures import Pictures
from skipdiff_env.refinement import Action, Policy, Refinement, RefinementProcess, fixed_start
from skipdiff_env.task import quality

X = TypeVar("X")
BICUBIC, RANDOM, ORACLE, BEST_FIXED = "bicubic", "random skipping", "oracle", "best fixed start"
# The target pictures themselves: what a metric without reference says of them.
ORIGINALS = "originals"
# The oracle of other noises: what of the oracle's gain belongs to the picture and not to the noise.
PICTURE_START = "each picture's best start"
# Method of a fixed start, as a regular expression.
FIXED_START = r"CSA\(\d+(, [^)]+)?\) \+ FSR\(\d+\)"


def default_metrics() -> list[str]:
    """What tables show: PSNR, SSIM, NIQE, LPIPS, DISTS where the file of its weights is there, and the colour error."""
    judge = ["dists"] if judge_file().is_file() else []
    return ["psnr", "ssim", "niqe", "lpips", *judge, "colour"]


@dataclass(frozen=True)
class Row:
    """What one method made of one picture under one noise seed.

    Attributes:
        method: name of the method.
        image: index of the picture.
        seed: noise seed.
        nfe: UNet forwards.
        seconds: wall time of its batch over the pictures in it.
        metrics: name → value; of the originals only those without reference.
        start: where the surviving fine chain began; None without a fine stage.
        reward: what the environment would give for it, without a penalty for forwards; NaN where no metric rewards.
        regret: distance from the reward of the best start; NaN where that is not known.
        policy_seconds: how much of `seconds` went into decisions.
    """

    method: str
    image: int
    seed: int
    nfe: int
    seconds: float
    metrics: dict[str, float]
    start: int | None = None
    reward: float = math.nan
    regret: float = math.nan
    policy_seconds: float = 0.0


@dataclass(frozen=True)
class Result:
    """What one method made of a batch.

    Attributes:
        sr: pictures (B, 3, H, W).
        nfe: forwards of each.
        seconds: mean wall time.
        start: where the surviving fine chain of each began; empty without a fine stage.
        policy_seconds: how much of `seconds` went into decisions.
    """

    sr: Tensor
    nfe: Sequence[int]
    seconds: float
    start: Sequence[int] = ()
    policy_seconds: float = 0.0


def random_skipping(fine_forwards: float, steps: int, rng: np.random.Generator) -> Policy:
    """The policy that skips at random, so often that a fine stage of `steps` has `fine_forwards` forwards on average."""
    skip = 1 - (fine_forwards - 1) / (steps - 1)

    def decide(states: Sequence[Refinement]) -> Sequence[int]:
        return [Action.SKIP if rng.random() < skip else Action.DENOISE for _ in states]

    return decide


def load_crops(images: Sequence[str | Path] | None, size: int, limit: int | None = None) -> list[Tensor]:
    """Target pictures, each (3, size, size) in [-1, 1].

    Args:
        images: folders, files or patterns of photographs, of which the centres are taken; None or empty: the crops that tile
            scikit-image's photographs.
        size: side of a crop.
        limit: take only so many, evenly spread.

    Raises:
        ImageError: there is no picture, a file cannot be read, or one is smaller than the crop.
    """
    pictures = Pictures(list(images) if images else None, size)
    count = len(pictures) if limit is None else min(limit, len(pictures))
    return [to_tensor(pictures[i * len(pictures) // count]) for i in range(count)]


def compare(
    process: RefinementProcess,
    lr_up: Tensor,
    seeds: Sequence[int],
    starts: Iterable[int],
    policies: Mapping[str, Policy] | None = None,
    random_seed: int | None = None,
) -> dict[str, Result]:
    """Enlarges a batch in every way.

    Args:
        process: the coarse and fine stages; its net also runs the full chain.
        lr_up: conditions (B, 3, H, W).
        seeds: noise seed of each.
        starts: starts of the fine chain to try.
        policies: name → policy that decides the fine stage.
        random_seed: where policies are given, also skip at random with as many forwards as the first of them.

    Returns:
        Method → result: bicubic, the full DDPM, the coarse chain run to its end, coarse + fine from each start and by
        each policy.
    """
    T = len(process.alphas_cumprod) - 1
    results = {
        BICUBIC: bicubic(lr_up),
        f"DDPM-{T}": ddpm(process.unet, process.alphas_cumprod, lr_up, seeds),
    }
    states, seconds = coarse_stage(process, lr_up, seeds)
    results[coarse_name(process.S, process.coarse)] = coarse_chain(process, states, seconds)
    ways = {
        start_name(process.S, start, process.coarse): fixed_start(start) for start in sorted(starts, reverse=True)
    } | dict(policies or {})
    results |= {name: refinement(process, states, seconds, policy) for name, policy in ways.items()}
    if policies and random_seed is not None:
        forwards = float(np.mean(results[next(iter(policies))].nfe)) - (process.S - 1)
        rng = np.random.default_rng([random_seed, *seeds])
        skipping = random_skipping(forwards, process.fine_steps, rng)
        results[RANDOM] = refinement(process, states, seconds, skipping)
    return results


def coarse_name(S: int, sampler: str = "ddpm") -> str:
    """Method of a coarse chain."""
    return f"CSA({S})" if sampler == "ddpm" else f"CSA({S}, {sampler})"


def start_name(S: int, start: int, sampler: str = "ddpm") -> str:
    """Method of a fine chain that begins at a fixed start."""
    return f"{coarse_name(S, sampler)} + FSR({start})"


def timed(work: Callable[[], X], pictures: int) -> tuple[X, float]:
    """What `work` gives, and its wall time for each of the pictures."""

    def now() -> float:
        if torch.cuda.is_initialized():  # its kernels run on after the call
            torch.cuda.synchronize()
        return time.perf_counter()

    began = now()
    with torch.inference_mode():
        result = work()
    return result, (now() - began) / pictures


def sampled(
    unet: Denoiser, lr_up: Tensor, seeds: Sequence[int], sampler: Callable[[Tensor, KeyedNoise], tuple[Tensor, int]]
) -> Result:
    """What a sampler, (condition, noise) → (latents x_0, forwards), makes of a batch; arguments as `compare`."""
    noise = KeyedNoise(seeds, lr_up.shape[1:], lr_up.device)
    (latents, nfe), seconds = timed(lambda: sampler(lr_up, noise), len(lr_up))
    return Result(to_image(unet, latents, lr_up), [nfe] * len(lr_up), seconds)


def bicubic(lr_up: Tensor) -> Result:
    """The condition itself, (B, 3, H, W)."""
    return Result(lr_up, [0] * len(lr_up), 0.0)


def originals(hr: Tensor) -> Result:
    """The targets themselves, (B, 3, H, W)."""
    return Result(hr, [0] * len(hr), 0.0)


def ddpm(unet: Denoiser, alphas_cumprod: FloatArray, lr_up: Tensor, seeds: Sequence[int]) -> Result:
    """The ancestral chain over all steps of a schedule; arguments as `compare`."""
    T = len(alphas_cumprod) - 1
    return sampled(unet, lr_up, seeds, lambda lr_up, noise: (sample(unet, alphas_cumprod, lr_up, noise), T))


def coarse_stage(process: RefinementProcess, lr_up: Tensor, seeds: Sequence[int]) -> tuple[list[Refinement], float]:
    """The states after the coarse stage, and its wall time for each picture; arguments as `compare`."""
    return timed(lambda: process.begin(list(lr_up), seeds), len(lr_up))


def coarse_chain(process: RefinementProcess, states: Sequence[Refinement], seconds: float) -> Result:
    """The coarse chain run to its end; arguments as `refinement`."""
    unet, lr_up = process.unet, torch.stack([state.lr_up for state in states])
    coarse = torch.stack([state.coarse for state in states])
    noise = KeyedNoise([state.noise_seed for state in states], lr_up.shape[1:], process.device)
    # the coarse chain's own last step; refine() from 1 on the coarse schedule
    sr, last = timed(
        lambda: to_image(unet, refine(unet, process.coarse_alphas_cumprod, coarse, lr_up, noise, 1), lr_up), len(states)
    )
    return Result(sr, [process.S] * len(states), seconds + last)


def refinement(process: RefinementProcess, states: Sequence[Refinement], seconds: float, policy: Policy) -> Result:
    """Coarse + fine as a policy decides.

    Args:
        process: the fine stage.
        states: pictures after the coarse stage; they are left as they are, so that all policies share it.
        seconds: what the coarse stage took for each picture.
        policy: decides.
    """
    chain = [replace(state, t=process.fine_steps) for state in states]
    deciding = 0.0

    def decide(states: Sequence[Refinement]) -> Sequence[int]:
        nonlocal deciding
        actions, own = timed(lambda: policy(states), len(states))
        deciding += own
        return actions

    sr, own = timed(lambda: torch.stack(process.run(chain, decide)), len(chain))
    return Result(sr, [state.nfe for state in chain], seconds + own, [state.start for state in chain], deciding)


def measure(
    results: Mapping[str, Result], metrics: Sequence[Metric], hr: Tensor, seed: int, first: int = 0
) -> list[Row]:
    """Measures a batch of results against their targets (B, 3, H, W); `first` is the index of the first picture.

    The originals are their own targets, so they are measured by the metrics without reference only.
    """
    rows = []
    for method, result in results.items():
        fitting = [m for m in metrics if method != ORIGINALS or not m.needs_reference]
        values = {m.name: m(result.sr, hr if m.needs_reference else None) for m in fitting}
        rows += [
            Row(
                method, first + i, seed, result.nfe[i], result.seconds, {k: float(v[i]) for k, v in values.items()},
                result.start[i] if result.start else None, policy_seconds=result.policy_seconds,
            )
            for i in range(len(hr))
        ]  # fmt: skip
    return rows


def with_rewards(rows: Sequence[Row], metric: Metric, best_start: int | None = None) -> list[Row]:
    """Adds rewards and regrets, and the rows of the best fixed start, the oracle, and the oracle of other noises.

    The last, where there are several noise seeds, takes for each picture the start that is best on average under the *other*
    seeds. The fewer they are, the more that choice is itself disturbed by noise: what of the oracle's gain is the picture's is
    at least what this row keeps, on average.

    Args:
        rows: with every start of the fine chain.
        metric: the reward's; must be among the rows' metrics.
        best_start: the best fixed start, chosen on other pictures; None: the best on these.

    Raises:
        ConfigError: the metric was not measured.
    """
    if metric.name not in rows[0].metrics:
        raise ConfigError(f"the reward's metric {metric.name} must be one of the metrics {', '.join(rows[0].metrics)}")
    rows = [replace(row, reward=quality(row.metrics[metric.name], metric.lower_better)) for row in rows]
    fixed = [row for row in rows if re.fullmatch(FIXED_START, row.method)]
    oracle: dict[tuple[int, int], Row] = {}
    by_start: dict[int, list[float]] = {}
    by_picture: dict[int, list[Row]] = {}
    for row in fixed:
        assert row.start is not None
        place = row.image, row.seed
        if place not in oracle or row.reward > oracle[place].reward:
            oracle[place] = row
        by_start.setdefault(row.start, []).append(row.reward)
        by_picture.setdefault(row.image, []).append(row)
    if best_start is None:
        best_start = max(by_start, key=lambda start: float(np.mean(by_start[start])))
    rows += [replace(row, method=f"{BEST_FIXED} ({best_start})") for row in fixed if row.start == best_start]
    rows += [replace(row, method=PICTURE_START) for own in by_picture.values() for row in _best_of_others(own)]
    rows += [replace(row, method=ORACLE) for row in oracle.values()]
    return [replace(row, regret=oracle[row.image, row.seed].reward - row.reward) for row in rows]


def gap_closed(reward: float, best_fixed: float, oracle: float) -> float:
    """Share of the gap between best fixed start and oracle that a reward closes; negative below, NaN where there is none."""
    gap = oracle - best_fixed
    return (reward - best_fixed) / gap if gap > 0 else math.nan


def best_of_other_noises(rewards: NDArray[np.float64]) -> NDArray[np.intp]:
    """For each noise of a picture the index of the start that is best on average under its other noises; (K, N) → (K,)."""
    return (rewards.sum(axis=0) - rewards).argmax(axis=1)


def _best_of_others(rows: Sequence[Row]) -> list[Row]:
    """Of one picture's rows with every start those that `best_of_other_noises` chooses, if there are several noises."""
    starts, seeds = (sorted({getattr(row, name) for row in rows}) for name in ("start", "seed"))
    if len(seeds) < 2:
        return []
    by_place = {(row.seed, row.start): row for row in rows}
    rewards = np.array([[by_place[seed, start].reward for start in starts] for seed in seeds])
    return [by_place[seed, starts[i]] for seed, i in zip(seeds, best_of_other_noises(rewards), strict=True)]


def find_best_start(process: RefinementProcess, scale: int, crops: Sequence[Tensor], metric: Metric) -> int:
    """The fixed start with the largest mean reward on photographs, under noise seed 0.

    Args:
        process: the coarse and fine stages.
        scale: how many times to enlarge.
        crops: targets, each (3, H, W) in [-1, 1], of one size.
        metric: the reward's.
    """
    totals = np.zeros(process.fine_steps)
    batches = range(0, len(crops), process.batch_size)
    for first in tqdm(batches, desc="best fixed start", unit="batch", dynamic_ncols=True, leave=False):
        hr = torch.stack(list(crops[first : first + process.batch_size])).to(process.device)
        chains = process.run_all_starts(process.begin(list(degrade(hr, scale)), [0] * len(hr)))
        for index in range(process.fine_steps):
            sr = torch.stack([chain[index][1] for chain in chains])
            values = metric(sr, hr if metric.needs_reference else None)
            totals[index] += sum(quality(float(value), metric.lower_better) for value in values)
    return int(totals.argmax()) + 1


def evaluate(
    crops: Sequence[Tensor],
    checkpoint: str = "natural-x4",
    steps: tuple[int, int] | None = None,
    coarse: str | None = None,
    fine_steps: int | None = None,
    seeds: int = 1,
    metrics: Sequence[str] | None = None,
    device: str = "cpu",
    batch_size: int = 16,
    reward: str | None = None,
    agents: Mapping[str, Agent] | None = None,
    train_crops: Sequence[Tensor] | None = None,
    keep: Callable[[int, int, Mapping[str, Result], Tensor], None] | None = None,
) -> list[Row]:
    """Runs every method on every picture under every noise seed.

    Args:
        crops: targets, each (3, H, W) in [-1, 1], of one size.
        checkpoint: name, folder or Hub id.
        steps: (S, N); None: the checkpoint's own.
        coarse: what runs the coarse stage, "ddpm", "ddim", "ddim:ETA" with ETA in 0 … 1, or "dpmsolver++"; None: what
            the checkpoint says.
        fine_steps: the diffusion step that is decided first, N … T; None: N.
        seeds: number of noise seeds; picture i under seed k has the noise of key k.
        metrics: names of metrics; None: `default_metrics`.
        device: where to compute.
        batch_size: pictures per batch.
        reward: metric of the reward, no judge; adds rewards, regrets, the oracle and the best fixed start.
        agents: name → agent; adds them, and skipping at random with as many forwards as the first.
        train_crops: photographs that the best fixed start is chosen on; None: `crops`.
        keep: told (seed, index of the first picture, results, targets) of each batch.

    Returns:
        One row for each method, picture and seed; at the end those of the originals, one a picture, if a metric has no reference.

    Raises:
        ConfigError: a metric, the steps, the coarse sampler or an agent do not fit.
        CheckpointError: the checkpoint is unknown or damaged.
    """
    refuse_judge(reward)
    unet = load_unet(checkpoint, device)
    measures = {name: make_metric(name, device) for name in (default_metrics() if metrics is None else metrics)}
    if crops[0].shape[-1] % unet.stride or crops[0].shape[-2] % unet.stride:
        raise ConfigError(f"the crops must have sides that are multiples of {unet.stride}, got {crops[0].shape[-1]}")
    for metric in measures.values():
        metric.check_size(*crops[0].shape[-2:])
    if reward is not None and reward not in measures:
        raise ConfigError(f"the reward's metric {reward} must be one of the metrics {', '.join(measures)}")
    process = RefinementProcess(
        unet, unet.diffusion_steps, steps or unet.steps, batch_size=batch_size, device=device, coarse=coarse,
        fine_steps=fine_steps,
    )  # fmt: skip
    policies: dict[str, Policy] = {}
    for name, agent in (agents or {}).items():
        agent.check((process.S, process.N), process.fine_steps)
        policies[name] = AgentPolicy(agent)
    best_start = None
    if reward is not None and train_crops is not None:
        best_start = find_best_start(process, unet.scale, train_crops, measures[reward])
    rows, targets = [], []
    batches = [(seed, i) for seed in range(seeds) for i in range(0, len(crops), batch_size)]
    for seed, first in tqdm(batches, desc="evaluate", unit="batch", dynamic_ncols=True):
        hr = torch.stack(list(crops[first : first + batch_size])).to(device)
        lr_up = degrade(hr, unet.scale)
        results = compare(process, lr_up, [seed] * len(hr), range(1, process.fine_steps + 1), policies, first)
        rows += measure(results, list(measures.values()), hr, seed, first)
        if seed == 0 and not all(metric.needs_reference for metric in measures.values()):
            targets += measure({ORIGINALS: originals(hr)}, list(measures.values()), hr, seed, first)
        if keep is not None:
            keep(seed, first, results, hr)
    return (rows if reward is None else with_rewards(rows, measures[reward], best_start)) + targets


def save_pictures(folder: Path, count: int) -> Callable[[int, int, Mapping[str, Result], Tensor], None]:
    """A `keep` for `evaluate`: writes the first `count` pictures of noise seed 0 as FOLDER/<picture>/<method>.png."""

    def keep(seed: int, first: int, results: Mapping[str, Result], hr: Tensor) -> None:
        if seed == 0:
            for i in range(min(len(hr), count - first)):
                for method, images in {**{m: r.sr for m, r in results.items()}, "original": hr}.items():
                    write_picture(
                        Picture(to_uint8(images[i])), folder / f"{first + i:03d}" / f"{file_name(method)}.png"
                    )

    return keep


def file_name(method: str) -> str:
    """What a method's files are called, without their ending."""
    return re.sub(r"[^\w(), +-]", "_", method)


def _figures(rows: Sequence[Row]) -> list[str]:
    """Names of what is averaged: metrics, and reward and regret if they are known."""
    known = any(not math.isnan(row.reward) for row in rows)
    return [*rows[0].metrics, *(("reward", "regret") if known else ())]


def _figure(row: Row, name: str) -> float:
    return row.metrics[name] if name in row.metrics else float(getattr(row, name))


def summarise(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One entry a method: mean over pictures, then mean and standard deviation over noise seeds.

    A value that is NaN (the metric failed on that picture) is left out; `failures` counts them. The originals' entry has no
    value that needs a reference.
    """
    summary: list[dict[str, Any]] = []
    for method in dict.fromkeys(row.method for row in rows):
        own = [row for row in rows if row.method == method]
        seeds = sorted({row.seed for row in own})
        entry: dict[str, Any] = {"method": method, "pictures": len(own) // len(seeds), "seeds": len(seeds)}
        for name in own[0].metrics if method == ORIGINALS else _figures(rows):
            means = [np.nanmean([_figure(row, name) for row in own if row.seed == seed]) for seed in seeds]
            entry[name], entry[f"{name}_std"] = float(np.mean(means)), float(np.std(means))
        entry["nfe"] = float(np.mean([row.nfe for row in own]))
        entry["seconds"] = float(np.mean([row.seconds for row in own]))
        entry["failures"] = sum(int(np.isnan(value)) for row in own for value in row.metrics.values())
        summary.append(entry)
    return summary


# name → (heading, digits)
COLUMNS = {
    "psnr": ("PSNR-Y", 2), "ssim": ("SSIM-Y", 4), "niqe": ("NIQE", 2), "lpips": ("LPIPS", 4), "dists": ("DISTS", 4),
    "lpips-vgg": ("LPIPS-VGG", 4), "piqe": ("PIQE", 2), "colour": ("colour error", 2),
    "reward": ("reward", 4), "regret": ("regret", 4), "nfe": ("NFE", 1), "seconds": ("s/picture", 2),
}  # fmt: skip


def figure_text(entry: Mapping[str, object], name: str, digits: int) -> str:
    """A cell: text as it is, a figure with its standard deviation over noise seeds where there are several, or a dash."""
    value = entry.get(name, math.nan)
    if not isinstance(value, int | float):
        return str(value)
    if math.isnan(value):
        return "–"
    text = f"{value:.{digits}f}"
    return (
        f"{text} ± {entry[f'{name}_std']:.{digits}f}" if entry.get("seeds", 1) != 1 and f"{name}_std" in entry else text
    )


def markdown_table(
    entries: Iterable[Mapping[str, object]],
    columns: Iterable[str],
    headings: Mapping[str, tuple[str, int]] | None = None,
) -> str:
    """A Markdown table.

    Args:
        entries: one a line, as `summarise` gives them; what one lacks is a dash.
        columns: names of what is shown.
        headings: name → (heading, digits), of columns that are not in `COLUMNS`.
    """
    known = {**COLUMNS, **(headings or {})}
    shown = {name: known.get(name, (name, 4)) for name in columns}
    lines = ["| " + " | ".join(heading for heading, _ in shown.values()) + " |", "|---" * len(shown) + "|"]
    for entry in entries:
        cells = (figure_text(entry, name, digits) for name, (_, digits) in shown.items())
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def to_markdown(rows: Sequence[Row]) -> str:
    """The summary as a Markdown table; ± is the standard deviation over noise seeds, where there are several."""
    return markdown_table(summarise(rows), ["method", *_figures(rows), "nfe", "seconds"])


def flat(rows: Iterable[Row]) -> list[dict[str, Any]]:
    """Rows with their metrics as columns of their own."""
    every = []
    for row in rows:
        columns = asdict(row)
        every.append(columns | columns.pop("metrics"))
    return every


def write_csv(path: Path, entries: Sequence[Mapping[str, object]]) -> None:
    """Writes a table with the columns of all its entries; what one lacks is left empty."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(name for entry in entries for name in entry)))
        writer.writeheader()
        writer.writerows(entries)


def write_tables(rows: Sequence[Row], folder: Path) -> None:
    """Writes `table.md`, `table.csv`, `table.json` (the summary) and `rows.csv` (every picture) into a folder."""
    summary = summarise(rows)
    write_json(folder / "table.json", summary)
    with atomic_path(folder / "table.md") as temporary:
        temporary.write_text(to_markdown(rows) + "\n", encoding="utf-8")
    write_csv(folder / "table.csv", summary)
    write_csv(folder / "rows.csv", flat(rows))
