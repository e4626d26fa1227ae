"""Candidates: what is computed from one lowering equals what lowering at each size says, and the range is right."""

from __future__ import annotations

import random
import time
from dataclasses import replace
from fractions import Fraction
from itertools import pairwise

import numpy as np
import pytest

from scaledyolo.arch.cost import cost, receptive_fields
from scaledyolo.arch.graph import Graph, Node, same_network
from scaledyolo.arch.lower import lower
from scaledyolo.arch.ops import Conv, Detect
from scaledyolo.arch.scaling import activation_cost
from scaledyolo.arch.zoo import find
from scaledyolo.cli.anchors import write_spec
from scaledyolo.design.candidates import FAMILIES, Candidate, Range, enumerate_candidates, feature_matrix
from scaledyolo.design.profile import FEATURES, profile
from scaledyolo.errors import SpecError, UsageError

FEW = Range(
    widths=(Fraction(1, 4), Fraction(5, 8), Fraction(1)),
    depths=(Fraction(1, 8), Fraction(1)),
    growths=(16, 32),
)


@pytest.fixture(scope="module")
def whole():
    """Every candidate of a wide range, and the processor seconds it took to list and cost them."""
    start = time.process_time()
    candidates = enumerate_candidates(Range(least=192, most=832))
    features = feature_matrix(candidates)
    gflops = [candidate.gflops for candidate in candidates]
    return candidates, features, gflops, time.process_time() - start


def test_ten_thousand_candidates_are_costed_in_ten_seconds(whole):
    candidates, features, gflops, seconds = whole
    assert len(candidates) == len(features) == len(gflops) > 10_000
    assert seconds < 10


def test_figures_at_any_size_are_those_of_the_lowered_network(whole):
    candidates, features, _, _ = whole
    chosen = random.Random(0).sample(range(len(candidates)), 40)
    assert {candidates[index].network.family for index in chosen} >= {"tiny", "csp", "p6"}
    for index in chosen:
        candidate = candidates[index]
        graph = lower(candidate.spec())
        lowered = cost(graph)
        assert (candidate.params, candidate.macs) == (lowered.params, lowered.macs)
        assert candidate.gflops == lowered.gflops
        again = profile(graph, lowered)
        np.testing.assert_allclose(features[index], again.fixed + again.per_pixel * candidate.size**2, rtol=1e-12)
        assert again.peak_values == pytest.approx(candidate.network.profile.peak_values)
        fields = receptive_fields(graph)
        assert candidate.network.receptive_field == max(fields[head.name].size for head in graph.heads)
        assert candidate.network.profile.strides == tuple(sorted(graph.strides))


