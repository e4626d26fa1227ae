"""How much of what the cores could do at best `Detector.stream` does over a folder of JPEGs, and that memory is flat.

    python benchmarks/folder_throughput.py [--images 300] [--rounds 5] [--photos FOLDER] [--memory 10000]

The bound: with all cores at it, reading and decoding alone takes 1 / D seconds an image and the engine alone, fed from
as many threads as it likes, 1 / E. Both need the same cores, so no pipeline gets an image through in less than
1 / D + 1 / E. The pipeline also resizes, decodes boxes, suppresses and makes the result, which the bound leaves out;
the goal is 85 % of it. The three are measured in turns.

Without --photos, JPEGs of 640 x 480 pixels are made: waves, edges and a little noise, as large as photographs are.
Weights are random, with the confidence at which they find 20 objects in an image on average; --model takes a real one.
"""

from __future__ import annotations

import gc
import itertools
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
import tyro

from scaledyolo import ZOO, Checkpoint, Detector, lower
from scaledyolo.bench.timing import interleaved
from scaledyolo.classes import COCO_NAMES
from scaledyolo.engines import describe_engine
from scaledyolo.engines.faithful import scene
from scaledyolo.sources import IMAGE_SUFFIXES, Mode, read_image
from scaledyolo.views import inputs_of
from scaledyolo.weights import random_weights

GOAL = 0.85
OBJECTS = 20  # in an image, with random weights
QUALITY = 90
SAMPLES = 10  # readings of the memory


@dataclass(frozen=True)
class Options:
    """What to measure."""

    network: str = "yolov4-tiny"  # of the zoo, with random weights
    model: str | None = None  # a checkpoint instead
    size: int | None = None  # input side; by default the model's own
    images: int = 300
    photos: Path | None = None  # a folder of images instead of made ones
    rounds: int = 5
    threads: int | None = None
    memory: int = 0  # images over which memory is watched; 0: not at all


def make_photos(folder: Path, count: int) -> list[Path]:
    """JPEGs of 640 x 480 pixels."""
    paths = []
    for number in range(count):
        image = (scene(3, 480, 640, seed=number % 50) * 255).astype(np.uint8).transpose(1, 2, 0)
        soft = cv2.GaussianBlur(np.roll(image, 13 * number, axis=1), (0, 0), 0.9)
        paths.append(folder / f"{number:05}.jpg")
        cv2.imwrite(str(paths[-1]), soft, [cv2.IMWRITE_JPEG_QUALITY, QUALITY])
    return paths


def random_detector(options: Options, photos: list[Path]) -> Detector:
    """Random weights, and the confidence at which they find as many objects as trained ones, on average over photos."""
    graph = lower(ZOO[options.network])
    weights = random_weights(graph, np.random.default_rng(0))
    checkpoint = Checkpoint(graph=graph, weights=weights, class_names=COCO_NAMES)
    curious = Detector(checkpoint, size=options.size, engine="onnxruntime", confidence=0.0, max_detections=2000)
    found = [curious.detect_batch([read_image(photo)]) for photo in photos]
    scores = np.sort(np.concatenate([boxes.confidence for (boxes,) in found]))
    confidence = float(scores[-OBJECTS * len(photos)])
    return Detector(checkpoint, size=options.size, threads=options.threads, confidence=confidence)


def side_by_side(work: Callable[[int], object], count: int, lanes: int) -> None:
    """Call ``work`` for 0 to ``count`` - 1 from several threads."""
    with ThreadPoolExecutor(lanes) as pool:
        for _ in pool.map(work, range(count)):
            pass


def resident_mb() -> float:
    """Memory of this process in MB."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) / 1024
    raise RuntimeError("this system does not say how much memory a process has")


def main(options: Options) -> int:
    """Print rates, their bound, and memory; 1 where the goal is missed."""
    with tempfile.TemporaryDirectory() as name:
        if options.photos is None:
            paths = make_photos(Path(name), options.images)
        else:
            found = (path for path in options.photos.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES)
            paths = list(itertools.islice(itertools.cycle(sorted(found)), options.images))
        if options.model is None:
            detector = random_detector(options, paths[:: max(1, len(paths) // 12)])
        else:
            detector = Detector(options.model, size=options.size, threads=options.threads)
        rate = measure(detector, paths, options, Path(name))
        if options.memory:
            watch_memory(detector, paths, options.memory, Path(name))
    return int(rate < GOAL)


def measure(detector: Detector, paths: list[Path], options: Options, folder: Path) -> float:
    """Print the rates; returns the share of the bound."""
    listing = folder / "photos.txt"
    listing.write_text("\n".join(str(path.resolve()) for path in paths))
    several, count = detector.for_throughput(), len(paths)
    canvas, _ = detector._place(read_image(paths[0]))
    (inputs,) = inputs_of(several.views, [canvas])
    found: list[int] = []  # boxes in each image

    def stream(mode: Mode) -> None:
        found[:] = [len(boxes) for _, boxes in detector.stream(listing, mode=mode)]

    def one_by_one() -> None:
        for path in paths:
            detector(path)

    runs: dict[str, Callable[[], object]] = {
        "decoding alone": lambda: side_by_side(lambda number: read_image(paths[number]), count, several.lanes),
        "engine alone": lambda: side_by_side(lambda number: several.views[0].run(inputs), count, several.lanes),
        "stream, throughput": lambda: stream("throughput"),
        "stream, latency": lambda: stream("latency"),
        "one call after the other": one_by_one,
    }
    size = np.mean([path.stat().st_size for path in paths]) / 1024
    print(f"{count} images of {size:.0f} KB on average, {several.lanes} lanes, {describe_engine(several.engine)}")
    timings = interleaved(runs, rounds=options.rounds, warmup=1)
    decoding, engine, *pipelines = timings.values()
    bound = [a + b for a, b in zip(decoding.samples_ms, engine.samples_ms, strict=True)]
    for name, timing in timings.items():
        line = f"  {name:26} {1e3 * count / timing.median_ms:7.1f} images/s  {timing.median_ms / count:6.2f} ms each"
        print(f"{line}  noise {timing.noise:4.2f}")
    shares = [np.median(np.divide(bound, timing.samples_ms)) for timing in pipelines]
    print(
        f"  bound                      {1e3 * count / np.median(bound):7.1f} images/s; detections {np.mean(found):.1f}"
    )
    print(f"throughput: {shares[0]:.3f} of the bound (goal {GOAL}: {'reached' if shares[0] >= GOAL else 'MISSED'})")
    print(f"latency: {shares[1]:.3f}, one call after the other: {shares[2]:.3f}")
    return float(shares[0])


def watch_memory(detector: Detector, paths: list[Path], count: int, folder: Path) -> None:
    """Stream ``count`` images and print what the process holds on the way."""
    listing = folder / "many.txt"
    listing.write_text("\n".join(str(path.resolve()) for path in itertools.islice(itertools.cycle(paths), count)))
    start, readings, step = time.perf_counter(), [], max(count // SAMPLES, 1)
    for number, _ in enumerate(detector.stream(listing, mode="throughput"), start=1):
        if number % step == 0:
            gc.collect()
            readings.append((number, resident_mb()))
    print(", ".join(f"{number}: {mb:.0f}" for number, mb in readings), "MB")
    growth = readings[-1][1] - readings[0][1]
    print(
        f"memory grew by {growth:+.1f} MB from image {readings[0][0]} to {count} in {time.perf_counter() - start:.0f} s"
    )


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Options)))
