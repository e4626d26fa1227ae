"""Verification catches what is wrong, and nothing that is right."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest

from scaledyolo.artefact import EmbeddedNms, ModelFacts
from scaledyolo.checkpoint import Checkpoint, save_checkpoint
from scaledyolo.cli import main
from scaledyolo.errors import FormatError
from scaledyolo.export import export, verify
from scaledyolo.export.compare import TOLERANCES, compare_detections, compare_map
from scaledyolo.export.formats import find_format
from scaledyolo.postprocess import Candidates

pytest.importorskip("openvino")


@pytest.fixture
def exported(small_model: Checkpoint, tmp_path: Path) -> Path:
    return export(small_model, tmp_path / "model.onnx", verified=False).path


def change_one_weight(model: onnx.ModelProto) -> None:
    tensor = next(item for item in model.graph.initializer if item.name == "deep.weight")
    values = onnx.numpy_helper.to_array(tensor).copy()
    values.flat[1000] += 0.5
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def reverse_channels(model: onnx.ModelProto) -> None:
    tensor = next(item for item in model.graph.initializer if item.name == "stem.weight")
    values = np.ascontiguousarray(onnx.numpy_helper.to_array(tensor)[:, ::-1])
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def change_metadata(path: Path, facts: ModelFacts) -> None:
    find_format("onnx").mark(path, facts)


def test_an_untouched_file_passes_and_is_marked(small_model: Checkpoint, exported: Path) -> None:
    assert find_format("onnx").read(exported).verification == "pending"
    assert verify(exported, small_model).passed
    assert find_format("onnx").read(exported).verification == "verified"
    assert verify(exported, small_model, engine="openvino").passed


@pytest.mark.parametrize("damage", [change_one_weight, reverse_channels])
def test_damaged_networks_are_caught(small_model: Checkpoint, exported: Path, damage: object) -> None:
    model = onnx.load(exported)
    damage(model)  # type: ignore[operator]
    onnx.save(model, exported)
    report = verify(exported, small_model)
    assert not report.passed
    assert report.worst_error > 0.01
    assert find_format("onnx").read(exported).verification == "UNVERIFIED"
    assert json.loads(exported.with_name("model.onnx.verified.json").read_text())["passed"] is False


def test_swapped_anchors_are_caught(small_model: Checkpoint, exported: Path) -> None:
    facts = find_format("onnx").read(exported)
    first, second, *rest = facts.detects[0].anchors
    swapped = tuple(replace(detect, anchors=(second, first, *rest)) for detect in facts.detects)
    change_metadata(exported, replace(facts, detects=swapped))
    report = verify(exported, small_model)
    assert not report.passed
    assert report.worst_error < 1e-3, "the maps are right; only the boxes can show it"
    matched, compared = report.boxes
    assert matched < compared


@pytest.mark.parametrize("change", [{"scale_xy": 2.0}, {"decoding": "sigmoid-squared"}])
def test_wrong_decoding_is_caught(small_model: Checkpoint, exported: Path, change: dict[str, object]) -> None:
    facts = find_format("onnx").read(exported)
    wrong = tuple(replace(detect, **change) for detect in facts.detects)  # type: ignore[arg-type]
    change_metadata(exported, replace(facts, detects=wrong))
    assert not verify(exported, small_model).passed


def test_a_damaged_end_to_end_graph_is_caught(small_model: Checkpoint, tmp_path: Path) -> None:
    path = export(small_model, tmp_path / "nms.onnx", nms=EmbeddedNms(confidence=0.3)).path
    assert verify(path, small_model).passed
    model = onnx.load(path)
    anchors = next(item for item in model.graph.initializer if item.name.endswith("half_anchors"))
    values = onnx.numpy_helper.to_array(anchors)[:, ::-1].copy()
    anchors.CopyFrom(onnx.numpy_helper.from_array(values, anchors.name))
    onnx.save(model, path)
    assert not verify(path, small_model).passed


def test_another_model_is_refused_or_caught(small_model: Checkpoint, exported: Path) -> None:
    weights = {name: value.copy() for name, value in small_model.weights.items()}
    weights["fine.bias"][0] += 0.3
    assert not verify(exported, replace(small_model, weights=weights)).passed
    with pytest.raises(FormatError, match="class names"):
        verify(exported, replace(small_model, class_names=("a", "b", "c")))


def test_not_a_number_never_passes() -> None:
    expected = np.random.default_rng(0).random((1, 4, 3, 3), np.float32)
    found = expected.copy()
    found[0, 1, 2, 2] = np.nan
    errors = compare_map("head", found, expected)
    assert not any(errors.within(tolerance) for tolerance in TOLERANCES.values())
    assert compare_map("head", expected, expected).within(TOLERANCES["float32"])
    assert not compare_map("head", expected[:, :2], expected).within(TOLERANCES["bfloat16"])


def candidates(*rows: tuple[float, float, float, float, float, int]) -> Candidates:
    table = np.asarray(rows, np.float32).reshape(-1, 6)
    return Candidates(table[:, :4], table[:, 4], table[:, 5].astype(np.int64))


def test_detections_are_matched_one_to_one() -> None:
    tolerance = TOLERANCES["float32"]
    one, twin = (0, 0, 10, 10, 0.9, 1), (0, 0, 10, 10, 0.8, 1)
    assert compare_detections(candidates(one, twin), candidates(one, twin), tolerance).within(tolerance)
    assert not compare_detections(candidates(one), candidates(one, twin, (5, 5, 9, 9, 0.3, 0)), tolerance).within(
        tolerance
    )
    other_class = (0, 0, 10, 10, 0.9, 2)
    assert not compare_detections(candidates(other_class, twin), candidates(one, twin), tolerance).within(tolerance)
    # The lowest score of all may fall to either side of the threshold.
    assert compare_detections(candidates(one), candidates(one, twin), tolerance).compared == 1
    assert compare_detections(candidates(), candidates(), tolerance).compared == 0


def test_a_failing_export_is_kept_marked_and_reported(
    small_model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The writer itself is broken: the file must say so, and the command must fail."""
    import scaledyolo.export.formats as formats

    right = formats.onnx_model

    def wrong(job: formats.Job, *, with_metadata: bool) -> onnx.ModelProto:
        model = right(job, with_metadata=with_metadata)
        change_one_weight(model)
        return model

    monkeypatch.setattr(formats, "onnx_model", wrong)
    save_checkpoint(tmp_path / "small.safetensors", small_model)
    for name in ("onnx", "openvino"):
        code = main(["export", str(tmp_path / "small.safetensors"), "--format", name, "--out", str(tmp_path)])
        assert code == 2
        assert "UNVERIFIED" in capsys.readouterr().out
        path = tmp_path / f"small{formats.FORMATS[name].suffix}"
        assert find_format(name).read(path).verification == "UNVERIFIED"


