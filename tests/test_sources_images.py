"""Reading images: every odd kind equals what another program makes of it; every broken one is one clear sentence."""

from __future__ import annotations

import io
import os
import struct
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps

from scaledyolo.errors import SourceError
from scaledyolo.sources import read_image


def picture(height: int = 40, width: int = 60, channels: int = 3, seed: int = 0) -> np.ndarray:
    """A smooth picture, so that JPEG keeps it nearly exactly."""
    y, x = np.mgrid[0:height, 0:width]
    planes = [(x * (3 + c) + y * (5 - c) + 20 * c + seed) % 256 // 2 + 60 for c in range(channels)]
    return np.stack(planes, axis=-1).astype(np.uint8)


def encode(image: Image.Image, kind: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def exif(orientation: int) -> Image.Exif:
    data = Image.Exif()
    data[0x0112] = orientation
    return data


RGB = picture()


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "PPM"])
def test_lossless_rgb_is_exact(kind: str) -> None:
    options = {"lossless": True} if kind == "WEBP" else {}
    image = read_image(encode(Image.fromarray(RGB), kind, **options))
    assert image.dtype == np.uint8
    assert image.flags.writeable
    assert image.flags.c_contiguous
    np.testing.assert_array_equal(image, RGB)


@pytest.mark.parametrize("options", [{}, {"progressive": True}, {"subsampling": 0}, {"optimize": True}])
def test_jpeg_equals_pillow(options: dict[str, object]) -> None:
    data = encode(Image.fromarray(RGB), "JPEG", quality=90, **options)
    expected = np.asarray(Image.open(io.BytesIO(data)))
    assert np.abs(read_image(data).astype(int) - expected).max() <= 2  # two builds of libjpeg-turbo


@pytest.mark.parametrize("mode", ["RGB", "L"])
@pytest.mark.parametrize("orientation", [1, 6])
def test_a_reduced_jpeg_has_the_means_of_blocks_of_eight(mode: str, orientation: int) -> None:
    y, x = np.mgrid[0:160, 0:240]
    smooth = np.stack([x * 255 / 239, y * 255 / 159, 255 - x * 128 / 239], axis=-1).astype(np.uint8)
    image = Image.fromarray(smooth).convert(mode)
    upright = np.asarray((image.rotate(-90, expand=True) if orientation == 6 else image).convert("RGB"))
    height, width = upright.shape[:2]
    means = upright.reshape(height // 8, 8, width // 8, 8, 3).mean(axis=(1, 3))
    reduced = read_image(encode(image, "JPEG", quality=98, exif=exif(orientation)), reduced=True)
    assert reduced.shape == means.shape
    assert np.abs(reduced - means).max() <= 4


def test_what_is_reduced_is_looked_at_as_closely() -> None:
    np.testing.assert_array_equal(read_image(encode(Image.fromarray(RGB), "PNG"), reduced=True), RGB)
    cmyk = encode(Image.fromarray(RGB).convert("CMYK"), "JPEG")
    np.testing.assert_array_equal(read_image(cmyk, reduced=True), read_image(cmyk))
    odd = encode(Image.fromarray(picture(41, 57)), "JPEG")
    assert read_image(odd, reduced=True).shape == (6, 8, 3)
    with pytest.raises(SourceError, match="cut off"):
        read_image(odd[:-40], reduced=True)
    with pytest.raises(SourceError, match="more than the limit"):
        read_image(odd, reduced=True, max_pixels=2000)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "BMP", "PPM", "GIF"])
def test_grey_becomes_three_equal_channels(kind: str) -> None:
    grey = RGB[:, :, 0]
    image = read_image(encode(Image.fromarray(grey), kind, **({"quality": 98} if kind == "JPEG" else {})))
    assert image.shape == (40, 60, 3)
    assert (image == image[:, :, :1]).all()
    assert np.abs(image[:, :, 0].astype(int) - grey).max() <= (8 if kind == "JPEG" else 0)


