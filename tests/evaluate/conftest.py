"""Random scenes, and pycocotools as the judge."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable

import numpy as np
import pytest

from scaledyolo.evaluate.arrays import GroundTruth, Predictions

Scene = tuple[GroundTruth, Predictions]


def make_scene(
    seed: int,
    *,
    num_images: int = 12,
    num_classes: int = 4,
    objects_per_image: int = 6,
    detections_per_object: float = 3.0,
    false_per_image: int = 4,
    crowd_share: float = 0.15,
    score_decimals: int = 8,
) -> Scene:
    """Objects of all sizes, some crowds, images without any; detections jittered from objects, and invented ones."""
    rng = np.random.default_rng(seed)
    counts = rng.integers(0, objects_per_image * 2 + 1, num_images)
    counts[:1] = 0
    image_index = np.repeat(np.arange(num_images), counts)
    num_objects = len(image_index)
    sizes = np.exp(rng.uniform(np.log(6), np.log(300), (num_objects, 2)))
    corners = rng.uniform(0, 340, (num_objects, 2))
    boxes = np.concatenate([corners, corners + sizes], axis=1).round(2)
    truth = GroundTruth(
        class_names=tuple(f"class {k}" for k in range(num_classes)),
        image_ids=tuple(int(i) for i in rng.permutation(10 * num_images)[:num_images]),
        image_sizes=np.full((num_images, 2), 640),
        image_index=image_index,
        boxes_xyxy=boxes,
        class_ids=rng.integers(0, max(num_classes - 1, 1), num_objects),  # the last class has no object
        crowd=rng.random(num_objects) < crowd_share,
        areas=np.prod(boxes[:, 2:] - boxes[:, :2], axis=1) * rng.uniform(0.5, 1, num_objects),
        category_ids=tuple(range(10, 10 + num_classes)),
    )
    rows = rng.integers(0, max(num_objects, 1), int(num_objects * detections_per_object))
    jitter = rng.normal(0, 0.12, (len(rows), 4)) * np.tile(sizes[rows], 2)
    found = boxes[rows] + jitter
    invented = rng.uniform(0, 300, (num_images * false_per_image, 2))
    invented = np.concatenate([invented, invented + rng.uniform(5, 200, invented.shape)], axis=1)
    all_boxes = np.concatenate([found, invented])
    all_boxes = np.concatenate(
        [np.minimum(all_boxes[:, :2], all_boxes[:, 2:]), np.maximum(all_boxes[:, :2], all_boxes[:, 2:])], axis=1
    )
    class_ids = np.concatenate([truth.class_ids[rows], rng.integers(0, num_classes, len(invented))])
    flip = rng.random(len(class_ids)) < 0.15
    class_ids[flip] = rng.integers(0, num_classes, int(flip.sum()))
    predictions = Predictions(
        num_images=num_images,
        num_classes=num_classes,
        image_index=np.concatenate([image_index[rows], np.repeat(np.arange(num_images), false_per_image)]),
        boxes_xyxy=all_boxes,
        scores=rng.random(len(all_boxes)).round(score_decimals),
        class_ids=class_ids,
    )
    return truth, predictions


def pycocotools_figures(truth: GroundTruth, predictions: Predictions) -> np.ndarray:
    """The twelve figures (12,) by the reference program; -1 where undefined."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    def tlwh(boxes: np.ndarray) -> list[list[float]]:
        return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], axis=1).tolist()

    frame = {
        "images": [{"id": i + 1} for i in range(truth.num_images)],
        "categories": [{"id": k + 1, "name": name} for k, name in enumerate(truth.class_names)],
    }
    objects = [
        {
            "id": row + 1,
            "image_id": int(i) + 1,
            "category_id": int(k) + 1,
            "bbox": box,
            "area": float(a),
            "iscrowd": int(c),
        }
        for row, (i, k, box, a, c) in enumerate(
            zip(truth.image_index, truth.class_ids, tlwh(truth.boxes_xyxy), truth.areas, truth.crowd, strict=True)
        )
    ]
    detections = [
        {"id": row + 1, "image_id": int(i) + 1, "category_id": int(k) + 1, "bbox": b, "area": b[2] * b[3], "iscrowd": 0,
         "score": float(s)}
        for row, (i, k, b, s) in enumerate(
            zip(
                predictions.image_index, predictions.class_ids, tlwh(predictions.boxes_xyxy), predictions.scores,
                strict=True,
            )
        )
    ]  # fmt: skip
    with contextlib.redirect_stdout(io.StringIO()):
        sides = []
        for annotations in (objects, detections):
            side = COCO()
            side.dataset = frame | {"annotations": annotations}
            side.createIndex()
            sides.append(side)
        evaluator = COCOeval(*sides, iouType="bbox")
        evaluator.evaluate()
        evaluator.accumulate()
        evaluator.summarize()
    return np.asarray(evaluator.stats, dtype=np.float64)


@pytest.fixture(scope="session")
def scene() -> Callable[..., Scene]:
    """Factory of random scenes, by seed."""
    return make_scene


@pytest.fixture(scope="session")
def judge() -> Callable[[GroundTruth, Predictions], np.ndarray]:
    """pycocotools' twelve figures."""
    return pycocotools_figures
