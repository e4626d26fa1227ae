"""Detections drawn on a picture, readable on a thumbnail and on an aerial photograph alike."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from scaledyolo.outputs.records import class_names_of

if TYPE_CHECKING:
    from supervision import Color, Detections

# Line and letter sizes grow with the geometric mean of the sides; these give 2 px lines and 13 px letters at 640 x 480.
_LINE_PER_SIDE = 1 / 280
_LETTER_PER_SIDE = 1 / 42
_SMALLEST_LETTER, _LARGEST_LETTER = 9, 160
# Height of a capital letter of OpenCV's Hershey font at scale 1.
_FONT_HEIGHT = 22
# Above this perceived brightness of the background (ITU-R BT.601, 0 to 255), black letters read better than white ones.
_BRIGHT = 140


class Annotator:
    """Draws boxes and labels with supervision's annotators; colours stand for classes (or tracks, when there
    are any)."""

    def __init__(self, *, labels: bool = True, confidences: bool = True) -> None:
        self.labels = labels
        self.confidences = confidences
        self._drawers: dict[tuple[int, int, bool, bool], tuple] = {}

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
            drawn: Detections = detections[np.argsort(-detections.area, kind="stable")]  # type: ignore[assignment]
            texts = self._texts(drawn)
            unicode = any(not text.isascii() for text in texts)
            boxes, labels = self._drawer(image.shape[0], image.shape[1], drawn.tracker_id is not None, unicode)
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

    def _drawer(self, height: int, width: int, tracked: bool, unicode: bool) -> tuple:
        """Annotators for one image size; OpenCV's font has ASCII only, other names are drawn by Pillow."""
        import supervision as sv

        key = (height, width, tracked, unicode)
        if key not in self._drawers:
            side = (height * width) ** 0.5
            thickness = max(1, round(side * _LINE_PER_SIDE))
            letter = min(max(side * _LETTER_PER_SIDE, _SMALLEST_LETTER), _LARGEST_LETTER)
            palette = sv.ColorPalette.DEFAULT
            ink = sv.ColorPalette([_ink_on(color) for color in palette.colors])
            common = {"color": palette, "text_color": ink, "text_padding": max(2, round(letter / 3))}
            common |= {"smart_position": False}
            if unicode:
                text = sv.RichLabelAnnotator(font_size=round(letter * 1.35), **common)
            else:
                scale = letter / _FONT_HEIGHT
                text = sv.LabelAnnotator(text_scale=scale, text_thickness=max(1, round(scale * 1.6)), **common)
            self._drawers = {key: (sv.BoxAnnotator(palette, thickness), text)}
        return self._drawers[key]


def _color_lookup(detections: Detections) -> np.ndarray:
    """Index into the palette: the track when there is one, so that neighbours of one class can be told apart."""
    ids = detections.tracker_id if detections.tracker_id is not None else detections.class_id
    indices = np.zeros(len(detections), int) if ids is None else np.asarray(ids, int)
    return np.abs(indices)


def _ink_on(color: Color) -> Color:
    """Black or white, whichever can be read on ``color``."""
    import supervision as sv

    brightness = 0.299 * color.r + 0.587 * color.g + 0.114 * color.b
    return sv.Color.BLACK if brightness > _BRIGHT else sv.Color.WHITE
