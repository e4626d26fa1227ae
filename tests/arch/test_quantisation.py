"""Where a network computes in 8 bits: convolutions that may, maps that are rounded for them."""

from __future__ import annotations

import pytest

from scaledyolo.arch.cost import cost
from scaledyolo.arch.graph import Graph, GraphBuilder
from scaledyolo.arch.lower import lower
from scaledyolo.arch.ops import Activate, Concat, Conv, Detect, Pool, SpaceToDepth, Upsample
from scaledyolo.arch.quantisation import first_layers, quantisable_layers, rounded_maps
from scaledyolo.arch.zoo import ZOO, find


def test_depthwise_convolutions_can_be_left_out() -> None:
    build = GraphBuilder()
    x = build.add("full", Conv(8, 3, padding=1), Graph.INPUT)
    x = build.add("deep", Conv(8, 3, padding=1, groups=8), x)
    x = build.add("wide", Conv(16, 3, padding=1, groups=8), x)
    x = build.add("pairs", Conv(16, 3, padding=1, groups=8), x)
    build.add("head", Detect(((1.0, 1.0),), (0,), 1), build.add("last", Conv(6, norm=False, bias=True), x))
    graph = Graph("depthwise", tuple(build.nodes), 32, 32)
    assert list(quantisable_layers(graph)) == ["full", "deep", "wide", "pairs"]
    assert list(quantisable_layers(graph, depthwise=False)) == ["full", "pairs"]


@pytest.mark.parametrize("name", ["yolov4-tiny", "yolov4-csp", "yolov3"])
def test_all_convolutions_but_those_before_the_heads(name: str) -> None:
    graph = lower(find(name))
    layers = quantisable_layers(graph)
    last = {head.inputs[0] for head in graph.heads}
    total = cost(graph).macs
    assert last.isdisjoint(layers)
    assert len(layers) == sum(type(node.op).__name__ == "Conv" for node in graph) - len(last)
    assert 0.95 * total < sum(layers.values()) < total


def two_heads() -> Graph:
    """Two branches from a patchwise stem; one is enlarged and joined with the other behind its last convolution."""
    build = GraphBuilder()
    x = build.add("patches", SpaceToDepth(2), Graph.INPUT)
    x = stem = build.add("stem", Conv(8, 3, padding=1), x)
    other = build.add("other", Conv(8, 3, padding=1), "patches")
    x = build.add("join", Concat(), x, other)
    x = build.add("pooled", Pool(2, 2, 0), x)
    x = build.add("mean", Pool(3, 1, 2, kind="average"), x)
    x = deep = build.add("deep", Conv(8), x)
    x = build.add("last", Conv(8, norm=False, bias=True), x)
    build.add("head", Detect(((1.0, 1.0),), (0,), 3), build.add("logits", Activate("linear"), x))
    x = build.add("up", Upsample(2), deep)
    x = build.add("merged", Concat(), x, stem)
    build.add("fine head", Detect(((1.0, 1.0),), (0,), 3), build.add("fine", Conv(8, norm=False, bias=True), x))
    return Graph("two heads", tuple(build.nodes), 32, 32)


def test_maps_are_rounded_for_what_reads_them() -> None:
    graph = two_heads()
    layers = quantisable_layers(graph)
    assert list(layers) == ["stem", "other", "deep"]
    # Not the image, which is rearranged before convolutions read it.
    assert rounded_maps(graph, layers) == {"patches", "pooled", "mean", "deep"}
    assert rounded_maps(graph, ["deep"]) == {"pooled", "mean", "deep"}
    tiny = lower(find("yolov4-tiny"))
    assert Graph.INPUT in rounded_maps(tiny, quantisable_layers(tiny))


def test_convolutions_that_read_the_image() -> None:
    assert first_layers(two_heads()) == {"stem", "other"}
    for name, spec in ZOO.items():
        graph = lower(spec)
        assert {graph.in_channels(graph[layer])[0] for layer in first_layers(graph)} <= {3, 12}, name
