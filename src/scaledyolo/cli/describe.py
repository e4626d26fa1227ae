"""`scaledyolo describe`."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from scaledyolo.cli.options import sides
from scaledyolo.errors import counted

if TYPE_CHECKING:
    from scaledyolo.arch.cost import Cost
    from scaledyolo.arch.graph import Graph


@dataclass(frozen=True)
class Describe:
    """What a network is and what it costs, without running it."""

    model: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="MODEL")]
    """Zoo name, spec file (.yaml, .json), Darknet .cfg or checkpoint (.safetensors)."""
    size: Annotated[tuple[int, ...], tyro.conf.arg(metavar="SIDE | HEIGHT WIDTH")] = ()
    """Input size in pixels; by default the network's own."""
    nc: int | None = None
    """Number of classes; by default the network's own (80 for most)."""
    subnet: str | None = None
    """Only this part of the network, such as without-head-p7 or without-stage-p7."""
    layers: Annotated[bool, tyro.conf.arg(aliases=("--nodes",))] = False
    """Also list every node."""
    roofline: Annotated[str | None, tyro.conf.arg(metavar="now | FILE")] = None
    """Also what bounds each stage on a machine: now measures this one, FILE is JSON of `scaledyolo bench --layers`."""
    json: bool = False
    """Print JSON instead of text."""
    html: Path | None = None
    """Also write a page with a drawing of the network and all its figures."""

    def run(self) -> int:
        from scaledyolo.arch.cost import cost
        from scaledyolo.arch.subnet import cut_graph
        from scaledyolo.model import load_graph

        graph = load_graph(self.model, num_classes=self.nc)
        graph = cut_graph(graph, self.subnet) if self.subnet else graph
        height, width = sides(self.size) or (graph.height, graph.width)
        summary = summarise(graph, cost(graph, height, width))
        stages = stage_rows(graph, height, width)
        rows = layer_rows(graph, height, width) if self.layers or self.html else []
        roofline = None
        if self.roofline is not None:
            from scaledyolo.cli.describe_roofline import Roofline

            roofline = Roofline.of(self.roofline, graph, height, width)
            roofline.add_to(stages)
            summary["roofline"] = roofline.summary()
        if self.html:
            from scaledyolo.cli.describe_page import page
            from scaledyolo.files import atomic_file

            with atomic_file(self.html, durable=False) as temporary:
                temporary.write_text(page(graph, summary, stages, rows, roofline), encoding="utf-8")
        shown = rows if self.layers else []
        if self.json:
            layers = {"layers": rows} if self.layers else {}
            print(json.dumps({**summary, "stages": stages, **layers}, indent=2))
        else:
            print(text(summary, stages, shown, roofline.text() if roofline else None))
            if self.html:
                print(f"  page              {self.html}")
        return 0


def summarise(graph: Graph, cost: Cost) -> dict[str, Any]:
    """The figures of a network as plain values; MACs and FLOPs of the convolutions, one image."""
    from scaledyolo.arch.cost import receptive_fields
    from scaledyolo.arch.subnet import subnet_names

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
        "cio": cost.cio,
        "intensity": round(cost.intensity, 3),
        "weights_bytes": cost.weights_bytes,
        "nodes": len(graph),
        "subnets": list(subnet_names(graph)),
        "resize": graph.resize,
        "norm_eps": graph.norm_eps,
    }


def stage_rows(graph: Graph, height: int, width: int) -> list[dict[str, Any]]:
    """One row of plain values for every stage: a box of the paper's Figure 4."""
    from scaledyolo.arch.groups import group_costs

    return [
        {
            "name": row.group.name,
            "part": row.group.part,
            "nodes": len(row.group.nodes),
            "out": list(row.out),
            "stride": row.group.stride,
            "receptive_field": row.receptive_field,
            "params": row.params,
            "macs": row.macs,
            "activation_bytes": row.activation_bytes,
            "memory_access": row.memory_access,
            "cio": row.cio,
            "intensity": round(row.intensity, 3),
        }
        for row in group_costs(graph, height, width)
    ]


