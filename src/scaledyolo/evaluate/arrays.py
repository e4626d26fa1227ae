"""Ground truth and predictions of a data set, in flat arrays: all that the metrics know about data or models.

A flat array has one row per box of the whole data set and an ``image_index`` that says whose it is. Nothing here is per
image a Python object, so a million detections cost a few dozen megabytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scaledyolo.boxes import area
from scaledyolo.errors import DataError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, eq=False)
class GroundTruth:
    """What there is to find: images, classes and boxes.

    Raises :class:`DataError` when arrays disagree in length, an index points nowhere or a box is not finite.
    """

    class_names: tuple[str, ...]
    image_ids: tuple[int | str, ...]  # original ids, for people and for results files
    image_sizes: IntArray  # (images, 2): width, height in pixels
    image_index: IntArray  # (boxes,): row of image_ids
    boxes_xyxy: FloatArray  # (boxes, 4): pixels of the original image
    class_ids: IntArray  # (boxes,): row of class_names
    crowd: BoolArray  # (boxes,): COCO's iscrowd; such a region is never missed and excuses detections inside it
    areas: FloatArray  # (boxes,): object area in square pixels (COCO's field, else that of the box)
    category_ids: tuple[int, ...]  # (classes,): ids of the classes in the original data set

    def __post_init__(self) -> None:
        num_boxes = len(self.image_index)
        if not self.class_names:
            raise DataError("the ground truth names no class; a metric needs at least one")
        if len(self.category_ids) != len(self.class_names):
            raise DataError(f"{len(self.category_ids)} category ids were given for {len(self.class_names)} class names")
        if self.image_sizes.shape != (len(self.image_ids), 2):
            raise DataError(f"image sizes must have shape ({len(self.image_ids)}, 2), got {self.image_sizes.shape}")
        for what, values in (("class ids", self.class_ids), ("crowd flags", self.crowd), ("areas", self.areas)):
            if len(values) != num_boxes:
                raise DataError(f"{len(values)} {what} were given for {num_boxes} ground-truth boxes")
        _check_boxes(
            "ground truth", self.boxes_xyxy, self.image_index, self.class_ids, self.num_images, self.num_classes
        )

    @property
    def num_images(self) -> int:
        """Images, with or without objects."""
        return len(self.image_ids)

    @property
    def num_classes(self) -> int:
        """Classes, with or without objects."""
        return len(self.class_names)

    def class_counts(self) -> IntArray:
        """Objects of each class, crowds not counted: int64 (classes,)."""
        return np.bincount(self.class_ids[~self.crowd], minlength=self.num_classes).astype(np.int64)


@dataclass(frozen=True, slots=True, eq=False)
class Predictions:
    """What a detector said, in the pixels of the original images; rows may be in any order.

    Raises :class:`DataError` when arrays disagree in length, an index points nowhere or a value is not finite.
    """

    num_images: int
    num_classes: int
    image_index: IntArray  # (detections,)
    boxes_xyxy: FloatArray  # (detections, 4)
    scores: FloatArray  # (detections,): 0 to 1
    class_ids: IntArray  # (detections,)

    def __post_init__(self) -> None:
        for what, values in (("class ids", self.class_ids), ("scores", self.scores)):
            if len(values) != len(self.image_index):
                raise DataError(f"{len(values)} {what} were given for {len(self.image_index)} predictions")
        _check_boxes(
            "predictions", self.boxes_xyxy, self.image_index, self.class_ids, self.num_images, self.num_classes
        )
        if not np.isfinite(self.scores).all():
            raise DataError(f"prediction {int(np.argmin(np.isfinite(self.scores)))} has a score that is not finite")

    def __len__(self) -> int:
        return len(self.scores)

    def select(self, rows: NDArray[Any]) -> Predictions:
        """Only these rows (a boolean mask or indices), in that order."""
        return Predictions(
            self.num_images,
            self.num_classes,
            self.image_index[rows],
            self.boxes_xyxy[rows],
            self.scores[rows],
            self.class_ids[rows],
        )

    def above(self, confidence: float) -> Predictions:
        """Only detections with at least this score."""
        return self.select(self.scores >= confidence)


def check_pair(truth: GroundTruth, predictions: Predictions) -> None:
    """Raise :class:`DataError` unless both speak of the same number of images and classes."""
    for what, expected, found in (
        ("images", truth.num_images, predictions.num_images),
        ("classes", truth.num_classes, predictions.num_classes),
    ):
        if expected != found:
            raise DataError(f"the ground truth has {expected} {what} but the predictions were made for {found}")


def ground_truth_from_lists(
    class_names: Sequence[str],
    image_sizes: Sequence[tuple[int, int]],
    boxes_xyxy: Sequence[ArrayLike],
    class_ids: Sequence[ArrayLike],
    *,
    crowd: Sequence[ArrayLike] | None = None,
    areas: Sequence[ArrayLike] | None = None,
    image_ids: Sequence[int | str] | None = None,
    category_ids: Sequence[int] | None = None,
) -> GroundTruth:
    """Ground truth from one entry per image: sizes (width, height), boxes (n, 4) and class ids (n,).

    Without ``crowd`` nothing is a crowd; without ``areas`` a box's own area counts; ids default to positions.
    """
    index, boxes = _flatten("ground truth", boxes_xyxy, len(image_sizes))
    return GroundTruth(
        class_names=tuple(class_names),
        image_ids=tuple(range(len(image_sizes)) if image_ids is None else image_ids),
        image_sizes=np.asarray(image_sizes, dtype=np.int64).reshape(-1, 2),
        image_index=index,
        boxes_xyxy=boxes,
        class_ids=_concatenate(class_ids, np.int64),
        crowd=np.zeros(len(boxes), dtype=bool) if crowd is None else _concatenate(crowd, np.bool_),
        areas=area(boxes) if areas is None else _concatenate(areas, np.float64),
        category_ids=tuple(range(len(class_names)) if category_ids is None else category_ids),
    )


def predictions_from_lists(
    boxes_xyxy: Sequence[ArrayLike], scores: Sequence[ArrayLike], class_ids: Sequence[ArrayLike], *, num_classes: int
) -> Predictions:
    """Predictions from one entry per image: boxes (n, 4), scores (n,) and class ids (n,); an image may have none."""
    index, boxes = _flatten("predictions", boxes_xyxy, len(boxes_xyxy))
    return Predictions(
        num_images=len(boxes_xyxy),
        num_classes=num_classes,
        image_index=index,
        boxes_xyxy=boxes,
        scores=_concatenate(scores, np.float64),
        class_ids=_concatenate(class_ids, np.int64),
    )


def _concatenate(parts: Sequence[ArrayLike], dtype: type[np.generic]) -> NDArray[Any]:
    arrays = [np.asarray(part, dtype=dtype).reshape(-1) for part in parts]
    return np.concatenate(arrays) if arrays else np.zeros(0, dtype=dtype)


def _flatten(what: str, boxes_xyxy: Sequence[ArrayLike], num_images: int) -> tuple[IntArray, FloatArray]:
    """Image index (n,) and boxes (n, 4) of per-image lists."""
    if len(boxes_xyxy) != num_images:
        raise DataError(f"the {what} give boxes for {len(boxes_xyxy)} images but sizes for {num_images}")
    arrays = [np.asarray(boxes, dtype=np.float64).reshape(-1, 4) for boxes in boxes_xyxy]
    index = np.repeat(np.arange(num_images), [len(boxes) for boxes in arrays]).astype(np.int64)
    return index, np.concatenate(arrays) if arrays else np.zeros((0, 4))


def _check_boxes(
    what: str, boxes_xyxy: FloatArray, image_index: IntArray, class_ids: IntArray, num_images: int, num_classes: int
) -> None:
    if boxes_xyxy.shape != (len(image_index), 4):
        raise DataError(f"the boxes of the {what} must have shape ({len(image_index)}, 4), got {boxes_xyxy.shape}")
    for name, values, limit in (("image index", image_index, num_images), ("class id", class_ids, num_classes)):
        outside = (values < 0) | (values >= limit)
        if outside.any():
            row = int(np.argmax(outside))
            raise DataError(f"box {row} of the {what} has {name} {int(values[row])}, allowed are 0 to {limit - 1}")
    finite = np.isfinite(boxes_xyxy).all(axis=1)
    if not finite.all():
        row = int(np.argmin(finite))
        raise DataError(f"box {row} of the {what} is not finite: {boxes_xyxy[row].tolist()}")
