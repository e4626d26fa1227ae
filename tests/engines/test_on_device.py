"""On a device: the same detections, no question about a value, and recordings only where they hold."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from torch import Tensor

from scaledyolo import NMS, ZOO, Checkpoint, Detector, lower
from scaledyolo.classes import COCO_NAMES
from scaledyolo.data.letterbox import letterbox, place_letterbox
from scaledyolo.engines.faithful import scene
from scaledyolo.engines.on_device import DeviceDetector, canvas_on_device, undo_on_device
from scaledyolo.engines.torch import MAX_GRAPHS, ReplayedForward, TorchEngine
from scaledyolo.errors import SpecError, UsageError
from scaledyolo.weights import random_weights


@pytest.fixture(scope="module")
def tiny() -> Checkpoint:
    graph = lower(ZOO["yolov4-tiny"]).with_size(96, 128)
    return Checkpoint(graph=graph, weights=random_weights(graph, np.random.default_rng(4)), class_names=COCO_NAMES)


def photograph(height: int, width: int, seed: int = 0) -> np.ndarray:
    return (scene(3, height, width, seed) * 255).astype(np.uint8).transpose(1, 2, 0)


def test_the_same_objects_as_the_detector_finds(colours, paint) -> None:
    images = [paint(48, 64, (1, 2, 0), (5, 2, 1)), paint(48, 64), paint(48, 64, (3, 5, 2))]
    expected = Detector(colours.checkpoint, engine="torch")(images)
    rows, counts = DeviceDetector(colours.checkpoint, device="cpu")(torch.from_numpy(np.stack(images)))
    assert counts.tolist() == [len(found) for found in expected] == [2, 0, 1]
    for found, count, one in zip(rows.numpy(), counts, expected, strict=True):
        np.testing.assert_allclose(found[:count, :4], one.xyxy, atol=1e-4)
        np.testing.assert_allclose(found[:count, 4], one.confidence, rtol=1e-5)
        assert found[:count, 5].tolist() == one.class_id.tolist()
        assert not found[count:].any()


def test_a_real_network_and_many_candidates(tiny: Checkpoint) -> None:
    images = [photograph(96, 128, seed) for seed in range(2)]  # of the size of the input: nothing is resized
    nms = NMS(iou=0.5, max_detections=50, max_candidates=300)
    expected = Detector(tiny, engine="torch", confidence=0.3, nms=nms)(images)
    rows, counts = DeviceDetector(tiny, device="cpu", confidence=0.3, nms=nms)(torch.from_numpy(np.stack(images)))
    assert counts.tolist() == [len(found) for found in expected]
    assert min(counts) > 10
    for found, count, one in zip(rows.numpy(), counts, expected, strict=True):
        np.testing.assert_allclose(found[:count, :4], one.xyxy, atol=0.01)
        np.testing.assert_allclose(found[:count, 4], one.confidence, atol=1e-5)


@pytest.mark.parametrize("source", [(480, 640), (333, 97), (50, 70), (96, 128)])
def test_the_canvas_is_that_of_the_letterbox(source: tuple[int, int]) -> None:
    image = photograph(*source)
    expected, placement = letterbox(image, 96, 128)
    found = canvas_on_device(torch.from_numpy(image).permute(2, 0, 1)[None], placement)
    levels = np.abs(found[0].permute(1, 2, 0).numpy() * 255 - expected)
    assert levels.max() <= 1.01
    assert levels.mean() < 0.2  # OpenCV rounds the weights of neighbours to 11 bits


def test_boxes_are_moved_as_by_the_placement() -> None:
    placement = place_letterbox(333, 97, 96, 128)
    rows = torch.rand(2, 7, 6) * 140 - 10
    counts = torch.tensor([7, 3])
    found = undo_on_device(rows, counts, placement)
    for image, count in enumerate(counts.tolist()):
        expected = placement.undo(rows[image, :count, :4].numpy())
        np.testing.assert_allclose(found[image, :count, :4], expected, atol=1e-3)
        assert torch.equal(found[image, :count, 4:], rows[image, :count, 4:])
        assert not found[image, count:].any()


def test_no_value_is_asked_for(tiny: Checkpoint) -> None:
    detect = DeviceDetector(tiny, device="meta", precision="float16", nms=NMS(max_candidates=30))
    rows, counts = detect(torch.empty(4, 240, 320, 3, dtype=torch.uint8, device="meta"))
    assert (rows.shape, counts.shape) == ((4, 30, 6), (4,))
    assert (rows.device.type, rows.dtype) == ("meta", torch.float32)


def test_what_does_not_fit_is_refused(tiny: Checkpoint) -> None:
    with pytest.raises(SpecError, match="multiple of the largest stride"):
        DeviceDetector(tiny, device="cpu", size=(100, 100))
    with pytest.raises(UsageError, match="greedy"):
        DeviceDetector(tiny, device="cpu", nms=NMS("soft-linear"))
    with pytest.raises(UsageError, match="uint8 of shape"):
        DeviceDetector(tiny, device="cpu")(torch.zeros(1, 3, 96, 128))


# -- recordings ----------------------------------------------------------------------------------------------------


def plain(images: Tensor) -> Sequence[Tensor]:
    return [images * 2, images.sum(dim=1)]


@pytest.mark.parametrize(("error", "used"), [(0.0, True), (0.001, True), (0.5, False), (float("nan"), False)])
def test_a_recording_is_used_where_it_gives_what_the_network_gives(error: float, used: bool) -> None:
    replays = []

    def record(forward, example: Tensor):
        def replay(images: Tensor) -> Sequence[Tensor]:
            replays.append(images)
            return [raw * (1 + error) for raw in forward(images)]

        return replay

    forward = ReplayedForward(plain, record)
    images = torch.rand(2, 3, 4, 4)
    for _ in range(3):
        found = forward(images)
        torch.testing.assert_close(found[0], images * 2, rtol=0.01, atol=0)
    assert len(replays) == (4 if used else 1)  # one to try it


def test_a_recording_that_cannot_be_made_is_no_error() -> None:
    def record(forward, example: Tensor):
        raise RuntimeError("CUDA error: operation not permitted when stream is capturing")

    images = torch.rand(1, 3, 4, 4)
    assert torch.equal(ReplayedForward(plain, record)(images)[1], images.sum(dim=1))


def test_each_shape_is_recorded_once_and_few_are_kept() -> None:
    recorded = []

    def record(forward, example: Tensor):
        recorded.append(tuple(example.shape))
        return forward

    forward = ReplayedForward(plain, record)
    sides = [*range(1, MAX_GRAPHS + 2), MAX_GRAPHS, MAX_GRAPHS + 1, 1]
    for side in sides:
        forward(torch.rand(1, 3, side, side))
    assert [shape[2] for shape in recorded] == [*range(1, MAX_GRAPHS + 2), 1]


@pytest.mark.slow
def test_compiled_kernels_compute_the_same(tiny: Checkpoint) -> None:
    import shutil

    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    images = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    plain, compiled = (TorchEngine(tiny.graph, dict(tiny.weights), compiled=value) for value in (False, True))
    for a, b in zip(plain.run(images), compiled.run(images), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
