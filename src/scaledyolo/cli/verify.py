"""`scaledyolo verify`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from scaledyolo.cli.export import EXIT_UNVERIFIED, open_data
from scaledyolo.cli.options import model_source


@dataclass(frozen=True)
class Verify:
    """Compare an exported model with the model it comes from, on this machine.

    Writes ARTEFACT.verified.json and marks the artefact; the exit code is not zero where they differ.
    """

    artefact: tyro.conf.Positional[Path]
    """File or folder that `scaledyolo export` wrote."""
    against: Annotated[tuple[str, ...], tyro.conf.arg(metavar="MODEL | CFG WEIGHTS")] = ()
    """The model: checkpoint, Darknet cfg and weights, or a name; by default what the artefact was exported from."""
    images: tuple[Path, ...] = ()
    """Photographs to compare on; by default built-in ones."""
    data: Path | None = None
    """Data set on which average precision is compared as well."""
    split: str = "val"
    """Split of it."""
    engine: str = "auto"
    """What runs the artefact: auto is every installed runtime that may run it: ONNX Runtime and OpenVINO for ONNX."""
    names: Path | None = None
    """File with one class name a line, for Darknet models."""
    mark: bool = True
    """Write the verdict into the artefact and the report beside it."""
    json: bool = False
    """Print the report as JSON instead of text."""

    def run(self) -> int:
        from scaledyolo.export import verify
        from scaledyolo.model import load_model

        against = load_model(model_source(self.against), names=self.names) if self.against else None
        report = verify(
            self.artefact,
            against,
            names=self.names,
            images=self.images,
            data=open_data(self.data, self.split),
            engine=self.engine,
            mark=self.mark,
        )
        print(json.dumps(report.to_dict(), indent=1) if self.json else report.summary())
        return 0 if report.passed else EXIT_UNVERIFIED
