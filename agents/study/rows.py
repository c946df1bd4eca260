"""Rows of results, and their summary: means, rewards, oracles, and dominated methods."""

import math
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.tables import COLUMNS, markdown_table, write_csv
from ddpm.util.checks import is_whole
from ddpm.util.errors import ConfigError
from ddpm.util.files import atomic_path, read_json, write_json
from skipdiff_env.metrics import Metric
from skipdiff_env.outcomes import best_fixed, best_of_others
from skipdiff_env.rules import episode_reward, quality

# Families of methods.
ORIGINALS = "originals"  # the target pictures, which only metrics without a reference measure
BICUBIC, PREDICTOR = "bicubic", "predictor"
CHAIN, COARSE, START, SCHEDULE = "chain", "coarse chain", "fixed start", "schedule"
# A fixed start of another plan, or above the first step of the plan.
OTHER_START = "other start"
AGENT, RANDOM = "agent", "random skipping"
PEER, EARLY = "peer", "early start"
OTHER_NET = "another net"
# Rows that are chosen from those of the fixed starts or schedules. The first choice knows the target; the second knows
# the target under other noises, so that its gain over the third is due to the picture and not to the noise.
ORACLE, PICTURE_BEST, BEST_FIXED = "oracle", "each picture's best", "best fixed"
CHOSEN = (ORACLE, PICTURE_BEST, BEST_FIXED)

# Metrics in which a method must be at least as good to dominate another. The last counts only if it was measured.
JUDGED = ("psnr", "lpips", "dists")


@dataclass(frozen=True)
class Row:
    """The result of one method for one picture under one noise seed.

    Attributes:
        method: name of the method.
        family: kind of method, one of this module's constants.
        image: index of the picture.
        seed: noise seed.
        nfe: UNet forwards; 0 for another network.
        seconds: wall time of its batch, divided by the number of pictures.
        metrics: name → value; for the originals only metrics without a reference.
        start: diffusion step at which the surviving fine chain began; None without a fine stage.
        levels: diffusion steps at which the network ran on the surviving fine chain; empty without a fine stage.
        reward: reward of the environment; NaN without a metric of the reward.
        regret: distance from the reward of the best start; NaN if that is not known.
        policy_seconds: part of `seconds` that was spent on decisions.
    """

    method: str
    family: str
    image: int
    seed: int
    nfe: int
    seconds: float
    metrics: dict[str, float]
    start: int | None = None
    levels: tuple[int, ...] = ()
    reward: float = math.nan
    regret: float = math.nan
    policy_seconds: float = 0.0


