"""Tables as Markdown and as CSV, for evaluations, reports and benchmarks."""

import csv
import math
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ddpm.util.files import atomic_path

# name → (heading, digits)
COLUMNS = {
    "psnr": ("PSNR-Y", 2), "ssim": ("SSIM-Y", 4), "niqe": ("NIQE", 2), "lpips": ("LPIPS", 4), "dists": ("DISTS", 4),
    "lpips-vgg": ("LPIPS-VGG", 4), "piqe": ("PIQE", 2), "colour": ("colour error", 2),
    "reward": ("reward", 4), "regret": ("regret", 4), "nfe": ("NFE", 1), "seconds": ("s/picture", 2),
    "dominated_by": ("dominated by", 0),
}  # fmt: skip


def markdown(headings: Iterable[str], rows: Iterable[Iterable[object]]) -> str:
    """Return a Markdown table of cells; floats have three significant digits."""
    lines = [list(headings)]
    lines += [[f"{cell:.3g}" if isinstance(cell, float) else str(cell) for cell in row] for row in rows]
    text = ["| " + " | ".join(cells) + " |" for cells in lines]
    return "\n".join([text[0], "|---" * len(lines[0]) + "|", *text[1:]])


def figure_text(entry: Mapping[str, object], name: str, digits: int) -> str:
    """Return a cell: text, a number with its standard deviation over several noise seeds, or a dash."""
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
    """Return a Markdown table of entries.

    Args:
        entries: one entry for each line, as `agents.study.rows.summarise` returns them; a missing value is a dash.
        columns: names of the columns.
        headings: name → (heading, digits), for columns that are not in `COLUMNS`.
    """
    known = {**COLUMNS, **(headings or {})}
    shown = {name: known.get(name, (name, 4)) for name in columns}
    return markdown(
        [heading for heading, _ in shown.values()],
        ([figure_text(entry, name, digits) for name, (_, digits) in shown.items()] for entry in entries),
    )


def write_csv(path: Path, entries: Sequence[Mapping[str, object]]) -> None:
    """Write a table with the columns of all its entries; missing values are left empty."""
    with atomic_path(path) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, fieldnames=list(dict.fromkeys(name for entry in entries for name in entry)))
        writer.writeheader()
        writer.writerows(entries)
