"""The registered environments, each as a user makes it."""

import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.utils.env_checker import check_env

from skipdiff_env import VARIANTS
from tests.test_env import EXPECTED


@pytest.mark.parametrize("name", VARIANTS)
def test_registered(name: str) -> None:
    spec = gym.spec(name)
    spec.to_json()
    assert spec.max_episode_steps is None


@pytest.mark.parametrize("name", [name for name in VARIANTS if name != "SkipDiff-v0" and "Table" not in name])
def test_checkers_and_batches(name: str, checkpoint: str) -> None:
    """With a tiny net in place of the shipped one, which the tests of `SkipDiff-v0` and the demonstration play."""
    from stable_baselines3.common.env_checker import check_env as sb3_check_env

    arguments: dict[str, Any] = {"checkpoint": checkpoint, "noise_seeds": 2}
    made = gym.make(name, **arguments)
    env = made.unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env, skip_render_check=True)
        for message in EXPECTED:
            warnings.filterwarnings("ignore", message=message)
        sb3_check_env(env, skip_render_check=True)
    vector: Any = gym.make_vec(name, num_envs=2, **arguments)
    assert vector.spec.max_episode_steps is None
    observations, _ = made.reset(seed=0)
    batch, _ = vector.reset(seed=0)
    assert batch in vector.observation_space
    ended = truncated = False
    while not ended:
        action = np.ones(made.action_space.shape or (), made.action_space.dtype)
        observations, reward, ended, truncated, info = made.step(action if action.shape else 1)
        batch, rewards, ends, _, infos = vector.step(np.stack([action] * 2))
        assert observations in made.observation_space
        assert batch in vector.observation_space
    assert not truncated
    assert ends.all()
    assert reward == pytest.approx(float(rewards[0]), rel=1e-4)
    if "Faces" not in name:
        # action 1 is SKIP, the second schedule of a network without substeps, a stride of 2, or all of the way
        levels = {"SkipDiffBandit-v0": (20, 10), "SkipDiffStride-v0": tuple(range(20, 0, -2))}.get(name, (20,))
        assert (infos["nfe"].tolist(), info["levels"]) == ([len(levels)] * 2, levels)
        assert reward == pytest.approx(-info["metrics"]["lpips"] - 0.002 * len(levels))
    else:
        assert (infos["nfe"].tolist(), info["start"]) == ([10, 10], 1)


def test_the_nets_of_the_variants() -> None:
    """The shipped nets take the settings of their variants."""
    sides = {"SkipDiffJump-v0": 64, "SkipDiffJump128-v0": 128, "SkipDiffPhoto-v0": 64}
    for name, side in sides.items():
        space = gym.make(name, split="test").observation_space
        assert isinstance(space, gym.spaces.Dict)
        assert space["latent"].shape == space["condition"].shape == (3, side, side)
    assert gym.make("SkipDiffFaces-v0").observation_space.shape == (3, 128, 128)


def test_arguments_replace_those_of_a_variant(checkpoint: str) -> None:
    env: Any = gym.make("SkipDiffJump-v0", checkpoint=checkpoint, steps=(1, 6), nfe_penalty=(0.001, 0.01)).unwrapped
    assert env.task.decisions == 5
    assert "price" in env.observation_space.spaces
    assert env.task.config.metric == "lpips"
