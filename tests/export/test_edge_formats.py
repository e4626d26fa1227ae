"""ncnn and LiteRT files: written, verified, damaged, and run by the detector and the command line."""

from __future__ import annotations

import json
import platform
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from scaledyolo.checkpoint import Checkpoint, save_checkpoint
from scaledyolo.cli import main
from scaledyolo.detector import Detector
from scaledyolo.engines.faithful import scene
from scaledyolo.errors import FormatError, UsageError
from scaledyolo.export import export, verify
from scaledyolo.export.formats import find_format

RUNTIMES = {"ncnn": "ncnn", "tflite": "ai_edge_litert"}
OPTIONS: dict[str, dict[str, Any]] = {
    "any batch": {},
    "free": {"dynamic": True},
    "fixed": {"batch": 2, "size": (48, 64)},
    "half": {"half": True},
}


@pytest.fixture(params=RUNTIMES)
def name(request: pytest.FixtureRequest) -> str:
    """Each format whose runtime is installed."""
    pytest.importorskip(RUNTIMES[request.param])
    return str(request.param)


@pytest.mark.parametrize("options", OPTIONS)
def test_written_and_verified(small_model: Checkpoint, tmp_path: Path, name: str, options: str) -> None:
    if name == "tflite" and options == "free":
        with pytest.raises(UsageError, match="written for one size; leave out --dynamic"):
            export(small_model, tmp_path, format=name, **OPTIONS[options])
        return
    report = export(small_model, tmp_path, format=name, **OPTIONS[options])
    checked = report.verification
    assert checked is not None
    assert checked.passed, checked.summary()
    assert checked.checks[0].engine.startswith("litert" if name == "tflite" else "ncnn")
    matched, compared = checked.boxes
    assert matched == compared > 100
    assert len({(case.height, case.width) for case in checked.cases}) == (2 if options == "free" else 1)
    assert find_format(name).read(report.path).verification == "verified"
    assert sorted(item.name for item in tmp_path.iterdir()) == [report.path.name, f"{report.path.name}.verified.json"]


def test_half_weights_make_half_the_file(small_model: Checkpoint, tmp_path: Path, name: str) -> None:
    suffix = find_format(name).suffix
    sizes = [
        export(small_model, tmp_path / f"{half}{suffix}", format=name, half=half, verified=False).num_bytes
        for half in (False, True)
    ]
    assert sizes[1] < sizes[0]


def test_the_detector_needs_only_the_file(small_model: Checkpoint, tmp_path: Path, name: str) -> None:
    path = export(small_model, tmp_path, format=name, verified=False).path
    exported, original = Detector(path, confidence=0.3), Detector(small_model, confidence=0.3, engine="torch")
    images = [(scene(3, 120, 160, seed) * 255).astype(np.uint8).transpose(1, 2, 0).copy() for seed in range(3)]
    for found, expected in zip(exported(images), original(images), strict=True):
        assert len(found) == len(expected) > 0
        np.testing.assert_allclose(found.xyxy, expected.xyxy, atol=0.02)
        np.testing.assert_allclose(found.confidence, expected.confidence, atol=1e-4)
    assert exported.category_ids == (3, 5, 9)
    with pytest.raises(UsageError, match="runs in"):
        Detector(path, engine="onnxruntime")
    with pytest.raises(UsageError, match="runs on the CPU in float32 here"):
        Detector(path, device="cuda")


def test_damage_is_caught(small_model: Checkpoint, tmp_path: Path, name: str) -> None:
    """One weight, found by its bytes in the file; then two anchors, and the class names, in the metadata."""
    from scaledyolo.convert.fold import fold

    path = export(small_model, tmp_path, format=name, verified=False).path
    weight = fold(small_model.graph, small_model.weights)[1]["coarse.weight"]  # 1x1: the same bytes in any layout
    file = next(path.glob("*.bin")) if path.is_dir() else path
    whole = file.read_bytes()
    assert whole.count(weight.tobytes()) == 1
    changed = weight.copy()
    changed.flat[100] += 0.5
    file.write_bytes(whole.replace(weight.tobytes(), changed.tobytes()))
    report = verify(path, small_model)
    assert not report.passed
    assert report.worst_error > 0.01
    assert find_format(name).read(path).verification == "UNVERIFIED"

    file.write_bytes(whole)
    form = find_format(name)
    facts = form.read(path)
    first, second, *rest = facts.detects[0].anchors
    heads = tuple(replace(detect, anchors=(second, first, *rest)) for detect in facts.detects)
    for wrong in (replace(facts, detects=heads), replace(facts, class_names=facts.class_names[::-1])):
        form.mark(path, wrong)
        assert not verify(path, small_model).passed
    form.mark(path, facts)
    assert verify(path, small_model).passed


