"""Raw head maps become boxes, objectness and class probabilities.

A head's map is (batch, anchors * (5 + classes), height, width); channel ``a * (5 + classes) + j`` belongs to anchor
``a`` and holds tx, ty, tw, th, objectness, then the classes. With cell (gx, gy), stride s, anchor (pw, ph) and the
logistic σ:

    exp              bx = (k σ(tx) - (k - 1) / 2 + gx) s   bw = pw exp(tw)      YOLOv3, YOLOv4; k is ``scale_xy``
    sigmoid-squared  bx = (2 σ(tx) - 0.5 + gx) s           bw = pw (2 σ(tw))²   Scaled-YOLOv4, YOLOv7
    region           bx = (σ(tx) + gx) s                   bw = pw exp(tw)      YOLOv2; classes may share a softmax

Sources: Redmon & Farhadi 2018 (YOLOv3), section 2.1; Bochkovskiy et al. 2020 (YOLOv4), section 3.4, for k.

Two readers of one formula: :func:`decode_all` gives every row, for parity checks, training and ensembles;
:func:`decode_candidates` looks at the raw objectness first and computes only what survives the threshold. Both work in
float32 whatever the dtype of the maps: in half precision absolute coordinates above 1024 are off by a pixel.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from array_api_compat import array_namespace, device

from scaledyolo.arch.ops import Detect
from scaledyolo.boxes import Array, at_least, at_most, cxcywh_to_xyxy
from scaledyolo.errors import UsageError
from scaledyolo.postprocess.candidates import Candidates

# exp(LOGIT_LIMIT) still fits a float32, so σ neither overflows nor warns; beyond it σ is 0 or 1 for all purposes.
LOGIT_LIMIT = 87.0
# Largest tw of the exp families: nine million anchors wide is no box, but its area still fits a float32.
LOG_SIZE_LIMIT = 16.0
# The test on raw values is looser than the threshold by more than the rounding of σ; the scores decide.
RAW_MARGIN = 1e-5
FINITE = 1e30


@dataclass(frozen=True, slots=True, eq=False)
class _Level:
    """One head: its map with the cells in one axis, and what its numbers mean."""

    raw: Array  # (batch, anchors, 5 + classes, cells)
    detect: Detect
    height: int  # cells
    width: int
    stride_y: float  # pixels per cell
    stride_x: float
    sides: tuple[Array, Array] | None = None  # what `anchor_sides` gives, where it lies beside the map already

    def column(self, values: Sequence[float]) -> Array:
        """A float32 array (len(values),) beside the map."""
        xp = array_namespace(self.raw)
        return xp.asarray(values, dtype=xp.float32, device=device(self.raw))

    def anchor_sides(self) -> tuple[Array, Array]:
        """Widths (anchors,) and heights (anchors,) of the head's anchors in pixels."""
        if self.sides is not None:
            return self.sides
        widths, heights = zip(*self.detect.level_anchors, strict=True)
        return self.column(widths), self.column(heights)


def decode_all(maps: Sequence[Array], detects: Sequence[Detect], input_size: tuple[int, int]) -> Array:
    """Decode every anchor of every cell.

    Args:
        maps: one raw map (batch, anchors * (5 + classes), height, width) per head, any floating dtype.
        detects: the heads in the same order.
        input_size: height and width of the network input in pixels.

    Returns:
        (batch, rows, 5 + classes) float32: centre x, centre y, width, height in pixels of the network input,
        objectness and class probabilities. Rows are ordered by head (as given), anchor, y, x.

    Raises:
        UsageError: the maps do not fit the heads.
    """
    decoded = [_decode_level(level) for level in _levels(maps, detects, input_size)]
    return array_namespace(decoded[0]).concat(decoded, axis=1)


