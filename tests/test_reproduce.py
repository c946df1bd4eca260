"""`skipdiff reproduce`: the report, its parts, and other networks beside ours."""

import csv
import importlib.util
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner, Result
from numpy.typing import NDArray

from agents.cli import main
from agents.study import methods, realesrgan
from agents.study.methods import Method
from agents.study.paper import SECTIONS, count_flops
from agents.study.rows import OTHER_NET, OTHER_START, START, Row, read_rows, summarise
from agents.study.running import Runner
from ddpm.checkpoints import load_unet
from skipdiff_env.judges import VARIABLE
from skipdiff_env.plan import Plan
from tests.conftest import tiny_unet
from tests.untrained import untrained

# Forwards for one picture and noise at T = 12, (S, N) = (3, 4): chains of 2, 3, 4 and 12 steps; starts 4 … 1; of case
# 3, 11 and 8; of case 4, 8; S,N = 4,3 from 3 and 2; two coarse samplers with starts 4, 3, 2; four peers, DDNM and
# Heun, which takes odd numbers, at 3, 5, 8 and 12; CCDF from 4 at 3, from 7 at 3 and 5; DDPM-5 and DDPM-8.
FORWARDS = (2 + 3 + 4 + 12) + 10 + (11 + 8) + 8 + 5 + 2 * (2 + 9) + (5 * 28 + 3 + 5 + 7 + 11) + (3 + 3 + 5) + 13


@pytest.fixture(autouse=True)
def without_other_nets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows on every machine."""
    monkeypatch.setattr(realesrgan, "PACKAGES", ("no_such_package",))


def save_agent(folder: Path, plan: Plan | None = None, seed: int = 0, **env: Any) -> str:
    """An untrained agent."""
    plan = plan or Plan(3, 4)
    untrained(plan, seed=seed, training={"env": env}).save(folder)
    return str(folder)


class Reproduce:
    """The command on two pictures of 96 px under two noises, unless options say otherwise."""

    def __init__(self, checkpoint: str, photos: Path) -> None:
        self.options = {"checkpoint": checkpoint, "images": photos, "limit": 2, "image-size": 96, "seeds": 2}

    def __call__(self, out: Path, *more: str, code: int = 0, **changes: Any) -> Result:
        options = self.options | {name.replace("_", "-"): value for name, value in changes.items()}
        arguments = [f"--{name}={value}" for name, value in options.items()]
        result = CliRunner().invoke(main, ["reproduce", f"--out={out}", *arguments, *more])
        assert result.exit_code == code, (result.output, result.exception)
        return result


@pytest.fixture
def reproduce(short_checkpoint: str, photos: Path) -> Reproduce:
    return Reproduce(short_checkpoint, photos)


@pytest.fixture
def forwards(short_checkpoint: str, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The sizes of the batches of all forwards of the network of the command."""
    sizes: list[int] = []
    net = load_unet(short_checkpoint)
    net.register_forward_hook(lambda module, args, out: sizes.append(len(args[0])))
    monkeypatch.setattr("ddpm.checkpoints.load_unet", lambda *_: net)
    return sizes


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def table(report: str, title: str) -> list[dict[str, str]]:
    """The first table below a title of a report: heading → cell, for each line."""
    lines = report.partition(f"## {title}")[2].splitlines()
    first = next(i for i, line in enumerate(lines) if line.startswith("| "))
    cells = [[cell.strip() for cell in line.strip("|").split(" | ")] for line in lines[first:]]
    last = next((i for i, line in enumerate(lines[first:]) if not line), len(cells))
    return [dict(zip(cells[0], line, strict=True)) for line in cells[2:last]]


def text_of(out: Path) -> str:
    return (out / "report.md").read_text(encoding="utf-8")


