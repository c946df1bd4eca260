"""The scalar environment."""

import copy
import json
import pickle
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, cast

import gymnasium as gym
import numpy as np
import pytest
import torch
from gymnasium.envs.registration import EnvSpec
from gymnasium.utils.env_checker import check_env
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.torch import load_file, save_file

import skipdiff_env
from ddpm.checkpoints import shipped_checkpoints
from ddpm.nets.predictor import PREDICTOR
from ddpm.noise import KeyedNoise
from ddpm.pictures.degradation import Degradation
from ddpm.samplers import COARSE_SAMPLERS
from ddpm.sampling import coarse_sampler, refine, sample
from ddpm.schedule import Schedule, cosine_alphas_cumprod
from ddpm.util.errors import CheckpointError, ConfigError, ImageError, SkipDiffError
from skipdiff_env import Action, SkipDiffEnv
from skipdiff_env.judges import JUDGES, VARIABLE
from skipdiff_env.metrics import Metric, make_metric
from skipdiff_env.rules import InvalidActionError, ResetNeededError
from skipdiff_env.vector_env import SkipDiffVectorEnv
from tests.conftest import Photo, counting, tiny_unet

PAIRS = [(6, 2), (4, 3), (3, 4), (2, 6)]
DENOISE, SKIP = Action.DENOISE, Action.SKIP
quick = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def make(checkpoint: str, **arguments: Any) -> SkipDiffEnv:
    """A small, quick environment."""
    return SkipDiffEnv(**{"checkpoint": checkpoint, "image_size": 32, "steps": (3, 4), "metric": "psnr", **arguments})


def batch(image: np.ndarray) -> torch.Tensor:
    """(3, H, W) as a batch of one."""
    return torch.from_numpy(image)[None]


def result(env: SkipDiffEnv) -> np.ndarray:
    """What the last episode gave."""
    assert env.sr is not None
    return env.sr


def play(env: SkipDiffEnv, actions: Sequence[int], **reset: Any) -> tuple[float, dict[str, Any]]:
    """One episode; checks what holds for every episode, and gives reward and info of its end."""
    observation, info = env.reset(**reset)
    assert observation in env.observation_space
    for i, action in enumerate(actions):
        assert info["diffusion_step"] == env.task.plan.first - i
        observation, reward, terminated, truncated, info = env.step(action)
        assert observation in env.observation_space
        assert terminated == (i == len(actions) - 1)
        assert truncated is False
        assert terminated or reward == 0
    return reward, info


# --- registration ---


def test_import_is_cheap_and_idempotent() -> None:
    code = """
import sys, warnings, importlib
warnings.simplefilter("error")
import gymnasium, skipdiff_env
importlib.reload(skipdiff_env)
assert "torch" not in sys.modules and "pyiqa" not in sys.modules
assert set(skipdiff_env.__all__) <= set(dir(skipdiff_env))
spec = gymnasium.spec("SkipDiff-v0")
assert isinstance(spec.entry_point, str) and isinstance(spec.vector_entry_point, str) and spec.kwargs == {}
assert set(skipdiff_env.VARIANTS) <= set(gymnasium.registry)
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_lazy_names() -> None:
    for name in skipdiff_env.__all__:
        assert getattr(skipdiff_env, name).__name__ == name
    with pytest.raises(AttributeError, match="no attribute 'SkipDif'"):
        skipdiff_env.SkipDif  # noqa: B018


def test_made_by_module_in_a_fresh_process(checkpoint: str) -> None:
    code = f"""
