"""Layers from kernels: by hand on a network of three nodes, and on real profiles against what the graph costs."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scaledyolo.arch.cost import cost, node_costs
from scaledyolo.arch.graph import Graph, Node
from scaledyolo.arch.lower import lower
from scaledyolo.arch.ops import Add, Conv, Detect
from scaledyolo.arch.roofline import Roof
from scaledyolo.arch.zoo import find
from scaledyolo.bench.jobs import NetworkJob, ProfileJob
from scaledyolo.bench.networks import random_checkpoint
from scaledyolo.bench.profile import ProfileCandidate, split_rounds
from scaledyolo.bench.roofline import RUNTIME, layers_of, moved_bytes, node_of
from scaledyolo.checkpoint import save_checkpoint
from scaledyolo.errors import UsageError

# 3 -> 16 channels, 16 -> 16, their sum, 16 -> 8 for a head of 3 classes; 8 x 8 pixels throughout.
GRAPH = Graph(
    "three",
    (
        Node("stem", Conv(16, kernel=3, padding=1), (Graph.INPUT,)),
        Node("block.conv", Conv(16, kernel=1), ("stem",)),
        Node("block.add", Add(), ("block.conv", "stem")),
        Node("out", Conv(8, kernel=1, norm=False, bias=True), ("block.add",)),
        Node("head", Detect(((8.0, 8.0),), (0,), num_classes=3), ("out",)),
    ),
    height=8,
    width=8,
)
PIXELS = 64


def kernel(name: str, ms: float, *sources: str, kind: str = "Convolution x") -> dict[str, object]:
    return {"name": name, "type": kind, "sources": list(sources), "ms": ms}


def test_nodes_are_found_by_their_names_and_by_parts_of_them() -> None:
    nodes = {"block.conv1": 0, "block.conv10": 0, "block": 0}
    assert node_of("block.conv1", nodes) == "block.conv1"
    assert node_of("block.conv10.linear/WithoutBiases", nodes) == "block.conv10"
    assert node_of("block.conv2.exp", nodes) == "block"
    assert node_of("Reorder_12", nodes) is None
    assert node_of("", nodes) is None


def test_layers_by_hand() -> None:
    kernels = [
        kernel("images_reorder", 0.5, kind="Reorder jit"),
        kernel("stem.linear/WithoutBiases", 2.0, "stem.linear", "stem"),
        kernel("block.conv", 1.0, "block.conv", "block.add"),  # the sum went into the convolution
        kernel("head", 0.5, "head.linear", "head"),  # the map that a head reads is named by the head
    ]
    roof = Roof(flops_per_s=1e9, bytes_per_s=1e9)
    rows = layers_of(kernels, GRAPH, height=8, width=8, batch=2, precision="bfloat16", roof=roof)
    assert [row.name for row in rows] == ["stem", "block.conv", "out", RUNTIME]
    stem, block, out, runtime = rows
    assert stem.flops == 2 * 2 * 3 * 3 * 3 * 16 * PIXELS
    assert block.nodes == ("block.conv", "block.add")
    # Read: the stem's map, once; written: the sum; weights: 16 x 16 and the normalisation's two vectors.
    assert block.num_bytes == 2 * (2 * (16 + 16) * PIXELS + 16 * 16 + 2 * 16)
    assert out.num_bytes == 2 * (2 * (16 + 8) * PIXELS + 16 * 8 + 8)
    assert stem.gflops == pytest.approx(stem.flops / 2e-3 / 1e9)
    assert stem.intensity == pytest.approx(stem.flops / stem.num_bytes)
    assert (stem.bound, runtime.bound) == ("compute", "overhead")
    assert stem.roof_share == pytest.approx(stem.flops / 1e9 / 2e-3)
    assert runtime.roof_share is None
    assert [row.share for row in rows] == pytest.approx([0.5, 0.25, 0.125, 0.125])


def test_a_layer_below_the_ridge_is_bound_by_memory() -> None:
    roof = Roof(flops_per_s=1e12, bytes_per_s=1e9)
    (row,) = layers_of([kernel("stem", 1.0)], GRAPH, height=8, width=8, batch=1, precision="float32", roof=roof)
    assert row.bound == "memory"
    assert row.roof_share == pytest.approx(row.num_bytes / 1e9 / 1e-3)


def test_all_nodes_together_move_the_image_the_map_and_the_weights() -> None:
    costs = [row for row in node_costs(GRAPH, 8, 8) if row.node.name != "head"]
    params = sum(row.params for row in costs)
    assert moved_bytes(costs, GRAPH, GRAPH.shapes(8, 8), 1, 4) == 4 * ((3 + 8) * PIXELS + params)


def test_rounds_of_a_profile_are_told_apart_by_their_length() -> None:
    def event(name: str, microseconds: int) -> dict[str, object]:
        return {"cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds, "args": {"op_name": "Conv"}}

    once = [("stem_nchwc", 2000), ("ReorderOutput_token_5", 500), ("stem.exp", 100)]
    events = [{"cat": "Session", "name": "session_initialization", "dur": 9}]
    for factor in (1, 3):
        events += [event(name, factor * dur) for name, dur in once]
    first, second = split_rounds(events, 2)
    assert [row["name"] for row in first] == ["stem", "ReorderOutput", "stem.exp"]
    assert [row["ms"] for row in second] == [6.0, 1.5, 0.3]


@pytest.mark.parametrize(
    ("engine", "precision", "name"),
    [
        ("openvino", "float32", "yolov4-tiny"),
        ("onnxruntime", "float32", "yolov4-tiny"),
        ("openvino", "float32", "yolov4-csp-s"),
        ("onnxruntime", "float32", "yolov4-csp-s"),
    ],
)
def test_a_real_profile_accounts_for_every_operation_once(
    engine: str, precision: str, name: str, tmp_path: Path
) -> None:
    if engine == "openvino":
        pytest.importorskip("openvino")
    graph = lower(find(name)).with_size(64, 64)
    path = tmp_path / "net.safetensors"
    save_checkpoint(path, random_checkpoint(graph))
    job = NetworkJob((str(path),), engine, "cpu", precision, 64, 64, batch=1, threads=1)
    kernels = ProfileCandidate(ProfileJob(job, rounds=1)).sample()["kernels"]
    roof = Roof(1e11, 1e10)
    rows = layers_of(kernels, graph, height=64, width=64, batch=1, precision=precision, roof=roof)
    assert sum(row.flops for row in rows) == 2 * cost(graph, 64, 64).macs
    assert sum(row.share for row in rows) == pytest.approx(1.0)
    nodes = [node for row in rows if row.name != RUNTIME for node in row.nodes]
    assert len(nodes) == len(set(nodes))
    assert all(np.isfinite(row.ms) and row.ms >= 0 for row in rows)


def test_engines_that_do_not_tell_are_refused() -> None:
    job = NetworkJob(("x.safetensors",), "torch", "cpu", "float32", 64, 64, 1, 1)
    with pytest.raises(UsageError, match="torch does not tell the time of each layer; openvino, onnxruntime do"):
        ProfileCandidate(ProfileJob(job, 1))
