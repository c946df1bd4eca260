"""The demonstration: scikit-image's own photographs enlarged in every way, and an agent trained on half of them."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from skimage import data
from torch import Tensor

from agents.agent import Agent
from agents.evaluator import QUALITIES
from agents.outcomes import even_outcomes
from agents.playing import AgentPolicy, play, policy_of
from agents.plots import contact_sheet, save
from agents.study import methods as ways
from agents.study.methods import Batch, Method, Result
from agents.study.rows import to_markdown
from agents.study.running import Runner
from agents.study.tables import markdown_table
from ddpm.checkpoints import load_unet, resolve_checkpoint
from ddpm.degradation import downsample
from ddpm.files import check_ending
from ddpm.images import Picture, to_tensor, to_uint8, write_picture
from skipdiff_env.config import TaskConfig
from skipdiff_env.pictures import PHOTOGRAPHS as SPLITS
from skipdiff_env.plan import Plan
from skipdiff_env.rendering import draw_map
from skipdiff_env.task import Task, shared_unet
from skipdiff_env.upscaler import Upscaler

# Photographs that scikit-image carries in its wheel, and the top left corner of the crop that is shown.
PHOTOGRAPHS = {"astronaut": (0, 128), "chelsea": (20, 110), "coffee": (60, 170), "rocket": (100, 180)}
SIZE = 192
# What it can be written as.
FORMATS = (".png", ".jpg", ".jpeg", ".webp")
METRICS = ("psnr", "ssim", "lpips", "niqe")
# Side of the crops that the demonstration's agent is trained on, and of the tiles it decides about.
TILE = 128
# The crops of two photographs are few: one net that passes over them often.
DEMO_AGENT: dict[str, Any] = {"minutes": 1.0, "members": 1, "epochs": 60}


def photographs() -> Tensor:
    """The demonstration's targets, (4, 3, 192, 192) in [-1, 1]."""
    crops = []
    for name, (top, left) in PHOTOGRAPHS.items():
        crops.append(to_tensor(getattr(data, name)()[top : top + SIZE, left : left + SIZE, :3]))
    return torch.stack(crops)


def demo(out: Path, checkpoint: str = "natural-x4", seed: int = 0, device: str = "cpu") -> str:
    """Enlarges the photographs by bicubic, the predictor, the full DDPM, the coarse chain, coarse + fine, a schedule.

    Writes them side by side.

    Args:
        out: picture to write.
        checkpoint: name, folder or Hub id.
        seed: noise seed.
        device: where to compute.

    Returns:
        A table of means over the photographs.

    Raises:
        ConfigError: the picture cannot be written under this name.
    """
    check_ending(out, FORMATS)
    unet = load_unet(checkpoint, device)
    plan = Plan.resolve(unet.settings)
    methods = [
        *ways.without_forwards(unet),
        ways.chain(unet.diffusion_steps),
        ways.coarse_chain(plan),
        ways.from_start(plan, unet.settings["start"] or plan.N),
    ]
    methods += ways.shipped_schedule(unet)
    hr = photographs().to(device)
    small = torch.nn.functional.interpolate(downsample(hr, unet.scale), scale_factor=unet.scale, mode="nearest")
    sheet = {f"input ({SIZE // unet.scale} px)": small}

    def keep(batch: Batch, method: Method, result: Result) -> None:
        sheet[f"{method.name}\n{result.nfe[0]} forwards"] = result.sr

    rows = Runner(unet, METRICS, device).run(methods, list(hr), [seed], keep=keep, title="demo")
    sheet["original"] = hr
    save(contact_sheet({title: [to_uint8(image) for image in images] for title, images in sheet.items()}), out)
    return f"{to_markdown(rows)}\n\npicture: {out}"


