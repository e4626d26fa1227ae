"""The regression guard: what its band is, and what it says of a run in it, out of it, or of another kind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

VALUES = (0.50, 0.51, 0.49, 0.505, 0.495)


@pytest.fixture
def guard(script):
    return script("results_small")


@pytest.fixture
def trained(guard, monkeypatch, run_folder, tmp_path):
    """Trainings that end at once, with the figures of the list, in its order."""
    figures: list[float] = []

    def train(folder: Path, words: tuple[str, ...], data: Path) -> object:
        ap = figures.pop(0)
        run = run_folder(folder / "train", result={"ap": ap, "ap50": ap + 0.3})
        return guard_records.read_record(run)

    guard_records = __import__("run_records")
    monkeypatch.setattr(guard, "train_and_measure", train)
    monkeypatch.setattr(guard, "fingerprints", lambda data: {"train": data.name})
    for name in ("shapes", "others"):
        (tmp_path / name).mkdir()
    return figures


def arguments(folder: Path, *more: str, data: str = "shapes") -> list[str]:
    band = ("--band", str(folder / "band.json"), "--out", str(folder / "runs"))
    return ["--data", str(folder / data), *band, *more]


def test_the_margin_is_that_of_a_table_of_students_t(guard):
    # t at 0.995 with 4 degrees of freedom is 4.604 in every table; the deviation of the values is sqrt(0.00025 / 4).
    band = guard.Band(VALUES)
    assert band.margin == pytest.approx(4.604 * (0.00025 / 4) ** 0.5 * 1.2**0.5, rel=1e-4)
    assert (band.low + band.high) / 2 == pytest.approx(0.5)


def test_one_further_seed_lies_in_the_band_as_often_as_promised(guard):
    draws = np.random.default_rng(0).normal(0.5, 0.01, (4000, 6))
    inside = 0
    for *known, further in draws.tolist():
        band = guard.Band(tuple(known))
        inside += band.low <= further <= band.high
    assert inside / len(draws) == pytest.approx(guard.PROBABILITY, abs=0.005)


def test_a_band_is_measured_and_a_run_in_it_passes(guard, trained, tmp_path, capsys):
    trained.extend((*VALUES, 0.497))
    assert guard.main(arguments(tmp_path, "--measure-band")) == 0
    stored = json.loads((tmp_path / "band.json").read_text())
    assert [entry["ap"] for entry in stored["seeds"].values()] == list(VALUES)
    assert str(tmp_path) not in json.dumps(stored)
    capsys.readouterr()
    assert guard.main(arguments(tmp_path)) == 0
    assert "in the band: AP 0.497 [0.460, 0.540], AP50 0.797 [0.760, 0.840]" in capsys.readouterr().out


@pytest.mark.parametrize(("ap", "side"), [(0.40, "below"), (0.60, "above")])
def test_a_run_out_of_the_band_fails_in_one_sentence(guard, trained, tmp_path, capsys, ap, side):
    trained.extend((*VALUES, ap))
    guard.main(arguments(tmp_path, "--measure-band"))
    capsys.readouterr()
    assert guard.main(arguments(tmp_path)) == guard.EXIT_OUT_OF_BAND
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"out of the band ({side}): AP {ap:.3f} [0.460, 0.540]")


def test_what_cannot_be_compared_is_told_apart_from_a_regression(guard, trained, tmp_path, capsys):
    assert guard.main(arguments(tmp_path)) == guard.EXIT_ERROR
    assert "no band was measured yet" in capsys.readouterr().err
    trained.extend((*VALUES, 0.5))
    guard.main(arguments(tmp_path, "--measure-band"))
    capsys.readouterr()
    assert guard.main(arguments(tmp_path, "--train=--epochs 1")) == guard.EXIT_ERROR
    assert "another training" in capsys.readouterr().err
    assert guard.main(arguments(tmp_path, data="nowhere")) == guard.EXIT_ERROR
    assert "nowhere" in capsys.readouterr().err
    (tmp_path / "band.json").write_text("{}")
    assert guard.main(arguments(tmp_path)) == guard.EXIT_ERROR
    assert "damaged" in capsys.readouterr().err


def test_other_images_are_noticed(guard, trained, tmp_path, capsys):
    trained.extend((*VALUES, 0.5))
    guard.main(arguments(tmp_path, "--measure-band"))
    capsys.readouterr()
    assert guard.main(arguments(tmp_path, data="others")) == guard.EXIT_ERROR
    assert len(trained) == 1, "minutes were spent before it was noticed"
    assert "not the images and boxes" in capsys.readouterr().err


def test_the_stored_band_is_of_the_training_that_is_repeated(guard):
    if not guard.BAND_FILE.is_file():
        pytest.skip("no band was measured yet")
    document = guard.read_band(guard.BAND_FILE)
    assert document["training"] == guard.TRAINING
    assert len(document["seeds"]) >= 5
