"""`skipdiff reproduce`: the report, its parts, and what it says of others."""

import csv
import importlib.util
import json
import math
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from numpy.typing import NDArray

from agents.cli import main
from agents.cluster import Cluster
from agents.paper.figures import fronts, peer_verdicts
from agents.paper.report import SECTIONS, Report, make_work
from agents.paper.tables import count_flops
from agents.study import ReportConfig, Study, methods, realesrgan
from agents.study.methods import Method
from agents.study.rows import OTHER_NET, PEER, START, Row, front, summarise
from agents.study.running import Runner
from ddpm.util.errors import ConfigError
from skipdiff_env.judges import VARIABLE
from skipdiff_env.plan import Plan
from tests.conftest import counting, tiny_unet
from tests.untrained import untrained

# Forwards for one picture and noise at T = 12, (S, N) = (3, 4): chains of 2, 3, 4 and 12 steps; starts 4 … 1; of case
# 3, 11 and 8; of case 4, 8; S,N = 4,3 from 3 and 2; two coarse samplers with starts 4, 3, 2; four peers, DDNM and
# Heun, which takes odd numbers, at 3, 5, 8 and 12; CCDF from 4 at 3, from 7 at 3 and 5; DDPM-5 and DDPM-8.
FORWARDS = (2 + 3 + 4 + 12) + 10 + (11 + 8) + 8 + 5 + 2 * (2 + 9) + (5 * 28 + 3 + 5 + 7 + 11) + (3 + 3 + 5) + 13


@pytest.fixture(autouse=True)
def without_other_nets(monkeypatch: pytest.MonkeyPatch) -> None:
    """The same rows on every machine."""
    monkeypatch.setattr(realesrgan, "PACKAGES", ("no_such_package",))


@pytest.fixture
def config(short_checkpoint: str, photos: Path) -> Callable[..., ReportConfig]:
    """A maker of small settings."""

    def make(**changes: Any) -> ReportConfig:
        small = {"checkpoint": short_checkpoint, "limit": 2, "image_size": 96, "seeds": 2}
        return ReportConfig([str(photos)], **{**small, **changes})

    return make


def save_agent(folder: Path, plan: Plan | None = None, seed: int = 0, **env: Any) -> str:
    """An untrained agent."""
    plan = plan or Plan(3, 4)
    untrained(plan, seed=seed, training={"env": env}).save(folder)
    return str(folder)


def compute(config: ReportConfig, out: Path) -> Report:
    """A report that has been computed."""
    report = Report(Study(config), out)
    report.compute()
    return report


