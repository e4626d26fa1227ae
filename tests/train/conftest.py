"""A small world to train in: shapes on noise, a narrow network, a short recipe, the command as users run it."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import yaml

from scaledyolo.arch.spec import ModelSpec, Stage, Stem
from scaledyolo.arch.zoo import tiny
from scaledyolo.data.augment import AugmentConfig
from scaledyolo.train.recipe import Ema, Loss, Optimiser, Recipe, Schedule

SIDE = 128
CLASS_NAMES = ("square", "disc", "triangle")
_COLOURS = ((230, 60, 40), (40, 200, 70), (50, 90, 240))


def draw_shapes(rng: np.random.Generator) -> tuple[npt.NDArray[np.uint8], list[tuple[int, float, float, float, float]]]:
    """An image (side, side, 3) RGB and its objects (class, cx, cy, w, h as fractions), at most one in each third."""
    image = rng.integers(90, 150, (SIDE, SIDE, 3), dtype=np.uint8)
    rows = []
    for slot in range(int(rng.integers(1, 4))):
        class_id, side = int(rng.integers(3)), int(rng.integers(24, 38))
        x = int(rng.integers(1, SIDE - side - 1))
        y = slot * 42 + int(rng.integers(1, 42 - side + 1))
        colour, corner, far = _COLOURS[class_id], (x, y), (x + side - 1, y + side - 1)
        if class_id == 0:
            cv2.rectangle(image, corner, far, colour, cv2.FILLED)
        elif class_id == 1:
            cv2.circle(image, (x + side // 2, y + side // 2), side // 2 - 1, colour, cv2.FILLED)
        else:
            cv2.fillPoly(image, [np.array([(x, far[1]), far, (x + side // 2, y)])], colour)
        rows.append((class_id, (x + side / 2) / SIDE, (y + side / 2) / SIDE, side / SIDE, side / SIDE))
    return image, rows


def write_shapes(folder: Path, count: int, val_count: int = 0, seed: int = 0) -> Path:
    """A YOLO data set of so many images; without images of its own, validation uses those to learn from.

    Returns its data.yaml.
    """
    rng = np.random.default_rng(seed)
    for split, number_of in (("train", count), ("val", val_count)):
        for part in ("images", "labels"):
            (folder / part / split).mkdir(parents=True)
        for number in range(number_of):
            image, rows = draw_shapes(rng)
            assert cv2.imwrite(str(folder / "images" / split / f"{number:03}.png"), image[:, :, ::-1])
            text = "".join(f"{row[0]} {' '.join(f'{value:.6f}' for value in row[1:])}\n" for row in rows)
            (folder / "labels" / split / f"{number:03}.txt").write_text(text)
    description = folder / "data.yaml"
    parts = {"path": str(folder), "train": "images/train", "val": f"images/{'val' if val_count else 'train'}"}
    description.write_text(yaml.safe_dump({**parts, "names": list(CLASS_NAMES)}))
    return description


def narrow_spec(num_classes: int = 3) -> ModelSpec:
    """yolov4-tiny with a quarter of its channels: 0.38 M parameters, 16 ms a step of 8 images."""
    return replace(
        tiny("narrow", size=SIDE),
        stem=Stem(8, stride=2),
        stages=(
            Stage("pcb", 16, downsample="conv"),
            Stage("pcb", 32, downsample="maxpool"),
            Stage("pcb", 64, downsample="maxpool"),
            Stage("conv", 128, downsample="maxpool"),
        ),
        neck=replace(tiny("narrow").neck, widths=(32, 64)),
        num_classes=num_classes,
        decoding="sigmoid-squared",
        scale_xy=(),
        resize="letterbox",
    )


def short_recipe(epochs: int = 3, **changes: Any) -> Recipe:
    """Whole images, flipped; a step for every batch of 4; an average that follows at once."""
    recipe = Recipe(
        "short",
        batch=4,
        optimiser=Optimiser(nominal_batch=4, learning_rate=0.03),
        loss=Loss(class_gain=3.0),
        schedule=Schedule(epochs=epochs, warmup_epochs=0.0, warmup_min_steps=4),
        ema=Ema(decay=0.98, ramp_updates=10.0),
        augmentation=AugmentConfig(mosaic=0.0, translate=0.05, scale=0.1, hue=0.0, saturation=0.2, value=0.2),
    )
    return replace(recipe, **changes)


@dataclass(frozen=True)
class World:
    """What the tests of training share; a fixture, because test modules cannot import each other."""

    shapes: Path  # data.yaml of eight images of shapes, in colour
    narrow: Path  # the narrow network as a spec file
    folder: Path  # of this test

    write_shapes = staticmethod(write_shapes)
    narrow_spec = staticmethod(narrow_spec)
    short_recipe = staticmethod(short_recipe)

    def write_recipe(self, recipe: Recipe) -> Path:
        """The recipe as a file."""
        path = self.folder / f"{recipe.name}.yaml"
        path.write_text(recipe.to_yaml())
        return path

    def arguments(self, recipe: Recipe, *more: object, data: Path | None = None, out: str = "runs") -> list[str]:
        """Arguments of `scaledyolo` for a training in float32; ``more`` are further options."""
        options = {"--data": data or self.shapes, "--model": self.narrow, "--recipe": self.write_recipe(recipe)}
        named = [str(word) for pair in options.items() for word in pair]
        return ["train", *named, "--out", str(self.folder / out), "--precision", "32", *map(str, more)]

    def environment(self) -> dict[str, str]:
        """One thread, so that tests share a machine."""
        return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}

    def run(self, *arguments: object, **options: Any) -> subprocess.CompletedProcess[str]:
        """Run `scaledyolo ...` as a program; text output, no exception for a bad exit code."""
        options = {"capture_output": True, "text": True, "timeout": 300, "env": self.environment(), **options}
        return subprocess.run([sys.executable, "-m", "scaledyolo", *map(str, arguments)], check=False, **options)


@pytest.fixture(scope="session")
def _shared_files(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("world")
    spec = folder / "narrow.yaml"
    spec.write_text(yaml.safe_dump(narrow_spec().to_dict()))
    return write_shapes(folder / "shapes", 8), spec


@pytest.fixture
def world(_shared_files: tuple[Path, Path], tmp_path: Path) -> World:
    """Data, network, recipe and command of a small training."""
    return World(*_shared_files, tmp_path)
