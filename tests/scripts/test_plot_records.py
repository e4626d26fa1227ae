"""The plot of records: what is drawn where, and what is told where something is missing."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import numpy as np
import pytest
from PIL import Image


@pytest.fixture
def records(script):
    return script("plot_records")


@pytest.fixture
def runs(tmp_path, run_folder) -> list[Path]:
    """Two runs of different networks, one measured on the test split, and one seed of an experiment."""
    run_folder(tmp_path / "tiny" / "train", ((300.0, 0.2), (600.0, 0.4)), {"ap": 0.38, "ap50": 0.7})
    run_folder(tmp_path / "csp" / "train", ((900.0, 0.3), (1800.0, 0.5)))
    run_folder(tmp_path / "ema-slow" / "seed0" / "train", ((300.0, 0.1),))
    return [tmp_path / "tiny", tmp_path / "csp" / "train", tmp_path / "ema-slow" / "seed0"]


def options(records, runs: list[Path], **changes: object):
    return records.Options(runs=tuple(runs), **changes)


def test_runs_are_read_with_minutes_and_the_test_figure_where_there_is_one(records, runs):
    tiny, csp, seed = records.entries(options(records, runs))
    assert (tiny.name, csp.name, seed.name) == ("tiny", "csp", "ema-slow")
    assert tiny.curve == [(5.0, 0.2), (10.0, 0.4)]
    assert (tiny.minutes, tiny.ap) == (10.0, 0.38)
    assert (csp.minutes, csp.ap) == (30.0, 0.5)


def test_points_lie_where_the_figures_are(records, runs, tmp_path):
    (tmp_path / "ms.json").write_text(json.dumps({"tiny": 4.0, "csp": 20.0}))
    chosen = options(records, runs, latency=tmp_path / "ms.json", point=(("rival", 17.8, 0.45),))
    figure = records.draw(records.entries(chosen), chosen)
    training, latency = figure.axes
    dots = {
        line.get_label().split(":")[0]: line.get_xydata()[0] for line in training.lines if line.get_label()[0] != "_"
    }
    np.testing.assert_allclose([dots[name] for name in ("tiny", "csp", "rival")], [(10, 0.38), (30, 0.5), (17.8, 0.45)])
    assert {tuple(line.get_xydata()[0]) for line in latency.lines if len(line.get_xydata()) == 1} == {
        (4, 0.38),
        (20, 0.5),
    }
    assert {text.get_text() for text in latency.texts} == {"tiny", "csp"}


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
        "2 names for 3 runs": [*map(str, runs), "--names", "a", "b"],
        "bad.json": [*map(str, runs), "--latency", str(tmp_path / "bad.json")],
    }
    for words, arguments in cases.items():
        assert records.main([*arguments, "--out", str(tmp_path / "none")]) == records.EXIT_ERROR
        (line,) = capsys.readouterr().err.splitlines()
        assert words in line
    assert not list(tmp_path.glob("none*"))
