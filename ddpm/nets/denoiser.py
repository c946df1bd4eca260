"""`Denoiser`: the interface of a diffusion model for the process, the environments, the samplers and the upscaler."""

import hashlib
import json
import math
from abc import abstractmethod
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from ddpm.pictures.degradation import upsample
from ddpm.schedule import FloatArray, Schedule, cosine_alphas_cumprod, even_steps
from ddpm.util.checks import shown
from ddpm.util.errors import ConfigError

# A share of the signal ᾱ: one for all members of a batch, or float64 (B,), one for each.
AlphaBar = float | FloatArray
# Whole numbers: one for all members of a batch, or one for each, (B,).
Step = int | NDArray[np.integer]
# x_0 and ε; None where ε is the one that follows from x_0 and from the latent of the prediction.
Estimate = tuple[Tensor, Tensor | None]
# Most steps of the default schedules of a denoiser that has no settings, and its forwards for an enlargement.
STEPS, COARSE_STEPS, FORWARDS = 100, 10, 20


@runtime_checkable
class Denoiser(Protocol):
    """A diffusion model that enlarges pictures.

    It is variance-preserving: a latent at the level ᾱ is √ᾱ·x_0 + √(1-ᾱ)·ε. Latents and conditions are float32 and have
    the same height and width: those of the result for a network in pixel space, smaller ones for a network in a latent
    space. A class that inherits from `Denoiser` only has to set `scale` and `multiple` and define `predict`; it then is
    a network in pixel space whose condition is the bicubic enlargement and that knows every noise level.

    Attributes:
        scale: factor of the enlargement.
        multiple: number that the sides of conditions and latents must be divisible by.
        alphas_cumprod: the training schedule of a network that knows only a discrete t, float64 (T + 1,), index 0 is
            the clean image; sampling schedules are rounded to it. None: the network knows every noise level.
        forwards_per_call: network forwards of one `predict` for one picture: 2 with classifier-free guidance, else 1.
        substeps: the most steps whose work one forward can do; 1: the network has no input for substeps.
        x0_bound: largest possible absolute value of an estimate of x_0 from which ε follows, see `predict`; infinite if
            there is none.
    """

    scale: int
    multiple: int
    alphas_cumprod: FloatArray | None = None
    forwards_per_call: int = 1
    substeps: int = 1
    x0_bound: float = math.inf

    @property
    def settings(self) -> Mapping[str, Any]:
        """Return the default settings for sampling.

        They are `diffusion_steps`, `coarse_steps`, `coarse_sampler`, `start`, `levels` and `fine_sampler`, see
        `ddpm.nets.unet.UNetConfig`.
        """
        steps = STEPS if self.alphas_cumprod is None else min(STEPS, len(self.alphas_cumprod) - 1)
        coarse = max(S for S in range(1, COARSE_STEPS + 1) if steps % S == 0)
        return {
            "diffusion_steps": steps, "coarse_steps": coarse, "coarse_sampler": "ddpm", "start": None,
            "levels": str(Schedule.even(min(FORWARDS, steps))), "fine_sampler": "ddim",
        }  # fmt: skip

    def schedule(self, steps: int) -> FloatArray:
        """Return the levels of a schedule, float64 (steps + 1,), falling; index 0 is the clean image.

        Args:
            steps: number of steps, at least 1.

        Raises:
            ConfigError: the network knows fewer levels.
        """
        if self.alphas_cumprod is None:
            return cosine_alphas_cumprod(steps)
        T = len(self.alphas_cumprod) - 1
        if steps > T:
            raise ConfigError(f"the network knows {T} noise levels, got a schedule of {steps} steps; take at most {T}")
        return self.alphas_cumprod[even_steps(T, steps)]

    def condition(self, lr_image: Tensor) -> Tensor:
        """Return the condition of low-resolution pictures.

        Args:
            lr_image: low-resolution pictures, (B, 3, h, w) in [-1, 1].

        Returns:
            (B, C, H, W), with the height and width of the latents. Its first three channels are a picture in [-1, 1],
            which observations show.
        """
        return upsample(lr_image, self.scale)

    def latent_shape(self, lr_image: Tensor) -> tuple[int, int, int, int]:
        """Return the shape (B, C, H, W) of x_T for low-resolution pictures (B, 3, h, w)."""
        batch, _, height, width = lr_image.shape
        return batch, 3, height * self.scale, width * self.scale

    @abstractmethod
    def predict(self, x: Tensor, alpha_bar: AlphaBar, condition: Tensor) -> Estimate:
        """Return the estimates of x_0 and ε.

        Args:
            x: latents, (B, C, H, W); they are not changed.
            alpha_bar: the level ᾱ of the latents, one of `schedule`; a float, or float64 (B,).
            condition: as `condition` returns it.

        Returns:
            x_0 and ε, float32 like `x`, which the caller may change in place. ε may be None: then it is
            (x - √ᾱ·x_0) / √(1-ᾱ).
        """
        raise NotImplementedError

    def predict_substeps(
        self, x: Tensor, alpha_bar: AlphaBar, condition: Tensor, to_alpha_bar: AlphaBar, substeps: Step
    ) -> Estimate:
        """Return the estimates for which one DDIM step (η = 0) arrives where several even steps would.

        Args:
            x: latents, as in `predict`.
            alpha_bar: the level at which the step begins.
            condition: the condition, as in `predict`.
            to_alpha_bar: the level that the step goes to.
            substeps: number of even steps whose work the forward does, 1 … `substeps`.

        Raises:
            ConfigError: the network has not learnt substeps.
        """
        raise ConfigError(f"{type(self).__name__} does the work of one step in a forward, got {substeps} substeps")

    def decode(self, latent: Tensor, condition: Tensor) -> Tensor:
        """Return the pictures of clean latents.

        Args:
            latent: (B, C, H, W).
            condition: the condition that belongs to them.

        Returns:
            (B, 3, scale·h, scale·w) in [-1, 1].
        """
        return latent.clamp(-1, 1)


