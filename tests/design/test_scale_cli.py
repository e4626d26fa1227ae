"""`scaledyolo scale` with the real engine on networks small enough for a test, and what it refuses."""

from __future__ import annotations

import json
from dataclasses import replace
from fractions import Fraction

import pytest

from scaledyolo.arch.cost import cost
from scaledyolo.arch.lower import lower
from scaledyolo.arch.zoo import find
from scaledyolo.cli import main
from scaledyolo.cli.anchors import write_spec
from scaledyolo.design import candidates
from scaledyolo.design.candidates import Range, enumerate_candidates
from scaledyolo.design.device import EngineDevice
from scaledyolo.errors import UsageError
from scaledyolo.model import load_spec

SMALL = ("--base", "small.yaml", "--size-range", "128", "160", "--activation", "leaky", "--threads", "1")


def test_a_network_is_found_written_drawn_and_found_again(hurried, capsys):
    out, plot = hurried / "mine.yaml", hurried / "front.png"
    words = ("scale", "--latency", "10s", *SMALL, "--classes", "3", "--json", "--out", str(out), "--plot", str(plot))
    assert main(words) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)
    assert set(found) >= {"chosen", "front", "predictor_error", "seconds"}
    chosen = found["chosen"]
    assert set(chosen) >= {"spec", "size", "predicted_ms", "median_ms", "gflops", "params"}
    assert 0 < chosen["median_ms"] < 10_000
    spec = load_spec(out)
    assert spec.to_dict() == chosen["spec"]
    assert (spec.size, spec.num_classes) == (chosen["size"], 3)
    totals = cost(lower(spec))
    assert (totals.params, round(totals.gflops, 4)) == (chosen["params"], chosen["gflops"])
    assert plot.stat().st_size > 10_000
    assert "measuring" in told.err
    assert found["device"]["threads"] == 1

    assert main(("scale", "--latency", "10s", *SMALL, "--classes", "3", "--json")) == 0
    again = capsys.readouterr()
    assert json.loads(again.out)["chosen"] == chosen
    assert "measuring" not in again.err

    assert main(("scale", "--fps", "0.1", *SMALL, "--classes", "3")) == 0
    text = capsys.readouterr().out
    assert f"* {spec.name}" in text
    assert "was chosen" in text

    with pytest.raises(UsageError, match=r"no network of this range meets 0\.0 ms .*: the fastest of \d+, small-"):
        main_raising("scale", "--fps", "100000", *SMALL, "--classes", "3")


@pytest.mark.shared
def test_a_data_set_gives_classes_boxes_and_anchors(hurried, shared, capsys):
    from scaledyolo.data.anchors import fit_of, label_sizes
    from scaledyolo.data.formats import open_dataset

    out, data = hurried / "cells.yaml", shared / "data" / "bccd"
    words = ("scale", "--latency", "10s", *SMALL, "--data", str(data))
    assert main((*words, "--out", str(out), "--json")) == 0
    chosen = json.loads(capsys.readouterr().out)["chosen"]
    spec, dataset = load_spec(out), open_dataset(data, "train")
    assert spec.num_classes == dataset.num_classes == chosen["spec"]["num_classes"]
    sizes = label_sizes(dataset, spec.size)
    before = fit_of(sizes, chosen["spec"]["anchors"])
    assert fit_of(sizes, spec.anchors).fitness > before.fitness
    assert main((*words, "--classes", "80")) == 2
    assert f"has {dataset.num_classes}; leave --classes out" in capsys.readouterr().err


