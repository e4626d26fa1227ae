"""Figures of a timing by hand; the order of the rounds and the budget with a clock that we turn ourselves."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from scaledyolo.bench.timing import MIN_ROUNDS, Interrupted, Timing, interleaved, interleaved_samples
from scaledyolo.errors import UsageError


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


def test_a_timing_has_median_tail_and_spread() -> None:
    timing = Timing((30.0, 10.0, 20.0, 50.0, 40.0))
    assert timing.median_ms == 30
    assert timing.p95_ms == pytest.approx(48)  # a fifth of the way back from 50 to 40
    assert timing.noise == pytest.approx((40 - 20) / 30)
    assert Timing((7.0,)).p95_ms == 7


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


def test_ctrl_c_keeps_the_rounds_that_were_complete() -> None:
    calls: list[str] = []

    def run(name: str, ends: int) -> Callable[[], str]:
        def sample() -> str:
            calls.append(name)
            if len(calls) == ends:
                raise KeyboardInterrupt
            return name

        return sample

    measures = {name: run(name, 9) for name in "abc"}
    with pytest.raises(Interrupted) as caught:
        interleaved_samples(measures, rounds=5, warmup=1)
    assert "".join(calls) == "abc" + "abc" + "bca"  # the ninth call is the last of the second round
    assert caught.value.measured == {"a": ["a"], "b": ["b"], "c": ["c"]}
    calls.clear()
    with pytest.raises(Interrupted) as caught:
        interleaved_samples({name: run(name, 2) for name in "abc"}, warmup=1)
    assert caught.value.measured == {"a": [], "b": [], "c": []}
