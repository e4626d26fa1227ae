"""The formulas of the paper's section 3: the printed figures, and equality with convolutions counted on graphs."""

from __future__ import annotations

from fractions import Fraction
from itertools import product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from scaledyolo.arch import specimens
from scaledyolo.arch.blocks import LayerBuilder, csp_stage, residual_stage
from scaledyolo.arch.calculus import (
    CSP_TRANSITIONS_PUBLISHED,
    DOWNSAMPLING,
    DOWNSAMPLING_PAPER,
    LAYERS,
    NECK_STAGE,
    OSA_VARIANTS,
    channel_table,
    cio,
    dense_flops,
    layer,
    memory_access_cost,
    minimum_memory_access,
    osa_flops,
    partition_width,
    pcb_beats_csp,
    receptive_field_gain,
    scaled_flops,
    tiny_layers,
)
from scaledyolo.arch.cost import cost, node_costs, receptive_fields
from scaledyolo.arch.graph import Graph, Node
from scaledyolo.arch.lower import lower
from scaledyolo.arch.ops import Conv
from scaledyolo.arch.spec import Stage
from scaledyolo.arch.specimens import count_cio, count_macs
from scaledyolo.arch.zoo import find
from scaledyolo.errors import UsageError

# Share that CSP saves, in percent to three places (None: the limit of infinitely many layers).
REDUCTIONS = {
    "res": {1: -47.059, 2: -11.765, 3: 0.0, 4: 5.882, 8: 14.706, None: 23.529},
    "resx": {1: -23.358, 2: 11.679, 3: 23.358, 4: 29.197, 8: 37.956, None: 46.715},
    "dark": {1: 35.0, 2: 42.5, 3: 45.0, 4: 46.25, 8: 48.125, None: 50.0},
}


# Tables 1 and 2


@pytest.mark.parametrize("kind", LAYERS)
def test_reductions_of_table_2(kind):
    for k, percent in REDUCTIONS[kind].items():
        value = layer(kind).reduction_limit if k is None else layer(kind).reduction(k)
        assert round(100 * float(value), 3) == percent


def test_limits_and_break_even_points_are_exact():
    assert [layer(kind).reduction_limit for kind in LAYERS] == [Fraction(4, 17), Fraction(64, 137), Fraction(1, 2)]
    assert [layer(kind).break_even() for kind in LAYERS] == [3, Fraction(3, 2), Fraction(3, 10)]


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize(("b", "k", "side"), product((64, 128, 192), (1, 2, 5), (1, 4)))
def test_layer_costs_are_those_counted_on_a_graph(kind, b, k, side):
    # Both sides are quadratic in b and linear in k, so that equality in these points is equality everywhere.
    assert count_macs(specimens.layers(kind, b, k, side)) == layer(kind).flops(k, w=side, h=side, b=b)
    assert count_macs(specimens.csp_layers(kind, b, k, side)) == layer(kind).csp_flops(k, w=side, h=side, b=b)


@pytest.mark.parametrize("k", [1, 2, 3, 8])
def test_the_published_csp_stage_costs_nine_quarters_more_than_its_layers(k):
    counts = {}
    for build, block in ((residual_stage, "residual"), (csp_stage, "csp")):
        b = LayerBuilder("mish", channels=64)
        build(b, Graph.INPUT, Stage(block, 64, k))
        counts[block] = Fraction(count_macs(Graph("stage", tuple(b.nodes), 1, 1, channels=64)), 64**2)
    assert counts["residual"] == 5 * k
    assert counts["csp"] == Fraction(9, 4) + Fraction(5, 2) * k
    assert counts["csp"] == layer("dark").csp_flops(k, transitions=CSP_TRANSITIONS_PUBLISHED)


def test_from_how_many_layers_on_a_csp_darknet_stage_is_cheaper():
    dark = layer("dark")
    assert dark.break_even(CSP_TRANSITIONS_PUBLISHED) == Fraction(9, 10)
    # With the strided convolution, as the paper counts it: 3 + 2.5k against 5k.
    assert [DOWNSAMPLING_PAPER + dark.csp_flops(k) for k in (1, 2)] == [Fraction(11, 2), 8]
    assert dark.break_even(DOWNSAMPLING_PAPER + Fraction(3, 4)) == Fraction(6, 5)