import gymnasium
env = gymnasium.make("skipdiff_env:SkipDiff-v0", checkpoint={checkpoint!r}, image_size=32, metric="psnr")
print(env.reset(seed=0)[0].shape)
"""
    run = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert run.stdout.strip() == "(3, 32, 32)"


def test_default_arguments(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: Any, **kwargs: Any) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr("socket.socket.connect", refuse)
    env = gym.make("SkipDiff-v0")
    assert env.observation_space.shape == (3, 128, 128)
    observation, info = env.reset(seed=0)
    assert observation.dtype == np.float32
    assert info["diffusion_step"] == 10
    for _ in range(9):
        _, reward, terminated, truncated, info = env.step(SKIP)
    assert (terminated, truncated, info["nfe"], info["start"]) == (True, False, 10, 1)
    assert reward == pytest.approx(1 / info["metrics"]["niqe"])
    assert 3 < info["metrics"]["niqe"] < 40
    # a trained net keeps close to the target, even by ten forwards
    hr = env.unwrapped._episode.hr.numpy()  # type: ignore[attr-defined]
    assert np.abs(env.unwrapped.sr - hr).mean() < 0.2  # type: ignore[attr-defined]


def test_spec_round_trip(checkpoint: str) -> None:
    env = gym.make("SkipDiff-v0", checkpoint=checkpoint, image_size=32, steps=(5, 20), metric="psnr")
    assert env.spec is not None
    text = env.spec.to_json()
    json.loads(text)
    again = gym.make(EnvSpec.from_json(text))
    assert np.array_equal(env.reset(seed=3)[0], again.reset(seed=3)[0])
    assert again.unwrapped.task.plan.N == 20  # type: ignore[attr-defined]


# --- the checkers of Gymnasium and Stable-Baselines3 ---

# What SB3 says of every observation with three axes that is not a uint8 image; a latent is none.
EXPECTED = [
    r".*your observation .* is an image but its `dtype`",
    r".*your observation space .* is an image but the upper and lower bounds are not in \[0, 255\]",
    r".*minimal resolution for an image is 36x36 for the default `CnnPolicy`",
]


JUMP: dict[str, Any] = {"skip_mode": "jump", "steps": (1, 6), "observation": "dict", "reward": "negative"}


@pytest.mark.parametrize(
    "arguments",
    [
        {},
        {"obs_dtype": "float16"},
        {"skip_mode": "jump", "cache_mb": 0, "coarse_sampler": "ddim"},
        {"observation": "dict"},
        JUMP,
        {**JUMP, "nfe_penalty": (0.001, 0.1), "obs_dtype": np.float16, "fine_sampler": "ddim"},
    ],
)
def test_checkers(short_checkpoint: str, arguments: dict[str, Any]) -> None:
    from stable_baselines3.common.env_checker import check_env as sb3_check_env

    env = gym.make(
        "SkipDiff-v0",
        **{"checkpoint": short_checkpoint, "steps": (3, 4), "image_size": 32, "metric": "psnr", **arguments},
    ).unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env)
        for message in EXPECTED:
            warnings.filterwarnings("ignore", message=message)
        sb3_check_env(env)


# --- episodes ---


@quick
@given(data=st.data(), steps=st.sampled_from(PAIRS), skip_mode=st.sampled_from(["restart", "jump"]))
def test_any_episode(data: st.DataObject, short_checkpoint: str, steps: tuple[int, int], skip_mode: str) -> None:
    S, N = steps
    actions = data.draw(st.lists(st.integers(0, 1), min_size=N - 1, max_size=N - 1), label="actions")
    seed = data.draw(st.integers(0, 99), label="seed")
    env = make(short_checkpoint, steps=steps, skip_mode=skip_mode, cache_mb=0, nfe_penalty=0.25)
    with counting(env.task.unet) as forwards:
        reward, info = play(env, actions, seed=seed)
    assert info["nfe"] == len(forwards) == S + actions.count(DENOISE)
    assert info["reward_failures"] == 0
    picture = env.task.pictures[info["image_index"]]
    hr = picture.transpose(2, 0, 1).astype(np.float32) / 127.5 - 1
    (psnr,) = make_metric("psnr")(*(batch(image) for image in (result(env), hr)))
    assert info["metrics"]["psnr"] == pytest.approx(psnr, abs=1e-4)
    assert reward == pytest.approx(psnr - 0.25 * (actions.count(DENOISE) + 1), abs=1e-4)
    if skip_mode == "restart":
        table = env.schedule_outcomes([info["image_index"]], [info["noise_seed"]])
        assert table.metrics["psnr"].shape == (1, 1, N)
        assert table.metrics["psnr"][0, 0, info["start"] - 1] == pytest.approx(psnr, abs=1e-3)


@quick
@given(data=st.data(), fine_sampler=st.sampled_from(["ddpm", "ddim", "ddim:0.5", "dpmsolver++"]))
def test_any_episode_of_jumps(data: st.DataObject, short_checkpoint: str, fine_sampler: str) -> None:
    """Dictionary, price and reward follow the decisions, and the decisions are a schedule."""
    actions = data.draw(st.lists(st.integers(0, 1), min_size=5, max_size=5), label="actions")
    env = make(
        short_checkpoint, **JUMP, fine_sampler=fine_sampler, cache_mb=0, nfe_penalty=(0.01, 2.0), metric="colour"
    )
    observation, info = env.reset(seed=data.draw(st.integers(0, 99), label="seed"))
    assert 0.01 <= info["nfe_penalty"] <= 2
    condition, level = observation["condition"], 6
    with counting(env.task.unet) as forwards:
        for t, action in zip(range(6, 1, -1), actions, strict=True):
            before = observation
            observation, reward, terminated, _, info = env.step(action)
            assert observation in env.observation_space
            level = t - 1 if action == DENOISE else level
            ended = t == 2
            assert observation["step"] == np.float32((0 if ended else t - 1) / 6)
            assert observation["level"] == np.float32((0 if ended else level) / 6)
            assert observation["price"] == np.float32(info["nfe_penalty"])
            assert np.array_equal(observation["condition"], condition)
            if action == SKIP and not ended:
                assert np.array_equal(observation["latent"], before["latent"])
    assert terminated
    assert info["nfe"] == len(forwards) == 1 + actions.count(DENOISE)
    assert info["levels"] == (
        6,
        *(t - 1 for t, action in zip(range(6, 1, -1), actions, strict=True) if action == DENOISE),
    )
    assert reward == pytest.approx(-info["metrics"]["colour"] - info["nfe_penalty"] * info["nfe"])
    schedule = env.task.begin([info["image_index"]], [info["noise_seed"]])[0].refinement
    (((_, sr),),) = env.task.process.run_all_schedules([schedule], [Schedule(info["levels"])])
    np.testing.assert_allclose(result(env), sr.numpy(), atol=1e-5)
    assert env.hr is not None
    (colour,) = make_metric("colour")(batch(result(env)), batch(env.hr))
    assert info["metrics"]["colour"] == pytest.approx(colour, abs=1e-4)


def test_all_denoise_jumps_are_the_plain_sampler(short_checkpoint: str) -> None:
    """With η = 1 the full DDPM chain; and nothing but skips is one forward."""
    env = make(short_checkpoint, **{**JUMP, "steps": (1, 12)})
    options = {"image": 5, "noise_seed": 7}
    play(env, [DENOISE] * 11, options=options)
    process, lr_up = env.task.process, env.task.begin([5], [7])[0].refinement.lr_up[None]
    whole = sample(process.unet, process.alphas_cumprod, lr_up, KeyedNoise([7], lr_up.shape[1:]))
    np.testing.assert_allclose(result(env), process.unet.decode(whole, lr_up)[0].numpy(), atol=1e-5)
    env = make(short_checkpoint, **{**JUMP, "steps": (1, 12)}, cache_mb=0)
    with counting(env.task.unet) as forwards:
        _, info = play(env, [SKIP] * 11, options=options)
    assert (forwards, info["nfe"], info["levels"]) == ([1], 1, (12,))


def test_schedule_outcomes(short_checkpoint: str) -> None:
    """What schedules have in common is run once, and each gives what its episode gives."""
    schedules = [(6,), (6, 3), (6, 3, 1), (6, 5, 3), (6, 5, 4, 3, 2, 1), (6, 3)]
    env = make(short_checkpoint, **JUMP, nfe_penalty=0.5, cache_mb=0)
    with counting(env.task.unet) as forwards:
        table = env.schedule_outcomes([2, 0], [3, 4], schedules)
    assert table.rewards().shape == (2, 2, 6)
    # for each picture and noise the steps to 5, 3, 5 → 4, 5 → 3, 4 → 3, 3 → 2, 2 → 1, 3 → 1, and five last ones
    assert sum(forwards) == 4 * (8 + 5)
    for i, levels in enumerate(schedules):
        actions = [DENOISE if t - 1 in levels else SKIP for t in range(6, 1, -1)]
        reward, info = play(env, actions, options={"image": 0, "noise_seed": 4})
        assert reward == pytest.approx(table.rewards()[1, 1, i], abs=1e-4)
        assert info["metrics"]["psnr"] == pytest.approx(table.metrics["psnr"][1, 1, i], abs=1e-4)


def test_outcomes_belong_to_their_modes(short_checkpoint: str) -> None:
    env = make(short_checkpoint, **JUMP)
    with counting(env.task.unet) as forwards:
        with pytest.raises(ConfigError, match="name the schedules, which skip_mode jump has too many of"):
            env.schedule_outcomes([0], [0])
        with pytest.raises(ConfigError, match="levels must be falling whole numbers that begin with 6"):
            env.schedule_outcomes([0], [0], [(6, 2), (5, 2)])
        with pytest.raises(ConfigError, match="schedules of levels need skip_mode jump, got restart"):
            make(short_checkpoint).schedule_outcomes([0], [0], [(4, 2)])
    assert forwards == [], "nothing is computed before"


@pytest.mark.parametrize(("metric", "sign"), [("lpips", -1), ("psnr", 1)])
def test_negative_reward(short_checkpoint: str, metric: str, sign: int) -> None:
    reward, info = play(make(short_checkpoint, metric=metric, reward="negative"), [SKIP, SKIP, SKIP], seed=0)
    assert reward == sign * info["metrics"][metric]


def test_a_price_for_each_episode(short_checkpoint: str) -> None:
    env = make(short_checkpoint, nfe_penalty=(0.001, 0.1))
    prices = np.array([env.reset()[1]["nfe_penalty"] for _ in range(200)])
    assert prices.min() >= 0.001
    assert prices.max() <= 0.1
    assert 0.35 < (prices < 0.01).mean() < 0.65, "uniform in the logarithm"
    psnr = play(env, [SKIP] * 3, options={"image": 0, "noise_seed": 0})[1]["metrics"]["psnr"]
    for price in (0.0, 0.05, 0.1):
        reward, info = play(env, [SKIP] * 3, options={"image": 0, "noise_seed": 0, "nfe_penalty": price})
        assert (reward, info["nfe_penalty"]) == (pytest.approx(psnr - price), price)
    fixed = make(short_checkpoint, nfe_penalty=0.5)
    assert play(fixed, [SKIP] * 3, options={"image": 0, "noise_seed": 0, "nfe_penalty": 7})[0] == pytest.approx(
        psnr - 7
    )


def test_the_step_by_gymnasiums_wrapper(checkpoint: str) -> None:
    """What the documentation advises where the latent alone is seen."""
    env: Any = gym.wrappers.TimeAwareObservation(
        gym.make("SkipDiff-v0", checkpoint=checkpoint, image_size=32, steps=(10, 10), metric="psnr"), flatten=False
    )
    seen = [env.reset(seed=0)[0], *(env.step(SKIP)[0] for _ in range(8))]
    assert all(np.array_equal(each["obs"], seen[0]["obs"]) for each in seen)
    assert [int(each["time"][0]) for each in seen] == list(range(9))
    *_, terminated, truncated, _ = env.step(SKIP)
    assert (terminated, truncated) == (True, False)


# --- states ---

STATES: list[dict[str, Any]] = [
    {"steps": (3, 4)},
    {**JUMP, "nfe_penalty": (0.001, 0.1)},
    {**JUMP, "obs_dtype": "float16", "cache_mb": 0},
]


def same(a: Any, b: Any) -> bool:
    """Whether two observations are equal, bit by bit."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(np.array_equal(a[key], b[key]) for key in a)
    return np.array_equal(a, b)


