"""Other samplers on the same net: diffusers' schedulers, an early start (CCDF), and null-space projection (DDNM).

The schedule of a scheduler holds exactly the levels that its chain visits. Step k is entry k + 1 of that schedule, and
the chain begins at pure noise and ends at the clean latent, for any number of forwards. The network runs only in
`ddpm.sampling.estimate`, so that x_0 is clamped in the same way for all.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

from ddpm.nets.denoiser import Denoiser, NoiseLevelDenoiser, to_latent, x0_weights
from ddpm.noise import Stage
from ddpm.pictures.degradation import upsample
from ddpm.sampling import Noise, estimate, p_sample
from ddpm.schedule import FloatArray, even_steps
from ddpm.util.errors import ConfigError
from ddpm.util.packages import package

# name → diffusers' class, its settings
SCHEDULERS: dict[str, tuple[str, dict[str, Any]]] = {
    "ddpm": ("DDPMScheduler", {"variance_type": "fixed_small", "clip_sample": False}),
    "ddim": ("DDIMScheduler", {"clip_sample": False}),
    "dpmsolver++": ("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver++", "solver_order": 2}),
    "unipc": ("UniPCMultistepScheduler", {"solver_order": 2}),
    "euler-ancestral": ("EulerAncestralDiscreteScheduler", {}),
    "heun": ("HeunDiscreteScheduler", {}),
}
HEUN = "heun"


class _Given(TorchFunctionMode):
    """A mode in which `torch.randn` returns given noise, since the schedulers do not take noise as an argument."""

    def __init__(self, noise: Callable[[], Tensor]) -> None:
        super().__init__()
        self.noise = noise

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return self.noise() if func is torch.randn else func(*args, **(kwargs or {}))


def karras_levels(alphas_cumprod: FloatArray, count: int, rho: float = 7.0) -> FloatArray:
    """Return the noise levels of Karras et al. 2022, Eq. 5, between diffusion steps 1 and T - 1, as ᾱ.

    Step T is left out: for T = 100 the clipped last beta of the cosine schedule puts it at a noise of 2000 times the
    signal, and half of the levels would lie where there is no signal. T - 1 is at 64 times; the paper begins at 80.

    Args:
        alphas_cumprod: (T + 1,), index 0 is the clean image.
        count: number of noise levels besides the clean one; a single level is the noisiest.
        rho: exponent; a larger one puts the small levels closer together.

    Returns:
        (count + 1,), index 0 is the clean image.
    """
    noisiest = max(len(alphas_cumprod) - 2, 1)
    largest, smallest = (1 / alphas_cumprod[[noisiest, 1]] - 1) ** (1 / (2 * rho))
    sigmas = np.linspace(largest, smallest, count) ** rho
    return np.concatenate([[1.0], 1 / (1 + sigmas[::-1] ** 2)])


def _scheduler(name: str, alphas_cumprod: FloatArray) -> Any:
    """Return the scheduler of diffusers of this name, set to visit every level of a schedule."""
    diffusers = package("diffusers", "peers")
    kind, settings = SCHEDULERS[name]
    forwards = len(alphas_cumprod) - 1
    scheduler = getattr(diffusers, kind)(
        num_train_timesteps=forwards,
        trained_betas=1 - alphas_cumprod[1:] / alphas_cumprod[:-1],
        prediction_type="v_prediction",
        timestep_spacing="trailing",
        **settings,
    )
    # diffusers computed these from float32 betas, whose precision is too low for the noisiest levels of few steps
    scheduler.alphas_cumprod = torch.from_numpy(alphas_cumprod[1:]).float()
    scheduler.set_timesteps(forwards)
    return scheduler


def peer_sample(
    name: str, unet: Denoiser, alphas_cumprod: FloatArray, lr_up: Tensor, noise: Noise, forwards: int
) -> tuple[Tensor, int]:
    """Run one of the schedulers of diffusers from Gaussian noise to the clean latent.

    All but "heun" visit evenly spaced diffusion steps, from T down; the noise of a step, if it takes any, is that of
    the diffusion step at which it begins. "heun" takes two forwards a step and one for the last, at the levels of
    `karras_levels`: the derivatives at the two ends of an evenly spaced first step are too different.

    "ddpm" and "euler-ancestral" are one process written in two ways, and return the same result for the same noise.

    Args:
        name: "ddpm", "ddim", "dpmsolver++" (DPM-Solver++(2M)), "unipc", "euler-ancestral" or "heun".
        unet: the net.
        alphas_cumprod: (T + 1,), index 0 is the clean image.
        lr_up: condition, (B, 3, H, W) in [-1, 1].
        noise: keyed noise.
        forwards: largest number of forwards of the chain, 1 … T.

    Returns:
        x_0, (B, 3, H, W), and the number of forwards: `forwards`, or one less for "heun" if that is even.

    Raises:
        ConfigError: the name is unknown, `forwards` is out of range, or diffusers is not installed.
    """
    T = len(alphas_cumprod) - 1
    if name not in SCHEDULERS:
        raise ConfigError(f"unknown sampler {name!r}; known are {', '.join(SCHEDULERS)}")
    steps = even_steps(T, forwards)
    levels = karras_levels(alphas_cumprod, (forwards + 1) // 2) if name == HEUN else alphas_cumprod[steps]
    scheduler = _scheduler(name, levels)
    latents = noise(Stage.INITIAL, T) * scheduler.init_noise_sigma
    for k in scheduler.timesteps:
        j = int(k) + 1
        x_t = scheduler.scale_model_input(latents, k)
        x0 = estimate(unet, levels, j, x_t, lr_up)[0]
        v = (x_t * float(np.sqrt(levels[j])) - x0) / float(np.sqrt(1 - levels[j]))
        with _Given(partial(noise, Stage.FINE, int(steps[j]))):
            latents = scheduler.step(v, k, latents, return_dict=False)[0]
    return latents, len(scheduler.timesteps)


def early_start(
    unet: NoiseLevelDenoiser, alphas_cumprod: FloatArray, lr_up: Tensor, noise: Noise, t: int, forwards: int
) -> Tensor:
    """Denoise the bicubic enlargement from diffusion step `t` on: CCDF (Chung et al. 2022).

    Args:
        unet: the net.
        alphas_cumprod: (T + 1,), index 0 is the clean image.
        lr_up: condition, (B, 3, H, W) in [-1, 1].
        noise: keyed noise.
        t: diffusion step at which the chain begins, 1 … T.
        forwards: ancestral steps of the chain, evenly spaced, 1 … t.

    Returns:
        x_0, (B, 3, H, W).

    Raises:
        ConfigError: `t` or `forwards` is out of range.
    """
    T = len(alphas_cumprod) - 1
    if not 1 <= t <= T:
        raise ConfigError(f"the start must be a diffusion step in 1 … {T}, got {t}")
    steps = even_steps(t, forwards)
    signal, sigma = float(np.sqrt(alphas_cumprod[t])), float(np.sqrt(1 - alphas_cumprod[t]))
    latents = to_latent(unet, lr_up, lr_up) * signal + noise(Stage.INITIAL, t) * sigma
    for j in range(forwards, 0, -1):
        fine = noise(Stage.FINE, int(steps[j])) if j > 1 else None
        latents = p_sample(unet, alphas_cumprod[steps], j, latents, lr_up, fine)
    return latents


class NullSpaceDenoiser(NoiseLevelDenoiser):
    """A net whose estimates agree with the low-resolution picture, by projection onto the null space (DDNM).

    Wang et al. 2023. At every step the picture x that an estimate stands for becomes x + up(lr - down(x)), where `up`
    is bicubic enlargement, which stands for the pseudo-inverse of bicubic shrinking. Any sampler can run it in place of
    the net.

    Args:
        unet: the net.
        lr_image: low-resolution pictures, (B, 3, h, w) in [-1, 1].
        scale: factor by which the net enlarges.
    """

    def __init__(self, unet: NoiseLevelDenoiser, lr_image: Tensor, scale: int) -> None:
        self.unet, self.lr_image, self.scale, self.multiple = unet, lr_image, scale, unet.multiple
        self.prediction, self.target, self.residual_scale = unet.prediction, unet.target, unet.residual_scale

    def __call__(self, lr_up: Tensor, x_t: Tensor, noise_level: Tensor) -> Tensor:
        """Return the prediction that belongs to the projected estimate; see `UNet.forward`."""
        signal = noise_level[:, None, None, None]
        of_output, of_x_t = x0_weights(self.prediction, signal, (1 - signal**2).clamp_min(1e-12).sqrt())
        x_0 = of_output * self.unet(lr_up, x_t, noise_level) + of_x_t * x_t
        image = x_0 if self.target == "image" else x_0 / self.residual_scale + lr_up
        # not rounded to 8 bits
        shrunk = F.interpolate(image, size=self.lr_image.shape[-2:], mode="bicubic", antialias=True)
        image = image + upsample(self.lr_image - shrunk, self.scale)
        return (to_latent(self, image, lr_up) - of_x_t * x_t) / of_output
