"""kill -9 at random moments of trainings, `upscale`, `tabulate` and `evaluate`: does each go on, is all whole?

python -m benchmarks.kills [--moments 50] [--seed 0] [--only upscale,tabulate]

Each command runs once without interruption. Then it is killed again and again at a moment drawn from the time that this
took, and run anew as its user would. Every file that stands under its final name must be whole after the kill, and what
the second run leaves must equal what the first one left.
"""

import csv
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image
from safetensors.numpy import load_file

import skipdiff_env.tabulate
from agents.cli import main as skipdiff
from agents.cli.command import Command
from agents.study.tables import markdown
from agents.training.learning_curve import read_curve
from benchmarks import tiny
from benchmarks.fuzz import half_written
from skipdiff_env.metrics import make_metric

# What each imports, so that it is there before the clock runs.
COMMANDS = {
    "train-ddpm": "ddpm.training.unet",
    "train-agent": "agents.training.sb3",
    "upscale": "agents.upscaling.run",
    "tabulate": "skipdiff_env.tabulate",
    "evaluate": "agents.study.intervals",
}


@dataclass(frozen=True)
class Work:
    """A command that is killed.

    Attributes:
        first: its arguments, without `--out`.
        again: what it is run with after a kill, where `begun` is there.
        begun: the file in its folder that says that there is something to go on with; "" for a command that is simply
            run again.
        load: what it leaves, as arrays that two runs are compared by.
        rounding: by how much they may differ: what a run has remembered is computed anew in other batches.
    """

    first: list[str]
    again: list[str]
    begun: str
    load: Callable[[Path], dict[str, np.ndarray]]
    rounding: float = 0.0


@dataclass
class Tally:
    """What became of the kills of one command.

    Attributes:
        seconds: wall time without interruption.
        kills: how many met a running command.
        faults: what was wrong, one line each.
        half: half-written files under a final name.
    """

    seconds: float = 0.0
    kills: int = 0
    faults: list[str] = field(default_factory=list)
    half: list[str] = field(default_factory=list)


def _weights(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / "checkpoint" / "model.safetensors")


def _agents(folder: Path) -> dict[str, np.ndarray]:
    """The last agent and the best one, and the learning curve but for its times."""
    curve = [
        [point.env_steps, point.reward, point.start, point.nfe] for point in read_curve(folder / "evaluations.csv")
    ]
    found = {"curve": np.array(curve)}
    for name in ("agent", "best"):
        found |= {f"{name} {k}": v for k, v in load_file(folder / name / "model.safetensors").items()}
    return found


def _pictures(folder: Path) -> dict[str, np.ndarray]:
    found = {}
    for path in folder.rglob("*.png"):
        if not path.name.startswith("."):
            with Image.open(path) as image:
                found[str(path.relative_to(folder))] = np.asarray(image)
    return found


def _table(folder: Path) -> dict[str, np.ndarray]:
    return load_file(folder / skipdiff_env.tabulate.ARRAYS)


