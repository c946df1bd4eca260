"""Environments with tables of outcomes, without a net or torch."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from ddpm.util.checks import check_one_of, is_whole
from ddpm.util.errors import ConfigError
from skipdiff_env.batches import Array, BatchedEnv, one_info, set_generators
from skipdiff_env.outcomes import OutcomeTable
from skipdiff_env.rendering import METADATA, check_render_mode, draw_outcomes
from skipdiff_env.rules import (
    PRICE,
    REWARDS,
    FixedPrice,
    InvalidActionError,
    ResetNeededError,
    check_price,
    draw_price,
    episode_reward,
    price_range,
)
from skipdiff_env.tree import Tree


class SkipDiffTableVectorEnv(BatchedEnv):
    """`num_envs` environments with a table, computed together in NumPy: some 10⁵ env steps per second.

    With the same seeds, observations, rewards and `info` are those of Gymnasium's `SyncVectorEnv` over scalar
    environments.

    Args:
        num_envs: number of environments.
        table: folder that `skipdiff tabulate` wrote, the name of a shipped table, or an `OutcomeTable`.
        decisions: "schedule", one decision for each episode; "stride", one for each forward; "continuous", the same as
            numbers; or "skip", one for each diffusion step.
        split: "train", "validation" or "test"; None: all pictures.
        metric: the reward's metric M; None: the table's first.
        reward: "negative" (-M) or "inverse" (1/M), for a metric that is lower for better pictures; or "relative": -M
            minus the mean reward of all schedules for the crop and noise, so that easy and hard pictures have the same
            weight.
        nfe_penalty: subtracted from the terminal reward for each forward; or, for the decisions "skip", a pair (lowest,
            highest), from which the price of each episode is drawn.
        autoreset_mode: "NextStep", "SameStep" or "Disabled".
        render_mode: None or "rgb_array".
        max_episode_steps: the env steps of an episode or more, since episodes are never truncated; or None.

    Raises:
        ConfigError: the table does not exist, or an argument is wrong.
    """

    metadata: dict[str, Any] = {**METADATA, "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012
    nfe_penalty = FixedPrice()

    def __init__(
        self,
        num_envs: int = 1,
        *,
        table: str | Path | OutcomeTable = "natural-x4",
        decisions: str = "schedule",
        split: str | None = "train",
        metric: str | None = None,
        reward: str = "relative",
        nfe_penalty: float | Sequence[float] = PRICE,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        max_episode_steps: int | None = None,
    ) -> None:
        super().__init__(num_envs, autoreset_mode)
        check_render_mode(render_mode)
        check_one_of((*REWARDS, "relative"), reward=reward)
        whole = table if isinstance(table, OutcomeTable) else OutcomeTable.load(table)
        self.table = whole if split is None else whole.split(split)
        self._price, prices = nfe_penalty, price_range(nfe_penalty)
        highest = check_price(nfe_penalty) if prices is None else prices[1]
        self.tree = Tree(self.table, decisions, max(1.0, highest))
        if prices is not None and decisions != "skip":
            raise ConfigError(
                f"a range of prices is for decisions skip, whose agents see the price, got {nfe_penalty} and decisions "
                f"{decisions}"
            )
        self._check_length(self.tree.longest, max_episode_steps)
        self.render_mode = render_mode
        self._quality = self.table.rewards(0.0, metric, "negative" if reward == "relative" else reward)
        self._relative = reward == "relative"
        self._means, self._mean_forwards = self._quality.mean(axis=2), self.table.forwards.mean()
        if self._relative and any(np.isnan(values).any() for values in self.table.metrics.values()):
            raise ConfigError("a metric failed for some crops of the table; make it from other photographs")
        self._set_spaces(self.tree.observation_space, self.tree.action_space)
        coarse = int(self.table.description.get("plan", {"S": 1})["S"]) - 1
        self._coarse = coarse * self.table.forwards_per_call
        ways: dict[str, list[Any]] = {
            "levels": [schedule.levels for schedule in self.table.schedules],
            "substeps": [schedule.substeps for schedule in self.table.schedules],
        }
        if decisions == "skip":
            ways["start"] = [each.length if self.table.restart else self.tree.length for each in self.table.schedules]
        self._ways = {name: np.empty(len(self.table.schedules), dtype=object) for name in ways}
        for name, column in ways.items():
            self._ways[name][:] = column
        # the content that the numbers of a state refer to
        content = [*map(str, self.table.schedules), *self.table.photographs, decisions, self.tree.highest_price]
        parts = json.dumps(content).encode() + self.table.features.tobytes()
        self._identity = hashlib.blake2b(parts, digest_size=16).hexdigest()
        self._begun = False
        self._state: dict[str, Array] = {
            **{name: np.zeros(self.num_envs, np.int64) for name in ("image", "noise_seed", "node", "nfe")},
            "nfe_penalty": np.zeros(self.num_envs),
        }

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Start an episode in every environment, or in those of `options["reset_mask"]`.

        Args:
            seed: seed of the first environment, the others counting up from there; or one for each.
            options: "image" (index of a crop of the split), "noise_seed" and, for the decisions "skip", "nfe_penalty",
                each one value for all or a list; "reset_mask".

        Raises:
            ConfigError: an option is unknown or out of range.
            ResetNeededError: the mask leaves an environment without an episode.
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
            actions: whole numbers (num_envs,), see `skipdiff_env.tree.Tree.actions`; or float32 (num_envs, 2).

        Returns:
            Observations, rewards (float64), terminations, truncations (all False), and `info`.

        Raises:
            InvalidActionError: the actions have another shape or type, or one is out of range.
            ResetNeededError: an environment has no episode, or with "Disabled" one that has ended.
        """
        actions = self._checked(actions)
        self._check_begun("step")
        state = self._state
        waiting = state["node"] < 0
        self._check_going(np.flatnonzero(waiting).tolist())
        going = ~waiting
        nodes = np.maximum(state["node"], 0)
        actions = self.tree.places(nodes, actions)
        state["nfe"] += going * self.tree.forwards[nodes, actions]
        state["node"] = np.where(going, self.tree.moves[nodes, actions], state["node"])
        ended = going & (state["node"] < 0)
        rewards, where = (
            np.zeros(self.num_envs),
            (state["image"][ended], state["noise_seed"][ended], -1 - state["node"][ended]),
        )
        price = state["nfe_penalty"][ended]
        rewards[ended] = episode_reward(self._quality[where], price, state["nfe"][ended] - self._coarse)
        if self._relative:
            rewards[ended] -= episode_reward(self._means[where[:2]], price, self._mean_forwards)
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

    def render(self) -> tuple[NDArray[np.uint8], ...] | None:
        """Return a frame for each environment, with the rewards of all schedules for its crop and noise as bars.

        The schedule of the episode is green after its end. Without a `render_mode` the result is None.
        """
        if self.render_mode is None:
            return None
        self._check_begun("render")
        state, names = self._state, [*map(str, self.table.schedules)]
        quality = self._quality[state["image"], state["noise_seed"]]
        rewards = episode_reward(quality, state["nfe_penalty"][:, None], self.table.forwards)
        return tuple(
            draw_outcomes(own, names, -1 - int(node) if node < 0 else None)
            for own, node in zip(rewards, state["node"], strict=True)
        )

    def action_masks(self) -> NDArray[np.bool_]:
        """Return for each environment and action whether it is possible now, (num_envs, actions)."""
        if self.tree.kind == "continuous":
            return np.ones((self.num_envs, 2), dtype=np.bool_)
        return self.tree.possible[np.maximum(self._state["node"], 0)]

    def get_state(self) -> dict[str, Any]:
        """Return the episodes and the random generators as plain data, for `set_state` and pickle."""
        self._check_begun("get_state")
        return {
            "table": self._identity,
            "episodes": {name: array.copy() for name, array in self._state.items()},
            "generators": [generator.bit_generator.state for generator in self.np_random],
        }

    def set_state(self, state: Mapping[str, Any]) -> Array:
        """Continue from where `get_state` was called, and return the observations of that moment.

        Raises:
            ConfigError: it is not such a state, or one of another number of environments, table, split or range of
                prices.
        """
        try:
            if state["table"] != self._identity:
                raise ConfigError(
                    "the state was taken with another table, split or nfe_penalty; take it in an environment of the "
                    "same arguments"
                )
            episodes = {name: np.array(state["episodes"][name], array.dtype) for name, array in self._state.items()}
            fits = all(array.shape == (self.num_envs,) for array in episodes.values())
            generators = self._one_each("generators", state["generators"])
        except (KeyError, TypeError, ValueError, IndexError) as error:
            if isinstance(error, ConfigError):
                raise
            raise ConfigError("this is not a state that get_state() returned") from None
        if not fits:
            raise ConfigError(f"the state must be one of {self.num_envs} environments")
        set_generators(self.np_random, generators)
        self._state, self._begun = episodes, True
        return self._observe()

    def _check_begun(self, call: str) -> None:
        if not self._begun:
            raise ResetNeededError(f"an environment has no episode; call reset() before {call}()")

    def _actions_are(self) -> str:
        if self.tree.kind == "continuous":
            return f"float32 ({self.num_envs}, 2) in -1 … 1"
        return f"whole numbers ({self.num_envs},) in 0 … {len(self.tree.actions) - 1}"

    def _begin(self, envs: Sequence[int], options: Mapping[str, Sequence[Any]]) -> None:
        """Start episodes in some environments."""
        limits = {"image": len(self.table.features), "noise_seed": self._quality.shape[1]}
        known = [*limits, *(["nfe_penalty"] if self.tree.kind == "skip" else [])]
        if unknown := sorted(map(str, options.keys() - set(known))):
            raise ConfigError(f"unknown reset option {', '.join(unknown)}; known are {' and '.join(known)}")
        count = limits["image"] * limits["noise_seed"]
        # random() is several times as fast as integers()
        drawn = (np.array([self._generator(i)[0].random() for i in envs]) * count).astype(np.int64)
        chosen: dict[str, Array] = dict(zip(limits, np.divmod(drawn, limits["noise_seed"]), strict=True))
        chosen["nfe_penalty"] = np.array([draw_price(self._generator(i)[0], self._price) for i in envs])
        for name, column in options.items():
            for row, i in enumerate(envs):
                if (value := column[i]) is None:
                    continue
                if name in limits and (not is_whole(value) or not 0 <= value < limits[name]):
                    raise ConfigError(f"{name} must be a whole number from 0 to {limits[name] - 1}, got {value!r}")
                chosen[name][row] = value if name in limits else check_price(value, self.tree.highest_price)
        for name, values in chosen.items():
            self._state[name][envs] = values
        self._state["node"][envs], self._state["nfe"][envs] = 0, self._coarse
        self._begun = True

    def _observe(self) -> NDArray[np.float32]:
        state = self._state
        return self.tree.observe(state["image"], state["noise_seed"], state["node"], state["nfe_penalty"])

    def _infos(self, mask: NDArray[np.bool_]) -> dict[str, Any]:
        """Return the `info` of some environments in `step` and `reset`."""
        state = self._state
        named = {
            "diffusion_step": self.tree.steps[np.maximum(state["node"], 0)] * (state["node"] >= 0), "nfe": state["nfe"],
            "image_index": state["image"], "noise_seed": state["noise_seed"], "nfe_penalty": state["nfe_penalty"],
        }  # fmt: skip
        infos: dict[str, Any] = {}
        for name, column in named.items():
            infos[name], infos[f"_{name}"] = column * mask, mask.copy()
        return infos

    def _final_infos(
        self, ended: NDArray[np.bool_], where: tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]
    ) -> dict[str, Any]:
        """Return the additional `info` of ended episodes."""
        metrics: dict[str, Any] = {}
        for name, values in self.table.metrics.items():
            metrics[name], metrics[f"_{name}"] = np.zeros(self.num_envs), ended.copy()
            metrics[name][ended] = values[where]
        infos: dict[str, Any] = {"metrics": metrics}
        for name, values in self._ways.items():
            infos[name] = np.zeros(self.num_envs, np.int64) if name == "start" else np.full(self.num_envs, None, object)
            infos[name][ended] = values[where[2]]
        return infos | {f"_{name}": ended.copy() for name in infos}


