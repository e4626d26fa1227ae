"""Images of a data set on the canvas of a network, as evaluation needs them again and again."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from scaledyolo.data.cache import CacheKind, ImageStore, content_key
from scaledyolo.data.dataset import Dataset
from scaledyolo.data.letterbox import letterbox, stretch
from scaledyolo.data.placement import Placement, place_letterbox, place_stretch


class Canvases:
    """Every image of a data set brought to (height, width), with the placement that brings boxes back.

    cache: where finished canvases are remembered; they take height * width * 3 bytes each. What comes out does not
    depend on it.
    """

    def __init__(
        self,
        dataset: Dataset,
        height: int,
        width: int,
        *,
        resize: Literal["letterbox", "stretch"] | str = "letterbox",
        cache: CacheKind = "none",
        folder: str | Path | None = None,
    ) -> None:
        self.dataset = dataset
        self.height, self.width = height, width
        self._is_letterbox = resize == "letterbox"
        self._store = ImageStore(
            np.tile(np.array((height, width), np.int64), (len(dataset), 1)),
            cache,
            key=lambda: content_key(dataset, f"{resize} {height}x{width}"),
            folder=folder,
        )

    def __len__(self) -> int:
        return len(self.dataset)

    @property
    def num_bytes(self) -> int:
        """Bytes of all canvases: what the cache takes when full."""
        return self._store.num_bytes

    def __getitem__(self, index: int) -> tuple[npt.NDArray[np.uint8], Placement]:
        """Canvas (height, width, 3) uint8 RGB, perhaps read-only, and where the image lies on it."""
        source_height, source_width = self.dataset.annotations.sizes[index].tolist()
        place = place_letterbox if self._is_letterbox else place_stretch
        placement = place(source_height, source_width, self.height, self.width)
        return self._store.get(index, lambda: self._make(index)), placement

    def _make(self, index: int) -> npt.NDArray[np.uint8]:
        bring = letterbox if self._is_letterbox else stretch
        return bring(self.dataset.load_image(index), self.height, self.width)[0]
