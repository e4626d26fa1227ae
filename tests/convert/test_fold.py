"""Folding: formulas in float64, equality of the folded and the unfolded network, exactness of pool cascades."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scaledyolo.arch.graph import Graph, GraphBuilder
from scaledyolo.arch.lower import lower
from scaledyolo.arch.ops import Activate, Add, Affine, BatchNorm, Concat, Conv, Detect, Implicit, Op, Pool
from scaledyolo.arch.zoo import ZOO
from scaledyolo.convert.fold import cascade_pools, fold
from scaledyolo.errors import CheckpointError
from scaledyolo.net.network import Network
from scaledyolo.weights import Array, Weights, count, random_weights


def chain(*ops: Op, channels: int = 6) -> Graph:
    """A graph of one node after the other, named by kind and position, ending in a head."""
    b = GraphBuilder(channels)
    x = Graph.INPUT
    for index, op in enumerate(ops):
        x = b.add(f"{type(op).__name__.lower()}{index}", op, x)
    b.add("yolo", Detect(((1.0, 1.0),), (0,), b.channels[x] - 5), x)
    return Graph("chain", tuple(b.nodes), 8, 8, channels=channels, norm_eps=1e-3)


def maps(graph: Graph, weights: Mapping[str, Array], images: np.ndarray) -> list[np.ndarray]:
    """Raw maps of the torch network in float64, the reference on both sides of a fold."""
    network = Network(graph).eval()
    network.load(weights)
    with torch.inference_mode():
        return [raw.numpy() for raw in network.double()(torch.from_numpy(images))]


def assert_fold_changes_nothing(graph: Graph, weights: Weights, tolerance: float = 1e-5) -> tuple[Graph, Weights]:
    images = np.random.default_rng(1).random((2, graph.channels, graph.height, graph.width))
    before = {name: array.copy() for name, array in weights.items()}
    folded = fold(graph, weights)
    for expected, found in zip(maps(graph, weights, images), maps(*folded, images), strict=True):
        assert np.abs(found - expected).max() <= tolerance * np.abs(expected).max()
    assert all(np.array_equal(weights[name], array) for name, array in before.items()), "inputs were changed"
    return folded


@settings(deadline=None, max_examples=60)
@given(
    groups=st.sampled_from([1, 2, 4]), inputs=st.integers(1, 3), outputs=st.integers(1, 3),
    kernel=st.sampled_from([1, 3]), bias=st.booleans(), eps=st.sampled_from([1e-5, 1e-4, 1e-3]),
    seed=st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_formula_of_convolution_and_normalisation(
    groups: int, inputs: int, outputs: int, kernel: int, bias: bool, eps: float, seed: int
) -> None:
    """W' = W·γ/√(σ²+ε), b' = β + (b − μ)·γ/√(σ²+ε), for any grouping."""
    graph = chain(Conv(4 * 2 * outputs, kernel, groups=groups, bias=bias), channels=4 * inputs)
    graph = replace(graph, norm_eps=eps)
    weights = random_weights(graph, np.random.default_rng(seed))
    w64 = {name.removeprefix("conv0."): array.astype(np.float64) for name, array in weights.items()}
    factor = w64["norm.weight"] / np.sqrt(w64["norm.running_var"] + eps)
    shift = w64["norm.bias"] + (w64.get("bias", 0.0) - w64["norm.running_mean"]) * factor
    folded_graph, folded = fold(graph, weights)
    np.testing.assert_allclose(folded["conv0.weight"], w64["weight"] * factor[:, None, None, None], rtol=1e-7)
    np.testing.assert_allclose(folded["conv0.bias"], shift, rtol=1e-6, atol=1e-9)
    assert set(folded) == set(folded_graph.parameters) == {"conv0.weight", "conv0.bias"}


CHAINS = {
    "plain": chain(Conv(8, 3, (2, 2), 1, activation="mish"), Conv(7)),
    "groups": chain(Conv(8, 3, padding=1, groups=2, bias=True, activation="leaky"), Conv(8, groups=4)),
    "norm alone": chain(Conv(8, norm=False), Activate("leaky"), BatchNorm("mish"), Conv(6)),
    "norm after raw convolution": chain(Conv(8, 3, norm=False), BatchNorm("mish"), Conv(6)),
    "norm before padded convolution": chain(Activate("leaky"), BatchNorm(), Conv(6, 3, padding=1)),
    "norm before convolution": chain(Activate("leaky"), BatchNorm(), Conv(8, 3, groups=2)),
    "implicit head": chain(Conv(8), Implicit("add"), Conv(6, norm=False, bias=True), Implicit("multiply")),
    "gain before padded convolution": chain(Implicit("multiply"), Conv(8, 3, padding=1, groups=2)),
    "shift before padded convolution": chain(Implicit("add"), Conv(8, 3, padding=1)),
    "implicit after activation": chain(Conv(8, activation="leaky"), Implicit("add")),
    "row of implicits": chain(Implicit("add"), Implicit("multiply"), Conv(6), Implicit("add"), Implicit("multiply")),
    "affine": chain(Conv(6, norm=False), Affine("leaky"), Affine(), Conv(6, norm=False)),
}
KINDS_LEFT = {
    "plain": "Conv Conv",
    "groups": "Conv Conv",
    "norm alone": "Conv Activate Affine Conv",
    "norm after raw convolution": "Conv Conv",
    "norm before padded convolution": "Activate Affine Conv",
    "norm before convolution": "Activate Conv",
    "implicit head": "Conv Conv",
    "gain before padded convolution": "Conv",
    "shift before padded convolution": "Implicit Conv",
    "implicit after activation": "Conv Implicit",
    "row of implicits": "Conv",
    "affine": "Conv Conv",
}


@pytest.mark.parametrize("name", CHAINS)
def test_chains_fold_as_far_as_they_can_and_stay_equal(name: str) -> None:
    graph = CHAINS[name]
    folded, weights = assert_fold_changes_nothing(graph, random_weights(graph, np.random.default_rng(0)))
    assert [type(node.op).__name__ for node in folded][:-1] == KINDS_LEFT[name].split()
    again, same = fold(folded, weights)
    assert again == folded
    assert all(same[key] is array for key, array in weights.items()), "folding twice must copy nothing"


def test_implicit_head_is_the_published_formula() -> None:
    """b' = (b + W·a)·m, W' = W·m."""
    graph = chain(Implicit("add"), Conv(7, norm=False, bias=True), Implicit("multiply"))
    w = random_weights(graph, np.random.default_rng(0))
    _, folded = fold(graph, w)
    a, m = w["implicit0.implicit"].astype(float), w["implicit2.implicit"].astype(float)
    matrix = w["conv1.weight"][:, :, 0, 0].astype(float)
    np.testing.assert_allclose(folded["conv1.bias"], (w["conv1.bias"] + matrix @ a) * m, rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(folded["conv1.weight"][:, :, 0, 0], matrix * m[:, None], rtol=2e-7)


def test_shared_values_are_not_folded_away() -> None:
    """A raw convolution with another reader keeps its values; an implicit vector goes into each of its readers."""
    b = GraphBuilder(6)
    raw = b.add("raw", Conv(6, norm=False), Graph.INPUT)
    norm = b.add("norm", BatchNorm("leaky"), raw)
    shift = b.add("shift", Implicit("add"), norm)
    left = b.add("left", Conv(4), shift)
    right = b.add("right", Conv(4, 3, norm=False, groups=2), b.add("other", Conv(6), shift))
    del right
    x = b.add("join", Concat(), raw, left)
    b.add("yolo", Detect(((1.0, 1.0),), (0,), 5), x)
    graph = Graph("shared", tuple(b.nodes), 8, 8, channels=6)
    folded, _ = assert_fold_changes_nothing(graph, random_weights(graph, np.random.default_rng(0)))
    kinds = {node.name: type(node.op).__name__ for node in folded}
    assert kinds["norm"] == "Affine"
    assert "shift" not in kinds


@pytest.mark.parametrize("normalization", ["none", "relu", "softmax"])
def test_weighted_sums_fold_to_plain_numbers(normalization: str) -> None:
    b = GraphBuilder(6)
    x, y = b.add("a", Conv(6), Graph.INPUT), b.add("b", Conv(6), Graph.INPUT)
    x = b.add("sum", Add("leaky", "per_channel", normalization), x, y, x)  # type: ignore[arg-type]
    b.add("yolo", Detect(((1.0, 1.0),), (0,), 1), x)
    graph = Graph("weighted", tuple(b.nodes), 8, 8, channels=6)
    folded, _ = assert_fold_changes_nothing(graph, random_weights(graph, np.random.default_rng(0)))
    assert folded["sum"].op == Add("leaky", "per_channel", "none")


@pytest.mark.parametrize(
    "name", ["yolov4-tiny", *(pytest.param(n, marks=pytest.mark.slow) for n in ("yolov4-csp", "yolov4-p5"))]
)
def test_zoo_networks_fold(name: str) -> None:
    graph = lower(ZOO[name])
    graph = graph.with_size(2 * graph.max_stride, 2 * graph.max_stride)
    weights = random_weights(graph, np.random.default_rng(0))
    folded, new = assert_fold_changes_nothing(graph, weights, tolerance=1e-4)
    assert not any(isinstance(node.op, BatchNorm) for node in folded)
    norms = sum(2 * node.op.filters for node in graph if isinstance(node.op, Conv) and node.op.norm)
    biases = sum(node.op.filters for node in graph if isinstance(node.op, Conv) and node.op.norm)
    assert count(new) == count(weights) - norms + biases


def test_wrong_weights_are_refused() -> None:
    graph = CHAINS["plain"]
    with pytest.raises(CheckpointError, match="is missing"):
        fold(graph, {})


def spp(kernels: tuple[int, ...], kind: str = "max", stride: int = 1, extra: int = 0) -> Graph:
    """Pools side by side over the image; ``extra`` is padding beyond what keeps the size."""
    b = GraphBuilder(6)
    pools = [
        b.add(f"pool{index}", Pool(k, stride, k - 1 + extra, kind), Graph.INPUT)  # type: ignore[arg-type]
        for index, k in enumerate(kernels)
    ]
    x = b.add("join", Concat(), *pools)
    b.add("yolo", Detect(((1.0, 1.0),), (0,), b.channels[x] - 5), x)
    return Graph("spp", tuple(b.nodes), 16, 16, channels=6)


@pytest.mark.parametrize("kernels", [(5, 9, 13), (13, 9, 5), (9, 5, 13), (5,), (3, 7), (5, 5, 9)])
@pytest.mark.parametrize("size", [(16, 16), (7, 9), (3, 2)])
def test_cascade_is_exactly_equal(kernels: tuple[int, ...], size: tuple[int, int]) -> None:
    graph = spp(kernels)
    cascade = cascade_pools(graph)
    images = np.random.default_rng(0).normal(-5, 1, (2, 6, *size))
    (expected,), (found,) = maps(graph, {}, images), maps(cascade, {}, images)
    assert np.array_equal(found, expected)
    assert sorted(node.name for node in cascade) == sorted(node.name for node in graph)
    work = [sum(node.op.kernel for node in g if isinstance(node.op, Pool)) for g in (graph, cascade)]
    assert work[1] < work[0] or len(kernels) == 1


@pytest.mark.parametrize("graph", [spp((4, 6)), spp((5, 9), "average"), spp((5, 9), stride=2), spp((5, 9), extra=2)])
def test_other_pools_are_left_alone(graph: Graph) -> None:
    assert cascade_pools(graph) == graph
