"""From what a user names to a network that is ready to run: models, or files exported for a runtime."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Final, TypeAlias

import numpy as np

from scaledyolo.artefact import ModelFacts
from scaledyolo.checkpoint import Checkpoint
from scaledyolo.classes import replacing_names
from scaledyolo.default_model import DEFAULT
from scaledyolo.engines.base import Engine, choose, prepare, side_by_side
from scaledyolo.engines.faithful import probe_image, scene
from scaledyolo.engines.select import AUTO, choose_engine, open_engine, openvino_device, openvino_precision
from scaledyolo.errors import FormatError, UsageError
from scaledyolo.model import load_model
from scaledyolo.postprocess import Candidates
from scaledyolo.strict import parse_json
from scaledyolo.subnet import subnet_checkpoint
from scaledyolo.weights import Array

if TYPE_CHECKING:
    from scaledyolo.engines.coreml import CoreMlEngine
    from scaledyolo.engines.litert import LiteRtEngine
    from scaledyolo.engines.ncnn import NcnnEngine
    from scaledyolo.engines.onnxruntime import OnnxRuntimeEngine
    from scaledyolo.engines.openvino import OpenVinoEngine

PathLike = str | os.PathLike[str]

METADATA_FILE: Final = "metadata.json"
FACTS_ENTRY: Final = "scaledyolo.json"  # name under which tflite files and Core ML packages hold the facts
ONNX_SUFFIX, OPENVINO_SUFFIX, NCNN_SUFFIX = ".onnx", ".xml", ".param"
TFLITE_SUFFIX, COREML_SUFFIX = ".tflite", ".mlpackage"
_RUNTIMES: Final = {
    ONNX_SUFFIX: ("openvino", "onnxruntime"),
    OPENVINO_SUFFIX: ("openvino",),
    NCNN_SUFFIX: ("ncnn",),
    TFLITE_SUFFIX: ("litert",),
    COREML_SUFFIX: ("coreml",),
}
_IN_FOLDERS: Final = (OPENVINO_SUFFIX, NCNN_SUFFIX)  # with weights in a .bin and the facts in METADATA_FILE


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

    def prepare(self, count: int, height: int, width: int) -> None:
        """Have the engine ready to run ``count`` images of a size; see :func:`scaledyolo.engines.base.prepare`."""
        prepare(self.engine, self.engine.batch or count, height, width)

    def side_by_side(self) -> Runnable:
        """The same network for runs from several threads at once; see :func:`scaledyolo.engines.base.side_by_side`."""
        return replace(self, engine=side_by_side(self.engine))


ModelSource = PathLike | tuple[PathLike, PathLike] | Checkpoint | Runnable


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

    A :class:`Runnable`, which is open already, is returned as it is. ``subnet`` names what to cut out of the model
    first, see :func:`scaledyolo.subnet.subnet_checkpoint`.

    Raises:
        ScaledYoloError: the model cannot be read, or the engine cannot run it.
    """
    if isinstance(model, Runnable):
        return model
    if isinstance(model, (str, os.PathLike)) and is_artefact(model):
        if subnet:
            raise UsageError(
                f"{os.fspath(model)}: an exported network is fixed; give the checkpoint, or export its subnet: "
                f"scaledyolo export MODEL --subnet {subnet}"
            )
        return _open_artefact(Path(model), engine, device, half, threads, names)
    checkpoint = model if isinstance(model, Checkpoint) else load_model(model, names=names, download=download)
    checkpoint = subnet_checkpoint(checkpoint, subnet) if subnet else checkpoint
    opened = open_engine(engine, checkpoint.graph, dict(checkpoint.weights), device=device, half=half, threads=threads)
    return Runnable(opened, ModelFacts.of(checkpoint))


def is_artefact(path: PathLike) -> bool:
    """Whether a path names a file or folder for a runtime rather than a model."""
    path = Path(path)
    if os.fspath(path) == DEFAULT:
        return False
    return path.suffix.lower() in _RUNTIMES or (path.is_dir() and bool(_networks_in(path)))


def _networks_in(folder: Path) -> list[Path]:
    return sorted(path for suffix in _IN_FOLDERS for path in folder.glob(f"*{suffix}"))