@quick
@given(data=st.data(), arguments=st.sampled_from(STATES))
def test_restored_is_continued(data: st.DataObject, short_checkpoint: str, arguments: dict[str, Any]) -> None:
    """Here and in another environment, through pickle, at any moment, over the end of the episode."""
    env, other = make(short_checkpoint, **arguments), make(short_checkpoint, **arguments)
    decisions = env.task.decisions
    actions = data.draw(st.lists(st.integers(0, 1), min_size=2 * decisions, max_size=2 * decisions))
    moment = data.draw(st.integers(0, decisions), label="moment")
    observation, _ = env.reset(seed=data.draw(st.integers(0, 9), label="seed"))
    for action in actions[:moment]:
        observation, *_ = env.step(action)
    state = pickle.loads(pickle.dumps(env.get_state()))

    def go_on(env: SkipDiffEnv) -> list[Any]:
        given, ended = [], moment == decisions
        for action in actions[moment:]:
            step = env.reset() if ended else env.step(action)
            ended = len(step) == 5 and bool(step[2])
            given.append(step)
        return [*given, env.sr]

    expected = go_on(env)
    assert same(env.set_state(state), observation)
    again = go_on(env)
    with counting(other.task.unet) as forwards:
        assert same(other.set_state(state), observation)
    assert forwards == []
    assert (other.hr is None) == (env.hr is None)
    for theirs in (again, go_on(other)):
        assert same(expected[-1], theirs[-1])
        for ours, their in zip(expected[:-1], theirs[:-1], strict=True):
            assert same(ours[0], their[0])
            assert ours[1:-1] == their[1:-1]
            assert {**ours[-1], "reward_failures": 0} == {**their[-1], "reward_failures": 0}


@pytest.mark.parametrize(
    "state",
    [None, {}, {"episode": None, "generator": None}, {"episode": {"image": 0}, "generator": {}}, "state", [1, 2]],
)
def test_what_is_no_state(short_checkpoint: str, state: Any) -> None:
    with pytest.raises(ConfigError, match=r"not a state that get_state\(\) returned"):
        make(short_checkpoint).set_state(state)


def test_states_of_others(short_checkpoint: str, photo: Photo) -> None:
    env = make(short_checkpoint)
    with pytest.raises(ResetNeededError, match="before get_state"):
        env.get_state()
    env.reset(seed=0, options={"image": 3})
    with pytest.raises(ConfigError, match="image must be an index from 0 to 0"):
        make(short_checkpoint, images=[photo(32, 32)]).set_state(env.get_state())
    with pytest.raises(ConfigError, match=r"one of latents \(3, 32, 32\), not \(3, 64, 64\)"):
        make(short_checkpoint, image_size=64).set_state(env.get_state())
    env.reset(options={"image": photo(40, 40)})
    other = make(short_checkpoint, images=[photo(32, 32)])
    assert same(other.set_state(env.get_state()), env._observe()), "a picture of its own travels with the state"


# what the state was taken with instead of the environment's own
FOREIGN: list[dict[str, Any]] = [
    {"images": "others"},
    {"checkpoint": "another"},
    {"fine_sampler": "ddim"},
    {"steps": (4, 3)},
    {"first_step": 6},
    {"coarse_sampler": "ddim"},
    {"skip_mode": "jump"},
    {"degradation": "photo:1"},
]


@pytest.mark.parametrize("difference", FOREIGN, ids=lambda difference: next(iter(difference)))
def test_foreign_states_are_refused(
    difference: dict[str, Any], short_checkpoint: str, tmp_path: Path, photo: Photo
) -> None:
    """Nothing of them is computed, remembered or kept."""
    tiny_unet(seed=1, diffusion_steps=12, coarse_steps=3, start=None).save_pretrained(tmp_path / "net")
    theirs: dict[str, Any] = {"images": [photo(32, 32)], **difference}
    if "checkpoint" in difference:
        theirs["checkpoint"] = str(tmp_path / "net")
    if difference.get("images"):
        theirs["images"] = [photo(32, 32, seed=1)]
    arguments: dict[str, Any] = {"images": [photo(32, 32)], "cache_dir": str(tmp_path / "cache")}
    wanted = play(make(short_checkpoint, **arguments), [0, 1, 0], seed=0)
    foreign = make(**{"checkpoint": short_checkpoint, **theirs})
    foreign.reset(seed=0)
    foreign.step(DENOISE)
    env = make(short_checkpoint, **arguments)
    seen, _ = env.reset(seed=1)
    with pytest.raises(ConfigError, match="another picture, checkpoint, plan or degradation"):
        env.set_state(foreign.get_state())
    assert same(env._observe(), seen), "the episode goes on"
    several = SkipDiffVectorEnv(2, checkpoint=short_checkpoint, image_size=32, steps=(3, 4), metric="psnr", **arguments)
    several.reset(seed=0)
    state = several.get_state()
    state["episodes"][1] = foreign.get_state()["episode"]
    with pytest.raises(ConfigError, match="another picture, checkpoint, plan or degradation"):
        several.set_state(state)
    for later in (env, make(short_checkpoint, **arguments)):
        assert play(later, [0, 1, 0], seed=0)[0] == wanted[0]


def test_planning_goes_through_gymnasiums_wrappers(checkpoint: str) -> None:
    arguments: dict[str, Any] = {"checkpoint": checkpoint, "image_size": 32, "metric": "psnr", "noise_seeds": 1}
    env: Any = gym.make("SkipDiffJump-v0", **arguments)
    env.reset(seed=0)
    state = env.unwrapped.get_state()
    for _ in range(1100):
        env.unwrapped.set_state(state)
        assert env.step(1)[2:4] == (False, False)
    fresh: Any = gym.make("SkipDiffJump-v0", **arguments)
    with pytest.raises(ResetNeededError, match=r"not begun; call reset\(\) before step"):
        fresh.step(0)
    fresh.unwrapped.set_state(state)
    assert fresh.step(1)[-1]["diffusion_step"] == 19


