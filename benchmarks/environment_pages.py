"""Write the pages of the environments, docs/environments/*.md, from the docstrings of their classes.

python -m benchmarks.environment_pages

The pages are plain Markdown, so that they read the same on GitHub and on the site.
"""

import inspect
import re
from importlib import import_module
from pathlib import Path

import click

from agents.cli.command import Command
from ddpm.util.files import atomic_path
from skipdiff_env import VARIANTS
from skipdiff_env.config import TaskConfig

DOCS = Path(__file__).parents[1] / "docs"
# A section of a Google style docstring, and an entry of one.
SECTION = re.compile(r"^(Args|Attributes|Raises|Returns):\n((?:(?: {4}.*)?(?:\n|$))*)", re.MULTILINE)
ENTRY = re.compile(r"^ {4}(\w+): ", re.MULTILINE)


def arguments() -> str:
    """Return the page of the arguments of all environments with a network."""
    text = inspect.getdoc(TaskConfig) or ""
    section = next(each for each in SECTION.finditer(text) if each[1] == "Attributes")
    entries = ENTRY.sub(r"- **\1**: ", re.sub(r"\n {8}", " ", section[2].rstrip()))
    return f"# Arguments of the environments\n\nThe defaults are those of `SkipDiff-v0`.\n\n{entries}\n"


def pages() -> dict[str, str]:
    """Return the name of each page below docs/environments/ → its text."""
    found = {}
    for name, (entry, *_) in VARIANTS.items():
        module, kind = entry.split(":")
        film = f"generated/{name}.webp"
        shown = f"![An episode, drawn by `make films`](../{film})\n\n" if (DOCS / film).is_file() else ""
        page = inspect.getdoc(getattr(import_module(f"skipdiff_env.{module}"), kind)) or ""
        text = SECTION.sub("", page.removeprefix(f"{name}: ")).rstrip()
        found[f"{name}.md"] = f"# {name}\n\n{shown}{text[0].upper()}{text[1:]}\n"
    return {**found, "arguments.md": arguments()}


@click.command(cls=Command)
def main() -> None:
    """Write the pages and print their paths."""
    for name, text in pages().items():
        with atomic_path(DOCS / "environments" / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
        click.echo(DOCS / "environments" / name)


if __name__ == "__main__":
    main()
