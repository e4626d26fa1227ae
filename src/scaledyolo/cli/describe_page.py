"""`scaledyolo describe --html`: one self-contained page with the pyramid and what every part of it costs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from scaledyolo.arch.cost import cost
from scaledyolo.arch.drawing import pyramid_svg
from scaledyolo.arch.graph import Graph
from scaledyolo.arch.subnet import Subnet, cut
from scaledyolo.errors import counted

if TYPE_CHECKING:
    from scaledyolo.cli.describe_roofline import Roofline

_STYLE = """
:root { color-scheme: light dark; --ink: #1c2733; --muted: #5b6b7a; --surface: #ffffff; --line: #e3e8ee;
  --edge: #8794a1; --page: #f6f8fa; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6ebf0; --muted: #9fadba; --surface: #1c232b; --line: #323c47;
  --edge: #77869a; --page: #12171c; } }
body { font: 15px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--page); margin: 0 auto; padding: 28px;
  max-width: 1320px; }
h1 { font-size: 26px; margin: 0; } h2 { font-size: 18px; margin: 32px 0 10px; }
p { color: var(--muted); margin: 4px 0 0; }
.tiles { display: flex; flex-wrap: wrap; gap: 10px; margin-top: 18px; }
.tile { background: var(--surface); border: 1px solid var(--line); border-radius: 8px; padding: 10px 16px; }
.tile b { display: block; font-size: 19px; font-variant-numeric: tabular-nums; } .tile span { color: var(--muted);
  font-size: 13px; }
