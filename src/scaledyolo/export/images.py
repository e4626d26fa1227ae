"""What artefacts are verified on: the user's images, or a photograph and reproducible scenes."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from scaledyolo.arch.graph import Resize
from scaledyolo.data.letterbox import images_to_input, letterbox, stretch
from scaledyolo.engines.faithful import scene
from scaledyolo.weights import Array

Image = npt.NDArray[np.uint8]
_SCENES = ((480, 640), (640, 480), (375, 500))


def verification_images(paths: Sequence[str | Path] = ()) -> list[Image]:
    """Images (height, width, 3) uint8 RGB: the given files, or a photograph if one is at hand and scenes.

    Raises:
        SourceError: a file cannot be read as an image.
    """
    from scaledyolo.sources import read_image

    if paths:
        return [read_image(path) for path in paths]
    scenes = [
        np.ascontiguousarray((scene(3, height, width, seed) * 255).round().astype(np.uint8).transpose(1, 2, 0))
        for seed, (height, width) in enumerate(_SCENES)
    ]
    photograph = _photograph()
    return [read_image(photograph), *scenes] if photograph is not None else scenes


def _photograph() -> Path | None:
    """Admiral Hopper's portrait, in the public domain, which matplotlib brings along."""
    spec = importlib.util.find_spec("matplotlib")
    if spec is None or spec.origin is None:
        return None
    path = Path(spec.origin).parent / "mpl-data" / "sample_data" / "grace_hopper.jpg"
    return path if path.is_file() else None


def input_batch(images: Sequence[Image], count: int, height: int, width: int, resize: Resize) -> Array:
    """Network input (count, 3, height, width): the images in turn, each time round mirrored or darker, none twice."""
    place = letterbox if resize == "letterbox" else stretch
    canvases = []
    for index in range(count):
        image = images[index % len(images)]
        turn = index // len(images)
        if turn % 2:
            image = np.ascontiguousarray(image[:, ::-1])
        if turn > 1:
            image = (image * (1 / turn)).astype(np.uint8)
        canvases.append(place(image, height, width)[0])
    return images_to_input(canvases)
