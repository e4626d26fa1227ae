"""What a detection run leaves behind: annotated pictures and videos, tables, COCO results, labels, crops.

    with RunWriter(formats=("media", "jsonl")) as writer:
        for frame in frames:
            writer.write(frame, detections)

A run writes into a new folder and never touches earlier output. Contents: ``RunWriter`` owns the writers of one run;
``FORMATS`` names them; ``Annotator`` draws detections on a picture.
"""

from __future__ import annotations

from scaledyolo.outputs.annotate import Annotator
from scaledyolo.outputs.files import create_run_folder
from scaledyolo.outputs.run import FORMATS, RunOptions, RunSummary, RunWriter

__all__ = ["FORMATS", "Annotator", "RunOptions", "RunSummary", "RunWriter", "create_run_folder"]
