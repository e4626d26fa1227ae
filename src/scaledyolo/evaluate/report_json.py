"""The figures of a report as plain JSON values; what is undefined is null."""

from __future__ import annotations

from dataclasses import asdict
from math import isnan
from typing import Any

import numpy as np

from scaledyolo.evaluate.analysis import Analysis
from scaledyolo.evaluate.arrays import GroundTruth
from scaledyolo.evaluate.bootstrap import ApBootstrap, Interval, PairedComparison, PairedDifference
from scaledyolo.evaluate.coco import RECALL_POINTS
from scaledyolo.evaluate.curves import ConfidenceCurves

FORMAT_VERSION = 1
_CURVE_STEP = 10  # every tenth threshold is plenty for a plot


def analysis_as_json(
    analysis: Analysis, truth: GroundTruth, comparison: PairedComparison | None = None
) -> dict[str, Any]:
    """Everything in the report but the pictures."""
    content: dict[str, Any] = plain(
        {
            "format_version": FORMAT_VERSION,
            "protocol": asdict(analysis.protocol),
            "num_images": truth.num_images,
            "num_objects": int(truth.class_counts().sum()),
            "coco": analysis.coco.figures(),
            "AP50_area": analysis.ap50_area,
            "intervals": _intervals(analysis.intervals),
            "comparison": _comparison(comparison, truth) if comparison else None,
            "classes": _classes(analysis, truth),
            "thresholds": {
                "best_f1": asdict(analysis.curves.best_f1()),
                "best_f1_by_class": {
                    name: asdict(analysis.curves.best_f1(k)) for k, name in enumerate(truth.class_names)
                },
            },
            "curves": _curves(analysis),
            "confusion_matrix": {
                "labels": [*truth.class_names, "background"],
                "counts": analysis.confusion.counts,
                "confidence": analysis.confusion.confidence,
                "iou": analysis.confusion.iou,
            },
            "errors": {
                "confidence": analysis.errors.confidence,
                "iou": analysis.errors.iou,
                "background_iou": analysis.errors.background_iou,
                "correct": analysis.errors.num_correct,
                "counts": {kind.name.lower(): value for kind, value in analysis.errors.counts.items()},
                "delta_ap": {kind.name.lower(): value for kind, value in analysis.errors.delta_ap.items()},
            },
            "by_size": [asdict(bucket) for bucket in analysis.sizes],
            "by_aspect": [asdict(bucket) for bucket in analysis.aspects],
            "calibration": asdict(analysis.calibration),
            "worst_images": [
                {**asdict(one), "image": truth.image_ids[one.image]} for one in analysis.worst_images[:100]
            ],
        }
    )
    return content


def plain(value: Any) -> Any:
    """Arrays to lists, numpy numbers to Python's, nan to None."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.ndarray):
        return plain(value.tolist())
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float):
        return None if isnan(value) else value
    return value


def _intervals(intervals: ApBootstrap | None) -> dict[str, Any] | None:
    if intervals is None:
        return None
    named = {"AP": intervals.ap, "AP50": intervals.ap50, "AP75": intervals.ap75}
    return {
        "level": intervals.level,
        "num_resamples": intervals.num_resamples,
        "seed": intervals.seed,
        **{name: asdict(interval) for name, interval in named.items()},
    }


def _comparison(comparison: PairedComparison, truth: GroundTruth) -> dict[str, Any]:
    named: dict[str, PairedDifference] = {"AP": comparison.ap, "AP50": comparison.ap50, "AP75": comparison.ap75}
    return {
        "level": comparison.level,
        "num_resamples": comparison.num_resamples,
        "seed": comparison.seed,
        **{name: asdict(one) for name, one in named.items()},
        "classes": {name: asdict(one) for name, one in zip(truth.class_names, comparison.class_ap, strict=True)},
    }


def _classes(analysis: Analysis, truth: GroundTruth) -> list[dict[str, Any]]:
    coco, counts = analysis.coco, truth.class_counts()
    intervals: tuple[Interval | None, ...] = (None,) * truth.num_classes
    if analysis.intervals is not None:
        intervals = analysis.intervals.class_ap
    return [
        {
            "name": name,
            "category_id": truth.category_ids[k],
            "objects": counts[k],
            "AP": coco.class_ap[k],
            "AP50": coco.class_ap50[k],
            "AR_100": coco.class_ar[k],
            "AP_interval": [interval.low, interval.high] if interval else None,
        }
        for k, (name, interval) in enumerate(zip(truth.class_names, intervals, strict=True))
    ]


def _curves(analysis: Analysis) -> dict[str, Any]:
    curves: ConfidenceCurves = analysis.curves
    present = ~np.isnan(analysis.coco.precision[0, 0])
    precision = analysis.coco.precision[:, :, present]
    return {
        "iou": curves.iou,
        "confidence": curves.confidences[::_CURVE_STEP],
        "precision": curves.overall_precision[::_CURVE_STEP],
        "recall": curves.overall_recall[::_CURVE_STEP],
        "f1": curves.overall_f1[::_CURVE_STEP],
        "recall_points": RECALL_POINTS,
        "precision_at_recall_iou50": precision[0].mean(axis=1) if present.any() else None,
        "precision_at_recall_iou75": precision[5].mean(axis=1) if present.any() else None,
    }
