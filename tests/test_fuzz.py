"""A small part of what `benchmarks.fuzz` does."""

import warnings

import numpy as np
import pytest

import benchmarks.fuzz
from benchmarks.fuzz import (
    KINDS,
    Case,
    Stock,
    damaged,
    damaged_json,
    damaged_safetensors,
    fuzz,
    half_written,
    play,
    summary,
    with_checksums,
)


@pytest.mark.parametrize("kind", ["pictures", "checkpoints", pytest.param("command lines", marks=pytest.mark.slow)])
def test_mutated_input(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = ("{agent}", "{begun}", "{chooser}", "--backend", "natural-x4", "faces-x8", "photo-x4")
    quick = ("upscale", "tabulate", "train-ddpm", "import-sr3")
    lines = [line for line in benchmarks.fuzz.GOOD_LINES if line.startswith(quick)]
    lines = [line for line in lines if not any(word in line for word in slow)]
    monkeypatch.setattr(benchmarks.fuzz, "GOOD_LINES", lines)
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # as they are outside of tests
        found = list(fuzz(range(8), seed=0, limit=30, kind=kind))
    assert [(case.number, *case.faults, *case.half) for case in found] == [(number,) for number in range(8)]
    assert {case.kind for case in found} == {kind}
    assert f"| all | 8 | {sum(not c.stopped and c.code == 0 for c in found)} |" in summary(found)


def test_a_case_depends_on_seed_and_number_alone(tmp_path_factory: pytest.TempPathFactory) -> None:
    lines = []
    for number in (3, 4, 3):
        rng = np.random.default_rng([1, number])
        lines.append((damaged(b"x" * 100, rng), damaged_json({"a": [1, 2], "b": "c"}, rng)))
    assert lines[0] == lines[2] != lines[1]


def test_what_counts_as_a_fault(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """A traceback, an exit without an error, lines beside it, and files that cannot be read."""
    import click

    from agents.cli import main

    def fail(how: str) -> None:
        if how == "bug":
            raise KeyError("x")
        with open("x.json", "w", encoding="utf-8") as file:
            file.write("{")
        if how == "silent":
            raise SystemExit(1)
        click.echo("something went wrong", err=True)
        raise click.ClickException("it did not work")

    command = click.Command("fail", params=[click.Argument(["how"])], callback=fail)
    monkeypatch.setitem(main.commands, "fail", command)
    found: dict[str, Case] = {}
    for how in ("bug", "silent", "loud"):

        def commands(rng: object, given: object, how: str = how) -> list[str]:
            return ["fail", how]

        monkeypatch.setitem(KINDS, "failing", (0.0, commands))
        found[how] = play(0, 0, Stock(tmp_path_factory.mktemp("stock")), 5, "failing")
    assert found["bug"].faults == ["KeyError: 'x'"]
    assert found["silent"].faults == ["exit code 1 without an error: []"]
    assert found["loud"].faults == ["a line that is not an error: something went wrong"]
    assert found["loud"].message == "Error: it did not work"
    assert found["bug"].half == []
    assert [line.split(":")[0] for line in found["silent"].half + found["loud"].half] == ["x.json", "x.json"]


def test_damage_reaches_beyond_checksums(tmp_path_factory: pytest.TempPathFactory) -> None:
    """Checksums of a mutated PNG are right again; a damaged file of tensors still has a header."""
    import io

    from PIL import Image
    from safetensors.numpy import load, save

    file = io.BytesIO()
    Image.new("RGB", (4, 4)).save(file, format="PNG")
    broken = bytearray(file.getvalue())
    broken[29:33] = b"\0\0\0\0"
    assert with_checksums(bytes(broken)) == file.getvalue()
    whole = save({"a": np.zeros(64, np.float32)})
    changed = [damaged_safetensors(whole, np.random.default_rng(i)) for i in range(40)]
    loaded = 0
    for data in changed:
        try:
            loaded += not np.array_equal(load(data)["a"], np.zeros(64, np.float32))
        except Exception:  # most are damaged
            continue
    assert loaded > 0, "some have other numbers"
    path = tmp_path_factory.mktemp("files") / "x.safetensors"
    path.write_bytes(whole[:-4])
    assert half_written(path).startswith("SafetensorError")
