"""Agents that choose a number of even steps, once for each picture."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner

from agents.agent import Agent, AgentConfig, load_agent
from agents.algorithms import ALGORITHMS, RECURRENT, SUPERVISED
from agents.cli import main
from agents.playing import AgentPolicy, play
from agents.training.hyperparameters import load_hyperparameters
from agents.training.learning_curve import read_curve
from agents.training.vec_env import VecEvenSteps, make_env
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


def chooser(algorithm: str, plan: Plan = PLANS[0], **changes: Any) -> Agent:
    """An untrained agent whose choices vary."""
    torch.manual_seed(3)
    kwargs: dict[str, Any] = {"features_extractor_kwargs": {"channels": [4, 6], "crop_size": 16, "see_latent": False}}
    numbers: tuple[int, ...] | None = NUMBERS
    if algorithm == SUPERVISED:
        kwargs, numbers = {"forwards": list(NUMBERS), "channels": [4, 6], "crop_size": 16}, None
    config = AgentConfig(
        algorithm, plan.decisions, 32, 9.0, plan, kwargs, observation="dict", price_range=PRICES, even_steps=numbers
    )
    agent = Agent.build(replace(config, **changes))
    for name, parameter in agent.policy.named_parameters():
        if parameter.ndim > 1 and any(part in name for part in ("action_net", "q_net", "quantile_net")):
            torch.nn.init.normal_(parameter, std=0.5)
    return agent


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("algorithm", [*(name for name in ALGORITHMS if name != RECURRENT), SUPERVISED])
def test_choices_are_those_of_training(
    algorithm: str, plan: Plan, checkpoint: str, photos: Path, tmp_path: Path
) -> None:
    """On the process an agent follows what its policy chooses at first, and so it does on later observations."""
    agent = chooser(algorithm, plan)
    agent.save(tmp_path / "agent")
    loaded = load_agent(tmp_path / "agent")
    assert loaded.config == agent.config
    assert agent.config.choosing
    venv = make_env(4, seed=3, **task_settings(checkpoint, photos, plan))
    venv.set_options({"nfe_penalty": 0.02})
    seen: Any = venv.reset()
    infos, task = venv.unwrapped.reset_infos, venv.unwrapped.task  # type: ignore[attr-defined]
    images, noises = [i["image_index"] for i in infos], [i["noise_seed"] for i in infos]
    episodes = play(task, AgentPolicy(loaded, price=0.02), images, noises, price=0.02)
    played = [episode.refinement.levels for episode in episodes]
    if algorithm != SUPERVISED:
        first = {name: part for name, part in seen.items() if name != "latent"}
        own: Any = agent.policy.policy
        choices = own.predict(first, deterministic=True)[0] if hasattr(own, "predict") else own._predict(first)
        assert played == [even_levels(plan.first, NUMBERS[int(choice)]) for choice in choices]
    decided = []
    for _ in range(plan.decisions):
        decided.append(agent.act(seen))
        seen, _, _, _ = venv.step(decided[-1])
    assert [tuple(episode.actions) for episode in episodes] == [tuple(own) for own in np.array(decided).T]


@pytest.mark.parametrize("algorithm", ["ppo", "dqn", "qrdqn", SUPERVISED])
def test_an_agent_that_gives_no_numbers(algorithm: str) -> None:
    agent = chooser(algorithm)
    with torch.no_grad():
        for parameter in agent.policy.parameters():
            parameter.fill_(float("nan"))
    seen = {"condition": torch.zeros(2, 3, 32, 32), "step": torch.ones(2, 1), "level": torch.ones(2, 1)}
    with pytest.raises(CheckpointError, match="numbers that are not finite"):
        agent.act({**seen, "price": torch.full((2, 1), 0.01)})


def test_hyperparameters_of_a_single_choice() -> None:
    """They are those of jumps, changed; what a user sets goes before."""
    jumps, even = (load_hyperparameters("ppo", changes, "dict") for changes in ({}, {"even_steps": list(NUMBERS)}))
    assert even.algorithm["ent_coef"] > jumps.algorithm["ent_coef"]
    assert even.n_envs == jumps.n_envs
    assert even.even_steps == list(NUMBERS)
    own = load_hyperparameters("ppo", {"even_steps": list(NUMBERS), "ent_coef": 0.5}, "dict")
    assert own.algorithm == {**even.algorithm, "ent_coef": 0.5}
    assert load_hyperparameters("ppo", {"even_steps": None}, "dict") == jumps
    for algorithm in ALGORITHMS:
        if algorithm != RECURRENT:
            load_hyperparameters(algorithm, {"even_steps": list(NUMBERS)}, "dict")


def test_training_by_choices(checkpoint: str, photos: Path, tmp_path: Path) -> None:
    """The command trains an agent with one env step an episode, goes on, and other commands take the agent."""
    out = tmp_path / "run"
    arguments = [
        "train-agent", f"--out={out}", "--algo=ppo", "--env=SkipDiffJump-v0", f"--checkpoint={checkpoint}",
        f"--images={photos}", "--image-size=32", "--steps=1,6", "--nfe-penalty=0.001,0.1", "--noise-seeds=1",
        "--eval-every=8", "-p", "even_steps=[1,2,4]", "-p", "channels=[4,6]", "-p", "n_envs=2", "-p",
        "episodes_per_minibatch=4", "-p", "episodes_per_rollout=4", "-p", "env_steps=16",
    ]  # fmt: skip
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    agent = load_agent(out)
    assert agent.config.even_steps == NUMBERS
    assert agent.config.price_range == PRICES
    assert agent.extractor.policy.features_extractor.latent is None
    assert [point.episodes for point in read_curve(out / "evaluations.csv")] == [0, 8, 16]
    result = CliRunner().invoke(main, ["train-agent", f"--out={out}", "--resume", "--env-steps=24"])
    assert result.exit_code == 0, (result.output, result.exception)
    assert [point.episodes for point in read_curve(out / "evaluations.csv")] == [0, 8, 16, 24]
    enjoy = [
        "enjoy", f"--agent={out}", f"--checkpoint={checkpoint}", f"--images={photos}", "--image-size=32",
        "--metric=psnr", "-o", str(tmp_path / "x.png"), "--quality=0.5",
    ]  # fmt: skip
    result = CliRunner().invoke(main, enjoy)
    assert result.exit_code == 0, (result.output, result.exception)
    assert result.output.count("probability 1.000") == PLANS[0].decisions
    for more, message in (
        (["-p", "even_steps=[2,1]"], "must be rising whole numbers in 1 … 6, got [2, 1]"),
        (["-p", "even_steps=[2,9]"], "must be rising whole numbers in 1 … 6, got [2, 9]"),
        (["-p", "skip_probability=0.7"], "with even_steps there is no SKIP to have a skip_probability"),
        (["--algo=recurrent-ppo"], "recurrent-ppo on SkipDiffJump-v0 has no hyperparameter even_steps"),
        (["--env=SkipDiff-v0"], "ppo on SkipDiff-v0 has no hyperparameter"),
    ):
        result = CliRunner().invoke(main, [*arguments, f"--out={tmp_path / 'other'}", *more])
        assert result.exit_code == 2, result.output
        assert message in " ".join(result.output.split())
        assert not (tmp_path / "other").exists()


def test_one_price(checkpoint: str, photos: Path) -> None:
    """An agent that has learnt one price is told none."""
    settings = {**task_settings(checkpoint, photos), "nfe_penalty": 0.01}
    agent = chooser("dqn", price_range=None)
    episodes = play(Task(TaskConfig.of(settings)), AgentPolicy(agent), [0, 1], [0, 0])
    assert {episode.refinement.levels for episode in episodes} <= {even_levels(6, number) for number in NUMBERS}
    space = VecEvenSteps(make_env(1, **settings), NUMBERS).observation_space
    assert agent.config.observation_space().spaces.keys() == space.spaces.keys()  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"plan": None}, "even_steps needs a plan of skip_mode jump"),
        ({"observation": "latent", "price_range": None}, "even_steps needs a plan of skip_mode jump"),
        ({"algorithm": RECURRENT}, "agents of recurrent-ppo have no even_steps"),
        ({"even_steps": (0, 2)}, "even_steps must be rising whole numbers in 1 … 6"),
    ],
)
def test_configuration_is_checked(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        replace(chooser("ppo").config, **changes)