def read_rows(path: Path) -> list[Row]:
    """Read the rows of a method for a batch, as a `Runner` writes them.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    try:
        rows = [Row(**{**row, "levels": tuple(row["levels"])}) for row in read_json(path)]
        for row in rows:
            wholes = (row.image, row.seed, row.nfe, row.start or 0, *row.levels)
            numbers = (row.seconds, row.reward, row.regret, row.policy_seconds, *row.metrics.values())
            odd: list[object] = [value for value in (row.method, row.family) if not isinstance(value, str)]
            odd += [value for value in wholes if not is_whole(value)]
            odd += [value for value in numbers if not isinstance(value, int | float)]
            if odd:
                raise TypeError(f"a value is {odd[0]!r:.40}")
        return rows
    except (AttributeError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} holds no rows of this version ({error}); remove it, or give another --out") from None


def by_method(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Return method → rows."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.method, []).append(row)
    return found


def candidates(rows: Sequence[Row]) -> list[Row]:
    """Return the rows that the oracle chooses from: those of the fixed starts or, without any, of the schedules."""
    starts = sorted((row for row in rows if row.family == START), key=lambda row: row.start or 0)
    return starts or [row for row in rows if row.family == SCHEDULE]


def with_rewards(
    rows: Sequence[Row],
    metric: Metric,
    train: Sequence[Row] = (),
    kind: str = "inverse",
    price: float = 0.0,
    coarse: Mapping[str, int] | None = None,
) -> list[Row]:
    """Add rewards; with fixed starts or schedules, also regrets and the rows that are chosen from them.

    These are the best fixed start (or schedule), the oracle and, with several noise seeds, each picture's best start:
    the start that is best on average under the picture's *other* seeds. With fewer seeds, noise disturbs that choice
    more. On average, the part of the oracle's gain that is due to the picture is at least the gain of this row.

    Args:
        rows: rows with every start of the fine chain, or without any start, and one for each method, picture and noise;
            those of the originals, which have no reward, are moved to the end.
        metric: metric of the reward; must be among the rows' metrics.
        train: rows of the same starts or schedules on other pictures, on which the best fixed one is chosen; empty: the
            best on these pictures.
        kind: kind of the reward, one of `skipdiff_env.rules.REWARDS`.
        price: price of a fine forward.
        coarse: method → forwards of its coarse stage, which cost nothing.
    """
    originals = [row for row in rows if row.family == ORIGINALS]
    rows = [row for row in rows if row.family != ORIGINALS]

    def reward(row: Row) -> float:
        gained = quality(row.metrics[metric.name], metric.lower_better, kind)
        return float(episode_reward(gained, price, row.nfe - (coarse or {}).get(row.method, 0)))

    rows = [replace(row, reward=reward(row)) for row in rows]
    known, rewards, names = _of_fixed(rows)
    if not known:
        return rows + originals
    _, of_train, train_names = _of_fixed([replace(row, reward=reward(row)) for row in candidates(train)])
    best = names.index(train_names[best_fixed(of_train)]) if train_names else best_fixed(rewards)
    of_starts = known[best].family == START
    what, title = ("start", known[best].start) if of_starts else ("schedule", names[best])
    choices = [(BEST_FIXED, f"{BEST_FIXED} {what} ({title})", np.full(rewards.shape[:2], best))]
    if rewards.shape[1] > 1:
        choices.append((PICTURE_BEST, f"{PICTURE_BEST} {what}", best_of_others(rewards)))
    choices.append((ORACLE, ORACLE, rewards.argmax(axis=2)))
    for family, name, places in choices:
        own = (known[i * len(names) + place] for i, place in enumerate(places.flat))
        rows += [replace(row, family=family, method=name) for row in own]
    firsts = known[:: len(names)]
    highest = {(row.image, row.seed): value for row, value in zip(firsts, rewards.max(axis=2).flat, strict=True)}
    return [replace(row, regret=float(highest[row.image, row.seed]) - row.reward) for row in rows] + originals


def _of_fixed(rows: Sequence[Row]) -> tuple[list[Row], NDArray[np.float64], list[str]]:
    """Return the rows of the fixed starts or schedules by picture and noise, and their rewards and names.

    The rewards are (pictures, noises, starts).
    """
    known = sorted(candidates(rows), key=lambda row: (row.image, row.seed))
    shape = len({row.image for row in known}), len({row.seed for row in known}), len({row.method for row in known})
    return known, np.reshape([row.reward for row in known], shape), [*by_method(known)]


def _figures(rows: Sequence[Row]) -> list[str]:
    """Return the names of the averaged values: the metrics, and reward and regret if they are known."""
    known = [name for name in ("reward", "regret") if any(not math.isnan(getattr(row, name)) for row in rows)]
    return [*rows[0].metrics, *known]


def figure(row: Row, name: str) -> float:
    """Return a metric, the reward or the regret of a row."""
    return row.metrics[name] if name in row.metrics else float(getattr(row, name))


def summarise(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return one entry for each method: means over pictures, then mean and standard deviation over noise seeds.

    A value that is NaN (the metric failed on that picture) is left out, and `failures` counts these values. The entry
    of the originals has no metrics with a reference, and that of another network has no forwards. `start` is the mean
    start, if there is a fine stage. `dominated_by` names the method that dominates this one, see `dominators`; it is a
    dash if there is none, and missing if domination cannot be determined.
    """
    summary: list[dict[str, Any]] = []
    for method, own in by_method(rows).items():
        seeds = sorted({row.seed for row in own})
        entry: dict[str, Any] = {
            "method": method, "family": own[0].family, "pictures": len(own) // len(seeds), "seeds": len(seeds),
        }  # fmt: skip
        for name in own[0].metrics if own[0].family == ORIGINALS else _figures(rows):
            means = [np.nanmean([figure(row, name) for row in own if row.seed == seed]) for seed in seeds]
            entry[name], entry[f"{name}_std"] = float(np.mean(means)), float(np.std(means))
        entry["nfe"] = float(np.mean([row.nfe for row in own])) if own[0].family != OTHER_NET else math.nan
        entry["seconds"] = float(np.mean([row.seconds for row in own]))
        starts = [row.start for row in own if row.start is not None]
        if starts:
            entry["start"] = float(np.mean(starts))
        entry["failures"] = sum(int(np.isnan(value)) for row in own for value in row.metrics.values())
        summary.append(entry)
    if judged(rows[0].metrics):
        for method, better in dominators(summary).items():
            next(entry for entry in summary if entry["method"] == method)["dominated_by"] = better or "–"
    return summary


