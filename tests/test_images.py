"""Reading, writing and finding pictures."""

import errno
import io
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
import torch
from PIL import Image, ImageCms

from ddpm.pictures.images import (
    Picture,
    check_folder,
    find_images,
    from_pil,
    picture_size,
    read_picture,
    to_pil,
    to_tensor,
    to_uint8,
    write_picture,
)
from ddpm.util.errors import ImageError
from ddpm.util.files import atomic_path
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
            temporary.write_text("half", encoding="utf-8")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert not list(tmp_path.iterdir())


def test_finding(photos: Path) -> None:
    (photos / "sub").mkdir()
    (photos / "sub" / "x.JPG").write_bytes(b"")
    (photos / "notes.txt").write_text("no picture", encoding="utf-8")
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


@pytest.mark.parametrize("name", [".hidden.png", "._0.png", ".thumbnails/x.png", "notes.txt"])
def test_what_is_no_picture_in_a_folder(name: str, photos: Path) -> None:
    before = find_images([photos])
    (photos / name).parent.mkdir(exist_ok=True)
    (photos / name).write_bytes(b"")
    assert find_images([photos]) == before
    assert find_images([photos / name]) == [photos / name], "a file that is named outright is taken"


@pytest.mark.parametrize("ending", ["jfif", "avif", "jp2", "tga", "mpo", "apng", "heic", "JPE", "pnm"])
def test_every_ending_is_found(ending: str, tmp_path: Path) -> None:
    (tmp_path / f"x.{ending}").write_bytes(b"")
    assert [p.name for p in find_images([tmp_path])] == [f"x.{ending}"]


@pytest.mark.parametrize("given", ["", " "])
def test_empty_path(given: str) -> None:
    with pytest.raises(ImageError, match="an empty path"):
        find_images([given])


def test_paths_that_cannot_be_looked_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    (tmp_path / "loop").symlink_to(tmp_path / "loop")
    cases = {
        "x" * 300: "cannot look up",
        "pipe.png": "neither a file nor a folder",
        "loop": "a link that leads nowhere",
    }
    for name, message in cases.items():
        with pytest.raises(ImageError, match=message):
            find_images([tmp_path / name])


def test_patterns_match_folders(photos: Path) -> None:
    for name in ("holiday1", "holiday2"):
        (photos / name).mkdir()
        (photos / name / "x.png").write_bytes(b"")
    (photos / "holiday.txt").write_text("no picture", encoding="utf-8")
    assert find_images([str(photos / "holiday*")]) == [photos / "holiday1" / "x.png", photos / "holiday2" / "x.png"]
    assert len(find_images([str(photos / "*")])) == 6
    assert len(find_images([str(photos / "**")])) == 6
    (photos / "data.bin").write_bytes(b"")
    assert [p.name for p in find_images([str(photos / "*.bin")])] == ["data.bin"]


@pytest.mark.parametrize("pattern", ["", "**/*.png", "**", "*"])
def test_link_loops(pattern: str, photos: Path) -> None:
    for name in ("a", "b"):
        (photos / name).symlink_to(photos)
    (photos / ".secret").mkdir()
    (photos / ".secret" / "x.png").write_bytes(b"")
    found = find_images([str(photos / pattern) if pattern else photos])
    if pattern == "*":  # as in a shell, links that match are folders; what lies below these is not followed
        assert len(found) == 12
    else:
        assert [p.name for p in found] == ["0.png", "1.png", "2.png", "3.png"]


GREY = np.tile(np.linspace(0.0, 1.0, 100), (30, 1))
RANGES: dict[str, np.ndarray] = {
    "0 to 1": GREY,
    "one pixel of 1.02": np.where(np.arange(3000).reshape(30, 100) == 5, 1.02, GREY),
    "a tenth up to 1.5": np.where(GREY > 0.9, GREY * 1.5, GREY),
    "a highlight of 1000": np.where(np.arange(3000).reshape(30, 100) == 5, 1000, GREY),
    "inf, -inf and nan": np.where(GREY[0, 3] == GREY, [[np.inf] * 50 + [-np.inf] * 25 + [np.nan] * 25], GREY),
    "negative": GREY - 1e-3,
    "0 to 255": GREY * 255,
    "0 to 255, one inf": np.where(np.arange(3000).reshape(30, 100) == 5, np.inf, GREY * 255),
    "0 to 255, sharpened": GREY * 280 - 12,
    "0 to 4095": GREY * 4095,
    "0 to 65535": GREY * 65535,
    "0 to 2^32": GREY * (2.0**32 - 1),
    "0 to 1e30": GREY * 1e30,
}


