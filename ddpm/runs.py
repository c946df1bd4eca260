"""What a training run leaves beside its weights: configuration, versions, command."""

import platform
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from ddpm.errors import ConfigError
from ddpm.files import remove_leftovers, write_json

PACKAGES = (
    "skipdiff",
    "torch",
    "numpy",
    "accelerate",
    "gymnasium",
    "stable-baselines3",
    "sb3-contrib",
    "pyiqa",
    "lpips",
    "safetensors",
)


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


def check_new_run(folder: Path, resume: bool) -> None:
    """Refuses a folder that a run cannot begin in.

    Args:
        folder: the run's folder.
        resume: whether the run goes on in it. Else it must be empty, but for hidden files, or not be there.

    Raises:
        ConfigError: it is a file, or holds something.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out must be a folder, but {folder} is a file; give another name")
    if not resume and folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; go on with its run by --resume, or give another folder")


@contextmanager
def lock_run(folder: Path, wanted: bool = True) -> Iterator[None]:
    """Keeps other processes out of a run's folder while the block runs; removes what killed ones have left.

    Args:
        folder: the run's folder; it is made where it is missing, and removed again if it stays empty.
        wanted: whether to lock at all; of several processes of one run only the first does.

    Raises:
        ConfigError: another process holds the folder, or the folder cannot be written.
    """
    if not wanted or fcntl is None:
        yield
        return
    path, made = folder / ".lock", not folder.exists()
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = path.open("w", encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"cannot write into the folder {folder} ({error.strerror}); give another --out") from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise ConfigError(f"another process is at work in {folder}; wait for it, or give another --out") from None
        try:
            remove_leftovers(folder)
            yield
        finally:
            path.unlink(missing_ok=True)
            if made:
                with suppress(OSError):
                    folder.rmdir()  # works where nothing was written
