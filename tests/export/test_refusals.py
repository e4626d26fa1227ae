"""What cannot be exported or run is refused in one sentence, and leaves nothing behind."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from scaledyolo.arch.graph import Graph, GraphBuilder
from scaledyolo.arch.ops import Conv, Detect, Reorg
from scaledyolo.checkpoint import Checkpoint, save_checkpoint
from scaledyolo.detector import Detector
from scaledyolo.errors import ConversionError, FormatError, OutputError, UsageError
from scaledyolo.export import export, verify
from scaledyolo.weights import random_weights

pytest.importorskip("openvino")

_FULL_DISK = """
import json, resource, signal, sys
from pathlib import Path
from scaledyolo.checkpoint import load_checkpoint
from scaledyolo.errors import ScaledYoloError
from scaledyolo.export import export
import onnxruntime, onnx, torch  # whatever they write while they are imported
from scaledyolo.engines.openvino import import_openvino
import_openvino()
model, target, messages = load_checkpoint(sys.argv[1]), Path(sys.argv[2]), {}
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
for name in sys.argv[3:]:
    try:
        export(model, target, format=name)
    except ScaledYoloError as error:
        messages[name] = [str(error), [path.name for path in target.iterdir()]]
print(json.dumps(messages))
"""

QUICK_FORMATS = ("onnx", "openvino", "torchscript", "darknet", "ncnn")


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
@pytest.mark.parametrize("names", [QUICK_FORMATS, pytest.param(("torch-export",), marks=pytest.mark.slow)])
def test_a_disk_that_refuses_leaves_nothing(small_model: Checkpoint, tmp_path: Path, names: tuple[str, ...]) -> None:
    """A real refusal, by the kernel, in the middle of a file: also inside the writers of OpenVINO and torch."""
    save_checkpoint(tmp_path / "small.safetensors", small_model)
    target = tmp_path / "target"
    target.mkdir()
    arguments = [sys.executable, "-c", _FULL_DISK, str(tmp_path / "small.safetensors"), str(target), *names]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr[-2000:]
    found = json.loads(result.stdout)
    assert set(found) == set(names)
    for message, left in found.values():
        assert "cannot be written" in message
        assert "nothing was changed" in message
        assert "\n" not in message
        assert left == []


@pytest.mark.parametrize("name", ["onnx", "openvino"])
def test_a_disk_that_fills_up_keeps_the_old_artefact(
    small_model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    """Half of the file is written, then nothing more: what was exported before stays whole, with its report."""
    path = export(small_model, tmp_path, format=name).path
    before = contents(tmp_path)
    write_text = Path.write_text

    def write_half(self: Path, text: str, *args: Any, **options: Any) -> int:
        write_text(self, text[: len(text) // 2], *args, **options)
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def write_half_bytes(self: Path, content: Any) -> int:
        with self.open("wb") as file:
            file.write(bytes(content)[: len(content) // 2])
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", write_half_bytes)
        patch.setattr(Path, "write_text", write_half)
        with pytest.raises(OutputError, match="No space left on device; nothing was changed"):
            export(small_model, path, format=name)
    assert contents(tmp_path) == before
    assert verify(path, small_model, mark=False).passed


def contents(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("full_at", ["mark", "report"])
def test_a_disk_that_fills_up_while_marking(
    small_model: Checkpoint, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, full_at: str
) -> None:
    """The network was written and compared, but the verdict cannot be: there is no artefact without one."""
    import scaledyolo.export.formats as formats
    from scaledyolo.export.report import VerificationReport

    def refuse(*_: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if full_at == "mark":
        broken = formats.replace(formats.FORMATS["onnx"], mark=refuse)
        monkeypatch.setitem(formats.FORMATS, "onnx", broken)
    else:
        monkeypatch.setattr(VerificationReport, "save", refuse)
    with pytest.raises(OutputError, match="No space left on device"):
        export(small_model, tmp_path)
    assert not list(tmp_path.iterdir())


_WITHOUT_PACKAGES = """
import json, sys
for name in ("torch", "openvino", "ncnn", "ai_edge_litert"):
    sys.modules[name] = None  # what Python itself takes for "cannot be imported"
from pathlib import Path
from scaledyolo.checkpoint import load_checkpoint
from scaledyolo.errors import MissingPackageError
from scaledyolo.export import export
model, folder, messages = load_checkpoint(sys.argv[1]), Path(sys.argv[2]), {}
for name in ("openvino", "torchscript", "torch-export", "ncnn", "tflite"):
    try:
        export(model, folder, format=name)
    except MissingPackageError as error:
        messages[name] = str(error)
