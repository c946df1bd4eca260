"""The runner, which runs and measures every method on every picture under every noise seed."""

import hashlib
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from agents.study.methods import Batch, Method, Result
from agents.study.rows import BICUBIC, ORIGINALS, OTHER_NET, Row, read_rows
from ddpm.nets.denoiser import Denoiser, fingerprint, image_multiple
from ddpm.pictures.degradation import PLAIN, Degradation
from ddpm.pictures.images import Picture, to_tensor, to_uint8, write_picture
from ddpm.util.errors import ConfigError
from ddpm.util.files import read_json, write_json
from ddpm.util.progress import progress
from skipdiff_env.judges import JUDGES, judge_file
from skipdiff_env.metrics import Metric, make_metric
from skipdiff_env.pictures import Pictures
from skipdiff_env.refinement import Refinement

# A function that is called with the result of a method for a batch.
Keep = Callable[[Batch, Method, Result], None]
# Names in a folder of results: the settings, and the rows of each method and batch.
SETTINGS, PARTS = "settings.json", "parts"


def default_metrics() -> list[str]:
    """Return the metrics of tables: PSNR, SSIM, NIQE, LPIPS, DISTS if its weights exist, and the colour error."""
    judge = ["dists"] if judge_file().is_file() else []
    return ["psnr", "ssim", "niqe", "lpips", *judge, "colour"]


@dataclass(frozen=True)
class Crops(Sequence[Tensor]):
    """Target pictures, each (3, size, size) in [-1, 1], and their names."""

    pictures: Sequence[Tensor]
    names: Sequence[str]

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, place: Any) -> Any:
        return self.pictures[place]


