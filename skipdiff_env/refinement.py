"""The fine stage as a decision process, Eq. 13-15 and jumps.

The scalar environment, the batched one, the upscaler, evaluations and the computation of tables use
`RefinementProcess`. Environments with tables follow the same rule without a network, see `skipdiff_env.tree`.
"""

import math
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any, Protocol, TypeVar, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.nets.denoiser import Denoiser, coefficient, geometry
from ddpm.noise import MAX_NOISE, KeyedNoise, Stage
from ddpm.pictures.tiling import Box
from ddpm.sampling import (
    coarse_eta,
    coarse_sampler,
    dpmsolver_chain,
    estimate,
    extrapolation,
    p_sample,
    reverse_weights,
)
from ddpm.schedule import FloatArray, Schedule, check_levels
from ddpm.util.errors import ConfigError
from skipdiff_env.decisions import Choice, Decisions, Skip
from skipdiff_env.memo import Memo
from skipdiff_env.plan import Plan
from skipdiff_env.rules import DENOISE, SKIP, InvalidActionError

T = TypeVar("T")
# (noise seed, step, shape) → the noise of the fine step to step - 1.
NoiseOf = Callable[[int, int, tuple[int, ...]], Tensor]


@dataclass
class Refinement:
    """The state of a picture, or of a tile of a picture, between the coarse latent and the result.

    Attributes:
        lr_up: condition, (C, H, W), see `ddpm.nets.denoiser.Denoiser.condition`.
        noise_seed: key of all noise of this picture; a tile has its part of its picture's noise.
        key: identity of the picture for the memo; with None nothing is remembered.
        coarse_latent: the coarse latent x_S1, or the initial noise if there is no coarse stage, (C, H, W).
        latent: the current latent u, (C, H, W).
        t: the diffusion step of the next decision (or, at 1, the last step); 0 at the end.
        level: the diffusion step whose noise level is the next input of the net. Under "restart" it is t; under "jump"
            it is the level of the latent.
        nfe: network forwards of this picture so far, coarse and fine, discarded or not; two for each prediction with
            guidance.
        path: the diffusion steps of the surviving fine chain, from that of its first forward to that of the latent;
            empty before the first performed step. Together with the picture, the seed and the substeps it determines
            `latent`.
        substeps: for each forward of the surviving chain, the number of even steps whose work it did.
        before: the last estimate of x_0 on the surviving chain, (C, H, W), if the fine sampler uses it or the process
            keeps it; else None.
        picture: the picture of a tile at its first decision; None for a whole picture.
        box: the place of a tile in that picture; None for a whole picture.
    """

    lr_up: Tensor
    noise_seed: int
    key: Hashable | None
    coarse_latent: Tensor
    latent: Tensor
    t: int
    level: int
    nfe: int
    path: tuple[int, ...] = ()
    substeps: tuple[int, ...] = ()
    before: Tensor | None = None
    picture: "Refinement | None" = None
    box: Box | None = None

    def tile(self, box: Box) -> "Refinement":
        """Return a tile of this picture, which continues from here by separate decisions; tensors are not copied."""
        names = [name for name in ("lr_up", "coarse_latent", "latent", "before") if getattr(self, name) is not None]
        return replace(self, **{name: getattr(self, name)[box.area] for name in names}, key=None, picture=self, box=box)

    def fine_noise(self, noise_of: NoiseOf, t: int) -> Tensor:
        """Return the noise (3, H, W) that the step to t - 1 adds; for a tile, its part of the picture's noise."""
        if self.picture is None or self.box is None:
            return noise_of(self.noise_seed, t, tuple(self.latent.shape))
        return noise_of(self.noise_seed, t, tuple(self.picture.latent.shape))[self.box.area]

    @property
    def start(self) -> int:
        """The diffusion step at which the surviving chain began (or will begin, if there is none yet)."""
        return self.path[0] if self.path else self.level

    @property
    def levels(self) -> tuple[int, ...]:
        """The diffusion steps at which the net ran on the surviving chain."""
        return self.path[:-1]

    @property
    def schedule(self) -> Schedule | None:
        """The schedule of the surviving chain, once it has ended; None before its first forward."""
        return Schedule(self.levels, self.substeps) if self.substeps else None

    @property
    def trace(self) -> Hashable:
        """See `trace_of`."""
        return trace_of(self.path, self.substeps)


