"""Mutated pictures, checkpoints, configurations and command lines, each given to `skipdiff` in this process.

python -m benchmarks.fuzz [--cases 1000] [--first 0] [--seed 0] [--only 17] [--messages]

A case is good if the command ends with 0, or with 1 or 2 and one clear line, and leaves no half-written file. What
takes longer than the limit is stopped as Ctrl-C stops it, and must leave nothing half-written either.
"""

import json
import os
import resource
import signal
import sys
import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from click.testing import CliRunner
from huggingface_hub import constants
from PIL import Image
from safetensors.numpy import load_file

from agents.cli import main as skipdiff
from agents.cli.command import Command
from agents.study.tables import markdown
from benchmarks.cases import KINDS, Stock
from ddpm.pictures.formats import OUTPUTS
from ddpm.util.torchvision_ops import ensure_torchvision

# Pixels that a picture may claim, so that no case takes long; it has to be refused as a decompression bomb.
MAX_PIXELS = 2**14
# Address space of this process, in bytes: whatever wants more fails as on a small machine.
MEMORY = 12 * 2**30
LATE = (
    "accelerate", "agents.benchmark", "agents.cli.demo", "agents.cli.enjoy", "agents.study", "agents.study.intervals",
    "agents.training.bandit", "agents.training.sb3", "diffusers",
    "ddpm.training.predictor", "ddpm.nets.sr3", "onnx", "onnxruntime", "openvino", "pyiqa", "sb3_contrib", "spandrel",
    "tensorboard", "tifffile", "torch._dynamo",
)  # fmt: skip
# What a refused command may print beside its error: how it is used, notes, and what failed once more.
ALLOWED = ("Usage: ", "Try ", "Error: ", "Note: ", "  ", "DISTS is left out")


@dataclass
class Case:
    """What came of a case.

    Attributes:
        number: its number; with the seed it fixes the case.
        kind: what was mutated.
        arguments: the command line.
        code: exit code.
        seconds: wall time.
        stopped: whether it took too long and was stopped.
        message: the line that refused it.
        faults: what is wrong, one line each.
        half: half-written files.
    """

    number: int
    kind: str
    arguments: list[str] = field(default_factory=list)
    code: int = 0
    seconds: float = 0.0
    stopped: bool = False
    message: str = ""
    faults: list[str] = field(default_factory=list)
    half: list[str] = field(default_factory=list)


# --- running them ---


@contextmanager
def _time_limit(seconds: float, case: Case) -> Iterator[None]:
    """Stops the block as Ctrl-C does."""

    def stop(number: int, frame: object) -> None:
        case.stopped = True
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds, 1.0)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def play(number: int, seed: int, given: Stock, limit: float, kind: str | None = None) -> Case:
    """Makes a case in its own folder, runs it, and looks at what it left."""
    rng = np.random.default_rng([seed, number])
    kind = kind or str(rng.choice(list(KINDS), p=[share for share, _ in KINDS.values()]))
    case = Case(number, kind)
    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        case.arguments = KINDS[kind][1](rng, given)
        before = _files(Path())
        began = time.perf_counter()
        with _time_limit(limit, case), _small_pictures(kind == "pictures"):
            result = CliRunner().invoke(skipdiff, case.arguments)
        case.seconds, case.code = time.perf_counter() - began, result.exit_code
        _judge(case, result.exception, result.stderr)
        changed = [path for path, stamp in _files(Path()).items() if before.get(path) != stamp]
        case.half = [f"{path}: {wrong}" for path in changed if (wrong := half_written(path))]
    if "accelerate" in sys.modules:  # which keeps the precision of the first training of a process
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)
    return case


def _judge(case: Case, error: BaseException | None, printed: str) -> None:
    """Writes down what is wrong with the end of a command."""
    if error is not None and not isinstance(error, SystemExit):
        case.faults.append(f"{type(error).__name__}: {' '.join(str(error).split())[:200]}")
        return
    if "Traceback" in printed:
        case.faults.append("a traceback is printed")
    if case.code not in (0, 1, 2):
        case.faults.append(f"exit code {case.code}")
    if case.code == 0 or case.stopped:
        return
    lines = [line for line in printed.splitlines() if line.strip()]
    refusals = [line for line in lines if line.startswith("Error: ") and len(line) > len("Error: ") + 3]
    case.message = refusals[-1] if refusals else ""
    if not refusals:
        case.faults.append(f"exit code {case.code} without an error: {lines[-1:]}")
    odd = [line for line in lines if not line.startswith(ALLOWED) and not line.endswith(" failed:")]
    case.faults += [f"a line that is no error: {line[:200]}" for line in odd]


