"""Networks of the zoo through export and verification, at a small size: operators do not depend on it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from scaledyolo.arch.cost import cost
from scaledyolo.arch.lower import lower
from scaledyolo.arch.zoo import ZOO
from scaledyolo.checkpoint import Checkpoint
from scaledyolo.classes import default_names
from scaledyolo.export import export
from scaledyolo.weights import random_weights

pytest.importorskip("openvino")
pytest.importorskip("torch")

LARGEST = 130e6  # parameters; beyond, four copies of a network fill the memory of a small machine
DETECTORS = [name for name, spec in ZOO.items() if lower(spec).heads]


@pytest.mark.slow
@pytest.mark.parametrize("name", DETECTORS)
def test_zoo_models_export_and_verify(tmp_path: Path, name: str) -> None:
    graph = lower(ZOO[name])
    if cost(graph, graph.height, graph.width).params > LARGEST:
        pytest.skip("needs more memory than is taken for granted")
    weights = random_weights(graph, np.random.default_rng(0))
    model = Checkpoint(graph=graph, weights=weights, class_names=default_names(graph.num_classes))
    side = 2 * graph.max_stride
    for format_name in ("onnx", "openvino"):
        report = export(model, tmp_path, format=format_name, size=(side, side)).verification
        assert report is not None
        assert report.passed, report.summary()
