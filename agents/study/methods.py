"""The methods that enlarge a batch of pictures."""

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from agents.agent import Agent
from agents.playing import AgentPolicy
from agents.study import realesrgan
from agents.study.rows import (
    AGENT,
    BICUBIC,
    CHAIN,
    COARSE,
    EARLY,
    ORIGINALS,
    OTHER_NET,
    PEER,
    PREDICTOR,
    RANDOM,
    SCHEDULE,
    START,
)
from ddpm.nets.denoiser import Denoiser, NoiseLevelDenoiser, geometry
from ddpm.noise import KeyedNoise, Stage
from ddpm.pictures.degradation import PLAIN, Degradation, upsample
from ddpm.pictures.images import to_tensor, to_uint8
from ddpm.sampling import coarse_eta, refine, run_levels, sample
from ddpm.schedule import Schedule, as_schedule, cosine_alphas_cumprod, even_levels
from ddpm.training.best_schedule import best_levels, jump_costs, trajectory_errors, x0_errors
from ddpm.util.errors import ConfigError
from skipdiff_env.plan import Plan
from skipdiff_env.refinement import (
    Action,
    Chooser,
    Fixed,
    Policy,
    Refinement,
    RefinementProcess,
    fixed_start,
    wanted_by,
)

X = TypeVar("X")
# name in ddpm.peers → heading; "ddpm" is left out: it is "euler-ancestral", and our chain of S steps
PEERS = {
    "ddim": "DDIM",
    "dpmsolver++": "DPM-Solver++(2M)",
    "unipc": "UniPC",
    "euler-ancestral": "Euler ancestral",
    "heun": "Heun",
}
NULL_SPACE = "DDNM"
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

    def process(self, plan: Plan, policy: Policy | Chooser | None = None) -> RefinementProcess:
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
        forwards: largest number of UNet forwards for one picture, without those of the coarse stage.
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


def predictor() -> Method:
    """Return the picture of the net's predictor."""
    return Method(PREDICTOR, PREDICTOR, None, lambda batch: Result(batch.lr_up, [0] * len(batch.hr)))


def has_predictor(unet: Denoiser) -> bool:
    """Return whether a network starts from the picture of a predictor."""
    return getattr(unet, "predictor", None) is not None


def without_forwards(unet: Denoiser) -> list[Method]:
    """Return bicubic enlargement, and the predictor without the network if there is one."""
    return [bicubic(), *([predictor()] if has_predictor(unet) else [])]


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


def _sampled(batch: Batch, sampler: Callable[[], tuple[Tensor, int]]) -> Result:
    """Return the result of a sampler, a function that returns latents x_0 and the number of its predictions."""
    (latents, calls), seconds = timed(sampler, len(batch.hr))
    nfe = calls * batch.unet.forwards_per_call
    return Result(batch.unet.decode(latents, batch.lr_up), [nfe] * len(batch.hr), seconds)


