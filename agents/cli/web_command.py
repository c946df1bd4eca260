"""The command that serves the web page."""

from typing import Any

import click

from agents.cli.options import DEVICE


@click.command()
@click.option(
    "--checkpoint",
    "--denoiser",
    "checkpoints",
    multiple=True,
    help="Name, folder or Hub id of a further checkpoint on the page; may be repeated.",
)
@click.option(
    "--host", default="127.0.0.1", help="Address to listen at; 0.0.0.0 allows connections from other machines."
)
@click.option("--port", type=click.IntRange(1, 65535), help="TCP port.  [default: the first free one from 7860 on]")
@click.option("--max-mb", type=click.FloatRange(min=0, min_open=True), default=20, help="Largest upload, in MB.")
@click.option(
    "--max-pixels", type=click.IntRange(min=1), default=2**20, help="Largest photograph, width times height in pixels."
)
@click.option("--browser", is_flag=True, help="Open the page in the browser.")
@DEVICE
def web(checkpoints: tuple[str, ...], device: str, max_pixels: int, **served: Any) -> None:
    """Serve a web page that enlarges photographs.

    Without --host, only this machine can reach it. Nothing is sent to other machines, and uploads and results are
    removed when their page is closed. Needs Gradio: pip install "skipdiff[web]".
    """
    from agents.web.app import Workshop
    from agents.web.page import run
    from ddpm.checkpoints import shipped_checkpoints

    names = list(dict.fromkeys([*checkpoints, *sorted(shipped_checkpoints(), key="natural-x4".__ne__)]))
    run(Workshop(names, device, max_pixels), **served)
