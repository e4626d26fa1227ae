"""Capacity against published results: those that its constants come from, and others that were not used."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaledyolo.arch.scaling import num_stages, scaled
from scaledyolo.arch.zoo import find
from scaledyolo.design.candidates import Candidate, network_of
from scaledyolo.design.capacity import COCO_BOXES, SMOOTH_WORTH, boxes_of, capacities, seen, worth
from scaledyolo.errors import DataError


def published(name, size, family, depth="1", width="1", activation="mish") -> float:
    spec = find(name)
    network = network_of(spec, family, num_stages(spec), Fraction(depth), Fraction(width))
    return float(capacities([Candidate(network, size, activation)])[0])


def test_the_networks_that_gave_the_constants():
    """YOLOv7, Table 1: AP 50.3, 30.8 and 24.9 after the same training."""
    assert published("yolov4-csp", 640, "csp") == pytest.approx(100, abs=0.2)
    assert published("yolov4-csp-s", 320, "csp", "1/8", "1/2") == pytest.approx(100 * 30.8 / 50.3, rel=0.01)
    assert published("yolov4-tiny", 416, "tiny", activation="leaky") == pytest.approx(100 * 24.9 / 50.3, rel=0.01)


@pytest.mark.parametrize(
    ("name", "size", "family", "width", "ap", "within"),
    [
        ("yolov4-csp", 512, "csp", "1", 46.2, 0.04),
        ("yolov4-p5", 896, "p5", "1", 50.5, 0.04),
        ("yolov4-p6", 1280, "p6", "1", 53.4, 0.04),
        ("yolov4-p7", 1536, "p7", "5/4", 54.6, 0.04),
    ],
)
def test_networks_that_were_not_used(name, size, family, width, ap, within):
    """Scaled-YOLOv4, Tables 10 (before fine-tuning) and 11, beside CSP at 640 with AP 47.5."""
    assert published(name, size, family, width=width) == pytest.approx(100 * ap / 47.5, rel=within)


def test_more_work_brings_less():
    """YOLOv7, Table 3: 1.5 times the operations took 51.7 to 52.9."""
    spec = find("yolov4-csp")
    small, large = (network_of(scaled(spec, depth=d, width=w), "csp", 5) for d, w in ((1, 1), (1.5, 1.1)))
    small, large = Candidate(small, 640, "mish"), Candidate(large, 640, "mish")
    gain = np.divide(*capacities([large, small]))
    assert large.macs / small.macs == pytest.approx(189.9 / 125.5, rel=0.1)
    assert gain == pytest.approx(52.9 / 51.7, abs=0.01)


def test_sizes_of_yolov4():
    """AP 38.0, 41.2, 43.0, 43.5 at four sizes: nothing but what is seen changes, work for each pixel stays."""
    largest = seen(COCO_BOXES, 608, 8, math.inf)
    for size, ap in ((320, 38.0), (416, 41.2), (512, 43.0)):
        assert seen(COCO_BOXES, size, 8, math.inf) / largest == pytest.approx(ap / 43.5, rel=0.02)


def test_balance_of_depth_and_width():
    """YOLOv7, Table 3: width alone 52.4, depth alone 52.7, both 52.9, at about equal cost."""
    spec = find("yolov4-csp")
    values = {}
    for depth, width in (("1", "5/4"), ("2", "1"), ("3/2", "5/4")):
        network = network_of(spec, "csp", 5, Fraction(depth), Fraction(width))
        values[depth] = worth(Candidate(network, 640, "mish"))
    assert values["3/2"] == 1
    assert values["1"] == pytest.approx(52.4 / 52.9, abs=0.006)
    assert values["2"] == pytest.approx(52.7 / 52.9, abs=0.006)


def test_mish_is_worth_what_it_brought_the_classifier():
    network = network_of(find("yolov4-csp"), "csp", 5)
    leaky, mish, swish = (worth(Candidate(network, 640, name)) for name in ("leaky", "mish", "swish"))
    assert mish / leaky == pytest.approx(SMOOTH_WORTH) == pytest.approx(78.7 / 77.8)
    assert swish == mish


shares = st.floats(0.005, 1)


@given(shares, shares, st.sampled_from([8, 16]), st.integers(100, 3000), st.integers(4, 40))
def test_more_is_seen_at_a_larger_size_while_the_field_reaches(width, height, stride, field, steps):
    boxes = np.array([[width, height]])
    size = 32 * steps
    here, larger = seen(boxes, size, stride, field), seen(boxes, size + 32, stride, field)
    assert 0 < here < 1
    assert seen(boxes, size, stride, field + 1) >= here
    assert seen(boxes, size, stride * 2, field) < here
    if max(width, height) * (size + 32) <= field:
        assert larger > here


def test_large_boxes_want_a_small_input_and_small_ones_a_large():
    """By what is seen for each pixel that is paid for."""
    gain = {
        name: seen(np.array([[side, side]]), 640, 8, 1000) / seen(np.array([[side, side]]), 320, 8, 1000)
        for name, side in (("large", 0.6), ("small", 0.02))
    }
    assert gain["large"] < 1.01
    assert gain["small"] > 2


@pytest.mark.shared
def test_boxes_of_a_data_set(shared):
    from scaledyolo.data.formats import open_dataset

    dataset = open_dataset(shared / "data" / "coco_mini", "val")
    boxes = boxes_of(dataset)
    assert boxes.shape == (1000, 2)
    assert (boxes > 0).all()
    assert (boxes <= 1).all()
    # The embedded summary of COCO's boxes stands for all of them.
    for size in (256, 416, 640):
        assert seen(COCO_BOXES, size, 8, 1000) == pytest.approx(seen(boxes, size, 8, 1000), rel=0.03)
    with pytest.raises(DataError, match="leave --data out"):
        boxes_of(dataset.subset([]))
