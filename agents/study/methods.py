"""The methods that enlarge a batch of pictures."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property, partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from agents.agent import Agent
from agents.playing import AgentPolicy
from agents.study import realesrgan
from agents.study.rows import (
    AGENT,
    BICUBIC,
    CHAIN,
    COARSE,
    ORIGINALS,
    OTHER_NET,
    PREDICTOR,
    RANDOM,
    SCHEDULE,
    START,
)
from ddpm.nets.denoiser import Denoiser, geometry
from ddpm.noise import KeyedNoise
from ddpm.pictures.degradation import PLAIN, Degradation, upsample
from ddpm.pictures.images import to_tensor, to_uint8
from ddpm.sampling import coarse_eta, refine, sample
from ddpm.schedule import Schedule, as_schedule
from ddpm.util.checks import counted
from skipdiff_env.plan import Plan
from skipdiff_env.refinement import (
    Decider,
    Fixed,
    Policy,
    Refinement,
    RefinementProcess,
    fixed_start,
    wanted_by,
)
from skipdiff_env.rules import DENOISE, SKIP

X = TypeVar("X")
# Qualities that are compared for an agent that observes the price of a forward.
QUALITIES = (0.0, 0.25, 0.5, 0.75, 1.0)


@dataclass(frozen=True)
class Result:
    """The results of one method for a batch.

    Attributes:
        sr: pictures (B, 3, H, W) in [-1, 1].
        nfe: number of forwards of each picture.
        seconds: mean wall time, without that of the condition.
        states: final state of the fine stage for each picture; empty without a fine stage.
        policy_seconds: part of `seconds` that was spent on decisions.
    """

    sr: Tensor
    nfe: Sequence[int]
    seconds: float = 0.0
    states: Sequence[Refinement] = ()
    policy_seconds: float = 0.0


def timed(work: Callable[[], X], pictures: int) -> tuple[X, float]:
    """Return the result of `work`, and its wall time for each of the pictures."""

    def now() -> float:
        if torch.cuda.is_initialized():  # kernels of a GPU may still run after the call
            torch.cuda.synchronize()
        return time.perf_counter()

    began = now()
    with torch.inference_mode():
        result = work()
    return result, (now() - began) / pictures


class Batch:
    """Pictures under one noise seed. The condition and the coarse stages, which methods share, are computed once.

    Args:
        unet: the denoiser.
        hr: targets, (B, 3, H, W) in [-1, 1], on the denoiser's device.
        seed: noise seed of all pictures.
        first: index of the first picture.
        batch_size: largest batch of one UNet forward.
        degradation: degradation of the low-resolution pictures.
    """

    def __init__(
        self,
        unet: Denoiser,
        hr: Tensor,
        seed: int = 0,
        first: int = 0,
        batch_size: int = 32,
        degradation: Degradation = PLAIN,
    ) -> None:
        self.unet, self.hr, self.seed, self.first, self.batch_size = unet, hr, seed, first, batch_size
        self.degradation = degradation
        self.seeds = [seed] * len(hr)
        # method → mean number of forwards, for the methods that have run
        self.forwards: dict[str, float] = {}
        self._coarse: dict[tuple[int, int, str], tuple[list[Refinement], float]] = {}

    @cached_property
    def lr_image(self) -> Tensor:
        """The low-resolution pictures, (B, 3, h, w) in [-1, 1]."""
        return self.degradation(self.hr, self.unet.scale)

    @cached_property
    def condition(self) -> tuple[Tensor, float]:
        """The conditions, (B, C, H, W), and the seconds that the predictor took for each picture."""
        lr_up, seconds = timed(lambda: self.unet.condition(self.lr_image), len(self.lr_image))
        return lr_up, seconds if has_predictor(self.unet) else 0.0

    @property
    def lr_up(self) -> Tensor:
        """The conditions, (B, C, H, W)."""
        return self.condition[0]

    @property
    def noise(self) -> KeyedNoise:
        """The noise of each picture."""
        shape = geometry(self.unet)[0], *self.lr_up.shape[-2:]
        return KeyedNoise(self.seeds, shape, self.hr.device)

    def process(self, plan: Plan, policy: Policy | Decider | None = None) -> RefinementProcess:
        """Return the process of a plan's coarse and fine stages."""
        return RefinementProcess(
            self.unet, plan, batch_size=self.batch_size, device=str(self.hr.device), **wanted_by(policy)
        )

    def coarse(self, plan: Plan) -> tuple[list[Refinement], float]:
        """Return new states at a plan's first decision, and the seconds that the coarse stage took for each picture."""
        if plan.coarse not in self._coarse:
            process = self.process(plan)
            self._coarse[plan.coarse] = timed(lambda: process.begin(list(self.lr_up), self.seeds), len(self.hr))
        states, seconds = self._coarse[plan.coarse]
        return [replace(state, t=plan.first, level=plan.first) for state in states], seconds


