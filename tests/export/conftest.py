"""A small model that every format can hold: two heads, Mish and leaky, a split, pools, an upsampling."""

from __future__ import annotations

import numpy as np
import pytest

from scaledyolo.arch.graph import Graph, GraphBuilder
from scaledyolo.arch.ops import ChannelSplit, Concat, Conv, Detect, Pool, Upsample
from scaledyolo.checkpoint import Checkpoint
from scaledyolo.weights import random_weights

CLASSES = ("cat", "dog", "zebra crossing")
ANCHORS = ((8.0, 10.0), (14.0, 9.0), (30.0, 20.0), (25.0, 40.0))


def small_graph(decoding: str = "exp") -> Graph:
    """A network of stride 16 with heads at 8 and 16."""
    build = GraphBuilder()
    outputs = 2 * (5 + len(CLASSES))
    x = build.add("stem", Conv(8, 3, (2, 2), 1, activation="leaky"), Graph.INPUT)
    x = build.add("down1", Conv(16, 3, (2, 2), 1, activation="mish"), x)
    half = build.add("split", ChannelSplit(2, 1), x)
    half = build.add("conv", Conv(8, 3, (1, 1), 1, activation="mish"), half)
    x = build.add("join", Concat(), x, half)
    x = fine = build.add("down2", Conv(24, 3, (2, 2), 1, activation="leaky"), x)
    x = build.add("pool", Pool(2, 2, 0), x)
    x = deep = build.add("deep", Conv(32, 3, (1, 1), 1, activation="mish"), x)
    coarse = build.add("coarse", Conv(outputs, 1, norm=False, bias=True), x)
    build.add("coarse.detect", Detect(ANCHORS, (2, 3), len(CLASSES), decoding), coarse)  # type: ignore[arg-type]
    x = build.add("up", Upsample(2), deep)
    x = build.add("merge", Concat(), x, fine)
    x = build.add("fine", Conv(outputs, 1, norm=False, bias=True), x)
    build.add("fine.detect", Detect(ANCHORS, (0, 1), len(CLASSES), decoding, 1.05), x)  # type: ignore[arg-type]
    return Graph("small", tuple(build.nodes), 64, 96)


@pytest.fixture(scope="session")
def small_model() -> Checkpoint:
    """The network with weights that give a fair number of detections."""
    graph = small_graph()
    weights = random_weights(graph, np.random.default_rng(7))
    for head in ("coarse", "fine"):  # spread the logits, so that scores differ
        weights[f"{head}.weight"] = weights[f"{head}.weight"] * np.float32(1.5)
    return Checkpoint(graph=graph, weights=weights, class_names=CLASSES, category_ids=(3, 5, 9))
