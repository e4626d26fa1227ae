"""Half precision is the default of detecting where it was measured to be faithful, and never where exactness counts."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest

from scaledyolo import ZOO, Checkpoint, Detector, lower, save_checkpoint
from scaledyolo.classes import COCO_NAMES
from scaledyolo.cli import main
from scaledyolo.cli.eval import Eval
from scaledyolo.export import export
from scaledyolo.export.formats import FORMATS
from scaledyolo.runnable import open_runnable
from scaledyolo.weights import random_weights

pytest.importorskip("openvino")

from scaledyolo.engines.openvino import available_precisions

pytestmark = pytest.mark.skipif("bfloat16" not in available_precisions(), reason="this processor lacks bfloat16")
SIZE = 96


@pytest.fixture(scope="module")
def model() -> Checkpoint:
    graph = lower(ZOO["yolov4-tiny"]).with_size(SIZE, SIZE)
    return Checkpoint(graph=graph, weights=random_weights(graph, np.random.default_rng(1)), class_names=COCO_NAMES)


@pytest.fixture(scope="module")
def fragile(model: Checkpoint) -> Checkpoint:
    """The same network with large values that cancel: eight bits of mantissa are too few for it."""
    graph, weights = model.graph, dict(model.weights)
    source = graph[graph.heads[0].inputs[0]].inputs[0]
    weights[f"{source}.norm.bias"] = weights[f"{source}.norm.bias"] + np.float32(300)
    return Checkpoint(graph=graph, weights=weights, class_names=COCO_NAMES)


def test_detecting_is_half_precision_where_that_is_faithful(model: Checkpoint, fragile: Checkpoint) -> None:
    assert Detector(model).engine.precision == open_runnable(model).engine.precision == "bfloat16"
    assert Detector(fragile).engine.precision == "float32"
    assert Detector(model, half=False).engine.precision == "float32"
    assert Detector(fragile, half=True).engine.precision == "bfloat16"


def test_measuring_and_verifying_stay_exact(model: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model)
    assert Eval((str(path),), (tmp_path,))._detector(str(path), "nms").engine.precision == "float32"
    exported = export(model, tmp_path, format="onnx", verified=False).path
    assert FORMATS["onnx"].open(exported, "openvino").engine.precision == "float32"
    assert Detector(exported, engine="openvino").engine.precision == "bfloat16"  # the same file for a user


@pytest.mark.parametrize(("half", "precision"), [("auto", "bfloat16"), ("on", "bfloat16"), ("off", "float32")])
def test_the_command_line_says_what_it_computes_in(
    model: Checkpoint, tmp_path: Path, half: str, precision: str, capsys: pytest.CaptureFixture[str]
) -> None:
    path, image = tmp_path / "model.safetensors", tmp_path / "image.png"
    save_checkpoint(path, model)
    cv2.imwrite(str(image), np.full((64, 64, 3), 90, np.uint8))
    assert main(["detect", str(image), "--model", str(path), "--save", "none", "--half", half]) == 0
    assert f"on cpu in {precision}" in capsys.readouterr().out
