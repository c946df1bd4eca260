"""`skipdiff upscale`, and the same in Python."""

from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner, Result
from PIL import Image

from agents.cli import main
from ddpm.errors import CheckpointError, ConfigError, ImageError
from ddpm.images import read_picture, to_tensor
from skipdiff_env.upscaler import Upscaler
from tests.conftest import Photo, tiny_unet
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
    assert len(list((tmp_path / "out").iterdir())) == 1


def test_bad_files_leave_the_others_done(checkpoint: str, tmp_path: Path, photo: Photo) -> None:
    folder = tmp_path / "in"
    folder.mkdir()
    for name, (content, _) in BAD_FILES.items():
        (folder / name).write_bytes(content)
    Image.fromarray(photo(8, 8)).save(folder / "good.png")
    result = upscale(checkpoint, folder, tmp_path / "none.png", "-o", tmp_path / "out")
    assert result.exit_code == 2
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["good_x4.png"]
    errors = [line for line in result.output.splitlines() if line.startswith("Error: ")]
    assert len(errors) == len(BAD_FILES) + 1
    for name in (*BAD_FILES, "none.png"):
        assert sum(name in line for line in errors) == 1
    assert "1 pictures" in result.output


def test_full_disk(checkpoint: str, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(picture: object, path: Path) -> None:
        if "1_x4" in path.name:
            raise ImageError(f"cannot write {path}: No space left on device")

    monkeypatch.setattr("ddpm.images.write_picture", full)
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
        (["--tile=10"], "multiple of the net's stride"),
        (["--samples=0"], "samples"),
        (["--checkpoint=nonsense"], "known are faces-x8, natural-x4, a folder"),
        (["--checkpoint=."], "lacks config.json"),
    ],
)
def test_bad_options(checkpoint: str, photos: Path, tmp_path: Path, args: list[str], message: str) -> None:
    result = upscale(checkpoint, photos, "-o", tmp_path / "out", *args)
    assert result.exit_code == 2
    assert message in " ".join(result.output.split())
    assert not (tmp_path / "out").exists()


def test_too_large_for_memory(upscaler: Upscaler, monkeypatch: pytest.MonkeyPatch, photo: Photo) -> None:
    monkeypatch.setattr("psutil.virtual_memory", lambda: type("M", (), {"available": 10_000})())
    with pytest.raises(ImageError, match="needs about"):
        upscaler.upscale([to_tensor(photo(64, 64))], [0])


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