class NetworkDenoiser(Denoiser):
    """A denoiser around one network, whose output is turned into x_0 and ε afterwards, so that tiles can blend it."""

    @abstractmethod
    def output(
        self, x: Tensor, alpha_bar: AlphaBar, condition: Tensor, jump: tuple[AlphaBar, Step] | None = None
    ) -> Tensor:
        """Return the prediction of the network, shaped like `x`; `jump` is the next level and the substeps, if any."""

    @abstractmethod
    def estimate(self, output: Tensor, x: Tensor, alpha_bar: AlphaBar, condition: Tensor) -> Estimate:
        """Return x_0 and ε for an output, which is changed in place."""

    def predict(self, x: Tensor, alpha_bar: AlphaBar, condition: Tensor) -> Estimate:
        """See `Denoiser.predict`."""
        return self.estimate(self.output(x, alpha_bar, condition), x, alpha_bar, condition)

    def predict_substeps(
        self, x: Tensor, alpha_bar: AlphaBar, condition: Tensor, to_alpha_bar: AlphaBar, substeps: Step
    ) -> Estimate:
        """See `Denoiser.predict_substeps`."""
        out = self.output(x, alpha_bar, condition, (to_alpha_bar, substeps))
        return self.estimate(out, x, alpha_bar, condition)


# --- networks whose input is the noise level ---


def to_latent(net: "NoiseLevelDenoiser", hr: Tensor, lr_up: Tensor) -> Tensor:
    """Return the clean latent x_0 of a target picture: hr itself or `residual_scale`·(hr - lr_up)."""
    return hr if net.target == "image" else net.residual_scale * (hr - lr_up)


def to_image(net: "NoiseLevelDenoiser", x_0: Tensor, lr_up: Tensor) -> Tensor:
    """Return the picture of a latent, (B, 3, H, W) clamped to [-1, 1]; inverse of `to_latent`."""
    if net.target == "image":
        return x_0.clamp(-1, 1)
    return (x_0 / net.residual_scale).add_(lr_up).clamp_(-1, 1)


def x0_weights(prediction: str, signal: Any, sigma: Any) -> tuple[Any, Any]:
    """Return (a, b) of x_0 = a·output + b·x at the noise level √ᾱ, √(1-ᾱ), for a prediction "eps", "v" or "x0"."""
    if prediction == "x0":
        return 1.0, 0.0
    return (-sigma / signal, 1 / signal) if prediction == "eps" else (-sigma, signal)


def coefficient(values: FloatArray | float, like: Tensor) -> Tensor | float:
    """Return a number unchanged, and one number per member as a tensor (B, 1, 1, 1)."""
    if np.ndim(values) == 0:
        return float(values)
    return torch.as_tensor(values, dtype=like.dtype, device=like.device)[:, None, None, None]


def per_member(values: Step | AlphaBar, like: Tensor) -> Tensor:
    """Return one number for each member, (B,), from one for all or one for each."""
    return torch.as_tensor(np.broadcast_to(values, len(like)).copy(), dtype=like.dtype, device=like.device)


