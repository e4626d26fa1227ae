"""Time several candidates in turns, so that what disturbs the machine disturbs them alike.

A shared machine is now fast, now slow. Two candidates measured one after the other differ by that; measured in turns,
each round in another order, their ratio holds. Medians are compared because disturbances only ever add time.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, Final, TypeVar

import numpy as np

from scaledyolo.errors import UsageError

Key = TypeVar("Key")
Sample = TypeVar("Sample")

MIN_ROUNDS: Final = 3  # below it a median says nothing; a budget of seconds does not go below it either


class Interrupted(KeyboardInterrupt):
    """Somebody stopped a measurement (Ctrl-C).

    Args:
        measured: what had been measured until then; what it is, its raiser says.
    """

    def __init__(self, measured: Any) -> None:
        super().__init__()
        self.measured = measured


@dataclass(frozen=True, slots=True)
class Timing:
    """How long one candidate took, round by round."""

    samples_ms: tuple[float, ...]  # in the order of the rounds, never empty

    @property
    def median_ms(self) -> float:
        """The middle of the samples in milliseconds."""
        return float(np.median(self.samples_ms))

    @property
    def p95_ms(self) -> float:
        """What 95 % of the samples stay below, in milliseconds."""
        return float(np.quantile(self.samples_ms, 0.95))

    @property
    def noise(self) -> float:
        """Interquartile range over median: 0 on a quiet machine; above about 0.1 take differences with care."""
        low, median, high = np.quantile(self.samples_ms, (0.25, 0.5, 0.75)).tolist()
        return (high - low) / median if median else 0.0


def interleaved(
    runs: Mapping[Key, Callable[[], object]],
    *,
    rounds: int = 30,
    warmup: int = 3,
    seconds: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Key, Timing]:
    """Time every candidate once a round, in an order that rotates by one from round to round.

    Args:
        runs: candidates by name; each call is one sample.
        rounds: samples of each, at most.
        warmup: rounds before that are not counted: caches fill, memory is allocated, clocks rise.
        seconds: stop when the rounds have taken this long, but not before :data:`MIN_ROUNDS` of them; the warm-up may
            take as long again, at least one round. None: all rounds.
        clock: seconds since any moment.

    Returns:
        The timing of each candidate, in the order of ``runs``.

    Raises:
        UsageError: fewer than one round, or a negative warm-up.
    """

    def timed(run: Callable[[], object]) -> float:
        before = clock()
        run()
        return 1e3 * (clock() - before)

    measures = {name: partial(timed, run) for name, run in runs.items()}
    samples = interleaved_samples(measures, rounds=rounds, warmup=warmup, seconds=seconds, clock=clock)
    return {name: Timing(tuple(values)) for name, values in samples.items()}


def interleaved_samples(
    measures: Mapping[Key, Callable[[], Sample]],
    *,
    rounds: int = 30,
    warmup: int = 3,
    seconds: float | None = None,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[Key, list[Sample]]:
    """Like :func:`interleaved`, for candidates that measure themselves, in other processes for example.

    Returns:
        What the calls of each candidate returned, round by round, without the warm-up.

    Raises:
        UsageError: fewer than one round, or a negative warm-up.
        Interrupted: by Ctrl-C; has the samples of the rounds that were complete, as they would have been returned.
    """
    check_rounds(rounds, warmup)
    samples: dict[Key, list[Sample]] = {name: [] for name in measures}
    try:
        _warm_up(measures, warmup, seconds, clock)
        _take_rounds(measures, samples, rounds, seconds, clock)
    except KeyboardInterrupt:
        complete = min(map(len, samples.values()), default=0)
        raise Interrupted({name: values[:complete] for name, values in samples.items()}) from None
    return samples


def _warm_up(
    measures: Mapping[Key, Callable[[], object]], rounds: int, seconds: float | None, clock: Callable[[], float]
) -> None:
    start = clock()
    for done in range(rounds):
        if done and seconds is not None and clock() - start >= seconds:
            break
        for measure in measures.values():
            measure()


def _take_rounds(
    measures: Mapping[Key, Callable[[], Sample]],
    samples: Mapping[Key, list[Sample]],
    rounds: int,
    seconds: float | None,
    clock: Callable[[], float],
) -> None:
    names = list(measures)
    start = clock()
    for done in range(rounds):
        if done >= MIN_ROUNDS and seconds is not None and clock() - start >= seconds:
            break
        turn = done % max(len(names), 1)
        for name in names[turn:] + names[:turn]:
            samples[name].append(measures[name]())


def check_rounds(rounds: int, warmup: int) -> None:
    """Refuse numbers of rounds that make no sense.

    Raises:
        UsageError: fewer than one round, or a negative warm-up.
    """
    if rounds < 1:
        raise UsageError(f"{rounds} rounds measure nothing; use {MIN_ROUNDS} or more")
    if warmup < 0:
        raise UsageError(f"a warm-up of {warmup} rounds makes no sense; use 0 or more")
