"""Other samplers against ours and against diffusers' own use of its schedulers."""

import sys
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, DPMSolverMultistepScheduler, UniPCMultistepScheduler
from torch import Tensor

from ddpm.nets.denoiser import to_latent, x0_weights
from ddpm.nets.unet import UNet
from ddpm.noise import KeyedNoise, Stage
from ddpm.peers import SCHEDULERS, NullSpaceDenoiser, early_start, karras_levels, peer_sample
from ddpm.pictures.degradation import downsample
from ddpm.sampling import coarse_sampler, estimate, refine, sample
from ddpm.schedule import FloatArray, cosine_alphas_cumprod, even_steps
from ddpm.util.errors import ConfigError
from tests.conftest import counting, tiny_unet
from tests.test_sampling import Oracle, pictures

NETS: list[dict[str, Any]] = [{"prediction": "eps", "target": "image"}, {"target": "image"}, {}]


def keyed(lr_up: Tensor, first: int = 3) -> KeyedNoise:
    return KeyedNoise(range(first, first + len(lr_up)), lr_up.shape[1:])


def through_diffusers(
    kind: Any, unet: UNet, alphas_cumprod: FloatArray, lr_up: Tensor, noise: Tensor, steps: int, **settings: Any
) -> list[Tensor]:
    """What the net is shown at each step of a scheduler, on its own spacing of our schedule, and then the result."""
    scheduler = kind(
        num_train_timesteps=len(alphas_cumprod) - 1,
        trained_betas=1 - alphas_cumprod[1:] / alphas_cumprod[:-1],
        prediction_type="sample",
        timestep_spacing="trailing",
        **settings,
    )
    scheduler.set_timesteps(steps)
    latents = [noise]
    for k in scheduler.timesteps:
        x0 = estimate(unet, alphas_cumprod, int(k) + 1, latents[-1], lr_up)[0]
        latents.append(scheduler.step(x0, k, latents[-1]).prev_sample)
    return latents


# --- peers ---


