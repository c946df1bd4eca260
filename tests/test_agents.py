"""Agents: training by every algorithm, files, play on the process, hyperparameters, and what is refused."""

import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from agents.agent import Agent, find_agent, load_agent
from agents.algorithms import RECURRENT, algorithm_class
from agents.cli import main
from agents.playing import AgentPolicy, play
from agents.training.config import AgentTrainingConfig, resumed_config
from agents.training.evaluator import Evaluator
from agents.training.hyperparameters import load_hyperparameters, parse_overrides
from agents.training.learning_curve import read_curve
from agents.training.sb3 import TrainingCallback, train_agent
from agents.training.vec_env import make_env
from ddpm.training.runs import lock_run
from ddpm.util.errors import CheckpointError, ConfigError, SkipDiffError
from ddpm.util.files import read_json
from skipdiff_env import VARIANTS
from skipdiff_env.config import TaskConfig
from skipdiff_env.outcomes import OutcomeTable
from skipdiff_env.plan import Plan
from skipdiff_env.refinement import RefinementProcess, fixed_start
from skipdiff_env.task import Task, shared_denoiser
from tests.conftest import Photo, counting, tiny_unet
from tests.untrained import STEPWISE, small, untrained

N = 5
DECISIONS = N - 1
ON_POLICY = {"n_steps": DECISIONS}
OFF_POLICY = {"batch_size": 4, "learning_starts": 8, "buffer_size": 40, "target_update_interval": 8, "train_freq": 4}
EXTRA: dict[str, dict[str, Any]] = {
    "ppo": {**ON_POLICY, "batch_size": 2 * DECISIONS},
    "a2c": ON_POLICY,
    "dqn": OFF_POLICY,
    "qrdqn": {**OFF_POLICY, "policy_kwargs": {"n_quantiles": 4}},
    "trpo": {**ON_POLICY, "batch_size": 2 * DECISIONS, "cg_max_steps": 2, "n_critic_updates": 1},
    "recurrent-ppo": {**ON_POLICY, "batch_size": 2 * DECISIONS},
}


def overrides_of(algorithm: str, observation: str = "latent", **changes: Any) -> dict[str, Any]:
    """Hyperparameters of a small training."""
    extra = EXTRA[algorithm]
    policy = {**small(algorithm, observation), **extra.get("policy_kwargs", {})}
    return {"n_envs": 2, "n_timesteps": 8 * DECISIONS, **extra, "policy_kwargs": policy, **changes}


@pytest.fixture
def settings(checkpoint: str, photos: Path) -> dict[str, Any]:
    return {
        "checkpoint": checkpoint, "images": str(photos), "image_size": 32, "steps": (20, N), "metric": "psnr",
        "noise_seeds": 1,
    }  # fmt: skip


@pytest.fixture
def config(settings: dict[str, Any]) -> Callable[..., AgentTrainingConfig]:
    """A maker of small training configurations: (algorithm, hyperparameters and settings)."""

    def make(algorithm: str = "ppo", overrides: dict[str, Any] | None = None, **changes: Any) -> AgentTrainingConfig:
        return AgentTrainingConfig(
            algorithm, "SkipDiff-v0", settings, overrides_of(algorithm, **(overrides or {})),
            **{"eval_every": 4, "cache_mb": 32.0, **changes},
        )  # fmt: skip

    return make


JUMPS: dict[str, Any] = {
    "steps": (1, N), "skip_mode": "jump", "fine_sampler": "ddim", "observation": "dict", "metric": "lpips",
    "reward": "negative", "nfe_penalty": (0.001, 0.1), "noise_seeds": 2,
}  # fmt: skip


def jump_config(algorithm: str, env: Mapping[str, Any], **changes: Any) -> AgentTrainingConfig:
    """A small training configuration on dictionaries."""
    return AgentTrainingConfig(
        algorithm, "SkipDiffJump-v0", {**env, **JUMPS}, overrides_of(algorithm, "dict"),
        **{"eval_every": 4, "cache_mb": 32.0, **changes},
    )  # fmt: skip


PLAN = Plan(20, N)


def small_agent(algorithm: str = "ppo", seed: int = 0, plan: Plan = PLAN, **changes: Any) -> Agent:
    """An untrained agent with decisions that vary."""
    return untrained(plan, algorithm, seed=seed, **changes)


