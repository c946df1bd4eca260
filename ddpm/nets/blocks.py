"""The parts of SR3's UNet, and the linear estimate that a small net may add to its output."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn


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


class JumpEmbedding(nn.Module):
    """Embedding of a jump and its substeps, (B,), (B,) → (B, width); exactly zero at one substep.

    Sines and cosines of the angle of the jump, and of a quarter of the binary logarithm of the substeps, go through a
    small MLP, whose value at one substep is subtracted. Low frequencies make neighbouring numbers of substeps similar.
    """

    frequencies: Tensor

    def __init__(self, width: int) -> None:
        super().__init__()
        self.register_buffer("frequencies", 2.0 ** torch.linspace(-1, 3, 16), persistent=False)
        last = nn.Linear(4 * width, width)
        nn.init.zeros_(last.weight)
        nn.init.zeros_(last.bias)
        self.mlp = nn.Sequential(nn.Linear(64, 4 * width), nn.SiLU(), last)

    def forward(self, angle: Tensor, substeps: Tensor) -> Tensor:
        doublings = substeps.log2() / 4
        return self._embed(angle, doublings) - self._embed(angle, torch.zeros_like(doublings))

    def _embed(self, angle: Tensor, doublings: Tensor) -> Tensor:
        angles = torch.stack([angle, doublings], dim=1)[:, :, None] * self.frequencies
        return self.mlp(torch.cat([angles.sin(), angles.cos()], dim=2).flatten(1))


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


def linear_estimate(prediction: str, x_t: Tensor, noise_level: Tensor, log_variance: Tensor) -> Tensor:
    """Return the prediction for an x_0 that is normal with mean 0 and a known variance s²: a multiple of x_t.

    This is the Wiener filter.

    E[x_0 | x_t] = a·s²/(a²·s² + b²)·x_t with a = √ᾱ and b² = 1 - ᾱ, hence E[eps | x_t] = b/(a²·s² + b²)·x_t and
    E[v | x_t] = a·b·(1 - s²)/(a²·s² + b²)·x_t.

    Args:
        prediction: "eps" or "v".
        x_t: latents, (B, 3, H, W).
        noise_level: √ᾱ, (B,).
        log_variance: logarithm of s², (B, 3, H, W); clipped here to -12 … 4.

    Returns:
        (B, 3, H, W).
    """
    a = noise_level[:, None, None, None]
    b = (1 - a**2).clamp_min(1e-12).sqrt()
    variance = log_variance.clamp(-12, 4).exp()
    gain = b / (a**2 * variance + b**2)
    return x_t * (gain if prediction == "eps" else a * (1 - variance) * gain)
