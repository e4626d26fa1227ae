"""Scaled-YOLOv4, its parents and its successor: describe, convert, detect, train, evaluate, export.

>>> from scaledyolo import Detector                             # doctest: +SKIP
>>> detections = Detector("yolov4-tiny.safetensors")("street.jpg")  # doctest: +SKIP

Nothing is imported before it is used, so that ``import scaledyolo`` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from scaledyolo.arch.graph import Graph
    from scaledyolo.arch.lower import lower
    from scaledyolo.arch.spec import ModelSpec
    from scaledyolo.arch.zoo import ZOO
    from scaledyolo.checkpoint import Checkpoint, save_checkpoint
    from scaledyolo.detector import Detector
    from scaledyolo.model import load_graph, load_model
    from scaledyolo.postprocess import NMS

_HOMES = {
    "Checkpoint": "scaledyolo.checkpoint",
    "Detector": "scaledyolo.detector",
    "Graph": "scaledyolo.arch.graph",
    "ModelSpec": "scaledyolo.arch.spec",
    "NMS": "scaledyolo.postprocess",
    "ZOO": "scaledyolo.arch.zoo",
    "load_graph": "scaledyolo.model",
    "load_model": "scaledyolo.model",
    "lower": "scaledyolo.arch.lower",
    "save_checkpoint": "scaledyolo.checkpoint",
}

__all__ = [
    "NMS",
    "ZOO",
    "Checkpoint",
    "Detector",
    "Graph",
    "ModelSpec",
    "load_graph",
    "load_model",
    "lower",
    "save_checkpoint",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'scaledyolo' has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
