"""Recipe value `quantise_aware`: what it leaves behind, how it resumes, and that less is lost in OpenVINO's 8 bits."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from scaledyolo.arch.lower import lower
from scaledyolo.arch.ops import Conv
from scaledyolo.arch.quantisation import TRAINED_FOR, first_layers, quantisable_layers
from scaledyolo.arch.zoo import find
from scaledyolo.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from scaledyolo.cli import main
from scaledyolo.errors import UsageError
from scaledyolo.export import Int8, export
from scaledyolo.net.rounding import round_weight
from scaledyolo.train import loop
from scaledyolo.train.manifest import read_run
from scaledyolo.train.prepare import quantise_aware
from scaledyolo.train.recipe import Ema, Recipe, recipe_named
from scaledyolo.train.state import load_state


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def in_8_bits(world: Any, epochs: int, **changes: Any) -> Recipe:
    recipe: Recipe = world.short_recipe(epochs, quantise_aware=True, **changes)
    return recipe


def test_a_training_leaves_an_ordinary_checkpoint_with_weights_on_their_grid(world: Any) -> None:
    words = world.arguments(in_8_bits(world, 2))
    words[words.index("--precision") + 1] = "auto"
    assert main(words) == 0
    folder = world.folder / "runs" / "train"
    assert read_run(folder).settings.precision == "32"  # bfloat16 has 8 bits itself
    for name in ("last", "best"):
        model = load_checkpoint(folder / f"{name}.safetensors")
        assert model.provenance[TRAINED_FOR] == "int8"
        first = first_layers(model.graph)
        for layer in quantisable_layers(model.graph, depthwise=False):
            weight = torch.from_numpy(model.weights[f"{layer}.weight"])
            steps = (weight / weight.abs().amax((1, 2, 3), keepdim=True) * 127).numpy()
            off_grid = np.abs(steps - np.round(steps)).max()
            assert (off_grid > 0.1) == (layer in first), layer
            if layer not in first:
                torch.testing.assert_close(round_weight(weight), weight, rtol=1e-6, atol=0)
    layer = next(name for name in quantisable_layers(model.graph) if name not in first_layers(model.graph))
    learnt = load_state(folder / "state.safetensors").tensors[f"ema/{layer}.weight"]
    assert not torch.equal(
        learnt, torch.from_numpy(load_checkpoint(folder / "last.safetensors").weights[f"{layer}.weight"])
    )


def test_a_run_that_was_stopped_ends_with_the_same_bits(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = in_8_bits(world, 3)
    assert main(world.arguments(recipe, out="whole")) == 0
    original, steps = loop.optimiser_step, []

    def stop_once(t: Any, batch: Any) -> float:
        steps.append(t.progress.step)
        if len(steps) == 4:
            raise KeyboardInterrupt
        return original(t, batch)

    monkeypatch.setattr(loop, "optimiser_step", stop_once)
    assert main(world.arguments(recipe, "--save-every", 0, out="stopped")) == 130
    assert main(["train", "--resume", str(world.folder / "stopped" / "train")]) == 0
    one, other = (load_state(world.folder / out / "train" / "state.safetensors") for out in ("whole", "stopped"))
    assert [name for name, value in one.tensors.items() if not torch.equal(value, other.tensors[name])] == []


def test_what_cannot_be_is_one_sentence() -> None:
    recipe = recipe_named("int8")
    assert recipe.quantise_aware
    with pytest.raises(UsageError, match="quantise_aware trains the whole network only"):
        replace(recipe, subnets=("without-stage-p5",))
    with pytest.raises(UsageError, match="all stages of a training need the same quantise_aware"):
        quantise_aware([recipe, replace(recipe, quantise_aware=False)], lower(find("yolov4-tiny")))
    assert quantise_aware([recipe], lower(find("yolov4-tiny")))
    with pytest.raises(UsageError, match=r"yolov7: an export merges the parallel convolutions of head\.p3\.rep\.sum"):
        quantise_aware([recipe], lower(find("yolov7")))
    assert Recipe.from_yaml(recipe.to_yaml()) == recipe


def with_uneven_channels(model: Checkpoint, spread: float) -> Checkpoint:
    """The same function in float: channels between two convolutions are scaled by this much, and scaled back behind.

    Leaky ReLU lets a positive factor through; one scale for all channels of a map then leaves some without levels.
    """
    random = np.random.default_rng(0)
    weights = {name: value.copy() for name, value in model.weights.items()}
    for node in model.graph:
        readers = model.graph.consumers[node.name]
        is_chain = len(readers) == 1 and isinstance(model.graph[readers[0]].op, Conv)
        if not is_chain or not isinstance(node.op, Conv) or node.op.activation != "leaky":
            continue
        factors = np.exp(np.log(spread) * random.uniform(-0.5, 0.5, node.op.filters)).astype(np.float32)
        for key in ("norm.weight", "norm.bias"):
            weights[f"{node.name}.{key}"] *= factors
        weights[f"{readers[0]}.weight"] /= factors[:, None, None]
    return replace(model, weights=weights)


@pytest.mark.slow
def test_fine_tuning_regains_what_8_bits_lose(world: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """Measured with the real export; the same fine-tuning without rounding regains far less."""
    pytest.importorskip("openvino")
    pytest.importorskip("nncf")
    data = world.write_shapes(world.folder / "set", 64, 32)
    assert main(world.arguments(world.short_recipe(40), "--evaluate-every", 40, data=data, out="float")) == 0
    trained = load_checkpoint(world.folder / "float" / "train" / "last.safetensors")
    uneven = world.folder / "uneven.safetensors"
    save_checkpoint(uneven, with_uneven_channels(trained, 1000.0))

    def ap(model: Path) -> float:
        capsys.readouterr()
        assert main(["eval", str(model), "--data", str(data), "--split", "val", "--json"]) == 0
        return float(json.loads(capsys.readouterr().out)["AP"])

    def ap_in_8_bits(model: Path) -> float:
        images = Int8(data.parent / "images" / "train", images=64)
        target = world.folder / f"{model.parent.parent.name}_openvino_model"
        return ap(export(load_checkpoint(model), target, format="openvino", int8=images, verified=False).path)

    recipe = world.short_recipe(20)
    recipe = replace(
        recipe,
        optimiser=replace(recipe.optimiser, learning_rate=0.0005),
        schedule=replace(recipe.schedule, warmup_bias_rate=0.0, warmup_min_steps=16),
        ema=Ema(decay=0.98, ramp_updates=10.0),
    )
    tuned = {}
    for out in ("plain", "rounded"):
        words = world.arguments(replace(recipe, quantise_aware=out == "rounded"), data=data, out=out)
        assert main([*words, "--weights", str(uneven), "--evaluate-every", "20"]) == 0
        tuned[out] = ap_in_8_bits(world.folder / out / "train" / "last.safetensors")
    float_ap, lost_ap = ap(uneven), ap_in_8_bits(uneven)
    found = f"float {float_ap:.3f}, 8 bits {lost_ap:.3f}, fine-tuned {tuned}"
    assert lost_ap < float_ap - 0.2, found  # 0.665 and 0.366
    assert tuned["rounded"] > float_ap - 0.06, found  # 0.637
    assert tuned["rounded"] > tuned["plain"] + 0.1, found  # 0.415
