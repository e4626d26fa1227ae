"""Work on items in several threads, with the results in the order of the items.

The threads take the items from their source themselves, one thread at a time, so that what is sequential (a video) and
what is not (reading and decoding a file, detecting in it) needs no thread of its own: every lane carries one item from
its beginning to its end. How far the lanes may be ahead of whoever fetches the results is bounded, and so is memory.
"""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass
from typing import Generic, TypeVar

from scaledyolo.closing import Closing
from scaledyolo.sources.frame import BaseSource

T = TypeVar("T")
R = TypeVar("R")


class Lanes(Closing, Generic[T, R]):
    """Iterate over ``work(item)`` of every item, done in threads that stay at most ``depth`` items ahead.

    An exception of the source or of the work is raised in the consumer, after the results that came before it. Leaving
    the loop by any way (end, break, exception, Ctrl-C) or the ``with`` block stops the threads, each of which finishes
    the item that it has in hand, and closes the source's iterator.

    Args:
        work: called in the threads, for several items at once.
        items: the source; a generator is only ever run by one thread at a time.
        lanes: number of threads.
        depth: items that may be under way or waiting to be fetched.
    """

    def __init__(self, work: Callable[[T], R], items: Iterable[T], *, lanes: int = 1, depth: int = 4) -> None:
        if lanes < 1:
            raise ValueError(f"lanes must be at least 1, got {lanes}")
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        self.work = work
        self.items = items
        self.lanes = lanes
        self.depth = depth
        self._running: list[_Run[T, R]] = []

    def __iter__(self) -> Iterator[R]:
        run = _Run(self.work, self.items, self.lanes, self.depth)
        self._running.append(run)
        run.start()
        try:
            yield from run.results()
        finally:
            run.stop()
            self._running.remove(run)

    def close(self) -> None:
        """Stop all threads that this object started."""
        for run in tuple(self._running):
            run.stop()


@dataclass(frozen=True, slots=True)
class _Outcome(Generic[R]):
    """What became of an item."""

    result: R | None = None
    failure: BaseException | None = None


class _Run(Generic[T, R]):
    """One pass over the items."""

    def __init__(self, work: Callable[[T], R], items: Iterable[T], lanes: int, depth: int) -> None:
        self._work = work
        self._items = items
        self._iterator: Iterator[T] | None = None
        self._source = threading.Lock()  # held while the source makes an item
        self._taken = 0  # items that the source gave; guarded by it
        self._condition = threading.Condition()  # guards everything below
        self._outcomes: dict[int, _Outcome[R]] = {}
        self._room = depth
        self._last = False  # no further item is to be taken
        self._stopped = False
        self._open_lanes = lanes
        self._ended = False
        self._threads = [
            threading.Thread(target=self._lane, name=f"scaledyolo-lane-{number}", daemon=True)
            for number in range(lanes)
        ]

    def start(self) -> None:
        for thread in self._threads:
            thread.start()

    def results(self) -> Iterator[R]:
        for number in itertools.count():
            with self._condition:
                self._condition.wait_for(lambda: number in self._outcomes or self._ended or self._stopped)  # noqa: B023
                outcome = self._outcomes.pop(number, None)
                if outcome is None or self._stopped:
                    return
                self._room += 1
                self._condition.notify_all()
            if outcome.failure is not None:
                raise outcome.failure
            yield outcome.result  # type: ignore[misc]

    def stop(self) -> None:
        """Ask the threads to end and wait for them."""
        with self._condition:
            self._stopped = self._last = True
            self._outcomes.clear()
            self._condition.notify_all()
        if isinstance(self._items, BaseSource) and any(thread.is_alive() for thread in self._threads):
            self._items.close()  # releases a thread that waits for a camera
        for thread in self._threads:
            if thread is not threading.current_thread():
                thread.join()

    # -- in the threads ----------------------------------------------------------------------------------------------

    def _lane(self) -> None:
        while (taken := self._take()) is not None:
            number, item = taken
            try:
                outcome = _Outcome(self._work(item))
            except BaseException as error:  # whatever it is, it belongs to the consumer
                outcome = _Outcome(failure=error)
            del item, taken
            self._finish(number, outcome)
        with self._condition:
            self._open_lanes -= 1
            if self._open_lanes:
                return
        try:
            if isinstance(self._iterator, Generator):
                self._iterator.close()  # here, not by the garbage collector: a generator is closed where it runs
        finally:
            with self._condition:
                self._ended = True
                self._condition.notify_all()

    def _take(self) -> tuple[int, T] | None:
        """The next item and its number; None when there is none, or when the consumer has left."""
        with self._condition:
            self._condition.wait_for(lambda: self._room > 0 or self._last)
            if self._last:
                return None
            self._room -= 1
        with self._source:
            if self._last:
                return None
            number = self._taken
            self._taken += 1
            try:
                if self._iterator is None:
                    self._iterator = iter(self._items)
                return number, next(self._iterator)
            except StopIteration:
                self._finish(None, None)
            except BaseException as error:  # as above
                self._finish(number, _Outcome(failure=error))
        return None

    def _finish(self, number: int | None, outcome: _Outcome[R] | None) -> None:
        """Hand over what became of an item, or that there is none; a failure is the last thing that is fetched."""
        with self._condition:
            if outcome is None or outcome.failure is not None:
                self._last = True
            if number is not None and outcome is not None and not self._stopped:
                self._outcomes[number] = outcome
            self._condition.notify_all()
