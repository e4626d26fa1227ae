"""OpenVINO: the fastest engine on x86 processors; also Intel's GPUs and NPUs. Needs no torch.

What is fixed on purpose, because the runtime's defaults would decide otherwise:

* Precision is always pinned. Left alone, OpenVINO computes in bfloat16 wherever the processor can, silently.
* Every (batch, height, width) is compiled for itself on first use: with free dimensions networks with Mish run at
  about 0.7 of the speed. A few compiled shapes are kept; what was not used for longest goes first.
* The first shape of a network is kept on disk (:mod:`.compiled_cache`), so that the next process starts in a tenth of
  the time and without the ``onnx`` package.
* ``import openvino`` reports each import to a server of the vendor's; the package that does it is hidden from it.
"""

from __future__ import annotations

import copy
import importlib
import os
import sys
import threading
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np

from scaledyolo.arch.graph import Graph
from scaledyolo.engines.base import check_images, check_threads, choose
from scaledyolo.engines.compiled_cache import CompiledCache
from scaledyolo.errors import FormatError, MissingPackageError, UsageError
from scaledyolo.weights import Array, Weights

DEVICES: Final = {"cpu": "CPU", "gpu": "GPU", "npu": "NPU"}
PRECISIONS: Final = {"float32": "f32", "bfloat16": "bf16", "float16": "f16"}
MODES: Final = {"latency": "LATENCY", "throughput": "THROUGHPUT"}
MAX_SHAPES: Final = 8  # compiled shapes kept at a time

_CAPABILITIES: Final = {"float32": "FP32", "bfloat16": "BF16", "float16": "FP16"}
_TELEMETRY: Final = "openvino_telemetry"

Shape = tuple[int, int, int]  # batch, height, width


def import_openvino() -> ModuleType:
    """The ``openvino`` package, imported without its telemetry.

    Importing it sends a usage event over the network unless ``openvino_telemetry`` is not installed; so it is made to
    look absent for the time of the import, for which OpenVINO has a stand-in that sends nothing.

    Raises:
        MissingPackageError: it is not installed.
    """
    if sys.modules.get("openvino") is not None:
        return sys.modules["openvino"]
    hidden = {name: module for name, module in sys.modules.items() if name.split(".")[0] == _TELEMETRY}
    for name in hidden:
        del sys.modules[name]
    modules: dict[str, Any] = sys.modules
    modules[_TELEMETRY] = None  # what Python itself takes for "cannot be imported"
    try:
        importlib.import_module("openvino")
    except ModuleNotFoundError as error:
        if error.name != "openvino":
            raise
        raise MissingPackageError("the openvino engine needs openvino; install it with: pip install openvino") from None
    finally:
        del sys.modules[_TELEMETRY]
        sys.modules.update(hidden)
    return sys.modules["openvino"]


_core_lock = threading.Lock()
_core_instance: Any = None


def _core() -> Any:
    """The one ``openvino.Core`` of the process; each new one would load its plugins again."""
    global _core_instance
    with _core_lock:
        if _core_instance is None:
            _core_instance = import_openvino().Core()
        return _core_instance


def available_devices() -> tuple[str, ...]:
    """Devices that OpenVINO finds here."""
    found = {name.split(".")[0] for name in _core().available_devices}
    return tuple(device for device, name in DEVICES.items() if name in found)


def available_precisions(device: str = "cpu") -> tuple[str, ...]:
    """Precisions that the device computes natively, ``float32`` first."""
    capabilities = _core().get_property(DEVICES[device], "OPTIMIZATION_CAPABILITIES")
    return tuple(name for name, capability in _CAPABILITIES.items() if capability in capabilities)


