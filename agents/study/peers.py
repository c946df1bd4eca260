"""Other samplers on the same network, as methods: the section `peers` of `skipdiff reproduce`."""

import importlib.util
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from numpy.typing import NDArray

from agents.study.methods import Batch, Method, chain, has_predictor, sampled, schedule
from agents.study.rows import EARLY, PEER
from ddpm.nets.denoiser import Denoiser, NoiseLevelDenoiser
from ddpm.noise import Stage
from ddpm.peers import NullSpaceDenoiser, early_start, peer_sample
from ddpm.sampling import run_levels
from ddpm.schedule import cosine_alphas_cumprod, even_levels
from ddpm.training.best_schedule import best_levels, jump_costs, trajectory_errors, x0_errors
from ddpm.util.progress import progress, say

# name in ddpm.peers → heading; "ddpm" is left out: it is "euler-ancestral", and our chain of S steps
PEERS = {
    "ddim": "DDIM",
    "dpmsolver++": "DPM-Solver++(2M)",
    "unipc": "UniPC",
    "euler-ancestral": "Euler ancestral",
    "heun": "Heun",
}
# Numbers of forwards, as far as T allows; and the first steps of early starts, in shares of T.
BUDGETS, EARLY_STARTS = (3, 5, 8, 12, 20), (0.3, 0.6)


def peers(unet: Denoiser, train: Sequence[Batch] = ()) -> list[Method]:
    """Return other samplers at several numbers of forwards; without diffusers, only chains and fitted schedules.

    Args:
        unet: the network.
        train: photographs for fitting schedules by dynamic programming; empty: no schedule is fitted.
    """
    T = int(unet.settings["diffusion_steps"])
    budgets = [forwards for forwards in BUDGETS if forwards <= T]
    found = [chain(T, forwards) for forwards in budgets]
    if importlib.util.find_spec("diffusers") is None:
        say('Note: samplers of diffusers are left out, since it is not installed; pip install "skipdiff[peers]"')
    else:
        found += [scheduler(T, name, forwards) for name in PEERS for forwards in budgets]
        for t in dict.fromkeys(max(1, round(share * T)) for share in EARLY_STARTS):
            found += [early(T, t, forwards, has_predictor(unet)) for forwards in budgets if forwards <= t]
        found += [null_space(T, forwards) for forwards in budgets]
    return found + (fitted(train, T, budgets) if train else [])


def scheduler(T: int, name: str, forwards: int) -> Method:
    """Return a sampler of diffusers, see `ddpm.peers.peer_sample`."""
    return sampled(
        f"{PEERS[name]}, {forwards}",
        PEER,
        forwards,
        lambda b: peer_sample(name, b.unet, b.unet.schedule(T), b.lr_up, b.noise, forwards),
    )


def early(T: int, t: int, forwards: int, predicted: bool = False) -> Method:
    """Return an early start: the condition with noise, denoised from t on, see `ddpm.peers.early_start`.

    The condition is bicubic enlargement (CCDF) or, with `predicted`, the predictor's picture (Lyu et al.).
    """
    return sampled(
        f"predictor's picture from {t}, {forwards}" if predicted else f"CCDF from {t}, {forwards}",
        EARLY,
        forwards,
        lambda b: (early_start(_network(b), b.unet.schedule(T), b.lr_up, b.noise, t, forwards), forwards),
    )


def null_space(T: int, forwards: int) -> Method:
    """Return DDIM with estimates that agree with the low-resolution picture, see `ddpm.peers.NullSpaceDenoiser`."""

    def latents(batch: Batch) -> tuple[torch.Tensor, int]:
        unet, noise = NullSpaceDenoiser(_network(batch), batch.lr_image, batch.unet.scale), batch.noise
        start, levels = noise(Stage.INITIAL, T), even_levels(T, forwards)
        return run_levels(unet, unet.schedule(T), start, batch.lr_up, noise, levels, 0.0), forwards

    return sampled(f"DDNM, {forwards}", PEER, forwards, latents)


def fitted(train: Sequence[Batch], T: int, budgets: Sequence[int]) -> list[Method]:
    """Return the schedules with the least cost on training photographs, by dynamic programming.

    The costs are those of the evidence lower bound, see `jump_costs`, and the errors of `trajectory_costs`.
    """
    alphas_cumprod = cosine_alphas_cumprod(T)
    errors = [
        x0_errors(_network(b), alphas_cumprod, b.hr, b.lr_up, b.noise)
        for b in progress(train, desc="ELBO", unit="batch", leave=False)
    ]
    bound, trajectory = jump_costs(alphas_cumprod, np.mean(errors, axis=0)), trajectory_costs(train, T)
    fits = (("ELBO", "ddpm", bound), ("ELBO", "ddim", bound), ("trajectory", "ddim", trajectory))
    return [
        replace(
            schedule(best_levels(costs, forwards), sampler),
            name=f"DP over the {what}, {sampler}, {forwards}",
            family=PEER,
        )
        for what, sampler, costs in fits
        for forwards in budgets
    ]


def trajectory_costs(batches: Sequence[Batch], T: int) -> NDArray[np.float64]:
    """Return the error of every jump of DDIM, see `trajectory_errors`, from training photographs."""
    bar = progress(batches, desc="trajectory", unit="batch", leave=False)
    return np.mean([trajectory_errors(b.unet, b.unet.schedule(T), b.lr_up, b.noise) for b in bar], axis=0)


def _network(batch: Batch) -> NoiseLevelDenoiser:
    """Return the network of a batch, for a method that needs the noise level as the network's input."""
    assert isinstance(batch.unet, NoiseLevelDenoiser), "`reproduce` takes checkpoints of this project only"
    return batch.unet
