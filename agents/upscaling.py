"""What `skipdiff upscale` does: finds pictures, enlarges them in batches, and tells what became of each."""

import json
import re
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click

from agents.upscale_options import UpscaleOptions
from ddpm.errors import ConfigError, SkipDiffError
from ddpm.formats import OUTPUTS, check_output, output_format
from ddpm.images import (
    Picture,
    check_folder,
    expand,
    read_animation,
    read_header,
    read_picture,
    resized,
    to_uint8,
    write_picture,
)
from ddpm.progress import progress, say
from skipdiff_env.rendering import draw_map
from skipdiff_env.upscaler import Upscaled, Upscaler, check_room

# How names of results end: _x4, _x2.5, _1920x, _x1080 or _1920x1080, and the number of the sample.
_RESULT = re.compile(r"_(x\d+(\.\d+)?|\d+x\d*)(_\d+)?$")
_MAY_MOVE = frozenset({".gif", ".png", ".apng", ".webp", ".avif", ".avifs"})


@dataclass
class _Job:
    """One source with the results that are wanted of it.

    Attributes:
        source: the file.
        targets: where each result goes, and its noise seed.
        frames: number of frames that are enlarged; 1 for a still picture.
    """

    source: Path
    targets: list[tuple[Path, int]]
    frames: int = 1


@dataclass
class _Report:
    """What became of the pictures so far; tells it on the way, and all of it at the end."""

    as_json: bool
    done: int = 0
    skipped: int = 0
    forwards: float = 0
    failures: list[str] = field(default_factory=list)
    began: float = field(default_factory=time.perf_counter)

    def _emit(self, **content: Any) -> None:
        if self.as_json:
            click.echo(json.dumps(content))

    def note(self, message: str) -> None:
        say(f"Note: {_one_line(message)}")

    def fail(self, source: object, error: object, target: Path | None = None) -> None:
        """Tells of a picture that cannot be done; `error` names it."""
        message = _one_line(error)
        self.failures.append(message)
        say(f"Error: {message}")
        self._emit(status="failed", source=str(source), target=None if target is None else str(target), error=message)

    def skip(self, source: Path, target: Path) -> None:
        self.skipped += 1
        self._emit(status="skipped", source=str(source), target=str(target))

    def finish(
        self,
        source: Path,
        target: Path,
        size: tuple[int, int],
        frames: int,
        result: Upscaled,
        notes: list[str],
    ) -> None:
        self.done += 1
        self.forwards += result.nfe
        for note in notes:
            self.note(f"{target}: {note}")
        self._emit(
            status="done", source=str(source), target=str(target), width=size[0], height=size[1], frames=frames,
            start=result.start, forwards=round(result.nfe, 3), seconds=round(result.seconds, 3), notes=notes,
        )  # fmt: skip

    def close(self) -> None:
        """The summary, failures last."""
        seconds = time.perf_counter() - self.began
        self._emit(
            status="summary", done=self.done, skipped=self.skipped, failed=len(self.failures),
            forwards=round(self.forwards, 3), seconds=round(seconds, 3),
        )  # fmt: skip
        if not self.as_json and (self.done or self.skipped):
            parts = []
            if self.done:
                parts = [
                    f"{self.done} pictures, {self.forwards / self.done:g} forwards each",
                    f"{seconds / self.done:.2f} s each",
                ]
            if self.skipped:
                parts.append(f"{self.skipped} skipped, as they exist")
            click.echo(", ".join(parts))
        if self.failures and self.done + self.skipped:
            say(f"{len(self.failures)} failed:")
            for message in self.failures:
                say(f"  {message}")


def _one_line(message: object) -> str:
    return " ".join(str(message).split())


def _sources(options: UpscaleOptions, report: _Report) -> list[tuple[Path, Path]]:
    """The pictures to enlarge, each with its folder below `out`; results of this and earlier runs are none of them."""
    out = options.folder.resolve()
    resolved: dict[Path, Path] = {}

    def place(path: Path) -> Path:
        if path.parent not in resolved:
            resolved[path.parent] = path.parent.resolve()
        return resolved[path.parent]

    found: dict[Path, tuple[Path, Path, bool]] = {}
    for given in options.paths:
        try:
            pairs = expand(given)
        except SkipDiffError as error:
            report.fail(given, error)
            continue
        outright = Path(given).is_file()
        # the folder above all that a pattern may match
        root = Path(given).resolve() if Path(given).is_dir() else _literal_root(given).resolve()
        inside = not options.to_file and out != root and out.is_relative_to(root)
        for path, named in pairs:
            below_out = place(path).is_relative_to(out)
            if not outright and inside and below_out:
                continue
            key = place(path) / path.name
            found.setdefault(key, (path, path.relative_to(named).parent, not outright and below_out))
    # stems of the sources whose results go into a folder: there, <stem>_x4.png is such a result
    goes_to: dict[Path, set[str]] = {}
    for path, folder, _ in found.values():
        goes_to.setdefault(out if options.to_file else (out / folder), set()).add(path.stem)
    kept, results = [], []
    for key, (path, folder, suspect) in found.items():
        match = _RESULT.search(path.stem)
        known = match is not None and path.stem[: match.start()] in goes_to.get(key.parent, ())
        itself = options.to_file and len(found) > 1 and key == Path(options.out).resolve()
        if known or itself or (suspect and match is not None):
            results.append(path)
        else:
            kept.append((path, folder))
    if results:
        report.note(f"{len(results)} files in --out are named like results and left out, such as {results[0]}")
    if not kept and not report.failures:
        report.fail(options.out, f"nothing to enlarge: all pictures found are results in {options.out}")
    return kept


