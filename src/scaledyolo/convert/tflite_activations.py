"""How each activation is written for TensorFlow Lite: by one operator where there is one, else by arithmetic.

The formulas are those of :mod:`scaledyolo.convert.onnx_activations`, Mish in its exact algebraic form among them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Protocol

from scaledyolo.arch.ops import LEAKY_SLOPE, Activation, Shape

# What a convolution computes on its way out: values of the schema's ActivationFunctionType.
FUSED: Final[Mapping[str, int]] = {"relu": 1, "relu6": 3}

_MISH_CUT: Final = 20.0  # above, the ratio is 1 in float32
_SELU_ALPHA, _SELU_GAMMA = 1.6732632423543772, 1.0507009873554805  # Klambauer et al. 2017, equation 2


class Emitter(Protocol):
    """What writing an activation needs of the writer."""

    def emit(self, kind: str, inputs: Sequence[int], name: str, shape: Shape, options: str = "", **values: Any) -> int:
        """Append an operator and return its output."""

    def floats(self, values: Any, name: str) -> int:
        """A float32 constant."""


def write_activation(writer: Emitter, activation: Activation, source: int, name: str, shape: Shape) -> int:
    """Append what applies ``activation`` to a value and return the result, which is called ``name``."""
    if activation == "linear":
        return source
    if activation in _OPERATORS:
        kind, options, values = _OPERATORS[activation]
        return writer.emit(kind, [source], name, shape, options, **values)
    return _FORMULAS[activation](_Arithmetic(writer, name, shape), source)


class _Arithmetic:
    """Operators over values of one shape."""

    def __init__(self, writer: Emitter, name: str, shape: Shape) -> None:
        self._writer, self._name, self._shape, self._count = writer, name, shape, 0

    def _emit(self, kind: str, inputs: Sequence[int], options: str, last: bool) -> int:
        self._count += 1
        name = self._name if last else f"{self._name}.step{self._count}"
        return self._writer.emit(kind, inputs, name, self._shape, options)

    def _operand(self, value: int | float) -> int:
        return self._writer.floats([value], f"constant.{value}") if isinstance(value, float) else value

    def binary(self, kind: str, first: int, second: int | float, *, last: bool = False) -> int:
        """An operator of two values, or of a value and a number, which is a float."""
        return self._emit(kind, [first, self._operand(second)], _BINARY[kind], last)

    def unary(self, kind: str, value: int) -> int:
        """An operator of one value."""
        return self._emit(kind, [value], _UNARY[kind], False)


_BINARY: Final = {
    "ADD": "AddOptions",
    "MUL": "MulOptions",
    "DIV": "DivOptions",
    "MINIMUM": "MaximumMinimumOptions",
    "MAXIMUM": "MaximumMinimumOptions",
}
_UNARY: Final = {"EXP": "ExpOptions", "LOGISTIC": ""}


def _mish(a: _Arithmetic, source: int) -> int:
    """With ``n = eˣ`` and ``w = n(n + 2)``: ``x·w / (w + 2)``."""
    power = a.unary("EXP", a.binary("MINIMUM", source, _MISH_CUT))
    numerator = a.binary("MUL", power, a.binary("ADD", power, 2.0))
    ratio = a.binary("DIV", numerator, a.binary("ADD", numerator, 2.0))
    return a.binary("MUL", source, ratio, last=True)


def _swish(a: _Arithmetic, source: int) -> int:
    return a.binary("MUL", source, a.unary("LOGISTIC", source), last=True)


def _hard_mish(a: _Arithmetic, source: int) -> int:
    """x times a ramp from 0 at -2 to 1 at 0."""
    ramp = a.binary("ADD", a.binary("MUL", source, 0.5), 1.0)
    return a.binary("MUL", source, a.binary("MINIMUM", a.binary("MAXIMUM", ramp, 0.0), 1.0), last=True)


def _selu(a: _Arithmetic, source: int) -> int:
    """γ·max(x, 0) + γα·(e^min(x, 0) - 1)."""
    above = a.binary("MUL", a.binary("MAXIMUM", source, 0.0), _SELU_GAMMA)
    power = a.unary("EXP", a.binary("MINIMUM", source, 0.0))
    below = a.binary("ADD", a.binary("MUL", power, _SELU_GAMMA * _SELU_ALPHA), -_SELU_GAMMA * _SELU_ALPHA)
    return a.binary("ADD", above, below, last=True)


_OPERATORS: Final[Mapping[str, tuple[str, str, Mapping[str, Any]]]] = {
    "leaky": ("LEAKY_RELU", "LeakyReluOptions", {"alpha": LEAKY_SLOPE}),
    "relu": ("RELU", "", {}),
    "relu6": ("RELU6", "", {}),
    "logistic": ("LOGISTIC", "", {}),
    "tanh": ("TANH", "", {}),
    "elu": ("ELU", "", {}),
    "gelu": ("GELU", "GeluOptions", {"approximate": True}),
}
_FORMULAS: Final[Mapping[str, Callable[[_Arithmetic, int], int]]] = {
    "mish": _mish,
    "swish": _swish,
    "hard_mish": _hard_mish,
    "selu": _selu,
}
