"""`skipdiff upscale`, and the same in Python."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from PIL import Image, ImageColor, ImageDraw

from agents.cli import main
from ddpm.checkpoints import is_hub_id
from ddpm.pictures.images import Animation, Picture, from_pil, read_animation, read_picture, to_tensor
from ddpm.pictures.tiling import Box
from ddpm.schedule import Schedule
from ddpm.util.errors import CheckpointError, ConfigError, ImageError
from skipdiff_env.rendering import draw_map
from skipdiff_env.rules import InvalidActionError
from skipdiff_env.upscaler import LIVE_PICTURES, Tile, Upscaler
from tests.conftest import Photo, counting, tiny_unet
from tests.test_images import BAD_FILES

FAST = ("--steps=4,25", "--start=2")


def upscale(checkpoint: str, *args: object) -> Result:
    return CliRunner().invoke(main, ["upscale", f"--checkpoint={checkpoint}", *FAST, *map(str, args)])


@pytest.fixture
def photos(tmp_path: Path, photo: Photo) -> Path:
    """A folder of four 16 x 16 pictures."""
    folder = tmp_path / "photos"
    folder.mkdir()
    for i in range(4):
        Image.fromarray(photo(16, 16, seed=i)).save(folder / f"{i}.png")
    return folder


def errors(result: Result) -> list[str]:
    return [line for line in result.output.splitlines() if line.startswith("Error: ")]


def size(path: Path) -> tuple[int, int]:
    with Image.open(path) as image:
        return image.size


@pytest.fixture
def upscaler(checkpoint: str) -> Upscaler:
    return Upscaler(checkpoint, steps=(4, 25), start=2)


def test_files_folders_and_patterns(checkpoint: str, photos: Path, tmp_path: Path, photo: Photo) -> None:
    (photos / "sub").mkdir()
    Image.fromarray(photo(5, 9)).save(photos / "sub" / "odd.jpg")
    Image.fromarray(photo(1, 1)).save(tmp_path / "dot.png")
    result = upscale(
        checkpoint, photos, tmp_path / "d*.png", photos / "0.png", "-o", tmp_path / "out", "--batch-size=3"
    )
    assert result.exit_code == 0, result.output
    assert "6 pictures, 5 forwards each" in result.output
    sizes = {str(p.relative_to(tmp_path / "out")): size(p) for p in (tmp_path / "out").rglob("*.png")}
    assert sizes == {**{f"{i}_x4.png": (64, 64) for i in range(4)}, "sub/odd_x4.png": (36, 20), "dot_x4.png": (4, 4)}


def test_alpha_and_grey_are_kept(upscaler: Upscaler, photo: Photo) -> None:
    rgba = Image.fromarray(photo(6, 8)).convert("RGBA")
    rgba.putalpha(Image.fromarray(np.tile(np.arange(0, 240, 30, dtype=np.uint8), (6, 1))))
    large = upscaler(rgba)
    assert large.mode == "RGBA"
    alpha = np.asarray(large)[..., 3].astype(int)
    assert alpha[:, 0].max() < alpha[:, 16].min() < alpha[:, -1].min()
    assert upscaler(Image.fromarray(photo(6, 8)).convert("L")).mode == "L"
    assert upscaler(Image.fromarray(photo(6, 8)).convert("P")).mode == "RGB"


def cutout(colour: Any, hidden: Any, mode: str = "RGB") -> Image.Image:
    """A triangle of one colour with soft edges; the pixels that are wholly transparent hide another colour."""
    big = Image.new("L", (96, 96), 0)
    draw = ImageDraw.Draw(big)
    draw.polygon([(48, 8), (90, 88), (8, 88)], fill=255)
    draw.ellipse((40, 50, 56, 66), fill=0)
    alpha = big.resize((24, 24), Image.Resampling.BOX)
    image = Image.new(mode, alpha.size, hidden)
    image.paste(colour, (0, 0, *alpha.size), mask=alpha.point(lambda value: 255 * (value > 0)))
    image.putalpha(alpha)
    return image


@pytest.mark.parametrize(("colour", "hidden"), [("white", "black"), ("black", "white"), ((230, 40, 40), "black")])
def test_hidden_colours_leave_no_fringe(colour: Any, hidden: Any) -> None:
    large = np.asarray(Upscaler(levels=(5, 2))(cutout(colour, hidden)).convert("RGBA")).astype(int)
    wanted = np.array(ImageColor.getrgb(colour) if isinstance(colour, str) else colour)
    opaque = large[..., 3] >= 200
    assert opaque.sum() > 2000
    assert np.abs(large[..., :3] - wanted)[opaque].max() < 40  # more than 200 where they are seen


def test_hidden_colours_have_no_say(upscaler: Upscaler, tmp_path: Path) -> None:
    for mode in ("RGB", "L"):
        first, second = (upscaler(cutout("white", hidden, mode)) for hidden in (0, 99))  # in RGB black and a dark red
        assert first.mode == "LA"
        np.testing.assert_array_equal(np.asarray(first), np.asarray(second))
    for hidden in (0, 99):
        path = tmp_path / f"{hidden}.webp"
        frames = [cutout("white", hidden), cutout("red", hidden)]
        frames[0].save(path, save_all=True, append_images=frames[1:], lossless=True, exact=True)
        upscaler.upscale_file(path, path.with_suffix(".png"))
    ones, others = (read_animation(tmp_path / f"{hidden}.png").frames for hidden in (0, 99))
    for one, other in zip(ones, others, strict=True):
        np.testing.assert_array_equal(one.rgb, other.rgb)
    empty = Image.new("RGBA", (6, 6), (10, 20, 30, 0))
    assert upscaler(empty).getchannel("A").getextrema() == (0, 0)


def test_odd_arguments(checkpoint: str, photo: Photo) -> None:
    """Each is refused before anything is computed."""
    for arguments, message in (
        ({"tile": 128.0}, "tile must be a whole number of at least 0, got 128.0"),
        ({"tile": "128"}, "tile must be a whole number of at least 0, got '128'"),
        ({"start": 1.5}, "start must lie in 1 … 10, the fine steps, a whole number, got 1.5"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            Upscaler(checkpoint, **arguments)
    for actions, message in ([5], "0 (DENOISE) or 1 (SKIP), got 5"), ([], "for each picture, 1 in all, got 0"):
        upscaler = Upscaler(checkpoint, policy=lambda states, actions=actions: actions)  # type: ignore[misc]
        with counting(upscaler.unet) as forwards, pytest.raises(InvalidActionError, match=re.escape(message)):
            upscaler(Image.fromarray(photo(8, 8)))
        assert forwards == [1] * 9, "the coarse stage alone"


def test_small_tiles_are_told_of(checkpoint: str, photos: Path, tmp_path: Path) -> None:
    told = "tiles of 16 pixels show the network too little, which puts grain into sky and other smooth parts"
    for tile, expected in ((16, True), (64, False), (0, False)):
        result = upscale(checkpoint, photos / "0.png", "-o", tmp_path / str(tile), f"--tile={tile}")
        assert result.exit_code == 0
        assert (told in " ".join(result.output.split())) == expected


def test_same_seed_same_picture_in_any_batch(upscaler: Upscaler, photo: Photo) -> None:
    lr = [to_tensor(photo(8, 12, seed=i)) for i in range(5)]
    together = upscaler.upscale(lr, [7, 1, 2, 3, 4])
    alone = upscaler.upscale(lr[:1], [7])[0]
    np.testing.assert_allclose(alone.sr, together[0].sr, atol=1e-4)
    assert (alone.start, alone.nfe) == (2, 5)
    other = upscaler.upscale(lr[:1], [8])[0]
    assert (other.sr - alone.sr).abs().mean() > 1e-3


def test_samples_differ(checkpoint: str, photos: Path, tmp_path: Path) -> None:
    result = upscale(checkpoint, photos / "0.png", "-o", tmp_path / "out", "--samples=3", "--seed=5")
    assert result.exit_code == 0, result.output
    pictures = [read_picture(tmp_path / "out" / f"0_x4_{k}.png").rgb for k in range(3)]
    assert not np.array_equal(pictures[0], pictures[1])
    assert upscale(checkpoint, photos / "0.png", "-o", tmp_path / "one.png", "--seed=6").exit_code == 0
    alone = read_picture(tmp_path / "one.png").rgb
    assert np.abs(alone.astype(int) - pictures[1]).max() <= 1, "rounding alone may differ between a batch and one"


def test_nothing_is_overwritten_unasked(checkpoint: str, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out.png"
    out.write_bytes(b"precious")
    result = upscale(checkpoint, photos / "0.png", "-o", out)
    assert result.exit_code == 2
    assert "--overwrite" in result.output
    assert out.read_bytes() == b"precious"
    assert upscale(checkpoint, photos / "0.png", "-o", out, "--overwrite").exit_code == 0
    assert size(out) == (64, 64)


def test_two_pictures_of_one_name(checkpoint: str, tmp_path: Path, photo: Photo) -> None:
    for ending in ("png", "jpg"):
        Image.fromarray(photo(8, 8)).save(tmp_path / f"same.{ending}")
    result = upscale(checkpoint, tmp_path, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "another picture of this run" in result.output
    assert "give --format same" in " ".join(result.output.split())
    assert len(list((tmp_path / "out").iterdir())) == 1
    assert upscale(checkpoint, tmp_path, "-o", tmp_path / "both", "--format=same").exit_code == 0
    assert {path.name for path in (tmp_path / "both").iterdir()} >= {"same_x4.png", "same_x4.jpg"}


def test_bad_files_leave_the_others_done(checkpoint: str, tmp_path: Path, photo: Photo) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, (content, _) in BAD_FILES.items():
        (folder / name).write_bytes(content)
    Image.fromarray(photo(8, 8)).save(folder / "good.png")
    result = upscale(checkpoint, folder, tmp_path / "none.png", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["good_x4.png"]
    lines = errors(result)
    assert len(lines) == len(BAD_FILES) + 1
    for name in (*BAD_FILES, "none.png"):
        assert sum(name in line for line in lines) == 1
    assert "1 picture," in result.output


def test_full_disk(checkpoint: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(picture: object, path: Path, quality: int) -> list[str]:
        if "1_x4" in path.name:
            raise ImageError(f"cannot write {path}: No space left on device")
        return []

    monkeypatch.setattr("agents.upscaling.jobs.write_picture", full)
    result = upscale(checkpoint, photos, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "1_x4.png: No space left" in result.output
    assert "3 pictures" in result.output


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["--steps=7,14"], "must multiply to the 100 diffusion steps"),
        (["--steps=10"], "expected 2 numbers"),
        (["--steps=a,b"], "whole numbers"),
        (["--start=0"], "start must lie in 1 … 25"),
        (["--start=26"], "start must lie in 1 … 25"),
        (["--device=cuda:77"], "no such device"),
        (["--device=toaster"], "no such device"),
        (["--tile=10"], "tile must be a multiple of"),
        (["--samples=0"], "samples"),
        (["--checkpoint=nonsense"], "known are faces-x8, natural-x4, photo-x4, a folder"),
        (["--checkpoint=."], "lacks config.json"),
    ],
)
def test_bad_options(checkpoint: str, photos: Path, tmp_path: Path, args: list[str], message: str) -> None:
    result = upscale(checkpoint, photos, "-o", tmp_path / "out", *args)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


def free_memory(monkeypatch: pytest.MonkeyPatch, amount: float) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: SimpleNamespace(available=int(amount)))


def test_too_large_for_memory(upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch, photo: Photo) -> None:
    free_memory(monkeypatch, 10_000)
    with pytest.raises(ImageError, match="needs about"):
        upscaler.upscale([to_tensor(photo(64, 64))], [0])


@pytest.mark.parametrize(("room", "sizes"), [(1.5, {1}), (3.9, {3, 2}), (100, {5})])
def test_the_batch_that_fits(
    room: float, sizes: set[int], upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch, photo: Photo
) -> None:
    lr = [to_tensor(photo(8, 12, seed=i)) for i in range(5)]
    expected = upscaler.upscale(lr, range(5))
    free_memory(monkeypatch, room * LIVE_PICTURES * 12 * 32 * 48)
    with counting(upscaler.unet) as seen:
        results = upscaler.upscale(lr, range(5))
    assert set(seen) == sizes
    for result, before in zip(results, expected, strict=True):
        np.testing.assert_allclose(result.sr, before.sr, atol=1e-4)


def test_memory_that_runs_out(upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch, photo: Photo) -> None:
    """Where the estimate is wrong, or is not made, as on GPUs."""
    lr = [to_tensor(photo(8, 8, seed=i)) for i in range(5)]
    begin, room = upscaler.process.begin, 2

    def narrow(conditions: list[torch.Tensor], *args: Any) -> Any:
        if len(conditions) > room:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return begin(conditions, *args)

    monkeypatch.setattr(upscaler.process, "begin", narrow)
    assert len(upscaler.upscale(lr, range(5))) == 5
    room = 0
    with pytest.raises(ImageError, match="does not fit into memory"):
        upscaler.upscale(lr, range(5))


def test_a_folder_of_pictures_that_do_not_fit_together(
    checkpoint: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, photo: Photo
) -> None:
    Image.fromarray(photo(100, 100)).save(photos / "large.png")
    free_memory(monkeypatch, 2.5 * LIVE_PICTURES * 12 * 64 * 64)
    result = upscale(checkpoint, photos, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert len(errors(result)) == 1
    assert "large.png: a result of 400 x 400 needs" in errors(result)[0]
    assert "4 pictures" in result.output


@pytest.mark.parametrize(("seed", "samples"), [(-1, 1), (2**64, 1), (2**64 - 2, 3), (10**30, 1)])
def test_seeds_out_of_range(seed: int, samples: int, checkpoint: str, photos: Path, tmp_path: Path) -> None:
    result = upscale(checkpoint, photos, "-o", tmp_path / "out", f"--seed={seed}", f"--samples={samples}")
    assert result.exit_code == 2
    assert f"the seed must lie in 0 … {2**64 - samples}" in result.output
    assert not (tmp_path / "out").exists()


def test_the_largest_seed(checkpoint: str, upscaler: Upscaler, photos: Path, tmp_path: Path, photo: Photo) -> None:
    result = upscale(checkpoint, photos / "0.png", "-o", tmp_path, f"--seed={2**64 - 2}", "--samples=2")
    assert result.exit_code == 0, result.output
    with pytest.raises(ConfigError, match="noise seeds must lie in 0"):
        upscaler.upscale([to_tensor(photo(8, 8))], [2**64])


def names(folder: Path) -> set[str]:
    return {str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file()}


@pytest.mark.parametrize("out", [".", "out", "a/b/c", "sub/out"])
@pytest.mark.parametrize("pattern", ["", "*", "**/*.png", "*.png"])
def test_results_are_never_taken_as_input(
    out: str, pattern: str, checkpoint: str, tmp_path: Path, photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "in"
    (folder / "sub").mkdir(parents=True)
    for name in ("a.png", "sub/b.png"):
        Image.fromarray(photo(4, 4)).save(folder / name)
    monkeypatch.chdir(tmp_path)
    given = f"in/{pattern}" if pattern else "in"
    for arguments in ((), ("--samples=2",), ("--format=jpg", "--outscale=1.5"), ("--size=9x",)):
        assert upscale(checkpoint, given, "-o", f"in/{out}", *arguments).exit_code == 0
    written = names(folder)
    assert len(written) in (2 + 5, 2 + 10)
    assert not any(name.count("_x") + name.count("_9x") > 1 for name in written)
    again = upscale(checkpoint, given, "-o", f"in/{out}", "--skip-existing")
    assert again.exit_code == 0
    assert names(folder) == written


@pytest.mark.parametrize("out", [".", "out", "deep/out"])
def test_results_are_never_taken_as_input_from_the_shell(
    out: str, checkpoint: str, tmp_path: Path, photo: Photo
) -> None:
    Image.fromarray(photo(4, 4)).save(tmp_path / "a.png")
    for _ in range(3):
        expanded = sorted(tmp_path.glob("*")) + sorted((tmp_path / "deep").glob("*"))
        result = upscale(checkpoint, *expanded, "-o", tmp_path / out, "--overwrite")
        assert result.exit_code == 0, result.output
        assert names(tmp_path) == {"a.png", str(Path(out, "a_x4.png"))}


def test_a_picture_that_is_named_like_a_result(checkpoint: str, tmp_path: Path, photo: Photo) -> None:
    (tmp_path / "in").mkdir()
    for name in ("house.png", "house_x4.png"):
        Image.fromarray(photo(4, 4)).save(tmp_path / "in" / name)
    assert upscale(checkpoint, tmp_path / "in", "-o", tmp_path / "out").exit_code == 0
    assert names(tmp_path / "out") == {"house_x4.png", "house_x4_x4.png"}
    assert upscale(checkpoint, tmp_path / "in" / "house_x4.png", "-o", tmp_path / "in").exit_code == 0
    assert size(tmp_path / "in" / "house_x4_x4.png") == (16, 16)


@pytest.mark.parametrize(
    ("out", "message"),
    [
        ("plain", "plain is a file, not a folder"),
        ("plain/x.png", "plain is a file, not a folder"),
        ("link", "leads nowhere"),
        ("x.xyz", "unknown file extension '.xyz'"),
        ("x.heic", "unknown file extension '.heic'"),
        ("", "--out is empty"),
        ("/dev/null", "is a file, not a folder"),
    ],
)
def test_bad_places(out: str, message: str, checkpoint: str, photos: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(photos)
    Path("plain").write_text("", encoding="utf-8")
    Path("link").symlink_to("nowhere")
    before = names(photos)
    result = upscale(checkpoint, "0.png", "-o", out)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert "forwards" not in result.output
    assert names(photos) == before
    if out == "x.xyz":
        assert upscale(checkpoint, "0.png", "-o", "x.xyz/").exit_code == 0
        assert names(photos / "x.xyz") == {"0_x4.png"}


def test_a_full_or_forbidden_folder_is_told_before_computing(
    checkpoint: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*args: object, **kwargs: object) -> None:
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", refuse)
    monkeypatch.setattr(Upscaler, "enlarge", lambda *args: pytest.fail("computed although nothing can be written"))
    result = upscale(checkpoint, photos, "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert f"cannot write into {tmp_path / 'out'}: Read-only file system" in result.output


def test_a_target_that_is_a_folder_or_too_long(checkpoint: str, tmp_path: Path, photo: Photo) -> None:
    long = ["x" * 248 + ".png", "y" * 251 + ".png"]
    for name in ("a.png", *long):
        Image.fromarray(photo(4, 4)).save(tmp_path / name)
    (tmp_path / "out" / "a_x4.png").mkdir(parents=True)
    result = upscale(
        checkpoint, tmp_path / "a.png", *(tmp_path / n for n in long), "-o", tmp_path / "out", "--overwrite"
    )
    assert result.exit_code == 2
    assert [part in line for part, line in zip(("is a folder", "File name too long"), errors(result), strict=True)] == [
        True
    ] * 2
    assert names(tmp_path / "out") == {"x" * 248 + "_x4.png"}


@pytest.mark.parametrize("ending", ["jfif", "avif", "jp2", "tga", "webp", "bmp", "mpo", "apng"])
def test_every_ending_in_a_folder(ending: str, checkpoint: str, tmp_path: Path, photo: Photo) -> None:
    (tmp_path / "in").mkdir()
    kinds = {"jfif": "JPEG", "jp2": "JPEG2000", "apng": "PNG"}
    Image.fromarray(photo(8, 8)).save(tmp_path / "in" / f"x.{ending}", kinds.get(ending, ending.upper()))
    assert upscale(checkpoint, tmp_path / "in", "-o", tmp_path / "out", "--format=same").exit_code == 0
    expected = "x_x4.png" if ending == "mpo" else f"x_x4.{ending}"
    assert names(tmp_path / "out") == {expected}
    assert size(tmp_path / "out" / expected) == (32, 32)


@pytest.mark.parametrize("chosen", ["png", "jpg", "webp", "avif", "tiff"])
def test_formats(chosen: str, checkpoint: str, tmp_path: Path, photo: Photo) -> None:
    image = Image.fromarray(photo(8, 8)).convert("RGBA")
    image.putalpha(Image.fromarray(np.tile(np.arange(0, 240, 30, dtype=np.uint8), (8, 1))))
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    image.save(tmp_path / "x.png", exif=exif)
    result = upscale(checkpoint, tmp_path / "x.png", "-o", tmp_path / "out", f"--format={chosen}")
    assert result.exit_code == 0
    with Image.open(tmp_path / "out" / f"x_x4.{chosen}") as image:
        assert image.format == {"jpg": "JPEG"}.get(chosen, chosen.upper())
        assert image.mode == ("RGB" if chosen == "jpg" else "RGBA")
        assert image.getexif()[0x010F] == "Maker"
    assert ("flattened on white" in result.stderr) == (chosen == "jpg")
    stripped = upscale(checkpoint, tmp_path / "x.png", "-o", tmp_path / f"y.{chosen}", "--strip-metadata")
    assert stripped.exit_code == 0
    with Image.open(tmp_path / f"y.{chosen}") as image:
        assert 0x010F not in image.getexif()


def test_jpeg_quality(checkpoint: str, photos: Path, tmp_path: Path) -> None:
    sizes = []
    for quality in (10, 90):
        out = tmp_path / f"{quality}.jpg"
        assert upscale(checkpoint, photos / "0.png", "-o", out, f"--jpeg-quality={quality}").exit_code == 0
        sizes.append(out.stat().st_size)
    assert sizes[0] < sizes[1] / 2


@pytest.mark.parametrize(
    ("option", "name", "expected"),
    [
        ("--outscale=2.5", "x_x2.5.png", (25, 15)),
        ("--outscale=0.01", "x_x0.01.png", (1, 1)),
        ("--outscale=4", "x_x4.png", (40, 24)),
        ("--size=55x", "x_55x.png", (55, 33)),
        ("--size=x12", "x_x12.png", (20, 12)),
        ("--size=30x40", "x_30x40.png", (30, 40)),
    ],
)
def test_sizes(
    option: str, name: str, expected: tuple[int, int], checkpoint: str, tmp_path: Path, photo: Photo
) -> None:
    image = Image.fromarray(photo(6, 10)).convert("RGBA")
    image.putalpha(200)
    image.save(tmp_path / "x.png")
    result = upscale(checkpoint, tmp_path / "x.png", "-o", tmp_path / "out", option)
    assert result.exit_code == 0, result.output
    assert size(tmp_path / "out" / name) == expected
    assert upscale(checkpoint, tmp_path / "x.png", "-o", tmp_path / "full.png").exit_code == 0
    with Image.open(tmp_path / "full.png") as full, Image.open(tmp_path / "out" / name) as image:
        wanted = full if expected == full.size else full.resize(expected, Image.Resampling.LANCZOS)
        assert np.abs(np.asarray(wanted).astype(int) - np.asarray(image)).max() <= 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--size=0x"], "--size must be like"),
        (["--size=x"], "--size must be like"),
        (["--size=big"], "--size must be like"),
        (["--size=5x5x5"], "--size must be like"),
        (["--outscale=0"], "positive number"),
        (["--outscale=nan"], "positive number"),
        (["--outscale=inf"], "positive number"),
        (["--outscale=1e308"], "at most 2147483647 as no picture is larger, got 1e+308"),
        (["--outscale=2", "--size=5x"], "give one of them"),
        (["--overwrite", "--skip-existing"], "give one of them"),
        (["--outscale=100000"], "GiB of memory"),
        (["--size=20000x1", "--format=webp"], "holds at most 16383 pixels"),
        (["--size=1x70000", "--format=jpg"], "JPEG holds at most 65500 pixels"),
        (["--size=1x40000", "--format=avif"], "AVIF holds at most 32768 pixels"),
        (["--format=jpg", "-o", "y.png"], "contradicts the ending"),
        (["--jpeg-quality=0"], "jpeg-quality"),
        (["--format=bmp"], "format"),
    ],
)
def test_bad_results(
    arguments: list[str], message: str, checkpoint: str, photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    before = names(photos)
    monkeypatch.setattr(Upscaler, "enlarge", lambda *args: pytest.fail("computed although nothing can be written"))
    result = upscale(checkpoint, "0.png", "-o", "out", *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert names(photos) == before


def test_skip_existing(checkpoint: str, photos: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "1_x4.png").write_bytes(b"precious")
    result = upscale(checkpoint, photos, "-o", out, "--skip-existing")
    assert result.exit_code == 0
    assert "3 pictures, 5 forwards each" in result.output
    assert "1 skipped" in result.output
    assert (out / "1_x4.png").read_bytes() == b"precious"
    again = upscale(checkpoint, photos, "-o", out, "--skip-existing")
    assert (again.exit_code, again.stdout) == (0, "4 skipped, as they exist\n")


def test_an_empty_file_is_no_result(checkpoint: str, photos: Path, tmp_path: Path) -> None:
    """It may be what a program that was killed has left, so it is made anew."""
    out = tmp_path / "out"
    out.mkdir()
    (out / "1_x4.png").touch()
    assert "exists; replace it with --overwrite" in " ".join(upscale(checkpoint, photos, "-o", out).output.split())
    assert (out / "1_x4.png").stat().st_size == 0
    result = upscale(checkpoint, photos, "-o", out, "--skip-existing")
    assert result.exit_code == 0
    assert "1 picture, 5 forwards each" in result.output
    assert size(out / "1_x4.png") == (64, 64)


def test_failures_stand_last(checkpoint: str, photos: Path, tmp_path: Path) -> None:
    (photos / "00.png").write_bytes(b"bad")
    result = upscale(checkpoint, photos, "none.png", "-o", tmp_path / "out")
    lines = result.output.splitlines()
    assert lines[-3:-2] == ["2 failed:"]
    assert "none.png" in lines[-2]
    assert "00.png" in lines[-1]


def test_json(checkpoint: str, photos: Path, tmp_path: Path) -> None:
    (photos / "bad.png").write_bytes(b"bad")
    out = tmp_path / "out"
    arguments = (photos, "none.png", "-o", out, "--json", "--skip-existing")
    for done, skipped in ((4, 0), (0, 4)):
        result = upscale(checkpoint, *arguments)
        assert result.exit_code == 2
        lines = [json.loads(line) for line in result.stdout.splitlines()]
        *pictures, summary = lines
        assert (summary["status"], summary["done"], summary["skipped"], summary["failed"]) == (
            "summary",
            done,
            skipped,
            2,
        )
        assert sorted(p["status"] for p in pictures) == ["done"] * done + ["failed"] * 2 + ["skipped"] * skipped
        assert {p["source"] for p in pictures} == {
            *(str(photos / f"{i}.png") for i in range(4)),
            str(photos / "bad.png"),
            "none.png",
        }
        for picture in pictures:
            if picture["status"] == "done":
                assert (picture["width"], picture["height"], picture["frames"]) == (64, 64, 1)
                assert (picture["start"], picture["forwards"], picture["notes"]) == (2, 5, [])
                assert size(Path(picture["target"])) == (64, 64)


def test_names_of_any_encoding(checkpoint: str, tmp_path: Path, photo: Photo) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name in (b"caf\xe9.png", "\u00e9\u4e2d\U0001f600 \n.png".encode()):
        with open(os.path.join(os.fsencode(folder), name), "wb") as file:
            Image.fromarray(photo(4, 4)).save(file, "PNG")
    (folder / os.fsdecode(b"bad\xff.png")).write_bytes(b"bad")
    command = [sys.executable, "-m", "agents.cli", "upscale", str(folder), "-o", str(tmp_path / "out"), "--json"]
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    result = subprocess.run(
        [*command, f"--checkpoint={checkpoint}", *FAST],
        capture_output=True,
        text=True,
        env=os.environ | plain,
        check=False,
    )
    assert result.returncode == 2, result.stderr
    assert "Traceback" not in result.stderr
    assert [json.loads(line)["status"] for line in result.stdout.splitlines()] == ["failed", "done", "done", "summary"]
    assert len(list((tmp_path / "out").iterdir())) == 2


def moving(path: Path, photo: Photo) -> None:
    """An animation whose upper half moves while its lower half stands still."""
    images = []
    for i in range(4):
        pixels = photo(8, 8).copy()
        pixels[:4] = photo(4, 8, seed=i + 1)
        images.append(Image.fromarray(pixels))
    more = {} if path.suffix == ".avif" else {"loop": 3}
    kind = "PNG" if path.suffix == ".apng" else None
    images[0].save(
        path,
        kind,
        save_all=True,
        append_images=images[1:],
        duration=[100, 50, 30, 200],
        lossless=True,
        quality=100,
        **more,
    )


@pytest.mark.parametrize("ending", ["gif", "webp", "png", "apng"])
@pytest.mark.parametrize("option", [(), ("--format=same",), ("--size=20x", "--batch-size=3")])
def test_animations(ending: str, option: tuple[str, ...], checkpoint: str, tmp_path: Path, photo: Photo) -> None:
    source = tmp_path / f"x.{ending}"
    moving(source, photo)
    result = upscale(checkpoint, source, "-o", tmp_path / "out", *option)
    assert result.exit_code == 0, result.output
    (target,) = (tmp_path / "out").iterdir()
    assert target.suffix == source.suffix
    before, after = read_animation(source), read_animation(target)
    side = 20 if len(option) == 2 else 32
    assert [frame.rgb.shape for frame in after.frames] == [(side, side, 3)] * 4
    assert (after.durations, after.plays) == (before.durations, before.plays)
    assert "1 picture, 20 forwards each" in result.output


def test_frames_have_the_same_noise(upscaler: Upscaler, photo: Photo) -> None:
    still = Animation([Picture(photo(8, 8)) for _ in range(5)], [100.0] * 5)
    large, result = upscaler.enlarge_animation(still, 3)
    alone = upscaler.enlarge([Picture(photo(8, 8))], [3])[0][0]
    for frame in large.frames:
        assert np.abs(frame.rgb.astype(int) - alone.rgb).max() <= 1
    assert result.nfe == 25


def test_an_animation_into_a_still_format_and_pages(checkpoint: str, tmp_path: Path, photo: Photo) -> None:
    moving(tmp_path / "x.gif", photo)
    images = [Image.fromarray(photo(8, 8, seed=i)) for i in range(3)]
    images[0].save(tmp_path / "pages.tif", save_all=True, append_images=images[1:])
    result = upscale(checkpoint, tmp_path / "x.gif", tmp_path / "pages.tif", "-o", tmp_path / "out", "--format=jpg")
    assert result.exit_code == 0
    assert f"the first of 4 pictures in {tmp_path / 'x.gif'} is taken" in result.stderr
    assert f"the first of 3 pictures in {tmp_path / 'pages.tif'} is taken" in result.stderr
    assert names(tmp_path / "out") == {"x_x4.jpg", "pages_x4.jpg"}


def test_an_animation_that_does_not_fit(
    checkpoint: str, tmp_path: Path, photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    moving(tmp_path / "x.gif", photo)
    free_memory(monkeypatch, 8 * 32 * 32 * 3)
    monkeypatch.setattr(
        "agents.upscaling.jobs.read_animation", lambda *args: pytest.fail("decoded although it does not fit")
    )
    result = upscale(checkpoint, tmp_path / "x.gif", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "4 x 32 x 32 pixels need" in errors(result)[0]


def test_animations_in_python(upscaler: Upscaler, tmp_path: Path, photo: Photo) -> None:
    moving(tmp_path / "x.gif", photo)
    assert upscaler.upscale_file(tmp_path / "x.gif", tmp_path / "y.webp").nfe == 20
    assert len(read_animation(tmp_path / "y.webp").frames) == 4
    assert upscaler.upscale_file(tmp_path / "x.gif", tmp_path / "y.jpg").nfe == 5
    with pytest.raises(ImageError, match="unknown file extension"):
        upscaler.upscale_file(tmp_path / "x.gif", tmp_path / "y.xyz")


def test_grey_stays_grey(upscaler: Upscaler, photo: Photo) -> None:
    grey = from_pil(Image.fromarray(photo(8, 8)).convert("L").convert("RGB"))
    large = upscaler.enlarge([grey], [0])[0][0]
    assert np.ptp(large.rgb.astype(int), axis=-1).max() == 0


def test_a_signal_leaves_nothing_half_written(checkpoint: str, tmp_path: Path, photo: Photo) -> None:
    Image.fromarray(photo(8, 8)).save(tmp_path / "x.png")
    code = """
