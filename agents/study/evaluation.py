"""`skipdiff evaluate`: every method on the same pictures and the same noise, with rewards, regrets and the oracle."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.agent import Agent
from agents.study import methods as ways
from agents.study.methods import Method
from agents.study.rows import RANDOM, Row, with_rewards
from agents.study.running import PARTS, SETTINGS, Keep, Runner, default_metrics, settle, tensor_digest
from ddpm.checkpoints import load_denoiser
from ddpm.nets.denoiser import Denoiser
from ddpm.util.errors import ConfigError
from ddpm.util.progress import progress, say
from skipdiff_env.judges import refuse_judge
from skipdiff_env.metrics import Metric
from skipdiff_env.plan import Plan
from skipdiff_env.rules import quality


def training_of(agent: Agent) -> Mapping[str, Any]:
    """Return the arguments of the environment that an agent was trained in; empty where they were not recorded."""
    return agent.config.training.get("env", {})


def default_reward(agents: Mapping[str, Agent], metrics: Sequence[str]) -> str | None:
    """Return the metric of the reward: the first agent's, else NIQE; None if neither is measured."""
    wanted = [*(training_of(agent).get("metric") for agent in agents.values()), "niqe"]
    return next((name for name in wanted if name in metrics), None)


def plans(
    settings: Mapping[str, Any], agents: Mapping[str, Agent], asked: Mapping[str, Any]
) -> tuple[Plan, dict[str, Plan]]:
    """Return the plan of the fixed starts, and the plan of each agent.

    The parts in `asked` hold for the fixed starts and for the agents of restarts. The other parts of the plan of the
    fixed starts come from the first agent of restarts, or from the checkpoint.

    Args:
        settings: settings of the checkpoint's network.
        agents: name → agent.
        asked: parts of a plan, as `Plan.resolve` takes them.

    Raises:
        ConfigError: a part is wrong, or does not fit an agent.
    """
    restarting = [agent.config.plan for agent in agents.values() if not _jumps(agent)]
    own = {
        name: Plan.resolve(settings, agent.config.plan, **({} if _jumps(agent) else asked))
        for name, agent in agents.items()
    }
    return Plan.resolve(settings, restarting[0] if restarting else None, **asked), own


def _jumps(agent: Agent) -> bool:
    return agent.config.plan.skip_mode == "jump"


def evaluation_methods(
    unet: Denoiser,
    agents: Mapping[str, Agent],
    plan: Plan,
    own: Mapping[str, Plan],
    levels: Iterable[Method],
    paper: bool,
) -> list[Method]:
    """Return the methods that `evaluate` compares.

    Args:
        unet: the denoiser.
        agents: name → agent.
        plan: plan of the fixed starts.
        own: name → plan of the agent.
        levels: schedules.
        paper: whether to include the full chain and the paper's two stages; otherwise Real-ESRGAN is included, if it
            is installed.
    """
    found = ways.without_forwards(unet)
    if paper:
        found += [ways.chain(unet.settings["diffusion_steps"]), ways.coarse_chain(plan), *ways.all_starts(plan)]
    else:
        found += ways.other_nets(unet.scale)
    found += ways.shipped_schedule(unet)
    found += levels
    decided = [method for name, agent in agents.items() for method in ways.agent_curve(name, agent, own[name])]
    found += decided
    if decided and paper:
        found.append(ways.random_skipping(decided[0]))
    return [*found, ways.originals()]


def find_best_start(runner: Runner, plan: Plan, crops: Sequence[Tensor], metric: Metric) -> int:
    """Return the fixed start of a plan with the largest mean reward on photographs, under noise seed 0.

    Args:
        runner: runner with the network.
        plan: the coarse and fine stages.
        crops: targets, each (3, H, W) in [-1, 1], of one size.
        metric: metric of the reward.
    """
    totals = np.zeros(plan.first)
    batches = range(0, len(crops), runner.batch_size)
    for first in progress(batches, desc="best fixed start", unit="batch", leave=False):
        hr = torch.stack(list(crops[first : first + runner.batch_size])).to(runner.device)
        batch = runner.batch(hr)
        chains = batch.process(plan).run_all_starts(batch.coarse(plan)[0])
        for index in range(plan.first):
            sr = torch.stack([chain[index][1] for chain in chains])
            values = metric(sr, hr if metric.needs_reference else None)
            totals[index] += sum(quality(float(value), metric.lower_better) for value in values)
    return int(totals.argmax()) + 1