@pytest.mark.parametrize("name", RANGES)
def test_floats_of_any_range(name: str, tmp_path: Path) -> None:
    Image.fromarray(RANGES[name].astype(np.float32)).save(tmp_path / "x.tif")
    picture = read_picture(tmp_path / "x.tif")
    assert picture.grey
    difference = np.abs(picture.rgb[..., 0].astype(float) - GREY * 255)
    assert np.median(difference) <= 8
    assert np.quantile(difference, 0.85) <= 14


@pytest.mark.parametrize(
    ("kind", "white"),
    [("uint16", 65535), ("int16", 32767), ("uint32", 255), ("int32", 65535), ("uint32", 65535), ("int32", 2**31 - 1),
     ("uint32", 2**32 - 1), ("int32", 2**24 - 1), ("uint8", 255)],
)  # fmt: skip
@pytest.mark.parametrize("inverted", [False, True])
def test_integers_of_any_width(kind: str, white: int, inverted: bool, tmp_path: Path) -> None:
    levels = np.round(GREY * white).astype(kind)
    photometric = "miniswhite" if inverted and kind in ("uint8", "uint16") else "minisblack"
    stored = white - levels if photometric == "miniswhite" else levels
    tifffile.imwrite(tmp_path / "x.tif", stored.astype(kind), photometric=photometric)
    assert np.abs(read_picture(tmp_path / "x.tif").rgb[..., 0].astype(float) - GREY * 255).max() <= 1.5


@pytest.mark.parametrize("kind", ["uint8", "uint16", "uint32", "uint64", "int32", "float16", "float32", "float64"])
@pytest.mark.parametrize("samples", [1, 2, 3, 4])
@pytest.mark.parametrize("planes", ["contig", "separate"])
def test_deep_tiffs(kind: str, samples: int, planes: str, tmp_path: Path, photo: Photo) -> None:
    colours = 1 if samples < 3 else 3
    levels = np.concatenate([photo(12, 10)[..., :colours], photo(12, 10, seed=1)[..., : samples - colours]], axis=-1)
    levels[0, 0] = 255  # the range is in use
    white = 65535 if kind == "uint16" else 1 if kind.startswith("float") else 255
    values = (levels.astype(np.float64) / 255 * white).round(0 if white > 1 else 9).astype(kind)
    stored = values[..., 0] if samples == 1 else values.transpose(2, 0, 1) if planes == "separate" else values
    more: dict[str, Any] = {} if samples == 1 else {"planarconfig": planes}
    if samples in (2, 4):
        more["extrasamples"] = ["unassalpha"]
    photometric = "minisblack" if colours == 1 else "rgb"
    tifffile.imwrite(tmp_path / "x.tif", stored, photometric=photometric, extratags=[(274, "H", 1, 6, True)], **more)
    picture = read_picture(tmp_path / "x.tif")
    assert picture.rgb.shape == (10, 12, 3)
    upright = np.rot90(levels, -1).astype(int)
    assert picture.grey == (colours == 1)
    assert np.abs(picture.rgb[..., :colours] - upright[..., :colours]).max() <= 1
    if samples in (2, 4):
        assert picture.alpha is not None
        assert np.abs(picture.alpha - upright[..., -1]).max() <= 1
    assert set(picture_size(tmp_path / "x.tif")) == {10, 12}


