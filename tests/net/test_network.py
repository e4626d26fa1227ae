"""The torch network: names, strictness, training behaviour, and that it can be copied, converted and exported."""

from __future__ import annotations

import copy
import pickle
import weakref
from dataclasses import replace
from typing import get_args

import numpy as np
import pytest
import torch
from torch import nn

from scaledyolo.arch.graph import Graph, GraphBuilder
from scaledyolo.arch.lower import lower
from scaledyolo.arch.ops import Activate, Activation, Add, BatchNorm, ChannelSplit, Concat, Conv, Detect, Implicit, Pool
from scaledyolo.arch.zoo import ZOO
from scaledyolo.errors import CheckpointError, SpecError
from scaledyolo.net.network import Network, without_head_logistic
from scaledyolo.weights import random_weights


def small_graph(activation: Activation = "leaky", *, activated: bool = False, head: Activation = "linear") -> Graph:
    """Residual, split, concatenation with its own normalisation, implicit vectors, one head of 12 channels."""
    b = GraphBuilder()
    with b.scope("backbone"):
        x = b.add("stem", Conv(8, 3, (2, 2), 1, activation=activation), Graph.INPUT)
        y = b.add("conv", Conv(8, 3, padding=1, groups=2, activation=activation), x)
        x = b.add("sum", Add(activation, weights="per_input", normalization="softmax"), x, y)
        half = b.add("half", ChannelSplit(2, 1), x)
        pooled = b.add("pool", Pool(2, 1, 1), half)
        x = b.add("join", Concat(), x, half, pooled)
        x = b.add("norm", BatchNorm(activation), x)
    x = b.add("head.shift", Implicit("add"), x)
    x = b.add("head.conv", Conv(12, norm=False, bias=True, activation=head), x)
    b.add("head.yolo", Detect(((4.0, 4.0), (8.0, 8.0)), (0, 1), 1, activated=activated), x)
    return Graph("small", tuple(b.nodes), 16, 16, norm_eps=1e-3, norm_momentum=0.25)


@pytest.fixture
def network() -> Network:
    return Network(small_graph())


def test_state_dict_is_graph_parameters(network: Network) -> None:
    state = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    assert state == dict(network.graph.parameters)


@pytest.mark.parametrize("name", ["yolov4-tiny", "yolov4-csp", "yolov4-p5", "csresnext50-panet-spp"])
def test_state_dict_of_the_zoo_is_graph_parameters(name: str) -> None:
    graph = lower(ZOO[name])
    with torch.device("meta"):
        state = Network(graph).state_dict()
    assert {key: tuple(tensor.shape) for key, tensor in state.items()} == dict(graph.parameters)


def test_weights_come_back_as_they_went_in(network: Network) -> None:
    weights = random_weights(network.graph, np.random.default_rng(0))
    network.load(weights)
    back = network.weights()
    assert list(back) == list(network.graph.parameters)
    for name, array in weights.items():
        assert np.array_equal(back[name], array), name
    back["backbone.stem.weight"][:] = 0  # a copy, not a view
    assert np.array_equal(network.weights()["backbone.stem.weight"], weights["backbone.stem.weight"])


def test_loading_is_strict(network: Network) -> None:
    weights = random_weights(network.graph, np.random.default_rng(0))
    missing = {name: array for name, array in weights.items() if name != "head.conv.bias"}
    with pytest.raises(CheckpointError, match=r"'head.conv.bias' of shape \(12,\) is missing"):
        network.load(missing)
    with pytest.raises(CheckpointError, match=r"shape \(12,\), the weights have \(11,\)"):
        network.load(weights | {"head.conv.bias": np.zeros(11, np.float32)})
    with pytest.raises(CheckpointError, match=r"'head.conv.biass'.*Did you mean 'head.conv.bias'"):
        network.load(weights | {"head.conv.biass": np.zeros(12, np.float32)})


def test_plain_state_dict_loads_strictly(network: Network) -> None:
    plain = dict(network.state_dict())
    result = network.load_state_dict(plain, strict=True)
    assert not result.missing_keys
    assert not result.unexpected_keys
    assert list(plain) == list(network.graph.parameters)


@pytest.mark.parametrize("activation", get_args(Activation))
def test_gradients_are_those_of_finite_differences(activation: Activation) -> None:
    """In-place activations must not disturb the backward pass."""
    torch.manual_seed(0)
    network = Network(small_graph(activation)).double()
    network.load(random_weights(network.graph, np.random.default_rng(1)))
    images = torch.rand(1, 3, 6, 6, dtype=torch.float64, requires_grad=True)
    network.eval()
    assert torch.autograd.gradcheck(lambda x: network(x)[0].sum((1, 2, 3)), (images,), atol=1e-5)
    network.train()
    network(images)[0].square().sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_training_updates_running_statistics_with_momentum(network: Network) -> None:
    images = torch.rand(4, 3, 16, 16)
    stem = network.get_submodule("backbone.stem")
    mean = nn.functional.conv2d(images, stem.weight, stride=2, padding=1).mean((0, 2, 3))
    network.train()(images)
    torch.testing.assert_close(stem.norm.running_mean, 0.25 * mean, atol=1e-6, rtol=1e-4)
    assert stem.norm.eps == 1e-3


