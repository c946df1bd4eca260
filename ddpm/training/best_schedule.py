"""The best schedule of a few steps by dynamic programming.

The cost of a chain that jumps from level to level is a sum of one term for each jump, so the best levels for any number
of forwards follow from a table of all jumps, which is measured on training photographs. There are two tables: the terms
of the evidence lower bound (Watson et al. 2021), and the distance of each jump of DDIM from the trajectory of a chain
of many steps, similar to OptimalSteps (Pei et al. 2025).
"""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ddpm.nets.denoiser import Denoiser, Estimate, NoiseLevelDenoiser, to_latent
from ddpm.noise import Stage
from ddpm.sampling import Noise, arrive, estimate, reverse_weights
from ddpm.schedule import FloatArray
from ddpm.util.errors import ConfigError


@torch.inference_mode()
def x0_errors(
    unet: NoiseLevelDenoiser, alphas_cumprod: FloatArray, hr: Tensor, lr_up: Tensor, noise: Noise
) -> FloatArray:
    """Return the mean squared error of the net's estimate of x_0 at every diffusion step. NFE: T.

    Args:
        unet: the net.
        alphas_cumprod: (T + 1,), index 0 is the clean image.
        hr: targets, (B, 3, H, W) in [-1, 1].
        lr_up: their conditions.
        noise: keyed noise; the latent at step t is x_0 with the noise (INITIAL, t).

    Returns:
        (T + 1,); entry 0, where nothing is estimated, is 0.
    """
    x_0 = to_latent(unet, hr, lr_up)
    errors = np.zeros(len(alphas_cumprod))
    for t in range(1, len(alphas_cumprod)):
        signal, sigma = float(np.sqrt(alphas_cumprod[t])), float(np.sqrt(1 - alphas_cumprod[t]))
        x_t = x_0 * signal + noise(Stage.INITIAL, t) * sigma
        errors[t] = float((estimate(unet, alphas_cumprod, t, x_t, lr_up)[0] - x_0).square().mean())
    return errors


def jump_costs(alphas_cumprod: FloatArray, errors: FloatArray) -> NDArray[np.float64]:
    """Return the term of the bound for each jump of the ancestral chain, in nats per value, without constants.

    For s ≥ 1 it is the KL divergence between q(x_s | x_t, x_0) and the same with the net's estimate of x_0: two normal
    distributions of one variance. For s = 0 it is the negative logarithm of a normal density around the estimate,
    whose variance is that of the noise at step 1.

    Args:
        alphas_cumprod: (T + 1,), index 0 is the clean image.
        errors: mean squared error of the estimate of x_0 at each step, (T + 1,), as `x0_errors` returns it.

    Returns:
        (T + 1, T + 1): entry [t, s] is the cost of the jump from t to s; infinite where s ≥ t.
    """
    T = len(alphas_cumprod) - 1
    costs = np.full((T + 1, T + 1), np.inf)
    for t in range(1, T + 1):
        of_x0, _, sigma = reverse_weights(alphas_cumprod, np.full(t, t), to=np.arange(t))
        costs[t, 0] = errors[t] / (2 * (1 - alphas_cumprod[1]))
        costs[t, 1:t] = of_x0[1:] ** 2 * errors[t] / (2 * sigma[1:] ** 2)
    return costs


@torch.inference_mode()
def trajectory_errors(denoiser: Denoiser, alphas_cumprod: FloatArray, lr_up: Tensor, noise: Noise) -> FloatArray:
    """Return the distance of each jump of DDIM from the trajectory of the chain of all steps. NFE: T.

    The jump from t to s begins on the trajectory, at step t, and is compared with the trajectory at step s.

    Args:
        denoiser: the denoiser.
        alphas_cumprod: its schedule, (T + 1,), index 0 is the clean image.
        lr_up: conditions, (B, C, H, W).
        noise: keyed noise; the chain begins at (INITIAL, T).

    Returns:
        (T + 1, T + 1): entry [t, s] is the root mean squared difference over all values; infinite where s ≥ t.
    """
    T = len(alphas_cumprod) - 1
    path: dict[int, Tensor] = {T: noise(Stage.INITIAL, T)}
    found: dict[int, Estimate] = {}

    def jump(t: int, s: int) -> Tensor:
        x0, eps = found[t]
        own = x0.clone(), None if eps is None else eps.clone()
        return arrive(alphas_cumprod, t, s, path[t], own, None, eta=0.0)

    for t in range(T, 0, -1):
        found[t] = estimate(denoiser, alphas_cumprod, t, path[t], lr_up)
        path[t - 1] = jump(t, t - 1)
    errors = np.full((T + 1, T + 1), np.inf)
    for t in range(1, T + 1):
        for s in range(t):
            errors[t, s] = float((jump(t, s) - path[s]).square().mean().sqrt())
    return errors


def best_levels(costs: NDArray[np.float64], forwards: int) -> tuple[int, ...]:
    """Return the levels of the cheapest chain with a number of forwards, from T down.

    Args:
        costs: cost of each jump, (T + 1, T + 1), as `jump_costs` and `trajectory_errors` return them.
        forwards: number of jumps, 1 … T.

    Returns:
        The falling steps at which the network runs; T is the first.

    Raises:
        ConfigError: `forwards` is out of range.
    """
    T = len(costs) - 1
    if not 1 <= forwards <= T:
        raise ConfigError(f"forwards must be a whole number in 1 … {T}, got {forwards}")
    # the cost of the cheapest way from each step to 0 for a number of jumps, and the step after its first jump
    cheapest = np.full(T + 1, np.inf)
    cheapest[0] = 0.0
    moves = []
    for _ in range(forwards):
        totals = costs + cheapest
        moves.append(totals.argmin(axis=1))
        cheapest = totals.min(axis=1)
    levels = [T]
    for move in moves[:0:-1]:
        levels.append(int(move[levels[-1]]))
    return tuple(levels)
