"""The computational layers of the paper's section 3 as small graphs, laid with the blocks of the real networks.

They exist to be counted: :mod:`scaledyolo.arch.calculus` has the formulas, these are the convolutions they speak of.
Every graph reads an "image" of b channels and neither normalises nor predicts.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType

from scaledyolo.arch.blocks import RESNEXT_GROUPS, LayerBuilder, pcb_stage, residual, reversed_csp, reversed_dark
from scaledyolo.arch.calculus import OsaVariant
from scaledyolo.arch.cost import node_costs
from scaledyolo.arch.graph import Graph
from scaledyolo.arch.ops import Add, ChannelSplit
from scaledyolo.arch.spec import Stage

_Layer = Callable[[LayerBuilder, str, int, int], str]


def _bottleneck(b: LayerBuilder, x: str, hidden: int, groups: int) -> str:
    y = b.conv("conv2", b.conv("conv1", x, hidden), hidden, 3, groups=groups)
    return b.add("add", Add(), b.conv("conv3", y, b.channels[x]), x)


def _res(b: LayerBuilder, x: str, hidden: int, _: int) -> str:
    return _bottleneck(b, x, hidden // 2, 1)


def _resx(b: LayerBuilder, x: str, hidden: int, _: int) -> str:
    return _bottleneck(b, x, hidden, RESNEXT_GROUPS)


LAYER_BUILDERS: Mapping[str, _Layer] = MappingProxyType({"res": _res, "resx": _resx, "dark": residual})


def layers(kind: str, b: int, k: int, side: int = 1) -> Graph:
    """k Res (bottleneck b/4), ResX (bottleneck b/2 in 32 groups) or Dark layers on b channels."""
    builder = LayerBuilder("linear", channels=b)
    x = Graph.INPUT
    for index in range(k):
        with builder.scope(f"layer{index + 1}"):
            x = LAYER_BUILDERS[kind](builder, x, b // 2, b)
    return _graph(builder, kind, b, side)


def csp_layers(kind: str, b: int, k: int, side: int = 1) -> Graph:
    """The CSP form as the paper counts it: half the channels pass by, the layers keep their inner width.

    Inside a Dark layer the 1x1 then keeps b/2 channels, as in every published CSP network.
    """
    builder = LayerBuilder("linear", channels=b)
    bypass = builder.add("bypass", ChannelSplit(2, 0), Graph.INPUT)
    x = builder.conv("main", Graph.INPUT, b // 2)
    for index in range(k):
        with builder.scope(f"layer{index + 1}"):
            x = LAYER_BUILDERS[kind](builder, x, b // 2, b // 2)
    builder.concat("concat", builder.conv("tail", x, b // 2), bypass)
    return _graph(builder, f"csp-{kind}", b, side)


def dense(b: int, g: int, k: int, kernel: int = 3, side: int = 1) -> Graph:
    """k dense layers: every one reads the base and all outputs before it."""
    builder = LayerBuilder("linear", channels=b)
    parts = [Graph.INPUT]
    for index in range(k):
        x = builder.concat(f"concat{index + 1}", *parts)
        parts.append(builder.conv(f"conv{index + 1}", x, g, kernel))
    return _graph(builder, "dense", b, side)


def one_shot_aggregation(b: int, g: int, k: int, kernel: int = 3, side: int = 1) -> Graph:
    """k layers in a row, all concatenated once at the end."""
    builder = LayerBuilder("linear", channels=b)
    builder.concat("concat", Graph.INPUT, *_chain(builder, Graph.INPUT, g, k, kernel))
    return _graph(builder, "osa", b, side)


def osa_block(variant: OsaVariant, b: int, g: int, k: int) -> Graph:
    """OSANet, CSPOSANet or its PCB form with its transition (paper Table 4).

    CSP and PCB send g of the b channels into the layers. CSP's transition reads the k outputs; PCB's reads the last
    half of everything, (b + kg)/2 channels, and must divide evenly.
    """
    builder = LayerBuilder("linear", channels=b)
    half = (b + k * g) // 2
    x = Graph.INPUT if variant == "osa" else builder.add("part", ChannelSplit(b // g, b // g - 1), Graph.INPUT)
    outputs = _chain(builder, x, g, k, 3)
    if variant == "osa":
        builder.conv("transition", builder.concat("concat", Graph.INPUT, *outputs), half)
    elif variant == "csp":
        done = builder.conv("transition", builder.concat("partial", *outputs), k * g)
        builder.concat("concat", Graph.INPUT, done)
    else:
        everything = builder.concat("everything", Graph.INPUT, *outputs)
        done = builder.conv("transition", builder.add("partial", ChannelSplit(2, 1), everything), half)
        builder.concat("concat", builder.add("straight", ChannelSplit(2, 0), everything), done)
    return _graph(builder, variant, b, 1)


def tiny_block(b: int) -> Graph:
    """The block of YOLOv4-tiny itself: b channels, g = b/2, its base convolution counted among the k = 3 layers."""
    builder = LayerBuilder("linear", channels=b)
    pcb_stage(builder, Graph.INPUT, Stage("pcb", b))
    return _graph(builder, "tiny", b, 1)


def neck_stage(c: int, *, csp: bool) -> Graph:
    """The neck's stage over a concatenation of 2c channels: reversed Dark or reversed CSP (paper Figure 2)."""
    builder = LayerBuilder("linear", channels=2 * c)
    (reversed_csp if csp else reversed_dark)(builder, Graph.INPUT, c, 2)
    return _graph(builder, "neck-csp" if csp else "neck-dark", 2 * c, 1)


def count_macs(graph: Graph) -> int:
    """Multiply-accumulates of the graph's convolutions at its own size."""
    return sum(row.macs for row in node_costs(graph, graph.height, graph.width))


def count_cio(graph: Graph) -> int:
    """Sum of input times output channels over the graph's convolutions."""
    return sum(row.cio for row in node_costs(graph, graph.height, graph.width))


def _chain(builder: LayerBuilder, x: str, g: int, k: int, kernel: int) -> list[str]:
    outputs = []
    for index in range(k):
        x = builder.conv(f"conv{index + 1}", x, g, kernel)
        outputs.append(x)
    return outputs


def _graph(builder: LayerBuilder, name: str, channels: int, side: int) -> Graph:
    return Graph(name, tuple(builder.nodes), side, side, channels=channels)
