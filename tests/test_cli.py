"""The command line as users meet it: in a process of its own, with its exit code and what it says."""

from __future__ import annotations

import json
import os
import re
import resource
import signal
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

from scaledyolo import ZOO
from scaledyolo.cli import VERBS, main
from scaledyolo.cli.parsing import one_sentence

CELLS = ((1, 2, 0), (5, 2, 1), (3, 6, 2))  # column, row, class
BOXES = {"red": [8, 16, 16, 24], "green": [40, 16, 48, 24], "blue": [24, 48, 32, 56]}


@pytest.fixture
def folder(tmp_path, colours, paint, monkeypatch) -> Path:
    """A working folder with the colour model as model.safetensors, model.cfg and .weights, and one picture, a.png."""
    for path in (colours.path, colours.cfg, colours.weights, colours.cfg.with_suffix(".names")):
        (tmp_path / f"model{path.suffix}").write_bytes(path.read_bytes())
    Image.fromarray(paint(64, 64, *CELLS)).save(tmp_path / "a.png")
    monkeypatch.setenv("SCALEDYOLO_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    return tmp_path


def scaledyolo(*arguments: str, cwd: Path, **options) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "scaledyolo", *arguments]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=120, **options)


def detect(*arguments: str, cwd: Path, **options) -> subprocess.CompletedProcess[str]:
    return scaledyolo(
        "detect", *arguments, "--model", "model.safetensors", "--engine", "onnxruntime", cwd=cwd, **options
    )


def assert_refused(done: subprocess.CompletedProcess[str], *words: str, code: int = 2) -> None:
    """One line on standard error that says all of ``words``."""
    assert done.returncode == code, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("scaledyolo: ")
    for word in words:
        assert word in lines[0]


def found_in(folder: Path) -> dict[str, dict[str, list[float]]]:
    """Boxes by class name by name of the source, from the JSON lines of a run."""
    lines = (folder / "detections.jsonl").read_text().splitlines()
    return {
        Path(line["source"]).name: {item["class_name"]: item["xyxy"] for item in line["detections"]}
        for line in map(json.loads, lines)
        if "detections" in line
    }


# -- what goes well ------------------------------------------------------------------------------------------------


def test_detect_writes_every_format_and_never_over_an_earlier_run(folder):
    formats = ("media", "jsonl", "csv", "coco", "yolo", "yolo-conf", "crops")
    first = detect("a.png", "--save", *formats, cwd=folder)
    assert (first.returncode, first.stderr) == (0, "")
    assert "1 image, 3 objects" in first.stdout
    for stage in ("resize", "network", "decode", "suppress", "ms an image"):
        assert stage in first.stdout
    run = folder / "runs" / "detect"
    assert found_in(run) == {"a.png": BOXES}
    assert len((run / "detections.csv").read_text().splitlines()) == 4
    results = json.loads((run / "coco_results.json").read_text())
    assert sorted(item["bbox"] for item in results) == sorted([b[0], b[1], 8, 8] for b in BOXES.values())
    for labels, columns in (("labels", 5), ("labels-with-confidence", 6)):
        assert [len(row.split()) for row in (run / labels / "a.txt").read_text().splitlines()] == [columns] * 3
    with Image.open(run / "annotated" / "a.png") as drawn:
        assert drawn.size == (64, 64)
    assert {path.parent.name for path in (run / "crops").rglob("*.png")} == set(BOXES)

    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert detect("a.png", "--save", *formats, cwd=folder).returncode == 0
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    assert found_in(folder / "runs" / "detect-2") == {"a.png": BOXES}


def test_detect_takes_folders_patterns_lists_and_standard_input_together(folder, paint):
    for name in ("b", "c"):
        (folder / name).mkdir()
        Image.fromarray(paint(64, 64, (0, 0, 0))).save(folder / name / f"{name}.png")
    (folder / "list.txt").write_text("# pictures\na.png\n")
    done = detect("b", "c/*.png", "list.txt", "-", "--save", "jsonl", "--batch", "2", cwd=folder, input="a.png\n")
    assert (done.returncode, done.stderr) == (0, "")
    assert "4 images, 8 objects" in done.stdout