@dataclass(frozen=True)
class Method:
    """A method that enlarges a batch.

    Attributes:
        name: name in tables; methods with the same name are the same.
        family: kind of method, one of the constants in `agents.study.rows`.
        plan: plan of its coarse stage; None: it has no coarse stage.
        run: function that enlarges a batch.
        forwards: largest number of forwards of a picture, in which progress is counted.
    """

    name: str
    family: str
    plan: Plan | None
    run: Callable[[Batch], Result]
    forwards: int = 0


# --- methods without forwards ---


def originals() -> Method:
    """Return the targets themselves."""
    return Method(ORIGINALS, ORIGINALS, None, lambda batch: Result(batch.hr, [0] * len(batch.hr)))


def bicubic() -> Method:
    """Return bicubic enlargement."""
    return Method(
        BICUBIC, BICUBIC, None, lambda batch: Result(upsample(batch.lr_image, batch.unet.scale), [0] * len(batch.hr))
    )


def has_predictor(unet: Denoiser) -> bool:
    """Return whether a network starts from the picture of a predictor."""
    return getattr(unet, "predictor", None) is not None


def without_forwards(unet: Denoiser) -> list[Method]:
    """Return bicubic enlargement, and the predictor without the network if there is one."""
    alone = Method(PREDICTOR, PREDICTOR, None, lambda batch: Result(batch.lr_up, [0] * len(batch.hr)))
    return [bicubic(), alone] if has_predictor(unet) else [bicubic()]


def other_nets(scale: int) -> list[Method]:
    """Return Real-ESRGAN x4plus, if the scale is the same and its packages are installed."""
    if scale != realesrgan.SCALE or realesrgan.missing():
        return []

    def run(batch: Batch) -> Result:
        enlarge = realesrgan.realesrgan(torch.get_num_threads())
        small = [to_uint8(lr) for lr in batch.lr_image]
        large, seconds = timed(lambda: [enlarge(rgb) for rgb in small], len(small))
        return Result(torch.stack([to_tensor(rgb) for rgb in large]).to(batch.hr.device), [0] * len(large), seconds)

    return [Method(f"{realesrgan.NAME} ({OTHER_NET})", OTHER_NET, None, run)]


# --- chains ---


def sampled(name: str, family: str, forwards: int, sampler: Callable[[Batch], tuple[Tensor, int]]) -> Method:
    """Return a method from a function of a batch that returns latents x_0 and the number of its predictions."""

    def run(batch: Batch) -> Result:
        (latents, calls), seconds = timed(lambda: sampler(batch), len(batch.hr))
        nfe = calls * batch.unet.forwards_per_call
        return Result(batch.unet.decode(latents, batch.lr_up), [nfe] * len(batch.hr), seconds)

    return Method(name, family, None, run, forwards)


