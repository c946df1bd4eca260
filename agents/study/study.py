"""What a report is made on: net, pictures, agents, and every method that one of its sections may want."""

import importlib.util
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from agents.agent import PAPER, Agent, find_agent, has_agent, load_agent
from agents.study import methods as ways
from agents.study.evaluation import training_of
from agents.study.methods import PEERS, Method
from agents.study.running import Runner, default_metrics, digest, load_crops, tensor_digest
from ddpm.checkpoints import load_unet, resolve_checkpoint
from ddpm.pictures.degradation import Degradation
from ddpm.samplers import COARSE_SAMPLERS
from ddpm.util.errors import ConfigError
from ddpm.util.progress import progress
from skipdiff_env.plan import Plan

# Of these, the S that divide T (Fig. 1).
CHAINS = (2, 4, 5, 10, 20, 25, 50, 100)
# Of these, the S that divide T, each with a few starts (Fig. 5).
PAIRS = (4, 5, 10, 20, 25)
# Forwards at which the peers are compared, as far as T allows.
BUDGETS = (3, 5, 8, 12, 20)
# Photographs that the schedules of the ELBO are fitted on, at most.
TRAIN_LIMIT = 32
# Where the early start (CCDF) begins, as shares of T.
EARLY_STARTS = (0.3, 0.6)
# Fixed starts tried for cases 3 (shares of T) and 4 (multiples of N) of Table 4, where no agent decides.
CASE_3, CASE_4 = (0.9, 0.7), (2, 4)
# Name of the agent that stands for SkipDiff.
MAIN = "SkipDiff"
# What an agent of jumps is instead of a case of Table 4.
JUMPS = 0


@dataclass(frozen=True)
class ReportConfig:
    """Settings of a report.

    Attributes:
        images: folders, files or patterns of photographs; empty: scikit-image's own.
        checkpoint: name, folder or Hub id.
        agents: name → agent, as `agents.agent.find_agent` takes it. The one named "SkipDiff" is the paper's method;
            without it that is the checkpoint's own agent, or else its fixed start.
        levels: fixed schedules, as `agents.study.methods.parse_schedule` takes them.
        train_images: photographs that schedules are fitted on by dynamic programming over the ELBO; empty: none is.
        seeds: number of noise seeds; picture i under seed k has the noise of key k.
        limit: take only so many pictures, evenly spread.
        image_size: side of the centre crops.
        degradation: how the low-resolution pictures are made, as `Degradation.parse` takes it.
        sections: what is reported, of `agents.paper.sections.SECTIONS`; empty: all.
        batch_size: pictures per batch.
        device: where to compute.
    """

    images: Sequence[str] = ()
    checkpoint: str = "natural-x4"
    agents: Mapping[str, str] = field(default_factory=dict)
    levels: Sequence[str] = ()
    train_images: Sequence[str] = ()
    seeds: int = 3
    limit: int | None = None
    image_size: int = 128
    degradation: str = "bicubic"
    sections: Sequence[str] = ()
    batch_size: int = 16
    device: str = "cpu"

    def __post_init__(self) -> None:
        Degradation.parse(self.degradation)
        for name in self.agents:
            if not re.fullmatch(r"[\w.-]+", name):  # it becomes the name of a folder
                raise ConfigError(f"an agent's name has letters, digits, '.', '-' and '_', got {name!r}")


