"""Fuzzing of `skipdiff` with mutated pictures, checkpoints, configurations and command lines, in this process.

python -m benchmarks.fuzz [--cases 1000] [--first 0] [--seed 0] [--only 17] [--kind pictures]

A case is good if the command ends with exit code 0, or with 1 or 2 and one clear line, and does not leave a
half-written file. A command that takes longer than the limit is stopped as by Ctrl-C; the same holds for its files.
"""

import io
import json
import os
import resource
import shlex
import shutil
import signal
import struct
import sys
import tempfile
import time
import warnings
import zlib
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import chdir, suppress
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
from safetensors.numpy import load_file, save_file

from agents.cli import main as skipdiff
from agents.cli.command import Command
from agents.tables import markdown
from ddpm.checkpoints import save_checkpoint
from ddpm.nets.unet import UNet
from ddpm.pictures.formats import OUTPUTS, register_heif
from ddpm.util.packages import ensure_torchvision

Rng = np.random.Generator
Mutation = Callable[[Rng, "Stock"], list[str]]
# Address space of this process in bytes, and largest number of pixels of a picture; a command must refuse more.
MEMORY, MAX_PIXELS = 12 * 2**30, 2**14
# Imported before the first case, since an interrupted import breaks the later cases.
LATE = (
    "accelerate", "agents.benchmark", "agents.cli.demo", "agents.cli.enjoy", "agents.study.paper",
    "onnx", "onnxruntime", "agents.training.sb3",
    "ddpm.training.predictor", "ddpm.nets.sr3", "diffusers", "openvino", "pyiqa", "sb3_contrib", "spandrel",
    "tensorboard", "tifffile", "torch._dynamo",
)  # fmt: skip
# Lines that a refused command may print beside its error: its usage, notes, and the summary of failures.
ALLOWED = ("Usage: ", "Try ", "Error: ", "Note: ", "  ", "DISTS is left out")

# --- valid material, which commands make when it is first used, and good command lines ---

