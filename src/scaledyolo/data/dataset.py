"""A data set: images, boxes, class names; splitting, joining and its fingerprint."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from scaledyolo.data.annotations import Annotations, join
from scaledyolo.data.image_files import decode
from scaledyolo.data.problems import Report
from scaledyolo.errors import DataError, UsageError


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with boxes whose class ids are contiguous from 0.

    names: class names by contiguous id. original_ids: the ids of the source file (COCO: 1 to 90 with gaps), by
    contiguous id. source: where it was read from. report: what was wrong with it.
    """

    annotations: Annotations
    names: tuple[str, ...]
    original_ids: tuple[int, ...]
    source: str = ""
    report: Report = field(default_factory=Report)

    def __post_init__(self) -> None:
        if len(self.names) != len(self.original_ids):
            raise DataError(f"{len(self.names)} class names but {len(self.original_ids)} original ids")

    def __len__(self) -> int:
        return len(self.annotations)

    @property
    def num_classes(self) -> int:
        """Number of classes, those without any box included."""
        return len(self.names)

    def path(self, index: int) -> str:
        """Image file."""
        return self.annotations.paths[index]

    def load_image(self, index: int) -> npt.NDArray[np.uint8]:
        """Decoded image (height, width, 3) uint8 RGB; DataError if the file changed since the data set was read."""
        image = decode(self.path(index))
        expected = tuple(self.annotations.sizes[index].tolist())
        if image.shape[:2] != expected:
            raise DataError(
                f"{self.path(index)}: decodes to {image.shape[1]}x{image.shape[0]} pixels, but {expected[1]}x"
                f"{expected[0]} were found when the data set was read; was the file replaced?"
            )
        return image

    def objects(self, index: int) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """(boxes_xyxy (n, 4) float32 in source pixels, class_ids (n,) int64) to learn from; crowds left out."""
        rows = self.annotations.rows(index)
        wanted = ~self.annotations.crowd[rows]
        boxes_xyxy, class_ids = self.annotations.boxes_xyxy[rows], self.annotations.class_ids[rows]
        return boxes_xyxy[wanted].astype(np.float32), class_ids[wanted].astype(np.int64)

    def subset(self, indices: npt.ArrayLike) -> Dataset:
        """The data set of these images only; classes unchanged."""
        return replace(self, annotations=self.annotations.take(indices))

    def class_counts(self) -> npt.NDArray[np.int64]:
        """(num_classes,) boxes per class, crowds left out."""
        labels = self.annotations.class_ids[~self.annotations.crowd]
        return np.bincount(labels, minlength=self.num_classes).astype(np.int64)

    @cached_property
    def fingerprint(self) -> str:
        """SHA-256 over names, boxes and the name and byte size of every image file; paths do not count."""
        digest = hashlib.sha256()
        digest.update("\0".join(self.names).encode())
        digest.update(np.array(self.original_ids, "<i8").tobytes())
        notes = self.annotations
        for array in (notes.image_ids, notes.sizes, notes.offsets, notes.boxes_xyxy, notes.class_ids, notes.crowd):
            digest.update(np.ascontiguousarray(array).astype(array.dtype.newbyteorder("<")).tobytes())
        for path in notes.paths:
            size = os.stat(path).st_size if os.path.exists(path) else -1
            digest.update(f"{os.path.basename(path)}\0{size}\n".encode("utf-8", "surrogateescape"))
        return digest.hexdigest()


def concatenate(datasets: Sequence[Dataset], *, classes: Literal["same", "merge"] = "same") -> Dataset:
    """Several data sets as one.

    classes="same" demands equal class lists; "merge" joins them by name, new names at the end. Image ids are kept where
    they stay unique. Raises DataError if the lists differ.
    """
    if not datasets:
        raise UsageError("no data set given to concatenate")
    names = list(datasets[0].names)
    original_ids = list(datasets[0].original_ids)
    for other in datasets[1:]:
        if classes == "same" and other.names != datasets[0].names:
            raise DataError(
                f"class lists differ: {datasets[0].source} has {list(names)}, {other.source} has "
                f"{list(other.names)}; use classes='merge' to join them by name"
            )
        for name in other.names:
            if name not in names:
                names.append(name)
                original_ids.append(max(original_ids, default=-1) + 1)
    position = {name: class_id for class_id, name in enumerate(names)}
    maps = [np.array([position[name] for name in item.names], np.int32) for item in datasets]
    report = Report(datasets[0].report.policy)
    for item in datasets:
        report.merge(item.report)
    return Dataset(
        annotations=join([item.annotations for item in datasets], maps),
        names=tuple(names),
        original_ids=tuple(original_ids),
        source=" + ".join(item.source for item in datasets),
        report=report,
    )


