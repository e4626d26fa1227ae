"""A once-for-all subnet as a model: in every engine, as a file, exported, converted, asked for by name."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scaledyolo import Detector
from scaledyolo.arch.cost import cost
from scaledyolo.arch.lower import lower
from scaledyolo.arch.scaling import scaled, with_stages
from scaledyolo.arch.spec import ModelSpec
from scaledyolo.arch.subnet import cut, cut_graph, subnet_names
from scaledyolo.arch.zoo import find
from scaledyolo.artefact import ModelFacts
from scaledyolo.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from scaledyolo.cli import main
from scaledyolo.engines.select import open_engine
from scaledyolo.errors import SpecError, UsageError
from scaledyolo.runnable import open_runnable
from scaledyolo.subnet import SUBNET, subnet_checkpoint
from scaledyolo.weights import random_weights

EXACT = ("without-head-p7", "without-head-p6")
APPROXIMATE = ("without-stage-p7", "without-stage-p6")


def narrow(name: str = "yolov4-p7") -> Checkpoint:
    """A network of seven stages, a sixteenth as wide, one block a stage, 128 pixels, two classes; random weights."""
    spec = scaled(find(name), width=1 / 16, depth=1 / 16, size=128, name="narrow").with_classes(2)
    graph = lower(spec)
    weights = random_weights(graph, np.random.default_rng(0))
    return Checkpoint(graph=graph, weights=weights, class_names=("cat", "dog"), spec=spec)


@pytest.fixture(scope="module")
def whole() -> Checkpoint:
    return narrow()


@pytest.fixture(scope="module")
def file(whole: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("subnets") / "narrow.safetensors"
    save_checkpoint(path, whole)
    return path


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(1).random((2, 3, 128, 256), dtype=np.float32)


@pytest.mark.parametrize("name", EXACT)
def test_exact_subnets_are_bit_identical_in_torch(whole, images, name):
    torch = pytest.importorskip("torch")
    from scaledyolo.net.network import Network

    def maps(checkpoint: Checkpoint) -> dict[str, object]:
        network = Network(checkpoint.graph)
        network.load(checkpoint.weights)
        with torch.inference_mode():
            outputs = network.eval()(torch.from_numpy(images))
        return dict(zip((head.name for head in checkpoint.graph.heads), outputs, strict=True))

    large, small = maps(whole), maps(subnet_checkpoint(whole, name))
    assert len(small) == {"without-head-p7": 4, "without-head-p6": 3}[name]
    for head, value in small.items():
        assert torch.equal(value, large[head]), head


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize("name", EXACT)
def test_exact_subnets_compute_the_same_in_every_engine(whole, images, engine, name):
    subnet = subnet_checkpoint(whole, name)
    large, small = (open_engine(engine, c.graph, dict(c.weights), threads=1).run(images) for c in (whole, subnet))
    names = [head.name for head in whole.graph.heads]
    for head, value in zip(subnet.graph.heads, small, strict=True):
        np.testing.assert_allclose(value, large[names.index(head.name)], rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("name", [*EXACT, *APPROXIMATE, "without-stage-p7-zeros", "without-stage-p7+without-head-p6"])
def test_a_subnet_is_a_checkpoint_like_any_other(whole, name, tmp_path):
    subnet = subnet_checkpoint(whole, name)
    assert subnet.graph == cut_graph(whole.graph, name)
    assert subnet.spec is not None
    assert subnet.spec.subnet == subnet.provenance[SUBNET] == name
    save_checkpoint(tmp_path / "small.safetensors", subnet)
    again = load_checkpoint(tmp_path / "small.safetensors")
    assert (again.graph, again.spec, again.class_names) == (subnet.graph, subnet.spec, whole.class_names)
    assert all(np.array_equal(again.weights[tensor], value) for tensor, value in subnet.weights.items())


def test_without_a_spec_the_graph_says_what_is_left(whole):
    subnet = subnet_checkpoint(replace(whole, spec=None), "without-stage-p7")
    assert subnet.spec is None
    assert subnet.graph == cut(whole.graph, "without-stage-p7").graph


def test_a_spec_file_can_name_a_subnet(tmp_path):
    spec = replace(find("yolov4-p7"), subnet="without-stage-p7", size=1472)  # a multiple of 64, not of 128
    assert ModelSpec.from_dict(spec.to_dict()) == spec
    (tmp_path / "small.json").write_text(json.dumps(spec.to_dict()))
    from scaledyolo.model import load_graph

    graph = load_graph(tmp_path / "small.json")
    assert (graph.height, graph.max_stride, sorted(graph.strides)) == (1472, 64, [8, 16, 32, 64])
    with pytest.raises(UsageError, match="cut to 'without-stage-p7' already"):
        with_stages(spec, 5)
    with pytest.raises(SpecError, match="1400 is not a multiple of the largest stride 64"):
        lower(replace(spec, size=1400))


def test_names_are_listed_largest_first_and_understood():
    graph = lower(find("yolov4-p6"))
    names = subnet_names(graph)
    assert names == tuple(f"without-{part}-p{level}" for part in ("head", "stage") for level in (6, 5, 4))
    for part in ("head", "stage"):
        macs = [cost(cut(graph, name).graph).macs for name in names if part in name]
        assert macs == sorted(macs, reverse=True)
    with pytest.raises(UsageError, match=r"no subnet named 'without-stage-6'; Did you mean 'without-stage-p6'\?"):
        cut(graph, "without-stage-6")
    assert subnet_names(lower(find("yolov2"))) == ()


def test_a_detector_takes_the_part_that_is_asked_for(whole, file):
    image = np.random.default_rng(2).integers(0, 255, (100, 120, 3), dtype=np.uint8)
    options = {"engine": "onnxruntime", "threads": 1, "confidence": 0.0}
    plain, part = Detector(file, **options), Detector(file, subnet="without-head-p7", **options)
    assert part.network.facts.name == "narrow-without-head-p7"
    large, small = (one.network.run(np.zeros((1, 3, 128, 128), np.float32)) for one in (plain, part))
    strides = plain.network.facts.strides
    for stride, value in zip(part.network.facts.strides, small, strict=True):
        np.testing.assert_allclose(value, large[strides.index(stride)], rtol=1e-5, atol=1e-5)
    assert len(part(image)) > 0
    assert max(part.network.facts.strides) == 64
    with pytest.raises(SpecError, match="192 is not a multiple of the largest stride 128"):
        Detector(file, subnet="without-head-p7", size=192, **options)
    assert Detector(file, subnet="without-stage-p7", size=192, **options).height == 192


def test_the_stride_of_an_exact_subnet_is_in_its_metadata(whole):
    facts = ModelFacts.of(subnet_checkpoint(whole, "without-head-p6"))
    assert (max(facts.strides), facts.max_stride) == (32, 128)
    written = facts.to_metadata()
    assert ModelFacts.from_metadata(written, "here") == facts
    del written["max_stride"]  # as files were before
    assert ModelFacts.from_metadata(written, "here").max_stride == 32


@pytest.mark.parametrize("name", ["without-head-p6", "without-stage-p7"])
@pytest.mark.parametrize("form", ["onnx", "openvino"])
def test_the_export_of_a_subnet_is_verified_at_two_sizes(file, name, form, tmp_path, capsys):
    out = tmp_path / ("small.onnx" if form == "onnx" else "small_openvino")
    words = ["export", str(file), "--format", form, "--subnet", name, "--dynamic", "--out", str(out)]
    assert main(words) == 0, capsys.readouterr()
    opened = open_runnable(out)
    assert (opened.facts.verification, opened.facts.provenance[SUBNET]) == ("verified", name)
    assert main(["verify", str(out), "--against", str(file)]) == 0, "of the whole model, verify takes the same part"
    with pytest.raises(UsageError, match="an exported network is fixed; give the checkpoint"):
        open_runnable(out, subnet="without-head-p7")


def test_the_subnet_of_a_checkpoint_can_be_written(whole, file, tmp_path, capsys):
    small = tmp_path / "small.safetensors"
    assert main(["convert", str(file), str(small)]) == 2
    assert "nothing to convert" in capsys.readouterr().err
    assert main(["convert", str(file), str(small), "--subnet", "without-stage-p7", "--report", "summary"]) == 0
    assert load_checkpoint(small).graph == cut(whole.graph, "without-stage-p7").graph
    assert main(["describe", str(small), "--json"]) == 0
    from_file = json.loads(capsys.readouterr().out.partition("{")[2].join(["{", ""]))
    assert main(["describe", str(file), "--subnet", "without-stage-p7", "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == from_file
    assert main(["convert", str(file), str(tmp_path / "x.safetensors"), "--subnet", "without-stage-p9"]) == 2
    assert "no head at P9; it has P3, P4, P5, P6, P7" in capsys.readouterr().err
    assert not (tmp_path / "x.safetensors").exists()


@pytest.mark.parametrize("name", ["without-head-p7", "without-stage-p7", "without-stage-p7-zeros"])
def test_a_subnet_goes_to_darknet_and_back(name, images, tmp_path, capsys):
    large = narrow("yolov4-p7-cfg")
    save_checkpoint(tmp_path / "large.safetensors", large)
    assert main(["convert", str(tmp_path / "large.safetensors"), str(tmp_path / "a.weights"), "--subnet", name]) == 0
    subnet = subnet_checkpoint(large, name)
    found = open_runnable((tmp_path / "a.cfg", tmp_path / "a.weights"), engine="onnxruntime", threads=1)
    expected = open_runnable(subnet, engine="onnxruntime", threads=1)
    for value, wanted in zip(found.run(images), expected.run(images), strict=True):
        np.testing.assert_allclose(value, wanted, rtol=1e-3, atol=1e-4)
