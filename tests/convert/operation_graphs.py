"""Small graphs of one operation each, for every writer of foreign formats; tests load this file by its path."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Literal

import numpy as np
import torch
from numpy.typing import NDArray

from scaledyolo.arch.graph import Graph, GraphBuilder
from scaledyolo.arch.ops import (
    Activate,
    Activation,
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
from scaledyolo.net.network import Network
from scaledyolo.weights import Weights

Array = NDArray[np.float32]
Build = Callable[[GraphBuilder], str]


def graph_of(build: Build, *, channels: int = 8, size: tuple[int, int] = (8, 12)) -> Graph:
    """A graph whose head reads what ``build`` adds, with nothing in between."""
    b = GraphBuilder(channels)
    x = build(b)
    b.add("yolo", Detect(((1.0, 1.0),), (0,), b.channels[x] - 5), x)
    return Graph("hand-made", tuple(b.nodes), *size, channels=channels)


def conv(b: GraphBuilder, name: str, filters: int = 8, **options: object) -> str:
    return b.add(name, Conv(filters, **options), Graph.INPUT)  # type: ignore[arg-type]


IMAGE = Graph.INPUT
GRAPHS: Mapping[str, Graph] = {
    "conv": graph_of(lambda b: conv(b, "a", 7, kernel=3, stride=(2, 2), padding=1, activation="leaky")),
    "conv with uneven strides": graph_of(lambda b: conv(b, "a", kernel=3, stride=(1, 2), padding=1)),
    "conv in groups": graph_of(lambda b: conv(b, "a", kernel=3, padding=1, groups=4, bias=True, activation="mish")),
    "conv dilated": graph_of(lambda b: conv(b, "a", kernel=3, padding=2, dilation=2, norm=False)),
    "conv raw": graph_of(lambda b: conv(b, "a", norm=False)),
    "odd size": graph_of(lambda b: conv(b, "a", kernel=3, stride=(2, 2), padding=1, activation="swish"), size=(13, 9)),
    "norm": graph_of(lambda b: b.add("b", BatchNorm("mish"), b.add("a", Activate("leaky"), IMAGE))),
    "affine": graph_of(lambda b: b.add("b", Affine("leaky"), b.add("a", Activate("relu"), IMAGE))),
    "add": graph_of(lambda b: b.add("c", Add("leaky"), conv(b, "a"), conv(b, "b"), IMAGE)),
    "add one": graph_of(lambda b: b.add("c", Add("leaky"), conv(b, "a"))),
    "add wider": graph_of(lambda b: b.add("c", Add(), conv(b, "a"), conv(b, "b", 12))),
    "add narrower": graph_of(lambda b: b.add("c", Add("relu"), conv(b, "a"), conv(b, "b", 5), conv(b, "d", 11))),
    "add weighted": graph_of(
        lambda b: b.add("c", Add("mish", "per_input", "softmax"), conv(b, "a"), conv(b, "b", 12), conv(b, "d", 6))
    ),
    "add weighted by channel": graph_of(
        lambda b: b.add("c", Add("linear", "per_channel", "relu"), conv(b, "a"), conv(b, "b", 5), IMAGE)
    ),
    "multiply": graph_of(lambda b: b.add("c", Multiply("leaky"), conv(b, "a"), conv(b, "b", activation="logistic"))),
    "multiply by one channel": graph_of(lambda b: b.add("c", Multiply(), conv(b, "a"), conv(b, "b", 1))),
    "multiply by one position": graph_of(
        lambda b: b.add("c", Multiply(), conv(b, "a"), b.add("b", GlobalAveragePool(), IMAGE))
    ),
    "global average": graph_of(lambda b: b.add("a", GlobalAveragePool(), IMAGE)),
    "upsample": graph_of(lambda b: b.add("b", Upsample(2), conv(b, "a", kernel=3, padding=1))),
    "upsample with gain": graph_of(lambda b: b.add("a", Upsample(3, 0.5), IMAGE)),
    "concat": graph_of(lambda b: b.add("c", Concat(), conv(b, "a", 3), IMAGE, conv(b, "b", 4))),
    "concat of one": graph_of(lambda b: b.add("c", Concat(), conv(b, "a", 7))),
    "split": graph_of(
        lambda b: b.add("c", Concat(), *(b.add(f"s{i}", ChannelSplit(4, i), IMAGE) for i in (1, 3, 0, 2)))
    ),
    "space to depth by row": graph_of(lambda b: b.add("a", SpaceToDepth(2, "row"), IMAGE)),
    "space to depth by column": graph_of(lambda b: b.add("a", SpaceToDepth(2, "column"), IMAGE)),
    "space to depth of three": graph_of(lambda b: b.add("a", SpaceToDepth(3, "column"), IMAGE), size=(9, 12)),
    "depth to space": graph_of(lambda b: b.add("a", DepthToSpace(2), conv(b, "x", 24))),
    "reorg": graph_of(lambda b: b.add("a", Reorg(2), IMAGE)),
    "implicit": graph_of(
        lambda b: b.add("c", Implicit("multiply"), b.add("b", Implicit("add"), b.add("a", Activate("tanh"), IMAGE)))
    ),
    "spp": graph_of(
        lambda b: b.add("c", Concat(), *(b.add(f"p{k}", Pool(k, 1, k - 1), IMAGE) for k in (13, 9, 5)), IMAGE),
        size=(15, 14),
    ),
}


def pool_graph(kind: Literal["max", "average"], kernel: int, stride: int, size: tuple[int, int]) -> Graph:
    return graph_of(lambda b: b.add("a", Pool(kernel, stride, kernel - 1, kind), IMAGE), size=size)


POOLS: tuple[Literal["max", "average"], ...] = ("max", "average")
GRAPHS = dict(GRAPHS) | {
    f"{kind} pool {kernel}/{stride} of {height}x{width}": pool_graph(kind, kernel, stride, (height, width))
    for kind in POOLS
    for kernel, stride, height, width in ((2, 2, 8, 12), (2, 2, 9, 7), (2, 1, 6, 5), (3, 2, 8, 9), (3, 1, 7, 7))
}


def by_torch(graph: Graph, weights: Weights, images: Array) -> list[Array]:
    network = Network(graph).eval()
    network.load(weights)
    with torch.inference_mode():
        return [raw.numpy() for raw in network(torch.from_numpy(images))]


def random_images(graph: Graph, batch: int = 2) -> Array:
    shape = (batch, graph.channels, graph.height, graph.width)
    return np.random.default_rng(1).normal(0, 1, shape).astype(np.float32)


def assert_equal_maps(found: list[Array], expected: list[Array], tolerance: float = 2e-5) -> None:
    assert len(found) == len(expected)
    for a, b in zip(found, expected, strict=True):
        assert a.shape == b.shape
        assert np.abs(a - b).max() <= tolerance * np.abs(b).max()


def activation_graph(activation: Activation, columns: int) -> Graph:
    return graph_of(lambda b: b.add("a", Activate(activation), IMAGE), channels=6, size=(1, columns))
