"""`skipdiff train-agent`, `enjoy`, `plot`, and agents in `evaluate` and `upscale`."""

import json
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from agents.agent import load_agent
from agents.cli import main
from agents.cli.enjoy import enjoy
from agents.training.learning_curve import read_curve
from ddpm.nets.denoiser import Denoiser
from skipdiff_env.config import TaskConfig
from skipdiff_env.metrics import make_metric
from skipdiff_env.plan import Plan
from skipdiff_env.rules import quality
from skipdiff_env.task import Task
from tests.untrained import untrained

STEPS = "--steps=20,5"


def small_task(checkpoint: str, images: Path, **changes: Any) -> Task:
    """A task of S, N = 20, 5."""
    return Task(TaskConfig.of({"checkpoint": checkpoint, "images": str(images), "steps": (20, 5), **changes}))


def test_a_run_finds_its_files_from_any_folder(
    checkpoint: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Paths are kept as absolute ones."""
    kept: list[Any] = []
    monkeypatch.setattr("agents.training.sb3.train_agent", lambda config, *_: kept.append(config))
    monkeypatch.chdir(photos.parent)
    net = os.path.relpath(checkpoint)
    run(
        "train-agent",
        "--env=SkipDiff-v0",
        "--out=out",
        f"--images={photos.name}",
        f"--checkpoint={net}",
        f"--eval-images={photos.name}/0.png",
    )
    assert kept[0].env_kwargs["images"] == [str(photos)]
    assert kept[0].env_kwargs["checkpoint"] == checkpoint
    assert kept[0].eval_images == [str(photos / "0.png")]


def run(*arguments: object, code: int = 0) -> Result:
    """Runs a command; its output (stdout and stderr) is in `output`."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


@pytest.fixture
def pictures(checkpoint: str, photos: Path) -> list[str]:
    return [f"--checkpoint={checkpoint}", f"--images={photos}", "--image-size=32", "--metric=psnr"]


@pytest.fixture
def episodes(pictures: list[str]) -> list[str]:
    return [*pictures, STEPS]


@pytest.fixture
def agent_folder(tmp_path: Path) -> Path:
    """An untrained agent for 32-px latents and N = 5."""
    untrained(Plan(20, 5), training={"env": {"metric": "psnr"}}).save(tmp_path / "agent")
    return tmp_path / "agent"


SPN = "policy_kwargs={features_extractor_kwargs: {hidden_size: 8, norm: group}}"
SMALL = ("--env-steps=32", "--eval-every=4", *("-p", "n_envs=2", "-p", "n_steps=4", "-p", "batch_size=8", "-p", SPN))


def test_train_resume_enjoy_plot(episodes: list[str], pictures: list[str], tmp_path: Path) -> None:
    folder = tmp_path / "run"
    result = run("train-agent", "--env=SkipDiff-v0", f"--out={folder}", *episodes, *SMALL, "--noise-seeds=2")
    assert f"agent: {folder / 'best'}" in result.output
    config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
    assert config["env_kwargs"]["noise_seeds"] == 2
    assert config["hyperparameters"]["policy_kwargs"]["features_extractor_kwargs"]["norm"] == "group"
    assert json.loads((folder / "versions.json").read_text(encoding="utf-8"))["stable-baselines3"]
    run("train-agent", f"--out={folder}", "--resume", "--env-steps=48")
    assert read_curve(folder / "evaluations.csv")[-1].env_steps == 48

    films = {}
    for name in ("episode.png", "episode.gif", "episode.webp"):
        result = run("enjoy", f"--agent={folder}", *pictures, "-o", tmp_path / name, "--image=1", "--noise-seed=3")
        films[name] = result.output.replace(name, "")
    assert len(set(films.values())) == 1
    assert films["episode.png"].count("probability 0.") == 4
    for name in ("episode.gif", "episode.webp"):
        with Image.open(tmp_path / name) as film:
            assert getattr(film, "n_frames", 1) > 1
    with Image.open(tmp_path / "episode.png") as image:
        assert image.width > 4 * 128

    run("plot", f"--run={folder}", f"--run={folder}", f"--out={tmp_path / 'figures'}")
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["learning_curves.webp"]


def test_trains_on_a_split_and_evaluates_on_other_pictures(checkpoint: str, photos: Path, tmp_path: Path) -> None:
    settings = (f"--checkpoint={checkpoint}", STEPS, "--image-size=128", "--metric=psnr", "--split=train")
    evaluation = (f"--eval-images={photos / '1.png'}", "--no-oracle")
    run("train-agent", "--env=SkipDiff-v0", f"--out={tmp_path / 'run'}", *settings, *evaluation, *SMALL)
    config = json.loads((tmp_path / "run" / "config.json").read_text(encoding="utf-8"))
    assert (config["env_kwargs"]["split"], config["eval_images"]) == ("train", [str(photos / "1.png")])


def test_enjoy_takes_the_arguments_of_an_environment(checkpoint: str, photos: Path, tmp_path: Path) -> None:
    plan = Plan(1, 20, fine_sampler="ddim", skip_mode="jump")
    untrained(plan, observation="dict", side=64).save(tmp_path / "agent")
    options = (f"--checkpoint={checkpoint}", f"--images={photos}", f"--agent={tmp_path / 'agent'}")
    result = run("enjoy", "--env=SkipDiffJump-v0", *options, "-o", tmp_path / "x.png")
    reward, lpips = re.search(r"reward (\S+), lpips (\S+)$", result.output, re.MULTILINE).groups()  # type: ignore[union-attr]
    forwards = int(re.search(r"(\d+) forwards", result.output)[1])  # type: ignore[index]
    assert float(reward) == pytest.approx(-float(lpips) - 0.002 * forwards, abs=2e-4)
    assert "unknown environment" in run("enjoy", "--env=SkipDiff-v9", *options, code=2).output
    refused = run("enjoy", "--agent=none", "-o", tmp_path / "0.2", code=2)  # before the agent is even looked for
    assert "expected a file ending in .png, .gif, .webp, got" in refused.output


def test_enjoy_says_what_happened(pictures: list[str], agent_folder: Path, checkpoint: str, photos: Path) -> None:
    result = run("enjoy", f"--agent={agent_folder}", *pictures, "-o", agent_folder.parent / "x.png", "--noise-seed=1")
    lines = result.output.splitlines()
    task = small_task(checkpoint, photos, image_size=32, metric="psnr")
    start = int(lines[4].split()[1].strip(","))
    taken = [line.split()[3] for line in lines[:4]]
    assert start == (
        1 if taken[-1] == "SKIP" else 5 - max((i + 1 for i, a in enumerate(taken) if a == "SKIP"), default=0)
    )
    reward = task.schedule_outcomes([0], [1]).rewards()[0, 0, start - 1]
    assert f"reward {reward:.4f}" in lines[4]


def test_last_frame_alone(
    agent_folder: Path, checkpoint: str, photos: Path, count_forwards: Callable[[Denoiser], list[int]]
) -> None:
    """It is that of the film, and costs the coarse estimate without a forward for each frame between."""
    agent, played, forwards = load_agent(agent_folder), [], []
    for film in (True, False):
        task = small_task(checkpoint, photos, image_size=32, metric="psnr", cache_mb=0)
        sizes = count_forwards(task.unet)
        played.append(enjoy(agent, task, 0, 1, film))
        forwards.append(len(sizes))
    assert len(played[0].frames) == 5
    (last,) = played[1].frames
    np.testing.assert_array_equal(last, played[0].frames[-1])
    assert played[1].episode.actions == played[0].episode.actions
    assert forwards[1] == played[1].episode.refinement.nfe + 1
    assert forwards[0] == forwards[1] + 3  # the first frame shows the coarse estimate again, the last the result


def test_rewards_are_those_of_the_environment(checkpoint: str, photos: Path) -> None:
    task = small_task(checkpoint, photos, image_size=32, metric="lpips")
    outcomes = task.schedule_outcomes([0], [0])
    value = outcomes.metrics["lpips"][0, 0, 2]
    assert outcomes.rewards()[0, 0, 2] == quality(value, make_metric("lpips").lower_better) == 1 / value
    assert quality(float("nan"), True) == quality(float("nan"), False) == 0
    assert quality(0.0, True) == 1000
    assert quality(31.5, False) == 31.5


def test_upscale_with_an_agent(checkpoint: str, photos: Path, agent_folder: Path, tmp_path: Path) -> None:
    """The agent decides; a checkpoint with an agent uses it by itself; --start overrides it."""
    small = tmp_path / "small.png"
    with Image.open(photos / "0.png") as image:
        image.resize((12, 10)).save(small)

    def upscale(name: str, *arguments: object, checkpoint: object = checkpoint) -> tuple[str, bytes]:
        result = run("upscale", small, "-o", tmp_path / name, f"--checkpoint={checkpoint}", *arguments)
        return result.output, (tmp_path / name).read_bytes()

    said, pixels = upscale("a.png", f"--agent={agent_folder}")
    nfe = float(said.split("1 picture, ")[1].split()[0])
    assert 20 <= nfe <= 24
    with_agent = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, with_agent)
    shutil.copytree(agent_folder, with_agent / "agent")
    assert upscale("b.png", checkpoint=with_agent)[1] == pixels
    fixed = upscale("c.png", "--start=3", STEPS)
    assert upscale("d.png", "--start=3", STEPS, checkpoint=with_agent)[1] == fixed[1]
    assert "22 forwards" in fixed[0]
    plain = upscale("e.png", "--steps=10,10")
    assert upscale("f.png", "--steps=10,10", checkpoint=with_agent)[1] == plain[1]  # the agent is for other steps
    loaded = load_agent(with_agent)
    assert loaded.config == load_agent(agent_folder).config


