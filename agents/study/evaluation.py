"""`skipdiff evaluate`: every method on the same pictures and the same noise, with rewards, regrets and the oracle."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch import Tensor

from agents.agent import Agent
from agents.study import methods as ways
from agents.study.rows import RANDOM, Row, candidates, with_rewards
from agents.study.running import Keep, Runner, tensor_digest
from ddpm.util.errors import ConfigError
from skipdiff_env.judges import refuse_judge
from skipdiff_env.plan import Plan


def training_of(agent: Agent) -> Mapping[str, Any]:
    """Return the arguments of the environment that an agent was trained in; empty where they were not recorded."""
    return agent.config.training.get("env", {})


def default_reward(agents: Mapping[str, Agent], metrics: Sequence[str]) -> str | None:
    """Return the metric of the reward: the first agent's, else NIQE; None if neither is measured."""
    wanted = [*(training_of(agent).get("metric") for agent in agents.values()), "niqe"]
    return next((name for name in wanted if name in metrics), None)


def evaluate(
    runner: Runner,
    crops: Sequence[Tensor],
    agents: Mapping[str, Agent] | None = None,
    asked: Mapping[str, Any] | None = None,
    *,
    seeds: int = 1,
    reward: str | None = None,
    levels: Sequence[str] = (),
    paper: bool = True,
    train_crops: Sequence[Tensor] | None = None,
    keep: Keep | None = None,
    folder: Path | None = None,
    kind: str = "inverse",
    price: float = 0.0,
) -> list[Row]:
    """Run every method on every picture under every noise seed, and return the rows.

    Real-ESRGAN is one of them if it is installed and has the same scale.

    Args:
        runner: runner with the network and the metrics.
        crops: targets, each (3, H, W) in [-1, 1], of one size.
        agents: name → agent; each decides under the plan that it was trained for. Random skipping with as many forwards
            as the first agent is added.
        asked: parts of the plan of the fixed starts, as `Plan.resolve` takes them; the other parts come from the first
            agent of restarts, or from the checkpoint.
        seeds: number of noise seeds; picture i under seed k has the noise of key k.
        reward: metric of the reward, which must not be a judge; adds rewards, regrets, the oracle and the best fixed
            start.
        levels: fixed schedules, as `agents.study.methods.schedule` takes them.
        paper: whether the full chain and the paper's two stages from every start run as well.
        train_crops: photographs on which the best fixed start is chosen; None: `crops`.
        keep: function that is called with each result.
        folder: folder for the rows of each method and batch. An evaluation that was stopped continues from there, and
            may take further agents and schedules. None: rows are kept only in memory.
        kind: kind of the reward, as in the environments.
        price: price of a fine forward in the reward.

    Returns:
        One row for each method, picture and seed; at the end those of the originals, one for each picture, if a metric
        needs no reference.

    Raises:
        ConfigError: the size, a part of the plan, a schedule or an agent does not fit, or the folder holds results with
            other settings.
    """
    refuse_judge(reward)
    runner.check_size(crops[0].shape[-1])
    if reward is not None and reward not in runner.metrics:
        raise ConfigError(f"the reward's metric {reward} must be one of the metrics {', '.join(runner.metrics)}")
    unet, agents, asked = runner.unet, agents or {}, asked or {}
    restarting = [agent for agent in agents.values() if agent.config.plan.skip_mode != "jump"]
    for agent in restarting:
        agent.check(Plan.resolve(unet.settings, agent.config.plan, **asked))
    plan = Plan.resolve(unet.settings, restarting[0].config.plan if restarting else None, **asked)
    sampler = asked.get("fine_sampler") or unet.settings["fine_sampler"]
    decided = [method for name, agent in agents.items() for method in ways.agent_curve(name, agent)]
    methods = [*ways.without_forwards(unet), *ways.other_nets(unet.scale)]
    if paper:
        methods += [ways.chain(unet.settings["diffusion_steps"]), ways.coarse_chain(plan), *ways.all_starts(plan)]
    methods += [*ways.shipped_schedule(unet), *(ways.schedule(text, sampler) for text in levels), *decided]
    methods += [ways.random_skipping(decided[0])] if decided and paper else []
    methods.append(ways.originals())
    rows = runner.run(methods, crops, range(seeds), folder, settings_of(plan, agents), keep)
    if reward is None:
        return rows
    train: list[Row] = []
    if train_crops is not None:
        names = {row.method for row in candidates(rows)}
        alone = Runner(unet, [reward], runner.device, runner.batch_size, str(runner.degradation))
        train = alone.run([method for method in methods if method.name in names], train_crops, title="best fixed start")
    coarse = {method.name: 0 if method.plan is None else method.plan.coarse_forwards for method in methods}
    return with_rewards(rows, runner.metrics[reward], train, kind, price, coarse)


def settings_of(plan: Plan, agents: Mapping[str, Agent]) -> dict[str, Any]:
    """Return the settings of plan and agents that the rows in a folder must share.

    Args:
        plan: plan of the fixed starts.
        agents: name → agent.
    """
    digests = {
        name: tensor_digest(agent.policy.state_dict().values(), asdict(agent.config)) for name, agent in agents.items()
    }
    return {"plan": plan.settings(), "agents": digests | {f"like which {RANDOM} is": name for name in [*agents][:1]}}
