"""Label assignment against the printed goldens of the specification, plain-Python rules and properties."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from scaledyolo.arch.ops import Detect
from scaledyolo.boxes import cxcywh_to_xyxy, iou_matrix
from scaledyolo.train.assign import ASSIGNERS, Level, assign_scaled, ignore_mask
from scaledyolo.train.recipe import Assignment

# YOLOv4's nine anchors, three for each of the strides 8, 16, 32.
NINE = ((12, 16), (19, 36), (40, 28), (36, 75), (76, 55), (72, 146), (142, 110), (192, 243), (459, 401))
# yolov4-tiny's six: the first unused, the fourth used twice.
TINY = ((10, 14), (23, 27), (37, 58), (81, 82), (135, 169), (344, 319))


def _nine_levels(size: int = 640) -> list[Level]:
    masks = ((0, 1, 2), (3, 4, 5), (6, 7, 8))
    return [
        Level(Detect(NINE, mask, num_classes=80), stride, size // stride, size // stride)
        for mask, stride in zip(masks, (8, 16, 32), strict=True)
    ]


def _target(x: float, y: float, width: float, height: float, image: int = 0, class_id: int = 0) -> torch.Tensor:
    return torch.tensor([[image, class_id, x, y, width, height]], dtype=torch.float32)


def _cells(x: float, y: float, reach: float) -> list[tuple[int, int]]:
    """Cells (column, row) of a target at (x, y) cells on the golden's 20 x 20 grid with one anchor."""
    level = Level(Detect(((32, 32),), (0,), num_classes=1), 32, 20, 20)
    target = _target(x / 20, y / 20, 1 / 20, 1 / 20)
    (matches,) = assign_scaled(target, [level], Assignment(neighbour_reach=reach))
    return list(zip(matches.column.tolist(), matches.row.tolist(), strict=True))


# spec/training.md 1.3, first golden table; the last row is the form of branch csp.
NEIGHBOURS = [
    (5.3, 7.8, {(5, 7), (4, 7), (5, 8)}, 5),
    (5.5, 7.5, {(5, 7)}, 5),
    (0.3, 0.3, {(0, 0)}, 3),
    (0.7, 0.7, {(0, 0), (1, 0), (0, 1)}, 3),
    (19.7, 19.7, {(19, 19)}, 3),
    (19.2, 10.2, {(19, 10), (18, 10), (19, 9)}, 4),
    (10.5, 3.2, {(10, 3), (10, 2)}, 5),
    (5.0, 5.0, {(5, 5), (4, 5), (5, 4)}, 5),
]


@pytest.mark.parametrize(("x", "y", "cells", "num_with_whole_reach"), NEIGHBOURS)
def test_neighbour_cells_golden(x: float, y: float, cells: set, num_with_whole_reach: int) -> None:
    found = _cells(x, y, reach=0.5)
    assert set(found) == cells
    assert len(found) == len(cells)
    whole = _cells(x, y, reach=1.0)
    assert len(whole) == len(set(whole)) == num_with_whole_reach


@pytest.mark.parametrize(("x", "y"), [(5.3, 7.8), (5.0, 5.0), (19.7, 0.2)])
def test_without_reach_only_the_own_cell_answers(x: float, y: float) -> None:
    assert _cells(x, y, reach=0.0) == [(int(x), int(y))]


def _anchors(rule: str, target: torch.Tensor, config: Assignment) -> set[int]:
    """Indices of the nine anchors that answer for one target at 640 pixels."""
    levels = _nine_levels()
    return {
        level.detect.mask[anchor]
        for level, matches in zip(levels, ASSIGNERS[rule](target, levels, config), strict=True)
        for anchor in matches.anchor.tolist()
    }


# spec/training.md 1.3, second golden table: indices of the nine anchors that answer.
ANCHOR_CHOICES = [
    ((30, 60), {3}, {1, 2, 3, 4}, {0, 1, 2, 3, 4, 5}),
    ((100, 100), {6}, {3, 4, 5, 6, 7}, {2, 3, 4, 5, 6, 7}),
    ((8, 8), {0}, {0}, {0}),
    ((300, 80), {6}, {6, 7}, {4, 6, 7}),
    ((600, 600), {8}, {8}, {7, 8}),
]


@pytest.mark.parametrize(("size", "yolov3", "yolov4", "scaled"), ANCHOR_CHOICES)
def test_anchor_choice_golden(size: tuple[int, int], yolov3: set, yolov4: set, scaled: set) -> None:
    target = _target(0.5, 0.5, size[0] / 640, size[1] / 640)
    assert _anchors("yolov3", target, Assignment()) == yolov3
    assert _anchors("yolov4", target, Assignment()) == yolov4
    assert _anchors("scaled", target, Assignment()) == scaled


