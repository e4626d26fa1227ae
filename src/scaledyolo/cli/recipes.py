"""`scaledyolo recipes`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated

import tyro

from scaledyolo.errors import UsageError

if TYPE_CHECKING:
    from scaledyolo.train.recipe import Recipe


@dataclass(frozen=True)
class Recipes:
    """List the recipes by which networks are trained, or print one as YAML, to change it and train with the file."""

    name: Annotated[str | None, tyro.conf.Positional, tyro.conf.arg(metavar="[RECIPE]")] = None
    """Recipe to print; by default all are listed."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...")] = ()
    """Values to change before it is printed, such as schedule.epochs=40."""

    def run(self) -> int:
        from scaledyolo.train.recipe import RECIPES, recipe_named

        if self.name is not None:
            print(recipe_named(self.name).replace(*self.set).to_yaml(), end="")
            return 0
        if self.set:
            raise UsageError("--set changes one recipe; name it, as in `scaledyolo recipes custom --set batch=8`")
        print(f"{'recipe':<16}{'epochs':>8}{'batch':>7}{'mosaic':>8}{'mixup':>7}  continues")
        print("\n".join(line(recipe) for recipe in RECIPES.values()))
        print("\n`scaledyolo recipes NAME` prints one as YAML; change it and train with --recipe FILE.yaml")
        return 0


def line(recipe: Recipe) -> str:
    """The row of a recipe in the list."""
    augmentation = recipe.augmentation
    figures = f"{recipe.schedule.epochs:>8}{recipe.batch:>7}{augmentation.mosaic:>8g}{augmentation.mixup:>7g}"
    return f"{recipe.name:<16}{figures}  {recipe.continues}".rstrip()
