"""`scaledyolo detect`."""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from scaledyolo.cli.exit_codes import EXIT_INCOMPLETE
from scaledyolo.cli.options import model_source, sides
from scaledyolo.cli.progress import progress_bar
from scaledyolo.default_model import DEFAULT
from scaledyolo.errors import SourceError, UsageError, counted

if TYPE_CHECKING:
    from scaledyolo.detector import Detector
    from scaledyolo.outputs import RunWriter
    from scaledyolo.sources import FrameSource

SHOWN_FAILURES = 20
WORTH_SAYING = 1.0  # seconds until the first image
SMALLEST_TILE = 32  # pixels; below, an image falls into more tiles than it has objects


@dataclass(frozen=True)
class Detect:
    """Find objects in images, folders, videos and streams; results go into a new folder below --out."""

    source: Annotated[tuple[str, ...], tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Images, folders, patterns, videos, camera numbers, rtsp or http addresses, lists (.txt), or - for a list on
    standard input."""
    model: Annotated[tuple[str, ...], tyro.conf.arg(metavar="MODEL | CFG WEIGHTS")] = ()
    """Checkpoint (.safetensors), Darknet cfg and weights, or the name of official weights; by default the model that
    comes with the package."""
    names: Path | None = None
    """File with one class name a line; by default the names in the checkpoint or beside the cfg."""
    conf: float = 0.25
    """Lowest score reported, 0 to 1."""
    iou: float = 0.45
    """Overlap above which the weaker of two boxes is dropped."""
    nms: str = "greedy"
    """Kind of suppression: greedy, diou, darknet, soft-linear, soft-gaussian, matrix, cluster, merge."""
    classes: tuple[str, ...] = ()
    """Names or ids of the classes to report; by default all."""
    agnostic: bool = False
    """Boxes of different classes suppress each other too."""
    max_det: int = 300
    """Most boxes reported for an image."""
    size: Annotated[tuple[int, ...], tyro.conf.arg(metavar="SIDE | HEIGHT WIDTH")] = ()
    """Network input in pixels; by default the model's own."""
    resize: Literal["auto", "letterbox", "stretch"] = "auto"
    """How images are brought to that size; auto: as the model was trained."""
    engine: str = "auto"
    """What runs the network."""
    device: str = "auto"
    """Where it runs: cpu or cuda."""
    half: Literal["auto", "on", "off"] = "auto"
    """Half precision; auto: where it is faster and was measured to be faithful to the network."""
    threads: int | None = None
    """Threads of the engine on a CPU; by default all cores."""
    batch: int = 1
    """Images that go through the network at once."""
    mode: Literal["auto", "latency", "throughput"] = "auto"
    """Latency: one image after the other, each with all cores; throughput: several at once, each on its share of them;
    auto: throughput for folders, lists and video files, latency for single images, cameras and streams."""
    tile: int = 0
    """Detect in overlapping tiles of this many pixels a side, for large images with small objects; 0: whole image."""
    save: tuple[str, ...] = ("media", "jsonl")
    """What to write: media (pictures and videos), jsonl, csv, coco, yolo (labels to train on), yolo-conf (the same with
    the confidence as a sixth column), crops; `--save none` writes nothing."""
    out: Path = Path("runs")
    """Folder of all runs; each makes a new folder below."""
    recursive: bool = True
    """Whether a folder includes its subfolders."""
    subnet: str | None = None
    """Only this part of the network, such as without-head-p7 or without-stage-p7; all, with a budget: any part."""
    budget: str | None = None
    """Time for an image, such as 15ms or 30fps: the best input size and part of the network that fits is used."""
    download: bool = False
    """Fetch official weights that are not in the cache yet."""
    tta: bool = False
    """Test-time augmentation: look at each image three times, once mirrored and twice shrunk."""
    ensemble: tuple[str, ...] = ()
    """Further models of the same classes, whose detections are merged with those of the model."""
    merge: Literal["nms", "wbf"] = "nms"
    """How several views of an image become one answer: suppressed together, or fused by weighted boxes."""

    def run(self) -> int:
        from scaledyolo.detector import Detector
        from scaledyolo.outputs import RunOptions, RunWriter
        from scaledyolo.postprocess import NMS
        from scaledyolo.sources import open_sources

        if not self.source:
            raise UsageError("nothing to look at; give an image, folder, video, address or -")
        if self.batch < 1:
            raise UsageError(f"--batch takes the number of images at once, at least 1, got {self.batch}")
        if self.tile and self.tile < SMALLEST_TILE:
            raise UsageError(f"--tile takes the side of a tile in pixels, at least {SMALLEST_TILE}, got {self.tile}")
        sources = open_sources(self.source, recursive=self.recursive)
        started = time.perf_counter()
        detector = Detector(
            model_source(self.model or (DEFAULT,), download=self.download),
            confidence=self.conf,
            nms=NMS(self.nms, self.iou, self.agnostic, self.max_det),  # type: ignore[arg-type]
            size=sides(self.size),
            resize=None if self.resize == "auto" else self.resize,
            classes=self.classes or None,
            engine=self.engine,
            device=self.device,
            half={"auto": None, "on": True, "off": False}[self.half],
            threads=self.threads,
            names=self.names,
            download=self.download,
            subnet=self.subnet,
            budget=self.budget,
            tta=self.tta,
            ensemble=self.ensemble,
            merge=self.merge,
        )
        ids = detector.category_ids
        options = RunOptions(category_ids=None if ids is None else dict(enumerate(ids)))
        formats = () if self.save == ("none",) else self.save
        self._prepare(sources, detector, started)
        started = time.perf_counter()
        with RunWriter(self.out, formats=formats, options=options) as writer:
            try:
                self._work(sources, detector, writer)
            finally:
                if writer.summary.num_frames or writer.summary.failures:
                    report(writer, detector, time.perf_counter() - started)
        return EXIT_INCOMPLETE if writer.summary.failures else 0

    def _prepare(self, sources: Sequence[FrameSource], detector: Detector, started: float) -> None:
        """Have the detector ready for what comes; where that took long since ``started``, say so."""
        batch = 1 if self.tile else self.batch
        for throughput in {detector.several_at_once(source, self.mode) for source in sources}:
            detector.prepare(batch, throughput=throughput)
        seconds = time.perf_counter() - started
        if seconds > WORTH_SAYING:
            print(f"ready in {seconds:.1f} s", flush=True)

    def _work(self, sources: Sequence[FrameSource], detector: Detector, writer: RunWriter) -> None:
        detect = partial(in_tiles, side=self.tile) if self.tile else None
        total = sum(source.num_frames or 0 for source in sources) or None
        with progress_bar(total) as advance:
            for source in sources:
                watched = detector.watch(source, batch=self.batch, mode=self.mode, detect=detect)
                with source, closing(watched):
                    try:
                        for frame, found in watched:
                            writer.write(frame, found)
                            advance(1)
                    except SourceError as error:
                        if len(sources) == 1:
                            raise
                        writer.summary.failures.append(error)  # one of several: the others go on


def in_tiles(detector: Detector, images: Sequence[Any], *, side: int) -> list[Any]:
    """Detections in overlapping tiles of ``side`` pixels; what two tiles found is suppressed as the detector does."""
    import supervision as sv

    from scaledyolo.postprocess import Candidates, suppress

    slicer = sv.InferenceSlicer(
        callback=lambda image: detector.detect_batch([image])[0],
        slice_wh=(side, side),
        overlap_wh=(side // 5, side // 5),
        overlap_filter=sv.OverlapFilter.NONE,
    )
    results = []
    for image in images:
        found = slicer(image)
        if len(found):
            candidates = Candidates(found.xyxy, found.confidence, found.class_id)
            found = detector.as_detections(suppress(candidates, detector.nms))
        results.append(found)
    return results


def report(writer: RunWriter, detector: Detector, seconds: float) -> None:
    """The last words of a run: what was found, how long each stage took, what had to be skipped."""
    from scaledyolo.engines import describe_engine
    from scaledyolo.views import describe_views

    summary = writer.summary
    counts = ", ".join(f"{count} {name}" for name, count in summary.detections_by_class.most_common())
    found = f"{counted(summary.num_frames, 'image')}, {counted(summary.num_detections, 'object')}"
    print(found + (f": {counts}" if counts else ""))
    times = detector.times.milliseconds_per_image()
    stages = ", ".join(f"{stage} {value:.1f}" for stage, value in times.items())
    rate = f"{seconds:.2f} s in all, {summary.num_frames / seconds:.1f} images/s"
    print(f"{stages} ms an image ({describe_engine(detector.engine)}), {rate}")
    if len(detector.views) > 1:
        print(describe_views(detector.views, detector.merge))
    if detector.budget is not None:
        print(detector.budget)
    if writer.folder is not None:
        print(f"results in {writer.folder}")
    for failure in summary.failures[:SHOWN_FAILURES]:
        print(f"skipped: {failure}", file=sys.stderr)
    if len(summary.failures) > SHOWN_FAILURES:
        print(f"skipped: {len(summary.failures) - SHOWN_FAILURES} more", file=sys.stderr)