def chain(T: int, S: int | None = None) -> Method:
    """Return the ancestral chain of S steps, from noise to the clean image (SR3); of all T steps by default."""
    steps = S or T
    if T % steps == 0 and steps < T:
        return coarse_chain(Plan(steps, T // steps))  # the same chain, whose first steps other methods use as well
    return sampled(
        f"DDPM-{steps}",
        CHAIN,
        steps,
        lambda batch: (sample(batch.unet, batch.unet.schedule(steps), batch.lr_up, batch.noise), steps),
    )


def coarse_name(plan: Plan) -> str:
    """Return the text for a coarse stage in names of methods."""
    return f"CSA({plan.S})" if plan.coarse_sampler == "ddpm" else f"CSA({plan.S}, {plan.coarse_sampler})"


def coarse_chain(plan: Plan) -> Method:
    """Return the coarse chain of a plan, run to its end."""

    def run(batch: Batch) -> Result:
        process, (states, seconds) = batch.process(plan), batch.coarse(plan)
        latents = torch.stack([state.coarse_latent for state in states])
        # the last step of the coarse chain: refine() from 1 on the coarse schedule
        x_0, last = timed(
            lambda: refine(batch.unet, process.coarse_alphas_cumprod, latents, batch.lr_up, batch.noise, 1), len(states)
        )
        nfe = plan.S * batch.unet.forwards_per_call
        return Result(batch.unet.decode(x_0, batch.lr_up), [nfe] * len(states), seconds + last)

    return Method(coarse_name(plan), COARSE, plan, run, plan.S)


# --- fine stages that a policy decides ---


def decided(batch: Batch, plan: Plan, policy: Policy | Decider) -> Result:
    """Return the result of a plan's coarse stage, and of a fine stage that a policy decides."""
    process, (states, seconds) = batch.process(plan, policy), batch.coarse(plan)
    deciding = 0.0

    def measured(choose: Callable[[Sequence[Refinement]], X], states: Sequence[Refinement]) -> X:
        nonlocal deciding
        chosen, own = timed(lambda: choose(states), len(batch.hr))
        deciding += own
        return chosen

    decide = process.bound(policy)
    sr, own = timed(lambda: torch.stack(process.run(states, partial(measured, decide))), len(states))
    return Result(sr, [state.nfe for state in states], seconds + own, states, deciding)


def from_start(plan: Plan, start: int) -> Method:
    """Return a coarse stage and a fine chain from a fixed start, which may lie above N."""
    own = replace(plan, first_step=max(start, plan.N))
    name = f"{coarse_name(plan)} + FSR({start})"
    return Method(name, START, own, lambda batch: decided(batch, own, fixed_start(start)), start)


def all_starts(plan: Plan) -> list[Method]:
    """Return every fixed start of a plan, the earliest first."""
    return [from_start(plan, start) for start in range(plan.first, 0, -1)]


def by_agent(name: str, agent: Agent, quality: float | None = None) -> Method:
    """Return a coarse stage and a fine stage that an agent decides, under the plan that it was trained for.

    Args:
        name: name of the agent.
        agent: the agent that decides.
        quality: 0 … 1, for an agent that observes the price of a forward; None: one half.

    Raises:
        ConfigError: the agent was trained for one price.
    """
    policy, plan = AgentPolicy(agent, quality), agent.config.plan
    title = f"agent {name}" if quality is None else f"agent {name}, quality {quality:g}"
    return Method(title, AGENT, plan, lambda batch: decided(batch, plan, policy), plan.first)


def agent_curve(name: str, agent: Agent) -> list[Method]:
    """Return an agent at several qualities, from few forwards to many, or once if it has learnt one price."""
    qualities = [None] if agent.config.price_range is None else QUALITIES
    return [by_agent(name, agent, quality) for quality in qualities]


def skipping_policy(fine_forwards: float, steps: int, rng: np.random.Generator) -> Policy:
    """Return a policy that skips at random, with `fine_forwards` forwards in a fine stage on average."""
    skip = 1 - (fine_forwards - 1) / (steps - 1)
    return lambda states: [SKIP if rng.random() < skip else DENOISE for _ in states]


def random_skipping(like: Method) -> Method:
    """Return random skipping, with as many forwards as another method with a plan had on the same batch."""
    plan = like.plan
    assert plan is not None

    def run(batch: Batch) -> Result:
        forwards = batch.forwards[like.name] - plan.coarse_forwards
        rng = np.random.default_rng([batch.first, *batch.seeds])
        return decided(batch, plan, skipping_policy(forwards, plan.first, rng))

    return Method(RANDOM, RANDOM, plan, run, plan.first)


def schedule(levels: Schedule | str | Sequence[int], sampler: str = "ddim") -> Method:
    """Return a fixed schedule of jumps as a method.

    Args:
        levels: the schedule, as `ddpm.schedule.as_schedule` takes it; a text may begin with a sampler, as in
            "ddim:0.5/even:8".
        sampler: sampler of a schedule without one; a schedule with substeps takes "ddim".

    Raises:
        ConfigError: the schedule or the sampler is wrong.
    """
    named, slash, levels = levels.rpartition("/") if isinstance(levels, str) else ("", "", levels)
    way = as_schedule(levels)
    sampler = named if slash else sampler if way.plain else "ddim"
    coarse_eta(sampler, "the sampler of levels")
    plan = Plan.of_schedule(way, sampler)
    if ":" not in str(way):
        name = f"{sampler}, levels {way}"
    elif way.plain:
        name = f"{sampler}, {counted(way.forwards, 'even step')}"
    else:
        many = "1 forward" if way.forwards == 1 else f"{way.forwards} even forwards"
        name = f"{many} of {counted(way.substeps[0], 'substep')}"
    return Method(name, SCHEDULE, plan, lambda batch: decided(batch, plan, Fixed(way, plan)), way.forwards)


def shipped_schedule(unet: Denoiser) -> list[Method]:
    """Return the default schedule of the checkpoint, if it has one."""
    levels = unet.settings["levels"]
    return [] if levels is None else [schedule(levels, unet.settings["fine_sampler"])]
