"""Training under RL Baselines3 Zoo, an optional extra."""

import subprocess
import sys
from pathlib import Path
from pkgutil import resolve_name
from typing import Any

import gymnasium as gym
import numpy as np
import pytest
from stable_baselines3.common.monitor import Monitor
from stable_baselines3.common.vec_env import DummyVecEnv

from agents.training.hyperparameters import load_hyperparameters
from agents.training.zoo import hyperparams, settings


def test_settings_are_those_of_the_project() -> None:
    zoo = hyperparams["SkipDiff-v0"]
    assert zoo["learning_rate"] == "lin_3.0e-4"
    assert zoo["n_steps"] == 9
    assert zoo["batch_size"] == 9 * 8
    for algorithm in ("ppo", "trpo"):
        own, written = load_hyperparameters(algorithm, "SkipDiff-v0"), settings(algorithm)
        policy = eval(written.pop("policy_kwargs").replace("get_class_by_name", "str"))  # as the zoo does
        assert policy == own.pop("policy_kwargs")
        assert policy["features_extractor_class"] == "agents.networks.extractors.SkipProposalExtractor"
        assert written == own


def test_the_wrappers_fit_scalar_environments(checkpoint: str, photos: Path) -> None:
    """The zoo makes scalar environments, and wraps them together."""
    env_settings: dict[str, Any] = {
        "checkpoint": checkpoint,
        "images": str(photos),
        "image_size": 96,
        "metric": "psnr",
        "steps": (20, 5),
    }
    env: Any = DummyVecEnv([lambda: Monitor(gym.make("skipdiff_env:SkipDiff-v0", **env_settings))] * 2)
    for each in hyperparams["SkipDiff-v0"]["vec_env_wrapper"]:
        ((name, own),) = each.items() if isinstance(each, dict) else ((each, {}),)
        env = resolve_name(name)(env, **own)
    assert env.reset().shape == (2, 4 * 3, 64, 64)
    for _ in range(4):
        _, _, dones, infos = env.step(np.zeros(2, int))
    assert dones.all()
    assert infos[0]["terminal_observation"].shape == (4 * 3, 64, 64)


def test_zoo_trains_on_it(checkpoint: str, photos: Path, tmp_path: Path) -> None:
    pytest.importorskip("rl_zoo3", reason="pip install .[zoo]")
    arguments = [
        "--algo=ppo", "--env=SkipDiff-v0", "--gym-packages=skipdiff_env", "--conf-file=agents.training.zoo", "-n=36",
        f"-f={tmp_path}", "--eval-freq=18", "--eval-episodes=1", "--seed=1", "--hyperparams", "n_envs:2",
        "n_steps:9", "batch_size:18", "--env-kwargs", f"checkpoint:'{checkpoint}'", f"images:'{photos}'",
        "image_size:32", "metric:'psnr'",
    ]  # fmt: skip
    result = subprocess.run(
        [sys.executable, "-m", "rl_zoo3.train", *arguments],
        capture_output=True, text=True, cwd=Path(__file__).parents[1], check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr
    assert "Episode length: 9.00" in result.stdout
    assert (tmp_path / "ppo" / "SkipDiff-v0_1" / "SkipDiff-v0.zip").is_file()
