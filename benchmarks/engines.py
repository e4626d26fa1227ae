"""Compare engines on one network, in turns within one run, so that ratios hold on a busy machine.

    python benchmarks/engines.py [--model yolov4-tiny] [--size 416] [--batch 1] [--threads 2] [--rounds 10]

Prints the median time of each, and how many times as fast the default is: what `Detector` opens when nothing is said.
``bare`` is the runtime without our engine around it, with the same model, precision and threads. ``as it is`` is
Mish as its formula stands, as other exporters write it; ours write its algebraic form. Weights are random: speed does
not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import cv2
import numpy as np
import onnx
import torch
import tyro
from numpy.typing import NDArray

from scaledyolo import Checkpoint, Graph
from scaledyolo.arch.lower import lower
from scaledyolo.arch.zoo import find
from scaledyolo.bench.timing import interleaved
from scaledyolo.classes import default_names
from scaledyolo.convert.onnx_writer import to_onnx
from scaledyolo.engines import describe_engine
from scaledyolo.engines.onnxruntime import OnnxRuntimeEngine
from scaledyolo.engines.openvino import PRECISIONS, OpenVinoEngine, available_precisions, import_openvino
from scaledyolo.engines.torch import TorchEngine
from scaledyolo.host import usable_cores
from scaledyolo.net.network import Network
from scaledyolo.runnable import open_runnable
from scaledyolo.weights import Weights, random_weights

Images = NDArray[np.float32]
Run = Callable[[], object]
DEFAULT = "default"
_MISH_PARTS = ("cut", "exp", "exp_plus_two", "numerator", "denominator", "ratio")  # of the algebraic form


@dataclass(frozen=True)
class Options:
    """What to measure."""

    model: str = "yolov4-tiny"
    size: int = 416  # pixels, height and width
    batch: int = 1
    threads: int | None = None  # by default one for each core
    rounds: int = 10
    torch: bool = True  # whether torch takes part; as trained it is far slower than all others
    # Times as fast as rivals that the default has to be; not met: exit code 1.
    goal_opencv: float | None = None
    goal_onnxruntime: float | None = None
    goal_bare: float = 0.9


def contestants(options: Options, threads: int) -> dict[str, Run]:
    """Every way to run the network, ready to be called; the default first."""
    graph = lower(find(options.model)).with_size(options.size, options.size)
    weights = random_weights(graph, np.random.default_rng(0))
    images = np.random.default_rng(1).random((options.batch, graph.channels, options.size, options.size), np.float32)
    model = to_onnx(graph, weights, batch=options.batch)
    fixed = model.SerializeToString()
    runs: dict[str, Run] = {}

    names = default_names(graph.detects[0].num_classes)
    checkpoint = Checkpoint(graph=graph, weights=weights, class_names=names)
    default = open_runnable(checkpoint, threads=options.threads)
    print(f"default: {describe_engine(default.engine)}")
    runs[DEFAULT] = partial(default.run, images)
    for precision in available_precisions("cpu"):
        engine = OpenVinoEngine.from_graph(graph, weights, threads=options.threads, precision=precision)
        runs[f"openvino, {precision}"] = partial(engine.run, images)
        runs[f"openvino, {precision}, bare"] = _bare_openvino(fixed, images, options.threads, precision)
    runs["onnxruntime"] = partial(OnnxRuntimeEngine(fixed, threads=threads).run, images)
    plain = with_plain_mish(model).SerializeToString()
    if plain != fixed:
        runs["onnxruntime, mish as it is"] = partial(OnnxRuntimeEngine(plain, threads=threads).run, images)
    runs["opencv"] = _opencv(plain, images, threads)
    if options.torch:
        runs |= _torch(graph, weights, images, threads)
    return runs


def with_plain_mish(model: onnx.ModelProto) -> onnx.ModelProto:
    """The same network with Mish as x tanh(softplus(x)), which OpenCV takes for its own layer."""
    result = onnx.ModelProto()
    result.CopyFrom(model)
    nodes: list[onnx.NodeProto] = []
    mish: set[str] = set()  # results of the algebraic form
    for node in model.graph.node:
        output, _, part = node.output[0].rpartition(".")
        if node.op_type == "Min" and part == "cut":
            mish.add(output)
            (source, _), steps = node.input, (f"{output}.softplus", f"{output}.tanh")
            nodes.append(onnx.helper.make_node("Softplus", [source], [steps[0]]))
            nodes.append(onnx.helper.make_node("Tanh", [steps[0]], [steps[1]]))
            nodes.append(onnx.helper.make_node("Mul", [source, steps[1]], [output]))
        elif not (node.output[0] in mish or (output in mish and part in _MISH_PARTS)):
            nodes.append(node)
    del result.graph.node[:]
    result.graph.node.extend(nodes)
    return result


def _bare_openvino(model: bytes, images: Images, threads: int | None, precision: str) -> Run:
    core = import_openvino().Core()
    hints = {"INFERENCE_PRECISION_HINT": PRECISIONS[precision], "PERFORMANCE_HINT": "LATENCY"}
    if threads is not None:
        hints["INFERENCE_NUM_THREADS"] = str(threads)
    request = core.compile_model(core.read_model(model), "CPU", hints).create_infer_request()
    return lambda: request.infer({0: images}, share_inputs=True, share_outputs=True)


def _torch(graph: Graph, weights: Weights, images: Images, threads: int) -> dict[str, Run]:
    folded = TorchEngine(graph, weights, threads=threads)
    eager = Network(graph).eval()
    eager.load(weights)

    def as_trained() -> object:
        with torch.inference_mode():
            return eager(torch.from_numpy(images))

    return {"torch": partial(folded.run, images), "torch, as trained": as_trained}


def _opencv(model: bytes, images: Images, threads: int) -> Run:
    cv2.setNumThreads(threads)
    net = cv2.dnn.readNetFromONNX(np.frombuffer(model, np.uint8))
    names = net.getUnconnectedOutLayersNames()

    def run() -> object:
        net.setInput(images)
        return net.forward(names)

    return run


def main(options: Options) -> int:
    """Measure in turns, print medians and ratios; 1 where a goal is missed."""
    threads = options.threads or usable_cores()
    runs = contestants(options, threads)
    timings = interleaved(runs, rounds=options.rounds, warmup=2)
    default = timings[DEFAULT]
    print(f"{options.model} {options.size}x{options.size}, batch {options.batch}, {threads} thread(s)")
    for name, timing in timings.items():
        times = timing.median_ms / default.median_ms
        print(
            f"  {name:28} {timing.median_ms:9.1f} ms  noise {timing.noise:4.2f}   default is {times:6.2f} times as fast"
        )
    # Within a round the machine was the same: the median of ratios holds where a ratio of medians may not.
    rival = "onnxruntime, mish as it is" if "onnxruntime, mish as it is" in runs else "onnxruntime"
    goals = {"opencv": options.goal_opencv, rival: options.goal_onnxruntime}
    for precision in available_precisions("cpu"):
        goals[f"openvino, {precision}, bare"] = None
    missed = 0
    for name, goal in goals.items():
        own = name.removesuffix(", bare") if name.endswith("bare") else DEFAULT
        pairs = zip(timings[name].samples_ms, timings[own].samples_ms, strict=True)
        ratio = float(np.median([other / mine for other, mine in pairs]))
        goal = options.goal_bare if name.endswith("bare") else goal
        verdict = "" if goal is None else f" (goal {goal:g}: {'reached' if ratio >= goal else 'MISSED'})"
        print(f"{own} runs at {ratio:.2f} times the speed of {name}{verdict}")
        missed += goal is not None and ratio < goal
    return int(missed > 0)


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Options)))
