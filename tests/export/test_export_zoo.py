"""Every network of the zoo through export and verification, at a small size: operators do not depend on it.

Weights are random with activations near one, which shows errors better than trained ones: nothing is nearly zero.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from scaledyolo.arch.cost import cost
from scaledyolo.arch.graph import Graph
from scaledyolo.arch.lower import lower
from scaledyolo.arch.zoo import ZOO
from scaledyolo.checkpoint import Checkpoint
from scaledyolo.classes import default_names
from scaledyolo.export import export
from scaledyolo.weights import random_weights

pytest.importorskip("openvino")
pytest.importorskip("torch")

DETECTORS = [name for name, spec in ZOO.items() if lower(spec).heads]
QUICK = ("yolov4-tiny", "table9-cosa-1x3x")  # what the fast tests look at
SMALLEST_SIDE = 64  # pixels
# Memory at the peak, in bytes a parameter: weights, model, file, and a runtime that packs them once more (measured).
BYTES_PER_PARAMETER = 32
EDGE = {"ncnn": "ncnn", "tflite": "ai_edge_litert"}


def quick_or_slow(names: list[str]) -> list[object]:
    return [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in names]


def model_of(graph: Graph) -> Checkpoint:
    parameters = cost(graph, graph.height, graph.width).params
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if parameters * BYTES_PER_PARAMETER > max(free, available_memory()):
        pytest.skip(f"needs {parameters * BYTES_PER_PARAMETER / 2**30:.0f} GiB of free memory")
    weights = random_weights(graph, np.random.default_rng(0))
    return Checkpoint(graph=graph, weights=weights, class_names=default_names(graph.num_classes))


def available_memory() -> int:
    """Bytes that a process may take, the page cache counted in, as Linux estimates it; 0 elsewhere."""
    try:
        lines = Path("/proc/meminfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable")), 0)


def assert_verified(model: Checkpoint, folder: Path, format_name: str) -> None:
    side = max(model.graph.max_stride, SMALLEST_SIDE)
    report = export(model, folder, format=format_name, size=(side, side))
    checked = report.verification
    assert checked is not None
    assert checked.passed, checked.summary()
    runtimes = {check.engine.split()[0] for check in checked.checks}
    assert runtimes == {"onnx": {"onnxruntime", "openvino"}, "tflite": {"litert"}}.get(format_name, {format_name})
    assert {case.batch for case in checked.cases} == {1, 2, 7}
    matched, compared = checked.boxes
    assert matched == compared > 0
    if report.path.is_dir():
        shutil.rmtree(report.path)  # the largest take 1.1 GiB each
    else:
        report.path.unlink()


@pytest.mark.parametrize("name", quick_or_slow(DETECTORS))
def test_zoo_networks_export_and_verify(tmp_path: Path, name: str) -> None:
    model = model_of(lower(ZOO[name]))
    for format_name in ("onnx", "openvino"):
        assert_verified(model, tmp_path, format_name)


@pytest.mark.parametrize("name", quick_or_slow(DETECTORS))
@pytest.mark.parametrize("format_name", EDGE)
def test_zoo_networks_in_edge_formats(tmp_path: Path, format_name: str, name: str) -> None:
    pytest.importorskip(EDGE[format_name])
    assert_verified(model_of(lower(ZOO[name])), tmp_path, format_name)


REAL = ("yolo-fastest-1.1", "yolo-fastest-1.1-xl")


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("format_name", ["onnx", "openvino", "torchscript", "darknet", "ncnn", "tflite"])
@pytest.mark.parametrize("name", REAL)
def test_trained_networks_on_photographs(shared: Path, tmp_path: Path, name: str, format_name: str) -> None:
    """Depthwise convolutions and trained weights: small and large values side by side."""
    from scaledyolo.model import load_model

    if format_name in EDGE:
        pytest.importorskip(EDGE[format_name])
    folder = shared / "weights"
    model = load_model((folder / f"{name}.cfg", folder / f"{name}.weights"), names=folder / "coco.names")
    checked = export(model, tmp_path, format=format_name, images=sorted((shared / "images").glob("*.jpg"))).verification
    assert checked is not None
    assert checked.passed, checked.summary()


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.parametrize("name", ["yolov2", "yolov3-tiny", "yolov4-tiny", "yolov4-csp", "yolov4-p5"])
def test_networks_of_foreign_cfgs(shared: Path, tmp_path: Path, name: str) -> None:
    from scaledyolo.model import load_graph

    assert_verified(model_of(load_graph(shared / "darknet_cfg" / f"{name}.cfg")), tmp_path, "onnx")
