"""What several views of one image found becomes one list: suppressed together, or fused by weighted boxes.

Concatenating candidates and suppressing once (training spec 6.2) needs nothing of the networks but equal classes. The
alternative lets them agree on a box instead of the best one shouting the others down: R. Solovyev, W. Wang, T.
Gabruseva: Weighted boxes fusion: Ensembling boxes from different object detection models (Image and Vision Computing
107, 2021; arXiv 1910.13302), section 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal, get_args

import numpy as np
from array_api_compat import array_namespace
from numpy.typing import NDArray

from scaledyolo.boxes import iou_matrix
from scaledyolo.errors import UsageError, nearest
from scaledyolo.postprocess.candidates import Candidates
from scaledyolo.postprocess.nms import NMS, suppress

FloatArray = NDArray[np.float64]
Merge = Literal["nms", "wbf"]
# Best boxes of a view that enter fusion even where fewer are asked for: what ranks low in each may rank high fused.
MIN_PER_VIEW = 300


def check_merge(merge: str, nms: NMS, num_views: int) -> None:
    """Refuse a way to merge that does not exist or does not fit.

    Raises:
        UsageError: names the known ones, or says what does not fit.
    """
    if merge not in get_args(Merge):
        known = get_args(Merge)
        raise UsageError(f"views are merged by {' or '.join(known)}, not by {merge!r}.{nearest(merge, known)}")
    if merge == "wbf" and num_views < 2:
        raise UsageError("weighted boxes fusion (wbf) needs several views: test-time augmentation, or an ensemble")
    if merge == "wbf" and nms.class_agnostic:
        raise UsageError("weighted boxes fusion (wbf) works class by class; use nms where classes suppress each other")


def merge_views(views: Sequence[Candidates], nms: NMS, merge: Merge = "nms", confidence: float = 0.0) -> Candidates:
    """The detections of one image from the candidates of each view of it.

    Args:
        views: at least one, in pixels of the same frame.
        nms: suppression; by "nms" once over all candidates, by "wbf" in each view before fusion.
        merge: "nms" or "wbf".
        confidence: a fused score, which is lower than its members' where views disagree, must be greater.

    Returns:
        By descending score, at most ``nms.max_detections``.
    """
    if merge == "nms":
        return suppress(_concatenate(views), nms)
    limit = None if nms.max_detections is None else max(nms.max_detections, MIN_PER_VIEW)
    in_view = replace(nms, max_detections=limit)
    fused = weighted_box_fusion([suppress(found, in_view) for found in views])
    return fused.take(fused.scores > confidence).take(slice(nms.max_detections))


def _concatenate(views: Sequence[Candidates]) -> Candidates:
    if len(views) == 1:
        return views[0]
    xp = array_namespace(views[0].boxes_xyxy)
    boxes_xyxy, scores, class_ids = (
        xp.concat(parts, axis=0)
        for parts in zip(*((one.boxes_xyxy, one.scores, one.class_ids) for one in views), strict=True)
    )
    return Candidates(boxes_xyxy, scores, class_ids)


def weighted_box_fusion(
    views: Sequence[Candidates], *, weights: Sequence[float] | None = None, iou: float = 0.55
) -> Candidates:
    """Fuse the detections of several models (or passes) in one image, class by class.

    From the highest score down, a box joins the cluster whose fused box it overlaps most, by more than ``iou``, or
    founds one. A fused box is the mean of its members weighted by score; its score is their mean score times min(T,
    N) / N for T members and N models (equations 1 to 5), so what a single model saw loses.

    Args:
        views: detections of N models in the same frame, NumPy arrays; run each through NMS first.
        weights: (N,) trust in each model; all equal if not given. Scores are multiplied by them, and N in the
            denominator becomes their sum.
        iou: overlap above which two boxes are taken for the same object.

    Returns:
        Fused detections by descending score, of the dtypes of the first view.

    Raises:
        UsageError: no views, or weights that do not fit them.
    """
    trust = np.ones(len(views)) if weights is None else np.asarray(weights, dtype=np.float64)
    if len(trust) != len(views) or not np.isfinite(trust).all() or (trust < 0).any() or trust.sum() <= 0:
        raise UsageError(
            f"fusing {len(views)} models needs as many weights, none negative and not all 0; got {weights}"
        )
    together = _concatenate(views)
    weighted = np.asarray(together.scores, np.float64) * np.repeat(trust, [len(one) for one in views])
    boxes_xyxy, scores, class_ids = [np.zeros((0, 4))], [np.zeros(0)], [np.zeros(0, np.int64)]
    order = np.argsort(-weighted, kind="stable")
    for class_id in np.unique(together.class_ids):
        rows = order[together.class_ids[order] == class_id]
        fused, means, members = _fuse_class(np.asarray(together.boxes_xyxy[rows], np.float64), weighted[rows], iou)
        boxes_xyxy.append(fused)
        scores.append(means * np.minimum(members, len(views)) / trust.sum())
        class_ids.append(np.full(len(fused), class_id))
    found = Candidates(
        np.concatenate(boxes_xyxy).astype(together.boxes_xyxy.dtype),
        np.concatenate(scores).astype(together.scores.dtype),
        np.concatenate(class_ids),
    )
    return found.take(np.argsort(-found.scores, kind="stable"))


def _fuse_class(boxes_xyxy: NDArray[Any], scores: FloatArray, iou: float) -> tuple[FloatArray, FloatArray, FloatArray]:
    """Fused boxes (c, 4), mean scores (c,) and members (c,) of one class; boxes (n, 4) by falling score."""
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
