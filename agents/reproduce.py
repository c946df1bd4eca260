"""The paper's tables and figures on one net, with the same noise and the same pictures: what is run, in parts that stay.

A part is one method on one batch under one noise seed. It is written under a temporary name and renamed, so that a run
which was stopped goes on where it was. `agents.report` makes the text, tables and plots of what the parts hold.
"""

import hashlib
import importlib.util
import json
import re
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from agents.agent import Agent, AgentPolicy, find_agent, has_agent, load_agent
from agents.evaluation import (
    BICUBIC,
    ORIGINALS,
    Result,
    Row,
    bicubic,
    coarse_chain,
    coarse_name,
    coarse_stage,
    ddpm,
    default_metrics,
    file_name,
    load_crops,
    measure,
    originals,
    refinement,
    sampled,
    save_pictures,
    start_name,
)
from agents.plots import contact_sheet, save
from ddpm.checkpoints import load_unet, resolve_checkpoint
from ddpm.degradation import degrade
from ddpm.errors import ConfigError
from ddpm.images import to_uint8
from ddpm.noise import KeyedNoise, Stage, keyed_noise
from ddpm.runs import read_json, write_json
from ddpm.sampling import COARSE_SAMPLERS, coarse_sampler, predict_x0, sample, to_image
from ddpm.schedule import cosine_alphas_cumprod
from ddpm.unet import UNet
from skipdiff_env.metrics import make_metric
from skipdiff_env.refinement import Refinement, RefinementProcess, fixed_start

SECTIONS = ("fig1", "tables12", "table3", "table4", "table5", "table6", "fig5", "pictures", "peers")
# Of these, the S that divide T (Fig. 1).
CHAINS = (2, 4, 5, 10, 20, 25, 50, 100)
# Of these, the S that divide T, each with a few starts (Fig. 5).
PAIRS = (4, 5, 10, 20, 25)
# Forwards at which the peers are compared, as far as T allows.
BUDGETS = (5, 10, 16, 20)
# ddpm.peers' name → heading; "ddpm" and "euler-ancestral" are one process, and the chain of S steps is ours
PEERS = {
    "ddim": "DDIM",
    "dpmsolver++": "DPM-Solver++(2M)",
    "unipc": "UniPC",
    "euler-ancestral": "Euler ancestral",
    "heun": "Heun",
}
# Where the early start (CCDF) begins, as shares of T.
EARLY = (0.3, 0.6)
# Fixed starts tried for cases 3 (shares of T) and 4 (multiples of N) of Table 4, where no agent decides.
CASE_3, CASE_4 = (0.9, 0.7), (2, 4)
# Name of the agent that stands for SkipDiff.
MAIN = "SkipDiff"
# Pictures on the contact sheet.
SHOWN = 4


@dataclass(frozen=True)
class ReportConfig:
    """Settings of a report.

    Attributes:
        images: folders, files or patterns of photographs; empty: scikit-image's own.
        checkpoint: name, folder or Hub id.
        agents: name → agent, as `agents.agent.find_agent` takes it. The one named "SkipDiff" is the paper's method; without
            it that is the checkpoint's own agent, or else its fixed start.
        seeds: number of noise seeds; picture i under seed k has the noise of key k.
        limit: take only so many pictures, evenly spread.
        image_size: side of the centre crops.
        sections: what is reported, of `SECTIONS`.
        batch_size: pictures per batch.
        device: where to compute.
        trust_pickle: whether agents may be .zip files of Stable-Baselines3.
    """

    images: Sequence[str] = ()
    checkpoint: str = "natural-x4"
    agents: Mapping[str, str] = field(default_factory=dict)
    seeds: int = 3
    limit: int | None = None
    image_size: int = 128
    sections: Sequence[str] = SECTIONS
    batch_size: int = 16
    device: str = "cpu"
    trust_pickle: bool = False

    def __post_init__(self) -> None:
        unknown = [name for name in self.sections if name not in SECTIONS]
        if unknown or not self.sections:
            raise ConfigError(f"unknown section {', '.join(unknown) or 'none'}; known are {', '.join(SECTIONS)}")
        for name in self.agents:
            if not re.fullmatch(r"[\w.-]+", name):  # it becomes the name of a folder
                raise ConfigError(f"an agent's name has letters, digits, '.', '-' and '_', got {name!r}")