def trace_of(path: tuple[int, ...], substeps: tuple[int, ...]) -> Hashable:
    """Return the path of a chain, together with its substeps if one of them is more than 1."""
    return path if max(substeps, default=1) == 1 else (path, substeps)


Policy = Callable[[Sequence[Refinement]], Sequence[Any]]


@runtime_checkable
class Decider(Protocol):
    """A policy whose actions have another meaning than the paper's, or that needs to see the process.

    Attributes:
        decisions: the meaning of the actions; the process has the same decisions, see `wanted_by`.
        keep_estimates: whether the policy observes the last estimate.
    """

    decisions: Decisions
    keep_estimates: bool

    def on(self, process: "RefinementProcess") -> Policy:
        """Return the policy for one run of a process."""
        ...


def wanted_by(policy: Any) -> dict[str, Any]:
    """Return the arguments of `RefinementProcess` that a policy needs."""
    if not isinstance(policy, Decider):
        return {}
    return {"decisions": policy.decisions, "keep_estimates": policy.keep_estimates}


class Fixed:
    """The same schedule for every picture, a choice with one possibility.

    Args:
        schedule: the schedule.
        plan: the steps of the episodes; the schedule begins at the first of them.

    Raises:
        ConfigError: the schedule does not fit the plan, or the plan is not one of jumps.
    """

    keep_estimates = False

    def __init__(self, schedule: Schedule, plan: Plan) -> None:
        self.decisions: Decisions = Choice(plan, [schedule])

    def on(self, process: "RefinementProcess") -> Policy:
        """Return the policy for one run of a process."""
        return lambda states: [0] * len(states)


def fixed_start(start: int) -> Policy:
    """Return the policy that skips down to diffusion step `start` and denoises from there on."""
    return lambda states: [SKIP if state.t > start else DENOISE for state in states]


