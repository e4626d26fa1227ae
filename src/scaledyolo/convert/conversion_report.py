"""What a conversion did, layer by layer, as data and as text."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from math import prod
from typing import Any

from scaledyolo.arch.graph import Graph, Node
from scaledyolo.arch.ops import is_buffer
from scaledyolo.convert.darknet_cfg import DarknetModel
from scaledyolo.convert.darknet_weights import file_order
from scaledyolo.errors import counted


@dataclass(frozen=True)
class LayerMatch:
    """One layer with weights.

    Attributes:
        operation: kind of the node.
        source: where its values come from: tensors, or section and bytes of a Darknet file.
        target: where they went.
        shape: of its weight (or of its first tensor).
        values: how many numbers it has, running statistics included.
        learned: how many of them training changes.
    """

    operation: str
    source: str
    target: str
    shape: tuple[int, ...]
    values: int
    learned: int

    @classmethod
    def of(cls, graph: Graph, node: Node, source: str, target: str) -> LayerMatch:
        """The row of a node."""
        shapes = dict(node.op.parameters(*graph.in_channels(node)))
        sizes = {name: prod(shape) for name, shape in shapes.items()}
        learned = sum(size for name, size in sizes.items() if not is_buffer(name))
        shape = shapes.get("weight", next(iter(shapes.values())))
        return cls(type(node.op).__name__, source, target, tuple(shape), sum(sizes.values()), learned)


@dataclass(frozen=True)
class ConversionReport:
    """What a conversion did.

    Attributes:
        sources: files that were read.
        outputs: files that were written.
        network: name of the network.
        num_classes: its classes.
        layout: what the source was.
        layers: what matched, layer by layer.
        left_out: tensors of the source that are no weights (anchors, step counters).
        notes: what was assumed or adapted, one sentence each.
        warnings: what the user should look at, one sentence each.
        provenance: what the checkpoint says about its origin.
    """

    sources: tuple[str, ...]
    outputs: tuple[str, ...]
    network: str
    num_classes: int
    layout: str
    layers: tuple[LayerMatch, ...]
    left_out: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    provenance: Mapping[str, str] = field(default_factory=dict)
    has_weights: bool = True  # False where only the network was written

    @property
    def values(self) -> int:
        """Numbers converted, running statistics included."""
        return sum(layer.values for layer in self.layers)

    @property
    def learned(self) -> int:
        """Numbers converted that training changes: the parameters of the network."""
        return sum(layer.learned for layer in self.layers)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return {**asdict(self), "provenance": dict(self.provenance), "values": self.values, "params": self.learned}

    def text(self, *, layers: bool = True) -> str:
        """The report for people, with or without its rows."""
        lines = [f"{', '.join(self.sources)} -> {', '.join(self.outputs)}"]
        if layers and self.layers:
            widths = [max(len(row[column]) for row in self._rows) for column in range(4)]
            lines += [
                f"  {row[0]:<{widths[0]}}  {row[1]:<{widths[1]}}  {row[2]:<{widths[2]}}  {row[3]:>{widths[3]}}"
                for row in self._rows
            ]
        matched = ", all of them matched" if self.has_weights else ""
        lines.append(
            f"{self.network}, {counted(self.num_classes, 'class', 'classes')} ({self.layout}): "
            f"{counted(len(self.layers), 'layer')}, "
            f"{self.learned:,} parameters and {self.values - self.learned:,} running statistics{matched}"
        )
        if self.left_out:
            left_out = counted(len(self.left_out), "tensor that is no weight", "tensors that are no weights")
            lines.append(f"left out: {left_out} (anchors, step counters)")
        lines += [f"note: {note}" for note in self.notes]
        lines += [f"warning: {warning}" for warning in self.warnings]
        return "\n".join(lines)

    @property
    def _rows(self) -> list[tuple[str, str, str, str]]:
        return [
            (layer.source, f"-> {layer.target}", "x".join(map(str, layer.shape)), f"{layer.values:,}")
            for layer in self.layers
        ]


def darknet_places(graph: Graph, model: DarknetModel, header_bytes: int) -> list[str]:
    """For every node of the graph of a cfg its section and its bytes in the weight file, "" where it has none."""
    section = {node: index for index, node in enumerate(model.sections) if node is not None}
    places: dict[str, str] = {}
    position = header_bytes
    for node, names in file_order(graph):
        end = position + 4 * sum(prod(graph.parameters[name]) for name in names)
        places[node.name] = f"section {section[node.name]}, bytes {position}-{end - 1}"
        position = end
    return [places.get(node.name, "") for node in graph]


def foreign_sources(graph: Graph, keys: Mapping[str, str]) -> dict[str, str]:
    """For every node with parameters the common start of the names of its tensors and how many there are."""
    sources: dict[str, str] = {}
    for node in graph:
        names = [keys[f"{node.name}.{suffix}"] for suffix in node.op.parameters(*graph.in_channels(node))]
        if len(names) == 1:
            sources[node.name] = names[0]
        elif names:
            sources[node.name] = f"{_common_start(names)} ({len(names)} tensors)"
    return sources


def _common_start(names: list[str]) -> str:
    """The path that all names begin with."""
    columns = zip(*(name.split(".") for name in names), strict=False)
    return ".".join(itertools.takewhile(bool, (column[0] if len(set(column)) == 1 else "" for column in columns)))
