"""What the output formats hold: alpha, colours, metadata, profiles, frames."""

import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import ExifTags, Image, ImageCms, PngImagePlugin

from ddpm.pictures.formats import OUTPUTS, check_output
from ddpm.pictures.images import (
    Animation,
    Picture,
    from_pil,
    read_animation,
    read_header,
    read_picture,
    resized,
    write_picture,
)
from ddpm.util.errors import ImageError
from tests.conftest import Photo

PROFILE = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
XMP = (
    b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6" dc:title="caf\xc3\xa9">'
    b"<xmp:Thumbnails>abc</xmp:Thumbnails></rdf:Description></x:xmpmeta>"
)
WITH_EXIF = ["png", "apng", "jpg", "jfif", "webp", "avif", "tif"]


def camera_file(path: Path, photo: Photo, **more: Any) -> None:
    """A JPEG as cameras write it: turned, with a thumbnail, GPS, a profile and XMP."""
    exif = Image.Exif()
    exif[0x0112] = 6
    exif[0x010F] = "Maker"
    exif[0x013B] = "Jane"
    exif.get_ifd(ExifTags.IFD.Exif).update({0xA002: 16, 0xA003: 8, 0x9003: "2024:01:02 03:04:05", 0x829A: 0.01})
    exif.get_ifd(ExifTags.IFD.GPSInfo)[1] = "N"
    tiff = bytearray(exif.tobytes()[6:])
    assert tiff[:2] == b"MM"
    end = 10 + 12 * struct.unpack_from(">H", tiff, 8)[0]  # of the tags, where the place of the thumbnail's tags stands
    struct.pack_into(">I", tiff, end, len(tiff))
    tiff += struct.pack(">HHHIII", 1, 0x0103, 3, 1, 6, 0)
    Image.fromarray(photo(8, 16)).save(path, exif=b"Exif\0\0" + tiff, icc_profile=PROFILE, xmp=XMP, **more)
    with Image.open(path) as image:
        assert image.getexif().get_ifd(ExifTags.IFD.IFD1)


def test_what_png_and_jpeg_say_of_themselves(tmp_path: Path, photo: Photo) -> None:
    """Density, gamma and texts; in a JPEG its comment."""
    image = Image.fromarray(photo(8, 8))
    chunks = PngImagePlugin.PngInfo()
    chunks.add(b"gAMA", struct.pack(">I", 100_000))
    chunks.add(b"cHRM", struct.pack(">8I", 31270, 32900, 64000, 33000, 30000, 60000, 15000, 6000))
    chunks.add_text("Title", "A house")
    chunks.add_itxt("Comment", "Häuser 家", "de")
    chunks.add_text("Long", "word " * 9999, zip=True)
    image.save(tmp_path / "in.png", pnginfo=chunks, dpi=(300, 150))
    image.save(tmp_path / "in.jpg", dpi=(200, 200), comment="made by hand")
    for source, ending in (("in.png", "png"), ("in.jpg", "jpg"), ("in.jpg", "png"), ("in.png", "jpg")):
        picture = read_picture(tmp_path / source)
        for changed in (picture, resized(picture, 5, 5)):
            write_picture(changed, tmp_path / f"out.{ending}")
            with Image.open(tmp_path / source) as before, Image.open(tmp_path / f"out.{ending}") as after:
                after.load()
                assert after.info["dpi"] == pytest.approx(before.info["dpi"], abs=0.02)
                said = before.info.get("comment", b"").decode() or before.info.get("Comment")
                assert (after.info["comment"].decode() if ending == "jpg" else after.info["Comment"]) == said
                for name in ("gamma", "chromaticity", "Title", "Long") if source[3:] == ending == "png" else ():
                    assert after.info[name] == before.info[name]
    with Image.open(tmp_path / "in.png") as plain:
        assert "Title" in plain.info
    write_picture(Picture(photo(8, 8)), tmp_path / "out.png")
    with Image.open(tmp_path / "out.png") as bare:
        assert not bare.info.keys() & {"dpi", "gamma", "Title"}


