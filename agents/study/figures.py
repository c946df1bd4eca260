"""Figures of an evaluation that `skipdiff evaluate --out` wrote."""

import csv
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.plots import (
    LABELS,
    Series,
    contact_sheet,
    perception_distortion,
    quality_against,
    save_all,
    starts,
)
from agents.study.rows import AGENT, BICUBIC, CHOSEN, ORIGINALS, RANDOM, START
from agents.study.running import picture_path
from ddpm.pictures.images import read_picture
from ddpm.util.errors import ConfigError
from ddpm.util.files import atomic_path, read_json

# Pattern of the names of methods on one line, and heading of the line; the last group is the text beside the point.
LINES = (
    (re.compile(r"(.+), (\d+) even steps"), "{}, even steps"),
    (re.compile(r"(.+ forwards?) of (\d+) substeps"), "{}, substeps"),
    (re.compile(r"(CSA\(.+\)) \+ FSR\((\d+)\)"), "{}, fixed starts"),
    (re.compile(r"(agent .+), quality (\S+)"), "{}"),
    (re.compile(r"(DDPM-|CSA\()(\d+)\)?"), "DDPM of S steps"),
    (re.compile(r"(.+), (\d+)"), "{}"),  # a peer
)


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


def outcomes_by_start(
    rows: Sequence[Mapping[str, Any]], names: Sequence[str]
) -> tuple[dict[str, NDArray[np.float64]], dict[str, list[int]]]:
    """Return the quality of every start, (pictures, N) for each metric; and the starts that each agent chose.

    Args:
        rows: as `agents.study.rows.flat` returns them, or as rows.csv holds them.
        names: metrics.
    """
    fixed = [row for row in rows if row["family"] == START]
    pictures = sorted({int(row["image"]) for row in fixed})
    N = max(int(row["start"]) for row in fixed)
    outcomes = {}
    for name in names:
        values: list[list[list[float]]] = [[[] for _ in range(N)] for _ in pictures]
        for row in fixed:
            values[pictures.index(int(row["image"]))][int(row["start"]) - 1].append(float(row[name]))
        outcomes[name] = np.array([[np.mean(cell) for cell in line] for line in values])
    chosen: dict[str, list[int]] = {}
    for row in rows:
        # an agent of jumps always begins at its first level, which it does not choose
        if row["family"] == AGENT and int(row["start"]) <= N:
            chosen.setdefault(row["method"], []).append(int(row["start"]))
    return outcomes, chosen


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
        series = series_of(summary)
        figures = {}
        if "psnr" in summary[0] and {"niqe", "lpips"} & set(summary[0]):
            figures["perception_distortion"] = perception_distortion(series)
        figures["quality_against_forwards"] = quality_against(series)
        figures["quality_against_seconds"] = quality_against(series, "seconds")
        names = [name for name in LABELS if name in rows[0]]
        if rows[0].get("reward") not in (None, "", "nan"):
            names.append("reward")
        if len({row["start"] for row in rows if row["family"] == START}) > 1:
            figures["starts"] = starts(*outcomes_by_start(rows, names))
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
