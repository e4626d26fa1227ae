"""Is an artefact the network it was exported from? It is run in its runtimes and compared with the network itself."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from scaledyolo.artefact import ModelFacts
from scaledyolo.checkpoint import Checkpoint
from scaledyolo.engines.select import describe_engine
from scaledyolo.errors import FormatError
from scaledyolo.export.average_precision import average_precision
from scaledyolo.export.compare import (
    TOLERANCES,
    BoxErrors,
    Tolerance,
    compare_boxes,
    compare_detections,
    compare_facts,
    compare_map,
)
from scaledyolo.export.formats import find_format, format_of, runtimes_of
from scaledyolo.export.images import Image, verification_images
from scaledyolo.export.origin import check_same_network, find_origin
from scaledyolo.export.reference import Expected, Question, expected_answers
from scaledyolo.export.report import ApDifference, Case, RuntimeCheck, VerificationReport, report_path
from scaledyolo.postprocess import NMS, decode_candidates, suppress
from scaledyolo.runnable import METADATA_FILE, PathLike, Runnable, file_digest, network_file, rows_as_candidates
from scaledyolo.subnet import same_part
from scaledyolo.weights import Array

if TYPE_CHECKING:
    from scaledyolo.data.dataset import Dataset

BATCHES = (1, 2, 7)


def verify(
    artefact: str | os.PathLike[str],
    against: Checkpoint | None = None,
    *,
    images: Sequence[str | Path] = (),
    data: Dataset | None = None,
    engine: str = "auto",
    names: PathLike | None = None,
    mark: bool = True,
) -> VerificationReport:
    """Compare an artefact with the model it was exported from, write the report and mark the artefact.

    It runs at batch 1, 2 and 7 and at two sizes, as far as they are free, on photographs, in every installed runtime
    that a detector may take for it. Raw maps are compared value by value and decoded boxes row by row, each side by its
    own account of heads and anchors; of an end-to-end graph the detections are matched one to one; what the metadata
    says about classes and input is compared too. The reference is the network as it was trained, unfolded, in torch;
    without torch it is the network in ONNX Runtime.

    Args:
        artefact: the file or folder.
        against: the model; by default the file that the metadata names, if it still is what it was.
        images: photographs; by default built-in ones.
        data: a data set on which AP is compared as well.
        engine: "auto" for all installed runtimes of the format, or one of them.
        names: file with the class names of the model that the metadata names, if it does not hold them.
        mark: whether the artefact is marked ``verified`` or ``UNVERIFIED`` in its metadata and the report is written.

    Raises:
        MissingOriginError: the model was not given and is not found; see :func:`~scaledyolo.export.recheck.recheck`.
        UsageError: the model was not given and has changed since, or is another one than the artefact was exported
            from, of which only ``mark=False`` shows the differences.
        ScaledYoloError: the artefact or an image cannot be read. Differences are no error: see ``report.passed``.
    """
    path = Path(artefact)
    name = format_of(path)
    form = find_format(name)
    facts, runtimes = form.read(path), runtimes_of(name, engine)
    model = find_origin(path, facts, names) if against is None else against
    model = same_part(model, facts.provenance)
    if mark:
        check_same_network(path, facts, model)
    photographs, questions = verification_images(images), _questions(facts)
    expected = expected_answers(model, facts, questions, photographs, data)
    checks = [_check(form.open(path, runtime), questions, expected, photographs, data) for runtime in runtimes]
    # A format without metadata of its own has no place for the ids of the original data set.
    described = expected.facts if form.metadata else replace(expected.facts, category_ids=facts.category_ids)
    report = VerificationReport(
        artefact=path.name,
        format=name,
        digest=artefact_digest(path, name),
        reference=expected.engine,
        differences=compare_facts(facts, described),
        checks=tuple(checks),
        quantisation=facts.quantisation,
    )
    if not mark:
        return report
    form.mark(path, replace(facts, verification="verified" if report.passed else "UNVERIFIED"))
    report = replace(report, digest=artefact_digest(path, name))
    report.save(report_path(path))
    return report


def artefact_digest(path: Path, format_name: str) -> str:
    """SHA-256 over the files that make up an artefact: network, weights and metadata."""
    if format_name == "darknet":
        files = [path, path.with_suffix(".weights")]
    else:
        network = network_file(path)
        files = [network, *([network.with_name(METADATA_FILE)] if format_name in ("openvino", "ncnn") else [])]
    digests = [file_digest(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _questions(facts: ModelFacts) -> list[Question]:
    """Batches of 1, 2 and 7 at the artefact's own size and, where sizes are free, at a small one that is not square."""
    stride = facts.max_stride
    sizes = [(facts.height, facts.width), *([(3 * stride, 4 * stride)] if facts.dynamic else [])]
    batches = BATCHES if facts.batch is None else (facts.batch,)
    return [Question(batch, height, width) for height, width in sizes for batch in batches]


