"""Checkpoints of the large PyTorch networks, against independent torch models of them."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from scaledyolo.arch.cost import cost  # noqa: E402
from scaledyolo.arch.lower import lower  # noqa: E402
from scaledyolo.arch.zoo import find  # noqa: E402
from scaledyolo.checkpoint import load_checkpoint  # noqa: E402
from scaledyolo.convert.conversion import convert  # noqa: E402
from scaledyolo.convert.conversion_request import Options  # noqa: E402
from scaledyolo.convert.foreign_keys import read_foreign  # noqa: E402
from scaledyolo.convert.torch_pickle import ForeignCheckpoint  # noqa: E402
from scaledyolo.convert.yaml_layout import parameter_keys  # noqa: E402
from scaledyolo.errors import CheckpointError, ConversionError  # noqa: E402

SPEC = importlib.util.spec_from_file_location("reference_networks", Path(__file__).with_name("reference_networks.py"))
assert SPEC is not None
assert SPEC.loader is not None
reference = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(reference)

pytestmark = pytest.mark.filterwarnings("ignore:Couldn't retrieve source code:UserWarning")

P5_STAGES = [(64, 1), (128, 3), (256, 15), (512, 15), (1024, 7)]
LARGE: dict[str, tuple[list[tuple[int, int]], list[int], int]] = {
    "yolov4-p5": (P5_STAGES, [128, 256, 512], 943),
    "yolov4-p6": ([*P5_STAGES, (1024, 7)], [128, 256, 512, 512], 1186),
    "yolov4-p7": (
        [(c * 5 // 4, n) for c, n in [*P5_STAGES, (1024, 7), (1024, 7)]],
        [160, 320, 640, 640, 640],
        1429,
    ),
}

Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Writes a value with torch.save as the reference code would, into the test's folder."""

    def write(value: Any, name: str = "reference.pt", **options: Any) -> Path:
        path: Path = reference.save(value, tmp_path / name, **options)
        return path

    return write


def small_model(nc: int = 3, **options: Any) -> Any:
    torch.manual_seed(1)
    anchors = torch.arange(10.0, 34.0).view(3, 4, 2)
    stages = [(16, 1), (16, 2), (24, 3), (32, 1), (40, 2)]
    return reference.randomise(reference.Model(stages, [8, 16, 24], 2, nc, anchors, **options), 2)


@pytest.mark.parametrize("plain_first", [False, True], ids=["p5-like", "csp-yaml-like"])
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "legacy"])
def test_large_module_computes_the_same(save: Save, tmp_path: Path, plain_first: bool, zipped: bool) -> None:
    model = small_model(plain_first=plain_first, names=["boat", "fish", "crab"])
    image = torch.rand(1, 3, 96, 64)
    content = {"epoch": 299, "best_fitness": np.array([0.5]), "model": model, "optimizer": None}
    path = save(content, _use_new_zipfile_serialization=zipped)
    report = convert(path, tmp_path / "ours.safetensors")
    reference.assert_computes_the_same(tmp_path / "ours.safetensors", model(image), image)
    checkpoint = load_checkpoint(tmp_path / "ours.safetensors")
    assert checkpoint.class_names == ("boat", "fish", "crab")
    assert checkpoint.graph.norm_eps == 1e-3
    assert checkpoint.graph.detects[0].level_anchors == ((10, 11), (12, 13), (14, 15), (16, 17))
    assert checkpoint.provenance["epoch"] == "299"
    assert report.learned == sum(p.numel() for p in model.parameters()) == cost(checkpoint.graph, 96, 64).params
    assert not report.warnings
    assert "models.yolo" not in sys.modules


def test_state_dict_in_half_precision_and_wrapped_for_many_gpus(save: Save, tmp_path: Path) -> None:
    model = small_model().half().float()
    image = torch.rand(1, 3, 64, 64)
    state = {f"module.{key}": value.half() for key, value in model.state_dict().items()}
    report = convert(save({"state_dict": state}), tmp_path / "ours.safetensors")
    checkpoint = load_checkpoint(tmp_path / "ours.safetensors")
    assert all(array.dtype == np.float32 for array in checkpoint.weights.values())
    assert any("read from them" in note for note in report.notes)
    for key, value in model.state_dict().items():
        value.copy_(state[f"module.{key}"])
    reference.assert_computes_the_same(tmp_path / "ours.safetensors", model(image), image)


