"""Formats of the runtimes of phones and boards: ncnn and TensorFlow Lite, now LiteRT."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

from scaledyolo.arch.graph import Graph
from scaledyolo.artefact import ModelFacts
from scaledyolo.convert.tflite_file import with_metadata
from scaledyolo.runnable import METADATA_FILE, TFLITE_METADATA
from scaledyolo.weights import Weights

if TYPE_CHECKING:
    from scaledyolo.convert.ncnn_writer import NcnnModel


def write_ncnn(graph: Graph, weights: Weights, facts: ModelFacts, path: Path, stem: str) -> None:
    """A folder with ``.param``, ``.bin`` and the facts."""
    from scaledyolo.convert.ncnn_writer import to_ncnn

    model: NcnnModel = to_ncnn(graph, weights, dynamic=facts.dynamic, half=facts.storage == "float16")
    path.mkdir()
    (path / f"{stem}.param").write_text(model.param, encoding="utf-8")
    (path / f"{stem}.bin").write_bytes(model.weights)
    text = json.dumps(facts.to_metadata(), indent=1, ensure_ascii=False)
    (path / METADATA_FILE).write_text(text + "\n", encoding="utf-8")


def write_tflite(graph: Graph, weights: Weights, facts: ModelFacts, path: Path) -> None:
    """A ``.tflite`` file that holds the facts."""
    from scaledyolo.convert.tflite_writer import to_tflite

    half = facts.storage == "float16"
    path.write_bytes(to_tflite(graph, weights, batch=facts.batch, half=half, metadata=_metadata(facts)))


def mark_tflite(path: Path, facts: ModelFacts) -> None:
    """Write other facts into a ``.tflite`` file, in place."""
    path.write_bytes(with_metadata(path.read_bytes(), _metadata(facts)))


def _metadata(facts: ModelFacts) -> dict[str, str]:
    return {TFLITE_METADATA: json.dumps(facts.to_metadata(), ensure_ascii=False)}
