"""Tables of a choice among schedules, the agents that learn on them, and what becomes of these."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from safetensors.numpy import load_file, save_file
from stable_baselines3 import A2C, PPO

from agents import export_agent
from agents.agent import load_agent
from agents.benchmark import load_zip
from agents.cli import main
from agents.playing import AgentPolicy
from agents.training.config import AgentTrainingConfig, resumed_config
from agents.training.learning_curve import CURVE, read_curve
from agents.training.sb3 import STATE, TrainingCallback, train_agent
from agents.training.vec_env import TableVecEnv
from ddpm.checkpoints import save_checkpoint
from ddpm.pictures.images import read_picture, to_tensor
from ddpm.schedule import Schedule
from ddpm.util.errors import CheckpointError, ConfigError, SkipDiffError
from skipdiff_env.config import TaskConfig
from skipdiff_env.features import features
from skipdiff_env.outcomes import ARRAYS, DESCRIPTION, SPLITS, OutcomeTable, split_of
from skipdiff_env.pictures import photographs_of
from skipdiff_env.plan import Plan
from skipdiff_env.tabulate import tabulate
from skipdiff_env.task import Task
from skipdiff_env.upscaler import Upscaler
from tests.test_substeps import with_substeps

WAYS = ("6", "6*4", "6*8", "6*2,3*2")
PLAN = Plan(1, 6, fine_sampler="ddim", skip_mode="jump")


@pytest.fixture(scope="session")
def jumping(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A checkpoint of the tiny network with substeps."""
    folder = tmp_path_factory.mktemp("jumping")
    save_checkpoint(with_substeps(), folder)
    return str(folder)


def settings(checkpoint: str, photos: Path) -> dict[str, Any]:
    return {
        "checkpoint": checkpoint, "images": [str(photos)], "image_size": 32, "metric": "lpips",
        "report_metrics": ["psnr"], "steps": (1, 6), "skip_mode": "jump", "fine_sampler": "ddim",
    }  # fmt: skip


def made(crops: int = 300, noises: int = 2, seed: int = 0) -> OutcomeTable:
    """A table without pictures: the feature number 0 says which of three schedules is best, up to noise."""
    rng = np.random.default_rng(seed)
    wanted = rng.integers(3, size=crops)
    rows = np.full((crops, 42), -1.0, np.float32)
    rows[:, 0] = wanted - 2
    values = 0.3 + 0.1 * (np.arange(3) != wanted[:, None])[:, None] + rng.normal(0, 0.01, (crops, noises, 3))
    values += rng.normal(0, 0.2, (crops, 1, 1))  # some pictures are harder than others
    schedules = tuple(Schedule.parse(text) for text in WAYS[:3])
    description = {"plan": PLAN.settings(), "size": 32, "checkpoint": "tiny"}
    photographs = tuple(f"photograph {i // 2}" for i in range(crops))
    return OutcomeTable(schedules, {"lpips": values.astype(np.float32)}, rows, photographs, description)


@pytest.mark.parametrize("jobs", [1, 2])
def test_a_table_holds_what_the_process_gives(jobs: int, jumping: str, photos: Path, tmp_path: Path) -> None:
    given, ways = settings(jumping, photos), [Schedule.parse(text) for text in WAYS]
    table = tabulate(given, tmp_path / "table", ways, crops=2, noises=3, jobs=jobs)
    assert table.schedules == tuple(ways)
    assert {name: values.shape for name, values in table.metrics.items()} == dict.fromkeys(("lpips", "psnr"), (8, 3, 4))
    assert (table.metric, table.forwards.tolist()) == ("lpips", [1, 1, 1, 2])
    assert table.photographs == tuple(str(photos / f"{i // 2}.png") for i in range(8))
    task = Task(TaskConfig.of(given))
    rng = np.random.default_rng([0, 1])  # of the second photograph
    left, top = (int(rng.integers(128 - 32 + 1)) for _ in range(2))
    rgb = np.ascontiguousarray(read_picture(photos / "1.png").rgb[top : top + 32, left : left + 32])
    expected = task.schedule_outcomes([rgb], [6, 7, 8], WAYS)  # crop 2, three noises
    for name, values in expected.metrics.items():
        np.testing.assert_allclose(table.metrics[name][2], values[0], atol=1e-4)
    np.testing.assert_allclose(
        table.features[2], features(task.begin([rgb], [0])[0].refinement.lr_up.numpy()), atol=1e-5
    )
    assert len({table.metrics["lpips"][i, k, 1] for i in range(8) for k in range(3)}) == 24, "all noises differ"