def read(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_the_report_is_whole_and_nothing_is_computed_twice(config: Callable[..., ReportConfig], tmp_path: Path) -> None:
    report = Report(Study(config(limit=1)), tmp_path)
    with counting(report.study.unet) as sizes:
        report.compute()
    # and the latents of one picture, and one for the FLOPs
    assert sum(sizes) == FORWARDS * 2 + (12 + 2 + 2 * 3) + 1
    text = report.write().read_text(encoding="utf-8")
    titles = ("Figure 1", "Tables 1 and 2", "Table 3", "Table 4", "Table 5", "Table 6", "Figure 5", "Figures 3 and 6")
    for title in titles:
        assert f"## {title}:" in text
    links = re.findall(r"\]\(([^)]+)\)", text)
    assert {Path(link).suffix for link in links} == {".csv", ".png"}
    for link in links:
        assert (tmp_path / link).stat().st_size > 0
    rows = read(tmp_path / "rows.csv")
    methods = {method.name for section in report.sections for method in section.methods}
    # the originals have no noise
    assert len(rows) == len({(row["method"], row["image"], row["seed"]) for row in rows}) == 2 * len(methods) - 1
    assert not list(tmp_path.rglob(".*")), "no temporary file is left"
    for missing in (
        "--steps 1,12 --no-oracle --obs",
        "--steps 3,4 --first-step 12 --no-oracle --obs",
        "--metric lpips",
        "--nfe-penalty",
    ):
        assert missing in text
    # 2, 3, 4 of the paper's numbers of steps and its own divide 12
    assert [row["method"] for row in read(tmp_path / "fig1.csv")] == ["2 steps", "3 steps", "4 steps", "12 steps"]
    paper = {row["method"]: row["paper_psnr"] for row in read(tmp_path / "tables12.csv")}
    assert paper == {
        "bicubic": "25.6", "DDRM (not run here)": "26.68", "DDPM-12": "26.38", "SkipDiff (fixed start 4)": "26.65",
        "originals": "",
    }  # fmt: skip
    *_, originals = read(tmp_path / "tables12.csv")
    niqe = [float(row["niqe"]) for row in rows if row["method"] == "originals"]
    assert float(originals["niqe"]) == pytest.approx(np.mean(niqe))
    assert originals["psnr"] == originals["lpips"] == ""
    assert text.count("| originals |") == 1
    # what the best fixed start of Table 6 was chosen by
    rewards: dict[str, list[float]] = {}
    for row in rows:
        if row["family"] == START and row["method"].startswith("CSA(3) +") and int(row["start"]) <= 4:
            rewards.setdefault(row["method"], []).append(1 / float(row["lpips"]))
    best = max(rewards, key=lambda method: float(np.mean(rewards[method])))
    assert f"reward 1/LPIPS: {best} (no agent: best fixed start, chosen on these pictures)" in text
    summary = {row["method"]: row for row in read(tmp_path / "table3.csv")}
    assert float(summary["SkipDiff (fixed start 4)"]["flops_ratio"]) == pytest.approx(12 / 6)


def test_going_on(config: Callable[..., ReportConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A run that was stopped goes on where it was; the rows are those of one that was not."""
    settings = config(sections=("fig1", "table5"), seeds=1, batch_size=1)
    whole = Report(Study(settings), tmp_path / "whole")
    with counting(whole.study.unet) as at_once:
        whole.compute()
    left, measure = [9], Runner.measure

    def stop(runner: Runner, method: Method, *args: Any) -> list[Row]:
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return measure(runner, method, *args)

    with monkeypatch.context() as patch:
        patch.setattr(Runner, "measure", stop)
        report = Report(Study(settings), tmp_path / "parts")
        with counting(report.study.unet) as before, pytest.raises(KeyboardInterrupt):
            report.compute()
    report = Report(Study(settings), tmp_path / "parts")
    with counting(report.study.unet) as after:
        report.compute()
    # eight methods a picture: stopped in the second of the second picture, the chain of three steps, which ran once
    # more
    assert sum(before) > sum(after) > 0
    assert sum(before) + sum(after) == sum(at_once) + 3
    with counting(report.study.unet) as again:
        report.compute()
        report.write()
    assert again == []
    assert values(report) == values(whole)
    assert (tmp_path / "parts" / "report.md").exists()


def values(report: Report) -> list[Any]:
    """All that rows hold but seconds."""
    return [(row.method, row.image, row.seed, row.nfe, row.start, row.levels, row.metrics) for row in report.rows]


def test_batches_of_workers_in_any_order(config: Callable[..., ReportConfig], tmp_path: Path) -> None:
    """What is spread is plain data; the rows and pictures are those of one process, which computes nothing itself."""
    settings = config(sections=("fig1", "tables12", "pictures"), batch_size=1)
    whole = compute(settings, tmp_path / "whole")
    report = Report(Study(settings), tmp_path / "parts")
    chunks: list[Any] = []

    def spread(left: Sequence[Any], lost: bool = False) -> Iterator[int]:
        work = make_work(asdict(settings), report.study.settings(), str(tmp_path / "parts"))
        for chunk in reversed(json.loads(json.dumps(left))):
            if lost and len(chunks) == 2:
                raise KeyboardInterrupt
            chunks.append(chunk)
            yield work(chunk)

    with pytest.raises(KeyboardInterrupt):
        report.compute(partial(spread, lost=True))
    with counting(report.study.unet) as sizes:
        report.compute(spread)
    assert chunks == [[[1, 1]], [[1, 0]], [[0, 1]], [[0, 0]]]
    assert sum(sizes) == 12 + 2 + 2 * 3, "more than the latents of one picture"
    assert values(report) == values(whole)
    pictures = sorted(path.relative_to(tmp_path / "whole") for path in (tmp_path / "whole" / "pictures").rglob("*.png"))
    assert pictures
    for path in pictures:
        assert (tmp_path / "parts" / path).read_bytes() == (tmp_path / "whole" / path).read_bytes()
    report.compute(lambda left: pytest.fail("nothing is left to do"))


def test_workers_that_see_other_files(config: Callable[..., ReportConfig], tmp_path: Path) -> None:
    settings = config(sections=("fig1",), limit=1, seeds=1)
    report = Report(Study(settings), tmp_path / "out")
    with pytest.raises(ConfigError, match="lacks rows of 1 batches that the workers have computed"):
        report.compute(lambda left: [len(chunk) for chunk in left])
    with pytest.raises(ConfigError, match="a worker has other metrics than the command"):
        make_work(asdict(settings), report.study.settings() | {"metrics": ["psnr"]}, str(tmp_path / "out"))


def test_on_a_cluster(short_checkpoint: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The command gives workers paths that mean the same in another folder."""
    pytest.importorskip("ray", reason="Ray is not installed: pip install 'skipdiff[ray]'")
    save_agent(tmp_path / "agent")
    shutil.copytree(short_checkpoint, tmp_path / "net")
    (tmp_path / "elsewhere").mkdir()

    def spread(cluster: Cluster, make: Any, arguments: Mapping[str, Any], chunks: Sequence[Any]) -> list[int]:
        assert cluster.workers == 2
        with monkeypatch.context() as patch:
            patch.chdir(tmp_path / "elsewhere")
            work = make(**arguments)
            return [work(chunk) for chunk in chunks]

    monkeypatch.setattr(Cluster, "spread", spread)
    monkeypatch.chdir(tmp_path)
    arguments = [
        "reproduce", "--images=photos", "--checkpoint=net", "--agent=agent", "--out=out", "--sections=tables12",
        "--limit=1", "--seeds=1", "--image-size=96", "--workers=2", "--ray",
    ]  # fmt: skip
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    assert "agent SkipDiff" in {row["method"] for row in read(tmp_path / "out" / "rows.csv")}
    assert list((tmp_path / "elsewhere").iterdir()) == []


def test_sections_and_agents_may_be_added(config: Callable[..., ReportConfig], tmp_path: Path) -> None:
    compute(config(sections=("fig1",)), tmp_path / "out")
    agents = {"other": save_agent(tmp_path / "agent", metric="lpips")}
    report = Report(Study(config(sections=("fig1", "tables12"), agents=agents)), tmp_path / "out")
    with counting(report.study.unet) as sizes:
        report.compute()
    # the fixed start, 2 + 4; bicubic takes none, the rest is there
    assert sum(sizes) == 6 * 2 * 2
    with pytest.raises(ConfigError, match="holds results with agents"):
        compute(config(agents={"other": save_agent(tmp_path / "agent", seed=1)}), tmp_path / "out")


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
    config: Callable[..., ReportConfig], tmp_path: Path, changes: Mapping[str, Any], message: str
) -> None:
    compute(config(sections=("tables12",)), tmp_path)
    with pytest.raises(ConfigError, match=message) as raised:
        compute(config(sections=("tables12",), **changes), tmp_path)
    assert "\n" not in str(raised.value)
    assert "another --out" in str(raised.value)


def test_dists_is_in_all_tables_where_its_weights_are(
    config: Callable[..., ReportConfig], tmp_path: Path, random_judge: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sections = ("fig1", "tables12", "peers")
    settings = config(sections=sections, limit=1, seeds=1)
    with monkeypatch.context() as patch:
        patch.setenv(VARIABLE, str(random_judge))
        text = compute(settings, tmp_path).write().read_text(encoding="utf-8")
        for section in sections:
            assert all(
                row["dists"] or row["method"] in ("originals", "DDRM (not run here)")
                for row in read(tmp_path / f"{section}.csv")
            )
        assert text.count("| LPIPS | DISTS | colour error |") == len(sections)
        assert "- DISTS: " in text
    with pytest.raises(ConfigError, match=r"holds results with metrics .*'dists'.*, got .*another --out"):
        compute(settings, tmp_path)


def test_agents(short_checkpoint: str, photos: Path, tmp_path: Path) -> None:
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
    arguments = [
        "reproduce",
        f"--images={photos}",
        f"--checkpoint={short_checkpoint}",
        "--limit=1",
        "--seeds=1",
        "--image-size=96",
        f"--out={out}",
        "--sections=tables12,table3,table4,table5,table6,fig5",
        *(f"--agent={agent}" for agent in given),
    ]
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    assert f"report: {out / 'report.md'}" in result.output
    text = (out / "report.md").read_text(encoding="utf-8")
    assert "--limit 1 --sections tables12,table3,table4,table5,table6,fig5 --agent" in text
    assert "no agent" not in text
    assert "needs two noise seeds" in text
    rows = {row["method"]: row for row in read(out / "rows.csv")}
    assert {f"agent {name}" for name in agents} < set(rows)
    for name, coarse, most in (("case3", 0, 12), ("case4", 2, 14), ("SkipDiff", 2, 6)):
        row = rows[f"agent {name}"]
        assert coarse + int(row["start"]) <= int(row["nfe"]) <= most
    cases = [(row["case"][0], row["method"]) for row in read(out / "table4.csv")]
    assert cases == [
        ("1", "DDPM-12"), ("2", "CSA(3)"), ("3", "agent case3"), ("4", "agent case4"), ("5", "SkipDiff (agent)"),
    ]  # fmt: skip
    assert [row["method"] for row in read(out / "table6.csv")] == [
        "reward 1/NIQE, less 0.001 a forward: agent SkipDiff", "reward 1/LPIPS: agent lpips",
    ]  # fmt: skip
    assert {"SkipDiff (agent)", "agent lpips", "agent cheap", "oracle"} < {
        row["method"] for row in read(out / "table5.csv")
    }
    full, ours = read(out / "table3.csv")
    assert float(ours["policy_gflops"]) > 0 == float(full["policy_gflops"])
    assert float(ours["policy_seconds"]) > 0
    per_forward = json.loads((out / "flops.json").read_text(encoding="utf-8"))["unet"]
    assert float(full["total_gflops"]) == pytest.approx(12 * per_forward / 1e9)


def test_schedules_and_agents_of_jumps(config: Callable[..., ReportConfig], tmp_path: Path) -> None:
    """An agent of jumps may stand for SkipDiff; the fixed starts are then the checkpoint's. Schedules are peers."""
    plan = Plan(1, 5, fine_sampler="ddim", skip_mode="jump")
    agent = save_agent(tmp_path / "agent", plan, metric="lpips", nfe_penalty=[0.001, 0.01])
    settings = config(
        limit=1,
        seeds=1,
        agents={"SkipDiff": agent},
        levels=("6,4,1",),
        sections=("tables12", "table5", "fig5", "peers"),
    )
    report = compute(settings, tmp_path / "out")
    text = report.write().read_text(encoding="utf-8")
    assert "--agent SkipDiff=" in text
    assert "--levels 6,4,1" in text
    rows = {row["method"]: row for row in read(tmp_path / "out" / "rows.csv")}
    assert rows["ddim, levels 6,4,1"]["nfe"] == "3"
    levels = rows["agent SkipDiff"]["levels"].split()
    assert levels[0] == "5"
    assert int(rows["agent SkipDiff"]["nfe"]) == len(levels)
    starts = {row["method"] for row in read(tmp_path / "out" / "table5.csv") if row["family"] == START}
    assert starts == {f"CSA(3) + FSR({start})" for start in range(1, 5)}
    for table in ("fig5", "peers"):
        assert {"SkipDiff (agent)", "ddim, levels 6,4,1"} < {
            row["method"] for row in read(tmp_path / "out" / f"{table}.csv")
        }
    assert {row["dominated_by"] != "" for row in read(tmp_path / "out" / "peers.csv")} == {True}


def test_own_starts_beside_those_of_ddpm(photos: Path, tmp_path: Path) -> None:
    """Where the checkpoint's coarse sampler is not DDPM, Fig. 5 shows its own starts and those after DDPM."""
    checkpoint = tmp_path / "checkpoint"
    tiny_unet(diffusion_steps=12, coarse_steps=3, start=None, coarse_sampler="ddim:0.5").save_pretrained(checkpoint)
    arguments = [
        "reproduce", f"--images={photos}", f"--checkpoint={checkpoint}", "--limit=1", "--seeds=1", "--image-size=96",
        f"--out={tmp_path / 'out'}", "--sections=fig5",
    ]  # fmt: skip
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 0, (result.output, result.exception)
    methods = {row["method"] for row in read(tmp_path / "out" / "fig5.csv")}
    assert {f"CSA(3, ddim:0.5) + FSR({start})" for start in (3, 2, 1)} < methods
    assert "CSA(3) + FSR(4)" in methods


def test_flops_of_a_layer() -> None:
    import torch

    layer = torch.nn.Conv2d(3, 5, 3, padding=1)
    assert count_flops(lambda: layer(torch.zeros(1, 3, 8, 8))) == 2 * 3 * 5 * 9 * 64


def test_without_diffusers(
    config: Callable[..., ReportConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "importlib.util.find_spec", lambda name, *rest: None if name == "diffusers" else find_spec(name, *rest)
    )
    text = compute(config(sections=("peers",)), tmp_path).write().read_text(encoding="utf-8")
    assert 'pip install "skipdiff[peers]"' in text


def test_another_net_takes_no_part_in_domination(
    config: Callable[..., ReportConfig], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its pictures are measured like all others; forwards of our net it has none."""
    seen: list[tuple[int, ...]] = []

    def enlarge(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
        seen.append(rgb.shape)
        return rgb.repeat(4, axis=0).repeat(4, axis=1)

    monkeypatch.setattr(realesrgan, "missing", list)
    monkeypatch.setattr(realesrgan, "realesrgan", lambda threads: enlarge)
    report = compute(config(sections=("tables12",)), tmp_path)
    text = report.write().read_text(encoding="utf-8")
    assert seen == [(24, 24, 3)] * 4
    name = "Real-ESRGAN x4plus (another net)"
    rows = [row for row in report.rows if row.method == name]
    assert len(rows) == 4
    assert all(row.family == OTHER_NET and np.isfinite(row.metrics["psnr"]) for row in rows)
    entry = next(row for row in read(tmp_path / "tables12.csv") if row["method"] == name)
    assert entry["nfe"] == "nan"
    line = next(line for line in text.splitlines() if name in line)
    assert line.split(" | ")[6] == "–"
    summary = summarise(report.rows)
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


def rows_of(method: str, nfe: int, psnr: Sequence[float], lpips: Sequence[float]) -> list[Row]:
    """One picture, one noise seed each."""
    return [
        Row(method, PEER, 0, seed, nfe, 0.0, {"psnr": a, "lpips": b})
        for seed, (a, b) in enumerate(zip(psnr, lpips, strict=True))
    ]


def test_fronts() -> None:
    """A method is on the front of two figures if no other is at least as good in both and better in one."""
    figures = {"a": (1, 20.0, 0.3), "b": (2, 25.0, 0.2), "c": (2, 24.0, 0.2), "d": (9, 23.0, 0.1), "e": (9, 25.0, 0.4)}
    entries = [
        dict(zip(("method", "nfe", "psnr", "lpips"), (name, *own), strict=True)) for name, own in figures.items()
    ]
    entries.append({"method": "failed", "nfe": 0, "psnr": math.nan, "lpips": 0.0})
    assert front(entries, ("nfe", "psnr")) == ["a", "b"]
    assert front(entries, ("nfe", "lpips")) == ["failed"]
    assert front(entries[:-1], ("nfe", "lpips")) == ["a", "b", "c", "d"]
    assert front(entries[:-1], ("psnr", "lpips")) == ["b", "d"]
    text = fronts(entries, ["psnr", "lpips", "niqe"])
    assert text.splitlines()[-3:] == ["| NFE, PSNR-Y | a; b |", "| NFE, LPIPS | failed |", "| PSNR-Y, LPIPS | b; d |"]
    assert fronts(entries, ["niqe"]) == ""


def test_where_peers_are_better() -> None:
    rows = [
        *rows_of("ours", 16, (25.0, 25.2), (0.20, 0.21)),
        *rows_of("A, 10", 10, (30.0, 30.0), (0.1, 0.1)),  # a budget further off, and one too large
        *rows_of("A, 16", 16, (25.1, 25.3), (0.30, 0.31)),
        *rows_of("A, 20", 20, (30.0, 30.0), (0.1, 0.1)),
        *rows_of("B, 15", 15, (24.0, 24.0), (0.30, 0.05)),
        *rows_of("C, 20", 20, (30.0, 30.0), (0.1, 0.1)),
        *rows_of("D, 16", 16, (24.0, 24.0), (0.30, 0.31)),
    ]
    peers = {"A": ["A, 10", "A, 16", "A, 20"], "B": ["B, 15"], "C": ["C, 20"], "D": ["D, 16"]}
    assert peer_verdicts(rows, "ours", peers).splitlines() == [
        "- **A**, 16 forwards (SkipDiff 16.0): better than SkipDiff in PSNR-Y (25.20 against 25.10); not in LPIPS.",
        "- **B**, 15 forwards (SkipDiff 16.0): better than SkipDiff in LPIPS (0.1750 against 0.2050, not under every "
        "noise seed); "
        "not in PSNR-Y.",
        "- **C**: no budget of at most 16.0 forwards was run.",
        "- **D**, 16 forwards (SkipDiff 16.0): in nothing better than SkipDiff.",
        "",
        "- PSNR-Y: ahead of SkipDiff are A.",
        "- LPIPS: ahead of SkipDiff are B.",
    ]


def test_bad_input(short_checkpoint: str, photos: Path, tmp_path: Path) -> None:
    def refused(message: str, *arguments: str) -> None:
        common = ["reproduce", f"--images={photos}", f"--checkpoint={short_checkpoint}", f"--out={tmp_path / 'out'}"]
        result = CliRunner().invoke(main, [*common, "--image-size=96", *arguments])
        assert result.exit_code == 2, result.output
        assert message in " ".join(result.output.split())
        assert not (tmp_path / "out").exists()

    agent = save_agent(tmp_path / "agent", Plan(2, 6))
    refused("unknown section fig9; known are fig1", "--sections=fig1,fig9")
    refused("the agent x decides episodes of S,N = 2,6", f"--agent=x={agent}")
    refused("give it a name of its own", f"--agent={save_agent(tmp_path / 'case4', Plan(3, 4, first_step=12))}")
    refused("two agents are named x", f"--agent=x={agent}", f"--agent=x={agent}")
    refused("an agent's name has letters", f"--agent=a/b={agent}")
    refused("no agent in", f"--agent={tmp_path / 'none'}")
    refused("must be a multiple of 4", "--image-size=98")


def test_help_names_every_section() -> None:
    said = CliRunner().invoke(main, ["reproduce", "--help"], terminal_width=400).output
    for name in SECTIONS:
        assert name in said
