"""The whole chain from a Darknet cfg and weights to decoded boxes, against OpenCV's own Darknet reader and executor.

OpenCV parses the same two files with its own parser and runs the network with its own kernels and its own region layer,
so this test sees mistakes in the cfg reader, the weight order, the writer of both, the ONNX writer and the decoding.
Weights are random but well-conditioned: activations stay of order one through all layers.
"""

from __future__ import annotations

import re
from pathlib import Path

import cv2
import numpy as np
import onnxruntime
import pytest

from scaledyolo.arch.graph import Graph
from scaledyolo.arch.lower import lower
from scaledyolo.arch.ops import Add, Conv, Detect
from scaledyolo.arch.zoo import ZOO
from scaledyolo.convert.darknet_cfg import read_cfg, write_cfg
from scaledyolo.convert.darknet_weights import read_weights, write_weights
from scaledyolo.convert.onnx_writer import to_onnx
from scaledyolo.postprocess.decode import decode_all

# OpenCV sets class scores of [yolo] up to this to zero. Those of [region] it compares with the cfg's ``thresh``, and
# then suppresses overlapping boxes by setting more of them to zero.
OPENCV_THRESHOLD = 0.2


def random_weights(graph: Graph, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights of variance 1 / fan-in, normalisation near the identity, residual branches damped, lively predictions."""
    rng = np.random.default_rng(seed)
    arrays: dict[str, np.ndarray] = {}
    for node in graph:
        readers = [graph[name].op for name in graph.consumers[node.name]]
        residual = any(isinstance(op, Add) for op in readers)
        heads = [op for op in readers if isinstance(op, Detect)]
        for key, shape in node.op.parameters(*graph.in_channels(node)).items():
            if key == "weight" and isinstance(node.op, Conv):
                array = rng.normal(0, np.prod(shape[1:]) ** -0.5, shape)
            elif key.endswith("running_var"):
                array = rng.uniform(0.8, 1.2, shape)
            elif key.endswith("norm.weight"):
                array = rng.uniform(0.9, 1.1, shape) * (0.4 if residual else 1.0)
            else:
                array = rng.normal(0, 1.5 if heads else 0.1, shape)
                if heads and key == "bias":
                    array[4 :: heads[0].num_outputs] = 3.0  # sure of all objects, so that class scores can be seen
            arrays[f"{node.name}.{key}"] = array.astype(np.float32)
    return arrays


def our_rows(graph: Graph, weights: dict[str, np.ndarray], image: np.ndarray) -> list[np.ndarray]:
    """For each head (cells * anchors, 5 + classes) in OpenCV's order (by cell, then anchor), boxes relative."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(to_onnx(graph, weights).SerializeToString(), options)
    maps = session.run(None, {session.get_inputs()[0].name: image})
    rows = []
    for raw, op in zip(maps, graph.detects, strict=True):
        decoded = np.asarray(decode_all([raw], [op], (graph.height, graph.width)))[0]
        decoded = decoded.reshape(len(op.mask), -1, op.num_outputs).swapaxes(0, 1).reshape(-1, op.num_outputs)
        decoded[:, :4] /= (graph.width, graph.height, graph.width, graph.height)
        decoded[:, 5:] *= decoded[:, 4:5]
        rows.append(decoded)
    return rows


def assert_parity(text: str, folder: Path, tolerance: float = 1e-3) -> None:
    """OpenCV and we give the same boxes and scores for the network of this cfg and random weights."""
    graph = read_cfg(text, name="parity").graph
    cfg, weights = folder / "parity.cfg", folder / "parity.weights"
    cfg.write_text(text)
    write_weights(weights, graph, random_weights(graph))
    image = np.random.default_rng(1).random((1, 3, graph.height, graph.width), dtype=np.float32)

    network = cv2.dnn.readNetFromDarknet(str(cfg), str(weights))
    network.setInput(image)
    theirs = network.forward(network.getUnconnectedOutLayersNames())
    ours = our_rows(graph, dict(read_weights(weights, graph).arrays), image)

    assert len(theirs) == len(ours) == len(graph.heads)
    seen = 0
    for expected, actual, op in zip(theirs, ours, graph.detects, strict=True):
        assert np.isfinite(expected).all()
        scale = np.abs(expected[:, :4]).max(axis=0)
        np.testing.assert_allclose(actual[:, :4] / scale, expected[:, :4] / scale, atol=tolerance)
        np.testing.assert_allclose(actual[:, 4], expected[:, 4], atol=tolerance)
        shown = expected[:, 5:] > 0
        np.testing.assert_allclose(actual[:, 5:][shown], expected[:, 5:][shown], atol=tolerance)
        assert op.decoding == "region" or (actual[:, 5:][~shown] < OPENCV_THRESHOLD + tolerance).all()
        seen += int(shown.sum())
    assert seen > 10, "no class score above OpenCV's threshold: the test compares nothing"


def resized(text: str, side: int) -> str:
    """The cfg with another input size, and with a threshold of [region] that hides nothing."""
    text = re.sub(r"(?m)^thresh\s*=.*", "thresh=0.001", text)
    return re.sub(r"(?m)^(width|height)\s*=\s*\d+", rf"\1={side}", text)


@pytest.mark.shared
@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("darknet_cfg/yolov3-tiny", 96),
        ("darknet_cfg/yolov4-tiny", 96),
        ("weights/yolo-fastest-1.1", 128),
        ("weights/yolo-fastest-1.1-xl", 128),
        *(
            pytest.param(f"darknet_cfg/{name}", 128, marks=pytest.mark.slow)
            for name in ("yolov2", "yolov3", "yolov3-spp", "yolov4", "yolov4-csp", "yolov4-p5")
        ),
    ],
)
def test_published_cfgs_run_as_in_opencv(name, side, shared, tmp_path):
    assert_parity(resized((shared / f"{name}.cfg").read_text(), side), tmp_path)


