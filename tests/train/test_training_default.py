"""Training from the default model: its layers are taken over, its predictions only where the classes are as many."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import yaml

from scaledyolo import Checkpoint, lower, save_checkpoint
from scaledyolo.checkpoint import load_checkpoint
from scaledyolo.cli import main
from scaledyolo.default_model import VARIABLE
from scaledyolo.weights import random_weights


@pytest.fixture
def default(world: Any, monkeypatch: pytest.MonkeyPatch) -> Checkpoint:
    """A narrow network of 80 classes in the place of the default model, stored as that is."""
    spec = world.narrow_spec(80)
    graph = lower(spec)
    names = tuple(f"class {number}" for number in range(80))
    weights = random_weights(graph, np.random.default_rng(5))
    path = world.folder / "default.safetensors"
    save_checkpoint(path, Checkpoint(graph=graph, spec=spec, class_names=names, weights=weights), dtype="float16")
    monkeypatch.setenv(VARIABLE, str(path))
    return load_checkpoint(path)


def test_layers_come_from_the_default_model_and_predictions_of_other_classes_do_not(
    world: Any, default: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    # A learning rate of nearly nothing: what was taken over is still there after an epoch.
    still = world.short_recipe(1)
    still = replace(still, optimiser=replace(still.optimiser, learning_rate=1e-12, weight_decay=0.0))
    still = replace(still, schedule=replace(still.schedule, warmup_bias_rate=0.0))
    assert main(world.arguments(still, "--weights", "default", "--freeze-norm")) == 0
    said = capsys.readouterr().err
    assert "the default model" in said
    assert "took" in said
    trained = load_checkpoint(world.folder / "runs" / "train" / "last.safetensors")
    assert trained.class_names == ("square", "disc", "triangle")
    assert trained.spec == replace(default.spec, num_classes=3)  # type: ignore[type-var]
    fresh = {name for name, value in trained.weights.items() if value.shape != default.weights[name].shape}
    # The convolution before each of the two heads, weight and bias, and nothing else.
    assert len(fresh) == 4
    assert all(name.startswith("head") for name in fresh)
    for name, value in trained.weights.items():
        if name not in fresh:
            np.testing.assert_allclose(value, default.weights[name], atol=1e-5, err_msg=name)


def test_the_network_follows_the_default_model_unless_one_is_named(world: Any, default: Checkpoint) -> None:
    words = world.arguments(world.short_recipe(1), "--weights", "default", "--size", "64")
    place = words.index("--model")
    assert main([*words[:place], *words[place + 2 :]]) == 0
    trained = load_checkpoint(world.folder / "runs" / "train" / "last.safetensors")
    assert trained.spec is not None
    assert (trained.spec.name, trained.spec.size) == (world.narrow_spec().name, 64)


@pytest.mark.parametrize(
    ("pretrained", "options", "taken"),
    [
        (True, (), True),
        (True, ("--weights", "scratch"), False),
        (False, (), False),
        (False, ("--weights", "default"), True),
        (True, ("--model", "table9-tinycd53s"), False),  # another network: nothing fits but by chance
    ],
)
def test_a_recipe_says_where_a_training_begins(
    pretrained: bool,
    options: tuple[str, ...],
    taken: bool,
    world: Any,
    default: Checkpoint,
    capsys: pytest.CaptureFixture[str],
) -> None:
    recipe = replace(world.short_recipe(1), pretrained=pretrained)
    assert main(world.arguments(recipe, "--size", "64", *options)) == 0
    run = json.loads((world.folder / "runs" / "train" / "run.json").read_text())
    assert (run["transfer"] is not None) == taken
    assert ("begins with the model that comes with the package" in capsys.readouterr().err) == (taken and not options)
    if taken:
        assert run["transfer"]["values_taken"] > 0.9 * run["transfer"]["values"]


def test_a_default_model_that_was_named_and_is_missing_is_no_reason_to_train_from_scratch(
    world: Any, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(VARIABLE, str(world.folder / "gone.safetensors"))
    assert main(world.arguments(replace(world.short_recipe(1), pretrained=True))) == 2
    assert "gone.safetensors: no such file" in capsys.readouterr().err


def test_a_grid_may_start_from_the_default_model_and_knows_it_again(
    world: Any, default: Checkpoint, capsys: pytest.CaptureFixture[str]
) -> None:
    recipe = world.write_recipe(world.short_recipe(1))
    document = {
        "name": "starts",
        "size": 64,
        "specs": {"narrow": str(world.narrow)},
        # The second begins as the first does, since its recipe says so; the third from scratch, though it does.
        "recipes": {
            "default": {"base": str(recipe), "weights": "default"},
            "pretrained": {"base": str(recipe), "set": ["pretrained=true"]},
            "scratch": {"base": str(recipe), "set": ["pretrained=true"], "weights": "scratch"},
        },
    }
    grid = world.folder / "starts.yaml"
    grid.write_text(yaml.safe_dump(document))
    words = ["ablate", str(grid), "--data", str(world.shapes), "--test-split", "val", "--precision", "32"]
    words += ["--engine", "onnxruntime", "--out", str(world.folder / "cells")]
    assert main(words) == 0
    transfers = [
        json.loads((world.folder / "cells" / f"narrow--{name}--seed0" / "run.json").read_text())["transfer"]
        for name in ("default", "pretrained", "scratch")
    ]
    assert transfers[0] == transfers[1]
    assert transfers[2] is None
    taken = transfers[0]
    assert all("head" in name for name in taken["fresh"])
    assert taken["values_taken"] > 0.9 * taken["values"]
    capsys.readouterr()
    assert main(words) == 0
    assert "done before" in capsys.readouterr().err
    # Another default model is another start: its results are not mixed with those of this one.
    weights = {name: 2 * value for name, value in default.weights.items()}
    save_checkpoint(world.folder / "default.safetensors", replace(default, weights=weights))
    assert main(words) == 2
    assert "another network, recipe, seed, images or settings" in capsys.readouterr().err
