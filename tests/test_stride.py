"""Decisions of the kind "stride": an action says how many noise levels the next step covers."""

from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from skipdiff_env.rules import InvalidActionError, ResetNeededError


def make(checkpoint: str, **arguments: Any) -> gym.Env[Any, Any]:
    return gym.make("SkipDiffStride-v0", checkpoint=checkpoint, image_size=32, noise_seeds=1, **arguments)


def play(env: gym.Env[Any, Any], strides: list[int]) -> tuple[float, int, dict[str, Any]]:
    """Reward, env steps and info of an episode that repeats the last stride until it ends."""
    env.reset(options={"image": 0, "noise_seed": 0})
    terminated, count = False, 0
    while not terminated:
        observation, reward, terminated, truncated, info = env.step(np.int64(strides[min(count, len(strides) - 1)] - 1))
        count += 1
        assert observation in env.observation_space
        assert not truncated
    return float(reward), count, info


@pytest.mark.parametrize(
    ("stride", "levels"),
    [(20, (20,)), (10, (20, 10)), (7, (20, 13, 6)), (19, (20, 1)), (1, tuple(range(20, 0, -1)))],
)
def test_equal_strides_are_even_schedules(checkpoint: str, stride: int, levels: tuple[int, ...]) -> None:
    env = make(checkpoint)
    reward, count, info = play(env, [stride])
    assert info["levels"] == levels
    assert info["nfe"] == len(levels)
    assert count == len(levels)
    inner: Any = env.unwrapped
    assert reward == pytest.approx(inner.schedule_outcomes([0], [0], [levels]).rewards()[0, 0, 0], abs=1e-6)


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
@given(begun=st.lists(st.integers(1, 6), max_size=3), stride=st.integers(1, 20))
def test_the_level_survives(checkpoint: str, begun: list[int], stride: int) -> None:
    """A step covers as many levels after set_state(), here and in another environment."""
    env, other = make(checkpoint), make(checkpoint)
    env.reset(options={"image": 0, "noise_seed": 0})
    for own in begun:
        env.step(own - 1)
    level = 20 - sum(begun)
    state = env.unwrapped.get_state()  # type: ignore[attr-defined]
    for each in (env, env, other):
        each.unwrapped.set_state(state)  # type: ignore[attr-defined]
        *_, ended, _, info = each.step(stride - 1)
        assert info["diffusion_step"] == max(level - stride, 0)
        assert ended == (stride >= level)
        if ended:
            assert info["levels"][-1] == level


def test_what_is_refused(checkpoint: str) -> None:
    env = make(checkpoint)
    assert env.action_space == gym.spaces.Discrete(20)
    env.reset(seed=0)
    with pytest.raises(InvalidActionError, match=r"levels to cover, less 1: 0 … 19, got 20"):
        env.step(20)
    play(env, [3])
    for action in (0, 19):
        with pytest.raises(ResetNeededError):
            env.step(action)
