"""What :mod:`.refine` trains with: the loop of `scaledyolo train`, stopped and taken up again in the middle.

A training follows one schedule over all of its epochs; a rung is a stop on the way. What is judged is the moving
average of the weights, on all validation images.
"""

from __future__ import annotations

import gc
import math
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any, Final

from lightning_fabric import Fabric

from scaledyolo.data.canvases import Canvases
from scaledyolo.data.dataset import Dataset
from scaledyolo.design.halving import Cost
from scaledyolo.design.refine import Entrant, Outcome
from scaledyolo.errors import DataError, UsageError
from scaledyolo.evaluate.arrays import Predictions
from scaledyolo.evaluate.bootstrap import resampled_means
from scaledyolo.evaluate.coco import coco_metrics
from scaledyolo.evaluate.matching import match
from scaledyolo.evaluate.protocols import TRAINING
from scaledyolo.evaluate.run import ground_truth, predict
from scaledyolo.files import output_errors
from scaledyolo.strict import to_mapping
from scaledyolo.train.guard import NonFiniteError
from scaledyolo.train.loop import fit
from scaledyolo.train.machine import device_type, resolve_precision
from scaledyolo.train.manifest import Run
from scaledyolo.train.pace import measure_pace
from scaledyolo.train.prepare import prepare, spec_for_training
from scaledyolo.train.processes import launch
from scaledyolo.train.recipe import Recipe
from scaledyolo.train.settings import Settings
from scaledyolo.train.training import STATE_FILE, Training

NUM_RESAMPLES: Final = 1000


class ShortTrainer:
    """Trains networks from scratch on the user's images, on this machine.

    Args:
        train: images to learn from.
        val: images to judge by, with the same classes.
        recipe: how; its epochs are the most that a network is trained for.
        seed: of everything random.

    Raises:
        DataError: there is nothing to learn or to judge, or less than one batch.
        UsageError: the recipe continues another.
    """

    def __init__(self, train: Dataset, val: Dataset, recipe: Recipe, *, seed: int = 0) -> None:
        _check(train, val, recipe)
        self._train, self._val, self._recipe = train, val, recipe
        self._settings = Settings(
            seed=seed, precision=resolve_precision("auto", device_type("auto")), quiet=True, evaluate_every=10**9
        )
        self._canvases: dict[tuple[int, int], Canvases] = {}  # validation images by height and width
        self._truth = ground_truth(val)

    @cached_property
    def _fabric(self) -> Fabric:
        """Launched when it is first needed: it changes how this process allocates, which no measurement should see."""
        return launch(self._settings)

    @property
    def most_epochs(self) -> int:
        """Those of the recipe."""
        return self._recipe.schedule.epochs

    @property
    def facts(self) -> Mapping[str, Any]:
        """What decides the outcome besides network and length, and how many images there are."""
        return {
            "recipe": to_mapping(self._recipe),
            "seed": self._settings.seed,
            "precision": self._settings.precision,
            "images": {"train": len(self._train), "val": len(self._val)},
            "fingerprints": {"train": self._train.fingerprint, "val": self._val.fingerprint},
        }

    def cost(self, entrant: Entrant) -> Cost:
        """Measured on weights that are thrown away."""
        pace = measure_pace(self._fabric, self._run(entrant, self.most_epochs), self._train, self._val)
        gc.collect()
        images = 1 + len(self._val) / len(self._train)
        return Cost(epoch=pace.batches * pace.batch + pace.save, rung=images * pace.reading + pace.evaluation)

    def train(self, entrant: Entrant, folder: Path, until: int, total: int) -> Outcome:
        """Train from where the folder stands until so many of ``total`` epochs, and judge."""
        start = time.perf_counter()
        with output_errors(folder):
            folder.mkdir(parents=True, exist_ok=True)
        resume = (folder / STATE_FILE).is_file()
        try:
            # No validation data: the loop would judge after the last epoch by itself, and resample nothing.
            training = prepare(self._fabric, folder, self._run(entrant, total), self._train, None, resume=resume)
            fit(training, until=until)
            found = self._predictions(training)
        except NonFiniteError as error:
            return Outcome(until, time.perf_counter() - start, None, failure=f"diverged: {error}")
        finally:
            gc.collect()  # networks hold each other in cycles, and the next one wants the memory
        return self._judged(found, until, start)

    def _judged(self, found: Predictions, until: int, start: float) -> Outcome:
        metrics = coco_metrics(self._truth, found)
        matching = match(self._truth, found, max_detections=TRAINING.scored_detections)
        samples, _ = resampled_means(matching, num_resamples=NUM_RESAMPLES)
        return Outcome(
            epochs=until,
            seconds=time.perf_counter() - start,
            ap=_defined(metrics.ap),
            ap50=_defined(metrics.ap50),
            ap_samples=tuple(round(_defined(sample), 6) for sample in samples.tolist()),
        )

    def _predictions(self, training: Training) -> Predictions:
        """What the moving average finds on the validation images, which are remembered on each canvas."""
        graph = training.graph
        size = (graph.height, graph.width)
        if size not in self._canvases:
            self._canvases[size] = Canvases(self._val, *size, resize=graph.resize, cache="ram")
        return predict(
            self._val,
            training.run_average,
            graph.detects,
            *size,
            TRAINING,
            batch=min(self._recipe.batch, 16),
            canvases=self._canvases[size],
        )

    def _run(self, entrant: Entrant, total: int) -> Run:
        schedule = self._recipe.schedule
        recipe = replace(self._recipe, schedule=replace(schedule, epochs=total))
        spec = spec_for_training(entrant.spec, recipe, entrant.spec.size)
        return Run(spec=spec, recipes=(recipe,), settings=self._settings)


def _defined(value: float) -> float:
    """A resample in which nothing was to be found counts as none found."""
    return float(value) if math.isfinite(value) else 0.0


def _check(train: Dataset, val: Dataset, recipe: Recipe) -> None:
    """Refuse what cannot be compared, before anything is measured."""
    if recipe.schedule.first_epoch:
        raise UsageError(
            f"--recipe {recipe.name} continues another training, and these begin from scratch; "
            f"name {recipe.continues or 'another'}"
        )
    for dataset, what in ((train, "learn from"), (val, "compare networks by")):
        if not dataset.class_counts().sum():
            raise DataError(f"{dataset.source}: has no boxes to {what}; label some, or leave --refine out")
    if len(train) < recipe.batch:
        raise DataError(
            f"{train.source}: its {len(train)} images are fewer than one batch of {recipe.batch} of the recipe "
            f"{recipe.name!r}, too few to choose a network by; add images, or leave --refine out"
        )
