"""Figures: perception and distortion, quality and cost, starts, learning curves, and contact sheets."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from numpy.typing import NDArray

from agents.training.learning_curve import CurvePoint, read_curve
from ddpm.util.errors import ConfigError
from ddpm.util.files import atomic_path, real_path

# name → axis label; ↑: larger is better
LABELS = {
    "psnr": "PSNR-Y ↑ (dB)", "ssim": "SSIM-Y ↑", "niqe": "NIQE ↓", "lpips": "LPIPS ↓", "dists": "DISTS ↓",
    "lpips-vgg": "LPIPS-VGG ↓",
}  # fmt: skip
# cost of a method → axis label
COSTS = {"nfe": "UNet forwards", "seconds": "seconds for each picture"}


def save(figure: Figure, path: Path) -> None:
    """Write a figure under a temporary name and rename it."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, bbox_inches="tight", format=path.suffix.lstrip(".") or "png")
    plt.close(figure)


def _label(metric: str) -> str:
    return LABELS.get(metric, metric)


# Heading of a line → (text beside the point, entry of `agents.study.rows.summarise`).
Series = Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]]


def perception_distortion(series: Series) -> Figure:
    """Plot PSNR against each perceptual metric (Fig. 5), with a line through each series.

    A point that lies far from all others is outside the frame.
    """
    names = _measured(series, ("niqe", "lpips", "dists"))
    figure, axes = plt.subplots(1, len(names), figsize=(6.5 * len(names), 5), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        _lines(axis, series, "psnr", name)
        axis.set(xlabel=_label("psnr"), ylabel=_label(name))
    figure.tight_layout()
    _legend(figure, axes[0, -1])
    return figure


def quality_against(series: Series, cost: str = "nfe") -> Figure:
    """Plot each metric against the cost of a method, in the style of `perception_distortion`.

    Args:
        series: the methods.
        cost: "nfe", the number of UNet forwards (Fig. 1), or "seconds", the time for each picture.
    """
    names = _measured(series, LABELS)
    figure, axes = plt.subplots(1, len(names), figsize=(4.2 * len(names), 3.8), squeeze=False)
    for axis, name in zip(axes[0], names, strict=True):
        unnamed = {heading: [("", entry) for _, entry in own] for heading, own in series.items()}
        _lines(axis, series if cost == "seconds" else unnamed, cost, name)
        axis.set(xlabel=COSTS[cost], ylabel=_label(name), xscale="log")
        if cost == "nfe":
            forwards = {round(entry["nfe"]) for own in series.values() for _, entry in own if entry["nfe"] > 0}
            ticks = _apart(sorted(forwards))
            axis.set_xticks(ticks, [str(tick) for tick in ticks])
            axis.minorticks_off()
    figure.tight_layout()
    _legend(figure, axes[0, -1])
    return figure


def _measured(series: Series, names: Iterable[str]) -> list[str]:
    (_, entry), *_ = next(iter(series.values()))
    return [name for name in names if name in entry]


def _lines(axis: Axes, series: Series, across: str, up: str) -> None:
    """Draw a line through each series, with its spread over noises; a horizontal line for a method without forwards."""
    for i, (heading, own) in enumerate(series.items()):
        if across in COSTS and not own[0][1][across]:
            axis.axhline(own[0][1][up], label=heading, color="grey", ls=":")
            continue
        x, y, spread = (
            np.array([entry.get(name, 0.0) for _, entry in own], dtype=float) for name in (across, up, f"{up}_std")
        )
        style: dict[str, Any] = {"marker": "osD^vP*X"[i % 8], "ms": 5, "lw": 0.9, "alpha": 0.8, "color": f"C{i % 10}"}
        # without a spread, the legend shows no error bars either
        axis.errorbar(
            x, y, spread if spread.any() else None, label=heading, ls="-" if i < 10 else "--", elinewidth=0.8, **style
        )
        for (text, _), place in zip(own, zip(x, y, strict=True), strict=True):
            axis.annotate(
                text, place, (3, 3), textcoords="offset points", fontsize=6, color=style["color"], annotation_clip=True
            )
    framed = [name for name in (across, up) if name not in COSTS]
    points = [[entry[name] for name in framed] for own in series.values() for _, entry in own]
    for name, limits in zip(framed, _frame(np.array(points, dtype=float)), strict=True):
        (axis.set_xlim if name == across else axis.set_ylim)(*limits)
    axis.grid(alpha=0.3)


def _frame(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return limits of each axis, (D, 2), without the points (P, D) that lie far from all others."""
    low, high = np.nanpercentile(points, (10, 90), axis=0)
    reach = 3 * (high - low)
    inside = points[((low - reach <= points) & (points <= high + reach)).all(axis=1)]
    low, high = inside.min(axis=0), inside.max(axis=0)
    margin = np.where(high > low, 0.06 * (high - low), 0.01)
    return np.stack([low - margin, high + margin], axis=1)


def _apart(values: Sequence[int]) -> list[int]:
    """Return those of some ascending positive numbers that have room for a label on a logarithmic axis."""
    kept: list[int] = []
    for value in values:
        if not kept or value >= 1.2 * kept[-1]:
            kept.append(value)
    return kept


def _legend(figure: Figure, axis: Axes) -> None:
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))


def starts(outcomes: Mapping[str, NDArray[np.float64]], chosen: Mapping[str, Sequence[int]] | None = None) -> Figure:
    """Plot the quality of every start (Table 5), and the share of episodes in which agents chose it.

    Args:
        outcomes: metric → (pictures, N), means over noises; index s - 1 is start s.
        chosen: agent → the starts of its episodes.
    """
    N = next(iter(outcomes.values())).shape[1]
    figure, axes = plt.subplots(1, len(outcomes), figsize=(4.5 * len(outcomes), 3.8), squeeze=False)
    for axis, (name, pictures) in zip(axes[0], outcomes.items(), strict=True):
        axis.plot(range(1, N + 1), pictures.T, color="tab:blue", alpha=0.15, lw=0.8)
        axis.plot(range(1, N + 1), np.nanmean(pictures, axis=0), "o-", color="tab:blue", label="mean over pictures")
        axis.set(xlabel="start of the fine chain (diffusion step)", ylabel=_label(name), xticks=_ticks(N))
        axis.grid(alpha=0.3)
        if chosen:
            _histograms(axis, chosen, N)
        axis.legend(fontsize=7, loc="upper left")
    figure.tight_layout()
    return figure


def _ticks(N: int) -> list[int]:
    return list(range(1, N + 1, max(1, N // 10)))


def _histograms(axis: Axes, chosen: Mapping[str, Sequence[int]], N: int) -> None:
    share = axis.twinx()
    width = 0.8 / len(chosen)
    for i, (agent, own) in enumerate(chosen.items()):
        heights = np.bincount(np.asarray(own, dtype=int), minlength=N + 1)[1:] / max(1, len(own))
        share.bar(
            np.arange(1, N + 1) + (i - (len(chosen) - 1) / 2) * width,
            heights,
            width,
            alpha=0.35,
            label=agent,
            color=f"C{i + 2}",
        )
    share.set(ylabel="share of episodes", ylim=(0, 1))
    share.legend(fontsize=7, loc="upper right")


def learning_curves(curves: Mapping[str, Sequence[CurvePoint]]) -> Figure:
    """Plot the reward, the regret, the mean start and the forwards against episodes, for one or several runs.

    Args:
        curves: run → its evaluations.
    """
    names = {"reward": "reward", "regret": "regret", "start": "mean start", "nfe": "UNet forwards"}
    figure, axes = plt.subplots(1, len(names), figsize=(4.2 * len(names), 3.8))
    for axis, (name, label) in zip(axes, names.items(), strict=True):
        for i, (run, curve) in enumerate(curves.items()):
            axis.plot([e.episodes for e in curve], [getattr(e, name) for e in curve], color=f"C{i}", label=run)
            if name == "reward":
                axis.axhline(curve[-1].best_fixed_reward, color=f"C{i}", ls="--", lw=0.8)
                axis.axhline(curve[-1].oracle_reward, color=f"C{i}", ls=":", lw=0.8)
        axis.set(xlabel="episodes", ylabel=label)
        axis.grid(alpha=0.3)
    axes[0].legend(fontsize=7, title="-- best fixed start, ·· oracle", title_fontsize=7)
    figure.tight_layout()
    return figure


def contact_sheet(columns: Mapping[str, Sequence[NDArray[np.uint8]]]) -> Figure:
    """Draw pictures side by side (Fig. 3), with one column for each method and one row for each picture.

    Args:
        columns: heading → pictures (H, W, 3).
    """
    rows = len(next(iter(columns.values())))
    figure, axes = plt.subplots(rows, len(columns), figsize=(2 * len(columns), 2 * rows + 0.5), squeeze=False)
    for axis, (heading, images) in zip(axes.T, columns.items(), strict=True):
        axis[0].set_title(heading, fontsize=8)
        for cell, image in zip(axis, images, strict=True):
            cell.imshow(image)
            cell.axis("off")
    figure.subplots_adjust(left=0.005, right=0.995, bottom=0.005, top=0.93, wspace=0.02, hspace=0.02)
    return figure


def plot_runs(runs: Sequence[Path], out: Path) -> list[Path]:
    """Draw the learning curves of training runs, and return the path of the figure.

    Raises:
        ConfigError: a folder does not hold a run.
    """
    names = [real_path(run).name for run in runs]
    titles = names if len(set(names)) == len(names) else [str(run) for run in runs]
    curves = {title: read_curve(run / "evaluations.csv") for title, run in zip(titles, runs, strict=True)}
    for run, curve in curves.items():
        if not curve:
            raise ConfigError(f"the run {run} has no evaluation yet")
    return save_all({"learning_curves": learning_curves(curves)}, out)


def save_all(figures: Mapping[str, Figure], out: Path) -> list[Path]:
    """Write figures as OUT/<name>.webp and return their paths."""
    paths = []
    for name, figure in figures.items():
        paths.append(out / f"{name}.webp")
        save(figure, paths[-1])
    return paths
