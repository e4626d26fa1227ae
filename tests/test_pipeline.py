"""Lanes and modes: whatever runs side by side, results are those of one call after the other, in order, and it ends."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from scaledyolo import Detector
from scaledyolo.cli import main
from scaledyolo.errors import SourceError, UsageError
from scaledyolo.sources import (
    FileSource,
    Frame,
    Lanes,
    frames_with_results,
    open_source,
    open_sources,
    settle_mode,
)
from scaledyolo.sources.frame import BaseSource, SourceKind

MODES = ("latency", "throughput")


def own_threads() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("scaledyolo-")]


# -- lanes ---------------------------------------------------------------------------------------------------------


@settings(deadline=None, max_examples=40)
@given(st.lists(st.integers(0, 3), max_size=30), st.integers(1, 5), st.integers(1, 7))
def test_lanes_give_what_map_gives(items: list[int], lanes: int, depth: int) -> None:
    def work(item: int) -> int:
        time.sleep(item * 1e-4)  # later items overtake earlier ones
        return item * 10

    assert list(Lanes(work, items, lanes=lanes, depth=depth)) == [item * 10 for item in items]
    assert own_threads() == []


def test_lanes_work_at_the_same_time() -> None:
    together = threading.Barrier(3, timeout=10)  # breaks unless three threads meet
    assert list(Lanes(lambda item: (together.wait(), item)[1], range(12), lanes=3, depth=6)) == list(range(12))


def test_lanes_stay_within_their_depth() -> None:
    taken: list[int] = []

    def items() -> Iterator[int]:
        for item in range(40):
            taken.append(item)
            yield item

    with Lanes(lambda item: item, items(), lanes=4, depth=6) as lanes:
        for item in lanes:
            time.sleep(0.002)
            assert len(taken) <= item + 1 + 6  # what was fetched, and six more
    assert len(taken) == 40


def test_the_source_is_asked_by_one_thread_at_a_time() -> None:
    def slow() -> Iterator[int]:  # a generator that is entered twice raises ValueError
        for item in range(30):
            time.sleep(0.001)
            yield item

    assert list(Lanes(lambda item: item, slow(), lanes=6, depth=12)) == list(range(30))


@pytest.mark.parametrize("where", ["work", "source"])
def test_an_error_comes_after_the_results_before_it(where: str) -> None:
    def items() -> Iterator[int]:
        for item in range(20):
            if where == "source" and item == 5:
                raise SourceError("number 5")
            yield item

    def work(item: int) -> int:
        time.sleep(0.002 * (5 - item) if item < 5 else 0)  # the failing one is through first
        if where == "work" and item == 5:
            raise SourceError("number 5")
        return item

    seen = []
    with pytest.raises(SourceError, match="number 5"):  # noqa: PT012
        for item in Lanes(work, items(), lanes=4, depth=8):
            seen.append(item)
    assert seen == [0, 1, 2, 3, 4]
    assert own_threads() == []


@pytest.mark.parametrize("how", ["break", "exception", "interrupt", "close", "with"])
def test_a_consumer_that_leaves_ends_the_threads_and_closes_the_source(how: str) -> None:
    closed = threading.Event()

    def endless() -> Iterator[int]:
        try:
            while True:
                yield 1
        finally:
            closed.set()

    lanes = Lanes(lambda item: item, endless(), lanes=3, depth=5)
    if how == "break":
        for _ in lanes:
            break
    elif how in ("exception", "interrupt"):
        kind = RuntimeError if how == "exception" else KeyboardInterrupt
        with pytest.raises(kind):  # noqa: PT012
            for _ in lanes:
                raise kind
    elif how == "close":
        iterator = iter(lanes)
        next(iterator)
        lanes.close()
        assert list(iterator) == []
    else:
        with lanes:
            next(iter(lanes))
    assert closed.wait(2)
    assert own_threads() == []


@pytest.mark.parametrize("options", [{"lanes": 0}, {"depth": 0}])
def test_numbers_that_make_no_lanes(options: dict[str, int]) -> None:
    with pytest.raises(ValueError, match="at least 1"):
        Lanes(lambda item: item, [], **options)


# -- frames --------------------------------------------------------------------------------------------------------


class Camera(BaseSource):
    """A live source that counts the pictures that were fetched from it."""

    kind: SourceKind = "stream"
    num_frames = None

    def __init__(self) -> None:
        self.fetched = 0

    def __iter__(self) -> Iterator[Frame]:
        while True:
            self.fetched += 1
            yield Frame(image=np.zeros((4, 4, 3), np.uint8), source="camera", index=self.fetched)


def test_a_camera_is_never_read_ahead_so_that_the_picture_is_the_newest() -> None:
    camera = Camera()
    for frame, found in frames_with_results(camera, lambda images: [camera.fetched] * len(images)):
        assert frame.index == found == camera.fetched
        time.sleep(0.002)
        if frame.index == 5:
            break
    assert own_threads() == []


class StuckCamera(Camera):
    """Delivers four pictures and then nothing, until it is closed."""

    def __init__(self) -> None:
        super().__init__()
        self.closed = threading.Event()

    def __iter__(self) -> Iterator[Frame]:
        yield from (frame for frame, _ in zip(super().__iter__(), range(4), strict=False))
        self.closed.wait(20)

    def close(self) -> None:
        self.closed.set()


@pytest.mark.parametrize("lanes", [0, 3])
def test_a_camera_that_delivers_nothing_can_be_left(lanes: int) -> None:
    camera, started = StuckCamera(), time.perf_counter()
    seen = frames_with_results(camera, lambda images: [0] * len(images), lanes=lanes)
    for _ in range(3):
        next(seen)
    time.sleep(0.05)  # now the lanes wait for a fifth picture
    seen.close()
    assert time.perf_counter() - started < 10
    assert own_threads() == []


def test_files_are_read_ahead_in_both_modes(tmp_path: Path) -> None:
    for index in range(12):
        Image.fromarray(np.full((4, 4, 3), index, np.uint8)).save(tmp_path / f"{index}.png")
    for lanes in (0, 3):
        threads = set()

        def detect(images: list[np.ndarray], threads: set[int] = threads) -> list[int]:
            threads.add(threading.get_ident())
            return [int(image[0, 0, 0]) for image in images]

        seen = list(frames_with_results(open_source(tmp_path), detect, batch=2, lanes=lanes))
        assert [found for _, found in seen] == list(range(12))
        assert (threads == {threading.get_ident()}) == (lanes == 0)
        assert own_threads() == []


@pytest.mark.parametrize(
    ("mode", "kind", "settled"),
    [
        ("auto", "files", "throughput"),
        ("auto", "video", "throughput"),
        ("auto", "image", "latency"),
        ("auto", "stream", "latency"),
        ("latency", "files", "latency"),
        ("throughput", "stream", "throughput"),
    ],
)
def test_modes(mode: str, kind: SourceKind, settled: str) -> None:
    assert settle_mode(mode, kind) == settled


def test_an_unknown_mode_is_refused() -> None:
    with pytest.raises(UsageError, match="Did you mean 'throughput'"):
        settle_mode("thruput", "files")


def test_arguments_that_are_files_become_one_source(tmp_path: Path) -> None:
    for name in ("a.png", "b.png", "c.png"):
        Image.fromarray(np.zeros((4, 4, 3), np.uint8)).save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"no image")
    (source,) = open_sources([str(tmp_path / name) for name in ("c.png", "b.png", "a.png")])
    assert isinstance(source, FileSource)
    frames = list(source)
    assert [Path(frame.source).name for frame in frames] == ["c.png", "b.png", "a.png"]
    assert [frame.error is None for frame in frames] == [True, False, True]
    with pytest.raises(SourceError):  # alone it is an error, as ever
        list(open_sources([str(tmp_path / "b.png")])[0])


# -- the detector --------------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path, paint) -> Path:
    """Pictures with one to four objects, a broken one among them, and a film at the end."""
    for index in range(14):
        cells = [(column, index % 8, column % 3) for column in range(1 + index % 4)]
        Image.fromarray(paint(64, 64, *cells)).save(tmp_path / f"{index}.png")
    (tmp_path / "6.png").write_bytes(b"")
    with av.open(str(tmp_path / "film.mp4"), "w") as container:
        stream = container.add_stream("mpeg4", rate=10)
        stream.width = stream.height = 64
        stream.pix_fmt = "yuv420p"
        for index in range(9):
            image = paint(64, 64, (index // 2 * 2, 2, 0), (index // 2 * 2 + 1, 2, 0), (index // 2 * 2, 3, 0))
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        container.mux(stream.encode(None))
    return tmp_path


def everything(detector: Detector, folder: Path, **options) -> list[tuple[str, int, object]]:
    """What was seen, exactly: file, frame, and boxes, scores and classes or the error."""
    seen = []
    for frame, found in detector.watch(open_source(folder), **options):
        what = (
            str(frame.error) if found is None else [part.tolist() for part in (found.xyxy, found.confidence)],
            None if found is None else found.class_id.tolist(),
        )
        seen.append((PurePosixPath(frame.source).name, frame.index, what))
    return seen


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino", "torch"])
@pytest.mark.parametrize("batch", [1, 3])
def test_every_mode_sees_the_same_in_the_same_order(colours, folder: Path, engine: str, batch: int) -> None:
    pytest.importorskip(engine)
    detector = Detector(colours.checkpoint, engine=engine, threads=3, half=False)
    alone, together = (everything(detector, folder, mode=mode, batch=batch) for mode in MODES)
    assert alone == together
    assert [name for name, _, _ in alone] == [f"{index}.png" for index in range(14)] + ["film.mp4"] * 9
    assert sum(len(what[1] or ()) for _, _, what in alone) > 40
    assert "6.png is empty" in alone[6][2][0]
    assert everything(detector, folder, batch=batch) == alone  # auto
    assert own_threads() == []


def test_stream_leaves_out_what_cannot_be_read_in_every_mode(colours, folder: Path) -> None:
    detector = Detector(colours.checkpoint, engine="onnxruntime", threads=2)
    for mode in (*MODES, "auto"):
        names = [Path(frame.source).name for frame, _ in detector.stream(folder, mode=mode)]
        assert names == [f"{index}.png" for index in range(14) if index != 6] + ["film.mp4"] * 9


@pytest.mark.parametrize("mode", MODES)
def test_a_stream_may_be_left_early(colours, folder: Path, mode: str) -> None:
    detector = Detector(colours.checkpoint, engine="onnxruntime", threads=2)
    stream = detector.stream(folder, mode=mode)
    next(stream)
    next(stream)
    stream.close()
    assert own_threads() == []


@pytest.mark.parametrize("mode", MODES)
def test_what_fails_while_detecting_reaches_the_caller(colours, folder: Path, mode: str) -> None:
    detector = Detector(colours.checkpoint, engine="onnxruntime", threads=2)

    def fail(_: Detector, images: list[np.ndarray]) -> list[object]:
        raise MemoryError("too large")

    with pytest.raises(MemoryError, match="too large"):
        list(detector.watch(open_source(folder), mode=mode, detect=fail))
    assert own_threads() == []


def test_the_times_of_all_lanes_are_counted(colours, folder: Path) -> None:
    detector = Detector(colours.checkpoint, engine="onnxruntime", threads=2)
    assert sum(1 for _ in detector.stream(folder, mode="throughput")) == 22
    assert detector.times.images == 22


def test_each_thread_has_two_lanes(colours) -> None:
    assert Detector(colours.checkpoint, engine="onnxruntime", threads=5).for_throughput().lanes == 10
    assert Detector(colours.checkpoint, engine="onnxruntime").lanes >= 2


# -- the command line ----------------------------------------------------------------------------------------------


def test_the_command_line_writes_the_same_in_every_mode(colours, folder: Path, tmp_path: Path, capsys) -> None:
    written = []
    for mode in MODES:
        out = tmp_path / f"runs-{mode}"
        words = ["--model", str(colours.path), "--engine", "onnxruntime", "--threads", "2", "--save", "jsonl", "csv"]
        assert main(["detect", str(folder), *words, "--mode", mode, "--out", str(out)]) == 1  # one was skipped
        told = capsys.readouterr()
        assert "22 images" in told.out
        assert "images/s" in told.out
        assert "6.png is empty" in told.err
        written.append([(out / "detect" / name).read_bytes() for name in ("detections.jsonl", "detections.csv")])
    assert written[0] == written[1]
    assert own_threads() == []


def test_files_named_one_by_one_are_read_side_by_side_and_a_broken_one_is_skipped(
    colours, folder: Path, tmp_path: Path, capsys
) -> None:
    files = [str(folder / f"{index}.png") for index in (3, 6, 1)]
    words = [
        "--model",
        str(colours.path),
        "--engine",
        "onnxruntime",
        "--save",
        "jsonl",
        "--out",
        str(tmp_path / "runs"),
    ]
    assert main(["detect", *files, *words]) == 1
    assert "2 images, 6 objects" in capsys.readouterr().out
    lines = (tmp_path / "runs" / "detect" / "detections.jsonl").read_text().splitlines()
    assert ["error" in line for line in lines] == [False, True, False]