class Study:
    """Net, pictures, agents, and the methods of a report.

    Args:
        config: settings.

    Raises:
        SkipDiffError: a setting, a picture, the checkpoint or an agent does not fit.
    """

    def __init__(self, config: ReportConfig) -> None:
        self.config = config
        self.unet = load_unet(config.checkpoint, config.device)
        self.T = self.unet.diffusion_steps
        self.crops = load_crops(config.images, config.image_size, config.limit)
        self.runner = Runner(self.unet, default_metrics(), config.device, config.batch_size, config.degradation)
        self.runner.check_size(config.image_size)
        self.metrics = self.runner.metrics
        self.agents: dict[str, Agent] = {}
        self.digests: dict[str, str] = {}
        self._load_agents()
        self.plan = self._own_plan()
        self.cases = {name: self._case(name, agent) for name, agent in self.agents.items()}
        if self.cases.get(MAIN, 5) not in (5, JUMPS):
            raise ConfigError(
                f"the agent that stands for {MAIN} decides from diffusion step {self.T} on, expected {self.plan.N}; "
                f"give it a "
                "name of its own, as in --agent case4=DIR"
            )
        rewarded = reward_of(self.agents[MAIN]) if MAIN in self.agents else "niqe"
        self.reward = self.metrics[rewarded if rewarded in self.metrics else "niqe"]
        self.has_peers = importlib.util.find_spec("diffusers") is not None
        sampler = self.unet.settings["fine_sampler"]
        self.schedules = ways.shipped_schedule(self.unet)
        self.schedules += [ways.parse_schedule(text, sampler) for text in config.levels]
        size, limit = config.image_size, TRAIN_LIMIT
        self.train_crops = load_crops(config.train_images, size, limit) if config.train_images else []

    def _load_agents(self) -> None:
        """The agents that were given, and the checkpoint's own where none stands for SkipDiff."""
        paths = dict(self.config.agents)
        own = resolve_checkpoint(self.config.checkpoint)
        paper = str(Path(own) / PAPER)  # of those that ship, the one that plays the task of the paper
        if MAIN not in paths and (has_agent(paper) or has_agent(own)):
            paths[MAIN] = paper if has_agent(paper) else own
        for name, path in paths.items():
            self.agents[name] = load_agent(path, self.config.device)
            found = find_agent(path)
            files = sorted(found.glob("*.json")) + sorted(found.glob("*.safetensors"))
            self.digests[name] = digest(file.read_bytes() for file in files)

    def _own_plan(self) -> Plan:
        """The plan of the fixed starts: the main agent's where that restarts, else the checkpoint's."""
        main = self.agents[MAIN].config.plan if MAIN in self.agents else None
        if main is not None and main.skip_mode == "restart":
            return replace(Plan.resolve(self.unet.settings, main), first_step=None)
        return Plan.resolve(self.unet.settings)

    def _case(self, name: str, agent: Agent) -> int:
        """Which case of Table 4 an agent decides, 3, 4 or 5; or `JUMPS`.

        Raises:
            ConfigError: none.
        """
        plan = agent.config.plan
        if plan.skip_mode == "jump":
            return JUMPS
        plan.check(self.T)
        if plan in (self.plan, replace(self.plan, first_step=self.T)):
            return 5 if plan == self.plan else 4
        if (plan.S, plan.N) == (1, self.T):
            return 3
        raise ConfigError(
            f"the agent {name} decides episodes of {plan.describe()}; expected {self.plan.describe()}, the same with "
            f"decisions "
            f"from step {self.T} on, S,N = 1,{self.T}, or skip mode jump"
        )

    def agent_names(self, case: int) -> list[str]:
        """The agents of a case of Table 4, the main one first."""
        return sorted((name for name, own in self.cases.items() if own == case), key=lambda name: name != MAIN)

    @property
    def start(self) -> int:
        """The checkpoint's fixed start, as far as N allows."""
        return min(self.unet.settings["start"] or self.plan.N, self.plan.N)

    # --- methods ---

    def full_chain(self) -> Method:
        """The ancestral chain over all T steps."""
        return ways.chain(self.T)

    def coarse_chain(self) -> Method:
        """The own coarse chain, run to its end."""
        return ways.coarse_chain(self.plan)

    def agent(self, name: str) -> Method:
        """A coarse stage and a fine stage that an agent decides, under its own plan."""
        agent = self.agents[name]
        return ways.by_agent(name, agent, agent.config.plan)

    def agents_of(self, case: int) -> list[Method]:
        """Methods of the agents of a case of Table 4."""
        return [self.agent(name) for name in self.agent_names(case)]

    def jump_curves(self) -> dict[str, list[Method]]:
        """Heading → methods of the agents of jumps, from few forwards to many."""
        found = {}
        for name in self.agent_names(JUMPS):
            agent = self.agents[name]
            found[f"agent {name} of jumps"] = ways.agent_curve(name, agent, agent.config.plan)
        return found

    def skipdiff(self) -> Method:
        """The paper's method: the main agent, or the checkpoint's fixed start."""
        return self.agent(MAIN) if MAIN in self.agents else ways.from_start(self.plan, self.start)

    def chains(self) -> list[Method]:
        """Fig. 1: the chain of S steps, for each S that divides T."""
        counts = {S for S in CHAINS if self.T % S == 0} | {self.T}
        if self.plan.coarse_sampler == "ddpm":
            counts.add(self.plan.S)
        return [ways.chain(self.T, S) for S in sorted(counts)]

    def own_starts(self) -> list[Method]:
        """Every fixed start of the own pair, the earliest first."""
        return ways.all_starts(self.plan)

    def pairs(self) -> dict[str, list[Method]]:
        """Fig. 5: heading → a few starts of other pairs (S, N), and of the own one with the other coarse samplers."""
        own = self.plan
        plans = [
            Plan(S, self.T // S)
            for S in sorted({*PAIRS, own.S})
            if self.T % S == 0 and self.T // S > 1 and (own.S, own.coarse_sampler) != (S, "ddpm")
        ]
        plans += [
            replace(own, coarse_sampler=sampler)
            for sampler in COARSE_SAMPLERS
            if sampler not in ("ddpm", own.coarse_sampler)
        ]
        return {pair_name(plan): _some_starts(plan) for plan in plans}

    def case_starts(self, case: int) -> list[Method]:
        """Fixed starts that stand for cases 3 and 4 of Table 4 where there is no agent."""
        if case == 3:
            return [ways.from_start(Plan(1, self.T), max(1, round(share * self.T))) for share in CASE_3]
        N = self.plan.N
        above = [ways.from_start(self.plan, times * N) for times in CASE_4 if times * N <= self.T]
        return above + self.own_starts()

    def peers(self) -> dict[str, list[Method]]:
        """Heading → methods of the peers, one each budget; empty without diffusers."""
        if not self.has_peers:
            return {}
        budgets = [forwards for forwards in BUDGETS if forwards <= self.T]
        found = {heading: [ways.peer(self.T, name, n) for n in budgets] for name, heading in PEERS.items()}
        predicted = self.unet.predictor is not None
        for t in dict.fromkeys(max(1, round(share * self.T)) for share in EARLY_STARTS):
            own = [ways.early(self.T, t, forwards, predicted) for forwards in budgets if forwards <= t]
            found[ways.early_name(t, predicted)] = own
        found[ways.NULL_SPACE] = [ways.null_space(self.T, forwards) for forwards in budgets]
        if self.train_crops:
            for sampler in ("ddpm", "ddim"):
                title = ways.elbo_name(sampler)
                found[title] = [ways.best_schedule(self.elbo_costs, n, sampler, title) for n in budgets]
            title = ways.TRAJECTORY
            found[title] = [ways.best_schedule(self.trajectory_costs, n, "ddim", title) for n in budgets]
        return {heading: methods for heading, methods in found.items() if methods}

    @cached_property
    def elbo_costs(self) -> NDArray[np.float64]:
        """What each jump costs in the evidence lower bound, on the training photographs."""
        batches = self.runner.batches(self.train_crops)
        return ways.elbo_costs(progress(batches, desc="ELBO", unit="batch", leave=False), self.T)

    @cached_property
    def trajectory_costs(self) -> NDArray[np.float64]:
        """How far each jump leads from the chain of all steps, on the training photographs."""
        batches = self.runner.batches(self.train_crops)
        return ways.trajectory_costs(progress(batches, desc="trajectory", unit="batch", leave=False), self.T)

    def budget_chains(self) -> list[Method]:
        """The ancestral chain at the peers' budgets."""
        return [ways.chain(self.T, forwards) for forwards in BUDGETS if forwards <= self.T]

    def settings(self) -> dict[str, Any]:
        """What two runs into one folder must have in common."""
        return {
            "checkpoint": str(self.config.checkpoint),
            **self.runner.settings(self.crops, self.config.seeds),
            "plan": self.plan.settings(),
            "agents": self.digests,
            "train_pictures": tensor_digest(self.train_crops),
        }


def pair_name(plan: Plan) -> str:
    """Heading of the fixed starts of a plan."""
    return f"S,N = {plan.S},{plan.N}" + ("" if plan.coarse_sampler == "ddpm" else f", coarse {plan.coarse_sampler}")


def _some_starts(plan: Plan) -> list[Method]:
    """A few fixed starts: N, three quarters, half."""
    starts = dict.fromkeys(max(1, round(share * plan.N)) for share in (1, 0.75, 0.5))
    return [ways.from_start(plan, start) for start in starts]


def reward_of(agent: Agent) -> str:
    """The metric that an agent was rewarded by; "niqe" where it does not say."""
    return str(training_of(agent).get("metric", "niqe"))


def penalty_of(agent: Agent) -> float:
    """What an agent paid for a fine forward in its training; the lowest price where each episode drew its own."""
    price = training_of(agent).get("nfe_penalty", 0.0)
    return float(price[0] if isinstance(price, Sequence) else price)
