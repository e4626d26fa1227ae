"""How each activation is written in ONNX: by one standard operator where there is one, else by arithmetic.

Mish is ``x·tanh(ln(1 + eˣ))``. Written with the operators Softplus and Tanh it is eight times slower in ONNX Runtime
than its algebraic form, which other engines run at least as fast. The forms below are exact:

* ``exact``: with ``n = eˣ`` and ``w = n(n + 2)``, ``mish = x·w / (w + 2)``. ``x`` is cut at 20 before the exponential;
  above, the ratio is 1 in float32. Relative error below 1e-6 everywhere, also for very negative ``x``.
* ``sigmoid``: with ``s = σ(x)`` and ``t = s(2 − s)``, ``mish = x·t / (2 − t)``: the same ratio divided by ``(1 + n)²``.
  No intermediate value exceeds 2, so float16 cannot overflow. Its error is that of the engine's sigmoid, which for
  very negative ``x`` is small in absolute, not in relative terms.
* ``native``: the operator Mish of opset 18, for tools that treat an activation as one thing: a quantiser must not
  round what lies inside the arithmetic, and OpenVINO computes the operator as part of the convolution before it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, Literal, Protocol

from scaledyolo.arch.ops import LEAKY_SLOPE, Activation

MishForm = Literal["exact", "sigmoid", "native"]
MISH_FORMS: Final = ("exact", "sigmoid", "native")

_MISH_CUT = 20.0
# Constants of self-normalising networks (Klambauer et al. 2017, equation 2).
_SELU_ALPHA, _SELU_GAMMA = 1.6732632423543772, 1.0507009873554805
# tanh approximation of GELU (Hendrycks and Gimpel 2016), the form of Darknet.
_GELU_CUBIC, _GELU_SCALE = 0.044715, 0.7978845608028654


class Emitter(Protocol):
    """What writing an activation needs of the writer."""

    def emit(self, kind: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        """Append one ONNX node and return its output."""

    def constant(self, values: float | Sequence[int], label: str) -> str:
        """Name of a constant."""


def write_activation(writer: Emitter, activation: Activation, source: str, output: str, mish: MishForm) -> None:
    """Append the nodes that apply ``activation`` to the value ``source`` and call the result ``output``."""
    if activation == "mish" and mish == "sigmoid":
        _mish_sigmoid(writer, source, output)
    elif activation == "mish" and mish == "native":
        writer.emit("Mish", [source], output)
    elif activation in _OPERATORS:
        kind, attributes = _OPERATORS[activation]
        writer.emit(kind, [source], output, **attributes)
    else:
        _FORMULAS[activation](writer, source, output)


def _mish_exact(writer: Emitter, source: str, output: str) -> None:
    two = writer.constant(2.0, "two")
    cut = writer.emit("Min", [source, writer.constant(_MISH_CUT, "cut")], f"{output}.cut")
    exponential = writer.emit("Exp", [cut], f"{output}.exp")
    plus_two = writer.emit("Add", [exponential, two], f"{output}.exp_plus_two")
    numerator = writer.emit("Mul", [exponential, plus_two], f"{output}.numerator")
    denominator = writer.emit("Add", [numerator, two], f"{output}.denominator")
    ratio = writer.emit("Div", [numerator, denominator], f"{output}.ratio")
    writer.emit("Mul", [source, ratio], output)


def _mish_sigmoid(writer: Emitter, source: str, output: str) -> None:
    two = writer.constant(2.0, "two")
    sigmoid = writer.emit("Sigmoid", [source], f"{output}.sigmoid")
    rest = writer.emit("Sub", [two, sigmoid], f"{output}.two_minus_sigmoid")
    numerator = writer.emit("Mul", [sigmoid, rest], f"{output}.numerator")
    denominator = writer.emit("Sub", [two, numerator], f"{output}.denominator")
    ratio = writer.emit("Div", [numerator, denominator], f"{output}.ratio")
    writer.emit("Mul", [source, ratio], output)


def _swish(writer: Emitter, source: str, output: str) -> None:
    writer.emit("Mul", [source, writer.emit("Sigmoid", [source], f"{output}.sigmoid")], output)


def _relu6(writer: Emitter, source: str, output: str) -> None:
    writer.emit("Clip", [source, writer.constant(0.0, "zero"), writer.constant(6.0, "six")], output)


def _hard_mish(writer: Emitter, source: str, output: str) -> None:
    """x above 0, x²/2 + x down to -2, 0 below: ``x`` times a ramp from 0 at -2 to 1 at 0."""
    writer.emit("Mul", [source, writer.emit("HardSigmoid", [source], f"{output}.ramp", alpha=0.5, beta=1.0)], output)


def _gelu(writer: Emitter, source: str, output: str) -> None:
    """``x/2·(1 + tanh(√(2/π)·(x + 0.044715·x³)))``."""
    square = writer.emit("Mul", [source, source], f"{output}.square")
    cubic = writer.emit("Mul", [square, writer.constant(_GELU_CUBIC, "cubic")], f"{output}.cubic")
    factor = writer.emit("Add", [cubic, writer.constant(1.0, "one")], f"{output}.factor")
    product = writer.emit("Mul", [source, factor], f"{output}.product")
    inner = writer.emit("Mul", [product, writer.constant(_GELU_SCALE, "scale")], f"{output}.inner")
    tanh = writer.emit("Tanh", [inner], f"{output}.tanh")
    gate = writer.emit("Add", [tanh, writer.constant(1.0, "one")], f"{output}.gate")
    half = writer.emit("Mul", [source, writer.constant(0.5, "half")], f"{output}.half")
    writer.emit("Mul", [half, gate], output)


_OPERATORS: Final[Mapping[str, tuple[str, Mapping[str, float]]]] = {
    "linear": ("Identity", {}),
    "leaky": ("LeakyRelu", {"alpha": LEAKY_SLOPE}),
    "relu": ("Relu", {}),
    "logistic": ("Sigmoid", {}),
    "tanh": ("Tanh", {}),
    "elu": ("Elu", {"alpha": 1.0}),
    "selu": ("Selu", {"alpha": _SELU_ALPHA, "gamma": _SELU_GAMMA}),
}

_FORMULAS: Final[Mapping[str, Callable[[Emitter, str, str], None]]] = {
    "mish": _mish_exact,
    "swish": _swish,
    "relu6": _relu6,
    "hard_mish": _hard_mish,
    "gelu": _gelu,
}