@pytest.mark.parametrize("name", LARGE)
def test_published_large_networks_are_recognised(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stages, neck, num_entries = LARGE[name]
    spec = find(name)
    anchors = torch.tensor(spec.anchors).view(len(neck), 4, 2)
    with torch.device("meta"):
        model = reference.Model(stages, neck, 3, 80, anchors)
    model.model[-1].anchor_grid = anchors.view(len(neck), 1, 4, 1, 1, 2)
    checkpoint = reference.as_checkpoint(model)
    assert len(checkpoint.state_dict) == num_entries
    monkeypatch.setattr("scaledyolo.convert.key_map.KeyMap.take", lambda self, tensors: {})
    found = read_foreign(checkpoint)
    assert found.spec == spec
    shapes = {key: value.shape for key, value in checkpoint.state_dict.items()}
    assert {name: shapes[key] for name, key in found.keys.items()} == dict(found.graph.parameters)
    counted = {key for key in shapes if not key.endswith(("num_batches_tracked", "anchors", "anchor_grid"))}
    assert set(found.keys.values()) == counted


def test_csp_in_yaml_form_is_recognised() -> None:
    anchors = torch.tensor(find("yolov4-csp").anchors).view(3, 3, 2)
    with torch.device("meta"):
        stages = [(64, 1), (128, 2), (256, 8), (512, 8), (1024, 4)]
        model = reference.Model(stages, [128, 256, 512], 2, 20, anchors, plain_first=True)
    model.model[-1].anchor_grid = anchors.view(3, 1, 3, 1, 1, 2)
    checkpoint = reference.as_checkpoint(model)
    assert len(checkpoint.state_dict) == 660
    assert read_foreign(checkpoint).spec == find("yolov4-csp-yaml").with_classes(20)


# What does not fit


def small_checkpoint() -> ForeignCheckpoint:
    state = {key: value.numpy() for key, value in small_model().state_dict().items()}
    return ForeignCheckpoint(state, "zip", "state dict", "model")


def _drop(key: str) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.pop(key)


def _put(key: str, value: np.ndarray) -> Callable[[dict[str, Any]], None]:
    return lambda state: state.__setitem__(key, value)


def _keep_v7(state: dict[str, Any]) -> None:
    state["model.102.rbr_dense.0.weight"] = state["model.0.conv.weight"]


def _fuse(state: dict[str, Any]) -> None:
    for key in [key for key in state if ".bn." in key]:
        state.pop(key)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_drop("model.6.m.1.cv1.conv.weight"), r"'model\.6\.m\.1\.cv1\.conv\.weight' .* is missing"),
        (_drop("model.6.m.1.cv2.conv.weight"), r"'model\.6\.m\.1\.cv2\.conv\.weight' is missing"),
        (_drop("model.11.cv7.conv.weight"), "cv1 to cv7"),
        (_drop("model.0.conv.weight"), r"'model\.0\.conv\.weight' is missing"),
        (_put("model.8.cv3.weight", np.zeros((3, 3, 1, 1), "f4")), r"shape \(3, 3, 1, 1\), but .*tail"),
        (_put("model.8.bn.bias", np.zeros(32, "i8")), "int64 numbers"),
        (_put("model.8.cv9.weight", np.zeros((3, 3, 1, 1), "f4")), "no place in the network"),
        (_put("model.31.m.0.weight", np.zeros((33, 16, 1, 1), "f4")), "33 filters"),
        (_put("model.31.anchor_grid", np.zeros((3, 1, 4, 1, 1, 2), "f4")), "not positive"),
        (_put("model.31.anchor_grid", np.ones((2, 1, 4, 1, 1, 2), "f4")), "3 levels"),
        (_keep_v7, "it does not fit yolov7"),
        (_fuse, "fused"),
    ],
)
def test_a_large_checkpoint_that_does_not_fit(damage: Callable[[dict[str, Any]], None], message: str) -> None:
    checkpoint = small_checkpoint()
    damage(checkpoint.state_dict)
    with pytest.raises(ConversionError, match=message) as caught:
        read_foreign(checkpoint)
    assert "\n" not in str(caught.value)


def test_unknown_names_of_tensors() -> None:
    state = {"backbone.0.weight": np.zeros((1, 1, 1, 1), "f4")}
    with pytest.raises(ConversionError, match="no layout"):
        read_foreign(ForeignCheckpoint(state, "zip", "state dict", ""))


def test_large_weights_do_not_go_to_darknet(save: Save, tmp_path: Path) -> None:
    with pytest.raises(ConversionError, match="normalised and activated already"):
        convert(save({"model": small_model()}), tmp_path / "ours.weights")
    assert [path.name for path in tmp_path.iterdir()] == ["reference.pt"]


def test_class_names_must_agree(save: Save, tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="2 class names for a network of 3 classes"):
        convert(save({"model": small_model()}), tmp_path / "ours.safetensors", Options(names=["a", "b"]))


def test_our_own_state_dict(save: Save, tmp_path: Path) -> None:
    from scaledyolo.weights import random_weights

    graph = lower(find("yolov3-tiny").with_classes(2))
    weights = random_weights(graph, np.random.default_rng(5))
    network = reference.Network(graph)
    network.load(weights)
    convert(save(network.state_dict()), tmp_path / "ours.safetensors")
    found = load_checkpoint(tmp_path / "ours.safetensors")
    assert found.spec == find("yolov3-tiny").with_classes(2)
    for name, array in weights.items():
        np.testing.assert_array_equal(found.weights[name], array)


@pytest.mark.parametrize(
    ("node", "numbers"),
    [  # module numbers in yolov4-p5.yaml, -p6.yaml, -p7.yaml
        ("backbone.stage5.out", (10, 10, 10)),
        ("neck.top_down.p{top}.lead1", (11, 13, 15)),
        ("neck.top_down.p4.reduce", (12, 19, 26)),
        ("neck.top_down.p4.lateral", (14, 21, 28)),
        ("neck.top_down.p3.out", (21, 28, 35)),
        ("head.p3.conv", (22, 29, 36)),
        ("neck.bottom_up.p4.down", (23, 30, 37)),
        ("neck.bottom_up.p5.main", (29, 36, 43)),
        ("head.p{top}.conv", (30, 41, 52)),
        ("head.p3.predict", (31, 42, 53)),
    ],
)
def test_module_numbers_are_those_of_the_published_yaml_files(node: str, numbers: tuple[int, int, int]) -> None:
    for top, number in zip((5, 6, 7), numbers, strict=True):
        key = parameter_keys(find(f"yolov4-p{top}"))[f"{node.format(top=top)}.weight"]
        assert key.split(".")[:2] == ["model", str(number)]
