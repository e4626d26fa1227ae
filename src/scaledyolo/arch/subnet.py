"""Once-for-all: the smaller networks that a trained large one contains (paper section 5.5).

:func:`without_head` drops the coarsest heads and what only they need; the outputs of the kept levels stay the same to
the last bit, because the path to them is not touched. It saves little. :func:`without_stage` drops the whole coarsest
resolution, backbone included, so that the top-down path starts one level lower. It saves much and is an approximation.

Kept nodes keep their names, hence kept weights theirs. What happens to the few tensors that change is described by
:class:`InputChannels`; :func:`scaledyolo.subnet.subnet_weights` does it.

A subnet has a name, by which options, specs and recipes ask for it: ``without-head-p7``, ``without-stage-p7``, and
``without-stage-p7-zeros`` for the other fill; :func:`cut` takes it out of a graph.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Literal

from scaledyolo.arch.graph import Graph, Node
from scaledyolo.arch.ops import Concat, Conv
from scaledyolo.errors import SpecError, UsageError, nearest

Fill = Literal["zeros", "slice"]
FILLS: tuple[Fill, ...] = ("zeros", "slice")
JOIN = "+"  # between the names of cuts that are made one after the other

_NAME = re.compile(r"without-(?P<part>head|stage)-p(?P<level>\d{1,2})(?P<zeros>-zeros)?")


@dataclass(frozen=True, slots=True)
class InputChannels:
    """A change of the weight of one convolution, whose input lost some of its channels."""

    tensor: str  # name of the weight, (filters, channels, kernel, kernel)
    kept: tuple[tuple[int, int], ...]  # runs of input channels that remain, each from first to past the last
    fill: Fill  # "slice" takes the others out; "zeros" sets them to zero


@dataclass(frozen=True)
class Subnet:
    """A smaller network, and how its weights come from those of the large one."""

    graph: Graph
    changes: tuple[InputChannels, ...] = ()

    @property
    def exact(self) -> bool:
        """Whether every output equals the large network's to the last bit."""
        return not self.changes


def cut(graph: Graph, name: str) -> Subnet:
    """The subnet of this name: one cut.

    Raises:
        UsageError: there is no such name (the nearest is named), or the network has no such level.
        SpecError: the network cannot be cut there.
    """
    found = _NAME.fullmatch(name)
    if found is None or (found["part"] == "head" and found["zeros"]):
        known = subnet_names(graph)
        raise UsageError(
            f"{graph.name} has no subnet named {name!r};{nearest(name, known)} Known: {', '.join(known) or 'none'}."
        )
    level = int(found["level"])
    if found["part"] == "head":
        return without_head(graph, level)
    return without_stage(graph, level, "zeros" if found["zeros"] else "slice")


def cut_graph(graph: Graph, names: str) -> Graph:
    """The graph after the cuts of a name, or of several joined by ``+``, one after the other; see :func:`cut`."""
    for name in names.split(JOIN):
        graph = cut(graph, name).graph
    return graph


def subnet_names(graph: Graph) -> tuple[str, ...]:
    """The names of what can be cut out of a network, the largest first, exact before approximate.

    Of the two fills, which compute the same, only the smaller one is listed.
    """
    levels = sorted({stride.bit_length() - 1 for stride in graph.strides}, reverse=True)[:-1]
    names = [f"without-head-p{level}" for level in levels]
    for level in levels:
        try:
            without_stage(graph, level)
        except SpecError:
            continue
        names.append(f"without-stage-p{level}")
    return tuple(names)


def without_head(graph: Graph, level: int) -> Subnet:
    """The network without the heads of pyramid level ``level`` (stride 2^level) and of all coarser ones.

    The top-down path still starts at the coarsest level, so that the remaining outputs are bit-identical and the input
    size must remain a multiple of the same stride. What no remaining head needs (the bottom-up nodes) is dropped.

    Raises:
        UsageError: no head has that level, or no head would be left.
    """
    heads = _heads_below(graph, level)
    nodes = _needed(graph.nodes, {head.name for head in heads})
    return Subnet(_renamed(graph, nodes, f"{graph.name}-without-head-p{level}"))


