"""A model over a data set: from images to flat predictions that the metrics read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np
import numpy.typing as npt

from scaledyolo.arch.ops import Detect
from scaledyolo.data.dataset import Dataset
from scaledyolo.data.letterbox import Placement, images_to_input, letterbox, stretch
from scaledyolo.evaluate.arrays import GroundTruth, Predictions, predictions_from_lists
from scaledyolo.evaluate.protocols import Protocol
from scaledyolo.postprocess import NMS, Candidates, decode_candidates, suppress

# Maps (batch, 3, height, width) float32 in [0, 1] to the raw map of each head.
RunNetwork = Callable[[npt.NDArray[np.float32]], Sequence[npt.NDArray[np.floating]]]


def ground_truth(dataset: Dataset) -> GroundTruth:
    """The annotations of a data set as the metrics read them, crowds included."""
    notes = dataset.annotations
    counts = np.diff(notes.offsets)
    return GroundTruth(
        class_names=dataset.names,
        image_ids=tuple(notes.image_ids.tolist()),
        image_sizes=notes.sizes[:, ::-1].astype(np.int64),
        image_index=np.repeat(np.arange(len(notes)), counts),
        boxes_xyxy=notes.boxes_xyxy.astype(np.float64),
        class_ids=notes.class_ids.astype(np.int64),
        crowd=notes.crowd.astype(bool),
        areas=notes.areas.astype(np.float64),
        category_ids=dataset.original_ids,
    )


def predict(
    dataset: Dataset,
    network: RunNetwork,
    detects: Sequence[Detect],
    height: int,
    width: int,
    protocol: Protocol,
    *,
    resize: str = "letterbox",
    batch: int = 8,
    indices: Sequence[int] | None = None,
    progress: Callable[[int], object] | None = None,
) -> Predictions:
    """Run a network over every image of a data set.

    Args:
        dataset: the images.
        network: from an input batch to raw head maps.
        detects: the heads, in the order of the maps.
        height: of the network input in pixels; so is ``width``.
        protocol: thresholds and limits.
        resize: "letterbox" or "stretch".
        batch: images that go through the network at once.
        indices: only these images (a shard); the others get no predictions.
        progress: called with the number of images done after each batch.

    Returns:
        Predictions in the pixels of the original images.
    """
    nms = NMS(iou=protocol.nms_iou, max_detections=protocol.max_detections)
    chosen = range(len(dataset)) if indices is None else indices
    found: list[Candidates] = [_nothing()] * len(dataset)
    with ThreadPoolExecutor(1) as ahead:
        for rows, tensor, placements in _batches(ahead, dataset, chosen, height, width, resize, batch):
            maps = network(tensor)
            candidates = decode_candidates(maps, detects, (height, width), protocol.confidence, protocol.multi_label)
            for row, image_candidates, placement in zip(rows, candidates, placements, strict=True):
                kept = suppress(image_candidates, nms)
                boxes = placement.undo(np.asarray(kept.boxes_xyxy), clip=protocol.clip_boxes)
                found[row] = Candidates(boxes, np.asarray(kept.scores), np.asarray(kept.class_ids))
            if progress is not None:
                progress(len(rows))
    return predictions_from_lists(
        [item.boxes_xyxy for item in found],
        [item.scores for item in found],
        [item.class_ids for item in found],
        num_classes=dataset.num_classes,
    )


def _nothing() -> Candidates:
    return Candidates(np.zeros((0, 4), np.float32), np.zeros(0, np.float32), np.zeros(0, np.int64))


_Prepared = tuple[list[int], npt.NDArray[np.float32], list[Placement]]


def _batches(
    ahead: ThreadPoolExecutor,
    dataset: Dataset,
    chosen: Sequence[int],
    height: int,
    width: int,
    resize: str,
    batch: int,
) -> Iterator[_Prepared]:
    """Batches in order, the next one decoded while this one is in use."""
    place = letterbox if resize == "letterbox" else stretch

    def prepare(rows: list[int]) -> _Prepared:
        placed = [place(dataset.load_image(row), height, width) for row in rows]
        return rows, images_to_input([canvas for canvas, _ in placed]), [placement for _, placement in placed]

    remaining = iter(chosen)
    groups = iter(lambda: list(islice(remaining, batch)), [])
    waiting = None
    for rows in groups:
        following = ahead.submit(prepare, rows)
        if waiting is not None:
            yield waiting.result()
        waiting = following
    if waiting is not None:
        yield waiting.result()
