"""What an exported file says about itself may have been written by anybody."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from scaledyolo.arch.lower import lower
from scaledyolo.arch.zoo import find
from scaledyolo.artefact import EmbeddedNms, ModelFacts, Quantisation
from scaledyolo.checkpoint import Description
from scaledyolo.classes import COCO_CATEGORY_IDS, COCO_NAMES
from scaledyolo.errors import FormatError

HEAD = {"anchors": [[10, 14], [23, 27]], "mask": [0, 1], "num_classes": 80}
INPUT = {"height": 416, "width": 416, "channels": 3, "resize": "stretch", "colour": "RGB", "range": [0, 1]}


@pytest.fixture(scope="module")
def facts() -> ModelFacts:
    graph = lower(find("yolov4-tiny"))
    return ModelFacts.of(Description(graph=graph, class_names=COCO_NAMES, category_ids=COCO_CATEGORY_IDS))


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"nms": EmbeddedNms(0.3, 0.6, 100, True), "dynamic": False, "batch": 2},
        {"quantisation": Quantisation(tool="x 1", float_layers=("a", "b")), "storage": "float16"},
        {"provenance": {"source": "ünïcode"}, "verification": "UNVERIFIED"},
    ],
)
def test_what_is_written_is_read_back(facts: ModelFacts, changes: dict[str, object]) -> None:
    changed = replace(facts, **changes)
    assert ModelFacts.from_metadata(changed.to_metadata(), "here") == changed


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("input", INPUT | {"height": float("inf")}, "height must be a whole number"),
        ("input", INPUT | {"width": 0}, "not positive"),
        ("input", INPUT | {"width": 416.5}, "width must be a whole number"),
        ("input", INPUT | {"resize": "crop"}, "resize must be one of letterbox, stretch"),
        ("input", 7, "TypeError"),
        ("strides", [0, 0], "not positive"),
        ("strides", [32], "1 strides for 2 heads"),
        ("max_stride", -32, "not positive"),
        ("batch", 0, "not positive"),
        ("batch", "many", "batch must be a whole number"),
        ("storage", "int4", "storage must be one of"),
        ("verification", "surely", "verification must be one of"),
        ("class_names", ["one"], "1 class names for heads of 80 classes"),
        ("category_ids", [float("inf")], "category_ids"),
        ("heads", [HEAD], "2 strides for 1 heads"),
        ("heads", [HEAD, HEAD | {"mask": [0, 2]}], "points outside the list"),
        ("heads", [HEAD, 3], "head 1: must be a mapping"),
        ("provenance", [], "AttributeError"),
        ("nms", {"iuo": 0.5}, "Did you mean 'iou'"),
    ],
)
def test_damaged_facts_are_refused(facts: ModelFacts, key: str, value: object, words: str) -> None:
    metadata = facts.to_metadata() | {key: json.dumps(value)}
    with pytest.raises(FormatError, match="^here: its metadata is damaged") as caught:
        ModelFacts.from_metadata(metadata, "here")
    assert words in str(caught.value)


def test_what_is_nested_too_deeply_is_refused(facts: ModelFacts) -> None:
    with pytest.raises(FormatError, match="nested too deeply"):
        ModelFacts.from_metadata(facts.to_metadata() | {"input": "[" * 100_000}, "here")


def test_a_missing_fact_is_named(facts: ModelFacts) -> None:
    metadata = facts.to_metadata()
    del metadata["batch"]
    with pytest.raises(FormatError, match="KeyError.'batch'."):
        ModelFacts.from_metadata(metadata, "here")
