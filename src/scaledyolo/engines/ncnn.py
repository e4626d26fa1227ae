"""ncnn: for phones and boards without anything larger; here mainly to verify what is exported for them."""

from __future__ import annotations

import importlib
import re
from pathlib import Path
from typing import Any, Final

import numpy as np

from scaledyolo.engines.base import check_images, check_threads
from scaledyolo.errors import FormatError, MissingPackageError
from scaledyolo.weights import Array


def import_ncnn() -> Any:
    """The ``ncnn`` package.

    Raises:
        MissingPackageError: it is not installed.
    """
    try:
        return importlib.import_module("ncnn")
    except ModuleNotFoundError as error:
        if error.name != "ncnn":
            raise
        raise MissingPackageError(
            "the ncnn engine needs ncnn; install it with: pip install 'scaledyolo[ncnn]'"
        ) from None


class NcnnEngine:
    """A pair of files in ncnn, on the CPU in float32. Takes one image at a time, so that a batch is a loop.

    Args:
        param: the ``.param`` file; the ``.bin`` lies beside it.
        channels: of the input.
        size: (height, width) that it was written for, or None for any multiple of ``stride``.
        stride: the largest of the network.
        threads: CPU threads; None leaves it to ncnn.

    Raises:
        MissingPackageError: ncnn is not installed.
        FormatError: not a pair of files that ncnn can read.
    """

    name: Final = "ncnn"
    device: Final = "cpu"
    precision: Final = "float32"
    batch: Final = None

    def __init__(
        self, param: Path, *, channels: int, size: tuple[int, int] | None, stride: int, threads: int | None = None
    ) -> None:
        self._ncnn = import_ncnn()
        self._channels, self._stride = channels, stride
        self.size = size
        for file in (param, param.with_suffix(".bin")):
            if not file.is_file():
                raise FormatError(f"{file}: no such file")
        self._net = self._ncnn.Net()
        _pin_float32(self._net.opt)
        if threads is not None:
            check_threads(threads)
            self._net.opt.num_threads = threads
        if self._net.load_param(str(param)) or self._net.load_model(str(param.with_suffix(".bin"))):
            raise FormatError(f"{param}: ncnn {self.version} cannot load it and its .bin")
        found = [name for name in self._net.output_names() if re.fullmatch(r"out\d+", name)]
        self.heads = tuple(sorted(found, key=lambda name: int(name[3:])))

    @property
    def version(self) -> str:
        """Version of ncnn."""
        return str(self._ncnn.__version__)

    def run(self, images: Array) -> list[Array]:
        """Raw maps of the heads, float32; see :class:`~scaledyolo.engines.base.Engine`."""
        check_images(images, channels=self._channels, size=self.size, stride=self._stride)
        by_image = [self._run_one(np.ascontiguousarray(image)) for image in images]
        return [np.stack(maps) for maps in zip(*by_image, strict=True)]

    def _run_one(self, image: Array) -> list[Array]:
        extractor = self._net.create_extractor()
        # A copy that ncnn owns: layers that work in place crash on memory that belongs to NumPy.
        extractor.input(self._net.input_names()[0], self._ncnn.Mat(image).clone())
        maps = []
        for head in self.heads:
            code, found = extractor.extract(head)
            if code:
                raise FormatError(f"ncnn stopped at output {head!r} with code {code}; the file is damaged")
            maps.append(np.array(found))
        return maps


def _pin_float32(options: Any) -> None:
    """Left alone, ncnn computes in float16 or bfloat16 where the processor can."""
    for name in ("use_fp16_packed", "use_fp16_storage", "use_fp16_arithmetic", "use_bf16_packed", "use_bf16_storage"):
        if hasattr(options, name):
            setattr(options, name, False)
    options.use_vulkan_compute = False
