"""Darknet cfgs: the published files, the grammar, what each section means, one sentence for every mistake."""

from __future__ import annotations

import contextlib
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from scaledyolo.arch.cost import cost
from scaledyolo.arch.graph import same_network
from scaledyolo.arch.lower import lower
from scaledyolo.arch.ops import (
    Activate,
    Add,
    BatchNorm,
    ChannelSplit,
    Concat,
    Conv,
    DepthToSpace,
    Detect,
    GlobalAveragePool,
    Implicit,
    Multiply,
    Pool,
    Reorg,
    Shape,
    SpaceToDepth,
    Upsample,
)
from scaledyolo.arch.zoo import ZOO
from scaledyolo.convert.darknet_cfg import read_cfg, write_cfg
from scaledyolo.convert.darknet_keys import KEYS
from scaledyolo.errors import CfgError

# File, sections after [net], convolutions, parameters and multiply-accumulates at a size: figures of the specification,
# counted there without this code.
OFFICIAL = {
    "yolov2": (32, 23, 50_962_889, 416, 14_732_084_224),
    "yolov3-tiny": (24, 13, 8_852_366, 416, 2_782_480_896),
    "yolov3": (107, 75, 61_949_149, 416, 32_932_037_632),
    "yolov3-spp": (114, 76, 62_998_749, 608, 70_724_486_144),
    "yolov4": (162, 110, 64_363_101, 608, 64_194_741_248),
    "yolov4-tiny": (38, 21, 6_056_606, 416, 3_453_938_176),
    "yolov4-csp": (175, 115, 52_921_437, 640, 60_119_859_200),
    "yolov4-p5": (244, 163, 70_830_684, 896, 163_321_675_776),
}


@pytest.mark.shared
@pytest.mark.parametrize("name", OFFICIAL)
def test_official_cfgs_have_the_published_size(name, shared):
    num_sections, num_convs, params, size, macs = OFFICIAL[name]
    model = read_cfg(shared / "darknet_cfg" / f"{name}.cfg")
    figures = cost(model.graph, size, size)
    assert len(model.sections) == num_sections
    assert sum(isinstance(node.op, Conv) for node in model.graph) == num_convs
    assert (figures.params, figures.macs) == (params, macs)
    assert model.graph.name == name


@pytest.mark.shared
@pytest.mark.parametrize("name", OFFICIAL)
def test_official_cfgs_are_the_networks_of_the_zoo_section_by_section(name, shared):
    official = read_cfg(shared / "darknet_cfg" / f"{name}.cfg").graph
    ours = lower(ZOO["yolov4-p5-cfg" if name == "yolov4-p5" else name])
    assert official.signature() == ours.signature()
    assert official.resize == ours.resize
    assert official.norm_eps == ours.norm_eps == 1e-5


# Layer index, operation, channels: landmarks of the specification's tables.
LANDMARKS = {
    "yolov3": {4: (Add, 64), 36: (Add, 256), 61: (Add, 512), 74: (Add, 1024), 79: (Conv, 512), 86: (Concat, 768)},
    "yolov3-tiny": {8: (Conv, 256), 11: (Pool, 512), 20: (Concat, 384)},
    "yolov4": {54: (Conv, 256), 85: (Conv, 512), 113: (Concat, 2048), 120: (Conv, 256), 121: (Concat, 512)},
    "yolov4-csp": {48: (Conv, 256), 79: (Conv, 512), 109: (Concat, 2048), 113: (Conv, 512), 141: (Conv, 128)},
    "yolov4-p5": {78: (Conv, 256), 130: (Conv, 512), 158: (Conv, 1024), 173: (Conv, 512), 205: (Conv, 128)},
    "yolov4-tiny": {3: (ChannelSplit, 32), 8: (Concat, 128), 23: (Conv, 256), 34: (Concat, 384)},
    "yolov2": {26: (Conv, 64), 27: (Reorg, 256), 28: (Concat, 1280), 31: (Detect, 425)},
}


@pytest.mark.shared
@pytest.mark.parametrize("name", LANDMARKS)
def test_landmarks_stand_at_their_section_numbers(name, shared):
    model = read_cfg(shared / "darknet_cfg" / f"{name}.cfg")
    for index, (op, channels) in LANDMARKS[name].items():
        assert model.sections[index] == f"layer{index}"
        assert isinstance(model.graph[f"layer{index}"].op, op)
        assert model.graph.out_channels(f"layer{index}") == channels


@pytest.mark.shared
def test_routes_of_one_layer_are_no_nodes(shared):
    model = read_cfg(shared / "darknet_cfg" / "yolov3.cfg")
    assert model.sections[83] is None
    assert model.graph["layer84"].inputs == ("layer79",)
    assert model.graph["layer86"].inputs == ("layer85", "layer61")


