"""YOLOv7-tiny as Darknet joins it: the same layers, whose concatenations go the other way round."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from scaledyolo.arch.cost import cost
from scaledyolo.arch.graph import Graph
from scaledyolo.arch.lower import lower
from scaledyolo.arch.ops import Concat
from scaledyolo.arch.zoo import find
from scaledyolo.checkpoint import load_checkpoint
from scaledyolo.convert.conversion import convert
from scaledyolo.convert.darknet_cfg import NORM_EPS, read_cfg, write_cfg
from scaledyolo.convert.darknet_weights import write_weights
from scaledyolo.convert.onnx_writer import to_onnx
from scaledyolo.weights import Weights, random_weights

SIDE = 96  # pixels


def turned_nodes(graph: Graph) -> list[str]:
    """The concatenations inside ELANs and of the two branches of the pooling block, not that of the pools."""
    return [node.name for node in graph if isinstance(node.op, Concat) and node.name.endswith(".concat")]


def darknet_cfg(graph: Graph) -> str:
    """The cfg of the network with these concatenations in ascending order: [y0, y1, z1, z2] and [bypass, main]."""
    text = write_cfg(graph)
    sections = re.split(r"(?m)^(?=\[)", text)
    numbers = {node: index for index, node in enumerate(read_cfg(text).sections) if node is not None}
    named = dict(zip((node.name for node in graph), (node.name for node in read_cfg(text).graph), strict=True))
    for name in turned_nodes(graph):
        index = numbers[named[name]] + 2  # the comment before [net], and [net]
        layers = re.search(r"layers=(.*)", sections[index])
        assert layers is not None
        turned = ",".join(reversed(layers[1].split(",")))
        sections[index] = sections[index].replace(layers[0], f"layers={turned}")
    return "".join(sections)


def turned_weights(graph: Graph, weights: Weights) -> Weights:
    """The weights with the input channels of what reads these concatenations in the other order of blocks."""
    turned = dict(weights)
    for name in turned_nodes(graph):
        ends = np.cumsum([graph.out_channels(source) for source in graph[name].inputs])[:-1]
        (reader,) = graph.consumers[name]
        blocks = np.split(weights[f"{reader}.weight"], ends, axis=1)
        turned[f"{reader}.weight"] = np.concatenate(blocks[::-1], axis=1)
    return turned


@pytest.fixture(scope="module")
def network() -> Graph:
    """The network of the zoo with Darknet's epsilon, at a small size."""
    return replace(lower(find("yolov7-tiny")).with_size(SIDE, SIDE), norm_eps=NORM_EPS)


def test_it_has_the_size_of_the_published_file(network: Graph) -> None:
    figures = read_cfg(darknet_cfg(network)).graph
    assert cost(figures).params == 6_227_101
    assert cost(figures).weights_bytes == 24_967_560
    assert (cost(figures, 416, 416).macs, cost(figures, 320, 320).macs) == (2_894_275_072, 1_712_588_800)


def test_a_converted_pair_computes_what_the_zoo_does_with_permuted_weights(network: Graph, tmp_path: Path) -> None:
    cfg = tmp_path / "yolov7-tiny.cfg"
    cfg.write_text(darknet_cfg(network))
    theirs = read_cfg(cfg).graph
    weights = random_weights(network, np.random.default_rng(0))
    turned = turned_weights(network, weights)
    arrays = {new: turned[old] for old, new in zip(network.parameters, theirs.parameters, strict=True)}
    write_weights(cfg.with_suffix(".weights"), theirs, arrays)
    convert(cfg.with_suffix(".weights"), tmp_path / "converted.safetensors")
    converted = load_checkpoint(tmp_path / "converted.safetensors")
    assert converted.graph.norm_eps == NORM_EPS
    image = np.random.default_rng(1).random((1, 3, SIDE, SIDE), np.float32)
    found = []
    for graph, values in ((network, weights), (converted.graph, converted.weights)):
        session = onnxruntime.InferenceSession(to_onnx(graph, values).SerializeToString())
        found.append(session.run(None, {session.get_inputs()[0].name: image}))
    for first, second in zip(*found, strict=True):
        np.testing.assert_allclose(first, second, rtol=0, atol=1e-4 * np.abs(first).max())
