"""The fine skip refinement as a decision process, Eq. 13-15: the one place where the rule stands.

The scalar environment, the batched one, the upscaler and the table of all starts run through `RefinementProcess`.
"""

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Protocol, TypeVar

import numpy as np
import torch
from torch import Tensor

from ddpm.errors import ConfigError
from ddpm.noise import MAX_NOISE, KeyedNoise, Stage
from ddpm.sampling import (
    Denoiser,
    coarse_eta,
    coarse_sampler,
    dpmsolver_chain,
    p_sample,
    predict_x0,
    reverse_weights,
    to_image,
)
from ddpm.schedule import FloatArray, check_steps, cosine_alphas_cumprod
from skipdiff_env.memo import Memo

T = TypeVar("T")
SKIP_MODES = ("restart", "hold")


class CoarseDenoiser(Denoiser, Protocol):
    """A net that also names the sampler of its coarse stage."""

    coarse: str


class Action(IntEnum):
    """What to do at a diffusion step."""

    DENOISE = 0
    SKIP = 1


@dataclass
class Refinement:
    """One picture on its way from the coarse latent to the result.

    Attributes:
        lr_up: condition, (3, H, W) in [-1, 1].
        noise_seed: key of all noise of this picture.
        key: identity of the picture for the memo; None is never memoised.
        coarse: the coarse latent x_S1, (3, H, W).
        latent: the current latent u, (3, H, W).
        t: the diffusion step that is decided (or, at 1, performed) next; 0 at the end.
        history: diffusion steps that were performed since the coarse latent; with the picture and the seed they
            determine `latent`.
        nfe: UNet forwards of this picture so far, coarse and fine, thrown away or not.
    """

    lr_up: Tensor
    noise_seed: int
    key: Hashable | None
    coarse: Tensor
    latent: Tensor
    t: int
    nfe: int
    history: tuple[int, ...] = ()

    @property
    def start(self) -> int:
        """The diffusion step at which the surviving chain began (or will begin, if nothing survives yet)."""
        return self.history[0] if self.history else self.t


Policy = Callable[[Sequence[Refinement]], Sequence[int]]


def fixed_start(start: int) -> Policy:
    """The policy that skips until diffusion step `start` and denoises from there on."""
    return lambda states: [Action.SKIP if state.t > start else Action.DENOISE for state in states]


