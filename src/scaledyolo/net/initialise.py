"""Weights before training: torch's default for convolutions, and prediction biases that expect few objects."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Final, NamedTuple

import torch
from torch import Tensor, nn

from scaledyolo.arch.graph import Graph, Node
from scaledyolo.arch.ops import Activate, Conv, Implicit
from scaledyolo.errors import SpecError, UsageError
from scaledyolo.net.layers import ChannelAffine, Convolution, ImplicitVector, WeightedSum
from scaledyolo.net.network import Network

# The prior counts objects on an image of this many pixels a side, whatever size is trained.
PRIOR_SIZE: Final = 640

# Standard deviation of fresh implicit vectors around their neutral value (YOLOR).
_IMPLICIT_DEVIATION: Final = 0.02


class PriorBias(NamedTuple):
    """What to add to the biases of one anchor of a prediction convolution; the four box channels get nothing."""

    objectness: float
    class_: tuple[float, ...]  # one for each class


def prior_bias(stride: int, num_classes: int, class_counts: Sequence[int] | None = None) -> PriorBias:
    """What to add to the biases of a prediction convolution, so that training starts from plausible scores.

    Args:
        stride: input pixels per cell of the level: eight objects are expected on an image of 640 pixels.
        num_classes: number of classes.
        class_counts: objects of each class in the training set, for class terms by frequency.

    Raises:
        UsageError: the counts are not one for each class, or all are zero.

    Source: the initialisation of all PyTorch code bases of the family; RetinaNet 4.1 for the idea.
    """
    objectness = math.log(8 / (PRIOR_SIZE / stride) ** 2)
    if class_counts is None:
        return PriorBias(objectness, (math.log(0.6 / (num_classes - 0.99)),) * num_classes)
    if len(class_counts) != num_classes or sum(class_counts) <= 0:
        raise UsageError(f"prior_bias needs the number of objects of {num_classes} classes, got {list(class_counts)}")
    # A class without objects counts as half an object: its logarithm would be infinite.
    total = sum(class_counts)
    return PriorBias(objectness, tuple(math.log(max(count, 0.5) / total) for count in class_counts))


def initialise(
    network: Network, generator: torch.Generator | None = None, class_counts: Sequence[int] | None = None
) -> None:
    """Fill a network with fresh weights, in place.

    Convolutions are uniform in ±1/√fan_in, weights and biases alike (torch's default, Kaiming uniform with a = √5);
    normalisations are neutral; implicit vectors are normal around neutral; prediction biases get their prior on top,
    except those of YOLOv2's region heads, which never had one.

    Args:
        network: on any device; buffers are reset too.
        generator: source of randomness, on the CPU; torch's global one if None.
        class_counts: objects of each class in the training set, for class priors by frequency.

    Raises:
        SpecError: a head does not read a convolution with a bias.
        UsageError: see :func:`prior_bias`.
    """
    with torch.no_grad():
        for module in network.modules():
            _initialise_module(module, generator)
        for head, stride in zip(network.graph.heads, network.graph.strides, strict=True):
            detect = network.graph.head_op(head)
            if detect.decoding != "region":
                prior = prior_bias(stride, detect.num_classes, class_counts)
                _add_prior(_prediction_bias(network, head), prior, len(detect.mask))


def _initialise_module(module: nn.Module, generator: torch.Generator | None) -> None:
    if isinstance(module, Convolution):
        bound = module.weight[0].numel() ** -0.5
        for tensor in (module.weight, module.bias):
            if tensor is not None:
                tensor.copy_(torch.empty(tensor.shape).uniform_(-bound, bound, generator=generator))
    elif isinstance(module, nn.BatchNorm2d | nn.SyncBatchNorm):
        _reset_norm(module)
    elif isinstance(module, ImplicitVector):
        neutral = 0.0 if module.kind == "add" else 1.0
        fresh = torch.empty(module.implicit.shape).normal_(neutral, _IMPLICIT_DEVIATION, generator=generator)
        module.implicit.copy_(fresh)
    elif isinstance(module, WeightedSum):
        module.weights.fill_(1.0)
    elif isinstance(module, ChannelAffine):
        module.scale.fill_(1.0)
        module.bias.zero_()


def _reset_norm(module: nn.BatchNorm2d | nn.SyncBatchNorm) -> None:
    module.weight.fill_(1.0)
    module.bias.zero_()
    assert module.running_mean is not None
    assert module.running_var is not None
    module.running_mean.zero_()
    module.running_var.fill_(1.0)


def _prediction_bias(network: Network, head: Node) -> Tensor:
    """The bias of the convolution that predicts what ``head`` reads, seen through implicit vectors and activations."""
    graph = network.graph
    source = head.inputs[0]
    while source != Graph.INPUT and isinstance(graph[source].op, Implicit | Activate):
        source = graph[source].inputs[0]
    op = graph[source].op if source != Graph.INPUT else None
    if not isinstance(op, Conv) or not op.bias:
        raise SpecError(f"{graph.name}: head {head.name!r} does not read a convolution with a bias, but {source!r}")
    return network.get_parameter(f"{source}.bias")


def _add_prior(bias: Tensor, prior: PriorBias, num_anchors: int) -> None:
    """Add the prior to a bias of (anchors · (5 + classes)) values."""
    of_anchor = torch.tensor((0.0, 0.0, 0.0, 0.0, prior.objectness, *prior.class_))
    bias += of_anchor.repeat(num_anchors).to(bias)
