"""Near-duplicates between two sets of images: a validation image that the network has learnt by heart proves nothing.

A perceptual hash (64 signs of horizontal brightness steps on a 9 x 8 thumbnail) finds candidates, small grey thumbnails
confirm them. Crops and mirror images are not found; copies, other sizes, other compression and slight edits are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from scaledyolo.data.dataset import Dataset

MOST_DIFFERENT_BITS = 4  # of 64
MOST_DIFFERENT_GREY = 6.0  # mean over the thumbnails, of 255
_SIDE = 32  # of the thumbnails that confirm
_BANDS = MOST_DIFFERENT_BITS + 1


@dataclass(frozen=True)
class Twin:
    """Two images that show the same: their indices in the two data sets and how much their thumbnails differ."""

    first: int
    second: int
    difference: float  # mean of the absolute differences, grey levels of 255


@dataclass(frozen=True, eq=False)
class Looks:
    """What n images look like, for comparison. hashes: (n,) uint64. thumbnails: (n, 32, 32) uint8. readable: (n,)."""

    hashes: npt.NDArray[np.uint64]
    thumbnails: npt.NDArray[np.uint8]
    readable: npt.NDArray[np.bool_]


def looks(dataset: Dataset, *, workers: int = 2, progress: Callable[[int], object] | None = None) -> Looks:
    """Read all images once, at an eighth of their size where the format allows it."""
    count = len(dataset)
    thumbnails = np.zeros((count, _SIDE, _SIDE), np.uint8)
    hashes = np.zeros(count, np.uint64)
    readable = np.zeros(count, np.bool_)

    def look(index: int) -> None:
        large = min(dataset.annotations.sizes[index].tolist()) >= 8 * _SIDE
        grey = cv2.imread(dataset.path(index), cv2.IMREAD_REDUCED_GRAYSCALE_8 if large else cv2.IMREAD_GRAYSCALE)
        if grey is not None:
            thumbnails[index] = cv2.resize(grey, (_SIDE, _SIDE), interpolation=cv2.INTER_AREA)
            hashes[index] = difference_hash(grey)
            readable[index] = True

    with ThreadPoolExecutor(workers) as pool:
        for _ in pool.map(look, range(count)):
            if progress is not None:
                progress(1)
    return Looks(hashes, thumbnails, readable)


def difference_hash(grey: npt.NDArray[np.uint8]) -> np.uint64:
    """64 signs of the steps from each pixel of a 9 x 8 thumbnail to its right neighbour."""
    small = cv2.resize(grey, (9, 8), interpolation=cv2.INTER_AREA).astype(np.int16)
    return np.uint64(int.from_bytes(np.packbits(small[:, 1:] > small[:, :-1]).tobytes(), "big"))


def near_duplicates(first: Looks, second: Looks) -> list[Twin]:
    """Pairs of an image of each set that show the same, most alike first."""
    pairs = _close_hashes(first.hashes, second.hashes)
    pairs = [(one, other) for one, other in pairs if first.readable[one] and second.readable[other]]
    if not pairs:
        return []
    left, right = np.array(pairs).T
    difference = np.empty(len(pairs))
    for start in range(0, len(pairs), 4096):
        chunk = slice(start, start + 4096)
        one, other = first.thumbnails[left[chunk]].astype(np.int16), second.thumbnails[right[chunk]].astype(np.int16)
        difference[chunk] = np.abs(one - other).mean(axis=(1, 2))
    order = np.argsort(difference, kind="stable")
    return [
        Twin(int(left[row]), int(right[row]), round(float(difference[row]), 3))
        for row in order
        if difference[row] <= MOST_DIFFERENT_GREY
    ]


def _close_hashes(first: npt.NDArray[np.uint64], second: npt.NDArray[np.uint64]) -> list[tuple[int, int]]:
    """All pairs of hashes that differ in few bits, without comparing each with each.

    Cut into one band more than bits may differ, two such hashes agree in at least one whole band.
    """
    found: set[tuple[int, int]] = set()
    edges = np.linspace(0, 64, _BANDS + 1).astype(int)
    for low, high in itertools.pairwise(edges):
        mask = np.uint64((1 << int(high - low)) - 1)
        keys, others = (first >> np.uint64(low)) & mask, (second >> np.uint64(low)) & mask
        order = np.argsort(others, kind="stable")
        starts = np.searchsorted(others[order], keys, side="left")
        stops = np.searchsorted(others[order], keys, side="right")
        for one, (start, stop) in enumerate(zip(starts.tolist(), stops.tolist(), strict=True)):
            candidates = order[start:stop]
            close = different_bits(first[one], second[candidates]) <= MOST_DIFFERENT_BITS
            found.update((one, int(other)) for other in candidates[close])
    return sorted(found)


def different_bits(one: np.uint64, others: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """(n,) number of bits in which ``others`` (n,) differ from ``one``."""
    bits = np.unpackbits((others ^ one).reshape(-1, 1).view(np.uint8), axis=1)
    return np.asarray(bits.sum(axis=1), np.int64)
