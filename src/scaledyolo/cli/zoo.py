"""`scaledyolo zoo`."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Zoo:
    """List every network of the family with its size, parameters and operations."""

    markdown: bool = False
    """Print the table of the README."""

    def run(self) -> int:
        print("\n".join(markdown_table() if self.markdown else plain_table()))
        return 0


def rows() -> list[tuple[str, str, str, str, str]]:
    """Name, input size, parameters, GFLOP and boxes of every network, as text."""
    from scaledyolo.arch.cost import cost
    from scaledyolo.arch.lower import lower
    from scaledyolo.arch.zoo import ZOO

    found = []
    for spec in ZOO.values():
        figures = cost(lower(spec))
        found.append((spec.name, str(spec.size), f"{figures.params:,}", f"{figures.gflops:.3f}", f"{figures.boxes:,}"))
    return found


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
