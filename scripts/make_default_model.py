"""Turn the best checkpoint of a training into the model that the package ships, and write its card.

    python scripts/make_default_model.py runs/train/best.safetensors --speed

Writes ``src/scaledyolo/models/default.safetensors``, weights as float16, the same bytes for the same checkpoint, and
``docs/default_model.md`` with figures that are measured here, on the file that was written. ``--speed`` measures what
it takes on this machine too, which should be quiet then. The folder of the run, with ``run.json`` and ``epochs.csv``,
must lie around the checkpoint: where a model comes from is part of it; where it went on from the best checkpoint of an
earlier training, ``--before`` names that one's folder. Recipes and network are written beside the card, so that the
commands there can be repeated.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Final

import numpy as np
import torch
import tyro
import yaml
from default_model_card import Card, Measured, Speed, write_card
from run_records import ROOT, SHARED, RunRecord, read_record

from scaledyolo.bench.timing import interleaved
from scaledyolo.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from scaledyolo.classes import COCO_CATEGORY_IDS, COCO_NAMES
from scaledyolo.data.dataset import Dataset
from scaledyolo.data.formats import open_dataset
from scaledyolo.default_model import NETWORK, SHIPPED_FILE, TITLE_KEY
from scaledyolo.detector import Detector
from scaledyolo.errors import CheckpointError, MissingPackageError, ScaledYoloError
from scaledyolo.evaluate.analysis import analyse
from scaledyolo.evaluate.protocols import COCO
from scaledyolo.evaluate.run import ground_truth, predict_views
from scaledyolo.files import atomic_file
from scaledyolo.train.machine import environment

EXIT_ERROR: Final = 2
LICENCE: Final = "Apache-2.0"
# Figures come from one engine that computes in float32 wherever it runs.
REFERENCE_ENGINE: Final = "onnxruntime"
# Engine and half precision, by the name in the table of the card.
ENGINES: Final = {
    "OpenVINO": ("openvino", False),
    "OpenVINO, bfloat16": ("openvino", True),
    "ONNX Runtime": ("onnxruntime", False),
    "torch": ("torch", False),
}
SPEED_ROUNDS: Final = 30


@dataclass(frozen=True)
class Options:
    """From what, and where to."""

    checkpoint: tyro.conf.Positional[Path]
    """The best checkpoint of a training, in the folder of its run."""
    before: tuple[Path, ...] = ()
    """Folders of the trainings it went on from, each from the best checkpoint of the one before; the first is first."""
    data: Path = SHARED / "data" / "coco_mini"
    """Data set with the splits train, which it learnt from, and val, which it is measured on."""
    out: Path = SHIPPED_FILE
    """The model file to write."""
    card: Path = ROOT / "docs" / "default_model.md"
    """The model card to write."""
    speed: bool = False
    """Measure the time of an image with each engine that is installed."""


def read_chain(before: Sequence[Path], last: Path) -> list[RunRecord]:
    """The trainings that made a model, in order.

    Raises:
        CheckpointError: one had several stages, was never evaluated, or did not start as its place says.
    """
    records = [read_record(folder) for folder in (*before, last)]
    for place, record in enumerate(records):
        stages, evaluations = len(record.document["recipes"]), len(record.curve)
        if stages != 1 or not evaluations:
            raise CheckpointError(f"{record.folder}: {stages} stages, {evaluations} evaluations; one is needed")
        if (record.document["transfer"] is None) != (place == 0):
            start = "random" if record.document["transfer"] is None else "other"
            raise CheckpointError(f"{record.folder} started from {start} weights; name with --before what came before")
    return records


def write_sources(card: Path, records: Sequence[RunRecord]) -> list[RunRecord]:
    """Write recipes and network beside the card; returns the records with commands that name these files."""
    named = []
    network = card.with_name(f"{card.stem}_network.yaml")
    _write_yaml(network, records[0].document["spec"])
    for number, record in enumerate(records, start=1):
        recipe = card.with_name(f"{card.stem}_recipe{'' if number == 1 else f'_{number}'}.yaml")
        _write_yaml(recipe, record.document["recipes"][0])
        words = with_option(list(record.document["command"]), "--recipe", str(recipe))
        words = with_option(words, "--model", str(network))
        if number > 1:  # into the folders that `train` makes where no --out is given
            earlier = "train" if number == 2 else f"train{number - 1}"
            words = with_option(words, "--weights", f"runs/{earlier}/best.safetensors")
        named.append(replace(record, document={**record.document, "command": words}))
    return named


def _write_yaml(path: Path, content: object) -> None:
    with atomic_file(path) as temporary:
        temporary.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def with_option(words: Sequence[str], option: str, value: str) -> list[str]:
    """A command line with one option set, where it stood or at the end."""
    if option not in words:
        return [*words, option, value]
    place = list(words).index(option)
    return [*words[: place + 1], value, *words[place + 2 :]]


def shipped(checkpoint: Checkpoint, records: Sequence[RunRecord], train: Dataset) -> Checkpoint:
    """The checkpoint as it is shipped: with a title, its licence and where it comes from, without paths.

    Raises:
        CheckpointError: it is not of the network that the package promises, not of COCO's classes, was not trained on
            ``train``, or has values that float16 cannot hold.
    """
    if checkpoint.spec is None or checkpoint.spec.name != NETWORK:
        raise CheckpointError(f"the default model is a {NETWORK}, this checkpoint a {checkpoint.graph.name}")
    if checkpoint.class_names != COCO_NAMES:
        raise CheckpointError("the default model has COCO's 80 classes, this checkpoint others")
    if checkpoint.provenance.get("data_fingerprint") != train.fingerprint:
        raise CheckpointError(f"the checkpoint was not trained on {train.source}, for its fingerprint differs")
    for name, values in checkpoint.weights.items():
        if values.ndim > 1 and not np.abs(values).max() <= np.finfo(np.float16).max:
            raise CheckpointError(f"{name}: has values that float16 cannot hold")
    return replace(
        checkpoint,
        category_ids=COCO_CATEGORY_IDS,
        provenance={
            TITLE_KEY: f"{NETWORK} by scaledyolo, 80 classes, trained from scratch on {len(train):,} images of COCO",
            "source": "trained with scaledyolo",
            "licence": LICENCE,
            "data": f"{len(train):,} images of COCO val2017 with {train.annotations.num_boxes:,} boxes",
            "data_fingerprint": checkpoint.provenance["data_fingerprint"],
            "recipe": checkpoint.provenance["recipe"],
            "epochs": " + ".join(
                [*(str(len(record.epochs)) for record in records[:-1]), checkpoint.provenance["epochs"]]
            ),
            "seed": ", ".join(str(record.document["seed"]) for record in records),
            "command": " && ".join(record.command for record in records),
            "commit": ", ".join(dict.fromkeys(record.commit for record in records)),
        },
    )


def measure(path: Path, val: Dataset) -> Measured:
    """The figures of `scaledyolo eval`, on the file as it is shipped."""
    detector = Detector(path, engine=REFERENCE_ENGINE, half=False)
    truth = ground_truth(val)
    found = predict_views(val, detector.views, COCO, resize=detector.resize)
    analysis = analyse(truth, found, protocol=COCO)
    return Measured(
        metrics=analysis.coco,
        intervals=analysis.intervals,
        val=val,
        side=(detector.height, detector.width),
        engine=f"{detector.engine.name} {detector.engine.version}",
    )


def measure_speed(path: Path, image: np.ndarray) -> list[Speed]:
    """Milliseconds from image to detections with each engine that is installed, one image at a time, in turns."""
    detectors: dict[str, Detector] = {}
    for name, (engine, half) in ENGINES.items():
        try:
            detectors[name] = Detector(path, engine=engine, half=half)
        except (MissingPackageError, ScaledYoloError) as error:
            print(f"{name}: left out, {error}", file=sys.stderr)
    runs: dict[tuple[str, str], Callable[[], object]] = {}
    for name, detector in detectors.items():
        batch = np.zeros((1, 3, detector.height, detector.width), np.float32)
        runs[name, "whole"] = partial(detector.detect_batch, [image])
        runs[name, "network"] = partial(detector.network.run, batch)
    timings = interleaved(runs, rounds=SPEED_ROUNDS)
    return [
        Speed(
            name,
            version=detector.engine.version,
            median_ms=timings[name, "whole"].median_ms,
            p95_ms=timings[name, "whole"].p95_ms,
            network_ms=timings[name, "network"].median_ms,
        )
        for name, detector in detectors.items()
    ]


def make(options: Options) -> None:
    """Write the model and its card."""
    checkpoint, records = load_checkpoint(options.checkpoint), read_chain(options.before, options.checkpoint.parent)
    train, val = open_dataset(options.data, "train"), open_dataset(options.data, "val")
    options.out.parent.mkdir(parents=True, exist_ok=True)
    options.card.parent.mkdir(parents=True, exist_ok=True)
    records = write_sources(options.card.absolute(), records)
    save_checkpoint(options.out, shipped(checkpoint, records, train), dtype="float16")
    measured = measure(options.out, val)
    speeds = measure_speed(options.out, val.load_image(0)) if options.speed else []
    machine = environment(torch.device("cpu"), processes=1)
    place = f"{machine['processor']}, {machine['cpus']} cores"
    card = Card(load_checkpoint(options.out), options.out, records, train, measured, speeds, place)
    write_card(options.card, card)
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB, AP {measured.metrics.ap:.4f}")
    print(f"{options.card}: written")


def main(arguments: Sequence[str] | None = None) -> int:
    """Exit code: 0 written, 2 where something does not fit."""
    options = tyro.cli(Options, args=arguments, description=__doc__)
    try:
        make(options)
    except ScaledYoloError as error:
        print(f"make_default_model: {error}", file=sys.stderr)
        return EXIT_ERROR
    return 0


if __name__ == "__main__":
    sys.exit(main())
