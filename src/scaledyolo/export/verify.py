"""Is an artefact the network it was exported from? It is run in its runtime and compared with the network itself."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from scaledyolo.arch.graph import Graph
from scaledyolo.artefact import ModelFacts
from scaledyolo.checkpoint import Checkpoint
from scaledyolo.engines.select import describe_engine
from scaledyolo.errors import FormatError, UsageError
from scaledyolo.export.compare import TOLERANCES, BoxErrors, compare_boxes, compare_detections, compare_map
from scaledyolo.export.formats import find_format, format_of
from scaledyolo.export.images import Image, input_batch, verification_images
from scaledyolo.export.report import ApDifference, Case, VerificationReport, report_path
from scaledyolo.postprocess import NMS, decode_candidates, suppress
from scaledyolo.runnable import METADATA_FILE, Runnable, file_digest, network_file, rows_as_candidates
from scaledyolo.weights import Array, Weights

if TYPE_CHECKING:
    from scaledyolo.data.dataset import Dataset

BATCHES = (1, 2, 7)


def verify(
    artefact: str | os.PathLike[str],
    against: Checkpoint,
    *,
    images: Sequence[str | Path] = (),
    data: Dataset | None = None,
    engine: str = "auto",
    mark: bool = True,
) -> VerificationReport:
    """Compare an artefact with the model it was exported from, write the report and mark the artefact.

    It runs at batch 1, 2 and 7 and at two sizes, as far as they are free, on photographs. Raw maps are compared value
    by value and decoded boxes row by row, each side by its own account of heads and anchors; of an end-to-end graph
    the detections are matched one to one. The reference is the network as it was trained, unfolded, in torch; without
    torch it is the network in ONNX Runtime.

    Args:
        artefact: the file or folder.
        against: the model.
        images: photographs; by default built-in ones.
        data: a data set on which AP is compared as well.
        engine: "auto" for the runtime of the format, or one that can run it too.
        mark: whether the artefact is marked ``verified`` or ``UNVERIFIED`` in its metadata and the report is written.

    Raises:
        ScaledYoloError: the artefact or an image cannot be read. Differences are no error: see ``report.passed``.
    """
    path = Path(artefact)
    name = format_of(path)
    form = find_format(name)
    found = form.open(path, engine)
    reference = _reference(against, found.facts)
    report = _compare(path, name, found, reference, verification_images(images), data)
    if not mark:
        return report
    form.mark(path, replace(form.read(path), verification="verified" if report.passed else "UNVERIFIED"))
    report = replace(report, digest=artefact_digest(path, name))
    report.save(report_path(path))
    return report


def artefact_digest(path: Path, format_name: str) -> str:
    """SHA-256 over the files that make up an artefact: network, weights and metadata."""
    if format_name == "darknet":
        files = [path, path.with_suffix(".weights")]
    else:
        network = network_file(path)
        files = [network, network.with_name(METADATA_FILE)] if format_name == "openvino" else [network]
    digests = [file_digest(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _compare(
    path: Path, name: str, found: Runnable, reference: Runnable, images: Sequence[Image], data: Dataset | None
) -> VerificationReport:
    precision = found.engine.precision if found.engine.precision != "float32" else found.facts.storage
    tolerance = TOLERANCES[precision]
    if found.facts.class_names != reference.facts.class_names:
        raise FormatError(f"{path}: its class names are not those of the model; it was exported from another one")
    cases = [
        _case(found, reference, batch, height, width, images, precision)
        for height, width in _sizes(found.facts)
        for batch in _batches(found.facts)
    ]
    return VerificationReport(
        artefact=path.name,
        format=name,
        digest=artefact_digest(path, name),
        engine=describe_engine(found.engine),
        reference=describe_engine(reference.engine),
        tolerance_name=precision,
        tolerance=tolerance,
        cases=tuple(cases),
        ap=None if data is None else _ap(found, reference, data),
    )


def _sizes(facts: ModelFacts) -> list[tuple[int, int]]:
    """The artefact's own size and, where sizes are free, a small one that is not square."""
    own = (facts.height, facts.width)
    stride = max(facts.strides)
    return [own, (3 * stride, 4 * stride)] if facts.dynamic else [own]


def _batches(facts: ModelFacts) -> Sequence[int]:
    return BATCHES if facts.batch is None else (facts.batch,)


def _case(
    found: Runnable,
    reference: Runnable,
    batch: int,
    height: int,
    width: int,
    images: Sequence[Image],
    precision: str,
) -> Case:
    tensor = input_batch(images, batch, height, width, found.facts.resize)
    outputs, expected = found.run(tensor), reference.run(tensor)
    size = (height, width)
    if found.facts.nms is not None:
        return Case(batch, height, width, (), _compare_rows(found.facts, outputs, reference.facts, expected, size))
    names = getattr(found.engine, "heads", ()) or [f"head {index}" for index in range(len(expected))]
    if len(outputs) != len(expected):
        raise FormatError(f"the artefact has {len(outputs)} outputs, the network {len(expected)} heads")
    maps = tuple(compare_map(*item) for item in zip(names, outputs, expected, strict=True))
    boxes = compare_boxes(outputs, found.facts.detects, expected, reference.facts.detects, size, TOLERANCES[precision])
    return Case(batch, height, width, maps, boxes)


def _compare_rows(
    facts: ModelFacts,
    outputs: Sequence[Array],
    reference: ModelFacts,
    expected: Sequence[Array],
    size: tuple[int, int],
) -> BoxErrors:
    """Match the rows of an end-to-end graph with what decoding and suppression make of the network's maps."""
    assert facts.nms is not None
    settings = facts.nms
    nms = NMS(iou=settings.iou, class_agnostic=settings.class_agnostic, max_detections=settings.max_detections)
    candidates = decode_candidates(expected, reference.detects, size, settings.confidence)
    tolerance = TOLERANCES[facts.storage]
    errors = [
        compare_detections(given, suppress(wanted, nms), tolerance)
        for given, wanted in zip(rows_as_candidates(outputs, settings.confidence), candidates, strict=True)
    ]
    return BoxErrors(
        compared=sum(item.compared for item in errors),
        matched=sum(item.matched for item in errors),
        worst_iou=min(item.worst_iou for item in errors),
        worst_score=max(item.worst_score for item in errors),
    )


def _ap(found: Runnable, reference: Runnable, data: Dataset) -> ApDifference:
    from scaledyolo.evaluate.coco import coco_metrics
    from scaledyolo.evaluate.protocols import COCO
    from scaledyolo.evaluate.run import ground_truth, predict

    facts = found.facts
    if facts.nms is not None:
        raise UsageError("AP needs every candidate; verify the artefact that was exported without --nms")
    truth = ground_truth(data)

    def measure(network: Runnable) -> float:
        detects = network.facts.detects
        size = (facts.height, facts.width)
        return coco_metrics(truth, predict(data, network.run, detects, *size, COCO, resize=facts.resize)).ap

    return ApDifference(data.source, len(data), measure(reference), measure(found))


# -- the reference -----------------------------------------------------------------------------------------------------


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
