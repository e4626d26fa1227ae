"""Subnets that learn along: whose turn it is, what they compute, the gradients they leave, and resuming."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from scaledyolo.arch.lower import lower
from scaledyolo.arch.scaling import scaled
from scaledyolo.arch.subnet import cut
from scaledyolo.arch.zoo import find
from scaledyolo.checkpoint import load_checkpoint
from scaledyolo.cli import main
from scaledyolo.net.network import Network
from scaledyolo.subnet import TRAINED_SUBNETS, subnet_weights
from scaledyolo.train import loop
from scaledyolo.train.recipe import Loss
from scaledyolo.train.sandwich import InnerNetwork, Sandwich, sandwich_indices
from scaledyolo.train.state import load_state
from scaledyolo.weights import random_weights

NAMES = ("without-head-p6", "without-stage-p6", "without-stage-p6-zeros", "without-stage-p5")
GRAPH = lower(scaled(find("yolov4-p6"), width=1 / 16, depth=1 / 16, size=128).with_classes(2))


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@given(st.integers(0, 8), st.integers(0, 2**31), st.integers(0, 10**6))
def test_the_smallest_and_one_in_between_have_their_turn(count, seed, step):
    chosen = sandwich_indices(count, seed, step)
    assert chosen == sandwich_indices(count, seed, step)
    assert chosen == tuple(sorted(set(chosen)))
    assert len(chosen) == min(count, 2)
    if count:
        assert chosen[-1] == count - 1


def test_all_have_their_turn_about_equally_often():
    drawn = [sandwich_indices(5, 0, step)[0] for step in range(2000)]
    assert np.bincount(drawn).min() > 400
    assert drawn != [sandwich_indices(5, 1, step)[0] for step in range(2000)]


def test_they_are_ordered_by_cost_and_named_once():
    sandwich = Sandwich(GRAPH, ["without-stage-p5", "without-head-p6", "without-stage-p6", "without-stage-p5"], seed=0)
    names = [network.name for network in sandwich.networks]
    assert names == ["without-head-p6", "without-stage-p6", "without-stage-p5"]
    assert Sandwich(GRAPH, (), seed=0).of_step(7) == ()


@pytest.fixture(scope="module")
def whole() -> Network:
    network = Network(GRAPH, logits=True)
    network.load(random_weights(GRAPH, np.random.default_rng(0)))
    return network.train()


@pytest.mark.parametrize("name", NAMES)
def test_inside_it_computes_what_it_computes_once_cut_out(whole, name):
    """The maps are those of the cut network, and so are the gradients; nothing of the whole changes."""
    images = torch.rand(2, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    before = {key: value.clone() for key, value in whole.state_dict().items()}
    inner = InnerNetwork(GRAPH, name)
    subnet = cut(GRAPH, name)
    alone = Network(subnet.graph, logits=True).eval()
    alone.load(subnet_weights(subnet, whole.weights()))

    whole.zero_grad(set_to_none=True)
    maps, expected = inner(whole, images), alone(images)
    for value, wanted in zip(maps, expected, strict=True):
        assert torch.equal(value, wanted)
    sum(value.square().mean() for value in maps).backward()
    sum(value.square().mean() for value in expected).backward()
    assert whole.training
    assert all(torch.equal(value, before[key]) for key, value in whole.state_dict().items())

    changes = {change.tensor: change for change in subnet.changes}
    own = dict(alone.named_parameters())
    for key, parameter in whole.named_parameters():
        if key not in own:
            assert parameter.grad is None, f"{key} is no part of the subnet"
        elif key not in changes:
            assert torch.equal(parameter.grad, own[key].grad), key
        else:
            lost = torch.ones(parameter.shape[1], dtype=torch.bool)
            for start, stop in changes[key].kept:
                lost[start:stop] = False
            assert not parameter.grad[:, lost].any()
            theirs = own[key].grad if own[key].shape[1] < len(lost) else own[key].grad[:, ~lost]
            assert torch.allclose(parameter.grad[:, ~lost], theirs, rtol=1e-5, atol=1e-7)
    assert changes or name.startswith("without-head")


def test_the_balance_of_the_levels_is_cut_too():
    inner = InnerNetwork(GRAPH, "without-stage-p5")
    assert inner.loss_config(Loss(objectness_balance=(4.0, 1.0, 0.5, 0.2))).objectness_balance == (4.0, 1.0)
    assert inner.loss_config(Loss()) == Loss()


def test_a_step_follows_the_mean_of_the_gradients(world: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The gradients of one batch with subnets, against those of each network alone."""
    seen: dict[str, Any] = {}

    def watch(t: Any, batch: Any, *, synchronise: bool) -> Any:
        if t.progress.step < 4:  # the warm-up: the whole network alone
            assert t.subnets_of_step() == ()
            return original(t, batch, synchronise=synchronise)
        assert [network.name for network in t.subnets_of_step()] == ["without-stage-p5"]
        saved = {key: value.clone() for key, value in t.bare.state_dict().items()}
        images, targets = t.to_device(batch)
        alone = {}
        for inner in (*t.subnets_of_step(), None):
            graph = t.graph if inner is None else inner.graph
            t.bare.zero_grad(set_to_none=True)
            maps = t.bare(images) if inner is None else inner(t.bare, images)
            loop.backward(t, maps, images, targets, graph, t.recipe.loss, 1.0)
            alone[inner] = {key: p.grad.clone() for key, p in t.bare.named_parameters() if p.grad is not None}
        t.bare.load_state_dict(saved)
        t.bare.zero_grad(set_to_none=True)
        original(t, batch, synchronise=synchronise)
        for key, parameter in t.bare.named_parameters():
            mean = sum(gradients[key] for gradients in alone.values() if key in gradients) / 2
            assert torch.allclose(parameter.grad, mean, rtol=1e-4, atol=1e-6), key
        seen["step"] = t.progress.step
        raise KeyboardInterrupt

    original = loop.forward_backward
    monkeypatch.setattr(loop, "forward_backward", watch)
    recipe = world.short_recipe(4, subnets=("without-stage-p5",))
    assert main(world.arguments(recipe)) == 130
    assert seen == {"step": 4}


