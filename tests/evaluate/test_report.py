"""The page is whole, safe, alone in the world, and says what the figures say."""

from __future__ import annotations

import base64
import json
import re
from collections.abc import Callable
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import cv2
import numpy as np
import pytest

from scaledyolo.errors import DataError
from scaledyolo.evaluate.analysis import Analysis, analyse
from scaledyolo.evaluate.arrays import GroundTruth, Predictions, ground_truth_from_lists, predictions_from_lists
from scaledyolo.evaluate.bootstrap import compare_average_precision
from scaledyolo.evaluate.coco import coco_metrics
from scaledyolo.evaluate.matching import match
from scaledyolo.evaluate.protocols import DARKNET_MAP
from scaledyolo.evaluate.report import ReportOptions, report_html, write_report

VOID = {"meta", "img", "link", "br", "image", "rect"}
EVIL = '<script>alert("x")</script> & $name \''


class Page(HTMLParser):
    """Checks that tags are balanced and collects what is on the page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.addresses: list[str] = []
        self.tags: list[str] = []
        self.text: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.addresses += [value or "" for name, value in attrs if name in ("src", "href", "xlink:href")]
        if tag not in VOID or tag == "rect":
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag in self.open:
            self.open.pop()

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text.append(data)


def picture(image: int) -> np.ndarray:
    """A 640 x 640 photograph, pure red."""
    return np.tile(np.array([255, 0, 0], dtype=np.uint8), (640, 640, 1))


@pytest.fixture(scope="module")
def case(scene: Callable) -> tuple[GroundTruth, Predictions, Analysis]:
    truth, predictions = scene(0)
    truth = replace(
        truth, class_names=(EVIL, "b" * 60, "c", "d"), image_ids=tuple(f"<i>{k}" for k in range(truth.num_images))
    )
    return truth, predictions, analyse(truth, predictions, num_resamples=50)


def test_page_is_whole_safe_and_alone(case: tuple, tmp_path: Path) -> None:
    truth, predictions, analysis = case
    matching = match(truth, predictions.above(0.4))
    comparison = compare_average_precision(matching, analysis.matching, num_resamples=50)
    options = ReportOptions(title=EVIL, details={EVIL: EVIL}, num_worst_images=3, compared_with=EVIL)
    html, figures = write_report(
        tmp_path / "new" / "folder",
        analysis,
        truth,
        predictions,
        options=options,
        load_image=picture,
        comparison=comparison,
    )
    text = html.read_text(encoding="utf-8")
    page = Page(text)
    assert page.tags.count("script") == 1
    assert page.tags.count("image") == 3
    assert "<i>0" not in text
    assert "&lt;i&gt;" in text
    for address in page.addresses:
        assert address.startswith(("data:", "#")), address[:60]
    assert not re.search(r"url\(|@import|https?://", re.sub(r"data:[^\"]+", "", text))
    assert EVIL in page.text
    content = json.loads(figures.read_text(encoding="utf-8"))
    assert content["title"] == EVIL
    assert content["coco"]["AP"] == pytest.approx(coco_metrics(truth, predictions).ap)
    assert content["coco"]["AP_large"] == pytest.approx(analysis.coco.ap_large)
    assert content["classes"][-1]["AP"] is None
    assert content["comparison"]["AP"]["second"] == pytest.approx(analysis.coco.ap)
    assert f"{analysis.coco.ap:.3f}" in page.text


def test_plots_are_valid_svg_without_outside_references(case: tuple) -> None:
    truth, predictions, analysis = case
    text = report_html(analysis, truth, predictions)
    plots = re.findall(r"data:image/svg\+xml;base64,([^\"]+)", text)
    assert len(plots) == 8
    for plot in plots:
        root = ElementTree.fromstring(base64.b64decode(plot))
        links = [value for node in root.iter() for key, value in node.attrib.items() if key.endswith("href")]
        assert all(link.startswith(("#", "data:image/png")) for link in links)
    assert report_html(analysis, truth, predictions) == text  # the same figures give the same page


def test_pictures_show_the_photograph_in_its_colours(case: tuple) -> None:
    truth, predictions, analysis = case
    text = report_html(analysis, truth, predictions, load_image=picture, options=ReportOptions(num_worst_images=1))
    (photograph,) = re.findall(r"data:image/jpeg;base64,([^\"]+)", text)
    decoded = cv2.imdecode(np.frombuffer(base64.b64decode(photograph), np.uint8), cv2.IMREAD_COLOR)
    assert decoded.shape == (640, 640, 3)
    np.testing.assert_allclose(decoded[320, 320], (0, 0, 255), atol=3)  # OpenCV's order: blue, green, red
    for wrong in (picture(0).astype(float), picture(0)[:, :, 0]):
        with pytest.raises(DataError, match="RGB uint8"):
            report_html(analysis, truth, predictions, load_image=lambda _, image=wrong: image)


def test_worst_image_is_the_one_with_most_mistakes() -> None:
    box, far = [10, 10, 50, 50], [100, 100, 150, 150]
    truth = ground_truth_from_lists(["a"], [(200, 200)] * 4, [[box], [box, far], [box], [box]], [[0], [0, 0], [0], [0]])
    predictions = predictions_from_lists(
        [[box], [], [box, far], [far]], [[0.9], [], [0.9, 0.6], [0.2]], [[0], [], [0, 0], [0]], num_classes=1
    )
    worst = analyse(truth, predictions, num_resamples=0).worst_images
    assert [(one.image, one.missed, one.wrong) for one in worst] == [(1, 2, 0), (3, 1, 0), (2, 0, 1)]
    assert [one.cost for one in worst] == pytest.approx([2, 1, 0.6])


@pytest.mark.parametrize("num_images", [0, 2])
@pytest.mark.parametrize("num_objects", [0, 1])
@pytest.mark.parametrize("num_detections", [0, 1])
def test_pages_about_little(num_images: int, num_objects: int, num_detections: int, tmp_path: Path) -> None:
    box = [[10, 10, 50, 50]]
    truth = ground_truth_from_lists(
        ["a", "b"], [(200, 200)] * num_images, [box * num_objects] * num_images, [[0] * num_objects] * num_images
    )
    predictions = predictions_from_lists(
        [box * num_detections] * num_images, [[0.5] * num_detections] * num_images, [[1] * num_detections] * num_images,
        num_classes=2,
    )  # fmt: skip
    analysis = analyse(truth, predictions, num_resamples=20)
    html, figures = write_report(tmp_path, analysis, truth, predictions, load_image=picture)
    Page(html.read_text(encoding="utf-8"))
    content = json.loads(figures.read_text(encoding="utf-8"))
    assert content["num_objects"] == num_images * num_objects
    assert content["coco"]["AP"] == (0 if num_images * num_objects else None)


def test_darknet_protocol_shows_its_own_figure() -> None:
    """Training spec 5.4: flags 1, 0, 1 of 4 objects have an exact area of 0.416667 and 0.422442 by COCO's points."""
    boxes = [[60.0 * i, 0, 60 * i + 40, 40] for i in range(4)]
    truth = ground_truth_from_lists(["a"], [(400, 100)], [boxes], [[0] * 4])
    found = [boxes[0], [0, 60, 40, 90], boxes[1]]
    predictions = predictions_from_lists([found], [[0.9, 0.8, 0.7]], [[0] * 3], num_classes=1)
    analysis = analyse(truth, predictions, protocol=DARKNET_MAP, num_resamples=0)
    assert analysis.ap50_area == pytest.approx(0.416667, abs=5e-7)
    assert analysis.coco.ap50 == pytest.approx(0.422442, abs=5e-7)
    assert "0.417" in Page(report_html(analysis, truth, predictions)).text
