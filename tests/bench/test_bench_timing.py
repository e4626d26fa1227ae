"""Quantiles against NumPy; the order of the rounds and the budget with a clock that we turn ourselves."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaledyolo.bench.timing import MIN_ROUNDS, Timing, interleaved, quantile
from scaledyolo.errors import UsageError

milliseconds = st.lists(st.floats(1e-3, 1e5), min_size=1, max_size=60)


class FakeClock:
    """Stands still unless somebody works."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now

    def work(self, name: str, seconds: float, log: list[str]) -> Callable[[], None]:
        def run() -> None:
            log.append(name)
            self.now += seconds

        return run


@settings(deadline=None)
@given(milliseconds, st.floats(0, 1))
def test_quantiles_are_those_of_numpy(values: list[float], fraction: float) -> None:
    assert quantile(values, fraction) == pytest.approx(np.quantile(values, fraction), rel=1e-9)


@settings(deadline=None)
@given(milliseconds)
def test_a_timing_has_median_tail_and_spread(values: list[float]) -> None:
    timing = Timing(tuple(values))
    assert timing.median_ms == pytest.approx(np.median(values))
    assert timing.p95_ms == pytest.approx(np.percentile(values, 95))
    spread = np.subtract(*np.percentile(values, [75, 25])) / np.median(values)
    assert timing.noise == pytest.approx(spread, rel=1e-6, abs=1e-9)


def test_each_round_runs_every_candidate_once_in_rotating_order() -> None:
    clock, log = FakeClock(), []
    runs = {name: clock.work(name, 0.25 * step, log) for step, name in enumerate("abc", 1)}
    timings = interleaved(runs, rounds=4, warmup=1, clock=clock)
    assert "".join(log) == "abc" + "abc" + "bca" + "cab" + "abc"
    assert list(timings) == ["a", "b", "c"]
    assert timings["b"].samples_ms == (500.0,) * 4
    assert timings["c"].noise == 0


def test_a_budget_ends_the_rounds_but_not_before_three() -> None:
    clock, log = FakeClock(), []
    timings = interleaved({"slow": clock.work("slow", 10.0, log)}, rounds=30, warmup=5, seconds=1, clock=clock)
    assert len(timings["slow"].samples_ms) == MIN_ROUNDS
    assert len(log) == 1 + MIN_ROUNDS  # the warm-up keeps to the budget too
    clock, log = FakeClock(), []
    timings = interleaved({"quick": clock.work("quick", 1.0, log)}, rounds=30, warmup=0, seconds=7, clock=clock)
    assert len(timings["quick"].samples_ms) == 7


def test_the_budget_cuts_between_rounds_so_that_all_have_as_many_samples() -> None:
    clock, log = FakeClock(), []
    runs = {"a": clock.work("a", 1.0, log), "b": clock.work("b", 2.0, log)}
    timings = interleaved(runs, rounds=30, warmup=0, seconds=10, clock=clock)
    assert {len(timing.samples_ms) for timing in timings.values()} == {4}


def test_nothing_to_time_is_an_empty_answer() -> None:
    assert interleaved({}, rounds=2) == {}


@pytest.mark.parametrize(("rounds", "warmup"), [(0, 1), (-1, 1), (1, -1)])
def test_senseless_numbers_are_refused(rounds: int, warmup: int) -> None:
    with pytest.raises(UsageError, match="makes? no sense|measure nothing"):
        interleaved({"a": lambda: None}, rounds=rounds, warmup=warmup)
