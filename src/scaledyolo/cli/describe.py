"""`scaledyolo describe`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from scaledyolo.cli.options import sides

if TYPE_CHECKING:
    from scaledyolo.arch.cost import Cost
    from scaledyolo.arch.graph import Graph


@dataclass(frozen=True)
class Describe:
    """What a network is and what it costs, without running it."""

    model: tyro.conf.Positional[str]
    """Zoo name, spec file (.yaml, .json), Darknet .cfg or checkpoint (.safetensors)."""
    size: Annotated[tuple[int, ...], tyro.conf.arg(metavar="SIDE | HEIGHT WIDTH")] = ()
    """Input size in pixels; by default the network's own."""
    nc: int | None = None
    """Number of classes; by default the network's own (80 for most)."""
    layers: bool = False
    """Also list every node."""
    json: bool = False
    """Print JSON instead of text."""

    def run(self) -> int:
        from scaledyolo.arch.cost import cost
        from scaledyolo.model import load_graph

        graph = load_graph(self.model, num_classes=self.nc)
        height, width = sides(self.size) or (graph.height, graph.width)
        summary = summarise(graph, cost(graph, height, width))
        rows = list(layer_rows(graph, height, width)) if self.layers else []
        if self.json:
            print(json.dumps({**summary, **({"layers": rows} if self.layers else {})}, indent=2))
        else:
            print(text(summary, rows))
        return 0


def summarise(graph: Graph, cost: Cost) -> dict[str, Any]:
    """The figures of a network as plain values; MACs and FLOPs of the convolutions, one image."""
    from scaledyolo.arch.cost import receptive_fields

    fields = receptive_fields(graph)
    return {
        "name": graph.name,
        "height": cost.height,
        "width": cost.width,
        "num_classes": graph.num_classes,
        "params": cost.params,
        "params_folded": cost.folded_params,
        "macs": cost.macs,
        "gflops": round(cost.gflops, 6),
        "darknet_bflops": round(cost.darknet_flops / 1e9, 3),
        "boxes": cost.boxes,
        "strides": list(graph.strides),
        "receptive_fields": [fields[head.name].size for head in graph.heads],
        "activation_bytes": cost.activation_bytes,
        "memory_access": cost.memory_access,
        "weights_bytes": cost.weights_bytes,
        "nodes": len(graph),
        "resize": graph.resize,
        "norm_eps": graph.norm_eps,
    }


def layer_rows(graph: Graph, height: int, width: int) -> list[dict[str, Any]]:
    """One row of plain values for every node."""
    from scaledyolo.arch.cost import node_costs

    return [
        {
            "name": row.node.name,
            "op": type(row.node.op).__name__,
            "out": list(row.out),
            "params": row.params,
            "macs": row.macs,
            "activation_bytes": row.activation_bytes,
        }
        for row in node_costs(graph, height, width)
    ]


def text(summary: dict[str, Any], rows: list[dict[str, Any]]) -> str:
    """The summary for people."""
    folded = f" ({summary['params_folded']:,} folded)" if summary["params_folded"] else ""
    lines = [
        f"{summary['name']} at {summary['height']}x{summary['width']}, {summary['num_classes']} classes",
        f"  parameters        {summary['params']:,}{folded}",
        (
            f"  multiply-adds     {summary['macs'] / 1e9:,.3f} G  = {summary['gflops']:,.3f} GFLOP"
            f"  (Darknet counts {summary['darknet_bflops']:,.3f} BFLOP)"
        ),
        f"  candidate boxes   {summary['boxes']:,}",
        f"  strides           {', '.join(map(str, summary['strides']))} pixels",
        f"  receptive fields  {', '.join(map(str, summary['receptive_fields']))} pixels",
        f"  activations       {summary['activation_bytes'] / 2**20:,.1f} MiB in float32, all nodes",
        f"  .weights file     {summary['weights_bytes']:,} bytes",
    ]
    for row in rows:
        shape = "x".join(map(str, row["out"]))
        lines.append(f"  {row['name']:<44}{row['op']:<14}{shape:>16}{row['params']:>14,}{row['macs']:>18,}")
    return "\n".join(lines)
