"""Output writers: read back by independent programs; nothing is overwritten, lost, or left half-written."""

from __future__ import annotations

import contextlib
import csv
import io
import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import av
import cv2
import numpy as np
import pytest
import supervision as sv
from hypothesis import given
from hypothesis import strategies as st

from scaledyolo.data.formats import open_dataset
from scaledyolo.errors import OutputError, SourceError, UsageError
from scaledyolo.outputs import FORMATS, Annotator, RunOptions, RunWriter, create_run_folder
from scaledyolo.outputs.files import GrowingFile, OutputNames, safe_name, write_whole
from scaledyolo.outputs.media import VideoEncoder
from scaledyolo.outputs.text import CocoResults
from scaledyolo.sources import Frame, open_source, read_image


def make_frame(name: str = "a.jpg", *, height: int = 40, width: int = 60, **fields: object) -> Frame:
    image = np.full((height, width, 3), 90, np.uint8)
    return Frame(image=image, source=f"/data/{name}", relative=PurePosixPath(name), **fields)  # type: ignore[arg-type]


def make_detections(*rows: tuple[float, float, float, float], names: tuple[str, ...] = ("cat", "dog")) -> sv.Detections:
    """Detections of classes 0, 1, 0, 1, ... with confidences 0.9, 0.8, ..."""
    ids = np.arange(len(rows)) % 2
    return sv.Detections(
        xyxy=np.array(rows, np.float32).reshape(-1, 4),
        class_id=ids,
        confidence=(0.9 - 0.1 * np.arange(len(rows))).astype(np.float32),
        data={"class_name": np.array([names[i] for i in ids])},
    )


TWO = make_detections((1.234567, 2, 31, 22.5), (30, 10, 75, 35))
NONE = make_detections()
CSV_COLUMNS = [
    *("source", "index", "timestamp", "width", "height", "class_id", "class_name", "confidence"),
    *("x1", "y1", "x2", "y2", "tracker_id"),
]


def run(tmp_path: Path, formats: tuple[str, ...], *frames: tuple[Frame, sv.Detections], **options: object) -> Path:
    with RunWriter(tmp_path, formats=formats, options=RunOptions(**options)) as writer:  # type: ignore[arg-type]
        for frame, detections in frames:
            writer.write(frame, detections)
    assert writer.folder is not None
    return writer.folder


# Folders and names --------------------------------------------------------------------------------------------------


