"""Weights as data: strict comparison, counting, and that random weights are well conditioned."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from scaledyolo.arch.graph import Graph
from scaledyolo.arch.lower import lower
from scaledyolo.arch.zoo import ZOO
from scaledyolo.errors import CheckpointError
from scaledyolo.net.network import Network
from scaledyolo.weights import check_weights, count, random_weights


@pytest.fixture(scope="module")
def graph() -> Graph:
    return lower(ZOO["yolov4-tiny"])


def test_random_weights_are_those_of_the_graph(graph: Graph) -> None:
    weights = random_weights(graph, np.random.default_rng(0))
    check_weights(graph, weights)
    assert list(weights) == list(graph.parameters)
    again = random_weights(graph, np.random.default_rng(0))
    assert all(np.array_equal(weights[name], again[name]) for name in weights)


def test_published_parameter_count(graph: Graph) -> None:
    weights = random_weights(graph, np.random.default_rng(0))
    buffers = sum(array.size for name, array in weights.items() if "running" in name)
    assert count(weights) == 6_056_606  # with batch-normalisation scale and shift, 80 classes
    assert count(weights, buffers=True) == count(weights) + buffers


@pytest.mark.parametrize(
    "name", ["yolov4-tiny", *(pytest.param(n, marks=pytest.mark.slow) for n in ("yolov4-csp", "yolov4-p6", "yolov3"))]
)
def test_activations_keep_their_magnitude(name: str) -> None:
    graph = lower(ZOO[name])
    network = Network(graph).eval()
    network.load(random_weights(graph, np.random.default_rng(0)))
    side = 2 * graph.max_stride
    with torch.inference_mode():
        for raw in network(torch.rand(1, 3, side, side)):
            assert 0.02 < raw.std() < 20


def test_differences_are_named(graph: Graph) -> None:
    weights = random_weights(graph, np.random.default_rng(0))
    name = next(iter(weights))
    shape = weights[name].shape
    with pytest.raises(CheckpointError, match=f"{name!r} of shape .* is missing"):
        check_weights(graph, {key: value for key, value in weights.items() if key != name})
    with pytest.raises(CheckpointError, match=r"should have shape .*, the weights have \(1,\)"):
        check_weights(graph, weights | {name: np.zeros(1, np.float32)})
    with pytest.raises(CheckpointError, match="should be float32, the weights have float64"):
        check_weights(graph, {**weights, name: np.zeros(shape)})
    with pytest.raises(CheckpointError, match="'surplus' of shape"):
        check_weights(graph, weights | {"surplus": np.zeros(3, np.float32)})
