"""Suppression that lowers scores instead of dropping boxes: Soft-NMS and Matrix NMS.

Both work on all boxes of a class; classes of similar size are padded to a common length and handled together.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from array_api_compat import array_namespace, device

from scaledyolo.boxes import TINY, Array, iou, iou_matrix

# Elements of a padded (classes, boxes) batch and of a (classes, boxes, boxes) block of overlaps.
BATCH_ELEMENTS = 1 << 18
BLOCK_ELEMENTS = 1 << 21


def soft_scores(
    boxes_xyxy: Array, scores: Array, groups: Array, threshold: float | None, sigma: float, floor: float
) -> Array:
    """Scores (n,) after Soft-NMS; boxes that fall to ``floor`` or below take no further part and get 0.

    Args:
        boxes_xyxy: (n, 4) by descending score.
        scores: (n,) positive.
        groups: (n,) int64; only boxes of one group affect each other.
        threshold: linear decay (1 - IoU) of boxes with a greater IoU; None for the Gaussian exp(-IoU²/sigma) of all.
        sigma: width of the Gaussian.
        floor: smallest score of interest.

    Source: Bodla et al. 2017 (Soft-NMS). The work is quadratic in the size of a class and sequential in its ranks; cap
    the candidates where a class has many thousands.
    """
    xp = array_namespace(scores)
    result = xp.zeros_like(scores)
    for rows, valid in _group_batches(groups):
        boxes = xp.reshape(xp.take(boxes_xyxy, xp.reshape(rows, (-1,)), axis=0), (*rows.shape, 4))
        waiting = xp.where(valid, scores[rows], 0.0)
        final = xp.zeros_like(waiting)
        position = xp.arange(rows.shape[1], device=device(scores))
        line = xp.arange(rows.shape[0], device=device(scores))
        for _ in range(rows.shape[1]):
            best = xp.argmax(waiting, axis=1)
            if not bool(xp.any(waiting[line, best] > floor)):
                break
            picked = (position == best[:, None]) & (waiting > floor)  # a group may be through before others
            final = xp.where(picked, waiting, final)
            overlap = iou(boxes[line, best, :][:, None, :], boxes, TINY)
            if threshold is None:
                decay = xp.exp(-overlap * overlap / sigma)
            else:
                decay = xp.where(overlap > threshold, 1 - overlap, 1.0)
            waiting = xp.where(picked, 0.0, waiting * decay)
        result[rows[valid]] = final[valid]
    return result


def matrix_scores(boxes_xyxy: Array, scores: Array, groups: Array, sharpness: float) -> Array:
    """Scores (n,) after Matrix NMS with the Gaussian f(IoU) = exp(-sharpness IoU²).

    Each box is decayed by its worst better box, less how much that one is itself suppressed:
    ``min over better i of f(iou_ij) / f(max over k better than i of iou_ki)``.

    Args:
        boxes_xyxy: (n, 4) by descending score.
        scores: (n,) positive, descending.
        groups: (n,) int64; only boxes of one group affect each other.
        sharpness: of the decay; 2 in the paper.

    Source: Wang et al. 2020 (SOLOv2), equations 4 and 5.
    """
    xp = array_namespace(scores)
    result = xp.zeros_like(scores)
    for rows, valid in _group_batches(groups):
        num_groups, length = rows.shape
        boxes = xp.reshape(xp.take(boxes_xyxy, xp.reshape(rows, (-1,)), axis=0), (num_groups, length, 4))
        position = xp.arange(length, device=device(scores))
        compensation = xp.zeros((num_groups, length), dtype=scores.dtype, device=device(scores))
        block = max(BLOCK_ELEMENTS // (num_groups * length), 1)
        for low in range(0, length, block):
            high = min(low + block, length)
            better = position[:high, None] < position[None, low:high]
            overlap = xp.where(better, iou_matrix(boxes[:, :high, :], boxes[:, low:high, :]), 0.0)
            compensation[:, low:high] = xp.max(overlap, axis=1)
            # f(iou_ij) / f(compensation_i) as one exponential; 0, no decay, for pairs that are not (better, worse).
            exponent = sharpness * (compensation[:, :high, None] ** 2 - overlap**2)
            decay = xp.exp(xp.clip(xp.min(xp.where(better, exponent, 0.0), axis=1), None, 0.0))
            block_rows, block_valid = rows[:, low:high], valid[:, low:high]
            result[block_rows[block_valid]] = (scores[block_rows] * decay)[block_valid]
    return result


def _group_batches(groups: Array) -> Iterator[tuple[Array, Array]]:
    """Rows (g, length) of several groups in their order, padded at the end, and the mask of what is not padding."""
    xp = array_namespace(groups)
    order = xp.argsort(groups, stable=True)
    ordered = groups[order]
    (change,) = xp.nonzero(ordered[1:] != ordered[:-1])
    bounds = [0, *(change + 1).tolist(), int(groups.shape[0])]
    runs = sorted(((high - low, low) for low, high in pairwise(bounds)), reverse=True)
    while runs:
        longest = runs[0][0]
        batch, runs = _split(runs, max(BATCH_ELEMENTS // longest, 1))
        size, begin = (xp.asarray(column, device=device(groups))[:, None] for column in zip(*batch, strict=True))
        position = xp.arange(longest, device=device(groups))[None, :]
        valid = position < size
        yield order[xp.where(valid, begin + position, begin)], valid


def _split(runs: list[tuple[int, int]], limit: int) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """The first runs, at most ``limit`` and none under half the length of the first (no padding wasted); the rest."""
    count = sum(1 for size, _ in runs[:limit] if 2 * size >= runs[0][0])
    return runs[:count], runs[count:]
