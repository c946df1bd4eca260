"""The benchmark: environments that play from a table of outcomes, scores, and the command."""

import csv
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from click.testing import CliRunner
from gymnasium import spaces
from gymnasium.utils.env_checker import check_env
from gymnasium.vector import AutoresetMode, SyncVectorEnv
from sb3_contrib import TRPO, MaskablePPO
from stable_baselines3 import DQN, PPO, SAC
from stable_baselines3.common.env_checker import check_env as sb3_check_env
from stable_baselines3.common.env_util import make_vec_env

from agents.algorithms import algorithm_name
from agents.benchmark import load_policy
from agents.cli import main
from agents.exporting import export_agent
from agents.training.baselines import fit, random_policy
from agents.training.config import AgentTrainingConfig
from agents.training.sb3 import MODEL, make_model, train_agent
from agents.training.vec_env import TableVecEnv
from ddpm.pictures.images import find_images, read_picture
from ddpm.schedule import Schedule
from ddpm.util.errors import ConfigError
from skipdiff_env import OutcomeTable, SkipDiffEnv, SkipDiffTableEnv, SkipDiffTableVectorEnv, score
from skipdiff_env.outcomes import SPLITS, TABLES, split_of
from skipdiff_env.rendering import COLOURS
from skipdiff_env.rules import Action, InvalidActionError, ResetNeededError
from skipdiff_env.scoring import play, tree_of
from skipdiff_env.tabulate import tabulate
from skipdiff_env.tree import Tree
from tests.test_outcomes import jumping, made, settings
from tests.test_vector_env import assert_same

__all__ = ["jumping"]  # a fixture
WAYS = ("6", "6*8", "6*2,3*2", "6*2,3*4", "6*4,3*2")

BANDIT = "SkipDiffBanditTable-v0"


def deep(crops: int = 300, seed: int = 0) -> OutcomeTable:
    """A table in which the second decision is worth something: the estimate says which of two endings is best."""
    table = made(crops, seed=seed)
    rng = np.random.default_rng(seed)
    wanted = rng.integers(2, size=(crops, 2))
    values = np.full((crops, 2, len(WAYS)), 0.4)
    values[..., 2:4] = 0.3 + 0.1 * (np.arange(2) != wanted[..., None])
    estimates = np.full((crops, 2, 2, 42), -1.0, np.float32)
    estimates[:, :, 0, 5] = wanted - 1
    return replace(
        table, schedules=tuple(Schedule.parse(text) for text in WAYS), estimates=estimates,
        metrics={"lpips": values.astype(np.float32)},
    )  # fmt: skip


def test_the_tree_of_decisions() -> None:
    tree = Tree(deep(), "stride")
    assert tree.table.states == (((3, 2),), ((3, 4),))
    assert tree.actions == ((0, 1), (0, 2), (0, 4), (0, 8), (3, 2), (3, 4))
    np.testing.assert_array_equal(
        tree.possible.astype(int), [[1, 0, 0, 1, 1, 1], [0, 1, 1, 0, 0, 0], [0, 1, 0, 0, 0, 0]]
    )
    # exact: "6" is -1, "6*8" -2, then nodes 1 and 2; the nearest level comes first, then the nearest substeps
    np.testing.assert_array_equal(tree.moves[0], [-1, -1, -2, -2, 1, 2])
    np.testing.assert_array_equal(tree.moves[1], [-3, -3, -4, -4, -3, -4])
    np.testing.assert_array_equal(tree.moves[2], [-5] * 6)
    numbers = Tree(deep(), "continuous")
    actions = np.array([[1, 1], [1, -1], [0, -0.3], [0, 0.9], [-1, 0.9]], np.float32)  # by way and by substeps
    found = [numbers.actions[place] for place in numbers.places(np.zeros(5, np.int64), actions)]
    assert found == [(0, 8), (0, 1), (3, 2), (3, 4), (3, 4)]
    with pytest.raises(
        InvalidActionError, match=r"two numbers in -1 … 1 for each of 600 observations, got float64 \(600, 2\) in 2"
    ):
        play(numbers, lambda seen: np.full((len(seen), 2), 2.0))
    assert (tree.longest, Tree(deep(), "schedule").longest) == (2, 1)
    with pytest.raises(ConfigError, match="decisions must be one of schedule, stride, continuous, skip, got 'other'"):
        Tree(deep(), "other")


