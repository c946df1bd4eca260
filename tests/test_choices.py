"""Agents that choose a schedule, once for each picture."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner

from agents.agent import load_agent
from agents.cli import main
from agents.training.hyperparameters import load_hyperparameters
from agents.training.learning_curve import read_curve
from ddpm.util.errors import ConfigError
from skipdiff_env.plan import Plan
from tests.untrained import STEPWISE

NUMBERS = (1, 2, 4)
# One whose decisions are all steps, and one with coarse steps before them.
PLANS = (
    Plan(1, 6, fine_sampler="ddim", skip_mode="jump"),
    Plan(2, 4, fine_sampler="ddim", skip_mode="jump"),
)
PRICES = (0.001, 0.1)


def test_hyperparameters_for_features() -> None:
    """Every algorithm has some, and none of them is about latents or conditions."""
    for algorithm in STEPWISE:
        found = load_hyperparameters(algorithm, "SkipDiffBandit-v0")
        assert found["policy_kwargs"]["net_arch"] == [64]
        assert "features_extractor_class" not in found["policy_kwargs"]
    with pytest.raises(ConfigError, match="sac has no hyperparameters for SkipDiffBandit-v0; take one of ppo, a2c"):
        load_hyperparameters("sac", "SkipDiffBandit-v0")


@pytest.mark.parametrize(
    ("env", "algorithm"),
    [("SkipDiffBandit-v0", "ppo"), ("SkipDiffStride-v0", "recurrent-ppo"), ("SkipDiffBandit-v0", "dqn")],
)
def test_training_by_the_command(env: str, algorithm: str, checkpoint: str, photos: Path, tmp_path: Path) -> None:
    """The command trains an agent that sees features, goes on, and other commands take the agent."""
    out, bandit = tmp_path / "run", "Bandit" in env
    small = ["learning_starts=4", "batch_size=4"] if algorithm == "dqn" else [
        "n_steps=4" if bandit else "n_steps=6", "batch_size=2" if bandit else "batch_size=12"
    ]  # fmt: skip
    steps = 16 if bandit else 24
    arguments = [
        "train-agent", f"--out={out}", f"--algo={algorithm}", f"--env={env}", f"--checkpoint={checkpoint}",
        f"--images={photos}", "--image-size=32", "--steps=1,6", "--nfe-penalty=0.001,0.1", "--noise-seeds=1",
        f"--eval-every={8 if bandit else 2}", "-p", "n_envs=2", "-p", f"n_timesteps={steps}",
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
    enlarge = ["upscale", str(photos / "0.png"), f"--agent={out}", f"--checkpoint={checkpoint}", "--quality=0.5"]
    result = CliRunner().invoke(main, [*enlarge, "-o", str(tmp_path / "large.png")])
    assert result.exit_code == 0, (result.output, result.exception)
    result = CliRunner().invoke(main, [*arguments, f"--out={tmp_path / 'other'}", "-p", "crop_size=32"])
    assert result.exit_code == 2, result.output
    assert "has no hyperparameter crop_size" in " ".join(result.output.split())
    assert not (tmp_path / "other").exists()
    assert np.isfinite([point.reward for point in read_curve(out / "evaluations.csv")]).all()
