"""What a network has for its training only: parallel convolutions that are summed, implicit vectors, auxiliary heads.

For inference they vanish without a trace (YOLOv7, section 4): parallel convolutions are one, a vector around a linear
convolution goes into its weights, what no head reads is not computed. Here it is said which nodes these are;
:mod:`scaledyolo.convert.fold` does it to weights.
"""

from __future__ import annotations

from collections.abc import Mapping

from scaledyolo.arch.graph import Graph, Node
from scaledyolo.arch.ops import Add, Conv, Implicit


def auxiliary_nodes(graph: Graph) -> frozenset[str]:
    """The nodes that no head depends on; none in a network without heads."""
    if not graph.heads:
        return frozenset()
    needed = {head.name for head in graph.heads}
    for node in reversed(graph.nodes):
        if node.name in needed:
            needed.update(node.inputs)
    return frozenset(node.name for node in graph if node.name not in needed)


def parallel_convolutions(graph: Graph) -> Mapping[str, tuple[Node, ...]]:
    """For every sum that is one convolution (RepConv): its convolutions, by the name of the sum.

    They read the same value, are linear, are read by the sum alone, and lie over each other centre on centre.
    """
    found: dict[str, tuple[Node, ...]] = {}
    for node in graph:
        if not isinstance(node.op, Add) or node.op.weights != "none" or Graph.INPUT in node.inputs:
            continue
        branches = tuple(graph[source] for source in node.inputs)
        if len(set(node.inputs)) > 1 and all(_is_branch(graph, node, branch) for branch in branches):
            geometries = {(branch.inputs, *_geometry(branch)) for branch in branches}
            if len(geometries) == 1:
                found[node.name] = branches
    return found


def _is_branch(graph: Graph, total: Node, branch: Node) -> bool:
    op = branch.op
    if not isinstance(op, Conv) or op.activation != "linear" or op.dilation != 1:
        return False
    is_centred = op.kernel % 2 == 1 and op.padding == op.kernel // 2
    return is_centred and graph.consumers[branch.name] == (total.name,) and total.inputs.count(branch.name) == 1


def _geometry(branch: Node) -> tuple[object, ...]:
    assert isinstance(branch.op, Conv)
    return branch.op.filters, branch.op.stride, branch.op.groups


def is_absorbed(graph: Graph, node: Node) -> bool:
    """Whether an implicit vector goes into the convolution before it, or into those after it."""
    if not isinstance(node.op, Implicit):
        return False
    (source,) = node.inputs
    before = graph[source].op if source != Graph.INPUT else None
    if isinstance(before, Conv) and before.activation == "linear" and graph.consumers[source] == (node.name,):
        return True
    readers = [graph[name].op for name in graph.consumers[node.name]]
    return bool(readers) and all(
        isinstance(op, Conv) and (node.op.kind == "multiply" or not op.padding) for op in readers
    )
