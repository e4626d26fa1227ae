"""Batches for training, prepared by threads while the network computes.

Threads, not processes: OpenCV and the copying of arrays release Python's lock, images are shared without pickling, one
cache serves all, and nothing is left behind when a run is killed. Results depend on (seed, epoch, position) alone, so
neither the number of workers nor a restart in mid-epoch changes a bit.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import cv2
import numpy as np
import numpy.typing as npt

from scaledyolo.data import order as ordering
from scaledyolo.data.augment import AugmentConfig, Augmenter
from scaledyolo.data.cache import ImageSource
from scaledyolo.data.letterbox import split_planes
from scaledyolo.data.order import BatchPlan, Shard
from scaledyolo.data.sample import Sample, Transform
from scaledyolo.errors import DataError, ScaledYoloError, UsageError


@dataclass(frozen=True, eq=False)
class Batch:
    """What a step gets.

    images: (B, 3, H, W) uint8 RGB, contiguous. targets: (n, 6) float32 rows of image index within the batch, class,
    cx, cy, w, h as fractions of the image. indices: (B,) of the data set. positions: (B,) places in the epoch.
    """

    images: npt.NDArray[np.uint8]
    targets: npt.NDArray[np.float32]
    indices: npt.NDArray[np.int64]
    positions: npt.NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.images)


@dataclass(frozen=True)
class LoaderConfig:
    """How batches are made; what is in them is the business of `AugmentConfig`."""

    batch_size: int = 16  # images per process and step
    size: int = 416  # side of the network's input in pixels
    stride: int = 32  # the network's largest
    seed: int = 0
    workers: int = 2  # threads; 0 prepares batches when they are asked for
    prefetch: int = 3  # batches prepared ahead; each holds batch_size * 3 * size² bytes
    rectangular: bool = False  # batches of like aspect; switches mosaic, mixup and CutMix off (specification 3.5)
    multi_scale: tuple[float, float] | None = None  # sides from low to high times size, one per batch; (.5, 1.5)
    first_size: float = 1.0  # side in epoch 0 as a share of size; not together with multi_scale
    growing_epochs: int = 0  # epochs in which that share grows to 1

    def __post_init__(self) -> None:
        if self.batch_size < 1 or self.workers < 0 or self.prefetch < 1:
            raise UsageError(
                f"loader: batch_size {self.batch_size} and prefetch {self.prefetch} must be at least 1, "
                f"workers {self.workers} at least 0"
            )
        if self.size < self.stride or self.size % self.stride:
            raise UsageError(f"loader: size {self.size} must be a multiple of the stride {self.stride}")


class TrainLoader:
    """Endless epochs of augmented batches; ``for batch in loader.epoch(3, start_batch=17)`` resumes exactly there."""

    def __init__(
        self,
        source: ImageSource,
        config: LoaderConfig,
        augmentation: AugmentConfig,
        *,
        shard: Shard | None = None,
        transform: Transform | None = None,
    ) -> None:
        if len(source) == 0:
            raise DataError(f"{source.dataset.source}: has no images to train on")
        self.source = source
        self.config = config
        self.augmentation = augmentation
        self.shard = shard or Shard()
        self.transform = transform

    def __len__(self) -> int:
        """Batches per epoch and process."""
        per_process = -(-len(self.source) // self.shard.world_size)
        return -(-per_process // self.config.batch_size)

    def plan(self, epoch: int, weights: npt.ArrayLike | None = None) -> list[BatchPlan]:
        """What this process gets in an epoch, in order."""
        config = self.config
        order = ordering.epoch_order(len(self.source), config.seed, epoch, weights=weights)
        if config.rectangular:
            plans = ordering.rectangular_batches(
                order, _aspects(self.source), config.batch_size, config.size, config.stride, self.shard
            )
        else:
            plans = ordering.square_batches(order, config.batch_size, config.size, self.shard)
        if config.multi_scale is None:
            share = ordering.grown_share(epoch, config.first_size, config.growing_epochs)
            side = max(1, round(share * config.size / config.stride)) * config.stride
            return [replace(plan, zoom=side / config.size) for plan in plans]
        low, high = config.multi_scale
        zooms = ordering.multi_scale_zooms(
            len(plans), config.seed, epoch, size=config.size, stride=config.stride, low=low, high=high
        )
        return [replace(plan, zoom=float(zoom)) for plan, zoom in zip(plans, zooms, strict=True)]

    def epoch(
        self,
        epoch: int,
        *,
        start_batch: int = 0,
        weights: npt.ArrayLike | None = None,
        augmentation: AugmentConfig | None = None,
    ) -> Generator[Batch, None, None]:
        """Batches of an epoch from ``start_batch`` on.

        weights: (n,) for sampling images in proportion, with replacement. augmentation: another than the loader's, for
        example without mosaic in the last epochs. Errors of a worker are raised here and name the image.
        """
        chosen = augmentation or self.augmentation
        if self.config.rectangular:
            chosen = chosen.without_mixing()
        augmenter = Augmenter(self.source.sample, len(self.source), self.config.size, chosen, self.transform)

        def make(plan: BatchPlan, slot: int, planes: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
            rng = ordering.sample_generator(self.config.seed, epoch, int(plan.positions[slot]))
            sample = augmenter(int(plan.indices[slot]), rng, frame=plan.frame, zoom=plan.zoom)
            split_planes(sample.image, planes)
            return _normalised_rows(sample, slot)

        plans = self.plan(epoch, weights)[start_batch:]
        return _run(plans, make, self.source, self.config.workers, self.config.prefetch)


# Writes one sample into its planes; returns the rows of its targets.
_Maker = Callable[[BatchPlan, int, npt.NDArray[np.uint8]], npt.NDArray[np.float32]]


def _run(
    plans: Sequence[BatchPlan],
    make: _Maker,
    source: ImageSource,
    workers: int,
    prefetch: int,
) -> Generator[Batch, None, None]:
    """Batches in the order of the plans; ``prefetch`` of them are in the making at any time."""
    if workers == 0:
        for plan in plans:
            images = _buffer(plan)
            rows = [_guarded(make, plan, slot, images[slot], source) for slot in range(len(plan.indices))]
            yield _collate(plan, images, rows)
        return
    # The batch is parallel over images; threads inside OpenCV would only fight over the same cores.
    opencv_threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    pool = ThreadPoolExecutor(workers, thread_name_prefix="scaledyolo-data")
    waiting: deque[tuple[BatchPlan, npt.NDArray[np.uint8], list[Future[npt.NDArray[np.float32]]]]] = deque()
    remaining = iter(plans)

    def submit() -> None:
        plan = next(remaining, None)
        if plan is not None:
            images = _buffer(plan)
            slots = range(len(plan.indices))
            jobs = [pool.submit(_guarded, make, plan, slot, images[slot], source) for slot in slots]
            waiting.append((plan, images, jobs))

    try:
        for _ in range(prefetch):
            submit()
        while waiting:
            plan, images, jobs = waiting.popleft()
            rows = [job.result() for job in jobs]
            submit()
            yield _collate(plan, images, rows)
    finally:
        # Also on break, error or garbage collection: what has not begun is dropped, what has is waited for.
        pool.shutdown(wait=True, cancel_futures=True)
        cv2.setNumThreads(opencv_threads)


def _guarded(
    make: _Maker, plan: BatchPlan, slot: int, planes: npt.NDArray[np.uint8], source: ImageSource
) -> npt.NDArray[np.float32]:
    """Make one sample; an error says for which image, since mosaics and threads hide it."""
    try:
        return make(plan, slot, planes)
    except ScaledYoloError:
        raise
    except Exception as error:
        path = source.dataset.path(int(plan.indices[slot]))
        raise DataError(f"{path}: preparing this image failed: {type(error).__name__}: {error}") from error


def _buffer(plan: BatchPlan) -> npt.NDArray[np.uint8]:
    height, width = (round(side * plan.zoom) for side in plan.frame)
    return np.empty((len(plan.indices), 3, height, width), np.uint8)


def _collate(plan: BatchPlan, images: npt.NDArray[np.uint8], rows: Sequence[npt.NDArray[np.float32]]) -> Batch:
    return Batch(images=images, targets=np.concatenate(rows), indices=plan.indices, positions=plan.positions)


def _normalised_rows(sample: Sample, slot: int) -> npt.NDArray[np.float32]:
    """(n, 6) rows of slot, class, cx, cy, w, h as fractions of the image."""
    boxes = sample.boxes_xyxy
    rows = np.empty((len(boxes), 6), np.float32)
    rows[:, 0] = slot
    rows[:, 1] = sample.class_ids
    sides = np.array((sample.width, sample.height), np.float32)
    rows[:, 2:4] = (boxes[:, :2] + boxes[:, 2:]) / (2.0 * sides)
    rows[:, 4:6] = (boxes[:, 2:] - boxes[:, :2]) / sides
    return rows


def _aspects(source: ImageSource) -> npt.NDArray[np.float64]:
    """(n,) height / width of the files."""
    sizes = source.dataset.annotations.sizes
    return sizes[:, 0] / np.maximum(sizes[:, 1], 1)