@pytest.mark.parametrize("kind", ["schedule", "stride", "continuous"])
def test_tables_play_as_the_network_does(kind: str, jumping: str, photos: Path, tmp_path: Path) -> None:
    """Observations, rewards and `info` are those of the live environment, for each schedule."""
    given, ways = settings(jumping, photos), [Schedule.parse(text) for text in WAYS]
    table = tabulate(given, tmp_path / "table", ways, crops=1)
    assert table.estimates is not None
    assert table.estimates.shape == (4, 2, 2, 42)
    (split,) = {split_of(table.photographs[0])}
    rows = [place for place, name in enumerate(table.photographs) if split_of(name) == split]
    every: dict[str, dict[str, Any]] = {"stride": {"substeps": [1, 2, 4, 8]}, "schedule": {"schedules": WAYS}}
    counts = every.get(kind, {})
    live = SkipDiffEnv(
        **{**given, "observation": "features", "decisions": kind, "reward": "negative", "nfe_penalty": 0.01, **counts}
    )
    env = SkipDiffTableEnv(table=tmp_path / "table", decisions=kind, split=split, reward="negative", nfe_penalty=0.01)
    path = find_images([str(photos)])[rows[0]]
    rng = np.random.default_rng([0, rows[0]])
    left, top = (int(rng.integers(128 - 32 + 1)) for _ in range(2))
    rgb = np.ascontiguousarray(read_picture(path).rgb[top : top + 32, left : left + 32])
    for place, way in enumerate(ways):
        seen, info = env.reset(options={"image": 0, "noise_seed": 1})
        expected, known = live.reset(options={"image": rgb, "noise_seed": 2 * rows[0] + 1})
        own: Any
        theirs: Any
        ended, jumps = False, list(way.jumps())
        while not ended:
            np.testing.assert_allclose(seen, expected, atol=2e-4)
            for name in ("diffusion_step", "nfe", "nfe_penalty"):
                assert info[name] == known[name], name
            if kind == "schedule":
                own = theirs = place
            else:
                jump = jumps.pop(0)
                own = env.tree.actions.index(jump)
                theirs = np.array([known["diffusion_step"] - jump[0] - 1, [1, 2, 4, 8].index(jump[1])])
                assert kind == "continuous" or env.action_masks()[own]
            if kind == "continuous":
                share, amount = 1 - jump[0] / known["diffusion_step"], np.log(jump[1]) / np.log(8)
                own = theirs = np.array([2 * share - 1, 2 * amount - 1], np.float32)
            seen, reward, ended, _, info = env.step(own)
            expected, other, over, _, known = live.step(theirs)
            assert (reward, ended) == (pytest.approx(other, abs=1e-4), over)
        assert (info["nfe"], info["levels"], info["substeps"]) == (known["nfe"], way.levels, way.substeps)
        assert info["metrics"]["lpips"] == pytest.approx(known["metrics"]["lpips"], abs=1e-4)


@pytest.mark.parametrize("kind", ["schedule", "stride", "continuous"])
@pytest.mark.parametrize("mode", ["NextStep", "SameStep"])
def test_a_batch_is_as_single_environments(kind: str, mode: str) -> None:
    settings: dict[str, Any] = {"table": deep(), "decisions": kind, "split": "train"}
    batch: Any = SkipDiffTableVectorEnv(3, autoreset_mode=mode, **settings)
    single: Any = SyncVectorEnv([lambda: SkipDiffTableEnv(**settings)] * 3, autoreset_mode=AutoresetMode(mode))
    assert_same(batch.reset(seed=5), single.reset(seed=5))
    for seed in range(12):
        batch.action_space.seed(seed)
        actions = batch.action_space.sample()
        assert_same(batch.step(actions), single.step(actions))


