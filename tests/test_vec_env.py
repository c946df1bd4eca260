"""The VecEnv of Stable-Baselines3 over the batched environment, against SB3's own over scalar environments."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import gymnasium as gym
import numpy as np
import psutil
import pytest
import torch
from stable_baselines3 import DQN, PPO
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv, VecFrameStack, VecMonitor

from agents.networks.frames import resize_latents
from agents.training.vec_env import (
    SkipDiffVecEnv,
    VecPictureBaseline,
    VecResizeLatents,
    check_memory,
    make_env,
    stack_episode,
)
from ddpm.util.errors import ConfigError
from skipdiff_env.env import SkipDiffEnv
from skipdiff_env.memo import Memo
from skipdiff_env.rules import InvalidActionError
from skipdiff_env.vector_env import SkipDiffVectorEnv

N = 5
DECISIONS = N - 1


@pytest.fixture
def settings(checkpoint: str, photos: Path) -> dict[str, Any]:
    return {
        "checkpoint": checkpoint, "images": str(photos), "image_size": 32, "steps": (20, N), "metric": "psnr",
        "noise_seeds": 2,
    }  # fmt: skip


@pytest.fixture
def env(settings: dict[str, Any]) -> SkipDiffVecEnv:
    return SkipDiffVecEnv(SkipDiffVectorEnv(3, autoreset_mode="SameStep", render_mode="rgb_array", **settings))


def random_actions(steps: int, num_envs: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(2, size=(steps, num_envs))


def assert_same_infos(ours: list[dict[str, Any]], theirs: list[dict[str, Any]]) -> None:
    for our, their in zip(ours, theirs, strict=True):
        assert our.keys() == their.keys()
        for key in our.keys() - {"terminal_observation", "metrics"}:
            assert our[key] == their[key]
            assert type(our[key]) is type(their[key])
        if "terminal_observation" in our:
            np.testing.assert_allclose(our["terminal_observation"], their["terminal_observation"], atol=1e-4)
            assert our["metrics"] == pytest.approx(their["metrics"], abs=1e-4)


def test_same_as_dummy_vec_env_over_scalar_environments(env: Any, settings: dict[str, Any]) -> None:
    theirs: Any = DummyVecEnv([lambda: SkipDiffEnv(**settings)] * 3)
    assert env.observation_space == theirs.observation_space
    assert env.action_space == theirs.action_space
    for venv in (env, theirs):
        venv.seed(7)
    np.testing.assert_allclose(env.reset(), theirs.reset(), atol=1e-4)
    assert_same_infos(env.reset_infos, theirs.reset_infos)
    ends = 0
    for actions in random_actions(2 * DECISIONS + 1):
        ours, expected = env.step(actions), theirs.step(actions)
        for one, other in zip(ours[:3], expected[:3], strict=True):
            assert isinstance(one, np.ndarray)
            assert isinstance(other, np.ndarray)
            assert (one.shape, one.dtype) == (other.shape, other.dtype)
            np.testing.assert_allclose(one, other, atol=1e-4)
        assert_same_infos(ours[3], expected[3])
        assert_same_infos(env.reset_infos, theirs.reset_infos)
        ends += int(ours[2].sum())
    assert ends == 2 * 3


def test_episodes_terminate_and_are_never_truncated(env: SkipDiffVecEnv) -> None:
    env.reset()
    for k, actions in enumerate(random_actions(3 * DECISIONS)):
        observations, rewards, dones, infos = env.step(actions)
        assert isinstance(observations, np.ndarray)
        assert not any(info["TimeLimit.truncated"] for info in infos)
        last = (k + 1) % DECISIONS == 0
        assert dones.tolist() == [last] * 3
        assert (rewards != 0).tolist() == [last] * 3
        for i, info in enumerate(infos):
            assert ("terminal_observation" in info) == ("start" in info) == last
            if last:
                assert info["diffusion_step"] == 0
                assert env.reset_infos[i]["diffusion_step"] == N
                assert not np.array_equal(info["terminal_observation"], observations[i])


def test_seeding(env: SkipDiffVecEnv) -> None:
    assert env.seed(3) == [3, 4, 5]
    first = env.reset()
    env.seed(3)
    np.testing.assert_array_equal(env.reset(), first)
    assert not np.array_equal(env.reset(), first)  # a seed is for one reset
    env.seed(4)
    np.testing.assert_array_equal(env.reset()[:2], first[1:])


def test_options(env: SkipDiffVecEnv) -> None:
    env.set_options({"image": 2, "noise_seed": 1})
    observations = env.reset()
    assert [(info["image_index"], info["noise_seed"]) for info in env.reset_infos] == [(2, 1)] * 3
    np.testing.assert_array_equal(observations[0], observations[2])
    env.set_options([{"image": 0}, {}, {"image": 1, "noise_seed": 0}])
    env.reset()
    assert [info["image_index"] for info in env.reset_infos][::2] == [0, 1]
    env.set_options({"picture": 0})
    with pytest.raises(ConfigError, match="unknown reset option picture"):
        env.reset()


def test_attributes_and_methods(env: SkipDiffVecEnv) -> None:
    assert env.get_attr("render_mode") == ["rgb_array"] * 3
    assert env.get_attr("observation_space", 1) == [env.observation_space]
    assert env.get_attr("decisions", [0, 2]) == [DECISIONS] * 2
    assert env.has_attr("plan")
    assert not env.has_attr("gravity")
    env.reset()
    for actions in random_actions(DECISIONS):
        env.step(actions)
    results = env.get_attr("sr")
    assert [sr.shape for sr in results] == [(3, 32, 32)] * 3
    assert env.get_attr("sr", [2])[0] is results[2]
    memo = Memo(1)
    env.set_attr("memo", memo)
    assert env.task.memo is memo
    with pytest.raises(ConfigError, match="all of them alike"):
        env.set_attr("memo", Memo(0), indices=1)
    outcomes = env.env_method("schedule_outcomes", [0], [0, 1], indices=[0, 1])
    assert len(outcomes) == 2
    assert outcomes[0] is outcomes[1]
    assert outcomes[0].rewards().shape == (1, 2, N)
    with pytest.raises(ConfigError, match=r"call reset\(\) of the VecEnv"):
        env.env_method("reset")
    with pytest.raises(AttributeError, match="gravity"):
        env.env_method("gravity")
    assert env.env_is_wrapped(Monitor, [0, 1]) == [False, False]


def test_render(env: SkipDiffVecEnv) -> None:
    env.reset()
    images = env.get_images()
    assert len(images) == 3
    frame = env.render()
    assert frame is not None
    assert images[0] is not None
    assert frame.dtype == np.uint8
    assert frame.shape == (2 * images[0].shape[0], 2 * images[0].shape[1], 3)
    one = env.env_method("render", indices=1)
    np.testing.assert_array_equal(one[0], images[1])


def test_what_is_no_action_is_refused(env: SkipDiffVecEnv, settings: dict[str, Any]) -> None:
    """Rather than rounded, or taken for another one."""
    env.reset()
    for actions in ([0, 1, 5], [0, 1, -1], [0.7, 1.0, 0.0]):
        with pytest.raises(InvalidActionError, match="in each row a whole number, 0"):
            env.step(np.array(actions))
    jumps = {
        **settings,
        "steps": (1, 6),
        "skip_mode": "jump",
        "decisions": "schedule",
        "schedules": ["6", "6,3", "6,4"],
    }
    venv = SkipDiffVecEnv(SkipDiffVectorEnv(2, autoreset_mode="SameStep", **jumps))
    venv.reset()
    for actions in ([0, 3], [-1, 0], [0.5, 0.0]):
        with pytest.raises(InvalidActionError, match=r"the place of a schedule, 0 … 2, got"):
            venv.step(np.array(actions))


def test_another_autoreset_mode_is_refused(settings: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="autoreset_mode=\"SameStep\", got 'NextStep'"):
        SkipDiffVecEnv(SkipDiffVectorEnv(2, **settings))


def make_pair(settings: dict[str, Any]) -> tuple[Any, Any]:
    """The factory's environment, and one of latents alone, both with the same seeds."""
    return make_env(3, seed=5, **settings), make_env(3, seed=5, frame_stack=False, **settings)


