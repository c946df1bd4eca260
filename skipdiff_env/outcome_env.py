"""SkipDiffBanditTable-v0 and SkipDiffStrideTable-v0: episodes played from a table, without a net or torch."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from ddpm.schedule import Schedule
from ddpm.util.checks import check_one_of, is_whole
from ddpm.util.errors import ConfigError
from skipdiff_env.batches import Array, BatchedEnv
from skipdiff_env.outcomes import Jumps, OutcomeTable
from skipdiff_env.rules import InvalidActionError, ResetNeededError, check_price
from skipdiff_env.table import FEATURE_BOUNDS, FEATURES
from skipdiff_env.table_env import _of_one

KINDS = ("schedule", "stride")
REWARDS = ("relative", "negative")
# What a forward costs in the environments' rewards.
PRICE = 0.002


@dataclass(frozen=True)
class Tree:
    """The decisions that a table has outcomes for, as a tree: its leaves are the schedules.

    Attributes:
        table: the outcomes.
        kind: "schedule", one decision among all schedules, or "stride", one decision for each forward.
    """

    table: OutcomeTable
    kind: str

    def __post_init__(self) -> None:
        check_one_of(KINDS, decisions=self.kind)

    @cached_property
    def nodes(self) -> tuple[Jumps, ...]:
        """The states in which something is decided, each as the jumps that lead to it; the first one is the root."""
        return ((), *self.table.states) if self.kind == "stride" else ((),)

    @cached_property
    def actions(self) -> tuple[tuple[int, int], ...] | tuple[Schedule, ...]:
        """What each action stands for: a schedule, or the level that a forward goes to and its substeps."""
        if self.kind == "schedule":
            return self.table.schedules
        return tuple(sorted({jump for schedule in self.table.schedules for jump in schedule.jumps()}))

    @cached_property
    def levels(self) -> NDArray[np.float32]:
        """The level of each node, as a part of the length of the schedules."""
        length = self.table.schedules[0].length
        return np.array([jumps[-1][0] if jumps else length for jumps in self.nodes], np.float32) / np.float32(length)

    @cached_property
    def possible(self) -> NDArray[np.bool_]:
        """Whether each action is possible at each node, (nodes, actions)."""
        return self._exact != 0

    @cached_property
    def _exact(self) -> NDArray[np.int64]:
        """As `moves`, with 0 for what is not possible."""
        if self.kind == "schedule":
            return -1 - np.arange(len(self.actions))[None]
        found = np.zeros((len(self.nodes), len(self.actions)), np.int64)
        for place, schedule in enumerate(self.table.schedules):
            jumps = tuple(schedule.jumps())
            for count, jump in enumerate(jumps):
                ahead = -1 - place if count == len(jumps) - 1 else self.nodes.index(jumps[: count + 1])
                found[self.nodes.index(jumps[:count]), self.actions.index(jump)] = ahead
        return found

    @cached_property
    def moves(self) -> NDArray[np.int64]:
        """What each action leads to at each node, (nodes, actions): the place of a node, or -1 - that of a schedule.

        An action that is not possible leads to what the nearest possible one does: that of the nearest level, and among
        these that of the nearest logarithm of substeps.
        """
        moves = self._exact.copy()
        for node, possible in enumerate(self.possible):
            for action in np.flatnonzero(~possible):
                to, substeps = self.actions[action]  # type: ignore[misc]

                def distance(other: int, to: int = to, substeps: int = substeps) -> tuple[int, float]:
                    level, own = self.actions[other]  # type: ignore[misc]
                    return abs(level - to), abs(float(np.log(own / substeps)))

                moves[node, action] = moves[node, min(map(int, np.flatnonzero(possible)), key=distance)]
        return moves

    @property
    def longest(self) -> int:
        """Env steps of the longest episode."""
        return 1 if self.kind == "schedule" else max(schedule.forwards for schedule in self.table.schedules)

    def observe(
        self, crops: NDArray[np.integer], noises: NDArray[np.integer], nodes: NDArray[np.integer]
    ) -> NDArray[np.float32]:
        """Return what is seen of crops with these noises at these nodes, (B, 42) or (B, 85); see the environments."""
        seen = self.table.features[crops]
        if self.kind == "schedule":
            return seen
        level = self.levels[np.maximum(nodes, 0)] * (nodes >= 0)
        last = np.zeros_like(seen)
        begun = nodes > 0
        if self.table.estimates is not None:
            last[begun] = self.table.estimates[crops[begun], noises[begun], nodes[begun] - 1]
        return np.concatenate([seen, level[:, None].astype(np.float32), last], axis=1)

    @cached_property
    def observation_space(self) -> spaces.Box:
        """The space of the observations."""
        low, high = FEATURE_BOUNDS
        bounds = [(low, high)] * FEATURES
        if self.kind == "stride":
            bounds += [(0.0, 1.0), *[(low, high)] * FEATURES]
        lows, highs = np.array(bounds, np.float32).T
        return spaces.Box(lows, highs)

    @cached_property
    def action_space(self) -> spaces.Discrete:
        """The space of the actions."""
        return spaces.Discrete(len(self.actions))


class SkipDiffOutcomeVectorEnv(BatchedEnv):
    """`num_envs` environments as `SkipDiffBanditTableEnv` or `SkipDiffStrideTableEnv`, played together in NumPy.

    With the same seeds, observations, rewards and `info` are those of Gymnasium's `SyncVectorEnv` over scalar
    environments.

    Args:
        num_envs: number of environments.
        table: folder that `skipdiff tabulate --ways` wrote, the name of a table that ships, or an `OutcomeTable`.
        decisions: "schedule", one decision for each episode, or "stride", one for each forward.
        split: "train", "validation" or "test".
        reward: "relative": -M for the table's metric M, less the mean of that over all schedules of the crop and noise,
            so that easy and hard pictures count alike; or "negative": -M itself.
        nfe_penalty: subtracted from the terminal reward for each forward.
        autoreset_mode: "NextStep", "SameStep" or "Disabled".
        render_mode: None; a table has no pictures.
        max_episode_steps: the env steps of an episode or more, since episodes are never truncated; or None.

    Raises:
        ConfigError: there is no such table, or an argument is wrong.
    """

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012

    def __init__(
        self,
        num_envs: int = 1,
        *,
        table: str | Path | OutcomeTable = "natural-x4",
        decisions: str = "schedule",
        split: str = "train",
        reward: str = "relative",
        nfe_penalty: float = PRICE,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        max_episode_steps: int | None = None,
    ) -> None:
        super().__init__(num_envs, autoreset_mode)
        if render_mode is not None:
            raise ConfigError(f"render_mode must be None, since a table has no pictures, got {render_mode!r}")
        check_one_of(REWARDS, reward=reward)
        whole = table if isinstance(table, OutcomeTable) else OutcomeTable.load(table)
        self.table = whole.split(split)
        self.tree = Tree(self.table, decisions)
        self.nfe_penalty = check_price(nfe_penalty)
        self._check_length(self.tree.longest, max_episode_steps)
        self.render_mode = None
        rewards = self.table.rewards(self.nfe_penalty)
        self._rewards = rewards - rewards.mean(axis=2, keepdims=True) if reward == "relative" else rewards
        if not np.isfinite(rewards).all():
            raise ConfigError(f"{self.table.metric} failed for some crops of the table; make it from other photographs")
        self._set_spaces(self.tree.observation_space, self.tree.action_space)
        self._length = self.table.schedules[0].length
        self._ways = {name: np.empty(len(self.table.schedules), dtype=object) for name in ("levels", "substeps")}
        for name, column in self._ways.items():
            column[:] = [getattr(schedule, name) for schedule in self.table.schedules]
        self._begun = False
        self._state = {name: np.zeros(self.num_envs, np.intp) for name in ("image", "seed", "node", "nfe")}

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start an episode in every environment, or in those of `options["reset_mask"]`.

        Args:
            seed: seed of the first environment, the others counting up from there; or one for each.
            options: "image" (place among the crops of the split) and "noise_seed", each one value for all or a list;
                "reset_mask".

        Raises:
            ConfigError: an option is unknown or out of range.
            ResetNeededError: the mask leaves an environment without any episode.
        """
        envs, columns = self._prepare_reset(seed, options)
        if not self._begun and len(envs) < self.num_envs:
            raise ResetNeededError("an environment has no episode; call reset() for all of them first")
        self._begin(envs, columns)
        mask = np.zeros(self.num_envs, dtype=np.bool_)
        mask[envs] = True
        return self._observe(), self._infos(mask)

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """Make one decision in every environment.

        Args:
            actions: whole numbers (num_envs,), see `Tree.actions`.

        Returns:
            Observations, rewards (float64), terminations, truncations (all False), and `info`.

        Raises:
            InvalidActionError: the actions have another shape or type, or one is out of range.
            ResetNeededError: an environment has no episode, or with "Disabled" one that has ended.
        """
        actions = self._checked(actions)
        if not self._begun:
            raise ResetNeededError("an environment has no episode; call reset() before step()")
        state = self._state
        waiting = state["node"] < 0
        self._check_going(np.flatnonzero(waiting).tolist())
        going = ~waiting
        state["node"] = np.where(going, self.tree.moves[np.maximum(state["node"], 0), actions], state["node"])
        state["nfe"] += going * self.table.forwards_per_call
        ended = going & (state["node"] < 0)
        ways = -1 - state["node"][ended]
        if self.tree.kind == "schedule":
            state["nfe"][ended] = self.table.forwards[ways]
        rewards, where = np.zeros(self.num_envs), (state["image"][ended], state["seed"][ended], ways)
        rewards[ended] = self._rewards[where]
        ends = self._final_infos(ended, where) if ended.any() else {}
        infos: dict[str, Any] = {}
        if self.autoreset_mode == AutoresetMode.SAME_STEP and ended.any():
            final = self._observe()
            infos["final_obs"] = np.full(self.num_envs, None, dtype=object)
            infos["final_obs"][:] = [row if over else None for row, over in zip(final, ended, strict=True)]
            infos["final_info"] = self._infos(ended) | ends
            infos["_final_obs"], infos["_final_info"] = ended.copy(), ended.copy()
            waiting, ends = ended, {}
        if waiting.any():
            self._begin(np.flatnonzero(waiting).tolist(), {})
        infos |= self._infos(np.ones(self.num_envs, dtype=np.bool_)) | ends
        return self._observe(), rewards, ended, np.zeros_like(ended), infos

    def action_masks(self) -> NDArray[np.bool_]:
        """Return for each environment and action whether it is possible now, (num_envs, actions)."""
        return self.tree.possible[np.maximum(self._state["node"], 0)]

    def _actions_are(self) -> str:
        return f"whole numbers ({self.num_envs},) in 0 … {len(self.tree.actions) - 1}"

    def _begin(self, envs: Sequence[int], options: dict[str, list[Any]]) -> None:
        """Starts episodes in some environments."""
        limits = {"image": len(self.table.features), "noise_seed": self._rewards.shape[1]}
        if unknown := sorted(map(str, options.keys() - limits.keys())):
            raise ConfigError(f"unknown reset option {', '.join(unknown)}; known are {' and '.join(limits)}")
        count = limits["image"] * limits["noise_seed"]
        # random() is several times as quick as integers()
        drawn = (np.array([self._generator(i)[0].random() for i in envs]) * count).astype(np.intp)
        for name, values in zip(limits, np.divmod(drawn, limits["noise_seed"]), strict=True):
            for row, i in enumerate(envs if name in options else ()):
                chosen = options[name][i]
                if chosen is not None:
                    if not is_whole(chosen) or not 0 <= chosen < limits[name]:
                        raise ConfigError(f"{name} must be a whole number from 0 to {limits[name] - 1}, got {chosen!r}")
                    values[row] = chosen
            self._state["image" if name == "image" else "seed"][envs] = values
        self._state["node"][envs] = self._state["nfe"][envs] = 0
        self._begun = True

    def _observe(self) -> NDArray[np.float32]:
        return self.tree.observe(self._state["image"], self._state["seed"], self._state["node"])

    def _infos(self, mask: NDArray[np.bool_]) -> dict[str, Any]:
        """What `step` and `reset` report of some environments."""
        state, node = self._state, self._state["node"]
        level = np.rint(self.tree.levels[np.maximum(node, 0)] * self._length).astype(np.int64) * (node >= 0)
        named = {
            "diffusion_step": level, "nfe": state["nfe"], "image_index": state["image"], "noise_seed": state["seed"],
            "nfe_penalty": np.full(self.num_envs, self.nfe_penalty),
        }  # fmt: skip
        infos: dict[str, Any] = {}
        for name, column in named.items():
            infos[name], infos[f"_{name}"] = column * mask, mask.copy()
        return infos

    def _final_infos(
        self, ended: NDArray[np.bool_], where: tuple[NDArray[np.intp], NDArray[np.intp], NDArray[np.int64]]
    ) -> dict[str, Any]:
        """What is reported of episodes that have ended, beside the rest."""
        metrics: dict[str, Any] = {}
        for name, values in self.table.metrics.items():
            metrics[name], metrics[f"_{name}"] = np.zeros(self.num_envs), ended.copy()
            metrics[name][ended] = values[where]
        infos: dict[str, Any] = {"metrics": metrics}
        for name, values in self._ways.items():
            infos[name] = np.full(self.num_envs, None, dtype=object)
            infos[name][ended] = values[where[2]]
        return infos | {f"_{name}": ended.copy() for name in infos}


