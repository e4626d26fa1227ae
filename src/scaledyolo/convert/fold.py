"""Folding: what is constant after training is multiplied out, so that an engine computes convolutions and little else.

* convolution + batch normalisation -> convolution with bias: ``W' = W·γ/√(σ²+ε)``, ``b' = β + (b−μ)·γ/√(σ²+ε)``
* stand-alone batch normalisation (over a concatenation) -> :class:`Affine`
* per-channel affine maps, implicit vectors among them, -> into the convolution before or after them:
  ``s·(W∗x + b) + t`` and ``W∗(s·x + t) + b``; so a head of YOLOR becomes ``W' = m·W``, ``b' = m·(b + W·a)``
* learned weights of a sum -> their normalised values
* parallel convolutions that are summed -> one, see :mod:`scaledyolo.convert.reparameterise`
* what no head reads (auxiliary heads) -> nothing
* parallel max pools (SPP) -> a cascade of small ones, exactly equal

Everything is computed in float64 and stored in float32. Graph and weights that come in are left as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from itertools import pairwise
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from scaledyolo.arch.graph import Graph, Node
from scaledyolo.arch.ops import SUM_EPSILON, Add, Affine, BatchNorm, Conv, Implicit, Pool
from scaledyolo.arch.training_parts import auxiliary_nodes
from scaledyolo.convert.reparameterise import merge_parallel, norm_as_affine
from scaledyolo.weights import Array, Weights, check_weights

Float64: TypeAlias = NDArray[np.float64]


def fold(graph: Graph, weights: Mapping[str, Array]) -> tuple[Graph, Weights]:
    """Multiply out all that is constant after training.

    Args:
        graph: any network; node names are kept, nodes that vanish into a convolution lose theirs.
        weights: exactly ``graph.parameters``, float32.

    Returns:
        A graph without batch normalisation, and its weights. Arrays that did not change are shared, not copied.

    Raises:
        CheckpointError: the weights are not those of the graph.
    """
    check_weights(graph, weights)
    graph, weights = merge_parallel(*without_auxiliary(graph, weights))
    folded: Weights = {}
    nodes = tuple(_fold_node(graph, node, weights, folded) for node in graph)
    graph = graph.with_nodes(nodes)
    graph = _merge_affines(graph, folded, _affine_names(graph), _merge_backward)
    # Forward, the map next to a convolution has to go first, to make room for the one before it.
    graph = _merge_affines(graph, folded, reversed(_affine_names(graph)), _merge_forward)
    return graph, {name: folded[name] for name in graph.parameters}


def without_auxiliary(graph: Graph, weights: Mapping[str, Array]) -> tuple[Graph, Weights]:
    """The network without what no head reads; arrays are shared."""
    gone = auxiliary_nodes(graph)
    kept = graph.with_nodes(tuple(node for node in graph if node.name not in gone)) if gone else graph
    return kept, {name: weights[name] for name in kept.parameters}


def fold_implicit(graph: Graph, weights: Mapping[str, Array]) -> tuple[Graph, Weights]:
    """Multiply implicit vectors into the convolutions around them, normalisation left alone: ``W' = m·W``, ...

    Arrays that did not change are shared, not copied.
    """
    folded: Weights = dict(weights)
    names = [node.name for node in graph if isinstance(node.op, Implicit)]
    graph = _merge_affines(graph, folded, names, _merge_backward)
    names = [name for name in reversed(names) if any(node.name == name for node in graph)]
    graph = _merge_affines(graph, folded, names, _merge_forward)
    return graph, {name: folded[name] for name in graph.parameters}


def cascade_pools(graph: Graph) -> Graph:
    """Let a large max pool of stride 1 read the result of a smaller one: 5, 9, 13 side by side become 5, 5, 5 in a row.

    Exact, because a maximum over a window is the maximum of maxima over windows that cover it, and outside counts as
    minus infinity. Needs windows of odd size centred on their pixel, which is what SPP has.
    """
    pools: dict[str, list[Node]] = {}  # source -> the centred pools that read it
    for node in graph:
        if isinstance(node.op, Pool) and _is_centred(node.op):
            pools.setdefault(node.inputs[0], []).append(node)
    nodes: list[Node] = []
    for node in graph:
        if not isinstance(node.op, Pool) or not _is_centred(node.op):
            nodes.append(node)
        # They read one value only, so all of them can stand where the first of them stood.
        elif siblings := pools.pop(node.inputs[0], None):
            nodes.extend(_cascaded(siblings))
    return graph.with_nodes(tuple(nodes))


def _cascaded(pools: list[Node]) -> list[Node]:
    """Pools of one source, smallest first, each reading the one before."""
    pools = sorted(pools, key=_kernel)
    cascade = pools[:1]
    for smaller, node in pairwise(pools):
        rest = _kernel(node) - _kernel(smaller)
        op = Pool(rest + 1, 1, rest)
        cascade.append(replace(node, op=op, inputs=(smaller.name,)))
    return cascade


def _kernel(node: Node) -> int:
    assert isinstance(node.op, Pool)
    return node.op.kernel


def _is_centred(pool: Pool) -> bool:
    return pool.kind == "max" and pool.stride == 1 and pool.kernel % 2 == 1 and pool.padding == pool.kernel - 1


def _fold_node(graph: Graph, node: Node, weights: Mapping[str, Array], folded: Weights) -> Node:
    """Fold what concerns the node alone; its tensors go into ``folded``."""
    name, op = node.name, node.op
    if isinstance(op, Conv) and op.norm:
        scale, shift = norm_as_affine(weights, f"{name}.norm.", graph.norm_eps)
        if op.bias:
            shift = shift + scale * weights[f"{name}.bias"]
        folded[f"{name}.weight"] = _scaled(weights[f"{name}.weight"], scale[:, None, None, None])
        folded[f"{name}.bias"] = shift.astype(np.float32)
        return replace(node, op=replace(op, norm=False, bias=True))
    if isinstance(op, BatchNorm):
        scale, shift = norm_as_affine(weights, f"{name}.", graph.norm_eps)
        folded[f"{name}.scale"], folded[f"{name}.bias"] = scale.astype(np.float32), shift.astype(np.float32)
        return replace(node, op=Affine(op.activation))
    if isinstance(op, Add) and op.weights != "none":
        folded[f"{name}.weights"] = normalised_sum_weights(weights[f"{name}.weights"], op.normalization)
        return replace(node, op=replace(op, normalization="none"))
    for key in op.parameters(*graph.in_channels(node)):
        folded[f"{name}.{key}"] = weights[f"{name}.{key}"]
    return node


def normalised_sum_weights(weights: Array, normalization: str) -> Array:
    """Weights of a weighted sum after their normalisation over the inputs.

    Args:
        weights: (inputs, 1 or channels), float32.
        normalization: ``none``, ``relu`` (rectified, divided by their sum + 1e-4) or ``softmax``.
    """
    values = weights.astype(np.float64)
    if normalization == "relu":
        values = np.maximum(values, 0)
        values = values / (values.sum(axis=0, keepdims=True) + SUM_EPSILON)
    elif normalization == "softmax":
        values = np.exp(values - values.max(axis=0, keepdims=True))
        values = values / values.sum(axis=0, keepdims=True)
    return values.astype(np.float32)


def _scaled(weight: Array, scale: Float64) -> Array:
    """``weight * scale`` computed in float64, stored in float32, without a float64 copy of the whole tensor."""
    out = np.empty_like(weight)
    np.multiply(weight, scale, out=out, dtype=np.float64, casting="same_kind")
    return out


# A merge takes graph, node, scale, shift and the weights that it updates. It returns the convolutions that took the map
# in, by name, or None where it cannot be done.
_Merge = Callable[[Graph, Node, Float64, Float64, Weights], dict[str, Node] | None]


def _affine_names(graph: Graph) -> list[str]:
    return [node.name for node in graph if isinstance(node.op, Affine | Implicit)]


def _merge_affines(graph: Graph, weights: Weights, names: Iterable[str], merge: _Merge) -> Graph:
    """Merge every affine map that can be, one at a time; ``weights`` is updated in place."""
    for name in names:
        node = graph[name]
        scale, shift = _affine_map(node, weights)
        changed = merge(graph, node, scale, shift, weights)
        if changed is None:
            continue
        for key in node.op.parameters(*graph.in_channels(node)):
            del weights[f"{name}.{key}"]
        graph = graph.with_nodes(
            tuple(
                _reading(changed.get(other.name, other), name, node.inputs[0]) for other in graph if other is not node
            )
        )
    return graph


def _affine_map(node: Node, weights: Weights) -> tuple[Float64, Float64]:
    """The (scale, shift) that an Affine or an implicit vector applies to each channel, float64."""
    if isinstance(node.op, Affine):
        return weights[f"{node.name}.scale"].astype(np.float64), weights[f"{node.name}.bias"].astype(np.float64)
    assert isinstance(node.op, Implicit)
    vector = weights[f"{node.name}.implicit"].astype(np.float64)
    if node.op.kind == "add":
        return np.ones_like(vector), vector
    return vector, np.zeros_like(vector)


def _reading(node: Node, old: str, new: str) -> Node:
    return replace(node, inputs=tuple(new if source == old else source for source in node.inputs))


def _merge_backward(
    graph: Graph, node: Node, scale: Float64, shift: Float64, weights: Weights
) -> dict[str, Node] | None:
    """Into the linear convolution before it, when nobody else reads that: ``s·(W∗x + b) + t``."""
    source = node.inputs[0]
    if source == Graph.INPUT or graph.consumers[source] != (node.name,):
        return None
    conv = graph[source]
    if not isinstance(conv.op, Conv) or conv.op.activation != "linear":
        return None
    bias = weights[f"{source}.bias"].astype(np.float64) if conv.op.bias else 0.0
    weights[f"{source}.weight"] = _scaled(weights[f"{source}.weight"], scale[:, None, None, None])
    weights[f"{source}.bias"] = (bias * scale + shift).astype(np.float32)
    activation = node.op.activation if isinstance(node.op, Affine) else "linear"
    return {source: replace(conv, op=replace(conv.op, bias=True, activation=activation))}


def _merge_forward(
    graph: Graph, node: Node, scale: Float64, shift: Float64, weights: Weights
) -> dict[str, Node] | None:
    """Into the convolutions after it, when nothing else reads it: ``W∗(s·x + t) + b``.

    A shift must not pass a convolution with padding: outside the picture is zero after the shift, not before.
    """
    readers = [graph[name] for name in graph.consumers[node.name]]
    is_linear = not isinstance(node.op, Affine) or node.op.activation == "linear"
    if not readers or not is_linear:
        return None
    for reader in readers:
        if not isinstance(reader.op, Conv) or (reader.op.padding and shift.any()):
            return None
    changed = {}
    for reader in readers:
        assert isinstance(reader.op, Conv)
        _absorb_input_affine(reader, scale, shift, weights)
        changed[reader.name] = replace(reader, op=replace(reader.op, bias=True))
    return changed


def _absorb_input_affine(conv: Node, scale: Float64, shift: Float64, weights: Weights) -> None:
    assert isinstance(conv.op, Conv)
    weight = weights[f"{conv.name}.weight"]
    filters, group_channels = weight.shape[:2]
    per_group = filters // conv.op.groups
    # Row f of these tables: what the input channels seen by filter f are multiplied with and shifted by.
    scales = np.repeat(scale.reshape(conv.op.groups, group_channels), per_group, axis=0)
    shifts = np.repeat(shift.reshape(conv.op.groups, group_channels), per_group, axis=0)
    bias = weights[f"{conv.name}.bias"].astype(np.float64) if conv.op.bias else 0.0
    bias = bias + np.einsum("fckl,fc->f", weight.astype(np.float64), shifts)
    weights[f"{conv.name}.weight"] = _scaled(weight, scales[:, :, None, None])
    weights[f"{conv.name}.bias"] = bias.astype(np.float32)
