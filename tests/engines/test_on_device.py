"""On a device: the same detections, no question about a value, and recordings only where they hold."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from scaledyolo import NMS, ZOO, Checkpoint, Detector, lower
from scaledyolo.classes import COCO_NAMES
from scaledyolo.data.letterbox import letterbox
from scaledyolo.data.placement import place_letterbox
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


class Devices(TorchDispatchMode):
    """Notes on which devices the tensors of all operations lie."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: set[tuple[str, str]] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        tensors = [value for value in tree_leaves((args, kwargs, result)) if isinstance(value, Tensor)]
        self.seen |= {(str(func), tensor.device.type) for tensor in tensors}
        return result


def test_no_number_is_copied_to_the_device_in_a_call(tiny: Checkpoint) -> None:
    """On a GPU that would wait for all that was asked before, and could not be recorded."""
    detect = DeviceDetector(tiny, device="meta", precision="bfloat16", nms=NMS(max_candidates=5))
    images = torch.empty(2, 240, 320, 3, dtype=torch.uint8, device="meta")
    with Devices() as devices:
        detect(images)
    assert len(devices.seen) > 30
    assert {where for _, where in devices.seen} == {"meta"}


def test_half_precision_finds_nearly_the_same(tiny: Checkpoint) -> None:
    images = torch.from_numpy(photograph(96, 128))[None]
    rows, counts = DeviceDetector(tiny, device="cpu", confidence=0.3)(images)
    half, half_counts = DeviceDetector(tiny, device="cpu", precision="bfloat16", confidence=0.3)(images)
    assert half.dtype == torch.float32
    assert int(counts[0]) > 10
    assert abs(int(half_counts[0]) - int(counts[0])) < 0.2 * int(counts[0])
    np.testing.assert_allclose(half[0, :5, 4], rows[0, :5, 4], atol=0.05)


def static_record(forward, example: Tensor):
    """What a CUDA graph does with memory: one place for what comes in, one for what goes out."""
    place, outputs = example.clone(), [raw.clone() for raw in forward(example)]

    def replay(batch: Tensor) -> Sequence[Tensor]:
        place.copy_(batch)
        for output, raw in zip(outputs, forward(place), strict=True):
            output.copy_(raw)
        return outputs

    return replay


def test_a_replay_of_everything_keeps_what_the_calls_before_gave(tiny: Checkpoint) -> None:
    detect = DeviceDetector(tiny, device="cpu", nms=NMS(max_candidates=30))
    batches = [torch.from_numpy(photograph(96, 128, seed))[None] for seed in range(3)]
    expected = [detect(batch) for batch in batches]
    assert detect.plain_because(batches[0]) == "nothing was to be recorded"
    detect._recorded = ReplayedForward(detect._everything, static_record, detect._agrees)
    found = [detect(batch) for batch in batches]
    assert detect.plain_because(batches[0]) is None
    for (rows, counts), (plain_rows, plain_counts) in zip(found, expected, strict=True):
        torch.testing.assert_close(rows, plain_rows)
        assert torch.equal(counts, plain_counts)
    assert not torch.equal(found[0][0], found[1][0])


def test_a_replay_with_other_rows_than_its_maps_hold_is_not_used(tiny: Checkpoint) -> None:
    detect = DeviceDetector(tiny, device="cpu", nms=NMS(max_candidates=30))
    images = torch.from_numpy(photograph(96, 128))[None]
    expected, _ = detect(images)

    def record(forward, example: Tensor):
        stale = [raw.clone() for raw in forward(example)[:2]]
        return lambda batch: [*stale, *forward(batch)[2:]]

    detect._recorded = ReplayedForward(detect._everything, record, detect._agrees)
    torch.testing.assert_close(detect(images)[0], expected)
    assert detect.plain_because(images) == "the replay differs from the plain pass"


def test_what_does_not_fit_is_refused(tiny: Checkpoint) -> None:
    with pytest.raises(SpecError, match="multiple of the largest stride"):
        DeviceDetector(tiny, device="cpu", size=(100, 100))
    with pytest.raises(UsageError, match="greedy"):
        DeviceDetector(tiny, device="cpu", nms=NMS("soft-linear"))
    with pytest.raises(UsageError, match="no precision 'half'"):
        DeviceDetector(tiny, device="cpu", precision="half")
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
    forward = ReplayedForward(plain, record)
    assert torch.equal(forward(images)[1], images.sum(dim=1))
    assert forward.refused == {(1, 3, 4, 4): "CUDA error: operation not permitted when stream is capturing"}


def test_a_replay_that_ignores_its_images_is_not_used() -> None:
    def record(forward, example: Tensor):
        maps = forward(example)
        return lambda images: maps

    images = torch.rand(1, 3, 4, 4)
    assert torch.equal(ReplayedForward(plain, record)(images)[0], images * 2)


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
@pytest.mark.filterwarnings("ignore:Dynamo detected")
def test_torch_compile_sees_one_graph(tiny: Checkpoint) -> None:
    """Where it has to stop and begin anew it cannot join operations; needs no compiler of C++."""
    detect = DeviceDetector(tiny, device="cpu", nms=NMS(max_candidates=4))
    images = torch.from_numpy(photograph(70, 90))[None]
    with torch.inference_mode():
        expected = detect._everything(images)

        def traced(forward):
            return torch.compile(forward, dynamic=False, backend="eager", fullgraph=True)

        maps = traced(detect.plain_network)(traced(detect._canvas)(images))
        found = (*traced(detect._detections)(maps, 70, 90), *maps)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
def test_compiled_kernels_compute_the_same(tiny: Checkpoint) -> None:
    import shutil

    if shutil.which("c++") is None and shutil.which("g++") is None:
        pytest.skip("torch.compile needs a C++ compiler")
    images = np.random.default_rng(0).random((1, 3, 64, 64), np.float32)
    plain, compiled = (TorchEngine(tiny.graph, dict(tiny.weights), compiled=value) for value in (False, True))
    for a, b in zip(plain.run(images), compiled.run(images), strict=True):
        np.testing.assert_allclose(a, b, atol=1e-4)
