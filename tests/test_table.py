"""Tables of outcomes and the environment that plays from them."""

import json
import pickle
import shutil
import subprocess
import sys
import warnings
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from click.testing import CliRunner
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import load_file, save_file

from agents.cli import main
from ddpm.schedule import Schedule, even_levels
from ddpm.util.errors import ConfigError
from skipdiff_env import VARIANTS, Action, OutcomeTable, SkipDiffEnv, SkipDiffTableEnv, SkipDiffTableVectorEnv
from skipdiff_env.features import FEATURES, features
from skipdiff_env.offline import write_minari
from skipdiff_env.outcomes import ARRAYS, DESCRIPTION, TABLES
from skipdiff_env.plan import Plan
from skipdiff_env.rules import InvalidActionError, ResetNeededError, quality
from skipdiff_env.tabulate import family, tabulate
from tests.conftest import Photo
from tests.test_vector_env import assert_same

quick = settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
LIVE: dict[str, Any] = {"image_size": 32, "metric": "colour", "report_metrics": ["psnr"]}
SKIP = VARIANTS["SkipDiffTable-v0"]
SHIPPED = TABLES / "natural-x4-skip"
# name → steps, skip mode, number of sampled schedules
KINDS: dict[str, tuple[tuple[int, int], str, int]] = {
    "jump": ((1, 5), "jump", 0),
    "coarse": ((2, 4), "jump", 0),
    "restart": ((3, 4), "restart", 0),
    "sampled": ((1, 12), "jump", 20),
}


def skip_env(**arguments: Any) -> SkipDiffTableEnv:
    """`SkipDiffTable-v0`."""
    return SkipDiffTableEnv(**{**SKIP, **arguments})


@pytest.fixture(scope="module")
def tables(short_checkpoint: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, dict[str, Any]]]:
    """Name → folder of a table and the arguments of the live environment that it is of."""
    rng = np.random.default_rng(0)
    images = tmp_path_factory.mktemp("images")
    for i in range(3):
        Image.fromarray(rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)).save(images / f"{i}.png")
    made = {}
    for name, (steps, skip_mode, count) in KINDS.items():
        arguments = {
            **LIVE, "checkpoint": short_checkpoint, "images": str(images), "steps": steps, "skip_mode": skip_mode
        }  # fmt: skip
        folder = tmp_path_factory.mktemp("tables") / name
        tabulate(arguments, folder, noises=2, count=count)
        made[name] = folder, {**arguments, "cache_mb": 64, "observation": "dict", "reward": "negative"}
    return made


# --- the family of schedules ---


def test_all_schedules() -> None:
    whole = family(Plan(1, 5, skip_mode="jump"))
    assert len(set(whole)) == len(whole) == 16
    assert all(schedule.length == 5 and schedule.plain for schedule in whole)
    assert [schedule.levels for schedule in family(Plan(3, 4))] == [(1,), (2, 1), (3, 2, 1), (4, 3, 2, 1)]


def test_sampled_schedules() -> None:
    plan = Plan(1, 20, skip_mode="jump")
    found = family(plan, 200)
    assert found == family(plan, 200)
    assert len(set(found)) == 200
    assert {even_levels(20, n) for n in range(1, 21)} <= {schedule.levels for schedule in found}
    assert all(schedule.length == 20 for schedule in found)
    with pytest.raises(ConfigError, match="schedules must be at least 20"):
        family(plan, 19)


# --- features ---


def test_features(photo: Photo) -> None:
    def of(rgb: np.ndarray) -> np.ndarray:
        return features(rgb.transpose(2, 0, 1) / 127.5 - 1)

    flat, noisy = of(np.full((32, 32, 3), 90, np.uint8)), of(photo(32, 32))
    for found in (flat, noisy, of(photo(12, 50))):
        assert (found.dtype, found.shape) == (np.float32, (FEATURES,))
        assert found.min() >= -3
        assert found.max() <= 1
    sizes = np.arange(FEATURES) % 14 < 12
    np.testing.assert_allclose(flat[sizes], -3, atol=1e-6)
    assert flat[12::14].tolist() == [0, 0, 0]
    assert flat[13::14].tolist() == [1, 1, 1]
    assert (noisy[sizes] > -3).all()
    ramp = np.broadcast_to(np.linspace(-1, 1, 32), (3, 32, 32))
    small = np.pad(ramp[:, :5, :1], ((0, 0), (0, 7), (0, 11)), mode="edge")
    np.testing.assert_allclose(features(ramp[:, :5, :1]), features(small), atol=1e-6)
    across, down = features(ramp), features(ramp.transpose(0, 2, 1))
    assert across[0] == pytest.approx(np.log10(1e-3 + 1 / 31), abs=1e-5), "the mean gradient"
    assert across[1] == pytest.approx(-3)
    assert (down[0], down[1]) == (across[1], across[0])
    assert across[12] == pytest.approx(1), "all gradients have one direction"


