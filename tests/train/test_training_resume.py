"""A run that is killed at any moment and taken up again ends with the same bits as one that never stopped."""

from __future__ import annotations

import csv
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaledyolo.checkpoint import load_checkpoint
from scaledyolo.cli import main
from scaledyolo.train.state import SavedState, load_state

EPOCHS, KILLS = 6, 12
LOSSES = ("box", "objectness", "class", "gradient_norm", "ap", "ap50")


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def final_state(folder: Path) -> SavedState:
    return load_state(folder / "state.safetensors")


def assert_same_bits(one: SavedState, other: SavedState) -> None:
    assert one.tensors.keys() == other.tensors.keys()
    kinds = {name.partition("/")[0] for name in one.tensors}
    assert kinds == {"weights", "ema", "optimizer", "random"}
    different = [name for name, value in one.tensors.items() if not torch.equal(value, other.tensors[name])]
    assert different == []
    assert one.ema_averaged == other.ema_averaged
    assert one.optimizer_scalars == other.optimizer_scalars
    for name in ("epoch", "batch", "step", "best_fitness", "best_epoch", "class_ap"):
        assert getattr(one.progress, name) == getattr(other.progress, name), name


def losses(folder: Path) -> list[list[str]]:
    with (folder / "epochs.csv").open(newline="") as file:
        return [[row["epoch"], *(row[name] for name in LOSSES)] for row in csv.DictReader(file)]


def test_a_run_killed_at_random_moments_ends_with_the_same_bits(world: Any) -> None:
    """Every optimiser step is saved; a third of the kills hit while a file is written, the others at any time."""
    recipe = world.short_recipe(EPOCHS, batch=2)  # two batches to a step: gradients are pending in between
    data = world.write_shapes(world.folder / "set", 14)
    killed = world.arguments(recipe, "--save-every", 0, data=data, out="killed")
    script = Path(__file__).parent / "kill_and_resume.py"
    done = subprocess.run(
        [sys.executable, str(script), "7", str(KILLS), *killed],
        check=False, capture_output=True, text=True, timeout=300, env=world.environment(),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    kills = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert any(kill["batch"] for kill in kills), "no kill in the middle of an epoch"
    assert any(kill["half_written"] for kill in kills), "no kill while a file was being written"

    assert main(world.arguments(recipe, data=data, out="whole")) == 0
    one, other = world.folder / "killed" / "train", world.folder / "whole" / "train"
    assert_same_bits(final_state(one), final_state(other))
    for name in ("last.safetensors", "best.safetensors"):
        a, b = load_checkpoint(one / name), load_checkpoint(other / name)  # the order of their metadata is random
        assert all(np.array_equal(a.weights[key], b.weights[key]) for key in b.weights)
        assert a.provenance == b.provenance
    assert losses(one) == losses(other)
    assert not list(one.glob(".*")), "half-written files of killed runs are cleared away"


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_one_seed_gives_one_result_and_two_seeds_two(world: Any, optimiser: str) -> None:
    recipe = world.short_recipe(2).replace(f"optimiser.name={optimiser}", "optimiser.learning_rate=0.001")
    for out, seed in (("one", 3), ("same", 3), ("other", 4)):
        assert main(world.arguments(recipe, "--seed", seed, out=out)) == 0
    one, same, other = (final_state(world.folder / out / "train") for out in ("one", "same", "other"))
    assert_same_bits(one, same)
    weights = [name for name in one.tensors if name.startswith("weights/") and name.endswith("conv.weight")]
    assert not any(torch.equal(one.tensors[name], other.tensors[name]) for name in weights)


@pytest.mark.parametrize("optimiser", ["sgd", "adamw"])
def test_momentum_comes_back_in_the_layout_of_its_parameter(world: Any, optimiser: str) -> None:
    """Fused optimisers walk through both in the order of memory, and weights are channels-last."""
    from scaledyolo.train.optim import make_ema, make_optimizer
    from scaledyolo.train.progress import Progress
    from scaledyolo.train.recipe import Ema
    from scaledyolo.train.state import save_state

    recipe = world.short_recipe().replace(f"optimiser.name={optimiser}")
    network = torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    ema, optimizer = make_ema(network, Ema()), make_optimizer(network, recipe)
    network(torch.randn(1, 3, 5, 5)).square().sum().backward()
    optimizer.step()
    path = world.folder / "state.safetensors"
    save_state(path, network=network, ema=ema, optimizer=optimizer, progress=Progress(), facts={})
    before = {key: value.clone() for key, value in optimizer.state[network.weight].items() if value is not None}
    optimizer.state.clear()
    load_state(path).restore(network, ema, optimizer)
    after = optimizer.state[network.weight]
    for name, value in before.items():
        assert torch.equal(after[name], value)
        assert not value.ndim or after[name].stride() == network.weight.stride()


def test_a_finished_run_can_be_resumed_and_does_nothing(world: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(world.arguments(world.short_recipe(1))) == 0
    folder = world.folder / "runs" / "train"
    before = (folder / "last.safetensors").read_bytes()
    assert main(["train", "--resume", str(folder)]) == 0
    assert (folder / "last.safetensors").read_bytes() == before
    assert "best AP in epoch 1" in capsys.readouterr().out
