"""Detections as text: JSON lines, CSV, COCO results, YOLO labels.

The first three are one growing file each, complete after every frame; labels are one whole file per image.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

from scaledyolo.boxes import clip_xyxy, normalise, xyxy_to_cxcywh, xyxy_to_tlwh
from scaledyolo.errors import UsageError
from scaledyolo.outputs.files import GrowingFile, write_whole
from scaledyolo.outputs.records import image_of, records_of
from scaledyolo.sources.frame import Frame

if TYPE_CHECKING:
    from supervision import Detections

# Hundredths of a pixel and ten-thousandths of a score are below what a detector resolves.
_PIXEL_DECIMALS = 2
_SCORE_DECIMALS = 4
_LABEL_DECIMALS = 6


class Writer(Protocol):
    """One format of one run."""

    def write(self, frame: Frame, detections: Detections, place: PurePosixPath) -> None:
        """Add the detections of a frame; ``place`` is where files of its source go, without suffix."""

    def close(self) -> None:
        """Finish every file."""


class JsonLines:
    """``detections.jsonl``: one object a frame; a frame that could not be read has ``error`` instead of detections."""

    def __init__(self, folder: Path) -> None:
        self._file = GrowingFile(folder / "detections.jsonl")

    def write(self, frame: Frame, detections: Detections, place: PurePosixPath) -> None:
        height, width = image_of(frame).shape[:2]
        found = []
        for record in records_of(detections):
            entry: dict[str, Any] = {
                "class_id": record.class_id,
                "class_name": record.class_name,
                "confidence": round(record.confidence, _SCORE_DECIMALS),
                "xyxy": [round(value, _PIXEL_DECIMALS) for value in record.xyxy],
            }
            if record.tracker_id is not None:
                entry["tracker_id"] = record.tracker_id
            found.append(entry)
        line: dict[str, Any] = {"source": frame.source, "index": frame.index}
        if frame.timestamp is not None:
            line["timestamp"] = round(frame.timestamp, 6)
        self._append({**line, "width": width, "height": height, "detections": found})

    def write_error(self, frame: Frame) -> None:
        """Record that there is no picture, and why."""
        self._append({"source": frame.source, "index": frame.index, "error": str(frame.error)})

    def close(self) -> None:
        self._file.close()

    def _append(self, line: dict[str, Any]) -> None:
        self._file.append(_json_bytes(line) + b"\n")


class Csv:
    """``detections.csv``: one row a detection, RFC 4180, UTF-8."""

    HEADER = ("source", "index", "timestamp", "width", "height", "class_id", "class_name", "confidence")
    HEADER_BOX = ("x1", "y1", "x2", "y2", "tracker_id")

    def __init__(self, folder: Path) -> None:
        self._file = GrowingFile(folder / "detections.csv", head=_csv_bytes([(*self.HEADER, *self.HEADER_BOX)]))

    def write(self, frame: Frame, detections: Detections, place: PurePosixPath) -> None:
        height, width = image_of(frame).shape[:2]
        timestamp = "" if frame.timestamp is None else round(frame.timestamp, 6)
        rows = [
            (
                *(frame.source, frame.index, timestamp, width, height),
                *(record.class_id, record.class_name, round(record.confidence, _SCORE_DECIMALS)),
                *(round(value, _PIXEL_DECIMALS) for value in record.xyxy),
                "" if record.tracker_id is None else record.tracker_id,
            )
            for record in records_of(detections)
        ]
        if rows:
            self._file.append(_csv_bytes(rows))

    def close(self) -> None:
        self._file.close()


class CocoResults:
    """``coco_results.json``: the results format of the COCO evaluation, valid JSON after every frame.

    ``image_id`` is the number in the file name (``000000000139.jpg`` is 139) or what ``image_ids`` says;
    other images have their path below the opened folder without suffix; frames of videos are called
    ``clip.mp4/000012``.
    """

    def __init__(
        self,
        folder: Path,
        *,
        category_ids: Mapping[int, int] | None = None,
        image_ids: Mapping[str, int] | None = None,
    ) -> None:
        """Create the file.

        Args:
            folder: where.
            category_ids: category id of the data set for every class of the model; by default the class itself.
            image_ids: image id by file name, as in the annotations of the data set.
        """
        self._file = GrowingFile(folder / "coco_results.json", head=b"[", tail=b"\n]\n")
        self._category_ids = category_ids
        self._image_ids = image_ids or {}
        self._source_of_id: dict[int, str] = {}
        self._empty = True

    def write(self, frame: Frame, detections: Detections, place: PurePosixPath) -> None:
        image_id = self._image_id(frame, place)
        results = [
            {
                "image_id": image_id,
                "category_id": self._category_id(record.class_id),
                "bbox": [round(value, 3) for value in xyxy_to_tlwh(np.array(record.xyxy)).tolist()],
                "score": round(record.confidence, 5),
            }
            for record in records_of(detections)
        ]
        if results:
            lines = b",\n".join(_json_bytes(result) for result in results)
            self._file.append((b"\n" if self._empty else b",\n") + lines)
            self._empty = False

    def close(self) -> None:
        self._file.close()

    def _image_id(self, frame: Frame, place: PurePosixPath) -> int | str:
        if frame.origin != "image":
            return f"{place}/{frame.index:06d}"
        name = frame.relative.name
        if name in self._image_ids:
            return self._image_ids[name]
        stem = frame.relative.stem
        if not (stem.isascii() and stem.isdigit()):
            return str(place)
        # Two folders may both have a 139.jpg; only the first can be image 139.
        owner = self._source_of_id.setdefault(int(stem), frame.source)
        return int(stem) if owner == frame.source else str(place)

    def _category_id(self, class_id: int) -> int:
        if self._category_ids is None:
            return class_id
        if class_id not in self._category_ids:
            known = f"{min(self._category_ids)} to {max(self._category_ids)}" if self._category_ids else "none"
            raise UsageError(f"class {class_id} has no COCO category; the mapping of category ids knows {known}")
        return self._category_ids[class_id]


class YoloText:
    """``labels/``: one text file an image, one line a detection: class, centre x, centre y, width, height as
    fractions of the image. An image without detections has an empty file.

    These are labels to train on, so what has no area inside the image is left out. With confidence, a sixth column
    that no training reads, the files lie in ``labels-with-confidence/``.
    """

    def __init__(self, folder: Path, *, with_confidence: bool = False) -> None:
        self._folder = folder / ("labels-with-confidence" if with_confidence else "labels")
        self._with_confidence = with_confidence

    def write(self, frame: Frame, detections: Detections, place: PurePosixPath) -> None:
        height, width = image_of(frame).shape[:2]
        lines = []
        for record in records_of(detections):
            inside = clip_xyxy(np.array(record.xyxy), height, width)
            values = normalise(xyxy_to_cxcywh(inside), height, width).tolist()
            if min(values[2:]) < 0.1**_LABEL_DECIMALS:
                continue
            if self._with_confidence:
                values.append(record.confidence)
            lines.append(" ".join([str(record.class_id), *(f"{value:.{_LABEL_DECIMALS}f}" for value in values)]))
        path = self._folder / frame_place(frame, place)
        write_whole(path.with_name(path.name + ".txt"), "".join(f"{line}\n" for line in lines).encode())

    def close(self) -> None:
        """Every file is finished already."""


def frame_place(frame: Frame, place: PurePosixPath) -> PurePosixPath:
    """Place of one frame: that of its image, or a numbered file in a folder of its video."""
    return place if frame.origin == "image" else place / f"{frame.index:06d}"


def _json_bytes(value: object) -> bytes:
    """One line of UTF-8. Bytes of a file name that are no UTF-8 arrive as lone surrogates, which JSON writes as
    ``\\udc80``: exactly what ``backslashreplace`` makes of them."""
    return json.dumps(value, ensure_ascii=False, allow_nan=False).encode("utf-8", "backslashreplace")


def _csv_bytes(rows: list[tuple[Any, ...]]) -> bytes:
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\r\n").writerows(rows)
    return text.getvalue().encode("utf-8", "backslashreplace")