# --- the same as the live environment ---


@quick
@given(data=st.data(), name=st.sampled_from(["jump", "coarse", "restart"]))
def test_table_is_live(data: st.DataObject, tables: dict[str, tuple[Path, dict[str, Any]]], name: str) -> None:
    folder, arguments = tables[name]
    reward = data.draw(st.sampled_from(["negative", "inverse"]), label="reward")
    price = data.draw(st.sampled_from([0.0, 0.25, (0.001, 0.5)]), label="price")
    own: dict[str, Any] = {"reward": reward, "nfe_penalty": price}
    live, played = SkipDiffEnv(**{**arguments, **own}), skip_env(table=folder, **own)
    observation, info = played.reset(seed=data.draw(st.integers(0, 99), label="seed"))
    # each crop has its own noises
    noise_seed = 2 * info["image_index"] + info["noise_seed"]
    options = {"image": info["image_index"], "noise_seed": noise_seed, "nfe_penalty": info["nfe_penalty"]}
    seen, said = live.reset(options=options)
    for i in range(live.task.decisions + 1):
        assert observation in played.observation_space
        assert info.keys() == said.keys() - {"reward_failures"}
        assert {**said, **info, "metrics": 0, "noise_seed": noise_seed} == {**said, "metrics": 0}
        parts = [seen["step"], seen["level"], np.array([info["nfe_penalty"]], np.float32)]
        np.testing.assert_allclose(observation, [*features(seen["condition"]), *np.concatenate(parts)], atol=1e-6)
        if i == live.task.decisions:
            break
        action = data.draw(st.integers(0, 1))
        seen, live_reward, live_ended, _, said = live.step(action)
        observation, table_reward, ended, truncated, info = played.step(action)
        assert (ended, truncated) == (live_ended, False)
        assert table_reward == pytest.approx(live_reward, abs=1e-3, rel=1e-4)
    assert ended
    assert info["metrics"] == pytest.approx(said["metrics"], abs=1e-3, rel=1e-4)


@quick
@given(
    data=st.data(),
    name=st.sampled_from(list(KINDS)),
    num_envs=st.integers(1, 4),
    mode=st.sampled_from([AutoresetMode.NEXT_STEP, AutoresetMode.SAME_STEP]),
)
def test_batched_is_scalar(
    data: st.DataObject,
    tables: dict[str, tuple[Path, dict[str, Any]]],
    name: str,
    num_envs: int,
    mode: AutoresetMode,
) -> None:
    arguments: dict[str, Any] = {"table": tables[name][0], "nfe_penalty": (0.001, 0.1)}
    ours = SkipDiffTableVectorEnv(num_envs, autoreset_mode=mode.value, **{**SKIP, **arguments})
    theirs = SyncVectorEnv([lambda: skip_env(**arguments)] * num_envs, autoreset_mode=mode)
    for part in ("observation_space", "action_space", "single_observation_space", "single_action_space", "metadata"):
        assert getattr(ours, part) == getattr(theirs, part)
    assert_same(ours.reset(seed=11), theirs.reset(seed=11), "reset")
    assert ours.np_random_seed == theirs.np_random_seed
    state, moment = None, data.draw(st.integers(0, 9))
    later: list[Any] = []
    for step in range(data.draw(st.integers(1, 20), label="steps")):
        if step == moment:
            state = pickle.loads(pickle.dumps(ours.get_state()))
        actions = np.array(data.draw(st.lists(st.integers(0, 1), min_size=num_envs, max_size=num_envs)))
        given = ours.step(actions)
        assert given[0] in ours.observation_space
        assert_same(given, theirs.step(actions), f"step {step}")
        later += [(actions, given)] if state is not None else []
        if num_envs > 1 and data.draw(st.integers(0, 5), label="reset some") == 0 and state is None:
            mask = np.arange(num_envs) % 2 == 0
            assert_same(
                ours.reset(options={"reset_mask": mask}), theirs.reset(options={"reset_mask": mask}), "masked reset"
            )
    if state is not None:
        for other in (ours, SkipDiffTableVectorEnv(num_envs, autoreset_mode=mode.value, **{**SKIP, **arguments})):
            other.reward_failures = [0] * num_envs
            other.set_state(state)
            for actions, given in later:
                assert_same(other.step(actions), given)


