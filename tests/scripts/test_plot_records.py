"""The plot of records: what is drawn where, and what is told where something is missing."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from scaledyolo.bench.rows import Row


@pytest.fixture
def records(script):
    return script("plot_records")


@pytest.fixture
def runs(tmp_path, run_folder) -> list[Path]:
    """Two runs of different networks, one of them a cell of `ablate`, measured on the test images."""
    run_folder(tmp_path / "tiny--small--seed0", ((300.0, 0.2), (600.0, 0.4)), {"ap": 0.38})
    spec = {"name": "yolov4-csp-s", "size": 320}
    run_folder(tmp_path / "csp" / "train", ((900.0, 0.5), (1800.0, 0.45)), spec=spec)
    return [tmp_path / "tiny--small--seed0", tmp_path / "csp"]


def options(records, runs: list[Path], **changes: object):
    return records.Options(runs=tuple(runs), **changes)


def test_runs_are_read_with_minutes_and_the_test_figure_where_there_is_one(records, runs):
    tiny, csp = records.entries(options(records, runs))
    assert (tiny.name, csp.name) == ("tiny--small--seed0", "csp")
    # Two threads: a minute is two core-minutes.
    assert tiny.curve == [(10.0, 0.2), (20.0, 0.4)]
    assert (tiny.minutes, tiny.ap) == (20.0, 0.38)
    assert (csp.minutes, csp.ap) == (60.0, 0.5)
    said = records.entries(options(records, runs, ap=(0.0, 0.47)))
    assert [entry.ap for entry in said] == [0.38, 0.47]


def row(model: str, side: int, median_ms: float, **changes: object) -> dict[str, object]:
    """What `bench --json` says of one way to run a network."""
    return Row(model=model, size=(side, side), batch=1, engine="openvino", precision="float32", median_ms=median_ms,
               **changes).to_dict()  # fmt: skip


def test_a_run_has_the_latency_of_its_network_at_its_size(records, runs, tmp_path):
    rows = [
        row("yolov4-tiny", 416, 9.0), row("yolov4-tiny", 416, 7.0, ), row("yolov4-tiny", 320, 4.0),
        row("yolov4-tiny", 416, 8.0) | {"engine": "onnxruntime"},
        row("yolov4-tiny", 416, 1.0, end_to_end=True), row("yolov4-tiny", 416, 1.0) | {"batch": 8},
        row("yolov4-csp-s", 320, 1.0, error="it failed"), row("yolov4-csp-s", 320, 20.0),
    ]  # fmt: skip
    (tmp_path / "bench.json").write_text(json.dumps(rows))
    for engine, expected in (("", [7.0, 20.0]), ("onnxruntime", [8.0, None])):
        found = records.entries(options(records, runs, latency=tmp_path / "bench.json", engine=engine))
        assert [entry.latency_ms for entry in found] == expected


def test_points_lie_where_the_figures_are(records, runs, tmp_path):
    (tmp_path / "ms.json").write_text(json.dumps({"tiny": 4.0, "csp": 20.0}))
    chosen = options(records, runs, names=("tiny", "csp"), latency=tmp_path / "ms.json", point=(("rival", 17.8, 0.45),))
    training, latency = records.draw(records.entries(chosen), chosen).axes
    dots = {
        line.get_label().split(":")[0]: line.get_xydata()[0] for line in training.lines if line.get_label()[0] != "_"
    }
    np.testing.assert_allclose([dots[name] for name in ("tiny", "csp", "rival")], [(20, 0.38), (60, 0.5), (17.8, 0.45)])
    assert {tuple(line.get_xydata()[0]) for line in latency.lines if len(line.get_xydata()) == 1} == {
        (4, 0.38),
        (20, 0.5),
    }
    # One colour is one run in both panels.
    for name, place in (("tiny", (4, 0.38)), ("csp", (20, 0.5))):
        first = next(line for line in training.lines if line.get_label().startswith(name))
        second = next(
            line for line in latency.lines if tuple(line.get_xydata()[0]) == place and len(line.get_xydata()) == 1
        )
        assert first.get_color() == second.get_color()


def test_the_front_leaves_out_what_is_slower_and_worse(records):
    found = [records.Entry(name, (), 1.0, ap, ms) for name, ap, ms in (("a", 0.3, 5), ("b", 0.2, 9), ("c", 0.4, 12))]
    figure = records.draw(found_with_curves(records, found), records.Options(runs=()))
    (step,) = [line for line in figure.axes[1].lines if len(line.get_xydata()) > 1]
    assert step.get_xydata().tolist() == [[5, 0.3], [12, 0.4]]


def found_with_curves(records, found):
    return [records.Entry(e.name, ((0.5, 0.1), (1.0, e.ap)), e.minutes, e.ap, e.latency_ms) for e in found]


def test_both_files_are_written_and_can_be_read(records, runs, tmp_path, capsys):
    out = tmp_path / "pictures" / "bccd.v1"
    words = [str(run) for run in runs]
    assert records.main([*words, "--out", str(out), "--title", "Blood", "--point", "a rival", "17.8", "0.45"]) == 0
    assert capsys.readouterr().out.splitlines() == [f"{out}.png", f"{out}.svg"]
    with Image.open(f"{out}.png") as image:
        assert image.width > 800
    assert ElementTree.parse(f"{out}.svg").getroot().tag.endswith("svg")


def test_what_is_missing_is_told_in_one_line(records, runs, tmp_path, run_folder, capsys):
    young = run_folder(tmp_path / "young" / "train", ((60.0, ""),))  # type: ignore[arg-type]
    (tmp_path / "bad.json").write_text("[1, 2]")
    cases = {
        "not the folder of a training": [str(tmp_path / "pictures")],
        "never evaluated": [str(young)],
        "nothing to draw": [],
        "1 names for 2 runs": [*map(str, runs), "--names", "a"],
        "3 values of AP for 2 runs": [*map(str, runs), "--ap", "0", "0.1", "0.2"],
        "bad.json": [*map(str, runs), "--latency", str(tmp_path / "bad.json")],
    }
    for words, arguments in cases.items():
        assert records.main([*arguments, "--out", str(tmp_path / "none")]) == records.EXIT_ERROR
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
    assert not list(tmp_path.glob("none*"))
