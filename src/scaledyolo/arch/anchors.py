"""Anchors of the published networks, (width, height) in pixels of the input, finest level first."""

from __future__ import annotations

from typing import TypeAlias

Anchors: TypeAlias = tuple[tuple[float, float], ...]
Masks: TypeAlias = tuple[tuple[int, ...], ...]


def _pairs(text: str) -> Anchors:
    values = [tuple(map(float, pair.split(","))) for pair in text.split()]
    return tuple((width, height) for width, height in values)


ANCHORS_V3 = _pairs("10,13 16,30 33,23 30,61 62,45 59,119 116,90 156,198 373,326")
ANCHORS_V4 = _pairs("12,16 19,36 40,28 36,75 76,55 72,146 142,110 192,243 459,401")
ANCHORS_TINY = _pairs("10,14 23,27 37,58 81,82 135,169 344,319")
ANCHORS_P5 = _pairs("13,17 31,25 24,51 61,45 48,102 119,96 97,189 217,184 171,384 324,451 616,618 800,800")
ANCHORS_P6 = _pairs(
    "13,17 31,25 24,51 61,45 61,45 48,102 119,96 97,189 "
    "97,189 217,184 171,384 324,451 324,451 545,357 616,618 1024,1024"
)
ANCHORS_P7 = _pairs(
    "13,17 22,25 27,66 55,41 57,88 112,69 69,177 136,138 136,138 287,114 134,275 268,248 "
    "268,248 232,504 445,416 640,640 812,393 477,808 1070,908 1408,1408"
)

# YOLOv7-W6, E6, D6, E6E.
ANCHORS_W6 = _pairs("19,27 44,40 38,94 96,68 86,152 180,137 140,301 303,264 238,542 436,615 739,380 925,792")


def _cells(text: str) -> Anchors:
    """YOLOv2 lists its anchors in cells of 32 pixels."""
    return tuple((width * 32, height * 32) for width, height in _pairs(text))


ANCHORS_V2 = _cells("0.57273,0.677385 1.87446,2.06253 3.33843,5.47434 7.88282,3.52778 9.77052,9.16828")
ANCHORS_V2_VOC = _cells("1.3221,1.73145 3.19275,4.00944 5.05587,8.09892 9.47112,4.84053 11.2364,10.0071")


def level_masks(levels: int, per_level: int = 3) -> Masks:
    """Positions in a list of anchors by level, where every level has as many of its own."""
    return tuple(tuple(range(level * per_level, (level + 1) * per_level)) for level in range(levels))
