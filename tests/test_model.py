"""What a user may call a network or a model, and what is answered when there is none of that name."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import yaml

from scaledyolo import ZOO, load_graph, load_model, lower, save_checkpoint
from scaledyolo.classes import COCO_CATEGORY_IDS, COCO_NAMES, given_names, replacing_names
from scaledyolo.convert.darknet_cfg import write_cfg
from scaledyolo.convert.darknet_weights import write_weights
from scaledyolo.errors import DownloadError, FormatError, ScaledYoloError, SpecError, UsageError
from scaledyolo.model import load_spec
from scaledyolo.weights import random_weights


def test_a_graph_by_zoo_name_spec_file_cfg_and_checkpoint(colours, tmp_path):
    spec = ZOO["yolov4-tiny"]
    (tmp_path / "spec.yaml").write_text(yaml.safe_dump(spec.to_dict()))
    (tmp_path / "spec.json").write_text(json.dumps(spec.to_dict()))
    (tmp_path / "tiny.cfg").write_text(write_cfg(lower(spec)))
    assert load_graph("yolov4-tiny") == load_graph("YOLOv4-Tiny") == lower(spec)
    assert load_graph(tmp_path / "spec.yaml") == load_graph(str(tmp_path / "spec.json")) == lower(spec)
    assert load_spec(tmp_path / "spec.yaml") == load_spec("yolov4-tiny") == spec
    assert len(load_graph(tmp_path / "tiny.cfg").parameters) == len(lower(spec).parameters)
    assert load_graph(colours.path) == colours.checkpoint.graph


def test_another_number_of_classes_only_where_the_network_is_not_fixed(colours):
    assert load_graph("yolov4-tiny", num_classes=3).num_classes == 3
    assert load_graph(colours.path, num_classes=3).num_classes == 3
    for fixed in (colours.path, colours.cfg):
        with pytest.raises(UsageError, match="made for 3 classes"):
            load_graph(fixed, num_classes=5)
    with pytest.raises(SpecError, match="at least one class"):
        load_graph("yolov4-tiny", num_classes=0)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("yolov4-tinny", "Did you mean 'yolov4-tiny'"),
        ("yolo-v4-csp", "Did you mean 'yolov4-csp'"),
        ("missing.cfg", "missing.cfg"),
        ("missing.yaml", "missing.yaml: No such file"),
        ("missing.safetensors", "no such file"),
        ("missing.xyz", "no such file"),
        ("a/folder/name", "no such file"),
    ],
)
def test_graphs_that_do_not_exist(name, words):
    with pytest.raises(ScaledYoloError, match=words):
        load_graph(name)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("stem: [unclosed", "not YAML"),
        ("- a\n- list", "a spec is a mapping of values"),
        ("just text", "a spec is a mapping of values"),
        ("", "a spec is a mapping of values"),
        ("name: x\nsize: 416", "the key stem is missing"),
    ],
)
def test_spec_files_that_describe_nothing_are_refused_with_the_file(tmp_path, text, words):
    path = tmp_path / "spec.yaml"
    path.write_text(text)
    with pytest.raises((FormatError, SpecError), match=words) as caught:
        load_graph(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_an_unknown_key_of_a_spec_file_is_answered_with_the_nearest(tmp_path):
    path = tmp_path / "spec.yaml"
    path.write_text(yaml.safe_dump(ZOO["yolov4-tiny"].to_dict() | {"activatoin": "mish"}))
    with pytest.raises(SpecError, match=r"'activatoin'.*'activation'"):
        load_graph(path)


def test_a_spec_file_that_is_no_text_or_no_json(tmp_path):
    (tmp_path / "a.yaml").write_bytes(b"\xff\xfe\x00\x81")
    (tmp_path / "b.json").write_text("{")
    with pytest.raises(FormatError, match=r"a\.yaml: not a text file"):
        load_graph(tmp_path / "a.yaml")
    with pytest.raises(FormatError, match=r"b\.json: not JSON"):
        load_graph(tmp_path / "b.json")


def test_a_model_by_checkpoint_pair_and_either_half_of_it(colours):
    for source in (colours.path, (colours.cfg, colours.weights), colours.cfg, colours.weights):
        model = load_model(source)
        assert model.class_names == ("red", "green", "blue")
        # A cfg has no names for its nodes; the tensors are the same.
        for name, array in model.weights.items():
            np.testing.assert_array_equal(array, colours.checkpoint.weights[f"cells.{name.split('.')[-1]}"])


def test_models_that_cannot_be_one_say_what_to_do(colours, tmp_path):
    lonely = shutil.copy(colours.cfg, tmp_path / "lonely.cfg")
    spec = tmp_path / "spec.yaml"
    spec.write_text(yaml.safe_dump(ZOO["yolov4-tiny"].to_dict()))
    picture = tmp_path / "picture.png"
    picture.write_bytes(b"\x89PNG")
    cases = {
        r"lonely\.weights does not exist": lonely,
        "scaledyolo convert": "weights.pt",
        "without weights": spec,
        "pair": (lonely, lonely, lonely),
        "no such file": tmp_path / "none.bin",
        r"picture\.png": picture,
        "Did you mean 'yolov4-tiny'": "yolov4-tinny",
    }
    for words, source in cases.items():
        with pytest.raises(ScaledYoloError, match=words):
            load_model(source)


def test_weights_that_do_not_fit_the_cfg_are_refused_with_bytes(colours, tmp_path):
    content = colours.weights.read_bytes()
    for change, words in ((content[:-4], rf"{len(content) - 4}.*{len(content)}"), (content + bytes(4), "4 too many")):
        path = tmp_path / "other.weights"
        path.write_bytes(change)
        with pytest.raises(FormatError, match=words):
            load_model((colours.cfg, path))


def test_names_of_coco_bring_its_category_ids_along(tmp_path):
    graph = lower(ZOO["yolov4-tiny"])
    write_weights(tmp_path / "tiny.weights", graph, random_weights(graph, np.random.default_rng(0)))
    (tmp_path / "tiny.cfg").write_text(write_cfg(graph))
    darknets_spelling = [{"motorcycle": "motorbike", "couch": "sofa"}.get(name, name) for name in COCO_NAMES]
    pair = (tmp_path / "tiny.cfg", tmp_path / "tiny.weights")
    for names in (None, darknets_spelling):
        assert load_model(pair, names=names).category_ids[-1] == 90
    others = [f"species {number}" for number in range(80)]
    assert load_model(pair, names=others).category_ids is None
    save_checkpoint(tmp_path / "tiny.safetensors", load_model(pair, names=others))
    assert load_model(tmp_path / "tiny.safetensors").category_ids is None
    assert load_model(tmp_path / "tiny.safetensors", names=darknets_spelling).category_ids[16] == 18


def test_official_weights_come_from_the_cache_and_only_from_there(tmp_path, monkeypatch):
    monkeypatch.setenv("SCALEDYOLO_HOME", str(tmp_path))
    with pytest.raises(DownloadError, match="scaledyolo download yolov3-tiny"):
        load_model("yolov3-tiny")


def test_a_pair_whose_cfg_is_of_another_number_of_classes_is_told_so(tmp_path):
    graph = lower(ZOO["yolov4-tiny"].with_classes(5))
    write_weights(tmp_path / "five.weights", graph, random_weights(graph, np.random.default_rng(0)))
    (tmp_path / "eighty.cfg").write_text(write_cfg(lower(ZOO["yolov4-tiny"])))
    with pytest.raises(FormatError, match="5 classes"):
        load_model((tmp_path / "eighty.cfg", tmp_path / "five.weights"))


def test_given_names_are_a_file_or_the_names(tmp_path):
    (tmp_path / "two.names").write_text("cat\ndog\n\n", encoding="utf-8")
    for names in (tmp_path / "two.names", str(tmp_path / "two.names"), ["cat", "dog"]):
        assert given_names(names) == ("cat", "dog")
        assert replacing_names(names, (7, 9), num_classes=2, place="x") == (("cat", "dog"), (7, 9))
        with pytest.raises(UsageError, match="x: 2 class names for a network of 3 classes"):
            replacing_names(names, None, num_classes=3, place="x")
    assert replacing_names(COCO_NAMES, None, num_classes=80, place="x")[1] == COCO_CATEGORY_IDS
