"""Parallel convolutions as one, against torch's own convolutions in float64."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

torch = pytest.importorskip("torch")

from scaledyolo.arch.cost import cost  # noqa: E402
from scaledyolo.arch.graph import Graph, GraphBuilder  # noqa: E402
from scaledyolo.arch.ops import Activation, Add, Concat, Conv, Detect  # noqa: E402
from scaledyolo.arch.training_parts import auxiliary_nodes, parallel_convolutions  # noqa: E402
from scaledyolo.convert.fold import fold  # noqa: E402
from scaledyolo.convert.reparameterise import merge_parallel  # noqa: E402
from scaledyolo.net.network import Network  # noqa: E402
from scaledyolo.weights import random_weights  # noqa: E402

SIDE, CHANNELS = 8, 4


def parallel(kernels: list[int], norms: list[bool], stride: int, groups: int, activation: Activation) -> Graph:
    builder = GraphBuilder(CHANNELS)
    branches = [
        builder.add(
            f"branch{index}",
            Conv(8, kernel, (stride, stride), kernel // 2, groups=groups, norm=norm, bias=not norm),
            Graph.INPUT,
        )
        for index, (kernel, norm) in enumerate(zip(kernels, norms, strict=True))
    ]
    total = builder.add("sum", Add(activation), *branches)
    raw = builder.add("predict", Conv(6, norm=False, bias=True), total)
    builder.add("detect", Detect(((8.0, 8.0),), (0,), 1), raw)
    return Graph("parallel", tuple(builder.nodes), SIDE, SIDE, channels=CHANNELS, norm_eps=1e-3)


@given(
    st.lists(st.tuples(st.sampled_from([1, 3, 5]), st.booleans()), min_size=2, max_size=4),
    st.sampled_from([1, 2]),
    st.sampled_from([1, 2, 4]),
    st.sampled_from(["linear", "swish", "leaky"]),
    st.integers(0, 2**16),
)
@settings(max_examples=25, deadline=None)
def test_one_convolution_computes_the_sum(
    branches: list[tuple[int, bool]], stride: int, groups: int, activation: Activation, seed: int
) -> None:
    kernels, norms = [kernel for kernel, _ in branches], [norm for _, norm in branches]
    graph = parallel(kernels, norms, stride, groups, activation)
    weights = random_weights(graph, np.random.default_rng(seed))
    merged, fewer = merge_parallel(graph, weights)
    assert [node.name for node in merged] == ["sum", "predict", "detect"]
    op = merged["sum"].op
    assert isinstance(op, Conv)
    assert (op.kernel, op.bias, op.norm, op.activation) == (max(kernels), True, False, activation)
    assert fewer.keys() == merged.parameters.keys()
    image = torch.from_numpy(np.random.default_rng(seed).standard_normal((1, CHANNELS, SIDE, SIDE)))
    maps = []
    for network, arrays in ((Network(graph), weights), (Network(merged), fewer)):
        network.load(arrays)
        with torch.no_grad():
            maps.append(network.double().eval()(image)[0])
    torch.testing.assert_close(maps[1], maps[0], rtol=0, atol=2e-6)
    total = sum(array.size for array in fold(graph, weights)[1].values())
    assert cost(graph).folded_params == total


@pytest.mark.parametrize(
    "op",
    [
        Conv(8, 3, padding=1, activation="swish"),  # not linear
        Conv(8, 3, padding=2, dilation=2),
        Conv(8, 2, padding=0),  # no middle; and another size of output
    ],
)
def test_other_branches_are_left_alone(op: Conv) -> None:
    builder = GraphBuilder(CHANNELS)
    first = builder.add("first", Conv(8), Graph.INPUT)
    second = builder.add("second", op, Graph.INPUT)
    if op.kernel == 2:
        second = builder.add("third", Conv(8, 2, padding=1), second)
    builder.add("sum", Add(), first, second)
    graph = Graph("other", tuple(builder.nodes), SIDE, SIDE, channels=CHANNELS)
    assert not parallel_convolutions(graph)


def test_a_branch_that_somebody_else_reads_is_left_alone() -> None:
    builder = GraphBuilder(CHANNELS)
    first, second = (builder.add(name, Conv(8), Graph.INPUT) for name in ("first", "second"))
    total = builder.add("sum", Add(), first, second)
    builder.add("both", Concat(), total, first)
    assert not parallel_convolutions(Graph("read", tuple(builder.nodes), SIDE, SIDE, channels=CHANNELS))


def test_what_no_head_reads_is_auxiliary_but_not_where_there_is_no_head() -> None:
    graph = parallel([1, 3], [True, True], 1, 1, "linear")
    builder = GraphBuilder(CHANNELS)
    builder.nodes = list(graph.nodes)
    builder.channels["sum"] = 8
    builder.add("auxiliary", Conv(6, norm=False, bias=True), "sum")
    both = graph.with_nodes(tuple(builder.nodes))
    assert auxiliary_nodes(both) == {"auxiliary"}
    assert not auxiliary_nodes(both.with_nodes(tuple(node for node in both if node.name != "detect")))
    folded, weights = fold(both, random_weights(both, np.random.default_rng(0)))
    assert "auxiliary" not in {node.name for node in folded}
    assert weights.keys() == folded.parameters.keys()
