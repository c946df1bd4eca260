"""Policies that choose a number of even steps, once for each picture, and then decide as that schedule does."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from agents.training.even_outcomes import check_numbers
from ddpm.schedule import even_levels
from ddpm.util.errors import CheckpointError
from skipdiff_env.refinement import Action

# What the distributions of PyTorch say about numbers that are not finite.
INVALID = "invalid values"


def distribution(policy: Any, *arguments: Any) -> Any:
    """What `get_distribution` of a Stable-Baselines3 policy gives.

    Raises:
        CheckpointError: its numbers are not finite.
    """
    try:
        return policy.get_distribution(*arguments)
    except ValueError as error:
        if INVALID not in str(error):
            raise
        raise _damaged() from None


def action_values(policy: Any, observations: Any) -> Tensor:
    """Logits of the actions of a Stable-Baselines3 policy, or their values for a Q-learner, (B, actions).

    Raises:
        CheckpointError: they are not finite.
    """
    if hasattr(policy, "get_distribution"):
        return distribution(policy, observations).distribution.logits
    values = _finite(policy(observations))
    return values.mean(dim=1) if values.ndim == 3 else values  # quantiles (B, n, actions), or values


def _finite(values: Tensor) -> Tensor:
    if not values.isfinite().all():
        raise _damaged()
    return values


def _damaged() -> CheckpointError:
    return CheckpointError(
        "the agent gives numbers that are not finite, so its weights or its configuration are damaged; take another "
        "agent"
    )


class EvenSteps(nn.Module):
    """Base class: chooses a number of even steps from what it sees of a picture, and then follows that schedule.

    Args:
        first: the plan's first step, of which the schedules have their levels.
        numbers: of even steps that it chooses among, rising.
        length: of the plan, which "step" and "level" of an observation are parts of; None: `first`.

    Raises:
        ConfigError: the numbers are out of range or do not rise.
    """

    asked: Tensor

    def __init__(self, first: int, numbers: Sequence[int], length: int | None = None) -> None:
        super().__init__()
        self.first, self.numbers = first, check_numbers("numbers", numbers, first)
        self.length = first if length is None else length
        # whether the net is asked at each level, for each choice
        asked = np.zeros((len(self.numbers), first + 1), dtype=bool)
        for row, n in zip(asked, self.numbers, strict=True):
            row[list(even_levels(first, n))] = True
        self.register_buffer("asked", torch.from_numpy(asked), persistent=False)

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.asked.device

    def set_training_mode(self, mode: bool) -> None:
        """As policies of Stable-Baselines3 have it."""
        self.train(mode)

    def encode(self, condition: Tensor) -> Tensor:
        """What is seen of conditions (B, 3, H, W), (B, F)."""
        raise NotImplementedError

    def values(self, seen: Tensor, price: Tensor | None) -> Tensor:
        """How good each number of even steps is, (B, numbers), the higher the better.

        Args:
            seen: what `encode` gave.
            price: of a forward, (B, 1); None for a policy that has learnt one price.
        """
        raise NotImplementedError

    def choose(self, seen: Tensor, price: Tensor | None) -> Tensor:
        """The best number of even steps, (B,), as its place in `numbers`; arguments as for `values`.

        Raises:
            CheckpointError: the values are not finite.
        """
        return _finite(self.values(seen, price)).argmax(dim=1)

    def schedule(self, seen: Tensor, price: Tensor | None) -> frozenset[int]:
        """The levels at which the best schedule of one picture asks the net; arguments as for `values`."""
        return frozenset(even_levels(self.first, self.numbers[int(self.choose(seen, price))]))

    def forward(self, observations: Mapping[str, Tensor]) -> Tensor:
        """Scores (B, 2) of the two actions: 1 for the one that the best schedule takes.

        "condition" as for `JumpExtractor`.
        """
        condition = observations["condition"]
        seen = condition if condition.ndim == 2 else self.encode(condition)
        choice = self.choose(seen, observations.get("price"))
        arrival = (observations["step"][:, 0] * self.length).round().long() - 1
        denoise = self.asked[choice, arrival].float()
        scores = torch.stack([denoise, 1 - denoise], dim=1)
        return scores if Action.DENOISE == 0 else scores.flip(1)


class NumberPolicy(EvenSteps):
    """A policy of Stable-Baselines3 that was trained through `agents.training.vec_env.VecEvenSteps`.

    Args:
        policy: its part that acts; its features extractor is a `JumpExtractor` that sees no latent.
        first: as for `EvenSteps`.
        numbers: as for `EvenSteps`.
        length: as for `EvenSteps`.
    """

    def __init__(self, policy: Any, first: int, numbers: Sequence[int], length: int | None = None) -> None:
        super().__init__(first, numbers, length)
        self.policy = policy

    @property
    def device(self) -> torch.device:
        """Where it computes."""
        return self.policy.device

    def encode(self, condition: Tensor) -> Tensor:
        """See `JumpExtractor.encode`."""
        return self.policy.features_extractor.encode(condition)

    def values(self, seen: Tensor, price: Tensor | None) -> Tensor:
        """See `EvenSteps.values`; they are those of what an episode shows first."""
        beginning = seen.new_full((len(seen), 1), self.first / self.length)
        observations = {"condition": seen, "step": beginning, "level": beginning}
        if price is not None:
            observations["price"] = price
        return action_values(self.policy, observations)
