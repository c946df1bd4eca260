"""The files of a training run beside its weights: configuration, versions, command."""

import hashlib
import platform
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

from ddpm.util.errors import ConfigError
from ddpm.util.files import read_json, remove_leftovers, write_json

# Number of bytes that distinguish a file from others of its name and size.
PART = 4096
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


def pictures_digest(pictures: Iterable[Path | bytes]) -> str:
    """Return a digest of pictures; of files, it covers their names, their sizes and a part of each."""
    digest = hashlib.blake2b(digest_size=8)
    for picture in pictures:
        if isinstance(picture, bytes):
            digest.update(picture)
            continue
        size = picture.stat().st_size
        digest.update(f"{picture.name} {size}".encode())
        with picture.open("rb") as file:  # a part is enough: compressed pictures of one size differ there
            file.seek(max(0, size - PART) // 2)
            digest.update(file.read(PART))
    return digest.hexdigest()


def start_run(folder: Path, config: Mapping[str, Any], pictures: str | None = None, goes_on: bool = False) -> None:
    """Write `config.json` and `versions.json` (packages, Python, machine, command line) into a run's folder.

    Args:
        folder: the run's folder.
        config: the settings.
        pictures: `pictures_digest` of the pictures; None: the run does not have any.
        goes_on: whether the run has learnt from pictures before, which must still be the same.

    Raises:
        ConfigError: the pictures are different ones.
    """
    versions: dict[str, Any] = {
        "python": platform.python_version(), "machine": platform.platform(), "command": sys.argv, "pictures": pictures,
    }  # fmt: skip
    if goes_on and (folder / "versions.json").exists():
        before = read_json(folder / "versions.json")
        known = before.get("pictures") if isinstance(before, dict) else None
        if known not in (None, pictures):  # runs of older versions do not hold it
            raise ConfigError(
                f"the run in {folder} was trained on other pictures ({known}, got {pictures}); put them back, or start "
                "a new run with those"
            )
    for package in PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:
            continue
    write_json(folder / "config.json", dict(config))
    write_json(folder / "versions.json", versions)


def check_new_run(folder: Path, resume: bool) -> None:
    """Refuse a folder in which a run cannot begin.

    Args:
        folder: the run's folder.
        resume: whether the run continues in it. Else it must be empty, except for hidden files, or not exist.

    Raises:
        ConfigError: it is a file, or is not empty.
    """
    if folder.exists() and not folder.is_dir():
        raise ConfigError(f"--out must be a folder, but {folder} is a file; give another name")
    if not resume and folder.is_dir() and any(not path.name.startswith(".") for path in folder.iterdir()):
        raise ConfigError(f"{folder} is not empty; continue its run by --resume, or give another folder")


@contextmanager
def lock_run(folder: Path, wanted: bool = True) -> Iterator[None]:
    """Keep other processes out of a run's folder while the block runs; remove the leftovers of killed ones.

    Args:
        folder: the run's folder; it is made where it is missing, and removed again if it stays empty.
        wanted: whether to lock the folder; of several processes of one run only the first one does.

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