def network_file(path: Path) -> Path:
    """The file that the runtime reads: the path itself, or the one .xml or .param of a folder.

    Raises:
        FormatError: there is none, or more than one.
    """
    if path.is_file() or (path.is_dir() and path.suffix.lower() == COREML_SUFFIX):
        return path
    if not path.is_dir():
        raise FormatError(f"{path}: no such file or folder")
    found = _networks_in(path)
    if len(found) != 1:
        raise FormatError(
            f"{path}: the folder of a model holds one {' or '.join(_IN_FOLDERS)} file, this one {len(found)}"
        )
    return found[0]


def read_facts(path: Path) -> ModelFacts:
    """What an artefact says about itself.

    Raises:
        FormatError: it is missing, damaged, or was not exported by this package.
    """
    file = network_file(path)
    if file.suffix.lower() in _IN_FOLDERS:
        beside = file.with_name(METADATA_FILE)
        try:
            metadata = parse_json(beside.read_text(encoding="utf-8"))
        except OSError as error:
            raise FormatError(f"{beside}: {error.strerror}; it belongs to {file.name}") from None
        except ValueError as error:
            raise FormatError(f"{beside}: not JSON ({error})") from None
        return ModelFacts.from_metadata(metadata, str(beside))
    if file.suffix.lower() in (TFLITE_SUFFIX, COREML_SUFFIX):
        return _embedded_facts(file)
    import onnx

    try:
        model = onnx.load(file, load_external_data=False)
    except Exception as error:  # protobuf has an exception type of its own
        raise FormatError(f"{file}: not an ONNX model ({str(error).splitlines()[0]})") from None
    return ModelFacts.from_metadata({entry.key: entry.value for entry in model.metadata_props}, str(file))


def _embedded_facts(file: Path) -> ModelFacts:
    if file.suffix.lower() == COREML_SUFFIX:
        from scaledyolo.convert.coreml_package import read_metadata as read_coreml

        found = read_coreml(file)
    else:
        from scaledyolo.convert.tflite_file import read_metadata

        if not file.is_file():
            raise FormatError(f"{file}: no such file")
        found = read_metadata(file.read_bytes(), str(file))
    try:
        metadata = parse_json(found.get(FACTS_ENTRY, "{}"))
    except ValueError as error:
        raise FormatError(f"{file}: its metadata is damaged ({error})") from None
    return ModelFacts.from_metadata(metadata, str(file))


def _open_artefact(
    path: Path,
    engine: str,
    device: str,
    half: bool | None,
    threads: int | None,
    names: PathLike | Sequence[str] | None,
) -> Runnable:
    facts, file = read_facts(path), network_file(path)
    if facts.verification == "UNVERIFIED":
        warnings.warn(
            f"{path} is marked UNVERIFIED: it does not compute what the network does that it was exported from; "
            "export that again",
            stacklevel=4,
        )
    if names is not None:
        given, ids = replacing_names(
            names, facts.category_ids, num_classes=len(facts.class_names), place=os.fspath(path)
        )
        facts = replace(facts, class_names=given, category_ids=ids)
    runtimes = _RUNTIMES[file.suffix.lower()]
    choose("engine", engine, (AUTO, "openvino", "onnxruntime", "torch", "ncnn", "litert", "coreml"))
    if engine == AUTO:
        chosen = choose_engine(AUTO, device, bool(half)).engine
        engine = chosen if chosen in runtimes else runtimes[-1]
    if engine not in runtimes:
        raise UsageError(f"{path}: runs in {' or '.join(runtimes)}, not in {engine}")
    try:
        opened = _OPENERS[engine](file, facts, device, half, threads)
    except FormatError as error:
        fault = _known_fault(file)
        if fault is None:
            raise
        raise FormatError(f"{path}: {fault}") from error
    _check_outputs(path, len(opened.heads), facts)
    return Runnable(opened, facts)


