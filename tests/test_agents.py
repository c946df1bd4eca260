"""Agents: training by every algorithm, files, play on the process, hyperparameters, and what is refused."""

import json
import shutil
import signal
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import psutil
import pytest
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from PIL import Image
from safetensors.torch import load_file
from stable_baselines3 import A2C
from stable_baselines3.common.buffers import ReplayBuffer, RolloutBuffer
from torch import Tensor

from agents.agent import Agent, find_agent, has_agent, load_agent
from agents.algorithms import ALGORITHMS, algorithm_class, frame_stacked
from agents.cli import main
from agents.exporting import configuration
from agents.networks.extractors import SkipProposalExtractor
from agents.playing import AgentPolicy, play
from agents.training.buffers import EpisodeReplayBuffer, EpisodeRolloutBuffer
from agents.training.config import AgentTrainingConfig, resumed_config
from agents.training.evaluator import Evaluator
from agents.training.hyperparameters import MINIBATCHES, OFF_POLICY, load_hyperparameters, parse_overrides
from agents.training.learning_curve import read_curve
from agents.training.sb3 import TrainingCallback, make_model, train_agent
from agents.training.vec_env import make_env
from ddpm.training.runs import lock_run
from ddpm.util.errors import CheckpointError, ConfigError, SkipDiffError
from ddpm.util.files import read_json
from skipdiff_env.config import TaskConfig
from skipdiff_env.memo import Memo
from skipdiff_env.outcomes import OutcomeTable
from skipdiff_env.plan import Plan
from skipdiff_env.refinement import Action, RefinementProcess, fixed_start
from skipdiff_env.task import Task, shared_denoiser
from tests.conftest import Photo, counting, tiny_unet
from tests.untrained import untrained

N = 5
DECISIONS = N - 1
OVERRIDES: dict[str, Any] = {"n_envs": 2, "hidden_size": 8, "env_steps": 8 * DECISIONS}
ONE_MINIBATCH = {"episodes_per_minibatch": None}
EXTRA: dict[str, dict[str, Any]] = {
    "dqn": {"batch_size": 4, "learning_starts": 8, "buffer_size": 40, "target_update_interval": 8, "train_freq": 4},
    "qrdqn": {
        "train_freq": 4,
        "batch_size": 4,
        "learning_starts": 8,
        "buffer_size": 40,
        "policy_kwargs": {"n_quantiles": 4},
    },
    "trpo": {"cg_max_steps": 2, "n_critic_updates": 1},
    "recurrent-ppo": {"policy_kwargs": {"lstm_hidden_size": 8}},
}


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
        hyperparameters = load_hyperparameters(
            algorithm,
            {
                **{k: v for k, v in OVERRIDES.items() if frame_stacked(algorithm) or k != "hidden_size"},
                **(ONE_MINIBATCH if algorithm in MINIBATCHES else {}),
                **EXTRA.get(algorithm, {}),
                **(overrides or {}),
            },
        )
        return AgentTrainingConfig(
            algorithm, settings, hyperparameters, **{"eval_every": 4, "cache_mb": 32.0, **changes}
        )

    return make


JUMPS: dict[str, Any] = {
    "steps": (1, N), "skip_mode": "jump", "fine_sampler": "ddim", "observation": "dict", "metric": "lpips",
    "reward": "negative", "nfe_penalty": (0.001, 0.1), "noise_seeds": 2,
}  # fmt: skip
JUMP_OVERRIDES: dict[str, Any] = {"n_envs": 2, "env_steps": 8 * DECISIONS, "channels": [4, 6], "crop_size": 16}


def jump_config(algorithm: str, env: Mapping[str, Any], **changes: Any) -> AgentTrainingConfig:
    """A small training configuration on dictionaries."""
    overrides = {**JUMP_OVERRIDES, **EXTRA.get(algorithm, {})}
    if algorithm in MINIBATCHES:
        overrides |= {"episodes_per_minibatch": 2, "episodes_per_rollout": 1}
    elif algorithm not in OFF_POLICY:
        overrides |= {"episodes_per_rollout": 1}
    hyperparameters = load_hyperparameters(algorithm, overrides, "dict")
    return AgentTrainingConfig(
        algorithm, {**env, **JUMPS}, hyperparameters, **{"eval_every": 4, "cache_mb": 32.0, **changes}
    )


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


