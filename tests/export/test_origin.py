"""An artefact knows its model: `verify` finds it again, and notices when it is gone or another."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scaledyolo.checkpoint import Checkpoint, save_checkpoint
from scaledyolo.cli import main
from scaledyolo.errors import UsageError
from scaledyolo.export import export, verify

pytest.importorskip("openvino")


@pytest.fixture
def project(small_model: Checkpoint, tmp_path: Path) -> Path:
    """A folder with a model in one place and its export in another."""
    folder = tmp_path / "project"
    (folder / "models").mkdir(parents=True)
    (folder / "exported").mkdir()
    save_checkpoint(folder / "models" / "small.safetensors", small_model)
    model, place = str(folder / "models" / "small.safetensors"), str(folder / "exported")
    assert main(["export", model, "--out", place, "--no-verify"]) == 0
    return folder


def test_the_model_is_found_again(project: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", str(project / "exported" / "small.onnx")]) == 0
    assert "verified against" in capsys.readouterr().out


def test_nothing_about_the_machine_is_recorded(project: Path) -> None:
    content = (project / "exported" / "small.onnx").read_bytes()
    assert str(project).encode() not in content
    assert b"../models/small.safetensors" in content


def test_both_may_be_moved_together(project: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    moved = project.rename(tmp_path / "elsewhere")
    artefact = moved / "exported" / "small.onnx"
    assert verify(artefact, mark=False).passed
    os.rename(moved / "models" / "small.safetensors", moved / "exported" / "small.safetensors")
    assert verify(artefact, mark=False).passed  # beside the artefact
    os.rename(moved / "exported" / "small.safetensors", tmp_path / "small.safetensors")
    monkeypatch.chdir(tmp_path)
    assert verify(artefact, mark=False).passed  # in the current folder


def test_a_model_that_changed_is_not_taken(project: Path, small_model: Checkpoint) -> None:
    weights = {name: value * np.float32(1.01) for name, value in small_model.weights.items()}
    save_checkpoint(project / "models" / "small.safetensors", replace(small_model, weights=weights))
    with pytest.raises(UsageError, match=r"small\.safetensors has changed since it was exported.*--against"):
        verify(project / "exported" / "small.onnx")


def test_the_wrong_model_marks_nothing(
    project: Path, small_model: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A good export stays what it was, whatever it is compared with by mistake."""
    artefact = project / "exported" / "small.onnx"
    assert main(["verify", str(artefact)]) == 0
    before = {path.name: path.read_bytes() for path in artefact.parent.iterdir()}
    weights = {name: value * np.float32(1.01) for name, value in small_model.weights.items()}
    other, same = str(tmp_path / "other.safetensors"), str(tmp_path / "same.safetensors")
    save_checkpoint(other, replace(small_model, weights=weights))
    save_checkpoint(same, replace(small_model, provenance={"note": "the same values in another file"}))
    capsys.readouterr()
    assert main(["verify", str(artefact), "--against", other]) == 2
    message = capsys.readouterr().err
    assert "is not the one it was exported from (../models/small.safetensors)" in message
    assert message.count("\n") == 1
    assert {path.name: path.read_bytes() for path in artefact.parent.iterdir()} == before
    assert main(["verify", str(artefact), "--against", other, "--no-mark"]) == 2
    assert "UNVERIFIED" in capsys.readouterr().out  # it tells the differences, and leaves the file alone
    assert {path.name: path.read_bytes() for path in artefact.parent.iterdir()} == before
    assert main(["verify", str(artefact), "--against", same]) == 0


