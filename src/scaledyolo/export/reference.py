"""What an artefact has to compute: the maps of the model itself, as it was trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from scaledyolo.arch.graph import Graph
from scaledyolo.artefact import ModelFacts
from scaledyolo.checkpoint import Checkpoint
from scaledyolo.engines.select import describe_engine
from scaledyolo.export.average_precision import average_precision
from scaledyolo.export.images import Image, input_batch
from scaledyolo.runnable import Runnable
from scaledyolo.weights import Array, Weights

if TYPE_CHECKING:
    from scaledyolo.data.dataset import Dataset


@dataclass(frozen=True, slots=True)
class Question:
    """One batch that is put to both networks."""

    batch: int
    height: int
    width: int

    def input(self, images: Sequence[Image], facts: ModelFacts) -> Array:
        """The network input (batch, 3, height, width) float32."""
        return input_batch(images, self.batch, self.height, self.width, facts.resize)


@dataclass(frozen=True)
class Expected:
    """The model's answers: kept, so that neither the model nor two runtimes need be in memory at a time."""

    engine: str  # what computed them
    facts: ModelFacts  # the model's own, at the size of the artefact
    maps: tuple[list[Array], ...]  # one entry for each question
    ap: float | None  # where there is a data set


def expected_answers(
    checkpoint: Checkpoint,
    artefact: ModelFacts,
    questions: Sequence[Question],
    images: Sequence[Image],
    data: Dataset | None = None,
) -> Expected:
    """Let the model answer: the network as it was trained, unfolded, in torch; without torch in ONNX Runtime.

    Args:
        checkpoint: the model.
        artefact: what the artefact says about itself: size, and suppression if that is part of it.
        questions: batches and sizes.
        images: what they are made of.
        data: a data set to measure AP on.
    """
    network = _reference(checkpoint, artefact)
    maps = tuple(network.run(question.input(images, network.facts)) for question in questions)
    ap = None if data is None else average_precision(network, data, artefact)
    return Expected(describe_engine(network.engine), network.facts, maps, ap)


class _TorchReference:
    """The network as it was trained: nothing folded, cascaded or rewritten; float32 on the CPU."""

    name, device, precision = "torch (unfolded network)", "cpu", "float32"
    size: tuple[int, int] | None = None
    batch: int | None = None

    def __init__(self, graph: Graph, weights: Weights) -> None:
        import torch

        from scaledyolo.net.network import Network

        self._torch: Any = torch
        self._network = Network(graph, inference=True)
        self._network.load(weights)
        self._network.requires_grad_(False).eval()

    @property
    def version(self) -> str:
        return str(self._torch.__version__)

    def run(self, images: Array) -> list[Array]:
        with self._torch.inference_mode():
            maps = self._network(self._torch.from_numpy(images))
            return [np.ascontiguousarray(raw.numpy()) for raw in maps]


def _reference(checkpoint: Checkpoint, facts: ModelFacts) -> Runnable:
    """The model itself as something to run, at the size of the artefact."""
    graph, weights = checkpoint.graph, dict(checkpoint.weights)
    described = replace(ModelFacts.of(checkpoint), height=facts.height, width=facts.width)
    try:
        return Runnable(_TorchReference(graph, weights), described)
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
    from scaledyolo.engines.onnxruntime import OnnxRuntimeEngine

    return Runnable(OnnxRuntimeEngine.from_graph(graph, weights), described)
