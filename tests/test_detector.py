"""The detector against answers that can be written down: the colour model finds every coloured cell, and only those."""

from __future__ import annotations

import io
import re
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import pytest
import supervision as sv
from PIL import Image

from scaledyolo import NMS, Detector
from scaledyolo.cli import main
from scaledyolo.detector import as_rgb
from scaledyolo.engines.onnxruntime import OnnxRuntimeEngine
from scaledyolo.errors import ScaledYoloError, SourceError, SpecError, UsageError
from scaledyolo.runnable import Runnable, open_runnable

CELLS = ((1, 2, 0), (5, 2, 1), (3, 6, 2))  # column, row, class
ENGINE = {"engine": "onnxruntime", "threads": 1}
# Objectness sees one channel of three at full brightness, the class its own.
SCORE = 1 / (1 + np.exp(-20 * 0.5)) / (1 + np.exp(-40 * 0.5))


def boxes_of(cells, width: float = 8, height: float | None = None) -> list[list[float]]:
    """Boxes xyxy of cells of ``width`` x ``height`` pixels."""
    height = width if height is None else height
    return [[c * width, r * height, (c + 1) * width, (r + 1) * height] for c, r, _ in cells]


def found_in(detections: sv.Detections) -> list[tuple[int, list[float]]]:
    """(class, box) of each detection, in an order that does not depend on scores."""
    return sorted(zip(detections.class_id.tolist(), detections.xyxy.round(3).tolist(), strict=True))


def expected(cells=CELLS, width: float = 8, height: float | None = None) -> list[tuple[int, list[float]]]:
    return sorted(zip([cell[2] for cell in cells], boxes_of(cells, width, height), strict=True))


@pytest.fixture(scope="module")
def detector(colours) -> Detector:
    return Detector(colours.checkpoint, **ENGINE)


@pytest.fixture
def image(paint) -> np.ndarray:
    return paint(64, 64, *CELLS)


def test_boxes_classes_names_and_scores_are_those_painted(detector, image):
    detections = detector(image)
    assert isinstance(detections, sv.Detections)
    assert found_in(detections) == expected()
    assert detections.xyxy.dtype == np.float32
    assert sorted(detections.data["class_name"]) == ["blue", "green", "red"]
    np.testing.assert_allclose(detections.confidence, SCORE, rtol=1e-5)


def test_nothing_in_an_empty_image_is_an_empty_result_of_the_same_shape(detector):
    detections = detector(np.zeros((64, 64, 3), np.uint8))
    assert len(detections) == 0
    assert detections.xyxy.shape == (0, 4)
    assert list(detections.data["class_name"]) == []


def test_every_way_to_give_one_image_is_the_same_image(detector, image, tmp_path):
    path = tmp_path / "image.png"
    Image.fromarray(image).save(path)
    ways = [image, path, str(path), Image.open(path), np.asfortranarray(image), np.flip(np.flip(image).copy())]
    assert all(found_in(found) == expected() for found in detector(ways))
    assert found_in(detector(np.ascontiguousarray(image[..., ::-1]), bgr=True)) == expected()


def test_channel_order_matters(detector, image):
    swapped = {0: 2, 1: 1, 2: 0}
    assert found_in(detector(image, bgr=True)) == expected([(c, r, swapped[k]) for c, r, k in CELLS])


def test_bgr_concerns_arrays_only(detector, image):
    assert found_in(detector(Image.fromarray(image), bgr=True)) == expected()


def test_a_list_gives_a_list_in_order_whatever_the_sizes(detector, paint):
    images = [paint(64, 64, (index, index, index % 3)) for index in range(5)] + [paint(128, 128, (3, 1, 2), cell=16)]
    found = detector(images)
    assert [found_in(item) for item in found[:5]] == [expected([(i, i, i % 3)]) for i in range(5)]
    assert found_in(found[5]) == expected([(3, 1, 2)], 16)
    assert detector([]) == []


