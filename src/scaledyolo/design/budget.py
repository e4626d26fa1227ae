"""What a network may cost: one limit, of time, operations, parameters or memory."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, Literal

from scaledyolo.arch.memory import parse_bytes
from scaledyolo.budget import budget_milliseconds
from scaledyolo.errors import UsageError

Kind = Literal["latency", "gflops", "params", "memory"]

_COUNT: Final = re.compile(r"\s*(\d+(?:\.\d+)?)\s*([kmg]?)\s*")
_THOUSANDS: Final[Mapping[str, int]] = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9}


@dataclass(frozen=True, slots=True)
class Budget:
    """A limit: milliseconds for one image, GFLOP for one image, learned values, or bytes of weights and live maps."""

    kind: Kind
    limit: float

    def __post_init__(self) -> None:
        if not 0 < self.limit < float("inf"):
            raise UsageError(f"a budget must be above zero, got {self.limit:g} for {self.kind}")

    def show(self, value: float) -> str:
        """A value of this kind with its unit."""
        if self.kind == "latency":
            return f"{value:.1f} ms ({1e3 / value:.1f} frames a second)"
        if self.kind == "gflops":
            return f"{value:.2f} GFLOP"
        return f"{value / 1e6:.2f} million parameters" if self.kind == "params" else f"{value / 2**20:.1f} MiB"

    def __str__(self) -> str:
        return self.show(self.limit)


def parse_budget(
    *,
    fps: float | None = None,
    latency: str | None = None,
    gflops: float | None = None,
    params: str | None = None,
    memory: str | None = None,
) -> Budget:
    """The one budget among what a user gave: frames a second, "20ms", GFLOP, "5M" parameters, or "64M" of memory.

    Raises:
        UsageError: none or several were given, or one makes no sense.
    """
    options = {"fps": fps, "latency": latency, "gflops": gflops, "params": params, "memory": memory}
    given = [f"--{name}" for name, value in options.items() if value is not None]
    if len(given) != 1:
        found = f"got {' and '.join(given)}" if given else "none was given"
        raise UsageError(f"give one budget: --fps, --latency, --gflops, --params or --memory; {found}")
    if fps is not None:
        return Budget("latency", 1e3 / fps if fps > 0 else fps)
    if latency is not None:
        return Budget("latency", budget_milliseconds(latency))
    if gflops is not None:
        return Budget("gflops", gflops)
    if params is not None:
        return Budget("params", _count(params))
    assert memory is not None
    return Budget("memory", parse_bytes(memory))


def _count(text: str) -> float:
    found = _COUNT.fullmatch(text.lower())
    if not found:
        raise UsageError(f"--params {text!r} is no number; write it like 5M or 800k")
    return float(found[1]) * _THOUSANDS[found[2]]
