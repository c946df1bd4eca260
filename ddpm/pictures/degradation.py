"""The making of low-resolution inputs from photographs, and their bicubic enlargement.

Photographs that people enlarge are blurred, noisy and compressed. `Degradation` makes such inputs. Its draw for a
picture depends on a key alone, so that a training that is resumed sees the same inputs as one that never stopped.
"""

import hashlib
import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, NamedTuple, Protocol

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from ddpm.pictures.images import to_tensor, to_uint8
from ddpm.util.checks import is_number
from ddpm.util.errors import ConfigError, ImageError

# Values at strength 1: standard deviation of the blur in pixels of the target, that of the noise in grey levels of the
# low-resolution picture, and the difference between 100 and the quality of JPEG.
BLUR, NOISE, QUALITY_LOSS = 1.5, 12.0, 55.0
# Largest ratio of the long axis of an anisotropic blur to the short one.
ASPECT = 3.0
# Share of the pictures that an operation leaves out, where strengths are drawn.
LEFT_OUT = 1 / 3
KERNELS = ("bicubic", "bilinear", "area")
OPERATIONS = ("blur", "shrink", "noise", "jpeg")
# Name → number of times that a picture is blurred, shrunk, made noisy and compressed.
ROUNDS = {"bicubic": 0, "photo": 1, "photo2": 2}


def upsample(lr_image: Tensor, scale: int) -> Tensor:
    """Upsample (B, 3, h, w) in [-1, 1] to (B, 3, scale·h, scale·w) bicubically, clamped to [-1, 1]."""
    # antialias=True also selects the cubic kernel a = -0.5 that Pillow and MATLAB use
    return F.interpolate(lr_image, scale_factor=scale, mode="bicubic", antialias=True).clamp_(-1, 1)


def downsample(hr: Tensor, scale: int) -> Tensor:
    """Downsample (B, 3, H, W) in [-1, 1] bicubically with antialiasing, quantised to 8 bits like a file on disk.

    Raises:
        ImageError: H or W is not a multiple of `scale`.
    """
    return _to_8_bits(F.interpolate(hr, size=_lr_size(hr, scale), mode="bicubic", antialias=True))


def _lr_size(hr: Tensor, scale: int) -> tuple[int, int]:
    height, width = hr.shape[-2:]
    if height % scale or width % scale:
        raise ImageError(
            f"a picture to be shrunk {scale} times must have sides that are multiples of {scale}, got {width} x "
            f"{height}"
        )
    return height // scale, width // scale


def _to_8_bits(pictures: Tensor) -> Tensor:
    """Round to 256 levels, in place."""
    return (pictures.add_(1).mul_(127.5).round_().clamp_(0, 255)).div_(127.5).sub_(1)


class Sizes(NamedTuple):
    """Height and width of the target and of its low-resolution picture, in pixels."""

    target: tuple[int, int]
    lr: tuple[int, int]


class Operation(Protocol):
    """One step from the target to its low-resolution picture."""

    def __call__(self, picture: Tensor, sizes: Sizes, rng: np.random.Generator) -> Tensor:
        """Return the changed picture, (1, 3, h, w), on the scale where 8-bit pictures have the range [-1, 1]."""


@dataclass(frozen=True)
class Blur:
    """A Gaussian blur.

    Attributes:
        sigmas: standard deviations along and across the angle, in pixels of the target; equal where it is isotropic.
        angle: direction of the first, in radians.
    """

    sigmas: tuple[float, float]
    angle: float

    def __call__(self, picture: Tensor, sizes: Sizes, rng: np.random.Generator) -> Tensor:
        """Blur the picture; pixels of the edge are repeated beyond it."""
        along, across = (sigma * picture.shape[-1] / sizes.target[1] for sigma in self.sigmas)
        margin = math.ceil(3 * max(along, across)) + 1
        padded = F.pad(picture, [margin] * 4, mode="replicate")
        # a factor on frequencies, since a sampled kernel of less than half a pixel would blur too little
        y = 2 * math.pi * torch.fft.fftfreq(padded.shape[-2])[:, None]
        x = 2 * math.pi * torch.fft.rfftfreq(padded.shape[-1])
        sine, cosine = math.sin(self.angle), math.cos(self.angle)
        exponent = ((x * cosine + y * sine) * along) ** 2 + ((y * cosine - x * sine) * across) ** 2
        blurred = torch.fft.irfft2(torch.fft.rfft2(padded) * torch.exp(-exponent / 2), s=padded.shape[-2:])
        return blurred[..., margin:-margin, margin:-margin]


