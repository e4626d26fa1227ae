"""`scaledyolo convert`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import tyro


@dataclass(frozen=True)
class Convert:
    """Bring weights to a safe file (.safetensors), or back to Darknet; exactly, or not at all."""

    source: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="SOURCE")]
    """Darknet .weights (its .cfg beside it or given), PyTorch .pt or .pth, or .safetensors; a zoo name for a .cfg."""
    destination: Annotated[str, tyro.conf.Positional, tyro.conf.arg(metavar="DESTINATION")]
    """.safetensors, .weights (with a .cfg of the same name) or .cfg."""
    cfg: Path | None = None
    """Darknet cfg that describes the weights; by default the one beside them."""
    network: str | None = None
    """Name of the network in the zoo, where neither cfg nor tensors tell."""
    names: Path | None = None
    """Text file of class names, one a line."""
    decoding: Literal["exp", "sigmoid-squared", "region"] | None = None
    """How boxes are decoded, in place of what the cfg says (sigmoid-squared: trained with the PyTorch code)."""
    subnet: str | None = None
    """Only this part of the network, such as without-head-p7 or without-stage-p7."""
    licence: str = ""
    """Licence of the weights, kept in the checkpoint."""
    force: bool = False
    """Replace files that exist."""
    report: Literal["summary", "layers", "json"] = "summary"
    """What to print: the totals, every layer with where its values come from, or everything as JSON."""

    def run(self) -> int:
        from scaledyolo.convert.conversion import convert
        from scaledyolo.convert.conversion_request import Options

        options = Options(self.cfg, self.network, self.names, self.decoding, self.licence, self.subnet, self.force)
        report = convert(self.source, self.destination, options)
        if self.report == "json":
            print(json.dumps(report.to_dict(), indent=2))
        else:
            print(report.text(layers=self.report == "layers"))
        return 0