def test_factory_stacks_the_latents_of_an_episode(settings: dict[str, Any]) -> None:
    """Padding is exactly zero, also after an episode has ended; the newest latent comes last."""
    stacked, plain = make_pair(settings)
    assert isinstance(stacked, VecFrameStack)
    assert isinstance(stacked.venv, VecMonitor)
    assert stacked.observation_space.shape == (3 * DECISIONS, 32, 32)
    observations: Any = stacked.reset()
    latent = plain.reset()
    episode = [latent]
    for actions in random_actions(2 * DECISIONS + 1):
        assert isinstance(observations, np.ndarray)
        frames = observations.reshape(3, DECISIONS, 3, 32, 32)
        padding = DECISIONS - len(episode)
        assert not frames[:, :padding].any()
        np.testing.assert_array_equal(frames[:, padding:], np.stack(episode, axis=1))
        observations, _, dones, infos = stacked.step(actions)
        latent, _, _, expected = plain.step(actions)
        if dones.all():
            terminal = infos[0]["terminal_observation"]
            assert terminal.shape == (3 * DECISIONS, 32, 32)
            np.testing.assert_array_equal(terminal[-3:], expected[0]["terminal_observation"])
            np.testing.assert_array_equal(terminal[:-3], np.concatenate([frame[0] for frame in episode[1:]]))
            assert infos[0]["episode"]["l"] == DECISIONS
            episode = [latent]
        else:
            episode.append(latent)


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_latents_are_resized_before_they_are_stacked(settings: dict[str, Any], dtype: str) -> None:
    """As the SPN would have done it; also the last one of an episode."""
    whole: Any = make_env(3, seed=5, obs_dtype=dtype, **settings)
    latents = make_env(3, seed=5, frame_stack=False, obs_dtype=dtype, **settings)
    small: Any = stack_episode(VecResizeLatents(latents, 16))
    assert small.observation_space.shape == (3 * DECISIONS, 16, 16)
    assert small.observation_space.dtype == np.dtype(dtype)

    def resized(stacks: np.ndarray) -> np.ndarray:
        return resize_latents(torch.as_tensor(stacks).unflatten(-3, (-1, 3)).flatten(0, -4), 16).numpy()

    tolerance = 1e-3 if dtype == "float16" else 1e-5
    pair = small.reset(), whole.reset()
    for actions in random_actions(DECISIONS + 1):
        assert small.observation_space.contains(pair[0][0])
        np.testing.assert_allclose(pair[0].reshape(-1, 3, 16, 16), resized(pair[1]), rtol=tolerance, atol=tolerance)
        (ours, rewards, dones, infos), (theirs, expected, _, whole_infos) = small.step(actions), whole.step(actions)
        pair = ours, theirs
        np.testing.assert_array_equal(rewards, expected)
        if dones.all():
            last = infos[1]["terminal_observation"]
            assert last.dtype == np.dtype(dtype)
            terminal = resized(whole_infos[1]["terminal_observation"])
            np.testing.assert_allclose(last.reshape(-1, 3, 16, 16), terminal, rtol=tolerance, atol=tolerance)


