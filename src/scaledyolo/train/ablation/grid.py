"""A grid file: networks times recipes times seeds, as YAML.

    name: necks
    size: 256                                   # of all networks, in pixels
    seeds: [0, 1]
    set: [schedule.epochs=40]                   # values of all recipes
    specs:
      plain: yolov4-tiny                        # a zoo name or spec file, or what is made of one:
      half: {base: yolov4-tiny, width: 0.5}
    recipes:
      usual: small
      no-mosaic: {base: small, set: [augmentation.mosaic=0]}

Everything is checked, cell by cell, before the first training begins.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import yaml

from scaledyolo.arch.lower import lower
from scaledyolo.arch.ops import Activation
from scaledyolo.arch.scaling import scaled, tiny_scaled, with_activation, with_stages
from scaledyolo.arch.spec import ModelSpec
from scaledyolo.default_model import DEFAULT
from scaledyolo.errors import ScaledYoloError, UsageError
from scaledyolo.model import load_spec
from scaledyolo.outputs.files import safe_name
from scaledyolo.strict import from_mapping
from scaledyolo.train.prepare import spec_for_training
from scaledyolo.train.recipe import Recipe, recipe_named
from scaledyolo.train.sandwich import Sandwich
from scaledyolo.train.transfer import SCRATCH, default_start

T = TypeVar("T")


@dataclass(frozen=True)
class SpecChoice:
    """A network of the grid: one of the zoo or a file, and what is changed in it, in this order."""

    base: str  # zoo name or spec file
    growth: int | None = None  # g of a tiny network (scaling.tiny_scaled)
    partition: tuple[int, int] | None = None  # of its blocks
    width: float = 1.0  # factor on the channels (scaling.scaled)
    depth: float = 1.0  # factor on the repetitions
    keep_stem: bool = False  # the first convolution stays as wide as it is
    stages: int | None = None  # how often the input is halved (scaling.with_stages)
    activation: Activation | None = None
    size: int = 0  # side of the input in pixels; 0: that of the grid

    def build(self, folder: Path) -> ModelSpec:
        """The network, at its own size.

        Raises:
            ScaledYoloError: there is no such network, or it cannot be changed so.
        """
        spec = load_spec(_beside(self.base, folder))
        if self.growth is not None or self.partition is not None:
            spec = tiny_scaled(spec, growth=self.growth, partition=self.partition)
        if self.width != 1.0 or self.depth != 1.0:
            spec = scaled(spec, width=self.width, depth=self.depth, keep_stem=self.keep_stem)
        if self.stages is not None:
            spec = with_stages(spec, self.stages)
        return spec if self.activation is None else with_activation(spec, self.activation)


@dataclass(frozen=True)
class RecipeChoice:
    """A recipe of the grid."""

    base: str = "small"  # name or file
    set: tuple[str, ...] = ()  # values to change, such as schedule.epochs=40
    # Checkpoint to start from, or scratch; unless given, the recipe decides (`pretrained`), as in `scaledyolo train`.
    weights: str | None = None


@dataclass(frozen=True)
class _Head:
    """What a grid file says besides its networks and recipes."""

    name: str
    about: str = ""  # for people
    size: int = 0  # side of the input of every network in pixels; 0: each its own
    seeds: tuple[int, ...] = (0,)
    set: tuple[str, ...] = ()  # values of all recipes; those of a recipe itself come later
    evaluate_every: int = 5  # epochs between evaluations on the validation split
    minutes: float | None = None  # expected for the whole grid on two CPU cores; for people

    def __post_init__(self) -> None:
        if not self.seeds or len(set(self.seeds)) < len(self.seeds):
            raise UsageError(f"seeds must be at least one and all different, got {list(self.seeds)}")


@dataclass(frozen=True)
class Cell:
    """One training of the grid, ready to run."""

    spec_name: str
    recipe_name: str
    seed: int
    spec: ModelSpec
    recipes: tuple[Recipe, ...]  # of the stages
    weights: Path | None = None

    @property
    def name(self) -> str:
        """How it is called in messages and folders."""
        return f"{self.spec_name}--{self.recipe_name}--seed{self.seed}"


@dataclass(frozen=True)
class Grid:
    """A grid file that was understood."""

    path: Path
    head: _Head
    specs: Mapping[str, SpecChoice]
    recipes: Mapping[str, RecipeChoice]

    @property
    def folder(self) -> Path:
        """Files that it names are looked for here first."""
        return self.path.parent

    @property
    def name(self) -> str:
        """Of the grid; the name of its folder of results."""
        return self.head.name

    def cells(self, num_classes: int) -> tuple[Cell, ...]:
        """All trainings for data of so many classes, seeds innermost.

        Raises:
            ScaledYoloError: what does not exist or does not fit together; names the network, recipe or cell.
        """
        specs = {name: self._built(name, choice) for name, choice in self.specs.items()}
        stages = {name: self._stages(name, choice) for name, choice in self.recipes.items()}
        _refuse_twins(
            self.path, "specs", {name: (replace(spec, name=""), self.specs[name].size) for name, spec in specs.items()}
        )
        _refuse_twins(
            self.path, "recipes", {name: (found, self.recipes[name].weights) for name, found in stages.items()}
        )
        cells = []
        for spec_name, spec in specs.items():
            for recipe_name, recipes in stages.items():
                where = f"{self.path}: cell {spec_name} x {recipe_name}"
                choice = self.recipes[recipe_name]
                size = self.specs[spec_name].size or self.head.size
                trained = _said_where(where, partial(_trainable, spec.with_classes(num_classes), recipes, size))
                trained = replace(trained, name=spec_name)
                weights = self._weights(choice, trained, recipes[-1])
                cells += [Cell(spec_name, recipe_name, seed, trained, recipes, weights) for seed in self.head.seeds]
        return tuple(cells)

    def _built(self, name: str, choice: SpecChoice) -> ModelSpec:
        return _said_where(f"{self.path}: spec {name}", partial(choice.build, self.folder))

    def _stages(self, name: str, choice: RecipeChoice) -> tuple[Recipe, ...]:
        changes = (*self.head.set, *choice.set)

        def build() -> tuple[Recipe, ...]:
            recipe = recipe_named(_beside(choice.base, self.folder)).replace(*changes)
            return recipe.stages(*changes) if choice.weights in (None, SCRATCH) else (recipe,)

        return _said_where(f"{self.path}: recipe {name}", build)

    def _weights(self, choice: RecipeChoice, spec: ModelSpec, recipe: Recipe) -> Path | None:
        if choice.weights is None:
            return None if default_start(recipe, spec) is None else Path(DEFAULT)
        return None if choice.weights == SCRATCH else Path(_beside(choice.weights, self.folder))


def read_grid(path: Path) -> Grid:
    """The grid in a YAML file.

    Raises:
        UsageError: the file cannot be read, a key is unknown or missing, or a value has another type.
    """
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: {getattr(error, 'strerror', None) or 'not a text file'}") from None
    except yaml.YAMLError as error:
        raise UsageError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    if not isinstance(document, dict):
        raise UsageError(f"{path}: a grid is a mapping with the keys name, specs and recipes")
    rest = {key: value for key, value in document.items() if key not in ("specs", "recipes")}
    head = _said_where(str(path), lambda: from_mapping(_Head, {"name": path.stem, **rest}, str(path)))
    return Grid(
        path=path,
        head=head,
        specs=_choices(SpecChoice, document.get("specs"), f"{path}: specs"),
        recipes=_choices(RecipeChoice, document.get("recipes", {"small": "small"}), f"{path}: recipes"),
    )


def _choices(cls: type[T], document: Any, where: str) -> dict[str, T]:
    """Named entries; one that is only text is the base."""
    if not isinstance(document, dict) or not document:
        raise UsageError(f"{where} must be a mapping of names to networks or recipes, at least one")
    found = {}
    for name, value in document.items():
        if not isinstance(name, str) or safe_name(name) != name:
            raise UsageError(f"{where}: {name!r} cannot be the name of a folder; use letters, digits, - and _")
        found[name] = from_mapping(cls, {"base": value} if isinstance(value, str) else value, f"{where}.{name}")
    return found


def _trainable(spec: ModelSpec, recipes: tuple[Recipe, ...], size: int) -> ModelSpec:
    """The network as these recipes train it; raises where the loop would, only sooner."""
    spec = spec_for_training(spec, recipes[-1], size)
    graph = lower(spec)
    graph.check_size(graph.height, graph.width)
    if len({recipe.batch for recipe in recipes}) > 1:
        raise UsageError("all stages of a training need the same batch")
    for recipe in recipes:
        Sandwich(graph, recipe.subnets, 0)
    return spec


def _refuse_twins(path: Path, what: str, values: Mapping[str, Hashable]) -> None:
    """Two names for the same thing are a slip of the pen, and hours of training."""
    seen: dict[Hashable, str] = {}
    for name, value in values.items():
        other = seen.setdefault(value, name)
        if other != name:
            raise UsageError(f"{path}: {what} {other} and {name} are the same; to repeat trainings give more seeds")


def _said_where(where: str, make: Callable[[], T]) -> T:
    """What ``make`` gives; its complaint names the place."""
    try:
        return make()
    except ScaledYoloError as error:
        text = str(error)
        raise type(error)(text if text.startswith(where) else f"{where}: {text}") from None


def _beside(name: str, folder: Path) -> str:
    """A file named relative to the grid file; else the name as it is."""
    return str(folder / name) if Path(name).suffix and (folder / name).is_file() else name