def load_crops(images: Sequence[str | Path] | None, size: int, limit: int | None = None) -> Crops:
    """Return target pictures, each (3, size, size) in [-1, 1].

    Args:
        images: folders, files or patterns of photographs, whose centres are taken; None or empty: crops that cover
            scikit-image's photographs.
        size: side of a crop.
        limit: largest number of pictures, evenly spread.

    Raises:
        ImageError: there is no picture, a file cannot be read, or one is smaller than the crop.
    """
    pictures = Pictures(list(images) if images else None, size)
    count = len(pictures) if limit is None else min(limit, len(pictures))
    places = [i * len(pictures) // count for i in range(count)]
    return Crops([to_tensor(pictures[place]) for place in places], [pictures.names[place] for place in places])


class Runner:
    """A runner of methods with one network, which measures their results.

    Args:
        unet: the denoiser.
        metrics: names of metrics.
        device: device of the network and the metrics.
        batch_size: pictures per batch.
        degradation: degradation of the low-resolution pictures, as `Degradation.parse` takes it.

    Raises:
        ConfigError: a metric or the degradation is unknown.
    """

    def __init__(
        self,
        unet: Denoiser,
        metrics: Sequence[str],
        device: str = "cpu",
        batch_size: int = 16,
        degradation: str = "bicubic",
    ) -> None:
        self.unet, self.device, self.batch_size = unet, device, batch_size
        self.degradation = Degradation.parse(degradation)
        self.metrics = {name: make_metric(name, device) for name in metrics}

    def batches(self, crops: Sequence[Tensor], seed: int = 0) -> Iterator[Batch]:
        """Iterate over targets under a noise seed, in batches."""
        for first in range(0, len(crops), self.batch_size):
            hr = torch.stack(list(crops[first : first + self.batch_size])).to(self.device)
            yield Batch(self.unet, hr, seed, first, self.batch_size, self.degradation)

    def check_size(self, size: int) -> None:
        """Check the side of the pictures.

        Raises:
            ConfigError: the network or a metric does not take pictures of this size.
        """
        multiple = image_multiple(self.unet)
        if size % multiple:
            raise ConfigError(f"image_size must be a multiple of {multiple} for this checkpoint, got {size}")
        for metric in self.metrics.values():
            metric.check_size(size, size)

    def settings(self, crops: Sequence[Tensor], seeds: int) -> dict[str, Any]:
        """Return the settings that two runs must share for the rows of a method to be the same.

        Args:
            crops: targets, each (3, H, W) in [-1, 1], of one size.
            seeds: number of noise seeds.
        """
        made = "" if self.degradation == PLAIN else f", {self.degradation}"
        settings = {
            "weights": fingerprint(self.unet),
            "pictures": f"{len(crops)} of {crops[0].shape[-1]} px, {tensor_digest(crops)}{made}",
            "seeds": seeds,
            "batch_size": self.batch_size,
            "device": self.device,
            "metrics": list(self.metrics),
        }
        if not self.metrics.keys().isdisjoint(JUDGES):
            settings["judge"] = hashlib.blake2b(judge_file().read_bytes(), digest_size=6).hexdigest()
        return settings

    def run(
        self,
        methods: Sequence[Method],
        crops: Sequence[Tensor],
        seeds: Iterable[int] = (0,),
        folder: Path | None = None,
        told: Mapping[str, Any] | None = None,
        keep: Keep | None = None,
        title: str = "evaluate",
    ) -> list[Row]:
        """Run every method on every picture under every noise seed, and return the rows.

        Args:
            methods: methods in the order in which they run; of several with the same name the first is taken.
            crops: targets, each (3, H, W) in [-1, 1], of one size.
            seeds: noise seeds; each picture under seed k has the noise of key k.
            folder: folder for the rows of each method and batch, from which a run that was stopped continues; None:
                they are kept only in memory.
            told: settings that the rows of the folder must share, in addition to those of the runner.
            keep: function that is called with each result.
            title: title of the progress bar.

        Returns:
            One row for each method, picture and seed, by method; for the originals, which have no noise, one for each
            picture if a metric needs no reference.

        Raises:
            ConfigError: the folder holds results with other settings.
        """
        methods = list({method.name: method for method in reversed(methods)}.values())[::-1]
        rows: dict[str, list[Row]] = {method.name: [] for method in methods}
        seeds = list(seeds)
        if folder is not None:
            settle(folder / SETTINGS, {**self.settings(crops, len(seeds)), "agents": {}, **(told or {})})
        count, forwards = math.ceil(len(crops) / self.batch_size), sum(method.forwards for method in methods)
        with progress(total=len(seeds) * count * forwards, desc=title, unit="forward") as bar:
            for batch in (batch for seed in seeds for batch in self.batches(crops, seed)):
                for method in methods:
                    bar.set_postfix_str(method.name, refresh=False)
                    if batch.seed == seeds[0] or method.family != ORIGINALS:  # the originals have no noise
                        own = self._rows(method, batch, folder, keep)
                        rows[method.name] += own
                        batch.forwards[method.name] = float(np.mean([row.nfe for row in own] or [0]))
                    bar.update(method.forwards)
        return [row for own in rows.values() for row in own]

    def _rows(self, method: Method, batch: Batch, folder: Path | None, keep: Keep | None) -> list[Row]:
        """Return the rows of a method for a batch: those in the folder, or new ones, which are written into it.

        Raises:
            ConfigError: the file in the folder is damaged, or does not hold one row for each picture.
        """
        path = None if folder is None else folder / PARTS / file_name(method.name) / f"{batch.seed}-{batch.first}.json"
        if path is not None and path.exists():
            rows = read_rows(path)
            pictures = range(len(batch.hr)) if self._fitting(method) else ()
            expected = [(method.name, method.family, batch.first + i, batch.seed) for i in pictures]
            if [(row.method, row.family, row.image, row.seed) for row in rows] != expected:
                raise ConfigError(f"{path} does not hold the rows of its pictures; remove it, or give another --out")
            return rows
        result = method.run(batch)
        rows = self.measure(method, batch, result)
        if keep is not None:
            keep(batch, method, result)
        if path is not None:
            write_json(path, [asdict(row) for row in rows])
        return rows

    def _fitting(self, method: Method) -> list[Metric]:
        """Return the metrics of a method: for the originals, which are the targets, those without a reference."""
        return [m for m in self.metrics.values() if method.family != ORIGINALS or not m.needs_reference]

    def measure(self, method: Method, batch: Batch, result: Result) -> list[Row]:
        """Measure the result of a method for a batch."""
        values = {m.name: m(result.sr, batch.hr if m.needs_reference else None) for m in self._fitting(method)}
        if not values:
            return []
        conditioned = method.family not in (ORIGINALS, BICUBIC, OTHER_NET)
        seconds = result.seconds + (batch.condition[1] if conditioned else 0.0)
        states: Sequence[Refinement | None] = result.states or [None] * len(batch.hr)
        return [
            Row(
                method.name, method.family, batch.first + i, batch.seed, result.nfe[i], seconds,
                {name: float(column[i]) for name, column in values.items()},
                state.start if state else None, state.levels if state else (), policy_seconds=result.policy_seconds,
            )
            for i, state in enumerate(states)
        ]  # fmt: skip


def tensor_digest(tensors: Iterable[Tensor], settings: Mapping[str, Any] | None = None) -> str:
    """Return a short digest of tensors and their settings."""
    found = hashlib.blake2b(json.dumps(settings, sort_keys=True).encode() if settings else b"", digest_size=6)
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def settle(path: Path, settings: Mapping[str, Any]) -> None:
    """Write the settings of the rows in a folder, or compare them with the settings that the folder has.

    Agents may be added, but not changed.

    Raises:
        ConfigError: the folder has other settings.
    """
    settings = dict(json.loads(json.dumps(settings)))  # as JSON reads them: lists instead of tuples
    if path.exists():
        before = read_json(path)
        if not isinstance(before, dict) or not isinstance(before.get("agents"), dict):
            raise ConfigError(f"{path} does not hold the settings of results; remove it, or give another --out")
        settings["agents"] = {**before["agents"], **settings["agents"]}
        for name in {**settings, **before}:
            old, new = before.get(name), settings.get(name)
            grown = name == "agents" and before[name].items() <= settings[name].items()
            if old != new and not grown:
                raise ConfigError(
                    f"{path.parent} holds results with {name} {old}, got {new}; continue with the same settings, or "
                    "give another --out"
                )
    write_json(path, settings)


def save_pictures(folder: Path, count: int, methods: Sequence[Method] | None = None) -> Keep:
    """Return a `keep` that writes the first `count` pictures of noise seed 0 as FOLDER/<picture>/<method>.png.

    Args:
        folder: the folder.
        count: number of pictures.
        methods: methods whose pictures are written; None: all.
    """
    wanted = None if methods is None else {method.name for method in methods}

    def keep(batch: Batch, method: Method, result: Result) -> None:
        if batch.seed == 0 and (wanted is None or method.name in wanted):
            for i in range(min(len(batch.hr), count - batch.first)):
                path = picture_path(folder, batch.first + i, method.name)
                write_picture(Picture(to_uint8(result.sr[i])), path)

    return keep


def picture_path(folder: Path, image: int, method: str) -> Path:
    """Return the path to which `save_pictures` writes a picture."""
    return folder / f"{image:03d}" / f"{'original' if method == ORIGINALS else file_name(method)}.png"


def file_name(method: str) -> str:
    """Return the name of a method's files, without the file extension."""
    return re.sub(r"[^\w(), +-]", "_", method)
