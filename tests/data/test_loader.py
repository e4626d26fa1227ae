"""Loaders: the same batches whatever the workers, processes or restarts; caches; clean ends."""

from __future__ import annotations

import os
import resource
import threading
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaledyolo.data import order as ordering
from scaledyolo.data.augment import NO_AUGMENTATION, AugmentConfig
from scaledyolo.data.cache import ImageSource, fit_long_side
from scaledyolo.data.dataset import Dataset
from scaledyolo.data.loader import Batch, LoaderConfig, TrainLoader
from scaledyolo.data.order import Shard
from scaledyolo.data.preview import preview_sheet
from scaledyolo.data.sample import Sample
from scaledyolo.data.yolo_txt import read_yolo_folder
from scaledyolo.errors import DataError, OutputError, UsageError

SIZE = 64
CONFIG = LoaderConfig(batch_size=3, size=SIZE, stride=32, seed=5, workers=0)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder = tmp_path_factory.mktemp("set")
    rng = np.random.default_rng(0)
    (folder / "images").mkdir()
    (folder / "labels").mkdir()
    for number in range(11):
        height, width = rng.integers(30, 100, 2)
        image = cv2.resize(rng.integers(0, 256, (4, 4, 3), dtype=np.uint8), (int(width), int(height)))
        assert cv2.imwrite(str(folder / "images" / f"{number:02}.png"), image)
        rows = [f"{rng.integers(3)} {x:.4f} {y:.4f} .3 .3" for x, y in rng.uniform(0.2, 0.8, (number % 4, 2))]
        (folder / "labels" / f"{number:02}.txt").write_text("\n".join(rows))
    return read_yolo_folder(folder, names=["a", "b", "c"])


@pytest.fixture
def source(dataset: Dataset) -> ImageSource:
    return ImageSource(dataset, SIZE, cache="ram")


def collect(batches: Iterator[Batch]) -> list[Batch]:
    return list(batches)


def assert_equal(first: list[Batch], second: list[Batch]) -> None:
    assert len(first) == len(second)
    for one, other in zip(first, second, strict=True):
        np.testing.assert_array_equal(one.images, other.images)
        np.testing.assert_array_equal(one.targets, other.targets)
        np.testing.assert_array_equal(one.indices, other.indices)


@pytest.mark.parametrize("workers", [1, 2, 5])
def test_the_number_of_workers_changes_nothing(source: ImageSource, workers: int) -> None:
    alone = TrainLoader(source, CONFIG, AugmentConfig(mixup=0.5))
    threaded = TrainLoader(source, LoaderConfig(3, SIZE, 32, 5, workers=workers, prefetch=2), AugmentConfig(mixup=0.5))
    assert_equal(collect(alone.epoch(4)), collect(threaded.epoch(4)))


def test_an_epoch_resumes_in_its_middle(source: ImageSource) -> None:
    loader = TrainLoader(source, LoaderConfig(2, SIZE, 32, 5, workers=2), AugmentConfig())
    assert_equal(collect(loader.epoch(1))[3:], collect(loader.epoch(1, start_batch=3)))


def test_epochs_and_seeds_differ_and_every_image_comes_once(source: ImageSource) -> None:
    loader = TrainLoader(source, CONFIG, AugmentConfig())
    orders = [np.concatenate([batch.indices for batch in loader.epoch(epoch)]).tolist() for epoch in (0, 1)]
    assert orders[0] != orders[1]
    assert sorted(orders[0]) == sorted(orders[1]) == list(range(11))
    other = TrainLoader(source, LoaderConfig(3, SIZE, 32, 6, workers=0), AugmentConfig())
    assert orders[0] != np.concatenate([batch.indices for batch in other.epoch(0)]).tolist()
    assert len(loader) == len(loader.plan(0)) == 4


def test_two_processes_see_what_one_with_the_doubled_batch_sees(source: ImageSource) -> None:
    whole = collect(TrainLoader(source, LoaderConfig(4, SIZE, 32, 5, workers=0), AugmentConfig()).epoch(2))
    half = LoaderConfig(2, SIZE, 32, 5, workers=0)
    parts = [collect(TrainLoader(source, half, AugmentConfig(), shard=Shard(r, 2)).epoch(2)) for r in (0, 1)]
    assert len(whole) == len(parts[0]) == len(parts[1])
    for one, left, right in zip(whole[:-1], parts[0], parts[1], strict=False):
        np.testing.assert_array_equal(one.images, np.concatenate([left.images, right.images]))
    # 11 images, 2 processes: one image is repeated, so that both make equal steps.
    assert [len(batch) for batch in parts[0]] == [len(batch) for batch in parts[1]] == [2, 2, 2]


