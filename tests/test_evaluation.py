"""`skipdiff evaluate` and `skipdiff demo`."""

import csv
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image
from safetensors.torch import load_file, save_file

from agents.cli import main
from agents.study import methods as ways
from agents.study import realesrgan
from agents.study.evaluation import evaluate
from agents.study.methods import Method
from agents.study.rows import ORIGINALS, START, Row, summarise, to_markdown, with_rewards
from agents.study.running import Runner, load_crops
from ddpm.checkpoints import load_denoiser, save_checkpoint, shipped_checkpoints
from ddpm.nets.denoiser import to_image
from ddpm.nets.predictor import PREDICTOR, load_predictor
from ddpm.nets.unet import ADD_ON, WEIGHTS, UNet
from ddpm.noise import KeyedNoise
from ddpm.pictures.degradation import downsample, upsample
from ddpm.sampling import coarse_approximation, refine, sample
from ddpm.schedule import FloatArray, cosine_alphas_cumprod
from ddpm.util.errors import ConfigError, ImageError
from skipdiff_env.config import TaskConfig
from skipdiff_env.judges import VARIABLE
from skipdiff_env.metrics import make_metric
from skipdiff_env.outcomes import OutcomeTable
from skipdiff_env.plan import Plan
from skipdiff_env.task import Task
from tests.conftest import Photo, tiny_unet
from tests.test_outcomes import jumping, made
from tests.untrained import untrained

__all__ = ["jumping"]


def test_methods_against_the_plain_samplers(unet: UNet, alphas_cumprod: FloatArray, count_forwards: Any) -> None:
    plan = Plan(10, 10)
    hr = torch.rand(2, 3, 16, 16) * 2 - 1
    results: dict[str, ways.Result] = {}
    forwards = count_forwards(unet)
    methods = [*ways.without_forwards(unet), ways.chain(100), ways.coarse_chain(plan), *ways.all_starts(plan)]
    Runner(unet, []).run(
        methods, list(hr), [3], keep=lambda batch, method, result: results.update({method.name: result})
    )
    lr_up = upsample(downsample(hr, 4), 4)
    assert sum(forwards) == 2 * (100 + 9 + 1 + sum(range(1, 11)))
    assert {name: r.nfe[0] for name, r in results.items() if "FSR" not in name} == {
        "bicubic": 0,
        "DDPM-100": 100,
        "CSA(10)": 10,
    }
    coarse = cosine_alphas_cumprod(10)
    noise = KeyedNoise([3, 3], (3, 16, 16))
    x_s1 = coarse_approximation(unet, coarse, lr_up, noise)
    expected = {
        "bicubic": lr_up,
        "DDPM-100": to_image(unet, sample(unet, alphas_cumprod, lr_up, noise), lr_up),
        "CSA(10)": to_image(unet, refine(unet, coarse, x_s1, lr_up, noise, 1), lr_up),
    }
    for start in range(1, 11):
        name = f"CSA(10) + FSR({start})"
        assert results[name].nfe == [9 + start] * 2
        assert [state.start for state in results[name].states] == [start] * 2
        expected[name] = to_image(unet, refine(unet, alphas_cumprod, x_s1, lr_up, noise, start), lr_up)
    assert results.keys() == expected.keys()
    for name, sr in expected.items():
        torch.testing.assert_close(results[name].sr, sr, atol=1e-5, rtol=0)


@pytest.fixture(autouse=True)
def no_other_net(monkeypatch: pytest.MonkeyPatch) -> None:
    """Real-ESRGAN is not installed, as in most environments."""
    monkeypatch.setattr(realesrgan, "missing", lambda: ["ncnn"])


def runner_of(checkpoint: str, *metrics: str, batch_size: int = 16) -> Runner:
    """A runner with the network of a checkpoint."""
    return Runner(load_denoiser(checkpoint), metrics, batch_size=batch_size)


