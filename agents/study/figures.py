"""Figures: of an evaluation that `skipdiff evaluate --out` wrote, learning curves, and contact sheets."""

import csv
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, ScalarFormatter
from numpy.typing import NDArray

from agents.study.rows import AGENT, BICUBIC, CHOSEN, ORIGINALS, RANDOM, START
from agents.study.running import picture_path
from agents.training.learning_curve import CURVE, CurvePoint, read_curve
from ddpm.pictures.images import read_picture
from ddpm.util.errors import ConfigError
from ddpm.util.files import atomic_path, read_json, real_path

# name → axis label; ↑: larger is better
LABELS = {
    "psnr": "PSNR-Y ↑ (dB)", "ssim": "SSIM-Y ↑", "niqe": "NIQE ↓", "lpips": "LPIPS ↓", "dists": "DISTS ↓",
    "lpips-vgg": "LPIPS-VGG ↓",
}  # fmt: skip
# cost of a method → axis label
COSTS = {"nfe": "UNet forwards", "seconds": "seconds for each picture"}

# Heading of a line → (text beside the point, entry of `agents.study.rows.summarise`).
Series = Mapping[str, Sequence[tuple[str, Mapping[str, Any]]]]
# Pattern of the names of methods on one line, and heading of the line; the last group is the text beside the point.
LINES = (
    (re.compile(r"(.+), (\d+) even steps?"), "{}, even steps"),
    (re.compile(r"(.+ forwards?) of (\d+) substeps"), "{}, substeps"),
    (re.compile(r"(CSA\(.+\)) \+ FSR\((\d+)\)"), "{}, fixed starts"),
    (re.compile(r"(agent .+), quality (\S+)"), "{}"),
    (re.compile(r"(DDPM-|CSA\()(\d+)\)?"), "DDPM of S steps"),
    (re.compile(r"(.+), (\d+)"), "{}"),  # a peer
)


def save(figure: Figure, path: Path) -> None:
    """Write a figure under a temporary name and rename it."""
    with atomic_path(path) as temporary:
        figure.savefig(temporary, dpi=120, bbox_inches="tight", format=path.suffix.lstrip(".") or "png")


