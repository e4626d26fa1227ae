"""The limit on the loss of AP: on networks of which it is known by construction which layer 8 bits destroy."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from scaledyolo.arch.graph import Graph, GraphBuilder
from scaledyolo.arch.ops import Conv, Detect
from scaledyolo.arch.quantisation import TRAINED_FOR
from scaledyolo.checkpoint import Checkpoint
from scaledyolo.data.coco import read_coco
from scaledyolo.data.dataset import Dataset
from scaledyolo.data.formats import open_dataset
from scaledyolo.errors import ConversionError
from scaledyolo.export import Int8, export
from scaledyolo.export import quantise as quantise_module
from scaledyolo.model import load_model

pytest.importorskip("openvino")
pytest.importorskip("nncf")

SIDE, CELL = 64, 8
COLOURS = ("red", "green", "blue")


def fragile_model(kernel: int) -> Checkpoint:
    """The detector of coloured cells behind three convolutions, the second of which cannot compute in 8 bits.

    "mix" passes the colours on and adds a channel a thousand times as large, which "pick", of this kernel, leaves out.
    One scale for all channels of the tensor between them leaves of a colour less than a level; "spread" and "copy" are
    harmless.
    """
    build = GraphBuilder()
    x = build.add("spread", Conv(3, norm=False, bias=True, activation="leaky"), Graph.INPUT)
    x = build.add("mix", Conv(4, norm=False, bias=True, activation="leaky"), x)
    x = build.add("pick", Conv(3, kernel, padding=kernel // 2, norm=False, bias=True, activation="leaky"), x)
    x = build.add("copy", Conv(3, 3, padding=1, norm=False, bias=True, activation="leaky"), x)
    x = build.add("cells", Conv(8, CELL, (CELL, CELL), norm=False, bias=True), x)
    build.add("head", Detect(((8.0, 8.0),), (0,), num_classes=3), x)
    graph = Graph("fragile", tuple(build.nodes), SIDE, SIDE)
    weights = {name: np.zeros(shape, np.float32) for name, shape in graph.parameters.items()}
    middle = kernel // 2
    for colour in range(3):
        for layer, place in (("spread", 0), ("mix", 0), ("pick", middle), ("copy", 1)):
            weights[f"{layer}.weight"][colour, colour, place, place] = 1
        weights["mix.weight"][3, colour] = 1000
        weights["cells.weight"][5 + colour, colour] = 40 / CELL**2
    weights["cells.weight"][4], weights["cells.bias"][4] = 20 / CELL**2, -10
    weights["cells.bias"][5:] = -20
    return Checkpoint(graph=graph, class_names=COLOURS, weights=weights)


@pytest.fixture(scope="module")
def cells(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """Six pictures with eight cells each of pure colours, none beside another, and one cell that is bright grey."""
    folder = tmp_path_factory.mktemp("cells")
    random = np.random.default_rng(0)
    images, boxes = [], []
    for number in range(6):
        picture = np.zeros((SIDE, SIDE, 3), np.uint8)
        for place in random.permutation(16)[:8]:
            top, left = (2 * CELL * int(side) for side in divmod(place, 4))
            colour = int(random.integers(3))
            picture[top : top + CELL, left : left + CELL, colour] = 255
            box = {"bbox": [left, top, CELL, CELL], "area": CELL**2, "iscrowd": 0, "category_id": colour + 1}
            boxes.append({**box, "id": len(boxes) + 1, "image_id": number})
        cv2.imwrite(str(folder / f"{number}.png"), picture[..., ::-1])
        images.append({"id": number, "file_name": f"{number}.png", "height": SIDE, "width": SIDE})
    categories = [{"id": colour + 1, "name": name} for colour, name in enumerate(COLOURS)]
    content = {"images": images, "annotations": boxes, "categories": categories}
    (folder / "instances.json").write_text(json.dumps(content))
    return read_coco(folder / "instances.json", images=folder)


def wish(cells: Dataset, limit: float) -> Int8:
    return Int8(Path(cells.path(0)).parent, max_ap_drop=limit)


@pytest.fixture(params=["openvino", "onnx"])
def form(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Either runtime; the time of networks this small says nothing."""
    monkeypatch.setattr(quantise_module, "interleaved", lambda runs: {"int8": 1.0, "float32": 2.0})
    return request.param


