"""What a benchmark says: one row for each way to run a network, as plain values."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from scaledyolo.arch.roofline import Roof
from scaledyolo.bench.roofline import Layer
from scaledyolo.bench.timing import Timing


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One network at one size and batch in one engine and precision; where ``error`` says something, only that holds.

    Times are those of the whole batch. None stands for what was not measured or has no meaning.
    """

    model: str
    size: tuple[int, int]  # height, width in pixels
    batch: int  # images at a time
    engine: str
    precision: str
    end_to_end: bool = False  # from an image file to detections; else the network alone
    version: str = ""  # of the engine
    device: str = "cpu"
    threads: int = 1
    heat: int = 0  # rows of one heat were measured in the same rounds: their ratios hold on a busy machine too
    median_ms: float | None = None
    p95_ms: float | None = None
    noise: float | None = None  # interquartile range over median
    rounds: int = 0
    images_per_s: float | None = None
    peak_mb: float | None = None  # most memory of a process that does nothing else, in 2^20 bytes (VmHWM)
    params: int | None = None
    gflop: float | None = None  # of one image, 2 per multiply-add of the convolutions
    gflops: float | None = None  # achieved, a second
    peak_gflops: float | None = None  # of a matrix product in this precision in the same rounds, a second
    peak_share: float | None = None
    stages: Mapping[str, float] | None = None  # median milliseconds of the batch
    detections: int | None = None  # in one batch
    roof: Roof | None = None  # under which the layers were judged
    layers: tuple[Layer, ...] | None = None
    note: str = ""
    error: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return dataclasses.asdict(self)


def measured(row: Row, samples: Sequence[Mapping[str, Any]], gflop: float | None, peak_gflops: float | None) -> Row:
    """A row with what its samples say.

    Args:
        row: what was measured.
        samples: ``ms`` of every round, and ``stages`` and ``detections`` of a pipeline.
        gflop: giga floating-point operations of one image.
        peak_gflops: giga floating-point operations a second of a matrix product; None where there is none to compare.
    """
    timing = Timing(tuple(sample["ms"] for sample in samples))
    median = timing.median_ms
    gflops = None if gflop is None or row.end_to_end else gflop * row.batch / (median / 1e3)
    return dataclasses.replace(
        row,
        median_ms=median,
        p95_ms=timing.p95_ms,
        noise=timing.noise,
        rounds=len(samples),
        images_per_s=1e3 * row.batch / median,
        gflop=gflop,
        gflops=gflops,
        peak_gflops=peak_gflops,
        peak_share=None if gflops is None or not peak_gflops else gflops / peak_gflops,
        stages=_stages(samples),
        detections=samples[-1].get("detections"),
    )


def _stages(samples: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    first = samples[0].get("stages")
    if first is None:
        return None
    return {stage: median(sample["stages"][stage] for sample in samples) for stage in first}
