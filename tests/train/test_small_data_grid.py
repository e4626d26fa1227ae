"""The grid of experiments on small data: each row changes one thing against the first."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from scaledyolo.strict import to_mapping
from scaledyolo.train.ablation.grid import read_grid

GRIDS = Path(__file__).parents[2] / "benchmarks" / "grids"

# One thing may need several values: a number of epochs with the share that goes without mosaic, a batch with its step.
NEEDED = {"adamw": 3, "batch-8": 3, "batch-32": 2, "epochs-10": 2, "epochs-40": 2, "warmup-short": 2}


def flat(recipe: Any) -> dict[str, object]:
    """All values of a recipe by key."""
    values: dict[str, object] = {}
    for key, value in to_mapping(recipe).items():
        values |= {f"{key}.{name}": inner for name, inner in value.items()} if isinstance(value, dict) else {key: value}
    return values


@pytest.mark.parametrize("name", ["small-data", "small-data-start", "small-data-tune"])
def test_every_recipe_changes_one_thing(name: str) -> None:
    if not GRIDS.is_dir():
        pytest.skip("the benchmarks are not beside the tests")
    first, *others = read_grid(GRIDS / f"{name}.yaml").cells(3)
    base = flat(first.recipes[-1])
    for cell in others:
        changed = flat(cell.recipes[-1])
        differing = [key for key in base if changed[key] != base[key]]
        allowed = 2 if name == "small-data-start" else NEEDED.get(cell.recipe_name, 1)
        assert len(differing) <= allowed, (cell.name, differing)
        assert differing or cell.weights or cell.seed != first.seed, cell.name
