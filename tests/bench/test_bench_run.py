"""The whole benchmark on a tiny network, through the command line, and the rival's answers beside ours."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from scaledyolo.arch.cost import cost
from scaledyolo.arch.graph import Graph
from scaledyolo.arch.lower import lower
from scaledyolo.arch.zoo import find
from scaledyolo.bench.candidates import STAGES
from scaledyolo.bench.jobs import OpenCvJob
from scaledyolo.bench.networks import random_checkpoint
from scaledyolo.bench.opencv import OpenCvCandidate, reads_darknet, write_for_opencv
from scaledyolo.cli import main
from scaledyolo.engines.faithful import scene
from scaledyolo.engines.onnxruntime import OnnxRuntimeEngine
from scaledyolo.errors import UsageError
from scaledyolo.export import export
from scaledyolo.postprocess.decode import decode_all
from scaledyolo.runnable import open_runnable
from scaledyolo.weights import Weights

SIDE = 96


def model(name: str) -> tuple[Graph, Weights]:
    """A small network of the zoo with random weights that see something: OpenCV hides scores below a threshold."""
    graph = lower(find(name)).with_size(SIDE, SIDE)
    return graph, dict(random_checkpoint(graph).weights)


def our_rows(graph: Graph, maps: list[np.ndarray]) -> list[np.ndarray]:
    """What OpenCV's Darknet layers put out: for every cell and anchor cx, cy, w, h over the image and objectness."""
    rows = []
    for raw, detect in zip(maps, graph.detects, strict=True):
        decoded = np.asarray(decode_all([raw], [detect], (SIDE, SIDE)))[0]
        decoded = decoded.reshape(len(detect.mask), -1, detect.num_outputs).swapaxes(0, 1)
        rows.append(decoded.reshape(-1, detect.num_outputs)[:, :5] / ([SIDE] * 4 + [1]))
    return rows


@pytest.mark.skipif(not reads_darknet(), reason="this OpenCV does not read Darknet's files")
def test_the_rival_computes_the_same_boxes_from_darknet_files(tmp_path: Path) -> None:
    graph, weights = model("yolov4-tiny")
    files = write_for_opencv(graph, weights, tmp_path, batch=1)
    assert len(files) == 2
    theirs = OpenCvCandidate(OpenCvJob(files, SIDE, SIDE, 1, 1)).maps()
    images = scene(3, SIDE, SIDE, 0)[None]
    ours = our_rows(graph, OnnxRuntimeEngine.from_graph(graph, weights, threads=1).run(images))
    for expected, actual in zip(theirs, ours, strict=True):
        np.testing.assert_allclose(actual, expected[:, :5], atol=2e-4)


