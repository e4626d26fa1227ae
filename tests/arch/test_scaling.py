"""Scaling of specs: the published families come out of the rules, and every result is a network that can be lowered."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaledyolo.arch.cost import cost, receptive_fields
from scaledyolo.arch.graph import same_network
from scaledyolo.arch.lower import lower
from scaledyolo.arch.ops import Conv
from scaledyolo.arch.scaling import (
    activation_cost,
    aligned,
    csp_to_p5,
    csp_to_small,
    csp_to_x,
    deepened,
    num_stages,
    round_channels,
    scaled,
    tiny_scaled,
    with_activation,
    with_stages,
)
from scaledyolo.arch.spec import ModelSpec
from scaledyolo.arch.zoo import ANCHORS_P5, ANCHORS_P6, ANCHORS_P7, ZOO, find
from scaledyolo.errors import SpecError, UsageError

P5, P6, P7, CSP, TINY = (find(f"yolov4-{name}") for name in ("p5", "p6", "p7", "csp", "tiny"))


def test_p6_is_p5_with_six_stages():
    assert replace(with_stages(P5, 6, size=1280, anchors=ANCHORS_P6), name="yolov4-p6") == P6


def test_p7_is_p5_with_seven_stages_and_width_five_quarters():
    grown = with_stages(scaled(P5, width=1.25), 7, size=1536, anchors=ANCHORS_P7)
    assert replace(grown, name="yolov4-p7") == P7
    assert replace(with_stages(scaled(P6, width=1.25), 7, size=1536, anchors=ANCHORS_P7), name="yolov4-p7") == P7


def test_the_smaller_networks_are_the_larger_ones_without_their_coarsest_stages():
    narrow = scaled(P7, width=0.8)
    for count, spec, anchors in ((5, P5, ANCHORS_P5), (6, P6, ANCHORS_P6)):
        cut = with_stages(narrow, count, size=spec.size, anchors=anchors)
        assert replace(cut, name=spec.name) == spec


@pytest.mark.parametrize(("spec", "count"), [(P5, 5), (P6, 6), (P7, 7), (TINY, 5), (find("yolov2"), 5)])
def test_number_of_stages(spec, count):
    assert num_stages(spec) == count


def test_a_new_level_starts_from_twice_the_anchors_and_a_fitting_size():
    grown = with_stages(CSP, 7)
    assert len(grown.masks) == 5
    coarsest = [grown.anchors[index] for index in grown.masks[-1]]
    assert coarsest == [(4 * width, 4 * height) for width, height in CSP.anchors[-3:]]
    assert grown.size == 640
    assert with_stages(replace(CSP, size=608), 6).size == 640
    assert cost(lower(grown)).boxes == 3 * (80**2 + 40**2 + 20**2 + 10**2 + 5**2)
    assert same_network(lower(with_stages(grown, 5)), lower(CSP))


def test_one_more_stage_doubles_the_stride_and_adds_its_own_windows():
    fields = []
    for count in (5, 6, 7):
        graph = lower(with_stages(CSP, count))
        last = [node.name for node in graph if node.name.startswith("backbone.")][-1]
        fields.append(receptive_fields(graph)[last])
    assert [field.stride for field in fields] == [32, 64, 128]
    # A strided 3x3 before, four 3x3 at the new stride: 725, 1301, 2453; Table 7's "doubled" is the limit.
    for before, after in pairwise(fields):
        assert after.size - before.size == 2 * before.stride + 4 * 2 * after.stride


def test_x_mish_and_csp_s_from_csp():
    assert csp_to_x(CSP) == ZOO["yolov4x-mish"]
    assert csp_to_small(CSP) == ZOO["yolov4-csp-s"]


def test_p5_from_csp_by_twice_the_depth_less_one():
    assert csp_to_p5(CSP, ANCHORS_P5) == P5
    assert [stage.depth for stage in deepened(CSP).stages] == [1, 3, 15, 15, 7]


def test_width_scales_everything_but_the_predictions():
    graph = lower(scaled(CSP, width=0.5))
    for node in lower(CSP):
        if isinstance(node.op, Conv):
            half = node.op.filters if node.name.endswith("predict") else node.op.filters // 2
            assert graph.out_channels(node.name) == half


def test_a_decimal_factor_is_taken_as_written():
    assert scaled(P7, width=0.1).stages[2].channels == 32
    assert scaled(CSP, depth=0.1).stages[2].depth == 1
    assert scaled(CSP, depth=1.25).stages[1].depth == 3  # 2.5 rounds up, as in yolov4x-mish


def test_scaling_by_one_changes_nothing():
    for name, spec in ZOO.items():
        assert scaled(spec) == spec, name
        assert scaled(spec, size=320).name == f"{name}-320"


@given(
    st.sampled_from([spec for spec in ZOO.values() if spec.num_classes == 80]),
    st.fractions(Fraction(1, 8), Fraction(3, 2), max_denominator=16),
    st.fractions(Fraction(1, 8), Fraction(2), max_denominator=16),
    st.sampled_from([1, 2, 8, 16]),
)
@settings(max_examples=30, deadline=None)
def test_every_scaled_network_of_the_zoo_can_be_lowered(spec, width, depth, multiple):
    smaller = scaled(spec, width=width, depth=depth, multiple=multiple)
    graph = lower(smaller)
    assert len(graph.heads) == len(spec.masks)
    for stage in smaller.stages:
        assert stage.channels % multiple == 0
    assert ModelSpec.from_dict(smaller.to_dict()) == smaller


@given(st.fractions(Fraction(1, 64), Fraction(4096), max_denominator=64), st.integers(1, 64))
def test_rounded_channels_are_the_least_multiple_that_is_enough(channels, multiple):
    rounded = round_channels(channels, multiple)
    assert rounded % multiple == 0
    assert rounded - multiple < channels <= rounded


def test_alignment_to_a_vector_width():
    odd = scaled(CSP, width=0.4)
    wide = aligned(odd, 32)
    assert all(stage.channels % 32 == 0 for stage in wide.stages)
    assert all(new - 32 < old <= new for new, old in zip(wide.neck.widths, odd.neck.widths, strict=True))
    assert aligned(CSP, 32).stages == CSP.stages


@pytest.mark.parametrize("partition", [(1, 3), (3, 1)])
def test_partitions_of_table_9(partition):
    name = f"table9-cosa-{partition[0]}x{partition[1]}x"
    assert tiny_scaled(TINY, partition=partition, name=name) == ZOO[name]


def test_growth_rate_scales_a_tiny_network_in_proportion():
    narrow = tiny_scaled(TINY, growth=24)
    assert [stage.channels // 2 for stage in narrow.stages[:3]] == [24, 48, 96]
    assert narrow.name == "yolov4-tiny-g24"
    assert cost(lower(narrow)).macs < cost(lower(TINY)).macs
    assert replace(tiny_scaled(TINY, growth=32), name=TINY.name) == TINY


def test_an_activation_costs_nothing_in_convolutions_but_work_of_its_own():
    leaky = with_activation(CSP, "leaky")
    graphs = lower(CSP), lower(leaky)
    figures = [cost(graph) for graph in graphs]
    assert (figures[0].params, figures[0].macs) == (figures[1].params, figures[1].macs)
    mish, cheap = (activation_cost(graph) for graph in graphs)
    assert mish.values == cheap.values
    assert (mish.transcendental, cheap.transcendental) == (3 * mish.values, 0)
    assert leaky.stages == ZOO["table8-cd53s-cpanspp-leaky"].stages


def test_activations_are_counted_where_they_stand():
    graph = lower(P5)  # "concat" form: the branches are bare, the concatenation is activated
    expected = sum(
        graph.out_channels(node.name) * (graph.height // graph.node_strides[node.name]) ** 2
        for node in graph
        if getattr(node.op, "activation", "linear") != "linear"
    )
    assert activation_cost(graph).values == expected
    assert activation_cost(graph, 448, 448).values * 4 == expected


def test_only_the_backbone_can_change_its_activation():
    mixed = with_activation(CSP, "leaky", everywhere=False)
    assert (mixed.activation, mixed.neck_activation) == ("leaky", "mish")


def test_what_cannot_be_scaled_is_said():
    with pytest.raises(UsageError, match="must be positive"):
        scaled(CSP, width=0)
    with pytest.raises(UsageError, match="'passthrough' neck"):
        with_stages(find("yolov2"), 6)
    with pytest.raises(UsageError, match="no pyramid level; the least is 3"):
        with_stages(P5, 2)
    with pytest.raises(UsageError, match="4 levels of 4 anchors need 16, got 12"):
        with_stages(P5, 6, anchors=ANCHORS_P5)
    with pytest.raises(UsageError, match="no partial blocks"):
        tiny_scaled(CSP, growth=24)
    with pytest.raises(UsageError, match="at least 1, got 0"):
        tiny_scaled(TINY, growth=0)
    with pytest.raises(SpecError, match="does not share out four slices"):
        tiny_scaled(TINY, partition=(4, 0))
    with pytest.raises(SpecError, match="no activation 'mosh'"):
        with_activation(CSP, "mosh")


@pytest.mark.parametrize(
    ("name", "stages", "strides"),
    [("yolov7", 6, (8, 16, 32, 64)), ("yolov7-w6-training", 5, (8, 16, 32)), ("yolov7-e6e", 7, (8, 16, 32, 64, 128))],
)
def test_networks_of_elans_gain_and_lose_stages(name, stages, strides):
    spec = with_stages(find(name), stages)
    assert (lower(spec).strides, num_stages(spec)) == (strides, stages)
    assert len(spec.neck.hidden) == len(spec.neck.growth) == len(strides)
    assert with_stages(find("yolov7-w6"), 6) == find("yolov7-w6")
