"""From a budget to a network: cost all candidates, predict their times, measure the promising ones, take the best.

Nothing is chosen by prediction alone. Predictions only say which few of thousands of networks are worth a measurement;
where measurements disagree with them, the rest is corrected by what was found and searched again.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from scaledyolo.bench.timing import Timing
from scaledyolo.design.budget import Budget
from scaledyolo.design.calibrate import calibrated
from scaledyolo.design.candidates import Candidate, Range, enumerate_candidates, feature_matrix
from scaledyolo.design.capacity import COCO_BOXES, capacities
from scaledyolo.design.device import Device, DeviceFacts
from scaledyolo.design.latency import LatencyModel
from scaledyolo.design.store import Store
from scaledyolo.errors import UsageError, counted

if TYPE_CHECKING:
    from scaledyolo.design.refine import Refinement

Values = npt.NDArray[np.float64]
Tell = Callable[[str], None]

# Times, as shares of the budget, at which the most capable network by prediction is measured: close around the budget,
# and a few further off, for the front.
_FIRST_SHARES: Final = (0.35, 0.6, 0.8, 0.9, 0.96, 1.02, 1.1, 1.5)
_LATER_SHARES: Final = (0.9, 0.95, 1.0)
_ROUNDS: Final = 5
# Where operations, parameters or memory are limited: shares of the largest capacity that the fastest network must have.
_CAPACITY_SHARES: Final = (1.0, 0.99, 0.95, 0.9, 0.8, 0.65)
_ALIKE: Final = 0.01  # capacities that differ by less are the same, given what capacity is
_NEAR: Final = (0.7, 1.4)  # of the budget: measurements from here correct the predictions


@dataclass(frozen=True)
class Measured:
    """A network that was measured here, end to end."""

    candidate: Candidate
    capacity: float
    predicted_ms: float
    timing: Timing

    @property
    def median_ms(self) -> float:
        """Milliseconds of one image."""
        return self.timing.median_ms

    @property
    def upper_ms(self) -> float:
        """What three of four images stay below: the median and the noise on top."""
        return float(np.quantile(self.timing.samples_ms, 0.75))


@dataclass(frozen=True)
class Answer:
    """What was found."""

    budget: Budget
    device: DeviceFacts
    chosen: Measured
    front: tuple[Measured, ...]  # of those measured, fastest first: none is slower and no more capable than another
    measured: tuple[Measured, ...]  # fastest first
    table: Table  # everything that was predicted
    model: LatencyModel
    costing_seconds: float  # to enumerate and cost all candidates
    seconds: float  # altogether, without trainings
    refinement: Refinement | None = None  # where short trainings chose, or tried to

    @property
    def finalist_error(self) -> float:
        """Mean absolute relative error of the predictions of those measured."""
        return float(np.mean([abs(one.predicted_ms / one.median_ms - 1) for one in self.measured]))


@dataclass(frozen=True)
class Table:
    """All candidates with their capacity and, once the machine is known, their predicted time."""

    candidates: Sequence[Candidate]
    features: Values  # (n, features)
    capacity: Values  # (n,)
    predicted_ms: Values  # (n,)

    @classmethod
    def of(cls, wanted: Range, boxes: Values) -> Table:
        """Enumerate a range and cost every candidate; times are not known yet.

        Raises:
            ScaledYoloError: the range is none; see :func:`.candidates.enumerate_candidates`.
        """
        candidates = enumerate_candidates(wanted)
        return cls(
            candidates, feature_matrix(candidates), capacities(candidates, boxes), np.full(len(candidates), np.nan)
        )

    def timed(self, model: LatencyModel) -> Table:
        """The same with times."""
        return Table(self.candidates, self.features, self.capacity, model.predict(self.features))

    def best(self, allowed: npt.NDArray[np.bool_]) -> int | None:
        """The most capable of those allowed; of equals the fastest. None if none is allowed."""
        (rows,) = np.nonzero(allowed)
        if not len(rows):
            return None
        return int(rows[np.lexsort((self.predicted_ms[rows], -self.capacity[rows]))[0]])


def search(
    wanted: Range,
    budget: Budget,
    device: Device,
    store: Store,
    *,
    boxes: Values = COCO_BOXES,
    tell: Tell = lambda text: None,
) -> Answer:
    """The network for a budget on a device.

    Args:
        wanted: the networks to choose from.
        budget: what it may cost.
        device: what measures.
        store: what is known of the device already; learns.
        boxes: (n, 2) sizes of the objects to find, as shares of the side of the input.
        tell: is told what is being done.

    Raises:
        UsageError: no network of the range meets the budget (says what the least or fastest takes), or the range is
            none.
        SpecError: a spec given as base breaks a shape rule.
    """
    start = time.perf_counter()
    table = Table.of(wanted, boxes)
    costing = time.perf_counter() - start
    tell(f"{counted(len(table.candidates), 'network')} costed in {costing:.1f} s")
    allowed = _allowed(table, budget, device.facts)
    model = calibrated(device, store, tell)
    table = table.timed(model)
    jury = _Jury(table, device, store, tell)
    chosen = _within_time(table, budget, jury) if budget.kind == "latency" else _within_cost(table, allowed, jury)
    measured = sorted(jury.measured.values(), key=lambda one: (one.median_ms, -one.capacity))
    front = pareto([(one.median_ms, one.capacity) for one in measured])
    return Answer(
        budget=budget,
        device=device.facts,
        chosen=chosen,
        front=tuple(measured[index] for index in front),
        measured=tuple(measured),
        table=table,
        model=model,
        costing_seconds=costing,
        seconds=time.perf_counter() - start,
    )


def pareto(points: Sequence[tuple[float, float]]) -> list[int]:
    """Positions of the points (cost, value) that no other dominates, cheapest first; of equal points the first.

    One dominates another if it costs no more and is worth no less, and is better in one of the two.
    """
    order = sorted(range(len(points)), key=lambda index: (points[index][0], -points[index][1], index))
    front: list[int] = []
    for index in order:
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front


class _Jury:
    """Measures candidates, each once, and remembers."""

    def __init__(self, table: Table, device: Device, store: Store, tell: Tell) -> None:
        self._table, self._device, self._store, self._tell = table, device, store, tell
        self.measured: dict[int, Measured] = {}

    def hear(self, rows: Iterable[int | None]) -> None:
        """Measure the candidates of these rows that were not measured before."""
        new = sorted({row for row in rows if row is not None} - set(self.measured))
        specs = {row: self._table.candidates[row].spec() for row in new}
        unknown = [row for row in new if self._store.timing(specs[row]) is None]
        if len(unknown) < len(new):
            known = counted(len(new) - len(unknown), "network was", "networks were")
            self._tell(f"{known} measured here before; --refresh measures anew")
        if unknown:
            self._tell(f"measuring {counted(len(unknown), 'network')} end to end")
            timings = self._device.measure([self._table.candidates[row] for row in unknown])
            for row, timing in zip(unknown, timings, strict=True):
                self._store.remember(specs[row], timing)
        for row in new:
            timing_of_row = self._store.timing(specs[row])
            assert timing_of_row is not None
            self.measured[row] = Measured(
                self._table.candidates[row],
                float(self._table.capacity[row]),
                float(self._table.predicted_ms[row]),
                timing_of_row,
            )

    def best_within(self, limit_ms: float) -> Measured | None:
        """The most capable of those measured whose time, noise included, stays within a limit."""
        within = [one for one in self.measured.values() if one.upper_ms <= limit_ms]
        return max(within, key=lambda one: (one.capacity, -one.median_ms), default=None)

    def corrected_ms(self, limit_ms: float) -> Values:
        """(n,) predicted times, times what measurements near a limit took over theirs: the middle of each family's.

        A family of which none was measured there takes the middle of all.
        """
        low, high = (share * limit_ms for share in _NEAR)
        ratios: dict[str, list[float]] = {}
        for one in self.measured.values():
            if low <= one.median_ms <= high or low <= one.predicted_ms <= high:
                ratios.setdefault(one.candidate.network.family, []).append(one.median_ms / one.predicted_ms)
        everything = [ratio for family in ratios.values() for ratio in family]
        usual = median(everything) if everything else 1.0
        factors = {family: median(found) for family, found in ratios.items()}
        families = (candidate.network.family for candidate in self._table.candidates)
        corrected: Values = self._table.predicted_ms * np.array([factors.get(family, usual) for family in families])
        return corrected

    def unmeasured(self) -> npt.NDArray[np.bool_]:
        """(n,) which candidates were not measured."""
        mask = np.ones(len(self._table.candidates), bool)
        mask[list(self.measured)] = False
        return mask


def _within_time(table: Table, budget: Budget, jury: _Jury) -> Measured:
    """The most capable network whose measured time stays within the budget."""
    limit, predicted = budget.limit, table.predicted_ms
    fastest = int(np.argmin(predicted))
    if predicted[fastest] > limit:
        return _fastest(table, budget, jury)
    jury.hear(table.best(predicted <= share * limit) for share in _FIRST_SHARES)
    for _ in range(_ROUNDS - 1):
        corrected, unmeasured = jury.corrected_ms(limit), jury.unmeasured()
        hope, found = table.best((corrected <= limit) & unmeasured), jury.best_within(limit)
        if hope is None or (found is not None and table.capacity[hope] <= found.capacity * (1 + _ALIKE)):
            break
        jury.hear(table.best((corrected <= share * limit) & unmeasured) for share in _LATER_SHARES)
    return jury.best_within(limit) or _fastest(table, budget, jury)


def _fastest(table: Table, budget: Budget, jury: _Jury) -> Measured:
    """The network that is fastest by prediction, if measured it meets the budget after all.

    Raises:
        UsageError: it does not; says how fast it is.
    """
    jury.hear(np.argsort(table.predicted_ms, kind="stable")[:3].tolist())
    found = jury.best_within(budget.limit)
    if found is not None:
        return found
    fastest = min(jury.measured.values(), key=lambda one: one.median_ms)
    raise UsageError(
        f"no network of this range meets {budget}: the fastest of {len(table.candidates):,}, {fastest.candidate.name}, "
        f"takes {budget.show(fastest.median_ms)} here; allow more time or a smaller --size-range"
    )


def _within_cost(table: Table, allowed: npt.NDArray[np.bool_], jury: _Jury) -> Measured:
    """The fastest as measured of the most capable networks that are allowed."""
    most = float(table.capacity[allowed].max())
    times = np.where(allowed, table.predicted_ms, np.inf)
    jury.hear(int(np.argmin(np.where(table.capacity >= share * most, times, np.inf))) for share in _CAPACITY_SHARES)
    best = [one for one in jury.measured.values() if one.capacity >= most * (1 - _ALIKE)]
    return min(best, key=lambda one: (one.median_ms, -one.capacity))


def _allowed(table: Table, budget: Budget, facts: DeviceFacts) -> npt.NDArray[np.bool_]:
    """(n,) which candidates meet a budget that needs no measurement; all where it does.

    Raises:
        UsageError: none does; says what the least needs.
    """
    if budget.kind == "latency":
        return np.ones(len(table.candidates), bool)
    allowed = affordable(table.candidates, budget, facts)
    if not allowed.any():
        spent = [_spent(one, budget, _value_bytes(facts)) for one in table.candidates]
        least = int(np.argmin(spent))
        raise UsageError(
            f"no network of this range meets {budget}: the least of {len(table.candidates):,}, "
            f"{table.candidates[least].name}, needs {budget.show(spent[least])}"
        )
    return allowed


def affordable(candidates: Sequence[Candidate], budget: Budget, facts: DeviceFacts) -> npt.NDArray[np.bool_]:
    """(n,) which candidates meet a budget of operations, parameters or memory."""
    width = _value_bytes(facts)
    return np.array([_spent(one, budget, width) <= budget.limit for one in candidates])


def meets(one: Measured, budget: Budget, facts: DeviceFacts) -> bool:
    """Whether a network that was measured keeps a budget, noise included."""
    if budget.kind == "latency":
        return one.upper_ms <= budget.limit
    return _spent(one.candidate, budget, _value_bytes(facts)) <= budget.limit


def _value_bytes(facts: DeviceFacts) -> int:
    return 4 if facts.precision == "float32" else 2


def _spent(candidate: Candidate, budget: Budget, bytes_per_value: int) -> float:
    if budget.kind == "gflops":
        return candidate.gflops
    return candidate.params if budget.kind == "params" else candidate.inference_bytes(bytes_per_value)
