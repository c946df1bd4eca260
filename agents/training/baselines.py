"""Baselines of the benchmark: regression of all outcomes, behaviour cloning, and random actions."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from torch import Tensor, nn

from skipdiff_env.features import FEATURES
from skipdiff_env.scoring import play
from skipdiff_env.tree import Tree

Array = NDArray[np.float64]
# A fitted function from observations (B, F) to a value for each action, (B, actions).
Model = Callable[[NDArray[np.floating]], Array]
# Strengths of the ridge from which one is chosen.
RIDGES = (0.1, 1.0, 10.0, 100.0, 1000.0)
# Epochs over the whole table; the best one on validation photographs is kept.
EPOCHS = 600
EVERY = 20
HIDDEN = 64


def random_policy(space: spaces.Space[Any], seed: int = 0) -> Callable[[NDArray[np.float32]], NDArray[Any]]:
    """Return a policy that draws the actions of a space, `Discrete` or `Box`, uniformly at random."""
    rng = np.random.default_rng(seed)
    if isinstance(space, spaces.Discrete):
        return lambda seen: rng.integers(space.n, size=len(seen))
    assert isinstance(space, spaces.Box), "a table has no other"
    return lambda seen: rng.uniform(space.low, space.high, (len(seen), *space.shape))


class Planner:
    """A policy that predicts the reward of each action, with one model for each level, and takes the best action.

    Args:
        tree: the decisions.
        models: level of the nodes, as a share of all levels, → model of the rewards there.
    """

    def __init__(self, tree: Tree, models: dict[float, Model]) -> None:
        self.tree, self.models = tree, models

    def __call__(self, seen: NDArray[np.float32]) -> NDArray[np.int64]:
        """Return the best action for each observation."""
        chosen = np.zeros(len(seen), np.int64)
        levels = seen[:, FEATURES] if self.tree.kind == "stride" else np.ones(len(seen), np.float32)
        for level, model in self.models.items():
            rows = np.flatnonzero(np.isclose(levels, level))
            if len(rows):
                chosen[rows] = model(seen[rows]).argmax(axis=1)
        return chosen


def fit(
    train: Tree,
    validation: Tree,
    price: float,
    kind: Literal["ridge", "supervised", "cloning"],
    seed: int = 0,
) -> Planner:
    """Return a policy that is fitted to the outcomes of training photographs.

    If there are decisions after the first forward, their model is fitted first, and the value of the first decision is
    the reward of following that model.

    Args:
        train: decisions with the outcomes of training photographs.
        validation: decisions with the outcomes of validation photographs, on which the strength of a ridge and the
            epoch of a network are chosen.
        price: price of a forward.
        kind: "ridge", linear in the observation; "supervised", a network with one hidden layer of 64 units; "cloning",
            a network of this size that imitates the choice of the best schedule under the other noises.
        seed: seed of the networks.
    """
    models: dict[float, Model] = {}
    for level in sorted({float(level) for level in train.levels}):
        inputs, values = _outcomes(train, level, Planner(train, dict(models)), price)
        if kind == "cloning":
            labels = train.table.best_of_others(price)
            values = np.eye(len(train.actions))[labels].mean(axis=1)
        models[level] = max(
            _candidates(inputs, values, kind, seed),
            key=lambda model: _validation_reward(Planner(validation, {**models, level: model}), level, price),
        )
    return Planner(train, models)


def _validation_reward(planner: Planner, level: float, price: float) -> float:
    """Return the mean reward of the decisions at a level on validation photographs."""
    tree = planner.tree
    if np.isclose(level, 1.0):
        choices = play(tree, planner)
        return float(tree.table.per_photograph(tree.table.chosen(choices, price)).mean())
    inputs, values = _outcomes(tree, level, planner, price)
    predicted = planner.models[level](inputs).argmax(axis=1)
    return float(values[np.arange(len(values)), predicted].mean())


def _outcomes(tree: Tree, level: float, later: Planner, price: float) -> tuple[NDArray[np.float32], Array]:
    """Return the observations at a level, and the reward of each action there.

    Rewards are relative to their mean. At the root they are means over the noises.
    """
    rewards = tree.table.rewards(price)
    rewards = rewards - rewards.mean(axis=2, keepdims=True)
    shape = rewards.shape[:2]
    crops, noises = (index.ravel() for index in np.indices(shape))
    seen, gained = [], []
    nodes = np.flatnonzero(np.isclose(tree.levels, level))
    for node in nodes:
        values = np.empty((len(crops), len(tree.actions)))
        for action in range(len(tree.actions)):  # an impossible action has the reward of the nearest possible one
            ahead = np.full(len(crops), tree.moves[node, action])
            while len(going := np.flatnonzero(ahead >= 0)):
                chosen = later(tree.observe(crops[going], noises[going], ahead[going]))
                ahead[going] = tree.moves[ahead[going], chosen]
            values[:, action] = rewards[crops, noises, -1 - ahead]
        seen.append(tree.observe(crops, noises, np.full(len(crops), node)))
        gained.append(values)
    inputs, values = np.concatenate(seen), np.concatenate(gained)
    if np.isclose(level, 1.0):
        inputs, values = inputs[:: shape[1]], values.reshape(*shape, -1).mean(axis=1)
    return inputs, values


def _candidates(inputs: NDArray[np.float32], values: Array, kind: str, seed: int) -> Iterator[Model]:
    """Yield models with several strengths of the ridge, or after several epochs."""
    mean, scale = inputs.mean(axis=0), inputs.std(axis=0) + 1e-3

    def normal(seen: NDArray[np.floating]) -> Array:
        return (np.asarray(seen, np.float64) - mean) / scale

    if kind == "ridge":
        x, base = normal(inputs), values.mean(axis=0)
        for strength in RIDGES:
            weights = np.linalg.solve(x.T @ x + strength * np.eye(x.shape[1]), x.T @ (values - base))
            yield lambda seen, weights=weights: normal(seen) @ weights + base  # type: ignore[misc]
    else:
        yield from _networks(normal, inputs, values, kind == "cloning", seed)


def _networks(
    normal: Callable[[NDArray[np.floating]], Array],
    inputs: NDArray[np.float32],
    values: Array,
    cloning: bool,
    seed: int,
) -> Iterator[Model]:
    """Yield the network after each of several epochs."""
    torch.manual_seed(seed)
    net = nn.Sequential(nn.Linear(inputs.shape[1], HIDDEN), nn.Tanh(), nn.Linear(HIDDEN, values.shape[1]))
    optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=0.1)
    x = torch.tensor(normal(inputs), dtype=torch.float32)
    spread = 1.0 if cloning else float(values.std())
    y = torch.tensor(values / spread, dtype=torch.float32)
    for epoch in range(EPOCHS):
        for rows in torch.randperm(len(x)).split(256):
            predicted = net(x[rows])
            loss: Tensor = (
                nn.functional.cross_entropy(predicted, y[rows])
                if cloning
                else nn.functional.mse_loss(predicted, y[rows])
            )
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        if epoch % EVERY == EVERY - 1:
            weights = [parameter.detach().numpy().copy() for parameter in net.parameters()]

            def model(seen: NDArray[np.floating], w: Sequence[Any] = tuple(weights)) -> Array:
                return np.tanh(normal(seen) @ w[0].T + w[1]) @ w[2].T + w[3]

            yield model