@pytest.mark.parametrize("kind", ["PNG", "WEBP", "TIFF"])
def test_alpha_is_dropped_and_colours_stay(kind: str) -> None:
    alpha = np.linspace(1, 255, 40 * 60).reshape(40, 60, 1).astype(np.uint8)
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encode(Image.fromarray(np.concatenate([RGB, alpha], axis=2)), kind, **options)
    np.testing.assert_array_equal(read_image(data), RGB)


def test_fully_transparent_png_keeps_its_colours() -> None:
    pixels = np.concatenate([RGB, np.zeros((40, 60, 1), np.uint8)], axis=2)
    np.testing.assert_array_equal(read_image(encode(Image.fromarray(pixels), "PNG")), RGB)


def test_grey_with_alpha() -> None:
    pixels = np.stack([RGB[:, :, 0], RGB[:, :, 1]], axis=2)
    image = read_image(encode(Image.fromarray(pixels, "LA"), "PNG"))
    np.testing.assert_array_equal(image, np.repeat(RGB[:, :, :1], 3, axis=2))


@pytest.mark.parametrize(
    ("kind", "transparency"), [("GIF", None), ("TIFF", None), ("PNG", None), ("PNG", 3), ("PNG", bytes(range(256)))]
)
def test_palette(kind: str, transparency: int | bytes | None) -> None:
    paletted = Image.fromarray(RGB).quantize(200)
    options = {} if transparency is None else {"transparency": transparency}
    image = read_image(encode(paletted, kind, **options))
    np.testing.assert_array_equal(image, np.asarray(paletted.convert("RGB")))


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "BMP"])
def test_one_bit(kind: str) -> None:
    bits = Image.fromarray(RGB[:, :, 0] > 120)
    np.testing.assert_array_equal(read_image(encode(bits, kind)), np.asarray(bits.convert("RGB")))


@pytest.mark.parametrize(
    ("suffix", "channels"),
    # Colours of a deep PPM Pillow scales itself, see the next test.
    [(".png", 1), (".png", 3), (".png", 4), (".tiff", 1), (".tiff", 3), (".tiff", 4), (".pgm", 1)],
)
def test_16_bits_are_scaled_with_rounding(suffix: str, channels: int) -> None:
    values = np.random.default_rng(0).integers(0, 65536, (31, 17, channels), dtype=np.uint16)
    values[0, :4, 0] = [0, 65535, 128, 129]
    stored = values if channels == 1 else values[:, :, [2, 1, 0, 3][:channels]]
    data = cv2.imencode(suffix, stored)[1].tobytes()
    expected = np.floor(values[:, :, :3].astype(np.float64) * 255 / 65535 + 0.5).astype(np.uint8)
    np.testing.assert_array_equal(read_image(data), np.broadcast_to(expected, (31, 17, 3)))


def test_16_bit_ppm_is_within_one() -> None:
    values = np.random.default_rng(0).integers(0, 65536, (31, 17, 3), dtype=np.uint16)
    data = cv2.imencode(".ppm", values[:, :, ::-1])[1].tobytes()
    assert np.abs(read_image(data).astype(float) - values / 257).max() <= 1


def test_cmyk_jpeg_has_the_right_colours() -> None:
    """Pillow writes CMYK inverted with an Adobe marker, as Photoshop does; red must come back as red."""
    solid = Image.new("RGB", (32, 32), (200, 30, 40))
    data = encode(solid.convert("CMYK"), "JPEG", quality=98)
    assert b"Adobe" in data
    assert np.abs(read_image(data).astype(int) - (200, 30, 40)).max() <= 6
    picture_data = encode(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=98)
    by_opencv = cv2.imdecode(np.frombuffer(picture_data, np.uint8), cv2.IMREAD_COLOR)[:, :, ::-1]
    assert np.abs(read_image(picture_data).astype(int) - by_opencv).max() <= 4


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_orientation_is_applied(kind: str, orientation: int) -> None:
    data = encode(Image.fromarray(RGB), kind, exif=exif(orientation), **({"lossless": True} if kind == "WEBP" else {}))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(data))).convert("RGB"))
    image = read_image(data)
    assert image.shape == expected.shape
    assert image.flags.c_contiguous
    assert np.abs(image.astype(int) - expected).max() <= (2 if kind == "JPEG" else 0)