class NoiseLevelDenoiser(NetworkDenoiser):
    """A network whose input is the noise level √ᾱ, like that of SR3; the base class of `UNet`.

    It is called as `network(lr_up, x_t, noise_level)`, with substeps also with `to_level` and `substeps`.

    Attributes:
        prediction: "eps" or "v".
        target: meaning of x_0: "image", or "residual", `residual_scale`·(hr - lr_up).
        residual_scale: factor on the residual.
    """

    prediction: str
    target: str
    residual_scale: float

    if TYPE_CHECKING:

        def __call__(self, lr_up: Tensor, x_t: Tensor, noise_level: Tensor, /) -> Tensor: ...

    def output(
        self, x: Tensor, alpha_bar: AlphaBar, condition: Tensor, jump: tuple[AlphaBar, Step] | None = None
    ) -> Tensor:
        """See `NetworkDenoiser.output`."""
        told = [] if jump is None else [per_member(np.sqrt(jump[0]), x), per_member(jump[1], x)]
        run: Callable[..., Tensor] = self
        return run(condition, x, per_member(np.sqrt(alpha_bar), x), *told)

    def estimate(self, output: Tensor, x: Tensor, alpha_bar: AlphaBar, condition: Tensor) -> Estimate:
        """Return x_0, clamped so that the picture stays in [-1, 1], and None for ε."""
        signal, sigma = np.sqrt(alpha_bar), np.sqrt(1 - alpha_bar)
        of_out, of_x = x0_weights(self.prediction, coefficient(signal, x), coefficient(sigma, x))
        x0 = output.mul_(of_out).add_(x * of_x)  # in place, since pictures can be large
        if self.target == "image":
            return x0.clamp_(-1, 1), None
        c = self.residual_scale
        return x0.add_(condition, alpha=c).clamp_(-c, c).sub_(condition, alpha=c), None

    @property
    def x0_bound(self) -> float:  # type: ignore[override]
        """The largest value of a clamped estimate."""
        return 1.0 if self.target == "image" else 2 * self.residual_scale

    def decode(self, latent: Tensor, condition: Tensor) -> Tensor:
        """Return the pictures, see `to_image`."""
        return to_image(self, latent, condition)


# --- facts about a denoiser ---


def check_denoiser(given: Any) -> None:
    """Raise ConfigError unless this is a `Denoiser`, or a text or path that can name one."""
    if isinstance(given, str | Path | Denoiser):
        return
    members = [name for name in vars(Denoiser) if not name.startswith("_")] + ["scale", "multiple"]
    lacking = ", ".join(name for name in members if not hasattr(given, name))
    raise ConfigError(
        f"checkpoint must be a name, a folder, a Hub id or a ddpm.nets.denoiser.Denoiser, got {shown(given)}, which "
        f"lacks {lacking}; let its class inherit from Denoiser"
    )


def geometry(denoiser: Denoiser) -> tuple[int, int]:
    """Return the number of channels of a latent, and the side in pixels of the result that one latent value covers."""
    _, channels, side, _ = denoiser.latent_shape(torch.zeros(1, 3, denoiser.multiple, denoiser.multiple))
    return channels, denoiser.multiple * denoiser.scale // side


def image_multiple(denoiser: Denoiser) -> int:
    """Return the number that the sides of targets must be divisible by."""
    return math.lcm(denoiser.multiple * geometry(denoiser)[1], denoiser.scale)


def fingerprint(denoiser: Denoiser) -> str:
    """Return the hash of a denoiser's class, settings and weights, which differs from that of every other denoiser."""
    # the predictor and the substeps of our UNet, which are not among its layers
    beside = [*getattr(denoiser, "_predictor", []), *getattr(denoiser, "_jumps", [])]
    told: Any = denoiser.settings
    networks: list[nn.Module] = [denoiser] if isinstance(denoiser, nn.Module) else []
    if not networks:
        networks = [each for each in vars(denoiser).values() if isinstance(each, nn.Module)]
        plain = {k: v for k, v in vars(denoiser).items() if isinstance(v, str | int | float | bool | None)}
        told = [type(denoiser).__qualname__, {**told}, plain, np.asarray(denoiser.alphas_cumprod).tolist()]
    digest = hashlib.blake2b(json.dumps(told, sort_keys=True, default=str).encode(), digest_size=16)
    tensors = {name: value for name, value in vars(denoiser).items() if isinstance(value, Tensor)}
    for weights in (*(net.state_dict() for net in (*networks, *beside)), tensors):
        for name, tensor in weights.items():
            digest.update(name.encode())
            digest.update(tensor.cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


@contextmanager
def watching(denoiser: Denoiser, told: Callable[[int, int], object]) -> Iterator[None]:
    """Call a function at each forward of the network within the block.

    The network is the denoiser itself, or its attribute `network`; without either, nothing is called.

    Args:
        denoiser: the denoiser.
        told: function of the number of pictures and of the latent values in one channel of all of them; with guidance
            it is called for each of the forwards.
    """
    network = denoiser if isinstance(denoiser, nn.Module) else getattr(denoiser, "network", None)
    if not isinstance(network, nn.Module):
        yield
        return

    def hook(module: object, args: object, out: Any) -> None:
        found = out[0] if isinstance(out, tuple) else out
        told(len(found), found.shape[0] * found.shape[-2] * found.shape[-1])

    handle = network.register_forward_hook(hook)
    try:
        yield
    finally:
        handle.remove()