@pytest.mark.parametrize(
    ("name", "side"),
    [
        ("yolov4-tiny-3l", 96),
        ("yolov4-csp-s", 128),
        ("table9-cosa-3x1x", 96),
        ("yolov7-tiny", 96),
        *(
            pytest.param(name, side, marks=pytest.mark.slow)
            for name, side in (
                ("yolov2-tiny", 96),
                ("yolov4-csp-swish", 96),
                ("csresnext50-panet-spp-original-optimal", 96),
                ("yolov4-p6-cfg", 64),
                ("yolov7", 64),
                ("yolov7-cfg", 64),
                ("yolov7x", 64),
            )
        ),
    ],
)
def test_cfgs_that_we_write_run_in_opencv_as_the_graph_they_came_from(name, side, tmp_path):
    assert_parity(write_cfg(lower(ZOO[name]).with_size(side, side)), tmp_path)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["yolo-fastest-1.1", "yolo-fastest-1.1-xl"])
def test_trained_weights_find_the_same_in_a_photograph(name, shared):
    cfg, weights = (shared / "weights" / f"{name}.{suffix}" for suffix in ("cfg", "weights"))
    photographs = sorted(path for path in (shared / "images").rglob("*") if path.suffix in {".jpg", ".png"})
    image = cv2.imread(str(photographs[0]))
    graph = read_cfg(cfg).graph
    blob = cv2.dnn.blobFromImage(image, 1 / 255, (graph.width, graph.height), swapRB=True)
    network = cv2.dnn.readNetFromDarknet(str(cfg), str(weights))
    network.setInput(blob)
    theirs = network.forward(network.getUnconnectedOutLayersNames())
    ours = our_rows(graph, dict(read_weights(weights, graph).arrays), blob)
    for expected, actual in zip(theirs, ours, strict=True):
        np.testing.assert_allclose(actual[:, :5], expected[:, :5], atol=1e-3)
        shown = expected[:, 5:] > 0
        np.testing.assert_allclose(actual[:, 5:][shown], expected[:, 5:][shown], atol=1e-3)


CONV = """[convolutional]
batch_normalize={norm}
filters={filters}
size={size}
stride={stride}
pad=1
activation={activation}
"""


def conv(filters: int, size: int = 1, stride: int = 1, activation: str = "leaky", norm: int = 1, more: str = "") -> str:
    return CONV.format(filters=filters, size=size, stride=stride, activation=activation, norm=norm) + more


SECTIONS = {
    "grouped convolution": conv(16, 3, more="groups=4\n"),
    "even kernel": conv(8, 3) + "[maxpool]\nsize=2\nstride=1\n",
    "odd pooling": "[maxpool]\nsize=3\nstride=2\n" + conv(8),
    "pooling with its own padding": "[maxpool]\nsize=3\nstride=1\npadding=2\n",
    "swish": conv(8, 3, activation="swish"),
    "mish": conv(8, 3, activation="mish"),
    "logistic": conv(8, 3, activation="logistic"),
    "relu": conv(8, 3, activation="relu"),
    "tanh": conv(8, 3, activation="tanh"),
    "biased convolution": conv(8, 3, norm=0),
    "upsampling": conv(8) + "[upsample]\nstride=2\n[maxpool]\nsize=2\nstride=2\n",
    "shortcut": conv(8) + "[shortcut]\nfrom=-2\nactivation=leaky\n",
    "shortcut of fewer channels": conv(12) + "[shortcut]\nfrom=-2\nactivation=linear\n",
    "shortcut of more channels": conv(4) + "[shortcut]\nfrom=-2\nactivation=linear\n",
    "route of groups": conv(8) + "[route]\nlayers=-1\ngroups=4\ngroup_id=3\n",
    "route of three": conv(4) + conv(6) + "[route]\nlayers=-1,-2,0\n",
    "scaled channels": "[avgpool]\n" + conv(8, activation="logistic", norm=0) + "[scale_channels]\nfrom=0\n",
    "dropout": "[dropout]\nprobability=.5\n" + conv(8),
    "reorg": "[reorg]\nstride=2\n[upsample]\nstride=2\n",
}


@pytest.mark.parametrize("name", SECTIONS)
def test_sections_compute_what_opencv_computes(name, tmp_path):
    head = "[yolo]\nmask=0,1\nanchors=9,12, 20,14\nclasses=2\nnum=2\nscale_x_y=1.1\n"
    prediction = conv(14, activation="linear", norm=0)
    text = "[net]\nwidth=64\nheight=32\nchannels=3\n" + conv(8, 3, 4) + SECTIONS[name] + prediction + head
    assert_parity(text, tmp_path, tolerance=1e-4)
