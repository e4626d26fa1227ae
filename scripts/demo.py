"""`make demo`: the main job on real input. Converts a real Darknet model and detects with it, where one is at hand."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from scaledyolo.cli import main

SHARED = Path(os.environ.get("SCALEDYOLO_SHARED", Path(__file__).parents[1] / ".." / "shared")).resolve()
OUT = Path("demo")

WITHOUT_MODEL = f"""No trained model is at hand (looked in {SHARED / "weights"}).

Official weights come from their release pages, when you ask for them:

    .venv/bin/scaledyolo detect YOUR.jpg --model yolov4-tiny --download

Or bring your own Darknet pair:

    .venv/bin/scaledyolo detect YOUR.jpg --model YOUR.cfg YOUR.weights --names YOUR.names
"""


def run(*arguments: object) -> None:
    """Show a command, run it, and stop the demo where it fails."""
    words = [str(argument) for argument in arguments]
    print(f"\n$ scaledyolo {' '.join(words)}", flush=True)
    code = main(words)
    if code:
        sys.exit(code)


def demo() -> None:
    """Describe the flagship, then convert and detect."""
    run("describe", "yolov4-p5")
    model = SHARED / "weights" / "yolo-fastest-1.1-xl.weights"
    if not model.is_file():
        print(f"\n{WITHOUT_MODEL}")
        return
    checkpoint = OUT / "yolo-fastest-1.1-xl.safetensors"
    OUT.mkdir(exist_ok=True)
    run("convert", model, checkpoint, "--names", model.with_name("coco.names"), "--report", "summary", "--force")
    run("detect", SHARED / "images", "--model", checkpoint, "--out", OUT)


if __name__ == "__main__":
    demo()
