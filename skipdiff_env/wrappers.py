"""Wrappers for the jump environments."""

from collections.abc import Sequence
from typing import Any, SupportsFloat

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ddpm.util.checks import is_whole
from ddpm.util.errors import ConfigError
from skipdiff_env.rules import Action, InvalidActionError

STRIDES = (1, 2, 3, 4, 5, 7, 10)


class Stride(gym.Wrapper[Any, Any, Any, Any], gym.utils.RecordConstructorArgs):
    """Lets an action say how many noise levels the next step covers.

    An environment with `skip_mode="jump"` asks at each level whether to DENOISE or to SKIP. Most of its env steps are
    SKIPs that compute nothing, and a schedule that is drawn decision by decision is seldom even. Here every env step
    is one forward of the net: action k performs the step from the present level l straight to level l - strides[k], or
    to the clean latent if that is at or below 0. Repeating one action gives a schedule of even steps. The best fixed
    number of steps is therefore a simple policy, which algorithms find first and can then refine for each picture.

    `reset`, observations, rewards and `info` are those of the environment within; an episode has 1 to N env steps.

    Example:
        ```python
        env = Stride(gym.make("skipdiff_env:SkipDiffJump-v0", split="train"))
        env = make_vec_env("skipdiff_env:SkipDiffJump-v0", 8, wrapper_class=Stride)  # Stable-Baselines3
        ```

    Args:
        env: an environment with `skip_mode="jump"`.
        strides: how many levels each action covers, each 1 … N. None: N, and of 1, 2, 3, 4, 5, 7 and 10 those that are
            smaller. The long ones that this leaves out differ little; under N = 20 those that it has make 20, 10, 7,
            5, 4, 3, 2 and 1 even steps.

    Raises:
        ConfigError: the environment has another `skip_mode`, or there are no strides, or one of them is out of range.
    """

    def __init__(self, env: gym.Env[Any, Any], strides: Sequence[int] | None = None) -> None:
        gym.utils.RecordConstructorArgs.__init__(self, strides=strides)
        gym.Wrapper.__init__(self, env)
        task = getattr(env.unwrapped, "task", None)
        if task is None or task.plan.skip_mode != "jump":
            found = "a table or another environment" if task is None else f"skip_mode={task.plan.skip_mode!r}"
            raise ConfigError(f'Stride needs an environment of SkipDiff with skip_mode="jump", got {found}')
        first = task.plan.first
        if strides is None:
            strides = [*(stride for stride in STRIDES if stride < first), first]
        if not strides or not all(is_whole(stride) and 1 <= stride <= first for stride in strides):
            raise ConfigError(f"strides must be whole numbers in 1 … {first}, at least one of them, got {strides!r}")
        self.strides = tuple(int(stride) for stride in strides)
        self.action_space = spaces.Discrete(len(self.strides))

    def action_masks(self) -> NDArray[np.bool_]:
        """Which actions are possible, bool (strides,): all of them."""
        return np.ones(len(self.strides), dtype=np.bool_)

    def step(self, action: int | np.int64) -> tuple[Any, SupportsFloat, bool, bool, dict[str, Any]]:
        """Performs one step of the sampler.

        Args:
            action: k, the place of the stride among `strides`.

        Raises:
            InvalidActionError: the action is out of range.
            ResetNeededError: there is no episode, or it has ended.
        """
        if not self.action_space.contains(action):
            raise InvalidActionError(
                f"an action must be a whole number from 0 to {len(self.strides) - 1}, got {action!r}"
            )
        step, level = self.unwrapped.position  # type: ignore[attr-defined]
        # levels that were skipped before set_state() cannot be reached any more
        target = min(max(level - self.strides[int(action)], 0), step - 1)
        # As many SKIPs, and the DENOISE that lands at the target; the step to the clean latent comes by itself.
        decisions = [Action.SKIP] * (step - 1 - target) + [Action.DENOISE] * (target > 0)
        for decision in decisions or [Action.SKIP]:
            outcome = self.env.step(int(decision))
        return outcome
