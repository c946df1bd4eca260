"""Reading, writing and finding pictures."""

import errno
import io
import os
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageCms

from ddpm.errors import ImageError
from ddpm.images import Picture, atomic_path, find_images, from_pil, read_picture, to_tensor, to_uint8, write_picture
from tests.conftest import Photo


def test_tensors_round_trip(photo: Photo) -> None:
    rgb = photo(5, 7)
    tensor = to_tensor(rgb)
    assert tensor.shape == (3, 5, 7)
    assert tensor.min() >= -1
    assert tensor.max() <= 1
    assert np.array_equal(to_uint8(tensor), rgb)
    assert to_uint8(torch.full((3, 1, 1), 3.0)).max() == 255


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "F"])
def test_every_mode(mode: str, photo: Photo, tmp_path: Path) -> None:
    source = Image.fromarray(photo(9, 6))
    if mode == "I;16":
        image = Image.fromarray(np.asarray(source.convert("L")).astype(np.uint16) * 257)
    elif mode == "F":
        image = Image.fromarray(np.asarray(source.convert("L")).astype(np.float32) / 255)
    else:
        image = source.convert(mode)
    path = tmp_path / ("x.tif" if mode in ("CMYK", "F") else "x.png")
    image.save(path)
    picture = read_picture(path)
    assert picture.rgb.shape == (9, 6, 3)
    assert picture.grey == (mode in ("1", "L", "LA", "I;16", "F"))
    assert (picture.alpha is not None) == mode.endswith("A")
    expected = source if mode in ("P", "RGB", "RGBA", "CMYK") else source.convert("L").convert("RGB")
    tolerance = {"1": 255, "P": 60}.get(mode, 3)
    assert np.abs(picture.rgb.astype(int) - np.asarray(expected)).max() <= tolerance


def test_16_bit_colour(tmp_path: Path, photo: Photo) -> None:
    cv2 = pytest.importorskip("cv2")
    rgb = photo(8, 8)
    cv2.imwrite(str(tmp_path / "deep.png"), (rgb[..., ::-1].astype(np.uint16) * 257))
    assert np.abs(read_picture(tmp_path / "deep.png").rgb.astype(int) - rgb).max() <= 1


def test_palette_with_transparency(tmp_path: Path) -> None:
    image = Image.new("P", (4, 4), 1)
    image.putpalette([0, 0, 0, 255, 0, 0])
    image.putpixel((0, 0), 0)
    image.save(tmp_path / "p.png", transparency=0)
    picture = read_picture(tmp_path / "p.png")
    assert picture.alpha is not None
    assert picture.alpha[0, 0] == 0
    assert picture.alpha[1, 1] == 255
    assert picture.rgb[1, 1].tolist() == [255, 0, 0]


def test_exif_orientation(tmp_path: Path, photo: Photo) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned clockwise
    Image.fromarray(photo(4, 8)).save(tmp_path / "turned.png", exif=exif)
    assert np.array_equal(read_picture(tmp_path / "turned.png").rgb, np.rot90(photo(4, 8), -1))


def test_colour_profile_is_kept(tmp_path: Path, photo: Photo) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.fromarray(photo(4, 4)).save(tmp_path / "a.png", icc_profile=profile)
    write_picture(read_picture(tmp_path / "a.png"), tmp_path / "b.png")
    assert read_picture(tmp_path / "b.png").icc_profile == profile


def bomb() -> bytes:
    """A tiny PNG whose header claims 60,000 x 60,000 pixels."""
    buffer = io.BytesIO()
    Image.new("L", (1, 1)).save(buffer, "PNG")
    data = bytearray(buffer.getvalue())
    data[16:24] = (60_000).to_bytes(4, "big") * 2
    data[29:33] = zlib.crc32(data[12:29]).to_bytes(4, "big")
    return bytes(data)


def zero_pixels() -> bytes:
    return b"P6\n0 5\n255\n"


def truncated() -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8)).save(buffer, "PNG")
    return buffer.getvalue()[:5000]


BAD_FILES = {
    "text.png": (b"hello", "not a picture"),
    "empty.png": (b"", "not a picture"),
    "truncated.png": (truncated(), "damaged or truncated"),
    "bomb.png": (bomb(), "decompression bomb"),
    "zero.ppm": (zero_pixels(), "no pixels|not a picture|damaged"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_bad_files(name: str, tmp_path: Path) -> None:
    content, message = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ImageError, match=message) as error:
        read_picture(tmp_path / name)
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_missing_folder_and_forbidden(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ImageError, match="no such file"):
        read_picture(tmp_path / "none.png")
    with pytest.raises(ImageError, match="got a folder"):
        read_picture(tmp_path)

    def refuse(*args: Any) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Image, "open", refuse)
    with pytest.raises(ImageError, match="no permission to read"):
        read_picture(tmp_path / "secret.png")


def test_full_disk_leaves_nothing(tmp_path: Path, photo: Photo, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "out.png").write_bytes(b"old")

    def half(self: Image.Image, path: Path, **kwargs: Any) -> None:
        Path(path).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", half)
    with pytest.raises(ImageError, match=r"cannot write .*out.png: No space left"):
        write_picture(Picture(photo(4, 4)), tmp_path / "out.png")
    assert (tmp_path / "out.png").read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["out.png"]


def test_unknown_ending(tmp_path: Path, photo: Photo) -> None:
    with pytest.raises(ImageError, match="unknown file extension"):
        write_picture(Picture(photo(4, 4)), tmp_path / "out.xyz")
    assert not list(tmp_path.iterdir())


def test_atomic_path_on_interrupt(tmp_path: Path) -> None:
    def interrupted() -> None:
        with atomic_path(tmp_path / "x.txt") as temporary:
            temporary.write_text("half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_finding(photos: Path) -> None:
    (photos / "sub").mkdir()
    (photos / "sub" / "x.JPG").write_bytes(b"")
    (photos / "notes.txt").write_text("no picture")
    names = [p.name for p in find_images([photos])]
    assert names == ["0.png", "1.png", "2.png", "3.png", "x.JPG"]
    assert [p.name for p in find_images([photos / "2.png", str(photos / "[01].png"), photos / "2.png"])] == [
        "2.png",
        "0.png",
        "1.png",
    ]
    for nothing, message in ((photos / "none", "no such"), (str(photos / "*.bmp"), "no file matches")):
        with pytest.raises(ImageError, match=message):
            find_images([nothing])


def test_from_pil_does_not_touch_its_argument(photo: Photo) -> None:
    image = Image.fromarray(photo(4, 4))
    from_pil(image).rgb[:] = 0
    assert np.array_equal(np.asarray(image), photo(4, 4))
