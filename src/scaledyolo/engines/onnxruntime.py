"""ONNX Runtime: the engine where there is no OpenVINO. Starts fast, needs no torch, takes any batch and size."""

from __future__ import annotations

import os
from typing import Any, Final

import onnxruntime

from scaledyolo.arch.graph import Graph
from scaledyolo.convert.onnx_writer import to_onnx
from scaledyolo.engines.base import check_images, check_threads, choose
from scaledyolo.errors import FormatError, UsageError
from scaledyolo.weights import Array, Weights

PROVIDERS: Final = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
_ERRORS_ONLY: Final = 3  # ONNX Runtime's log severity; below, it comments on every graph


def available_devices() -> tuple[str, ...]:
    """Devices that this build of ONNX Runtime can use, the fastest last; a GPU may still lack its driver."""
    known = onnxruntime.get_available_providers()
    return tuple(device for device, provider in PROVIDERS.items() if provider in known)


class OnnxRuntimeEngine:
    """A session of ONNX Runtime.

    Args:
        model: a serialised ONNX model, or the path of one, with one input for the images.
        threads: threads of one run; None lets ONNX Runtime take one for each physical core.
        device: ``cpu`` or ``cuda``.
        quantised: whether the model says of itself that it computes in 8 bits; the engine then calls that its
            precision.

    Raises:
        UsageError: no such device, or this build of ONNX Runtime cannot use it.
        FormatError: not an ONNX model of a detector.
    """

    name: Final = "onnxruntime"

    def __init__(
        self,
        model: bytes | str | os.PathLike[str],
        *,
        threads: int | None = None,
        device: str = "cpu",
        quantised: bool = False,
    ) -> None:
        choose("device", device, tuple(PROVIDERS))
        if device not in available_devices():
            raise UsageError(
                f"this build of ONNX Runtime cannot use {device!r}; install onnxruntime-gpu instead of onnxruntime"
            )
        providers = list(dict.fromkeys((PROVIDERS[device], PROVIDERS["cpu"])))
        options = _session_options(threads)
        source = model if isinstance(model, bytes) else os.fspath(model)
        try:
            self._session = onnxruntime.InferenceSession(source, options, providers=providers)
        except Exception as error:  # ONNX Runtime has an exception type of its own for each way to fail
            what = "the model" if isinstance(source, bytes) else source
            raise FormatError(f"{what}: ONNX Runtime cannot load it ({str(error).splitlines()[0]})") from None
        if self._session.get_providers()[0] != PROVIDERS[device]:
            raise UsageError(f"ONNX Runtime could not start on {device!r}; is its driver installed?")
        inputs = self._session.get_inputs()
        if len(inputs) != 1 or len(inputs[0].shape) != 4:
            raise FormatError("the model does not have one input (batch, channels, height, width), as a detector has")
        self.device, self.precision = device, "int8" if quantised else "float32"
        self._input = inputs[0].name
        self.batch, self._channels, height, width = (_fixed(side) for side in inputs[0].shape)
        self.size = (height, width) if height is not None and width is not None else None
        self._stride: int | None = None

    @classmethod
    def from_graph(
        cls, graph: Graph, weights: Weights, *, threads: int | None = None, device: str = "cpu"
    ) -> OnnxRuntimeEngine:
        """An engine for any batch and any size that is a multiple of the largest stride.

        Free sizes cost nothing measurable in ONNX Runtime, and one session then serves them all.

        Raises:
            CheckpointError: the weights are not those of the graph.
            UsageError: see the class.
        """
        model = to_onnx(graph, weights, batch=None, dynamic=True).SerializeToString()
        engine = cls(model, threads=threads, device=device)
        engine._stride = graph.max_stride if graph.heads else None
        return engine

    @property
    def version(self) -> str:
        """Version of ONNX Runtime."""
        return str(onnxruntime.__version__)

    @property
    def metadata(self) -> dict[str, str]:
        """The key-value pairs that the model carries."""
        return dict(self._session.get_modelmeta().custom_metadata_map)

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the outputs, in head order."""
        return tuple(output.name for output in self._session.get_outputs())

    def run(self, images: Array) -> list[Array]:
        """Raw maps of the heads, float32; see :class:`~scaledyolo.engines.base.Engine`."""
        check_images(images, channels=self._channels or 3, size=self.size, batch=self.batch, stride=self._stride)
        outputs: list[Array] = self._session.run(None, {self._input: images})
        return outputs


def _fixed(side: Any) -> int | None:
    """A fixed dimension, or None for a free one, which ONNX Runtime gives as a name."""
    return side if isinstance(side, int) else None


def _session_options(threads: int | None) -> Any:
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _ERRORS_ONLY
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    if threads is not None:
        check_threads(threads)
        options.intra_op_num_threads = threads
    # Idle threads sleep instead of spinning. Spinning gains 2 to 5 % on an idle machine, but between two runs it takes
    # the cores from decoding and loading, and on a busy machine it makes the runs themselves up to 40 % slower.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    # Nodes run one after another; the threads share the work of each.
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    return options
