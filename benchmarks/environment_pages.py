"""Write the page of the environments' arguments, docs/environments/arguments.md, from the docstring of `TaskConfig`.

python -m benchmarks.environment_pages

The page is plain Markdown, so that it reads the same on GitHub and on the site.
"""

import inspect
import re
from pathlib import Path

import click

from agents.cli.command import Command
from ddpm.util.files import atomic_path
from skipdiff_env.config import TaskConfig

PAGE = Path(__file__).parents[1] / "docs" / "environments" / "arguments.md"
# The attributes in a Google style docstring, and an entry of one.
ATTRIBUTES = re.compile(r"^Attributes:\n((?:(?: {4}.*)?(?:\n|$))*)", re.MULTILINE)
ENTRY = re.compile(r"^ {4}(\w+): ", re.MULTILINE)


def arguments() -> str:
    """Return the page of the arguments of all environments with a network."""
    section = ATTRIBUTES.search(inspect.getdoc(TaskConfig) or "")
    assert section is not None
    entries = ENTRY.sub(r"- **\1**: ", re.sub(r"\n {8}", " ", section[1].rstrip()))
    return f"# Arguments of the environments\n\nThe defaults are those of `SkipDiff-v0`.\n\n{entries}\n"


@click.command(cls=Command)
def main() -> None:
    """Write the page and print its path."""
    with atomic_path(PAGE) as temporary:
        temporary.write_text(arguments(), encoding="utf-8")
    click.echo(PAGE)


if __name__ == "__main__":
    main()
