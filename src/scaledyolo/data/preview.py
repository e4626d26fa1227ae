"""A sheet of augmented samples with their boxes: what the network will see."""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt

from scaledyolo.data.augment import AugmentConfig, Augmenter
from scaledyolo.data.cache import ImageSource
from scaledyolo.data.dataset import Dataset
from scaledyolo.data.order import epoch_order, sample_generator
from scaledyolo.data.sample import Sample, Transform
from scaledyolo.errors import UsageError

_GAP = 4  # pixels between samples
_GOLDEN_RATIO = 0.618034  # steps around the hue circle: neighbouring classes get distant colours


def preview_sheet(
    dataset: Dataset,
    config: AugmentConfig,
    *,
    size: int = 416,
    count: int = 16,
    seed: int = 0,
    transform: Transform | None = None,
) -> npt.NDArray[np.uint8]:
    """``count`` augmented samples of size x size in a grid, boxes and class names drawn; uint8 RGB."""
    if count < 1 or len(dataset) == 0:
        raise UsageError("a preview needs at least one image and a count of at least 1")
    source = ImageSource(dataset, size)
    augmenter = Augmenter(source.sample, len(source), size, config, transform)
    order = epoch_order(len(source), seed, 0)
    samples = [augmenter(int(order[number % len(order)]), sample_generator(seed, 0, number)) for number in range(count)]
    return tile_images([draw_boxes(sample, dataset.names) for sample in samples])


def draw_boxes(sample: Sample, names: tuple[str, ...]) -> npt.NDArray[np.uint8]:
    """A copy of the image with boxes and class names."""
    image = sample.image.copy()
    for box, class_id in zip(sample.boxes_xyxy, sample.class_ids.tolist(), strict=True):
        colour = class_colour(class_id)
        left, top, right, bottom = (round(float(side)) for side in box)
        cv2.rectangle(image, (left, top), (right - 1, bottom - 1), colour, 1, cv2.LINE_AA)
        name = names[class_id] if class_id < len(names) else str(class_id)
        (width, height), base = cv2.getTextSize(name, cv2.FONT_HERSHEY_SIMPLEX, 0.35, 1)
        y = top if top >= height + base else top + height + base
        cv2.rectangle(image, (left, y - height - base), (left + width, y), colour, cv2.FILLED)
        cv2.putText(image, name, (left, y - base // 2 - 1), cv2.FONT_HERSHEY_SIMPLEX, 0.35, (0, 0, 0), 1, cv2.LINE_AA)
    return image


def tile_images(images: list[npt.NDArray[np.uint8]]) -> npt.NDArray[np.uint8]:
    """Images of one shape in a grid as square as possible, on white."""
    height, width = images[0].shape[:2]
    columns = math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    sheet = np.full((rows * (height + _GAP) + _GAP, columns * (width + _GAP) + _GAP, 3), 255, np.uint8)
    for number, image in enumerate(images):
        top = _GAP + number // columns * (height + _GAP)
        left = _GAP + number % columns * (width + _GAP)
        sheet[top : top + height, left : left + width] = image
    return sheet


def class_colour(class_id: int) -> tuple[int, int, int]:
    """A bright colour that a class always has."""
    hue = round(class_id * _GOLDEN_RATIO * 180) % 180
    red, green, blue = cv2.cvtColor(np.array([[[hue, 200, 255]]], np.uint8), cv2.COLOR_HSV2RGB)[0, 0].tolist()
    return red, green, blue
