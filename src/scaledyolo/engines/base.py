"""The seam to every runtime: a batch of images goes in, raw head maps come out.

Decoding and suppression stand outside, once for all engines. An engine is built from a graph and its weights; a new one
(OpenVINO, TensorRT) is a class with the members of :class:`Engine` and an entry in :mod:`scaledyolo.engines.select`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from scaledyolo.errors import UsageError, nearest
from scaledyolo.weights import Array


@runtime_checkable
class Engine(Protocol):
    """A network that is ready to run. ``run`` may be called from several threads at once."""

    @property
    def name(self) -> str:
        """What runs the network: ``onnxruntime``, ``openvino``, ``torch``."""

    @property
    def version(self) -> str:
        """Version of the runtime."""

    @property
    def device(self) -> str:
        """Where it runs: ``cpu``, ``cuda``, ``gpu``."""

    @property
    def precision(self) -> str:
        """What it computes in: ``float32``, ``bfloat16``, ``float16``, ``int8``; maps are float32 always."""

    @property
    def size(self) -> tuple[int, int] | None:
        """(height, width) in pixels that every batch must have, or None where any multiple of the stride will do."""

    @property
    def batch(self) -> int | None:
        """Images that every batch must have, or None where any number will do."""

    def run(self, images: Array) -> list[Array]:
        """Run the network.

        Args:
            images: (batch, 3, height, width) float32 in [0, 1].

        Returns:
            The raw map of each head, (batch, channels, height / stride, width / stride) float32, in head order.

        Raises:
            UsageError: the array has another shape or dtype than the engine takes.
        """


@runtime_checkable
class TunedForOneRun(Protocol):
    """An engine that gives one run all cores, and can be had in a form for several runs at once."""

    def side_by_side(self) -> Engine:
        """The same network and precision, set up so that runs from several threads share out the cores."""


@runtime_checkable
class CompiledForShape(Protocol):
    """An engine that has to work on a shape of images before the first run of it."""

    def prepare(self, count: int, height: int, width: int) -> None:
        """Do that work now; cheap where it is done.

        Args:
            count: images at once.
            height: of the images in pixels, as ``width``.
        """


def prepare(engine: Engine, count: int, height: int, width: int) -> None:
    """Have an engine ready to run ``count`` images of a size at once; most are as soon as they are open."""
    if isinstance(engine, CompiledForShape):
        engine.prepare(count, height, width)


def side_by_side(engine: Engine) -> Engine:
    """The engine for many runs at once: throughput at the expense of latency; most engines are that as they are."""
    return engine.side_by_side() if isinstance(engine, TunedForOneRun) else engine


def check_images(
    images: NDArray[Any],
    *,
    channels: int = 3,
    size: tuple[int, int] | None = None,
    batch: int | None = None,
    stride: int | None = None,
) -> None:
    """Refuse a batch that an engine cannot take, in words instead of a message from inside the runtime.

    Raises:
        UsageError: says what was expected and what came.
    """
    if not isinstance(images, np.ndarray) or images.dtype != np.float32 or images.ndim != 4:
        found = f"{images.dtype} of shape {images.shape}" if isinstance(images, np.ndarray) else type(images).__name__
        raise UsageError(f"an engine takes float32 images of shape (batch, {channels}, height, width), got {found}")
    count, depth, height, width = images.shape
    if depth != channels:
        raise UsageError(f"the network takes images of {channels} channels, channels first; got shape {images.shape}")
    if size is not None and (height, width) != size:
        raise UsageError(f"this engine was built for images of {size[0]}x{size[1]}, got {height}x{width}")
    if batch is not None and count != batch:
        raise UsageError(f"this engine was built for batches of {batch}, got {count}")
    if count == 0:
        raise UsageError("a batch must have at least one image")
    if stride is not None and (height % stride or width % stride or not height or not width):
        raise UsageError(f"height and width must be multiples of {stride}, got {height}x{width}")


def choose(kind: str, wanted: str, known: Sequence[str]) -> None:
    """Refuse an unknown option.

    Raises:
        UsageError: names the known ones, and the nearest.
    """
    if wanted not in known:
        raise UsageError(f"there is no {kind} {wanted!r}; known are {', '.join(known)}.{nearest(wanted, known)}")


def check_threads(threads: int) -> None:
    """Refuse a number of threads that makes no sense.

    Raises:
        UsageError: fewer than one.
    """
    if threads < 1:
        raise UsageError(f"{threads} threads make no sense; use 1 or more")