def test_the_layer_that_8_bits_destroy_returns_to_float(cells: Dataset, tmp_path: Path, form: str) -> None:
    report = export(fragile_model(1), tmp_path, format=form, int8=wish(cells, 1.0), data=cells)
    facts = report.facts.quantisation
    assert facts is not None
    # ONNX Runtime rounds what a convolution in 8 bits puts out, so there the layer before has to go along.
    macs = {"spread": 9, "mix": 12, "pick": 12, "copy": 81, "cells": 8 * 3}  # of a pixel
    assert set(facts.float_layers) == ({"pick"} if form == "openvino" else {"mix", "pick"})
    share = sum(count for name, count in macs.items() if name not in (*facts.float_layers, "cells")) / sum(
        macs.values()
    )
    assert facts.int8_share == pytest.approx(share, abs=1e-4)
    assert facts.max_ap_drop == 1.0
    assert facts.full_ap_drop == pytest.approx(100, abs=1)
    assert report.verification is not None
    assert report.verification.passed, report.verification.summary()
    for check in report.verification.checks:
        assert check.ap is not None
        assert check.ap.expected == pytest.approx(1.0)
        assert check.ap.found > 0.99


def test_fine_tuning_is_advised_where_8_bits_cost_more_than_a_point(cells: Dataset, tmp_path: Path) -> None:
    report = export(fragile_model(1), tmp_path, format="openvino", int8=wish(cells, 1.0), data=cells).verification
    assert report is not None
    words = r"8 bits cost (100|99\.\d\d|100\.00) points of AP; `scaledyolo train .* --recipe int8`"
    assert re.search(words, report.summary())
    assert report.to_dict()["advice"] == report.advice
    trained = replace(fragile_model(1), provenance={TRAINED_FOR: "int8"})
    report = export(trained, tmp_path, format="openvino", int8=wish(cells, 1.0), data=cells).verification
    assert report is not None
    assert report.quantisation is not None
    assert report.quantisation.trained_for
    assert report.advice == ""
    with pytest.raises(ConversionError, match=r"fine-tune it for 8 bits \(`.* --recipe int8`\), compute"):
        export(fragile_model(5), tmp_path / "b_openvino_model", format="openvino", int8=wish(cells, 1.0), data=cells)


def test_without_a_limit_the_loss_shows_in_the_verification(cells: Dataset, tmp_path: Path, form: str) -> None:
    report = export(fragile_model(1), tmp_path, format=form, int8=Int8(Path(cells.path(0)).parent))
    assert report.facts.quantisation is not None
    assert report.facts.quantisation.float_layers == ()
    assert report.facts.verification == "UNVERIFIED"


def test_refused_where_most_of_the_network_would_have_to_be_float(cells: Dataset, tmp_path: Path, form: str) -> None:
    with pytest.raises(ConversionError, match=r"fragile: in 8 bits it loses 100\.00 points of AP .* 1 were allowed"):
        export(fragile_model(5), tmp_path, format=form, int8=wish(cells, 1.0), data=cells)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.shared
def test_a_trained_network_keeps_its_ap(shared: Path, tmp_path: Path) -> None:
    """Real weights of a network with depthwise convolutions, on photographs that it was not calibrated on."""
    model = load_model(shared / "weights" / "yolo-fastest-1.1-xl.cfg")
    data = open_dataset(shared / "data" / "coco_mini", split="val").subset(np.arange(100))
    request = Int8(shared / "data" / "coco_mini", images=32, max_ap_drop=1.0)
    report = export(model, tmp_path, format="openvino", int8=request, data=data)
    assert report.verification is not None
    assert report.verification.passed, report.verification.summary()
    (check,) = report.verification.checks
    assert check.ap is not None
    assert check.ap.found > check.ap.expected - 0.011
    matched, compared = report.verification.boxes
    assert matched > 0.95 * compared
    assert report.num_bytes < 4 * sum(array.size for array in model.weights.values()) / 1.4