def decode_candidates(
    maps: Sequence[Array],
    detects: Sequence[Detect],
    input_size: tuple[int, int],
    threshold: float = 0.25,
    multi_label: bool = False,
    class_filter: Sequence[int] | None = None,
) -> list[Candidates]:
    """Decode only the boxes whose score, objectness times class probability, is above the threshold.

    Args:
        maps: one raw map (batch, anchors * (5 + classes), height, width) per head, any floating dtype.
        detects: the heads in the same order.
        input_size: height and width of the network input in pixels.
        threshold: 0 to 1; a candidate's score is strictly greater.
        multi_label: whether a box counts for every class above the threshold (evaluation) or only for its best.
        class_filter: class ids to keep; applied after the best class is chosen. None keeps all.

    Returns:
        For each image the candidates, ordered by head, anchor, y, x, class. What is not a number never becomes one.

    Raises:
        UsageError: the maps do not fit the heads, or the threshold or a class does not exist.
    """
    if not 0 <= threshold <= 1:
        raise UsageError(f"the score threshold must lie between 0 and 1, got {threshold}")
    levels = list(_levels(maps, detects, input_size))
    allowed = _allowed_classes(levels[0], class_filter)
    found = [_level_candidates(level, threshold, multi_label, allowed) for level in levels]
    xp = array_namespace(levels[0].raw)
    images, boxes_xyxy, scores, class_ids = (xp.concat(parts, axis=0) for parts in zip(*found, strict=True))
    everything = Candidates(boxes_xyxy, scores, class_ids)
    batch = levels[0].raw.shape[0]
    return [everything] if batch == 1 else [everything.take(images == image) for image in range(batch)]


def _levels(maps: Sequence[Array], detects: Sequence[Detect], input_size: tuple[int, int]) -> Iterator[_Level]:
    if not maps or len(maps) != len(detects):
        raise UsageError(f"{len(maps)} maps were given for {len(detects)} heads; one map per head is needed")
    for index, (raw, detect) in enumerate(zip(maps, detects, strict=True)):
        channels = len(detect.mask) * detect.num_outputs
        if len(raw.shape) != 4 or raw.shape[1] != channels or raw.shape[0] != maps[0].shape[0]:
            expected = f"({maps[0].shape[0]}, {channels}, height, width)"
            raise UsageError(f"the map of head {index} has shape {tuple(raw.shape)}; its head needs {expected}")
        batch, _, height, width = raw.shape
        shape = (batch, len(detect.mask), detect.num_outputs, height * width)
        cells = array_namespace(raw).reshape(raw, shape)
        yield _Level(cells, detect, height, width, input_size[0] / height, input_size[1] / width)


def _allowed_classes(level: _Level, class_filter: Sequence[int] | None) -> Array | None:
    """Mask (classes,) bool of the classes to keep; None for all."""
    if class_filter is None:
        return None
    num_classes = level.detect.num_classes
    for class_id in class_filter:
        if not 0 <= class_id < num_classes:
            raise UsageError(f"class {class_id} does not exist; the classes are 0 to {num_classes - 1}")
    return level.column([float(class_id in class_filter) for class_id in range(num_classes)]) > 0


def logistic(logits: Array) -> Array:
    """1 / (1 + exp(-x)), accurate relative to the result and silent for any input; NaN stays NaN."""
    xp = array_namespace(logits)
    return 1 / (1 + xp.exp(-at_least(logits, -LOGIT_LIMIT)))  # only exp of large numbers overflows


def _probability(values: Array, detect: Detect) -> Array:
    if detect.activated:
        return array_namespace(values).clip(values, 0.0, 1.0)  # changes nothing that a logistic gives out
    return logistic(values)


def _softmax(logits: Array, axis: int) -> Array:
    xp = array_namespace(logits)
    logits = xp.clip(logits, -FINITE, FINITE)  # infinite logits saturate instead of giving inf - inf
    powers = xp.exp(xp.clip(logits - xp.max(logits, axis=axis, keepdims=True), -LOGIT_LIMIT, 0))
    return powers / xp.sum(powers, axis=axis, keepdims=True)


