"""The decisions of a table of outcomes as a tree whose leaves are schedules. This module does not need torch."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ddpm.schedule import Schedule
from ddpm.util.checks import check_one_of
from ddpm.util.errors import ConfigError
from skipdiff_env.decisions import continuous_jumps
from skipdiff_env.features import FEATURE_BOUNDS, FEATURES, features_space
from skipdiff_env.outcomes import OutcomeTable
from skipdiff_env.rules import ACTIONS, Action

# Kinds of decision about one forward after the other.
FORWARDS = ("stride", "continuous")
# A distance larger than the difference of any two logarithms of substeps.
FAR = 100.0
# The kinds of decision that tables have.
KINDS = ("schedule", "stride", "continuous", "skip")


@dataclass(frozen=True)
class _Nodes:
    """The nodes of a tree.

    Attributes:
        steps: for each node the diffusion step of the next decision, or else the level.
        levels: for each node the level of the latent.
        moves: for each node and action the index of a node, or -1 - index of a schedule; 0 if it is not possible.
    """

    steps: NDArray[np.int64]
    levels: NDArray[np.int64]
    moves: NDArray[np.int64]


@dataclass(frozen=True)
class Tree:
    """The decisions of a table of outcomes. The root is node 0.

    Attributes:
        table: the outcomes.
        kind: "schedule", one decision among all schedules; "stride", one decision for each forward; "continuous", the
            same as numbers in -1 … 1; or "skip", one decision (DENOISE or SKIP) for each diffusion step but the last.
        highest_price: the highest observed price of a forward.
    """

    table: OutcomeTable
    kind: str
    highest_price: float = 1.0

    def __post_init__(self) -> None:
        check_one_of(KINDS, decisions=self.kind)
        if self.kind in FORWARDS and self.table.states and self.table.estimates is None:
            raise ConfigError(
                f"decisions {self.kind} need a table with estimates, got one without; name its schedules to `skipdiff "
                "tabulate --levels`"
            )
        if self.kind == "skip" and not all(schedule.plain for schedule in self.table.schedules):
            raise ConfigError("decisions skip need a table of schedules without substeps; take decisions schedule")

    @property
    def length(self) -> int:
        """The level at which the decisions begin."""
        return max(schedule.length for schedule in self.table.schedules)

    @property
    def noisiest(self) -> int:
        """The noisiest level, including that of the coarse steps before the first decision."""
        plan = self.table.description.get("plan")
        return self.length if plan is None else int(plan["S"] * plan["N"])

    @cached_property
    def actions(self) -> tuple[tuple[int, int], ...] | tuple[Schedule, ...] | tuple[Action, ...]:
        """The meaning of each action: a schedule; the next level and the substeps of a forward; or an `Action`."""
        if self.kind == "schedule":
            return self.table.schedules
        if self.kind == "skip":
            return ACTIONS
        return tuple(sorted({jump for schedule in self.table.schedules for jump in schedule.jumps()}))

    @cached_property
    def _ways(self) -> list[tuple[int, ...]]:
        """The actions that lead to each schedule, as their indices."""
        if self.kind == "schedule":
            return [(place,) for place in range(len(self.table.schedules))]
        if self.kind == "skip":
            steps = range(self.length, 1, -1)
            return [
                tuple(int(Action.DENOISE if t - 1 in schedule.levels else Action.SKIP) for t in steps)
                for schedule in self.table.schedules
            ]
        places = {jump: place for place, jump in enumerate(self.actions)}
        return [tuple(places[jump] for jump in schedule.jumps()) for schedule in self.table.schedules]

    def _level(self, decided: tuple[int, ...]) -> int:
        """Return the level of the latent after actions."""
        if self.kind != "skip":
            return self.actions[decided[-1]][0] if decided else self.length  # type: ignore[index]
        forwards = [count for count, action in enumerate(decided, start=1) if action == Action.DENOISE]
        return self.length - (forwards[-1] if forwards else 0)

    @cached_property
    def _nodes(self) -> _Nodes:
        if self.kind == "skip" and self.table.restart:
            return self._starts()
        # a node is the sequence of actions so far; those of "stride" are in the order of the table's states
        known = sorted({(), *(way[:count] for way in self._ways for count in range(len(way)))})
        nodes = {decided: node for node, decided in enumerate(known)}
        moves = np.zeros((len(nodes), len(self.actions)), np.int64)
        for place, way in enumerate(self._ways):
            for count, action in enumerate(way):
                moves[nodes[way[:count]], action] = nodes.get(way[: count + 1], -1 - place)
        levels = np.array([self._level(decided) for decided in nodes])
        steps = np.array([self.length - len(decided) for decided in nodes]) if self.kind == "skip" else levels
        return _Nodes(steps, levels, moves)

    def _starts(self) -> _Nodes:
        """Return the nodes of binary decisions under "restart", where a node is a step and a start.

        After SKIP the chain begins anew at the next step (Eq. 14).
        """
        pairs = [(t, start) for t in range(self.length, 1, -1) for start in range(t, self.length + 1)]
        known = {pair: place for place, pair in enumerate(pairs)}
        starts = {schedule.length: place for place, schedule in enumerate(self.table.schedules)}
        moves = [
            [known[after] if t > 2 else -1 - starts[after[1]] for after in ((t - 1, start), (t - 1, t - 1))]
            for t, start in pairs
        ]
        steps = np.array([t for t, _ in pairs])
        return _Nodes(steps, steps, np.array(moves))

    @property
    def steps(self) -> NDArray[np.int64]:
        """The diffusion step of the next decision at each node; the level if a decision is not about a step."""
        return self._nodes.steps

    @cached_property
    def levels(self) -> NDArray[np.float32]:
        """The level of each node, as a part of the noisiest one."""
        return (self._nodes.levels / self.noisiest).astype(np.float32)

    @cached_property
    def possible(self) -> NDArray[np.bool_]:
        """Whether each action is possible at each node, (nodes, actions)."""
        return self._nodes.moves != 0

    @cached_property
    def moves(self) -> NDArray[np.int64]:
        """The target of each action at each node, (nodes, actions): the index of a node, or -1 - index of a schedule.

        The target of an impossible action is that of the nearest possible one: the one with the nearest level, and
        among these the one with the nearest logarithm of substeps; or the other one of DENOISE and SKIP.
        """
        moves = self._nodes.moves.copy()
        if self.kind == "skip":
            return np.where(moves == 0, moves[:, ::-1], moves)
        if self.kind in FORWARDS:
            nodes, places = np.nonzero(~self.possible)
            moves[nodes, places] = moves[nodes, self._nearest(nodes, *np.array(self.actions)[places].T)]
        return moves

    @cached_property
    def forwards(self) -> NDArray[np.int64]:
        """The forwards of each action at each node, (nodes, actions), including those of guidance."""
        if self.kind == "schedule":
            return self.table.forwards[None]
        if self.kind in FORWARDS:
            return np.full(self.moves.shape, self.table.forwards_per_call)
        taken = np.where(self.possible, np.arange(2), 1 - np.arange(2))
        return ((taken == Action.DENOISE).astype(np.int64) + (self.moves < 0)) * self.table.forwards_per_call

    @property
    def longest(self) -> int:
        """Env steps of the longest episode."""
        if self.kind == "skip":
            return self.length - 1
        return 1 if self.kind == "schedule" else max(schedule.forwards for schedule in self.table.schedules)

    def observe(
        self,
        crops: NDArray[np.integer],
        noises: NDArray[np.integer],
        nodes: NDArray[np.integer],
        prices: NDArray[np.floating] | float = 0.0,
    ) -> NDArray[np.float32]:
        """Return the observations of crops with these noises at these nodes, (B, F); a negative node is an end.

        F is 42, the features, for the kind "schedule"; 85 for "stride" and "continuous", where the level and the
        features of the last estimate follow; 45 for "skip", where the step, the level and the price of a forward
        follow.
        """
        seen = self.table.features[crops]
        if self.kind == "schedule":
            return seen
        going = nodes >= 0
        level = (self.levels[np.maximum(nodes, 0)] * going)[:, None]
        if self.kind == "skip":
            step = (self.steps[np.maximum(nodes, 0)] * going / self.noisiest)[:, None]
            price = np.broadcast_to(prices, len(seen))[:, None]
            return np.concatenate([seen, step, level, price], axis=1, dtype=np.float32, casting="same_kind")
        last = np.zeros_like(seen)
        begun = nodes > 0
        if self.table.estimates is not None:
            last[begun] = self.table.estimates[crops[begun], noises[begun], nodes[begun] - 1]
        return np.concatenate([seen, level, last], axis=1, dtype=np.float32)

    @cached_property
    def observation_space(self) -> spaces.Box:
        """The space of the observations."""
        if self.kind != "skip":
            return features_space(None, whole=self.kind == "schedule")
        bounds = [FEATURE_BOUNDS] * FEATURES + [(0.0, 1.0), (0.0, 1.0), (0.0, self.highest_price)]
        lows, highs = np.array(bounds, np.float32).T
        return spaces.Box(lows, highs)

    @cached_property
    def action_space(self) -> spaces.Discrete | spaces.Box:
        """The space of the actions."""
        if self.kind == "continuous":
            return spaces.Box(-1, 1, (2,), np.float32)
        return spaces.Discrete(len(self.actions))

    def places(self, nodes: NDArray[np.integer], actions: NDArray[Any]) -> NDArray[np.integer]:
        """Return the indices of actions among `actions`, (B,); for "continuous", those of the nearest possible jumps.

        The nearest jump is the one with the nearest level, and among these the one with the nearest logarithm of
        substeps.

        Args:
            nodes: nodes of the actions, (B,).
            actions: elements of the action space, (B,) or (B, 2).
        """
        if self.kind != "continuous":
            return actions
        most = max(substeps for _, substeps in self.actions)  # type: ignore[misc]
        return self._nearest(nodes, *continuous_jumps(self._nodes.levels[nodes], actions, most))

    def _nearest(
        self, nodes: NDArray[np.integer], levels: NDArray[np.integer], substeps: NDArray[np.integer]
    ) -> NDArray[np.intp]:
        """Return the places of the nearest possible jumps, (B,); see `places`."""
        jumps = np.array(self.actions)
        distances = np.abs(jumps[:, 0] - levels[:, None]) * FAR + np.abs(np.log(jumps[:, 1] / substeps[:, None]))
        return np.where(self.possible[nodes], distances, np.inf).argmin(axis=1)
