"""Sections: the tables of the paper."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from agents.agent import Agent
from agents.paper import reported as paper
from agents.paper.section import Entry, Page, Section, better
from agents.playing import AgentPolicy
from agents.plots import starts
from agents.study import methods as ways
from agents.study.figures import outcomes_by_start
from agents.study.methods import Method
from agents.study.rows import (
    AGENT,
    BEST_FIXED,
    BICUBIC,
    ORACLE,
    PICTURE_START,
    START,
    flat,
    gap_closed,
    summarise,
    with_rewards,
)
from agents.study.study import MAIN, penalty_of, reward_of
from agents.study.tables import COLUMNS
from ddpm.nets.denoiser import Denoiser
from ddpm.noise import Stage, keyed_noise
from ddpm.util.files import read_json, write_json
from skipdiff_env.refinement import Chooser, Refinement, RefinementProcess, wanted_by


class Tables12(Section):
    """Bicubic, the full DDPM and SkipDiff beside the paper's figures."""

    name = "tables12"

    def needs(self) -> list[Method]:
        """As the table has them."""
        study = self.study
        without = [*ways.without_forwards(study.unet), *ways.other_nets(study.unet.scale)]
        return [*without, study.full_chain(), study.skipdiff(), ways.originals()]

    def write(self, page: Page) -> str:
        """The table, and in which metrics SkipDiff is ahead."""
        study = self.study
        figures = paper.RESULTS.get(study.unet.scale, {})
        keys = {BICUBIC: "bicubic", study.full_chain().name: "DDPM", page.skipdiff.name: MAIN}
        entries = [page.entry(method, figures=figures.get(keys.get(method.name, ""))) for method in self.methods]
        if "DDRM" in figures:
            entries.insert(1, {"method": "DDRM (not run here)", **paper.columns(figures["DDRM"])})
        bicubic, full, ours = (page.entries[name] for name in keys)
        beaten = [COLUMNS[name][0] for name in study.metrics if better(name, ours[name], full[name])]
        columns = [*page.quality, *(f"paper_{name}" for name in paper.NAMES if figures)]
        return "\n\n".join(
            [
                "## Tables 1 and 2: bicubic, DDPM, SkipDiff",
                page.table(self.name, entries, columns),
                f"SkipDiff is ahead of DDPM-{study.T} in {', '.join(beaten) or 'nothing'}, with {ours['nfe']:.1f} "
                f"forwards for "
                f"{full['nfe']:.0f}. The originals are measured where no reference is needed. Colour: "
                f"{ours['colour']:.2f} grey "
                f"levels off, bicubic {bicubic['colour']:.2f}.",
            ]
        )


class Table3(Section):
    """Seconds and FLOPs."""

    name = "table3"

    def needs(self) -> list[Method]:
        """The two that are compared."""
        return [self.study.full_chain(), self.study.skipdiff()]

    def prepare(self, out: Path) -> None:
        """Counts the FLOPs of one forward of one picture, and of an episode's decisions that all see a new latent."""
        path, config = out / "flops.json", self.study.config
        if path.exists():
            return
        image = torch.zeros((1, 3, config.image_size, config.image_size), device=config.device)
        level = torch.full((1,), 0.5, device=config.device)
        flops = {"unet": count_flops(lambda: self.study.unet(image, image, level)), "policy": 0}
        if MAIN in self.study.agents:
            flops["policy"] = count_flops(lambda: _decide_all(self.study.agents[MAIN], self.study.unet, image[0]))
        write_json(path, flops)

    def write(self, page: Page) -> str:
        """The table."""
        flops = read_json(page.out / "flops.json")
        entries: list[Entry] = []
        for key, method in zip(("DDPM", MAIN), self.methods, strict=True):
            rows, nfe = page.by_method[method.name], page.entries[method.name]["nfe"]
            policy = float(np.mean([row.policy_seconds for row in rows]))
            seconds = float(np.mean([row.seconds for row in rows]))
            gflops = nfe * flops["unet"] / 1e9, flops["policy"] / 1e9 if method.family == AGENT else 0.0
            theirs, slowest = paper.SPEED[key], paper.SPEED["DDPM"]
            entry = {
                "method": page.label(method.name),
                "nfe": nfe,
                "unet_seconds": seconds - policy,
                "policy_seconds": policy,
                "total_seconds": seconds,
                "unet_gflops": gflops[0],
                "policy_gflops": gflops[1],
                "total_gflops": sum(gflops),
                "paper_seconds": theirs[0],
                "paper_gflops": theirs[1],
            }
            first = entries[0] if entries else entry
            for ratio, value in (("seconds", "total_seconds"), ("flops", "total_gflops")):
                entry[f"{ratio}_ratio"] = first[value] / entry[value]
            entry |= {"paper_seconds_ratio": slowest[0] / theirs[0], "paper_flops_ratio": slowest[1] / theirs[1]}
            entries.append(entry)
        return "\n\n".join(
            [
                "## Table 3: seconds and FLOPs for a picture",
                f"Seconds are wall time of a batch of up to {self.study.config.batch_size} over its pictures, without "
                f"the metrics; "
                "UNet includes all that is no decision. FLOPs are what torch's counter counts (a multiplication and an "
                "addition "
                "are two), the policy's as if every decision saw a new latent. The paper's are at 256 px, on its own "
                "net.",
                page.table(self.name, entries, [name for name in entries[0] if name != "method"]),
            ]
        )


