"""Training under RL Baselines3 Zoo, an optional extra."""

import subprocess
import sys
from pathlib import Path

import pytest

from agents.training.hyperparameters import load_hyperparameters
from agents.training.zoo import hyperparams, settings


def test_settings_are_those_of_the_project() -> None:
    own = {**load_hyperparameters("ppo").algorithm, "learning_rate": "lin_0.0003"}
    zoo = hyperparams["SkipDiff-v0"]
    assert {name: zoo[name] for name in own} == own
    assert zoo["n_steps"] == 9
    assert zoo["batch_size"] == 9 * 4
    assert settings("trpo", decisions=19)["n_steps"] == 19
    for algorithm in ("ppo", "trpo"):
        h = load_hyperparameters(algorithm)
        written = settings(algorithm)["policy_kwargs"].replace("get_class_by_name", "str")
        policy = eval(written)  # as the zoo does
        assert policy.pop("features_extractor_class") == "agents.networks.extractors.SkipProposalExtractor"
        assert policy["features_extractor_kwargs"] == {
            "recurrent": True, "norm": h.norm, "hidden_size": h.hidden_size, "image_size": h.spn_size,
            "tell_step": True,
        }  # fmt: skip
        assert policy["optimizer_kwargs"] == h.policy_kwargs["optimizer_kwargs"]


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