@pytest.mark.parametrize("ending", WITH_EXIF)
@pytest.mark.parametrize("source", ["jpg", "png", "webp", "tif"])
def test_metadata_is_kept(source: str, ending: str, tmp_path: Path, photo: Photo) -> None:
    camera_file(tmp_path / "camera.jpg", photo)
    picture = read_picture(tmp_path / "camera.jpg")
    assert picture.rgb.shape == (16, 8, 3)
    write_picture(picture, tmp_path / f"between.{source}")
    again = read_picture(tmp_path / f"between.{source}")
    again.rgb = np.zeros((40, 20, 3), np.uint8)
    assert write_picture(again, tmp_path / f"result.{ending}") == []
    with Image.open(tmp_path / f"result.{ending}") as image:
        assert image.size == (20, 40)
        exif = image.getexif()
        assert exif.get(0x0112, 1) == 1
        assert (exif[0x010F], exif[0x013B]) == ("Maker", "Jane")
        inner = exif.get_ifd(ExifTags.IFD.Exif)
        assert (inner[0xA002], inner[0xA003]) == (20, 40)
        assert inner[0x9003] == "2024:01:02 03:04:05"
        assert exif.get_ifd(ExifTags.IFD.GPSInfo)[1] == "N"
        assert not exif.get_ifd(ExifTags.IFD.IFD1), "no thumbnail of what is no longer so small"
        assert image.info["icc_profile"] == PROFILE
        xmp = image.info["xmp"]
    assert b'tiff:Orientation="1" dc:title="caf\xc3\xa9"' in xmp
    assert b"Thumbnails" not in xmp


@pytest.mark.parametrize("ending", ["bmp", "gif", "ppm", "jp2", "tga"])
def test_metadata_without_a_place_is_told(ending: str, tmp_path: Path, photo: Photo) -> None:
    camera_file(tmp_path / "camera.jpg", photo)
    notes = write_picture(read_picture(tmp_path / "camera.jpg"), tmp_path / f"x.{ending}")
    assert len(notes) == 1
    assert "no place for EXIF and XMP and the colour profile" in notes[0]
    assert read_picture(tmp_path / f"x.{ending}").rgb.shape == (16, 8, 3)


@pytest.mark.parametrize("bytes_", [65_000, 66_000, 3_000_000])
def test_large_metadata(bytes_: int, tmp_path: Path, photo: Photo) -> None:
    exif = Image.Exif()
    exif[0x010F] = "Maker"
    exif.get_ifd(ExifTags.IFD.Exif)[0x927C] = bytes(bytes_)
    picture = Picture(photo(8, 8), None, False, bytes(128) + bytes(bytes_), exif.tobytes(), b"x" * bytes_)
    assert write_picture(picture, tmp_path / "x.png") == []
    again = read_picture(tmp_path / "x.png")
    assert (again.icc_profile, again.xmp) == (picture.icc_profile, picture.xmp)
    assert again.exif is not None
    assert len(again.exif) > bytes_
    notes = write_picture(again, tmp_path / "x.jpg")
    assert notes == ([] if bytes_ < 65_500 else ["JPEG has no place for XMP (of this size): left out"])
    with Image.open(tmp_path / "x.jpg") as image:
        assert image.getexif()[0x010F] == "Maker", "of too large EXIF, the maker's note is left out"
        assert image.info["icc_profile"] == picture.icc_profile


