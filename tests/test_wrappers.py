"""`Stride`: an action says how many noise levels the next step covers."""

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ddpm.util.errors import ConfigError
from skipdiff_env import Stride
from skipdiff_env.rules import InvalidActionError, ResetNeededError


def make(checkpoint: str, **arguments: Any) -> Stride:
    inner = gym.make("SkipDiffJump-v0", checkpoint=checkpoint, image_size=32, noise_seeds=1, **arguments)
    return Stride(inner, strides=range(1, 21))


def play(env: Stride, strides: list[int]) -> tuple[float, int, dict[str, Any]]:
    """Reward, env steps and info of an episode that repeats the last stride until it ends."""
    env.reset(options={"image": 0, "noise_seed": 0})
    terminated, count = False, 0
    while not terminated:
        observation, reward, terminated, truncated, info = env.step(np.int64(strides[min(count, len(strides) - 1)] - 1))
        count += 1
        assert observation in env.observation_space
        assert not truncated
    return float(reward), count, info


def test_checker(checkpoint: str) -> None:
    env = Stride(gym.make("SkipDiffJump-v0", checkpoint=checkpoint, image_size=32, noise_seeds=1))
    assert env.action_space == gym.spaces.Discrete(8)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*is different from the unwrapped version")
        check_env(env, skip_render_check=True)
    assert env.strides == (1, 2, 3, 4, 5, 7, 10, 20)
    shorter = gym.make("SkipDiffJump-v0", checkpoint=checkpoint, image_size=32, steps=(1, 8))
    assert Stride(shorter).strides == (1, 2, 3, 4, 5, 7, 8)


@pytest.mark.parametrize(
    ("stride", "levels"),
    [(20, (20,)), (10, (20, 10)), (7, (20, 13, 6)), (19, (20, 1)), (1, tuple(range(20, 0, -1)))],
)
def test_equal_strides_are_even_schedules(checkpoint: str, stride: int, levels: tuple[int, ...]) -> None:
    env = make(checkpoint)
    reward, count, info = play(env, [stride])
    assert info["levels"] == levels
    assert info["nfe"] == len(levels)
    # The step from level 1 to the clean latent leaves nothing to decide.
    assert count == len(levels) - (levels[-1] == 1)
    inner: Any = env.unwrapped
    assert reward == pytest.approx(inner.schedule_outcomes([0], [0], [levels]).rewards[0, 0, 0], abs=1e-6)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(strides=st.lists(st.integers(1, 20), min_size=1, max_size=20))
def test_any_strides(checkpoint: str, strides: list[int]) -> None:
    expected, level = [], 20
    while level > 0:
        expected.append(level)
        level -= strides[min(len(expected), len(strides)) - 1]
    *_, info = play(make(checkpoint), strides)
    assert info["levels"] == tuple(expected)


@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(begun=st.lists(st.integers(0, 1), max_size=17), stride=st.integers(1, 20))
def test_the_level_is_that_of_the_environment_within(checkpoint: str, begun: list[int], stride: int) -> None:
    """However it got there: by its own decisions, or by set_state(), here and under a new wrapper."""
    env, other = make(checkpoint), make(checkpoint)
    inner: Any = env.unwrapped
    inner.reset(options={"image": 0, "noise_seed": 0})
    level = 20
    for place, action in enumerate(begun):
        inner.step(action)
        level = level if action else 19 - place
    target = min(max(level - stride, 0), 19 - len(begun))
    state = inner.get_state()
    for each in (env, env, other):
        each.unwrapped.set_state(state)  # type: ignore[attr-defined]
        *_, ended, _, info = each.step(stride - 1)
        assert info["diffusion_step"] == (target if target > 1 else 0)
        assert ended == (target <= 1)
        if ended:
            assert info["levels"][-1] == (target or level)


def test_what_is_refused(checkpoint: str) -> None:
    with pytest.raises(ConfigError, match="got skip_mode='restart'"):
        Stride(gym.make("SkipDiff-v0", checkpoint=checkpoint))
    with pytest.raises(ConfigError, match="got a table or another environment"):
        Stride(gym.make("CartPole-v1"))
    wrong: list[Any] = [(), (0, 3), (21,), (1.5,)]
    for strides in wrong:
        with pytest.raises(ConfigError, match="strides must be whole numbers in 1 … 20"):
            Stride(gym.make("SkipDiffJump-v0", checkpoint=checkpoint, image_size=32), strides)
    env = make(checkpoint)
    env.reset(seed=0)
    with pytest.raises(InvalidActionError, match="from 0 to 19, got 20"):
        env.step(20)
    play(env, [3])
    for action in (0, 19):
        with pytest.raises(ResetNeededError):
            env.step(action)
