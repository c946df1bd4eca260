"""A screenshot of the page of `skipdiff web` for the documentation, taken by headless Chromium.

python -m benchmarks.screenshot -o docs/generated/web.webp [--checkpoint natural-x4] [--sample chelsea]

Needs Debian's packages chromium and chromium-driver, and Selenium.
"""

import io
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
from PIL import Image

from agents.cli.command import Command
from ddpm.util.errors import ConfigError
from ddpm.util.files import atomic_path

PROGRAMS = ("chromium", "chromedriver")
# Seconds that a step of the page may take.
PATIENCE = 240
ARGUMENTS = ("--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--disable-gpu", "--no-proxy-server")


@contextmanager
def browser(width: int = 1280, height: int = 1100) -> Iterator[Any]:
    """Start headless Chromium, driven by Selenium. Both must be installed, and nothing is downloaded.

    Args:
        width: width of the window, in pixels.
        height: height of the window, in pixels.

    Yields:
        Selenium's driver, whose log "performance" has the requests of the pages.

    Raises:
        ConfigError: a program is missing.
    """
    places = [shutil.which(program) for program in PROGRAMS]
    if None in places:
        raise ConfigError(f"there is no {' and '.join(PROGRAMS)}; apt-get install chromium chromium-driver")
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = str(places[0])
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    with TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        for argument in (*ARGUMENTS, f"--user-data-dir={profile}", f"--window-size={width},{height}"):
            options.add_argument(argument)
        driver = webdriver.Chrome(options=options, service=webdriver.ChromeService(executable_path=str(places[1])))
        try:
            yield driver
        finally:
            driver.quit()


def wait_for(what: Callable[[], Any], name: str) -> Any:
    """Return the first true value that a function returns.

    Args:
        what: the function, which is called repeatedly.
        name: name of the value, for the error.

    Raises:
        TimeoutError: there was no true value in `PATIENCE` seconds.
    """
    end = time.monotonic() + PATIENCE
    while time.monotonic() < end:
        if value := what():
            return value
        time.sleep(0.2)
    raise TimeoutError(f"waited {PATIENCE} s for {name}")


def find(driver: Any, selector: str) -> Any:
    """Return the first element that a CSS selector matches, once there is one."""
    return wait_for(lambda: driver.find_elements("css selector", selector), selector)[0]


def press(driver: Any, selector: str) -> None:
    """Click an element, once it is visible."""
    wait_for(lambda: find(driver, selector).is_displayed(), selector)
    driver.execute_script("arguments[0].click()", find(driver, selector))


def read(driver: Any, name: str, part: str) -> str:
    """Return the text of a box of the page, once it contains `part`."""

    def holds() -> str | None:
        value = find(driver, f"#{name} textarea").get_property("value")
        return value if part in value else None

    return str(wait_for(holds, f"{part!r} in {name}"))


def widths(driver: Any, name: str) -> list[int]:
    """Return the widths of the pictures in a part of the page that have been loaded, in pixels."""
    script = "return [...document.querySelectorAll(arguments[0])].map(image => image.naturalWidth)"
    return [width for width in driver.execute_script(script, f"#{name} img") if width]


@click.command(cls=Command)
@click.option("-o", "--out", type=click.Path(path_type=Path), default="web.webp", help="Picture to write.")
@click.option("--checkpoint", default="natural-x4", help="Name, folder or Hub id.")
@click.option("--sample", default="chelsea", help="Which of scikit-image's photographs is enlarged.")
def main(out: Path, checkpoint: str, sample: str) -> None:
    """Enlarge a sample on the page, and write a picture of the page."""
    from agents.web.app import Workshop
    from agents.web.page import served

    with served(Workshop([checkpoint]), "127.0.0.1", None, 20) as address, browser() as driver:
        driver.get(address)
        press(driver, f"input[type=radio][value={sample}]")
        press(driver, "#enlarge")
        summary = read(driver, "summary", "pixels")
        wait_for(lambda: len(widths(driver, "slider")) > 1, "the pictures")
        time.sleep(1)  # until the pictures are drawn
        picture = Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB")
    with atomic_path(out) as temporary:
        picture.save(temporary, "WEBP", quality=80)
    click.echo(f"{summary}\npicture: {out}")


if __name__ == "__main__":
    main()