NET: dict[str, Any] = {
    "width": 8, "multipliers": (1, 2), "blocks": 1, "attention_resolutions": (), "norm_groups": 4, "patch_size": 2,
    "dropout": 0.0, "noise_level_scale": 1000.0, "prediction": "v", "target": "residual", "diffusion_steps": 12,
    "coarse_steps": 3,
}  # fmt: skip
QUICK = "--images={photos} --crop=16 --batch-size=2 --warmup=1 --iterations=2 --save-every=1"
DDPM = f"{QUICK} --width=8 --multipliers=1,2 --norm-groups=4 --patch-size=2 --attention-resolutions=999"
SUBSTEPS = f"{QUICK} --most=4 --rank=2"
PREDICTOR = "--images={photos} --channels=4 --crop=16 --batch-size=1 --iterations=1 --warmup=0"
AGENT = (
    "--checkpoint={net} --images={photos} --env=SkipDiff-v0 --steps=3,4 --image-size=16 --metric=psnr --env-steps=12 "
    "--eval-every=2 -p n_envs=2 -p n_steps=3 -p batch_size=6"
)
ON_TABLE = "--env-steps=32 -p n_envs=8 -p n_steps=2 -p batch_size=8"
TABLE = "--checkpoint={net} --steps=1,4 --image-size=16 --metrics=psnr,colour --noise-seeds=1"
WAYS = (
    "--checkpoint={fast} --images={photos} --sources={sources} --levels=12*4 --levels=12*2 --levels=12,6 "
    "--image-size=32 --metrics=colour,psnr --noise-seeds=2 --crops=4"
)
EVALUATE = "--images={large} --metrics=psnr --image-size=96"
REPRODUCE = "--images={large} --checkpoint={net} --image-size=96 --sections=table5 --seeds=1"
MAKERS = {
    "agent": f"train-agent --out={{out}} {AGENT}",
    "chooser": f"train-agent --out={{out}} --table={{ways}} {ON_TABLE}",
    "run": f"train-ddpm --out={{out}} {DDPM}",
    "begun": f"train-ddpm --out={{out}} {DDPM} --predictor={{predictor}}/checkpoint/predictor.safetensors",
    "predictor": f"train-predictor --out={{out}} {PREDICTOR}",
    "substeps": f"train-substeps --out={{out}} --from={{net}} {SUBSTEPS}",
    "table": f"tabulate --out={{out}} --images={{photos}} {TABLE}",
    "ways": f"tabulate --out={{out}} {WAYS}",
    "evaluation": f"evaluate --out={{out}} --checkpoint={{net}} {EVALUATE}",
    "report": f"reproduce --out={{out}} {REPRODUCE}",
}
# OpenVINO is left out: processes that had run it among hundreds of cases ended by a segmentation fault later on.
UPSCALE = "upscale {photos}/0.png -o out"
GOOD_LINES = (
    f"{UPSCALE} --checkpoint={{net}}", "upscale {photos} -o out --checkpoint={net} --agent={agent}",
    f"{UPSCALE} --checkpoint={{fast}} --detail=0.3 --backend=onnxruntime",
    f"{UPSCALE} --checkpoint={{fast}} --detail=0.5 --backend=openvino",
    f"{UPSCALE} --checkpoint={{fast}} --levels=12*2,6",
    f"{UPSCALE} --checkpoint={{fast}} --agent={{chooser}} --map=map.png",
    f"{UPSCALE} --checkpoint={{run}}/checkpoint", f"{UPSCALE} --checkpoint={{substeps}}/checkpoint --detail=0.5",
    f"train-predictor --out=out --init={{predictor}}/checkpoint/predictor.safetensors {PREDICTOR}",
    f"{UPSCALE} --checkpoint={{started}} --tile=64", "export {started} -o out.onnx",
    f"{UPSCALE} --checkpoint=natural-x4 --levels=20*4,5", f"{UPSCALE} --checkpoint=faces-x8 --detail=1",
    f"{UPSCALE} --checkpoint=photo-x4 --map=map.jpg", f"train-ddpm --out=out {QUICK} --init={{started}}",
    *(line.replace("{out}", "out") for line in MAKERS.values()), "import-sr3 {sr3} out",
    f"evaluate --checkpoint={{net}} {EVALUATE} --agent={{agent}}",
    f"evaluate --checkpoint={{fast}} {EVALUATE} --no-paper --reference=bicubic --levels=12*4 --seeds=2",
    f"evaluate --checkpoint={{fast}} {EVALUATE} --no-paper --agent={{chooser}}", "push-to-hub {net} owner/name",
    "export {fast} -o net.onnx --detail=0.5", "benchmark {chooser} --table={ways}",
    "schedule --checkpoint={net} --images={photos} --forwards=2 --steps=4 --image-size=16",
    "enjoy --agent={agent} -o out.png --checkpoint={net} --images={photos} --image-size=16 --metric=psnr",
    "enjoy --agent={chooser} -o out.png --checkpoint={fast} --images={large} --image-size=32 --metric=psnr",
    "plot --run={agent} --evaluation={evaluation} --out=out", "demo --no-agent -o out.png --checkpoint={net}",
)  # fmt: skip


