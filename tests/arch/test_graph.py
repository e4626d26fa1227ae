"""Shape rules, naming rules and their error messages."""

from __future__ import annotations

import pytest

from scaledyolo.arch.graph import Graph, GraphBuilder, Node
from scaledyolo.arch.graph_io import graph_from_dict, graph_to_dict
from scaledyolo.arch.ops import (
    Activate,
    Add,
    ChannelSplit,
    Concat,
    Conv,
    DepthToSpace,
    Detect,
    Multiply,
    Pool,
    Reorg,
    Shape,
    SpaceToDepth,
    Upsample,
)
from scaledyolo.errors import SpecError


def _graph(*nodes: Node, side: int = 64) -> Graph:
    return Graph("test", nodes, side, side)


def test_parameters_carry_the_path_of_their_node():
    graph = _graph(Node("a.b", Conv(4, 3, padding=1), ("image",)))
    assert graph.parameters == {
        "a.b.weight": (4, 3, 3, 3),
        "a.b.norm.weight": (4,),
        "a.b.norm.bias": (4,),
        "a.b.norm.running_mean": (4,),
        "a.b.norm.running_var": (4,),
    }


@pytest.mark.parametrize(
    ("op", "shape", "out"),
    [
        (Conv(8, 3, (2, 2), 1), (3, 65, 65), (8, 33, 33)),
        (Conv(8, 3, (1, 2), 1), (3, 10, 10), (8, 10, 5)),
        (Conv(8, 3, padding=2, dilation=2), (3, 10, 10), (8, 10, 10)),
        (Pool(2, 2, 1), (4, 13, 13), (4, 7, 7)),
        (Pool(2, 1, 1), (4, 13, 13), (4, 13, 13)),
        (Pool(13, 1, 12), (4, 20, 19), (4, 20, 19)),
        (Upsample(2), (4, 7, 9), (4, 14, 18)),
        (ChannelSplit(2, 1), (4, 7, 7), (2, 7, 7)),
        (Reorg(2), (64, 26, 26), (256, 13, 13)),
        (SpaceToDepth(2), (3, 8, 8), (12, 4, 4)),
        (DepthToSpace(2), (12, 4, 6), (3, 8, 12)),
    ],
)
def test_shape_rules(op, shape, out):
    assert op.out_shape(Shape(*shape)) == Shape(*out)


@pytest.mark.parametrize(
    ("op", "shapes", "message"),
    [
        (Concat(), [(4, 8, 8), (4, 4, 4)], "one height and width, got 4x8x8 and 4x4x4"),
        (Add(), [(4, 8, 8), (4, 4, 4)], "addition needs inputs of one height"),
        (Conv(6, 3, groups=4), [(4, 8, 8)], "6 filters cannot be divided into 4 groups"),
        (ChannelSplit(3, 0), [(4, 8, 8)], "4 channels cannot be cut into 3"),
        (SpaceToDepth(2), [(4, 7, 8)], "cannot be cut into blocks"),
        (Reorg(2), [(4, 8, 7)], "4x8x7 cannot be cut into blocks of 2x2"),
        (Multiply(), [(4, 8, 8), (3, 1, 1)], "cannot multiply 4 channels by 3"),
        (Detect(((1.0, 2.0),), (0,), 80), [(84, 8, 8)], "need 85 channels, got 84"),
        (Detect(((1.0, 2.0),), (1,), 80), [(85, 8, 8)], "points outside"),
    ],
)
def test_shape_rules_name_the_shapes(op, shapes, message):
    with pytest.raises(SpecError, match=message):
        op.out_shape(*(Shape(*shape) for shape in shapes))


def test_a_graph_names_the_node_that_does_not_fit():
    with pytest.raises(SpecError, match="node 'join'.*3x64x64 and 4x32x32"):
        _graph(Node("half", Conv(4, 3, (2, 2), 1), ("image",)), Node("join", Concat(), ("image", "half")))
    with pytest.raises(SpecError, match="'join' reads 'later', which does not exist before it"):
        _graph(Node("join", Concat(), ("later",)))
    with pytest.raises(SpecError, match="two nodes are named 'a'"):
        _graph(Node("a", Concat(), ("image",)), Node("a", Concat(), ("image",)))
    with pytest.raises(SpecError, match="empty output"):
        _graph(Node("a", Conv(4, 128), ("image",)))
    with pytest.raises(SpecError, match="node 'a': 2 inputs do not suit Activate"):
        _graph(Node("a", Activate("mish"), ("image", "image")))


def test_a_builder_names_the_node_whose_channels_do_not_fit():
    builder = GraphBuilder()
    with builder.scope("neck"), pytest.raises(SpecError, match=r"node 'neck.split'"):
        builder.add("split", ChannelSplit(2, 0), "image")


def test_a_graph_from_plain_values_is_read_strictly():
    graph = _graph(Node("a", Conv(4, 3, padding=1), ("image",)))
    values = graph_to_dict(graph)
    assert graph_from_dict(values) == graph
    node = dict(values["nodes"][0])
    with pytest.raises(SpecError, match="unknown op 'cnv'.*'conv'"):
        graph_from_dict({**values, "nodes": [{**node, "op": "cnv"}]})
    with pytest.raises(SpecError, match="unknown key 'kernal'.*'kernel'"):
        graph_from_dict({**values, "nodes": [{**node, "kernal": 3}]})
    with pytest.raises(SpecError, match="needs a list of nodes"):
        graph_from_dict({**values, "nodes": 3})
