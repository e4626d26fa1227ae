"""Fixtures that every test may use."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from scaledyolo.arch.graph import Graph, Node
from scaledyolo.arch.ops import Conv, Detect
from scaledyolo.checkpoint import Checkpoint, save_checkpoint


@pytest.fixture(scope="session", autouse=True)
def _own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Weights and compiled models are kept below the folder of the tests, not in the user's cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SCALEDYOLO_HOME", str(tmp_path_factory.mktemp("home")))
        yield


@pytest.fixture(scope="session")
def shared() -> Path:
    """Folder of real data, weights and photographs that lies beside the project; the test is skipped without it."""
    folder = Path(os.environ.get("SCALEDYOLO_SHARED", Path(__file__).parents[1] / ".." / "shared"))
    if not folder.is_dir():
        pytest.skip(f"real data not found at {folder.resolve()}; set SCALEDYOLO_SHARED")
    return folder.resolve()


COLOURS = ("red", "green", "blue")


def colour_checkpoint() -> Checkpoint:
    """A detector whose answers can be written down: every cell of 8 x 8 pixels that is red, green or blue is an object.

    One convolution averages each cell. The box is exactly the cell, for its centre has no offset and its only anchor is
    8 x 8; objectness rises with the brightness of all channels, a class with that of its own. The grey of a letterbox
    is bright, but of no class.
    """
    graph = Graph(
        "colours",
        (
            Node("cells", Conv(8, kernel=8, stride=(8, 8), norm=False, bias=True), (Graph.INPUT,)),
            Node("head", Detect(((8.0, 8.0),), (0,), num_classes=3), ("cells",)),
        ),
        height=64,
        width=64,
    )
    weight, bias = np.zeros((8, 3, 8, 8), np.float32), np.zeros(8, np.float32)
    weight[4], bias[4] = 20 / 64, -10  # objectness: 20 (r + g + b - 0.5)
    for colour in range(3):
        weight[5 + colour, colour], bias[5 + colour] = 40 / 64, -20  # class: 40 (its own channel - 0.5)
    return Checkpoint(graph=graph, class_names=COLOURS, weights={"cells.weight": weight, "cells.bias": bias})


class ColourModel(NamedTuple):
    """The colour detector, loaded and as files of each kind."""

    checkpoint: Checkpoint
    path: Path  # .safetensors
    cfg: Path
    weights: Path


@pytest.fixture(scope="session")
def colours(tmp_path_factory: pytest.TempPathFactory) -> ColourModel:
    """A small detector with known answers; see `colour_checkpoint`. Tests must not change its files."""
    from scaledyolo.convert.darknet_cfg import write_cfg
    from scaledyolo.convert.darknet_weights import write_weights

    folder = tmp_path_factory.mktemp("colours")
    model = ColourModel(colour_checkpoint(), *(folder / f"colours.{end}" for end in ("safetensors", "cfg", "weights")))
    save_checkpoint(model.path, model.checkpoint)
    model.cfg.write_text(write_cfg(model.checkpoint.graph))
    write_weights(model.weights, model.checkpoint.graph, model.checkpoint.weights)
    (folder / "colours.names").write_text("\n".join(COLOURS) + "\n")
    return model


def painted(height: int, width: int, *cells: tuple[int, int, int], cell: int = 8) -> np.ndarray:
    """A black image (height, width, 3) uint8 RGB with squares (column, row, class) of ``cell`` pixels, pure colours."""
    image = np.zeros((height, width, 3), np.uint8)
    for column, row, colour in cells:
        image[row * cell : (row + 1) * cell, column * cell : (column + 1) * cell, colour] = 255
    return image


@pytest.fixture
def paint():
    """The function `painted`: images whose objects are known."""
    return painted
