"""The formats that can be written: for each how to write it, read its facts, mark it and run it."""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

import numpy as np

from scaledyolo.artefact import ModelFacts
from scaledyolo.checkpoint import Checkpoint
from scaledyolo.engines.base import Engine
from scaledyolo.errors import ConversionError, FormatError, MissingPackageError, UsageError, nearest
from scaledyolo.export import edge_formats as edge
from scaledyolo.runnable import METADATA_FILE, Runnable, network_file, open_runnable, read_facts
from scaledyolo.weights import Weights

if TYPE_CHECKING:
    from onnx import ModelProto

    from scaledyolo.arch.graph import Graph
    from scaledyolo.convert.onnx_activations import MishForm


@dataclass(frozen=True)
class Job:
    """What is to be written."""

    checkpoint: Checkpoint
    graph: Graph  # at the size asked for
    facts: ModelFacts
    quantised: Path | None = None  # a file of the runtime with the network in 8 bits, which then is what is written

    @property
    def weights(self) -> Weights:
        """Those of the checkpoint."""
        return dict(self.checkpoint.weights)

    @property
    def stem(self) -> str:
        """Name of the files inside a folder."""
        return file_stem(self.facts.name)


@dataclass(frozen=True)
class Format:
    """One format. ``write`` creates the file or folder at a path; ``mark`` replaces the facts of a finished one."""

    suffix: str  # of the artefact, after the stem of the model
    write: Callable[[Job, Path], None]
    read: Callable[[Path], ModelFacts]
    mark: Callable[[Path, ModelFacts], None]
    open: Callable[[Path, str], Runnable]  # path and engine
    runtimes: tuple[str, ...]  # engines that a detector may take for it, the one to do without the others first
    nms: bool = False  # whether suppression can be part of it
    half: bool = False  # whether weights can be stored as float16
    int8: bool = False  # whether it can be quantised to 8 bits
    free_shapes: bool = True  # whether a fixed size or batch means anything
    free_sides: bool = True  # whether height and width can be left free
    free_batch: bool = True  # whether the number of images can be
    platform: str = ""  # the only system that runs it, as `platform.system()` calls it; elsewhere it stays pending
    metadata: bool = True  # whether it holds all of ModelFacts


def find_format(name: str) -> Format:
    """The format of a name.

    Raises:
        UsageError: it does not exist, or is written by another program, which is named.
    """
    if name in FORMATS:
        return FORMATS[name]
    if name in ELSEWHERE:
        raise UsageError(f"{name} is not written by scaledyolo: {ELSEWHERE[name]}")
    known = ", ".join(FORMATS)
    raise UsageError(f"there is no export format {name!r}; known are {known}.{nearest(name, [*FORMATS, *ELSEWHERE])}")


def runtimes_of(format_name: str, engine: str) -> tuple[str, ...]:
    """The engines in which an artefact is verified: for "auto" all that are installed, else the one that is named.

    Raises:
        UsageError: it does not run this format.
    """
    runtimes = find_format(format_name).runtimes
    if engine == "auto":
        return tuple(name for name in runtimes if _installed(name)) or runtimes[:1]
    if engine not in runtimes and runtimes != ("auto",):
        hint = nearest(engine, runtimes)
        raise UsageError(f"the format {format_name} runs in {' or '.join(runtimes)}, not in {engine!r}.{hint}")
    return (engine,)


def runs_here(format_name: str) -> bool:
    """Whether this system can run a format at all; what it cannot run cannot be verified on it."""
    return find_format(format_name).platform in ("", platform.system())


def _installed(engine: str) -> bool:
    package = {"litert": "ai_edge_litert", "coreml": "coremltools", "auto": "onnxruntime"}.get(engine, engine)
    return importlib.util.find_spec(package) is not None


def format_of(path: Path) -> str:
    """Name of the format of an artefact, by its suffix.

    Raises:
        FormatError: it is none.
    """
    if not path.exists():
        raise FormatError(f"{path}: no such file or folder")
    if path.is_dir():
        return {".param": "ncnn", ".mlpackage": "coreml"}.get(network_file(path).suffix, "openvino")
    by_suffix = {
        ".onnx": "onnx",
        ".xml": "openvino",
        ".param": "ncnn",
        ".tflite": "tflite",
        ".torchscript": "torchscript",
        ".pt2": "torch-export",
    }
    found = by_suffix.get(path.suffix.lower(), "darknet" if path.suffix.lower() == ".cfg" else None)
    if found is None:
        known = [form.suffix for form in FORMATS.values()]
        raise FormatError(f"{path}: not an exported model; known are {', '.join(known)}")
    return found


# -- ONNX and OpenVINO -------------------------------------------------------------------------------------------------


