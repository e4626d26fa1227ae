"""8 bits: what is quantised, what stays in float, how faithful and how it is refused."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from scaledyolo.arch.graph import Graph, GraphBuilder
from scaledyolo.arch.ops import Activation, Add, ChannelSplit, Conv, Detect, GlobalAveragePool, Multiply
from scaledyolo.artefact import EmbeddedNms, ModelFacts
from scaledyolo.checkpoint import Checkpoint, save_checkpoint
from scaledyolo.cli import main
from scaledyolo.detector import Detector
from scaledyolo.engines.faithful import relative_error, scene
from scaledyolo.errors import ConversionError, DataError, MissingPackageError, UsageError
from scaledyolo.export import Int8, export, verify
from scaledyolo.export import quantise as quantise_module
from scaledyolo.runnable import open_runnable, read_facts
from scaledyolo.weights import random_weights

openvino = pytest.importorskip("openvino")
pytest.importorskip("nncf")

CLASSES = ("cat", "dog", "zebra crossing")
LAYERS = {"stem", "down1", "conv", "down2", "deep"}


@pytest.fixture(scope="module")
def photographs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with eight pictures in different shapes, one of them in a subfolder."""
    folder = tmp_path_factory.mktemp("pictures")
    (folder / "more").mkdir()
    for seed in range(8):
        height, width = ((120, 160), (160, 120), (96, 200))[seed % 3]
        picture = (scene(3, height, width, seed) * 255).astype(np.uint8).transpose(1, 2, 0)
        cv2.imwrite(str(folder / ("more" if seed == 7 else "") / f"{seed}.png"), picture)
    return folder