@pytest.mark.parametrize(
    ("classes", "ids"), [(["red", 2], {0, 2}), (["1"], {1}), ([np.int64(1)], {1}), ([], set()), (None, {0, 1, 2})]
)
def test_classes_by_name_and_by_id(colours, image, classes, ids):
    assert set(Detector(colours.checkpoint, classes=classes, **ENGINE)(image).class_id.tolist()) == ids


@pytest.mark.parametrize(
    ("classes", "words"),
    [
        (["reed"], "'red'"),
        ([3], "0 to 2"),
        (["-1"], "0 to 2"),
        ([-1], "0 to 2"),
        (["--1"], "no class named '--1'"),
        (["²"], "no class named '²'"),
        ([1.5], "a name or a whole number, got 1.5"),
        ([None], "a name or a whole number, got None"),
    ],
)
def test_unknown_classes_are_refused_with_what_there_is(colours, classes, words):
    with pytest.raises(UsageError, match=words):
        Detector(colours.checkpoint, classes=classes, **ENGINE)


def test_only_agnostic_suppression_looks_across_classes(colours):
    white = np.zeros((64, 64, 3), np.uint8)
    white[8:16, 8:16] = 255  # an object of all three classes
    options = {"multi_label": True, **ENGINE}
    assert sorted(Detector(colours.checkpoint, **options)(white).class_id.tolist()) == [0, 1, 2]
    assert len(Detector(colours.checkpoint, agnostic=True, **options)(white)) == 1
    assert len(Detector(colours.checkpoint, nms=NMS(class_agnostic=True), **options)(white)) == 1
    assert len(Detector(colours.checkpoint, **ENGINE)(white)) == 1  # one label a box


def test_max_detections_keeps_the_best(colours, image):
    dim = image.copy()
    dim[dim[..., 2] > 0] = (0, 0, 140)
    dim[dim[..., 1] > 0] = (0, 170, 0)
    found = Detector(colours.checkpoint, max_detections=2, **ENGINE)(dim)
    assert found.class_id.tolist() == [0, 1]
    assert (np.diff(found.confidence) < 0).all()


def test_confidence_is_a_lower_limit(colours, image):
    assert len(Detector(colours.checkpoint, confidence=SCORE - 1e-4, **ENGINE)(image)) == 3
    assert len(Detector(colours.checkpoint, confidence=SCORE + 1e-5, **ENGINE)(image)) == 0


def test_letterbox_keeps_the_aspect_and_stretch_does_not(colours, paint):
    image = paint(64, 128, (1, 1, 0), (5, 2, 1), (7, 3, 2), cell=16)
    cells = ((1, 1, 0), (5, 2, 1), (7, 3, 2))
    assert found_in(Detector(colours.checkpoint, resize="letterbox", **ENGINE)(image)) == expected(cells, 16)
    # Stretched, a cell covers 16 x 8 pixels of this image: two cells lie over each square, one above the other.
    halves = [(c, 2 * r + below, k) for c, r, k in cells for below in (0, 1)]
    assert found_in(Detector(colours.checkpoint, resize="stretch", **ENGINE)(image)) == expected(halves, 16, 8)


def test_size_is_height_then_width(colours, paint):
    cells = ((11, 0, 0), (0, 3, 2))
    wide = Detector(colours.checkpoint, size=(32, 96), **ENGINE)
    assert (wide.height, wide.width) == (32, 96)
    assert found_in(wide(paint(32, 96, *cells))) == expected(cells)
    assert found_in(Detector(colours.checkpoint, size=96, **ENGINE)(paint(96, 96, *cells))) == expected(cells)


@pytest.mark.parametrize("size", [60, (64, 60), (0, 64), (-8, 8)])
def test_sizes_that_the_strides_do_not_divide_are_refused(colours, size):
    with pytest.raises(SpecError, match="multiple of the largest stride 8"):
        Detector(colours.checkpoint, size=size, **ENGINE)