def onnx_model(job: Job, *, with_metadata: bool, mish: MishForm = "exact") -> ModelProto:
    """The ONNX model of a job: static or free shapes, end to end or raw maps, float32 or float16 storage."""
    from scaledyolo.convert.onnx_end_to_end import append_detections
    from scaledyolo.convert.onnx_half import store_half
    from scaledyolo.convert.onnx_writer import to_onnx

    facts = job.facts
    metadata = facts.to_metadata() if with_metadata else {}
    batch, dynamic = facts.batch, facts.dynamic
    model = to_onnx(job.graph, job.weights, batch=batch, dynamic=dynamic, mish=mish, metadata=metadata)
    if facts.storage == "float16":
        store_half(model)
    if facts.nms is not None:
        append_detections(model, facts.detects, facts.strides, facts.nms)
    return model


def _write_onnx(job: Job, path: Path) -> None:
    if job.quantised is not None:
        _write_quantised_onnx(job, job.quantised, path)
        return
    path.write_bytes(onnx_model(job, with_metadata=True).SerializeToString())


def _write_quantised_onnx(job: Job, quantised: Path, path: Path) -> None:
    import onnx

    from scaledyolo.convert.onnx_end_to_end import append_detections

    facts, model = job.facts, onnx.load(quantised)
    if facts.nms is not None:
        append_detections(model, facts.detects, facts.strides, facts.nms)
    del model.metadata_props[:]
    onnx.helper.set_model_props(model, facts.to_metadata())
    path.write_bytes(model.SerializeToString())


def _mark_onnx(path: Path, facts: ModelFacts) -> None:
    import onnx

    model = onnx.load(path)
    onnx.helper.set_model_props(model, facts.to_metadata())
    path.write_bytes(model.SerializeToString())


def _write_openvino(job: Job, path: Path) -> None:
    from scaledyolo.engines.openvino import import_openvino

    openvino = import_openvino()
    # Rounding of the weights is done by us, where a value too large is noticed and named.
    source = job.quantised or onnx_model(job, with_metadata=False).SerializeToString()
    model = openvino.Core().read_model(source)
    path.mkdir()
    half = job.facts.storage == "float16"
    openvino.save_model(model, str(path / f"{job.stem}.xml"), compress_to_fp16=half)
    _write_json(path / METADATA_FILE, job.facts.to_metadata())


def file_stem(name: str) -> str:
    """A file name for a network, whatever its own name holds."""
    return "".join(letter if letter.isalnum() or letter in "-_." else "_" for letter in name) or "model"


def _mark_folder(path: Path, facts: ModelFacts) -> None:
    folder = path if path.is_dir() else path.parent
    _write_json(folder / METADATA_FILE, facts.to_metadata())