def test_a_run_with_subnets_that_was_stopped_ends_with_the_same_bits(world: Any, monkeypatch) -> None:
    recipe = world.short_recipe(4, subnets=("without-stage-p5", "without-head-p5"), batch=2)
    assert main(world.arguments(recipe, out="whole")) == 0

    original, steps = loop.optimiser_step, []

    def stop_once(t: Any, batch: Any) -> float:
        steps.append(t.progress.step)
        if len(steps) == 5:
            raise KeyboardInterrupt
        return original(t, batch)

    monkeypatch.setattr(loop, "optimiser_step", stop_once)
    words = world.arguments(recipe, "--save-every", 0, out="stopped")
    assert main(words) == 130
    assert main(["train", "--resume", str(world.folder / "stopped" / "train")]) == 0
    one, other = (load_state(world.folder / out / "train" / "state.safetensors") for out in ("whole", "stopped"))
    assert [name for name, value in one.tensors.items() if not torch.equal(value, other.tensors[name])] == []
    trained = load_checkpoint(world.folder / "whole" / "train" / "last.safetensors").provenance[TRAINED_SUBNETS]
    assert trained == "without-head-p5, without-stage-p5"


def test_an_unknown_subnet_is_one_sentence(world: Any, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(world.arguments(world.short_recipe(1, subnets=("without-stage-p6",)))) == 2
    assert "no head at P6; it has P4, P5" in capsys.readouterr().err


def test_a_subnet_that_was_cut_out_is_tuned_with_train_weights(world: Any, capsys: pytest.CaptureFixture[str]) -> None:
    """The approximate form, fine-tuned as a network of its own, and taken up again."""
    assert main(world.arguments(world.short_recipe(2), out="large")) == 0
    large, small = world.folder / "large" / "train" / "last.safetensors", world.folder / "small.safetensors"
    assert main(["convert", str(large), str(small), "--subnet", "without-stage-p5"]) == 0
    recipe = world.write_recipe(world.short_recipe(2))
    words = ["--data", world.shapes, "--weights", small, "--recipe", recipe, "--out", world.folder / "tuned"]
    capsys.readouterr()
    assert main(["train", *map(str, words), "--precision", "32"]) == 0
    assert "(100.0 % of the values)" in capsys.readouterr().err
    tuned = load_checkpoint(world.folder / "tuned" / "train" / "last.safetensors")
    assert tuned.graph == load_checkpoint(small).graph
    assert tuned.graph.strides == (16,)
    assert main(["train", "--resume", str(world.folder / "tuned" / "train")]) == 0


def test_a_run_that_began_before_there_were_subnets_is_still_the_same_run(world: Any) -> None:
    """Settings that a saved run does not know count as their defaults; nothing else does."""
    from scaledyolo.strict import to_mapping
    from scaledyolo.train.manifest import completed

    now = {"spec": world.narrow_spec().to_dict(), "recipes": [to_mapping(world.short_recipe())], "seed": 0}
    spec = {key: value for key, value in now["spec"].items() if key != "subnet"}
    recipe = {key: value for key, value in now["recipes"][0].items() if key != "subnets"}
    assert completed({"spec": spec, "recipes": [recipe], "seed": 0}) == now
    assert completed({"spec": spec, "recipes": [{**recipe, "batch": 8}], "seed": 0}) != now
    assert completed({"spec": 3}) == {"spec": 3}


@pytest.mark.slow
def test_a_subnet_that_learned_along_finds_more(world: Any, capsys: pytest.CaptureFixture[str]) -> None:
    import json

    found = {}
    for out, subnets in (("plain", ()), ("sandwich", ("without-stage-p5",))):
        recipe = world.short_recipe(40, subnets=subnets)
        assert main(world.arguments(recipe, "--evaluate-every", 40, out=out)) == 0
        model = str(world.folder / out / "train" / "last.safetensors")
        capsys.readouterr()
        words = ["eval", model, "--data", str(world.shapes), "--split", "val", "--json", "--subnet", "without-stage-p5"]
        assert main(words) == 0
        found[out] = json.loads(capsys.readouterr().out)["AP"]
    assert found["sandwich"] > found["plain"] + 0.1  # 0.41 and 0.18


@pytest.mark.slow
def test_two_processes_learn_what_one_learns_with_the_doubled_batch(world: Any) -> None:
    """With subnets too: both processes draw the same ones, and only the last backward pass of a step exchanges."""
    data = world.write_shapes(world.folder / "set", 10, val_count=3)
    recipe = world.short_recipe(4, subnets=("without-stage-p5", "without-head-p5"))
    for out, more in (("one", ()), ("two", ("--devices", 2, "--timeout", 120))):
        done = world.run(*world.arguments(recipe, "--freeze-norm", "--device", "cpu", *more, data=data, out=out))
        assert done.returncode == 0, done.stderr[-3000:]
    one, two = (load_checkpoint(world.folder / out / "train" / "last.safetensors").weights for out in ("one", "two"))
    for name in one:
        np.testing.assert_allclose(two[name], one[name], rtol=1e-3, atol=1e-4, err_msg=name)
