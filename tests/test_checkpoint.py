"""Checkpoints: what goes in comes out, and what is damaged or does not fit is refused by name."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, safe_open, save_file

from scaledyolo import ZOO, Checkpoint, lower, save_checkpoint
from scaledyolo.checkpoint import load_checkpoint, load_description
from scaledyolo.errors import CheckpointError, ScaledYoloError
from scaledyolo.weights import random_weights


@pytest.fixture(scope="module")
def zoo_checkpoint() -> Checkpoint:
    """A network that a spec describes, with ids and provenance."""
    spec = ZOO["yolov4-tiny"].with_classes(2)
    graph = lower(spec)
    return Checkpoint(
        graph=graph,
        spec=spec,
        class_names=("gelb", "größer"),
        category_ids=(7, 90),
        provenance={"source": "made by a test", "licence": "none"},
        weights=random_weights(graph, np.random.default_rng(0)),
    )


@pytest.fixture(scope="module")
def zoo_file(zoo_checkpoint, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("checkpoint") / "tiny.safetensors"
    save_checkpoint(path, zoo_checkpoint)
    return path


def rewritten(source: Path, target: Path, *, metadata=None, tensors=None) -> Path:
    """A copy of a checkpoint with parts of it replaced; a value of None removes a part."""
    with safe_open(source, framework="numpy") as file:
        facts = dict(file.metadata()) | (metadata or {})
    arrays = load_file(source) | (tensors or {})
    save_file(
        {name: array for name, array in arrays.items() if array is not None},
        target,
        {key: value for key, value in facts.items() if value is not None},
    )
    return target


def test_a_checkpoint_comes_back_as_it_was(zoo_checkpoint, zoo_file):
    loaded = load_checkpoint(zoo_file)
    assert replace(loaded, weights=zoo_checkpoint.weights) == zoo_checkpoint
    assert loaded.weights.keys() == zoo_checkpoint.weights.keys()
    for name, array in zoo_checkpoint.weights.items():
        np.testing.assert_array_equal(loaded.weights[name], array)


def test_a_network_without_spec_is_kept_as_graph(colours):
    loaded = load_checkpoint(colours.path)
    assert loaded.spec is None
    assert loaded.graph == colours.checkpoint.graph
    assert loaded.class_names == ("red", "green", "blue")


def test_the_description_alone_is_the_same(zoo_checkpoint, zoo_file):
    described = load_description(zoo_file)
    assert described.graph == zoo_checkpoint.graph
    assert described.class_names == zoo_checkpoint.class_names
    assert described.category_ids == (7, 90)


def test_half_precision_halves_the_file_and_loads_as_float32(zoo_checkpoint, zoo_file, tmp_path):
    path = tmp_path / "half.safetensors"
    save_checkpoint(path, zoo_checkpoint, dtype="float16")
    assert path.stat().st_size < 0.52 * zoo_file.stat().st_size
    for name, array in load_checkpoint(path).weights.items():
        assert array.dtype == np.float32
        given = zoo_checkpoint.weights[name]
        # What has one dimension, such as a variance far below float16's range, is kept as it is.
        kept = given.astype(np.float16).astype(np.float32) if given.ndim > 1 else given
        np.testing.assert_array_equal(array, kept)


def test_the_same_checkpoint_gives_the_same_bytes_in_every_process(colours, tmp_path):
    # The library orders the texts of the header by hashes that every process draws anew.
    code = (
        "import sys; from scaledyolo.checkpoint import load_checkpoint, save_checkpoint;"
        "save_checkpoint(sys.argv[2], load_checkpoint(sys.argv[1]))"
    )
    for number in range(3):
        subprocess.run([sys.executable, "-c", code, str(colours.path), str(tmp_path / f"{number}")], check=True)
    assert {(tmp_path / f"{number}").read_bytes() for number in range(3)} == {colours.path.read_bytes()}


def test_any_safetensors_reader_sees_the_weights_and_the_description(zoo_checkpoint, zoo_file):
    assert load_file(zoo_file).keys() == zoo_checkpoint.graph.parameters.keys()
    with safe_open(zoo_file, framework="numpy") as file:
        metadata = file.metadata()
    assert json.loads(metadata["class_names"]) == ["gelb", "größer"]
    assert json.loads(metadata["provenance"])["licence"] == "none"


def _graph_of(node: str) -> str:
    """The JSON of a network of one node."""
    return f'{{"name": "g", "height": 32, "width": 32, "nodes": [{{"name": "x", {node}}}]}}'


def _first_name(path: Path) -> str:
    return next(iter(load_file(path)))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"format": None}, r"not a scaledyolo checkpoint .* `scaledyolo convert"),
        ({"format": "other/1"}, "not a scaledyolo checkpoint"),
        ({"spec": None}, "description inside the file is damaged"),
        ({"spec": "{not json"}, "description inside the file is damaged"),
        ({"spec": '"a text"'}, "yolo|mapping|damaged|values"),
        ({"class_names": '["one"]'}, "1 class names for a network of 2 classes"),
        ({"class_names": "3"}, "damaged"),
        ({"class_names": None}, "damaged"),
        ({"category_ids": "[1, 2, 3]"}, "3 category ids for a network of 2 classes"),
        ({"provenance": "[]"}, "damaged"),
        ({"category_ids": "[Infinity, 1]"}, "damaged"),
        ({"spec": "[" * 100_000}, "nested too deeply"),
        (
            {"spec": None, "graph": _graph_of('"op": "conv", "filters": 1, "stride": [0, 1], "inputs": ["image"]')},
            "suit",
        ),
        ({"spec": None, "graph": _graph_of('"op": "conv", "filters": 7, "groups": 0, "inputs": ["image"]')}, "suit"),
        ({"spec": None, "graph": _graph_of('"op": "conv", "filters": 7, "inputs": []')}, "0 inputs do not suit"),
        ({"spec": None, "graph": _graph_of('"op": "concat", "inputs": []')}, "0 inputs do not suit"),
    ],
)
def test_descriptions_that_are_damaged_are_refused_with_the_file(zoo_file, tmp_path, change, words):
    path = rewritten(zoo_file, tmp_path / "damaged.safetensors", metadata=change)
    with pytest.raises(CheckpointError, match=words) as caught:
        load_checkpoint(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("dtype", "itemsize"), [("BF16", 2), ("F8_E4M3", 1), ("I64", 8)])
def test_weights_of_another_type_are_refused(tmp_path, dtype, itemsize):
    nodes = [
        {"name": "predict", "op": "conv", "inputs": ["image"], "filters": 6, "norm": False},
        {"name": "detect", "op": "detect", "inputs": ["predict"], "anchors": [[1, 2]], "mask": [0], "num_classes": 1},
    ]
    graph = {"name": "g", "height": 32, "width": 32, "nodes": nodes}
    facts = {"graph": json.dumps(graph), "class_names": '["a"]', "category_ids": "null", "provenance": "{}"}
    tensor = {"dtype": dtype, "shape": [6, 3, 1, 1], "data_offsets": [0, 18 * itemsize]}
    header = json.dumps({"__metadata__": {"format": "scaledyolo/1", **facts}, "predict.weight": tensor}).encode()
    path = tmp_path / "other.safetensors"
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(18 * itemsize))
    with pytest.raises(CheckpointError, match=f"'predict.weight' is stored as {dtype}; save it as float32"):
        load_checkpoint(path)


def test_an_unknown_key_of_the_spec_is_named(zoo_file, tmp_path):
    with safe_open(zoo_file, framework="numpy") as file:
        spec = json.loads(file.metadata()["spec"])
    path = rewritten(zoo_file, tmp_path / "x.safetensors", metadata={"spec": json.dumps(spec | {"activatoin": "mish"})})
    with pytest.raises(CheckpointError, match="activatoin"):
        load_description(path)


def test_weights_of_another_network_than_the_spec_are_refused_with_name_and_shapes(zoo_file, tmp_path):
    name = _first_name(zoo_file)
    shape = load_file(zoo_file)[name].shape
    cases = {
        f"'{name}'.*is missing": {name: None},
        f"'{name}' should have shape .*{shape[0]}.*\\(1, 2\\)": {name: np.zeros((1, 2), np.float32)},
        "hold a tensor 'stray'": {"stray": np.zeros(3, np.float32)},
    }
    for words, tensors in cases.items():
        path = rewritten(zoo_file, tmp_path / "mismatch.safetensors", tensors=tensors)
        with pytest.raises(CheckpointError, match=words) as caught:
            load_checkpoint(path)
        assert str(path) in str(caught.value)


def test_files_that_are_cut_off_flipped_or_nothing_of_the_kind_are_refused(zoo_file, tmp_path):
    whole = zoo_file.read_bytes()
    contents = {
        "empty": b"",
        "cut in the header": whole[:100],
        "cut in the weights": whole[:-1000],
        "longer": whole + b"more",
        "length damaged": b"\xff" * 8 + whole[8:],
        "header damaged": whole[:8] + b"!" + whole[9:],
        "a picture": b"\x89PNG\r\n\x1a\n" + bytes(100),
    }
    for what, content in contents.items():
        path = tmp_path / f"{what}.safetensors"
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="damaged or not a safetensors file") as caught:
            load_checkpoint(path)
        assert str(path) in str(caught.value), what


def test_a_missing_file_and_a_folder_are_named(tmp_path):
    for path in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(CheckpointError, match="no such file"):
            load_checkpoint(path)


def test_a_checkpoint_in_memory_is_as_strict(zoo_checkpoint):
    weights = dict(zoo_checkpoint.weights)
    name = next(iter(weights))
    with pytest.raises(CheckpointError, match="float32"):
        replace(zoo_checkpoint, weights=weights | {name: weights[name].astype(np.float64)})
    with pytest.raises(CheckpointError, match="class names"):
        replace(zoo_checkpoint, class_names=("one",))


def test_a_full_disk_leaves_the_old_file_and_nothing_else(colours, tmp_path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"earlier")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (1000, hard))  # the system refuses what goes beyond, as a full disk does
    try:
        with pytest.raises(
            ScaledYoloError, match=r"model\.safetensors cannot be written: File too large; nothing was changed"
        ):
            save_checkpoint(path, colours.checkpoint)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]


def test_a_folder_that_does_not_exist_is_named(colours, tmp_path):
    with pytest.raises(ScaledYoloError, match="nowhere.* cannot be written"):
        save_checkpoint(tmp_path / "nowhere" / "model.safetensors", colours.checkpoint)


def test_file_mode_follows_the_umask(colours, tmp_path):
    previous = os.umask(0o027)
    try:
        save_checkpoint(tmp_path / "model.safetensors", colours.checkpoint)
    finally:
        os.umask(previous)
    assert (tmp_path / "model.safetensors").stat().st_mode & 0o777 == 0o640
