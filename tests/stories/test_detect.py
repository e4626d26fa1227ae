"""Story 1 with real weights: photographs become detections, as many and as good as OpenCV's own importer finds.

The figures of ../shared/README.md were measured with OpenCV's executor, decoder and suppression; here the same files go
through the reader, the engine, decoding and suppression of this package.
"""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import pytest
import supervision as sv
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from scaledyolo import NMS, Detector
from scaledyolo.boxes import xyxy_to_tlwh
from scaledyolo.data.formats import open_dataset
from scaledyolo.evaluate.arrays import GroundTruth, Predictions
from scaledyolo.evaluate.protocols import OPENCV_DARKNET
from scaledyolo.evaluate.run import ground_truth, predict_views

pytestmark = pytest.mark.shared

# Name: AP, AP50 on data/coco_mini/val, as the README of the shared data gives them.
KNOWN = {"yolo-fastest-1.1": (0.119, 0.252), "yolo-fastest-1.1-xl": (0.170, 0.339)}
DOG_NAMES = {"dog", "bicycle", "car"}


def opened(shared: Path, name: str = "yolo-fastest-1.1-xl", **options) -> Detector:
    pair = (shared / "weights" / f"{name}.cfg", shared / "weights" / f"{name}.weights")
    return Detector(pair, names=shared / "weights" / "coco.names", engine="onnxruntime", threads=1, **options)


def coco_rows(found: Predictions, truth: GroundTruth) -> list[dict]:
    """Rows of a COCO results file."""
    return [
        {"image_id": truth.image_ids[image], "category_id": truth.category_ids[kind], "bbox": box, "score": score}
        for image, kind, box, score in zip(
            found.image_index,
            found.class_ids,
            xyxy_to_tlwh(found.boxes_xyxy).tolist(),
            found.scores.tolist(),
            strict=True,
        )
    ]


@pytest.fixture(scope="module")
def detector(shared) -> Detector:
    return opened(shared)


@pytest.mark.parametrize("name", KNOWN)
def test_average_precision_is_that_of_opencv(shared, name):
    detector = opened(shared, name, resize="stretch")
    dataset = open_dataset(shared / "data" / "coco_mini", "val")
    found = predict_views(dataset, detector.views, OPENCV_DARKNET, resize="stretch")

    truth = COCO(str(shared / "data" / "coco_mini" / "instances_val.json"))
    judge = COCOeval(truth, truth.loadRes(coco_rows(found, ground_truth(dataset))), "bbox")
    judge.evaluate()
    judge.accumulate()
    judge.summarize()
    assert judge.stats[:2] == pytest.approx(KNOWN[name], abs=0.002)


@pytest.mark.parametrize("name", KNOWN)
@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
def test_the_dog_the_bicycle_and_the_car(shared, name, resize):
    found = opened(shared, name, resize=resize)(shared / "images" / "dog.jpg")
    assert set(found.data["class_name"]) >= DOG_NAMES


def test_boxes_lie_where_the_objects_are(detector, shared):
    found = detector(shared / "images" / "dog.jpg")
    # Read off the photograph, 768 x 576 pixels.
    places = {"dog": (130, 220, 310, 540), "bicycle": (120, 130, 570, 425), "car": (470, 75, 690, 170)}
    best = {name: found.xyxy[found.data["class_name"] == name][0] for name in places}
    overlaps = sv.box_iou_batch(np.array(list(places.values()), float), np.array([best[name] for name in places]))
    assert (np.diag(overlaps) > 0.5).all()


def test_the_same_boxes_as_opencv_runs_and_suppresses_them(shared):
    """On photographs, box by box: OpenCV reads, executes and decodes the same two files."""
    weights = shared / "weights" / "yolo-fastest-1.1-xl"
    network = cv2.dnn.readNetFromDarknet(f"{weights}.cfg", f"{weights}.weights")
    detector = opened(shared, resize="stretch", confidence=0.25, nms=NMS(iou=0.45))
    for path in sorted((shared / "images").glob("*.jpg")):
        image = cv2.imread(str(path))[..., ::-1].copy()
        height, width = image.shape[:2]
        canvas = cv2.resize(image, (detector.width, detector.height))
        network.setInput(cv2.dnn.blobFromImage(canvas, 1 / 255))
        rows = np.concatenate(network.forward(network.getUnconnectedOutLayersNames()))
        class_ids, scores = rows[:, 5:].argmax(axis=1), rows[:, 5:].max(axis=1)
        corner = rows[:, :2] - rows[:, 2:4] / 2
        tlwh = np.concatenate([corner, rows[:, 2:4]], axis=1) * (width, height, width, height)
        kept = np.asarray(cv2.dnn.NMSBoxesBatched(tlwh.tolist(), scores.tolist(), class_ids.tolist(), 0.25, 0.45))
        xyxy = np.concatenate([tlwh[kept, :2], tlwh[kept, :2] + tlwh[kept, 2:]], axis=1)
        xyxy = xyxy.clip(0, (width, height, width, height))

        found = detector(image)
        assert found.class_id.tolist() == class_ids[kept].tolist(), path.name
        np.testing.assert_allclose(found.confidence, scores[kept], atol=1e-3)
        np.testing.assert_allclose(found.xyxy, xyxy, atol=0.5)


def test_the_order_of_channels_matters_to_a_real_network(detector, shared):
    bgr = cv2.imread(str(shared / "images" / "dog.jpg"))
    right, wrong = detector(bgr, bgr=True), detector(bgr)
    np.testing.assert_allclose(right.xyxy, detector(shared / "images" / "dog.jpg").xyxy, atol=1e-3)
    assert len(right) != len(wrong) or not np.allclose(right.confidence, wrong.confidence, atol=1e-3)


def test_batches_and_streams_find_the_same_animals(detector, shared):
    paths = sorted((shared / "images").glob("*.jpg"))
    alone = [detector(path) for path in paths]
    together = detector(paths)
    streamed = [found for _, found in detector.stream(shared / "images", batch=2)]
    for one, batched, streamed_one in zip(alone, together, streamed, strict=True):
        for other in (batched, streamed_one):
            assert other.class_id.tolist() == one.class_id.tolist()
            np.testing.assert_allclose(other.xyxy, one.xyxy, atol=0.05)