def _known_fault(file: Path) -> str | None:
    """Why no runtime takes an ONNX file, in words that name the node: runtimes name kinds of operators at best."""
    if file.suffix.lower() != ONNX_SUFFIX:
        return None
    import onnx

    model = onnx.load(file, load_external_data=False)
    newest = onnx.defs.onnx_opset_version()
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version > newest:
            return f"it is written in opset {entry.version}, the newest known here is {newest}; export it again"
    for node in model.graph.node:
        if not onnx.defs.has(node.op_type, domain=node.domain):
            return f"node {node.name!r} is a {node.op_type}, an operator that does not exist in ONNX"
    return None


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
    quantised = facts.quantisation is not None
    return OnnxRuntimeEngine(file, threads=threads, device="cpu" if device == AUTO else device, quantised=quantised)


def _in_openvino(file: Path, facts: ModelFacts, device: str, half: bool | None, threads: int | None) -> OpenVinoEngine:
    from scaledyolo.engines.openvino import OpenVinoEngine

    device = openvino_device(device)
    digest = file_digest(file)

    def open_in(precision: str, keep: str | None = None) -> OpenVinoEngine:
        return OpenVinoEngine(
            file,
            device=device,
            precision=precision,
            threads=threads,
            cache_key=keep,
            quantised=facts.quantisation is not None,
        )

    def probe() -> Array:
        if facts.dynamic:
            return np.repeat(probe_image(facts.channels, facts.max_stride), facts.batch or 1, axis=0)
        return np.stack([scene(facts.channels, facts.height, facts.width, seed) for seed in range(facts.batch or 1)])

    # What an end-to-end network puts out are rows, whose order small errors change: no measure of faithfulness.
    half = False if half is None and facts.nms is not None else half
    return open_in(openvino_precision(device, half, digest, open_in, probe), digest)


def _in_ncnn(file: Path, facts: ModelFacts, device: str, half: bool | None, threads: int | None) -> NcnnEngine:
    from scaledyolo.engines.ncnn import NcnnEngine

    _check_plain(file, "ncnn", device, half)
    size = None if facts.dynamic else (facts.height, facts.width)
    return NcnnEngine(file, channels=facts.channels, size=size, stride=facts.max_stride, threads=threads)


def _in_litert(file: Path, facts: ModelFacts, device: str, half: bool | None, threads: int | None) -> LiteRtEngine:
    from scaledyolo.engines.litert import LiteRtEngine

    _check_plain(file, "LiteRT", device, half)
    return LiteRtEngine(file, threads=threads)


def _in_coreml(file: Path, facts: ModelFacts, device: str, half: bool | None, threads: int | None) -> CoreMlEngine:
    from scaledyolo.engines.coreml import CoreMlEngine

    _check_plain(file, "Core ML", device, half)
    return CoreMlEngine(file)


def _check_plain(file: Path, runtime: str, device: str, half: bool | None) -> None:
    if half or device not in (AUTO, "cpu"):
        raise UsageError(f"{file}: {runtime} runs on the CPU in float32 here; leave out --half and --device")


_Opened: TypeAlias = "OnnxRuntimeEngine | OpenVinoEngine | NcnnEngine | LiteRtEngine | CoreMlEngine"
_Open = Callable[[Path, ModelFacts, str, "bool | None", "int | None"], _Opened]
_OPENERS: Final[dict[str, _Open]] = {
    "onnxruntime": _in_onnxruntime,
    "openvino": _in_openvino,
    "ncnn": _in_ncnn,
    "litert": _in_litert,
    "coreml": _in_coreml,
}


def file_digest(file: Path) -> str:
    """SHA-256 over the files that make up a network: the file itself, and the weights beside an .xml or .param."""
    digest = hashlib.sha256()
    for part in _parts(file):
        try:
            with part.open("rb") as stream:
                while block := stream.read(1 << 20):
                    digest.update(block)
        except OSError as error:
            raise FormatError(f"{part}: {error.strerror or error}") from None
    return digest.hexdigest()


def _parts(file: Path) -> tuple[Path, ...]:
    suffix = file.suffix.lower()
    if suffix == COREML_SUFFIX:
        from scaledyolo.convert.coreml_package import package_files

        return package_files(file)
    return (file, file.with_suffix(".bin")) if suffix in _IN_FOLDERS else (file,)
