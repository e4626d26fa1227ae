"""The writers for ncnn and LiteRT: every operation and activation in those runtimes against torch."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import get_args

import numpy as np
import pytest
from numpy.typing import NDArray

from scaledyolo.arch.graph import Graph
from scaledyolo.arch.ops import Activation, Pool
from scaledyolo.convert.ncnn_writer import to_ncnn
from scaledyolo.convert.tflite_writer import to_tflite
from scaledyolo.errors import ConversionError
from scaledyolo.weights import Weights, random_weights

SPEC = importlib.util.spec_from_file_location("operation_graphs", Path(__file__).with_name("operation_graphs.py"))
assert SPEC is not None
assert SPEC.loader is not None
operation_graphs = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(operation_graphs)

Array = NDArray[np.float32]
GRAPHS: dict[str, Graph] = operation_graphs.GRAPHS
PROGRAMS = {"ncnn": "ncnn", "litert": "ai_edge_litert"}


def run(
    program: str, folder: Path, graph: Graph, weights: Weights, images: Array, *, half: bool = False
) -> list[Array]:
    """The maps of a network that is written for a runtime and run there."""
    pytest.importorskip(PROGRAMS[program])
    if program == "ncnn":
        from scaledyolo.engines.ncnn import NcnnEngine

        model = to_ncnn(graph, weights, half=half)
        (folder / "net.param").write_text(model.param)
        (folder / "net.bin").write_bytes(model.weights)
        size = (graph.height, graph.width)
        return NcnnEngine(folder / "net.param", channels=graph.channels, size=size, stride=1, threads=1).run(images)
    from scaledyolo.engines.litert import LiteRtEngine

    (folder / "net.tflite").write_bytes(to_tflite(graph, weights, batch=None, half=half))
    return LiteRtEngine(folder / "net.tflite", threads=1).run(images)


def has_padded_average(graph: Graph) -> bool:
    return any(
        isinstance(node.op, Pool) and node.op.kind == "average" and node.op.padding and node.op.stride > 1
        for node in graph
    )


@pytest.mark.parametrize("name", GRAPHS)
@pytest.mark.parametrize("program", PROGRAMS)
def test_every_operation(program: str, name: str, tmp_path: Path) -> None:
    graph = GRAPHS[name]
    weights = random_weights(graph, np.random.default_rng(0))
    images = operation_graphs.random_images(graph, batch=3)
    if program == "litert" and has_padded_average(graph):
        pytest.importorskip("ai_edge_litert")
        with pytest.raises(ConversionError, match="node 'a': average pooling with a padding"):
            to_tflite(graph, weights)
        return
    found = run(program, tmp_path, graph, weights, images)
    operation_graphs.assert_equal_maps(found, operation_graphs.by_torch(graph, weights, images))


@pytest.mark.parametrize("activation", get_args(Activation))
@pytest.mark.parametrize("program", PROGRAMS)
def test_every_activation(program: str, activation: Activation, tmp_path: Path) -> None:
    graph = operation_graphs.activation_graph(activation, 500)
    images = np.linspace(-40, 40, 3000, dtype=np.float32).reshape(1, 6, 1, 500)
    found = run(program, tmp_path, graph, {}, images)[0]
    expected = operation_graphs.by_torch(graph, {}, images)[0]
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=5e-6)


@pytest.mark.parametrize("program", PROGRAMS)
def test_half_weights_are_rounded_and_no_more(program: str, tmp_path: Path) -> None:
    graph = GRAPHS["conv"]
    weights = random_weights(graph, np.random.default_rng(0))
    images = operation_graphs.random_images(graph)
    found = run(program, tmp_path, graph, weights, images, half=True)
    expected = operation_graphs.by_torch(graph, weights, images)
    error = max(np.abs(a - b).max() / np.abs(b).max() for a, b in zip(found, expected, strict=True))
    assert 1e-6 < error < 2**-10
    weights["a.weight"] = weights["a.weight"] * np.float32(1e7)
    with pytest.raises(ConversionError, match=r"a\.weight: holds .*, which float16 cannot"):
        run(program, tmp_path, graph, weights, images, half=True)


def test_what_several_layers_read_is_copied_in_ncnn() -> None:
    graph = GRAPHS["spp"]
    lines = to_ncnn(graph, random_weights(graph, np.random.default_rng(0))).param.splitlines()
    assert lines[0] == "7767517"
    layers, blobs = map(int, lines[1].split())
    assert layers == len(lines) - 2
    read: list[str] = []
    written: list[str] = []
    for line in lines[2:]:
        _, _, num_inputs, num_outputs, *names = line.split()
        read += names[: int(num_inputs)]
        written += names[int(num_inputs) : int(num_inputs) + int(num_outputs)]
    assert len(written) == len(set(written)) == blobs
    assert len(read) == len(set(read)), "a value may be read once only"
    assert set(written) - set(read) == {"out0"}


def test_the_buffers_of_tflite_are_aligned() -> None:
    """Kernels load 16 bytes at a time; the generated code of the schema would leave buffers where they fall."""
    pytest.importorskip("ai_edge_litert")
    from scaledyolo.convert.tflite_file import import_schema, read_metadata, with_metadata

    graph = GRAPHS["concat"]
    weights = random_weights(graph, np.random.default_rng(0))
    content = to_tflite(graph, weights, metadata={"facts": "abc", "more": "ß" * 7})
    changed = with_metadata(content, {"facts": "something longer than before"})
    assert read_metadata(content, "file") == {"facts": "abc", "more": "ß" * 7}
    assert read_metadata(changed, "file") == {"facts": "something longer than before", "more": "ß" * 7}
    for file in (content, changed):
        model = import_schema().Model.GetRootAs(file, 0)
        for index in range(1, model.BuffersLength()):
            data = model.Buffers(index).DataAsNumpy()
            assert (data.ctypes.data - np.frombuffer(file, np.uint8).ctypes.data) % 16 == 0
