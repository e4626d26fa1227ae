"""Which tensor of a foreign checkpoint becomes which parameter of a graph, and the strict comparison of the two."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from scaledyolo.arch.graph import Graph
from scaledyolo.arch.ops import LEAKY_SLOPE, Activation
from scaledyolo.arch.spec import ModelSpec
from scaledyolo.convert.torch_pickle import ForeignCheckpoint
from scaledyolo.errors import ConversionError
from scaledyolo.weights import Weights

Tensors = Mapping[str, NDArray[Any]]

# Class names of activation modules in pickled networks, of torch and of the mish packages.
_ACTIVATIONS: Mapping[str, Activation] = {
    "Mish": "mish",
    "MishCuda": "mish",
    "MemoryEfficientMish": "mish",
    "SiLU": "swish",
    "Swish": "swish",
    "MemoryEfficientSwish": "swish",
    "LeakyReLU": "leaky",
    "ReLU": "relu",
}
# Step counters have no use after training; anchors are read where decoding needs them, they are no weights.
_NO_WEIGHTS = ("num_batches_tracked", "anchors", "anchor_grid")


@dataclass(frozen=True)
class KeyMap:
    """A network and, for each of its parameters, the name of the tensor in the foreign file.

    Attributes:
        graph: the network.
        keys: source tensor by name of ``graph.parameters``.
        spec: the spec of the graph where it has one.
    """

    graph: Graph
    keys: Mapping[str, str]
    spec: ModelSpec | None = None

    def difference(self, tensors: Tensors) -> str:
        """The first tensor that is missing, of another shape or left over, as a clause; empty where all agree."""
        for name, key in self.keys.items():
            shape = self.graph.parameters[name]
            if key not in tensors:
                return f"tensor {key!r} of shape {shape} (for {name!r}) is missing"
            found = tuple(tensors[key].shape)
            if found != shape and (len(shape) > 1 or _without_ones(found) != _without_ones(shape)):
                return f"tensor {key!r} has shape {found}, but {name!r} needs {shape}"
            if not np.issubdtype(tensors[key].dtype, np.floating):
                return f"tensor {key!r} holds {tensors[key].dtype} numbers instead of floating-point ones"
        left = sorted(set(tensors) - set(self.keys.values()))
        if left:
            return f"tensor {left[0]!r} of shape {tuple(tensors[left[0]].shape)} has no place in the network"
        return ""

    def num_matching(self, tensors: Tensors) -> int:
        """How many parameters have a tensor of their size, to tell the nearest of several networks."""
        parameters = self.graph.parameters
        return sum(key in tensors and tensors[key].size == prod(parameters[name]) for name, key in self.keys.items())

    def take(self, tensors: Tensors) -> Weights:
        """The weights of the graph as float32 copies, from tensors that :meth:`difference` has found to agree."""
        return {
            name: np.array(tensors[self.keys[name]], np.float32).reshape(shape)
            for name, shape in self.graph.parameters.items()
        }


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    """Vectors come as (C,), (1, C, 1, 1) or (C, 1, 1)."""
    return tuple(extent for extent in shape if extent != 1)


def weight_tensors(checkpoint: ForeignCheckpoint) -> Tensors:
    """The tensors that a network has to take, without the prefix of torch's parallel wrappers."""
    tensors = _unwrapped(checkpoint)
    return {key: value for key, value in tensors.items() if key.rpartition(".")[2] not in _NO_WEIGHTS}


def anchor_tensor(checkpoint: ForeignCheckpoint, kind: str) -> NDArray[Any] | None:
    """The only tensor whose last name is ``kind`` ("anchors" or "anchor_grid"); None where there is none."""
    found = [value for key, value in _unwrapped(checkpoint).items() if key.rpartition(".")[2] == kind]
    return found[0] if len(found) == 1 else None


def _unwrapped(checkpoint: ForeignCheckpoint) -> Tensors:
    tensors = checkpoint.state_dict
    wrapped = all(key.startswith("module.") for key in tensors)
    return {key.removeprefix("module."): value for key, value in tensors.items()} if wrapped else tensors


def recorded_activation(checkpoint: ForeignCheckpoint) -> Activation | None:
    """The one activation of a pickled network; None for a state dict, which does not say it, or where several occur.

    Raises:
        ConversionError: an activation is none of the family, or its leaky rectifiers have another slope.
    """
    found: set[Activation] = set()
    for path, module in checkpoint.modules.items():
        kind = module.kind.rpartition(".")[2]
        if kind in _ACTIVATIONS:
            found.add(_ACTIVATIONS[kind])
        elif module.kind.startswith("torch.nn.modules.activation."):
            raise ConversionError(f"its module {path!r} is a {kind}, which no network of the family has")
        slope = module.attributes.get("negative_slope", LEAKY_SLOPE)
        if kind == "LeakyReLU" and slope != LEAKY_SLOPE:
            raise ConversionError(f"its module {path!r} has slope {slope}, but leaky networks here have {LEAKY_SLOPE}")
    return found.pop() if len(found) == 1 else None


def recorded_norm_eps(checkpoint: ForeignCheckpoint) -> float | None:
    """Epsilon of the batch normalisations of a pickled network; None for a state dict, which does not say it.

    Raises:
        ConversionError: they differ among each other.
    """
    found = {
        module.attributes["eps"]
        for module in checkpoint.modules.values()
        if "BatchNorm" in module.kind and isinstance(module.attributes.get("eps"), float)
    }
    if len(found) > 1:
        raise ConversionError(
            f"its batch normalisations have different epsilons ({', '.join(map(str, sorted(found)))}), "
            "but a network here has one"
        )
    return found.pop() if found else None


def recorded_names(checkpoint: ForeignCheckpoint, num_classes: int) -> tuple[str, ...] | None:
    """Class names that the file carries; None where it has none or another number of them."""
    for values in (checkpoint.attributes.get("names"), checkpoint.record.get("names")):
        listed = list(values.values()) if isinstance(values, dict) else values
        if not isinstance(listed, (list, tuple)) or len(listed) != num_classes:
            continue
        if all(isinstance(name, str) and name for name in listed):
            return tuple(listed)
    return None