class Stock(dict[str, str]):
    """Valid material by kind, as paths below a folder, made when it is first used."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __missing__(self, kind: str) -> str:
        path = self.folder / kind
        if kind in MAKERS:
            result = CliRunner().invoke(skipdiff, self.line(MAKERS[kind].replace("{out}", str(path))))
            if result.exit_code:
                raise RuntimeError(f"{kind} cannot be made: {result.output}") from result.exception
        elif kind == "net":
            torch.manual_seed(0)
            save_checkpoint(UNet(**NET), path)
        elif kind in ("photos", "large"):
            path.mkdir()
            for i in range(4):
                rough = np.random.default_rng(i).integers(0, 256, (8, 8, 3), dtype=np.uint8)
                Image.fromarray(rough).resize((32 if kind == "photos" else 96,) * 2).save(path / f"{i}.png")
        elif kind == "sources":  # one for validation, one for tests, two for training
            path.write_text("0.png\td\n1.png\ti\n2.png\ta\n3.png\tb\n", encoding="utf-8")
        elif kind == "sr3":
            torch.save({"a": torch.zeros(3)}, path)
        else:
            shutil.copytree(Path(self[{"fast": "substeps", "started": "begun"}[kind]], "checkpoint"), path)
        if kind == "ways":  # each crop gains by another schedule
            arrays = load_file(file := next(path.rglob("*.safetensors")))
            colour = arrays["metrics.colour"]
            colour[:] = (np.arange(len(colour))[:, None, None] - np.arange(colour.shape[2])) % colour.shape[2]
            save_file(arrays, file)
        self[kind] = str(path)
        return self[kind]

    def line(self, text: str) -> list[str]:
        """Return the words of a line in which {kind} stands for a path."""
        return shlex.split(text.format_map(self))


# --- mutations: each writes a mutated file into the current folder and returns a command line ---

ODD_VALUES: tuple[Any, ...] = (
    None, True, 0, -1, 1, 2, 3, 0.5, -0.0, 1e308, float("nan"), float("inf"), 10**9, 2**63, 10**400, "", "x", "\0",
    "é" * 300, "../x", [], [1], [0, -1], [3, 2, 1], ["a"], {}, {"a": 1}, "3", "v", "image", "ddpm", "ddim:0.5", "jump",
    "restart", "ppo", "dqn", "recurrent-ppo", "latent", "features", "lpips", "niqe", "step", "l2", "bf16", "negative",
    "cuda", "low-rank", "even:2*8", "20*4,9",
)  # fmt: skip
ODD_TEXTS = (
    "", " ", "0", "1", "-1", "2", "5", "12", "13", "0.5", "nan", "-inf", "1e400", "1" + "0" * 30, "abc", "ä\u2028",
    "18446744073709551615", "a" * 300, "a/" * 300 + "a", "1,2", "1,0", "12,1", "4,3", ",", "1,2,3", "even:2", "even:0",
    "even:x", "even:2*2", "12*99", "*2", "6*2,3*2", "ddim/12*4", "ddim:2", "ddim:nan", "ddim", "dpmsolver++", "jump",
    "no/such", "~/x", "owner/name", "[", "**", "photo", "photo:2", "photo2:1", "photo:nan", ":", "psnr,psnr", "niqe",
    "a=b=c", "n_envs=0", "n_envs=3", "learning_rate=-1", "learning_rate=1e30", "channels=[0]",
    "channels=[9223372036854775807]",
    "gamma=2", "batch_size=0", "norm=x", "n_epochs=0", "policy_kwargs={net_arch: [0]}", "unknown=1", "=", "jpg", "same",
    "1920x", "0x0", "x", "cuda:9", "meta", "cpu:3", "0.2,0.1", "-1,1", "fig1", "table5,table5", "x.png", "x.xyz", ".",
    "file", "file/below", "folder", "circle", "circle.png", "circle/x.png", "nowhere.png",
)  # fmt: skip
NAMES = (
    "x.png", "ü ñ.png", "-x.png", "x", "[1].png", "n" * 240 + ".png", "a\nb.png", "x_x4.png", "x.gif", "x.webp",
    "x.tif", "x.heic", "x.apng", "\udcff.png", "x.bmp", "x.jp2", "x.tga", "x.avif", "x.txt",
)  # fmt: skip
ENLARGING = (
    "--format=webp", "--format=same", "--outscale=2.5", "--size=20x", "--size=x9", "--size=30x20", "--samples=2",
    "--tile=16", "--tile=0", "--strip-metadata", "--json", "--batch-size=1", "--start=1", "--levels=4,2",
    "--overwrite", "--skip-existing", "--outscale=1e308", "--map=map.png", "--map=in", "--detail=0.5",
    "--levels=4*2,2", "--backend=onnxruntime", "--backend=openvino", "--quality=0.5",
)  # fmt: skip
SIDES = (1, 2, 3, 5, 8, 13, 24)
# Pillow's formats, and the modes of pictures that they can store.
MODES = {
    "PNG": "1 L LA P RGB RGBA I;16 I", "JPEG": "L RGB CMYK", "WEBP": "RGB RGBA", "AVIF": "RGB RGBA", "GIF": "1 L P RGB",
    "TIFF": "1 L LA P RGB RGBA CMYK YCbCr I;16 I F", "BMP": "1 L P RGB RGBA", "PPM": "1 L RGB I F", "ICO": "RGB RGBA",
    "JPEG2000": "L LA RGB RGBA I;16", "TGA": "1 L LA P RGB", "MPO": "RGB", "PCX": "1 L P RGB", "SGI": "L RGB RGBA",
    "DDS": "RGB RGBA", "HEIF": "L RGB RGBA",
}  # fmt: skip


def pick(rng: Rng, items: Any) -> Any:
    """Return one of several values of any type."""
    items = list(items)
    return items[int(rng.integers(len(items)))]


def damaged(data: bytes, rng: Rng) -> bytes:
    """Return bytes with one to three pieces cut, doubled, overwritten or inserted, mostly with valid checksums."""
    for _ in range(int(rng.integers(1, 4))):
        first = int(rng.integers(min(len(data), pick(rng, (96, 2**62))) + 1))  # often in the header
        piece = data[first : first + int(pick(rng, (0, 1, 2, 4, 30, len(data))))]
        flipped = bytes(byte ^ 1 << int(rng.integers(8)) for byte in piece)
        new = (b"", piece * 2, bytes(len(piece)), b"\xff" * len(piece), rng.bytes(len(piece)), flipped, rng.bytes(9))
        data = data[:first] + pick(rng, new) + data[first + len(piece) :]
    return with_checksums(data) if rng.random() < 0.7 else data


def with_checksums(data: bytes) -> bytes:
    """Return a PNG with valid checksums, so that decoders read on; other bytes are returned unchanged."""
    whole, place = bytearray(data), 8
    while data.startswith(b"\x89PNG\r\n\x1a\n") and place + 12 <= len(whole):
        end = place + 8 + struct.unpack_from(">I", whole, place)[0]
        if end + 4 > len(whole):
            break
        struct.pack_into(">I", whole, end, zlib.crc32(whole[place + 4 : end]))
        place = end + 4
    return bytes(whole)


def damaged_json(content: Any, rng: Rng) -> bytes:
    """Return JSON in which one to three values are odd, missing, unknown or of another type; or damaged text."""
    for _ in range(int(rng.integers(1, 4))):
        content = _odd(json.loads(json.dumps(content)), rng)
    text, way = json.dumps(content, indent=2), rng.random()
    return damaged(text.encode(), rng) if way < 0.08 else text.encode("utf-16" if way < 0.1 else "utf-8")


def _odd(content: Any, rng: Rng) -> Any:
    """Change a value at a random place of a JSON object."""
    if not isinstance(content, dict | list) or not content or rng.random() < 0.03:
        return pick(rng, ODD_VALUES)
    key, way = pick(rng, content if isinstance(content, dict) else range(len(content))), rng.random()
    value = content[key]
    if way < 0.1:
        del content[key]
    elif way < 0.15 and isinstance(content, dict):
        content[pick(rng, ("unknown", "", "self"))] = pick(rng, ODD_VALUES)
    elif isinstance(value, dict | list) and rng.random() < 0.8:
        content[key] = _odd(value, rng)
    elif isinstance(value, int | float) and rng.random() < 0.5:
        content[key] = pick(rng, (value * 2, value + 1, value // 2, value * 1000, 1, 4))
    else:
        content[key] = pick(rng, ODD_VALUES)
    return content


def damaged_safetensors(data: bytes, rng: Rng) -> bytes:
    """Return a file of tensors with a damaged header, or with other numbers."""
    way, (length,) = rng.random(), struct.unpack_from("<Q", data)
    header, body = data[8 : 8 + length], bytearray(data[8 + length :])
    if way < 0.3:
        return damaged(data, rng)
    if way < 0.6:
        header = damaged_json(json.loads(header), rng)
    elif body:
        first = int(rng.integers(len(body)))
        noise = pick(rng, (rng.bytes(64), b"\xff" * 64, b"\0\0\xc0\x7f" * 16, b"\xff\xff\x7f\x7f" * 16))
        body[first : first + 64] = noise[: len(body) - first]
    return struct.pack("<Q", len(header)) + header + bytes(body)


def picture(rng: Rng) -> bytes:
    """Return a file of a random format, mode and size, perhaps deep, animated, or with nonsense for metadata."""
    import tifffile

    file, kind = io.BytesIO(), pick(rng, MODES)
    shape = (pick(rng, SIDES), pick(rng, SIDES))
    if kind == "TIFF" and rng.random() < 0.4:  # of a kind that Pillow does not read
        samples, planes = int(rng.integers(1, 6)), pick(rng, ("separate", "contig"))
        values = rng.random((*shape, samples)) * pick(rng, (1, 255, 65535))
        values = values[..., 0] if samples == 1 else values.transpose(2, 0, 1) if planes == "separate" else values
        number = pick(rng, (np.uint8, np.uint16, np.uint32, np.uint64, np.int16, np.float16, np.float32, np.float64))
        tifffile.imwrite(
            file, values.astype(number), photometric="rgb" if samples >= 3 else "minisblack",
            planarconfig=None if samples == 1 else planes, bigtiff=bool(rng.random() < 0.3),
        )  # fmt: skip
        return file.getvalue()
    mode = pick(rng, MODES[kind].split())
    numbers = rng.normal(0, 10.0 ** int(rng.integers(-3, 6)), shape)
    deep = {"I;16": np.uint16, "I": np.int32, "F": np.float32}
    if mode in deep:
        numbers[0, 0] = pick(rng, (0, np.nan, np.inf)) if mode == "F" else 0
        image = Image.fromarray((numbers if mode == "F" else np.abs(numbers) % 2**15).astype(deep[mode]))
    else:
        image = Image.fromarray(rng.integers(0, 256, (*shape, 3), dtype=np.uint8)).convert(mode)
    options: dict[str, Any] = {"exif": b"Exif\0\0" + rng.bytes(40)} if rng.random() < 0.2 else {}
    if rng.random() < 0.3:
        options |= {"icc_profile": rng.bytes(99), "xmp": rng.bytes(40)}
    if kind in ("GIF", "WEBP", "PNG", "AVIF") and rng.random() < 0.3:
        options = {"save_all": True, "append_images": [image.copy().rotate(90)], "duration": pick(rng, (0, 40))}
    for told in (options, {}):
        file = io.BytesIO()
        with suppress(Exception):  # not every mode takes every option, and Pillow raises nearly anything
            image.save(file, format=kind, **told)
            break
    return file.getvalue()


def of_pictures(rng: Rng, given: Stock) -> list[str]:
    """Return a command line with odd and damaged pictures, for `upscale` and sometimes for other commands."""
    Path("in").mkdir()
    names = list(dict.fromkeys(pick(rng, NAMES) for _ in range(int(rng.integers(1, 3)))))
    for name in names:
        data = picture(rng)
        Path("in", name).write_bytes(damaged(data, rng) if rng.random() < 0.8 else data)
    if rng.random() < 0.15:
        shutil.copy(Path(given["large"], "0.png"), "in/good.png")
        line = pick(rng, (MAKERS["table"], MAKERS["run"], MAKERS["evaluation"])).replace("{out}", "out")
        return given.line(line.replace("{photos}", "in").replace("{large}", "in"))
    where, out = pick(rng, ("in", f"in/{names[0]}", "in/*")), pick(rng, ("out", "out/", "in", ".", "out/r.tiff"))
    ways = sorted({pick(rng, ENLARGING) for _ in range(int(rng.integers(0, 4)))})
    return ["upscale", where, "-o", out, f"--checkpoint={given['net']}", *ways]


def of_files(kinds: Sequence[str]) -> Mutation:
    """Return the mutation of a file of a kind of material, for the commands that continue or read it."""

    def mutate(rng: Rng, given: Stock) -> list[str]:
        kind = pick(rng, kinds)
        shutil.copytree(given[kind], "run")
        files = [file for file in sorted(Path("run").rglob("*")) if file.is_file() and "tfevents" not in file.name]
        settings = [file for file in files if file.suffix == ".json"]
        file = pick(rng, settings if settings and rng.random() < 0.6 else files)
        data, ending = file.read_bytes(), file.suffix
        if ending in (".pkl", ".zip", ".bin"):  # pickles with flipped bits could run anything
            file.write_bytes(data[: int(rng.integers(len(data)))])
        elif ending == ".json":
            file.write_bytes(damaged_json(json.loads(data), rng))
        else:
            file.write_bytes((damaged_safetensors if ending == ".safetensors" else damaged)(data, rng))
        if rng.random() < 0.04:
            file.unlink()
        lines = [line.replace(f"{{{kind}}}", "run") for line in GOOD_LINES if f"{{{kind}}}" in line]
        if kind in MAKERS:
            command = MAKERS[kind].split()[0]
            more = {"run": "--iterations=3", "predictor": "--iterations=2", "substeps": "--iterations=3"}.get(kind, "")
            resumed = f"{command} --out=run --resume {more}"
            lines += [resumed if command.startswith("train") else MAKERS[kind].replace("{out}", "run")]
        return given.line(pick(rng, lines))

    return mutate


def of_command_lines(rng: Rng, given: Stock) -> list[str]:
    """Return a good command line with one to three arguments that are odd, missing, doubled or exchanged."""
    Path("folder").mkdir()
    Path("file").write_text("hello", encoding="utf-8")
    for name, target in (("circle", "circle"), ("circle.png", "circle.png"), ("nowhere.png", "nothing")):
        Path(name).symlink_to(target)
    line = given.line(pick(rng, GOOD_LINES))
    options = [each for each in skipdiff.commands[line[0]].params if isinstance(each, click.Option)]
    for _ in range(int(rng.integers(1, 4))):
        way, place = rng.random(), int(rng.integers(1, len(line)))
        option = pick(rng, options)
        values = option.type.choices if isinstance(option.type, click.Choice) and rng.random() < 0.7 else ODD_TEXTS
        if way < 0.75:
            flag = pick(rng, option.opts + option.secondary_opts)
            line += [flag] if option.is_flag else [flag, str(pick(rng, values))]
        else:
            line[place : place + 1] = pick(rng, ([], [line[place]] * 2, [pick(rng, ODD_TEXTS)]))
            line = line if len(line) > 1 else [*line, ""]
    return line


# kind → share of the cases, and the mutation
KINDS: dict[str, tuple[float, Mutation]] = {
    "pictures": (0.4, of_pictures),
    "checkpoints": (0.2, of_files(("net", "started", "fast"))),
    "configurations": (0.2, of_files([*MAKERS, "agent", "chooser"])),
    "command lines": (0.2, of_command_lines),
}

# --- running the cases ---


@dataclass
class Case:
    """A case, which its number and the seed determine, with its result; faults and half-written files are lines."""

    number: int
    kind: str
    arguments: list[str] = field(default_factory=list)
    code: int = 0
    seconds: float = 0.0
    stopped: bool = False
    message: str = ""
    faults: list[str] = field(default_factory=list)
    half: list[str] = field(default_factory=list)


def play(number: int, seed: int, given: Stock, limit: float, kind: str | None = None) -> Case:
    """Make a case in a new folder, run it, and check its files."""
    rng = np.random.default_rng([seed, number])
    case = Case(number, kind or str(rng.choice(list(KINDS), p=[share for share, _ in KINDS.values()])))

    def stop(signal_number: int, frame: object) -> None:
        case.stopped = True
        raise KeyboardInterrupt

    with tempfile.TemporaryDirectory() as folder, chdir(folder):
        case.arguments = KINDS[case.kind][1](rng, given)
        before, began, largest = _files(), time.perf_counter(), Image.MAX_IMAGE_PIXELS
        Image.MAX_IMAGE_PIXELS = MAX_PIXELS if case.kind == "pictures" else largest
        handler = signal.signal(signal.SIGALRM, stop)
        signal.setitimer(signal.ITIMER_REAL, limit, 1.0)
        try:
            result = CliRunner().invoke(skipdiff, case.arguments)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
            signal.signal(signal.SIGALRM, handler)
            Image.MAX_IMAGE_PIXELS = largest
        case.seconds, case.code = time.perf_counter() - began, result.exit_code
        _judge(case, result.exception, result.stderr)
        changed = [path for path, stamp in _files().items() if before.get(path) != stamp]
        case.half = [f"{path}: {wrong}" for path in changed if (wrong := half_written(path))]
    if "accelerate" in sys.modules:  # it keeps the precision of the first training in a process
        sys.modules["accelerate.state"].AcceleratorState._reset_state(reset_partial_state=True)
    return case


def _judge(case: Case, error: BaseException | None, printed: str) -> None:
    """Record the faults in the end of a command."""
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
    case.faults += [f"a line that is not an error: {line[:200]}" for line in odd]


def _files() -> dict[Path, tuple[int, int]]:
    """Return all files below the current folder, with a stamp that shows changes."""
    paths = [Path(place, name) for place, _, names in os.walk(".") for name in names]
    return {path: (path.lstat().st_mtime_ns, path.lstat().st_size) for path in paths}


def half_written(path: Path) -> str:
    """Return the fault of a file that a command wrote; empty if the file is complete."""
    if path.name.startswith(".") or path.suffix in (".tmp", ".partial") or ".partial" in path.parts:
        return "a temporary file is left"
    try:
        if path.suffix == ".json":
            json.loads(path.read_text(encoding="utf-8"))
        elif path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix in OUTPUTS:
            with warnings.catch_warnings(action="ignore"), Image.open(path) as image:
                image.load()
    except Exception as error:  # any error makes it unreadable
        return f"{type(error).__name__}: {error}"
    return ""


def fuzz(numbers: Sequence[int], seed: int, limit: float, kind: str | None = None) -> Iterator[Case]:
    """Run cases.

    Args:
        numbers: numbers of the cases.
        seed: seed of all cases.
        limit: seconds after which a case is stopped.
        kind: kind of mutation; None: it is drawn for each case.
    """
    ensure_torchvision()
    register_heif()
    for name in LATE:
        import_module(name)
    before = resource.getrlimit(resource.RLIMIT_AS), constants.HF_HUB_OFFLINE
    resource.setrlimit(resource.RLIMIT_AS, (MEMORY, before[0][1]))
    constants.HF_HUB_OFFLINE = True
    try:
        with tempfile.TemporaryDirectory() as folder:
            given = Stock(Path(folder))
            yield from (play(number, seed, given, limit, kind) for number in numbers)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before[0])
        constants.HF_HUB_OFFLINE = before[1]


def summary(cases: Sequence[Case]) -> str:
    """Return a table of the kinds of cases, and of all cases."""
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
@click.option("--only", type=int, help="Run only the case of this number, and show all of it.")
@click.option("--kind", type=click.Choice(list(KINDS)), help="Run only cases of this kind.")
def main(cases: int, first: int, seed: int, limit: float, only: int | None, kind: str | None) -> None:
    """Print the number of cases with a traceback, and the number of half-written files."""
    torch.set_num_threads(1)
    done = []
    for case in fuzz(range(first, first + cases) if only is None else [only], seed, limit, kind):
        done.append(case)
        if case.faults or case.half or only is not None:
            line = " ".join(map(repr, case.arguments))
            click.echo(f"{case.number} ({case.kind}) skipdiff {line}\n    {case.code} {case.message}", err=True)
            click.echo("".join(f"    {fault}\n" for fault in (*case.faults, *case.half)), nl=False, err=True)
    slowest = max(done, key=lambda case: case.seconds)
    click.echo(summary(done))
    seconds = sum(case.seconds for case in done)
    click.echo(f"seed {seed}, {seconds:.0f} s; the slowest: {slowest.number}, {slowest.seconds:.1f} s")
    if any(case.faults or case.half for case in done):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
