"""`skipdiff reproduce`: the paper's tables, made of the rows of the same runner as those of `evaluate`."""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.agent import Agent
from agents.study import methods as ways
from agents.study import reported
from agents.study.evaluation import settings_of, training_of
from agents.study.figures import plot_evaluation
from agents.study.intervals import comparisons_markdown
from agents.study.methods import Method
from agents.study.peers import peers
from agents.study.rows import (
    BEST_FIXED,
    BICUBIC,
    ORACLE,
    OTHER_START,
    PICTURE_BEST,
    START,
    Row,
    by_method,
    summarise,
    to_markdown,
    with_rewards,
    write_report,
)
from agents.study.running import Crops, Runner, save_pictures, tensor_digest
from agents.tables import COLUMNS, markdown_table
from ddpm.pictures.degradation import PLAIN
from ddpm.samplers import COARSE_SAMPLERS
from ddpm.util.checks import counted
from ddpm.util.errors import ConfigError
from skipdiff_env.metrics import Metric
from skipdiff_env.outcomes import gap_closed
from skipdiff_env.plan import Plan
from skipdiff_env.rules import quality

# Values of S, of which those that divide T are used: chains (Fig. 1), and pairs with a few starts each (Fig. 5).
CHAINS, PAIRS = (2, 4, 5, 10, 20, 25, 50, 100), (4, 5, 10, 20, 25)
# Fixed starts for cases 3 (shares of T) and 4 (multiples of N) of Table 4, if there is no agent for them.
CASE_3, CASE_4 = (0.9, 0.7), (2, 4)
NO_AGENT = "no agent: the best fixed start on these pictures"
# Name of the agent that stands for SkipDiff, and the number of agents of jumps, which are not a case of Table 4.
MAIN, JUMPS = "SkipDiff", 0
# Largest number of photographs for fitting schedules, and number of pictures of each method in the contact sheet.
TRAIN_LIMIT, PICTURES = 32, 4
HEADINGS = {
    **reported.HEADINGS,
    "policy_seconds": ("of them policy", 4), "gflops": ("GFLOPs", 1), "faster": ("times faster", 2),
    "fewer": ("times fewer FLOPs", 2), "start": ("start", 1), "share": ("share of the oracle's gain", 2),
    "case": ("case", 0),
}  # fmt: skip

Entry = dict[str, Any]


