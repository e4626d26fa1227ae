"""`make demo`: the main job on real input, offline. Detects with the model that comes with the package.

The photograph is in the public domain and comes with matplotlib. Where a real Darknet model lies beside the project, it
is converted and used too.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from matplotlib import get_data_path

from scaledyolo.cli import main
from scaledyolo.default_model import default_model_file
from scaledyolo.errors import UsageError

SHARED = Path(os.environ.get("SCALEDYOLO_SHARED", Path(__file__).parents[1] / ".." / "shared")).resolve()
OUT = Path("demo")
PHOTOGRAPH = Path(get_data_path()) / "sample_data" / "grace_hopper.jpg"


def run(*arguments: object) -> None:
    """Show a command, run it, and stop the demo where it fails."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ scaledyolo {' '.join(words)}", flush=True)
    code = main(words)
    if code:
        sys.exit(code)


def detect_by_default() -> bool:
    """Detect in the photograph without naming a model; False where this copy has no default model."""
    try:
        default_model_file()
    except UsageError as error:
        print(f"\n{error}")
        return False
    if not PHOTOGRAPH.is_file():
        print(f"\nmatplotlib came without its sample data ({PHOTOGRAPH}); detect in a photograph of your own:")
        print("\n    .venv/bin/scaledyolo detect YOUR.jpg")
        return True
    before = set(OUT.rglob(PHOTOGRAPH.name))
    run("detect", PHOTOGRAPH, "--out", OUT)
    (drawn,) = set(OUT.rglob(PHOTOGRAPH.name)) - before
    print(f"\nThe photograph with what was found in it: {drawn.resolve()}")
    return True


def convert_and_detect() -> bool:
    """Convert a real Darknet model and detect with it; False where none is at hand."""
    weights = SHARED / "weights" / "yolo-fastest-1.1-xl.weights"
    if not weights.is_file():
        return False
    checkpoint = OUT / "yolo-fastest-1.1-xl.safetensors"
    OUT.mkdir(exist_ok=True)
    run("convert", weights, checkpoint, "--names", weights.with_name("coco.names"), "--report", "summary", "--force")
    run("detect", SHARED / "images", "--model", checkpoint, "--out", OUT)
    return True


if __name__ == "__main__":
    shown = [detect_by_default(), convert_and_detect()]
    sys.exit(0 if any(shown) else 1)
