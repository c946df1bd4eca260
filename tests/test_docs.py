"""Every code block of README, the documentation and the environments' pages, run or at least checked.

The blocks of a page are one session: they share a folder and their variables, and run in their order. The shipped nets
are replaced by tiny ones, and of scikit-image's photographs there are few crops. A comment before a block may say

    <!-- not run: REASON -->            its commands are checked: programs, commands and options exist
    <!-- in the test: OLD → NEW; … -->  it is run with these changes

README has no such comments: its Python is run as it is, and gives the score that it claims; its shell is checked.
"""

import configparser
import re
import shlex
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import groupby
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
from click.testing import CliRunner
from PIL import Image

from agents.cli import main
from benchmarks.environment_pages import pages
from skipdiff_env import VARIANTS
from skipdiff_env.decisions import KINDS
from skipdiff_env.plan import Plan
from tests.conftest import Photo, tiny_unet
from tests.untrained import untrained

ROOT = Path(__file__).parents[1]
PAGES = ["README.md", "CONTRIBUTING.md"]
PAGES += sorted(f"docs/{page.name}" for page in (ROOT / "docs").glob("*.md"))
PAGES += sorted(f"docs/environments/{page.name}" for page in (ROOT / "docs/environments").glob("*.md"))
# Not code: what commands print, and changes to files.
NO_CODE = {"text", "diff"}
# Programs of blocks that are not run, whose arguments are not checked.
OTHERS = {"cd", "cp", "git", "mkdir", "python", "python3", "source", "tensorboard"}
BLOCK = re.compile(r"(?:^<!-- (?P<note>.*?) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
        place: page and line.
        language: as behind its fence.
        code: its lines, without changes.
        note: the comment before it, or nothing.
    """

    place: str
    language: str
    code: str
    note: str

    @property
    def skipped(self) -> bool:
        """Whether it says that it is not run."""
        return self.note.startswith("not run: ")

    @property
    def runnable(self) -> str:
        """Its code with the changes that its note asks for."""
        code = self.code
        _, found, changes = self.note.partition("in the test: ")
        for change in changes.split("; ") if found else ():
            old, _, new = change.partition(" → ")
            assert old in code, f"{self.place}: the note changes {old!r}, which is not there"
            code = code.replace(old, new)
        return code


@pytest.fixture(autouse=True)
def known_kinds() -> Iterator[None]:
    """Remove the kinds of decision that a page has added."""
    before = dict(KINDS)
    yield
    KINDS.clear()
    KINDS.update(before)


def blocks_of(text: str, page: str) -> list[Block]:
    """The code blocks of a page."""
    found = []
    for match in BLOCK.finditer(text):
        line = text[: match.start("code")].count("\n")
        found.append(Block(f"{page}:{line}", match["language"], match["code"], match["note"] or ""))
    assert len(found) == len(re.findall(r"^```\w", text, re.MULTILINE)), f"{page} has a fence without a language"
    return found


BLOCKS = [block for page in PAGES for block in blocks_of((ROOT / page).read_text(encoding="utf-8"), page)]


def commands_of(code: str) -> list[list[str]]:
    """The words of each command of a shell block."""
    lines = re.sub(r"\\\n\s*", " ", code).splitlines()
    words = [shlex.split(line, comments=True) for line in lines]
    return [list(part) for line in words for end, part in groupby(line, lambda word: word == "&&") if not end]


def parse(command: click.Command, arguments: Sequence[str]) -> None:
    """Reads arguments as a command would, without running it."""
    try:
        context = command.make_context(command.name, list(arguments))
    except click.exceptions.Exit:  # of --help
        return
    if isinstance(command, click.Group):
        name, own, rest = command.resolve_command(context, [*context._protected_args, *context.args])
        assert own is not None, name
        parse(own, rest)


def check(words: Sequence[str], place: str) -> None:
    """Checks a command that is not run."""
    program, *rest = words
    if program == "skipdiff":
        parse(main, rest)
    elif program == "accelerate":
        assert rest[:3] == ["launch", "-m", "agents.cli"], place
        parse(main, rest[3:])
    elif program == "make":
        targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE)
        assert {word for word in rest if "=" not in word} <= set(targets), place
    elif program == "pip":
        extras = configparser.ConfigParser()
        extras.read(ROOT / "setup.cfg", encoding="utf-8")
        assert set(re.findall(r"skipdiff\[(\w+)\]", " ".join(rest))) <= set(extras["options.extras_require"]), place
    elif program.startswith("python") and rest[:1] == ["-m"] and rest[1].startswith("benchmarks."):
        module = import_module(rest[1])
        if hasattr(module, "command_line"):
            module.command_line().parse_args(rest[2:])
        else:
            parse(module.main, rest[2:])
    else:
        assert program in OTHERS, f"{place}: unknown program {program}"


@pytest.fixture(scope="module")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Tiny nets with untrained agents under the names of those that ship."""
    found = {}
    for name, scale in (("natural-x4", 4), ("photo-x4", 4), ("faces-x8", 8)):
        found[name] = tmp_path_factory.mktemp("checkpoints") / name
        tiny_unet(scale=scale).save_pretrained(found[name])
        agent = untrained(Plan(10, 10), image_size=128)
        for folder in ("agent", "agent-detail", "agent-paper"):
            agent.save(found[name] / folder)
    return found


@pytest.fixture
def workplace(
    tmp_path: Path, photo: Photo, checkpoints: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> pytest.MonkeyPatch:
    """The folder in which a reader works: pictures of his own, and nothing else."""
    import agents.agent
    import ddpm.checkpoints
    from skipdiff_env import pictures

    for folder in ("holiday", "photographs", "others", "portraits"):
        (tmp_path / folder).mkdir()
        for i in range(3):
            Image.fromarray(photo(128, 128, seed=i)).save(tmp_path / folder / f"{i}.png")
    Image.fromarray(photo(24, 32)).save(tmp_path / "photo.jpg")
    Image.fromarray(photo(16, 16)).save(tmp_path / "face.png")
    for module in (agents.agent, ddpm.checkpoints):
        monkeypatch.setattr(module, "shipped_checkpoints", lambda: checkpoints)
    tiles = pictures._tiles
    monkeypatch.setattr(pictures, "_tiles", lambda size, split: tiles(size, split)[:: 30 if size < 128 else 6])
    monkeypatch.setenv("MINARI_DATASETS_PATH", str(tmp_path / "minari"))
    monkeypatch.chdir(tmp_path)
    return monkeypatch


def run(block: Block, variables: dict[str, Any]) -> None:
    """Runs a block as a reader would."""
    if block.language == "python":
        exec(compile(block.runnable, block.place, "exec"), variables)
        return
    for program, *words in commands_of(block.runnable):
        if program == "cp":
            _, source, target = words
            shutil.copytree(source, target)
            continue
        assert program == "skipdiff", f"{block.place}: {program} is not run in tests; mark the block as not run"
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, (block.place, words, result.output, result.exception)


@pytest.mark.filterwarnings("ignore")  # of the libraries, which a reader would see as well
@pytest.mark.parametrize(
    "page",
    [
        pytest.param(page, marks=pytest.mark.slow) if page == "README.md" else page
        for page in dict.fromkeys(block.place.rpartition(":")[0] for block in BLOCKS)
    ],
)
def test_blocks(page: str, workplace: pytest.MonkeyPatch) -> None:
    """Blocks run, and commands that would take too long are at least commands with options that exist."""
    variables: dict[str, Any] = {"__name__": page}
    if page.startswith("docs/environments/"):
        exec("import gymnasium as gym\nimport skipdiff_env", variables)
    for block in BLOCKS:
        if block.place.rpartition(":")[0] != page or block.language in NO_CODE:
            continue
        assert block.language in ("python", "shell"), f"{block.place}: unknown language {block.language!r}"
        if block.language == "shell":
            for words in commands_of(block.code):
                check(words, block.place)
        if not block.skipped and not (page == "README.md" and block.language == "shell"):
            run(block, variables)
    if page == "README.md":  # what it says is what its code gives, but for rounding on another processor
        claim = re.search(r"It scores (\S+) \[(\S+), (\S+)\]", (ROOT / page).read_text(encoding="utf-8"))
        assert claim is not None
        score = variables["score"]
        np.testing.assert_allclose(
            [score.value, score.low, score.high], [float(each) for each in claim.groups()], atol=0.15
        )
    if page == "docs/tutorial.md":
        assert np.isfinite(variables["rewards"]).all()
        assert variables["agent"].config.plan.skip_mode == "jump"


def test_notes_say_why() -> None:
    for block in BLOCKS:
        assert not block.note or block.note.startswith(("not run: ", "in the test: ")), f"{block.place}: {block.note}"


@pytest.mark.parametrize("name", VARIANTS)
def test_every_environment_has_its_page(name: str) -> None:
    page = (ROOT / "docs/environments" / f"{name}.md").read_text(encoding="utf-8")
    assert page.startswith(f"# {name}\n")
    for heading in ("## Description", "## Version history"):
        assert heading in page
    assert f"(environments/{name}.md)" in (ROOT / "docs/environments.md").read_text(encoding="utf-8")
    assert f"environments/{name}.md" in (ROOT / "mkdocs.yml").read_text(encoding="utf-8")


def test_pages_of_docstrings() -> None:
    """They are those that `python -m benchmarks.environment_pages` writes."""
    for name, text in pages().items():
        assert (ROOT / "docs/environments" / name).read_text(encoding="utf-8") == text, f"write {name} again"
    assert "(environments/arguments.md)" in (ROOT / "docs/environments.md").read_text(encoding="utf-8")


def test_pages_read_the_same_on_github() -> None:
    """Nothing is included and no directive is left, but for the pages that exist on the site alone."""
    for page in PAGES:
        if page not in ("docs/contributing.md", "docs/changelog.md"):
            assert not re.findall(r"^(?:--8<--|:::) .*$", (ROOT / page).read_text(encoding="utf-8"), re.MULTILINE), page