def test_detect_options_reach_the_detector(folder):
    pair = ("--model", "model.cfg", "model.weights", "--engine", "onnxruntime", "--save", "jsonl")
    assert scaledyolo("detect", "a.png", *pair, "--classes", "green", "2", cwd=folder).returncode == 0
    assert set(found_in(folder / "runs" / "detect")["a.png"]) == {"green", "blue"}
    done = detect("a.png", "--save", "none", "--max-det", "1", "--size", "64", "96", cwd=folder)
    assert "1 image, 1 object" in done.stdout
    assert not (folder / "runs" / "detect-2").exists()


def test_detect_in_tiles_finds_each_object_once(folder, paint):
    # Tiles of 80 pixels stand 64 apart, so that many squares lie in two of them.
    cells = [(column, row, (column + row) % 3) for column in range(0, 60, 5) for row in range(0, 40, 4)]
    Image.fromarray(paint(320, 480, *cells)).save(folder / "large.png")
    done = detect("large.png", "--tile", "80", "--size", "80", "--save", "coco", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    results = json.loads((folder / "runs" / "detect" / "coco_results.json").read_text())
    found = sorted((*item["bbox"], item["category_id"]) for item in results)
    assert found == sorted((8.0 * column, 8.0 * row, 8.0, 8.0, colour) for column, row, colour in cells)


def test_convert_then_detect_then_back(folder):
    (folder / "model.safetensors").unlink()
    done = scaledyolo("convert", "model.weights", "model.safetensors", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert detect("a.png", cwd=folder).returncode == 0
    assert found_in(folder / "runs" / "detect") == {"a.png": BOXES}
    assert scaledyolo("convert", "model.safetensors", "back.weights", cwd=folder).returncode == 0
    assert (folder / "back.weights").read_bytes() == (folder / "model.weights").read_bytes()


def write_colour_data(folder: Path, paint, names: tuple[str, ...] = ("red", "green", "blue"), shift: int = 0) -> None:
    """A YOLO data set of four pictures that the colour model knows; ``shift`` moves the class ids of the labels."""
    rng = np.random.default_rng(0)
    for split in ("images/val", "labels/val"):
        (folder / "data" / split).mkdir(parents=True, exist_ok=True)
    for index in range(4):
        cells = {(int(c), int(r)): int(k) for c, r, k in rng.integers(0, (8, 8, 3), (5, 3))}
        Image.fromarray(paint(64, 64, *((c, r, k) for (c, r), k in cells.items()))).save(
            folder / "data" / "images" / "val" / f"{index}.png"
        )
        rows = [((k + shift) % 3, (c + 0.5) / 8, (r + 0.5) / 8) for (c, r), k in cells.items()]
        lines = [f"{k} {x} {y} 0.125 0.125" for k, x, y in rows]
        (folder / "data" / "labels" / "val" / f"{index}.txt").write_text("\n".join(lines))
    (folder / "data" / "data.yaml").write_text(yaml.safe_dump({"path": ".", "val": "images/val", "names": list(names)}))


EVAL = ("eval", "model.safetensors", "--data", "data", "--engine", "onnxruntime")


def test_eval_of_a_model_that_is_always_right_gives_one(folder, paint):
    write_colour_data(folder, paint)
    done = scaledyolo(*EVAL, "--json", cwd=folder)
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures["AP"] == pytest.approx(1.0, abs=1e-6)
    assert figures["class_ap50"] == pytest.approx({"red": 1.0, "green": 1.0, "blue": 1.0}, abs=1e-6)
    counts = np.bincount([int(row.split()[0]) for row in "\n".join(map(Path.read_text, labels(folder))).splitlines()])
    told = scaledyolo(*EVAL, cwd=folder).stdout
    assert [row.split() for row in told.splitlines()[-5:-1]] == [
        ["class", "AP", "AP50", "boxes"],
        *([name, "1.0000", "1.0000", str(count)] for name, count in zip(("red", "green", "blue"), counts, strict=True)),
    ]


def labels(folder: Path) -> list[Path]:
    return sorted((folder / "data" / "labels" / "val").iterdir())


def test_eval_goes_by_the_names_of_classes_not_by_their_order(folder, paint):
    """The ids of the data are those of the model plus one, but the names say what is meant."""
    write_colour_data(folder, paint, ("blue", "red", "green"), shift=1)
    done = scaledyolo(*EVAL, "--json", cwd=folder)
    assert json.loads(done.stdout)["AP"] == pytest.approx(1.0, abs=1e-6)
    assert "numbered in the order of the model's" in done.stderr


def test_eval_tells_class_ids_that_are_off_by_one_from_boxes_that_are_not_there(folder, paint):
    write_colour_data(folder, paint, shift=1)
    done = scaledyolo(*EVAL, cwd=folder)
    assert done.returncode == 0
    assert "the boxes are found (AP50 1.000 when classes are left aside) but called by other names" in done.stdout
    write_colour_data(folder, paint, ("crimson", "green", "blue"))
    done = scaledyolo(*EVAL, cwd=folder)
    assert "warning: the model says 'red' for 'crimson'; classes go by their numbers" in done.stderr
    assert "called by other names" not in done.stdout
    for label in labels(folder):
        label.write_text("0 0.95 0.97 0.01 0.02\n")
    assert "detections lie on no object" in scaledyolo(*EVAL, cwd=folder).stdout


def processor_seconds_of_children() -> float:
    """What ended processes took of a processor, however busy the machine was with others."""
    used = os.times()
    return used.children_user + used.children_system


@pytest.mark.parametrize("kind", ["zoo", "yaml", "json", "cfg", "safetensors"])
def test_describe_prints_the_figures_of_every_kind_of_network_at_once(folder, kind):
    spec = ZOO["yolov4-tiny"].to_dict()
    (folder / "spec.yaml").write_text(yaml.safe_dump(spec))
    (folder / "spec.json").write_text(json.dumps(spec))
    name = {"zoo": "yolov4-tiny", "yaml": "spec.yaml", "json": "spec.json"}.get(kind, f"model.{kind}")
    before = processor_seconds_of_children()
    done = scaledyolo("describe", name, "--json", cwd=folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert processor_seconds_of_children() - before < 1  # a third of it is usual; importing torch alone takes more
    figures = json.loads(done.stdout)
    if name.startswith("model"):
        expected = {"params": 8 * 3 * 64 + 8, "macs": 8 * 3 * 64 * 64, "boxes": 64, "strides": [8], "num_classes": 3}
    else:  # specification of the models, table of parameters
        expected = {"params": 6_056_606, "boxes": 2535, "strides": [32, 16], "num_classes": 80}
    assert {key: figures[key] for key in expected} == expected
    assert figures["gflops"] == pytest.approx(2e-9 * figures["macs"], abs=1e-6)
    assert {"name", "height", "width"} <= figures.keys()


# -- what goes wrong -----------------------------------------------------------------------------------------------


def _write(name: str, content: Callable[[bytes], bytes], source: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).write_bytes(content((folder / source).read_bytes())) and None


MODEL = "--model model.safetensors --engine onnxruntime"
# name: (arguments, words of the answer, what is prepared in the folder before)
REFUSALS: dict[str, tuple[str, tuple[str, ...], Callable[[Path], object] | None]] = {
    "verb": ("detec a.png", ("'detec'", "'detect'"), None),
    "option": (f"detect a.png {MODEL} --confi 0.5", ("'--confi'", "'--conf'", "--help"), None),
    "option without model": ("detect a.png --modle model.safetensors", ("'--modle'", "'--model'"), None),
    "no value": (f"detect a.png {MODEL} --max-det", ("--max-det",), None),
    "not a number": (f"detect a.png {MODEL} --conf high", ("--conf", "'high'"), None),
    "choice": (f"detect a.png {MODEL} --resize strech", ("'strech'", "'stretch'"), None),
    "engine": (f"detect a.png {MODEL} --engine onxruntime", ("'onxruntime'", "'onnxruntime'"), None),
    "device": (f"detect a.png {MODEL} --device cdua", ("'cdua'", "'cuda'"), None),
    "suppression": (f"detect a.png {MODEL} --nms greddy", ("'greddy'", "'greedy'"), None),
    "output format": (f"detect a.png {MODEL} --save cocco", ("'cocco'", "'coco'"), None),
    "class name": (f"detect a.png {MODEL} --classes reed", ("'reed'", "'red'"), None),
    "class number": (f"detect a.png {MODEL} --classes 3", ("class 3", "0 to 2"), None),
    "zoo name": ("describe yolov4-ciny", ("'yolov4-ciny'", "'yolov4-tiny'"), None),
    "weights name": ("download yolov4-tinny", ("'yolov4-tinny'", "'yolov4-tiny'"), None),
    "protocol": ("eval model.safetensors --data . --protocol cocoo", ("'cocoo'", "'coco'"), None),
    "confidence": (f"detect a.png {MODEL} --conf 25", ("between 0 and 1", "25"), None),
    "batch": (f"detect a.png {MODEL} --batch 0", ("--batch", "0"), None),
    "tile": (f"detect a.png {MODEL} --tile 8", ("--tile", "8"), None),
    "size": (f"detect a.png {MODEL} --size 60", ("60", "multiple", "8", "56 or 64"), None),
    "width": (f"detect a.png {MODEL} --size 64 60", ("width 60",), None),
    "three sizes": (f"detect a.png {MODEL} --size 64 64 64", ("--size", "64 64 64"), None),
    "no such image": (f"detect none.jpg {MODEL}", ("none.jpg", "does not exist"), None),
    "one of two images": (f"detect a.png none.jpg {MODEL}", ("none.jpg", "does not exist"), None),
    "nothing matches": (f"detect *.bmp {MODEL}", ("*.bmp",), None),
    "no such model": ("detect a.png --model none.safetensors", ("none.safetensors", "no such file"), None),
    "no such cfg": ("detect a.png --model none.cfg model.weights", ("none.cfg",), None),
    "no such weights": ("detect a.png --model model.cfg none.weights", ("none.weights",), None),
    "empty image": (f"detect e.png {MODEL}", ("e.png", "empty"), _write("e.png", lambda _: b"", "a.png")),
    "cut image": (f"detect e.png {MODEL}", ("e.png", "cut off"), _write("e.png", lambda c: c[:-20], "a.png")),
    "video": (f"detect v.mp4 {MODEL}", ("v.mp4", "video"), _write("v.mp4", lambda c: c[::-1], "a.png")),
    "section": (
        "detect a.png --model e.cfg model.weights",
        ("e.cfg:", "[yolp]", "'yolo'"),
        _write("e.cfg", lambda c: c.replace(b"[yolo]", b"[yolp]"), "model.cfg"),
    ),
    "key": (
        "detect a.png --model e.cfg model.weights",
        ("e.cfg:", "'stryde'", "'stride'"),
        _write("e.cfg", lambda c: c.replace(b"stride=", b"stryde="), "model.cfg"),
    ),
    "short weights": (
        "detect a.png --model model.cfg e.weights",
        ("e.weights", "6192 bytes", "needs 6196"),
        _write("e.weights", lambda c: c[:-4], "model.weights"),
    ),
    "long weights": (
        "detect a.png --model model.cfg e.weights",
        ("e.weights", "6200 bytes", "needs 6196"),
        _write("e.weights", lambda c: c + bytes(4), "model.weights"),
    ),
    "number of names": (
        "detect a.png --model model.cfg model.weights --names two.names",
        ("2 class names", "3 classes"),
        lambda folder: (folder / "two.names").write_text("one\ntwo\n"),
    ),
    "names of a checkpoint": (
        f"detect a.png {MODEL} --names two.names",
        ("model.safetensors", "2 class names", "3 classes"),
        lambda folder: (folder / "two.names").write_text("one\ntwo\n"),
    ),
    "damaged checkpoint": (
        "detect a.png --model e.safetensors",
        ("e.safetensors", "damaged"),
        _write("e.safetensors", lambda c: b"\0\0\0\xff" + c[4:], "model.safetensors"),
    ),
    "cut checkpoint": (
        "describe e.safetensors",
        ("e.safetensors", "damaged"),
        _write("e.safetensors", lambda c: c[: len(c) // 2], "model.safetensors"),
    ),
    "checkpoint of another network": (
        "detect a.png --model e.safetensors",
        ("e.safetensors", "'cells.weight'", "(8, 3, 8, 8)", "missing"),
        _write("e.safetensors", lambda c: c.replace(b'"cells.weight"', b'"cellz.weight"'), "model.safetensors"),
    ),
    "spec": (
        "describe e.yaml",
        ("e.yaml", "'activatoin'", "'activation'"),
        lambda folder: (folder / "e.yaml").write_text(
            yaml.safe_dump(ZOO["yolov4-tiny"].to_dict() | {"activatoin": "mish"})
        ),
    ),
    "bomb": (f"detect bomb.png {MODEL}", ("bomb.png", "60000 x 60000"), lambda folder: bomb(folder / "bomb.png")),
    "output folder": (f"detect a.png {MODEL} --out a.png", ("a.png",), None),
    "not a model": ("detect a.png --model a.png", ("a.png",), None),
    "foreign weights": ("detect a.png --model net.pt", ("net.pt", "scaledyolo convert"), None),
    "existing file": ("convert model.weights model.safetensors", ("model.safetensors", "--force"), None),
}


def bomb(path: Path) -> None:
    """A PNG of a few hundred bytes that says it is 60,000 pixels wide and high."""

    def chunk(kind: bytes, content: bytes) -> bytes:
        return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 0, 0, 0, 0)
    rows = zlib.compress(bytes(100_000))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", rows) + chunk(b"IEND", b""))


# Each kind of input once in a process of its own, where nothing catches what a native library prints; the others in
# this one, which is thirty times faster.
IN_A_PROCESS = (
    "verb", "option", "size", "one of two images", "empty image", "video", "section", "key", "short weights",
    "number of names", "damaged checkpoint", "checkpoint of another network", "bomb",
)  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_what_cannot_be_done_is_told_in_one_line_and_changes_nothing(folder, case, monkeypatch, capfd):
    arguments, words, prepare = REFUSALS[case]
    if prepare is not None:
        prepare(folder)
    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    if case in IN_A_PROCESS:
        done = scaledyolo(*arguments.split(), cwd=folder)
    else:
        monkeypatch.chdir(folder)
        code = main(arguments.split())
        done = subprocess.CompletedProcess([], code, *capfd.readouterr())
    assert_refused(done, *words)
    after = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    assert {path: content for path, content in after.items() if "runs" not in path.parts} == before


def test_bad_images_among_good_ones_are_skipped_counted_and_listed(folder, paint):
    (folder / "mixed").mkdir()
    for name in ("1", "3", "5"):
        Image.fromarray(paint(64, 64, *CELLS)).save(folder / "mixed" / f"{name}.png")
    (folder / "mixed" / "2.png").write_bytes(b"")
    (folder / "mixed" / "4.png").write_bytes((folder / "a.png").read_bytes()[:60])
    bomb(folder / "mixed" / "6.png")
    for sources in (("mixed",), tuple(f"mixed/{number}.png" for number in range(1, 7))):
        done = detect(*sources, "--save", "jsonl", "--batch", "2", cwd=folder)
        assert done.returncode == 1
        assert "3 images, 9 objects" in done.stdout
        skipped = done.stderr.splitlines()
        assert [line.split()[:2] for line in skipped] == [["skipped:", f"mixed/{name}.png"] for name in (2, 4, 6)]
    assert found_in(folder / "runs" / "detect") == {f"{name}.png": BOXES for name in (1, 3, 5)}
    assert found_in(folder / "runs" / "detect-2") == {f"{name}.png": BOXES for name in (1, 3, 5)}


def limited(file_bytes: int) -> Callable[[], None]:
    """Files may not grow beyond that: writing fails as on a full disk, with another reason."""
    return lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))


def test_a_full_disk_ends_the_run_and_keeps_what_was_done(folder):
    (folder / "mixed").mkdir()
    for name in ("1", "2"):
        (folder / "mixed" / f"{name}.png").write_bytes((folder / "a.png").read_bytes())
    noise = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    Image.fromarray(noise).save(folder / "mixed" / "3.png")
    done = detect("mixed", cwd=folder, preexec_fn=limited(50_000))
    assert_refused(done, "3.png", "cannot be written")
    assert "2 images, 6 objects" in done.stdout
    run = folder / "runs" / "detect"
    # What the text formats had of the third image stays whole as well.
    assert {name: found_in(run)[name] for name in ("1.png", "2.png")} == {"1.png": BOXES, "2.png": BOXES}
    assert [path.name for path in sorted((run / "annotated").iterdir())] == ["1.png", "2.png"]


def test_a_full_disk_leaves_no_half_checkpoint(folder):
    done = scaledyolo("convert", "model.weights", "new.safetensors", cwd=folder, preexec_fn=limited(2000))
    assert_refused(done, "new.safetensors", "nothing was changed")
    assert not [path for path in folder.iterdir() if "new" in path.name]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_standard_output_is_told(folder):
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "scaledyolo", "describe", "yolov4-tiny"],
            stdout=full, stderr=subprocess.PIPE, text=True, cwd=folder, timeout=60,
        )  # fmt: skip
    assert_refused(done, "No space left on device")


