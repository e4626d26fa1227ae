"""From raw maps to detections in arrays whose shapes are known beforehand: nothing is read back from a GPU on the way.

:func:`decode_candidates` and :func:`suppress` compute only what survives, so how many that are has to be known before
they can go on; on a GPU each such question waits for all that was asked of it before. Here every image has a fixed
number of slots. More is computed, nothing is asked, and the whole can be captured as a CUDA graph. The answers are the
same: one label a box, greedy suppression, at most ``slots`` candidates of an image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TypeAlias

from array_api_compat import array_namespace, device, is_torch_array

from scaledyolo.arch.ops import Detect
from scaledyolo.boxes import Array, cxcywh_to_xyxy, iou_matrix
from scaledyolo.errors import UsageError
from scaledyolo.postprocess.decode import _decode_best, _levels
from scaledyolo.postprocess.nms import NMS

SLOTS = 512  # candidates of an image that enter suppression

# Mask (batch, slots) of what greedy suppression keeps, from boxes xyxy (batch, slots, 4), scores (batch, slots) by
# descending value, 0 in empty slots, and class ids (batch, slots).
Greedy: TypeAlias = Callable[[Array, Array, Array, NMS], Array]


class FixedPostprocess:
    """Decoding and suppression of batches of one size.

    Args:
        maps: maps like those that will come, on the device that they will come from; what is constant is copied there
            now. Their values mean nothing.
        detects: the heads in the same order.
        input_size: height and width of the network input in pixels.
        confidence: 0 to 1; a detection's score is strictly greater.
        nms: greedy; ``max_candidates`` is the number of slots, by default :data:`SLOTS`.
        greedy: what suppresses, by default :func:`greedy_by_rank`, which asks for a few operations a slot.

    Raises:
        UsageError: another kind of suppression, or maps that do not fit the heads.
    """

    def __init__(
        self,
        maps: Sequence[Array],
        detects: Sequence[Detect],
        input_size: tuple[int, int],
        confidence: float = 0.25,
        nms: NMS | None = None,
        greedy: Greedy | None = None,
    ) -> None:
        self.nms = nms or NMS()
        if self.nms.kind != "greedy":
            raise UsageError(f"with fixed shapes suppression is greedy, not {self.nms.kind}")
        self._greedy = greedy or greedy_by_rank
        self._detects, self._input_size, self._confidence = tuple(detects), input_size, confidence
        self._sides = [level.anchor_sides() for level in _levels(maps, detects, input_size)]

    def __call__(self, maps: Sequence[Array]) -> tuple[Array, Array]:
        """Detections of every image.

        Args:
            maps: raw maps (batch, anchors * (5 + classes), height, width), one for each head.

        Returns:
            Rows (batch, n, 6) float32: left, top, right, bottom in pixels of the network input, score and class id, by
            descending score, then zeros; n is the smaller of ``max_detections`` and the slots. And their numbers
            (batch,) int64.
        """
        boxes_xyxy, scores, class_ids = self._candidates(maps)
        kept = self._greedy(boxes_xyxy, scores, class_ids, self.nms)
        return self._rows(boxes_xyxy, scores, class_ids, kept)

    def _candidates(self, maps: Sequence[Array]) -> tuple[Array, Array, Array]:
        """Boxes (batch, slots, 4), scores (batch, slots) and classes, by descending score; empty slots score 0."""
        xp = array_namespace(*maps)
        levels = _levels(maps, self._detects, self._input_size)
        decoded = [_decode_best(replace(level, sides=sides)) for level, sides in zip(levels, self._sides, strict=True)]
        boxes, scores, class_ids = (xp.concat(parts, axis=1) for parts in zip(*decoded, strict=True))
        boxes_xyxy = cxcywh_to_xyxy(boxes)
        wanted = (scores > self._confidence) & xp.all(xp.isfinite(boxes_xyxy), axis=2)
        scores = xp.where(wanted, scores, xp.zeros_like(scores))
        order = _best(scores, min(self.nms.max_candidates or SLOTS, scores.shape[1]))
        image = xp.arange(scores.shape[0], device=device(scores))[:, None]
        return boxes_xyxy[image, order, :], scores[image, order], class_ids[image, order]

    def _rows(self, boxes_xyxy: Array, scores: Array, class_ids: Array, kept: Array) -> tuple[Array, Array]:
        xp = array_namespace(scores)
        limit = min(self.nms.max_detections or kept.shape[1], kept.shape[1])
        columns = (boxes_xyxy, scores[:, :, None], xp.astype(class_ids, xp.float32)[:, :, None])
        rows = xp.concat(columns, axis=2)
        rows = xp.where(kept[:, :, None], rows, xp.zeros_like(rows))
        first = xp.argsort(xp.astype(~kept, xp.int32), axis=1, stable=True)[:, :limit]
        image = xp.arange(rows.shape[0], device=device(rows))[:, None]
        return rows[image, first, :], xp.sum(xp.astype(kept[image, first], xp.int64), axis=1)


def _best(scores: Array, number: int) -> Array:
    """Positions (batch, number) of the largest scores (batch, n) by descending score, equal ones in their order.

    Scores are float32 and not negative, so that they order as their bits do. With its position behind it no key is
    equal to another, and torch may select the largest, which for P7 costs a small part of sorting all of them.
    """
    xp = array_namespace(scores)
    if not is_torch_array(scores):
        return xp.argsort(-scores, axis=1, stable=True)[:, :number]
    total = scores.shape[1]
    backwards = xp.arange(total - 1, -1, -1, device=device(scores))
    keys = xp.astype(scores.view(xp.int32), xp.int64) * total + backwards
    return keys.topk(number, dim=1).indices


def greedy_by_rank(boxes_xyxy: Array, scores: Array, class_ids: Array, nms: NMS) -> Array:
    """Greedy suppression by its definition, rank after rank; see :data:`Greedy`."""
    xp = array_namespace(scores)
    slots = scores.shape[1]
    rank = xp.arange(slots, device=device(scores))
    suppresses = (iou_matrix(boxes_xyxy, boxes_xyxy) > nms.iou) & (rank[:, None] < rank[None, :])
    if not nms.class_agnostic:
        suppresses = suppresses & (class_ids[:, :, None] == class_ids[:, None, :])
    kept = scores > 0
    for better in range(slots):
        kept = kept & ~(suppresses[:, better, :] & kept[:, better : better + 1])
    return kept
