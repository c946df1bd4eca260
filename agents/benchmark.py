"""Policies for `skipdiff benchmark`: agents, models of Stable-Baselines3, and functions."""

import json
import sys
import zipfile
from collections.abc import Callable, Mapping
from importlib import import_module
from pathlib import Path
from typing import Any

from agents.agent import Agent, find_agent, load_agent
from agents.algorithms import ALGORITHMS, RECURRENT, algorithm_class
from ddpm.util.errors import CheckpointError, ConfigError
from skipdiff_env.tree import Tree


def load_policy(name: str, tree: Tree, trust_pickle: bool = False) -> Any:
    """Return a policy as `skipdiff_env.score` takes it.

    Args:
        name: MODULE:FUNCTION, a function of observations (B, …) that returns actions (B,), whose module may lie in the
            working folder; or an agent, as `agents.agent.find_agent` finds it; or a .zip of Stable-Baselines3.
        tree: the decisions of the policy.
        trust_pickle: whether a .zip may be loaded, which runs any code that its author put into it.

    Raises:
        ConfigError: there is no such function, or the agent has other decisions.
        CheckpointError: there is no such agent, or the .zip is not trusted.
    """
    module, colon, function = name.partition(":")
    if colon and not Path(name).exists():
        return _function(module, function)
    path = find_agent(name)
    if path.is_file():
        return load_zip(path, trust_pickle)
    return chooser(load_agent(path), tree, name)


def load_zip(path: Path, trust_pickle: bool) -> Any:
    """Return a model of Stable-Baselines3.

    Args:
        path: the .zip.
        trust_pickle: whether it may be loaded, which runs any code that its author put into it.

    Raises:
        CheckpointError: it is not trusted, or is not the .zip of an algorithm of `agents.algorithms`.
    """
    if not trust_pickle:
        raise CheckpointError(
            f"{path} is a file of pickles, and loading it runs any code its author put into it; pass --trust-pickle "
            "(trust_pickle=True) if you made it yourself"
        )
    try:
        with zipfile.ZipFile(path) as archive:
            settings = json.loads(archive.read("data"))
    except (zipfile.BadZipFile, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} is not a .zip of Stable-Baselines3 ({error})") from None
    name = _zip_algorithm(settings)
    try:
        return algorithm_class(name).load(path, device="cpu")
    except Exception as error:  # a pickle can raise any error
        raise CheckpointError(f"{path} does not load as {name} ({error})") from None


def _zip_algorithm(settings: Mapping[str, Any]) -> str:
    """Return the algorithm that wrote the `data` of a .zip; the settings differ between the algorithms."""
    policy = json.dumps(settings.get("policy_class", ""))
    for name in ALGORITHMS:  # the policies of most algorithms are defined in a module of the algorithm
        if f".{name}." in policy:
            return name
    if "_last_lstm_states" in settings:
        return RECURRENT
    if "cg_max_steps" in settings:
        return "trpo"
    if "Maskable" in policy:
        return "maskable-ppo"
    return "ppo" if "clip_range" in settings else "a2c"


def _function(module: str, function: str) -> Callable[..., Any]:
    if "" not in sys.path and str(Path.cwd()) not in sys.path:
        sys.path.insert(0, str(Path.cwd()))
    try:
        found = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigError(
            f"{module}:{function} is not a function ({error}); give MODULE:FUNCTION, whose module can be imported here"
        ) from None
    if not callable(found):
        raise ConfigError(f"{module}:{function} is a {type(found).__name__}, expected a function")
    return found


def chooser(agent: Agent, tree: Tree, name: str = "the agent") -> Callable[[Any], Any]:
    """Return an agent that chooses among schedules as a function of observations.

    Args:
        agent: the agent.
        tree: the decisions of the policy.
        name: name of the agent, for messages.

    Raises:
        ConfigError: the agent has other decisions, or was trained for another network.
    """
    own, table = agent.config, tree.table
    features = own.observation == "features"
    if tree.kind != "schedule" or own.schedules is None or not features:
        kind = "about schedules" if own.schedules is not None and features else "step by step"
        expected = "a schedule for each picture" if tree.kind == "schedule" else "about strides"
        raise ConfigError(f"{name} decides {kind}, expected an agent that decides {expected}; name another one")
    ways = tuple(str(schedule) for schedule in table.schedules)
    if own.schedules != ways:
        raise ConfigError(f"{name} chooses among {'; '.join(own.schedules)}, but the table has {'; '.join(ways)}")
    key = "network" if own.training.get("network") else "checkpoint"
    theirs, ours = own.training.get(key), table.description.get(key)
    if theirs is not None and theirs != ours:
        raise ConfigError(
            f"{name} was trained on a table of the {key} {theirs}, but this table is of {ours}; give its own --table"
        )
    return lambda seen: agent.predict(seen)[0]
