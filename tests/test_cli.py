"""The command line as a whole."""

import errno
import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from agents.cli import Group, main
from ddpm.util.errors import ConfigError

HEAVY = {"torch", "torchvision", "pyiqa", "lpips", "stable_baselines3", "matplotlib", "skimage", "accelerate", "scipy"}


@pytest.mark.parametrize(
    ("statement", "more"),
    [
        ("import skipdiff_env", set()),
        ("from agents.cli import main; main(['--help'], standalone_mode=False)", {"numpy", "gymnasium"}),
    ],
)
def test_nothing_heavy_is_imported_early(statement: str, more: set[str]) -> None:
    """What makes `import skipdiff_env` and `skipdiff --help` quick: no large library is touched."""
    code = f"{statement}\nimport sys; print('LOADED', *sys.modules)"
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert not (HEAVY | more) & set(output.split("LOADED")[-1].split())


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


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (ConfigError("two\nlines"), 2, "Error: two lines"),
        (click.UsageError("two\n\nlines"), 2, "Error: two lines"),
        (OSError(errno.ENOSPC, "No space left on device", "a.png"), 1, "Error: a.png: No space left on device"),
        (OSError(errno.ENOSPC, "No space left on device"), 1, "Error: No space left on device"),
        (OSError("odd\nerror"), 1, "Error: odd error"),
        (MemoryError(), 1, "Error: the memory does not hold what this computes"),
        (RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory"), 1, "Error: the memory does not"),
    ],
)
def test_an_error_is_one_line(error: Exception, code: int, line: str) -> None:
    def fail() -> None:
        raise error

    result = CliRunner().invoke(Group(commands={"fail": click.Command("fail", callback=fail)}), ["fail"])
    assert result.exit_code == code
    assert result.stderr.splitlines()[-1].startswith(line)


def test_a_mistake_of_ours_is_no_error_of_the_user() -> None:
    def fail() -> None:
        raise RuntimeError("a bug")

    result = CliRunner().invoke(Group(commands={"fail": click.Command("fail", callback=fail)}), ["fail"])
    assert isinstance(result.exception, RuntimeError)
