"""Near-duplicates between two sets of images: a validation image that the network has learnt by heart proves nothing.

A perceptual hash (64 signs of horizontal brightness steps on a 9 x 8 thumbnail) finds candidates, small grey thumbnails
confirm them. Crops and mirror images are not found; copies, other sizes, other compression and slight edits are.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from scaledyolo.data.dataset import Dataset
from scaledyolo.errors import SourceError
from scaledyolo.images import read_image

MOST_DIFFERENT_BITS = 4  # of 64
MOST_DIFFERENT_GREY = 6.0  # mean over the thumbnails, of 255
_MOST_COMPARED = 64  # images of the first set whose thumbnails are compared with one of the second
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
    """Read all images once, JPEGs that are large enough at an eighth of their sides."""
    count = len(dataset)
    thumbnails = np.zeros((count, _SIDE, _SIDE), np.uint8)
    hashes = np.zeros(count, np.uint64)
    readable = np.zeros(count, np.bool_)

    def look(index: int) -> None:
        large = min(dataset.annotations.sizes[index].tolist()) >= 8 * _SIDE
        try:
            image = read_image(dataset.path(index), reduced=large)
        except SourceError:  # it went after the data set was read
            return
        grey = np.asarray(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), np.uint8)
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
    """For each image of the second set that shows the same as one of the first, the most alike; most alike pairs first.

    One twin for each image, because a camera that never moves makes as many pairs as there are images times images.
    """
    # No thumbnail differs less than its mean grey does: that bounds what has to be compared.
    brightness = first.thumbnails.mean(axis=(1, 2)), second.thumbnails.mean(axis=(1, 2))
    hashes, starts = np.unique(np.sort(first.hashes), return_index=True)
    with_hash = np.split(np.argsort(first.hashes, kind="stable"), starts[1:])
    twins = []
    for image, alike in enumerate(_close_hashes(hashes, second.hashes)):
        close = np.concatenate([with_hash[index] for index in alike.tolist()] or [alike])
        apart = np.abs(brightness[0][close] - brightness[1][image])
        likely = first.readable[close] & (apart <= MOST_DIFFERENT_GREY)
        chosen = close[likely][np.argsort(apart[likely], kind="stable")[:_MOST_COMPARED]]
        if not second.readable[image] or not len(chosen):
            continue
        steps = first.thumbnails[chosen].astype(np.int16) - second.thumbnails[image].astype(np.int16)
        difference = np.abs(steps).mean(axis=(1, 2))
        best = int(difference.argmin())
        if difference[best] <= MOST_DIFFERENT_GREY:
            twins.append(Twin(int(chosen[best]), image, round(float(difference[best]), 3)))
    return sorted(twins, key=lambda twin: twin.difference)


def _close_hashes(first: npt.NDArray[np.uint64], second: npt.NDArray[np.uint64]) -> Iterator[npt.NDArray[np.int64]]:
    """For each hash of the second set those of the first that differ in few bits, without comparing each with each.

    Cut into one band more than bits may differ, two such hashes agree in at least one whole band.
    """
    edges = np.linspace(0, 64, _BANDS + 1).astype(int)
    bands = []
    for low, high in itertools.pairwise(edges):
        mask = np.uint64((1 << int(high - low)) - 1)
        keys, wanted = (first >> np.uint64(low)) & mask, (second >> np.uint64(low)) & mask
        order = np.argsort(keys, kind="stable")
        ends = (np.searchsorted(keys[order], wanted, side=side) for side in ("left", "right"))
        bands.append((order, *(end.tolist() for end in ends)))
    for image in range(len(second)):
        candidates = np.unique(np.concatenate([order[starts[image] : stops[image]] for order, starts, stops in bands]))
        yield candidates[different_bits(second[image], first[candidates]) <= MOST_DIFFERENT_BITS]


def different_bits(one: np.uint64, others: npt.NDArray[np.uint64]) -> npt.NDArray[np.int64]:
    """(n,) number of bits in which ``others`` (n,) differ from ``one``."""
    bits = np.unpackbits((others ^ one).reshape(-1, 1).view(np.uint8), axis=1)
    return np.asarray(bits.sum(axis=1), np.int64)