def test_warnings_are_sentences_without_code(folder):
    code = "import warnings; from scaledyolo import cli; cli._run = lambda _: warnings.warn('mind this'); cli.main([])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=folder, timeout=60)
    assert done.stderr == "scaledyolo: warning: mind this\n"


def test_a_destination_of_another_verb_is_told(folder):
    assert_refused(
        scaledyolo("convert", "model.weights", "x.onnx", cwd=folder), "scaledyolo export MODEL --format onnx"
    )


def test_a_reader_that_goes_away_is_no_error(folder):
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        [sys.executable, "-m", "scaledyolo", "zoo"], stdout=write, stderr=subprocess.PIPE, cwd=folder, timeout=60
    )
    os.close(write)
    assert (done.returncode, done.stderr) == (0, b"")


def test_ctrl_c_keeps_what_was_done(folder):
    (folder / "many").mkdir()
    for index in range(2000):
        os.link(folder / "a.png", folder / "many" / f"{index}.png")
    process = subprocess.Popen(
        [sys.executable, "-m", "scaledyolo", "detect", "many", *MODEL.split()],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    lines = folder / "runs" / "detect" / "detections.jsonl"
    deadline = time.monotonic() + 60
    while not (lines.exists() and lines.read_bytes().count(b"\n") >= 20) and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    output, complaint = process.communicate(timeout=60)
    assert process.returncode == 130, complaint
    assert complaint == "scaledyolo: interrupted; what was done is kept\n"
    done = found_in(folder / "runs" / "detect")
    assert 20 <= len(done) < 2000
    assert all(boxes == BOXES for boxes in done.values())
    assert f"{len(done):,} images" in output or f"{len(done) - 1:,} images" in output
    for path in (folder / "runs" / "detect" / "annotated").iterdir():
        assert not path.name.startswith(".")
        with Image.open(path) as drawn:
            drawn.load()


# -- how the arguments' parser is rephrased ----------------------------------------------------------------------------


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_help_offers_no_none_where_leaving_the_option_out_says_the_same(verb, capsys):
    with pytest.raises(SystemExit) as end:
        main([verb, "--help"])
    assert not end.value.code
    assert ("None}" in capsys.readouterr().out) == (verb == "eval")  # where --out None writes no report


@pytest.mark.parametrize("verb", sorted(VERBS))
def test_help_tells_defaults_whole_and_only_those_that_say_something(verb, capsys):
    with pytest.raises(SystemExit):
        main([verb, "--help"])
    told = capsys.readouterr().out
    defaults = re.findall(r"\(default:[^)]*\)", told)
    assert all(re.fullmatch(r"\(default: [^\n]+\)", one) for one in defaults), defaults
    assert not {"(default: )", "(default: None)", "(default: '')"} & set(defaults)
    assert "\u00a0" not in told
    assert len(told.splitlines()) > len(defaults)


def test_zoo_as_json_is_the_table(capsys):
    assert main(["zoo", "--json"]) == 0
    rows = {row["name"]: row for row in json.loads(capsys.readouterr().out)}
    assert list(rows) == list(ZOO)
    assert main(["zoo"]) == 0
    for line in capsys.readouterr().out.splitlines()[1:]:
        name, size, params, gflop, boxes = line.split()
        row = rows[name]
        assert (size, params, boxes) == (str(row["size"]), f"{row['params']:,}", f"{row['boxes']:,}")
        assert gflop == f"{row['gflops']:.3f}"
    assert rows["yolov4-csp"]["size"] == 640


def test_a_box_of_several_lines_becomes_a_sentence():
    box = (
        "╭─ Required options ─────╮\n│ Missing from x:          │\n│     --model MODEL        │\n"
        "│         Help of it.      │\n│ ──────────────────────── │\n│ For full helptext, run x │\n╰──────────╯\n"
    )
    assert one_sentence(box, ["--model"]) == "--model MODEL is missing."
    assert one_sentence("", []) == "the arguments cannot be understood."
    assert one_sentence("│ Unrecognized options: --ize, 3 │", ["--size"]) == (
        "there is no option '--ize'. Did you mean '--size'?"
    )
