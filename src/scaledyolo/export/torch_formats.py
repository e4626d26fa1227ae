"""TorchScript and torch.export artefacts. Imports torch; reached only when one of them is asked for."""

from __future__ import annotations

import contextlib
import io
import json
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor, nn

from scaledyolo.arch.graph import Graph
from scaledyolo.artefact import ModelFacts
from scaledyolo.convert.fold import cascade_pools, fold
from scaledyolo.engines.base import check_images
from scaledyolo.errors import FormatError
from scaledyolo.net.network import Network
from scaledyolo.weights import Array, Weights

METADATA_ENTRY: Final = "scaledyolo.json"
_MOST: Final = 1 << 16  # images, or strides along a side: a bound that torch.export wants to know


class _AsTuple(nn.Module):
    """Raw maps as a tuple, which both formats take as a fixed number of outputs."""

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        return tuple(self.network(images))


def _folded(graph: Graph, weights: Weights) -> _AsTuple:
    folded, folded_weights = fold(graph, weights)
    network = Network(cascade_pools(folded), inference=True, fast_mish=True)
    network.load(folded_weights)
    network.requires_grad_(False).eval()
    return _AsTuple(network).eval()


def write_torchscript(graph: Graph, weights: Weights, facts: ModelFacts, path: Path) -> None:
    """Trace the folded network into a TorchScript archive; any batch and size that the facts allow."""
    example = torch.zeros(facts.batch or 2, graph.channels, graph.height, graph.width)
    with _torchscript_still_works(), torch.no_grad():
        trace: Any = torch.jit.trace
        traced = torch.jit.freeze(trace(_folded(graph, weights), example, check_trace=False))
        _save_torchscript(traced, facts, path)


def write_torch_export(graph: Graph, weights: Weights, facts: ModelFacts, path: Path) -> None:
    """Export the folded network as a ``.pt2`` program, with the free dimensions of the facts."""
    example = torch.zeros(facts.batch or 2, graph.channels, graph.height, graph.width)
    free: dict[int, Any] = {}
    if facts.batch is None:
        free[0] = torch.export.Dim("batch", min=1, max=_MOST)
    if facts.dynamic:
        stride = graph.max_stride
        free[2] = stride * torch.export.Dim("rows", min=1, max=_MOST // stride)
        free[3] = stride * torch.export.Dim("columns", min=1, max=_MOST // stride)
    program = torch.export.export(_folded(graph, weights), (example,), dynamic_shapes=(free,) if free else None)
    _save_program(program, facts, path)


# Both savers write to memory first: on a disk that refuses, torch's own file writer ends the whole process.


def _save_torchscript(script: Any, facts: ModelFacts, path: Path) -> None:
    buffer = io.BytesIO()
    torch.jit.save(script, buffer, _extra_files={METADATA_ENTRY: json.dumps(facts.to_metadata())})
    path.write_bytes(buffer.getbuffer())


def _save_program(program: Any, facts: ModelFacts, path: Path) -> None:
    buffer = io.BytesIO()
    torch.export.save(program, buffer, extra_files={METADATA_ENTRY: json.dumps(facts.to_metadata())})
    path.write_bytes(buffer.getbuffer())


def read_torch_facts(path: Path) -> ModelFacts:
    """What a TorchScript or ``.pt2`` file says about itself.

    Raises:
        FormatError: it was not exported by this package.
    """
    return ModelFacts.from_metadata(_open(path)[1], str(path))


def mark_torch(path: Path, facts: ModelFacts) -> None:
    """Write other facts into an artefact, in place."""
    loaded = _load(path)[0]
    if path.suffix == ".pt2":
        _save_program(loaded, facts, path)
        return
    with _torchscript_still_works():
        _save_torchscript(loaded, facts, path)


class TorchArtefact:
    """A TorchScript or ``.pt2`` file as an engine, on the CPU."""

    device: Final = "cpu"
    precision: Final = "float32"

    def __init__(self, path: Path) -> None:
        self._run, metadata = _open(path)
        facts = ModelFacts.from_metadata(metadata, str(path))
        self.name = "torch.export" if path.suffix == ".pt2" else "torchscript"
        self.batch = facts.batch
        self.size = None if facts.dynamic else (facts.height, facts.width)
        self._channels = facts.channels

    @property
    def version(self) -> str:
        """Version of torch."""
        return str(torch.__version__)

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the outputs; neither format keeps any."""
        return ()

    def run(self, images: Array) -> list[Array]:
        """Raw maps of the heads; see :class:`~scaledyolo.engines.base.Engine`."""
        check_images(images, channels=self._channels, size=self.size, batch=self.batch)
        with torch.no_grad():
            return [np.ascontiguousarray(raw.numpy()) for raw in self._run(torch.from_numpy(images))]


def _open(path: Path) -> tuple[Any, dict[str, str]]:
    """The program as something to call, and its metadata."""
    loaded, text = _load(path)
    try:
        metadata = json.loads(text or "{}")
    except ValueError:
        metadata = {}
    return (loaded.module() if path.suffix == ".pt2" else loaded), metadata


def _load(path: Path) -> tuple[Any, str]:
    extra = {METADATA_ENTRY: ""}
    try:
        if path.suffix == ".pt2":
            loaded = torch.export.load(path, extra_files=extra)
        else:
            with _torchscript_still_works():
                load: Any = torch.jit.load
                loaded = load(str(path), map_location="cpu", _extra_files=extra)
    except Exception as error:  # torch raises what its archive reader and its unpickler happen to raise
        raise FormatError(f"{path}: torch cannot load it ({str(error).splitlines()[0]})") from None
    text = extra[METADATA_ENTRY]
    return loaded, text.decode() if isinstance(text, bytes) else text


@contextlib.contextmanager
def _torchscript_still_works() -> Iterator[None]:
    """Silence torch's advice to use torch.export: who asks for TorchScript has a runtime that reads nothing newer.

    And that questions about numbers of channels are answered while tracing: they are never free.
    """
    jit: Any = torch.jit
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=DeprecationWarning)
        warnings.filterwarnings("ignore", category=jit.TracerWarning)
        yield
