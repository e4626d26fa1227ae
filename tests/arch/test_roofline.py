"""The roofline: its arithmetic by hand, and a drawing whose points lie where they should."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaledyolo.arch.groups import group_costs
from scaledyolo.arch.lower import lower
from scaledyolo.arch.roofline import Roof, stage_roofs
from scaledyolo.arch.roofline_drawing import roofline_svg
from scaledyolo.arch.zoo import find
from scaledyolo.errors import UsageError

GRAPH = lower(find("yolov4-tiny"))
COSTS = group_costs(GRAPH, 416, 416)
ROOF = Roof(flops_per_s=100e9, bytes_per_s=10e9)


def test_the_ridge_and_what_lies_on_both_sides():
    assert ROOF.ridge == 10
    assert ROOF.attainable(5) == 50e9
    assert ROOF.attainable(10) == ROOF.attainable(1000) == 100e9
    assert ROOF.least_ms(1e9, 1e6) == pytest.approx(10.0)
    assert ROOF.least_ms(1e6, 1e8) == pytest.approx(10.0)
    assert ROOF.memory_bound(1e9, 1.01e8)
    assert not ROOF.memory_bound(1e9, 1e8)


@pytest.mark.parametrize("rates", [(0.0, 1e9), (1e9, -1.0), (float("nan"), 1e9)])
def test_a_machine_that_does_nothing_is_refused(rates):
    with pytest.raises(UsageError, match="a roof needs rates above zero"):
        Roof(*rates)


def test_half_precision_moves_half_the_bytes():
    full, half = (stage_roofs(COSTS, Roof(1e15, 1e9), precision=name) for name in ("float32", "bfloat16"))
    assert all(one.least_ms == pytest.approx(2 * other.least_ms) for one, other in zip(full, half, strict=True))


@given(st.floats(1, 1e5), st.floats(0.1, 1e4))
def test_least_times_are_bounded_by_both(gflops, gigabytes):
    for roof in stage_roofs(COSTS, Roof(gflops * 1e9, gigabytes * 1e9)):
        flops, moved = 2 * roof.cost.macs, 4 * roof.cost.memory_access
        assert roof.least_ms == pytest.approx(1e3 * max(flops / (gflops * 1e9), moved / (gigabytes * 1e9)))
        assert roof.memory_bound == (moved / gigabytes > flops / gflops)
        if roof.cost.macs:
            assert flops / roof.least_ms / 1e6 == pytest.approx(roof.attainable)


def test_measured_nodes_add_up_to_their_stage():
    stage = next(cost for cost in COSTS if cost.group.name == "backbone.stage3")
    times = {node.name: 0.5 for node in stage.group.nodes}
    roofs = stage_roofs(COSTS, ROOF, times)
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


@pytest.mark.parametrize("machine", [ROOF, Roof(3000e9, 900e9), Roof(1e9, 0.5e9)])
def test_every_stage_is_a_point_on_the_roof_inside_the_frame(machine):
    svg = roofline_svg(stage_roofs(COSTS, machine), machine)
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
    roofs = stage_roofs(COSTS, ROOF, times)
    slow = dict(zip(_points(roofline_svg(stage_roofs(COSTS, ROOF), ROOF)), roofs, strict=False))
    measured = _points(roofline_svg(roofs, ROOF))
    assert len(measured) == len(slow)
    assert "measured" in roofline_svg(roofs, ROOF)


@pytest.mark.parametrize("name", ["yolov4-tiny", "yolov4-p5", "yolov4-p7"])
@pytest.mark.parametrize("measured", [False, True])
def test_every_stage_is_named_and_no_name_covers_another(name, measured):
    graph = lower(find(name))
    times = {node.name: 0.1 + 0.01 * index for index, node in enumerate(graph)} if measured else {}
    roofs = stage_roofs(group_costs(graph, graph.height, graph.width), ROOF, times)
    tree = ElementTree.fromstring(roofline_svg(roofs, ROOF))
    texts = [text for text in tree.iter() if text.attrib.get("class", "").startswith("name ")]
    drawn = [roof.cost.group.name.rpartition(".")[2] for roof in roofs if roof.cost.macs]
    assert sorted(text.text or "" for text in texts) == sorted(drawn)
    spans = []
    for text in texts:
        x, y, width = float(text.attrib["x"]), float(text.attrib["y"]), 6 * len(text.text or "")
        left = x - {"start": 0, "middle": width / 2, "end": width}[text.attrib["text-anchor"]]
        assert left >= 76
        assert left + width <= 736
        spans.append((left, y - 9, left + width, y))
    clashes = [
        (one, other)
        for index, one in enumerate(spans)
        for other in spans[:index]
        if one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]
    ]
    assert not clashes