def chain(T: int, S: int | None = None) -> Method:
    """Return the ancestral chain of S steps, from noise to the clean image (SR3); of all T steps by default."""
    S = S or T
    if T % S == 0 and S < T:
        return coarse_chain(Plan(S, T // S))  # the same chain, whose first S - 1 steps other methods use as well

    def run(batch: Batch) -> Result:
        schedule = batch.unet.schedule(S)
        return _sampled(batch, lambda: (sample(batch.unet, schedule, batch.lr_up, batch.noise), S))

    return Method(f"DDPM-{S}", CHAIN, None, run, S)


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

    return Method(coarse_name(plan), COARSE, plan, run, 1)


# --- fine stages that a policy decides ---


def decided(batch: Batch, plan: Plan, policy: Policy | Chooser) -> Result:
    """Return the result of a plan's coarse stage, and of a fine stage that a policy decides."""
    process, (states, seconds) = batch.process(plan, policy), batch.coarse(plan)
    deciding = 0.0
    if isinstance(policy, Chooser):
        chosen, deciding = timed(lambda: policy.choose(states), len(states))
        sr, own = timed(lambda: torch.stack(process.run_schedules(states, chosen)), len(states))
        return Result(sr, [state.nfe for state in states], seconds + own + deciding, states, deciding)

    bound = process.bound(policy)

    def decide(states: Sequence[Refinement]) -> Sequence[Any]:
        nonlocal deciding
        actions, own = timed(lambda: bound(states), len(states))
        deciding += own
        return actions

    sr, own = timed(lambda: torch.stack(process.run(states, decide)), len(states))
    return Result(sr, [state.nfe for state in states], seconds + own, states, deciding)


def from_start(plan: Plan, start: int) -> Method:
    """Return a coarse stage and a fine chain from a fixed start, which may lie above N."""
    own = replace(plan, first_step=max(start, plan.N))
    name = f"{coarse_name(plan)} + FSR({start})"
    return Method(name, START, own, lambda batch: decided(batch, own, fixed_start(start)), start)


def all_starts(plan: Plan) -> list[Method]:
    """Return every fixed start of a plan, the earliest first."""
    return [from_start(plan, start) for start in range(plan.first, 0, -1)]


def agent_name(name: str, quality: float | None) -> str:
    """Return the name of an agent in tables."""
    return f"agent {name}" if quality is None else f"agent {name}, quality {quality:g}"


def by_agent(name: str, agent: Agent, plan: Plan, quality: float | None = None) -> Method:
    """Return a coarse stage and a fine stage that an agent decides.

    Args:
        name: name of the agent.
        agent: the agent that decides.
        plan: plan of the episodes.
        quality: 0 … 1, for an agent that observes the price of a forward; None: one half.

    Raises:
        ConfigError: the agent was trained for the episodes of another plan, or for one price.
    """
    agent.check(plan)
    policy = AgentPolicy(agent, quality)
    return Method(agent_name(name, quality), AGENT, plan, lambda batch: decided(batch, plan, policy), plan.first)


def agent_curve(name: str, agent: Agent, plan: Plan) -> list[Method]:
    """Return an agent at several qualities, from few forwards to many, or once if it has learnt one price."""
    if agent.config.price_range is None:
        return [by_agent(name, agent, plan)]
    return [by_agent(name, agent, plan, quality) for quality in QUALITIES]


def curve_prices(name: str, agent: Agent) -> dict[str, float]:
    """Return the names of the methods of `agent_curve`, each with its price of a forward."""
    if agent.config.price_range is None:
        return {agent_name(name, None): float(agent.config.training.get("env", {}).get("nfe_penalty", 0.0))}
    prices = {agent_name(name, quality): agent.config.price(quality) for quality in QUALITIES}
    return {method: price for method, price in prices.items() if price is not None}


def skipping_policy(fine_forwards: float, steps: int, rng: np.random.Generator) -> Policy:
    """Return a policy that skips at random, with `fine_forwards` forwards in a fine stage on average."""
    skip = 1 - (fine_forwards - 1) / (steps - 1)

    def decide(states: Sequence[Refinement]) -> Sequence[int]:
        return [Action.SKIP if rng.random() < skip else Action.DENOISE for _ in states]

    return decide


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
        levels: the schedule, as `ddpm.schedule.as_schedule` takes it.
        sampler: name of the sampler; a schedule with substeps needs "ddim".

    Raises:
        ConfigError: the schedule or the sampler is wrong.
    """
    way = as_schedule(levels)
    plan = Plan.of_schedule(way, sampler)
    _word, colon, number = str(way).partition(":")
    if not colon:
        name = f"{sampler}, levels {way}"
    elif way.plain:
        name = f"{sampler}, {number} even steps"
    else:
        many = "1 forward" if way.forwards == 1 else f"{way.forwards} even forwards"
        name = f"{many} of {way.substeps[0]} substeps"

    return Method(name, SCHEDULE, plan, lambda batch: decided(batch, plan, Fixed(way)), way.forwards)


def shipped_schedule(unet: Denoiser) -> list[Method]:
    """Return the default schedule of the checkpoint, if it has one."""
    settings = unet.settings
    if settings["levels"] is None:
        return []
    way = as_schedule(settings["levels"])
    return [schedule(way, settings["fine_sampler"] if way.plain else "ddim")]


def parse_schedule(text: str, sampler: str) -> Method:
    """Return the schedule of a text, as `ddpm.schedule.Schedule.parse` takes it, after an optional sampler.

    Args:
        text: LEVELS or SAMPLER/LEVELS, such as "20,13,6,2", "even:2*8" or "ddim:0.5/even:8".
        sampler: default sampler; a schedule with substeps takes "ddim".

    Raises:
        ConfigError: the text is not a schedule.
    """
    before, slash, levels = text.rpartition("/")
    way = Schedule.parse(levels)
    chosen = before if slash else sampler if way.plain else "ddim"
    coarse_eta(chosen, "the sampler of levels")
    return schedule(way, chosen)


# --- other samplers ---


def peer(T: int, name: str, forwards: int) -> Method:
    """Return a sampler of diffusers, see `ddpm.peers.peer_sample`."""
    from ddpm.peers import peer_sample

    alphas_cumprod = cosine_alphas_cumprod(T)

    def run(batch: Batch) -> Result:
        return _sampled(
            batch, lambda: peer_sample(name, batch.unet, alphas_cumprod, batch.lr_up, batch.noise, forwards)
        )

    return Method(f"{PEERS[name]}, {forwards}", PEER, None, run, forwards)


def own_network(batch: Batch) -> NoiseLevelDenoiser:
    """Return the network of a batch, for a method that needs the noise level as the network's input.

    Raises:
        ConfigError: the network is not of this kind.
    """
    if not isinstance(batch.unet, NoiseLevelDenoiser):
        raise ConfigError(f"this method needs a network with the noise level as input, got {type(batch.unet).__name__}")
    return batch.unet


def null_space(T: int, forwards: int) -> Method:
    """Return DDIM with estimates that agree with the low-resolution picture, see `ddpm.peers.NullSpaceDenoiser`."""
    from ddpm.peers import NullSpaceDenoiser

    alphas_cumprod = cosine_alphas_cumprod(T)

    def run(batch: Batch) -> Result:
        unet = NullSpaceDenoiser(own_network(batch), batch.lr_image, batch.unet.scale)
        noise, levels = batch.noise, even_levels(T, forwards)
        latents = noise(Stage.INITIAL, T)
        return _sampled(
            batch, lambda: (run_levels(unet, alphas_cumprod, latents, batch.lr_up, noise, levels, 0.0), forwards)
        )

    return Method(f"{NULL_SPACE}, {forwards}", PEER, None, run, forwards)


def elbo_costs(batches: Iterable[Batch], T: int) -> NDArray[np.float64]:
    """Return the cost of every jump under the evidence lower bound, see `jump_costs`, from training photographs."""
    alphas_cumprod = cosine_alphas_cumprod(T)
    errors = [x0_errors(own_network(b), alphas_cumprod, b.hr, b.lr_up, b.noise) for b in batches]
    return jump_costs(alphas_cumprod, np.mean(errors, axis=0))


def trajectory_costs(batches: Iterable[Batch], T: int) -> NDArray[np.float64]:
    """Return the error of every jump of DDIM, see `trajectory_errors`, from training photographs."""
    found = [trajectory_errors(batch.unet, batch.unet.schedule(T), batch.lr_up, batch.noise) for batch in batches]
    return np.mean(found, axis=0)


def best_schedule(costs: NDArray[np.float64], forwards: int, sampler: str, title: str) -> Method:
    """Return the schedule of a number of forwards with the least cost, by dynamic programming."""
    levels = best_levels(costs, forwards)
    return replace(schedule(levels, sampler), name=f"{title}, {forwards}", family=PEER)


# Name of schedules by dynamic programming over the errors of jumps.
TRAJECTORY = "DP over the trajectory, ddim"


def elbo_name(sampler: str) -> str:
    """Return the name of schedules by dynamic programming over the bound."""
    return f"DP over the ELBO, {sampler}"


def early_name(t: int, predicted: bool) -> str:
    """Return the name of an early start, from bicubic enlargement (CCDF) or the predictor's picture (Lyu et al.)."""
    return f"predictor's picture from {t}" if predicted else f"CCDF from {t}"


def early(T: int, t: int, forwards: int, predicted: bool = False) -> Method:
    """Return an early start: the condition with noise, denoised from t on, see `ddpm.peers.early_start`."""
    from ddpm.peers import early_start

    alphas_cumprod = cosine_alphas_cumprod(T)

    def run(batch: Batch) -> Result:
        return _sampled(
            batch,
            lambda: (early_start(own_network(batch), alphas_cumprod, batch.lr_up, batch.noise, t, forwards), forwards),
        )

    return Method(f"{early_name(t, predicted)}, {forwards}", EARLY, None, run, forwards)
