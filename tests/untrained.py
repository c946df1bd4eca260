"""Agents that nothing has trained, small enough for tests."""

from typing import Any

import numpy as np
import torch
from gymnasium import spaces

from agents.agent import Agent, AgentConfig
from agents.algorithms import RECURRENT, algorithm_class, policy_alias
from agents.policies import policy_description
from agents.training.hyperparameters import load_hyperparameters
from skipdiff_env.decisions import make_decisions
from skipdiff_env.observations import Observer
from skipdiff_env.plan import Plan

# Settings of the networks that look at latents and at dictionaries.
SMALL: dict[str, dict[str, Any]] = {
    "latent": {"hidden_size": 8, "tell_step": False},
    "dict": {"channels": [4, 6], "crop_size": 16},
}


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
    sizes = {"lstm_hidden_size": 8} if algorithm == RECURRENT else {}
    own: dict[str, Any] = {} if algorithm == RECURRENT and observation == "latent" else SMALL.get(observation, {})
    settings = load_hyperparameters(algorithm, {**own, "policy_kwargs": sizes}, observation)
    make: Any = algorithm_class(algorithm).policy_aliases[policy_alias(algorithm, observation)]
    action = make_decisions(kind, plan, 16, schedules=schedules).space
    policy = make(space, action, lambda _: 0.0, **settings.policy_settings(algorithm, observation))
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