def test_shape_overlap_of_the_golden_table() -> None:
    """The printed IoU of 100 x 100 with anchors 3 to 7, by thresholds just below and above each."""
    target = _target(0.5, 0.5, 100 / 640, 100 / 640)
    for anchor, overlap in zip(range(3, 8), (0.270, 0.418, 0.541, 0.640, 0.214), strict=True):
        below, above = (
            _anchors("yolov4", target, Assignment(iou_threshold=threshold))
            for threshold in (overlap - 0.0006, overlap + 0.0006)
        )
        assert anchor in below
        assert (anchor in above) == (anchor == 6)  # the best anchor answers at any threshold


def test_tiny_anchor_used_twice_answers_on_both_levels_and_the_unused_one_on_none() -> None:
    levels = [
        Level(Detect(TINY, (3, 4, 5), num_classes=1), 32, 13, 13),
        Level(Detect(TINY, (1, 2, 3), num_classes=1), 16, 26, 26),
    ]
    shared_anchor = _target(0.5, 0.5, 81 / 416, 82 / 416)
    coarse, fine = ASSIGNERS["yolov3"](shared_anchor, levels, Assignment())
    assert (coarse.anchor.tolist(), fine.anchor.tolist()) == ([0], [2])
    assert (coarse.row.tolist(), fine.row.tolist()) == ([6], [13])
    unused = _target(0.5, 0.5, 10 / 416, 14 / 416)
    assert [len(match) for match in ASSIGNERS["yolov3"](unused, levels, Assignment())] == [0, 0]


def _scaled_by_hand(targets: torch.Tensor, level: Level, config: Assignment) -> set[tuple]:
    """Section 1.3 in plain Python, without any vector; in float32, so that rounding decides alike at borders."""
    width, height = np.float32(level.width), np.float32(level.height)
    found = set()
    for index, (image, class_id, x, y, w, h) in enumerate(targets.numpy()):
        gx, gy, gw, gh = x * width, y * height, w * width, h * height
        column, row = min(math.floor(gx), level.width - 1), min(math.floor(gy), level.height - 1)
        cells = [(column, row)]
        if gx - column < 0.5 and gx > 1:
            cells.append((column - 1, row))
        if gy - row < 0.5 and gy > 1:
            cells.append((column, row - 1))
        if gx - column > 0.5 and gx < level.width - 1:
            cells.append((column + 1, row))
        if gy - row > 0.5 and gy < level.height - 1:
            cells.append((column, row + 1))
        for anchor, (aw, ah) in enumerate(level.detect.level_anchors):
            rw, rh = gw / np.float32(aw / level.stride), gh / np.float32(ah / level.stride)
            if max(rw, 1 / rw, rh, 1 / rh) < config.anchor_threshold:
                found |= {(index, int(image), int(class_id), anchor, c, r) for c, r in cells}
    return found


def _as_set(matches) -> set[tuple]:
    columns = (
        matches.target_index, matches.image, matches.class_ids, matches.anchor, matches.column, matches.row
    )  # fmt: skip
    rows = list(zip(*(column.tolist() for column in columns), strict=True))
    assert len(rows) == len(set(rows)), "a target took a slot twice"
    return set(rows)


targets_strategy = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.integers(0, 79),
        *[st.floats(0.0, 1.0, width=32)] * 2,
        *[st.floats(2**-10, 1.0, width=32)] * 2,
    ),
    max_size=12,
).map(lambda rows: torch.tensor(rows, dtype=torch.float32).reshape(-1, 6))