def _files(folder: Path) -> dict[Path, tuple[int, int]]:
    """All files below a folder, with what tells whether they have changed."""
    found = {}
    for place, _, names in os.walk(folder):
        for name in names:
            status = os.lstat(Path(place, name))
            found[Path(place, name)] = (status.st_mtime_ns, status.st_size)
    return found


def half_written(path: Path) -> str:
    """What is wrong with a file that a command wrote; nothing if it is whole."""
    if path.name.startswith(".") or path.suffix in (".tmp", ".partial") or ".partial" in path.parts:
        return "a temporary file is left"
    try:
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".npz":
            with np.load(path) as arrays:
                [arrays[name] for name in arrays.files]
        elif path.suffix in OUTPUTS:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                with Image.open(path) as image:
                    image.load()
    except Exception as error:  # whatever makes it unreadable
        return f"{type(error).__name__}: {error}"
    return ""


@contextmanager
def _small_pictures(wanted: bool) -> Iterator[None]:
    before = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = MAX_PIXELS if wanted else before
    try:
        yield
    finally:
        Image.MAX_IMAGE_PIXELS = before


@contextmanager
def _fenced() -> Iterator[None]:
    """Bounds the memory, and keeps the commands off the network."""
    before = resource.getrlimit(resource.RLIMIT_AS), constants.HF_HUB_OFFLINE
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, before[0][1]))
    constants.HF_HUB_OFFLINE = True
    os.environ["PIP_NO_INDEX"] = "1"
    try:
        yield
    finally:
        del os.environ["PIP_NO_INDEX"]
        resource.setrlimit(resource.RLIMIT_AS, before[0])
        constants.HF_HUB_OFFLINE = before[1]


def _import_all() -> None:
    """Imports what commands import when they run: an import that is stopped half-way spoils the later cases."""
    ensure_torchvision()
    for name in LATE:
        import_module(name)


def fuzz(
    numbers: Sequence[int],
    seed: int,
    limit: float,
    kind: str | None = None,
    told: Callable[[Case], object] = lambda case: None,
) -> list[Case]:
    """Runs cases.

    Args:
        numbers: their numbers.
        seed: of all of them.
        limit: seconds after which a case is stopped.
        kind: what is mutated; None: drawn for each.
        told: called with each case when it is done.
    """
    cases = []
    _import_all()
    with tempfile.TemporaryDirectory() as folder:
        given = Stock(Path(folder))
        with _fenced():
            for number in numbers:
                cases.append(play(number, seed, given, limit, kind))
                told(cases[-1])
    return cases


def summary(cases: Sequence[Case]) -> str:
    """A table of the kinds, and of all."""
    rows: list[tuple[Any, ...]] = []
    for kind in (*KINDS, "all"):
        own = [case for case in cases if kind in (case.kind, "all")]
        good = Counter("stopped" if c.stopped else "done" if c.code == 0 else "refused" for c in own)
        faulty, half = sum(bool(case.faults) for case in own), sum(len(case.half) for case in own)
        rows.append((kind, len(own), good["done"], good["refused"], good["stopped"], faulty, half))
    headings = ("mutated", "cases", "exit 0", "refused", "stopped", "tracebacks", "half-written files")
    return markdown(headings, rows)


@click.command(cls=Command, context_settings={"show_default": True})
@click.option("--cases", default=1000)
@click.option("--first", default=0, help="Number of the first case.")
@click.option("--seed", default=0)
@click.option("--limit", default=20.0, help="Seconds after which a case is stopped.")
@click.option("--only", type=int, help="Run the case of this number alone, and show all of it.")
@click.option("--kind", type=click.Choice(list(KINDS)), help="Mutate this alone.")
@click.option("--messages", is_flag=True, help="Show every message that refused a case.")
def main(cases: int, first: int, seed: int, limit: float, only: int | None, kind: str | None, messages: bool) -> None:
    """Prints how many cases gave a traceback, and how many half-written files were found."""
    torch.set_num_threads(1)

    def tell(case: Case) -> None:
        for fault in (*case.faults, *case.half):
            line = " ".join(map(repr, case.arguments))
            click.echo(f"{case.number} ({case.kind}) skipdiff {line}\n    {fault}", err=True)
        if messages or only is not None:
            click.echo(f"{case.number} {case.arguments} {case.code} {case.seconds:.1f} s {case.message}", err=True)

    done = fuzz(range(first, first + cases) if only is None else [only], seed, limit, kind, tell)
    slowest = max(done, key=lambda case: case.seconds)
    click.echo(summary(done))
    seconds = sum(case.seconds for case in done)
    click.echo(f"seed {seed}, {seconds:.0f} s; the slowest: {slowest.number}, {slowest.seconds:.1f} s")
    if any(case.faults or case.half for case in done):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