@pytest.mark.parametrize(
    "damage", [b"II*\0\xff\xff\xff\x7f", b"MM\0*\0\0\0\x08\0\x01\x01\x0f\0\x02\xff\xff\xff\xff\0\0\0\0", b"no"]
)
def test_damaged_exif_does_not_matter(damage: bytes, tmp_path: Path, photo: Photo) -> None:
    Image.fromarray(photo(8, 8)).save(tmp_path / "x.jpg", exif=b"Exif\0\0" + damage)
    picture = read_picture(tmp_path / "x.jpg")
    for ending in WITH_EXIF:
        write_picture(picture, tmp_path / f"y.{ending}")
        assert read_picture(tmp_path / f"y.{ending}").rgb.shape == (8, 8, 3)


def with_alpha(photo: Photo, grey: bool = False) -> Picture:
    image = Image.fromarray(photo(8, 8)).convert("L" if grey else "RGB")
    image.putalpha(Image.fromarray(np.tile(np.linspace(0, 255, 8).astype(np.uint8), (8, 1))))
    return from_pil(image)


@pytest.mark.parametrize("grey", [False, True])
@pytest.mark.parametrize("ending", sorted(OUTPUTS))
def test_every_ending(ending: str, grey: bool, tmp_path: Path, photo: Photo) -> None:
    picture = with_alpha(photo, grey)
    notes = write_picture(picture, tmp_path / f"x{ending}")
    again = read_picture(tmp_path / f"x{ending}")
    assert again.rgb.shape == (8, 8, 3)
    if "RGBA" in OUTPUTS[ending].modes:
        assert again.alpha is not None
        assert not notes
    else:
        assert again.alpha is None
        assert "flattened on white" in notes[0]
        assert again.rgb[:, 0].min() >= 235
        assert "colour left out" in " ".join(notes) or not (ending == ".pgm" and not grey)
    colour = np.ptp(again.rgb.astype(int), axis=-1).max()
    assert colour <= (3 if ending == ".webp" else 0) or not grey, "no colour noise, whatever the format's modes are"


def test_an_opaque_alpha_needs_no_note(tmp_path: Path, photo: Photo) -> None:
    assert write_picture(Picture(photo(4, 4), np.full((4, 4), 255, np.uint8)), tmp_path / "x.jpg") == []


def test_largest_sides() -> None:
    for name, largest in {"x.webp": 16_383, "x.jpg": 65_500, "x.avif": 32_768, "x.gif": 65_535}.items():
        check_output(Path(name), largest, 1)
        message = f"{largest} pixels a side, and this picture would have 1 x {largest + 1}; take .* such as png"
        with pytest.raises(ImageError, match=message):
            check_output(Path(name), 1, largest + 1)
    check_output(Path("x.png"), 70_000, 1)


def test_the_largest_avif_is_written_and_read(tmp_path: Path) -> None:
    """Pillow writes larger ones, which it cannot read."""
    write_picture(Picture(np.zeros((1, OUTPUTS[".avif"].max_side, 3), np.uint8)), tmp_path / "x.avif")
    assert read_picture(tmp_path / "x.avif").rgb.shape == (1, 32_768, 3)


def test_unknown_ending() -> None:
    with pytest.raises(ImageError, match=r"unknown file extension '\.xyz'; known are \.apng"):
        check_output(Path("x.xyz"), 1, 1)


def frames(photo: Photo, alpha: bool = False) -> list[Image.Image]:
    images = [Image.fromarray(photo(8, 12, seed=i)) for i in range(3)]
    for i, image in enumerate(images):
        if alpha:
            mask = np.full((8, 12), 255, np.uint8)
            mask[:, 4 * i : 4 * i + 4] = 0
            image.putalpha(Image.fromarray(mask))
    return images


