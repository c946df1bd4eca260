"""The features extractor for the jump environments, whose observations are dictionaries.

The condition shows how many steps a picture needs: few for a smooth picture, many for a textured one. The latent shows
the result of the steps so far. Neither is shrunk, since that would remove noise and texture; the extractor takes crops
in full resolution.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from gymnasium import spaces
from stable_baselines3.common.torch_layers import BaseFeaturesExtractor
from torch import Tensor, nn

from ddpm.util.errors import ConfigError

# Largest number of crops along each side of a large condition.
MOST_CROPS = 3
# Number of cosines for each of step, level, the gap between them, and price; enough to distinguish twentieths.
FREQUENCIES = 24


def places(length: int, size: int, most: int) -> list[int]:
    """Return the positions of crops along a side: as many as fill it, at most `most`, from one end to the other.

    A single crop lies in the middle.
    """
    count = min(max(round(length / size), 1), most)
    if count == 1:
        return [(length - size) // 2]
    return [round(i * (length - size) / (count - 1)) for i in range(count)]


def even_crops(pictures: Tensor, size: int, most: int = MOST_CROPS) -> Tensor:
    """Return evenly spread crops of pictures in full resolution.

    Args:
        pictures: (B, C, H, W).
        size: side of a crop; a crop is smaller where a picture is.
        most: largest number of crops along each side.

    Returns:
        (B, K, C, min(size, H), min(size, W)).
    """
    height, width = (min(size, side) for side in pictures.shape[-2:])
    rows, columns = (places(side, size, most) for side, size in zip(pictures.shape[-2:], (height, width), strict=True))
    return torch.stack([pictures[..., y : y + height, x : x + width] for y in rows for x in columns], dim=1)


class CropEncoder(nn.Module):
    """Strided convolutions over a crop, then the mean and the largest value of each feature map.

    The inputs of the network are the colours and the size of the local differences, which distinguishes texture from
    smooth surfaces: the number of steps depends on energies, and a small network would have to learn to square.

    Args:
        channels: channels of the convolutions; the first has a kernel of 5, the others of 3, all with stride 2.
        scale: divisor of the values.
    """

    def __init__(self, channels: Sequence[int], scale: float = 1.0) -> None:
        super().__init__()
        self.scale = scale
        layers: list[nn.Module] = []
        channels_in = 5  # colours, differences of the luma to the right and below
        for i, channels_out in enumerate(channels):
            kernel = 5 if i == 0 else 3
            layers += [
                nn.Conv2d(channels_in, channels_out, kernel, stride=2, padding=kernel // 2),
                nn.ReLU(inplace=True),
            ]
            channels_in = channels_out
        self.convolutions = nn.Sequential(*layers)
        self.features_dim = 2 * channels_in + 2

    def forward(self, crops: Tensor) -> Tensor:
        """Return the features (B, features_dim) of crops (B, 3, H, W)."""
        crops = crops / self.scale
        luma = crops.mean(dim=1, keepdim=True)
        across = torch.diff(luma, dim=3, append=luma[..., -1:]).abs()
        down = torch.diff(luma, dim=2, append=luma[..., -1:, :]).abs()
        energy = torch.cat([across, down], dim=1)
        maps = self.convolutions(torch.cat([crops, 8 * energy], dim=1)).flatten(2)
        strength = (energy.mean(dim=(2, 3)) + 1e-3).log() + 4
        return torch.cat([maps.mean(dim=2), maps.amax(dim=2), strength], dim=1)


class JumpExtractor(BaseFeaturesExtractor):
    """Features extractor for condition, latent, step, level and price, for every algorithm with `MultiInputPolicy`.

    Every distinct condition and latent in a batch is encoded once: a condition stays the same for an episode, a latent
    until the next DENOISE.

    Use it with `policy_kwargs={"features_extractor_class": JumpExtractor, "normalize_images": False}` on an environment
    with `observation="dict"`.

    Args:
        observation_space: Dict with "condition" and "latent", (3, H, W), and "step", "level" and perhaps "price", (1,).
        crop_size: side of the crops of condition and latent. A larger condition has up to 3 x 3 evenly spread crops,
            whose features are averaged; a larger latent has one crop, in the middle.
        channels: channels of the convolutions over the condition; those over the latent have half as many.

    Raises:
        ConfigError: the space does not fit, or a setting is out of range.
    """

    frequencies: Tensor

    def __init__(
        self,
        observation_space: spaces.Space[Any],
        crop_size: int = 64,
        channels: Sequence[int] = (24, 48, 64),
    ) -> None:
        needed = ["condition", "latent", "step", "level"]
        if not isinstance(observation_space, spaces.Dict) or not set(needed) <= set(observation_space.spaces):
            raise ConfigError(
                f"this extractor needs {', '.join(needed[:-1])} and {needed[-1]}; make the environment with "
                f'observation="dict", got {observation_space}'
            )
        if crop_size < 16 or not channels or min(channels) < 2:
            raise ConfigError(
                f"crop_size must be at least 16 and each of channels at least 2, got {crop_size} and {list(channels)}"
            )
        priced = "price" in observation_space.spaces
        bound = float(observation_space["latent"].high.max())  # type: ignore[attr-defined]
        condition, latent = CropEncoder(channels), CropEncoder([n // 2 for n in channels], bound / 4)
        pictures = condition.features_dim + latent.features_dim
        super().__init__(observation_space, pictures + FREQUENCIES * (3 + priced))
        self.condition, self.latent = condition, latent
        self.crop_size = crop_size
        self.highest_price = float(observation_space["price"].high.max()) if priced else None  # type: ignore[attr-defined]
        self.register_buffer("frequencies", math.pi * torch.arange(FREQUENCIES), persistent=False)

    def encode(self, condition: Tensor) -> Tensor:
        """Return the features of conditions (B, 3, H, W)."""
        crops = even_crops(condition.float(), self.crop_size)
        return self.condition(crops.flatten(0, 1)).unflatten(0, crops.shape[:2]).mean(dim=1)

    def encode_latent(self, latents: Tensor) -> Tensor:
        """Return the features of latents (B, 3, H, W)."""
        return self.latent(even_crops(latents.float(), self.crop_size, most=1)[:, 0])

    def forward(self, observations: Mapping[str, Tensor]) -> Tensor:
        """Return the features (B, features_dim) of observations."""
        pictures = (self.encode, observations["condition"]), (self.encode_latent, observations["latent"])
        parts = [_distinct(encode, seen) for encode, seen in pictures]
        step, level = observations["step"].float(), observations["level"].float()
        numbers = [step, level, level - step]
        if self.highest_price is not None:
            # on a logarithmic scale: 1 for the highest, 0 for a thousandth of it
            share = (observations["price"].float() / self.highest_price).clamp(min=1e-3)
            numbers.append(1 + share.log10() / 3)
        parts += [torch.cos(self.frequencies * number) for number in numbers]
        return torch.cat(parts, dim=1)


def _distinct(encode: Callable[[Tensor], Tensor], pictures: Tensor) -> Tensor:
    """Return `encode(pictures)`, computed once for equal pictures."""
    places: dict[bytes, int] = {}
    rows = [places.setdefault(picture.tobytes(), len(places)) for picture in pictures.detach().cpu().numpy()]
    return encode(pictures[[rows.index(place) for place in range(len(places))]])[rows]
