"""The command line as a whole."""

import subprocess
import sys

import pytest
from click.testing import CliRunner

from agents.cli import main

HEAVY = {"torch", "torchvision", "pyiqa", "lpips", "stable_baselines3", "matplotlib", "skimage", "accelerate", "scipy"}


@pytest.mark.parametrize(
    "statement", ["import skipdiff_env", "from agents.cli import main; main(['--help'], standalone_mode=False)"]
)
def test_nothing_heavy_is_imported_early(statement: str) -> None:
    """What makes `import skipdiff_env` and `skipdiff --help` quick: no large library is touched."""
    code = f"{statement}\nimport sys; print('LOADED', *sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not HEAVY & set(output.split("LOADED")[-1].split())


@pytest.mark.parametrize("command", sorted(main.commands))
def test_every_command_has_help(command: str) -> None:
    result = CliRunner().invoke(main, [command, "--help"])
    assert result.exit_code == 0
    assert len(result.output.splitlines()) > 5


def test_unknown_command() -> None:
    result = CliRunner().invoke(main, ["upscail"])
    assert result.exit_code == 2
    assert "No such command" in result.output


def test_train_ddpm_wants_pictures(tmp_path: object) -> None:
    result = CliRunner().invoke(main, ["train-ddpm", f"--out={tmp_path}/run"])
    assert result.exit_code == 2
    assert "--images is missing" in result.output
    result = CliRunner().invoke(main, ["train-ddpm", f"--out={tmp_path}/run", "--images=x", "--multipliers=1,b"])
    assert result.exit_code == 2
    assert "whole numbers" in result.output
