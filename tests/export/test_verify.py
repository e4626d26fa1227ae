"""Verification catches what is wrong, and nothing that is right."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from scaledyolo.artefact import EmbeddedNms, ModelFacts
from scaledyolo.checkpoint import Checkpoint, save_checkpoint
from scaledyolo.cli import main
from scaledyolo.detector import Detector
from scaledyolo.errors import UsageError
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
    values.flat[300] += 0.5
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def reverse_channels(model: onnx.ModelProto) -> None:
    tensor = next(item for item in model.graph.initializer if item.name == "stem.weight")
    values = np.ascontiguousarray(onnx.numpy_helper.to_array(tensor)[:, ::-1])
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


def drop_a_bias(model: onnx.ModelProto) -> None:
    tensor = next(item for item in model.graph.initializer if item.name == "fine.bias")
    values = onnx.numpy_helper.to_array(tensor) * np.float32(0)
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))


Damage = Callable[[onnx.ModelProto], None]
FORMS = ("onnx", "openvino")


def damage_file(path: Path, damage: Damage, original: onnx.ModelProto) -> None:
    """Apply to a finished artefact what ``damage`` does to a network: in the ONNX file, or in the bytes of the .bin."""
    if path.suffix == ".onnx":
        model = onnx.load(path)
        damage(model)
        onnx.save(model, path)
        return
    damaged = onnx.ModelProto()
    damaged.CopyFrom(original)
    damage(damaged)
    (file,) = path.glob("*.bin")
    content = file.read_bytes()
    for before, after in zip(original.graph.initializer, damaged.graph.initializer, strict=True):
        if before != after:
            old, new = (onnx.numpy_helper.to_array(item).tobytes() for item in (before, after))
            assert content.count(old) == 1
            content = content.replace(old, new)
    file.write_bytes(content)


def test_an_untouched_file_passes_in_every_runtime_and_is_marked(small_model: Checkpoint, exported: Path) -> None:
    assert find_format("onnx").read(exported).verification == "pending"
    report = verify(exported, small_model)
    assert report.passed
    assert not report.differences
    assert [check.engine.split()[0] for check in report.checks] == ["onnxruntime", "openvino"]
    assert find_format("onnx").read(exported).verification == "verified"
    one = verify(exported, small_model, engine="openvino")
    assert [check.engine.split()[0] for check in one.checks] == ["openvino"]
    with pytest.raises(UsageError, match="runs in onnxruntime or openvino, not in 'torch'"):
        verify(exported, small_model, engine="torch")


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("damage", [change_one_weight, reverse_channels, drop_a_bias])
def test_damaged_networks_are_caught(small_model: Checkpoint, tmp_path: Path, damage: Damage, name: str) -> None:
    original = onnx.load(export(small_model, tmp_path / "original.onnx", verified=False).path)
    path = export(small_model, tmp_path, format=name, verified=False).path
    damage_file(path, damage, original)
    report = verify(path, small_model)
    assert not report.passed
    assert not any(check.passed for check in report.checks), "every runtime computes the damaged network"
    assert report.worst_error > 0.01
    assert find_format(name).read(path).verification == "UNVERIFIED"
    assert json.loads(path.with_name(f"{path.name}.verified.json").read_text())["passed"] is False


def swap_anchors(facts: ModelFacts) -> ModelFacts:
    first, second, *rest = facts.detects[0].anchors
    swapped = tuple(replace(detect, anchors=(second, first, *rest)) for detect in facts.detects)
    return replace(facts, detects=swapped)


def change_heads(**changes: Any) -> Callable[[ModelFacts], ModelFacts]:
    return lambda facts: replace(facts, detects=tuple(replace(detect, **changes) for detect in facts.detects))


METADATA_DAMAGE: dict[str, tuple[Callable[[ModelFacts], ModelFacts], str]] = {
    "two anchors swapped": (swap_anchors, ""),
    "another decoding": (change_heads(decoding="sigmoid-squared"), ""),
    "another sensitivity": (change_heads(scale_xy=2.0), ""),
    "heads swapped": (lambda facts: replace(facts, detects=facts.detects[::-1]), ""),
    "class names permuted": (
        lambda facts: replace(facts, class_names=("dog", "cat", "zebra crossing")),
        "class 0 is 'dog' in the artefact, 'cat' in the model",
    ),
    "category ids": (lambda facts: replace(facts, category_ids=(9, 5, 3)), "category ids"),
    "strides swapped": (lambda facts: replace(facts, strides=facts.strides[::-1]), "strides"),
    "wrong resize rule": (lambda facts: replace(facts, resize="stretch"), "stretch in the artefact, letterbox in the"),
}


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("damage", METADATA_DAMAGE)
def test_damaged_metadata_is_caught(small_model: Checkpoint, tmp_path: Path, damage: str, name: str) -> None:
    change, words = METADATA_DAMAGE[damage]
    path = export(small_model, tmp_path, format=name, verified=False).path
    form = find_format(name)
    form.mark(path, change(form.read(path)))
    report = verify(path, small_model)
    assert not report.passed
    assert report.worst_error < 1e-3, "the maps are right; only boxes and metadata can show it"
    matched, compared = report.boxes
    assert (matched < compared) == (not words)
    assert words in report.summary()
    assert form.read(path).verification == "UNVERIFIED"


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
    other = replace(small_model, weights=weights)
    with pytest.raises(UsageError, match="is not the one it was exported from, so its mark is left as it is"):
        verify(exported, other)
    assert not verify(exported, other, mark=False).passed
    assert find_format("onnx").read(exported).verification == "pending"
    report = verify(exported, replace(small_model, class_names=("a", "b", "c")))
    assert report.differences == ("class names differ: class 0 is 'cat' in the artefact, 'a' in the model",)


def test_who_uses_an_unverified_file_is_told(small_model: Checkpoint, exported: Path) -> None:
    model = onnx.load(exported)
    change_one_weight(model)
    onnx.save(model, exported)
    verify(exported, small_model)
    with pytest.warns(UserWarning, match=r"model\.onnx is marked UNVERIFIED"):
        Detector(exported)


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
    printed = capsys.readouterr().out
    assert printed.startswith("a.onnx: verified against torch")
    assert "onnxruntime" in printed
    assert "openvino" in printed
    weights = {name: value * np.float32(1.01) for name, value in small_model.weights.items()}
    other = str(tmp_path / "other.safetensors")
    save_checkpoint(other, replace(small_model, weights=weights))
    assert main(["verify", str(artefact), "--against", other, "--no-mark"]) == 2
    assert find_format("onnx").read(artefact).verification == "verified"
