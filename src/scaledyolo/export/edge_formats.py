"""Formats of the runtimes of phones and boards: ncnn, TensorFlow Lite (now LiteRT) and Core ML."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from scaledyolo.artefact import ModelFacts
from scaledyolo.runnable import FACTS_ENTRY, METADATA_FILE

if TYPE_CHECKING:
    from scaledyolo.export.formats import Job


def write_ncnn(job: Job, path: Path) -> None:
    """A folder with ``.param``, ``.bin`` and the facts."""
    from scaledyolo.convert.ncnn_writer import to_ncnn

    facts = job.facts
    model = to_ncnn(job.graph, job.weights, dynamic=facts.dynamic, half=facts.storage == "float16")
    path.mkdir()
    (path / f"{job.stem}.param").write_text(model.param, encoding="utf-8")
    (path / f"{job.stem}.bin").write_bytes(model.weights)
    text = json.dumps(facts.to_metadata(), indent=1, ensure_ascii=False)
    (path / METADATA_FILE).write_text(text + "\n", encoding="utf-8")


def write_tflite(job: Job, path: Path) -> None:
    """A ``.tflite`` file that holds the facts."""
    from scaledyolo.convert.tflite_writer import to_tflite

    facts = job.facts
    half = facts.storage == "float16"
    path.write_bytes(to_tflite(job.graph, job.weights, batch=facts.batch, half=half, metadata=_metadata(facts)))


def mark_tflite(path: Path, facts: ModelFacts) -> None:
    """Write other facts into a ``.tflite`` file, in place."""
    from scaledyolo.convert.tflite_file import with_metadata

    path.write_bytes(with_metadata(path.read_bytes(), _metadata(facts)))


def _metadata(facts: ModelFacts) -> dict[str, str]:
    return {FACTS_ENTRY: json.dumps(facts.to_metadata(), ensure_ascii=False)}


def write_coreml(job: Job, path: Path) -> None:
    """An ``.mlpackage`` folder, computed in float32, that holds the facts."""
    from scaledyolo.convert.coreml_package import save_package
    from scaledyolo.convert.coreml_writer import to_program

    save_package(to_program(job.graph, job.weights, batch=job.facts.batch or 1), path, _metadata(job.facts))


def mark_coreml(path: Path, facts: ModelFacts) -> None:
    """Write other facts into an ``.mlpackage`` folder, in place."""
    from scaledyolo.convert.coreml_package import change_metadata

    change_metadata(path, _metadata(facts))
