"""Normalisation over a concatenation and of each branch: equal where the branches arrive bare, refused elsewhere."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scaledyolo.arch.lower import lower
from scaledyolo.arch.ops import BatchNorm
from scaledyolo.arch.spec import Neck, Stage, Stem
from scaledyolo.arch.zoo import find, yaml_form
from scaledyolo.checkpoint import Checkpoint, save_checkpoint
from scaledyolo.convert.conversion import convert
from scaledyolo.convert.darknet_cfg import read_cfg
from scaledyolo.convert.norm_form import branch_form, branch_weights
from scaledyolo.convert.onnx_writer import to_onnx
from scaledyolo.errors import ConversionError
from scaledyolo.weights import check_weights, random_weights

STAGES = tuple(Stage("csp", width, 1) for width in (16, 16, 24, 32, 40))
# CSP stages in the backbone, plain ones in the neck.
SPEC = replace(
    yaml_form(find("table8-cd53s-fpnspp-mish"), "csp-backbone"),
    stem=Stem(8),
    stages=STAGES,
    neck=Neck("fpn", (8, 16, 24)),
    num_classes=2,
    size=64,
)


def test_the_backbone_is_exact_in_both_forms(tmp_path: Path) -> None:
    import cv2
    import onnxruntime

    graph = lower(SPEC)
    weights = random_weights(graph, np.random.default_rng(1))
    moved, moved_weights = branch_form(graph), branch_weights(graph, weights)
    assert sum(isinstance(node.op, BatchNorm) for node in graph) == len(STAGES)
    assert not any(isinstance(node.op, BatchNorm) for node in moved)
    check_weights(moved, moved_weights)
    assert sum(map(np.size, weights.values())) == sum(map(np.size, moved_weights.values()))
    image = np.random.default_rng(2).random((1, 3, 64, 64), np.float32)
    session = onnxruntime.InferenceSession(to_onnx(graph, weights).SerializeToString())
    expected = session.run(None, {session.get_inputs()[0].name: image})
    save_checkpoint(
        tmp_path / "x.safetensors", Checkpoint(graph=graph, weights=weights, class_names=("a", "b"), spec=SPEC)
    )
    convert(tmp_path / "x.safetensors", tmp_path / "x.weights")
    other = cv2.dnn.readNetFromDarknet(str(tmp_path / "x.cfg"), str(tmp_path / "x.weights"))
    other.setInput(image)
    written = read_cfg(tmp_path / "x.cfg")
    heads = [written.sections.index(head.inputs[0]) for head in written.graph.heads]
    for index, wanted in zip(heads, expected, strict=True):
        np.testing.assert_allclose(other.forward(f"conv_{index}"), wanted, rtol=0, atol=1e-4)


def test_the_neck_is_refused() -> None:
    with pytest.raises(ConversionError, match=r"neck\.top_down\.p5\.norm.*normalised and activated already"):
        branch_form(lower(find("yolov4-p5")))


def test_a_graph_without_joint_normalisation_stays_as_it_is() -> None:
    graph = lower(find("yolov4-csp"))
    assert branch_form(graph) is graph