def evaluate(
    crops: Sequence[Tensor],
    checkpoint: str = "natural-x4",
    asked: Mapping[str, Any] | None = None,
    *,
    seeds: int = 1,
    metrics: Sequence[str] | None = None,
    reward: str | None = None,
    agents: Mapping[str, Agent] | None = None,
    levels: Sequence[str] = (),
    paper: bool = True,
    train_crops: Sequence[Tensor] | None = None,
    device: str = "cpu",
    batch_size: int = 16,
    degradation: str = "bicubic",
    keep: Keep | None = None,
    folder: Path | None = None,
    trust_pickle: bool = False,
    kind: str = "inverse",
    price: float = 0.0,
) -> list[Row]:
    """Run every method on every picture under every noise seed, and return the rows.

    Args:
        crops: targets, each (3, H, W) in [-1, 1], of one size.
        checkpoint: name, folder or Hub id, also of a model of diffusers.
        asked: parts of the plan of the fixed starts, as `Plan.resolve` takes them.
        seeds: number of noise seeds; picture i under seed k has the noise of key k.
        metrics: names of metrics; None: `default_metrics`.
        reward: metric of the reward, which must not be a judge; adds rewards, regrets, the oracle and the best fixed
            start.
        agents: name → agent; each decides under the plan that it was trained for. Random skipping with as many forwards
            as the first agent is added.
        levels: fixed schedules, as `agents.study.methods.parse_schedule` takes them.
        paper: whether the full chain and the paper's two stages from every start run as well.
        train_crops: photographs on which the best fixed start is chosen; None: `crops`.
        device: device of the network and the metrics.
        batch_size: pictures per batch.
        degradation: degradation of the low-resolution pictures, as `Degradation.parse` takes it.
        keep: function that is called with each result.
        kind: kind of the reward, as in the environments.
        price: price of a fine forward in the reward.
        folder: folder for the rows of each method and batch. An evaluation that was stopped continues from there, and
            may take further agents and schedules. None: rows are kept only in memory.
        trust_pickle: whether the weights of a model of diffusers may be pickles, which can run any code.

    Returns:
        One row for each method, picture and seed; at the end those of the originals, one for each picture, if a metric
        needs no reference.

    Raises:
        ConfigError: a metric, the degradation, a part of the plan, a schedule or an agent does not fit, or the folder
            holds results with other settings.
        CheckpointError: the checkpoint is unknown or damaged.
    """
    refuse_judge(reward)
    unet = load_denoiser(checkpoint, device, trust_pickle)
    runner = Runner(unet, default_metrics() if metrics is None else metrics, device, batch_size, degradation)
    runner.check_size(crops[0].shape[-1])
    if reward is not None and reward not in runner.metrics:
        raise ConfigError(f"the reward's metric {reward} must be one of the metrics {', '.join(runner.metrics)}")
    agents, asked = agents or {}, asked or {}
    for agent in agents.values():
        if note := agent.told_of(checkpoint):
            say(f"Note: {note}")
    plan, own = plans(unet.settings, agents, asked)
    sampler = asked.get("fine_sampler") or unet.settings["fine_sampler"]
    schedules = [ways.parse_schedule(text, sampler) for text in levels]
    methods = evaluation_methods(unet, agents, plan, own, schedules, paper)
    rows = compare(runner, methods, crops, seeds, settings_of(plan, agents, own), folder, keep)
    if reward is None:
        return rows
    metric = runner.metrics[reward]
    best_start = None if train_crops is None else find_best_start(runner, plan, train_crops, metric)
    coarse = {method.name: 0 if method.plan is None else method.plan.coarse_forwards for method in methods}
    return with_rewards(rows, metric, best_start, kind, price, coarse)


def settings_of(plan: Plan, agents: Mapping[str, Agent], own: Mapping[str, Plan]) -> dict[str, Any]:
    """Return the settings of plan and agents that rows must share, for `compare`.

    Args:
        plan: plan of the fixed starts.
        agents: name → agent.
        own: name → plan of the agent.
    """
    digests = {
        name: tensor_digest(agent.policy.state_dict().values(), {**asdict(agent.config), "plan": asdict(own[name])})
        for name, agent in agents.items()
    }
    return {"plan": plan.settings(), "agents": digests | {f"like which {RANDOM} is": name for name in [*agents][:1]}}


def compare(
    runner: Runner,
    methods: Sequence[Method],
    crops: Sequence[Tensor],
    seeds: int,
    told: Mapping[str, Any],
    folder: Path | None = None,
    keep: Keep | None = None,
) -> list[Row]:
    """Return the rows of methods. Rows that are in the folder are not computed again.

    Args:
        runner: runner with the network and the metrics.
        methods: the methods that are compared.
        crops: targets, each (3, H, W) in [-1, 1], of one size.
        seeds: number of noise seeds.
        told: settings that the rows of the folder must share, in addition to those of the runner.
        folder: folder for the rows; None: they are kept only in memory.
        keep: function that is called with each result.

    Raises:
        ConfigError: the folder holds results with other settings.
    """
    if folder is not None:
        settle(folder / SETTINGS, {**runner.settings(crops, seeds), **told})
    return runner.run(methods, crops, range(seeds), None if folder is None else folder / PARTS, keep)
