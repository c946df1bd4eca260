"""Files and folders that are whole or not there, and what killed processes leave."""

from pathlib import Path

import pytest

from ddpm.training.runs import check_new_run, lock_run
from ddpm.util.errors import ConfigError
from ddpm.util.files import TEMPORARY, atomic_folder, atomic_path, remove_folder


def test_a_folder_is_there_at_once_or_not_at_all(tmp_path: Path) -> None:
    def stopped() -> None:
        with atomic_folder(tmp_path / "a") as temporary:
            (temporary / "x").write_text("half", encoding="utf-8")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        stopped()
    assert list(tmp_path.iterdir()) == []
    with atomic_folder(tmp_path / "a") as temporary:
        (temporary / "x").write_text("whole", encoding="utf-8")
        assert not (tmp_path / "a").exists()
    assert [path.name for path in tmp_path.iterdir()] == ["a"]
    assert (tmp_path / "a").stat().st_mode == tmp_path.stat().st_mode
    remove_folder(tmp_path / "a")
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_is_removed_is_never_there_in_part(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x").touch()

    def killed(*args: object, **kwargs: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        remove_folder(tmp_path / "a")
    assert not (tmp_path / "a").exists()


def test_a_run_removes_what_a_killed_one_left(tmp_path: Path) -> None:
    """Temporary names alone do not make a folder one of another run."""
    for left in (
        tmp_path / f"{TEMPORARY}x.json",
        tmp_path / f"{TEMPORARY}y" / "z",
        tmp_path / "best" / f"{TEMPORARY}w",
    ):
        left.parent.mkdir(exist_ok=True)
        left.touch()
    (tmp_path / "best" / "kept").touch()
    with lock_run(tmp_path):
        names = {str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*")}
    assert names == {".lock", "best", "best/kept"}


def test_where_a_run_may_begin(tmp_path: Path) -> None:
    check_new_run(tmp_path / "new", False)
    (tmp_path / ".lock").touch()
    (tmp_path / f"{TEMPORARY}x").touch()
    check_new_run(tmp_path, False)
    with atomic_path(tmp_path / "config.json") as temporary:
        temporary.touch()
    check_new_run(tmp_path, True)
    with pytest.raises(ConfigError, match="is not empty; continue its run by --resume"):
        check_new_run(tmp_path, False)
    for resume in (False, True):
        with pytest.raises(ConfigError, match=r"must be a folder, but .*config\.json is a file"):
            check_new_run(tmp_path / "config.json", resume)
