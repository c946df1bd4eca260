"""The batched environment against Gymnasium's own vectorisation of the scalar one."""

import copy
import pickle
import warnings
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.passive_env_checker import data_shares_objects
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import given, settings
from hypothesis import strategies as st

from ddpm.util.errors import ConfigError, SkipDiffError
from skipdiff_env import Action, SkipDiffEnv, SkipDiffVectorEnv
from skipdiff_env.metrics import Metric
from skipdiff_env.rules import InvalidActionError, ResetNeededError
from tests.conftest import counting

DENOISE, SKIP = Action.DENOISE, Action.SKIP
SMALL: dict[str, Any] = {"image_size": 32, "steps": (3, 4), "metric": "psnr", "noise_seeds": 5}
quick = settings(max_examples=15, deadline=None)


def make(checkpoint: str, num_envs: int = 3, **arguments: Any) -> SkipDiffVectorEnv:
    """A small, quick environment."""
    return SkipDiffVectorEnv(num_envs, checkpoint=checkpoint, **{**SMALL, **arguments})


def assert_same(ours: Any, theirs: Any, where: str = "") -> None:
    """Equal structure, types and shapes; numbers to 1e-4."""
    assert type(ours) is type(theirs), where
    if isinstance(ours, dict):
        assert ours.keys() == theirs.keys(), where
        for key in ours:
            assert_same(ours[key], theirs[key], f"{where}/{key}")
    elif isinstance(ours, tuple | list):
        assert len(ours) == len(theirs), where
        for i, (a, b) in enumerate(zip(ours, theirs, strict=True)):
            assert_same(a, b, f"{where}/{i}")
    elif isinstance(ours, np.ndarray) and ours.dtype == object:
        assert_same(tuple(ours), tuple(theirs), where)
    elif isinstance(ours, np.ndarray):
        assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape), where
        np.testing.assert_allclose(ours, theirs, atol=1e-4, rtol=1e-4, err_msg=where)
    else:
        assert ours == theirs, where


# --- the same as the scalar environment ---


@quick
@given(
    data=st.data(),
    num_envs=st.integers(1, 5),
    mode=st.sampled_from([AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP]),
    skip_mode=st.sampled_from(["restart", "jump"]),
    coarse_sampler=st.sampled_from(["ddpm", "ddim", "dpmsolver++"]),
    observation=st.sampled_from(["latent", "dict"]),
    nfe_penalty=st.sampled_from([0.0, (0.001, 0.1)]),
    cache_mb=st.sampled_from([0, 0.2, 64]),
)
def test_as_sync_vector_env(
    data: st.DataObject,
    short_checkpoint: str,
    num_envs: int,
    mode: AutoresetMode,
    skip_mode: str,
    coarse_sampler: str,
    observation: str,
    nfe_penalty: Any,
    cache_mb: float,
) -> None:
    settings = {
        **SMALL, "checkpoint": short_checkpoint, "skip_mode": skip_mode, "coarse_sampler": coarse_sampler,
        "observation": observation, "nfe_penalty": nfe_penalty, "cache_mb": cache_mb,
    }  # fmt: skip
    ours = SkipDiffVectorEnv(num_envs, autoreset_mode=mode.value, **settings)
    theirs = SyncVectorEnv([lambda: SkipDiffEnv(**settings)] * num_envs, autoreset_mode=mode)
    for name in ("observation_space", "action_space", "single_observation_space", "single_action_space", "metadata"):
        assert getattr(ours, name) == getattr(theirs, name)
    assert_same(ours.reset(seed=11), theirs.reset(seed=11), "reset")
    assert ours.np_random_seed == theirs.np_random_seed
    for step in range(data.draw(st.integers(1, 9), label="steps")):
        actions = np.array(data.draw(st.lists(st.integers(0, 1), min_size=num_envs, max_size=num_envs)))
        assert_same(ours.step(actions), theirs.step(actions), f"step {step}")
        if num_envs > 1 and data.draw(st.integers(0, 5), label="reset some") == 0:
            mask = np.arange(num_envs) % 2 == 0
            assert_same(
                ours.reset(options={"reset_mask": mask}), theirs.reset(options={"reset_mask": mask}), "masked reset"
            )


