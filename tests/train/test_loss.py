"""The detection loss against printed goldens, against a plain float64 implementation, and for every kind of input."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.functional import binary_cross_entropy_with_logits

from scaledyolo.arch.ops import Detect
from scaledyolo.errors import DataError, SpecError, UsageError
from scaledyolo.net.initialise import prior_bias
from scaledyolo.train.assign import ASSIGNERS, Level
from scaledyolo.train.loss import (
    BOX_METRICS,
    LEVEL_BALANCE,
    LossParts,
    detection_loss,
    loss_gains,
)
from scaledyolo.train.recipe import RECIPES, Assignment, Loss

ANCHORS = ((10, 14), (23, 27), (37, 58), (81, 82), (135, 169), (344, 319))
DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU"))]


@pytest.fixture(autouse=True)
def _deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def _heads(num_classes: int = 3, decoding: str = "sigmoid-squared", scale_xy: float = 1.0) -> list[Detect]:
    """yolov4-tiny's two levels in the order of its cfg, stride 32 first."""
    masks = ((3, 4, 5), (1, 2, 3))
    return [Detect(ANCHORS, mask, num_classes, decoding, scale_xy) for mask in masks]  # type: ignore[arg-type]


STRIDES = (32, 16)


def _maps(batch: int = 2, size: tuple[int, int] = (128, 160), num_classes: int = 3, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [
        torch.randn(batch, 3 * (5 + num_classes), size[0] // stride, size[1] // stride, generator=generator)
        for stride in STRIDES
    ]


def _targets(count: int, batch: int = 2, num_classes: int = 3, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    image = torch.randint(0, batch, (count, 1), generator=generator)
    class_id = torch.randint(0, num_classes, (count, 1), generator=generator)
    centre = torch.rand(count, 2, generator=generator)
    size = 0.02 + 0.8 * torch.rand(count, 2, generator=generator) ** 2
    return torch.cat((image, class_id, centre, size), 1)


def _loss(
    maps: Sequence[Tensor], targets: Tensor, heads: Sequence[Detect], config: Loss, rule: str = "scaled"
) -> LossParts:
    return detection_loss(maps, targets, heads, STRIDES, config, Assignment(rule=rule))  # type: ignore[arg-type]


# --- goldens ---


BOX_PAIRS = [  # spec/training.md 2.1
    ((0, 0, 10, 10), (5, 5, 15, 15), 0.142857, -0.079365, 0.031746, 0.031746),
    ((0, 0, 4, 2), (1, 0, 3, 4), 0.333333, 0.083333, 0.302083, 0.268332),
    ((0, 0, 1, 1), (2, 2, 3, 3), 0, -0.777778, -0.444444, -0.444444),
    ((10, 20, 50, 60), (12, 18, 48, 70), 0.708661, 0.685584, 0.704944, 0.704379),
]


@pytest.mark.parametrize(("a", "b", "iou", "giou", "diou", "ciou"), BOX_PAIRS)
def test_box_metric_golden(a: tuple, b: tuple, iou: float, giou: float, diou: float, ciou: float) -> None:
    a_xyxy, b_xyxy = torch.tensor([a], dtype=torch.float32), torch.tensor([b], dtype=torch.float32)
    for name, expected in {"iou": iou, "giou": giou, "diou": diou, "ciou": ciou}.items():
        assert BOX_METRICS[name](a_xyxy, b_xyxy).item() == pytest.approx(expected, abs=1e-6)
        assert BOX_METRICS[name](b_xyxy, a_xyxy).item() == pytest.approx(expected, abs=1e-6)


def _zero_logit_parts(recipe: str, num_levels: int) -> LossParts:
    """All outputs zero; one object that is similar to the anchors of every level, as the class golden wants."""
    strides = (8, 16, 32, 64, 128)[:num_levels]
    heads = [Detect(((64, 64),), (0,), 80, "sigmoid-squared") for _ in strides]
    maps = [torch.zeros(2, 85, 256 // stride, 256 // stride) for stride in strides]
    target = torch.tensor([[1, 7, 0.3, 0.4, 0.25, 0.25]])
    config = RECIPES[recipe].loss
    parts = detection_loss(maps, target, heads, strides, config, Assignment())
    return parts.weighted(loss_gains(config, num_levels, 80))


@pytest.mark.parametrize(
    ("recipe", "num_levels", "objectness", "class_"),
    [
        ("large", 3, 3.742995, 1.039721),
        ("large", 4, 4.002925, 1.039721),
        ("large", 5, 3.493462, 1.039721),
        ("csp", 3, 2.620096, 0.623832),
    ],
)
def test_zero_logit_golden(recipe: str, num_levels: int, objectness: float, class_: float) -> None:
    """spec/training.md 2.2; a logit of 0 costs ln 2 whatever the target."""
    parts = _zero_logit_parts(recipe, num_levels)
    assert parts.objectness.item() == pytest.approx(objectness, abs=1e-6)
    assert parts.class_.item() == pytest.approx(class_, abs=1e-6)
    assert parts.total(images=2).item() == pytest.approx(
        2 * (parts.box + parts.objectness + parts.class_).item(), rel=1e-6
    )


def test_focal_golden() -> None:
    """spec/training.md 2.2: logit 0, gamma 1.5; an unmatched and a matched slot of two classes."""
    config = Loss(focal_gamma=1.5)
    head = [Detect(((32, 32),), (0,), 2, "sigmoid-squared")]
    zeros = [torch.zeros(1, 7, 1, 1)]
    empty = detection_loss(zeros, torch.zeros(0, 6), head, (32,), config, Assignment())
    assert empty.objectness.item() == pytest.approx(0.1837984, abs=1e-7)
    # Zero logits decode to the anchor at the centre of the cell: an IoU, and so an objectness target, of 1.
    target = torch.tensor([[0, 1, 0.5, 0.5, 1.0, 1.0]])
    exact = detection_loss(zeros, target, head, (32,), config, Assignment())
    assert exact.objectness.item() == pytest.approx(0.0612661, abs=1e-7)
    assert exact.class_.item() == pytest.approx((0.0612661 + 0.1837984) / 2, abs=1e-7)
    assert exact.box.item() == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize(
    ("stride", "objectness"), [(8, -6.684612), (16, -5.298317), (32, -3.912023), (64, -2.525729), (128, -1.139434)]
)
def test_objectness_prior_golden(stride: int, objectness: float) -> None:
    """spec/training.md 2.3."""
    assert prior_bias(stride, 80).objectness == pytest.approx(objectness, abs=5.1e-7)


@pytest.mark.parametrize(("num_classes", "term"), [(80, -4.880400), (20, -3.455790), (1, 4.094345)])
def test_class_prior_golden(num_classes: int, term: float) -> None:
    # The specification prints six decimals, of which that for 20 classes is cut, not rounded: -3.4557908.
    assert prior_bias(8, num_classes).class_ == pytest.approx((term,) * num_classes, abs=1e-6)


def test_class_prior_by_frequency() -> None:
    assert prior_bias(8, 3, class_counts=(1, 3, 0)).class_ == pytest.approx(
        (math.log(0.25), math.log(0.75), math.log(0.125))
    )
    with pytest.raises(UsageError, match="number of objects of 3 classes"):
        prior_bias(8, 3, class_counts=(1, 3))


# --- an independent implementation: plain loops in float64 ---


def _plain_ciou(p: Tensor, g: Tensor) -> Tensor:
    """Complete IoU of two boxes, centre and size; alpha constant."""
    eps = 1e-7
    p1, p2, g1, g2 = p[:2] - p[2:] / 2, p[:2] + p[2:] / 2, g[:2] - g[2:] / 2, g[:2] + g[2:] / 2
    inter = (torch.minimum(p2, g2) - torch.maximum(p1, g1)).clamp(min=0).prod()
    iou = inter / (p[2:].prod() + g[2:].prod() - inter + eps)
    hull = torch.maximum(p2, g2) - torch.minimum(p1, g1)
    distance = ((p[:2] - g[:2]) ** 2).sum() / ((hull**2).sum() + eps)
    v = 4 / math.pi**2 * (torch.atan(g[2] / (g[3] + eps)) - torch.atan(p[2] / (p[3] + eps))) ** 2
    alpha = (v / (1 - iou + v + eps)).detach()
    return iou - distance - alpha * v


def _plain_decode(row: Tensor, anchor: Tensor, head: Detect) -> Tensor:
    if head.decoding == "exp":
        k = head.scale_xy
        return torch.cat((k * torch.sigmoid(row[:2]) - (k - 1) / 2, torch.exp(row[2:4]) * anchor))
    return torch.cat((2 * torch.sigmoid(row[:2]) - 0.5, (2 * torch.sigmoid(row[2:4])) ** 2 * anchor))


def _plain_bce(x: Tensor, t: Tensor, config: Loss, positive_weight: float) -> Tensor:
    p = torch.sigmoid(x)
    loss = -(positive_weight * t * torch.log(p) + (1 - t) * torch.log(1 - p))
    if config.focal_gamma:
        p_t = t * p + (1 - t) * (1 - p)
        loss = loss * (t * config.focal_alpha + (1 - t) * (1 - config.focal_alpha)) * (1 - p_t) ** config.focal_gamma
    return loss


def _plain_loss(
    maps: Sequence[Tensor], targets: Tensor, heads: Sequence[Detect], config: Loss, rule: str
) -> dict[str, Tensor]:
    """Section 2.2 as it reads; the assignment is tested on its own and taken from the package."""
    totals = {name: torch.zeros((), dtype=torch.float64) for name in ("box", "objectness", "class_")}
    levels = [Level(head, s, m.shape[2], m.shape[3]) for head, s, m in zip(heads, STRIDES, maps, strict=True)]
    balance = dict(zip(sorted(STRIDES), LEVEL_BALANCE[2], strict=True))
    all_matches = ASSIGNERS[rule](targets, levels, Assignment())  # type: ignore[index]
    for raw, level, matches in zip(maps, levels, all_matches, strict=True):
        head, n = level.detect, len(matches)
        grid = raw.reshape(raw.shape[0], 3, 5 + head.num_classes, *raw.shape[2:])
        wanted: dict[tuple, float] = {}
        for m in range(n):
            slot = tuple(int(x[m]) for x in (matches.image, matches.anchor, matches.row, matches.column))
            row = grid[slot[0], slot[1], :, slot[2], slot[3]]
            anchor = torch.tensor(head.level_anchors[slot[1]], dtype=torch.float64) / level.stride
            ciou = _plain_ciou(_plain_decode(row, anchor, head), matches.box_cxcywh[m].double())
            totals["box"] = totals["box"] + (1 - ciou) / n
            share = config.objectness_iou_share
            quality = 1 - share + share * max(float(ciou.detach()), 0.0)
            wanted[slot] = max(wanted.get(slot, 0.0), quality)
            if head.num_classes > 1:
                t = torch.full((head.num_classes,), config.label_smoothing / 2, dtype=torch.float64)
                t[matches.class_ids[m]] = 1 - config.label_smoothing / 2
                losses = _plain_bce(row[5:], t, config, config.class_positive_weight)
                totals["class_"] = totals["class_"] + losses.mean() / n
        t = torch.zeros_like(grid[:, :, 4])
        for slot, quality in wanted.items():
            t[slot] = quality
        losses = _plain_bce(grid[:, :, 4], t, config, config.objectness_positive_weight)
        if rule != "scaled":
            losses = losses * _plain_background(grid, level, targets, wanted)
        totals["objectness"] = totals["objectness"] + balance[level.stride] * losses.mean()
    return totals


def _plain_background(grid: Tensor, level: Level, targets: Tensor, wanted: dict[tuple, float]) -> Tensor:
    """0 at slots that overlap an object of their image by more than 0.7 without answering for one."""
    keep = torch.ones_like(grid[:, :, 4]).detach()
    for image, anchor, y, x in torch.cartesian_prod(*(torch.arange(n) for n in keep.shape)).tolist():
        shape = torch.tensor(level.detect.level_anchors[anchor], dtype=torch.float64) / level.stride
        box = _plain_decode(grid[image, anchor, :, y, x].detach(), shape, level.detect)
        box[:2] += torch.tensor((x, y))
        for target in targets[targets[:, 0] == image].double():
            g = target[2:] * torch.tensor((level.width, level.height) * 2)
            corner1 = torch.maximum(box[:2] - box[2:] / 2, g[:2] - g[2:] / 2)
            corner2 = torch.minimum(box[:2] + box[2:] / 2, g[:2] + g[2:] / 2)
            inter = (corner2 - corner1).clamp(min=0).prod()
            if inter / (box[2:].prod() + g[2:].prod() - inter) > 0.7 and (image, anchor, y, x) not in wanted:
                keep[image, anchor, y, x] = 0
    return keep


CONFIGS = {
    "default": Loss(),
    "smoothed": Loss(label_smoothing=0.1, objectness_iou_share=0.5),
    "focal": Loss(focal_gamma=1.5),
    "weighted": Loss(objectness_positive_weight=2.0, class_positive_weight=0.5),
}


# The options do not depend on the rule.
@pytest.mark.parametrize(
    ("name", "rule"), [("default", "yolov3"), ("default", "yolov4"), *((name, "scaled") for name in CONFIGS)]
)
@pytest.mark.parametrize(("decoding", "scale_xy"), [("sigmoid-squared", 1.0), ("exp", 1.05)])
@pytest.mark.parametrize("device", DEVICES)
def test_values_and_gradients_equal_the_plain_loss(
    name: str, rule: str, decoding: str, scale_xy: float, device: str
) -> None:
    heads, config = _heads(decoding=decoding, scale_xy=scale_xy), CONFIGS[name]
    targets = _targets(12 if rule == "scaled" else 42)  # many, so that predictions of free slots overlap some
    maps = _maps()
    plain = [raw.double().requires_grad_() for raw in maps]
    expected = _plain_loss(plain, targets, heads, config, rule)
    (0.05 * expected["box"] + 0.7 * expected["objectness"] + 0.3 * expected["class_"]).backward()

    for memory_format in (torch.contiguous_format, torch.channels_last):
        ours = [raw.to(device=device, memory_format=memory_format, copy=True).requires_grad_() for raw in maps]
        parts = _loss(ours, targets.to(device), heads, config, rule)
        for part in expected:
            assert getattr(parts, part).item() == pytest.approx(expected[part].item(), rel=2e-5), part
        (0.05 * parts.box + 0.7 * parts.objectness + 0.3 * parts.class_).backward()
        for a, b in zip(ours, plain, strict=True):
            assert a.grad is not None
            assert a.grad.is_contiguous(memory_format=memory_format)
            torch.testing.assert_close(a.grad.cpu().double(), b.grad, rtol=2e-4, atol=1e-7)


def test_ignored_slots_have_no_objectness_gradient() -> None:
    """A slot that predicts an object well without answering for it learns nothing under YOLOv3's rule."""
    head = [Detect(((32, 32), (36, 36)), (0, 1), 1, "exp")]
    target = torch.tensor([[0, 0, 0.5, 0.5, 36 / 96, 36 / 96]])  # the second anchor is the best
    raw = torch.zeros(1, 12, 3, 3, requires_grad=True)
    parts = detection_loss([raw], target, head, (32,), Loss(), Assignment(rule="yolov3"))
    parts.objectness.backward()
    objectness = raw.grad.view(2, 6, 3, 3)[:, 4]
    assert objectness[0, 1, 1] == 0  # overlaps by 0.79
    assert objectness[1, 1, 1] < 0
    assert (objectness != 0).sum() == 17


# --- properties ---


def test_order_of_targets_does_not_matter() -> None:
    maps, targets = _maps(), _targets(20)
    straight, reverse = (_loss(maps, t, _heads(), Loss()) for t in (targets, targets.flip(0)))
    for part in ("box", "objectness", "class_"):
        torch.testing.assert_close(getattr(straight, part), getattr(reverse, part), rtol=1e-6, atol=1e-7)


def test_order_of_heads_does_not_matter() -> None:
    maps, targets, heads = _maps(), _targets(20), _heads()
    straight = _loss(maps, targets, heads, Loss())
    reverse = detection_loss(maps[::-1], targets, heads[::-1], STRIDES[::-1], Loss(), Assignment())
    torch.testing.assert_close(straight.objectness, reverse.objectness)


def test_slot_of_several_targets_wants_their_largest_overlap() -> None:
    """Two objects in one slot: the objectness gradient is that of the better fitting alone, in either order."""
    head = [Detect(((32, 32),), (0,), 1, "sigmoid-squared")]
    good, bad = [0, 0, 0.5, 0.5, 1.0, 1.0], [0, 0, 0.5, 0.5, 0.5, 0.5]
    gradients = []
    for rows in ([good], [good, bad], [bad, good]):
        raw = torch.zeros(1, 6, 1, 1, requires_grad=True)
        detection_loss([raw], torch.tensor(rows), head, (32,), Loss(), Assignment()).objectness.backward()
        gradients.append(raw.grad)
    assert torch.equal(gradients[0], gradients[1])
    assert torch.equal(gradients[0], gradients[2])


def test_batch_without_objects_teaches_background_only() -> None:
    maps = [raw.requires_grad_() for raw in _maps()]
    parts = _loss(maps, torch.zeros(0, 6), _heads(), Loss())
    assert parts.box == parts.class_ == 0
    parts.total(2).backward()
    for raw in maps:
        grid = raw.grad.view(2, 3, 8, *raw.shape[2:])
        assert (grid[:, :, 4] > 0).all()
        assert torch.count_nonzero(grid) == grid[:, :, 4].numel()


def test_one_class_has_no_class_loss() -> None:
    parts = _loss(_maps(num_classes=1), _targets(9, num_classes=1), _heads(num_classes=1), Loss())
    assert parts.class_ == 0
    assert parts.box > 0


def test_two_runs_are_bit_equal() -> None:
    """Many targets in the same slots, several threads."""
    targets = _targets(9).repeat(40, 1)
    gradients = []
    for _ in range(2):
        maps = [raw.requires_grad_() for raw in _maps()]
        _loss(maps, targets, _heads(), Loss()).total(2).backward()
        gradients.append(maps)
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a.grad, b.grad)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_are_computed_in_float32(dtype: torch.dtype) -> None:
    maps = [raw.to(dtype) for raw in _maps()]
    targets = _targets(20)
    half = _loss(maps, targets, _heads(), Loss())
    full = _loss([raw.float() for raw in maps], targets, _heads(), Loss())
    for part in ("box", "objectness", "class_"):
        assert getattr(half, part).dtype == torch.float32
        assert torch.equal(getattr(half, part), getattr(full, part))
    maps = [raw.requires_grad_() for raw in maps]
    _loss(maps, targets, _heads(), Loss()).total(2).backward()
    assert all(raw.grad.dtype == dtype and raw.grad.isfinite().all() for raw in maps)


fractions = st.floats(0, 1, width=32)
centres = st.sampled_from([0.0, 1e-6, 0.25, 0.5, 0.7, 1.0]) | fractions
sizes = st.sampled_from([0.0, 1e-30, 1e-6, 1 / 416, 0.2, 1.0, 3.0, 99.0, 1e6, 1e30, math.inf]) | fractions
row_strategy = st.tuples(st.integers(0, 1), st.integers(0, 2), centres, centres, sizes, sizes)


@settings(max_examples=80, deadline=None)
@given(
    rows=st.lists(row_strategy, max_size=8),
    level=st.sampled_from([0.0, 1.0, 30.0, 1e4, -1e4]),
    dtype=st.sampled_from([torch.float32, torch.float16, torch.bfloat16]),
    decoding=st.sampled_from(["exp", "sigmoid-squared"]),
    rule=st.sampled_from(["scaled", "yolov3", "yolov4"]),
    metric=st.sampled_from(["iou", "giou", "diou", "ciou"]),
    gamma=st.sampled_from([0.0, 0.5, 1.5]),
    repeat=st.integers(1, 3),
)
def test_loss_and_gradients_are_always_finite(
    rows: list, level: float, dtype: torch.dtype, decoding: str, rule: str, metric: str, gamma: float, repeat: int
) -> None:
    targets = torch.tensor(rows, dtype=torch.float32).reshape(-1, 6).repeat(repeat, 1)
    maps = [(raw * level).to(dtype).requires_grad_() for raw in _maps(size=(64, 64))]
    config = Loss(box_metric=metric, focal_gamma=gamma)  # type: ignore[arg-type]
    parts = _loss(maps, targets, _heads(decoding=decoding, scale_xy=1.05), config, rule)
    for part in (parts.box, parts.objectness, parts.class_):
        assert part.shape == ()
        assert part.dtype == torch.float32
        assert part.isfinite()
    parts.total(images=2).backward()
    assert all(raw.grad.isfinite().all() for raw in maps)


@pytest.mark.parametrize("decoding", ["exp", "sigmoid-squared"])
@pytest.mark.parametrize("value", [-1e4, -100.0, 0.0, 100.0, 1e4])
def test_identical_extreme_logits_are_finite(decoding: str, value: float) -> None:
    maps = [torch.full_like(raw, value).requires_grad_() for raw in _maps()]
    parts = _loss(maps, _targets(20), _heads(decoding=decoding), Loss())
    parts.total(2).backward()
    assert parts.total().isfinite()
    assert all(raw.grad.isfinite().all() for raw in maps)


def test_a_few_gradient_steps_fit_a_target() -> None:
    """The parts pull in the right direction: box, objectness and class of the answering slots."""
    maps = [torch.zeros_like(raw).requires_grad_() for raw in _maps(batch=1)]
    target = torch.tensor([[0, 2, 0.41, 0.63, 0.5, 0.6]])
    optimizer = torch.optim.Adam(maps, lr=0.2)
    for _ in range(200):
        optimizer.zero_grad()
        parts = _loss(maps, target, _heads(), Loss())
        parts.total().backward()
        optimizer.step()
    assert parts.box < 0.1  # of two levels
    assert parts.class_ < 0.01
    grid = maps[0].view(3, 8, *maps[0].shape[2:])
    assert grid[:, 4].sigmoid().max() > 0.9


# --- mistakes ---


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ([0, 3, 0.5, 0.5, 0.1, 0.1], "a target has class 3, but the model knows classes 0 to 2"),
        ([0, -1, 0.5, 0.5, 0.1, 0.1], "a target has class -1"),
        ([0, math.nan, 0.5, 0.5, 0.1, 0.1], "a target has class nan"),
        ([2, 0, 0.5, 0.5, 0.1, 0.1], "a target belongs to image 2, but the batch has images 0 to 1"),
    ],
)
def test_wrong_targets_are_named(row: list[float], sentence: str) -> None:
    with pytest.raises(DataError, match=sentence):
        _loss(_maps(), torch.tensor([row]), _heads(), Loss())


def test_wrong_heads_are_named() -> None:
    with pytest.raises(SpecError, match="need 27 channels, got 24"):
        _loss(_maps(), _targets(2), _heads(num_classes=4), Loss())
    with pytest.raises(SpecError, match="region head cannot be trained"):
        _loss(_maps(), _targets(2), _heads(decoding="region"), Loss())
    with pytest.raises(UsageError, match="has 3 weights, but the network has 2"):
        _loss(_maps(), _targets(2), _heads(), Loss(objectness_balance=(1.0, 1.0, 1.0)))


def test_binary_loss_is_torchs_where_nothing_is_matched() -> None:
    maps = _maps()
    parts = _loss(maps, torch.zeros(0, 6), _heads(), Loss())
    expected = sum(
        weight * binary_cross_entropy_with_logits(m.view(2, 3, 8, -1)[:, :, 4], torch.zeros(2, 3, m[0, 0].numel()))
        for weight, m in zip((1.0, 4.0), maps, strict=True)
    )
    torch.testing.assert_close(parts.objectness, expected)
