"""Noise as a function of (seed, stage, t), so that a picture and a seed determine every transition."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# No draw of `keyed_noise` is larger: numpy's float32 ziggurat ends at 3.6542, and its tail adds at most 24·ln 2 /
# 3.6542.
MAX_NOISE = 8.21


class Stage(IntEnum):
    """The part of the process to which a noise belongs."""

    INITIAL = 0
    COARSE = 1
    FINE = 2


def keyed_noise(seed: int, stage: Stage, t: int, shape: Sequence[int]) -> NDArray[np.float32]:
    """Return standard normal noise, float32, that depends only on the arguments (counter-based Philox).

    Args:
        seed: noise seed of the episode or picture, 0 ≤ seed < 2⁶⁴.
        stage: part of the process.
        t: step within the stage, 0 ≤ t < 2³².
        shape: shape of the result, usually (3, H, W).
    """
    key = np.array([seed, (int(stage) << 32) | int(t)], dtype=np.uint64)
    return np.random.Generator(np.random.Philox(key=key)).standard_normal(tuple(shape), dtype=np.float32)


@dataclass(frozen=True)
class KeyedNoise:
    """The noise of a batch: a call with (stage, t) returns a float32 tensor (B, *shape).

    Attributes:
        seeds: one noise seed per member of the batch.
        shape: shape of one member, (3, H, W).
        device: device of the result; the noise is always drawn on the CPU, so that it is the same on every device.
    """

    seeds: Sequence[int]
    shape: Sequence[int]
    device: torch.device | str = "cpu"

    def __call__(self, stage: Stage, t: int | NDArray[np.integer]) -> Tensor:
        """Return the noise (B, *shape) of one step `t`, or of one step per member where `t` is an array (B,)."""
        steps = np.broadcast_to(t, len(self.seeds))
        batch = [
            torch.from_numpy(keyed_noise(k, stage, int(i), self.shape)) for k, i in zip(self.seeds, steps, strict=True)
        ]
        noise = batch[0][None] if len(batch) == 1 else torch.stack(batch)
        return noise.to(self.device)
