"""OpenCV 5, which reads Darknet files no more, reads our ONNX: in a process of its own, from a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from scaledyolo.arch.lower import lower
from scaledyolo.arch.zoo import ZOO
from scaledyolo.checkpoint import Checkpoint
from scaledyolo.classes import default_names
from scaledyolo.export import export
from scaledyolo.weights import random_weights

_COMPARE = """
import sys
import cv2, numpy as np, onnxruntime
assert cv2.__version__.startswith("5."), cv2.__version__
net = cv2.dnn.readNetFromONNX(sys.argv[1])
names = net.getUnconnectedOutLayersNames()
session = onnxruntime.InferenceSession(sys.argv[1])
for batch, height, width in ((1, 96, 128), (2, 96, 128)):
    images = np.random.default_rng(batch).random((batch, 3, height, width), np.float32)
    net.setInput(images)
    found = dict(zip(names, net.forward(names)))
    for output, expected in zip(session.get_outputs(), session.run(None, {"images": images})):
        assert found[output.name].shape == expected.shape
        assert np.abs(found[output.name] - expected).max() < 1e-4 * np.abs(expected).max()
"""


@pytest.fixture(scope="module")
def opencv5(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that holds OpenCV 5 and nothing else."""
    folder = tmp_path_factory.mktemp("opencv5")
    wish = ["opencv-python-headless==5.*", "--no-deps", "--quiet", "--target", str(folder)]
    result = subprocess.run([sys.executable, "-m", "pip", "install", *wish], capture_output=True, text=True)
    if result.returncode:
        pytest.skip("OpenCV 5 cannot be installed here")
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["yolov4-tiny", "yolov4-csp"])
@pytest.mark.parametrize("dynamic", [False, True])
def test_opencv5_computes_the_same(opencv5: Path, tmp_path: Path, name: str, dynamic: bool) -> None:
    graph = lower(ZOO[name])
    weights = random_weights(graph, np.random.default_rng(0))
    model = Checkpoint(graph=graph, weights=weights, class_names=default_names(80))
    path = export(model, tmp_path, size=(96, 128), dynamic=dynamic, verified=False).path
    environment = {**os.environ, "PYTHONPATH": str(opencv5)}
    arguments = [sys.executable, "-c", _COMPARE, str(path)]
    result = subprocess.run(arguments, capture_output=True, text=True, env=environment, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
