"""A model over a data set: from images to flat predictions that the metrics read."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice

import numpy as np

from scaledyolo.arch.ops import Detect
from scaledyolo.data.canvases import Canvases
from scaledyolo.data.dataset import Dataset
from scaledyolo.data.placement import Placement
from scaledyolo.data.tta import TtaPass
from scaledyolo.evaluate.arrays import GroundTruth, Predictions, predictions_from_lists
from scaledyolo.evaluate.protocols import Protocol
from scaledyolo.postprocess import NMS, Candidates, Merge, merge_views
from scaledyolo.postprocess.fusion import check_merge
from scaledyolo.views import NetworkInput, RunNetwork, View, inputs_of


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
    canvases: Canvases | None = None,
    progress: Callable[[int], object] | None = None,
) -> Predictions:
    """Run one network over every image of a data set.

    Args:
        dataset: the images.
        network: from an input batch to raw head maps.
        detects: the heads, in the order of the maps.
        height: of the network input in pixels; so is ``width``.
        protocol: thresholds and limits.
        resize: "letterbox" or "stretch".
        batch: images that go through the network at once.
        indices: only these images (a shard); the others get no predictions.
        canvases: the images on this canvas, where they are remembered for the next time; ``resize`` is then theirs.
        progress: called with the number of images done after each batch.

    Returns:
        Predictions in the pixels of the original images.
    """
    plain = View(network, tuple(detects), TtaPass(height, width))
    return predict_views(
        dataset,
        (plain,),
        protocol,
        resize=resize,
        batch=batch,
        indices=indices,
        canvases=canvases,
        progress=progress,
    )


def predict_views(
    dataset: Dataset,
    views: Sequence[View],
    protocol: Protocol,
    *,
    merge: Merge = "nms",
    resize: str = "letterbox",
    batch: int = 8,
    indices: Sequence[int] | None = None,
    canvases: Canvases | None = None,
    progress: Callable[[int], object] | None = None,
) -> Predictions:
    """Like :func:`predict`, with test-time augmentation or an ensemble.

    Args:
        dataset: see :func:`predict`, as for what is not named here.
        views: what looks at each image, all at canvases of the same size; see :func:`scaledyolo.views.views_of`.
        protocol: thresholds and limits.
        merge: how the views of an image become one answer, "nms" or "wbf".
    """
    nms = NMS(iou=protocol.nms_iou, max_detections=protocol.max_detections)
    check_merge(merge, nms, len(views))
    chosen = range(len(dataset)) if indices is None else indices
    seen = views[0].augmentation
    if canvases is None:
        canvases = Canvases(dataset, seen.height, seen.width, resize=resize)
    found: list[Candidates] = [_nothing()] * len(dataset)
    with ThreadPoolExecutor(1) as ahead:
        for rows, inputs, placements in _batches(ahead, canvases, chosen, views, batch):
            by_view = [
                view.decode(view.run(tensor), protocol.confidence, protocol.multi_label)
                for view, tensor in zip(views, inputs, strict=True)
            ]
            for row, candidates, placement in zip(rows, zip(*by_view, strict=True), placements, strict=True):
                kept = merge_views(candidates, nms, merge, protocol.confidence)
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


_Prepared = tuple[list[int], list[NetworkInput], list[Placement]]


def _batches(
    ahead: ThreadPoolExecutor,
    canvases: Canvases,
    chosen: Sequence[int],
    views: Sequence[View],
    batch: int,
) -> Iterator[_Prepared]:
    """Batches in order, the next one decoded while this one is in use."""

    def prepare(rows: list[int]) -> _Prepared:
        placed = [canvases[row] for row in rows]
        return rows, inputs_of(views, [canvas for canvas, _ in placed]), [placement for _, placement in placed]

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
