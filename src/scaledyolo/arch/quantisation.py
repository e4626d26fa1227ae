"""Where a network computes in 8 bits: which convolutions can, and which maps are rounded for it. Pure functions.

Weights have one scale for each output channel; a map has one scale and one zero point, and is rounded where it is made.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Final

from scaledyolo.arch.cost import NodeCost, node_costs
from scaledyolo.arch.graph import Graph, Node
from scaledyolo.arch.ops import Add, Affine, BatchNorm, Conv, GlobalAveragePool, Multiply, Pool, Upsample

TRAINED_FOR: Final = "trained_for"  # in the provenance of a checkpoint: "int8" where training rounded as 8 bits do

# Besides convolutions, what OpenVINO's quantiser (NNCF, target CPU) gives rounded inputs: found by looking at networks.
_READ_ROUNDED: Final = (Add, Affine, BatchNorm, GlobalAveragePool, Multiply, Upsample)


def quantisable_layers(graph: Graph, *, depthwise: bool = True) -> dict[str, int]:
    """Convolutions that may compute in 8 bits, with their multiply-accumulates for one image, in order.

    These are all but the last ones before the heads: the maps of the heads are logits and box offsets, whose errors
    nothing evens out any more.

    Args:
        graph: the network, folded or as it is trained.
        depthwise: whether those with one input channel for each group are among them.
    """
    around = _around_heads(graph)
    return {
        row.node.name: row.macs
        for row in node_costs(graph, graph.height, graph.width)
        if isinstance(row.node.op, Conv) and row.node.name not in around and (depthwise or not _is_depthwise(row))
    }


def first_layers(graph: Graph) -> frozenset[str]:
    """Names of the convolutions between which and the image there is no other one."""
    before = {Graph.INPUT}  # what no convolution has computed
    first: set[str] = set()
    for node in graph:
        if not before.isdisjoint(node.inputs):
            (first if isinstance(node.op, Conv) else before).add(node.name)
    return frozenset(first)


def rounded_maps(graph: Graph, layers: Collection[str]) -> frozenset[str]:
    """Names of the maps that are rounded to 8 bits where these convolutions compute in 8 bits.

    It is what they read, and what sums, products, enlargements, means and normalisations on their own read; the image
    is among them.

    Args:
        graph: the network.
        layers: names of convolutions, some of :func:`quantisable_layers`.
    """
    around = _around_heads(graph)
    readers = (node for node in graph if node.name not in around and _reads_rounded(node, layers))
    return frozenset(source for node in readers for source in node.inputs)


def _reads_rounded(node: Node, layers: Collection[str]) -> bool:
    if isinstance(node.op, Pool):
        return node.op.kind != "max"  # the greatest of rounded values is one of them
    return node.name in layers or isinstance(node.op, _READ_ROUNDED)


def _is_depthwise(row: NodeCost) -> bool:
    op = row.node.op
    return isinstance(op, Conv) and op.groups > 1 and row.cio == op.filters


def _around_heads(graph: Graph) -> set[str]:
    """Names of the last convolutions, from which a head is reached without another one between, and of what follows."""
    waiting = [head.name for head in graph.heads]
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if name == Graph.INPUT or name in seen:
            continue
        seen.add(name)
        if not isinstance(graph[name].op, Conv):
            waiting.extend(graph[name].inputs)
    return seen