class Batch:
    """Pictures under one noise seed; coarse stages are run once for all methods that begin with the same.

    Args:
        hr: targets, (B, 3, H, W) in [-1, 1].
        scale: how many times to enlarge.
        seed: noise seed of all.
    """

    def __init__(self, hr: Tensor, scale: int, seed: int) -> None:
        self.hr, self.lr_up = hr, degrade(hr, scale)
        self.seeds = [seed] * len(hr)
        self._coarse: dict[tuple[int, str], tuple[list[Refinement], float]] = {}

    def coarse(self, process: RefinementProcess) -> tuple[list[Refinement], float]:
        """The states after the process's coarse stage, and its seconds for each picture."""
        key = process.S, process.coarse
        if key not in self._coarse:
            self._coarse[key] = coarse_stage(process, self.lr_up, self.seeds)
        return self._coarse[key]


@dataclass(frozen=True)
class Method:
    """One way to enlarge a batch.

    Attributes:
        name: its name in the rows.
        forwards: of one picture, at most, without the coarse stage's.
        run: enlarges.
        coarse: (S, sampler) of the coarse stage that it shares, if it has one.
    """

    name: str
    forwards: int
    run: Callable[[Batch], Result]
    coarse: tuple[int, str] | None = None


@dataclass(frozen=True)
class Part:
    """Work that leaves a file; where the file is, the work is done.

    Attributes:
        title: what it is called while it is done.
        path: the file.
        forwards: UNet forwards that it will take, at most.
        work: does it.
    """

    title: str
    path: Path
    forwards: int
    work: Callable[[], None]


