"""Engines: one answer from all of them, any batch and size, threads, and clear refusals."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from scaledyolo.arch.graph import Graph
from scaledyolo.arch.lower import lower
from scaledyolo.arch.zoo import ZOO
from scaledyolo.convert.onnx_writer import to_onnx
from scaledyolo.engines import ENGINES, Engine, open_engine
from scaledyolo.engines.onnxruntime import OnnxRuntimeEngine
from scaledyolo.engines.torch import TorchEngine
from scaledyolo.errors import CheckpointError, FormatError, MissingPackageError, UsageError
from scaledyolo.net.network import Network
from scaledyolo.weights import Weights, random_weights


@pytest.fixture(scope="module")
def graph() -> Graph:
    return lower(ZOO["yolov4-tiny"])


@pytest.fixture(scope="module")
def weights(graph: Graph) -> Weights:
    return random_weights(graph, np.random.default_rng(0))


@pytest.fixture(scope="module")
def reference(graph: Graph, weights: Weights) -> Network:
    """The training network, unfolded, in float64."""
    network = Network(graph).eval()
    network.load(weights)
    return network.double()


@pytest.fixture(scope="module", params=list(ENGINES))
def engine(request: pytest.FixtureRequest, graph: Graph, weights: Weights) -> Engine:
    return open_engine(request.param, graph, weights, device="cpu", threads=1)


def images_of(batch: int, height: int, width: int) -> np.ndarray:
    return np.random.default_rng(batch + height).random((batch, 3, height, width), np.float32)


@pytest.mark.parametrize(("batch", "height", "width"), [(1, 64, 96), (2, 96, 64), (7, 32, 32)])
def test_engines_equal_the_unfolded_network(
    engine: Engine, reference: Network, batch: int, height: int, width: int
) -> None:
    images = images_of(batch, height, width)
    found = engine.run(images)
    with torch.inference_mode():
        expected = reference(torch.from_numpy(images).double())
    assert len(found) == len(expected) == 2
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == np.float32
        assert a.flags.c_contiguous
        assert np.abs(a - b.numpy()).max() <= 1e-5 * b.abs().max()


def test_engines_describe_themselves(engine: Engine) -> None:
    assert isinstance(engine, Engine)
    assert engine.name in ENGINES
    assert engine.version[0].isdigit()
    assert (engine.device, engine.size, engine.batch) == ("cpu", None, None)


def test_maps_belong_to_the_caller_and_images_are_left_alone(engine: Engine) -> None:
    images = images_of(1, 32, 32)
    before = images.copy()
    first = engine.run(images)
    kept = [raw.copy() for raw in first]
    engine.run(images_of(1, 32, 64))
    engine.run(1 - images)
    assert all(np.array_equal(a, b) for a, b in zip(first, kept, strict=True))
    assert np.array_equal(images, before)
    first[0][:] = 0  # writable


def test_arrays_that_are_not_contiguous(engine: Engine) -> None:
    images = images_of(2, 64, 64)
    turned = np.ascontiguousarray(images.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for a, b in zip(engine.run(images), engine.run(turned), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_runs_from_several_threads(engine: Engine) -> None:
    batches = [images_of(1, 32 * (1 + index % 3), 64) for index in range(12)]
    expected = [engine.run(batch) for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(engine.run, batches))
    for one, other in zip(found, expected, strict=True):
        for a, b in zip(one, other, strict=True):
            np.testing.assert_allclose(a, b, atol=1e-6)


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (np.zeros((1, 3, 32, 32), np.uint8), "float32 images .* got uint8"),
        (np.zeros((3, 32, 32), np.float32), r"got float32 of shape \(3, 32, 32\)"),
        (np.zeros((1, 32, 32, 3), np.float32), "channels first"),
        (np.zeros((1, 3, 32, 50), np.float32), "multiples of 32, got 32x50"),
        (np.zeros((0, 3, 32, 32), np.float32), "at least one image"),
        ([[1.0]], "got list"),
    ],
)
def test_wrong_images_are_refused(engine: Engine, images: np.ndarray, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        engine.run(images)


def test_fixed_models_refuse_other_sizes(graph: Graph, weights: Weights, tmp_path: Path) -> None:
    path = tmp_path / "tiny.onnx"
    model = to_onnx(graph.with_size(64, 32), weights, batch=2, metadata={"a": "b"})
    path.write_bytes(model.SerializeToString())
    engine = OnnxRuntimeEngine(path, threads=1)
    assert (engine.size, engine.batch, engine.metadata) == ((64, 32), 2, {"a": "b"})
    assert engine.heads == tuple(head.name for head in graph.heads)
    assert [raw.shape for raw in engine.run(images_of(2, 64, 32))] == [(2, 255, 2, 1), (2, 255, 4, 2)]
    with pytest.raises(UsageError, match="images of 64x32, got 32x64"):
        engine.run(images_of(2, 32, 64))
    with pytest.raises(UsageError, match="batches of 2, got 1"):
        engine.run(images_of(1, 64, 32))


def test_damaged_models_are_refused(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="ONNX Runtime cannot load it"):
        OnnxRuntimeEngine(b"no model")
    with pytest.raises(FormatError, match="missing.onnx"):
        OnnxRuntimeEngine(tmp_path / "missing.onnx")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"engine": "onnxruntme"}, "Did you mean 'onnxruntime'"),
        ({"device": "cuda:x"}, "Did you mean 'cuda'"),
        ({"device": "tpu"}, "there is no device 'tpu'; known are auto, cpu, cuda"),
        ({"engine": "openvino", "device": "gpu"}, "OpenVINO finds no 'gpu' here|sees no"),
        ({"engine": "onnxruntime", "half": True}, "float32"),
        ({"engine": "torch", "device": "cpu", "half": True}, "needs device 'cuda'"),
        ({"threads": 0}, "0 threads"),
        ({"engine": "torch", "threads": -1}, "-1 threads"),
    ],
)
def test_wrong_options_are_refused(graph: Graph, weights: Weights, options: dict[str, object], message: str) -> None:
    chosen = {"engine": "auto", **options}
    name = str(chosen.pop("engine"))
    with pytest.raises(UsageError, match=message):
        open_engine(name, graph, weights, **chosen)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="for machines without a GPU")
@pytest.mark.parametrize("name", list(ENGINES))
def test_a_missing_gpu_is_said(name: str, graph: Graph, weights: Weights) -> None:
    with pytest.raises(UsageError, match=r"install onnxruntime-gpu|sees no GPU|could not start|cannot use 'cuda'"):
        open_engine(name, graph, weights, device="cuda")


def test_wrong_weights_are_refused(graph: Graph) -> None:
    for name in ENGINES:
        with pytest.raises(CheckpointError):
            open_engine(name, graph, {})


def test_auto_is_openvino_where_it_is_installed(
    graph: Graph, weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("openvino")
    assert open_engine("auto", graph, weights, device="cpu").name == "openvino"
    monkeypatch.setitem(sys.modules, "openvino", None)
    assert open_engine("auto", graph, weights, device="cpu").name == "onnxruntime"
    with pytest.raises(MissingPackageError, match="pip install openvino"):
        open_engine("openvino", graph, weights, device="cpu")


def test_without_torch_the_extra_is_named(graph: Graph, weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "scaledyolo.engines.torch")
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(MissingPackageError, match=r"scaledyolo\[train\]"):
        open_engine("torch", graph, weights)


def test_torch_runs_a_shape_once_before_the_first_image_where_that_is_slow(graph: Graph, weights: Weights) -> None:
    engine = TorchEngine(graph, weights, threads=1)
    shapes: list[tuple[int, ...]] = []
    engine._forward = lambda images: shapes.append(tuple(images.shape)) or []  # type: ignore[func-returns-value]
    engine.prepare(2, 64, 96)
    assert not shapes, "a CPU has nothing to prepare"
    engine._slow_at_first = True  # as on a GPU, which records a shape when it is first met
    for _ in range(2):
        engine.prepare(2, 64, 96)
    assert shapes == [(2, 3, 64, 96)]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("half", [False, True])
def test_torch_on_a_gpu(half: bool, graph: Graph, weights: Weights, reference: Network) -> None:
    images = images_of(2, 64, 64)
    found = TorchEngine(graph, weights, device="cuda", half=half).run(images)
    with torch.inference_mode():
        expected = reference(torch.from_numpy(images).double())
    for a, b in zip(found, expected, strict=True):
        # TF32 convolutions keep ten bits of the mantissa, as float16 does.
        assert np.abs(a - b.numpy()).max() <= 1e-2 * b.abs().max()
