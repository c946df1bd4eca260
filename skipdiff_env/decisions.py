"""Kinds of decision: the meaning of an action of the environment as jumps.

Every kind turns an action at a state into jumps, `(next level, substeps)`. `RefinementProcess.step` runs them. A new
kind is a subclass of `Decisions` with an entry in `KINDS`.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from gymnasium import spaces
from numpy.typing import NDArray

from ddpm.samplers import coarse_eta
from ddpm.schedule import Schedule, as_schedule, check_levels, even_levels
from ddpm.util.checks import check_one_of, counted, is_whole
from ddpm.util.errors import ConfigError
from skipdiff_env.plan import Plan
from skipdiff_env.rules import ACTIONS, DENOISE, SKIP, InvalidActionError

if TYPE_CHECKING:
    from skipdiff_env.refinement import Refinement

# (next level, substeps of the forward that leads there)
Jump = tuple[int, int]


class Decisions(ABC):
    """One kind of decision.

    Args:
        plan: the steps of the episodes.

    Attributes:
        kind: its name, the value of `decisions` in the environments.
        takes: the further arguments of `make` that it has, "substeps" and "schedules".
        stepwise: whether each decision is about one diffusion step, as in the paper.
        whole: whether the only decision of an episode is made before the first forward.
        space: the action space of one environment.
        longest: env steps of the longest episode.
        forwards: the most forwards of an episode, without the coarse stage and discarded ones.
        most: the most substeps of a forward.
        schedules: the schedules that an action chooses among; empty for other kinds.
    """

    kind: str
    takes: frozenset[str] = frozenset()
    stepwise: bool = False
    whole: bool = False
    space: spaces.Space[Any]
    longest: int
    forwards: int
    most: int = 1
    schedules: tuple[Schedule, ...] = ()

    def __init__(self, plan: Plan) -> None:
        if plan.skip_mode != "jump" and not self.stepwise:
            raise ConfigError(f'decisions "{self.kind}" need skip_mode jump, got {plan.skip_mode}')
        self.plan, self.forwards = plan, plan.first

    @classmethod
    def make(
        cls,
        plan: Plan,
        most: int,
        substeps: Sequence[int] | None = None,
        schedules: Sequence[Schedule | str | Sequence[int]] | None = None,
    ) -> "Decisions":
        """Return the decisions for the arguments of an environment, see `make_decisions`."""
        return cls(plan)

    def __eq__(self, other: object) -> bool:
        """Return whether actions have the same meaning."""
        return type(self) is type(other) and vars(self) == vars(other)

    __hash__ = None  # type: ignore[assignment]

    @abstractmethod
    def jumps(self, state: "Refinement", action: Any) -> Sequence[Jump]:
        """Return the jumps of an action at a state, in their order."""

    def masks(self, state: "Refinement") -> NDArray[np.bool_]:
        """Return for each action whether it is possible at a state; the parts of an action follow one another.

        An action that is not possible acts as the nearest possible one. By default all are possible.
        """
        size: Any = self.space.n if isinstance(self.space, spaces.Discrete) else self.space.shape
        return np.ones(size, dtype=np.bool_)

    def as_action(self, value: Any) -> Any:
        """Return an element of the action space as the action that episodes record.

        Raises:
            InvalidActionError: it is not an action.
        """
        return value

    def settings(self) -> dict[str, Any]:
        """Return the arguments in `takes` as plain data, from which `make` makes these decisions again."""
        return {}

    def references(self, most: int) -> Sequence[Schedule]:
        """Return the fixed schedules with which agents are compared.

        Args:
            most: the most substeps that the network has learnt.
        """
        return make_decisions("schedule", self.plan, most).schedules

    @abstractmethod
    def describe(self) -> str:
        """Return a description of the actions in one line, for messages."""

    def describe_place(self, state: "Refinement") -> str:
        """Return the place of the next decision in words."""
        return f"level {state.level:3d}  "

    def describe_last(self, state: "Refinement", action: Any) -> str:
        """Return the meaning of the last decision in words, given the state after it."""
        return f"to level {state.path[-1]} with {counted(state.substeps[-1], 'substep')}"


class Skip(Decisions):
    """The paper's decision: at each diffusion step, whether to perform it. `Discrete(2)`, see `Action`."""

    kind = "skip"
    stepwise = True

    def __init__(self, plan: Plan) -> None:
        super().__init__(plan)
        self.space = spaces.Discrete(len(ACTIONS))
        self.longest = plan.decisions

    def jumps(self, state: "Refinement", action: Any) -> Sequence[Jump]:
        """Return one step to t - 1 for DENOISE, and an empty list for SKIP."""
        return [(state.t - 1, 1)] if action == DENOISE else []

    def as_action(self, value: Any) -> Any:
        """Return an `Action`."""
        if value not in (0, 1):
            raise InvalidActionError(f"an action must be {self.describe()}, got {value!r}")
        return DENOISE if value == 0 else SKIP

    def references(self, most: int) -> Sequence[Schedule]:
        """Return the schedules of every number of even steps."""
        first = self.plan.first
        return [Schedule(even_levels(first, forwards)) for forwards in range(1, first + 1)]

    def describe(self) -> str:
        """See `Decisions`."""
        return "a whole number, 0 (DENOISE) or 1 (SKIP)"

    def describe_place(self, state: "Refinement") -> str:
        """See `Decisions`."""
        return f"t = {state.t:3d}  "

    def describe_last(self, state: "Refinement", action: Any) -> str:
        """See `Decisions`."""
        return self.as_action(action).name


