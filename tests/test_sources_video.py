"""Videos, streams and prefetching: frames against OpenCV's reader, servers started here, threads counted."""

from __future__ import annotations

import http.server
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path, PurePosixPath

import av
import cv2
import numpy as np
import pytest

from scaledyolo.errors import SourceError
from scaledyolo.sources import Frame, Lanes, LiveStream, Reconnect, VideoFile, open_source


def write_video(
    path: Path,
    *,
    num_frames: int = 12,
    fps: int = 25,
    rotation: int = 0,
    times: list[float] | None = None,
    options: dict[str, str] | None = None,
) -> Path:
    """A 64 x 48 video whose brightness tells the number of the frame (5 per frame), bright in the top left quarter."""
    with av.open(str(path), "w", options=options or {}) as container:
        stream = container.add_stream("mpeg4", rate=fps)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.bit_rate = 2_000_000
        stream.codec_context.time_base = Fraction(1, 1000)
        if rotation:
            stream.set_display_rotation(rotation)
        for i in range(num_frames):
            image = np.full((48, 64, 3), 40 + 5 * i, np.uint8)
            image[:24, :32] = 220
            frame = av.VideoFrame.from_ndarray(image, format="rgb24")
            frame.time_base = Fraction(1, 1000)
            frame.pts = round(1000 * (times[i] if times else i / fps))
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def number_of(frame: Frame) -> int:
    assert frame.image is not None
    return round((float(frame.image[30:, 40:].mean()) - 40) / 5)


def test_every_frame_comes_in_order_with_its_time(tmp_path: Path) -> None:
    source = open_source(write_video(tmp_path / "clip.mp4", fps=20))
    assert (source.kind, source.num_frames) == ("video", 12)
    frames = list(source)
    assert [number_of(frame) for frame in frames] == list(range(12))
    assert [frame.index for frame in frames] == list(range(12))
    np.testing.assert_allclose([frame.timestamp for frame in frames], np.arange(12) / 20, atol=1e-3)
    assert frames[0].fps == pytest.approx(20)
    assert (frames[0].origin, frames[0].relative) == ("video", PurePosixPath("clip.mp4"))
    assert len(list(source)) == 12


def test_variable_rate_keeps_its_times(tmp_path: Path) -> None:
    times = [0, 0.04, 0.3, 0.31, 1.2]
    frames = list(VideoFile(write_video(tmp_path / "phone.mp4", num_frames=5, times=times)))
    np.testing.assert_allclose([frame.timestamp for frame in frames], times, atol=2e-3)


@pytest.mark.parametrize("rotation", [0, 90, -90, 180])
def test_rotation_equals_opencv(tmp_path: Path, rotation: int) -> None:
    path = write_video(tmp_path / "turned.mp4", rotation=rotation)
    image = next(iter(VideoFile(path))).image
    assert image is not None
    good, expected = cv2.VideoCapture(str(path)).read()
    assert good
    assert image.shape == expected.shape
    assert image.flags.c_contiguous
    assert np.abs(image.astype(int) - expected[:, :, ::-1]).max() <= 4


@pytest.mark.parametrize("suffix", [".avi", ".mkv", ".mov"])
def test_containers_written_by_opencv(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"clip{suffix}"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"MJPG"), 10, (32, 24))
    for i in range(5):
        writer.write(np.full((24, 32, 3), 40 * i, np.uint8))
    writer.release()
    means = [float(frame.image.mean()) for frame in open_source(path) if frame.image is not None]
    np.testing.assert_allclose(means, [0, 40, 80, 120, 160], atol=4)


def test_broken_videos(tmp_path: Path) -> None:
    whole = write_video(tmp_path / "whole.mp4", num_frames=40).read_bytes()
    (tmp_path / "no_index.mp4").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(SourceError, match=r"no_index\.mp4 cannot be read as video: Invalid data"):
        open_source(tmp_path / "no_index.mp4")
    (tmp_path / "empty.mp4").write_bytes(b"")
    with pytest.raises(SourceError, match="cannot be read as video"):
        open_source(tmp_path / "empty.mp4")


def test_cut_video_yields_what_is_there_and_says_so(tmp_path: Path) -> None:
    path = write_video(tmp_path / "cut.mp4", num_frames=40, options={"movflags": "faststart"})
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 3 // 4])
    frames = list(VideoFile(path))
    assert 10 < len(frames) < 41
    assert all(frame.error is None for frame in frames[:-1])
    assert "damaged or cut off after" in str(frames[-1].error)


def test_a_video_of_more_pixels_than_allowed_is_refused_before_it_is_decoded(tmp_path: Path) -> None:
    path = write_video(tmp_path / "a.mp4", num_frames=3)
    refused = r"a\.mp4 has 64 x 48 pixels, more than the limit of 0.003071 million; scale it down or raise max_pixels"
    for make in (VideoFile, open_source):
        with pytest.raises(SourceError, match=refused):
            make(path, max_pixels=64 * 48 - 1)
        assert len(list(make(path, max_pixels=64 * 48))) == 3
    (frame,) = open_source(tmp_path, max_pixels=64 * 48 - 1)  # one of many is a frame with an error
    assert "has 64 x 48 pixels" in str(frame.error)


