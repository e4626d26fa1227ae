"""The text of ncnn's ``.param`` file: a magic number, how many layers and values there are, a layer a line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Final

import numpy as np

_MAGIC: Final = 7767517
_ARRAY: Final = -23300  # an array stands under this minus its key

Value = int | float | Sequence[int] | Sequence[float]


@dataclass(frozen=True)
class Layer:
    """One layer: what it reads and writes, and its parameters by ncnn's ids."""

    kind: str
    name: str
    inputs: list[str]
    outputs: list[str]
    values: Mapping[int, Value]

    def line(self) -> str:
        """As it stands in the file."""
        words = [self.kind, self.name, str(len(self.inputs)), str(len(self.outputs)), *self.inputs, *self.outputs]
        for key, value in self.values.items():
            if isinstance(value, Sequence):
                words.append(f"{_ARRAY - key}={','.join([str(len(value)), *map(_number, value)])}")
            else:
                words.append(f"{key}={_number(value)}")
        return " ".join(words)


def _number(value: float) -> str:
    """A whole number without a point is an integer to ncnn, so that a float always has one."""
    if isinstance(value, (int, np.integer)):
        return str(int(value))
    text = f"{value:.9g}"
    return text if any(mark in text for mark in ".en") else f"{text}.0"


def param_text(layers: Sequence[Layer]) -> str:
    """The file of layers in execution order; where several read a value, copies are inserted."""
    layers = _with_splits(layers)
    blobs = sum(len(layer.outputs) for layer in layers)
    return "\n".join([str(_MAGIC), f"{len(layers)} {blobs}", *(layer.line() for layer in layers)]) + "\n"


def _with_splits(layers: Sequence[Layer]) -> list[Layer]:
    """Every value read once: what several layers read is copied by a ``Split`` behind its producer."""
    readers = Counter(name for layer in layers for name in layer.inputs)
    copies = {name: iter([f"{name}.copy{i}" for i in range(count)]) for name, count in readers.items() if count > 1}
    result = []
    for layer in layers:
        inputs = [next(copies[name]) if name in copies else name for name in layer.inputs]
        result.append(replace(layer, inputs=inputs))
        for name in layer.outputs:
            if readers[name] > 1:
                outputs = [f"{name}.copy{index}" for index in range(readers[name])]
                result.append(Layer("Split", f"{name}.split", [name], outputs, {}))
    return result
