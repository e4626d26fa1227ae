"""The graph's operations in torch: modules for those that store tensors, functions for the rest.

Parameter names are those of ``graph.parameters``, so that a state dict needs no translation.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, Final, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from scaledyolo.arch.ops import LEAKY_SLOPE, SUM_EPSILON, Activation, Conv

ActivationFunction = Callable[[Tensor], Tensor]


def identity(x: Tensor) -> Tensor:
    """``x`` itself."""
    return x


def hard_mish(x: Tensor) -> Tensor:
    """Darknet's piecewise Mish: x above 0, ``x²/2 + x`` down to -2, 0 below."""
    return x * (0.5 * x + 1).clamp(0, 1)


def mish_algebraic(x: Tensor) -> Tensor:
    """Mish without transcendental functions but one: with ``s = σ(x)``, ``t = s(2 − s)``, it is ``x·t / (2 − t)``.

    ``tanh(ln(1 + n)) = n(n + 2) / (n(n + 2) + 2)`` with ``n = eˣ``, divided by ``(1 + n)²`` above and below; nothing
    can overflow. Twice as fast as torch's own on a CPU; not meant for training, where it would store more.
    """
    sigmoid = torch.sigmoid(x)
    ratio = (2 - sigmoid).mul_(sigmoid)
    return ratio.div_(2 - ratio).mul_(x)


# Elements of one step of `mish_in_steps` for each thread: what torch gives a thread at least, and a cache can hold.
MISH_STEP: Final = 1 << 16
_LOG2_E: Final = math.log2(math.e)
_is_tracing: Callable[[], bool] = torch.jit.is_tracing  # type: ignore[attr-defined]


def mish_in_steps(x: Tensor, *, in_place: bool = False) -> Tensor:
    """Mish as fast as a CPU computes it without a kernel of its own: little more than the time of SiLU.

    With ``n = 1 + eˣ`` it is ``x − 2x / (n² + 1)``: cheap operations, each over a piece of the tensor that is still in
    the cache when the next one reads it, and a power of two, which torch computes three times as fast as one of e. The
    difference is exact to the rounding of ``x``, and where ``eˣ`` overflows the quotient is 0, as it should be. Half
    precision, where ``2x`` may overflow too, tensors with gaps, and networks that are being traced or exported (the
    number of pieces depends on the size) take :func:`mish_algebraic`.
    """
    flat = None if _is_tracing() or torch.compiler.is_compiling() else _without_gaps(x)
    if flat is None or x.dtype not in (torch.float32, torch.float64):
        return mish_algebraic(x)
    result = x if in_place else torch.empty_like(x)
    target = flat if in_place else _without_gaps(result)
    assert target is not None
    step = MISH_STEP * max(2, torch.get_num_threads())
    one = torch.ones((), dtype=x.dtype, device=x.device)
    scratch = torch.empty(min(step, flat.numel()), dtype=x.dtype, device=x.device)
    for piece, written in zip(torch.split(flat, step), torch.split(target, step), strict=True):
        power = scratch[: piece.numel()]
        torch.mul(piece, _LOG2_E, out=power).exp2_().add_(1)
        torch.addcmul(one, power, power, out=power)
        torch.addcdiv(piece, piece, power, value=-2, out=written)
    return result


def _without_gaps(x: Tensor) -> Tensor | None:
    """All elements in the order of memory, as a view; None where there is no such view."""
    if x.is_contiguous():
        return x.view(-1)
    if x.ndim == 4 and x.is_contiguous(memory_format=torch.channels_last):
        return x.permute(0, 2, 3, 1).view(-1)
    return None


# In-place forms are used on the fresh result of a convolution or normalisation only, whose gradients do not need it.
_FUNCTIONS: Final[Mapping[Activation, ActivationFunction]] = {
    "linear": identity,
    "leaky": partial(F.leaky_relu, negative_slope=LEAKY_SLOPE),
    "mish": F.mish,
    "swish": F.silu,
    "relu": F.relu,
    "relu6": F.relu6,
    "logistic": torch.sigmoid,
    "tanh": torch.tanh,
    "elu": F.elu,
    "selu": F.selu,
    "gelu": partial(F.gelu, approximate="tanh"),
    "hard_mish": hard_mish,
}
_IN_PLACE: Final[Mapping[Activation, ActivationFunction]] = {
    "leaky": partial(F.leaky_relu, negative_slope=LEAKY_SLOPE, inplace=True),
    "relu": partial(F.relu, inplace=True),
    "relu6": partial(F.relu6, inplace=True),
}
_INFERENCE: Final[Mapping[Activation, ActivationFunction]] = {"swish": partial(F.silu, inplace=True)}


