"""A section of a report: one object that holds the methods it needs beside the text it writes."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from matplotlib.figure import Figure

from agents.paper import reported as paper
from agents.plots import save
from agents.study.methods import Method
from agents.study.rows import LOWER_BETTER, START, Row, by_method, summarise
from agents.study.study import MAIN, Study
from agents.study.tables import COLUMNS, markdown_table, write_csv
from skipdiff_env.metrics import Metric
from skipdiff_env.rules import quality

Entry = dict[str, Any]

HEADINGS = {
    **paper.HEADINGS,
    "unet_seconds": ("UNet, s", 3), "policy_seconds": ("policy, s", 4), "total_seconds": ("seconds", 3),
    "unet_gflops": ("UNet, GFLOPs", 1), "policy_gflops": ("policy, GFLOPs", 3), "total_gflops": ("GFLOPs", 1),
    "seconds_ratio": ("times faster", 2), "flops_ratio": ("times fewer FLOPs", 2),
    "start": ("start", 1), "share": ("share of the oracle's gain", 2), "case": ("case", 0),
}  # fmt: skip
NO_PEERS = 'Other samplers are left out: diffusers is not installed; `pip install "skipdiff[peers]"`.'


def better(name: str, a: float, b: float) -> bool:
    """Whether a value of a metric is better than another."""
    return a < b if name in LOWER_BETTER else a > b


class Page:
    """What sections write with: the rows of their methods, tables and plots.

    Args:
        study: what the report is made on.
        rows: of all methods of all sections.
        out: folder of the report.
    """

    def __init__(self, study: Study, rows: Sequence[Row], out: Path) -> None:
        self.study, self.rows, self.out = study, rows, out
        self.by_method = by_method(rows)
        self.entries = {str(entry["method"]): entry for entry in summarise(rows)} if rows else {}
        self.skipdiff = study.skipdiff()
        self.quality = [*study.metrics, "nfe"]

    def of(self, methods: Iterable[Method]) -> list[Row]:
        """The rows of some methods, each once."""
        return [row for name in dict.fromkeys(method.name for method in methods) for row in self.by_method[name]]

    def label(self, method: str) -> str:
        """The name of a method in the tables."""
        if method != self.skipdiff.name:
            return method
        return f"{MAIN} (agent)" if MAIN in self.study.agents else f"{MAIN} (fixed start {self.study.start})"

    def entry(
        self, method: Method, label: str | None = None, figures: Sequence[float] | None = None, **more: object
    ) -> Entry:
        """The summary of a method as a line of a table, beside the paper's figures."""
        own = {**self.entries[method.name], "method": label or self.label(method.name)}
        return {**own, **paper.columns(figures), **more}

    def table(self, name: str, entries: Sequence[Entry], columns: Sequence[str]) -> str:
        """A table as Markdown, and as NAME.csv."""
        write_csv(self.out / f"{name}.csv", entries)
        return f"{markdown_table(entries, ['method', *columns], HEADINGS)}\n\n[{name}.csv]({name}.csv)"

    def plot(self, name: str, figure: Figure, text: str) -> str:
        """Saves a figure; gives the Markdown that shows it."""
        save(figure, self.out / f"{name}.png")
        return f"![{text}]({name}.png)"

    def series(self, methods: Iterable[Method]) -> list[tuple[str, Mapping[str, Any]]]:
        """Points of a plot: start or forwards beside each."""
        points: list[tuple[str, Mapping[str, Any]]] = []
        for method in methods:
            entry = self.entries[method.name]
            points.append((f"{entry['start' if method.family == START else 'nfe']:.0f}", entry))
        return points

    def best(self, methods: Sequence[Method], metric: Metric) -> Method:
        """The method with the largest mean reward on these pictures."""

        def reward(method: Method) -> float:
            return float(
                np.mean([quality(r.metrics[metric.name], metric.lower_better) for r in self.by_method[method.name]])
            )

        return max(methods, key=reward)

    def train_command(self, name: str, extra: str, steps: str | None = None) -> str:
        """How to get an agent that was not given; for the own pair, unless other steps are named."""
        study, plan = self.study, self.study.plan
        if steps is None:
            steps = f"{plan.S},{plan.N}"
            if plan.coarse_sampler != study.unet.settings["coarse_sampler"]:
                steps += f" --coarse-sampler {plan.coarse_sampler}"
        return (
            f"`skipdiff train-agent --checkpoint {study.config.checkpoint} --images DIR --image-size "
            f"{study.config.image_size} --steps {steps}{extra} --out runs/{name}`, then `skipdiff reproduce … --agent "
            f"{name}=runs/{name}`"
        )


class Section(ABC):
    """One section of a report.

    Args:
        study: what the report is made on.

    Attributes:
        name: what `--sections` calls it.
        study: what the report is made on.
        methods: what must have run before it can be written.
    """

    name: ClassVar[str]

    def __init__(self, study: Study) -> None:
        self.study = study
        self.methods = self.needs()

    @abstractmethod
    def needs(self) -> list[Method]:
        """The methods whose rows it shows."""

    @abstractmethod
    def write(self, page: Page) -> str:
        """The section as Markdown; its tables and plots are written beside."""

    def prepare(self, out: Path) -> None:  # noqa: B027 (most sections have nothing to prepare)
        """Computes what it shows beside the rows, as files in the report's folder that stay."""


def best_by_metric(entries: Iterable[Mapping[str, Any]], names: Iterable[str]) -> str:
    """Which entry is the best in each metric, as a sentence."""
    entries = list(entries)
    parts = []
    for name in names:
        known = [entry for entry in entries if not np.isnan(entry[name])]
        if known:
            best = min(known, key=lambda entry: entry[name] if name in LOWER_BETTER else -entry[name])
            parts.append(f"{COLUMNS[name][0]}: {best['method']} ({best[name]:.{COLUMNS[name][1]}f})")
    return f"Best in {'; '.join(parts)}."