def count_flops(work: Callable[[], object]) -> int:
    """Floating-point operations of torch within a call; a multiplication and an addition are two."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def _decide_all(agent: Agent, unet: Denoiser, like: Tensor) -> None:
    """All decisions of an episode, on latents that are noise."""
    policy, plan = AgentPolicy(agent), agent.config.plan
    state = Refinement(like, 0, None, like, like, plan.first, plan.first, 0)
    if isinstance(policy, Chooser):
        policy.choose([state])
        return
    decide = policy.on(RefinementProcess(unet, plan, device=str(like.device), **wanted_by(policy)))
    while state.t > 1:
        state.latent = torch.from_numpy(keyed_noise(0, Stage.FINE, state.t, like.shape)).to(like.device)
        decide([state])
        state.t -= 1


# A small SPN sees six times as many latents of an episode of T - 1 decisions a second; the rest is what one core learns
# case 3 in an hour and case 4 in a quarter of one with. Without a coarse stage a
# short chain leaves noise, so case 3 begins with few skips, and a higher price for forwards tells apart the starts that
# have the same quality. What it sees until it denoises is the same for all pictures of a noise, so it needs several
# noises, and many episodes for each update.
LONG_EPISODES = (
    " --no-oracle --obs-dtype float16 -p spn_size=32 -p hidden_size=128 -p gamma=1"
    " -p normalize_decisions=false -p n_epochs=4 -p lr_schedule=constant"
)
CASE_3_SETTINGS = (
    " --noise-seeds 8 --nfe-penalty 0.001 --env-steps 76000 -p learning_rate=0.003 -p ent_coef=0.01 -p "
    "undone_price=0.05"
    " -p skip_probability=0.02 -p episodes_per_rollout=4 -p episodes_per_minibatch=16"
)
CASE_4_SETTINGS = (
    " --noise-seeds 1 --nfe-penalty 0.0003 --env-steps 32000 -p learning_rate=0.003 -p ent_coef=0.02 -p "
    "undone_price=0.01"
    " -p skip_probability=0.3"
)


class Table4(Section):
    """The ablation, cases 1 to 5."""

    name = "table4"

    def needs(self) -> list[Method]:
        """Agents of cases 3 and 4, or the starts that stand for them."""
        study = self.study
        cases = [method for case in (3, 4) for method in study.agents_of(case) or study.case_starts(case)]
        return [study.full_chain(), study.coarse_chain(), *cases, study.skipdiff()]

    def write(self, page: Page) -> str:
        """The table, and how to get the agents that are missing."""
        study = self.study
        entries = [
            page.entry(study.full_chain(), figures=paper.CASES[1], case="1"),
            page.entry(study.coarse_chain(), figures=paper.CASES[2], case="2, CSA only"),
        ]
        notes = []
        for case, what in ((3, f"FSR only, {study.T} steps"), (4, f"CSA + FSR, {study.T} steps")):
            agents = study.agents_of(case)
            entries += [page.entry(method, case=f"{case}, {what}") for method in agents]
            if not agents:
                entry, note = self._without_agent(page, case)
                entries.append({**entry, "case": f"{case}, {what}"})
                notes.append(note)
        entries.append(page.entry(page.skipdiff, figures=paper.CASES[5], case=f"5, CSA + FSR({study.plan.N})"))
        columns = ["case", *page.quality, "seconds", *(f"paper_{name}" for name in paper.NAMES)]
        return "\n\n".join(
            [
                "## Table 4: what the two stages are worth",
                f"The paper's columns are on {paper.DATA[8]}.",
                page.table(self.name, entries, columns),
                *notes,
            ]
        )

    def _without_agent(self, page: Page, case: int) -> tuple[Entry, str]:
        """The line of a case that has no agent, and how to get one."""
        study = self.study
        tried = study.case_starts(case)
        best = page.best(tried, study.reward)
        entry = page.entry(
            best, f"{best.name} (no agent: best of {len(tried)} fixed starts, chosen on these pictures)"
        )  # fmt: skip
        if case == 3:
            command = page.train_command("case3", LONG_EPISODES + CASE_3_SETTINGS, f"1,{study.T}")
        else:
            command = page.train_command("case4", f" --first-step {study.T}{LONG_EPISODES}{CASE_4_SETTINGS}")
        return entry, (
            f"Case {case} has no agent: its line is the fixed start with the best {study.reward.name.upper()} reward "
            f"of "
            f"{', '.join(str(page.by_method[method.name][0].start) for method in tried)}"
            f"{' (always denoising is case 1)' if case == 3 else ''}. An agent: {command}."
        )


class Table5(Section):
    """Every fixed start, agents, oracle, regret."""

    name = "table5"

    def needs(self) -> list[Method]:
        """The fixed starts and the agents of the own pair."""
        return [*self.study.own_starts(), *self.study.agents_of(5)]

    def write(self, page: Page) -> str:
        """The tables of starts and of what the oracle gains, and a plot."""
        study, reward = self.study, self.study.reward
        rows = with_rewards(page.of(self.methods), reward)
        columns = ["niqe", "lpips", "psnr", "reward", "regret", "nfe"]
        entries: list[Entry] = []
        for entry in summarise(rows):
            theirs = paper.STARTS.get(round(entry["start"])) if study.plan.N == 10 else None
            if theirs is not None and entry["family"] == START:
                entry |= {"paper_niqe": theirs[0], "paper_lpips": theirs[1]}
            entries.append({**entry, "method": page.label(entry["method"])})
        if study.plan.N == 10:
            columns += ["paper_niqe", "paper_lpips"]
        gaps, said = self._gains(page)
        outcomes, chosen = outcomes_by_start(flat(rows), ["niqe", "lpips", "reward"])
        return "\n\n".join(
            [
                "## Table 5: every fixed start, the agent, and the oracle",
                f"Reward and regret are of 1/{COLUMNS[reward.name][0]}. The best fixed start was chosen on these "
                f"pictures. The oracle "
                "takes the best start for each picture and noise; each picture's best start, the one that is best on "
                "average "
                "under its other noises."
                + (f" The paper's columns are on {paper.DATA[8]}." if study.plan.N == 10 else ""),
                page.table(self.name, entries, columns),
                page.table("oracle", gaps, ["reward", "niqe", "lpips", "share"]),
                *dict.fromkeys(said),
                page.plot(self.name, starts(outcomes, chosen), "Quality of every start, and what the agents chose"),
            ]
        )

    def _gains(self, page: Page) -> tuple[list[Entry], list[str]]:
        """Lines of what the oracles gain over the best fixed start, by both rewards, and what they say."""
        gaps: list[Entry] = []
        said = []
        for metric in (self.study.metrics["niqe"], self.study.metrics["lpips"]):
            summary = {entry["family"]: entry for entry in summarise(with_rewards(page.of(self.methods), metric))}
            fixed, oracle, own = summary[BEST_FIXED], summary[ORACLE], summary.get(PICTURE_START)
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
                    f"By {title}, {kept} of the oracle's gain over the best fixed start remains where each picture's "
                    f"start is the one "
                    "that is best under the other noise seeds: that much is the picture's, the rest was the noise's."
                )
        return gaps, said


class Table6(Section):
    """NIQE against LPIPS as reward."""

    name = "table6"

    def needs(self) -> list[Method]:
        """The fixed starts and the agents of the own pair."""
        return [*self.study.own_starts(), *self.study.agents_of(5)]

    def write(self, page: Page) -> str:
        """The agents that paid the least for their forwards, or the best fixed start, by each reward."""
        study, entries, notes = self.study, [], []
        for name in ("niqe", "lpips"):
            metric, title = study.metrics[name], COLUMNS[name][0]
            prices = {
                a: penalty_of(study.agents[a]) for a in study.agent_names(5) if reward_of(study.agents[a]) == name
            }
            agents = [agent for agent, price in prices.items() if price == min(prices.values())]
            lines = [
                (
                    study.agent(a),
                    f"reward 1/{title}" + f", less {prices[a]} a forward" * (prices[a] > 0) + f": agent {a}",
                )
                for a in agents
            ]
            if not agents:
                best = page.best(study.own_starts(), metric)
                label = f"reward 1/{title}: {best.name} (no agent: best fixed start, chosen on these pictures)"
                lines = [(best, label)]
                command = page.train_command(name, f" --metric {name} --crop center")
                notes.append(f"There was no agent rewarded by {title}. One: {command}.")
            entries += [page.entry(method, label) for method, label in lines]
        return "\n\n".join(
            [
                "## Table 6: NIQE against LPIPS as reward",
                page.table(self.name, entries, [*page.quality, "start"]),
                *notes,
            ]
        )
