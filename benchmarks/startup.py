"""How long users wait before anything happens: medians of new processes, and ratios to a bare interpreter.

    python benchmarks/startup.py [ENGINE ...]

The cold start is a new process that loads yolov4-tiny (random weights) and detects in one JPEG. Its first run compiles
where the engine compiles; the median is that of the runs after it, which is what users see from the second time on.
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import cv2
import numpy as np

from scaledyolo import ZOO, Checkpoint, lower, save_checkpoint
from scaledyolo.classes import COCO_NAMES
from scaledyolo.weights import random_weights

ROUNDS = 7
BARE = [sys.executable, "-c", "pass"]
COMMAND = [sys.executable, "-m", "scaledyolo"]
FIRST_DETECTION = "import sys; from scaledyolo import Detector; Detector(sys.argv[1], engine=sys.argv[3])(sys.argv[2])"


def seconds(command: list[str]) -> float:
    """Time of one process from start to end."""
    start = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - start


def main() -> None:
    """Print one line for each command."""
    engines = sys.argv[1:] or ["auto", "onnxruntime"]
    with tempfile.TemporaryDirectory() as name:
        model, image = Path(name, "yolov4-tiny.safetensors"), Path(name, "image.jpg")
        graph = lower(ZOO["yolov4-tiny"])
        weights = random_weights(graph, np.random.default_rng(0))
        save_checkpoint(
            model, Checkpoint(graph=graph, spec=ZOO["yolov4-tiny"], class_names=COCO_NAMES, weights=weights)
        )
        cv2.imwrite(str(image), np.random.default_rng(0).integers(0, 256, (480, 640, 3), dtype=np.uint8))
        cases = {
            "python -c pass": (BARE, None),
            "scaledyolo --help": ([*COMMAND, "--help"], 0.3),
            "scaledyolo describe yolov4-p5": ([*COMMAND, "describe", "yolov4-p5", "--json"], 0.5),
            **{
                f"first detection, {engine}": (
                    [sys.executable, "-c", FIRST_DETECTION, str(model), str(image), engine],
                    1.5,
                )
                for engine in engines
            },
        }
        times: dict[str, list[float]] = {case: [] for case in cases}
        for number in range(ROUNDS + 1):  # the cases take turns, so that a busy moment hits all of them
            for case, (command, _) in cases.items():
                taken = seconds(command)
                if number:
                    times[case].append(taken)
    bare = statistics.median(times["python -c pass"])
    for case, (_, budget) in cases.items():
        median = statistics.median(times[case])
        limit = f", {median / budget:.2f} of its budget of {budget} s" if budget else ""
        print(f"{case:<32}{median:7.3f} s  {median / bare:6.1f} times a bare interpreter{limit}")


if __name__ == "__main__":
    main()
