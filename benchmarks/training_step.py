"""Training step of the loop against the same forward, loss, backward and optimiser run bare, in one run.

    python benchmarks/training_step.py DATA [--batches N]

Prints images/s of both and their ratio: what the loop adds (data, logging, averaging, saving at the end of the epoch).
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from scaledyolo.arch.zoo import find
from scaledyolo.data.formats import open_dataset
from scaledyolo.train.loop import forward_backward, optimiser_step, train_epoch
from scaledyolo.train.machine import resolve_precision
from scaledyolo.train.manifest import Run
from scaledyolo.train.prepare import prepare
from scaledyolo.train.processes import launch
from scaledyolo.train.recipe import RECIPES
from scaledyolo.train.settings import Settings
from scaledyolo.train.training import Training


def make_training(data: Path, folder: Path) -> Training:
    """yolov4-tiny at 416 under the recipe for small sets, in the precision that `train` chooses here."""
    dataset = open_dataset(data, "train")
    spec = replace(find("yolov4-tiny").with_classes(dataset.num_classes), decoding="sigmoid-squared", scale_xy=())
    settings = Settings(precision=resolve_precision("auto", "cpu"), device="cpu", quiet=True)
    run = Run(spec=replace(spec, resize="letterbox"), recipes=(RECIPES["small"],), settings=settings, data=None)
    return prepare(launch(settings), folder, run, dataset, None)


def bare_seconds(training: Training, batches: int) -> float:
    """Seconds for an image, without loader, journal and schedule: one batch again and again."""
    batch = next(iter(training.batches()))
    training.network.train()
    forward_backward(training, batch, synchronise=True)
    optimiser_step(training, batch)
    started = time.perf_counter()
    for _ in range(batches):
        forward_backward(training, batch, synchronise=True)
        optimiser_step(training, batch)
    return (time.perf_counter() - started) / (batches * len(batch.images))


def loop_seconds(training: Training) -> tuple[float, float]:
    """Seconds for an image in the loop as users run it, and the share of them spent waiting for data."""
    started = time.perf_counter()
    train_epoch(training)
    seconds, totals = time.perf_counter() - started, training.progress.totals
    return seconds / totals.images, totals.waiting / seconds


def main() -> None:
    """Bare, loop, bare: the drift of a shared machine shows as the difference of the two bare rounds.

    A whole epoch goes before: it decodes every image, and makes the kernels for the last batch, which is smaller. Both
    happen once in a training, not in every epoch.
    """
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--batches", type=int, default=8)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        training = make_training(arguments.data, Path(folder))
        train_epoch(training)
        training.progress.finish_epoch()
        before = bare_seconds(training, arguments.batches)
        loop, waiting = loop_seconds(training)
        training.progress.batch = 0
        after = bare_seconds(training, arguments.batches)
    bare = (before + after) / 2
    print(f"bare  {1 / before:6.2f} and {1 / after:6.2f} images/s")
    print(f"loop  {1 / loop:6.2f} images/s, {loop / bare:.3f} times the bare step, {100 * waiting:.1f} % waiting")


if __name__ == "__main__":
    main()
