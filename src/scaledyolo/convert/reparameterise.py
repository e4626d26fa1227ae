"""Re-parameterisation: convolutions that are summed become one (RepConv, YOLOv7), exactly.

``W = Σ s_i · pad(W_i)`` and ``b = Σ (b_i or β_i − s_i·μ_i)`` with ``s = γ/√(σ²+ε)``: each kernel is scaled by its
normalisation, laid into the middle of the largest one, and summed. Computed in float64, rounded once.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from scaledyolo.arch.graph import Graph, Node
from scaledyolo.arch.ops import Add, Conv
from scaledyolo.arch.training_parts import parallel_convolutions
from scaledyolo.weights import Array, Weights

Float64: TypeAlias = NDArray[np.float64]


def merge_parallel(graph: Graph, weights: Mapping[str, Array]) -> tuple[Graph, Weights]:
    """The network with every sum of parallel convolutions as one convolution with a bias, under the sum's name.

    Arrays that did not change are shared, not copied.
    """
    merged: Weights = dict(weights)
    sums = parallel_convolutions(graph)
    if not sums:
        return graph, merged
    replaced: dict[str, Node] = {}
    for name, branches in sums.items():
        kernel, bias = _summed(branches, weights, graph.norm_eps)
        for branch in branches:
            for key in branch.op.parameters(*graph.in_channels(branch)):
                del merged[f"{branch.name}.{key}"]
        merged[f"{name}.weight"], merged[f"{name}.bias"] = kernel.astype(np.float32), bias.astype(np.float32)
        replaced[name] = _merged_node(graph[name], branches)
    gone = {branch.name for branches in sums.values() for branch in branches}
    return graph.with_nodes(tuple(replaced.get(node.name, node) for node in graph if node.name not in gone)), merged


def _merged_node(total: Node, branches: tuple[Node, ...]) -> Node:
    assert isinstance(total.op, Add)
    largest = max((branch.op for branch in branches if isinstance(branch.op, Conv)), key=lambda op: op.kernel)
    op = replace(largest, norm=False, bias=True, activation=total.op.activation)
    return Node(total.name, op, branches[0].inputs)


def _summed(branches: tuple[Node, ...], weights: Mapping[str, Array], eps: float) -> tuple[Float64, Float64]:
    """Kernel (filters, channels, k, k) and bias (filters,) of the sum, float64."""
    parts = [_scaled(branch, weights, eps) for branch in branches]
    side = max(kernel.shape[-1] for kernel, _ in parts)
    filters, channels = parts[0][0].shape[:2]
    total: Float64 = np.zeros((filters, channels, side, side))
    for kernel, _ in parts:
        edge = (side - kernel.shape[-1]) // 2
        middle = slice(edge, side - edge)
        total[:, :, middle, middle] += kernel
    return total, np.sum([bias for _, bias in parts], axis=0)


def _scaled(branch: Node, weights: Mapping[str, Array], eps: float) -> tuple[Float64, Float64]:
    """Kernel and bias of one branch with its normalisation multiplied in, float64."""
    assert isinstance(branch.op, Conv)
    kernel = weights[f"{branch.name}.weight"].astype(np.float64)
    bias = weights[f"{branch.name}.bias"].astype(np.float64) if branch.op.bias else np.zeros(len(kernel))
    if not branch.op.norm:
        return kernel, bias
    scale, shift = norm_as_affine(weights, f"{branch.name}.norm.", eps)
    return kernel * scale[:, None, None, None], scale * bias + shift


def norm_as_affine(weights: Mapping[str, Array], prefix: str, eps: float) -> tuple[Float64, Float64]:
    """Batch normalisation with fixed statistics as (scale, shift), float64, one value a channel."""
    gamma, beta, mean, var = (
        weights[prefix + key].astype(np.float64) for key in ("weight", "bias", "running_mean", "running_var")
    )
    scale = gamma / np.sqrt(var + eps)
    return scale, beta - mean * scale
