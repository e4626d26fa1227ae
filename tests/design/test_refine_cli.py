"""`scaledyolo scale --refine`: what it refuses at once, and short trainings on drawn images, stopped and gone on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml

from scaledyolo.cli import main
from scaledyolo.design import calibrate

pytest.importorskip("optuna")
pytest.importorskip("torch")

COLOURS = ((230, 60, 40), (40, 90, 230))
SIDE = 128


def write_squares(folder: Path, counts: dict[str, int], *, labels: bool = True) -> Path:
    """A YOLO data set of red and blue squares on noise, two on each image; returns its data.yaml."""
    rng = np.random.default_rng(0)
    for split, count in counts.items():
        for part in ("images", "labels"):
            (folder / part / split).mkdir(parents=True)
        for number in range(count):
            image = rng.integers(90, 150, (SIDE, SIDE, 3), dtype=np.uint8)
            lines = []
            for half in range(2):
                side, kind = int(rng.integers(28, 44)), int(rng.integers(2))
                x, y = int(rng.integers(SIDE - side)), 64 * half + int(rng.integers(64 - side))
                image[y : y + side, x : x + side] = COLOURS[kind]
                lines.append(f"{kind} {(x + side / 2) / SIDE} {(y + side / 2) / SIDE} {side / SIDE} {side / SIDE}")
            assert cv2.imwrite(str(folder / "images" / split / f"{number}.png"), image[:, :, ::-1])
            (folder / "labels" / split / f"{number}.txt").write_text("\n".join(lines) if labels else "")
    parts = {split: f"images/{split}" for split in counts}
    (folder / "data.yaml").write_text(yaml.safe_dump({"path": str(folder), **parts, "names": ["red", "blue"]}))
    return folder / "data.yaml"


def words(data: Path | str, *more: str) -> tuple[str, ...]:
    return ("scale", "--params", "1M", "--base", "small.yaml", "--size-range", "128", "128", "--activation", "leaky",
            "--threads", "1", "--data", str(data), *more)  # fmt: skip


@pytest.mark.parametrize(
    ("counts", "labels", "more", "sentence"),
    [
        ({"train": 20, "val": 4}, False, (), "has no boxes to learn from; label some, or leave --refine out"),
        ({"train": 6, "val": 4}, True, (), "its 6 images are fewer than one batch of 16 of the recipe 'small'"),
        ({"train": 20, "val": 4}, True, ("--recipe", "smal"), "Did you mean 'small'?"),
        ({"train": 20, "val": 4}, True, ("--recipe", "large-finetune"), "continues another training"),
        ({"train": 20}, True, ("--val-split", "1.5"), "a share of the images lies between 0 and 1"),
        ({"train": 20, "val": 4}, True, ("--refine", "0"), "--refine takes minutes above zero, got 0"),
    ],
)
def test_what_cannot_be_compared_is_said_before_anything_is_measured(
    counts, labels, more, sentence, hurried, capsys, monkeypatch
):
    monkeypatch.setattr(calibrate, "calibration", lambda: pytest.fail("was measured"))
    data = write_squares(hurried / "data", counts, labels=labels)
    assert main(words(data, "--refine", "1", *more)) == 2
    told = capsys.readouterr()
    assert sentence in told.err
    assert len(told.err.strip().splitlines()) == 1
    assert told.out == ""
    assert not (hurried / "runs").exists()


def test_there_must_be_data_to_train_on(capsys):
    assert main(("scale", "--gflops", "2", "--refine", "5")) == 2
    assert "--refine trains on your images; name them with --data" in capsys.readouterr().err


def test_a_missing_package_names_the_extra(hurried, capsys, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "optuna", None)
    assert main(words("nowhere", "--refine", "5")) == 2
    assert "--refine needs optuna; install it with: pip install 'scaledyolo[refine]'" in capsys.readouterr().err


@pytest.mark.slow
def test_short_trainings_choose_and_go_on_where_they_were_interrupted(hurried, capsys, monkeypatch):
    import torch

    from scaledyolo.design import short_training
    from scaledyolo.design.halving import Cost
    from scaledyolo.model import load_model
    from scaledyolo.train.recipe import recipe_named

    torch.set_num_threads(1)
    data = write_squares(hurried / "data", {"train": 24, "val": 12})
    recipe = replace(recipe_named("small"), name="hasty", batch=8).replace(
        "optimiser.nominal_batch=8", "schedule.epochs=8", "schedule.plain_epochs=4", "schedule.warmup_min_steps=5",
        "schedule.warmup_epochs=1", "ema.ramp_updates=10",
    )  # fmt: skip
    (hurried / "hasty.yaml").write_text(recipe.to_yaml())
    # The pace is measured in its own test; here it would decide how long this one takes.
    monkeypatch.setattr(short_training.ShortTrainer, "cost", lambda self, entrant: Cost(1.0, 1.0))
    command = words(
        data, "--refine", "3", "--recipe", "hasty.yaml", "--json", "--plot", "front.png", "--out", "mine.yaml"
    )

    judged = short_training.ShortTrainer._predictions
    calls: list[str] = []

    def interrupted_at_the_second(self, training):
        calls.append(training.run.spec.name)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return judged(self, training)

    monkeypatch.setattr(short_training.ShortTrainer, "_predictions", interrupted_at_the_second)
    assert main(command) == 1, "an answer, but not by AP"
    told = capsys.readouterr()
    first = json.loads(told.out)
    assert first["refinement"]["state"] == "interrupted"
    assert first["refinement"]["chosen_by"] == "capacity"
    assert first["chosen"]["spec"]["name"] == first["refinement"]["by_capacity"]
    assert "interrupted; the choice by capacity stays" in told.err

    assert main(command) == 0
    told = capsys.readouterr()
    found = json.loads(told.out)["refinement"]
    assert len(calls) == sum(len(one["rungs"]) for one in found["networks"]) + 1, "only what was stopped is repeated"
    assert found["state"] == "complete"
    assert found["epochs"][-1] == 8
    best = found["networks"][0]
    assert found["chosen_by"] == "ap"
    assert best["ap"] == max(one["ap"] for one in found["networks"] if one["epochs"] == 8) > 0
    assert json.loads(told.out)["chosen"]["spec"]["name"] == best["name"]
    assert Path("front.png").stat().st_size > 20_000
    weights = Path(found["folder"]) / best["name"] / "last.safetensors"
    assert load_model(weights).class_names == ("red", "blue")
    capsys.readouterr()
    words_of_eval = ("eval", str(weights), "--data", str(data), "--protocol", "training", "--json", "--out", "evals")
    assert main(words_of_eval) == 0
    evaluated = json.loads(capsys.readouterr().out)["AP"]
    assert evaluated == pytest.approx(best["ap"], abs=0.005), "another engine, and the file in place of the training"

    monkeypatch.setattr(short_training, "prepare", lambda *arguments, **options: pytest.fail("was trained again"))
    assert main(command) == 0
    assert json.loads(capsys.readouterr().out)["refinement"]["networks"] == found["networks"]
