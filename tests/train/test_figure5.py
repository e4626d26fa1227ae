"""benchmarks/figure5.py on a network that never learned and four images: its network, its sizes, its files."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from scaledyolo.arch.cost import cost
from scaledyolo.arch.lower import lower
from scaledyolo.arch.subnet import cut
from scaledyolo.arch.zoo import find
from scaledyolo.checkpoint import Checkpoint, save_checkpoint
from scaledyolo.evaluate.coco import coco_metrics
from scaledyolo.evaluate.protocols import COCO
from scaledyolo.evaluate.run import ground_truth, predict
from scaledyolo.model import read_spec
from scaledyolo.runnable import open_runnable
from scaledyolo.subnet import subnet_checkpoint
from scaledyolo.weights import random_weights

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "figure5.py"


@pytest.fixture(scope="module")
def figure5() -> ModuleType:
    described = importlib.util.spec_from_file_location("figure5", SCRIPT)
    assert described is not None
    assert described.loader is not None
    module = importlib.util.module_from_spec(described)
    described.loader.exec_module(module)
    return module


def test_its_network_is_a_p6_that_a_cpu_can_train(figure5, tmp_path, capsys):
    path = tmp_path / "narrow.yaml"
    assert figure5.main(["network", "--classes", "3", "--size", "384", "--out", str(path)]) == 0
    assert "yolov4-p6-narrow at 384x384, 3 classes" in capsys.readouterr().out
    spec = read_spec(path)
    graph = lower(spec)
    assert sorted(graph.strides) == [8, 16, 32, 64]
    figures = cost(graph)
    assert figures.params < 8e6
    assert figures.gflops < 2.5
    large = find("yolov4-p6")
    assert spec.anchors[-1] == pytest.approx(tuple(384 / large.size * side for side in large.anchors[-1]), abs=0.06)
    assert figure5.main(["network", "--classes", "3", "--size", "384", "--out", str(path)]) == 0
    with pytest.raises(SystemExit) as ended:
        figure5.main(["network", "--classes", "3", "--size", "400", "--out", str(path)])
    assert ended.value.code == 2


def test_the_sizes_reach_from_half_to_a_fifth_above(figure5):
    assert figure5.default_sizes(384, 64) == (192, 256, 320, 384, 448)
    assert (
        figure5.default_sizes(1536, 128) == (768, 1024, 1152, 1408, 1536, 1792)
        or len(figure5.default_sizes(1536, 128)) == figure5.STEPS
    )
    for size in figure5.default_sizes(1536, 128):
        assert size % 128 == 0


def test_three_curves_with_the_figures_of_the_networks_themselves(figure5, world: Any, tmp_path, capsys):
    spec = figure5.narrow_p6(3, 128)
    graph = lower(spec)
    weights = random_weights(graph, np.random.default_rng(0))
    checkpoint = Checkpoint(graph=graph, weights=weights, class_names=("square", "disc", "triangle"), spec=spec)
    save_checkpoint(tmp_path / "narrow.safetensors", checkpoint)
    data = world.write_shapes(tmp_path / "four", 4)
    words = ["measure", str(tmp_path / "narrow.safetensors"), "--data", str(data), "--out", str(tmp_path / "out")]
    assert figure5.main([*words, "--sizes", "64", "128", "--subnets", "without-head-p6", "without-stage-p6"]) == 0
    result = json.loads((tmp_path / "out" / "figure5.json").read_text())
    assert [curve["subnet"] for curve in result["curves"]] == ["", "without-head-p6", "without-stage-p6"]
    assert [curve["exact"] for curve in result["curves"]] == [True, True, False]
    assert result["images"] == 4
    for curve in result["curves"]:
        part = cut(graph, curve["subnet"]).graph if curve["subnet"] else graph
        assert [point["gflops"] for point in curve["points"]] == pytest.approx(
            [cost(part, side, side).gflops for side in (64, 128)], abs=1e-3
        )
        for point in curve["points"]:
            assert 0 <= point["AP"] <= 1
            if curve["subnet"]:
                assert point["difference"]["low"] <= point["difference"]["value"] <= point["difference"]["high"]
    assert result["best_by_size"].keys() == {"64", "128"}
    assert "<svg" in (tmp_path / "out" / "figure5.svg").read_text()[:2000]

    # The same figure by the parts of the package that it is made of, in another engine.
    from scaledyolo.data.formats import open_dataset

    four = open_dataset(data, "val")
    part = subnet_checkpoint(checkpoint, "without-stage-p6")
    run = open_runnable(part, engine="onnxruntime", threads=1).run
    ap = coco_metrics(ground_truth(four), predict(four, run, part.graph.detects, 64, 64, COCO)).ap
    assert result["curves"][2]["points"][0]["AP"] == pytest.approx(ap, abs=1e-3)
