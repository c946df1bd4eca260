"""Work on a Ray cluster: nothing is lost and no result differs, also where a worker is killed."""

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from click.testing import CliRunner
from PIL import Image

from agents.cli import main
from agents.cluster import Cluster
from agents.upscaling.jobs import Job, chunks, make_upscaler, make_worker
from agents.upscaling.options import UpscaleOptions
from agents.upscaling.run import upscale_files
from ddpm.util.errors import ConfigError
from tests.conftest import Photo

# Slow enough that a worker can be killed in the middle.
SLOW = ("--steps=10,10", "--start=9", "--tile=0", "--batch-size=1")


def settings(checkpoint: str) -> dict[str, Any]:
    return {"checkpoint": checkpoint, "steps": (4, 25), "start": 2, "levels": None, "device": "cpu"}


def pixels(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    for path in folder.iterdir():
        with Image.open(path) as image:
            found[path.name] = np.asarray(image)
    return found


def assert_same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value)


@pytest.fixture
def small(tmp_path: Path, photo: Photo) -> Path:
    """A folder of five pictures of two sizes, and a text."""
    folder = tmp_path / "small"
    folder.mkdir()
    for i in range(5):
        Image.fromarray(photo(8, 8 + i % 2, seed=i)).save(folder / f"{i}.png")
    (folder / "text.png").write_text("hello", encoding="utf-8")
    return folder


def test_the_work_of_a_worker_is_that_of_the_command(
    checkpoint: str, small: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without Ray: what is spread can be pickled, and a chunk that a lost worker had half done gives the same again."""
    upscaler = make_upscaler(**settings(checkpoint))
    told = {}
    for name in ("here", "there", "again"):
        options = UpscaleOptions((str(small),), str(tmp_path / name), samples=2, json=True)
        work = make_worker(settings(checkpoint), pickle.loads(pickle.dumps(options)))

        def spread(parts: Sequence[list[Job]], work: Any = work, twice: bool = name == "again") -> Any:
            for part in pickle.loads(pickle.dumps(parts)):
                if twice:
                    work(part[:1])
                yield pickle.loads(pickle.dumps(work(part)))

        assert not upscale_files(upscaler, options, None if name == "here" else spread)
        lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        told[name] = {
            (line.get("source"), line.get("target", "")[-8:]): line["status"]
            for line in lines[:-1]
            if line.get("target")
        }
        assert (lines[-1]["done"], lines[-1]["failed"]) == (10, 1)
    assert told["here"] == told["there"] == told["again"]
    for name in ("there", "again"):
        assert_same(pixels(tmp_path / name), pixels(tmp_path / "here"))


def test_few_jobs_make_many_chunks(checkpoint: str, small: Path, tmp_path: Path) -> None:
    jobs = [Job(small / "0.png", [(tmp_path / f"{i}.png", i)]) for i in range(100)]
    assert [len(chunk) for chunk in chunks(jobs[:10], 8)] == [1] * 10
    assert [len(chunk) for chunk in chunks(jobs, 8)] == [3] * 33 + [1]
    assert [len(chunk) for chunk in chunks(jobs * 9, 8)] == [8] * 112 + [4]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--workers=2"], "--workers is for --ray"),
        (
            ["--ray", "photos/"],
            "--ray takes the address of a cluster, auto, HOST:PORT or ray://HOST:PORT, got 'photos/'",
        ),
        (["--ray", "", "--workers=0"], "0 is not in the range"),
    ],
)
def test_bad_options(options: list[str], message: str, checkpoint: str, small: Path, tmp_path: Path) -> None:
    pytest.importorskip("ray")
    command = ["upscale", str(small), "-o", str(tmp_path / "out"), f"--checkpoint={checkpoint}", *options]
    result = CliRunner().invoke(main, command)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


def test_without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ConfigError, match=r"the package ray is needed .*; pip install 'skipdiff\[ray\]'"):
        Cluster()


def workers_of(process: psutil.Process) -> list[psutil.Process]:
    """The processes of a pool's workers that are below another one."""
    found = []
    for child in process.children(recursive=True):
        try:
            if "ray::_Worker" in " ".join(child.cmdline()):
                found.append(child)
        except psutil.Error:  # it has ended meanwhile
            continue
    return found


@pytest.mark.slow
def test_a_worker_is_killed(checkpoint: str, tmp_path: Path, photo: Photo) -> None:
    """One of two is killed after the first result: the results are those of a run without a cluster.

    Relative paths begin at the working folder of the command.

    Most of the time goes into the start of Ray's processes; --workers=1 spares one of three starts of a worker.
    """
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'skipdiff[ray]'")
    (tmp_path / "in").mkdir()
    for i in range(8):
        Image.fromarray(photo(32, 32, seed=i)).save(tmp_path / "in" / f"{i}.png")
    command = ["upscale", str(tmp_path / "in"), f"--checkpoint={checkpoint}", *SLOW]
    expected = CliRunner().invoke(main, [*command, f"--out={tmp_path / 'here'}"])
    assert expected.exit_code == 0, expected.output
    there = [
        sys.executable,
        "-m",
        "agents.cli",
        *command,
        "--out=there",
        "--json",
        "--workers=2",
        "--ray",
    ]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    with subprocess.Popen(there, stdout=subprocess.PIPE, text=True, cwd=tmp_path, env=environment) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline()]
        pool = workers_of(psutil.Process(process.pid))
        pool[0].send_signal(signal.SIGKILL)
        lines += process.stdout.readlines()
    assert process.returncode == 0
    events = [json.loads(line) for line in lines]
    assert events.pop()["done"] == 8
    assert sorted(Path(event["source"]).name for event in events) == sorted(f"{i}.png" for i in range(8))
    assert all(event["status"] == "done" for event in events)
    assert_same(pixels(tmp_path / "there"), pixels(tmp_path / "here"))