def test_figures_are_those_of_the_pictures(short_checkpoint: str, photos: Path) -> None:
    crops = load_crops([photos], 96, limit=2)
    rows = evaluate(runner_of(short_checkpoint, "psnr", batch_size=1), crops, seeds=2)
    assert len(rows) == 2 * 2 * (3 + 4)
    bicubic = next(row for row in rows if row.method == "bicubic" and row.image == 1 and row.seed == 0)
    a, b = (
        np.round((x.double().numpy() + 1) * 127.5) for x in (crops[1], upsample(downsample(crops[1][None], 4), 4)[0])
    )
    luma = np.array([65.481, 128.553, 24.966]) / 255
    mse = np.mean(np.tensordot(luma, a - b, 1) ** 2)
    assert bicubic.metrics["psnr"] == pytest.approx(10 * np.log10(255**2 / mse), abs=1e-2)
    summary = {str(entry["method"]): entry for entry in summarise(rows)}
    assert summary["bicubic"]["psnr_std"] == 0
    assert summary["CSA(3)"]["psnr_std"] != 0
    own = [[r.metrics["psnr"] for r in rows if r.method == "CSA(3)" and r.seed == seed] for seed in (0, 1)]
    assert summary["CSA(3)"]["psnr"] == pytest.approx(np.mean(own))
    assert summary["CSA(3)"]["psnr_std"] == pytest.approx(np.std(np.mean(own, axis=1)))


def test_originals(short_checkpoint: str, photos: Path) -> None:
    """The last row holds what metrics without reference say of the targets; the others have nothing to compare with."""
    crops = load_crops([photos], 96, limit=3)
    runner = runner_of(short_checkpoint, "psnr", "niqe", "piqe", batch_size=2)
    rows = evaluate(runner, crops, seeds=2, reward="psnr")
    own = [row for row in rows if row.family == ORIGINALS]
    assert own == rows[-3:]
    assert [(row.image, row.seed) for row in own] == [(0, 0), (1, 0), (2, 0)]
    for row, crop in zip(own, crops, strict=True):
        expected = {name: pytest.approx(make_metric(name)(crop[None])[0], rel=1e-5) for name in ("niqe", "piqe")}
        assert row.metrics == expected
    *_, entry = summarise(rows)
    assert entry["niqe"] == pytest.approx(np.mean([row.metrics["niqe"] for row in own]))
    assert entry["failures"] == 0
    assert "psnr" not in entry
    line = to_markdown(rows).splitlines()[-1]
    assert line.startswith(f"| originals | – | {entry['niqe']:.2f} | {entry['piqe']:.2f} | – | – |")
    assert not [row for row in evaluate(runner_of(short_checkpoint, "psnr"), crops[:1]) if row.method == "originals"]


def untimed(rows: Sequence[Row]) -> list[str]:
    """Rows without their times, as text, since a reward that is NaN equals nothing."""
    return [repr(replace(row, seconds=0, policy_seconds=0)) for row in rows]


