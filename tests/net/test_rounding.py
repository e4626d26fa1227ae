"""Rounding in training against what NNCF and OpenVINO really do, and a network that learns to live with it."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from scaledyolo.arch.graph import Graph, GraphBuilder
from scaledyolo.arch.lower import lower
from scaledyolo.arch.ops import Concat, Conv, Detect, Pool, Upsample
from scaledyolo.arch.scaling import scaled
from scaledyolo.arch.zoo import find
from scaledyolo.checkpoint import Checkpoint
from scaledyolo.convert.fold import fold
from scaledyolo.engines.faithful import relative_error, scene
from scaledyolo.export import Int8, export
from scaledyolo.net.network import Network
from scaledyolo.net.rounding import map_grid, round_map, round_weight, trained_weights
from scaledyolo.weights import Weights, random_weights

CLASSES = ("cat", "dog", "zebra crossing")
SIDE = 64
IMAGES = 6


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def pictures() -> np.ndarray:
    """Network inputs (images, 3, side, side) of exactly 256 levels."""
    return np.stack([np.round(scene(3, SIDE, SIDE, seed) * 255) / 255 for seed in range(IMAGES)]).astype(np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The pictures as files, to calibrate on."""
    place = tmp_path_factory.mktemp("pictures")
    for number, picture in enumerate(pictures()):
        pixels = np.round(picture * 255).astype(np.uint8).transpose(1, 2, 0)
        assert cv2.imwrite(str(place / f"{number}.png"), pixels[..., ::-1])
    return place


def plain_graph() -> Graph:
    """Convolutions behind each other, a pool, an enlargement and a join."""
    build = GraphBuilder()
    x = build.add("stem", Conv(8, 3, (2, 2), 1, activation="leaky"), Graph.INPUT)
    x = build.add("down", Conv(16, 3, (2, 2), 1, activation="mish"), x)
    x = fine = build.add("body", Conv(16, 3, (1, 1), 1, activation="leaky"), x)
    x = build.add("deep", Conv(16, 3, (1, 1), 1, activation="mish"), build.add("pool", Pool(2, 2, 0), x))
    x = build.add("join", Concat(), build.add("up", Upsample(2), x), fine)
    x = build.add("neck", Conv(16, 3, padding=1, activation="leaky"), x)
    x = build.add("last", Conv(8, 1, norm=False, bias=True), x)
    build.add("head", Detect(((8.0, 8.0),), (0,), 3), x)
    return Graph("plain", tuple(build.nodes), SIDE, SIDE)


def model_of(graph: Graph, weights: Weights | None = None) -> Checkpoint:
    values = random_weights(graph, np.random.default_rng(0)) if weights is None else weights
    return Checkpoint(graph=graph, weights=values, class_names=CLASSES)


def network_of(model: Checkpoint, *, quantised: bool) -> Network:
    network = Network(model.graph, quantised=quantised)
    network.load(model.weights)
    return network.eval()


def maps(network: Network, images: np.ndarray) -> list[np.ndarray]:
    with torch.inference_mode():
        return [value.numpy() for value in network(torch.from_numpy(images))]


def exported(model: Checkpoint, folder: Path, target: Path) -> Path:
    """The model in 8 bits by the plain export."""
    return export(model, target, format="openvino", int8=Int8(folder), verified=False).path


def stored_weights(path: Path) -> list[np.ndarray]:
    """The integers of every convolution in 8 bits, in order of execution."""
    import openvino

    model = openvino.Core().read_model(next(path.glob("*.xml")))
    found = []
    for node in model.get_ordered_ops():
        if node.get_type_name() == "Convolution":
            source = node.input_value(1).get_node()
            while source.get_type_name() != "Constant":
                source = source.input_value(0).get_node()
            if source.get_element_type().get_type_name() == "i8":
                found.append(np.array(source.data))
    return found


def as_integers(weight: torch.Tensor, *, first: bool) -> np.ndarray:
    """Rounded weights by the steps of their channel."""
    rounded = round_weight(weight, first=first)
    step = weight.abs().amax((1, 2, 3), keepdim=True) / (63.5 if first else 127)
    return np.round((rounded / step).numpy())


