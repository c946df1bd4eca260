"""What `benchmarks.fuzz` gives to the commands: valid material, and cases in which some of it is mutated."""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import click
import numpy as np
import torch
from safetensors.numpy import load_file, save_file

from agents.cli import main as skipdiff
from benchmarks import tiny
from benchmarks.mutations import Rng, damaged, damaged_json, damaged_picture, damaged_safetensors, pick
from ddpm.pictures.formats import OUTPUTS
from skipdiff_env.outcomes import ARRAYS

ODD_TEXTS = (
    "", " ", "0", "1", "-1", "2", "3", "7", "0.5", "-0.5", "nan", "inf", "-inf", "1e400", "1" + "0" * 30, "abc",
    "ä\u2028", "9223372036854775807", "9223372036854775808", "18446744073709551615", "1000000000", "a" * 300,
    "a/" * 300 + "a",
    "1,2", "1,0", "3,4", "4,3", "1,4", "12,1", "0,0", ",", "1,", "1,2,3", "4,2,1", "even:2", "even:0", "even:x",
    "even:2*2", "even:2*0", "12*4", "12*99", "12*", "*2", "6*2,3*2", "ddim/12*4",
    "ddim:0.5", "ddim:2", "ddim:nan", "ddim/even:3", "ddim", "ddpm", "dpmsolver++", "jump", "restart", "no/such",
    "a/b/c", "~/x", "owner/name", "[", "*", "**", "photo", "psnr", "niqe", "psnr,psnr", "x=1", "=", "a=b=c",
    "n_envs=0", "learning_rate=-1", "policy_kwargs={a: 1}", "jpg", "same", "1920x", "x33", "0x0", "x", "40x40",
    "cuda", "cuda:9", "meta", "mps", "cpu:3", "0.1,0.2", "0.2,0.1", "-1,1", "fig1", "table5,table5", "x.png", "x.jpg",
    "x.xyz", ".", "..", "file", "file/below", "folder", "circle", "circle.png", "circle/x.png", "nowhere.png",
)  # fmt: skip
NUMBERS = (
    "0", "1", "2", "3", "4", "5", "8", "12", "13", "16", "100", "-1", "1000000000", "9223372036854775807", "0.5", "nan",
    "1e308", "5e-324",
)  # fmt: skip
DEGRADATIONS = (
    "bicubic", "photo", "photo2", "photo:0", "photo:0.5", "photo2:1", "photo:nan", "photo:2", "photo:-1", "photo:",
    "photo2:1e400", "bicubic:0.5", ":", "photo:0.5:0.5",
)  # fmt: skip
OVERRIDES = (
    "learning_rate=-1", "learning_rate=0", "learning_rate=1e30", "weight_decay=-1", "channels=[]", "channels=[0]",
    "channels=[-1]", "channels=[4, x]", "channels=[9223372036854775807]", "epochs=0", "members=0", "members=100",
    "noises=0", "crops=0", "seed=-1", "minutes=.nan", "minutes=0", "forwards=[2, 1]", "forwards=[]", "forwards=[0]",
    "forwards=[1, 99]", "device=gpu", "crop_size=0", "hidden_size=0", "spn_size=-1", "gamma=2", "batch_size=0",
    "n_envs=3", "norm=x", "n_epochs=0", "train_freq=0", "policy_kwargs={net_arch: [0]}", "unknown=1", "=1",
)  # fmt: skip
NAMES = (
    "x.png", "ü ñ.png", "a b.jpg", "-x.png", "x", "x.PNG", "[1].png", "n" * 240 + ".png", "a\nb.png", "x_x4.png",
    "x.gif", "x.webp", "x.tif", "x.heic", "x.apng", "\udcff.png", "x.bmp", "x.jp2", "x.tga", "x.avif", "x.txt",
)  # fmt: skip

