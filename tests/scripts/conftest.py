"""The scripts as modules, and run folders as trainings leave them."""

from __future__ import annotations

import csv
import importlib
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

SCRIPTS = Path(__file__).parents[2] / "scripts"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], ModuleType]:
    """Import a script by name."""
    if not SCRIPTS.is_dir():
        pytest.skip("the scripts are not beside the tests")
    monkeypatch.syspath_prepend(str(SCRIPTS))
    return importlib.import_module


def write_run(
    folder: Path,
    curve: Sequence[tuple[float, float]] = ((60.0, 0.1), (120.0, 0.2)),
    result: dict[str, Any] | None = None,
    **changes: Any,
) -> Path:
    """A run folder with (seconds, AP) of its epochs; ``result`` are the figures on the test split."""
    folder.mkdir(parents=True)
    document = {
        "command": ["/somewhere/bin/scaledyolo", "train", "--data", "/elsewhere/shapes", "--out", "/tmp/out"],
        "seed": 0,
        "git_commit": "0123456789abcdef",
        "data_fingerprints": {"train": "a", "val": "b"},
        "spec": {"name": "yolov4-tiny", "size": 416},
        "recipes": [{"name": "small", "batch": 16}],
        "settings": {"precision": "bf16"},
        "environment": {"processor": "A Processor", "threads": 2, "processes": 1},
        "transfer": None,
        **changes,
    }
    (folder / "run.json").write_text(json.dumps(document))
    with (folder / "epochs.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ("epoch", "box", "seconds", "ap", "ap50"))
        writer.writeheader()
        # As the journal writes them: what was not evaluated is empty.
        writer.writerow({"epoch": 1, "box": 0.1, "seconds": curve[0][0] / 2, "ap": "", "ap50": ""})
        for epoch, (seconds, ap) in enumerate(curve, start=2):
            writer.writerow({"epoch": epoch, "box": 0.1, "seconds": seconds, "ap": ap, "ap50": 2 * ap})
    if result is not None:
        (folder / "result.json").write_text(json.dumps({"format": "scaledyolo-ablation/1", **result}))
    return folder


@pytest.fixture
def run_folder() -> Callable[..., Path]:
    """The function `write_run`."""
    return write_run
