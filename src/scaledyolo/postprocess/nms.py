"""Non-maximum suppression: of many candidates for one object keep one.

All kinds are exact and have no time limit. Boxes of different classes never touch each other, whatever their size and
position (unless ``class_agnostic``): classes are compared, not shifted apart by an offset.

    greedy          keep the best, drop what overlaps it by IoU > t, repeat
    diou            the same with DIoU = IoU - d²/c²                     Zheng et al. 2020 (Distance-IoU Loss)
    darknet         the same with IoU - (d²/c²)^exponent                 Darknet's nms_kind greedynms and diounms
    cluster         the fixed point of the suppression matrix; it equals greedy   Zheng et al. 2021 (Cluster-NMS)
    merge           greedy, then each kept box becomes the score-weighted mean of all it overlaps by IoU > t, and itself
    soft-linear     score x (1 - IoU) where IoU > t, instead of dropping Bodla et al. 2017 (Soft-NMS)
    soft-gaussian   score x exp(-IoU²/sigma)                             Bodla et al. 2017
    matrix          all decays at once                                   Wang et al. 2020 (SOLOv2)

How greedy is fast and exact: candidates are taken in rounds of descending score. Within a round the pairs that overlap
(see :mod:`.pairs`) are resolved by fixed-point iteration, a handful of array operations instead of a loop over boxes;
the winners then remove what they overlap among the rest. A round is as large as a budget of pairs allows: in the common
case there is one. cv2.dnn.NMSBoxes was the alternative for NumPy: exact within a class, but some three times slower
with one call per class; its batched form is over a hundred times slower and separates classes by an offset.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from typing import Literal, get_args

from array_api_compat import array_namespace, device

from scaledyolo.boxes import TINY, Array, diou, distance_penalised_iou, iou
from scaledyolo.errors import UsageError, nearest
from scaledyolo.postprocess.candidates import Candidates
from scaledyolo.postprocess.pairs import BoxIndex, Overlap, count_windows, index_boxes, pairs_between, pairs_within
from scaledyolo.postprocess.rescore import matrix_scores, soft_scores

Kind = Literal["greedy", "diou", "darknet", "cluster", "merge", "soft-linear", "soft-gaussian", "matrix"]

# Pairs that one round may look at; bounds memory and keeps boxes that an earlier winner removes out of the count.
ROUND_PAIRS = 1 << 21
# A round is never smaller than this, so that rounds do not become a loop over boxes.
ROUND_BOXES = 256


@dataclass(frozen=True, slots=True)
class NMS:
    """What to suppress, and how.

    Raises:
        UsageError: an unknown kind or a value out of range.
    """

    kind: Kind = "greedy"
    iou: float = 0.45  # a greater overlap suppresses; not used by soft-gaussian and matrix
    class_agnostic: bool = False  # whether boxes of different classes suppress each other
    max_detections: int | None = 300  # best boxes kept in an image; None: all
    max_candidates: int | None = None  # best boxes that enter; None: all (YOLOv7 evaluates with 30,000)
    exponent: float = 0.6  # darknet: of the distance penalty
    sigma: float = 0.5  # soft-gaussian: width of the decay, exp(-IoU²/sigma)
    sharpness: float = 2.0  # matrix: of the decay, exp(-sharpness IoU²)
    score_floor: float = 0.001  # soft and matrix: boxes whose score decays to this or below are dropped
    require_redundancy: bool = False  # merge: drop a box that no other candidate confirmed

    def __post_init__(self) -> None:
        kinds = get_args(Kind)
        if self.kind not in kinds:
            hint = nearest(self.kind, kinds)
            raise UsageError(f"unknown kind of NMS {self.kind!r}; known are {', '.join(kinds)}.{hint}")
        if not 0 <= self.iou <= 1:
            raise UsageError(f"the IoU threshold of NMS must lie between 0 and 1, got {self.iou}")
        for name, value in (("max_detections", self.max_detections), ("max_candidates", self.max_candidates)):
            if value is not None and value < 1:
                raise UsageError(f"{name} must be at least 1, or None for no limit; got {value}")
        for name, number in (("exponent", self.exponent), ("sigma", self.sigma), ("sharpness", self.sharpness)):
            if not number > 0:
                raise UsageError(f"{name} of NMS must be positive, got {number}")
        if not 0 <= self.score_floor < 1:
            raise UsageError(f"score_floor of NMS must be at least 0 and below 1, got {self.score_floor}")


def suppress(candidates: Candidates, nms: NMS) -> Candidates:
    """Suppress the candidates of one image.

    Args:
        candidates: boxes xyxy (n, 4), scores (n,), class ids (n,); rows that are not finite are dropped.
        nms: kind and limits.

    Returns:
        The survivors by descending score; equal scores keep the order of the candidates. soft and matrix change scores,
        merge changes boxes.
    """
    ranked = _ranked(candidates, nms.max_candidates)
    if len(ranked) == 0:
        return ranked
    groups = ranked.class_ids * 0 if nms.class_agnostic else ranked.class_ids
    if nms.kind in ("soft-linear", "soft-gaussian", "matrix"):
        survivors = _rescored(ranked, groups, nms)
    elif nms.kind == "merge":
        survivors = _merged(ranked, groups, nms)
    else:
        index = index_boxes(ranked.boxes_xyxy, groups, nms.iou)
        survivors = ranked.take(_winners(index, nms))
    return survivors.take(slice(nms.max_detections))


def _ranked(candidates: Candidates, limit: int | None) -> Candidates:
    """The finite candidates by descending score, float32 (or float64), at most ``limit``."""
    xp = array_namespace(candidates.boxes_xyxy)
    finite = xp.all(xp.isfinite(candidates.boxes_xyxy), axis=-1) & xp.isfinite(candidates.scores)
    if not bool(xp.all(finite)):
        candidates = candidates.take(finite)
    boxes_xyxy, scores = (
        values if values.dtype == xp.float64 else xp.astype(values, xp.float32, copy=False)
        for values in (candidates.boxes_xyxy, candidates.scores)
    )
    order = xp.argsort(-scores, stable=True)[:limit]
    class_ids = xp.astype(candidates.class_ids, xp.int64, copy=False)
    return Candidates(xp.take(boxes_xyxy, order, axis=0), scores[order], class_ids[order])


def _overlap(nms: NMS) -> Overlap:
    if nms.kind == "diou":
        return partial(diou, eps=TINY)
    if nms.kind == "darknet":
        return partial(distance_penalised_iou, exponent=nms.exponent, eps=TINY)
    return partial(iou, eps=TINY)


def _winners(index: BoxIndex, nms: NMS) -> Array:
    """Ranks (m,) of the boxes that survive, ascending."""
    if nms.kind == "cluster":
        return _cluster_winners(index, nms)
    limit = len(index) if nms.max_detections is None or nms.kind == "merge" else nms.max_detections
    return _greedy_winners(index, _overlap(nms), nms.iou, limit)


def _greedy_winners(index: BoxIndex, overlap: Overlap, threshold: float, limit: int) -> Array:
    """At least the first ``limit`` ranks that greedy suppression keeps, ascending."""
    xp = array_namespace(index.rows)
    winners, total, num_kept = [], len(index), 0
    while len(index) and num_kept < limit:
        size = max(len(index) * ROUND_PAIRS // max(count_windows(index), 1), ROUND_BOXES)
        size = min(size, len(index), max(4 * (limit - num_kept), ROUND_BOXES))
        last = xp.sort(index.rows)[size - 1]
        head, rest = index.take(index.rows <= last), index.take(index.rows > last)
        suppressed = _fixed_point(*pairs_within(head, overlap, threshold), total)
        head = head.take(~suppressed[head.rows])
        winners.append(head.rows)
        num_kept += len(head)
        if len(rest) == 0 or num_kept >= limit:
            break
        removed, _ = pairs_between(rest, head, overlap, threshold)
        index = rest.take(~_marked(removed, total)[rest.rows])
    return xp.sort(xp.concat(winners))


def _marked(rows: Array, total: int) -> Array:
    """Mask (total,) that is true at ``rows``."""
    xp = array_namespace(rows)
    mask = xp.zeros(total, dtype=xp.bool, device=device(rows))
    mask[rows] = True
    return mask


def _fixed_point(a: Array, b: Array, total: int) -> Array:
    """Mask (total,) of the ranks that greedy suppression removes, given all overlapping pairs of ranks.

    A box without better neighbour is kept; its neighbours go, and with them the pairs they are in; repeat. That is
    greedy suppression with all independent decisions taken at once: as many steps as the longest chain of decisions.
    """
    xp = array_namespace(a)
    better, worse = xp.minimum(a, b), xp.maximum(a, b)
    suppressed = _marked(worse[:0], total)
    while better.shape[0]:
        contested = _marked(worse, total)
        suppressed = suppressed | _marked(worse[~contested[better]], total)
        open_ = ~(suppressed[better] | suppressed[worse])
        better, worse = better[open_], worse[open_]
    return suppressed


def _cluster_winners(index: BoxIndex, nms: NMS) -> Array:
    """Iterate ``keep = overlapped by no better box that is kept`` over the whole suppression matrix until it settles.

    The matrix is held as its list of pairs, whose number may grow with the square of the candidates.
    """
    xp = array_namespace(index.rows)
    a, b = pairs_within(index, _overlap(nms), nms.iou)
    better, worse = xp.minimum(a, b), xp.maximum(a, b)
    keep = ~_marked(worse[:0], len(index))
    while True:
        following = ~_marked(worse[keep[better]], len(index))
        if bool(xp.all(following == keep)):
            return xp.nonzero(keep)[0]
        keep = following


def _merged(ranked: Candidates, groups: Array, nms: NMS) -> Candidates:
    xp = array_namespace(ranked.scores)
    index = index_boxes(ranked.boxes_xyxy, groups, nms.iou)
    winners = _winners(index, nms)
    kept = index.take(_marked(winners, len(index))[index.rows])
    winner, partner = pairs_between(kept, index, _overlap(nms), nms.iou)
    order = xp.argsort(winner)
    winner, partner = winner[order], partner[order]
    weights = xp.astype(ranked.scores, xp.float64)[:, None]
    weighted = xp.concat((xp.astype(ranked.boxes_xyxy, xp.float64) * weights, weights), axis=1)
    # Sums over runs of equal winners as differences of one running sum; float64 keeps them exact to float32.
    running = xp.cumulative_sum(xp.take(weighted, partner, axis=0), axis=0, include_initial=True)
    begin, end = (xp.searchsorted(winner, winners, side=side) for side in ("left", "right"))
    sums = xp.take(running, end, axis=0) - xp.take(running, begin, axis=0) + xp.take(weighted, winners, axis=0)
    means = xp.astype(sums[:, :4] / sums[:, 4:], ranked.boxes_xyxy.dtype)
    merged = Candidates(means, ranked.scores[winners], ranked.class_ids[winners])
    return merged.take(end > begin) if nms.require_redundancy else merged


def _rescored(ranked: Candidates, groups: Array, nms: NMS) -> Candidates:
    xp = array_namespace(ranked.scores)
    if nms.kind == "matrix":
        scores = matrix_scores(ranked.boxes_xyxy, ranked.scores, groups, nms.sharpness)
    else:
        threshold = nms.iou if nms.kind == "soft-linear" else None
        scores = soft_scores(ranked.boxes_xyxy, ranked.scores, groups, threshold, nms.sigma, nms.score_floor)
    order = xp.argsort(-scores, stable=True)
    order = order[scores[order] > nms.score_floor]
    return Candidates(xp.take(ranked.boxes_xyxy, order, axis=0), scores[order], ranked.class_ids[order])