class Study:
    """Net, pictures, agents, and every method that a section may want.

    Args:
        config: settings.

    Raises:
        SkipDiffError: a setting, a picture, the checkpoint or an agent does not fit.
    """

    def __init__(self, config: ReportConfig) -> None:
        self.config = config
        self.unet: UNet = load_unet(config.checkpoint, config.device)
        self.T = self.unet.diffusion_steps
        self.crops = load_crops(config.images, config.image_size, config.limit)
        if config.image_size % np.lcm(self.unet.stride, self.unet.scale):
            multiple = int(np.lcm(self.unet.stride, self.unet.scale))
            raise ConfigError(
                f"image_size must be a multiple of {multiple} for this checkpoint, got {config.image_size}"
            )
        self.metrics = {name: make_metric(name, config.device) for name in default_metrics()}
        for metric in self.metrics.values():
            metric.check_size(config.image_size, config.image_size)
        paths = dict(config.agents)
        if MAIN not in paths and has_agent(resolve_checkpoint(config.checkpoint)):
            paths[MAIN] = resolve_checkpoint(config.checkpoint)
        self.agents: dict[str, Agent] = {}
        self.digests: dict[str, str] = {}
        for name, path in paths.items():
            self.agents[name] = load_agent(path, config.device, config.trust_pickle)
            found = find_agent(path)
            files = [found] if found.is_file() else sorted(found.glob("*.json")) + sorted(found.glob("*.safetensors"))
            self.digests[name] = _digest(file.read_bytes() for file in files)
        main = self.agents.get(MAIN)
        self.S, self.N = main.config.steps if main and main.config.steps[0] else self.unet.steps
        self.coarse = main.config.coarse if main else self.unet.coarse
        self._processes: dict[tuple[int, str, int], RefinementProcess] = {}
        self.own = self.process(self.S, self.coarse)
        self.cases = {name: self._case(name, agent) for name, agent in self.agents.items()}
        if self.cases.get(MAIN, 5) != 5:
            raise ConfigError(
                f"the agent that stands for {MAIN} decides from diffusion step {self.T} on, expected {self.N}; give it a name "
                "of its own, as in --agent case4=DIR"
            )
        self.reward = self.metrics["niqe"]
        if main and reward_of(main) in self.metrics:
            self.reward = self.metrics[reward_of(main)]
        self.has_peers = importlib.util.find_spec("diffusers") is not None
        self.methods: dict[str, Method] = {}
        self.sections = {name: list(dict.fromkeys(self._section(name))) for name in config.sections}
        # their pictures are kept
        self.shown = frozenset(self._section("pictures"))

    def process(self, S: int, coarse: str = "ddpm", fine_steps: int | None = None) -> RefinementProcess:
        """The process of a pair (S, T / S)."""
        N = self.T // S
        key = S, coarse, fine_steps or N
        if key not in self._processes:
            self._processes[key] = RefinementProcess(
                self.unet, self.T, (S, N), batch_size=self.config.batch_size, device=self.config.device, coarse=coarse,
                fine_steps=fine_steps,
            )  # fmt: skip
        return self._processes[key]

    def _case(self, name: str, agent: Agent) -> int:
        """Which case of Table 4 an agent decides: 3, 4 or 5.

        Raises:
            ConfigError: none.
        """
        (S, N), first = agent.config.steps, agent.config.first_step
        if N == self.N and S in (0, self.S) and agent.config.coarse == self.coarse and first in (self.N, self.T):
            return 5 if first == self.N else 4
        if (S, N) == (1, self.T):
            return 3
        raise ConfigError(
            f"the agent {name} decides for steps S,N = {S},{N} from diffusion step {first} on, coarse {agent.config.coarse}; "
            f"expected {self.S},{self.N} from {self.N} or {self.T} on, coarse {self.coarse}, or 1,{self.T}"
        )

    def agent_names(self, case: int) -> list[str]:
        """The agents of a case of Table 4, the main one first."""
        return sorted((name for name, own in self.cases.items() if own == case), key=lambda name: name != MAIN)

    @property
    def start(self) -> int:
        """The checkpoint's fixed start, as far as N allows."""
        return min(self.unet.start, self.N)

    # --- methods: each of these gives the name, and remembers what it stands for ---

    def _add(
        self, name: str, forwards: int, run: Callable[[Batch], Result], coarse: tuple[int, str] | None = None
    ) -> str:
        self.methods.setdefault(name, Method(name, forwards, run, coarse))
        return name

    def bicubic(self) -> str:
        """The condition itself."""
        return self._add(BICUBIC, 0, lambda batch: bicubic(batch.lr_up))

    def originals(self) -> str:
        """The targets themselves."""
        return self._add(ORIGINALS, 0, lambda batch: originals(batch.hr))

    def ddpm(self, S: int | None = None) -> str:
        """The ancestral chain of S steps, from noise to the clean image; of all T steps by default."""
        S = S or self.T
        if self.T % S == 0 and S < self.T:
            return self.csa(S)  # the same chain, whose first S - 1 steps others need as well
        schedule = cosine_alphas_cumprod(S)
        return self._add(f"DDPM-{S}", S, lambda batch: ddpm(self.unet, schedule, batch.lr_up, batch.seeds))

    def csa(self, S: int, sampler: str = "ddpm") -> str:
        """A coarse chain, run to its end."""
        process = self.process(S, sampler)

        def run(batch: Batch) -> Result:
            return coarse_chain(process, *batch.coarse(process))

        return self._add(coarse_name(S, sampler), 1, run, (S, sampler))

    def fsr(self, S: int, start: int, sampler: str = "ddpm") -> str:
        """A coarse stage and a fine chain from a fixed start, which may lie above N."""
        process = self.process(S, sampler, max(start, self.T // S))

        def run(batch: Batch) -> Result:
            return refinement(process, *batch.coarse(process), fixed_start(start))

        return self._add(start_name(S, start, sampler), start, run, (S, sampler))

    def agent(self, name: str) -> str:
        """A coarse stage and a fine stage that an agent decides."""
        agent = self.agents[name]
        S, sampler = (1 if self.cases[name] == 3 else self.S), agent.config.coarse
        process = self.process(S, sampler, agent.config.first_step)
        policy = AgentPolicy(agent)

        def run(batch: Batch) -> Result:
            return refinement(process, *batch.coarse(process), policy)

        return self._add(f"agent {name}", process.fine_steps, run, (S, sampler))

    def skipdiff(self) -> str:
        """The paper's method: the main agent, or the checkpoint's fixed start."""
        return self.agent(MAIN) if MAIN in self.agents else self.fsr(self.S, self.start, self.coarse)

    def peer(self, name: str, forwards: int) -> str:
        """One of diffusers' samplers."""
        from ddpm.peers import peer_sample

        def run(batch: Batch) -> Result:
            return sampled(
                self.unet, batch.lr_up, batch.seeds,
                lambda lr_up, noise: peer_sample(name, self.unet, self.own.alphas_cumprod, lr_up, noise, forwards),
            )  # fmt: skip

        return self._add(f"{PEERS[name]}, {forwards}", forwards, run)

    def early(self, t: int, forwards: int) -> str:
        """CCDF: the bicubic enlargement with noise, denoised from t on."""
        from ddpm.peers import early_start

        def run(batch: Batch) -> Result:
            return sampled(
                self.unet, batch.lr_up, batch.seeds,
                lambda lr_up, noise: (
                    early_start(self.unet, self.own.alphas_cumprod, lr_up, noise, t, forwards), forwards,
                ),
            )  # fmt: skip

        return self._add(f"CCDF from {t}, {forwards}", forwards, run)

    # --- what the sections show ---

    def chains(self) -> list[str]:
        """Fig. 1: the chain of S steps, for each S that divides T."""
        counts = {S for S in CHAINS if self.T % S == 0} | {self.T}
        if self.coarse == "ddpm":
            counts.add(self.S)
        return [self.ddpm(S) for S in sorted(counts)]

    def own_starts(self) -> list[str]:
        """Every fixed start of the own pair, the earliest first."""
        return [self.fsr(self.S, start, self.coarse) for start in range(self.N, 0, -1)]

    def some_starts(self, S: int, sampler: str = "ddpm") -> list[str]:
        """A few fixed starts of another pair: N, three quarters, half."""
        N = self.T // S
        starts = dict.fromkeys(max(1, round(share * N)) for share in (1, 0.75, 0.5))
        return [self.fsr(S, start, sampler) for start in starts]

    def pair_name(self, S: int, sampler: str = "ddpm") -> str:
        """Heading of the fixed starts of a pair (S, T / S)."""
        return f"S,N = {S},{self.T // S}" + ("" if sampler == "ddpm" else f", coarse {sampler}")

    def pairs(self) -> dict[str, list[str]]:
        """Fig. 5: heading → starts of other pairs (S, N), and of the own one with the other coarse samplers."""
        found = {
            self.pair_name(S): self.some_starts(S)
            for S in sorted({*PAIRS, self.S})
            if self.T % S == 0 and self.T // S > 1 and (self.S, self.coarse) != (S, "ddpm")
        }
        return found | {
            self.pair_name(self.S, sampler): self.some_starts(self.S, sampler)
            for sampler in COARSE_SAMPLERS
            if sampler not in ("ddpm", self.coarse)
        }

    def case_starts(self, case: int) -> list[str]:
        """Fixed starts that stand for cases 3 and 4 of Table 4 where there is no agent."""
        if case == 3:
            return [self.fsr(1, max(1, round(share * self.T))) for share in CASE_3]
        above = [self.fsr(self.S, times * self.N, self.coarse) for times in CASE_4 if times * self.N <= self.T]
        return above + self.own_starts()

    def peers(self) -> dict[str, list[str]]:
        """Heading → methods of the peers, one each budget; empty without diffusers."""
        if not self.has_peers:
            return {}
        budgets = [forwards for forwards in BUDGETS if forwards <= self.T]
        found = {heading: [self.peer(name, forwards) for forwards in budgets] for name, heading in PEERS.items()}
        for t in dict.fromkeys(max(1, round(share * self.T)) for share in EARLY):
            found[f"CCDF from {t}"] = [self.early(t, forwards) for forwards in budgets if forwards <= t]
        return {heading: methods for heading, methods in found.items() if methods}

    def budget_chains(self) -> list[str]:
        """The ancestral chain at the peers' budgets."""
        return [self.ddpm(forwards) for forwards in BUDGETS if forwards <= self.T]

    def _section(self, name: str) -> list[str]:
        """The methods that a section needs."""
        own = [self.agent(agent) for agent in self.agent_names(5)]
        peers = [method for methods in self.peers().values() for method in methods]
        if name == "fig1":
            return self.chains()
        if name in ("tables12", "pictures"):
            shown = [self.bicubic(), self.ddpm(), self.csa(self.S, self.coarse), self.skipdiff()]
            return shown if name == "pictures" else [*shown, self.originals()]
        if name == "table3":
            return [self.ddpm(), self.skipdiff()]
        if name == "table4":
            cases: list[str] = []
            for case in (3, 4):
                cases += [self.agent(agent) for agent in self.agent_names(case)] or self.case_starts(case)
            return [self.ddpm(), self.csa(self.S, self.coarse), *cases, self.skipdiff()]
        if name in ("table5", "table6"):
            return [*self.own_starts(), *own]
        if name == "fig5":
            others = [method for methods in self.pairs().values() for method in methods]
            return [self.ddpm(), *self.own_starts(), *own, *others, *peers]
        return [self.skipdiff(), *self.budget_chains(), *peers] if peers else []

    # --- doing it ---

    def settings(self) -> dict[str, Any]:
        """What two runs into one folder must have in common."""
        weights = self.unet.state_dict()
        return {
            "checkpoint": str(self.config.checkpoint),
            "weights": _digest(
                [json.dumps(self.unet.settings, sort_keys=True).encode(), *map(_bytes, weights.values())]
            ),
            "pictures": f"{len(self.crops)} of {self.config.image_size} px, {_digest(map(_bytes, self.crops))}",
            "seeds": self.config.seeds,
            "batch_size": self.config.batch_size,
            "device": self.config.device,
            "metrics": list(self.metrics),
            "steps": [self.S, self.N],
            "coarse": self.coarse,
            "agents": self.digests,
        }

    def batches(self) -> list[tuple[int, int]]:
        """(noise seed, index of the first picture) of each batch."""
        firsts = range(0, len(self.crops), self.config.batch_size)
        return [(seed, first) for seed in range(self.config.seeds) for first in firsts]

    def method_names(self) -> list[str]:
        """The methods of all sections; those that share a coarse stage keep their order."""
        return list(dict.fromkeys(name for names in self.sections.values() for name in names))

    def parts(self, out: Path) -> list[Part]:
        """What is left to do."""
        parts = []
        for seed, first in self.batches():
            hr = self.crops[first : first + self.config.batch_size]
            batch: list[Batch] = []  # made by the first part that needs it
            begun: set[tuple[int, str]] = set()
            for name in self.method_names():
                method, path = self.methods[name], part_path(out, name, seed, first)
                if path.exists():
                    continue
                forwards = method.forwards
                if method.coarse and method.coarse not in begun:
                    begun.add(method.coarse)
                    forwards += method.coarse[0] - 1
                parts.append(
                    Part(name, path, forwards * len(hr), partial(self._run, method, hr, batch, seed, first, path, out))
                )
        if "table3" in self.sections and not (out / "flops.json").exists():
            parts.append(Part("FLOPs", out / "flops.json", 1, partial(self._count, out / "flops.json")))
        if "pictures" in self.sections and not (out / "latents.png").exists():
            parts.append(
                Part(
                    "latents",
                    out / "latents.png",
                    self.T + 3 * self.S - 1,
                    partial(self._draw_latents, out / "latents.png"),
                )
            )
        return parts

    def _run(
        self, method: Method, hr: Sequence[Tensor], batch: list[Batch], seed: int, first: int, path: Path, out: Path
    ) -> None:
        if not batch:
            batch.append(Batch(torch.stack(list(hr)).to(self.config.device), self.unet.scale, seed))
        result = {method.name: method.run(batch[0])}
        rows = measure(result, list(self.metrics.values()), batch[0].hr, seed, first)
        if method.name in self.shown:
            save_pictures(out / "pictures", SHOWN)(seed, first, result, batch[0].hr)
        write_json(path, [asdict(row) for row in rows])

    def rows(self, out: Path) -> list[Row]:
        """What the finished parts of the sections hold."""
        rows = []
        for name in self.method_names():
            for seed, first in self.batches():
                rows += [Row(**row) for row in read_json(part_path(out, name, seed, first))]
        return rows

    def _count(self, path: Path) -> None:
        """Writes the FLOPs of one forward of one picture, and of an episode's decisions that all see a new latent."""
        shape = (1, 3, self.config.image_size, self.config.image_size)
        image, level = torch.zeros(shape, device=self.config.device), torch.full((1,), 0.5, device=self.config.device)
        flops = {"unet": count_flops(lambda: self.unet(image, image, level)), "policy": 0}
        if MAIN in self.agents:
            flops["policy"] = count_flops(lambda: _decide_all(self.agents[MAIN], image[0]))
        write_json(path, flops)

    def _draw_latents(self, path: Path) -> None:
        """Fig. 6: latents and estimates of the full and of the coarse diffusion, at the levels that both visit."""
        lr_up = degrade(self.crops[0][None].to(self.config.device), self.unet.scale)
        noise = KeyedNoise([0], lr_up.shape[1:], self.config.device)
        seen: list[Tensor] = []
        hook = self.unet.register_forward_hook(lambda module, args, out: seen.append(args[1]))
        with torch.inference_mode():
            sample(self.unet, self.own.alphas_cumprod, lr_up, noise)
            full = seen[:: self.N]
            seen.clear()
            last = coarse_sampler(self.coarse)(self.unet, self.own.coarse_alphas_cumprod, lr_up, noise)
            coarse = [*seen, last]
        hook.remove()
        columns: dict[str, list[NDArray[np.uint8]]] = {}
        with torch.inference_mode():
            for j, ours, theirs in zip(range(self.S, 0, -1), coarse, full, strict=True):
                cells = columns[f"t = {self.N * j}"] = []
                for x_t, schedule, t in (
                    (theirs, self.own.alphas_cumprod, self.N * j),
                    (ours, self.own.coarse_alphas_cumprod, j),
                ):
                    x0 = predict_x0(self.unet, schedule, t, x_t, lr_up)
                    # a third of a latent shows nearly all of its noise
                    cells += [to_uint8(x_t[0] / 3), to_uint8(to_image(self.unet, x0, lr_up)[0])]
        save(contact_sheet(columns), path)

    def compute(self, out: Path) -> None:
        """Does what is left to do, with a bar that counts UNet forwards.

        Args:
            out: folder of the report.

        Raises:
            ConfigError: the folder holds a report with other settings.
        """
        self._settle(out / "settings.json")
        parts = deque(self.parts(out))
        total = sum(part.forwards for part in parts)
        with tqdm(total=total, desc="reproduce", unit="forward", dynamic_ncols=True) as bar:

            def count(module: object, args: tuple[Tensor, ...], out: Tensor) -> None:
                bar.update(len(args[0]))

            hook = self.unet.register_forward_hook(count)
            try:
                while parts:
                    part = parts.popleft()  # let go of it, and so of its batch
                    bar.total = bar.n + part.forwards + sum(left.forwards for left in parts)
                    bar.set_postfix_str(part.title, refresh=False)
                    part.work()
                bar.total = bar.n
            finally:
                hook.remove()

    def _settle(self, path: Path) -> None:
        """Compares the settings with those of the parts that are there; agents may be added, but not change."""
        settings = self.settings()
        if path.exists():
            before = read_json(path)
            settings["agents"] = {**before.get("agents", {}), **settings["agents"]}
            for name, value in settings.items():
                if before.get(name) != value and not (name == "agents" and before[name].items() <= value.items()):
                    raise ConfigError(
                        f"{path.parent} holds a report with {name} {before.get(name)}, got {value}; go on with the same "
                        "settings, or give another --out"
                    )
        write_json(path, settings)


def reward_of(agent: Agent) -> str:
    """The metric that an agent was rewarded by; "niqe" where it does not say."""
    return str(agent.config.training.get("env", {}).get("metric", "niqe"))


def penalty_of(agent: Agent) -> float:
    """What an agent paid for a fine forward in its training."""
    return float(agent.config.training.get("env", {}).get("nfe_penalty", 0.0))


def part_path(out: Path, method: str, seed: int, first: int) -> Path:
    """Where the rows of a method on one batch are."""
    return out / "parts" / file_name(method) / f"{seed}-{first}.json"


def count_flops(work: Callable[[], object]) -> int:
    """Floating-point operations of torch within a call; a multiplication and an addition are two."""
    from torch.utils.flop_counter import FlopCounterMode

    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        work()
    return int(counter.get_total_flops())


def _decide_all(agent: Agent, like: Tensor) -> None:
    """All decisions of an episode, on latents that are noise."""
    policy = AgentPolicy(agent)
    state = Refinement(like, 0, None, like, like, agent.config.first_step, 0)
    while state.t > 1:
        state.latent = torch.from_numpy(keyed_noise(0, Stage.FINE, state.t, like.shape)).to(like.device)
        policy([state])
        state.t -= 1


def _bytes(tensor: Tensor) -> bytes:
    return tensor.detach().cpu().contiguous().numpy().tobytes()


def _digest(contents: Iterable[bytes]) -> str:
    """A few letters that stand for the contents."""
    digest = hashlib.blake2b(digest_size=6)
    for content in contents:
        digest.update(content)
    return digest.hexdigest()