def test_the_rival_computes_the_same_maps_from_onnx(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scaledyolo.bench.opencv.reads_darknet", lambda: False)
    graph, weights = model("yolov4-tiny")
    files = write_for_opencv(graph, weights, tmp_path, batch=2)
    assert len(files) == 1
    theirs = OpenCvCandidate(OpenCvJob(files, SIDE, SIDE, 2, 1)).maps()
    images = np.stack([scene(3, SIDE, SIDE, seed) for seed in range(2)])
    ours = OnnxRuntimeEngine.from_graph(graph, weights, threads=1).run(images)
    for expected, actual in zip(sorted(theirs, key=np.size), sorted(ours, key=np.size), strict=True):
        np.testing.assert_allclose(actual, expected, atol=1e-3)


def test_files_that_the_rival_cannot_run_are_refused_in_one_sentence(tmp_path: Path) -> None:
    path = tmp_path / "x.onnx"
    path.write_bytes(b"nothing of the kind")
    with pytest.raises(UsageError, match="cannot run this network") as caught:
        OpenCvCandidate(OpenCvJob((str(path),), SIDE, SIDE, 1, 1))
    assert "\n" not in str(caught.value)


def test_every_installed_engine_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "speed.png"
    arguments = ["bench", "yolov4-tiny", "--sizes", str(SIDE), "--rounds", "2", "--warmup", "1", "--threads", "1"]
    assert main([*arguments, "--json", "--plot", str(plot)]) == 0
    rows: list[dict[str, Any]] = json.loads(capsys.readouterr().out)
    installed = [name for name in ("openvino", "onnxruntime", "torch") if importlib.util.find_spec(name)]
    assert {row["engine"] for row in rows} == {*installed, "opencv"}
    gflop = cost(lower(find("yolov4-tiny")), SIDE, SIDE).gflops
    for row in rows:
        assert row["error"] == ""
        assert row["version"]
        assert (row["model"], row["size"], row["batch"], row["threads"]) == ("yolov4-tiny", [SIDE, SIDE], 1, 1)
        assert 0 < row["median_ms"] <= row["p95_ms"]
        assert row["images_per_s"] == pytest.approx(1e3 / row["median_ms"])
        assert row["peak_mb"] is None or 50 < row["peak_mb"] < 2000
        assert row["gflops"] == pytest.approx(gflop / (row["median_ms"] / 1e3))
        assert row["peak_share"] == pytest.approx(row["gflops"] / row["peak_gflops"])
    assert plot.read_bytes().startswith(b"\x89PNG")


def test_end_to_end_is_split_into_stages(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "yolov4-tiny", "--sizes", str(SIDE), "--engines", "onnxruntime", "--end-to-end", "--json"]
    assert main([*arguments, "--rounds", "2", "--warmup", "0", "--threads", "1", "--batch", "2"]) == 0
    alone, whole = json.loads(capsys.readouterr().out)
    assert (alone["end_to_end"], whole["end_to_end"]) == (False, True)
    assert tuple(whole["stages"]) == STAGES
    assert all(ms > 0 for ms in whole["stages"].values())
    assert 0 < whole["detections"] <= 2 * 100  # random weights: the threshold lets 100 boxes of an image pass
    assert whole["peak_share"] is None


def test_auto_is_what_a_detector_chooses(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "yolov4-tiny", "--sizes", "64", "--engines", "auto", "--rounds", "1", "--warmup", "0"]
    assert main([*arguments, "--threads", "1", "--json"]) == 0
    (row,) = json.loads(capsys.readouterr().out)
    chosen = open_runnable(random_checkpoint(lower(find("yolov4-tiny"))), device="cpu", half=None, threads=1).engine
    assert (row["engine"], row["precision"]) == (chosen.name, chosen.precision)
    assert row["peak_share"] > 0


def test_tables_layers_and_plots(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plot = tmp_path / "speed.svg"
    arguments = ["bench", "yolov4-tiny", "--sizes", "64", "--engines", "onnxruntime,opencv", "--layers"]
    assert main([*arguments, "--rounds", "1", "--warmup", "0", "--threads", "1", "--plot", str(plot)]) == 0
    told = capsys.readouterr().out
    for text in (
        "network alone, 1 thread",
        "yolov4-tiny 64",
        "backbone.stem",
        "bound by",
        "VmHWM",
        "no layers: opencv on cpu",
    ):
        assert text in told
    assert "<svg" in plot.read_text()
    assert "<svg" in plot.with_stem("speed-roofline").read_text()


def test_networks_together_are_one_heat(capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "yolov4-tiny", "yolov3-tiny", "--sizes", "64", "--engines", "onnxruntime", "--json"]
    assert main([*arguments, "--rounds", "1", "--warmup", "0", "--threads", "1", "--together"]) == 0
    assert [(row["model"], row["heat"]) for row in json.loads(capsys.readouterr().out)] == [
        ("yolov4-tiny", 0),
        ("yolov3-tiny", 0),
    ]


def test_exported_files_run_in_what_reads_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = lower(find("yolov4-tiny")).with_size(SIDE, SIDE)
    path = tmp_path / "net.onnx"
    export(random_checkpoint(graph), path, format="onnx", dynamic=False, batch=1, verified=False)
    arguments = ["bench", str(path), "--engines", "onnxruntime", "opencv", "torch", "--json"]
    assert main([*arguments, "--rounds", "1", "--warmup", "0", "--threads", "1"]) == 1
    ort, opencv, torch = json.loads(capsys.readouterr().out)
    assert ort["size"] == [SIDE, SIDE]
    assert ort["median_ms"] > 0
    assert opencv["median_ms"] > 0
    assert "not in torch" in torch["error"]
    if importlib.util.find_spec("openvino"):  # which counts the convolutions of the file
        assert ort["gflop"] == pytest.approx(cost(graph, SIDE, SIDE).gflops)
