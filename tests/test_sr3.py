"""Import of SR3 checkpoints, against a plain reference that reads SR3's own names."""

import json
import os
import pickle
from collections import UserDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import click.testing
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from torch import Tensor

from agents.cli import main
from ddpm.checkpoints import load_unet
from ddpm.nets.sr3 import SCHEDULE_BUFFERS, default_norm_groups, import_sr3, read_state_dict, sr3_name
from ddpm.nets.unet import UNet
from ddpm.util.errors import CheckpointError, ConfigError

Shapes = dict[str, tuple[int, ...]]


def sr3_shapes(
    width: int = 16, multipliers: tuple[int, ...] = (1, 2), blocks: int = 1, attending: tuple[int, ...] = ()
) -> Shapes:
    """Names and shapes of the tensors of SR3's UNet, without prefix."""
    shapes: Shapes = {}

    def layer(name: str, *shape: int, bias: bool = True) -> None:
        shapes[f"{name}.weight"] = shape
        if bias:
            shapes[f"{name}.bias"] = shape[:1]

    def block(name: str, channels_in: int, channels: int, attend: bool) -> None:
        layer(f"{name}.res_block.noise_func.noise_func.0", channels, width)
        layer(f"{name}.res_block.block1.block.0", channels_in)
        layer(f"{name}.res_block.block1.block.3", channels, channels_in, 3, 3)
        layer(f"{name}.res_block.block2.block.0", channels)
        layer(f"{name}.res_block.block2.block.3", channels, channels, 3, 3)
        if channels_in != channels:
            layer(f"{name}.res_block.res_conv", channels, channels_in, 1, 1)
        if attend:
            layer(f"{name}.attn.norm", channels)
            layer(f"{name}.attn.qkv", 3 * channels, channels, 1, 1, bias=False)
            layer(f"{name}.attn.out", channels, channels, 1, 1)

    layer("noise_level_mlp.1", 4 * width, width)
    layer("noise_level_mlp.3", width, 4 * width)
    layer("downs.0", width, 6, 3, 3)
    channels, skips, i = width, [width], 1
    for level, multiplier in enumerate(multipliers):
        if level > 0:
            layer(f"downs.{i}.conv", channels, channels, 3, 3)
            skips.append(channels)
            i += 1
        for _ in range(blocks):
            block(f"downs.{i}", channels, width * multiplier, level in attending)
            channels = width * multiplier
            skips.append(channels)
            i += 1
    block("mid.0", channels, channels, True)
    block("mid.1", channels, channels, False)
    i = 0
    for level in reversed(range(len(multipliers))):
        for _ in range(blocks + 1):
            block(f"ups.{i}", channels + skips.pop(), width * multipliers[level], level in attending)
            channels = width * multipliers[level]
            i += 1
        if level > 0:
            layer(f"ups.{i}.conv", channels, channels, 3, 3)
            i += 1
    layer("final_conv.block.0", channels)
    layer("final_conv.block.3", 3, channels, 3, 3)
    return shapes


def sr3_state_dict(shapes: Shapes, prefix: str = "denoise_fn.") -> dict[str, Tensor]:
    """Random weights that keep activations near 1, and the schedule's buffers."""
    generator = torch.Generator().manual_seed(1)

    def weight(name: str, shape: tuple[int, ...]) -> Tensor:
        values = torch.randn(shape, generator=generator)
        if len(shape) > 1:
            return values / torch.Size(shape[1:]).numel() ** 0.5
        return 0.2 * values + name.endswith(".weight")

    buffers = {name: torch.rand(50, generator=generator) for name in sorted(SCHEDULE_BUFFERS)}
    return buffers | {prefix + name: weight(name, shape) for name, shape in shapes.items()}