def test_the_strided_convolution_of_a_stage_is_counted_whole():
    graph = Graph("down", (Node("down", Conv(64, 3, (2, 2), 1), ("image",)),), 2, 2, channels=32)
    assert count_macs(graph) == DOWNSAMPLING * 64**2


def test_the_first_stage_of_cspdarknet53_costs_twice_a_darknet_stage():
    b = LayerBuilder("mish", channels=64)
    csp_stage(b, Graph.INPUT, Stage("csp-wide", 64, 1))
    assert count_macs(Graph("stage", tuple(b.nodes), 1, 1, channels=64)) == 10 * 64**2


def test_scaling_factors_of_table_1_hold_for_counted_layers():
    alpha, beta, gamma = 2, 3, 2
    for kind in LAYERS:
        base = count_macs(specimens.layers(kind, 64, 2, 4))
        assert count_macs(specimens.layers(kind, 64, 2, 4 * alpha)) == base * scaled_flops(size=alpha)
        assert count_macs(specimens.layers(kind, 64, 2 * beta, 4)) == base * scaled_flops(depth=beta)
        assert count_macs(specimens.layers(kind, 64 * gamma, 2, 4)) == base * scaled_flops(width=gamma)
        both = count_macs(specimens.layers(kind, 64 * gamma, 2 * beta, 4 * alpha))
        assert both == base * scaled_flops(size=alpha, depth=beta, width=gamma)


def test_an_unknown_layer_names_the_nearest():
    with pytest.raises(UsageError, match="'dark'"):
        layer("darkk")
    with pytest.raises(UsageError, match="'csp'"):
        channel_table("cspp", 64, 32, 3)


# Tables 3 to 5


def test_figures_of_table_3():
    assert [dense_flops(64, 32, k) for k in (3, 4)] == [9216, 14336]
    assert [osa_flops(64, 32, k) for k in (3, 4)] == [4096, 5120]


@pytest.mark.parametrize(("b", "g", "k", "kernel"), product((32, 64, 96), (8, 16, 24), (1, 2, 3, 5), (1, 3)))
def test_dense_and_osa_costs_are_those_counted_on_a_graph(b, g, k, kernel):
    assert count_macs(specimens.dense(b, g, k, kernel)) == kernel**2 * dense_flops(b, g, k)
    assert count_macs(specimens.one_shot_aggregation(b, g, k, kernel)) == kernel**2 * osa_flops(b, g, k)


def test_transitions_of_table_4_at_the_tiny_setting():
    b, g, k = 64, 32, 3
    ends = {variant: channel_table(variant, b, g, k)[-1] for variant in OSA_VARIANTS}
    assert {variant: (end.inputs / b, end.outputs / b) for variant, end in ends.items()} == {
        "osa": (Fraction(5, 2), Fraction(5, 4)),
        "csp": (Fraction(3, 2), Fraction(3, 2)),
        "pcb": (Fraction(5, 4), Fraction(5, 4)),
    }
    assert [len(channel_table(variant, b, g, k)) for variant in OSA_VARIANTS] == [4, 4, 4]


def test_three_layers_follow_from_half_the_base_as_growth_rate():
    assert tiny_layers() == 3
    assert 64 / 2 + tiny_layers() * 32 == 2 * 64


@pytest.mark.parametrize(("tau", "width"), [(8, 80), (16, 80), (32, 96), (64, 128)])
def test_partition_aligned_to_the_hardware(tau, width):
    assert partition_width(64, 32, 3, tau) == width


@given(st.integers(1, 512), st.integers(1, 256), st.integers(1, 8), st.integers(1, 128))
def test_an_aligned_partition_is_the_least_multiple_that_holds_half(b, g, k, tau):
    width = partition_width(b, g, k, tau)
    assert width % tau == 0
    assert 2 * width >= b + k * g > 2 * (width - tau)


def test_a_partition_needs_a_vector_width():
    with pytest.raises(UsageError, match="at least 1"):
        partition_width(64, 32, 3, 0)


@pytest.mark.parametrize(
    ("g", "values"),
    [
        (16, (7808, 3072, 3904)),
        (21, (Fraction(20581, 2), 5292, Fraction(21421, 4))),
        (22, (10826, 5808, 5677)),
        (32, (16896, 12288, 9472)),
    ],
)
def test_figures_of_table_5(g, values):
    assert tuple(cio(variant, 64, g, 3) for variant in OSA_VARIANTS) == values


