"""What every input turns into: frames, and the sources that yield them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import PurePosixPath
from types import TracebackType
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from scaledyolo.closing import Closing

if TYPE_CHECKING:
    import numpy as np
    from typing_extensions import Self

    from scaledyolo.errors import SourceError

Origin = Literal["image", "video", "stream"]
SourceKind = Literal["image", "video", "stream", "files"]


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One picture of a source, or the reason why there is none: exactly one of ``image`` and ``error`` is set."""

    image: np.ndarray | None  # H x W x 3, uint8, RGB, writable and contiguous
    source: str  # path, URL or camera as the user would write it
    index: int = 0  # which frame of its source, from 0; of a live stream, dropped frames count too
    timestamp: float | None = None  # seconds since the first frame of the source; None for an image
    origin: Origin = "image"
    fps: float | None = None  # nominal rate of the source; None where there is none or it is unknown
    # Where the source lies below the folder, pattern or list that was opened; outputs mirror it.
    relative: PurePosixPath = field(default=PurePosixPath("frame"))
    error: SourceError | None = None

    def __post_init__(self) -> None:
        if (self.image is None) == (self.error is None):
            raise ValueError(f"a frame has either an image or an error, that of {self.source} has both or none")


# Makes one frame; raises SourceError where the source does.
Load = Callable[[], Frame]


@runtime_checkable
class FrameSource(Protocol):
    """Frames in order. Iterating starts from the beginning; a broken member of many is a frame with an ``error``,
    a broken single input raises SourceError. Closing (or leaving the ``with`` block) frees devices and threads.
    """

    kind: SourceKind

    @property
    def num_frames(self) -> int | None:
        """How many frames to expect, for a progress bar: exact for images, what the container claims for one video,
        None where nobody knows (streams, several videos)."""

    def __iter__(self) -> Iterator[Frame]: ...

    def loads(self) -> Iterator[Load]:
        """The same frames as calls that make them, to be called once each, in any thread and order: what is read from
        files of its own is read there; what is not (videos, streams) is read while iterating."""

    def close(self) -> None:
        """Stop and free everything; may be called twice."""

    def __enter__(self) -> Self: ...

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None: ...


class BaseSource(Closing):
    """What most sources share: they hold nothing between iterations, and their frames come one after the other."""

    def __iter__(self) -> Iterator[Frame]:
        raise NotImplementedError

    def loads(self) -> Iterator[Load]:
        """See :class:`FrameSource`; these frames are there already."""
        return (made(frame) for frame in self)

    def close(self) -> None:
        """Nothing to free: the iterator owns what it opens."""


def made(frame: Frame) -> Load:
    """A frame that is there already, as a call."""
    return partial(_itself, frame)


def _itself(frame: Frame) -> Frame:
    return frame
