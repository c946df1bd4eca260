"""The run of `skipdiff upscale`: it finds pictures, plans their results, and enlarges them."""

import glob
import re
from collections.abc import Callable, Iterator
from functools import cache
from itertools import takewhile
from pathlib import Path

from agents.upscaling.jobs import Job, Run, chunks
from agents.upscaling.options import UpscaleOptions
from agents.upscaling.report import Event, Report
from ddpm.pictures.formats import OUTPUTS, output_format
from ddpm.pictures.images import check_folder, expand, read_header
from ddpm.util.errors import ConfigError, SkipDiffError
from ddpm.util.files import real_path
from ddpm.util.progress import progress
from skipdiff_env.upscaler import Upscaler

# A function that runs chunks of jobs elsewhere, and yields the result of `agents.upscaling.jobs.make_worker` for each.
Spread = Callable[[list[list[Job]]], Iterator[tuple[list[Event], int]]]
# The end of a result's name: _x4, _x2.5, _1920x, _x1080 or _1920x1080, and the number of the sample.
_RESULT = re.compile(r"_(x\d+(\.\d+)?|\d+x\d*)(_\d+)?$")
# Smaller tiles show too little to the network.
LEAST_TILE = 64
_MAY_MOVE = frozenset({".gif", ".png", ".apng", ".webp", ".avif", ".avifs"})


def _sources(options: UpscaleOptions, report: Report) -> list[tuple[Path, Path]]:
    """Return the pictures to enlarge, each with its folder below `out`, without the results of earlier runs."""
    out, resolve = options.folder.resolve(), cache(Path.resolve)
    # the place of a picture → its path, its folder below `out`, and whether a folder or pattern led to it below `out`
    found: dict[Path, tuple[Path, Path, bool]] = {}
    for given in options.paths:
        try:
            pairs = expand(given)
        except SkipDiffError as error:
            report.fail(given, error)
            continue
        outright = Path(given).is_file()
        # the folder above all possible matches of a pattern
        literal = takewhile(lambda part: not glob.has_magic(part), Path(given).parts)
        root = (Path(given) if Path(given).is_dir() else Path(*literal)).resolve()
        inside = not options.to_file and out != root and out.is_relative_to(root)
        for path, named in pairs:
            place = resolve(path.parent)
            suspect = not outright and place.is_relative_to(out)
            if not (inside and suspect):
                found.setdefault(place / path.name, (path, path.relative_to(named).parent, suspect))
    # folder → stems of the sources with results there: a file <stem>_x4.png is then a result
    goes_to: dict[Path, set[str]] = {}
    for path, folder, _ in found.values():
        goes_to.setdefault(out if options.to_file else (out / folder), set()).add(path.stem)
    kept, results = [], []
    for key, (path, folder, suspect) in found.items():
        match = _RESULT.search(path.stem)
        known = match is not None and path.stem[: match.start()] in goes_to.get(key.parent, ())
        itself = options.to_file and len(found) > 1 and key == real_path(options.out)
        if known or itself or (suspect and match is not None):
            results.append(path)
        else:
            kept.append((path, folder))
    if results:
        report.note(f"{len(results)} files in --out are named like results and left out, such as {results[0]}")
    if not kept and not report.failures:
        report.fail(options.out, f"nothing to enlarge: all pictures found are results in {options.out}")
    return kept


