"""Label assignment: which slots of the detection levels answer for which object.

A slot is one anchor at one cell of one level of one image. Every rule is a pure function of the targets and
of the geometry of the levels; the predictions have no say (except in :func:`ignore_mask`). The order of the
targets does not change the set of matches, and one target never takes a slot twice. Several targets may take
one slot: the losses of box and class then count each of them, and the objectness target is the maximum of
their overlaps (:mod:`scaledyolo.train.loss`).

Targets are (num_targets, 6): image index, class, centre x, centre y, width, height; the last four as
fractions of the network input. A target without area, with a centre outside the image or with a non-finite
or absurdly large number is not assigned.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

import torch
from torch import Tensor

from scaledyolo.arch.ops import Detect
from scaledyolo.boxes import cxcywh_to_xyxy, iou_matrix
from scaledyolo.train.recipe import Assignment, AssignmentRule

# Widths and heights beyond so many inputs are broken data, and their areas would overflow float32.
LARGEST_SIZE = 100.0


class Level(NamedTuple):
    """Geometry of one detection level for one input size."""

    detect: Detect  # anchors in pixels and how the raw map becomes boxes
    stride: int  # pixels of the network input per cell
    height: int  # of the grid, in cells
    width: int

    def anchors(self, device: torch.device | None = None) -> Tensor:
        """The anchors of this level, (num_anchors, 2) width and height in cells, float32."""
        return torch.tensor(self.detect.level_anchors, dtype=torch.float32, device=device) / self.stride


@dataclass(frozen=True, slots=True)
class Matches:
    """The positive slots of one level and what each should predict; all tensors have n rows."""

    image: Tensor  # (n) int64, index in the batch
    anchor: Tensor  # (n) int64, index in the anchors of the level
    row: Tensor  # (n) int64, cell
    column: Tensor  # (n) int64, cell
    box_cxcywh: Tensor  # (n, 4) float32 in cells; the centre is relative to the upper left corner of the cell
    anchor_wh: Tensor  # (n, 2) float32 in cells
    class_ids: Tensor  # (n) int64
    target_index: Tensor  # (n) int64, row of the targets

    def __len__(self) -> int:
        return self.image.shape[0]


Assigner = Callable[[Tensor, Sequence[Level], Assignment], list[Matches]]


def assign_scaled(targets: Tensor, levels: Sequence[Level], config: Assignment) -> list[Matches]:
    """Scaled-YOLOv4's rule: every anchor of similar size, at the cell of the centre and at its nearest neighbours.

    On each level by itself, an anchor answers for a target when neither side differs by a factor of
    ``anchor_threshold`` or more; so a target may have many anchors on all levels, or none, and is then
    background. With a ``neighbour_reach`` of 0.5 the cell next to the centre horizontally and the one
    vertically answer too, where the grid has them.

    Args:
        targets: (num_targets, 6), any floating dtype.
        levels: geometry of the levels.
        config: uses ``anchor_threshold`` and ``neighbour_reach``.

    Returns:
        The matches of every level. Source: Scaled-YOLOv4, branch csp (its neighbour test never lists a slot
        twice).
    """
    targets = targets.float()
    usable = _usable(targets)
    return [_assign_scaled_level(targets, usable, level, config) for level in levels]


def _assign_scaled_level(targets: Tensor, usable: Tensor, level: Level, config: Assignment) -> Matches:
    grid = targets.new_tensor((level.width, level.height))
    anchors = level.anchors(targets.device)
    centre, size = targets[:, 2:4] * grid, targets[:, 4:6] * grid

    ratio = size / anchors[:, None]  # (anchors, targets, 2)
    similar = torch.maximum(ratio, 1 / ratio).amax(2) < config.anchor_threshold

    base = _cells(centre, grid)
    inside_cell = centre - base
    # Exactly half-way belongs to no neighbour, and a centre on a grid line to the one before it only. A reach
    # of a whole cell takes all four neighbours (the coarse assignment of YOLOv7).
    before = (inside_cell < config.neighbour_reach) & (centre > 1)
    after = (inside_cell > 1 - config.neighbour_reach) | (config.neighbour_reach >= 1)
    after = after & (centre < grid - 1)
    offsets = targets.new_tensor(((0, 0), (-1, 0), (0, -1), (1, 0), (0, 1)))  # columns and rows, as in ``answers``
    answers = torch.stack((usable, before[:, 0], before[:, 1], after[:, 0], after[:, 1]))

    chosen = (similar & usable)[:, None] & answers  # (anchors, 5, targets)
    anchor, neighbour, target = chosen.nonzero(as_tuple=True)
    return _matches(targets, target, anchor, base[target] + offsets[neighbour], grid, anchors)


def assign_best_prior(targets: Tensor, levels: Sequence[Level], config: Assignment) -> list[Matches]:
    """YOLOv3's rule: the one anchor of the whole model whose shape fits best, at the cell of the centre.

    The fit is the IoU of the two shapes laid on one centre, in pixels of the network input; of equal fits the
    first anchor wins. A level answers when its mask holds that anchor, so one that no mask holds
    (yolov4-tiny's first) leaves the target as background, and one that two masks hold (its fourth) gives two
    matches.

    Args:
        targets: (num_targets, 6), any floating dtype.
        levels: geometry of the levels.
        config: not used.

    Returns:
        The matches of every level. Source: YOLOv3 2.1; Darknet.
    """
    return _assign_by_shape(targets, levels, iou_threshold=1.0)


def assign_multi_anchor(targets: Tensor, levels: Sequence[Level], config: Assignment) -> list[Matches]:
    """YOLOv4's rule: the best anchor as in YOLOv3, and every other one whose shape fits well.

    Fitting well is an IoU of the shapes above ``iou_threshold``. All of them answer at the cell of the centre, each on
    its own level.

    Args:
        targets: (num_targets, 6), any floating dtype.
        levels: geometry of the levels.
        config: uses ``iou_threshold``; 1 gives YOLOv3's rule.

    Returns:
        The matches of every level. Source: YOLOv4 3.4; Darknet's ``iou_thresh``.
    """
    return _assign_by_shape(targets, levels, config.iou_threshold)


def _assign_by_shape(targets: Tensor, levels: Sequence[Level], iou_threshold: float) -> list[Matches]:
    targets = targets.float()
    usable = _usable(targets)
    matches = []
    for level in levels:
        grid = targets.new_tensor((level.width, level.height))
        shapes = targets.new_tensor(level.detect.anchors)  # all anchors of the model, pixels
        mask = torch.tensor(level.detect.mask, device=targets.device)
        overlap = _shape_iou(targets[:, 4:6] * grid * level.stride, shapes)  # (targets, all anchors)
        best = overlap.argmax(1)
        chosen = mask[:, None].eq(best) | overlap[:, mask].T.gt(iou_threshold)
        anchor, target = (chosen & usable).nonzero(as_tuple=True)
        cells = _cells(targets[target, 2:4] * grid, grid)
        matches.append(_matches(targets, target, anchor, cells, grid, level.anchors(targets.device)))
    return matches


def _shape_iou(sizes: Tensor, shapes: Tensor) -> Tensor:
    """IoU (n, m) of widths and heights (n, 2) with (m, 2), laid on one centre."""
    shared = torch.minimum(sizes[:, None], shapes).prod(2)
    return shared / (sizes.prod(1)[:, None] + shapes.prod(1) - shared)


def _usable(targets: Tensor) -> Tensor:
    """(num_targets) bool: with an area, centre inside the image, not absurdly large."""
    centre, size = targets[:, 2:4], targets[:, 4:6]
    inside = ((centre >= 0) & (centre <= 1)).all(1)
    return inside & ((size > 0) & (size <= LARGEST_SIZE)).all(1)


def _cells(centre: Tensor, grid: Tensor) -> Tensor:
    """Column and row (n, 2), whole floats, of centres (n, 2) in cells; the far border belongs to the last cell."""
    return torch.minimum(centre.floor(), grid - 1)


def _matches(targets: Tensor, target: Tensor, anchor: Tensor, cells: Tensor, grid: Tensor, anchors: Tensor) -> Matches:
    rows = targets[target]
    box = torch.cat((rows[:, 2:4] * grid - cells, rows[:, 4:6] * grid), 1)
    column, row = cells.long().unbind(1)
    return Matches(
        image=rows[:, 0].long(),
        anchor=anchor,
        row=row,
        column=column,
        box_cxcywh=box,
        anchor_wh=anchors[anchor],
        class_ids=rows[:, 1].long(),
        target_index=target,
    )


def ignore_mask(predicted_cxcywh: Tensor, targets: Tensor, threshold: float) -> Tensor:
    """Slots whose predicted box overlaps an object so well that they should not be taught to be background.

    YOLOv3 and YOLOv4 drop the objectness loss there, except at the slots that answer for an object.

    Args:
        predicted_cxcywh: (batch, ..., 4) decoded boxes, as fractions of the network input like the targets.
        targets: (num_targets, 6).
        threshold: smallest IoU that is not ignored.

    Returns:
        (batch, ...) bool. Memory is that of one image: boxes x targets. Source: YOLOv3 2.1; Darknet's
        ``ignore_thresh``.
    """
    targets = targets.to(predicted_cxcywh.dtype)
    targets = targets[_usable(targets)]
    boxes = cxcywh_to_xyxy(predicted_cxcywh.detach().flatten(1, -2))
    objects = cxcywh_to_xyxy(targets[:, 2:6])
    ignored = torch.zeros(boxes.shape[:2], dtype=torch.bool, device=boxes.device)
    for image, image_boxes in enumerate(boxes):
        image_objects = objects[targets[:, 0] == image]
        if len(image_objects):
            ignored[image] = iou_matrix(image_boxes, image_objects).amax(1) > threshold
    return ignored.view(predicted_cxcywh.shape[:-1])


# The rules by the names that a recipe uses.
ASSIGNERS: Mapping[AssignmentRule, Assigner] = MappingProxyType(
    {"scaled": assign_scaled, "yolov3": assign_best_prior, "yolov4": assign_multi_anchor}
)

# The rules whose training leaves well-predicted slots out of the background.
RULES_THAT_IGNORE: frozenset[AssignmentRule] = frozenset(("yolov3", "yolov4"))