import sys, time
from PIL import Image, ImageColor, ImageDraw
from agents.cli import main
def save(self, path, **options):
    open(path, "wb").write(b"half")
    print("saving", flush=True)
    time.sleep(60)
Image.Image.save = save
main(sys.argv[1:])
"""
    out = tmp_path / "out"
    command = [
        sys.executable,
        "-c",
        code,
        "upscale",
        str(tmp_path / "x.png"),
        "-o",
        str(out),
        f"--checkpoint={checkpoint}",
    ]
    with subprocess.Popen([*command, *FAST], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"saving\n"
        assert len(list(out.iterdir())) == 1
        process.terminate()
    assert process.returncode == 128 + signal.SIGTERM
    assert list(out.iterdir()) == []


def test_two_lines_of_python(checkpoint: str, photos: Path, tmp_path: Path) -> None:
    import skipdiff_env

    result = skipdiff_env.Upscaler(checkpoint, start=1).upscale_file(photos / "0.png", tmp_path / "large.webp")
    assert size(tmp_path / "large.webp") == (64, 64)
    assert (result.start, result.nfe) == (1, 10)


def test_the_checkpoint_chooses_the_start(checkpoint: str) -> None:
    assert Upscaler(checkpoint).expected_nfe == 9 + 5
    assert Upscaler(checkpoint, steps=(50, 2)).expected_nfe == 49 + 2
    assert Upscaler(checkpoint, start=10).expected_nfe == 9 + 10


def test_coarse_sampler(checkpoint: str, photos: Path, tmp_path: Path) -> None:
    written = {}
    for coarse in ("ddpm", "ddim", "dpmsolver++"):
        Upscaler(checkpoint, steps=(4, 25), start=2, coarse_sampler=coarse).upscale_file(
            photos / "0.png", tmp_path / "own.png"
        )
        command = upscale(checkpoint, photos / "0.png", "-o", tmp_path / f"{coarse}.png", f"--coarse-sampler={coarse}")
        assert "5 forwards each" in command.output
        written[coarse] = (tmp_path / f"{coarse}.png").read_bytes()
        assert written[coarse] == (tmp_path / "own.png").read_bytes()
    assert len(set(written.values())) == 3
    assert upscale(checkpoint, photos / "0.png", "-o", tmp_path / "plain.png").exit_code == 0
    assert (tmp_path / "plain.png").read_bytes() == written["ddpm"]


def test_the_checkpoint_chooses_the_coarse_sampler(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / "checkpoint"
    tiny_unet(coarse_sampler="ddim:0.7").save_pretrained(folder)
    with Image.open(photos / "0.png") as image:
        small = image.resize((12, 10))
    pictures = {
        coarse: np.asarray(Upscaler(folder, coarse_sampler=coarse)(small)) for coarse in (None, "ddim:0.7", "ddpm")
    }
    assert np.array_equal(pictures[None], pictures["ddim:0.7"])
    assert not np.array_equal(pictures[None], pictures["ddpm"])


def test_errors_in_python(checkpoint: str) -> None:
    with pytest.raises(ConfigError, match="start must lie"):
        Upscaler(checkpoint, start=11)
    for coarse in ("euler", ""):
        with pytest.raises(ConfigError, match="coarse_sampler must be one of ddpm, ddim"):
            Upscaler(checkpoint, coarse_sampler=coarse)
    with pytest.raises(CheckpointError, match="unknown checkpoint"):
        Upscaler("nonsense")


@pytest.mark.parametrize(
    "name", ["./x", "../x", "runs/x/y", "/runs/x", "runs/x", "x/", "~/x", "runs\\x", "runs/best.pth"]
)
def test_paths_are_not_looked_up_on_the_network(
    name: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("runs").mkdir()
    Path("runs/best.pth").write_bytes(b"")
    monkeypatch.setattr("ddpm.nets.unet.UNet.from_pretrained", lambda *args: pytest.fail("looked up on the network"))
    result = upscale(name, photos, "-o", "out")
    assert result.exit_code == 2
    message = "is a file; name the folder" if name.endswith(".pth") else f"no such folder: {name!r}; known are"
    assert message in " ".join(result.output.split())
    with pytest.raises(CheckpointError, match="no such folder"):
        Upscaler(Path("owner/name"))


def test_a_name_of_the_hub_is_looked_up() -> None:
    assert is_hub_id("owner/some-net.v2")
    assert not any(is_hub_id(name) for name in ("natural-x4", "./net", "~/net", "a/b/c", "runs/"))
    assert not is_hub_id(Path("owner/net"))


def test_the_map_shows_forwards_over_the_grey_picture() -> None:
    """Where tiles overlap each is drawn up to the middle; below lies a legend of all numbers from fewest to most."""
    picture = np.full((100, 180, 3), (255, 0, 0), dtype=np.uint8)
    tiles = [
        Tile(Box(left, top, left + 100, top + 60), Schedule(tuple(range(nfe, 0, -1))), nfe)
        for (left, top), nfe in {(0, 0): 2, (80, 0): 5, (0, 40): 3, (80, 40): 2}.items()
    ]
    drawn = draw_map(picture, tiles).astype(int)
    assert drawn.shape == (100 + 54, 288, 3)
    corners = {2: (2, 2), 5: (2, 177), 3: (97, 2)}
    colours = {nfe: drawn[place] for nfe, place in corners.items()}
    assert len({tuple(colour) for colour in colours.values()}) == 3
    np.testing.assert_array_equal(drawn[97, 177], colours[2])
    np.testing.assert_array_equal(drawn[2, 89], colours[2])
    np.testing.assert_array_equal(drawn[2, 90], colours[5])
    np.testing.assert_array_equal(drawn[49, 2], colours[2])
    np.testing.assert_array_equal(drawn[50, 2], colours[3])
    legend = drawn[-1, [2, 100, 180, 285]]  # of 2, 3, 4 and 5 forwards
    for nfe, colour in colours.items():
        np.testing.assert_allclose((legend[nfe - 2] + 76) / 2, colour, atol=1)  # 76: red in grey
    assert tuple(drawn[2, 200]) == tuple(drawn[-40, 200]), "beside the picture there is nothing"


def test_map(checkpoint: str, photos: Path, tmp_path: Path) -> None:
    options = ("-o", tmp_path / "x.png", f"--map={tmp_path / 'maps' / 'map.png'}")
    assert upscale(checkpoint, photos / "0.png", *options, "--size=50x").exit_code == 0
    assert size(tmp_path / "maps" / "map.png") == (288, 64 + 54)
    again = upscale(checkpoint, photos / "0.png", "-o", tmp_path / "y.png", options[-1])
    assert again.exit_code == 2
    assert "map.png exists; replace it with --overwrite" in " ".join(again.output.split())
    assert upscale(checkpoint, photos / "0.png", *options, "--overwrite").exit_code == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([".", "--map=m.png"], "--map is for a single result, got 4; enlarge one picture"),
        (["0.png", "--map=m.png", "--samples=2"], "--map is for a single result, got 2"),
        (["x.gif", "--map=m.png"], "--map is for a single result, got 4"),
        (["0.png", "--map=m.xyz"], "unknown file extension '.xyz'"),
        (["0.png", "--map=0.png"], "reads or writes 0.png already"),
        (["0.png", "--map=out/0_x4.png"], "reads or writes out/0_x4.png already"),
        (["0.png", "--map=1.png"], "the map 1.png exists"),
        (["0.png", "--map=folder.png"], "folder.png is a folder"),
        (["0.png", "--map=circle.png"], "the map circle.png exists"),
        (["0.png", "1.png", "-o", "circle.png"], "circle.png exists"),
        (["0.png", "--map=1.png/m.png"], "is a file, not a folder"),
        (["high.png", "--map=m.webp"], "m.webp: WEBP holds at most 16383 pixels a side, and this picture would"),
    ],
)
def test_maps_that_cannot_be_drawn(
    arguments: list[str], message: str, checkpoint: str, photos: Path, photo: Photo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(photos)
    Path("folder.png").mkdir()
    Path("circle.png").symlink_to("circle.png")
    if "x.gif" in arguments:
        moving(Path("x.gif"), photo)
    if "high.png" in arguments:  # its result is a WebP, and the legend makes the map too high for one
        Image.new("RGB", (1, 4090)).save("high.png")
        arguments = [*arguments, "--format=webp"]
    before = names(photos)
    monkeypatch.setattr(Upscaler, "enlarge", lambda *args: pytest.fail("computed although there can be no map"))
    result = upscale(checkpoint, *arguments, *(() if "-o" in arguments else ("-o", "out")))
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert names(photos) == before


def test_a_net_that_gives_no_numbers(checkpoint: str, photos: Path, tmp_path: Path) -> None:
    """Weights can be finite and far too large."""
    unet = tiny_unet()
    for parameter in unet.parameters():
        parameter.fill_(1e30)
    unet.save_pretrained(tmp_path / "net")
    result = upscale(str(tmp_path / "net"), photos / "0.png", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert "the net returns numbers that are not finite" in errors(result)[0]
    assert not list((tmp_path / "out").glob("*"))
