"""Differences between methods with bootstrap intervals over photographs."""

from collections.abc import Mapping, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.stats import bootstrap

from agents.study.rows import AGENT, BEST_FIXED, ORIGINALS, PICTURE_BEST, Row, by_method, figure
from agents.tables import COLUMNS, markdown
from ddpm.util.checks import counted
from ddpm.util.errors import ConfigError
from skipdiff_env.metrics import lower_better
from skipdiff_env.outcomes import RESAMPLES, share_of_gain

# Fewer photographs than this make an interval unreliable.
FEW = 100


def per_photograph(rows: Sequence[Row], metric: str, photographs: Sequence[str]) -> dict[str, float]:
    """Return the mean of a metric, or of "reward", for each photograph, over its crops and noises, without failures."""
    values: dict[str, list[float]] = {}
    for row in rows:
        values.setdefault(photographs[row.image], []).append(figure(row, metric))
    return {name: float(np.nanmean(own)) for name, own in values.items() if not np.isnan(own).all()}


def interval(differences: NDArray[np.float64]) -> tuple[float, float]:
    """Return the 95 % bootstrap interval of the mean of differences, one for each photograph."""
    if len(differences) < 2 or np.ptp(differences) == 0:
        return (float(differences.mean()),) * 2
    rng = np.random.default_rng(0)
    found = bootstrap((differences,), np.mean, n_resamples=RESAMPLES, method="percentile", rng=rng).confidence_interval
    return float(found.low), float(found.high)


def shares_markdown(rows: Sequence[Row], photographs: Sequence[str]) -> str:
    """Return a table of each agent's share of the possible gain, with intervals; empty if it cannot be computed.

    The gain is that over the best fixed start or schedule in the reward. The possible gain is that of each picture's
    best start or schedule, which needs several noise seeds.
    """
    methods = {name: own for name, own in by_method(rows).items() if own[0].family in (BEST_FIXED, PICTURE_BEST, AGENT)}
    bounds = [n for family in (BEST_FIXED, PICTURE_BEST) for n, own in methods.items() if own[0].family == family]
    agents = [name for name, own in methods.items() if own[0].family == AGENT]
    if len(bounds) < 2 or not agents:
        return ""
    means = {name: np.array([*per_photograph(own, "reward", photographs).values()]) for name, own in methods.items()}
    found = {name: share_of_gain(means[name], means[bounds[0]], means[bounds[1]]) for name in agents}
    return (
        f"Share of the gain: 0 is the reward of {bounds[0]}, 1 that of {bounds[1]}, with 95 % bootstrap intervals over "
        f"{counted(len(set(photographs)), 'photograph')}.\n\n"
        + markdown(
            ["method", "share of the gain"], [[n, f"{s:.2f} [{a:.2f}, {b:.2f}]"] for n, (s, a, b) in found.items()]
        )
    )


def comparisons_markdown(rows: Sequence[Row], reference: str, photographs: Sequence[str]) -> str:
    """Return a Markdown table of the paired differences of methods to a reference, with a sentence before it.

    Better values than the reference's are bold.

    Args:
        rows: rows of all methods.
        reference: name of a method.
        photographs: the photograph that each picture is cut from, which is the unit of the resampling.

    Raises:
        ConfigError: there is no such method.
    """
    methods = {name: own for name, own in by_method(rows).items() if own[0].family != ORIGINALS}
    if reference not in methods:
        raise ConfigError(f"reference must be one of the methods {'; '.join(methods)}, got {reference!r}")
    base = methods.pop(reference)
    theirs = {metric: per_photograph(base, metric, photographs) for metric in base[0].metrics}
    measured = {metric for metric, values in theirs.items() if values}
    metrics = [*(name for name in COLUMNS if name in measured), *sorted(measured - COLUMNS.keys())]
    lines = [
        [name, *(_difference(per_photograph(own, each, photographs), theirs[each], each) for each in metrics)]
        for name, own in methods.items()
    ]
    count = len(set(photographs))
    note = f" An interval over fewer than {FEW} photographs says little." if count < FEW else ""
    return (
        f"Differences to {reference}, with 95 % bootstrap intervals over {counted(count, 'photograph')}; noises and "
        f"crops are averaged within a photograph. Bold: better, and the interval excludes 0.{note}\n\n"
        + markdown(["method", *(COLUMNS.get(name, (name, 4))[0] for name in metrics)], lines)
    )


def _difference(ours: Mapping[str, float], theirs: Mapping[str, float], metric: str) -> str:
    """Return the mean difference of a metric by photograph, with its interval; a dash if it is unknown."""
    both = sorted(ours.keys() & theirs.keys())
    differences = np.array([ours[photograph] - theirs[photograph] for photograph in both])
    if not both or np.isnan(differences.mean()):
        return "–"
    low, high = interval(differences)
    digits = COLUMNS.get(metric, ("", 4))[1]
    text = f"{differences.mean():+.{digits}f} [{low:+.{digits}f}, {high:+.{digits}f}]"
    better = high < 0 if lower_better(metric) else low > 0
    return f"**{text}**" if better else text