def _rows(folder: Path) -> dict[str, np.ndarray]:
    with (folder / "rows.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    return {f"{row['method']} {row['image']}": np.array([float(row["psnr"]), float(row["nfe"])]) for row in rows}


def works(folder: Path) -> dict[str, Work]:
    """The commands, on material that is made in `folder`."""
    net = f"--checkpoint={tiny.net(folder / 'net')}"
    photos = f"--images={tiny.photographs(folder / 'photos', 4, 32)}"
    many = tiny.photographs(folder / "many", 24, 8)
    training = ["train-ddpm", photos, *tiny.TRAIN_DDPM, "--iterations=12", "--width=16"]
    agent = ["train-agent", net, photos, *tiny.TRAIN_AGENT, "--env-steps=48"]
    enlarging = ["upscale", str(many), net, "--batch-size=2"]
    table = ["tabulate", net, f"--images={tiny.photographs(folder / 'some', 12, 32)}", *tiny.TABULATE]
    large = tiny.photographs(folder / "large", 4, 96)
    evaluation = ["evaluate", net, f"--images={large}", *tiny.EVALUATE, "--batch-size=1"]
    return {
        "train-ddpm": Work(training, ["train-ddpm", "--resume"], "config.json", _weights),
        "train-agent": Work(agent, ["train-agent", "--resume"], "config.json", _agents, 1e-6),
        "upscale": Work(enlarging, [*enlarging, "--skip-existing"], "", _pictures),
        "tabulate": Work(table, table, "", _table),
        "evaluate": Work(evaluation, evaluation, "", _rows),
    }


def start(arguments: Sequence[str], log: Path) -> int:
    """Runs a command in a process of its own, a copy of this one, which has all modules loaded; gives its number."""
    process = os.fork()
    if process:
        return process
    try:
        os.setpgid(0, 0)
        with log.open("w", encoding="utf-8") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        skipdiff_env.tabulate.SECONDS = 0  # so that an unfinished table is on disk
        skipdiff(list(arguments), standalone_mode=True)
    except SystemExit as error:
        sys.stdout.flush()
        os._exit(error.code if isinstance(error.code, int) else 1)
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(1)


def finish(process: int) -> int:
    """Waits for a process; gives its exit code, negative for the signal that ended it."""
    return os.waitstatus_to_exitcode(os.waitpid(process, 0)[1])


def whole(work: Work, out: Path, reference: dict[str, np.ndarray] | None) -> list[str]:
    """What is wrong with the results of a run that has ended well."""
    try:
        found = work.load(out)
    except Exception as error:  # whatever makes a result unreadable
        return [f"its result cannot be read ({type(error).__name__}: {error})"]
    if reference is None:
        return []
    if found.keys() != reference.keys():
        return [f"other results: {sorted(found.keys() ^ reference.keys())[:3]}"]
    return [
        f"{name} differs by up to {np.abs(value.astype(float) - reference[name].astype(float)).max():.3g}"
        for name, value in found.items()
        if not np.allclose(value, reference[name], rtol=0, atol=work.rounding, equal_nan=True)
    ][:3]


def kill_once(work: Work, out: Path, seconds: float, reference: dict[str, np.ndarray], tally: Tally) -> None:
    """Kills the command after some seconds and runs it again."""
    log = out.with_suffix(".log")
    process = start([*work.first, f"--out={out}"], log)
    time.sleep(seconds)
    os.kill(process, signal.SIGKILL)
    if finish(process) == -signal.SIGKILL:
        tally.kills += 1
    files = [path for path in out.rglob("*") if path.is_file()]
    shown = [p for p in files if not any(part.startswith(".") or part.endswith(".tmp") for part in p.parts[-3:])]
    wrong = {path.relative_to(out): half_written(path) for path in shown}
    tally.half += [f"after {seconds:.2f} s: {path}: {text}" for path, text in wrong.items() if text]
    arguments = work.again if not work.begun or (out / work.begun).exists() else work.first
    code = finish(start([*arguments, f"--out={out}"], log))
    faults = whole(work, out, reference)
    if code:
        said = log.read_text(encoding="utf-8").strip().splitlines()
        faults = [f"does not go on, exit code {code}: {' '.join(said[-1:])}"]
    tally.faults += [f"after {seconds:.2f} s: {fault}" for fault in faults]


def series(name: str, work: Work, folder: Path, moments: int, seed: int) -> Tally:
    """Kills one command at so many moments."""
    tally, rng = Tally(), np.random.default_rng([seed, list(COMMANDS).index(name)])
    out = folder / name
    for _ in range(2):  # the first run is slower
        shutil.rmtree(out, ignore_errors=True)
        began = time.perf_counter()
        code = finish(start([*work.first, f"--out={out}"], out.with_suffix(".log")))
        tally.seconds = time.perf_counter() - began
        if code:
            text = out.with_suffix(".log").read_text(encoding="utf-8")
            raise click.ClickException(f"{name} does not even run without a kill: {text}")
    reference = work.load(out)
    for _ in range(moments):
        shutil.rmtree(out)
        kill_once(work, out, rng.uniform(0, tally.seconds), reference, tally)
    return tally


@click.command(cls=Command, context_settings={"show_default": True})
@click.option("--moments", default=50, help="In all, shared by the commands.")
@click.option("--seed", default=0)
@click.option("--only", default=",".join(COMMANDS), help="Commands, separated by commas.")
def main(moments: int, seed: int, only: str) -> None:
    """Prints how many kills each command went on from."""
    torch.set_num_threads(1)
    wanted = only.split(",")
    unknown = [name for name in wanted if name not in COMMANDS]
    if unknown:
        raise click.BadParameter(
            f"unknown command {', '.join(unknown)}; known are {', '.join(COMMANDS)}", param_hint="--only"
        )
    for name in wanted:
        import_module(COMMANDS[name])
    if {"tabulate", "train-agent", "evaluate"} & set(wanted):
        make_metric("psnr"), make_metric("colour")
    rows, bad = [], False
    with tempfile.TemporaryDirectory() as temporary:
        known = works(Path(temporary))
        for place, name in enumerate(wanted):
            count = moments * (place + 1) // len(wanted) - moments * place // len(wanted)
            tally = series(name, known[name], Path(temporary), count, seed)
            for line in (*tally.faults, *tally.half):
                click.echo(f"{name} {line}", err=True)
            rows.append((name, round(tally.seconds, 1), count, tally.kills, len(tally.faults), len(tally.half)))
            bad |= bool(tally.faults or tally.half)
    headings = ("command", "s without a kill", "moments", "met it running", "went on wrongly", "half-written files")
    click.echo(markdown(headings, rows))
    if bad:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