@pytest.mark.shared
def test_heads_say_how_their_boxes_are_decoded(shared):
    read = {name: read_cfg(shared / "darknet_cfg" / f"{name}.cfg").graph for name in OFFICIAL}
    assert [op.scale_xy for op in read["yolov4"].detects] == [1.2, 1.1, 1.05]
    assert {op.decoding for op in read["yolov4"].detects} == {"exp"}
    assert read["yolov4"].detects[0].nms_kind == "greedynms"
    assert [op.mask for op in read["yolov4-tiny"].detects] == [(3, 4, 5), (1, 2, 3)]
    for name in ("yolov4-csp", "yolov4-p5"):
        assert {(op.decoding, op.activated) for op in read[name].detects} == {("sigmoid-squared", True)}
        assert read[name].resize == "letterbox"
    (region,) = read["yolov2"].detects
    assert (region.decoding, region.softmax, region.activated) == ("region", True, False)
    assert region.anchors[0] == pytest.approx((0.57273 * 32, 0.677385 * 32))
    assert read["yolov2"].resize == "stretch"


@pytest.mark.shared
def test_decoding_can_be_overridden_for_cfgs_whose_code_ignores_them(shared):
    text = (shared / "darknet_cfg" / "yolov4-csp.cfg").read_text()
    branch = text.replace("activation=logistic", "activation=linear").replace("new_coords=1", "new_coords=0")
    branch = branch.replace("scale_x_y = 2.0", "scale_x_y = 1.05")
    assert {op.decoding for op in read_cfg(branch).graph.detects} == {"exp"}
    graph = read_cfg(branch, decoding="sigmoid-squared").graph
    assert {(op.decoding, op.activated) for op in graph.detects} == {("sigmoid-squared", False)}
    assert same_network(graph, lower(ZOO["yolov4-csp"]))


def network(*sections: str, size: int = 64, net: str = "", head: str = "", filters: int = 7) -> str:
    """A cfg of these sections with a one-class head of one anchor behind them."""
    return "\n".join(
        [
            f"[net]\nwidth={size}\nheight={size}\nchannels=3\n{net}",
            *sections,
            f"[convolutional]\nfilters={filters}\nsize=1\nactivation=linear",
            f"[yolo]\nmask=0\nanchors=10,13\nclasses=2\nnum=1\n{head}",
        ]
    )


CONV = "[convolutional]\nbatch_normalize=1\nfilters=8\nsize=3\npad=1\nstride=2\nactivation=leaky"


def ops(*sections: str, size: int = 64) -> list:
    return [node.op for node in read_cfg(network(*sections, size=size)).graph][:-2]


def test_grammar_is_that_of_darknet():
    text = network(
        "  [ conv ]  \r\n\t# comment\n; another\n filters = 8 # eight \r\n filters=16\n"
        "size=3#x\npad=1\nactivation=mish#y\n"
    )
    (op,) = [node.op for node in read_cfg(text).graph][:1]
    assert op == Conv(8, 3, padding=1, norm=False, bias=True, activation="mish")


@pytest.mark.parametrize(
    ("section", "expected"),
    [
        ("[conv]\nfilters=4", Conv(4, 1, norm=False, bias=True, activation="logistic")),
        ("[conv]\nfilters=4\nsize=4\npad=1", Conv(4, 4, padding=2, norm=False, bias=True, activation="logistic")),
        ("[conv]\nfilters=3\nsize=3\npadding=2\ngroups=3\nstride_x=2\nactivation=silu\ncbn=1",
         Conv(3, 3, stride=(1, 2), padding=2, groups=3, activation="swish")),
        ("[conv]\nfilters=4\nsize=3\npad=1\ndilation=4\nactivation=linear\nbatch_normalize=1",
         Conv(4, 3, padding=4, dilation=4)),
        ("[conv]\nfilters=4\nsize=1\ndilation=4\nactivation=linear\nbatch_normalize=1", Conv(4)),
        ("[max]\nsize=2\nstride=2", Pool(2, 2, 1)),
        ("[maxpool]\nstride=3", Pool(3, 3, 2)),
        ("[maxpool]\nsize=5\nstride=1\npadding=4", Pool(5, 1, 4)),
        ("[local_avgpool]\nsize=2\nstride=2\npadding=0", Pool(2, 2, 0, "average")),
        ("[avgpool]", GlobalAveragePool()),
        ("[upsample]\nstride=4\nscale=0.5", Upsample(4, 0.5)),
        ("[activation]\nactivation=relu6", Activate("relu6")),
        ("[batchnorm]", BatchNorm()),
        ("[reorg3d]\nstride=4", SpaceToDepth(4, "row")),
        ("[reorg]", SpaceToDepth(2, "column")),
    ],
)  # fmt: skip
def test_first_section_means(section, expected):
    assert ops(section)[0] == expected