def test_cio_at_the_tiny_setting_in_units_of_the_base_squared():
    coefficients = [cio(variant, 64, 32, 3) / 64**2 for variant in OSA_VARIANTS]
    assert coefficients == [Fraction(33, 8), 3, Fraction(37, 16)]


@given(st.integers(1, 256), st.integers(1, 128), st.integers(1, 8))
def test_cio_has_the_closed_forms_of_table_5(b, g, k):
    assert cio("osa", b, g, k) == b * g + (k - 1) * g**2 + Fraction((b + k * g) ** 2, 2)
    assert cio("csp", b, g, k) == k * g**2 + (k * g) ** 2
    assert cio("pcb", b, g, k) == k * g**2 + Fraction((b + k * g) ** 2, 4)
    assert pcb_beats_csp(b, g, k) == (cio("pcb", b, g, k) < cio("csp", b, g, k))


@pytest.mark.parametrize(("variant", "b", "ratio", "k"), product(OSA_VARIANTS, (32, 64, 128), (1, 2, 4), (1, 2, 3, 4)))
def test_channels_and_cio_are_those_counted_on_a_graph(variant, b, ratio, k):
    g = b // ratio
    graph = specimens.osa_block(variant, b, g, k)
    convolutions = [node for node in graph if isinstance(node.op, Conv)]
    counted = [(*graph.in_channels(node), graph.out_channels(node.name)) for node in convolutions]
    assert counted == [tuple(one) for one in channel_table(variant, b, g, k)]
    assert count_cio(graph) == cio(variant, b, g, k)


def test_the_block_of_yolov4_tiny_has_the_convolutions_of_its_cfg():
    # cfg layers 2, 4, 5, 7: 3x3 64-64, 3x3 32-32, 3x3 32-32, 1x1 64-64.
    assert count_macs(specimens.tiny_block(64)) == 9 * 64**2 + 2 * 9 * 32**2 + 64**2


# Equation 1


@pytest.mark.parametrize(("inputs", "outputs", "value"), [(64, 64, 438_272), (32, 128, 538_624), (16, 256, 889_856)])
def test_memory_access_cost(inputs, outputs, value):
    assert memory_access_cost(56, 56, 3, inputs, outputs) == value


def test_memory_access_is_least_where_input_and_output_are_equal():
    macs = 56 * 56 * 9 * 64 * 64
    assert minimum_memory_access(56, 56, 3, macs) == memory_access_cost(56, 56, 3, 64, 64)


@given(st.integers(1, 64), st.integers(1, 64), st.sampled_from([1, 3, 5]), st.integers(1, 512), st.integers(1, 512))
def test_no_convolution_moves_less_than_the_minimum(height, width, kernel, inputs, outputs):
    macs = height * width * kernel**2 * inputs * outputs
    least = minimum_memory_access(height, width, kernel, macs)
    assert memory_access_cost(height, width, kernel, inputs, outputs) >= least * (1 - 1e-12)


def test_memory_access_of_a_graph_is_equation_1():
    node = Node("conv", Conv(128, 3, padding=1, norm=False), ("image",))
    (row,) = node_costs(Graph("conv", (node,), 56, 56, channels=32), 56, 56)
    assert row.memory_access == memory_access_cost(56, 56, 3, 32, 128)
    assert row.cio == 32 * 128
    assert row.intensity == pytest.approx(2 * row.macs / (4 * row.memory_access))


# Table 7


