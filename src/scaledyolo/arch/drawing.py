"""A drawing of any network as a pyramid (paper Figure 4), as SVG text.

Backbone, top-down path, bottom-up path and heads stand in columns, one row for each stride, coarse above fine.
"""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from scaledyolo.arch.graph import Graph
from scaledyolo.arch.groups import GroupCost, Part, group_costs, group_edges

_BOX = (190, 62)  # width and height of a box in pixels
_GAP = (64, 34)  # between columns, between rows
_MARGIN = (64, 44)  # left of the first column (for the strides), above the first row (for the headings)
_SIDE = 24  # right and bottom margin

HEADINGS: dict[Part, str] = {
    "backbone": "Backbone",
    "top_down": "Top-down path",
    "bottom_up": "Bottom-up path",
    "head": "Heads",
}

# Colours as custom properties, so that a page can set its own; the defaults suit white paper.
_STYLE = """
.pyramid text { font-family: system-ui, sans-serif; font-size: 12px; fill: var(--ink, #1c2733); }
.pyramid .name { font-weight: 600; }
.pyramid .figures, .pyramid .stride { fill: var(--muted, #5b6b7a); font-size: 11px; }
.pyramid .heading { font-size: 13px; font-weight: 600; }
.pyramid .box { fill: var(--surface, #ffffff); stroke-width: 1.5; }
.pyramid .row { stroke: var(--line, #e3e8ee); }
.pyramid .edge { fill: none; stroke: var(--edge, #8794a1); stroke-width: 1.4; marker-end: url(#arrow); }
.pyramid .track { fill: var(--line, #e3e8ee); }
.pyramid .backbone { stroke: #3f6fb5; } .pyramid .share.backbone { fill: #3f6fb5; stroke: none; }
.pyramid .top_down { stroke: #b8722c; } .pyramid .share.top_down { fill: #b8722c; stroke: none; }
.pyramid .bottom_up { stroke: #3b8a6b; } .pyramid .share.bottom_up { fill: #3b8a6b; stroke: none; }
.pyramid .head { stroke: #9a4a86; } .pyramid .share.head { fill: #9a4a86; stroke: none; }
"""

_ARROW = (
    '<defs><marker id="arrow" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
    '<path d="M0 0.5 L8 4 L0 7.5 z" style="fill:var(--edge,#8794a1)"/></marker></defs>'
)


class _Place(NamedTuple):
    x: int
    y: int
    column: int  # as drawn; boxes of one column have one x

    @property
    def middle(self) -> int:
        return self.y + _BOX[1] // 2


def pyramid_svg(graph: Graph, height: int, width: int) -> str:
    """The network at this input size as an SVG element; a box shows its output, cost, and share of all operations."""
    costs = group_costs(graph, height, width)
    places, columns, strides = _layout(costs)
    total = max(sum(cost.macs for cost in costs), 1)
    across = _MARGIN[0] + columns[-1][2] * (_BOX[0] + _GAP[0]) - _GAP[0] + _SIDE
    down = _MARGIN[1] + len(strides) * (_BOX[1] + _GAP[1]) - _GAP[1] + _SIDE
    opening = (
        f'<svg class="pyramid" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {across} {down}" width="{across}" '
        f'height="{down}" role="img" aria-label="{escape(graph.name)} as a pyramid">'
    )
    parts = [opening, f"<style>{_STYLE}</style>", _ARROW, *_frame(strides, columns, across)]
    for source, target in group_edges(graph):
        if source != Graph.INPUT:
            parts.append(f'<path class="edge" d="{_path(places[source], places[target])}"/>')
    parts += [_box(cost, places[cost.group.name], cost.macs / total) for cost in costs]
    return "\n".join([*parts, "</svg>"])