def test_threads_get_what_a_single_caller_gets(detector, paint):
    rng = np.random.default_rng(0)
    cells = [[(int(c), int(r), int(k)) for c, r, k in rng.integers(0, (8, 8, 3), (4, 3))] for _ in range(40)]
    images = [paint(64, 64, *some) for some in cells]
    alone = [detector(image) for image in images]
    before = detector.times.images
    with ThreadPoolExecutor(6) as pool:
        together = list(pool.map(detector, images))
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.xyxy, other.xyxy)
        np.testing.assert_array_equal(one.confidence, other.confidence)
        np.testing.assert_array_equal(one.class_id, other.class_id)
    assert detector.times.images == before + len(images)


@pytest.mark.parametrize("batch", [1, 2, 7])
def test_stream_gives_frames_with_their_detections_and_leaves_out_what_cannot_be_read(detector, paint, tmp_path, batch):
    for index in range(5):
        Image.fromarray(paint(64, 64, (index, 0, index % 3))).save(tmp_path / f"{index}.png")
    (tmp_path / "2.png").write_bytes(b"")
    seen = [(Path(frame.source).name, found_in(found)) for frame, found in detector.stream(tmp_path, batch=batch)]
    assert seen == [(f"{i}.png", expected([(i, 0, i % 3)])) for i in (0, 1, 3, 4)]


def test_a_darknet_pair_detects_what_the_checkpoint_detects(colours, detector, image):
    for model in ((colours.cfg, colours.weights), (str(colours.cfg), str(colours.weights)), colours.path, colours.cfg):
        found = Detector(model, **ENGINE)(image)
        assert found_in(found) == found_in(detector(image))
        assert set(found.data["class_name"]) == {"red", "green", "blue"}


def test_names_replace_those_of_the_model(colours, image, tmp_path):
    (tmp_path / "other.names").write_text("rot\ngrün\nblau\n", encoding="utf-8")
    for names in (tmp_path / "other.names", ["rot", "grün", "blau"]):
        for model in (colours.path, (colours.cfg, colours.weights)):
            found = Detector(model, names=names, **ENGINE)(image)
            assert set(found.data["class_name"]) == {"rot", "grün", "blau"}
    for model in (colours.path, (colours.cfg, colours.weights)):
        with pytest.raises(ScaledYoloError, match="2 class names for a network of 3 classes"):
            Detector(model, names=["one", "two"], **ENGINE)


# -- pictures of every kind ----------------------------------------------------------------------------------------


def encoded(image: Image.Image, kind: str, **options) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def turned(image: np.ndarray, orientation: int) -> bytes:
    """A JPEG whose EXIF asks for the turn that brings ``image`` upright again."""
    undo = {3: Image.Transpose.ROTATE_180, 6: Image.Transpose.ROTATE_90, 8: Image.Transpose.ROTATE_270}
    exif = Image.Exif()
    exif[0x0112] = orientation
    return encoded(Image.fromarray(image).transpose(undo[orientation]), "JPEG", quality=100, subsampling=0, exif=exif)


def deep(image: np.ndarray) -> bytes:
    return cv2.imencode(".png", image[..., ::-1].astype(np.uint16) * 257)[1].tobytes()


def transparent(image: np.ndarray) -> bytes:
    """Everything is see-through: alpha must be dropped, not blended."""
    return encoded(Image.fromarray(np.dstack([image, np.zeros(image.shape[:2], np.uint8)])), "PNG")


KINDS = {
    "alpha.png": transparent,
    "16-bit.png": deep,
    "palette.gif": lambda image: encoded(Image.fromarray(image).quantize(8), "GIF"),
    "cmyk.jpg": lambda image: encoded(Image.fromarray(image).convert("CMYK"), "JPEG", quality=100, subsampling=0),
    "cmyk.tif": lambda image: encoded(Image.fromarray(image).convert("CMYK"), "TIFF"),
    "lossless.webp": lambda image: encoded(Image.fromarray(image), "WEBP", lossless=True),
    **{f"exif-{turn}.jpg": (lambda image, turn=turn: turned(image, turn)) for turn in (3, 6, 8)},
}