def test_going_on(short_checkpoint: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an interrupted evaluation has finished is not computed again, and others may be added."""
    crops = load_crops([photos], 96, limit=2)

    def run(*metrics: str, batch_size: int = 1, seeds: int = 2, **changes: Any) -> list[Row]:
        settings: dict[str, Any] = {"asked": {"steps": (3, 4)}, "folder": tmp_path / "out"}
        runner = runner_of(short_checkpoint, *(metrics or ["psnr"]), batch_size=batch_size)
        return evaluate(runner, crops, seeds=seeds, **{**settings, **changes})

    whole = run(folder=None)
    ran: list[str] = []
    original = Runner.measure

    def interrupted(self: Runner, method: Method, *rest: Any) -> list[Row]:
        if len(ran) == 9:
            raise KeyboardInterrupt
        ran.append(method.name)
        return original(self, method, *rest)

    monkeypatch.setattr(Runner, "measure", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run()
    ran += ["the interruption"]
    rows = run()
    assert len([name for name in ran if name != ORIGINALS]) - 1 == len(whole)
    assert untimed(rows) == untimed(whole)
    ran.clear()
    more = run(levels=["even:2"])
    assert ran == ["ddim, 2 even steps"] * 4
    assert len(more) == len(whole) + 4
    for name in ("seeds", "batch_size"):
        with pytest.raises(ConfigError, match=f"holds results with {name}"):
            run(**{name: 3})
    with pytest.raises(ConfigError, match="holds results with metrics"):
        run("psnr", "ssim")
    with pytest.raises(ConfigError, match="holds results with plan"):
        run(asked={"steps": (2, 6)})


def test_rows_of_others_are_no_part_of_it(
    photos: Path, photo: Photo, random_judge: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither those of other weights, be they the predictor's, the substeps' or a judge's, nor of other pictures."""
    predictors = [shipped_checkpoints()[name] / PREDICTOR for name in ("natural-x4", "photo-x4")]
    net, judge = tmp_path / "net", tmp_path / "judge.safetensors"
    unet = tiny_unet(diffusion_steps=12, coarse_steps=3, start=None)
    unet.start_from(load_predictor(predictors[0]))
    jumps = unet.jump_network()
    assert jumps.jump is not None
    with torch.no_grad():
        for parameter in jumps.jump.parameters():
            parameter.add_(0.01)
    unet.add_substeps(4, jumps)
    save_checkpoint(unet, net)
    shutil.copyfile(random_judge, judge)
    monkeypatch.setenv(VARIABLE, str(judge))
    kept = {file: file.read_bytes() for file in (*net.iterdir(), judge, photos / "0.png")}

    def run() -> list[Row]:
        crops = load_crops([photos], 32, limit=1)
        return evaluate(runner_of(str(net), "psnr", "dists"), crops, asked={"steps": (3, 4)}, folder=tmp_path / "out")

    def change(file: Path) -> None:
        """Writes tensors that differ a little."""
        tensors = load_file(file)
        save_file({name: each * (1.01 if each.is_floating_point() else 1) for name, each in tensors.items()}, file)

    first = run()
    changes: dict[Path, tuple[str, Callable[[Path], object]]] = {
        net / PREDICTOR: ("weights", lambda file: shutil.copyfile(predictors[1], file)),
        net / ADD_ON: ("weights", change),
        net / WEIGHTS: ("weights", change),
        judge: ("judge", change),
        photos / "0.png": ("pictures", lambda file: Image.fromarray(photo(128, 128, seed=9)).save(file)),
    }
    for file, (name, make) in changes.items():
        make(file)
        with pytest.raises(ConfigError, match=f"holds results with {name} .*, got .*; continue with the same settings"):
            run()
        file.write_bytes(kept[file])
    assert untimed(run()) == untimed(first)


def test_dists_is_shown_where_its_weights_are(
    short_checkpoint: str, photos: Path, tmp_path: Path, random_judge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments = [f"--images={photos}", f"--checkpoint={short_checkpoint}", "--limit=1", "--image-size=96"]
    without = CliRunner().invoke(main, ["evaluate", *arguments])
    assert without.exit_code == 0, without.output
    assert "| method | PSNR-Y | SSIM-Y | NIQE | LPIPS | colour error | reward |" in without.stdout
    assert "DISTS is left out" in without.stderr
    assert "DISTS" not in without.stdout
    monkeypatch.setenv(VARIABLE, str(random_judge))
    out = tmp_path / "out"
    result = CliRunner().invoke(main, ["evaluate", *arguments, f"--out={out}"])
    assert result.exit_code == 0, result.output
    assert "| method | PSNR-Y | SSIM-Y | NIQE | LPIPS | DISTS | colour error | reward |" in result.stdout
    assert "DISTS" not in result.stderr
    first, *_, last = json.loads((out / "table.json").read_text(encoding="utf-8"))
    (hr,) = load_crops([photos], 96, limit=1)
    assert first["dists"] == pytest.approx(
        make_metric("dists")(upsample(downsample(hr[None], 4), 4), hr[None])[0], rel=1e-4
    )
    assert last["method"] == "originals"
    assert "dists" not in last
    drawn = CliRunner().invoke(main, ["plot", f"--evaluation={out}", f"--out={tmp_path / 'plots'}"])
    assert drawn.exit_code == 0, (drawn.output, drawn.exception)


def test_a_judge_is_no_reward(checkpoint: str, photos: Path, tmp_path: Path) -> None:
    common = [f"--images={photos}", f"--checkpoint={checkpoint}", f"--out={tmp_path / 'out'}"]
    for arguments in (
        ["evaluate", "--metrics=psnr,dists", "--reward=dists", *common],
        ["train-agent", "--env=SkipDiff-v0", "--metric=dists", "--image-size=32", *common],
    ):
        result = CliRunner().invoke(main, arguments)
        assert result.exit_code == 2, (result.output, result.exception)
        assert "dists is a judge and cannot be the reward's metric" in " ".join(result.output.split())
        assert not (tmp_path / "out").exists()


def test_a_limit_takes_pictures_from_everywhere() -> None:
    tiles = load_crops(None, 96)  # scikit-image's photographs
    few = load_crops([], 96, limit=4)
    assert len(tiles) > 8
    for i, crop in enumerate(few):
        torch.testing.assert_close(crop, tiles[i * len(tiles) // 4], rtol=0, atol=0)
    assert len(load_crops(None, 96, limit=10_000)) == len(tiles)


def test_failed_metrics_are_counted_and_left_out() -> None:
    rows = [Row("a", "peer", i, 0, 3, 1.0, {"niqe": value}) for i, value in enumerate([4.0, float("nan"), 6.0])]
    (entry,) = summarise(rows)
    assert entry["niqe"] == 5
    assert entry["failures"] == 1
    assert "| a | 5.00 | 3.0 | 1.00 |" in to_markdown(rows)


def test_best_start_of_a_picture_is_chosen_under_other_noises() -> None:
    """Picture 0 has its best start (2) under every noise; picture 1's is the noise's, and never the others'."""
    psnr = {
        (0, 0): (10, 20, 15), (0, 1): (11, 19, 15), (0, 2): (12, 21, 15),
        (1, 0): (30, 20, 10), (1, 1): (20, 30, 10), (1, 2): (10, 20, 30),
    }  # fmt: skip
    rows = [
        Row(f"CSA(3) + FSR({start})", START, image, seed, 2 + start, 0.0, {"psnr": float(value)}, start)
        for (image, seed), values in psnr.items()
        for start, value in enumerate(values, start=1)
    ]
    rows = with_rewards(rows, make_metric("psnr"))
    chosen = {(row.image, row.seed): row.start for row in rows if row.method == "each picture's best start"}
    # under seeds 1 and 2 picture 1 has means 15, 25, 20; under 0 and 2: 20, 20, 20 and the first counts; under 0 and 1:
    # 25, 25, 10
    assert chosen == {(0, 0): 2, (0, 1): 2, (0, 2): 2, (1, 0): 2, (1, 1): 1, (1, 2): 1}
    summary = {str(entry["method"]): entry for entry in summarise(rows)}
    assert summary["oracle"]["reward"] == pytest.approx((20 + 19 + 21 + 30 + 30 + 30) / 6)
    assert summary["each picture's best start"]["reward"] == pytest.approx((20 + 19 + 21 + 20 + 20 + 10) / 6)
    assert summary["each picture's best start"]["regret"] == pytest.approx((0 + 0 + 0 + 10 + 10 + 20) / 6)
    one = with_rewards([row for row in rows if row.seed == 0 and row.family == START], make_metric("psnr"))
    assert not [row for row in one if row.method == "each picture's best start"]


def test_command(checkpoint: str, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    args = [f"--images={photos}", f"--checkpoint={checkpoint}", "--steps=10,10", "--limit=2", "--metrics=psnr,lpips"]
    result = CliRunner().invoke(main, ["evaluate", *args, "--image-size=96", f"--out={out}"])
    assert result.exit_code == 0, result.output
    assert "| method | PSNR-Y | LPIPS | NFE | s/picture |" in result.output
    assert "| CSA(10) + FSR(10) |" in result.output
    table = json.loads((out / "table.json").read_text(encoding="utf-8"))
    assert [entry["method"] for entry in table][:3] == ["bicubic", "DDPM-100", "CSA(10)"]
    with (out / "rows.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 2 * 13
    assert float(rows[0]["psnr"]) > 10
    assert (out / "table.md").read_text(encoding="utf-8").count("\n") == 15 + 2
    assert {p.name for p in out.iterdir()} == {
        "table.json", "table.md", "table.csv", "rows.csv", "pictures", "parts", "settings.json", "report.md"
    }  # fmt: skip


def test_bad_input(checkpoint: str, photos: Path, photo: Photo) -> None:
    Image.fromarray(photo(100, 200)).save(photos / "small.png")
    with pytest.raises(ImageError, match=r"small.png is 200 x 100, smaller than image_size 128"):
        load_crops([photos], 128)
    crops = load_crops([photos / "0.png"], 94)
    with pytest.raises(ConfigError, match="multiple of 4 for this checkpoint, got 94"):
        evaluate(runner_of(checkpoint, "niqe"), crops)
    with pytest.raises(ConfigError, match="at least 96 pixels"):
        evaluate(runner_of(checkpoint, "niqe"), load_crops([photos / "0.png"], 64))
    with pytest.raises(ConfigError, match="unknown metric 'nique'"):
        runner_of(checkpoint, "nique")


@pytest.mark.slow
def test_demo(jumping: str, short_checkpoint: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "tables" / Path(jumping).name
    folder.mkdir(parents=True)
    for module in ("agents.cli.demo", "skipdiff_env.outcomes"):
        monkeypatch.setattr(f"{module}.TABLES", folder.parent)
    monkeypatch.setattr("agents.cli.demo.DECISIONS", 20_000)
    monkeypatch.setattr("agents.cli.demo.SIZE", 96)
    monkeypatch.setattr(OutcomeTable, "load", classmethod(lambda cls, table: made()))
    arguments = ["demo", f"--checkpoint={jumping}", "-o", str(tmp_path / "demo.png")]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, result.output
    for method in ("bicubic", "DDPM-100", "CSA(10)", "CSA(10) + FSR(5)"):
        assert f"| {method} |" in result.output
    assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["demo-agent.png", "demo.png"]
    with Image.open(tmp_path / "demo.png") as image:
        assert image.width > 1000
    with Image.open(tmp_path / "demo-agent.png") as image:  # the learning curve, chelsea and rocket
        assert image.width > 1000
    found = re.search(r"it scores (\S+), with a 95 % interval from (\S+) to (\S+):", result.output)
    assert found is not None
    assert float(found[2].rstrip(".")) <= float(found[1].rstrip(",")) <= float(found[3].rstrip("."))
    assert float(found[1].rstrip(",")) > 0.3, "it has learnt something"
    result = CliRunner().invoke(main, ["demo", f"--checkpoint={short_checkpoint}", "-o", str(tmp_path / "other.png")])
    assert result.exit_code == 0, result.output
    assert "No agent is trained: no table ships for " in result.output


def test_demo_knows_early_what_it_cannot_write() -> None:
    result = CliRunner().invoke(main, ["demo", "--checkpoint=none", "-o", "0.2,0.1"])
    assert result.exit_code == 2
    assert "expected a file ending in .png, .jpg, .jpeg, .webp, got 0.2,0.1" in result.output


def command(*arguments: object, code: int = 0) -> Result:
    """Runs a command."""
    result = CliRunner().invoke(main, [str(argument) for argument in arguments])
    assert result.exit_code == code, (result.output, result.exception)
    return result


def save_agent(folder: Path, plan: Plan, **env: object) -> Path:
    """An untrained agent, whose weights are always the same."""
    untrained(plan, training={"env": env}).save(folder)
    return folder


@pytest.fixture
def agent_folder(tmp_path: Path) -> Path:
    return save_agent(tmp_path / "agent", Plan(20, 5), metric="psnr")


def test_evaluate_with_agents(short_checkpoint: str, photos: Path, tmp_path: Path) -> None:
    out, agent_folder = tmp_path / "out", save_agent(tmp_path / "agent", Plan(3, 4), metric="psnr")
    result = command(
        "evaluate",
        f"--images={photos}",
        f"--train-images={photos / '0.png'}",
        f"--checkpoint={short_checkpoint}",
        "--steps=3,4",
        "--image-size=96",
        "--metrics=psnr",
        "--seeds=2",
        "--limit=2",
        f"--agent={agent_folder}",
        f"--agent=mine={agent_folder}",
        f"--out={out}",
        "--pictures=1",
    )
    assert "| method | PSNR-Y | reward | regret | NFE | s/picture |" in result.output
    with (out / "rows.csv").open(newline="", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    by_method: dict[str, dict[tuple[str, str], dict[str, Any]]] = {}
    for row in rows:
        by_method.setdefault(row["method"], {})[row["image"], row["seed"]] = row
    assert all(len(own) == 4 for own in by_method.values())
    (best,) = (method for method in by_method if method.startswith("best fixed start"))
    assert {"bicubic", "DDPM-12", "CSA(3)", "agent agent", "agent mine", "random skipping", "oracle"} < set(by_method)
    for place, oracle in by_method["oracle"].items():
        rewards = [float(by_method[f"CSA(3) + FSR({start})"][place]["reward"]) for start in range(1, 5)]
        assert float(oracle["reward"]) == max(rewards)
        assert int(oracle["start"]) == int(np.argmax(rewards)) + 1
        for own in by_method.values():
            row = own[place]
            assert float(row["reward"]) == float(row["psnr"])
            assert float(row["regret"]) == pytest.approx(max(rewards) - float(row["psnr"]))
        agent = by_method["agent agent"][place]
        assert float(agent["reward"]) == pytest.approx(rewards[int(agent["start"]) - 1], abs=1e-4)
        start = int(by_method[best][place]["start"])
        assert best == f"best fixed start ({start})"
        assert float(by_method[best][place]["reward"]) == rewards[start - 1]
    config = TaskConfig(
        checkpoint=short_checkpoint, images=str(photos / "0.png"), image_size=96, steps=(3, 4), metric="psnr"
    )
    task = Task(config)
    assert start == task.schedule_outcomes([0], [0]).rewards()[0, 0].argmax() + 1
    assert {path.name for path in (out / "pictures" / "000").iterdir()} >= {
        "bicubic.png",
        "agent agent.png",
        "original.png",
    }
    command("plot", f"--evaluation={out}", f"--out={tmp_path / 'figures'}")
    names = {path.stem for path in (tmp_path / "figures").iterdir()}
    page = (tmp_path / "figures" / "report.md").read_text(encoding="utf-8")
    assert set(re.findall(r"\((\w+)\.webp\)", page)) == names - {"report"}
    assert (out / "table.md").read_text(encoding="utf-8").strip() in page
    assert names == {
        "quality_against_forwards",
        "quality_against_seconds",
        "starts",
        "contact_sheet",
        "report",
    }  # no perceptual metric was measured


def test_every_agent_decides_under_its_own_plan(short_checkpoint: str, photos: Path, tmp_path: Path) -> None:
    """Another agent beside it changes nothing; one of another coarse sampler, one of other steps, and one of jumps."""
    plans = {
        "first": Plan(3, 4),
        "sampler": Plan(3, 4, coarse_sampler="ddim"),
        "steps": Plan(2, 6),
        "jumps": Plan(1, 5, fine_sampler="ddim", skip_mode="jump"),
    }
    agents = {name: save_agent(tmp_path / name, plan) for name, plan in plans.items()}

    def evaluate(*names: str) -> dict[str, list[dict[str, str]]]:
        out = tmp_path / "_".join(names)
        command(
            "evaluate", f"--images={photos}", f"--checkpoint={short_checkpoint}", "--image-size=96", "--metrics=psnr",
            "--limit=2", "--pictures=0", f"--out={out}", *(f"--agent={agents[name]}" for name in names),
        )  # fmt: skip
        with (out / "rows.csv").open(newline="", encoding="utf-8") as file:
            rows = list(csv.DictReader(file))
        own: dict[str, list[dict[str, str]]] = {}
        for row in rows:
            shown = ("method", "family", "image", "psnr", "nfe", "start", "levels")
            own.setdefault(row["method"], []).append({name: row[name] for name in shown})
        return own

    together = evaluate(*plans)
    for name in plans:
        assert together[f"agent {name}"] == evaluate(name)[f"agent {name}"]
    assert together["agent first"] != together["agent sampler"]
    # the fixed starts are those of the first agent
    assert {row["method"] for rows in together.values() for row in rows if row["family"] == START} == {
        f"CSA(3) + FSR({start})" for start in range(1, 5)
    }
    for row in together["agent jumps"]:
        levels = row["levels"].split()
        assert levels[0] == "5"
        assert row["nfe"] == str(len(levels))
    alone = evaluate("sampler")
    assert "CSA(3, ddim) + FSR(4)" in alone


def test_levels(short_checkpoint: str, photos: Path, tmp_path: Path) -> None:
    """Fixed schedules by name, beside the rest."""
    out = tmp_path / "out"
    common = ("evaluate", f"--images={photos}", f"--checkpoint={short_checkpoint}", "--image-size=96", "--limit=1")
    command(
        *common, "--metrics=psnr", f"--out={out}", "--levels=6,4,1", "--levels=ddpm/even:12", "--levels=ddim:0.5/9,2"
    )
    table = {entry["method"]: entry for entry in json.loads((out / "table.json").read_text(encoding="utf-8"))}
    assert {entry["method"]: entry["nfe"] for entry in table.values() if entry["family"] == "schedule"} == {
        "ddim, levels 6,4,1": 3, "ddpm, 12 even steps": 12, "ddim:0.5, levels 9,2": 2,
    }  # fmt: skip
    # as many even steps as the net has, with all of the noise, are the full chain
    assert table["ddpm, 12 even steps"]["psnr"] == pytest.approx(table["DDPM-12"]["psnr"], abs=1e-3)
    assert table["ddim, levels 6,4,1"]["psnr"] != table["ddim:0.5, levels 9,2"]["psnr"]
    for levels, message in (
        ("6,8", "falling whole numbers"),
        ("even:x", "or even:8 for 8 even steps"),
        ("even:0", "falling whole numbers"),
        ("heun/6,4", "the sampler of levels must be one of"),
    ):
        refused = command(*common, "--metrics=psnr", f"--levels={levels}", code=2)
        assert message in " ".join(refused.output.split())


def test_dominated_methods_are_named(short_checkpoint: str, photos: Path, tmp_path: Path) -> None:
    """The last column of the table agrees with its figures."""
    out = tmp_path / "out"
    said = command(
        "evaluate", f"--images={photos}", f"--checkpoint={short_checkpoint}", "--image-size=96", "--limit=1",
        "--metrics=psnr,lpips", f"--out={out}",
    ).output  # fmt: skip
    assert "| NFE | s/picture | dominated by |" in said
    assert "at least as good in PSNR-Y and LPIPS, and better in one of them" in said
    table = [e for e in json.loads((out / "table.json").read_text(encoding="utf-8")) if "dominated_by" in e]
    assert len(table) == 3 + 4
    by_name = {entry["method"]: entry for entry in table}
    for entry in table:
        better = [
            other["method"]
            for other in table
            if other is not entry
            and other["nfe"] <= entry["nfe"]
            and other["psnr"] >= entry["psnr"]
            and other["lpips"] <= entry["lpips"]
        ]
        assert (entry["dominated_by"] == "–") == (not better)
        if better:
            assert entry["dominated_by"] in better
            assert by_name[entry["dominated_by"]]["dominated_by"] == "–"
