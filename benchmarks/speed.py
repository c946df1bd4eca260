"""How much faster SkipDiff is, and the net beside its alternatives: ratios, measured in turns in one run.

python -m benchmarks.speed [--checkpoint natural-x4] [--only skipdiff,unet,backends,memory,startup,cluster]
python -m benchmarks.speed --only tiles --agent DIR [--quality 0.5] [--photograph rocket]
"""

import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import torch

from agents.agent import has_agent, load_agent
from agents.cli.command import Command
from agents.cluster import Cluster
from agents.paper.tables import count_flops
from agents.playing import AgentPolicy
from agents.study.tables import markdown
from agents.upscaling.jobs import Job, chunks, make_worker
from agents.upscaling.options import UpscaleOptions
from benchmarks import tiny
from ddpm.checkpoints import load_unet, resolve_checkpoint
from ddpm.nets.denoiser import to_image
from ddpm.nets.unet import UNet
from ddpm.noise import KeyedNoise
from ddpm.pictures.degradation import downsample
from ddpm.pictures.images import to_tensor
from ddpm.sampling import sample
from ddpm.schedule import cosine_alphas_cumprod, even_levels
from ddpm.training.unet import training_loss
from ddpm.util.torchvision_ops import ensure_torchvision
from skipdiff_env.metrics import make_metric
from skipdiff_env.plan import Plan
from skipdiff_env.refinement import RefinementProcess, fixed_start
from skipdiff_env.upscaler import Upscaled, Upscaler

SIDE = 128


