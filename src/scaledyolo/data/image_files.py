"""Image files: size from the header, decoding to RGB, and the check that nothing is cut off."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from scaledyolo.data.problems import Report
from scaledyolo.errors import DataError

# How closely the readers look at image files: not at all; header and last bytes; or decode every pixel.
ImageCheck = Literal["none", "header", "full"]

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
MINIMUM_SIDE = 10  # the reference loaders reject images with a side of 9 pixels or less (specification 4.1)
# What a whole file ends with. Cameras may append data, so a file that ends otherwise is decoded to make sure.
_LAST_BYTES = {".jpg": b"\xff\xd9", ".jpeg": b"\xff\xd9", ".png": b"IEND\xaeB`\x82"}
_EXIF_ORIENTATION = 0x0112
_TURNED = frozenset({5, 6, 7, 8})  # EXIF orientations that exchange width and height


def is_image(path: Path) -> bool:
    """Whether the file name ends like an image."""
    return path.suffix.lower() in SUFFIXES


def read_size(path: str | Path) -> tuple[int, int]:
    """(height, width) from the header, after the EXIF rotation that `decode` applies; OSError if unreadable."""
    with Image.open(path) as image:
        width, height = image.size
        # Only JPEG and TIFF cameras write the tag; asking other formats would read the whole file.
        turned = image.format in {"JPEG", "TIFF", "MPO"} and image.getexif().get(_EXIF_ORIENTATION) in _TURNED
    return (width, height) if turned else (height, width)


def decode(path: str | Path) -> npt.NDArray[np.uint8]:
    """The image as (height, width, 3) uint8 RGB; DataError with the path if it cannot be decoded."""
    image = cv2.imread(str(path), cv2.IMREAD_COLOR_RGB)
    if image is None:
        reason = "cannot be decoded as an image" if Path(path).exists() else "does not exist"
        raise DataError(f"{path}: {reason}; run `scaledyolo doctor` on the data set to list every bad image")
    return np.asarray(image, np.uint8)


def check_image(
    path: Path, check: ImageCheck, report: Report, *, named_by: tuple[object, object]
) -> tuple[int, int] | None:
    """(height, width) of a usable image file; else None and a problem. named_by: (file, place) that asks for it."""
    if not path.is_file():
        report.add("missing-image", *named_by, f"image {path} does not exist")
        return None
    try:
        height, width = read_size(path)
        if check == "full" or not _ends_well(path):
            _decode_every_pixel(path)
    except Exception as error:  # Pillow's plug-ins raise OSError, SyntaxError, ValueError, struct.error and more
        report.add("unreadable-image", path, "", f"image cannot be read: {error}")
        return None
    if min(height, width) < MINIMUM_SIDE:
        report.add("unreadable-image", path, "", f"image of {width}x{height} pixels is too small to learn from")
        return None
    return height, width


def _ends_well(path: Path) -> bool:
    """False if the end of the file is missing, the usual result of a broken download."""
    ending = _LAST_BYTES.get(path.suffix.lower(), b"")
    with path.open("rb") as file:
        file.seek(max(path.stat().st_size - len(ending), 0))
        return file.read() == ending or not ending


def _decode_every_pixel(path: Path) -> None:
    """Raise if any pixel is missing; Pillow refuses truncated files where OpenCV fills the rest with grey."""
    with Image.open(path) as image:
        image.load()
