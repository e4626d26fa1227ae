"""Stages of any graph: they share out its nodes and its cost; the drawing shows each once, where it belongs."""

from __future__ import annotations

from dataclasses import replace
from xml.etree import ElementTree

import pytest

from scaledyolo.arch.cost import cost
from scaledyolo.arch.drawing import pyramid_svg
from scaledyolo.arch.graph import Graph
from scaledyolo.arch.groups import group_costs, group_edges, groups
from scaledyolo.arch.lower import lower
from scaledyolo.arch.zoo import ZOO, find

SVG = "{http://www.w3.org/2000/svg}"


def _anonymous(graph: Graph) -> Graph:
    """The same network with the names of a Darknet file: layer0, layer1, ..."""
    names = {Graph.INPUT: Graph.INPUT, **{node.name: f"layer{index}" for index, node in enumerate(graph)}}
    nodes = tuple(
        replace(node, name=names[node.name], inputs=tuple(names[source] for source in node.inputs)) for node in graph
    )
    return replace(graph, nodes=nodes)


@pytest.mark.parametrize("name", ZOO)
@pytest.mark.parametrize("anonymous", [False, True])
def test_stages_share_out_nodes_and_cost(name, anonymous):
    graph = _anonymous(lower(ZOO[name])) if anonymous else lower(ZOO[name])
    nodes = [node.name for group in groups(graph) for node in group.nodes]
    assert sorted(nodes) == sorted(node.name for node in graph)
    whole = cost(graph)
    stages = group_costs(graph, graph.height, graph.width)
    for key in ("params", "macs", "activation_bytes", "memory_access", "cio"):
        assert sum(getattr(stage, key) for stage in stages) == getattr(whole, key), key


def test_stages_of_p6_are_the_boxes_of_figure_4():
    stages = {stage.group.name: stage for stage in group_costs(lower(find("yolov4-p6")), 1280, 1280)}
    assert list(stages) == [
        "backbone.stem",
        *(f"backbone.stage{number}" for number in range(1, 7)),
        *(f"neck.top_down.p{level}" for level in (6, 5, 4, 3)),
        *(f"neck.bottom_up.p{level}" for level in (4, 5, 6)),
        *(f"head.p{level}" for level in (3, 4, 5, 6)),
    ]
    # Parameters of the published checkpoint's modules: down5 + stage5, SPPCSP, up-conv + lateral + CSP2.
    assert stages["backbone.stage5"].params == 4_720_640 + 20_728_832
    assert stages["neck.top_down.p6"].params == 7_610_368
    assert stages["neck.top_down.p4"].params == 131_584 + 131_584 + 2_298_880
    assert stages["head.p6"].out == (340, 20, 20)
    assert stages["backbone.stage3"].group.stride == 8


def test_without_names_the_way_down_up_and_down_again_is_found():
    named = {stage.group.name: stage for stage in group_costs(lower(find("yolov4-csp")), 640, 640)}
    stages = {stage.group.name: stage for stage in group_costs(_anonymous(lower(find("yolov4-csp"))), 640, 640)}
    assert list(stages)[:6] == [f"down, stride {2**level}" for level in range(6)]
    assert list(stages)[6:8] == ["up, stride 16", "up, stride 8"]
    assert list(stages)[8:] == ["head.p3", "down again, stride 16", "head.p4", "down again, stride 32", "head.p5"]
    for level in (3, 4, 5):
        assert stages[f"head.p{level}"].params == named[f"head.p{level}"].params
    for run, stage in (("down, stride 8", "backbone.stage3"), ("up, stride 16", "neck.top_down.p4"),
                       ("down again, stride 32", "neck.bottom_up.p5")):  # fmt: skip
        assert stages[run].macs == named[stage].macs


def test_edges_follow_the_pyramid():
    edges = group_edges(lower(find("yolov4-p5")))
    assert edges[0] == ("image", "backbone.stem")
    assert ("backbone.stage4", "neck.top_down.p4") in edges
    assert ("neck.top_down.p5", "neck.bottom_up.p5") in edges
    assert ("neck.top_down.p3", "head.p3") in edges
    assert len(set(edges)) == len(edges)


@pytest.mark.parametrize("name", ["yolov2", "yolov3-tiny", "yolov4-tiny", "yolov4-p7", "csresnext50-panet-spp"])
@pytest.mark.parametrize("anonymous", [False, True])
def test_the_drawing_shows_every_stage_once_and_no_two_on_one_place(name, anonymous):
    graph = _anonymous(lower(find(name))) if anonymous else lower(find(name))
    drawing = ElementTree.fromstring(pyramid_svg(graph, graph.height, graph.width))
    boxes = [box for box in drawing.iter(f"{SVG}rect") if box.get("class", "").startswith("box")]
    corners = {(int(box.get("x")), int(box.get("y"))) for box in boxes}
    assert len(corners) == len(boxes) == len(groups(graph))
    right, bottom = (int(drawing.get(side)) for side in ("width", "height"))
    assert all(x + 190 <= right and y + 62 <= bottom for x, y in corners)
    inner_edges = [edge for edge in group_edges(graph) if edge[0] != Graph.INPUT]
    assert sum(path.get("class") == "edge" for path in drawing.iter(f"{SVG}path")) == len(inner_edges)


def test_a_drawing_escapes_names():
    graph = replace(lower(find("yolov4-tiny")), name='<b>"&')
    assert ElementTree.fromstring(pyramid_svg(graph, 416, 416)).get("aria-label") == '<b>"& as a pyramid'


def test_the_share_of_the_operations_adds_up():
    graph = lower(find("yolov4-csp"))
    drawing = ElementTree.fromstring(pyramid_svg(graph, 640, 640))
    shares = [float(box.get("width")) for box in drawing.iter(f"{SVG}rect") if box.get("class", "").startswith("share")]
    assert sum(shares) == pytest.approx(170, abs=0.05 * len(shares))
    macs = [stage.macs for stage in group_costs(graph, 640, 640)]
    assert max(shares) / 170 == pytest.approx(max(macs) / sum(macs), abs=1e-3)
