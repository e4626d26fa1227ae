"""`scaledyolo convert` as people use it: round trips, reports, and every kind of bad input in one line."""

from __future__ import annotations

import json
import os
import pickle
import resource
import struct
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from scaledyolo.arch.lower import lower
from scaledyolo.arch.zoo import find
from scaledyolo.checkpoint import Checkpoint, load_checkpoint, save_checkpoint
from scaledyolo.cli import main
from scaledyolo.convert.darknet_cfg import read_cfg
from scaledyolo.convert.darknet_weights import write_weights
from scaledyolo.weights import random_weights

CFG = """[net]
width=64
height=64
channels=3
[convolutional]
batch_normalize=1
filters=8
size=3
stride=2
pad=1
activation=leaky
[convolutional]
size=1
stride=1
pad=1
filters=21
activation=linear
[yolo]
mask=0,1,2
anchors=10,14, 23,27, 37,58
classes=2
num=3
nms_kind=greedynms
beta_nms=0.7
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a small Darknet pair ``net.cfg`` and ``net.weights``."""
    monkeypatch.chdir(tmp_path)
    Path("net.cfg").write_text(CFG)
    write_pair("net.weights")
    return tmp_path


def write_pair(name: str, **header: object) -> None:
    graph = read_cfg(CFG).graph
    write_weights(name, graph, random_weights(graph, np.random.default_rng(7)), **header)  # type: ignore[arg-type]


