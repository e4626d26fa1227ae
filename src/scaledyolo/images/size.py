"""How large an image will be, from its header alone, upright as `read_image` will return it."""

from __future__ import annotations

import os
from pathlib import Path
from typing import BinaryIO

from scaledyolo.errors import SourceError
from scaledyolo.images.header import SNIFF_BYTES, read_png_exif, read_png_header, read_webp_size, sniff_format
from scaledyolo.images.reader import (
    MAX_PIXELS,
    ORIENTATION_TAG,
    open_pillow,
    printable,
    reason_of,
    require_image,
    require_size,
    require_white_point,
)

_TURNED = frozenset({5, 6, 7, 8})  # orientations that exchange width and height
_TIFF_WIDTH, _TIFF_HEIGHT = 256, 257


def read_size(
    path: str | os.PathLike[str], *, max_pixels: int = MAX_PIXELS, name: str | None = None
) -> tuple[int, int]:
    """(height, width) of what `read_image` will return; for the arguments see there.

    Raises:
        SourceError: as `read_image` does, as far as the header shows it.
    """
    name = name or printable(path)
    try:
        with Path(path).open("rb") as file:
            width, height, orientation = _facts(file, name, max_pixels)
    except SourceError:
        raise
    except FileNotFoundError:
        raise SourceError(f"{name} does not exist") from None
    except Exception as error:  # on damaged input Pillow's plugins raise whatever their parsing runs into
        raise SourceError(f"{name} cannot be read: {reason_of(error)}") from error
    require_size(width, height, name, max_pixels)
    if not width * height:
        raise SourceError(f"{name} has no pixels")
    return (width, height) if orientation in _TURNED else (height, width)


def _facts(file: BinaryIO, name: str, max_pixels: int) -> tuple[int, int, int]:
    """Width and height as stored, and the EXIF orientation."""
    from PIL import TiffImagePlugin

    head = file.read(SNIFF_BYTES)
    require_image(head, name)
    kind = str(sniff_format(head))
    if kind == "PNG":  # Pillow would decode the picture to find the orientation
        png = read_png_header(head, name)
        return png.width, png.height, _orientation_in(read_png_exif(file))
    if kind == "WEBP":
        require_size(*(read_webp_size(head) or (0, 0)), name, max_pixels)
    file.seek(0)
    with open_pillow(file, kind) as image:
        require_white_point(image.mode, kind, name)
        if isinstance(image, TiffImagePlugin.TiffImageFile):  # versions of Pillow differ in whether its size is turned
            tags = image.tag_v2
            return int(tags[_TIFF_WIDTH]), int(tags[_TIFF_HEIGHT]), int(tags.get(ORIENTATION_TAG, 1))
        return image.width, image.height, _orientation_in(image.info.get("exif", b""))


def _orientation_in(exif: bytes) -> int:
    """Orientation that a block of EXIF states; 1, upright, where there is none or it cannot be parsed."""
    from PIL import Image

    block = Image.Exif()
    try:
        block.load(exif)
        return int(block.get(ORIENTATION_TAG, 1))
    except Exception:  # Pillow's parser raises whatever it runs into; the picture itself is fine
        return 1
