"""How many epochs fit into a given time on this machine: measured on throw-away weights before a training begins.

The training itself stays a function of its recipe and seed: the number that was found goes into the recipe, and
``--epochs`` with that number repeats it to the bit, on any machine.
"""

from __future__ import annotations

import itertools
import tempfile
import time
from dataclasses import dataclass, replace
from pathlib import Path

from lightning_fabric import Fabric

from scaledyolo.data.canvases import Canvases
from scaledyolo.data.dataset import Dataset
from scaledyolo.data.order import grown_share
from scaledyolo.errors import UsageError
from scaledyolo.evaluate.protocols import TRAINING
from scaledyolo.evaluate.run import predict
from scaledyolo.train.loop import forward_backward, optimiser_step
from scaledyolo.train.manifest import Run
from scaledyolo.train.optim import StepSettings, apply_settings
from scaledyolo.train.prepare import prepare
from scaledyolo.train.recipe import Recipe
from scaledyolo.train.training import Training

MOST_EPOCHS = 10_000
_WARM_BATCHES = 1  # left out: they make kernels and fill buffers
_LEAST_BATCHES, _MOST_BATCHES, _LEAST_SECONDS = 3, 50, 5.0  # that are timed
_EVALUATED = 32  # validation images that are timed


@dataclass(frozen=True)
class Pace:
    """Seconds that a training takes on this machine, at the full input side."""

    batch: float  # a training step, the wait for its data included
    evaluation: float  # of the whole validation split
    save: float  # of checkpoints and state
    reading: float  # of all images, once
    batches: int  # of an epoch

    def seconds(self, recipe: Recipe, epochs: int, evaluate_every: int) -> float:
        """A training of so many epochs; where images grow, a step is as long as its area."""
        growing = round(recipe.full_size_from * epochs)
        areas = sum(grown_share(epoch, recipe.first_size, growing) ** 2 for epoch in range(epochs))
        evaluations = -(-epochs // evaluate_every)
        steps = areas * self.batches * self.batch
        return self.reading + steps + evaluations * self.evaluation + epochs * self.save


def fitting_epochs(pace: Pace, recipe: Recipe, minutes: float, evaluate_every: int) -> int:
    """The most epochs that take at most so many minutes.

    Raises:
        UsageError: not even one does.
    """
    available = 60 * minutes
    if not pace.seconds(recipe, 1, evaluate_every) <= available:
        one = pace.seconds(recipe, 1, evaluate_every) / 60
        raise UsageError(f"--minutes {minutes:g}: one epoch takes about {one:.1f} minutes here; give it more time")
    low, high = 1, MOST_EPOCHS + 1  # low fits; high is not asked for
    while high - low > 1:
        middle = (low + high) // 2
        if pace.seconds(recipe, middle, evaluate_every) <= available:
            low = middle
        else:
            high = middle
    return low


def measure_pace(fabric: Fabric, run: Run, train: Dataset, val: Dataset) -> Pace:
    """Time a few steps, an evaluation of a few images and a save, on a network that is thrown away.

    Args:
        fabric: launched, one process.
        run: the network with the classes of the data, the recipe and the settings.
        train: images to learn from.
        val: images to choose by.

    Raises:
        ScaledYoloError: what the training itself would refuse.
    """
    recipe = replace(run.recipes[-1], first_size=1.0)  # every step at the full side
    quiet = replace(run, recipes=(recipe,), settings=replace(run.settings, quiet=True, services=()))
    with tempfile.TemporaryDirectory(prefix="scaledyolo-pace-") as folder:
        training = prepare(fabric, Path(folder), quiet, train, None)
        reading = _reading_seconds(training)
        batch = _batch_seconds(training)
        evaluation = _evaluation_seconds(training, val)
        started = time.perf_counter()
        training.save(improved=True)
        save = time.perf_counter() - started
    return Pace(batch, evaluation, save, reading, len(training.loader))


def _reading_seconds(training: Training) -> float:
    """Of decoding every image to learn from, which happens once where there is a cache and else at every step."""
    source = training.loader.source
    count = min(len(source), 8)
    started = time.perf_counter()
    for index in range(count):
        source.dataset.load_image(index)
    return (time.perf_counter() - started) / count * len(source) / max(training.settings.workers, 1)


def _batch_seconds(training: Training) -> float:
    """Of a step of the loop."""
    training.network.train()
    training.freeze()
    # The work of a step without its effect: fresh weights at the full learning rate could diverge.
    apply_settings(training.optimizer, StepSettings(0.0, 0.0, 0.9, 1))
    batches = itertools.chain.from_iterable(training.loader.epoch(epoch) for epoch in itertools.count())
    times: list[float] = []
    for number, batch in enumerate(batches):
        started = time.perf_counter()
        forward_backward(training, batch, synchronise=True)
        optimiser_step(training, batch)
        if number >= _WARM_BATCHES:
            times.append(time.perf_counter() - started)
        if len(times) >= _MOST_BATCHES or (len(times) >= _LEAST_BATCHES and sum(times) >= _LEAST_SECONDS):
            break
    return sum(times) / len(times)


def _evaluation_seconds(training: Training, val: Dataset) -> float:
    """Of the validation split, from a few of its images, which are remembered as in the training."""
    count = min(len(val), _EVALUATED)
    graph = training.graph
    canvases = Canvases(val.subset(range(count)), graph.height, graph.width, resize=graph.resize, cache="ram")
    for index in range(count):
        canvases[index]
    started = time.perf_counter()
    predict(
        canvases.dataset,
        training.run_average,
        graph.detects,
        graph.height,
        graph.width,
        TRAINING,
        batch=min(training.recipe.batch, 16),
        canvases=canvases,
    )
    return (time.perf_counter() - started) / count * len(val)
