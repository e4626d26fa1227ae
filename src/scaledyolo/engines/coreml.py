"""Core ML, on macOS: the CPU, GPU and neural engine of Apple's computers; float32 as the network was written."""

from __future__ import annotations

import platform
from pathlib import Path
from typing import Any, Final

import numpy as np

from scaledyolo.convert.coreml_writer import INPUT_NAME, import_coremltools
from scaledyolo.engines.base import check_images
from scaledyolo.errors import FormatError, UsageError
from scaledyolo.weights import Array


class CoreMlEngine:
    """An ``.mlpackage`` folder in Core ML.

    Args:
        path: the folder.

    Raises:
        MissingPackageError: coremltools is not installed.
        UsageError: this is not macOS.
        FormatError: not a model that Core ML can load.
    """

    name: Final = "coreml"
    device: Final = "cpu"
    precision: Final = "float32"

    def __init__(self, path: Path) -> None:
        self._tools = import_coremltools()
        if platform.system() != "Darwin":
            raise UsageError(f"{path}: Core ML runs on macOS only; verify it and detect with it there")
        try:
            units = self._tools.ComputeUnit.CPU_ONLY  # the others compute in float16 where they like
            self._model = self._tools.models.MLModel(str(path), compute_units=units)
        except (RuntimeError, ValueError, OSError) as error:
            raise FormatError(f"{path}: Core ML cannot load it ({str(error).splitlines()[0]})") from None
        description = self._model.get_spec().description
        (image,) = description.input
        self.batch, self._channels, *size = (int(side) for side in image.type.multiArrayType.shape)
        self.size = (size[0], size[1])
        self.heads = tuple(str(output.name) for output in description.output)

    @property
    def version(self) -> str:
        """Version of macOS, of which Core ML is a part."""
        return platform.mac_ver()[0] or "of unknown version"

    def run(self, images: Array) -> list[Array]:
        """Raw maps of the heads, float32; see :class:`~scaledyolo.engines.base.Engine`."""
        check_images(images, channels=self._channels, size=self.size, batch=self.batch)
        found: dict[str, Any] = self._model.predict({INPUT_NAME: images})
        return [np.ascontiguousarray(found[head], np.float32) for head in self.heads]