def test_the_report_is_whole_and_nothing_is_computed_twice(
    reproduce: Reproduce, forwards: list[int], tmp_path: Path
) -> None:
    reproduce(tmp_path, limit=1)
    assert sum(forwards) == FORWARDS * 2 + 1  # and one for the FLOPs
    text = text_of(tmp_path)
    for title in ("Tables 1 and 2:", "Table 3:", "Table 4:", "Table 5:", "Table 6:", "All methods"):
        assert f"## {title}" in text
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert {Path(link).stem for link in links} == {
        "perception_distortion", "quality_against_forwards", "quality_against_seconds", "starts", "contact_sheet",
    }  # fmt: skip
    for link in links:
        assert (tmp_path / link).stat().st_size > 0
    rows = read(tmp_path / "rows.csv")
    assert len(rows) == len({(row["method"], row["image"], row["seed"]) for row in rows})
    assert not list(tmp_path.rglob(".*")), "no temporary file is left"
    methods = {row["method"] for row in rows}
    assert {"CSA(2)", "CSA(3)", "CSA(4)", "DDPM-12", "CSA(4) + FSR(3)", "DDIM, 8", "oracle", "originals"} < methods
    # a start of another plan is none that the oracle may choose
    families = {row["method"]: row["family"] for row in rows}
    assert [families[f"CSA(3) + FSR({start})"] for start in (8, 4, 1)] == [OTHER_START, START, START]
    paper = {row["method"]: row["PSNR-Y, paper"] for row in table(text, "Tables 1 and 2")}
    assert paper == {
        "bicubic": "25.60", "DDRM (not run here)": "26.68", "DDPM-12": "26.38", "SkipDiff (fixed start 4)": "26.65",
        "originals": "–",
    }  # fmt: skip
    *_, originals = table(text, "Tables 1 and 2")
    niqe = [float(row["niqe"]) for row in rows if row["method"] == "originals"]
    assert originals["NIQE"] == f"{np.mean(niqe):.2f}"
    assert originals["PSNR-Y"] == originals["LPIPS"] == "–"
    cases = [(line["case"].partition(",")[0], line["method"]) for line in table(text, "Table 4")]
    assert [case for case, _ in cases] == ["1", "2", "3", "4", "5"]
    assert all("(no agent: the best fixed start on these pictures)" in method for _, method in cases[2:4])
    # what the best fixed start of Table 6 was chosen by
    rewards: dict[str, list[float]] = {}
    for row in rows:
        if row["family"] == START:
            rewards.setdefault(row["method"], []).append(1 / float(row["lpips"]))
    best = max(rewards, key=lambda method: float(np.mean(rewards[method])))
    assert f"reward 1/LPIPS: {best} (no agent: the best fixed start on these pictures)" in text
    speed = {line["method"]: line for line in table(text, "Table 3")}
    assert float(speed["SkipDiff (fixed start 4)"]["times fewer FLOPs"]) == pytest.approx(12 / 6, abs=0.01)
    assert "Differences to CSA(3) + FSR(4), with 95 % bootstrap intervals over 1 photograph;" in text