def test_a_price_that_is_not_observable_is_refused(short_checkpoint: str) -> None:
    dear, cheap = (make(short_checkpoint, **JUMP, nfe_penalty=(0.001, highest)) for highest in (0.5, 0.01))
    dear.reset(options={"nfe_penalty": 0.4})
    with pytest.raises(ConfigError, match=r"nfe_penalty must be a number in 0 … 0.01, got 0.4"):
        cheap.set_state(dear.get_state())


def test_a_damaged_generator_leaves_the_episode(short_checkpoint: str) -> None:
    env = make(short_checkpoint)
    env.reset(seed=0)
    state = env.get_state()
    seen, _ = env.reset(seed=1)
    for generator in (None, {}, {"bit_generator": "MT19937"}):
        with pytest.raises(ConfigError, match=r"not a state that get_state\(\) returned"):
            env.set_state({**state, "generator": generator})
    assert same(env._observe(), seen)


def test_nothing_that_is_given_out_is_shared(short_checkpoint: str, photo: Photo) -> None:
    """Whoever writes into pictures, states and observations changes no environment and nothing that is remembered."""
    given = photo(32, 32)
    arguments = {**JUMP, "images": [given], "noise_seeds": 1}
    env = make(short_checkpoint, **arguments)
    clone = copy.deepcopy(env)
    actions = [0] * env.task.decisions
    wanted = play(env, actions), result(env).copy()
    state = env.get_state()["episode"]

    def spoil(value: Any) -> None:
        for each in value.values() if isinstance(value, dict) else [value]:
            if isinstance(each, np.ndarray):
                each[...] = 77

    given[...] = 77
    seen, _ = env.reset()
    begun = env.get_state()
    for value in (seen, env.hr, env.sr, state):
        spoil(value)
    for each in (env, clone, pickle.loads(pickle.dumps(env))):
        each.reset()
        spoil(each.get_state()["episode"])
        spoil(each.hr)
        again = play(each, actions), result(each)
        assert again[0] == wanted[0]
        assert np.array_equal(again[1], wanted[1])
    env.set_state(begun)
    spoil(begun["episode"])
    for _ in actions:
        *_, reward, _, _, _ = env.step(0)
    assert reward == wanted[0][0]
    own = photo(32, 32, seed=1)
    env.reset(options={"image": own})
    before = env._observe()
    state = env.get_state()
    own[...] = 0
    assert same(env.set_state(state), before)
    assert np.array_equal(env.get_state()["episode"]["image"], photo(32, 32, seed=1))


def test_copies_share_what_never_changes(short_checkpoint: str) -> None:
    env = make(short_checkpoint, **JUMP, metric=closeness)
    env.reset(seed=0)
    env.step(DENOISE)
    clone = copy.deepcopy(env)
    assert clone.task is env.task
    ahead = [clone.step(SKIP)[0] for _ in range(3)]
    assert env._episode is not None
    assert len(env._episode.actions) == 1, "the copy goes on alone"
    assert all(same(env.step(SKIP)[0], each) for each in ahead)


def test_pickled_in_the_midst(short_checkpoint: str) -> None:
    env = make(short_checkpoint, **JUMP)
    env.reset(seed=0)
    env.step(DENOISE)
    text = pickle.dumps(env)
    assert len(text) < 200_000, "neither weights nor memory travel"
    other = pickle.loads(text)
    assert other.task.unet is env.task.unet, "loaded once in a process"
    for action in (SKIP, DENOISE, SKIP, DENOISE):
        ours, theirs = env.step(action), other.step(action)
        assert same(ours[0], theirs[0])
        assert ours[1:] == theirs[1:]
    assert same(env.reset()[0], other.reset()[0]), "the generator travels"


@pytest.mark.parametrize("metric", ["niqe", "lpips"])
def test_reward_is_one_over_a_lower_better_metric(short_checkpoint: str, metric: str) -> None:
    env = make(short_checkpoint, image_size=96, metric=metric, report_metrics=["psnr", metric])
    reward, info = play(env, [SKIP, DENOISE, DENOISE], seed=0)
    assert set(info["metrics"]) == {metric, "psnr"}
    hr = env.task.begin([info["image_index"]], [0])[0].hr[None]
    (value,) = make_metric(metric)(batch(result(env)), hr)
    assert reward == pytest.approx(1 / value)


def test_all_denoise_is_plain_refinement(short_checkpoint: str) -> None:
    env = make(short_checkpoint)
    play(env, [DENOISE] * 3, options={"image": 5, "noise_seed": 7})
    process, state = env.task.process, env.task.begin([5], [7])[0].refinement
    coarse, lr_up = state.coarse_latent[None], state.lr_up[None]
    plain = refine(process.unet, process.alphas_cumprod, coarse, lr_up, KeyedNoise([7], lr_up.shape[1:]), start=4)
    np.testing.assert_allclose(result(env), process.unet.decode(plain, lr_up)[0].numpy(), atol=1e-5)


def test_skipping_everything_runs_one_fine_forward(checkpoint: str) -> None:
    env = make(checkpoint, steps=(10, 10))
    env.reset(seed=0)
    with counting(env.task.unet) as forwards:
        for _ in range(9):
            *_, info = env.step(SKIP)
    assert forwards == [1]
    assert (info["nfe"], info["start"]) == (10, 1)


def test_worked_traces(short_checkpoint: str) -> None:
    env = make(short_checkpoint)
    for actions, start in (((SKIP, DENOISE, DENOISE), 3), ((DENOISE, SKIP, DENOISE), 2)):
        _, info = play(env, actions, seed=0)
        assert (info["start"], info["nfe"] - 2) == (start, 3)


def test_observation_after_a_skip(short_checkpoint: str) -> None:
    for skip_mode in ("restart", "jump"):
        env = make(short_checkpoint, skip_mode=skip_mode)
        coarse, _ = env.reset(seed=0)
        denoised = env.step(DENOISE)[0]
        assert not np.allclose(coarse, denoised)
        assert np.array_equal(env.step(SKIP)[0], coarse if skip_mode == "restart" else denoised)


@pytest.mark.parametrize("coarse", COARSE_SAMPLERS)
def test_coarse_sampler(short_checkpoint: str, coarse: str) -> None:
    env = make(short_checkpoint, coarse_sampler=coarse)
    options = {"image": 1, "noise_seed": 4}
    observation, info = env.reset(options=options)
    *_, lr_up = env.task._picture(1)
    noise = KeyedNoise([4], lr_up.shape)
    expected = coarse_sampler(coarse)(env.task.unet, cosine_alphas_cumprod(3), lr_up[None], noise)[0]
    np.testing.assert_allclose(observation, expected, atol=1e-5)
    assert info["nfe"] == 2
    with counting(env.task.unet) as forwards:
        assert np.array_equal(env.reset(options=options)[0], observation)
    assert forwards == [], "remembered like any other"