left = [path.name for path in folder.iterdir()]
report = export(model, folder, format="onnx").verification
print(json.dumps([messages, left, report.passed, report.reference, [check.engine for check in report.checks]]))
"""


def test_missing_packages_are_named_with_their_extra(small_model: Checkpoint, tmp_path: Path) -> None:
    """Nothing optional is installed: one sentence each; ONNX is still written, and verified in ONNX Runtime."""
    save_checkpoint(tmp_path / "small.safetensors", small_model)
    target = tmp_path / "target"
    target.mkdir()
    arguments = [sys.executable, "-c", _WITHOUT_PACKAGES, str(tmp_path / "small.safetensors"), str(target)]
    result = subprocess.run(arguments, capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr[-2000:]
    messages, left, passed, reference, engines = json.loads(result.stdout)
    advice = {
        "openvino": "pip install openvino",
        "torchscript": "pip install 'scaledyolo[train]'",
        "torch-export": "pip install 'scaledyolo[train]'",
        "ncnn": "pip install 'scaledyolo[ncnn]'",
        "tflite": "pip install 'scaledyolo[tflite]'",
    }
    assert messages.keys() == advice.keys()
    for name, message in messages.items():
        assert advice[name] in message
        assert "\n" not in message
    assert left == []
    assert passed
    assert reference.startswith("onnxruntime")
    assert [engine.split()[0] for engine in engines] == ["onnxruntime"]


def with_changed_onnx(source: Path, target: Path, change: Any) -> Path:
    model = onnx.load(source)
    change(model)
    target.write_bytes(model.SerializeToString())
    return target


def unknown_operator(model: onnx.ModelProto) -> None:
    node = next(node for node in model.graph.node if node.op_type == "MaxPool")
    node.op_type = "FrobnicatePool"


def newer_opset(model: onnx.ModelProto) -> None:
    model.opset_import[0].version = 99


@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
def test_an_unknown_operator_is_named_with_its_node(small_model: Checkpoint, tmp_path: Path, engine: str) -> None:
    good = export(small_model, tmp_path / "good.onnx", verified=False).path
    odd = with_changed_onnx(good, tmp_path / "odd.onnx", unknown_operator)
    with pytest.raises(FormatError, match=r"odd\.onnx.*node 'pool'.*FrobnicatePool") as caught:
        Detector(odd, engine=engine)
    assert "\n" not in str(caught.value)


def test_a_newer_opset_is_named(small_model: Checkpoint, tmp_path: Path) -> None:
    good = export(small_model, tmp_path / "good.onnx", verified=False).path
    new = with_changed_onnx(good, tmp_path / "new.onnx", newer_opset)
    with pytest.raises(FormatError, match=r"opset 99"):
        Detector(new, engine="onnxruntime")


def test_a_node_that_a_format_cannot_hold_is_named(tmp_path: Path) -> None:
    build = GraphBuilder()
    x = build.add("stem", Conv(8, 3, (2, 2), 1), Graph.INPUT)
    x = build.add("passthrough", Reorg(2), x)
    x = build.add("raw", Conv(8, norm=False, bias=True), x)
    build.add("region", Detect(((8.0, 8.0),), (0,), 3, "region"), x)
    graph = Graph("old", tuple(build.nodes), 32, 32)
    model = Checkpoint(
        graph=graph, weights=random_weights(graph, np.random.default_rng(0)), class_names=("a", "b", "c")
    )
    with pytest.raises(ConversionError, match="node 'passthrough': Reorg is written for one input size only in ncnn"):
        export(model, tmp_path, format="ncnn", dynamic=True, verified=False)
    assert not list(tmp_path.iterdir())


def test_an_engine_that_cannot_use_a_device_says_so(small_model: Checkpoint, tmp_path: Path) -> None:
    path = export(small_model, tmp_path / "a.onnx", verified=False).path
    with pytest.raises(UsageError, match="openvino engine cannot use 'cuda'"):
        Detector(path, engine="openvino", device="cuda")
    with pytest.raises(UsageError, match="cuda"):
        Detector(path, engine="onnxruntime", device="cuda")
    with pytest.raises(UsageError, match="there is no device 'gpu'"):
        Detector(path, engine="onnxruntime", device="gpu")
    with pytest.raises(UsageError, match="there is no engine 'tensorrt'|runs in"):
        Detector(path, engine="tensorrt")
