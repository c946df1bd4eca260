"""The share of the possible gain, by a choice for each picture, that an agent of jumps reaches.

The cost is the metric of the agent's reward plus its price for each forward. The best fixed number of even steps has
the lowest mean cost on the same pictures, so no fixed number is better. The choice by the other noises gives each
picture and noise the number that is best under the picture's other noises, which excludes luck with a noise. The share
of an agent is its gain over the best fixed number, divided by the gain of that choice. It can be above 1, since an
agent may choose numbers that no schedule of the comparison has.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.agent import Agent
from agents.study.methods import curve_prices
from agents.study.rows import SCHEDULE, Row, by_method
from agents.study.tables import markdown_table
from ddpm.schedule import even_levels

HEADINGS = {
    "price": ("price", 4), "fixed": ("best fixed number of steps", 0), "fixed_pays": ("it pays", 4),
    "agent_pays": ("the agent pays", 4), "others_pay": ("the choice by the other noises pays", 4),
    "share": ("share of the gain", 2),
}  # fmt: skip


def _even(row: Row) -> bool:
    """Return whether a schedule has even steps, judged by its levels."""
    return bool(row.levels) and row.levels == even_levels(row.levels[0], len(row.levels))


def _paid(rows: Sequence[Row], metric: str, price: float) -> NDArray[np.float64]:
    """Return the metric plus the price of the forwards of one method, (pictures, noise seeds)."""
    images, seeds = sorted({row.image for row in rows}), sorted({row.seed for row in rows})
    known = {(row.image, row.seed): row.metrics[metric] + price * row.nfe for row in rows}
    return np.array([[known[image, seed] for seed in seeds] for image in images])


def gains(rows: Sequence[Row], agents: Mapping[str, Agent]) -> list[dict[str, Any]]:
    """Return one entry for each quality of each agent of jumps whose reward is by a metric of the rows.

    Lower values of the metric must be better.

    Args:
        rows: rows of the agents, and of even schedules of their sampler, under several noise seeds.
        agents: name → agent.

    Returns:
        Entries with the keys of `HEADINGS` and `method`; none for an agent with fewer than two such schedules, or for
        one noise.
    """
    methods = by_method(rows)
    schedules = {name: own for name, own in methods.items() if own[0].family == SCHEDULE and _even(own[0])}
    found = []
    for name, agent in agents.items():
        plan, env = agent.config.plan, agent.config.training.get("env", {})
        metric = env.get("metric", "lpips")
        if plan.skip_mode != "jump" or env.get("reward", "negative") != "negative":
            continue
        rivals = [own for label, own in schedules.items() if label.startswith(f"{plan.fine_sampler}, ")]
        if len(rivals) < 2 or metric not in rows[0].metrics or len({row.seed for row in rivals[0]}) < 2:
            continue
        for method, price in curve_prices(name, agent).items():
            paid = np.stack([_paid(own, metric, price) for own in rivals], axis=2)
            others = (paid.sum(axis=1, keepdims=True) - paid).argmin(axis=2)
            fixed = int(paid.mean(axis=(0, 1)).argmin())
            fixed_pays = float(paid[..., fixed].mean())
            others_pay = float(np.take_along_axis(paid, others[..., None], 2).mean())
            agent_pays = float(_paid(methods[method], metric, price).mean())
            room = fixed_pays - others_pay
            found.append(
                {
                    "method": method, "price": price, "fixed": len(rivals[fixed][0].levels), "fixed_pays": fixed_pays,
                    "agent_pays": agent_pays, "others_pay": others_pay,
                    "share": (fixed_pays - agent_pays) / room if room > 0 else float("nan"),
                }
            )  # fmt: skip
    return found


def gains_markdown(entries: Sequence[Mapping[str, Any]]) -> str:
    """Return the entries as a Markdown table with a sentence before it."""
    return (
        "What is paid is the metric of the agent's reward plus the price of the forwards. The best fixed number of "
        "even steps was found on these very pictures; the choice by the other noises gives each picture the number "
        "that is best under its other noises.\n\n"
        + markdown_table(
            [{**entry, "fixed": str(entry["fixed"])} for entry in entries], ["method", *HEADINGS], HEADINGS
        )
    )
