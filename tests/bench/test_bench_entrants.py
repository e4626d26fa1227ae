"""What a user may ask for, and what he is told when it does not exist."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from scaledyolo.bench.candidates import threshold_for
from scaledyolo.bench.entrants import Setting, check_engines, entrants, read_precisions
from scaledyolo.bench.networks import Network, open_network, open_networks, pair_up, random_checkpoint
from scaledyolo.bench.run import Options, _heats, bench
from scaledyolo.checkpoint import save_checkpoint
from scaledyolo.cli import main
from scaledyolo.cli.bench import listed
from scaledyolo.cli.options import sides_in_word
from scaledyolo.detector import Detector
from scaledyolo.errors import ScaledYoloError, SpecError, UsageError
from scaledyolo.model import load_graph

if TYPE_CHECKING:
    from conftest import ColourModel


def test_cfg_and_weights_are_one_model() -> None:
    words = ["a.cfg", "a.weights", "yolov4-tiny", "b.cfg", "c.onnx"]
    assert pair_up(words) == [("a.cfg", "a.weights"), ("yolov4-tiny",), ("b.cfg",), ("c.onnx",)]
    with pytest.raises(UsageError, match="name at least one model"):
        pair_up([])


def test_words_of_the_command_line() -> None:
    assert listed(("openvino,torch", "opencv")) == ("openvino", "torch", "opencv")
    assert (sides_in_word("416"), sides_in_word("384x640")) == ((416, 416), (384, 640))
    assert read_precisions(("f32", "bf16", "FP32")) == ("float32", "bfloat16")
    for wrong in ("416x", "x", "0", "416x0", "-3", "big"):
        with pytest.raises(UsageError, match="like 416 or 384x640"):
            sides_in_word(wrong)


@pytest.mark.parametrize(
    ("engines", "device", "told"),
    [
        (("openvin",), "cpu", "Did you mean 'openvino'"),
        (("darknet",), "cpu", "--rival-darknet"),
        (("auto",), "cdua", "Did you mean 'cuda'"),
    ],
)
def test_unknown_engines_and_devices(engines: tuple[str, ...], device: str, told: str) -> None:
    with pytest.raises(UsageError, match=told):
        check_engines(engines, device)


@pytest.mark.parametrize(
    ("models", "options", "told"),
    [
        (["yolov4-tiny"], Options(sizes=((100, 96),)), "height 100 is not a multiple of the largest stride 32"),
        (["yolov4-tinny"], Options(), "yolov4-tiny"),
        (["gone.safetensors"], Options(), "gone.safetensors: no such file"),
        (["yolov4-tiny"], Options(precisions=("f31",)), "no precision 'f31'"),
        (["yolov4-tiny"], Options(batches=(1, 0)), "one image or more"),
        (["yolov4-tiny"], Options(threads=0), "0 threads make no sense"),
        (["yolov4-tiny"], Options(rounds=0), "0 rounds measure nothing"),
        (["yolov4-tiny"], Options(image=Path("gone.jpg")), "gone.jpg does not exist"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_starts(
    models: list[str], options: Options, told: str
) -> None:
    with pytest.raises(ScaledYoloError, match=told):
        bench(models, options)


def test_a_zoo_name_becomes_a_checkpoint_of_random_weights(tmp_path: Path) -> None:
    network = open_network(("yolov4-tiny",))
    assert network.random
    assert not network.files
    assert load_graph(network.written(tmp_path).files[0]) == network.graph
    assert network.gflop(416, 416) == pytest.approx(6.89, abs=0.05)  # spec/models.md: 6.9 BFLOPs
    with pytest.raises(SpecError, match="multiple of the largest stride"):
        network.at((417, 416))
    assert network.at(None) == (416, 416)


def test_the_default_model_has_a_name(monkeypatch: pytest.MonkeyPatch, colours: ColourModel) -> None:
    monkeypatch.setenv("SCALEDYOLO_DEFAULT_MODEL", str(colours.path))
    network = open_network(("default",))
    assert (network.name, network.height, network.random) == ("default", 64, False)
    assert network.load()[0] == colours.checkpoint.graph


def test_a_pair_and_a_cfg_alone(colours: ColourModel, tmp_path: Path) -> None:
    pair = open_network((str(colours.cfg), str(colours.weights)))
    assert (pair.name, pair.random) == ("colours.cfg", False)
    assert not open_network((str(colours.weights),)).random
    lonely = tmp_path / "lonely.cfg"
    lonely.write_bytes(colours.cfg.read_bytes())
    assert open_network((str(lonely),)).random


def test_heats() -> None:
    networks = [open_network((name,)) for name in ("yolov4-tiny", "yolov3-tiny")]
    first, second = networks
    apart = _heats(networks, Options(sizes=((64, 64), (96, 96))))
    assert apart == [[(first, 64, 64, 1)], [(first, 96, 96, 1)], [(second, 64, 64, 1)], [(second, 96, 96, 1)]]
    together = _heats(networks, Options(batches=(1, 8), together=True))
    assert together == [[(first, 416, 416, 1), (second, 416, 416, 1)], [(first, 416, 416, 8), (second, 416, 416, 8)]]


def test_so_many_boxes_pass_the_threshold(colours: ColourModel, paint: Callable[..., np.ndarray]) -> None:
    detector = Detector(colours.path, engine="onnxruntime", threads=1)
    image = paint(64, 64, (0, 0, 0), (3, 2, 1), (5, 7, 2))  # three cells whose scores are above all others
    threshold = threshold_for(detector, image, candidates=3)
    again = Detector(colours.path, engine="onnxruntime", threads=1, confidence=threshold)
    assert len(again(image)) == 3
    assert threshold_for(detector, image, candidates=10_000) == 0.0


def test_who_takes_part(tmp_path: Path) -> None:
    network = open_network(("yolov4-tiny",)).written(tmp_path)
    case = Setting(network, 96, 96, 1, 1, "cpu", tmp_path / "x.jpg", tmp_path)
    found = entrants(case, ["onnxruntime", "opencv", "onnxruntime"], ["float32"], end_to_end=True, darknet="darknet")
    assert [(one.engine, one.precision, one.end_to_end) for one in found] == [
        ("onnxruntime", "float32", False),
        ("onnxruntime", "float32", True),
        ("opencv", "float32", False),
        ("darknet", "float32", False),
    ]
    everybody = {one.engine for one in entrants(case, ["all"], [], end_to_end=False, darknet=None)}
    assert {"onnxruntime", "opencv"} <= everybody


@pytest.mark.parametrize(
    ("file", "takers"),
    [("x.onnx", {"openvino", "onnxruntime", "opencv"}), ("x.xml", {"openvino"}), ("x.tflite", {"auto"})],
)
def test_exported_files_are_given_to_those_who_read_them(file: str, takers: set[str], tmp_path: Path) -> None:
    path = tmp_path / file
    path.touch()
    case = Setting(Network(file, (str(path),), 96, 96, None), 96, 96, 1, 1, "cpu", tmp_path / "x.jpg", tmp_path)
    found = {one.engine for one in entrants(case, ["all"], [], end_to_end=False, darknet=None)}
    assert found == {name for name in takers if name in ("auto", "opencv") or importlib.util.find_spec(name)}


def test_a_failed_engine_is_a_row_and_the_rest_goes_on(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "yolov4-tiny", "--engines", "onnxruntime", "--precision", "f32", "f16", "--sizes", "96"]
    arguments += ["--rounds", "1", "--warmup", "0", "--threads", "1", "--json"]
    arguments += ["--rival-darknet", str(tmp_path / "missing")]
    assert main(arguments) == 1
    good, half, darknet = json.loads(capsys.readouterr().out)
    assert good["median_ms"] > 0
    assert not good["error"]
    assert "onnxruntime engine computes in float32" in half["error"]
    assert half["median_ms"] is None
    assert "is not a program that can be run" in darknet["error"]


def test_when_nothing_can_be_measured_the_reason_is_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "yolov4-tiny", "--engines", "onnxruntime", "--precision", "bf16", "--sizes", "96"]
    assert main([*arguments, "--rounds", "1"]) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith("scaledyolo: nothing could be measured: the onnxruntime engine computes in float32")


def test_a_plot_of_another_kind_is_refused_first(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert main(["bench", "yolov4-tiny", "--plot", "speed.pgn"]) == 2
    assert "a plot is written as .png, .svg, .pdf. Did you mean '.png'?" in capsys.readouterr().err
    assert main(["bench", "yolov4-tiny", "--plot", str(tmp_path / "no" / "speed.png")]) == 2
    assert "does not exist; create it first" in capsys.readouterr().err


def test_checkpoints_of_one_file_name_are_told_apart_by_their_folders(tmp_path: Path) -> None:
    places = [tmp_path / "a" / "train", tmp_path / "b" / "train", tmp_path / "b" / "train-2"]
    checkpoint = random_checkpoint(load_graph("yolov4-tiny"))
    for place in places:
        place.mkdir(parents=True)
        save_checkpoint(place / "best.safetensors", checkpoint)
    words = [str(place / "best.safetensors") for place in places]
    assert [one.name for one in open_networks([*words, "yolov4-tiny"])] == [
        "a/train/best.safetensors",
        "b/train/best.safetensors",
        "train-2/best.safetensors",
        "yolov4-tiny",
    ]
    assert {one.name for one in open_networks([words[0], words[0]])} == {"best.safetensors"}
