"""Samplers: the reverse step, the full chain, the coarse approximation and the fine refinement.

Each is a pure function. Latents are float32, (B, C, H, W); `lr_up` is the condition, of the same height and width;
`noise(stage, t)` returns standard normal noise of the latents' shape (see `ddpm.noise.KeyedNoise`).
`Denoiser.decode` turns a clean latent into a picture.
"""

from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ddpm.nets.denoiser import Denoiser, Estimate, Step, coefficient
from ddpm.noise import Stage
from ddpm.samplers import coarse_eta
from ddpm.schedule import FloatArray

Noise = Callable[[Stage, int | NDArray[np.integer]], Tensor]
# A latent, or the weights of its components.
X = TypeVar("X", Tensor, FloatArray)


def estimate(
    unet: Denoiser,
    alphas_cumprod: FloatArray,
    t: Step,
    x_t: Tensor,
    lr_up: Tensor,
    to: Step = 0,
    substeps: Step = 1,
) -> Estimate:
    """Return the estimates of x_0 and ε at step t, see `Denoiser.predict`.

    With more than one substep they are those for which one DDIM step (η = 0) from t to `to` arrives where that many
    even steps of the plain network would.

    Args:
        unet: the denoiser.
        alphas_cumprod: (T + 1,), index 0 is the clean image.
        t: step in 1 … T, one for all or an array (B,).
        x_t: latents at step t.
        lr_up: condition.
        to: step in 0 … t - 1 that the latents go to next, one for all or an array (B,); only substeps depend on it.
        substeps: number of even steps whose work the forward does, one for all or an array (B,).
    """
    if np.any(np.not_equal(substeps, 1)):
        return unet.predict_substeps(x_t, alphas_cumprod[t], lr_up, alphas_cumprod[to], substeps)
    return unet.predict(x_t, alphas_cumprod[t], lr_up)