class OpenVinoEngine:
    """A network in OpenVINO.

    Args:
        model: a serialised ONNX model, the path of an ``.onnx`` or ``.xml`` file, or a function that returns one of
            these when (and if) it is needed.
        device: ``cpu``, ``gpu`` or ``npu``.
        precision: what the network computes in: ``float32``, ``bfloat16`` or ``float16``; maps are always float32.
        mode: ``latency``: all threads work on one batch; ``throughput``: calls from several threads run side by side;
            see :meth:`side_by_side`.
        threads: CPU threads; None takes one for each physical core.
        cache_key: digest of the network (``network_digest``) under which its first compiled shape is kept on disk; None
            keeps nothing.
        cache: where.
        quantised: whether the network says of itself that it computes in 8 bits; ``precision`` is that of the rest
            then, and the engine calls its own ``int8``.

    Raises:
        MissingPackageError: OpenVINO is not installed.
        UsageError: a device, precision or mode that does not exist or that this machine does not have.
        FormatError: not a model that OpenVINO can read.
    """

    name: Final = "openvino"

    def __init__(
        self,
        model: bytes | str | os.PathLike[str] | Callable[[], bytes],
        *,
        device: str = "cpu",
        precision: str = "float32",
        mode: str = "latency",
        threads: int | None = None,
        cache_key: str | None = None,
        cache: CompiledCache | None = None,
        quantised: bool = False,
    ) -> None:
        choose("device", device, tuple(DEVICES))
        choose("precision", precision, tuple(PRECISIONS))
        choose("mode", mode, tuple(MODES))
        self._openvino = import_openvino()
        if device not in available_devices():
            hint = "; an NVIDIA GPU is 'cuda', which other engines use" if device == "gpu" else ""
            raise UsageError(f"OpenVINO finds no {device!r} here; it finds {', '.join(available_devices())}{hint}")
        if precision not in available_precisions(device):
            native = ", ".join(available_precisions(device))
            raise UsageError(f"this {device} does not compute in {precision}; it computes in {native}")
        self.device, self.precision, self.mode = device, "int8" if quantised else precision, mode
        self._float_precision, self._threads = precision, threads
        self._options = _compile_options(device, precision, mode, threads)
        self._cache_key, self._cache = cache_key, cache or CompiledCache()
        self._compiled: OrderedDict[Shape, _Compiled] = OrderedDict()
        self._lock = threading.Lock()
        self._channels = 3
        self._stride: int | None = None
        self.batch: int | None = None
        self.size: tuple[int, int] | None = None
        self._network = _Network(model)
        if not callable(model):
            self._adopt(self._network.loaded())

    @classmethod
    def from_graph(
        cls,
        graph: Graph,
        weights: Weights,
        *,
        device: str = "cpu",
        precision: str = "float32",
        mode: str = "latency",
        threads: int | None = None,
        cache_key: str | None = None,
        cache: CompiledCache | None = None,
    ) -> OpenVinoEngine:
        """An engine for any batch and any size that is a multiple of the largest stride; see the class.

        Raises:
            CheckpointError: the weights are not those of the graph.
        """
        from scaledyolo.weights import check_weights

        check_weights(graph, weights)
        engine = cls(
            lambda: _as_onnx(graph, weights),
            device=device,
            precision=precision,
            mode=mode,
            threads=threads,
            cache_key=cache_key,
            cache=cache,
        )
        engine._channels, engine._stride = graph.channels, graph.max_stride if graph.heads else None
        return engine

    def side_by_side(self) -> OpenVinoEngine:
        """The same network for runs from several threads at once; the network is shared, compiled for itself."""
        if self.mode == "throughput":
            return self
        other = copy.copy(self)
        other.mode = "throughput"
        other._options = _compile_options(self.device, self._float_precision, other.mode, self._threads)
        other._compiled = OrderedDict()
        return other

    @property
    def version(self) -> str:
        """Version of OpenVINO, without the number of its build."""
        return str(self._openvino.__version__).split("-")[0]

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the outputs, in head order."""
        return tuple(output.get_any_name() for output in self._network.loaded().outputs)

    def run(self, images: Array) -> list[Array]:
        """Raw maps of the heads, float32; see :class:`~scaledyolo.engines.base.Engine`."""
        check_images(images, channels=self._channels, size=self.size, batch=self.batch, stride=self._stride)
        count, _, height, width = images.shape
        return self._compiled_for((count, height, width)).run(np.ascontiguousarray(images))

    def prepare(self, count: int, height: int, width: int) -> None:
        """Compile the network for a shape; see :class:`~scaledyolo.engines.base.CompiledForShape`."""
        if self.size in (None, (height, width)):  # else `run` refuses, in words
            self._compiled_for((count, height, width))

    # -- models and shapes -------------------------------------------------------------------------------------------

    def _adopt(self, model: Any) -> None:
        """Note what a model that was read fixes."""
        if len(model.inputs) != 1 or model.inputs[0].partial_shape.rank.get_length() != 4:
            raise FormatError("the model does not have one input (batch, channels, height, width), as a detector has")
        batch, channels, height, width = (
            None if side.is_dynamic else int(side.get_length()) for side in model.inputs[0].partial_shape
        )
        self.batch, self._channels = batch, channels or 3
        self.size = (height, width) if height is not None and width is not None else None

    def _compiled_for(self, shape: Shape) -> _Compiled:
        with self._lock:  # shared by all modes, for compiling changes the shape of the network that they share
            if shape in self._compiled:
                self._compiled.move_to_end(shape)
                return self._compiled[shape]
            compiled = self._compiled[shape] = _Compiled(self._from_cache(shape) or self._compile(shape))
            while len(self._compiled) > MAX_SHAPES:
                self._compiled.popitem(last=False)
            return compiled

    def _compile(self, shape: Shape) -> Any:
        model = self._network.loaded()
        count, height, width = shape
        model.reshape({model.inputs[0]: [count, self._channels, height, width]})
        try:
            compiled = _core().compile_model(model, DEVICES[self.device], self._options)
        except RuntimeError as error:
            size = f"{count} images of {height}x{width}"
            raise UsageError(f"OpenVINO cannot compile the network for {size}: {_reason(error)}") from None
        if self._cache_key is not None and not self._compiled:  # the first shape: others are rarely met again
            self._cache.store(self._key(shape), compiled.export_model().getvalue())
        return compiled

    def _from_cache(self, shape: Shape) -> Any:
        if self._cache_key is None or self._compiled:
            return None
        key = self._key(shape)
        blob = self._cache.load(key)
        if blob is None:
            return None
        try:
            return _core().import_model(blob, DEVICES[self.device], self._options)
        except RuntimeError:  # written by a runtime that calls itself the same and is not
            self._cache.remove(key)
            return None

    def _key(self, shape: Shape) -> str:
        assert self._cache_key is not None
        processor = _core().get_property(DEVICES[self.device], "FULL_DEVICE_NAME")
        facts: Mapping[str, Any] = {
            "runtime": self._openvino.__version__,
            "processor": processor,
            "shape": shape,
            **self._options,
        }
        return self._cache.key(self._cache_key, facts)


class _Network:
    """A model of the runtime that is read when it is first needed."""

    def __init__(self, source: bytes | str | os.PathLike[str] | Callable[[], bytes]) -> None:
        self._source: bytes | str | os.PathLike[str] | Callable[[], bytes] | None = source
        self._model: Any = None
        self._lock = threading.Lock()

    def loaded(self) -> Any:
        with self._lock:
            if self._source is not None:
                self._model = _read(self._source() if callable(self._source) else self._source)
                self._source = None  # it holds the weights, which the model has now
            return self._model


class _Compiled:
    """A compiled model with one request for each thread that runs it: requests must not be shared."""

    def __init__(self, model: Any) -> None:
        self._model = model
        self._requests = threading.local()

    def run(self, images: Array) -> list[Array]:
        if not hasattr(self._requests, "value"):
            self._requests.value = self._model.create_infer_request()
        # The input is read in place; outputs are copied, as the request overwrites its own in the next call.
        results = self._requests.value.infer({0: images}, share_inputs=True, share_outputs=False)
        return [results[output] for output in self._model.outputs]


def _compile_options(device: str, precision: str, mode: str, threads: int | None) -> dict[str, str]:
    options = {"PERFORMANCE_HINT": MODES[mode], "INFERENCE_PRECISION_HINT": PRECISIONS[precision]}
    if mode == "throughput" and device == "cpu":
        # Threads that decode images share the cores with those of the runtime, which must be free to move.
        options["ENABLE_CPU_PINNING"] = "NO"
    if threads is not None:
        check_threads(threads)
        if device != "cpu":
            raise UsageError(f"a number of threads means nothing on device {device!r}; leave it out")
        options["INFERENCE_NUM_THREADS"] = str(threads)
    return options


def _as_onnx(graph: Graph, weights: Weights) -> bytes:
    from scaledyolo.convert.onnx_writer import to_onnx

    return bytes(to_onnx(graph, weights, batch=None, dynamic=True).SerializeToString())


def _read(model: bytes | str | os.PathLike[str]) -> Any:
    if not isinstance(model, bytes) and not Path(model).is_file():
        raise FormatError(f"{os.fspath(model)}: no such file")
    try:
        return _core().read_model(model if isinstance(model, bytes) else os.fspath(model))
    except RuntimeError as error:
        what = "the model" if isinstance(model, bytes) else os.fspath(model)
        raise FormatError(f"{what}: OpenVINO cannot read it ({_reason(error)})") from None


def _reason(error: Exception) -> str:
    """The last line that says something; before it come lines of the runtime's own source."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__
