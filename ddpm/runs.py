"""What a training run leaves beside its weights: configuration, versions, command."""

import json
import platform
import sys
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from ddpm.errors import ConfigError
from ddpm.images import atomic_path

PACKAGES = (
    "skipdiff", "torch", "numpy", "accelerate", "gymnasium", "stable-baselines3", "sb3-contrib", "pyiqa", "lpips", "safetensors",
)  # fmt: skip


def write_json(path: Path, content: Any) -> None:
    """Writes JSON under a temporary name and renames it."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n")


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text())
    except FileNotFoundError:
        raise ConfigError(f"no such file: {path}") from None
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise ConfigError(f"{path} is not readable JSON ({error})") from None


def start_run(folder: Path, config: Mapping[str, Any]) -> None:
    """Writes `config.json` and `versions.json` (packages, Python, machine, command line) into a run's folder."""
    versions = {"python": platform.python_version(), "machine": platform.platform(), "command": sys.argv}
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    write_json(folder / "config.json", dict(config))
    write_json(folder / "versions.json", versions)