def predicted(agent: Agent, stacks: Tensor) -> list[NDArray[Any]]:
    """Return what an agent decides, and how probable it holds each action, at the end of stacked episodes."""
    state = None
    if agent.config.algorithm != "recurrent-ppo":
        return [agent.predict(stacks.numpy())[0], np.array(agent.probabilities(stacks.numpy()))]
    for k, frame in enumerate(stacks.unflatten(1, (-1, 3)).unbind(1)):
        arguments = frame.numpy(), state, np.full(len(frame), k == 0)
        actions, state = agent.predict(*arguments)
    return [actions, np.array(agent.probabilities(*arguments))]


def young_stacks(batch: int, seed: int = 0) -> Tensor:
    """Random stacks of episodes of every age, (batch, 3 · DECISIONS, 32, 32)."""
    stacks = torch.randn(batch, DECISIONS, 3, 32, 32, generator=torch.Generator().manual_seed(seed))
    for i, stack in enumerate(stacks):
        stack[: i % DECISIONS] = 0
    return stacks.flatten(1, 2)


@pytest.mark.parametrize("algorithm", STEPWISE)
def test_train_save_load_resume(
    algorithm: str, config: Callable[..., AgentTrainingConfig], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every algorithm learns (its weights move), leaves a run that goes on, and an agent that loads unchanged."""
    run = tmp_path / "run"
    best = train_agent(config(algorithm), run)
    printed = capsys.readouterr().out
    assert "buffer: " in printed
    assert "best fixed start" in printed
    assert best == run / "best"
    for name in ("config.json", "versions.json", "state.zip", "evaluations.csv", "outcomes.npz"):
        assert (run / name).is_file()
    curve = read_curve(run / "evaluations.csv")
    steps = [evaluation.env_steps for evaluation in curve]
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1]) == (0, 8 * DECISIONS)
    for evaluation in curve:
        assert evaluation.regret == pytest.approx(evaluation.oracle_reward - evaluation.reward)
        assert evaluation.regret >= -1e-9
        assert evaluation.best_fixed_reward <= evaluation.oracle_reward
        assert 1 <= evaluation.start <= N
        assert 20 <= evaluation.nfe <= 19 + N

    agent = load_agent(run / "agent")
    assert agent.config.plan == PLAN
    assert agent.config.training["env"]["metric"] == "psnr"
    model: Any = load_model(algorithm, run / "state.zip")
    stacks = young_stacks(8)
    if algorithm == "recurrent-ppo":
        state = None
        stacks = stacks[::DECISIONS]  # whole episodes
        for k, frame in enumerate(stacks.unflatten(1, (-1, 3)).unbind(1)):
            actions, state = model.predict(
                frame.numpy(), state, episode_start=np.full(len(frame), k == 0), deterministic=True
            )
    else:
        actions, _ = model.predict(stacks.numpy(), deterministic=True)
    found, probabilities = predicted(agent, stacks)
    np.testing.assert_array_equal(found, actions)
    np.testing.assert_array_equal(probabilities.argmax(axis=1), actions)
    np.testing.assert_array_equal(predicted(load_agent(run / "agent"), stacks)[1], probabilities)
    before = Agent.build(agent.config).policy.state_dict()
    assert any(not torch.equal(before[name], value) for name, value in agent.policy.state_dict().items())

    with pytest.raises(ConfigError, match="is not empty; continue its run by --resume"):
        train_agent(config(algorithm), run)
    train_agent(resumed_config(run, {"env_steps": 16 * DECISIONS}), run, resume=True)
    longer = read_curve(run / "evaluations.csv")
    assert str(longer[: len(curve)]) == str(curve)  # NaN is not equal to itself
    assert longer[-1].env_steps == 16 * DECISIONS
    assert longer[-1].seconds >= curve[-1].seconds
    assert read_json(run / "agent" / "config.json")["training"]["env_steps"] == 16 * DECISIONS
    resumed: Any = load_model(algorithm, run / "state.zip")
    assert resumed.num_timesteps == 16 * DECISIONS
    assert resumed._n_updates > model._n_updates


@pytest.mark.parametrize("algorithm", STEPWISE)
@pytest.mark.parametrize("observation", ["latent", "dict"])
def test_a_run_that_goes_on_ends_as_one_that_never_stopped(
    algorithm: str,
    observation: str,
    config: Callable[..., AgentTrainingConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Killed between two evaluations, then --resume: the same weights and learning curve, up to rounding."""
    settings = config(algorithm, eval_every=4)
    if observation == "dict":
        settings = jump_config(algorithm, settings.env_kwargs)
    train_agent(settings, tmp_path / "whole")
    begin = TrainingCallback._on_rollout_start
    stopped: list[int] = []

    def interrupt(self: TrainingCallback) -> None:
        if self.num_timesteps >= 12 and not stopped:
            stopped.append(self.num_timesteps)
            raise KeyboardInterrupt
        begin(self)

    monkeypatch.setattr(TrainingCallback, "_on_rollout_start", interrupt)
    monkeypatch.setattr("agents.training.sb3.SAVE_SECONDS", 0)
    with pytest.raises(KeyboardInterrupt):
        train_agent(settings, tmp_path / "parts")
    assert 12 <= stopped[0] < settings.hyperparameters["n_timesteps"]
    train_agent(resumed_config(tmp_path / "parts", {}), tmp_path / "parts", resume=True)
    curves = [read_curve(tmp_path / run / "evaluations.csv") for run in ("whole", "parts")]
    for one, other in zip(*curves, strict=True):
        assert asdict(replace(one, seconds=0)) == pytest.approx(
            asdict(replace(other, seconds=0)), abs=1e-6, nan_ok=True
        )
    weights = [load_agent(tmp_path / run / "agent").policy.state_dict() for run in ("whole", "parts")]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=1e-5, msg=name)


