"""Stacked latents, (B, 3 · n, H, W), and their distinct frames.

`VecFrameStack` stacks all latents of an episode so far, oldest first, with zeros in front at the beginning of an
episode. This module finds each distinct frame once, so that a network runs once for it.
"""

from typing import Any

import torch.nn.functional as F
from gymnasium import spaces
from torch import Tensor

from ddpm.util.errors import ConfigError


def resize_latents(latents: Tensor, side: int) -> Tensor:
    """Return latents (B, 3, H, W) resized for an SPN of `side` pixels: float32, (B, 3, side, side), antialiased."""
    latents = latents.float()
    if latents.shape[-2:] == (side, side):
        return latents
    return F.interpolate(latents, size=(side, side), mode="bilinear", antialias=True, align_corners=False)


def check_space(space: spaces.Space[Any]) -> None:
    """Check that a space holds stacked latents.

    Raises:
        ConfigError: it is not a Box of floats of shape (3 · n, H, W), or the latents were stacked along the width.
    """
    if not isinstance(space, spaces.Box) or len(space.shape) != 3 or space.shape[0] % 3:
        raise ConfigError(f"the SPN needs stacked latents, a Box of shape (3 · n, H, W); got {space}")
    if space.dtype is None or space.dtype.kind != "f":
        raise ConfigError(f"the SPN needs latents, a Box of floats; got dtype {space.dtype}")
    _, height, width = space.shape
    if space.shape[0] == 3 and width > height and width % height == 0:
        raise ConfigError(
            f"got observations of shape {space.shape}: latents stacked along the width; "
            'use VecFrameStack(env, n_stack, channels_order="first")'
        )


class DistinctFrames:
    """A memory of distinct frames and distinct beginnings of episodes, each of which is computed once.

    The stack of one decision holds the stack of the decision before it, so a batch of whole episodes of N - 1 decisions
    holds every frame up to N - 1 times. SKIP, which restarts from the same latent, repeats frames as well.

    Attributes:
        gates: the input of the GRU for each distinct frame, (number of frames, …).
        hidden: the hidden state after each distinct beginning of an episode; row 0 is the state before the first frame.
    """

    def __init__(self, hidden: Tensor) -> None:
        self.gates: Tensor | None = None
        self.hidden = hidden
        self._numbers: dict[bytes, int] = {}
        self._nodes: dict[tuple[int, int], int] = {}

    def index(self, frames: Tensor) -> tuple[list[list[int]], list[tuple[int, int]]]:
        """Number the frames of (B, n, C, H, W).

        Returns:
            For each member the numbers of its frames, oldest first, without the zeros in front; and the indices
            (b, n) of the new frames.
        """
        numbers: list[list[int]] = []
        new: list[tuple[int, int]] = []
        for b, stack in enumerate(frames.detach().cpu().numpy()):
            numbers.append([])
            for n, frame in enumerate(stack):
                if not numbers[b] and not frame.any():
                    continue
                key = frame.tobytes()
                if key not in self._numbers:
                    self._numbers[key] = len(self._numbers)
                    new.append((b, n))
                numbers[b].append(self._numbers[key])
        return numbers, new

    def grow(self, at: list[int], episodes: list[list[int]], depth: int) -> tuple[list[int], list[int]]:
        """Move each episode in the tree from its frame `depth` to the next, in place.

        Args:
            at: row of `hidden` that each episode has reached.
            episodes: numbers of the frames of each episode.
            depth: number of frames that were processed; shorter episodes do not move.

        Returns:
            For each new row of `hidden`, the row before and the number of the frame.
        """
        rows: list[int] = []
        numbers: list[int] = []
        for b, episode in enumerate(episodes):
            if len(episode) <= depth:
                continue
            edge = (at[b], episode[depth])
            if edge not in self._nodes:
                self._nodes[edge] = len(self.hidden) + len(rows)
                rows.append(edge[0])
                numbers.append(edge[1])
            at[b] = self._nodes[edge]
        return rows, numbers
