"""Writing Darknet cfgs: what is read back is the same network, for published, zoo and random networks."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaledyolo.arch.graph import Graph, GraphBuilder, same_network
from scaledyolo.arch.lower import lower
from scaledyolo.arch.ops import (
    Activate,
    Add,
    Affine,
    BatchNorm,
    ChannelSplit,
    Concat,
    Conv,
    DepthToSpace,
    Detect,
    GlobalAveragePool,
    Implicit,
    Multiply,
    Op,
    Pool,
    Reorg,
    SpaceToDepth,
    Upsample,
)
from scaledyolo.arch.zoo import ZOO
from scaledyolo.convert.darknet_cfg import read_cfg, write_cfg
from scaledyolo.errors import ConversionError, SpecError, UsageError

ANCHORS = ((10.0, 13.0), (16.0, 30.0), (33.5, 23.25))
HEAD = Detect(ANCHORS, (0, 2), num_classes=3)


def one_head(*ops: Op, head: Detect = HEAD, activation: str = "linear") -> Graph:
    """A chain of operations, then a prediction convolution and its head."""
    builder = GraphBuilder()
    previous = Graph.INPUT
    for index, op in enumerate(ops):
        previous = builder.add(f"n{index}", op, previous)
    prediction = Conv(len(head.mask) * head.num_outputs, norm=False, bias=True, activation=activation)
    raw = builder.add("raw", prediction, previous)
    builder.add("head", head, raw)
    return Graph("chain", tuple(builder.nodes), 64, 64)


# Sections after [net] of the published cfgs; the zoo's graphs must be written in as many.
SECTIONS = {
    "yolov2": 32,
    "yolov3": 107,
    "yolov3-spp": 114,
    "yolov3-tiny": 24,
    "yolov4": 162,
    "yolov4-tiny": 38,
    "yolov4-tiny-3l": 45,
    "yolov4-csp": 175,
    "yolov4-csp-swish": 176,
    "yolov4x-mish": 203,
    "yolov4-p5-cfg": 244,
    "yolov4-p6-cfg": 305,
    "yolov4-p7-cfg": 366,
    "csresnext50-panet-spp": 138,
}


@pytest.mark.parametrize("name", ZOO)
def test_zoo_networks_survive_the_round_trip_or_say_why_not(name):
    graph = lower(ZOO[name])
    if any(isinstance(node.op, BatchNorm) for node in graph):
        with pytest.raises(ConversionError, match="normalisation"):
            write_cfg(graph)
        return
    if any(isinstance(node.op, SpaceToDepth) for node in graph):
        with pytest.raises(ConversionError, match="orders the pixels of a block by column"):
            write_cfg(graph)
        return
    text = write_cfg(graph)
    model = read_cfg(text)
    assert same_network(model.graph, graph)
    assert (model.graph.resize, model.graph.height, model.graph.strides) == (graph.resize, graph.height, graph.strides)
    suppression = [[(op.nms_kind, op.beta_nms) for op in either.detects] for either in (model.graph, graph)]
    assert suppression[0] == suppression[1]
    assert len(model.sections) == SECTIONS.get(name, len(model.sections))


def test_every_published_network_has_its_number_of_sections():
    assert set(SECTIONS) <= set(ZOO)


@pytest.mark.shared
def test_published_cfgs_survive_the_round_trip(shared):
    paths = [*(shared / "darknet_cfg").glob("*.cfg"), *(shared / "weights").glob("*.cfg")]
    assert len(paths) >= 10
    for path in paths:
        graph = read_cfg(path).graph
        assert same_network(read_cfg(write_cfg(graph)).graph, graph)


def test_options_for_training_with_darknet_are_added():
    text = write_cfg(one_head(), net={"batch": "64", "letter_box": "0"}, head={"iou_loss": "ciou", "mask": "1"})
    assert "batch=64" in text
    assert "letter_box=1" in text
    assert text.endswith("scale_x_y=1\niou_loss=ciou\n")
    with pytest.raises(UsageError, match=r"no key 'bacth'\. Did you mean 'batch'\?"):
        write_cfg(one_head(), net={"bacth": "64"})
    with pytest.raises(UsageError, match="one line"):
        write_cfg(one_head(), head={"map": "a\nb"})


@pytest.mark.parametrize(
    ("graph", "reason"),
    [
        (one_head(Conv(8, bias=False, norm=False)), "neither bias nor normalisation"),
        (one_head(Conv(8, bias=True, norm=True)), "both a bias and a normalisation"),
        (one_head(Conv(8, 3, padding=1, dilation=2)), "dilated without keeping the size"),
        (one_head(BatchNorm("mish")), "yaml form"),
        (one_head(Affine()), "before it is folded"),
        (one_head(Implicit("add")), "fold it into its convolution"),
        (one_head(SpaceToDepth(2, "column")), "by column"),
        (one_head(Pool(2, 2, 3)), "wholly outside"),
        (one_head(head=replace(HEAD, softmax=True)), "only Darknet's"),
        (one_head(head=replace(HEAD, activated=True)), "expects activated maps"),
        (one_head(head=replace(HEAD, decoding="sigmoid-squared"), activation="leaky"), "needs a linear convolution"),
        (one_head(head=replace(HEAD, decoding="sigmoid-squared", activated=True)), "needs a logistic convolution"),
    ],
)
def test_what_darknet_cannot_express_is_refused_with_the_reason(graph, reason):
    with pytest.raises(ConversionError, match=reason) as caught:
        write_cfg(graph)
    assert "node '" in str(caught.value)


def test_the_image_can_only_be_read_first():
    builder = GraphBuilder()
    first = builder.add("first", Conv(3), Graph.INPUT)
    both = builder.add("both", Concat(), first, Graph.INPUT)
    raw = builder.add("raw", Conv(16, norm=False, bias=True), both)
    builder.add("head", HEAD, raw)
    with pytest.raises(ConversionError, match="'both' .* reads the image"):
        write_cfg(Graph("twice", tuple(builder.nodes), 64, 64))


def test_shared_prediction_convolution_cannot_carry_the_logistic():
    builder = GraphBuilder()
    raw = builder.add("raw", Conv(16, norm=False, bias=True), Graph.INPUT)
    head = replace(HEAD, decoding="sigmoid-squared")
    builder.add("head1", head, raw)
    builder.add("head2", head, raw)
    with pytest.raises(ConversionError, match="convolution of its own"):
        write_cfg(Graph("shared", tuple(builder.nodes), 64, 64))


def test_natively_trained_heads_become_new_coords():
    graph = one_head(head=replace(HEAD, decoding="sigmoid-squared", nms_kind="diounms", beta_nms=0.7))
    text = write_cfg(graph)
    assert "activation=logistic" in text
    assert "scale_x_y=2\nnew_coords=1\nnms_kind=diounms\nbeta_nms=0.7" in text
    (head,) = read_cfg(text).graph.detects
    assert (head.activated, head.nms_kind, head.beta_nms) == (True, "diounms", 0.7)
    assert same_network(read_cfg(text).graph, graph)


def test_signature_tells_networks_apart():
    plain = one_head(Conv(8, 3, padding=1))
    assert same_network(plain, replace(plain, name="other", height=128, width=128))
    for other in (
        one_head(Conv(8, 3, padding=1, activation="mish")),
        one_head(Conv(8, 3, padding=1), Conv(8)),
        one_head(Conv(8, 3, padding=1), head=replace(HEAD, mask=(0, 1))),
        one_head(Conv(8, 3, padding=1), head=replace(HEAD, scale_xy=1.05)),
    ):
        assert not same_network(plain, other)
    renamed = one_head(Conv(8, 3, padding=1), Concat(), ChannelSplit(1, 0))
    assert same_network(plain, renamed)
    assert same_network(plain, one_head(Conv(8, 3, padding=1), head=replace(HEAD, nms_kind="diounms")))


ACTIVATIONS = st.sampled_from(["linear", "leaky", "mish", "swish", "relu", "relu6", "logistic", "tanh", "hard_mish"])
UNARY = st.one_of(
    st.builds(
        lambda filters, kernel, stride, norm, activation: Conv(
            filters, kernel, stride, kernel // 2, norm=norm, bias=not norm, activation=activation
        ),
        st.integers(1, 12),
        st.sampled_from([1, 2, 3, 5]),
        st.sampled_from([(1, 1), (2, 2), (1, 2)]),
        st.booleans(),
        ACTIVATIONS,
    ),
    st.builds(lambda dilation: Conv(4, 3, padding=dilation, dilation=dilation), st.integers(1, 3)),
    st.builds(lambda groups: Conv(12, groups=groups, activation="mish"), st.integers(1, 4)),
    st.builds(Pool, st.integers(1, 5), st.integers(1, 3), st.integers(0, 4), st.sampled_from(["max", "average"])),
    st.builds(Upsample, st.integers(1, 3), st.sampled_from([1.0, 0.5])),
    st.builds(Activate, ACTIVATIONS),
    st.builds(SpaceToDepth, st.just(2)),
    st.builds(DepthToSpace, st.just(2)),
    st.builds(Reorg, st.just(2)),
    st.builds(ChannelSplit, st.integers(1, 3), st.integers(0, 2)),
    st.just(GlobalAveragePool()),
)
MANY = st.one_of(
    st.just(Concat()),
    st.builds(Add, ACTIVATIONS),
    st.builds(Add, ACTIVATIONS, st.sampled_from(["per_input", "per_channel"]), st.sampled_from(["relu", "softmax"])),
    st.builds(Multiply, ACTIVATIONS),
)
SOURCES = st.lists(st.integers(0, 7), min_size=2, max_size=3)


def random_network(steps: list[tuple[Op, list[int]]], head: Detect) -> Graph:
    """Node by node from random steps; steps whose shapes do not fit, or that Darknet could not read, are left out."""
    builder = GraphBuilder()
    names = [builder.add("stem", Conv(6, 3, padding=1, activation="leaky"), Graph.INPUT)]
    for index, (op, picks) in enumerate(steps):
        recent = names[-8:]
        inputs = [recent[pick % len(recent)] for pick in picks]
        inputs = inputs[:2] if isinstance(op, Multiply) else inputs
        try:
            builder.add(f"n{index}", op, *inputs)
            Graph("trial", tuple(builder.nodes), 32, 32)
        except SpecError:
            if builder.nodes[-1].name == f"n{index}":
                builder.nodes.pop()
            continue
        names.append(f"n{index}")
    raw = builder.add("raw", Conv(len(head.mask) * head.num_outputs, norm=False, bias=True), names[-1])
    builder.add("head", head, raw)
    return Graph("random", tuple(builder.nodes), 32, 32)


HEADS = st.sampled_from(
    [
        HEAD,
        replace(HEAD, scale_xy=1.05, nms_kind="greedynms"),
        replace(HEAD, decoding="sigmoid-squared"),
        replace(HEAD, decoding="region", softmax=True, anchors=ANCHORS[:2], mask=(0, 1)),
    ]
)
STEP = st.one_of(st.tuples(UNARY, st.integers(0, 7).map(lambda pick: [pick])), st.tuples(MANY, SOURCES))


def _darknet_has(graph: Graph) -> bool:
    """Products of a map by one with a single channel and position are the only ones without a Darknet layer."""
    shapes = graph.shapes(graph.height, graph.width)
    for node in graph:
        if isinstance(node.op, Multiply):
            value, gate = (shapes[source] for source in node.inputs)
            if gate not in (value, (value.channels, 1, 1), (1, value.height, value.width)):
                return False
        if isinstance(node.op, Pool) and node.op.padding > 2 * (node.op.kernel - 1):
            return False
    return True


@settings(max_examples=120, deadline=None)
@given(st.lists(STEP, max_size=14), HEADS)
def test_random_networks_survive_the_round_trip(steps, head):
    graph = random_network(steps, head)
    if not _darknet_has(graph):
        with pytest.raises(ConversionError):
            write_cfg(graph)
        return
    again = read_cfg(write_cfg(graph)).graph
    assert same_network(again, graph)
    assert list(again.parameters.values()) == list(graph.parameters.values())
