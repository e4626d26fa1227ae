"""Graph and weights -> TensorFlow Lite (LiteRT), written operator by operator: no TensorFlow, no tracing.

Images and maps lie channels last, as the runtime wants them: input (batch, height, width, 3) float32 in [0, 1], one
output (batch, height / stride, width / stride, channels) for each head. The size is fixed, the batch may be free.

Convolutions know two paddings only, none and TensorFlow's SAME, which for a stride of 2 pads the other side: what is
not the same is padded by an operator of its own.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from scaledyolo.arch.graph import Graph, Node
from scaledyolo.arch.ops import (
    Activate,
    Activation,
    Add,
    Affine,
    ChannelSplit,
    Concat,
    Conv,
    DepthToSpace,
    Detect,
    GlobalAveragePool,
    Implicit,
    Multiply,
    Pool,
    Reorg,
    Shape,
    SpaceToDepth,
    Upsample,
)
from scaledyolo.convert.fold import cascade_pools, fold
from scaledyolo.convert.tflite_activations import FUSED, write_activation
from scaledyolo.convert.tflite_file import TfliteFile
from scaledyolo.errors import ConversionError
from scaledyolo.weights import Array, Weights, as_float16

INPUT_NAME: Final = "images"
_SAME, _VALID = 0, 1
_LOWEST: Final = np.float32(np.finfo(np.float32).min)  # what lies outside, to a maximum
_TO_CHANNELS_FIRST, _TO_CHANNELS_LAST = (0, 3, 1, 2), (0, 2, 3, 1)


def to_tflite(
    graph: Graph,
    weights: Mapping[str, Array],
    *,
    batch: int | None = 1,
    half: bool = False,
    metadata: Mapping[str, str] | None = None,
) -> bytes:
    """Write a network as a tflite file.

    Args:
        graph: the network; its height and width become the input size.
        weights: exactly ``graph.parameters``, float32; folded on the way.
        batch: images at a time, or None for any number.
        half: store the weights of convolutions as float16.
        metadata: texts by name.

    Raises:
        CheckpointError: the weights are not those of the graph.
        ConversionError: a node has no counterpart; names it. Or the file would be too large.
        MissingPackageError: ai-edge-litert is not installed.
    """
    folded, folded_weights = fold(graph, weights)
    return TfliteWriter(cascade_pools(folded), folded_weights, batch, half).content(metadata or {})


class TfliteWriter:
    """Writes the nodes of a graph; one method for each kind of operation."""

    def __init__(self, graph: Graph, weights: Weights, batch: int | None, half: bool) -> None:
        self.graph, self.weights, self.batch, self.half = graph, weights, batch, half
        self.file = TfliteFile(graph.name)
        self.schema = self.file.schema
        self.shapes = graph.shapes(graph.height, graph.width)
        self.values: dict[str, int] = {}

    def content(self, metadata: Mapping[str, str]) -> bytes:
        """The whole file."""
        image = self.new(INPUT_NAME, self.shapes[Graph.INPUT])
        self.values[Graph.INPUT] = image
        for node in self.graph:
            if type(node.op) not in _WRITERS:
                raise self.unwritable(node, f"{type(node.op).__name__} has no counterpart")
            self.values[node.name] = _WRITERS[type(node.op)](self, node)
        return self.file.content([image], [self.values[head.name] for head in self.graph.heads], metadata)

    def unwritable(self, node: Node, reason: str) -> ConversionError:
        """The error for a node."""
        return ConversionError(f"{self.graph.name}: node {node.name!r}: {reason} in tflite; use --format onnx")

    # -- values ------------------------------------------------------------------------------------------------------

    def new(self, name: str, shape: Shape) -> int:
        """A computed value, channels last."""
        return self.file.tensor(name, [self.batch, shape.height, shape.width, shape.channels])

    def floats(self, values: Any, name: str) -> int:
        """A float32 constant."""
        return self.file.constant(name, np.asarray(values, np.float32))

    def integers(self, values: Any, name: str) -> int:
        """An int32 constant."""
        return self.file.constant(name, np.asarray(values, np.int32))

    def emit(self, kind: str, inputs: Sequence[int], name: str, shape: Shape, options: str = "", **values: Any) -> int:
        """An operator with one output; ``values`` are the fields of its options."""
        chosen = getattr(self.schema, f"{options}T")() if options else None
        for field, value in values.items():
            assert hasattr(chosen, field), field
            setattr(chosen, field, value)
        return self.file.operator(kind, inputs, self.new(name, shape), chosen)

    def inputs(self, node: Node) -> list[int]:
        """Values that a node reads."""
        return [self.values[source] for source in node.inputs]

    def activated(self, node: Node, activation: Activation, value: int) -> int:
        """An activation over a value of the node's shape."""
        return write_activation(self, activation, value, node.name, self.shapes[node.name])

    def _filter(self, name: str, array: Array) -> int:
        """Weights of a convolution; float16 ones are widened when the model is loaded."""
        array = np.ascontiguousarray(array)
        if not self.half:
            return self.file.constant(name, array)
        wide = self.file.tensor(f"{name}.wide", array.shape)
        stored = self.file.constant(name, as_float16(name, array))
        return self.file.operator("DEQUANTIZE", [stored], wide, self.schema.DequantizeOptionsT(), version=3)

    def _padded(self, value: int, shape: Shape, begin: int, end: int, outside: float, name: str) -> tuple[int, Shape]:
        padded = Shape(shape.channels, shape.height + begin + end, shape.width + begin + end)
        pads = self.integers([[0, 0], [begin, end], [begin, end], [0, 0]], f"{name}.pads")
        if outside == 0:
            return self.emit("PAD", [value, pads], f"{name}.padded", padded, "PadOptions"), padded
        fill = self.floats(outside, f"{name}.outside")
        return self.emit("PADV2", [value, pads, fill], f"{name}.padded", padded, "PadV2Options"), padded

    def channels(self, value: int, begin: int, count: int, name: str, shape: Shape) -> int:
        """A run of channels of a value; ``shape`` is that of the value."""
        bounds = [self.integers([0, 0, 0, begin], f"{name}.begin"), self.integers([-1, -1, -1, count], f"{name}.size")]
        return self.emit("SLICE", [value, *bounds], name, shape._replace(channels=count), "SliceOptions")

    # -- operations --------------------------------------------------------------------------------------------------

    def conv(self, node: Node) -> int:
        """Convolution with its activation."""
        op, name = node.op, node.name
        assert isinstance(op, Conv)
        shape, out = self.shapes[node.inputs[0]], self.shapes[name]
        (value,) = self.inputs(node)
        same = op.stride == (1, 1) and 2 * op.padding == op.dilation * (op.kernel - 1)
        if op.padding and not same:
            value, _ = self._padded(value, shape, op.padding, op.padding, 0.0, name)
        weight = self.weights[f"{name}.weight"]  # filters, channels of a group, rows, columns
        bias = self.weights[f"{name}.bias"] if op.bias else np.zeros(op.filters, np.float32)
        options: dict[str, Any] = {
            "padding": _SAME if same else _VALID,
            "strideH": op.stride[0],
            "strideW": op.stride[1],
            "dilationHFactor": op.dilation,
            "dilationWFactor": op.dilation,
            "fusedActivationFunction": FUSED.get(op.activation, 0),
        }
        depthwise = op.groups > 1 and op.groups == shape.channels
        if depthwise:
            options["depthMultiplier"] = op.filters // shape.channels
            arranged = self._filter(f"{name}.weight", weight.transpose(1, 2, 3, 0))
        else:
            arranged = self._filter(f"{name}.weight", weight.transpose(0, 2, 3, 1))
        kind, fields = ("DEPTHWISE_CONV_2D", "DepthwiseConv2DOptions") if depthwise else ("CONV_2D", "Conv2DOptions")
        fused = op.activation in FUSED or op.activation == "linear"
        result = self.emit(
            kind,
            [value, arranged, self.floats(bias, f"{name}.bias")],
            name if fused else f"{name}.linear",
            out,
            fields,
            **options,
        )
        return result if fused else self.activated(node, op.activation, result)

    def affine(self, node: Node) -> int:
        """Per-channel scale and shift."""
        assert isinstance(node.op, Affine)
        name, shape = node.name, self.shapes[node.name]
        scale, bias = (self.floats(self.weights[f"{name}.{key}"], f"{name}.{key}") for key in ("scale", "bias"))
        scaled = self.emit("MUL", [*self.inputs(node), scale], f"{name}.scaled", shape, "MulOptions")
        shifted = self.emit("ADD", [scaled, bias], f"{name}.linear", shape, "AddOptions")
        return self.activated(node, node.op.activation, shifted)

    def implicit(self, node: Node) -> int:
        """A learned vector that could not be folded."""
        assert isinstance(node.op, Implicit)
        vector = self.floats(self.weights[f"{node.name}.implicit"], f"{node.name}.implicit")
        kind, options = ("ADD", "AddOptions") if node.op.kind == "add" else ("MUL", "MulOptions")
        return self.emit(kind, [*self.inputs(node), vector], node.name, self.shapes[node.name], options)

    def activate(self, node: Node) -> int:
        """An activation on its own."""
        assert isinstance(node.op, Activate)
        return self.activated(node, node.op.activation, self.inputs(node)[0])

    def pool(self, node: Node) -> int:
        """Max or average pooling; outside the picture counts as minus infinity or not at all."""
        op, name = node.op, node.name
        assert isinstance(op, Pool)
        (value,), shape = self.inputs(node), self.shapes[node.inputs[0]]
        same = op.stride == 1 and op.padding == op.kernel - 1
        if op.padding and not same:
            if op.kind == "average":
                raise self.unwritable(node, f"average pooling with a padding of {op.padding} cannot be written")
            begin = op.padding // 2
            value, _ = self._padded(value, shape, begin, op.padding - begin, float(_LOWEST), name)
        return self.emit(
            "MAX_POOL_2D" if op.kind == "max" else "AVERAGE_POOL_2D",
            [value],
            name,
            self.shapes[name],
            "Pool2DOptions",
            padding=_SAME if same else _VALID,
            strideH=op.stride,
            strideW=op.stride,
            filterHeight=op.kernel,
            filterWidth=op.kernel,
        )

    def global_average_pool(self, node: Node) -> int:
        """Mean over all positions."""
        axes = self.integers([1, 2], "both_sides")
        shape = self.shapes[node.name]
        return self.emit("MEAN", [*self.inputs(node), axes], node.name, shape, "ReducerOptions", keepDims=True)

    def upsample(self, node: Node) -> int:
        """Nearest-neighbour enlargement."""
        op, name, shape = node.op, node.name, self.shapes[node.name]
        assert isinstance(op, Upsample)
        size = self.integers([shape.height, shape.width], f"{name}.size")
        inputs = [*self.inputs(node), size]
        if op.gain == 1:
            return self.emit("RESIZE_NEAREST_NEIGHBOR", inputs, name, shape, "ResizeNearestNeighborOptions")
        plain = self.emit("RESIZE_NEAREST_NEIGHBOR", inputs, f"{name}.plain", shape, "ResizeNearestNeighborOptions")
        return self.emit("MUL", [plain, self.floats([op.gain], f"{name}.gain")], name, shape, "MulOptions")

    def concat(self, node: Node) -> int:
        """Concatenation of channels."""
        shape = self.shapes[node.name]
        return self.emit("CONCATENATION", self.inputs(node), node.name, shape, "ConcatenationOptions", axis=3)

    def channel_split(self, node: Node) -> int:
        """One of several equal runs of channels."""
        assert isinstance(node.op, ChannelSplit)
        run = self.shapes[node.name].channels
        return self.channels(self.inputs(node)[0], run * node.op.index, run, node.name, self.shapes[node.inputs[0]])

    def add(self, node: Node) -> int:
        """Sum; surplus channels are dropped, missing ones count as zero."""
        op, name, shape = node.op, node.name, self.shapes[node.name]
        assert isinstance(op, Add)
        table = self.weights[f"{name}.weights"] if op.weights != "none" else None
        terms = []
        for index, source in enumerate(node.inputs):
            value, given = self.values[source], self.shapes[source]
            present = min(given.channels, shape.channels)
            if given.channels > present:
                value = self.channels(value, 0, present, f"{name}.term{index}.cut", given)
            held = shape._replace(channels=present)
            if table is not None:
                factor = self.floats(table[index][:present], f"{name}.term{index}.weight")
                value = self.emit("MUL", [value, factor], f"{name}.term{index}.weighted", held, "MulOptions")
            if present < shape.channels:
                pads = self.integers([[0, 0], [0, 0], [0, 0], [0, shape.channels - present]], f"{name}.pads{index}")
                value = self.emit("PAD", [value, pads], f"{name}.term{index}.padded", shape, "PadOptions")
            terms.append(value)
        total = terms[0]
        for index, term in enumerate(terms[1:], 1):
            total = self.emit("ADD", [total, term], f"{name}.sum{index}", shape, "AddOptions")
        return self.activated(node, op.activation, total)

    def multiply(self, node: Node) -> int:
        """Product of value and gate."""
        assert isinstance(node.op, Multiply)
        product = self.emit("MUL", self.inputs(node), f"{node.name}.linear", self.shapes[node.name], "MulOptions")
        return self.activated(node, node.op.activation, product)

    def space_to_depth(self, node: Node) -> int:
        """Blocks of pixels become channels."""
        op, name, shape = node.op, node.name, self.shapes[node.name]
        assert isinstance(op, SpaceToDepth)
        rows = self._blocks(self.inputs(node)[0], op.block, name if op.order == "row" else f"{name}.rows", shape)
        if op.order == "row":  # the order of TensorFlow
            return rows
        run = self.shapes[node.inputs[0]].channels
        places = [row * op.block + column for column in range(op.block) for row in range(op.block)]
        runs = [self.channels(rows, place * run, run, f"{name}.pixel{place}", shape) for place in places]
        return self.emit("CONCATENATION", runs, name, shape, "ConcatenationOptions", axis=3)

    def _blocks(self, value: int, block: int, name: str, shape: Shape) -> int:
        return self.emit("SPACE_TO_DEPTH", [value], name, shape, "SpaceToDepthOptions", blockSize=block)

    def depth_to_space(self, node: Node) -> int:
        """Channels become blocks of pixels."""
        assert isinstance(node.op, DepthToSpace)
        shape, block = self.shapes[node.name], node.op.block
        return self.emit("DEPTH_TO_SPACE", self.inputs(node), node.name, shape, "DepthToSpaceOptions", blockSize=block)

    def reorg(self, node: Node) -> int:
        """The channels-first buffer read with other dimensions, space to depth, read with others again (YOLOv2)."""
        op, name, out = node.op, node.name, self.shapes[node.name]
        assert isinstance(op, Reorg)
        given = self.shapes[node.inputs[0]]
        wide = Shape(given.channels // op.block**2, given.height * op.block, given.width * op.block)
        value = self._reread(self.inputs(node)[0], given, wide, f"{name}.wide")
        deep = Shape(wide.channels * op.block**2, wide.height // op.block, wide.width // op.block)
        return self._reread(self._blocks(value, op.block, f"{name}.deep", deep), deep, out, name)

    def _reread(self, value: int, given: Shape, wanted: Shape, name: str) -> int:
        """The buffer of a value, channels first, read with other sides."""
        first = self._transposed(value, _TO_CHANNELS_FIRST, f"{name}.first", [self.batch, *given])
        sides = [-1, *wanted]
        options = self.schema.ReshapeOptionsT()
        options.newShape = sides
        target = self.file.tensor(f"{name}.reshaped", [self.batch, *wanted])
        reshaped = self.file.operator("RESHAPE", [first, self.integers(sides, f"{name}.sides")], target, options)
        last = [self.batch, wanted.height, wanted.width, wanted.channels]
        return self._transposed(reshaped, _TO_CHANNELS_LAST, name, last)

    def _transposed(self, value: int, order: Sequence[int], name: str, shape: Sequence[int | None]) -> int:
        permutation: NDArray[np.int32] = np.asarray(order, np.int32)
        inputs = [value, self.file.constant(f"{name}.order", permutation)]
        return self.file.operator("TRANSPOSE", inputs, self.file.tensor(name, shape), self.schema.TransposeOptionsT())

    def detect(self, node: Node) -> int:
        """Nothing is computed."""
        return self.inputs(node)[0]


_WRITERS: Final[Mapping[type, Callable[[TfliteWriter, Node], int]]] = {
    Conv: TfliteWriter.conv,
    Affine: TfliteWriter.affine,
    Activate: TfliteWriter.activate,
    Pool: TfliteWriter.pool,
    GlobalAveragePool: TfliteWriter.global_average_pool,
    Upsample: TfliteWriter.upsample,
    Concat: TfliteWriter.concat,
    ChannelSplit: TfliteWriter.channel_split,
    Add: TfliteWriter.add,
    Multiply: TfliteWriter.multiply,
    Implicit: TfliteWriter.implicit,
    SpaceToDepth: TfliteWriter.space_to_depth,
    DepthToSpace: TfliteWriter.depth_to_space,
    Reorg: TfliteWriter.reorg,
    Detect: TfliteWriter.detect,
}