def _literal_root(pattern: str) -> Path:
    """The folder in which a pattern begins."""
    parts = Path(pattern).parts
    return Path(*[part for i, part in enumerate(parts) if not any(set("*?[") & set(p) for p in parts[: i + 1])])


def _plan(options: UpscaleOptions, scale: int, report: _Report) -> list[_Job]:
    """The jobs that can be done, as far as names and headers tell; tells of the others."""
    jobs = []
    taken: set[Path] = set()
    for source, folder in _sources(options, report):
        frames = 1
        if source.suffix.lower() in _MAY_MOVE or not source.suffix:
            try:
                header = read_header(source)
                frames = header.frames if header.animated else 1
            except SkipDiffError:
                pass  # reading it will tell
        if options.to_file:
            name = Path(options.out)
        else:
            ending = _ending(options, source, frames)
            name = Path(options.out) / folder / f"{source.stem}_{options.label(scale)}{ending}"
        names = [name]
        if options.samples > 1:
            names = [name.with_name(f"{name.stem}_{k}{name.suffix}") for k in range(options.samples)]
        if not output_format(name).animated:
            frames = 1
        targets: list[tuple[Path, int]] = []
        for k, target in enumerate(names):
            try:
                exists = target.exists() or target.is_symlink()
                trouble = f"{target} is a folder" if target.is_dir() else None
            except OSError as error:  # a name that is too long, for one
                exists, trouble = False, f"cannot write {target}: {error.strerror}; give --out a file with another name"
            if trouble is None and target in taken:
                trouble = f"another picture of this run is written to {target} already; give it a run of its own"
            elif trouble is None and exists and options.skip_existing:
                report.skip(source, target)
                continue
            elif trouble is None and exists and not options.overwrite:
                trouble = (
                    f"{target} exists; replace it with --overwrite, keep it with --skip-existing, or give another --out"
                )
            if trouble is not None:
                report.fail(source, f"{source}: {trouble}", target)
                targets = []
                break
            targets.append((target, options.seed + k))
        if targets:
            jobs.append(_Job(source, targets, frames))
            taken.update(target for target, _ in targets)
    return jobs


def _ending(options: UpscaleOptions, source: Path, frames: int) -> str:
    """The ending of a result, with the dot."""
    own = source.suffix if source.suffix.lower() in OUTPUTS else ".png"
    if options.format == "same" or (options.format is None and frames > 1):
        return own
    return f".{options.format or 'png'}"


def upscale_files(upscaler: Upscaler, options: UpscaleOptions) -> bool:
    """Enlarges files, folders and patterns, and prints what became of them.

    What cannot be done is told in one line on standard error as soon as it is known, and again at the end; the rest is
    done.

    Returns:
        Whether all pictures were done.

    Raises:
        ImageError: nothing can be written to `options.out`, or no map to `options.map`.
        ConfigError: a map is asked for of several results, or would replace a file.
    """
    check_folder(options.folder)
    report = _Report(options.json)
    jobs = _plan(options, upscaler.scale, report)
    if options.map is not None:
        _check_map(Path(options.map), jobs, options.overwrite)
    total = upscaler.expected_nfe * sum(len(job.targets) * job.frames for job in jobs)
    with progress(total=total, unit="forward", desc="upscale") as bar:
        bar.bar_format = "{l_bar}{bar}| {n:.0f}/{total:.0f} [{elapsed}<{remaining}]"
        run = _Run(upscaler, options, report, lambda part: bar.update(min(part, float(bar.total or 0) - bar.n)))
        for job in jobs:
            run.add(job)
        run.flush()
    report.close()
    return not report.failures


def _check_map(place: Path, jobs: list[_Job], overwrite: bool) -> None:
    """Refuses a map that cannot be drawn, before anything is computed."""
    results = sum(len(job.targets) * job.frames for job in jobs)
    if results > 1:
        raise ConfigError(f"--map is for a single result, got {results}; enlarge one picture, or leave --map out")
    used = [path for job in jobs for path in (job.source, *(target for target, _ in job.targets))]
    if place.resolve() in [path.resolve() for path in used]:
        raise ConfigError(f"this run reads or writes {place} already; give --map another name")
    if place.is_dir():
        raise ConfigError(f"the map {place} is a folder; name a file, such as {place / 'map.png'}")
    if place.exists() and not overwrite:
        raise ConfigError(f"the map {place} exists; replace it with --overwrite, or give --map another name")
    check_folder(place.parent)