def sr3_forward(weights: Mapping[str, Tensor], groups: int, lr_up: Tensor, x_t: Tensor, noise_level: Tensor) -> Tensor:
    """SR3's UNet in float64, as its publication and the file's names describe it."""
    w = {name: tensor.double() for name, tensor in weights.items()}

    def linear(x: Tensor, name: str) -> Tensor:
        return F.linear(x, w[f"{name}.weight"], w[f"{name}.bias"])

    def conv(x: Tensor, name: str, stride: int = 1) -> Tensor:
        kernel = w[f"{name}.weight"]
        return F.conv2d(x, kernel, w.get(f"{name}.bias"), stride=stride, padding=kernel.shape[-1] // 2)

    def norm(x: Tensor, name: str) -> Tensor:
        return F.group_norm(x, groups, w[f"{name}.weight"], w[f"{name}.bias"])

    def norm_silu_conv(x: Tensor, name: str) -> Tensor:
        x = norm(x, f"{name}.0")
        return conv(x * x.sigmoid(), f"{name}.3")

    def block(x: Tensor, name: str) -> Tensor:
        h = norm_silu_conv(x, f"{name}.res_block.block1.block")
        h = h + linear(embedding, f"{name}.res_block.noise_func.noise_func.0")[:, :, None, None]
        h = norm_silu_conv(h, f"{name}.res_block.block2.block")
        shortcut = f"{name}.res_block.res_conv"
        x = h + (conv(x, shortcut) if f"{shortcut}.weight" in w else x)
        if f"{name}.attn.qkv.weight" not in w:
            return x
        q, k, v = conv(norm(x, f"{name}.attn.norm"), f"{name}.attn.qkv").flatten(2).chunk(3, dim=1)
        attention = torch.einsum("bci,bcj->bij", q, k).div(q.shape[1] ** 0.5).softmax(dim=2)
        return x + conv(torch.einsum("bij,bcj->bci", attention, v).view(x.shape), f"{name}.attn.out")

    width = len(w["downs.0.weight"])
    angles = noise_level.double()[:, None] * 1e-4 ** (torch.arange(width // 2) / (width // 2)).double()
    hidden = linear(torch.cat([angles.sin(), angles.cos()], dim=1), "noise_level_mlp.1")
    embedding = linear(hidden * hidden.sigmoid(), "noise_level_mlp.3")
    x = conv(torch.cat([lr_up, x_t], dim=1).double(), "downs.0")
    skips = [x]
    while True:
        name = f"downs.{len(skips)}"
        if f"{name}.conv.weight" in w:
            x = conv(x, f"{name}.conv", stride=2)
        elif f"{name}.res_block.block1.block.0.weight" in w:
            x = block(x, name)
        else:
            break
        skips.append(x)
    x = block(block(x, "mid.0"), "mid.1")
    i = 0
    while skips:
        if f"ups.{i}.conv.weight" in w:
            x = conv(x.repeat_interleave(2, dim=2).repeat_interleave(2, dim=3), f"ups.{i}.conv")
        else:
            x = block(torch.cat([x, skips.pop()], dim=1), f"ups.{i}")
        i += 1
    return norm_silu_conv(x, "final_conv.block")


def run(*args: str | Path) -> click.testing.Result:
    return click.testing.CliRunner().invoke(main, ["import-sr3", *map(str, args)])


def error_of(*args: str | Path) -> str:
    """The one line that a refused command prints."""
    result = run(*args)
    assert result.exit_code == 2, result.output
    assert result.stdout == ""
    assert result.stderr.startswith("Error: ")
    assert result.stderr.count("\n") == 1
    return result.stderr


@pytest.fixture
def gen(tmp_path: Path) -> Callable[..., Path]:
    """A maker of SR3 files: what `torch.save` shall write → path."""

    def make(content: Any = None, **options: Any) -> Path:
        path = tmp_path / "I10_E1_gen.pth"
        torch.save(sr3_state_dict(sr3_shapes()) if content is None else content, path, **options)
        return path

    return make


ARCHITECTURES: list[tuple[dict[str, Any], list[int]]] = [
    ({"width": 16, "multipliers": (1, 2, 2), "attending": (1,)}, [16]),
    ({"width": 16, "multipliers": (1, 2), "blocks": 2, "attending": (0,)}, [32]),
    ({"width": 32, "multipliers": (1, 2, 4), "blocks": 1}, []),
    ({"width": 24, "multipliers": (2, 1, 3), "blocks": 3, "attending": (1, 2)}, [16, 8]),
    ({"width": 16, "multipliers": (1,), "attending": (0,)}, [32]),
]


@pytest.mark.parametrize(("architecture", "attention"), ARCHITECTURES)
def test_output_is_that_of_the_original(
    architecture: dict[str, Any], attention: list[int], gen: Callable[..., Path], tmp_path: Path
) -> None:
    shapes = sr3_shapes(**architecture)
    state_dict = sr3_state_dict(shapes)
    out = tmp_path / "out"
    result = run(gen(state_dict), out, "--image-size", "32")
    assert result.exit_code == 0, result.output
    groups = default_norm_groups(architecture["width"])
    assert f"norm groups: {groups} (the default" in result.output
    config = json.loads((out / "config.json").read_text(encoding="utf-8"))
    expected = {
        "width": architecture["width"],
        "multipliers": list(architecture["multipliers"]),
        "blocks": architecture.get("blocks", 1),
        "attention_resolutions": attention,
        "image_size": 32,
        "norm_groups": groups,
        "dropout": 0.0,
        "patch_size": 1,
        "noise_level_scale": 1.0,
        "prediction": "eps",
        "target": "image",
        "scale": 8,
        "coarse_steps": 10,
    }
    assert {name: config[name] for name in expected} == expected
    assert all(tensor.dtype == torch.float32 for tensor in load_file(out / "model.safetensors").values())
    unet = load_unet(out)
    assert sum(p.numel() for p in unet.parameters()) == sum(torch.Size(shape).numel() for shape in shapes.values())

    torch.manual_seed(0)
    lr_up, x_t, level = torch.rand(2, 3, 32, 32) * 2 - 1, torch.randn(2, 3, 32, 32), torch.tensor([0.93, 0.21])
    weights = {name.removeprefix("denoise_fn."): tensor for name, tensor in state_dict.items()}
    reference = sr3_forward(weights, groups, lr_up, x_t, level)
    assert reference.std() > 0.1
    torch.testing.assert_close(unet(lr_up, x_t, level).double(), reference, atol=1e-5, rtol=0)
    exact = unet.double()(lr_up.double(), x_t.double(), level.double())
    torch.testing.assert_close(exact, reference, atol=1e-7, rtol=0)
    other = sr3_forward(weights, groups, lr_up, x_t, level.flip(0))
    assert (other - reference).abs().max() > 1e-3, "the noise level matters"


def test_the_face_model() -> None:
    """SR3's 16→128 model: the number of its parameters and every name, without memory for them."""
    shapes = sr3_shapes(64, (1, 2, 4, 8, 8), 2, (3,))
    assert len(shapes) == 362
    with torch.device("meta"):
        unet = UNet(width=64, multipliers=(1, 2, 4, 8, 8), blocks=2, attention_resolutions=(16,), image_size=128)
    assert sum(p.numel() for p in unet.parameters()) == 97_807_491
    assert {sr3_name(name): tuple(tensor.shape) for name, tensor in unet.state_dict().items()} == shapes


@pytest.mark.parametrize("prefix", ["", "module.", "module.denoise_fn.", "denoise_fn.module."])
def test_prefixes(prefix: str, gen: Callable[..., Path]) -> None:
    usual = import_sr3(gen()).state_dict()
    other = import_sr3(gen(sr3_state_dict(sr3_shapes(), prefix))).state_dict()
    torch.testing.assert_close(other, usual, rtol=0, atol=0)


def test_half_precision_becomes_float32(gen: Callable[..., Path]) -> None:
    halves = {name: tensor.half() for name, tensor in sr3_state_dict(sr3_shapes()).items()}
    unet = import_sr3(gen(halves))
    assert {p.dtype for p in unet.parameters()} == {torch.float32}
    assert torch.equal(unet.state_dict()["last.bias"], halves["denoise_fn.final_conv.block.3.bias"].float())


def test_files_of_old_pytorch(gen: Callable[..., Path]) -> None:
    assert len(read_state_dict(gen(_use_new_zipfile_serialization=False))) == len(SCHEDULE_BUFFERS) + len(sr3_shapes())


@pytest.mark.parametrize(("width", "groups"), [(64, 32), (32, 32), (16, 8), (48, 24), (80, 20), (2, 1)])
def test_default_norm_groups(width: int, groups: int) -> None:
    assert default_norm_groups(width) == groups


def test_options(gen: Callable[..., Path], tmp_path: Path) -> None:
    shapes = sr3_shapes(attending=(1,))
    options = ["--norm-groups", "4", "--image-size", "64", "--scale", "4", "--coarse-steps", "5"]
    result = run(gen(sr3_state_dict(shapes)), tmp_path / "out", *options)
    assert result.exit_code == 0, result.output
    assert "norm groups: 4 (as given)" in result.output
    assert "attention at 32 (image size 64)" in result.output
    config = json.loads((tmp_path / "out" / "config.json").read_text(encoding="utf-8"))
    named = ("norm_groups", "image_size", "attention_resolutions", "scale", "coarse_steps")
    assert [config[name] for name in named] == [4, 64, [32], 4, 5]


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("norm_groups", 5, "divisible by norm_groups, got width 16 and norm_groups 5"),
        ("image_size", 33, "multiple of 2"),
        ("coarse_steps", 7, "must divide the 100 diffusion_steps"),
    ],
)
def test_bad_options(option: str, value: int, message: str, gen: Callable[..., Path], tmp_path: Path) -> None:
    assert message in error_of(gen(), tmp_path / "out", f"--{option.replace('_', '-')}={value}")
    assert not (tmp_path / "out").exists()
    options: dict[str, Any] = {option: value}
    with pytest.raises(ConfigError, match=message):
        import_sr3(gen(), **options)


def changed(**changes: Tensor | None) -> dict[str, Tensor]:
    """An SR3 state dict with tensors replaced, added or (None) removed."""
    state_dict = sr3_state_dict(sr3_shapes()) | {k: v for k, v in changes.items() if v is not None}
    return {k: v for k, v in state_dict.items() if changes.get(k, v) is not None}


WRONG: list[tuple[Any, list[str]]] = [
    ([1, 2, 3], ["does not hold a state dict but an object of type list"]),
    ({}, ["an empty dictionary"]),
    ({"state_dict": {"a": torch.zeros(1)}, "epoch": 3}, ["a dictionary with 'state_dict', 'epoch'"]),
    ({"epoch": 1, "iter": 2, "scheduler": None, "optimizer": {}}, ["state of an optimizer", "_gen.pth beside it"]),
    ({"weight": torch.zeros(3, 3)}, ["not of SR3's architecture", "lacks downs.0.weight"]),
    (
        changed(**dict.fromkeys([f"denoise_fn.mid.1.res_block.block{i}.block.0.bias" for i in (1, 2)])),
        ["it lacks mid.1.res_block.block1.block.0.bias, mid.1.res_block.block2.block.0.bias"],
    ),
    (
        {k: v for k, v in sr3_state_dict(sr3_shapes()).items() if ".ups." not in k},
        ["it lacks ups.0.res_block", "more"],
    ),
    (changed(**{"denoise_fn.downs.1.res_block.block2.block.3.weight": None}), ["lacks downs.1.res_block.block2"]),
    ({k: v for k, v in sr3_state_dict(sr3_shapes()).items() if ".downs.1." not in k}, ["lacks downs.1."]),
    ({k: v for k, v in sr3_state_dict(sr3_shapes()).items() if ".downs.2." not in k}, ["lacks downs.2."]),
    (changed(**{"denoise_fn.extra.weight": torch.zeros(3), "step": torch.zeros(1)}), ["unknown extra.weight, step"]),
    (
        changed(**{"denoise_fn.mid.0.attn.out.bias": torch.zeros(7)}),
        ["mid.0.attn.out.bias has shape (7,) instead of (32,)"],
    ),
    (changed(**{"denoise_fn.downs.0.weight": torch.zeros(16, 3, 3, 3)}), ["(16, 3, 3, 3) instead of (16, 6, 3, 3)"]),
    (changed(**{"denoise_fn.downs.0.weight": torch.zeros(0)}), ["downs.0.weight has shape (0,)"]),
    (changed(**{"denoise_fn.downs.0.weight": torch.zeros(100_000, 1, 1, 1)}), ["levels"]),
    (
        changed(**{"denoise_fn.downs.3.res_block.block2.block.3.weight": torch.zeros(16 * 10**6, 1, 1, 1)}),
        ["instead of (16000000, 16)"],
    ),
    (changed(**{"denoise_fn.downs.3.res_block.block2.block.3.weight": torch.zeros(33, 33, 3, 3)}), ["[[16], [33]]"]),
    (changed(**{"downs.0.bias": torch.zeros(16)}), ["holds downs.0.bias twice"]),
]


@pytest.mark.parametrize(("content", "messages"), WRONG, ids=[messages[0] for _, messages in WRONG])
def test_other_contents_are_refused(
    content: Any, messages: list[str], gen: Callable[..., Path], tmp_path: Path
) -> None:
    error = error_of(gen(content), tmp_path / "out")
    assert "I10_E1_gen.pth" in error
    assert len(error) < 600
    for message in messages:
        assert message in error
    assert not (tmp_path / "out").exists()


def test_damaged_files(gen: Callable[..., Path], tmp_path: Path) -> None:
    whole = gen().read_bytes()
    old = gen(_use_new_zipfile_serialization=False).read_bytes()
    path = tmp_path / "file.pth"
    for content in (whole[: len(whole) // 2], old[: len(old) // 2], old[:1000], b"", b"a letter\n", b"\x89PNG\r\n" * 9):
        path.write_bytes(content)
        assert "is damaged or not a checkpoint of PyTorch" in error_of(path, tmp_path / "out")
    assert "No such file" in error_of(tmp_path / "nowhere.pth", tmp_path / "out")
    assert "Is a directory" in error_of(tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


class Malicious:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("kind", ["zip", "old", "pickle"])
def test_code_in_a_file_is_not_run(kind: str, tmp_path: Path) -> None:
    path, marker = tmp_path / "gen.pth", tmp_path / "executed"
    content = {**sr3_state_dict(sr3_shapes()), "betas": Malicious(marker)}
    if kind == "pickle":
        path.write_bytes(pickle.dumps({"betas": Malicious(marker)}))
    else:
        torch.save(content, path, _use_new_zipfile_serialization=kind == "zip")
    error = error_of(path, tmp_path / "out")
    assert "cannot be read without running code stored in it" in error
    assert "--trust-pickle" in error
    assert not marker.exists()
    assert not (tmp_path / "out").exists()
    with pytest.raises(CheckpointError):
        read_state_dict(path)
    assert not marker.exists()


def test_trusted_pickles(gen: Callable[..., Path], tmp_path: Path) -> None:
    path = gen(UserDict(sr3_state_dict(sr3_shapes())))
    assert "collections.UserDict" in error_of(path, tmp_path / "out")
    result = run(path, tmp_path / "out", "--trust-pickle")
    assert result.exit_code == 0, result.output
    load_unet(tmp_path / "out")


def test_a_folder_in_use_is_kept(gen: Callable[..., Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    assert run(gen(), out).exit_code == 0, "an empty folder is taken"
    before = (out / "model.safetensors").read_bytes()
    (out / "notes.txt").write_text("mine", encoding="utf-8")
    other = gen(sr3_state_dict(sr3_shapes(multipliers=(1, 2, 2))))
    assert "is not empty; name another one or pass --overwrite" in error_of(other, out)
    assert (out / "model.safetensors").read_bytes() == before
    assert run(other, out, "--overwrite").exit_code == 0
    assert (out / "notes.txt").read_text(encoding="utf-8") == "mine"
    assert load_unet(out).multiple == 4
    assert "is a file" in run(other, out / "notes.txt").output


def test_nothing_is_half_written(gen: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, new = tmp_path / "out", tmp_path / "new"
    assert run(gen(), out).exit_code == 0
    before = {path.name: path.read_bytes() for path in out.iterdir()}

    def full_disk(self: UNet, folder: Path) -> None:
        folder.mkdir(parents=True)
        (folder / "model.safetensors").write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(UNet, "save_pretrained", full_disk)
    for folder in (out, new):
        assert "No space left on device" in error_of(gen(), folder, "--overwrite")
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before
    assert not new.exists()


def test_others_may_read_the_result(gen: Callable[..., Path], tmp_path: Path) -> None:
    assert run(gen(), tmp_path / "out").exit_code == 0
    modes = {path.stat().st_mode for path in (tmp_path / "out").iterdir()}
    assert len(modes) == 1
