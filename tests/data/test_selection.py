"""Which images are meant: splits, shares, lists, several sources."""

from __future__ import annotations

import hashlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from scaledyolo.data.canvases import Canvases
from scaledyolo.data.dataset import Dataset, with_classes_of, without_images
from scaledyolo.data.formats import open_dataset, split_names
from scaledyolo.data.letterbox import letterbox, stretch
from scaledyolo.data.selection import Part, merge, open_pair, open_part, parse_pair, parse_part
from scaledyolo.errors import DataError, UsageError


def write_set(folder: Path, counts: dict[str, int], names: list[str] | None, start: int = 0) -> Path:
    """A YOLO data set; image k has one box of class k modulo the classes. Without names there is no data.yaml."""
    classes = len(names or "ab")
    for split, count in counts.items():
        (folder / "images" / split).mkdir(parents=True)
        (folder / "labels" / split).mkdir(parents=True)
        for number in range(start, start + count):
            name = f"{split}{number:03}"
            image = np.full((20 + number % 3, 30, 3), number, np.uint8)
            assert cv2.imwrite(str(folder / "images" / split / f"{name}.png"), image)
            (folder / "labels" / split / f"{name}.txt").write_text(f"{number % classes} .5 .5 .2 .2\n")
    if names is not None:
        parts = {split: f"images/{split}" for split in counts}
        (folder / "data.yaml").write_text(yaml.safe_dump({**parts, "names": names}))
    return folder


def image_names(dataset: Dataset) -> list[str]:
    return [Path(path).stem for path in dataset.annotations.paths]


def draw(name: str) -> float:
    """The place of a file name between 0 and 1, written down a second time."""
    digest = hashlib.sha256(f"0\0{name}.png".encode()).digest()
    return int.from_bytes(digest[:7], "little") / 2**56


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_set(tmp_path_factory.mktemp("one"), {"train": 40, "val": 6, "test": 4}, ["cat", "dog"])


def test_a_share_is_drawn_by_the_file_name(source: Path) -> None:
    whole = open_part([source], "train")
    first, last = open_part([source], "train[:75%]"), open_part([source], "train[75%:]")
    assert image_names(first) == [name for name in image_names(whole) if draw(name) < 0.75]
    assert sorted(image_names(first) + image_names(last)) == image_names(whole)
    assert "train[75%:]" in last.source


def test_a_share_as_val_split_is_taken_from_what_is_learnt(source: Path) -> None:
    train, val = open_pair([source], "train", "0.25")
    assert image_names(train) == image_names(open_part([source], "train[:75%]"))
    assert image_names(val) == image_names(open_part([source], "train[75%:]"))
    everything = open_part([source], "all")
    assert len(everything) == len(open_part([source / "data.yaml"], "all")) == 50
    train, val = open_pair([source], "0.7", "0.3")
    assert sorted(image_names(train) + image_names(val)) == sorted(image_names(everything))
    train, val = open_pair([source], "0.3", "0.3")
    assert not set(image_names(train)) & set(image_names(val))
    assert max(map(draw, image_names(train))) < 0.3 < 0.7 <= min(map(draw, image_names(val)))


@settings(deadline=None)
@given(st.floats(0.01, 0.99), st.floats(0.0, 0.9), st.floats(0.05, 1.0))
def test_two_shares_of_a_part_meet_and_fill_it(kept: float, first: float, last: float) -> None:
    outer = Part("train", first, max(first + 0.01, last))
    train, val = outer.share(0.0, 1.0 - kept), outer.share(1.0 - kept, 1.0)
    assert train.last == val.first
    assert (train.first, val.last) == (outer.first, pytest.approx(outer.last))


@pytest.mark.parametrize("text", ["train", "all", "val[20%:]", "val[:12.5%]", "images.txt[10%:90%]"])
def test_the_text_of_a_part_is_read_back(text: str) -> None:
    assert str(parse_part(text)) == text
    assert parse_part(str(parse_part(text))) == parse_part(text)


def test_lists_choose_from_all_images_and_keep_them_apart(source: Path, tmp_path: Path) -> None:
    listed = tmp_path / "kept.txt"
    listed.write_text("train003\n\ntrain007.png\nimages/val/val001.png\n")
    train, val = open_pair([source], "train", str(listed))
    assert image_names(val) == ["train003", "train007", "val001"]
    assert len(train) == 38
    assert not set(image_names(train)) & set(image_names(val))
    train, val = open_pair([source], str(listed), "val")
    assert image_names(train) == ["train003", "train007", "val001"]
    listed.write_text("\n".join(image_names(open_part([source], "train"))))
    with pytest.raises(DataError, match="nothing is left to learn from"):
        open_pair([source], "train", str(listed))


def test_splits_of_each_format_are_named(source: Path, tmp_path: Path) -> None:
    assert split_names(source) == split_names(source / "data.yaml") == ("train", "val", "test")
    assert split_names(write_set(tmp_path / "bare", {"train": 1, "val": 1}, None)) == ("train", "val")
    (tmp_path / "data.yaml").write_text("{train: bare/images, val: bare/images/val, names: [a, b]}")
    assert len(open_dataset(tmp_path, None)) == 2, "an image that two splits name counts once"


