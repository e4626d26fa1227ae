"""How fast training data is prepared: mosaic, affine, HSV and flip from the RAM cache, stage by stage.

    python benchmarks/data_pipeline.py PATH [--split train] [--size 416] [--images 400] [--rounds 5]

Prints images per second of one thread and of the loader with its threads, and what each stage costs as a ratio of the
whole, all measured in one run and best of several rounds: ratios survive a busy machine, absolute figures do not. "CPU"
counts this thread's processor time, which other programs disturb less than the clock.
"""

from __future__ import annotations

import argparse
import resource
import time
from collections.abc import Callable

import cv2
import numpy as np

from scaledyolo.data.augment import NO_AUGMENTATION, AugmentConfig, Augmenter
from scaledyolo.data.cache import ImageSource
from scaledyolo.data.formats import open_dataset
from scaledyolo.data.letterbox import images_to_input, letterbox, split_planes
from scaledyolo.data.loader import LoaderConfig, TrainLoader
from scaledyolo.data.order import sample_generator


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("path")
    parser.add_argument("--split", default="train")
    parser.add_argument("--size", type=int, default=416)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--workers", type=int, default=2)
    arguments = parser.parse_args()
    cv2.setNumThreads(1)

    dataset = open_dataset(arguments.path, arguments.split)
    dataset = dataset.subset(range(min(len(dataset), arguments.images)))
    source = ImageSource(dataset, arguments.size, cache="ram")
    started = time.perf_counter()
    source.fill(arguments.workers)
    seconds = time.perf_counter() - started
    print(f"{len(source)} images decoded in {seconds:.2f} s; cache of {source.num_bytes / 2**20:.0f} MiB")

    planes = np.empty((3, arguments.size, arguments.size), np.uint8)
    stages = {
        "mosaic + affine + HSV + flip": AugmentConfig(),
        "without HSV": AugmentConfig(hue=0.0, saturation=0.0, value=0.0),
        "with rotation and shear": AugmentConfig(degrees=10.0, shear=2.0),
        "with mixup": AugmentConfig(mixup=1.0),
        "mosaic of nine": AugmentConfig(mosaic_nine=1.0),
        "without mosaic": AugmentConfig(mosaic=0.0),
        "letterbox only": NO_AUGMENTATION,
    }
    whole = 0.0
    print(f"{'one thread':32s} {'img/s':>8s} {'img/s CPU':>10s} {'ratio':>6s}")
    for name, config in stages.items():
        augmenter = Augmenter(source.sample, len(source), arguments.size, config)

        def one(position: int, augmenter: Augmenter = augmenter) -> None:
            rng = sample_generator(0, 0, position)
            split_planes(augmenter(position % len(source), rng).image, planes)

        clock, processor = _best(one, arguments.rounds, 200)
        whole = whole or processor
        print(f"{name:32s} {1 / clock:8.0f} {1 / processor:10.0f} {processor / whole:6.2f}")

    image = source.image(0)
    canvas, _ = letterbox(image, arguments.size, arguments.size)
    buffer = np.empty((1, 3, arguments.size, arguments.size), np.float32)
    for name, action in {
        "sample generator": lambda position: sample_generator(0, 0, position),
        "uint8 planes to network input": lambda _: images_to_input([canvas], out=buffer),
    }.items():
        clock, processor = _best(action, arguments.rounds, 200)
        print(f"{name:32s} {1 / clock:8.0f} {1 / processor:10.0f} {processor / whole:6.2f}")

    for workers in (0, 1, arguments.workers):
        loader_config = LoaderConfig(batch_size=16, size=arguments.size, workers=workers)
        loader = TrainLoader(source, loader_config, AugmentConfig())
        rates = [_epoch_rate(loader, epoch) for epoch in range(arguments.rounds)]
        print(f"loader, {workers} worker thread(s): {max(rates):.0f} img/s")
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    print(f"peak memory {peak / 1024:.0f} MiB")


def _best(action: Callable[[int], object], rounds: int, repeats: int) -> tuple[float, float]:
    """Seconds per call by the clock and by this thread's processor time, each the best of the rounds."""
    action(0)
    clock, processor = [], []
    for _ in range(rounds):
        clock_started, processor_started = time.perf_counter(), time.thread_time()
        for position in range(repeats):
            action(position)
        clock.append((time.perf_counter() - clock_started) / repeats)
        processor.append((time.thread_time() - processor_started) / repeats)
    return min(clock), min(processor)


def _epoch_rate(loader: TrainLoader, epoch: int) -> float:
    started = time.perf_counter()
    images = sum(len(batch) for batch in loader.epoch(epoch))
    return images / (time.perf_counter() - started)


if __name__ == "__main__":
    main()
