"""The cosine schedule."""

import numpy as np
import pytest

from ddpm.schedule import check_levels, cosine_alphas_cumprod, even_steps
from ddpm.util.errors import ConfigError


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
    with pytest.raises(ConfigError, match="a whole number in 1 … 100000, got"):
        cosine_alphas_cumprod(T)


def test_even_steps() -> None:
    assert even_steps(100, 10).tolist() == list(range(0, 101, 10))
    assert even_steps(20, 3).tolist() == [0, 7, 13, 20]
    for forwards in (0, 21, 2.5):
        with pytest.raises(ConfigError, match=f"forwards must be a whole number in 1 … 20, .* got {forwards}"):
            even_steps(20, forwards)  # type: ignore[arg-type]


def test_levels() -> None:
    assert check_levels([20, 13, 2], 20) == (20, 13, 2)
    with pytest.raises(ConfigError, match=r"begin with 20, the noisiest step, .* got 19,3"):
        check_levels((19, 3), 20)
