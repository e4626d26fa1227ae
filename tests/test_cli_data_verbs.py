"""The verbs that look at data before training: doctor, anchors, preview, recipes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import yaml

from scaledyolo.arch.spec import ModelSpec
from scaledyolo.cli import main
from scaledyolo.train.recipe import RECIPES, Recipe

Rows = list[str]
SIDE = 96


def write_split(folder: Path, split: str, labels: list[Rows | None], seed: int = 0) -> None:
    """Images of noise; labels in YOLO's rows, None for no label file."""
    rng = np.random.default_rng((seed, len(split)))
    for part in ("images", "labels"):
        (folder / part / split).mkdir(parents=True)
    for number, rows in enumerate(labels):
        small = rng.integers(0, 256, (6, 6, 3), dtype=np.uint8)
        image = cv2.resize(small, (SIDE, SIDE), interpolation=cv2.INTER_NEAREST)
        assert cv2.imwrite(str(folder / "images" / split / f"{number}.png"), image)
        if rows is not None:
            (folder / "labels" / split / f"{number}.txt").write_text("\n".join(rows))


def row(class_id: int = 0, width: float = 0.3, height: float = 0.4) -> str:
    return f"{class_id} .5 .5 {width} {height}"


def write_set(folder: Path, train: list[Rows | None], val: list[Rows | None]) -> Path:
    """A YOLO data set of the classes a and b; returns its data.yaml."""
    write_split(folder, "train", train)
    write_split(folder, "val", val, seed=1)
    path = folder / "data.yaml"
    parts = {"path": str(folder), "train": "images/train", "val": "images/val", "names": ["a", "b"]}
    path.write_text(yaml.safe_dump(parts))
    return path


@pytest.fixture
def good(tmp_path: Path) -> Path:
    sizes = [(0.2 + 0.01 * n, 0.5 - 0.01 * n) for n in range(25)]
    train = [[row(0, *size), row(1, *size[::-1])] for size in sizes]
    return write_set(tmp_path / "good", train, [[row(0), row(1)]] * 3)


