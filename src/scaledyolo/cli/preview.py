"""`scaledyolo preview`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from scaledyolo.errors import OutputError


@dataclass(frozen=True)
class Preview:
    """Write a sheet of augmented samples with their boxes: what the network will see while it trains."""

    data: Annotated[tuple[Path, ...], tyro.conf.arg(metavar="PATH ...")]
    """Folders or files of data sets, taken as one, their classes merged by name; formats are recognised by looking."""
    recipe: str = "small"
    """Name of a recipe (see `scaledyolo recipes`) or a YAML file."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="KEY=VALUE ...")] = ()
    """Values of the recipe to change, such as augmentation.mosaic=0."""
    size: int = 416
    """Side of each sample in pixels."""
    count: int = 16
    """Number of samples."""
    split: str = "train"
    """What to show: a split, all, a .txt file that lists images, or a share of any of these: train[:80%]."""
    transform: str | None = None
    """Your own augmentation, applied last, as module:object (see `scaledyolo train --help`). Its code is run."""
    seed: int = 0
    """Of everything random; the samples are those of the first epoch of a training with this seed."""
    plain: bool = False
    """Without mosaics and mixed images, as in the last epochs."""
    out: Path = Path("preview.jpg")
    """Picture to write, .jpg or .png."""

    def run(self) -> int:
        import cv2
        import numpy as np

        from scaledyolo.data.plugins import load_transform
        from scaledyolo.data.preview import preview_sheet
        from scaledyolo.data.selection import open_part
        from scaledyolo.outputs.files import write_whole
        from scaledyolo.train.recipe import recipe_named

        suffix = self.out.suffix.lower()
        if suffix not in (".jpg", ".jpeg", ".png"):
            raise OutputError(f"{self.out}: a preview is a .jpg or .png file")
        config = recipe_named(self.recipe).replace(*self.set).augmentation
        dataset = open_part(self.data, self.split)
        sheet = preview_sheet(
            dataset,
            config.without_mixing() if self.plain else config,
            size=self.size,
            count=self.count,
            seed=self.seed,
            transform=load_transform(self.transform) if self.transform is not None else None,
        )
        encoded, data = cv2.imencode(suffix, np.ascontiguousarray(sheet[:, :, ::-1]))
        if not encoded:
            raise OutputError(f"{self.out}: the picture of {sheet.shape[1]}x{sheet.shape[0]} pixels cannot be encoded")
        write_whole(self.out, data.tobytes())
        print(f"{self.out}: {self.count} samples of {dataset.source}, as recipe {self.recipe} augments them")
        return 0