def activation_function(
    activation: Activation, *, fresh: bool = False, inference: bool = False, fast_mish: bool = False
) -> ActivationFunction:
    """The function of an activation.

    Args:
        activation: its name.
        fresh: the input is read by nobody else, so it may be overwritten.
        inference: no gradient will be asked for.
        fast_mish: use an algebraic form, for inference on a CPU; a GPU has one kernel for torch's own.
    """
    if activation == "mish" and fast_mish:
        return partial(mish_in_steps, in_place=fresh and inference)
    if fresh and inference and activation in _INFERENCE:
        return _INFERENCE[activation]
    return _IN_PLACE.get(activation, _FUNCTIONS[activation]) if fresh else _FUNCTIONS[activation]


class BatchNorm(nn.BatchNorm2d):
    """Batch normalisation that stores four tensors and no count of batches, which only averaging forever needs."""

    def __init__(self, channels: int, eps: float, momentum: float) -> None:
        super().__init__(channels, eps=eps, momentum=momentum)
        self.num_batches_tracked = None

    def _load_from_state_dict(self, *args: Any) -> None:
        # The parent would add the missing count to a plain dict and then complain about it.
        nn.Module._load_from_state_dict(self, *args)


class Convolution(nn.Conv2d):
    """Convolution, batch normalisation or bias, activation."""

    norm: nn.Module | None

    def __init__(self, in_channels: int, op: Conv, eps: float, momentum: float, activation: ActivationFunction) -> None:
        super().__init__(
            in_channels,
            op.filters,
            op.kernel,
            stride=op.stride,
            padding=op.padding,
            dilation=op.dilation,
            groups=op.groups,
            bias=op.bias,
        )
        self.norm = BatchNorm(op.filters, eps, momentum) if op.norm else None
        self.activation = activation

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002 - torch's name
        """(batch, channels, height, width) -> (batch, filters, height', width')."""
        return self.finish(super().forward(input))

    def finish(self, x: Tensor) -> Tensor:
        """What follows the convolution itself."""
        if self.norm is not None:
            x = self.norm(x)
        return self.activation(x)


