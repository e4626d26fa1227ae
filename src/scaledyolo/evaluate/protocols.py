"""Evaluation protocols: which detections a metric gets to see. A comparison is only one under the same protocol."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from scaledyolo.errors import UsageError, nearest


@dataclass(frozen=True, slots=True)
class Protocol:
    """Settings of an evaluation run (training spec 5.2 and 5.3)."""

    name: str
    confidence: float  # detections below are dropped before NMS
    nms_iou: float  # suppression threshold, per class
    max_detections: int = 300  # kept per image by NMS, all classes together
    scored_detections: int = 100  # of these, how many per image and class the metric looks at, best first
    multi_label: bool = True  # one box may be a detection of several classes
    clip_boxes: bool = True  # to the image
    interpolation: Literal["101-point", "area"] = "101-point"
    source: str = ""


COCO = Protocol("coco", confidence=0.001, nms_iou=0.65, source="Scaled-YOLOv4 README: the published AP")
TRAINING = Protocol(
    "training", confidence=0.001, nms_iou=0.6, source="validation while training, both PyTorch branches"
)
DARKNET_MAP = Protocol(
    "darknet-map", confidence=0.005, nms_iou=0.45, interpolation="area", source="darknet detector map -points 0"
)

# OpenCV's importer of Darknet files returns no class score up to 0.2 at all, whatever threshold is applied after it.
OPENCV_DARKNET = Protocol(
    "opencv-darknet", confidence=0.2, nms_iou=0.45, clip_boxes=False, source="OpenCV 4 readNetFromDarknet, NMSBoxes"
)

PROTOCOLS: dict[str, Protocol] = {protocol.name: protocol for protocol in (COCO, TRAINING, DARKNET_MAP, OPENCV_DARKNET)}


def protocol(name: str) -> Protocol:
    """The protocol of this name; raises :class:`UsageError` that names the nearest known one."""
    try:
        return PROTOCOLS[name]
    except KeyError:
        known = ", ".join(PROTOCOLS)
        raise UsageError(
            f"there is no evaluation protocol {name!r}.{nearest(name, PROTOCOLS)} Known: {known}"
        ) from None
