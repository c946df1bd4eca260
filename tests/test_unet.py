"""The UNet: settings, shapes, and files that are whole, damaged or of another net."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from ddpm.checkpoints import load_unet, save_checkpoint, shipped_checkpoints
from ddpm.nets.blocks import linear_estimate
from ddpm.nets.unet import UNet
from ddpm.util.errors import CheckpointError, ConfigError
from tests.conftest import TINY, tiny_unet


def inputs(height: int = 32, width: int = 32) -> tuple[Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    lr_up = torch.rand(2, 3, height, width, generator=generator) * 2 - 1
    return lr_up, torch.randn(2, 3, height, width, generator=generator), torch.tensor([0.9, 0.2])


def message_of(checkpoint: str | Path, error: type[Exception] = CheckpointError, device: str = "cpu") -> str:
    """The one line with which `load_unet` refuses."""
    with pytest.raises(error) as caught:
        load_unet(checkpoint, device)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 700
    return str(caught.value)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A checkpoint that a test may damage."""
    tiny_unet().save_pretrained(tmp_path / "net")
    return tmp_path / "net"


@pytest.fixture
def configure(folder: Path) -> Callable[..., None]:
    """Changes settings in the folder's config.json."""

    def change(**settings: Any) -> None:
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text(encoding="utf-8")) | settings), encoding="utf-8")

    return change


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"prediction": "eps", "target": "image", "noise_level_scale": 1.0, "patch_size": 1, "start": None},
        {"multipliers": (1, 2, 2), "blocks": 2, "attention_resolutions": (16, 8), "image_size": 32, "dropout": 0.1},
        {
            "residual_scale": 2.0,
            "scale": 8,
            "diffusion_steps": 20,
            "coarse_steps": 4,
            "width": 12,
        },
    ],
)
def test_round_trip(changes: dict[str, Any], tmp_path: Path) -> None:
    unet = tiny_unet(**changes)
    unet.save_pretrained(tmp_path / "net")
    config = json.loads((tmp_path / "net" / "config.json").read_text(encoding="utf-8"))
    given = TINY | changes
    assert {name: config[name] for name in given} == {
        k: list(v) if isinstance(v, tuple) else v for k, v in given.items()
    }
    for loaded in (UNet.from_pretrained(tmp_path / "net"), load_unet(tmp_path / "net")):
        assert not loaded.training
        assert torch.equal(loaded(*inputs()), unet(*inputs()))
        for name in ("prediction", "target", "residual_scale", "scale", "diffusion_steps"):
            assert getattr(loaded, name) == getattr(unet, name)
        assert loaded.settings == json.loads(json.dumps(unet.settings))


