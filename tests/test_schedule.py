"""The cosine schedule."""

import numpy as np
import pytest

from ddpm.errors import ConfigError
from ddpm.schedule import check_steps, cosine_alphas_cumprod


def test_index_zero_is_the_clean_image() -> None:
    alphas_cumprod = cosine_alphas_cumprod(100)
    assert alphas_cumprod.shape == (101,)
    assert alphas_cumprod.dtype == np.float64
    assert alphas_cumprod[0] == 1.0
    assert (np.diff(alphas_cumprod) < 0).all()


def test_equation_9() -> None:
    f = np.cos((np.arange(101) / 100 + 0.008) / 1.008 * np.pi / 2) ** 2
    np.testing.assert_allclose(cosine_alphas_cumprod(100)[:100], (f / f[0])[:100], rtol=1e-12)


def test_last_beta_is_clipped() -> None:
    alphas_cumprod = cosine_alphas_cumprod(100)
    assert alphas_cumprod[100] / alphas_cumprod[99] == pytest.approx(0.001)


@pytest.mark.parametrize(("S", "N"), [(10, 10), (5, 20), (2, 50), (100, 1)])
def test_coarse_schedule_meets_the_full_one(S: int, N: int) -> None:
    np.testing.assert_allclose(cosine_alphas_cumprod(S)[:S], cosine_alphas_cumprod(100)[::N][:S], rtol=1e-12)


@pytest.mark.parametrize("T", [0, -3, 2.5])
def test_bad_length(T: int) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        cosine_alphas_cumprod(T)


@pytest.mark.parametrize("steps", [(7, 14), (0, 100), (10, 9), (-10, -10)])
def test_steps_must_divide(steps: tuple[int, int]) -> None:
    with pytest.raises(ConfigError, match="10,10"):
        check_steps(100, *steps)
    check_steps(100, 10, 10)
