"""Which image comes when: pure functions of (seed, epoch), so that any position of any epoch can be found again.

An epoch is a sequence of *global* batches; process r of W takes the r-th of W equal slices of each. Two processes with
batch b thus see together exactly what one process with batch 2b sees.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from scaledyolo.data.letterbox import rectangle_for_batch
from scaledyolo.errors import UsageError

# Independent streams of randomness from one seed; the numbers only have to differ.
_SAMPLE_STREAM, _ORDER_STREAM, _SCALE_STREAM = 0, 1, 2


@dataclass(frozen=True)
class Shard:
    """Which part of each global batch is ours: process ``rank`` of ``world_size``."""

    rank: int = 0
    world_size: int = 1

    def __post_init__(self) -> None:
        if self.world_size < 1 or not 0 <= self.rank < self.world_size:
            raise UsageError(f"rank {self.rank} of {self.world_size} processes does not exist")


@dataclass(frozen=True, eq=False)
class BatchPlan:
    """One batch of one process. indices: images of the data set. positions: of each within the epoch.

    frame: (height, width) before multi-scale. zoom: output side over frame side.
    """

    indices: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]
    frame: tuple[int, int]
    zoom: float = 1.0


def sample_generator(seed: int, epoch: int, position: int) -> np.random.Generator:
    """The generator of one sample: it depends on its place in the epoch and on nothing else."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence((seed, epoch, _SAMPLE_STREAM, position))))


def epoch_order(
    num_images: int, seed: int, epoch: int, *, weights: npt.ArrayLike | None = None
) -> npt.NDArray[np.int64]:
    """Image indices of an epoch: a permutation, or as many draws with replacement in proportion to ``weights``."""
    rng = np.random.default_rng((seed, epoch, _ORDER_STREAM))
    if weights is None:
        return np.asarray(rng.permutation(num_images), np.int64)
    shares = np.asarray(weights, np.float64).reshape(-1)
    if len(shares) != num_images or not np.isfinite(shares).all() or shares.min() < 0 or shares.sum() <= 0:
        raise UsageError(f"image weights must be {num_images} numbers from 0, finite and not all zero")
    return np.asarray(rng.choice(num_images, size=num_images, p=shares / shares.sum()), np.int64)


def image_weights(
    class_weights: npt.ArrayLike, offsets: npt.NDArray[np.int64], class_ids: npt.NDArray[np.int64]
) -> npt.NDArray[np.float64]:
    """(n,) sampling weight of each image: the sum of its boxes' class weights (specification 3.5).

    Class weights are, for example, inverse frequency times (1 - AP of the class)².
    """
    of_box = np.asarray(class_weights, np.float64)[class_ids]
    total = np.concatenate([[0.0], np.cumsum(of_box)])
    return np.asarray(np.maximum(total[offsets[1:]] - total[offsets[:-1]], 0.0), np.float64)


def square_batches(order: npt.NDArray[np.int64], batch_size: int, size: int, shard: Shard) -> list[BatchPlan]:
    """Cut an order into batches of size x size pixels.

    The order is wrapped to a multiple of the processes, so that all of them make equally many, equally large steps; the
    last batch may be smaller than the others, but never empty.
    """
    padded = np.resize(order, -(-len(order) // shard.world_size) * shard.world_size)
    plans = []
    for start in range(0, len(padded), batch_size * shard.world_size):
        positions = _slice(np.arange(start, min(start + batch_size * shard.world_size, len(padded))), shard)
        plans.append(BatchPlan(padded[positions], positions, (size, size)))
    return plans


def rectangular_batches(
    order: npt.NDArray[np.int64],
    aspects: npt.NDArray[np.float64],
    batch_size: int,
    size: int,
    stride: int,
    shard: Shard,
    *,
    pad: float = 0.0,
) -> list[BatchPlan]:
    """Batches of images of like aspect (height / width), each with the smallest canvas that fits (specification 4.1).

    Whole global batches keep one shape whatever the number of processes; which batch comes when follows from ``order``.
    """
    padded = np.resize(order, -(-len(order) // shard.world_size) * shard.world_size)
    by_aspect = np.argsort(aspects[padded], kind="stable")
    chunk = batch_size * shard.world_size
    groups = [by_aspect[start : start + chunk] for start in range(0, len(padded), chunk)]
    # The order is random, so the group whose smallest member comes first is a random group.
    groups.sort(key=lambda members: int(members.min()))
    plans = []
    for members in groups:
        frame = rectangle_for_batch(aspects[padded[members]], size, stride, pad=pad)
        positions = _slice(members, shard)
        plans.append(BatchPlan(padded[positions], positions, frame))
    return plans


def multi_scale_zooms(
    num_batches: int, seed: int, epoch: int, *, size: int, stride: int, low: float = 0.5, high: float = 1.5
) -> npt.NDArray[np.float64]:
    """Zoom of every batch: side a random multiple of ``stride`` from low to high times ``size`` (specification 3.5)."""
    rng = np.random.default_rng((seed, epoch, _SCALE_STREAM))
    first, last = int(np.ceil(low * size / stride)), int(np.floor(high * size / stride))
    if first < 1 or last < first:
        raise UsageError(f"multi-scale from {low} to {high} of {size} holds no multiple of the stride {stride}")
    return np.asarray(rng.integers(first, last + 1, size=num_batches) * (stride / size), np.float64)


def grown_share(epoch: int, first: float, epochs: int) -> float:
    """Share of the full side in an epoch: from ``first`` in epoch 0 evenly to 1 in epoch ``epochs`` and after."""
    return 1.0 if epoch >= epochs else first + (1.0 - first) * epoch / epochs


def _slice(members: npt.NDArray[np.int64], shard: Shard) -> npt.NDArray[np.int64]:
    """Our equal slice of a global batch; its length is a multiple of the number of processes."""
    share = len(members) // shard.world_size
    return members[shard.rank * share : (shard.rank + 1) * share].astype(np.int64)