class SkipDiffBanditTableEnv(gym.Env[NDArray[np.float32], np.int64]):
    """SkipDiffBanditTable-v0: `SkipDiffBandit-v0` from a table, without a network. The benchmark for algorithms.

    ## Description
    One decision for each picture: which of some schedules it gets. The outcomes were computed once, by
    `skipdiff tabulate --ways`, for 1,252 crops of 64 x 64 pixels of 901 photographs, which no network here was trained
    on, under two noises each. An episode takes microseconds, so an algorithm can be tried in seconds.
    `skipdiff benchmark` and `skipdiff_env.score` say how good a policy is; "The benchmark" in the documentation
    explains the score.

    ## Action space
    `Discrete(6)`: one forward with 1, 2, 4, 8, 12 or 16 substeps. In another table: the place of the schedule.

    ## Observation space
    `Box(-3, 1, (42,))`: the statistics of the enlarged picture that the network starts from, see
    `skipdiff_env.table.features`.

    ## Reward
    -LPIPS - 0.002 · forwards, less the mean of that over all schedules for the same crop and noise. What is best for a
    crop stays best, and easy and hard pictures count alike. `reward="negative"` is the reward of `SkipDiffBandit-v0`,
    without the mean.

    ## Episode start and end
    `reset` draws a crop and one of its noises; `options={"image": i, "noise_seed": k}` fixes either. Every episode has
    one env step and then terminates; none is truncated.

    ## Info
    As in the live environment: `diffusion_step` (the level), `nfe`, `image_index`, `noise_seed`, `nfe_penalty`, and at
    the end `metrics`, `levels` and `substeps`.

    ## Arguments
    `table` ("natural-x4", "photo-x4", or a folder), `split` ("train", "validation" or "test", each with photographs of
    its own), `reward`, `nfe_penalty`: see `SkipDiffOutcomeVectorEnv`.

    ## Example
    ```python
    env = gym.make("skipdiff_env:SkipDiffBanditTable-v0", split="train")
    ```

    ## Version history
    * v0: initial version

    Args:
        render_mode: None, or "rgb_array", which counts as None, since a table has no pictures.
        settings: the arguments above.

    Raises:
        ConfigError: there is no such table, or an argument is wrong.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012

    def __init__(self, render_mode: str | None = None, **settings: Any) -> None:
        # Stable-Baselines3 asks for "rgb_array" whatever the environment has; Gymnasium warns of it
        inner = None if render_mode == "rgb_array" else render_mode
        self._batch = SkipDiffOutcomeVectorEnv(1, autoreset_mode="Disabled", render_mode=inner, **settings)
        self.render_mode = None
        self.table, self.tree = self._batch.table, self._batch.tree
        self.observation_space = self._batch.single_observation_space
        self.action_space = self._batch.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: seed of `np_random`, from which crop and noise are drawn.
            options: "image" and "noise_seed" fix what would be drawn.

        Raises:
            ConfigError: an option is unknown or out of range.
        """
        super().reset(seed=seed)
        self._batch._generators = [(self.np_random, self.np_random_seed)]
        observations, infos = self._batch.reset(options=options)
        return observations[0], _of_one(infos)

    def step(self, action: int | np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Make one decision.

        Raises:
            InvalidActionError: the action does not belong to the action space.
            ResetNeededError: there is no episode, or it has ended.
        """
        if not self.action_space.contains(action):
            last = len(self.tree.actions) - 1
            raise InvalidActionError(f"an action must be a whole number in 0 … {last}, got {action!r}")
        begun = self._batch._begun
        if not begun or self._batch._state["node"][0] < 0:
            raise ResetNeededError(f"the episode has {'ended' if begun else 'not begun'}; call reset() before step()")
        observations, rewards, terminations, _, infos = self._batch.step(np.array([int(action)]))
        return observations[0], float(rewards[0]), bool(terminations[0]), False, _of_one(infos)

    def action_masks(self) -> NDArray[np.bool_]:
        """Return for each action whether it is possible now."""
        return self._batch.action_masks()[0]


class SkipDiffStrideTableEnv(SkipDiffBanditTableEnv):
    """SkipDiffStrideTable-v0: a decision before each forward, from a table, without a network.

    ## Description
    As in `SkipDiffStride-v0` one env step is one forward, so the second decision can use what the first forward has
    shown. The table has the outcomes of 18 schedules for the crops and noises of `SkipDiffBanditTable-v0`: the six of
    one forward, and those of two forwards that first go to level 10 of 20 with 1, 4 or 8 substeps, and from there to
    the clean picture with 1, 2, 4 or 8.

    ## Action space
    `Discrete(9)`: pairs of the level that the forward goes to and its substeps, rising: (0, 1), (0, 2), (0, 4), (0, 8),
    (0, 12), (0, 16), (10, 1), (10, 4), (10, 8); `env.unwrapped.tree.actions` lists them. `action_masks()` says which
    are possible at this state. One that is not acts as the nearest possible one.

    ## Observation space
    `Box((85,))`, as in `SkipDiffStride-v0`: 42 statistics of the enlarged picture that the network starts from, the
    level (as a part of 20), and the same statistics of the network's last estimate, 0 before the first forward and at
    the end.

    ## Reward
    0 until the last env step, then -LPIPS - 0.002 · forwards, less the mean of that over all schedules for the same
    crop and noise, or with `reward="negative"` without the mean.

    ## Episode start, info, arguments
    As in `SkipDiffBanditTable-v0`; an episode has one or two env steps. `table` is "natural-x4-stride".

    ## Example
    ```python
    env = gym.make("skipdiff_env:SkipDiffStrideTable-v0", split="train")
    ```

    ## Version history
    * v0: initial version
    """