def test_the_command_line(small_model: Checkpoint, tmp_path: Path, capsys, name: str) -> None:
    model = str(tmp_path / "small.safetensors")
    save_checkpoint(model, small_model)
    assert main(["export", model, "--format", name, "--out", str(tmp_path), "--json"]) == 0
    path = json.loads(capsys.readouterr().out)["path"]
    assert main(["verify", path]) == 0
    assert "verified against torch" in capsys.readouterr().out
    pixels = (scene(3, 90, 130, 5) * 255).astype(np.uint8).transpose(1, 2, 0)
    Image.fromarray(np.ascontiguousarray(pixels)).save(tmp_path / "picture.png")
    words = ["detect", str(tmp_path / "picture.png"), "--model", path, "--out", str(tmp_path / "runs"), "--conf", "0.3"]
    assert main(words) == 0
    assert "1 image," in capsys.readouterr().out


def test_damaged_files_are_refused(small_model: Checkpoint, tmp_path: Path, name: str) -> None:
    path = export(small_model, tmp_path, format=name, verified=False).path
    file = next(path.glob("*.param")) if path.is_dir() else path
    for content in (b"", b"nonsense" * 20, file.read_bytes()[:200]):
        file.write_bytes(content)
        with pytest.raises(FormatError) as caught:
            Detector(path)
        assert "\n" not in str(caught.value)


# -- Core ML, which can be written here but not run --------------------------------------------------------------------


@pytest.fixture
def coreml() -> None:
    """The writer's package; its own import fails where one of its needs is missing."""
    for package in ("cattrs", "coremltools"):
        pytest.importorskip(package, exc_type=ImportError)


def test_core_ml_stays_pending_where_it_cannot_run(coreml, small_model: Checkpoint, tmp_path: Path, capsys) -> None:
    if platform.system() == "Darwin":
        pytest.skip("here it runs")
    save_checkpoint(tmp_path / "small.safetensors", small_model)
    path = tmp_path / "small.mlpackage"
    words = [str(tmp_path / "small.safetensors"), "--format", "coreml", "--out", str(path)]
    assert main(["export", *words]) == 0
    assert "not compared with the network" in capsys.readouterr().out
    facts = find_format("coreml").read(path)
    assert facts.verification == "pending"
    assert facts.class_names == small_model.class_names
    assert (facts.batch, facts.dynamic) == (1, False)
    assert main(["verify", str(path)]) == 2
    assert "Core ML runs on macOS only" in capsys.readouterr().err
    with pytest.raises(UsageError, match="macOS only"):
        Detector(path)
    find_format("coreml").mark(path, replace(facts, verification="verified"))
    assert find_format("coreml").read(path).verification == "verified"
    assert main(["export", *words]) == 2
    assert "exists already" in capsys.readouterr().err
    assert main(["export", *words, "--force"]) == 0, "an older package is replaced"
    with pytest.raises(UsageError, match="written for one size"):
        export(small_model, path, format="coreml", dynamic=True)


def test_a_core_ml_package_describes_itself(coreml, small_model: Checkpoint, tmp_path: Path) -> None:
    """Names, shapes and types as coremltools' own reader sees them, and every weight in the file of weights."""
    from coremltools import utils

    path = export(small_model, tmp_path, format="coreml", batch=2, verified=False).path
    description = utils.load_spec(str(path)).description
    (image,) = description.input
    assert (image.name, list(image.type.multiArrayType.shape)) == ("images", [2, 3, 64, 96])
    outputs = {item.name: list(item.type.multiArrayType.shape) for item in description.output}
    assert outputs == {"coarse_detect": [2, 16, 4, 6], "fine_detect": [2, 16, 8, 12]}
    from scaledyolo.convert.fold import fold

    stored = (path / "Data/com.apple.CoreML/weights/weight.bin").read_bytes()
    for name, value in fold(small_model.graph, small_model.weights)[1].items():
        if value.size > 10:  # smaller ones stand in the description
            assert stored.count(value.tobytes()) >= 1, name
    (path / "Data/com.apple.CoreML/weights/weight.bin").unlink()
    with pytest.raises(FormatError, match="weight.bin is missing"):
        Detector(path)


def test_the_core_ml_engine_asks_as_it_should(
    coreml, small_model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a stand-in for Apple's runtime that computes with torch."""
    import coremltools
    import torch

    from scaledyolo.net.network import Network

    network = Network(small_model.graph, inference=True)
    network.load(dict(small_model.weights))

    class StandIn:
        def __init__(self, path: str, compute_units: Any) -> None:
            assert compute_units == coremltools.ComputeUnit.CPU_ONLY
            self._spec = coremltools.utils.load_spec(path)

        def get_spec(self) -> Any:
            return self._spec

        def predict(self, inputs: dict[str, Any]) -> dict[str, Any]:
            with torch.no_grad():
                maps = network.eval()(torch.from_numpy(inputs["images"]))
            return {item.name: raw.numpy() for item, raw in zip(self._spec.description.output, maps, strict=True)}

    path = export(small_model, tmp_path, format="coreml", verified=False).path
    monkeypatch.setattr(platform, "system", lambda: "Darwin")
    monkeypatch.setattr(coremltools.models, "MLModel", StandIn)
    report = verify(path, small_model)
    assert report.passed
    assert report.checks[0].engine.startswith("coreml")
    assert [case.batch for case in report.cases] == [1]
    facts = find_format("coreml").read(path)
    find_format("coreml").mark(path, replace(facts, class_names=facts.class_names[::-1]))
    assert not verify(path, small_model).passed
