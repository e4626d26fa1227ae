"""From a graph and its weights to an engine, by name or by what is fastest here."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from scaledyolo.arch.graph import Graph
from scaledyolo.engines.base import Engine, choose
from scaledyolo.errors import MissingPackageError, UsageError
from scaledyolo.weights import Array, Weights

AUTO: Final = "auto"
DEVICES: Final = ("cpu", "cuda", "gpu", "npu")


@dataclass(frozen=True, slots=True)
class Choice:
    """Which engine runs a network, and the reason in words."""

    engine: str
    why: str


def choose_engine(engine: str = AUTO, device: str = AUTO, half: bool | None = False) -> Choice:
    """Settle ``auto``: the fastest engine that is installed and can use the device.

    On a CPU that is OpenVINO (benchmarks/engines.py), else ONNX Runtime; on an NVIDIA GPU ONNX Runtime if its build can
    use one, else torch; on Intel's GPUs and NPUs OpenVINO.

    Raises:
        UsageError: an engine or device that does not exist.
    """
    choose("engine", engine, (AUTO, *ENGINES))
    choose("device", device, (AUTO, *DEVICES))
    if engine != AUTO:
        return Choice(engine, "it was asked for")
    if device in ("gpu", "npu"):
        return Choice("openvino", f"only OpenVINO uses device {device!r}")
    if device != "cpu" and _onnxruntime_has_gpu():
        if half:
            return Choice("torch", "half precision on a GPU is computed by torch")
        return Choice("onnxruntime", "this build of ONNX Runtime uses the GPU")
    if device == "cuda":
        return Choice("torch", "this build of ONNX Runtime cannot use the GPU")
    if half and device == AUTO and _torch_has_gpu():
        return Choice("torch", "half precision on a GPU is computed by torch")
    if _installed("openvino"):
        return Choice("openvino", "the fastest on a CPU")
    if half:
        return Choice("torch", "of what is installed, only torch computes in half precision")
    return Choice("onnxruntime", "OpenVINO, which would be faster, is not installed")


def open_engine(
    engine: str,
    graph: Graph,
    weights: Weights,
    *,
    device: str = AUTO,
    half: bool | None = False,
    threads: int | None = None,
) -> Engine:
    """A runtime for a network, for any batch and any size that is a multiple of the largest stride.

    Args:
        engine: one of :data:`ENGINES`, or ``auto``; see :func:`choose_engine`.
        graph: the network.
        weights: exactly ``graph.parameters``, float32.
        device: ``cpu``, ``cuda``, ``gpu`` and ``npu`` (Intel's), or ``auto``: the NVIDIA GPU if the engine can use one.
        half: compute in float16, or bfloat16 on CPUs. None: where that is faster and was measured to be faithful to
            this network (:mod:`.faithful`), which at present means bfloat16 in OpenVINO.
        threads: CPU threads of one run; None leaves it to the runtime.

    Raises:
        UsageError: an engine, device or precision that does not exist or is not available here.
        MissingPackageError: the engine's package is not installed.
        CheckpointError: the weights are not those of the graph.
    """
    return ENGINES[choose_engine(engine, device, half).engine](graph, weights, device, half, threads)


def describe_engine(engine: Engine) -> str:
    """One line for people: ``openvino 2026.4.1 on cpu in bfloat16``."""
    return f"{engine.name} {engine.version} on {engine.device} in {engine.precision}"


def _installed(package: str) -> bool:
    return importlib.util.find_spec(package) is not None


def _onnxruntime_has_gpu() -> bool:
    # Asking ONNX Runtime costs its import; a build for GPUs comes in a package of another name.
    if not any(_has_distribution(name) for name in ("onnxruntime-gpu", "onnxruntime-directml")):
        return False
    from scaledyolo.engines.onnxruntime import available_devices

    return "cuda" in available_devices()


def _has_distribution(name: str) -> bool:
    from importlib.metadata import PackageNotFoundError, distribution

    try:
        distribution(name)
    except PackageNotFoundError:
        return False
    return True


def _torch_has_gpu() -> bool:
    if not _installed("torch"):
        return False
    from scaledyolo.engines.torch import available_devices

    return "cuda" in available_devices()


def _open_onnxruntime(graph: Graph, weights: Weights, device: str, half: bool | None, threads: int | None) -> Engine:
    from scaledyolo.engines.onnxruntime import OnnxRuntimeEngine, available_devices

    if half:
        raise UsageError(
            "the onnxruntime engine computes in float32; use the openvino or torch engine for half precision"
        )
    if device == AUTO and "cuda" in available_devices():
        try:
            return OnnxRuntimeEngine.from_graph(graph, weights, threads=threads, device="cuda")
        except UsageError:  # a build for GPUs on a machine without one
            device = "cpu"
    return OnnxRuntimeEngine.from_graph(graph, weights, threads=threads, device="cpu" if device == AUTO else device)


def _open_openvino(graph: Graph, weights: Weights, device: str, half: bool | None, threads: int | None) -> Engine:
    from scaledyolo.engines.compiled_cache import network_digest
    from scaledyolo.engines.faithful import probe_image
    from scaledyolo.engines.openvino import OpenVinoEngine

    device = openvino_device(device)
    digest = network_digest(graph, weights)

    def open_in(precision: str, keep: str | None = None) -> OpenVinoEngine:
        return OpenVinoEngine.from_graph(
            graph, weights, device=device, precision=precision, threads=threads, cache_key=keep
        )

    stride = graph.max_stride if graph.heads else 1
    precision = openvino_precision(device, half, digest, open_in, lambda: probe_image(graph.channels, stride))
    return open_in(precision, digest)


def openvino_device(device: str) -> str:
    """What ``auto`` means to OpenVINO.

    Raises:
        UsageError: an NVIDIA GPU, which it cannot use.
    """
    if device == "cuda":
        raise UsageError("the openvino engine cannot use 'cuda'; use the onnxruntime or torch engine")
    return "cpu" if device == AUTO else device


def openvino_precision(
    device: str, half: bool | None, digest: str, open_in: Callable[[str], Engine], probe: Callable[[], Array]
) -> str:
    """The precision for a wish: half is bfloat16 on a CPU, float16 elsewhere; None is what is fast and faithful."""
    from scaledyolo.engines.faithful import TOLERANCE, bfloat16_error
    from scaledyolo.engines.openvino import available_precisions

    if half is not None:
        return ("bfloat16" if device == "cpu" else "float16") if half else "float32"
    if device != "cpu" or "bfloat16" not in available_precisions("cpu"):
        return "float32"
    return "bfloat16" if bfloat16_error(digest, open_in, probe) <= TOLERANCE else "float32"


def _open_torch(graph: Graph, weights: Weights, device: str, half: bool | None, threads: int | None) -> Engine:
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
    return TorchEngine(graph, weights, device=device, half=bool(half), threads=threads)


_Open = Callable[[Graph, Weights, str, bool | None, int | None], Engine]

ENGINES: Final[dict[str, _Open]] = {
    "openvino": _open_openvino,
    "onnxruntime": _open_onnxruntime,
    "torch": _open_torch,
}
