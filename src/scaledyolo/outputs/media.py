"""Detections as pictures: annotated images and videos, and crops."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

import numpy as np

from scaledyolo.errors import OutputError
from scaledyolo.files import output_errors
from scaledyolo.outputs.annotate import Annotator
from scaledyolo.outputs.files import safe_name, write_whole
from scaledyolo.outputs.records import image_of, records_of
from scaledyolo.outputs.text import frame_place
from scaledyolo.sources.frame import Frame

if TYPE_CHECKING:
    from av.video.stream import VideoStream
    from supervision import Detections

_JPEG_QUALITY = 92
# Longest side that each format can store.
_LONGEST_SIDE = {".jpg": 65500, ".webp": 16383, ".png": 1_000_000}
_DEFAULT_FPS = 25.0
# MPEG's clock; every usual frame rate is close to a whole number of its ticks.
_CLOCK = 90_000
# Best first; the second is in every FFmpeg.
_VIDEO_CODECS = ("libx264", "mpeg4")


class Annotated:
    """``annotated/``: images in the format of their source, and one MP4 for every video or stream."""

    def __init__(self, folder: Path, annotator: Annotator | None = None) -> None:
        self._folder = folder / "annotated"
        self._annotator = annotator or Annotator()
        self._videos: dict[PurePosixPath, VideoEncoder] = {}
        self._recorded: PurePosixPath | None = None  # the one of them that is a file and ends with its last frame

    def write(self, frame: Frame, detections: Detections, place: PurePosixPath) -> None:
        picture = self._annotator.draw(image_of(frame), detections)
        if frame.origin == "image":
            suffix, content = encode_image(picture, frame.relative.suffix)
            path = self._folder / place
            write_whole(path.with_name(path.name + suffix), content)
        else:
            self._encoder(frame, place, picture).add(picture, frame.timestamp)

    def close(self) -> None:
        """Finish all videos, even when one of them fails."""
        with contextlib.ExitStack() as stack:
            for encoder in self._videos.values():
                stack.callback(encoder.close)
            self._videos, self._recorded = {}, None

    def _encoder(self, frame: Frame, place: PurePosixPath, picture: np.ndarray) -> VideoEncoder:
        """The open file of this video; a recorded video ends when the next one begins, streams run side by side."""
        if place not in self._videos:
            if frame.origin == "video":
                if self._recorded is not None:
                    self._videos.pop(self._recorded).close()
                self._recorded = place
            path = self._folder / place
            path = path if path.suffix.lower() == ".mp4" else path.with_name(path.name + ".mp4")
            self._videos[place] = VideoEncoder(path, picture.shape[:2], frame.fps)
        encoder = self._videos[place]
        if encoder.size != picture.shape[:2]:  # a camera that changed its resolution: the file cannot
            encoder.close()
            path = encoder.path.with_name(f"{safe_name(place.name)}-from-{frame.index:06d}.mp4")
            encoder = self._videos[place] = VideoEncoder(path, picture.shape[:2], frame.fps)
        return encoder


class Crops:
    """``crops/``: every detection as an image, in a folder for its class, below it the folders of the source."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder / "crops"

    def write(self, frame: Frame, detections: Detections, place: PurePosixPath) -> None:
        image = image_of(frame)
        height, width = image.shape[:2]
        for number, record in enumerate(records_of(detections)):
            x1, y1, x2, y2 = record.xyxy
            left, top = max(0, math.floor(x1)), max(0, math.floor(y1))
            right, bottom = min(width, math.ceil(x2)), min(height, math.ceil(y2))
            if left >= right or top >= bottom:
                continue
            suffix, content = encode_image(image[top:bottom, left:right], frame.relative.suffix)
            path = self._folder / safe_name(record.class_name) / frame_place(frame, place)
            write_whole(path.with_name(f"{path.name}-{number}{suffix}"), content)

    def close(self) -> None:
        """Every file is finished already."""