def test_command_line(small_model: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = str(tmp_path / "small.safetensors")
    save_checkpoint(model, small_model)
    artefact = tmp_path / "a.onnx"
    assert main(["export", model, "--out", str(artefact), "--dynamic", "--json"]) == 0
    values = json.loads(capsys.readouterr().out)
    assert values["verification"] == "verified"
    assert main(["verify", str(artefact), "--against", model]) == 0
    assert "verified in onnxruntime" in capsys.readouterr().out
    weights = {name: value * np.float32(1.01) for name, value in small_model.weights.items()}
    other = str(tmp_path / "other.safetensors")
    save_checkpoint(other, replace(small_model, weights=weights))
    assert main(["verify", str(artefact), "--against", other, "--no-mark"]) == 2
    assert find_format("onnx").read(artefact).verification == "verified"


_FULL_DISK = """
import resource, signal, sys
from pathlib import Path
from scaledyolo.checkpoint import load_checkpoint
from scaledyolo.errors import ScaledYoloError
from scaledyolo.export import export
import onnxruntime, onnx, torch  # whatever they write while they are imported
from scaledyolo.engines.openvino import import_openvino
import_openvino()
model = load_checkpoint(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    export(model, sys.argv[2], format=sys.argv[3])
except ScaledYoloError as error:
    print(error)
    sys.exit(0)
sys.exit("nothing was raised")
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
@pytest.mark.parametrize("name", ["onnx", "openvino", "torchscript", "torch-export"])
def test_a_disk_that_refuses_leaves_nothing(small_model: Checkpoint, tmp_path: Path, name: str) -> None:
    save_checkpoint(tmp_path / "small.safetensors", small_model)
    target = tmp_path / "target"
    target.mkdir()
    arguments = [sys.executable, "-c", _FULL_DISK, str(tmp_path / "small.safetensors"), str(target), name]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    assert result.stdout.count("\n") == 1
    assert not list(target.iterdir())
