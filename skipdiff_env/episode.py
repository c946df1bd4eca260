"""One episode, and the `info` about it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from skipdiff_env.refinement import Refinement


def array(tensor: Tensor) -> NDArray[np.float32]:
    """Return a copy of a tensor, which does not share memory with remembered values."""
    return tensor.cpu().numpy().copy()


@dataclass
class Episode:
    """One picture with one noise, from the coarse latent to the result.

    Attributes:
        image_index: place among the environment's pictures, -1 for one that was passed to `reset`.
        hr: target, (3, H, W) in [-1, 1].
        refinement: state of the process.
        price: price of each fine forward in the reward.
        actions: decisions so far.
        sr: result, (3, H, W) in [-1, 1]; None until the end.
        metrics: name → value, NaN where a metric failed; empty until the end.
        reward: terminal reward; 0 until the end.
        coarse_estimate: the picture that the net estimates from the coarse latent; only if episodes are rendered.
        strengths: strengths of the operations that made the input, each 0 … 1, see `Recipe`; empty if it was only
            shrunk.
        noise_seed: noise seed of the episode.
        place: first row and column of a crop; None for the centre of a picture, and for an array.
    """

    image_index: int
    hr: Tensor
    refinement: Refinement
    price: float = 0.0
    actions: list[Any] = field(default_factory=list)
    sr: Tensor | None = None
    metrics: dict[str, float] = field(default_factory=dict)
    reward: float = 0.0
    coarse_estimate: Tensor | None = None
    strengths: Mapping[str, float] = field(default_factory=dict)
    noise_seed: int = 0
    place: tuple[int, int] | None = None

    @property
    def ended(self) -> bool:
        """Whether the episode has ended."""
        return self.sr is not None

    def info(self) -> dict[str, Any]:
        """Return the `info` of `step` and `reset`."""
        state = self.refinement
        info: dict[str, Any] = {
            "diffusion_step": state.t,
            "nfe": state.nfe,
            "image_index": self.image_index,
            "noise_seed": self.noise_seed,
            "nfe_penalty": self.price,
        }
        if self.place is not None:
            info["crop"] = self.place
        if self.strengths:
            info["degradation"] = dict(self.strengths)
        if self.ended:
            info |= {
                "metrics": dict(self.metrics), "start": state.start, "levels": state.levels, "substeps": state.substeps
            }  # fmt: skip
        return info
