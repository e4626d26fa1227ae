"""`scaledyolo verify`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import tyro

from scaledyolo.cli.exit_codes import EXIT_NOT_COMPARED, EXIT_UNVERIFIED
from scaledyolo.cli.export import open_data
from scaledyolo.cli.options import model_source

if TYPE_CHECKING:
    from scaledyolo.export.origin import MissingOriginError


@dataclass(frozen=True)
class Verify:
    """Compare an exported model with the model it comes from, on this machine.

    Writes ARTEFACT.verified.json and marks the artefact; the exit code is 2 where they differ. Without the model it
    says whether the file is the one that its report speaks of and whether it runs; the exit code is 1 at best.
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
        from scaledyolo.export.origin import MissingOriginError
        from scaledyolo.model import load_model

        against = load_model(model_source(self.against), names=self.names) if self.against else None
        try:
            report = verify(
                self.artefact,
                against,
                names=self.names,
                images=self.images,
                data=open_data(self.data, self.split),
                engine=self.engine,
                mark=self.mark,
            )
        except MissingOriginError as missing:
            return self._recheck(missing)
        print(json.dumps(report.to_dict(), indent=1) if self.json else report.summary())
        return 0 if report.passed else EXIT_UNVERIFIED

    def _recheck(self, missing: MissingOriginError) -> int:
        """What can be said without the model."""
        if self.data is not None:  # its AP is what was asked for
            raise missing
        from scaledyolo.export.recheck import recheck

        found = recheck(self.artefact, str(missing), images=self.images, engine=self.engine)
        print(json.dumps(found.to_dict(), indent=1) if self.json else found.summary())
        return EXIT_NOT_COMPARED if found.nothing_speaks_against_it else EXIT_UNVERIFIED
