"""The detection loss: three named parts, computed from raw head maps, and the weights that add them up.

    parts = detection_loss(raw_maps, targets, graph.detects, graph.strides, recipe.loss, recipe.assignment)
    gains = loss_gains(recipe.loss, num_levels=len(graph.detects), num_classes=graph.num_classes)
    parts.weighted(gains).total(images=len(batch)).backward()

Everything is computed in float32 whatever the dtype of the maps, and is finite, with finite gradients, for
every finite input: no targets, one-pixel targets, logits of any size. With one class there is no class loss. The
parts are means, so that the total, times the images of the batch, is a sum over images: gradients of several
batches are accumulated without division.

Where several processes share a batch, each knows only its own matches, but the means are those of the whole batch:
give ``detection_loss`` a ``mean_count`` that averages the numbers of matches over the processes. The mean over the
processes of each part, and so of its gradient, is then that of one process with the whole batch.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from scaledyolo import boxes
from scaledyolo.arch.ops import Detect
from scaledyolo.errors import DataError, SpecError, UsageError
from scaledyolo.train.assign import ASSIGNERS, RULES_THAT_IGNORE, Level, Matches, ignore_mask
from scaledyolo.train.recipe import Assignment, BoxMetric, Loss

BOX_METRICS: Mapping[BoxMetric, Callable[[Tensor, Tensor], Tensor]] = MappingProxyType(
    {"iou": boxes.iou, "giou": boxes.giou, "diou": boxes.diou, "ciou": boxes.ciou}
)

# Weight of the objectness of each level, smallest stride first, by the number of levels. Three to five:
# Scaled-YOLOv4; one and two, which it never trained, keep its ratio between neighbouring levels.
LEVEL_BALANCE: Mapping[int, tuple[float, ...]] = MappingProxyType(
    {
        1: (1.0,),
        2: (4.0, 1.0),
        3: (4.0, 1.0, 0.4),
        4: (4.0, 1.0, 0.4, 0.1),
        5: (4.0, 1.0, 0.5, 0.4, 0.1),
    }
)

# Largest width or height logit of the exponential decoding: boxes of 3000 anchors are never right, and exp
# overflows.
LARGEST_EXPONENT = 8.0

# From the number of matches of each level here (levels,) float32 to its mean over all processes.
MeanCount = Callable[[Tensor], Tensor]

_BOX = slice(0, 4)  # of the outputs of a slot
_OBJECTNESS = 4
_FIRST_CLASS = 5


class LossGains(NamedTuple):
    """Weight of each part of the loss."""

    box: float
    objectness: float
    class_: float


@dataclass(frozen=True, slots=True)
class LossParts:
    """The three parts of the loss, scalars in float32: each the sum over the levels of a mean."""

    box: Tensor  # 1 - IoU, mean over the matches of a level
    objectness: Tensor  # cross-entropy, mean over all slots of a level, times the balance of the level
    class_: Tensor  # cross-entropy, mean over matches and classes of a level

    def weighted(self, gains: LossGains) -> LossParts:
        """The parts times their weights."""
        return LossParts(self.box * gains.box, self.objectness * gains.objectness, self.class_ * gains.class_)

    def total(self, images: int = 1) -> Tensor:
        """The sum of the parts times the number of ``images`` that they are means over."""
        return (self.box + self.objectness + self.class_) * images

    def detached(self) -> LossParts:
        """The same values without their graph, for logging."""
        return LossParts(self.box.detach(), self.objectness.detach(), self.class_.detach())


def loss_gains(config: Loss, num_levels: int, num_classes: int) -> LossGains:
    """The weights of the parts for a network with so many levels and classes.

    All are divided by the share of levels against three; objectness has a factor from four levels on; the
    class gain grows with the number of classes, since its part is a mean over them. Source: Scaled-YOLOv4,
    branches csp and large.
    """
    per_level = 3 / num_levels
    return LossGains(
        box=config.box_gain * per_level,
        objectness=config.objectness_gain * per_level * (config.many_level_gain if num_levels >= 4 else 1.0),
        class_=config.class_gain * per_level * num_classes / 80,
    )


def level_balance(config: Loss, num_levels: int) -> tuple[float, ...]:
    """Weight of the objectness of each level, smallest stride first.

    Raises:
        UsageError: the recipe gives another number of weights, or none and there is no default for so many
            levels.
    """
    balance = config.objectness_balance or LEVEL_BALANCE.get(num_levels, ())
    if len(balance) != num_levels:
        raise UsageError(
            f"loss.objectness_balance has {len(config.objectness_balance)} weights, but the network has {num_levels} "
            "detection levels; give one for each, smallest stride first"
        )
    return balance


def detection_loss(
    raw_maps: Sequence[Tensor],
    targets: Tensor,
    detects: Sequence[Detect],
    strides: Sequence[int],
    config: Loss,
    assignment: Assignment,
    *,
    mean_count: MeanCount | None = None,
) -> LossParts:
    """The loss of one batch, unweighted.

    Args:
        raw_maps: one (batch, anchors * (5 + classes), height, width) map of logits for each head, of any
            floating dtype and memory format. A head whose network ends in a logistic is trained without it.
        targets: (num_targets, 6): image index, class, centre x, centre y, width, height; the last four as
            fractions of the network input. The order does not matter. None at all is a batch of background.
        detects: the heads, in the order of the maps; their decoding is the one that is trained.
        strides: input pixels per cell of each head.
        config: options and balance of the levels.
        assignment: the rule by which slots answer for targets, and its thresholds.
        mean_count: called once, where several processes each have an equally large part of the batch: from the
            number of matches of each level, (levels,) float32 on the device of the maps, to its mean over them.

    Returns:
        The parts. Where several targets take one slot, its objectness target is the largest of their
        overlaps.

    Raises:
        SpecError: a map does not have the channels of its head, or the head cannot be trained.
        DataError: a target has a class or an image index that does not exist.
        UsageError: the balance does not fit the number of levels.

    Source: Scaled-YOLOv4, branches csp and large; boxes: Zheng et al. 2020 (CIoU).
    """
    levels = [_level(*head) for head in zip(raw_maps, detects, strides, strict=True)]
    _check_targets(targets, batch=raw_maps[0].shape[0], num_classes=detects[0].num_classes)
    targets = targets.to(device=raw_maps[0].device, dtype=torch.float32)
    balance = level_balance(config, len(levels))
    rank = {index: place for place, index in enumerate(sorted(range(len(levels)), key=lambda i: strides[i]))}

    all_matches = ASSIGNERS[assignment.rule](targets, levels, assignment)
    counts = _counts(all_matches, targets.device, mean_count)
    parts = []
    for index, (raw, level, matches) in enumerate(zip(raw_maps, levels, all_matches, strict=True)):
        background = None
        if assignment.rule in RULES_THAT_IGNORE:
            background = ~ignore_mask(_all_boxes(raw, level), targets, assignment.ignore_threshold)
        part = _level_loss(raw, level, matches, counts[index], background, config)
        parts.append(part.weighted(LossGains(1.0, balance[rank[index]], 1.0)))
    return LossParts(
        box=torch.stack([part.box for part in parts]).sum(),
        objectness=torch.stack([part.objectness for part in parts]).sum(),
        class_=torch.stack([part.class_ for part in parts]).sum(),
    )


def _counts(all_matches: Sequence[Matches], device: torch.device, mean_count: MeanCount | None) -> Sequence[float]:
    """What the sums over the matches of each level are divided by."""
    local = [float(len(matches)) for matches in all_matches]
    if mean_count is None:
        return local
    return [float(count) for count in mean_count(torch.tensor(local, device=device)).tolist()]


def _level(raw: Tensor, detect: Detect, stride: int) -> Level:
    detect.out_channels(raw.shape[1])  # refuses a map with other channels
    if detect.softmax or detect.decoding == "region":
        raise SpecError(
            "a YOLOv2 region head cannot be trained; give the network heads with decoding sigmoid-squared or exp"
        )
    return Level(detect, stride, height=raw.shape[2], width=raw.shape[3])


def _check_targets(targets: Tensor, batch: int, num_classes: int) -> None:
    if not len(targets):
        return
    least_image, least_class = targets[:, :2].amin(0).tolist()
    most_image, most_class = targets[:, :2].amax(0).tolist()
    if not (least_class >= 0 and most_class < num_classes):
        wrong = most_class if most_class >= num_classes else least_class
        raise DataError(
            f"a target has class {wrong:g}, but the model knows classes 0 to {num_classes - 1}; "
            "check the class list of the data set"
        )
    if not (least_image >= 0 and most_image < batch):
        wrong = most_image if most_image >= batch else least_image
        raise DataError(f"a target belongs to image {wrong:g}, but the batch has images 0 to {batch - 1}")


def _level_loss(
    raw: Tensor, level: Level, matches: Matches, count: float, background: Tensor | None, config: Loss
) -> LossParts:
    """The parts of one level.

    ``count`` is what sums over the matches are divided by; ``background`` (batch, anchors, height, width) says which
    free slots teach background.
    """
    grid = _slots(raw, level)
    batch, num_anchors, _, height, width = grid.shape
    slot = ((matches.image * num_anchors + matches.anchor) * level.height + matches.row) * level.width + matches.column
    taken, entry = torch.unique(slot, return_inverse=True)
    taken_slots = torch.unravel_index(taken, (batch, num_anchors, height, width))
    objectness, outputs = _ReadSlots.apply(grid, *taken_slots)  # type: ignore[no-untyped-call]
    outputs = outputs.index_select(0, entry)  # one row for each match; its backward adds in a fixed order

    box, class_ = objectness.new_zeros(()), objectness.new_zeros(())
    wanted = torch.zeros_like(objectness)
    if len(matches):
        overlap = _overlap(outputs[:, _BOX], matches, level.detect, config)
        box = (1 - overlap).sum() / count
        share = config.objectness_iou_share
        quality = (1 - share) + share * overlap.detach().clamp(min=0)
        wanted.view(-1).scatter_reduce_(0, slot, quality, "amax")  # a maximum does not depend on the order
        if level.detect.num_classes > 1:
            of_classes = _class_losses(outputs[:, _FIRST_CLASS:], matches.class_ids, config)
            class_ = of_classes.sum() / (count * level.detect.num_classes)

    losses = _binary_losses(objectness, wanted, config.objectness_positive_weight, config)
    if background is not None:
        background.view(-1)[taken] = True  # a slot that answers for a target is never ignored
        losses = losses * background
    return LossParts(box, losses.mean(), class_)


def _slots(raw: Tensor, level: Level) -> Tensor:
    """A map as (batch, anchors, outputs, height, width), without a copy."""
    return raw.view(raw.shape[0], len(level.detect.mask), level.detect.num_outputs, level.height, level.width)


class _ReadSlots(torch.autograd.Function):
    """The objectness of all slots and all outputs of some, which must differ from each other; in float32.

    It is plain indexing, written as one function because of its gradient: that of each indexing alone is a
    tensor as large as the map, mostly zeros, and adding them costs more than the whole loss.
    """

    @staticmethod
    def forward(
        ctx: Any, grid: Tensor, image: Tensor, anchor: Tensor, row: Tensor, column: Tensor
    ) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(image, anchor, row, column)
        ctx.grid = (grid.shape, grid.stride(), grid.dtype)
        objectness = grid[:, :, _OBJECTNESS].to(torch.float32, copy=True, memory_format=torch.contiguous_format)
        return objectness, grid[image, anchor, :, row, column].float()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        objectness, outputs = gradients
        image, anchor, row, column = ctx.saved_tensors
        shape, stride, dtype = ctx.grid
        gradient = objectness.new_empty(0, dtype=dtype).new_empty_strided(shape, stride).zero_()
        gradient[:, :, _OBJECTNESS] = objectness.to(dtype)
        outputs = outputs.clone()
        outputs[:, _OBJECTNESS] += objectness[image, anchor, row, column]
        gradient[image, anchor, :, row, column] = outputs.to(dtype)
        return gradient, None, None, None, None


def _overlap(outputs: Tensor, matches: Matches, detect: Detect, config: Loss) -> Tensor:
    """IoU of the chosen kind (n) of predicted and wanted boxes, both relative to their cell."""
    predicted = _decode_cxcywh(outputs, matches.anchor_wh, detect)
    metric = BOX_METRICS[config.box_metric]
    return metric(boxes.cxcywh_to_xyxy(predicted), boxes.cxcywh_to_xyxy(matches.box_cxcywh))


def _decode_cxcywh(outputs: Tensor, anchor_wh: Tensor, detect: Detect) -> Tensor:
    """Boxes (n, 4) in cells, relative to the upper left corner of their cell, of logits (n, 4).

    The sigmoid-squared family reaches from half a cell before to half a cell behind its own, and to four
    anchors; the exponential one reaches (scale_xy - 1) / 2 beyond the cell, and any size.
    """
    logistic = outputs[:, :2].sigmoid()
    if detect.decoding == "sigmoid-squared":
        centre = 2 * logistic - 0.5
        size = (2 * outputs[:, 2:].sigmoid()) ** 2 * anchor_wh
    else:
        centre = detect.scale_xy * logistic - (detect.scale_xy - 1) / 2
        size = outputs[:, 2:].clamp(max=LARGEST_EXPONENT).exp() * anchor_wh
    return torch.cat((centre, size), 1)


@torch.no_grad()
def _all_boxes(raw: Tensor, level: Level) -> Tensor:
    """Decoded boxes (batch, anchors, height, width, 4) of all slots, cxcywh as fractions of the network input."""
    logits = _slots(raw, level)[:, :, _BOX].movedim(2, -1).float()
    anchors = level.anchors(raw.device)[:, None, None].expand(*logits.shape[:-1], 2)
    decoded = _decode_cxcywh(logits.reshape(-1, 4), anchors.reshape(-1, 2), level.detect).view_as(logits)
    columns = torch.arange(level.width, device=raw.device)
    rows = torch.arange(level.height, device=raw.device)
    cells = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), -1)  # (height, width, 2)
    grid = decoded.new_tensor((level.width, level.height))
    return torch.cat(((decoded[..., :2] + cells) / grid, decoded[..., 2:] / grid), -1)


def _class_losses(logits: Tensor, class_ids: Tensor, config: Loss) -> Tensor:
    """Cross-entropy (n, classes) of independent classes: logits (n, classes), indices (n)."""
    wanted = torch.full_like(logits, config.label_smoothing / 2)
    wanted.scatter_(1, class_ids[:, None], 1 - config.label_smoothing / 2)
    return _binary_losses(logits, wanted, config.class_positive_weight, config)


def _binary_losses(logits: Tensor, wanted: Tensor, positive_weight: float, config: Loss) -> Tensor:
    """Cross-entropy of each logit, under focal weighting where the recipe asks for it (Lin et al. 2017, equation 5)."""
    weight = None if positive_weight == 1 else logits.new_tensor(positive_weight)
    losses = binary_cross_entropy_with_logits(logits, wanted, reduction="none", pos_weight=weight)
    if config.focal_gamma == 0:
        return losses
    probability = logits.sigmoid()
    miss = wanted + probability - 2 * wanted * probability  # 1 - p_t
    balance = wanted * config.focal_alpha + (1 - wanted) * (1 - config.focal_alpha)
    # The slope of a power below 1 is infinite at 0; below the clamp it is 0.
    return losses * balance * miss.clamp(min=1e-8) ** config.focal_gamma
