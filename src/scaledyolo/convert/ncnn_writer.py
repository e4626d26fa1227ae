"""Graph and weights -> ncnn's pair of files: ``.param``, a layer a line, and ``.bin``, their weights one after another.

Written from ncnn's documentation (developer guide: param-and-model-file-structure, operators, binaryop-broadcasting).
What it asks for beyond ONNX:

* a value is read by one layer only, so that ``Split`` layers copy what several read;
* one image at a time, (channels, height, width); the batch is a loop outside;
* activations that a convolution knows are part of it, which saves a pass over the map.

Input and outputs have the names that ncnn's own converter gives: ``in0``; ``out0``, ``out1``, ... in head order.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from scaledyolo.arch.graph import Graph, Node
from scaledyolo.arch.ops import (
    LEAKY_SLOPE,
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
from scaledyolo.convert.ncnn_param import Layer, Value, param_text
from scaledyolo.errors import ConversionError
from scaledyolo.weights import Array, Weights, as_float16

INPUT_NAME: Final = "in0"
_FLOAT32, _FLOAT16 = 0, 0x01306B47  # flags in front of weights that may be stored in several ways
_ADD, _MULTIPLY = 0, 2  # operations of BinaryOp


def output_name(head: int) -> str:
    """Name of the raw map of a head, by its place among the heads."""
    return f"out{head}"


@dataclass(frozen=True)
class NcnnModel:
    """Content of the two files."""

    param: str
    weights: bytes


def to_ncnn(graph: Graph, weights: Mapping[str, Array], *, dynamic: bool = False, half: bool = False) -> NcnnModel:
    """Write a network for ncnn.

    Args:
        graph: the network; its height and width become the input size.
        weights: exactly ``graph.parameters``, float32; folded on the way.
        dynamic: leave height and width free (any multiple of the largest stride).
        half: store the weights of convolutions as float16.

    Raises:
        CheckpointError: the weights are not those of the graph.
        ConversionError: a node has no counterpart; names it.
    """
    folded, folded_weights = fold(graph, weights)
    return _Writer(cascade_pools(folded), folded_weights, dynamic, half).model()


@dataclass
class _Writer:
    """Collects layers and weights; one method for each kind of operation."""

    graph: Graph
    weights: Weights
    dynamic: bool
    half: bool
    layers: list[Layer] = field(default_factory=list)
    data: list[bytes] = field(default_factory=list)

    def model(self) -> NcnnModel:
        """The finished model."""
        self.shapes = self.graph.shapes(self.graph.height, self.graph.width)
        self.names = self._name_values()
        size = {} if self.dynamic else {0: self.graph.width, 1: self.graph.height, 2: self.graph.channels}
        self.layers.append(Layer("Input", INPUT_NAME, [], [INPUT_NAME], size))
        for node in self.graph:
            if type(node.op) not in _WRITERS:
                raise ConversionError(
                    f"{self.graph.name}: node {node.name!r}: {type(node.op).__name__} has no counterpart in ncnn; "
                    "use --format onnx"
                )
            _WRITERS[type(node.op)](self, node)
        return NcnnModel(param_text(self.layers), b"".join(self.data))

    def _name_values(self) -> dict[str, str]:
        names = {name: name.replace(" ", "_") for name in self.shapes}
        names[Graph.INPUT] = INPUT_NAME
        return names

    # -- layers and weights ------------------------------------------------------------------------------------------

    def emit(self, kind: str, inputs: Sequence[str], output: str, values: Mapping[int, Value] | None = None) -> str:
        """Append a layer, named like its output; returns that."""
        self.layers.append(Layer(kind, output, list(inputs), [output], values or {}))
        return output

    def store(self, name: str, array: Array, *, flagged: bool = False) -> None:
        """Append weights; ``flagged`` ones say how they are stored."""
        if flagged and self.half:
            content = as_float16(name, array).tobytes()
            self.data += [np.uint32(_FLOAT16).tobytes(), content, b"\0" * (-len(content) % 4)]
            return
        if flagged:
            self.data.append(np.uint32(_FLOAT32).tobytes())
        self.data.append(np.ascontiguousarray(array, np.float32).tobytes())

    def inputs(self, node: Node) -> list[str]:
        """Values that a node reads."""
        return [self.names[source] for source in node.inputs]

    def finish(self, node: Node, activation: Activation, emit: Callable[[str], str]) -> None:
        """Let ``emit`` write the node's value, then the activation over it."""
        value = self.names[node.name]
        if activation == "linear":
            emit(value)
        else:
            kind, values = _ACTIVATIONS[activation]
            self.emit(kind, [emit(f"{value}.linear")], value, values)

    def scale(self, source: str, scale: Array, bias: Array | None, output: str) -> str:
        """``source * scale + bias`` by channel."""
        self.store(f"{output}.scale", scale)
        if bias is not None:
            self.store(f"{output}.bias", bias)
        return self.emit("Scale", [source], output, {0: scale.size, 1: int(bias is not None)})

    def channels(self, source: str, begin: int, end: int, output: str) -> str:
        """A run of channels."""
        return self.emit("Crop", [source], output, {9: [begin], 10: [end], 11: [0]})

    # -- operations --------------------------------------------------------------------------------------------------

    def conv(self, node: Node) -> None:
        """Convolution with its activation."""
        op = node.op
        assert isinstance(op, Conv)
        weight = self.weights[f"{node.name}.weight"]
        values: dict[int, Value] = {
            0: op.filters,
            1: op.kernel,
            2: op.dilation,
            3: op.stride[1],
            4: op.padding,
            5: int(op.bias),
            6: weight.size,
            13: op.stride[0],
        }
        if op.groups > 1:
            values[7] = op.groups
        fused = _FUSED.get(op.activation)
        if fused is not None:
            values[9] = fused[0]
            if fused[1]:
                values[10] = fused[1]
        self.store(f"{node.name}.weight", weight, flagged=True)
        if op.bias:
            self.store(f"{node.name}.bias", self.weights[f"{node.name}.bias"])
        kind = "ConvolutionDepthWise" if op.groups > 1 else "Convolution"
        activation: Activation = "linear" if fused is not None else op.activation
        self.finish(node, activation, lambda value: self.emit(kind, self.inputs(node), value, values))

    def affine(self, node: Node) -> None:
        """Per-channel scale and shift."""
        assert isinstance(node.op, Affine)
        scale, bias = (self.weights[f"{node.name}.{key}"] for key in ("scale", "bias"))
        self.finish(node, node.op.activation, lambda value: self.scale(self.inputs(node)[0], scale, bias, value))

    def implicit(self, node: Node) -> None:
        """A learned vector that could not be folded."""
        assert isinstance(node.op, Implicit)
        vector = self.weights[f"{node.name}.implicit"]
        added = node.op.kind == "add"
        scale, bias = (np.ones_like(vector), vector) if added else (vector, None)
        self.scale(self.inputs(node)[0], scale, bias, self.names[node.name])

    def activate(self, node: Node) -> None:
        """An activation on its own."""
        assert isinstance(node.op, Activate)
        kind, values = _ACTIVATIONS[node.op.activation]
        self.emit(kind, self.inputs(node), self.names[node.name], values)

    def pool(self, node: Node) -> None:
        """Max or average pooling; outside the picture counts as minus infinity or not at all."""
        op = node.op
        assert isinstance(op, Pool)
        begin, end = op.padding // 2, op.padding - op.padding // 2
        explicit = 1  # pads as they are given, output sides rounded down
        values = {0: int(op.kind == "average"), 1: op.kernel, 2: op.stride, 3: begin, 14: end, 13: begin, 15: end}
        self.emit("Pooling", self.inputs(node), self.names[node.name], {**values, 5: explicit})

    def global_average_pool(self, node: Node) -> None:
        """Mean over all positions, kept in three dimensions."""
        name = self.names[node.name]
        mean = self.emit("Pooling", self.inputs(node), f"{name}.mean", {0: 1, 4: 1})
        self.emit("Reshape", [mean], name, {0: 1, 1: 1, 2: -1})

    def upsample(self, node: Node) -> None:
        """Nearest-neighbour enlargement."""
        op = node.op
        assert isinstance(op, Upsample)
        name = self.names[node.name]
        values = {0: 1, 1: float(op.scale), 2: float(op.scale)}
        enlarged = self.emit("Interp", self.inputs(node), name if op.gain == 1 else f"{name}.enlarged", values)
        if op.gain != 1:
            self.emit("BinaryOp", [enlarged], name, {0: _MULTIPLY, 1: 1, 2: float(op.gain)})

    def concat(self, node: Node) -> None:
        """Concatenation of channels."""
        self.emit("Concat", self.inputs(node), self.names[node.name], {0: 0})

    def channel_split(self, node: Node) -> None:
        """One of several equal runs of channels."""
        assert isinstance(node.op, ChannelSplit)
        run = self.shapes[node.name].channels
        first = run * node.op.index
        self.channels(self.inputs(node)[0], first, first + run, self.names[node.name])

    def add(self, node: Node) -> None:
        """Sum; surplus channels are dropped, missing ones count as zero."""
        op = node.op
        assert isinstance(op, Add)
        name, wanted = self.names[node.name], self.shapes[node.name].channels
        table = self.weights[f"{node.name}.weights"] if op.weights != "none" else None
        terms = []
        for index, (source, value) in enumerate(zip(node.inputs, self.inputs(node), strict=True)):
            present = min(self.shapes[source].channels, wanted)
            if self.shapes[source].channels > wanted:
                value = self.channels(value, 0, wanted, f"{name}.term{index}.cut")
            if table is not None:
                factor = np.broadcast_to(table[index][:present], (present,)).astype(np.float32)
                value = self.scale(value, factor, None, f"{name}.term{index}.weighted")
            if present < wanted:
                value = self.emit("Padding", [value], f"{name}.term{index}.padded", {7: 0, 8: wanted - present})
            terms.append(value)
        total = terms[0]
        for index, term in enumerate(terms[1:-1], 1):
            total = self.emit("BinaryOp", [total, term], f"{name}.sum{index}", {0: _ADD})
        last = [total, terms[-1]] if len(terms) > 1 else [total]
        kind, values = ("BinaryOp", {0: _ADD}) if len(terms) > 1 else ("Noop", {})
        self.finish(node, op.activation, lambda value: self.emit(kind, last, value, values))

    def multiply(self, node: Node) -> None:
        """Product of value and gate."""
        assert isinstance(node.op, Multiply)
        self.finish(
            node, node.op.activation, lambda value: self.emit("BinaryOp", self.inputs(node), value, {0: _MULTIPLY})
        )

    def space_to_depth(self, node: Node) -> None:
        """Blocks of pixels become channels."""
        op = node.op
        assert isinstance(op, SpaceToDepth)
        name, source = self.names[node.name], self.inputs(node)[0]
        if op.order == "row":
            self.emit("Reorg", [source], name, {0: op.block, 1: _CHANNELS_INNERMOST})
            return
        rows = self.emit("Reorg", [source], f"{name}.rows", {0: op.block, 1: _CHANNELS_INNERMOST})
        run = self.shapes[node.inputs[0]].channels
        places = [row * op.block + column for column in range(op.block) for row in range(op.block)]
        runs = [self.channels(rows, place * run, (place + 1) * run, f"{name}.pixel{place}") for place in places]
        self.emit("Concat", runs, name, {0: 0})

    def depth_to_space(self, node: Node) -> None:
        """Channels become blocks of pixels."""
        assert isinstance(node.op, DepthToSpace)
        values = {0: node.op.block, 1: _CHANNELS_INNERMOST}
        self.emit("PixelShuffle", self.inputs(node), self.names[node.name], values)

    def reorg(self, node: Node) -> None:
        """The buffer read with other dimensions, space to depth, read with others again (YOLOv2)."""
        op = node.op
        assert isinstance(op, Reorg)
        if self.dynamic:
            raise ConversionError(
                f"{self.graph.name}: node {node.name!r}: Reorg is written for one input size only in ncnn; "
                "leave out --dynamic"
            )
        name, shape, block = self.names[node.name], self.shapes[node.inputs[0]], op.block
        wide = Shape(shape.channels // block**2, shape.height * block, shape.width * block)
        value = self._reshape(self.inputs(node)[0], wide, f"{name}.wide")
        value = self.emit("Reorg", [value], f"{name}.deep", {0: block, 1: _CHANNELS_INNERMOST})
        self._reshape(value, self.shapes[node.name], name)

    def _reshape(self, source: str, shape: Shape, output: str) -> str:
        return self.emit("Reshape", [source], output, {0: shape.width, 1: shape.height, 2: shape.channels})

    def detect(self, node: Node) -> None:
        """Nothing is computed; the map gets the name of an output."""
        head = next(index for index, other in enumerate(self.graph.heads) if other is node)
        self.emit("Noop", self.inputs(node), output_name(head))


_CHANNELS_INNERMOST: Final = 1  # mode of Reorg and PixelShuffle: each pixel of a block is a run of all channels

# Layers by activation; keys are ncnn's parameter ids.
_ACTIVATIONS: Final[Mapping[str, tuple[str, Mapping[int, Value]]]] = {
    "linear": ("Noop", {}),
    "leaky": ("ReLU", {0: LEAKY_SLOPE}),
    "relu": ("ReLU", {}),
    "relu6": ("Clip", {0: 0.0, 1: 6.0}),
    "mish": ("Mish", {}),
    "swish": ("Swish", {}),
    "logistic": ("Sigmoid", {}),
    "tanh": ("TanH", {}),
    "elu": ("ELU", {0: 1.0}),
    "selu": ("SELU", {}),
    "gelu": ("GELU", {0: 1}),  # the tanh approximation, as everywhere in the family
    "hard_mish": ("HardSwish", {0: 0.5, 1: 1.0}),  # x times a ramp from 0 at -2 to 1 at 0
}
# What a convolution computes on its way out: ncnn's activation_type and its parameters.
_FUSED: Final[Mapping[str, tuple[int, Sequence[float]]]] = {
    "relu": (1, []),
    "leaky": (2, [LEAKY_SLOPE]),
    "relu6": (3, [0.0, 6.0]),
    "logistic": (4, []),
    "mish": (5, []),
}

_WRITERS: Final[Mapping[type, Callable[[_Writer, Node], None]]] = {
    Conv: _Writer.conv,
    Affine: _Writer.affine,
    Activate: _Writer.activate,
    Pool: _Writer.pool,
    GlobalAveragePool: _Writer.global_average_pool,
    Upsample: _Writer.upsample,
    Concat: _Writer.concat,
    ChannelSplit: _Writer.channel_split,
    Add: _Writer.add,
    Multiply: _Writer.multiply,
    Implicit: _Writer.implicit,
    SpaceToDepth: _Writer.space_to_depth,
    DepthToSpace: _Writer.depth_to_space,
    Reorg: _Writer.reorg,
    Detect: _Writer.detect,
}
