"""From a graph and its weights to an engine, by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from scaledyolo.arch.graph import Graph
from scaledyolo.engines.base import Engine, choose
from scaledyolo.errors import MissingPackageError, UsageError
from scaledyolo.weights import Weights

AUTO: Final = "auto"
DEVICES: Final = ("cpu", "cuda")


def open_engine(
    engine: str,
    graph: Graph,
    weights: Weights,
    *,
    device: str = AUTO,
    half: bool = False,
    threads: int | None = None,
) -> Engine:
    """A runtime for a network, for any batch and any size that is a multiple of the largest stride.

    Args:
        engine: one of :data:`ENGINES`, or ``auto``: ONNX Runtime, but torch where only that can use the GPU asked for.
        graph: the network.
        weights: exactly ``graph.parameters``, float32.
        device: ``cpu``, ``cuda``, or ``auto``: the GPU if the engine can use one.
        half: compute in float16.
        threads: CPU threads of one run; None leaves it to the runtime.

    Raises:
        UsageError: an engine, device or precision that does not exist or is not available here.
        MissingPackageError: the engine's package is not installed.
        CheckpointError: the weights are not those of the graph.
    """
    choose("engine", engine, (AUTO, *ENGINES))
    choose("device", device, (AUTO, *DEVICES))
    if engine == AUTO:
        needs_torch = half or (device == "cuda" and not _onnxruntime_has_gpu())
        engine = "torch" if needs_torch else "onnxruntime"
    return ENGINES[engine](graph, weights, device, half, threads)


def _onnxruntime_has_gpu() -> bool:
    from scaledyolo.engines.onnxruntime import available_devices

    return "cuda" in available_devices()


def _open_onnxruntime(graph: Graph, weights: Weights, device: str, half: bool, threads: int | None) -> Engine:
    from scaledyolo.engines.onnxruntime import OnnxRuntimeEngine, available_devices

    if half:
        raise UsageError("the onnxruntime engine computes in float32; use the torch engine for half precision")
    if device == AUTO and "cuda" in available_devices():
        try:
            return OnnxRuntimeEngine.from_graph(graph, weights, threads=threads, device="cuda")
        except UsageError:  # a build for GPUs on a machine without one
            device = "cpu"
    return OnnxRuntimeEngine.from_graph(graph, weights, threads=threads, device="cpu" if device == AUTO else device)


def _open_torch(graph: Graph, weights: Weights, device: str, half: bool, threads: int | None) -> Engine:
    try:
        from scaledyolo.engines.torch import TorchEngine, available_devices
    except ModuleNotFoundError as error:
        if error.name != "torch":
            raise
        raise MissingPackageError(
            "the torch engine needs torch; install it with: pip install 'scaledyolo[train]'"
        ) from None
    if device == AUTO:
        device = available_devices()[-1]
    return TorchEngine(graph, weights, device=device, half=half, threads=threads)


_Open = Callable[[Graph, Weights, str, bool, int | None], Engine]

ENGINES: Final[dict[str, _Open]] = {"onnxruntime": _open_onnxruntime, "torch": _open_torch}
