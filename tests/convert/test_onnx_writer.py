"""The ONNX writer: every operation and activation in torch, ONNX Runtime, OpenCV, OpenVINO and onnx's own evaluator."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path
from typing import get_args

import cv2
import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.typing import NDArray
from onnx.reference import ReferenceEvaluator

from scaledyolo.arch.graph import Graph, GraphBuilder
from scaledyolo.arch.lower import lower
from scaledyolo.arch.ops import (
    Activation,
    Conv,
    Detect,
)  # fmt: skip
from scaledyolo.arch.zoo import ZOO
from scaledyolo.convert import onnx_writer
from scaledyolo.convert.onnx_writer import to_onnx
from scaledyolo.errors import CheckpointError, ConversionError, UsageError
from scaledyolo.weights import random_weights

SPEC = importlib.util.spec_from_file_location("operation_graphs", Path(__file__).with_name("operation_graphs.py"))
assert SPEC is not None
assert SPEC.loader is not None
operation_graphs = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(operation_graphs)

Array = NDArray[np.float32]
IMAGE, GRAPHS = operation_graphs.IMAGE, operation_graphs.GRAPHS
activation_graph, assert_equal_maps = operation_graphs.activation_graph, operation_graphs.assert_equal_maps
by_torch, random_images = operation_graphs.by_torch, operation_graphs.random_images
graph_of = operation_graphs.graph_of


def by_onnxruntime(model: onnx.ModelProto, images: Array) -> list[Array]:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(model.SerializeToString(), options)
    outputs: list[Array] = session.run(None, {"images": images})
    return outputs


def by_opencv(model: onnx.ModelProto, images: Array) -> list[Array]:
    net = cv2.dnn.readNetFromONNX(np.frombuffer(model.SerializeToString(), np.uint8))
    if hasattr(net, "enableWinograd"):
        net.enableWinograd(False)  # it trades accuracy for speed
    net.setInput(images)
    outputs: list[Array] = list(net.forward([output.name for output in model.graph.output]))
    return outputs


def by_openvino(model: onnx.ModelProto, images: Array) -> list[Array]:
    openvino = pytest.importorskip("openvino")
    core = openvino.Core()
    compiled = core.compile_model(
        core.read_model(model.SerializeToString()), "CPU",
        {"INFERENCE_PRECISION_HINT": "f32", "INFERENCE_NUM_THREADS": 1},
    )  # fmt: skip
    found = compiled(images)
    return [np.asarray(found[index]) for index in range(len(compiled.outputs))]


def by_reference(model: onnx.ModelProto, images: Array) -> list[Array]:
    outputs: list[Array] = ReferenceEvaluator(model).run(None, {"images": images})
    return outputs


PROGRAMS = {"onnxruntime": by_onnxruntime, "opencv": by_opencv, "openvino": by_openvino, "reference": by_reference}
# onnx's evaluator mixes up sides in this pool (pads 0, 0, 1, 1 enlarge the width twice); the three engines agree.
UNABLE = {("reference", "max pool 2/1 of 6x5")}


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_every_operation(program: str, name: str) -> None:
    if (program, name) in UNABLE:
        pytest.skip("a fault of the other program")
    graph = GRAPHS[name]
    weights = random_weights(graph, np.random.default_rng(0))
    model = to_onnx(graph, weights, batch=2)
    onnx.checker.check_model(model, full_check=True)
    images = random_images(graph)
    assert_equal_maps(PROGRAMS[program](model, images), by_torch(graph, weights, images))


@pytest.mark.parametrize("name", GRAPHS)
def test_free_batch_and_size(name: str) -> None:
    """One model for any batch and size gives what a model made for that size gives."""
    graph = GRAPHS[name]
    weights = random_weights(graph, np.random.default_rng(0))
    model = to_onnx(graph, weights, batch=None, dynamic=True)
    onnx.checker.check_model(model, full_check=True)
    session = onnxruntime.InferenceSession(model.SerializeToString())
    for batch, factor in ((1, 1), (2, 2), (7, 1)):
        images = np.random.default_rng(2).normal(
            size=(batch, graph.channels, graph.height * factor, graph.width * factor)
        ).astype(np.float32)  # fmt: skip
        assert_equal_maps(session.run(None, {"images": images}), by_torch(graph, weights, images))


@pytest.mark.parametrize("activation", get_args(Activation))
@pytest.mark.parametrize("program", PROGRAMS)
def test_every_activation(program: str, activation: Activation) -> None:
    graph = activation_graph(activation, 500)
    images = np.linspace(-40, 40, 3000, dtype=np.float32).reshape(1, 6, 1, 500)
    found = PROGRAMS[program](to_onnx(graph, {}), images)[0]
    expected = by_torch(graph, {}, images.astype(np.float32))[0]
    np.testing.assert_allclose(found, expected, rtol=2e-6, atol=5e-6)


def mish64(x: NDArray[np.floating]) -> NDArray[np.float64]:
    wide = x.astype(np.float64)
    return wide * np.tanh(np.log1p(np.exp(np.minimum(wide, 700))))


def test_exact_mish_is_exact_everywhere() -> None:
    """Relative error below 1e-6 from where float32 underflows up to its largest numbers."""
    graph = activation_graph("mish", 50_000)
    images = np.linspace(-80, 60, 300_000).astype(np.float32)
    images[-6:] = (88.0, 89.0, 1e3, 1e6, 1e20, 1e38)
    found = by_onnxruntime(to_onnx(graph, {}), images.reshape(1, 6, 1, -1))[0].ravel()
    np.testing.assert_allclose(found, mish64(images), rtol=1e-6)
    extreme = activation_graph("mish", 1)
    low = np.array([-1e38, -1e10, -1e4, -200, -104, 0], np.float32)
    values = by_onnxruntime(to_onnx(extreme, {}), low.reshape(1, 6, 1, 1))[0].ravel()
    assert np.abs(values[3:]).max() < 1e-35
    assert np.isfinite(values).all()


def test_sigmoid_mish_survives_half_precision() -> None:
    graph = activation_graph("mish", 1000)
    model = to_onnx(graph, {}, mish="sigmoid")
    images = np.linspace(-30, 30, 6000, dtype=np.float32).reshape(1, 6, 1, -1)
    np.testing.assert_allclose(by_onnxruntime(model, images)[0], mish64(images), rtol=1e-5, atol=1e-5)
    for tensor in model.graph.initializer:
        half_tensor = onnx.numpy_helper.to_array(tensor).astype(np.float16)
        tensor.CopyFrom(onnx.numpy_helper.from_array(half_tensor, tensor.name))
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.FLOAT16
    half = np.concatenate([images.ravel()[:-4], [-6e4, -1e3, 1e3, 6e4]]).astype(np.float16)
    with np.errstate(over="ignore", invalid="ignore"):  # on the side its sigmoid throws away
        found = by_reference(model, half.reshape(images.shape))[0].ravel()  # type: ignore[arg-type]
    np.testing.assert_allclose(found.astype(np.float64), mish64(half), rtol=5e-3, atol=5e-3)


def test_native_mish_is_one_operator_of_opset_18() -> None:
    model = to_onnx(activation_graph("mish", 1000), {}, mish="native")
    assert model.opset_import[0].version == 18
    assert "Mish" in {node.op_type for node in model.graph.node}
    onnx.checker.check_model(model, full_check=True)
    images = np.linspace(-30, 30, 6000, dtype=np.float32).reshape(1, 6, 1, -1)
    np.testing.assert_allclose(by_reference(model, images)[0], mish64(images), rtol=1e-5, atol=1e-5)


def two_heads(name: str = "yolo") -> Graph:
    """Heads that share a map, a head on the image, a map that is read on."""
    b = GraphBuilder(6)
    x = b.add("conv", Conv(6, activation="leaky"), IMAGE)
    detect = Detect(((1.0, 1.0),), (0,), 1)
    b.add(f"{name}1", detect, x)
    y = b.add("deeper", Conv(6), x)
    b.add(f"{name}2", detect, y)
    b.add(f"{name}3", detect, x)
    b.add(f"{name}4", detect, IMAGE)
    return Graph("heads", tuple(b.nodes), 4, 4, channels=6)


def test_outputs_are_named_by_the_heads_and_values_by_the_nodes() -> None:
    graph = two_heads()
    weights = random_weights(graph, np.random.default_rng(0))
    model = to_onnx(graph, weights, batch=2)
    onnx.checker.check_model(model, full_check=True)
    assert [output.name for output in model.graph.output] == ["yolo1", "yolo2", "yolo3", "yolo4"]
    images = random_images(graph)
    assert_equal_maps(by_onnxruntime(model, images), by_torch(graph, weights, images))
    names = [node.name for node in model.graph.node]
    assert len(set(names)) == len(names)
    deep = to_onnx(GRAPHS["spp"], {})
    assert {"p5", "p9", "p13", "yolo"} == {node.name for node in deep.graph.node}


def test_metadata_batch_and_versions() -> None:
    graph = two_heads()
    weights = random_weights(graph, np.random.default_rng(0))
    model = to_onnx(graph, weights, metadata={"names": '["person"]', "stride": "32"})
    assert {item.key: item.value for item in model.metadata_props} == {"names": '["person"]', "stride": "32"}
    assert model.opset_import[0].version == 17
    shape = [dim.dim_value or dim.dim_param for dim in model.graph.input[0].type.tensor_type.shape.dim]
    assert shape == [1, 6, 4, 4]
    free = to_onnx(graph, weights, batch=None, dynamic=True).graph.input[0].type.tensor_type.shape.dim
    assert [dim.dim_value or dim.dim_param for dim in free] == ["batch", 6, "height", "width"]


def test_wrong_options_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    graph = two_heads()
    weights = random_weights(graph, np.random.default_rng(0))
    with pytest.raises(UsageError, match="Did you mean 'sigmoid'"):
        to_onnx(graph, weights, mish="sigmoit")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="batch of 0"):
        to_onnx(graph, weights, batch=0)
    with pytest.raises(CheckpointError):
        to_onnx(graph, {})
    monkeypatch.setattr(onnx_writer, "_MAX_BYTES", 10)
    with pytest.raises(ConversionError, match="2 GiB"):
        to_onnx(graph, weights)


def test_onnx_is_imported_by_those_who_write() -> None:
    code = "import sys, scaledyolo.convert.onnx_writer; assert not {'onnx', 'torch'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)


QUICK = ("yolov4-tiny", "yolov3-tiny", "yolov2-tiny")


@pytest.mark.parametrize("name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in ZOO])
def test_zoo_network_in_onnxruntime_equals_torch(name: str) -> None:
    graph = lower(ZOO[name])
    graph = graph.with_size(graph.max_stride, 2 * graph.max_stride)
    weights = random_weights(graph, np.random.default_rng(0))
    images = np.random.default_rng(1).random((1, 3, graph.height, graph.width), np.float32)
    model = to_onnx(graph, weights)
    assert_equal_maps(by_onnxruntime(model, images), by_torch(graph, weights, images), 1e-4)


@pytest.mark.parametrize(
    "name", ["yolov4-tiny", *(pytest.param(n, marks=pytest.mark.slow) for n in ("yolov2", "yolov4-csp", "yolov4-p5"))]
)
@pytest.mark.parametrize("program", ["opencv", "openvino"])
def test_zoo_network_in_other_programs_equals_torch(program: str, name: str) -> None:
    graph = lower(ZOO[name])
    graph = graph.with_size(graph.max_stride, 2 * graph.max_stride)
    weights = random_weights(graph, np.random.default_rng(0))
    images = np.random.default_rng(1).random((1, 3, graph.height, graph.width), np.float32)
    model = to_onnx(graph, weights)
    onnx.checker.check_model(model, full_check=True)
    assert_equal_maps(PROGRAMS[program](model, images), by_torch(graph, weights, images), 1e-4)
