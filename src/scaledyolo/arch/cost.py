"""What a network costs, read off its graph: parameters, multiply-accumulates, boxes, bytes, receptive field."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from fractions import Fraction

from scaledyolo.arch.graph import Graph, Node
from scaledyolo.arch.ops import Add, BatchNorm, Conv, Detect, Pool, Shape, is_buffer
from scaledyolo.arch.training_parts import auxiliary_nodes, is_absorbed, parallel_convolutions

# Header of a current .weights file: major, minor, revision (int32 each), images seen (uint64). YOLOv2's had 16 bytes.
WEIGHTS_HEADER_BYTES = 20


@dataclass(frozen=True, slots=True)
class NodeCost:
    """Cost of one node for one image; ``macs`` counts convolutions only, 1 MAC = 2 FLOP."""

    node: Node
    out: Shape
    params: int  # learned values; running statistics are not counted
    buffers: int  # running statistics
    macs: int
    activation_bytes: int  # of the output, in float32
    memory_access: int  # values moved: inputs, outputs and weights (the terms of the paper's Eq. 1)
    cio: int  # input times output channels of a convolution, a group's (convolutional input/output, paper Table 5)

    @property
    def intensity(self) -> float:
        """Arithmetic intensity: FLOP for each byte moved in float32, by which a roofline is read."""
        return arithmetic_intensity(self.macs, self.memory_access)


def arithmetic_intensity(macs: int, memory_access: int) -> float:
    """FLOP (2 per MAC) for each byte of the values moved in float32; 0 where nothing is moved."""
    return macs / (2 * memory_access) if memory_access else 0.0


@dataclass(frozen=True, slots=True)
class Cost:
    """Totals of a network for one image at one input size."""

    height: int
    width: int
    params: int
    folded_params: int | None  # after folding normalisation into convolutions; None where it does not fold
    macs: int
    darknet_flops: int  # what Darknet prints as BFLOPs: 2 MACs, plus max pools and shortcuts
    boxes: int  # candidates before suppression
    activation_bytes: int
    memory_access: int
    cio: int
    weights_bytes: int  # size of a .weights file with a current header

    @property
    def gflops(self) -> float:
        """Giga floating-point operations of the convolutions, 2 per MAC."""
        return 2 * self.macs / 1e9

    @property
    def intensity(self) -> float:
        """Arithmetic intensity of the whole network: FLOP for each byte moved in float32."""
        return arithmetic_intensity(self.macs, self.memory_access)

    def resized(self, height: int, width: int) -> Cost:
        """The totals at another size without counting again: what belongs to positions grows with the area.

        Exact where both sizes are multiples of the network's largest stride and nothing pools over the whole map, so
        for every network of the family; a search over sizes needs one count for each set of channels and depths.
        """
        area = Fraction(height * width, self.height * self.width)
        return replace(
            self,
            height=height,
            width=width,
            macs=int(self.macs * area),
            darknet_flops=int(self.darknet_flops * area),
            boxes=int(self.boxes * area),
            activation_bytes=int(self.activation_bytes * area),
            memory_access=int((self.memory_access - self.params) * area) + self.params,
        )


def node_costs(graph: Graph, height: int, width: int) -> Iterator[NodeCost]:
    """Cost of every node, in order, for an input of this size in pixels."""
    shapes = graph.shapes(height, width)
    for node in graph:
        channels = tuple(shapes[source].channels for source in node.inputs)
        out = shapes[node.name]
        params = buffers = 0
        for name, shape in node.op.parameters(*channels).items():
            if is_buffer(name):
                buffers += math.prod(shape)
            else:
                params += math.prod(shape)
        inputs = sum(math.prod(shapes[source]) for source in node.inputs)
        values = 0 if isinstance(node.op, Detect) else math.prod(out)
        yield NodeCost(
            node=node,
            out=out,
            params=params,
            buffers=buffers,
            macs=node.op.macs(out, *channels),
            activation_bytes=4 * values,
            memory_access=inputs + values + params if values else 0,
            cio=channels[0] // node.op.groups * node.op.filters if isinstance(node.op, Conv) else 0,
        )


def cost(graph: Graph, height: int | None = None, width: int | None = None) -> Cost:
    """Totals for one image; size in pixels, by default the one at which the network was designed.

    Raises:
        SpecError: the size is not a multiple of the largest stride.
    """
    height, width = height or graph.height, width or graph.width
    graph.check_size(height, width)
    rows = list(node_costs(graph, height, width))
    params, macs = sum(row.params for row in rows), sum(row.macs for row in rows)
    return Cost(
        height=height,
        width=width,
        params=params,
        folded_params=_folded(graph, rows),
        macs=macs,
        darknet_flops=2 * macs + sum(_darknet_extra(row) for row in rows),
        boxes=sum(
            len(row.node.op.mask) * row.out.height * row.out.width for row in rows if isinstance(row.node.op, Detect)
        ),
        activation_bytes=sum(row.activation_bytes for row in rows),
        memory_access=sum(row.memory_access for row in rows),
        cio=sum(row.cio for row in rows),
        weights_bytes=4 * (params + sum(row.buffers for row in rows)) + WEIGHTS_HEADER_BYTES,
    )


def _folded(graph: Graph, rows: list[NodeCost]) -> int | None:
    """Learned values once all that is constant after training is multiplied out; None for stand-alone normalisation.

    A normalisation becomes the bias of its convolution; what only training needs vanishes, see :mod:`.training_parts`.
    """
    if any(isinstance(node.op, BatchNorm) for node in graph):
        return None
    vanishing = set(auxiliary_nodes(graph))
    vanishing |= {node.name for node in graph if is_absorbed(graph, node)}
    for branches in parallel_convolutions(graph).values():
        vanishing |= {node.name for node in sorted(branches, key=_kernel)[:-1]}
    return sum(
        row.params - (row.node.op.filters if isinstance(row.node.op, Conv) and row.node.op.norm else 0)
        for row in rows
        if row.node.name not in vanishing
    )


def _kernel(node: Node) -> int:
    assert isinstance(node.op, Conv)
    return node.op.kernel


def _darknet_extra(row: NodeCost) -> int:
    out = math.prod(row.out)
    if isinstance(row.node.op, Pool) and row.node.op.kind == "max":
        return int(row.node.op.kernel**2 * out)
    if isinstance(row.node.op, Add):
        return out * (len(row.node.inputs) - 1)
    return 0


@dataclass(frozen=True, slots=True)
class ReceptiveField:
    """Pixels of the input that one cell sees, and pixels between neighbouring cells."""

    size: int
    stride: int


def receptive_fields(graph: Graph) -> Mapping[str, ReceptiveField]:
    """Receptive field of every node (paper Table 7): each k x k window adds (k - 1) times the stride before it."""
    strides = graph.node_strides
    sizes = {Graph.INPUT: 1}
    for node in graph:
        before = max(strides[source] for source in node.inputs)
        sizes[node.name] = max(sizes[source] for source in node.inputs) + (node.op.window.size - 1) * before
    return {name: ReceptiveField(size, strides[name]) for name, size in sizes.items()}