def reverse_weights(
    alphas_cumprod: FloatArray, t: Step, eta: float = 1.0, to: Step | None = None
) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Return (a, b, σ) for which x_s = a·x_0 + b·x_t + σ·noise has the marginal q(x_s | x_0), one of each per t.

    This is the family of DDIM (its Eq. 12): eta = 1 is the posterior q(x_s | x_t, x_0), ancestral sampling; eta = 0
    adds no noise.

    Args:
        alphas_cumprod: (T + 1,), index 0 is the clean image.
        t: step in 1 … T of the latent, one or an array (B,).
        eta: share of the posterior's standard deviation that is added as noise.
        to: next step s in 0 … t - 1; None: t - 1.
    """
    now, before = alphas_cumprod[t], alphas_cumprod[np.subtract(t, 1) if to is None else to]
    # zero at s = 0, where schedules of other networks may have an ᾱ below 1
    clean = np.equal(np.subtract(t, 1) if to is None else to, 0)
    variance = np.where(clean, 0.0, eta**2 * (1 - before) / (1 - now) * (1 - now / before))
    of_x_t = np.sqrt((1 - before - variance) / (1 - now))
    return np.sqrt(before) - np.sqrt(now) * of_x_t, of_x_t, np.sqrt(variance)


def p_sample(
    unet: Denoiser,
    alphas_cumprod: FloatArray,
    t: Step,
    x_t: Tensor,
    lr_up: Tensor,
    noise: Tensor | None,
    eta: float = 1.0,
    to: Step | None = None,
    substeps: Step = 1,
) -> Tensor:
    """Run one reverse step D_t: x_t → x_{t-1}, or a longer one to `to`.

    The step is ancestral, by the posterior, unless `eta` is below 1.

    Args:
        unet: the net.
        alphas_cumprod: (T + 1,), index 0 is the clean image.
        t: step in 1 … T, one for all or an array (B,).
        x_t: latents at step t.
        lr_up: condition.
        noise: standard normal noise (B, 3, H, W); not used where the step goes to 0. It may be None if all steps do so,
            or eta is 0.
        eta: share of the posterior's standard deviation that is added as noise.
        to: next step in 0 … t - 1, one for all or an array (B,); None: t - 1.
        substeps: number of even steps whose work the forward does, one for all or an array (B,); more than 1 only with
            an `eta` of 0.

    Returns:
        Latents at step `to`; at step 0 the result x_0.
    """
    to = np.subtract(t, 1) if to is None else to
    found = estimate(unet, alphas_cumprod, t, x_t, lr_up, to, substeps)
    return arrive(alphas_cumprod, t, to, x_t, found, noise, eta)


def arrive(
    alphas_cumprod: FloatArray, t: Step, to: Step, x_t: Tensor, found: Estimate, noise: Tensor | None, eta: float = 1.0
) -> Tensor:
    """Return the latents at step `to` for estimates at step t, which are changed in place; see `p_sample`."""
    of_x0, of_x_t, sigma = reverse_weights(alphas_cumprod, t, eta, to)
    x0, eps = found
    if eps is None:
        mean = x0.mul_(coefficient(of_x0, x_t)).add_(x_t * coefficient(of_x_t, x_t))
    else:  # x_t = √ᾱ·x_0 + √(1-ᾱ)·ε does not hold for a clamped x_0
        signal, of_eps = np.sqrt(alphas_cumprod[to]), of_x_t * np.sqrt(1 - alphas_cumprod[t])
        mean = x0.mul_(coefficient(signal, x_t)).add_(eps.mul_(coefficient(of_eps, x_t)))
    return mean if noise is None else mean.add_(noise * coefficient(sigma, x_t))


def run_levels(
    unet: Denoiser,
    alphas_cumprod: FloatArray,
    latents: Tensor,
    lr_up: Tensor,
    noise: Noise,
    levels: Sequence[int],
    eta: float,
    *,
    last: int = 0,
    stage: Stage = Stage.FINE,
    substeps: int = 1,
) -> Tensor:
    """Run a chain over chosen steps, from `latents` at the first of them. NFE: one for each level.

    Args:
        unet: the net.
        alphas_cumprod: (T + 1,), index 0 is the clean image.
        latents: latents at step `levels[0]`.
        lr_up: condition.
        noise: keyed noise; the step to s takes the noise of D_{s+1}, the step of the full chain that arrives there.
        levels: falling steps in 1 … T at which the network runs.
        eta: share of the posterior's standard deviation that is added as noise.
        last: the step after the last of them; 0 is the clean latent.
        stage: the stage to which the noise belongs.
        substeps: number of even steps whose work each forward does; more than 1 only with an `eta` of 0.
    """
    for level, to in pairwise([*levels, last]):
        added = noise(stage, to + 1) if to > 0 and eta > 0 else None
        latents = p_sample(unet, alphas_cumprod, level, latents, lr_up, added, eta, to, substeps)
    return latents


def refine(
    unet: Denoiser, alphas_cumprod: FloatArray, latents: Tensor, lr_up: Tensor, noise: Noise, start: int
) -> Tensor:
    """Run ancestral sampling from step `start` to the clean latent: D_1(D_2(… D_start(latents))). NFE: `start`."""
    return run_levels(unet, alphas_cumprod, latents, lr_up, noise, range(start, 0, -1), 1.0)


def sample(unet: Denoiser, alphas_cumprod: FloatArray, lr_up: Tensor, noise: Noise) -> Tensor:
    """Run the full DDPM chain from Gaussian noise, all T steps (SR3). NFE: T."""
    T = len(alphas_cumprod) - 1
    return refine(unet, alphas_cumprod, noise(Stage.INITIAL, T), lr_up, noise, start=T)


def coarse_approximation(
    unet: Denoiser, alphas_cumprod: FloatArray, lr_up: Tensor, noise: Noise, eta: float = 1.0
) -> Tensor:
    """Run the first S - 1 of the S steps of a coarse schedule from Gaussian noise (CSA, Eq. 8-12). NFE: S - 1.

    Args:
        unet: the net.
        alphas_cumprod: the coarse schedule, (S + 1,).
        lr_up: condition.
        noise: keyed noise.
        eta: as in `p_sample`; 1 is the paper's DDPM, 0 is DDIM, which only draws the initial noise.

    Returns:
        `x_S1`, the coarse latent, at the noise level of diffusion step N = T / S.
    """
    S = len(alphas_cumprod) - 1
    latents = noise(Stage.INITIAL, S)
    return run_levels(unet, alphas_cumprod, latents, lr_up, noise, range(S, 1, -1), eta, last=1, stage=Stage.COARSE)


def extrapolation(alphas_cumprod: FloatArray, earlier: Step, t: Step, to: Step) -> FloatArray:
    """Return the share by which DPM-Solver++(2M) extrapolates the estimates of x_0 at steps `earlier` and `t`.

    The step from t to `to` takes x_0(t) + share·(x_0(t) - x_0(earlier)), with share = (λ_to - λ_t) / (λ_t - λ_earlier)
    / 2 and λ the logarithm of the signal-to-noise ratio √(ᾱ/(1 - ᾱ)); even steps of the cosine schedule have a share
    below 0.86. Here it is at most 1, since a long step behind a short one would extrapolate far, and 0 on the way to
    the clean image, where λ is infinite.

    Args:
        alphas_cumprod: (T + 1,), index 0 is the clean image.
        earlier: the step at which the network ran before, above `t`; one or an array (B,).
        t: the step at which the network runs now.
        to: the next step, below `t`.

    Returns:
        One share for each step.
    """
    noisy = np.maximum(to, 1)
    before, now, after = (np.log(alphas_cumprod[i] / (1 - alphas_cumprod[i])) / 2 for i in (earlier, t, noisy))
    return np.where(np.equal(to, 0), 0.0, np.minimum((after - now) / (now - before) / 2, 1.0))


def dpmsolver_chain(alphas_cumprod: FloatArray, latents: X, estimate: Callable[[int, X], X]) -> X:
    """Run the first S - 1 of the S steps of a schedule by DPM-Solver++(2M), which solves the probability-flow ODE.

    From the second step on the estimate of x_0 is extrapolated, along the logarithm λ of the signal-to-noise ratio, to
    the middle of the step. The last step is left out, since λ is infinite at the clean image.

    Args:
        alphas_cumprod: the schedule, (S + 1,).
        latents: latents at step S.
        estimate: (t, latents at step t) → estimate of x_0.
    """
    before = None
    for t in range(len(alphas_cumprod) - 1, 1, -1):
        of_x0, of_x_t, _ = reverse_weights(alphas_cumprod, t, eta=0.0)
        x0 = estimate(t, latents)
        extrapolated = x0
        if before is not None:
            ahead = float(extrapolation(alphas_cumprod, t + 1, t, t - 1))
            extrapolated = x0 * (1 + ahead) - before * ahead
        latents, before = extrapolated * float(of_x0) + latents * float(of_x_t), x0
    return latents


def dpmsolver_approximation(unet: Denoiser, alphas_cumprod: FloatArray, lr_up: Tensor, noise: Noise) -> Tensor:
    """Run the coarse stage by DPM-Solver++(2M), which only draws the initial noise; see `coarse_approximation`."""
    latents = noise(Stage.INITIAL, len(alphas_cumprod) - 1)
    return dpmsolver_chain(alphas_cumprod, latents, lambda t, x_t: estimate(unet, alphas_cumprod, t, x_t, lr_up)[0])


def coarse_sampler(name: str) -> Callable[[Denoiser, FloatArray, Tensor, Noise], Tensor]:
    """Return the coarse sampler of a name, see `coarse_eta`.

    Raises:
        ConfigError: the name is unknown.
    """
    eta = coarse_eta(name)
    return dpmsolver_approximation if eta is None else partial(coarse_approximation, eta=eta)