def _write_json(path: Path, values: Mapping[str, Any]) -> None:
    path.write_text(json.dumps(values, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def _open_file(path: Path, engine: str) -> Runnable:
    # In float32: whether a network may be computed in fewer bits on a machine is measured there (engines/faithful.py).
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that it was marked UNVERIFIED, which is to be seen anew
        return open_runnable(path, engine=engine, device="cpu", half=False)


# -- torch -------------------------------------------------------------------------------------------------------------


def _torch_formats() -> Any:
    try:
        from scaledyolo.export import torch_formats
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingPackageError(
            "TorchScript and torch.export need torch; install it with: pip install 'scaledyolo[train]'"
        ) from None
    return torch_formats


def _write_torchscript(job: Job, path: Path) -> None:
    _torch_formats().write_torchscript(job.graph, job.weights, job.facts, path)


def _write_torch_export(job: Job, path: Path) -> None:
    _torch_formats().write_torch_export(job.graph, job.weights, job.facts, path)


def _read_torch(path: Path) -> ModelFacts:
    facts: ModelFacts = _torch_formats().read_torch_facts(path)
    return facts


def _mark_torch(path: Path, facts: ModelFacts) -> None:
    _torch_formats().mark_torch(path, facts)


def _open_torch(path: Path, engine: str) -> Runnable:
    opened: Engine = _torch_formats().TorchArtefact(path)
    return Runnable(opened, _read_torch(path))


# -- Darknet -----------------------------------------------------------------------------------------------------------


def _write_darknet(job: Job, path: Path) -> None:
    from scaledyolo.convert.darknet_weights import write_weights
    from scaledyolo.convert.darknet_write import write_cfg

    path.write_text(write_cfg(job.graph), encoding="utf-8")
    write_weights(path.with_suffix(".weights"), job.graph, job.weights)
    names = "".join(f"{name}\n" for name in job.facts.class_names)
    path.with_suffix(".names").write_text(names, encoding="utf-8")


def _read_darknet(path: Path) -> ModelFacts:
    from scaledyolo.model import load_model

    return ModelFacts.of(load_model(path))


def _mark_darknet(path: Path, facts: ModelFacts) -> None:
    """A cfg has no metadata; a comment in its first line says that the pair is wrong."""
    text = path.read_text(encoding="utf-8")
    warning = "# UNVERIFIED: differs from the network it was exported from\n"
    text = text.removeprefix(warning)
    path.write_text((warning if facts.verification == "UNVERIFIED" else "") + text, encoding="utf-8")


FORMATS: Final[dict[str, Format]] = {
    "onnx": Format(
        ".onnx",
        _write_onnx,
        read_facts,
        _mark_onnx,
        _open_file,
        ("onnxruntime", "openvino"),
        nms=True,
        half=True,
        int8=True,
    ),
    "openvino": Format(
        "_openvino_model",
        _write_openvino,
        read_facts,
        _mark_folder,
        _open_file,
        ("openvino",),
        nms=True,
        half=True,
        int8=True,
    ),
    "ncnn": Format("_ncnn_model", edge.write_ncnn, read_facts, _mark_folder, _open_file, ("ncnn",), half=True),
    "tflite": Format(
        ".tflite", edge.write_tflite, read_facts, edge.mark_tflite, _open_file, ("litert",), half=True, free_sides=False
    ),
    "coreml": Format(
        ".mlpackage",
        edge.write_coreml,
        read_facts,
        edge.mark_coreml,
        _open_file,
        ("coreml",),
        free_sides=False,
        free_batch=False,
        platform="Darwin",
    ),
    "torchscript": Format(".torchscript", _write_torchscript, _read_torch, _mark_torch, _open_torch, ("torch",)),
    "torch-export": Format(".pt2", _write_torch_export, _read_torch, _mark_torch, _open_torch, ("torch",)),
    "darknet": Format(
        ".cfg", _write_darknet, _read_darknet, _mark_darknet, _open_file, ("auto",), free_shapes=False, metadata=False
    ),
}

# What other programs write from ours; each sentence is the way there.
ELSEWHERE: Final[dict[str, str]] = {
    "tensorrt": (
        "an engine belongs to one GPU and one version of TensorRT; export --format onnx and build it there with "
        "`trtexec --onnx=model.onnx --saveEngine=model.engine`"
    ),
}


def artefact_path(model_name: str, destination: str | os.PathLike[str] | None, format_name: str) -> Path:
    """Where an artefact goes: the destination, or inside it if it is another folder, or beside the current folder.

    Raises:
        UsageError: the destination has the suffix of another format.
    """
    suffix = find_format(format_name).suffix
    stem = file_stem(model_name)
    if destination is None:
        return Path(f"{stem}{suffix}")
    path = Path(destination)
    in_folder = suffix.endswith("_model")
    replaced = (in_folder and (path / METADATA_FILE).is_file()) or path.suffix == suffix
    if path.is_dir() and not replaced:
        return path / f"{stem}{suffix}"
    known = tuple(other.suffix for other in FORMATS.values())
    if path.name.endswith(suffix) or (in_folder and not path.name.endswith(known)):
        return path
    raise UsageError(f"{path}: a model in format {format_name} is named *{suffix}")


def make_job(
    checkpoint: Checkpoint,
    format_name: str,
    *,
    size: tuple[int, int] | None,
    dynamic: bool,
    batch: int | None,
    facts: Mapping[str, Any],
) -> Job:
    """Check a wish and put it into a job; ``facts`` are the rest of what the artefact says about itself.

    Raises:
        UsageError, SpecError: options that the format or the network does not have.
    """
    form = find_format(format_name)
    if facts.get("nms") is not None and not form.nms:
        able = ", ".join(name for name, other in FORMATS.items() if other.nms)
        raise UsageError(f"suppression cannot be part of the format {format_name}; it can of {able}")
    if facts.get("storage") == "float16" and not form.half:
        able = ", ".join(name for name, other in FORMATS.items() if other.half)
        raise UsageError(f"the format {format_name} stores float32; float16 can be stored by {able}")
    if dynamic and not form.free_sides:
        raise UsageError(f"the format {format_name} is written for one size; leave out --dynamic, or use --size")
    if batch is not None and batch < 1:
        raise UsageError(f"a batch of {batch} images makes no sense; use 1 or more, or 0 for any number")
    graph = checkpoint.graph.with_size(*size) if size else checkpoint.graph
    if not graph.heads:
        raise ConversionError(f"{graph.name}: a network without detection heads cannot be exported")
    if not all(np.isfinite(array).all() for array in checkpoint.weights.values()):
        raise ConversionError(f"{graph.name}: its weights hold values that are not numbers; it cannot be exported")
    described = replace(
        ModelFacts.of(checkpoint),
        height=graph.height,
        width=graph.width,
        strides=graph.strides,
        dynamic=dynamic or not form.free_shapes,
        batch=(batch if form.free_batch else batch or 1) if form.free_shapes else None,
        **facts,
    )
    return Job(checkpoint, graph, described)
