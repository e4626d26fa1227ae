"""The one way in which this package reads image files: what is trained on, measured and detected in looks the same.

Contents: ``read_image`` makes RGB of a file or its content, ``read_size`` asks the header how large that will be,
``rgb_of_pillow`` takes what Pillow holds; ``require_size`` refuses what is too large; ``sniff_format`` says what the
first ``SNIFF_BYTES`` bytes of a file are; ``printable`` and ``reason_of`` are what error messages need.
"""

from __future__ import annotations

from scaledyolo.images.header import SNIFF_BYTES, sniff_format
from scaledyolo.images.reader import MAX_PIXELS, printable, read_image, reason_of, require_size, rgb_of_pillow
from scaledyolo.images.size import read_size

__all__ = [
    "MAX_PIXELS",
    "SNIFF_BYTES",
    "printable",
    "read_image",
    "read_size",
    "reason_of",
    "require_size",
    "rgb_of_pillow",
    "sniff_format",
]