@settings(max_examples=60, deadline=None)
@given(targets_strategy)
def test_scaled_rule_equals_the_plain_rule_and_stays_in_reach(targets: torch.Tensor) -> None:
    levels = [level._replace(height=level.height // 2) for level in _nine_levels()]  # not square
    for level, matches in zip(levels, assign_scaled(targets, levels, Assignment()), strict=True):
        assert _as_set(matches) == _scaled_by_hand(targets, level, Assignment())
        offsets = matches.box_cxcywh[:, :2]
        assert ((offsets >= -0.5) & (offsets <= 1.5)).all()
        assert ((matches.row >= 0) & (matches.row < level.height)).all()
        assert ((matches.column >= 0) & (matches.column < level.width)).all()
        # Cell plus offset is the target again, in cells; width and height are the target's.
        grid = torch.tensor((level.width, level.height))
        centre = offsets + torch.stack((matches.column, matches.row), 1)
        torch.testing.assert_close(centre, targets[matches.target_index, 2:4] * grid, atol=1e-4, rtol=0)
        torch.testing.assert_close(matches.box_cxcywh[:, 2:], targets[matches.target_index, 4:6] * grid)
        anchors = torch.tensor(level.detect.level_anchors) / level.stride
        torch.testing.assert_close(matches.anchor_wh, anchors[matches.anchor])


@pytest.mark.parametrize("rule", ASSIGNERS)
@settings(max_examples=25, deadline=None)
@given(targets=targets_strategy, seed=st.integers(0, 99))
def test_order_of_targets_does_not_matter(rule: str, targets: torch.Tensor, seed: int) -> None:
    order = torch.randperm(len(targets), generator=torch.Generator().manual_seed(seed))
    levels = _nine_levels()
    straight = ASSIGNERS[rule](targets, levels, Assignment())
    shuffled = ASSIGNERS[rule](targets[order], levels, Assignment())
    for a, b in zip(straight, shuffled, strict=True):
        back = {(int(order[row[0]]), *row[1:]) for row in _as_set(b)}
        assert back == _as_set(a)


@pytest.mark.parametrize("rule", ASSIGNERS)
def test_images_do_not_see_each_other(rule: str) -> None:
    """Assigning a batch is assigning its images: neighbours and empty images change nothing."""
    generator = torch.Generator().manual_seed(1)
    alone = torch.cat((torch.zeros(9, 2), torch.rand(9, 4, generator=generator)), 1)
    others = torch.cat((torch.full((7, 1), 5.0), torch.zeros(7, 1), torch.rand(7, 4, generator=generator)), 1)
    levels = _nine_levels()
    for one, both in zip(
        ASSIGNERS[rule](alone, levels, Assignment()),
        ASSIGNERS[rule](torch.cat((alone, others)), levels, Assignment()),
        strict=True,
    ):
        assert _as_set(one) == {row for row in _as_set(both) if row[1] == 0}


@pytest.mark.parametrize("rule", ASSIGNERS)
@pytest.mark.parametrize(
    "row",
    [
        (0.5, 0.5, 0.0, 0.1),
        (0.5, 0.5, 0.1, -0.1),
        (0.5, 1.01, 0.1, 0.1),
        (-0.01, 0.5, 0.1, 0.1),
        (math.nan, 0.5, 0.1, 0.1),
        (0.5, 0.5, math.nan, 0.1),
        (0.5, 0.5, math.inf, 0.1),
    ],
)
def test_unusable_targets_are_background(rule: str, row: tuple[float, ...]) -> None:
    good = _target(0.3, 0.3, 0.2, 0.2)
    targets = torch.cat((_target(*row), good))
    for matches, alone in zip(
        ASSIGNERS[rule](targets, _nine_levels(), Assignment()),
        ASSIGNERS[rule](good, _nine_levels(), Assignment()),
        strict=True,
    ):
        assert len(matches) == len(alone)
        assert (matches.target_index == 1).all()


@pytest.mark.parametrize("rule", ASSIGNERS)
def test_no_targets(rule: str) -> None:
    for matches in ASSIGNERS[rule](torch.zeros(0, 6), _nine_levels(), Assignment()):
        assert len(matches) == 0
        assert matches.box_cxcywh.shape == (0, 4)
        assert matches.anchor_wh.shape == (0, 2)


def test_a_target_thinner_than_every_anchor_is_background() -> None:
    thin = _target(0.5, 0.5, 600 / 640, 1 / 640)
    assert all(len(match) == 0 for match in assign_scaled(thin, _nine_levels(), Assignment()))


def test_ignore_mask_is_the_best_overlap_with_the_own_image() -> None:
    generator = torch.Generator().manual_seed(2)
    predicted = torch.rand(3, 2, 4, 5, 4, generator=generator)
    targets = torch.cat((torch.tensor([[0.0, 1], [0, 2], [2, 0]]), torch.rand(3, 4, generator=generator)), 1)
    mask = ignore_mask(predicted, targets, threshold=0.2)
    assert mask.shape == (3, 2, 4, 5)
    assert not mask[1].any()
    for image in (0, 2):
        own = targets[targets[:, 0] == image, 2:]
        overlap = iou_matrix(cxcywh_to_xyxy(predicted[image].reshape(-1, 4)), cxcywh_to_xyxy(own))
        torch.testing.assert_close(mask[image].flatten(), (overlap > 0.2).any(1))
    assert mask.any()
