"""Samplers: the reverse step, the full chain, the coarse approximation and the fine refinement.

Each is a pure function. Latents are float32, (B, 3, H, W); `lr_up` is the condition in [-1, 1]; `noise(stage, t)` gives
standard normal noise of the latents' shape (see `ddpm.noise.KeyedNoise`). What a latent stands for (the picture or
the residual) is the net's `target`; `to_image` brings it back to a picture.
"""

from collections.abc import Callable, Mapping
from functools import partial
from typing import Protocol, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.noise import Stage
from ddpm.schedule import FloatArray

Noise = Callable[[Stage, int | NDArray[np.integer]], Tensor]
Step = int | NDArray[np.integer]
# A latent, or the weights of what it is made of.
X = TypeVar("X", Tensor, FloatArray)
# One noise level, or one for each member.
Level = Tensor | float


class Denoiser(Protocol):
    """What a sampler needs of a net: `ddpm.unet.UNet`, or a tiled one."""

    prediction: str
    target: str
    residual_scale: float

    def __call__(self, lr_up: Tensor, x_t: Tensor, noise_level: Tensor, /) -> Tensor: ...


def to_latent(unet: Denoiser, hr: Tensor, lr_up: Tensor) -> Tensor:
    """The clean latent x_0 of a target picture: hr itself or `residual_scale`·(hr - lr_up)."""
    return hr if unet.target == "image" else unet.residual_scale * (hr - lr_up)


def to_image(unet: Denoiser, x_0: Tensor, lr_up: Tensor) -> Tensor:
    """The picture of a latent, (B, 3, H, W) clamped to [-1, 1]; inverse of `to_latent`."""
    return (x_0 if unet.target == "image" else x_0 / unet.residual_scale + lr_up).clamp(-1, 1)


def _coefficient(values: FloatArray | float, like: Tensor) -> Tensor | float:
    """A number as it is; one number per member as a tensor (B, 1, 1, 1)."""
    if np.ndim(values) == 0:
        return float(values)
    return torch.as_tensor(values, dtype=like.dtype, device=like.device)[:, None, None, None]


def x0_weights(prediction: str, signal: Level, sigma: Level) -> tuple[Level, Level]:
    """x_0 = a·output + b·x_t at a noise level √ᾱ, √(1-ᾱ), for a net that predicts "eps" or "v"; gives (a, b)."""
    return (-sigma / signal, 1 / signal) if prediction == "eps" else (-sigma, signal)


def predict_x0(unet: Denoiser, alphas_cumprod: FloatArray, t: Step, x_t: Tensor, lr_up: Tensor) -> Tensor:
    """The net's estimate of x_0 at step t, clamped so that the picture stays in [-1, 1].

    Args:
        unet: predicts eps or v.
        alphas_cumprod: (T + 1,), index 0 is the clean image.
        t: step in 1 … T, one for all or an array (B,).
        x_t: latents at step t.
        lr_up: condition.
    """
    signal, sigma = np.sqrt(alphas_cumprod[t]), np.sqrt(1 - alphas_cumprod[t])
    level = torch.as_tensor(np.broadcast_to(signal, len(x_t)).copy(), dtype=x_t.dtype, device=x_t.device)
    out = unet(lr_up, x_t, level)
    of_out, of_x_t = x0_weights(unet.prediction, _coefficient(signal, x_t), _coefficient(sigma, x_t))
    x0 = out.mul_(of_out).add_(x_t * of_x_t)  # in place, since pictures can be large
    if unet.target == "image":
        return x0.clamp_(-1, 1)
    c = unet.residual_scale
    return x0.add_(lr_up, alpha=c).clamp_(-c, c).sub_(lr_up, alpha=c)


def posterior(alphas_cumprod: FloatArray, t: Step) -> tuple[FloatArray, FloatArray, FloatArray]:
    """q(x_{t-1} | x_t, x_0) is normal: mean a·x_0 + b·x_t, standard deviation σ. Gives (a, b, σ), one each per t."""
    now, before = alphas_cumprod[t], alphas_cumprod[np.subtract(t, 1)]
    beta = 1 - now / before
    return (
        np.sqrt(before) * beta / (1 - now),
        np.sqrt(1 - beta) * (1 - before) / (1 - now),
        np.sqrt((1 - before) / (1 - now) * beta),  # zero at t = 1, since before is 1
    )


def p_sample(
    unet: Denoiser, alphas_cumprod: FloatArray, t: Step, x_t: Tensor, lr_up: Tensor, noise: Tensor | None
) -> Tensor:
    """One ancestral reverse step D_t: x_t → x_{t-1}, by the posterior q(x_{t-1} | x_t, x_0).

    Args:
        unet: the net.
        alphas_cumprod: (T + 1,), index 0 is the clean image.
        t: step in 1 … T, one for all or an array (B,).
        x_t: latents at step t.
        lr_up: condition.
        noise: standard normal noise (B, 3, H, W); not used where t = 1, and may be None if t = 1 for all.

    Returns:
        Latents at step t - 1; for t = 1 the result x_0.
    """
    of_x0, of_x_t, sigma = posterior(alphas_cumprod, t)
    x0 = predict_x0(unet, alphas_cumprod, t, x_t, lr_up)
    mean = x0.mul_(_coefficient(of_x0, x_t)).add_(x_t * _coefficient(of_x_t, x_t))
    return mean if noise is None else mean.add_(noise * _coefficient(sigma, x_t))


