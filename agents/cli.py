"""The command line, `skipdiff`. Heavy imports happen inside the commands, so that `--help` is quick."""

from functools import partial
from typing import Any

import click

from agents import export_command, hub_commands, study_commands, training_commands
from agents.command import Group
from agents.options import (
    CHECKPOINT,
    COARSE,
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


@click.group(cls=Group, context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.version_option(package_name="skipdiff")
def main() -> None:
    """SkipDiff: learn which denoising steps a diffusion model can skip."""


@main.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATHS...")
@click.option("-o", "--out", type=click.Path(), required=True, help="Folder (or, for one picture, file).")
@CHECKPOINT
@STEPS
@click.option(
    "--start", type=int, help="Diffusion step where the fine chain begins, 1 … N.  [default: the checkpoint's]"
)
@click.option(
    "--detail",
    type=click.FloatRange(0, 1),
    help="Amount of invented detail, from faithful (0) to rich (1), for a checkpoint with substeps; one forward for "
    "each tile.  [default: an agent chooses it for each tile]",
)
@click.option(
    "--levels",
    help="Schedule: the falling levels at which the network runs, as in 20,13,6,2, or even:8; *M behind a level means "
    "M substeps, as in even:1*12.  [default: the checkpoint's]",
)
@COARSE
@FINE_SAMPLER
@FIRST_STEP
@click.option("--seed", type=int, default=0, help="Seed of the noise, 0 … 2**64 - samples.")
@click.option("--samples", type=click.IntRange(min=1), default=1, help="Different answers for each picture.")
@DEVICE
@click.option(
    "--backend",
    type=click.Choice(["torch", "onnxruntime", "openvino"]),
    default="torch",
    help="Program that runs the networks; all but torch need --device cpu and the extra of the same name.",
)
@click.option(
    "--batch-size",
    type=click.IntRange(min=1),
    default=8,
    help="Pictures of one size enlarged together, and tiles of one forward; fewer where memory does not hold so many.",
)
@click.option(
    "--tile",
    type=click.IntRange(min=0),
    help="Tile side in pixels of the result; 0: no tiles.  [default: 256; for an agent of jumps, the size that it was "
    "trained on]",
)
@click.option(
    "--format",
    type=click.Choice(["png", "jpg", "webp", "avif", "tiff", "same"]),
    help="Format of the results; same: that of the source where it can be written.  [default: png, and of animations "
    "their own]",
)
@click.option("--jpeg-quality", type=click.IntRange(1, 100), default=95, help="Quality of JPEG, and of WebP and AVIF.")
@click.option("--strip-metadata", is_flag=True, help="Leave EXIF, XMP and texts out of the results.")
@click.option("--outscale", type=float, help="Enlarge so many times: with the net, then by Lanczos' filter.")
@click.option(
    "--size",
    metavar="[W]x[H]",
    help="Size of the results, as 1920x, x1080, or 1920x1080 whatever the proportions: with the net, then by Lanczos' "
    "filter.",
)
@click.option("--overwrite", is_flag=True, help="Replace results that exist.")
@click.option("--skip-existing", is_flag=True, help="Keep results that exist, and do the others.")
@click.option("--json", is_flag=True, help="Print a JSON object for each result, one a line, and one for all.")
@click.option(
    "--agent",
    help="Agent that decides instead of --detail, --start or --levels.  [default: the checkpoint's, if it has one]",
)
@click.option(
    "--quality",
    type=click.FloatRange(0, 1),
    help="From few forwards (0) to many (1), for an agent that was trained for a range of prices, such as "
    "natural-x4/agent-steps.  [default: 0.5]",
)
@click.option(
    "--map",
    type=click.Path(),
    help="Also draw the number of steps done in each tile over the result, into this file; for one still picture.",
)
@TRUST_PICKLE
@RAY
@WORKERS
def upscale(ray: str | None, workers: int | None, **options: Any) -> None:
    """Enlarge photographs: files, folders and patterns.

    Results are named <stem>_x4.png, below folders with their subfolder; what lies below --out is not taken for a
    photograph. Of an animation (GIF, WebP, APNG, AVIF) all frames are enlarged, with the same noise, so that it does
    not flicker. An agent that was trained with --skip-mode jump decides for each tile of a large picture.

    With --ray the workers of a cluster enlarge them, which must see the same files. After the loss of a worker the
    others go on; after any other end, --skip-existing does what is left.
    """
    from dataclasses import asdict, fields

    from agents.upscale_jobs import make_upscaler, make_worker
    from agents.upscale_options import UpscaleOptions
    from agents.upscaling import upscale_files

    cluster = make_cluster(ray, workers, options["device"])
    what = UpscaleOptions(**{each.name: options.pop(each.name) for each in fields(UpscaleOptions)})
    spread = None
    if cluster is not None:
        what, options = what.absolute(), options | absolute_paths(options, "checkpoint", "agent")
        spread = partial(cluster.spread, make_worker, {"upscaler": options, "options": asdict(what)})
    if not upscale_files(make_upscaler(**options), what, spread):
        raise click.exceptions.Exit(2)


@main.command()
@click.option(
    "--checkpoint",
    "checkpoints",
    multiple=True,
    help="Name, folder or Hub id of a checkpoint that the page offers beside the shipped ones; may be repeated.",
)
@click.option("--host", default="127.0.0.1", help="Address to listen at; 0.0.0.0 lets other machines in.")
@click.option("--port", type=click.IntRange(1, 65535), help="TCP port.  [default: the first free one from 7860 on]")
@click.option("--max-mb", type=click.FloatRange(min=0, min_open=True), default=20, help="Largest upload, in MB.")
@click.option(
    "--max-pixels", type=click.IntRange(min=1), default=2**20, help="Largest photograph, width times height in pixels."
)
@click.option("--browser", is_flag=True, help="Open the page in the browser.")
@DEVICE
def web(
    checkpoints: tuple[str, ...],
    host: str,
    port: int | None,
    max_mb: float,
    max_pixels: int,
    browser: bool,
    device: str,
) -> None:
    """Serve a page that enlarges photographs and plays episodes, for the browser.

    Without --host, this machine alone can reach it. Nothing leaves the machine, and what was uploaded or computed is
    removed when its page is closed. Needs Gradio: pip install "skipdiff[web]".
    """
    from agents.web import Workshop
    from agents.web_page import run
    from ddpm.checkpoints import shipped_checkpoints

    names = list(dict.fromkeys([*checkpoints, *sorted(shipped_checkpoints(), key="natural-x4".__ne__)]))
    run(Workshop(names, device, max_pixels), host, port, max_mb, browser)


COMMANDS = (
    training_commands.train_ddpm,
    training_commands.train_predictor,
    training_commands.train_substeps,
    training_commands.train_agent,
    training_commands.import_sr3,
    study_commands.evaluate,
    study_commands.reproduce,
    study_commands.enjoy,
    study_commands.plot,
    study_commands.demo,
    study_commands.tabulate,
    study_commands.fetch_judge,
    hub_commands.push_to_hub,
    export_command.export,
)
for command in COMMANDS:
    main.add_command(command)

if __name__ == "__main__":
    main()
