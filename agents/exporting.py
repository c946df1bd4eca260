"""Export of models of Stable-Baselines3 as agents of this project."""

import json
from contextlib import suppress
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np
from gymnasium import spaces

from agents.agent import Agent, AgentConfig
from agents.algorithms import algorithm_name
from agents.policies import policy_description
from ddpm.util.errors import ConfigError
from skipdiff_env.config import TaskConfig
from skipdiff_env.observations import features_space
from skipdiff_env.outcomes import OutcomeTable
from skipdiff_env.plan import Plan
from skipdiff_env.task import Task
from skipdiff_env.tree import Tree

# Arguments of the environment that do not change its episodes, such as the device.
ELSEWHERE = frozenset({"images", "cache_mb", "cache_dir", "cache_dir_mb", "device", "batch_size"})
# The bound of latents of an agent that does not observe latents.
NO_LATENT = 1.0


def export_agent(model: Any, env: Any, folder: str | Path, /, **training: Any) -> Agent:
    """Write a model as an agent, which commands take as --agent. The files do not contain pickles.

    Args:
        model: model of Stable-Baselines3 or sb3-contrib, of one of the algorithms in `agents.algorithms.ALGORITHMS`.
        env: the environment in which it was trained: a Gymnasium environment, a `SkipDiffVecEnv`, or another `VecEnv`;
            latents may be resized, and stacked by `VecFrameStack(…, channels_order="first")`. Or
            `SkipDiffBanditTable-v0`, or its table.
        folder: folder for config.json and model.safetensors.
        training: a record of the training.

    Returns:
        The agent.

    Raises:
        ConfigError: the policy could not be built again from the files, or the environment does not have the
            observations or the actions of the model.
    """
    agent = Agent(configuration(model, env, **training), model.policy)
    agent.save(folder)
    return agent


def configuration(model: Any, env: Any, /, **training: Any) -> AgentConfig:
    """Return the configuration of a model's agent; arguments and errors as for `export_agent`."""
    env = _table_of(env) or env
    config = _of_table(env, training) if isinstance(env, OutcomeTable) else _of_env(env, training)
    name = algorithm_name(type(model))
    if model.get_vec_normalize_env() is not None:
        raise ConfigError("the model was trained with VecNormalize, which an agent does not have; train without it")
    found = AgentConfig(name, policy=policy_description(name, model.policy), **config)
    _check_spaces(model, found, env)
    return found


def _of_table(table: OutcomeTable, training: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of an agent that was trained on a table of outcomes."""
    description = table.description
    plan = Plan(**description["plan"])
    record = {"network": description.get("network"), **training}
    record["env"] = {"checkpoint": description.get("checkpoint"), **training.get("env", {})}
    return {
        "image_size": description["size"], "latent_bound": NO_LATENT, "plan": plan, "training": record,
        "observation": "features", "kind": "schedule",
        "schedules": tuple(str(schedule) for schedule in table.schedules),
    }  # fmt: skip


def _found(env: Any, name: str) -> Any:
    """Return an attribute of an environment below its wrappers; None if there is none."""
    found = getattr(getattr(env, "unwrapped", env), name, None)
    if found is None and hasattr(env, "get_attr"):
        with suppress(AttributeError):
            found = env.get_attr(name)[0]
    return found


def _table_of(env: Any) -> OutcomeTable | None:
    """Return the table of an environment whose actions choose a schedule; None for other environments."""
    tree = _found(env, "tree")
    return tree.table if isinstance(tree, Tree) and tree.kind == "schedule" else None


def task_of(env: Any) -> Task:
    """Return the task of an environment below its wrappers.

    Raises:
        ConfigError: it is not an environment of this project that runs a network.
    """
    found = _found(env, "task")
    if not isinstance(found, Task):
        raise ConfigError(
            f"an agent is exported with the environment of a network that it was trained in, got {env!r}; "
            "gym.make('SkipDiffBandit-v0') is one"
        )
    return found


def _of_env(env: Any, training: dict[str, Any]) -> dict[str, Any]:
    """Return the configuration of an agent that was trained in an environment."""
    task = task_of(env)
    decisions, config = task.process.decisions, task.config
    spec = getattr(env, "spec", None)
    record = {"env": plain_settings(config), "env_id": None if spec is None else spec.id, **training}
    space = task.observation_space
    latent = space["latent"] if isinstance(space, spaces.Dict) else space
    bound = float(latent.high.max()) if config.observation != "features" else NO_LATENT  # type: ignore[attr-defined]
    return {
        "image_size": config.image_size, "latent_bound": bound, "plan": task.plan, "training": record,
        "observation": config.observation, "kind": decisions.kind, **decisions.settings(),
        "price_range": None if config.observation == "latent" else config.price_range,
    }  # fmt: skip


def plain_settings(config: TaskConfig) -> dict[str, Any]:
    """Return the arguments of an environment that define its episodes, as plain data."""
    found = {each.name: getattr(config, each.name) for each in fields(config) if each.name not in ELSEWHERE}
    if config.schedules is not None:
        found["schedules"] = list(map(str, config.schedules))
    return json.loads(json.dumps(found, default=_plain))


def _plain(value: Any) -> Any:
    """Return numbers of NumPy as those of Python, the name of a function, and the text of any other object."""
    return value.tolist() if isinstance(value, np.generic | np.ndarray) else getattr(value, "__name__", str(value))


def _check_spaces(model: Any, config: AgentConfig, env: Any) -> None:
    """Raise ConfigError if the observations or the actions of a model are not those of the environment."""
    seen = features_space(None) if isinstance(env, OutcomeTable) else task_of(env).observation_space
    decisions = config.make_decisions()
    if model.action_space != decisions.space:
        raise ConfigError(
            f"the environment takes actions of {decisions.space}, but the model acts in {model.action_space}"
        )
    own = model.observation_space
    stacked = config.observation == "latent" and not decisions.whole and len(own.shape) == 3
    if own != seen and not stacked:
        raise ConfigError(
            f"the environment shows {seen}, but the model sees {own}; train without wrappers that change observations"
        )
