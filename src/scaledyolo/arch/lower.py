"""Story 3: a spec becomes a network. :func:`lower` lays the nodes of stem, backbone, neck and heads in cfg order."""

from __future__ import annotations

from collections.abc import Callable

from scaledyolo.arch.blocks import (
    STAGES,
    Elan,
    LayerBuilder,
    downsample,
    elan,
    entry,
    extended_elan,
    reversed_csp,
    reversed_dark,
    spp_csp,
    spp_dark,
)
from scaledyolo.arch.graph import Graph
from scaledyolo.arch.ops import Add, Conv, Detect, Implicit, Reorg, SpaceToDepth
from scaledyolo.arch.spec import ModelSpec, Neck
from scaledyolo.arch.subnet import cut_graph
from scaledyolo.errors import SpecError


def lower(spec: ModelSpec) -> Graph:
    """Turn a spec into the graph of its network.

    Raises:
        SpecError: the spec breaks a shape rule; names the node and the shapes.
    """
    b = LayerBuilder(spec.activation, spec.norm_form)
    with b.scope("backbone"):
        taps = backbone(b, spec)
    b.activation = spec.neck_activation or spec.activation
    NECKS[spec.neck.kind](b, spec, _Levels(b, spec, taps))
    # A subnet may take sizes that the whole does not: it is cut at the next size that suits both.
    whole = 2 ** max(taps)
    size = -(-spec.size // whole) * whole if spec.subnet else spec.size
    graph = Graph(
        name=spec.name,
        nodes=tuple(b.nodes),
        height=size,
        width=size,
        resize=spec.resize,
        norm_eps=spec.norm_eps,
        norm_momentum=spec.norm_momentum,
    )
    if spec.subnet:
        return cut_graph(graph, spec.subnet).with_size(spec.size, spec.size)
    graph.check_size(size, size)
    return graph


def backbone(b: LayerBuilder, spec: ModelSpec) -> dict[int, str]:
    """Stem and stages; returns the tap (node name) of each pyramid level that has one, by log2 of its stride."""
    x = Graph.INPUT
    if spec.stem.space_to_depth:
        x = b.add("stem.space_to_depth", SpaceToDepth(order="column"), x)
    x = b.conv("stem", x, spec.stem.channels, spec.stem.kernel, spec.stem.stride)
    level = spec.stem.halvings
    taps: dict[int, str] = {}
    for number, stage in enumerate(spec.stages, start=1):
        with b.scope(f"stage{number}"):
            x, tap = STAGES[stage.block](b, entry(b, x, stage), stage)
        level += stage.downsample not in ("none", "maxpool-same")
        taps[level] = tap
    return taps


class _Levels:
    """The pyramid as the necks see it: index 0 is the finest level, -1 the coarsest."""

    def __init__(self, b: LayerBuilder, spec: ModelSpec, taps: dict[int, str]) -> None:
        self.widths = spec.neck.widths
        count = len(self.widths)
        if len(taps) < count:
            raise SpecError(f"{spec.name}: {count} pyramid levels need as many backbone stages, there are {len(taps)}")
        numbers = sorted(taps)[-count:]
        self.names = [f"p{number}" for number in numbers]
        self.taps = [taps[number] for number in numbers]
        self._b, self._spec = b, spec

    def __len__(self) -> int:
        return len(self.widths)

    def predict(self, level: int, x: str) -> str:
        """Head of a level: a 3x3 convolution to twice the width, then the prediction. Returns the 3x3's node."""
        b, spec = self._b, self._spec
        mask = spec.masks[level]
        with b.scope(f"head.{self.names[level]}"):
            width = 2 * self.widths[level]
            y = _re_parameterised(b, x, width) if spec.head.conv == "rep" else b.conv("conv", x, width, 3)
            known = b.add("add", Implicit("add"), y) if spec.head.implicit else y
            raw = b.add("predict", self._prediction(level), known)
            if spec.head.implicit:
                raw = b.add("multiply", Implicit("multiply"), raw)
            detect = Detect(
                anchors=spec.anchors,
                mask=mask,
                num_classes=spec.num_classes,
                decoding=spec.decoding,
                scale_xy=spec.scale_xy[level] if spec.scale_xy else 1.0,
                softmax=spec.decoding == "region",
            )
            b.add("detect", detect, raw)
        return y

    def predict_auxiliary(self, level: int, x: str) -> None:
        """Second head of a level, which only training needs: it ends in its raw map."""
        b = self._b
        with b.scope(f"head.auxiliary.{self.names[level]}"):
            y = b.conv("conv", x, self._spec.head.auxiliary[level], 3)
            b.add("predict", self._prediction(level), y)

    def _prediction(self, level: int) -> Conv:
        filters = len(self._spec.masks[level]) * (5 + self._spec.num_classes)
        return Conv(filters, norm=False, bias=True)


def _re_parameterised(b: LayerBuilder, x: str, width: int) -> str:
    """RepConv: a 3x3 and a 1x1 side by side, summed, then activated; one 3x3 after training (YOLOv7)."""
    with b.scope("rep"):
        dense = b.conv("dense", x, width, 3, activation="linear")
        pointwise = b.conv("pointwise", x, width, activation="linear")
        return b.add("sum", Add(b.activation), dense, pointwise)


def tiny_neck(b: LayerBuilder, spec: ModelSpec, levels: _Levels) -> None:
    """YOLOv3-tiny's feature pyramid: one 1x1, then up-sampling and concatenation with the tap; heads coarse to fine."""
    top = len(levels) - 1
    with b.scope("neck"):
        x = b.conv(f"{levels.names[top]}.conv", levels.taps[top], levels.widths[top])
    y = levels.predict(top, x)
    for level in reversed(range(top)):
        with b.scope(f"neck.{levels.names[level]}"):
            x = b.conv("reduce", x, levels.widths[level])
            x = b.concat("merge", b.upsample("upsample", x), levels.taps[level])
        y = levels.predict(level, x)
        x = y  # the next finer level continues from this head's 3x3 convolution


def fpn_neck(b: LayerBuilder, spec: ModelSpec, levels: _Levels) -> None:
    """YOLOv3's feature pyramid: no lateral convolutions, concatenation [up-sampled, tap], heads coarse to fine."""
    top = len(levels) - 1
    with b.scope(f"neck.{levels.names[top]}"):
        x = _coarsest(b, spec, levels)
    levels.predict(top, x)
    for level in reversed(range(top)):
        with b.scope(f"neck.{levels.names[level]}"):
            x = b.upsample("upsample", b.conv("reduce", x, levels.widths[level]))
            x = reversed_dark(b, b.concat("merge", x, levels.taps[level]), levels.widths[level], spec.neck.depth)
        levels.predict(level, x)


def path_aggregation_neck(b: LayerBuilder, spec: ModelSpec, levels: _Levels) -> None:
    """Top-down then bottom-up paths (YOLOv4's PAN), of reversed Dark or CSP stages or ELANs; heads fine to coarse.

    "csp-fpn" stops after the top-down path. Auxiliary heads read the top-down path.
    """
    outputs = _top_down(b, spec, levels)
    seen = list(outputs)
    bottom_up = spec.neck.kind != "csp-fpn"
    if not spec.heads_last:
        levels.predict(0, outputs[0])
    for level in range(1, len(levels)):
        if bottom_up:
            with b.scope(f"neck.bottom_up.{levels.names[level]}"):
                parts = downsample(b, outputs[level - 1], spec.neck.downsample, levels.widths[level])
                x = b.concat("merge", *parts, outputs[level])
                outputs[level] = _neck_stage(b, x, spec.neck, level)
        if not spec.heads_last:
            levels.predict(level, outputs[level])
    if spec.heads_last:
        for level, x in enumerate(outputs):
            levels.predict(level, x)
    if spec.head.auxiliary:
        for level, x in enumerate(seen):
            levels.predict_auxiliary(level, _supervised(spec.neck, x))


def _supervised(neck: Neck, x: str) -> str:
    """What an auxiliary head reads: of an extended ELAN the second half alone, before the sum."""
    is_sum = neck.kind == "e-elan-pan" and x.endswith(".sum")
    return x.removesuffix("sum") + "second.out" if is_sum else x


def _neck_stage(b: LayerBuilder, x: str, neck: Neck, level: int) -> str:
    if neck.is_elan:
        size = Elan(neck.hidden[level], neck.growth[level], neck.depth, neck.widths[level], neck.gathered)
        return (elan if neck.kind == "elan-pan" else extended_elan)(b, x, size)
    stage = reversed_csp if neck.kind.startswith("csp") else reversed_dark
    return stage(b, x, neck.widths[level], neck.depth)


def _top_down(b: LayerBuilder, spec: ModelSpec, levels: _Levels) -> list[str]:
    top = len(levels) - 1
    outputs = [""] * len(levels)
    with b.scope(f"neck.top_down.{levels.names[top]}"):
        outputs[top] = _coarsest(b, spec, levels)
    for level in reversed(range(top)):
        width = levels.widths[level]
        with b.scope(f"neck.top_down.{levels.names[level]}"):
            up = b.upsample("upsample", b.conv("reduce", outputs[level + 1], width))
            lateral = b.conv("lateral", levels.taps[level], width)
            outputs[level] = _neck_stage(b, b.concat("merge", lateral, up), spec.neck, level)
    return outputs


def _coarsest(b: LayerBuilder, spec: ModelSpec, levels: _Levels) -> str:
    neck, tap, width = spec.neck, levels.taps[-1], levels.widths[-1]
    if neck.kind.startswith("csp") or neck.is_elan:
        return spp_csp(b, tap, neck)
    return spp_dark(b, tap, width) if neck.spp else reversed_dark(b, tap, width, neck.depth)


def passthrough_neck(b: LayerBuilder, spec: ModelSpec, levels: _Levels) -> None:
    """YOLOv2: two 3x3 convolutions, then the reorganised finer tap beside them, then one more. One level."""
    width = 2 * levels.widths[0]
    finer = _tap_before(b, spec)
    with b.scope("neck"):
        x = b.conv("conv2", b.conv("conv1", levels.taps[0], width, 3), width, 3)
        fine = b.add("reorg", Reorg(2), b.conv("reduce", finer, 64))
        x = b.concat("merge", fine, x)
    levels.predict(0, x)


def _tap_before(b: LayerBuilder, spec: ModelSpec) -> str:
    stage = len(spec.stages) - 1
    return f"backbone.stage{stage}.conv{spec.stages[stage - 1].depth}"


def plain_neck(b: LayerBuilder, spec: ModelSpec, levels: _Levels) -> None:
    """No neck: the head reads the backbone (YOLOv2-tiny). One level."""
    levels.predict(0, levels.taps[0])


NECKS: dict[str, Callable[[LayerBuilder, ModelSpec, _Levels], None]] = {
    "tiny": tiny_neck,
    "fpn": fpn_neck,
    "pan": path_aggregation_neck,
    "csp-fpn": path_aggregation_neck,
    "csp-pan": path_aggregation_neck,
    "elan-pan": path_aggregation_neck,
    "e-elan-pan": path_aggregation_neck,
    "passthrough": passthrough_neck,
    "plain": plain_neck,
}
