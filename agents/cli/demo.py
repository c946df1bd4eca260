"""The demonstration: scikit-image's photographs enlarged in several ways, and an agent trained in a minute."""

import time
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from matplotlib.figure import Figure
from skimage import data
from torch import Tensor
from torch.nn.functional import interpolate

from agents.agent import Agent, load_agent
from agents.benchmark import load_zip
from agents.playing import AgentPolicy
from agents.study import methods as ways
from agents.study.figures import contact_sheet, save
from agents.study.methods import Batch, Method, Result
from agents.study.rows import OTHER_NET, to_markdown
from agents.study.running import Runner
from agents.training.config import AgentTrainingConfig
from agents.training.learning_curve import CURVE, CurvePoint, read_curve
from agents.training.sb3 import MODEL, train_agent
from ddpm.checkpoints import load_unet
from ddpm.pictures.degradation import downsample
from ddpm.pictures.images import to_tensor, to_uint8
from ddpm.util.checks import counted
from ddpm.util.files import check_ending
from skipdiff_env.outcomes import TABLES
from skipdiff_env.pictures import Rgb
from skipdiff_env.plan import Plan
from skipdiff_env.rendering import draw_map
from skipdiff_env.scoring import score
from skipdiff_env.upscaler import Upscaler

# Photographs in the wheel of scikit-image: the top left corner of the crop that is shown, and the row and the column,
# out of three, of its part with the most contrast.
PHOTOGRAPHS = {
    "astronaut": (0, 128, 2, 0), "chelsea": (20, 110, 1, 1), "coffee": (60, 170, 2, 1), "rocket": (100, 180, 2, 2),
}  # fmt: skip
SIZE = 192
# Formats of the picture.
FORMATS = (".png", ".jpg", ".jpeg", ".webp")
METRICS = ("psnr", "ssim", "lpips", "niqe")
# Number of decisions of the training, and the photographs for whose parts the agent chooses the detail.
DECISIONS = 100_000
TILED = ("chelsea", "rocket")


def photographs() -> Tensor:
    """Return the demonstration's targets, (4, 3, 192, 192) in [-1, 1]."""
    return torch.stack([
        to_tensor(getattr(data, name)()[top : top + SIZE, left : left + SIZE, :3])
        for name, (top, left, *_) in PHOTOGRAPHS.items()
    ])  # fmt: skip


def _with_details(pictures: Tensor) -> list[Rgb]:
    """Return the results for the photographs, (4, 3, H, H), followed by one ninth of each, as large as they are."""
    side = pictures.shape[-1] // 3
    details = torch.stack([
        picture[:, row * side : (row + 1) * side, column * side : (column + 1) * side]
        for picture, (_, _, row, column) in zip(pictures, PHOTOGRAPHS.values(), strict=True)
    ])  # fmt: skip
    return [*map(to_uint8, pictures), *map(to_uint8, interpolate(details, size=pictures.shape[-2:], mode="nearest"))]


def demo(out: Path, checkpoint: str = "natural-x4", seed: int = 0, device: str = "cpu") -> str:
    """Enlarge the photographs in several ways, and write the results side by side.

    The ways are bicubic interpolation, the predictor, the full DDPM, the coarse chain, both stages, and a schedule.
    Below each result a part of it is shown, three times as large.

    Args:
        out: picture to write.
        checkpoint: name, folder or Hub id.
        seed: noise seed.
        device: device of the network.

    Returns:
        A table of means over the photographs.

    Raises:
        ConfigError: the picture cannot be written under this name.
    """
    check_ending(out, FORMATS)
    unet = load_unet(checkpoint, device)
    plan = Plan.resolve(unet.settings)
    methods = [*ways.without_forwards(unet), *ways.other_nets(unet.scale), ways.chain(unet.diffusion_steps)]
    methods += [ways.coarse_chain(plan), ways.from_start(plan, unet.settings["start"] or plan.N)]
    methods += ways.shipped_schedule(unet)
    hr = photographs().to(device)
    small = interpolate(downsample(hr, unet.scale), scale_factor=unet.scale, mode="nearest")
    sheet = {f"input ({SIZE // unet.scale} px)": _with_details(small)}

    def keep(batch: Batch, method: Method, result: Result) -> None:
        forwards = "" if method.family == OTHER_NET else f"\n{counted(int(result.nfe[0]), 'forward')}"
        sheet[f"{method.name}{forwards}"] = _with_details(result.sr)

    rows = Runner(unet, METRICS, device).run(methods, list(hr), [seed], keep=keep, title="demo")
    sheet["original"] = _with_details(hr)
    save(contact_sheet(sheet), out)
    return f"{to_markdown(rows)}\n\npicture: {out}"


def demo_agent(out: Path, checkpoint: str = "natural-x4", seed: int = 0, device: str = "cpu") -> str:
    """Train PPO on the table that ships with a checkpoint, and draw the learning curve and its choices.

    Args:
        out: picture to write: the learning curve, and the detail that the agent chooses in two photographs.
        checkpoint: name, folder or Hub id.
        seed: seed of the training.
        device: device of the network.

    Returns:
        A sentence with the score on test photographs.
    """
    name = Path(checkpoint).name
    if not (TABLES / name).is_dir():
        return f"No agent is trained: no table ships for {name}; `skipdiff tabulate --levels` makes one."
    began = time.monotonic()
    with TemporaryDirectory() as temporary:
        config = AgentTrainingConfig(env_kwargs={"table": name}, hyperparameters={"n_timesteps": DECISIONS}, seed=seed)
        run = Path(temporary) / "run"
        agent, curve = load_agent(train_agent(config, run), device), read_curve(run / CURVE)
        found = score(load_zip(run / MODEL, trust_pickle=True), table=name)
    _draw_agent(out, checkpoint, agent, curve, device)
    return (
        f"PPO learnt in {time.monotonic() - began:.0f} s how much detail a crop of a photograph should get. On "
        f"photographs that it has not seen it scores {found.value:.2f}, with a 95 % interval from {found.low:.2f} to "
        f"{found.high:.2f}: 0 is the best amount for all, 1 the best one for each crop under its other noises.\n\n"
        f"picture: {out}, its learning curve and the detail that it chooses"
    )


def _draw_agent(out: Path, checkpoint: str, agent: Agent, curve: Sequence[CurvePoint], device: str) -> None:
    """Draw a learning curve, and the number of steps in each part of two photographs."""
    upscaler = Upscaler(checkpoint, policy=AgentPolicy(agent), plan=agent.config.plan, device=device)
    figure = Figure(figsize=(15, 4.5))
    axes = figure.subplots(1, 3)
    axes[0].plot([point.env_steps for point in curve], [point.score for point in curve], marker=".")
    for height, label in ((0, "the same detail for all"), (1, "the best detail under the other noises")):
        axes[0].axhline(height, color="grey", ls=":")
        axes[0].annotate(label, (0, height), textcoords="offset points", xytext=(4, 4))
    axes[0].set(xlabel="decisions", ylabel="score on validation photographs", ylim=(-0.6, 1.2))
    for axis, name in zip(axes[1:], TILED, strict=True):
        rgb = getattr(data, name)()[..., :3]
        height, width = (side - side % upscaler.scale for side in rgb.shape[:2])
        small = downsample(to_tensor(rgb[:height, :width])[None], upscaler.scale)
        (result,) = upscaler.upscale(list(small), [0])
        axis.imshow(draw_map(to_uint8(result.sr), result.tiles))
        axis.set_axis_off()
    figure.tight_layout()
    save(figure, out)
