"""The runner, which runs and measures every method on every picture under every noise seed."""

import hashlib
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from agents.study.methods import Batch, Method, Result
from agents.study.rows import BICUBIC, ORIGINALS, OTHER_NET, Row, read_rows, write_rows
from ddpm.nets.denoiser import Denoiser, fingerprint, image_multiple, watching
from ddpm.pictures.degradation import PLAIN, Degradation
from ddpm.pictures.images import Picture, to_tensor, to_uint8, write_picture
from ddpm.util.errors import ConfigError
from ddpm.util.files import read_json, write_json
from ddpm.util.progress import progress
from skipdiff_env.judges import JUDGES, judge_file
from skipdiff_env.metrics import make_metric
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

    def batch(self, hr: Tensor, seed: int = 0, first: int = 0) -> Batch:
        """Return targets (B, 3, H, W) under one noise seed as a batch; `first` is the index of the first picture."""
        return Batch(self.unet, hr, seed, first, self.batch_size, self.degradation)

    def batches(self, crops: Sequence[Tensor]) -> list[Batch]:
        """Return targets under noise seed 0, in batches."""
        starts = range(0, len(crops), self.batch_size)
        groups = [torch.stack(list(crops[first : first + self.batch_size])).to(self.device) for first in starts]
        return [self.batch(group) for group in groups]

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
        judged = not self.metrics.keys().isdisjoint(JUDGES)
        return {
            "weights": fingerprint(self.unet),
            "pictures": f"{len(crops)} of {crops[0].shape[-1]} px, {tensor_digest(crops)}{made}",
            "seeds": seeds,
            "batch_size": self.batch_size,
            "device": self.device,
            "metrics": list(self.metrics),
            **({"judge": digest([judge_file().read_bytes()])} if judged else {}),
        }

    def run(
        self,
        methods: Sequence[Method],
        crops: Sequence[Tensor],
        seeds: Iterable[int] = (0,),
        parts: Path | None = None,
        keep: Keep | None = None,
        title: str = "evaluate",
    ) -> list[Row]:
        """Run every method on every picture under every noise seed, and return the rows.

        Args:
            methods: methods in the order in which they run; of several with the same name the first is taken.
            crops: targets, each (3, H, W) in [-1, 1], of one size.
            seeds: noise seeds; each picture under seed k has the noise of key k.
            parts: folder for the rows of each method and batch, from which a run that was stopped continues; None: they
                are kept only in memory.
            keep: function that is called with each result.
            title: title of the progress bar.

        Returns:
            One row for each method, picture and seed, by method; for the originals, which have no noise, one for each
            picture if a metric needs no reference.
        """
        methods = list({method.name: method for method in reversed(methods)}.values())[::-1]
        rows: dict[str, list[Row]] = {method.name: [] for method in methods}
        seeds = list(seeds)
        todo = {
            (seed, first): _todo(_under(seed, seeds, methods), parts, seed, first)
            for seed in seeds
            for first in range(0, len(crops), self.batch_size)
        }
        sizes = {job: min(self.batch_size, len(crops) - job[1]) for job in todo}
        left = sum(_forwards(own) * sizes[job] for job, own in todo.items())
        with self._bar(title, left) as bar:
            for job, own_todo in todo.items():
                seed, first = job
                hr = torch.stack(list(crops[first : first + self.batch_size])).to(self.device)
                batch = self.batch(hr, seed, first)
                for method in _under(seed, seeds, methods):
                    path = None if parts is None else part_path(parts, method.name, seed, first)
                    if method in own_todo:
                        bar.set_postfix_str(method.name, refresh=False)
                        own = self._run(method, batch, path, keep)
                    else:
                        assert path is not None
                        own = read_rows(path)
                    rows[method.name] += own
                    batch.forwards[method.name] = float(np.mean([row.nfe for row in own] or [0]))
                left -= _forwards(own_todo) * sizes[job]
                bar.total = bar.n + left * self.unet.forwards_per_call  # agents may take fewer forwards
        return [row for own in rows.values() for row in own]

    def _run(self, method: Method, batch: Batch, path: Path | None, keep: Keep | None) -> list[Row]:
        """Run one method on one batch, and write its rows into the folder, if there is one."""
        result = method.run(batch)
        rows = self.measure(method, batch, result)
        if keep is not None:
            keep(batch, method, result)
        if path is not None:
            write_rows(path, rows)
        return rows

    def measure(self, method: Method, batch: Batch, result: Result) -> list[Row]:
        """Measure the result of a method for a batch.

        The originals, which are the targets, are measured only by metrics without a reference.
        """
        fitting = [m for m in self.metrics.values() if method.family != ORIGINALS or not m.needs_reference]
        if not fitting:
            return []
        values = {m.name: m(result.sr, batch.hr if m.needs_reference else None) for m in fitting}
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

    @contextmanager
    def _bar(self, title: str, forwards: int) -> Iterator["tqdm[Any]"]:
        """Yield a progress bar that counts the network's forwards of pictures."""
        with (
            progress(total=forwards * self.unet.forwards_per_call, desc=title, unit="forward") as bar,
            watching(self.unet, lambda pictures, values: bar.update(pictures)),
        ):
            yield bar


def _under(seed: int, seeds: Sequence[int], methods: Sequence[Method]) -> list[Method]:
    """Return the methods that run under a noise seed: the originals, which have no noise, only under the first."""
    return [method for method in methods if seed == seeds[0] or method.family != ORIGINALS]


def _todo(methods: Sequence[Method], parts: Path | None, seed: int, first: int) -> list[Method]:
    """Return the methods of a batch that have not run."""
    return [method for method in methods if parts is None or not part_path(parts, method.name, seed, first).exists()]


def _forwards(methods: Sequence[Method]) -> int:
    """Return the largest number of forwards of one picture by several methods, which share their coarse stages."""
    coarse = {method.plan.coarse: method.plan.coarse_forwards for method in methods if method.plan is not None}
    return sum(method.forwards for method in methods) + sum(coarse.values())


def part_path(parts: Path, method: str, seed: int, first: int) -> Path:
    """Return the path of the rows of a method for one batch."""
    return parts / file_name(method) / f"{seed}-{first}.json"


def digest(contents: Iterable[bytes]) -> str:
    """Return a short digest of the contents."""
    found = hashlib.blake2b(digest_size=6)
    for content in contents:
        found.update(content)
    return found.hexdigest()


def tensor_digest(tensors: Iterable[Tensor], settings: Mapping[str, Any] | None = None) -> str:
    """Return a short digest of tensors and their settings."""
    told = [] if settings is None else [json.dumps(settings, sort_keys=True).encode()]
    return digest([*told, *(tensor.detach().cpu().contiguous().numpy().tobytes() for tensor in tensors)])


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
