"""Observations of episodes, and their space."""

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor

from ddpm.nets.denoiser import Denoiser
from ddpm.util.errors import ConfigError
from skipdiff_env.config import DTYPES
from skipdiff_env.features import FEATURES, SMALLEST_SIDE, features, features_space
from skipdiff_env.memo import Memo
from skipdiff_env.plan import Plan
from skipdiff_env.refinement import Refinement

# One observation, or a batch of them: an array of latents or of features, or a dictionary of arrays.
Observation = Any
# Bound of observed latents whose estimates do not have one, some 20 standard deviations: larger values are clipped.
LATENT_BOUND = 20


def one_observation(batch: Observation, i: int) -> Observation:
    """Return observation i of a batch."""
    return {name: part[i] for name, part in batch.items()} if isinstance(batch, dict) else batch[i]


def observes_estimates(kind: str, whole: bool) -> bool:
    """Return whether the last estimate of x_0 is part of an observation.

    Args:
        kind: one of `skipdiff_env.config.OBSERVATIONS`.
        whole: whether one decision is about a whole schedule.
    """
    return kind == "features" and not whole


class Observer:
    """The observations of the states of a process, for the environments and the agents' policies.

    Args:
        kind: one of `skipdiff_env.config.OBSERVATIONS`.
        plan: the plan of the process.
        prices: lowest and highest price, if the price of a forward is part of the observation; else None.
        dtype: type of latents and conditions, one of `skipdiff_env.config.DTYPES`.
        whole: whether one decision is about a whole schedule; the features then leave out the level and the estimate.
        unet: the network, which decodes estimates into pictures; None: there are no estimates.
        memo: store for features; None: they are not remembered.
        latent_bound: largest possible absolute value of a latent; infinite if there is no bound.
        clips: whether latents are clipped to the bound; they need not be if the network never exceeds it.
    """

    def __init__(
        self,
        kind: str,
        plan: Plan,
        prices: tuple[float, float] | None,
        dtype: str = "float32",
        whole: bool = False,
        unet: Denoiser | None = None,
        memo: Memo | None = None,
        latent_bound: float = math.inf,
        clips: bool = True,
    ) -> None:
        self.kind, self.plan, self.prices, self.dtype, self.whole = kind, plan, prices, dtype, whole
        self.unet, self.memo = unet, memo if memo is not None else Memo(0)
        self.clips = clips
        # a whole number, so that rounding to float16 cannot leave the bounds
        self.bound = LATENT_BOUND if math.isinf(latent_bound) else math.ceil(latent_bound)

    def space(self, latent_shape: tuple[int, int, int]) -> spaces.Space[Any]:
        """Return the space of the observations of latents (C, H, W).

        Raises:
            ConfigError: the latents are too small for features.
        """
        if self.kind == "features":
            if min(latent_shape[1:]) < SMALLEST_SIDE:
                raise ConfigError(
                    f"features need a condition of at least {SMALLEST_SIDE} pixels a side, got {latent_shape[1]}; "
                    "raise image_size"
                )
            return features_space(self.prices, self.whole)
        dtype: Any = np.dtype(self.dtype).type
        shape = (3, *latent_shape[1:])
        latent = spaces.Box(-self.bound, self.bound, latent_shape, dtype)
        if self.kind == "latent":
            return latent
        share = spaces.Box(0, 1, (1,), np.float32)
        parts: dict[str, spaces.Space[Any]] = {
            "latent": latent, "condition": spaces.Box(-1, 1, shape, dtype), "step": share, "level": share,
        }  # fmt: skip
        if self.prices is not None:
            parts["price"] = spaces.Box(0, np.float32(self.prices[1]), (1,), np.float32)
        return spaces.Dict(parts)

    def __call__(self, states: Sequence[Refinement], prices: Sequence[float]) -> Observation:
        """Return the observations of states, as copies.

        Args:
            states: the states, all of one size.
            prices: price of a forward for each state.

        Returns:
            Latents (B, C, H, W), features (B, F), or a dictionary of arrays (B, …).
        """
        if self.kind == "features":
            return np.stack([self._features(state, price) for state, price in zip(states, prices, strict=True)])

        latents = self._pictures([state.latent for state in states], self.bound if self.clips else None)
        if self.kind == "latent":
            return latents
        length = self.plan.length
        parts = {
            "latent": latents,
            "condition": self._pictures([state.lr_up for state in states], 1)[:, :3],
            "step": _column([state.t / length for state in states]),
            "level": _column([state.level / length for state in states]),
        }
        if self.prices is not None:
            parts["price"] = _column(prices)
        return parts

    def _pictures(self, tensors: Sequence[Tensor], bound: float | None) -> NDArray[Any]:
        """Return tensors (C, H, W) as an array (B, C, H, W), clipped to a bound."""
        batch = torch.stack(list(tensors))
        batch = batch if bound is None else batch.clamp_(-bound, bound)
        return batch.to(DTYPES[self.dtype]).cpu().numpy()

    def _features(self, state: Refinement, price: float) -> NDArray[np.float32]:
        """Return the vector of features of a state."""
        parts: list[Any] = [self._remembered(state, None)]
        if not self.whole:
            parts.append([state.level / self.plan.length])
        if self.prices is not None:
            parts.append([price])
        if not self.whole:
            parts.append(np.zeros(FEATURES) if state.before is None else self._remembered(state, state.before))
        return np.concatenate(parts).astype(np.float32)

    def _remembered(self, state: Refinement, estimate: Tensor | None) -> NDArray[np.float32]:
        """Return the features of the last estimate of a state, or with None of its condition.

        They are remembered if the state has a key.
        """
        place = () if estimate is None else (state.noise_seed, state.trace)
        memo, key = self.memo, ("features", state.key, *place)
        known = None if state.key is None else memo.get(key)
        if known is None:
            picture = state.lr_up
            if estimate is not None:
                assert self.unet is not None, "estimates come from a network"
                with torch.no_grad():
                    picture = self.unet.decode(estimate[None], picture[None])[0]
            known = torch.from_numpy(features(picture.cpu().numpy()))
            if state.key is not None:
                memo.put(key, known)
        return known.cpu().numpy()


def _column(values: Sequence[float]) -> NDArray[np.float32]:
    return np.array(values, dtype=np.float32)[:, None]
