"""The roofline: its arithmetic by hand, and a drawing whose points lie where they should."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaledyolo.arch.groups import group_costs
from scaledyolo.arch.lower import lower
from scaledyolo.arch.roofline import Peaks, roofline_svg, stage_roofs
from scaledyolo.arch.zoo import find

GRAPH = lower(find("yolov4-tiny"))
COSTS = group_costs(GRAPH, 416, 416)
PEAKS = Peaks(gflops=100.0, gigabytes=10.0, machine="a machine")


def test_the_ridge_and_what_lies_on_both_sides():
    assert PEAKS.ridge == 10
    assert PEAKS.attainable(5) == 50
    assert PEAKS.attainable(10) == PEAKS.attainable(1000) == 100


@given(st.floats(1, 1e5), st.floats(0.1, 1e4))
def test_least_times_are_bounded_by_both(gflops, gigabytes):
    peaks = Peaks(gflops, gigabytes)
    for roof in stage_roofs(COSTS, peaks):
        flops, moved = 2 * roof.cost.macs, 4 * roof.cost.memory_access
        assert roof.least_ms == pytest.approx(1e3 * max(flops / (gflops * 1e9), moved / (gigabytes * 1e9)))
        assert roof.memory_bound == (moved / gigabytes > flops / gflops)
        if roof.cost.macs:
            assert flops / roof.least_ms / 1e6 == pytest.approx(roof.attainable)


def test_measured_nodes_add_up_to_their_stage():
    stage = next(cost for cost in COSTS if cost.group.name == "backbone.stage3")
    times = {node.name: 0.5 for node in stage.group.nodes}
    roofs = stage_roofs(COSTS, PEAKS, times)
    found = next(roof for roof in roofs if roof.cost is stage)
    assert found.measured_ms == 0.5 * len(stage.group.nodes)
    assert found.achieved == pytest.approx(2 * stage.macs / (found.measured_ms * 1e-3) / 1e9)
    assert all(roof.measured_ms is None and roof.achieved is None for roof in roofs if roof.cost is not stage)


def _points(svg: str) -> list[tuple[float, float]]:
    tree = ElementTree.fromstring(svg)
    space = "{http://www.w3.org/2000/svg}"
    groups = [group for group in tree.iter(f"{space}g") if group.find(f"{space}title") is not None]
    return [
        (float(circle.attrib["cx"]), float(circle.attrib["cy"]))
        for group in groups
        for circle in group.iter(f"{space}circle")
    ]


@pytest.mark.parametrize("peaks", [PEAKS, Peaks(3000.0, 900.0), Peaks(1.0, 0.5)])
def test_every_stage_is_a_point_on_the_roof_inside_the_frame(peaks):
    svg = roofline_svg(stage_roofs(COSTS, peaks), peaks)
    points = _points(svg)
    assert len(points) == sum(cost.macs > 0 for cost in COSTS)
    assert all(76 <= x <= 736 and 20 <= y <= 344 for x, y in points)
    corners = [tuple(map(float, pair.split(","))) for pair in re.search('points="([^"]+)"', svg)[1].split()]
    assert corners[1][1] == corners[2][1]
    (x0, y0), (x1, y1), _ = corners
    for x, y in points:
        roof = y1 if x >= x1 else y0 + (y1 - y0) * (x - x0) / (x1 - x0)
        assert y == pytest.approx(roof, abs=0.3)


def test_what_was_measured_hangs_below_the_roof():
    times = {node.name: 1.0 for node in GRAPH}
    roofs = stage_roofs(COSTS, PEAKS, times)
    slow = dict(zip(_points(roofline_svg(stage_roofs(COSTS, PEAKS), PEAKS)), roofs, strict=False))
    measured = _points(roofline_svg(roofs, PEAKS))
    assert len(measured) == len(slow)
    assert "measured" in roofline_svg(roofs, PEAKS)