def in_turns(
    works: Mapping[str, Callable[[], object]],
    repeats: int,
    settle: bool = False,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of each, run in turns after one run each that is not counted.

    `settle` puts an uncounted run before each counted one: threads of the one before may still be spinning.
    """
    for work in works.values():
        work()
    seconds: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(repeats):
        for name, work in works.items():
            if settle:
                work()
            began = clock()
            work()
            seconds[name].append(clock() - began)
    return {name: statistics.median(values) for name, values in seconds.items()}


def print_table(title: str, headings: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Prints a Markdown table under a title."""
    click.echo(f"\n{title}\n\n{markdown(headings, rows)}")


def skipdiff(unet: UNet, repeats: int) -> None:
    """Coarse and fine stages from the checkpoint's start against the full chain."""
    alphas_cumprod = cosine_alphas_cumprod(unet.diffusion_steps)
    plan = Plan.resolve(unet.settings)
    start = unet.settings["start"] or plan.N
    process = RefinementProcess(unet, plan)
    rows = []
    for batch in (1, 8):
        lr_up = torch.rand(batch, 3, SIDE, SIDE) * 2 - 1
        noise = KeyedNoise(range(batch), lr_up.shape[1:])

        def full(lr_up=lr_up, noise=noise) -> object:  # type: ignore[no-untyped-def]
            return to_image(unet, sample(unet, alphas_cumprod, lr_up, noise), lr_up)

        def ours(lr_up=lr_up, batch=batch) -> object:  # type: ignore[no-untyped-def]
            return process.run(process.begin(list(lr_up), range(batch)), fixed_start(start))

        with torch.inference_mode():
            seconds = in_turns({"full": full, "ours": ours}, repeats)
            counted = {"full": count_flops(full), "ours": count_flops(ours)}
        rows.append(
            (
                batch, seconds["full"] / batch, seconds["ours"] / batch, seconds["full"] / seconds["ours"],
                counted["full"] / batch / 1e9, counted["ours"] / batch / 1e9, counted["full"] / counted["ours"],
            )
        )  # fmt: skip
    T = unet.diffusion_steps
    print_table(
        f"SkipDiff (start {start}, {plan.coarse_forwards + start} forwards) against DDPM-{T}; the paper: 6.0 in time, "
        f"6.25 in FLOPs",
        (
            "batch",
            f"DDPM-{T}, s/picture",
            "SkipDiff, s/picture",
            "ratio",
            f"DDPM-{T}, GFLOPs",
            "SkipDiff, GFLOPs",
            "ratio",
        ),
        rows,
    )


def _of_diffusers(unet: UNet) -> torch.nn.Module | None:
    """A net of diffusers with the same widths, blocks and place of attention, on unfolded pixels as ours."""
    if find_spec("diffusers") is None:
        return None
    ensure_torchvision()
    from diffusers import UNet2DModel

    settings = unet.settings
    widths = [settings["width"] * multiplier for multiplier in settings["multipliers"]]
    resolutions = [settings["image_size"] // settings["patch_size"] // 2**level for level in range(len(widths))]
    attends = [resolution in settings["attention_resolutions"] for resolution in resolutions]
    net: Any = UNet2DModel(
        in_channels=6 * unet.patch_size**2,
        out_channels=3 * unet.patch_size**2,
        block_out_channels=widths,
        layers_per_block=settings["blocks"],
        norm_num_groups=settings["norm_groups"],
        down_block_types=["AttnDownBlock2D" if attend else "DownBlock2D" for attend in attends],
        up_block_types=["AttnUpBlock2D" if attend else "UpBlock2D" for attend in reversed(attends)],
        attention_head_dim=None,
    )
    return net.to(memory_format=torch.channels_last)


class _Folded(torch.nn.Module):
    """Another net behind the interface of ours."""

    def __init__(self, net: torch.nn.Module, patch_size: int) -> None:
        super().__init__()
        self.net, self.patch_size = net, patch_size

    def forward(self, lr_up: torch.Tensor, x_t: torch.Tensor, noise_level: torch.Tensor) -> torch.Tensor:
        x = torch.nn.functional.pixel_unshuffle(torch.cat([lr_up, x_t], dim=1), self.patch_size)
        x = self.net(x.contiguous(memory_format=torch.channels_last), noise_level * 1000).sample
        return torch.nn.functional.pixel_shuffle(x, self.patch_size)


def unets(unet: UNet, repeats: int) -> None:
    """A forward and a training step of our net against those of diffusers' net of equal width."""
    other = _of_diffusers(unet)
    if other is None:
        click.echo('\nunet: left out, diffusers is not installed; pip install "skipdiff[peers]"')
        return
    nets = {"ours": UNet(**unet.settings), "diffusers": _Folded(other, unet.patch_size)}
    alphas_cumprod = cosine_alphas_cumprod(unet.diffusion_steps)
    hr = torch.rand(4, 3, SIDE, SIDE) * 2 - 1
    lr_image = downsample(hr, unet.scale)
    rows = []
    for batch in (1, 8):
        inputs = torch.rand(batch, 3, SIDE, SIDE), torch.randn(batch, 3, SIDE, SIDE), torch.full((batch,), 0.5)
        with torch.inference_mode():
            seconds = in_turns({n: lambda net=net, inputs=inputs: net(*inputs) for n, net in nets.items()}, repeats)  # type: ignore[misc]
        rows.append((f"forward, batch {batch}", *seconds.values(), seconds["diffusers"] / seconds["ours"]))

    def step(net: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
        optimizer.zero_grad(set_to_none=True)
        training_loss(net, unet, alphas_cumprod, hr, lr_image).backward()
        optimizer.step()

    optimizers = {name: torch.optim.Adam(net.parameters(), 1e-5) for name, net in nets.items()}
    seconds = in_turns({n: lambda n=n: step(nets[n], optimizers[n]) for n in nets}, repeats)  # type: ignore[misc]
    rows.append((f"training step, batch {len(hr)}", *seconds.values(), seconds["diffusers"] / seconds["ours"]))
    sizes = [sum(p.numel() for p in net.parameters()) / 1e6 for net in nets.values()]
    rows.append(("parameters, millions", *sizes, sizes[1] / sizes[0]))
    print_table(
        "Our UNet against diffusers' UNet2DModel of equal width", ("", "ours, s", "diffusers, s", "ratio"), rows
    )


def backends(unet: UNet, repeats: int) -> None:
    """A forward in eager mode, by torch.compile, and in ONNX Runtime where that is installed."""
    rows = []
    for shape in ((1, 3, SIDE, SIDE), (8, 3, SIDE, SIDE), (1, 3, 2 * SIDE, 2 * SIDE)):
        inputs = torch.rand(shape), torch.randn(shape), torch.full(shape[:1], 0.5)
        torch.compiler.reset()  # else the second shape is compiled for all shapes
        makers: dict[str, Callable[[Path], Callable[[], Any]]] = {
            "eager": lambda path, x=inputs: lambda: unet(*x),  # type: ignore[misc]
            "torch.compile": lambda path, x=inputs: _compiled(unet, x),  # type: ignore[misc]
        }
        if find_spec("onnxruntime") and find_spec("onnxscript"):
            makers["ONNX Runtime"] = lambda path, x=inputs: _onnx(unet, x, path)  # type: ignore[misc]
        works, ready = {}, {}
        with TemporaryDirectory() as temporary, torch.inference_mode():
            for name, make in makers.items():
                began = time.perf_counter()
                works[name] = make(Path(temporary) / "unet.onnx")
                works[name]()
                ready[name] = time.perf_counter() - began
            seconds = in_turns(works, repeats, settle=True)
            reference = works["eager"]()
            rows += [
                (
                    f"{shape[0]} x {shape[2]} px",
                    name,
                    1e3 * seconds[name],
                    seconds["eager"] / seconds[name],
                    ready[name],
                    float((torch.as_tensor(work()) - reference).abs().max()),
                )
                for name, work in works.items()
            ]
    print_table(
        "Backends of a forward",
        ("batch", "backend", "ms", "eager / backend", "until the first result, s", "largest difference"),
        rows,
    )


def _compiled(unet: UNet, inputs: tuple[torch.Tensor, ...]) -> Callable[[], Any]:
    compiled = torch.compile(unet)
    return lambda: compiled(*inputs)


def _onnx(unet: UNet, inputs: tuple[torch.Tensor, ...], path: Path) -> Callable[[], Any]:
    import onnxruntime

    torch.onnx.export(unet, inputs, str(path), dynamo=True, verbose=False)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    feed = {slot.name: tensor.numpy() for slot, tensor in zip(session.get_inputs(), inputs, strict=True)}
    return lambda: session.run(None, feed)[0]


def memory(checkpoint: str) -> None:
    """Peak memory of a process that enlarges one picture, with tiles and without."""
    code = """
import re, sys
from PIL import Image
from skipdiff_env import Upscaler
upscaler = Upscaler(sys.argv[1], steps=(2, 50), start=1, tile=int(sys.argv[3]))
side = int(sys.argv[2]) // upscaler.scale
upscaler(Image.effect_noise((side, side), 50).convert("RGB"))
print(int(re.search(r"VmHWM:\\s+(\\d+) kB", open("/proc/self/status").read())[1]) / 1024)
"""  # Linux's; what getrusage calls a peak is the parent's where that was larger
    rows = []
    for side, tile in ((512, 256), (512, 0), (1024, 256), (1024, 0), (2048, 256)):
        rows.append((f"{side} x {side}", tile or "none", round(float(_python(code, checkpoint, str(side), str(tile))))))
    print_table("Peak memory of an upscale, two forwards", ("result", "tile", "MiB"), rows)


def _python(code: str, *arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-c", code, *arguments], check=True, capture_output=True, text=True
    ).stdout  # fmt: skip


def startup(checkpoint: str, repeats: int) -> None:
    """Seconds from the start of a process until help, an import, and the first observation are there."""
    environment = f"""
import gymnasium, skipdiff_env
gymnasium.make("SkipDiff-v0", checkpoint={checkpoint!r}).reset(seed=0)
"""
    works: dict[str, Callable[[], object]] = {
        "python -c pass": lambda: _python("pass"),
        "skipdiff --help": lambda: subprocess.run(
            [sys.executable, "-m", "agents.cli", "--help"], check=True, capture_output=True
        ),
        "import skipdiff_env": lambda: _python("import skipdiff_env"),
        "gym.make to the first observation": lambda: _python(environment),
    }
    print_table("Start-up", ("what", "s"), list(in_turns(works, repeats).items()))


def tiles(checkpoint: str, agent: str | None, quality: float | None, photograph: str, repeats: int) -> None:
    """An agent of jumps that decides for each tile of a photograph, beside even schedules in the same tiles.

    And the same agent where it decides once, and the net sees the whole picture. The photograph, one of scikit-image's,
    is shrunk, then enlarged again.
    """
    from skimage import data

    source = agent or str(Path(resolve_checkpoint(checkpoint)) / "agent")
    loaded = load_agent(source) if agent or has_agent(source) else None
    if loaded is None or loaded.config.plan.skip_mode != "jump":
        click.echo("\ntiles: left out, no agent of jumps decides; name one by --agent")
        return
    plan, policy = loaded.config.plan, AgentPolicy(loaded, quality)
    ways = {
        "agent, tile by tile": Upscaler(checkpoint, policy=policy, plan=plan),
        "agent, once": Upscaler(checkpoint, policy=policy, plan=plan, tile=0),
    }
    for forwards in sorted({min(n, plan.first) for n in (3, 5, 9, 18)}):
        levels = even_levels(plan.first, forwards)
        ways[f"even:{forwards}"] = Upscaler(checkpoint, levels=levels, fine_sampler=plan.fine_sampler, tile=policy.tile)
    hr = to_tensor(getattr(data, photograph)()[..., :3])
    scale = ways["agent, once"].scale
    height, width = (side // scale * scale for side in hr.shape[-2:])
    hr = hr[None, :, :height, :width]
    lr = downsample(hr, scale)[0]
    results: dict[str, Upscaled] = {}

    def upscale(name: str) -> None:
        results[name] = ways[name].upscale([lr], [0])[0]

    seconds = in_turns({name: partial(upscale, name) for name in ways}, repeats)
    rows = []
    for name, result in results.items():
        numbers = [tile.nfe for tile in result.tiles]
        measured = [float(make_metric(metric)(result.sr[None], hr)[0]) for metric in ("psnr", "lpips")]
        rows.append((name, f"{min(numbers)} … {max(numbers)}", result.nfe, seconds[name], *measured))
    print_table(
        f"{photograph}, {width} x {height}, tiles of {policy.tile}",
        ("", "forwards of a tile", "mean", "s", "PSNR", "LPIPS"), rows,
    )  # fmt: skip


def cluster(checkpoint: str, pictures: int = 24, side: int = 64) -> None:
    """Pictures a second of `skipdiff upscale --ray` on this machine by one and by two workers."""
    if find_spec("ray") is None:
        click.echo('\ncluster: left out, Ray is not installed; pip install "skipdiff[ray]"')
        return
    upscaler = {"checkpoint": checkpoint, "start": None, "levels": None, "device": "cpu"}
    rows: list[tuple[object, ...]] = []
    with TemporaryDirectory() as temporary:
        sources = sorted(tiny.photographs(Path(temporary, "in"), pictures, side).iterdir())
        for workers in (1, 2):
            out = Path(temporary, str(workers))
            arguments = {"upscaler": upscaler, "options": asdict(UpscaleOptions((str(out),), str(out)))}
            jobs = [Job(source, [(out / source.name, 0)]) for source in sources]
            began = time.perf_counter()
            results = Cluster(workers=workers).spread(make_worker, arguments, chunks(jobs, 1))
            times = [time.perf_counter() - began for _ in results]
            half = pictures // 2  # then all workers are there
            rows.append((workers, times[0], (pictures - half) / (times[-1] - times[half - 1])))
    print_table(
        f"{pictures} pictures of {side} x {side} on a cluster of this machine",
        ("workers", "until the first result, s", "pictures a second, second half"), rows,
    )  # fmt: skip


@click.command(cls=Command, context_settings={"show_default": True})
@click.option("--checkpoint", default="natural-x4")
@click.option("--repeats", default=5)
@click.option("--agent", help="Agent of jumps, for the part tiles.  [default: the checkpoint's]")
@click.option("--quality", type=click.FloatRange(0, 1), help="What that agent is told.  [default: 0.5]")
@click.option("--photograph", default="rocket", help="For the part tiles, by its name in skimage.data.")
@click.option(
    "--only", default="skipdiff,unet,backends,memory,startup,tiles,cluster", help="Parts, separated by commas."
)
def main(checkpoint: str, repeats: int, only: str, agent: str | None, quality: float | None, photograph: str) -> None:
    """Prints the tables."""
    unet = load_unet(checkpoint)
    parts: dict[str, Callable[[], None]] = {
        "skipdiff": lambda: skipdiff(unet, repeats),
        "unet": lambda: unets(unet, repeats),
        "backends": lambda: backends(unet, repeats),
        "memory": lambda: memory(checkpoint),
        "startup": lambda: startup(checkpoint, repeats),
        "tiles": lambda: tiles(checkpoint, agent, quality, photograph, repeats),
        "cluster": lambda: cluster(checkpoint),
    }
    unknown = [name for name in only.split(",") if name not in parts]
    if unknown:
        raise click.BadParameter(
            f"unknown part {', '.join(unknown)}; known are {', '.join(parts)}", param_hint="--only"
        )
    click.echo(f"{torch.get_num_threads()} threads, {SIDE} x {SIDE}, {checkpoint}, median of {repeats} in turns")
    for name in only.split(","):
        parts[name]()


if __name__ == "__main__":
    main()