def without_repeats(dataset: Dataset) -> Dataset:
    """The data set with each image file once, where it stands first."""
    first: dict[str, int] = {}
    for index, path in enumerate(dataset.annotations.paths):
        first.setdefault(os.path.realpath(path), index)
    return dataset if len(first) == len(dataset) else dataset.subset(list(first.values()))


def without_images(dataset: Dataset, other: Dataset) -> Dataset:
    """The data set without the image files of another."""
    taken = {os.path.realpath(path) for path in other.annotations.paths}
    paths = dataset.annotations.paths
    return dataset.subset([index for index, path in enumerate(paths) if os.path.realpath(path) not in taken])


def with_classes_of(dataset: Dataset, model: Dataset) -> Dataset:
    """The data set with its classes numbered as in another, by name; a class that only it has must have no boxes.

    Raises:
        DataError: it has boxes of a class that the other does not know.
    """
    if dataset.names == model.names:
        return dataset
    counts = np.bincount(dataset.annotations.class_ids, minlength=dataset.num_classes)
    new = [name for name, count in zip(dataset.names, counts, strict=True) if count and name not in model.names]
    if new:
        raise DataError(
            f"{dataset.source} has boxes of {', '.join(map(repr, new))}, which {model.source} does not know; "
            "both need the same classes"
        )
    position = {name: class_id for class_id, name in enumerate(model.names)}
    numbers = np.array([position.get(name, 0) for name in dataset.names], np.int32)
    return replace(
        dataset,
        annotations=join([dataset.annotations], [numbers]),
        names=model.names,
        original_ids=model.original_ids,
    )


def in_class_order(dataset: Dataset, names: Sequence[str]) -> Dataset:
    """The data set with the same classes in another order; image and category ids stay.

    Raises:
        DataError: these are not its classes.
    """
    if sorted(names) != sorted(dataset.names):
        raise DataError(f"{dataset.source} has the classes {list(dataset.names)}, not {list(names)}")
    numbers = np.array([tuple(names).index(name) for name in dataset.names], np.int32)
    return replace(
        dataset,
        annotations=join([dataset.annotations], [numbers]),
        names=tuple(names),
        original_ids=tuple(dataset.original_ids[dataset.names.index(name)] for name in names),
    )


def select_share(dataset: Dataset, first: float, last: float, *, seed: int = 0) -> Dataset:
    """The images whose seeded hash of their file name, a number in [0, 1), lies in [first, last).

    Whether an image belongs depends on its name alone: adding images never moves old ones into or out of a share, and
    the size of the share holds on average.
    """
    draws = np.array([_hash_to_unit(os.path.basename(path), seed) for path in dataset.annotations.paths])
    return dataset.subset(np.flatnonzero((draws >= first) & (draws < last)))


def select_by_list(dataset: Dataset, list_file: str | Path) -> Dataset:
    """Only the images named in a text file, one per line: a path, a file name, or a name without suffix.

    Raises:
        DataError: the file cannot be read, or names an image that is not there or stands for several.
    """
    try:
        lines = Path(list_file).read_text("utf-8-sig", "surrogateescape").splitlines()
    except OSError as error:
        raise DataError(f"{list_file}: {error.strerror}") from None
    by_name: dict[str, set[int]] = {}
    for index, path in enumerate(dataset.annotations.paths):
        for key in {Path(path).stem, os.path.basename(path), path}:
            by_name.setdefault(key, set()).add(index)
    chosen: dict[int, None] = {}
    for number, line in enumerate(lines, start=1):
        wanted = line.strip()
        if not wanted:
            continue
        found = by_name.get(wanted) or by_name.get(os.path.basename(wanted), set())
        if len(found) > 1:
            found = {index for index in found if dataset.path(index).endswith(wanted)} or found
        if len(found) != 1:
            what = "is not in" if not found else f"stands for {len(found)} images of"
            raise DataError(f"{list_file}:{number}: image {wanted!r} {what} the data set {dataset.source}")
        chosen.update(dict.fromkeys(found))
    return dataset.subset(list(chosen))


def _hash_to_unit(name: str, seed: int) -> float:
    """A number in [0, 1) that only name and seed determine."""
    digest = hashlib.sha256(f"{seed}\0{name}".encode("utf-8", "surrogateescape")).digest()
    return int.from_bytes(digest[:7], "little") / 2.0**56
