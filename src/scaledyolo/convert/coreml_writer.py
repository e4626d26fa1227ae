"""Graph and weights -> a Core ML program, operation by operation with coremltools' own builder: no torch, no tracing.

The input ``images`` is (batch, 3, height, width) float32 in [0, 1]; outputs are named by the heads, with underscores
for what is no letter.
coremltools writes programs everywhere; only macOS runs them.
"""

from __future__ import annotations

import importlib
import logging
import re
import warnings
from collections.abc import Callable, Mapping
from typing import Any, Final

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
    Detect,
    GlobalAveragePool,
    Implicit,
    Multiply,
    Pool,
    SpaceToDepth,
    Upsample,
)
from scaledyolo.convert.fold import cascade_pools, fold
from scaledyolo.errors import ConversionError, MissingPackageError
from scaledyolo.weights import Array, Weights

INPUT_NAME: Final = "images"
_MISH_CUT: Final = np.float32(20)  # above, the ratio of Mish is 1 in float32


def import_coremltools() -> Any:
    """The ``coremltools`` package, without its remarks about packages and parts that are not used here.

    Raises:
        MissingPackageError: it is not installed.
    """
    log = logging.getLogger("coremltools")
    level = log.level
    log.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module("coremltools")
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"the format coreml needs coremltools ({error.name} is missing); "
            "install it with: pip install 'scaledyolo[coreml]'"
        ) from None
    finally:
        log.setLevel(level)


def output_name(head: str) -> str:
    """Name of a raw map: that of its head, as Core ML takes it."""
    return re.sub(r"\W", "_", head)


def to_program(graph: Graph, weights: Mapping[str, Array], *, batch: int = 1) -> Any:
    """A network as a MIL program, the form that coremltools optimises and writes.

    Args:
        graph: the network; its height and width become the input size.
        weights: exactly ``graph.parameters``, float32; folded on the way.
        batch: images at a time.

    Raises:
        CheckpointError: the weights are not those of the graph.
        ConversionError: a node has no counterpart; names it.
        MissingPackageError: coremltools is not installed.
    """
    tools = import_coremltools()
    builder = importlib.import_module("coremltools.converters.mil").Builder
    folded, folded_weights = fold(graph, weights)
    writer = _Writer(builder, cascade_pools(folded), folded_weights)
    shape = (batch, graph.channels, graph.height, graph.width)

    def body(images: Any) -> Any:
        return writer.outputs(images)

    specs = [builder.TensorSpec(shape=shape)]
    return builder.program(input_specs=specs, opset_version=tools.target.iOS15)(body)


