"""Every format: written, verified, read back, and the detector needs nothing else."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaledyolo.artefact import EmbeddedNms
from scaledyolo.checkpoint import Checkpoint
from scaledyolo.detector import Detector
from scaledyolo.engines.faithful import scene
from scaledyolo.errors import FormatError, OutputError, ScaledYoloError, SpecError, UsageError
from scaledyolo.export import ELSEWHERE, FORMATS, export
from scaledyolo.export.formats import find_format

pytest.importorskip("openvino")
pytest.importorskip("torch")

OPTIONS: dict[str, dict[str, Any]] = {
    "any batch": {},
    "free": {"dynamic": True},
    "fixed": {"batch": 2, "size": (48, 64)},
}


def photograph(seed: int = 3, height: int = 120, width: int = 160) -> np.ndarray:
    return np.ascontiguousarray((scene(3, height, width, seed) * 255).astype(np.uint8).transpose(1, 2, 0))


SLOW = pytest.mark.slow  # torch.export takes seconds for any network
CASES = [
    *[pytest.param(name, options) for name in ("onnx", "openvino", "torchscript") for options in OPTIONS],
    pytest.param("torch-export", "fixed"),
    pytest.param("torch-export", "any batch", marks=SLOW),
    pytest.param("torch-export", "free", marks=SLOW),
]


@pytest.mark.parametrize(("name", "options"), CASES)
def test_every_format_is_verified(small_model: Checkpoint, tmp_path: Path, name: str, options: str) -> None:
    report = export(small_model, tmp_path, format=name, **OPTIONS[options])
    checked = report.verification
    assert checked is not None
    assert checked.passed, checked.summary()
    assert report.path.name == f"small{FORMATS[name].suffix}"
    batches = {case.batch for case in checked.cases}
    sizes = {(case.height, case.width) for case in checked.cases}
    assert batches == ({2} if options == "fixed" else {1, 2, 7})
    assert len(sizes) == (2 if options == "free" else 1)
    matched, compared = checked.boxes
    assert matched == compared > 100
    assert find_format(name).read(report.path).verification == "verified"
    assert sorted(item.name for item in tmp_path.iterdir()) == [report.path.name, f"{report.path.name}.verified.json"]


def test_the_report_says_what_was_compared(small_model: Checkpoint, tmp_path: Path) -> None:
    report = export(small_model, tmp_path / "a.onnx")
    values = json.loads((tmp_path / "a.onnx.verified.json").read_text())
    assert values["passed"] is True
    assert [check["engine"].split()[0] for check in values["checks"]] == ["onnxruntime", "openvino"]
    assert values["reference"].startswith("torch")
    for check in values["checks"]:
        assert [case["batch"] for case in check["cases"]] == [1, 2, 7]
        assert {item["output"] for item in check["cases"][0]["maps"]} == {"coarse.detect", "fine.detect"}
    assert set(values["machine"]) >= {"processor", "architecture", "cores"}
    assert report.num_bytes == (tmp_path / "a.onnx").stat().st_size


def test_sums_are_traced_in_silence(tmp_path: Path) -> None:
    """A sum asks for numbers of channels, which tracing answers once and for all."""
    from scaledyolo.arch.graph import Graph, GraphBuilder
    from scaledyolo.arch.ops import Add, Conv, Detect
    from scaledyolo.weights import random_weights

    build = GraphBuilder()
    x = build.add("stem", Conv(16, 3, (2, 2), 1), Graph.INPUT)
    x = build.add("sum", Add("leaky"), x, build.add("other", Conv(16, 3, padding=1), x))
    x = build.add("raw", Conv(16, norm=False, bias=True), x)
    build.add("head", Detect(((8.0, 8.0), (16.0, 9.0)), (0, 1), 3), x)
    graph = Graph("sums", tuple(build.nodes), 32, 32)
    weights = random_weights(graph, np.random.default_rng(0))
    model = Checkpoint(graph=graph, weights=weights, class_names=("a", "b", "c"))
    assert export(model, tmp_path, format="torchscript").facts.verification == "verified"


@pytest.mark.slow
def test_darknet_pair_is_read_back(tmp_path: Path) -> None:
    from scaledyolo.classes import default_names
    from scaledyolo.model import load_graph
    from scaledyolo.weights import random_weights

    graph = load_graph("yolov4-tiny").with_size(64, 64)
    model = Checkpoint(
        graph=graph, weights=random_weights(graph, np.random.default_rng(0)), class_names=default_names(80)
    )
    report = export(model, tmp_path, format="darknet")
    assert report.facts.verification == "verified"
    assert {item.suffix for item in tmp_path.iterdir()} == {".cfg", ".weights", ".names", ".json"}


@pytest.mark.parametrize(("name", "engine"), [("onnx", "onnxruntime"), ("onnx", "openvino"), ("openvino", "auto")])
@pytest.mark.parametrize("options", OPTIONS)
def test_detector_needs_only_the_artefact(
    small_model: Checkpoint, tmp_path: Path, name: str, engine: str, options: str
) -> None:
    path = export(small_model, tmp_path, format=name, verified=False, **OPTIONS[options]).path
    exported = Detector(path, confidence=0.3, engine=engine, half=False)
    size = OPTIONS[options].get("size")
    original = Detector(small_model, confidence=0.3, engine="torch", size=size)
    images = [photograph(seed) for seed in range(3)]  # three images also where the batch is two
    for found, expected in zip(exported(images), original(images), strict=True):
        assert len(found) == len(expected) > 0
        np.testing.assert_allclose(found.xyxy, expected.xyxy, atol=0.02)
        np.testing.assert_allclose(found.confidence, expected.confidence, atol=1e-4)
        assert list(found.data["class_name"]) == list(expected.data["class_name"])
    assert exported.category_ids == (3, 5, 9)
    assert exported.network.facts.verification == "pending"


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_half_storage_halves_the_file_and_stays_close(small_model: Checkpoint, tmp_path: Path, name: str) -> None:
    full = export(small_model, tmp_path / ("a" + FORMATS[name].suffix), format=name)
    half = export(small_model, tmp_path / ("b" + FORMATS[name].suffix), format=name, half=True)
    assert half.facts.verification == "verified"
    assert half.verification is not None
    assert {check.tolerance_name for check in half.verification.checks} == {"float16"}
    assert half.num_bytes < full.num_bytes


def test_half_refuses_what_float16_cannot_hold(small_model: Checkpoint, tmp_path: Path) -> None:
    weights = dict(small_model.weights)
    weights["coarse.weight"] = weights["coarse.weight"] * np.float32(1e6)
    model = Checkpoint(graph=small_model.graph, weights=weights, class_names=small_model.class_names)
    with pytest.raises(ScaledYoloError, match=r"coarse\.weight: holds"):
        export(model, tmp_path, half=True)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", [name for name, form in FORMATS.items() if not form.nms])
def test_formats_without_suppression_say_so(small_model: Checkpoint, tmp_path: Path, name: str) -> None:
    with pytest.raises(UsageError, match="it can of onnx, openvino"):
        export(small_model, tmp_path, format=name, nms=EmbeddedNms())


def test_options_that_make_no_sense(small_model: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean 'onnx'"):
        export(small_model, tmp_path, format="onxx")
    for name, way in ELSEWHERE.items():
        with pytest.raises(UsageError) as caught:
            export(small_model, tmp_path, format=name)
        assert way in str(caught.value)
    with pytest.raises(SpecError, match="multiple of the largest stride 16"):
        export(small_model, tmp_path, size=(60, 64))
    with pytest.raises(UsageError, match="float16 can be stored by onnx, openvino"):
        export(small_model, tmp_path, format="torchscript", half=True)
    with pytest.raises(UsageError, match=r"named \*\.onnx"):
        export(small_model, tmp_path / "model.xml", format="onnx")
    with pytest.raises(OutputError, match="no such folder"):
        export(small_model, tmp_path / "nowhere" / "model.onnx")
    assert not list(tmp_path.iterdir())


def test_a_fixed_size_is_kept(small_model: Checkpoint, tmp_path: Path) -> None:
    path = export(small_model, tmp_path, verified=False).path
    with pytest.raises(SpecError, match="exported for 64x96 only"):
        Detector(path, size=(128, 128))


def test_foreign_folders_are_not_replaced(small_model: Checkpoint, tmp_path: Path) -> None:
    folder = tmp_path / "mine_openvino_model"
    folder.mkdir()
    (folder / "thesis.txt").write_text("do not lose me")
    report = export(small_model, folder, format="openvino", verified=False)
    assert report.path == folder / "small_openvino_model"  # inside, as for any folder
    assert (folder / "thesis.txt").exists()
    again = export(small_model, report.path, format="openvino", half=True, verified=False)
    assert again.path == report.path
    assert find_format("openvino").read(again.path).storage == "float16"


def test_foreign_and_damaged_files_are_refused(small_model: Checkpoint, tmp_path: Path) -> None:
    import onnx

    path = export(small_model, tmp_path, verified=False).path
    model = onnx.load(path)
    del model.metadata_props[:]
    onnx.save(model, tmp_path / "bare.onnx")
    with pytest.raises(FormatError, match="does not say how its outputs become boxes"):
        Detector(tmp_path / "bare.onnx")
    (tmp_path / "cut.onnx").write_bytes(path.read_bytes()[:500])
    with pytest.raises(FormatError):
        Detector(tmp_path / "cut.onnx")
    with pytest.raises(FormatError, match="No such file|no such file"):
        Detector(tmp_path / "missing.onnx")
    folder = export(small_model, tmp_path, format="openvino", verified=False).path
    (folder / "metadata.json").unlink()
    with pytest.raises(FormatError, match="it belongs to"):
        Detector(folder)
