"""Start from other weights: every tensor that fits by name and shape is taken, the rest stays fresh."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from scaledyolo.arch.lower import lower
from scaledyolo.arch.spec import ModelSpec
from scaledyolo.checkpoint import Checkpoint
from scaledyolo.default_model import DEFAULT, has_default_model
from scaledyolo.errors import CheckpointError
from scaledyolo.model import load_model
from scaledyolo.net.network import Network
from scaledyolo.train.recipe import Recipe
from scaledyolo.weights import Weights

SCRATCH = "scratch"  # in place of a checkpoint: begin with random weights
# Of another network a few tensors fit by chance; a share of the values below this is a mistake, not a start.
LEAST_SHARE = 0.01
# The same network with other classes differs in its predictions alone, which are a hundredth of its values.
SAME_NETWORK_SHARE = 0.9


@dataclass(frozen=True)
class Transfer:
    """What was taken over, by tensor name."""

    source: str
    taken: int  # tensors
    fresh: tuple[str, ...]  # tensors of the network that stay as initialised
    unused: tuple[str, ...]  # tensors of the source that found no place
    values_taken: int
    values: int

    def __str__(self) -> str:
        share = 100 * self.values_taken / max(self.values, 1)
        text = f"took {self.taken} tensors ({share:.1f} % of the values) from {self.source}"
        return text + (f"; fresh: {_shortened(self.fresh)}" if self.fresh else "")


def _shortened(names: tuple[str, ...], shown: int = 6) -> str:
    more = f" and {len(names) - shown} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more


def default_start(recipe: Recipe, spec: ModelSpec) -> Checkpoint | None:
    """The model that comes with the package, where a training for which no weights are named begins with it.

    It does where the recipe wants it (``pretrained``), the model is there and the network is the same but for its
    classes.
    """
    if not recipe.pretrained or not has_default_model():
        return None
    source, shapes = load_model(DEFAULT), lower(spec).parameters
    values = sum(math.prod(shape) for shape in shapes.values())
    fitting = sum(value.size for value in fitting_tensors(shapes, source).values())
    return source if fitting >= SAME_NETWORK_SHARE * values else None


def fitting_tensors(shapes: Mapping[str, tuple[int, ...]], source: Checkpoint) -> Weights:
    """The tensors of a checkpoint that a network of these names and shapes has too."""
    return {name: value for name, value in source.weights.items() if shapes.get(name) == value.shape}


def transfer(network: Network, source: Checkpoint) -> Transfer:
    """Copy every tensor of ``source`` whose name and shape the network has; another class count drops the predictions.

    Raises:
        CheckpointError: hardly a tensor fits: the checkpoint is of another network.
    """
    state = network.state_dict()
    fitting = fitting_tensors({name: tuple(value.shape) for name, value in state.items()}, source)
    taken, values = sum(value.size for value in fitting.values()), sum(value.numel() for value in state.values())
    if taken < LEAST_SHARE * values:
        raise CheckpointError(
            f"only {100 * taken / values:.1f} % of the values of {network.graph.name} are found in "
            f"{source.graph.name}; start from a checkpoint of the same network, or from scratch"
        )
    with torch.no_grad():
        for name, value in fitting.items():
            state[name].copy_(torch.from_numpy(value))
    return Transfer(
        source=source.graph.name,
        taken=len(fitting),
        fresh=tuple(name for name in state if name not in fitting),
        unused=tuple(name for name in source.weights if name not in fitting),
        values_taken=taken,
        values=values,
    )
