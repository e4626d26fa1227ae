"""Run folders read back, commands freed of paths, and a training that is measured once."""

from __future__ import annotations

import json
from pathlib import Path

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
    assert (record.seconds, len(record.epochs), record.name, record.result) == (120.0, 3, "a", None)


def test_what_is_no_run_is_refused_by_name(records, run_folder, tmp_path):
    with pytest.raises(FormatError, match=r"no run\.json"):
        records.read_record(tmp_path)
    folder = run_folder(tmp_path / "a")
    (folder / "epochs.csv").write_text("epoch,ap\n1,high\n")
    with pytest.raises(FormatError, match="damaged"):
        records.read_record(folder)
    with pytest.raises(DataError, match="nosuch"):
        records.data_folder("nosuch")


def test_a_training_is_measured_once_and_taken_up_where_it_was_stopped(
    records, run_folder, tmp_path, colours, monkeypatch
):
    from dataclasses import replace

    from scaledyolo import save_checkpoint

    asked: list[str] = []

    def command(*words: str) -> str:
        asked.append(words[0])
        if words[0] == "eval":
            return json.dumps({"AP": 0.5, "AP50": 0.8, "class_ap": {"red": 0.5, "green": None}})
        if "--resume" in words:
            asked.append("--resume")
            return ""
        run = run_folder(Path(words[words.index("--out") + 1]) / "train")
        save_checkpoint(run / "best.safetensors", replace(colours.checkpoint, provenance={"epochs": "2"}))
        raise records.TrainingError("killed")

    monkeypatch.setattr(records, "scaledyolo", command)
    with pytest.raises(records.TrainingError):
        records.train_and_measure(tmp_path / "run", ("--seed", "1"), tmp_path)
    for _ in range(2):
        result = records.train_and_measure(tmp_path / "run", ("--seed", "1"), tmp_path).result
        assert (result.ap, result.ap50, result.best_epoch, result.seconds) == (0.5, 0.8, 2, 120.0)
        assert result.class_ap == {"red": 0.5, "green": None}
    assert asked == ["train", "train", "--resume", "eval"]


def test_a_command_that_fails_is_named(records):
    with pytest.raises(records.TrainingError, match="scaledyolo train --data none"):
        records.scaledyolo("train", "--data", "/nowhere/none")
