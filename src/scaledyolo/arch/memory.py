"""How much memory training takes, estimated from the graph, and the largest batch that fits.

The weights are held five times: themselves, gradients, momentum, moving average, and the copy that is being saved.
Activations are held from the forward to the backward pass. What a framework really keeps of a node (inputs and outputs
of convolution, normalisation and activation) is a multiple of the outputs that :mod:`scaledyolo.arch.cost` counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

from scaledyolo.arch.cost import cost
from scaledyolo.arch.graph import Graph
from scaledyolo.errors import UsageError

HalfOrFull = Literal["16", "32"]  # bits of the activations

# Bytes kept for each byte of ``Cost.activation_bytes`` (float32 outputs, one for each node). Measured on a CPU over
# forward and backward: 1.9 to 2.6 in float32 and 1.1 to 1.4 in bfloat16, leaky networks low and Mish high.
ACTIVATION_FACTOR: Mapping[HalfOrFull, float] = MappingProxyType({"32": 2.7, "16": 1.5})
# Interpreter, libraries, data loading and evaluation, without the cache of images, and what freed memory leaves in
# pieces; measured: 400 MiB with one thread, 930 MiB with two.
BASE_BYTES = 960 * 2**20
_WEIGHT_COPIES = 5
_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


def parse_bytes(text: str) -> int:
    """Bytes of a text like ``8G``, ``512M`` or ``6.5 GiB``; units are powers of 1024.

    Raises:
        UsageError: it is no size, or not more than nothing.
    """
    found = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", text.lower())
    if not found or float(found[1]) <= 0:
        raise UsageError(f"{text!r} is no amount of memory; write it like 8G or 512M")
    return int(float(found[1]) * _UNITS[found[2]])


def fixed_bytes(graph: Graph) -> int:
    """Bytes that training takes whatever the batch."""
    return BASE_BYTES + _WEIGHT_COPIES * cost(graph).weights_bytes


def image_bytes(graph: Graph, height: int, width: int, bits: HalfOrFull) -> int:
    """Bytes that each image of a batch adds at this size in pixels."""
    return round(ACTIVATION_FACTOR[bits] * cost(graph, height, width).activation_bytes)


def training_bytes(graph: Graph, height: int, width: int, batch: int, bits: HalfOrFull) -> int:
    """Estimated peak memory of one training process in bytes, for ``batch`` images of this size in pixels."""
    return fixed_bytes(graph) + batch * image_bytes(graph, height, width, bits)


def fitting_batch(graph: Graph, side: int, effective: int, available: int, bits: HalfOrFull) -> int:
    """The largest divisor of ``effective`` images that a process can hold in ``available`` bytes.

    Raises:
        UsageError: not even one image fits; says what is needed.
    """
    room = available - fixed_bytes(graph)
    most = room // image_bytes(graph, side, side, bits)
    if most < 1:
        needed = training_bytes(graph, side, side, 1, bits)
        raise UsageError(
            f"{graph.name} at {side} pixels needs about {needed / 2**30:.1f} GiB for one image, but there are "
            f"{available / 2**30:.1f} GiB; take a smaller size or network"
        )
    return max(divisor for divisor in range(1, effective + 1) if effective % divisor == 0 and divisor <= most)
