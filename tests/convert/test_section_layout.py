"""Checkpoints of PyTorch networks that were built from a cfg, against an independent torch model of them."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from scaledyolo.arch.lower import lower  # noqa: E402
from scaledyolo.arch.ops import Implicit  # noqa: E402
from scaledyolo.arch.zoo import find  # noqa: E402
from scaledyolo.checkpoint import load_checkpoint  # noqa: E402
from scaledyolo.convert.conversion import convert  # noqa: E402
from scaledyolo.convert.conversion_report import ConversionReport  # noqa: E402
from scaledyolo.convert.conversion_request import Options  # noqa: E402
from scaledyolo.convert.foreign_keys import read_foreign  # noqa: E402
from scaledyolo.convert.torch_pickle import ForeignCheckpoint  # noqa: E402
from scaledyolo.errors import ConversionError, UsageError  # noqa: E402

SPEC = importlib.util.spec_from_file_location("reference_networks", Path(__file__).with_name("reference_networks.py"))
assert SPEC is not None
assert SPEC.loader is not None
reference = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(reference)

pytestmark = pytest.mark.filterwarnings("ignore:Couldn't retrieve source code:UserWarning")

Save = Callable[..., Path]


@pytest.fixture
def save(tmp_path: Path) -> Save:
    """Writes a value with torch.save as the reference code would, into the test's folder."""

    def write(value: Any, name: str = "reference.pt", **options: Any) -> Path:
        path: Path = reference.save(value, tmp_path / name, **options)
        return path

    return write


def conv(filters: int, size: int, stride: int = 1, act: str = "mish") -> str:
    shape = f"filters={filters}\nsize={size}\nstride={stride}\npad=1\n"
    return f"[convolutional]\nbatch_normalize=1\n{shape}activation={act}\n"


PREDICT = "[convolutional]\nsize=1\nstride=1\npad=1\nfilters=14\nactivation=linear\n"
# As those of the PyTorch code: linear predictions and scale_x_y=1.05, which that code ignores.
YOLO = "[yolo]\nmask={mask}\nanchors=10,14, 23,27, 37,58, 81,82\nclasses=2\nnum=4\nscale_x_y=1.05\n"
CFG = (
    "[net]\nwidth=64\nheight=64\nchannels=3\n"
    + conv(8, 3)  # 0
    + conv(12, 3, 2)  # 1
    + conv(6, 1, act="leaky")  # 2
    + conv(12, 3)  # 3
    + "[shortcut]\nfrom=-3\nactivation=linear\n"  # 4
    + conv(16, 3, 2)  # 5
    + "[maxpool]\nstride=1\nsize=5\n"  # 6
    + "[route]\nlayers=-1,5\n"  # 7
    + conv(12, 1)  # 8
    + "[upsample]\nstride=2\n"  # 9
    + "[route]\nlayers=-1, 4\n"  # 10
    + conv(10, 3)  # 11
    + "{before}"
    + PREDICT
    + "{after}"
    + YOLO.format(mask="0,1")
    + "[route]\nlayers=8\n"
    + PREDICT
    + YOLO.format(mask="2,3")
)
PLAIN_CFG = CFG.format(before="", after="")
IMPLICIT_CFG = CFG.format(
    before="[implicit_add]\nfilters=10\n[route]\nlayers=11\n[shift_channels]\nfrom=12\n",
    after="[implicit_mul]\nfilters=14\n[route]\nlayers=-2\n[control_channels]\nfrom=-2\n",
)


def cfg_model(text: str) -> Any:
    torch.manual_seed(3)
    return reference.randomise(reference.Darknet(text), 4)


def convert_cfg_built(save: Save, folder: Path, text: str, **options: Any) -> tuple[Any, ConversionReport]:
    model = cfg_model(text)
    (folder / "net.cfg").write_text(text)
    path = save({"epoch": -1, "best_fitness": np.float64(0.5), "model": model.state_dict()})
    return model, convert(path, folder / "ours.safetensors", Options(cfg=folder / "net.cfg", **options))


@pytest.mark.parametrize("text", [PLAIN_CFG, IMPLICIT_CFG], ids=["csp", "yolor"])
def test_cfg_built_network_computes_the_same(save: Save, tmp_path: Path, text: str) -> None:
    model, report = convert_cfg_built(save, tmp_path, text)
    image = torch.rand(1, 3, 64, 96)
    reference.assert_computes_the_same(tmp_path / "ours.safetensors", model(image), image)
    graph = load_checkpoint(tmp_path / "ours.safetensors").graph
    assert {op.decoding for op in graph.detects} == {"sigmoid-squared"}
    assert (graph.norm_eps, graph.resize) == (1e-4, "letterbox")
    assert report.learned == sum(parameter.numel() for parameter in model.parameters())
    assert sum(isinstance(node.op, Implicit) for node in graph) == 2 * (text == IMPLICIT_CFG)


