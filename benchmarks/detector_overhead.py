"""What the detector adds to the network, on one core: medians in milliseconds, and the network itself for comparison.

    OMP_NUM_THREADS=1 python benchmarks/detector_overhead.py [--network]

The engine is replaced by one that returns prepared maps, so that the same number of boxes survives whatever the
weights; everything else is the detector as users call it: an array of 480 x 640 pixels goes in, supervision.Detections
come out. The maps hold more candidates above the threshold than a busy street. Decoding the JPEG is not part of it.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np
from numpy.typing import NDArray

from scaledyolo import Checkpoint, Detector, Graph, load_graph
from scaledyolo.classes import COCO_NAMES
from scaledyolo.detector import STAGES, StageTimes
from scaledyolo.weights import random_weights

# Name, input side, milliseconds that resizing, decoding and suppressing may take together.
CASES = (("yolov4-tiny", 416, 1.5), ("yolov4-csp-s", 640, 3.0))
OBJECTS, CANDIDATES_EACH = 24, 6
ROUNDS, CALLS = 15, 20


class PreparedEngine:
    """An engine that has computed everything already."""

    name, version, device, precision = "prepared", "", "cpu", "float32"
    size = batch = None

    def __init__(self, maps: Sequence[NDArray[np.float32]]) -> None:
        self.maps = list(maps)

    def run(self, images: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        """The maps, whatever the images."""
        return self.maps


def busy_maps(graph: Graph, side: int) -> list[NDArray[np.float32]]:
    """Raw maps of one image: quiet background, and some neighbouring cells and anchors that are sure of each object."""
    rng = np.random.default_rng(0)
    maps = []
    for detect, stride in zip(graph.detects, graph.strides, strict=True):
        cells, anchors = side // stride, len(detect.mask)
        raw = rng.normal(0, 1, (1, anchors, detect.num_outputs, cells, cells)).astype(np.float32)
        raw[:, :, 4] = raw[:, :, 4] * 1.5 - 8
        raw[:, :, 5:] -= 6
        for _ in range(OBJECTS // len(graph.strides)):
            y, x, class_id = rng.integers(0, (cells - 1, cells - 2, detect.num_classes))
            for number in range(CANDIDATES_EACH):
                place = (0, rng.integers(anchors), slice(None), y + number // 3, x + number % 3)
                raw[place][:4] *= 0.3
                raw[place][4] = 2
                raw[place][5 + class_id] = 3
        maps.append(raw.reshape(1, -1, cells, cells))
    return maps


def stage_rounds(detector: Detector, image: NDArray[np.uint8]) -> dict[str, list[float]]:
    """Milliseconds of each stage, and of making the result, in every round."""
    rows: dict[str, list[float]] = {stage: [] for stage in (*STAGES, "result")}
    for _ in range(ROUNDS):
        detector.times = StageTimes()
        start = time.perf_counter()
        for _ in range(CALLS):
            detector(image)
        total = 1e3 * (time.perf_counter() - start) / CALLS
        stages = detector.times.milliseconds_per_image()
        for stage, value in stages.items():
            rows[stage].append(value)
        rows["result"].append(total - sum(stages.values()))
    return rows


def main() -> None:
    """Print one block for each case."""
    cv2.setNumThreads(1)
    image = np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8)
    for name, side, budget in CASES:
        graph = load_graph(name)
        checkpoint = Checkpoint(
            graph=graph, class_names=COCO_NAMES, weights=random_weights(graph, np.random.default_rng(0))
        )
        detector = Detector(checkpoint, size=side, engine="onnxruntime", threads=1)
        network = None
        if "--network" in sys.argv:
            network = statistics.median(stage_rounds(detector, image)["network"])
        maps = busy_maps(graph, side)
        detector.views = (replace(detector.views[0], run=PreparedEngine(maps).run),)
        found = len(detector(image))
        rounds = stage_rounds(detector, image)
        del rounds["network"]
        sums = [sum(values) for values in zip(*rounds.values(), strict=True)]
        overhead = statistics.median(sums)
        boxes = sum(raw.size for raw in maps) // graph.detects[0].num_outputs
        print(f"{name} at {side}: {boxes} candidates, {found} detections")
        print(f"  {', '.join(f'{stage} {statistics.median(values):.2f}' for stage, values in rounds.items())} ms")
        print(f"  together {overhead:.2f} ms, {overhead / budget:.2f} of its budget of {budget} ms")
        print(f"  in the round that other processes disturbed least {min(sums):.2f} ms, {min(sums) / budget:.2f} of it")
        if network is not None:
            print(f"  the network {network:.1f} ms: the overhead is {overhead / network:.3f} of it")


if __name__ == "__main__":
    main()
