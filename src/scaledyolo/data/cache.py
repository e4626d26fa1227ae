"""Decoded images at training size, remembered in RAM or on disk.

Both caches are one flat run of bytes with a slot per image, computed from the sizes before anything is read: no
pickle, no objects. The RAM cache lives in anonymous shared memory, so forked workers fill and read one and the same
copy. The disk cache is keyed by what it holds (names, byte sizes and times of the files, and the side), so that a
changed data set gets a new file, and every image carries a checksum, so that a crash while writing costs a re-read
and nothing else.
"""

from __future__ import annotations

import errno
import hashlib
import mmap
import os
import shutil
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import numpy.typing as npt

from scaledyolo.data.dataset import Dataset
from scaledyolo.data.sample import Sample
from scaledyolo.errors import UsageError
from scaledyolo.files import cache_folder, output_errors

CacheKind = Literal["none", "ram", "disk"]
_LAYOUT_VERSION = 3
_BLOCK = 512  # bytes, the unit of st_blocks
_NO_SUCH_CALL = (errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP)  # what file systems answer that cannot reserve


def fit_long_side(height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) with the long side ``size`` and the short one rounded down, small images enlarged too.

    Specification 4.1; in integers, so that the long side is exact.
    """
    longest = max(height, width)
    return max(height * size // longest, 1), max(width * size // longest, 1)


def resize_long_side(image: npt.NDArray[np.uint8], size: int) -> npt.NDArray[np.uint8]:
    """Resize to the long side ``size``, bilinear (specification 4.1)."""
    height, width = fit_long_side(image.shape[0], image.shape[1], size)
    if (height, width) == image.shape[:2]:
        return image
    return np.asarray(cv2.resize(image, (width, height), interpolation=cv2.INTER_LINEAR), np.uint8)


class ImageStore:
    """Images (height, width, 3) uint8 of shapes known beforehand, each made when it is first asked for and then kept.

    shapes: (n, 2) height, width. kind: where they are kept; "none" makes them anew each time. key: what the content
    of the images follows from, by which a file on disk is found again; asked only then.
    """

    def __init__(
        self,
        shapes: npt.NDArray[np.int64],
        kind: CacheKind,
        *,
        key: Callable[[], str],
        folder: str | Path | None = None,
    ) -> None:
        self.shapes = shapes
        self.starts = np.concatenate([[0], np.cumsum(shapes.prod(axis=1) * 3)]).astype(np.int64)
        self.checksums: npt.NDArray[np.uint32] | None = None
        self._bytes: npt.NDArray[np.uint8] | None = None
        self._trusted = np.zeros(len(shapes), np.bool_)  # this process wrote or verified the slot
        if kind == "ram":
            self._use_memory()
        elif kind == "disk":
            self._use_file((Path(folder) if folder is not None else cache_folder("images")) / f"{key()}.images")
        elif kind != "none":
            raise UsageError(f"unknown cache {kind!r}; use none, ram or disk")

    @property
    def num_bytes(self) -> int:
        """Bytes of all images: what the cache takes when full."""
        return int(self.starts[-1])

    def get(self, index: int, make: Callable[[], npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
        """The image, read-only where it is kept."""
        if self._bytes is None or self.checksums is None:
            return make()
        slot = self._bytes[self.starts[index] : self.starts[index + 1]]
        if not self._trusted[index]:
            # Zero marks an empty slot; a checksum that happens to be zero is stored as one.
            if self.checksums[index] == 0 or self.checksums[index] != _checksum(slot):
                slot[...] = make().reshape(-1)
                self.checksums[index] = _checksum(slot)
            self._trusted[index] = True
        height, width = self.shapes[index].tolist()
        view = slot.reshape(height, width, 3)
        view.flags.writeable = False
        return view

    def _use_memory(self) -> None:
        # Anonymous shared mapping: unlike an array, pages written by a forked worker are seen by all.
        header = len(self.shapes) * 4
        self._bytes = np.frombuffer(mmap.mmap(-1, max(self.num_bytes, 1)), np.uint8)
        self.checksums = np.frombuffer(mmap.mmap(-1, max(header, 1)), np.uint8)[:header].view(np.uint32)

    def _use_file(self, path: Path) -> None:
        header = len(self.shapes) * 4
        _reserve(path, max(header + self.num_bytes, 1))
        flat = np.memmap(path, np.uint8, mode="r+")
        self.checksums = np.asarray(flat[:header]).view(np.uint32)
        self._bytes = np.asarray(flat[header : header + self.num_bytes])


def content_key(dataset: Dataset, made: str) -> str:
    """A name for the images of a data set as ``made`` says: other files, sizes or times give another."""
    digest = hashlib.sha256(f"{_LAYOUT_VERSION} {made}\n".encode())
    digest.update(dataset.annotations.sizes.astype("<i8").tobytes())
    for path in dataset.annotations.paths:
        facts = os.stat(path)
        line = f"{os.path.basename(path)}\0{facts.st_size}\0{facts.st_mtime_ns}\n"
        digest.update(line.encode("utf-8", "surrogateescape"))
    return digest.hexdigest()[:32]


class ImageSource:
    """Samples of a data set whose images have the long side ``size`` (or their own size: None), cached as told.

    Images come back read-only: they may be views of the cache.
    """

    def __init__(
        self,
        dataset: Dataset,
        size: int | None,
        *,
        cache: CacheKind = "none",
        folder: str | Path | None = None,
    ) -> None:
        self.dataset = dataset
        self.size = size
        sizes = dataset.annotations.sizes.astype(np.int64)
        if size is not None:
            longest = sizes.max(axis=1, keepdims=True, initial=1)
            sizes = np.maximum(sizes * size // longest, 1)
        self._shapes = sizes
        self._offsets, self._boxes, self._class_ids = self._scaled_objects()
        made = f"long side {size} linear"
        self.store = ImageStore(sizes, cache, key=lambda: content_key(dataset, made), folder=folder)

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def num_bytes(self) -> int:
        """Bytes of all decoded images: what the cache takes when full."""
        return self.store.num_bytes

    def shape(self, index: int) -> tuple[int, int]:
        """(height, width) of the image that `sample` returns."""
        height, width = self._shapes[index].tolist()
        return height, width

    def image(self, index: int) -> npt.NDArray[np.uint8]:
        """Image (height, width, 3) uint8 RGB, read-only."""
        return self.store.get(index, lambda: self._load(index))

    def sample(self, index: int) -> Sample:
        """The image with its boxes, both at this source's size; crowds are left out."""
        start, stop = self._offsets[index], self._offsets[index + 1]
        return Sample(self.image(index), self._boxes[start:stop], self._class_ids[start:stop], index)

    def fill(self, workers: int = 2) -> None:
        """Read every image into the cache now, in threads (decoding releases Python's lock)."""
        with ThreadPoolExecutor(workers) as pool:
            for _ in pool.map(self.image, range(len(self))):
                pass

    def _scaled_objects(self) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float32], npt.NDArray[np.int64]]:
        """Offsets, boxes and classes of all objects to learn from at this size, once: a sample is then two slices."""
        notes = self.dataset.annotations
        counts = np.diff(notes.offsets)
        ratios = (self._shapes / np.maximum(notes.sizes, 1))[:, (1, 0, 1, 0)].repeat(counts, axis=0)
        wanted = ~notes.crowd
        image_of = np.repeat(np.arange(len(notes)), counts)[wanted]
        offsets = np.searchsorted(image_of, np.arange(len(notes) + 1)).astype(np.int64)
        boxes = (notes.boxes_xyxy * ratios)[wanted].astype(np.float32)
        return offsets, boxes, notes.class_ids[wanted].astype(np.int64)

    def _load(self, index: int) -> npt.NDArray[np.uint8]:
        image = self.dataset.load_image(index)
        return image if self.size is None else resize_long_side(image, self.size)