@dataclass(frozen=True)
class Shrink:
    """A smaller size, antialiased.

    Attributes:
        kernel: "bicubic", "bilinear" or "area".
        place: logarithmic position of the size between the low-resolution picture's, 0, and the target's, 1.
    """

    kernel: str
    place: float = 0.0

    def __call__(self, picture: Tensor, sizes: Sizes, rng: np.random.Generator) -> Tensor:
        """Shrink the picture."""
        height, width = (round(small * (large / small) ** self.place) for large, small in zip(*sizes, strict=True))
        return F.interpolate(picture, size=(height, width), mode=self.kernel, antialias=self.kernel != "area")


@dataclass(frozen=True)
class Noise:
    """Noise of a sensor.

    Attributes:
        kind: "gaussian", or "poisson", whose variance grows in proportion to the light.
        sigma: standard deviation in grey levels of the low-resolution picture; for Poisson noise, that at half of full
            light. It is multiplied by the ratio of the widths for a larger picture, because shrinking averages noise
            away.
        grey: whether the noise is the same in all channels.
    """

    kind: str
    sigma: float
    grey: bool

    def __call__(self, picture: Tensor, sizes: Sizes, rng: np.random.Generator) -> Tensor:
        """Add the noise."""
        sigma = self.sigma / 255 * picture.shape[-1] / sizes.lr[1]
        light = (picture.mean(1, keepdim=True) if self.grey else picture).add(1).div(2).clamp(0, 1).numpy()
        if self.kind == "gaussian":
            noise = sigma * rng.standard_normal(light.shape)
        else:
            photon = max(
                2 * sigma**2, 1e-12
            )  # light of one; NumPy's Poisson distribution does not take unlimited numbers
            noise = photon * rng.poisson(light / photon) - light
        return picture + torch.from_numpy((2 * noise).astype(np.float32))


@dataclass(frozen=True)
class Jpeg:
    """Compression by JPEG.

    Attributes:
        quality: quality of JPEG, 1 … 100.
        subsampling: whether colour has half the resolution (4:2:0).
    """

    quality: int
    subsampling: bool

    def __call__(self, picture: Tensor, sizes: Sizes, rng: np.random.Generator) -> Tensor:
        """Write a JPEG file into memory and read it."""
        file = io.BytesIO()
        subsampling = "4:2:0" if self.subsampling else "4:4:4"
        Image.fromarray(to_uint8(picture[0])).save(file, "JPEG", quality=self.quality, subsampling=subsampling)
        with Image.open(file) as image:
            return to_tensor(np.array(image))[None]


@dataclass(frozen=True)
class Recipe:
    """The draw for one picture.

    Attributes:
        strengths: strengths of "blur", "shrink", "noise" and "jpeg", each 0 … 1.
        operations: the operations in their order; an operation of strength 0 is left out.
    """

    strengths: Mapping[str, float]
    operations: tuple[Operation, ...]


