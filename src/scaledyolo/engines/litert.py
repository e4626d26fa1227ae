"""LiteRT, formerly TensorFlow Lite: for phones and boards; here mainly to verify what is exported for them."""

from __future__ import annotations

import importlib
import threading
from pathlib import Path
from typing import Any, Final

import numpy as np

from scaledyolo.engines.base import check_images, check_threads
from scaledyolo.errors import FormatError, MissingPackageError
from scaledyolo.weights import Array


def import_litert() -> Any:
    """The module of the interpreter.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        return importlib.import_module("ai_edge_litert.interpreter")
    except ModuleNotFoundError as error:
        raise MissingPackageError(
            f"the litert engine needs ai-edge-litert ({error.name} is missing); "
            "install it with: pip install 'scaledyolo[tflite]'"
        ) from None


class LiteRtEngine:
    """A tflite file in the interpreter of LiteRT, on the CPU in float32.

    Args:
        path: the file, with one input (batch, height, width, channels) and maps that lie channels last as well.
        threads: CPU threads; None leaves it to the runtime.

    Raises:
        MissingPackageError: ai-edge-litert is not installed.
        FormatError: not a file that it can read.
    """

    name: Final = "litert"
    device: Final = "cpu"
    precision: Final = "float32"

    def __init__(self, path: Path, *, threads: int | None = None) -> None:
        if threads is not None:
            check_threads(threads)
        module = import_litert()
        try:
            self._interpreter = module.Interpreter(model_path=str(path), num_threads=threads)
            self._interpreter.allocate_tensors()
        except (ValueError, RuntimeError) as error:
            raise FormatError(f"{path}: LiteRT cannot load it ({str(error).strip().splitlines()[0]})") from None
        (self._input,) = self._interpreter.get_input_details()
        self._outputs = self._interpreter.get_output_details()
        signature = self._input["shape_signature"]
        self.batch = None if signature[0] < 0 else int(signature[0])
        self.size = (int(signature[1]), int(signature[2]))
        self._channels = int(signature[3])
        self._lock = threading.Lock()  # an interpreter has one set of tensors

    @property
    def version(self) -> str:
        """Version of LiteRT."""
        from importlib.metadata import PackageNotFoundError, version

        try:
            return version("ai-edge-litert")
        except PackageNotFoundError:
            return "of unknown version"

    @property
    def heads(self) -> tuple[str, ...]:
        """Names of the outputs, in head order."""
        return tuple(str(output["name"]) for output in self._outputs)

    def run(self, images: Array) -> list[Array]:
        """Raw maps of the heads, float32, channels first; see :class:`~scaledyolo.engines.base.Engine`."""
        check_images(images, channels=self._channels, size=self.size, batch=self.batch)
        arranged = np.ascontiguousarray(images.transpose(0, 2, 3, 1))
        index = self._input["index"]
        with self._lock:
            if tuple(self._interpreter.get_input_details()[0]["shape"]) != arranged.shape:
                self._interpreter.resize_tensor_input(index, arranged.shape)
                self._interpreter.allocate_tensors()
            self._interpreter.set_tensor(index, arranged)
            self._interpreter.invoke()
            found = [self._interpreter.get_tensor(output["index"]) for output in self._outputs]
        return [np.ascontiguousarray(raw.transpose(0, 3, 1, 2)) for raw in found]