class ChannelAffine(nn.Module):
    """``x * scale + bias`` per channel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(channels))
        self.bias = nn.Parameter(torch.zeros(channels))

    def forward(self, x: Tensor) -> Tensor:
        """Shape kept."""
        return torch.addcmul(_per_channel(self.bias), x, _per_channel(self.scale))


class ImplicitVector(nn.Module):
    """A learned vector added to, or multiplied with, every position (YOLOR)."""

    def __init__(self, channels: int, kind: Literal["add", "multiply"]) -> None:
        super().__init__()
        self.kind = kind
        self.implicit = nn.Parameter(torch.full((channels,), 0.0 if kind == "add" else 1.0))

    def forward(self, x: Tensor) -> Tensor:
        """Shape kept."""
        vector = _per_channel(self.implicit)
        return x + vector if self.kind == "add" else x * vector


class WeightedSum(nn.Module):
    """Sum of the inputs, each multiplied by a learned number or one a channel, normalised over the inputs."""

    def __init__(self, shape: tuple[int, ...], normalization: Literal["none", "relu", "softmax"]) -> None:
        super().__init__()
        self.normalization = normalization
        self.weights = nn.Parameter(torch.ones(shape))

    def forward(self, *inputs: Tensor) -> Tensor:
        """The shape of the first input; see :func:`add` for inputs with other channels."""
        weights: Tensor = self.weights
        if self.normalization == "relu":
            weights = weights.relu()
            weights = weights / (weights.sum(0, keepdim=True) + SUM_EPSILON)
        elif self.normalization == "softmax":
            weights = weights.softmax(0)
        channels = inputs[0].shape[1]
        return add(
            # An input with fewer channels uses the first weights, one with more is cut.
            *(x[:, :channels] * _per_channel(weight[: x.shape[1]]) for weight, x in zip(weights, inputs, strict=True))
        )


def _per_channel(vector: Tensor) -> Tensor:
    return vector.reshape(1, -1, 1, 1)


def add(*inputs: Tensor) -> Tensor:
    """Sum with the channels of the first input: surplus channels are dropped, missing ones count as zero."""
    channels = inputs[0].shape[1]
    total = inputs[0]
    for x in inputs[1:]:
        if x.shape[1] < channels:
            x = F.pad(x, (0, 0, 0, 0, 0, channels - x.shape[1]))
        elif x.shape[1] > channels:
            x = x[:, :channels]
        total = total + x
    return total


def multiply(value: Tensor, gate: Tensor) -> Tensor:
    """Product; the gate may have one channel or one position."""
    return value * gate


def concat(*inputs: Tensor) -> Tensor:
    """Concatenation of channels."""
    return inputs[0] if len(inputs) == 1 else torch.cat(inputs, 1)


def channel_split(x: Tensor, groups: int, index: int) -> Tensor:
    """One of ``groups`` equal runs of channels, as a view."""
    run = x.shape[1] // groups
    return x[:, index * run : (index + 1) * run]


def max_pool(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """Max pooling with ``padding`` pixels of minus infinity in all, half of them, rounded down, before the first."""
    begin, end = padding // 2, padding - padding // 2
    if begin != end or begin > kernel // 2:
        x = F.pad(x, (begin, end, begin, end), value=float("-inf"))
        begin = 0
    return F.max_pool2d(x, kernel, stride, begin)


def average_pool(x: Tensor, kernel: int, stride: int, padding: int) -> Tensor:
    """Average pooling over the pixels that exist."""
    begin, end = padding // 2, padding - padding // 2
    if begin == end and begin <= kernel // 2:
        return F.avg_pool2d(x, kernel, stride, begin, count_include_pad=False)
    margins = (begin, end, begin, end)
    exists = F.pad(torch.ones_like(x[:1, :1]), margins)
    return F.avg_pool2d(F.pad(x, margins), kernel, stride) / F.avg_pool2d(exists, kernel, stride)


def global_average_pool(x: Tensor) -> Tensor:
    """Mean over all positions; (batch, channels, 1, 1)."""
    return x.mean((2, 3), keepdim=True)


def upsample(x: Tensor, scale: int, gain: float) -> Tensor:
    """Every pixel becomes a block of ``scale`` x ``scale``, multiplied by ``gain``."""
    x = F.interpolate(x, scale_factor=float(scale), mode="nearest")
    return x if gain == 1.0 else x * gain


def space_to_depth(x: Tensor, block: int, order: Literal["row", "column"]) -> Tensor:
    """Blocks of pixels become channels; each run of output channels holds all input channels."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, channels, height // block, block, width // block, block)
    axes = (0, 3, 5, 1, 2, 4) if order == "row" else (0, 5, 3, 1, 2, 4)
    return x.permute(axes).reshape(batch, channels * block**2, height // block, width // block)


def depth_to_space(x: Tensor, block: int) -> Tensor:
    """The inverse of :func:`space_to_depth` in row order."""
    batch, channels, height, width = x.shape
    x = x.reshape(batch, block, block, channels // block**2, height, width)
    return x.permute(0, 3, 4, 1, 5, 2).reshape(batch, channels // block**2, height * block, width * block)


def reorg(x: Tensor, block: int) -> Tensor:
    """YOLOv2's passthrough: the CHW buffer read as (C/b², H·b, W·b), space to depth, read as (C·b², H/b, W/b)."""
    batch, channels, height, width = x.shape
    wide = x.reshape(batch, channels // block**2, height * block, width * block)
    deep = space_to_depth(wide, block, "row")
    return deep.reshape(batch, channels * block**2, height // block, width // block)


Function = Callable[..., Tensor]


def then(function: Function, activation: ActivationFunction) -> Function:
    """``function`` followed by ``activation``."""
    return function if activation is identity else partial(_apply_both, function, activation)


def _apply_both(function: Function, activation: ActivationFunction, *inputs: Tensor) -> Tensor:
    return activation(function(*inputs))
