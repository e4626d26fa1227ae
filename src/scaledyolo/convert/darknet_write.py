"""Graph to Darknet cfg: sections in node order, with a [route] wherever a node does not read the section before it.

Darknet's layers read the section before them; only route, shortcut, sam and scale_channels can reach further back.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from scaledyolo.arch.graph import Graph, Node
from scaledyolo.arch.ops import (
    Activate,
    Add,
    Affine,
    BatchNorm,
    ChannelSplit,
    Concat,
    Conv,
    DepthToSpace,
    Detect,
    GlobalAveragePool,
    Implicit,
    Multiply,
    Pool,
    Reorg,
    SpaceToDepth,
    Upsample,
)
from scaledyolo.convert.darknet_keys import known_keys
from scaledyolo.errors import ConversionError, UsageError, nearest

Options = Mapping[str, object]

# Inputs further back than this are written with their absolute number, as the published cfgs do.
_RELATIVE_REACH = 16
_NET_OWN = ("width", "height", "channels", "letter_box")


@dataclass
class _Writer:
    """The text so far, and which section holds the output of which node."""

    graph: Graph
    head_options: Mapping[str, str]
    lines: list[str] = field(default_factory=list)
    section_of: dict[str, int] = field(default_factory=dict)
    num_sections: int = 0

    def section(self, kind: str, options: Options, comment: str = "") -> int:
        """Append a section; returns its number."""
        index = self.num_sections
        self.lines += ["", f"# {index}: {comment}"] if comment else [""]
        self.lines.append(f"[{kind}]")
        self.lines += [f"{key}={_text(value)}" for key, value in options.items()]
        self.num_sections += 1
        return index

    def reference(self, node: Node, source: str) -> int:
        """The number by which the next section refers to the output of ``source``."""
        if source == Graph.INPUT:
            raise _refusal(node, "reads the image, which Darknet only gives to the first layer")
        if isinstance(self.graph[source].op, Detect):
            raise _refusal(node, f"reads the head {source!r}, whose output Darknet has already decoded")
        index = self.section_of[source]
        distance = self.num_sections - index
        return -distance if distance <= _RELATIVE_REACH else index

    def is_previous(self, source: str) -> bool:
        """Whether the next section reads ``source`` without saying so."""
        return self.section_of.get(source, -1) == self.num_sections - 1

    def bring(self, node: Node, source: str) -> None:
        """Make ``source`` the section before the next one, by a route where it is not."""
        if not self.is_previous(source):
            self.section("route", {"layers": self.reference(node, source)})

    def add(self, node: Node, kind: str, options: Options) -> None:
        """Append the section of ``node``."""
        self.section_of[node.name] = self.section(kind, options, comment=node.name)


def write_cfg(graph: Graph, *, net: Mapping[str, str] | None = None, head: Mapping[str, str] | None = None) -> str:
    """The Darknet cfg of a graph.

    Heads of the sigmoid-squared family become Darknet's ``new_coords=1``, with the logistic in the convolution before
    them; reading the text back gives the same network (:func:`same_network`).

    Args:
        graph: the network; its size becomes that of [net].
        net: further options of [net], for training with Darknet (batch, learning_rate, ...).
        head: further options of every [yolo] or [region] (iou_loss, ignore_thresh, ...).

    Raises:
        ConversionError: Darknet has no layer that computes what a node does; names node and reason.
        UsageError: ``net`` or ``head`` has a key that Darknet does not know.
    """
    head_kind = "region" if any(op.decoding == "region" for op in graph.detects) else "yolo"
    for options, kind in ((net or {}, "net"), (head or {}, head_kind)):
        _check_options(options, kind)
    writer = _Writer(graph, head or {}, [f"# {graph.name}, written by scaledyolo", "[net]"])
    own = (graph.width, graph.height, graph.channels, int(graph.resize == "letterbox"))
    training = {"batch": "1", "subdivisions": "1", **(net or {})}
    writer.lines += [f"{key}={value}" for key, value in zip(_NET_OWN, own, strict=True)]
    writer.lines += [f"{key}={value}" for key, value in training.items() if key not in _NET_OWN]
    for node in graph:
        _WRITERS[type(node.op)](writer, node)
    return "\n".join(writer.lines) + "\n"


def _check_options(options: Mapping[str, str], kind: str) -> None:
    known = known_keys(kind)
    for key, value in options.items():
        if key not in known:
            raise UsageError(f"[{kind}] of a Darknet cfg has no key {key!r}.{nearest(key, sorted(known))}")
        if "\n" in str(value):
            raise UsageError(f"{key} of [{kind}] must be one line")


def _text(value: object) -> str:
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() and abs(value) < 1e15 else repr(value)
    return str(value)


def _refusal(node: Node, reason: str) -> ConversionError:
    return ConversionError(f"node {node.name!r} ({type(node.op).__name__}) cannot be written for Darknet: it {reason}")


def _conv(writer: _Writer, node: Node) -> None:
    op = node.op
    assert isinstance(op, Conv)
    if op.norm == op.bias:
        what = "has both a bias and a normalisation" if op.norm else "has neither bias nor normalisation"
        raise _refusal(node, f"{what}; a Darknet convolution has exactly one of them")
    if op.dilation > 1 and (2 * op.padding != op.dilation * (op.kernel - 1) or op.kernel % 2 == 0):
        raise _refusal(node, "is dilated without keeping the size, which Darknet computes inconsistently")
    padding = op.padding // op.dilation
    pad: Options = {"pad": 1} if padding == op.kernel // 2 else {"padding": padding}
    stride: Options = (
        {"stride": op.stride[0]}
        if op.stride[0] == op.stride[1]
        else {"stride_x": op.stride[1], "stride_y": op.stride[0]}
    )
    options = {
        **({"batch_normalize": 1} if op.norm else {}),
        **({"groups": op.groups} if op.groups > 1 else {}),
        "filters": op.filters,
        "size": op.kernel,
        **stride,
        **pad,
        **({"dilation": op.dilation} if op.dilation > 1 else {}),
        "activation": "logistic" if _gives_logistic(writer.graph, node) else op.activation,
    }
    writer.bring(node, node.inputs[0])
    writer.add(node, "convolutional", options)


def _gives_logistic(graph: Graph, node: Node) -> bool:
    """Whether a head of the sigmoid-squared family applies a logistic that Darknet expects in this convolution."""
    return any(
        isinstance(head.op, Detect) and head.op.decoding == "sigmoid-squared" and not head.op.activated
        for head in (graph[name] for name in graph.consumers[node.name])
    )


def _pool(writer: _Writer, node: Node) -> None:
    op = node.op
    assert isinstance(op, Pool)
    if op.padding > 2 * (op.kernel - 1):
        raise _refusal(node, "has windows wholly outside the map")
    options = {"stride": op.stride, "size": op.kernel}
    if op.padding != op.kernel - 1:
        options["padding"] = op.padding
    writer.bring(node, node.inputs[0])
    writer.add(node, "maxpool" if op.kind == "max" else "local_avgpool", options)


def _concat(writer: _Writer, node: Node) -> None:
    layers = ",".join(str(writer.reference(node, source)) for source in node.inputs)
    writer.add(node, "route", {"layers": layers})


def _split(writer: _Writer, node: Node) -> None:
    op = node.op
    assert isinstance(op, ChannelSplit)
    layer = writer.reference(node, node.inputs[0])
    writer.add(node, "route", {"layers": layer, "groups": op.groups, "group_id": op.index})


def _shortcut(writer: _Writer, node: Node) -> None:
    op, graph = node.op, writer.graph
    assert isinstance(op, Add)
    weights = {"none": "none", "per_input": "per_feature", "per_channel": "per_channel"}[op.weights]
    if op.weights != "none" and op.normalization == "none":
        raise _refusal(node, "has weights without normalisation, at which Darknet stops")
    sources = list(node.inputs)
    equal = len({graph.out_channels(source) for source in sources}) == 1
    if op.weights == "none" and equal:
        # A plain sum has no first input: start with the one that is there already.
        sources.sort(key=lambda source: not writer.is_previous(source))
    if len(sources) < 2:
        raise _refusal(node, "sums a single input")
    writer.bring(node, sources[0])
    options: dict[str, object] = {"from": ",".join(str(writer.reference(node, source)) for source in sources[1:])}
    if op.weights != "none":
        options |= {"weights_type": weights, "weights_normalization": op.normalization}
    writer.add(node, "shortcut", {**options, "activation": op.activation})


def _multiply(writer: _Writer, node: Node) -> None:
    op, shapes = node.op, writer.graph.shapes(writer.graph.height, writer.graph.width)
    assert isinstance(op, Multiply)
    value, gate = node.inputs
    extra: Options = {}
    if shapes[value] == shapes[gate]:
        previous, other = (value, gate) if writer.is_previous(value) else (gate, value)
        kind = "sam"
    elif shapes[gate][1:] == (1, 1) and shapes[gate].channels == shapes[value].channels:
        previous, other, kind = gate, value, "scale_channels"
    elif shapes[gate] == (1, *shapes[value][1:]):
        previous, other, kind, extra = gate, value, "scale_channels", {"scale_wh": 1}
    else:
        raise _refusal(node, f"multiplies {shapes[value]} by {shapes[gate]}, for which Darknet has no layer")
    writer.bring(node, previous)
    writer.add(node, kind, {"from": writer.reference(node, other), **extra, "activation": op.activation})


def _upsample(writer: _Writer, node: Node) -> None:
    op = node.op
    assert isinstance(op, Upsample)
    writer.bring(node, node.inputs[0])
    writer.add(node, "upsample", {"stride": op.scale, **({"scale": op.gain} if op.gain != 1.0 else {})})


def _average(writer: _Writer, node: Node) -> None:
    writer.bring(node, node.inputs[0])
    writer.add(node, "avgpool", {})


def _activate(writer: _Writer, node: Node) -> None:
    op = node.op
    assert isinstance(op, Activate)
    writer.bring(node, node.inputs[0])
    writer.add(node, "activation", {"activation": op.activation})


def _reorg(writer: _Writer, node: Node) -> None:
    op = node.op
    assert isinstance(op, Reorg | SpaceToDepth | DepthToSpace)
    if isinstance(op, SpaceToDepth) and op.order == "column":
        raise _refusal(node, "orders the pixels of a block by column; Darknet's reorg3d orders them by row")
    writer.bring(node, node.inputs[0])
    reverse = {"reverse": 1} if isinstance(op, DepthToSpace) else {}
    writer.add(node, "reorg" if isinstance(op, Reorg) else "reorg3d", {"stride": op.block, **reverse})


def _head(writer: _Writer, node: Node) -> None:
    op = node.op
    assert isinstance(op, Detect)
    writer.bring(node, node.inputs[0])
    if op.decoding == "region":
        options = _region_options(writer.graph, node, op)
    else:
        options = _yolo_options(writer.graph, node, op)
    if op.nms_kind != "default":
        options |= {"nms_kind": op.nms_kind, "beta_nms": op.beta_nms}
    extra = {key: value for key, value in writer.head_options.items() if key not in options}
    writer.add(node, "region" if op.decoding == "region" else "yolo", {**options, **extra})


def _pairs(anchors: tuple[tuple[float, float], ...]) -> str:
    return ",  ".join(f"{_text(float(width))},{_text(float(height))}" for width, height in anchors)


def _yolo_options(graph: Graph, node: Node, op: Detect) -> dict[str, object]:
    if op.softmax:
        raise _refusal(node, "lets classes compete, which only Darknet's [region] does")
    options: dict[str, object] = {
        "mask": ",".join(map(str, op.mask)),
        "anchors": _pairs(op.anchors),
        "classes": op.num_classes,
        "num": len(op.anchors),
    }
    if op.decoding == "exp":
        if op.activated:
            raise _refusal(node, "expects activated maps in the exp family, which Darknet activates itself")
        return options | {"scale_x_y": op.scale_xy}
    conv = graph[node.inputs[0]].op if node.inputs[0] != Graph.INPUT else None
    expected = "logistic" if op.activated else "linear"
    if not isinstance(conv, Conv) or conv.activation != expected or graph.consumers[node.inputs[0]] != (node.name,):
        raise _refusal(node, f"needs a {expected} convolution of its own before it, for the logistic of new_coords=1")
    return options | {"scale_x_y": 2.0, "new_coords": 1}


def _region_options(graph: Graph, node: Node, op: Detect) -> dict[str, object]:
    shape = graph.shapes(graph.height, graph.width)[node.name]
    across, down = graph.width / shape.width, graph.height / shape.height
    return {
        "anchors": _pairs(tuple((width / across, height / down) for width, height in op.level_anchors)),
        "classes": op.num_classes,
        "coords": 4,
        "num": len(op.mask),
        "softmax": int(op.softmax),
    }


def _refuse_norm(writer: _Writer, node: Node) -> None:
    raise _refusal(
        node,
        "normalises on its own, as the yaml form of the neck does over a concatenation; cfgs normalise each branch in "
        "its convolution, and weights of the one form do not fit the other",
    )


def _refuse_affine(writer: _Writer, node: Node) -> None:
    raise _refusal(node, "scales channels on its own; write the network before it is folded")


def _refuse_implicit(writer: _Writer, node: Node) -> None:
    raise _refusal(node, "is an implicit vector, which Darknet does not have; fold it into its convolution first")


_WRITERS: Mapping[type, Callable[[_Writer, Node], None]] = {
    Conv: _conv,
    Pool: _pool,
    GlobalAveragePool: _average,
    Concat: _concat,
    ChannelSplit: _split,
    Add: _shortcut,
    Multiply: _multiply,
    Upsample: _upsample,
    Activate: _activate,
    Reorg: _reorg,
    SpaceToDepth: _reorg,
    DepthToSpace: _reorg,
    Detect: _head,
    BatchNorm: _refuse_norm,
    Affine: _refuse_affine,
    Implicit: _refuse_implicit,
}
