"""The best schedule under the evidence lower bound."""

from itertools import combinations, pairwise

import numpy as np
import pytest
import torch

from ddpm.noise import KeyedNoise
from ddpm.sampling import reverse_weights
from ddpm.schedule import FloatArray, cosine_alphas_cumprod
from ddpm.training.elbo import best_levels, jump_costs, x0_errors
from ddpm.util.errors import ConfigError
from tests.conftest import tiny_unet
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
