"""Anchors: the metric against a plain loop, and what k-means and refinement must achieve."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaledyolo.data import anchors
from scaledyolo.data.formats import open_dataset
from scaledyolo.errors import DataError

# YOLOv4's anchors (specification, table of anchor sets).
YOLOV4 = [(12, 16), (19, 36), (40, 28), (36, 75), (76, 55), (72, 146), (142, 110), (192, 243), (459, 401)]


def test_fit_against_a_plain_loop() -> None:
    labels = np.random.default_rng(0).uniform(1, 900, (200, 2))
    best, matches = [], []
    for w, h in labels:
        alike = [min(w / a, a / w, h / b, b / h) for a, b in YOLOV4]
        best.append(max(alike))
        matches.append(sum(x > 0.25 for x in alike))
    fit = anchors.fit_of(labels, YOLOV4)
    assert fit.recall == pytest.approx(np.mean([x > 0.25 for x in best]))
    assert fit.mean_matches == pytest.approx(np.mean(matches))
    assert fit.fitness == pytest.approx(np.mean([x if x > 0.25 else 0 for x in best]))


@settings(deadline=None)
@given(st.floats(4.1, 1000), st.floats(1.01, 3.9))
def test_the_threshold_is_a_factor_of_four_per_axis(side: float, factor: float) -> None:
    assert anchors.fit_of(np.array([[side * factor, side]]), [(side, side)]).recall == 1
    assert anchors.fit_of(np.array([[side * 4.01, side]]), [(side, side)]).recall == 0


def test_clusters_are_found() -> None:
    rng = np.random.default_rng(1)
    centres = np.array([(10, 12), (40, 20), (30, 90), (200, 150)])
    labels = np.concatenate([centre * rng.normal(1, 0.03, (100, 2)) for centre in centres])
    found = anchors.kmeans_anchors(labels, 4, np.random.default_rng(0))
    np.testing.assert_allclose(found, centres[np.argsort(centres.prod(axis=1))], rtol=0.05)


def test_refinement_never_gets_worse_and_repeats_itself() -> None:
    labels = np.random.default_rng(2).lognormal(3.5, 1, (300, 2))
    start = anchors.kmeans_anchors(labels, 6, np.random.default_rng(0))
    better = anchors.refine_anchors(labels, start, np.random.default_rng(0), generations=200)
    assert anchors.fit_of(labels, better).fitness > anchors.fit_of(labels, start).fitness
    again = anchors.refine_anchors(labels, start, np.random.default_rng(0), generations=200)
    np.testing.assert_array_equal(better, again)
    assert (np.diff(better.prod(axis=1)) >= 0).all()


def test_too_few_boxes() -> None:
    with pytest.raises(DataError, match="9 anchors need"):
        anchors.kmeans_anchors(np.full((50, 2), 10.0), 9, np.random.default_rng(0))
    with pytest.raises(DataError, match="no boxes"):
        anchors.fit_of(np.zeros((0, 2)), YOLOV4)


@pytest.mark.shared
def test_proposed_anchors_fit_real_data_better(shared: Path) -> None:
    dataset = open_dataset(shared / "data/coco_mini", "val")
    labels = anchors.label_sizes(dataset, 416)
    assert len(labels) == 2647 - 28
    np.testing.assert_allclose(labels[0], np.array([24.7, 69.5]) * 416 / 640)  # the first box of the file
    proposed = anchors.propose_anchors(labels, 6, np.random.default_rng(0), generations=100)
    tiny = [(10, 14), (23, 27), (37, 58), (81, 82), (135, 169), (344, 319)]
    assert anchors.fit_of(labels, proposed).fitness > anchors.fit_of(labels, tiny).fitness
