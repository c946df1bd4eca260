"""Files and folders that are whole or not there: written under a temporary name and renamed; and JSON."""

import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from ddpm.util.errors import ConfigError

# How temporary names begin.
TEMPORARY = ".skipdiff-"


def check_ending(path: Path, endings: Sequence[str]) -> None:
    """Raises ConfigError where a file to be written has none of these endings, as ".png"; capitals do not matter."""
    if path.suffix.lower() not in endings:
        raise ConfigError(f"expected a file ending in {', '.join(endings)}, got {path}")


@contextmanager
def atomic_path(path: str | Path) -> Iterator[Path]:
    """Gives a temporary name beside `path`; renames it to `path` when the block ends well, else removes it."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    # the name does not repeat that of `path`, which may be as long as the file system takes
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
    """Gives a temporary folder beside `path`; renames it to `path`, which must not exist, when the block ends well."""
    temporary = Path(tempfile.mkdtemp(prefix=TEMPORARY, dir=path.parent))
    try:
        yield temporary
        temporary.chmod(path.parent.stat().st_mode)
        temporary.rename(path)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def real_path(path: str | Path) -> Path:
    """The absolute path without links; unlike `Path.resolve`, it takes links that lead in a circle."""
    return Path(os.path.realpath(path))


def remove_folder(path: Path) -> None:
    """Removes a folder that is at no time there in part: it is renamed first."""
    with tempfile.TemporaryDirectory(prefix=TEMPORARY, dir=path.parent, ignore_cleanup_errors=True) as temporary:
        path.rename(Path(temporary, path.name))


def remove_leftovers(folder: Path) -> None:
    """Removes what killed processes have left under temporary names, below a folder that nobody else writes into."""
    for path in folder.rglob(f"{TEMPORARY}*"):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def stamp(path: str | Path) -> tuple[int, ...]:
    """Return numbers that tell a file from one that takes its place; none where there is no file."""
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def write_json(path: Path, content: Any) -> None:
    """Writes JSON under a temporary name and renames it."""
    with atomic_path(path) as temporary:
        temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")


def read_json(path: Path) -> Any:
    """Reads JSON.

    Raises:
        ConfigError: the file is missing or damaged.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ConfigError(f"no such file: {path}") from None
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(f"{path} is not readable JSON ({error})") from None
