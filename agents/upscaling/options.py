"""The options of `skipdiff upscale` for sources and results."""

import os
import re
from dataclasses import dataclass, replace
from pathlib import Path

from ddpm.pictures.formats import OUTPUTS, SUFFIXES, Format, output_format
from ddpm.util.errors import ConfigError
from skipdiff_env.upscaler import MAX_SEED

FORMATS = ("png", "jpg", "webp", "avif", "tiff", "same")


@dataclass(frozen=True)
class UpscaleOptions:
    """The options of `skipdiff upscale` for sources and results.

    Attributes:
        paths: files, folders and patterns.
        out: folder of the results; for one picture also a file.
        seed: noise seed of the first sample of every picture, 0 … 2⁶⁴ - `samples`.
        samples: number of different results for each picture, with consecutive seeds.
        overwrite: replace results that exist.
        skip_existing: keep results that exist, and make the others.
        format: one of `FORMATS`; None: PNG, or for animations the format of the source.
        jpeg_quality: quality of JPEG, WebP and AVIF, 1 … 100.
        strip_metadata: leave out EXIF, XMP and texts.
        outscale: factor by which results are larger than their source; None: the factor of the network.
        size: size of the results, "1920x", "x1080" or "1920x1080"; None: the size of the network's result.
        json: print a JSON object for each result, and one for all.
        map: file for a picture of the number of steps in each tile, for one still picture; None: no map.

    Raises:
        ConfigError: a value lies outside its range, or two contradict each other.
        ImageError: the file extension of `map` is unknown.
    """

    paths: tuple[str, ...]
    out: str
    seed: int = 0
    samples: int = 1
    overwrite: bool = False
    skip_existing: bool = False
    format: str | None = None
    jpeg_quality: int = 95
    strip_metadata: bool = False
    outscale: float | None = None
    size: str | None = None
    json: bool = False
    map: str | None = None

    def __post_init__(self) -> None:
        largest = MAX_SEED + 1 - self.samples
        if not 0 <= self.seed <= largest:
            samples = "" if self.samples == 1 else f" with {self.samples} samples"
            raise ConfigError(f"the seed must lie in 0 … {largest}{samples}, got {self.seed}")
        if self.overwrite and self.skip_existing:
            raise ConfigError("--overwrite and --skip-existing contradict each other; give one of them")
        if self.outscale is not None and self.size is not None:
            raise ConfigError("--outscale and --size both say how large results are; give one of them")
        if self.outscale is not None and not 0 < self.outscale <= Format.max_side:
            raise ConfigError(
                f"--outscale must be a positive number, at most {Format.max_side} as no picture is larger, got "
                f"{self.outscale}"
            )
        self.final_size(1, 1, 1)
        if not self.out.strip():
            raise ConfigError("--out is empty; name a folder, or a file for one picture")
        if self.to_file and self.format not in (None, "same"):
            ending = Path(self.out).suffix.lower()
            if OUTPUTS[f".{self.format}"] != OUTPUTS[ending]:
                raise ConfigError(
                    f"--format {self.format} contradicts the ending of --out {self.out}; drop one of them"
                )
        self._check_ending()
        if self.map is not None:
            output_format(Path(self.map))

    def _check_ending(self) -> None:
        """Raise ConfigError if `out` looks like the name of a picture with an unknown file extension."""
        ending = Path(self.out).suffix.lower()
        if self.to_file or not ending or self.out.endswith(("/", "\\")) or Path(self.out).is_dir():
            return
        one_file = len(self.paths) == 1 and Path(self.paths[0]).is_file() and re.fullmatch(r"\.[a-z]\w{0,4}", ending)
        if ending in SUFFIXES or one_file:
            raise ConfigError(
                f"cannot write {self.out}: unknown file extension {ending!r}; known are {', '.join(sorted(OUTPUTS))}; "
                "if a folder is meant, end its name with a slash"
            )

    def absolute(self) -> "UpscaleOptions":
        """Return the same options with absolute paths, which are valid in another process."""

        def place(path: str) -> str:  # a slash at the end and an empty path are kept
            return os.path.join(os.getcwd(), path) if path.strip() else path

        paths = tuple(place(path) for path in self.paths)
        return replace(self, paths=paths, out=place(self.out), map=None if self.map is None else place(self.map))

    @property
    def to_file(self) -> bool:
        """Whether `out` names a picture instead of a folder."""
        path = Path(self.out)
        return path.suffix.lower() in OUTPUTS and not self.out.endswith(("/", "\\")) and not path.is_dir()

    @property
    def folder(self) -> Path:
        """Folder of the results."""
        return Path(self.out).parent if self.to_file else Path(self.out)

    def final_size(self, width: int, height: int, scale: int) -> tuple[int, int]:
        """Return the width and the height of the result of a picture of this size.

        Raises:
            ConfigError: `size` cannot be understood.
        """
        if self.outscale is not None:
            return max(1, round(width * self.outscale)), max(1, round(height * self.outscale))
        if self.size is None:
            return width * scale, height * scale
        match = re.fullmatch(r"(\d{0,9})x(\d{0,9})", self.size)
        sides = [int(side) if side else None for side in match.groups()] if match else []
        if not any(sides) or 0 in sides:
            raise ConfigError(f"--size must be like 1920x, x1080 or 1920x1080, in pixels, got {self.size!r}")
        wide, high = sides
        if wide is None:
            assert high is not None, "one side is given"
            wide = max(1, round(width * high / height))
        return wide, max(1, round(height * wide / width)) if high is None else high

    def label(self, scale: int) -> str:
        """Return the text that is added to the source's name."""
        return self.size or (f"x{scale}" if self.outscale is None else f"x{self.outscale:.10g}")