@pytest.mark.parametrize("algorithm", ALGORITHMS)
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
    assert longer[: len(curve)] == curve
    assert longer[-1].env_steps == 16 * DECISIONS
    assert longer[-1].seconds >= curve[-1].seconds
    assert read_json(run / "agent" / "config.json")["training"]["env_steps"] == 16 * DECISIONS
    resumed: Any = load_model(algorithm, run / "state.zip")
    assert resumed.num_timesteps == 16 * DECISIONS
    assert resumed._n_updates > model._n_updates


@pytest.mark.parametrize("algorithm", ALGORITHMS)
@pytest.mark.parametrize("observation", ["latent", "dict"])
def test_a_run_that_goes_on_ends_as_one_that_never_stopped(
    algorithm: str,
    observation: str,
    config: Callable[..., AgentTrainingConfig],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C between two evaluations, then --resume: the same weights and learning curve, up to rounding."""
    settings = config(algorithm, eval_every=4)
    if observation == "dict":
        settings = jump_config(algorithm, settings.env)
    train_agent(settings, tmp_path / "whole")
    begin = TrainingCallback._on_rollout_start
    stopped: list[int] = []

    def interrupt(self: TrainingCallback) -> None:
        if self.num_timesteps >= 12 and not stopped:
            stopped.append(self.num_timesteps)
            signal.raise_signal(signal.SIGINT)
        begin(self)

    monkeypatch.setattr(TrainingCallback, "_on_rollout_start", interrupt)
    with pytest.raises(KeyboardInterrupt):
        train_agent(settings, tmp_path / "parts")
    assert 12 <= stopped[0] < settings.hyperparameters.env_steps
    train_agent(resumed_config(tmp_path / "parts", {}), tmp_path / "parts", resume=True)
    curves = [read_curve(tmp_path / run / "evaluations.csv") for run in ("whole", "parts")]
    for one, other in zip(*curves, strict=True):
        assert asdict(replace(one, seconds=0)) == pytest.approx(asdict(replace(other, seconds=0)), abs=1e-6)
    weights = [load_agent(tmp_path / run / "agent").policy.state_dict() for run in ("whole", "parts")]
    for name, value in weights[0].items():
        torch.testing.assert_close(weights[1][name], value, rtol=0, atol=1e-5, msg=name)
    assert len(list((tmp_path / "parts").glob("state-*.pkl"))) == 1


def load_model(algorithm: str, path: Path) -> Any:
    return algorithm_class(algorithm).load(path)


def test_tensorboard_and_statistics(config: Callable[..., AgentTrainingConfig], tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train_agent(config(), tmp_path / "run")
    events = EventAccumulator(str(tmp_path / "run" / "tensorboard"))
    events.Reload()
    scalars = events.Tags()["scalars"]
    for name in ("reward", "regret", "start", "skips", "nfe", "entropy"):
        assert f"rollout/{name}" in scalars
    for name in ("reward", "regret", "start", "best_fixed_reward", "oracle_reward"):
        assert f"eval/{name}" in scalars
    values = {name: events.Scalars(f"rollout/{name}")[-1].value for name in ("regret", "start", "skips", "nfe")}
    assert values["regret"] >= 0
    assert 1 <= values["start"] <= N
    assert 0 < values["skips"] < 1
    assert 20 <= values["nfe"] <= 19 + N
    assert events.Scalars("rollout/entropy")[0].value == pytest.approx(np.log(2), abs=0.05)  # nearly even at first
    assert events.Scalars("train/approx_kl")[-1].value == pytest.approx(0, abs=1e-6)  # one epoch, one minibatch


def test_each_step_is_in_tensorboard_once(config: Callable[..., AgentTrainingConfig], tmp_path: Path) -> None:
    """Also where a run was killed after it had logged more than its last state holds."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run = tmp_path / "run"
    train_agent(config(overrides={"env_steps": 4 * DECISIONS}), run)
    kept = {path: path.read_bytes() for path in run.iterdir() if path.is_file()}
    train_agent(config(), run, resume=True)
    for path in run.glob("state-*"):
        path.unlink()
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
    train_agent(config(overrides={"env_steps": 4 * DECISIONS}), tmp_path / "run")
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
        "n_envs": 8, "hidden_size": 16, "env_steps": 80 * 8 * DECISIONS, "learning_rate": 3e-3,
    }  # fmt: skip
    config = AgentTrainingConfig(
        "ppo", {**settings, "images": [str(image)]}, load_hyperparameters("ppo", overrides), eval_every=300, seed=1
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
        settings = config(oracle=oracle, overrides={"env_steps": 8, "n_envs": 2, "episodes_per_minibatch": 1})
        with counting(shared_denoiser(settings.env["checkpoint"], "cpu")) as sizes:
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


def test_runs_share_what_they_computed(
    config: Callable[..., AgentTrainingConfig], photos: Path, tmp_path: Path
) -> None:
    """With the memory of an earlier run another seed runs the network less, and learns as it would have alone."""
    images = [str(path) for path in sorted(photos.iterdir())[:2]]
    memory = Memo(0), Memo(0)
    train_agent(config(eval_images=images), tmp_path / "first", memory=memory)
    assert all(len(memo) > 0 for memo in memory)
    second = config(eval_images=images, seed=1)
    counts = []
    for name, known in (("second", memory), ("alone", None)):
        with counting(shared_denoiser(second.env["checkpoint"], "cpu")) as forwards:
            train_agent(second, tmp_path / name, memory=known)
        counts.append(sum(forwards))
    assert counts[0] < counts[1] / 2
    rewards = [[e.reward for e in read_curve(tmp_path / run / "evaluations.csv")] for run in ("second", "alone")]
    assert rewards[0] == pytest.approx(rewards[1])


def test_training_stops_in_time(config: Callable[..., AgentTrainingConfig], tmp_path: Path) -> None:
    train_agent(config(overrides={"env_steps": 10**6}, minutes=1 / 6000), tmp_path / "run")
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


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_agent_policy_sees_what_the_agent_saw_in_training(algorithm: str, settings: dict[str, Any]) -> None:
    """On the process, in one batch, an agent decides as it does on the stacked environment."""
    agent = small_agent(algorithm)
    env: Any = make_env(4, frame_stack=frame_stacked(algorithm), seed=3, **settings)
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
    assert agent.told_of(checkpoint) is agent.told_of(tmp_path / "copy") is small_agent().told_of("faces-x8") is None
    said = f"the agent was trained with the checkpoint {checkpoint}, and decides for {tmp_path / 'other'} here"
    assert agent.told_of(tmp_path / "other") == said
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
    assert not has_agent(tmp_path)
    with pytest.raises(CheckpointError, match="no agent in"):
        load_agent(tmp_path)
    with pytest.raises(CheckpointError, match="no agent in nonsense"):
        load_agent("nonsense")


def test_checkpoint_without_agent_is_no_agent(checkpoint: str) -> None:
    assert not has_agent(checkpoint)


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
    with pytest.raises(ConfigError, match="not readable JSON"):
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
    pairs = ["learning_rate=3e-4", "n_envs=4", "norm=group", "policy_kwargs={ortho_init: false}", "target_kl=0.02"]
    parsed = parse_overrides(pairs)
    assert parsed == {
        "learning_rate": 3e-4, "n_envs": 4, "norm": "group", "policy_kwargs": {"ortho_init": False}, "target_kl": 0.02,
    }  # fmt: skip
    h = load_hyperparameters("ppo", parsed)
    assert (h.n_envs, h.norm, h.algorithm["target_kl"]) == (4, "group", 0.02)
    assert h.policy_kwargs["ortho_init"] is False
    assert h.policy_kwargs["optimizer_kwargs"]["fused"] is True  # the shipped ones stay


def test_hyperparameters_of_the_paper() -> None:
    h = load_hyperparameters("ppo")
    paper = {"clip_range": 0.2, "gamma": 0.7, "gae_lambda": 1.0, "vf_coef": 0.5, "learning_rate": 3e-4, "n_epochs": 1}
    assert {name: h.algorithm[name] for name in paper} == paper
    settings = h.algorithm_settings("ppo", 9)
    assert settings["n_steps"] == 9
    assert settings["batch_size"] == 9 * 4
    whole = load_hyperparameters("ppo", {"episodes_per_minibatch": None}).algorithm_settings("ppo", 9)
    assert whole["batch_size"] == 9 * h.n_envs


@pytest.mark.parametrize(
    ("algorithm", "pair", "message"),
    [
        ("ppo", "gama=0.9", "no hyperparameter gama; known are .*gamma"),
        ("ppo", "buffer_size=100", "no hyperparameter buffer_size"),
        ("ppo", "n_steps=9", "known are .*episodes_per_rollout"),
        ("ppo", "batch_size=64", "known are .*episodes_per_minibatch"),
        ("ppo", "episodes_per_minibatch=17", "must lie in 1 … 16"),
        ("dqn", "normalize_decisions=true", "has no hyperparameter normalize_decisions"),
        ("recurrent-ppo", "undone_price=0.1", "has no hyperparameter undone_price"),
        ("dqn", "undone_price=0", "has no hyperparameter undone_price"),
        ("ppo", "undone_price=-1", "undone_price must be at least 0, got -1"),
        ("dqn", "skip_probability=0.1", "has no hyperparameter skip_probability"),
        ("ppo", "skip_probability=1", "must lie between 0 and 1, got 1"),
        ("ppo", "gamma=high", "gamma must be a number, got 'high'"),
        ("ppo", "n_envs=2.5", "n_envs must be a whole number, got 2.5"),
        ("ppo", "n_envs=0", "n_envs must be at least 1"),
        ("ppo", "n_envs=true", "a whole number"),
        ("ppo", "normalize_advantage=1", "true or false"),
        ("ppo", "policy_kwargs={depth: 3}", "no setting depth; known are .*ortho_init"),
        ("dqn", "clip_range=0.2", "no hyperparameter clip_range"),
        ("ppo", "crop_size=32", "ppo on SkipDiff-v0 has no hyperparameter crop_size"),
        ("ppo", "gamma", "expected key=value, got 'gamma'"),
        ("ppo", "gamma=[1", "is not YAML"),
        ("sarsa", "gamma=1", "unknown algorithm 'sarsa'; known are ppo, a2c, dqn, qrdqn, trpo, recurrent-ppo"),
    ],
)
def test_bad_hyperparameters(algorithm: str, pair: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_hyperparameters(algorithm, parse_overrides([pair]))


@pytest.mark.parametrize("algorithm", ["ppo", "a2c", "trpo", "recurrent-ppo"])
def test_skip_probability(algorithm: str, config: Callable[..., AgentTrainingConfig], settings: dict[str, Any]) -> None:
    """An untrained policy skips about as often as it is told to."""
    frame_stack = algorithm != "recurrent-ppo"
    wanted = config(algorithm, overrides={"skip_probability": 0.1})
    env = make_env(4, frame_stack=frame_stack, seed=0, **settings)
    model = make_model(wanted, env)
    probabilities = Agent(configuration(model, env), model.policy).probabilities(np.asarray(env.reset()))
    assert probabilities is not None
    np.testing.assert_allclose(probabilities[:, Action.SKIP], 0.1, atol=0.02)


def test_seeds_that_stable_baselines3_does_not_take() -> None:
    with pytest.raises(ConfigError, match=r"seed must be at most 4294967295, .* got 4294967296"):
        AgentTrainingConfig(seed=2**32)
    with pytest.raises(ConfigError, match="seed must be at least 0, got -1"):
        AgentTrainingConfig(seed=-1)


def test_bad_norm_and_resume(config: Callable[..., AgentTrainingConfig], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="norm must be one of batch, group"):
        train_agent(config(overrides={"norm": "layer"}), tmp_path / "run")
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


@pytest.mark.parametrize("n_steps", [DECISIONS, 2 * DECISIONS, 3, 7])
def test_rollout_buffer_equals_that_of_stable_baselines3(settings: dict[str, Any], n_steps: int) -> None:
    """Same samples, also where rollouts do not begin with episodes."""
    kwargs = {"features_extractor_kwargs": {"hidden_size": 4}, "features_extractor_class": SkipProposalExtractor}
    samples = []
    for buffer in (RolloutBuffer, EpisodeRolloutBuffer):
        env = make_env(2, seed=0, **settings)
        model = A2C(
            "CnnPolicy",
            env,
            n_steps=n_steps,
            rollout_buffer_class=buffer,
            policy_kwargs={**kwargs, "normalize_images": False},
            seed=0,
        )
        drawn: list[Any] = []
        train = model.train

        def record(model: Any = model, drawn: list[Any] = drawn, train: Callable[[], None] = train) -> None:
            state = np.random.get_state()  # noqa: NPY002
            drawn.extend(model.rollout_buffer.get(5))
            np.random.set_state(state)  # noqa: NPY002
            train()

        model.train = record  # type: ignore[method-assign]
        model.learn(3 * 2 * n_steps)
        samples.append(drawn)
    assert len(samples[0]) == len(samples[1])
    for one, other in zip(*samples, strict=True):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b)


def filled_buffer(settings: dict[str, Any], episodes: int, **kwargs: Any) -> Any:
    """A buffer of random play in 3 environments, and its policy's values replaced by 0."""
    env = make_env(3, seed=0, **settings)
    buffer: Any = EpisodeRolloutBuffer(
        episodes * DECISIONS,
        env.observation_space,
        env.action_space,
        device="cpu",
        gamma=0.7,
        gae_lambda=1.0,
        n_envs=3,
        **kwargs,
    )
    observations: Any = env.reset()
    starts, rng = np.ones(3, dtype=bool), np.random.default_rng(0)
    zeros = torch.zeros(3)
    for _ in range(episodes * DECISIONS):
        actions = rng.integers(2, size=3)
        following, rewards, dones, _ = env.step(actions)
        buffer.add(observations, actions[:, None], rewards, starts, zeros, zeros)
        observations, starts = np.array(following), dones
    buffer.compute_returns_and_advantage(zeros, dones)
    return buffer


def test_minibatches_are_whole_episodes(settings: dict[str, Any]) -> None:
    buffer = filled_buffer(settings, 2)
    returns = buffer.returns.copy()
    seen = []
    for minibatch in buffer.get(4 * DECISIONS):
        for stacks, values in zip(
            minibatch.observations.unflatten(0, (-1, DECISIONS)), minibatch.returns.unflatten(0, (-1, DECISIONS)),
            strict=True,
        ):  # fmt: skip
            torch.testing.assert_close(values, values[-1] * 0.7 ** torch.arange(DECISIONS - 1, -1, -1))
            seen.append(float(values[-1]))
            for k in range(1, DECISIONS):  # each stack is the one before, one latent further on
                assert torch.equal(stacks[k][:-3], stacks[k - 1][3:])
            assert not stacks[0][:-3].any()
    assert len(seen) == 6
    assert sorted(seen) == sorted(returns[DECISIONS - 1 :: DECISIONS].ravel().tolist())


def test_advantages_normalised_by_decision(settings: dict[str, Any]) -> None:
    plain, normalised = filled_buffer(settings, 4), filled_buffer(settings, 4, normalize_decisions=True)
    for k in range(DECISIONS):
        of = plain.advantages[k::DECISIONS]
        np.testing.assert_allclose(normalised.advantages[k::DECISIONS], of / of.std(), rtol=1e-4)
    np.testing.assert_array_equal(plain.returns, normalised.returns)
    # discounting alone makes the first decision's advantages small
    ratio = plain.advantages[::DECISIONS].std() / plain.advantages[DECISIONS - 1 :: DECISIONS].std()
    assert ratio == pytest.approx(0.7 ** (DECISIONS - 1), rel=1e-4)


@pytest.mark.parametrize("normalize", [False, True])
def test_undone_decisions_have_a_price_and_no_part_in_the_result(settings: dict[str, Any], normalize: bool) -> None:
    plain = filled_buffer(settings, 12)
    priced = filled_buffer(settings, 12, undone_price=0.2, normalize_decisions=normalize)
    actions = priced.actions[..., 0].reshape(12, DECISIONS, 3)
    advantages = priced.advantages.reshape(12, DECISIONS, 3)
    counts = np.ones_like(actions, dtype=bool)
    for k in range(DECISIONS):
        counts[:, k] = ~(actions[:, k + 1 :] == Action.SKIP).any(axis=1)
    np.testing.assert_allclose(advantages[~counts], np.where(actions[~counts] == Action.SKIP, 0.1, -0.1), rtol=1e-6)
    assert 0 < counts[:, 0].sum() < counts[:, -1].sum() == 36
    assert advantages[counts].std() == pytest.approx(1, rel=1e-4)
    scales = []
    for k in range(DECISIONS):
        of = counts[:, k]
        centred = plain.advantages.reshape(advantages.shape)[:, k][of]
        centred -= centred.mean()
        if centred.std() > 1e-6:
            scales.append(np.linalg.norm(advantages[:, k][of]) / np.linalg.norm(centred))
            np.testing.assert_allclose(advantages[:, k][of], scales[-1] * centred, rtol=1e-3, atol=1e-5)
    assert len(scales) > 1
    if not normalize:
        np.testing.assert_allclose(scales, scales[0], rtol=1e-3)
    np.testing.assert_array_equal(plain.returns, priced.returns)


def test_a_skip_undoes_nothing_of_another_episode(settings: dict[str, Any]) -> None:
    buffer = filled_buffer(settings, 2, undone_price=0.0)
    buffer.actions[:] = Action.DENOISE
    buffer.actions[DECISIONS] = Action.SKIP  # the first of the second episode
    assert not buffer._undone().any()
    buffer.actions[DECISIONS - 1] = Action.SKIP  # the last of the first
    np.testing.assert_array_equal(buffer._undone()[:, 0], np.arange(2 * DECISIONS) < DECISIONS - 1)


def test_nothing_is_undone_where_skip_jumps(settings: dict[str, Any]) -> None:
    hyperparameters = load_hyperparameters("ppo", {"undone_price": 0.1, "n_envs": 2, "episodes_per_minibatch": 1})
    with pytest.raises(ConfigError, match="undone_price needs skip_mode restart, got jump"):
        AgentTrainingConfig(env={**settings, "skip_mode": "jump"}, hyperparameters=hyperparameters)


@pytest.mark.parametrize("steps", [3 * DECISIONS - 1, 40])
def test_replay_buffer_gives_whole_stacks(settings: dict[str, Any], steps: int) -> None:
    """Each sample is a transition that was stored, with the stacks of both its observations.

    Before and after overflow.
    """
    env = make_env(2, seed=0, **settings)
    buffer = EpisodeReplayBuffer(2 * 13, env.observation_space, env.action_space, n_envs=2)
    plain = ReplayBuffer(2 * 100, env.observation_space, env.action_space, n_envs=2)
    observations: Any = env.reset()
    rng = np.random.default_rng(0)
    transitions: dict[float, tuple[Any, ...]] = {}
    for k in range(steps):
        actions = rng.integers(2, size=2)
        following, _, dones, infos = env.step(actions)
        after: Any = np.array(following)
        for j in np.flatnonzero(dones):
            after[j] = infos[j]["terminal_observation"]
        rewards = np.array([k, k + 1000.0])  # by which a sample is known
        for each in (buffer, plain):
            each.add(observations, after, actions, rewards, dones, infos)
        for i in (0, 1):
            transitions[rewards[i]] = np.array(observations[i]), actions[i], after[i], dones[i]
        observations = np.array(following)
    sample = buffer.sample(200)
    drawn = {float(reward) for reward in sample.rewards}
    assert len(drawn) > 10
    for obs, action, following, done, reward in zip(*sample[:5], strict=True):
        expected, taken, after, ended = transitions[float(reward)]
        np.testing.assert_array_equal(obs, expected)
        assert (int(action), bool(done)) == (taken, ended)
        if not ended:
            np.testing.assert_array_equal(following, after)
    assert min(drawn) >= max(0, steps - 13)  # older ones are gone
    per_transition = [
        b.observations.nbytes / b.buffer_size + getattr(b, "next_observations", np.empty(0)).nbytes / b.buffer_size
        for b in (buffer, plain)
    ]
    assert per_transition[1] == 2 * DECISIONS * per_transition[0]


def test_newest_space_must_be_stacked() -> None:
    with pytest.raises(AssertionError):
        EpisodeReplayBuffer(10, spaces.Discrete(2), spaces.Discrete(2))


@pytest.mark.parametrize(
    "changes", [{"skip_mode": "jump"}, {"noise_seeds": None}, {"obs_dtype": "float16"}, {"nfe_penalty": 0.5}]
)
def test_training_on_other_episodes(
    changes: dict[str, Any], config: Callable[..., AgentTrainingConfig], tmp_path: Path
) -> None:
    small = config()
    train_agent(replace(small, env={**small.env, **changes}), tmp_path / "run")
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
        train_agent(config(overrides={"learning_rate": -1.0, "lr_schedule": "constant"}), tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_policy_that_diverges(config: Callable[..., AgentTrainingConfig], tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"numbers that are not finite; train with a lower -p learning_rate"):
        train_agent(config(overrides={"learning_rate": 1e30, "lr_schedule": "constant"}), tmp_path / "run")
