"""The ordinary ways of Stable-Baselines3 and sb3-contrib into the environments."""

import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from sb3_contrib import MaskablePPO
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.callbacks import EvalCallback
from stable_baselines3.common.env_util import make_vec_env
from stable_baselines3.common.vec_env import DummyVecEnv, SubprocVecEnv, VecEnv, VecNormalize

from agents.training.vec_env import SkipDiffVecEnv
from ddpm.util.errors import ConfigError
from skipdiff_env import VARIANTS, SkipDiffTableEnv

TABLE, JUMP = "skipdiff_env:SkipDiffTable-v0", "skipdiff_env:SkipDiffJump-v0"
QUICK: dict[str, Any] = {"n_steps": 8, "batch_size": 8, "n_epochs": 1}


@pytest.fixture(autouse=True)
def _render_mode() -> Iterator[None]:
    """Stable-Baselines3 asks a table for pictures, and Gymnasium warns of it."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*render_mode='rgb_array' that is not in the possible render_modes")
        yield


@pytest.fixture
def live(checkpoint: str) -> dict[str, Any]:
    """Arguments of a live environment that is small and quick."""
    return {"checkpoint": checkpoint, "image_size": 32, "metric": "psnr", "noise_seeds": 1, "steps": (1, 4)}


def batched(name: str, num_envs: int = 3, **settings: Any) -> SkipDiffVecEnv:
    env: Any = gym.make_vec(name, num_envs=num_envs, autoreset_mode="SameStep", **settings)
    return SkipDiffVecEnv(env)


def test_an_algorithm_takes_the_name() -> None:
    PPO("MlpPolicy", TABLE, **QUICK).learn(16)
    assert gym.make("SkipDiffTable-v0", render_mode="rgb_array").render_mode == "rgb_array"
    with pytest.raises(ConfigError, match="render_mode must be rgb_array or None, got 'human'"):
        SkipDiffTableEnv(render_mode="human")


@pytest.mark.parametrize("name", VARIANTS)
def test_make_vec_env(name: str, checkpoint: str) -> None:
    arguments = {} if "Table" in name else {"checkpoint": checkpoint, "noise_seeds": 1}
    venv = make_vec_env(name, 2, seed=0, env_kwargs=arguments)
    venv.reset()
    space: Any = venv.action_space
    longest = 1 if "Bandit" in name or "StrideTable" in name else 2
    for _ in range(longest):
        actions = [np.zeros(space.shape, space.dtype), np.ones(space.shape, space.dtype) * ("Continuous" not in name)]
        _, rewards, dones, _ = venv.step(np.stack(actions))
    assert rewards.shape == (2,)
    assert dones.all() == (longest == 1 or "ContinuousTable" in name)


@pytest.mark.slow
def test_make_vec_env_with_processes(live: dict[str, Any]) -> None:
    """The same as in one process."""
    given: list[tuple[str, dict[str, Any]]] = [(TABLE, {}), (JUMP, live)]
    for name, arguments in given:
        found = []
        for kind in (DummyVecEnv, SubprocVecEnv):
            venv = make_vec_env(name, 2, seed=3, env_kwargs=arguments, vec_env_cls=kind)
            seen: list[Any] = [venv.reset()]
            for action in (0, 1, 0, 1, 1, 1, 0):
                observations, rewards, dones, _ = venv.step(np.array([action, 1 - action]))
                seen += [observations, rewards, dones]
            found.append(seen)
            venv.close()
        for one, other in zip(*found, strict=True):
            for part in one if isinstance(one, dict) else [...]:
                np.testing.assert_allclose(one[part], other[part], atol=1e-4)


@pytest.mark.parametrize("together", [False, True])
@pytest.mark.parametrize("name", [name for name in VARIANTS if "Continuous" not in name])
def test_masks(name: str, together: bool, live: dict[str, Any]) -> None:
    """One for each environment, of as many actions as there are; MaskablePPO learns with them."""
    arguments = {} if "Table" in name else live
    if name in ("SkipDiff-v0", "SkipDiffFaces-v0"):
        arguments = {**live, "steps": (20, 5)}
    venv: VecEnv = batched(name, 2, **arguments) if together else make_vec_env(name, 2, env_kwargs=arguments)
    venv.reset()
    space = venv.action_space
    count = space.n if isinstance(space, gym.spaces.Discrete) else space.nvec.sum()  # type: ignore[attr-defined]
    masks = venv.env_method("action_masks")
    assert [mask.shape for mask in masks] == [(count,)] * venv.num_envs
    assert all(mask.dtype == bool and mask.all() for mask in masks)
    assert len(venv.env_method("action_masks", indices=[1])) == 1
    policy = "MultiInputPolicy" if isinstance(venv.observation_space, gym.spaces.Dict) else "MlpPolicy"
    MaskablePPO(policy, venv, **QUICK).learn(8 * venv.num_envs)


def test_masks_of_a_sampled_table(checkpoint: str, photos: Path, tmp_path: Path) -> None:
    """In a batch each environment has its own, and they are those of scalar environments."""
    from skipdiff_env.tabulate import tabulate

    config = {
        "checkpoint": checkpoint, "images": str(photos / "0.png"), "image_size": 32, "steps": (1, 12),
        "skip_mode": "jump", "metric": "psnr",
    }  # fmt: skip
    tabulate(config, tmp_path / "table", noises=1, count=60)
    venv = batched(TABLE, table=str(tmp_path / "table"))
    scalar = [SkipDiffTableEnv(**{**VARIANTS["SkipDiffTable-v0"], "table": str(tmp_path / "table")}) for _ in range(3)]
    venv.reset()
    for env in scalar:
        env.reset()
    rng, differed = np.random.default_rng(1), False
    for _ in range(11):
        masks = venv.env_method("action_masks")
        for mask, env in zip(masks, scalar, strict=True):
            np.testing.assert_array_equal(mask, env.action_masks())
        differed |= len({mask.tobytes() for mask in masks}) > 1
        actions = np.array([rng.choice(np.flatnonzero(mask)) for mask in masks])
        venv.step(actions)
        for env, action in zip(scalar, actions, strict=True):
            env.step(action)
    assert differed


@pytest.mark.parametrize("name", [TABLE, JUMP])
def test_normalised_and_evaluated(name: str, live: dict[str, Any], tmp_path: Path) -> None:
    arguments = {} if name == TABLE else live
    for make in (lambda: make_vec_env(name, 2, env_kwargs=arguments), lambda: batched(name, **arguments)):
        venv, judged = VecNormalize(make()), VecNormalize(make(), training=False, norm_reward=False)
        callback = EvalCallback(
            judged, n_eval_episodes=2, eval_freq=4, best_model_save_path=str(tmp_path), verbose=0, warn=False
        )
        PPO("MlpPolicy" if name == TABLE else "MultiInputPolicy", venv, **QUICK).learn(16, callback)
        assert np.isfinite(callback.best_mean_reward)
        assert (tmp_path / "best_model.zip").is_file()


@pytest.mark.parametrize("name", [TABLE, JUMP])
def test_dqn(name: str, live: dict[str, Any]) -> None:
    """With a replay buffer that fits into memory; the one of a table is small whatever it holds."""
    policy, arguments = ("MlpPolicy", {}) if name == TABLE else ("MultiInputPolicy", live)
    size = 100_000 if name == TABLE else 200
    model = DQN(
        policy, make_vec_env(name, 2, env_kwargs=arguments), buffer_size=size, learning_starts=8, batch_size=8,
        train_freq=2,
    )  # fmt: skip
    model.learn(24)
    assert model.replay_buffer is not None
    observations = model.replay_buffer.observations
    stored = observations.values() if isinstance(observations, dict) else [observations]
    assert sum(each.nbytes for each in stored) < 2**26


@pytest.mark.parametrize("name", [TABLE, JUMP])
def test_attributes_and_methods(name: str, live: dict[str, Any]) -> None:
    arguments = {"nfe_penalty": 0.01, **({} if name == TABLE else live)}
    for venv in (
        DummyVecEnv([lambda: gym.make(name, **arguments)] * 2),
        batched(name, 2, **arguments),
    ):
        venv.reset()
        assert venv.get_attr("nfe_penalty") == [0.01, 0.01]
        with pytest.raises(ConfigError, match=r"nfe_penalty cannot be set in an environment that is made, got 0\.5"):
            venv.set_attr("nfe_penalty", 0.5)
        assert venv.get_attr("nfe_penalty") == [0.01, 0.01]
        assert len(venv.env_method("get_state")) == 2
    monitored = make_vec_env(name, 2, env_kwargs=arguments)
    with pytest.raises(ConfigError, match="cannot be set"):
        monitored.env_method("set_wrapper_attr", "nfe_penalty", 0.5)
    monitored.set_options({"nfe_penalty": 0.5})
    monitored.reset()
    assert [info["nfe_penalty"] for info in monitored.reset_infos] == [0.5, 0.5]
