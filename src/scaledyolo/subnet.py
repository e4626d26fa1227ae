"""A once-for-all subnet as a model: its weights, cut out of those of the large network."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np

from scaledyolo.arch.subnet import JOIN, InputChannels, Subnet, cut
from scaledyolo.checkpoint import Checkpoint
from scaledyolo.errors import CheckpointError
from scaledyolo.weights import Array, Weights, check_weights

# Topics of the provenance of a checkpoint: what was cut out of a larger one, and which subnets learned along with it.
SUBNET = "subnet"
TRAINED_SUBNETS = "trained_subnets"


def subnet_checkpoint(checkpoint: Checkpoint, names: str) -> Checkpoint:
    """The model of a subnet, ready to detect, to be saved, exported or trained further.

    Args:
        checkpoint: of the large network; left as it is, unchanged tensors are shared.
        names: of the subnet, see :func:`scaledyolo.arch.subnet.cut`; several cuts are joined by ``+``.

    Raises:
        UsageError: there is no such subnet; the nearest is named.
        SpecError: the network cannot be cut there.
    """
    for name in names.split(JOIN):
        checkpoint = _one_cut(checkpoint, name)
    return checkpoint


def same_part(model: Checkpoint, provenance: Mapping[str, str]) -> Checkpoint:
    """The part of ``model`` that a file with this provenance was made from: all of it, or the subnet it names.

    Raises:
        UsageError: the model does not have that part.
    """
    wanted, present = provenance.get(SUBNET, ""), model.provenance.get(SUBNET, "")
    if not wanted or wanted == present:
        return model
    return subnet_checkpoint(model, wanted.removeprefix(f"{present}{JOIN}") if present else wanted)


def _one_cut(checkpoint: Checkpoint, name: str) -> Checkpoint:
    subnet = cut(checkpoint.graph, name)
    spec = checkpoint.spec
    if spec is not None:
        spec = replace(spec, subnet=f"{spec.subnet}{JOIN}{name}" if spec.subnet else name)
    before = checkpoint.provenance.get(SUBNET)
    return replace(
        checkpoint,
        graph=subnet.graph,
        weights=subnet_weights(subnet, checkpoint.weights),
        spec=spec,
        provenance={**checkpoint.provenance, SUBNET: f"{before}{JOIN}{name}" if before else name},
    )


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