@pytest.mark.parametrize(("height", "width"), [(49, 63), (18, 18)])
def test_sides_that_are_no_whole_blocks_fit_their_own_limit(tmp_path: Path, height: int, width: int) -> None:
    writer = cv2.VideoWriter(str(tmp_path / "a.mkv"), cv2.VideoWriter.fourcc(*"mp4v"), 10, (width, height))
    for _ in range(3):
        writer.write(np.zeros((height, width, 3), np.uint8))
    writer.release()
    frames = list(VideoFile(tmp_path / "a.mkv", max_pixels=height * width))
    assert [frame.error for frame in frames] == [None] * len(frames)
    assert len(frames) == 3


@pytest.mark.parametrize(("grown", "reason"), [(200, "more than 0.01 million pixels"), (2000, "")])
def test_pictures_that_grow_beyond_the_limit_are_left_out(tmp_path: Path, grown: int, reason: str) -> None:
    pictures = [np.zeros((side, side, 3), np.uint8) for side in (16, 16, grown)]
    (tmp_path / "a.mjpeg").write_bytes(b"".join(cv2.imencode(".jpg", picture)[1].tobytes() for picture in pictures))
    assert [frame.image.shape[0] for frame in VideoFile(tmp_path / "a.mjpeg") if frame.image is not None] == [
        *(16, 16, grown)
    ]
    *good, last = VideoFile(tmp_path / "a.mjpeg", max_pixels=10_000)
    assert [frame.image.shape[0] for frame in good if frame.image is not None] == [16, 16]
    assert "1 packet(s) failed" in str(last.error)
    assert reason in str(last.error)


def test_sound_is_no_video(tmp_path: Path) -> None:
    with av.open(str(tmp_path / "sound.mp4"), "w") as container:
        stream = container.add_stream("aac", rate=8000)
        silence = av.AudioFrame.from_ndarray(np.zeros((1, 1024), np.float32), format="fltp", layout="mono")
        silence.sample_rate = 8000
        container.mux(stream.encode(silence))
        container.mux(stream.encode(None))
    with pytest.raises(SourceError, match="holds no video, only audio"):
        open_source(tmp_path / "sound.mp4")


def test_videos_in_a_folder(tmp_path: Path) -> None:
    write_video(tmp_path / "b.mp4", num_frames=3)
    (tmp_path / "a.png").write_bytes(cv2.imencode(".png", np.zeros((2, 2, 3), np.uint8))[1].tobytes())
    assert [(str(f.relative), f.index) for f in open_source(tmp_path)] == [
        ("a.png", 0),
        ("b.mp4", 0),
        ("b.mp4", 1),
        ("b.mp4", 2),
    ]


# Streams ------------------------------------------------------------------------------------------------------------


class Server:
    """A web server with a recorded video, an endless or finite MJPEG stream, and nothing else."""

    def __init__(self, folder: Path) -> None:
        self.connections = 0
        outer = self
        video = write_video(folder / "served.mp4").read_bytes()

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.connections += 1
                try:
                    if self.path.endswith(".mp4"):
                        self._start("video/mp4", len(video))
                        self.wfile.write(video)
                    elif self.path.startswith("/camera"):
                        self._stream(int(self.path.rsplit("=", 1)[-1]))
                    else:
                        self.send_error(404)
                except OSError:
                    pass  # the client has left

            def _start(self, kind: str, length: int | None = None) -> None:
                self.send_response(200)
                self.send_header("Content-Type", kind)
                if length is not None:
                    self.send_header("Content-Length", str(length))
                self.end_headers()

            def _stream(self, count: int) -> None:
                self._start("multipart/x-mixed-replace; boundary=frame")
                for i in range(count):
                    content = cv2.imencode(".jpg", np.full((48, 64, 3), 40 + i % 200, np.uint8))[1].tobytes()
                    head = f"--frame\r\nContent-Type: image/jpeg\r\nContent-Length: {len(content)}\r\n\r\n"
                    self.wfile.write(head.encode() + content + b"\r\n")
                    time.sleep(0.002)

            def log_message(self, *args: object) -> None:
                pass

        self._server = socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler)
        self._server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.01})
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    running = Server(tmp_path)
    yield running
    running.close()


def reader_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("scaledyolo-")]


def test_recorded_video_on_a_server_keeps_every_frame(server: Server) -> None:
    source = open_source(f"{server.address}/served.mp4")
    assert source.kind == "video"
    assert [number_of(frame) for frame in source] == list(range(12))


def test_stream_gives_the_newest_frame_and_counts_the_dropped(server: Server) -> None:
    source = open_source(f"{server.address}/camera?frames=5000")
    assert isinstance(source, LiveStream)
    assert source.num_frames is None
    indices = []
    for frame in source:
        assert frame.image is not None
        assert frame.image.shape == (48, 64, 3)
        assert frame.origin == "stream"
        indices.append(frame.index)
        time.sleep(0.03)
        if len(indices) == 8:
            break
    assert indices == sorted(set(indices))
    assert source.dropped == indices[-1] + 1 - len(indices)
    assert source.dropped > 8
    assert reader_threads() == []