def test_loading_prints_nothing(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    UNet.from_pretrained(folder)
    load_unet(folder)
    assert capfd.readouterr() == ("", "")


def test_loaded_for_inference(folder: Path) -> None:
    assert not any(parameter.requires_grad for parameter in load_unet(folder).parameters())


def test_defaults_are_the_papers() -> None:
    with torch.device("meta"):
        unet = UNet()
    config = unet.settings
    paper = {"width": 64, "multipliers": (1, 2, 4, 8, 8), "blocks": 2, "attention_resolutions": (16,), "dropout": 0.2}
    assert {name: config[name] for name in paper} == paper
    attending = {
        m.qkv.in_channels for name, m in unet.named_modules() if name.endswith("attention") and hasattr(m, "qkv")
    }
    assert attending == {512}
    assert unet.multiple == 16


@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("spread", [0.01, 0.4, 3.0])
def test_the_linear_estimate_is_the_best_linear_one(prediction: str, spread: float) -> None:
    """Least squares over samples of a normal x_0 of that variance finds the same factor on x_t."""
    generator = torch.Generator().manual_seed(0)
    x_0 = spread * torch.randn(1, 3, 200, 200, generator=generator)
    eps = torch.randn(x_0.shape, generator=generator)
    for level in (0.1, 0.7, 0.99):
        a, b = level, (1 - level**2) ** 0.5
        x_t = a * x_0 + b * eps
        truth = eps if prediction == "eps" else a * eps - b * x_0
        fitted = (truth * x_t).sum() / x_t.square().sum()
        log_variance = torch.full_like(x_0, 2 * math.log(spread))
        estimate = linear_estimate(prediction, x_t, torch.tensor([level]), log_variance)
        torch.testing.assert_close(estimate, fitted * x_t, atol=0.05, rtol=0.05)


@pytest.mark.parametrize("patch_size", [1, 2])
def test_a_net_that_predicts_the_variance(patch_size: int) -> None:
    unet = tiny_unet(patch_size=patch_size, local_variance=True)
    lr_up, x_t, level = inputs(16, 16)
    output = unet(lr_up, x_t, level)
    assert output.shape == x_t.shape
    with torch.no_grad():
        unet.last.weight.zero_()
        unet.last.bias.zero_()  # type: ignore[union-attr]
    assert torch.allclose(unet(lr_up, x_t, level), torch.zeros_like(x_t), atol=1e-6), (
        "of variance 1 v is not correlated with x_t"
    )


@pytest.mark.parametrize("patch_size", [1, 2])
@pytest.mark.parametrize("prediction", ["eps", "v"])
@pytest.mark.parametrize("size", [(32, 32), (16, 48), (4, 8)])
def test_shapes(patch_size: int, prediction: str, size: tuple[int, int]) -> None:
    unet = tiny_unet(patch_size=patch_size, prediction=prediction, attention_resolutions=(16,), image_size=32)
    assert unet.multiple == 2 * patch_size
    lr_up, x_t, level = inputs(*size)
    output = unet(lr_up, x_t, level)
    assert output.shape == (2, 3, *size)
    assert output.dtype == torch.float32
    assert output.isfinite().all()
    for i in range(2):  # members of a batch do not mix
        alone = unet(lr_up[i : i + 1], x_t[i : i + 1], level[i : i + 1])
        torch.testing.assert_close(alone, output[i : i + 1], atol=1e-5, rtol=0)


@pytest.mark.parametrize("noise_level_scale", [1.0, 1000.0])
def test_every_input_matters(noise_level_scale: float) -> None:
    unet = tiny_unet(noise_level_scale=noise_level_scale)
    lr_up, x_t, level = inputs()
    output = unet(lr_up, x_t, level)
    for other in ((-lr_up, x_t, level), (lr_up, -x_t, level), (lr_up, x_t, level.flip(0))):
        assert (unet(*other) - output).abs().max() > 1e-3


def test_inputs_are_not_changed(unet: UNet) -> None:
    given = inputs()
    before = [tensor.clone() for tensor in given]
    unet(*given)
    assert all(map(torch.equal, given, before))


def test_attention_sees_the_whole_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pixel far outside the reach of the convolutions changes the result."""
    lr_up, x_t, level = inputs(16, 512)
    moved = x_t.clone()
    moved[..., :4] += 3
    unet = tiny_unet()
    monkeypatch.setattr(torch.nn.GroupNorm, "forward", lambda self, x: x.clone())  # norms see everything as well
    far = slice(400, None)
    assert (unet(lr_up, moved, level) - unet(lr_up, x_t, level))[..., far].abs().max() > 0
    for block in unet.middle:
        block.attention = torch.nn.Identity()
    assert torch.equal(unet(lr_up, moved, level)[..., far], unet(lr_up, x_t, level)[..., far])


@pytest.mark.parametrize(
    ("setting", "value", "message"),
    [
        ("width", 9, "width must be even"),
        ("width", 0, "width must be a whole number of at least 1, got 0"),
        ("width", "8", "width must be a whole number of at least 1, got '8'"),
        ("blocks", 1.5, "blocks must be a whole number"),
        ("blocks", True, "blocks must be a whole number"),
        ("multipliers", (), "multipliers must name 1 … 10 levels, got 0"),
        ("multipliers", (1, 0), "multipliers must be a list of whole numbers"),
        ("multipliers", (1, 2.5), "multipliers must be a list of whole numbers"),
        ("multipliers", 3, "multipliers must be a list of whole numbers"),
        ("multipliers", "12", "multipliers must be a list of whole numbers"),
        ("attention_resolutions", 16, "attention_resolutions must be a list of whole numbers"),
        ("attention_resolutions", ("16",), "attention_resolutions must be a list of whole numbers"),
        ("image_size", 0, "image_size must be a whole number"),
        ("image_size", None, "image_size must be a whole number"),
        ("dropout", 1.0, "dropout must be a number of at least 0 and below 1, got 1.0"),
        ("dropout", -0.1, "dropout must be a number"),
        ("dropout", "0", "dropout must be a number"),
        ("norm_groups", 0, "norm_groups must be a whole number"),
        ("norm_groups", 3, "divisible by norm_groups, got width 8 and norm_groups 3"),
        ("norm_groups", 16, "divisible by norm_groups, got width 8 and norm_groups 16"),
        ("patch_size", 0, "patch_size must be a whole number"),
        ("noise_level_scale", 0, "noise_level_scale must be a number above 0"),
        ("noise_level_scale", float("nan"), "noise_level_scale must be a number above 0"),
        ("residual_scale", -4.0, "residual_scale must be a number above 0"),
        ("residual_scale", float("inf"), "residual_scale must be a number above 0"),
        ("prediction", "x0", "prediction must be one of eps, v, got 'x0'"),
        ("target", "noise", "target must be one of image, residual, got 'noise'"),
        ("scale", 2.5, "scale must be a whole number"),
        ("diffusion_steps", 0, "diffusion_steps must be a whole number"),
        ("coarse_steps", 0, "coarse_steps must be a whole number"),
        ("coarse_steps", 7, "must divide the 100 diffusion_steps, got 7"),
        ("start", 0, "start must be a whole number in 1 … 10, got 0"),
        ("start", 11, "start must be a whole number in 1 … 10, got 11"),
        ("start", "5", "start must be a whole number"),
        (
            "coarse_sampler",
            "pndm",
            "coarse_sampler must be one of ddpm, ddim, dpmsolver\\+\\+, or ddim:ETA .* got 'pndm'",
        ),
        ("coarse_sampler", ["ddim"], "coarse_sampler must be one of .* got .'ddim'."),
        ("widht", 8, "unknown UNet setting widht; known are attention_resolutions, .*, width$"),
    ],
)
def test_bad_settings(setting: str, value: Any, message: str, folder: Path, configure: Callable[..., None]) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny_unet(**{setting: value})
    configure(**{setting: value})
    assert message_of(folder, ConfigError).startswith(f"{folder / 'config.json'}: ")


@pytest.mark.parametrize("length", [0, 4, 0.1, 0.5, 0.999])
def test_truncated_weights(length: float, folder: Path) -> None:
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    path.write_bytes(whole[: length if isinstance(length, int) else int(length * len(whole))])
    assert message_of(folder).startswith(f"{path} is damaged")
    with pytest.raises(CheckpointError):
        UNet.from_pretrained(folder)


def test_other_bytes_as_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"PK\x03\x04" * 1000)
    assert "model.safetensors is damaged" in message_of(folder)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
def test_missing_file(name: str, folder: Path) -> None:
    (folder / name).unlink()
    assert f"it lacks {name}" in message_of(folder)


@pytest.mark.parametrize("content", [b"", b"{", b"[1, 2]", b"null", b"3", b"\xff\xfe\x00", b'{"model_id": 1}'])
def test_damaged_config(content: bytes, folder: Path) -> None:
    (folder / "config.json").write_bytes(content)
    assert message_of(folder).startswith(f"{folder / 'config.json'} is damaged (")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 16}, "embedding.mlp.0.weight has shape (32, 8) instead of (64, 16)"),
        ({"blocks": 2}, "it lacks down.1.residual"),
        ({"multipliers": [1, 2, 2]}, "it lacks down.3.weight"),
        ({"attention_resolutions": [64]}, "it lacks down.0.attention.norm.weight"),
        ({"patch_size": 1}, "first.weight has shape (8, 24, 3, 3) instead of (8, 6, 3, 3)"),
    ],
)
def test_config_of_another_net(
    settings: dict[str, Any], message: str, folder: Path, configure: Callable[..., None]
) -> None:
    configure(**settings)
    assert f"{folder / 'model.safetensors'} does not fit its config.json: " in message_of(folder)
    assert message in message_of(folder)


def test_tensors_must_be_exactly_the_nets(folder: Path) -> None:
    path = folder / "model.safetensors"
    tensors = load_file(path)
    save_file({k: v for k, v in tensors.items() if not k.startswith("embedding")}, path)
    missing = message_of(folder)
    assert "it lacks embedding.mlp.0.weight, embedding.mlp.0.bias, embedding.mlp.2.weight and 1 more" in missing
    save_file(tensors | {"more": torch.zeros(3)}, path)
    assert "it holds unknown more" in message_of(folder)
    save_file(tensors | {"last.bias": torch.zeros(5)}, path)
    assert "last.bias has shape (5,) instead of (12,)" in message_of(folder)
    with pytest.raises(CheckpointError):
        UNet.from_pretrained(folder)


def test_half_precision_file(folder: Path) -> None:
    path = folder / "model.safetensors"
    halves = {name: tensor.half() for name, tensor in load_file(path).items()}
    save_file(halves, path)
    unet = load_unet(folder)
    assert {tensor.dtype for tensor in unet.state_dict().values()} == {torch.float32}
    torch.testing.assert_close(unet.state_dict(), {k: v.float() for k, v in halves.items()}, rtol=0, atol=0)
    assert unet(*inputs()).dtype == torch.float32


def test_unknown_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, folder: Path) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ddpm.checkpoints.shipped_checkpoints", lambda: {"natural-x4": folder, "faces-x8": folder})
    assert load_unet("faces-x8").multiple == 4
    for name in ("natural-x5", "./nothing", "../nothing", "/nothing/at/all", "a/b/c"):
        message = message_of(name)
        assert repr(name) in message
        assert "known are natural-x4, faces-x8, a folder with config.json" in message


@pytest.mark.parametrize("name", ["owner/name", "owner/na me"])
def test_hub_ids_without_the_hub(name: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    assert f"unknown checkpoint {name!r}: no such folder, and the Hub did not give it" in message_of(name)


def test_shipped_checkpoints_load() -> None:
    for name, folder in shipped_checkpoints().items():
        unet = load_unet(name)
        assert unet(*inputs(unet.multiple * 4, unet.multiple * 4)).isfinite().all(), folder


@pytest.mark.parametrize("device", ["cuda:99", "nonsense", "", "cpu:one"])
def test_bad_device(device: str, folder: Path) -> None:
    message = message_of(folder, ConfigError, device)
    assert message.startswith(f"no such device: {device!r}; this machine has cpu")


def test_save_checkpoint_replaces_and_keeps(folder: Path) -> None:
    (folder / "notes.txt").write_text("mine", encoding="utf-8")
    other = tiny_unet(seed=1, multipliers=(1, 2, 2))
    save_checkpoint(other, folder)
    assert torch.equal(load_unet(folder)(*inputs()), other(*inputs()))
    assert {path.name for path in folder.iterdir()} == {"README.md", "config.json", "model.safetensors", "notes.txt"}


def test_save_checkpoint_without_a_place(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="cannot write the checkpoint"):
        save_checkpoint(tiny_unet(), folder / "config.json" / "net")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"width": 2**40}, "does not fit into memory"),
        ({"width": 2**70}, "does not fit into memory"),
        ({"multipliers": [2**40]}, "does not fit into memory"),
        ({"multipliers": [1] * 100}, "multipliers must name 1 … 10 levels, got 100"),
        ({"blocks": 10**9}, "blocks must be at most 64, got 1000000000"),
        ({"patch_size": 10**9}, "patch_size must be at most 64"),
        ({"scale": 10**6}, "scale must be at most 64"),
        ({"diffusion_steps": 10**12, "coarse_steps": 1}, "diffusion_steps must be at most 100000"),
        ({"levels": [10**12, 1]}, "levels must be at most 100000"),
        ({"levels": 3}, "levels must be falling whole numbers"),
    ],
)
def test_sizes_beyond_all_reason(settings: dict[str, Any], message: str, folder: Path) -> None:
    """They are refused at once, and not when the memory is used up."""
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | settings
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        load_unet(folder)


def test_a_large_net_needs_no_memory_until_its_weights_fit(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text(encoding="utf-8")) | {"width": 2**16}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    assert "does not fit its config.json" in message_of(folder)