def test_the_checkpoint_chooses_the_coarse_sampler(tmp_path: Path) -> None:
    tiny_unet(diffusion_steps=12, coarse_steps=3, start=None, coarse_sampler="ddim").save_pretrained(tmp_path)
    latents = {coarse: make(str(tmp_path), coarse_sampler=coarse).reset(seed=0)[0] for coarse in (None, "ddim", "ddpm")}
    assert np.array_equal(latents[None], latents["ddim"])
    assert not np.array_equal(latents[None], latents["ddpm"])


def test_fine_steps(short_checkpoint: str) -> None:
    """Episodes of 12 - 1 decisions on the coarse latent of N = 4; the later ones are those of the shorter episode."""
    env = make(short_checkpoint, first_step=12, metric="psnr", render_mode="rgb_array")
    options = {"image": 1, "noise_seed": 4}
    reward, info = play(env, [SKIP] * 8 + [DENOISE] * 3, options=options)
    assert env.task.decisions == 11
    assert (info["start"], info["nfe"]) == (4, 6)
    frame = env.render()
    assert frame is not None
    assert frame.ndim == 3
    table = env.schedule_outcomes([1], [4])
    assert table.rewards().shape == (1, 1, 12)
    short = make(short_checkpoint)
    assert reward == pytest.approx(play(short, [DENOISE] * 3, options=options)[0], abs=1e-4)
    np.testing.assert_allclose(table.rewards()[..., :4], short.schedule_outcomes([1], [4]).rewards(), atol=1e-4)
    assert play(env, [DENOISE] * 11, options=options)[1]["start"] == 12
    vector = SkipDiffVectorEnv(
        2, checkpoint=short_checkpoint, image_size=32, steps=(3, 4), metric="psnr", first_step=12
    )
    assert vector.task.decisions == 11


def test_float16_observations_are_rounded_ones(short_checkpoint: str) -> None:
    full, half = make(short_checkpoint), make(short_checkpoint, obs_dtype="float16")
    a, b = full.reset(seed=0)[0], half.reset(seed=0)[0]
    assert b.dtype == half.observation_space.dtype == np.float16
    assert np.array_equal(a.astype(np.float16), b)


def test_observations_are_the_callers_own(short_checkpoint: str) -> None:
    env = make(short_checkpoint)
    first = env.reset(seed=0)[0]
    kept = first.copy()
    first += 100
    assert np.array_equal(env.reset(seed=0)[0], kept)
    assert np.array_equal(env.step(SKIP)[0], kept)


# --- randomness ---


def test_seeds(short_checkpoint: str) -> None:
    env = make(short_checkpoint)
    drawn = [env.reset(seed=5)[1], *(env.reset()[1] for _ in range(5))]
    again = [make(short_checkpoint).reset(seed=5)[1]]
    assert again[0] == drawn[0]
    assert len({info["image_index"] for info in drawn}) > 1
    assert len({info["noise_seed"] for info in drawn}) == 6


def test_number_of_noises(short_checkpoint: str) -> None:
    env = make(short_checkpoint, noise_seeds=3)
    assert {env.reset()[1]["noise_seed"] for _ in range(40)} == {0, 1, 2}


def test_reset_options(short_checkpoint: str, photo: Photo) -> None:
    env = make(short_checkpoint)
    _, drawn = env.reset(seed=1)
    observation, info = env.reset(seed=1, options={"image": 2, "noise_seed": 9})
    assert (info["image_index"], info["noise_seed"]) == (2, 9)
    picture = env.task.pictures[2]
    by_array, info = env.reset(options={"image": picture, "noise_seed": 9})
    assert info["image_index"] == -1
    assert np.array_equal(observation, by_array)
    # fixing one leaves the other as the seed has it
    assert env.reset(seed=1, options={"image": 2})[1]["noise_seed"] == drawn["noise_seed"]
    assert env.reset(seed=1, options={"noise_seed": 9})[1]["image_index"] == drawn["image_index"]
    larger = np.pad(picture, ((3, 3), (8, 8), (0, 0)))
    assert np.array_equal(env.reset(options={"image": larger, "noise_seed": 9})[0], observation), "the centre is taken"


# --- memory ---


