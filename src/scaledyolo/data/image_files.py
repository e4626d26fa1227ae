"""Image files of data sets: decoding, and the check that they are usable and nothing is cut off."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from scaledyolo.data.problems import Report
from scaledyolo.errors import DataError, SourceError
from scaledyolo.images import read_image, read_size

# How closely the readers look at image files: not at all; header and last bytes; or decode every pixel.
ImageCheck = Literal["none", "header", "full"]

SUFFIXES = frozenset({".bmp", ".jpeg", ".jpg", ".png", ".tif", ".tiff", ".webp"})
MINIMUM_SIDE = 10  # the reference loaders reject images with a side of 9 pixels or less (specification 4.1)
# What a whole file ends with. Cameras may append data, so a file that ends otherwise is decoded to make sure.
_LAST_BYTES = {".jpg": b"\xff\xd9", ".jpeg": b"\xff\xd9", ".png": b"IEND\xaeB`\x82"}


def is_image(path: Path) -> bool:
    """Whether the file name ends like an image."""
    return path.suffix.lower() in SUFFIXES


def decode(path: str | Path) -> npt.NDArray[np.uint8]:
    """The image as (height, width, 3) uint8 RGB, as `read_image` reads it; DataError if that cannot be."""
    try:
        return read_image(path)
    except SourceError as error:
        raise DataError(f"{error}; run `scaledyolo doctor` on the data set to list every bad image") from error


def check_image(
    path: Path, check: ImageCheck, report: Report, *, named_by: tuple[object, object]
) -> tuple[int, int] | None:
    """(height, width) of a usable image file; else None and a problem. named_by: (file, place) that asks for it."""
    if not path.is_file():
        report.add("missing-image", *named_by, f"image {path} does not exist")
        return None
    try:
        height, width = read_size(path, name="the image")
        if check == "full" or not _ends_well(path):
            read_image(path, name="the image")
    except (SourceError, OSError) as error:
        report.add("unreadable-image", path, "", str(error))
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