def test_forward_changes_nothing_in_eval(network: Network) -> None:
    network.eval()
    before = network.weights()
    images = torch.rand(2, 3, 16, 16)
    copied = images.clone()
    first, second = network(images)[0], network(images)[0]
    assert torch.equal(first, second)
    assert torch.equal(images, copied)
    for name, array in network.weights().items():
        assert np.array_equal(array, before[name])


def test_dead_values_are_freed() -> None:
    b = GraphBuilder()
    x = Graph.INPUT
    for index in range(6):
        x = b.add(f"conv{index}", Conv(6, norm=False), x)
    b.add("yolo", Detect(((1.0, 1.0),), (0,), 1), x)
    network = Network(Graph("chain", tuple(b.nodes), 4, 4))
    alive: list[weakref.ref[torch.Tensor]] = []
    peak = []

    def watch(_module: nn.Module, _inputs: object, output: torch.Tensor) -> None:
        alive.append(weakref.ref(output))
        peak.append(sum(reference() is not None for reference in alive))

    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            module.register_forward_hook(watch)
    with torch.inference_mode():
        network(torch.rand(1, 3, 4, 4))
    assert max(peak) <= 2  # what a convolution reads and what it writes


@pytest.mark.parametrize("channels_last", [False, True])
def test_inference_form_equals_training_form(channels_last: bool) -> None:
    for activation in get_args(Activation):
        graph = small_graph(activation)
        weights = random_weights(graph, np.random.default_rng(2))
        images = torch.rand(2, 3, 18, 22)
        maps = []
        for options in ({}, {"inference": True, "fast_mish": True}):
            network = Network(graph, **options).eval()
            network.load(weights)
            if channels_last:
                network = network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
                images = images.contiguous(memory_format=torch.channels_last)
            with torch.no_grad():
                maps.append(network(images)[0])
        torch.testing.assert_close(maps[0], maps[1], atol=1e-5, rtol=1e-5)


def test_logits_drop_the_logistic_of_activated_heads() -> None:
    graph = small_graph(activated=True, head="logistic")
    weights = random_weights(graph, np.random.default_rng(0))
    images = torch.rand(1, 3, 16, 16)
    activated, logits = Network(graph).eval(), Network(graph, logits=True).eval()
    activated.load(weights)
    logits.load(weights)
    torch.testing.assert_close(activated(images)[0], logits(images)[0].sigmoid())
    assert logits.graph == graph
    with pytest.raises(SpecError, match="does not end in a logistic"):
        Network(small_graph(activated=True), logits=True)
    unmarked = small_graph(head="logistic")
    assert without_head_logistic(unmarked).nodes == unmarked.nodes


def test_logistic_that_others_read_cannot_be_dropped() -> None:
    graph = small_graph(activated=True, head="logistic")
    yolo = graph.nodes[-1]
    shared = graph.with_nodes((*graph.nodes, replace(yolo, name="head.second")))
    with pytest.raises(SpecError, match=r"head\.yolo"):
        without_head_logistic(shared)


def test_synchronised_normalisation_keeps_names_and_results(network: Network) -> None:
    network.load(random_weights(network.graph, np.random.default_rng(3)))
    images = torch.rand(1, 3, 16, 16)
    expected = network.eval()(images)[0]
    converted = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(network))
    assert isinstance(converted.get_submodule("backbone.norm"), nn.SyncBatchNorm)
    assert set(converted.state_dict()) == set(network.graph.parameters)
    assert torch.equal(converted.eval()(images)[0], expected)
    converted.load(random_weights(network.graph, np.random.default_rng(4)))
    assert not torch.equal(converted(images)[0], expected)
    assert torch.equal(network(images)[0], expected)


def test_copies_are_independent(network: Network) -> None:
    images = torch.rand(1, 3, 16, 16)
    expected = network.eval()(images)[0]
    for twin in (copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert torch.equal(twin(images)[0], expected)
        with torch.no_grad():
            for parameter in twin.parameters():
                parameter.add_(1.0)
        assert not torch.equal(twin(images)[0], expected)
        assert torch.equal(network(images)[0], expected)


def test_path_that_is_node_and_scope_is_refused() -> None:
    b = GraphBuilder()
    x = b.add("stage", Conv(6), Graph.INPUT)
    b.add("stage", Activate("relu"), x)
    inner = b.add("stage.conv.deep", Conv(6), Graph.INPUT)
    x = b.add("stage.conv", Conv(6), inner)
    b.add("yolo", Detect(((1.0, 1.0),), (0,), 1), x)
    nodes = tuple(node for node in b.nodes if not isinstance(node.op, Activate))
    with pytest.raises(SpecError, match=r"'stage\.conv' is a node and the beginning of another's path"):
        Network(Graph("clash", nodes, 4, 4))


@pytest.mark.slow
def test_network_exports_with_free_sizes(network: Network) -> None:
    images = torch.rand(2, 3, 16, 16)
    free = {0: torch.export.Dim("batch"), 2: torch.export.Dim.AUTO, 3: torch.export.Dim.AUTO}
    exported = torch.export.export(network.eval(), (images,), dynamic_shapes=(free,)).module()
    other = torch.rand(3, 3, 24, 20)
    torch.testing.assert_close(exported(other)[0], network(other)[0])
