"""The Core ML writer. Apple's runtime is not to be had here, so the program itself is computed, operation by operation.

The interpreter below follows the documentation of MIL's operations and knows nothing of the writer.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from scaledyolo.arch.graph import Graph
from scaledyolo.arch.lower import lower
from scaledyolo.arch.ops import Activation, DepthToSpace, Reorg
from scaledyolo.arch.zoo import ZOO
from scaledyolo.errors import ConversionError
from scaledyolo.weights import random_weights

pytest.importorskip("cattrs")
pytest.importorskip("coremltools", exc_type=ImportError)

SPEC = importlib.util.spec_from_file_location("operation_graphs", Path(__file__).with_name("operation_graphs.py"))
assert SPEC is not None
assert SPEC.loader is not None
operation_graphs = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(operation_graphs)

Array = NDArray[np.float32]
Inputs = dict[str, Any]


def conv(i: Inputs) -> Tensor:
    top, bottom, left, right = i["pad"]
    padded = F.pad(i["x"], (left, right, top, bottom))
    return F.conv2d(padded, i["weight"], i["bias"], tuple(i["strides"]), 0, tuple(i["dilations"]), i["groups"])


def max_pool(i: Inputs) -> Tensor:
    top, bottom, left, right = i["pad"]
    padded = F.pad(i["x"], (left, right, top, bottom), value=-float("inf"))
    return F.max_pool2d(padded, tuple(i["kernel_sizes"]), tuple(i["strides"]))


def avg_pool(i: Inputs) -> Tensor:
    assert i["exclude_padding_from_average"]
    top, bottom, left, right = i["pad"]
    pads, kernel, strides = (left, right, top, bottom), tuple(i["kernel_sizes"]), tuple(i["strides"])
    total = F.avg_pool2d(F.pad(i["x"], pads), kernel, strides)
    share = F.avg_pool2d(F.pad(torch.ones_like(i["x"]), pads), kernel, strides)
    return total / share


def slice_by_size(i: Inputs) -> Tensor:
    x = i["x"]
    for axis, (begin, size) in enumerate(zip(i["begin"], i["size"], strict=True)):
        x = x.narrow(axis, begin, x.shape[axis] - begin if size == -1 else size)
    return x


def slice_by_index(i: Inputs) -> Tensor:
    parts = []
    for axis in range(4):
        begin = None if i["begin_mask"][axis] else int(i["begin"][axis])
        end = None if i["end_mask"][axis] else int(i["end"][axis])
        parts.append(slice(begin, end, int(i["stride"][axis])))
    return i["x"][tuple(parts)]


def enlarge(i: Inputs) -> Tensor:
    height, width = int(i["scale_factor_height"]), int(i["scale_factor_width"])
    return i["x"].repeat_interleave(height, 2).repeat_interleave(width, 3)


def pad(i: Inputs) -> Tensor:
    assert i["mode"] == "constant"
    pairs = list(zip(i["pad"][::2], i["pad"][1::2], strict=True))
    return F.pad(i["x"], [side for pair in reversed(pairs) for side in pair], value=float(i["constant_val"]))


OPERATIONS: Mapping[str, Callable[[Inputs], Tensor]] = {
    "conv": conv,
    "max_pool": max_pool,
    "avg_pool": avg_pool,
    "slice_by_size": slice_by_size,
    "slice_by_index": slice_by_index,
    "upsample_nearest_neighbor": enlarge,
    "pad": pad,
    "identity": lambda i: i["x"],
    "add": lambda i: i["x"] + i["y"],
    "mul": lambda i: i["x"] * i["y"],
    "real_div": lambda i: i["x"] / i["y"],
    "minimum": lambda i: torch.minimum(i["x"], i["y"]),
    "exp": lambda i: torch.exp(i["x"]),
    "concat": lambda i: torch.cat(i["values"], dim=int(i["axis"])),
    "reduce_mean": lambda i: i["x"].mean(tuple(i["axes"]), keepdim=bool(i["keep_dims"])),
    "leaky_relu": lambda i: F.leaky_relu(i["x"], float(i["alpha"])),
    "relu": lambda i: F.relu(i["x"]),
    "relu6": lambda i: F.relu6(i["x"]),
    "silu": lambda i: F.silu(i["x"]),
    "sigmoid": lambda i: torch.sigmoid(i["x"]),
    "tanh": lambda i: torch.tanh(i["x"]),
    "elu": lambda i: F.elu(i["x"], float(i["alpha"])),
    "gelu": lambda i: F.gelu(i["x"], approximate={"TANH_APPROXIMATION": "tanh"}[i["mode"]]),
    "sigmoid_hard": lambda i: torch.clamp(i["x"] * float(i["alpha"]) + float(i["beta"]), 0, 1),
}
PLAIN = {"strides", "dilations", "pad", "kernel_sizes", "begin", "size", "stride", "begin_mask", "end_mask", "axes"}


def compute(program: Any, images: Array) -> dict[str, Array]:
    """The outputs of a MIL program by name."""
    function = program.functions["main"]
    (name,) = function.inputs
    values: dict[str, Any] = {name: torch.from_numpy(images)}

    def value(key: str, item: Any) -> Any:
        if isinstance(item, (list, tuple)):
            return [value(key, part) for part in item]
        found = values[item.name]
        is_number = isinstance(found, (np.ndarray, np.generic)) and found.dtype.kind == "f"
        if is_number and key not in PLAIN:
            return torch.as_tensor(found)
        return found.tolist() if isinstance(found, (np.ndarray, np.generic)) else found

    for operation in function.operations:
        (output,) = operation.outputs
        if operation.op_type == "const":
            values[output.name] = output.val
            continue
        inputs = {key: value(key, item) for key, item in operation.inputs.items() if item is not None}
        values[output.name] = OPERATIONS[operation.op_type](inputs)
        assert tuple(values[output.name].shape) == tuple(output.shape)
    return {output.name: values[output.name].numpy() for output in function.outputs}


UNWRITTEN = (DepthToSpace, Reorg)


@pytest.mark.parametrize("name", operation_graphs.GRAPHS)
def test_every_operation(name: str) -> None:
    from scaledyolo.convert.coreml_writer import to_program

    graph: Graph = operation_graphs.GRAPHS[name]
    weights = random_weights(graph, np.random.default_rng(0))
    if any(isinstance(node.op, UNWRITTEN) for node in graph):
        with pytest.raises(ConversionError, match="node 'a': .* is not written for Core ML"):
            to_program(graph, weights)
        return
    images = operation_graphs.random_images(graph)
    found = compute(to_program(graph, weights, batch=2), images)
    assert list(found) == ["yolo"]
    operation_graphs.assert_equal_maps(list(found.values()), operation_graphs.by_torch(graph, weights, images))


@pytest.mark.parametrize("activation", get_args(Activation))
def test_every_activation(activation: Activation) -> None:
    from scaledyolo.convert.coreml_writer import to_program

    graph = operation_graphs.activation_graph(activation, 500)
    images = np.linspace(-40, 40, 3000, dtype=np.float32).reshape(1, 6, 1, 500)
    (found,) = compute(to_program(graph, {}), images).values()
    (expected,) = operation_graphs.by_torch(graph, {}, images)
    np.testing.assert_allclose(found, expected, rtol=2e-5, atol=5e-6)


@pytest.mark.parametrize("name", ["yolov4-tiny", pytest.param("yolov4-p5", marks=pytest.mark.slow)])
def test_networks_of_the_zoo(name: str) -> None:
    from scaledyolo.convert.coreml_writer import to_program

    graph = lower(ZOO[name]).with_size(64, 64)
    weights = random_weights(graph, np.random.default_rng(0))
    images = operation_graphs.random_images(graph, batch=1)
    found = compute(to_program(graph, weights), images)
    assert list(found) == [head.name.replace(".", "_") for head in graph.heads]
    expected = operation_graphs.by_torch(graph, weights, images)
    operation_graphs.assert_equal_maps(list(found.values()), expected, tolerance=1e-4)
