"""The wheel in a virtual environment without the repository, and the source archive."""

import os
import shutil
import subprocess
import sys
import sysconfig
import tarfile
import venv
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
PACKAGES = ("agents", "checkpoints", "ddpm", "skipdiff_env")


@pytest.fixture(scope="module")
def sources(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of what git tracks, since builds leave files beside their sources."""
    listed = subprocess.run(
        ["git", "ls-files", "-z", "--cached", "--others", "--exclude-standard"], cwd=ROOT, capture_output=True
    )
    if listed.returncode:
        pytest.skip("this is no clone of the repository")
    folder = tmp_path_factory.mktemp("sources")
    for name in listed.stdout.decode().split("\0"):
        if name and (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(ROOT / name, folder / name)
    return folder


def build(kind: str, sources: Path, out: Path) -> Path:
    """Builds the wheel or the sdist."""
    code = f"import sys; from setuptools.build_meta import build_{kind} as build; build(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(out)], cwd=sources, check=True, capture_output=True)
    (built,) = out.iterdir()
    return built


def files_of(folder: Path) -> set[str]:
    """All files below a folder but those of builds."""
    found = (path.relative_to(folder) for path in folder.rglob("*") if path.is_file())
    return {str(path) for path in found if path.parts[0] != "build" and "egg-info" not in path.parts[0]}


@pytest.mark.slow
def test_wheel_works_without_the_repository(sources: Path, tmp_path: Path) -> None:
    wheel = build("wheel", sources, tmp_path / "dist")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    wanted = {name for name in files_of(sources) if name.partition("/")[0] in PACKAGES and not name.endswith(".pyc")}
    assert names == wanted
    assert {f"{package}/py.typed" for package in PACKAGES if package != "checkpoints"} <= names

    venv.create(tmp_path / "venv", symlinks=True)
    scripts = tmp_path / "venv" / ("Scripts" if os.name == "nt" else "bin")
    python = str(scripts / "python")
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", str(wheel)],
        check=True, capture_output=True,
    )  # fmt: skip
    ask = "import sysconfig; print(sysconfig.get_path('purelib'))"
    site = Path(subprocess.run([python, "-c", ask], check=True, capture_output=True, text=True).stdout.strip())
    # the libraries, but not the editable installation of this project: .pth files that are read from there do not count
    (site / "libraries.pth").write_text(sysconfig.get_path("purelib"), encoding="utf-8")
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(tmp_path / "small.png")
    code = """
import gymnasium, agents.agent, ddpm, skipdiff_env
from ddpm.checkpoints import load_unet, shipped_checkpoints
env = gymnasium.make("SkipDiffTable-v0")
env.reset(seed=0)
for name, folder in shipped_checkpoints().items():
    load_unet(name)
    for agent in folder.glob("agent*"):
        agents.agent.load_agent(f"{name}/{agent.name}")
agents.agent.load_agent("natural-x4")
print(ddpm.__file__)
"""
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
    result = subprocess.run(
        [python, "-c", code], cwd=tmp_path, env=environment, check=True, capture_output=True, text=True
    )
    assert Path(result.stdout.strip()).is_relative_to(site)
    command = [str(scripts / "skipdiff"), "upscale", "small.png", "-o", "large.png", "--levels", "2"]
    subprocess.run(command, cwd=tmp_path, env=environment, check=True, capture_output=True)
    with Image.open(tmp_path / "large.png") as image:
        assert image.size == (32, 32)


def test_source_archive_is_complete(sources: Path, tmp_path: Path) -> None:
    with tarfile.open(build("sdist", sources, tmp_path / "dist")) as archive:
        names = {name.partition("/")[2] for name in archive.getnames()}
    assert files_of(sources) - names == set()