def test_sources_are_joined_by_class_names(source: Path, tmp_path: Path) -> None:
    other = write_set(tmp_path / "two", {"train": 4, "val": 3}, ["dog", "bird"], start=100)
    train, val = open_pair([source, other], "train", "val")
    assert train.names == val.names == ("cat", "dog", "bird")
    assert len(train) == 44
    assert train.annotations.class_ids[-4:].tolist() == [1, 2, 1, 2]
    reversed_, _ = open_pair([other, source], "train", "val")
    assert reversed_.names == ("dog", "bird", "cat")


def test_classes_are_numbered_as_in_the_part_that_is_learnt(source: Path, tmp_path: Path) -> None:
    model = open_part([source], "train")
    turned = open_part([write_set(tmp_path / "turned", {"val": 4}, ["dog", "cat", "unused"])], "val")
    turned = turned.subset([0, 1, 3])
    same = with_classes_of(turned, model)
    assert same.names == ("cat", "dog")
    assert same.annotations.class_ids.tolist() == [1, 0, 1]
    stranger = open_part([write_set(tmp_path / "stranger", {"val": 1}, ["fish"])], "val")
    with pytest.raises(DataError, match="has boxes of 'fish', which .* does not know"):
        with_classes_of(stranger, model)
    assert len(without_images(model, model)) == 0


@pytest.mark.parametrize(
    ("names", "sentence"),
    [
        (["Cat", "bird"], "calls a class 'cat' and .* calls one 'Cat'; give them the same name"),
        (["d_o g"], "calls a class 'dog'"),
        (None, "has no class names, so its classes cannot be merged"),
    ],
)
def test_class_names_that_contradict_each_other(
    names: list[str] | None, sentence: str, source: Path, tmp_path: Path
) -> None:
    other = write_set(tmp_path / "two", {"train": 4}, names)
    with pytest.raises(DataError, match=sentence):
        open_part([source, other], "train")


@pytest.mark.parametrize(
    ("split", "val_split", "sentence"),
    [
        ("train", "1.5", "a share of the images lies between 0 and 1, got 1.5"),
        ("train", "0", "lies between 0 and 1, got 0"),
        ("0.8", "val", "--split 0.8 needs a share as --val-split too, such as 0.2"),
        ("0.8", "0.3", "together are more than all images"),
        ("train[80:]", "val", "'80' is no percentage"),
        ("train[80%:20%]", "val", "holds no image: its share ends where it begins"),
        ("train[", "val", "names no part of a data set"),
        ("train[:120%]", "val", "no percentage from 0% to 100%"),
    ],
)
def test_pairs_that_make_no_sense(split: str, val_split: str, sentence: str) -> None:
    with pytest.raises(UsageError, match=sentence.replace("[", r"\[")):
        parse_pair(split, val_split)


def test_data_without_a_part_to_choose_by_says_how_to_keep_one(source: Path, tmp_path: Path) -> None:
    alone = write_set(tmp_path / "alone", {"train": 10}, ["cat", "dog"])
    with pytest.raises(DataError, match=r"has no split 'val', only train; .* --val-split 0.2"):
        open_pair([alone], "train", "val")
    train, val = open_pair([alone], "train", "0.2")
    assert len(train) + len(val) == 10
    with pytest.raises(DataError, match=r"Did you mean 'test'\?"):
        open_pair([source], "train", "tset")


def test_a_bare_share_asks_which_images(source: Path) -> None:
    with pytest.raises(UsageError, match=r"Say all\[:20%\], or train\[80%:\] for what --val-split 0.2 kept apart"):
        open_part([source], "0.2")
    with pytest.raises(UsageError, match="name at least one with --data"):
        merge([])
    with pytest.raises(DataError, match="holds no image; take a larger share"):
        open_part([source], "test[:0.0001%]")


def test_lists_that_do_not_fit(source: Path, tmp_path: Path) -> None:
    twin = write_set(tmp_path / "twin", {"train": 2}, ["cat", "dog"])
    listed = tmp_path / "kept.txt"
    listed.write_text("train001\n")
    with pytest.raises(DataError, match=r"kept.txt:1: image 'train001' stands for 2 images"):
        open_part([source, twin], str(listed))
    listed.write_text(str(twin / "images/train/train001.png"))
    assert image_names(open_part([source, twin], str(listed))) == ["train001"]
    with pytest.raises(DataError, match="No such file"):
        open_part([source], str(tmp_path / "none.txt"))


@pytest.mark.parametrize("resize", ["letterbox", "stretch"])
def test_canvases_are_the_same_whether_remembered_or_not(resize: str, source: Path, tmp_path: Path) -> None:
    dataset = open_part([source], "val")
    bring = letterbox if resize == "letterbox" else stretch
    kept = [Canvases(dataset, 64, 96, resize=resize, cache=cache, folder=tmp_path) for cache in ("none", "ram", "disk")]
    for _ in range(2):
        for index in range(len(dataset)):
            canvas, placement = bring(dataset.load_image(index), 64, 96)
            for canvases in kept:
                np.testing.assert_array_equal(canvases[index][0], canvas)
                assert canvases[index][1] == placement
    assert kept[1].num_bytes == len(dataset) * 64 * 96 * 3


def test_remembered_canvases_are_decoded_once(source: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dataset, seen = open_part([source], "val"), []
    load = Dataset.load_image
    monkeypatch.setattr(Dataset, "load_image", lambda self, index: seen.append(index) or load(self, index))
    canvases = Canvases(dataset, 32, 32, cache="ram")
    for _ in range(3):
        for index in range(len(dataset)):
            canvases[index]
    assert seen == list(range(len(dataset)))
