"""Fresh weights: golden prior biases, bounds of the convolutions, reproducibility."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from scaledyolo.arch.graph import Graph, GraphBuilder
from scaledyolo.arch.lower import lower
from scaledyolo.arch.ops import Conv, Detect, Implicit
from scaledyolo.arch.zoo import ZOO
from scaledyolo.errors import SpecError, UsageError
from scaledyolo.net.initialise import initialise, prior_bias
from scaledyolo.net.network import Network


@pytest.mark.parametrize(
    ("stride", "objectness"), [(8, -6.684612), (16, -5.298317), (32, -3.912023), (64, -2.525729), (128, -1.139434)]
)
def test_published_objectness_priors(stride: int, objectness: float) -> None:
    assert prior_bias(stride, 80).objectness == pytest.approx(objectness, abs=5e-7)


@pytest.mark.parametrize(("num_classes", "term"), [(80, -4.880400), (20, -3.455790), (1, 4.094345)])
def test_published_class_priors(num_classes: int, term: float) -> None:
    assert prior_bias(8, num_classes).class_ == pytest.approx((term,) * num_classes, abs=5e-6)


def test_class_priors_by_frequency() -> None:
    assert prior_bias(8, 3, [1, 2, 1]).class_ == pytest.approx((math.log(0.25), math.log(0.5), math.log(0.25)))
    assert prior_bias(8, 2, [0, 9]).class_[0] == pytest.approx(math.log(0.5 / 9))
    with pytest.raises(UsageError, match="3 classes"):
        prior_bias(8, 3, [1, 2])


def test_heads_get_the_prior_on_top_of_the_default() -> None:
    network = Network(lower(ZOO["yolov4-tiny"]))
    initialise(network, torch.Generator().manual_seed(0))
    for head, stride in zip(network.graph.heads, network.graph.strides, strict=True):
        bias = network.get_parameter(f"{head.inputs[0]}.bias").detach().reshape(3, 85)
        bound = network.get_parameter(f"{head.inputs[0]}.weight")[0].numel() ** -0.5
        expected = torch.tensor([0, 0, 0, 0, math.log(8 / (640 / stride) ** 2)] + [math.log(0.6 / 79.01)] * 80)
        assert (bias - expected).abs().max() <= bound + 1e-6
        assert (bias - expected).std() == pytest.approx(bound / 3**0.5, rel=0.2)


def test_initialisation_is_reproducible_and_bounded() -> None:
    networks = [Network(lower(ZOO["yolov4-tiny"])) for _ in range(2)]
    for network in networks:
        initialise(network, torch.Generator().manual_seed(7))
    first, second = (network.weights() for network in networks)
    for name, array in first.items():
        assert np.array_equal(array, second[name]), name
        if name.endswith(".weight") and array.ndim == 4:
            bound = np.prod(array.shape[1:]) ** -0.5
            assert np.abs(array).max() <= bound
            assert array.std() == pytest.approx(bound / 3**0.5, rel=0.1)
        elif name.endswith(("norm.weight", "running_var")):
            assert (array == 1).all()
        elif name.endswith(("norm.bias", "running_mean")):
            assert (array == 0).all()


def test_prior_finds_the_convolution_behind_an_implicit_vector() -> None:
    b = GraphBuilder()
    shifted = b.add("shift", Implicit("add"), Graph.INPUT)
    x = b.add("conv", Conv(6, norm=False, bias=True), shifted)
    x = b.add("gain", Implicit("multiply"), x)
    b.add("yolo", Detect(((1.0, 1.0),), (0,), 1), x)
    network = Network(Graph("implicit", tuple(b.nodes), 8, 8))
    initialise(network, torch.Generator().manual_seed(0))
    weights = network.weights()
    assert weights["conv.bias"][4] == pytest.approx(math.log(8 / 640**2), abs=1.0)
    assert np.abs(weights["shift.implicit"]).max() < 0.2
    assert np.abs(weights["gain.implicit"] - 1).max() < 0.2


def test_head_without_bias_is_refused() -> None:
    b = GraphBuilder()
    x = b.add("conv", Conv(6), Graph.INPUT)
    b.add("yolo", Detect(((1.0, 1.0),), (0,), 1), x)
    with pytest.raises(SpecError, match="'yolo' does not read a convolution with a bias"):
        initialise(Network(Graph("bare", tuple(b.nodes), 8, 8)))