class Stride(Decisions):
    """A decision on each forward: the number of levels that it covers, and of steps whose work it does.

    `MultiDiscrete([levels, counts])`: the action (k, j) goes from level l to level l - k - 1, or to the clean image if
    that lies below it, with the j-th number of substeps. With one number of substeps the space is `Discrete(levels)`.

    Args:
        plan: the steps of the episodes.
        substeps: numbers of substeps to choose among.
    """

    kind = "stride"
    takes = frozenset({"substeps"})

    @classmethod
    def make(cls, plan: Plan, most: int, substeps: Any = None, schedules: Any = None) -> "Stride":
        """See `Decisions`."""
        return cls(plan, _chosen_substeps(most, substeps))

    def __init__(self, plan: Plan, substeps: Sequence[int] = (1,)) -> None:
        super().__init__(plan)
        self.substeps, self.most = tuple(substeps), max(substeps)
        self.longest = plan.first
        counts = len(self.substeps)
        self.space = spaces.Discrete(plan.first) if counts == 1 else spaces.MultiDiscrete([plan.first, counts])

    def jumps(self, state: "Refinement", action: Any) -> Sequence[Jump]:
        """Return one jump."""
        stride, place = (action, 0) if len(self.substeps) == 1 else action
        return [(max(state.level - int(stride) - 1, 0), self.substeps[int(place)])]

    def masks(self, state: "Refinement") -> NDArray[np.bool_]:
        """Return True for strides that do not reach below the clean image, and for all numbers of substeps."""
        strides = np.arange(self.plan.first) < max(state.level, 1)
        return strides if len(self.substeps) == 1 else np.append(strides, np.ones(len(self.substeps), dtype=np.bool_))

    def settings(self) -> dict[str, Any]:
        """See `Decisions`."""
        return {"substeps": self.substeps}

    def describe(self) -> str:
        """See `Decisions`."""
        text = f"levels to cover, less 1: 0 … {self.plan.first - 1}"
        return text if len(self.substeps) == 1 else f"({text}; place among the substeps {self.substeps})"


