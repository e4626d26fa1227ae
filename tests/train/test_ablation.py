"""`scaledyolo ablate`: a grid is checked as a whole, trained cell by cell, survives a kill, and agrees with `eval`."""

from __future__ import annotations

import csv
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from scaledyolo.cli import main
from scaledyolo.errors import FormatError, ScaledYoloError, UsageError
from scaledyolo.train.ablation.grid import Grid, read_grid
from scaledyolo.train.ablation.run import Result, known_result
from scaledyolo.train.ablation.table import cells_csv, markdown, rows_of
from scaledyolo.train.recipe import RECIPES
from scaledyolo.train.training import Training

GRIDS = Path(__file__).parents[2] / "benchmarks" / "grids"
SIZE = 64


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def grid_of(world: Any, **changes: Any) -> dict[str, Any]:
    """Two networks, two recipes, one seed, two epochs each."""
    recipe = world.write_recipe(world.short_recipe(2))
    return {
        "name": "toy",
        "size": SIZE,
        "evaluate_every": 1,
        "specs": {"narrow": str(world.narrow), "narrower": {"base": str(world.narrow), "width": 0.5}},
        "recipes": {"flipped": str(recipe), "still": {"base": str(recipe), "set": ["augmentation.flip_horizontal=0"]}},
        **changes,
    }


def write_grid(world: Any, **changes: Any) -> Path:
    path: Path = world.folder / "toy.yaml"
    path.write_text(yaml.safe_dump(grid_of(world, **changes)))
    return path


def arguments(world: Any, grid: Path, data: Path, out: str) -> list[str]:
    splits = ["--test-split", "val", "--precision", "32", "--save-every", "0", "--engine", "onnxruntime"]
    return ["ablate", str(grid), "--data", str(data), "--out", str(world.folder / out), *splits]


