"""The model that comes with the package: by what names it is meant, what is told, and what happens without it."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from supervision import box_iou_batch

from scaledyolo import ZOO, Checkpoint, Detector, load_graph, load_model, lower, save_checkpoint
from scaledyolo.classes import COCO_NAMES
from scaledyolo.cli import main
from scaledyolo.convert.darknet_weights import write_weights
from scaledyolo.default_model import DEFAULT, SHIPPED_FILE, TITLE_KEY, VARIABLE
from scaledyolo.errors import DownloadError, UsageError
from scaledyolo.files import cache_folder
from scaledyolo.weights import random_weights
from scaledyolo.weights_registry import find_weights

TITLE = "colours, painted by a test"


@pytest.fixture(autouse=True)
def _own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SCALEDYOLO_HOME", str(tmp_path / "home"))


@pytest.fixture
def stand_in(colours, tmp_path, monkeypatch) -> Path:
    """The colour detector in the place of the default model."""
    path = tmp_path / "default.safetensors"
    save_checkpoint(path, replace(colours.checkpoint, provenance={TITLE_KEY: TITLE}))
    monkeypatch.setenv(VARIABLE, str(path))
    return path


@pytest.fixture
def nothing(tmp_path, monkeypatch) -> None:
    """A copy of the package without its default model."""
    monkeypatch.delenv(VARIABLE, raising=False)
    monkeypatch.setattr("scaledyolo.default_model.SHIPPED_FILE", tmp_path / "default.safetensors")


@pytest.fixture
def picture(tmp_path, paint, monkeypatch) -> Path:
    """A picture of a red and a green cell in the working folder."""
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "a.png"
    Image.fromarray(paint(64, 64, (1, 2, 0), (5, 2, 1))).save(path)
    return path


def download_official(network: str = "yolov4-tiny") -> None:
    """Put official weights into the cache, of the right size and random values."""
    graph = lower(ZOO[network])
    folder = cache_folder("weights")
    folder.mkdir(parents=True)
    write_weights(folder / find_weights(network).file, graph, random_weights(graph, np.random.default_rng(0)))


def test_a_detector_without_a_model_is_the_default_one(stand_in, picture):
    found = Detector(engine="onnxruntime")(picture)
    assert sorted(found.data["class_name"]) == ["green", "red"]
    assert load_model(DEFAULT).provenance[TITLE_KEY] == TITLE
    assert load_graph(DEFAULT) == load_model(stand_in).graph


def test_detect_without_a_model_says_once_which_one_it_is(stand_in, picture, capsys):
    assert main(["detect", str(picture), "--engine", "onnxruntime", "--save", "jsonl"]) == 0
    told = capsys.readouterr()
    assert told.err == f"model: the default model ({TITLE})\n"
    assert "2 objects" in told.out
    (line,) = (picture.parent / "runs" / "detect" / "detections.jsonl").read_text().splitlines()
    assert {item["class_name"] for item in json.loads(line)["detections"]} == {"red", "green"}


def test_it_needs_no_network(stand_in, picture, monkeypatch):
    def refuse(*arguments: object, **options: object) -> None:
        raise AssertionError("a connection was opened")

    monkeypatch.setattr(socket, "socket", refuse)
    assert main(["detect", str(picture), "--engine", "onnxruntime", "--save", "none"]) == 0


def test_a_folder_of_that_name_does_not_change_what_it_means(stand_in, picture):
    (picture.parent / DEFAULT).mkdir()
    (picture.parent / DEFAULT / "net.xml").write_text("<net/>")
    assert Detector(DEFAULT, engine="onnxruntime").names == ("red", "green", "blue")


@pytest.mark.parametrize("name", ["yolov4-tiny", "YOLOv4-Tiny"])
def test_it_stands_in_for_official_weights_that_were_not_downloaded(stand_in, picture, capsys, name):
    with pytest.warns(UserWarning, match=f"official weights of {name} are not downloaded.*scaledyolo download"):
        assert load_model(name).class_names == ("red", "green", "blue")
    assert main(["detect", str(picture), "--model", name, "--engine", "onnxruntime", "--save", "none"]) == 0
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    assert lines[0].startswith(f"official weights of {name} are not downloaded, so this is the default model ({TITLE})")


def test_official_weights_take_precedence_by_their_name_and_only_by_it(stand_in, monkeypatch):
    download_official()
    with pytest.raises(DownloadError, match="not what was promised"):  # damaged ones are told, not passed over
        load_model("yolov4-tiny")
    monkeypatch.setattr("scaledyolo.download._verify", lambda *_: None)
    assert load_model("yolov4-tiny").class_names == COCO_NAMES
    assert load_model(DEFAULT).class_names == ("red", "green", "blue")


def test_it_stands_in_for_no_other_network(stand_in):
    with pytest.raises(DownloadError, match="scaledyolo download yolov4"):
        load_model("yolov4-csp")
    with pytest.raises(UsageError, match="Did you mean 'yolov4-tiny'"):
        load_model("yolov4-tinny")


def test_asking_for_a_download_never_gives_another_model(stand_in, monkeypatch):
    asked = []

    def refuse(*arguments: object, **options: object) -> None:
        asked.append(arguments)
        raise DownloadError("no connection")

    monkeypatch.setattr("scaledyolo.download._fetch", refuse)
    with pytest.raises(DownloadError, match="no connection"):
        load_model("yolov4-tiny", download=True)
    assert asked


def test_a_copy_without_it_says_what_to_do(nothing, picture, capsys):
    for call in (Detector, lambda: load_model(DEFAULT), lambda: load_graph(DEFAULT)):
        with pytest.raises(UsageError, match="came without its default model") as caught:
            call()
        assert "\n" not in str(caught.value)
    assert main(["detect", str(picture)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "--model" in line
    assert "--download" in line
    with pytest.raises(DownloadError, match="scaledyolo download yolov4-tiny"):
        load_model("yolov4-tiny")


def test_a_variable_that_points_nowhere_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv(VARIABLE, str(tmp_path / "gone.safetensors"))
    with pytest.raises(UsageError, match=rf"gone\.safetensors.*{VARIABLE}"):
        load_model(DEFAULT)


def test_a_variable_that_points_to_something_else_is_refused_in_one_line(tmp_path, monkeypatch, picture, capsys):
    monkeypatch.setenv(VARIABLE, str(picture))
    assert main(["detect", str(picture)]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "a.png" in line


def test_other_verbs_take_the_name_too(stand_in, picture, capsys):
    assert main(["describe", DEFAULT, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "colours"
    assert main(["export", DEFAULT, "--out", str(picture.parent / "out.onnx")]) == 0
    assert TITLE in capsys.readouterr().err
    assert main(["eval", DEFAULT, "--data", str(picture.parent / "none")]) == 2
    assert "none" in capsys.readouterr().err.splitlines()[-1]


def test_a_trained_model_is_no_network_to_begin_anew_with(stand_in, picture, capsys):
    assert main(["train", "--data", str(picture.parent), "--model", DEFAULT]) == 2
    assert f"--weights {DEFAULT}" in capsys.readouterr().err


def test_a_notice_reaches_python_as_a_warning_at_the_line_that_asked(stand_in, tmp_path):
    program = tmp_path / "program.py"
    program.write_text("from scaledyolo import load_model\n\nload_model('yolov4-tiny')\n")
    done = subprocess.run([sys.executable, str(program)], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "program.py:3: UserWarning: official weights of yolov4-tiny" in done.stderr


# -- the file itself, once it is there -----------------------------------------------------------------------------

shipped = pytest.mark.skipif(not SHIPPED_FILE.is_file(), reason="this copy has no default model")


@pytest.fixture
def model(monkeypatch) -> Checkpoint:
    """The shipped model."""
    monkeypatch.delenv(VARIABLE, raising=False)
    return load_model(DEFAULT)


@shipped
def test_the_shipped_model_is_what_it_says(model):
    assert model.spec is not None
    assert model.spec.name == "yolov4-tiny"
    assert model.class_names == COCO_NAMES
    assert model.category_ids is not None
    assert model.category_ids[-1] == 90
    assert SHIPPED_FILE.stat().st_size < 13e6
    assert {TITLE_KEY, "licence", "data", "recipe", "seed", "commit", "command"} <= model.provenance.keys()
    assert not any("/home/" in text or text.startswith("/") for text in model.provenance.values())


@shipped
def test_the_shipped_model_finds_the_person_in_an_ordinary_photograph(model):
    from matplotlib import get_data_path

    photograph = Path(get_data_path()) / "sample_data" / "grace_hopper.jpg"
    if not photograph.is_file():
        pytest.skip("matplotlib came without its sample data")
    found = Detector()(photograph)
    persons = found.xyxy[found.data["class_name"] == "person"]
    # Drawn by hand around her, from the hat down; the photograph is 512 x 600.
    portrait = np.array([[14, 22, 512, 600]], np.float32)
    assert box_iou_batch(persons, portrait).max(initial=0) > 0.5  # what counts as found in AP50