def test_seeds(short_checkpoint: str) -> None:
    env = make(short_checkpoint)
    counted = env.reset(seed=5)[0]
    assert np.array_equal(counted, make(short_checkpoint).reset(seed=[5, 6, 7])[0])
    assert np.array_equal(counted, env.reset(seed=np.arange(5, 8))[0])  # type: ignore[arg-type]
    scalar = SkipDiffEnv(checkpoint=short_checkpoint, **SMALL)
    np.testing.assert_allclose(counted[2], scalar.reset(seed=7)[0], atol=1e-4)
    again = env.reset(seed=[None, 6, None])[0]
    assert np.array_equal(again[1], counted[1])
    assert not np.array_equal(again[0], counted[0])


@pytest.mark.parametrize("size", [1, 16])
def test_whatever_the_batch(short_checkpoint: str, size: int) -> None:
    env = make(short_checkpoint, size, cache_mb=0)
    observations, _ = env.reset(seed=0)
    for _ in range(3):
        observations, rewards, *_ = env.step(np.zeros(size, dtype=np.int64))
    alone = make(short_checkpoint, 1)
    alone.reset(seed=size - 1)
    for _ in range(3):
        observation, reward, *_ = alone.step(np.array([DENOISE]))
    np.testing.assert_allclose(observations[-1], observation[0], atol=1e-4)
    assert rewards[-1] == pytest.approx(reward[0], abs=1e-4)


@settings(quick, max_examples=8)
@given(
    data=st.data(),
    mode=st.sampled_from(["NextStep", "SameStep"]),
    observation=st.sampled_from(["latent", "dict"]),
    skip_mode=st.sampled_from(["restart", "jump"]),
)
def test_restored_is_continued(
    data: st.DataObject, short_checkpoint: str, mode: str, observation: str, skip_mode: str
) -> None:
    """Here, in another environment and in copies, at any moment, over the end of episodes."""
    arguments = {"autoreset_mode": mode, "observation": observation, "skip_mode": skip_mode, "nfe_penalty": (0.01, 0.1)}
    env, other = make(short_checkpoint, 2, **arguments), make(short_checkpoint, 2, **arguments)
    actions = np.array(data.draw(st.lists(st.integers(0, 1), min_size=18, max_size=18))).reshape(9, 2)
    moment = data.draw(st.integers(0, 8), label="moment")
    seen, _ = env.reset(seed=data.draw(st.integers(0, 9), label="seed"))
    for row in actions[:moment]:
        seen, *_ = env.step(row)
    if data.draw(st.booleans(), label="out of step"):
        seen, _ = env.reset(options={"reset_mask": np.array([True, False])})
    state = pickle.loads(pickle.dumps(env.get_state()))
    copies = [copy.deepcopy(env), pickle.loads(pickle.dumps(env))]
    expected = [env.step(row) for row in actions[moment:]]
    for each in (env, other, *copies):
        each.reward_failures = [0] * 2
        with counting(env.task.unet) as forwards:
            assert_same(each.set_state(state), seen)
        assert forwards == []
        for row, step in zip(actions[moment:], expected, strict=True):
            assert_same(each.step(row), step)


@pytest.mark.parametrize(
    "state", [None, {}, "state", {"episodes": [], "generators": []}, {"episodes": [1, 2, 3], "generators": 0}]
)
def test_what_is_no_state(short_checkpoint: str, state: Any) -> None:
    with pytest.raises(ConfigError, match=r"not a state that get_state\(\) returned|episodes must be one value"):
        make(short_checkpoint).set_state(state)


# --- batching ---


