"""Text is UTF-8 in every locale. Ruff's rule sees only calls on what it knows to be a path; this sees all."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = ("agents", "benchmarks", "checkpoints", "ddpm", "skipdiff_env", "tests")
FILES = sorted(path for folder in PACKAGES for path in (ROOT / folder).rglob("*.py"))


def calls_without_encoding(source: str) -> Iterator[str]:
    """Calls that open a text file, or read or write it whole, and name no encoding; an `archive` holds binary files."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        name = function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", "")
        owner = getattr(function.value, "id", "") if isinstance(function, ast.Attribute) else ""
        if name not in ("open", "read_text", "write_text") or owner in ("Image", "archive", "os", "tarfile"):
            continue
        modes = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
        binary = name == "open" and any("b" in mode and set(mode) <= set("rwabx+") for mode in modes)
        if not binary and not any(keyword.arg == "encoding" for keyword in node.keywords):
            yield f"line {node.lineno}: {ast.unparse(node)}"


def test_what_counts() -> None:
    source = "p.open(); open('x', 'w'); p.read_text(); p.write_text('b'); "
    source += "open('x', 'rb'); p.open(encoding='utf-8'); Image.open('x')"
    assert len(list(calls_without_encoding(source))) == 4


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.name}")
def test_every_text_file_is_utf_8(path: Path) -> None:
    assert list(calls_without_encoding(path.read_text(encoding="utf-8"))) == []
