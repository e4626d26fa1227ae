"""Test-time augmentation: the three passes of Scaled-YOLOv4 and the way back (training spec 6.1).

A pass is made from the letterboxed network input, not from the photograph. The detections of all passes go, undone,
through one NMS together; no level of any pass is left out.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray

from scaledyolo.errors import UsageError

# (factor, mirrored left to right), paper table 12.
SCALES_AND_FLIPS = ((1.0, False), (0.83, True), (0.67, False))
FILL = 0.447  # mean of ImageNet's channel means; of white


@dataclass(frozen=True, slots=True)
class TtaPass:
    """One pass over an input of ``height`` x ``width`` pixels: mirror, shrink, pad on the right and at the bottom."""

    height: int  # of the network input before the pass
    width: int
    scale: float = 1.0
    flip: bool = False
    max_stride: int = 1

    def __str__(self) -> str:
        height, width = self.padded_size
        return f"{height}x{width}{' mirrored' if self.flip else ''}"

    @property
    def content_size(self) -> tuple[int, int]:
        """Height and width after shrinking, before padding."""
        return int(self.height * self.scale), int(self.width * self.scale)

    @property
    def padded_size(self) -> tuple[int, int]:
        """Height and width that the network sees: multiples of its largest stride."""
        height, width = (-(-side // self.max_stride) * self.max_stride for side in self.content_size)
        return height, width

    @property
    def changes_nothing(self) -> bool:
        """Whether the network sees the input as it is."""
        return not self.flip and self.content_size == self.padded_size == (self.height, self.width)

    def apply(self, canvas: NDArray[Any]) -> NDArray[Any]:
        """The input of the pass; the canvas itself where nothing changes.

        Args:
            canvas: (height, width, channels), uint8 0 to 255 or float 0 to 1.

        Raises:
            UsageError: the canvas has another size than the pass was made for.
        """
        if canvas.shape[:2] != (self.height, self.width):
            expected, found = f"{self.height}x{self.width}", f"{canvas.shape[0]}x{canvas.shape[1]}"
            raise UsageError(f"this pass was made for an input of {expected} pixels, got {found}")
        if self.changes_nothing:
            return canvas
        mirrored = np.ascontiguousarray(canvas[:, ::-1]) if self.flip else canvas
        content_height, content_width = self.content_size
        if self.content_size != (self.height, self.width):
            mirrored = cv2.resize(mirrored, (content_width, content_height), interpolation=cv2.INTER_LINEAR)
        fill = FILL if np.issubdtype(canvas.dtype, np.floating) else round(FILL * 255)
        padded = np.full((*self.padded_size, *canvas.shape[2:]), fill, dtype=canvas.dtype)
        padded[:content_height, :content_width] = mirrored.reshape(content_height, content_width, *canvas.shape[2:])
        return padded

    def undo(self, boxes_xyxy: NDArray[np.floating[Any]]) -> NDArray[np.float64]:
        """Boxes (n, 4) in pixels of the padded input of the pass as boxes of the network input.

        They are divided by the ratio that was left after cutting to whole pixels. The reference divides by the factor
        itself; the two differ by up to about a pixel at the far edge.
        """
        content_height, content_width = self.content_size
        ratio_x, ratio_y = content_width / self.width, content_height / self.height
        boxes = np.asarray(boxes_xyxy, dtype=np.float64) / (ratio_x, ratio_y, ratio_x, ratio_y)
        if self.flip:
            boxes[:, [0, 2]] = self.width - boxes[:, [2, 0]]
        return boxes


def tta_passes(
    height: int,
    width: int,
    max_stride: int,
    scales_and_flips: tuple[tuple[float, bool], ...] = SCALES_AND_FLIPS,
) -> tuple[TtaPass, ...]:
    """The passes for a network input of this size; ``max_stride`` is that of the network (128 for yolov4-p7)."""
    passes = tuple(TtaPass(height, width, scale, flip, max_stride) for scale, flip in scales_and_flips)
    if max_stride < 1 or any(min(one.content_size) < 1 for one in passes):
        raise UsageError(
            f"an input of {height}x{width} pixels and a stride of {max_stride} leave nothing to see in a pass"
        )
    return passes
