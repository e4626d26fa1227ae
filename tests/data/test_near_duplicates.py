"""Near-duplicates: found when copied, rescaled, recompressed or brightened; not found between different photographs."""

from __future__ import annotations

from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaledyolo.data.near_duplicates import (
    MOST_DIFFERENT_BITS,
    Looks,
    _close_hashes,
    different_bits,
    looks,
    near_duplicates,
)
from scaledyolo.data.yolo_txt import read_yolo_folder

HASHES = st.integers(0, 2**64 - 1)


@given(HASHES, HASHES)
def test_different_bits_are_counted(one: int, other: int) -> None:
    assert different_bits(np.uint64(one), np.array([other], np.uint64)).tolist() == [(one ^ other).bit_count()]


@given(st.lists(HASHES, max_size=8), st.lists(st.sets(st.integers(0, 63), max_size=7), max_size=8))
def test_bands_find_what_comparing_each_with_each_finds(first: list[int], flips: list[set[int]]) -> None:
    bases = [first[index % len(first)] if first else 0 for index in range(len(flips))]
    second = [base ^ sum(1 << bit for bit in bits) for base, bits in zip(bases, flips, strict=True)]
    expected = [
        (i, j)
        for i, one in enumerate(first)
        for j, other in enumerate(second)
        if (one ^ other).bit_count() <= MOST_DIFFERENT_BITS
    ]
    found = enumerate(_close_hashes(np.array(first, np.uint64), np.array(second, np.uint64)))
    assert sorted((i, j) for j, close in found for i in close.tolist()) == expected


def scene(seed: int, side: int = 300) -> npt.NDArray[np.uint8]:
    """Something like a photograph: smooth regions of several sizes."""
    rng = np.random.default_rng(seed)
    coarse = (rng.uniform(0, 255, (n, n, 3)) for n in (3, 7, 19))
    layers = [cv2.resize(layer, (side, side), interpolation=cv2.INTER_CUBIC) for layer in coarse]
    return np.clip(np.mean(layers, axis=0), 0, 255).astype(np.uint8)


def write(folder: Path, images: dict[str, npt.NDArray[np.uint8]], quality: int = 95) -> None:
    (folder / "images").mkdir(parents=True)
    (folder / "labels").mkdir()
    for name, image in images.items():
        assert cv2.imwrite(str(folder / "images" / name), image, [cv2.IMWRITE_JPEG_QUALITY, quality])
        (folder / "labels" / name).with_suffix(".txt").write_text("0 .5 .5 .2 .2\n")


def test_changed_copies_are_found_and_other_pictures_are_not(tmp_path: Path) -> None:
    scenes = {f"{number}.png": scene(number) for number in range(40)}
    write(tmp_path / "first", scenes)
    smaller = cv2.resize(scenes["3.png"], (180, 180), interpolation=cv2.INTER_AREA)
    brighter = np.clip(scenes["5.png"].astype(int) + 4, 0, 255).astype(np.uint8)
    others = {f"{number}.jpg": scene(100 + number) for number in range(40)}
    write(tmp_path / "second", {**others, "a.jpg": scenes["1.png"], "b.jpg": smaller, "c.png": brighter}, quality=60)
    first, second = (read_yolo_folder(tmp_path / name, names=["x"]) for name in ("first", "second"))
    twins = near_duplicates(looks(first), looks(second, workers=1))
    names = {(Path(first.path(twin.first)).name, Path(second.path(twin.second)).name) for twin in twins}
    assert names == {("1.png", "a.jpg"), ("3.png", "b.jpg"), ("5.png", "c.png")}
    assert [twin.difference for twin in twins] == sorted(twin.difference for twin in twins)


def test_plain_surfaces_of_different_brightness_are_no_copies(tmp_path: Path) -> None:
    write(tmp_path / "first", {"dark.png": np.full((60, 60, 3), 20, np.uint8)})
    write(tmp_path / "second", {"light.png": np.full((60, 60, 3), 200, np.uint8)})
    first, second = (read_yolo_folder(tmp_path / name, names=["x"]) for name in ("first", "second"))
    assert near_duplicates(looks(first), looks(second)) == []


def test_a_file_that_was_cut_off_since_is_like_no_other(tmp_path: Path) -> None:
    for name in ("first", "second"):
        write(tmp_path / name, {"whole.jpg": scene(0), "cut.jpg": scene(1)})
    first, second = (read_yolo_folder(tmp_path / name, names=["x"]) for name in ("first", "second"))
    cut = tmp_path / "second" / "images" / "cut.jpg"
    cut.write_bytes(cut.read_bytes()[:-20])
    seen = looks(second)
    assert {Path(second.path(index)).name for index in np.flatnonzero(seen.readable).tolist()} == {"whole.jpg"}
    (twin,) = near_duplicates(looks(first), seen)
    assert Path(second.path(twin.second)).name == "whole.jpg"


def test_a_camera_that_never_moves_gives_one_twin_for_each_image() -> None:
    random = np.random.default_rng(0)
    still = random.integers(0, 240, (1, 32, 32), dtype=np.uint8)
    brighter = (np.arange(3000) % 40).astype(np.uint8)[:, None, None]
    frames = Looks(np.zeros(3000, np.uint64), still + brighter // 4, np.ones(3000, np.bool_))
    later = Looks(np.zeros(3, np.uint64), still + np.array([0, 9, 15], np.uint8)[:, None, None], np.ones(3, np.bool_))
    twins = near_duplicates(frames, later)
    assert [(twin.second, twin.difference) for twin in twins] == [(0, 0.0), (1, 0.0), (2, 6.0)]
    unreadable = Looks(frames.hashes, frames.thumbnails, np.zeros(3000, np.bool_))
    assert near_duplicates(unreadable, later) == []


@pytest.mark.shared
def test_photographs_against_their_own_smaller_copies(shared: Path, tmp_path: Path) -> None:
    files = sorted((shared / "data" / "bccd" / "JPEGImages").glob("*.jpg"))[:40]
    images = [cv2.imread(str(path)) for path in files]
    write(tmp_path / "first", {f"{i}.png": image for i, image in enumerate(images[:30])})
    half = [cv2.resize(image, None, fx=0.5, fy=0.5, interpolation=cv2.INTER_AREA) for image in images[20:]]
    write(tmp_path / "second", {f"{i}.jpg": image for i, image in enumerate(half)}, quality=70)
    first, second = (read_yolo_folder(tmp_path / name, names=["x"]) for name in ("first", "second"))
    found = {(Path(first.path(t.first)).stem, Path(second.path(t.second)).stem) for t in
             near_duplicates(looks(first), looks(second))}  # fmt: skip
    assert found == {(str(20 + i), str(i)) for i in range(10)}
