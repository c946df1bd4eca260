"""A table of outcomes: what every schedule gives for some pictures and noises. Nothing here needs a net or torch."""

import json
from dataclasses import dataclass
from functools import cached_property
from importlib.resources import files
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from ddpm.util.checks import check_one_of
from ddpm.util.errors import ConfigError
from skipdiff_env.rules import REWARDS, check_price, qualities

# Goes up when tables of older versions cannot be read.
FORMAT = 1
DESCRIPTION, ARRAYS = "table.json", "table.safetensors"
SHIPPED = Path(str(files("skipdiff_env"))) / "tables" / "natural-x4"
FEATURES = 42
QUANTILES = (0.1, 0.25, 0.5, 0.75, 0.9, 0.99)
# Logarithms of gradients begin here; no feature is below the first of these or above the second.
SMALLEST = 1e-3
# A picture is that long and wide at least.
SMALLEST_SIDE = 12
FEATURE_BOUNDS = (-3.0, 1.0)


def features(condition: NDArray[np.floating]) -> NDArray[np.float32]:
    """How much structure a picture has: 14 numbers of its luma at its full size, a half and a quarter of it.

    They are the mean gradients along and across, its root mean square, six quantiles of its magnitude, mean and root
    mean square of the Laplacian, and the standard deviation of the luma, all as log10(10⁻³ + x); how much the gradients
    agree in direction, and the share of flat pixels (gradient below 2/255), both in 0 … 1.

    Args:
        condition: (C, H, W), whose first three channels are a picture, clipped to [-1, 1]. Of fewer than 12
            pixels a side, its edges are repeated.

    Returns:
        float32 (42,), each in -3 … 1.
    """
    luma = np.tensordot(
        [0.299, 0.587, 0.114], (np.asarray(condition[:3], dtype=np.float64).clip(-1, 1) + 1) / 2, axes=1
    )
    luma = np.pad(luma, [(0, max(0, 12 - side)) for side in luma.shape], mode="edge")
    found: list[float] = []
    for _ in range(3):
        right, down = np.diff(luma, axis=1), np.diff(luma, axis=0)
        x, y = right[:-1], down[:, :-1]
        magnitude = np.hypot(x, y)
        laplacian = np.diff(right, axis=1)[1:-1] + np.diff(down, axis=0)[:, 1:-1]
        sizes = [
            np.abs(right).mean(),
            np.abs(down).mean(),
            np.sqrt((magnitude**2).mean()),
            *np.quantile(magnitude, QUANTILES),
            np.abs(laplacian).mean(),
            np.sqrt((laplacian**2).mean()),
            luma.std(),
        ]
        xx, yy, xy = (x * x).mean(), (y * y).mean(), (x * y).mean()
        direction = np.hypot(xx - yy, 2 * xy) / (xx + yy) if xx + yy > 0 else 0.0
        found += [*np.log10(SMALLEST + np.array(sizes)), direction, float((magnitude < 2 / 255).mean())]
        height, width = (side // 2 * 2 for side in luma.shape)
        luma = luma[:height, :width].reshape(height // 2, 2, width // 2, 2).mean(axis=(1, 3))
    return np.clip(np.array(found, dtype=np.float32), *FEATURE_BOUNDS)


@dataclass(frozen=True)
class Table:
    """What schedules give for pictures under noises, as `skipdiff tabulate` computes it.

    Attributes:
        description: plain data: checkpoint, `degradation`, `plan`, `metrics` (name → whether a lower value is better;
            the first is the one that rewards by default), `schedules`, `pictures` (names), `splits`, `noise_seeds`.
        features: of the pictures' conditions, float32 (pictures, 42).
        metrics: name → float32 (pictures, noise seeds, schedules); NaN where the metric failed.
    """

    description: dict[str, Any]
    features: NDArray[np.float32]
    metrics: dict[str, NDArray[np.float32]]

    @classmethod
    def load(cls, folder: str | Path) -> "Table":
        """Reads a table.

        Raises:
            ConfigError: the folder holds none, or one that is damaged or unfinished.
        """
        folder = Path(folder)
        if not (folder / DESCRIPTION).is_file() or not (folder / ARRAYS).is_file():
            raise ConfigError(f"{folder} holds no table; `skipdiff tabulate --out {folder}` makes one")
        try:
            description = json.loads((folder / DESCRIPTION).read_text(encoding="utf-8"))
            arrays = load_file(folder / ARRAYS)
            if description["format"] != FORMAT:
                raise ConfigError(f"the table {folder} has format {description['format']}, this version reads {FORMAT}")
            pictures, done = len(description["pictures"]), int(arrays["done"][0])
            metrics = {name: arrays[f"metrics.{name}"] for name in description["metrics"]}
            shape = pictures, description["noise_seeds"], len(description["schedules"])
            if arrays["features"].shape != (pictures, FEATURES) or any(m.shape != shape for m in metrics.values()):
                raise ConfigError(f"the table {folder} is damaged: its arrays do not fit {DESCRIPTION}")
        except (
            OSError, ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, SafetensorError,
        ) as error:  # fmt: skip
            if isinstance(error, ConfigError):
                raise
            raise ConfigError(f"the table {folder} is damaged ({type(error).__name__}: {error})") from None
        if done < pictures:
            raise ConfigError(
                f"the table {folder} has {done} of {pictures} pictures; the same `skipdiff tabulate` goes on with it"
            )
        return cls(description, arrays["features"], metrics)

    def __deepcopy__(self, memo: Any) -> "Table":
        """Copies of an environment share the table."""
        return self

    @property
    def restart(self) -> bool:
        """Whether a skip goes back to the coarse latent."""
        return self.description["plan"]["skip_mode"] == "restart"

    @property
    def first(self) -> int:
        """The diffusion step of the first decision."""
        return self.description["plan"]["first_step"]

    @cached_property
    def schedules(self) -> list[tuple[int, ...]]:
        """The levels at which the network runs, of each schedule; with restarts from each start down to 1."""
        return [tuple(levels) for levels in self.description["schedules"]]

    @cached_property
    def _codes(self) -> tuple[NDArray[np.uint64], NDArray[np.intp]]:
        """The schedules as numbers, rising, and the place of each. Bit i is the decision at step i + 2, 1 is SKIP."""
        codes = np.array(
            [sum(1 << (t - 2) for t in range(2, self.first + 1) if t - 1 not in levels) for levels in self.schedules],
            dtype=np.uint64,
        )
        order = np.argsort(codes)
        return codes[order], order

    @property
    def complete(self) -> bool:
        """Whether any decisions lead to a schedule of the table."""
        return self.restart or len(self.schedules) == 2 ** (self.first - 1)

    def rows(self, split: str | None = None) -> NDArray[np.intp]:
        """The places of the pictures of a split, "train" or "test"; None: of all.

        Raises:
            ConfigError: the table has no picture of that split.
        """
        splits = self.description["splits"] or []
        if split is None:
            return np.arange(len(self.features))
        if split not in splits:
            known = sorted(set(splits)) or ["none in this table"]
            raise ConfigError(f"split must be one of {', '.join(known)}, or None, got {split!r}")
        return np.flatnonzero(np.array(splits) == split)

    def own_metric(self, metric: str | None = None) -> str:
        """The name of a metric of the table; None: the first one's.

        Raises:
            ConfigError: the table has no such metric.
        """
        known = self.description["metrics"]
        if metric is not None and metric not in known:
            raise ConfigError(f"metric must be one of the table's, {', '.join(known)}, got {metric!r}")
        return next(iter(known)) if metric is None else metric

    def rewards(
        self, nfe_penalty: float, split: str | None = None, metric: str | None = None, reward: str = "negative"
    ) -> NDArray[np.float64]:
        """What an episode that follows each schedule is rewarded with.

        The best fixed schedule has the largest mean over the first two axes, and the oracle is the maximum over the
        last one. Forwards that are thrown away, as episodes with restarts may do, are not paid for.

        Args:
            nfe_penalty: price of a forward.
            split: "train" or "test"; None: all pictures.
            metric: the reward's; None: the table's first.
            reward: "negative" or "inverse", as for `skipdiff_env.table_env.SkipDiffTableVectorEnv`.

        Returns:
            float64 (pictures, noise seeds, schedules).

        Raises:
            ConfigError: an argument is wrong.
        """
        metric, price = self.own_metric(metric), check_price(nfe_penalty)
        check_one_of(REWARDS, reward=reward)
        values = self.metrics[metric][self.rows(split)]
        gained = qualities(values, self.description["metrics"][metric], reward)
        return gained - price * np.array([len(levels) for levels in self.schedules])

    def find(self, codes: NDArray[np.uint64]) -> NDArray[np.intp]:
        """The places of schedules that are given as numbers."""
        known, order = self._codes
        return order[np.searchsorted(known, codes)]

    def is_open(self, codes: NDArray[np.uint64], t: NDArray[np.int64]) -> NDArray[np.bool_]:
        """Whether a schedule of the table begins with decisions whose last one was made at step t."""
        known, _ = self._codes
        rest = (t - 2).astype(np.uint64)  # decisions that are left
        lowest = codes << rest
        place = np.searchsorted(known, lowest)
        return (place < len(known)) & (known[np.minimum(place, len(known) - 1)] >> rest == codes)
