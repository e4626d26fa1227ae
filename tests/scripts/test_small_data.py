"""The experiments on small data: every command is one that `train` understands, and the table says what was found."""

from __future__ import annotations

from pathlib import Path

import pytest

from scaledyolo.cli.parsing import parse
from scaledyolo.cli.train import Train
from scaledyolo.strict import to_mapping


@pytest.fixture
def small(script):
    return script("small_data")


def recipe_of(small, name: str) -> dict[str, object]:
    """The recipe that the command of an experiment leads to, flat."""
    words = small.train_words(small.Options(), small.NAMES[name], 0, None)
    train = parse(Train, "train", "", ["--data", "x", *words])
    recipe, _ = train._recipe()
    flat: dict[str, object] = {"size": train.size, "weights": train.weights, "evaluate_every": train.evaluate_every}
    for key, value in to_mapping(recipe).items():
        parts = value.items() if isinstance(value, dict) else (("", value),)
        flat |= {f"{key}.{name}".strip("."): inner for name, inner in parts if key != "size"}
    return flat


def test_names_are_unique_and_the_baseline_is_first(small):
    assert len(small.NAMES) == len(small.EXPERIMENTS)
    assert small.EXPERIMENTS[0].name == small.BASELINE
    assert not small.EXPERIMENTS[0].change


# One factor may need two values: more epochs with a quarter of them plain, a batch with its optimiser step.
AT_MOST = {"adamw": 3, "batch-small": 3, "default-short": 3}


def test_every_command_is_understood_and_changes_something_but_not_much(small):
    base = recipe_of(small, small.BASELINE)
    for name, item in small.NAMES.items():
        changed = recipe_of(small, name)
        differing = [key for key in base if base[key] != changed[key]]
        assert len(differing) <= AT_MOST.get(name, 2), (name, differing)
        assert differing or item.fits_anchors or name == small.BASELINE, name


def test_an_option_wins_over_the_baselines_and_sets_add_up(small):
    options = small.Options(base="--epochs 40 --set ema.decay=0.9 --size 320")
    item = small.Experiment("x", "", "", "--epochs 20 --set schedule.plain_epochs=5")
    assert small.train_words(options, item, 3, Path("a.yaml")) == [
        "--epochs", "20", "--set", "ema.decay=0.9", "schedule.plain_epochs=5", "--size", "320", "--model", "a.yaml",
        "--seed", "3",
    ]  # fmt: skip


def test_the_plan_names_every_run_and_runs_nothing(small, capsys, monkeypatch):
    monkeypatch.setattr(small, "train_and_measure", None)
    assert small.main(["--plan", "--data", "bccd", "aquarium", "--seeds", "0", "1"]) == 0
    told = capsys.readouterr().out
    assert told.startswith(f"{len(small.EXPERIMENTS) * 4} runs")
    for name in small.NAMES:
        assert f"| {name} |" in told


def test_an_unknown_experiment_is_answered_with_the_nearest(small, capsys):
    assert small.main(["--only", "ema-slwo"]) == small.EXIT_ERROR
    assert "'ema-slow'" in capsys.readouterr().err


def test_runs_are_made_once_and_anchors_before_them(small, monkeypatch, tmp_path, run_folder, capsys):
    asked: list[list[str]] = []
    trained: list[tuple[str, list[str]]] = []

    def train(folder: Path, words: list[str], data: Path) -> object:
        trained.append((folder.relative_to(tmp_path).as_posix(), words))
        if not (folder / "train").is_dir():
            run_folder(folder / "train", result={"ap": 0.5, "ap50": 0.8})
        return small.read_record(folder / "train")

    monkeypatch.setattr(small, "train_and_measure", train)
    monkeypatch.setattr(small, "scaledyolo", lambda *words: asked.append(list(words)))
    (tmp_path / "shapes").mkdir()
    data = ("--data", str(tmp_path / "shapes"), "--out", str(tmp_path))
    assert small.main([*data, "--only", "anchors", "--seeds", "7"]) == 0
    assert [folder for folder, _ in trained] == ["shapes/base/seed7", "shapes/anchors/seed7"]
    (words,) = asked
    spec = str(tmp_path / "shapes/anchors/seed7/anchors.yaml")
    assert words == ["anchors", "--data", str(tmp_path / "shapes"), "--size", "320", "--out", spec]
    assert spec in trained[1][1]
    assert "anchors seed 7: AP 0.5000" in capsys.readouterr().out


def test_the_table_compares_the_same_seeds_and_marks_what_is_more_than_noise(small, tmp_path, run_folder, capsys):
    # The deviation of the baseline is 0.01: a mean of two differences has 0.01, so that 0.03 counts and 0.015 does not.
    found = {
        "base": {0: 0.50, 1: 0.50 + 0.01 * 2**0.5},
        "ema-fast": {0: 0.53, 1: 0.53 + 0.01 * 2**0.5},
        "ema-slow": {0: 0.515, 1: 0.515 + 0.01 * 2**0.5},
        "long": {5: 0.6},
    }
    for name, by_seed in found.items():
        for seed, ap in by_seed.items():
            run = tmp_path / "bccd" / name / f"seed{seed}" / "train"
            run_folder(run, ((300.0, 0.1), (600.0, 0.2)), {"ap": ap, "ap50": 0.9}, seed=seed)
    run_folder(tmp_path / "bccd" / "short" / "seed0" / "train")  # still running
    assert small.main(["--table", "--out", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    rows = {line.split(" | ")[0].strip("| "): line for line in told.splitlines() if line.startswith("| ")}
    assert "AP over its seeds: 0.0100" in told
    assert rows["ema-fast"].endswith("| 0, 1 | 0.5371 | 0.9000 | 10.0 | **+0.0300** |")
    assert rows["ema-slow"].endswith("| +0.0150 |")
    assert rows["long"].endswith("| no seed in common |")
    assert "short" not in rows