def demo_agent(out: Path, checkpoint: str = "natural-x4", seed: int = 0, device: str = "cpu") -> str:
    """Trains an agent of jumps on two of scikit-image's photographs, and plays it on the two others.

    Two photographs teach little, so the agent that comes with the checkpoint plays beside it, and its decisions are
    drawn; without one those of the agent that was trained.

    Args:
        out: picture to write: the two others with the forwards of each tile.
        checkpoint: name, folder or Hub id.
        seed: of the training.
        device: where to compute.

    Returns:
        A table: fixed numbers of even steps, and the agents at three qualities, on crops they were not trained on.
    """
    from agents.agent import load_agent, own_agent
    from agents.supervised import SupervisedConfig, train_supervised

    began = time.monotonic()
    env: dict[str, Any] = {
        "checkpoint": checkpoint, "steps": (1, 20), "skip_mode": "jump", "observation": "dict", "metric": "lpips",
        "fine_sampler": shared_unet(checkpoint, device).settings["fine_sampler"], "reward": "negative",
        "nfe_penalty": (0.0005, 0.02), "image_size": TILE,
    }  # fmt: skip
    with TemporaryDirectory() as temporary:
        config = SupervisedConfig(env={**env, "split": "train"}, seed=seed, device=device, **DEMO_AGENT)
        agent = load_agent(train_supervised(config, Path(temporary) / "run"), device)
    seconds = time.monotonic() - began
    task = Task(TaskConfig.of({**env, "split": "test", "report_metrics": ("psnr",), "device": device}))
    pictures = range(len(task.pictures))
    even = even_outcomes(task, pictures, [0], config.forwards)
    fixed = [even.at(np.full((len(pictures), 1), place)) for place in range(len(config.forwards))]
    entries = [{"method": f"{row['nfe']:.0f} even steps", **row} for row in fixed]
    agents = {"agent of two photographs": agent}
    shipped = own_agent(resolve_checkpoint(checkpoint), device)
    if shipped is not None and shipped.config.plan == task.plan:
        agents[f"agent of {Path(checkpoint).name}"] = agent = shipped
    for name, each in agents.items():
        for level in QUALITIES:
            played = play(task, AgentPolicy(each, quality=level), pictures, [0] * len(pictures))
            row = {metric: float(np.mean([one.metrics[metric] for one in played])) for metric in even.metrics}
            row["nfe"] = float(np.mean([one.refinement.nfe for one in played]))
            entries.append({"method": f"{name}, quality {level:g}", **row, "even": _steps_for(row["lpips"], fixed)})
    _draw_decisions(out, checkpoint, agent, device)
    columns = ["method", "psnr", "lpips", "nfe", "even"]
    return "\n".join(
        [
            f"A supervised agent, trained in {seconds:.0f} s on astronaut and coffee"
            + (", and the one that comes with the checkpoint" if len(agents) > 1 else "")
            + f"; {len(pictures)} crops of chelsea and rocket, {TILE} px:",
            "",
            markdown_table(entries, columns, {"even": ("even steps for this LPIPS", 1)}),
            "",
            f"picture: {out}, the decisions of the {list(agents)[-1]}",
        ]
    )


def _steps_for(lpips: float, fixed: Sequence[Mapping[str, float]]) -> float:
    """How many even steps have this LPIPS on average, by interpolation in the logarithm; NaN beyond those tried."""
    values, steps = ([row[name] for row in fixed] for name in ("lpips", "nfe"))
    order = np.argsort(values)
    found = np.interp(lpips, np.array(values)[order], np.log(np.array(steps)[order]), np.nan, np.nan)
    return float(np.exp(found))


def _draw_decisions(out: Path, checkpoint: str, agent: Agent, device: str) -> None:
    """Draws the forwards of each tile of the photographs that the agent was not trained on, side by side."""
    upscaler = Upscaler(checkpoint, policy=policy_of(agent), plan=agent.config.plan, device=device)
    maps = []
    for name, split in SPLITS.items():
        if split == "test":
            rgb = getattr(data, name)()[..., :3]
            height, width = (side - side % upscaler.scale for side in rgb.shape[:2])
            small = downsample(to_tensor(rgb[:height, :width])[None], upscaler.scale)
            (result,) = upscaler.upscale(list(small), [0])
            maps.append(draw_map(to_uint8(result.sr), result.tiles))
    height = max(len(one) for one in maps)
    padded = [np.pad(one, ((0, height - len(one)), (0, 0), (0, 0)), constant_values=255) for one in maps]
    write_picture(Picture(np.concatenate(padded, axis=1)), out)
