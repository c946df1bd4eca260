"""The page of `skipdiff web`: what it does without a browser, and the whole of it in headless Chromium."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from urllib.error import HTTPError
from urllib.parse import urlparse
from urllib.request import Request, urlopen

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from gymnasium.spaces import Discrete
from PIL import Image
from stable_baselines3.common.policies import ActorCriticPolicy

from agents.agent import Agent, AgentConfig
from agents.cli import main
from agents.policies import policy_description
from agents.web.app import DETAIL, EVEN_STEPS, Workshop, details, forwards, left_out
from benchmarks import screenshot
from benchmarks.screenshot import find, press, read, wait_for, widths
from ddpm.checkpoints import save_checkpoint
from ddpm.pictures.images import Picture
from ddpm.pictures.tiling import Box
from ddpm.schedule import Schedule
from ddpm.util.errors import CheckpointError, ConfigError, ImageError
from skipdiff_env import Upscaler
from skipdiff_env.observations import features_space
from skipdiff_env.plan import Plan
from skipdiff_env.upscaler import Tile, Upscaled
from tests.conftest import Photo
from tests.test_substeps import MOST, with_substeps

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def detailed(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A tiny checkpoint with substeps, and an agent that chooses among them for tiles."""
    folder = tmp_path_factory.mktemp("detailed") / "detailed"
    save_checkpoint(with_substeps(), folder)
    schedules = tuple(f"20*{m}" if m > 1 else "20" for m in (1, 3, MOST))
    plan = Plan(1, 20, fine_sampler="ddim", skip_mode="jump")
    torch.manual_seed(0)
    policy = ActorCriticPolicy(features_space(None), Discrete(len(schedules)), lambda _: 0.0, net_arch=[8])
    config = AgentConfig(
        "ppo", plan, policy_description("ppo", policy), 16, 1.0, "features", kind="schedule", schedules=schedules
    )
    Agent(config, policy).save(folder / "agent")
    return str(folder)


@pytest.fixture(scope="module")
def shop(checkpoint: str, detailed: str) -> Workshop:
    return Workshop([detailed, checkpoint], max_pixels=1000)


def test_slider_is_the_number_of_steps(shop: Workshop, checkpoint: str) -> None:
    assert shop.knob(checkpoint) is EVEN_STEPS
    assert shop.box(checkpoint)[0] == "The checkpoint's own steps"
    with pytest.raises(ConfigError, match="1 … 20, got 0"):
        shop.upscaler(checkpoint, 0)
    with pytest.raises(ConfigError, match="unknown checkpoint 'other'"):
        shop.knob("other")


def test_slider_of_substeps_is_the_detail(shop: Workshop, detailed: str, photo: Photo) -> None:
    """One forward for any position; the network is loaded once."""
    assert shop.knob(detailed) is DETAIL
    assert shop.box(detailed)[0] == "An agent chooses the detail of each part"
    with pytest.raises(ConfigError, match="0 … 1, got 2"):
        shop.upscaler(detailed, 2)
    default = shop.upscaler(detailed, None)
    assert default is shop.upscaler(detailed, None)
    for amount in (0, 0.7, 1):
        assert shop.upscaler(detailed, amount).unet is default.unet
        result = shop.enlarge(detailed, Picture(photo(16, 24)), amount, 3)
        ((expected, _),) = Upscaler(detailed, detail=amount).enlarge([Picture(photo(16, 24))], [3])
        np.testing.assert_array_equal(result.picture.rgb, expected.rgb)
        assert result.summary.endswith(" s. The network ran once for each part.")


def test_without_an_agent_the_detail_is_the_checkpoints(detailed: str, tmp_path: Path, photo: Photo) -> None:
    shutil.copytree(detailed, tmp_path / "none")
    shutil.rmtree(tmp_path / "none" / "agent")
    name = str(tmp_path / "none")
    without = Workshop([name])
    assert without.knob(name) is DETAIL
    assert without.box(name) == (
        "The checkpoint's own setting", "It has no agent for detail. Untick it to choose on the slider."
    )  # fmt: skip
    assert "The agent chose" not in without.enlarge(name, Picture(photo(8, 8)), None, 0).summary


