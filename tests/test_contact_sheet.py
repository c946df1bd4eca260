"""The sheet of noisy and compressed photographs."""

from pathlib import Path

import numpy as np
from click.testing import CliRunner
from PIL import Image

from benchmarks.contact_sheet import LABEL, cases, limits, main
from ddpm.nets.unet import UNet


def test_twelve_cases_of_rising_harm() -> None:
    found = dict(cases(32))
    assert len(found) == 12
    clean = {label.split(",")[0] for label in found}
    assert clean == {"astronaut", "chelsea", "coffee", "rocket"}
    noisy = [np.abs(np.diff(found[f"rocket, noise {sigma}"].astype(int), axis=1)).mean() for sigma in (5, 10)]
    assert noisy[0] < noisy[1]
    assert all(picture.shape == (32, 32, 3) and picture.dtype == np.uint8 for picture in found.values())


def test_what_cannot_be_enlarged() -> None:
    found = dict(limits(40))
    assert list(found) == ["text", "a face", "noise 30"]
    assert all(picture.shape == (40, 40, 3) and picture.dtype == np.uint8 for picture in found.values())
    assert all(np.ptp(picture) > 100 for picture in found.values())


def test_the_sheet_shows_every_case(checkpoint: str, unet: UNet, tmp_path: Path) -> None:
    out = tmp_path / "sheet.png"
    result = CliRunner().invoke(main, ["-o", str(out), f"--checkpoint={checkpoint}", "--side=8"])
    assert result.exit_code == 0, result.output
    with Image.open(out) as sheet:
        side = 8 * unet.scale
        assert sheet.size == (3 * (2 * side + 8), 4 * (side + LABEL))
        # the last case: its bicubic enlargement and the result differ, and neither is blank
        pixels = np.asarray(sheet, dtype=int)[-side:, -2 * side - 8 : -8]
    assert np.ptp(pixels[:, :side]) > 0
    assert np.abs(pixels[:, :side] - pixels[:, side:]).max() > 0
