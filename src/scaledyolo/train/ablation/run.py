"""The cells of a grid, one after the other: trained, measured, written down. What is done stays done.

Each cell is a run folder as `scaledyolo train` makes them, and its ``result.json`` is what the tables are made of. A
folder is known by a key of everything that decides its figures, so an old result is never taken for another cell's.
"""

from __future__ import annotations

import gc
import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from scaledyolo.arch.cost import cost
from scaledyolo.arch.lower import lower
from scaledyolo.checkpoint import Checkpoint
from scaledyolo.data.dataset import Dataset
from scaledyolo.detector import Detector
from scaledyolo.errors import FormatError, ScaledYoloError, UsageError
from scaledyolo.evaluate.bootstrap import resampled_means
from scaledyolo.evaluate.coco import coco_metrics
from scaledyolo.evaluate.matching import match
from scaledyolo.evaluate.protocols import Protocol
from scaledyolo.evaluate.run import ground_truth, predict_views
from scaledyolo.files import atomic_file
from scaledyolo.model import chosen_file, load_model
from scaledyolo.net.network import Network
from scaledyolo.strict import from_mapping, to_mapping
from scaledyolo.train.ablation.grid import Cell
from scaledyolo.train.guard import NonFiniteError
from scaledyolo.train.loop import fit
from scaledyolo.train.manifest import Run
from scaledyolo.train.prepare import prepare
from scaledyolo.train.processes import launch
from scaledyolo.train.settings import DataSource, Settings
from scaledyolo.train.training import BEST_FILE, STATE_FILE, Training
from scaledyolo.train.transfer import transfer

RESULT_FILE, KEY_FILE = "result.json", "cell.key"
FORMAT = "scaledyolo-ablation/1"
NUM_RESAMPLES = 1000


@dataclass(frozen=True)
class Material:
    """What every cell learns from, is chosen by and is measured on."""

    source: DataSource  # of the first two
    train: Dataset
    val: Dataset
    test: Dataset
    protocol: Protocol
    engine: str = "auto"  # what runs the trained networks

    @property
    def fingerprint(self) -> str:
        """Of all images and boxes and of how they are measured."""
        parts = (self.train.fingerprint, self.val.fingerprint, self.test.fingerprint, self.protocol.name)
        return hashlib.sha256("\n".join(parts).encode()).hexdigest()


@dataclass(frozen=True)
class Result:
    """What one cell came to. Figures are those of ``best.safetensors`` on the test images."""

    spec: str
    recipe: str
    seed: int
    key: str  # of everything that decides the figures
    params: int = 0  # learned values
    gflops: float = 0.0  # of one image at the trained size, 2 per MAC
    size: int = 0  # pixels
    epochs: int = 0  # that were run
    best_epoch: int = 0
    minutes: float = 0.0  # of training, evaluation on the validation images and saving included
    ap: float | None = None  # None where it was not reached, or nothing was there to find
    ap50: float | None = None
    class_ap: tuple[float | None, ...] = ()
    # Figures of the same resamples of the test images in every cell, so that rows can be compared in pairs.
    ap_samples: tuple[float, ...] = ()
    ap50_samples: tuple[float, ...] = ()
    failure: str = ""  # why there are no figures: the training diverged

    @property
    def name(self) -> str:
        """That of the cell."""
        return f"{self.spec}--{self.recipe}--seed{self.seed}"


def run_cells(
    cells: Sequence[Cell],
    material: Material,
    folder: Path,
    settings: Settings,
    say: Callable[[str], object],
) -> list[Result]:
    """Train and measure all cells; those that are done are taken as they are, one that was killed goes on.

    A training whose loss is no number any more is a result too: it is written down, and the next cell begins.

    Args:
        cells: of :meth:`scaledyolo.train.ablation.grid.Grid.cells`.
        material: the images.
        folder: of all cells; made if needed.
        settings: of every training; the seed is the cell's.
        say: gets one line before and one after each cell.

    Raises:
        UsageError: the folder holds a cell of that name with other settings or on other images.
        ScaledYoloError: a training or measurement is not possible; names the cell.
    """
    check_weights(cells)
    planned = {cell: cell_key(cell, material, settings) for cell in cells}
    for cell, key in planned.items():
        known_result(folder / cell.name, key)  # before anything runs
    results = []
    for number, (cell, key) in enumerate(planned.items(), start=1):
        place = f"{number}/{len(planned)} {cell.name}"
        result = known_result(folder / cell.name, key)
        if result is None:
            say(f"{place}: training")
            try:
                result = run_cell(cell, material, folder / cell.name, replace(settings, seed=cell.seed), key)
            except ScaledYoloError as error:
                raise type(error)(f"cell {cell.name}: {error}") from error
            say(f"{place}: {told(result)}")
        else:
            say(f"{place}: done before, {told(result)}")
        results.append(result)
        gc.collect()  # networks hold each other in cycles, and the next one wants the memory
    return results


