"""Every network of the zoo against figures that were counted without this code, and against properties of all."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import replace
from pathlib import Path

import pytest

from scaledyolo.arch.cost import cost, receptive_fields
from scaledyolo.arch.graph_io import graph_from_dict, graph_to_dict
from scaledyolo.arch.lower import lower
from scaledyolo.arch.spec import ModelSpec
from scaledyolo.arch.zoo import ALIASES, TRAINING_FORMS, ZOO, find
from scaledyolo.arch.zoo_v7 import deploy_form
from scaledyolo.errors import SpecError, UsageError


def _load_golden():
    spec = importlib.util.spec_from_file_location("golden_counts", Path(__file__).with_name("golden_counts.py"))
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.GOLDEN


GOLDEN = _load_golden()


@pytest.mark.parametrize("name", GOLDEN)
def test_parameters_and_operations_equal_the_independent_count(name):
    classes, params, folded, weights_bytes, macs = GOLDEN[name]
    graph = lower(find(name).with_classes(classes))
    for side, expected in macs.items():
        assert cost(graph, side, side).macs == expected
    figures = cost(graph)
    assert figures.params == params
    if folded is not None:
        assert figures.folded_params == folded
    if weights_bytes is not None:
        assert figures.weights_bytes == weights_bytes


@pytest.mark.shared
def test_golden_counts_are_those_of_the_acceptance_file(shared):
    rows = json.loads((shared / "spec" / "param-counts.json").read_text())
    ours = {name: (row[0], row[1], row[4]) for name, row in GOLDEN.items()}
    # Darknet's files of these two networks join in another order, at no cost.
    also = {"yolov7-tiny-cfg": "yolov7-tiny-deploy", "yolov7x-cfg": "yolov7x-deploy"}
    for name, row in rows.items():
        classes, params, macs = ours[also.get(name, name.lower())]
        assert (classes, params, macs[row["size"]]) == (row["nc"], row["params"], row["macs"])


# Anchors per level and sum over the levels of (input channels of the prediction + 1).
HEADS = {
    "yolov4-tiny": (3, 770),
    "yolov3-tiny": (3, 770),
    "yolov4-tiny-3l": (3, 899),
    "yolov4-csp-s": (3, 899),
    "yolov3": (3, 1795),
    "yolov4": (3, 1795),
    "yolov4-csp": (3, 1795),
    "csresnext50-panet-spp": (3, 1795),
    "yolov4x-mish": (3, 2243),
    "yolov4-p5": (4, 1795),
    "yolov4-p6": (4, 2820),
    "yolov4-p7": (4, 4805),
    "yolov7-tiny-deploy": (3, 899),
    "yolov7-deploy": (3, 1795),
    "yolov7x-deploy": (3, 2243),
    "yolov7-w6-deploy": (3, 2564),
    "yolov7-e6-deploy": (3, 3204),
    "yolov7-d6-deploy": (3, 3844),
    "yolov7-e6e-deploy": (3, 3204),
}


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize("classes", [1, 20])
def test_only_the_predictions_depend_on_the_number_of_classes(name, classes):
    anchors, inputs = HEADS[name]
    expected = GOLDEN[name][1] + anchors * (classes - 80) * inputs
    assert cost(lower(find(name).with_classes(classes))).params == expected


@pytest.mark.parametrize(
    ("name", "classes", "params"),
    [
        ("yolov4-tiny", 20, 5_918_006),
        ("yolov3-tiny", 20, 8_713_766),
        ("yolov4-csp-yaml", 20, 52_601_665),
        ("yolov4-p5", 20, 70_403_212),
        ("yolov4-p6", 20, 126_913_776),
        ("yolov4-p7", 20, 286_422_380),
        ("yolov7-tiny", 20, 6_065_281),
        ("yolov7-w6-training", 20, 81_273_476),
        ("yolov7", 16, 37_275_485),
        ("yolov7-training", 16, 37_277_466),
    ],
)
def test_reference_builds_for_other_numbers_of_classes(name, classes, params):
    assert cost(lower(find(name).with_classes(classes))).params == params


@pytest.mark.parametrize(
    ("name", "side", "boxes"),
    [
        ("yolov2", 416, 845),
        ("yolov3", 416, 10_647),
        ("yolov4", 608, 22_743),
        ("yolov4-csp", 512, 16_128),
        ("yolov4-csp", 640, 25_200),
        ("yolov4-p5", 896, 65_856),
        ("yolov4-p6", 1280, 136_000),
        ("yolov4-p7", 1536, 196_416),
        ("yolov4-tiny", 416, 2_535),
        ("yolov4-tiny-3l", 320, 6_300),
        ("yolov7", 640, 25_200),
        ("yolov7-w6", 1280, 102_000),
        ("yolov7-w6-training", 1280, 102_000),
    ],
)
def test_candidate_boxes(name, side, boxes):
    assert cost(lower(find(name)), side, side).boxes == boxes


@pytest.mark.parametrize(
    ("pair", "gap"), [("yolov4-csp", 3328), ("yolov4-p5", 3328), ("yolov4-p6", 5376), ("yolov4-p7", 9280)]
)
def test_the_two_normalisation_forms_differ_by_the_second_norm_of_the_neck(pair, gap):
    spec = find(pair)
    forms = {form: cost(lower(replace(spec, norm_form=form))) for form in ("branch", "concat")}
    assert forms["concat"].params - forms["branch"].params == gap
    assert forms["concat"].macs == forms["branch"].macs


@pytest.mark.parametrize("name", ["table8-d53-fpnspp-leaky", "table8-cd53s-cpanspp-mish"])
def test_receptive_field_of_the_backbones(name):
    graph = lower(ZOO[name])
    last = [node.name for node in graph if node.name.startswith("backbone.")][-1]
    assert receptive_fields(graph)[last].size == 725
    assert receptive_fields(graph)[last].stride == 32


@pytest.mark.parametrize("name", ZOO)
def test_specs_and_graphs_survive_json(name):
    spec = ZOO[name]
    assert ModelSpec.from_dict(json.loads(json.dumps(spec.to_dict()))) == spec
    graph = lower(spec)
    assert graph_from_dict(json.loads(json.dumps(graph_to_dict(graph)))) == graph


@pytest.mark.parametrize("name", ZOO)
def test_totals_at_another_size_follow_from_the_area(name):
    graph = lower(ZOO[name])
    height, width = 2 * graph.max_stride, 3 * graph.max_stride
    assert cost(graph).resized(height, width) == cost(graph, height, width)


def test_every_alias_names_a_network_and_hides_none():
    assert set(ALIASES.values()) <= set(ZOO)
    assert not set(ALIASES) & set(ZOO)


def test_strides_double_from_level_to_level():
    assert sorted(lower(find("yolov4-p7")).strides) == [8, 16, 32, 64, 128]
    assert lower(find("yolov4-tiny")).strides == (32, 16)


@pytest.mark.parametrize(("name", "stride"), [("yolov7-tiny", 32), ("yolov7", 32), ("yolov7x", 32), ("yolov7-w6", 64)])
def test_yolov7_is_decoded_as_it_is_trained(name, stride):
    graph = lower(find(name))
    assert graph.max_stride == stride
    assert graph.strides == (8, 16, 32, 64)[: len(graph.heads)]
    assert (graph.resize, graph.norm_eps) == ("letterbox", 1e-3)
    assert {(op.decoding, len(op.mask), op.activated) for op in graph.detects} == {("sigmoid-squared", 3, False)}
    finest = {"yolov7-tiny": (10, 13), "yolov7-w6": (19, 27)}.get(name, (12, 16))
    coarsest = {"yolov7-tiny": (373, 326), "yolov7-w6": (925, 792)}.get(name, (459, 401))
    assert (graph.detects[0].level_anchors[0], graph.detects[-1].level_anchors[2]) == (finest, coarsest)


@pytest.mark.parametrize("name", TRAINING_FORMS)
def test_training_forms_are_found_but_not_listed(name):
    spec = find(name)
    assert spec.head.implicit
    assert deploy_form(spec) == ZOO[name.removesuffix("-training")]
    assert not set(TRAINING_FORMS) & {*ZOO, *ALIASES}


def test_auxiliary_heads_read_the_top_down_path():
    """That of E6E the second half of its extended ELANs, before the sum (module 186, not 187)."""
    for name, end in (("yolov7-w6-training", "out"), ("yolov7-e6e-training", "second.out")):
        graph = lower(find(name))
        read = [graph[f"head.auxiliary.p{level}.conv"].inputs[0] for level in (3, 4, 5, 6)]
        assert read == [*(f"neck.top_down.p{level}.{end}" for level in (3, 4, 5)), "neck.top_down.p6.out"]


def test_an_elan_neck_needs_its_widths_by_level():
    values = ZOO["yolov7"].to_dict()
    with pytest.raises(SpecError, match="'elan-pan' of 3 levels needs 3 values each of hidden and growth, got 2 and 3"):
        ModelSpec.from_dict({**values, "neck": {**values["neck"], "hidden": [128, 256]}})
    with pytest.raises(SpecError, match="1 auxiliary heads for 3 levels"):
        ModelSpec.from_dict({**values, "head": {"auxiliary": [64]}})


def test_an_unknown_network_names_the_nearest():
    with pytest.raises(UsageError, match="yolov4-csp"):
        find("yolov4-cps")


@pytest.mark.parametrize(
    ("name", "side", "near"),
    [("yolov4-p6", 1290, "1280 or 1344"), ("yolov4-p7", 64, "128"), ("yolov4", 600, "576 or 608")],
)
def test_a_size_that_the_strides_do_not_divide_is_refused(name, side, near):
    with pytest.raises(SpecError, match=near):
        cost(lower(find(name)), side, side)


def test_a_spec_file_is_read_strictly():
    values = ZOO["yolov4-tiny"].to_dict()
    with pytest.raises(SpecError, match="unknown key 'anchor'.*'anchors'"):
        ModelSpec.from_dict({**values, "anchor": 1})
    with pytest.raises(SpecError, match="the key stem is missing"):
        ModelSpec.from_dict({key: value for key, value in values.items() if key != "stem"})
    with pytest.raises(SpecError, match="activation must be one of .*got the str 'mosh'.*'mish'"):
        ModelSpec.from_dict({**values, "activation": "mosh"})
    with pytest.raises(SpecError, match="size must be a whole number"):
        ModelSpec.from_dict({**values, "size": "416"})
    with pytest.raises(SpecError, match="at least one class"):
        ModelSpec.from_dict({**values, "num_classes": 0})
