"""The roof of a machine, and the stages of a network under it: what bounds each, and the least time it can take.

Williams, Waterman, Patterson, 2009: work with an arithmetic intensity of i FLOP for each byte runs at no more than
min(peak, i · bandwidth). Left of the ridge, at peak / bandwidth, memory is the bound; right of it, arithmetic.

The same :class:`Roof` judges the stages that `describe --roofline` costs and the layers that `bench --layers` times.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from scaledyolo.arch.groups import GroupCost
from scaledyolo.errors import UsageError

BYTES_PER_VALUE: Mapping[str, int] = {"float32": 4, "bfloat16": 2, "float16": 2, "int8": 1}


@dataclass(frozen=True, slots=True)
class Roof:
    """What a machine can do at most.

    Raises:
        UsageError: a machine that does nothing.
    """

    flops_per_s: float  # of a matrix product in the precision of the network
    bytes_per_s: float  # of a copy, read and written

    def __post_init__(self) -> None:
        if not (self.flops_per_s > 0 and self.bytes_per_s > 0):
            raise UsageError(
                f"a roof needs rates above zero, got {self.flops_per_s:g} FLOP/s and {self.bytes_per_s:g} B/s"
            )

    @property
    def gflops(self) -> float:
        """Giga floating-point operations a second."""
        return self.flops_per_s / 1e9

    @property
    def gigabytes(self) -> float:
        """Gigabytes a second."""
        return self.bytes_per_s / 1e9

    @property
    def ridge(self) -> float:
        """Arithmetic intensity in FLOP for each byte from which on arithmetic is the bound."""
        return self.flops_per_s / self.bytes_per_s

    def attainable(self, intensity: float) -> float:
        """The most floating-point operations a second at this intensity."""
        return min(self.flops_per_s, intensity * self.bytes_per_s)

    def least_ms(self, flops: float, num_bytes: float) -> float:
        """The time below which work cannot be done, in milliseconds."""
        return 1e3 * max(flops / self.flops_per_s, num_bytes / self.bytes_per_s)

    def memory_bound(self, flops: float, num_bytes: float) -> bool:
        """Whether moving the bytes takes longer than the arithmetic."""
        return num_bytes / self.bytes_per_s > flops / self.flops_per_s


@dataclass(frozen=True, slots=True)
class StageRoof:
    """One stage under the roof."""

    cost: GroupCost
    intensity: float  # FLOP for each byte in the precision of the roof
    attainable: float  # giga floating-point operations a second
    least_ms: float  # milliseconds for one image at the roof; what is not a convolution costs its traffic only
    memory_bound: bool
    measured_ms: float | None = None

    @property
    def achieved(self) -> float | None:
        """Giga floating-point operations a second that were measured."""
        return None if not self.measured_ms else 2 * self.cost.macs / 1e6 / self.measured_ms


def stage_roofs(
    costs: Sequence[GroupCost], roof: Roof, measured: Mapping[str, float] | None = None, *, precision: str = "float32"
) -> tuple[StageRoof, ...]:
    """Every stage under the roof of a machine.

    Args:
        costs: of the stages.
        roof: of the machine.
        measured: milliseconds of nodes by name; a stage has a time where any of its nodes has one.
        precision: in which the roof was measured; a key of :data:`BYTES_PER_VALUE`.
    """
    value_bytes = BYTES_PER_VALUE[precision]
    found = []
    for cost in costs:
        flops, num_bytes = 2 * cost.macs, value_bytes * cost.memory_access
        intensity = cost.intensity * BYTES_PER_VALUE["float32"] / value_bytes  # counted in float32
        found.append(
            StageRoof(
                cost=cost,
                intensity=intensity,
                attainable=roof.attainable(intensity) / 1e9,
                least_ms=roof.least_ms(flops, num_bytes),
                memory_bound=roof.memory_bound(flops, num_bytes),
                measured_ms=_time_of(cost, measured or {}),
            )
        )
    return tuple(found)


def _time_of(cost: GroupCost, measured: Mapping[str, float]) -> float | None:
    times = [measured[node.name] for node in cost.group.nodes if node.name in measured]
    return sum(times) if times else None
