"""An image with its boxes: what every augmentation takes and returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True, eq=False)
class Sample:
    """One image and its objects.

    image: (height, width, 3) uint8 RGB. boxes_xyxy: (n, 4) float32 in pixels of that image. class_ids: (n,) int64,
    contiguous from 0. index: position in the data set. The arrays may be views of a cache: never write into them.
    """

    image: npt.NDArray[np.uint8]
    boxes_xyxy: npt.NDArray[np.float32]
    class_ids: npt.NDArray[np.int64]
    index: int = -1

    @property
    def height(self) -> int:
        """Rows of the image."""
        return int(self.image.shape[0])

    @property
    def width(self) -> int:
        """Columns of the image."""
        return int(self.image.shape[1])


class Transform(Protocol):
    """Anything that changes a sample, drawing its randomness only from ``rng``."""

    def __call__(self, sample: Sample, rng: np.random.Generator) -> Sample: ...
