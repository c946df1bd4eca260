"""The command that enlarges photographs."""

from functools import partial
from typing import Any

import click

from agents.cli.options import (
    COARSE,
    DENOISER,
    DEVICE,
    FINE_SAMPLER,
    FIRST_STEP,
    RAY,
    STEPS,
    TRUST_PICKLE,
    WORKERS,
    absolute_paths,
    make_cluster,
)


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATHS...")
@click.option("-o", "--out", type=click.Path(), required=True, help="Folder (or, for one picture, file).")
@DENOISER
@STEPS
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
@COARSE
@FINE_SAMPLER
@FIRST_STEP
@click.option("--seed", type=int, default=0, help="Seed of the noise, 0 … 2**64 - samples.")
@click.option("--samples", type=click.IntRange(min=1), default=1, help="Number of different results for each picture.")
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
@click.option(
    "--format",
    type=click.Choice(["png", "jpg", "webp", "avif", "tiff", "same"]),
    help="Format of the results; same: that of the source, if it can be written.  [default: png; for animations, that "
    "of the source]",
)
@click.option("--jpeg-quality", type=click.IntRange(1, 100), default=95, help="Quality of JPEG, WebP and AVIF.")
@click.option("--strip-metadata", is_flag=True, help="Leave EXIF, XMP and texts out of the results.")
@click.option(
    "--outscale", type=float, help="Factor of enlargement: resizes the network's result with the Lanczos filter."
)
@click.option(
    "--size",
    metavar="[W]x[H]",
    help="Size of the results, as 1920x, x1080, or 1920x1080 with other proportions: resizes the network's result with "
    "the Lanczos filter.",
)
@click.option("--overwrite", is_flag=True, help="Replace results that exist.")
@click.option("--skip-existing", is_flag=True, help="Keep results that exist, and make the others.")
@click.option(
    "--json", is_flag=True, help="Print one JSON object per line for each result, and a last one for the whole run."
)
@click.option(
    "--agent",
    help="Agent that decides instead of --detail, --start or --levels.  [default: the checkpoint's, if it has one]",
)
@click.option(
    "--quality",
    type=click.FloatRange(0, 1),
    help="From few forwards (0) to many (1), for an agent that was trained for a range of prices.  [default: 0.5]",
)
@click.option(
    "--map",
    type=click.Path(),
    help="Picture to draw, with the number of steps in each tile; needs a single still picture.",
)
@TRUST_PICKLE
@RAY
@WORKERS
def upscale(ray: str | None, workers: int | None, **options: Any) -> None:
    """Enlarge photographs: files, folders and patterns.

    Results are named <stem>_x4.png, and pictures in subfolders keep their subfolder. Pictures below --out are not
    taken as input. All frames of an animation (GIF, WebP, APNG, AVIF) are enlarged with the same noise, so that it does
    not flicker. An agent that was trained with --skip-mode jump decides for each tile of a large picture.

    With --ray, the workers of a cluster enlarge the pictures; they must see the same files. If a worker is lost, the
    others continue. After any other interruption, --skip-existing makes the missing results.
    """
    from dataclasses import asdict, fields

    from agents.upscaling.jobs import make_upscaler, make_worker
    from agents.upscaling.options import UpscaleOptions
    from agents.upscaling.run import upscale_files

    cluster = make_cluster(ray, workers, options["device"])
    what = UpscaleOptions(**{each.name: options.pop(each.name) for each in fields(UpscaleOptions)})
    spread = None
    if cluster is not None:
        what, options = what.absolute(), options | absolute_paths(options, "checkpoint", "agent")
        spread = partial(cluster.spread, make_worker, {"upscaler": options, "options": asdict(what)})
    if not upscale_files(make_upscaler(**options), what, spread):
        raise click.exceptions.Exit(2)
