"""`skipdiff evaluate` and `skipdiff demo`."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from PIL import Image

from agents.cli import main
from agents.evaluation import Row, compare, evaluate, load_crops, summarise, to_markdown
from ddpm.degradation import degrade
from ddpm.errors import ConfigError, ImageError
from ddpm.noise import KeyedNoise
from ddpm.sampling import coarse_approximation, refine, sample, to_image
from ddpm.schedule import FloatArray, cosine_alphas_cumprod
from ddpm.unet import UNet
from skipdiff_env.refinement import RefinementProcess
from tests.conftest import Photo


def test_methods_against_the_plain_samplers(unet: UNet, alphas_cumprod: FloatArray, count_forwards: Any) -> None:
    process = RefinementProcess(unet, 100, (10, 10))
    lr_up = torch.rand(2, 3, 16, 16) * 2 - 1
    forwards = count_forwards(unet)
    results = compare(process, lr_up, [3, 4], range(1, 11))
    assert sum(forwards) == 2 * (100 + 9 + 1 + sum(range(1, 11)))
    assert {name: r.nfe[0] for name, r in results.items() if "FSR" not in name} == {
        "bicubic": 0,
        "DDPM-100": 100,
        "CSA(10)": 10,
    }
    coarse = cosine_alphas_cumprod(10)
    noise = KeyedNoise([3, 4], (3, 16, 16))
    x_s1 = coarse_approximation(unet, coarse, lr_up, noise)
    expected = {
        "bicubic": lr_up,
        "DDPM-100": to_image(unet, sample(unet, alphas_cumprod, lr_up, noise), lr_up),
        "CSA(10)": to_image(unet, refine(unet, coarse, x_s1, lr_up, noise, 1), lr_up),
    }
    for start in range(1, 11):
        name = f"CSA(10) + FSR({start})"
        assert results[name].nfe == [9 + start] * 2
        assert results[name].start == [start] * 2
        expected[name] = to_image(unet, refine(unet, alphas_cumprod, x_s1, lr_up, noise, start), lr_up)
    assert results.keys() == expected.keys()
    for name, sr in expected.items():
        torch.testing.assert_close(results[name].sr, sr, atol=1e-5, rtol=0)


def test_figures_are_those_of_the_pictures(checkpoint: str, photos: Path) -> None:
    crops = load_crops([photos], 96, limit=2)
    rows = evaluate(crops, checkpoint, seeds=2, metrics=["psnr"], batch_size=1)
    assert len(rows) == 2 * 2 * (3 + 10)
    bicubic = next(row for row in rows if row.method == "bicubic" and row.image == 1 and row.seed == 0)
    a, b = (np.round((x.double().numpy() + 1) * 127.5) for x in (crops[1], degrade(crops[1][None], 4)[0]))
    luma = np.array([65.481, 128.553, 24.966]) / 255
    mse = np.mean(np.tensordot(luma, a - b, 1) ** 2)
    assert bicubic.metrics["psnr"] == pytest.approx(10 * np.log10(255**2 / mse), abs=1e-2)
    summary = {str(entry["method"]): entry for entry in summarise(rows)}
    assert summary["bicubic"]["psnr_std"] == 0
    assert summary["CSA(10)"]["psnr_std"] != 0
    own = [[r.metrics["psnr"] for r in rows if r.method == "CSA(10)" and r.seed == seed] for seed in (0, 1)]
    assert summary["CSA(10)"]["psnr"] == pytest.approx(np.mean(own))
    assert summary["CSA(10)"]["psnr_std"] == pytest.approx(np.std(np.mean(own, axis=1)))


def test_failed_metrics_are_counted_and_left_out() -> None:
    rows = [Row("a", i, 0, 3, 1.0, {"niqe": value}) for i, value in enumerate([4.0, float("nan"), 6.0])]
    (entry,) = summarise(rows)
    assert entry["niqe"] == 5
    assert entry["failures"] == 1
    assert "| a | 5.00 | 3.0 | 1.00 |" in to_markdown(rows)


def test_command(checkpoint: str, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    args = [f"--images={photos}", f"--checkpoint={checkpoint}", "--steps=10,10", "--limit=2", "--metrics=psnr,lpips"]
    result = CliRunner().invoke(main, ["evaluate", *args, "--image-size=96", f"--out={out}"])
    assert result.exit_code == 0, result.output
    assert "| method | PSNR-Y | LPIPS | NFE | s/picture |" in result.output
    assert "| CSA(10) + FSR(10) |" in result.output
    table = json.loads((out / "table.json").read_text())
    assert [entry["method"] for entry in table][:3] == ["bicubic", "DDPM-100", "CSA(10)"]
    with (out / "rows.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 13
    assert float(rows[0]["psnr"]) > 10
    assert (out / "table.md").read_text().count("\n") == 15
    assert {p.name for p in out.iterdir()} == {"table.json", "table.md", "table.csv", "rows.csv", "pictures"}


def test_bad_input(checkpoint: str, photos: Path, photo: Photo) -> None:
    Image.fromarray(photo(100, 200)).save(photos / "small.png")
    with pytest.raises(ImageError, match=r"small.png is 200 x 100, smaller than the crop of 128"):
        load_crops([photos], 128)
    crops = load_crops([photos / "0.png"], 94)
    with pytest.raises(ConfigError, match="multiples of 4, got 94"):
        evaluate(crops, checkpoint)
    with pytest.raises(ConfigError, match="at least 96 pixels"):
        evaluate(load_crops([photos / "0.png"], 64), checkpoint)
    with pytest.raises(ConfigError, match="unknown metric 'nique'"):
        evaluate(crops, checkpoint, metrics=["nique"])


def test_demo(checkpoint: str, tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["demo", f"--checkpoint={checkpoint}", "-o", str(tmp_path / "demo.png")])
    assert result.exit_code == 0, result.output
    for method in ("bicubic", "DDPM-100", "CSA(10)", "CSA(10) + FSR(5)"):
        assert f"| {method} |" in result.output
    with Image.open(tmp_path / "demo.png") as image:
        assert image.width > 1000
    assert [p.name for p in tmp_path.iterdir()] == ["demo.png"]
