"""What is measured, inside its own process: a network in an engine, a pipeline, a rival, a plain multiplication.

Each candidate is prepared from a job and then takes samples: a mapping with ``ms``, the milliseconds of one run, and
what else one run tells (milliseconds of each stage).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, Final, Protocol, runtime_checkable

import numpy as np

from scaledyolo.bench.jobs import CopyJob, GemmJob, Job, NetworkJob, OpenCvJob, ProfileJob
from scaledyolo.errors import UsageError

if TYPE_CHECKING:
    from scaledyolo.detector import Detector, RgbImage
    from scaledyolo.engines.base import Engine

AUTO: Final = "auto"  # the precision that a detector chooses, see scaledyolo.engines.faithful
STAGES: Final = ("read", "resize", "network", "decode", "suppress")  # of an image file on its way to detections


@runtime_checkable
class Candidate(Protocol):
    """Something that can be measured again and again."""

    def facts(self) -> dict[str, Any]:
        """What it is: plain values such as ``engine``, ``version``, ``precision``."""

    def sample(self) -> dict[str, Any]:
        """One run: ``ms`` and what else there is to say of it."""


def prepare(job: Job) -> Candidate:
    """A candidate that is ready for its first run.

    Raises:
        ScaledYoloError: it cannot be had here; says why.
    """
    if isinstance(job, NetworkJob):
        return NetworkCandidate(job) if job.image is None else PipelineCandidate(job)
    if isinstance(job, OpenCvJob):
        from scaledyolo.bench.opencv import OpenCvCandidate

        return OpenCvCandidate(job)
    if isinstance(job, (GemmJob, CopyJob)):
        from scaledyolo.bench.machine import CopyCandidate, gemm_candidate

        return gemm_candidate(job) if isinstance(job, GemmJob) else CopyCandidate(job)
    from scaledyolo.bench.profile import ProfileCandidate

    assert isinstance(job, ProfileJob)
    return ProfileCandidate(job)


def timed_ms(run: Callable[[], object]) -> float:
    """Milliseconds of one call."""
    start = time.perf_counter()
    run()
    return 1e3 * (time.perf_counter() - start)


def model_of(job: NetworkJob) -> Any:
    """The model of a job as a detector takes it."""
    return job.model[0] if len(job.model) == 1 else (job.model[0], job.model[1])


def half_of(precision: str) -> bool | None:
    """What our engines are asked for; which half they give is checked by :func:`check_precision`."""
    return None if precision == AUTO else precision in ("bfloat16", "float16")


def check_precision(asked: str, engine: str, device: str, given: str) -> None:
    """Refuse to measure something else than was asked for.

    Raises:
        UsageError: the engine computes in another precision.
    """
    if asked not in (AUTO, given):
        raise UsageError(f"{engine} on this {device} computes in {given}, not in {asked}")


def engine_facts(engine: Engine) -> dict[str, Any]:
    """What runs a network."""
    return {
        "engine": engine.name,
        "version": engine.version,
        "device": engine.device,
        "precision": engine.precision,
    }


def threshold_for(detector: Detector, image: RgbImage, candidates: int) -> float:
    """The score that so many boxes of an image pass, before suppression; 0 where it has fewer.

    Args:
        detector: with any threshold of its own.
        image: (height, width, 3) uint8 RGB.
        candidates: how many boxes, at least one.
    """
    from scaledyolo.data.letterbox import images_to_input, letterbox, stretch
    from scaledyolo.postprocess.decode import decode_candidates

    place = letterbox if detector.resize == "letterbox" else stretch
    size = detector.height, detector.width
    batch = images_to_input([place(image, *size)[0]])
    (found,) = decode_candidates(detector.network.run(batch), detector.network.facts.detects, size, 0.0)
    scores = np.sort(np.asarray(found.scores))[::-1]
    return float(scores[candidates]) if len(scores) > candidates else 0.0


class NetworkCandidate:
    """The network alone: an array of pixels goes in, raw maps come out."""

    def __init__(self, job: NetworkJob) -> None:
        from scaledyolo.engines.faithful import scene
        from scaledyolo.runnable import open_runnable

        self._network = open_runnable(
            model_of(job), engine=job.engine, device=job.device, half=half_of(job.precision), threads=job.threads
        )
        engine, facts = self._network.engine, self._network.facts
        check_precision(job.precision, engine.name, engine.device, engine.precision)
        facts.check_size(job.height, job.width)
        self._images = np.stack([scene(facts.channels, job.height, job.width, seed) for seed in range(job.batch)])

    def facts(self) -> dict[str, Any]:
        """What runs the network."""
        return engine_facts(self._network.engine)

    def sample(self) -> dict[str, Any]:
        """Run the batch once."""
        return {"ms": timed_ms(lambda: self._network.run(self._images))}


class PipelineCandidate:
    """Everything: an image file goes in, detections come out; the same file for every image of the batch."""

    def __init__(self, job: NetworkJob) -> None:
        import cv2

        from scaledyolo.detector import Detector
        from scaledyolo.sources import read_image

        assert job.image is not None
        if job.threads is not None:
            cv2.setNumThreads(job.threads)
        open_detector = partial(
            Detector,
            model_of(job),
            engine=job.engine,
            device=job.device,
            half=half_of(job.precision),
            threads=job.threads,
            size=(job.height, job.width),
        )
        self._detector = open_detector()
        engine = self._detector.engine
        check_precision(job.precision, engine.name, engine.device, engine.precision)
        if job.candidates is not None:
            pixels = read_image(job.image)
            self._detector = open_detector(confidence=threshold_for(self._detector, pixels, job.candidates))
        self._read, self._image, self._batch = read_image, job.image, job.batch

    def facts(self) -> dict[str, Any]:
        """What runs the network."""
        return engine_facts(self._detector.engine)

    def sample(self) -> dict[str, Any]:
        """Read and detect once; what is not in a stage is the making of the result."""
        from scaledyolo.detector import StageTimes

        times = self._detector.times = StageTimes()
        start = time.perf_counter()
        images = [self._read(self._image) for _ in range(self._batch)]
        read = time.perf_counter()
        found = self._detector.detect_batch(images)
        end = time.perf_counter()
        stages = {"read": read - start, **times.seconds}
        return {
            "ms": 1e3 * (end - start),
            "stages": {stage: 1e3 * stages[stage] for stage in STAGES},
            "detections": sum(map(len, found)),
        }