.frame { background: var(--surface); border: 1px solid var(--line); border-radius: 8px; overflow: auto; }
.frame svg { display: block; margin: 8px auto; max-width: 100%; height: auto; min-width: 720px; }
table { border-collapse: collapse; width: 100%; font-size: 13px; font-variant-numeric: tabular-nums; }
th, td { padding: 5px 8px; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th { color: var(--muted); font-weight: 600; position: sticky; top: 0; background: var(--surface); }
th:first-child, td:first-child { text-align: left; } tbody tr:last-child td { border-bottom: 0; }
tr.total td { font-weight: 600; border-top: 2px solid var(--line); }
details summary { cursor: pointer; font-weight: 600; margin: 32px 0 10px; } .tall { max-height: 70vh; }
"""

_COLUMNS = (
    ("name", "stage"),
    ("nodes", "nodes"),
    ("out", "output"),
    ("stride", "stride"),
    ("receptive_field", "receptive field"),
    ("params", "parameters"),
    ("macs", "GFLOP"),
    ("activation_bytes", "activations MB"),
    ("memory_access", "moved MB"),
    ("cio", "CIO"),
    ("intensity", "FLOP / byte"),
)


_PART_COLUMNS = (
    ("name", "part"),
    ("kind", "outputs"),
    ("levels", "levels"),
    ("params", "parameters"),
    ("macs", "GFLOP"),
    ("boxes", "candidate boxes"),
    ("max_stride", "sides multiples of"),
)
_ROOF_COLUMNS = (("least_ms", "least ms"), ("measured_ms", "measured ms"), ("bound", "bound by"))


def page(
    graph: Graph,
    summary: Mapping[str, Any],
    stages: Sequence[Mapping[str, Any]],
    layers: Sequence[Mapping[str, Any]],
    roofline: Roofline | None = None,
) -> str:
    """The page for a network whose figures are given as plain values (see :mod:`scaledyolo.cli.describe`)."""
    name = escape(summary["name"])
    height, width = summary["height"], summary["width"]
    tiles = (
        (f"{summary['params']:,}", "parameters"),
        (f"{summary['gflops']:,.2f}", "GFLOP"),
        (f"{summary['boxes']:,}", "candidate boxes"),
        (f"{4 * summary['memory_access'] / 1e6:,.0f} MB", "moved in float32"),
        (f"{summary['intensity']:.1f}", "FLOP for each byte"),
        (" · ".join(map(str, summary["strides"])), "strides"),
        (" · ".join(map(str, summary["receptive_fields"])), "receptive fields"),
    )
    classes = counted(summary["num_classes"], "class", "classes")
    boxes = "".join(f'<div class="tile"><b>{value}</b><span>{label}</span></div>' for value, label in tiles)
    node_columns = [(key, "node" if key == "name" else title) for key, title in _COLUMNS if key != "nodes"]
    node_columns.insert(1, ("op", "operation"))
    return f"""<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{name}</title><style>{_STYLE}</style></head><body>
<h1>{name}</h1><p>{height} × {width} pixels, {classes}, {summary["nodes"]} nodes</p>
<div class="tiles">{boxes}</div>
<h2>The network</h2>
<div class="frame">{pyramid_svg(graph, height, width)}</div>
<p>Rows are strides. The bar of a box is its share of all operations.</p>
<h2>By stage</h2>
<div class="frame">{_table(_stage_columns(stages), stages, summary)}</div>
<p>Figures are for one image in float32. Moved: inputs, outputs and weights of every node (Equation 1). CIO: input times
output channels, summed over the convolutions. 1 MB is a million bytes.</p>
{_roofline(roofline) if roofline else ""}
{_parts(graph, summary) if summary["subnets"] else ""}
<details><summary>All {len(layers)} nodes</summary>
<div class="frame tall">{_table(node_columns, layers)}</div></details>
</body></html>
"""


def _stage_columns(stages: Sequence[Mapping[str, Any]]) -> list[tuple[str, str]]:
    """Columns of the table of stages: those of the roofline only where a stage has such a figure."""
    given = {key for stage in stages for key in stage}
    return [*_COLUMNS, *(column for column in _ROOF_COLUMNS if column[0] in given)]


def _roofline(roofline: Roofline) -> str:
    roof, facts = roofline.roof, roofline.summary()
    rates = f"{roof.gflops:,.0f} GFLOP a second in a matrix product, {roof.gigabytes:,.1f} GB a second"
    measured = any(stage.measured_ms for stage in roofline.stages)
    caches = "Points are what was measured; what stays in caches can lie above the roof."
    points = caches if measured else "Points are the most that each stage can reach."
    return f"""<h2>Roofline</h2>
<div class="frame">{roofline.svg()}</div>
<p>{escape(roofline.machine.name)}: {rates}
in a copy. Left of the ridge memory is the bound. With every stage at the roof an image takes {roofline.least_ms:,.2f}
ms; memory bounds {facts["memory_bound_stages"]} of {len(roofline.stages)} stages. {points}</p>"""


def _parts(graph: Graph, summary: Mapping[str, Any]) -> str:
    """The networks inside this one, beside it."""
    rows = [_part("the whole network", graph, summary), *(_part(n, cut(graph, n), summary) for n in summary["subnets"])]
    return f"""<h2>What it contains</h2>
<div class="frame">{_table(_PART_COLUMNS, rows)}</div>
<p>Once-for-all (section 5.5 of the paper): taken with --subnet. The outputs of exact parts are those of the network at
the levels that are left; approximate ones gain from a short training.</p>"""


def _part(name: str, part: Graph | Subnet, summary: Mapping[str, Any]) -> dict[str, Any]:
    subnet = part if isinstance(part, Subnet) else Subnet(part)
    stride = subnet.graph.max_stride
    height, width = (side // stride * stride for side in (summary["height"], summary["width"]))
    figures = cost(subnet.graph, height, width)
    return {
        "name": name,
        "kind": "exact" if subnet.exact else "approximate",
        "levels": ", ".join(f"P{stride.bit_length() - 1}" for stride in sorted(subnet.graph.strides)),
        "params": figures.params,
        "macs": figures.macs,
        "boxes": figures.boxes,
        "max_stride": stride,
    }


def _table(
    columns: Sequence[tuple[str, str]], rows: Iterable[Mapping[str, Any]], total: Mapping[str, Any] | None = None
) -> str:
    head = "".join(f"<th>{title}</th>" for _, title in columns)
    body = "".join(f"<tr>{_cells(columns, row)}</tr>" for row in rows)
    if total is not None:
        shown = {key: value for key, value in total.items() if key not in ("receptive_fields", "name")}
        body += f'<tr class="total">{_cells(columns, {**shown, "name": "all"})}</tr>'
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cells(columns: Sequence[tuple[str, str]], row: Mapping[str, Any]) -> str:
    return "".join(f"<td>{_cell(key, row[key]) if key in row else ''}</td>" for key, _ in columns)


def _cell(key: str, value: Any) -> str:
    if key == "out":
        return " × ".join(map(str, value))
    if key == "macs":
        return f"{2 * value / 1e9:,.3f}"
    if key == "activation_bytes":
        return f"{value / 1e6:,.2f}"
    if key == "memory_access":
        return f"{4 * value / 1e6:,.2f}"
    if key == "intensity":
        return f"{value:,.1f}"
    if key in ("least_ms", "measured_ms"):
        return f"{value:,.3f}"
    return f"{value:,}" if isinstance(value, int) else escape(str(value))