NET, FAST = "--checkpoint={net}", "--checkpoint={fast}"
PHOTOS, LARGE, SOURCES = "--images={photos}", "--images={large}", "--sources={sources}"
ENJOY = ("-o", "out.png", NET, PHOTOS, "--image-size=16", "--metric=psnr")
# A good command line of each command; {net} and so on stand for material.
GOOD_LINES = (
    ["upscale", "{photos}/0.png", "-o", "out", NET],
    ["upscale", "{photos}", "-o", "out", NET, "--agent={jump}"],
    ["upscale", "{photos}/0.png", "-o", "out", NET, "--agent={jump}", "--quality=0.3", "--map=map.png"],
    ["upscale", "{photos}/0.png", "-o", "out", FAST, "--detail=0.3", "--backend=onnxruntime"],
    ["upscale", "{photos}/0.png", "-o", "out", FAST, "--levels=12*2,6", "--backend=openvino"],
    ["upscale", "{photos}/0.png", "-o", "out", FAST, "--agent={chooser}", "--map=map.png"],
    ["upscale", "{photos}/0.png", "-o", "out", "--checkpoint=natural-x4", "--levels=20*4,5"],
    ["upscale", "{photos}/0.png", "-o", "out", "--checkpoint=faces-x8", "--detail=1"],
    ["upscale", "{photos}/0.png", "-o", "out", "--checkpoint=photo-x4", "--map=map.jpg"],
    ["train-ddpm", "--out=out", PHOTOS, "--init={started}", *tiny.TRAIN_DDPM[-5:], "--iterations=1"],
    ["train-ddpm", "--out=out", PHOTOS, *tiny.TRAIN_DDPM],
    ["train-predictor", "--out=out", PHOTOS, *tiny.TRAIN_PREDICTOR],
    ["train-substeps", "--out=out", "--from={net}", PHOTOS, *tiny.TRAIN_SUBSTEPS],
    ["train-agent", "--out=out", "--table={ways}", *tiny.TRAIN_ON_TABLE],
    ["train-agent", "--out=out", NET, PHOTOS, *tiny.TRAIN_AGENT],
    ["train-agent", "--out=out", NET, PHOTOS, *tiny.TRAIN_PRICED],
    ["import-sr3", "{sr3}", "out"],
    ["evaluate", "--out=out", LARGE, NET, *tiny.EVALUATE],
    ["evaluate", LARGE, FAST, *tiny.EVALUATE, "--no-paper", "--reference=bicubic", "--levels=12*4", "--seeds=2"],
    ["evaluate", LARGE, FAST, *tiny.EVALUATE, "--no-paper", "--agent={chooser}"],
    ["export", "{fast}", "-o", "net.onnx", "--detail=0.5"],
    ["benchmark", "{chooser}", "--table={ways}"],
    ["schedule", NET, PHOTOS, "--forwards=2", "--steps=4", "--image-size=16"],
    ["reproduce", "--out=out", LARGE, NET, *tiny.REPRODUCE],
    ["enjoy", "--agent={agent}", *ENJOY],
    ["enjoy", "--agent={chooser}", "-o", "out.png", FAST, LARGE, "--image-size=32", "--metric=psnr"],
    ["plot", "--run={agent}", "--evaluation={evaluation}", "--out=out"],
    ["demo", "--no-agent", "-o", "out.png", NET],
    ["tabulate", "--out=out", PHOTOS, NET, *tiny.TABULATE],
    ["tabulate", "--out=out", PHOTOS, FAST, SOURCES, *tiny.WAYS],
    ["fetch-judge", "--packages=folder", "-o", "out"],
    ["push-to-hub", "{net}", "owner/name"],
)
# Command lines that read a kind of material, of which a copy is in the folder "run".
READERS: dict[str, list[list[str]]] = {
    "run": [
        ["train-ddpm", "--out=run", "--resume", "--iterations=3"],
        ["upscale", "{photos}/0.png", "-o", "out", "--checkpoint=run/checkpoint"],
        ["push-to-hub", "run", "owner/name"],
    ],
    "agent": [
        ["train-agent", "--out=run", "--resume", "--env-steps=18"],
        ["enjoy", "--agent=run", *ENJOY],
        ["plot", "--run=run", "--out=out"],
        ["upscale", "{photos}/0.png", "-o", "out", NET, "--agent=run"],
        ["evaluate", LARGE, NET, *tiny.EVALUATE, "--agent=run"],
        ["push-to-hub", "run", "owner/name"],
    ],
    "jump": [
        ["train-agent", "--out=run", "--resume", "--env-steps=18"],
        ["upscale", "{photos}/0.png", "-o", "out", NET, "--agent=run", "--quality=0.3"],
    ],
    "substeps": [
        ["train-substeps", "--out=run", "--resume", "--iterations=3"],
        ["upscale", "{photos}/0.png", "-o", "out", "--checkpoint=run/checkpoint", "--detail=0.5"],
        ["export", "run/checkpoint", "-o", "out.onnx"],
    ],
    "chooser": [
        ["upscale", "{photos}/0.png", "-o", "out", FAST, "--agent=run"],
        ["evaluate", LARGE, FAST, *tiny.EVALUATE, "--no-paper", "--agent=run"],
        ["enjoy", "--agent=run", "-o", "out.png", FAST, LARGE, "--image-size=32", "--metric=psnr"],
        ["benchmark", "run", "--table={ways}"],
        ["train-agent", "--out=run", "--resume"],
    ],
    "table": [["tabulate", "--out=run", PHOTOS, NET, *tiny.TABULATE]],
    "ways": [
        ["tabulate", "--out=run", PHOTOS, FAST, SOURCES, *tiny.WAYS],
        ["train-agent", "--out=out", "--table=run", *tiny.TRAIN_ON_TABLE],
        ["benchmark", "{chooser}", "--table=run"],
    ],
    "evaluation": [["plot", "--evaluation=run", "--out=out"]],
    "predictor": [
        ["train-predictor", "--out=run", "--resume", "--iterations=2"],
        ["train-predictor", "--out=out", "--init=run/checkpoint/predictor.safetensors", PHOTOS, *tiny.TRAIN_PREDICTOR],
        ["train-ddpm", "--out=out", "--predictor=run/checkpoint/predictor.safetensors", PHOTOS, *tiny.TRAIN_DDPM],
    ],
    "report": [["reproduce", "--out=run", LARGE, NET, *tiny.REPRODUCE]],
}


