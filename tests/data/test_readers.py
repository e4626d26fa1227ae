"""Readers: every kind of bad item is reported as file:line, formats are recognised, real sets read as known."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from scaledyolo.classes import COCO_CATEGORY_IDS
from scaledyolo.data.coco import read_coco, to_coco
from scaledyolo.data.dataset import Dataset, concatenate, select_by_list, select_share
from scaledyolo.data.formats import open_dataset, recognise
from scaledyolo.data.voc import read_voc
from scaledyolo.data.yolo_txt import label_file, read_yolo_folder, read_yolo_yaml
from scaledyolo.errors import DataError, FormatError, UsageError

HEIGHT, WIDTH = 40, 50


def write_image(path: Path, height: int = HEIGHT, width: int = WIDTH) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(path.name)).integers(0, 256, (height, width, 3), dtype=np.uint8)
    assert cv2.imwrite(str(path), noise)


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, "utf-8")
    return path


def problems(dataset: Dataset) -> list[tuple[str, str, str]]:
    return [(item.kind, Path(item.file).name, item.place) for item in dataset.report.problems]


@pytest.fixture
def yolo(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        write_image(tmp_path / "train" / "images" / f"{name}.jpg")
    write(tmp_path / "train" / "labels" / "a.txt", "0 0.5 0.5 0.2 0.4\n1 0.1 0.1 0.2 0.2\n")
    write(tmp_path / "train" / "labels" / "b.txt", "")
    write(tmp_path / "data.yaml", "train: ../train/images\nnc: 2\nnames: [cat, dog]\n")
    return tmp_path


BAD_ROWS = [
    ("0 0.5 0.5 0.2", "column-count"),
    ("0 0.5 0.5 0.2 0.2 0.9", "column-count"),
    ("0 0.5 half 0.2 0.2", "not-a-number"),
    ("2 0.5 0.5 0.2 0.2", "wrong-class"),
    ("-1 0.5 0.5 0.2 0.2", "wrong-class"),
    ("0.5 0.5 0.5 0.2 0.2", "wrong-class"),
    ("0 nan 0.5 0.2 0.2", "not-finite"),
    ("0 0.5 -inf 0.2 0.2", "not-finite"),
    ("0 0.5 0.5 0 0.2", "zero-size"),
    ("0 0.5 0.5 -0.1 0.2", "reversed"),
    ("0 1.5 0.5 0.2 0.2", "outside"),
    ("0 25 20 10 10", "outside"),
    ("0 0.95 0.5 0.3 0.2", "outside"),
    ("0 0.5 0.5 0.2 0.4", "duplicate"),
]


@pytest.mark.parametrize(("row", "kind"), BAD_ROWS)
def test_yolo_rows_are_reported_with_their_line(yolo: Path, row: str, kind: str) -> None:
    labels = write(yolo / "train" / "labels" / "a.txt", f"0 0.5 0.5 0.2 0.4\n\n{row}\n")
    kept = open_dataset(yolo, bad="skip")
    assert problems(kept) == [(kind, "a.txt", "3")]
    assert kept.annotations.num_boxes == 1
    with pytest.raises(DataError, match=f"{labels}:3: "):
        open_dataset(yolo, bad="fail")


def test_fixing_cuts_boxes_at_the_border_and_keeps_one_of_two(yolo: Path) -> None:
    write(yolo / "train" / "labels" / "a.txt", "0 0.95 0.5 0.3 0.2\n1 0.5 0.5 0.2 0.2\n1 0.5 0.5 0.2 0.2\n")
    fixed = open_dataset(yolo, bad="fix")
    boxes, class_ids = fixed.objects(0)
    np.testing.assert_allclose(boxes, [[40, 16, 50, 24], [20, 16, 30, 24]], atol=1e-4)
    assert class_ids.tolist() == [0, 1]
    assert {item.action for item in fixed.report.problems} == {"fixed"}


def test_yolo_layout(yolo: Path) -> None:
    dataset = open_dataset(yolo)
    assert dataset.names == ("cat", "dog")
    assert len(dataset) == 3  # an empty label and a missing one are background
    assert dataset.report.num_background == 2
    assert not dataset.report.problems
    np.testing.assert_allclose(dataset.objects(0)[0], [[20, 12, 30, 28], [0, 0, 10, 8]], atol=1e-5)
    assert label_file(Path("images/x/images/a/b.jpg")) == Path("images/x/labels/a/b.txt")
    assert label_file(Path("x/b.jpg")) == Path("x/b.txt")
    with pytest.raises(DataError, match="no split 'test'"):
        open_dataset(yolo, "test")


def test_yolo_polygons_become_boxes(yolo: Path) -> None:
    write(yolo / "train" / "labels" / "a.txt", "1 0.2 0.5 0.4 0.25 0.6 0.5 0.4 0.75\n")
    dataset = open_dataset(yolo)
    np.testing.assert_allclose(dataset.objects(0)[0], [[10, 10, 30, 30]], atol=1e-5)
    assert dataset.report.num_polygons == 1


def test_yolo_orphans_and_bad_images(yolo: Path) -> None:
    write(yolo / "train" / "labels" / "nobody.txt", "0 0.5 0.5 0.1 0.1\n")
    write(yolo / "train" / "images" / "text.jpg", "this is no image")
    write_image(yolo / "train" / "images" / "tiny.png", 9, 30)
    whole = (yolo / "train" / "images" / "c.jpg").read_bytes()
    (yolo / "train" / "images" / "c.jpg").write_bytes(whole[: len(whole) // 2])
    shallow = open_dataset(yolo, check="header")
    assert sorted(problems(shallow)) == [
        ("missing-image", "nobody.txt", ""),
        ("unreadable-image", "c.jpg", ""),  # its end is missing
        ("unreadable-image", "text.jpg", ""),
        ("unreadable-image", "tiny.png", ""),
    ]
    assert len(shallow) == 2
    # Header and end are there, the middle is damaged: only decoding tells.
    write_image(yolo / "train" / "images" / "b.png")
    damaged = bytearray((yolo / "train" / "images" / "b.png").read_bytes())
    damaged[len(damaged) // 2] ^= 0xFF
    (yolo / "train" / "images" / "b.png").write_bytes(damaged)
    assert ("unreadable-image", "b.png", "") not in problems(open_dataset(yolo))
    assert ("unreadable-image", "b.png", "") in problems(open_dataset(yolo, check="full"))
    appended = yolo / "train" / "images" / "a.jpg"
    appended.write_bytes(appended.read_bytes() + b"appended by the camera")
    assert ("unreadable-image", "a.jpg", "") not in problems(open_dataset(yolo))


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: train/images\nnames: [cat\n", r"data.yaml:\d+:\d+: not valid YAML"),
        ("train: train/images\nnames: [cat, dog]\nnc: 3\n", "nc is 3 but 2 names"),
        ("train: train/images\nnames: {0: cat, 2: dog}\n", "numbered 0 to 1"),
        ("train: nowhere\nnames: [cat, dog]\n", "'nowhere' does not exist"),
        ("train: train/images\n", "no class names"),
        ("- a\n- b\n", "must be a mapping"),
    ],
)
def test_bad_data_yaml(yolo: Path, text: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_yolo_yaml(write(yolo / "data.yaml", text))


def test_yaml_forms_list_of_folders_list_file_and_names_by_number(yolo: Path) -> None:
    write_image(yolo / "more" / "images" / "d.png")
    write(yolo / "list.txt", "./more/images/d.png\n\ntrain/images/a.jpg\ntrain/images/gone.jpg\n")
    text = f"path: {yolo}\ntrain: [train/images, more]\nval: list.txt\nnames: {{0: cat, 1: dog}}\n"
    write(yolo / "data.yaml", text)
    assert len(open_dataset(yolo / "data.yaml")) == 4
    listed = open_dataset(yolo, "valid")
    assert [Path(path).name for path in listed.annotations.paths] == ["d.png", "a.jpg"]
    assert problems(listed) == [("missing-image", "list.txt", "4")]


def test_yolo_without_yaml_counts_classes_over_all_splits(yolo: Path) -> None:
    (yolo / "data.yaml").unlink()
    write_image(yolo / "valid" / "images" / "v.jpg")
    write(yolo / "valid" / "labels" / "v.txt", "4 0.5 0.5 0.2 0.2\n")
    assert open_dataset(yolo, "train").names == ("class0", "class1", "class2", "class3", "class4")
    assert len(open_dataset(yolo, "val")) == 1
    write(yolo / "classes.txt", "a\nb\n")
    assert problems(open_dataset(yolo, "val")) == [("wrong-class", "v.txt", "1")]
    assert len(read_yolo_folder(yolo / "valid", names=list("abcde")).names) == 5


def test_files_of_windows_lose_no_row_and_no_image(yolo: Path) -> None:
    """A byte order mark and CRLF line ends change nothing that is read."""
    expected = open_dataset(yolo).annotations.boxes_xyxy
    for path in (yolo / "train" / "labels" / "a.txt", yolo / "data.yaml"):
        path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", b"\r\n"))
    dataset = open_dataset(yolo)
    assert problems(dataset) == []
    np.testing.assert_array_equal(dataset.annotations.boxes_xyxy, expected)
    (yolo / "wanted.txt").write_bytes(b"\xef\xbb\xbfa.jpg\r\nb.jpg\r\n")
    assert len(select_by_list(dataset, yolo / "wanted.txt")) == 2
    (yolo / "listed.txt").write_bytes(b"\xef\xbb\xbftrain/images/a.jpg\r\n")
    write(yolo / "data.yaml", "train: listed.txt\nnames: [cat, dog]\n")
    np.testing.assert_array_equal(open_dataset(yolo).annotations.boxes_xyxy, expected)
    (yolo / "data.yaml").unlink()
    (yolo / "classes.txt").write_bytes(b"\xef\xbb\xbfcat\r\ndog\r\n")
    assert open_dataset(yolo).names == ("cat", "dog")


def test_an_empty_line_between_class_names_is_refused_since_it_would_move_the_ids(yolo: Path) -> None:
    (yolo / "data.yaml").unlink()
    write(yolo / "classes.txt", "cat\n\ndog\n")
    with pytest.raises(FormatError, match=r"classes.txt:2: empty line"):
        open_dataset(yolo)


@pytest.mark.parametrize(
    ("row", "hint"),
    [
        ("2 0.5 0.5 0.2 0.2", "do the ids count from 1?"),
        ("0 0.5 0.5 0.2 0.2 0.9", "score of a detector"),
        ("0,0.5,0.5,0.2,0.2", "spaces in place of the commas"),
    ],
)
def test_usual_slips_in_rows_are_told_by_name(yolo: Path, row: str, hint: str) -> None:
    write(yolo / "train" / "labels" / "a.txt", row)
    (problem,) = open_dataset(yolo).report.problems
    assert hint in problem.reason


@pytest.fixture
def coco(tmp_path: Path) -> dict[str, Any]:
    write_image(tmp_path / "train" / "x.jpg")
    write_image(tmp_path / "train" / "y.jpg")
    return {
        "images": [
            {"id": 7, "file_name": "x.jpg", "height": HEIGHT, "width": WIDTH},
            {"id": 3, "file_name": "y.jpg", "height": HEIGHT, "width": WIDTH},
        ],
        "annotations": [
            {"id": 1, "image_id": 7, "category_id": 90, "bbox": [1, 2, 10, 20], "area": 150, "iscrowd": 0},
            {"id": 2, "image_id": 7, "category_id": 5, "bbox": [0, 0, 50, 40], "iscrowd": 1},
        ],
        "categories": [{"id": 90, "name": "ninety"}, {"id": 5, "name": "five"}],
    }


def save(folder: Path, content: dict[str, Any]) -> Path:
    return write(folder / "instances_train.json", json.dumps(content))


def test_coco_keeps_ids_crowds_and_areas(tmp_path: Path, coco: dict[str, Any]) -> None:
    dataset = read_coco(save(tmp_path, coco))
    notes = dataset.annotations
    assert dataset.names == ("five", "ninety")
    assert dataset.original_ids == (5, 90)
    assert notes.image_ids.tolist() == [7, 3]
    assert notes.class_ids.tolist() == [1, 0]
    assert notes.crowd.tolist() == [False, True]
    assert notes.areas.tolist() == [150, 2000]
    boxes, class_ids = dataset.objects(0)  # the crowd is not for training
    np.testing.assert_allclose(boxes, [[1, 2, 11, 22]])
    assert class_ids.tolist() == [1]
    back = to_coco(dataset)
    assert [item["bbox"] for item in back["annotations"]] == [[1, 2, 10, 20], [0, 0, 50, 40]]
    assert [item["category_id"] for item in back["annotations"]] == [90, 5]


@pytest.mark.parametrize(
    ("change", "kind"),
    [
        ({"bbox": [1, 2, 0, 5]}, "zero-size"),
        ({"bbox": [1, 2, -3, 5]}, "zero-size"),
        ({"bbox": [1, 2, float("nan"), 5]}, "not-finite"),
        ({"bbox": [1, 2, "wide", 5]}, "not-a-number"),
        ({"bbox": [1, 2, 3]}, "column-count"),
        ({"bbox": [60, 2, 3, 3]}, "outside"),
        ({"category_id": 6}, "wrong-class"),
        ({"image_id": 99}, "missing-image"),
        ({"bbox": [1, 2, 10, 20], "category_id": 90}, "duplicate"),
    ],
)
def test_coco_problems_name_the_record(tmp_path: Path, coco: dict[str, Any], change: dict[str, Any], kind: str) -> None:
    coco["annotations"].append({"id": 55, "image_id": 7, "category_id": 5, "bbox": [3, 3, 4, 4], **change})
    dataset = read_coco(save(tmp_path, coco), bad="skip")
    assert problems(dataset) == [(kind, "instances_train.json", "annotations[2] (id 55)")]
    assert dataset.annotations.num_boxes == 2


def test_coco_images_missing_mismatched_or_repeated(tmp_path: Path, coco: dict[str, Any]) -> None:
    coco["images"] += [
        {"id": 8, "file_name": "gone.jpg"},
        {"id": 7, "file_name": "x.jpg"},
        {"file_name": "x.jpg"},
    ]
    coco["images"][1]["width"] = 999
    dataset = read_coco(save(tmp_path, coco), bad="fix")
    assert [(kind, place) for kind, _, place in problems(dataset)] == [
        ("size-mismatch", "images[1]"),
        ("missing-image", "images[2]"),
        ("duplicate", "images[3]"),
        ("missing-field", "images[4]"),
    ]
    assert dataset.annotations.sizes.tolist() == [[HEIGHT, WIDTH]] * 2


def test_coco_with_a_byte_order_mark_is_recognised(tmp_path: Path, coco: dict[str, Any]) -> None:
    for path in tmp_path.glob("**/*.json"):
        path.unlink()
    (tmp_path / "train.json").write_bytes(b"\xef\xbb\xbf" + json.dumps(coco).encode())
    assert recognise(tmp_path) == "coco"
    assert len(read_coco(tmp_path / "train.json")) > 0


def test_coco_that_is_not_coco(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"a.json:2:3: not valid JSON"):
        read_coco(write(tmp_path / "a.json", '{"images": [],\n  broken'))
    with pytest.raises(DataError, match="it has no annotations, categories"):
        read_coco(write(tmp_path / "b.json", '{"images": []}'))
    with pytest.raises(DataError, match=r"categories\[0\]"):
        read_coco(write(tmp_path / "c.json", '{"images": [], "annotations": [], "categories": [{"id": "1"}]}'))


def test_coco_class_numbering_of_the_specification() -> None:
    assert len(COCO_CATEGORY_IDS) == 80
    assert COCO_CATEGORY_IDS[:13] == (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 13, 14)
    assert COCO_CATEGORY_IDS[-1] == 90
    assert not {12, 26, 29, 30, 45, 66, 68, 69, 71, 83, 91} & set(COCO_CATEGORY_IDS)


OBJECT = (
    "<object>\n<name>{name}</name>\n"
    "<bndbox><xmin>{0}</xmin><ymin>{1}</ymin><xmax>{2}</xmax><ymax>{3}</ymax></bndbox>\n</object>"
)


def voc_text(*objects: str, width: int = WIDTH) -> str:
    size = f"<size><width>{width}</width><height>{HEIGHT}</height></size>"
    return "\n".join(["<annotation>", "<filename>p.jpg</filename>", size, *objects, "</annotation>"])


@pytest.fixture
def voc(tmp_path: Path) -> Path:
    write_image(tmp_path / "JPEGImages" / "p.jpg")
    write(tmp_path / "Annotations" / "p.xml", voc_text(OBJECT.format(1, 2, 11, 22, name="dog")))
    write(tmp_path / "ImageSets" / "Main" / "train.txt", "p\n")
    return tmp_path


@pytest.mark.parametrize(
    ("text", "kind", "place"),
    [
        (OBJECT.format(5, 5, 5, 5, name="dog"), "zero-size", "10"),
        (OBJECT.format(9, 5, 3, 8, name="dog"), "reversed", "10"),
        (OBJECT.format(5, 5, 70, 9, name="dog"), "outside", "10"),
        (OBJECT.format(1, 2, 11, 22, name="dog"), "duplicate", "10"),
        (OBJECT.format("x", 2, 11, 22, name="dog"), "not-a-number", "8"),
        (OBJECT.format(1, "nan", 11, 22, name="dog"), "not-finite", "10"),
        (OBJECT.format(1, 2, 11, 22, name="cow"), "wrong-class", "8"),
        ("<object>\n<name>dog</name>\n</object>", "missing-field", "8"),
    ],
)
def test_voc_problems_name_the_line(voc: Path, text: str, kind: str, place: str) -> None:
    write(voc / "Annotations" / "p.xml", voc_text(OBJECT.format(1, 2, 11, 22, name="dog"), text))
    dataset = read_voc(voc, names=["dog"], bad="skip")
    assert problems(dataset) == [(kind, "p.xml", place)]
    np.testing.assert_allclose(dataset.objects(0)[0], [[1, 2, 11, 22]])


def test_voc_malformed_and_dangerous_files(voc: Path) -> None:
    write(voc / "Annotations" / "q.xml", "<annotation>\n<object></annotation>")
    bomb = '<!DOCTYPE a [<!ENTITY b "boom"><!ENTITY c "&b;&b;&b;">]>\n<annotation>&c;</annotation>'
    write(voc / "Annotations" / "r.xml", bomb)
    write(voc / "ImageSets" / "Main" / "train.txt", "p\nq\nr\ns\np\n")
    dataset = open_dataset(voc)
    assert sorted(problems(dataset)) == [
        ("duplicate", "train.txt", "5"),
        ("malformed", "q.xml", "2:11"),
        ("malformed", "r.xml", "1"),
        ("missing-label", "train.txt", "4"),
    ]
    with pytest.raises(DataError, match="no such split; found are train"):
        open_dataset(voc, "test")


def test_voc_details(voc: Path) -> None:
    difficult = OBJECT.format(3, 3, 9, 9, name="ant").replace("<name>", "<difficult>1</difficult><name>")
    write(voc / "Annotations" / "p.xml", voc_text(difficult, OBJECT.format(1, 2, 11, 22, name="dog"), width=49))
    dataset = read_voc(voc, one_based=True)
    assert dataset.names == ("ant", "dog")
    assert dataset.annotations.difficult.tolist() == [True, False]
    np.testing.assert_allclose(dataset.objects(0)[0], [[2, 2, 9, 9], [0, 1, 11, 22]])
    assert problems(dataset) == [("size-mismatch", "p.xml", "3")]
    assert len(read_voc(voc, bad="skip").annotations) == 0


def test_recognition_and_wrong_paths(tmp_path: Path, voc: Path) -> None:
    assert recognise(voc) == "voc"
    with pytest.raises(DataError, match="Did you mean 'Annotations'"):
        open_dataset(voc / "Anotations")
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="no known data set layout"):
        open_dataset(tmp_path / "empty")
    with pytest.raises(UsageError, match="Did you mean 'skip'"):
        open_dataset(voc, bad="skpi")  # type: ignore[arg-type]
    (voc / "JPEGImages" / "p.jpg").unlink()
    with pytest.raises(DataError, match="no usable image"):
        open_dataset(voc)


def test_concatenation_splits_and_fingerprint(yolo: Path, tmp_path: Path, coco: dict[str, Any]) -> None:
    first, second = open_dataset(yolo), read_coco(save(tmp_path, coco))
    with pytest.raises(DataError, match="class lists differ"):
        concatenate([first, second])
    both = concatenate([first, second], classes="merge")
    assert both.names == ("cat", "dog", "five", "ninety")
    assert len(set(both.original_ids)) == 4
    assert both.annotations.class_ids.tolist() == [0, 1, 3, 2]
    assert len(both) == 5
    np.testing.assert_array_equal(both.objects(3)[0], second.objects(0)[0])
    np.testing.assert_array_equal(both.subset([3, 0]).objects(0)[0], second.objects(0)[0])
    assert len(set(both.annotations.image_ids.tolist())) == 5
    fingerprint = first.fingerprint
    assert fingerprint == open_dataset(yolo).fingerprint
    write(yolo / "train" / "labels" / "b.txt", "0 0.5 0.5 0.2 0.4\n")
    assert fingerprint != open_dataset(yolo).fingerprint
    write(yolo / "wanted.txt", "c\ntrain/images/a.jpg\n")
    chosen = select_by_list(first, yolo / "wanted.txt")
    assert [Path(path).name for path in chosen.annotations.paths] == ["c.jpg", "a.jpg"]
    write(yolo / "wanted.txt", "c\nzebra\n")
    with pytest.raises(DataError, match=r"wanted.txt:2: image 'zebra'"):
        select_by_list(first, yolo / "wanted.txt")


def test_a_replaced_image_is_noticed(yolo: Path) -> None:
    dataset = open_dataset(yolo)
    write_image(yolo / "train" / "images" / "a.jpg", 20, 20)
    with pytest.raises(DataError, match="was the file replaced"):
        dataset.load_image(0)


def test_exif_rotation_is_applied_to_size_and_pixels(tmp_path: Path) -> None:
    from PIL import Image

    path = tmp_path / "images" / "turned.jpg"
    path.parent.mkdir()
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (50, 40)).save(path, exif=exif)
    dataset = read_yolo_folder(tmp_path, names=["a"])
    assert dataset.annotations.sizes.tolist() == [[50, 40]]
    assert dataset.load_image(0).shape == (50, 40, 3)


@pytest.mark.shared
def test_bccd(shared: Path) -> None:
    parts = {split: open_dataset(shared / "data/bccd", split) for split in ("train", "val", "test")}
    assert {name: len(part) for name, part in parts.items()} == {"train": 205, "val": 87, "test": 72}
    assert sum(part.annotations.num_boxes for part in parts.values()) == 4888 - 2
    found = [item for part in parts.values() for item in part.report.problems]
    assert sorted(Path(item.file).stem for item in found) == ["BloodImage_00338", "BloodImage_00343"]
    assert {item.kind for item in found} == {"zero-size"}
    assert {part.names for part in parts.values()} == {("Platelets", "RBC", "WBC")}


@pytest.mark.shared
def test_aquarium(shared: Path) -> None:
    parts = {split: open_dataset(shared / "data/aquarium", split) for split in ("train", "val", "test")}
    assert {name: len(part) for name, part in parts.items()} == {"train": 448, "val": 127, "test": 63}
    assert {name: len(part.report.problems) for name, part in parts.items()} == {"train": 0, "val": 0, "test": 2}
    assert parts["test"].report.counts == {"zero-size": 2}
    assert parts["train"].report.num_background == 1
    assert {part.num_classes for part in parts.values()} == {7}


@pytest.mark.shared
def test_coco_mini(shared: Path) -> None:
    val = open_dataset(shared / "data/coco_mini", "val")
    assert (len(val), val.annotations.num_boxes, int(val.annotations.crowd.sum())) == (328, 2647, 28)
    assert val.original_ids == COCO_CATEGORY_IDS
    assert not val.report.problems
    most, rest = select_share(val, 0.0, 0.8, seed=1), select_share(val, 0.8, 1.0, seed=1)
    assert len(most) + len(rest) == 328
    assert 230 < len(most) < 290
    shuffled = val.subset(np.random.default_rng(0).permutation(328))
    assert set(select_share(shuffled, 0.8, 1.0, seed=1).annotations.paths) == set(rest.annotations.paths)


# --- files that anybody may have written ---


@pytest.mark.parametrize(
    ("images", "words"),
    [
        ([{"id": 1, "file_name": 3}], "text as file_name"),
        ([{"id": [1], "file_name": "a.png"}], "whole number as id"),
        ([{"id": 10**30, "file_name": "a.png"}], "whole number as id"),
        ([{"id": "one", "file_name": "a.png"}], "whole number as id"),
    ],
)
def test_coco_images_of_wrong_types(tmp_path: Path, images: list[Any], words: str) -> None:
    write_image(tmp_path / "a.png")
    content = {"images": images, "annotations": [], "categories": [{"id": 1, "name": "x"}]}
    with pytest.raises(DataError, match=words):
        read_coco(write(tmp_path / "x.json", json.dumps(content)), bad="fail")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"image_id": [1]}, "image_id is no whole number"),
        ({"image_id": {}}, "image_id is no whole number"),
        ({"category_id": [1]}, "no category has the id"),
        ({"bbox": [10**400, 1, 9, 9]}, "not a number"),
        ({"area": 10**400}, "not a number"),
    ],
)
def test_coco_boxes_of_wrong_types(tmp_path: Path, change: dict[str, Any], words: str) -> None:
    write_image(tmp_path / "a.png")
    box = {"image_id": 7, "category_id": 1, "bbox": [1, 1, 9, 9]}
    content = {
        "images": [{"id": "7", "file_name": "a.png"}],  # some tools write numbers as text
        "annotations": [box, {**box, "bbox": [2, 2, 5, 5], **change}],
        "categories": [{"id": 1, "name": "x"}],
    }
    path = write(tmp_path / "x.json", json.dumps(content))
    dataset = read_coco(path)
    assert dataset.annotations.image_ids.tolist() == [7]
    np.testing.assert_array_equal(dataset.annotations.boxes_xyxy, [[1, 1, 10, 10]])
    assert words in str(dataset.report)
    with pytest.raises(DataError, match="nested too deeply"):
        read_coco(write(path, "[" * 100_000))


@pytest.mark.parametrize("label", ["3000000000", "1e300", "10000", "9" * 400])
def test_a_class_id_that_is_none_makes_no_names(tmp_path: Path, label: str) -> None:
    write_image(tmp_path / "images/a.png")
    write(tmp_path / "labels/a.txt", f"2 .5 .5 .2 .2\n{label} .5 .5 .4 .4\n")
    dataset = open_dataset(tmp_path)
    assert dataset.names == ("class0", "class1", "class2")
    assert dataset.report.counts == {"wrong-class": 1}
    assert read_yolo_folder(tmp_path).names == dataset.names


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("names: [[a, b]]", "every class name is one text, found the list"),
        ("names: [a, null]", "every class name is one text, found the NoneType"),
        ("names: {0: a, x: b}", "names must be numbered 0 to 1"),
        ("names: " + "[" * 5000, "nested too deeply"),
    ],
)
def test_descriptions_of_wrong_types(tmp_path: Path, text: str, words: str) -> None:
    write_image(tmp_path / "images/a.png")
    with pytest.raises(DataError, match=words):
        read_yolo_yaml(write(tmp_path / "data.yaml", f"{text}\ntrain: images\n"))


def test_labels_of_images_that_are_not_listed_are_no_orphans(tmp_path: Path) -> None:
    names = [f"{number}[x]" for number in range(40)]
    for name in names:
        write_image(tmp_path / f"images/{name}.png")
        write(tmp_path / f"labels/{name}.txt", "0 .5 .5 .2 .2\n")
    write(tmp_path / "labels/alone.txt", "0 .5 .5 .2 .2\n")
    write(tmp_path / "train.txt", f"images/{names[0]}.png\n")
    dataset = read_yolo_yaml(write(tmp_path / "data.yaml", "names: [a]\ntrain: train.txt\n"))
    assert len(dataset) == 1
    assert [Path(problem.file).name for problem in dataset.report.problems] == ["alone.txt"]


@pytest.mark.parametrize(("height", "words"), [("inf", ""), ("nan", ""), ("<a>" * 3000 + "</a>" * 3000, "deeply")])
def test_voc_of_wrong_values(tmp_path: Path, height: str, words: str) -> None:
    write_image(tmp_path / "JPEGImages/a.jpg")
    text = f"<annotation><filename>a.jpg</filename><size><height>{height}</height><width>50</width></size></annotation>"
    write(tmp_path / "Annotations/a.xml", text)
    dataset = read_voc(tmp_path, None)
    assert len(dataset) == (0 if words else 1)
    assert words in str(dataset.report)
