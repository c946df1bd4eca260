"""SR3's conditional UNet, conditioned on a continuous noise level instead of a step number."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn

from ddpm.errors import ConfigError
from ddpm.schedule import check_steps


class NoiseLevelEmbedding(nn.Module):
    """Sinusoidal embedding of the noise level √ᾱ, (B,) → (B, width), and a small MLP over it."""

    frequencies: Tensor

    def __init__(self, width: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        half = width // 2
        self.register_buffer("frequencies", torch.exp(-math.log(1e4) * torch.arange(half) / half), persistent=False)
        self.mlp = nn.Sequential(nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width))

    def forward(self, noise_level: Tensor) -> Tensor:
        angles = (noise_level * self.scale)[:, None] * self.frequencies
        return self.mlp(torch.cat([angles.sin(), angles.cos()], dim=1))


class ResidualBlock(nn.Module):
    """GroupNorm, SiLU, conv; plus the noise level per channel; GroupNorm, SiLU, dropout, conv; plus the shortcut."""

    def __init__(self, channels_in: int, channels_out: int, embedding: int, groups: int, dropout: float) -> None:
        super().__init__()
        self.norm1 = nn.GroupNorm(groups, channels_in)
        self.conv1 = nn.Conv2d(channels_in, channels_out, 3, padding=1)
        self.noise = nn.Linear(embedding, channels_out)
        self.norm2 = nn.GroupNorm(groups, channels_out)
        self.dropout = nn.Dropout(dropout)
        self.conv2 = nn.Conv2d(channels_out, channels_out, 3, padding=1)
        self.shortcut = nn.Conv2d(channels_in, channels_out, 1) if channels_in != channels_out else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x), inplace=True))
        h = h + self.noise(embedding)[:, :, None, None]
        h = self.conv2(self.dropout(F.silu(self.norm2(h), inplace=True)))
        return h + self.shortcut(x)


class Attention(nn.Module):
    """One-head self-attention over all pixels, added to its input."""

    def __init__(self, channels: int, groups: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(groups, channels)
        self.qkv = nn.Conv2d(channels, 3 * channels, 1, bias=False)
        self.out = nn.Conv2d(channels, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        b, c, h, w = x.shape
        q, k, v = self.qkv(self.norm(x)).flatten(2).transpose(1, 2).chunk(3, dim=2)  # each (B, H·W, C)
        y = F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0]
        return x + self.out(y.transpose(1, 2).reshape(b, c, h, w))


class Block(nn.Module):
    """A residual block, with attention behind it where `attend` is set."""

    def __init__(
        self, channels_in: int, channels_out: int, embedding: int, groups: int, dropout: float, attend: bool
    ) -> None:
        super().__init__()
        self.residual = ResidualBlock(channels_in, channels_out, embedding, groups, dropout)
        self.attention = Attention(channels_out, groups) if attend else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        return self.attention(self.residual(x, embedding))


class Upsample(nn.Module):
    """Nearest-neighbour enlargement by 2, then a convolution."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class UNet(
    nn.Module,
    PyTorchModelHubMixin,
    library_name="skipdiff",
    tags=["super-resolution", "diffusion"],
    license="mit",
):
    """The UNet of SR3 with everything a sampler must know about it in its configuration.

    `UNet.from_pretrained(DIR_OR_HUB_ID)` reads `config.json` and `model.safetensors`; `save_pretrained(DIR)` writes them.
    The defaults are the architecture of the paper.

    Args:
        width: channels of the first level.
        multipliers: channels of each level, as multiples of `width`; every level but the last halves the size.
        blocks: residual blocks per level on the way down (one more per level on the way up).
        attention_resolutions: sizes in pixels, inside a net that is given `image_size`, at which blocks attend.
        image_size: side of the pictures the net is meant for; only `attention_resolutions` refers to it.
        dropout: probability of dropping an activation inside a residual block, 0 ≤ dropout < 1.
        norm_groups: groups of every GroupNorm.
        patch_size: pixels per side folded into channels before the first level (1: none).
        noise_level_scale: factor on the noise level before its embedding (1 in SR3's own files).
        prediction: "eps", the noise, or "v" = √ᾱ·eps - √(1-ᾱ)·x_0.
        target: what x_0 is: "image", hr itself, or "residual", `residual_scale`·(hr - lr_up).
        residual_scale: factor on the residual.
        scale: how many times the net enlarges a picture.
        diffusion_steps: T of the cosine schedule.
        coarse_steps: default S of the coarse stage; N = T / S.
        start: default diffusion step at which the fine chain begins, 1 … N (None: N).

    Raises:
        ConfigError: a setting is unknown or out of range.
    """

    def __init__(
        self,
        *,
        width: int = 64,
        multipliers: Sequence[int] = (1, 2, 4, 8, 8),
        blocks: int = 2,
        attention_resolutions: Sequence[int] = (16,),
        image_size: int = 128,
        dropout: float = 0.2,
        norm_groups: int = 32,
        patch_size: int = 1,
        noise_level_scale: float = 1.0,
        prediction: str = "eps",
        target: str = "image",
        residual_scale: float = 4.0,
        scale: int = 4,
        diffusion_steps: int = 100,
        coarse_steps: int = 10,
        start: int | None = None,
        **unknown: Any,
    ) -> None:
        super().__init__()
        if unknown:
            known = ", ".join(sorted(type(self)._hub_mixin_init_parameters))
            raise ConfigError(f"unknown UNet setting {', '.join(sorted(unknown))}; known are {known}")
        for name, value, allowed in (
            ("prediction", prediction, ("eps", "v")),
            ("target", target, ("image", "residual")),
        ):
            if value not in allowed:
                raise ConfigError(f"{name} must be one of {', '.join(allowed)}, got {value!r}")
        for name, number in (("width", width), ("blocks", blocks), ("patch_size", patch_size), ("scale", scale)):
            if not isinstance(number, int) or number < 1:
                raise ConfigError(f"{name} must be a whole number of at least 1, got {number!r}")
        if not multipliers or min(multipliers) < 1:
            raise ConfigError(f"multipliers must be whole numbers of at least 1, got {list(multipliers)}")
        if width % 2 or any(width * m % norm_groups for m in multipliers):
            raise ConfigError(
                f"width must be even and every width · multiplier divisible by norm_groups, got width {width}, "
                f"multipliers {list(multipliers)}, norm_groups {norm_groups}"
            )
        if diffusion_steps % coarse_steps:
            check_steps(diffusion_steps, coarse_steps, diffusion_steps // coarse_steps)
        if start is not None and not 1 <= start <= diffusion_steps // coarse_steps:
            raise ConfigError(f"start must lie in 1 … {diffusion_steps // coarse_steps}, got {start}")

        self.prediction = prediction
        self.target = target
        self.residual_scale = residual_scale
        self.scale = scale
        self.diffusion_steps = diffusion_steps
        self.coarse_steps = coarse_steps
        self.start = start
        self.patch_size = patch_size
        # Sides of an input must be multiples of this.
        self.stride = patch_size * 2 ** (len(multipliers) - 1)

        def block(channels_in: int, channels_out: int, attend: bool) -> Block:
            return Block(channels_in, channels_out, width, norm_groups, dropout, attend)

        pixels = patch_size**2
        resolution = image_size // patch_size
        channels = width
        self.embedding = NoiseLevelEmbedding(width, noise_level_scale)
        self.first = nn.Conv2d(6 * pixels, width, 3, padding=1)
        skips = [width]
        self.down = nn.ModuleList()
        for level, multiplier in enumerate(multipliers):
            for _ in range(blocks):
                self.down.append(block(channels, width * multiplier, resolution in attention_resolutions))
                channels = width * multiplier
                skips.append(channels)
            if level < len(multipliers) - 1:
                self.down.append(nn.Conv2d(channels, channels, 3, stride=2, padding=1))
                skips.append(channels)
                resolution //= 2
        self.middle = nn.ModuleList([block(channels, channels, True), block(channels, channels, False)])
        self.up = nn.ModuleList()
        for level, multiplier in reversed(list(enumerate(multipliers))):
            for _ in range(blocks + 1):
                self.up.append(block(channels + skips.pop(), width * multiplier, resolution in attention_resolutions))
                channels = width * multiplier
            if level > 0:
                self.up.append(Upsample(channels))
                resolution *= 2
        self.last_norm = nn.GroupNorm(norm_groups, channels)
        self.last = nn.Conv2d(channels, 3 * pixels, 3, padding=1)
        self.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    def forward(self, lr_up: Tensor, x_t: Tensor, noise_level: Tensor) -> Tensor:
        """Predicts eps or v.

        Args:
            lr_up: condition, (B, 3, H, W) in [-1, 1]; H and W multiples of `stride`.
            x_t: latent at diffusion step t, (B, 3, H, W).
            noise_level: √ᾱ_t, (B,), in (0, 1].

        Returns:
            What `prediction` names, (B, 3, H, W), unbounded.
        """
        embedding = self.embedding(noise_level)
        x = torch.cat([lr_up, x_t], dim=1)
        if self.patch_size > 1:
            x = F.pixel_unshuffle(x, self.patch_size)
        x = self.first(x.contiguous(memory_format=torch.channels_last))
        skips = [x]
        for layer in self.down:
            x = layer(x, embedding) if isinstance(layer, Block) else layer(x)
            skips.append(x)
        for layer in self.middle:
            x = layer(x, embedding)
        for layer in self.up:
            x = layer(torch.cat([x, skips.pop()], dim=1), embedding) if isinstance(layer, Block) else layer(x)
        x = self.last(F.silu(self.last_norm(x), inplace=True))
        return F.pixel_shuffle(x, self.patch_size) if self.patch_size > 1 else x
