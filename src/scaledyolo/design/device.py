"""Measuring networks here, end to end: letterbox, network, decoding and suppression of a Detector with the real engine.

Weights are random: the speed of a network does not depend on them, and about as many boxes reach suppression as in a
photograph full of things (:func:`scaledyolo.bench.networks.random_checkpoint`).
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Final, Literal, Protocol

import numpy as np
import numpy.typing as npt

from scaledyolo.arch.lower import lower
from scaledyolo.arch.spec import ModelSpec
from scaledyolo.arch.zoo import find
from scaledyolo.bench.networks import random_checkpoint
from scaledyolo.bench.timing import Timing, interleaved
from scaledyolo.design.candidates import Candidate
from scaledyolo.errors import UsageError, counted
from scaledyolo.host import physical_cores, processor_name

if TYPE_CHECKING:
    from scaledyolo.checkpoint import Checkpoint
    from scaledyolo.detector import Detector
    from scaledyolo.engines.base import Engine

Precision = Literal["auto", "float32", "bfloat16", "float16"]

FRAME: Final = (720, 1280)  # height and width in pixels of the picture that is looked at, as most cameras give it
_AT_ONCE: Final = 6  # networks that are open and measured in turns
_MOST_PARAMS: Final = 150_000_000  # of all that are open
_SAMPLE_SECONDS: Final = 0.03  # a sample is the mean of as many images as take this long, at most _MOST_IMAGES
_MOST_IMAGES: Final = 8
_ROUNDS: Final = 40


@dataclass(frozen=True)
class DeviceFacts:
    """What decides how long a network takes; measurements belong to exactly one such set."""

    processor: str
    cores: int
    engine: str
    version: str
    device: str
    precision: str
    threads: int | None

    def __str__(self) -> str:
        threads = "" if self.threads is None else f", {counted(self.threads, 'thread')}"
        return (
            f"{self.processor}, {counted(self.cores, 'core')}{threads}: {self.engine} {self.version} on {self.device} "
            f"in {self.precision}"
        )

    def to_dict(self) -> dict[str, str | int | None]:
        """Plain values."""
        return asdict(self)


class Device(Protocol):
    """What the search asks of a machine."""

    @property
    def facts(self) -> DeviceFacts:
        """What it is."""

    def measure(self, candidates: Sequence[Candidate]) -> list[Timing]:
        """Milliseconds of one image, end to end, of each candidate."""


class EngineDevice:
    """This machine with one engine.

    Args:
        engine: "auto", "openvino", "onnxruntime" or "torch".
        device: "auto", "cpu", "cuda", "gpu" or "npu".
        precision: what networks compute in; "auto" is what a Detector takes by itself.
        threads: of the engine on a CPU; None: all cores.
        seconds: that the measurement of one network may take, besides opening it.
        clock: seconds since any moment.

    Raises:
        ScaledYoloError: there is no such engine, device or precision here.
    """

    def __init__(
        self,
        *,
        engine: str = "auto",
        device: str = "auto",
        precision: Precision = "auto",
        threads: int | None = None,
        seconds: float = 1.0,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        from scaledyolo.runnable import open_runnable

        half = _half(precision)
        sample = random_checkpoint(lower(find("yolov4-tiny").with_size(256)))
        opened = open_runnable(sample, engine=engine, device=device, half=half, threads=threads).engine
        if precision not in ("auto", opened.precision):
            raise UsageError(
                f"{opened.name} on {opened.device} computes in {opened.precision}, not in {precision}; "
                "give another --precision or --engine"
            )
        self.facts: DeviceFacts = DeviceFacts(
            processor=processor_name(),
            cores=physical_cores(),
            engine=opened.name,
            version=opened.version,
            device=opened.device,
            precision=opened.precision,
            threads=threads,
        )
        self._seconds = seconds
        self._clock = clock

    def measure(self, candidates: Sequence[Candidate]) -> list[Timing]:
        """Milliseconds of one image, end to end, of each candidate; networks are measured in turns, a few at a time."""
        timings: list[Timing] = []
        for group in _groups(candidates):
            runs = [_Repeated(self.open(candidate.spec()), self._clock) for candidate in group]
            measured = interleaved(
                {str(index): run for index, run in enumerate(runs)},
                rounds=_ROUNDS,
                warmup=1,
                seconds=self._seconds * len(group),
                clock=self._clock,
            )
            for timing, run in zip(measured.values(), runs, strict=True):
                timings.append(Timing(tuple(sample / run.images for sample in timing.samples_ms)))
        return timings

    def open(self, spec: ModelSpec) -> Detector:
        """A Detector of the network with random weights, in which one box in 200 reaches suppression."""
        from scaledyolo.artefact import ModelFacts
        from scaledyolo.detector import Detector
        from scaledyolo.runnable import Runnable

        checkpoint = random_checkpoint(lower(spec))
        return Detector(Runnable(self._engine(checkpoint), ModelFacts.of(checkpoint)), size=spec.size)

    def _engine(self, checkpoint: Checkpoint) -> Engine:
        """The engine for one network; what it compiles is not kept, for nobody will open random weights again."""
        facts = self.facts
        weights = dict(checkpoint.weights)
        if facts.engine == "openvino":
            from scaledyolo.engines.openvino import OpenVinoEngine

            return OpenVinoEngine.from_graph(
                checkpoint.graph, weights, device=facts.device, precision=facts.precision, threads=facts.threads
            )
        from scaledyolo.engines.select import open_engine

        half = facts.precision != "float32"
        return open_engine(
            facts.engine, checkpoint.graph, weights, device=facts.device, half=half, threads=facts.threads
        )


class _Repeated:
    """A run over so many images that it can be timed well; the second one says how many."""

    def __init__(self, detector: Detector, clock: Callable[[], float]) -> None:
        self._detector, self._frame = detector, frame()
        detector.candidates([self._frame])  # compiles
        start = clock()
        detector.candidates([self._frame])
        taken = max(clock() - start, 1e-6)
        self.images = max(1, min(_MOST_IMAGES, round(_SAMPLE_SECONDS / taken)))

    def __call__(self) -> None:
        for _ in range(self.images):
            self._detector.candidates([self._frame])


def _half(precision: Precision) -> bool | None:
    return {"auto": None, "float32": False}.get(precision, True)


def _groups(candidates: Sequence[Candidate]) -> Iterator[list[Candidate]]:
    """Runs of candidates that may be open at the same time."""
    group: list[Candidate] = []
    for candidate in candidates:
        total = sum(one.params for one in group) + candidate.params
        if group and (len(group) == _AT_ONCE or total > _MOST_PARAMS):
            yield group
            group = []
        group.append(candidate)
    if group:
        yield group


@lru_cache(maxsize=1)
def frame() -> npt.NDArray[np.uint8]:
    """A picture (720, 1280, 3) uint8 with edges, gradients and noise, the same each time."""
    from scaledyolo.engines.faithful import scene

    picture = scene(3, *FRAME, seed=0)
    return np.ascontiguousarray((255 * picture).round().astype(np.uint8).transpose(1, 2, 0))
