"""How long post-processing takes, on one core, next to the alternatives; medians in milliseconds and ratios of one run.

    OMP_NUM_THREADS=1 python benchmarks/postprocess.py

The maps are random, with biases that let about as many boxes through as a busy photograph does.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable
from functools import partial

import cv2
import numpy as np
from rich.console import Console
from rich.table import Table

from scaledyolo import boxes
from scaledyolo.arch.ops import Detect
from scaledyolo.postprocess import NMS, Candidates, decode_all, decode_candidates, suppress

TINY_ANCHORS = ((10.0, 14.0), (23.0, 27.0), (37.0, 58.0), (81.0, 82.0), (135.0, 169.0), (344.0, 319.0))
CSP_ANCHORS = (
    *((12.0, 16.0), (19.0, 36.0), (40.0, 28.0), (36.0, 75.0), (76.0, 55.0)),
    *((72.0, 146.0), (142.0, 110.0), (192.0, 243.0), (459.0, 401.0)),
)
TINY = {32: Detect(TINY_ANCHORS, (3, 4, 5), 80, "exp", 1.05), 16: Detect(TINY_ANCHORS, (1, 2, 3), 80, "exp", 1.05)}
CSP = {
    stride: Detect(CSP_ANCHORS, tuple(range(3 * level, 3 * level + 3)), 80, "sigmoid-squared", 2.0)
    for level, stride in enumerate((8, 16, 32))
}


def median_ms(action: Callable[[], object], rounds: int = 15) -> float:
    """Median time of one call in milliseconds, after one call to warm up."""
    action()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        action()
        times.append(time.perf_counter() - start)
    return 1e3 * statistics.median(times)


def random_maps(heads: dict[int, Detect], size: int, objectness: float) -> list[np.ndarray]:
    """Raw maps whose objectness logits scatter around ``objectness``, class logits around -3."""
    rng = np.random.default_rng(0)
    bias = np.tile(np.concatenate([np.zeros(4), [objectness], np.full(80, -3.0)]), 3)[None, :, None, None]
    shapes = [(1, 255, size // stride, size // stride) for stride in heads]
    return [(rng.normal(0, 2, shape) + bias).astype(np.float32) for shape in shapes]


def crowd(count: int, classes: int, objects: int = 400) -> Candidates:
    """Candidates scattered around objects in a 640 pixel image, as a low threshold with many labels gives them."""
    rng = np.random.default_rng(0)
    which = rng.integers(0, objects, count)
    centres = rng.uniform(0, 640, (objects, 2))[which]
    sizes = np.exp(rng.uniform(np.log(16), np.log(250), (objects, 2)))[which]
    centres = centres + rng.normal(0, 0.15, sizes.shape) * sizes
    sizes = sizes * np.exp(rng.normal(0, 0.15, sizes.shape))
    rows = np.concatenate([centres - sizes / 2, centres + sizes / 2], axis=1).astype(np.float32)
    return Candidates(rows, rng.uniform(0.001, 1, count).astype(np.float32), rng.integers(0, classes, count))


def plain_greedy(candidates: Candidates, threshold: float) -> int:
    """The textbook loop: for each class the best box against all others, in NumPy."""
    kept = 0
    for class_id in np.unique(candidates.class_ids):
        part = candidates.take(candidates.class_ids == class_id)
        rows = part.boxes_xyxy[np.argsort(-part.scores)]
        while len(rows):
            kept += 1
            rows = rows[1:][boxes.iou(rows[0], rows[1:]) <= threshold]
    return kept


def opencv_batched(candidates: Candidates, threshold: float) -> int:
    """OpenCV's own suppression for many classes, which shifts them apart by an offset."""
    rows = boxes.xyxy_to_tlwh(candidates.boxes_xyxy)
    return len(cv2.dnn.NMSBoxesBatched(rows, candidates.scores, candidates.class_ids, 0.0, threshold))


def opencv_per_class(candidates: Candidates, threshold: float) -> int:
    """OpenCV's suppression, one call for each class."""
    kept = 0
    for class_id in np.unique(candidates.class_ids):
        part = candidates.take(candidates.class_ids == class_id)
        kept += len(cv2.dnn.NMSBoxes(boxes.xyxy_to_tlwh(part.boxes_xyxy), part.scores, 0.0, threshold))
    return kept


def images_table() -> Table:
    """Decoding and suppression of one image at the thresholds of detection and of evaluation."""
    columns = ("network", "rows", "threshold", "candidates", "decode", "suppress", "both", "dense decode")
    table = Table(*columns, title="one image, ms")
    for name, heads, size in (("yolov4-tiny 416", TINY, 416), ("yolov4-csp 640", CSP, 640)):
        maps, detects, frame = random_maps(heads, size, -5.0), list(heads.values()), (size, size)
        dense = median_ms(partial(decode_all, maps, detects, frame), 7)
        rows = sum(3 * m.shape[2] * m.shape[3] for m in maps)
        for threshold, multi_label in ((0.25, False), (0.05, True)):
            decode = partial(decode_candidates, maps, detects, frame, threshold, multi_label)
            (candidates,) = decode()
            first = median_ms(decode)
            second = median_ms(partial(suppress, candidates, NMS(iou=0.45)))
            figures = [f"{figure:.2f}" for figure in (first, second, first + second, dense)]
            table.add_row(name, str(rows), str(threshold), str(len(candidates)), *figures)
    return table


def suppression_table() -> Table:
    """30,000 candidates at IoU 0.65, everything kept that may stay."""
    table = Table("suppression", "classes", "kept", "ms", "ratio to ours", title="30,000 candidates, IoU 0.65")
    for classes in (80, 1):
        candidates = crowd(30_000, classes)
        exact = NMS(iou=0.65, max_detections=None)
        ours = median_ms(partial(suppress, candidates, exact), 7)
        table.add_row("scaledyolo greedy", str(classes), str(len(suppress(candidates, exact))), f"{ours:.1f}", "1.0")
        for kind in ("darknet", "merge", "matrix", "soft-gaussian") if classes > 1 else ("darknet", "merge"):
            other = NMS(kind, 0.65, max_detections=None)
            spent = median_ms(partial(suppress, candidates, other), 3)
            kept = len(suppress(candidates, other))
            table.add_row(f"scaledyolo {kind}", str(classes), str(kept), f"{spent:.1f}", f"{spent / ours:.1f}")
        for name, function in (
            ("NumPy loop", plain_greedy),
            ("cv2.dnn.NMSBoxes per class", opencv_per_class),
            ("cv2.dnn.NMSBoxesBatched", opencv_batched),
        ):
            spent = median_ms(partial(function, candidates, 0.65), 1)
            kept = function(candidates, 0.65)
            table.add_row(name, str(classes), str(kept), f"{spent:.1f}", f"{spent / ours:.1f}")
    return table


if __name__ == "__main__":
    cv2.setNumThreads(1)
    console = Console(width=110)
    console.print(images_table())
    console.print(suppression_table())