def upscaled(*schedules: str) -> Upscaled:
    """A result whose tiles have these schedules."""
    tiles = tuple(Tile(Box(0, 0, 8, 8), each, each.forwards) for each in map(Schedule.parse, schedules))
    return Upscaled(torch.zeros(3, 8, 8), 20, sum(tile.nfe for tile in tiles) / len(tiles), tiles, 1.0)


@pytest.mark.parametrize(
    ("schedules", "sentences"),
    [
        (["20"], "The network ran once for each part. The agent chose little detail."),
        (["20*16"] * 3, "The network ran once for each of 3 parts. The agent chose much detail for all of them."),
        (
            ["20*2"] * 10 + ["20*4"] * 8 + ["20*16"] * 6,
            "The network ran once for each of 24 parts. "
            "The agent chose little detail for 10 parts, some for 8, and much for 6.",
        ),
        (
            ["20*4", "20*8,9*8,4"],
            "The network ran 1 to 3 times for each of 2 parts, 2.0 times on average. "
            "The agent chose some detail for 1 part and much for 1.",
        ),
    ],
)
def test_the_summary_is_in_plain_words(schedules: list[str], sentences: str) -> None:
    result = upscaled(*schedules)
    assert f"{forwards(result)} {details(result, 16)}" == sentences


def test_only_the_first_frame_is_enlarged(tmp_path: Path, photo: Photo) -> None:
    first, *others = (Image.fromarray(photo(8, 8, seed)) for seed in range(3))
    for name, said in (("a.gif", "frames of the animation"), ("a.tiff", "pictures in the file")):
        first.save(tmp_path / name, save_all=True, append_images=others)
        assert left_out(tmp_path / name) == f"The page enlarges only the first of the 3 {said}."
    first.save(tmp_path / "still.png")
    assert left_out(tmp_path / "still.png") == ""


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("checkpoint", r"The network ran 14 times for each part\.$"),
        ("detailed", r"The network ran once for each of \d+ parts\. The agent chose "),
    ],
)
def test_the_default_is_that_of_the_command(
    name: str, said: str, shop: Workshop, photo: Photo, tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    chosen = request.getfixturevalue(name)
    Image.fromarray(photo(16, 12)).save(tmp_path / "x.png")
    command = ["upscale", str(tmp_path / "x.png"), "-o", str(tmp_path / "y.png"), f"--checkpoint={chosen}"]
    assert CliRunner().invoke(main, command).exit_code == 0
    result = shop.enlarge(chosen, shop.read(tmp_path / "x.png"), None, 0)
    np.testing.assert_array_equal(result.picture.rgb, np.asarray(Image.open(tmp_path / "y.png")))
    assert re.search(said, result.summary)


@pytest.mark.parametrize("steps", [None, 3])
def test_result_is_the_upscalers(shop: Workshop, checkpoint: str, photo: Photo, steps: int | None) -> None:
    picture = Picture(photo(12, 16))
    parts: list[float] = []
    result = shop.enlarge(checkpoint, picture, steps, 5, parts.append)
    upscaler = Upscaler(checkpoint, levels=(20, 13, 7)) if steps else Upscaler(checkpoint)
    ((expected, upscaled),) = upscaler.enlarge([picture], [5])
    np.testing.assert_array_equal(result.picture.rgb, expected.rgb)
    assert result.before.shape == (48, 64, 3)
    assert result.summary.startswith("16 x 12 → 64 x 48 pixels in ")
    assert result.summary.endswith(f" s. The network ran {upscaled.nfe:g} times for each part.")
    assert upscaled.tiles[0].schedule.levels == ((20, 13, 7) if steps else (5, 4, 3, 2, 1))
    assert parts[-1] == pytest.approx(1)


def test_parts_have_details_of_their_own(shop: Workshop, detailed: str, photo: Photo) -> None:
    result = shop.enlarge(detailed, Picture(photo(16, 24)), None, 0)
    assert f"The network ran once for each of {result.parts} parts. The agent chose " in result.summary
    assert result.parts > 1
    assert result.map.shape[0] > 64


def test_what_cannot_be_enlarged(shop: Workshop, checkpoint: str, tmp_path: Path, photo: Photo) -> None:
    Image.fromarray(photo(32, 32)).save(tmp_path / "large.png")
    with pytest.raises(ImageError, match=r"32 x 32 pixels, more than the 1000 of --max-pixels"):
        shop.read(tmp_path / "large.png")
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ImageError, match=r"broken\.png"):
        shop.read(tmp_path / "broken.png")
    with pytest.raises(ConfigError, match="the seed is empty"):
        shop.enlarge(checkpoint, Picture(photo(8, 8)), 1, None)
    with pytest.raises(ConfigError, match="seeds must lie in"):
        shop.enlarge(checkpoint, Picture(photo(8, 8)), 1, -1)
    with pytest.raises(ConfigError, match="unknown sample"):
        shop.sample("../secret", checkpoint)
    with pytest.raises(CheckpointError):
        Workshop(["no-such-checkpoint"])


