"""Recipes: the published tables, the round trip through YAML, and one clear sentence for every mistake."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import FrozenInstanceError, replace
from pathlib import Path

import pytest

from scaledyolo.errors import UsageError
from scaledyolo.train.recipe import RECIPES, Recipe, recipe_named


@pytest.mark.parametrize("name", RECIPES)
def test_yaml_round_trip(name: str) -> None:
    recipe = RECIPES[name]
    assert recipe.name == name
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


# spec/training.md 3.8: (final factor, warm-up momentum, box, class, objectness) by column.
TABLE = {
    "large": (0.2, 0.9, 0.05, 0.5, 1.0),
    "large-finetune": (0.2, 0.9, 0.05, 0.5, 1.0),
    "csp-2020": (0.2, 0.9, 0.05, 0.5, 1.0),
    "csp-2021": (0.2, 0.8, 0.05, 0.3, 0.7),
    "csp": (0.2, 0.8, 0.05, 0.3, 0.7),
    "tiny": (0.01, 0.8, 0.05, 0.5, 1.0),  # v7 tiny
    "custom": (0.1, 0.8, 0.05, 0.3, 0.7),  # v7 custom
}


@pytest.mark.parametrize("name", TABLE)
def test_published_hyper_parameters(name: str) -> None:
    recipe = RECIPES[name]
    schedule, loss, optimiser = recipe.schedule, recipe.loss, recipe.optimiser
    found = (schedule.final_factor, schedule.warmup_momentum, loss.box_gain, loss.class_gain, loss.objectness_gain)
    assert found == TABLE[name]
    assert (optimiser.learning_rate, optimiser.momentum, optimiser.weight_decay) == (0.01, 0.937, 5e-4)
    assert (schedule.warmup_epochs, schedule.warmup_bias_rate) == (3.0, 0.1)
    assert (loss.class_positive_weight, loss.objectness_positive_weight, loss.focal_gamma) == (1, 1, 0)
    assert recipe.assignment.anchor_threshold == 4.0


# spec/training.md 3.8, 4.2 to 4.4: (translate, scale, scale extra, mixup, mosaic centre, area ratio, mosaics of nine).
AUGMENTATION = {
    "large": (0.5, 0.5, 0.0, 0.0, "fixed", 0.2, 0.0),
    "large-finetune": (0.5, 0.8, 0.0, 0.2, "fixed", 0.2, 0.0),
    "csp-2020": (0.0, 0.5, 0.0, 0.0, "fixed", 0.2, 0.0),
    "csp-2021": (0.1, 0.9, 0.0, 0.0, "random", 0.1, 0.0),
    "csp": (0.1, 0.9, 0.0, 0.0, "random", 0.1, 0.0),
    "tiny": (0.1, 0.5, 0.1, 0.05, "random", 0.1, 0.2),  # v7 tiny
    "custom": (0.2, 0.5, 0.1, 0.0, "random", 0.1, 0.2),  # v7 custom
}


@pytest.mark.parametrize("name", AUGMENTATION)
def test_published_augmentation(name: str) -> None:
    config = RECIPES[name].augmentation
    found = (
        config.translate,
        config.scale,
        config.scale_extra,
        config.mixup,
        config.mosaic_centre,
        config.min_area_ratio,
        config.mosaic_nine,
    )
    assert found == AUGMENTATION[name]
    assert (config.hue, config.saturation, config.value) == (0.015, 0.7, 0.4)
    assert (config.mosaic, config.flip_horizontal, config.flip_vertical) == (1.0, 0.5, 0.0)
    assert config.degrees == config.shear == config.perspective == 0
    assert (config.min_side, config.max_aspect, config.mixup_alpha) == (2.0, 20.0, 8.0)


def test_second_stage_continues_the_first() -> None:
    recipe = RECIPES["large-finetune"]
    assert recipe.continues in RECIPES
    assert recipe.schedule.first_epoch == RECIPES[recipe.continues].schedule.epochs == 300
    assert recipe.schedule.epochs == 450


def test_replace_with_dotted_keys() -> None:
    recipe = RECIPES["tiny"].replace(
        "schedule.epochs=40",
        "loss.objectness_balance=[4, 1]",
        "optimiser.weight_decay=5e-4",
        "batch=8",
        "loss.box_metric=giou",
    )
    assert recipe.schedule.epochs == 40
    assert recipe.loss.objectness_balance == (4.0, 1.0)
    assert recipe.optimiser.weight_decay == 5e-4
    assert recipe.batch == 8
    assert recipe.loss.box_metric == "giou"
    assert RECIPES["tiny"].schedule.epochs == 600
    assert recipe.replace() is recipe


MISTAKES = [
    ("schedule.epoch=3", "unknown key 'epoch' in schedule. Did you mean 'epochs'?"),
    ("shedule.epochs=3", "unknown key 'shedule'. Did you mean 'schedule'?"),
    ("schedule.epochs", "not of the form key=value"),
    ("schedule.epochs=1.5", "schedule.epochs must be a whole number, got the float 1.5"),
    ("schedule.epochs=true", "schedule.epochs must be a whole number, got the bool True"),
    ("schedule.epochs=0", "schedule.epochs must be at least 1, got 0"),
    ("optimiser.learning_rate=fast", "optimiser.learning_rate must be a number, got the str 'fast'"),
    ("optimiser.momentum=1", "optimiser.momentum must be at least 0 and less than 1, got 1.0"),
    ("loss.box_gain=.nan", "loss.box_gain must be at least 0, got nan"),
    ("assignment.rule=scale", "assignment.rule must be one of scaled, yolov3, yolov4, got the str 'scale'. Did"),
    ("loss.objectness_balance=4", "loss.objectness_balance must be a list, got the int 4"),
    ("loss.objectness_balance=[4, x]", r"loss.objectness_balance[1] must be a number, got the str 'x'"),
    ("augmentation.mossaic=0", "unknown key 'mossaic' in augmentation. Did you mean 'mosaic'?"),
    ("augmentation.mosaic=2", "mosaic is a probability from 0 to 1"),
    ("schedule=3", "schedule must be a mapping of keys to values, got the int 3"),
    ("batch.size=3", "batch is a single value and has no 'size'"),
    ("name=7", "name must be text, got the int 7"),
    ("first_size=0", "first_size must be greater than 0 and at most 1, got 0.0"),
    ("first_size=1.5", "first_size must be greater than 0 and at most 1, got 1.5"),
]


def test_growing_and_random_sides_exclude_each_other() -> None:
    with pytest.raises(UsageError, match="set one of them"):
        RECIPES["csp"].replace("multi_scale=0.5", "first_size=0.5")


@pytest.mark.parametrize(("assignment", "sentence"), MISTAKES)
def test_replace_names_the_mistake(assignment: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        RECIPES["csp"].replace(assignment)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("name: a\nscedule: {epochs: 3}", "mine.yaml: unknown key 'scedule'. Did you mean 'schedule'?"),
        ("name: a\nschedule: {epochs: '3'}", "mine.yaml: schedule.epochs must be a whole number"),
        ("batch: 3", "mine.yaml: the key name is missing"),
        ("- 3", "mine.yaml: must be a mapping"),
        ("", "mine.yaml: must be a mapping"),
        ("name: [", "mine.yaml is not YAML"),
    ],
)
def test_yaml_names_the_mistake(text: str, sentence: str) -> None:
    with pytest.raises(UsageError) as caught:
        Recipe.from_yaml(text, where="mine.yaml")
    assert str(caught.value).startswith(sentence)
    assert "\n" not in str(caught.value)


def test_a_part_of_the_yaml_is_enough() -> None:
    recipe = Recipe.from_yaml("name: mine\nschedule:\n  epochs: 12\n")
    assert recipe == replace(Recipe("mine"), schedule=replace(Recipe("mine").schedule, epochs=12))


def test_recipe_by_name_or_file(tmp_path: Path) -> None:
    assert recipe_named("tiny") is RECIPES["tiny"]
    path = tmp_path / "mine.yaml"
    path.write_text(RECIPES["tiny"].replace("batch=3").to_yaml())
    assert recipe_named(str(path)).batch == 3
    with pytest.raises(UsageError, match="Did you mean 'large-finetune'"):
        recipe_named("large-finetun")
    with pytest.raises(UsageError, match="cannot be read"):
        recipe_named(str(tmp_path / "none.yaml"))


def test_recipes_are_frozen() -> None:
    with pytest.raises(FrozenInstanceError):
        RECIPES["csp"].batch = 3  # type: ignore[misc]
    with pytest.raises(TypeError):
        RECIPES["csp"] = RECIPES["tiny"]  # type: ignore[index]


def test_recipes_do_not_import_torch() -> None:
    """The command line derives its options from the recipe, and its help must come up at once."""
    code = "import sys, scaledyolo.train.recipe; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