def continuous_jumps(
    levels: NDArray[np.integer], actions: NDArray[np.floating], most: int
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the levels that forwards go to, and their substeps, for actions of the kind "continuous", (B,) each.

    Args:
        levels: the levels of the latents, (B,).
        actions: see `Continuous`, (B, 1) or (B, 2).
        most: the most substeps of a forward.
    """
    parts = (np.asarray(actions, dtype=np.float64) + 1) / 2
    to = levels - np.maximum(1, np.rint(parts[:, 0] * levels))
    substeps = np.rint(float(most) ** parts[:, 1]) if parts.shape[1] > 1 else np.ones(len(to))
    return to.astype(np.int64), substeps.astype(np.int64)


class Continuous(Decisions):
    """The decision of `Stride` as numbers in -1 … 1: the share of the remaining way, and the logarithm of the substeps.

    The space is `Box(-1, 1, (2,))`, the range that algorithms for continuous actions expect. With (share, amount) =
    (action + 1) / 2 the forward covers the share of all remaining levels, at least one, and does the work of
    most**amount steps, rounded. Without substeps the space is `Box(-1, 1, (1,))`.

    Args:
        plan: the steps of the episodes.
        most: the most substeps of a forward.
    """

    kind = "continuous"
    takes = frozenset({"substeps"})

    @classmethod
    def make(cls, plan: Plan, most: int, substeps: Any = None, schedules: Any = None) -> "Continuous":
        """See `Decisions`."""
        return cls(plan, most if substeps is None else max(_chosen_substeps(most, substeps)))

    def __init__(self, plan: Plan, most: int = 1) -> None:
        super().__init__(plan)
        self.most, self.longest = most, plan.first
        self.space = spaces.Box(-1, 1, (1 if most == 1 else 2,), np.float32)

    def jumps(self, state: "Refinement", action: Any) -> Sequence[Jump]:
        """Return one jump."""
        to, substeps = continuous_jumps(np.array([state.level]), np.asarray(action)[None], self.most)
        return [(int(to[0]), int(substeps[0]))]

    def settings(self) -> dict[str, Any]:
        """See `Decisions`."""
        return {"substeps": (self.most,)}

    def describe(self) -> str:
        """See `Decisions`."""
        return f"a float32 array {self.space.shape} of numbers in -1 … 1"


class Choice(Decisions):
    """A choice among schedules for each picture: a contextual bandit. `Discrete(K)`, and one env step per episode.

    Args:
        plan: the steps of the episodes.
        schedules: the schedules, from the plan's first step on.
    """

    kind = "schedule"
    takes = frozenset({"schedules"})
    whole = True

    @classmethod
    def make(cls, plan: Plan, most: int, substeps: Any = None, schedules: Any = None) -> "Choice":
        """See `Decisions`."""
        first = plan.first
        if schedules is None and most > 1:
            schedules = [Schedule((first,), (m,)) for m in _chosen_substeps(most, None)]
        elif schedules is None:
            schedules = [even_levels(first, 2**i) for i in range(first.bit_length())]
        choices = [as_schedule(schedule) for schedule in schedules]
        if len(choices) < 2:
            raise ConfigError(f"schedules must be at least 2, or there is nothing to decide; got {len(choices)}")
        return cls(plan, choices)

    def __init__(self, plan: Plan, schedules: Sequence[Schedule]) -> None:
        super().__init__(plan)
        if not schedules:
            raise ConfigError("schedules must be at least 1, got an empty list")
        self.schedules, self.longest = tuple(schedules), 1
        self.most = max(max(schedule.substeps) for schedule in self.schedules)
        self.forwards = max(schedule.forwards for schedule in self.schedules)
        for schedule in self.schedules:
            check_levels(schedule.levels, plan.first)
        self.space = spaces.Discrete(len(self.schedules))

    def jumps(self, state: "Refinement", action: Any) -> Sequence[Jump]:
        """Return the jumps of the chosen schedule."""
        return list(self.schedules[int(action)].jumps())

    def settings(self) -> dict[str, Any]:
        """See `Decisions`."""
        return {"schedules": tuple(map(str, self.schedules))}

    def references(self, most: int) -> Sequence[Schedule]:
        """Return the schedules to choose among."""
        return self.schedules

    def describe_place(self, state: "Refinement") -> str:
        """Return an empty text, since there is one decision."""
        return ""

    def describe_last(self, state: "Refinement", action: Any) -> str:
        """See `Decisions`."""
        return f"schedule {state.schedule}"

    def describe(self) -> str:
        """See `Decisions`."""
        return f"the place of a schedule, 0 … {len(self.schedules) - 1}"


# The kinds by name. Other programs may add further kinds.
KINDS: dict[str, type[Decisions]] = {kind.kind: kind for kind in (Skip, Stride, Continuous, Choice)}


def make_decisions(
    kind: str,
    plan: Plan,
    most: int,
    substeps: Sequence[int] | None = None,
    schedules: Sequence[Schedule | str | Sequence[int]] | None = None,
) -> Decisions:
    """Return the decisions of a kind.

    Args:
        kind: a name in `KINDS`.
        plan: the steps of the episodes.
        most: the most substeps that the network has learnt.
        substeps: numbers of substeps that "stride" chooses among; None: the powers of 2 up to `most`. For "continuous"
            the largest is the most substeps of a forward; None: `most`.
        schedules: schedules that "schedule" chooses among; None: one forward with each of these numbers of substeps, or
            without substeps even schedules of 1, 2, 4, 8 … forwards.

    Raises:
        ConfigError: the kind is unknown, or an argument does not belong to it or is out of range.
    """
    check_one_of(KINDS, decisions=kind)
    for name, value in (("substeps", substeps), ("schedules", schedules)):
        if value is not None and name not in KINDS[kind].takes:
            takers = " and ".join(f'"{each}"' for each, own in KINDS.items() if name in own.takes)
            raise ConfigError(f"{name} are for decisions {takers}, got decisions {kind!r}; leave {name} out")
    if coarse_eta(plan.fine_sampler) != 0:
        most = 1  # only ddim has substeps
    return KINDS[kind].make(plan, most, substeps, schedules)


def _chosen_substeps(most: int, substeps: Sequence[int] | None) -> list[int]:
    """Return numbers of substeps after a check; by default the powers of 2 up to `most`."""
    chosen = [2**i for i in range(most.bit_length())] if substeps is None else list(substeps)
    if not chosen or not all(is_whole(m) and 1 <= m <= most for m in chosen):
        raise ConfigError(f"substeps must be whole numbers in 1 … {most}, as the network has learnt, got {chosen}")
    return [int(m) for m in chosen]
