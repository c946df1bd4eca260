"""The command that enlarges photographs."""

from functools import partial
from typing import Any

import click

from agents.cli.options import (
    DENOISER,
    DEVICE,
    PLAN,
    QUALITY,
    TRUST_PICKLE,
    options_of,
)
from agents.upscaling.options import UpscaleOptions


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATHS...")
@click.option("-o", "--out", type=click.Path(), required=True, help="Folder (or, for one picture, file).")
@DENOISER
@PLAN
@click.option(
    "--start", type=int, help="Diffusion step at which the fine chain begins, 1 … N.  [default: the checkpoint's]"
)
@click.option(
    "--detail",
    type=click.FloatRange(0, 1),
    help="Amount of invented detail, from faithful (0) to rich (1), for a checkpoint with substeps; one forward for "
    "each tile.  [default: the checkpoint's]",
)
@click.option(
    "--levels",
    help="Schedule: the falling levels at which the network runs, as in 20,13,6,2; even:8 means 8 even steps, and *M "
    "after a level means M substeps, as in even:1*12.  [default: the checkpoint's]",
)
@click.option(
    "--agent",
    help="Agent that decides instead of --detail, --start or --levels.  [default: the checkpoint's, if it has one]",
)
@QUALITY
@options_of(UpscaleOptions, leave_out=["paths", "out"])
@DEVICE
@click.option(
    "--backend",
    type=click.Choice(["torch", "onnxruntime", "openvino"]),
    default="torch",
    help="Library that runs the networks; all but torch need --device cpu and the extra of the same name.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=8,
    help="Number of pictures of one size that are enlarged together, and of tiles in a forward; lowered if memory "
    "is short.",
)
@click.option(
    "--tile",
    type=click.IntRange(min=0),
    help="Side of a tile in pixels of the result; 0: no tiles.  [default: 256; for an agent of jumps, the size "
    "that it was trained on]",
)
@TRUST_PICKLE
@click.option(
    "--ray",
    metavar="[ADDRESS]",
    is_flag=False,
    flag_value="",
    help="Enlarge on a Ray cluster: auto, HOST:PORT or ray://HOST:PORT; without an address, start a cluster on this "
    "machine.",
)
@click.option(
    "--workers",
    type=click.IntRange(min=1),
    help="Number of workers on the cluster.  [default: one for each CPU, or GPU]",
)
def upscale(ray: str | None, workers: int | None, **options: Any) -> None:
    """Enlarge photographs: files, folders and patterns.

    Results are named <stem>_x4.png, and pictures in subfolders keep their subfolder. Pictures below --out are not
    taken as input. All frames of an animation (GIF, WebP, APNG, AVIF) are enlarged with the same noise, so that it does
    not flicker. An agent that was trained with --skip-mode jump decides for each tile of a large picture.

    With --ray, the workers of a cluster enlarge the pictures; they must see the same files. If a worker is lost, the
    others continue. After any other interruption, --skip-existing makes the missing results.
    """
    from dataclasses import fields

    from agents.upscaling.jobs import make_upscaler, make_worker
    from agents.upscaling.run import upscale_files
    from ddpm.util.errors import ConfigError

    what, spread = UpscaleOptions(**{each.name: options.pop(each.name) for each in fields(UpscaleOptions)}), None
    if ray is not None:
        from agents.cluster import Cluster

        cluster = Cluster(ray, workers, options["device"])
        spread = partial(cluster.spread, make_worker, {"upscaler": options, "options": what})
    elif workers is not None:
        raise ConfigError("--workers is for --ray; give --ray as well, or leave --workers out")
    if not upscale_files(make_upscaler(**options), what, spread):
        raise click.exceptions.Exit(2)
