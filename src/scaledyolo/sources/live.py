"""Cameras and network streams: always the newest frame, however slow the consumer is.

A thread reads as fast as the device delivers and keeps one picture; what the consumer does not fetch in time
is replaced and counted as dropped. Detections therefore lag behind reality by one inference, not by an ever
growing queue.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import TYPE_CHECKING, Protocol

import numpy as np

from scaledyolo.errors import SourceError
from scaledyolo.images import MAX_PIXELS
from scaledyolo.sources.frame import BaseSource, Frame, SourceKind
from scaledyolo.sources.remote import relative_of_url, without_password
from scaledyolo.sources.video import ffmpeg_reason, open_container, rate_of, rgb_of, video_stream

if TYPE_CHECKING:
    from av.video.frame import VideoFrame

# How long closing waits for a reader that is blocked in the device; its thread is a daemon and ends by its own timeout.
_JOIN_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Reconnect:
    """What to do when a stream breaks or ends. The default is to stop."""

    attempts: int = 0  # consecutive failures to accept; 0: do not reconnect
    first_wait_seconds: float = 1.0
    longest_wait_seconds: float = 30.0

    def wait_seconds(self, attempt: int) -> float:
        """Pause before attempt 0, 1, ...: doubles each time."""
        return min(self.first_wait_seconds * 2.0 ** min(attempt, 60), self.longest_wait_seconds)


class Feed(Protocol):
    """An open device. ``read`` blocks for the next picture and returns the function that converts it to
    H x W x 3 uint8 RGB (dropped pictures are never converted), or None at the end; it raises SourceError on failure."""

    fps: float | None

    def read(self) -> Callable[[], np.ndarray] | None: ...

    def close(self) -> None: ...


class NetworkFeed:
    """A stream that FFmpeg understands: RTSP, RTMP, SRT, HTTP (MJPEG, HLS, ...)."""

    def __init__(self, url: str, *, max_pixels: int = MAX_PIXELS) -> None:
        self.name = without_password(url)
        # Over UDP, RTSP cameras lose packets and show smeared pictures; over TCP they do not.
        options = {"rtsp_transport": "tcp"} if url.lower().startswith("rtsp") else {}
        self._container = open_container(url, self.name, options)
        try:
            stream = video_stream(self._container, self.name, max_pixels)
        except SourceError:
            self._container.close()
            raise
        self.fps = rate_of(stream)
        self._packets = self._container.demux(stream)
        self._pictures = self._decode()

    def read(self) -> Callable[[], np.ndarray] | None:
        picture = next(self._pictures, None)
        return None if picture is None else lambda: rgb_of(picture)

    def _decode(self) -> Generator[VideoFrame, None, None]:
        import av

        while True:
            try:
                packet = next(self._packets, None)
            except (av.error.FFmpegError, OSError) as error:
                raise SourceError(f"{self.name} broke off: {ffmpeg_reason(error)}") from error
            if packet is None:
                return
            try:
                yield from packet.decode()
            except av.error.FFmpegError:
                continue  # joining in the middle of a group of pictures is normal: wait for the next key frame

    def close(self) -> None:
        self._pictures.close()
        self._container.close()


class CameraFeed:
    """A camera of this machine by number, through OpenCV (FFmpeg numbers devices differently on every system)."""

    def __init__(self, index: int) -> None:
        import cv2

        self.name = f"camera {index}"
        level = cv2.utils.logging.getLogLevel()
        # The failure is reported by the sentence below.
        cv2.utils.logging.setLogLevel(cv2.utils.logging.LOG_LEVEL_SILENT)
        try:
            self._capture = cv2.VideoCapture(index)
        finally:
            cv2.utils.logging.setLogLevel(level)
        if not self._capture.isOpened():
            self._capture.release()
            raise SourceError(f"{self.name} cannot be opened: it is not connected, is in use, or may not be accessed")
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        self.fps = float(rate) if rate > 0 else None

    def read(self) -> Callable[[], np.ndarray] | None:
        import cv2

        good, image = self._capture.read()
        if not good:
            raise SourceError(f"{self.name} stopped delivering pictures")
        return lambda: cv2.cvtColor(image, cv2.COLOR_BGR2RGB)

    def close(self) -> None:
        self._capture.release()


class LiveStream(BaseSource):
    """The newest frames of a camera or stream, until it ends, breaks, or is closed."""

    kind: SourceKind = "stream"
    num_frames = None

    def __init__(
        self,
        name: str,
        open_feed: Callable[[], Feed],
        *,
        relative: PurePosixPath,
        reconnect: Reconnect | None = None,
    ) -> None:
        """Nothing is opened before iteration starts.

        Args:
            name: what frames carry as their source.
            open_feed: opens the device; called again for every reconnection. Raises SourceError.
            relative: where outputs put its results.
            reconnect: by default, none.
        """
        self.name = name
        self.relative = relative
        self.reconnect = reconnect or Reconnect()
        self.dropped = 0  # frames that were replaced before anyone fetched them
        self.reconnections = 0
        self._open_feed = open_feed
        self._readers: list[_Reader] = []

    @classmethod
    def from_url(cls, url: str, *, reconnect: Reconnect | None = None, max_pixels: int = MAX_PIXELS) -> LiveStream:
        """Stream of a URL; one with pictures of more than ``max_pixels`` is refused when it is opened."""
        return cls(
            without_password(url),
            lambda: NetworkFeed(url, max_pixels=max_pixels),
            relative=relative_of_url(url),
            reconnect=reconnect,
        )

    @classmethod
    def from_camera(cls, index: int, *, reconnect: Reconnect | None = None) -> LiveStream:
        """Camera by number."""
        return cls(
            f"camera {index}",
            lambda: CameraFeed(index),
            relative=PurePosixPath(f"camera{index}"),
            reconnect=reconnect,
        )

    def __iter__(self) -> Iterator[Frame]:
        """Connect and yield the newest frame each time.

        Raises:
            SourceError: the stream cannot be opened, or broke and could not be opened again.
        """
        reader = _Reader(self._open_feed, self.reconnect)
        reader.start()
        self._readers.append(reader)
        try:
            while (picture := reader.newest()) is not None:
                self.dropped += picture.dropped
                self.reconnections = reader.reconnections
                yield Frame(
                    image=picture.convert(),
                    source=self.name,
                    index=picture.index,
                    timestamp=picture.seconds,
                    origin="stream",
                    fps=reader.fps,
                    relative=self.relative,
                )
        finally:
            reader.stop()
            self._readers.remove(reader)

    def close(self) -> None:
        """Stop reading; a consumer that waits for a frame in another thread is released."""
        for reader in tuple(self._readers):
            reader.stop()


@dataclass(frozen=True, slots=True)
class _Picture:
    convert: Callable[[], np.ndarray]
    index: int  # counts every picture that the device delivered
    seconds: float  # arrival, since the first picture
    dropped: int  # pictures that this one replaced


class _Reader:
    """The thread that owns the device, and the slot for one picture."""

    def __init__(self, open_feed: Callable[[], Feed], reconnect: Reconnect) -> None:
        self.fps: float | None = None
        self.reconnections = 0
        self._open_feed = open_feed
        self._reconnect = reconnect
        self._condition = threading.Condition()
        self._slot: _Picture | None = None
        self._failure: BaseException | None = None
        self._ended = False
        self._stop = threading.Event()
        self._count = 0
        self._started = 0.0
        self._thread = threading.Thread(target=self._run, name="scaledyolo-stream", daemon=True)

    def start(self) -> None:
        """Open the device here, so that a failure is raised at once, then read in the thread."""
        feed = self._open_feed()
        self.fps = feed.fps
        self._feed: Feed | None = feed
        self._thread.start()

    def newest(self) -> _Picture | None:
        """Wait for a picture that was not fetched yet; None at the end; raises what ended it."""
        with self._condition:
            self._condition.wait_for(lambda: self._slot is not None or self._ended or self._stop.is_set())
            picture, self._slot = self._slot, None
            if picture is None and self._failure is not None:
                raise self._failure
            return None if self._stop.is_set() else picture

    def stop(self) -> None:
        self._stop.set()
        with self._condition:
            self._condition.notify_all()
        if self._thread.is_alive() and self._thread is not threading.current_thread():
            self._thread.join(_JOIN_SECONDS)

    def _run(self) -> None:
        failure: BaseException | None = None
        try:
            failure = self._read_and_reconnect()
        except BaseException as error:  # whatever it is, it belongs to the consumer, who would wait forever
            failure = error
        with self._condition:
            self._failure = failure
            self._ended = True
            self._condition.notify_all()

    def _read_and_reconnect(self) -> SourceError | None:
        """Read until the end, or until opening again failed too often; returns the last failure."""
        failures = 0
        failure: SourceError | None = None
        while not self._stop.is_set():
            feed, self._feed = self._feed, None
            count_before, failure = self._count, None
            try:
                feed = feed or self._open_again()
                self._drain(feed)
            except SourceError as error:
                failure = error
            finally:
                if feed is not None:
                    feed.close()
            failures = 0 if self._count > count_before else failures + 1
            if failures > self._reconnect.attempts or self._reconnect.attempts == 0:
                break
            self._stop.wait(self._reconnect.wait_seconds(max(failures - 1, 0)))
        return failure

    def _open_again(self) -> Feed:
        feed = self._open_feed()
        self.reconnections += 1
        return feed

    def _drain(self, feed: Feed) -> None:
        """Read until the end."""
        while not self._stop.is_set() and (convert := feed.read()) is not None:
            self._put(convert)

    def _put(self, convert: Callable[[], np.ndarray]) -> None:
        now = time.monotonic()
        self._started = self._started if self._count else now
        with self._condition:
            dropped = 0 if self._slot is None else self._slot.dropped + 1
            self._slot = _Picture(convert, self._count, now - self._started, dropped)
            self._count += 1
            self._condition.notify_all()
