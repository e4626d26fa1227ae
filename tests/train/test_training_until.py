"""A training that is stopped in the middle of its schedule and taken up again is the one that was never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from scaledyolo.data.formats import open_dataset
from scaledyolo.train.loop import fit
from scaledyolo.train.manifest import Run
from scaledyolo.train.prepare import prepare
from scaledyolo.train.processes import launch
from scaledyolo.train.settings import Settings
from scaledyolo.train.state import load_state


def test_stops_on_the_way_change_nothing(world: Any) -> None:
    torch.set_num_threads(1)
    data = open_dataset(world.shapes, "train")
    settings = Settings(precision="32", device="cpu", quiet=True)
    run = Run(spec=world.narrow_spec(), recipes=(world.short_recipe(4),), settings=settings)
    fabric = launch(settings)

    def train(name: str, *stops: int | None) -> Path:
        folder = world.folder / name
        folder.mkdir()
        for number, until in enumerate(stops):
            training = prepare(fabric, folder, run, data, None, resume=number > 0)
            fit(training, until=until)
            assert training.progress.epoch == min(until or 4, 4)
        return folder / "state.safetensors"

    whole, stopped = (load_state(path).tensors for path in (train("whole", None), train("stopped", 1, 3, 99)))
    assert whole.keys() == stopped.keys()
    assert all(torch.equal(value, stopped[name]) for name, value in whole.items())
