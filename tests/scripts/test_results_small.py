"""The regression guard: what its band is, and what it says of a run in it, out of it, or of another kind."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import yaml

VALUES = (0.50, 0.51, 0.49, 0.505, 0.495)


@pytest.fixture
def guard(script):
    return script("results_small")


@pytest.fixture
def trained(guard, monkeypatch, run_folder):
    """An `ablate` that is done at once: each seed has the next AP of the list, None for one that diverged."""
    figures: list[float | None] = []

    def command(verb: str, grid: str, *words: str) -> str:
        assert verb == "ablate"
        folder, cells = Path(words[words.index("--out") + 1]), []
        for seed in yaml.safe_load(Path(grid).read_text())["seeds"]:
            ap = figures.pop(0)
            cells.append({"spec": "tiny", "recipe": "small", "seed": seed, "ap": ap, "minutes": 2.5, "failure": ""})
            cells[-1] |= {"ap50": ap + 0.3} if ap is not None else {"ap50": None, "failure": "the loss is no number"}
            if not (folder / f"tiny--small--seed{seed}").is_dir():
                run_folder(folder / f"tiny--small--seed{seed}")
        return json.dumps({"cells": cells})

    monkeypatch.setattr(guard, "scaledyolo", command)
    monkeypatch.setattr(guard, "fingerprints", lambda data: {"train": data.name})
    return figures


@pytest.fixture
def arguments(tmp_path):
    """The function that makes the arguments of the script."""
    for name in ("shapes", "others"):
        (tmp_path / name).mkdir()
    (tmp_path / "grid.yaml").write_text("{name: grid, size: 256, seeds: [0, 1, 2, 3, 4], specs: {tiny: yolov4-tiny}}")

    def make(*more: str, data: str = "shapes") -> list[str]:
        places = {"--data": data, "--grid": "grid.yaml", "--band": "band.json", "--out": "runs"}
        return [word for option, name in places.items() for word in (option, str(tmp_path / name))] + list(more)

    return make


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


def test_a_band_is_measured_and_a_run_in_it_passes(guard, trained, arguments, tmp_path, capsys):
    trained.extend((*VALUES, 0.497))
    assert guard.main(arguments("--measure-band")) == 0
    stored = json.loads((tmp_path / "band.json").read_text())
    assert {seed: entry["ap"] for seed, entry in stored["seeds"].items()} == dict(zip("01234", VALUES, strict=True))
    assert stored["commit"] == "0123456789abcdef"
    assert str(tmp_path) not in json.dumps(stored)
    capsys.readouterr()
    assert guard.main(arguments()) == 0
    assert "in the band: AP 0.497 [0.460, 0.540], AP50 0.797 [0.760, 0.840]" in capsys.readouterr().out
    assert trained == [], "more than one seed was compared"


@pytest.mark.parametrize(("ap", "side"), [(0.40, "below"), (0.60, "above")])
def test_a_run_out_of_the_band_fails_in_one_sentence(guard, trained, arguments, capsys, ap, side):
    trained.extend((*VALUES, ap))
    guard.main(arguments("--measure-band"))
    capsys.readouterr()
    assert guard.main(arguments()) == guard.EXIT_OUT_OF_BAND
    last = capsys.readouterr().out.splitlines()[-1]
    assert last.startswith(f"out of the band ({side}): AP {ap:.3f} [0.460, 0.540]")


def test_what_cannot_be_compared_is_told_apart_from_a_regression(guard, trained, arguments, tmp_path, capsys):
    def refused(*more: str, **places: str) -> str:
        assert guard.main(arguments(*more, **places)) == guard.EXIT_ERROR
        (line,) = capsys.readouterr().err.splitlines()
        return line

    assert "no band was measured yet" in refused()
    trained.extend((0.5, 0.5, None, 0.5, 0.5))
    assert "seed 2: the loss is no number" in refused("--measure-band")
    trained[:] = [*VALUES, 0.5]
    guard.main(arguments("--measure-band"))
    capsys.readouterr()
    assert "nowhere" in refused(data="nowhere")
    assert "not the images and boxes" in refused(data="others")
    grid = (tmp_path / "grid.yaml").read_text()
    (tmp_path / "grid.yaml").write_text(grid.replace("256", "128"))
    assert "another training" in refused()
    (tmp_path / "grid.yaml").write_text("[")
    assert "no readable grid" in refused()
    (tmp_path / "grid.yaml").write_text(grid.replace(", 1, 2, 3, 4", ", 1"))
    assert "at least 3 seeds" in refused("--measure-band")
    (tmp_path / "grid.yaml").write_text(grid)
    (tmp_path / "band.json").write_text("{}")
    assert "damaged" in refused()
    assert trained == [0.5], "minutes were spent before it was noticed"


def test_a_command_that_fails_ends_the_comparison(guard, arguments, capsys):
    assert guard.main(arguments("--measure-band")) == guard.EXIT_ERROR
    assert "scaledyolo ablate" in capsys.readouterr().err.splitlines()[-1]


def test_the_stored_band_is_of_the_training_that_is_repeated(guard):
    if not guard.BAND_FILE.is_file():
        pytest.skip("no band was measured yet")
    document, grid = guard.read_band(guard.BAND_FILE), guard.read_grid(guard.GRID_FILE)
    assert document["training"] == guard.deciding(grid)
    assert list(map(int, document["seeds"])) == grid["seeds"]
