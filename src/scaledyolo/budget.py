"""A budget of time: what of a network fits it, in which order of preference, and when to change one's mind.

Everything here is arithmetic on numbers that are given; :mod:`scaledyolo.budgeted` measures and runs.

A network can be made cheaper in two ways, by a smaller input and by leaving out coarse pyramid levels (once-for-all,
paper section 5.5). The ladder orders what results as the paper's Figure 5 found it: the larger the input the better; at
high resolution the whole network is best, at middle resolution the one without its coarsest level, at low resolution
the one without two, so one level less for each halving of the input.
"""

from __future__ import annotations

import math
import re
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Final

from scaledyolo.arch.cost import cost
from scaledyolo.arch.graph import Graph
from scaledyolo.arch.subnet import cut_graph
from scaledyolo.errors import UsageError

SMALLEST_SHARE: Final = 1 / 4  # of the side of the input; below, hardly an object is left to see
CHEAPER: Final = 0.9  # a rung costs at most this share of the operations of the one above; finer steps are noise

_BUDGET: Final = re.compile(r"(\d+(?:\.\d+)?)\s*(ms|s|fps)?", re.IGNORECASE)


def budget_milliseconds(budget: str | float) -> float:
    """Milliseconds for each image of "15ms", "0.2s", "30fps" or "15", or of a number of milliseconds.

    Raises:
        UsageError: it is none of these, or not above zero.
    """
    if isinstance(budget, (int, float)):
        value, unit = float(budget), "ms"
    else:
        found = _BUDGET.fullmatch(budget.strip())
        if found is None:
            raise UsageError(f"{budget!r} is no budget; write it like 15ms, 0.2s or 30fps")
        value, unit = float(found[1]), (found[2] or "ms").lower()
    if not 0 < value < math.inf:
        raise UsageError(f"a budget must be above zero and finite, got {budget!r}")
    return {"ms": value, "s": 1e3 * value, "fps": 1e3 / value}[unit]


@dataclass(frozen=True, slots=True)
class Rung:
    """One way to run a network: a part of it at an input size."""

    subnet: str  # "" is the whole network
    height: int  # of the input in pixels
    width: int
    levels: int  # heads that are left
    gflops: float

    def __str__(self) -> str:
        return f"{self.subnet or 'the whole network'} at {self.height}x{self.width}"


def ladder(graph: Graph, height: int, width: int, subnets: Sequence[str] = ()) -> tuple[Rung, ...]:
    """Ways to run a network, the most preferred first, each cheaper than all before it.

    Args:
        graph: the whole network.
        height: of the largest input in pixels, a multiple of the largest stride; so is ``width``.
        subnets: names of subnets that may be used as well; see :func:`scaledyolo.arch.subnet.cut`.

    Raises:
        UsageError: there is no such subnet.
    """
    whole = len(graph.heads)
    rungs: list[tuple[tuple[float, ...], Rung]] = []
    for name in ("", *dict.fromkeys(subnets)):
        part = cut_graph(graph, name) if name else graph
        native = cost(part)
        for rows, columns in _sizes(height, width, part.max_stride):
            levels = len(part.heads)
            rung = Rung(name, rows, columns, levels, native.resized(rows, columns).gflops)
            wanted = whole - round(math.log2(max(height, width) / max(rows, columns)))
            approximate = "stage" in name
            order = (-rows * columns, abs(levels - max(wanted, 1)), approximate, -levels)
            rungs.append((order, rung))
    chosen: list[Rung] = []
    for _, rung in sorted(rungs, key=lambda item: item[0]):
        if not chosen or rung.gflops <= CHEAPER * chosen[-1].gflops:
            chosen.append(rung)
    return tuple(chosen)


def _sizes(height: int, width: int, stride: int) -> Iterator[tuple[int, int]]:
    """(height, width) of about the same aspect, both multiples of the stride, from the given size down."""
    longest = max(height, width)
    for side in range(longest // stride * stride, 0, -stride):
        if side < SMALLEST_SHARE * longest and side != longest // stride * stride:
            return
        yield (
            max(round(height * side / longest / stride), 1) * stride,
            max(round(width * side / longest / stride), 1) * stride,
        )


class Controller:
    """Which rung to run, from how long each image took.

    It starts on the best rung whose expected time is within the budget. From the moving median on the current rung it
    estimates by how much the machine is slower or faster than when it was measured. A median above the budget moves it
    down at once, to where the estimate fits; it moves up only after it stayed for ``hold`` images, and only where the
    estimate leaves a reserve. A climb that has to be taken back doubles the hold, up to ``LONGEST_HOLD`` times; one
    that lasts brings the first hold back. So it follows a machine that slows and recovers, and does not flap.

    Args:
        budget: milliseconds for an image.
        expected: milliseconds of each rung as measured, best rung first; at least one.
        window: images over which the median is taken.
        hold: images after a change before it may move up.
    """

    FEWEST = 5  # images before a median is believed
    RESERVE = 0.95  # share of the budget that a rung must fit to be moved to
    LONGEST_HOLD = 64

    def __init__(self, budget: float, expected: Sequence[float], *, window: int = 15, hold: int = 60) -> None:
        self.budget, self.expected = budget, tuple(expected)
        fitting = (index for index, value in enumerate(self.expected) if value <= budget)
        self.current = next(fitting, len(self.expected) - 1)
        self.changes = 0
        self._times: deque[float] = deque(maxlen=window)
        self._hold = self._first_hold = hold
        self._since = 0  # images since the last change
        self._climbed = False  # whether that change was a climb

    @property
    def median(self) -> float | None:
        """Milliseconds for an image on the current rung lately; None while too few were seen."""
        return median(self._times) if len(self._times) >= self.FEWEST else None

    def observe(self, milliseconds: float) -> int:
        """Count one image on the current rung; returns the rung for the next one."""
        self._since += 1
        if self._since == 1:
            return self.current  # the first image on a rung pays for what is new to it: shapes, caches
        self._times.append(milliseconds)
        middle = self.median
        if middle is None:
            return self.current
        if self._climbed and self._since > self._hold:
            self._climbed, self._hold = False, self._first_hold  # it lasted
        slowdown = middle / self.expected[self.current]
        if middle > self.budget:
            self._descend(slowdown)
        elif self._since > self._hold:
            self._climb(slowdown)
        return self.current

    def _descend(self, slowdown: float) -> None:
        last = len(self.expected) - 1
        if self.current == last:
            return
        if self._climbed:
            self._hold = min(2 * self._hold, self.LONGEST_HOLD * self._first_hold)
        below = range(self.current + 1, last + 1)
        self._move(next((index for index in below if self._fits(index, slowdown)), last))
        self._climbed = False

    def _climb(self, slowdown: float) -> None:
        better = next((index for index in range(self.current) if self._fits(index, slowdown)), None)
        if better is not None:
            self._move(better)
            self._climbed = True

    def _fits(self, index: int, slowdown: float) -> bool:
        return self.expected[index] * slowdown <= self.RESERVE * self.budget

    def _move(self, index: int) -> None:
        self.current = index
        self.changes += 1
        self._since = 0
        self._times.clear()
