"""What each section of a Darknet cfg does, as nodes of the graph: one short function a section kind.

Semantics follow Darknet's parser and layers (docs: formats). A section that only renames (a route of one layer,
dropout, empty) adds no node; whoever reads it reads what it renames.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Literal, cast, get_args

from scaledyolo.arch.graph import Graph, Node
from scaledyolo.arch.ops import (
    Activate,
    Activation,
    Add,
    BatchNorm,
    ChannelSplit,
    Concat,
    Conv,
    Decoding,
    DepthToSpace,
    GlobalAveragePool,
    Implicit,
    Multiply,
    Op,
    Pool,
    Reorg,
    Shape,
    SpaceToDepth,
    Upsample,
)
from scaledyolo.convert.darknet_grammar import Section
from scaledyolo.errors import SpecError, nearest

# Bounds that no network of the field comes near; they keep hostile files from asking for absurd tensors.
MAX_CHANNELS = 65_536
MAX_SIDE = 65_536
MAX_KERNEL = 127
MAX_STRIDE = 128

ACTIVATIONS = frozenset(get_args(Activation))
# Activations of Darknet that no detector of the family uses.
_OTHER_ACTIVATIONS = frozenset(
    {
        *("loggy", "relie", "plse", "hardtan", "lhtan", "ramp", "revleaky", "stair"),
        *("normalize_channels", "normalize_channels_softmax", "normalize_channels_softmax_maxval"),
    }
)
# Options of a convolution that change what it computes and that no published detector uses.
_CONV_REFUSED: Mapping[str, str] = {
    "binary": "binary weights",
    "xnor": "XNOR networks",
    "bin_output": "binary outputs",
    "antialiasing": "anti-aliased strides",
    "sway": "deformed kernels",
    "rotate": "deformed kernels",
    "stretch": "deformed kernels",
    "stretch_sway": "deformed kernels",
    "coordconv": "coordinate channels",
    "flipped": "transposed weights",
    "share_index": "weights shared between layers",
}


@dataclass
class Assembly:
    """The network under construction: nodes, shapes, and what each section so far outputs."""

    shapes: dict[str, Shape]
    size_hint: str = ""  # said behind shape errors when the network size itself is suspicious
    decoding: Decoding | None = None  # overrides what the heads say
    nodes: list[Node] = field(default_factory=list)
    ops: dict[str, Op] = field(default_factory=dict)
    inputs: dict[str, tuple[str, ...]] = field(default_factory=dict)
    outputs: list[str | None] = field(default_factory=list)  # by section; None: nothing that a layer may read
    own: list[str | None] = field(default_factory=list)  # by section: the node that it made
    holders: dict[int, tuple[Literal["add", "multiply"], int]] = field(default_factory=dict)

    def emit(self, section: Section, op: Op, *inputs: str, suffix: str = "") -> str:
        """Append a node for ``section`` and return its name.

        Raises:
            CfgError: the shapes do not fit, or are absurd.
        """
        name = f"layer{section.index}{suffix}"
        try:
            shape = op.out_shape(*(self.shapes[source] for source in inputs))
        except SpecError as error:
            raise section.error(f"[{section.kind}], layer {section.index}: {error}{self.size_hint}") from None
        if min(shape) < 1:
            raise section.error(f"[{section.kind}], layer {section.index} outputs nothing ({shape}){self.size_hint}")
        if shape.channels > MAX_CHANNELS or max(shape.height, shape.width) > MAX_SIDE:
            raise section.error(f"[{section.kind}], layer {section.index}: an output of {shape} is absurdly large")
        self.nodes.append(Node(name, op, inputs))
        self.shapes[name], self.ops[name], self.inputs[name] = shape, op, inputs
        return name

    def previous(self, section: Section) -> str:
        """Name of what the section before this one outputs; the image for the first."""
        return Graph.INPUT if section.index == 0 else self.read(section, section.index - 1)

    def read(self, section: Section, target: int, key: str | None = None) -> str:
        """Name of what section number ``target`` outputs."""
        name = self.outputs[target]
        if name is None:
            raise section.error(f"layer {section.index} reads layer {target}, which outputs no feature map", key)
        return name

    def targets(self, section: Section, key: str) -> tuple[int, ...]:
        """Absolute section numbers of the layers that ``key`` lists: negative ones count back from this section.

        Raises:
            CfgError: the key is missing, or a layer does not exist before this one.
        """
        listed = section.integers(key)
        if not listed:
            raise section.error(f"[{section.kind}] must list its inputs as {key}=...", key)
        targets = tuple(value if value >= 0 else section.index + value for value in listed)
        for value, target in zip(listed, targets, strict=True):
            if target == section.index:
                raise section.error(f"{key}={value}: layer {section.index} reads itself", key)
            if not 0 <= target < section.index:
                raise section.error(
                    f"{key}={value} means layer {target}, but layer {section.index} can only read layers before it", key
                )
        return targets

    def target(self, section: Section) -> int:
        """The single layer that ``from`` names."""
        targets = self.targets(section, "from")
        if len(targets) != 1:
            raise section.error(f"[{section.kind}] reads one layer, but from lists {len(targets)}", "from")
        return targets[0]

    def conv_before(self, name: str) -> str | None:
        """The convolution whose output ``name`` is, seen through implicit vectors; None if there is none."""
        while isinstance(self.ops.get(name), Implicit):
            name = self.inputs[name][0]
        return name if isinstance(self.ops.get(name), Conv) else None


def read_activation(section: Section, default: str) -> Activation:
    """The activation of a section; ``silu`` is the name of ``swish`` in cfgs of PyTorch code bases.

    Raises:
        CfgError: Darknet would silently take ReLU for an unknown name; we do not.
    """
    name = section.text("activation", default)
    name = "swish" if name == "silu" else name
    if name not in ACTIVATIONS:
        what = "is not used by any detector" if name in _OTHER_ACTIVATIONS else "is unknown"
        hint = "" if name in _OTHER_ACTIVATIONS else nearest(name[:60], sorted(ACTIVATIONS))
        raise section.error(f"activation {name[:60]!r} in [{section.kind}] {what}.{hint}", "activation")
    return cast(Activation, name)


def _refuse(section: Section, refused: Mapping[str, str]) -> None:
    for key, what in refused.items():
        if section.has(key) and (section.flag(key) or key == "share_index"):
            raise section.error(f"{key} in [{section.kind}] ({what}) is not supported", key)


def _strides(section: Section) -> tuple[int, int]:
    """Vertical and horizontal stride."""
    stride = section.integer("stride", 1, 1, MAX_STRIDE)
    return section.integer("stride_y", stride, 1, MAX_STRIDE), section.integer("stride_x", stride, 1, MAX_STRIDE)


def _convolutional(section: Section, net: Assembly) -> str:
    _refuse(section, _CONV_REFUSED)
    kernel = section.integer("size", 1, 1, MAX_KERNEL)
    dilation = 1 if kernel == 1 else section.integer("dilation", 1, 1, MAX_KERNEL)
    padding = kernel // 2 if section.flag("pad") else section.integer("padding", 0, 0, MAX_KERNEL)
    if dilation > 1 and 2 * padding != kernel - 1:
        # Darknet sizes the output without and samples with the dilation; only "same" padding makes the two agree.
        raise section.error(f"dilation={dilation} needs pad=1 and an odd size in [convolutional]", "dilation")
    norm = section.flag("batch_normalize") or section.flag("cbn")
    op = Conv(
        filters=section.integer("filters", 1, 1, MAX_CHANNELS),
        kernel=kernel,
        stride=_strides(section),
        padding=padding * dilation,
        groups=section.integer("groups", 1, 1, MAX_CHANNELS),
        dilation=dilation,
        norm=norm,
        bias=not norm,
        activation=read_activation(section, "logistic"),
    )
    return net.emit(section, op, net.previous(section))


def _pool(section: Section, net: Assembly) -> str:
    _refuse(
        section,
        {
            "maxpool_depth": "pooling over channels",
            "antialiasing": "anti-aliased strides",
            "maxpool_zero_nonmax": "masking",
        },
    )
    vertical, horizontal = _strides(section)
    if vertical != horizontal:
        raise section.error(f"stride_x={horizontal} and stride_y={vertical} of a pooling must be equal", "stride_x")
    size = section.integer("size", vertical, 1, MAX_KERNEL)
    padding = section.integer("padding", size - 1, 0, MAX_KERNEL)
    if padding > 2 * (size - 1):
        raise section.error(f"padding={padding} puts windows of size {size} wholly outside the map", "padding")
    kind: Literal["max", "average"] = "max" if section.kind == "maxpool" else "average"
    return net.emit(section, Pool(size, vertical, padding, kind), net.previous(section))


def _global_average(section: Section, net: Assembly) -> str:
    return net.emit(section, GlobalAveragePool(), net.previous(section))


def _route(section: Section, net: Assembly) -> str:
    sources = [net.read(section, target, "layers") for target in net.targets(section, "layers")]
    if section.kind == "route_lhalf":  # the first half of each input
        groups, part = 2, 0
    else:
        groups = section.integer("groups", 1, 1, MAX_CHANNELS)
        part = section.integer("group_id", 0, 0, MAX_CHANNELS)
    if part >= groups:
        raise section.error(f"group_id={part} does not exist among {groups} groups", "group_id")
    if groups > 1:
        split = ChannelSplit(groups, part)
        if len(sources) == 1:
            return net.emit(section, split, sources[0])
        sources = [net.emit(section, split, source, suffix=f".split{i}") for i, source in enumerate(sources)]
    if len(sources) == 1:
        return sources[0]
    return net.emit(section, Concat(), *sources)


def _shortcut(section: Section, net: Assembly) -> str:
    weights = {"none": "none", "per_feature": "per_input", "per_layer": "per_input", "per_channel": "per_channel"}
    normalization = {"none": "none", "relu": "relu", "avg_relu": "relu", "softmax": "softmax"}
    kinds = []
    for key, table in (("weights_type", weights), ("weights_normalization", normalization)):
        word = section.text(key, "none")
        if word not in table:
            raise section.error(f"{key}={word[:60]!r} in [shortcut] is unknown.{nearest(word[:60], table)}", key)
        kinds.append(table[word])
    others = [net.read(section, target, "from") for target in net.targets(section, "from")]
    weighted = kinds[0] != "none"
    op = Add(
        activation=read_activation(section, "linear"),
        weights=cast(Literal["none", "per_input", "per_channel"], kinds[0]),
        normalization=cast(Literal["none", "relu", "softmax"], kinds[1] if weighted else "none"),
    )
    return net.emit(section, op, net.previous(section), *others)


def _multiply(section: Section, net: Assembly) -> str:
    previous, other = net.previous(section), net.read(section, net.target(section), "from")
    op = Multiply(read_activation(section, "linear"))
    gate, value = net.shapes[previous], net.shapes[other]
    if section.kind == "sam":
        if gate != value:
            raise section.error(f"[sam] multiplies maps of one shape, got {gate} and {value}", "from")
        return net.emit(section, op, previous, other)
    expected = Shape(1, value.height, value.width) if section.flag("scale_wh") else Shape(value.channels, 1, 1)
    if gate != expected:
        raise section.error(f"[scale_channels] needs {expected} before it to scale {value}, got {gate}", "from")
    return net.emit(section, op, other, previous)


def _upsample(section: Section, net: Assembly) -> str:
    op = Upsample(section.integer("stride", 2, 1, MAX_STRIDE), section.number("scale", 1.0))
    return net.emit(section, op, net.previous(section))


def _same(section: Section, net: Assembly) -> str:
    return net.previous(section)


def _activation(section: Section, net: Assembly) -> str:
    return net.emit(section, Activate(read_activation(section, "linear")), net.previous(section))


def _batchnorm(section: Section, net: Assembly) -> str:
    return net.emit(section, BatchNorm(), net.previous(section))


def _reorg3d(section: Section, net: Assembly) -> str:
    block = section.integer("stride", 1, 1, MAX_STRIDE)
    op = DepthToSpace(block) if section.flag("reverse") else SpaceToDepth(block, "row")
    return net.emit(section, op, net.previous(section))


def _reorg(section: Section, net: Assembly) -> str:
    if section.index == 0 and not section.has("stride"):
        # The cfgs of YOLOR call their space-to-depth of the image by this name; Darknet's always says its stride.
        return net.emit(section, SpaceToDepth(2, "column"), net.previous(section))
    _refuse(section, {"reverse": "the inverse of this permutation", "flatten": "flattening", "extra": "extra outputs"})
    return net.emit(section, Reorg(section.integer("stride", 1, 1, MAX_STRIDE)), net.previous(section))


def _implicit_holder(section: Section, net: Assembly) -> None:
    kind: Literal["add", "multiply"] = "add" if section.kind == "implicit_add" else "multiply"
    net.holders[section.index] = (kind, section.integer("filters", 128, 1, MAX_CHANNELS))


def _implicit_use(section: Section, net: Assembly) -> str:
    target = net.target(section)
    wanted: Literal["add", "multiply"] = "add" if section.kind == "shift_channels" else "multiply"
    if target not in net.holders or net.own[target] is not None:
        raise section.error(f"[{section.kind}] needs an unused [implicit_{wanted[:3]}], layer {target} is none", "from")
    kind, filters = net.holders[target]
    source = net.previous(section)
    if kind != wanted or filters != net.shapes[source].channels:
        raise section.error(
            f"[{section.kind}] of {net.shapes[source].channels} channels cannot use layer {target}, "
            f"a vector to {kind} of {filters} channels",
            "from",
        )
    name = net.emit(section, Implicit(kind), source)
    net.own[target] = name  # the parameter belongs to the holder: its number is that of foreign state dicts
    return name


Translator = Callable[[Section, Assembly], "str | None"]

TRANSLATORS: Mapping[str, Translator] = {
    "convolutional": _convolutional,
    "maxpool": _pool,
    "local_avgpool": _pool,
    "avgpool": _global_average,
    "route": _route,
    "route_lhalf": _route,
    "shortcut": _shortcut,
    "sam": _multiply,
    "scale_channels": _multiply,
    "upsample": _upsample,
    "dropout": _same,
    "empty": _same,
    "activation": _activation,
    "batchnorm": _batchnorm,
    "reorg": _reorg,
    "reorg3d": _reorg3d,
    "implicit_add": _implicit_holder,
    "implicit_mul": _implicit_holder,
    "shift_channels": _implicit_use,
    "control_channels": _implicit_use,
}


def add_section(section: Section, net: Assembly, heads: Mapping[str, Translator]) -> None:
    """Translate one section and note what it made and outputs.

    Args:
        section: the next section.
        net: the network so far; extended in place.
        heads: translators of detection heads, whose output no layer may read.

    Raises:
        CfgError: the section cannot follow what stands before it.
    """
    for key in ("dontload", "dontloadscales"):
        if section.flag(key):
            raise section.error(f"{key}=1 changes what a .weights file holds; it is not supported, remove it", key)
    first_node = len(net.nodes)
    is_head = section.kind in heads
    output = (heads if is_head else TRANSLATORS)[section.kind](section, net)
    net.outputs.append(None if is_head else output)
    net.own.append(output if len(net.nodes) > first_node else None)