def _layout(
    costs: Sequence[GroupCost],
) -> tuple[dict[str, _Place], list[tuple[Part, int, int]], list[int]]:
    """Place of every group; (part, first column, past the last column) of the parts there are; strides by row."""
    strides = sorted({cost.group.stride for cost in costs}, reverse=True)
    cells: dict[tuple[Part, int], list[str]] = {}
    for cost in costs:
        cells.setdefault((cost.group.part, cost.group.stride), []).append(cost.group.name)
    places: dict[str, _Place] = {}
    columns: list[tuple[Part, int, int]] = []
    start = 0
    for part in HEADINGS:
        own = {stride: names for (owner, stride), names in cells.items() if owner == part}
        if not own:
            continue
        for stride, names in own.items():
            y = _MARGIN[1] + strides.index(stride) * (_BOX[1] + _GAP[1])
            for offset, name in enumerate(names):
                places[name] = _Place(_MARGIN[0] + (start + offset) * (_BOX[0] + _GAP[0]), y, start + offset)
        stop = start + max(map(len, own.values()))
        columns.append((part, start, stop))
        start = stop
    return places, columns, strides


def _frame(strides: Sequence[int], columns: Sequence[tuple[Part, int, int]], across: int) -> list[str]:
    """The line and stride of every row, the heading of every part."""
    lines = []
    for row, stride in enumerate(strides):
        y = _MARGIN[1] + row * (_BOX[1] + _GAP[1]) + _BOX[1] // 2
        lines.append(f'<line class="row" x1="44" x2="{across - _SIDE}" y1="{y}" y2="{y}"/>')
        lines.append(f'<text class="stride" x="40" y="{y + 4}" text-anchor="end">/{stride}</text>')
    for part, start, _ in columns:
        x = _MARGIN[0] + start * (_BOX[0] + _GAP[0])
        lines.append(f'<text class="heading" x="{x}" y="24">{HEADINGS[part]}</text>')
    return lines


def _path(source: _Place, target: _Place) -> str:
    if source.column == target.column:  # up or down the column
        x = source.x + _BOX[0] // 2
        upwards = target.y < source.y
        start, end = (source.y, target.y + _BOX[1]) if upwards else (source.y + _BOX[1], target.y)
        return f"M{x} {start} L{x} {end}"
    leftwards = target.x < source.x
    x1, x2 = (source.x, target.x + _BOX[0]) if leftwards else (source.x + _BOX[0], target.x)
    if source.middle == target.middle:
        return f"M{x1} {source.middle} L{x2} {target.middle}"
    bend = _GAP[0] if x2 > x1 else -_GAP[0]
    # The bend lies in the gap before the target, so that a long edge runs along its own row.
    return (
        f"M{x1} {source.middle} L{x2 - bend} {source.middle} "
        f"C{x2 - bend // 3} {source.middle} {x2 - bend * 2 // 3} {target.middle} {x2} {target.middle}"
    )


def _box(cost: GroupCost, place: _Place, share: float) -> str:
    group, (width, height) = cost.group, _BOX
    label = group.name if len(group.name) <= 28 else group.name[:27] + "…"
    figures = f"{_short(cost.params)} params · {2 * cost.macs / 1e9:.2f} GFLOP"
    title = f"{group.name}: {len(group.nodes)} nodes, receptive field {cost.receptive_field}, {100 * share:.1f} %"
    x, y, inner = place.x, place.y, width - 20
    bar = f'x="{x + 10}" y="{y + 53}" height="3" rx="1.5"'
    return (
        f"<g><title>{escape(title)} of the operations</title>"
        f'<rect class="box {group.part}" x="{x}" y="{y}" width="{width}" height="{height}" rx="6"/>'
        f'<text class="name" x="{x + 10}" y="{y + 18}">{escape(label)}</text>'
        f'<text class="figures" x="{x + 10}" y="{y + 33}">{str(cost.out).replace("x", " × ")}</text>'
        f'<text class="figures" x="{x + 10}" y="{y + 47}">{figures}</text>'
        f'<rect class="track" {bar} width="{inner}"/>'
        f'<rect class="share {group.part}" {bar} width="{inner * share:.1f}"/></g>'
    )


def _short(value: int) -> str:
    for unit, size in (("M", 1_000_000), ("k", 1_000)):
        if value >= size:
            return f"{value / size:.3g}{unit}" if value < 1000 * size else f"{value / size:,.0f}{unit}"
    return str(value)
