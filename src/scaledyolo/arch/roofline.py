"""The roof of a machine, and the stages of a network under it: what bounds each, and the least time it can take.

Williams, Waterman, Patterson, 2009: work with an arithmetic intensity of i FLOP for each byte runs at no more than
min(peak, i · bandwidth). Left of the ridge, at peak / bandwidth, memory is the bound; right of it, arithmetic.

The same :class:`Roof` judges the stages that `describe --roofline` costs and the layers that `bench --layers` times.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from scaledyolo.arch.groups import GroupCost, Part
from scaledyolo.errors import UsageError

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
"""
_PARTS: dict[Part, str] = {
    "backbone": "backbone",
    "top_down": "top-down path",
    "bottom_up": "bottom-up path",
    "head": "heads",
}


BYTES_PER_VALUE: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


@dataclass(frozen=True, slots=True)
class Roof:
    """What a machine can do at most.

    Raises:
        UsageError: a machine that does nothing.
    """

    flops_per_s: float  # of a matrix product in the precision of the network
    bytes_per_s: float  # of a copy, read and written

    def __post_init__(self) -> None:
        if not (self.flops_per_s > 0 and self.bytes_per_s > 0):
            raise UsageError(
                f"a roof needs rates above zero, got {self.flops_per_s:g} FLOP/s and {self.bytes_per_s:g} B/s"
            )

    @property
    def gflops(self) -> float:
        """Giga floating-point operations a second."""
        return self.flops_per_s / 1e9

    @property
    def gigabytes(self) -> float:
        """Gigabytes a second."""
        return self.bytes_per_s / 1e9

    @property
    def ridge(self) -> float:
        """Arithmetic intensity in FLOP for each byte from which on arithmetic is the bound."""
        return self.flops_per_s / self.bytes_per_s

    def attainable(self, intensity: float) -> float:
        """The most floating-point operations a second at this intensity."""
        return min(self.flops_per_s, intensity * self.bytes_per_s)

    def least_ms(self, flops: float, num_bytes: float) -> float:
        """The time below which work cannot be done, in milliseconds."""
        return 1e3 * max(flops / self.flops_per_s, num_bytes / self.bytes_per_s)

    def memory_bound(self, flops: float, num_bytes: float) -> bool:
        """Whether moving the bytes takes longer than the arithmetic."""
        return num_bytes / self.bytes_per_s > flops / self.flops_per_s


@dataclass(frozen=True, slots=True)
class StageRoof:
    """One stage under the roof."""

    cost: GroupCost
    intensity: float  # FLOP for each byte in the precision of the roof
    attainable: float  # giga floating-point operations a second
    least_ms: float  # milliseconds for one image at the roof; what is not a convolution costs its traffic only
    memory_bound: bool
    measured_ms: float | None = None

    @property
    def achieved(self) -> float | None:
        """Giga floating-point operations a second that were measured."""
        return None if not self.measured_ms else 2 * self.cost.macs / 1e6 / self.measured_ms


def stage_roofs(
    costs: Sequence[GroupCost], roof: Roof, measured: Mapping[str, float] | None = None, *, precision: str = "float32"
) -> tuple[StageRoof, ...]:
    """Every stage under the roof of a machine.

    Args:
        costs: of the stages.
        roof: of the machine.
        measured: milliseconds of nodes by name; a stage has a time where any of its nodes has one.
        precision: in which the roof was measured; a key of :data:`BYTES_PER_VALUE`.
    """
    value_bytes = BYTES_PER_VALUE[precision]
    found = []
    for cost in costs:
        flops, num_bytes = 2 * cost.macs, value_bytes * cost.memory_access
        intensity = cost.intensity * BYTES_PER_VALUE["float32"] / value_bytes  # counted in float32
        found.append(
            StageRoof(
                cost=cost,
                intensity=intensity,
                attainable=roof.attainable(intensity) / 1e9,
                least_ms=roof.least_ms(flops, num_bytes),
                memory_bound=roof.memory_bound(flops, num_bytes),
                measured_ms=_time_of(cost, measured or {}),
            )
        )
    return tuple(found)


def _time_of(cost: GroupCost, measured: Mapping[str, float]) -> float | None:
    times = [measured[node.name] for node in cost.group.nodes if node.name in measured]
    return sum(times) if times else None


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
        f'<text class="tick" x="{x.stop - 6}" y="{y(machine.gflops) - 12:.1f}" text-anchor="end">{told}</text>',
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


def _legend(drawn: Sequence[StageRoof]) -> list[str]:
    present = [part for part in _PARTS if any(roof.cost.group.part == part for roof in drawn)]
    lines = []
    for row, part in enumerate(present):
        down = _DOWN - _BOTTOM - 14 - 18 * (len(present) - 1 - row)
        lines.append(f'<circle class="{part}" cx="{_ACROSS - _RIGHT - 120}" cy="{down - 4}" r="5"/>')
        lines.append(f'<text class="tick" x="{_ACROSS - _RIGHT - 108}" y="{down}">{_PARTS[part]}</text>')
    return lines
