"""An endless, shuffled stream of random crops of photographs and their inputs, which every training reads."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from ddpm.pictures.degradation import Degradation
from ddpm.pictures.images import read_picture, to_tensor
from ddpm.util.errors import ImageError
from ddpm.util.progress import progress

# Number of the unusable pictures that the error names.
NAMED = 3


class CropDataset(Dataset[tuple[Tensor, Tensor]]):
    """An endless, shuffled stream of random crops; sample n is a function of (seed, n) alone.

    Every picture is decoded once before training begins, so that a damaged one cannot stop it hours later.

    Args:
        paths: pictures, each at least `crop` pixels on both sides.
        crop: side of a crop, in pixels.
        seed: seed of order, places, flips and degradations.
        cache_mb: size of the decoded pictures kept in memory, in MiB.
        degradation: the degradation that makes the low-resolution pictures.
        scale: factor by which they are smaller; the crop is a multiple of it.
        turns: whether a crop is also turned upside down, and transposed, each with a probability of one half.

    Raises:
        ImageError: some files are not pictures, are damaged, or are smaller than the crop; the message names them.
    """

    def __init__(
        self,
        paths: Sequence[Path],
        crop: int,
        seed: int,
        cache_mb: int,
        degradation: Degradation,
        scale: int,
        turns: bool = False,
    ) -> None:
        self.paths, self.crop, self.seed = paths, crop, seed
        self.degradation, self.scale, self.turns = degradation, scale, turns
        self.cache: dict[Path, np.ndarray] = {}
        self.cache_left = cache_mb * 2**20
        faults = []
        for path in progress(paths, desc="checking pictures", unit="picture", leave=False, delay=2):
            try:
                height, width = self._read(path).shape[:2]
            except ImageError as error:
                faults.append(str(error))
                continue
            if min(height, width) < crop:
                faults.append(f"{path} is {width} x {height}, smaller than the crop of {crop}")
        if faults:
            more = f" and {len(faults) - NAMED} more" if len(faults) > NAMED else ""
            raise ImageError(
                f"{len(faults)} of {len(paths)} pictures cannot be trained on: {'; '.join(faults[:NAMED])}{more}; "
                "remove them from the folder, or lower --crop"
            )

    def _read(self, path: Path) -> np.ndarray:
        if path in self.cache:
            return self.cache[path]
        rgb = read_picture(path).rgb
        if rgb.nbytes <= self.cache_left:
            self.cache[path] = rgb
            self.cache_left -= rgb.nbytes
        return rgb

    def __getitem__(self, n: int) -> tuple[Tensor, Tensor]:
        """Return crop n, (3, crop, crop), and its low-resolution picture, (3, crop / scale, …), both in [-1, 1]."""
        epoch, place = divmod(n, len(self.paths))
        order = np.random.default_rng([self.seed, 0, epoch]).permutation(len(self.paths))
        rng = np.random.default_rng([self.seed, 1, n])
        rgb = self._read(self.paths[order[place]])
        y, x = (rng.integers(side - self.crop + 1) for side in rgb.shape[:2])
        rgb = rgb[y : y + self.crop, x : x + self.crop]
        rgb = rgb[:, ::-1] if rng.random() < 0.5 else rgb
        if self.turns:
            rgb = rgb[::-1] if rng.random() < 0.5 else rgb
            rgb = rgb.transpose(1, 0, 2) if rng.random() < 0.5 else rgb
        hr = to_tensor(rgb)
        return hr, self.degradation(hr[None], self.scale, [(self.seed, 2, n)])[0]
