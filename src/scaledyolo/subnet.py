"""The weights of a once-for-all subnet, cut out of those of the large network."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from scaledyolo.arch.subnet import InputChannels, Subnet
from scaledyolo.errors import CheckpointError
from scaledyolo.weights import Array, Weights, check_weights


def subnet_weights(subnet: Subnet, weights: Mapping[str, Array]) -> Weights:
    """Weights of ``subnet`` from those of the network it was taken from; unchanged tensors are shared, not copied.

    Args:
        subnet: what :func:`scaledyolo.arch.subnet.without_head` or ``without_stage`` returned.
        weights: those of the large network, float32; left as they are.

    Raises:
        CheckpointError: the weights are not those of the network that the subnet was taken from.
    """
    changes = {change.tensor: change for change in subnet.changes}
    chosen: Weights = {}
    for name in subnet.graph.parameters:
        if name not in weights:
            raise CheckpointError(f"{subnet.graph.name}: the large network's weights have no tensor {name!r}")
        chosen[name] = _changed(weights[name], changes[name]) if name in changes else weights[name]
    check_weights(subnet.graph, chosen)
    return chosen


def _changed(weight: Array, change: InputChannels) -> Array:
    """(filters, channels, k, k) with the lost input channels taken out or set to zero."""
    if weight.ndim != 4 or weight.shape[1] < change.kept[-1][1]:
        raise CheckpointError(
            f"tensor {change.tensor!r} should have at least {change.kept[-1][1]} input channels, "
            f"the weights have shape {tuple(weight.shape)}"
        )
    if change.fill == "slice":
        return np.concatenate([weight[:, start:stop] for start, stop in change.kept], axis=1)
    zeroed = np.zeros_like(weight)
    for start, stop in change.kept:
        zeroed[:, start:stop] = weight[:, start:stop]
    return zeroed
