"""Other people's augmentation pipelines as a `Transform`. Neither library is imported before it is used."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from scaledyolo.data.sample import Sample, Transform
from scaledyolo.errors import MissingPackageError


def from_albumentations(pipeline: Callable[..., dict[str, Any]]) -> Transform:
    """Adapt an ``albumentations.Compose`` made with ``BboxParams("pascal_voc", label_fields=["class_ids"])``.

    The pipeline sees image (h, w, 3) uint8 RGB, bboxes in pixels and class_ids. If it offers ``set_random_seed``, it is
    seeded from the sample's generator, so that its results do not depend on the number of workers.
    """

    def transform(sample: Sample, rng: np.random.Generator) -> Sample:
        seed = int(rng.integers(2**31))
        reseed = getattr(pipeline, "set_random_seed", None)
        if reseed is not None:
            reseed(seed)
        result = pipeline(image=sample.image, bboxes=sample.boxes_xyxy, class_ids=sample.class_ids)
        return replace(
            sample,
            image=np.ascontiguousarray(result["image"]),
            boxes_xyxy=np.asarray(result["bboxes"], np.float32).reshape(-1, 4),
            class_ids=np.asarray(result["class_ids"]).reshape(-1).astype(np.int64),
        )

    return transform


def from_torchvision(pipeline: Callable[..., Any]) -> Transform:
    """Adapt a ``torchvision.transforms.v2`` pipeline.

    It sees a dictionary of an image (3, h, w) uint8, tv_tensors boxes in pixels, and labels; boxes that it drops take
    their labels along (``v2.SanitizeBoundingBoxes``). torch's global generator is seeded from the sample's generator
    and then restored; use it with one worker. Raises MissingPackageError without torchvision.
    """
    try:
        torch = importlib.import_module("torch")
        tv_tensors = importlib.import_module("torchvision.tv_tensors")
    except ImportError as error:
        raise MissingPackageError(
            "a torchvision pipeline needs torchvision 0.16 or later: pip install torchvision"
        ) from error

    def transform(sample: Sample, rng: np.random.Generator) -> Sample:
        planes = torch.from_numpy(np.ascontiguousarray(sample.image.transpose(2, 0, 1)))
        boxes = tv_tensors.BoundingBoxes(
            torch.from_numpy(sample.boxes_xyxy.copy()),
            format=tv_tensors.BoundingBoxFormat.XYXY,
            canvas_size=(sample.height, sample.width),
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(int(rng.integers(2**31)))
            result = pipeline(
                {
                    "image": tv_tensors.Image(planes),
                    "boxes": boxes,
                    "labels": torch.from_numpy(sample.class_ids.copy()),
                }
            )
        return replace(
            sample,
            image=np.ascontiguousarray(result["image"].numpy().transpose(1, 2, 0)),
            boxes_xyxy=result["boxes"].numpy().astype(np.float32).reshape(-1, 4),
            class_ids=result["labels"].numpy().astype(np.int64),
        )

    return transform
