"""AP of an artefact beside that of its model, on images whose objects are known."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from scaledyolo.artefact import EmbeddedNms
from scaledyolo.cli import main
from scaledyolo.data.formats import open_dataset
from scaledyolo.errors import DataError
from scaledyolo.export import export, verify

pytest.importorskip("openvino")
pytest.importorskip("faster_coco_eval")

CELLS = (((1, 2, 0), (5, 2, 1), (3, 6, 2)), ((0, 0, 1),), ((7, 7, 2), (4, 1, 0)))
CELL, SIDE = 8, 64


@pytest.fixture
def painted_set(tmp_path: Path, paint) -> Path:
    """A YOLO data set of painted cells: every box is a cell, so that the colour detector finds all of them exactly."""
    folder = tmp_path / "painted"
    for part in ("images", "labels"):
        (folder / part / "val").mkdir(parents=True)
    for number, cells in enumerate(CELLS):
        Image.fromarray(paint(SIDE, SIDE, *cells)).save(folder / "images" / "val" / f"{number}.png")
        share = CELL / SIDE
        rows = [f"{c} {(x + 0.5) * share} {(y + 0.5) * share} {share} {share}" for x, y, c in cells]
        (folder / "labels" / "val" / f"{number}.txt").write_text("\n".join(rows))
    names = ["red", "green", "blue"]
    (folder / "data.yaml").write_text(yaml.safe_dump({"path": ".", "val": "images/val", "names": names}))
    return folder


@pytest.mark.parametrize("nms", [None, EmbeddedNms(confidence=0.3)])
def test_everything_is_found_by_model_and_artefact(colours, painted_set: Path, tmp_path: Path, nms) -> None:
    data = open_dataset(painted_set, "val")
    report = export(colours.checkpoint, tmp_path / "c.onnx", nms=nms, data=data).verification
    assert report is not None
    assert report.passed, report.summary()
    for check in report.checks:
        assert check.ap is not None
        assert check.ap.expected == pytest.approx(1.0)  # what the boxes were painted for
        assert check.ap.found == pytest.approx(1.0)
        assert check.ap.images == len(CELLS)


@pytest.mark.parametrize("nms", [None, EmbeddedNms(confidence=0.3)])
def test_what_the_artefact_misses_costs_it_ap(colours, painted_set: Path, tmp_path: Path, nms) -> None:
    """A detector that is blind to blue loses the third of AP that blue is."""
    weights = {name: value.copy() for name, value in colours.checkpoint.weights.items()}
    weights["cells.bias"][7] = -100
    path = export(replace(colours.checkpoint, weights=weights), tmp_path / "blind.onnx", nms=nms, verified=False).path
    report = verify(path, colours.checkpoint, data=open_dataset(painted_set, "val"), mark=False)
    assert not report.passed
    for check in report.checks:
        assert check.ap is not None
        assert check.ap.expected == pytest.approx(1.0)
        assert check.ap.found == pytest.approx(2 / 3, abs=0.01)
        assert not check.ap.within(check.tolerance)


def test_the_command_takes_a_data_set(colours, painted_set: Path, tmp_path: Path, capsys) -> None:
    artefact = str(tmp_path / "c.onnx")
    words = ["--data", str(painted_set), "--images", str(painted_set / "images" / "val" / "0.png")]
    assert main(["export", str(colours.path), "--nms", "--out", artefact, *words]) == 0
    assert capsys.readouterr().out.count("AP 100.00 against 100.00") == 2
    assert main(["verify", artefact, *words]) == 0
    assert capsys.readouterr().out.count("AP 100.00 against 100.00") == 2


def test_a_data_set_of_other_classes_is_refused(small_model, colours, painted_set: Path, tmp_path: Path) -> None:
    from scaledyolo.weights import random_weights

    graph = small_model.graph
    nodes = []
    for node in graph:
        if hasattr(node.op, "num_classes"):
            nodes.append(replace(node, op=replace(node.op, num_classes=1)))
        elif node.name in ("coarse", "fine"):
            nodes.append(replace(node, op=replace(node.op, filters=12)))
        else:
            nodes.append(node)
    other = graph.with_nodes(tuple(nodes))
    weights = random_weights(other, np.random.default_rng(0))
    model = replace(small_model, graph=other, weights=weights, class_names=("one",), category_ids=None)
    with pytest.raises(DataError, match="knows 1 class, .* has 3"):
        export(model, tmp_path / "one.onnx", data=open_dataset(painted_set, "val"))
    assert not list(tmp_path.glob("one*"))