class RefinementProcess:
    """Eq. 13-15 for any number of pictures of one size, each at a diffusion step of its own.

    Args:
        unet: the net.
        diffusion_steps: T.
        steps: (S, N): coarse steps, and diffusion steps that each of them spans; S · N = T.
        skip_mode: what SKIP does to the latent u: "restart", u ← x_S1 (Eq. 14), or "hold", u stays.
        memo: where transitions are remembered; None computes each anew.
        batch_size: largest batch of one UNet forward.
        device: where the net is.
        coarse: what runs the coarse stage: "ddpm" (Eq. 8-12), or without noise but the initial, "ddim" (eta = 0) or
            "dpmsolver++" (DPM-Solver++(2M)); "ddim:ETA" adds the share ETA of the noise of "ddpm"; None: what the net says.
        fine_steps: the diffusion step that is decided first, N … T; None: N. The coarse latent stands at the noise level of
            step N all the same (the paper's Table 4, case 4: CSA, and decisions on all T steps).

    Raises:
        ConfigError: S · N differs from T, the skip mode or the coarse sampler is unknown, or `fine_steps` lies outside
            N … T.
    """

    def __init__(
        self,
        unet: CoarseDenoiser,
        diffusion_steps: int,
        steps: tuple[int, int],
        skip_mode: str = "restart",
        memo: Memo | None = None,
        batch_size: int = 32,
        device: str = "cpu",
        coarse: str | None = None,
        fine_steps: int | None = None,
    ) -> None:
        check_steps(diffusion_steps, *steps)
        if skip_mode not in SKIP_MODES:
            raise ConfigError(f"skip_mode must be one of {', '.join(SKIP_MODES)}, got {skip_mode!r}")
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
        self.unet = unet
        self.S, self.N = steps
        self.fine_steps = self.N if fine_steps is None else fine_steps
        if not self.N <= self.fine_steps <= diffusion_steps:
            raise ConfigError(
                f"fine_steps must lie in {self.N} … {diffusion_steps}, from N of steps S,N to all of the checkpoint's "
                f"diffusion steps, got {fine_steps}"
            )
        self.skip_mode = skip_mode
        self.coarse = unet.coarse if coarse is None else coarse
        self._sample_coarse = coarse_sampler(self.coarse)
        self.memo = memo if memo is not None else Memo(0)
        self.batch_size = batch_size
        self.device = device
        self.alphas_cumprod = cosine_alphas_cumprod(diffusion_steps)
        self.coarse_alphas_cumprod = cosine_alphas_cumprod(self.S)

    @torch.inference_mode()
    def begin(
        self, lr_up: Sequence[Tensor], noise_seeds: Sequence[int], keys: Sequence[Hashable | None] | None = None
    ) -> list[Refinement]:
        """The coarse stage (CSA) of several pictures; S - 1 forwards each.

        Args:
            lr_up: conditions, each (3, H, W) in [-1, 1].
            noise_seeds: one for each.
            keys: identities for the memo.
        """
        keys = keys or [None] * len(lr_up)
        found = [self._recall(key, seed, ()) for key, seed in zip(keys, noise_seeds, strict=True)]
        missing = [i for i, latent in enumerate(found) if latent is None]
        for chunk in self._chunks(missing):
            condition = _batch([lr_up[i] for i in chunk])
            noise = KeyedNoise([noise_seeds[i] for i in chunk], condition.shape[1:], self.device)
            latents = self._sample_coarse(self.unet, self.coarse_alphas_cumprod, condition, noise)
            for i, latent in zip(chunk, latents, strict=True):
                found[i] = latent
                self._remember(keys[i], noise_seeds[i], (), latent)
        coarse = [latent for latent in found if latent is not None]
        return [
            Refinement(condition, seed, key, latent, latent, self.fine_steps, self.S - 1)
            for condition, seed, key, latent in zip(lr_up, noise_seeds, keys, coarse, strict=True)
        ]

    def step(self, states: Sequence[Refinement], actions: Sequence[int]) -> None:
        """One decision for each picture, at its step t ≥ 2; changes the states in place.

        DENOISE: u ← D_t(u). SKIP: u ← x_S1 ("restart", Eq. 14) or u ("hold").
        """
        assert all(state.t >= 2 for state in states), "the step t = 1 is not decided, it is performed by finish()"
        self._denoise([s for s, action in zip(states, actions, strict=True) if action == Action.DENOISE])
        for state, action in zip(states, actions, strict=True):
            if action == Action.SKIP and self.skip_mode == "restart":
                state.latent, state.history = state.coarse, ()
            state.t -= 1

    def finish(self, states: Sequence[Refinement]) -> list[Tensor]:
        """Performs the step t = 1, which is never skipped, and gives the pictures, each (3, H, W) in [-1, 1]."""
        assert all(state.t == 1 for state in states), "decisions are left"
        self._denoise(states)
        for state in states:
            state.t = 0
        return [to_image(self.unet, state.latent[None], state.lr_up[None])[0] for state in states]

    @torch.inference_mode()
    def estimate(self, state: Refinement) -> Tensor:
        """The picture (3, H, W) that the net sees in the latent as it stands; one forward, which is not counted."""
        latent, lr_up = state.latent[None], state.lr_up[None]
        x0 = predict_x0(self.unet, self.alphas_cumprod, state.t, latent, lr_up) if state.t > 0 else latent
        return to_image(self.unet, x0, lr_up)[0]

    def latent_bound(self) -> float:
        """A number that no value of a latent ever exceeds.

        x_0 is clamped and keyed noise is bounded, so each reverse step, a weighted sum of x_0, latent and noise, gives
        a bound for the next latent from that of the last. Where DPM-Solver++ extrapolates, it takes off some of an
        estimate that the latent already holds, so there each estimate's weights are added up before their signs are dropped.
        """
        x0 = 1.0 if self.unet.target == "image" else 2 * self.unet.residual_scale
        bound = MAX_NOISE

        def after(alphas_cumprod: FloatArray, t: int, eta: float = 1.0) -> float:
            of_x0, of_x_t, sigma = reverse_weights(alphas_cumprod, t, eta)
            return float(of_x0 * x0 + of_x_t * bound + sigma * MAX_NOISE)

        eta = coarse_eta(self.coarse)
        if eta is None:
            # the initial noise and the estimate of each step as unit vectors: the chain gives their weights
            units = np.eye(self.S + 1)
            weights = dpmsolver_chain(self.coarse_alphas_cumprod, units[0], lambda j, _: units[j])
            bound = float(np.abs(weights) @ np.array([MAX_NOISE] + [x0] * self.S))
        else:
            for j in range(self.S, 1, -1):
                bound = after(self.coarse_alphas_cumprod, j, eta)
        for t in range(self.fine_steps, 0, -1):
            bound = max(bound, after(self.alphas_cumprod, t))  # any step may be skipped
        return bound

    def run(self, states: Sequence[Refinement], policy: Policy) -> list[Tensor]:
        """Refines pictures at their first decision to the end, as the policy decides."""
        for _ in range(self.fine_steps - 1):
            self.step(states, policy(states))
        return self.finish(states)

    def run_all_starts(self, states: Sequence[Refinement]) -> list[list[tuple[Refinement, Tensor]]]:
        """All results that "restart" can give, one for each of the N starts (or `fine_steps`), each chain run once.

        Args:
            states: pictures at their first decision; they are left as they are.

        Returns:
            For each picture, at index `start - 1`, the finished state and its picture (3, H, W).
        """
        starts = range(1, self.fine_steps + 1)
        chains = [[replace(state) for start in starts] for state in states]
        flat = [state for chain in chains for state in chain]
        first = [start for _ in states for start in starts]
        for t in range(self.fine_steps, 1, -1):
            self.step(flat, [Action.SKIP if t > start else Action.DENOISE for start in first])
        results = list(zip(flat, self.finish(flat), strict=True))
        return [results[i : i + len(starts)] for i in range(0, len(results), len(starts))]

    @torch.inference_mode()
    def _denoise(self, states: Sequence[Refinement]) -> None:
        """U ← D_t(u), in batches; remembered transitions run no net."""
        missing = []
        for state in states:
            state.nfe += 1
            history = (*state.history, state.t)
            known = self._recall(state.key, state.noise_seed, history)
            if known is None:
                missing.append(state)
            else:
                state.latent, state.history = known, history
        for chunk in self._chunks(missing):
            latents = _batch([s.latent for s in chunk])
            noise = KeyedNoise([s.noise_seed for s in chunk], latents.shape[1:], self.device)
            steps = np.array([s.t for s in chunk])
            t = int(steps[0]) if (steps == steps[0]).all() else steps
            fine = noise(Stage.FINE, t) if steps.max() > 1 else None
            latents = p_sample(self.unet, self.alphas_cumprod, t, latents, _batch([s.lr_up for s in chunk]), fine)
            for state, latent in zip(chunk, latents, strict=True):
                state.latent, state.history = latent, (*state.history, state.t)
                self._remember(state.key, state.noise_seed, state.history, latent)

    def _chunks(self, items: Sequence[T]) -> list[Sequence[T]]:
        return [items[i : i + self.batch_size] for i in range(0, len(items), self.batch_size)]

    def _recall(self, key: Hashable | None, noise_seed: int, history: tuple[int, ...]) -> Tensor | None:
        return None if key is None else self.memo.get((key, noise_seed, history))

    def _remember(self, key: Hashable | None, noise_seed: int, history: tuple[int, ...], latent: Tensor) -> None:
        if key is not None:
            self.memo.put((key, noise_seed, history), latent)


def _batch(tensors: Sequence[Tensor]) -> Tensor:
    """Stacks; a single one is not copied, since it may be large."""
    return tensors[0][None] if len(tensors) == 1 else torch.stack(list(tensors))