@pytest.mark.parametrize("orientation", [3, 6])
def test_exif_orientation_of_deep_and_cmyk_images(orientation: int) -> None:
    deep = np.arange(40 * 60, dtype=np.uint16).reshape(40, 60) * 27
    tall = read_image(encode(Image.fromarray(deep), "PNG", exif=exif(orientation)))
    turns = {3: 2, 6: 3}[orientation]
    np.testing.assert_array_equal(tall[:, :, 0], np.rot90(np.round(deep / 257).astype(np.uint8), turns))
    cmyk = encode(Image.fromarray(RGB).convert("CMYK"), "JPEG", quality=98, exif=exif(orientation))
    assert np.abs(read_image(cmyk).astype(int) - np.rot90(RGB, turns)).max() <= 24


def test_animations_give_their_first_picture(tmp_path: Path) -> None:
    frames = [Image.new("RGB", (20, 10), color) for color in ("red", "lime", "blue")]
    for kind, options in (("GIF", {}), ("WEBP", {"lossless": True}), ("PNG", {}), ("TIFF", {})):
        data = encode(frames[0], kind, save_all=True, append_images=frames[1:], **options)
        np.testing.assert_array_equal(read_image(data)[5, 5], (255, 0, 0), err_msg=kind)


@pytest.mark.parametrize(("height", "width"), [(1, 1), (8, 20000), (20000, 1), (3, 2)])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_extreme_sizes(kind: str, height: int, width: int) -> None:
    data = encode(Image.new("RGB", (width, height), (10, 200, 100)), kind)
    image = read_image(data)
    assert image.shape == (height, width, 3)
    assert np.abs(image.astype(int) - (10, 200, 100)).max() <= 3


@pytest.mark.parametrize("values", [np.float32, np.int32])
def test_values_without_a_white_point_are_refused(values: type) -> None:
    data = encode(Image.fromarray(np.ones((4, 5), values)), "TIFF")
    with pytest.raises(SourceError, match="white point is unknown"):
        read_image(data, name="depth.tif")


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "GIF", "BMP", "TIFF", "WEBP", "PPM", "progressive", "exif"])
def test_truncation_is_found_wherever_the_cut_is(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 255, (48, 64, 3), dtype=np.uint8))
    if kind == "exif":  # the thumbnail in the metadata has an end marker of its own
        thumbnail = encode(noise.resize((16, 12)), "JPEG")
        segment = b"Exif\0\0" + thumbnail
        plain = encode(noise, "JPEG")
        data = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(segment) + 2) + segment + plain[2:]
    else:
        data = encode(noise, "JPEG", progressive=True) if kind == "progressive" else encode(noise, kind)
    assert read_image(data).shape == (48, 64, 3)
    for cut in sorted({3, 12, 25, 40, len(data) // 4, len(data) // 2, len(data) * 3 // 4, len(data) - 70}):
        with pytest.raises(SourceError, match=r"cut\.jpg"):
            read_image(data[:cut], name="cut.jpg")


@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_even_the_last_byte_is_missed(kind: str) -> None:
    data = encode(Image.fromarray(RGB), kind)
    for cut in range(len(data) - 12, len(data)):
        with pytest.raises(SourceError, match="cut off"):
            read_image(data[:cut])


def test_data_after_the_end_is_ignored() -> None:
    for kind in ("JPEG", "PNG"):
        data = encode(Image.fromarray(RGB), kind)
        np.testing.assert_array_equal(read_image(data + b"camera trailer\xff\x00" * 9), read_image(data))


def test_flipped_bit_in_png_is_found() -> None:
    data = bytearray(encode(Image.fromarray(RGB), "PNG"))
    data[data.index(b"IDAT") + 20] ^= 1
    with pytest.raises(SourceError, match="checksum of its IDAT"):
        read_image(bytes(data))


def bomb(kind: str, width: int = 60000, height: int = 60000) -> bytes:
    if kind == "PNG":
        header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
        chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
        return b"\x89PNG\r\n\x1a\n" + chunk + b"\0\0\0\0IEND\xaeB`\x82"
    small = {"JPEG": (b"\xff\xc0", 5, ">HH"), "GIF": (b"GIF87a", 6, "<HH"), "BMP": (b"BM", 18, "<ii")}
    marker, offset, form = small[kind]
    data = bytearray(encode(Image.new("L", (8, 8)), kind))
    struct.pack_into(form, data, data.index(marker) + offset, height, width)
    return bytes(data)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "GIF", "BMP"])
