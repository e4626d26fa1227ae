"""Compare engines on one network, in turns within one run, so that ratios hold on a busy machine.

    python benchmarks/engines.py [--model yolov4-tiny] [--size 416] [--batch 1] [--threads 1] [--rounds 10]

Prints the median time of each and its ratio to ONNX Runtime. Weights are random: speed does not depend on them.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import torch
import tyro
from numpy.typing import NDArray

from scaledyolo.arch.lower import lower
from scaledyolo.arch.zoo import find
from scaledyolo.convert.onnx_writer import to_onnx
from scaledyolo.engines.onnxruntime import OnnxRuntimeEngine
from scaledyolo.engines.openvino import OpenVinoEngine, available_precisions, import_openvino
from scaledyolo.engines.torch import TorchEngine
from scaledyolo.net.network import Network
from scaledyolo.weights import random_weights

Run = Callable[[], object]


@dataclass(frozen=True)
class Options:
    """What to measure."""

    model: str = "yolov4-tiny"
    size: int = 416  # pixels, height and width
    batch: int = 1
    threads: int = 1
    rounds: int = 10


def contestants(options: Options) -> dict[str, Run]:
    """Every way to run the network, ready to be called."""
    graph = lower(find(options.model)).with_size(options.size, options.size)
    weights = random_weights(graph, np.random.default_rng(0))
    images = np.random.default_rng(1).random((options.batch, graph.channels, options.size, options.size), np.float32)
    torch.set_num_threads(options.threads)
    cv2.setNumThreads(options.threads)
    fixed_model = to_onnx(graph, weights, batch=options.batch).SerializeToString()
    free = OnnxRuntimeEngine.from_graph(graph, weights, threads=options.threads)
    fixed = OnnxRuntimeEngine(fixed_model, threads=options.threads)
    folded = TorchEngine(graph, weights)
    eager = Network(graph).eval()
    eager.load(weights)
    runs: dict[str, Run] = {
        "onnxruntime": lambda: free.run(images),
        "onnxruntime, fixed size": lambda: fixed.run(images),
        "torch, folded, channels last": lambda: folded.run(images),
        "torch, as trained": lambda: _eager(eager, images),
        "opencv": _opencv(fixed_model, images),
    }
    for precision in available_precisions("cpu"):
        engine = OpenVinoEngine.from_graph(graph, weights, threads=options.threads, precision=precision)
        runs[f"openvino, {precision}"] = partial(engine.run, images)
    runs["openvino, float32, bare"] = _bare_openvino(fixed_model, images, options.threads)
    return runs


def _bare_openvino(model: bytes, images: NDArray[np.float32], threads: int) -> Run:
    """The runtime without our engine around it: what that costs is the difference."""
    core = import_openvino().Core()
    hints = {"INFERENCE_PRECISION_HINT": "f32", "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": str(threads)}
    request = core.compile_model(core.read_model(model), "CPU", hints).create_infer_request()
    return lambda: request.infer({0: images}, share_inputs=True, share_outputs=True)


def _eager(network: Network, images: NDArray[np.float32]) -> object:
    with torch.inference_mode():
        return network(torch.from_numpy(images))


def _opencv(model: bytes, images: NDArray[np.float32]) -> Run:
    net = cv2.dnn.readNetFromONNX(np.frombuffer(model, np.uint8))
    names = net.getUnconnectedOutLayersNames()

    def run() -> object:
        net.setInput(images)
        return net.forward(names)

    return run


def main(options: Options) -> None:
    """Measure in turns and print medians and ratios."""
    runs = contestants(options)
    times: dict[str, list[float]] = {name: [] for name in runs}
    for run in runs.values():
        run()
    for _ in range(options.rounds):
        for name, run in runs.items():
            start = time.perf_counter()
            run()
            times[name].append(time.perf_counter() - start)
    first = statistics.median(times["onnxruntime"])
    print(f"{options.model} {options.size}x{options.size}, batch {options.batch}, {options.threads} thread(s)")
    for name, values in times.items():
        median = statistics.median(values)
        print(f"{name:30s} {1e3 * median:9.1f} ms   {median / first:5.2f} x")


if __name__ == "__main__":
    main(tyro.cli(Options))