@pytest.mark.parametrize("skip_mode", ["restart", "jump"])
def test_a_second_epoch_computes_nothing(
    short_checkpoint: str, skip_mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    env = make(short_checkpoint, skip_mode=skip_mode, report_metrics=["lpips"])
    rng = np.random.default_rng(0)
    episodes = [
        ([int(a) for a in rng.integers(2, size=3)], {"image": i, "noise_seed": k}) for i in range(3) for k in (0, 1)
    ]
    first = [(play(env, actions, options=options), result(env)) for actions, options in episodes]
    monkeypatch.setattr(Metric, "__call__", lambda *args: pytest.fail("a metric was measured again"))
    monkeypatch.setattr(Degradation, "__call__", lambda *args: pytest.fail("a picture was made again"))
    with counting(env.task.unet) as forwards:
        second = [(play(env, actions, options=options), result(env)) for actions, options in episodes]
    assert forwards == []
    for ((reward, info), sr), ((reward_again, info_again), sr_again) in zip(first, second, strict=True):
        assert reward == reward_again
        assert info == info_again
        assert np.array_equal(sr, sr_again)


def test_no_cache_gives_the_same(short_checkpoint: str) -> None:
    remembering, forgetting = make(short_checkpoint), make(short_checkpoint, cache_mb=0)
    for actions in ([0, 1, 0], [0, 0, 0], [0, 1, 0]):
        a, b = play(remembering, actions, seed=0), play(forgetting, actions, seed=0)
        assert a[0] == pytest.approx(b[0], abs=1e-4)
        assert a[1]["nfe"] == b[1]["nfe"]
    assert len(remembering.task.memo) > 0
    assert len(forgetting.task.memo) == 0


def test_a_small_cache_is_kept(short_checkpoint: str) -> None:
    env = make(short_checkpoint, cache_mb=0.25)
    for seed in range(20):
        play(env, [0, 0, 0], seed=seed)
        assert 0 < env.task.memo.used <= 2**18


def test_paths_mean_the_same_after_a_change_of_folder(
    short_checkpoint: str, tmp_path: Path, photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "elsewhere").mkdir()
    Image.fromarray(photo(32, 32)).save(tmp_path / "photos" / "0.png")
    monkeypatch.chdir(tmp_path)
    env = make(short_checkpoint, images="photos", cache_mb=0, cache_dir="cache")
    assert env.task.pictures.names == [str(Path("photos/0.png"))]
    monkeypatch.chdir("elsewhere")
    play(env, [0, 1, 0], seed=0)
    assert list((tmp_path / "cache").rglob("*.safetensors"))
    assert not list(Path().iterdir())


@pytest.mark.parametrize("cache_mb", [0, 64])
def test_a_replaced_picture_has_a_key_of_its_own(
    cache_mb: float, short_checkpoint: str, tmp_path: Path, photo: Photo
) -> None:
    """What is stored under a picture's key is that picture's, whenever its file changes."""
    first, second = (Image.fromarray(photo(32, 32, seed=seed)) for seed in (0, 1))
    for name, image in (("a", first), ("b", second), ("images", first)):
        (tmp_path / name).mkdir()
        image.save(tmp_path / name / "0.png")

    def gain(folder: str, **arguments: Any) -> float:
        return play(make(short_checkpoint, images=str(tmp_path / folder), **arguments), [0, 1, 0], **options)[0]

    options = {"options": {"image": 0, "noise_seed": 0}}
    wanted = gain("a"), gain("b")
    assert wanted[0] != wanted[1]
    stored = {"cache_mb": cache_mb, "cache_dir": str(tmp_path / "cache")}
    env = make(short_checkpoint, images=str(tmp_path / "images"), **stored)
    assert play(env, [0, 1, 0], **options)[0] == wanted[0]
    second.save(tmp_path / "images" / "0.png")
    for file in (tmp_path / "cache").rglob("*.safetensors"):  # as the oldest are dropped when the folder is full
        file.unlink()
    env.task.memo._entries.clear()
    assert play(env, [0, 1, 0], **options)[0] == wanted[1]
    assert (gain("a", **stored), gain("b", **stored)) == wanted


def test_a_replaced_predictor_is_noticed(tmp_path: Path, photo: Photo) -> None:
    """It is part of the network, wherever it lies: in the checkpoint's folder or elsewhere."""
    one, two = (shipped_checkpoints()[name] / PREDICTOR for name in ("natural-x4", "photo-x4"))
    for place in (tmp_path / "net" / PREDICTOR, tmp_path / "mine.safetensors"):
        place.parent.mkdir(exist_ok=True)
        shutil.copyfile(one, place)
        tiny_unet(predictor=place.name if place.parent.name == "net" else str(place)).save_pretrained(tmp_path / "net")
        arguments: dict[str, Any] = {"images": photo(32, 32), "steps": (10, 10), "cache_dir": tmp_path / "cache"}
        env = make(str(tmp_path / "net"), **arguments)
        wanted = play(env, [0] * 9, seed=0)[0]
        state = env.get_state()
        shutil.copyfile(two, place)
        other = make(str(tmp_path / "net"), **arguments)
        assert play(other, [0] * 9, seed=0)[0] != wanted
        with pytest.raises(ConfigError, match="another picture, checkpoint"):
            other.set_state(state)
        shutil.copyfile(one, place)
        assert play(make(str(tmp_path / "net"), **arguments), [0] * 9, seed=0)[0] == wanted


def test_judges_with_other_weights_are_measured_again(
    short_checkpoint: str, random_judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "judge.safetensors"
    shutil.copyfile(random_judge, file)
    monkeypatch.setenv(VARIABLE, str(file))

    def judged() -> float:
        env = make(short_checkpoint, report_metrics="dists", cache_dir=str(tmp_path / "cache"))
        return play(env, [0, 1, 0], seed=0)[1]["metrics"]["dists"]

    before = judged()
    weights = load_file(file)
    save_file({name: each if name.startswith("conv") else each.flip(0) for name, each in weights.items()}, file)
    assert judged() != before
    shutil.copyfile(random_judge, file)
    assert judged() == before


def test_nets_are_shared_but_notice_a_new_checkpoint(tmp_path: Path) -> None:
    tiny_unet().save_pretrained(tmp_path)
    first = make(str(tmp_path), steps=(10, 10))
    assert make(str(tmp_path), steps=(10, 10)).task.unet is first.task.unet
    before = first.reset(seed=0)[0]
    weights = tmp_path / "model.safetensors"
    stamp = weights.stat().st_mtime_ns
    tiny_unet(seed=1).save_pretrained(tmp_path)
    assert weights.stat().st_mtime_ns != stamp
    assert not np.allclose(before, make(str(tmp_path), steps=(10, 10)).reset(seed=0)[0])


# --- metrics of one's own, and judges ---


def closeness(sr: torch.Tensor, hr: torch.Tensor) -> torch.Tensor:
    """A reward of one's own."""
    return 3 - (sr - hr).abs().mean((1, 2, 3))


def test_a_function_is_the_reward(short_checkpoint: str) -> None:
    env = make(short_checkpoint, metric=closeness, report_metrics=["psnr", make_metric("ssim")])
    reward, info = play(env, [SKIP, DENOISE, SKIP], seed=0)
    assert set(info["metrics"]) == {"closeness", "psnr", "ssim"}
    assert reward == info["metrics"]["closeness"]
    assert env._episode is not None
    on_disk = [((image + 1) * 127.5).round() / 127.5 - 1 for image in (batch(result(env)), env._episode.hr[None])]
    assert reward == pytest.approx(float(closeness(*on_disk)[0]), abs=1e-5)
    distance = Metric("distance", True, False, 1, lambda sr, hr: sr.mean((1, 2, 3)) + 1)
    env = make(short_checkpoint, metric=distance)
    reward, info = play(env, [SKIP, DENOISE, SKIP], seed=0)
    assert reward == pytest.approx(1 / info["metrics"]["distance"])


def test_a_function_in_the_registered_environment(short_checkpoint: str) -> None:
    """The batched environment gives the same; a specification with a function in it cannot become JSON, and says so."""
    arguments: dict[str, Any] = {"checkpoint": short_checkpoint, "image_size": 32, "steps": (3, 4), "metric": closeness}
    env = gym.make("SkipDiff-v0", **arguments)
    alone, _ = play(cast(SkipDiffEnv, env.unwrapped), [DENOISE, SKIP, DENOISE], seed=4)
    vector = gym.make_vec("SkipDiff-v0", num_envs=1, **arguments)
    vector.reset(seed=4)
    for action in (DENOISE, SKIP, DENOISE):
        _, reward, *_ = vector.step(np.array([action]))
    assert alone == pytest.approx(float(reward[0]), abs=1e-5)
    assert env.spec is not None
    with pytest.raises(TypeError, match="function is not JSON serializable"):
        env.spec.to_json()


@pytest.mark.parametrize("metric", ["niqe", "lpips", "psnr", "ssim", "colour", closeness])
def test_pickled(short_checkpoint: str, metric: Any) -> None:
    env = make(short_checkpoint, image_size=96, metric=metric, report_metrics=["piqe"])
    others: list[Any] = [pickle.loads(pickle.dumps(env)), copy.deepcopy(env)]
    reward, info = play(env, [SKIP, DENOISE, SKIP], seed=0)
    for other in others:
        assert play(other, [SKIP, DENOISE, SKIP], seed=0)[0] == reward
        assert other.unwrapped._episode.metrics == info["metrics"]


@pytest.mark.parametrize("name", JUDGES)
def test_a_judge_is_reported_but_no_reward(
    short_checkpoint: str, name: str, random_judge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(ConfigError, match=f"{name} is a judge"):  # even without its weights
        make(short_checkpoint, metric=name)
    monkeypatch.setenv(VARIABLE, str(random_judge))
    with pytest.raises(ConfigError, match=f"{name} is a judge"):
        make(short_checkpoint, metric=make_metric(name))
    _, info = play(make(short_checkpoint, report_metrics=name), [SKIP, SKIP, SKIP], seed=0)
    assert info["metrics"][name] > 0


# --- metrics that fail ---


@pytest.mark.parametrize("lower_better", [True, False])
@pytest.mark.parametrize("how", ["nan", "inf", "raises"])
def test_failed_metric(short_checkpoint: str, lower_better: bool, how: str) -> None:
    def measure(sr: Any, hr: Any) -> Any:
        if how == "raises":
            raise RuntimeError("singular matrix")
        return sr.mean(dim=(1, 2, 3)) * float(how)

    broken = Metric("broken", lower_better, False, 1, measure)
    env = make(short_checkpoint, metric=broken, nfe_penalty=0.5)
    for episode in (1, 2):
        reward, info = play(env, [SKIP, SKIP, SKIP], seed=episode)
        assert reward == -0.5
        assert np.isnan(info["metrics"]["broken"])
        assert info["reward_failures"] == env.reward_failures == episode


def test_perfect_picture_has_a_finite_reward(short_checkpoint: str) -> None:
    perfect = Metric("perfect", True, False, 1, lambda sr, hr: sr.mean(dim=(1, 2, 3)) * 0)
    reward, info = play(make(short_checkpoint, metric=perfect), [SKIP, SKIP, SKIP], seed=0)
    assert reward == pytest.approx(1000)
    assert info["reward_failures"] == 0


def test_failed_metric_of_a_negative_reward(short_checkpoint: str) -> None:
    broken = Metric("broken", True, False, 1, lambda sr, hr: sr.mean(dim=(1, 2, 3)) * float("nan"))
    reward, info = play(make(short_checkpoint, metric=broken, reward="negative", nfe_penalty=0.5), [SKIP] * 3, seed=1)
    assert (reward, info["reward_failures"]) == (-100.5, 1)


def test_a_metric_without_its_package(short_checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import pyiqa

    def create(*args: Any, **kwargs: Any) -> Any:
        raise ModuleNotFoundError("No module named 'icecream'", name="icecream")

    monkeypatch.setattr(pyiqa, "create_metric", create)
    with pytest.raises(
        ConfigError, match=r"metric fsim needs a package that is not installed \(No module named 'icecream'\)"
    ):
        make(short_checkpoint, metric="fsim")


# --- rendering ---


def test_render(short_checkpoint: str) -> None:
    env = make(short_checkpoint, render_mode="rgb_array")
    with pytest.raises(ResetNeededError, match="not begun"):
        env.render()
    env.reset(seed=0)
    frames = [env.render(), *((env.step(action), env.render())[1] for action in (SKIP, DENOISE, DENOISE))]
    for frame in frames:
        assert frame is not None
        assert frame.dtype == np.uint8
        assert frame.shape == frames[0].shape  # type: ignore[union-attr]
        assert not any(side % 2 for side in frame.shape[:2])
    assert len({frame.tobytes() for frame in frames if frame is not None}) == 4
    with pytest.warns(UserWarning, match="render_mode"):
        assert make(short_checkpoint).render() is None


def test_record_video(short_checkpoint: str, tmp_path: Path) -> None:
    env: Any = gym.make(
        "SkipDiff-v0", checkpoint=short_checkpoint, steps=(3, 4), image_size=32, metric="psnr", render_mode="rgb_array"
    )
    env = gym.wrappers.RecordVideo(env, str(tmp_path / "films"), episode_trigger=lambda episode: True)
    env.reset(seed=0)
    while not env.step(env.action_space.sample())[2]:
        pass
    env.close()
    (film,) = (tmp_path / "films").glob("*.mp4")
    assert film.stat().st_size > 1000


# --- errors ---


def test_step_before_reset_and_after_the_end(short_checkpoint: str) -> None:
    env = make(short_checkpoint)
    with pytest.raises(ResetNeededError, match="not begun"):
        env.step(DENOISE)
    play(env, [SKIP, SKIP, SKIP], seed=0)
    with pytest.raises(gym.error.ResetNeeded, match="has ended"):
        env.step(DENOISE)


@pytest.mark.parametrize("action", [2, -1, 0.0, float("nan"), np.float32(1), "skip", None, [0], np.array([0, 1])])
def test_wrong_action(short_checkpoint: str, action: Any) -> None:
    env = make(short_checkpoint)
    before, _ = env.reset(seed=0)
    with pytest.raises(InvalidActionError, match=r"0 \(DENOISE\) or 1 \(SKIP\)"):
        env.step(action)
    assert np.array_equal(env.step(SKIP)[0], before), "the episode goes on"


@pytest.mark.parametrize("action", [1, True, np.int64(1), np.uint8(1), np.array(1), Action.SKIP])
def test_right_action(short_checkpoint: str, action: Any) -> None:
    env = make(short_checkpoint)
    env.reset(seed=0)
    env.step(action)
    assert env._episode is not None
    assert env._episode.actions == [SKIP]


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"checkpoint": "natural-x5"}, CheckpointError, "unknown checkpoint 'natural-x5'"),
        ({"checkpoint": None}, ConfigError, "checkpoint must be a name, a folder, a Hub id or a .*Denoiser, got None"),
        (
            {"no_such": 1},
            ConfigError,
            "unknown argument no_such of the environment; known are checkpoint, denoiser",
        ),
        ({"images": 5}, ImageError, "images must be None, a folder, .* got int"),
        ({"images": [1]}, ImageError, "images must be None, a folder, .* got int"),
        ({"images": np.zeros((40, 40))}, ImageError, r"picture 0 must be a uint8 array .* got float64 \(40, 40\)"),
        ({"images": "x", "split": "test"}, ConfigError, "give images or split, not both"),
        ({"split": "dev"}, ConfigError, "split must be train, test or None, got 'dev'"),
        ({"observation": "pixels"}, ConfigError, "observation must be one of latent, dict, features, got 'pixels'"),
        ({"reward": "minus"}, ConfigError, "reward must be one of inverse, negative, got 'minus'"),
        ({"nfe_penalty": (0, 1)}, ConfigError, "a pair of rising numbers above 0"),
        ({"nfe_penalty": (2, 1)}, ConfigError, "a pair of rising numbers above 0"),
        ({"nfe_penalty": (1, 2, 3)}, ConfigError, "a pair of rising numbers above 0"),
        ({"fine_sampler": "dpmsolver++"}, ConfigError, "fine_sampler must be ddpm, ddim, or ddim:ETA"),
        ({"skip_mode": "jump", "first_step": 12}, ConfigError, "with skip_mode jump the first decision is at step N"),
        ({"cache_dir": 5}, ConfigError, "cache_dir must be the path of a folder, or None, got 5"),
        ({"cache_dir": "/proc/no"}, ConfigError, "cannot write into cache_dir /proc/no"),
        ({"cache_dir_mb": -1}, ConfigError, "cache_dir_mb must be a number of at least 0"),
        ({"scale": 8}, ConfigError, "enlarges 4 times, got scale 8"),
        ({"steps": (5, 3)}, ConfigError, "must multiply to the 12"),
        ({"steps": (12, 1)}, ConfigError, "nothing to decide"),
        ({"steps": (3, 4.0)}, ConfigError, "two whole numbers"),
        ({"steps": "34"}, ConfigError, "two whole numbers"),
        ({"steps": 12}, ConfigError, "two whole numbers"),
        ({"image_size": 30}, ConfigError, "multiple of 4"),
        ({"image_size": 0}, ConfigError, "at least 1"),
        ({"image_size": 32.0}, ConfigError, "whole number"),
        ({"image_size": 1024}, ImageError, "no crop of 1024 x 1024"),
        ({"images": []}, ImageError, "images is empty"),
        ({"images": "no/such/folder"}, ImageError, "no such file or folder"),
        ({"metric": "nique"}, ConfigError, "did you mean .*niqe"),
        ({"metric": "niqe"}, ConfigError, "at least 96 pixels"),
        ({"report_metrics": ["psnr", "niqe"]}, ConfigError, "at least 96 pixels"),
        ({"metric": 5}, ConfigError, "a metric is a name, a Metric or a function"),
        ({"report_metrics": [1]}, ConfigError, "a metric is a name, a Metric or a function"),
        ({"report_metrics": 1}, ConfigError, "a metric is a name, a Metric or a function"),
        ({"report_metrics": [lambda sr, hr: sr, lambda sr, hr: hr]}, ConfigError, "two different metrics are called"),
        ({"skip_mode": "stay"}, ConfigError, "restart, jump"),
        (
            {"coarse_sampler": "pndm"},
            ConfigError,
            r"coarse_sampler must be one of ddpm, ddim, dpmsolver\+\+, or ddim:ETA .* got 'pndm'",
        ),
        ({"noise_seeds": 0}, ConfigError, "noise_seeds"),
        ({"noise_seeds": 2**63}, ConfigError, "noise_seeds must be at most 9223372036854775807"),
        ({"first_step": 2}, ConfigError, "first_step must be a whole number in 4 … 12"),
        ({"first_step": 4.5}, ConfigError, "first_step must be a whole number"),
        ({"nfe_penalty": -1.0}, ConfigError, "nfe_penalty"),
        ({"nfe_penalty": float("nan")}, ConfigError, "nfe_penalty"),
        ({"obs_dtype": "int8"}, ConfigError, "one of float32, float16, got"),
        ({"obs_dtype": [1]}, ConfigError, r"one of float32, float16, got \[1\]"),
        ({"observation": {}}, ConfigError, "one of latent, dict, features, got {}"),
        ({"nfe_penalty": 10**400}, ConfigError, "nfe_penalty"),
        ({"cache_mb": -1}, ConfigError, "cache_mb"),
        ({"device": "gpu"}, ConfigError, "no such device"),
        ({"render_mode": "human"}, ConfigError, "rgb_array"),
    ],
)
def test_wrong_arguments(
    short_checkpoint: str, arguments: dict[str, Any], error: type[SkipDiffError], message: str
) -> None:
    with pytest.raises(error, match=message) as raised:
        make(arguments.pop("checkpoint", short_checkpoint), **arguments)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "no picture in the folder"),
        (lambda photo: photo(31, 64), r"bad.png is 64 x 31, smaller than image_size 32"),
        (b"hello", "not a picture"),
    ],
)
def test_wrong_pictures(short_checkpoint: str, tmp_path: Path, photo: Photo, content: Any, message: str) -> None:
    folder = tmp_path / "pictures"
    folder.mkdir()
    if content is not None:
        Image.fromarray(photo(64, 64)).save(folder / "a.png")
        if isinstance(content, bytes):
            (folder / "bad.png").write_bytes(content)
        else:
            Image.fromarray(content(photo)).save(folder / "bad.png")
    with pytest.raises(ImageError, match=message):
        make(short_checkpoint, images=str(folder))


