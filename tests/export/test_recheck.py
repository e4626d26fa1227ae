"""`verify` without the model: is the file the one that was verified, does it run, in which engines then and now."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from scaledyolo.artefact import EmbeddedNms
from scaledyolo.checkpoint import Checkpoint
from scaledyolo.cli import main
from scaledyolo.errors import FormatError
from scaledyolo.export import export
from scaledyolo.export.recheck import recheck
from scaledyolo.export.report import report_path

pytest.importorskip("openvino")


@pytest.fixture(params=["onnx", "openvino"])
def alone(small_model: Checkpoint, tmp_path: Path, request: pytest.FixtureRequest) -> Path:
    """A verified artefact whose model is nowhere."""
    return export(small_model, tmp_path, format=request.param).path


def change_report(artefact: Path, **values: Any) -> None:
    place = report_path(artefact)
    place.write_text(json.dumps({**json.loads(place.read_text()), **values}))


def test_an_unchanged_file_is_known_again(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = {file: file.read_bytes() for file in alone.parent.rglob("*") if file.is_file()}
    assert main(["verify", str(alone)]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].startswith(f"{alone.name}: not compared ({alone}: its metadata does not name the file of the model")
    assert lines[1].startswith("  unchanged since it was verified on 2")
    engines = ["onnxruntime", "openvino"] if alone.suffix == ".onnx" else ["openvino"]
    assert [line.split()[2] for line in lines[2:]] == engines
    assert all(line.endswith("as when it was verified") for line in lines[2:])
    assert {file: file.read_bytes() for file in alone.parent.rglob("*") if file.is_file()} == before


def test_as_json(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(alone), "--json"]) == 1
    found = json.loads(capsys.readouterr().out)
    assert found["compared"] is False
    assert found["unchanged"] is True
    assert [engine["problem"] for engine in found["engines"]] == [""] * len(found["engines"])


def test_a_changed_file_is_noticed(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_report(alone, digest="0" * 64)
    assert main(["verify", str(alone)]) == 2
    assert "CHANGED since it was verified" in capsys.readouterr().out


def put_into_first_weight(path: Path, value: np.float32) -> None:
    """Change one number of an exported network, and nothing else."""
    model = onnx.load(path)
    tensor = next(item for item in model.graph.initializer if item.name == "deep.weight")
    values = onnx.numpy_helper.to_array(tensor).copy()
    assert values.flat[0] != value
    values.flat[0] = value
    tensor.CopyFrom(onnx.numpy_helper.from_array(values, tensor.name))
    onnx.save(model, path)


def test_a_weight_that_changed_is_noticed_by_the_digest(small_model: Checkpoint, tmp_path: Path) -> None:
    path = export(small_model, tmp_path / "a.onnx").path
    put_into_first_weight(path, np.nextafter(small_model.weights["deep.weight"].flat[0], np.float32(2)))
    found = recheck(path, "no model")
    assert not found.unchanged
    assert not found.nothing_speaks_against_it
    assert [engine.problem for engine in found.engines] == ["", ""]


def test_another_version_of_an_engine_is_told(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = json.loads(report_path(alone).read_text())
    checks = [{**check, "engine": "openvino 2020.1 on cpu in float32"} for check in report["checks"]]
    change_report(alone, checks=checks)
    assert main(["verify", str(alone)]) == 1
    printed = capsys.readouterr().out
    assert "then it was openvino 2020.1 on cpu in float32" in printed
    assert ("runs in onnxruntime" in printed) == ("not asked then" in printed)


def test_what_differed_then_is_no_better_now(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    change_report(alone, passed=False)
    assert main(["verify", str(alone)]) == 2
    assert "unchanged since it was found to DIFFER from its model" in capsys.readouterr().out


def test_a_network_that_computes_nonsense_fails(small_model: Checkpoint, tmp_path: Path) -> None:
    path = export(small_model, tmp_path / "a.onnx").path
    put_into_first_weight(path, np.float32(np.nan))
    found = recheck(path, "no model", engine="onnxruntime")
    assert [engine.problem for engine in found.engines] == ["its outputs are not all numbers"]
    assert "FAILS in onnxruntime" in found.summary()


def test_engines_that_disagree_are_told(
    small_model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scaledyolo.engines.openvino import OpenVinoEngine

    path = export(small_model, tmp_path / "a.onnx").path
    original = OpenVinoEngine.run
    monkeypatch.setattr(OpenVinoEngine, "run", lambda self, images: [1.01 * out for out in original(self, images)])
    first, second = recheck(path, "no model").engines
    assert first.problem == ""
    assert second.problem == f"its maps are not those of {first.engine}"


def test_end_to_end_graphs(small_model: Checkpoint, tmp_path: Path) -> None:
    path = export(small_model, tmp_path / "a.onnx", nms=EmbeddedNms(confidence=0.3)).path
    assert recheck(path, "no model").nothing_speaks_against_it


def test_without_a_report_nothing_can_be_said(alone: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report_path(alone).unlink()
    assert main(["verify", str(alone)]) == 2
    message = capsys.readouterr().err
    assert "give the model with --against MODEL" in message
    assert f"{report_path(alone).name}, which tells what it was when it was verified, is missing as well" in message
    assert message.count("\n") == 1


@pytest.mark.parametrize("text", ["{", "[]", '{"report": "scaledyolo-verification/1"}'])
def test_a_damaged_report_is_one_sentence(alone: Path, text: str) -> None:
    report_path(alone).write_text(text)
    with pytest.raises(FormatError, match=r"report.*--against MODEL"):
        recheck(alone, "no model")


def test_ap_needs_the_model(alone: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scaledyolo.cli.verify.open_data", lambda *arguments: None)
    assert main(["verify", str(alone), "--data", "somewhere"]) == 2
    assert "give the model with --against MODEL" in capsys.readouterr().err