def check_weights(cells: Sequence[Cell]) -> None:
    """Refuse checkpoints that do not exist or hardly fit, before anything runs.

    Raises:
        ScaledYoloError: names the cell.
    """
    for cell in dict.fromkeys(replace(cell, seed=0) for cell in cells if cell.weights is not None):
        assert cell.weights is not None
        try:
            transfer(Network(lower(cell.spec)), load_model(cell.weights))
        except ScaledYoloError as error:
            raise type(error)(f"cell {cell.spec_name} x {cell.recipe_name}: {error}") from None


def told(result: Result) -> str:
    """A result in a few words."""
    if result.failure:
        return f"failed: {result.failure}"
    ap, ap50 = (f"{value:.4f}" if value is not None else "undefined" for value in (result.ap, result.ap50))
    return f"AP {ap}, AP50 {ap50}, {result.minutes:.1f} min"


def cell_key(cell: Cell, material: Material, settings: Settings) -> str:
    """SHA-256 of everything that decides the figures of a cell on one machine."""
    deciding = {
        "spec": to_mapping(cell.spec),
        "recipes": [to_mapping(recipe) for recipe in cell.recipes],
        "seed": cell.seed,
        "weights": None if cell.weights is None else hashlib.sha256(chosen_file(cell.weights).read_bytes()).hexdigest(),
        "data": material.fingerprint,
        "settings": {name: getattr(settings, name) for name in ("precision", "evaluate_every", "patience", "freeze")},
    }
    return hashlib.sha256(json.dumps(deciding, sort_keys=True).encode()).hexdigest()


def known_result(folder: Path, key: str) -> Result | None:
    """The result of a cell that is done; None where it is not.

    Raises:
        UsageError: the folder belongs to another cell.
        FormatError: its result is damaged.
    """
    path = folder / RESULT_FILE
    marker = folder / KEY_FILE
    if marker.is_file() and marker.read_text(encoding="utf-8").strip() != key:
        raise UsageError(
            f"{folder}: holds this cell with another network, recipe, seed, images or settings; choose another folder "
            "with --out, or delete it"
        )
    if not path.is_file():
        return None
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
        if document.pop("format", None) != FORMAT:
            raise FormatError(f"{path}: not written by this version; delete it, and the cell is measured again")
        return from_mapping(Result, document, str(path), FormatError)
    except (OSError, ValueError, AttributeError) as error:
        raise FormatError(f"{path}: damaged ({error}); delete it, and the cell is measured again") from None


def run_cell(cell: Cell, material: Material, folder: Path, settings: Settings, key: str) -> Result:
    """Train one cell, or go on with it, and measure it; the result is written into its folder."""
    folder.mkdir(parents=True, exist_ok=True)
    with atomic_file(folder / KEY_FILE) as temporary:
        temporary.write_text(key + "\n", encoding="utf-8")
    run = Run(spec=cell.spec, recipes=cell.recipes, settings=settings, data=material.source)
    total = cost(lower(cell.spec))
    result = Result(
        spec=cell.spec_name,
        recipe=cell.recipe_name,
        seed=cell.seed,
        key=key,
        params=total.params,
        gflops=total.gflops,
        size=cell.spec.size,
    )
    fabric = launch(settings)
    # Before its first save a run has nothing to go on from; it begins anew in the same folder.
    resume = (folder / STATE_FILE).is_file()
    start = load_model(cell.weights) if cell.weights is not None and not resume else None
    training = prepare(fabric, folder, run, material.train, material.val, start=start, resume=resume)
    try:
        fit(training)
        figures = measure(folder / BEST_FILE, material)
        result = replace(result, **figures)
    except NonFiniteError as error:
        result = replace(result, failure=str(error))
    result = replace(result, **_effort(training))
    document = {"format": FORMAT, **to_mapping(result)}
    with atomic_file(folder / RESULT_FILE) as temporary:
        temporary.write_text(json.dumps(document) + "\n", encoding="utf-8")
    return result


def _effort(training: Training) -> dict[str, Any]:
    progress = training.progress
    return {
        "epochs": progress.epoch,
        "best_epoch": max(progress.best_epoch, 0),
        "minutes": round(progress.seconds / 60, 3),
    }


def measure(model: Path | Checkpoint, material: Material) -> dict[str, Any]:
    """The figures of :class:`Result` for a trained model, as `scaledyolo eval` computes them."""
    detector = Detector(model, engine=material.engine, half=False)  # as eval: figures of the model, not of the machine
    truth = ground_truth(material.test)
    found = predict_views(
        material.test,
        detector.views,
        material.protocol,
        merge=detector.merge,
        resize=detector.resize,
    )
    metrics = coco_metrics(truth, found)
    matching = match(truth, found, max_detections=material.protocol.scored_detections)
    ap_samples, ap50_samples = resampled_means(matching, num_resamples=NUM_RESAMPLES)
    return {
        "ap": _plain(metrics.ap),
        "ap50": _plain(metrics.ap50),
        "class_ap": tuple(_plain(value) for value in metrics.class_ap.tolist()),
        "ap_samples": _rounded(ap_samples),
        "ap50_samples": _rounded(ap50_samples),
    }


def _plain(value: float) -> float | None:
    return None if np.isnan(value) else float(value)


def _rounded(samples: np.ndarray) -> tuple[float, ...]:
    """Six digits; a resample in which nothing was to be found counts as none found."""
    return tuple(np.nan_to_num(samples).round(6).tolist())
