"""Checkpoints of YOLOv7's networks, against independent torch models of them and the published module numbers."""

from __future__ import annotations

import importlib.util
import re
import sys
from fractions import Fraction
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
onnxruntime = pytest.importorskip("onnxruntime")

from scaledyolo.arch.lower import lower  # noqa: E402
from scaledyolo.arch.scaling import scaled  # noqa: E402
from scaledyolo.arch.spec import ModelSpec  # noqa: E402
from scaledyolo.arch.zoo import find  # noqa: E402
from scaledyolo.checkpoint import load_checkpoint  # noqa: E402
from scaledyolo.convert.conversion import convert  # noqa: E402
from scaledyolo.convert.conversion_request import Options  # noqa: E402
from scaledyolo.convert.elan_layout import deployed, parameter_keys  # noqa: E402
from scaledyolo.convert.fold import fold  # noqa: E402
from scaledyolo.convert.foreign_keys import read_foreign  # noqa: E402
from scaledyolo.convert.key_map import KeyMap, weight_tensors  # noqa: E402
from scaledyolo.convert.onnx_writer import to_onnx  # noqa: E402
from scaledyolo.convert.torch_pickle import ForeignCheckpoint  # noqa: E402
from scaledyolo.errors import ConversionError, UsageError  # noqa: E402
from scaledyolo.model import load_model  # noqa: E402
from scaledyolo.net.network import Network  # noqa: E402

SPEC = importlib.util.spec_from_file_location("reference_yolov7", Path(__file__).with_name("reference_yolov7.py"))
assert SPEC is not None
assert SPEC.loader is not None
reference = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(reference)

pytestmark = pytest.mark.filterwarnings("ignore:Couldn't retrieve source code:UserWarning")

# Entries of the state dict: as it is trained, and deployed.
ENTRIES = {
    "yolov7-tiny": (344, 338),
    "yolov7": (566, 560),
    "yolov7x": (644, 638),
    "yolov7-w6": (668, 628),
    "yolov7-e6": (896, 856),
    "yolov7-d6": (1028, 988),
    "yolov7-e6e": (1490, 1450),
}
FORMS = ("training", "deploy")
PART = 8  # what channels are divided by where networks are computed


def anchors_of(name: str) -> Any:
    spec = find(name)
    return torch.tensor(spec.anchors, device="cpu").view(len(spec.masks), -1, 2)


def reference_model(name: str, form: str, *, nc: int = 3, part: int = 1) -> Any:
    torch.manual_seed(0)
    return reference.model(name, anchors_of(name), nc=nc, training=form == "training", part=part)


def shapes_only(name: str, form: str, nc: int = 80) -> ForeignCheckpoint:
    """What a file of the whole network would give, all zeros and without memory."""
    with torch.device("meta"):
        model = reference_model(name, form, nc=nc)
    zeros = {key: np.broadcast_to(np.float16(0), tuple(value.shape)) for key, value in model.state_dict().items()}
    (key,) = (key for key in zeros if key.endswith("anchor_grid"))
    zeros[key] = anchors_of(name).numpy().reshape(zeros[key].shape)
    return ForeignCheckpoint(zeros, "zip", "state dict", "model")


def small_spec(name: str, form: str) -> ModelSpec:
    spec = find(f"{name}-{form}").with_classes(3)
    return scaled(spec, width=Fraction(1, PART), multiple=1, name=spec.name)


# Which network, and which tensor is what


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.parametrize("form", FORMS)
def test_every_published_network_is_recognised(name: str, form: str) -> None:
    checkpoint = shapes_only(name, form, nc=20)
    assert len(checkpoint.state_dict) == ENTRIES[name][FORMS.index(form)]
    found = read_foreign(checkpoint)
    assert found.spec == find(name).with_classes(20)
    counted = {
        key for key in checkpoint.state_dict if not key.endswith(("num_batches_tracked", "anchors", "anchor_grid"))
    }
    assert found.absorbed | set(found.keys.values()) == counted
    vanishing = {key for key in counted if ".ia." in key or ".im." in key or ".m2." in key}
    assert found.absorbed >= vanishing
    assert bool(found.notes) == (form == "training")