@dataclass
class _Waiting:
    """A decoded picture that waits for others of its size."""

    source: Path
    target: Path
    seed: int
    picture: Picture
    notes: list[str]


class _Run:
    """Enlarges jobs one after the other, pictures of one size together."""

    def __init__(
        self, upscaler: Upscaler, options: UpscaleOptions, report: _Report, advance: Callable[[float], object]
    ) -> None:
        self.upscaler, self.options, self.report, self.advance = upscaler, options, report, advance
        self.waiting: list[_Waiting] = []

    def add(self, job: _Job) -> None:
        """Reads a source; it is computed once enough of its size are there."""
        if job.frames > 1:
            self.flush()
            self._animation(job)
            return
        try:
            header = read_header(job.source)
            picture = read_picture(job.source)
            height, width = picture.rgb.shape[:2]
            largest = self.upscaler.largest_batch(height * self.upscaler.scale, width * self.upscaler.scale)
            self._check(job.targets[0][0], width, height)
        except SkipDiffError as error:
            self.report.fail(job.source, _naming(job.source, error))
            return
        notes = []
        if header.frames > 1:
            notes = [f"the first of {header.frames} pictures in {job.source} is taken"]
        for target, seed in job.targets:
            if self.waiting and (
                len(self.waiting) >= largest or self.waiting[0].picture.rgb.shape != picture.rgb.shape
            ):
                self.flush()
            self.waiting.append(_Waiting(job.source, target, seed, picture, notes))

    def _check(self, target: Path, width: int, height: int) -> None:
        """Raises ImageError where the result of a picture of this size could not be written, before it is computed."""
        size = self.options.final_size(width, height, self.upscaler.scale)
        check_output(target, *size)
        check_room(1, *size)

    def _animation(self, job: _Job) -> None:
        """Reads, enlarges and writes all frames of an animation."""
        try:
            header = read_header(job.source)
            self._check(job.targets[0][0], header.width, header.height)
            # before the frames are decoded, all of which are held
            check_room(header.frames, header.width * self.upscaler.scale, header.height * self.upscaler.scale)
            animation = read_animation(job.source)
        except SkipDiffError as error:
            self.report.fail(job.source, _naming(job.source, error))
            return
        for target, seed in job.targets:
            try:
                check_folder(target.parent)
                large, result = self.upscaler.enlarge_animation(animation, seed, self.advance)
                frames = [
                    self._finished(frame, small) for frame, small in zip(large.frames, animation.frames, strict=True)
                ]
                notes = write_picture(replace(large, frames=frames), target, self.options.jpeg_quality)
            except SkipDiffError as error:
                self.report.fail(job.source, _naming(job.source, error), target)
                continue
            height, width = frames[0].rgb.shape[:2]
            self.report.finish(job.source, target, (width, height), len(frames), result, notes)

    def flush(self) -> None:
        """Computes and writes what waits."""
        batch, self.waiting = self.waiting, []
        ready = []
        for item in batch:
            try:
                check_folder(item.target.parent)
                ready.append(item)
            except SkipDiffError as error:
                self.report.fail(item.source, _naming(item.source, error), item.target)
        if not ready:
            return
        try:
            results = self.upscaler.enlarge([i.picture for i in ready], [i.seed for i in ready], self.advance)
        except SkipDiffError as error:
            for item in ready:
                self.report.fail(item.source, _naming(item.source, error), item.target)
            return
        for item, (large, result) in zip(ready, results, strict=True):
            try:
                large = self._finished(large, item.picture)
                notes = item.notes + write_picture(large, item.target, self.options.jpeg_quality)
                if self.options.map is not None:
                    write_picture(Picture(draw_map(to_uint8(result.sr), result.tiles)), self.options.map)
            except SkipDiffError as error:
                self.report.fail(item.source, _naming(item.source, error), item.target)
                continue
            height, width = large.rgb.shape[:2]
            self.report.finish(item.source, item.target, (width, height), 1, result, notes)

    def _finished(self, large: Picture, small: Picture) -> Picture:
        """The enlarged picture in the size and with the metadata that are wanted."""
        height, width = small.rgb.shape[:2]
        size = self.options.final_size(width, height, self.upscaler.scale)
        if size != (large.rgb.shape[1], large.rgb.shape[0]):
            large = resized(large, *size)
        return replace(large, exif=None, xmp=None) if self.options.strip_metadata else large


def _naming(source: Path, error: SkipDiffError) -> str:
    """The error with the file that it is about."""
    return str(error) if str(source) in str(error) else f"{source}: {error}"