class Paper:
    """The methods that the paper's tables and figures compare, and the tables of their rows.

    Args:
        runner: runner with the network and the metrics.
        agents: name → agent. The agent named "SkipDiff" is the paper's method; without it, a fixed start is.
        levels: fixed schedules, as `agents.study.methods.schedule` takes them.
        train_crops: photographs for fitting schedules by dynamic programming; empty: no schedule is fitted.
        sections: names in `SECTIONS`; empty: all.

    Raises:
        ConfigError: a section is unknown, or an agent or a schedule does not fit.
    """

    def __init__(
        self,
        runner: Runner,
        agents: Mapping[str, Agent],
        levels: Sequence[str] = (),
        train_crops: Sequence[Tensor] = (),
        sections: Sequence[str] = (),
    ) -> None:
        self.runner, self.agents, self.levels, self.train_crops = runner, agents, levels, train_crops
        self.unet, self.metrics = runner.unet, runner.metrics
        self.T = int(self.unet.settings["diffusion_steps"])
        if unknown := [name for name in sections if name not in SECTIONS]:
            raise ConfigError(f"unknown section {', '.join(unknown)}; known are {', '.join(SECTIONS)}")
        self.sections = [name for name in SECTIONS if name in (sections or SECTIONS)]
        main = agents[MAIN].config.plan if MAIN in agents else None
        restarts = main is not None and main.skip_mode == "restart"
        self.plan = replace(Plan.resolve(self.unet.settings, main if restarts else None), first_step=None)
        if main is not None and self.case(MAIN) not in (5, JUMPS):
            raise ConfigError(
                f"the agent that stands for {MAIN} decides from diffusion step {self.T} on, expected {self.plan.N}; "
                "give it another name, as in --agent case4=DIR"
            )
        rewarded = training_of(agents[MAIN]).get("metric", "niqe") if MAIN in agents else "niqe"
        self.reward = self.metrics[rewarded if rewarded in self.metrics else "niqe"]
        start = min(self.unet.settings["start"] or self.plan.N, self.plan.N)
        self.ours = self.agent(MAIN) if MAIN in agents else ways.from_start(self.plan, start)
        self.label = f"{MAIN} (agent)" if MAIN in agents else f"{MAIN} (fixed start {start})"
        self.full, self.coarse = ways.chain(self.T), ways.coarse_chain(self.plan)
        # of the tables, which `write` sets
        self.rows: dict[str, list[Row]] = {}
        self.entries: dict[str, Entry] = {}
        self.side = 0

    # --- methods ---

    def agent(self, name: str) -> Method:
        """Return a coarse and a fine stage that an agent decides, under the agent's plan."""
        return ways.by_agent(name, self.agents[name])

    def case(self, name: str) -> int:
        """Return the case of Table 4 that an agent stands for, 3, 4 or 5, or `JUMPS`."""
        plan = self.agents[name].config.plan
        if plan.skip_mode == "jump":
            return JUMPS
        return 3 if (plan.S, plan.N) == (1, self.T) else 4 if plan.first == self.T else 5

    def agents_of(self, case: int) -> list[str]:
        """Return the agents of a case of Table 4."""
        return [name for name in self.agents if self.case(name) == case]

    def methods(self) -> list[Method]:
        """Return the methods of the sections: those of all of them, and those that each section adds."""
        sampler = self.unet.settings["fine_sampler"]
        found = [*ways.without_forwards(self.unet), *ways.other_nets(self.unet.scale), self.full, self.coarse]
        found += [self.ours, *ways.shipped_schedule(self.unet)]
        found += [ways.schedule(text, sampler) for text in self.levels]
        for name, agent in self.agents.items():
            found += ways.agent_curve(name, agent)
        for name in self.sections:
            if name == "fig1":
                found += [ways.chain(self.T, S) for S in sorted({S for S in CHAINS if self.T % S == 0} | {self.T})]
            elif name == "table4":
                found += [method for case in (3, 4) if not self.agents_of(case) for method in self.tried(case)]
            elif name in ("table5", "table6"):
                found += ways.all_starts(self.plan)
            elif name == "fig5":
                found += self.pairs()
            elif name == "peers":
                found += peers(self.unet, list(self.runner.batches(self.train_crops)))
        return [*found, ways.originals()]

    def pairs(self) -> list[Method]:
        """Return a few starts of other pairs (S, N), and of the plan's pair with other coarse samplers (Fig. 5)."""
        own = self.plan
        plans = [Plan(S, self.T // S) for S in sorted({*PAIRS, own.S}) if self.T % S == 0 and self.T // S > 1]
        plans += [replace(own, coarse_sampler=sampler) for sampler in COARSE_SAMPLERS]
        others = dict.fromkeys(plan for plan in plans if plan.coarse != own.coarse)
        found = [_other_start(plan, round(share * plan.N)) for plan in others for share in (1, 0.75, 0.5)]
        return [*ways.all_starts(own), *found]

    def tried(self, case: int) -> list[Method]:
        """Return the fixed starts that stand for case 3 or 4 of Table 4 if there is no agent for it."""
        if case == 3:
            return [_other_start(Plan(1, self.T), round(share * self.T)) for share in CASE_3]
        above = [times * self.plan.N for times in CASE_4 if times * self.plan.N <= self.T]
        return [*(_other_start(self.plan, start) for start in above), *ways.all_starts(self.plan)]

    # --- the run and the report ---

    def run(self, crops: Crops, seeds: int, out: Path) -> list[Row]:
        """Return the rows of all methods. Rows that are in the folder are not computed again.

        Raises:
            ConfigError: the folder holds results with other settings.
        """
        shown = [*ways.without_forwards(self.unet), self.full, self.coarse, self.ours, ways.originals()]
        told = {**settings_of(self.plan, self.agents), "train_pictures": tensor_digest(self.train_crops)}
        keep = save_pictures(out / "pictures", PICTURES, shown)
        rows = self.runner.run(self.methods(), crops, range(seeds), out, told, keep)
        starts = {row.start for row in rows if row.family == START}
        return with_rewards(rows, self.reward) if len(starts) == self.plan.N else rows

    def write(self, rows: Sequence[Row], crops: Crops, photographs: Sequence[str], out: Path) -> Path:
        """Write the report, its tables and figures, and return the path of report.md."""
        self.rows, self.side = by_method(rows), int(crops[0].shape[-1])
        self.entries = {str(entry["method"]): entry for entry in summarise(rows)}
        made = self.runner.degradation
        header = (
            f"{counted(len(crops), 'picture')} of {self.side} px, shrunk and enlarged {self.unet.scale} times"
            f"{'' if made == PLAIN else f' (degradation {made})'}; T = {self.T}, S = {self.plan.S}, N = {self.plan.N}, "
            f"coarse stage by {self.plan.coarse_sampler}. All methods have the same network, pictures and noise."
        )
        texts = [make(self) for name in self.sections if (make := SECTIONS[name]) is not None]
        if texts:
            header += (
                ' **Columns named "paper" hold the paper\'s own figures, on other networks and other pictures** '
                f"({reported.DATA.get(self.unet.scale, 'none for this scale')})."
            )
        every = ["## All methods", to_markdown(rows), comparisons_markdown(rows, self.ours.name, photographs)]
        write_report(out, rows, [header, *texts, *every])
        plot_evaluation(out, out)
        return out / "report.md"

    # --- the tables ---

    def line(
        self, method: Method, label: str | None = None, theirs: Sequence[float] | None = None, **more: Any
    ) -> Entry:
        """Return the entry of a method with the paper's figures."""
        name = self.label if method.name == self.ours.name else method.name
        return {**self.entries[method.name], "method": label or name, **reported.columns(theirs), **more}

    def best(self, methods: Iterable[Method], metric: Metric) -> Method:
        """Return the method with the largest mean reward on these pictures."""

        def reward(method: Method) -> float:
            values = np.array([row.metrics[metric.name] for row in self.rows[method.name]])
            return float(quality(values, metric.lower_better).mean())

        return max(methods, key=reward)

    def tables12(self) -> str:
        """Return the table of bicubic enlargement, the full DDPM and SkipDiff."""
        figures = reported.RESULTS.get(self.unet.scale, {})
        keys = {BICUBIC: "bicubic", self.full.name: "DDPM", self.ours.name: MAIN}
        shown = [*ways.without_forwards(self.unet), *ways.other_nets(self.unet.scale)]
        shown += [self.full, self.ours, ways.originals()]
        lines = [self.line(method, None, figures.get(keys.get(method.name, ""))) for method in shown]
        if "DDRM" in figures:
            lines.insert(1, {"method": "DDRM (not run here)", **reported.columns(figures["DDRM"])})
        columns = ["method", *self.metrics, "nfe", *(f"paper_{name}" for name in reported.NAMES if figures)]
        return f"## Tables 1 and 2: bicubic, DDPM, SkipDiff\n\n{markdown_table(lines, columns, HEADINGS)}"

    def table3(self) -> str:
        """Return the table of seconds and FLOPs of the full DDPM and of SkipDiff."""
        image = torch.zeros((1, 3, self.side, self.side), device=self.runner.device)
        lines: list[Entry] = []
        forward = count_flops(lambda: self.unet.predict(image, 0.5, image)) / 1e9
        slowest, most = reported.SPEED["DDPM"]
        for key, method in (("DDPM", self.full), (MAIN, self.ours)):
            seconds, gflops = reported.SPEED[key]
            deciding = float(np.mean([row.policy_seconds for row in self.rows[method.name]]))
            entry = self.line(
                method, policy_seconds=deciding, gflops=self.entries[method.name]["nfe"] * forward,
                paper_seconds=seconds, paper_gflops=gflops, paper_seconds_ratio=slowest / seconds,
                paper_flops_ratio=most / gflops,
            )  # fmt: skip
            lines.append(entry)
            entry |= {"faster": lines[0]["seconds"] / entry["seconds"], "fewer": lines[0]["gflops"] / entry["gflops"]}
        columns = ["method", "nfe", "seconds", "policy_seconds", "gflops", "faster", "fewer"]
        columns += ["paper_seconds", "paper_gflops", "paper_seconds_ratio", "paper_flops_ratio"]
        return (
            "## Table 3: seconds and FLOPs for a picture\n\nSeconds are wall time of a batch over its pictures without "
            "the metrics. FLOPs are those of the forwards; a multiplication and an addition are two. The paper's are "
            "at 256 px.\n\n" + markdown_table(lines, columns, HEADINGS)
        )

    def table4(self) -> str:
        """Return the table of the ablation, cases 1 to 5."""
        lines = [
            self.line(self.full, None, reported.CASES[1], case="1"),
            self.line(self.coarse, None, reported.CASES[2], case="2, CSA only"),
        ]
        for case, what in ((3, "FSR only"), (4, "CSA + FSR")):
            found: list[tuple[Method, str | None]] = [(self.agent(name), None) for name in self.agents_of(case)]
            if not found:
                best = self.best(self.tried(case), self.reward)
                found = [(best, f"{best.name} ({NO_AGENT})")]
            lines += [self.line(method, label, case=f"{case}, {what}, {self.T} steps") for method, label in found]
        lines.append(self.line(self.ours, None, reported.CASES[5], case=f"5, CSA + FSR({self.plan.N})"))
        columns = ["method", "case", *self.metrics, "nfe", "seconds", *(f"paper_{name}" for name in reported.NAMES)]
        return (
            f"## Table 4: what the two stages are worth\n\nThe paper's columns are on {reported.DATA[8]}.\n\n"
            + markdown_table(lines, columns, HEADINGS)
        )

    def table5(self) -> str:
        """Return the table of every fixed start, the agents and the oracles, with the oracles' gain by both rewards."""
        known = self.plan.N == 10  # as in the paper
        names = dict.fromkeys(method.name for method in ways.all_starts(self.plan))
        names |= dict.fromkeys(self.agent(name).name for name in self.agents_of(5))
        rows = [row for name in names for row in self.rows[name]]
        lines: list[Entry] = []
        for entry in summarise(with_rewards(rows, self.reward)):
            niqe, lpips = reported.STARTS.get(round(entry["start"]), (math.nan, math.nan))
            theirs = {"paper_niqe": niqe, "paper_lpips": lpips} if known and entry["family"] == START else {}
            lines.append({**entry, **theirs})
        gained: list[Entry] = []
        for metric in (self.metrics["niqe"], self.metrics["lpips"]):
            chosen = {entry["family"]: entry for entry in summarise(with_rewards(rows, metric))}
            fixed, oracle = chosen[BEST_FIXED]["reward"], chosen[ORACLE]["reward"]
            for family in (BEST_FIXED, PICTURE_BEST, ORACLE):
                if family in chosen:
                    own = chosen[family]
                    share = gap_closed(own["reward"], fixed, oracle)
                    title = f"reward 1/{COLUMNS[metric.name][0]}: {own['method']}"
                    gained.append({**own, "method": title, "share": share})
        columns = ["method", "niqe", "lpips", "psnr", "reward", "regret", "nfe"]
        return (
            "## Table 5: every fixed start, the agents, and the oracle\n\n"
            f"The reward is 1/{COLUMNS[self.reward.name][0]}. The best fixed start was chosen on these pictures. The "
            "oracle takes the best start for each picture and noise; each picture's best start is the one that is best "
            "under its other noises. Its share of the oracle's gain over the best fixed start is the picture's; the "
            "rest is the noise's."
            + (f" The paper's columns are on {reported.DATA[8]}." if known else "")
            + "\n\n"
            + markdown_table(lines, [*columns, *(["paper_niqe", "paper_lpips"] if known else [])], HEADINGS)
            + "\n\n"
            + markdown_table(gained, ["method", "reward", "niqe", "lpips", "share"], HEADINGS)
        )

    def table6(self) -> str:
        """Return the table of the agents with the lowest price, or of the best fixed start, for each reward."""
        lines = []
        for name in ("niqe", "lpips"):
            title = f"reward 1/{COLUMNS[name][0]}"
            prices = {
                agent: _price(self.agents[agent])
                for agent in self.agents_of(5)
                if training_of(self.agents[agent]).get("metric", "niqe") == name
            }
            for agent, price in prices.items():
                if price == min(prices.values()):
                    paid = f", less {price} a forward" if price else ""
                    lines.append(self.line(self.agent(agent), f"{title}{paid}: agent {agent}"))
            if not prices:
                best = self.best(ways.all_starts(self.plan), self.metrics[name])
                lines.append(self.line(best, f"{title}: {best.name} ({NO_AGENT})"))
        table = markdown_table(lines, ["method", *self.metrics, "nfe", "start"], HEADINGS)
        return f"## Table 6: NIQE against LPIPS as reward\n\n{table}"


# In the order of the report. Sections without a table add methods to the figures.
SECTIONS: dict[str, Callable[[Paper], str] | None] = {
    "fig1": None,
    "tables12": Paper.tables12,
    "table3": Paper.table3,
    "table4": Paper.table4,
    "table5": Paper.table5,
    "table6": Paper.table6,
    "fig5": None,
    "peers": None,
}


def _other_start(plan: Plan, start: int) -> Method:
    """Return a fixed start as a method that the oracle does not choose from."""
    return replace(ways.from_start(plan, max(1, start)), family=OTHER_START)


def _price(agent: Agent) -> float:
    """Return the price of a forward in an agent's training; the lowest price if each episode drew a price."""
    price = training_of(agent).get("nfe_penalty", 0.0)
    return float(price[0] if isinstance(price, Sequence) else price)


def count_flops(work: Callable[[], object]) -> int:
    """Return the number of torch's floating-point operations in a call; a multiply-add counts as two."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())
