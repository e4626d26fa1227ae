"""What every node of a network asks of a processor, as arrays: from one lowering, the figures at any input size.

Whatever belongs to positions grows with the area of the input, weights do not; so one graph is lowered for each set of
channels, depths and stages, and sizes cost a multiplication. :func:`scaledyolo.arch.lower.lower` stays the truth: the
tests lower at each size and compare.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final

import numpy as np
import numpy.typing as npt

from scaledyolo.arch.cost import Cost, NodeCost, node_costs
from scaledyolo.arch.graph import Graph
from scaledyolo.arch.ops import Activated, Activation, ChannelSplit, Conv, Detect, GlobalAveragePool, Pool
from scaledyolo.arch.scaling import ACTIVATION_WORK

Values = npt.NDArray[np.float64]

# Values that a vector register of current processors holds (AVX-512, and bfloat16 in pairs). Channels are computed in
# runs of so many; what is missing to a full run is computed and thrown away (the paper's tau, section 3.2).
LANES: Final = 16

# What the time of one image is explained by; the order of the columns of every feature matrix.
FEATURES: Final = (
    "spatial_macs",  # multiply-accumulates of convolutions wider than 1x1, channels rounded up to LANES
    "pointwise_macs",  # the same of 1x1 convolutions
    "conv_values",  # values that convolutions read and write (the first two terms of the paper's Eq. 1)
    "weights",  # values of all weights, which are read once for each image (its third term)
    "other_values",  # values that joins, sums, enlargements and stand-alone normalisations read and write
    "pooled_values",  # values that pools write
    "cheap_activations",  # values that go through an activation of additions and multiplications
    "costly_activations",  # values that go through one of exponentials or logarithms
    "nodes",  # operations that are started
    "pixels",  # of the input: resizing, and the conversion to what the network takes
    "head_values",  # of the raw maps, which decoding reads
    "images",  # one
)


@dataclass(frozen=True, slots=True)
class Profile:
    """Sums over the nodes of a network, split into what grows with the area of the input and what does not."""

    cost: Cost  # at the size at which it was lowered
    per_pixel: Values  # (len(FEATURES),) for each pixel of the input
    fixed: Values  # (len(FEATURES),) whatever the size
    peak_values: float  # values of all maps that are alive at the same time, at most, for each pixel of the input
    max_stride: int
    strides: tuple[int, ...]  # of the heads, finest first

    def inference_bytes(self, side: int, bytes_per_value: int) -> int:
        """Bytes of the weights and of the maps alive at the same time, without what the runtime itself takes."""
        return math.ceil(bytes_per_value * (self.cost.params + self.peak_values * side**2))


def profile(graph: Graph, totals: Cost) -> Profile:
    """The profile of a graph; ``totals`` is its cost at its own size."""
    rows = list(node_costs(graph, graph.height, graph.width))
    moving, fixed = dict.fromkeys(FEATURES, 0.0), dict.fromkeys(FEATURES, 0.0)
    for row in rows:
        _count(graph, row, moving, fixed)
    fixed["images"] = 1.0
    area = graph.height * graph.width
    moving["pixels"] = float(area)
    return Profile(
        cost=totals,
        per_pixel=np.array([moving[name] for name in FEATURES]) / area,
        fixed=np.array([fixed[name] for name in FEATURES]),
        peak_values=_peak(graph, rows) / area,
        max_stride=graph.max_stride,
        strides=tuple(sorted(graph.strides)),
    )


def _count(graph: Graph, row: NodeCost, moving: dict[str, float], fixed: dict[str, float]) -> None:
    """Add what one node does to the sums."""
    op, written = row.node.op, math.prod(row.out)
    if isinstance(op, Detect):
        moving["head_values"] += written
        return
    if isinstance(op, ChannelSplit):  # a view of memory; nothing runs
        return
    fixed["nodes"] += 1
    fixed["weights"] += row.params
    read = row.memory_access - row.params - written
    if isinstance(op, Conv):
        (channels,) = graph.in_channels(row.node)
        lanes = _in_lanes(channels // op.groups) * _in_lanes(op.filters // op.groups) * op.groups
        kind = "spatial_macs" if op.kernel > 1 else "pointwise_macs"
        moving[kind] += lanes * op.kernel**2 * row.out.height * row.out.width
        moving["conv_values"] += read + written
    elif isinstance(op, (Pool, GlobalAveragePool)):
        moving["pooled_values"] += written
    else:
        moving["other_values"] += read + written
    activation = _activation(row)
    if activation != "linear":
        costly = ACTIVATION_WORK[activation].transcendental
        moving["costly_activations" if costly else "cheap_activations"] += written


def _activation(row: NodeCost) -> Activation:
    op = row.node.op
    return op.activation if isinstance(op, Activated) else "linear"


def _in_lanes(channels: int) -> int:
    return -(-channels // LANES) * LANES


def _peak(graph: Graph, rows: list[NodeCost]) -> int:
    """Values of all maps that wait for a reader, at the moment when these are most; nodes run in their order."""
    sizes = {Graph.INPUT: graph.channels * graph.height * graph.width}
    sizes |= {row.node.name: math.prod(row.out) for row in rows}
    last: Mapping[str, str] = {source: readers[-1] for source, readers in graph.consumers.items() if readers}
    alive, most = sizes[Graph.INPUT], 0
    for row in rows:
        alive += sizes[row.node.name]
        most = max(most, alive)
        alive -= sum(sizes[source] for source in set(row.node.inputs) if last[source] == row.node.name)
    return most
