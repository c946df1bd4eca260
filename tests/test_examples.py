"""The examples run, with a tiny net or a few steps in place of what they do by default."""

import importlib.util
import itertools
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import gymnasium as gym
import pytest
from click.testing import CliRunner

from agents import load_agent

ROOT = Path(__file__).parents[1]
EXAMPLES = ROOT / "examples"
Run = Callable[..., dict[str, list[str]]]


def load(name: str) -> ModuleType:
    """An example as a module."""
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows(output: str) -> dict[str, list[str]]:
    """The lines of tables, by their first cell; of equal first cells the first line counts."""
    found: dict[str, list[str]] = {}
    for line in output.splitlines():
        first, *cells = line.split(" | ")
        if cells:
            found.setdefault(first, cells)
    return found


@pytest.fixture
def run() -> Run:
    """Runs an example in this process; gives the rows of what it printed."""

    def run(name: str, *options: object) -> dict[str, list[str]]:
        result = CliRunner().invoke(load(name).main, [str(option) for option in options], catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return rows(result.stdout)

    return run


def test_each_example_has_its_line() -> None:
    page = (EXAMPLES / "README.md").read_text(encoding="utf-8")
    names = sorted(path.name for path in EXAMPLES.glob("*.py"))
    assert len(names) == 5
    for name in names:
        assert f"python examples/{name}" in page


@pytest.mark.slow
def test_sb3_ppo(run: Run, checkpoint: str, tmp_path: Path) -> None:
    found = run(
        "sb3_ppo", "--env-steps", 128, "--num-envs", 2, "--test-pictures", 2, "--checkpoint", checkpoint,
        "--out", tmp_path / "agent",
    )  # fmt: skip
    assert load_agent(tmp_path / "agent").config.kind == "schedule"
    (fixed,) = [cells for name, cells in found.items() if name.endswith("the best number on these")]
    (agent,) = [cells for name, cells in found.items() if name.startswith("PPO after 128 env steps")]
    oracle = found["best number for each picture and noise"]
    assert float(oracle[0]) >= max(float(fixed[0]), float(agent[0]))
    assert 1 <= float(agent[2]) <= 20
    assert float(agent[0]) == pytest.approx(-float(agent[1]) - 0.002 * float(agent[2]), abs=3e-4)


@pytest.mark.slow
def test_cleanrl_ppo(run: Run) -> None:
    """It learns: the agent becomes better than the best fixed schedule on photographs that it has not seen."""
    found = run("cleanrl_ppo", "--env-steps", 60_000)
    curve = [cells for name, cells in found.items() if name.strip().isdigit()]
    assert len(curve) >= 10
    assert float(curve[-1][0]) > max(0.1, float(curve[0][0]))
    assert "#" in curve[-1][1]
    low, high = map(float, found["PPO"][1].split(" … "))
    assert 0 < low < float(found["PPO"][0]) < high


def test_bring_your_own(run: Run) -> None:
    found = run("bring_your_own", "--iterations", 3, "--env-steps", 32, "--image-size", 32, "--pictures", 3,
                "--num-envs", 4)  # fmt: skip
    ways = [found[name] for name in ("12", "12,6", "12,8,4", "12,10,8,6,4,2", "even:12")]
    worst = min(float(cells[0]) for cells in ways)
    assert worst - 1e-4 <= float(found["agent"][0]) <= float(found["best for each crop and noise"][0])
    assert 98 <= sum(int(cells[1].rstrip("%")) for cells in ways) <= 102


def test_planning(run: Run, checkpoint: str) -> None:
    found = run("planning", "--episodes", 4, "--levels", 5, "--other-noises", 1, "--checkpoint", checkpoint)
    assert found["5 even steps"][-1] == "5 4 3 2 1"
    assert "found in 4 episodes" in found


def test_the_planner_finds_the_best_of_all_schedules(checkpoint: str) -> None:
    """With as many episodes as there are schedules it plays them all, and then stops."""
    env: Any = gym.make("SkipDiffJump-v0", split="test", steps=(1, 4), checkpoint=checkpoint).unwrapped
    env.reset(options={"image": 3, "noise_seed": 0})
    planner = load("planning").Planner(env, exploration=0.3, seed=0)
    planner.search(100)
    inner = [levels for count in range(4) for levels in itertools.combinations((3, 2, 1), count)]
    rewards = env.schedule_outcomes([3], [0], [(4, *levels) for levels in inner]).rewards()[0, 0]
    assert planner.levels == (4, *inner[int(rewards.argmax())])
    assert planner.best == pytest.approx(rewards.max(), abs=1e-6)
    assert planner.root.visits < 100


@pytest.mark.slow
def test_rllib_ppo() -> None:
    """In a process of its own, since ray starts servers."""
    for name in ("ray", "tree", "lz4", "ormsgpack", "tensorboardX"):  # RLlib itself takes long to import
        pytest.importorskip(name, reason=f'{name} is not installed; pip install "skipdiff[rllib]"')
    command = [sys.executable, str(EXAMPLES / "rllib_ppo.py"), "--iterations", "2", "--num-envs", "4"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8", env=environment, check=False)
    assert done.returncode == 0, done.stderr
    assert "128 env steps: mean reward" in done.stdout
    assert float(rows(done.stdout)["RLlib's PPO"][0]) < 1
