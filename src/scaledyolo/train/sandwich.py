"""Once-for-all training: the smaller networks inside a network learn along with it (recipe value ``subnets``).

The sandwich rule of universally slimmable networks (arXiv 1903.05134): each batch trains the whole network, the
smallest of the subnets, and one drawn from those in between. They share their weights, see the same batch under the
same loss, and the step follows the mean of their gradients, so that learning rates mean what they mean without subnets.

Subnets share the normalisations too. They are computed with the running statistics of the whole network, as they will
be once they are cut out, and leave these as they are: statistics of their own would be lost in a cut, and statistics
that they wrote to would fit none of the networks. They join when the warm-up is over and the statistics mean something.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call

from scaledyolo.arch.cost import cost
from scaledyolo.arch.graph import Graph
from scaledyolo.arch.subnet import InputChannels, cut
from scaledyolo.net.network import Network
from scaledyolo.train.recipe import Loss


class InnerNetwork:
    """A subnet that computes with the parameters of the network around it, as they are at that moment.

    Args:
        graph: of the whole network.
        name: of the subnet, see :func:`scaledyolo.arch.subnet.cut`.

    Raises:
        UsageError: the network has no such subnet.
        SpecError: it cannot be cut there.
    """

    def __init__(self, graph: Graph, name: str) -> None:
        subnet = cut(graph, name)
        self.name, self.graph = name, subnet.graph
        self._changes = subnet.changes
        with torch.device("meta"):  # a body without values of its own
            self._body = Network(subnet.graph, logits=True).eval()

    def __call__(self, network: nn.Module, images: Tensor) -> list[Tensor]:
        """Raw maps of the subnet's heads; gradients flow to the parameters of ``network``, which does not change.

        Args:
            network: the whole network.
            images: (batch, 3, height, width) in [0, 1].
        """
        values = dict(network.named_parameters()) | dict(network.named_buffers())
        chosen = {name: values[name] for name in self.graph.parameters}
        for change in self._changes:
            chosen[change.tensor] = _changed(chosen[change.tensor], change)
        maps: list[Tensor] = functional_call(self._body, chosen, (images,), strict=True)
        return maps

    def loss_config(self, config: Loss) -> Loss:
        """The loss of the whole network for the levels that are left, the finest ones."""
        return replace(config, objectness_balance=config.objectness_balance[: len(self.graph.heads)])


def _changed(weight: Tensor, change: InputChannels) -> Tensor:
    """(filters, channels, k, k) without the lost input channels, or with zeros in their place."""
    if change.fill == "slice":
        return torch.cat([weight[:, start:stop] for start, stop in change.kept], dim=1)
    mask = weight.new_zeros((1, weight.shape[1], 1, 1))
    for start, stop in change.kept:
        mask[:, start:stop] = 1
    return weight * mask


class Sandwich:
    """The subnets of a network that are trained, and whose turn it is.

    Args:
        graph: of the whole network.
        names: of the subnets, in any order; none for plain training.
        seed: of the training; the draw follows from it and the number of the step, so a resumed run repeats it.
    """

    def __init__(self, graph: Graph, names: Sequence[str], seed: int) -> None:
        inner = (InnerNetwork(graph, name) for name in dict.fromkeys(names))
        self.networks = tuple(sorted(inner, key=lambda network: -cost(network.graph).macs))
        self._seed = seed

    def of_step(self, step: int) -> tuple[InnerNetwork, ...]:
        """Those that batch number ``step`` of the training trains besides the whole network, the smallest last."""
        return tuple(self.networks[index] for index in sandwich_indices(len(self.networks), self._seed, step))


def sandwich_indices(count: int, seed: int, step: int) -> tuple[int, ...]:
    """The places, in an order from large to small, of the smallest of ``count`` and of one drawn from the others."""
    if count < 2:
        return tuple(range(count))
    drawn = int(np.random.default_rng((seed, step)).integers(count - 1))
    return drawn, count - 1
