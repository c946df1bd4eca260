"""`skipdiff reproduce`: the paper's tables and figures on one net, with the same noise and pictures, as one report.

The rows of each method on each batch are written under a temporary name and renamed, so that a run which was stopped
goes on where it was.
"""

import platform
import shlex
import sys
from importlib.metadata import version
from pathlib import Path

from agents.study.paper import DATA
from agents.study.paper_figures import SHOWN, Figure1, Figure5, Figures36, Peers
from agents.study.paper_tables import Table3, Table4, Table5, Table6, Tables12
from agents.study.rows import Row, flat
from agents.study.running import save_pictures, settle
from agents.study.section import Page, Section
from agents.study.study import Study
from agents.study.tables import write_csv
from ddpm.degradation import PLAIN
from ddpm.errors import ConfigError
from ddpm.files import atomic_path

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
        self.rows: list[Row] = []

    def compute(self) -> None:
        """Does what is left to do, with a bar that counts UNet forwards.

        Raises:
            ConfigError: the folder holds a report with other settings.
        """
        study, config = self.study, self.study.config
        settle(self.out / "settings.json", study.settings())
        methods = [method for section in self.sections for method in section.methods]
        # kept even where the pictures are not shown yet: the section may be added
        keep = save_pictures(self.out / "pictures", SHOWN, Figures36(study).methods)
        self.rows = study.runner.run(methods, study.crops, range(config.seeds), self.out / "parts", keep, "reproduce")
        for section in self.sections:
            section.prepare(self.out)

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