@pytest.mark.parametrize("changes", NETS)
def test_all_ancestral_steps_are_our_own_chain(changes: dict[str, Any], alphas_cumprod: FloatArray) -> None:
    unet = tiny_unet(**changes)
    _, lr_up = pictures()
    latents, nfe = peer_sample("ddpm", unet, alphas_cumprod, lr_up, keyed(lr_up), 100)
    assert nfe == 100
    expected = sample(unet, alphas_cumprod, lr_up, keyed(lr_up))
    torch.testing.assert_close(latents, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("changes", NETS)
def test_euler_ancestral_is_ddpm(changes: dict[str, Any], alphas_cumprod: FloatArray) -> None:
    unet = tiny_unet(**changes)
    _, lr_up = pictures()
    ours, theirs = (
        peer_sample(name, unet, alphas_cumprod, lr_up, keyed(lr_up), 17)[0] for name in ("ddpm", "euler-ancestral")
    )
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [
        ("ddim", DDIMScheduler, {"clip_sample": False}),
        ("dpmsolver++", DPMSolverMultistepScheduler, {}),
        ("unipc", UniPCMultistepScheduler, {}),
    ],
)
@pytest.mark.parametrize("changes", NETS)
def test_levels_are_those_of_trailing_spacing(
    name: str, kind: Any, settings: dict[str, Any], changes: dict[str, Any], alphas_cumprod: FloatArray
) -> None:
    """Where the number of steps divides T, so that diffusers' own spacing is exact."""
    unet = tiny_unet(**changes)
    hr, lr_up = pictures()
    noise = torch.randn(hr.shape, generator=torch.Generator().manual_seed(0))
    expected = through_diffusers(kind, unet, alphas_cumprod, lr_up, noise, 20, **settings)[-1]
    latents, nfe = peer_sample(name, unet, alphas_cumprod, lr_up, lambda stage, t: noise, 20)
    assert nfe == 20
    torch.testing.assert_close(latents, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("forwards", [1, 2, 10, 17, 100])
def test_forwards_noise_and_batches(name: str, forwards: int, unet: UNet, alphas_cumprod: FloatArray) -> None:
    _, lr_up = pictures(3)
    state = torch.get_rng_state()
    with counting(unet) as sizes:
        latents, nfe = peer_sample(name, unet, alphas_cumprod, lr_up, keyed(lr_up), forwards)
    assert nfe == len(sizes) == (forwards - (forwards + 1) % 2 if name == "heun" else forwards)
    assert torch.isfinite(latents).all()
    assert torch.equal(latents, peer_sample(name, unet, alphas_cumprod, lr_up, keyed(lr_up), forwards)[0])
    alone, _ = peer_sample(name, unet, alphas_cumprod, lr_up[1:2], keyed(lr_up[1:2], 4), forwards)
    torch.testing.assert_close(alone[0], latents[1], atol=1e-3, rtol=0)
    assert torch.equal(torch.get_rng_state(), state), "no noise but ours"
    other, _ = peer_sample(name, unet, alphas_cumprod, lr_up[1:2], keyed(lr_up[1:2], 9), forwards)
    assert (other - alone).abs().mean() > 1e-3


class Witness(Oracle):
    """Knows the truth, and keeps the noise level it is told and the one it finds."""

    def __init__(self, x_0: Tensor) -> None:
        super().__init__(x_0, "v", "image")
        self.told: list[float] = []
        self.found: list[float] = []

    def __call__(self, lr_up: Tensor, x_t: Tensor, noise_level: Tensor) -> Tensor:
        self.told.append(float(noise_level[0]))
        self.found.append(float((x_t - self.told[-1] * self.x_0).std()))
        return super().__call__(lr_up, x_t, noise_level)


@pytest.mark.parametrize("name", SCHEDULERS)
@pytest.mark.parametrize("forwards", [9, 16])
def test_the_net_sees_the_noise_it_is_told_of(name: str, forwards: int, alphas_cumprod: FloatArray) -> None:
    hr, lr_up = pictures(2, 32)
    witness = Witness(hr)
    latents, _ = peer_sample(name, witness, alphas_cumprod, lr_up, keyed(lr_up), forwards)
    torch.testing.assert_close(latents, hr, atol=1e-4, rtol=0)
    np.testing.assert_allclose(witness.found, np.sqrt(1 - np.square(witness.told)), rtol=0.05)
    assert witness.told[0] == pytest.approx(np.sqrt(alphas_cumprod[99 if name == "heun" else 100]))
    last = 1 if name == "heun" else even_steps(100, forwards)[1]
    assert witness.told[-1] == pytest.approx(np.sqrt(alphas_cumprod[last]))


def test_levels(alphas_cumprod: FloatArray) -> None:
    for forwards in range(1, 101):
        steps = even_steps(100, forwards)
        assert (steps[0], steps[-1], len(set(steps))) == (0, 100, forwards + 1)
    levels = karras_levels(alphas_cumprod, 9)
    assert levels[[0, 1, 9]].tolist() == pytest.approx([1.0, alphas_cumprod[1], alphas_cumprod[99]])
    roots = (1 / levels[1:] - 1) ** (1 / 14)
    np.testing.assert_allclose(np.diff(roots), (roots[-1] - roots[0]) / 8)


@pytest.mark.parametrize("name", SCHEDULERS)
def test_shortest_schedules(name: str, unet: UNet) -> None:
    _, lr_up = pictures()
    for T in (1, 2, 3):
        latents, _ = peer_sample(name, unet, cosine_alphas_cumprod(T), lr_up, keyed(lr_up), T)
        assert torch.isfinite(latents).all()


@pytest.mark.parametrize("name", SCHEDULERS)
def test_few_of_many_steps(name: str, unet: UNet) -> None:
    """The last beta of such a chain is 1 in float32, though some signal is left."""
    _, lr_up = pictures()
    for forwards in (1, 2, 3):
        latents, _ = peer_sample(name, unet, cosine_alphas_cumprod(1000), lr_up, keyed(lr_up), forwards)
        assert torch.isfinite(latents).all()


def test_without_diffusers(unet: UNet, alphas_cumprod: FloatArray, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "diffusers", None)
    _, lr_up = pictures()
    with pytest.raises(ConfigError, match=r"pip install 'skipdiff\[peers\]'") as raised:
        peer_sample("ddim", unet, alphas_cumprod, lr_up, keyed(lr_up), 10)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("name", "forwards", "message"),
    [
        ("pndm", 10, "known are ddpm, ddim"),
        ("ddim", 0, r"1 … 100.*got 0"),
        ("ddim", 101, r"1 … 100.*got 101"),
        ("ddim", 10.0, "whole number"),
    ],
)
def test_wrong_arguments(name: str, forwards: Any, message: str, unet: UNet, alphas_cumprod: FloatArray) -> None:
    _, lr_up = pictures()
    with pytest.raises(ConfigError, match=message):
        peer_sample(name, unet, alphas_cumprod, lr_up, keyed(lr_up), forwards)


