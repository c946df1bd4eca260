"""The work of `skipdiff upscale` on each picture, in this process or in workers of a cluster."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from agents.upscaling.options import UpscaleOptions
from agents.upscaling.report import Event, Recorder, Report
from ddpm.checkpoints import load_denoiser, resolve_checkpoint
from ddpm.pictures.formats import check_output
from ddpm.pictures.images import (
    Header,
    Picture,
    check_folder,
    read_animation,
    read_header,
    read_picture,
    resized,
    to_uint8,
    write_picture,
)
from ddpm.util.errors import ConfigError, SkipDiffError
from ddpm.util.progress import say
from skipdiff_env.plan import PARTS, Plan
from skipdiff_env.rendering import draw_map, map_size
from skipdiff_env.upscaler import Upscaler, check_room

# Least number of chunks in which jobs are distributed, so that all workers have something to do.
LEAST_CHUNKS = 32


@dataclass
class Job:
    """One source file with its results.

    Attributes:
        source: the file.
        targets: path of each result, with its noise seed.
        frames: number of frames that are enlarged; 1 for a still picture.
    """

    source: Path
    targets: list[tuple[Path, int]]
    frames: int = 1

    @property
    def results(self) -> int:
        """Number of pictures that are computed, including frames."""
        return len(self.targets) * self.frames


@dataclass
class _Waiting:
    """A decoded picture that waits for other pictures of its size."""

    source: Path
    target: Path
    seed: int
    picture: Picture
    notes: list[str]


class Run:
    """A run over jobs, which enlarges pictures of one size together."""

    def __init__(
        self, upscaler: Upscaler, options: UpscaleOptions, report: Report, advance: Callable[[float], object]
    ) -> None:
        self.upscaler, self.options, self.report, self.advance = upscaler, options, report, advance
        self.waiting: list[_Waiting] = []

    def add(self, job: Job) -> None:
        """Read a source. It is enlarged as soon as there are enough pictures of its size."""
        with self._reporting(job.source):
            header = read_header(job.source)
            if job.frames > 1:
                self._animation(job, header)
                return
            picture = read_picture(job.source)
            height, width = picture.rgb.shape[:2]
            largest = self.upscaler.largest_batch(height * self.upscaler.scale, width * self.upscaler.scale)
            self._check(job.targets[0][0], width, height)
            notes = [f"the first of {header.frames} pictures in {job.source} is taken"] if header.frames > 1 else []
            for target, seed in job.targets:
                other = self.waiting and self.waiting[0].picture.rgb.shape != picture.rgb.shape
                if other or len(self.waiting) >= largest:
                    self.flush()
                self.waiting.append(_Waiting(job.source, target, seed, picture, notes))

    def _animation(self, job: Job, header: Header) -> None:
        """Read, enlarge and write all frames of an animation."""
        self.flush()
        self._check(job.targets[0][0], header.width, header.height)
        # before the frames are decoded, since all of them are kept in memory
        check_room(header.frames, header.width * self.upscaler.scale, header.height * self.upscaler.scale)
        animation = read_animation(job.source)
        for target, seed in job.targets:
            with self._reporting(job.source, target):
                check_folder(target.parent)
                large, result = self.upscaler.enlarge_animation(animation, seed, self.advance)
                frames = [
                    self._finished(frame, small) for frame, small in zip(large.frames, animation.frames, strict=True)
                ]
                notes = write_picture(replace(large, frames=frames), target, self.options.jpeg_quality)
                self.report.finish(job.source, target, frames[0].rgb.shape, len(frames), result, notes)

    def flush(self) -> None:
        """Enlarge and write the waiting pictures."""
        batch, self.waiting = self.waiting, []
        ready = []
        for item in batch:
            with self._reporting(item.source, item.target):
                check_folder(item.target.parent)
                ready.append(item)
        if not ready:
            return
        try:
            results = self.upscaler.enlarge([i.picture for i in ready], [i.seed for i in ready], self.advance)
        except SkipDiffError as error:
            for item in ready:
                self._fail(error, item.source, item.target)
            return
        for item, (large, result) in zip(ready, results, strict=True):
            with self._reporting(item.source, item.target):
                large = self._finished(large, item.picture)
                notes = item.notes + write_picture(large, item.target, self.options.jpeg_quality)
                if self.options.map is not None:
                    write_picture(Picture(draw_map(to_uint8(result.sr), result.tiles)), self.options.map)
                self.report.finish(item.source, item.target, large.rgb.shape, 1, result, notes)

    @contextmanager
    def _reporting(self, source: Path, target: Path | None = None) -> Iterator[None]:
        """Report an error of the project as the failure of a picture."""
        try:
            yield
        except SkipDiffError as error:
            self._fail(error, source, target)

    def _fail(self, error: SkipDiffError, source: Path, target: Path | None) -> None:
        """Report the failure of a picture, with the name of its file."""
        message = str(error)
        self.report.fail(source, message if str(source) in message else f"{source}: {message}", target)

    def _check(self, target: Path, width: int, height: int) -> None:
        """Raise ImageError if the result of a picture of this size, or the map, could not be written.

        The check runs before anything is computed for the picture.
        """
        scale = self.upscaler.scale
        size = self.options.final_size(width, height, scale)
        check_output(target, *size)
        if self.options.map is not None:
            check_output(Path(self.options.map), *map_size(width * scale, height * scale))
        check_room(1, *size)

    def _finished(self, large: Picture, small: Picture) -> Picture:
        """Return the enlarged picture with the size and the metadata that the options set."""
        height, width = small.rgb.shape[:2]
        size = self.options.final_size(width, height, self.upscaler.scale)
        if size != (large.rgb.shape[1], large.rgb.shape[0]):
            large = resized(large, *size)
        if not self.options.strip_metadata:
            return large
        return replace(large, exif=None, xmp=None, details=replace(large.details, texts={}))


# --- on a cluster ---


def chunks(jobs: Sequence[Job], batch_size: int) -> list[list[Job]]:
    """Return the jobs in chunks of a batch, or of fewer jobs if there would be few chunks."""
    size = min(batch_size, max(1, len(jobs) // LEAST_CHUNKS))
    return [list(jobs[i : i + size]) for i in range(0, len(jobs), size)]


def make_worker(
    upscaler: Mapping[str, Any], options: UpscaleOptions
) -> Callable[[Sequence[Job]], tuple[list[Event], int]]:
    """Return a function that enlarges the pictures of a chunk.

    Args:
        upscaler: arguments of `make_upscaler`.
        options: options for sources and results.

    Returns:
        A function of an element of `chunks`. It returns the events for a report, and the expected number of results.
    """
    made = make_upscaler(**upscaler)

    def work(jobs: Sequence[Job]) -> tuple[list[Event], int]:
        recorder = Recorder()
        run = Run(made, options, recorder, lambda part: None)
        for job in jobs:
            run.add(job)
        run.flush()
        return recorder.events, sum(job.results for job in jobs)

    return work


def make_upscaler(
    agent: str | None = None, quality: float | None = None, trust_pickle: bool = False, **options: Any
) -> Upscaler:
    """Return the upscaler for the options of the command.

    Args:
        agent: the agent that decides; None: the agent of the checkpoint, if neither a start nor a schedule is given and
            the agent was trained for these options.
        quality: quality of an agent that observes the price, 0 … 1.
        trust_pickle: whether the weights of a denoiser may be a pickle.
        options: arguments of `Upscaler`.

    Raises:
        SkipDiffError: the options do not fit together, or something does not exist.
    """
    denoiser = load_denoiser(options["checkpoint"], options["device"], trust_pickle)
    policy = _agent_policy(agent, quality, options, denoiser.settings)
    if quality is not None and not policy:
        raise ConfigError("--quality is for an agent, and none decides here; give --agent, or leave --quality out")
    return Upscaler(**{**options, "checkpoint": denoiser}, **policy)


def _agent_policy(
    agent: str | None,
    quality: float | None,
    options: Mapping[str, Any],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the agent that decides and its plan, as arguments of the upscaler; empty without an agent."""
    fixed = any(options.get(name) is not None for name in ("start", "levels", "detail"))
    if agent is not None and fixed:
        raise ConfigError("--agent, --detail, --start and --levels all say which steps are done; give one of them")
    own = Path(resolve_checkpoint(options["checkpoint"])) / "agent"
    if agent is None and (fixed or not own.is_dir()):
        return {}
    from agents.agent import load_agent
    from agents.playing import AgentPolicy

    loaded = load_agent(agent or own, options["device"])
    asked = {name: options.get(name) for name in PARTS}
    plan = Plan.resolve(settings, loaded.config.plan, **asked)
    if agent is None and loaded.config.plan != plan:
        return {}  # other settings than those of the checkpoint's agent
    loaded.check(plan)
    if agent is not None and (told := loaded.checkpoint_note(options["checkpoint"])):
        say(f"Note: {told}")
    return {"policy": AgentPolicy(loaded, quality), "plan": plan}