def _check(
    found: Runnable,
    questions: Sequence[Question],
    expected: Expected,
    images: Sequence[Image],
    data: Dataset | None,
) -> RuntimeCheck:
    """Put every question to one runtime."""
    precision, tolerance = tolerance_of(found)
    cases = [
        _case(found, question, maps, expected.facts, images, tolerance)
        for question, maps in zip(questions, expected.maps, strict=True)
    ]
    ap = None
    if data is not None and expected.ap is not None:
        ap = ApDifference(str(data.source), len(data), expected.ap, average_precision(found, data, found.facts))
    return RuntimeCheck(
        engine=describe_engine(found.engine),
        tolerance_name=precision,
        tolerance=tolerance,
        cases=tuple(cases),
        ap=ap,
    )


def tolerance_of(found: Runnable) -> tuple[str, Tolerance]:
    """What may differ, and its name: as much as the engine's precision, the stored one or 8 bits bring about."""
    precision = found.engine.precision if found.engine.precision != "float32" else found.facts.storage
    quantisation = found.facts.quantisation
    if quantisation is None or quantisation.max_ap_drop is None:
        return precision, TOLERANCES[precision]
    # The limit was kept against the float network in the same runtime, which has a tolerance of its own.
    ap_points = quantisation.max_ap_drop + TOLERANCES["float32"].ap_points
    return precision, replace(TOLERANCES[precision], ap_points=ap_points)


def _case(
    found: Runnable,
    question: Question,
    expected: Sequence[Array],
    reference: ModelFacts,
    images: Sequence[Image],
    tolerance: Tolerance,
) -> Case:
    # Both sides see the same canvas: that of the model. Another resize rule of the artefact shows in its metadata.
    outputs = found.run(question.input(images, reference))
    batch, size = question.batch, (question.height, question.width)
    if found.facts.nms is not None:
        return Case(batch, *size, (), _compare_rows(found.facts, outputs, reference, expected, size, tolerance))
    names = getattr(found.engine, "heads", ()) or [f"head {index}" for index in range(len(expected))]
    if len(outputs) != len(expected):
        raise FormatError(f"the artefact has {len(outputs)} outputs, the network {len(expected)} heads")
    maps = tuple(compare_map(*item) for item in zip(names, outputs, expected, strict=True))
    boxes = compare_boxes(outputs, found.facts.detects, expected, reference.detects, size, tolerance)
    return Case(batch, *size, maps, boxes)


def _compare_rows(
    facts: ModelFacts,
    outputs: Sequence[Array],
    reference: ModelFacts,
    expected: Sequence[Array],
    size: tuple[int, int],
    tolerance: Tolerance,
) -> BoxErrors:
    """Match the rows of an end-to-end graph with what decoding and suppression make of the network's maps."""
    assert facts.nms is not None
    settings = facts.nms
    nms = NMS(iou=settings.iou, class_agnostic=settings.class_agnostic, max_detections=settings.max_detections)
    candidates = decode_candidates(expected, reference.detects, size, settings.confidence)
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