@pytest.mark.parametrize("kernel", [1, 3, 5, 7])
def test_one_more_convolution_adds_its_kernel_less_one_times_the_stride(kernel):
    nodes = [Node("down", Conv(4, 3, (2, 2), 1), ("image",)), Node("down2", Conv(4, 3, (2, 2), 1), ("down",))]
    nodes.append(Node("more", Conv(4, kernel, padding=kernel // 2), ("down2",)))
    fields = receptive_fields(Graph("stack", tuple(nodes), 64, 64))
    assert fields["more"].size - fields["down2"].size == receptive_field_gain(kernel, 4)


def test_neither_width_nor_input_size_changes_the_receptive_field():
    graph = lower(find("yolov4-csp"))
    wide = lower(find("yolov4-csp-yaml"))
    assert receptive_fields(graph.with_size(320, 320)) == receptive_fields(graph)
    heads = [receptive_fields(one)[one.heads[-1].name] for one in (graph, wide)]
    assert heads[0] == heads[1]


def test_both_darknets_have_29_three_by_three_convolutions_and_see_725_pixels():
    for name in ("yolov3", "yolov4-csp", "yolov4"):
        graph = lower(find(name))
        backbone = [node for node in graph if node.name.startswith("backbone.")]
        assert sum(isinstance(node.op, Conv) and node.op.kernel == 3 for node in backbone) == 29
        assert receptive_fields(graph)[backbone[-1].name].size == 725


# Section 4.1 and Table 8


@pytest.mark.parametrize("c", [64, 128, 512])
def test_the_csp_neck_saves_forty_percent(c):
    assert count_macs(specimens.neck_stage(c, csp=False)) == NECK_STAGE.dark * c**2 == 42 * c**2
    assert count_macs(specimens.neck_stage(c, csp=True)) == NECK_STAGE.csp * c**2 == 25 * c**2
    assert round(-100 * float(NECK_STAGE.reduction), 3) == -40.476


def test_whole_models_save_31_to_33_percent():
    rows = {}
    for name in ("d53-fpnspp", "cd53s-cfpnspp", "d53-panspp", "cd53s-cpanspp"):
        figures = cost(lower(find(f"table8-{name}")))
        rows[name] = (figures.params, figures.macs)
    assert rows["d53-panspp"][0] == 78_330_845
    assert rows["cd53s-cfpnspp"][0] == 43_242_589
    for plain, partial in (("d53-fpnspp", "cd53s-cfpnspp"), ("d53-panspp", "cd53s-cpanspp")):
        for before, after in zip(rows[plain], rows[partial], strict=True):
            assert 0.31 < 1 - after / before < 0.33


@pytest.mark.parametrize(
    ("name", "side", "gflops"),
    [
        ("yolov4", 416, 60.10), ("yolov4", 512, 91.05), ("yolov4", 640, 142.26), ("yolov4-csp", 512, 76.953),
        ("yolov4-csp", 608, 108.516), ("yolov4-csp", 640, 120.240), ("yolov4-p5", 640, 166.655),
        ("yolov4-p6", 640, 179.255), ("yolov4-tiny-3l", 320, 4.913), ("yolov4-tiny-3l", 608, 17.735),
        ("yolov4x-mish", 640, 221.88), ("yolov3-spp", 608, 141.449), ("yolov3-tiny", 416, 5.565),
    ],
)  # fmt: skip
def test_operations_at_the_sizes_of_the_papers(name, side, gflops):
    digits = len(f"{gflops}".partition(".")[2])
    assert cost(lower(find(name)), side, side).gflops == pytest.approx(gflops, abs=0.51 * 10**-digits)


@pytest.mark.parametrize(
    ("name", "params", "gflops"),
    [("yolov4", 26_617_184, {512: 52.261, 608: 73.696}), ("yolov3", 40_584_928, {512: 74.273, 608: 104.736})],
)
def test_backbones_alone(name, params, gflops):
    graph = lower(find(name))
    for side, expected in gflops.items():
        rows = [row for row in node_costs(graph, side, side) if row.node.name.startswith("backbone.")]
        assert sum(row.params for row in rows) == params
        assert 2 * sum(row.macs for row in rows) / 1e9 == pytest.approx(expected, abs=5.1e-4)


def test_backbones_as_classifiers():
    # With a fully connected layer from 1024 features to 1000 classes: 41,609,928 and 27.64M parameters, 18.570 GFLOP.
    for name, params in (("yolov3", 41_609_928), ("yolov4", 27_642_184)):
        rows = [row for row in node_costs(lower(find(name)), 256, 256) if row.node.name.startswith("backbone.")]
        assert sum(row.params for row in rows) + 1025 * 1000 == params
        if name == "yolov3":
            assert round(2 * (sum(row.macs for row in rows) + 1024 * 1000) / 1e9, 2) == 18.57


def test_boxes_of_the_early_papers():
    assert cost(lower(find("yolov3")), 608, 608).boxes == 22_743
    v2, v3 = (cost(lower(find(name)), 416, 416).boxes for name in ("yolov2", "yolov3"))
    assert round(v3 / v2, 1) == 12.6
