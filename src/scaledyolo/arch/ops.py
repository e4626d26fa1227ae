"""The operations a node can be: what each does to a shape, which tensors it stores, how many multiplications it costs.

Every class is frozen and final. ``out_shape`` is the only place where a shape rule is written down; spatial arithmetic
follows Darknet's integer rules, which for the networks here coincide with those of ONNX and torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple

from scaledyolo.errors import SpecError

Activation = Literal[
    "linear", "leaky", "mish", "swish", "relu", "relu6", "logistic", "tanh", "elu", "selu", "gelu", "hard_mish"
]
Decoding = Literal["exp", "sigmoid-squared", "region"]

# Slope of LeakyReLU for negative inputs in every code base of the family.
LEAKY_SLOPE = 0.1

# Added to the sum of the rectified weights by which a weighted addition is normalised (Darknet).
SUM_EPSILON = 1e-4


class Shape(NamedTuple):
    """Shape of one feature map of one image."""

    channels: int
    height: int
    width: int

    def __str__(self) -> str:
        return f"{self.channels}x{self.height}x{self.width}"


class Window(NamedTuple):
    """How an operation's output lies over its input: what receptive field and stride are computed from."""

    size: int = 1  # cells of the input, along one side, that one cell of the output sees
    step: int = 1  # cells of the input between neighbouring cells of the output
    enlarge: int = 1  # cells of the output for one of the input


