"""Greedy suppression on a GPU in one kernel: the host asks once, and is told nothing.

One program for each image holds its candidates in registers and goes through them by rank, as far as they were filled;
what :func:`~scaledyolo.postprocess.fixed.greedy_by_rank` does with hundreds of launches. Needs Triton, which torch for
GPUs brings along on Linux. Where Triton is installed, the tests run it in its interpreter.
"""

from __future__ import annotations

import torch
import triton  # type: ignore[import-not-found]
import triton.language as tl  # type: ignore[import-not-found]
from torch import Tensor

from scaledyolo.boxes import TINY
from scaledyolo.postprocess.nms import NMS

MAX_SLOTS = 2048  # more candidates of an image do not fit the registers of one program
_WARPS = 4


@triton.jit  # type: ignore[untyped-decorator]
def _suppress(
    boxes: tl.tensor,
    scores: tl.tensor,
    class_ids: tl.tensor,
    kept: tl.tensor,
    iou: tl.tensor,
    tiny: tl.tensor,
    slots: tl.tensor,
    side: tl.constexpr,
    agnostic: tl.constexpr,
) -> None:
    """Boxes (batch, slots, 4), scores and class ids (batch, slots) -> kept (batch, slots) int32; ``side`` >= slots."""
    first = tl.program_id(0) * slots
    rank = tl.arange(0, side)
    inside = rank < slots
    corner = boxes + (first + rank) * 4
    left = tl.load(corner, mask=inside, other=0.0)
    top = tl.load(corner + 1, mask=inside, other=0.0)
    right = tl.load(corner + 2, mask=inside, other=0.0)
    bottom = tl.load(corner + 3, mask=inside, other=0.0)
    class_id = tl.load(class_ids + first + rank, mask=inside, other=-1)
    alive = (tl.load(scores + first + rank, mask=inside, other=0.0) > 0).to(tl.int32)
    area = tl.maximum(right - left, 0.0) * tl.maximum(bottom - top, 0.0)
    filled = tl.sum(alive, axis=0)  # scores descend, so these are the first ones
    better = 0
    while better < filled:
        other = boxes + (first + better) * 4
        other_left, other_top = tl.load(other), tl.load(other + 1)
        other_right, other_bottom = tl.load(other + 2), tl.load(other + 3)
        width = tl.maximum(tl.minimum(right, other_right) - tl.maximum(left, other_left), 0.0)
        height = tl.maximum(tl.minimum(bottom, other_bottom) - tl.maximum(top, other_top), 0.0)
        other_area = tl.maximum(other_right - other_left, 0.0) * tl.maximum(other_bottom - other_top, 0.0)
        intersection = width * height
        union = other_area + area - intersection
        hit = (tl.div_rn(intersection, union + tiny) > iou) & (rank > better)
        if not agnostic:
            hit = hit & (class_id == tl.load(class_ids + first + better))
        is_kept = tl.max(tl.where(rank == better, alive, 0), axis=0)
        alive = tl.where(hit & (is_kept > 0), 0, alive)
        better += 1
    tl.store(kept + first + rank, alive, mask=inside)


@torch.library.custom_op("scaledyolo::greedy", mutates_args=())
def _greedy(boxes_xyxy: Tensor, scores: Tensor, class_ids: Tensor, iou: float, agnostic: bool) -> Tensor:
    batch, slots = scores.shape
    kept = torch.empty((batch, slots), dtype=torch.int32, device=scores.device)
    side = max(1 << (slots - 1).bit_length(), 16)
    # Triton launches on the current device.
    with torch.cuda.device_of(scores):  # type: ignore[no-untyped-call]
        _suppress[(batch,)](
            boxes_xyxy.contiguous(), scores.contiguous(), class_ids.to(torch.int32).contiguous(), kept,
            iou, TINY, slots, side=side, agnostic=agnostic, num_warps=_WARPS, enable_fp_fusion=False,
        )  # fmt: skip
    return kept > 0


@_greedy.register_fake
def _(boxes_xyxy: Tensor, scores: Tensor, class_ids: Tensor, iou: float, agnostic: bool) -> Tensor:
    return torch.empty_like(scores, dtype=torch.bool)


def greedy_in_one_kernel(boxes_xyxy: Tensor, scores: Tensor, class_ids: Tensor, nms: NMS) -> Tensor:
    """See :data:`~scaledyolo.postprocess.fixed.Greedy`; at most :data:`MAX_SLOTS` slots."""
    kept: Tensor = _greedy(boxes_xyxy, scores, class_ids, nms.iou, nms.class_agnostic)
    return kept
