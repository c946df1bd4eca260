"""SkipDiffTable-v0: episodes played from a table of outcomes. Nothing here needs a net or torch."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import gymnasium as gym
import numpy as np
from gymnasium import spaces
from gymnasium.vector import AutoresetMode
from numpy.typing import NDArray

from ddpm.util.checks import check_whole, is_whole
from ddpm.util.errors import ConfigError
from skipdiff_env.batches import Array, BatchedEnv, set_generators
from skipdiff_env.rules import (
    REWARDS,
    Action,
    FixedPrice,
    InvalidActionError,
    ResetNeededError,
    check_price,
    draw_episode,
    price_range,
    qualities,
)
from skipdiff_env.table import FEATURE_BOUNDS, FEATURES, SHIPPED, Table


class SkipDiffTableVectorEnv(BatchedEnv):
    """`num_envs` environments as `SkipDiffTableEnv`, played together in NumPy: some 10⁵ env steps a second.

    With the same seeds, observations, rewards and `info` are those of Gymnasium's `SyncVectorEnv` over scalar
    environments. `reset` takes `seed` and `options` as `skipdiff_env.vector_env.SkipDiffVectorEnv` does.

    Args:
        num_envs: number of environments.
        table: folder that `skipdiff tabulate` wrote, or a `Table`; None: the one that is shipped.
        split: "train" or "test", for tables of scikit-image's photographs; None: all pictures.
        metric: the reward's; None: the table's first.
        reward: "negative", -M for a metric M that is lower for better pictures, or "inverse", 1/M.
        nfe_penalty: subtracted from the terminal reward for each fine forward; or a pair (lowest, highest), out of
            which each episode draws its own.
        noise_seeds: noises a picture may get; None: all of the table.
        autoreset_mode: "NextStep", "SameStep" or "Disabled".
        render_mode: None; a table has no pictures.
        max_episode_steps: the env steps of an episode or more, since episodes are never truncated; or None.

    Raises:
        ConfigError: there is no such table, or an argument is wrong.
    """

    metadata: dict[str, Any] = {"render_modes": [], "autoreset_mode": AutoresetMode.NEXT_STEP}  # noqa: RUF012
    nfe_penalty = FixedPrice()

    def __init__(
        self,
        num_envs: int = 1,
        *,
        table: str | Path | Table | None = None,
        split: str | None = None,
        metric: str | None = None,
        reward: str = "negative",
        nfe_penalty: float | Sequence[float] = 0.002,
        noise_seeds: int | None = None,
        autoreset_mode: str | AutoresetMode = AutoresetMode.NEXT_STEP,
        render_mode: str | None = None,
        max_episode_steps: int | None = None,
    ) -> None:
        super().__init__(num_envs, autoreset_mode)
        if render_mode is not None:
            raise ConfigError(f"render_mode must be None, since a table has no pictures, got {render_mode!r}")
        self.table = table if isinstance(table, Table) else Table.load(SHIPPED if table is None else table)
        description = self.table.description
        self._rows = self.table.rows(split)
        self.metric = self.table.own_metric(metric)
        if reward not in REWARDS:
            raise ConfigError(f"reward must be {' or '.join(REWARDS)}, got {reward!r}")
        self.reward = reward
        self._price = nfe_penalty
        prices = price_range(nfe_penalty)
        self.noise_seeds = description["noise_seeds"] if noise_seeds is None else noise_seeds
        check_whole(noise_seeds=self.noise_seeds)
        if self.noise_seeds > description["noise_seeds"]:
            raise ConfigError(
                f"noise_seeds must be at most the table's {description['noise_seeds']}, got {self.noise_seeds}"
            )
        self.decisions = self.table.first - 1
        self._check_length(self.decisions, max_episode_steps)
        self.render_mode = None
        highest = prices[1] if prices is not None else nfe_penalty
        self._highest_price = max(float(highest), 1.0)  # type: ignore[arg-type]
        # what the numbers of a state refer to
        told = [description, self._rows.tolist(), self._highest_price]
        self._identity = hashlib.blake2b(json.dumps(told, sort_keys=True).encode(), digest_size=16).hexdigest()
        low = np.array([FEATURE_BOUNDS[0]] * FEATURES + [0, 0, 0], dtype=np.float32)
        high = np.array([FEATURE_BOUNDS[1]] * FEATURES + [1, 1, self._highest_price], dtype=np.float32)
        self._set_spaces(spaces.Box(low, high), spaces.Discrete(len(Action)))
        plan = description["plan"]
        self._length, self._coarse = plan["S"] * plan["N"], plan["S"] - 1
        self._levels = np.empty(len(self.table.schedules), dtype=object)
        self._levels[:] = self.table.schedules
        self._substeps = np.empty(len(self.table.schedules), dtype=object)
        self._substeps[:] = [(1,) * len(levels) for levels in self.table.schedules]
        whole = {
            name: np.zeros(self.num_envs, dtype=np.int64) for name in ("image", "seed", "t", "level", "nfe", "start")
        }
        self._state: dict[str, Array] = {
            **whole,
            "price": np.zeros(self.num_envs),
            "code": np.zeros(self.num_envs, dtype=np.uint64),
            "begun": np.zeros(self.num_envs, dtype=np.bool_),
        }

    def reset(
        self, *, seed: int | Sequence[int | None] | None = None, options: dict[str, Any] | None = None
    ) -> tuple[Array, dict[str, Any]]:
        """Starts an episode in every environment, or in those of `options["reset_mask"]`.

        Args:
            seed: seed of the first environment, the others counting up from there; or one for each.
            options: "image" (place among the pictures), "noise_seed", "nfe_penalty", each one value for all or a list;
                "reset_mask".

        Raises:
            ConfigError: an option is unknown or out of range.
            ResetNeededError: the mask leaves an environment without any episode.
        """
        envs, columns = self._prepare_reset(seed, options)
        self._begin(envs, columns)
        mask = np.zeros(self.num_envs, dtype=np.bool_)
        mask[envs] = True
        return self._observe(), self._infos(mask)

    def step(self, actions: Array) -> tuple[Array, Array, Array, Array, dict[str, Any]]:
        """One decision in every environment.

        Args:
            actions: whole numbers (num_envs,), each 0 (DENOISE) or 1 (SKIP).

        Returns:
            Observations, rewards (float64), terminations, truncations (all False), and `info`.

        Raises:
            InvalidActionError: the actions have another shape or type, or one is neither 0 nor 1.
            ResetNeededError: an environment has no episode, or with "Disabled" one that has ended.
        """
        actions = self._checked(actions)
        state = self._state
        self._check_begun()
        waiting = state["t"] == 0
        self._check_going(np.flatnonzero(waiting).tolist())
        ended = self._advance(actions.astype(np.int64), ~waiting)
        rewards, ends = np.zeros(self.num_envs), {}
        if ended.any():
            places = self._places(ended)
            where = self._rows[state["image"][ended]], state["seed"][ended], places
            values = {name: column[where] for name, column in self.table.metrics.items()}
            lower_better = self.table.description["metrics"][self.metric]
            gained = qualities(values[self.metric], lower_better, self.reward)
            rewards[ended] = gained - state["price"][ended] * (state["nfe"][ended] - self._coarse)
            for i in np.flatnonzero(ended)[np.isnan(values[self.metric])]:
                self.reward_failures[i] += 1
            ends = self._final_infos(ended, values, places)
        infos: dict[str, Any] = {}
        if self.autoreset_mode == AutoresetMode.SAME_STEP and ended.any():
            final = self._observe()
            infos["final_obs"] = np.full(self.num_envs, None, dtype=object)
            for i in np.flatnonzero(ended):
                infos["final_obs"][i] = final[i]
            infos["final_info"] = self._infos(ended) | ends
            infos["_final_obs"], infos["_final_info"] = ended.copy(), ended.copy()
            waiting, ends = ended, {}
        if waiting.any():
            self._begin(np.flatnonzero(waiting).tolist(), {})
        infos |= self._infos(np.ones(self.num_envs, dtype=np.bool_)) | ends
        return self._observe(), rewards, ended, np.zeros_like(ended), infos

    def action_masks(self) -> NDArray[np.bool_]:
        """Which actions lead to a schedule of the table, bool (num_envs, 2).

        All of them where the table is complete.
        """
        state, going = self._state, self._state["t"] > 1
        masks = np.ones((self.num_envs, 2), dtype=np.bool_)
        if not self.table.complete:
            for action in Action:
                code = state["code"][going] * np.uint64(2) + np.uint64(action)
                masks[going, action] = self.table.is_open(code, state["t"][going])
        return masks

    def get_state(self) -> dict[str, Any]:
        """The episodes and the random generators as they stand, as plain data for `set_state` and pickle."""
        self._check_begun("get_state")
        return {
            "table": self._identity,
            "episodes": {name: array.copy() for name, array in self._state.items()},
            "generators": [generator.bit_generator.state for generator in self.np_random],
        }

    def set_state(self, state: Mapping[str, Any]) -> Array:
        """Goes on from where `get_state` was called; gives the observations of that moment.

        Raises:
            ConfigError: it is no such state, or one of another number of environments, table, split or range of prices.
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
            raise ConfigError("this is no state that get_state() gave") from None
        if not fits:
            raise ConfigError(f"the state must be one of {self.num_envs} environments")
        set_generators(self.np_random, generators)
        self._state = episodes
        return self._observe()

    def _check_begun(self, call: str = "step") -> None:
        if not self._state["begun"].all():
            raise ResetNeededError(f"an environment has no episode; call reset() before {call}()")

    def _begin(self, envs: Sequence[int], options: Mapping[str, Sequence[Any]]) -> None:
        """Starts episodes in some environments."""
        unknown = sorted(map(str, options.keys() - {"image", "noise_seed", "nfe_penalty"}))
        if unknown:
            raise ConfigError(f"unknown reset option {', '.join(unknown)}; known are image, noise_seed and nfe_penalty")
        limits = {"image": len(self._rows), "noise_seed": self.table.description["noise_seeds"]}
        drawn = []
        for i in envs:
            rng = self._generator(i)[0]
            image, noise_seed, price = draw_episode(rng, len(self._rows), self.noise_seeds, self._price)
            chosen = {"image": image, "noise_seed": noise_seed, "nfe_penalty": price}
            chosen |= {name: column[i] for name, column in options.items() if column[i] is not None}
            for name, limit in limits.items():
                if not is_whole(chosen[name]) or not 0 <= chosen[name] < limit:
                    raise ConfigError(f"{name} must be a whole number from 0 to {limit - 1}, got {chosen[name]!r}")
            chosen["nfe_penalty"] = check_price(chosen["nfe_penalty"], self._highest_price)
            drawn.append(tuple(chosen.values()))
        state, first = self._state, self.table.first
        state["image"][envs], state["seed"][envs], state["price"][envs] = zip(*drawn, strict=True)
        for name in ("t", "level", "start"):
            state[name][envs] = first
        state["nfe"][envs], state["code"][envs], state["begun"][envs] = self._coarse, 0, True

    def _advance(self, actions: NDArray[np.int64], going: NDArray[np.bool_]) -> NDArray[np.bool_]:
        """One decision in some environments, and the last step where it follows; gives those that have ended."""
        if not self.table.complete:
            allowed = self.action_masks()[np.arange(self.num_envs), actions]
            actions = np.where(allowed, actions, 1 - actions)
        state, skip = self._state, actions == Action.SKIP
        state["t"] -= going
        state["nfe"] += going & ~skip
        arrived = going & ~skip if not self.table.restart else going
        state["level"][arrived] = state["t"][arrived]
        if self.table.restart:
            state["start"] = np.where(going & skip, state["t"], state["start"])
        else:
            code = state["code"] * np.uint64(2) + actions.astype(np.uint64)
            state["code"] = np.where(going, code, state["code"])
        ended = going & (state["t"] == 1)
        state["nfe"] += ended
        state["t"][ended] = 0
        state["level"][ended] = 0
        return ended

    def _places(self, envs: NDArray[np.bool_]) -> NDArray[np.intp]:
        """The schedules that some environments have followed."""
        if self.table.restart:
            return self._state["start"][envs] - 1
        return self.table.find(self._state["code"][envs])

    def _observe(self) -> NDArray[np.float32]:
        self._check_begun()
        state = self._state
        seen = np.empty((self.num_envs, FEATURES + 3), dtype=np.float32)
        seen[:, :FEATURES] = self.table.features[self._rows[state["image"]]]
        seen[:, FEATURES] = state["t"] / self._length
        seen[:, FEATURES + 1] = state["level"] / self._length
        seen[:, FEATURES + 2] = state["price"]
        return seen

    def _infos(self, mask: NDArray[np.bool_]) -> dict[str, Any]:
        """What `step` and `reset` report of some environments."""
        state = self._state
        named = {
            "diffusion_step": state["t"],
            "nfe": state["nfe"],
            "image_index": state["image"],
            "noise_seed": state["seed"],
            "nfe_penalty": state["price"],
        }
        infos: dict[str, Any] = {}
        for name, column in named.items():
            infos[name], infos[f"_{name}"] = column * mask, mask.copy()
        return infos

    def _final_infos(
        self, ended: NDArray[np.bool_], values: Mapping[str, Array], places: NDArray[np.intp]
    ) -> dict[str, Any]:
        """What is reported of episodes that have ended, beside the rest."""

        def column(own: Any, dtype: Any) -> Array:
            whole = np.full(self.num_envs, None, dtype) if dtype is object else np.zeros(self.num_envs, dtype)
            whole[ended] = own
            return whole

        metrics: dict[str, Any] = {}
        for name, own in values.items():
            metrics[name], metrics[f"_{name}"] = column(own, np.float64), ended.copy()
        failures = np.array(self.reward_failures)[ended]
        infos: dict[str, Any] = {
            "metrics": metrics, "start": column(self._state["start"][ended], np.int64),
            "levels": column(self._levels[places], object), "substeps": column(self._substeps[places], object),
            "reward_failures": column(failures, np.int64),
        }  # fmt: skip
        return infos | {f"_{name}": ended.copy() for name in infos}