def test_samples_are_shrunk(shop: Workshop, checkpoint: str) -> None:
    assert shop.sample("chelsea", checkpoint).rgb.shape == (75, 96, 3)


def test_without_gradio(monkeypatch: pytest.MonkeyPatch, checkpoint: str) -> None:
    monkeypatch.setitem(sys.modules, "gradio", None)
    monkeypatch.delitem(sys.modules, "agents.web.page", raising=False)
    result = CliRunner().invoke(main, ["web", "--checkpoint", checkpoint])
    assert result.exit_code == 2
    assert "pip install 'skipdiff[web]'" in result.output.splitlines()[-1]


@pytest.mark.filterwarnings("ignore")  # of Gradio
def test_handlers(shop: Workshop, detailed: str, tmp_path: Path, photo: Photo) -> None:
    """Errors are lines; each page has its files, which are gone when it is closed."""
    pytest.importorskip("gradio")
    import gradio as gr

    from agents.web.page import Handlers

    (tmp_path / "root").mkdir()
    handlers = Handlers(shop, tmp_path / "root")
    request: Any = SimpleNamespace(session_hash="one")
    other: Any = SimpleNamespace(session_hash="../two")
    with pytest.raises(gr.Error) as caught:
        handlers.enlarge(None, None, detailed, True, 0.5, 0, request)
    assert caught.value.message == "no photograph; drop one, or choose a sample"
    settings: tuple[Any, ...] = (None, "chelsea", detailed, False, 0.5, 0)
    assert handlers.redraw(request, *settings) == (gr.skip(),) * 4, "nothing has been enlarged yet"
    Image.fromarray(photo(8, 8)).save(tmp_path / "my photo.png")
    dropped, _ = handlers.arrive(str(tmp_path / "my photo.png"), request)
    assert dropped is not None
    with pytest.raises(gr.Error) as caught:
        handlers.arrive(str(tmp_path / "my photo.png"), other)  # it has been moved
    assert caught.value.message.endswith("drop it again")
    kept = str(shutil.copy(dropped, tmp_path / "kept.png"))
    (before, _), _, whole, _ = handlers.enlarge(dropped, None, detailed, True, 0.5, 0, request)
    assert Image.open(before).size == Image.open(whole).size == (32, 32)
    assert Path(whole).name == "my photo_x4.png"
    (_, after), *_ = handlers.redraw(request, dropped, None, detailed, False, 1, 0)
    expected = shop.enlarge(detailed, Picture(photo(8, 8)), 1, 0).picture.rgb
    np.testing.assert_array_equal(np.asarray(Image.open(after)), expected)
    assert not Path(whole).exists(), "what was shown before is removed"
    (_, theirs), *_ = handlers.enlarge(kept, None, detailed, True, 0.5, 0, other)
    assert Path(theirs).is_relative_to(tmp_path / "root")
    handlers.leave(request)
    handlers.leave(request)
    assert not Path(after).exists()
    assert Path(theirs).exists()
    handlers.enlarge(kept, None, detailed, True, 0.5, 0, request)  # which had begun before the page was closed
    assert {path.parent for path in (tmp_path / "root").rglob("*.png")} == {Path(theirs).parent}