def test_deep_tiffs_that_cannot_be_read(tmp_path: Path) -> None:
    whole = tmp_path / "x.tif"
    tifffile.imwrite(whole, np.zeros((64, 64, 3), np.float32), photometric="rgb", compression="zlib")
    (tmp_path / "cut.tif").write_bytes(whole.read_bytes()[:300])
    tifffile.imwrite(tmp_path / "complex.tif", np.zeros((4, 4), np.complex64))
    tifffile.imwrite(tmp_path / "bomb.tif", np.zeros((9500, 9500), np.float16), compression="zlib")
    assert read_picture(whole).rgb.shape == (64, 64, 3)
    for name, message in (("cut", "cannot be read"), ("complex", "cannot be read"), ("bomb", "decompression bomb")):
        with pytest.raises(ImageError, match=message) as error:
            read_picture(tmp_path / f"{name}.tif")
        assert "\n" not in str(error.value)


def test_negative_integers_are_black(tmp_path: Path) -> None:
    Image.fromarray(np.array([[-500, 0, 65535, 65535]], np.int32)).save(tmp_path / "x.tif")
    assert read_picture(tmp_path / "x.tif").rgb[0, :, 0].tolist() == [0, 0, 255, 255]


def test_dark_pictures_stay_dark(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 3, np.uint16)).save(tmp_path / "x.png")
    assert read_picture(tmp_path / "x.png").rgb.max() == 0
    Image.fromarray(np.full((4, 4), 0.1, np.float32)).save(tmp_path / "x.tif")
    assert read_picture(tmp_path / "x.tif").rgb.max() == 26
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "x.tif")
    assert read_picture(tmp_path / "x.tif").rgb.max() == 0


