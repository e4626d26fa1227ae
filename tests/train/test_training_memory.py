"""`--memory`: a smaller batch, the same optimiser step; and the estimate against what a run really took."""

from __future__ import annotations

import re
import subprocess
import sys
from typing import Any

import numpy as np
import pytest

from scaledyolo.arch.lower import lower
from scaledyolo.arch.memory import training_bytes
from scaledyolo.arch.zoo import find
from scaledyolo.train.microbatch import fit_memory
from scaledyolo.train.optim import accumulation, scaled_weight_decay, step_settings
from scaledyolo.train.recipe import RECIPES, Recipe


def images_per_step(recipe: Recipe) -> int:
    return recipe.batch * accumulation(recipe.batch, recipe.optimiser.nominal_batch)


@pytest.mark.parametrize("batch", [16, 24, 64, 96, 128])
@pytest.mark.parametrize("processes", [1, 2, 4])
@pytest.mark.parametrize("gigabytes", [1.5, 2.0, 4.0, 1000.0])
def test_an_optimiser_step_stays_what_it_was(batch: int, processes: int, gigabytes: float) -> None:
    graph = lower(find("yolov4-tiny"))
    recipe = RECIPES["csp"].replace(f"batch={batch}")
    available = int(gigabytes * 2**30)
    fitted = fit_memory(recipe, graph, available, "32", processes=processes)
    assert images_per_step(fitted) == images_per_step(recipe)
    assert fitted.batch % processes == 0
    assert fitted.batch <= recipe.batch
    both = ((one.optimiser, one.batch) for one in (recipe, fitted))
    decays = [scaled_weight_decay(one.weight_decay, size, one.nominal_batch) for one, size in both]
    assert decays[1] == pytest.approx(decays[0])
    assert training_bytes(graph, 416, 416, fitted.batch // processes, "32") <= available
    late = step_settings(fitted, 10**6, 1000)
    assert late.accumulate * fitted.batch == images_per_step(recipe)
    if gigabytes == 1000.0:
        assert fitted == recipe


def test_the_estimate_is_near_what_a_run_takes(world: Any) -> None:
    """yolov4-tiny, 192 pixels, eight images: from 0.4 of the estimate to all of it, whatever the threads."""
    recipe = world.short_recipe(1, batch=8)
    options = ("--model", "yolov4-tiny", "--size", 192, "--device", "cpu")
    done = world.run(*world.arguments(recipe, *options))
    assert done.returncode == 0, done.stderr[-2000:]
    found = re.search(r"peak memory (\d+\.\d+) GiB", done.stderr)
    assert found is not None
    estimate = training_bytes(lower(find("yolov4-tiny").with_classes(3)), 192, 192, 8, "32")
    assert 0.4 * estimate < float(found[1]) * 2**30 < 1.02 * estimate


@pytest.mark.skipif(sys.platform != "linux", reason="the others have no /proc")
def test_peak_memory_is_that_of_the_process_and_not_of_its_parent() -> None:
    """What getrusage tells survives exec: a large program that starts a training would be counted as part of it."""
    large = np.ones(1 << 30, np.uint8)
    script = "from scaledyolo.train.machine import peak_memory; print(peak_memory())"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert 50 << 20 < int(done.stdout) < large.nbytes


def test_memory_makes_the_batch_of_a_run_smaller(world: Any) -> None:
    from scaledyolo.cli.train import Train
    from scaledyolo.train.manifest import Run

    def run(memory: str | None) -> Run:
        return Train(data=(world.shapes,), recipe="csp", memory=memory, precision="32", device="cpu")._new_run()[0]

    assert run(None).recipes[0].batch == 64
    assert run("2G").recipes[0].batch in (4, 8, 16)
    assert run("900G").recipes == run(None).recipes