def load_model(algorithm: str, path: Path) -> Any:
    return algorithm_class(algorithm).load(path)


def test_tensorboard_and_statistics(config: Callable[..., AgentTrainingConfig], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_agent(config(), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    scalars = events.Tags()["scalars"]
    for name in ("reward", "start", "skips", "nfe", "entropy"):
        assert f"rollout/{name}" in scalars
    for name in ("reward", "regret", "start", "best_fixed_reward", "oracle_reward"):
        assert f"eval/{name}" in scalars
    values = {name: events.Scalars(f"rollout/{name}")[-1].value for name in ("start", "skips", "nfe")}
    assert 1 <= values["start"] <= N
    assert 0 < values["skips"] < 1
    assert 20 <= values["nfe"] <= 19 + N
    assert events.Scalars("rollout/entropy")[0].value == pytest.approx(np.log(2), abs=0.05)  # nearly even at first
    assert events.Scalars("train/approx_kl")[-1].value == pytest.approx(0, abs=1e-6)  # one epoch, one minibatch


def test_each_step_is_in_tensorboard_once(config: Callable[..., AgentTrainingConfig], tmp_path: Path) -> None:
    """Also where a run was killed after it had logged more than its last state holds."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    train_agent(config(overrides={"n_timesteps": 4 * DECISIONS}), run)
    kept = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    train_agent(config(), run, resume=True)
    for path, content in kept.items():
        path.write_bytes(content)
    train_agent(config(), run, resume=True)
    events = EventAccumulator(str(run / "tensorboard"))
    events.Reload()
    for name in ("rollout/reward", "eval/reward"):
        steps = [event.step for event in events.Scalars(name)]
        assert steps == sorted(set(steps))
        assert steps[-1] == 8 * DECISIONS


def test_a_run_goes_on_with_its_pictures(
    config: Callable[..., AgentTrainingConfig], settings: dict[str, Any], photo: Photo, tmp_path: Path
) -> None:
    train_agent(config(overrides={"n_timesteps": 4 * DECISIONS}), tmp_path / "run")
    (file, *_) = sorted(Path(settings["images"]).iterdir())
    before = file.read_bytes()
    Image.fromarray(photo(128, 128, seed=9)).save(file)
    with pytest.raises(ConfigError, match="was trained on other pictures"):
        train_agent(config(), tmp_path / "run", resume=True)
    file.write_bytes(before)
    train_agent(config(), tmp_path / "run", resume=True)


def test_ppo_finds_the_best_start(settings: dict[str, Any], tmp_path: Path) -> None:
    """On one picture, whose starts differ a lot, PPO goes from random to the oracle's start."""
    image = sorted(Path(settings["images"]).iterdir())[0]
    overrides = {
        "n_envs": 8, "n_timesteps": 80 * 8 * DECISIONS, "learning_rate": "lin_3e-3", "n_steps": DECISIONS,
        "batch_size": 4 * DECISIONS, "policy_kwargs": {"features_extractor_kwargs": {"hidden_size": 16}},
    }  # fmt: skip
    config = AgentTrainingConfig(
        "ppo", "SkipDiff-v0", {**settings, "images": [str(image)]}, overrides, eval_every=300, seed=0
    )
    train_agent(config, tmp_path / "run")
    curve = read_curve(tmp_path / "run" / "evaluations.csv")
    rewards = np.load(tmp_path / "run" / "outcomes.npz")["rewards"]
    assert curve[-1].regret < 0.1 * np.ptp(rewards) < curve[0].regret
    assert rewards.max() - rewards.mean() > 0.3 * np.ptp(rewards), "few starts are good"


def test_evaluation_on_other_pictures(config: Callable[..., AgentTrainingConfig], photos: Path, tmp_path: Path) -> None:
    images = [str(path) for path in sorted(photos.iterdir())[:2]]
    train_agent(config(eval_images=images, eval_noise_seeds=3), tmp_path / "run")
    assert np.load(tmp_path / "run" / "outcomes.npz")["rewards"].shape == (2, 3, N)


def test_training_without_the_oracle_computes_no_table(
    config: Callable[..., AgentTrainingConfig], tmp_path: Path
) -> None:
    calls = []
    for oracle in (True, False):
        settings = config(oracle=oracle, overrides={"n_timesteps": 8})
        with counting(shared_denoiser(settings.env_kwargs["checkpoint"], "cpu")) as sizes:
            train_agent(settings, tmp_path / str(oracle))
        calls.append(sum(sizes))
        assert (tmp_path / str(oracle) / "outcomes.npz").exists() == oracle
    (last,) = read_curve(tmp_path / "False" / "evaluations.csv")[-1:]
    assert np.isnan(last.oracle_reward)
    assert np.isnan(last.best_fixed_reward)
    assert last.reward > 0
    evaluation = load_agent(tmp_path / "False").config.training["evaluation"]
    assert evaluation["reward"] == pytest.approx(
        max(e.reward for e in read_curve(tmp_path / "False" / "evaluations.csv"))
    )
    assert not {"regret", "best_fixed_reward", "oracle_reward"} & evaluation.keys()
    assert calls[1] < calls[0]


def test_training_stops_in_time(config: Callable[..., AgentTrainingConfig], tmp_path: Path) -> None:
    train_agent(config(overrides={"n_timesteps": 10**6}, minutes=1 / 6000), tmp_path / "run")
    assert 0 < read_curve(tmp_path / "run" / "evaluations.csv")[-1].env_steps < 10**4


def test_evaluator_agrees_with_the_table(settings: dict[str, Any]) -> None:
    """Play gives the reward that the table has for the start that was chosen."""
    task = Task(TaskConfig.of(settings))
    evaluator = Evaluator(task, 2)
    evaluation = evaluator(small_agent(seed=1), 0, 0.0)
    assert isinstance(evaluator.outcomes, OutcomeTable)
    rewards = evaluator.outcomes.rewards()
    episodes = play(task, AgentPolicy(small_agent(seed=1)), evaluator.images, evaluator.noise_seeds)
    assert len({episode.refinement.start for episode in episodes}) > 1
    expected = [rewards[e.image_index, e.refinement.noise_seed, e.refinement.start - 1] for e in episodes]
    assert evaluation.reward == pytest.approx(np.mean(expected))
    assert evaluation.oracle_reward == pytest.approx(rewards.max(2).mean())
    for start in (2, N):
        fixed = play(task, fixed_start(start), [0, 1], [0, 1])
        assert [e.reward for e in fixed] == pytest.approx([rewards[0, 0, start - 1], rewards[1, 1, start - 1]])
    (skipped,) = play(task, lambda states: [1.0] * len(states), [0], [0])  # whole numbers of any type
    assert (skipped.reward, skipped.actions) == (pytest.approx(rewards[0, 0, 0]), [1] * (N - 1))


def test_agent_policy_on_pictures_of_any_size(unet: Any) -> None:
    process = RefinementProcess(unet, Plan(20, N))
    policy = AgentPolicy(small_agent())
    for height, width in ((48, 80), (32, 32)):
        lr_up = [torch.rand(3, height, width, generator=torch.Generator().manual_seed(i)) * 2 - 1 for i in range(3)]
        together = process.begin(lr_up, [0, 1, 2])
        results = process.run(together, policy)
        assert [tuple(sr.shape) for sr in results] == [(3, height, width)] * 3
        alone = process.begin(lr_up[1:2], [1])
        process.run(alone, policy)
        assert alone[0].start == together[1].start


@pytest.mark.parametrize("algorithm", STEPWISE)
def test_agent_policy_sees_what_the_agent_saw_in_training(algorithm: str, settings: dict[str, Any]) -> None:
    """On the process, in one batch, an agent decides as it does on the stacked environment."""
    agent = small_agent(algorithm)
    env: Any = make_env(4, frame_stack=algorithm != RECURRENT, seed=3, **settings)
    expected = env.reset()
    task, infos = env.unwrapped.task, env.unwrapped.reset_infos
    episodes = task.begin([i["image_index"] for i in infos], [i["noise_seed"] for i in infos])
    seen: list[Any] = []
    predict = agent.predict

    def spy(observations: Any, *more: Any) -> Any:
        seen.append(observations)
        return predict(observations, *more)

    agent.predict = spy  # type: ignore[assignment,method-assign]
    decide, state, young = AgentPolicy(agent).on(task.process), None, np.ones(4, bool)
    for _ in range(DECISIONS):
        actions = decide([episode.refinement for episode in episodes])
        np.testing.assert_allclose(seen[-1], expected, atol=1e-6)
        wanted, state = predict(expected, state, young)
        np.testing.assert_array_equal(actions, wanted)
        expected, _, _, infos = env.step(np.array(actions))
        task.step(episodes, actions)
        young[:] = False
    assert [e.refinement.start for e in episodes] == [info["start"] for info in infos]


def test_an_agent_on_another_network_is_told_of(
    checkpoint: str, photo: Photo, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """But not where the same network lies elsewhere."""
    shutil.copytree(checkpoint, tmp_path / "copy")
    tiny_unet(seed=1).save_pretrained(tmp_path / "other")
    agent = small_agent(training={"env": {"checkpoint": checkpoint}})
    agent.save(tmp_path / "agent")
    assert (
        agent.checkpoint_note(checkpoint)
        is agent.checkpoint_note(tmp_path / "copy")
        is small_agent().checkpoint_note("faces-x8")
        is None
    )
    said = f"the agent was trained with the checkpoint {checkpoint}, and decides for {tmp_path / 'other'} here"
    assert agent.checkpoint_note(tmp_path / "other") == said
    for side in (8, 96):
        Image.fromarray(photo(side, side)).save(tmp_path / f"{side}.png")
    images = f"--images={tmp_path / '96.png'}"
    for name, expected in (("copy", 0), ("other", 1)):
        for command in (
            ["upscale", str(tmp_path / "8.png"), f"--out={tmp_path / name}.png", f"--agent={tmp_path / 'agent'}"],
            ["evaluate", images, "--image-size=96", "--metrics=psnr", "--no-paper", f"--agent={tmp_path / 'agent'}"],
            [
                "enjoy",
                images,
                "--image-size=32",
                "--metric=psnr",
                f"--agent={tmp_path / 'agent'}",
                f"--out={tmp_path / name}-episode.png",
            ],
        ):
            main([*command, f"--checkpoint={tmp_path / name}"], standalone_mode=False)
            assert capsys.readouterr().err.count(f"Note: {said}") == expected, command


def test_agent_for_other_episodes_is_refused(unet: Any) -> None:
    """In a command, and wherever it decides."""
    agent = small_agent()
    agent.check(Plan(20, N))
    for other in (Plan(10, 10), Plan(40, N), Plan(20, N, "ddim"), Plan(20, N, fine_sampler="ddim")):
        with pytest.raises(ConfigError, match=r"trained for episodes of S,N = 20,5, .*, got S,N"):
            agent.check(other)
        with pytest.raises(ConfigError, match=r"trained for episodes of S,N = 20,5, .*, got S,N"):
            AgentPolicy(agent).on(RefinementProcess(unet, other))


def test_find_agent(tmp_path: Path) -> None:
    agent = small_agent()
    agent.save(tmp_path / "run" / "agent")
    assert find_agent(tmp_path / "run") == tmp_path / "run" / "agent"
    agent.save(tmp_path / "run" / "best")
    assert find_agent(tmp_path / "run") == tmp_path / "run" / "best"
    assert find_agent(tmp_path / "run" / "agent") == tmp_path / "run" / "agent"
    with pytest.raises(CheckpointError, match="no agent in"):
        load_agent(tmp_path)
    with pytest.raises(CheckpointError, match="no agent in nonsense"):
        load_agent("nonsense")


def test_checkpoint_without_agent_is_no_agent(checkpoint: str) -> None:
    with pytest.raises(CheckpointError, match="no agent in"):
        find_agent(checkpoint)


def change_config(folder: Path, **changes: Any) -> None:
    path = folder / "config.json"
    path.write_text(json.dumps({**json.loads(path.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def settings_with(**changes: Any) -> dict[str, Any]:
    """Return the policy of a small agent with other settings."""
    policy = small_agent().config.policy
    return {"policy": {**policy, "settings": {**policy["settings"], **changes}}}


def test_damaged_agents(tmp_path: Path) -> None:
    def saved(name: str) -> Path:
        small_agent().save(tmp_path / name)
        return tmp_path / name

    folder = saved("truncated")
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:1000])
    with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged"):
        load_agent(folder)
    folder = saved("no weights")
    (folder / "model.safetensors").unlink()
    with pytest.raises(CheckpointError, match="no agent in"):
        load_agent(folder)
    folder = saved("no json")
    (folder / "config.json").write_text("{", encoding="utf-8")
    with pytest.raises(CheckpointError, match="not readable JSON"):
        load_agent(folder)
    for changes, message in (
        ({"algorithm": "sarsa"}, "unknown algorithm 'sarsa'"),
        ({"algorithm": "dqn"}, "the policy of the agent cannot be built"),
        ({"plan": {"rate": 10}}, "missing or of the wrong type"),
        ({"plan": {"S": 10, "N": "many"}}, "config.json"),
        ({"colour": "red"}, "unknown setting colour"),
        ({"image_size": 0}, "image_size and latent_bound must be positive"),
        ({"image_size": "x"}, "image_size must be a whole number, got 'x'"),
        ({"observation": "smell"}, "observation must be one of latent, dict, features, got 'smell'"),
        ({"price_range": [1]}, "price_range must be two rising numbers"),
        ({"price_range": []}, "price_range must be two rising numbers"),
        ({"training": {"env": 3}}, "env of training must be a mapping, got 3"),
        ({"training": {"env": {"checkpoint": {}}}}, "checkpoint in env of training must be a name or a folder, got {}"),
        (settings_with(net_arch="x"), "the policy of the agent cannot be built"),
        (settings_with(features_extractor_kwargs=3), "the policy of the agent cannot be built"),
        (settings_with(features_extractor_kwargs={"hidden_size": 2**40}), "the policy of the agent cannot be built"),
        (settings_with(features_extractor_kwargs={"hidden_size": 9}), "does not fit"),
        (
            {"policy": None, "policy_kwargs": {}, "decisions": 4},
            r"made by version 0\.2, whose files",
        ),
    ):
        folder = saved("changed")
        change_config(folder, **changes)
        with pytest.raises(SkipDiffError, match=message):
            load_agent(folder)


@pytest.mark.parametrize("algorithm", ["ppo", "recurrent-ppo", "dqn"])
def test_an_agent_that_gives_no_numbers(algorithm: str) -> None:
    agent = small_agent(algorithm)
    with torch.no_grad():
        for parameter in agent.policy.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="numbers that are not finite"):
        agent.predict(np.zeros((1, 3 * (1 if algorithm == "recurrent-ppo" else N - 1), 32, 32), dtype=np.float32))


def test_overrides() -> None:
    pairs = ["learning_rate=3e-4", "n_envs=4", "policy_kwargs={ortho_init: false}", "target_kl=0.02"]
    parsed = parse_overrides([*pairs, "clip_range=lin_0.2"])
    assert parsed == {
        "learning_rate": 3e-4, "n_envs": 4, "policy_kwargs": {"ortho_init": False}, "target_kl": 0.02,
        "clip_range": "lin_0.2",
    }  # fmt: skip
    parsed["policy_kwargs"]["features_extractor_kwargs"] = {"norm": "group"}
    h = load_hyperparameters("ppo", "SkipDiff-v0", parsed)
    assert (h["n_envs"], h["target_kl"], h["clip_range"]) == (4, 0.02, "lin_0.2")
    policy = h["policy_kwargs"]
    assert policy["ortho_init"] is False
    assert policy["optimizer_kwargs"]["fused"] is True  # the shipped ones stay
    assert policy["features_extractor_kwargs"]["norm"] == "group"
    assert policy["features_extractor_kwargs"]["tell_step"] is True


def test_hyperparameters_of_the_paper() -> None:
    h = load_hyperparameters("ppo", "SkipDiff-v0")
    paper = {"clip_range": 0.2, "gae_lambda": 1.0, "vf_coef": 0.5, "n_epochs": 1}
    assert {name: h[name] for name in paper} == paper
    assert h["gamma"] == 1.0  # the paper's is 0.7, under which early decisions have next to no advantage
    assert h["learning_rate"] == "lin_3.0e-4"
    assert h["n_steps"] == 9
    assert h["batch_size"] == 9 * 8


@pytest.mark.parametrize(
    ("algorithm", "pair", "message"),
    [
        ("ppo", "gama=0.9", "ppo on SkipDiff-v0 has no hyperparameter gama; known are .*gamma"),
        ("ppo", "buffer_size=100", "no hyperparameter buffer_size"),
        ("ppo", "seed=1", "no hyperparameter seed"),
        ("ppo", "rollout_buffer_class=x", "no hyperparameter rollout_buffer_class"),
        ("ppo", "gamma=high", "gamma must be a number, got 'high'"),
        ("ppo", "gamma=lin_high", "gamma must be a number, or lin_ and a number, got 'lin_high'"),
        ("ppo", "learning_rate=[1]", r"learning_rate must be a number, got \[1\]"),
        ("ppo", "target_kl=[1]", r"target_kl must be a number or none, got \[1\]"),
        ("ppo", "n_envs=2.5", "n_envs must be a whole number, got 2.5"),
        ("ppo", "n_envs=0", "n_envs must be a whole number of at least 1, got 0"),
        ("ppo", "n_envs=70000", "n_envs must be at most 65536"),
        ("ppo", "n_timesteps=0", "n_timesteps must be a whole number of at least 1, got 0"),
        ("ppo", "n_epochs=0", "n_epochs must be a whole number of at least 1, got 0"),
        ("dqn", "train_freq=0", "train_freq must be a whole number of at least 1, got 0"),
        ("dqn", "train_freq=x", "train_freq must be a whole number or a list, got 'x'"),
        ("ppo", "n_envs=true", "a whole number"),
        ("ppo", "normalize_advantage=1", "true or false"),
        ("ppo", "policy=MlpPolicyy", "policy must be one of MlpPolicy, CnnPolicy, MultiInputPolicy, got 'MlpPolicyy'"),
        ("ppo", "policy_kwargs=3", "policy_kwargs must be a mapping or none, got 3"),
        ("ppo", "policy_kwargs={depth: 3}", "no setting depth; known are .*ortho_init"),
        ("dqn", "clip_range=0.2", "no hyperparameter clip_range"),
        ("dqn", "noise_type=pink", "noise_type must be one of normal, None, got 'pink'"),
        ("ppo", "gamma", "expected key=value, got 'gamma'"),
        ("ppo", "gamma=[1", "is not YAML"),
        ("sarsa", "gamma=1", "unknown algorithm 'sarsa'; known are ppo, a2c, dqn, qrdqn, trpo, recurrent-ppo"),
        ("sac", "gamma=1", "sac has no hyperparameters for SkipDiff-v0; take one of ppo, a2c, dqn"),
        ("crossq", "gamma=1", "crossq has no hyperparameters for SkipDiff-v0; take one of ppo, a2c, dqn"),
    ],
)
def test_bad_hyperparameters(algorithm: str, pair: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_hyperparameters(algorithm, "SkipDiff-v0", parse_overrides([pair]))


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"vec_env_wrapper": "agents.nothing"}, r"ppo does not take these hyperparameters \(AttributeError: .*nothing"),
        ({"vec_env_wrapper": ["nothing"]}, r"ppo does not take these hyperparameters \(ModuleNotFoundError"),
        ({"policy_kwargs": {"features_extractor_class": "a.b"}}, r"ppo does not take these hyperparameters \(Mod"),
        (
            {"policy_kwargs": {"features_extractor_kwargs": {"depth": 3}}},
            r"ppo does not take these hyperparameters \(TypeError: .*depth",
        ),
    ],
)
def test_names_that_do_not_exist(
    overrides: dict[str, Any], message: str, config: Callable[..., AgentTrainingConfig], tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        train_agent(config(overrides=overrides), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_every_environment_has_hyperparameters() -> None:
    """PPO learns everywhere; with another name the environments are listed."""
    for env_id in VARIANTS.keys() - {"SkipDiffTable-v0"}:
        assert load_hyperparameters("ppo", env_id)["policy"].endswith("Policy")
    with pytest.raises(ConfigError, match="unknown environment 'SkipDiff-v9'; known are SkipDiff-v0, SkipDiffFaces-v0"):
        load_hyperparameters("ppo", "SkipDiff-v9")


def test_seeds_that_stable_baselines3_does_not_take() -> None:
    with pytest.raises(ConfigError, match="seed must be at most 4294967295, got 4294967296"):
        AgentTrainingConfig(seed=2**32)
    with pytest.raises(ConfigError, match="seed must be a whole number of at least 0, got -1"):
        AgentTrainingConfig(seed=-1)


def norm(name: str) -> dict[str, Any]:
    """Hyperparameters that set the normalisation of the SPN."""
    return {"policy_kwargs": {"features_extractor_kwargs": {"norm": name}}}


def test_bad_norm_and_resume(config: Callable[..., AgentTrainingConfig], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="norm must be one of batch, group"):
        train_agent(config(overrides=norm("layer")), tmp_path / "run")
    assert not (tmp_path / "run" / "state.zip").exists()
    with pytest.raises(ConfigError, match="nothing to resume"):
        resumed_config(tmp_path / "run", {})
    train_agent(config(), tmp_path / "good")
    with pytest.raises(ConfigError, match="seed cannot change"):
        resumed_config(tmp_path / "good", {"seed": 3})
    (tmp_path / "good" / "state.zip").write_bytes(b"PK nonsense")
    with pytest.raises(CheckpointError, match="damaged"):
        train_agent(resumed_config(tmp_path / "good", {"env_steps": 100}), tmp_path / "good", resume=True)


def test_memory_that_is_not_there(
    config: Callable[..., AgentTrainingConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=2**17))
    with pytest.raises(ConfigError, match="lower -p n_envs=…"):
        train_agent(config(), tmp_path / "run")


@pytest.mark.parametrize(
    "changes", [{"skip_mode": "jump"}, {"noise_seeds": None}, {"obs_dtype": "float16"}, {"nfe_penalty": 0.5}]
)
def test_training_on_other_episodes(
    changes: dict[str, Any], config: Callable[..., AgentTrainingConfig], tmp_path: Path
) -> None:
    tiny = config()
    train_agent(replace(tiny, env_kwargs={**tiny.env_kwargs, **changes}), tmp_path / "run")
    last = read_curve(tmp_path / "run" / "evaluations.csv")[-1]
    assert np.isfinite(last.reward)
    assert not np.isnan(last.regret)
    if "nfe_penalty" in changes:
        assert last.regret >= 0
    assert load_agent(tmp_path / "run").predict(young_stacks(2).numpy())[0].shape == (2,)


@pytest.mark.parametrize(
    ("name", "actions"),
    [
        ("natural-x4", "000000000 100000000 100000000 100000000 000000000 100000000 110000000 100000000"),
        ("faces-x8", "111000000 111111100 111000000 110000000 110000000 111111000 111010000 111000000"),
    ],
)
def test_the_agents_of_the_paper_that_ship(name: str, actions: str) -> None:
    """They are found by the name of their checkpoint, and decide what they decided when they were trained."""
    agent = load_agent(f"{name}/agent-paper")
    task = Task(TaskConfig(**agent.config.training["env"] | {"checkpoint": name, "image_size": 96, "cache_mb": 0}))
    assert task.plan == agent.config.plan
    episodes = play(task, AgentPolicy(agent), range(0, 80, 10), range(8))
    assert ["".join(map(str, episode.actions)) for episode in episodes] == actions.split()
    with pytest.raises(CheckpointError, match="no agent in natural-x4/nothing"):
        load_agent("natural-x4/nothing")


def test_agents_on_devices_that_do_not_exist(tmp_path: Path) -> None:
    for device in ("even:0", "cuda:99", "meta"):
        with pytest.raises(ConfigError, match=f"no such device: '{device}'"):
            load_agent("natural-x4/agent-paper", device)


def test_a_run_that_was_killed_before_its_first_state_begins_anew(
    config: Callable[..., AgentTrainingConfig], tmp_path: Path
) -> None:
    train_agent(config(), tmp_path / "whole")
    train_agent(config(), tmp_path / "run")
    for name in ("state.zip", "evaluations.csv"):
        (tmp_path / "run" / name).unlink()
    train_agent(resumed_config(tmp_path / "run", {}), tmp_path / "run", resume=True)
    whole, run = (load_file(tmp_path / name / "agent" / "model.safetensors") for name in ("whole", "run"))
    assert all(torch.equal(value, run[name]) for name, value in whole.items())


def test_one_training_in_a_folder(config: Callable[..., AgentTrainingConfig], tmp_path: Path) -> None:
    train_agent(config(), tmp_path / "run")
    again = resumed_config(tmp_path / "run", {"env_steps": 100})
    with lock_run(tmp_path / "run"), pytest.raises(ConfigError, match="another process is at work in"):
        train_agent(again, tmp_path / "run", resume=True)


def test_hyperparameters_that_the_algorithm_refuses(config: Callable[..., AgentTrainingConfig], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"ppo does not take these hyperparameters \(ValueError: .*learning rate"):
        train_agent(config(overrides={"learning_rate": -1.0}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_policy_that_diverges(config: Callable[..., AgentTrainingConfig], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"numbers that are not finite; train with a lower -p learning_rate"):
        train_agent(config(overrides={"learning_rate": 1e30}), tmp_path / "run")
