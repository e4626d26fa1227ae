"""Where the time goes, layer by layer, and what holds it up: arithmetic or memory.

A layer of F floating-point operations that moves B bytes takes at least ``max(F / peak, B / bandwidth)``, the roof of
:mod:`scaledyolo.arch.roofline`. What it takes more is the engine's; which of the two is greater says what could
make it faster. Bytes are those of its inputs, outputs and weights, each moved once; what stays in a cache moves faster
than the bandwidth of the memory, so a share of the roof above 1 is possible.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal

from scaledyolo.arch.cost import NodeCost, node_costs
from scaledyolo.arch.graph import Graph
from scaledyolo.arch.ops import Shape
from scaledyolo.arch.roofline import BYTES_PER_VALUE, Roof

Bound = Literal["compute", "memory", "overhead"]  # overhead: serves the runtime only, as a change of layout does
RUNTIME: Final = "(conversions of the runtime)"  # kernels that belong to no node: changes of layout and precision


@dataclass(frozen=True, slots=True)
class Layer:
    """One node of the network with everything that the engine computes together with it."""

    name: str
    nodes: tuple[str, ...]  # of the graph; the first gave the name
    kernels: Mapping[str, float]  # milliseconds of each kernel, by what it is
    ms: float
    share: float  # of the time of all layers
    flops: int
    num_bytes: int
    gflops: float  # achieved, a second
    gbytes: float  # achieved, a second
    intensity: float  # FLOP for each byte
    bound: Bound
    roof_share: float | None  # least possible time over time taken


def node_of(name: str, nodes: Mapping[str, object]) -> str | None:
    """The node of the graph from which an engine's node comes: its own name, or a part of one of its names.

    Our ONNX files name what they write for a node ``node`` or ``node.part``; engines append parts of their own.
    """
    while name:
        if name in nodes:
            return name
        cut = max(name.rfind("."), name.rfind("/"))
        name = name[:cut] if cut > 0 else ""
    return None


def layers_of(
    kernels: Sequence[Mapping[str, Any]],
    graph: Graph,
    *,
    height: int,
    width: int,
    batch: int,
    precision: str,
    roof: Roof,
) -> list[Layer]:
    """The layers of a network from the kernels that an engine ran.

    Args:
        kernels: in order of execution; ``name``, ``type``, ``sources`` (further names that went into it) and ``ms``.
        graph: the network.
        height: of its input, in pixels; so is ``width``.
        batch: images of one run.
        precision: what the engine computed in.
        roof: what the machine can do at most.

    Returns:
        In order of execution; kernels that belong to no node come last, as one row.
    """
    costs = {cost.node.name: cost for cost in node_costs(graph, height, width)}
    # The map that a head reads carries the name of the head.
    alias = {head.name: head.inputs[0] for head in graph.heads}
    known = {**costs, **alias}

    def find(name: str) -> str | None:
        node = node_of(name, known)
        return alias.get(node, node) if node is not None else None

    owned: dict[str, list[Mapping[str, Any]]] = {}
    for kernel in kernels:
        owned.setdefault(find(kernel["name"]) or RUNTIME, []).append(kernel)
    members = _members(owned, find)
    total = math.fsum(kernel["ms"] for kernel in kernels) or 1.0
    shapes = graph.shapes(height, width)
    rows = []
    for owner in sorted(owned, key=lambda name: name == RUNTIME):
        nodes = [costs[name] for name in members[owner]]
        flops = batch * 2 * sum(cost.macs for cost in nodes)
        num_bytes = moved_bytes(nodes, graph, shapes, batch, BYTES_PER_VALUE[precision])
        rows.append(_layer((owner, *members[owner][1:]), owned[owner], flops, num_bytes, total, roof))
    return rows


def _members(
    owned: Mapping[str, Sequence[Mapping[str, Any]]], find: Callable[[str], str | None]
) -> dict[str, tuple[str, ...]]:
    """For every owner its nodes, itself first: those that went into its kernels and have no kernel of their own."""
    members: dict[str, tuple[str, ...]] = {RUNTIME: ()}
    taken = set(owned)
    for owner, kernels in owned.items():
        if owner == RUNTIME:
            continue
        found = dict.fromkeys(find(name) for kernel in kernels for name in kernel["sources"])
        joined = [name for name in found if name is not None and name not in taken]
        taken.update(joined)
        members[owner] = (owner, *joined)
    return members


def moved_bytes(
    nodes: Iterable[NodeCost], graph: Graph, shapes: Mapping[str, Shape], batch: int, bytes_per_value: int
) -> int:
    """Bytes that nodes computed together move: what comes from outside, what others read, and their weights.

    Maps between them stay in registers or caches and are not counted.
    """
    nodes = list(nodes)
    names = {cost.node.name for cost in nodes}
    read = {source for cost in nodes for source in cost.node.inputs if source not in names}
    written = {name for name in names if any(reader not in names for reader in graph.consumers[name])}
    values = sum(math.prod(shapes[name]) for name in (*read, *written))
    return bytes_per_value * (batch * values + sum(cost.params for cost in nodes))


def _layer(
    nodes: tuple[str, ...],
    kernels: Sequence[Mapping[str, Any]],
    flops: int,
    num_bytes: int,
    total_ms: float,
    roof: Roof,
) -> Layer:
    times: dict[str, float] = {}
    for kernel in kernels:
        times[kernel["type"]] = times.get(kernel["type"], 0.0) + kernel["ms"]
    ms = math.fsum(times.values())
    seconds = ms / 1e3
    intensity = flops / num_bytes if num_bytes else 0.0
    if not num_bytes:
        bound: Bound = "overhead"
    else:
        bound = "memory" if roof.memory_bound(flops, num_bytes) else "compute"
    return Layer(
        name=nodes[0],
        nodes=nodes,
        kernels=times,
        ms=ms,
        share=ms / total_ms,
        flops=flops,
        num_bytes=num_bytes,
        gflops=flops / seconds / 1e9 if seconds else 0.0,
        gbytes=num_bytes / seconds / 1e9 if seconds else 0.0,
        intensity=intensity,
        bound=bound,
        roof_share=roof.least_ms(flops, num_bytes) / ms if ms and num_bytes else None,
    )
