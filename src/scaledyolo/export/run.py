"""From a model to a verified artefact: written beside its place, compared, marked, and only then put there."""

from __future__ import annotations

import contextlib
import os
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from scaledyolo.artefact import EmbeddedNms, ModelFacts, Verification
from scaledyolo.checkpoint import Checkpoint
from scaledyolo.errors import OutputError, ScaledYoloError, UsageError
from scaledyolo.export.formats import Job, artefact_path, find_format, make_job, runs_here
from scaledyolo.export.origin import TENSORS, Source, record_origin, tensors_digest
from scaledyolo.export.quantise import Int8, check_int8, quantised
from scaledyolo.export.report import VerificationReport, report_path
from scaledyolo.export.verify import verify
from scaledyolo.runnable import COREML_SUFFIX, METADATA_FILE

if TYPE_CHECKING:
    from scaledyolo.data.dataset import Dataset


@dataclass(frozen=True)
class ExportReport:
    """An artefact that was written."""

    path: Path
    facts: ModelFacts
    num_bytes: int  # of all its files
    verification: VerificationReport | None  # None where it was not asked for


def export(  # noqa: PLR0913 - the options of the product, all by name
    model: Checkpoint,
    destination: str | os.PathLike[str] | None = None,
    *,
    format: str = "onnx",  # noqa: A002 - the word that everybody uses for it
    size: tuple[int, int] | None = None,
    dynamic: bool = False,
    batch: int | None = None,
    nms: EmbeddedNms | None = None,
    half: bool = False,
    int8: Int8 | None = None,
    verified: bool = True,
    images: Sequence[str | Path] = (),
    data: Dataset | None = None,
    source: Source | None = None,
    name: str | None = None,
    force: bool = True,
) -> ExportReport:
    """Write a model in the format of a runtime and prove that it computes the same.

    The artefact carries class names, size, resize rule, heads and provenance in its metadata, so that
    ``Detector(path)`` needs nothing else. Beside it lies ``<artefact>.verified.json``. It appears in its place only
    when it is complete and marked; one that differs is kept, marked ``UNVERIFIED``: look at ``verification.passed``.

    Args:
        model: the model.
        destination: file or folder to create, or a folder to put it in; by default the current one.
        format: one of :data:`~scaledyolo.export.formats.FORMATS`.
        size: (height, width) in pixels; by default the model's own.
        dynamic: leave height and width free.
        batch: images at a time; None for any number.
        nms: make decoding and suppression part of the graph.
        half: store weights as float16.
        int8: quantise to 8 bits, calibrated on these images; where there is ``data``, within a limit on the loss of AP.
        verified: whether to verify at all.
        images: photographs to verify on.
        data: data set to compare AP on.
        source: the file or files that the model was loaded from, or the name of official weights; recorded, so that
            the artefact can be verified again without naming it.
        name: what the artefact is called where the destination does not say; by default as the network.
        force: whether an artefact that exists is replaced.

    Raises:
        UsageError: an option that the format does not have; or the artefact exists and ``force`` is off.
        ConversionError: the network cannot be expressed in the format.
        ConversionError: 8 bits cost more AP than allowed, or are not faster.
        MissingPackageError: the format needs a package that is not installed.
        OutputError: the disk refused; nothing half-written remains.
    """
    path = artefact_path(name or model.graph.name, destination, format)
    origin = {} if source is None else record_origin(source, path)
    facts = {
        "nms": nms,
        "storage": "float16" if half else "float32",
        "provenance": {**model.provenance, **origin, TENSORS: tensors_digest(model.weights)},
    }
    job = make_job(model, format, size=size, dynamic=dynamic, batch=batch, facts=facts)
    _check_replaceable(path, source, force)
    with _quantised(job, format, int8, data) as job, _workshop(path) as folder:
        draft = folder / path.name
        find_format(format).write(job, draft)
        report = verify(draft, model, images=images, data=data) if verified and runs_here(format) else None
        facts_now = replace(job.facts, verification=_verdict(report))
        num_bytes = sum(file.stat().st_size for file in _files(folder) if not file.name.endswith(".verified.json"))
        _publish(folder, path)
    return ExportReport(path, facts_now, num_bytes, report)


@contextlib.contextmanager
def _quantised(job: Job, format_name: str, int8: Int8 | None, data: Dataset | None) -> Iterator[Job]:
    """The job, in 8 bits if that is wished; the files it is made of are gone when the block ends."""
    if int8 is None:
        yield job
        return
    check_int8(int8, format_name, job.facts.storage == "float16", data)
    with tempfile.TemporaryDirectory(prefix="scaledyolo-", ignore_cleanup_errors=True) as scratch:
        yield quantised(job, format_name, int8, data, Path(scratch))


def _verdict(report: VerificationReport | None) -> Verification:
    if report is None:
        return "pending"
    return "verified" if report.passed else "UNVERIFIED"


def _check_replaceable(path: Path, source: Source | None, force: bool) -> None:
    """Refuse to replace a folder that is not an artefact, the model itself, or, without ``force``, anything.

    Raises:
        OutputError: it is none, or its parent does not exist.
        UsageError: it exists.
    """
    for file in () if source is None else (source,) if isinstance(source, str | os.PathLike) else source:
        if path.exists() and Path(file).exists() and path.samefile(file):
            raise OutputError(f"{path}: is the model that is exported; give another name with --out")
    if path.is_dir() and path.suffix != COREML_SUFFIX and not (path / METADATA_FILE).is_file():
        raise OutputError(f"{path}: a folder that is not an exported model is in the way; choose another name")
    if path.exists() and not force:
        raise UsageError(f"{path}: exists already; give another name with --out, or --force to replace it")
    if not path.parent.is_dir():
        raise OutputError(f"{path.parent}: no such folder; create it first")


@contextlib.contextmanager
def _workshop(path: Path) -> Iterator[Path]:
    """A temporary folder beside ``path``, on the same disk, which is gone when the block ends."""
    try:
        with tempfile.TemporaryDirectory(prefix=f".{path.name}.", suffix=".part", dir=path.parent) as folder:
            yield Path(folder)
    except OSError as error:
        raise OutputError(f"{path} cannot be written: {error.strerror or error}; nothing was changed") from None
    except RuntimeError as error:  # how OpenVINO and torch report a disk that refuses
        if isinstance(error, ScaledYoloError):
            raise
        reason = str(error).strip().splitlines()[-1]
        raise OutputError(f"{path} cannot be written: {reason}; nothing was changed") from None


def _files(folder: Path) -> Iterator[Path]:
    return (file for file in folder.rglob("*") if file.is_file())


def _publish(folder: Path, path: Path) -> None:
    """Move everything from the workshop to its place; the report last, so that none speaks of a missing artefact."""
    report = report_path(path)
    report.unlink(missing_ok=True)
    for item in sorted(folder.iterdir(), key=lambda item: item.name == report.name):
        target = path.parent / item.name
        _sync(item)
        if target.is_dir():
            replaced = folder / f"{item.name}.replaced"
            target.rename(replaced)
            item.rename(target)
            shutil.rmtree(replaced, ignore_errors=True)
        else:
            item.replace(target)


def _sync(item: Path) -> None:
    for file in [item] if item.is_file() else _files(item):
        with file.open("rb+") as stream:
            os.fsync(stream.fileno())