@settings(deadline=None)
@given(st.integers(1, 60), st.integers(1, 7), st.integers(1, 5), st.booleans())
def test_shards_are_equal_and_cover_everything(images: int, batch: int, world: int, rectangular: bool) -> None:
    order = ordering.epoch_order(images, 0, 0)
    aspects = np.random.default_rng(images).uniform(0.5, 2, images)
    plans = [
        ordering.rectangular_batches(order, aspects, batch, 64, 32, Shard(rank, world))
        if rectangular
        else ordering.square_batches(order, batch, 64, Shard(rank, world))
        for rank in range(world)
    ]
    sizes = [[len(plan.indices) for plan in part] for part in plans]
    assert all(size == sizes[0] for size in sizes)
    assert min(sizes[0]) >= 1
    assert max(sizes[0]) <= batch
    seen = np.concatenate([plan.indices for part in plans for plan in part])
    assert set(seen.tolist()) == set(range(images))
    assert len(seen) - images < world
    if rectangular:
        frames = [[plan.frame for plan in part] for part in plans]
        assert all(frame == frames[0] for frame in frames)


def test_targets_are_fractions_of_the_right_image(source: ImageSource) -> None:
    loader = TrainLoader(source, CONFIG, NO_AUGMENTATION)
    for batch in loader.epoch(0):
        assert batch.images.flags.c_contiguous
        assert batch.images.shape[1:] == (3, SIZE, SIZE)
        for slot, index in enumerate(batch.indices.tolist()):
            rows = batch.targets[batch.targets[:, 0] == slot]
            sample = source.sample(index)
            assert rows[:, 1].tolist() == sample.class_ids.tolist()
            pad = (SIZE - np.array([sample.width, sample.height])) / 2
            centre = (sample.boxes_xyxy[:, :2] + sample.boxes_xyxy[:, 2:]) / 2 + np.round(pad - 0.1)
            np.testing.assert_allclose(rows[:, 2:4] * SIZE, centre, atol=1e-3)


def test_rectangular_and_multi_scale_batches(source: ImageSource) -> None:
    rectangular = TrainLoader(source, LoaderConfig(3, SIZE, 32, 5, workers=0, rectangular=True), AugmentConfig())
    shapes = {batch.images.shape[2:] for batch in rectangular.epoch(0)}
    assert len(shapes) > 1
    assert all(side % 32 == 0 for shape in shapes for side in shape)
    scaled = TrainLoader(source, LoaderConfig(1, SIZE, 32, 5, workers=0, multi_scale=(0.5, 1.5)), AugmentConfig())
    assert {batch.images.shape[2] for batch in scaled.epoch(0)} == {32, 64, 96}


def test_the_side_grows_evenly_to_the_full_one(source: ImageSource) -> None:
    config = LoaderConfig(4, 128, 32, 5, workers=0, first_size=0.5, growing_epochs=3)
    loader = TrainLoader(source, config, AugmentConfig())
    sides = [{batch.images.shape[2:] for batch in loader.epoch(epoch)} for epoch in range(5)]
    assert sides == [{(64, 64)}, {(96, 96)}, {(96, 96)}, {(128, 128)}, {(128, 128)}]


def test_image_weights_steer_the_draw(source: ImageSource) -> None:
    loader = TrainLoader(source, CONFIG, NO_AUGMENTATION)
    weights = np.zeros(11)
    weights[[2, 7]] = 1
    drawn = np.concatenate([batch.indices for batch in loader.epoch(0, weights=weights)])
    assert set(drawn.tolist()) == {2, 7}
    assert len(drawn) == 11
    with pytest.raises(UsageError, match="image weights"):
        loader.plan(0, weights=np.zeros(11))
    offsets = np.array([0, 2, 2, 3])
    of_image = ordering.image_weights([0.5, 2.0], offsets, np.array([0, 1, 1]))
    assert of_image.tolist() == [2.5, 0.0, 2.0]


@pytest.mark.parametrize("workers", [0, 2])
def test_an_error_names_the_image_and_leaves_no_thread(source: ImageSource, workers: int) -> None:
    def broken(sample: Sample, rng: np.random.Generator) -> Sample:
        if sample.index == 6:
            raise ValueError("odd pixel")
        return sample

    loader = TrainLoader(
        source, LoaderConfig(2, SIZE, 32, 5, workers=workers), AugmentConfig(mosaic=0), transform=broken
    )
    with pytest.raises(DataError, match=r"06\.png: preparing this image failed: ValueError: odd pixel"):
        collect(loader.epoch(0))
    assert not [thread for thread in threading.enumerate() if "scaledyolo-data" in thread.name]


def test_stopping_early_leaves_no_thread(source: ImageSource) -> None:
    threads = cv2.getNumThreads()
    loader = TrainLoader(source, LoaderConfig(1, SIZE, 32, 5, workers=3), AugmentConfig())
    batches = loader.epoch(0)
    next(batches)
    assert [thread for thread in threading.enumerate() if "scaledyolo-data" in thread.name]
    batches.close()  # type: ignore[attr-defined]
    assert not [thread for thread in threading.enumerate() if "scaledyolo-data" in thread.name]
    assert cv2.getNumThreads() == threads