def test_run_folders_are_new_even_in_a_race(tmp_path: Path) -> None:
    assert create_run_folder(tmp_path / "runs").name == "detect"
    (tmp_path / "runs" / "detect-2").write_text("a file is in the way")
    folders: list[Path] = []
    create = lambda: folders.append(create_run_folder(tmp_path / "runs"))  # noqa: E731
    threads = [threading.Thread(target=create) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(int(path.name[7:]) for path in folders) == list(range(3, 19))
    with pytest.raises(OutputError, match="cannot be written"):
        create_run_folder(tmp_path / "runs" / "detect-2")


def test_unknown_format_names_the_nearest(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="Did you mean 'jsonl'"):
        RunWriter(tmp_path / "runs", formats=("json",))
    assert not (tmp_path / "runs").exists()


def test_without_formats_nothing_is_created(tmp_path: Path) -> None:
    with RunWriter(tmp_path / "runs", formats=()) as writer:
        writer.write(make_frame(), TWO)
    assert not (tmp_path / "runs").exists()
    assert (writer.summary.num_frames, writer.summary.num_detections) == (1, 2)
    assert writer.summary.detections_by_class == {"cat": 1, "dog": 1}


def test_same_stem_in_different_folders_or_formats_does_not_collide(tmp_path: Path) -> None:
    frames = [make_frame(name) for name in ("x/a.jpg", "y/a.jpg", "x/a.png", "x/A.jpg", "x/a.bmp", "x/a.png.png")]
    folder = run(tmp_path, tuple(FORMATS), *((frame, TWO) for frame in frames))
    labels = [str(path.relative_to(folder / "labels")) for path in (folder / "labels").rglob("*.txt")]
    assert sorted(labels) == [
        *("x/A.jpg.txt", "x/a.bmp.txt", "x/a.png.png.txt", "x/a.png.txt"),
        *("x/a.txt", "y/a.txt"),
    ]
    assert len(list((folder / "annotated").rglob("*.*"))) == 6
    assert len(list((folder / "crops").rglob("*.*"))) == 12
    ids = [result["image_id"] for result in json.loads((folder / "coco_results.json").read_text())]
    assert len(set(ids)) == 6


def test_places_are_stable_and_stay_inside() -> None:
    places = OutputNames()
    first = places.place("s", PurePosixPath("a/b.jpg"))
    assert places.place("s", PurePosixPath("a/b.jpg")) == first == PurePosixPath("a/b")
    assert places.place("evil", PurePosixPath("/../../etc/passwd")) == PurePosixPath("etc/passwd")
    assert places.place("v", PurePosixPath("clip.mp4"), keep_suffix=True) == PurePosixPath("clip.mp4")


@given(st.text(max_size=300))
def test_safe_names_are_single_visible_files(text: str) -> None:
    name = safe_name(text)
    assert name
    assert name not in (".", "..")
    assert name[0] not in ".-"
    assert not set(name) & set('/\\:*?"<>|\0\n')
    assert len(name.encode()) <= 200
    assert safe_name(name) == name


def test_reserved_names() -> None:
    names = ("CON", "nul.txt", "", "...", "com1")
    assert [safe_name(name) for name in names] == ["_CON", "_nul.txt", "_", "_", "_com1"]


# Text formats -------------------------------------------------------------------------------------------------------


def test_json_lines(tmp_path: Path) -> None:
    names = ('we"ird', "größe 猫\n")
    bad = Frame(image=None, source="/data/bad.jpg", error=SourceError("it is cut off"))
    with RunWriter(tmp_path, formats=("jsonl",)) as writer:
        detections = make_detections((1.23456, 2, 31, 22.5), (30, 10, 75, 35), names=names)
        writer.write(make_frame("new\nline.jpg"), detections)
        writer.write(bad, None)
        writer.write(make_frame(origin="video", index=7, timestamp=0.28, fps=25.0), NONE)
    assert writer.folder is not None
    lines = [json.loads(line) for line in (writer.folder / "detections.jsonl").read_text("utf-8").splitlines()]
    assert lines[0] == {
        "source": "/data/new\nline.jpg",
        "index": 0,
        "width": 60,
        "height": 40,
        "detections": [
            {"class_id": 0, "class_name": names[0], "confidence": 0.9, "xyxy": [1.23, 2.0, 31.0, 22.5]},
            {"class_id": 1, "class_name": names[1], "confidence": 0.8, "xyxy": [30.0, 10.0, 75.0, 35.0]},
        ],
    }
    assert lines[1] == {"source": "/data/bad.jpg", "index": 0, "error": "it is cut off"}
    assert (lines[2]["index"], lines[2]["timestamp"], lines[2]["detections"]) == (7, 0.28, [])
    assert [str(error) for error in writer.summary.failures] == ["it is cut off"]


def test_undecodable_file_name_survives_json_and_csv(tmp_path: Path) -> None:
    name = os.fsdecode(b"caf\xe9.jpg")
    folder = run(tmp_path, ("jsonl", "csv", "yolo", "media", "coco", "crops"), (make_frame(name), TWO))
    assert json.loads((folder / "detections.jsonl").read_text("utf-8"))["source"] == f"/data/{name}"
    (folder / "detections.csv").read_text("utf-8")


def test_csv_is_rfc_4180(tmp_path: Path) -> None:
    names = ('say "cat", please', "two\nlines")
    detections = make_detections((1.23456, 2, 31, 22.5), (30, 10, 75, 35), names=names)
    detections.tracker_id = np.array([4, 9])
    path = run(tmp_path, ("csv",), (make_frame(), detections), (make_frame("b.jpg"), NONE)) / "detections.csv"
    content = path.read_bytes()
    assert content.endswith(b"\r\n")
    assert b'"say ""cat"", please"' in content
    rows = list(csv.DictReader(io.StringIO(content.decode(), newline="")))
    assert [row["class_name"] for row in rows] == list(names)
    assert list(rows[0]) == CSV_COLUMNS
    assert list(rows[0].values()) == [
        *("/data/a.jpg", "0", "", "60", "40", "0", names[0]),
        *("0.9", "1.23", "2.0", "31.0", "22.5", "4"),
    ]


def test_coco_results_are_what_pycocotools_loads(tmp_path: Path) -> None:
    from pycocotools.coco import COCO

    frames = [(make_frame(f"val/{i:012d}.jpg"), TWO) for i in (139, 285)]
    path = run(tmp_path, ("coco",), *frames, category_ids={0: 17, 1: 90}) / "coco_results.json"
    truth = COCO()
    truth.dataset = {
        "images": [{"id": i, "width": 60, "height": 40} for i in (139, 285)],
        "categories": [{"id": 17, "name": "cat"}, {"id": 90, "name": "dog"}],
        "annotations": [],
    }
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        loaded = truth.loadRes(str(path))
    assert sorted(loaded.getImgIds()) == [139, 285]
    first = loaded.loadAnns(1)[0]
    assert first["category_id"] == 17
    assert first["bbox"] == [1.235, 2.0, 29.765, 20.5]
    assert json.loads(path.read_text())[0]["score"] == 0.9


def test_coco_image_ids(tmp_path: Path) -> None:
    frames = [
        (make_frame("a/139.jpg"), TWO),
        (make_frame("b/139.jpg"), TWO),  # cannot be 139 again
        (make_frame("c/dog.jpg"), TWO),
        (make_frame("known.jpg"), TWO),
        (make_frame("clip.mp4", origin="video", index=12), TWO),
    ]
    path = run(tmp_path, ("coco",), *frames, image_ids={"known.jpg": 42}) / "coco_results.json"
    ids = [result["image_id"] for result in json.loads(path.read_text())][::2]
    assert ids == [139, "b/139", "c/dog", 42, "clip.mp4/000012"]


def test_coco_is_valid_json_at_every_moment(tmp_path: Path) -> None:
    writer = CocoResults(tmp_path)
    path = tmp_path / "coco_results.json"
    assert json.loads(path.read_text()) == []
    for i, detections in enumerate((NONE, TWO, NONE, TWO)):
        writer.write(make_frame(f"{i}.jpg"), detections, PurePosixPath(str(i)))
        assert len(json.loads(path.read_text())) == (0, 2, 2, 4)[i]
    writer.close()


def test_coco_class_without_category(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="class 1 has no COCO category"):
        run(tmp_path, ("coco",), (make_frame(), TWO), category_ids={0: 17})


def test_yolo_labels_are_what_supervision_loads(tmp_path: Path) -> None:
    inside = make_detections((1.5, 2, 31, 22.5), (30, 10, 60, 40))
    frames = [(make_frame("sub/a.jpg"), inside), (make_frame("b.jpg"), NONE)]
    folder = run(tmp_path, ("yolo",), *frames)
    assert (folder / "labels" / "b.txt").read_bytes() == b""
    images = tmp_path / "images"
    images.mkdir()
    cv2.imwrite(str(images / "a.jpg"), np.zeros((40, 60, 3), np.uint8))
    (tmp_path / "data.yaml").write_text("names: [cat, dog]\n")
    loaded = sv.DetectionDataset.from_yolo(str(images), str(folder / "labels" / "sub"), str(tmp_path / "data.yaml"))
    _, _, annotations = next(iter(loaded))
    np.testing.assert_allclose(annotations.xyxy, inside.xyxy, atol=1e-3)
    np.testing.assert_array_equal(annotations.class_id, [0, 1])


def test_yolo_values_are_clipped_and_have_the_confidence_where_asked_for(tmp_path: Path) -> None:
    folder = run(tmp_path, ("yolo", "yolo-conf"), (make_frame(), make_detections((-6, -4, 90, 20))))
    row = "0 0.500000 0.250000 1.000000 0.500000"
    assert (folder / "labels" / "a.txt").read_text() == f"{row}\n"
    assert (folder / "labels-with-confidence" / "a.txt").read_text() == f"{row} 0.900000\n"


def test_yolo_labels_can_be_trained_on(tmp_path: Path) -> None:
    """Every row is read back by the strict reader, also where a detection lies on or beyond the border."""
    found = make_detections((1.5, 2, 31, 22.5), (-9, -9, 5, 5), (50, 30, 60, 40), (60, 10, 70, 20), (3, 3, 3, 9))
    folder = run(tmp_path, ("yolo",), (make_frame("a.jpg"), found), (make_frame("b.jpg"), NONE))
    for name in ("a.jpg", "b.jpg"):
        (folder / "images").mkdir(exist_ok=True)
        cv2.imwrite(str(folder / "images" / name), np.zeros((40, 60, 3), np.uint8))
    (folder / "data.yaml").write_text("train: images\nnames: [cat, dog]\n")
    dataset = open_dataset(folder / "data.yaml", bad="fail")
    assert len(dataset) == 2
    expected = [[1.5, 2, 31, 22.5], [0, 0, 5, 5], [50, 30, 60, 40]]
    np.testing.assert_allclose(dataset.annotations.boxes_xyxy, expected, atol=1e-3)


def test_a_size_that_the_encoder_refuses_is_one_sentence_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match=r"a\.mp4 cannot be written: the encoder \w+ refuses 20000 x 20000 pixels"):
        VideoEncoder(tmp_path / "a.mp4", (19_999, 20_000), 25.0)
    assert not list(tmp_path.iterdir())
    open_files = [os.readlink(link) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
    assert not [path for path in open_files if path.startswith(str(tmp_path))]


def test_an_ffmpeg_without_encoders_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(av, "codecs_available", {"mp3"})
    with pytest.raises(OutputError, match="has none of libx264, mpeg4"):
        VideoEncoder(tmp_path / "a.mp4", (40, 60), 25.0)
    assert not list(tmp_path.iterdir())


# Interrupts and full disks ------------------------------------------------------------------------------------------


def test_exception_and_ctrl_c_finish_all_files(tmp_path: Path) -> None:
    video = [make_frame("v.avi", origin="video", index=i, fps=10.0, timestamp=i / 10) for i in range(4)]
    with pytest.raises(KeyboardInterrupt), RunWriter(tmp_path, formats=tuple(FORMATS)) as writer:  # noqa: PT012
        for frame in video:
            writer.write(frame, TWO)
        raise KeyboardInterrupt
    folder = tmp_path / "detect"
    assert len(json.loads((folder / "coco_results.json").read_text())) == 8
    assert len(list(open_source(folder / "annotated" / "v.avi.mp4"))) == 4


def test_a_killed_run_keeps_what_it_had_written(tmp_path: Path) -> None:
    program = """
        import os, signal, sys, numpy as np, supervision as sv
        from pathlib import PurePosixPath
        from scaledyolo.outputs import RunWriter
        from scaledyolo.sources import Frame
        found = sv.Detections(xyxy=np.array([[1.0, 2, 30, 20]]), class_id=np.array([0]), confidence=np.array([0.5]))
        writer = RunWriter(sys.argv[1], formats=("media", "jsonl", "csv", "coco", "yolo"))
        for i in range(120):
            image = np.random.default_rng(i).integers(0, 255, (48, 64, 3), dtype=np.uint8)
            writer.write(Frame(image, "v.mp4", i, i / 25, "video", 25.0, PurePosixPath("v.mp4")), found)
        os.kill(os.getpid(), signal.SIGKILL)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(program), str(tmp_path)], check=False)
    assert done.returncode == -signal.SIGKILL
    folder = tmp_path / "detect"
    assert len((folder / "detections.jsonl").read_text().splitlines()) == 120
    assert len((folder / "detections.csv").read_text().splitlines()) == 121
    assert len(json.loads((folder / "coco_results.json").read_text())) == 120
    assert len(list((folder / "labels" / "v.mp4").iterdir())) == 120
    frames = [frame for frame in open_source(folder / "annotated" / "v.mp4") if frame.image is not None]
    assert len(frames) >= 25  # complete fragments


@contextlib.contextmanager
def full_disk(limit: int) -> Iterator[None]:
    """Files cannot grow beyond ``limit`` bytes: the same short writes and OSErrors as on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.parametrize("tail", [b"", b"\n]\n"])
def test_growing_file_is_cut_back_to_whole_records(tmp_path: Path, tail: bytes) -> None:
    file = GrowingFile(tmp_path / "f", head=b"[", tail=tail)
    file.append(b"a" * 50)
    with full_disk(80):
        for _ in range(2):
            with pytest.raises(OutputError, match="File too large"):
                file.append(b"b" * 50)
            assert (tmp_path / "f").read_bytes() == b"[" + b"a" * 50 + tail
    file.append(b"c")
    file.close()
    assert (tmp_path / "f").read_bytes() == b"[" + b"a" * 50 + b"c" + tail


def test_existing_files_are_never_reused(tmp_path: Path) -> None:
    (tmp_path / "f").write_text("precious")
    with pytest.raises(OutputError, match="File exists"):
        GrowingFile(tmp_path / "f")
    assert (tmp_path / "f").read_text() == "precious"


def test_whole_files_are_whole_or_absent(tmp_path: Path) -> None:
    write_whole(tmp_path / "sub" / "old", b"old")
    with full_disk(100), pytest.raises(OutputError, match="File too large"):
        write_whole(tmp_path / "sub" / "old", b"x" * 200)
    assert [path.name for path in (tmp_path / "sub").iterdir()] == ["old"]
    assert (tmp_path / "sub" / "old").read_bytes() == b"old"


def test_full_disk_during_a_run_is_one_sentence_and_keeps_the_rest(tmp_path: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (40, 60, 3), dtype=np.uint8)
    with RunWriter(tmp_path, formats=("jsonl", "coco", "media")) as writer:
        writer.write(make_frame("first.jpg"), TWO)
        frame = Frame(image=np.tile(noise, (8, 8, 1)), source="second.png", relative=PurePosixPath("second.png"))
        with full_disk(4000), pytest.raises(OutputError, match=r"second\.png cannot be written: File too large"):
            writer.write(frame, TWO)
    folder = tmp_path / "detect"
    assert [path.name for path in (folder / "annotated").iterdir()] == ["first.jpg"]
    assert len(json.loads((folder / "coco_results.json").read_text())) == 4


def test_full_disk_in_a_video(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    writer = RunWriter(tmp_path, formats=("media",))
    with full_disk(20_000), pytest.raises(OutputError, match=r"v\.mp4 cannot be written"), writer:  # noqa: PT012
        for i in range(200):
            image = rng.integers(0, 255, (120, 160, 3), dtype=np.uint8)
            writer.write(Frame(image, "v.mp4", i, i / 25, "video", 25.0, PurePosixPath("v.mp4")), NONE)
    writer.close()


# Pictures -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", [".jpg", ".JPEG", ".png", ".webp", ".bmp", ".tif"])
def test_annotated_image_keeps_size_and_format(tmp_path: Path, suffix: str) -> None:
    folder = run(tmp_path, ("media",), (make_frame(f"sub/a{suffix}"), TWO))
    (path,) = (folder / "annotated" / "sub").iterdir()
    assert path.suffix == {".png": ".png", ".webp": ".webp"}.get(suffix, ".jpg")
    assert read_image(path).shape == (40, 60, 3)


def test_sides_too_long_for_jpeg_become_png(tmp_path: Path) -> None:
    folder = run(tmp_path, ("media",), (make_frame("wide.jpg", height=2, width=66_000), NONE))
    assert read_image(folder / "annotated" / "wide.png").shape == (2, 66_000, 3)


def test_annotator_draws_on_a_copy_in_the_colour_of_the_class() -> None:
    image = np.full((480, 640, 3), 128, np.uint8)
    detections = make_detections((100, 100, 300, 300), (350, 150, 500, 400), (320, 30, 420, 100))
    drawn = Annotator(labels=False).draw(image, detections)
    assert (image == 128).all()
    assert drawn.dtype == np.uint8
    colors = [tuple(int(v) for v in drawn[y, x]) for y, x in ((200, 100), (250, 350), (60, 320))]
    expected = [sv.ColorPalette.DEFAULT.by_idx(i).as_rgb() for i in (0, 1, 0)]
    assert colors == expected
    np.testing.assert_array_equal(Annotator().draw(image, NONE), image)


@pytest.mark.parametrize("size", [(1, 1), (24, 32), (480, 640), (2160, 3840), (8, 4000)])
def test_annotator_takes_any_size_and_keeps_labels_inside(size: tuple[int, int]) -> None:
    height, width = size
    image = np.full((height, width, 3), 128, np.uint8)
    box = (0.9 * width, 0.0, width, 0.2 * height)
    with_labels = Annotator().draw(image, make_detections(box, names=("a rather long name", "x")))
    assert with_labels.shape == image.shape
    if min(size) >= 480:  # the label of a box in the corner is moved inside: left of the box there is ink
        left_of_box = with_labels[: height // 8, : int(0.9 * width) - 10]
        assert (left_of_box != 128).any()


@pytest.mark.parametrize(("one", "other"), [("é", "ü"), ("ж", "ш"), ("λ", "π")])
def test_letters_beyond_ascii_are_drawn_as_what_they_are(one: str, other: str) -> None:
    """A font without them draws the same empty box for both."""
    image = np.full((100, 160, 3), 128, np.uint8)
    box = (20.0, 40.0, 120.0, 90.0)
    first, second = (
        Annotator(confidences=False).draw(image, make_detections(box, names=(name * 4, "x"))) for name in (one, other)
    )
    assert (first != second).any()


def test_annotator_with_tracks_unicode_and_missing_fields() -> None:
    image = np.full((200, 300, 3), 128, np.uint8)
    tracked = make_detections((10, 50, 100, 150), names=("größe\n猫", "x"))
    tracked.tracker_id = np.array([7])
    bare = sv.Detections(xyxy=np.array([[10.0, 50, 100, 150]]))
    for detections in (tracked, bare):
        assert (Annotator().draw(image, detections) != 128).any()


def test_crops(tmp_path: Path) -> None:
    image = np.zeros((40, 60, 3), np.uint8)
    image[10:20, 30:50] = (250, 120, 10)
    frame = Frame(image=image, source="s/a.png", relative=PurePosixPath("s/a.png"))
    boxes = make_detections((29.6, 9.7, 50.2, 20.4), (-5, -5, -1, -1), (55, 35, 90, 90), names=("a/b: c", "x"))
    folder = run(tmp_path, ("crops",), (frame, boxes)) / "crops"
    assert sorted(str(path.relative_to(folder)) for path in folder.rglob("*.png")) == [
        "a_b_ c/s/a-0.png",
        "a_b_ c/s/a-2.png",
    ]
    np.testing.assert_array_equal(read_image(folder / "a_b_ c/s/a-0.png"), image[9:21, 29:51])
    assert read_image(folder / "a_b_ c/s/a-2.png").shape == (5, 5, 3)


def test_video_keeps_rate_times_and_odd_sizes(tmp_path: Path) -> None:
    times = [0.0, 0.1, 0.2, 0.5, 0.6]
    frames = [
        make_frame("sub/clip.mov", height=41, width=61, origin="video", index=i, timestamp=time, fps=10.0)
        for i, time in enumerate(times)
    ]
    folder = run(tmp_path, ("media", "yolo"), *((frame, TWO) for frame in frames))
    read = list(open_source(folder / "annotated" / "sub" / "clip.mov.mp4"))
    np.testing.assert_allclose([frame.timestamp for frame in read], times, atol=1e-3)
    assert read[0].image is not None
    assert read[0].image.shape == (42, 62, 3)
    assert abs(float(read[0].image[39, :20].mean()) - 90) < 8
    with av.open(str(folder / "annotated" / "sub" / "clip.mov.mp4")) as container:
        assert float(container.streams.video[0].base_rate or 0) == pytest.approx(10, rel=0.35)
    assert (folder / "labels" / "sub" / "clip.mov" / "000004.txt").is_file()


def test_constant_rate_is_the_rate_of_the_source(tmp_path: Path) -> None:
    frames = [make_frame("c.mp4", origin="video", index=i, timestamp=i / 24, fps=24.0) for i in range(48)]
    folder = run(tmp_path, ("media",), *((frame, NONE) for frame in frames))
    source = open_source(folder / "annotated" / "c.mp4")
    read = list(source)
    assert len(read) == 48
    assert read[0].fps == pytest.approx(24, rel=0.02)
    capture = cv2.VideoCapture(str(folder / "annotated" / "c.mp4"))
    assert capture.get(cv2.CAP_PROP_FPS) == pytest.approx(24, rel=0.02)


def test_a_video_that_begins_does_not_end_the_streams(tmp_path: Path) -> None:
    steps = (
        ("camera0", "stream"),
        ("a.mp4", "video"),
        ("camera0", "stream"),
        ("b.mp4", "video"),
        ("camera0", "stream"),
    )
    frames = [make_frame(name, origin=origin, index=i, fps=25.0) for i, (name, origin) in enumerate(steps)]
    folder = run(tmp_path, ("media",), *((frame, NONE) for frame in frames)) / "annotated"
    lengths = {}
    for path in folder.iterdir():
        with av.open(str(path)) as container:
            lengths[path.name] = sum(1 for _ in container.decode(video=0))
    assert lengths == {"camera0.mp4": 3, "a.mp4": 1, "b.mp4": 1}


def test_several_videos_and_a_camera_that_changes_its_size(tmp_path: Path) -> None:
    frames = [make_frame(name, origin="video", index=i, fps=25.0) for name in ("a.mp4", "x/a.mp4") for i in range(3)]
    frames += [make_frame("camera0", height=h, origin="stream", index=i, fps=None) for i, h in enumerate((40, 40, 80))]
    folder = run(tmp_path, ("media",), *((frame, TWO) for frame in frames)) / "annotated"
    files = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.mp4"))
    assert files == ["a.mp4", "camera0-from-000002.mp4", "camera0.mp4", "x/a.mp4"]
    assert [len(list(open_source(folder / name))) for name in files] == [3, 1, 2, 3]


def test_importing_is_cheap() -> None:
    heavy = ("supervision", "torch", "av", "cv2", "PIL")
    program = f"import sys, scaledyolo.sources, scaledyolo.outputs; print([m for m in {heavy} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