def test_sections_that_reach_back():
    eight = CONV.replace("stride=2", "stride=1")
    graph = read_cfg(
        network(
            eight,  # 0
            eight,  # 1
            "[shortcut]\nfrom=-2,0\nactivation=mish\nweights_type=per_channel\nweights_normalization=softmax",  # 2
            "[route]\nlayers=-1, 0\ngroups=2\ngroup_id=1",  # 3
            "[dropout]\nprobability=.5",  # 4
            "[route]\nlayers=2",  # 5
            "[avgpool]",  # 6
            "[conv]\nfilters=8\nactivation=logistic",  # 7
            "[scale_channels]\nfrom=4",  # 8
            "[sam]\nfrom=3",  # 9
            "[conv]\nactivation=logistic",  # 10
            "[scale_channels]\nfrom=0\nscale_wh=1",  # 11
            "[reorg3d]\nstride=2",  # 12
            "[reorg3d]\nstride=2\nreverse=1",  # 13
            "[reorg]\nstride=2",  # 14
            "[route_lhalf]\nlayers=-1,12",  # 15
        )
    ).graph
    weighted = graph["layer2"]
    assert weighted.op == Add("mish", "per_channel", "softmax")
    assert weighted.inputs == ("layer1", "layer0", "layer0")
    assert graph.parameters["layer2.weights"] == (3, 8)
    assert graph["layer3"].inputs == ("layer3.split0", "layer3.split1")
    assert graph["layer3.split0"].op == ChannelSplit(2, 1)
    assert graph["layer6"].inputs == ("layer2",)
    assert (graph["layer8"].op, graph["layer8"].inputs) == (Multiply(), ("layer3", "layer7"))
    assert (graph["layer9"].op, graph["layer9"].inputs) == (Multiply(), ("layer8", "layer3"))
    assert graph["layer11"].inputs == ("layer0", "layer10")
    assert (graph["layer13"].op, graph["layer14"].op) == (DepthToSpace(2), Reorg(2))
    assert graph.out_channels("layer15") == 16 + 16
    assert "layer4" not in [node.name for node in graph]


def test_shortcut_of_fewer_channels_keeps_those_of_the_layer_before():
    text = network(CONV, CONV.replace("filters=8", "filters=16").replace("stride=2", "stride=1"), "[shortcut]\nfrom=-2")
    graph = read_cfg(text).graph
    assert graph["layer2"].inputs == ("layer1", "layer0")
    assert graph.out_channels("layer2") == 16


def test_implicit_vectors_belong_to_their_holder():
    text = network(
        CONV,
        "[implicit_add]\nfilters=8",
        "[implicit_mul]\nfilters=7",
        "[route]\nlayers=0",
        "[shift_channels]\nfrom=1",
        "[conv]\nfilters=7\nactivation=linear",
        "[control_channels]\nfrom=2",
    ).rsplit("[convolutional]", 1)
    model = read_cfg(text[0] + "[yolo]" + text[1].split("[yolo]")[1])
    assert model.sections[1] == model.sections[4] == "layer4"
    assert model.graph["layer4"].op == Implicit("add")
    assert model.graph["layer6"].op == Implicit("multiply")
    assert model.graph.parameters["layer4.implicit"] == (8,)
    assert not model.graph.detects[0].activated


def test_linear_convolution_before_new_coords_leaves_the_logistic_to_the_decoder():
    (head,) = read_cfg(network(CONV, head="new_coords=1\nscale_x_y=2")).graph.detects
    assert (head.decoding, head.activated, head.scale_xy) == ("sigmoid-squared", False, 1.0)


def test_every_section_and_key_of_the_table_is_known():
    for kind, keys in KEYS.items():
        assert kind.islower()
        assert all(key == key.strip() for key in keys)


def test_unknown_keys_can_be_ignored_as_darknet_does():
    text = network(CONV + "\nflavour=3")
    assert len(read_cfg(text, strict=False).graph) == 3
    assert read_cfg(network(CONV, net="momentum=0.9\nmax_batches=500"), name="mine").net["max_batches"] == "500"