def encode_image(image: np.ndarray, source_suffix: str) -> tuple[str, bytes]:
    """Encode in the format of the source if that is PNG or WebP, else JPEG; PNG for sides that the format cannot hold.

    Args:
        image: H x W x 3, uint8, RGB.
        source_suffix: suffix of the file that the image came from.

    Returns:
        Suffix and content of the new file.
    """
    import cv2

    suffix = source_suffix.lower() if source_suffix.lower() in (".png", ".webp") else ".jpg"
    if max(image.shape[:2]) > _LONGEST_SIDE[suffix]:
        suffix = ".png"
    options = {
        ".jpg": [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY],
        ".webp": [cv2.IMWRITE_WEBP_QUALITY, _JPEG_QUALITY],
        ".png": [],
    }
    good, content = cv2.imencode(suffix, np.ascontiguousarray(image[:, :, ::-1]), options[suffix])
    if not good:
        raise OutputError(f"an image of {image.shape[1]} x {image.shape[0]} pixels cannot be stored as {suffix}")
    return suffix, content.tobytes()


class VideoEncoder:
    """One H.264 file that keeps the times of its source.

    The MP4 is fragmented: it can be played up to the last complete fragment (about a second) however the run ended.
    """

    def __init__(self, path: Path, size: tuple[int, int], fps: float | None) -> None:
        """Create the file, which must not exist.

        Args:
            path: of the ``.mp4``.
            size: height and width of every picture.
            fps: nominal rate; 25 when unknown.
        """
        import av

        self.path = path
        self.size = size
        self._fps = Fraction(fps or _DEFAULT_FPS).limit_denominator(1001)
        self._last_tick = -1
        self._count = 0
        height, width = size
        with output_errors(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.touch(exist_ok=False)
            # Without flush_packets, FFmpeg keeps even complete fragments in its own buffer.
            options = {"movflags": "frag_keyframe+empty_moov+default_base_moof", "flush_packets": "1"}
            self._container = av.open(str(path.absolute()), "w", format="mp4", options=options)
            try:
                # Chroma is stored for 2 x 2 pixels, so sides must be even; of an odd one the edge is repeated.
                self._stream = self._add_stream(height + height % 2, width + width % 2)
            except BaseException:
                self._container.close()
                path.unlink()
                raise

    def _add_stream(self, height: int, width: int) -> VideoStream:
        """The picture stream, its encoder open: what that refuses, it refuses here and not at the first frame."""
        import av

        codec = next((name for name in _VIDEO_CODECS if name in av.codecs_available), None)
        if codec is None:
            raise OutputError(f"{self.path} cannot be written: this FFmpeg has none of {', '.join(_VIDEO_CODECS)}")
        stream = self._container.add_stream(codec, rate=self._fps)
        assert isinstance(stream, av.VideoStream)
        stream.width, stream.height = width, height
        stream.pix_fmt = "yuv420p"
        stream.codec_context.time_base = Fraction(1, _CLOCK)
        stream.codec_context.gop_size = max(1, round(float(self._fps)))
        if codec == "libx264":
            stream.options = {"preset": "veryfast", "crf": "20"}
        try:
            stream.codec_context.open()
        except av.error.FFmpegError as error:
            reason = f"the encoder {codec} refuses {width} x {height} pixels ({error.strerror or error})"
            raise OutputError(f"{self.path} cannot be written: {reason}") from error
        return stream

    def add(self, image: np.ndarray, timestamp: float | None) -> None:
        """Append an H x W x 3 uint8 RGB picture at its time in seconds, or one frame after the last one."""
        import av

        height, width = self.size
        if height % 2 or width % 2:
            image = np.pad(image, ((0, height % 2), (0, width % 2), (0, 0)), mode="edge")
        frame = av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format="rgb24")
        tick = round(Fraction(self._count) / self._fps * _CLOCK) if timestamp is None else round(timestamp * _CLOCK)
        frame.pts = self._last_tick = max(tick, self._last_tick + 1)
        frame.time_base = Fraction(1, _CLOCK)
        self._count += 1
        with self._errors():
            for packet in self._stream.encode(frame):
                self._container.mux(packet)

    def close(self) -> None:
        """Write what the encoder holds back, and end the file."""
        with self._errors():
            try:
                for packet in self._stream.encode(None):
                    self._container.mux(packet)
            finally:
                self._container.close()

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        import av

        with output_errors(self.path):
            try:
                yield
            except av.error.FFmpegError as error:
                raise OSError(error.errno or 0, error.strerror or str(error)) from error
