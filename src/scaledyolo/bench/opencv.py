"""The rival that everybody has: OpenCV's DNN module, with the same network and the same weights.

OpenCV 4 reads Darknet's files, OpenCV 5 only ONNX. Its Darknet importer decodes boxes inside the network, a small part
of the time that our engines spend outside.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import cv2
import numpy as np

from scaledyolo.arch.graph import Graph
from scaledyolo.bench.candidates import timed_ms
from scaledyolo.bench.jobs import OpenCvJob
from scaledyolo.convert.darknet_weights import write_weights
from scaledyolo.convert.darknet_write import write_cfg
from scaledyolo.convert.onnx_writer import to_onnx
from scaledyolo.engines.faithful import scene
from scaledyolo.errors import ConversionError, UsageError
from scaledyolo.weights import Weights

DARKNET_SUFFIX, ONNX_SUFFIX = ".cfg", ".onnx"


def reads_darknet() -> bool:
    """Whether this OpenCV reads Darknet's files: 4 does, 5 does not."""
    return int(cv2.__version__.split(".")[0]) < 5


def write_darknet_pair(graph: Graph, weights: Weights, folder: Path) -> tuple[Path, Path]:
    """Write cfg and weights of a network into a folder.

    Raises:
        ConversionError: Darknet has no layer for a node of it; names the node.
    """
    cfg, file = folder / f"{graph.name}{DARKNET_SUFFIX}", folder / f"{graph.name}.weights"
    text = write_cfg(graph)
    folder.mkdir(parents=True, exist_ok=True)
    write_weights(file, graph, weights)
    cfg.write_text(text, encoding="utf-8")
    return cfg, file


def write_for_opencv(graph: Graph, weights: Weights, folder: Path, batch: int) -> tuple[str, ...]:
    """Write a network as this OpenCV can read it best: Darknet's files where they can express it, else ONNX.

    Args:
        graph: the network, at the size at which it will run.
        weights: its weights.
        folder: where the files go.
        batch: images at a time, which ONNX fixes.

    Returns:
        The paths: cfg and weights, or one .onnx.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if reads_darknet():
        try:
            cfg, file = write_darknet_pair(graph, weights, folder)
            return str(cfg), str(file)
        except ConversionError:  # a normalisation of its own, an implicit vector: ONNX can say it
            pass
    path = folder / f"{graph.name}{ONNX_SUFFIX}"
    path.write_bytes(to_onnx(graph, weights, batch=batch).SerializeToString())
    return (str(path),)


class OpenCvCandidate:
    """A network in OpenCV's DNN module, on the CPU in float32."""

    def __init__(self, job: OpenCvJob) -> None:
        cv2.setNumThreads(job.threads)
        read = cv2.dnn.readNetFromDarknet if len(job.files) == 2 else cv2.dnn.readNetFromONNX
        try:
            self._network = read(*job.files)
            self._outputs = self._network.getUnconnectedOutLayersNames()
            self._images = np.stack([scene(3, job.height, job.width, seed) for seed in range(job.batch)])
            self.maps()
        except cv2.error as error:
            reason = str(error.err or error).strip().splitlines()[-1]
            raise UsageError(f"OpenCV {cv2.__version__} cannot run this network: {reason}") from None
        self._form = "Darknet" if len(job.files) == 2 else "ONNX"

    def maps(self) -> list[np.ndarray]:
        """Outputs of one run: decoded rows of a Darknet network, raw maps of an ONNX one."""
        self._network.setInput(self._images)
        return list(self._network.forward(self._outputs))

    def facts(self) -> dict[str, Any]:
        """What runs the network, and from which files."""
        return {
            "engine": "opencv",
            "version": cv2.__version__,
            "device": "cpu",
            "note": f"read from {self._form} files",
        }

    def sample(self) -> dict[str, Any]:
        """Run the batch once."""
        return {"ms": timed_ms(self.maps)}
