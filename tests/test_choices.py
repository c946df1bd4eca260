"""Agents that choose a schedule, once for each picture."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from agents.agent import Agent, AgentConfig, load_agent
from agents.algorithms import ALGORITHMS, SUPERVISED
from agents.cli import main
from agents.playing import AgentPolicy, SchedulePolicy, play
from agents.training.hyperparameters import load_hyperparameters
from agents.training.learning_curve import read_curve
from ddpm.schedule import even_levels
from ddpm.util.errors import CheckpointError, ConfigError
from skipdiff_env.config import TaskConfig
from skipdiff_env.plan import Plan
from skipdiff_env.task import Task

NUMBERS = (1, 2, 4)
# One whose decisions are all steps, and one with coarse steps before them.
PLANS = (
    Plan(1, 6, fine_sampler="ddim", skip_mode="jump"),
    Plan(2, 4, fine_sampler="ddim", skip_mode="jump"),
)
PRICES = (0.001, 0.1)


def task_settings(checkpoint: str, photos: Path, plan: Plan = PLANS[0]) -> dict[str, Any]:
    return {
        "checkpoint": checkpoint, "images": str(photos), "image_size": 32, "steps": (plan.S, plan.N),
        "skip_mode": "jump", "fine_sampler": "ddim", "observation": "dict",
        "metric": "lpips", "reward": "negative", "nfe_penalty": PRICES, "noise_seeds": 2,
    }  # fmt: skip


def supervised(plan: Plan = PLANS[0]) -> Agent:
    """An untrained supervised agent."""
    torch.manual_seed(3)
    kwargs: dict[str, Any] = {"forwards": list(NUMBERS), "channels": [4, 6], "crop_size": 16}
    config = AgentConfig(SUPERVISED, plan.decisions, 32, 9.0, plan, kwargs, observation="dict", price_range=PRICES)
    return Agent.build(config)


@pytest.mark.parametrize("plan", PLANS)
def test_choices_step_by_step(plan: Plan, checkpoint: str, photos: Path, tmp_path: Path) -> None:
    """A supervised agent takes the best schedule for its predictions, at once or decision by decision."""
    supervised(plan).save(tmp_path / "agent")
    agent = load_agent(tmp_path / "agent")
    assert agent.config.choosing
    assert agent.config.stepwise
    assert agent.config.schedules == (("6", "6,3", "6,4,3,2") if plan.first == 6 else ("4", "4,2", "even:4"))
    policy = AgentPolicy(agent, price=0.02)
    assert isinstance(policy, SchedulePolicy)
    task = Task(TaskConfig.of(task_settings(checkpoint, photos, plan)))
    images, noises = [0, 1, 2, 3], [1, 0, 1, 0]
    episodes = play(task, policy, images, noises, price=0.02)
    conditions = torch.stack([task.condition(image) for image in images])
    with torch.no_grad():
        values = agent.policy({"condition": conditions, "price": torch.full((4, 1), 0.02)})
    expected = [even_levels(plan.first, NUMBERS[place]) for place in values.argmax(dim=1).tolist()]
    assert [episode.refinement.levels for episode in episodes] == expected
    again = task.begin(images, noises, [0.02] * 4)
    while not again[0].ended:
        states = [episode.refinement for episode in again]
        probabilities = policy.probabilities(states)
        assert probabilities.sum(axis=1).tolist() == [1] * 4
        task.step(again, [int(action) for action in probabilities.argmax(axis=1)])
    assert [episode.refinement.levels for episode in again] == expected
    assert [episode.reward for episode in again] == pytest.approx([episode.reward for episode in episodes])
    (late,) = task.begin([0], [0], [0.02])
    task.step([late], [0])
    with pytest.raises(ConfigError, match="the agent decides episodes that it sees from t ="):
        policy([late.refinement])


def test_an_agent_that_gives_no_numbers(checkpoint: str, photos: Path) -> None:
    agent = supervised()
    with torch.no_grad():
        for parameter in agent.policy.parameters():
            parameter.fill_(float("nan"))
    with pytest.raises(CheckpointError, match="numbers that are not finite"):
        play(Task(TaskConfig.of(task_settings(checkpoint, photos))), AgentPolicy(agent), [0], [0])


def test_hyperparameters_for_features() -> None:
    """Every algorithm has some, and none of them is about latents or conditions."""
    for algorithm in ALGORITHMS:
        found = load_hyperparameters(algorithm, {}, "features")
        assert found.policy_settings("features")["net_arch"] == [64]
        for name in ("spn_size=32", "crop_size=16", "skip_probability=0.5"):
            key, value = name.split("=")
            with pytest.raises(ConfigError, match=f"on SkipDiffBandit-v0 has no hyperparameter {key}"):
                load_hyperparameters(algorithm, {key: float(value)}, "features")
    with pytest.raises(ConfigError, match="there are no hyperparameters for sac, only for ppo"):
        load_hyperparameters("sac")


@pytest.mark.parametrize(
    ("env", "algorithm"),
    [("SkipDiffBandit-v0", "ppo"), ("SkipDiffStride-v0", "recurrent-ppo"), ("SkipDiffBandit-v0", "dqn")],
)
def test_training_by_the_command(env: str, algorithm: str, checkpoint: str, photos: Path, tmp_path: Path) -> None:
    """The command trains an agent that sees features, goes on, and other commands take the agent."""
    out, bandit = tmp_path / "run", "Bandit" in env
    small = ["learning_starts=4", "batch_size=4"] if algorithm == "dqn" else [
        "episodes_per_rollout=4" if bandit else "episodes_per_rollout=1", "episodes_per_minibatch=2"
    ]  # fmt: skip
    steps = 16 if bandit else 24
    arguments = [
        "train-agent", f"--out={out}", f"--algo={algorithm}", f"--env={env}", f"--checkpoint={checkpoint}",
        f"--images={photos}", "--image-size=32", "--steps=1,6", "--nfe-penalty=0.001,0.1", "--noise-seeds=1",
        f"--eval-every={8 if bandit else 2}", "-p", "n_envs=2", "-p", f"env_steps={steps}",
        *(part for each in small for part in ("-p", each)),
    ]  # fmt: skip
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    agent = load_agent(out)
    assert agent.config.kind == ("schedule" if bandit else "stride")
    assert agent.config.price_range == PRICES
    points = [point.env_steps for point in read_curve(out / "evaluations.csv")]
    assert points == ([0, 8, 16] if bandit else [0, 12, 24])
    more = 24 if bandit else 36
    result = CliRunner().invoke(main, ["train-agent", f"--out={out}", "--resume", f"--env-steps={more}"])
    assert result.exit_code == 0, (result.output, result.exception)
    assert [point.env_steps for point in read_curve(out / "evaluations.csv")] == [*points, more]
    assert all(0 <= point.skips <= 1 for point in read_curve(out / "evaluations.csv"))
    enjoy = ["enjoy", f"--agent={out}", f"--checkpoint={checkpoint}", f"--images={photos}", "--metric=psnr"]
    result = CliRunner().invoke(main, [*enjoy, "-o", str(tmp_path / "x.png"), "--quality=0.5"])
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.output.startswith("schedule 6" if bandit else "level   6  to level")
    result = CliRunner().invoke(main, [*arguments, f"--out={tmp_path / 'other'}", "-p", "spn_size=32"])
    assert result.exit_code == 2, result.output
    assert "has no hyperparameter spn_size" in " ".join(result.output.split())
    assert not (tmp_path / "other").exists()
    assert np.isfinite([point.reward for point in read_curve(out / "evaluations.csv")]).all()
