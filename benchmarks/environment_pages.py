"""Write docs/environments/SkipDiff-v0.md from the docstring of `SkipDiffEnv`, and arguments.md from `TaskConfig`'s.

python -m benchmarks.environment_pages

The pages are plain Markdown, so that they read the same on GitHub and on the site.
"""

import inspect
from pathlib import Path

import click

from agents.cli.command import Command
from agents.cli.options import attribute_docs
from ddpm.util.files import atomic_path
from skipdiff_env.config import TaskConfig
from skipdiff_env.env import SkipDiffEnv

FOLDER = Path(__file__).parents[1] / "docs" / "environments"


def arguments() -> str:
    """Return the page of the arguments of all environments with a network."""
    entries = "\n".join(f"- **{name}**: {text}" for name, text in attribute_docs(TaskConfig).items())
    return f"# Arguments of the environments\n\nThe defaults are those of `SkipDiff-v0`.\n\n{entries}\n"


def pages() -> dict[str, str]:
    """Return the name of each page → its text."""
    page = (inspect.getdoc(SkipDiffEnv) or "").partition("\n\nArgs:")[0]
    film = "![An episode, drawn by `make films`](../generated/SkipDiff-v0.webp)"
    return {"SkipDiff-v0.md": f"# SkipDiff-v0\n\n{film}\n\n{page}\n", "arguments.md": arguments()}


@click.command(cls=Command)
def main() -> None:
    """Write the pages and print their paths."""
    for name, text in pages().items():
        with atomic_path(FOLDER / name) as temporary:
            temporary.write_text(text, encoding="utf-8")
        click.echo(FOLDER / name)


if __name__ == "__main__":
    main()
