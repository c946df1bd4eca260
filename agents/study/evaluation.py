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
    """Arguments of the environment that an agent was trained in; empty where it does not say."""
    return agent.config.training.get("env", {})


def default_reward(agents: Mapping[str, Agent], metrics: Sequence[str]) -> str | None:
    """The metric of rewards: the first agent's, else NIQE; None if neither is measured."""
    wanted = [*(training_of(agent).get("metric") for agent in agents.values()), "niqe"]
    return next((name for name in wanted if name in metrics), None)


def plans(
    settings: Mapping[str, Any], agents: Mapping[str, Agent], asked: Mapping[str, Any]
) -> tuple[Plan, dict[str, Plan]]:
    """The plan of the fixed starts, and each agent's own.

    The parts asked for hold for the fixed starts and for the agents of restarts. What is not asked for the fixed starts
    have from the first agent of restarts, or from the checkpoint.

    Args:
        settings: of the checkpoint's net.
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
    """Return what `evaluate` compares.

    Args:
        unet: the denoiser.
        agents: name → agent.
        plan: of the fixed starts.
        own: the plan of each agent.
        levels: schedules.
        paper: whether the full chain and the paper's two stages are among them; else Real-ESRGAN is, if installed.
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
    """The fixed start of a plan with the largest mean reward on photographs, under noise seed 0.

    Args:
        runner: has the net.
        plan: the coarse and fine stages.
        crops: targets, each (3, H, W) in [-1, 1], of one size.
        metric: the reward's.
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
    """Runs every method on every picture under every noise seed.

    Args:
        crops: targets, each (3, H, W) in [-1, 1], of one size.
        checkpoint: name, folder or Hub id, also of a model of diffusers.
        asked: parts of the plan of the fixed starts, as `Plan.resolve` takes them.
        seeds: number of noise seeds; picture i under seed k has the noise of key k.
        metrics: names of metrics; None: `default_metrics`.
        reward: metric of the reward, no judge; adds rewards, regrets, the oracle and the best fixed start.
        agents: name → agent; adds them, each under its own plan, and skipping at random with as many forwards as the
            first.
        levels: fixed schedules, as `agents.study.methods.parse_schedule` takes them.
        paper: whether the full chain and the paper's two stages from every start run as well.
        train_crops: photographs that the best fixed start is chosen on; None: `crops`.
        device: where to compute.
        batch_size: pictures per batch.
        degradation: how the low-resolution pictures are made, as `Degradation.parse` takes it.
        keep: told of each result that is computed.
        kind: of the reward, as the environment has it.
        price: of a fine forward, which the reward is less by.
        folder: where the rows of each method and batch are kept, so that an evaluation which was stopped goes on where
            it was, and takes further agents and schedules; None: they are kept in memory alone.
        trust_pickle: whether the weights of a model of diffusers may be pickles, which can run any code.

    Returns:
        One row for each method, picture and seed; at the end those of the originals, one a picture, if a metric has no
        reference.

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
    """Return what tells whether rows are those of the same plan and agents, for `compare`.

    Args:
        plan: of the fixed starts.
        agents: name → agent.
        own: the plan of each.
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
    """Return the rows of methods; those that are in a folder are not computed again.

    Args:
        runner: has the net and the metrics.
        methods: what is compared.
        crops: targets, each (3, H, W) in [-1, 1], of one size.
        seeds: number of noise seeds.
        told: what rows of the folder must have in common, beside what the runner knows.
        folder: where rows stay; None: they are kept in memory alone.
        keep: told of each result that is computed.

    Raises:
        ConfigError: the folder holds results with other settings.
    """
    if folder is not None:
        settle(folder / SETTINGS, {**runner.settings(crops, seeds), **told})
    return runner.run(methods, crops, range(seeds), None if folder is None else folder / PARTS, keep)