class Stock(Mapping[str, str]):
    """Valid material: kind → its path. What is not asked for is not made.

    Args:
        folder: where it is made.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.makers: dict[str, Callable[[Path], object]] = {
            "net": tiny.net,
            "photos": lambda out: tiny.photographs(out, 4, 32),
            "large": lambda out: tiny.photographs(out, 2, 96),
            # one for validation, one for tests, two for training
            "sources": lambda out: out.write_text("0.png\td\n1.png\ti\n2.png\ta\n3.png\tb\n", encoding="utf-8"),
            "agent": lambda out: self._run("train-agent", out, NET, PHOTOS, *tiny.TRAIN_AGENT),
            "jump": lambda out: self._run("train-agent", out, NET, PHOTOS, *tiny.TRAIN_PRICED),
            "run": lambda out: self._run("train-ddpm", out, PHOTOS, *tiny.TRAIN_DDPM),
            "predictor": lambda out: self._run("train-predictor", out, PHOTOS, *tiny.TRAIN_PREDICTOR),
            "started": self._started,
            "substeps": lambda out: self._run("train-substeps", out, "--from={net}", PHOTOS, *tiny.TRAIN_SUBSTEPS),
            "fast": lambda out: shutil.copytree(Path(self["substeps"], "checkpoint"), out),
            "ways": self._ways,
            "chooser": lambda out: self._run("train-agent", out, "--table={ways}", *tiny.TRAIN_ON_TABLE),
            "table": lambda out: self._run("tabulate", out, NET, PHOTOS, *tiny.TABULATE),
            "evaluation": lambda out: self._run("evaluate", out, NET, LARGE, *tiny.EVALUATE),
            "report": lambda out: self._run("reproduce", out, NET, LARGE, *tiny.REPRODUCE),
            "sr3": lambda out: torch.save({"a": torch.zeros(3)}, out),
        }

    def __iter__(self) -> Iterator[str]:
        return iter(self.makers)

    def __len__(self) -> int:
        return len(self.makers)

    def __getitem__(self, kind: str) -> str:
        path = self.folder / kind
        if not path.exists():
            self.makers[kind](path)
        return str(path)

    def line(self, arguments: Sequence[str]) -> list[str]:
        """Arguments in which {kind} stands for a path."""
        return [argument.format_map(self) if "{" in argument else argument for argument in arguments]

    def _run(self, command: str, out: Path, *arguments: str) -> None:
        tiny.run(command, f"--out={out}", *self.line(arguments))

    def _ways(self, out: Path) -> None:
        """A table of a choice among schedules, in which each crop gains by another one."""
        self._run("tabulate", out, FAST, PHOTOS, SOURCES, *tiny.WAYS)
        arrays = load_file(out / ARRAYS)
        colour = arrays["metrics.colour"]
        colour[:] = (np.arange(len(colour))[:, None, None] - np.arange(colour.shape[2])) % colour.shape[2]
        save_file(arrays, out / ARRAYS)

    def _started(self, out: Path) -> None:
        """A net that starts from a predictor."""
        predictor = "--predictor={predictor}/checkpoint/predictor.safetensors"
        run = out.with_name("started-run")
        self._run("train-ddpm", run, PHOTOS, predictor, *tiny.TRAIN_DDPM, "--iterations=1")
        (run / "checkpoint").rename(out)


# --- cases: each writes what is mutated into the current folder and gives a command line ---


def of_pictures(rng: Rng, given: Stock) -> list[str]:
    """Odd and damaged pictures for `upscale`, and now and then for the other commands."""
    Path("in").mkdir()
    names = list(dict.fromkeys(pick(rng, NAMES) for _ in range(int(rng.integers(1, 3)))))
    for name in names:
        damaged_picture(Path("in", name), rng)
    if rng.random() < 0.15:
        shutil.copy(Path(given["large"], "0.png"), "in/good.png")
        return given.line(
            pick(
                rng,
                (
                    ["tabulate", "--out=out", "--images=in", NET, *tiny.TABULATE],
                    ["train-ddpm", "--out=out", "--images=in", *tiny.TRAIN_DDPM],
                    ["evaluate", "--out=out", "--images=in", NET, *tiny.EVALUATE],
                ),
            )
        )
    where = pick(rng, ("in", f"in/{names[0]}", "in/*"))
    out = pick(rng, ("out", "out", "out/", "in", ".", f"out/result{pick(rng, OUTPUTS)}"))
    return [*given.line(["upscale", where, "-o", out, NET]), *_ways_of_enlarging(rng)]


def _ways_of_enlarging(rng: Rng) -> list[str]:
    ways = (
        f"--format={pick(rng, ('png', 'jpg', 'webp', 'avif', 'tiff', 'same'))}", "--outscale=2.5", "--size=20x",
        "--size=x9", "--size=30x20", "--samples=2", "--tile=16", "--tile=0", "--strip-metadata", "--seed=3", "--json",
        "--batch-size=1", "--start=1", "--levels=4,2", "--overwrite", "--skip-existing", "--outscale=0.1",
        "--jpeg-quality=1", "--outscale=1e308", "--map=map.png", "--map=out/map.jpg", "--map=in", "--map=map.gif",
        "--quality=0.5", "--detail=0.5", "--levels=4*2,2", "--backend=onnxruntime", "--backend=openvino",
    )  # fmt: skip
    return sorted({pick(rng, ways) for _ in range(int(rng.integers(0, 4)))})


def _damage(file: Path, rng: Rng) -> None:
    """Damages a file in the way that fits its kind."""
    data = file.read_bytes()
    if rng.random() < 0.04:
        file.unlink()
    elif file.suffix == ".json":
        file.write_bytes(damaged_json(json.loads(data), rng))
    elif file.suffix == ".safetensors":
        file.write_bytes(damaged_safetensors(data, rng))
    elif file.suffix in (".pkl", ".zip", ".bin"):  # what flipped bits of pickles would do, nobody knows
        file.write_bytes(data[: int(rng.integers(len(data)))])
    else:
        file.write_bytes(damaged(data, rng))


def of_checkpoints(rng: Rng, given: Stock) -> list[str]:
    """A damaged net, with a predictor or without, for the commands that load one."""
    shutil.copytree(given[pick(rng, ("net", "started", "fast"))], "net")
    files = [file for file in sorted(Path("net").iterdir()) if file.suffix in (".json", ".safetensors")]
    _damage(pick(rng, [*files, Path("net/config.json")]), rng)
    checkpoint = "--checkpoint=net"
    return given.line(
        pick(
            rng,
            (
                *[["upscale", "{photos}/0.png", "-o", "out", checkpoint, "--tile=64"]] * 4,
                ["tabulate", "--out=out", PHOTOS, checkpoint, *tiny.TABULATE, "--limit=1"],
                ["train-ddpm", "--out=out", PHOTOS, "--init=net", *tiny.TRAIN_DDPM[-5:], "--iterations=1"],
                ["evaluate", LARGE, checkpoint, *tiny.EVALUATE],
                ["upscale", "{photos}/0.png", "-o", "out", checkpoint, "--detail=0.7", "--backend=onnxruntime"],
                ["export", "net", "-o", "out.onnx"],
                ["train-substeps", "--out=out", "--from=net", PHOTOS, *tiny.TRAIN_SUBSTEPS],
            ),
        )
    )


def of_configurations(rng: Rng, given: Stock) -> list[str]:
    """A run, an agent or a table in whose folder a file is damaged, for the commands that go on with it or read it."""
    kind = pick(rng, (*READERS, "run", "agent", "agent", "jump", "jump"))
    shutil.copytree(given[kind], "run")
    files = [file for file in sorted(Path("run").rglob("*")) if file.is_file()]
    files = [file for file in files if "tfevents" not in file.name and file.suffix != ".md"]
    settings = [file for file in files if file.name in ("config.json", "table.json", "settings.json")]
    _damage(pick(rng, settings if settings and rng.random() < 0.7 else files), rng)
    return given.line(pick(rng, READERS[kind]))


def _value(rng: Rng, option: click.Option) -> str:
    """A value of an option, mostly one of its type."""
    if rng.random() < 0.3:
        return str(pick(rng, ODD_TEXTS))
    if option.name in ("overrides", "degradation"):
        return str(pick(rng, OVERRIDES if option.name == "overrides" else DEGRADATIONS))
    if isinstance(option.type, click.Choice):
        return str(pick(rng, option.type.choices))
    if option.type.name in ("integer", "integer range", "float", "float range"):
        return str(pick(rng, NUMBERS))
    return str(pick(rng, ODD_TEXTS))


def of_command_lines(rng: Rng, given: Stock) -> list[str]:
    """A good command line with one to three arguments that are odd, missing, doubled or exchanged."""
    Path("folder").mkdir()
    Path("file").write_text("hello", encoding="utf-8")
    for name, target in (("circle", "circle"), ("circle.png", "circle.png"), ("nowhere.png", "nothing")):
        Path(name).symlink_to(target)
    line = given.line(pick(rng, GOOD_LINES))
    options = [p for p in skipdiff.commands[line[0]].params if isinstance(p, click.Option)]
    for _ in range(int(rng.integers(1, 4))):
        way, place = rng.random(), int(rng.integers(1, len(line))) if len(line) > 1 else 0
        if way < 0.75:
            option = pick(rng, options)
            flag = pick(rng, option.opts + option.secondary_opts)
            line += [flag] if option.is_flag else [flag, _value(rng, option)]
        elif place and way < 0.85:
            del line[place]
        elif place and way < 0.92:
            line.insert(place, line[place])
        elif place:
            line[place] = pick(rng, ODD_TEXTS)
    return line


KINDS: dict[str, tuple[float, Callable[[Rng, Stock], list[str]]]] = {
    "pictures": (0.4, of_pictures),
    "checkpoints": (0.2, of_checkpoints),
    "configurations": (0.2, of_configurations),
    "command lines": (0.2, of_command_lines),
}
