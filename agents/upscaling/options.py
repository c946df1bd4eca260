"""The options of `skipdiff upscale` for sources and results."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from ddpm.pictures.formats import OUTPUTS, SUFFIXES, Format, output_format
from ddpm.util.checks import check_whole
from ddpm.util.errors import ConfigError


@dataclass(frozen=True)
class UpscaleOptions:
    """The options of `skipdiff upscale` for sources and results.

    Attributes:
        paths: Files, folders and patterns.
        out: Folder of the results; for one picture also a file.
        seed: Seed of the noise, 0 … 2⁶⁴ - samples; further samples have the seeds that follow.
        samples: Number of different results for each picture.
        overwrite: Replace results that exist.
        skip_existing: Keep results that exist, and make the others.
        format: Format of the results; same: that of the source, if it can be written.  [default: png; for animations,
            that of the source]
        jpeg_quality: Quality of JPEG, WebP and AVIF, 1 … 100.
        strip_metadata: Leave EXIF, XMP and texts out of the results.
        outscale: Factor of enlargement: resizes the network's result with the Lanczos filter.
        size: Size of the results, as 1920x, x1080, or 1920x1080 with other proportions: resizes the network's result
            with the Lanczos filter.
        json: Print one JSON object per line for each result, and a last one for the whole run.
        map: Picture to draw, with the number of steps in each tile; needs a single still picture.

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
    format: Literal["png", "jpg", "webp", "avif", "tiff", "same"] | None = None
    jpeg_quality: int = 95
    strip_metadata: bool = False
    outscale: float | None = None
    size: str | None = None
    json: bool = False
    map: str | None = None

    def __post_init__(self) -> None:
        check_whole(samples=self.samples)
        if not 1 <= self.jpeg_quality <= 100:
            raise ConfigError(f"--jpeg-quality must lie in 1 … 100, got {self.jpeg_quality}")
        largest = 2**64 - self.samples  # the noise has keys of 64 bits
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
