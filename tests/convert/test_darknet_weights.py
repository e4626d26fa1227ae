"""Darknet weight files: sizes against published figures, bytes against a file of real weights, and every wrong file."""

from __future__ import annotations

import os
import struct

import numpy as np
import pytest

from scaledyolo.arch.graph import Graph, GraphBuilder
from scaledyolo.arch.lower import lower
from scaledyolo.arch.ops import Add, Affine, BatchNorm, Conv, Detect
from scaledyolo.arch.zoo import ZOO
from scaledyolo.convert.darknet_cfg import read_cfg, write_cfg
from scaledyolo.convert.darknet_weights import expected_bytes, file_order, read_weights, write_weights
from scaledyolo.errors import ConversionError, OutputError, WeightsError

# Sizes of the published files in bytes (specification, table 1.1), header of 20 bytes; YOLOv2 of 16.
FILE_BYTES = {
    "yolov3-tiny": 35_434_956,
    "yolov3": 248_007_048,
    "yolov3-spp": 252_209_544,
    "yolov4": 257_717_640,
    "yolov4-tiny": 24_251_276,
    "yolov4-csp": 211_944_840,
    "yolov4-csp-s": 33_164_680,
    "yolov4x-mish": 399_388_168,
    "yolov4-p5-cfg": 283_669_892,
    "yolov4-p6-cfg": 510_868_180,
    "yolov4-p7-cfg": 1_151_149_700,
    "csresnext50-panet-spp": 228_123_400,
}
# Sizes of pre-training files: network, sections, bytes (specification, 6.1).
PARTIAL_BYTES = {
    "yolov4.conv.137": ("yolov4", 170_038_676),
    "darknet53.conv.74": ("yolov3", 162_482_580),
    "yolov4-tiny.conv.29": ("yolov4-tiny", 19_789_716),
    "yolov4-csp.conv.142": ("yolov4-csp", 146_548_116),
    "yolov4x-mish.conv.166": ("yolov4x-mish", 277_307_668),
    "yolov4-p5.conv.232": ("yolov4-p5-cfg", 256_427_412),
    "yolov4-p6.conv.289": ("yolov4-p6-cfg", 463_340_948),
    "csresnext50.conv.112": ("csresnext50-panet-spp", 140_311_316),
}


@pytest.mark.parametrize("name", FILE_BYTES)
def test_full_files_have_the_published_size(name):
    assert expected_bytes(lower(ZOO[name])) == FILE_BYTES[name]


def test_old_files_have_a_shorter_header():
    assert expected_bytes(lower(ZOO["yolov2"]), header_bytes=16) == 203_934_260


@pytest.mark.parametrize("name", PARTIAL_BYTES)
def test_partial_files_have_the_published_size(name):
    network, num_bytes = PARTIAL_BYTES[name]
    model = read_cfg(write_cfg(lower(ZOO[network])))
    inside = set(model.sections[: int(name.rsplit(".", 1)[1])])
    names = [key for node, keys in file_order(model.graph) if node.name in inside for key in keys]
    assert 20 + 4 * sum(int(np.prod(model.graph.parameters[key])) for key in names) == num_bytes


def small_graph(classes: int = 3, **input_facts: float) -> Graph:
    """Every kind of node that a weight file holds parameters for."""
    builder = GraphBuilder()
    a = builder.add("a", Conv(8, 3, padding=1, activation="leaky"), Graph.INPUT)
    b = builder.add("b", Conv(8, groups=2), a)
    norm = builder.add("norm", BatchNorm(), b)
    plain = builder.add("plain", Add(), norm, a)
    weighted = builder.add("sum", Add("linear", "per_channel", "relu"), plain, a)
    raw = builder.add("raw", Conv(2 * (5 + classes), norm=False, bias=True), weighted)
    builder.add("head", Detect(((1, 2), (3, 4)), (0, 1), classes), raw)
    return Graph("small", tuple(builder.nodes), 32, 32, **{"norm_eps": 1e-5, **input_facts})


def random_arrays(graph: Graph) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {name: rng.uniform(0.5, 1.5, shape).astype(np.float32) for name, shape in graph.parameters.items()}


def test_layout_within_a_layer_is_that_of_darknet(tmp_path):
    graph = small_graph()
    arrays = random_arrays(graph)
    write_weights(tmp_path / "w.weights", graph, arrays, seen=7)
    data = (tmp_path / "w.weights").read_bytes()
    assert struct.unpack("<iiiQ", data[:20]) == (0, 2, 5, 7)
    order = [
        *("a.norm.bias", "a.norm.weight", "a.norm.running_mean", "a.norm.running_var", "a.weight"),
        *("b.norm.bias", "b.norm.weight", "b.norm.running_mean", "b.norm.running_var", "b.weight"),
        *("norm.bias", "norm.weight", "norm.running_mean", "norm.running_var"),
        "sum.weights",
        *("raw.bias", "raw.weight"),
    ]
    expected = np.concatenate([arrays[name].ravel() for name in order])
    np.testing.assert_array_equal(np.frombuffer(data, "<f4", offset=20), expected)


