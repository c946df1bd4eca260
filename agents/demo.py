"""The demonstration: scikit-image's own photographs enlarged in every way, and an agent trained on them."""

from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from skimage import data
from torch import Tensor

from agents.learning_curve import read_curve
from agents.plots import contact_sheet, learning_curves, save
from agents.study import methods as ways
from agents.study.methods import Batch, Method, Result
from agents.study.rows import to_markdown
from agents.study.running import Runner
from ddpm.checkpoints import load_unet
from ddpm.degradation import downsample
from ddpm.images import Picture, to_tensor, to_uint8, write_picture
from skipdiff_env.plan import Plan

# Photographs that scikit-image carries in its wheel, and the top left corner of the crop that is shown.
PHOTOGRAPHS = {"astronaut": (0, 128), "chelsea": (20, 110), "coffee": (60, 170), "rocket": (100, 180)}
SIZE = 192
METRICS = ("psnr", "ssim", "lpips", "niqe")
# PPO's own hyperparameters, no reward for what was thrown away, and a learning rate that falls over as many episodes as
# four photographs need.
DEMO_PPO: dict[str, Any] = {"env_steps": 18_000, "undone_price": 0.02}


def photographs() -> Tensor:
    """The demonstration's targets, (4, 3, 192, 192) in [-1, 1]."""
    crops = []
    for name, (top, left) in PHOTOGRAPHS.items():
        crops.append(to_tensor(getattr(data, name)()[top : top + SIZE, left : left + SIZE, :3]))
    return torch.stack(crops)


def demo(out: Path, checkpoint: str = "natural-x4", seed: int = 0, device: str = "cpu") -> str:
    """Enlarges the photographs by bicubic, the full DDPM, the coarse chain, and coarse + fine.

    Writes them side by side.

    Args:
        out: picture to write.
        checkpoint: name, folder or Hub id.
        seed: noise seed.
        device: where to compute.

    Returns:
        A table of means over the photographs.
    """
    unet = load_unet(checkpoint, device)
    plan = Plan.resolve(unet.settings)
    methods = [
        *ways.without_forwards(unet),
        ways.chain(unet.diffusion_steps),
        ways.coarse_chain(plan),
        ways.from_start(plan, unet.settings["start"] or plan.N),
    ]
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
    """Trains an agent on the demonstration's photographs, from random weights; draws how it learnt and what it decides.

    Args:
        out: picture of the decisions to write; the learning curve goes beside it, as <out>-learning.
        checkpoint: name, folder or Hub id.
        seed: of the training.
        device: where to compute.

    Returns:
        What was learnt, in lines.
    """
    from agents.agent import load_agent
    from agents.enjoy import enjoy, write_film
    from agents.hyperparameters import load_hyperparameters
    from agents.training import train_agent
    from agents.training_config import AgentTrainingConfig
    from skipdiff_env.config import TaskConfig
    from skipdiff_env.task import Task

    with TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, hr in zip(PHOTOGRAPHS, photographs(), strict=True):
            write_picture(Picture(to_uint8(hr)), folder / "images" / f"{name}.png")
        env: dict[str, Any] = {
            "checkpoint": checkpoint, "images": [str(folder / "images")], "image_size": SIZE, "metric": "niqe",
            "noise_seeds": 1,
        }  # fmt: skip
        hyperparameters = load_hyperparameters("ppo", DEMO_PPO)
        config = AgentTrainingConfig("ppo", env, hyperparameters, eval_every=100, seed=seed, device=device)
        agent = load_agent(train_agent(config, folder / "run"), device)
        curve = read_curve(folder / "run" / "evaluations.csv")
        task = Task(TaskConfig.of({**env, "device": device}))
        rewards = np.load(folder / "run" / "outcomes.npz")["rewards"][:, 0]
        played = [enjoy(agent, task, image, 0, film=False) for image in range(len(task.pictures))]
    write_film([np.concatenate([one.frames[-1] for one in played])], out)
    learning = out.with_stem(f"{out.stem}-learning")
    save(learning_curves({"PPO": curve}), learning)
    best = max(curve, key=lambda evaluation: evaluation.reward)
    lines = [
        f"PPO, {curve[-1].episodes} episodes on these photographs in {curve[-1].seconds:.0f} s: reward "
        f"{curve[0].reward:.4f} before, {best.reward:.4f} at its best; best fixed start {best.best_fixed_reward:.4f}, "
        f"oracle {best.oracle_reward:.4f}",
        "",
        "| photograph | decisions at t = N … 2 | start | best start | NIQE | NFE |",
        "|---|---|---|---|---|---|",
    ]
    for name, one, own in zip(PHOTOGRAPHS, played, rewards, strict=True):
        state, actions = one.episode.refinement, " ".join(action.name for action in one.episode.actions)
        niqe = one.episode.metrics["niqe"]
        lines.append(f"| {name} | {actions} | {state.start} | {own.argmax() + 1} | {niqe:.2f} | {state.nfe} |")
    return "\n".join([*lines, "", f"pictures: {out}, {learning}"])