def convert(*arguments: str) -> int:
    return main(["convert", *map(str, arguments)])


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    """The one line on stderr of a conversion that is refused; no file has appeared or changed."""
    before = {path: path.read_bytes() for path in Path.cwd().iterdir() if path.is_file()}
    capsys.readouterr()
    assert convert(*arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith("scaledyolo: ")
    assert captured.err.count("\n") == 1
    assert {path: path.read_bytes() for path in Path.cwd().iterdir() if path.is_file()} == before
    return captured.err


# Round trips


@pytest.mark.parametrize(
    ("header", "num_bytes"), [({}, 20), ({"version": (0, 1, 0), "seen": 32013312}, 16), ({"seen": 2**40}, 20)]
)
def test_round_trip_is_byte_identical(folder: Path, header: dict[str, object], num_bytes: int) -> None:
    write_pair("net.weights", **header)
    original = Path("net.weights").read_bytes()
    assert convert("net.weights", "net.safetensors") == 0
    assert convert("net.safetensors", "back.weights") == 0
    assert Path("back.weights").read_bytes() == original
    assert len(original) == num_bytes + 4 * (8 * 4 + 8 * 27 + 21 + 21 * 8)
    again = read_cfg("back.cfg").graph
    assert again.signature() == read_cfg("net.cfg").graph.signature()
    assert (again.detects[0].nms_kind, again.detects[0].beta_nms) == ("greedynms", 0.7)


@pytest.mark.shared
@pytest.mark.parametrize("name", ["yolo-fastest-1.1", "yolo-fastest-1.1-xl"])
def test_real_weights_round_trip(shared: Path, folder: Path, name: str) -> None:
    source = shared / "weights" / f"{name}.weights"
    assert convert(source, "a.safetensors", "--names", shared / "weights" / "coco.names") == 0
    assert convert("a.safetensors", "a.weights") == 0
    assert Path("a.weights").read_bytes() == source.read_bytes()
    assert read_cfg("a.cfg").graph.signature() == read_cfg(shared / "weights" / f"{name}.cfg").graph.signature()
    assert load_checkpoint("a.safetensors").class_names[16] == "dog"


def test_zoo_network_is_recognised_and_keeps_its_suppression(folder: Path) -> None:
    graph = lower(find("yolov4-tiny").with_classes(2))
    save_checkpoint("t.safetensors", Checkpoint(
        graph=graph, weights=random_weights(graph, np.random.default_rng(1)), class_names=("a", "b"),
        spec=find("yolov4-tiny").with_classes(2), provenance={"nms_kind": "greedynms", "beta_nms": "0.6"},
    ))  # fmt: skip
    assert convert("t.safetensors", "t.weights") == 0
    assert {op.nms_kind for op in read_cfg("t.cfg").graph.detects} == {"greedynms"}
    assert convert("t.weights", "u.safetensors") == 0
    back = load_checkpoint("u.safetensors")
    # A cfg says nothing about momentum; files of Darknet carry Darknet's.
    assert back.spec == replace(find("yolov4-tiny").with_classes(2), norm_momentum=0.01)
    assert back.provenance["nms_kind"] == "greedynms"
    assert convert("u.safetensors", "v.weights") == 0
    assert Path("v.weights").read_bytes() == Path("t.weights").read_bytes()
    assert Path("v.cfg").read_text() == Path("t.cfg").read_text()


def test_official_weights_need_no_cfg(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    graph = lower(find("yolov3-tiny"))
    write_weights("yolov3-tiny.weights", graph, random_weights(graph, np.random.default_rng(1)))
    assert convert("yolov3-tiny.weights", "a.safetensors", "--report", "summary") == 0
    assert "the network is yolov3-tiny of the zoo" in capsys.readouterr().out
    assert load_checkpoint("a.safetensors").spec == find("yolov3-tiny")
    Path("yolov3-tiny.weights").rename("renamed.weights")
    assert "--cfg" in refused(capsys, "renamed.weights", "b.safetensors")
    assert convert("renamed.weights", "b.safetensors", "--network", "yolov3-tiny") == 0


def test_zoo_network_as_cfg(folder: Path) -> None:
    assert convert("yolov4-csp", "csp.cfg") == 0
    assert read_cfg("csp.cfg").graph.signature() == lower(find("yolov4-csp")).signature()


# Reports


def test_report_layer_by_layer(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert("net.weights", "net.safetensors", "--licence", "public domain", "--report", "layers") == 0
    out = capsys.readouterr().out
    assert "section 0, bytes 20-1011" in out
    assert "section 1, bytes 1012-1767" in out
    assert "21x8x1x1" in out
    assert "2 layers, 421 parameters and 16 running statistics, all of them matched" in out
    facts = load_checkpoint("net.safetensors").provenance
    assert facts["licence"] == "public domain"
    assert len(facts["weights_sha256"]) == len(facts["cfg_sha256"]) == 64


def test_a_report_is_a_summary_unless_layers_are_asked_for(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert("net.weights", "net.safetensors") == 0
    out = capsys.readouterr().out
    assert "section 0" not in out
    assert "2 layers, 421 parameters and 16 running statistics, all of them matched" in out


def test_report_as_json(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert convert("net.weights", "net.safetensors", "--report", "json") == 0
    report = json.loads(capsys.readouterr().out)
    assert report["outputs"] == ["net.safetensors"]
    assert report["params"] == 421
    assert [layer["target"] for layer in report["layers"]] == ["layer0", "layer1"]
    assert report["layers"][0]["shape"] == [8, 3, 3, 3]


def test_numbers_that_are_none_are_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    content = bytearray(Path("net.weights").read_bytes())
    content[-8:] = struct.pack("<2f", float("nan"), float("inf"))
    Path("net.weights").write_bytes(content)
    assert convert("net.weights", "net.safetensors", "--report", "summary") == 0
    assert "warning: 2 of the weights are infinite or not a number" in capsys.readouterr().out
    assert convert("net.safetensors", "back.weights") == 0
    assert Path("back.weights").read_bytes() == content


# Bad input


def _write(name: str, content: bytes) -> Callable[[], None]:
    def write() -> None:
        Path(name).write_bytes(content)

    return write


def _change(name: str, change: Callable[[bytes], bytes]) -> Callable[[], None]:
    def write() -> None:
        Path(name).write_bytes(change(Path(name).read_bytes()))

    return write


def _checkpoint(change: Callable[[bytes], bytes]) -> Callable[[], None]:
    def write() -> None:
        convert("net.weights", "bad.safetensors", "--report", "summary")
        Path("bad.safetensors").write_bytes(change(Path("bad.safetensors").read_bytes()))

    return write


def _nothing() -> None:
    pass


HTML = b"<!DOCTYPE html><html><body>Sign in to continue</body></html>"
TO_CHECKPOINT = ("net.weights", "out.safetensors")
BAD = {
    "missing file": (_nothing, ("gone.weights", "out.safetensors"), "gone.weights: no such file"),
    "missing cfg": (_nothing, (*TO_CHECKPOINT, "--cfg", "gone.cfg"), "gone.cfg: cannot be read"),
    "missing names": (_nothing, (*TO_CHECKPOINT, "--names", "gone.names"), "gone.names: No such file"),
    "empty weights": (_write("net.weights", b""), TO_CHECKPOINT, "holds 0 bytes"),
    "page as weights": (_write("net.weights", HTML), TO_CHECKPOINT, "a web page"),
    "short weights": (
        _change("net.weights", lambda b: b[:1500]),
        TO_CHECKPOINT,
        "holds 1500 bytes, but net needs 1768",
    ),
    "long weights": (_change("net.weights", lambda b: b + b"1234"), TO_CHECKPOINT, "4 too many"),
    "other classes": (
        _change("net.cfg", lambda b: b.replace(b"filters=21", b"filters=24").replace(b"classes=2", b"classes=3")),
        TO_CHECKPOINT,
        "fits exactly with 2 classes",
    ),
    "unknown section": (_change("net.cfg", lambda b: b.replace(b"[yolo]", b"[yoyo]")), TO_CHECKPOINT, "'yolo'"),
    "unknown key": (_change("net.cfg", lambda b: b.replace(b"filters=8", b"filtres=8")), TO_CHECKPOINT, "'filters'"),
    "names do not fit": (_write("n.names", b"cat\n"), (*TO_CHECKPOINT, "--names", "n.names"), "1 class names"),
    "empty pt": (_write("x.pt", b""), ("x.pt", "out.safetensors"), "x.pt is empty"),
    "page as pt": (_write("x.pt", HTML), ("x.pt", "out.safetensors"), "cannot be read as a PyTorch checkpoint"),
    "page as checkpoint": (_write("x.safetensors", HTML), ("x.safetensors", "out.weights"), "damaged"),
    "cut checkpoint": (_checkpoint(lambda b: b[:-100]), ("bad.safetensors", "out.weights"), "damaged"),
    "checkpoint of another network": (
        _checkpoint(lambda b: b.replace(b'\\"num_classes\\": 2', b'\\"num_classes\\": 3')),
        ("bad.safetensors", "out.weights"),
        "bad.safetensors: ",
    ),
    "checkpoint with a damaged header record": (
        _checkpoint(lambda b: b.replace(b"0.2.5", b"a.2.5")),
        ("bad.safetensors", "out.weights"),
        "Darknet header is damaged",
    ),
    "unknown destination": (_nothing, ("net.weights", "out.safetensor"), "Did you mean '.safetensors'?"),
    "unknown source": (_write("net.wieghts", b"1"), ("net.wieghts", "out.safetensors"), "Did you mean '.weights'?"),
    "pickle as destination": (_nothing, ("net.weights", "out.pt"), "never written"),
    "nothing to do": (_nothing, ("net.weights", "out.cfg"), "both are Darknet's"),
    "no weights in a cfg": (_nothing, ("net.cfg", "out.weights"), "a cfg holds no weights"),
    "no weights in the zoo": (_nothing, ("yolov4-csp", "out.weights"), "has no weights"),
    "missing folder": (_nothing, ("net.weights", "no/out.safetensors"), "the folder no does not exist"),
    "folder as source": (lambda: Path("x.weights").mkdir(), ("x.weights", "out.safetensors"), "is a folder"),
    "partial weights": (_write("net.conv.1", b"1"), ("net.conv.1", "out.safetensors"), "first 1 sections"),
    "unknown network": (_nothing, (*TO_CHECKPOINT, "--network", "yolov4-tny"), "Did you mean 'yolov4-tiny'?"),
    "other network": (_nothing, (*TO_CHECKPOINT, "--network", "yolov4-tiny"), "needs 24251276"),
    "yaml form": (_nothing, ("yolov4-p5", "out.cfg"), "normalised and activated already"),
    "useless licence": (_checkpoint(bytes), ("bad.safetensors", "out.weights", "--licence", "x"), "no place"),
    "useless cfg": (_checkpoint(bytes), ("bad.safetensors", "out.weights", "--cfg", "net.cfg"), "leave it out"),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_line(folder: Path, capsys: pytest.CaptureFixture[str], case: str) -> None:
    prepare, arguments, message = BAD[case]
    prepare()
    assert message in refused(capsys, *arguments)


def test_existing_files_are_kept_unless_forced(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Path("out.safetensors").write_text("mine")
    assert "--force" in refused(capsys, "net.weights", "out.safetensors")
    assert convert("net.weights", "out.safetensors", "--force") == 0
    Path("other.cfg").write_text("mine")
    assert "other.cfg: exists already" in refused(capsys, "out.safetensors", "other.weights")
    assert not Path("other.weights").exists()
    assert convert("out.safetensors", "other.weights", "--force") == 0
    assert read_cfg("other.cfg").graph.num_classes == 2


def run_limited(folder: Path, num_bytes: int, *arguments: str) -> subprocess.CompletedProcess[str]:
    """The real program, in which no file can grow beyond ``num_bytes``: what a full disk looks like to it."""
    return subprocess.run(
        [sys.executable, "-m", "scaledyolo", "convert", *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (num_bytes, num_bytes)),
    )


@pytest.mark.parametrize(
    ("arguments", "num_bytes"),
    [
        (("net.weights", "out.safetensors"), 1000),
        (("a.safetensors", "out.weights"), 1000),  # the cfg fits, the weights do not
        (("a.safetensors", "out.weights"), 100),
    ],
)
def test_full_disk(folder: Path, arguments: tuple[str, str], num_bytes: int) -> None:
    assert convert("net.weights", "a.safetensors") == 0
    before = sorted(path.name for path in folder.iterdir())
    done = run_limited(folder, num_bytes, *arguments)
    assert done.returncode == 2
    assert done.stderr.startswith("scaledyolo: ")
    assert done.stderr.count("\n") == 1
    assert "File too large" in done.stderr
    assert sorted(path.name for path in folder.iterdir()) == before


# Hostile pickles


class _Command:
    """Pickles as a call of os.system."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, (self.command,)


class _Expression(_Command):
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return eval, (f"__import__('os').system({self.command!r})",)


@pytest.mark.parametrize("kind", [_Command, _Expression])
def test_hostile_checkpoint_runs_nothing(
    folder: Path, capsys: pytest.CaptureFixture[str], kind: type[_Command]
) -> None:
    with zipfile.ZipFile("evil.pt", "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps({"model": kind("touch executed"), "epoch": 1}, 2))
    assert "evil.pt" in refused(capsys, "evil.pt", "out.safetensors")
    assert not Path("executed").exists()


def test_hostile_extra_beside_good_weights_is_reported(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch = pytest.importorskip("torch")
    graph = lower(find("yolov3-tiny").with_classes(1))
    weights = random_weights(graph, np.random.default_rng(1))
    tensors = {name: torch.from_numpy(array) for name, array in weights.items()}
    torch.save({"model": tensors, "hyp": _Command("touch executed")}, "evil.pt")
    assert convert("evil.pt", "out.safetensors", "--report", "summary") == 0
    out = capsys.readouterr().out
    assert "warning: the pickle names" in out
    assert "system" in out
    assert not Path("executed").exists()
    np.testing.assert_array_equal(
        load_checkpoint("out.safetensors").weights["backbone.stem.weight"], weights["backbone.stem.weight"]
    )


def test_converting_does_not_import_torch(folder: Path) -> None:
    code = (
        "import sys; from scaledyolo.cli import main; "
        "assert main(['convert', 'net.weights', 'a.safetensors']) == 0; assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], cwd=folder, check=True, capture_output=True)
