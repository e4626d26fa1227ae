"""Annotations of a whole data set in a handful of flat arrays.

A million boxes as Python objects cost a gigabyte, and each forked worker copies them page by page as reference counts
change. Flat arrays have one reference count: memory stays flat however many workers read them.
"""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scaledyolo.data.problems import RawBox


@dataclass(frozen=True, eq=False)
class PackedStrings(Sequence[str]):
    """Strings end to end in one byte array. text: (bytes,) uint8. offsets: (n + 1,) int64."""

    text: npt.NDArray[np.uint8]
    offsets: npt.NDArray[np.int64]

    @classmethod
    def pack(cls, strings: Sequence[str]) -> PackedStrings:
        """Pack strings; undecodable file names survive (surrogate escapes)."""
        encoded = [string.encode("utf-8", "surrogateescape") for string in strings]
        offsets = np.zeros(len(encoded) + 1, np.int64)
        np.cumsum([len(item) for item in encoded], out=offsets[1:])
        return cls(np.frombuffer(b"".join(encoded), np.uint8), offsets)

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, index: int) -> str:  # type: ignore[override]  # slices are of no use here
        if not -len(self) <= index < len(self):
            raise IndexError(f"index {index} of {len(self)} strings")
        index %= len(self)
        return self.text[self.offsets[index] : self.offsets[index + 1]].tobytes().decode("utf-8", "surrogateescape")

    def __iter__(self) -> Iterator[str]:
        return (self[index] for index in range(len(self)))


@dataclass(frozen=True, eq=False)
class Annotations:
    """Boxes of n images, m boxes in all; those of image i are rows ``offsets[i]:offsets[i + 1]``.

    paths: n image files. image_ids: (n,) int64, unique; COCO ids are kept. sizes: (n, 2) int32 height, width in
    pixels. offsets: (n + 1,) int64. boxes_xyxy: (m, 4) float64 pixels (double, so that evaluation against the original
    file agrees to the last digit). class_ids: (m,) int32. areas: (m,) float64 square pixels, of the mask where known.
    crowd: (m,) bool, regions of many objects: ignored in training, special in evaluation. difficult: (m,) bool (VOC).
    """

    paths: PackedStrings
    image_ids: npt.NDArray[np.int64]
    sizes: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    boxes_xyxy: npt.NDArray[np.float64]
    class_ids: npt.NDArray[np.int32]
    areas: npt.NDArray[np.float64]
    crowd: npt.NDArray[np.bool_]
    difficult: npt.NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def num_boxes(self) -> int:
        """Boxes of all images, crowds included."""
        return len(self.class_ids)

    def rows(self, index: int) -> slice:
        """Rows of the boxes of image ``index``."""
        return slice(int(self.offsets[index]), int(self.offsets[index + 1]))

    def take(self, indices: npt.ArrayLike) -> Annotations:
        """Annotations of some images, in the order given."""
        chosen = np.asarray(indices, np.int64).reshape(-1)
        counts = np.diff(self.offsets)[chosen]
        offsets = np.concatenate([[0], np.cumsum(counts)]).astype(np.int64)
        # Row numbers without a Python loop: start of each image, plus the position within it.
        within = np.arange(offsets[-1]) - np.repeat(offsets[:-1], counts)
        rows = np.repeat(self.offsets[:-1][chosen], counts) + within
        return Annotations(
            paths=PackedStrings.pack([self.paths[int(index)] for index in chosen]),
            image_ids=self.image_ids[chosen],
            sizes=self.sizes[chosen],
            offsets=offsets,
            boxes_xyxy=self.boxes_xyxy[rows],
            class_ids=self.class_ids[rows],
            areas=self.areas[rows],
            crowd=self.crowd[rows],
            difficult=self.difficult[rows],
        )


class AnnotationBuilder:
    """Collects images while a file is read, then packs them."""

    def __init__(self) -> None:
        self._paths: list[str] = []
        self._image_ids: list[int] = []
        self._sizes: list[tuple[int, int]] = []
        self._counts: list[int] = []
        # Numbers, not objects: a million tuples would keep the garbage collector busy.
        self._corners = array("d")
        self._class_ids = array("i")
        self._areas = array("d")
        self._crowd = array("b")
        self._difficult = array("b")

    def add(self, path: object, height: int, width: int, boxes: Sequence[RawBox], image_id: int | None = None) -> None:
        """Add one image; without an id of its own it gets its position."""
        self._image_ids.append(len(self._paths) if image_id is None else image_id)
        self._paths.append(str(path))
        self._sizes.append((height, width))
        self._counts.append(len(boxes))
        for box in boxes:
            self._corners.extend(box[:4])
            self._class_ids.append(box.class_id)
            self._areas.append(math.nan if box.area is None else box.area)
            self._crowd.append(box.crowd)
            self._difficult.append(box.difficult)

    def build(self) -> Annotations:
        """The flat arrays."""
        boxes = np.array(self._corners, np.float64).reshape(-1, 4)
        sides = boxes[:, 2:] - boxes[:, :2]
        given = np.array(self._areas, np.float64)
        return Annotations(
            paths=PackedStrings.pack(self._paths),
            image_ids=np.array(self._image_ids, np.int64),
            sizes=np.array(self._sizes, np.int32).reshape(-1, 2),
            offsets=np.concatenate([[0], np.cumsum(self._counts)]).astype(np.int64),
            boxes_xyxy=boxes,
            class_ids=np.array(self._class_ids, np.int32),
            areas=np.where(np.isnan(given), sides.prod(axis=1), given),
            crowd=np.array(self._crowd, np.bool_),
            difficult=np.array(self._difficult, np.bool_),
        )


def join(parts: Sequence[Annotations], class_maps: Sequence[npt.NDArray[np.int32]]) -> Annotations:
    """Several annotations one after the other; class ids of part k become ``class_maps[k][id]``.

    Image ids are kept if they stay unique, else renumbered by position.
    """
    ends = np.cumsum([0] + [part.num_boxes for part in parts])
    offsets = [part.offsets[:-1] + start for part, start in zip(parts, ends[:-1], strict=True)]
    image_ids = np.concatenate([part.image_ids for part in parts])
    if len(np.unique(image_ids)) < len(image_ids):
        image_ids = np.arange(len(image_ids), dtype=np.int64)
    return Annotations(
        paths=PackedStrings.pack([path for part in parts for path in part.paths]),
        image_ids=image_ids,
        sizes=np.concatenate([part.sizes for part in parts]),
        offsets=np.concatenate([*offsets, ends[-1:]]).astype(np.int64),
        boxes_xyxy=np.concatenate([part.boxes_xyxy for part in parts]),
        class_ids=np.concatenate(
            [class_map[part.class_ids] for part, class_map in zip(parts, class_maps, strict=True)]
        ).astype(np.int32),
        areas=np.concatenate([part.areas for part in parts]),
        crowd=np.concatenate([part.crowd for part in parts]),
        difficult=np.concatenate([part.difficult for part in parts]),
    )