# The tables of the published yaml files: a cell is "<numbers>: <block> <channels in>→<channels out> <<read from>".
_CELL = re.compile(r"(?P<numbers>\d[^:]*): (?P<block>\w[^<]*)(?:<(?P<sources>.*))?")
Shapes = set[tuple[int, ...]]


@pytest.mark.shared
@pytest.mark.parametrize("name", ENTRIES)
def test_module_numbers_and_channels_are_those_of_the_published_yaml_files(name: str, shared: Path) -> None:
    cells = published_cells((shared / "spec" / "models.md").read_text(encoding="utf-8"), name)
    spec = find(f"{name}-training")
    graph = lower(spec)
    found: dict[int, Shapes] = {}
    for parameter, key in parameter_keys(spec, graph).items():
        if len(shape := graph.parameters[parameter]) == 4:
            found.setdefault(int(key.split(".")[1]), set()).add(shape)
    published = {number: shapes for cell in cells for number, shapes in modules_of(*cell[:2]).items()}
    assert sorted(published) == list(range(len(published))), "every module has a row"
    detect = len(published) - 1
    sources = [int(number) for number in cells[-1][2].split(",")]
    published[detect] = {(255, shape[0], 1, 1) for number in sources for shape in published[number]}
    assert {number: shapes for number, shapes in published.items() if shapes} == found


def published_cells(text: str, name: str) -> list[tuple[str, str, str]]:
    """Numbers, block and sources of every module of a network."""
    title = name.removeprefix("yolov7-").replace("yolov7x", "X")
    column, cells = None, []
    for line in text[text.index("## 4.10") :].splitlines():
        row = [cell.strip() for cell in line.strip("|").split("|")]
        if line.startswith("| stride |"):
            titles = [cell.partition(":")[0] for cell in row]
            column = titles.index(title) if title in titles else None
        elif not line.startswith("|"):
            column = None
        elif column is not None and (match := _CELL.fullmatch(row[column])):
            cells.append((match["numbers"], match["block"], match["sources"]))
    return cells


