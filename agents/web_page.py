"""The page of `skipdiff web`, in Gradio: two tabs over `agents.web`, and the server behind them."""

import os
import threading
import traceback
import webbrowser
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click

from agents.web import PHOTOGRAPHS, Game, Visit, Visits, Workshop
from ddpm.errors import ConfigError, SkipDiffError
from ddpm.formats import SUFFIXES
from ddpm.images import Picture, write_picture
from skipdiff_env.rules import Action

# Read by Gradio when it is imported: it sends no statistics and asks for no newer version.
os.environ["GRADIO_ANALYTICS_ENABLED"] = "False"
try:
    import gradio as gr
except ImportError as error:
    raise ConfigError(f'the page needs Gradio ({error}); pip install "skipdiff[web]"') from None

# Files of pages whose end the server was not told are removed after a day, looked for every hour; in seconds.
SWEEP = (3600, 86400)
# Leaves an output as it is.
KEEP = gr.skip()
ABOUT = """# SkipDiff
A photograph is enlarged with few steps of a diffusion model. Details that the photograph does not show are made up."""

OWN = "As skipdiff upscale takes them without options. Untick it to choose on the slider."


def in_one_line(*others: Any) -> Callable[[Callable[..., tuple[Any, ...]]], Callable[..., tuple[Any, ...]]]:
    """A decorator by which a handler tells an error in its last output, a line of text.

    Args:
        others: what the outputs before get then.
    """

    def decorate(handler: Callable[..., tuple[Any, ...]]) -> Callable[..., tuple[Any, ...]]:
        @wraps(handler)
        def guarded(*args: Any, **kwargs: Any) -> tuple[Any, ...]:
            try:
                return handler(*args, **kwargs)
            except Exception as error:
                line = " ".join(str(error).split())
                if not isinstance(error, SkipDiffError):  # the page goes on; the terminal shows where it happened
                    traceback.print_exc()
                    line = f"{type(error).__name__}: {line}"
                return (*others, f"Error: {line}")

        return guarded

    return decorate


@dataclass
class Handlers:
    """What happens when something is done on the page.

    Attributes:
        workshop: enlarges and plays.
        visits: the pages that are open.
    """

    workshop: Workshop
    visits: Visits

    def arrive(self, dropped: str | None, request: gr.Request) -> tuple[Any, Any]:
        """A photograph was dropped: it is moved to the other files of the page, and no sample is chosen."""
        return (None if dropped is None else self.visits.of(request.session_hash).adopt(dropped)), None

    def turn(self, checkpoint: str) -> Any:
        """Another checkpoint was chosen: the slider is its."""
        knob = self.workshop.knob(checkpoint)
        return gr.update(
            label=knob.label, minimum=knob.lowest, maximum=knob.highest, step=knob.step, value=knob.value
        )  # fmt: skip

    @in_one_line(None, None, None)
    def enlarge(
        self,
        dropped: str | None,
        sample: str | None,
        checkpoint: str,
        own: bool,
        amount: float,
        seed: float | None,
        request: gr.Request,
        progress: gr.Progress = gr.Progress(),  # noqa: B008  # Gradio finds it here
    ) -> tuple[Any, ...]:
        """Before and after, map, file, and what it took."""
        shop = self.workshop
        if dropped is None and sample is None:
            raise ConfigError("no photograph; drop one, or choose a sample")
        with self.visits.during(request.session_hash) as visit:
            picture = shop.sample(sample or "", checkpoint) if dropped is None else shop.read(dropped)
            chosen = None if own else amount
            result = shop.enlarge(checkpoint, picture, chosen, None if seed is None else int(seed), progress)
            folder = visit.fresh("result")
            stem = (sample or "") if dropped is None else Path(dropped).stem[:64]
            scale = result.before.shape[0] // picture.rgb.shape[0]
            files = {
                "before": Picture(result.before), "after": Picture(result.picture.rgb), "map": Picture(result.map),
                f"{stem}_x{scale}": result.picture,
            }  # fmt: skip
            for name, content in files.items():
                write_picture(content, folder / f"{name}.png")
            before, after, drawing, whole = (str(folder / f"{name}.png") for name in files)
            return (before, after), drawing, whole, result.summary

    @in_one_line(None, None)
    def begin(
        self, picture: str, checkpoint: str, own: bool, amount: float, seed: float | None, request: gr.Request
    ) -> tuple[Any, ...]:
        """A new episode."""
        chosen = None if own else amount
        with self.visits.during(request.session_hash) as visit:
            visit.game = self.workshop.game(checkpoint, picture, chosen, None if seed is None else int(seed))
            return _shown(visit, visit.game)

    @in_one_line(KEEP, KEEP)
    def follow(self, request: gr.Request) -> tuple[Any, ...]:
        """The agent's decisions to the end."""
        return self._play(request, Game.follow)

    def _play(self, request: gr.Request, what: Callable[[Game], None]) -> tuple[Any, ...]:
        with self.visits.during(request.session_hash) as visit:
            if visit.game is None:
                raise ConfigError("no episode has begun; choose a picture, and begin one")
            what(visit.game)
            return _shown(visit, visit.game)

    @in_one_line(KEEP, KEEP)
    def denoise(self, request: gr.Request) -> tuple[Any, ...]:
        """DENOISE was pressed."""
        return self._play(request, lambda game: game.step(Action.DENOISE))

    @in_one_line(KEEP, KEEP)
    def skip(self, request: gr.Request) -> tuple[Any, ...]:
        """SKIP was pressed."""
        return self._play(request, lambda game: game.step(Action.SKIP))

    def leave(self, request: gr.Request) -> None:
        """The page was closed."""
        self.visits.end(request.session_hash)


