"""The page of `skipdiff web` in Gradio, and its server."""

import hashlib
import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import Any

import click

from agents.web.app import Workshop, left_out
from ddpm.pictures.formats import SUFFIXES
from ddpm.pictures.images import Picture, write_picture
from ddpm.util.errors import ConfigError, ImageError, SkipDiffError, one_line
from ddpm.util.packages import package
from skipdiff_env.pictures import PHOTOGRAPHS

# Gradio reads this when it is imported; it then does not send statistics or look for newer versions.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
package("gradio", "web")
import gradio as gr  # noqa: E402

# Interval and age, in seconds, for the removal of files of pages whose end the server has missed.
SWEEP = (3600, 86400)
# Arguments of the events that run a network: one at a time.
NET: dict[str, Any] = {"concurrency_id": "net", "api_visibility": "private"}
ABOUT = """# SkipDiff
A photograph is enlarged with few steps of a diffusion model. Details that the photograph does not show are made up."""


@dataclass
class Handlers:
    """The functions behind the page.

    Gradio shows an error of the project in a line, until the user closes it.

    Attributes:
        workshop: the upscalers.
        root: folder of the files of all pages, with a subfolder for each page.
        closed: the sessions of closed pages.
    """

    workshop: Workshop
    root: Path
    closed: set[str | None] = field(default_factory=set)

    @contextmanager
    def during(self, request: gr.Request) -> Iterator[None]:
        """Let Gradio show errors of the project, and remove the files of a page that is closed in the meantime."""
        try:
            yield
        except SkipDiffError as error:
            raise gr.Error(one_line(error), duration=None, print_exception=False) from None
        finally:
            if request.session_hash in self.closed:
                shutil.rmtree(self.folder(request), ignore_errors=True)

    def folder(self, request: gr.Request) -> Path:
        """Return the folder of a page."""
        return self.root / hashlib.sha256((request.session_hash or "").encode()).hexdigest()[:16]

    def fresh(self, request: gr.Request, part: str) -> Path:
        """Return a new folder for the files of a part of the page, and remove the files that it showed before."""
        folder = self.folder(request)
        folder.mkdir(exist_ok=True)
        for old in folder.glob(f"{part}-*"):
            shutil.rmtree(old, ignore_errors=True)
        return Path(mkdtemp(prefix=f"{part}-", dir=folder))

    def arrive(self, dropped: str | None, request: gr.Request) -> tuple[str | None, None]:
        """Move an uploaded photograph to the other files of the page, and clear the choice of a sample."""
        if dropped is None:
            return None, None
        with self.during(request):
            own = self.fresh(request, "dropped") / Path(dropped).name
            try:
                shutil.move(dropped, own)
            except OSError:
                raise ImageError("the photograph is no longer there; drop it again") from None
            return str(own), None

    def turn(self, checkpoint: str) -> tuple[Any, Any]:
        """Return the box and the slider of another checkpoint."""
        label, info = self.workshop.box(checkpoint)
        return gr.update(label=label, info=info), gr.update(**self.workshop.knob(checkpoint))

    def enlarge(
        self,
        dropped: str | None,
        sample: str | None,
        checkpoint: str,
        own: bool,
        amount: float,
        seed: int | None,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  # Gradio finds it here
    ) -> tuple[Any, ...]:
        """Return the files of before and after, of the map and of the result, and the summary.

        There is no map for a single part.
        """
        shop = self.workshop
        with self.during(request):
            if dropped is None and sample is None:
                raise ConfigError("no photograph; drop one, or choose a sample")
            picture = shop.sample(sample or "", checkpoint) if dropped is None else shop.read(dropped)
            result = shop.enlarge(checkpoint, picture, None if own else amount, seed, progress)
            folder = self.fresh(request, "result")
            stem = (sample or "") if dropped is None else Path(dropped).stem[:64]
            scale = result.before.shape[0] // picture.rgb.shape[0]
            files = {
                "before": Picture(result.before), "after": Picture(result.picture.rgb), "map": Picture(result.map),
                f"{stem}_x{scale}": result.picture,
            }  # fmt: skip
            for name, content in files.items():
                write_picture(content, folder / f"{name}.png")
            before, after, drawing, whole = (str(folder / f"{name}.png") for name in files)
            note = "" if dropped is None else left_out(dropped)
            shown = gr.update(value=drawing, visible=result.parts > 1)
            return (before, after), shown, whole, f"{result.summary} {note}".strip()

    def redraw(self, request: gr.Request, *settings: Any) -> tuple[Any, ...]:
        """Enlarge again after a change of the box or the slider, if a result is shown."""
        if not list(self.folder(request).glob("result-*")):
            return (gr.skip(),) * 4
        arguments: Any = (*settings, request)
        return self.enlarge(*arguments)

    def leave(self, request: gr.Request) -> None:
        """Remove the files of a closed page."""
        self.closed.add(request.session_hash)
        shutil.rmtree(self.folder(request), ignore_errors=True)