@pytest.mark.parametrize("name", KINDS)
def test_files_of_every_kind_give_the_boxes_of_the_plain_image(detector, paint, tmp_path, name):
    cells = ((1, 2, 0), (5, 3, 1), (6, 0, 2))
    path = tmp_path / name
    path.write_bytes(KINDS[name](paint(32, 64, *cells)))
    assert found_in(detector(path)) == expected(cells)


def test_grey_images_have_no_colour_but_places(detector, paint, tmp_path):
    grey = paint(64, 64, (2, 3, 0), (6, 6, 0))[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.png")
    Image.fromarray(grey.astype(np.uint16) * 257).save(tmp_path / "grey16.png")
    same = detector(np.repeat(grey[..., None], 3, axis=2))
    assert sorted(same.xyxy.tolist()) == sorted(boxes_of([(2, 3, 0), (6, 6, 0)]))
    for name in ("grey.png", "grey16.png"):
        for source in (tmp_path / name, Image.open(tmp_path / name)):
            assert found_in(detector(source)) == found_in(same)
    assert found_in(detector(Image.fromarray(grey))) == found_in(same)


def test_a_pillow_image_is_read_as_its_file_is(tmp_path):
    deep = np.random.default_rng(0).integers(0, 65536, (9, 12), dtype=np.uint16)
    Image.fromarray(deep).save(tmp_path / "deep.png")
    clear = Image.fromarray(np.random.default_rng(1).integers(0, 256, (9, 12, 4), dtype=np.uint8))
    clear.save(tmp_path / "clear.png")
    for name in ("deep.png", "clear.png"):
        with Image.open(tmp_path / name) as opened:
            np.testing.assert_array_equal(as_rgb(opened), as_rgb(tmp_path / name))
    with pytest.raises(SourceError, match="white point is unknown"):
        as_rgb(Image.fromarray(np.zeros((4, 4), np.float32)))


def test_a_pillow_image_of_any_mode_and_turn_is_upright_rgb(detector, paint):
    cells = ((1, 2, 0), (5, 3, 1), (6, 0, 2))
    image = Image.fromarray(paint(32, 64, *cells))
    for mode in ("RGBA", "CMYK", "P", "YCbCr"):
        assert found_in(detector(image.convert(mode))) == expected(cells), mode
    lying = Image.open(io.BytesIO(turned(np.asarray(image), 6)))
    assert lying.size == (32, 64)
    assert found_in(detector(lying)) == expected(cells)


def test_a_single_pixel_is_an_image(colours):
    red = np.zeros((1, 1, 3), np.uint8)
    red[..., 0] = 255
    found = Detector(colours.checkpoint, iou=0.99, **ENGINE)(red)
    assert len(found) == 64  # it fills all cells
    assert ((found.xyxy >= 0) & (found.xyxy <= 1)).all()
    assert set(found.class_id.tolist()) == {0}


@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
def test_twenty_thousand_pixels_wide(colours, resize, tmp_path):
    image = np.zeros((400, 20_000, 3), np.uint8)
    image[:, 10_000:, 1] = 255  # a border of cells whether they are 2500 pixels wide or 400
    Image.fromarray(image).save(tmp_path / "wide.png")
    size = (64, 64) if resize == "stretch" else (8, 400)
    found = Detector(colours.checkpoint, resize=resize, size=size, iou=0.99, **ENGINE)(tmp_path / "wide.png")
    assert set(found.class_id.tolist()) == {1}
    left, top, right, bottom = found.xyxy.T
    np.testing.assert_allclose([left.min(), top.min(), right.max(), bottom.max()], [10_000, 0, 20_000, 400], atol=0.5)


# -- what is no picture, no model, no option ------------------------------------------------------------------------


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((64, 64), np.uint8),
        np.zeros((64, 64, 4), np.uint8),
        np.zeros((64, 64, 3), np.float32),
        np.zeros((0, 64, 3), np.uint8),
        np.zeros((2, 64, 64, 3), np.uint8),
    ],
)
def test_arrays_that_are_no_rgb_image_are_refused(detector, array):
    with pytest.raises(UsageError, match=r"uint8 of shape \(height, width, 3\)"):
        detector(array)


