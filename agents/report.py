"""The report: text, tables and plots of what `agents.reproduce` has computed."""

import platform
import shlex
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.evaluation import (
    BEST_FIXED,
    COLUMNS,
    ORACLE,
    ORIGINALS,
    PICTURE_START,
    Row,
    file_name,
    flat,
    gap_closed,
    markdown_table,
    summarise,
    with_rewards,
    write_csv,
)
from agents.plots import contact_sheet, perception_distortion, quality_against_steps, save, start_outcomes, starts
from agents.reproduce import MAIN, SECTIONS, SHOWN, Study, penalty_of, reward_of
from ddpm.images import atomic_path, read_picture
from ddpm.runs import read_json
from skipdiff_env.metrics import Metric
from skipdiff_env.task import quality

Entry = dict[str, Any]

# The paper's own figures, on its pictures and its nets: PSNR, SSIM, NIQE, LPIPS, forwards. By scale.
PAPER: dict[int, dict[str, tuple[float, ...]]] = {
    8: {
        "bicubic": (23.49, 0.6003, 13.45, 0.5374, 0),
        "DDPM": (24.79, 0.6766, 7.30, 0.0992, 100),
        MAIN: (25.60, 0.6838, 6.47, 0.0967, 16),
    },
    4: {
        "bicubic": (25.60, 0.6594, 8.68, 0.4716, 0),
        "DDRM": (26.68, 0.7089, 9.48, 0.3499, 20),
        "DDPM": (26.38, 0.6871, 5.00, 0.1909, 100),
        MAIN: (26.65, 0.6884, 4.95, 0.1886, 20),
    },
}
PAPER_DATA = {8: "faces 8x, 16 → 128 px, of CelebA-HQ", 4: "natural photographs 4x, 64 → 256 px, of ImageNet"}
# Table 4, on faces; by case.
PAPER_CASES = {1: PAPER[8]["DDPM"], 2: (25.80, 0.7204, 9.09, 0.1160, 10), 5: PAPER[8][MAIN]}
# Table 5, on faces with N = 10: NIQE and LPIPS of starts 9 … 1.
PAPER_STARTS = dict(
    zip(
        range(9, 0, -1),
        zip(
            (7.13, 6.53, 6.47, 7.22, 8.26, 9.27, 10.34, 11.39, 12.63),
            (0.0984, 0.0965, 0.0964, 0.1022, 0.1200, 0.1526, 0.1974, 0.2518, 0.3104),
            strict=True,
        ),
        strict=True,
    )
)
# Table 3, at 256 px: seconds and GFLOPs.
PAPER_SPEED = {"DDPM": (4.17, 17799.0), MAIN: (0.69, 2848.0)}

PAPER_NAMES = ("psnr", "ssim", "niqe", "lpips", "nfe")
HEADINGS = {
    **{f"paper_{name}": (f"{COLUMNS[name][0]}, paper", COLUMNS[name][1]) for name in PAPER_NAMES},
    "paper_nfe": ("NFE, paper", 0),
    "unet_seconds": ("UNet, s", 3), "policy_seconds": ("policy, s", 4), "total_seconds": ("seconds", 3),
    "unet_gflops": ("UNet, GFLOPs", 1), "policy_gflops": ("policy, GFLOPs", 3), "total_gflops": ("GFLOPs", 1),
    "seconds_ratio": ("times faster", 2), "flops_ratio": ("times fewer FLOPs", 2),
    "paper_seconds": ("s, paper", 2), "paper_gflops": ("GFLOPs, paper", 0),
    "paper_seconds_ratio": ("times faster, paper", 1), "paper_flops_ratio": ("times fewer FLOPs, paper", 2),
    "start": ("start", 1), "share": ("share of the oracle's gain", 2), "case": ("case", 0),
}  # fmt: skip
LOWER_BETTER = {"niqe", "lpips", "dists", "colour"}


def _paper(figures: Sequence[float] | None) -> Entry:
    return {} if figures is None else {f"paper_{k}": v for k, v in zip(PAPER_NAMES, figures, strict=True)}


def better(name: str, a: float, b: float) -> bool:
    """Whether a value of a metric is better than another."""
    return a < b if name in LOWER_BETTER else a > b


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


