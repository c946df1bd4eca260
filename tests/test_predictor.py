"""The predictor: loading by spandrel, its picture as condition, and its training."""

import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file, save_file
from skimage import data
from torch import nn

from ddpm.checkpoints import load_unet, save_checkpoint, shipped_checkpoints
from ddpm.nets import predictor as predictor_module
from ddpm.nets.predictor import PREDICTOR, fuse, load_predictor
from ddpm.nets.unet import UNet
from ddpm.pictures.degradation import Degradation, downsample, upsample
from ddpm.pictures.images import to_tensor
from ddpm.training.configs import DDPMConfig, PredictorConfig
from ddpm.training.predictor import _expanded, train_predictor
from ddpm.training.trainer import resumed_config
from ddpm.training.unet import initial_settings, train
from ddpm.util.errors import CheckpointError, ConfigError
from ddpm.util.packages import ensure_torchvision
from skipdiff_env.env import SkipDiffEnv
from skipdiff_env.pictures import Pictures
from skipdiff_env.upscaler import Upscaler
from tests.conftest import TINY, Photo, tiny_unet


def tiny_span(scale: int = 4, channels: int = 8, norm: bool = True) -> nn.Module:
    """A small SPAN with random weights, in training mode."""
    ensure_torchvision()
    from spandrel.architectures.SPAN import SPAN

    torch.manual_seed(1)
    return SPAN(num_in_ch=3, num_out_ch=3, feature_channels=channels, upscale=scale, norm=norm)