# --- early start ---


@pytest.mark.parametrize("changes", NETS)
def test_early_start_with_every_step_is_refinement(changes: dict[str, Any], alphas_cumprod: FloatArray) -> None:
    unet = tiny_unet(**changes)
    _, lr_up = pictures()
    noisy = np.sqrt(alphas_cumprod[30]) * to_latent(unet, lr_up, lr_up)
    noisy += np.sqrt(1 - alphas_cumprod[30]) * keyed(lr_up)(Stage.INITIAL, 30)
    expected = refine(unet, alphas_cumprod, noisy, lr_up, keyed(lr_up), 30)
    latents = early_start(unet, alphas_cumprod, lr_up, keyed(lr_up), 30, 30)
    torch.testing.assert_close(latents, expected, atol=1e-5, rtol=0)


def test_early_start_at_pure_noise_is_ddpm(unet: UNet, alphas_cumprod: FloatArray) -> None:
    """The residual of the bicubic enlargement is zero, so that nothing of it is left there."""
    _, lr_up = pictures()
    for forwards in (7, 100):
        with counting(unet) as sizes:
            latents = early_start(unet, alphas_cumprod, lr_up, keyed(lr_up), 100, forwards)
        assert len(sizes) == forwards
        expected, _ = peer_sample("ddpm", unet, alphas_cumprod, lr_up, keyed(lr_up), forwards)
        torch.testing.assert_close(latents, expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize(("t", "forwards", "message"), [(0, 1, "1 … 100"), (101, 5, "1 … 100"), (5, 6, "1 … 5")])
def test_wrong_early_start(t: int, forwards: int, message: str, unet: UNet, alphas_cumprod: FloatArray) -> None:
    _, lr_up = pictures()
    with pytest.raises(ConfigError, match=message):
        early_start(unet, alphas_cumprod, lr_up, keyed(lr_up), t, forwards)


# --- the coarse stage ---


@pytest.mark.parametrize(
    ("name", "kind", "settings"),
    [("ddim", DDIMScheduler, {"clip_sample": False}), ("dpmsolver++", DPMSolverMultistepScheduler, {})],
)
@pytest.mark.parametrize("S", [1, 2, 5, 10, 25])
@pytest.mark.parametrize("changes", NETS)
def test_coarse_samplers(name: str, kind: Any, settings: dict[str, Any], S: int, changes: dict[str, Any]) -> None:
    """The same trajectory as diffusers'."""
    unet = tiny_unet(**changes)
    hr, lr_up = pictures()
    coarse = cosine_alphas_cumprod(S)
    noise = torch.randn(hr.shape, generator=torch.Generator().manual_seed(0))
    expected = through_diffusers(kind, unet, coarse, lr_up, noise, S, **settings)[:-1]
    seen: list[Tensor] = []
    unet.register_forward_pre_hook(lambda net, args: seen.append(args[1]))
    seen.append(coarse_sampler(name)(unet, coarse, lr_up, lambda stage, t: noise))
    assert len(seen) == S, "S - 1 forwards"
    for ours, theirs in zip(seen, expected, strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-4, rtol=0)


# --- null-space projection ---


@pytest.mark.parametrize("changes", [{}, {"target": "image"}, {"prediction": "eps"}])
def test_projected_estimates_agree_with_the_low_resolution_picture(
    changes: dict[str, Any], alphas_cumprod: FloatArray
) -> None:
    unet = tiny_unet(**changes)
    hr, lr_up = pictures()
    lr_image = downsample(hr, unet.scale)
    x_t = keyed(lr_up)(Stage.INITIAL, 50)
    level = torch.full((len(hr),), float(np.sqrt(alphas_cumprod[50])))

    def distance(net: Any) -> float:
        of_out, of_x_t = x0_weights(net.prediction, level[0], (1 - level[0] ** 2).sqrt())
        x_0 = of_out * net(lr_up, x_t, level) + of_x_t * x_t
        image = x_0 if net.target == "image" else x_0 / net.residual_scale + lr_up
        shrunk = torch.nn.functional.interpolate(image, size=lr_image.shape[-2:], mode="bicubic", antialias=True)
        return float((shrunk - lr_image).square().mean())

    assert distance(NullSpaceDenoiser(unet, lr_image, unet.scale)) < 0.1 * distance(unet)