def test_latents_are_never_enlarged(settings: dict[str, Any]) -> None:
    latents = make_env(2, frame_stack=False, **settings)
    assert VecResizeLatents(latents, 64).observation_space.shape == (3, 32, 32)


def test_factory_goes_through_the_registry(settings: dict[str, Any]) -> None:
    env: Any = make_env(2, obs_dtype="float16", **settings)
    assert env.reset().dtype == np.float16
    assert env.unwrapped.spec.id == "SkipDiff-v0"
    gym_env: Any = gym.make_vec("SkipDiff-v0", num_envs=2, autoreset_mode="SameStep", **settings)
    assert SkipDiffVecEnv(gym_env).num_envs == 2
    with pytest.raises(ConfigError, match="num_envs"):
        make_env(0, **settings)


def test_picture_baseline(settings: dict[str, Any]) -> None:
    """Rewards become differences from the picture's own earlier ones; what is reported stays what it is."""
    env, plain = VecPictureBaseline(make_env(3, seed=2, **settings), memory=3), make_env(3, seed=2, **settings)
    np.testing.assert_array_equal(env.reset(), plain.reset())
    earlier: dict[int, list[float]] = {}
    relative: list[tuple[float, float]] = []
    for actions in random_actions(40 * DECISIONS):
        _, rewards, dones, infos = env.step(actions)
        _, expected, _, _ = plain.step(actions)
        if not dones.any():
            assert not rewards.any()
            continue
        for reward, own, info in zip(rewards, expected, infos, strict=True):
            assert info["episode"]["r"] == own
            before = earlier.setdefault(info["image_index"], [])
            if before:
                mean = before[0]
                for n, value in enumerate(before[1:], start=2):
                    mean += (value - mean) / min(n, 3)
                relative.append((float(reward), own - mean))
            else:
                assert reward == 0
            before.append(float(own))
    scaled, differences = np.array(relative).T
    assert (np.sign(scaled) == np.sign(differences)).all()
    assert scaled[10:].std() == pytest.approx(1, abs=0.4)
    assert np.corrcoef(scaled[10:], differences[10:])[0, 1] > 0.9