def by_method(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Method → its rows."""
    found: dict[str, list[Row]] = {}
    for row in rows:
        found.setdefault(row.method, []).append(row)
    return found


def seed_means(rows: Sequence[Row], metric: str) -> NDArray[np.float64]:
    """The mean of a metric over pictures, one for each noise seed; failures are left out."""
    seeds = sorted({row.seed for row in rows})
    return np.array([np.nanmean([row.metrics[metric] for row in rows if row.seed == seed]) for seed in seeds])


def peer_verdicts(rows: Sequence[Row], ours: str, peers: Mapping[str, Sequence[str]]) -> str:
    """Where peers are better than a method, each at its budget that is the nearest to the method's forwards and not above.

    Args:
        rows: of the method and the peers.
        ours: the method.
        peers: heading → methods, one each budget.

    Returns:
        Markdown: a line for each peer, and one for each metric.
    """
    every = by_method(rows)
    forwards = {method: float(np.mean([row.nfe for row in own])) for method, own in every.items()}
    lines = []
    names = list(every[ours][0].metrics)
    ahead: dict[str, list[str]] = {name: [] for name in names}
    for heading, methods in peers.items():
        within = [method for method in methods if forwards[method] <= forwards[ours]]
        if not within:
            lines.append(f"- **{heading}**: no budget of at most {forwards[ours]:.1f} forwards was run.")
            continue
        chosen = max(within, key=forwards.__getitem__)
        better_in, others = [], []
        for name in names:
            heading_of, digits = COLUMNS[name]
            own, peer = seed_means(every[ours], name), seed_means(every[chosen], name)
            if not better(name, float(peer.mean()), float(own.mean())):
                others.append(heading_of)
                continue
            ahead[name].append(heading)
            always = all(better(name, b, a) for a, b in zip(own, peer, strict=True))
            doubt = "" if always else ", not under every noise seed"
            better_in.append(f"{heading_of} ({peer.mean():.{digits}f} against {own.mean():.{digits}f}{doubt})")
        said = f"better than SkipDiff in {', '.join(better_in)}" if better_in else "in nothing better than SkipDiff"
        rest = f"; not in {', '.join(others)}" if better_in and others else ""
        lines.append(f"- **{heading}**, {forwards[chosen]:g} forwards (SkipDiff {forwards[ours]:.1f}): {said}{rest}.")
    lines.append("")
    lines += [
        f"- {COLUMNS[name][0]}: {'ahead of SkipDiff are ' + ', '.join(own) if own else 'none is ahead of SkipDiff'}."
        for name, own in ahead.items()
    ]
    return "\n".join(lines)


class Report:
    """Sections, from rows to Markdown; tables and plots are written beside.

    Args:
        study: what was computed.
        out: folder of the report.
    """

    def __init__(self, study: Study, out: Path) -> None:
        self.study, self.out = study, out
        self.rows = study.rows(out)
        self.by_method = by_method(self.rows)
        self.entries = {str(entry["method"]): entry for entry in summarise(self.rows)} if self.rows else {}
        self.skipdiff = study.skipdiff()
        self.quality = [*study.metrics, "nfe"]
        self.paper = PAPER.get(study.unet.scale, {})

    def write(self) -> Path:
        """Writes report.md, rows.csv, and a CSV file and the plots of each section."""
        if self.rows:
            write_csv(self.out / "rows.csv", flat(self.rows))
        text = [self.header(), *(getattr(self, f"section_{name}")() for name in self.study.sections)]
        path = self.out / "report.md"
        with atomic_path(path) as temporary:
            temporary.write_text("\n\n".join(text) + "\n", encoding="utf-8")
        return path

    # --- pieces ---

    def label(self, method: str) -> str:
        """What a method is called in the tables."""
        if method != self.skipdiff:
            return method
        return f"{MAIN} (agent)" if MAIN in self.study.agents else f"{MAIN} (fixed start {self.study.start})"

    def entry(
        self, method: str, label: str | None = None, paper: Sequence[float] | None = None, **more: object
    ) -> Entry:
        """The summary of a method as a line of a table."""
        return {**self.entries[method], "method": label or self.label(method), **_paper(paper), **more}

    def table(self, name: str, entries: Sequence[Entry], columns: Sequence[str]) -> str:
        """A table as Markdown, and as NAME.csv."""
        write_csv(self.out / f"{name}.csv", entries)
        return f"{markdown_table(entries, ['method', *columns], HEADINGS)}\n\n[{name}.csv]({name}.csv)"

    def plot(self, name: str, figure: Any, text: str) -> str:
        """Saves a figure; gives the Markdown that shows it."""
        save(figure, self.out / f"{name}.png")
        return f"![{text}]({name}.png)"

    def train_command(self, name: str, steps: str, extra: str) -> str:
        """How to get an agent that was not given."""
        study = self.study
        return (
            f"`skipdiff train-agent --checkpoint {study.config.checkpoint} --images DIR --image-size "
            f"{study.config.image_size} --steps {steps}{extra} --out runs/{name}`, then `skipdiff reproduce … --agent "
            f"{name}=runs/{name}`"
        )

    @property
    def own_steps(self) -> str:
        """The own pair as options of train-agent."""
        coarse = "" if self.study.coarse == self.study.unet.coarse else f" --coarse {self.study.coarse}"
        return f"{self.study.S},{self.study.N}{coarse}"

    def best_start(self, methods: Sequence[str], metric: Metric) -> str:
        """The method with the largest mean reward on these pictures."""

        def reward(method: str) -> float:
            return float(
                np.mean([quality(r.metrics[metric.name], metric.lower_better) for r in self.by_method[method]])
            )

        return max(methods, key=reward)

    def own_agents(self) -> list[str]:
        """Methods of the agents that decide for the own pair."""
        return [f"agent {name}" for name in self.study.agent_names(5)]

    def series(self, methods: Iterable[str]) -> list[tuple[str, Mapping[str, Any]]]:
        """Points of a plot, the last number of their names beside them."""
        return [
            (method.rstrip(")").replace("(", " ").replace("-", " ").split()[-1], self.entries[method])
            for method in methods
        ]

    # --- sections ---

    def header(self) -> str:
        """What was run on what."""
        study, config = self.study, self.study.config
        options = [f"--images {shlex.quote(str(path))}" for path in config.images]
        options += [f"--checkpoint {config.checkpoint}", f"--seeds {config.seeds}", f"--image-size {config.image_size}"]
        options += [f"--limit {config.limit}"] if config.limit else []
        options += [f"--sections {','.join(config.sections)}"] if set(config.sections) != set(SECTIONS) else []
        options += [f"--agent {name}={shlex.quote(str(path))}" for name, path in config.agents.items()]
        source = "centre crops" if config.images else "crops of scikit-image's photographs"
        packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "pyiqa", "lpips"))
        return (
            "# The paper's tables and figures on this net\n\n"
            f"`skipdiff reproduce {' '.join(options)}`\n\n"
            f"{len(study.crops)} pictures of {config.image_size} px ({source}), shrunk and enlarged {study.unet.scale} times; "
            f"T = {study.T}, S = {study.S}, N = {study.N}, coarse stage by {study.coarse}. Figures are means over pictures ± the "
            f"standard deviation of that mean over noise seeds ({config.seeds}). All methods have the same net, pictures and "
            "noise. PSNR and SSIM are on luma; the colour error is the distance of a picture's mean colour from the target's, "
            'in grey levels; NFE counts UNet forwards. **Columns named "paper" hold the paper\'s own figures, on other nets and '
            f"other pictures** ({PAPER_DATA.get(study.unet.scale, 'none for this scale')}).\n\n"
            f"{packages}, Python {platform.python_version()}, {config.device}, {sys.platform}. Every single result: [rows.csv](rows.csv)."
        )

    def section_fig1(self) -> str:
        """Quality against sampling steps."""
        methods = self.study.sections["fig1"]
        entries = [self.entry(method, f"{self.entries[method]['nfe']:.0f} steps") for method in methods]
        columns = [*self.study.metrics, "seconds"]
        return "\n\n".join(
            [
                "## Figure 1: quality against sampling steps",
                "The ancestral chain from noise to the clean image, on the cosine schedule of S steps.",
                self.table("fig1", entries, columns),
                best_by_metric(entries, self.study.metrics),
                self.plot(
                    "fig1", quality_against_steps({"S steps": self.series(methods)}), "Quality against sampling steps"
                ),
            ]
        )

    def section_tables12(self) -> str:
        """Bicubic, the full DDPM and SkipDiff beside the paper's figures."""
        keys = "bicubic", "DDPM", "CSA", MAIN, ORIGINALS
        methods = dict(zip(keys, self.study.sections["tables12"], strict=True))
        entries = [self.entry(method, paper=self.paper.get(key)) for key, method in methods.items() if key != "CSA"]
        if "DDRM" in self.paper:
            entries.insert(1, {"method": "DDRM (not run here)", **_paper(self.paper["DDRM"])})
        bicubic, full, ours = (self.entries[methods[key]] for key in ("bicubic", "DDPM", MAIN))
        beaten = [COLUMNS[name][0] for name in self.study.metrics if better(name, ours[name], full[name])]
        return "\n\n".join(
            [
                "## Tables 1 and 2: bicubic, DDPM, SkipDiff",
                self.table(
                    "tables12", entries, [*self.quality, *(f"paper_{name}" for name in PAPER_NAMES if self.paper)]
                ),
                f"SkipDiff is ahead of DDPM-{self.study.T} in {', '.join(beaten) or 'nothing'}, with "
                f"{ours['nfe']:.1f} forwards for {full['nfe']:.0f}. The originals are measured where no reference is needed. Colour: {ours['colour']:.2f} grey levels off, bicubic "
                f"{bicubic['colour']:.2f}.",
            ]
        )

    def section_table3(self) -> str:
        """Seconds and FLOPs."""
        flops = read_json(self.out / "flops.json")
        entries: list[Entry] = []
        for key, method in zip(("DDPM", MAIN), self.study.sections["table3"], strict=True):
            rows, nfe = self.by_method[method], self.entries[method]["nfe"]
            policy = float(np.mean([row.policy_seconds for row in rows]))
            seconds = float(np.mean([row.seconds for row in rows]))
            gflops = float(nfe) * flops["unet"] / 1e9, (flops["policy"] / 1e9 if method == f"agent {MAIN}" else 0.0)
            paper = PAPER_SPEED[key]
            entry = {
                "method": self.label(method), "nfe": nfe, "unet_seconds": seconds - policy, "policy_seconds": policy,
                "total_seconds": seconds, "unet_gflops": gflops[0], "policy_gflops": gflops[1], "total_gflops": sum(gflops),
                "paper_seconds": paper[0], "paper_gflops": paper[1],
            }  # fmt: skip
            first = entries[0] if entries else entry
            for ratio, value in (("seconds", "total_seconds"), ("flops", "total_gflops")):
                entry[f"{ratio}_ratio"] = first[value] / entry[value]
            slowest = PAPER_SPEED["DDPM"]
            entry |= {"paper_seconds_ratio": slowest[0] / paper[0], "paper_flops_ratio": slowest[1] / paper[1]}
            entries.append(entry)
        shown = [name for name in entries[0] if name != "method"]
        return "\n\n".join(
            [
                "## Table 3: seconds and FLOPs for a picture",
                f"Seconds are wall time of a batch of up to {self.study.config.batch_size} over its pictures, without the metrics; "
                "UNet includes all that is no decision. FLOPs are what torch's counter counts (a multiplication and an addition "
                "are two), the policy's as if every decision saw a new latent. The paper's are at 256 px, on its own net.",
                self.table("table3", entries, shown),
            ]
        )

    def section_table4(self) -> str:
        """The ablation, cases 1 to 5."""
        study = self.study
        entries = [
            self.entry(study.ddpm(), paper=PAPER_CASES[1], case="1"),
            self.entry(study.csa(study.S, study.coarse), paper=PAPER_CASES[2], case="2, CSA only"),
        ]
        notes = []
        for case, what, steps, extra in (
            (3, f"FSR only, {study.T} steps", f"1,{study.T}", CASE_3_SETTINGS),
            (4, f"CSA + FSR, {study.T} steps", f"{self.own_steps} --fine-steps {study.T}", CASE_4_SETTINGS),
        ):
            names = study.agent_names(case)
            entries += [self.entry(f"agent {name}", case=f"{case}, {what}") for name in names]
            if names:
                continue
            tried = study.case_starts(case)
            best = self.best_start(tried, study.reward)
            label = f"{best} (no agent: best of {len(tried)} fixed starts, chosen on these pictures)"
            entries.append(self.entry(best, label, case=f"{case}, {what}"))
            notes.append(
                f"Case {case} has no agent: its line is the fixed start with the best {study.reward.name.upper()} reward of "
                f"{', '.join(str(self.by_method[method][0].start) for method in tried)}"
                f"{' (always denoising is case 1)' if case == 3 else ''}. An agent: "
                f"{self.train_command(f'case{case}', steps, LONG_EPISODES + extra)}."
            )
        entries.append(self.entry(self.skipdiff, paper=PAPER_CASES[5], case=f"5, CSA + FSR({study.N})"))
        columns = ["case", *self.quality, "seconds", *(f"paper_{name}" for name in PAPER_NAMES)]
        return "\n\n".join(
            [
                "## Table 4: what the two stages are worth",
                f"The paper's columns are on {PAPER_DATA[8]}.",
                self.table("table4", entries, columns),
                *notes,
            ]
        )

    def rewarded(self, metric: Metric) -> list[Row]:
        """Rows of the own pair with rewards and regrets, the best fixed start, the oracles."""
        own = [*self.study.own_starts(), *self.own_agents()]
        return with_rewards([row for method in own for row in self.by_method[method]], metric)

    def section_table5(self) -> str:
        """Every fixed start, agents, oracle, regret."""
        study, reward = self.study, self.study.reward
        rows = self.rewarded(reward)
        columns = ["niqe", "lpips", "psnr", "reward", "regret", "nfe"]
        entries: list[Entry] = []
        for entry in summarise(rows):
            method = str(entry["method"])
            start = by_method(rows)[method][0].start
            figures = PAPER_STARTS.get(start or 0) if study.N == 10 and method in study.own_starts() else None
            paper = {} if figures is None else {"paper_niqe": figures[0], "paper_lpips": figures[1]}
            entries.append({**entry, "method": self.label(method), **paper})
        if study.N == 10:
            columns += ["paper_niqe", "paper_lpips"]
        gaps, said = [], []
        for metric in (study.metrics["niqe"], study.metrics["lpips"]):
            summary = {str(entry["method"]): entry for entry in summarise(self.rewarded(metric))}
            (fixed,) = (entry for method, entry in summary.items() if method.startswith(BEST_FIXED))
            oracle, own = summary[ORACLE], summary.get(PICTURE_START)
            title = f"1/{COLUMNS[metric.name][0]}"
            for line in (fixed, *([own] if own else []), oracle):
                share = gap_closed(line["reward"], fixed["reward"], oracle["reward"])
                gaps.append({**line, "method": f"reward {title}: {line['method']}", "share": share})
            if own is None:
                said.append("How much of the oracle's gain is real needs two noise seeds.")
            else:
                share = gaps[-2]["share"]
                kept = "nothing" if not share > 0 else f"{share:.0%}"  # nothing too where there is no gain
                said.append(
                    f"By {title}, {kept} of the oracle's gain over the best fixed start remains where each picture's start is the one "
                    "that is best under the other noise seeds: that much is the picture's, the rest was the noise's."
                )
        outcomes, chosen = start_outcomes(flat(rows), ["niqe", "lpips", "reward"])
        return "\n\n".join(
            [
                "## Table 5: every fixed start, the agent, and the oracle",
                f"Reward and regret are of 1/{COLUMNS[reward.name][0]}. The best fixed start was chosen on these pictures. The oracle "
                "takes the best start for each picture and noise; each picture's best start, the one that is best on average "
                "under its other noises." + (f" The paper's columns are on {PAPER_DATA[8]}." if study.N == 10 else ""),
                self.table("table5", entries, columns),
                self.table("oracle", gaps, ["reward", "niqe", "lpips", "share"]),
                *dict.fromkeys(said),
                self.plot("table5", starts(outcomes, chosen), "Quality of every start, and what the agents chose"),
            ]
        )

    def section_table6(self) -> str:
        """NIQE against LPIPS as reward."""
        study, entries, notes = self.study, [], []
        for name in ("niqe", "lpips"):
            metric, title = study.metrics[name], COLUMNS[name][0]
            prices = {
                a: penalty_of(study.agents[a]) for a in study.agent_names(5) if reward_of(study.agents[a]) == name
            }
            agents = [agent for agent, price in prices.items() if price == min(prices.values())]
            methods = [
                (f"agent {a}", f"reward 1/{title}" + f", less {prices[a]} a forward" * (prices[a] > 0) + f": agent {a}")
                for a in agents
            ]
            if not agents:
                best = self.best_start(study.own_starts(), metric)
                methods = [(best, f"reward 1/{title}: {best} (no agent: best fixed start, chosen on these pictures)")]
                command = self.train_command(name, self.own_steps, f" --metric {name} --warm-cache")
                notes.append(f"There was no agent rewarded by {title}. One: {command}.")
            for method, label in methods:
                start = float(np.mean([row.start or 0 for row in self.by_method[method]]))
                entries.append(self.entry(method, label, start=start))
        return "\n\n".join(
            [
                "## Table 6: NIQE against LPIPS as reward",
                self.table("table6", entries, [*self.quality, "start"]),
                *notes,
            ]
        )

    def section_fig5(self) -> str:
        """The perception-distortion plane."""
        study = self.study
        series = {f"DDPM-{study.T}": [study.ddpm()], study.pair_name(study.S, study.coarse): study.own_starts()}
        series |= study.pairs() | {method: [method] for method in self.own_agents()} | study.peers()
        points = {heading: self.series(methods) for heading, methods in series.items()}
        points |= {heading: [("", self.entries[heading])] for heading in self.own_agents()}
        entries = [self.entry(method) for methods in series.values() for method in methods]
        notes = []
        if not any(penalty_of(study.agents[name]) for name in study.agent_names(5)):
            command = self.train_command("penalty", self.own_steps, " --nfe-penalty 0.0015 --warm-cache")
            notes.append(f"There was no agent that pays for its forwards. One: {command}.")
        if not study.has_peers:
            notes.append(NO_PEERS)
        return "\n\n".join(
            [
                "## Figure 5: perception against distortion",
                "Pairs (S, N) with some of their fixed starts (the number beside the point), agents, and other samplers on the same net "
                "(their forwards beside the point). A point that lies far off all others is outside the frame; the table has it.",
                self.plot("fig5", perception_distortion(points), "Perception-distortion plane"),
                self.table("fig5", entries, self.quality),
                *notes,
            ]
        )

    def section_pictures(self) -> str:
        """Figures 3 and 6."""
        folders = [self.out / "pictures" / f"{i:03d}" for i in range(min(SHOWN, len(self.study.crops)))]
        methods = {self.label(method): method for method in self.study.sections["pictures"]}
        columns = {
            heading: [read_picture(folder / f"{file_name(method)}.png").rgb for folder in folders]
            for heading, method in {**methods, "original": "original"}.items()
        }
        return "\n\n".join(
            [
                "## Figures 3 and 6: pictures and latents",
                self.plot("fig3", contact_sheet(columns), "Pictures"),
                f"Below: the first picture under noise seed 0, at the levels that both diffusions visit. From the top: latent "
                f"and estimate of x_0 in the full diffusion ({self.study.T} steps), and in the coarse one ({self.study.S} steps).",
                "![Latents and estimates](latents.png)",
            ]
        )

    def section_peers(self) -> str:
        """Other samplers at equal forwards."""
        title = "## Other samplers on the same net at equal forwards"
        peers = self.study.peers()
        if not peers:
            return f"{title}\n\n{NO_PEERS}"
        chains = {"DDPM of S steps": self.study.budget_chains()}
        methods = [self.skipdiff, *(method for own in (chains | peers).values() for method in own)]
        entries = sorted((self.entry(method) for method in dict.fromkeys(methods)), key=lambda entry: entry["nfe"])
        points = {heading: self.series(own) for heading, own in (chains | peers).items()}
        points[self.label(self.skipdiff)] = [("", self.entries[self.skipdiff])]
        rows = [row for method in dict.fromkeys(methods) for row in self.by_method[method]]
        return "\n\n".join(
            [
                title,
                "Through diffusers' schedulers, on the same net, schedule and noise. Each peer at its budget that is the nearest to "
                "SkipDiff's forwards and not above:",
                peer_verdicts(rows, self.skipdiff, chains | peers),
                self.table("peers", entries, self.quality),
                self.plot("peers", quality_against_steps(points), "Quality against forwards"),
                "A point that lies far off all others is outside the frame; the table has it.",
            ]
        )


# A small SPN sees six times as many latents of an episode of T - 1 decisions a second; the rest is what one core learns case 3 in an hour and
# case 4 in a quarter of one with, see docs/report-photographs/agents. Without a coarse stage a short chain leaves noise, so case 3 begins with
# few skips, and a higher price for forwards tells apart the starts that have the same quality. What it sees until it denoises is the same for
# all pictures of a noise, so it needs several noises, and many episodes for each update.
LONG_EPISODES = (
    " --no-oracle --obs-dtype float16 -p spn_size=32 -p hidden_size=128 -p gamma=1"
    " -p normalize_decisions=false -p n_epochs=4 -p lr_schedule=constant"
)
CASE_3_SETTINGS = (
    " --noise-seeds 8 --nfe-penalty 0.001 --env-steps 76000 -p learning_rate=0.003 -p ent_coef=0.01 -p undone_price=0.05"
    " -p skip_probability=0.02 -p episodes_per_rollout=4 -p episodes_per_minibatch=16"
)
CASE_4_SETTINGS = (
    " --noise-seeds 1 --nfe-penalty 0.0003 --env-steps 32000 -p learning_rate=0.003 -p ent_coef=0.02 -p undone_price=0.01"
    " -p skip_probability=0.3"
)
NO_PEERS = 'Other samplers are left out: diffusers is not installed; `pip install "skipdiff[peers]"`.'