def test_decompression_bomb_is_refused_before_decoding(kind: str) -> None:
    with pytest.raises(SourceError, match=r"60000 x 60000 pixels, more than the limit of 200 million"):
        read_image(bomb(kind), name="bomb")


def test_webp_bomb() -> None:
    for options in ({"lossless": True}, {"quality": 1}, {"quality": 1, "exif": exif(1)}):
        data = encode(Image.new("RGB", (2000, 1000)), "WEBP", **options)
        assert read_image(data).shape == (1000, 2000, 3)
        with pytest.raises(SourceError, match="2000 x 1000 pixels"):
            read_image(data, max_pixels=1_000_000)


def test_limit_is_ours_alone() -> None:
    """Pillow's own limit (and its warning, an error in this suite) neither applies nor is changed."""
    before = Image.MAX_IMAGE_PIXELS
    data = encode(Image.new("1", (12000, 10000)), "TIFF", compression="group4")  # 120 MP, above Pillow's 89
    assert read_image(data).shape == (10000, 12000, 3)
    with pytest.raises(SourceError, match="limit of 100 million"):
        read_image(data, max_pixels=100_000_000)
    assert before == Image.MAX_IMAGE_PIXELS


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "is empty"),
        (b"hello, I am not a picture\n", "looks like text"),
        (b"%PDF-1.7 ...", "a PDF document"),
        (b"<!doctype html><html>", "a web page"),
        (b"\0" * 500, "a file of zeros"),
        (b"\0\0\0\x20ftypheic\0\0\0\0mif1heic", "HEIC"),
        (b"\x80\x81\x82\x83" * 40, "binary data"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "Git LFS"),
        ("Grüße, 猫 ".encode() * 20, "looks like text"),
    ],
)
def test_what_is_no_image_is_described(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "fake.jpg"
    path.write_bytes(content)
    with pytest.raises(SourceError, match=words) as caught:
        read_image(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_folder_and_strange_paths(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match="does not exist"):
        read_image(tmp_path / "nowhere.jpg")
    with pytest.raises(SourceError, match="is a folder"):
        read_image(tmp_path)
    with pytest.raises(SourceError, match="null byte"):
        read_image("a\0b.jpg")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything")
def test_permission_denied(tmp_path: Path) -> None:
    path = tmp_path / "secret.png"
    path.write_bytes(encode(Image.fromarray(RGB), "PNG"))
    path.chmod(0)
    with pytest.raises(SourceError, match="Permission denied"):
        read_image(path)


def test_unreadable_metadata_does_not_matter() -> None:
    garbage = b"Exif\0\0II*\0\xff\xff\xff\x7f" + b"\xee" * 40
    plain = encode(Image.fromarray(RGB), "JPEG")
    data = plain[:2] + b"\xff\xe1" + struct.pack(">H", len(garbage) + 2) + garbage + plain[2:]
    np.testing.assert_array_equal(read_image(data), read_image(plain))


@settings(max_examples=120, deadline=None)
@given(data=st.data())
def test_damage_never_escapes_as_another_error(data: st.DataObject) -> None:
    kind = data.draw(st.sampled_from(["BMP", "TIFF", "GIF", "WEBP", "PPM", "PNG"]))
    content = bytearray(encode(Image.fromarray(RGB[:12, :16]), kind))
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    try:
        image = read_image(bytes(content), max_pixels=1_000_000)
    except SourceError:
        pass
    else:
        assert image.dtype == np.uint8
        assert image.ndim == 3
        assert image.shape[2] == 3


@pytest.mark.shared
def test_photographs_equal_pillow(shared: Path) -> None:
    for path in sorted((shared / "images").glob("*.jpg")):
        expected = np.asarray(ImageOps.exif_transpose(Image.open(path)).convert("RGB"))
        assert np.abs(read_image(path).astype(int) - expected).max() <= 2, path.name
