"""Scores of policies on the environments with tables. This module does not need torch."""

import inspect
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ddpm.util.errors import ConfigError
from skipdiff_env.outcomes import OutcomeTable, Score
from skipdiff_env.rules import PRICE, InvalidActionError
from skipdiff_env.tree import Tree

# Environments that have scores → table and kind of decision.
BENCHMARKS = {
    "SkipDiffBanditTable-v0": ("natural-x4", "schedule"),
    "SkipDiffStrideTable-v0": ("natural-x4-stride", "stride"),
    "SkipDiffContinuousTable-v0": ("natural-x4-stride", "continuous"),
}


def tree_of(env_id: str = "SkipDiffBanditTable-v0", table: str | OutcomeTable | None = None) -> Tree:
    """Return the decisions of an environment that has scores, with the outcomes of all splits.

    Args:
        env_id: name of the environment, one of `BENCHMARKS`.
        table: a table in place of the environment's.

    Raises:
        ConfigError: the environment does not have scores, or the table does not exist.
    """
    if env_id not in BENCHMARKS:
        raise ConfigError(f"scores are for {', '.join(BENCHMARKS)}, got {env_id!r}")
    name, kind = BENCHMARKS[env_id]
    return Tree(table if isinstance(table, OutcomeTable) else OutcomeTable.load(name if table is None else table), kind)


def score(
    policy: Any,
    split: str = "test",
    env_id: str = "SkipDiffBanditTable-v0",
    table: str | OutcomeTable | None = None,
    nfe_penalty: float = PRICE,
) -> Score:
    """Return the score of a policy. The best fixed schedule has the score 0.

    The schedule that is best for each crop under its other noises has the score 1. The policy plays every crop of the
    split once with each of its noises. The best fixed schedule is chosen on the training photographs.

    Args:
        policy: a model of Stable-Baselines3, or a function of observations (B, …) that returns actions (B,); or a list
            of these, one for each training seed, whose mean is scored.
        split: "train", "validation" or "test".
        env_id: the environment of the policy, one of `BENCHMARKS`.
        table: a table in place of the environment's: the name of a shipped one, a folder, or an `OutcomeTable`.
        nfe_penalty: price of a forward.

    Raises:
        ConfigError: the environment, the table or the split is unknown, or a model has other spaces.
        InvalidActionError: a policy returns something other than one action of the environment for each observation.
    """
    whole = tree_of(env_id, table)
    policies = list(policy) if isinstance(policy, Sequence) else [policy]
    if not policies:
        raise ConfigError("there is no policy to score")
    fixed = whole.table.split("train").best_fixed(nfe_penalty)
    tree = Tree(whole.table.split(split), whole.kind)
    chosen = [play(tree, each) for each in policies]
    return tree.table.score(chosen, fixed, nfe_penalty)


def play(tree: Tree, policy: Any) -> NDArray[np.intp]:
    """Return the schedules that a policy follows, (crops, noises), as their indices in the table.

    Args:
        tree: the decisions.
        policy: a single policy, see `score`.

    Raises:
        ConfigError: it is a model with other spaces.
        InvalidActionError: see `score`.
    """
    act = _function(tree, policy)
    shape = tree.table.metrics[tree.table.metric].shape[:2]
    crops, noises = (index.ravel() for index in np.indices(shape))
    nodes = np.zeros(len(crops), np.int64)
    while len(going := np.flatnonzero(nodes >= 0)):
        seen = tree.observe(crops[going], noises[going], nodes[going])
        actions = np.asarray(act(seen, tree.possible[nodes[going]]))
        numbers = tree.kind == "continuous"
        lowest, highest = (-1, 1) if numbers else (0, len(tree.actions) - 1)
        fits = actions.shape == (len(going), *tree.action_space.shape)  # type: ignore[misc]
        fits &= np.issubdtype(actions.dtype, np.floating if numbers else np.integer)
        if not fits or not (actions.min() >= lowest and actions.max() <= highest):
            got = f"{actions.dtype} {actions.shape}" + (f" in {actions.min()} … {actions.max()}" if fits else "")
            expected = "two numbers in -1 … 1" if numbers else f"one whole number in 0 … {highest}"
            raise InvalidActionError(
                f"a policy must return {expected} for each of {len(going)} observations, got {got}"
            )
        nodes[going] = tree.moves[nodes[going], tree.places(nodes[going], actions)]
    return (-1 - nodes).reshape(shape).astype(np.intp)


def _function(tree: Tree, policy: Any) -> Any:
    """Return a policy as a function of observations and masks of the possible actions."""
    if not hasattr(policy, "predict"):
        if not callable(policy):
            raise ConfigError(f"a policy must be a model of Stable-Baselines3 or a function, got {policy!r}")
        return lambda seen, _: policy(seen)
    for name in ("observation_space", "action_space"):
        own, expected = getattr(policy, name, None), getattr(tree, name)
        if own is not None and own != expected:
            raise ConfigError(f"the model has the {name} {_shown(own)}, expected {_shown(expected)}")
    masked = "action_masks" in inspect.signature(policy.predict).parameters

    def act(seen: NDArray[np.float32], possible: NDArray[np.bool_]) -> Any:
        masks = {"action_masks": possible} if masked else {}
        return policy.predict(seen, deterministic=True, **masks)[0]

    return act


def _shown(space: Any) -> str:
    """Return a short description of a space; for a vector it leaves out the bounds, which are long."""
    shape = getattr(space, "shape", None)
    return f"{type(space).__name__}{shape}" if shape else str(space)