def test_cfg_built_network_goes_to_darknet_with_its_epsilon(save: Save, tmp_path: Path) -> None:
    import cv2

    model, _ = convert_cfg_built(save, tmp_path, PLAIN_CFG)
    report = convert(tmp_path / "ours.safetensors", tmp_path / "darknet.weights")
    assert any("epsilon" in note for note in report.notes)
    image = torch.rand(1, 3, 64, 64)
    other = cv2.dnn.readNetFromDarknet(str(tmp_path / "darknet.cfg"), str(tmp_path / "darknet.weights"))
    other.setInput(image.numpy())
    # The convolution before the first [yolo]: OpenCV ends it with the logistic that new_coords asks for.
    found = other.forward("conv_12")
    np.testing.assert_allclose(found, model(image)[0].numpy(), rtol=0, atol=1e-4)


def test_implicit_vectors_do_not_go_to_darknet(save: Save, tmp_path: Path) -> None:
    convert_cfg_built(save, tmp_path, IMPLICIT_CFG)
    with pytest.raises(ConversionError, match="implicit vector"):
        convert(tmp_path / "ours.safetensors", tmp_path / "darknet.weights")


def test_decoding_can_be_said(save: Save, tmp_path: Path) -> None:
    convert_cfg_built(save, tmp_path, PLAIN_CFG, decoding="exp")
    detects = load_checkpoint(tmp_path / "ours.safetensors").graph.detects
    assert {(op.decoding, op.scale_xy) for op in detects} == {("exp", 1.05)}


def test_wrong_cfg_is_refused(save: Save, tmp_path: Path) -> None:
    path = save(cfg_model(PLAIN_CFG).state_dict())
    (tmp_path / "other.cfg").write_text(PLAIN_CFG.replace("filters=16", "filters=18"))
    with pytest.raises(ConversionError, match=r"'module_list\.5\.Conv2d\.weight' has shape \(16, 12, 3, 3\)"):
        convert(path, tmp_path / "ours.safetensors", Options(cfg=tmp_path / "other.cfg"))
    large = save({"model.0.conv.weight": torch.zeros(8, 3, 3, 3)}, "p5.pt")
    with pytest.raises(ConversionError, match="not numbered by sections of a cfg; leave --cfg out"):
        convert(large, tmp_path / "o.safetensors", Options(cfg=tmp_path / "other.cfg"))
    with pytest.raises(ConversionError, match="does not fit"):
        convert(path, tmp_path / "ours.safetensors")


def zoo_state(name: str) -> ForeignCheckpoint:
    """A state dict without values in the layout of a zoo network's official cfg."""
    from scaledyolo.convert.darknet_cfg import write_cfg

    with torch.device("meta"):
        return reference.as_checkpoint(reference.Darknet(write_cfg(lower(find(name)))))


@pytest.fixture
def no_values(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("scaledyolo.convert.key_map.KeyMap.take", lambda self, tensors: {})


@pytest.mark.shared
def test_official_csp_cfg_without_naming_it(shared: Path, no_values: None) -> None:
    with torch.device("meta"):
        model = reference.Darknet((shared / "darknet_cfg" / "yolov4-csp.cfg").read_text())
    checkpoint = reference.as_checkpoint(model)
    assert len(checkpoint.state_dict) == 678
    found = read_foreign(checkpoint)
    assert found.spec is not None
    assert (found.spec.name, found.spec.norm_eps, found.spec.decoding) == ("yolov4-csp", 1e-4, "sigmoid-squared")
    assert "table8-cd53s-cpanspp-leaky" in found.notes[0]
    by_cfg = read_foreign(checkpoint, cfg=shared / "darknet_cfg" / "yolov4-csp.cfg")
    assert by_cfg.spec is not None
    assert by_cfg.spec.name == "yolov4-csp"
    assert by_cfg.keys == found.keys


def test_networks_that_the_tensors_cannot_tell_apart(no_values: None) -> None:
    state = zoo_state("yolov4-csp-s")
    with pytest.raises(ConversionError, match=r"yolov4-csp-s and yolov4-csp-s-leaky alike.*--network"):
        read_foreign(state)
    found = read_foreign(state, network="yolov4-csp-s-leaky")
    assert found.spec is not None
    assert found.spec.activation == "leaky"
    with pytest.raises(UsageError, match="Did you mean"):
        read_foreign(state, network="yolov4-csp-z")


def test_tiny_needs_to_be_named(no_values: None) -> None:
    """Two readings of its splits exist with the same tensors."""
    state = zoo_state("yolov4-tiny")
    with pytest.raises(ConversionError, match=r"two readings.*--cfg.*--network yolov4-tiny"):
        read_foreign(state)
    found = read_foreign(state, network="yolov4-tiny")
    assert found.spec is not None
    assert (found.spec.name, found.spec.decoding) == ("yolov4-tiny", "sigmoid-squared")


def test_first_half_of_the_channels_by_cfg(save: Save, tmp_path: Path) -> None:
    """The older port's route_lhalf takes the first half, Darknet's group_id=1 the second."""
    text = PLAIN_CFG.replace("[route]\nlayers=-1,5\n", "[route_lhalf]\nlayers=-1,5\n")
    model, _ = convert_cfg_built(save, tmp_path, text)
    image = torch.rand(1, 3, 64, 64)
    reference.assert_computes_the_same(tmp_path / "ours.safetensors", model(image), image)
