"""The benchmark of what there is to learn."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from agents.study import load_crops
from benchmarks.headroom import Levels, Outcomes, choose, local_search, main, neighbours
from ddpm.pictures.degradation import Degradation, picture_key
from skipdiff_env.metrics import Metric
from skipdiff_env.task import Task, TaskConfig


@pytest.fixture
def outcomes(short_checkpoint: str) -> Outcomes:
    """Two pictures and three noises without any result; -M rewards."""
    images = [np.full((32, 32, 3), grey, np.uint8) for grey in (60, 200)]
    config = TaskConfig(
        checkpoint=short_checkpoint, images=images, image_size=32, steps=(1, 6), skip_mode="jump", metric="colour"
    )
    return Outcomes(Task(config), [0, 1], 3, "negative")


def test_neighbours() -> None:
    assert set(neighbours((5, 3))) == {(5, 4), (5, 2), (5,), (5, 4, 3), (5, 3, 2), (5, 3, 1)}
    assert neighbours((5,)) == [(5, 1), (5, 2), (5, 3), (5, 4)]


def test_choice_under_the_other_noises(outcomes: Outcomes) -> None:
    """A schedule that one noise alone likes is the oracle's for it, and not the picture's."""
    first, second = (6, 3), (6,)
    outcomes.metrics = {
        first: {"colour": np.array([[0.0, 5.0, 5.0], [1.0, 1.0, 1.0]])},
        second: {"colour": np.array([[2.0, 2.0, 2.0], [0.9, 0.9, 0.9]])},
    }
    assert choose(outcomes, [first, second], 0, others=False).tolist() == [[0, 1, 1], [1, 1, 1]]
    # under the others noise 0 looks at 5, 5; noises 1 and 2 at 0, 5
    assert choose(outcomes, [first, second], 0, others=True).tolist() == [[1, 1, 1], [1, 1, 1]]
    assert choose(outcomes, [first, second], 5, others=True).tolist() == [[1, 1, 1], [1, 1, 1]]


def test_local_search(outcomes: Outcomes, monkeypatch: pytest.MonkeyPatch) -> None:
    goal = (6, 5, 2)

    def compute(self: Outcomes, schedules: list[Levels]) -> None:
        for levels in schedules:
            distance = len(set(goal) ^ set(levels))
            self.metrics.setdefault(levels, {"colour": np.full((2, 3), float(distance))})

    monkeypatch.setattr(Outcomes, "compute", compute)
    outcomes.compute([(6,)])
    assert local_search(outcomes, (6,), 0, minutes=10) == goal
    assert local_search(outcomes, (6,), 1.5, minutes=10) == (6,), "each level costs more than it brings"
    assert local_search(outcomes, (6,), 0, minutes=0) == (6,)


@pytest.mark.parametrize("skip_mode", ["jump", "restart"])
def test_command(
    short_checkpoint: str, photos: Path, random_judge: Path, skip_mode: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SKIPDIFF_JUDGE", str(random_judge))
    measured: list[str] = []
    measure = Metric.__call__

    def counted(metric: Metric, *args: Any) -> Any:
        measured.append(metric.name)
        return measure(metric, *args)

    monkeypatch.setattr(Metric, "__call__", counted)
    steps = "1,4" if skip_mode == "jump" else "3,4"
    run = CliRunner().invoke(
        main,
        [
            "--checkpoint",
            short_checkpoint,
            "--images",
            str(photos),
            "--limit",
            "2",
            "--image-size",
            "32",
            "--skip-mode",
            skip_mode,
            "--steps",
            steps,
            "--metric",
            "colour",
            "--noise-seeds",
            "2",
            "--train-noise-seeds",
            "1",
            "--prices",
            "0,1",
            "--search-minutes",
            "1",
        ],
    )
    assert run.exit_code == 0, run.output
    assert "2 pictures of 32 px, 2 noises; what is fixed was chosen on 2 others" in run.output
    table = [line.strip("| ").split(" | ") for line in run.output.splitlines() if line.startswith("| ")]
    head = next(line for line in table if "dists" in line)
    assert head == ["colour", "lpips", "psnr", "dists", "lpips-vgg", "NFE"]
    thing = "n" if skip_mode == "jump" else "start"
    rows = {line[0]: line[1:] for line in table if len(line) == 7}
    assert [float(rows[f"fixed {thing} = {n}"][-1]) for n in range(1, 5)] == [1, 2, 3, 4]
    colours = {name: float(cells[0]) for name, cells in rows.items()}
    assert colours["price 0: oracle"] <= min(value for name, value in colours.items() if name.startswith("fixed"))
    assert colours["price 0: oracle"] <= colours[f"price 0: {thing} per picture, under the other noises"]
    assert float(rows["price 1: oracle"][-1]) <= float(rows["price 0: oracle"][-1])
    assert any("best fixed schedule 4" in name for name in rows) == (skip_mode == "jump")
    assert "not luck" in run.output
    assert {"dists", "lpips-vgg"} <= set(measured)


def test_degradations(short_checkpoint: str, photos: Path, tmp_path: Path) -> None:
    """A table each, the comparison of what is best, and all of it as JSON."""
    file, picture = tmp_path / "numbers.json", tmp_path / "plot.webp"
    arguments = [
        f"--checkpoint={short_checkpoint}", f"--images={photos}", f"--train-images={photos}", "--limit=2",
        "--image-size=32", "--steps=1,3", "--metric=colour", "--noise-seeds=2", "--prices=0,1", "--search-minutes=0",
        "--degradation=bicubic", "--degradation=photo:1", "--degradation=photo", f"--json={file}", f"--plot={picture}",
    ]  # fmt: skip
    run = CliRunner().invoke(main, arguments)
    assert run.exit_code == 0, (run.output, run.exception)
    *_, first, second, third = (line.strip("| ").split(" | ") for line in run.output.splitlines() if line)
    assert [cells[0] for cells in (first, second, third)] == ["bicubic", "photo:1", "photo"]
    assert [cells[2] for cells in (first, second, third)] == ["1 / 1 / 1.0"] * 3, "at that price one forward is best"
    with Image.open(picture) as drawing:
        assert drawing.width > 3 * drawing.height * 0.8, "a plot for each degradation, side by side"
    plain, strong, drawn = json.loads(file.read_text(encoding="utf-8"))
    assert [each["degradation"] for each in (plain, strong, drawn)] == ["bicubic", "photo:1", "photo"]
    assert [each["strengths"]["noise"] for each in plain["pictures"] + strong["pictures"]] == [0, 0, 1, 1]
    target = load_crops([photos], 32)[2]
    expected = Degradation("photo").recipe(picture_key(target)).strengths
    assert drawn["pictures"][1] == {"name": str(photos / "2.png"), "strengths": expected}
    assert plain["rows"][0]["name"] == "fixed n = 1"
    assert plain["rows"][0]["nfe"] == 1
    assert plain["rows"][0]["psnr"] != strong["rows"][0]["psnr"]
    choice = strong["choices"][1]
    assert (choice["price"], choice["fixed"], choice["fixed_here"], choice["own"]) == (1, 1, 1, [[1, 1], [1, 1]])