def test_what_exists_is_replaced_on_demand_only(
    project: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    artefact = project / "exported" / "small.onnx"
    words = ["export", str(project / "models" / "small.safetensors"), "--out", str(artefact.parent), "--no-verify"]
    before = artefact.read_bytes()
    assert main([*words, "--half"]) == 2
    assert "small.onnx: exists already; give another name with --out, or --force" in capsys.readouterr().err
    assert artefact.read_bytes() == before
    assert main([*words, "--half", "--force"]) == 0
    assert len(artefact.read_bytes()) < len(before)


def test_an_artefact_is_called_as_its_model(
    small_model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """As the README says: my.safetensors gives my.onnx, whatever the network is called."""
    monkeypatch.chdir(tmp_path)
    save_checkpoint("my.safetensors", small_model)
    assert main(["export", "my.safetensors", "--no-verify"]) == 0
    assert main(["verify", "my.onnx", "--against", "my.safetensors"]) == 0
    assert main(["export", "my.safetensors", "--format", "openvino", "--no-verify"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir() if "verified" not in path.name) == [
        "my.onnx",
        "my.safetensors",
        "my_openvino_model",
    ]


def test_an_export_never_replaces_the_model_itself(
    colours, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    for file in (colours.cfg, colours.weights):
        (tmp_path / f"my{file.suffix}").write_bytes(file.read_bytes())
    assert main(["export", "my.cfg", "my.weights", "--format", "darknet", "--no-verify"]) == 2
    assert "is the model that is exported" in capsys.readouterr().err
    assert (tmp_path / "my.weights").read_bytes() == colours.weights.read_bytes()


def test_a_model_that_is_gone_is_asked_for(
    project: Path, small_model: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    (project / "models" / "small.safetensors").unlink()
    artefact = project / "exported" / "small.onnx"
    assert main(["verify", str(artefact)]) == 2
    message = capsys.readouterr().err
    assert "not found from here; give it with --against MODEL" in message
    assert message.count("\n") == 1
    assert verify(artefact, small_model, mark=False).passed


def test_an_export_from_python_can_name_its_model(small_model: Checkpoint, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="does not name the file of the model"):
        verify(export(small_model, tmp_path / "a.onnx", verified=False).path)
    save_checkpoint(tmp_path / "small.safetensors", small_model)
    report = export(small_model, tmp_path / "b.onnx", verified=False, source=tmp_path / "small.safetensors")
    assert json.loads(report.facts.provenance["exported_from"]) == ["small.safetensors"]
    assert verify(report.path).passed


def test_the_default_model_is_found_in_the_package(
    small_model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from scaledyolo.default_model import VARIABLE

    (tmp_path / "package").mkdir()
    save_checkpoint(tmp_path / "package" / "default.safetensors", small_model)
    monkeypatch.setenv(VARIABLE, str(tmp_path / "package" / "default.safetensors"))
    artefact = tmp_path / "a.onnx"
    assert main(["export", "default", "--out", str(artefact), "--no-verify"]) == 0
    (tmp_path / "far" / "away").mkdir(parents=True)
    assert verify(artefact.rename(tmp_path / "far" / "away" / "a.onnx")).passed


def test_a_darknet_pair_and_its_names(colours, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for file in (colours.cfg, colours.weights):
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "mine.names").write_text("rouge\nvert\nbleu\n")
    words = [str(tmp_path / "colours.cfg"), str(tmp_path / "colours.weights")]
    names = ["--names", str(tmp_path / "mine.names")]
    assert main(["export", *words, *names, "--out", str(tmp_path / "c.onnx"), "--no-verify"]) == 0
    capsys.readouterr()
    assert main(["verify", str(tmp_path / "c.onnx"), *names]) == 0
    assert main(["verify", str(tmp_path / "c.onnx"), "--no-mark"]) == 2  # the pair itself has other names
    assert "class 0 is 'rouge' in the artefact" in capsys.readouterr().out


def test_names_of_an_artefact_can_be_replaced(project: Path, tmp_path: Path) -> None:
    from scaledyolo.detector import Detector

    artefact = project / "exported" / "small.onnx"
    (tmp_path / "mine.names").write_text("chat\nchien\npassage\n")
    assert Detector(artefact, names=tmp_path / "mine.names").names == ("chat", "chien", "passage")
    with pytest.raises(UsageError, match="2 class names for a network of 3 classes"):
        Detector(artefact, names=["one", "two"])