def test_going_on(reproduce: Reproduce, forwards: list[int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was stopped goes on where it was; the rows are those of one that was not."""
    settings: dict[str, Any] = {"sections": "fig1,table5", "seeds": 1, "batch_size": 1}
    reproduce(tmp_path / "whole", **settings)
    at_once = sum(forwards)
    forwards.clear()
    left, measure = [9], Runner.measure

    def stop(runner: Runner, method: Method, *args: Any) -> list[Row]:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return measure(runner, method, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "measure", stop)
        reproduce(tmp_path / "parts", code=1, **settings)
    before = sum(forwards)
    assert before < at_once
    forwards.clear()
    reproduce(tmp_path / "parts", **settings)
    # stopped in the first method of the second picture that needs a forward, which ran once more
    assert before + sum(forwards) <= at_once + 12
    forwards.clear()
    reproduce(tmp_path / "parts", **settings)
    assert forwards == []
    shown = ("method", "image", "seed", "nfe", "start", "levels", "psnr", "lpips", "niqe", "reward")
    both = [read(tmp_path / name / "rows.csv") for name in ("whole", "parts")]
    whole, parts = ([[row[name] for name in shown] for row in rows] for rows in both)
    assert whole == parts


def test_sections_and_agents_may_be_added(reproduce: Reproduce, forwards: list[int], tmp_path: Path) -> None:
    out = tmp_path / "out"
    reproduce(out, sections="fig1")
    forwards.clear()
    agent = save_agent(tmp_path / "agent", metric="lpips")
    reproduce(out, f"--agent=other={agent}", sections="fig1,tables12")
    nfe = [row.nfe - 2 for path in (out / "parts").glob("agent other/*.json") for row in read_rows(path)]
    # the coarse stage anew, and what the agent decides
    assert sum(forwards) == 2 * 4 + sum(nfe)
    refused = reproduce(out, f"--agent=other={save_agent(tmp_path / 'agent', seed=1)}", sections="fig1", code=2)
    assert "holds results with agents" in refused.output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"seeds": 1}, "seeds 2, got 1"),
        ({"limit": 1}, "pictures 2 of 96 px"),
        ({"image_size": 128}, "pictures 2 of 96 px"),
        ({"batch_size": 1}, "batch_size 16, got 1"),
    ],
)
def test_other_settings_are_refused(
    reproduce: Reproduce, tmp_path: Path, changes: Mapping[str, Any], message: str
) -> None:
    reproduce(tmp_path, sections="tables12")
    said = " ".join(reproduce(tmp_path, sections="tables12", code=2, **changes).output.split())
    assert message in said
    assert "another --out" in said


def test_dists_is_in_all_tables_where_its_weights_are(
    reproduce: Reproduce, tmp_path: Path, random_judge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {"sections": "tables12", "limit": 1, "seeds": 1}
    with monkeypatch.context() as patch:
        patch.setenv(VARIABLE, str(random_judge))
        reproduce(tmp_path, **settings)
        for title in ("Tables 1 and 2", "All methods"):
            lines = table(text_of(tmp_path), title)
            assert all(line["DISTS"] != "–" or line["method"] in ("originals", "DDRM (not run here)") for line in lines)
    said = " ".join(reproduce(tmp_path, code=2, **settings).output.split())
    assert re.search(r"holds results with metrics .*'dists'.*, got .*another --out", said)


def test_agents(reproduce: Reproduce, tmp_path: Path) -> None:
    """Each agent is used for what it was trained for, and nothing is said to be missing."""
    agents = {
        "SkipDiff": save_agent(tmp_path / "main", metric="niqe", nfe_penalty=0.001),
        "lpips": save_agent(tmp_path / "lpips", metric="lpips", seed=1),
        "cheap": save_agent(tmp_path / "cheap", metric="niqe", nfe_penalty=0.01, seed=2),
        "case3": save_agent(tmp_path / "case3", Plan(1, 12), metric="niqe", seed=3),
        "case4": save_agent(tmp_path / "case4", Plan(3, 4, first_step=12), metric="niqe", seed=4),
    }
    given = [agents["SkipDiff"], *(f"{name}={path}" for name, path in agents.items() if name != "SkipDiff")]
    out = tmp_path / "out"
    sections = "tables12,table3,table4,table5,table6,fig5"
    result = reproduce(out, *(f"--agent={agent}" for agent in given), limit=1, seeds=1, sections=sections)
    assert f"report: {out / 'report.md'}" in result.output
    text = text_of(out)
    assert "no agent" not in text
    rows = {row["method"]: row for row in read(out / "rows.csv")}
    assert {f"agent {name}" for name in agents} < set(rows)
    for name, coarse, most in (("case3", 0, 12), ("case4", 2, 14), ("SkipDiff", 2, 6)):
        row = rows[f"agent {name}"]
        assert coarse + int(row["start"]) <= int(row["nfe"]) <= most
    cases = [(line["case"][0], line["method"]) for line in table(text, "Table 4")]
    assert cases == [
        ("1", "DDPM-12"), ("2", "CSA(3)"), ("3", "agent case3"), ("4", "agent case4"), ("5", "SkipDiff (agent)"),
    ]  # fmt: skip
    assert [line["method"] for line in table(text, "Table 6")] == [
        "reward 1/NIQE, less 0.001 a forward: agent SkipDiff", "reward 1/LPIPS: agent lpips",
    ]  # fmt: skip
    assert {"agent SkipDiff", "agent lpips", "agent cheap", "oracle"} < {
        line["method"] for line in table(text, "Table 5")
    }
    full, ours = table(text, "Table 3")
    assert float(ours["of them policy"]) > 0 == float(full["of them policy"])


def test_schedules_and_agents_of_jumps(reproduce: Reproduce, tmp_path: Path) -> None:
    """An agent of jumps may stand for SkipDiff; the fixed starts are then the checkpoint's."""
    plan = Plan(1, 5, fine_sampler="ddim", skip_mode="jump")
    agent = save_agent(tmp_path / "agent", plan, metric="lpips", nfe_penalty=[0.001, 0.01])
    given = f"--agent={agent}", "--levels=6,4,1"
    reproduce(tmp_path / "out", *given, limit=1, seeds=1, sections="tables12,table5,fig5,peers")
    text = text_of(tmp_path / "out")
    rows = {row["method"]: row for row in read(tmp_path / "out" / "rows.csv")}
    assert rows["ddim, levels 6,4,1"]["nfe"] == "3"
    levels = rows["agent SkipDiff"]["levels"].split()
    assert levels[0] == "5"
    assert int(rows["agent SkipDiff"]["nfe"]) == len(levels)
    starts = {name for name, row in rows.items() if row["family"] == START}
    assert starts == {f"CSA(3) + FSR({start})" for start in range(1, 5)}
    assert "SkipDiff (agent)" in {line["method"] for line in table(text, "Tables 1 and 2")}
    assert "Differences to agent SkipDiff" in text


def test_the_agent_of_the_paper_stands_for_it(reproduce: Reproduce, short_checkpoint: str, tmp_path: Path) -> None:
    load_unet(short_checkpoint).save_pretrained(tmp_path / "net")
    save_agent(tmp_path / "net" / "agent-paper")
    reproduce(tmp_path / "out", checkpoint=tmp_path / "net", limit=1, seeds=1, sections="tables12")
    assert "SkipDiff (agent)" in text_of(tmp_path / "out")


def test_own_starts_beside_those_of_ddpm(reproduce: Reproduce, tmp_path: Path) -> None:
    """Where the checkpoint's coarse sampler is not DDPM, Fig. 5 shows its own starts and those after DDPM."""
    net = tiny_unet(diffusion_steps=12, coarse_steps=3, start=None, coarse_sampler="ddim:0.5")
    net.save_pretrained(tmp_path / "checkpoint")
    reproduce(tmp_path / "out", checkpoint=tmp_path / "checkpoint", limit=1, seeds=1, sections="fig5")
    methods = {row["method"] for row in read(tmp_path / "out" / "rows.csv")}
    assert {f"CSA(3, ddim:0.5) + FSR({start})" for start in (3, 2, 1)} < methods
    assert "CSA(3) + FSR(4)" in methods


def test_fitted_schedules(reproduce: Reproduce, photos: Path, tmp_path: Path) -> None:
    """Fitted schedules stand beside the peers if there are photographs to fit them on."""
    reproduce(tmp_path, f"--train-images={photos}", limit=1, seeds=1, sections="peers")
    methods = {row["method"] for row in read(tmp_path / "rows.csv")}
    assert {"DP over the ELBO, ddpm, 3", "DP over the ELBO, ddim, 5", "DP over the trajectory, ddim, 8"} < methods
    said = reproduce(tmp_path, limit=1, seeds=1, sections="peers", code=2).output
    assert "holds results with train_pictures" in " ".join(said.split())


def test_flops_of_a_layer() -> None:
    import torch

    layer = torch.nn.Conv2d(3, 5, 3, padding=1)
    assert count_flops(lambda: layer(torch.zeros(1, 3, 8, 8))) == 2 * 3 * 5 * 9 * 64


def test_without_diffusers(reproduce: Reproduce, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "diffusers" else find_spec(name, *rest)
    )
    said = reproduce(tmp_path, limit=1, seeds=1, sections="peers").stderr
    assert 'pip install "skipdiff[peers]"' in said


def test_another_net_takes_no_part_in_domination(
    reproduce: Reproduce, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pictures are measured like all others; forwards of our net it has none."""
    seen: list[tuple[int, ...]] = []

    def enlarge(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        seen.append(rgb.shape)
        return rgb.repeat(4, axis=0).repeat(4, axis=1)

    monkeypatch.setattr(realesrgan, "missing", list)
    monkeypatch.setattr(realesrgan, "realesrgan", lambda threads: enlarge)
    reproduce(tmp_path, sections="tables12")
    assert seen == [(24, 24, 3)] * 4
    name = "Real-ESRGAN x4plus (another net)"
    rows = [row for path in (tmp_path / "parts").rglob("*.json") for row in read_rows(path)]
    own = [row for row in rows if row.method == name]
    assert len(own) == 4
    assert all(row.family == OTHER_NET and np.isfinite(row.metrics["psnr"]) for row in own)
    (line,) = (line for line in table(text_of(tmp_path), "Tables 1 and 2") if line["method"] == name)
    assert line["NFE"] == "–"
    summary = summarise([*(row for row in rows if row.method != name), *own])
    assert "dominated_by" not in next(entry for entry in summary if entry["family"] == OTHER_NET)
    assert not any(str(entry.get("dominated_by", "")).startswith("Real") for entry in summary)
    assert methods.other_nets(8) == []


def test_a_large_picture_is_enlarged_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(realesrgan, "TILE", 20)
    monkeypatch.setattr(realesrgan, "MARGIN", 3)
    rgb = np.random.default_rng(0).integers(0, 256, (45, 21, 3), dtype=np.uint8)
    sizes = []

    def enlarge(piece: NDArray[np.uint8]) -> NDArray[np.uint8]:
        sizes.append(piece.shape[:2])
        return piece.repeat(4, axis=0).repeat(4, axis=1)

    assert np.array_equal(realesrgan.in_pieces(rgb, enlarge), enlarge(rgb))
    assert sizes[:-1] == [(23, 21), (23, 4), (26, 21), (26, 4), (8, 21), (8, 4)]


def test_bad_input(reproduce: Reproduce, tmp_path: Path) -> None:
    def refused(message: str, *arguments: str, **changes: Any) -> None:
        said = reproduce(tmp_path / "out", *arguments, code=2, **changes).output
        assert message in " ".join(said.split())
        assert not (tmp_path / "out").exists()

    agent = save_agent(tmp_path / "agent", Plan(2, 6))
    refused("unknown section fig9; known are fig1", "--sections=fig1,fig9")
    refused("give it another name", f"--agent={save_agent(tmp_path / 'case4', Plan(3, 4, first_step=12))}")
    refused("two agents are named x", f"--agent=x={agent}", f"--agent=x={agent}")
    refused("no agent in", f"--agent={tmp_path / 'none'}")
    refused("must be a multiple of 4", image_size=98)


def test_help_names_every_section() -> None:
    said = CliRunner().invoke(main, ["reproduce", "--help"], terminal_width=400).output
    for name in SECTIONS:
        assert name in said
