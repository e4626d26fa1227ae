"""Decoding and suppression appended to an ONNX model, in standard operators.

The raw maps give way to two outputs: ``detections`` (batch, max_detections, 6) float32, rows of x1, y1, x2, y2 in
pixels of the network input, score and class id, by descending score, zero beyond the count; ``count`` (batch,) int64.

The formulas are those of :mod:`scaledyolo.postprocess.decode`, the rule that of greedy suppression in
:mod:`scaledyolo.postprocess.nms`, where a box counts for its best class only. A box has one class, so its score fills
one cell of a plane (batch, boxes): what ``NonMaxSuppression`` selects is scattered into that plane, and ``TopK`` over
each row takes the best of each image. So every image of a batch gets its own rows, and nothing depends on the order of
selection.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from scaledyolo.arch.ops import Detect
from scaledyolo.artefact import EmbeddedNms
from scaledyolo.errors import ConversionError, UsageError
from scaledyolo.postprocess.decode import LOG_SIZE_LIMIT

if TYPE_CHECKING:
    from onnx import ModelProto

DETECTIONS: Final = "detections"
COUNT: Final = "count"
COLUMNS: Final = 6


def append_detections(
    model: ModelProto, detects: Sequence[Detect], strides: Sequence[int], nms: EmbeddedNms
) -> ModelProto:
    """Make a model of raw maps an end-to-end one, in place.

    Args:
        model: with one output, (batch, anchors * (5 + classes), height, width), for each head.
        detects: the heads in the order of the outputs.
        strides: input pixels per cell of each head.
        nms: thresholds and number of rows.

    Raises:
        ConversionError: the model has another number of outputs than there are heads.
        UsageError: a threshold that makes no sense.
    """
    if len(model.graph.output) != len(detects):
        raise ConversionError(f"the model has {len(model.graph.output)} outputs for {len(detects)} heads")
    if not (0 <= nms.confidence < 1 and 0 <= nms.iou <= 1 and nms.max_detections >= 1):
        raise UsageError(f"confidence and IoU lie between 0 and 1, and at least one row is needed; got {nms}")
    writer = _Writer(model)
    heads = [
        _decode(writer, output.name, detect, stride)
        for output, detect, stride in zip(list(model.graph.output), detects, strides, strict=True)
    ]
    boxes, scores, classes = (
        writer.emit("Concat", parts, f"all.{label}", axis=1)
        for parts, label in zip(zip(*heads, strict=True), ("boxes", "scores", "classes"), strict=True)
    )
    kept = _suppress(writer, boxes, scores, classes, nms, detects[0].num_classes)
    _gather_rows(writer, boxes, kept, classes, nms)
    batch = model.graph.input[0].type.tensor_type.shape.dim[0]
    size: Any = batch.dim_param if batch.dim_param else batch.dim_value
    del model.graph.output[:]
    model.graph.output.append(writer.value_info(DETECTIONS, "float32", [size, nms.max_detections, COLUMNS]))
    model.graph.output.append(writer.value_info(COUNT, "int64", [size]))
    return model


class _Writer:
    """Appends nodes and constants to a model."""

    def __init__(self, model: ModelProto) -> None:
        import onnx

        self._onnx, self._graph = onnx, model.graph

    def emit(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """One node, named like its output; returns that."""
        node = self._onnx.helper.make_node(kind, list(inputs), [output], name=output, **attributes)
        self._graph.node.append(node)
        return output

    def emit_pair(self, kind: str, inputs: Sequence[str], outputs: tuple[str, str], **attributes: Any) -> None:
        """One node with two outputs."""
        node = self._onnx.helper.make_node(kind, list(inputs), list(outputs), name=outputs[0], **attributes)
        self._graph.node.append(node)

    def floats(self, values: Any, name: str) -> str:
        """A float32 constant."""
        return self._constant(np.asarray(values, np.float32), name)

    def integers(self, values: Any, name: str) -> str:
        """An int64 constant."""
        return self._constant(np.asarray(values, np.int64), name)

    def _constant(self, array: NDArray[Any], name: str) -> str:
        self._graph.initializer.append(self._onnx.numpy_helper.from_array(array, name))
        return name

    def cast(self, value: str, dtype: str, output: str) -> str:
        """A change of dtype, ``float32`` or ``int64``."""
        return self.emit("Cast", [value], output, to=self._kind(dtype))

    def value_info(self, name: str, dtype: str, shape: Sequence[int | str]) -> Any:
        """Description of an output."""
        return self._onnx.helper.make_tensor_value_info(name, self._kind(dtype), list(shape))

    def _kind(self, dtype: str) -> int:
        kinds = {"float32": self._onnx.TensorProto.FLOAT, "int64": self._onnx.TensorProto.INT64}
        return int(kinds[dtype])


def _decode(w: _Writer, raw: str, detect: Detect, stride: int) -> tuple[str, str, str]:
    """Boxes xyxy (batch, n, 4), scores (batch, n) and class ids (batch, n) int64 of one head; n by anchor, y, x."""
    p = f"{raw}.decode"
    anchors, outputs = len(detect.mask), detect.num_outputs
    cells = w.emit("Reshape", [raw, w.integers([0, anchors, outputs, -1], f"{p}.shape")], f"{p}.cells")
    axis = w.integers([2], f"{p}.axis")
    bounds = {edge: w.integers([edge], f"{p}.edge{edge}") for edge in (0, 2, 4, 5, outputs)}

    def rows(begin: int, end: int, label: str) -> str:
        return w.emit("Slice", [cells, bounds[begin], bounds[end], axis], f"{p}.{label}")

    centre = _centre(w, p, rows(0, 2, "txy"), _grid(w, p, raw), detect, stride)
    half = _half_size(w, p, rows(2, 4, "twh"), detect)
    corners = [w.emit("Sub", [centre, half], f"{p}.x1y1"), w.emit("Add", [centre, half], f"{p}.x2y2")]
    by_row = w.emit("Concat", corners, f"{p}.corners", axis=2)
    by_box = w.emit("Transpose", [by_row], f"{p}.by_box", perm=[0, 1, 3, 2])
    boxes = w.emit("Reshape", [by_box, w.integers([0, -1, 4], f"{p}.boxes_shape")], f"{p}.boxes")

    logits = rows(5, outputs, "class_logits")
    if detect.softmax:
        logits = w.emit("Softmax", [logits], f"{p}.softmax", axis=2)
    best = w.emit("ReduceMax", [logits], f"{p}.best_logit", axes=[2], keepdims=1)
    best = best if detect.softmax else _probability(w, best, detect, f"{p}.best")
    objectness = _probability(w, rows(4, 5, "objectness_logit"), detect, f"{p}.objectness")
    score = w.emit("Mul", [objectness, best], f"{p}.score")
    index = w.emit("ArgMax", [logits], f"{p}.class", axis=2, keepdims=1)
    flat = w.integers([0, -1], f"{p}.flat")
    return boxes, w.emit("Reshape", [score, flat], f"{p}.scores"), w.emit("Reshape", [index, flat], f"{p}.classes")


def _probability(w: _Writer, value: str, detect: Detect, output: str) -> str:
    if detect.activated:
        limits = [w.floats(0.0, f"{output}.zero"), w.floats(1.0, f"{output}.one")]
        return w.emit("Clip", [value, *limits], output)
    return w.emit("Sigmoid", [value], output)


def _grid(w: _Writer, p: str, raw: str) -> str:
    """Column and row of every cell, (1, 1, 2, cells) float32, for whatever size the map has."""
    size = w.emit("Shape", [raw], f"{p}.size", start=2, end=4)
    number = w.emit("ReduceProd", [size], f"{p}.number", axes=[0], keepdims=0)
    width = w.emit("Gather", [size, w.integers([1], f"{p}.second")], f"{p}.width")
    ends = [w.integers(0, f"{p}.first"), number, w.integers(1, f"{p}.step")]
    index = w.emit("Range", ends, f"{p}.index")
    both = [w.emit("Mod", [index, width], f"{p}.column"), w.emit("Div", [index, width], f"{p}.row")]
    grid = w.cast(w.emit("Concat", both, f"{p}.grid_flat", axis=0), "float32", f"{p}.grid_float")
    return w.emit("Reshape", [grid, w.integers([1, 1, 2, -1], f"{p}.grid_shape")], f"{p}.grid")


def _centre(w: _Writer, p: str, raw: str, grid: str, detect: Detect, stride: int) -> str:
    gain = 2.0 if detect.decoding == "sigmoid-squared" else detect.scale_xy
    offset = w.emit("Mul", [_probability(w, raw, detect, f"{p}.xy"), w.floats(gain, f"{p}.gain")], f"{p}.scaled_xy")
    shifted = w.emit("Sub", [offset, w.floats((gain - 1) / 2, f"{p}.shift")], f"{p}.shifted_xy")
    in_cells = w.emit("Add", [shifted, grid], f"{p}.xy_in_cells")
    return w.emit("Mul", [in_cells, w.floats(stride, f"{p}.stride")], f"{p}.centre")


def _half_size(w: _Writer, p: str, raw: str, detect: Detect) -> str:
    """Half of width and height in pixels, (batch, anchors, 2, cells)."""
    half_anchors = w.floats(np.asarray(detect.level_anchors).reshape(1, -1, 2, 1) / 2, f"{p}.half_anchors")
    if detect.decoding == "sigmoid-squared":
        doubled = w.emit("Mul", [_probability(w, raw, detect, f"{p}.wh"), w.floats(2.0, f"{p}.two")], f"{p}.wh2")
        factor = w.emit("Mul", [doubled, doubled], f"{p}.factor")
    else:
        cut = w.emit("Min", [raw, w.floats(LOG_SIZE_LIMIT, f"{p}.limit")], f"{p}.cut_wh")
        factor = w.emit("Exp", [cut], f"{p}.factor")
    return w.emit("Mul", [factor, half_anchors], f"{p}.half_size")


def _suppress(w: _Writer, boxes: str, scores: str, classes: str, nms: EmbeddedNms, num_classes: int) -> str:
    """Scores (batch, boxes) of what is kept, zero elsewhere."""
    zero, confidence = w.floats(0.0, "nms.zero"), w.floats(nms.confidence, "nms.confidence")
    above = w.emit("Greater", [scores, confidence], "nms.above")
    scores = w.emit("Where", [above, scores, zero], "nms.scores")
    second = w.integers([1], "nms.second_axis")
    by_class = w.emit("Unsqueeze", [scores, second], "nms.score_row")
    if not nms.class_agnostic:
        every = w.integers(np.arange(num_classes).reshape(1, -1, 1), "nms.every_class")
        own = w.emit("Equal", [w.emit("Unsqueeze", [classes, second], "nms.class_row"), every], "nms.own_class")
        by_class = w.emit("Where", [own, by_class, zero], "nms.scores_by_class")
    limits = [
        w.integers([nms.max_detections], "nms.most"),
        w.floats([nms.iou], "nms.iou"),
        w.floats([nms.confidence], "nms.least_score"),
    ]
    selected = w.emit("NonMaxSuppression", [boxes, by_class, *limits], "nms.selected")
    address = w.emit("Gather", [selected, w.integers([0, 2], "nms.image_and_box")], "nms.address", axis=1)
    values = w.emit("GatherND", [scores, address], "nms.values")
    nothing = w.emit("Sub", [scores, scores], "nms.nothing")
    return w.emit("ScatterND", [nothing, address, values], "nms.kept")


def _gather_rows(w: _Writer, boxes: str, kept: str, classes: str, nms: EmbeddedNms) -> None:
    """Rows and their count for each image."""
    most = w.integers([nms.max_detections], "rows.most")
    number = w.emit("Shape", [kept], "rows.number", start=1, end=2)
    taken = w.emit("Min", [most, number], "rows.taken")
    w.emit_pair("TopK", [kept, taken], ("rows.scores", "rows.index"), axis=1)
    last = w.integers([2], "rows.last_axis")
    index = w.emit("Unsqueeze", ["rows.index", last], "rows.index_column")
    columns = [
        w.emit("GatherND", [boxes, index], "rows.boxes", batch_dims=1),
        w.emit("Unsqueeze", ["rows.scores", last], "rows.score_column"),
        w.cast(
            w.emit("GatherND", [w.emit("Unsqueeze", [classes, last], "rows.all_classes"), index], "rows.classes",
                   batch_dims=1),
            "float32",
            "rows.class_column",
        ),
    ]  # fmt: skip
    rows = w.emit("Concat", columns, "rows.all", axis=2)
    valid = w.emit("Greater", ["rows.scores", w.floats(0.0, "rows.zero")], "rows.valid")
    rows = w.emit("Where", [w.emit("Unsqueeze", [valid, last], "rows.valid_column"), rows, "rows.zero"], "rows.clean")
    missing = w.emit("Sub", [most, taken], "rows.missing")
    before, after = w.integers([0, 0, 0, 0], "rows.pad_before"), w.integers([0], "rows.pad_after")
    pads = w.emit("Concat", [before, missing, after], "rows.pads", axis=0)
    w.emit("Pad", [rows, pads], DETECTIONS)
    ones = w.cast(valid, "int64", "rows.ones")
    w.emit("ReduceSum", [ones, w.integers([1], "rows.first_axis")], COUNT, keepdims=0)