def judged(names: Iterable[str]) -> list[str]:
    """Return the metrics that determine domination; empty if PSNR or LPIPS is missing."""
    known = [name for name in JUDGED if name in names]
    return known if {"psnr", "lpips"} <= set(known) else []


def dominators(summary: Sequence[Mapping[str, Any]]) -> dict[str, str | None]:
    """Return the method that dominates each method, or None.

    A method is dominated if another with at most its forwards is at least as good in PSNR, LPIPS and, if it was
    measured, DISTS, and better in one of them. Of several that are not dominated, the one with the best LPIPS is named.
    The originals, the choices that know them, and other networks are left out.

    Args:
        summary: as `summarise` returns it.
    """
    methods = [entry for entry in summary if entry["family"] not in (ORIGINALS, OTHER_NET, *CHOSEN)]

    def losses(entry: Mapping[str, Any]) -> NDArray[np.float64]:
        return np.array([-entry[name] if name == "psnr" else entry[name] for name in judged(entry)])

    def better(entry: Mapping[str, Any]) -> list[Mapping[str, Any]]:
        own, cheaper = losses(entry), [other for other in methods if other["nfe"] <= entry["nfe"]]
        return [other for other in cheaper if (losses(other) <= own).all() and (losses(other) < own).any()]

    found = {entry["method"]: better(entry) for entry in methods}
    return {
        method: min(
            (other for other in others if not found[other["method"]]), key=lambda other: other["lpips"], default={}
        ).get("method")
        for method, others in found.items()
    }


def to_markdown(rows: Sequence[Row]) -> str:
    """Return the summary as a Markdown table; ± is the standard deviation over noise seeds, if there are several."""
    columns = ["method", *_figures(rows), "nfe", "seconds"]
    headings = [COLUMNS[name][0] for name in judged(rows[0].metrics)]
    if not headings:
        return markdown_table(summarise(rows), columns)
    return markdown_table(summarise(rows), [*columns, "dominated_by"]) + (
        "\n\nA method is dominated by another that takes at most as many forwards, is at least as good in "
        f"{', '.join(headings[:-1])} and {headings[-1]}, and better in one of them."
    )


def write_report(folder: Path, rows: Sequence[Row], sections: Iterable[str]) -> None:
    """Write `report.md`, `table.md`, `table.csv`, `table.json` (the summary) and `rows.csv` into a folder.

    Args:
        folder: the folder, which is created if it is missing.
        rows: rows of every method, picture and noise.
        sections: sections of the report, as Markdown; the running command is printed above them.
    """
    summary = summarise(rows)
    write_json(folder / "table.json", summary)
    write_csv(folder / "table.csv", summary)
    plain = (vars(row) | {"levels": " ".join(map(str, row.levels))} for row in rows)
    write_csv(folder / "rows.csv", [columns | columns.pop("metrics") for columns in plain])
    command = f"`{shlex.join(['skipdiff', *sys.argv[1:]])}` printed:"
    for name, text in (("table.md", to_markdown(rows)), ("report.md", "\n\n".join([command, *sections]))):
        with atomic_path(folder / name) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