@pytest.mark.parametrize("name", ["SkipDiffBanditTable-v0", "SkipDiffStrideTable-v0", "SkipDiffContinuousTable-v0"])
def test_the_registered_ones(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for split in SPLITS:
            env = gym.make(name, split=split).unwrapped
            check_env(env)
            sb3_check_env(env)
    tables: list[Any] = [gym.make(name, split=split).unwrapped for split in SPLITS]
    assert sum(len(env.table.features) for env in tables) == 1252
    assert [len(set(env.table.photographs)) for env in tables] == [605, 104, 192]
    PPO("MlpPolicy", name, n_steps=8, batch_size=8, n_epochs=1).learn(16)
    if name == "SkipDiffContinuousTable-v0":
        SAC("MlpPolicy", make_vec_env(name, 2), learning_starts=4, batch_size=8).learn(16)
    else:
        MaskablePPO("MlpPolicy", make_vec_env(name, 2), n_steps=8, batch_size=8, n_epochs=1).learn(16)


def test_frames_show_the_rewards_of_all_schedules() -> None:
    """The highest bar is the best schedule; the bar of the schedule that was followed is green."""
    env = SkipDiffTableEnv(table=made(), render_mode="rgb_array")
    with pytest.raises(ResetNeededError, match="before render"):
        env.render()
    env.reset(options={"image": 3, "noise_seed": 1})
    rewards = env.table.rewards(0.002)[3, 1]
    frame = env.render()
    assert frame is not None
    heights = [np.sum((frame == colour).all(axis=2), axis=0) for colour in COLOURS.values()]
    columns = np.array_split(np.arange(frame.shape[1]), len(rewards))
    assert [int(heights[Action.SKIP][part].max()) for part in columns].index(heights[1].max()) == rewards.argmax()
    assert not heights[Action.DENOISE].any()
    env.step(2)
    after = env.render()
    assert after is not None
    assert np.flatnonzero((after == COLOURS[Action.DENOISE]).all(axis=2).any(axis=0)).min() >= columns[2][0] - 8
    assert SkipDiffTableEnv(table=made()).render() is None


def test_rewards_are_relative_or_not() -> None:
    table = made()
    for reward in ("relative", "negative"):
        env = SkipDiffTableEnv(table=table, reward=reward, nfe_penalty=0.01)
        env.reset(options={"image": 3, "noise_seed": 1})
        own = -table.split("train").metrics["lpips"][3, 1].astype(float) - 0.01
        assert env.step(2)[1] == pytest.approx(own[2] - own.mean() * (reward == "relative"), abs=1e-6)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "all"}, "split must be one of train, validation, test, got 'all'"),
        ({"table": "nowhere"}, "nowhere holds no table"),
        ({"reward": "other"}, "reward must be one of inverse, negative, relative, got 'other'"),
        ({"nfe_penalty": -1}, "nfe_penalty must be a number of at least 0"),
        ({"nfe_penalty": (0.1, 0.2)}, "a range of prices is for decisions skip"),
        ({"render_mode": "human"}, "render_mode must be rgb_array or None, got 'human'"),
    ],
)
def test_wrong_arguments(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SkipDiffTableEnv(**arguments)


def test_wrong_calls() -> None:
    env = SkipDiffTableEnv(table=made())
    with pytest.raises(ResetNeededError, match="has not begun"):
        env.step(0)
    for options, message in (({"image": 999}, "image must be a whole number from 0"), ({"size": 1}, "unknown reset")):
        with pytest.raises(ConfigError, match=message):
            env.reset(options=options)
    env.reset()
    with pytest.raises(InvalidActionError, match="an action must be a whole number in 0 … 2, got 3"):
        env.step(3)
    env.step(0)
    with pytest.raises(ResetNeededError, match="has ended"):
        env.step(0)


def test_scores() -> None:
    table = made()
    train, test = table.split("train"), table.split("test")
    wanted = test.features[:, 0]

    def knows(seen: Any) -> Any:
        return (seen[:, 0] + 2).round().astype(int)

    fixed = train.best_fixed(0.002)
    found = score(knows, table=table)
    assert found.value == pytest.approx(1, abs=0.02)
    assert found.low <= found.value <= found.high
    assert score(lambda seen: np.full(len(seen), fixed), table=table).value == 0
    assert score(random_policy(spaces.Discrete(3)), table=table).value < 0
    both = score([knows, lambda seen: np.full(len(seen), fixed)], table=table)
    assert both.values == pytest.approx((found.value, 0))
    assert both.value == pytest.approx(found.value / 2)
    assert score([knows] * 3 + [random_policy(spaces.Discrete(3))], table=table).iqm == pytest.approx(found.value)
    assert len(play(Tree(test, "schedule"), knows)) == len(wanted)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        (lambda seen: np.full(len(seen), 3), r"one whole number in 0 … 2 for each of \d+ observations, got int64"),
        (lambda seen: np.zeros(len(seen)), "got float64"),
        (lambda seen: np.zeros(3, int), r"got int64 \(3,\)"),
        ("ppo", "is a .*str|must be a model of Stable-Baselines3 or a function"),
        ([], "there is no policy to score"),
    ],
)
def test_policies_that_are_none(policy: Any, message: str) -> None:
    with pytest.raises((ConfigError, InvalidActionError), match=message):
        score([policy] if isinstance(policy, str) else policy, table=made())