def build(handlers: Handlers) -> gr.Blocks:
    """Return the page."""
    shop = handlers.workshop
    names = shop.checkpoints
    label, info = shop.box(names[0])
    with gr.Blocks(title="SkipDiff", analytics_enabled=False, delete_cache=SWEEP) as page:
        gr.Markdown(ABOUT)
        with gr.Row():
            checkpoint = gr.Dropdown(names, value=names[0], label="Checkpoint")
            own = gr.Checkbox(True, label=label, info=info, elem_id="own")
            amount = gr.Slider(**shop.knob(names[0]), interactive=False, buttons=[], elem_id="amount")
            seed = gr.Number(0, label="Seed of the noise", precision=0, minimum=0)
        checkpoint.change(handlers.turn, checkpoint, [own, amount], api_visibility="private")
        own.input(lambda own: gr.update(interactive=not own), own, amount, api_visibility="private")
        settings = [checkpoint, own, amount, seed]
        _body(handlers, settings)
        page.unload(handlers.leave)
    return page


def _body(handlers: Handlers, settings: list[Any]) -> None:
    """Lay out the part of the page below the settings."""
    with gr.Row():
        with gr.Column(scale=1):
            dropped = gr.File(
                label="Photograph", file_types=sorted(SUFFIXES), type="filepath", height=140, elem_id="photograph"
            )
            sample = gr.Radio(list(PHOTOGRAPHS), label="or a sample, shrunk")
            button = gr.Button("Enlarge", variant="primary", elem_id="enlarge")
            summary = gr.Textbox(label="Result", lines=4, max_lines=10, interactive=False, elem_id="summary")
            download = gr.DownloadButton("Download in full size", elem_id="download")
        with gr.Column(scale=2):
            slider = gr.ImageSlider(
                label="Before (bicubic) and after", type="filepath", interactive=False, buttons=["fullscreen"],
                max_height=640, elem_id="slider",
            )  # fmt: skip
            drawing = gr.Image(
                label="Detail that was chosen for each part", type="filepath", interactive=False, visible=False,
                buttons=["fullscreen"], elem_id="map",
            )  # fmt: skip
    dropped.upload(handlers.arrive, dropped, [dropped, sample], api_visibility="private")
    sample.input(lambda: None, None, dropped, api_visibility="private")
    inputs, outputs = [dropped, sample, *settings], [slider, drawing, download, summary]
    button.click(handlers.enlarge, inputs, outputs, show_progress_on=summary, **NET)
    _, own, amount, _ = settings
    moved = [own.input, amount.input]
    gr.on(moved, handlers.redraw, inputs, outputs, trigger_mode="always_last", show_progress_on=summary, **NET)


@contextmanager
def served(workshop: Workshop, host: str, port: int | None, max_mb: float, browser: bool = False) -> Iterator[str]:
    """Serve the page within the block, and yield its address. At the end all files are removed.

    Args:
        workshop: the upscalers.
        host: address to listen at.
        port: TCP port; None: the first free port from 7860 on.
        max_mb: largest size of an upload, in MB.
        browser: whether to open the page in the browser.

    Raises:
        ConfigError: the server cannot listen at the address.
    """
    with TemporaryDirectory(prefix="skipdiff-web-") as root:
        os.environ["GRADIO_TEMP_DIR"] = root
        page = build(Handlers(workshop, Path(root)))
        page.queue(max_size=32, default_concurrency_limit=1)
        try:
            _, address, _ = page.launch(
                server_name=host, server_port=port, max_file_size=f"{max(1, round(max_mb * 1000))}kb",
                share=False, run_history=False, enable_monitoring=False, ssr_mode=False, pwa=False, mcp_server=False,
                footer_links=[], show_error=True, quiet=True, inline=False, inbrowser=browser, prevent_thread_lock=True,
                theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            )  # fmt: skip
        except OSError as error:
            raise ConfigError(f"cannot listen at {host}, port {port or 'from 7860 on'} ({error})") from None
        try:
            yield address
        finally:
            page.close(verbose=False)


def run(workshop: Workshop, host: str, port: int | None, max_mb: float, browser: bool) -> None:
    """Serve the page until the program is ended by Ctrl+C or a signal."""
    with served(workshop, host, port, max_mb, browser) as address:
        click.echo(f"SkipDiff is at {address} until Ctrl+C is pressed.")
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            click.echo("closed")