def without_stage(graph: Graph, level: int, fill: Fill = "slice") -> Subnet:
    """The network without anything at pyramid level ``level`` (stride 2^level) or coarser: an approximation.

    The concatenation into which the top-down path brought that level loses an input. "slice" removes the input
    channels from the convolutions that read it. "zeros" keeps every tensor's shape: the free place is taken by another
    input of the same width with weights of zero, which fine-tuning can put to use. Both compute the same function, that
    of the large network had the lost input been zero. The input size may then be a multiple of half the stride.

    Raises:
        UsageError: no head has that level, or no head would be left, or ``fill`` is unknown.
        SpecError: a node other than a concatenation mixes that level with a finer one.
    """
    if fill not in FILLS:
        known = ", ".join(FILLS)
        raise UsageError(f"there is no way {fill!r} to fill a lost input; known are {known}.{nearest(fill, FILLS)}")
    heads = _heads_below(graph, level)
    lost = {name for name, stride in graph.node_strides.items() if stride >= 2**level}
    kept: list[Node] = []
    changes: list[InputChannels] = []
    aliases: dict[str, str] = {}  # concatenations left with one input are read through
    for node in graph:
        if node.name in lost or all(source in lost for source in node.inputs):
            lost.add(node.name)
            continue
        node = replace(node, inputs=tuple(aliases.get(source, source) for source in node.inputs))
        if not lost.isdisjoint(node.inputs):
            node, change = _bereaved(graph, node, lost, fill)
            changes += change
            if len(node.inputs) == 1:
                aliases[node.name] = node.inputs[0]
                continue
        kept.append(node)
    nodes = _needed(tuple(kept), {head.name for head in heads})
    suffix = "-zeros" if fill == "zeros" else ""
    smaller = _renamed(graph, nodes, f"{graph.name}-without-stage-p{level}{suffix}")
    return Subnet(smaller, tuple(change for change in changes if change.tensor in smaller.parameters))


def _heads_below(graph: Graph, level: int) -> list[Node]:
    levels = sorted({stride.bit_length() - 1 for stride in graph.strides})
    if level not in levels:
        known = ", ".join(f"P{one}" for one in levels)
        raise UsageError(f"{graph.name} has no head at P{level}; it has {known}")
    if level == levels[0]:
        raise UsageError(f"{graph.name}: without P{level} and all coarser levels no head would be left")
    return [head for head, stride in zip(graph.heads, graph.strides, strict=True) if stride < 2**level]


def _bereaved(graph: Graph, node: Node, lost: set[str], fill: Fill) -> tuple[Node, list[InputChannels]]:
    """A concatenation after some of its inputs were lost, and what that changes in the weights of its readers."""
    if not isinstance(node.op, Concat):
        raise SpecError(
            f"{graph.name}: node {node.name!r} mixes the level to be dropped with a finer one and is no concatenation; "
            "drop its head only"
        )
    runs: list[tuple[int, int]] = []
    start = 0
    for source in node.inputs:
        stop = start + graph.out_channels(source)
        if source not in lost:
            runs.append((start, stop))
        start = stop
    remaining = tuple(source for source in node.inputs if source not in lost)
    inputs = remaining
    if fill == "zeros":
        inputs = tuple(
            _stand_in(graph, node, source, remaining) if source in lost else source for source in node.inputs
        )
    changes = []
    for name in graph.consumers[node.name]:
        reader = graph[name]
        if name in lost:
            continue
        if not isinstance(reader.op, Conv) or reader.op.groups != 1:
            raise SpecError(
                f"{graph.name}: node {name!r} reads {node.name!r}, which would lose channels, and is no convolution "
                "over all of them; drop its head only"
            )
        changes.append(InputChannels(f"{name}.weight", tuple(runs), fill))
    return replace(node, inputs=inputs), changes


def _stand_in(graph: Graph, node: Node, lost: str, remaining: tuple[str, ...]) -> str:
    for source in remaining:
        if graph.out_channels(source) == graph.out_channels(lost):
            return source
    raise SpecError(
        f"{graph.name}: node {node.name!r} has no other input with the {graph.out_channels(lost)} channels "
        f"of {lost!r}; use fill='slice'"
    )


def _needed(nodes: tuple[Node, ...], wanted: set[str]) -> tuple[Node, ...]:
    """The nodes on which the wanted ones depend, in their order."""
    needed = set(wanted)
    for node in reversed(nodes):
        if node.name in needed:
            needed.update(node.inputs)
    return tuple(node for node in nodes if node.name in needed)


def _renamed(graph: Graph, nodes: tuple[Node, ...], name: str) -> Graph:
    return replace(graph, name=name, nodes=nodes)
