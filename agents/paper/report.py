"""`skipdiff reproduce`: the paper's tables and figures on one net, with the same noise and pictures, as one report.

The rows of each method on each batch are written under a temporary name and renamed, so that a run which was stopped
goes on where it was.
"""

import platform
import shlex
import sys
from collections.abc import Callable, Collection, Iterable, Mapping
from importlib.metadata import version
from pathlib import Path
from typing import Any

from agents.paper.figures import SHOWN, Figure1, Figure5, Figures36, Peers
from agents.paper.reported import DATA
from agents.paper.section import Page, Section
from agents.paper.tables import Table3, Table4, Table5, Table6, Tables12
from agents.study.rows import Row, flat
from agents.study.running import PARTS, SETTINGS, Place, save_pictures, settle
from agents.study.study import ReportConfig, Study
from agents.study.tables import write_csv
from ddpm.pictures.degradation import PLAIN
from ddpm.util.errors import ConfigError
from ddpm.util.files import atomic_path
from ddpm.util.progress import progress

# Has chunks of batches done elsewhere, in any order; gives what the work of `make_work` gives for each.
Spread = Callable[[list[list[Place]]], Iterable[int]]

# In the order of the report.
SECTIONS: dict[str, type[Section]] = {
    section.name: section
    for section in (Figure1, Tables12, Table3, Table4, Table5, Table6, Figure5, Figures36, Peers)
}  # fmt: skip


class Report:
    """A report: its sections, and the rows of their methods.

    Args:
        study: what it is made on.
        out: its folder.

    Raises:
        ConfigError: a section is unknown.
    """

    def __init__(self, study: Study, out: Path) -> None:
        self.study, self.out = study, out
        wanted = study.config.sections or list(SECTIONS)
        unknown = [name for name in wanted if name not in SECTIONS]
        if unknown:
            raise ConfigError(f"unknown section {', '.join(unknown)}; known are {', '.join(SECTIONS)}")
        self.sections = [SECTIONS[name](study) for name in wanted]
        self.methods = [method for section in self.sections for method in section.methods]
        self.rows: list[Row] = []

    def compute(self, spread: Spread | None = None) -> None:
        """Does what is left to do, with a bar that counts UNet forwards.

        Args:
            spread: has the work of `make_work` done elsewhere; None: it is done here.

        Raises:
            ConfigError: the folder holds results with other settings, or not what was to be done elsewhere.
        """
        settle(self.out / SETTINGS, self.study.settings())
        if spread is not None:
            self._spread(spread)
        self.rows = self.run()
        for section in self.sections:
            section.prepare(self.out)

    def run(self, only: Collection[Place] | None = None) -> list[Row]:
        """The rows of some batches, or of all; those that are not there yet are computed and written."""
        study = self.study
        # kept even where the pictures are not shown yet: the section may be added
        keep = save_pictures(self.out / "pictures", SHOWN, Figures36(study).methods)
        seeds = range(study.config.seeds)
        return study.runner.run(self.methods, study.crops, seeds, self.out / PARTS, keep, "reproduce", only)

    def _left(self) -> list[Place]:
        """The batches of which something is left to do."""
        study = self.study
        left = study.runner.left(self.methods, study.crops, range(study.config.seeds), self.out / PARTS)
        return [place for place, methods in left.items() if methods]

    def _spread(self, spread: Spread) -> None:
        """Has what is left to do done elsewhere, batch by batch."""
        left = self._left()
        if not left:
            return
        with progress(total=len(left), desc="reproduce", unit="batch") as bar:
            for done in spread([[place] for place in left]):
                bar.update(done)
        left = self._left()
        if left:
            raise ConfigError(
                f"{self.out} lacks rows of {len(left)} batches that the workers have computed; all nodes must see the "
                "same files, and have the same packages"
            )

    def write(self) -> Path:
        """Writes report.md, rows.csv, and a CSV file and the plots of each section; after `compute`."""
        if self.rows:
            write_csv(self.out / "rows.csv", flat(self.rows))
        page = Page(self.study, self.rows, self.out)
        text = [self.header(), *(section.write(page) for section in self.sections)]
        path = self.out / "report.md"
        with atomic_path(path) as temporary:
            temporary.write_text("\n\n".join(text) + "\n", encoding="utf-8")
        return path

    def header(self) -> str:
        """What was run on what."""
        study, config, plan = self.study, self.study.config, self.study.plan
        options = [f"--images {shlex.quote(str(path))}" for path in config.images]
        options += [f"--checkpoint {config.checkpoint}", f"--seeds {config.seeds}", f"--image-size {config.image_size}"]
        options += [f"--limit {config.limit}"] if config.limit else []
        plain = study.runner.degradation == PLAIN
        options += [] if plain else [f"--degradation {config.degradation}"]
        names = [section.name for section in self.sections]
        options += [f"--sections {','.join(names)}"] if set(names) != set(SECTIONS) else []
        options += [f"--agent {name}={shlex.quote(str(path))}" for name, path in config.agents.items()]
        options += [f"--levels {levels}" for levels in config.levels]
        options += [f"--train-images {shlex.quote(str(path))}" for path in config.train_images]
        source = "centre crops" if config.images else "crops of scikit-image's photographs"
        packages = ", ".join(f"{name} {version(name)}" for name in ("torch", "numpy", "pyiqa", "lpips"))
        return (
            "# The paper's tables and figures on this net\n\n"
            f"`skipdiff reproduce {' '.join(options)}`\n\n"
            f"{len(study.crops)} pictures of {config.image_size} px ({source}), shrunk and enlarged {study.unet.scale} "
            f"times{'' if plain else f' (degradation {config.degradation})'}; "
            f"T = {study.T}, S = {plan.S}, N = {plan.N}, coarse stage by {plan.coarse_sampler}. Figures are means over "
            f"pictures ± "
            f"the standard deviation of that mean over noise seeds ({config.seeds}). All methods have the same net, "
            f"pictures and "
            "noise. PSNR and SSIM are on luma; the colour error is the distance of a picture's mean colour from the "
            "target's, "
            "in grey levels; NFE counts UNet forwards. "
            '**Columns named "paper" hold the paper\'s own figures, on other nets and '
            f"other pictures** ({DATA.get(study.unet.scale, 'none for this scale')}).\n\n"
            f"{packages}, Python {platform.python_version()}, {config.device}, {sys.platform}. Every single result: "
            f"[rows.csv](rows.csv)."
        )


def make_work(config: Mapping[str, Any], settings: Mapping[str, Any], out: str) -> Callable[[list[list[int]]], int]:
    """What computes batches of a report, and writes their rows into its folder.

    Args:
        config: arguments of `ReportConfig`; their paths must mean the same wherever this is called.
        settings: what `Study.settings` gives where the report is made.
        out: folder of the report, which all share.

    Returns:
        A function of batches, each (noise seed, index of the first picture). It gives how many they were.

    Raises:
        ConfigError: pictures, weights or metrics are others here.
    """
    report = Report(Study(ReportConfig(**config)), Path(out))
    own = report.study.settings()
    others = [name for name in settings if name != "checkpoint" and own.get(name) != settings[name]]  # which is a path
    if others:
        raise ConfigError(f"a worker has other {', '.join(others)} than the command; all nodes must see the same files")

    def work(places: list[list[int]]) -> int:
        report.run([(seed, first) for seed, first in places])
        return len(places)

    return work