def _shown(visit: Visit, game: Game) -> tuple[Any, ...]:
    """The files of both drawings of an episode, and what is said of it."""
    folder, files = visit.fresh("episode"), []
    for name, frame in zip(("yours", "agents"), game.frames(), strict=True):
        files.append(None if frame is None else str(folder / f"{name}.png"))
        if frame is not None:
            write_picture(Picture(frame), folder / f"{name}.png")
    return *files, game.describe()


def build(handlers: Handlers) -> gr.Blocks:
    """The page."""
    shop = handlers.workshop
    names = list(shop.folders)
    knob = shop.knob(names[0])
    with gr.Blocks(title="SkipDiff", analytics_enabled=False, delete_cache=SWEEP) as page:
        gr.Markdown(ABOUT)
        with gr.Row():
            checkpoint = gr.Dropdown(names, value=names[0], label="Checkpoint")
            own = gr.Checkbox(True, label="The checkpoint's own steps", info=OWN, elem_id="own")
            amount = gr.Slider(
                knob.lowest, knob.highest, knob.value, step=knob.step, label=knob.label, interactive=False,
                elem_id="amount",
            )  # fmt: skip
            seed = gr.Number(0, label="Seed of the noise", precision=0, minimum=0)
        checkpoint.change(handlers.turn, checkpoint, amount, api_visibility="private")
        own.input(lambda own: gr.update(interactive=not own), own, amount, api_visibility="private")
        settings = [checkpoint, own, amount, seed]
        with gr.Tab("Enlarge"):
            _enlarge_tab(handlers, settings)
        with gr.Tab("Play an episode"):
            _episode_tab(handlers, settings)
        page.unload(handlers.leave)
    return page


def _enlarge_tab(handlers: Handlers, settings: list[Any]) -> None:
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
                label="Forwards of each tile", type="filepath", interactive=False, buttons=["fullscreen"], elem_id="map"
            )
    dropped.upload(handlers.arrive, dropped, [dropped, sample], api_visibility="private")
    sample.input(lambda: None, None, dropped, api_visibility="private")
    button.click(
        handlers.enlarge, [dropped, sample, *settings], [slider, drawing, download, summary],
        concurrency_id="net", show_progress_on=summary, api_visibility="private",
    )  # fmt: skip


def _episode_tab(handlers: Handlers, settings: list[Any]) -> None:
    pictures = handlers.workshop.pictures()
    with gr.Row():
        picture = gr.Dropdown(pictures, value=pictures[0], label="Picture")
        begin = gr.Button("Begin", variant="primary", elem_id="begin")
    with gr.Row():
        denoise = gr.Button("DENOISE", elem_id="denoise")
        skip = gr.Button("SKIP", elem_id="skip")
        follow = gr.Button("Let the agent finish", elem_id="follow")
    status = gr.Textbox(label="Episode", lines=2, max_lines=4, interactive=False, elem_id="status")
    yours = gr.Image(label="Your episode", interactive=False, type="filepath", buttons=[], elem_id="yours")
    agents = gr.Image(label="The agent's episode", interactive=False, type="filepath", buttons=[], elem_id="agents")
    outputs = [yours, agents, status]
    inputs = {begin: [picture, *settings], denoise: None, skip: None, follow: None}
    for button, handler in zip(inputs, (handlers.begin, handlers.denoise, handlers.skip, handlers.follow), strict=True):
        button.click(
            handler, inputs[button], outputs, concurrency_id="net", show_progress_on=status, api_visibility="private"
        )


@contextmanager
def served(workshop: Workshop, host: str, port: int | None, max_mb: float) -> Iterator[str]:
    """Serves the page within the block, and gives its address. At the end nothing is left on disk.

    Args:
        workshop: enlarges and plays.
        host: address to listen at.
        port: TCP port; None: the first that is free from 7860 on.
        max_mb: largest file that may be uploaded, in MB.

    Raises:
        ConfigError: the address cannot be listened at.
    """
    with TemporaryDirectory(prefix="skipdiff-web-") as root:
        os.environ["GRADIO_TEMP_DIR"] = root
        page = build(Handlers(workshop, Visits(Path(root))))
        page.queue(max_size=32, default_concurrency_limit=1)
        try:
            _, address, _ = page.launch(
                server_name=host, server_port=port, max_file_size=f"{max(1, round(max_mb * 1000))}kb",
                share=False, run_history=False, enable_monitoring=False, ssr_mode=False, pwa=False, mcp_server=False,
                footer_links=[], show_error=True, quiet=True, inline=False, prevent_thread_lock=True,
                theme=gr.themes.Default(font=["system-ui", "sans-serif"], font_mono=["monospace"]),
            )  # fmt: skip
        except OSError as error:
            raise ConfigError(f"cannot listen at {host}, port {port or 'from 7860 on'} ({error})") from None
        try:
            yield address
        finally:
            page.close(verbose=False)


def run(workshop: Workshop, host: str, port: int | None, max_mb: float, browser: bool) -> None:
    """Serves the page until the program is ended by Ctrl+C or a signal."""
    with served(workshop, host, port, max_mb) as address:
        click.echo(f"SkipDiff is at {address} until Ctrl+C is pressed.")
        if browser:
            webbrowser.open_new_tab(address)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            click.echo("closed")