def test_an_agent_keeps_its_coarse_sampler(
    episodes: list[str], pictures: list[str], checkpoint: str, photos: Path, tmp_path: Path
) -> None:
    """Every command takes the sampler that the agent was trained with, unless told otherwise."""
    folder = tmp_path / "run"
    run("train-agent", "--env=SkipDiff-v0", f"--out={folder}", *episodes, *SMALL, "--coarse-sampler=ddim")
    assert load_agent(folder).config.plan == Plan(20, 5, "ddim")
    small = tmp_path / "small.png"
    with Image.open(photos / "0.png") as image:
        image.resize((12, 10)).save(small)
    with_agent = tmp_path / "checkpoint"
    shutil.copytree(checkpoint, with_agent)
    shutil.copytree(folder / "best", with_agent / "agent")

    run("enjoy", f"--agent={folder}", *pictures, "-o", tmp_path / "x.png")

    def evaluate(*arguments: str, code: int = 0) -> str:
        out = tmp_path / "table"
        said = run(
            "evaluate", f"--images={photos}", f"--checkpoint={checkpoint}", STEPS, "--image-size=96", "--metrics=psnr",
            "--limit=1", f"--agent={folder}", f"--out={out}", "--pictures=0", *arguments, code=code,
        ).output  # fmt: skip
        if code:
            return said
        table = json.loads((out / "table.json").read_text(encoding="utf-8"))
        return str({entry["method"]: entry["psnr"] for entry in table})

    def upscale(*arguments: str) -> bytes:
        run("upscale", small, "-o", tmp_path / "y.png", f"--checkpoint={with_agent}", "--overwrite", *arguments)
        return (tmp_path / "y.png").read_bytes()

    assert upscale() == upscale("--coarse-sampler=ddim") != upscale("--coarse-sampler=ddpm")
    assert evaluate() == evaluate("--coarse-sampler=ddim")
    refused = " ".join(evaluate("--coarse-sampler=ddpm", code=2).split())
    assert "trained for episodes of S,N = 20,5, coarse sampler ddim" in refused
    # with another sampler the checkpoint's own agent is left out, as with other steps
    assert upscale("--coarse-sampler=ddpm") == upscale("--coarse-sampler=ddpm", "--start=5")