def _centre(values: Array, cell: Array, stride: float | Array, detect: Detect) -> Array:
    """Coordinates of centres in pixels, from tx or ty, the index of the cell and its side (they broadcast)."""
    gain = 2.0 if detect.decoding == "sigmoid-squared" else detect.scale_xy
    return (gain * _probability(values, detect) - (gain - 1) / 2 + cell) * stride


def _size(values: Array, anchor: Array, detect: Detect) -> Array:
    """Sides of boxes in pixels, from tw or th and the side of the anchor in pixels (they broadcast)."""
    if detect.decoding == "sigmoid-squared":
        return (2 * _probability(values, detect)) ** 2 * anchor
    xp = array_namespace(values)
    return xp.exp(at_most(values, LOG_SIZE_LIMIT)) * anchor


def _decode_level(level: _Level) -> Array:
    """All rows (batch, anchors * cells, 5 + classes) of one head."""
    xp = array_namespace(level.raw)
    raw, detect = xp.astype(level.raw, xp.float32), level.detect
    box = xp.stack((*_box_columns(level, raw), _probability(raw[:, :, 4, :], detect)), axis=2)
    classes = raw[:, :, 5:, :]
    classes = _softmax(classes, axis=2) if detect.softmax else _probability(classes, detect)
    rows = xp.permute_dims(xp.concat((box, classes), axis=2), (0, 1, 3, 2))
    return xp.reshape(rows, (raw.shape[0], -1, detect.num_outputs))


