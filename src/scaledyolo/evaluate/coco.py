"""COCO's twelve figures, computed by faster-coco-eval (a C++ form of pycocotools; equal to it, which a test proves)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np

from scaledyolo.boxes import xyxy_to_tlwh
from scaledyolo.errors import MissingPackageError
from scaledyolo.evaluate.arrays import FloatArray, GroundTruth, Predictions, check_pair

# Names in pycocotools' order of output.
FIGURE_NAMES = (
    "AP",
    "AP50",
    "AP75",
    "AP_small",
    "AP_medium",
    "AP_large",
    "AR_1",
    "AR_10",
    "AR_100",
    "AR_small",
    "AR_medium",
    "AR_large",
)
_FIELDS = tuple(name.lower() for name in FIGURE_NAMES)
# Spelt as pycocotools does, to the last bit: a recall that meets a point exactly must count as it does there.
IOU_THRESHOLDS: FloatArray = np.linspace(0.5, 0.95, 10)
RECALL_POINTS: FloatArray = np.linspace(0.0, 1.0, 101)
_ALL_AREAS, _MOST_DETECTIONS = 0, -1


@dataclass(frozen=True, slots=True, eq=False)
class CocoMetrics:
    """The result of a COCO evaluation; ``nan`` stands where there was nothing to find (pycocotools says -1)."""

    class_names: tuple[str, ...]
    ap: float  # mean over IoU 0.50:0.05:0.95 and classes with ground truth
    ap50: float
    ap75: float
    ap_small: float  # areas up to 32²
    ap_medium: float  # 32² to 96²
    ap_large: float
    ar_1: float  # average recall with at most 1 detection per image and class
    ar_10: float
    ar_100: float
    ar_small: float
    ar_medium: float
    ar_large: float
    class_ap: FloatArray  # (classes,)
    class_ap50: FloatArray  # (classes,)
    class_ar: FloatArray  # (classes,): at most 100 detections
    precision: FloatArray  # (IoU thresholds 10, recall points 101, classes), interpolated; all areas
    scores: FloatArray  # same shape: the confidence at which that recall is reached, 0 where it never is

    def figures(self) -> dict[str, float]:
        """The twelve figures by name, in pycocotools' order."""
        precisions = (self.ap, self.ap50, self.ap75, self.ap_small, self.ap_medium, self.ap_large)
        recalls = (self.ar_1, self.ar_10, self.ar_100, self.ar_small, self.ar_medium, self.ar_large)
        return dict(zip(FIGURE_NAMES, precisions + recalls, strict=True))


def coco_metrics(truth: GroundTruth, predictions: Predictions) -> CocoMetrics:
    """Evaluate as COCO does: IoU 0.50:0.05:0.95, 101 recall points, at most 100 detections per image and class.

    Raises:
        MissingPackageError: faster-coco-eval is not installed.
        DataError: the two do not speak of the same images and classes.
    """
    check_pair(truth, predictions)
    if truth.num_images == 0:
        return _nothing_to_find(truth)
    coco_class, evaluator_class = coco_library()
    coco_truth = coco_class(_truth_as_coco(truth))
    coco_predictions = coco_class(_predictions_as_coco(truth, predictions))
    evaluator = evaluator_class(coco_truth, coco_predictions, iouType="bbox", print_function=_say_nothing)
    evaluator.params.imgIds = list(range(1, truth.num_images + 1))
    evaluator.run()
    figures = {name: _nan_if_undefined(value) for name, value in zip(_FIELDS, evaluator.stats, strict=True)}
    precision = _undefined_to_nan(evaluator.eval["precision"][:, :, :, _ALL_AREAS, _MOST_DETECTIONS])
    recall = _undefined_to_nan(evaluator.eval["recall"][:, :, _ALL_AREAS, _MOST_DETECTIONS])
    scores = np.maximum(evaluator.eval["scores"][:, :, :, _ALL_AREAS, _MOST_DETECTIONS], 0.0)
    return CocoMetrics(
        class_names=truth.class_names,
        **figures,
        class_ap=precision.mean(axis=(0, 1)),
        class_ap50=precision[0].mean(axis=0),
        class_ar=recall.mean(axis=0),
        precision=precision,
        scores=scores,
    )


def coco_library() -> tuple[Any, Any]:
    """faster-coco-eval's data set and evaluator; whoever needs them after hours of work asks before.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        from faster_coco_eval import COCO, COCOeval_faster
    except ImportError as error:
        raise MissingPackageError(
            "COCO metrics need faster-coco-eval; install it with: pip install 'scaledyolo[train]'"
        ) from error
    return COCO, COCOeval_faster


def _say_nothing(*_: object) -> None:
    """In place of the library's progress messages."""


def _frame(truth: GroundTruth) -> dict[str, Any]:
    """Images and categories with ids from 1: pycocotools takes a match with annotation 0 for none at all."""
    sizes = truth.image_sizes.tolist()
    return {
        "images": [{"id": row + 1, "width": width, "height": height} for row, (width, height) in enumerate(sizes)],
        "categories": [{"id": row + 1, "name": name} for row, name in enumerate(truth.class_names)],
    }


def _truth_as_coco(truth: GroundTruth) -> dict[str, Any]:
    columns = zip(
        truth.image_index.tolist(),
        truth.class_ids.tolist(),
        xyxy_to_tlwh(truth.boxes_xyxy).tolist(),
        truth.areas.tolist(),
        truth.crowd.tolist(),
        strict=True,
    )
    annotations = [
        {"id": row + 1, "image_id": i + 1, "category_id": c + 1, "bbox": box, "area": area, "iscrowd": int(crowd)}
        for row, (i, c, box, area, crowd) in enumerate(columns)
    ]
    return _frame(truth) | {"annotations": annotations}


def _predictions_as_coco(truth: GroundTruth, predictions: Predictions) -> dict[str, Any]:
    columns = zip(
        predictions.image_index.tolist(),
        predictions.class_ids.tolist(),
        xyxy_to_tlwh(predictions.boxes_xyxy).tolist(),
        predictions.scores.tolist(),
        strict=True,
    )
    annotations = [
        {
            "id": row + 1,
            "image_id": i + 1,
            "category_id": c + 1,
            "bbox": box,
            "area": box[2] * box[3],
            "iscrowd": 0,
            "score": score,
        }
        for row, (i, c, box, score) in enumerate(columns)
    ]
    return _frame(truth) | {"annotations": annotations}


def _nan_if_undefined(value: float) -> float:
    return float("nan") if value < 0 else float(value)


def _undefined_to_nan(values: Any) -> FloatArray:
    array = np.array(values, dtype=np.float64)
    array[array < 0] = np.nan
    return array


def _nothing_to_find(truth: GroundTruth) -> CocoMetrics:
    shape = (len(IOU_THRESHOLDS), len(RECALL_POINTS), truth.num_classes)
    unknown = np.full(truth.num_classes, np.nan)
    return CocoMetrics(
        class_names=truth.class_names,
        **dict.fromkeys(_FIELDS, float("nan")),
        class_ap=unknown,
        class_ap50=unknown,
        class_ar=unknown,
        precision=np.full(shape, np.nan),
        scores=np.zeros(shape),
    )