@pytest.mark.parametrize("version", [(0, 2, 5), (0, 1, 0), (1, 0, 0), (0, 2, 0)])
def test_headers_of_all_versions_survive(tmp_path, version):
    graph = small_graph()
    path, again = tmp_path / "w.weights", tmp_path / "again.weights"
    seen = 2**33 if version != (0, 1, 0) else 2**31
    write_weights(path, graph, random_arrays(graph), seen=seen, version=version)
    weights = read_weights(path, graph)
    assert (weights.version, weights.seen) == (version, seen)
    assert weights.header_bytes == (16 if version == (0, 1, 0) else 20)
    assert weights.loaded_nodes == ("a", "b", "norm", "sum", "raw")
    write_weights(again, graph, weights.arrays, seen=weights.seen, version=weights.version)
    assert again.read_bytes() == path.read_bytes()


@pytest.mark.shared
@pytest.mark.parametrize("name", ["yolo-fastest-1.1", "yolo-fastest-1.1-xl"])
def test_real_weights_survive_byte_for_byte(name, shared, tmp_path):
    folder = shared / "weights"
    model = read_cfg(folder / f"{name}.cfg")
    weights = read_weights(folder / f"{name}.weights", model)
    assert {key: array.shape for key, array in weights.arrays.items()} == dict(model.graph.parameters)
    assert weights.num_non_finite == 0
    # Trained variances are positive; a misaligned layout would put signed weights there.
    assert all(array.min() >= 0 for key, array in weights.arrays.items() if key.endswith("running_var"))
    write_weights(tmp_path / "w", model.graph, weights.arrays, seen=weights.seen, version=weights.version)
    assert (tmp_path / "w").read_bytes() == (folder / f"{name}.weights").read_bytes()


@pytest.mark.shared
def test_real_partial_file_ends_where_its_name_says(shared, tmp_path):
    model = read_cfg(shared / "weights" / "yolo-fastest-1.1.cfg")
    whole = read_weights(shared / "weights" / "yolo-fastest-1.1.weights", model)
    kept = {name for name in model.sections[:50] if name}
    arrays = {name: array for name, array in whole.arrays.items() if name.split(".")[0] in kept}
    path = tmp_path / "fastest.conv.50"
    write_weights(path, model.graph, arrays, allow_partial=True)
    partial = read_weights(path, model)
    assert set(partial.arrays) == set(arrays)
    assert all(np.array_equal(partial.arrays[name], arrays[name]) for name in arrays)
    wrong = path.rename(tmp_path / "fastest.conv.30")
    with pytest.raises(WeightsError, match="name means the first 30 sections, which end with 'layer"):
        read_weights(wrong, model)
    with pytest.raises(WeightsError, match="ends within node|ends after node"):
        read_weights(wrong, model, allow_partial=False)
    with pytest.raises(WeightsError, match="name means 3000 sections"):
        read_weights(wrong.rename(tmp_path / "fastest.conv.3000"), model)


def written(tmp_path, graph: Graph, **options) -> os.PathLike[str]:
    path = tmp_path / "w.weights"
    write_weights(path, graph, random_arrays(graph), **options)
    return path


def test_wrong_class_count_is_recognised(tmp_path):
    path = written(tmp_path, small_graph(classes=80))
    size, needed = path.stat().st_size, expected_bytes(small_graph(classes=3))
    with pytest.raises(WeightsError) as caught:
        read_weights(path, small_graph(classes=3))
    assert f"holds {size} bytes, but small needs {needed}: {size - needed} too many" in str(caught.value)
    assert "fits exactly with 80 classes in place of 3" in str(caught.value)
    path = written(tmp_path, small_graph(classes=3))
    with pytest.raises(WeightsError, match="ends within node 'raw'; it fits exactly with 3 classes in place of 80"):
        read_weights(path, small_graph(classes=80))


