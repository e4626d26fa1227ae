"""Graph and weights -> ONNX, written node by node with the ``onnx`` package: no torch, no tracing.

The model has one input ``images``, (batch, 3, height, width) float32 in [0, 1], and one output for each detection head:
its raw map, named by the head. Values are named by the nodes of the graph, so that a profile of an engine reads like
the description of the network. Opset 17 is what OpenCV, OpenVINO, ONNX Runtime and TensorRT all import.

How single activations are written is in :mod:`scaledyolo.convert.onnx_activations`.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, Final

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
from scaledyolo.convert.onnx_activations import MISH_FORMS, MishForm, write_activation
from scaledyolo.errors import ConversionError, UsageError, nearest
from scaledyolo.weights import Array, Weights

if TYPE_CHECKING:
    from onnx import ModelProto

INPUT_NAME: Final = "images"
OPSET: Final = 17
_MISH_OPSET: Final = 18  # the first that has Mish as an operator
_IR_VERSION: Final = 8  # the one that belongs to opsets 17 and 18; newer ones are refused by engines in the field

# protobuf cannot hold more than 2 GiB in one message; a little is left for the structure.
_MAX_BYTES: Final = 2**31 - 2**20


def to_onnx(
    graph: Graph,
    weights: Mapping[str, Array],
    *,
    batch: int | None = 1,
    dynamic: bool = False,
    mish: MishForm = "exact",
    metadata: Mapping[str, str] | None = None,
) -> ModelProto:
    """Write a network as an ONNX model.

    Args:
        graph: the network; its height and width become the input size.
        weights: exactly ``graph.parameters``, float32; folded on the way.
        batch: images at a time, or None for any number.
        dynamic: leave height and width free (any multiple of the largest stride).
        mish: ``exact`` to the last bits of float32; ``sigmoid`` cannot overflow in float16; ``native`` is one operator,
            for which the model is of opset 18.
        metadata: key-value pairs stored in ``metadata_props``.

    Raises:
        CheckpointError: the weights are not those of the graph.
        ConversionError: the model would be larger than the 2 GiB that an ONNX file can hold.
        UsageError: an option that does not exist.
    """
    if mish not in MISH_FORMS:
        known = ", ".join(MISH_FORMS)
        raise UsageError(f"there is no form {mish!r} of Mish; known are {known}.{nearest(mish, MISH_FORMS)}")
    if batch is not None and batch < 1:
        raise UsageError(f"a batch of {batch} images makes no sense; use 1 or more, or None for any number")
    num_bytes = sum(4 * int(np.prod(shape)) for shape in graph.parameters.values())
    if num_bytes > _MAX_BYTES:
        raise ConversionError(
            f"{graph.name}: {num_bytes / 2**30:.2f} GiB of weights do not fit into an ONNX file, which ends at 2 GiB; "
            "use the torch engine or a narrower network"
        )
    graph, folded = fold(graph, weights)
    return _Writer(cascade_pools(graph), folded, batch, dynamic, mish).model(metadata or {})


class _Writer:
    """Collects ONNX nodes and initialisers; one method for each kind of operation."""

    def __init__(self, graph: Graph, weights: Weights, batch: int | None, dynamic: bool, mish: MishForm) -> None:
        import onnx  # 0.15 s, wanted only by those who write a model

        self._helper, self._kinds = onnx.helper, onnx.TensorProto
        self._graph, self._weights, self._batch, self._dynamic, self._mish = graph, weights, batch, dynamic, mish
        # Everything is written into this one message: protobuf copies what is assembled outside and put in later.
        self._model = onnx.ModelProto(ir_version=_IR_VERSION, producer_name="scaledyolo")
        self._proto = self._model.graph
        self._shapes = graph.shapes(graph.height, graph.width)
        self._constants: dict[tuple[str, tuple[int, ...], bytes], str] = {}
        self._values = self._name_values()

    def model(self, metadata: Mapping[str, str]) -> ModelProto:
        """The finished model."""
        self._model.opset_import.append(self._helper.make_opsetid("", _MISH_OPSET if self._mish == "native" else OPSET))
        self._proto.name = self._graph.name
        self._proto.input.append(self._input_info())
        self._proto.output.extend(self._output_infos())
        for node in self._graph:
            _WRITERS[type(node.op)](self, node)
        self._helper.set_model_props(self._model, dict(metadata))
        return self._model

    # -- names, constants, inputs and outputs ------------------------------------------------------------------------

    def _name_values(self) -> dict[str, str]:
        """ONNX value of every node: its own name, but the map that a head reads is named by the head."""
        values = {name: name for name in self._shapes}
        values[Graph.INPUT] = INPUT_NAME
        for head in reversed(self._graph.heads):
            source = head.inputs[0]
            if source != Graph.INPUT and values[source] == source:
                values[source] = head.name
        return values

    def _input_info(self) -> Any:
        graph = self._graph
        size: list[int | str] = ["height", "width"] if self._dynamic else [graph.height, graph.width]
        return self._value_info(INPUT_NAME, [graph.channels, *size])

    def _output_infos(self) -> list[Any]:
        infos = []
        for head in self._graph.heads:
            shape = self._shapes[head.name]
            size = [f"{head.name}.height", f"{head.name}.width"] if self._dynamic else [shape.height, shape.width]
            infos.append(self._value_info(head.name, [shape.channels, *size]))
        return infos

    def _value_info(self, name: str, shape: Sequence[int | str]) -> Any:
        batch = "batch" if self._batch is None else self._batch
        return self._helper.make_tensor_value_info(name, self._kinds.FLOAT, [batch, *shape])

    def emit(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Append one ONNX node, named like its output; returns the output."""
        self._proto.node.append(self._helper.make_node(kind, list(inputs), [output], name=output, **attributes))
        return output

    def initializer(self, name: str, array: NDArray[np.float32 | np.int64]) -> str:
        """Store an array under a name."""
        tensor = self._proto.initializer.add()
        tensor.name, tensor.raw_data = name, array.tobytes()
        tensor.data_type = {"float32": self._kinds.FLOAT, "int64": self._kinds.INT64}[array.dtype.name]
        tensor.dims.extend(array.shape)
        return name

    def constant(self, values: float | Sequence[int], label: str) -> str:
        """A small constant: a float scalar or a list of integers. Equal ones are stored once."""
        array = np.float32(values) if isinstance(values, float) else np.asarray(values, np.int64)
        key = (array.dtype.name, array.shape, array.tobytes())
        if key not in self._constants:
            self._constants[key] = self.initializer(f"constant.{label}.{len(self._constants)}", np.asarray(array))
        return self._constants[key]

    def _inputs(self, node: Node) -> list[str]:
        return [self._values[source] for source in node.inputs]

    def _finish(self, node: Node, activation: Activation, emit: Callable[[str], object]) -> None:
        """Let ``emit`` write the node's value, then the activation over it."""
        value = self._values[node.name]
        if activation == "linear":
            emit(value)
            return
        before = f"{node.name}.{_BEFORE_ACTIVATION}"
        emit(before)
        write_activation(self, activation, before, value, self._mish)

    # -- operations --------------------------------------------------------------------------------------------------

    def conv(self, node: Node) -> None:
        """Convolution with its activation; batch normalisation is folded already."""
        op = node.op
        assert isinstance(op, Conv)
        assert not op.norm, "the writer gets folded graphs"
        inputs = [*self._inputs(node), self._stored(node, "weight")]
        if op.bias:
            inputs.append(self._stored(node, "bias"))
        attributes = {
            "kernel_shape": [op.kernel] * 2,
            "strides": list(op.stride),
            "pads": [op.padding] * 4,
            "dilations": [op.dilation] * 2,
            "group": op.groups,
        }
        self._finish(node, op.activation, lambda value: self.emit("Conv", inputs, value, **attributes))

    def affine(self, node: Node) -> None:
        """Per-channel scale and shift."""
        assert isinstance(node.op, Affine)
        scale, bias = self._stored(node, "scale", per_channel=True), self._stored(node, "bias", per_channel=True)
        scaled = self.emit("Mul", [*self._inputs(node), scale], f"{node.name}.scaled")
        self._finish(node, node.op.activation, lambda value: self.emit("Add", [scaled, bias], value))

    def activate(self, node: Node) -> None:
        """An activation on its own."""
        assert isinstance(node.op, Activate)
        write_activation(self, node.op.activation, self._inputs(node)[0], self._values[node.name], self._mish)

    def pool(self, node: Node) -> None:
        """Max or average pooling; outside the picture counts as minus infinity or not at all."""
        op = node.op
        assert isinstance(op, Pool)
        begin, end = op.padding // 2, op.padding - op.padding // 2
        attributes: dict[str, Any] = {
            "kernel_shape": [op.kernel] * 2,
            "strides": [op.stride] * 2,
            "pads": [begin, begin, end, end],
        }
        if op.kind == "average":
            attributes["count_include_pad"] = 0
        kind = "MaxPool" if op.kind == "max" else "AveragePool"
        self.emit(kind, self._inputs(node), self._values[node.name], **attributes)

    def global_average_pool(self, node: Node) -> None:
        """Mean over all positions."""
        self.emit("GlobalAveragePool", self._inputs(node), self._values[node.name])

    def upsample(self, node: Node) -> None:
        """Nearest-neighbour enlargement: every pixel becomes a block."""
        op = node.op
        assert isinstance(op, Upsample)
        value = self._values[node.name]
        scales = f"{node.name}.scales"
        self.initializer(scales, np.asarray([1, 1, op.scale, op.scale], np.float32))
        enlarged = value if op.gain == 1.0 else f"{node.name}.enlarged"
        self.emit(
            "Resize",
            [*self._inputs(node), "", scales],
            enlarged,
            mode="nearest",
            coordinate_transformation_mode="asymmetric",
            nearest_mode="floor",
        )
        if op.gain != 1.0:
            self.emit("Mul", [enlarged, self.constant(float(op.gain), "gain")], value)

    def concat(self, node: Node) -> None:
        """Concatenation of channels."""
        self.emit("Concat", self._inputs(node), self._values[node.name], axis=1)

    def channel_split(self, node: Node) -> None:
        """One of several equal runs of channels."""
        assert isinstance(node.op, ChannelSplit)
        run = self._shapes[node.name].channels
        first = run * node.op.index
        self._slice_channels(self._inputs(node)[0], first, first + run, self._values[node.name])

    def _slice_channels(self, source: str, begin: int, end: int, output: str) -> str:
        bounds = [self.constant([index], "index") for index in (begin, end, 1)]
        return self.emit("Slice", [source, *bounds], output)

    def add(self, node: Node) -> None:
        """Sum; surplus channels are dropped, missing ones count as zero."""
        op = node.op
        assert isinstance(op, Add)
        channels = self._shapes[node.name].channels
        table = self._weights[f"{node.name}.weights"] if op.weights != "none" else None
        terms = []
        for index, (source, value) in enumerate(zip(node.inputs, self._inputs(node), strict=True)):
            present = min(self._shapes[source].channels, channels)
            term = f"{node.name}.term{index}"
            if self._shapes[source].channels > channels:
                value = self._slice_channels(value, 0, channels, f"{term}.cut")
            if table is not None:
                factor = np.ascontiguousarray(table[index][:present]).reshape(1, -1, 1, 1)
                value = self.emit("Mul", [value, self.initializer(f"{term}.weight", factor)], f"{term}.weighted")
            if present < channels:
                pads = self.constant([0, 0, 0, 0, 0, channels - present, 0, 0], "pads")
                value = self.emit("Pad", [value, pads], f"{term}.padded")
            terms.append(value)
        total = terms[0]
        for index, term in enumerate(terms[1:-1], 1):  # binary sums: engines fuse them into the convolution before
            total = self.emit("Add", [total, term], f"{node.name}.sum{index}")
        if len(terms) == 1:
            self._finish(node, op.activation, lambda value: self.emit("Identity", [total], value))
        else:
            self._finish(node, op.activation, lambda value: self.emit("Add", [total, terms[-1]], value))

    def multiply(self, node: Node) -> None:
        """Product of value and gate."""
        assert isinstance(node.op, Multiply)
        self._finish(node, node.op.activation, lambda value: self.emit("Mul", self._inputs(node), value))

    def implicit(self, node: Node) -> None:
        """A learned vector that could not be folded."""
        assert isinstance(node.op, Implicit)
        vector = self._stored(node, "implicit", per_channel=True)
        kind = "Add" if node.op.kind == "add" else "Mul"
        self.emit(kind, [*self._inputs(node), vector], self._values[node.name])

    def space_to_depth(self, node: Node) -> None:
        """Blocks of pixels become channels."""
        op = node.op
        assert isinstance(op, SpaceToDepth)
        value = self._values[node.name]
        if op.order == "row":  # the order of ONNX
            self.emit("SpaceToDepth", self._inputs(node), value, blocksize=op.block)
            return
        rows = self.emit("SpaceToDepth", self._inputs(node), f"{node.name}.rows", blocksize=op.block)
        channels = self._shapes[node.inputs[0]].channels
        runs = []
        for column in range(op.block):
            for row in range(op.block):
                first = (row * op.block + column) * channels
                runs.append(self._slice_channels(rows, first, first + channels, f"{node.name}.pixel{row}{column}"))
        self.emit("Concat", runs, value, axis=1)

    def depth_to_space(self, node: Node) -> None:
        """Channels become blocks of pixels."""
        assert isinstance(node.op, DepthToSpace)
        self.emit("DepthToSpace", self._inputs(node), self._values[node.name], blocksize=node.op.block, mode="DCR")

    def reorg(self, node: Node) -> None:
        """The buffer read with other dimensions, space to depth, read with others again (spec of YOLOv2)."""
        op = node.op
        assert isinstance(op, Reorg)
        shape, block = self._shapes[node.inputs[0]], op.block
        source = self._inputs(node)[0]
        as_wide = Shape(shape.channels // block**2, shape.height * block, shape.width * block)
        wide = self._reshape(source, as_wide, source, ("Mul", block), f"{node.name}.wide")
        deep = self.emit("SpaceToDepth", [wide], f"{node.name}.deep", blocksize=block)
        self._reshape(deep, self._shapes[node.name], source, ("Div", block), self._values[node.name])

    def _reshape(self, value: str, shape: Shape, like: str, ratio: tuple[str, int], output: str) -> str:
        """Reshape to (batch, *shape); where sizes are free, the sides are those of ``like``, times or over a factor."""
        if not self._dynamic:
            return self.emit("Reshape", [value, self.constant([-1, *shape], "shape")], output)
        sides = self.emit("Shape", [like], f"{output}.like", start=2, end=4)
        kind, factor = ratio
        scaled = self.emit(kind, [sides, self.constant([factor], "factor")], f"{output}.sides")
        target = self.emit("Concat", [self.constant([-1, shape.channels], "shape"), scaled], f"{output}.shape", axis=0)
        return self.emit("Reshape", [value, target], output)

    def detect(self, node: Node) -> None:
        """Nothing is computed; a node is needed only where the map has another name already."""
        source = self._inputs(node)[0]
        if source != node.name:
            self.emit("Identity", [source], node.name)

    def _stored(self, node: Node, key: str, *, per_channel: bool = False) -> str:
        name = f"{node.name}.{key}"
        array = self._weights[name]
        return self.initializer(name, array.reshape(1, -1, 1, 1) if per_channel else array)


_BEFORE_ACTIVATION: Final = "linear"

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
