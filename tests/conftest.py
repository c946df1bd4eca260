"""Fixtures: a tiny net, schedules, photographs."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from ddpm.nets.denoiser import Denoiser
from ddpm.nets.unet import UNet
from ddpm.schedule import FloatArray, cosine_alphas_cumprod
from skipdiff_env.judges import VARIABLE

Photo = Callable[..., np.ndarray]

TINY: dict[str, Any] = {
    "width": 8,
    "multipliers": (1, 2),
    "blocks": 1,
    "attention_resolutions": (),
    "norm_groups": 4,
    "patch_size": 2,
    "dropout": 0.0,
    "noise_level_scale": 1000.0,
    "prediction": "v",
    "target": "residual",
    "start": 5,
}


def tiny_unet(seed: int = 0, **changes: Any) -> UNet:
    """A small random net in inference mode."""
    torch.manual_seed(seed)
    return UNet(**{**TINY, **changes}).eval().requires_grad_(False)


@contextmanager
def counting(unet: Denoiser) -> Iterator[list[int]]:
    """Gives a list that collects the batch size of every forward within the block."""
    sizes: list[int] = []
    assert isinstance(unet, UNet)
    handle = unet.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
    try:
        yield sizes
    finally:
        handle.remove()


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    """Tiny nets are quicker without thread hand-over, and results do not depend on the machine's cores."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _no_judge(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tables are the same on machines that have the judges' weights and on others."""
    monkeypatch.setenv(VARIABLE, "no/judge.safetensors")


@pytest.fixture(scope="session")
def random_judge(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A file with random weights of the judges' names and shapes."""
    generator = torch.Generator().manual_seed(0)
    weights: dict[str, torch.Tensor] = {}
    channels = [3, 64, 64, 128, 128, 256, 256, 256, 512, 512, 512, 512, 512, 512]
    for i, (before, after) in enumerate(pairwise(channels)):
        kernel = torch.randn(after, before, 3, 3, generator=generator) * (2 / (9 * before)) ** 0.5
        weights[f"conv{i}.weight"] = kernel.half()
        weights[f"conv{i}.bias"] = (0.1 * torch.randn(after, generator=generator)).half()
    for i, count in enumerate((64, 128, 256, 512, 512)):
        weights[f"lin{i}"] = torch.rand(count, generator=generator)
    weights |= {name: torch.rand(3 + 64 + 128 + 256 + 512 + 512, generator=generator) for name in ("alpha", "beta")}
    path = tmp_path_factory.mktemp("judge") / "judge.safetensors"
    save_file(weights, path)
    return path


@pytest.fixture
def unet() -> UNet:
    """The tiny net: predicts v of the residual."""
    return tiny_unet()


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with the tiny net."""
    folder = tmp_path_factory.mktemp("tiny")
    tiny_unet().save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="session")
def short_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A folder with a tiny net of T = 12 diffusion steps, for short episodes."""
    folder = tmp_path_factory.mktemp("short")
    tiny_unet(diffusion_steps=12, coarse_steps=3, start=None).save_pretrained(folder)
    return str(folder)


@pytest.fixture
def alphas_cumprod() -> FloatArray:
    """The full schedule, T = 100."""
    return cosine_alphas_cumprod(100)


@pytest.fixture
def photo() -> Callable[..., np.ndarray]:
    """A maker of smooth, noisy pictures: (height, width, seed) → uint8 (H, W, 3)."""

    def make(height: int = 64, width: int = 64, seed: int = 0) -> np.ndarray:
        rng = np.random.default_rng(seed)
        small = Image.fromarray(rng.integers(0, 256, (8, 8, 3), dtype=np.uint8))
        smooth = np.asarray(small.resize((width, height), Image.Resampling.BICUBIC)).astype(float)
        return (smooth + rng.normal(0, 8, smooth.shape)).clip(0, 255).astype(np.uint8)

    return make


@pytest.fixture
def photos(tmp_path: Path, photo: Callable[..., np.ndarray]) -> Path:
    """A folder of four 128 x 128 pictures."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(4):
        Image.fromarray(photo(128, 128, seed=i)).save(folder / f"{i}.png")
    return folder


@pytest.fixture
def count_forwards() -> Callable[[Denoiser], list[int]]:
    """Hooks a net; the list it gives collects the batch size of every forward."""

    def hook(unet: Denoiser) -> list[int]:
        sizes: list[int] = []
        assert isinstance(unet, UNet)
        unet.register_forward_hook(lambda module, args, output: sizes.append(len(args[0])))
        return sizes

    return hook