def refine(
    unet: Denoiser, alphas_cumprod: FloatArray, latents: Tensor, lr_up: Tensor, noise: Noise, start: int
) -> Tensor:
    """Ancestral sampling from diffusion step `start` to the clean latent: D_1(D_2(… D_start(latents))). NFE: `start`."""
    for t in range(start, 0, -1):
        latents = p_sample(unet, alphas_cumprod, t, latents, lr_up, noise(Stage.FINE, t) if t > 1 else None)
    return latents


def sample(unet: Denoiser, alphas_cumprod: FloatArray, lr_up: Tensor, noise: Noise) -> Tensor:
    """The full DDPM chain from Gaussian noise, all T steps (SR3). NFE: T."""
    T = len(alphas_cumprod) - 1
    return refine(unet, alphas_cumprod, noise(Stage.INITIAL, T), lr_up, noise, start=T)


def coarse_approximation(unet: Denoiser, alphas_cumprod: FloatArray, lr_up: Tensor, noise: Noise) -> Tensor:
    """CSA, Eq. 8-12: the first S - 1 of the S steps of a coarse schedule, from Gaussian noise. NFE: S - 1.

    Args:
        unet: the net.
        alphas_cumprod: the coarse schedule, (S + 1,).
        lr_up: condition.
        noise: keyed noise.

    Returns:
        `x_S1`, the coarse latent; it stands at the noise level of diffusion step N = T / S.
    """
    S = len(alphas_cumprod) - 1
    latents = noise(Stage.INITIAL, S)
    for j in range(S, 1, -1):
        latents = p_sample(unet, alphas_cumprod, j, latents, lr_up, noise(Stage.COARSE, j))
    return latents


def ode_step(alphas_cumprod: FloatArray, t: int, x_t: X, x0: X, before: X | None = None) -> X:
    """One deterministic step x_t → x_{t-1}: DDIM with eta = 0, or DPM-Solver++(2M) given the estimate of the step before.

    Both solve the probability-flow ODE for x_{t-1} with the estimate of x_0 held fixed; the second extrapolates it, along
    the logarithm λ of the signal-to-noise ratio, to the middle of the step.

    Args:
        alphas_cumprod: the schedule, index 0 is the clean image.
        t: step, at least 1; with `before` at least 2, since λ is infinite at the clean image.
        x_t: latents at step t.
        x0: estimate of x_0 at step t.
        before: estimate of x_0 at step t + 1.
    """
    now, after = alphas_cumprod[t], alphas_cumprod[t - 1]
    if before is not None:
        lambdas = np.log(alphas_cumprod[t - 1 : t + 2] / (1 - alphas_cumprod[t - 1 : t + 2])) / 2
        x0 = x0 + (x0 - before) * float((lambdas[0] - lambdas[1]) / (lambdas[1] - lambdas[2]) / 2)
    shrink = np.sqrt((1 - after) / (1 - now))
    return x_t * float(shrink) + x0 * float(np.sqrt(after) - np.sqrt(now) * shrink)


def ode_chain(alphas_cumprod: FloatArray, latents: X, order: int, estimate: Callable[[int, X], X]) -> X:
    """The first S - 1 of the S steps of a schedule by `ode_step`: DDIM (order 1) or DPM-Solver++(2M) (order 2).

    Args:
        alphas_cumprod: the schedule, (S + 1,).
        latents: at step S.
        order: 1 or 2.
        estimate: (t, latents at step t) → estimate of x_0.
    """
    before = None
    for t in range(len(alphas_cumprod) - 1, 1, -1):
        x0 = estimate(t, latents)
        latents = ode_step(alphas_cumprod, t, latents, x0, before)
        before = x0 if order == 2 else None
    return latents


def ode_approximation(unet: Denoiser, alphas_cumprod: FloatArray, lr_up: Tensor, noise: Noise, order: int) -> Tensor:
    """As `coarse_approximation`, but by DDIM (order 1) or DPM-Solver++(2M) (order 2), with no noise but the initial."""
    latents = noise(Stage.INITIAL, len(alphas_cumprod) - 1)
    return ode_chain(alphas_cumprod, latents, order, lambda t, x_t: predict_x0(unet, alphas_cumprod, t, x_t, lr_up))


# name → order of `ode_chain`
ODE_ORDERS = {"ddim": 1, "dpmsolver++": 2}
# name → what the coarse stage may run
COARSE_SAMPLERS: Mapping[str, Callable[[Denoiser, FloatArray, Tensor, Noise], Tensor]] = {
    "ddpm": coarse_approximation,
    **{name: partial(ode_approximation, order=order) for name, order in ODE_ORDERS.items()},
}