def test_buffers_that_do_not_fit(settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    env = make_env(2, **settings)
    size = 4 * 3 * DECISIONS * 32**2
    ppo = PPO("MlpPolicy", env, n_steps=2**9, policy_kwargs={"net_arch": [1]})
    assert check_memory(ppo) == f"rollout buffer: {(2**10 * (size + 6 * 4 + 8)) / 2**20:,.1f} MiB"
    dqn = DQN("MlpPolicy", env, buffer_size=2**10, policy_kwargs={"net_arch": [1]})
    assert check_memory(dqn) == f"replay buffer: {2**11 * size / 2**20:,.1f} MiB"
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=0.01 * 2**30))
    for model, advice in ((ppo, "-p n_envs=… or -p n_steps=…"), (dqn, "-p buffer_size=…")):
        with pytest.raises(ConfigError, match=rf"only 10 MiB of memory are free: lower {advice}, or take --obs-dtype"):
            check_memory(model)


@pytest.mark.parametrize("how", [lambda env: pickle.loads(pickle.dumps(env)), copy.deepcopy])
def test_pickled(env: Any, how: Callable[[SkipDiffVecEnv], SkipDiffVecEnv]) -> None:
    """An environment in the middle of its episodes goes on as the original does."""
    env.seed(1)
    actions = random_actions(3 * DECISIONS)
    env.reset()
    for action in actions[:-DECISIONS]:
        env.step(action)
    again = how(env)
    for action in actions[-DECISIONS:]:
        ours: Any = again.step(action)
        theirs: Any = env.step(action)
        for a, b in zip(ours[:3], theirs[:3], strict=True):
            np.testing.assert_allclose(a, b, atol=1e-5)
    assert ours[2].all()
    assert [info["metrics"] for info in ours[3]] == [info["metrics"] for info in theirs[3]]


def test_choices_of_schedules_as_a_vec_env(checkpoint: str) -> None:
    """An env step is an episode; the price of a forward is in view; on- and off-policy algorithms learn."""
    env: Any = gym.make_vec(
        "SkipDiffBandit-v0", num_envs=3, autoreset_mode="SameStep", checkpoint=checkpoint, image_size=32,
        noise_seeds=2, metric="lpips", steps=(1, 4), observation="dict", nfe_penalty=(0.001, 0.1),
        schedules=["even:4", "4,3,1", "4,2"],
    )  # fmt: skip
    venv = SkipDiffVecEnv(env)
    assert set(venv.observation_space) == {"latent", "condition", "step", "level", "price"}  # type: ignore[call-overload]
    venv.seed(0)
    first: Any = venv.reset()
    begun = [dict(info) for info in venv.reset_infos]
    observations, rewards, dones, infos = venv.step(np.arange(3))
    assert dones.all()
    outcomes = venv.task.schedule_outcomes([info["image_index"] for info in begun], [0, 1], ["even:4", "4,3,1", "4,2"])
    for i, info in enumerate(infos):
        assert info["levels"] == ((4, 3, 2, 1), (4, 3, 1), (4, 2))[i]
        quality = -outcomes.metrics["lpips"][i, begun[i]["noise_seed"], i]
        assert rewards[i] == pytest.approx(quality - begun[i]["nfe_penalty"] * (4, 3, 2)[i], abs=1e-3)
        np.testing.assert_array_equal(info["terminal_observation"]["condition"], first["condition"][i])
    following: Any = observations
    for i in range(3):
        assert {key: part[i] for key, part in following.items()} in env.single_observation_space
    model = PPO("MultiInputPolicy", VecPictureBaseline(venv), n_steps=4, batch_size=6, n_epochs=1, seed=0)
    model.learn(24)
    assert model.num_timesteps == 24
    dqn = DQN("MultiInputPolicy", venv, learning_starts=3, buffer_size=32, batch_size=4, seed=0)
    assert dqn.learn(12).num_timesteps == 12