@pytest.mark.parametrize("baked", [False, True], ids=["weights in float", "as training leaves them"])
def test_weights_are_those_that_the_export_stores(folder: Path, tmp_path: Path, baked: bool) -> None:
    pytest.importorskip("nncf")
    model = model_of(plain_graph())
    if baked:
        trained = {name: value.numpy() for name, value in trained_weights(network_of(model, quantised=True))}
        assert set(trained) == {f"{name}.weight" for name in ("down", "body", "deep", "neck")}
        model = model_of(model.graph, {**model.weights, **trained})
    path = exported(model, folder, tmp_path)
    graph, folded = fold(model.graph, model.weights)
    names = [node.name for node in graph if isinstance(node.op, Conv)][:-1]
    for name, integers in zip(names, stored_weights(path), strict=True):
        ours = as_integers(torch.from_numpy(model.weights[f"{name}.weight"]), first=name == "stem")
        gain = np.sign(folded[f"{name}.weight"] * model.weights[f"{name}.weight"]).max((1, 2, 3), keepdims=True)
        np.testing.assert_array_equal(integers, ours * np.where(gain > 0, 1, -1), err_msg=name)


def ranges(path: Path) -> dict[str, tuple[float, float]]:
    """Ends of the range of each map that OpenVINO rounds, by the name of what makes or reads it."""
    import openvino

    model = openvino.Core().read_model(next(path.glob("*.xml")))
    return {
        node.get_friendly_name().split("/")[0]: tuple(
            float(node.input_value(port).get_node().data.reshape(-1)[0]) for port in (1, 2)
        )
        for node in model.get_ops()
        if node.get_type_name() == "FakeQuantize"
    }  # type: ignore[return-value]


def test_ranges_are_those_of_the_calibration(folder: Path, tmp_path: Path) -> None:
    """On the same images; those of later layers differ by as much as rounding in front of them changes the maps."""
    pytest.importorskip("nncf")
    model = model_of(plain_graph())
    found = ranges(exported(model, folder, tmp_path))
    network, seen = network_of(model, quantised=False), {}
    for name in ("stem", "down", "deep", "neck"):
        module = network.get_submodule(name)
        module.register_forward_hook(lambda _, __, value, name=name: seen.update({name: map_grid(value)}))
    maps(network, pictures())
    for name in ("stem", "down", "deep"):
        scale, zero = (float(value) for value in seen[name])
        low, high = found.get(name) or found["up"]
        assert -zero * scale == pytest.approx(low, rel=2e-3), name
        assert (255 - zero) * scale == pytest.approx(high, rel=2e-3), name


