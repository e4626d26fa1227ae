"""Anchors are fitted to the data before a training where those of the network could learn too few of its boxes."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from scaledyolo import Checkpoint, lower
from scaledyolo.arch.spec import ModelSpec
from scaledyolo.checkpoint import load_checkpoint
from scaledyolo.cli import main
from scaledyolo.data.formats import open_dataset
from scaledyolo.train.fitted_anchors import learnable_share, with_fitted_anchors
from scaledyolo.train.recipe import Assignment, Recipe
from scaledyolo.weights import random_weights

# The shapes are 24 to 37 pixels: more than four times as large as the first three anchors, and as the other three.
TOO_SMALL = ((2.0, 2.0), (3.0, 3.0), (4.0, 4.0), (4.0, 5.0), (5.0, 4.0), (5.0, 5.0))


@pytest.fixture
def far_off(world: Any) -> ModelSpec:
    """A network whose anchors can learn nothing of the shapes."""
    spec: ModelSpec = world.narrow_spec()
    return replace(spec, anchors=TOO_SMALL, masks=((0, 1, 2), (3, 4, 5)))


def fitting_recipe(world: Any, epochs: int = 1) -> Recipe:
    recipe: Recipe = world.short_recipe(epochs, fit_anchors=True)
    return recipe


def trained_spec(folder: Path) -> ModelSpec:
    spec = load_checkpoint(folder / "last.safetensors").spec
    assert spec is not None
    return spec


def test_training_fits_anchors_and_says_so_and_a_resume_keeps_them(
    world: Any, far_off: ModelSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    model = world.folder / "far.yaml"
    model.write_text(yaml.safe_dump(far_off.to_dict()))
    assert main(world.arguments(fitting_recipe(world), "--model", model)) == 0
    assert "100.0 % of them can be learnt instead of 0.0 %" in capsys.readouterr().err
    folder = world.folder / "runs" / "train"
    spec = trained_spec(folder)
    boxes = open_dataset(world.shapes, "train").annotations.boxes_xyxy
    sides = (boxes[:, 2:] - boxes[:, :2])[:, None, :]
    ratios = np.maximum(sides / np.array(spec.anchors), np.array(spec.anchors) / sides).max(axis=2)
    assert (ratios.min(axis=1) < 4).all()
    areas = [width * height for width, height in spec.anchors]
    assert areas == sorted(areas)
    assert spec == replace(far_off, anchors=spec.anchors), "nothing else is changed"
    manifest = json.loads((folder / "run.json").read_text())
    assert ModelSpec.from_dict(manifest["spec"]) == spec
    assert main(["train", "--resume", str(folder)]) == 0
    assert trained_spec(folder) == spec


def test_without_the_recipes_wish_anchors_stay_and_better_ones_are_proposed(
    world: Any, far_off: ModelSpec, capsys: pytest.CaptureFixture[str]
) -> None:
    model = world.folder / "far.yaml"
    model.write_text(yaml.safe_dump(far_off.to_dict()))
    assert main(world.arguments(fitting_recipe(world), "--model", model, "--set", "fit_anchors=false")) == 0
    assert "can learn only 0.0 % of the boxes at 128 pixels" in capsys.readouterr().err
    assert trained_spec(world.folder / "runs" / "train").anchors == TOO_SMALL


@pytest.mark.parametrize(("classes", "kept"), [(3, True), (80, False)])
def test_predictions_that_are_taken_over_keep_their_anchors(
    classes: int, kept: bool, world: Any, far_off: ModelSpec
) -> None:
    graph = lower(far_off.with_classes(classes))
    start = Checkpoint(
        graph=graph,
        class_names=tuple(map(str, range(classes))),
        weights=random_weights(graph, np.random.default_rng(0)),
    )
    data = open_dataset(world.shapes, "train")
    spec, said = with_fitted_anchors(far_off, fitting_recipe(world), data, start)
    assert (spec == far_off) == kept == (said is None)


def test_anchors_that_serve_are_left_alone(world: Any, far_off: ModelSpec) -> None:
    data, recipe = open_dataset(world.shapes, "train"), fitting_recipe(world)
    good: ModelSpec = world.narrow_spec()
    assert learnable_share(good, recipe, data) == 1
    assert with_fitted_anchors(good, recipe, data, None) == (good, None)
    # Every object has its best anchor under this rule, however bad.
    best = replace(recipe, assignment=Assignment(rule="yolov3"))
    assert with_fitted_anchors(far_off, best, data, None) == (far_off, None)


def test_too_few_boxes_to_fit_leave_the_anchors(world: Any, far_off: ModelSpec) -> None:
    """A training on one image with one object is for debugging; it must not fail for want of anchors."""
    data = open_dataset(world.write_shapes(world.folder / "one", 1, seed=3), "train")
    assert len(np.unique(data.annotations.boxes_xyxy, axis=0)) < len(far_off.anchors)
    assert with_fitted_anchors(far_off, fitting_recipe(world), data, None) == (far_off, None)
