"""Recorded video -> every frame, upright, with its time. Read by PyAV (FFmpeg).

PyAV rather than ``cv2.VideoCapture``: it gives presentation times (phones record at a variable rate), honours
the colour matrix of the file, says why a file cannot be read, and tells a damaged end from a proper one.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from scaledyolo.errors import SourceError
from scaledyolo.images import MAX_PIXELS, printable, reason_of, require_size
from scaledyolo.sources.frame import BaseSource, Frame, SourceKind
from scaledyolo.sources.remote import is_url, relative_of_url, without_password

if TYPE_CHECKING:
    from av.container import InputContainer
    from av.video.frame import VideoFrame
    from av.video.stream import VideoStream

# Seconds without data after which a network connection counts as dead; no effect on local files.
NETWORK_TIMEOUT_SECONDS = 10.0
_LARGEST_BLOCK = 128  # pixels that a codec may add to a side: the superblocks of AV1
_HARMLESS_PIXELS = (
    1 << 20
)  # that a decoder may allocate in any case; some need tens of thousands for the smallest video


class VideoFile(BaseSource):
    """All frames of one video file, or of one that lies on a web server."""

    kind: SourceKind = "video"

    def __init__(
        self,
        source: str | os.PathLike[str],
        *,
        relative: PurePosixPath | None = None,
        max_pixels: int = MAX_PIXELS,
    ) -> None:
        """Open nothing yet but check that the file can be opened and holds a video.

        Args:
            source: path, or http(s) URL.
            relative: where outputs put its results; by default its name.
            max_pixels: refuse larger pictures.

        Raises:
            SourceError: the file is missing, is no video, too large, or cannot be read.
        """
        self.location = os.fspath(source)
        remote = is_url(self.location)
        self.source = without_password(self.location) if remote else self.location
        self.name = printable(self.source)
        default = relative_of_url(self.location) if remote else PurePosixPath(Path(source).name)
        self.relative = relative or default
        self.max_pixels = max_pixels
        with open_container(self.location, self.name) as container:
            stream = video_stream(container, self.name, max_pixels)
            self.fps = rate_of(stream)
            self._num_frames = _expected_frames(container, stream, self.fps)

    @property
    def num_frames(self) -> int | None:
        """Frames that the container claims to hold, or an estimate from its duration; None when it says neither."""
        return self._num_frames

    def __iter__(self) -> Iterator[Frame]:
        """Yield every frame. Damaged parts are skipped, and reported by a last frame with an error.

        Raises:
            SourceError: not a single frame could be decoded.
        """
        count, first_time = 0, None
        damage = _Damage()
        with open_container(self.location, self.name) as container:
            stream = video_stream(container, self.name, self.max_pixels)
            stream.thread_type = "AUTO"
            for picture in _decode(container, stream, damage):
                if picture.width * picture.height > self.max_pixels:
                    damage.add(SourceError(f"more than {self.max_pixels / 1e6:g} million pixels"))
                    continue
                time = picture.time
                first_time = time if first_time is None else first_time
                yield Frame(
                    image=rgb_of(picture),
                    source=self.source,
                    index=count,
                    timestamp=None if time is None or first_time is None else float(time - first_time),
                    origin="video",
                    fps=self.fps,
                    relative=self.relative,
                )
                count += 1
        if count == 0:
            raise SourceError(f"{self.name} holds no frame that can be decoded{damage.explain()}")
        if damage.packets:
            yield Frame(
                image=None,
                source=self.source,
                index=count,
                origin="video",
                fps=self.fps,
                relative=self.relative,
                error=SourceError(f"{self.name} is damaged or cut off after {count} frames{damage.explain()}"),
            )


class _Damage:
    """Packets that could not be decoded, and what the decoder said about the last one."""

    def __init__(self) -> None:
        self.packets = 0
        self.reason = ""

    def add(self, error: BaseException) -> None:
        self.packets += 1
        self.reason = ffmpeg_reason(error)

    def explain(self) -> str:
        return f": {self.packets} packet(s) failed with {self.reason!r}" if self.packets else ""


def ffmpeg_reason(error: BaseException) -> str:
    """What FFmpeg says, without its number and the repeated path."""
    import av

    if isinstance(error, av.error.FFmpegError) and error.strerror:
        return error.strerror
    return reason_of(error)


def open_container(location: str, name: str, options: dict[str, str] | None = None) -> InputContainer:
    """Open a file or URL with FFmpeg; raises SourceError with FFmpeg's reason."""
    import av

    try:
        return av.open(location, "r", options=options or {}, timeout=NETWORK_TIMEOUT_SECONDS, metadata_errors="replace")
    except av.error.ExitError as error:
        raise SourceError(f"{name} did not answer within {NETWORK_TIMEOUT_SECONDS:g} seconds") from error
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise SourceError(f"{name} cannot be read as video: {ffmpeg_reason(error)}") from error


def video_stream(container: InputContainer, name: str, max_pixels: int = MAX_PIXELS) -> VideoStream:
    """The first moving picture of a container (cover art of music does not count).

    Raises:
        SourceError: there is none, or its pictures have more than ``max_pixels``.
    """
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            require_size(stream.width, stream.height, name, max_pixels, "scale it down or raise max_pixels")
            # Pictures may grow later: then the decoder refuses, before it allocates. It counts whole blocks and its own
            # smallest buffers.
            blocks = (stream.width + _LARGEST_BLOCK) * (stream.height + _LARGEST_BLOCK)
            limit = max(max_pixels, blocks, _HARMLESS_PIXELS)
            stream.codec_context.options = {**stream.codec_context.options, "max_pixels": str(limit)}
            return stream
    raise SourceError(f"{name} holds no video, only {', '.join({s.type for s in container.streams}) or 'nothing'}")


def rate_of(stream: VideoStream) -> float | None:
    """Frames per second that the container states, or None."""
    rate = stream.average_rate or stream.guessed_rate
    return float(rate) if rate else None


def rgb_of(picture: VideoFrame) -> np.ndarray:
    """H x W x 3 uint8 RGB, turned as the display matrix of the recording device asks."""
    image: np.ndarray = picture.to_ndarray(format="rgb24")
    quarter_turns = round(picture.rotation / 90) % 4
    return np.ascontiguousarray(np.rot90(image, quarter_turns)) if quarter_turns else image


def _expected_frames(container: InputContainer, stream: VideoStream, fps: float | None) -> int | None:
    if stream.frames:
        return int(stream.frames)
    if container.duration and fps:
        return max(1, round(container.duration / 1e6 * fps))  # FFmpeg counts containers in microseconds
    return None


def _decode(container: InputContainer, stream: VideoStream, damage: _Damage) -> Iterator[VideoFrame]:
    """Frames of a stream; packets that cannot be decoded are counted and skipped."""
    import av

    packets = container.demux(stream)
    while True:
        try:
            packet = next(packets, None)
        except (av.error.FFmpegError, OSError) as error:  # the file ends in the middle, or the connection broke
            damage.add(error)
            return
        if packet is None:
            return
        if packet.is_corrupt:  # the file ended inside it; decoders fill up what is missing without a word
            damage.add(SourceError("incomplete data"))
        try:
            pictures = packet.decode()
        except av.error.FFmpegError as error:
            damage.add(error)
            continue
        yield from pictures
