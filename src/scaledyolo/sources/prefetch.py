"""Decode the next frames in a thread while the current one is being detected."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from types import TracebackType
from typing import TYPE_CHECKING, Generic, TypeVar

from scaledyolo.sources.frame import BaseSource

if TYPE_CHECKING:
    from typing_extensions import Self

T = TypeVar("T")


class Prefetch(Generic[T]):
    """Iterate over ``frames`` in a thread that stays at most ``depth`` items ahead.

    An exception of the source is raised in the consumer, after the items that came before it. Leaving the
    loop by any way (end, break, exception, Ctrl-C) or the ``with`` block stops the thread and closes the
    source's iterator.
    """

    def __init__(self, frames: Iterable[T], *, depth: int = 4) -> None:
        if depth < 1:
            raise ValueError(f"depth must be at least 1, got {depth}")
        self.frames = frames
        self.depth = depth
        self._running: list[_Producer[T]] = []

    def __iter__(self) -> Iterator[T]:
        producer = _Producer(self.frames, self.depth)
        self._running.append(producer)
        producer.thread.start()
        try:
            yield from producer.items()
        finally:
            producer.stop()
            self._running.remove(producer)

    def close(self) -> None:
        """Stop all threads that this object started."""
        for producer in tuple(self._running):
            producer.stop()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


class _Producer(Generic[T]):
    """One pass over the source: a bounded buffer, filled by a thread."""

    def __init__(self, frames: Iterable[T], depth: int) -> None:
        self._frames = frames
        self._depth = depth
        self._buffer: deque[T] = deque()
        self._condition = threading.Condition()
        self._failure: BaseException | None = None
        self._ended = False
        self._stopped = False
        self.thread = threading.Thread(target=self._run, name="scaledyolo-prefetch", daemon=True)

    def items(self) -> Iterator[T]:
        while True:
            with self._condition:
                self._condition.wait_for(lambda: self._buffer or self._ended or self._stopped)
                if self._stopped:
                    return
                if not self._buffer:
                    break
                item = self._buffer.popleft()
                self._condition.notify_all()
            yield item
        if self._failure is not None:
            raise self._failure

    def stop(self) -> None:
        """Ask the thread to end and wait for it; it finishes the item it is decoding."""
        with self._condition:
            self._stopped = True
            self._buffer.clear()
            self._condition.notify_all()
        if isinstance(self._frames, BaseSource) and self.thread.is_alive():
            self._frames.close()  # releases a thread that waits for a camera
        if self.thread is not threading.current_thread():
            self.thread.join()

    def _run(self) -> None:
        iterator: Iterator[T] = iter(())
        try:
            iterator = iter(self._frames)
            while self._wait_for_room():
                try:
                    item = next(iterator)
                except StopIteration:
                    break
                with self._condition:
                    self._buffer.append(item)
                    self._condition.notify_all()
        except BaseException as error:  # whatever it is, it belongs to the consumer
            self._failure = error
        finally:
            if isinstance(iterator, Generator):
                iterator.close()  # here, not by the garbage collector: a generator is closed where it runs
            with self._condition:
                self._ended = True
                self._condition.notify_all()

    def _wait_for_room(self) -> bool:
        """Block while the buffer is full; False when the consumer has left."""
        with self._condition:
            self._condition.wait_for(lambda: len(self._buffer) < self._depth or self._stopped)
            return not self._stopped