class SkipDiffTableEnv(gym.Env[NDArray[np.float32], np.int64]):
    """SkipDiffTable-v0: the decisions of SkipDiff from a table of outcomes, without a net.

    ## Description
    `skipdiff tabulate` computes once what every schedule gives for pictures under several noises. This environment
    plays from such a table, so that an algorithm can be tried, or a thousand seeds of it compared, in seconds: its
    batched form makes some 10⁵ env steps a second. Instead of latents it shows statistics of the picture's gradients.
    Decisions, levels, forwards and rewards are those of the live environment, `skipdiff_env.env.SkipDiffEnv`, with the
    table's settings.

    The table that ships holds crops of 64 x 64 pixels of scikit-image's photographs, the checkpoint natural-x4 with
    `steps=(1, 8)` and `skip_mode="jump"`, and all 128 schedules.

    ## Action space
    `Discrete(2)`: 0 DENOISE, 1 SKIP. A table of more than 10 levels holds only some schedules. There, an action that
    leads to none of them counts as the other one, and `action_masks()` tells which lead to one, as sb3-contrib's
    `MaskablePPO` asks for it.

    ## Observation space
    `Box`, float32, (45,):

    | Index  | What                                                                                      |
    |--------|-------------------------------------------------------------------------------------------|
    | 0 … 41 | statistics of the condition's gradients, see `skipdiff_env.table.features`, each in -3 … 1 |
    | 42     | t / (S · N), the step that is decided next                                                |
    | 43     | l / (S · N), the level that the latent stands at                                          |
    | 44     | what a forward costs                                                                      |

    ## Reward
    0 until the last env step, then -M of the table's first metric (or of `metric`), LPIPS in the one that ships, or
    what `reward` names, less `nfe_penalty` for each fine forward.

    ## Episode start and end
    `reset` draws picture, noise seed and price; `options={"image": i, "noise_seed": k, "nfe_penalty": p}` fixes any of
    them. Every episode has N - 1 env steps and then terminates; none is truncated.

    ## Info
    As in the live environment: `diffusion_step`, `nfe`, `image_index`, `noise_seed`, `nfe_penalty`, and at the end
    `metrics`, `start`, `levels` and `reward_failures`.

    `env.unwrapped.table.rewards(price, split)` gives the rewards of all schedules for every picture and noise, and so
    the best fixed schedule and the oracle.

    ## Example
    ```python
    env = gym.make_vec("skipdiff_env:SkipDiffTable-v0", num_envs=64, split="train", nfe_penalty=(0.0005, 0.008))
    ```

    ## Arguments
    `table`, `split`, `metric`, `reward`, `nfe_penalty`, `noise_seeds`: see `SkipDiffTableVectorEnv`.

    ## Version history
    * v0: initial version

    Args:
        render_mode: None, or "rgb_array", which counts as None, since a table has no pictures.
        settings: the arguments above.

    Raises:
        ConfigError: there is no such table, or an argument is wrong.
    """

    metadata: dict[str, Any] = {"render_modes": []}  # noqa: RUF012
    nfe_penalty = FixedPrice()

    def __init__(self, render_mode: str | None = None, **settings: Any) -> None:
        # Stable-Baselines3 asks for "rgb_array" whatever the environment has; Gymnasium warns of it
        inner = None if render_mode == "rgb_array" else render_mode
        self._batch = SkipDiffTableVectorEnv(1, autoreset_mode="Disabled", render_mode=inner, **settings)
        self.render_mode = None
        self._price = self._batch.nfe_penalty
        self.table = self._batch.table
        self.observation_space = self._batch.single_observation_space
        self.action_space = self._batch.single_action_space

    def reset(
        self, *, seed: int | None = None, options: dict[str, Any] | None = None
    ) -> tuple[NDArray[np.float32], dict[str, Any]]:
        """Starts an episode.

        Args:
            seed: seed of `np_random`, from which picture, noise seed and price are drawn.
            options: "image", "noise_seed" and "nfe_penalty" fix what would be drawn.

        Raises:
            ConfigError: an option is unknown or out of range.
        """
        super().reset(seed=seed)
        self._batch._generators = [(self.np_random, self.np_random_seed)]
        observations, infos = self._batch.reset(options=options)
        return observations[0], _of_one(infos)

    def step(self, action: int | np.int64) -> tuple[NDArray[np.float32], float, bool, bool, dict[str, Any]]:
        """Decides one diffusion step.

        Raises:
            InvalidActionError: the action is neither 0 nor 1.
            ResetNeededError: there is no episode, or it has ended.
        """
        if not self.action_space.contains(action):
            raise InvalidActionError(f"an action must be 0 (DENOISE) or 1 (SKIP), a whole number, got {action!r}")
        state = self._batch._state
        if not state["begun"][0] or state["t"][0] == 0:
            begun = "ended" if state["begun"][0] else "not begun"
            raise ResetNeededError(f"the episode has {begun}; call reset() before step()")
        observations, rewards, terminations, _, infos = self._batch.step(np.array([int(action)]))
        return observations[0], float(rewards[0]), bool(terminations[0]), False, _of_one(infos)

    def action_masks(self) -> NDArray[np.bool_]:
        """Which actions lead to a schedule of the table, bool (2,)."""
        return self._batch.action_masks()[0]

    def get_state(self) -> dict[str, Any]:
        """The episode as it stands and the random generator, as plain data that `set_state` takes and pickle stores."""
        return self._batch.get_state()

    def set_state(self, state: Mapping[str, Any]) -> NDArray[np.float32]:
        """Goes on from where `get_state` was called; gives the observation of that moment.

        Raises:
            ConfigError: it is no such state, or one of another table, split or range of prices.
        """
        self._batch._generators = [(self.np_random, self.np_random_seed)]
        return self._batch.set_state(state)[0]


def _of_one(infos: Mapping[str, Any]) -> dict[str, Any]:
    """The `info` of the only environment of a batch."""
    own: dict[str, Any] = {}
    for name, column in infos.items():
        if name.startswith("_") or not infos[f"_{name}"][0]:
            continue
        if isinstance(column, dict):
            own[name] = _of_one(column)
        else:
            own[name] = column[0].item() if isinstance(column[0], np.generic) else column[0]
    return own
