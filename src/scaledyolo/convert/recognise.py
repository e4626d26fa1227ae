"""Which spec, if any, describes a graph that came from a file."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import TypeVar

from scaledyolo.arch.graph import Graph, Node
from scaledyolo.arch.lower import lower
from scaledyolo.arch.ops import Activate, Conv, Detect
from scaledyolo.arch.spec import ModelSpec
from scaledyolo.arch.zoo import ZOO
from scaledyolo.errors import SpecError

Value = TypeVar("Value")


def as_logits(graph: Graph) -> Graph:
    """The same detector with the logistic of ``new_coords`` heads moved from the network into the decoding.

    Darknet puts it on the prediction convolution; decoding then takes activated values. Raw logits are what training
    needs and what lets decoding look at survivors only; the detections are the same.
    """
    activated = {head.inputs[0] for head in graph.heads if graph.head_op(head).activated}
    shared = {name for name in activated if len(graph.consumers[name]) > 1}

    def moved(node: Node) -> Node:
        if node.name in activated - shared and isinstance(node.op, Conv) and node.op.activation == "logistic":
            return Node(node.name, replace(node.op, activation="linear"), node.inputs)
        if isinstance(node.op, Detect) and node.op.activated and _can_move(graph, node, shared):
            return Node(node.name, replace(node.op, activated=False), node.inputs)
        return node

    return graph.with_nodes(tuple(moved(node) for node in graph))


def _can_move(graph: Graph, head: Node, shared: set[str]) -> bool:
    source = graph[head.inputs[0]]
    return (
        source.name not in shared
        and not isinstance(source.op, Activate)
        and isinstance(source.op, Conv)
        and source.op.activation == "logistic"
    )


def recognise(graph: Graph) -> ModelSpec | None:
    """The zoo's spec of this network, adapted to its classes, anchors, size and sensitivities; None where none fits."""
    if not graph.heads or graph.height != graph.width or graph.channels != 3:
        return None
    wanted = comparable(as_logits(graph))
    kinds = [type(node.op) for node in graph]
    for spec in ZOO.values():
        adapted = _adapt(spec, graph)
        if adapted is None:
            continue
        try:
            candidate = lower(adapted)
        except SpecError:
            continue
        if [type(node.op) for node in candidate] == kinds and comparable(candidate) == wanted:
            return adapted
    return None


def _adapt(spec: ModelSpec, graph: Graph) -> ModelSpec | None:
    by_stride = [op for _, op in sorted(zip(graph.strides, graph.detects, strict=True), key=lambda pair: pair[0])]
    if len(by_stride) != len(spec.masks) or len({op.anchors for op in by_stride}) > 1:
        return None
    sensitive = by_stride[0].decoding == "exp" and any(op.scale_xy != 1 for op in by_stride)
    return replace(
        spec,
        size=graph.height,
        num_classes=graph.num_classes,
        anchors=by_stride[0].anchors,
        masks=tuple(op.mask for op in by_stride),
        decoding=by_stride[0].decoding,
        scale_xy=tuple(op.scale_xy for op in by_stride) if sensitive else (),
        norm_eps=graph.norm_eps,
        norm_momentum=graph.norm_momentum,
        resize=graph.resize,
    )


def comparable(graph: Graph) -> tuple[object, ...]:
    """Operations and wiring without names, and without what a cfg only recommends (its way of suppression)."""
    position = {Graph.INPUT: -1, **{node.name: index for index, node in enumerate(graph)}}
    rows = []
    for node in graph:
        op = node.op
        if isinstance(op, Detect):
            scale_xy = op.scale_xy if op.decoding == "exp" else 1.0
            op = replace(op, nms_kind="default", beta_nms=0.6, scale_xy=scale_xy)
        rows.append((op, tuple(position[source] for source in node.inputs)))
    return tuple(rows)


def rename(source: Graph, target: Graph, weights: Mapping[str, Value]) -> dict[str, Value]:
    """Weights of ``source`` under the names of ``target``, a graph of the same nodes in the same order."""
    names = {old.name: new.name for old, new in zip(source, target, strict=True)}
    return {
        f"{names[node.name]}.{key}": weights[f"{node.name}.{key}"]
        for node in source
        for key in node.op.parameters(*source.in_channels(node))
    }