def run_in_8_bits(path: Path, images: np.ndarray) -> list[np.ndarray]:
    """Maps of an exported file; what is not in 8 bits is computed in float32."""
    import openvino

    core = openvino.Core()
    network = core.read_model(next(path.glob("*.xml")))
    compiled = core.compile_model(network, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    answer = compiled(images)
    return [answer[output] for output in compiled.outputs]


SPECS = {"tiny": ("yolov4-tiny", 1 / 4, 1.0), "csp": ("yolov4-csp", 1 / 8, 1 / 4), "p5": ("yolov4-p5", 1 / 16, 1 / 4)}


def network_named(name: str) -> Checkpoint:
    if name == "plain":
        return model_of(plain_graph())
    base, width, depth = SPECS[name]
    return model_of(lower(scaled(find(base), width=width, depth=depth, size=SIDE).with_classes(3)))


@pytest.mark.parametrize(
    "name", ["plain", "tiny", *(pytest.param(name, marks=pytest.mark.slow) for name in ("csp", "p5"))]
)
def test_as_much_is_lost_as_in_openvino(name: str, folder: Path, tmp_path: Path) -> None:
    """Where a value falls on the grid is chance in a deep network; how much rounding adds up to is not."""
    pytest.importorskip("nncf")
    model = network_named(name)
    eight = run_in_8_bits(exported(model, folder, tmp_path), pictures())
    rounded, plain = (maps(network_of(model, quantised=choice), pictures()) for choice in (True, False))
    assert relative_error(rounded, plain) == pytest.approx(relative_error(eight, plain), rel=0.1)


@pytest.mark.parametrize("name", ["plain", "tiny"])
def test_on_the_same_grids_the_maps_are_the_same(
    name: str, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Given the ranges of the exported file, which calibration took from the float network."""
    pytest.importorskip("nncf")
    model = network_named(name)
    path = exported(model, folder, tmp_path)
    known = np.array(list(ranges(path).values()))

    def nearest_grid(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        scale, zero = (float(value) for value in map_grid(values))
        distances = np.abs(known - np.array([-zero * scale, (255 - zero) * scale])).max(1)
        low, high = known[np.argmin(distances)]
        step = (high - low) / 255
        return torch.tensor(step, dtype=torch.float32), torch.tensor(round(-low / step), dtype=torch.int32)

    plain = maps(network_of(model, quantised=False), pictures())
    monkeypatch.setattr("scaledyolo.net.rounding.map_grid", nearest_grid)
    eight, rounded = run_in_8_bits(path, pictures()), maps(network_of(model, quantised=True), pictures())
    assert relative_error(eight, rounded) < (1e-4 if name == "plain" else 0.4) * relative_error(eight, plain)


def test_a_network_learns_to_live_with_8_bits(folder: Path, tmp_path: Path) -> None:
    """Its float maps are the target, so training in float would change nothing; the error is that of the real export.

    Some channels are a hundred times as large as others, so that one scale for a map leaves few levels for those.
    """
    pytest.importorskip("nncf")
    graph, random = plain_graph(), np.random.default_rng(1)
    weights = dict(model_of(graph).weights)
    for before, after in (("stem", "down"), ("neck", "last")):
        factors = np.exp(np.log(100) * random.uniform(-0.5, 0.5, graph.out_channels(before))).astype(np.float32)
        for key in ("weight", "bias"):
            weights[f"{before}.norm.{key}"] = weights[f"{before}.norm.{key}"] * factors
        weights[f"{after}.weight"] = weights[f"{after}.weight"] / factors[:, None, None]
    uneven = model_of(graph, weights)
    target = maps(network_of(uneven, quantised=False), pictures())
    lost = relative_error(run_in_8_bits(exported(uneven, folder, tmp_path), pictures()), target)

    network = network_of(uneven, quantised=True)
    optimiser = torch.optim.Adam(network.parameters(), lr=5e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, 100)
    images, wanted = torch.from_numpy(pictures()), torch.from_numpy(target[0])
    for _ in range(100):
        optimiser.zero_grad()
        (network(images)[0] - wanted).square().mean().backward()
        optimiser.step()
        schedule.step()
    trained = {name: value.numpy() for name, value in trained_weights(network)}
    learnt = model_of(graph, {**network.weights(), **trained})
    left = relative_error(run_in_8_bits(exported(learnt, folder, tmp_path), pictures()), target)
    assert lost > 0.2  # 0.363
    assert left < 0.6 * lost  # 0.146


@settings(max_examples=60, deadline=None)
@given(st.floats(1e-3, 1e3), st.floats(1e-3, 1e3))
def test_grids_are_those_of_nncf(below: float, high: float) -> None:
    """Also where an end has to move out, so that zero is on the grid."""
    pytest.importorskip("nncf")
    from nncf.quantization.fake_quantize import tune_range
    from nncf.tensor import Tensor

    place = 255 * below / (below + high)
    assume(0.51 < place < 254.49)  # else NNCF leaves zero off the grid
    assume(abs(place % 1 - 0.5) > 1e-3)
    low, top = (float(end.data) for end in tune_range(Tensor(np.float32(-below)), Tensor(np.float32(high)), 8))
    values = torch.zeros(2, 1, 2, 2)
    values[:, 0, 0, 0], values[:, 0, 0, 1] = -below, high
    scale, zero = (float(value) for value in map_grid(values))
    assert -zero * scale == pytest.approx(low, rel=1e-4)
    assert (255 - zero) * scale == pytest.approx(top, rel=1e-4)
    rounded = round_map(values)
    assert (rounded[:, :, 1] == 0).all()
    assert float((rounded - values).abs().max()) <= 0.51 * scale


def test_maps_without_values_stay_what_they_are() -> None:
    assert torch.equal(round_map(torch.zeros(1, 2, 3, 3)), torch.zeros(1, 2, 3, 3))
    assert torch.equal(round_weight(torch.zeros(2, 2, 1, 1)), torch.zeros(2, 2, 1, 1))
    ones = torch.ones(1, 2, 3, 3)
    assert torch.allclose(round_map(ones), ones)
    assert torch.allclose(round_map(-ones), -ones)


def test_gradients_pass_through() -> None:
    weight = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(0)).requires_grad_()
    factor = torch.randn(4, 3, 3, 3, generator=torch.Generator().manual_seed(1))
    (round_weight(weight, first=True) * factor).sum().backward()
    assert torch.equal(weight.grad, factor)
    values = torch.linspace(-1, 3, 48).reshape(1, 3, 4, 4)
    values = torch.cat([values, 0.5 * values]).requires_grad_()  # the mean of the extremes lies inside the first image
    round_map(values).sum().backward()
    outside = (values < -0.76) | (values > 2.26)
    assert outside.any()
    assert torch.equal(values.grad, (~outside).float())


def test_a_network_that_is_not_quantised_has_nothing_of_it() -> None:
    graph = plain_graph()
    plain, rounded = Network(graph), Network(graph, quantised=True)
    assert list(trained_weights(plain)) == []
    assert list(plain.state_dict()) == list(rounded.state_dict()) == list(graph.parameters)