def doctor(capsys: pytest.CaptureFixture[str], data: Path, *more: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = main(["doctor", "--data", str(data), "--size", str(SIDE), "--json", *more])
    return code, json.loads(capsys.readouterr().out)


def levels(report: dict[str, Any], topic: str) -> list[str]:
    return [finding["level"] for finding in report["findings"] if finding["topic"] == topic]


def test_a_good_data_set_is_called_good(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = doctor(capsys, good)
    assert code == 0
    assert not report["blocks"]
    assert {finding["level"] for finding in report["findings"]} == {"fine"}
    train, val = report["splits"]
    assert (train["images"], train["boxes"], val["images"], val["boxes"]) == (25, 50, 3, 6)
    assert train["class_counts"] == {"a": 25, "b": 25}
    areas = [SIDE**2 * (0.2 + 0.01 * n) * (0.5 - 0.01 * n) for n in range(25)]
    assert train["sizes"] == pytest.approx(np.quantile(np.sqrt(areas), (0, 0.1, 0.5, 0.9, 1)), abs=0.15)
    assert report["anchors"]["recall"] == 1.0
    assert report["training_bytes"] > 500 * 2**20
    assert report["cache_bytes"] == (25 + 3) * SIDE * SIDE * 3


def test_text_and_page_say_the_same(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doctor", "--data", str(good), "--size", str(SIDE), "--out", str(tmp_path / "runs")]) == 0
    said = capsys.readouterr().out
    folder = tmp_path / "runs" / "doctor"
    report = json.loads((folder / "report.json").read_text())
    html = (folder / "report.html").read_text()
    for finding in report["findings"]:
        assert finding["text"] in said
        assert finding["text"] in html
    assert "  a                 ######" in said
    assert html.count("data:image/jpeg;base64,") == 8 + 3
    assert "http://" not in html.replace("http://www.w3.org", "")
    assert "$" not in re.sub(r"<script>.*?</script>|base64,[^\"]*", "", html, flags=re.DOTALL)


BLOCKED: dict[str, tuple[list[Rows | None], list[Rows | None], str]] = {
    "no box to learn from": ([None, [], None], [[row()]], "boxes"),
    "no box to choose by": ([[row()]] * 3, [None, []], "boxes"),
    "no class in common": ([[row(0)]] * 3, [[row(1)]] * 3, "classes"),
    "ids from one": ([[row(1)]] * 3, [[row(1), row(2)]] * 2, "classes"),
    "below two pixels": ([[row(0, 0.01, 0.01)]] * 3, [[row()]] * 2, "box sizes"),
    "no anchor reaches": ([[row(0, 0.9, 0.03)]] * 3, [[row()]] * 2, "anchors"),
}


@pytest.mark.parametrize("case", BLOCKED)
def test_what_would_find_nothing_blocks(case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    train, val, topic = BLOCKED[case]
    code, report = doctor(capsys, write_set(tmp_path / "set", train, val))
    assert code == 2
    assert report["blocks"]
    assert "blocks" in levels(report, topic)
    assert report["findings"][0]["level"] == "blocks", "what blocks stands first"
    assert main(["doctor", "--data", str(tmp_path / "set" / "data.yaml"), "--size", str(SIDE)]) == 2
    assert "A training on this would be of no use" in capsys.readouterr().out


def test_boxes_given_by_their_corners_are_suspected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """x1 y1 x2 y2 where centre, width and height belong: most such boxes reach beyond the image."""
    corners = [["0 0.5 0.5 0.9 0.95\n"], ["0 0.6 0.1 0.95 0.6\n"], ["0 0.1 0.6 0.8 0.9\n"]]
    _, report = doctor(capsys, write_set(tmp_path / "corners", corners, [[row()]] * 3))
    assert levels(report, "box places") == ["warning"]
    assert "are the columns really centre x" in str(report["findings"])
    code, report = doctor(capsys, write_set(tmp_path / "good", [[row()]] * 3, [[row()]] * 3))
    assert (code, levels(report, "box places")) == (0, [])


def test_the_doctor_names_the_command_that_trains(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = write_set(tmp_path / "my set", [[row()]] * 3, [[row()]] * 3)
    assert main(["doctor", "--data", str(data), "--size", str(SIDE)]) == 0
    told = capsys.readouterr().out.splitlines()[-1]
    assert told == f"nothing blocks; next: scaledyolo train --data '{data}' --model yolov4-tiny --size {SIDE}"


def spoil_copy(folder: Path) -> None:
    (folder / "images/val/1.png").write_bytes((folder / "images/train/3.png").read_bytes())


def spoil_image(folder: Path) -> None:
    path = folder / "images/train/4.png"
    path.write_bytes(path.read_bytes()[:200])


def spoil_class(folder: Path) -> None:
    (folder / "labels/train/2.txt").write_text(row(7))


def spoil_pairing(folder: Path) -> None:
    (folder / "labels/train/orphan.txt").write_text(row())


def spoil_rarity(folder: Path) -> None:
    for path in sorted((folder / "labels/train").iterdir())[1:]:
        path.write_text(row(0))


def spoil_background(folder: Path) -> None:
    for path in sorted((folder / "labels/train").iterdir())[:18]:
        path.write_text("")


def spoil_sizes(folder: Path) -> None:
    for path in sorted((folder / "labels/train").iterdir())[:18]:
        path.write_text(row(0, 0.07, 0.07) + "\n" + row(1, 0.07, 0.06))


@pytest.mark.parametrize(
    ("spoil", "topic", "words"),
    [
        (spoil_copy, "near-duplicates", "1 of 3 images of val shows the same as one of train"),
        (spoil_image, "broken items", "1 unreadable-image"),
        (spoil_class, "broken items", "1 wrong-class"),
        (spoil_pairing, "pairing", "1 missing-image"),
        (spoil_rarity, "classes", "fewer than 20 boxes of b"),
        (spoil_background, "background", "18 of 25 images have no box"),
        (spoil_sizes, "box sizes", "72.0 % of the boxes are below 8 pixels"),
    ],
)
def test_what_costs_accuracy_is_a_warning(
    good: Path, capsys: pytest.CaptureFixture[str], spoil: Callable[[Path], None], topic: str, words: str
) -> None:
    spoil(good.parent)
    code, report = doctor(capsys, good)
    assert code == 0
    warnings = {finding["topic"]: finding["text"] for finding in report["findings"] if finding["level"] == "warning"}
    assert words in warnings[topic]


def test_the_self_test_tells_boxes_that_can_be_learnt(good: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = doctor(capsys, good, "--self-test")
    assert code == 0
    assert levels(report, "self-test") == ["fine"]


def test_a_self_test_that_fails_blocks(
    good: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from scaledyolo.train import self_test

    result = self_test.SelfTest(images=4, boxes=9, steps=30, first_loss=1.0, last_loss=0.98)
    assert not result.passed
    assert not self_test.SelfTest(4, 9, 30, 1.0, float("nan")).passed
    monkeypatch.setattr(self_test, "overfit_one_batch", lambda *_: result)
    code, report = doctor(capsys, good, "--self-test")
    assert code == 2
    assert levels(report, "self-test") == ["blocks"]


def test_mistakes_are_one_sentence(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for arguments, words in (
        (["doctor", "--data", str(tmp_path / "none")], "no such file or folder"),
        (["doctor", "--data", str(good), "--size", "100"], "largest stride 32; use 96 or 128"),
        (["train", "--data", str(good), "--size", "100"], "largest stride 32; use 96 or 128"),
        (["anchors", "--data", str(good), "--split", "tst"], "tst"),
        (["preview", "--data", str(good), "--out", str(tmp_path / "sheet.gif")], "a preview is a .jpg or .png file"),
        (["recipes", "cstom"], "Did you mean 'custom'"),
        (["recipes", "--set", "batch=3"], "name it"),
    ):
        capsys.readouterr()
        assert main(arguments) == 2
        said = capsys.readouterr().err
        assert words in said
        assert len(said.strip().splitlines()) == 1


def test_anchors_fit_better_and_go_into_a_spec(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Long flat boxes, which the anchors of the network cannot learn; training says so before and not after."""
    rng = np.random.default_rng(0)
    train: list[Rows | None] = [
        [row(0, float(rng.uniform(0.7, 1.0)), float(rng.uniform(0.03, 0.05)))] for _ in range(30)
    ]
    data = write_set(tmp_path / "flat", train, [[row(0, 0.8, 0.04)]] * 2)
    out = tmp_path / "flat.yaml"
    options = ["anchors", "--data", str(data), "--size", str(SIDE), "--generations", "100", "--json"]
    assert main([*options, "--out", str(out)]) == 0
    report = json.loads(capsys.readouterr().out)
    assert report["before"]["recall"] < 0.98 <= report["after"]["recall"]
    spec = ModelSpec.from_dict(yaml.safe_load(out.read_text()))
    assert main(options[:-1]) == 0
    told = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0].split() for line in told[4:6]] == [["stride", "16"], ["stride", "32"]]
    assert told[-1].startswith("use them: --out FILE.yaml")
    assert (spec.size, spec.num_classes) == (SIDE, 2)
    assert spec.masks == ((0, 1, 2), (3, 4, 5))
    areas = [width * height for width, height in spec.anchors]
    assert areas == sorted(areas)
    width, height = SIDE * 0.85, SIDE * 0.04
    assert min(max(width / a, a / width, height / b, b / height) for a, b in spec.anchors) < 4
    assert main([*options, "--seed", "0"]) == 0
    assert json.loads(capsys.readouterr().out) == report, "one seed, one answer"

    from scaledyolo.arch.zoo import find
    from scaledyolo.data.formats import open_dataset
    from scaledyolo.train.advice import anchor_advice

    dataset = open_dataset(data, "train")
    advice = anchor_advice(dataset, find("yolov4-tiny").with_size(SIDE), RECIPES["custom"])
    assert advice is not None
    assert "scaledyolo anchors" in advice
    assert anchor_advice(dataset, spec, RECIPES["custom"]) is None


def test_a_preview_shows_what_training_sees(good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "sheet.png"
    options = ["preview", "--data", str(good), "--size", str(SIDE), "--out", str(out)]
    assert main([*options, "--count", "5", "--seed", "3"]) == 0
    sheet = cv2.imread(str(out))
    assert sheet.shape[:2] == (2 * (SIDE + 4) + 4, 3 * (SIDE + 4) + 4)
    first = out.read_bytes()
    assert main([*options, "--count", "5", "--seed", "3"]) == 0
    assert out.read_bytes() == first
    assert main([*options, "--count", "5", "--seed", "3", "--plain"]) == 0
    assert out.read_bytes() != first


def test_recipes_are_listed_and_printed_as_files_that_can_be_read(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["recipes"]) == 0
    listed = capsys.readouterr().out
    assert all(re.search(rf"^{name} ", listed, re.MULTILINE) for name in RECIPES)
    for name, recipe in RECIPES.items():
        assert main(["recipes", name]) == 0
        assert Recipe.from_yaml(capsys.readouterr().out) == recipe
    assert main(["recipes", "tiny", "--set", "batch=3"]) == 0
    assert Recipe.from_yaml(capsys.readouterr().out).batch == 3


def test_verbs_take_shares_and_several_sources(
    good: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    other = write_set(tmp_path / "other", [[row(0)]] * 4, [[row(1)]] * 2)
    capsys.readouterr()
    assert main(["doctor", "--data", str(good), str(other), "--val-split", "0.3", "--size", str(SIDE), "--json"]) == 0
    report = json.loads(capsys.readouterr().out)
    train, val = report["splits"]
    assert (train["name"], val["name"]) == ("train[:70%]", "train[70%:]")
    assert train["images"] + val["images"] == 29
    monkeypatch.chdir(tmp_path)
    (tmp_path / f"mine_{tmp_path.name}.py").write_text("def same(sample, rng):\n    return sample\n")
    sheets = []
    for name, options in (("plain", []), ("same", ["--transform", f"mine_{tmp_path.name}:same"])):
        out = tmp_path / f"{name}.png"
        common = ["--data", str(good), str(other), "--split", "all", "--size", "64", "--count", "4", "--out", str(out)]
        assert main(["preview", *common, *options]) == 0
        sheets.append(out.read_bytes())
    assert sheets[0] == sheets[1]
    assert main(["anchors", "--data", str(good), "--split", "0.2"]) == 2
    assert "0.2 of which images?" in capsys.readouterr().err