def layer_rows(graph: Graph, height: int, width: int) -> list[dict[str, Any]]:
    """One row of plain values for every node."""
    from scaledyolo.arch.cost import node_costs, receptive_fields

    fields = receptive_fields(graph)
    return [
        {
            "name": row.node.name,
            "op": type(row.node.op).__name__,
            "out": list(row.out),
            "stride": fields[row.node.name].stride,
            "receptive_field": fields[row.node.name].size,
            "params": row.params,
            "macs": row.macs,
            "activation_bytes": row.activation_bytes,
            "memory_access": row.memory_access,
            "cio": row.cio,
            "intensity": round(row.intensity, 3),
        }
        for row in node_costs(graph, height, width)
    ]


def text(
    summary: dict[str, Any], stages: list[dict[str, Any]], rows: list[dict[str, Any]], roofline: str | None = None
) -> str:
    """The summary for people; ``roofline`` are lines to put below the totals."""
    classes = counted(summary["num_classes"], "class", "classes")
    folded = f" ({summary['params_folded']:,} folded)" if summary["params_folded"] else ""
    lines = [
        f"{summary['name']} at {summary['height']}x{summary['width']}, {classes}",
        f"  parameters        {summary['params']:,}{folded}",
        (
            f"  multiply-adds     {summary['macs'] / 1e9:,.3f} G  = {summary['gflops']:,.3f} GFLOP"
            f"  (Darknet counts {summary['darknet_bflops']:,.3f} BFLOP)"
        ),
        f"  candidate boxes   {summary['boxes']:,}",
        f"  strides           {', '.join(map(str, summary['strides']))} pixels",
        f"  receptive fields  {', '.join(map(str, summary['receptive_fields']))} pixels",
        f"  activations       {summary['activation_bytes'] / 2**20:,.1f} MiB in float32, all nodes",
        (
            f"  memory access     {4 * summary['memory_access'] / 2**20:,.1f} MiB in float32"
            f"  = {summary['intensity']:.1f} FLOP for each byte"
        ),
        f"  .weights file     {summary['weights_bytes']:,} bytes",
        *([f"  parts (--subnet)  {', '.join(summary['subnets'])}"] if summary["subnets"] else []),
        *([roofline] if roofline else []),
        "",
        *_table("stage", stages),
    ]
    if rows:
        lines += ["", *_table("node", rows)]
    return "\n".join(lines)


# Heading, width and text of each column of figures.
_COLUMNS: tuple[tuple[str, int, Callable[[dict[str, Any]], str]], ...] = (
    ("out", 16, lambda row: "x".join(map(str, row["out"]))),
    ("stride", 8, lambda row: f"{row['stride']}"),
    ("field", 7, lambda row: f"{row['receptive_field']}"),
    ("parameters", 13, lambda row: f"{row['params']:,}"),
    ("GFLOP", 12, lambda row: f"{2 * row['macs'] / 1e9:,.3f}"),
    ("output MiB", 12, lambda row: f"{row['activation_bytes'] / 2**20:,.2f}"),
    ("moved MiB", 11, lambda row: f"{4 * row['memory_access'] / 2**20:,.2f}"),
    ("CIO", 13, lambda row: f"{row['cio']:,}"),
    ("FLOP/byte", 11, lambda row: f"{row['intensity']:.1f}"),
)
_MEASURED_COLUMN: tuple[str, int, Callable[[dict[str, Any]], str]] = (
    "measured ms",
    13,
    lambda row: f"{row['measured_ms']:.3f}" if "measured_ms" in row else "-",
)
_ROOF_COLUMNS: tuple[tuple[str, int, Callable[[dict[str, Any]], str]], ...] = (
    ("least ms", 10, lambda row: f"{row['least_ms']:.3f}"),
    ("bound", 12, lambda row: row["bound"]),
)


def _table(first: str, rows: list[dict[str, Any]]) -> list[str]:
    """Rows of figures under headings: one line each, names to the left."""
    columns = _COLUMNS + (_ROOF_COLUMNS if "bound" in rows[0] else ())
    columns += (_MEASURED_COLUMN,) if any("measured_ms" in row for row in rows) else ()
    longest = max(len(row["name"]) for row in rows)
    names = [f"{row['name']:<{longest}}  {row['op']}" if "op" in row else row["name"] for row in rows]
    wide = max(len(first), *map(len, names))
    lines = [f"  {first:<{wide}}" + "".join(f"{head:>{size}}" for head, size, _ in columns)]
    for name, row in zip(names, rows, strict=True):
        lines.append(f"  {name:<{wide}}" + "".join(f"{cell(row):>{size}}" for _, size, cell in columns))
    return lines
