"""The boxes of the paper's Figure 4 for any graph: its nodes gathered into stages, and what each stage costs."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from scaledyolo.arch.cost import arithmetic_intensity, node_costs, receptive_fields
from scaledyolo.arch.graph import Graph, Node
from scaledyolo.arch.ops import Conv, Detect, Shape

Part = Literal["backbone", "top_down", "bottom_up", "head"]

# The component of a node's path that ends the name of its group: backbone.stage3, neck.top_down.p5, head.p4.
_GROUP_END = re.compile(r"stem|stage\d+|p\d+")


@dataclass(frozen=True, slots=True)
class Group:
    """Nodes that form one box; ``stride`` is that of the last of them."""

    name: str
    part: Part
    stride: int
    nodes: tuple[Node, ...]


def groups(graph: Graph) -> tuple[Group, ...]:
    """The nodes gathered by stage, in the order in which the stages begin.

    Where names are paths, their leading components tell the stage. The nodes of a Darknet file have none: there the
    stages are runs of one stride, on the way down, up, and down again, and heads are found from their ends.
    """
    members: dict[str, list[Node]] = {}
    parts: dict[str, Part] = {}
    by_path = any("." in node.name for node in graph)
    for node, (name, part) in zip(graph, _by_path(graph) if by_path else _by_stride(graph), strict=True):
        members.setdefault(name, []).append(node)
        parts.setdefault(name, part)
    strides = graph.node_strides
    return tuple(Group(name, parts[name], strides[nodes[-1].name], tuple(nodes)) for name, nodes in members.items())


def _by_path(graph: Graph) -> list[tuple[str, Part]]:
    return [(name := _group_path(node.name), _part(name)) for node in graph]


def _group_path(path: str) -> str:
    components = path.split(".")
    for index, component in enumerate(components):
        if _GROUP_END.fullmatch(component):
            return ".".join(components[: index + 1])
    return components[0]


def _part(name: str) -> Part:
    if name.startswith("backbone"):
        return "backbone"
    if "bottom_up" in name:
        return "bottom_up"
    return "head" if name.startswith("head") else "top_down"


def _by_stride(graph: Graph) -> list[tuple[str, Part]]:
    heads = _head_nodes(graph)
    found: list[tuple[str, Part]] = []
    way: Part = "backbone"
    before = 1
    titles: dict[Part, str] = {"backbone": "down", "top_down": "up", "bottom_up": "down again", "head": "head"}
    for node in graph:
        if node.name in heads:
            found.append((f"head.p{heads[node.name].bit_length() - 1}", "head"))
            continue
        stride = _stride_of_way(graph, node)
        if way == "backbone" and stride < before:
            way = "top_down"
        elif way == "top_down" and stride > before and node.op.window.step > 1:
            way = "bottom_up"
        before = stride
        found.append((f"{titles[way]}, stride {stride}", way))
    return found


def _stride_of_way(graph: Graph, node: Node) -> int:
    """The stride at which a node's work is done; what is only made to be enlarged belongs to the finer level."""
    readers = graph.consumers[node.name]
    if len(readers) == 1 and graph[readers[0]].op.window.enlarge > 1:
        return graph.node_strides[readers[0]]
    return graph.node_strides[node.name]


def _head_nodes(graph: Graph) -> Mapping[str, int]:
    """Nodes of the heads with their stride: the detection, the prediction, and the convolution that only it reads."""
    nodes: dict[str, int] = {}
    for head, stride in zip(graph.heads, graph.strides, strict=True):
        name, left = head.name, 2
        nodes[name] = stride
        while left and len(sources := graph[name].inputs) == 1 and sources[0] != Graph.INPUT:
            (name,) = sources
            if not isinstance(graph[name].op, Conv) or len(graph.consumers[name]) > 1:
                break
            nodes[name], left = stride, left - 1
    return nodes


@dataclass(frozen=True, slots=True)
class GroupCost:
    """What one stage costs for one image."""

    group: Group
    out: Shape  # of the last node that is not a mere detection
    params: int
    macs: int
    activation_bytes: int  # outputs of all its nodes, in float32
    memory_access: int  # values moved by its nodes (the terms of the paper's Eq. 1)
    cio: int  # convolutional input/output, the channels' products (paper Table 5)
    receptive_field: int  # pixels of the input seen by a cell of the last node

    @property
    def intensity(self) -> float:
        """Arithmetic intensity: FLOP for each byte moved in float32."""
        return arithmetic_intensity(self.macs, self.memory_access)


def group_costs(graph: Graph, height: int, width: int) -> tuple[GroupCost, ...]:
    """Cost of every stage for an input of this size in pixels."""
    rows = {row.node.name: row for row in node_costs(graph, height, width)}
    fields = receptive_fields(graph)
    found = []
    for group in groups(graph):
        own = [rows[node.name] for node in group.nodes]
        last = next((row for row in reversed(own) if not isinstance(row.node.op, Detect)), own[-1])
        found.append(
            GroupCost(
                group=group,
                out=last.out,
                params=sum(row.params for row in own),
                macs=sum(row.macs for row in own),
                activation_bytes=sum(row.activation_bytes for row in own),
                memory_access=sum(row.memory_access for row in own),
                cio=sum(row.cio for row in own),
                receptive_field=fields[last.node.name].size,
            )
        )
    return tuple(found)


def group_edges(graph: Graph) -> tuple[tuple[str, str], ...]:
    """Which stage reads which: pairs of names, from and to, without repetition; the input is ``Graph.INPUT``."""
    owner = {node.name: group.name for group in groups(graph) for node in group.nodes}
    owner[Graph.INPUT] = Graph.INPUT
    pairs = ((owner[source], owner[node.name]) for node in graph for source in node.inputs)
    return tuple(dict.fromkeys(pair for pair in pairs if pair[0] != pair[1]))