class SkipDiffTableEnv(gym.Env[NDArray[np.float32], Any]):
    """One environment with a table of outcomes: the decisions of `SkipDiffEnv`, without a network.

    `skipdiff tabulate` computes the results of schedules for pictures under several noises once. With such a table an
    algorithm can be tried, or a thousand seeds of it compared, in seconds. Instead of latents, agents observe
    statistics of the picture's gradients, see `skipdiff_env.tree.Tree.observe`. Decisions, levels, forwards, rewards
    and `info` are those of the live environment with the table's settings. `get_state()` and `set_state()` save and
    restore an episode.

    `env.unwrapped.table.rewards(price)` returns the rewards of all schedules for every picture and noise, from which
    the best fixed schedule and the oracle follow.

    Args:
        render_mode: None or "rgb_array".
        settings: the arguments of `SkipDiffTableVectorEnv`.

    Raises:
        ConfigError: the table does not exist, or an argument is wrong.
    """

    metadata = METADATA
    nfe_penalty = FixedPrice()

    def __init__(self, render_mode: str | None = None, **settings: Any) -> None:
        self._batch = SkipDiffTableVectorEnv(1, autoreset_mode="Disabled", render_mode=render_mode, **settings)
        self.render_mode = render_mode
        self._price = self._batch.nfe_penalty
        self.table, self.tree = self._batch.table, self._batch.tree
        self.observation_space = self._batch.single_observation_space
        self.action_space = self._batch.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Start an episode.

        Args:
            seed: seed of `np_random`, from which crop, noise and price are drawn.
            options: "image", "noise_seed" and, for the decisions "skip", "nfe_penalty" replace the drawn values.

        Raises:
            ConfigError: an option is unknown or out of range.
        """
        super().reset(seed=seed)
        self._batch._generators = [(self.np_random, self.np_random_seed)]
        observations, infos = self._batch.reset(options=options)
        return observations[0], one_info(infos, 0)

    def step(self, action: Any) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Make one decision.

        Raises:
            InvalidActionError: the action does not belong to the action space.
            ResetNeededError: there is no episode, or it has ended.
        """
        if not self.action_space.contains(action):
            expected = f"a whole number in 0 … {len(self.tree.actions) - 1}"
            if self.tree.kind == "continuous":
                expected = "a float32 array (2,) of numbers in -1 … 1"
            raise InvalidActionError(f"an action must be {expected}, got {action!r}")
        begun = self._batch._begun
        if not begun or self._batch._state["node"][0] < 0:
            raise ResetNeededError(f"the episode has {'ended' if begun else 'not begun'}; call reset() before step()")
        observations, rewards, terminations, _, infos = self._batch.step(np.asarray(action)[None])
        return observations[0], float(rewards[0]), bool(terminations[0]), False, one_info(infos, 0)

    def render(self) -> NDArray[np.uint8] | None:
        """Return a frame (height, width, 3), see `SkipDiffTableVectorEnv.render`."""
        frames = self._batch.render()
        return None if frames is None else frames[0]

    def action_masks(self) -> NDArray[np.bool_]:
        """Return for each action whether it is possible now."""
        return self._batch.action_masks()[0]

    def get_state(self) -> dict[str, Any]:
        """Return the episode and the random generator as plain data, for `set_state` and pickle."""
        return self._batch.get_state()

    def set_state(self, state: Mapping[str, Any]) -> NDArray[np.float32]:
        """Continue from where `get_state` was called, and return the observation of that moment.

        Raises:
            ConfigError: it is not such a state, or one of another table, split or range of prices.
        """
        self._batch._generators = [(self.np_random, self.np_random_seed)]
        return self._batch.set_state(state)[0]