def main_raising(*words: str) -> None:
    """Run a verb and let its error through, as the command line would print it."""
    from scaledyolo.cli.parsing import parse
    from scaledyolo.cli.scale import Scale

    parse(Scale, "scale", "", words[1:]).run()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ((), "give one budget: --fps, --latency, --gflops, --params or --memory; none was given"),
        (("--fps", "30", "--gflops", "3"), "got --fps and --gflops"),
        (("--fps", "0"), "a budget must be above zero"),
        (("--fps", "30", "--base", "cps"), "there is no family 'cps'"),
        (("--fps", "30", "--base", "yolov4-csq"), "Did you mean 'yolov4-csp'?"),
        (("--fps", "30", "--base", "missing.yaml"), "missing.yaml: No such file"),
        (
            ("--fps", "30", "--base", "tiny", "--size-range", "250", "640"),
            "250 is not a multiple of the largest stride",
        ),
        (("--fps", "30", "--base", "tiny", "--size-range", "640", "320"), "from the least to the largest side"),
        (("--fps", "30", "--engine", "openvinno"), "Did you mean 'openvino'?"),
        (("--fps", "30", "--device", "cpuu"), "Did you mean 'cpu'?"),
        (("--fps", "30", "--device", "cuda", "--engine", "openvino"), "cannot use 'cuda'"),
        (("--fps", "30", "--precision", "bfloat16", "--engine", "onnxruntime"), "computes in float32"),
        (("--fps", "30", "--out", "spec.txt"), "name the file spec.yaml"),
        (("--fps", "30", "--out", "nowhere/spec.yaml"), "nowhere does not exist"),
        (("--fps", "30", "--plot", "front.gif"), "a plot is written as"),
        (("--fps", "30", "--threads", "0"), "0 threads make no sense"),
        (("--fps", "30", "--classes", "0"), "at least one class"),
        (("--fpss", "30"), "Did you mean '--fps'?"),
    ],
)
def test_what_makes_no_sense_is_one_sentence(words, sentence, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert main(("scale", *words)) == 2
    told = capsys.readouterr()
    assert sentence in told.err
    assert len(told.err.strip().splitlines()) == 1
    assert told.out == ""


def test_a_spec_that_breaks_a_shape_rule_names_the_node(tmp_path, capsys):
    spec = find("csresnext50-panet-spp")
    write_spec(tmp_path / "odd.yaml", replace(spec, stages=(replace(spec.stages[0], channels=100), *spec.stages[1:])))
    assert main(("scale", "--fps", "30", "--base", str(tmp_path / "odd.yaml"))) == 2
    error = capsys.readouterr().err
    assert "node 'backbone.stage1.block1.conv2': 100 " in error
    assert "32 groups" in error


def test_a_detector_of_the_device_sees_boxes_and_leaves_no_compiled_model(monkeypatch, tmp_path):
    monkeypatch.setenv("SCALEDYOLO_HOME", str(tmp_path))
    monkeypatch.setattr(candidates, "LEAST_CELLS", 1)
    machine = EngineDevice(threads=1, precision="float32", seconds=0.05)
    assert machine.facts.precision == "float32"
    before = {path for path in tmp_path.rglob("*") if path.is_file()}
    wanted = Range(base="tiny", least=96, most=96, growths=(8,), depths=(Fraction(1),), activations=("leaky",))
    chosen = enumerate_candidates(wanted)
    timings = machine.measure(chosen)
    assert len(timings) == len(chosen) == 2
    assert all(timing.median_ms > 0 for timing in timings)
    assert {path for path in tmp_path.rglob("*") if path.is_file()} == before
    detector = machine.open(chosen[0].spec())
    assert (detector.height, detector.width) == (96, 96)
    assert detector.engine.precision == "float32"


@pytest.mark.slow
def test_the_choice_meets_its_budget_on_this_machine(tmp_path, monkeypatch, capsys):
    """The whole of it with the real engine, twice; benchmarks/scale_budget.py measures again in other processes."""
    monkeypatch.setenv("SCALEDYOLO_HOME", str(tmp_path))
    results = []
    for refresh in ((), ("--refresh",)):
        assert main(("scale", "--fps", "10", "--size-range", "256", "416", "--json", *refresh)) == 0
        results.append(json.loads(capsys.readouterr().out))
    for found in results:
        chosen = found["chosen"]
        assert chosen["median_ms"] <= 100
        times = [row["median_ms"] for row in found["front"]]
        capacities = [row["capacity"] for row in found["front"]]
        assert times == sorted(times)
        assert capacities == sorted(capacities)
        assert found["seconds"] < 180
    first, second = (found["chosen"] for found in results)
    noise = max(first["noise"], second["noise"], 0.1)
    assert abs(first["capacity"] / second["capacity"] - 1) <= noise
