"""The best schedule under the evidence lower bound, and along a trajectory."""

from collections.abc import Sequence
from itertools import combinations, pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from torch import Tensor

from agents.cli import main
from ddpm.nets.denoiser import Denoiser
from ddpm.noise import KeyedNoise, Stage
from ddpm.sampling import reverse_weights, run_levels
from ddpm.schedule import FloatArray, Schedule, cosine_alphas_cumprod
from ddpm.training.best_schedule import best_levels, jump_costs, trajectory_errors, x0_errors
from ddpm.util.errors import ConfigError
from tests.conftest import tiny_unet
from tests.foreign import Smoother
from tests.test_sampling import pictures


def test_the_best_levels_are_those_of_a_search_through_all() -> None:
    costs = np.random.default_rng(0).random((9, 9))
    costs[np.triu_indices(9)] = np.inf
    for forwards in range(1, 9):
        every = [(8, *reversed(between)) for between in combinations(range(1, 8), forwards - 1)]
        cheapest = min(every, key=lambda levels: sum(costs[t, s] for t, s in pairwise([*levels, 0])))
        assert best_levels(costs, forwards) == cheapest


@pytest.mark.parametrize("forwards", [0, 9])
def test_a_number_of_forwards_out_of_range_is_refused(forwards: int) -> None:
    with pytest.raises(ConfigError, match=f"1 … 8, got {forwards}"):
        best_levels(np.zeros((9, 9)), forwards)


def test_a_jump_costs_the_divergence_of_its_two_normal_distributions(alphas_cumprod: FloatArray) -> None:
    errors = np.linspace(0, 1, 101)
    costs = jump_costs(alphas_cumprod, errors)
    of_x0, _, sigma = reverse_weights(alphas_cumprod, 60, to=20)
    ours = torch.distributions.Normal(float(of_x0 * errors[60] ** 0.5), float(sigma))
    truth = torch.distributions.Normal(0.0, float(sigma))
    assert costs[60, 20] == pytest.approx(float(torch.distributions.kl_divergence(truth, ours)))
    assert np.isinf(costs[20, 60])
    assert np.isinf(costs[20, 20])
    assert np.isfinite(costs[1:, 0]).all()


def test_errors_are_those_of_the_nets_estimate() -> None:
    unet, alphas_cumprod = tiny_unet(), cosine_alphas_cumprod(5)
    hr, lr_up = pictures()
    errors = x0_errors(unet, alphas_cumprod, hr, lr_up, KeyedNoise(range(len(hr)), hr.shape[1:]))
    assert errors.shape == (6,)
    assert errors[0] == 0
    assert (errors[1:] > 0).all()


@pytest.mark.parametrize("foreign", [False, True])
def test_trajectory_errors_are_those_of_chains(foreign: bool) -> None:
    """A chain that leaves the trajectory once ends where the table says."""
    denoiser: Denoiser = Smoother() if foreign else tiny_unet()
    alphas_cumprod = denoiser.schedule(6)
    _, lr_up = pictures()
    noise = KeyedNoise(range(len(lr_up)), lr_up.shape[1:])
    errors = trajectory_errors(denoiser, alphas_cumprod, lr_up, noise)
    assert np.isinf(errors[np.triu_indices(7)]).all()
    for t in range(1, 7):
        assert errors[t, t - 1] == 0, "a step of the chain is on the trajectory"
    assert errors[6, 0] > errors[6, 4] > 0

    def run(levels: Sequence[int]) -> Tensor:
        return run_levels(denoiser, alphas_cumprod, noise(Stage.INITIAL, 6), lr_up, noise, levels, 0.0)

    whole = run(range(6, 0, -1))
    for t in range(2, 7):
        left = run(range(6, t - 1, -1)) - whole
        assert errors[t, 0] == pytest.approx(float(left.square().mean().sqrt()), rel=1e-4)
    assert best_levels(errors, 6) == (6, 5, 4, 3, 2, 1)
    assert len(best_levels(errors, 3)) == 3


def test_the_command_prints_what_others_take(short_checkpoint: str, photos: Path) -> None:
    arguments = ["schedule", "--images", str(photos), "--checkpoint", short_checkpoint, "--image-size", "32"]
    result = CliRunner().invoke(main, [*arguments, "--steps", "6", "--forwards", "3", "--forwards", "6"])
    assert result.exit_code == 0, result.output
    few, all_levels = map(Schedule.parse, result.stdout.splitlines())
    assert (few.length, few.forwards) == (6, 3)
    assert all_levels == Schedule.even(6)
    result = CliRunner().invoke(main, [*arguments, "--steps", "6", "--forwards", "7"])
    assert result.exit_code == 2
    assert "--forwards must be at most --steps, 6, got 7" in result.stderr