def test_features_are_sums_over_the_calculus():
    """Channels that fill vectors exactly: lanes waste nothing but in the stem, and sums equal those of arch.cost."""
    (candidate,) = (
        one
        for one in enumerate_candidates(replace(FEW, base="csp", least=640, activations=("mish",)))
        if (one.network.width, one.network.depth) == (1, 1)
    )
    row = dict(zip(FEATURES, feature_matrix([candidate])[0], strict=True))
    graph = lower(candidate.spec())
    totals = cost(graph)
    stem_waste = 640**2 * 32 * 9 * (16 - 3)
    # 255 outputs of each prediction are computed as 256.
    head_waste = sum((640 // stride) ** 2 * channels for stride, channels in ((8, 256), (16, 512), (32, 1024)))
    assert row["spatial_macs"] + row["pointwise_macs"] == totals.macs + stem_waste + head_waste
    assert row["weights"] == totals.params
    assert row["pixels"] == 640**2
    assert row["head_values"] == totals.boxes * 85
    assert row["costly_activations"] == activation_cost(graph).values
    assert row["cheap_activations"] == 0
    assert row["images"] == 1


def test_a_cheap_activation_moves_to_the_other_column():
    leaky, mish = (one for one in enumerate_candidates(replace(FEW, base="tiny", least=416, most=416, growths=(32,)))
                   if len(one.network.spec.masks) == 2)  # fmt: skip
    rows = [dict(zip(FEATURES, values, strict=True)) for values in feature_matrix([leaky, mish])]
    assert (leaky.activation, mish.activation) == ("leaky", "mish")
    assert rows[0]["cheap_activations"] == rows[1]["costly_activations"] > 0
    assert rows[0]["costly_activations"] == rows[1]["cheap_activations"] == 0


def test_published_networks_are_among_the_candidates():
    candidates = enumerate_candidates(replace(FEW, least=416))
    for name, size, activation in (("yolov4-csp", 640, "mish"), ("yolov4-tiny", 416, "leaky")):
        wanted = lower(replace(find(name), anchors=tuple((0.0, 0.0) for _ in find(name).anchors)).with_size(size))
        bare = (
            lower(replace(one.spec(), anchors=tuple((0.0, 0.0) for _ in one.network.spec.anchors)))
            for one in candidates
            if (one.size, one.activation) == (size, activation)
        )
        assert sum(same_network(graph, wanted) for graph in bare) == 1


def test_size_and_stages_come_before_depth_and_width():
    candidates = enumerate_candidates(replace(FEW, most=1024))
    order = [(one.size, one.network.stages) for one in candidates]
    assert order == sorted(order)
    assert {one.network.stages for one in candidates if one.size == 512} == {5, 6}
    assert {one.network.stages for one in candidates if one.size == 1024} == {5, 6, 7}


def test_no_candidate_comes_twice(whole):
    candidates = whole[0]
    assert len({one.name for one in candidates}) == len(candidates)
    described = [repr((one.network.spec.stages, one.network.spec.neck, one.spec().masks, one.size, one.activation))
                 for one in candidates[::7]]  # fmt: skip
    assert len(set(described)) == len(described)


def test_anchors_follow_the_size():
    (network,) = {
        one.network.width: one.network
        for one in enumerate_candidates(replace(FEW, base="csp", widths=(Fraction(1),), depths=(Fraction(1),)))
    }.values()
    assert Candidate(network, 640, "mish").spec().anchors == find("yolov4-csp").anchors
    halves = np.array(Candidate(network, 320, "mish").spec().anchors)
    np.testing.assert_allclose(halves, np.array(find("yolov4-csp").anchors) / 2, atol=0.051)


def test_classes_reach_the_heads():
    candidate = enumerate_candidates(replace(FEW, base="csp", num_classes=3))[0]
    assert candidate.spec().num_classes == 3
    assert lower(candidate.spec()).num_classes == 3


def test_memory_is_the_weights_and_the_largest_set_of_live_maps():
    """3 + 8 channels while the first convolution writes, 8 + 14 while the second does; then both heads' maps wait."""
    graph = Graph(
        "two",
        (
            Node("first", Conv(8, norm=False), (Graph.INPUT,)),
            Node("second", Conv(14, norm=False, bias=True), ("first",)),
            Node("head", Detect(((8.0, 8.0), (4.0, 4.0)), (0, 1), num_classes=2), ("second",)),
        ),
        height=4,
        width=4,
    )
    found = profile(graph, cost(graph))
    weights = 3 * 8 + 8 * 14 + 14
    assert found.inference_bytes(4, 4) == 4 * (weights + 16 * (14 + 14))
    assert found.inference_bytes(8, 2) == 2 * (weights + 64 * (14 + 14))


def test_a_range_without_sense_is_refused():
    for wanted, words in (
        (Range(least=250), "--size-range: 250 is not a multiple of the largest stride 32; use 224 or 256"),
        (Range(most=650), "650 is not a multiple of the largest stride 32; use 640 or 672"),
        (Range(least=16), "16 is not a multiple of the largest stride 32; use 32"),
        (Range(least=640, most=320), "from the least to the largest side, got 640 320"),
        (Range(base="p7", least=512, most=640), "at least 1024 pixels"),
        (Range(base="tinny"), "Did you mean 'tiny'?"),
        (Range(base="yolov4-csq"), "Did you mean 'yolov4-csp'?"),
    ):
        with pytest.raises(UsageError, match=words.replace("?", r"\?")):
            enumerate_candidates(replace(wanted, widths=FEW.widths, depths=FEW.depths, growths=FEW.growths))


@pytest.mark.parametrize("base", FAMILIES)
def test_every_family_has_candidates(base):
    found = enumerate_candidates(replace(FEW, base=base, least=512, most=1024))
    assert {one.network.family for one in found} == {base}
    lower(found[0].spec())
    assert all(first.size <= second.size for first, second in pairwise(found))


def test_a_spec_file_is_scaled(tmp_path):
    spec = replace(find("yolov4-csp-s"), name="mine")
    write_spec(tmp_path / "mine.yaml", spec)
    found = enumerate_candidates(replace(FEW, base=str(tmp_path / "mine.yaml")))
    assert {one.network.family for one in found} == {"mine"}
    assert len({one.network.spec.name for one in found}) > 1


def test_a_spec_that_breaks_a_shape_rule_names_the_node(tmp_path):
    spec = find("csresnext50-panet-spp")
    broken = replace(spec, name="odd", stages=(replace(spec.stages[0], channels=100), *spec.stages[1:]))
    write_spec(tmp_path / "odd.yaml", broken)
    with pytest.raises(SpecError, match=r"node 'backbone\.stage1\.block1\.conv2'.*100 .*32 groups"):
        enumerate_candidates(replace(FEW, base=str(tmp_path / "odd.yaml")))