@dataclass(frozen=True)
class Degradation:
    """A way to make low-resolution pictures from targets.

    "bicubic" only shrinks. "photo" blurs (isotropically or not, in any direction), shrinks (by one of three kernels),
    adds noise (Gaussian or Poisson, grey or coloured) and compresses (JPEG, with or without subsampled colour). The
    order is drawn, but compression always follows shrinking. "photo2" does all of that twice, like the second order of
    Real-ESRGAN; the first time it shrinks to a size between the target's and the low-resolution picture's.

    If a strength is given, every operation has it. At 0.5 the blur has a standard deviation of 0.75 pixels of the
    target, the noise one of 6 grey levels (of 255), and the JPEG quality is 72; at 1 these are 1.5, 12 and 45; at 0 the
    result is that of "bicubic". If none is given, the strength of each operation is drawn: 0 for a third of the
    pictures, uniform in 0 … 1 for the others.

    The draw is a function of the key. At every given strength a key has the same order and the same kinds, with two
    exceptions: kernels other than bicubic, and subsampled colour, become more probable with the strength.

    Attributes:
        name: "bicubic", "photo" or "photo2".
        strength: 0 … 1, or None if the strengths of each picture are drawn; None for "bicubic".

    Raises:
        ConfigError: the name is unknown, or the strength is out of range.
    """

    name: str = "bicubic"
    strength: float | None = None

    EXPECTED: ClassVar[str] = "bicubic, photo or photo2, the last two perhaps with a strength in 0 … 1 as in photo:0.5"

    def __post_init__(self) -> None:
        strong = self.strength is None or (is_number(self.strength) and self.strength <= 1 and self.name != "bicubic")
        if self.name not in ROUNDS or not strong:
            raise ConfigError(f"degradation must be {self.EXPECTED}, got {self.name!r} with strength {self.strength!r}")

    @classmethod
    def parse(cls, text: str) -> "Degradation":
        """Return the degradation that a text such as "bicubic", "photo" or "photo2:0.5" names.

        Raises:
            ConfigError: the text does not name a degradation.
        """
        try:
            name, colon, strength = text.partition(":")
            return cls(name, float(strength) if colon else None)
        except (AttributeError, ValueError):
            raise ConfigError(f"degradation must be {cls.EXPECTED}, got {text!r}") from None

    def __str__(self) -> str:
        """Return the text that `parse` takes."""
        if self.strength is None:
            return self.name
        return f"{self.name}:{np.format_float_positional(self.strength, trim='-')}"

    def __call__(self, hr: Tensor, scale: int, keys: Sequence[Sequence[int]] | None = None) -> Tensor:
        """Make the low-resolution pictures of targets.

        Args:
            hr: targets, (B, 3, H, W) in [-1, 1].
            scale: factor by which they are shrunk.
            keys: key of each picture, whole numbers of at least 0 that determine the draw; None: its `picture_key`, so
                that a picture has the same low-resolution picture in every batch, environment and table.

        Returns:
            (B, 3, H / scale, W / scale) in [-1, 1], quantised to 8 bits.

        Raises:
            ImageError: H or W is not a multiple of `scale`.
        """
        if not ROUNDS[self.name]:
            return downsample(hr, scale)
        sizes = Sizes((hr.shape[-2], hr.shape[-1]), _lr_size(hr, scale))
        made = []
        for i, target in enumerate(hr):
            rng = np.random.default_rng(picture_key(target) if keys is None else keys[i])
            picture = target[None].cpu()
            for operation in self._draw(rng).operations:
                picture = operation(picture, sizes, rng)
            made.append(_to_8_bits(picture))
        return torch.cat(made).to(hr.device)

    def recipe(self, key: Sequence[int]) -> Recipe:
        """Return the draw for a key: strengths, kinds and order."""
        return self._draw(np.random.default_rng(key))

    def _draw(self, rng: np.random.Generator) -> Recipe:
        drawn = {name: 0.0 if rng.random() < LEFT_OUT else rng.random() for name in OPERATIONS}
        strengths = drawn if self.strength is None else dict.fromkeys(OPERATIONS, self.strength)
        if self.name == "bicubic" or not any(strengths.values()):
            return Recipe(dict.fromkeys(OPERATIONS, 0.0), (Shrink("bicubic"),))
        places = [1 - strengths["shrink"] * rng.random() for _ in range(ROUNDS[self.name] - 1)]
        steps = [step for place in (*places, 0.0) for step in _draw_round(rng, strengths, place)]
        return Recipe(strengths, tuple(steps))


# The degradation that only shrinks.
PLAIN = Degradation()


def picture_key(hr: Tensor) -> tuple[int]:
    """Return the key of a target (3, H, W) in [-1, 1]: a hash of its pixels at 8 bits."""
    return (int.from_bytes(hashlib.blake2b(to_uint8(hr).tobytes(), digest_size=8).digest(), "little"),)


def _draw_round(rng: np.random.Generator, strengths: Mapping[str, float], place: float) -> list[Operation]:
    """Return the four operations in the drawn order, without those of strength 0."""
    # everything is always drawn, so that the strengths do not change later draws
    isotropic, grey = (bool(rng.random() < 0.5) for _ in range(2))
    stretch, angle = math.sqrt(ASPECT ** rng.random()), math.pi * rng.random()
    kind, kernel = str(rng.choice(["gaussian", "poisson"])), str(rng.choice(KERNELS))
    if rng.random() >= strengths["shrink"]:
        kernel = "bicubic"
    subsampling = bool(rng.random() < strengths["jpeg"])
    sigma = BLUR * strengths["blur"]
    drawn: dict[str, Operation] = {
        "blur": Blur((sigma, sigma) if isotropic else (sigma * stretch, sigma / stretch), angle),
        "shrink": Shrink(kernel, place),
        "noise": Noise(kind, NOISE * strengths["noise"], grey),
        "jpeg": Jpeg(round(100 - QUALITY_LOSS * strengths["jpeg"]), subsampling),
    }
    order = [OPERATIONS[i] for i in rng.permutation(len(OPERATIONS))]
    shrink, jpeg = order.index("shrink"), order.index("jpeg")
    if jpeg < shrink:  # else shrinking would average the blocks away
        order[shrink], order[jpeg] = "jpeg", "shrink"
    return [drawn[name] for name in order if name == "shrink" or strengths[name] > 0]