def test_end_of_a_stream_delivers_the_last_frame(server: Server) -> None:
    frames = list(LiveStream.from_url(f"{server.address}/served.mp4"))
    assert number_of(frames[-1]) == 11
    assert (frames[-1].index, frames[-1].fps) == (11, 25)
    indices: list[int] = []
    with pytest.raises(SourceError, match="broke off"):  # noqa: PT012  for FFmpeg an MJPEG stream has no proper end
        for frame in open_source(f"{server.address}/camera?frames=30"):
            indices.append(frame.index)
    assert indices[-1] in (28, 29)
    assert reader_threads() == []


def test_stream_that_cannot_be_opened(server: Server) -> None:
    with pytest.raises(SourceError, match="404"):
        next(iter(open_source(f"{server.address}/nothing")))
    with pytest.raises(SourceError, match="Connection refused"):
        next(iter(open_source("rtsp://user:secret@127.0.0.1:9/live")))


class FakeFeed:
    """A device that delivers some pictures and then fails or ends."""

    fps = 30.0

    def __init__(self, count: int, *, fails: bool) -> None:
        self.left = count
        self.fails = fails
        self.closed = False

    def read(self) -> Callable[[], np.ndarray] | None:
        time.sleep(0.002)
        self.left -= 1
        if self.left >= 0:
            return lambda: np.zeros((2, 2, 3), np.uint8)
        if self.fails:
            raise SourceError("the cable was pulled")
        return None

    def close(self) -> None:
        self.closed = True


def fake_stream(feeds: list[FakeFeed | None], reconnect: Reconnect | None = None) -> LiveStream:
    """Stream over these feeds; None stands for a failure to open."""
    remaining = iter(feeds)

    def open_feed() -> FakeFeed:
        feed = next(remaining, None)
        if feed is None:
            raise SourceError("nobody answers")
        return feed

    return LiveStream("fake", open_feed, relative=PurePosixPath("fake"), reconnect=reconnect)


def test_broken_stream_raises_after_its_last_frame() -> None:
    feed = FakeFeed(3, fails=True)
    seen = []
    with pytest.raises(SourceError, match="cable"):
        seen.extend(frame.index for frame in fake_stream([feed]))
    assert feed.closed
    assert reader_threads() == []


def test_an_error_that_nobody_expected_reaches_the_consumer() -> None:
    class Broken(FakeFeed):
        def read(self) -> Callable[[], np.ndarray] | None:
            raise MemoryError("a picture too large")

    feed = Broken(1, fails=False)
    with pytest.raises(MemoryError, match="too large"):
        list(fake_stream([feed]))
    assert feed.closed
    assert reader_threads() == []


def test_a_stream_that_cannot_be_opened_is_forgotten() -> None:
    stream = fake_stream([None])
    with pytest.raises(SourceError, match="nobody answers"):
        list(stream)
    assert stream._readers == []


def test_reconnection_survives_failures_and_gives_up_after_the_limit() -> None:
    feeds = [FakeFeed(3, fails=True), None, None, FakeFeed(2, fails=False), None, None, None]
    stream = fake_stream(feeds, Reconnect(attempts=2, first_wait_seconds=0.001))
    indices: list[int] = []
    with pytest.raises(SourceError, match="nobody answers"):  # noqa: PT012
        for frame in stream:
            indices.append(frame.index)
    assert indices[-1] == 4  # five pictures in all
    assert all(feed.closed for feed in feeds if feed is not None)


def test_back_off_doubles_up_to_the_limit() -> None:
    waits = Reconnect(attempts=9, first_wait_seconds=1, longest_wait_seconds=10)
    assert [waits.wait_seconds(i) for i in (0, 1, 2, 3, 4, 10_000)] == [1, 2, 4, 8, 10, 10]


def test_closing_releases_a_waiting_consumer() -> None:
    class Silent(FakeFeed):
        def read(self) -> Callable[[], np.ndarray] | None:
            time.sleep(0.05)
            return super().read() if self.left < 0 else (lambda: np.zeros((1, 1, 3), np.uint8))

    stream = fake_stream([Silent(10**6, fails=False)])
    threading.Timer(0.2, stream.close).start()
    assert len(list(stream)) < 20
    assert reader_threads() == []


def test_missing_camera_is_one_quiet_sentence(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SourceError, match="camera 97 cannot be opened"):
        next(iter(open_source(97)))
    assert capfd.readouterr().err == ""


def test_reading_a_live_stream_ahead_stops_at_once(server: Server) -> None:
    source = open_source(f"{server.address}/camera?frames=100000")
    started = time.perf_counter()
    for i, _ in enumerate(Lanes(lambda frame: frame, source)):
        if i == 3:
            break
    assert time.perf_counter() - started < 5
    assert reader_threads() == []