class _Op:
    """What all operations answer. Defaults: shape kept, nothing stored, no multiplications, cell by cell."""

    __slots__ = ()

    @property
    def window(self) -> Window:
        """Cells of the input under one cell of the output; that of the longer side where the sides differ."""
        return Window()

    def out_channels(self, *channels: int) -> int:
        """Channels of the output for these input channels."""
        return channels[0]

    def out_shape(self, *inputs: Shape) -> Shape:
        """Shape of the output; raises SpecError with the shapes where they do not fit.

        By default one input is cut into whole blocks of the window's step, or enlarged as the window says.
        """
        (shape,), (_, step, enlarge) = inputs, self.window
        if shape.height % step or shape.width % step:
            raise SpecError(f"{shape} cannot be cut into blocks of {step}x{step}")
        channels = self.out_channels(shape.channels)
        return Shape(channels, shape.height // step * enlarge, shape.width // step * enlarge)

    def parameters(self, *channels: int) -> Mapping[str, tuple[int, ...]]:
        """Name and shape of every stored tensor, for these input channels; buffers included."""
        return {}

    def macs(self, out: Shape, *channels: int) -> int:
        """Multiply-accumulate operations of the convolutions for this output shape and these input channels."""
        return 0


def _norm_parameters(channels: int, prefix: str = "") -> dict[str, tuple[int, ...]]:
    return {f"{prefix}{key}": (channels,) for key in ("weight", "bias", "running_mean", "running_var")}


def is_buffer(parameter: str) -> bool:
    """Whether a stored tensor is a running statistic, which training updates but does not learn."""
    return parameter.endswith(("running_mean", "running_var"))


def _same_size(op: str, inputs: tuple[Shape, ...]) -> None:
    sizes = {(shape.height, shape.width) for shape in inputs}
    if len(sizes) > 1:
        raise SpecError(f"{op} needs inputs of one height and width, got {' and '.join(map(str, inputs))}")


@dataclass(frozen=True, slots=True)
class Conv(_Op):
    """Convolution, then batch normalisation (``norm``) or a ``bias``, then an activation: the elementary unit."""

    filters: int
    kernel: int = 1
    stride: tuple[int, int] = (1, 1)  # vertical, horizontal
    padding: int = 0  # pixels on each side
    groups: int = 1
    dilation: int = 1
    norm: bool = True
    bias: bool = False
    activation: Activation = "linear"

    @property
    def window(self) -> Window:
        return Window(self.dilation * (self.kernel - 1) + 1, max(self.stride))

    def out_channels(self, *channels: int) -> int:
        for count, what in ((channels[0], "input channels"), (self.filters, "filters")):
            if count % self.groups:
                raise SpecError(f"{count} {what} cannot be divided into {self.groups} groups")
        return self.filters

    def out_shape(self, *inputs: Shape) -> Shape:
        (shape,) = inputs
        reach = self.dilation * (self.kernel - 1) + 1
        height = (shape.height + 2 * self.padding - reach) // self.stride[0] + 1
        width = (shape.width + 2 * self.padding - reach) // self.stride[1] + 1
        return Shape(self.out_channels(shape.channels), height, width)

    def parameters(self, *channels: int) -> Mapping[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {
            "weight": (self.filters, channels[0] // self.groups, self.kernel, self.kernel)
        }
        if self.bias:
            shapes["bias"] = (self.filters,)
        if self.norm:
            shapes |= _norm_parameters(self.filters, "norm.")
        return shapes

    def macs(self, out: Shape, *channels: int) -> int:
        return out.channels * out.height * out.width * (channels[0] // self.groups) * self.kernel**2


@dataclass(frozen=True, slots=True)
class BatchNorm(_Op):
    """Batch normalisation and activation on their own: the yaml form's, over a concatenation (Scaled-YOLOv4 large)."""

    activation: Activation = "linear"

    def parameters(self, *channels: int) -> Mapping[str, tuple[int, ...]]:
        return _norm_parameters(channels[0])


@dataclass(frozen=True, slots=True)
class Affine(_Op):
    """``x * scale + bias`` per channel, then an activation: what a stand-alone batch normalisation folds into."""

    activation: Activation = "linear"

    def parameters(self, *channels: int) -> Mapping[str, tuple[int, ...]]:
        return {"scale": (channels[0],), "bias": (channels[0],)}


@dataclass(frozen=True, slots=True)
class Activate(_Op):
    """An activation on its own."""

    activation: Activation


@dataclass(frozen=True, slots=True)
class Pool(_Op):
    """Max or average pooling with Darknet's geometry.

    ``padding`` is the total over both sides; half of it, rounded down, lies before the first pixel. Outside counts as
    minus infinity (max) or not at all (average).
    """

    kernel: int
    stride: int
    padding: int
    kind: Literal["max", "average"] = "max"

    @property
    def window(self) -> Window:
        return Window(self.kernel, self.stride)

    def out_shape(self, *inputs: Shape) -> Shape:
        (shape,) = inputs
        height, width = ((side + self.padding - self.kernel) // self.stride + 1 for side in (shape.height, shape.width))
        return Shape(shape.channels, height, width)


@dataclass(frozen=True, slots=True)
class GlobalAveragePool(_Op):
    """Mean over all positions; the output is one by one."""

    def out_shape(self, *inputs: Shape) -> Shape:
        return Shape(inputs[0].channels, 1, 1)


@dataclass(frozen=True, slots=True)
class Upsample(_Op):
    """Nearest-neighbour enlargement by an integer factor, values multiplied by ``gain``."""

    scale: int = 2
    gain: float = 1.0

    @property
    def window(self) -> Window:
        return Window(enlarge=self.scale)


@dataclass(frozen=True, slots=True)
class Concat(_Op):
    """Concatenation of the channels of all inputs, in their order."""

    def out_channels(self, *channels: int) -> int:
        return sum(channels)

    def out_shape(self, *inputs: Shape) -> Shape:
        _same_size("concatenation", inputs)
        return Shape(self.out_channels(*(shape.channels for shape in inputs)), inputs[0].height, inputs[0].width)


@dataclass(frozen=True, slots=True)
class ChannelSplit(_Op):
    """Part ``index`` of the input cut into ``groups`` equal runs of channels."""

    groups: int
    index: int

    def out_channels(self, *channels: int) -> int:
        if channels[0] % self.groups:
            raise SpecError(f"{channels[0]} channels cannot be cut into {self.groups} equal parts")
        if not 0 <= self.index < self.groups:
            raise SpecError(f"part {self.index} of {self.groups} does not exist")
        return channels[0] // self.groups


@dataclass(frozen=True, slots=True)
class Add(_Op):
    """Sum of the inputs, then an activation (Darknet's shortcut).

    The output has the channels of the first input; of an input with more channels the surplus is dropped, one with
    fewer is added to the first channels only. ``weights`` multiplies each input by a learned number (or one a channel).
    """

    activation: Activation = "linear"
    weights: Literal["none", "per_input", "per_channel"] = "none"
    normalization: Literal["none", "relu", "softmax"] = "none"

    def out_shape(self, *inputs: Shape) -> Shape:
        _same_size("addition", inputs)
        return inputs[0]

    def parameters(self, *channels: int) -> Mapping[str, tuple[int, ...]]:
        if self.weights == "none":
            return {}
        return {"weights": (len(channels), channels[0]) if self.weights == "per_channel" else (len(channels), 1)}


@dataclass(frozen=True, slots=True)
class Multiply(_Op):
    """Product of two inputs, the second broadcast over positions or channels where it is 1 (SAM, scale_channels)."""

    activation: Activation = "linear"

    def out_channels(self, *channels: int) -> int:
        if channels[1] not in (1, channels[0]):
            raise SpecError(f"cannot multiply {channels[0]} channels by {channels[1]}")
        return channels[0]

    def out_shape(self, *inputs: Shape) -> Shape:
        value, gate = inputs
        if (gate.height, gate.width) not in ((1, 1), (value.height, value.width)):
            raise SpecError(f"cannot multiply {value} by {gate}")
        return Shape(self.out_channels(value.channels, gate.channels), value.height, value.width)


@dataclass(frozen=True, slots=True)
class SpaceToDepth(_Op):
    """Blocks of ``block`` x ``block`` pixels become channels.

    ``order`` is that of the pixels of a block: by "row" (0,0) (0,1) (1,0) (1,1), Darknet's reorg3d, or by "column"
    (0,0) (1,0) (0,1) (1,1), the ReOrg of YOLOv7. Each output run of channels holds all input channels.
    """

    block: int = 2
    order: Literal["row", "column"] = "row"

    @property
    def window(self) -> Window:
        return Window(self.block, self.block)

    def out_channels(self, *channels: int) -> int:
        return channels[0] * self.block**2


@dataclass(frozen=True, slots=True)
class DepthToSpace(_Op):
    """The inverse of :class:`SpaceToDepth` in row order."""

    block: int = 2

    @property
    def window(self) -> Window:
        return Window(enlarge=self.block)

    def out_channels(self, *channels: int) -> int:
        if channels[0] % self.block**2:
            raise SpecError(f"{channels[0]} channels cannot become blocks of {self.block}x{self.block}")
        return channels[0] // self.block**2


@dataclass(frozen=True, slots=True)
class Reorg(_Op):
    """YOLOv2's historic passthrough: a permutation of the CHW buffer that is not a spatial rearrangement.

    The buffer is read as (C/b², H·b, W·b), cut into blocks of b x b in row order, and the result read as
    (C·b², H/b, W/b).
    """

    block: int = 2

    @property
    def window(self) -> Window:
        return Window(self.block, self.block)

    def out_channels(self, *channels: int) -> int:
        if channels[0] % self.block**2:
            raise SpecError(f"{channels[0]} channels cannot be reorganised in blocks of {self.block}x{self.block}")
        return channels[0] * self.block**2


@dataclass(frozen=True, slots=True)
class Implicit(_Op):
    """A learned vector added to, or multiplied with, every position (YOLOR, YOLOv7)."""

    kind: Literal["add", "multiply"]

    def parameters(self, *channels: int) -> Mapping[str, tuple[int, ...]]:
        return {"implicit": (channels[0],)}


@dataclass(frozen=True, slots=True)
class Detect(_Op):
    """A detection head: says how the raw map it reads becomes boxes. It computes nothing in the network itself.

    Channel ``a * (5 + num_classes) + j`` of the map belongs to anchor ``a``; j = 0..3 is the box, 4 objectness, then
    the classes. ``decoding`` names the family of formulas in :mod:`scaledyolo.postprocess.decode`.
    """

    anchors: tuple[tuple[float, float], ...]  # the full list of the model, (width, height) in pixels of the input
    mask: tuple[int, ...]  # which of them this level uses
    num_classes: int
    decoding: Decoding = "exp"
    scale_xy: float = 1.0  # k of the grid sensitivity (exp family only; sigmoid-squared always has 2)
    activated: bool = False  # the map already went through a logistic (Darknet's new_coords)
    softmax: bool = False  # classes compete (YOLOv2); else each has its own logistic
    nms_kind: Literal["default", "greedynms", "diounms"] = "default"  # what the cfg asks Darknet for
    beta_nms: float = 0.6  # exponent of the distance penalty of diounms

    @property
    def level_anchors(self) -> tuple[tuple[float, float], ...]:
        """The anchors of this level, (width, height) in pixels of the input."""
        return tuple(self.anchors[index] for index in self.mask)

    @property
    def num_outputs(self) -> int:
        """Channels for each anchor: box, objectness, classes."""
        return 5 + self.num_classes

    def out_channels(self, *channels: int) -> int:
        expected = len(self.mask) * self.num_outputs
        if channels[0] != expected:
            raise SpecError(
                f"{len(self.mask)} anchors x (5 + {self.num_classes} classes) need {expected} channels, "
                f"got {channels[0]}"
            )
        if any(not 0 <= index < len(self.anchors) for index in self.mask):
            raise SpecError(f"mask {self.mask} points outside the list of {len(self.anchors)} anchors")
        return channels[0]


# What ends in an activation.
Activated = Conv | BatchNorm | Affine | Activate | Add | Multiply

Op = (
    Activated
    | Pool
    | GlobalAveragePool
    | Upsample
    | Concat
    | ChannelSplit
    | SpaceToDepth
    | DepthToSpace
    | Reorg
    | Implicit
    | Detect
)