class _Writer:
    """Adds the nodes of a graph to the program that is being built; one method for each kind of operation."""

    def __init__(self, builder: Any, graph: Graph, weights: Weights) -> None:
        self.mb, self.graph, self.weights = builder, graph, weights
        self.shapes = graph.shapes(graph.height, graph.width)
        self.values: dict[str, Any] = {}

    def outputs(self, images: Any) -> tuple[Any, ...]:
        """The raw maps of the heads."""
        self.values[Graph.INPUT] = images
        for node in self.graph:
            if type(node.op) not in _WRITERS:
                raise ConversionError(
                    f"{self.graph.name}: node {node.name!r}: {type(node.op).__name__} is not written for Core ML; "
                    "use --format onnx"
                )
            self.values[node.name] = _WRITERS[type(node.op)](self, node)
        return tuple(self.values[head.name] for head in self.graph.heads)

    def inputs(self, node: Node) -> list[Any]:
        """Values that a node reads."""
        return [self.values[source] for source in node.inputs]

    def by_channel(self, array: Array) -> Array:
        """A vector that broadcasts over positions."""
        return np.ascontiguousarray(array).reshape(1, -1, 1, 1)

    def conv(self, node: Node) -> Any:
        """Convolution with its activation."""
        op = node.op
        assert isinstance(op, Conv)
        bias = self.weights[f"{node.name}.bias"] if op.bias else np.zeros(op.filters, np.float32)
        value = self.mb.conv(
            x=self.inputs(node)[0],
            weight=self.weights[f"{node.name}.weight"],
            bias=bias,
            strides=list(op.stride),
            pad_type="custom",
            pad=[op.padding] * 4,
            dilations=[op.dilation] * 2,
            groups=op.groups,
            name=node.name if op.activation == "linear" else f"{node.name}.linear",
        )
        return self.activated(op.activation, value, node.name)

    def activated(self, activation: Activation, value: Any, name: str) -> Any:
        """An activation over a value."""
        return value if activation == "linear" else _ACTIVATIONS[activation](self.mb, value, name)

    def affine(self, node: Node) -> Any:
        """Per-channel scale and shift."""
        assert isinstance(node.op, Affine)
        scale, bias = (self.by_channel(self.weights[f"{node.name}.{key}"]) for key in ("scale", "bias"))
        scaled = self.mb.mul(x=self.inputs(node)[0], y=scale, name=f"{node.name}.scaled")
        shifted = self.mb.add(x=scaled, y=bias, name=f"{node.name}.linear")
        return self.activated(node.op.activation, shifted, node.name)

    def implicit(self, node: Node) -> Any:
        """A learned vector that could not be folded."""
        assert isinstance(node.op, Implicit)
        emit = self.mb.add if node.op.kind == "add" else self.mb.mul
        vector = self.by_channel(self.weights[f"{node.name}.implicit"])
        return emit(x=self.inputs(node)[0], y=vector, name=node.name)

    def activate(self, node: Node) -> Any:
        """An activation on its own."""
        assert isinstance(node.op, Activate)
        return self.activated(node.op.activation, self.inputs(node)[0], node.name)

    def pool(self, node: Node) -> Any:
        """Max or average pooling; outside the picture counts as minus infinity or not at all."""
        op = node.op
        assert isinstance(op, Pool)
        begin, end = op.padding // 2, op.padding - op.padding // 2
        options: dict[str, Any] = {
            "x": self.inputs(node)[0],
            "kernel_sizes": [op.kernel] * 2,
            "strides": [op.stride] * 2,
            "pad_type": "custom",
            "pad": [begin, end, begin, end],
            "name": node.name,
        }
        if op.kind == "max":
            return self.mb.max_pool(**options)
        return self.mb.avg_pool(**options, exclude_padding_from_average=True)

    def global_average_pool(self, node: Node) -> Any:
        """Mean over all positions."""
        return self.mb.reduce_mean(x=self.inputs(node)[0], axes=[2, 3], keep_dims=True, name=node.name)

    def upsample(self, node: Node) -> Any:
        """Nearest-neighbour enlargement."""
        op = node.op
        assert isinstance(op, Upsample)
        name = node.name if op.gain == 1 else f"{node.name}.enlarged"
        value = self.mb.upsample_nearest_neighbor(
            x=self.inputs(node)[0], scale_factor_height=op.scale, scale_factor_width=op.scale, name=name
        )
        return value if op.gain == 1 else self.mb.mul(x=value, y=np.float32(op.gain), name=node.name)

    def concat(self, node: Node) -> Any:
        """Concatenation of channels."""
        values = self.inputs(node)
        return values[0] if len(values) == 1 else self.mb.concat(values=values, axis=1, name=node.name)

    def channels(self, value: Any, begin: int, count: int, name: str) -> Any:
        """A run of channels."""
        return self.mb.slice_by_size(x=value, begin=[0, begin, 0, 0], size=[-1, count, -1, -1], name=name)

    def channel_split(self, node: Node) -> Any:
        """One of several equal runs of channels."""
        assert isinstance(node.op, ChannelSplit)
        run = self.shapes[node.name].channels
        return self.channels(self.inputs(node)[0], run * node.op.index, run, node.name)

    def add(self, node: Node) -> Any:
        """Sum; surplus channels are dropped, missing ones count as zero."""
        op, name = node.op, node.name
        assert isinstance(op, Add)
        wanted = self.shapes[name].channels
        table = self.weights[f"{name}.weights"] if op.weights != "none" else None
        total = None
        for index, source in enumerate(node.inputs):
            value, given = self.values[source], self.shapes[source].channels
            if given > wanted:
                value = self.channels(value, 0, wanted, f"{name}.cut{index}")
            if table is not None:
                value = self.mb.mul(
                    x=value, y=self.by_channel(table[index][: min(given, wanted)]), name=f"{name}.weighted{index}"
                )
            if given < wanted:
                pad = [0, 0, 0, wanted - given, 0, 0, 0, 0]
                value = self.mb.pad(x=value, pad=pad, mode="constant", constant_val=np.float32(0))
            total = value if total is None else self.mb.add(x=total, y=value, name=f"{name}.sum{index}")
        return self.activated(op.activation, total, name)

    def multiply(self, node: Node) -> Any:
        """Product of value and gate."""
        assert isinstance(node.op, Multiply)
        value, gate = self.inputs(node)
        return self.activated(node.op.activation, self.mb.mul(x=value, y=gate, name=f"{node.name}.linear"), node.name)

    def space_to_depth(self, node: Node) -> Any:
        """Blocks of pixels become channels: every pixel of a block by a slice of its own, which leaves no doubt."""
        op = node.op
        assert isinstance(op, SpaceToDepth)
        sides = range(op.block)
        rows = [(row, column) for row in sides for column in sides]
        places = rows if op.order == "row" else [(row, column) for column in sides for row in sides]
        pixels = [self._every(self.inputs(node)[0], op.block, row, column) for row, column in places]
        return self.mb.concat(values=pixels, axis=1, name=node.name)

    def _every(self, value: Any, step: int, row: int, column: int) -> Any:
        masks = {"begin_mask": [True, True, False, False], "end_mask": [True] * 4}
        return self.mb.slice_by_index(
            x=value, begin=[0, 0, row, column], end=[0, 0, 0, 0], stride=[1, 1, step, step], **masks
        )

    def detect(self, node: Node) -> Any:
        """Nothing is computed; the map gets the name of the head."""
        return self.mb.identity(x=self.inputs(node)[0], name=output_name(node.name))


