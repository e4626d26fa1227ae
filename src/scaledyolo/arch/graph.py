"""The graph: a network as a flat, ordered tuple of typed nodes.

Everything else reads it: parameter and cost tables, the ONNX writer, the torch network, the Darknet reader and writer,
the weight order of foreign formats. Nothing is described twice.

A node is a name (a path such as ``backbone.stage3.block2.conv1``), an operation (one of the frozen classes in
:mod:`scaledyolo.arch.ops`) and the names of its inputs. Nodes stand in execution order, which is also the order of the
sections of the Darknet cfg and of the blocks of the ``.weights`` file.

Parameters carry the path of their node: ``<node>.weight``, ``<node>.norm.running_mean``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal

from scaledyolo.arch.ops import Add, ChannelSplit, Concat, Conv, Detect, Multiply, Op, Shape
from scaledyolo.errors import SpecError

Resize = Literal["letterbox", "stretch"]


@dataclass(frozen=True, slots=True)
class Node:
    """One operation of the graph: where it stands, what it does, what it reads."""

    name: str
    op: Op
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Graph:
    """A network: nodes in execution order, and the facts about its input that a runtime needs.

    Raises:
        SpecError: a node reads what does not exist before it, repeats a name, or its shapes do not fit.
    """

    name: str
    nodes: tuple[Node, ...]
    height: int  # pixels of the network input at which the graph was designed
    width: int
    channels: int = 3
    resize: Resize = "letterbox"  # how an image is brought to that size
    norm_eps: float = 1e-5  # batch-normalisation epsilon of the code base that trained the weights
    norm_momentum: float = 0.03  # weight of the new batch in the running statistics

    INPUT = "image"  # the name by which nodes read the network input

    def __post_init__(self) -> None:
        seen = {self.INPUT}
        for node in self.nodes:
            if node.name in seen:
                raise SpecError(f"{self.name}: two nodes are named {node.name!r}; node names must be unique")
            for source in node.inputs:
                if source not in seen:
                    raise SpecError(f"{self.name}: node {node.name!r} reads {source!r}, which does not exist before it")
            seen.add(node.name)
        _ = self._native_shapes  # shape rules are checked once, when the graph is made

    def __iter__(self) -> Iterator[Node]:
        return iter(self.nodes)

    def __len__(self) -> int:
        return len(self.nodes)

    def __getitem__(self, name: str) -> Node:
        return self._by_name[name]

    @cached_property
    def _by_name(self) -> Mapping[str, Node]:
        return {node.name: node for node in self.nodes}

    @cached_property
    def _native_shapes(self) -> Mapping[str, Shape]:
        return self._shapes(self.height, self.width)

    def shapes(self, height: int, width: int) -> Mapping[str, Shape]:
        """Shape (channels, height, width) of the image and of every node's output, for an input size in pixels.

        Raises:
            SpecError: the size does not go through the network; names the node and the shapes.
        """
        return self._native_shapes if (height, width) == (self.height, self.width) else self._shapes(height, width)

    def _shapes(self, height: int, width: int) -> Mapping[str, Shape]:
        shapes = {self.INPUT: Shape(self.channels, height, width)}
        for node in self.nodes:
            inputs = [shapes[source] for source in node.inputs]
            try:
                shape = node.op.out_shape(*inputs)
            except SpecError as error:
                raise SpecError(f"{self.name} at {height}x{width}: node {node.name!r}: {error}") from None
            except (
                ArithmeticError,
                LookupError,
                ValueError,
            ):  # a stride or group count of 0; inputs too few or many
                raise SpecError(
                    f"{self.name} at {height}x{width}: node {node.name!r}: {len(inputs)} inputs do not suit {node.op}"
                ) from None
            if shape.height < 1 or shape.width < 1 or shape.channels < 1:
                raise SpecError(
                    f"{self.name} at {height}x{width}: node {node.name!r} would have an empty output {shape}"
                )
            shapes[node.name] = shape
        return shapes

    def in_channels(self, node: Node) -> tuple[int, ...]:
        """Channels of each input of ``node``."""
        return tuple(self._native_shapes[source].channels for source in node.inputs)

    def out_channels(self, name: str) -> int:
        """Channels of the output of the node named ``name``."""
        return self._native_shapes[name].channels

    @cached_property
    def heads(self) -> tuple[Node, ...]:
        """The detection heads, in the order of the nodes."""
        return tuple(node for node in self.nodes if isinstance(node.op, Detect))

    def head_op(self, node: Node) -> Detect:
        """The :class:`Detect` operation of a head, typed."""
        assert isinstance(node.op, Detect)
        return node.op

    @cached_property
    def detects(self) -> tuple[Detect, ...]:
        """The operations of the heads, in the order of the nodes: what decoding needs to know."""
        return tuple(self.head_op(node) for node in self.heads)

    @cached_property
    def strides(self) -> tuple[int, ...]:
        """Input pixels per cell of each head, in the order of the heads."""
        return tuple(self.height // self._native_shapes[head.name].height for head in self.heads)

    @cached_property
    def node_strides(self) -> Mapping[str, int]:
        """Input pixels between neighbouring cells of the image and of every node's output."""
        strides = {self.INPUT: 1}
        for node in self.nodes:
            window = node.op.window
            strides[node.name] = max(max(strides[source] for source in node.inputs) * window.step // window.enlarge, 1)
        return strides

    @cached_property
    def max_stride(self) -> int:
        """What height and width must be a multiple of: the largest stride anywhere, whether or not a head has it."""
        return max(self.node_strides.values())

    @property
    def num_classes(self) -> int:
        """Number of classes that the heads predict."""
        return self.detects[0].num_classes if self.heads else 0

    @cached_property
    def parameters(self) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of every stored tensor, running statistics included, in node order."""
        return {
            f"{node.name}.{key}": shape
            for node in self.nodes
            for key, shape in node.op.parameters(*self.in_channels(node)).items()
        }

    @cached_property
    def consumers(self) -> Mapping[str, tuple[str, ...]]:
        """For every name, the nodes that read it, in order."""
        readers: dict[str, list[str]] = {name: [] for name in (self.INPUT, *self._by_name)}
        for node in self.nodes:
            for source in dict.fromkeys(node.inputs):
                readers[source].append(node.name)
        return {name: tuple(names) for name, names in readers.items()}

    def check_size(self, height: int, width: int) -> None:
        """Refuse an input size that is not a multiple of the largest stride.

        Raises:
            SpecError: names the stride and the nearest sizes that work.
        """
        stride = self.max_stride
        for side, value in (("height", height), ("width", width)):
            if value < stride or value % stride:
                below, above = max(value // stride, 1) * stride, (value // stride + 1) * stride
                near = f"{below} or {above}" if value > stride else f"{stride}"
                raise SpecError(
                    f"{self.name}: {side} {value} is not a multiple of the largest stride {stride}; use {near}"
                )

    def with_size(self, height: int, width: int) -> Graph:
        """The same network designed for another input size."""
        self.check_size(height, width)
        return replace(self, height=height, width=width)

    def signature(self) -> tuple[tuple[Op, tuple[int, ...]], ...]:
        """The network without its names: for every node its operation and the positions of its inputs (-1: the image).

        Two graphs with equal signatures compute the same function of the same parameters in the same order. Ways of
        writing one thing are made one: nodes that only rename vanish, inputs of a symmetric operation are sorted, a
        logistic that a head expects of the convolution before it counts as the head's own, anchors are those of the
        level. What follows the network (non-maximum suppression) is left out.
        """
        position = {self.INPUT: -1}
        activated = {node.inputs[0] for node in self.heads if self.head_op(node).activated}
        entries: list[tuple[Op, tuple[int, ...]]] = []
        for node in self.nodes:
            if _only_renames(node.op, len(node.inputs)):
                position[node.name] = position[node.inputs[0]]
                continue
            op = node.op
            if node.name in activated and isinstance(op, Conv) and self.consumers[node.name][1:] == ():
                op = replace(op, activation="linear")
            inputs = tuple(position[source] for source in node.inputs)
            if self._is_symmetric(node):
                inputs = tuple(sorted(inputs, reverse=True))
            position[node.name] = len(entries)
            entries.append((_canonical_head(op) if isinstance(op, Detect) else op, inputs))
        return tuple(entries)

    def _is_symmetric(self, node: Node) -> bool:
        """Whether the order of the inputs makes no difference: unweighted sums and products of maps of one shape."""
        if not (isinstance(node.op, Multiply) or (isinstance(node.op, Add) and node.op.weights == "none")):
            return False
        return len({self._native_shapes[source] for source in node.inputs}) == 1

    def with_nodes(self, nodes: tuple[Node, ...]) -> Graph:
        """The same input facts over other nodes."""
        return replace(self, nodes=nodes)


def _only_renames(op: Op, num_inputs: int) -> bool:
    return (isinstance(op, Concat) and num_inputs == 1) or (isinstance(op, ChannelSplit) and op.groups == 1)


def _canonical_head(op: Detect) -> Detect:
    return replace(
        op,
        anchors=op.level_anchors,
        mask=tuple(range(len(op.mask))),
        activated=False,
        nms_kind="default",
        beta_nms=0.6,
        scale_xy=op.scale_xy if op.decoding == "exp" else 1.0,
    )


def same_network(first: Graph, second: Graph) -> bool:
    """Whether two graphs are one network apart from names: equal :meth:`Graph.signature`."""
    return first.signature() == second.signature()


class GraphBuilder:
    """Collects nodes under nested name scopes; :meth:`build` freezes them into a :class:`Graph`."""

    def __init__(self, channels: int = 3) -> None:
        self.nodes: list[Node] = []
        self.channels: dict[str, int] = {Graph.INPUT: channels}
        self._scopes: list[str] = []

    def scope(self, name: str) -> _Scope:
        """A context in which node names are prefixed with ``name.``"""
        return _Scope(self._scopes, name)

    def add(self, name: str, op: Op, *inputs: str) -> str:
        """Append a node and return its full name, by which later nodes read it."""
        path = ".".join((*self._scopes, name))
        try:
            self.channels[path] = op.out_channels(*(self.channels[source] for source in inputs))
        except SpecError as error:
            raise SpecError(f"node {path!r}: {error}") from None
        self.nodes.append(Node(path, op, inputs))
        return path


class _Scope:
    def __init__(self, stack: list[str], name: str) -> None:
        self._stack, self._name = stack, name

    def __enter__(self) -> None:
        self._stack.append(self._name)

    def __exit__(self, *_: object) -> None:
        self._stack.pop()
