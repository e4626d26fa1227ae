"""Ground truth and predictions of a data set, in flat arrays: all that the metrics know about data or models.

A flat array has one row per box of the whole data set and an ``image_index`` that says whose it is. Nothing here is per
image a Python object, so a million detections cost a few dozen megabytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
from numpy.typing import ArrayLike, NDArray

from scaledyolo.boxes import area, tlwh_to_xyxy, xyxy_to_tlwh
from scaledyolo.errors import DataError

FloatArray = NDArray[np.float64]
IntArray = NDArray[np.int64]
BoolArray = NDArray[np.bool_]


class DetectionsLike(Protocol):
    """The part of ``supervision.Detections`` that is read here."""

    xyxy: Any
    confidence: Any
    class_id: Any


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


def ground_truth_from_coco(dataset: Mapping[str, Any]) -> GroundTruth:
    """Ground truth from a parsed COCO annotation file; categories keep the order of the file.

    Raises :class:`DataError` for an annotation of an unknown image or category.
    """
    images, categories, annotations = dataset["images"], dataset["categories"], dataset["annotations"]
    image_rows = {image["id"]: row for row, image in enumerate(images)}
    class_rows = {category["id"]: row for row, category in enumerate(categories)}
    for annotation in annotations:
        if annotation["image_id"] not in image_rows or annotation["category_id"] not in class_rows:
            raise DataError(
                f"annotation {annotation.get('id')} belongs to image {annotation['image_id']} and category "
                f"{annotation['category_id']}, of which the file does not list both"
            )
    boxes_tlwh = np.array([a["bbox"] for a in annotations], dtype=np.float64).reshape(-1, 4)
    return GroundTruth(
        class_names=tuple(str(category["name"]) for category in categories),
        image_ids=tuple(image_rows),
        image_sizes=np.array([(i["width"], i["height"]) for i in images], dtype=np.int64).reshape(-1, 2),
        image_index=np.array([image_rows[a["image_id"]] for a in annotations], dtype=np.int64),
        boxes_xyxy=tlwh_to_xyxy(boxes_tlwh),
        class_ids=np.array([class_rows[a["category_id"]] for a in annotations], dtype=np.int64),
        crowd=np.array([bool(a.get("iscrowd", 0)) for a in annotations], dtype=bool),
        areas=np.array([a.get("area", a["bbox"][2] * a["bbox"][3]) for a in annotations], dtype=np.float64),
        category_ids=tuple(class_rows),
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


def predictions_from_detections(detections: Sequence[DetectionsLike], *, num_classes: int) -> Predictions:
    """Predictions from one ``supervision.Detections`` per image, as a detector returns them."""
    return predictions_from_lists(
        [one.xyxy for one in detections],
        [one.confidence if one.confidence is not None else () for one in detections],
        [one.class_id if one.class_id is not None else () for one in detections],
        num_classes=num_classes,
    )


def predictions_from_coco(results: Sequence[Mapping[str, Any]], truth: GroundTruth) -> Predictions:
    """Predictions from a parsed COCO results file, whose ids are those of ``truth``.

    Raises :class:`DataError` for an id that the ground truth does not know.
    """
    image_rows = {identity: row for row, identity in enumerate(truth.image_ids)}
    class_rows = {identity: row for row, identity in enumerate(truth.category_ids)}
    for number, result in enumerate(results):
        if result["image_id"] not in image_rows or result["category_id"] not in class_rows:
            raise DataError(
                f"result {number} speaks of image {result['image_id']} and category {result['category_id']}, "
                "of which the ground truth does not know both"
            )
    return Predictions(
        num_images=truth.num_images,
        num_classes=truth.num_classes,
        image_index=np.array([image_rows[r["image_id"]] for r in results], dtype=np.int64),
        boxes_xyxy=tlwh_to_xyxy(np.array([r["bbox"] for r in results], dtype=np.float64).reshape(-1, 4)),
        scores=np.array([r["score"] for r in results], dtype=np.float64),
        class_ids=np.array([class_rows[r["category_id"]] for r in results], dtype=np.int64),
    )


def predictions_to_coco(predictions: Predictions, truth: GroundTruth) -> list[dict[str, Any]]:
    """Rows of a COCO results file: original ids, boxes with 3 decimals, scores with 5 (training spec 5.3)."""
    check_pair(truth, predictions)
    boxes_tlwh = xyxy_to_tlwh(predictions.boxes_xyxy).round(3).tolist()
    return [
        {"image_id": truth.image_ids[image], "category_id": truth.category_ids[class_id], "bbox": box, "score": score}
        for image, class_id, box, score in zip(
            predictions.image_index,
            predictions.class_ids,
            boxes_tlwh,
            predictions.scores.round(5).tolist(),
            strict=True,
        )
    ]


def concatenate_predictions(several: Sequence[Predictions]) -> Predictions:
    """The detections of several models or passes side by side; one NMS makes them an ensemble (training spec 6.2)."""
    if not several:
        raise DataError("there are no predictions to put together")
    first = several[0]
    for other in several[1:]:
        if (other.num_images, other.num_classes) != (first.num_images, first.num_classes):
            raise DataError(
                f"predictions for {first.num_images} images and {first.num_classes} classes cannot be put together "
                f"with some for {other.num_images} images and {other.num_classes} classes"
            )
    return Predictions(
        first.num_images,
        first.num_classes,
        np.concatenate([one.image_index for one in several]),
        np.concatenate([one.boxes_xyxy for one in several]),
        np.concatenate([one.scores for one in several]),
        np.concatenate([one.class_ids for one in several]),
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