def test_one_forward_for_all_that_denoise(short_checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    env = make(short_checkpoint, 5, cache_mb=0, noise_seeds=None)
    calls: list[int] = []
    measure = Metric.__call__

    def counted(metric: Metric, sr: Any, hr: Any) -> Any:
        calls.append(len(sr))
        return measure(metric, sr, hr)

    monkeypatch.setattr(Metric, "__call__", counted)
    with counting(env.task.unet) as forwards:
        env.reset(seed=0)
        assert forwards == [5, 5], "S - 1 coarse steps"
        env.step(np.array([DENOISE, SKIP, DENOISE, SKIP, SKIP]))
        assert forwards[2:] == [2]
        env.step(np.full(5, SKIP))
        assert forwards[3:] == []
        assert calls == []
        *_, infos = env.step(np.full(5, DENOISE))
        assert forwards[3:] == [5, 5], "D_2 and the D_1 that is always performed"
        assert calls == [5]
    assert infos["nfe"].sum() == sum(forwards)


def test_a_large_batch_is_one_forward(short_checkpoint: str) -> None:
    env = make(short_checkpoint, 40, cache_mb=0, noise_seeds=None)
    with counting(env.task.unet) as forwards:
        env.reset(seed=0)
    assert forwards == [40, 40]


def test_environments_share_one_memory(short_checkpoint: str) -> None:
    env = make(short_checkpoint, 3)
    env.reset(options={"image": 1, "noise_seed": 1})
    for _ in range(3):
        env.step(np.full(3, DENOISE))
    with counting(env.task.unet) as forwards:
        env.reset(options={"image": [1, 1, 1], "noise_seed": 1})
        for _ in range(3):
            env.step(np.full(3, DENOISE))
    assert forwards == []


# --- resets ---


def test_options_for_each_environment(short_checkpoint: str) -> None:
    env = make(short_checkpoint)
    observations, infos = env.reset(options={"image": [4, 5, None], "noise_seed": [2, 3, 4]})
    assert infos["image_index"][:2].tolist() == [4, 5]
    assert infos["noise_seed"].tolist() == [2, 3, 4]
    pictures = np.stack([env.task.pictures[int(i)] for i in infos["image_index"]])
    again, infos = env.reset(options={"image": pictures, "noise_seed": np.array([2, 3, 4])})
    assert infos["image_index"].tolist() == [-1, -1, -1]
    assert np.array_equal(observations, again)
    _, infos = env.reset(options={"image": 6})
    assert infos["image_index"].tolist() == [6, 6, 6]
    kept = env.reset(options={"image": [0, 1, 2], "noise_seed": 0})[0]
    mask = np.array([False, True, False])
    observations, infos = env.reset(options={"image": [7, 8, 9], "reset_mask": mask})
    assert np.array_equal(infos["_image_index"], mask)
    assert infos["image_index"][1] == 8
    assert np.array_equal((observations != kept).any(axis=(1, 2, 3)), mask)


def test_options_are_not_changed(short_checkpoint: str) -> None:
    options = {"reset_mask": np.ones(3, dtype=bool), "image": 1}
    make(short_checkpoint).reset(options=options)
    assert options.keys() == {"reset_mask", "image"}


def test_disabled_autoreset(short_checkpoint: str) -> None:
    env = make(short_checkpoint, autoreset_mode="Disabled")
    env.reset(seed=0)
    env.step(np.full(3, SKIP))
    env.reset(options={"reset_mask": np.array([False, False, True])})
    for _ in range(2):
        _, _, terminations, *_ = env.step(np.full(3, SKIP))
    assert terminations.tolist() == [True, True, False]
    with pytest.raises(ResetNeededError, match="environments 0, 1 have ended"):
        env.step(np.full(3, SKIP))
    env.reset(options={"reset_mask": terminations})
    _, _, terminations, *_ = env.step(np.full(3, SKIP))
    assert terminations.tolist() == [False, False, True]


def test_results_stay_after_an_autoreset(short_checkpoint: str) -> None:
    env = make(short_checkpoint, autoreset_mode="SameStep", report_metrics=["ssim"])
    assert env.sr == [None] * 3
    env.reset(seed=0, options={"image": [0, 1, 2], "noise_seed": 3})
    for _ in range(3):
        *_, infos = env.step(np.full(3, SKIP))
    assert infos["diffusion_step"].tolist() == [4, 4, 4], "the next episode"
    final = infos["final_info"]
    assert final["start"].tolist() == [1, 1, 1]
    table = env.schedule_outcomes([0, 1, 2], [3])
    for name in ("psnr", "ssim"):
        np.testing.assert_allclose(final["metrics"][name], table.metrics[name][:, 0, 0], atol=1e-3)
    assert all(sr is not None and sr.shape == (3, 32, 32) for sr in env.sr)
    for hr, picture in zip(env.hr, (env.task.pictures[i] for i in range(3)), strict=True):
        assert hr is not None
        np.testing.assert_allclose((hr + 1) * 127.5, picture.transpose(2, 0, 1), atol=1e-3)


def test_outcomes_of_all_starts(short_checkpoint: str) -> None:
    env = make(short_checkpoint, 2, nfe_penalty=0.5, cache_mb=0, noise_seeds=None)
    with counting(env.task.unet) as forwards:
        table = env.schedule_outcomes([3, 1], [5, 6, 7])
    assert table.rewards().shape == (2, 3, 4)
    assert sum(forwards) == 2 * 3 * (2 + 1 + 2 + 3 + 4), "the coarse stage once, and each chain once"
    np.testing.assert_allclose(table.rewards(), table.metrics["psnr"] - 0.5 * np.arange(1, 5))
    scalar = SkipDiffEnv(checkpoint=short_checkpoint, **SMALL, nfe_penalty=0.5)
    for i, image in enumerate([3, 1]):
        for start in range(1, 5):
            scalar.reset(options={"image": image, "noise_seed": 6})
            for t in range(4, 1, -1):
                _, reward, *_ = scalar.step(SKIP if t > start else DENOISE)
            assert reward == pytest.approx(table.rewards()[i, 1, start - 1], abs=1e-3)


def test_schedule_outcomes(short_checkpoint: str) -> None:
    settings: dict[str, Any] = {"checkpoint": short_checkpoint, **SMALL, "steps": (1, 6), "skip_mode": "jump"}
    schedules = [(6, 3), (6, 5, 2, 1)]
    batched = SkipDiffVectorEnv(2, **settings).schedule_outcomes([3, 1], [5, 6], schedules)
    alone = SkipDiffEnv(**settings).schedule_outcomes([1], [6], schedules)
    np.testing.assert_allclose(batched.rewards()[1, 1], alone.rewards()[0, 0], atol=1e-4)


# --- made by Gymnasium ---


def test_make_vec(short_checkpoint: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        env = gym.make_vec("SkipDiff-v0", num_envs=2, checkpoint=short_checkpoint, **SMALL)
    assert isinstance(env, SkipDiffVectorEnv)
    assert env.metadata["autoreset_mode"] is AutoresetMode.NEXT_STEP
    observations, infos = env.reset(seed=0)
    assert observations in env.observation_space
    assert env.spec is not None
    text = env.spec.to_json()
    again = gym.make_vec(EnvSpec.from_json(text))
    assert again.num_envs == 2
    assert_same(again.reset(seed=0), (observations, infos))
    wrapped: Any = gym.wrappers.vector.DictInfoToList(gym.wrappers.vector.RecordEpisodeStatistics(env))
    wrapped.reset(seed=0)
    for _ in range(3):
        _, rewards, terminations, _, reports = wrapped.step(np.array([SKIP, DENOISE]))
    assert terminations.all()
    for i in range(2):
        assert reports[i]["episode"]["r"] == pytest.approx(rewards[i])
        assert reports[i]["episode"]["l"] == 3
        assert reports[i]["metrics"]["psnr"] == pytest.approx(rewards[i])


def test_returned_data_are_the_callers_own(short_checkpoint: str) -> None:
    for mode in ("NextStep", "SameStep"):
        env = make(short_checkpoint, autoreset_mode=mode)
        returned: list[Any] = [env.reset(seed=0), *(env.step(np.full(3, SKIP)) for _ in range(8))]
        for i, a in enumerate(returned):
            assert a[0] in env.observation_space
            for b in returned[i + 1 :]:
                assert not data_shares_objects((a[0], a[-1]), (b[0], b[-1]))


@pytest.mark.slow
def test_worker_processes(short_checkpoint: str) -> None:
    """Spawned workers import nothing but what the specification names."""
    env = gym.make_vec(
        "skipdiff_env:SkipDiff-v0", num_envs=1, vectorization_mode="async", vector_kwargs={"context": "spawn"},
        checkpoint=short_checkpoint, **SMALL,
    )  # fmt: skip
    theirs = env.reset(seed=4)
    env.close()
    assert_same(make(short_checkpoint, 1).reset(seed=4), theirs)


def test_render(short_checkpoint: str) -> None:
    env = make(short_checkpoint, 2, render_mode="rgb_array")
    with pytest.raises(ResetNeededError):
        env.render()
    env.reset(seed=0)
    frames = env.render()
    assert frames is not None
    assert len(frames) == 2
    scalar = SkipDiffEnv(checkpoint=short_checkpoint, **SMALL, render_mode="rgb_array")
    scalar.reset(seed=1)
    frame = scalar.render()
    assert frame is not None
    assert np.abs(frames[1].astype(int) - frame).max() <= 1
    with pytest.warns(UserWarning, match="render_mode"):
        assert make(short_checkpoint).render() is None


# --- errors ---


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_envs": 0}, "num_envs must be a whole number of at least 1, got 0"),
        ({"num_envs": 2.0}, "num_envs"),
        ({"autoreset_mode": "next"}, "NextStep, SameStep, Disabled"),
        ({"render_mode": "human"}, "rgb_array"),
        ({"max_episode_steps": 2}, "3 env steps and is never truncated"),
        ({"steps": (5, 3)}, "multiply"),
        ({"no_such": 1}, "unknown argument no_such of the environment; known are checkpoint"),
    ],
)
def test_wrong_arguments(short_checkpoint: str, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        gym.make_vec("SkipDiff-v0", **{"num_envs": 2, "checkpoint": short_checkpoint, **SMALL, **arguments})


@pytest.mark.parametrize(
    "actions",
    [[0, 1], [0, 1, 2], [0, 1, -1], [0.0, 1.0, 0.0], [0, 1, float("nan")], 1, [[0, 1, 1]], None, ["a", "b", "c"]],
)
def test_wrong_actions(short_checkpoint: str, actions: Any) -> None:
    env = make(short_checkpoint)
    env.reset(seed=0)
    with pytest.raises(InvalidActionError, match=r"an array \(3,\), in each row a whole number, 0 \(DENOISE\)"):
        env.step(actions)


def test_step_before_reset(short_checkpoint: str) -> None:
    env = make(short_checkpoint)
    with pytest.raises(ResetNeededError, match="call reset"):
        env.step(np.zeros(3, dtype=np.int64))
    with pytest.raises(ResetNeededError, match="call reset"):
        env.reset(options={"reset_mask": np.array([True, False, False])})


@pytest.mark.parametrize(
    "arguments",
    [
        {"seed": [1, 2]},
        {"options": "x"},
        {"options": {"image": [1, 2]}},
        {"options": {"noise_seed": [1, 2, 3, 4]}},
        {"options": {"images": 1}},
        {"options": {"reset_mask": [1, 0, 1]}},
        {"options": {"reset_mask": np.zeros(3, dtype=bool)}},
        {"options": {"reset_mask": np.ones(2, dtype=bool)}},
    ],
)
def test_wrong_resets(short_checkpoint: str, arguments: dict[str, Any]) -> None:
    with pytest.raises(SkipDiffError):
        make(short_checkpoint).reset(**arguments)