class RefinementProcess:
    """The fine stage for any number of pictures of one size, which may be at different diffusion steps.

    Args:
        unet: the denoiser.
        plan: the steps of the episodes, their samplers, and the meaning of SKIP.
        memo: store for transitions; None: compute each anew.
        batch_size: largest batch of one UNet forward.
        device: device of the net.
        decisions: the meaning of the actions; None: the paper's, whether to perform a diffusion step.
        keep_estimates: whether states hold the last estimate of x_0; the sampler must not add noise.

    Raises:
        ConfigError: the batch size is below 1, or the sampler or the network cannot run the decisions.
    """

    def __init__(
        self,
        unet: Denoiser,
        plan: Plan,
        memo: Memo | None = None,
        batch_size: int = 32,
        device: str = "cpu",
        decisions: Decisions | None = None,
        keep_estimates: bool = False,
    ) -> None:
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
        self.unet = unet
        self.plan = plan
        self.memo = memo if memo is not None else Memo(0)
        self.batch_size = batch_size
        self.device = device
        self.channels = geometry(unet)[0]
        self.alphas_cumprod = unet.schedule(plan.length)
        # the levels of a discrete network must be those from which the fine stage continues
        discrete = unet.alphas_cumprod is not None
        self.coarse_alphas_cumprod = self.alphas_cumprod[:: plan.N] if discrete else unet.schedule(plan.S)
        fine_eta = coarse_eta(plan.fine_sampler)
        # DPM-Solver++(2M) does not add noise, and uses the estimate of the previous step
        self.looks_back = fine_eta is None
        self.fine_eta = 0.0 if fine_eta is None else fine_eta
        self.keep_estimates = keep_estimates
        if keep_estimates and self.fine_eta > 0:
            raise ConfigError(f"estimates need a sampler that adds no noise, such as ddim, got {plan.fine_sampler}")
        self.decisions = Skip(plan) if decisions is None else decisions
        for schedule in self.decisions.schedules:
            self.check(schedule)
        self._check_substeps(self.decisions.most, f"decisions {self.decisions.kind}")

    @property
    def coarse_forwards(self) -> int:
        """Network forwards of the coarse stage, including those of guidance."""
        return self.plan.coarse_forwards * self.unet.forwards_per_call

    @torch.inference_mode()
    def begin(
        self, lr_up: Sequence[Tensor], noise_seeds: Sequence[int], keys: Sequence[Hashable | None] | None = None
    ) -> list[Refinement]:
        """Run the coarse stage (CSA) of several pictures, with S - 1 forwards each.

        With S = 1 the coarse latent is the noise at which the full chain begins.

        Args:
            lr_up: conditions, each (3, H, W) in [-1, 1].
            noise_seeds: noise seed of each picture.
            keys: identities for the memo; None: nothing is remembered.
        """
        keys = keys or [None] * len(lr_up)
        found = [self._recall(key, seed, ()) for key, seed in zip(keys, noise_seeds, strict=True)]
        missing = [i for i, latent in enumerate(found) if latent is None]
        for chunk in self._chunks(missing):
            condition = _batch([lr_up[i] for i in chunk])
            shape = self.channels, *condition.shape[-2:]
            noise = KeyedNoise([noise_seeds[i] for i in chunk], shape, self.device)
            if self.plan.coarse_forwards:
                sampler = coarse_sampler(self.plan.coarse_sampler)
                latents = sampler(self.unet, self.coarse_alphas_cumprod, condition, noise)
            else:
                latents = noise(Stage.INITIAL, self.plan.length)
            for i, latent in zip(chunk, latents, strict=True):
                found[i] = latent
                self._remember(keys[i], noise_seeds[i], (), latent)
        coarse = [latent for latent in found if latent is not None]
        first = self.plan.first
        return [
            Refinement(condition, seed, key, latent, latent, first, first, self.coarse_forwards)
            for condition, seed, key, latent in zip(lr_up, noise_seeds, keys, coarse, strict=True)
        ]

    def step(self, states: Sequence[Refinement], actions: Sequence[Any]) -> list[Any]:
        """Perform one decision for each picture; the states are changed in place.

        `decisions` turns actions into jumps. In the paper's decisions, at the steps t ≥ 2, DENOISE runs the network at
        the state's level and goes to t - 1; SKIP goes back to the coarse latent ("restart", Eq. 14), or does not change
        latent and level ("jump").

        Returns:
            The actions as episodes record them, see `Decisions.as_action`.
        """
        assert all(not self.decided(state) for state in states), "nothing is left to decide; finish() does the rest"
        if len(actions) != len(states):
            raise InvalidActionError(
                f"a policy must return one action for each picture, {len(states)} in all, got {len(actions)}"
            )
        actions = [self.decisions.as_action(action) for action in actions]
        jumps = [self.decisions.jumps(state, action) for state, action in zip(states, actions, strict=True)]
        for place in range(max(map(len, jumps), default=0)):
            self.jump([(s, *own[place]) for s, own in zip(states, jumps, strict=True) if place < len(own)])
        if not self.decisions.stepwise:
            for state in states:
                state.t = state.level
            return actions
        for state, action in zip(states, actions, strict=True):
            state.t -= 1
            if self.plan.skip_mode == "restart":
                if action == SKIP:  # Eq. 14
                    state.latent, state.path, state.substeps = state.coarse_latent, (), ()
                state.level = state.t
        return actions

    def decided(self, state: Refinement) -> bool:
        """Return whether a picture does not need further decisions, so that `finish` can end it."""
        return state.t <= (1 if self.decisions.stepwise else 0)

    @torch.no_grad()
    def finish(self, states: Sequence[Refinement]) -> list[Tensor]:
        """Perform the step to the clean latent, which is never skipped; return the pictures, (3, H, W) in [-1, 1]."""
        assert all(state.t <= 1 for state in states), "decisions are left"
        self.jump([(state, 0, 1) for state in states if state.t == 1])
        for state in states:
            state.t = 0
        return [self.unet.decode(state.latent[None], state.lr_up[None])[0] for state in states]

    @torch.inference_mode()
    def estimate(self, state: Refinement) -> Tensor:
        """Return the picture (3, H, W) that the net estimates from the latent, by one forward that is not counted."""
        latent, lr_up = state.latent[None], state.lr_up[None]
        x0 = estimate(self.unet, self.alphas_cumprod, state.level, latent, lr_up)[0] if state.t > 0 else latent
        return self.unet.decode(x0, lr_up)[0]

    def latent_bound(self) -> float:
        """Return the largest possible absolute value of a latent; infinite if the estimates of x_0 are not bounded.

        x_0 is clamped and keyed noise is bounded, so each reverse step, a weighted sum of x_0, latent and noise,
        determines a bound for the next latent from that of the last. The extrapolation of DPM-Solver++ subtracts a part
        of an estimate that the latent already contains, so the weights of each estimate are added up before their signs
        are dropped.
        """
        if self.unet.x0_bound == math.inf:
            return math.inf
        bounds = np.full(self.plan.first + 1, self._coarse_bound())
        first = self.plan.first
        if self.plan.skip_mode == "restart":  # any step may follow the coarse latent, or the previous step
            for t in range(first, 0, -1):
                bounds[t - 1] = max(bounds[t], self._after(self.alphas_cumprod, t, t - 1, self.fine_eta, bounds[t]))
            return float(bounds[0])
        for to in range(first - 1, -1, -1):  # from any level above
            above = range(to + 1, first + 1)
            bounds[to] = max(self._after_jump(t, to, bounds[t]) for t in above)
        return float(bounds.max())

    def _after_jump(self, t: int, to: int, bound: float) -> float:
        """Return the bound of the latent after a jump from t, where the bound is `bound`."""
        after = self._after(self.alphas_cumprod, t, to, self.fine_eta, bound)
        if not self.looks_back or t == self.plan.first:
            return after
        # the nearer the previous step, the farther the extrapolation: x_0 + share·(x_0 - before)
        share = float(extrapolation(self.alphas_cumprod, t + 1, t, to))
        of_x0, _, _ = reverse_weights(self.alphas_cumprod, t, self.fine_eta, to)
        return after + 2 * share * float(abs(of_x0)) * self.unet.x0_bound

    def _after(self, alphas_cumprod: FloatArray, t: int, to: int, eta: float, bound: float) -> float:
        """Return the bound of the latent after a step from t, where the bound is `bound`."""
        of_x0, of_x_t, sigma = reverse_weights(alphas_cumprod, t, eta, to)
        return float(abs(of_x0) * self.unet.x0_bound + of_x_t * bound + sigma * MAX_NOISE)

    def _coarse_bound(self) -> float:
        S, eta = self.plan.S, coarse_eta(self.plan.coarse_sampler)
        if eta is None:
            # the initial noise and the estimate of each step as unit vectors: the chain returns their weights
            units = np.eye(S + 1)
            weights = dpmsolver_chain(self.coarse_alphas_cumprod, units[0], lambda j, _: units[j])
            return float(np.abs(weights) @ np.array([MAX_NOISE] + [self.unet.x0_bound] * S))
        bound = MAX_NOISE
        for j in range(S, 1, -1):
            bound = self._after(self.coarse_alphas_cumprod, j, j - 1, eta, bound)
        return bound

    def run(self, states: Sequence[Refinement], policy: Policy | Decider) -> list[Tensor]:
        """Refine pictures from their first decision to the end, following a policy.

        Raises:
            ConfigError: see `bound`.
        """
        decide = self.bound(policy)
        while left := [state for state in states if not self.decided(state)]:
            self.step(left, decide(left))
        return self.finish(states)

    def bound(self, policy: Policy | Decider) -> Policy:
        """Return the policy for this process.

        Raises:
            ConfigError: the actions of the policy have another meaning than those of the process.
        """
        if not isinstance(policy, Decider):
            return policy
        decide = policy.on(self)
        if policy.decisions != self.decisions:
            own, others = (f"{each.kind}, {each.describe()}" for each in (self.decisions, policy.decisions))
            raise ConfigError(
                f"the process has the decisions {own}, but those of the policy are {others}; make the process with "
                "wanted_by(policy), or the task with the decisions of the policy"
            )
        return decide

    def check(self, schedule: Schedule) -> None:
        """Raise ConfigError unless the process can run a schedule."""
        if self.plan.skip_mode != "jump":
            raise ConfigError(f"schedules of levels need skip_mode jump, got {self.plan.skip_mode}")
        check_levels(schedule.levels, self.plan.first)
        Plan.of_schedule(schedule, self.plan.fine_sampler)
        self._check_substeps(max(schedule.substeps), str(schedule))

    def _check_substeps(self, most: int, place: str) -> None:
        """Raise ConfigError if the network has learnt fewer substeps."""
        if most > self.unet.substeps:
            known = f"at most {self.unet.substeps} substeps" if self.unet.substeps > 1 else "no substeps"
            raise ConfigError(
                f"the network has learnt {known}, got {most} in {place}; take fewer, or train them with "
                "`skipdiff train-substeps`"
            )

    def run_all_starts(self, states: Sequence[Refinement]) -> list[list[tuple[Refinement, Tensor]]]:
        """Return all results of "restart", one for each start from 1 to the plan's first step; each chain runs once.

        Args:
            states: pictures at their first decision; they are not changed.

        Returns:
            For each picture, at index `start - 1`, the finished state and its picture (3, H, W).

        Raises:
            ConfigError: the plan is not one of restarts.
        """
        if self.plan.skip_mode != "restart":
            raise ConfigError(
                f"starts need skip_mode restart, got {self.plan.skip_mode}; run_all_schedules runs any schedule"
            )
        starts = range(1, self.plan.first + 1)
        chains = [[replace(state) for start in starts] for state in states]
        flat = [state for chain in chains for state in chain]
        first = [start for _ in states for start in starts]
        for t in range(self.plan.first, 1, -1):
            self.step(flat, [SKIP if t > start else DENOISE for start in first])
        results = list(zip(flat, self.finish(flat), strict=True))
        return [results[i : i + len(starts)] for i in range(0, len(results), len(starts))]

    def run_all_schedules(
        self, states: Sequence[Refinement], schedules: Sequence[Schedule]
    ) -> list[list[tuple[Refinement, Tensor]]]:
        """Run every picture by every schedule; common beginnings of schedules run once.

        Args:
            states: pictures at their first decision; they are not changed.
            schedules: schedules, from the plan's first step on.

        Returns:
            For each picture and schedule, the finished state and its picture (3, H, W).

        Raises:
            ConfigError: the plan is not one of jumps, or a schedule does not fit it.
        """
        for schedule in schedules:
            self.check(schedule)
        wanted = [tuple(schedule.jumps()) for schedule in schedules]
        # picture and jumps so far → its state
        known: dict[tuple[int, tuple[tuple[int, int], ...]], Refinement] = {
            (i, ()): replace(state) for i, state in enumerate(states)
        }
        for place in range(max(map(len, wanted), default=0)):
            begun = sorted({jumps[: place + 1] for jumps in wanted if len(jumps) > place})
            fresh = {(i, jumps): replace(known[i, jumps[:-1]]) for i in range(len(states)) for jumps in begun}
            self.jump([(state, *jumps[-1]) for (_, jumps), state in fresh.items()])
            for (_, jumps), state in fresh.items():
                state.t = jumps[-1][0]
            known |= fresh
        ended = {key: state for key, state in known.items() if state.t == 0}
        results = dict(zip(ended, self.finish(list(ended.values())), strict=True))
        return [[(ended[i, jumps], results[i, jumps]) for jumps in wanted] for i in range(len(states))]

    def jump(self, jumps: Sequence[tuple[Refinement, int, int]]) -> None:
        """Run one forward for each state, in batches; the network does not run for remembered transitions.

        Args:
            jumps: for each forward the state, the next level, which is below the state's, and the substeps.
        """
        missing = []
        for state, to, substeps in jumps:
            state.nfe += self.unet.forwards_per_call
            path, counts = (*(state.path or (state.level,)), to), (*state.substeps, substeps)
            known = self._recall(state.key, state.noise_seed, trace_of(path, counts))
            if known is None:
                missing.append((state, replace(state, path=path, substeps=counts)))
            else:
                self._arrive(state, path, counts, known)
        if missing:
            self._run(missing)

    @torch.inference_mode()
    def _run(self, missing: Sequence[tuple[Refinement, Refinement]]) -> None:
        """Run one forward for each state, in batches.

        Args:
            missing: for each forward the state, and a copy of it that has the path and the substeps after the forward.
        """

        @lru_cache(maxsize=1)  # the tiles of a picture are consecutive, and use parts of one noise
        def noise_of(seed: int, t: int, shape: tuple[int, ...]) -> Tensor:
            return KeyedNoise([seed], shape, self.device)(Stage.FINE, t)[0]

        for chunk in self._chunks(missing):
            advance = self._advance_looking_back if self.looks_back else self._advance
            results = advance([ahead for _, ahead in chunk], noise_of)
            for (state, ahead), result in zip(chunk, results, strict=True):
                self._arrive(state, ahead.path, ahead.substeps, result)
                self._remember(state.key, state.noise_seed, state.trace, result)

    def _arrive(self, state: Refinement, path: tuple[int, ...], substeps: tuple[int, ...], result: Tensor) -> None:
        """Update a state after a forward; `result` is the latent, then the estimate if the sampler looks back."""
        if self.looks_back:
            state.before = result[self.channels :]
        elif self.keep_estimates:
            of_x0, of_x_t, _ = reverse_weights(self.alphas_cumprod, state.level, 0.0, path[-1])
            # level 0 of a discrete network may be its level 1
            moved = abs(of_x0) > 1e-6
            state.before = (result - float(of_x_t) * state.latent) / float(of_x0) if moved else result
        latent = result[: self.channels]
        state.latent, state.path, state.substeps, state.level = latent, path, substeps, path[-1]

    def _advance(self, states: Sequence[Refinement], noise_of: NoiseOf) -> Tensor:
        """Return the latents (B, 3, H, W) after one forward of each state, from its level to the end of its path."""
        latents = _batch([s.latent for s in states])
        to = np.array([s.path[-1] for s in states])
        noise = None
        if self.fine_eta > 0 and to.max() > 0:  # the step of the full chain that arrives at t - 1 is D_t
            noise = _batch([state.fine_noise(noise_of, state.path[-1] + 1) for state in states])
        return p_sample(
            self.unet,
            self.alphas_cumprod,
            _one_if_same(np.array([s.level for s in states])),
            latents,
            _batch([s.lr_up for s in states]),
            noise,
            self.fine_eta,
            _one_if_same(to),
            _one_if_same(np.array([s.substeps[-1] for s in states])),
        )

    def _advance_looking_back(self, states: Sequence[Refinement], noise_of: NoiseOf) -> Tensor:
        """Return the latents after one forward of DPM-Solver++(2M), and the estimates of x_0; (B, 2·C, H, W)."""
        latents = _batch([s.latent for s in states])
        levels = np.array([s.level for s in states])
        arrivals = np.array([s.path[-1] for s in states])
        lr_up = _batch([s.lr_up for s in states])
        x0, _ = estimate(self.unet, self.alphas_cumprod, _one_if_same(levels), latents, lr_up)
        shares = np.zeros(len(states))
        begun = [i for i, s in enumerate(states) if s.before is not None]  # the others do not have an estimate yet
        if begun:
            earlier = np.array([states[i].path[-3] for i in begun])
            shares[begun] = extrapolation(self.alphas_cumprod, earlier, levels[begun], arrivals[begun])
        before = _batch([own if s.before is None else s.before for s, own in zip(states, x0, strict=True)])
        of_x0, of_x_t, _ = reverse_weights(self.alphas_cumprod, levels, 0.0, arrivals)
        share, of_estimate, of_latent = (coefficient(each, x0) for each in (shares, of_x0, of_x_t))
        moved = (x0 + share * (x0 - before)) * of_estimate + latents * of_latent
        return torch.cat([moved, x0], dim=1)

    def _chunks(self, items: Sequence[T]) -> list[Sequence[T]]:
        return [items[i : i + self.batch_size] for i in range(0, len(items), self.batch_size)]

    def _recall(self, key: Hashable | None, noise_seed: int, trace: Hashable) -> Tensor | None:
        return None if key is None else self.memo.get((key, noise_seed, trace))

    def _remember(self, key: Hashable | None, noise_seed: int, trace: Hashable, latent: Tensor) -> None:
        if key is not None:
            self.memo.put((key, noise_seed, trace), latent)


def _one_if_same(steps: NDArray[np.integer]) -> int | NDArray[np.integer]:
    """Return one number if all are equal, which avoids a tensor of coefficients."""
    return int(steps[0]) if (steps == steps[0]).all() else steps


def _batch(tensors: Sequence[Tensor]) -> Tensor:
    """Stack tensors; a single one is not copied, since it may be large."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(list(tensors))
