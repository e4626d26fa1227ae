"""Once-for-all subnets: the figures of the table, bit-identical outputs, and what the approximate form means."""

from __future__ import annotations

import numpy as np
import onnxruntime
import pytest

from scaledyolo.arch.cost import cost
from scaledyolo.arch.graph import Graph
from scaledyolo.arch.lower import lower
from scaledyolo.arch.scaling import scaled, with_stages
from scaledyolo.arch.subnet import without_head, without_stage
from scaledyolo.arch.zoo import find
from scaledyolo.convert.onnx_writer import to_onnx
from scaledyolo.errors import CheckpointError, SpecError, UsageError
from scaledyolo.subnet import subnet_weights
from scaledyolo.weights import Weights, random_weights

P7 = lower(find("yolov4-p7"))

# level from which heads are dropped: parameters, GFLOP at 1536, 1280, 896 and 640, boxes at 1536
EXACT = {
    None: (287_575_580, (1636.70, 1136.60, 556.93, 284.15), 196_416),
    7: (261_728_200, (1629.26, 1131.43, 554.40, 282.86), 195_840),
    6: (235_880_820, (1599.51, 1110.77, 544.28, 277.69), 193_536),
}


@pytest.mark.parametrize("level", EXACT)
def test_figures_of_the_exact_form(level):
    params, gflops, boxes = EXACT[level]
    graph = P7 if level is None else without_head(P7, level).graph
    figures = cost(graph, 1536, 1536)
    assert (figures.params, figures.boxes) == (params, boxes)
    for side, expected in zip((1536, 1280, 896, 640), gflops, strict=True):
        assert round(cost(graph, side, side).gflops, 2) == expected


def test_the_exact_form_keeps_names_and_still_needs_the_coarsest_stride():
    subnet = without_head(P7, 6)
    assert subnet.exact
    assert subnet.graph.parameters.items() <= P7.parameters.items()
    assert sorted(subnet.graph.strides) == [8, 16, 32]
    assert subnet.graph.max_stride == 128
    with pytest.raises(SpecError, match="largest stride 128"):
        subnet.graph.check_size(1600, 1600)


@pytest.fixture(scope="module")
def narrow() -> tuple[Graph, Weights]:
    """A P7 of a sixteenth of the width, one block a stage, 128 pixels: fast enough to run."""
    graph = lower(scaled(find("yolov4-p7"), width=1 / 16, depth=1 / 16, size=128))
    return graph, random_weights(graph, np.random.default_rng(0))


def _run(graph: Graph, weights: Weights, height: int = 128, width: int = 128) -> dict[str, np.ndarray]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    model = to_onnx(graph.with_size(height, width), weights).SerializeToString()
    session = onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(1).random((1, 3, height, width), dtype=np.float32)
    outputs = session.run(None, {"images": images})
    return {output.name: value for output, value in zip(session.get_outputs(), outputs, strict=True)}


@pytest.mark.parametrize(("level", "kept"), [(7, 4), (6, 3), (5, 2), (4, 1)])
def test_kept_levels_are_bit_identical(narrow, level, kept):
    graph, weights = narrow
    whole = _run(graph, weights)
    subnet = without_head(graph, level)
    part = _run(subnet.graph, subnet_weights(subnet, weights))
    assert len(part) == kept
    for name, value in part.items():
        assert np.array_equal(value, whole[name]), name


@pytest.mark.parametrize("level", [7, 6])
def test_both_fills_compute_the_large_network_without_the_lost_input(narrow, level):
    graph, weights = narrow
    sliced, zeros = (without_stage(graph, level, fill) for fill in ("slice", "zeros"))
    assert not sliced.exact
    assert sliced.graph.max_stride == zeros.graph.max_stride == 2 ** (level - 1)
    parts = [_run(subnet.graph, subnet_weights(subnet, weights)) for subnet in (sliced, zeros)]

    # The same change made in the large network: the weights that read the lost input are zero.
    silenced = dict(weights)
    for name in (change.tensor for change in sliced.changes):
        silenced[name] = weights[name].copy()
        silenced[name][:, weights[name].shape[1] // 2 :] = 0  # [lateral, up]
    whole = _run(graph, silenced)
    # The finest level depends on the top-down path only, the others on the bottom-up path too: all are kept.
    for name, value in parts[0].items():
        np.testing.assert_allclose(value, parts[1][name], rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(value, whole[name], rtol=1e-4, atol=1e-5)


def test_the_approximate_form_takes_half_the_stride(narrow):
    graph, weights = narrow
    subnet = without_stage(graph, 7)
    shapes = {name: value.shape for name, value in _run(subnet.graph, subnet_weights(subnet, weights), 64, 192).items()}
    assert [shape[2:] for shape in shapes.values()] == [(8, 24), (4, 12), (2, 6), (1, 3)]


def test_zeros_keep_every_shape_and_slices_shrink_only_what_they_name():
    zeros, sliced = without_stage(P7, 7, "zeros"), without_stage(P7, 7, "slice")
    assert zeros.graph.parameters.items() <= P7.parameters.items()
    changed = {name for name, shape in sliced.graph.parameters.items() if P7.parameters[name] != shape}
    assert changed == {change.tensor for change in sliced.changes} == {"neck.top_down.p6.main.weight"}
    assert sliced.changes[0].kept == ((0, 640),)
    assert sliced.graph.parameters["neck.top_down.p6.main.weight"] == (640, 640, 1, 1)
    assert not any("p7" in node.name or "stage7" in node.name for node in sliced.graph)


def test_the_approximate_form_saves_what_the_exact_form_cannot():
    whole, exact, approximate = (cost(graph) for graph in (P7, without_head(P7, 7).graph, without_stage(P7, 7).graph))
    assert exact.macs > 0.99 * whole.macs
    assert approximate.params < 0.72 * whole.params
    # What a P6 of the same width has besides is its pooling block at P6, in place of the lateral and CSPUp.
    p6 = cost(lower(with_stages(find("yolov4-p7"), 6)), 1536, 1536)
    assert abs(approximate.macs / p6.macs - 1) < 0.01


@pytest.mark.parametrize("name", ["yolov3", "yolov3-spp", "yolov4", "yolov4-csp", "yolov4-tiny-3l", "yolov4-p5-cfg"])
@pytest.mark.parametrize("cut", [without_head, without_stage])
def test_every_pyramid_of_the_zoo_can_lose_its_coarsest_level(name, cut):
    graph = lower(find(name))
    subnet = cut(graph, 5)
    assert sorted(subnet.graph.strides) == [8, 16]
    assert cost(subnet.graph).macs < cost(graph).macs


def test_what_cannot_be_cut_is_said(narrow):
    graph, weights = narrow
    with pytest.raises(UsageError, match="no head at P8; it has P3, P4, P5, P6, P7"):
        without_head(graph, 8)
    with pytest.raises(UsageError, match="no head would be left"):
        without_stage(graph, 3)
    with pytest.raises(UsageError, match="'slice'"):
        without_stage(graph, 7, "slices")
    with pytest.raises(SpecError, match="no other input with the 256 channels.*fill='slice'"):
        without_stage(lower(find("yolov3")), 5, "zeros")
    with pytest.raises(CheckpointError, match="no tensor 'backbone.stem.weight'"):
        subnet_weights(without_head(graph, 7), {})
    subnet = without_stage(graph, 7)
    tensor = subnet.changes[0].tensor
    with pytest.raises(CheckpointError, match="at least"):
        subnet_weights(subnet, {**weights, tensor: weights[tensor][:, :8]})
