"""From normalisation over a concatenation (yaml form) to normalisation of each branch (cfg form), where that is exact.

In the CSP stages of the backbone the branches end bare, and batch normalisation works on each channel alone: the two
forms compute the same. In the reversed CSP stages and the pooling block of the neck the main branch arrives normalised
and activated, and the yaml form does both to it a second time; no network of the cfg form computes that.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from scaledyolo.arch.graph import Graph, Node
from scaledyolo.arch.ops import BatchNorm, Concat, Conv
from scaledyolo.errors import ConversionError
from scaledyolo.weights import Array, Weights

_NORM = ("weight", "bias", "running_mean", "running_var")


def branch_form(graph: Graph) -> Graph:
    """The same network with the normalisation of every concatenation moved into the convolutions that it joins.

    Raises:
        ConversionError: a branch is normalised already, so no such network computes the same; names the node.
    """
    activations: dict[str, BatchNorm] = {}
    renamed: dict[str, str] = {}
    for norm, concat in _joint_norms(graph):
        for branch in concat.inputs:
            _check_branch(graph, norm, branch)
            assert isinstance(norm.op, BatchNorm)
            activations[branch] = norm.op
        renamed[norm.name] = concat.name
    if not renamed:
        return graph

    def moved(node: Node) -> Node:
        inputs = tuple(renamed.get(source, source) for source in node.inputs)
        if node.name not in activations:
            return replace(node, inputs=inputs)
        assert isinstance(node.op, Conv)
        return Node(node.name, replace(node.op, norm=True, activation=activations[node.name].activation), inputs)

    return graph.with_nodes(tuple(moved(node) for node in graph if node.name not in renamed))


def branch_weights(graph: Graph, weights: Mapping[str, Array]) -> Weights:
    """The weights of :func:`branch_form` of a graph."""
    moved = dict(weights)
    for norm, concat in _joint_norms(graph):
        values = {key: moved.pop(f"{norm.name}.{key}") for key in _NORM}
        start = 0
        for branch in concat.inputs:
            end = start + graph.out_channels(branch)
            moved |= {f"{branch}.norm.{key}": value[start:end].copy() for key, value in values.items()}
            start = end
    return {name: moved[name] for name in branch_form(graph).parameters}


def _joint_norms(graph: Graph) -> Iterator[tuple[Node, Node]]:
    """Every normalisation of a concatenation, with the concatenation."""
    for node in graph:
        if isinstance(node.op, BatchNorm) and node.inputs[0] != Graph.INPUT:
            source = graph[node.inputs[0]]
            if isinstance(source.op, Concat):
                yield node, source


def _check_branch(graph: Graph, norm: Node, branch: str) -> None:
    op = graph[branch].op if branch != Graph.INPUT else None
    is_bare = isinstance(op, Conv) and not op.norm and not op.bias and op.activation == "linear"
    if is_bare and len(graph.consumers[branch]) == 1 and len(graph.consumers[norm.inputs[0]]) == 1:
        return
    raise ConversionError(
        f"{graph.name} cannot be exact in Darknet's form: {norm.name!r} normalises and activates {branch!r}, which is "
        "normalised and activated already, whereas a cfg does it once for each branch; keep it as .safetensors"
    )