@pytest.fixture(scope="module")
def exported(small_model: Checkpoint, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small model in 8 bits for OpenVINO. Tests must not change it."""
    folder = tmp_path_factory.mktemp("int8")
    report = export(small_model, folder, format="openvino", int8=Int8(photographs))
    assert report.verification is not None
    assert report.verification.passed, report.verification.summary()
    return report.path


def executed(network: Path) -> dict[str, str]:
    """Precision in which OpenVINO really computes each convolution of a file, by the names of what it is made of."""
    core = openvino.Core()
    compiled = core.compile_model(core.read_model(network), "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    facts = [node.get_rt_info() for node in compiled.get_runtime_model().get_ops()]
    return {
        item["originalLayersNames"].astype(str): item["runtimePrecision"].astype(str)
        for item in facts
        if item["layerType"].astype(str) == "Convolution"
    }


def layer_of(names: str) -> str:
    """The layer that an executed convolution is, from the names of the operations that were fused into it."""
    return next(part.split("/")[0].removesuffix(".linear") for part in names.split(",") if "WithoutBiases" in part)


def test_convolutions_are_executed_in_8_bits_and_the_last_ones_in_float(exported: Path) -> None:
    found = {layer_of(names): precision for names, precision in executed(exported / "small.xml").items()}
    assert {layer for layer, precision in found.items() if precision in ("i8", "u8")} == LAYERS
    assert {layer for layer, precision in found.items() if precision == "f32"} == {"coarse.detect", "fine.detect"}


def test_weights_are_stored_in_8_bits(exported: Path, small_model: Checkpoint) -> None:
    model = openvino.Core().read_model(exported / "small.xml")
    stored = Counter(
        node.get_element_type().get_type_name() for node in model.get_ops() if node.get_type_name() == "Constant"
        and len(node.get_output_shape(0)) == 4 and np.prod(node.get_output_shape(0)) > 100
    )  # fmt: skip
    assert stored == {"i8": len(LAYERS), "f32": 2}


def test_metadata_and_report_say_how_it_was_quantised(exported: Path, photographs: Path) -> None:
    facts = read_facts(exported)
    assert facts.quantisation is not None
    assert facts.quantisation.precision == "int8"
    assert facts.quantisation.images == 8
    assert facts.quantisation.calibrated_on == photographs.name
    assert facts.quantisation.tool.startswith("nncf ")
    assert facts.quantisation.float_layers == ()
    report = json.loads((exported.parent / f"{exported.name}.verified.json").read_text())
    assert report["quantisation"]["precision"] == "int8"
    assert report["passed"] is True
    assert "int8" in report["checks"][0]["engine"]


def test_metadata_of_float_artefacts_is_read_without_the_key(small_model: Checkpoint) -> None:
    metadata = ModelFacts.of(small_model).to_metadata()
    del metadata["quantisation"]
    assert ModelFacts.from_metadata(metadata, "here").quantisation is None


def test_detector_loads_it_and_finds_what_the_float_network_finds(exported: Path, small_model: Checkpoint) -> None:
    picture = (scene(3, 120, 160, 3) * 255).astype(np.uint8).transpose(1, 2, 0)
    detector = Detector(exported, confidence=0.3)
    assert detector.engine.precision == "int8"
    found, expected = detector(picture), Detector(small_model, confidence=0.3, half=False)(picture)
    assert len(expected) > 5
    assert abs(len(found) - len(expected)) <= 0.2 * len(expected)


def test_maps_are_near_those_of_float(exported: Path, small_model: Checkpoint) -> None:
    images = np.stack([scene(3, 64, 96, seed) for seed in range(20, 24)])
    found = open_runnable(exported, device="cpu").run(images)
    expected = open_runnable(small_model, engine="onnxruntime").run(images)
    error = relative_error(found, expected)
    assert 1e-4 < error < 0.1  # not float, and not far from it


@pytest.mark.parametrize("options", [{"dynamic": True}, {"batch": 2}], ids=["free sides", "fixed batch"])
def test_shapes(small_model: Checkpoint, photographs: Path, tmp_path: Path, options: dict[str, Any]) -> None:
    report = export(small_model, tmp_path, format="openvino", int8=Int8(photographs, images=3), **options)
    assert report.verification is not None
    assert report.verification.passed, report.verification.summary()


@pytest.mark.parametrize("form", ["openvino", "onnx"])
def test_end_to_end(small_model: Checkpoint, photographs: Path, tmp_path: Path, form: str, always_faster: None) -> None:
    rules = EmbeddedNms(confidence=0.3, max_detections=50)
    report = export(small_model, tmp_path, format=form, int8=Int8(photographs, images=4), nms=rules)
    assert report.facts.quantisation is not None
    assert report.verification is not None
    assert report.verification.passed, report.verification.summary()


def activation_graph(activation: Activation) -> Graph:
    """Convolutions, a sum and a gate, each after an activation; layers are called like its parts to mislead."""
    build = GraphBuilder()
    x = build.add("a", Conv(8, 3, (2, 2), 1, activation=activation), Graph.INPUT)
    half = build.add("a.b.half", ChannelSplit(2, 0), x)
    y = build.add("a.b.conv", Conv(8, 3, (1, 1), 1, activation=activation), half)
    x = build.add("sum", Add("leaky"), x, y)
    gate = build.add("gate", Conv(8, 1, activation="logistic"), build.add("mean", GlobalAveragePool(), x))
    x = build.add("gated", Multiply(), x, gate)
    x = build.add("last", Conv(8, 1, norm=False, bias=True), build.add("c", Conv(8, 1, activation=activation), x))
    build.add("head", Detect(((8.0, 8.0),), (0,), 3), x)
    return Graph("activations", tuple(build.nodes), 64, 64)


def rounded(activation: Activation, photographs: Path, folder: Path) -> set[str]:
    """Where maps are rounded in a network with this activation."""
    graph = activation_graph(activation)
    weights = random_weights(graph, np.random.default_rng(0))
    model = Checkpoint(graph=graph, weights=weights, class_names=CLASSES)
    report = export(model, folder, format="openvino", int8=Int8(photographs, images=2), verified=False)
    operations = openvino.Core().read_model(report.path / "activations.xml").get_ops()
    return {node.get_friendly_name() for node in operations if node.get_type_name() == "FakeQuantize"}


@pytest.fixture(scope="module")
def rounded_around_leaky(photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Where maps are rounded if the activation is a single operator."""
    return rounded("leaky", photographs, tmp_path_factory.mktemp("leaky"))


@pytest.mark.parametrize("activation", ["mish", "swish", "gelu", "hard_mish"])
def test_nothing_inside_an_activation_is_rounded(
    activation: Activation, photographs: Path, tmp_path: Path, rounded_around_leaky: set[str]
) -> None:
    assert {"images/fq_output_0", "a.b.conv/fq_output_0", "gated/fq_output_0"} <= rounded_around_leaky
    assert rounded(activation, photographs, tmp_path) == rounded_around_leaky


# -- ONNX Runtime --------------------------------------------------------------------------------------------------


@pytest.fixture
def always_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    """The time of a network as small as that of the tests says nothing: let 8 bits win."""
    monkeypatch.setattr(quantise_module, "interleaved", lambda runs: {"int8": 1.0, "float32": 3.0})


def test_onnx_computes_convolutions_in_8_bits(
    small_model: Checkpoint, photographs: Path, tmp_path: Path, always_faster: None
) -> None:
    import onnx
    import onnxruntime

    report = export(small_model, tmp_path / "a.onnx", int8=Int8(photographs))
    assert report.verification is not None
    assert report.verification.passed, report.verification.summary()
    assert report.facts.quantisation is not None
    assert report.facts.quantisation.speedup == 3.0
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "executed.onnx")
    onnxruntime.InferenceSession(report.path, options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(tmp_path / "executed.onnx").graph.node
    kinds = Counter(node.op_type for node in nodes)
    assert kinds["QLinearConv"] == len(LAYERS)
    assert kinds["Conv"] + kinds["FusedConv"] == 2  # before the heads
    assert open_runnable(report.path, engine="onnxruntime").engine.precision == "int8"


def test_onnx_is_refused_where_it_is_not_faster(
    small_model: Checkpoint, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(quantise_module, "interleaved", lambda runs: {"int8": 1.3, "float32": 1.0})
    with pytest.raises(ConversionError, match=r"not faster in ONNX Runtime .* 1\.30 times the time of float32"):
        export(small_model, tmp_path, int8=Int8(photographs))
    assert list(tmp_path.iterdir()) == []


# -- refusals ------------------------------------------------------------------------------------------------------


def test_refusals(small_model: Checkpoint, photographs: Path, tmp_path: Path) -> None:
    wish = Int8(photographs)
    with pytest.raises(UsageError, match="torchscript cannot be quantised here; onnx and openvino can"):
        export(small_model, tmp_path, format="torchscript", int8=wish)
    with pytest.raises(UsageError, match="leave out half"):
        export(small_model, tmp_path, format="openvino", int8=wish, half=True)
    with pytest.raises(UsageError, match="needs a data set"):
        export(small_model, tmp_path, format="openvino", int8=replace(wish, max_ap_drop=1.0))
    with pytest.raises(UsageError, match="0 calibration images"):
        export(small_model, tmp_path, format="openvino", int8=replace(wish, images=0))
    empty = tmp_path / "empty"
    empty.mkdir()
    with pytest.raises(DataError, match="no images to calibrate on"):
        export(small_model, tmp_path, format="openvino", int8=Int8(empty))
    assert list(tmp_path.iterdir()) == [empty]


def test_missing_package_names_the_extra(
    small_model: Checkpoint, photographs: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "nncf", None)
    with pytest.raises(MissingPackageError, match=r"pip install 'scaledyolo\[int8\]'"):
        export(small_model, tmp_path, format="openvino", int8=Int8(photographs))


def test_an_unreadable_image_is_named(small_model: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "broken.jpg").write_bytes(b"not a picture")
    with pytest.raises(DataError, match=r"broken\.jpg"):
        export(small_model, tmp_path, format="openvino", int8=Int8(tmp_path))


def test_another_network_is_noticed(exported: Path, small_model: Checkpoint) -> None:
    assert verify(exported, small_model, mark=False).passed
    for layer in ("deep", "conv", "fine"):
        weights = {**small_model.weights, f"{layer}.weight": -small_model.weights[f"{layer}.weight"]}
        assert not verify(exported, replace(small_model, weights=weights), mark=False).passed, layer


# -- command line --------------------------------------------------------------------------------------------------


def test_command_line(
    small_model: Checkpoint, photographs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_checkpoint(tmp_path / "small.safetensors", small_model)
    words = ["export", str(tmp_path / "small.safetensors"), "--format", "openvino", "--out", str(tmp_path), "--json"]
    assert main([*words, "--int8", "--calibrate", str(photographs), "--calibration-images", "3"]) == 0
    printed = json.loads(capsys.readouterr().out)  # and nothing of NNCF's progress
    assert printed["verification"] == "verified"
    assert printed["report"]["quantisation"]["images"] == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--int8"], "give --calibrate DATA_OR_FOLDER"),
        (["--calibrate", "somewhere"], "belong to --int8"),
        (["--int8", "--calibrate", ".", "--max-ap-drop", "0.5"], "give --data"),
        (["--int8", "--calibrate", ".", "--half"], "leave out half"),
    ],
)
def test_command_line_refuses(
    small_model: Checkpoint, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str], message: str
) -> None:
    save_checkpoint(tmp_path / "small.safetensors", small_model)
    assert main(["export", str(tmp_path / "small.safetensors"), "--format", "openvino", *options]) == 2
    assert message in capsys.readouterr().err