def test_a_truncated_file_is_named(short_checkpoint: str, tmp_path: Path, photo: Photo) -> None:
    Image.fromarray(photo(64, 64)).save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:2000])
    env = make(short_checkpoint, images=[str(tmp_path / "a.png")])
    with pytest.raises(ImageError, match=r"a.png is damaged"):
        env.reset()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": 0}, "unknown reset option images"),
        ({"image": 10**6}, "index from 0 to"),
        ({"image": -1}, "index from 0 to"),
        ({"image": 1.0}, "index from 0 to"),
        ({"image": np.zeros((32, 32, 3))}, "uint8 array"),
        ({"image": np.zeros((32, 32), np.uint8)}, "uint8 array"),
        ({"image": np.zeros((32, 31, 3), np.uint8)}, "31 x 32, smaller"),
        ({"noise_seed": -1}, "noise_seed"),
        ({"noise_seed": 0.5}, "noise_seed"),
        ({"noise_seed": 2**63}, "noise_seed"),
        ({"nfe_penalty": -1}, "nfe_penalty must be a number in 0"),
        ({"nfe_penalty": "dear"}, "nfe_penalty must be a number in 0"),
        ("x", "the options of reset must be a dictionary, got 'x'"),
        ([("image", 1)], "the options of reset must be a dictionary"),
    ],
)
def test_wrong_options(short_checkpoint: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(SkipDiffError, match=message):
        make(short_checkpoint).reset(options=options)


# --- pictures ---


def test_folder_and_list_of_pictures(short_checkpoint: str, tmp_path: Path, photo: Callable[..., np.ndarray]) -> None:
    pictures = [photo(40 + 2 * i, 48, seed=i) for i in range(3)]
    for i, picture in enumerate(pictures):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
    env = make(short_checkpoint, images=str(tmp_path))
    assert len(env.task.pictures) == 3
    for i, picture in enumerate(pictures):
        assert np.array_equal(env.task.pictures[i], picture[4 + i : 36 + i, 8:40])
    env = make(short_checkpoint, images=[str(tmp_path / "2.png"), tmp_path / "0.png"])
    assert [env.task.pictures[i].tobytes() for i in range(2)] == [
        pictures[i][4 + i : 36 + i, 8:40].tobytes() for i in (2, 0)
    ]


def test_arrays_as_pictures(short_checkpoint: str, tmp_path: Path, photo: Photo) -> None:
    pictures = [photo(32, 32, seed=0), photo(50, 41, seed=1)]
    Image.fromarray(photo(32, 32, seed=2)).save(tmp_path / "2.png")
    env = make(short_checkpoint, images=[*pictures, str(tmp_path)])
    assert len(env.task.pictures) == 3
    assert np.array_equal(env.task.pictures[1], pictures[1][9:41, 4:36])
    observation, info = env.reset(options={"image": 1, "noise_seed": 0})
    assert info["image_index"] == 1
    with counting(env.task.unet) as forwards:
        again, info = env.reset(options={"image": pictures[1], "noise_seed": 0})
    assert info["image_index"] == -1
    assert np.array_equal(observation, again)
    assert forwards == [], "the same picture, however it is given"
    alone = make(short_checkpoint, images=pictures[0])
    assert len(alone.task.pictures) == 1
    assert np.array_equal(
        alone.reset(seed=0, options={"noise_seed": 0})[0], env.reset(options={"image": 0, "noise_seed": 0})[0]
    )


def test_splits_share_no_photograph(short_checkpoint: str) -> None:
    train, test, both = (
        {env.task.pictures[i].tobytes() for i in range(len(env.task.pictures))}
        for env in (make(short_checkpoint, image_size=64, split=split) for split in ("train", "test", None))
    )
    assert train
    assert test
    assert not train & test
    assert train | test == both


def test_own_photographs(short_checkpoint: str) -> None:
    pictures = make(short_checkpoint, image_size=128).task.pictures
    assert len(pictures) == 16 + 6 + 12 + 15
    assert {pictures[i].shape for i in range(len(pictures))} == {(128, 128, 3)}
    assert len({pictures[i].tobytes() for i in range(len(pictures))}) == len(pictures)