def _box_columns(level: _Level, raw: Array) -> tuple[Array, Array, Array, Array]:
    """Centres x, y, widths, heights (batch, anchors, cells) in pixels from raw values (batch, anchors, 4+, cells)."""
    xp, detect = array_namespace(raw), level.detect
    cells = xp.arange(level.height * level.width, device=device(raw))
    grid_y, grid_x = (xp.astype(index, xp.float32) for index in (cells // level.width, cells % level.width))
    anchor_width, anchor_height = (sides[:, None] for sides in level.anchor_sides())
    return (
        _centre(raw[:, :, 0, :], grid_x, level.stride_x, detect),
        _centre(raw[:, :, 1, :], grid_y, level.stride_y, detect),
        _size(raw[:, :, 2, :], anchor_width, detect),
        _size(raw[:, :, 3, :], anchor_height, detect),
    )


def _decode_best(level: _Level) -> tuple[Array, Array, Array]:
    """Boxes (batch, rows, 4) cxcywh, scores (batch, rows) and best classes (batch, rows) of one head.

    Of the classes only the largest raw value of each row is computed further, and in the dtype of the map it is found:
    they are nearly all of the map, which is read once and never written.
    """
    xp, detect = array_namespace(level.raw), level.detect
    batch = level.raw.shape[0]
    columns = _box_columns(level, xp.astype(level.raw[:, :, :4, :], xp.float32))
    classes = level.raw[:, :, 5:, :]
    if detect.softmax:
        best = xp.max(_softmax(xp.astype(classes, xp.float32), axis=2), axis=2)
    else:
        best = _probability(xp.astype(xp.max(classes, axis=2), xp.float32), detect)
    scores = _probability(xp.astype(level.raw[:, :, 4, :], xp.float32), detect) * best
    rows = (xp.stack(columns, axis=-1), scores, xp.argmax(classes, axis=2))
    shapes = ((batch, -1, 4), (batch, -1), (batch, -1))
    boxes, scores, class_ids = (xp.reshape(values, shape) for values, shape in zip(rows, shapes, strict=True))
    return boxes, scores, class_ids


def _raw_limit(threshold: float, detect: Detect) -> float:
    """The raw value that any probability above the threshold exceeds."""
    threshold *= 1 - RAW_MARGIN
    if detect.activated:
        return threshold
    return math.log(threshold / (1 - threshold)) if threshold > 0 else -math.inf


def _level_candidates(
    level: _Level, threshold: float, multi_label: bool, allowed: Array | None
) -> tuple[Array, Array, Array, Array]:
    """Image index, box (xyxy), score and class of one head's survivors."""
    xp = array_namespace(level.raw)
    _, num_anchors, outputs, cells = level.raw.shape
    objectness = xp.astype(level.raw[:, :, 4, :], xp.float32)
    # Objectness alone bounds the score: one comparison with a plane per anchor dismisses nearly everything.
    (slot,) = xp.nonzero(xp.reshape(objectness > _raw_limit(threshold, level.detect), (-1,)))
    plane, cell = slot // cells, slot % cells
    channel = xp.arange(outputs, device=device(level.raw))[:, None]
    address = xp.reshape((plane * outputs + channel) * cells + cell, (-1,))
    values = xp.take(xp.reshape(level.raw, (-1,)), address)
    values = xp.astype(xp.reshape(values, (outputs, slot.shape[0])), xp.float32)

    select = _all_classes if multi_label else _best_class
    row, class_ids, scores = select(values[4:, :], threshold, level.detect)
    plane, cell, values = plane[row], cell[row], values[:4, row]
    boxes_xyxy = cxcywh_to_xyxy(_decode_boxes(level, values, plane % num_anchors, cell))
    keep = (scores > threshold) & xp.all(xp.isfinite(boxes_xyxy), axis=-1)
    if allowed is not None:
        keep = keep & allowed[class_ids]
    return (plane // num_anchors)[keep], boxes_xyxy[keep], scores[keep], class_ids[keep]


def _best_class(values: Array, threshold: float, detect: Detect) -> tuple[Array, Array, Array]:
    """Position, class and score of every survivor (values: objectness and classes, (1 + classes, n))."""
    xp = array_namespace(values)
    classes = values[1:, :]
    class_ids = xp.argmax(classes, axis=0)
    if detect.softmax:
        best = xp.max(_softmax(classes, axis=0), axis=0)
    else:
        best = _probability(xp.max(classes, axis=0), detect)
    scores = _probability(values[0, :], detect) * best
    return xp.arange(values.shape[1], device=device(values)), class_ids, scores


def _all_classes(values: Array, threshold: float, detect: Detect) -> tuple[Array, Array, Array]:
    """Position, class and score of every pair of a survivor and a class that may be above the threshold."""
    xp = array_namespace(values)
    objectness = _probability(values[0, :], detect)
    classes = _softmax(values[1:, :], axis=0) if detect.softmax else values[1:, :]
    # Pairs are chosen before the logistic: the class has to supply what objectness leaves of the threshold.
    share = xp.clip(threshold * (1 - RAW_MARGIN) / objectness, 0.0, 1.0) if threshold > 0 else 0 * objectness
    limit = share if detect.softmax or detect.activated else _logit(share)
    row, class_ids = xp.nonzero(xp.permute_dims(classes > limit, (1, 0)))
    chosen = classes[class_ids, row]
    return row, class_ids, objectness[row] * (chosen if detect.softmax else _probability(chosen, detect))


def _logit(probabilities: Array) -> Array:
    """Inverse of :func:`logistic`; saturates where float32 does, and is minus infinity at 0."""
    xp = array_namespace(probabilities)
    inside = xp.clip(probabilities, math.exp(-LOGIT_LIMIT), 1 - 1e-7)
    return xp.where(probabilities > 0, xp.log(inside) - xp.log1p(-inside), -math.inf)


def _decode_boxes(level: _Level, values: Array, anchor: Array, cell: Array) -> Array:
    """Boxes (n, 4) cxcywh in pixels from tx, ty, tw, th (4, n) and the indices (n,) of anchor and cell."""
    xp, detect = array_namespace(values), level.detect
    sides = xp.stack(level.anchor_sides())[:, anchor]
    corners = xp.astype(xp.stack((cell % level.width, cell // level.width)), xp.float32)
    strides = level.column((level.stride_x, level.stride_y))[:, None]
    centres = _centre(values[:2, :], corners, strides, detect)
    return xp.permute_dims(xp.concat((centres, _size(values[2:, :], sides, detect)), axis=0), (1, 0))