@pytest.mark.parametrize("thing", [None, 3, b"bytes"])
def test_things_that_are_no_image_are_refused(detector, thing):
    with pytest.raises(UsageError, match=type(thing).__name__):
        detector(thing)


def test_a_path_that_leads_nowhere_is_named(detector, tmp_path):
    with pytest.raises(SourceError, match=r"nowhere\.jpg"):
        detector(tmp_path / "nowhere.jpg")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"confidence": 1.5}, "between 0 and 1"),
        ({"confidence": float("nan")}, "between 0 and 1"),
        ({"iou": -0.1}, "between 0 and 1"),
        ({"resize": "strech"}, "letterbox"),
        ({"engine": "onxruntime"}, "Did you mean 'onnxruntime'"),
        ({"device": "cdua"}, "Did you mean 'cuda'"),
        ({"max_detections": 0}, "at least 1"),
        ({"threads": 0}, "1 or more"),
    ],
)
def test_options_that_make_no_sense_are_refused(colours, options, words):
    with pytest.raises(UsageError, match=words):
        Detector(colours.checkpoint, **{"engine": "onnxruntime", **options})


class SlowAtFirst:
    """An engine that compiles for half a second whenever it meets a number of images or a size."""

    name, version, device, precision, size, batch = "slow", "1", "cpu", "float32", None, None
    compiling = 0.5  # seconds

    def __init__(self, engine: OnnxRuntimeEngine) -> None:
        self.engine, self.compiled = engine, []

    def prepare(self, count: int, height: int, width: int) -> None:
        if (count, height, width) not in self.compiled:
            time.sleep(self.compiling)
            self.compiled.append((count, height, width))

    def run(self, images: np.ndarray) -> list[np.ndarray]:
        self.prepare(len(images), *images.shape[2:])
        return self.engine.run(images)


@pytest.fixture
def slow(colours) -> Runnable:
    opened = open_runnable(colours.checkpoint, **ENGINE)
    return Runnable(SlowAtFirst(opened.engine), opened.facts)


def test_compiling_is_no_part_of_the_time_of_an_image(slow, image):
    detector = Detector(slow)
    assert found_in(detector(image)) == expected()
    detector([image, image, image])  # another shape
    assert slow.engine.compiled == [(1, 64, 64), (3, 64, 64)]
    assert detector.times.images == 4
    assert sum(detector.times.seconds.values()) < SlowAtFirst.compiling


def test_what_is_prepared_runs_at_once(slow, image):
    detector = Detector(slow, tta=True)
    detector.prepare(2)
    shapes = list(slow.engine.compiled)
    started = time.perf_counter()
    detector.prepare(2)
    detector([image, image])
    assert time.perf_counter() - started < SlowAtFirst.compiling
    assert slow.engine.compiled == shapes, "every view was prepared, and nothing else runs"
    assert len(shapes) == len(set(shapes)) > 1


@pytest.mark.parametrize("mode", ["latency", "throughput"])
def test_the_summary_of_detect_leaves_compiling_out(slow, image, tmp_path, monkeypatch, capsys, mode):
    slow.engine.compiling = 1.5
    monkeypatch.setattr("scaledyolo.detector.open_runnable", lambda *_, **__: slow)
    names = [str(tmp_path / f"{number}.png") for number in range(3)]
    for name in names:
        Image.fromarray(image).save(name)
    assert main(["detect", *names, "--mode", mode, "--save", "none"]) == 0
    first, found, times = capsys.readouterr().out.splitlines()
    assert re.fullmatch(r"ready in \d+\.\d s", first)
    assert float(first.split()[2]) >= 1.5
    assert found.startswith("3 images, 9 objects")
    milliseconds = [float(value) for value in re.findall(r" ?(?:network|resize|decode|suppress) ([\d.]+)", times)]
    assert len(milliseconds) == 4
    assert 3 * sum(milliseconds) < 1500
    assert float(re.search(r"([\d.]+) s in all", times)[1]) < 1.5
