"""What training and evaluation read of an image is what the detector reads and what another program makes of it."""

from __future__ import annotations

import warnings
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image, ImageOps

from scaledyolo.data.cache import ImageSource
from scaledyolo.data.formats import open_dataset
from scaledyolo.data.image_files import decode
from scaledyolo.detector import as_rgb
from scaledyolo.errors import DataError
from scaledyolo.images import read_size
from scaledyolo.sources import open_source

HEIGHT, WIDTH = 24, 36
PICTURE = np.random.default_rng(0).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)
DEEP = np.random.default_rng(1).integers(0, 65536, (HEIGHT, WIDTH, 3)).astype(np.uint16)
XMP = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><rdf:Description tiff:Orientation="6"/></x:xmpmeta>'


def turned(orientation: int) -> Image.Exif:
    data = Image.Exif()
    data[0x0112] = orientation
    return data


def write(folder: Path, name: str) -> Path:
    """One odd image; its name says which."""
    path = folder / name
    words, colour = path.stem.split("-"), Image.fromarray(PICTURE)
    options = {"lossless": True} if path.suffix == ".webp" else {}
    if words[0] == "deep":
        assert cv2.imwrite(str(path), DEEP[:, :, 0] if words[1] == "grey" else DEEP[:, :, ::-1])
    elif words[0] == "turned":
        colour.save(path, exif=turned(int(words[1])), **options)
    elif words[0] == "xmp":
        colour.save(path, xmp=XMP, **options)
    elif words[0] == "palette":
        colour.quantize(16).save(path)
    else:
        colour.convert(words[0]).save(path, **options)
    return path


def rounded(values: np.ndarray) -> np.ndarray:
    """16 bits in 8, to the nearest."""
    return np.rint(values.astype(np.float64) * 255 / 65535).astype(np.uint8)


def truth(path: Path) -> np.ndarray:
    """The picture by Pillow, or by the arithmetic of 16 bits."""
    words = path.stem.split("-")
    if words[0] == "deep":
        return rounded(DEEP[:, :, :1]).repeat(3, axis=2) if words[1] == "grey" else rounded(DEEP)
    if words[0] == "xmp":
        return np.asarray(Image.open(path).convert("RGB"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        upright = ImageOps.exif_transpose(Image.open(path))
        return np.asarray((upright.convert("RGBA") if upright.mode in ("P", "RGBA") else upright).convert("RGB"))


ODD = [
    "deep-grey.png",
    "deep-colour.png",
    "deep-grey.tif",
    "deep-colour.tif",
    *(f"turned-{turn}.{suffix}" for suffix in ("jpg", "png", "tif", "webp") for turn in (3, 6, 7)),
    "xmp-6.jpg",
    "xmp-6.webp",
    "CMYK.jpg",
    "CMYK.tif",
    "YCbCr.tif",
    "palette.png",
    "palette.bmp",
    "palette.tif",
    "RGBA.png",
    "RGBA.webp",
    "RGBA.tif",
    "LA.png",
    "L.jpg",
    "1.png",
    "1.tif",
]


@pytest.mark.parametrize("name", ODD)
def test_training_and_detection_read_the_same_pixels(tmp_path: Path, name: str) -> None:
    path = write(tmp_path, name)
    (tmp_path / path.with_suffix(".txt").name).write_text("0 0.5 0.5 0.2 0.4\n", encoding="utf-8")
    (tmp_path / "data.yaml").write_text("train: .\nnames: [thing]\n", encoding="utf-8")
    dataset = open_dataset(tmp_path / "data.yaml", bad="fail")
    assert len(dataset) == 1
    learnt = dataset.load_image(0)
    np.testing.assert_array_equal(ImageSource(dataset, None).image(0), learnt)
    np.testing.assert_array_equal(as_rgb(path), learnt)  # Detector(path)
    (frame,) = open_source(path)  # scaledyolo detect
    np.testing.assert_array_equal(frame.image, learnt)
    # Decoders of JPEG may round differently.
    np.testing.assert_allclose(learnt.astype(int), truth(path).astype(int), atol=2 if path.suffix == ".jpg" else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["jpg", "png", "tif", "webp"])
def test_the_header_tells_the_size_of_what_is_decoded(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = write(tmp_path, f"turned-{orientation}.{suffix}")
    assert read_size(path) == decode(path).shape[:2] == ((WIDTH, HEIGHT) if orientation > 4 else (HEIGHT, WIDTH))


@pytest.mark.parametrize("values", [np.float32, np.int32])
def test_what_has_no_white_point_is_found_when_the_data_set_is_read(tmp_path: Path, values: type) -> None:
    Image.fromarray(DEEP[:, :, 0].astype(values)).save(tmp_path / "a.tif")
    (tmp_path / "a.txt").write_text("0 0.5 0.5 0.2 0.4\n", encoding="utf-8")
    (tmp_path / "data.yaml").write_text("train: .\nnames: [thing]\n", encoding="utf-8")
    with pytest.raises(DataError, match="white point is unknown"):
        open_dataset(tmp_path / "data.yaml", bad="fail")
    with pytest.raises(DataError, match="white point is unknown.*doctor"):
        decode(tmp_path / "a.tif")