def test_an_agent_keeps_its_first_decision(
    episodes: list[str], pictures: list[str], checkpoint: str, photos: Path, tmp_path: Path
) -> None:
    """An agent that decides from t = 8 on, over a coarse latent of N = 5: trained, loaded, played and compared."""
    folder = tmp_path / "run"
    run("train-agent", "--env=SkipDiff-v0", f"--out={folder}", *episodes, *SMALL, "--first-step=8")
    agent = load_agent(folder)
    assert agent.config.plan == Plan(20, 5, first_step=8)
    assert agent.policy.observation_space.shape == (21, 32, 32)
    said = run("enjoy", f"--agent={folder}", *pictures, "-o", tmp_path / "x.png").output
    assert said.count("probability 0.") == 7
    out = tmp_path / "table"
    run(
        "evaluate", f"--images={photos}", f"--checkpoint={checkpoint}", "--image-size=96", "--metrics=psnr",
        "--limit=1", f"--agent={folder}", f"--out={out}", "--pictures=0",
    )  # fmt: skip
    methods = {entry["method"] for entry in json.loads((out / "table.json").read_text(encoding="utf-8"))}
    assert "agent run" in methods
    assert {f"CSA(20) + FSR({start})" for start in range(1, 9)} < methods
    with Image.open(photos / "0.png") as image:
        image.resize((12, 10)).save(tmp_path / "small.png")

    def upscale(*arguments: str, code: int = 0) -> str:
        small, out = tmp_path / "small.png", tmp_path / "y.png"
        said = run("upscale", small, "-o", out, f"--checkpoint={checkpoint}", "--overwrite", *arguments, code=code)
        return " ".join(said.output.split())

    def forwards(said: str) -> int:
        return int(said.split(" forwards each")[0].split()[-1])

    assert 19 + 1 <= forwards(upscale(f"--agent={folder}")) <= 19 + 8
    assert forwards(upscale(STEPS, "--start=8", "--first-step=8")) == 19 + 8
    assert "start must lie in 1 … 8" in upscale(STEPS, "--start=9", "--first-step=8", code=2)
    refused_too = upscale(f"--agent={folder}", "--first-step=6", code=2)
    assert "decisions from step 8 on, got" in refused_too


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--coarse-sampler=pndm",), "--coarse-sampler"),
        (("--algo=sarsa",), "unknown algorithm 'sarsa'"),
        (("--table=photo-x4",), "--table is for the environments SkipDiffBanditTable-v0"),
        (("--env=SkipDiff-v9",), "unknown environment 'SkipDiff-v9'; known are SkipDiff-v0"),
        (("--algo=supervised",), "unknown algorithm 'supervised'; known are ppo, a2c"),
        (("-p", "gama=1"), "no hyperparameter gama; known are"),
        (("-p", "gamma"), "expected key=value"),
        (("--metric=nique",), "unknown metric 'nique'"),
        (("--steps=3,7",), "steps S,N must multiply"),
        (("--images=nowhere",), f"no such file or folder: {Path('nowhere').absolute()}"),
        (("--image-size=256",), "smaller than image_size 256"),
        (("--eval-images=nowhere",), f"no such file or folder: {Path('nowhere').absolute()}"),
        (("--split=test",), "give images or split, not both"),
        (("--checkpoint=nothing",), "unknown checkpoint 'nothing'"),
        (("--device=tpu9",), "no such device"),
        (("--resume",), "nothing to resume"),
        (("--env-steps=0",), "--env-steps"),
    ],
)
def test_bad_training(episodes: list[str], tmp_path: Path, arguments: tuple[str, ...], message: str) -> None:
    result = run("train-agent", "--env=SkipDiff-v0", f"--out={tmp_path / 'run'}", *episodes, *SMALL, *arguments, code=2)
    assert message in " ".join(result.output.split())
    assert "Traceback" not in result.output
    assert not (tmp_path / "run" / "best").exists()


