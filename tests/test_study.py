"""Methods, the runner, and which method dominates which."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from agents.study import methods as ways
from agents.study.intervals import shares_markdown
from agents.study.methods import Batch, skipping_policy
from agents.study.peers import early
from agents.study.rows import (
    AGENT,
    BICUBIC,
    CHAIN,
    JUDGED,
    ORIGINALS,
    PEER,
    SCHEDULE,
    Row,
    dominators,
    read_rows,
    summarise,
    with_rewards,
)
from agents.study.running import Runner, settle
from agents.tables import markdown, markdown_table
from ddpm.nets.denoiser import to_image
from ddpm.nets.predictor import Predictor
from ddpm.nets.unet import UNet
from ddpm.noise import KeyedNoise, Stage
from ddpm.pictures.degradation import downsample, upsample
from ddpm.sampling import run_levels
from ddpm.schedule import cosine_alphas_cumprod
from ddpm.util.errors import ConfigError
from skipdiff_env.metrics import make_metric
from skipdiff_env.plan import Plan
from tests.conftest import counting, tiny_unet


@pytest.fixture
def hr() -> torch.Tensor:
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0)) * 2 - 1


def test_coarse_stages_are_shared(unet: UNet, hr: torch.Tensor) -> None:
    """By all methods whose plans agree in what the coarse latent depends on, and by no others."""
    batch = Batch(unet, hr)
    same = Plan(10, 10), Plan(10, 10, first_step=40), Plan(10, 10, fine_sampler="ddim", skip_mode="jump")
    with counting(unet) as sizes:
        latents = [[state.coarse_latent for state in batch.coarse(plan)[0]] for plan in same]
    assert sum(sizes) == 9 * 2
    for own in latents:
        assert all(a is b for a, b in zip(own, latents[0], strict=True))
    assert [batch.coarse(plan)[0][0].t for plan in same] == [10, 40, 10]
    with counting(unet) as sizes:
        batch.coarse(Plan(10, 10, "ddim"))
        batch.coarse(Plan(5, 20))
    assert sum(sizes) == (9 + 4) * 2


def test_methods_leave_the_shared_states_as_they_are(unet: UNet, hr: torch.Tensor) -> None:
    plan = Plan(10, 10)
    alone = ways.from_start(plan, 2).run(Batch(unet, hr, seed=5)).sr
    batch = Batch(unet, hr, seed=5)
    for start in (7, 1):
        ways.from_start(plan, start).run(batch)
    torch.testing.assert_close(ways.from_start(plan, 2).run(batch).sr, alone, rtol=0, atol=0)


def test_a_schedule_against_the_plain_chain(unet: UNet, hr: torch.Tensor) -> None:
    levels, alphas_cumprod = (20, 13, 6, 2), cosine_alphas_cumprod(20)
    batch = Batch(unet, hr, seed=3)
    result = ways.schedule(levels, "ddim:0.5").run(batch)
    assert result.nfe == [4, 4]
    assert [state.levels for state in result.states] == [levels] * 2
    noise = KeyedNoise([3, 3], (3, 16, 16))
    x_0 = run_levels(unet, alphas_cumprod, noise(Stage.INITIAL, 20), batch.lr_up, noise, levels, 0.5)
    torch.testing.assert_close(result.sr, to_image(unet, x_0, batch.lr_up), atol=1e-5, rtol=0)


def test_even_steps_with_all_noise_are_the_ancestral_chain(unet: UNet, hr: torch.Tensor) -> None:
    batch = Batch(unet, hr, seed=1)
    even = ways.schedule("ddpm/even:7")
    assert even.name == "ddpm, 7 even steps"
    torch.testing.assert_close(even.run(batch).sr, ways.chain(100, 7).run(batch).sr, atol=1e-5, rtol=0)


def test_the_predictor_alone(hr: torch.Tensor) -> None:
    """Its picture is a method of its own, and its time is part of every method that begins with it."""
    unet = tiny_unet()
    assert [method.name for method in ways.without_forwards(unet)] == ["bicubic"]
    unet.start_from(Predictor(nn.Upsample(scale_factor=4), 4, Path("nearest")))
    methods = [*ways.without_forwards(unet), ways.chain(100, 4), early(100, 30, 2, predicted=True)]
    assert [method.name for method in methods] == ["bicubic", "predictor", "CSA(4)", "predictor's picture from 30, 2"]
    pictures: dict[str, torch.Tensor] = {}
    rows = Runner(unet, ["psnr"]).run(
        methods, list(hr), keep=lambda batch, method, result: pictures.update({method.name: result.sr})
    )
    torch.testing.assert_close(pictures["bicubic"], upsample(downsample(hr, 4), 4))
    nearest = downsample(hr, 4).repeat_interleave(4, 2).repeat_interleave(4, 3)
    torch.testing.assert_close(pictures["predictor"], nearest, atol=1e-5, rtol=0)
    seconds = {row.method: row.seconds for row in rows}
    assert seconds["bicubic"] == 0
    assert 0 < seconds["predictor"] <= min(seconds["CSA(4)"], seconds["predictor's picture from 30, 2"])


def test_random_skipping_has_the_forwards_it_is_meant_to_have(unet: UNet) -> None:
    batch = Batch(unet, torch.zeros(1, 3, 8, 8))
    (state,), _ = batch.coarse(Plan(5, 20))
    policy = skipping_policy(6.7, 20, np.random.default_rng(0))
    actions = np.array([policy([state] * 19) for _ in range(2000)])
    assert 1 + (actions == 0).sum(1).mean() == pytest.approx(6.7, abs=0.15)
    batch.forwards["CSA(5) + FSR(20)"] = 4 + 6.7
    like = ways.from_start(Plan(5, 20), 20)
    result = ways.random_skipping(like).run(batch)
    assert 4 + 1 <= result.nfe[0] <= 4 + 20


def test_parts_stay(unet: UNet, hr: torch.Tensor, tmp_path: Path) -> None:
    """What is on disk is not computed again, nor is the coarse stage of what is there.

    Random skipping knows its forwards.
    """
    runner = Runner(unet, ["psnr"], batch_size=1)
    plan = Plan(10, 10)
    start = ways.from_start(plan, 3)
    with counting(unet) as sizes:
        first = runner.run([start], list(hr), [0, 1], tmp_path)
    assert sum(sizes) == 4 * (9 + 3)
    random = ways.random_skipping(start)
    with counting(unet) as sizes:
        both = runner.run([start, random, ways.originals()], list(hr), [0, 1], tmp_path)
    assert sum(sizes) == sum(row.nfe for row in both if row.method == random.name)
    assert str([row for row in both if row.method == start.name]) == str(first)  # NaN is equal to nothing
    assert len(both) == 8  # the originals are no method where no metric does without a reference
    with counting(unet) as sizes:
        assert str(runner.run([start, random], list(hr), [0, 1], tmp_path)) == str(both)
    assert not sizes
    damaged = next(tmp_path.glob("parts/CSA*/0-0.json"))
    (row,) = json.loads(damaged.read_text(encoding="utf-8"))
    for others in ([], [row, row], [{**row, "image": 1}], [{**row, "seed": 1}], [{**row, "family": "x"}]):
        damaged.write_text(json.dumps(others), encoding="utf-8")
        with pytest.raises(ConfigError, match="does not hold the rows of its pictures; remove it"):
            runner.run([start], list(hr), [0, 1], tmp_path)
    for content in (
        [{"method": "x"}],
        [{**row, "seconds": "1"}],
        [{**row, "seed": "x"}],
        [{**row, "family": 1}],
        [{**row, "metrics": {"psnr": []}}],
    ):
        damaged.write_text(json.dumps(content), encoding="utf-8")
        with pytest.raises(ConfigError, match="holds no rows of this version"):
            read_rows(damaged)


@pytest.mark.parametrize("content", ["[1]", "null", "{}", '{"agents": 3}'])
def test_settings_of_a_report_that_are_damaged(content: str, tmp_path: Path) -> None:
    (tmp_path / "settings.json").write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match="does not hold the settings of results; remove it"):
        settle(tmp_path / "settings.json", {"agents": {}})
    assert (tmp_path / "settings.json").read_text(encoding="utf-8") == content


def entry(method: str, nfe: float, *figures: float, family: str = PEER) -> dict[str, Any]:
    return {"method": method, "family": family, "nfe": nfe, **dict(zip(JUDGED, figures, strict=False))}


def test_dominators() -> None:
    summary = [
        entry("base", 10, 25.0, 0.20, 0.20),
        entry("worse in one", 10, 25.0, 0.20, 0.21),
        entry("equal", 10, 25.0, 0.20, 0.20),
        entry("more forwards", 20, 24.0, 0.21, 0.21),
        entry("better DISTS", 20, 24.0, 0.21, 0.19),
        entry("cheap and best", 5, 24.5, 0.10, 0.10),
        entry("oracle", 1, 99.0, 0.0, 0.0, family="oracle"),
        {"method": "originals", "family": ORIGINALS, "nfe": 0},
    ]
    assert dominators(summary) == {
        "base": None,
        "worse in one": "base",
        "equal": None,
        "more forwards": "cheap and best",
        "better DISTS": "cheap and best",
        "cheap and best": None,
    }
    for line in summary:
        line.pop("dists", None)
    found = dominators(summary)
    assert found["worse in one"] is None  # equal in all that is left
    assert found["more forwards"] == "cheap and best"


def test_no_domination_without_its_metrics(unet: UNet, hr: torch.Tensor) -> None:
    rows = Runner(unet, ["psnr"]).run([ways.bicubic(), ways.chain(100, 2)], list(hr))
    assert [entry["family"] for entry in summarise(rows)] == [BICUBIC, "coarse chain"]
    assert not any("dominated_by" in entry for entry in summarise(rows))
    assert ways.chain(100).family == CHAIN


def test_tables() -> None:
    assert markdown(["a", "b"], [[1, 0.123456], ["x", "y"]]) == "| a | b |\n|---|---|\n| 1 | 0.123 |\n| x | y |"
    entries = [
        {"method": "m", "psnr": 25.456, "psnr_std": 0.05, "seeds": 2, "nfe": 3},
        {"method": "n", "psnr": float("nan")},
    ]
    assert markdown_table(entries, ["method", "psnr", "nfe", "mine"], {"mine": ("my column", 1)}).splitlines() == [
        "| method | PSNR-Y | NFE | my column |",
        "|---|---|---|---|",
        "| m | 25.46 ± 0.05 | 3.0 | – |",
        "| n | – | – | – |",
    ]


def paying_rows(method: str, family: str, lpips: list[list[float]], nfe: list[list[int]], **more: Any) -> list[Row]:
    """Rows of a method, whose values are given as [picture][seed]."""
    return [
        Row(method, family, i, k, nfe[i][k], 0.0, {"lpips": lpips[i][k]}, **more)
        for i in range(len(lpips))
        for k in range(len(lpips[i]))
    ]


def rewards_of(rows: list[Row], price: float, train: list[Row] | None = None) -> dict[str, float]:
    """The mean reward of each method, where the metric is LPIPS."""
    rows = with_rewards(rows, make_metric("lpips"), train or [], "negative", price)
    return {entry["method"]: entry["reward"] for entry in summarise(rows)}


def test_what_there_is_to_gain_among_schedules() -> None:
    """Two pictures under two noises: one wants 1 step, the other 2; the agent gives 2 to both."""
    ones, twos = [[1, 1]] * 2, [[2, 2]] * 2
    rows = paying_rows("ddim, 1 even step", SCHEDULE, [[0.2, 0.2], [0.6, 0.6]], ones, levels=(1,))
    rows += paying_rows("ddim, 2 even steps", SCHEDULE, [[0.4, 0.4], [0.3, 0.3]], twos, levels=(2, 1))
    rows += paying_rows("agent a", AGENT, [[0.3, 0.3], [0.3, 0.3]], twos)
    found = rewards_of(rows, 0.001)
    assert found["best fixed schedule (ddim, 2 even steps)"] == pytest.approx(-0.35 - 0.002)
    assert found["each picture's best schedule"] == pytest.approx(-(0.2 + 0.001 + 0.3 + 0.002) / 2)
    assert found["oracle"] == found["each picture's best schedule"]
    assert found["agent a"] == pytest.approx(-0.3 - 0.002)
    shown = shares_markdown(with_rewards(rows, make_metric("lpips"), [], "negative", 0.001), ["a.png", "b.png"])
    assert (
        "0 is the reward of best fixed schedule (ddim, 2 even steps), 1 that of each picture's best schedule" in shown
    )
    share = (found["agent a"] + 0.352) / (found["each picture's best schedule"] + 0.352)
    assert f"| agent a | {share:.2f} [" in shown
    assert not shares_markdown(rows, ["a.png", "b.png"])
    other = paying_rows("ddim, 1 even step", SCHEDULE, [[0.2]], [[1]])
    other += paying_rows("ddim, 2 even steps", SCHEDULE, [[0.4]], [[2]])
    assert "best fixed schedule (ddim, 1 even step)" in rewards_of(rows, 0.001, other)


def test_the_choice_by_the_other_noises_knows_no_luck() -> None:
    """What is best under one noise and not under the other is chosen for the wrong one."""
    rows = paying_rows("ddim, 1 even step", SCHEDULE, [[0.1, 0.5]], [[1, 1]], levels=(1,))
    rows += paying_rows("ddim, 2 even steps", SCHEDULE, [[0.5, 0.1]], [[2, 2]], levels=(2, 1))
    found = rewards_of(rows, 0.001)
    assert found["each picture's best schedule"] == pytest.approx(-0.5 - 0.0015)
    assert found["oracle"] == pytest.approx(-0.1 - 0.0015)
    assert "each picture's best schedule" not in rewards_of([row for row in rows if row.seed == 0], 0.001)
