"""From what a user names to a network that is ready to run: models, or files exported for a runtime."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final

import numpy as np

from scaledyolo.artefact import ModelFacts
from scaledyolo.checkpoint import Checkpoint
from scaledyolo.default_model import DEFAULT
from scaledyolo.engines.base import Engine, choose, side_by_side
from scaledyolo.engines.faithful import probe_image, scene
from scaledyolo.engines.select import AUTO, choose_engine, open_engine, openvino_device, openvino_precision
from scaledyolo.errors import FormatError, UsageError
from scaledyolo.model import load_model
from scaledyolo.postprocess import Candidates
from scaledyolo.subnet import subnet_checkpoint
from scaledyolo.weights import Array

if TYPE_CHECKING:
    from scaledyolo.engines.onnxruntime import OnnxRuntimeEngine
    from scaledyolo.engines.openvino import OpenVinoEngine

PathLike = str | os.PathLike[str]
ModelSource = PathLike | tuple[PathLike, PathLike] | Checkpoint

METADATA_FILE: Final = "metadata.json"
ONNX_SUFFIX, OPENVINO_SUFFIX = ".onnx", ".xml"
_RUNTIMES: Final = {ONNX_SUFFIX: ("openvino", "onnxruntime"), OPENVINO_SUFFIX: ("openvino",)}


@dataclass(frozen=True)
class Runnable:
    """A network in an engine, and what one has to know about it."""

    engine: Engine
    facts: ModelFacts

    def run(self, images: Array) -> list[Array]:
        """Outputs for any number of images, whatever number the engine was built for; see `Engine.run`.

        Where that number is fixed, images go through in groups, the last one filled up with copies.
        """
        batch = self.engine.batch
        if batch is None or len(images) == batch:
            return self.engine.run(images)
        groups = []
        for start in range(0, len(images), batch):
            group = images[start : start + batch]
            filling = np.repeat(group[-1:], batch - len(group), axis=0)
            outputs = self.engine.run(np.concatenate((group, filling)) if len(filling) else group)
            groups.append([output[: len(group)] for output in outputs])
        return [np.concatenate(parts) for parts in zip(*groups, strict=True)]

    def side_by_side(self) -> Runnable:
        """The same network for runs from several threads at once; see :func:`scaledyolo.engines.base.side_by_side`."""
        return replace(self, engine=side_by_side(self.engine))


def open_runnable(
    model: ModelSource,
    *,
    engine: str = AUTO,
    device: str = AUTO,
    half: bool | None = None,
    threads: int | None = None,
    names: PathLike | Sequence[str] | None = None,
    download: bool = False,
    subnet: str | None = None,
) -> Runnable:
    """Open a model or an exported file in an engine; for the arguments see :class:`scaledyolo.Detector`.

    ``subnet`` names what to cut out of the model first, see :func:`scaledyolo.subnet.subnet_checkpoint`.

    Raises:
        ScaledYoloError: the model cannot be read, or the engine cannot run it.
    """
    if isinstance(model, (str, os.PathLike)) and is_artefact(model):
        if subnet:
            raise UsageError(
                f"{os.fspath(model)}: an exported network is fixed; give the checkpoint, or export its subnet: "
                f"scaledyolo export MODEL --subnet {subnet}"
            )
        return _open_artefact(Path(model), engine, device, half, threads)
    checkpoint = model if isinstance(model, Checkpoint) else load_model(model, names=names, download=download)
    checkpoint = subnet_checkpoint(checkpoint, subnet) if subnet else checkpoint
    opened = open_engine(engine, checkpoint.graph, dict(checkpoint.weights), device=device, half=half, threads=threads)
    return Runnable(opened, ModelFacts.of(checkpoint))


def is_artefact(path: PathLike) -> bool:
    """Whether a path names a file or folder for a runtime rather than a model."""
    path = Path(path)
    if os.fspath(path) == DEFAULT:
        return False
    return path.suffix.lower() in _RUNTIMES or (path.is_dir() and bool(list(path.glob("*.xml"))))


def network_file(path: Path) -> Path:
    """The file that the runtime reads: the path itself, or the one .xml of a folder.

    Raises:
        FormatError: there is none, or more than one.
    """
    if path.is_file():
        return path
    if not path.is_dir():
        raise FormatError(f"{path}: no such file or folder")
    found = sorted(path.glob("*.xml"))
    if len(found) != 1:
        raise FormatError(f"{path}: an OpenVINO folder holds one .xml file, this one {len(found)}")
    return found[0]


def read_facts(path: Path) -> ModelFacts:
    """What an artefact says about itself.

    Raises:
        FormatError: it is missing, damaged, or was not exported by this package.
    """
    file = network_file(path)
    if file.suffix.lower() == OPENVINO_SUFFIX:
        beside = file.with_name(METADATA_FILE)
        try:
            metadata = json.loads(beside.read_text(encoding="utf-8"))
        except OSError as error:
            raise FormatError(f"{beside}: {error.strerror}; it belongs to {file.name}") from None
        except ValueError as error:
            raise FormatError(f"{beside}: not JSON ({error})") from None
        return ModelFacts.from_metadata(metadata, str(beside))
    import onnx

    try:
        model = onnx.load(file, load_external_data=False)
    except Exception as error:  # protobuf has an exception type of its own
        raise FormatError(f"{file}: not an ONNX model ({str(error).splitlines()[0]})") from None
    return ModelFacts.from_metadata({entry.key: entry.value for entry in model.metadata_props}, str(file))


def _open_artefact(path: Path, engine: str, device: str, half: bool | None, threads: int | None) -> Runnable:
    facts, file = read_facts(path), network_file(path)
    runtimes = _RUNTIMES[file.suffix.lower()]
    choose("engine", engine, (AUTO, "openvino", "onnxruntime", "torch"))
    if engine == AUTO:
        chosen = choose_engine(AUTO, device, bool(half)).engine
        engine = chosen if chosen in runtimes else runtimes[-1]
    if engine not in runtimes:
        raise UsageError(f"{path}: runs in {' or '.join(runtimes)}, not in {engine}")
    opened = _OPENERS[engine](file, facts, device, half, threads)
    _check_outputs(path, len(opened.heads), facts)
    return Runnable(opened, facts)


def _check_outputs(path: Path, found: int, facts: ModelFacts) -> None:
    expected = len(facts.detects) if facts.nms is None else 2
    if found != expected:
        raise FormatError(f"{path}: its metadata describes {expected} outputs, the network has {found}")


def rows_as_candidates(
    outputs: Sequence[Array], confidence: float, class_ids: Sequence[int] | None = None
) -> list[Candidates]:
    """Detections of each image from the outputs of an end-to-end network.

    Args:
        outputs: ``detections`` (batch, rows, 6) and ``count`` (batch,).
        confidence: a score must be greater.
        class_ids: classes to keep; None for all.
    """
    detections, counts = outputs
    found = []
    for rows, count in zip(detections, counts, strict=True):
        rows = rows[: int(count)]
        keep = rows[:, 4] > confidence
        if class_ids is not None:
            keep &= np.isin(rows[:, 5], class_ids)
        rows = rows[keep]
        found.append(Candidates(rows[:, :4], rows[:, 4], rows[:, 5].astype(np.int64)))
    return found


# -- artefacts in engines ------------------------------------------------------------------------------------------


def _in_onnxruntime(
    file: Path, facts: ModelFacts, device: str, half: bool | None, threads: int | None
) -> OnnxRuntimeEngine:
    from scaledyolo.engines.onnxruntime import OnnxRuntimeEngine

    if half:
        raise UsageError(f"{file}: ONNX Runtime computes it in float32; use the openvino engine for half precision")
    return OnnxRuntimeEngine(file, threads=threads, device="cpu" if device == AUTO else device)


def _in_openvino(file: Path, facts: ModelFacts, device: str, half: bool | None, threads: int | None) -> OpenVinoEngine:
    from scaledyolo.engines.openvino import OpenVinoEngine

    device = openvino_device(device)
    digest = file_digest(file)

    def open_in(precision: str, keep: str | None = None) -> OpenVinoEngine:
        return OpenVinoEngine(file, device=device, precision=precision, threads=threads, cache_key=keep)

    def probe() -> Array:
        if facts.dynamic:
            return np.repeat(probe_image(facts.channels, facts.max_stride), facts.batch or 1, axis=0)
        return np.stack([scene(facts.channels, facts.height, facts.width, seed) for seed in range(facts.batch or 1)])

    # What an end-to-end network puts out are rows, whose order small errors change: no measure of faithfulness.
    half = False if half is None and facts.nms is not None else half
    return open_in(openvino_precision(device, half, digest, open_in, probe), digest)


_Open = Callable[[Path, ModelFacts, str, "bool | None", "int | None"], "OnnxRuntimeEngine | OpenVinoEngine"]
_OPENERS: Final[dict[str, _Open]] = {"onnxruntime": _in_onnxruntime, "openvino": _in_openvino}


def file_digest(file: Path) -> str:
    """SHA-256 over the files that make up a network: the file itself, and the weights beside an .xml."""
    digest = hashlib.sha256()
    for part in (file, file.with_suffix(".bin")) if file.suffix.lower() == OPENVINO_SUFFIX else (file,):
        try:
            with part.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise FormatError(f"{part}: {error.strerror or error}") from None
    return digest.hexdigest()
