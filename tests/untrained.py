"""Agents that nothing has trained, small enough for tests."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from agents.agent import Agent, AgentConfig
from agents.algorithms import RECURRENT, algorithm_class
from agents.policies import policy_description
from agents.training.hyperparameters import load_hyperparameters
from agents.training.sb3 import resolved
from skipdiff_env.decisions import make_decisions
from skipdiff_env.observations import Observer
from skipdiff_env.plan import Plan

# Algorithms with hyperparameters for decisions step by step.
STEPWISE = ("ppo", "a2c", "dqn", "qrdqn", "trpo", "recurrent-ppo")
# An environment with each kind of observation, and settings of the extractor that looks at it.
ENVS = {"latent": "SkipDiff-v0", "dict": "SkipDiffJump-v0", "features": "SkipDiffBandit-v0"}
SMALL: dict[str, dict[str, Any]] = {
    "latent": {"hidden_size": 8, "tell_step": False, "image_size": None},
    "dict": {"channels": [4, 6], "crop_size": 16},
    "features": {},
}


def small(algorithm: str, observation: str = "latent") -> dict[str, Any]:
    """Return `policy_kwargs` that make the networks of an algorithm small."""
    if algorithm == RECURRENT:
        return {
            "lstm_hidden_size": 8,
            **({} if observation != "dict" else {"features_extractor_kwargs": SMALL["dict"]}),
        }
    return {"features_extractor_kwargs": SMALL[observation]}


def untrained(
    plan: Plan, algorithm: str = "ppo", observation: str = "latent", seed: int = 0, side: int = 32, **changes: Any
) -> Agent:
    """Return an agent whose decisions vary.

    Args:
        plan: the episodes.
        algorithm: of which it has a policy.
        observation: what it sees.
        seed: of its weights.
        side: of the latents and conditions that it sees.
        changes: settings of its configuration; and `schedules`, for which its kind is "schedule".
    """
    torch.manual_seed(seed)
    schedules, prices = changes.get("schedules"), changes.get("price_range")
    kind = "skip" if schedules is None else "schedule"
    bound = changes.setdefault("latent_bound", 9.0)
    space: Any = Observer(observation, plan, prices, whole=kind == "schedule", latent_bound=bound).space(
        (3, side, side)
    )
    if observation == "latent" and algorithm != RECURRENT:
        space = spaces.Box(-bound, bound, (3 * plan.decisions, side, side), np.float32)
    settings = load_hyperparameters(algorithm, ENVS[observation], {"policy_kwargs": small(algorithm, observation)})
    make: Any = algorithm_class(algorithm).policy_aliases[settings["policy"]]
    action = make_decisions(kind, plan, 16, schedules=schedules).space
    policy = make(space, action, lambda _: 0.0, **resolved(settings["policy_kwargs"]))
    config = AgentConfig(
        algorithm,
        plan,
        policy_description(algorithm, policy),
        observation=observation,
        kind=kind,
        **{"image_size": side, **changes},
    )
    agent = Agent(config, policy)
    seen = torch.randn(16, *space.shape) if space.shape else {n: torch.rand(16, *s.shape) for n, s in space.items()}
    with torch.no_grad():  # batch norm takes its first statistics
        agent.policy.extract_features(seen, agent.policy.features_extractor)
        for name, parameter in agent.policy.named_parameters():
            if name.startswith(("action_net", "q_net", "quantile_net")):
                torch.nn.init.normal_(parameter, std=0.5)
    return agent