def ablate(world: Any, grid: Path, data: Path, out: str, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    capsys.readouterr()
    assert main([*arguments(world, grid, data, out), "--json"]) == 0
    return json.loads(capsys.readouterr().out)


def figures(document: dict[str, Any]) -> list[tuple[Any, ...]]:
    return [(cell["spec"], cell["recipe"], cell["seed"], cell["ap"], cell["ap50"]) for cell in document["cells"]]


def test_a_grid_that_is_killed_goes_on_and_equals_single_runs(world: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Killed in the middle of the second cell: the first is not repeated, the second goes on, figures are the same."""
    data, grid = world.write_shapes(world.folder / "set", 12, val_count=5), write_grid(world)
    out = world.folder / "killed"
    command = [sys.executable, "-m", "scaledyolo", *arguments(world, grid, data, "killed")]
    process = subprocess.Popen(command, env=world.environment(), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    second = out / "narrow--still--seed0" / "state.safetensors"
    until = time.monotonic() + 200
    while not second.exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.002)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    first = out / "narrow--flipped--seed0" / "result.json"
    assert second.exists()
    assert not (second.parent / "result.json").exists(), "the kill came too late to show anything"
    written = first.stat().st_mtime_ns

    resumed = ablate(world, grid, data, "killed", capsys)
    assert first.stat().st_mtime_ns == written
    whole = ablate(world, grid, data, "whole", capsys)
    assert figures(resumed) == figures(whole)
    assert len(whole["cells"]) == 4

    # The same by hand: train, then eval.
    spec = world.folder / "narrower.yaml"
    run = json.loads((world.folder / "whole" / "narrower--still--seed0" / "run.json").read_text())
    spec.write_text(yaml.safe_dump(run["spec"]))
    recipe = str(world.folder / "short.yaml")
    options = ["--model", str(spec), "--recipe", recipe, "--set", "augmentation.flip_horizontal=0", "--size", str(SIZE)]
    assert main(["train", "--data", str(data), *options, "--precision", "32", "--out", str(world.folder / "hand")]) == 0
    capsys.readouterr()
    best = world.folder / "hand" / "train" / "best.safetensors"
    assert main(["eval", str(best), "--data", str(data), "--engine", "onnxruntime", "--json"]) == 0
    measured = json.loads(capsys.readouterr().out)
    cell = whole["cells"][-1]
    assert (cell["spec"], cell["recipe"]) == ("narrower", "still")
    assert (cell["ap"], cell["ap50"]) == (measured["AP"], measured["AP50"])
    assert cell["class_ap"] == list(measured["class_ap"].values())

    tables = {name: (world.folder / "whole" / name).read_text() for name in ("table.md", "table.json", "cells.csv")}
    rows = list(csv.DictReader(tables["cells.csv"].splitlines()))
    assert [float(row["ap"]) for row in rows] == [cell["ap"] for cell in whole["cells"]]
    assert json.loads(tables["table.json"])["rows"] == whole["rows"]
    assert tables["table.md"].count("\n| narrow") == 4

    # Other settings in the same folder are refused, and nothing is touched.
    other = write_grid(world, set=["optimiser.learning_rate=0.001"])
    assert main(arguments(world, other, data, "whole")) == 2
    assert "holds this cell with another network, recipe, seed, images or settings" in capsys.readouterr().err


def test_a_cell_that_diverges_is_written_down_and_the_others_run(
    world: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    original = Training.to_device

    def poisoned(self: Training, batch: Any) -> tuple[torch.Tensor, torch.Tensor]:
        images, targets = original(self, batch)
        return images * (float("nan") if "flipped" in self.folder.name else 1.0), targets

    monkeypatch.setattr(Training, "to_device", poisoned)
    grid = write_grid(world, specs={"narrow": str(world.narrow)})
    document = ablate(world, grid, world.shapes, "runs", capsys)
    assert "the loss is nan; it began in the images" in document["cells"][0]["failure"]
    assert document["cells"][0]["ap"] is None
    assert document["cells"][1]["ap"] is not None
    assert document["rows"][0]["failed_seeds"] == [0]
    assert ablate(world, grid, world.shapes, "runs", capsys) == document


@pytest.fixture
def refused(world: Any) -> Callable[..., str]:
    """The sentence with which a grid is refused."""

    def complaint(**changes: Any) -> str:
        with pytest.raises(ScaledYoloError) as error:
            read_grid(write_grid(world, **changes)).cells(3)
        return str(error.value)

    return complaint


def test_bad_grids_are_refused_with_a_sentence(world: Any, refused: Callable[..., str]) -> None:
    narrow, recipe = str(world.narrow), str(world.write_recipe(world.short_recipe(2)))
    for changes, sentence in (
        ({"sizes": 64}, "unknown key 'sizes'. Did you mean 'size'?"),
        ({"specs": {}}, "toy.yaml: specs must be a mapping of names"),
        ({"specs": {"a": {"base": narrow, "widht": 0.5}}}, "specs.a: unknown key 'widht'. Did you mean 'width'?"),
        ({"specs": {"a": {"width": 0.5}}}, "specs.a: the key base is missing"),
        ({"specs": {"a": "yolov4-tinny"}}, "spec a: there is no network named 'yolov4-tinny'"),
        ({"specs": {"a": {"base": narrow, "width": -1}}}, "spec a: factors must be positive"),
        ({"specs": {"a/b": narrow}}, "'a/b' cannot be the name of a folder"),
        ({"specs": {"a": narrow, "b": {"base": narrow, "width": 1.0}}}, "specs a and b are the same"),
        ({"specs": {"a": {"base": narrow, "size": 100}}}, "cell a x flipped: "),
        ({"recipes": {"a": "smal"}}, "recipe a: unknown recipe 'smal'; Did you mean 'small'?"),
        ({"recipes": {"a": {"base": recipe, "set": ["schedule.epoch=3"]}}}, "unknown key 'epoch' in schedule"),
        ({"recipes": {"a": recipe, "b": recipe}}, "recipes a and b are the same"),
        ({"recipes": {"a": {"base": recipe, "set": ["subnets=[without-head-p9]"]}}}, "cell narrow x a: "),
        ({"set": ["epochs=3"]}, "unknown key 'epochs'"),
        ({"seeds": [1, 1]}, "seeds must be at least one and all different"),
        ({"seeds": "0"}, "seeds must be a list"),
    ):
        assert sentence in refused(**changes), changes


def test_files_that_are_no_grid(world: Any, capsys: pytest.CaptureFixture[str]) -> None:
    path = world.folder / "toy.yaml"
    for text, sentence in (("a: [", "not YAML"), ("- 1", "a grid is a mapping"), ("{}", "specs must be a mapping")):
        path.write_text(text)
        with pytest.raises(UsageError, match=sentence):
            read_grid(path)
    with pytest.raises(UsageError, match="No such file"):
        read_grid(world.folder / "none.yaml")
    grid = write_grid(world, recipes={"a": {"base": "small", "weights": "none.safetensors"}})
    assert main(arguments(world, grid, world.shapes, "runs")) == 2
    said = capsys.readouterr().err
    assert "cell narrow x a: " in said
    assert "none.safetensors" in said
    assert not (world.folder / "runs").exists()


def test_a_dry_run_lists_the_cells_and_trains_nothing(world: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*arguments(world, write_grid(world, seeds=[0, 1]), world.shapes, "runs"), "--dry-run"]) == 0
    said = capsys.readouterr().out
    assert said.count("--seed") == 8
    assert "8 trainings" in said
    assert not (world.folder / "runs").exists()


def test_damaged_results_are_named(tmp_path: Path) -> None:
    (tmp_path / "result.json").write_text("{")
    with pytest.raises(FormatError, match=r"result.json: damaged .* delete it"):
        known_result(tmp_path, "key")
    (tmp_path / "result.json").write_text("{}")
    with pytest.raises(FormatError, match="not written by this version"):
        known_result(tmp_path, "key")


@pytest.mark.parametrize("path", sorted(GRIDS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_grids_that_come_along_are_sound(path: Path) -> None:
    grid = read_grid(path)
    assert grid.head.minutes is not None
    assert grid.name == path.stem
    assert grid.cells(3)


def cells_by_spec(grid: Grid) -> dict[str, Any]:
    return {cell.spec_name: cell for cell in grid.cells(80)}


def params(spec: Any) -> int:
    from scaledyolo.arch.cost import cost
    from scaledyolo.arch.lower import lower

    return cost(lower(spec)).params


def test_the_grid_of_table_8_keeps_what_csp_saves() -> None:
    """Specification 9.6: the CSP forms have 31 to 33 % fewer parameters; the activation changes none."""
    cells = {name: params(cell.spec) for name, cell in cells_by_spec(read_grid(GRIDS / "table8.yaml")).items()}
    for neck in ("fpnspp", "panspp"):
        for activation in ("leaky", "mish"):
            saved = 1 - cells[f"cd53s-c{neck}-{activation}"] / cells[f"d53-{neck}-{activation}"]
            assert 0.30 < saved < 0.34
        assert cells[f"d53-{neck}-leaky"] == cells[f"d53-{neck}-mish"]


def test_the_grid_of_table_10_fine_tunes_as_published() -> None:
    grid = read_grid(GRIDS / "table10.yaml")
    stages = {cell.recipe_name: cell.recipes for cell in grid.cells(3) if cell.spec_name == "p5"}
    first, second = stages["fine-tuned"]
    assert (first,) == stages["scratch"]
    assert second.augmentation == RECIPES["large-finetune"].augmentation
    assert second.schedule.first_epoch == first.schedule.epochs
    assert second.schedule.epochs == 1.5 * first.schedule.epochs  # the paper: 300 and 150 more
    assert stages["scratch-longer"][0].schedule.epochs == second.schedule.epochs


def result(spec: str, seed: int, ap: float, samples: np.ndarray) -> Result:
    return Result(
        spec, "r", seed, key="", params=2_000_000, gflops=1.5, size=64, minutes=3.0, ap=ap, ap50=ap, epochs=2,
        ap_samples=tuple(samples), ap50_samples=tuple(samples),
    )  # fmt: skip


@settings(deadline=None)
@given(st.integers(0, 10_000), st.integers(1, 4))
def test_rows_are_means_with_intervals_and_spread(seed: int, seeds: int) -> None:
    """Against the definitions, computed here with NumPy's quantiles."""
    rng = np.random.default_rng(seed)
    samples = {name: rng.uniform(0.3, 0.6, (seeds, 200)) for name in ("a", "b")}
    values = {name: rng.uniform(0.3, 0.6, seeds) for name in ("a", "b")}
    results = [result(name, k, values[name][k], samples[name][k]) for name in ("a", "b") for k in range(seeds)]
    first, second = rows_of(results)
    assert first.ap is not None
    assert second.ap is not None
    assert first.ap.interval.value == pytest.approx(values["a"].mean())
    mean = samples["a"].mean(axis=0)
    assert first.ap.interval.low == pytest.approx(np.quantile(mean, 0.025) - mean.mean() + values["a"].mean())
    assert first.ap.spread == (pytest.approx(statistics.stdev(values["a"])) if seeds > 1 else None)
    assert first.ap.difference is None
    difference = second.ap.difference
    assert difference is not None
    apart = samples["b"].mean(axis=0) - samples["a"].mean(axis=0)
    gain = values["b"].mean() - values["a"].mean()
    assert difference.difference.value == pytest.approx(gain)
    assert difference.difference.high == pytest.approx(np.quantile(apart, 0.975) - apart.mean() + gain)


def test_the_table_says_what_failed_and_what_is_sure() -> None:
    steady = np.full(200, 0.5)
    good = [result("a", 0, 0.5, steady), result("b", 0, 0.6, steady + 0.1), result("b", 1, 0.62, steady + 0.12)]
    bad = Result("b", "r", 2, key="", failure="the loss is nan", minutes=1.0)
    text = markdown("toy", "Some words.", rows_of([*good, bad]))
    lines = [line for line in text.splitlines() if line.startswith("| ")]
    assert (
        lines[2] == "| a | r | 64 | 2.000 | 1.500 | 0.500 [0.500, 0.500] | one seed |  | 0.500 [0.500, 0.500] | 3.0 |"
    )
    assert "0.0141 (2), 1 of 3 failed | +0.1100*" in lines[3]
    assert "Some words." in text
    rows = list(csv.DictReader(cells_csv([*good, bad]).splitlines()))
    assert [row["ap"] for row in rows] == ["0.5", "0.6", "0.62", ""]
    assert rows[-1]["failure"] == "the loss is nan"