def metrics_against(series: Series, across: str, metrics: Iterable[str] = (*LABELS,)) -> Figure:
    """Plot metrics against PSNR (Fig. 5), forwards (Fig. 1) or seconds, with a line through each series.

    A point that lies far from all others is outside the frame.

    Args:
        series: the methods.
        across: "psnr", or a name in `COSTS`.
        metrics: metrics, of which those that were measured have a panel each.
    """
    (_, entry), *_ = next(iter(series.values()))
    names = [name for name in metrics if name in entry]
    figure, axes = _panels(len(names), 4.2 if across in COSTS else 6.5)
    for axis, name in zip(axes, names, strict=True):
        _lines(axis, series, across, name)
        axis.set(xlabel=COSTS.get(across) or LABELS[across], ylabel=LABELS[name])
        if across in COSTS:
            axis.set_xscale("log")
        if across == "nfe":
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 3, 5)))
            axis.xaxis.set_major_formatter(ScalarFormatter())
            axis.minorticks_off()
    figure.tight_layout()
    figure.legend(*axes[-1].get_legend_handles_labels(), fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return figure


def _panels(count: int, width: float) -> tuple[Figure, Sequence[Axes]]:
    """Return a figure and its panels, side by side."""
    figure = Figure(figsize=(width * count, 3.8 if width < 6 else 5))
    axes = figure.subplots(1, count, squeeze=False)
    for axis in axes[0]:
        axis.grid(alpha=0.3)
    return figure, axes[0]


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
        # the text beside a point is often the number of forwards
        for (text, _), place in zip(own, zip(x, y, strict=True), strict=True) if across != "nfe" else ():
            axis.annotate(
                text, place, (3, 3), textcoords="offset points", fontsize=6, color=style["color"], annotation_clip=True
            )
    framed = [name for name in (across, up) if name not in COSTS]
    points = [[entry[name] for name in framed] for own in series.values() for _, entry in own]
    for name, limits in zip(framed, _frame(np.array(points, dtype=float)), strict=True):
        (axis.set_xlim if name == across else axis.set_ylim)(*limits)


def _frame(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return limits of each axis, (D, 2), without the points (P, D) that lie far from all others."""
    low, high = np.nanpercentile(points, (10, 90), axis=0)
    reach = 3 * (high - low)
    inside = points[((low - reach <= points) & (points <= high + reach)).all(axis=1)]
    low, high = inside.min(axis=0), inside.max(axis=0)
    margin = np.where(high > low, 0.06 * (high - low), 0.01)
    return np.stack([low - margin, high + margin], axis=1)


def starts(rows: Sequence[Mapping[str, Any]], names: Sequence[str]) -> Figure:
    """Plot the quality of every start (Table 5), and the share of episodes in which agents chose it.

    Args:
        rows: as rows.csv holds them.
        names: metrics, or "reward".
    """
    fixed = [row for row in rows if row["family"] == START]
    N = max(int(row["start"]) for row in fixed)
    chosen: dict[str, list[int]] = {}
    for row in rows:
        # an agent of jumps always begins at its first level, which it does not choose
        if row["family"] == AGENT and int(row["start"]) <= N:
            chosen.setdefault(row["method"], []).append(int(row["start"]))
    figure, axes = _panels(len(names), 4.5)
    for axis, name in zip(axes, names, strict=True):
        values: dict[str, list[list[float]]] = {}  # those of each picture by start, under its noises
        for row in fixed:
            own = values.setdefault(row["image"], [[] for _ in range(N)])
            own[int(row["start"]) - 1].append(float(row[name]))
        pictures = np.array([[np.mean(cell) for cell in own] for own in values.values()])
        axis.plot(range(1, N + 1), pictures.T, color="tab:blue", alpha=0.15, lw=0.8)
        axis.plot(range(1, N + 1), np.nanmean(pictures, axis=0), "o-", color="tab:blue", label="mean over pictures")
        axis.set(xlabel="start of the fine chain (diffusion step)", ylabel=LABELS.get(name, name))
        axis.set_xticks(range(1, N + 1, max(1, N // 10)))
        axis.legend(fontsize=7, loc="upper left")
        if chosen:
            share = axis.twinx()
            colours = [f"C{i + 2}" for i in range(len(chosen))]
            edges = np.arange(0.5, N + 1).tolist()
            share.hist([*chosen.values()], edges, density=True, label=[*chosen], color=colours, alpha=0.35)
            share.set(ylabel="share of episodes", ylim=(0, 1))
            share.legend(fontsize=7, loc="upper right")
    figure.tight_layout()
    return figure


def learning_curves(curves: Mapping[str, Sequence[CurvePoint]]) -> Figure:
    """Plot the results of one or several runs against episodes: reward, score, regret, mean start and forwards.

    A result that no run has is left out.

    Args:
        curves: run → its evaluations.
    """
    labels = {"reward": "reward", "score": "score", "regret": "regret", "start": "mean start", "nfe": "UNet forwards"}
    points = [point for curve in curves.values() for point in curve]
    found = {name for name in labels if name == "reward" or any(np.isfinite(getattr(e, name)) for e in points)}
    names = {name: label for name, label in labels.items() if name in found}
    figure, axes = _panels(len(names), 4.2)
    for axis, (name, label) in zip(axes, names.items(), strict=True):
        for i, (run, curve) in enumerate(curves.items()):
            axis.plot([e.episodes for e in curve], [getattr(e, name) for e in curve], color=f"C{i}", label=run)
            if name == "reward":
                axis.axhline(curve[-1].best_fixed_reward, color=f"C{i}", ls="--", lw=0.8)
                axis.axhline(curve[-1].oracle_reward, color=f"C{i}", ls=":", lw=0.8)
        axis.set(xlabel="episodes", ylabel=label)
    axes[0].legend(fontsize=7, title="-- best fixed, ·· oracle", title_fontsize=7)
    figure.tight_layout()
    return figure


def contact_sheet(columns: Mapping[str, Sequence[NDArray[np.uint8]]]) -> Figure:
    """Draw pictures side by side (Fig. 3), with one column for each method and one row for each picture.

    Args:
        columns: heading → pictures (H, W, 3).
    """
    rows = len(next(iter(columns.values())))
    figure = Figure(figsize=(2 * len(columns), 2 * rows + 0.5))
    axes = figure.subplots(rows, len(columns), squeeze=False)
    for axis, (heading, images) in zip(axes.T, columns.items(), strict=True):
        axis[0].set_title(heading, fontsize=8)
        for cell, image in zip(axis, images, strict=True):
            cell.imshow(image)
            cell.axis("off")
    figure.subplots_adjust(left=0.005, right=0.995, bottom=0.005, top=0.93, wspace=0.02, hspace=0.02)
    return figure


def series_of(summary: Sequence[Mapping[str, Any]]) -> Series:
    """Return the methods of a summary, or of a `table.json`, as lines; see `LINES`.

    Each other method is a series of one point. The originals, which only some metrics measure, are left out.
    """
    series: dict[str, list[tuple[str, Mapping[str, Any]]]] = {}
    for entry in summary:
        if entry["family"] == ORIGINALS:
            continue
        method = str(entry["method"])
        found = ((pattern.fullmatch(method), heading) for pattern, heading in LINES)
        match, heading = next(((match, heading) for match, heading in found if match), (None, method))
        if match is None:
            series[method] = [("", entry)]
        else:
            series.setdefault(heading.format(match[1]), []).append((match[2], entry))
    for own in series.values():
        own.sort(key=lambda point: float(point[0] or 0))
    return series


def plot_evaluation(folder: Path, out: Path) -> list[Path]:
    """Draw an evaluation that `skipdiff evaluate --out FOLDER` wrote, and add the figures to its `report.md`.

    Returns:
        The paths of the figures and of the report.

    Raises:
        ConfigError: the folder does not hold an evaluation.
    """
    summary = read_json(folder / "table.json")
    try:
        report = (folder / "report.md").read_text(encoding="utf-8")
        with (folder / "rows.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        series, figures = series_of(summary), {}
        if "psnr" in summary[0] and {"niqe", "lpips"} & set(summary[0]):
            figures["perception_distortion"] = metrics_against(series, "psnr", ("niqe", "lpips", "dists"))
        figures["quality_against_forwards"] = metrics_against(series, "nfe")
        figures["quality_against_seconds"] = metrics_against(series, "seconds")
        names = [name for name in LABELS if name in rows[0]]
        if rows[0].get("reward") not in (None, "", "nan"):
            names.append("reward")
        if len({row["start"] for row in rows if row["family"] == START}) > 1:
            figures["starts"] = starts(rows, names)
        sheet = _sheet(folder / "pictures", summary)
    except (OSError, KeyError, IndexError, TypeError, ValueError) as error:
        raise ConfigError(f"{folder} does not hold what evaluate --out writes ({error!r})") from None
    if sheet:
        figures["contact_sheet"] = contact_sheet(sheet)
    shown = "".join(f"![{name.replace('_', ' ').capitalize()}]({name}.webp)\n\n" for name in figures)
    paths = save_all(figures, out)
    with atomic_path(out / "report.md") as temporary:
        temporary.write_text(shown + report, encoding="utf-8")
    return [*paths, out / "report.md"]


def _sheet(folder: Path, summary: Sequence[Mapping[str, Any]]) -> dict[str, list[NDArray[np.uint8]]]:
    """Return the saved pictures by method for the contact sheet; of the fixed starts only the first and the last."""
    images = sorted(int(path.name) for path in folder.glob("*") if path.is_dir() and path.name.isdigit())
    if not images:
        return {}
    fixed = sorted((e for e in summary if e["family"] == START), key=lambda entry: entry["start"])
    families = {e["method"]: e["family"] for e in summary}
    hidden = (START, RANDOM, ORIGINALS, *CHOSEN)
    shown = [method for method, family in families.items() if family not in hidden]
    shown += [e["method"] for e in (*fixed[:1], *fixed[1:][-1:])]
    shown = [method for method in shown if picture_path(folder, images[0], method).exists()]
    order = sorted(set(shown), key=lambda m: (families[m] != BICUBIC, families[m] == AGENT, m))
    return {
        "original" if method == ORIGINALS else method: [
            read_picture(picture_path(folder, image, method)).rgb for image in images
        ]
        for method in [*order, ORIGINALS]
    }


def plot_runs(runs: Sequence[Path], out: Path) -> list[Path]:
    """Draw the learning curves of training runs, and return the path of the figure.

    Raises:
        ConfigError: a folder does not hold a run.
    """
    names = [real_path(run).name for run in runs]
    titles = names if len(set(names)) == len(names) else [str(run) for run in runs]
    curves = {title: read_curve(run / CURVE) for title, run in zip(titles, runs, strict=True)}
    for run, curve in curves.items():
        if not curve:
            raise ConfigError(f"the run {run} has no evaluation yet")
    return save_all({"learning_curves": learning_curves(curves)}, out)


def save_all(figures: Mapping[str, Figure], out: Path) -> list[Path]:
    """Write figures as OUT/<name>.webp and return their paths."""
    for name, figure in figures.items():
        save(figure, out / f"{name}.webp")
    return [out / f"{name}.webp" for name in figures]