@pytest.mark.filterwarnings("ignore")  # of Gradio
def test_the_box_chooses_between_default_and_slider(
    shop: Workshop, checkpoint: str, tmp_path: Path, photo: Photo
) -> None:
    pytest.importorskip("gradio")
    from agents.web.page import Handlers

    handlers = Handlers(shop, tmp_path)
    request: Any = SimpleNamespace(session_hash="one")
    for own, levels, times in ((True, None, 14), (False, (20, 13, 7), 3)):
        Image.fromarray(photo(8, 8)).save(tmp_path / "x.gif", save_all=True, append_images=[Image.new("RGB", (8, 8))])
        (_, after), *_, summary = handlers.enlarge(str(tmp_path / "x.gif"), None, checkpoint, own, 3, 0, request)
        assert f"The network ran {times} times for each part. " in summary
        assert summary.endswith("The page enlarges only the first of the 2 frames of the animation.")
        expected = Upscaler(checkpoint, levels=levels).enlarge([shop.read(tmp_path / "x.gif")], [0])[0][0]
        np.testing.assert_array_equal(np.asarray(Image.open(after)), expected.rgb)


# In the browser


@pytest.fixture
def page(detailed: str, tmp_path: Path) -> Iterator[tuple[str, Path, "subprocess.Popen[str]"]]:
    """The address of a page, the folder of its temporary files, and its process."""
    pytest.importorskip("gradio")
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    command = [sys.executable, "-m", "agents.cli", "web", "--checkpoint", detailed, "--max-mb", "0.05"]
    environment = os.environ | {"TMPDIR": str(temporary), "OMP_NUM_THREADS": "1", "no_proxy": "127.0.0.1,localhost"}
    with (tmp_path / "errors").open("w", encoding="utf-8") as errors:
        process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=errors, text=True, encoding="utf-8"
        )
    assert process.stdout is not None
    line = process.stdout.readline()
    address = re.search(r"http://127\.0\.0\.1:\d+", line)
    if address is None:
        process.kill()
        raise AssertionError((line, (tmp_path / "errors").read_text(encoding="utf-8")))
    try:
        yield address[0], temporary, process
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.slow
def test_uploads_above_the_limit(page: tuple[str, Path, "subprocess.Popen[str]"]) -> None:
    """Of a program that is no browser; the limit is 50 times 1024 bytes."""

    def upload(size: int) -> int:
        body = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a.png"\r\n\r\n'
        body += bytes(size) + b"\r\n--x--\r\n"
        headers = {"Content-Type": "multipart/form-data; boundary=x"}
        try:
            with urlopen(Request(f"{page[0]}/gradio_api/upload", body, headers)) as response:
                return int(response.status)
        except HTTPError as error:
            return error.code

    assert [upload(size) for size in (40_000, 60_000)] == [200, 413]


@pytest.fixture
def browser() -> Iterator[Any]:
    """Headless Chromium."""
    pytest.importorskip("selenium")
    if not all(map(shutil.which, screenshot.PROGRAMS)):
        pytest.skip("no Chromium: apt-get install chromium chromium-driver")
    with screenshot.browser() as driver:
        yield driver


