"""Graphs as plain values, for networks that no spec describes: a cfg somebody wrote travels inside its checkpoint."""

from __future__ import annotations

import dataclasses
import re
import typing
from typing import Any

from scaledyolo.arch import ops
from scaledyolo.arch.graph import Graph, Node
from scaledyolo.errors import SpecError, nearest
from scaledyolo.strict import from_mapping


def _kebab(name: str) -> str:
    return re.sub(r"(?<=[a-z])(?=[A-Z])", "-", name).lower()


OPS: dict[str, type] = {_kebab(op.__name__): op for op in typing.get_args(ops.Op)}
_NAMES = {op: name for name, op in OPS.items()}


def graph_to_dict(graph: Graph) -> dict[str, Any]:
    """Plain values (numbers, strings, lists) that :func:`graph_from_dict` reads back; defaults are left out."""
    values: dict[str, Any] = {
        field.name: getattr(graph, field.name) for field in dataclasses.fields(graph) if field.name != "nodes"
    }
    return {**values, "nodes": [_node_to_dict(node) for node in graph]}


def _node_to_dict(node: Node) -> dict[str, Any]:
    values = {
        field.name: getattr(node.op, field.name)
        for field in dataclasses.fields(node.op)
        if getattr(node.op, field.name) != field.default
    }
    return {"name": node.name, "op": _NAMES[type(node.op)], "inputs": list(node.inputs), **values}


def graph_from_dict(values: dict[str, Any]) -> Graph:
    """Build a graph from plain values, strictly.

    Raises:
        SpecError: an unknown key or operation (the nearest known is named), a missing key, shapes that do not fit.
    """
    name = values.get("name")
    where = name if isinstance(name, str) else "graph"
    nodes = values.get("nodes")
    if not isinstance(nodes, list):
        raise SpecError(f"{where}: a graph needs a list of nodes")
    return from_mapping(Graph, {**values, "nodes": [_node_from_dict(node, where) for node in nodes]}, where, SpecError)


def _node_from_dict(values: Any, where: str) -> Node:
    if not isinstance(values, dict) or not {"name", "op", "inputs"} <= values.keys():
        raise SpecError(f"{where}: every node needs a name, an op and inputs, got {values!r}")
    name, op, inputs = (values[key] for key in ("name", "op", "inputs"))
    if not isinstance(name, str) or not isinstance(inputs, list) or not all(isinstance(x, str) for x in inputs):
        raise SpecError(f"{where}: node {name!r} needs a text as name and a list of texts as inputs")
    if op not in OPS:
        raise SpecError(f"{where}: node {name!r} has unknown op {op!r}.{nearest(str(op), OPS)}")
    arguments = {key: value for key, value in values.items() if key not in ("name", "op", "inputs")}
    return Node(name, from_mapping(OPS[op], arguments, f"{where}: node {name!r}", SpecError), tuple(inputs))
