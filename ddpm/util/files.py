"""Files and folders that are either complete or absent, since they are written under a temporary name; and JSON."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ddpm.util.checks import shown
from ddpm.util.errors import CheckpointError, ConfigError

# Prefix of temporary names.
TEMPORARY = ".skipdiff-"


def check_ending(path: Path, endings: Sequence[str]) -> None:
    """Raise ConfigError if a file to be written does not have one of these endings, as ".png", in any case."""
    if path.suffix.lower() not in endings:
        raise ConfigError(f"expected a file ending in {', '.join(endings)}, got {path}")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Yield a temporary name beside `path`; rename it to `path` when the block succeeds, else remove it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # the name does not repeat that of `path`, which may have the largest length of the file system
    suffix = path.suffix if len(os.fsencode(path.suffix)) <= 16 else ""
    handle, name = tempfile.mkstemp(prefix=TEMPORARY, suffix=suffix, dir=path.parent)
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        umask = os.umask(0)
        os.umask(umask)
        temporary.chmod(0o666 & ~umask)
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


@contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; rename it to `path`, which must not exist, when the block succeeds."""
    temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=path.parent))
    try:
        yield temporary
        temporary.chmod(path.parent.stat().st_mode)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def real_path(path: str | Path) -> Path:
    """Return the absolute path without links; unlike `Path.resolve`, accept links that lead in a circle."""
    return Path(os.path.realpath(path))


def remove_folder(path: Path) -> None:
    """Remove a folder; it is renamed first, so that it never exists in part."""
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=path.parent, ignore_cleanup_errors=True) as temporary:
        path.rename(Path(temporary, path.name))


def remove_leftovers(folder: Path) -> None:
    """Remove the temporary files of killed processes below a folder to which nobody else writes."""
    for path in folder.rglob(f"{TEMPORARY}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def stamp(path: str | Path) -> tuple[int, ...]:
    """Return numbers that distinguish a file from one that replaces it; empty if there is no file."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def cache_folder() -> Path:
    """Return the user's folder for graphs and weights: skipdiff in $XDG_CACHE_HOME, or in ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "skipdiff"


def write_json(path: Path, content: Any) -> None:
    """Write JSON under a temporary name and rename it."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Read JSON.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no such file: {path}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not readable JSON ({error})") from None


def read_settings(path: Path) -> dict[str, Any]:
    """Read the settings of a network or an agent, a JSON file with values by name.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    try:
        found = read_json(path)
    except ConfigError as error:
        damaged = f"{path} is damaged ({str(error).removeprefix(f'{path} is ')})"
        raise CheckpointError(damaged if path.exists() else str(error)) from None
    if not isinstance(found, dict):
        raise CheckpointError(f"{path} is damaged (expected settings by name, got {shown(found)})")
    return found