# What is wrong, and what the sentence must say.
WRONG = {
    "misspelt key": (network(CONV + "\nstirde=2"), ":13: [convolutional] has no key 'stirde'. Did you mean 'stride'?"),
    "misspelt section": (network("[convolutionl]"), "unknown section [convolutionl]. Did you mean 'convolutional'?"),
    "other family": (network("[connected]\noutput=10"), ":6: [connected] is a fully connected layer"),
    "gaussian": (network("[Gaussian_yolo]"), "Gaussian YOLOv3"),
    "recurrent": (network("[crnn]"), "recurrent"),
    "no option": (network("hello"), "'hello' is neither a [section] nor key=value"),
    "option first": ("width=3\n[net]", ":1: 'width=3' stands before the first section"),
    "no net": ("[conv]\nfilters=3", "[net] must be the first section"),
    "two nets": (network("[net]\nwidth=3"), "[net] must be the first section"),
    "empty": ("\n# nothing\n", "has no sections"),
    "no width": ("[net]\nheight=64\n[conv]", "must say the width"),
    "no head": ("[net]\nheight=64\nwidth=64\n[conv]", "neither [yolo] nor [region]"),
    "binary": ("[net]\0\1\2", "binary file"),
    "bad number": (network(CONV.replace("stride=2", "stride=two")), "stride='two' in [convolutional] is not an int"),
    "bad float": (network(CONV, head="scale_x_y=wide"), "scale_x_y='wide' in [yolo] is not a number"),
    "infinite": (network("[upsample]\nscale=1e999"), "is not a number"),
    "huge filters": (network("[conv]\nfilters=99999999"), "filters=99999999 in [convolutional] is outside 1..65536"),
    "zero stride": (network("[conv]\nstride=0"), "stride=0"),
    "huge network": (network(CONV, size=10**9), "outside 1..65536"),
    "huge digits": (network("[conv]\nfilters=" + "9" * 5000), "outside 1..65536"),
    "route far": (network("[route]\nlayers=7"), "can only read layers before it"),
    "route before": (network(CONV, "[route]\nlayers=-2"), "layers=-2 means layer -1"),
    "route itself": (network(CONV, "[route]\nlayers=1"), "layer 1 reads itself"),
    "route nothing": (network(CONV, "[route]"), "must list its inputs as layers="),
    "route group": (network(CONV, "[route]\nlayers=-1\ngroups=2\ngroup_id=2"), "group_id=2 does not exist"),
    "uneven groups": (network(CONV, "[route]\nlayers=-1\ngroups=3"), "cannot be cut into 3 equal parts"),
    "conv groups": (network(CONV, "[conv]\nfilters=9\ngroups=3"), "8 input channels cannot be divided into 3 groups"),
    "sizes differ": (network(CONV, CONV, "[route]\nlayers=0,1"), "one height and width, got 8x32x32 and 8x16x16"),
    "network size": (network(CONV, CONV, "[upsample]", "[route]\nlayers=0,2", size=62), "network size 62x62"),
    "empty output": (network("[conv]\nsize=99"), "outputs nothing"),
    "reorg odd": (network("[reorg3d]\nstride=7"), "cannot be cut into blocks of 7x7"),
    "wrong filters": (network(CONV, filters=255), "= 7 in the [convolutional] of layer1, which has 255"),
    "mask": (network(CONV, head="").replace("mask=0", "mask=3"), "mask=3 points outside the 1 anchors"),
    "anchors": (network(CONV).replace("num=1", "num=3"), "at least num=3 pairs"),
    "odd anchors": (network(CONV).replace("10,13", "10,13,16"), "got 3 numbers"),
    "flat anchor": (network(CONV).replace("10,13", "10,0"), "positive sizes"),
    "classes differ": (
        network(CONV, "[conv]\nfilters=6", "[yolo]\nanchors=1,2\nclasses=1", "[route]\nlayers=0"),
        "classes=2 here, but 1 in the first head",
    ),
    "reads a head": (network(CONV) + "\n[conv]\nfilters=2", "reads layer 2, which outputs no feature map"),
    "unknown nms": (network(CONV, head="nms_kind=diounm"), "in [yolo] is unknown. Did you mean 'diounms'?"),
    "sensitivity": (network(CONV, head="new_coords=1\nscale_x_y=1.05"), "new_coords=1 goes with scale_x_y=2.0"),
    "activation": (network(CONV.replace("leaky", "leeky")), "is unknown. Did you mean 'leaky'?"),
    "odd activation": (network(CONV.replace("leaky", "hardtan")), "is not used by any detector"),
    "xnor": (network(CONV + "\nxnor=1"), "XNOR networks"),
    "share": (network(CONV, CONV + "\nshare_index=0"), "share_index"),
    "dontload": (network(CONV + "\ndontload=1"), "dontload=1"),
    "dilated": (network(CONV + "\ndilation=2\npadding=3").replace("pad=1\n", ""), "dilation=2 needs pad=1"),
    "pool strides": (network("[maxpool]\nstride_x=1\nstride_y=2"), "must be equal"),
    "pool outside": (network("[maxpool]\nsize=2\nstride=1\npadding=3"), "wholly outside"),
    "sam": (network(CONV, CONV, "[sam]\nfrom=0"), "maps of one shape"),
    "scale": (network(CONV, CONV, "[scale_channels]\nfrom=0"), "needs 8x1x1 before it"),
    "two from": (network(CONV, CONV, "[sam]\nfrom=0,0"), "reads one layer, but from lists 2"),
    "weights kind": (network(CONV, "[shortcut]\nfrom=0\nweights_type=per_chanel"), "Did you mean 'per_channel'?"),
    "implicit": (network("[implicit]\nfilters=3"), "learned constant map"),
    "no holder": (network(CONV, "[shift_channels]\nfrom=0"), "needs an unused [implicit_add]"),
    "channels explode": (network(CONV, *["[route]\nlayers=-1,-1"] * 40), "absurdly large"),
    "sides explode": (network(*["[upsample]\nstride=64"] * 4), "absurdly large"),
    "endless list": (network(CONV, "[route]\nlayers=" + "-1," * 5000), "lists 5000 values"),
    "endless sections": (network(*["[empty]"] * 10_050), "more than 10000 sections"),
    "too large": ("[net]\n" + "#" * 2_000_000, "larger than"),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
def test_every_mistake_is_one_sentence_with_its_place(case):
    text, expected = WRONG[case]
    start = time.perf_counter()
    with pytest.raises(CfgError) as caught:
        read_cfg(text)
    assert time.perf_counter() - start < 2
    message = str(caught.value)
    assert expected in message
    assert message.startswith("cfg:")
    assert "\n" not in message
    assert len(message) < 300


def test_wrong_filters_name_the_convolution_by_line():
    with pytest.raises(CfgError, match=r"^cfg:20: \[yolo\] with 1 anchors and classes=2"):
        read_cfg(network(CONV, filters=21))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(CfgError, match="no-such.cfg: cannot be read: No such file"):
        read_cfg(tmp_path / "no-such.cfg")
    with pytest.raises(CfgError, match="cannot be read"):
        read_cfg(tmp_path)


def test_files_of_other_encodings_and_line_ends_are_read(tmp_path):
    path = tmp_path / "mine.cfg"
    path.write_bytes(b"\xef\xbb\xbf" + network("# \xff\xfe caf\xe9\n" + CONV).replace("\n", "\r\n").encode("latin-1"))
    model = read_cfg(path)
    assert model.graph.name == "mine"
    assert model.graph.shapes(64, 64)["layer0"] == Shape(8, 32, 32)


# Pieces of cfgs, so that junk gets past the first line.
_PIECES = st.sampled_from(
    [
        *("[net]", "width=64", "height=64", "mask=0", "anchors=1,2", "num=1", "classes=1", "new_coords=1"),
        *("layers=-1,0", "from=-1", "groups=2", "filters=8", "size=3", "stride=2", "reverse=1", "batch_normalize=1"),
        *("activation=mish", "=", "#", *(f"[{kind}]" for kind in KEYS)),
    ]
)


@settings(max_examples=150, deadline=2000)
@given(st.one_of(st.text(max_size=300), st.lists(st.one_of(_PIECES, st.text(max_size=12)), max_size=40).map("\n".join)))
def test_junk_raises_nothing_but_cfg_errors(text):
    with contextlib.suppress(CfgError):
        read_cfg(text + "\n")


TINY = write_cfg(lower(ZOO["yolov4-tiny"]))


@settings(max_examples=100, deadline=2000)
@given(st.data())
def test_damaged_cfgs_raise_nothing_but_cfg_errors(data):
    lines = TINY.split("\n")
    for _ in range(data.draw(st.integers(1, 4))):
        index = data.draw(st.integers(0, len(lines) - 1))
        key = lines[index].partition("=")[0]
        value = st.sampled_from(["0", "-1", "-99", "65536", "3", "1e9", "", ",", "nan", "1,2,3"])
        kept = st.sampled_from([lines[index], "", lines[data.draw(st.integers(0, len(lines) - 1))]])
        lines[index] = data.draw(st.one_of(value.map(lambda text, key=key: f"{key}={text}"), kept, st.text(max_size=8)))
    with contextlib.suppress(CfgError):
        read_cfg("\n".join(lines))