@pytest.mark.parametrize("masked", [True, False])
def test_a_sampled_table_is_never_left(tables: dict[str, tuple[Path, dict[str, Any]]], masked: bool) -> None:
    env = skip_env(table=tables["sampled"][0], nfe_penalty=0.1)
    table, rng, seen = env.table, np.random.default_rng(0), set()
    for episode in range(100):
        _, info = env.reset(seed=episode)
        done, forced = False, 0
        while not done:
            masks = env.action_masks()
            assert masks.any()
            forced += not masks.all()
            action = int(rng.choice(np.flatnonzero(masks))) if masked else int(rng.integers(2))
            _, reward, done, _, info = env.step(action)
        assert forced
        assert info["nfe"] == len(info["levels"])
        place = info["image_index"], info["noise_seed"], table.schedules.index(Schedule(info["levels"]))
        assert reward == pytest.approx(-table.metrics["colour"][place] - 0.1 * info["nfe"])
        seen.add(info["levels"])
    assert len(seen) > 5


def test_a_complete_table_forbids_nothing(tables: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    for name in ("jump", "restart"):
        env = SkipDiffTableVectorEnv(3, **{**SKIP, "table": tables[name][0]})
        env.reset(seed=0)
        env.step(np.array([0, 1, 0]))
        assert env.action_masks().all()


@pytest.mark.parametrize("name", ["jump", "sampled"])
def test_rewards_are_those_of_episodes(tables: dict[str, tuple[Path, dict[str, Any]]], name: str) -> None:
    table = OutcomeTable.load(tables[name][0])
    env = skip_env(table=table, metric="psnr", reward="inverse", nfe_penalty=0.5)
    rewards = table.rewards(0.5, metric="psnr", reward="inverse")
    assert rewards.shape == (3, 2, len(table.schedules))
    for place in range(0, len(table.schedules), 5):
        env.reset(options={"image": 2, "noise_seed": 1})
        levels = table.schedules[place].levels
        for t in range(levels[0], 1, -1):
            _, reward, _, _, info = env.step(np.int64(Action.DENOISE if t - 1 in levels else Action.SKIP))
        assert info["levels"] == levels
        assert reward == pytest.approx(rewards[2, 1, place])
    np.testing.assert_allclose(table.rewards(0.0), -table.metrics["colour"])


def test_rewards_of_a_split() -> None:
    table = OutcomeTable.load("natural-x4-skip")
    test = np.flatnonzero(table.splits == "test")
    np.testing.assert_array_equal(table.split("test").rewards(0.01), table.rewards(0.01)[test])
    assert set(table.split("test").splits) == {"test"}
    every: list[tuple[dict[str, Any], str]] = [
        ({"metric": "niqe"}, "metric must be one of lpips, psnr, got 'niqe'"),
        ({"reward": "minus"}, "reward must be one of inverse, negative, got 'minus'"),
        ({"price": -1}, "nfe_penalty must be a number in 0 … inf, got -1"),
    ]
    for arguments, message in every:
        with pytest.raises(ConfigError, match=message):
            table.rewards(**arguments)


def test_failed_metrics(tables: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    table = OutcomeTable.load(tables["jump"][0])
    broken = {name: np.full_like(values, np.nan) for name, values in table.metrics.items()}
    env = skip_env(table=replace(table, metrics=broken), nfe_penalty=0)
    env.reset(seed=0)
    for _ in range(4):
        _, reward, *_ = env.step(Action.SKIP)
    assert reward == quality(float("nan"), True, "negative")
    with pytest.raises(ConfigError, match="a metric failed for some crops"):
        skip_env(table=replace(table, metrics=broken), reward="relative")


# --- made by Gymnasium ---


def test_the_shipped_table() -> None:
    table = OutcomeTable.load(SHIPPED)
    assert sum(file.stat().st_size for file in SHIPPED.iterdir()) < 400_000
    assert list(table.metrics) == ["lpips", "psnr"]
    assert set(table.description["splits"]) == {"train", "test"}
    assert all(np.isfinite(values).all() for values in table.metrics.values())
    # a single forward gives the mean of what is possible, which has the best PSNR; and pictures differ in what they
    # need
    psnr = table.metrics["psnr"].mean(axis=(0, 1))
    assert psnr[table.schedules.index(Schedule((8,)))] > psnr[table.schedules.index(Schedule.even(8))]
    assert len(np.unique(table.metrics["lpips"].mean(axis=1).argmin(axis=1))) > 3
    parts = [len(skip_env(split=split).table.features) for split in ("train", "test", None)]
    assert parts[0] + parts[1] == parts[2]


def test_checkers() -> None:
    from stable_baselines3.common.env_checker import check_env as sb3_check_env

    env = gym.make("SkipDiffTable-v0").unwrapped
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        check_env(env)
        sb3_check_env(env)
    vector = gym.make_vec("SkipDiffTable-v0", num_envs=4)
    assert isinstance(vector, SkipDiffTableVectorEnv)
    assert vector.spec is not None
    vector.spec.to_json()
    assert vector.reset(seed=0)[0] in vector.observation_space


def test_no_torch() -> None:
    code = """
import sys, gymnasium, numpy
env = gymnasium.make_vec("skipdiff_env:SkipDiffTable-v0", num_envs=4)
env.reset(seed=0)
for _ in range(20):
    env.step(env.action_space.sample())
assert "torch" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)


def test_copies_share_the_table(tables: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    env = skip_env(table=tables["jump"][0])
    env.reset(seed=0)
    env.step(0)
    copies = [deepcopy(env), pickle.loads(pickle.dumps(env))]
    assert copies[0].table is env.table
    for action in (1, 0, 1):
        expected = env.step(action)
        for other in copies:
            assert_same(other.step(action), expected)
    assert_same(copies[0].reset(), env.reset())


# --- making tables ---


def test_goes_on(short_checkpoint: str, tmp_path: Path, photo: Photo, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(3):
        Image.fromarray(photo(32, 32, seed=i)).save(tmp_path / f"{i}.png")
    config = {
        "checkpoint": short_checkpoint, "images": str(tmp_path), "image_size": 32, "steps": (1, 4), "skip_mode": "jump",
        "metric": "psnr",
    }  # fmt: skip
    whole = tabulate(config, tmp_path / "whole")
    made: list[int] = []

    def interrupted(condition: Any) -> Any:
        if len(made) == 2:
            raise KeyboardInterrupt
        made.append(1)
        return features(condition)

    with monkeypatch.context() as patched:
        patched.setattr("skipdiff_env.task.features", interrupted)
        with pytest.raises(KeyboardInterrupt):
            tabulate(config, tmp_path / "parts")
    with pytest.raises(ConfigError, match="has 2 of 3 crops; the same `skipdiff tabulate` continues it"):
        OutcomeTable.load(tmp_path / "parts")
    computed: list[Any] = []

    def counted(condition: Any) -> Any:
        computed.append(condition)
        return features(condition)

    monkeypatch.setattr("skipdiff_env.task.features", counted)
    table = tabulate(config, tmp_path / "parts")
    assert len(computed) == 1
    assert table.description == whole.description
    np.testing.assert_allclose(table.metrics["psnr"], whole.metrics["psnr"], atol=1e-4)
    assert np.array_equal(table.features, whole.features)
    with pytest.raises(ConfigError, match="holds a table of another noises; name another folder, or remove it"):
        tabulate(config, tmp_path / "parts", noises=3)


def test_a_path_may_be_spelt_in_several_ways(
    short_checkpoint: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pictures and network have digests; the names are those of the first spelling."""
    shutil.copytree(short_checkpoint, tmp_path / "net")
    monkeypatch.chdir(tmp_path)
    found = []
    spellings = ("net", photos.name), ("./net", f"./{photos.name}"), (str(tmp_path / "net"), str(photos))
    for checkpoint, images in spellings:
        settings = {**LIVE, "checkpoint": checkpoint, "images": images, "steps": (1, 3), "skip_mode": "jump"}
        found.append(tabulate(settings, tmp_path / "table", noises=1, limit=2).description)
    assert found[0] == found[1] == found[2]
    assert found[0]["photographs"][0] == str(Path(photos.name, "0.png"))
    Image.fromarray(np.zeros((128, 128, 3), np.uint8)).save(photos / "0.png")
    with pytest.raises(ConfigError, match="holds a table of another digest"):
        tabulate(settings, tmp_path / "table", noises=1, limit=2)


@pytest.mark.parametrize("finished", [True, False])
def test_the_first_metric_stays_the_first(
    tables: dict[str, tuple[Path, dict[str, Any]]], tmp_path: Path, finished: bool
) -> None:
    """It is the reward's, so a table of the same metrics in another order is another table."""
    folder, arguments = tables["jump"]
    known = {name: value for name, value in arguments.items() if name in (*LIVE, "checkpoint", "images")}
    known |= {"steps": arguments["steps"], "skip_mode": "jump"}
    shutil.copytree(folder, tmp_path / "table")
    if not finished:
        (tmp_path / "table" / ARRAYS).unlink()
    swapped = {**known, "metric": "psnr", "report_metrics": ["colour"]}
    with pytest.raises(ConfigError, match="holds a table of another order of metrics; name another folder"):
        tabulate(swapped, tmp_path / "table")
    assert list(tabulate(known, tmp_path / "table").metrics) == ["colour", "psnr"]
    assert list(tabulate(swapped, tmp_path / "other").metrics) == ["psnr", "colour"]
    env = skip_env(table=tmp_path / "other", nfe_penalty=0)
    env.reset(seed=0)
    for _ in range(4):
        _, reward, *_, info = env.step(0)
    assert reward == pytest.approx(info["metrics"]["psnr"])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"table": "no/such/folder"}, "no/such/folder holds no table; `skipdiff tabulate"),
        ({"split": "dev"}, "split must be one of train, validation, test, got 'dev'"),
        ({"metric": "lpips"}, "metric must be one of colour, psnr, got 'lpips'"),
        ({"reward": "minus"}, "reward must be one of inverse, negative, relative, got 'minus'"),
        ({"nfe_penalty": -1}, "nfe_penalty must be a number of at least 0"),
        ({"render_mode": "human"}, "render_mode must be rgb_array or None, got 'human'"),
        ({"max_episode_steps": 3}, "an episode has 4 env steps and is never truncated"),
    ],
)
def test_wrong_arguments(
    tables: dict[str, tuple[Path, dict[str, Any]]], arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        SkipDiffTableVectorEnv(**{**SKIP, "table": tables["jump"][0], **arguments})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image": 3}, "image must be a whole number from 0 to 2, got 3"),
        ({"image": np.zeros((32, 32, 3), np.uint8)}, "image must be a whole number from 0 to 2"),
        ({"noise_seed": 2}, "noise_seed must be a whole number from 0 to 1, got 2"),
        ({"nfe_penalty": 1.5}, "nfe_penalty must be a number in 0 … 1, got 1.5"),
        ({"images": 0}, "unknown reset option images"),
        ("x", "the options of reset must be a dictionary"),
    ],
)
def test_wrong_options(tables: dict[str, tuple[Path, dict[str, Any]]], options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        skip_env(table=tables["jump"][0]).reset(options=options)


def test_wrong_steps(tables: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    env = skip_env(table=tables["jump"][0])
    with pytest.raises(ResetNeededError, match="not begun"):
        env.step(0)
    env.reset()
    with pytest.raises(InvalidActionError):
        env.step(2)
    for _ in range(4):
        env.step(1)
    with pytest.raises(ResetNeededError, match="has ended"):
        env.step(0)
    states: list[Any] = [None, {}, {"episodes": {}, "generators": []}]
    for state in states:
        with pytest.raises(ConfigError, match=r"not a state that get_state\(\) returned"):
            env.set_state(state)


def test_planning_goes_through_gymnasiums_wrappers() -> None:
    """Restoring a state neither needs a reset before it nor uses up env steps."""
    env: Any = gym.make("SkipDiffTable-v0")
    env.reset(seed=0)
    state = env.unwrapped.get_state()
    for _ in range(1500):
        env.unwrapped.set_state(state)
        assert env.step(0)[2:4] == (False, False)
    fresh: Any = gym.make("SkipDiffTable-v0")
    with pytest.raises(ResetNeededError, match=r"not begun; call reset\(\) before step"):
        fresh.step(0)
    fresh.unwrapped.set_state(state)
    for _ in range(7):
        _, _, ended, truncated, info = fresh.step(0)
    assert (ended, truncated, len(info["levels"])) == (True, False, 8)


def test_states_of_other_tables(tables: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    def make(name: str, **arguments: Any) -> SkipDiffTableEnv:
        env = skip_env(table=tables[name][0], **arguments)
        env.reset(seed=0)
        return env

    env = make("jump", nfe_penalty=0.1)
    seen = env.reset(seed=1)[0]
    for other in (make("coarse"), make("sampled"), make("jump", nfe_penalty=2)):
        with pytest.raises(ConfigError, match="taken with another table, split or nfe_penalty"):
            env.set_state(other.get_state())
    np.testing.assert_array_equal(env._batch._observe()[0], seen)
    splits = [skip_env(split=split) for split in ("train", "test")]
    splits[0].reset(seed=0)
    with pytest.raises(ConfigError, match="another table, split"):
        splits[1].set_state(splits[0].get_state())
    state = env.get_state()
    state["episodes"]["node"][0] = 3
    state["generators"] = [None]
    with pytest.raises(ConfigError, match="not a state"):
        env.set_state(state)
    np.testing.assert_array_equal(env._batch._observe()[0], seen)


@pytest.mark.parametrize("damage", ["format", "arrays", "json", "shape"])
def test_damaged_tables(tables: dict[str, tuple[Path, dict[str, Any]]], tmp_path: Path, damage: str) -> None:
    source = tables["jump"][0]
    description = json.loads((source / DESCRIPTION).read_text(encoding="utf-8"))
    arrays = (source / ARRAYS).read_bytes()
    if damage == "format":
        description["format"] = 99
    if damage == "shape":
        description["noises"] = 5
    text = json.dumps(description)
    (tmp_path / DESCRIPTION).write_text(text[:50] if damage == "json" else text, encoding="utf-8")
    (tmp_path / ARRAYS).write_bytes(arrays[:1000] if damage == "arrays" else arrays)
    with pytest.raises(ConfigError, match=r"has format 99|is damaged|is not readable JSON") as raised:
        OutcomeTable.load(tmp_path)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize("damage", ["bytes", "shape", "name"])
def test_a_damaged_table_is_not_gone_on_with(damage: str, short_checkpoint: str, tmp_path: Path, photo: Photo) -> None:
    (tmp_path / "images").mkdir()
    Image.fromarray(photo(32, 32)).save(tmp_path / "images" / "a.png")
    config = {
        "checkpoint": short_checkpoint, "images": str(tmp_path / "images"), "image_size": 32, "steps": (1, 4),
        "skip_mode": "jump", "metric": "psnr",
    }  # fmt: skip
    tabulate(config, tmp_path)
    arrays = load_file(tmp_path / ARRAYS)
    if damage == "shape":
        arrays["metrics.psnr"] = arrays["metrics.psnr"][:, :1]
    if damage == "name":
        del arrays["features"]
    save_file(arrays, tmp_path / ARRAYS)
    if damage == "bytes":
        (tmp_path / ARRAYS).write_bytes(b"nonsense")
    with pytest.raises(ConfigError, match=r"the unfinished table .* is damaged .*; remove .*table\.safetensors"):
        tabulate(config, tmp_path)
    (tmp_path / ARRAYS).unlink()
    assert np.isfinite(tabulate(config, tmp_path).metrics["psnr"]).all()


# --- the command, and Minari ---


def test_command(short_checkpoint: str, tmp_path: Path, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minari = pytest.importorskip("minari")
    pytest.importorskip("h5py")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "datasets"))
    command = [
        "tabulate",
        "--images",
        str(photos),
        "--limit",
        "2",
        "--out",
        str(tmp_path / "table"),
        "--checkpoint",
        short_checkpoint,
        "--steps",
        "1,4",
        "--image-size",
        "32",
        "--metrics",
        "psnr,colour",
        "--minari",
        "skipdiff/tiny-v0",
        "--episodes",
        "20",
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Minari's, of what a dataset may tell of its author
        run = CliRunner().invoke(main, command)
        assert run.exit_code == 0, run.output
        assert "(2 crops, 2 noises, 8 schedules)" in run.output
        dataset = minari.load_dataset("skipdiff/tiny-v0")
        env = dataset.recover_environment()
    assert (dataset.total_episodes, dataset.total_steps) == (20, 60)
    lengths = set()
    for episode in dataset.iterate_episodes():
        assert episode.observations.shape == (4, FEATURES + 3)
        assert episode.terminations.tolist() == [False, False, True]
        assert not episode.truncations.any()
        observation, _ = env.reset(seed=int(next(iter(dataset.storage.get_episode_metadata([episode.id])))["seed"]))
        for i, action in enumerate(episode.actions):
            assert np.array_equal(observation, episode.observations[i])
            observation, reward, *_ = env.step(int(action))
            assert reward == pytest.approx(float(episode.rewards[i]), abs=1e-6)
        lengths.add(int(episode.actions.sum()))
    assert len(lengths) > 1
    again = CliRunner().invoke(main, command)
    assert again.exit_code == 2
    assert "there is a Minari dataset skipdiff/tiny-v0 already" in again.output
    with pytest.raises(ConfigError, match="'no good name-v' is not the name of a Minari dataset"):
        write_minari("no good name-v", table=tmp_path / "table")


@pytest.mark.parametrize("name", ["2", "-v0", "a/b"])
def test_names_are_checked_before_a_table_is_made(name: str, tmp_path: Path) -> None:
    pytest.importorskip("minari")
    run = CliRunner().invoke(main, ["tabulate", "--out", str(tmp_path / "a"), "--minari", name])
    assert run.exit_code == 2
    assert "is not the name of a Minari dataset, expected one like skipdiff/table-v0" in " ".join(run.output.split())
    assert not (tmp_path / "a").exists()


def test_without_minari(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "minari", None)
    with pytest.raises(ConfigError, match=r"pip install 'skipdiff\[offline\]'"):
        write_minari("skipdiff/x-v0")


def test_wrong_commands(tmp_path: Path, photos: Path) -> None:
    for arguments, message in (
        ([], "nothing to do; give --out, --minari, or both"),
        (["--out", str(tmp_path / "a"), "--images", "no/such"], "no such file or folder"),
        (["--out", str(tmp_path / "a"), "--steps", "1,20", "--schedules", "5"], "schedules must be at least 20"),
        (["--out", str(tmp_path / "a"), "--metrics", "dists"], "dists is a judge"),
    ):
        run = CliRunner().invoke(main, ["tabulate", *arguments])
        assert run.exit_code == 2, run.output
        assert message in run.output
        assert not (tmp_path / "a").exists()


@pytest.mark.parametrize("name", ["restart", "coarse"])
def test_guidance_counts(name: str, tables: dict[str, tuple[Path, dict[str, Any]]]) -> None:
    """With guidance, an episode counts and pays for two forwards per prediction."""
    plain = OutcomeTable.load(tables[name][0])
    guided = replace(plain, description={**plain.description, "forwards_per_call": 2})
    ended = []
    for table in (plain, guided):
        env = skip_env(table=table, nfe_penalty=0.125)
        _, info = env.reset(options={"image": 1, "noise_seed": 0})
        nfe, terminated, reward = [info["nfe"]], False, 0.0
        while not terminated:
            _, reward, terminated, _, info = env.step(0)
            nfe.append(info["nfe"])
        ended.append((np.array(nfe), reward))
    (once, reward), (twice, paid) = ended
    np.testing.assert_array_equal(twice, 2 * once)
    assert reward - paid == pytest.approx(0.125 * (once[-1] - once[0]))
