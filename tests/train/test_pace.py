"""`--minutes`: as many epochs as fit, and the same training as with `--epochs`."""

from __future__ import annotations

import re
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import scaledyolo.train.pace as pace_module
from scaledyolo.cli import main
from scaledyolo.errors import UsageError
from scaledyolo.train.pace import MOST_EPOCHS, Pace, fitting_epochs
from scaledyolo.train.recipe import Recipe
from scaledyolo.train.state import load_state


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


seconds = st.floats(0.001, 100.0)


@settings(deadline=None)
@given(
    st.builds(Pace, seconds, seconds, seconds, seconds, st.integers(1, 500)),
    st.floats(0.1, 10_000.0),
    st.integers(1, 20),
    st.floats(0.3, 1.0),
)
def test_one_epoch_more_would_be_too_long(pace: Pace, minutes: float, every: int, first_size: float) -> None:
    recipe = Recipe("r", first_size=first_size)
    try:
        epochs = fitting_epochs(pace, recipe, minutes, every)
    except UsageError:
        assert pace.seconds(recipe, 1, every) > 60 * minutes
        return
    assert pace.seconds(recipe, epochs, every) <= 60 * minutes
    assert epochs == MOST_EPOCHS or pace.seconds(recipe, epochs + 1, every) > 60 * minutes


def test_time_is_the_sum_of_its_parts() -> None:
    """Ten epochs of 7 steps of 2 s, evaluated every third (4 times, the last included), saved each, read once."""
    pace = Pace(batch=2.0, evaluation=5.0, save=0.5, reading=3.0, batches=7)
    assert pace.seconds(Recipe("r"), 10, 3) == pytest.approx(10 * 7 * 2 + 4 * 5 + 10 * 0.5 + 3)
    # Growing from half the side over five of the ten epochs: areas (0.5 + 0.1 k)², then 1.
    growing = Recipe("r", first_size=0.5, full_size_from=0.5)
    areas = sum((0.5 + 0.1 * epoch) ** 2 for epoch in range(5)) + 5
    assert pace.seconds(growing, 10, 3) == pytest.approx(areas * 7 * 2 + 4 * 5 + 10 * 0.5 + 3)


def test_minutes_choose_epochs_and_nothing_else(
    world: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The time is really measured; what is made of it here is not, or the test would depend on the machine."""
    measured: list[Pace] = []
    measure = pace_module.measure_pace

    def measure_and_forget(*arguments: Any) -> Pace:
        measured.append(measure(*arguments))
        return Pace(batch=0.25, evaluation=0.5, save=0.0, reading=0.0, batches=2)

    monkeypatch.setattr(pace_module, "measure_pace", measure_and_forget)
    recipe = world.short_recipe(7)
    assert main(world.arguments(recipe, "--minutes", 0.06, out="timed")) == 0
    (pace,) = measured
    assert min(pace.batch, pace.evaluation, pace.save, pace.reading) > 0
    assert pace.batches == 2
    found = re.search(r"^(\d+) epochs take about 0.06 minutes here", capsys.readouterr().out)
    assert found is not None
    assert found[1] == "3", "3.6 seconds, and one epoch takes 1"
    assert main(world.arguments(recipe, "--epochs", found[1], out="counted")) == 0
    timed, counted = (
        load_state(world.folder / out / "train" / "state.safetensors").tensors for out in ("timed", "counted")
    )
    assert all(torch.equal(timed[name], counted[name]) for name in counted)


def test_minutes_that_make_no_sense(world: Any, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = world.arguments(world.short_recipe(1))
    assert main([*arguments, "--minutes", "1", "--epochs", "3"]) == 2
    assert "--minutes is for a new training in one process, without --epochs" in capsys.readouterr().err
    assert main([*arguments, "--minutes", "0.00001"]) == 2
    assert "one epoch takes about" in capsys.readouterr().err
    assert not (world.folder / "runs").exists()
