"""Weights as data: a dict of float32 arrays with exactly the names and shapes of ``graph.parameters``.

Every reader of foreign formats produces such a dict, every consumer (folding, ONNX writer, torch network, safetensors)
takes one, so that nothing but NumPy stands between a file and an engine.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from scaledyolo.arch.graph import Graph, Node
from scaledyolo.arch.ops import Add, Affine, BatchNorm, Concat, Conv, Implicit, is_buffer
from scaledyolo.errors import CheckpointError, ConversionError, nearest

Array: TypeAlias = NDArray[np.float32]
Weights: TypeAlias = dict[str, Array]

# Second moment of one channel of an image whose values spread evenly over [0, 1].
_IMAGE_SECOND_MOMENT = 1 / 3


def check_weights(graph: Graph, weights: Mapping[str, NDArray[Any]]) -> None:
    """Compare names, shapes and dtype with what the graph stores; strict in both directions.

    Raises:
        CheckpointError: a tensor is missing, superfluous, of another shape or not float32; names it and both shapes.
    """
    for name, shape in graph.parameters.items():
        if name not in weights:
            raise CheckpointError(f"{graph.name}: tensor {name!r} of shape {shape} is missing from the weights")
        found = weights[name]
        if tuple(found.shape) != tuple(shape):
            raise CheckpointError(
                f"{graph.name}: tensor {name!r} should have shape {shape}, the weights have {tuple(found.shape)}"
            )
        if found.dtype != np.float32:
            raise CheckpointError(f"{graph.name}: tensor {name!r} should be float32, the weights have {found.dtype}")
    if len(weights) > len(graph.parameters):
        extra = next(name for name in weights if name not in graph.parameters)
        raise CheckpointError(
            f"{graph.name}: the weights hold a tensor {extra!r} of shape {tuple(weights[extra].shape)} "
            f"that the network does not have.{nearest(extra, graph.parameters)}"
        )


def count(weights: Mapping[str, NDArray[Any]], *, buffers: bool = False) -> int:
    """Number of learned values; with ``buffers`` the running statistics are counted as well."""
    return sum(array.size for name, array in weights.items() if buffers or not is_buffer(name))


def as_float16(name: str, array: Array) -> NDArray[np.float16]:
    """A tensor rounded to float16.

    Raises:
        ConversionError: it holds a value outside the range; names the tensor.
    """
    largest = float(np.abs(array).max(initial=0))
    if largest > float(np.finfo(np.float16).max):
        raise ConversionError(f"{name}: holds {largest:g}, which float16 cannot; store it as float32")
    return array.astype(np.float16)


def random_weights(graph: Graph, rng: np.random.Generator) -> Weights:
    """Random, well-conditioned weights: activations keep a magnitude near one through any depth.

    The second moment of every activation is followed through the graph, and running statistics are set to match, as
    they would be after training. Meant for tests and benchmarks; training starts from ``net.initialise``.
    """
    weights: Weights = {}
    moments = {Graph.INPUT: _IMAGE_SECOND_MOMENT}
    for node in graph:
        moments[node.name] = _random_node(graph, node, [moments[source] for source in node.inputs], weights, rng)
    return {name: weights[name] for name in graph.parameters}


def _random_node(graph: Graph, node: Node, moments: list[float], weights: Weights, rng: np.random.Generator) -> float:
    """Fill the tensors of one node into ``weights``; returns the rough second moment of its output."""
    op, channels = node.op, graph.in_channels(node)
    shapes = {key: (f"{node.name}.{key}", shape) for key, shape in op.parameters(*channels).items()}

    def put(key: str, value: NDArray[np.float64]) -> None:
        weights[shapes[key][0]] = value.astype(np.float32)

    if isinstance(op, Conv):
        shape = shapes["weight"][1]
        fan_in = int(np.prod(shape[1:]))
        weight = rng.standard_normal(shape, dtype=np.float32)
        weight *= np.float32(fan_in**-0.5)
        weights[shapes["weight"][0]] = weight
        if op.bias:
            put("bias", rng.normal(0, 0.1, op.filters))
        if op.norm:
            _random_norm(put, "norm.", op.filters, moments[0], rng)
            return 1.0
        return moments[0]
    if isinstance(op, BatchNorm):
        _random_norm(put, "", channels[0], moments[0], rng)
        return 1.0
    if isinstance(op, Affine):
        put("scale", rng.uniform(0.8, 1.2, channels[0]))
        put("bias", rng.normal(0, 0.1, channels[0]))
    elif isinstance(op, Implicit):
        put("implicit", rng.normal(0.0 if op.kind == "add" else 1.0, 0.1, channels[0]))
    elif isinstance(op, Add):
        if shapes:
            put("weights", rng.uniform(0.2, 1.0, shapes["weights"][1]))
        return sum(moments)
    elif isinstance(op, Concat):
        return sum(m * c for m, c in zip(moments, channels, strict=True)) / sum(channels)
    return moments[0]


def _random_norm(
    put: Callable[[str, NDArray[np.float64]], None],
    prefix: str,
    channels: int,
    moment: float,
    rng: np.random.Generator,
) -> None:
    put(f"{prefix}weight", rng.uniform(0.8, 1.2, channels))
    put(f"{prefix}bias", rng.normal(0, 0.2, channels))
    put(f"{prefix}running_mean", rng.normal(0, 0.1 * moment**0.5, channels))
    put(f"{prefix}running_var", moment * rng.uniform(0.8, 1.2, channels))
