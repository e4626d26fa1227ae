"""`scaledyolo zoo`."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from scaledyolo.arch.cost import Cost
    from scaledyolo.arch.spec import ModelSpec


@dataclass(frozen=True)
class Zoo:
    """List every network of the family with its size, parameters and operations."""

    markdown: bool = False
    """Print the table of the README."""
    json: bool = False
    """Print the figures as JSON instead of text."""

    def run(self) -> int:
        if self.json:
            print(json.dumps([as_dict(spec, figures) for spec, figures in costs()], indent=1))
            return 0
        print("\n".join(markdown_table() if self.markdown else plain_table()))
        return 0


def costs() -> list[tuple[ModelSpec, Cost]]:
    """Every network with what it costs."""
    from scaledyolo.arch.cost import cost
    from scaledyolo.arch.lower import lower
    from scaledyolo.arch.zoo import ZOO

    return [(spec, cost(lower(spec))) for spec in ZOO.values()]


def as_dict(spec: ModelSpec, figures: Cost) -> dict[str, str | int | float]:
    """A row as plain values: input size in pixels, numbers of parameters, multiply-adds and boxes."""
    return {
        "name": spec.name,
        "size": spec.size,
        "params": figures.params,
        "macs": figures.macs,
        "gflops": figures.gflops,
        "boxes": figures.boxes,
    }


def rows() -> list[tuple[str, str, str, str, str]]:
    """Name, input size, parameters, GFLOP and boxes of every network, as text."""
    return [
        (spec.name, str(spec.size), f"{figures.params:,}", f"{figures.gflops:.3f}", f"{figures.boxes:,}")
        for spec, figures in costs()
    ]


def plain_table() -> list[str]:
    """The table for a terminal."""
    header = ("name", "size", "parameters", "GFLOP", "boxes")
    return [
        f"{name:<42}{size:>6}{params:>14}{gflop:>11}{boxes:>9}"
        for name, size, params, gflop, boxes in (header, *rows())
    ]


def markdown_table() -> list[str]:
    """The table for the README."""
    head = ["| network | input | parameters | GFLOP | boxes |", "| --- | ---: | ---: | ---: | ---: |"]
    return [*head, *(f"| `{name}` | " + " | ".join(rest) + " |" for name, *rest in rows())]