def test_wrong_loader_settings() -> None:
    with pytest.raises(UsageError, match="multiple of the stride"):
        LoaderConfig(size=100, stride=32)
    with pytest.raises(UsageError, match="at least 1"):
        LoaderConfig(batch_size=0)
    with pytest.raises(UsageError, match="rank 2 of 2"):
        Shard(2, 2)


@settings(deadline=None)
@given(st.integers(1, 5000), st.integers(1, 5000), st.integers(32, 1536))
def test_long_side_is_exact(height: int, width: int, size: int) -> None:
    fitted = fit_long_side(height, width, size)
    assert max(fitted) == size
    assert min(fitted) == max(int(min(height, width) * size / max(height, width) + 1e-9), 1)


def test_caches_give_the_same_images(dataset: Dataset, tmp_path: Path) -> None:
    plain = ImageSource(dataset, SIZE)
    memory = ImageSource(dataset, SIZE, cache="ram")
    disk = ImageSource(dataset, SIZE, cache="disk", folder=tmp_path)
    disk.fill(workers=2)
    again = ImageSource(dataset, SIZE, cache="disk", folder=tmp_path)
    again._load = None  # type: ignore[method-assign,assignment]  # must not decode anything any more
    for index in range(len(dataset)):
        for cached in (memory, disk, again):
            np.testing.assert_array_equal(cached.image(index), plain.image(index))
            np.testing.assert_array_equal(cached.sample(index).boxes_xyxy, plain.sample(index).boxes_xyxy)
    with pytest.raises(ValueError, match="read-only"):
        memory.image(0)[0, 0, 0] = 1
    assert len(list(tmp_path.iterdir())) == 1
    ImageSource(dataset, 32, cache="disk", folder=tmp_path)
    assert len(list(tmp_path.iterdir())) == 2


def test_a_damaged_disk_cache_heals(dataset: Dataset, tmp_path: Path) -> None:
    source = ImageSource(dataset, SIZE, cache="disk", folder=tmp_path)
    good = source.image(3).copy()
    (path,) = tmp_path.iterdir()
    flat = np.memmap(path, np.uint8, mode="r+")
    flat[len(dataset) * 4 + int(source.store.starts[3])] ^= 0xFF
    del flat
    np.testing.assert_array_equal(ImageSource(dataset, SIZE, cache="disk", folder=tmp_path).image(3), good)


def test_the_disk_cache_owns_its_space_before_it_is_used(dataset: Dataset, tmp_path: Path) -> None:
    ImageSource(dataset, SIZE, cache="disk", folder=tmp_path)
    (path,) = tmp_path.iterdir()
    facts = path.stat()
    assert facts.st_blocks * 512 >= facts.st_size > len(dataset) * 4


def test_a_disk_cache_that_does_not_fit_is_one_sentence(dataset: Dataset, tmp_path: Path) -> None:
    """The kernel refuses a file above the limit of the process as it refuses one on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (4096, before[1]))
    try:
        with pytest.raises(OutputError, match=r"images cannot be written: .*; the cache of images takes .* MB"):
            ImageSource(dataset, SIZE, cache="disk", folder=tmp_path)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert not list(tmp_path.iterdir())


def test_a_disk_cache_needs_no_call_that_reserves(
    dataset: Dataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delattr("os.posix_fallocate")
    source = ImageSource(dataset, SIZE, cache="disk", folder=tmp_path)
    np.testing.assert_array_equal(source.image(0), ImageSource(dataset, SIZE).image(0))
    monkeypatch.setattr("shutil.disk_usage", lambda folder: SimpleNamespace(free=1000))
    with pytest.raises(OutputError, match="No space left"):
        ImageSource(dataset, 2 * SIZE, cache="disk", folder=tmp_path)


def test_the_memory_cache_is_shared_with_forked_workers(dataset: Dataset) -> None:
    source = ImageSource(dataset, SIZE, cache="ram")
    child = os.fork()
    if child == 0:
        source.image(4)
        os._exit(0)
    os.waitpid(child, 0)
    assert source.store.checksums is not None
    assert source.store.checksums[4] != 0  # what the child decoded, we see


def test_annotations_are_a_handful_of_flat_arrays(dataset: Dataset) -> None:
    for value in vars(dataset.annotations).values():
        assert isinstance(value if isinstance(value, np.ndarray) else value.text, np.ndarray)


def test_preview_sheet(dataset: Dataset) -> None:
    sheet = preview_sheet(dataset, AugmentConfig(), size=SIZE, count=5, seed=1)
    assert sheet.shape == (2 * (SIZE + 4) + 4, 3 * (SIZE + 4) + 4, 3)
    np.testing.assert_array_equal(sheet, preview_sheet(dataset, AugmentConfig(), size=SIZE, count=5, seed=1))
    assert (sheet != preview_sheet(dataset, AugmentConfig(), size=SIZE, count=5, seed=2)).any()
