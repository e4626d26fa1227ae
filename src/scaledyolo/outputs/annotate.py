"""Detections drawn on a picture, readable on a thumbnail and on an aerial photograph alike."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from scaledyolo.outputs.records import class_names_of

if TYPE_CHECKING:
    from supervision import BoxAnnotator, Color, Detections, RichLabelAnnotator

# Line and letter sizes grow with the geometric mean of the sides; these give 2 px lines and 18 px letters at
# 640 x 480.
_LINE_PER_SIDE = 1 / 280
_LETTER_PER_SIDE = 1 / 31
_SMALLEST_LETTER, _LARGEST_LETTER = 11, 200
# Pushing labels apart takes quadratic time, and among more labels than this no order can be seen anyway.
_MAX_LABELS_APART = 40
# Above this perceived brightness of the background (ITU-R BT.601, 0 to 255), black letters read better than white ones.
_BRIGHT = 140


class Annotator:
    """Draws boxes and labels with supervision's annotators; colours stand for classes (or tracks, when there
    are any)."""

    def __init__(self, *, labels: bool = True, confidences: bool = True, font_path: str | None = None) -> None:
        """Keep the style.

        Args:
            labels: write the class beside each box.
            confidences: write the confidence behind the class.
            font_path: TrueType font for the labels; needed for scripts that DejaVu Sans lacks (CJK, ...).
        """
        self.labels = labels
        self.confidences = confidences
        self.font_path = font_path

    def draw(self, image: np.ndarray, detections: Detections) -> np.ndarray:
        """Return an annotated copy.

        Args:
            image: H x W x 3, uint8, RGB.
            detections: xyxy in pixels of this image; class_id chooses the colour.

        Returns:
            H x W x 3, uint8, RGB.
        """
        # supervision colours are BGR, like everything in OpenCV.
        scene = np.ascontiguousarray(image[:, :, ::-1])
        if len(detections):
            # Small boxes last, so that no large one hides their labels.
            drawn: Detections = detections[np.argsort(-detections.area, kind="stable")]
            texts = self._texts(drawn)
            font = self.font_path or _font_for(texts)
            boxes, labels = _drawers(image.shape[:2], len(drawn) <= _MAX_LABELS_APART, font)
            lookup = _color_lookup(drawn)
            scene = boxes.annotate(scene, drawn, custom_color_lookup=lookup)
            if self.labels:
                scene = labels.annotate(scene, drawn, labels=texts, custom_color_lookup=lookup)
        return np.ascontiguousarray(scene[:, :, ::-1])

    def _texts(self, detections: Detections) -> list[str]:
        texts = class_names_of(detections)
        if detections.tracker_id is not None:
            texts = [f"#{int(track)} {text}" for track, text in zip(detections.tracker_id, texts, strict=True)]
        if self.confidences and detections.confidence is not None:
            texts = [f"{text} {value:.2f}" for text, value in zip(texts, detections.confidence, strict=True)]
        return [" ".join(text.split()) for text in texts]


def _font_for(texts: Sequence[str]) -> str | None:
    """None, which is Pillow's own font, for ASCII: it has no accents even. Else the font that matplotlib brings."""
    if all(map(str.isascii, texts)):
        return None
    import matplotlib

    return str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf")


@functools.lru_cache(maxsize=8)
def _drawers(size: tuple[int, int], apart: bool, font_path: str | None) -> tuple[BoxAnnotator, RichLabelAnnotator]:
    """Annotators for one image size. Pillow draws the text: OpenCV's font is thin and knows ASCII only."""
    import supervision as sv

    side = (size[0] * size[1]) ** 0.5
    letter = min(max(round(side * _LETTER_PER_SIDE), _SMALLEST_LETTER), _LARGEST_LETTER)
    palette = sv.ColorPalette.DEFAULT
    labels = sv.RichLabelAnnotator(
        color=palette,
        text_color=sv.ColorPalette([_ink_on(color) for color in palette.colors]),
        font_path=font_path,
        font_size=letter,
        text_padding=max(2, round(letter / 4)),
        smart_position=apart,  # moves labels off each other and into the picture
    )
    return sv.BoxAnnotator(palette, max(1, round(side * _LINE_PER_SIDE))), labels


def _color_lookup(detections: Detections) -> np.ndarray:
    """Index into the palette: the track when there is one, so that neighbours of one class can be told apart."""
    ids = detections.tracker_id if detections.tracker_id is not None else detections.class_id
    indices = np.zeros(len(detections), int) if ids is None else np.asarray(ids, int)
    return np.asarray(np.abs(indices))


def _ink_on(color: Color) -> Color:
    """Black or white, whichever can be read on ``color``."""
    import supervision as sv

    brightness = 0.299 * color.r + 0.587 * color.g + 0.114 * color.b
    return sv.Color.BLACK if brightness > _BRIGHT else sv.Color.WHITE