def asked_of_others(browser: Any) -> list[str]:
    """The addresses beyond this machine that the page asked for."""
    entries = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    urls = [e["params"]["request"]["url"] for e in entries if e["method"] == "Network.requestWillBeSent"]
    assert urls
    return [url for url in urls if urlparse(url).scheme in ("http", "https", "ws") and "//127.0.0.1" not in url]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Selenium
def test_in_the_browser(
    browser: Any, page: tuple[str, Path, "subprocess.Popen[str]"], shop: Workshop, detailed: str, tmp_path: Path,
    photo: Photo,
) -> None:  # fmt: skip
    from selenium.webdriver.common.keys import Keys

    address, temporary, process = page

    def drop(path: Path) -> None:
        find(browser, "#photograph input[type=file]").send_keys(str(path))
        find(browser, "#photograph a[href*='/dropped-']")  # it has been uploaded and moved there

    with urlopen(address) as response:
        html = response.read().decode()
    assert re.findall(r"<(?:script|link|img)[^>]*(?:src|href)=[\"'](?:https?:)?//[^\"']*", html) == []

    browser.get(address)
    Image.fromarray(photo(12, 16)).save(tmp_path / "holiday.png")
    drop(tmp_path / "holiday.png")
    press(browser, "#enlarge")
    assert "The network ran " in read(browser, "summary", "16 x 12 → 64 x 48 pixels")
    browser.execute_cdp_cmd("Page.setDownloadBehavior", {"behavior": "allow", "downloadPath": str(tmp_path)})
    press(browser, "#download")
    wait_for((tmp_path / "holiday_x4.png").is_file, "the download")
    large = np.asarray(Image.open(tmp_path / "holiday_x4.png"))
    expected = shop.enlarge(detailed, Picture(photo(12, 16)), None, 0)
    np.testing.assert_array_equal(large, expected.picture.rgb)
    for name, width in (("slider", 64), ("map", expected.map.shape[1])):

        def shown(name: str = name, width: int = width) -> bool:
            return width in widths(browser, name)

        wait_for(shown, name)
    slider = find(browser, "#amount input[type=range]")
    assert not slider.is_enabled()

    def drawn() -> set[str]:
        script = "return [...document.querySelectorAll('#slider img')].map(image => image.src)"
        return set(browser.execute_script(script))

    def move() -> None:
        wait_for(slider.is_enabled, "the slider")
        slider.send_keys(Keys.END)

    for act in (lambda: press(browser, "#own input[type=checkbox]"), move):
        old = drawn()
        act()

        def anew(old: set[str] = old) -> bool:
            return len(drawn()) == 2 and not drawn() & old

        wait_for(anew, "the result to be drawn anew")
    press(browser, "#enlarge")
    browser.refresh()  # while it is enlarged
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8)).save(tmp_path / "large.png")
    find(browser, "#photograph input[type=file]").send_keys(str(tmp_path / "large.png"))
    said = find(browser, ".toast-body")
    wait_for(lambda: "Kb" in said.text, "the refusal")
    title, _, *lines = said.text.splitlines()  # between them is the button that closes it
    assert (title, lines) == ("Error", ['File(s) exceed the maximum allowed size of 50.0 Kb: "large.png"'])
    assert list(temporary.rglob("large.png")) == []
    browser.refresh()
    (tmp_path / "broken.png").write_bytes(b"no picture")
    drop(tmp_path / "broken.png")
    press(browser, "#enlarge")
    said = find(browser, ".toast-body")
    wait_for(lambda: "broken.png" in said.text, "the error")
    title, _, line = said.text.splitlines()
    assert (title, "holiday" in line) == ("Error", False)

    assert asked_of_others(browser) == []

    assert [path for path in temporary.rglob("*") if path.is_file()] != []
    browser.get("about:blank")
    wait_for(lambda: not list(temporary.rglob("*.png")), "the files of the page to be removed")
    process.send_signal(signal.SIGTERM)
    process.wait(timeout=300)
    assert list(temporary.glob("skipdiff-web-*")) == []
