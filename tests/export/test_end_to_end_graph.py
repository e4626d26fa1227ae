"""Decoding and suppression inside the graph against the same outside, for every image of a batch."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest

from scaledyolo.arch.graph import Graph
from scaledyolo.arch.ops import Detect
from scaledyolo.artefact import EmbeddedNms
from scaledyolo.checkpoint import Checkpoint
from scaledyolo.convert.onnx_end_to_end import append_detections
from scaledyolo.convert.onnx_writer import to_onnx
from scaledyolo.detector import Detector
from scaledyolo.engines.faithful import scene
from scaledyolo.errors import UsageError
from scaledyolo.export import export
from scaledyolo.postprocess import NMS, decode_candidates, suppress

HEADS = {
    "exp": {"decoding": "exp", "scale_xy": 1.2},
    "sigmoid-squared": {"decoding": "sigmoid-squared"},
    "region": {"decoding": "region", "softmax": True},
    "activated": {"decoding": "sigmoid-squared", "activated": True},
}


def with_heads(graph: Graph, **changes: object) -> Graph:
    nodes = []
    for node in graph:
        op = node.op
        if isinstance(op, Detect):
            op = replace(op, **changes)  # type: ignore[arg-type]
        if node.name in ("coarse", "fine") and changes.get("activated"):
            op = replace(op, activation="logistic")
        nodes.append(replace(node, op=op))
    return graph.with_nodes(tuple(nodes))


def run(model: onnx.ModelProto, images: np.ndarray, runtime: str) -> list[np.ndarray]:
    if runtime == "onnxruntime":
        session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
        return session.run(None, {"images": images})
    pytest.importorskip("openvino")
    from scaledyolo.engines.openvino import OpenVinoEngine

    return OpenVinoEngine(model.SerializeToString()).run(images)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("agnostic", [False, True])
@pytest.mark.parametrize("head", HEADS)
def test_rows_equal_decoding_and_suppression_outside(
    small_model: Checkpoint, head: str, agnostic: bool, runtime: str
) -> None:
    graph = with_heads(small_model.graph, **HEADS[head])
    settings = EmbeddedNms(confidence=0.2, iou=0.5, max_detections=25, class_agnostic=agnostic)
    raw = to_onnx(graph, small_model.weights, batch=None, dynamic=True)
    whole = to_onnx(graph, small_model.weights, batch=None, dynamic=True)
    append_detections(whole, graph.detects, graph.strides, settings)
    onnx.checker.check_model(whole, full_check=True)
    nms = NMS(iou=0.5, class_agnostic=agnostic, max_detections=25)
    for height, width in ((64, 96), (96, 48)):
        # Noise: in flat regions cells have equal scores up to rounding, and any order of them is right.
        images = np.random.default_rng(2).random((4, 3, height, width), np.float32)
        images *= np.asarray([0.3, 0.5, 0.7, 1.0], np.float32).reshape(-1, 1, 1, 1)
        rows, counts = run(whole, images, runtime)
        maps = run(raw, images, "onnxruntime")
        assert rows.shape == (4, 25, 6)
        candidates = decode_candidates(maps, graph.detects, (height, width), 0.2)
        for image, found in enumerate(candidates):
            kept = suppress(found, nms)
            expected = np.concatenate((kept.boxes_xyxy, kept.scores[:, None], kept.class_ids[:, None]), axis=1)
            assert counts[image] == len(kept)
            np.testing.assert_allclose(rows[image, : len(kept)], expected, atol=2e-3)
            assert not rows[image, len(kept) :].any()
    assert len({len(found) for found in candidates}) > 1, "the images should differ"


def test_fewer_boxes_than_rows(small_model: Checkpoint) -> None:
    graph = small_model.graph.with_size(16, 16)  # 2 + 8 boxes
    model = to_onnx(graph, small_model.weights, batch=1)
    append_detections(model, graph.detects, graph.strides, EmbeddedNms(confidence=0.0, iou=1.0, max_detections=30))
    rows, counts = run(model, scene(3, 16, 16, 0)[None], "onnxruntime")
    assert rows.shape == (1, 30, 6)
    assert counts.tolist() == [10]


def test_nothing_found(small_model: Checkpoint) -> None:
    graph = small_model.graph
    model = to_onnx(graph, small_model.weights, batch=None)
    append_detections(model, graph.detects, graph.strides, EmbeddedNms(confidence=0.999999))
    rows, counts = run(model, np.zeros((2, 3, 64, 96), np.float32), "onnxruntime")
    assert counts.tolist() == [0, 0]
    assert not rows.any()


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_detector_runs_end_to_end_files(small_model: Checkpoint, tmp_path: Path, name: str) -> None:
    pytest.importorskip("openvino")
    report = export(small_model, tmp_path, format=name, nms=EmbeddedNms(confidence=0.3), dynamic=True)
    assert report.facts.verification == "verified"
    image = (scene(3, 90, 130, 5) * 255).astype(np.uint8).transpose(1, 2, 0)
    found = Detector(report.path, confidence=0.4, classes=["cat", "dog"])(image)
    expected = Detector(small_model, confidence=0.4, classes=["cat", "dog"], half=False)(image)
    assert len(found) == len(expected) > 0
    np.testing.assert_allclose(found.xyxy, expected.xyxy, atol=0.02)
    with pytest.raises(UsageError, match="ask for no less"):
        Detector(report.path, confidence=0.1)


def test_settings_that_make_no_sense(small_model: Checkpoint) -> None:
    graph = small_model.graph
    with pytest.raises(UsageError, match="between 0 and 1"):
        append_detections(to_onnx(graph, small_model.weights), graph.detects, graph.strides, EmbeddedNms(iou=1.5))