def png(depth: int, colour: int, row: bytes, key: bytes = b"") -> bytes:
    """A PNG of one row of four pixels, and a transparent level or colour."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 4, 1, depth, colour, 0, 0, 0)
    parts = [(b"IHDR", header), (b"tRNS", key), (b"IDAT", zlib.compress(b"\0" + row)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts if data or kind == b"IEND")


@pytest.mark.parametrize(
    ("depth", "row", "key", "grey", "alpha"),
    [
        (1, b"\x50", 1, [0, 255, 0, 255], [255, 0, 255, 0]),
        (1, b"\x50", 0, [0, 255, 0, 255], [0, 255, 0, 255]),
        (2, b"\x1b", 2, [0, 85, 170, 255], [255, 255, 0, 255]),
        (4, b"\x05\xaf", 5, [0, 85, 170, 255], [255, 0, 255, 255]),
        (8, b"\0\x40\x80\xff", 0x40, [0, 64, 128, 255], [255, 0, 255, 255]),
        (16, struct.pack(">4H", 0, 16384, 16385, 65535), 16384, [0, 64, 64, 255], [255, 0, 255, 255]),
        (16, struct.pack(">4H", 0, 16384, 16385, 65535), 0, [0, 64, 64, 255], [0, 255, 255, 255]),
    ],
)  # fmt: skip
def test_a_grey_level_that_is_transparent(
    depth: int, row: bytes, key: int, grey: list[int], alpha: list[int], tmp_path: Path
) -> None:
    (tmp_path / "x.png").write_bytes(png(depth, 0, row, struct.pack(">H", key)))
    picture = read_picture(tmp_path / "x.png")
    assert picture.alpha is not None
    assert picture.rgb[0, :, 0].tolist() == grey
    assert picture.alpha[0].tolist() == alpha
    assert to_pil(picture).mode == "LA"


@pytest.mark.parametrize("depth", [8, 16])
def test_a_colour_that_is_transparent(depth: int, tmp_path: Path) -> None:
    scale = 257 if depth == 16 else 1
    colours = [(9, 8, 7), (1, 2, 3), (9, 8, 6), (9, 8, 7)]
    kind = ">u2" if depth == 16 else "u1"
    row = (np.array(colours) * scale).astype(kind).tobytes()
    key = struct.pack(">3H", *(value * scale for value in colours[0]))
    (tmp_path / "x.png").write_bytes(png(depth, 2, row, key))
    picture = read_picture(tmp_path / "x.png")
    assert picture.alpha is not None
    assert picture.alpha[0].tolist() == [0, 255, 255, 0]
    assert [tuple(rgb) for rgb in picture.rgb[0].tolist()] == colours


def test_grey_of_16_bits_with_alpha(tmp_path: Path) -> None:
    row = struct.pack(">8H", 0, 0, 16384, 65535, 32768, 32768, 65535, 255)
    (tmp_path / "x.png").write_bytes(png(16, 4, row))
    picture = read_picture(tmp_path / "x.png")
    assert picture.alpha is not None
    assert picture.alpha[0].tolist() == [0, 255, 128, 0]
    assert to_pil(picture).mode == "LA"


@pytest.mark.parametrize("mode", ["P", "PA", "RGB", "RGBA", "La", "RGBa", "CMYK"])
def test_grey_in_every_mode(mode: str, photo: Photo) -> None:
    grey = Image.fromarray(photo(6, 6)).convert("L")
    if mode in ("La", "RGBa"):
        image = grey.convert(mode.upper()).convert(mode)
    elif mode in ("P", "PA"):
        image = grey.convert("RGB").quantize(64)
        image = image.convert("PA") if mode == "PA" else image
    else:
        image = grey.convert("RGB").convert(mode)
    picture = from_pil(image)
    assert picture.grey
    assert np.abs(picture.rgb[..., 0].astype(int) - np.asarray(grey)).max() <= 1


def test_a_grey_picture_with_a_profile_of_colours(tmp_path: Path) -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    Image.new("RGB", (4, 4), (9, 9, 9)).save(tmp_path / "x.png", icc_profile=profile)
    picture = read_picture(tmp_path / "x.png")
    assert picture.grey
    assert to_pil(picture).mode == "RGB", "the profile would not fit a picture without colours"


def test_lab(tmp_path: Path) -> None:
    Image.new("LAB", (4, 4), (255, 128, 128)).save(tmp_path / "x.tif")
    assert read_picture(tmp_path / "x.tif").rgb.min() > 250


def test_longest_names(tmp_path: Path, photo: Photo) -> None:
    for name in ("x" * 251 + ".png", "é" * 125 + ".jpg"):
        write_picture(Picture(photo(4, 4)), tmp_path / name)
        assert read_picture(tmp_path / name).rgb.shape == (4, 4, 3)
    with atomic_path(tmp_path / ("a." + "b" * 253)) as temporary:
        temporary.write_bytes(b"whole")
    assert (tmp_path / ("a." + "b" * 253)).read_bytes() == b"whole"


def test_folders_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    check_folder(tmp_path / "new" / "folder")
    (tmp_path / "plain").write_bytes(b"")
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for place, message in (
        ("plain", "is a file"),
        ("plain/sub", "plain is a file|Not a directory"),
        ("link", "leads nowhere"),
    ):
        with pytest.raises(ImageError, match=message):
            check_folder(tmp_path / place)
    assert sorted(os.listdir(tmp_path)) == ["link", "plain"], "nothing is made or left"

    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(ImageError, match="No space left"):
        check_folder(tmp_path)


def test_from_pil_does_not_touch_its_argument(photo: Photo) -> None:
    image = Image.fromarray(photo(4, 4))
    from_pil(image).rgb[:] = 0
    assert np.array_equal(np.asarray(image), photo(4, 4))


def test_floats_of_a_portable_map(tmp_path: Path) -> None:
    values = np.linspace(0, 1, 64, dtype=np.float32).reshape(8, 8)
    Image.fromarray(values).save(tmp_path / "x.pfm", format="PPM")
    assert np.abs(read_picture(tmp_path / "x.pfm").rgb[..., 0] - 255.0 * values).max() <= 0.5


def test_bits_that_are_no_number(tmp_path: Path) -> None:
    """A signalling NaN raises a warning where it is converted."""
    values = np.full((4, 4), 0.5, np.float32)
    values.view(np.uint32)[0, 0] = 0x7FA00000
    Image.fromarray(values).save(tmp_path / "x.pfm", format="PPM")
    assert read_picture(tmp_path / "x.pfm").rgb[:, :, 0].tolist()[0] == [0, 128, 128, 128]


def test_a_damaged_tiff_prints_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tifffile.imwrite(tmp_path / "x.tif", np.zeros((8, 8, 3), np.float32), photometric="rgb")
    whole = (tmp_path / "x.tif").read_bytes()
    (tmp_path / "x.tif").write_bytes(whole[:20] + bytes(4) + whole[24:])
    with pytest.raises(ImageError):
        read_picture(tmp_path / "x.tif")
    assert capfd.readouterr() == ("", "")