def modules_of(numbers: str, block: str) -> dict[int, Shapes]:
    """Shapes of the weights of each module of a row, an empty set where it has none."""
    ranges = [(int(first), int(last or first)) for first, last in re.findall(r"(\d+)(?:-(\d+))?", numbers)]
    first = ranges[0][0]
    cin, cout = map(int, match.groups()) if (match := re.search(r"(\d+)→(\d+)", block)) else (0, 0)
    if match := re.search(r"Conv (\d)x", block):
        kernel = int(match[1])
        return {first: {(cout, cin, kernel, kernel)} | ({(cout, cin, 1, 1)} if "RepConv" in block else set())}
    if match := re.search(r"ELAN\((\d+),(\d+),(\d+),(\w+)\)", block):
        size = (*map(int, match.groups()[:3]), match[4])
        inner = {
            number: shapes for start, last in ranges if last > start for number, shapes in elan(start, cin, cout, *size)
        }
        return {**inner, **{start: set() for start, last in ranges if last == start}}
    if match := re.search(r"MPDown h=(\d+)", block):
        h = int(match[1])
        cin = cin or h
        narrow: Shapes = {(h, cin, 1, 1)}
        return {first: set(), first + 1: narrow, first + 2: narrow, first + 3: {(h, h, 3, 3)}, first + 4: set()}
    if "DownC" in block:
        return {first: {(cin, cin, 1, 1), (cout // 2, cin, 3, 3), (cout // 2, cin, 1, 1)}}
    if "SPPCSPC" in block:
        square: Shapes = {(cout, cout, 1, 1), (cout, cout, 3, 3)}
        return {first: square | {(cout, cin, 1, 1), (cout, 4 * cout, 1, 1), (cout, 2 * cout, 1, 1)}}
    return {first: set()}


def elan(start: int, cin: int, cout: int, a: int, b: int, n: int, taps: str) -> list[tuple[int, Shapes]]:
    gathered = 2 * a + b * (n if taps == "all" else n // 2)
    row: list[Shapes] = [{(b, a, 3, 3)}, *[{(b, b, 3, 3)}] * (n - 1)]
    shapes: list[Shapes] = [{(a, cin, 1, 1)}, {(a, cin, 1, 1)}, *row, set(), {(cout, gathered, 1, 1)}]
    return list(enumerate(shapes, start))


# What they compute


def randomised(name: str, form: str) -> Any:
    return reference.randomise(reference_model(name, form, part=PART), 7).double()


def assert_close(found: Any, wanted: Any, tolerance: float) -> None:
    for ours, theirs in zip(found, wanted, strict=True):
        scale = float(theirs.abs().max())
        np.testing.assert_allclose(
            np.asarray(ours).reshape(theirs.shape), theirs.numpy(), rtol=0, atol=tolerance * scale
        )


@pytest.mark.parametrize("name", ENTRIES)
@pytest.mark.parametrize("form", FORMS)
def test_converted_networks_compute_the_same(name: str, form: str) -> None:
    model, spec = randomised(name, form), small_spec(name, form)
    tensors = weight_tensors(
        ForeignCheckpoint({key: value.numpy() for key, value in model.state_dict().items()}, "zip", "state dict", "")
    )
    graph = lower(spec)
    found = KeyMap(graph, parameter_keys(spec, graph), spec)
    assert not found.difference(tensors)
    final, weights = deployed(found, found.take(tensors))
    assert not any(mark in key for key in final.graph.parameters for mark in ("implicit", "auxiliary"))
    side = 2 * graph.max_stride
    final_graph = final.graph.with_size(side, side)
    image = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        wanted = model(image)
        network = Network(final_graph).double().eval()
        network.load_state_dict({key: torch.from_numpy(value).double() for key, value in weights.items()})
        assert_close(network(image), wanted, 2e-6)  # weights are stored in float32
    folded, _ = fold(final_graph, weights)
    assert not any(node.name.endswith((".dense", ".pointwise")) for node in folded)
    session = onnxruntime.InferenceSession(to_onnx(final_graph, weights).SerializeToString())
    outputs = session.run(None, {session.get_inputs()[0].name: image.numpy().astype(np.float32)})
    assert_close(outputs, wanted, 1e-4)


def test_fold_merges_a_rep_convolution_to_the_last_bit_but_one() -> None:
    model, spec = randomised("yolov7", "deploy").float(), small_spec("yolov7", "deploy")
    tensors = weight_tensors(
        ForeignCheckpoint({key: value.numpy() for key, value in model.state_dict().items()}, "zip", "state dict", "")
    )
    graph = lower(spec)
    _, folded = fold(graph, KeyMap(graph, parameter_keys(spec, graph), spec).take(tensors))
    for index, level in zip((102, 103, 104), ("p3", "p4", "p5"), strict=True):
        kernel, bias = reference.merged(model.model[index])
        for name, value in (("weight", kernel), ("bias", bias)):
            np.testing.assert_array_max_ulp(folded[f"head.{level}.rep.sum.{name}"], value.astype(np.float32), 1)


def test_the_training_form_itself_computes_the_same() -> None:
    """Implicit vectors as nodes of the graph, before they are folded."""
    model, spec = randomised("yolov7-w6", "training"), small_spec("yolov7-w6", "training")
    graph = lower(spec).with_size(128, 128)
    keys = parameter_keys(spec, graph)
    state = {name: model.state_dict()[key].reshape(graph.parameters[name]) for name, key in keys.items()}
    network = Network(graph).double().eval()
    network.load_state_dict(state)
    image = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        assert_close(network(image), model(image), 1e-12)


# Files


def saved(path: Path, value: Any, model_class: type) -> Path:
    """torch.save, while the classes live where those of the reference do, as far as the file tells."""
    classes = {
        cls for cls in vars(reference).values() if isinstance(cls, type) and cls.__module__ == "reference_yolov7"
    }
    fakes = {"models": ModuleType("models"), "models.common": ModuleType("models.common")}
    for cls in classes:
        cls.__module__ = "models.common"
        setattr(fakes["models.common"], cls.__name__, cls)
    sys.modules.update(fakes)
    try:
        torch.save(value, path)
    finally:
        for module in fakes:
            sys.modules.pop(module)
        for cls in classes:
            cls.__module__ = "reference_yolov7"
    return path


@pytest.mark.parametrize("name", ["yolov7-tiny", pytest.param("yolov7", marks=pytest.mark.slow)])
def test_a_pickled_training_checkpoint_in_half_precision(name: str, tmp_path: Path) -> None:
    model = reference.randomise(reference_model(name, "training"), 3).half()
    record = {"epoch": 299, "best_fitness": 0.4, "model": None, "ema": model, "updates": 9, "optimizer": None}
    path = saved(tmp_path / f"{name}_training.pt", record, type(model))
    report = convert(path, tmp_path / "ours.safetensors")
    checkpoint = load_checkpoint(tmp_path / "ours.safetensors")
    assert checkpoint.spec == find(name).with_classes(3)
    assert checkpoint.class_names == ("thing 0", "thing 1", "thing 2")
    assert checkpoint.graph.norm_eps == 1e-3
    assert any("implicit vectors of 3 levels" in note for note in report.notes)
    assert all(key.endswith(("num_batches_tracked", "anchors", "anchor_grid")) for key in report.left_out)
    image = torch.rand(1, 3, 96, 64, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    network = Network(checkpoint.graph.with_size(96, 64)).double().eval()
    network.load_state_dict({key: torch.from_numpy(value).double() for key, value in checkpoint.weights.items()})
    with torch.no_grad():
        assert_close(network(image), model.double()(image), 2e-6)


def test_another_activation_is_kept(tmp_path: Path) -> None:
    model = reference_model("yolov7-tiny", "deploy").eval()
    for module in model.modules():
        if isinstance(module, reference.Conv):
            module.act = torch.nn.SiLU()
    path = saved(tmp_path / "silu.pt", {"model": model}, type(model))
    convert(path, tmp_path / "ours.safetensors")
    spec = load_checkpoint(tmp_path / "ours.safetensors").spec
    assert spec is not None
    assert (spec.name, spec.activation) == ("yolov7-tiny-swish", "swish")


def changed(name: str, form: str, **tensors: np.ndarray | None) -> ForeignCheckpoint:
    checkpoint = shapes_only(name, form)
    for key, value in tensors.items():
        if value is None:
            checkpoint.state_dict.pop(key)
        else:
            checkpoint.state_dict[key] = value
    return checkpoint


@pytest.mark.parametrize(
    ("tensors", "network", "message"),
    [
        ({"model.102.rbr_1x1.0.weight": None}, None, r"does not fit yolov7 .*rbr_1x1.0.weight' .* is missing"),
        ({"model.105.m.2.weight": None, "model.105.m.2.bias": None}, None, "predicts at 2 levels"),
        ({}, "yolov7x", "does not fit yolov7x"),
        ({}, "yolov7-w6", "predicts at 3 levels, but yolov7-w6 does at 4"),
        ({}, "yolov4-p5", "yolov4-p5 is built otherwise"),
    ],
)
def test_what_does_not_fit(tensors: dict[str, Any], network: str | None, message: str) -> None:
    with pytest.raises(ConversionError, match=message) as caught:
        read_foreign(changed("yolov7", "deploy", **tensors), network=network)
    assert "\n" not in str(caught.value)


def test_fused_files_are_refused() -> None:
    checkpoint = shapes_only("yolov7", "deploy")
    for key in [key for key in checkpoint.state_dict if ".bn." in key]:
        checkpoint.state_dict.pop(key)
    with pytest.raises(ConversionError, match="fused"):
        read_foreign(checkpoint)


def test_darknet_weights_without_their_cfg_are_refused(tmp_path: Path) -> None:
    weights = tmp_path / "yolov7x.weights"
    weights.write_bytes(bytes(64))
    with pytest.raises(ConversionError, match="cfg"):
        convert(weights, tmp_path / "ours.safetensors", Options())
    with pytest.raises(UsageError, match="download yolov7x-pt"):
        load_model("yolov7x")
