"""Weighted boxes fusion: several detectors agree on a box instead of the best one shouting the others down.

R. Solovyev, W. Wang, T. Gabruseva: Weighted boxes fusion: Ensembling boxes from different object detection models
(Image and Vision Computing 107, 2021; arXiv 1910.13302), section 3.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from scaledyolo.boxes import iou_matrix
from scaledyolo.errors import UsageError
from scaledyolo.evaluate.arrays import FloatArray, Predictions, concatenate_predictions


def weighted_box_fusion(
    several: Sequence[Predictions],
    *,
    weights: Sequence[float] | None = None,
    iou: float = 0.55,
    min_score: float = 0.0,
) -> Predictions:
    """Fuse the detections of several models (or passes) image by image and class by class.

    From the highest score down, a box joins the cluster whose fused box it overlaps most, by more than ``iou``, or
    founds one. A fused box is the mean of its members weighted by score; its score is their mean score times min(T,
    N) / N for T members and N models (equations 1 to 5), so what a single model saw loses.

    Args:
        several: predictions of N models for the same images; run each through NMS first.
        weights: (N,) trust in each model; all equal if not given. Scores are multiplied by them, and N in the
            denominator becomes their sum.
        iou: overlap above which two boxes are taken for the same object.
        min_score: detections below are dropped first.

    Returns:
        Fused predictions, by image, class and falling score.
    """
    together = concatenate_predictions(several)
    trust = np.ones(len(several)) if weights is None else np.asarray(weights, dtype=np.float64)
    if len(trust) != len(several) or not np.isfinite(trust).all() or (trust < 0).any() or trust.sum() <= 0:
        raise UsageError(
            f"fusing {len(several)} models needs as many weights, none negative and not all 0; got {weights}"
        )
    scores = together.scores * np.repeat(trust, [len(one) for one in several])
    rows = np.flatnonzero(together.scores >= min_score)
    rows = rows[np.lexsort((-scores[rows], together.class_ids[rows], together.image_index[rows]))]
    key = together.image_index[rows] * together.num_classes + together.class_ids[rows]
    keys, starts = np.unique(key, return_index=True)
    fused = []
    for group in np.split(rows, starts[1:]) if len(rows) else []:
        boxes_xyxy, mean_scores, members = _fuse_group(together.boxes_xyxy[group], scores[group], iou)
        final = mean_scores * np.minimum(members, len(several)) / trust.sum()
        order = np.argsort(-final, kind="stable")
        fused.append((boxes_xyxy[order], final[order]))
    counts = [len(group_scores) for _, group_scores in fused]
    image_index, class_ids = np.divmod(np.repeat(keys, counts), together.num_classes)
    return Predictions(
        together.num_images,
        together.num_classes,
        image_index.astype(np.int64),
        np.concatenate([boxes for boxes, _ in fused]) if fused else np.zeros((0, 4)),
        np.concatenate([group_scores for _, group_scores in fused]) if fused else np.zeros(0),
        class_ids.astype(np.int64),
    )


def _fuse_group(boxes_xyxy: FloatArray, scores: FloatArray, iou: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Fused boxes (c, 4), mean scores (c,) and members (c,) of one image and class; boxes (n, 4) by falling score."""
    weighted_sums = np.zeros((len(boxes_xyxy), 4))
    score_sums = np.zeros(len(boxes_xyxy))
    members = np.zeros(len(boxes_xyxy))
    fused = np.zeros((len(boxes_xyxy), 4))
    num_clusters = 0
    for box, score in zip(boxes_xyxy, np.maximum(scores, np.finfo(np.float64).tiny), strict=True):
        overlaps = iou_matrix(box[None], fused[:num_clusters])[0]
        best = int(overlaps.argmax()) if num_clusters else 0
        if num_clusters == 0 or overlaps[best] <= iou:
            best = num_clusters
            num_clusters += 1
        weighted_sums[best] += score * box
        score_sums[best] += score
        members[best] += 1
        fused[best] = weighted_sums[best] / score_sums[best]
    kept = slice(num_clusters)
    return fused[kept], score_sums[kept] / members[kept], members[kept]