@pytest.mark.parametrize(
    ("cut", "reason"),
    [
        (lambda data: data[:-4], "ends within node 'raw'$"),
        (lambda data: data[:-1], "ends within node 'raw'$"),
        (lambda data: data + b"1234", "4 too many$"),
        (lambda data: data[: 20 + 4 * (32 + 216)], "ends after node 'a'; if it is a pre-training file"),
        (lambda data: data[:20], "ends within node 'a'$"),
        (lambda data: data[:18], "fewer than the 20 of its header"),
        (lambda data: b"", "fewer than the 16 of the shortest header"),
        (lambda data: b"PK\3\4" + data[4:], "zip archive, perhaps a PyTorch checkpoint"),
        (lambda data: b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        (lambda data: b"<!DOCTYPE html><html></html>", "web page"),
        (lambda data: b"[net]\nwidth=3\nheight=64\n", "is a cfg"),
    ],
)
def test_wrong_files_are_named_with_the_reason(tmp_path, cut, reason):
    path = written(tmp_path, small_graph())
    path.write_bytes(cut(path.read_bytes()))
    with pytest.raises(WeightsError, match=reason) as caught:
        read_weights(path, small_graph())
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_partial_files_must_end_between_layers(tmp_path):
    path = written(tmp_path, small_graph())
    data = path.read_bytes()
    path.write_bytes(data[: 20 + 4 * (32 + 216)])
    weights = read_weights(path, small_graph(), allow_partial=True)
    assert weights.loaded_nodes == ("a",)
    path.write_bytes(data[: 20 + 4 * (32 + 215)])
    with pytest.raises(WeightsError, match="must end between two layers"):
        read_weights(path, small_graph(), allow_partial=True)
    path.write_bytes(data[:20])
    with pytest.raises(WeightsError, match="must end between two layers"):
        read_weights(path, small_graph(), allow_partial=True)


def test_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match="cannot be read: No such file"):
        read_weights(tmp_path / "w.weights", small_graph())
    with pytest.raises(OutputError, match="cannot be written: No such file"):
        write_weights(tmp_path / "no" / "w.weights", small_graph(), random_arrays(small_graph()))


def test_numbers_that_are_none_are_counted(tmp_path):
    graph = small_graph()
    arrays = random_arrays(graph)
    arrays["a.weight"].flat[:3] = (np.nan, np.inf, -np.inf)
    write_weights(tmp_path / "w", graph, arrays)
    assert read_weights(tmp_path / "w", graph).num_non_finite == 3


def test_arrays_do_not_depend_on_the_file(tmp_path):
    path = written(tmp_path, small_graph())
    weights = read_weights(path, small_graph())
    path.write_bytes(b"")
    weights.arrays["a.weight"][0] = 3
    assert weights.arrays["a.weight"].dtype == np.float32


def test_other_epsilons_move_into_the_variances(tmp_path):
    graph = small_graph(norm_eps=1e-3)
    arrays = random_arrays(graph)
    write_weights(tmp_path / "w", graph, arrays)
    read = read_weights(tmp_path / "w", small_graph()).arrays
    np.testing.assert_allclose(read["a.norm.running_var"] + 1e-5, arrays["a.norm.running_var"] + 1e-3, rtol=1e-6)
    np.testing.assert_array_equal(read["a.norm.weight"], arrays["a.norm.weight"])
    arrays["a.norm.running_var"][0] = 0
    with pytest.raises(ConversionError, match="variances this small"):
        write_weights(tmp_path / "w", small_graph(norm_eps=1e-6), arrays)


def test_writing_is_all_or_nothing(tmp_path):
    graph = small_graph()
    path = written(tmp_path, graph)
    before = path.read_bytes()
    arrays = random_arrays(graph)
    arrays["b.norm.running_var"] -= 10
    with pytest.raises(ConversionError):
        write_weights(path, small_graph(norm_eps=1e-3), arrays)
    assert path.read_bytes() == before
    assert os.listdir(tmp_path) == ["w.weights"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda arrays: arrays.pop("b.weight"), "'b.weight' of small is missing"),
        (
            lambda arrays: arrays.update({"b.weight": np.zeros((8, 8, 1, 1))}),
            "shape .8, 8, 1, 1., but small needs .8, 4",
        ),
        (lambda arrays: arrays.update(other=np.zeros(3)), "no parameter 'other'"),
    ],
)
def test_arrays_must_be_those_of_the_network(tmp_path, change, reason):
    arrays = random_arrays(small_graph())
    change(arrays)
    with pytest.raises(WeightsError, match=reason):
        write_weights(tmp_path / "w", small_graph(), arrays)
    assert not list(tmp_path.iterdir())


def test_what_the_format_has_no_place_for_is_refused(tmp_path):
    for op in (Affine(), Conv(3, bias=False, norm=False)):
        builder = GraphBuilder()
        builder.add("odd", op, Graph.INPUT)
        graph = Graph("odd", tuple(builder.nodes), 32, 32)
        with pytest.raises(ConversionError, match="no place for the parameters of node 'odd'"):
            write_weights(tmp_path / "w", graph, {})
    with pytest.raises(WeightsError, match="seen=-1"):
        write_weights(tmp_path / "w", small_graph(), random_arrays(small_graph()), seen=-1)
    with pytest.raises(WeightsError, match="does not fit"):
        write_weights(tmp_path / "w", small_graph(), random_arrays(small_graph()), seen=2**32, version=(0, 1, 0))