def test_other_bad_input(
    pictures: list[str], agent_folder: Path, checkpoint: str, photos: Path, tmp_path: Path
) -> None:
    def refused(message: str, *arguments: object) -> None:
        assert message in " ".join(run(*arguments, code=2).output.split())

    enjoy = ("enjoy", f"--agent={agent_folder}", *pictures)
    refused("expected a file ending in .png, .gif, .webp", *enjoy, "-o", tmp_path / "episode.webm")
    refused("image must be an index from 0 to 3", *enjoy, "--image=9")
    refused("no agent in", "enjoy", f"--agent={tmp_path / 'none'}", *pictures)
    (tmp_path / "a.zip").write_bytes(b"x")
    refused("a.zip is a file, expected the folder of an agent", "enjoy", f"--agent={tmp_path / 'a.zip'}", *pictures)
    evaluate = ("evaluate", f"--images={photos}", f"--checkpoint={checkpoint}", "--metrics=psnr", "--limit=1")
    refused("trained for episodes of S,N = 20,5", *evaluate, f"--agent={agent_folder}", "--steps=10,10")
    refused("the reward's metric niqe must be one of the metrics psnr", *evaluate, "--reward=niqe")
    upscale = ("upscale", photos / "0.png", "-o", tmp_path / "x.png", f"--checkpoint={checkpoint}")
    refused("--agent, --detail, --start and --levels all", *upscale, f"--agent={agent_folder}", "--start=3")
    refused("trained for episodes of S,N = 20,5", *upscale, f"--agent={agent_folder}", "--steps=10,10")
    refused("nothing to draw", "plot", f"--out={tmp_path}")
    refused("table.json", "plot", f"--evaluation={tmp_path}", f"--out={tmp_path}")
    refused("no such file", "plot", f"--run={tmp_path}", f"--out={tmp_path}")
