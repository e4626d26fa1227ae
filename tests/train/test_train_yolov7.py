"""YOLOv7's networks under the loss of the family: the deploy form, with both branches of its RepConv."""

from __future__ import annotations

from fractions import Fraction

import pytest
import torch

from scaledyolo.arch.lower import lower
from scaledyolo.arch.scaling import scaled
from scaledyolo.arch.zoo import find
from scaledyolo.convert.fold import fold
from scaledyolo.errors import UsageError
from scaledyolo.net.initialise import initialise, prior_bias
from scaledyolo.net.network import Network
from scaledyolo.train.loss import detection_loss, loss_gains
from scaledyolo.train.manifest import Run
from scaledyolo.train.recipe import Assignment, Loss
from scaledyolo.train.settings import Settings

SIDE = 128  # pixels
# Image, class, and centre and size in shares of the image.
TARGETS = torch.tensor([[0, 1, 0.4, 0.5, 0.3, 0.4], [1, 0, 0.6, 0.3, 0.2, 0.2], [1, 2, 0.5, 0.5, 0.9, 0.8]])


def network_of(name: str) -> Network:
    spec = scaled(find(name).with_classes(3), width=Fraction(1, 8), multiple=1)
    network = Network(lower(spec).with_size(SIDE, SIDE), logits=True)
    initialise(network, torch.Generator().manual_seed(0))
    return network


@pytest.mark.parametrize("name", ["yolov7-tiny", "yolov7", "yolov7-training", "yolov7-w6", "yolov7-e6e"])
def test_one_batch_is_learnt(name: str) -> None:
    network = network_of(name)
    graph = network.graph
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    gains = loss_gains(Loss(), len(graph.detects), graph.num_classes)
    optimizer = torch.optim.Adam(network.parameters(), lr=5e-3)
    losses = []
    for _ in range(14):
        parts = detection_loss(network(images), TARGETS, graph.detects, graph.strides, Loss(), Assignment())
        loss = parts.weighted(gains).total()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        untouched = [key for key, value in network.named_parameters() if value.grad is None or not value.grad.any()]
        assert not untouched
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.8 * losses[0]


def test_a_trained_rep_convolution_folds() -> None:
    """After a step in training mode, evaluation of both branches equals the one convolution that they fold into."""
    network = network_of("yolov7-training")
    images = torch.rand(2, 3, SIDE, SIDE, generator=torch.Generator().manual_seed(1))
    network(images)  # moves the running statistics
    network.eval()
    folded_graph, weights = fold(network.graph, network.weights())
    assert [type(node.op).__name__ for node in folded_graph if ".rep." in node.name] == ["Conv"] * 3
    folded = Network(folded_graph).eval()
    folded.load(weights)
    with torch.no_grad():
        for ours, theirs in zip(folded(images), network(images), strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)


def test_predictions_start_with_the_prior_behind_implicit_vectors() -> None:
    network = network_of("yolov7-training")
    bias = network.get_parameter("head.p4.predict.bias").detach().view(3, 8)
    expected = prior_bias(16, 3).objectness
    assert (bias[:, 4] - expected).abs().max() < 0.2  # the bias itself starts within one over the root of its fan-in


def test_auxiliary_heads_are_refused() -> None:
    with pytest.raises(UsageError, match=r"yolov7-w6-training: auxiliary heads .* train yolov7-w6, which has none"):
        Run(find("yolov7-w6-training"), (), Settings())