@pytest.mark.parametrize("ending", ["gif", "png", "apng", "webp", "avif"])
@pytest.mark.parametrize("alpha", [False, True])
@pytest.mark.parametrize("plays", [0, 1, 3])
def test_animations_round_trip(ending: str, alpha: bool, plays: int, tmp_path: Path, photo: Photo) -> None:
    written = Animation([from_pil(image) for image in frames(photo, alpha)], [100.0, 250.0, 40.0], plays)
    assert write_picture(written, tmp_path / f"x.{ending}") == []
    assert read_header(tmp_path / f"x.{ending}").animated
    read = read_animation(tmp_path / f"x.{ending}")
    assert read.durations == [100, 250, 40]
    assert read.plays == (plays if ending != "avif" else 0)  # Pillow reads and writes no count for AVIF
    for i, (before, after) in enumerate(zip(written.frames, read.frames, strict=True)):
        if alpha:
            assert before.alpha is not None
            assert after.alpha is not None
            assert np.array_equal(before.alpha > 127, after.alpha > 127), "no frame shines through a later one"
        else:
            assert after.alpha is None
            away = [np.abs(frame.rgb.astype(int) - after.rgb).mean() for frame in written.frames]
            assert int(np.argmin(away)) == i
    still = write_picture(read, tmp_path / "x.jpg")
    assert len(still) == alpha
    assert read_picture(tmp_path / "x.jpg").rgb.shape == (8, 12, 3)


def test_frames_of_several_modes(tmp_path: Path, photo: Photo) -> None:
    colour, grey = Picture(photo(8, 8)), from_pil(Image.fromarray(photo(8, 8, seed=1)).convert("L"))
    write_picture(Animation([replace(grey, grey=False), colour], [50, 50]), tmp_path / "x.png")
    read = read_animation(tmp_path / "x.png")
    assert [frame.grey for frame in read.frames] == [False, False]


def test_a_still_picture_before_the_animation(tmp_path: Path, photo: Photo) -> None:
    images = frames(photo)
    images[0].save(
        tmp_path / "x.png", save_all=True, append_images=images[1:], default_image=True, duration=[70, 90], loop=2
    )
    read = read_animation(tmp_path / "x.png")
    assert read.still_first
    write_picture(read, tmp_path / "y.png")
    again = read_animation(tmp_path / "y.png")
    assert again.still_first
    assert (again.durations[1:], again.plays) == ([70, 90], 2)
    assert [np.array_equal(a.rgb, b.rgb) for a, b in zip(read.frames, again.frames, strict=True)] == [True] * 3


def test_pages_are_no_frames(tmp_path: Path, photo: Photo) -> None:
    images = frames(photo)
    images[0].save(tmp_path / "x.tif", save_all=True, append_images=images[1:])
    header = read_header(tmp_path / "x.tif")
    assert (header.frames, header.animated) == (3, False)
    assert np.array_equal(read_picture(tmp_path / "x.tif").rgb, photo(8, 12, seed=0))


def test_heic(tmp_path: Path, photo: Photo, monkeypatch: pytest.MonkeyPatch) -> None:
    heif = pytest.importorskip("pillow_heif")
    heif.from_pillow(Image.fromarray(photo(64, 64))).save(tmp_path / "x.heic", quality=90)
    assert np.abs(read_picture(tmp_path / "x.heic").rgb.astype(int) - photo(64, 64)).mean() < 12
    (tmp_path / "bad.heic").write_bytes(b"hello")
    (tmp_path / "cut.heic").write_bytes((tmp_path / "x.heic").read_bytes()[:-50])
    with pytest.raises(ImageError, match="damaged or truncated") as error:
        read_picture(tmp_path / "cut.heic")
    assert "\n" not in str(error.value)
    monkeypatch.setattr("ddpm.pictures.images.register_heif", lambda: False)
    with pytest.raises(ImageError, match="HEIC needs pillow-heif: pip install"):
        read_picture(tmp_path / "bad.heic")


def test_a_large_text_in_a_png(tmp_path: Path) -> None:
    text = PngImagePlugin.PngInfo()
    text.add_text("Comment", "x" * 2_000_000, zip=True)
    Image.new("RGB", (4, 4), "red").save(tmp_path / "x.png", pnginfo=text)
    assert read_picture(tmp_path / "x.png").rgb[0, 0].tolist() == [255, 0, 0]
