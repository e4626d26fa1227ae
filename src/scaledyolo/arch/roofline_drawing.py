"""The drawing of a roofline: a roof on two log scales, with the stages of a network on it or, measured, below it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from typing import NamedTuple

from scaledyolo.arch.groups import Part
from scaledyolo.arch.roofline import Roof, StageRoof

# The drawing, in pixels.
_ACROSS, _DOWN = 760, 400
_LEFT, _RIGHT, _TOP, _BOTTOM = 76, 24, 20, 56

_STYLE = """
.roofline text { font-family: system-ui, sans-serif; font-size: 12px; fill: var(--ink, #1c2733); }
.roofline .tick, .roofline .label { fill: var(--muted, #5b6b7a); font-size: 11px; }
.roofline .grid { stroke: var(--line, #e3e8ee); }
.roofline .roof { fill: none; stroke: var(--ink, #1c2733); stroke-width: 2; stroke-linejoin: round; }
.roofline .ridge { stroke: var(--edge, #8794a1); stroke-dasharray: 4 4; }
.roofline .drop { stroke: var(--edge, #8794a1); stroke-width: 1; }
.roofline circle { stroke: var(--surface, #ffffff); stroke-width: 1; }
.roofline .backbone { fill: #3f6fb5; } .roofline .top_down { fill: #b8722c; }
.roofline .bottom_up { fill: #3b8a6b; } .roofline .head { fill: #9a4a86; }
.roofline text.name { font-size: 11px; }
"""
# Where the name of a point may stand: its offset in pixels, and where the text is held; the first that is free.
_PLACES = (
    (0, -11, "middle"), (0, 19, "middle"), (0, -24, "middle"), (0, 32, "middle"), (10, 4, "start"), (-10, 4, "end"),
    (0, -37, "middle"), (0, 45, "middle"), (0, 58, "middle"), (0, -50, "middle"),
)  # fmt: skip
_LETTER, _LINE = 6.4, 12  # width of a letter and height of a line, in pixels
_PARTS: dict[Part, str] = {
    "backbone": "backbone",
    "top_down": "top-down path",
    "bottom_up": "bottom-up path",
    "head": "heads",
}


def roofline_svg(roofs: Sequence[StageRoof], machine: Roof) -> str:
    """The roof, and the stages on it (or, where times were measured, below it), as an SVG element on two log scales."""
    drawn = [roof for roof in roofs if roof.cost.macs]
    # At least a quarter of the slope is shown, whether or not a stage lies on it.
    intensities = [machine.ridge / 4, machine.ridge, *(roof.intensity for roof in drawn)]
    rates = [
        machine.gflops / 4,
        machine.gflops,
        *(roof.attainable for roof in drawn),
        *(roof.achieved for roof in drawn if roof.achieved),
    ]
    x = _Axis(min(intensities), max(intensities), _LEFT, _ACROSS - _RIGHT)
    y = _Axis(min(rates), max(rates), _DOWN - _BOTTOM, _TOP)
    opening = (
        f'<svg class="roofline" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_ACROSS} {_DOWN}" width="{_ACROSS}" '
        f'height="{_DOWN}" role="img" aria-label="Roofline">'
    )
    parts = [
        opening,
        f"<style>{_STYLE}</style>",
        *_grid(x, y),
        *_roof(x, y, machine),
        *(text for roof in drawn for text in _point(x, y, roof)),
        *_names(x, y, drawn, machine),
        *_legend(drawn),
        "</svg>",
    ]
    return "\n".join(parts)


class _Axis:
    """From values to pixels on a log scale whose ends are powers of ten, or 2 or 5 times one."""

    def __init__(self, low: float, high: float, start: float, stop: float) -> None:
        self.low, self.high = _round_down(low / 1.3), _round_up(high * 1.3)
        self.start, self.stop = start, stop

    def __call__(self, value: float) -> float:
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.stop - self.start)

    def ticks(self) -> list[float]:
        """1, 2 and 5 times powers of ten between the ends."""
        first = math.floor(math.log10(self.low))
        last = math.ceil(math.log10(self.high))
        values = [step * 10.0**power for power in range(first, last + 1) for step in (1, 2, 5)]
        return [value for value in values if self.low * 0.999 <= value <= self.high * 1.001]


def _round_down(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return power * max(step for step in (1, 2, 5) if step * power <= value * 1.0001)


def _round_up(value: float) -> float:
    power = 10.0 ** math.floor(math.log10(value))
    return power * min(step for step in (1, 2, 5, 10) if step * power >= value * 0.9999)


def _grid(x: _Axis, y: _Axis) -> list[str]:
    lines = []
    for value in x.ticks():
        at = x(value)
        lines.append(f'<line class="grid" x1="{at:.1f}" x2="{at:.1f}" y1="{y.start}" y2="{y.stop}"/>')
        lines.append(f'<text class="tick" x="{at:.1f}" y="{y.start + 16}" text-anchor="middle">{value:g}</text>')
    for value in y.ticks():
        at = y(value)
        lines.append(f'<line class="grid" x1="{x.start}" x2="{x.stop}" y1="{at:.1f}" y2="{at:.1f}"/>')
        lines.append(f'<text class="tick" x="{x.start - 8}" y="{at + 4:.1f}" text-anchor="end">{value:g}</text>')
    middle = (x.start + x.stop) / 2
    lines.append(
        f'<text class="label" x="{middle:.0f}" y="{_DOWN - 20}" text-anchor="middle">FLOP for each byte</text>'
    )
    lines.append(
        f'<text class="label" x="18" y="{(y.start + y.stop) / 2:.0f}" text-anchor="middle" '
        f'transform="rotate(-90 18 {(y.start + y.stop) / 2:.0f})">GFLOP a second</text>'
    )
    return lines


def _roof(x: _Axis, y: _Axis, machine: Roof) -> list[str]:
    # The slope begins where it enters the frame, from the left or from below.
    begin = max(x.low, y.low / machine.gigabytes)
    corners = [(at, machine.attainable(at) / 1e9) for at in (begin, machine.ridge, x.high)]
    path = " ".join(f"{x(across):.1f},{y(up):.1f}" for across, up in corners)
    ridge = x(machine.ridge)
    told = f"{machine.gflops:,.0f} GFLOP/s · {machine.gigabytes:,.1f} GB/s · ridge at {machine.ridge:.1f} FLOP/byte"
    return [
        f'<line class="ridge" x1="{ridge:.1f}" x2="{ridge:.1f}" y1="{y.start}" y2="{y(machine.gflops):.1f}"/>',
        f'<polyline class="roof" points="{path}"/>',
        # Above the slope nothing else is drawn.
        f'<text class="tick" x="{x.start + 10}" y="{y.stop + 18}">{told}</text>',
    ]


def _point(x: _Axis, y: _Axis, roof: StageRoof) -> list[str]:
    cost = roof.cost
    across, up = x(roof.intensity), y(roof.achieved or roof.attainable)
    told = f"{cost.group.name}: {roof.intensity:.1f} FLOP/byte, at best {roof.least_ms:.3g} ms"
    told += f", measured {roof.measured_ms:.3g} ms" if roof.measured_ms else ""
    point = f'<circle class="{cost.group.part}" cx="{across:.1f}" cy="{up:.1f}" r="5"/>'
    drop = ""
    if roof.achieved:
        drop = f'<line class="drop" x1="{across:.1f}" x2="{across:.1f}" y1="{y(roof.attainable):.1f}" y2="{up:.1f}"/>'
    return [f"<g><title>{escape(told)}</title>{drop}{point}</g>"]


def _names(x: _Axis, y: _Axis, drawn: Sequence[StageRoof], machine: Roof) -> list[str]:
    """The last part of each stage's name beside its point, in the colour of its path, where it covers nothing."""
    points = [(x(roof.intensity), y(roof.achieved or roof.attainable)) for roof in drawn]
    taken = [_Box(across - 6, up - 6, across + 6, up + 6) for across, up in points]
    taken += [_Box(at - 2, up - 3, at + 2, up + 3) for at, up in _along_roof(x, y, machine)]
    taken.append(_Box(x.stop - 130, y.start - 90, x.stop, y.start))  # the legend
    lines = []
    for (across, up), roof in sorted(zip(points, drawn, strict=True), key=lambda one: one[0]):
        name = roof.cost.group.name.rpartition(".")[2]
        places = [
            (_text_box(across + right, up + down, name, held), right, down, held) for right, down, held in _PLACES
        ]
        free = [
            place for place in places if place[0].inside(x, y) and not any(place[0].meets(other) for other in taken)
        ]
        box, right, down, held = (free or places)[0]
        taken.append(box)
        lines.append(
            f'<text class="name {roof.cost.group.part}" x="{across + right:.1f}" y="{up + down:.1f}" '
            f'text-anchor="{held}">{escape(name)}</text>'
        )
    return lines


def _along_roof(x: _Axis, y: _Axis, machine: Roof) -> list[tuple[float, float]]:
    """Points of the roof, a few pixels apart."""
    steps = 200
    values = [x.low * (x.high / x.low) ** (step / steps) for step in range(steps + 1)]
    return [(x(value), y(machine.attainable(value) / 1e9)) for value in values]


class _Box(NamedTuple):
    """A rectangle in pixels."""

    left: float
    top: float
    right: float
    bottom: float

    def meets(self, other: _Box) -> bool:
        return (
            self.left < other.right and other.left < self.right and self.top < other.bottom and other.top < self.bottom
        )

    def inside(self, x: _Axis, y: _Axis) -> bool:
        return self.left >= x.start and self.right <= x.stop and self.top >= y.stop and self.bottom <= y.start


def _text_box(across: float, base: float, text: str, held: str) -> _Box:
    """What a text covers whose line stands on ``base``."""
    width = _LETTER * len(text)
    left = across - {"start": 0.0, "middle": width / 2, "end": width}[held]
    return _Box(left, base - _LINE + 2, left + width, base + 2)


def _legend(drawn: Sequence[StageRoof]) -> list[str]:
    present = [part for part in _PARTS if any(roof.cost.group.part == part for roof in drawn)]
    lines = []
    for row, part in enumerate(present):
        down = _DOWN - _BOTTOM - 14 - 18 * (len(present) - 1 - row)
        lines.append(f'<circle class="{part}" cx="{_ACROSS - _RIGHT - 120}" cy="{down - 4}" r="5"/>')
        lines.append(f'<text class="tick" x="{_ACROSS - _RIGHT - 108}" y="{down}">{_PARTS[part]}</text>')
    return lines
