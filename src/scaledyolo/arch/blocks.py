"""The computational blocks of the family, each a short function that appends nodes to a graph.

Concatenations list low channels first; the order of the nodes is that of the Darknet cfg files, in which the bypass of
a CSP block comes before its main path.
"""

from __future__ import annotations

from typing import NamedTuple

from scaledyolo.arch.graph import GraphBuilder
from scaledyolo.arch.ops import Activation, Add, BatchNorm, ChannelSplit, Concat, Conv, Pool, Upsample
from scaledyolo.arch.spec import Downsample, Gathered, Neck, NormForm, Stage

SPP_POOLS = (5, 9, 13)  # kernels of the stride-1 pools of spatial pyramid pooling, in the order of the cfgs
RESNEXT_GROUPS = 32


class LayerBuilder(GraphBuilder):
    """A graph builder that speaks of layers: it knows the activation and the normalisation form of the network."""

    def __init__(self, activation: Activation, norm_form: NormForm = "branch", channels: int = 3) -> None:
        super().__init__(channels)
        self.activation = activation
        self.norm_form = norm_form

    def conv(
        self,
        name: str,
        x: str,
        filters: int,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        activation: Activation | None = None,
    ) -> str:
        """Convolution, batch normalisation, activation: the elementary unit."""
        act = self.activation if activation is None else activation
        op = Conv(filters, kernel, (stride, stride), kernel // 2, groups=groups, activation=act)
        return self.add(name, op, x)

    def branch_end(self, name: str, x: str, filters: int) -> str:
        """The last 1x1 convolution of a CSP branch, which the "concat" form leaves bare until the concatenation."""
        if self.norm_form == "branch":
            return self.conv(name, x, filters)
        return self.add(name, Conv(filters, norm=False), x)

    def join(self, main: str, bypass: str) -> str:
        """Concatenate the two branches of a CSP block; the "concat" form normalises and activates here."""
        joined = self.concat("concat", main, bypass)
        return joined if self.norm_form == "branch" else self.add("norm", BatchNorm(self.activation), joined)

    def concat(self, name: str, *inputs: str) -> str:
        return self.add(name, Concat(), *inputs)

    def max_pool(self, name: str, x: str, kernel: int, stride: int) -> str:
        return self.add(name, Pool(kernel, stride, kernel - 1), x)

    def upsample(self, name: str, x: str) -> str:
        return self.add(name, Upsample(), x)


class StageOutput(NamedTuple):
    """What a stage hands on: ``out`` to the next stage, ``tap`` to the neck."""

    out: str
    tap: str


def downsample(b: LayerBuilder, x: str, kind: Downsample, channels: int) -> tuple[str, ...]:
    """Halve the resolution ("maxpool-same" keeps it, "none" does nothing); returns what is to be concatenated.

    "conv-pool" takes half of the channels from a strided convolution behind a 1x1, the other half from a max pool with
    a 1x1 behind it; "wide-conv-pool" does not narrow before the strided convolution (YOLOv7-E6 and larger). The pools
    keep the number of channels.
    """
    if kind == "conv":
        return (b.conv("down", x, channels, 3, 2),)
    if kind == "grouped-conv":
        return (b.conv("down", x, channels, 3, 2, groups=RESNEXT_GROUPS),)
    if kind == "none":
        return (x,)
    if kind in ("maxpool", "maxpool-same"):
        return (b.max_pool("pool", x, 2, 2 if kind == "maxpool" else 1),)
    half = channels // 2
    pooled = b.conv("pooled", b.max_pool("pool", x, 2, 2), channels - half)
    before = b.conv("before", x, half if kind == "conv-pool" else b.channels[x])
    return (b.conv("down", before, half, 3, 2), pooled)


def entry(b: LayerBuilder, x: str, stage: Stage) -> str:
    """What a backbone stage works on: its input at half the resolution, as the stage asks."""
    parts = downsample(b, x, stage.downsample, stage.channels)
    return parts[0] if len(parts) == 1 else b.concat("entry", *parts)


def residual(b: LayerBuilder, x: str, hidden: int, channels: int) -> str:
    """``x + conv3x3(conv1x1(x))``; nothing follows the sum (Darknet-53)."""
    y = b.conv("conv2", b.conv("conv1", x, hidden), channels, 3)
    return b.add("add", Add(), y, x)


def conv_stage(b: LayerBuilder, x: str, stage: Stage) -> StageOutput:
    """``depth`` plain convolutions, 3x3 to the full width and 1x1 to half of it in turn (Darknet-19, YOLOv3-tiny)."""
    for index in range(stage.depth):
        wide = index % 2 == 0
        x = b.conv(f"conv{index + 1}", x, stage.channels if wide else stage.channels // 2, 3 if wide else 1)
    return StageOutput(x, x)


def residual_stage(b: LayerBuilder, x: str, stage: Stage) -> StageOutput:
    """``depth`` residual blocks in a row (Darknet-53)."""
    for index in range(stage.depth):
        with b.scope(f"block{index + 1}"):
            x = residual(b, x, stage.hidden or stage.channels // 2, stage.channels)
    return StageOutput(x, x)


def csp_stage(b: LayerBuilder, x: str, stage: Stage) -> StageOutput:
    """Cross-stage-partial stage: half the channels bypass ``depth`` residual blocks (paper section 3.1).

    "csp-wide" is the first stage of CSPDarknet53, whose branches keep the full width.
    """
    wide = stage.block == "csp-wide"
    width = stage.channels if wide else stage.channels // 2
    bypass = b.branch_end("bypass", x, width)
    y = b.conv("main", x, width)
    for index in range(stage.depth):
        with b.scope(f"block{index + 1}"):
            y = residual(b, y, width // 2 if wide else width, width)
    y = b.branch_end("tail", y, width)
    out = b.conv("out", b.join(y, bypass), stage.channels)
    return StageOutput(out, out)


def resnext_stage(b: LayerBuilder, x: str, stage: Stage) -> StageOutput:
    """CSP stage of grouped bottlenecks (CSPResNeXt-50). Activation follows the sum; the output is twice as wide.

    In the first stage the main path enters with the stem's width and is added to the first channels only.
    """
    width = stage.channels
    bypass = b.conv("bypass", x, width, activation=stage.split_activation)
    y = b.conv("main", x, min(width, b.channels[x]), activation=stage.split_activation)
    for index in range(stage.depth):
        with b.scope(f"block{index + 1}"):
            z = b.conv("conv1", y, width)
            z = b.conv("conv2", z, width, 3, groups=RESNEXT_GROUPS)
            z = b.conv("conv3", z, width, activation="linear")
            y = b.add("add", Add(b.activation), z, y)
    y = b.conv("tail", y, width)
    out = b.conv("out", b.concat("concat", y, bypass), 2 * width)
    return StageOutput(out, out)


def pcb_stage(b: LayerBuilder, x: str, stage: Stage) -> StageOutput:
    """CSPOSANet with partial in computational block (paper Figure 3, Tables 4 and 9), width 2g.

    Of the slices [unprocessed half, processed half, conv1, conv2], each g wide, the first a go straight to the output
    and the last b through the transition, which is also the tap of the neck. The processed half is the second one.
    """
    growth = stage.channels // 2
    base = b.conv("base", x, stage.channels, 3)
    kept = b.add("kept", ChannelSplit(2, 0), base) if stage.partition == (1, 3) else base
    half = b.add("half", ChannelSplit(2, 1), base)
    first = b.conv("conv1", half, growth, 3)
    second = b.conv("conv2", first, growth, 3)
    straight, transited = {
        (1, 3): ((kept,), (second, first, half)),
        (2, 2): ((base,), (second, first)),
        (3, 1): ((base, first), (second,)),
    }[stage.partition]
    partial = b.concat("partial", *transited) if len(transited) > 1 else second
    transition = b.conv("transition", partial, len(transited) * growth)
    return StageOutput(b.concat("concat", *straight, transition), transition)


class Elan(NamedTuple):
    """An efficient layer aggregation network: the widths of its convolutions, their number, and what is gathered."""

    hidden: int  # of the two 1x1 that open it
    growth: int  # of its 3x3
    depth: int  # number of its 3x3, one after the other
    out: int  # of the 1x1 that closes it
    gathered: Gathered


def elan(b: LayerBuilder, x: str, size: Elan) -> str:
    """Two 1x1 side by side, a row of 3x3 behind the second; what is gathered is concatenated, last first (YOLOv7)."""
    bypass = b.conv("bypass", x, size.hidden)
    y = main = b.conv("main", x, size.hidden)
    row = [y := b.conv(f"conv{index + 1}", y, size.growth, 3) for index in range(size.depth)]
    gathered = row[::-1] if size.gathered == "all" else row[::-2]
    return b.conv("out", b.concat("concat", *gathered, main, bypass), size.out)


def extended_elan(b: LayerBuilder, x: str, size: Elan) -> str:
    """Two ELANs on one input, summed: E-ELAN with its groups written out (YOLOv7-E6E)."""
    with b.scope("first"):
        first = elan(b, x, size)
    with b.scope("second"):
        second = elan(b, x, size)
    return b.add("sum", Add(), first, second)


def elan_stage(b: LayerBuilder, x: str, stage: Stage) -> StageOutput:
    """A stage of one ELAN or extended ELAN, all of whose inner convolutions have one width."""
    hidden = stage.hidden or stage.channels // 2
    size = Elan(hidden, hidden, stage.depth, stage.out or stage.channels, stage.gathered)
    out = (elan if stage.block == "elan" else extended_elan)(b, x, size)
    return StageOutput(out, out)


STAGES = {
    "conv": conv_stage,
    "residual": residual_stage,
    "csp": csp_stage,
    "csp-wide": csp_stage,
    "resnext": resnext_stage,
    "pcb": pcb_stage,
    "elan": elan_stage,
    "e-elan": elan_stage,
}


def spatial_pyramid(b: LayerBuilder, x: str, *, input_first: bool = False) -> str:
    """Stride-1 max pools of 13, 9 and 5, then the input (SPP); the published P5-P7 concatenate the other way round."""
    pools = [b.max_pool(f"pool{kernel}", x, kernel, 1) for kernel in SPP_POOLS]
    parts = (x, *pools) if input_first or b.norm_form == "concat" else (*reversed(pools), x)
    return b.concat("pyramid", *parts)


def spp_csp(b: LayerBuilder, x: str, neck: Neck) -> str:
    """Spatial pyramid pooling in a CSP block (CSPSPP of the paper's Figure 4; without pairs, that of YOLOv7-tiny)."""
    width = neck.widths[-1]
    bypass = b.branch_end("bypass", x, width)
    y = b.conv("main", x, width)
    if neck.spp_lead:
        y = b.conv("lead2", b.conv("lead1", y, width, 3), width)
    y = spatial_pyramid(b, y, input_first=neck.spp_input_first)
    if not neck.spp_pairs:
        y = b.conv("pair1.conv1", y, width)
    for index in range(neck.spp_pairs):
        y = b.conv(f"pair{index + 1}.conv1", y, width)
        y = b.conv(f"pair{index + 1}.conv2", y, width, 3)
    return b.conv("out", b.join(y, bypass), width)


def reversed_csp(b: LayerBuilder, x: str, width: int, depth: int) -> str:
    """Reversed CSP stage of the neck (paper Figure 2b): full transition first, then the split; no sums."""
    x = b.conv("main", x, width)
    bypass = b.branch_end("bypass", x, width)
    y = x
    for index in range(depth):
        y = b.conv(f"pair{index + 1}.conv1", y, width)
        y = b.conv(f"pair{index + 1}.conv2", y, width, 3)
    return b.conv("out", b.join(y, bypass), width)


def reversed_dark(b: LayerBuilder, x: str, width: int, depth: int) -> str:
    """1x1 to ``width``, then ``depth`` times 3x3 to twice the width and back (paper Figure 2a)."""
    x = b.conv("conv1", x, width)
    for index in range(depth):
        x = b.conv(f"conv{2 * index + 2}", x, 2 * width, 3)
        x = b.conv(f"conv{2 * index + 3}", x, width)
    return x


def spp_dark(b: LayerBuilder, x: str, width: int) -> str:
    """The reversed Dark stage with spatial pyramid pooling in its middle (YOLOv3-SPP, YOLOv4)."""
    x = b.conv("conv3", b.conv("conv2", b.conv("conv1", x, width), 2 * width, 3), width)
    x = b.conv("conv4", spatial_pyramid(b, x), width)
    return b.conv("conv6", b.conv("conv5", x, 2 * width, 3), width)