def _plan(options: UpscaleOptions, scale: int, report: Report) -> list[Job]:
    """Return the jobs that can be done, judged by names and headers, and report the others."""
    jobs = []
    taken: dict[Path, Path] = {}
    for source, folder in _sources(options, report):
        frames = 1
        if source.suffix.lower() in _MAY_MOVE or not source.suffix:
            try:
                header = read_header(source)
                frames = header.frames if header.animated else 1
            except SkipDiffError:
                pass  # the error is reported when the file is read
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
                if exists and options.skip_existing and target.is_file() and not target.stat().st_size:
                    exists = False  # an empty file is left by a killed program, and is not a result
                trouble = f"{target} is a folder" if target.is_dir() else None
            except OSError as error:  # for example, the name is too long
                exists, trouble = False, f"cannot write {target}: {error.strerror}; give --out a file with another name"
            if trouble is None and target in taken:
                trouble = (
                    f"another picture of this run, {taken[target]}, is written to {target} already; give --format same "
                    "where their endings differ, or enlarge it in another run"
                )
            elif trouble is None and exists and not (options.skip_existing or options.overwrite):
                trouble = (
                    f"{target} exists; replace it with --overwrite, keep it with --skip-existing, or give another --out"
                )
            if trouble is not None:
                report.fail(source, f"{source}: {trouble}", target)
                targets = []
                break
            if exists and options.skip_existing:
                report.skip(source, target)
            else:
                targets.append((target, options.seed + k))
        if targets:
            jobs.append(Job(source, targets, frames))
            taken.update((target, source) for target, _ in targets)
    return jobs


def _ending(options: UpscaleOptions, source: Path, frames: int) -> str:
    """Return the file extension of a result, with the dot."""
    own = source.suffix if source.suffix.lower() in OUTPUTS else ".png"
    if options.format == "same" or (options.format is None and frames > 1):
        return own
    return f".{options.format or 'png'}"


def upscale_files(upscaler: Upscaler, options: UpscaleOptions, spread: Spread | None = None) -> bool:
    """Enlarge files, folders and patterns, and print a report.

    A picture that cannot be enlarged is reported in one line on standard error, at once and again at the end. The other
    pictures are enlarged.

    Args:
        upscaler: the upscaler.
        options: options for sources and results.
        spread: function that runs the work on a cluster; None: the work runs in this process.

    Returns:
        Whether all pictures were enlarged.

    Raises:
        ImageError: `options.out` or `options.map` cannot be written.
        ConfigError: a map of several results is requested, or the map would replace a file.
    """
    check_folder(options.folder)
    report = Report(options.json)
    least = min(LEAST_TILE, getattr(upscaler.policy, "tile", LEAST_TILE))  # an agent may have smaller ones
    if 0 < upscaler.tile < least:
        report.note(
            f"tiles of {upscaler.tile} pixels show the network too little, which puts grain into sky and other smooth "
            f"parts; leave --tile out, or give {least} or more"
        )
    jobs = _plan(options, upscaler.scale, report)
    if options.map is not None:
        _check_map(Path(options.map), jobs, options.overwrite)
    total = upscaler.expected_nfe * sum(job.results for job in jobs)
    with progress(total=total, unit="forward", desc="upscale") as bar:
        bar.bar_format = "{l_bar}{bar}| {n:.0f}/{total:.0f} [{elapsed}<{remaining}]"

        def advance(part: float) -> None:
            bar.update(min(part, float(bar.total or 0) - bar.n))

        if spread is None:
            run = Run(upscaler, options, report, advance)
            for job in jobs:
                run.add(job)
            run.flush()
        else:
            for events, results in spread(chunks(jobs, upscaler.batch_size)):
                for event in events:
                    report.tell(event)
                advance(upscaler.expected_nfe * results)
    report.close()
    return not report.failures


def _check_map(place: Path, jobs: list[Job], overwrite: bool) -> None:
    """Raise an error for a map that cannot be drawn, before anything is computed."""
    results = sum(job.results for job in jobs)
    if results > 1:
        raise ConfigError(f"--map is for a single result, got {results}; enlarge one picture, or leave --map out")
    used = [path for job in jobs for path in (job.source, *(target for target, _ in job.targets))]
    if real_path(place) in [real_path(path) for path in used]:
        raise ConfigError(f"this run reads or writes {place} already; give --map another name")
    if place.is_dir():
        raise ConfigError(f"the map {place} is a folder; name a file, such as {place / 'map.png'}")
    if (place.exists() or place.is_symlink()) and not overwrite:
        raise ConfigError(f"the map {place} exists; replace it with --overwrite, or give --map another name")
    check_folder(place.parent)