def test_an_unfinished_table_continues(
    jumping: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    given, ways = settings(jumping, photos), [Schedule.parse(text) for text in WAYS[:2]]
    whole = tabulate(given, tmp_path / "whole", ways)
    import skipdiff_env.tabulate as module

    row, calls = module._row, []

    def failing(*args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 3:
            raise KeyboardInterrupt
        return row(*args, **kwargs)

    monkeypatch.setattr(module, "_row", failing)
    with pytest.raises(KeyboardInterrupt):
        tabulate(given, tmp_path / "part", ways)
    with pytest.raises(ConfigError, match="has 2 of 4 crops; the same `skipdiff tabulate` continues it"):
        OutcomeTable.load(tmp_path / "part")
    found = tabulate(given, tmp_path / "part", ways)
    assert len(calls) == 5, "what was done is not done again"
    np.testing.assert_array_equal(found.metrics["lpips"], whole.metrics["lpips"])
    others: list[dict[str, Any]] = [{"noises": 3}, {"crops": 2}, {"seed": 1}]
    for changes in others:
        with pytest.raises(ConfigError, match="holds a table of another"):
            tabulate(given, tmp_path / "part", ways, **changes)
    with pytest.raises(ConfigError, match="holds a table of another metrics"):
        tabulate({**given, "metric": "lpips", "report_metrics": ["colour"]}, tmp_path / "part", ways)


def test_what_is_no_table(jumping: str, photos: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="holds no table; `skipdiff tabulate --out"):
        OutcomeTable.load(tmp_path)
    given, ways = settings(jumping, photos), [Schedule.parse("6*8")]
    with pytest.raises(ConfigError, match="has learnt at most 8 substeps, got 9"):
        tabulate(given, tmp_path / "t", [Schedule.parse("6*9")])
    with pytest.raises(SkipDiffError, match="smaller than"):
        tabulate({**given, "image_size": 160}, tmp_path / "t", ways)
    assert not (tmp_path / "t").exists(), "nothing is left of what was refused"
    tabulate(given, tmp_path / "t", ways)
    arrays, text = load_file(tmp_path / "t" / ARRAYS), (tmp_path / "t" / DESCRIPTION).read_text(encoding="utf-8")
    for features_, words in (
        (arrays["features"][:2], "its arrays do not fit together"),
        (arrays["features"] * np.float32(np.nan), "its features are not finite"),
    ):
        save_file({**arrays, "features": features_}, tmp_path / "t" / ARRAYS)
        with pytest.raises(ConfigError, match=f"is damaged .{words}"):
            OutcomeTable.load(tmp_path / "t")
    save_file(arrays, tmp_path / "t" / ARRAYS)
    known = json.loads(text)
    for changed, words in (
        ({**known, "format": 9}, "has format 9, expected 3"),
        ([], "has format None, expected 3"),
        ({**known, "photographs": [0.5] * 4}, "is damaged .checkpoint and photographs must be texts, got 0.5"),
        ({**known, "plan": {**known["plan"], "key": 1}}, "is damaged .*unexpected keyword argument 'key'"),
        ({**known, "size": "x"}, "is damaged .size must be a whole number of at least 1, got 'x'"),
    ):
        (tmp_path / "t" / DESCRIPTION).write_text(json.dumps(changed), encoding="utf-8")
        with pytest.raises(ConfigError, match=words):
            OutcomeTable.load(tmp_path / "t")
    (tmp_path / "t" / DESCRIPTION).write_text(json.dumps({**known, "plan": {}}), encoding="utf-8")
    assert OutcomeTable.load(tmp_path / "t").description["plan"] == Plan().settings()


def test_splits_are_by_photograph() -> None:
    shares = [np.mean([split_of(f"{i}.jpg") == name for i in range(5000)]) for name in SPLITS]
    np.testing.assert_allclose(shares, [0.68, 0.12, 0.20], atol=0.02)
    table = made()
    parts = [table.split(name) for name in SPLITS]
    assert sum(len(part.photographs) for part in parts) == 300
    names = [set(part.photographs) for part in parts]
    assert not names[0] & names[1]
    assert not names[0] & names[2]
    with pytest.raises(ConfigError, match="split must be one of train, validation, test, got 'val'"):
        table.split("val")


def test_photographs_that_several_files_are_cut_from(tmp_path: Path) -> None:
    sources = tmp_path / "sources.tsv"
    sources.write_text("file\tphotograph\na/1.jpg\tx\na/2.jpg\tx\nb/1.jpg\ty\n", encoding="utf-8")
    assert photographs_of(["/d/a/1.jpg", "/d/a/2.jpg", "/d/b/1.jpg"], sources) == ["x", "x", "y"]
    assert photographs_of(["1.jpg", "2.jpg"], None) == ["1.jpg", "2.jpg"]
    with pytest.raises(ConfigError, match=r"does not name /d/c/1\.jpg"):
        photographs_of(["/d/c/1.jpg"], sources)
    with pytest.raises(ConfigError, match="cannot be read"):
        photographs_of(["1.jpg"], tmp_path / "none.tsv")


def test_scores_lie_between_the_best_constant_and_the_other_noises() -> None:
    """By hand: two photographs, each of which wants another schedule."""
    values = np.array([[[0.1, 0.3], [0.1, 0.3]], [[0.4, 0.2], [0.4, 0.2]], [[0.4, 0.2], [0.4, 0.2]]], np.float32)
    ways = (Schedule.parse("6"), Schedule.parse("6*8"))
    table = OutcomeTable(ways, {"lpips": values}, np.zeros((3, 42), np.float32), ("a", "b", "b"))
    assert table.best_fixed() == 1
    np.testing.assert_array_equal(table.best_of_others(), [[0, 0], [1, 1], [1, 1]])
    np.testing.assert_allclose(table.per_photograph(table.chosen(np.array([1, 1, 1]))), [-0.3, -0.2])
    score = table.score(np.array([0, 1, 1]), 1)
    assert score.value == pytest.approx(1)
    np.testing.assert_allclose((score.reward, score.fixed, score.others), (-0.15, -0.25, -0.15), atol=1e-6)
    assert table.score(np.array([1, 1, 1]), 1).value == pytest.approx(0)
    assert table.score(np.array([1, 0, 0]), 1).value == pytest.approx(-1)
    alike = replace(table, metrics={"lpips": values[[1, 1, 1]]})
    assert np.isnan(alike.score(np.array([0, 1, 1]), 1).value)
    with pytest.raises(ConfigError, match="none of these 2 photographs gains by another schedule at the price 0"):
        alike.check_score(1)
    half = table.score(np.array([0, 1, 0]), 1)  # crops of one photograph are averaged
    assert half.value == pytest.approx(0.5)
    with pytest.raises(ConfigError, match="at least 2 noises"):
        replace(table, metrics={"lpips": values[:, :1]}).best_of_others()


def test_the_price_is_that_of_the_forwards() -> None:
    ways = tuple(Schedule.parse(text) for text in ("6*8", "6*2,3*2"))
    table = OutcomeTable(ways, {"lpips": np.zeros((1, 2, 2), np.float32)}, np.zeros((1, 42), np.float32), ("a",))
    np.testing.assert_allclose(table.rewards(0.01)[0, 0], [-0.01, -0.02])


def test_plain_algorithms_learn_and_are_exported(tmp_path: Path) -> None:
    """SB3's PPO and A2C with `MlpPolicy` find the schedule that the features tell."""
    table = made()
    train, test = table.split("train"), table.split("test")
    every: list[tuple[Any, dict[str, Any]]] = [(PPO, {"n_steps": 8, "batch_size": 256}), (A2C, {})]
    for algorithm, arguments in every:
        env = TableVecEnv(64, table=table)
        model: Any = algorithm(
            "MlpPolicy", env, learning_rate=3e-3, ent_coef=0.0, seed=0, policy_kwargs={"net_arch": [32]}, **arguments
        )
        model.learn(40_000)
        export_agent(model, table, tmp_path / algorithm.__name__, seed=0)
        agent = load_agent(tmp_path / algorithm.__name__)
        assert agent.config.schedules == WAYS[:3]
        assert test.score(agent.predict(test.features)[0], train.best_fixed()).value > 0.8
        actions, _ = model.predict(test.features, deterministic=True)
        np.testing.assert_array_equal(agent.predict(test.features)[0], actions)


def test_training_keeps_the_best_on_validation_photographs(
    jumping: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(OutcomeTable, "load", classmethod(lambda cls, folder: made()))
    small = AgentTrainingConfig(hyperparameters={"n_timesteps": 20_000, "n_envs": 64, "ent_coef": 0.01})
    folder = train_agent(small, tmp_path / "run")
    assert folder == tmp_path / "run" / "best"
    agent = load_agent(tmp_path / "run")
    table = made().split("validation")
    kept = table.score(agent.predict(table.features)[0], made().split("train").best_fixed(0.002), 0.002)
    assert kept.value > 0.7
    curve = read_curve(tmp_path / "run" / CURVE)
    assert max(point.score for point in curve) == pytest.approx(kept.value)
    assert agent.config.training["evaluation"]["score"] == pytest.approx(kept.value)
    assert {point.best_fixed_reward for point in curve} == {kept.fixed}
    assert {point.oracle_reward for point in curve} == {kept.others}
    with pytest.raises(ConfigError, match="is not empty"):
        train_agent(small, tmp_path / "run")
    again = resumed_config(tmp_path / "run", {})
    assert train_agent(again, tmp_path / "run", resume=True) == folder
    assert str(read_curve(tmp_path / "run" / CURVE)) == str(curve), "nothing is trained again"
    (tmp_path / "run" / "config.json").write_text("[1]", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"config\.json does not hold the settings of a training"):
        resumed_config(tmp_path / "run", {})


@pytest.mark.parametrize(
    ("env", "algorithm"), [("SkipDiffBanditTable-v0", "dqn"), ("SkipDiffContinuousTable-v0", "td3")]
)
def test_a_training_on_a_table_goes_on(
    env: str, algorithm: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With the weights and the learning curve of a training that was never interrupted."""
    small = {"n_timesteps": 1024, "n_envs": 32, "learning_starts": 64, "buffer_size": 512, "batch_size": 16}
    config = AgentTrainingConfig(algorithm, env, hyperparameters=small)
    train_agent(config, tmp_path / "whole")
    start = TrainingCallback._on_rollout_start

    def killed(self: TrainingCallback) -> None:
        start(self)
        if self.num_timesteps == 512:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(TrainingCallback, "_on_rollout_start", killed)
        patched.setattr("agents.training.sb3.SAVE_SECONDS", 0)
        with pytest.raises(KeyboardInterrupt):
            train_agent(config, tmp_path / "parts")
    train_agent(resumed_config(tmp_path / "parts", {}), tmp_path / "parts", resume=True)
    curves = [read_curve(tmp_path / run / CURVE) for run in ("whole", "parts")]
    assert len(curves[0]) > 10
    assert [point.score for point in curves[0]] == [point.score for point in curves[1]]
    models = [load_zip(tmp_path / run / STATE, trust_pickle=True) for run in ("whole", "parts")]
    for one, other in zip(*(model.policy.state_dict().values() for model in models), strict=True):
        torch.testing.assert_close(one, other)


def test_a_training_without_a_score_is_refused_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = made()
    alike = replace(table, metrics={"lpips": np.sort(table.metrics["lpips"], axis=2)})
    monkeypatch.setattr(OutcomeTable, "load", classmethod(lambda cls, folder: alike))
    with pytest.raises(ConfigError, match="so there is no score"):
        train_agent(AgentTrainingConfig(), tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.fixture
def agent_folder(tmp_path: Path) -> Path:
    """An agent that was trained for a moment."""
    table = made()
    model = PPO(
        "MlpPolicy", TableVecEnv(8, table=table), n_steps=8, batch_size=32, seed=0, policy_kwargs={"net_arch": [8]}
    )
    export_agent(model, table, tmp_path / "agent")
    return tmp_path / "agent"


def test_the_upscaler_takes_the_agents_choice_for_each_tile(agent_folder: Path, jumping: str) -> None:
    agent = load_agent(agent_folder)
    policy = AgentPolicy(agent)
    lr = torch.rand(3, 20, 24, generator=torch.Generator().manual_seed(0)) * 2 - 1
    lr[:, :, 12:] = 0.3
    upscaler = Upscaler(jumping, policy=policy, plan=agent.config.plan)
    result = upscaler.upscale([lr], [0])[0]
    assert len(result.tiles) > 4
    condition = upscaler.unet.condition(lr[None])[0]
    for tile in result.tiles:
        (place,) = agent.predict(features(condition[tile.box.area].numpy())[None])[0]
        assert str(tile.schedule) == WAYS[place]
    assert (result.nfe, upscaler.expected_nfe) == (1, 1)
    for size in ((1, 1), (2, 5)):  # of fewer pixels than the features are made of
        assert upscaler.upscale([lr[:, : size[0], : size[1]]], [0])[0].sr.shape == (3, 4 * size[0], 4 * size[1])


def test_commands_take_such_agents(
    agent_folder: Path, jumping: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.argv", ["/bin/skipdiff", "evaluate", "--levels", "even:1*4"])

    def run(*arguments: str) -> str:
        result = CliRunner().invoke(main, [*arguments])
        assert result.exit_code == 0, result.output
        return result.stdout

    common = (f"--checkpoint={jumping}", f"--agent={agent_folder}")
    source = str(photos / "0.png")
    run("upscale", source, f"--out={tmp_path / 'large.png'}", f"--map={tmp_path / 'map.png'}", *common)
    assert (tmp_path / "large.png").exists()
    assert (tmp_path / "map.png").exists()
    printed = run(
        "evaluate", f"--images={photos}", "--image-size=96", "--metrics=psnr,lpips", "--no-paper", *common,
        "--levels=even:1*4", "--levels=ddim/even:2", "--reference=ddim, 2 even steps", f"--out={tmp_path / 'out'}",
    )  # fmt: skip
    assert "| 1 forward of 4 substeps |" in printed
    assert "| agent agent |" in printed
    assert "Differences to ddim, 2 even steps, with 95 % bootstrap intervals over 4 photographs" in printed
    assert "An interval over fewer than 100 photographs says little" in printed
    assert "DDPM-100" not in printed
    command, report = (tmp_path / "out" / "report.md").read_text(encoding="utf-8").split(" printed:\n\n")
    assert command == "`skipdiff evaluate --levels 'even:1*4'`"
    assert report in printed  # behind it stands that the agent is one of another checkpoint


def test_tables_and_trainings_by_the_command(jumping: str, photos: Path, tmp_path: Path) -> None:
    common = [
        "tabulate",
        f"--images={photos}",
        f"--checkpoint={jumping}",
        "--image-size=32",
        "--levels=6",
        "--levels=6*8",
    ]
    result = CliRunner().invoke(main, [*common, f"--out={tmp_path / 'table'}", "--crops=20"])
    assert result.exit_code == 0, result.output
    assert "(80 crops, 2 noises, 2 schedules)" in result.output
    result = CliRunner().invoke(
        main, ["train-agent", f"--table={tmp_path / 'table'}", f"--out={tmp_path / 'run'}", "--metric=psnr"]
    )
    assert result.exit_code == 2
    assert "training on a table has no setting --metric" in result.output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"schedules": None}, 'agents of the kind "schedule" need schedules, got None'),
        ({"schedules": ["6*x"]}, "levels must be falling whole numbers"),
        ({"plan": None}, "a setting is missing or of the wrong type"),
        ({"plan": {**PLAN.settings(), "skip_mode": "restart"}}, 'decisions "schedule" need skip_mode jump'),
        ({"schedules": ["6"]}, "schedules must be at least 2"),
        ({"schedules": ["6", "6,3"]}, r"acts in Discrete\(3\), its decisions in Discrete\(2\)"),
    ],
)
def test_damaged_agents(changes: dict[str, Any], message: str, agent_folder: Path) -> None:
    content = json.loads((agent_folder / "config.json").read_text(encoding="utf-8"))
    (agent_folder / "config.json").write_text(json.dumps({**content, **changes}), encoding="utf-8")
    with pytest.raises((ConfigError, CheckpointError), match=message):
        load_agent(agent_folder)


def test_agents_of_schedules_have_no_quality(agent_folder: Path) -> None:
    with pytest.raises(ConfigError, match="has learnt one price"):
        AgentPolicy(load_agent(agent_folder), quality=0.3)


def test_features_see_no_more_than_the_tile(agent_folder: Path, jumping: str) -> None:
    """The same tile in another picture has the same choice."""
    policy = AgentPolicy(load_agent(agent_folder))
    rgb = np.random.default_rng(0).integers(0, 256, (8, 16, 3), dtype=np.uint8)
    upscaler = Upscaler(jumping, policy=policy, plan=PLAN, tile=32)
    first, other = (upscaler.upscale([to_tensor(each)], [0])[0] for each in (rgb, rgb[:, ::-1].copy()))
    assert [tile.box for tile in first.tiles] == [tile.box for tile in other.tiles]