def _mish(mb: Any, value: Any, name: str) -> Any:
    """With ``n = eˣ`` and ``w = n(n + 2)``: ``x·w / (w + 2)``."""
    two = np.float32(2)
    power = mb.exp(x=mb.minimum(x=value, y=_MISH_CUT))
    numerator = mb.mul(x=power, y=mb.add(x=power, y=two))
    ratio = mb.real_div(x=numerator, y=mb.add(x=numerator, y=two))
    return mb.mul(x=value, y=ratio, name=name)


def _hard_mish(mb: Any, value: Any, name: str) -> Any:
    """x times a ramp from 0 at -2 to 1 at 0."""
    return mb.mul(x=value, y=mb.sigmoid_hard(x=value, alpha=np.float32(0.5), beta=np.float32(1)), name=name)


_SELU_ALPHA, _SELU_GAMMA = np.float32(1.6732632423543772), np.float32(1.0507009873554805)  # Klambauer et al. 2017

_ACTIVATIONS: Final[Mapping[str, Callable[[Any, Any, str], Any]]] = {
    "leaky": lambda mb, value, name: mb.leaky_relu(x=value, alpha=np.float32(LEAKY_SLOPE), name=name),
    "mish": _mish,
    "swish": lambda mb, value, name: mb.silu(x=value, name=name),
    "relu": lambda mb, value, name: mb.relu(x=value, name=name),
    "relu6": lambda mb, value, name: mb.relu6(x=value, name=name),
    "logistic": lambda mb, value, name: mb.sigmoid(x=value, name=name),
    "tanh": lambda mb, value, name: mb.tanh(x=value, name=name),
    "elu": lambda mb, value, name: mb.elu(x=value, alpha=np.float32(1), name=name),
    "selu": lambda mb, value, name: mb.mul(x=mb.elu(x=value, alpha=_SELU_ALPHA), y=_SELU_GAMMA, name=name),
    "gelu": lambda mb, value, name: mb.gelu(x=value, mode="TANH_APPROXIMATION", name=name),
    "hard_mish": _hard_mish,
}

_WRITERS: Final[Mapping[type, Callable[[_Writer, Node], Any]]] = {
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
    Detect: _Writer.detect,
}
