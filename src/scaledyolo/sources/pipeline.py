"""Frames of a source, each with what a function finds in it: in order, overlapped as far as the mode allows.

latency      one batch at a time with all cores; files are read and decoded ahead in a thread, a camera is not: its
             newest picture is fetched when the last one is done
throughput   several batches at a time, each carried by one thread from reading to the result
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from typing import TYPE_CHECKING, Final, Literal, TypeVar, get_args

from scaledyolo.errors import SourceError, UsageError, nearest
from scaledyolo.sources.frame import Frame, FrameSource, Load, SourceKind
from scaledyolo.sources.lanes import Lanes

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")
R = TypeVar("R")
Mode = Literal["auto", "latency", "throughput"]

_READ_AHEAD: Final = 4  # batches


def settle_mode(mode: str, kind: SourceKind) -> Literal["latency", "throughput"]:
    """What ``auto`` means for a source: throughput where frames wait to be read, latency where they come as they come.

    Raises:
        UsageError: an unknown mode.
    """
    if mode not in get_args(Mode):
        known = get_args(Mode)
        raise UsageError(f"there is no mode {mode!r}; known are {', '.join(known)}.{nearest(mode, known)}")
    if mode == "auto":
        return "throughput" if kind in ("files", "video") else "latency"
    return "throughput" if mode == "throughput" else "latency"


def frames_with_results(
    source: FrameSource, detect: Callable[[list[np.ndarray]], Sequence[R]], *, batch: int = 1, lanes: int = 0
) -> Generator[tuple[Frame, R | None], None, None]:
    """Every frame with the result of ``detect``.

    Args:
        source: where the frames come from.
        detect: from images (height, width, 3) uint8 RGB to one result each; called from several threads at once where
            there are several lanes.
        batch: frames that are given to ``detect`` at once.
        lanes: threads that read and detect, for throughput; 0: detect in the calling thread, for latency.

    Yields:
        (frame, result) in the order of the source; None for a frame that could not be read. Closing the iterator stops
        all threads.

    Raises:
        SourceError: the source cannot be read (a broken member of many is a frame with an error instead).
    """
    groups = _grouped(source.loads(), batch)

    def look(frames: list[Frame]) -> list[tuple[Frame, R | None]]:
        images = [frame.image for frame in frames if frame.image is not None]
        found = iter(detect(images) if images else ())
        return [(frame, None if frame.image is None else next(found)) for frame in frames]

    if lanes:
        with Lanes(lambda group: look(_loaded(group)), groups, lanes=lanes, depth=2 * lanes) as looked:
            iterator = iter(looked)  # kept, so that leaving the loop does not stop the lanes before the camera
            try:
                for results in iterator:
                    yield from results
            finally:
                if source.kind == "stream":
                    source.close()  # releases a lane that waits for a picture
    elif source.kind == "stream":
        with closing(groups):
            for group in groups:
                yield from look(_loaded(group))
    else:
        with Lanes(_loaded, groups, depth=_READ_AHEAD) as read:
            for frames in read:
                yield from look(frames)


def _loaded(group: Sequence[Load]) -> list[Frame]:
    return [load() for load in group]


def _grouped(items: Iterator[T], count: int) -> Generator[list[T], None, None]:
    """Items in runs of ``count``, the last one shorter; what a source gave before it failed is not lost."""
    group: list[T] = []
    try:
        for item in items:
            group.append(item)
            if len(group) == count:
                yield group
                group = []
    except SourceError:
        if group:
            yield group
        raise
    if group:
        yield group