def test_scores_of_other_things() -> None:
    with pytest.raises(ConfigError, match="split must be one of train, validation, test, got 'tests'"):
        score(random_policy(spaces.Discrete(3)), split="tests", table=made())
    with pytest.raises(
        ConfigError,
        match="scores are for SkipDiffBanditTable-v0, SkipDiffStrideTable-v0, SkipDiffContinuousTable-v0, got 'X'",
    ):
        score(random_policy(spaces.Discrete(3)), env_id="X")
    model = PPO("MlpPolicy", "CartPole-v1", n_steps=8, batch_size=8)
    with pytest.raises(ConfigError, match=r"the model has the observation_space Box\(4,\), expected Box\(42,\)"):
        score(model, table=made())


@pytest.mark.slow
@pytest.mark.parametrize("algorithm", ["ppo", "a2c", "dqn", "qrdqn", "trpo", "maskable-ppo", "sac", "td3"])
def test_every_algorithm_learns(algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With the hyperparameters that ship."""
    monkeypatch.setattr(OutcomeTable, "load", classmethod(lambda cls, folder: made(600)))
    kind, env = ("continuous", "SkipDiffContinuousTable-v0") if algorithm in ("sac", "td3") else ("schedule", BANDIT)
    config = AgentTrainingConfig(algorithm, env, hyperparameters={"n_timesteps": 60_000, "n_envs": 128})
    folder = train_agent(config, tmp_path / "run")
    assert folder == tmp_path / "run" / ("best" if env == BANDIT else MODEL)
    tree = Tree(made(600), kind)
    names = [str(tmp_path / "run" / MODEL), *([str(folder), str(tmp_path / "run")] if env == BANDIT else [])]
    for name in names:
        policy = load_policy(name, tree, trust_pickle=True)
        assert score(policy, env_id=env, table=tree.table).value > 0.7


def test_a_second_decision_is_learnt_where_it_helps() -> None:
    table = deep(600)
    trees = [Tree(table.split(name), "stride") for name in ("train", "validation")]
    kinds: list[Any] = ["ridge", "supervised"]
    for kind in kinds:
        found = score(fit(trees[0], trees[1], 0.002, kind), env_id="SkipDiffStrideTable-v0", table=table)
        assert found.reward == pytest.approx(-0.304, abs=0.003), "the best ending for each noise"
    config = AgentTrainingConfig(env="SkipDiffStrideTable-v0", hyperparameters={"n_envs": 64, "n_steps": 16})
    model = make_model(config, TableVecEnv(64, 0, table=table, decisions="stride"))
    model.learn(40_000)
    assert score(model, env_id="SkipDiffStrideTable-v0", table=table).reward > -0.31


def test_fitted_policies_of_a_single_decision() -> None:
    table = made(600)
    trees = [Tree(table.split(name), "schedule") for name in ("train", "validation")]
    # the schedule in the middle is never the best of a linear prediction
    cases: list[tuple[Any, float]] = [("ridge", 0.3), ("supervised", 0.9), ("cloning", 0.9)]
    for kind, least in cases:
        policy = fit(trees[0], trees[1], 0.002, kind)
        assert score(policy, table=table).value > least


def test_names_of_classes() -> None:
    assert [algorithm_name(kind) for kind in (PPO, DQN, TRPO, MaskablePPO)] == [
        "ppo", "dqn", "trpo", "maskable-ppo",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="str is none of the algorithms ppo"):
        algorithm_name(str)


def command(*arguments: object, code: int = 0) -> str:
    result = CliRunner().invoke(main, ["benchmark", *map(str, arguments)])
    assert result.exit_code == code, (result.output, result.exception)
    return " ".join(result.output.split())


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text("def fixed(seen):\n    return [3] * len(seen)\n\nWORD = 'x'\n", encoding="utf-8")
    table = OutcomeTable.load("natural-x4")
    model = PPO("MlpPolicy", TableVecEnv(8), n_steps=8, batch_size=8, seed=0)
    model.save(tmp_path / "model.zip")
    export_agent(model, table, tmp_path / "agent")
    printed = command("mine:fixed", "agent", "model.zip", "--trust-pickle")
    assert "| mine:fixed | 0.000 [0.000, 0.000] |" in printed
    assert "interquartile mean" in printed
    assert "SkipDiffBanditTable-v0, 192 test photographs, 95 % bootstrap intervals over photographs" in printed
    assert "0: reward" in command("natural-x4/agent-detail", "--split=validation"), "the agent that ships"
    for arguments, message in (
        (["model.zip"], "pass --trust-pickle"),
        (["nowhere:policy"], "nowhere:policy is not a function"),
        (["mine:WORD"], "mine:WORD is a str, expected a function"),
        (["agent", "--split=all"], "split must be one of train, validation, test, got 'all'"),
        (["agent", "--env=SkipDiffStrideTable-v0"], "expected an agent that decides about strides"),
        (["agent", "--table=photo-x4"], "but this table is of"),
        (["agent", "--table=natural-x4-stride"], "chooses among 20; 20*2"),
        (["natural-x4/agent-paper"], "decides step by step, expected an agent that decides a schedule"),
        (["agent", "--env=SkipDiff-v0"], "scores are for"),
    ):
        assert message in command(*arguments, code=2), arguments


def test_training_by_the_command(tmp_path: Path) -> None:
    """Without an environment it is the one where there is something to learn."""

    def run(*arguments: str, code: int = 0) -> str:
        result = CliRunner().invoke(main, ["train-agent", f"--out={tmp_path / 'run'}", *arguments])
        assert result.exit_code == code, (result.output, result.exception)
        return " ".join(result.output.split())

    printed = run("--env-steps=2048")
    assert "on the test photographs; 0 is the best fixed schedule" in printed
    assert run("--resume").split("agent: ")[1] == printed.split("agent: ")[1], "it is finished"
    for arguments, message in (
        (("--resume", "--seed=1"), "seed cannot change when a run is resumed"),
        (("--images=x",), "training on a table has no setting --images; with a network, name its environment"),
        (("--algo=a2c",), "is not empty"),
    ):
        assert message in run(*arguments, code=2), arguments
    other = CliRunner().invoke(main, ["train-agent", f"--out={tmp_path / 'other'}", "--algo=recurrent-ppo"])
    assert "recurrent-ppo has no hyperparameters for SkipDiffBanditTable-v0" in " ".join(other.output.split())
    assert not (tmp_path / "other").exists()
    timed = CliRunner().invoke(main, ["train-agent", f"--out={tmp_path / 'timed'}", "--minutes=0.0001"])
    assert timed.exit_code == 0, timed.output


@pytest.mark.filterwarnings("ignore")  # Minari's, of what a dataset may tell of its author
def test_datasets_have_the_scale_of_scores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    minari = pytest.importorskip("minari")
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path))
    arguments = ["tabulate", "--minari=skipdiff/test-v0", "--env=SkipDiffBanditTable-v0", "--split=validation"]
    result = CliRunner().invoke(main, [*arguments, "--episodes=30"])
    assert result.exit_code == 0, (result.output, result.exception)
    dataset = minari.load_dataset("skipdiff/test-v0")
    episodes = list(dataset.iterate_episodes())
    assert {len(episode.rewards) for episode in episodes} == {1}
    env = dataset.recover_environment()
    assert len(set(env.unwrapped.table.photographs)) == 104
    first = episodes[0]
    np.testing.assert_array_equal(env.reset(seed=0)[0], first.observations[0])
    assert env.step(first.actions[0])[1] == pytest.approx(first.rewards[0])
    table = env.unwrapped.table
    choices = random_policy(spaces.Discrete(6))(table.features)
    whole = score(lambda seen: np.repeat(choices, 2), split="validation")
    relative = table.rewards(0.002) - table.rewards(0.002).mean(axis=2, keepdims=True)
    mean = table.per_photograph(np.take_along_axis(relative, choices[:, None, None], 2)[..., 0]).mean()
    assert minari.get_normalized_score(dataset, mean) == pytest.approx(whole.value)
    wrong = CliRunner().invoke(main, ["tabulate", "--env=SkipDiffBanditTable-v0", f"--out={tmp_path / 'x'}"])
    assert wrong.exit_code == 2
    assert "--env and --split are for --minari" in wrong.output


def test_the_reference_scores_that_ship() -> None:
    """They have the form that the command writes, and those without chance are what is computed here."""
    with (TABLES / "reference_scores.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    for env_id, name in (("SkipDiffBanditTable-v0", ""), ("SkipDiffStrideTable-v0", "")):
        own = {row["method"]: row for row in rows if (row["env"], row["table"]) == (env_id, name)}
        assert {"random", "best fixed", "ridge", "supervised", "ppo"} <= own.keys()
        assert float(own["best fixed"]["score"]) == 0
        whole = tree_of(env_id)
        trees = [Tree(whole.table.split(split), whole.kind) for split in ("train", "validation")]
        found = score(fit(trees[0], trees[1], 0.002, "ridge"), env_id=env_id)
        assert found.value == pytest.approx(float(own["ridge"]["score"]), abs=0.02)
        for row in own.values():
            assert float(row["low"]) <= float(row["score"]) <= float(row["high"])
            assert len(row["values"].split()) == int(row["seeds"])
