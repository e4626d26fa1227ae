"""Run folders read back, and commands freed of paths."""

from __future__ import annotations

import pytest

from scaledyolo.errors import DataError, FormatError


@pytest.fixture
def records(script):
    return script("run_records")


def test_a_command_is_shown_without_what_is_only_true_here(records):
    shared, root = records.SHARED, records.ROOT
    words = ["/opt/bin/scaledyolo", "train", "--data", str(shared / "data/bccd"), "--out", "/tmp/x", "--set", "a.b=1"]
    assert records.repeatable(words) == "scaledyolo train --data ../shared/data/bccd --set a.b=1"
    assert (
        records.repeatable(["x", "--recipe", str(root / "recipes/a b.yaml")])
        == "scaledyolo --recipe 'recipes/a b.yaml'"
    )
    assert records.repeatable(["x", "--model", "/home/me/spec.yaml"]) == "scaledyolo --model spec.yaml"
    assert records.repeatable(["x", "--model", "mine/spec.yaml"]) == "scaledyolo --model mine/spec.yaml"


def test_epochs_that_were_not_evaluated_are_no_points_of_the_curve(records, run_folder, tmp_path):
    record = records.read_record(run_folder(tmp_path / "a" / "train", ((60.0, 0.1), (120.0, 0.2))))
    assert record.curve == [(1.0, 0.1), (2.0, 0.2)]
    assert (record.seconds, len(record.epochs), record.name, record.test_ap) == (120.0, 3, "a", None)


def test_what_is_no_run_is_refused_by_name(records, run_folder, tmp_path):
    with pytest.raises(FormatError, match=r"no run\.json"):
        records.read_record(tmp_path)
    folder = run_folder(tmp_path / "a")
    (folder / "epochs.csv").write_text("epoch,ap\n1,high\n")
    with pytest.raises(FormatError, match="damaged"):
        records.read_record(folder)
    with pytest.raises(DataError, match="nosuch"):
        records.data_folder("nosuch")


def test_the_figure_on_the_test_images_is_that_of_ablate(records, run_folder, tmp_path):
    for name, result, expected in (("a", {"ap": 0.4}, 0.4), ("b", {"ap": None}, None), ("c", None, None)):
        record = records.read_record(run_folder(tmp_path / name, result=result))
        assert record.test_ap == expected


def test_a_command_that_fails_is_named(records):
    with pytest.raises(records.CommandError, match="scaledyolo train --data none"):
        records.scaledyolo("train", "--data", "/nowhere/none")