@pytest.fixture(scope="module")
def span(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The file of a SPAN that enlarges four times."""
    file = tmp_path_factory.mktemp("span") / "span.safetensors"
    save_file(tiny_span(norm=False).state_dict(), file)
    return file


def lr_pictures(height: int = 12, width: int = 10) -> torch.Tensor:
    return torch.rand(2, 3, height, width, generator=torch.Generator().manual_seed(0)) * 2 - 1


@pytest.mark.parametrize("norm", [True, False])
def test_fused_span_is_spandrels(norm: bool, tmp_path: Path) -> None:
    net = tiny_span(norm=norm)
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    lr = lr_pictures()
    loaded = load_predictor(tmp_path / "net.safetensors")
    assert loaded.scale == 4
    with torch.no_grad():
        expected = net.eval()((lr + 1) / 2).clamp(0, 1) * 2 - 1
    torch.testing.assert_close(loaded(lr), expected, atol=1e-4, rtol=0)
    assert expected.std() > 0.01
    assert not any(parameter.requires_grad for parameter in loaded.parameters())


def test_large_pictures_in_pieces(span: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predictor = load_predictor(span)
    lr = lr_pictures(70, 90)
    whole = predictor(lr)
    monkeypatch.setattr(predictor_module, "TILE", 32)
    torch.testing.assert_close(predictor(lr), whole, atol=1e-5, rtol=0)


def test_the_condition_is_the_predictors_picture(tmp_path: Path, photo: Photo) -> None:
    span = shipped_checkpoints()["natural-x4"] / PREDICTOR  # one with random weights gives no picture of its input
    unet = tiny_unet()
    unet.start_from(load_predictor(span))
    save_checkpoint(unet, tmp_path / "net")
    assert load_file(tmp_path / "net" / PREDICTOR).keys() == load_file(span).keys()
    loaded = load_unet(tmp_path / "net")
    lr = downsample(to_tensor(photo(64, 64))[None], 4)
    condition = loaded.condition(lr)
    torch.testing.assert_close(condition, load_predictor(span)(lr))
    assert not torch.allclose(condition, upsample(lr, 4), atol=0.01)
    assert not any("predictor" in name for name in loaded.state_dict())

    env = SkipDiffEnv(checkpoint=tmp_path / "net", image_size=64, metric="psnr")
    env.reset(options={"image": photo(64, 64)})
    assert env._episode is not None
    torch.testing.assert_close(env._episode.refinement.lr_up, condition[0])
    upscaler = Upscaler(tmp_path / "net")
    seen: list[torch.Tensor] = []
    assert isinstance(upscaler.unet, UNet)
    upscaler.unet.register_forward_hook(lambda module, args, out: seen.append(args[0]))
    upscaler.upscale([lr[0]], [0])
    torch.testing.assert_close(seen[0], condition)


def text(ground: Any, ink: Any, mode: str) -> Image.Image:
    """Letters, of one bit (mode "1") or smooth ("L")."""
    image = Image.new("RGB", (64, 48), ground)
    draw = ImageDraw.Draw(image)
    draw.fontmode = mode
    draw.multiline_text((3, 2), "Form 7\nagain $\n100 %", fill=ink, font_size=12, spacing=2)
    return image


def graphics() -> dict[str, Image.Image]:
    rng = np.random.default_rng(0)
    colours = np.array([(255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 0), (0, 255, 255)], np.uint8)
    tiles = colours[rng.integers(5, size=(8, 8))].repeat(6, 0).repeat(6, 1)
    chequer = np.indices((48, 48)).sum(axis=0) % 2 * 255
    return {
        "scan": text("white", "black", "1"),
        "yellow": text((255, 240, 0), (0, 0, 200), "L"),
        "terminal": text("black", (0, 255, 0), "1"),
        "tiles": Image.fromarray(tiles),
        "chequer": Image.fromarray(chequer.astype(np.uint8)).convert("RGB"),
        "dots": Image.fromarray((rng.random((48, 48)) < 0.5).astype(np.uint8) * 255).convert("RGB"),
        "flat": Image.new("RGB", (32, 32), (0, 255, 128)),
    }


def distance(large: Image.Image, small: Image.Image) -> np.ndarray:
    """How far a picture that is shrunk again is from its input, in levels, averages of 8 x 8 pixels."""
    again = np.asarray(large.convert("RGB").resize(small.size, Image.Resampling.BOX)).astype(float)
    off = np.abs(again - np.asarray(small)).max(axis=-1)
    rows, columns = (side // 8 for side in off.shape)
    return off.reshape(rows, 8, columns, 8).mean(axis=(1, 3))


@pytest.mark.parametrize("name", ["natural-x4", "photo-x4"])
def test_graphics_are_no_worse_than_bicubic(name: str) -> None:
    upscaler = Upscaler(name, levels=(5, 2))
    for what, small in graphics().items():
        bicubic = small.resize((4 * small.width, 4 * small.height), Image.Resampling.BICUBIC)
        worse = distance(upscaler(small), small) - distance(bicubic, small)
        assert worse.max() < 6, what  # 27 to 150 without the fallback, but where it is flat


@pytest.mark.parametrize(
    ("name", "degradation"), [("natural-x4", "bicubic"), ("photo-x4", "photo:1"), ("faces-x8", "bicubic")]
)
def test_photographs_keep_the_predictors_picture(name: str, degradation: str) -> None:
    unet = load_unet(name)
    assert unet.predictor is not None
    for rgb in Pictures(None, 128):
        lr = Degradation.parse(degradation)(to_tensor(rgb)[None], unet.scale)
        assert torch.equal(unet.condition(lr), unet.predictor(lr))


def test_the_fallback_is_local() -> None:
    unet = load_unet("natural-x4")
    assert unet.predictor is not None
    rgb = data.astronaut()[:96, 150:246].copy()
    alone = to_tensor(rgb)[None]
    rgb[:40, :40] = np.asarray(graphics()["chequer"])[:40, :40]
    lr = to_tensor(rgb)[None]
    condition = unet.condition(lr)
    torch.testing.assert_close(condition[..., :140, :140], upsample(lr, 4)[..., :140, :140])
    assert torch.equal(condition[..., 240:, :], unet.predictor(lr)[..., 240:, :])
    torch.testing.assert_close(unet.condition(torch.cat([alone, lr])), torch.cat([unet.condition(alone), condition]))


def test_a_net_without_its_predictor_is_not_used(span: Path, tmp_path: Path) -> None:
    unet = tiny_unet()
    unet.start_from(load_predictor(span))
    save_checkpoint(unet, tmp_path / "net")
    (tmp_path / "net" / PREDICTOR).unlink()
    with pytest.raises(CheckpointError, match=r"no predictor at .*predictor.safetensors"):
        load_unet(tmp_path / "net")
    with pytest.raises(ConfigError, match="was not loaded"):
        tiny_unet(predictor=PREDICTOR).condition(lr_pictures())


def test_another_scale_is_refused(span: Path, tmp_path: Path, photos: Path) -> None:
    with pytest.raises(ConfigError, match="enlarges 4 times, but the net 8 times"):
        tiny_unet(scale=8).start_from(load_predictor(span))
    config = DDPMConfig(images=[str(photos)], unet={**TINY, "scale": 8}, crop=32, predictor=str(span))
    with pytest.raises(CheckpointError, match="enlarges 4 times, but 8 times is needed"):
        train(config, tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"hello", "is damaged"),
        ({"a": torch.zeros(3)}, "knows no super-resolution net"),
        (None, "there is no predictor"),
    ],
)
def test_what_is_no_predictor(content: bytes | dict[str, torch.Tensor] | None, message: str, tmp_path: Path) -> None:
    file = tmp_path / "x.safetensors"
    if isinstance(content, bytes):
        file.write_bytes(content)
    elif content is not None:
        save_file(content, file)
    with pytest.raises(CheckpointError, match=message):
        load_predictor(file)


def test_weights_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    net = tiny_span()
    net.upsampler[0].bias.data[0] = float("nan")  # type: ignore[index, union-attr]
    save_file(net.state_dict(), tmp_path / "net.safetensors")
    with pytest.raises(CheckpointError, match=r"not finite \(upsampler"):
        load_predictor(tmp_path / "net.safetensors")

    unet = tiny_unet()
    save_checkpoint(unet, tmp_path / "good")
    tensors = load_file(tmp_path / "good" / "model.safetensors")
    tensors["last.bias"][0] = float("inf")
    save_file(tensors, tmp_path / "good" / "model.safetensors")
    with pytest.raises(CheckpointError, match=r"not finite \(last.bias\)"):
        load_unet(tmp_path / "good")
    unet.last.bias.data[0] = float("nan")  # type: ignore[union-attr]
    with pytest.raises(CheckpointError, match=r"not finite \(last.bias\)"):
        save_checkpoint(unet, tmp_path / "bad")
    assert not (tmp_path / "bad").exists()


def test_training_takes_the_predictor_along(span: Path, photos: Path, tmp_path: Path) -> None:
    file = tmp_path / "moved.safetensors"
    file.write_bytes(span.read_bytes())
    config = DDPMConfig(
        images=[str(photos)], unet=TINY, crop=32, batch_size=2, iterations=2, save_every=1, predictor=str(file)
    )
    trained = load_unet(train(config, tmp_path / "run"))
    assert trained.predictor is not None
    file.unlink()  # the run has a copy of its own
    more = resumed_config(DDPMConfig, tmp_path / "run", {"iterations": 3})
    assert load_unet(train(more, tmp_path / "run", resume=True)).predictor is not None
    begun = DDPMConfig(
        images=[str(photos)], unet=TINY, crop=32, batch_size=2, iterations=1, init=str(tmp_path / "run" / "checkpoint")
    )
    assert load_unet(train(begun, tmp_path / "second")).predictor is not None


def test_a_run_that_was_killed_before_its_first_checkpoint_keeps_the_predictor(
    span: Path, photos: Path, tmp_path: Path
) -> None:
    """Such a run has a state, but neither a checkpoint nor the copy of the predictor of what it began with."""
    start = tiny_unet()
    start.start_from(load_predictor(span))
    save_checkpoint(start, tmp_path / "start")
    settings = initial_settings(str(tmp_path / "start"))
    config = DDPMConfig(
        images=[str(photos)], unet=settings, crop=32, batch_size=2, iterations=1, init=str(tmp_path / "start")
    )
    train(config, tmp_path / "run")
    shutil.rmtree(tmp_path / "run" / "checkpoint")
    (tmp_path / "run" / PREDICTOR).unlink()
    more = resumed_config(DDPMConfig, tmp_path / "run", {"iterations": 2})
    assert load_unet(train(more, tmp_path / "run", resume=True)).predictor is not None
    shutil.rmtree(tmp_path / "start")  # the run now has a copy of its own
    more = resumed_config(DDPMConfig, tmp_path / "run", {"iterations": 3})
    assert load_unet(train(more, tmp_path / "run", resume=True)).predictor is not None


def test_the_command_trains_a_predictor(photos: Path, tmp_path: Path) -> None:
    config = PredictorConfig(
        images=[str(photos)], scale=8, channels=8, crop=64, batch_size=2, iterations=4, save_every=2, warmup=0
    )
    whole = train_predictor(config, tmp_path / "whole")
    predictor = load_predictor(whole, 8)
    assert predictor(lr_pictures(8, 8)).shape == (2, 3, 64, 64)

    command = [sys.executable, "-m", "agents.cli", "train-predictor", f"--images={photos}", f"--out={tmp_path / 'cli'}"]
    options = ["--scale=8", "--channels=8", "--crop=64", "--batch-size=2", "--save-every=2", "--warmup=0"]
    options += ["--iterations=4"]
    done = subprocess.run(
        [*command, *options], env=os.environ | {"OMP_NUM_THREADS": "1"}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    ours, theirs = (load_file(file) for file in (whole, tmp_path / "cli" / "checkpoint" / PREDICTOR))
    for name, tensor in ours.items():
        assert torch.equal(tensor, theirs[name]), name


@pytest.mark.parametrize("norm", [True, False])
def test_what_was_trained_is_what_is_loaded(norm: bool, tmp_path: Path) -> None:
    plain = tiny_span(norm=norm).eval()
    fuse(plain)
    save_file(_expanded(plain, tiny_span(norm=norm)), tmp_path / "net.safetensors")
    lr = lr_pictures()
    with torch.no_grad():
        expected = plain((lr + 1) / 2).clamp(0, 1) * 2 - 1
    torch.testing.assert_close(load_predictor(tmp_path / "net.safetensors")(lr), expected, atol=1e-4, rtol=0)


def test_a_predictor_learns(photo: Photo) -> None:
    net = tiny_span(scale=4, norm=False)
    hr = torch.stack([to_tensor(photo(64, 64, seed=i)) for i in range(8)])
    lr = (downsample(hr, 4) + 1) / 2
    optimizer = torch.optim.Adam(net.parameters(), 2e-3)

    def step() -> float:
        optimizer.zero_grad()
        loss = nn.functional.l1_loss(net(lr) * 2 - 1, hr)
        loss.backward()
        optimizer.step()
        return loss.item()

    losses = [step() for _ in range(40)]
    assert np.mean(losses[-5:]) < 0.5 * np.mean(losses[:5])
