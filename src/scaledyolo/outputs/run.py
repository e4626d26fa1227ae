"""One detection run: its folder, its writers, and what it counted."""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from scaledyolo.closing import Closing
from scaledyolo.errors import SourceError, UsageError, nearest
from scaledyolo.outputs.files import OutputNames, create_run_folder
from scaledyolo.outputs.media import Annotated, Crops
from scaledyolo.outputs.records import class_names_of
from scaledyolo.outputs.text import CocoResults, Csv, JsonLines, Writer, YoloText
from scaledyolo.sources.frame import Frame

if TYPE_CHECKING:
    from supervision import Detections


@dataclass(frozen=True)
class RunOptions:
    """What single formats need to know."""

    category_ids: Mapping[int, int] | None = None  # coco: category id of the data set for each class of the model
    image_ids: Mapping[str, int] | None = None  # coco: image id by file name


FORMATS: Mapping[str, Callable[[Path, RunOptions], Writer]] = {
    "media": lambda folder, options: Annotated(folder),
    "jsonl": lambda folder, options: JsonLines(folder),
    "csv": lambda folder, options: Csv(folder),
    "coco": lambda folder, options: CocoResults(folder, category_ids=options.category_ids, image_ids=options.image_ids),
    "yolo": lambda folder, options: YoloText(folder),
    "yolo-conf": lambda folder, options: YoloText(folder, with_confidence=True),
    "crops": lambda folder, options: Crops(folder),
}


@dataclass
class RunSummary:
    """What a run did, for its last words."""

    num_frames: int = 0
    num_detections: int = 0
    detections_by_class: Counter[str] = field(default_factory=Counter)
    failures: list[SourceError] = field(default_factory=list)  # sources that were skipped, in order


class RunWriter(Closing):
    """Writes the detections of a run in all chosen formats into a new folder.

    Leaving the ``with`` block finishes every file, whatever ended the run; files that grow are complete after
    every frame.
    """

    def __init__(
        self,
        parent: Path | str = "runs",
        *,
        name: str = "detect",
        formats: Sequence[str] = ("media",),
        options: RunOptions | None = None,
    ) -> None:
        """Create the folder ``parent/name``, ``name-2``, ... and the files of the formats.

        Args:
            parent: folder of all runs.
            name: what the runs are called.
            formats: any of ``FORMATS``; without any, nothing is created and only the summary is kept.
            options: details of single formats.

        Raises:
            UsageError: an unknown format.
            OutputError: the folder or a file cannot be created.
        """
        for word in formats:
            if word not in FORMATS:
                known = ", ".join(FORMATS)
                raise UsageError(f"unknown output format {word!r}; known are {known}.{nearest(word, FORMATS)}")
        self.summary = RunSummary()
        self._names = OutputNames()
        self._writers: list[Writer] = []
        self._closing = contextlib.ExitStack()
        self.folder = create_run_folder(Path(parent), name) if formats else None
        if self.folder is None:
            return
        try:
            for word in dict.fromkeys(formats):
                writer = FORMATS[word](self.folder, options or RunOptions())
                self._writers.append(writer)
                self._closing.callback(writer.close)
        except BaseException:
            self.close()
            raise

    def write(self, frame: Frame, detections: Detections | None) -> None:
        """Write one frame in every format.

        Args:
            frame: as its source yielded it. One with an error is counted, and recorded by the formats that can.
            detections: ``xyxy`` in pixels of ``frame.image``, ``confidence``, ``class_id`` and ``data["class_name"]``;
                None only for a frame with an error.

        Raises:
            OutputError: disk full, no permission, ...: what was written before stays and is complete.
        """
        if frame.error is not None:
            self.summary.failures.append(frame.error)
            for writer in self._writers:
                if isinstance(writer, JsonLines):
                    writer.write_error(frame)
            return
        if detections is None:
            raise ValueError(f"no detections were given for {frame.source}, which has a picture")
        place = self._names.place(frame.source, frame.relative, keep_suffix=frame.origin != "image")
        for writer in self._writers:
            writer.write(frame, detections, place)
        self.summary.num_frames += 1
        self.summary.num_detections += len(detections)
        self.summary.detections_by_class.update(class_names_of(detections))

    def close(self) -> None:
        """Finish every file, even when one of them fails; may be called twice."""
        self._closing.close()