def _reserve(path: Path, size: int) -> None:
    """Make ``path`` a file of ``size`` bytes whose blocks are on the disk; its content, zeros where new, stays.

    Of a sparse file, the write that finds the disk full would be one to memory, which ends the process (SIGBUS).
    Several processes may get here at once: each asks for the same.

    Raises:
        OutputError: there is no room, or the folder cannot be written.
    """
    advice = (
        f"; the cache of images takes {size / 1e6:,.0f} MB: make room, let SCALEDYOLO_HOME name a folder on a larger "
        "disk, or use the cache ram or none"
    )
    with output_errors(path, advice):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
        with path.open("rb+") as file:
            facts = os.fstat(file.fileno())
            if facts.st_size == size and getattr(facts, "st_blocks", 0) * _BLOCK >= size:
                return
            try:
                _allocate(file.fileno(), path, size)
            except OSError:
                if facts.st_size == 0:  # made just now, and of no use
                    path.unlink(missing_ok=True)
                raise


def _allocate(descriptor: int, path: Path, size: int) -> None:
    try:
        os.posix_fallocate(descriptor, 0, size)
    except (AttributeError, OSError) as error:
        if isinstance(error, OSError) and error.errno not in _NO_SUCH_CALL:
            raise
        if shutil.disk_usage(path.parent).free < size:  # macOS, some file systems: all that can be known beforehand
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
    os.truncate(descriptor, size)


def _checksum(slot: npt.NDArray[np.uint8]) -> int:
    return zlib.crc32(slot.data) or 1
