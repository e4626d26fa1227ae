"""The images on which a network that is to compute in 8 bits shows which values occur in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import numpy as np

from scaledyolo.arch.graph import Resize
from scaledyolo.data.image_files import decode, is_image
from scaledyolo.data.letterbox import images_to_input, letterbox, stretch
from scaledyolo.errors import DataError, UsageError
from scaledyolo.weights import Array

DEFAULT_IMAGES: Final = 128  # ranges of activations hardly move beyond; 300 is what NNCF takes by default


@dataclass(frozen=True)
class CalibrationImages:
    """Files that become network inputs one at a time, placed on the canvas as the detector places them."""

    source: str  # name of the folder or data set, for the artefact's metadata
    paths: tuple[Path, ...]
    height: int
    width: int
    resize: Resize

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[Array]:
        return (self.input(row) for row in range(len(self)))

    def input(self, row: int) -> Array:
        """Network input (1, 3, height, width) float32 in [0, 1] of one file.

        Raises:
            DataError: it cannot be decoded.
        """
        place = letterbox if self.resize == "letterbox" else stretch
        return images_to_input([place(decode(self.paths[row]), self.height, self.width)[0]])

    def sample(self, count: int) -> list[Array]:
        """Inputs of the first few, which are as random as all."""
        return [self.input(row) for row in range(min(count, len(self)))]


def choose_images(
    source: Path, count: int, *, height: int, width: int, resize: Resize, split: str = "train"
) -> CalibrationImages:
    """Pick images for calibration: the same ones each time, and from all over the source.

    Args:
        source: a data set, of which ``split`` is used, or any folder of images, its subfolders included.
        count: how many; fewer where there are no more.
        height: of the network input in pixels; so is ``width``.
        resize: "letterbox" or "stretch".

    Raises:
        DataError: there are none.
        UsageError: a count below one.
    """
    if count < 1:
        raise UsageError(f"{count} calibration images make no sense; use 1 or more, {DEFAULT_IMAGES} is a good number")
    files = _files(source, split)
    if not files:
        raise DataError(f"{source}: no images to calibrate on; give a data set or a folder of images")
    order = np.random.default_rng(0).permutation(len(files))[:count]
    return CalibrationImages(source.resolve().name, tuple(files[row] for row in order), height, width, resize)


def _files(source: Path, split: str) -> Sequence[Path]:
    from scaledyolo.data.formats import open_dataset, recognise

    if source.is_dir() and recognise(source) is None:
        return sorted(path for path in source.rglob("*") if is_image(path) and path.is_file())
    dataset = open_dataset(source, split=split, check="none")
    return [Path(path) for path in dataset.annotations.paths]
