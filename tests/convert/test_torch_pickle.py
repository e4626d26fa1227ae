"""Checkpoints written by torch itself, read without torch and compared with ``state_dict()``: names, order, bits."""

from __future__ import annotations

import subprocess
import sys
from collections import OrderedDict, defaultdict
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")
from torch import nn  # noqa: E402

from scaledyolo.convert.torch_pickle import ForeignCheckpoint, read_torch_checkpoint  # noqa: E402
from scaledyolo.errors import FormatError  # noqa: E402

CONTAINERS = ("zip", "legacy")
# The older container looks for the source of each class, which a made-up module cannot give.
pytestmark = pytest.mark.filterwarnings("ignore:Couldn't retrieve source code:UserWarning")


class Conv(nn.Module):
    def __init__(self, channels_in: int, channels: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels_in, channels, 3, bias=False)
        self.bn = nn.BatchNorm2d(channels, eps=1e-4)
        self.act = nn.LeakyReLU(0.1)


class Detect(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.nc = 3
        self.stride = torch.tensor([8.0, 16.0])
        anchors = torch.arange(12.0).view(2, 3, 2)
        self.register_buffer("anchors", anchors)
        self.register_buffer("anchor_grid", anchors.clone().view(2, 1, 3, 1, 1, 2))
        self.register_buffer("cache", torch.ones(5), persistent=False)
        self.register_buffer("absent", None)
        self.m = nn.ModuleList(nn.Conv2d(4, 8, 1) for _ in range(2))


class Model(nn.Module):
    """Own parameters after children in definition order: state_dict() must list them first."""

    def __init__(self) -> None:
        super().__init__()
        self.yaml = {"nc": 3, "anchors": [[13, 17, 31, 25]], "backbone": [[-1, 1, "Conv", [32, 3, 1]]]}
        self.names = ["boat", "fish", "crab"]
        self.hyp = {"lr0": 0.01}
        self.model = nn.Sequential(Conv(3, 4), Conv(4, 4), nn.Identity(), Detect())
        self.shared = self.model[0]
        self.missing = None
        self.register_parameter("nothing", None)
        self.scale = nn.Parameter(torch.tensor(2.5))


CLASSES = {"models.common": (Conv,), "models.yolo": (Detect, Model)}


@pytest.fixture
def reference_modules() -> Iterator[None]:
    """Pretend that the classes live in a package ``models`` that exists only while files are written."""
    names = {name: ModuleType(name) for name in ("models", *CLASSES)}
    home = Model.__module__
    for name, classes in CLASSES.items():
        for cls in classes:
            cls.__module__ = name
            setattr(names[name], cls.__name__, cls)
    sys.modules.update(names)
    yield
    for name in names:
        sys.modules.pop(name, None)
    for classes in CLASSES.values():
        for cls in classes:
            cls.__module__ = home


Save = Callable[[Any, str], Path]


@pytest.fixture
def save(tmp_path: Path, reference_modules: None) -> Save:
    def write(value: Any, container: str) -> Path:
        path = tmp_path / f"{container}.pt"
        torch.save(value, path, _use_new_zipfile_serialization=container == "zip")
        return path

    return write


def make_model(seed: int = 0) -> Model:
    torch.manual_seed(seed)
    model = Model()
    for tensor in model.state_dict().values():
        if tensor.is_floating_point():
            tensor.normal_()
    return model


def assert_same(read: ForeignCheckpoint, expected: dict[str, Any]) -> None:
    assert list(read.state_dict) == list(expected)
    for name, tensor in expected.items():
        array = read.state_dict[name]
        wanted = tensor.detach().float() if tensor.dtype == torch.bfloat16 else tensor.detach()
        assert array.dtype == wanted.numpy().dtype, name
        np.testing.assert_array_equal(array, wanted.numpy(), strict=True)


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("half", [False, True])
def test_pickled_module_gives_its_state_dict(save: Save, container: str, half: bool) -> None:
    model = make_model()
    model = model.half() if half else model
    path = save({"epoch": 299, "best_fitness": np.array([0.5]), "model": model, "optimizer": None}, container)
    read = read_torch_checkpoint(path)
    assert_same(read, model.state_dict())
    assert (read.container, read.layout, read.source) == (container, "module", "model")
    assert read.record["epoch"] == 299
    np.testing.assert_array_equal(read.record["best_fitness"], [0.5])
    assert read.attributes["yaml"] == model.yaml
    assert read.attributes["names"] == model.names
    assert read.attributes["hyp"] == {"lr0": 0.01}
    assert read.modules["model.3"].kind == "models.yolo.Detect"
    np.testing.assert_array_equal(read.modules["model.3"].attributes["stride"], [8, 16])
    assert read.modules["model.0.bn"].attributes["eps"] == 1e-4
    assert "models.yolo.Model" in read.unknown_globals
    assert not any(name.startswith("torch._utils") for name in read.unknown_globals)
    assert read.suspicious_globals == ()


@pytest.mark.parametrize("container", CONTAINERS)
def test_whole_module_without_a_dict(save: Save, container: str) -> None:
    model = make_model()
    read = read_torch_checkpoint(save(model, container))
    assert_same(read, model.state_dict())
    assert (read.layout, read.source, read.record) == ("module", "", {})


@pytest.mark.parametrize("container", CONTAINERS)
def test_moving_average_is_preferred_unless_none(save: Save, container: str) -> None:
    model, average = make_model(1), make_model(2)
    read = read_torch_checkpoint(save({"model": model, "ema": average.half(), "updates": 7}, container))
    assert_same(read, average.state_dict())
    assert read.source == "ema"
    assert read.record == {"updates": 7}
    read = read_torch_checkpoint(save({"model": model, "ema": None}, container))
    assert read.source == "model"
    assert_same(read, model.state_dict())


@pytest.mark.parametrize("container", CONTAINERS)
@pytest.mark.parametrize("key", ["", "model", "state_dict", "ema"])
def test_plain_state_dict(save: Save, container: str, key: str) -> None:
    state = make_model().state_dict()
    value = {"best_fitness": np.float64(0.25), "best_fitness_p": np.float32(2), key: state} if key else state
    read = read_torch_checkpoint(save(value, container))
    assert_same(read, state)
    assert (read.layout, read.source, read.modules) == ("state dict", key, {})
    assert read.record == ({"best_fitness": 0.25, "best_fitness_p": 2.0} if key else {})


@pytest.mark.parametrize("container", CONTAINERS)
def test_optimizer_beside_the_weights(save: Save, container: str) -> None:
    model = make_model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()
    read = read_torch_checkpoint(save({"model": model, "optimizer": optimizer.state_dict()}, container))
    assert_same(read, model.state_dict())


def special_tensors() -> dict[str, Any]:
    base = torch.arange(60.0).view(3, 4, 5)
    with_state = nn.Parameter(torch.rand(3))
    with_state.note = "kept out"
    with_attribute = torch.rand(2, 2)
    with_attribute.note = "kept out"
    floats = (torch.float64, torch.float16, torch.bfloat16)
    integers = (torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8)
    return {
        "base": base,
        "transposed": base.permute(2, 0, 1),
        "strided": base[1:, ::2, 3],
        "one": base[2, 3, 4],
        "expanded": torch.tensor([7.0]).expand(4, 6),
        "empty": torch.empty(0, 3),
        "empty view": base[:, 2:2],
        "zero dimensions": torch.tensor(-3),
        "bool": torch.tensor([[True, False], [False, True]]),
        "parameter": nn.Parameter(torch.rand(2, 3)),
        "channels last": torch.rand(1, 2, 3, 4).to(memory_format=torch.channels_last),
        "parameter with state": with_state,
        "tensor with attribute": with_attribute,
        "tied": base,
        "complex": torch.tensor([1 + 2j]),
        **{str(kind): (torch.randn(7) * 50).to(kind) for kind in (*floats, *integers)},
    }


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_kind_of_tensor(save: Save, container: str) -> None:
    tensors = special_tensors()
    assert_same(read_torch_checkpoint(save(tensors, container)), tensors)


def test_types_that_came_after_the_storage_classes(save: Save) -> None:
    tensors = {str(kind): torch.tensor([1, 2, 250]).to(kind) for kind in (torch.uint16, torch.uint32, torch.uint64)}
    assert_same(read_torch_checkpoint(save(tensors, "zip")), tensors)


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
@pytest.mark.parametrize("container", CONTAINERS)
def test_every_binary_pickle_protocol(tmp_path: Path, reference_modules: None, container: str, protocol: int) -> None:
    model, path = make_model(), tmp_path / "p.pt"
    content = {"model": model, "best": np.float64(1.5), "seen": {1, 2}}
    torch.save(content, path, pickle_protocol=protocol, _use_new_zipfile_serialization=container == "zip")
    read = read_torch_checkpoint(path)
    assert_same(read, model.state_dict())
    assert read.record["best"] == 1.5
    assert sorted(read.record["seen"]) == [1, 2]


def test_big_endian_record(tmp_path: Path) -> None:
    """A file of a big-endian machine: the same records, elements byte by byte reversed, ``byteorder`` says so."""
    values = torch.tensor([1.5, -2.0, 3e-5])
    path = tmp_path / "big.pt"
    writer = torch._C.PyTorchFileWriter(str(path))
    little = tmp_path / "little.pt"
    torch.save({"w": values, "k": torch.arange(3)}, little)
    reader = torch._C.PyTorchFileReader(str(little))
    for record in ("data.pkl", "data/0", "data/1"):
        raw = reader.get_record(record)
        if record != "data.pkl":
            width = len(raw) // 3
            raw = b"".join(raw[i : i + width][::-1] for i in range(0, len(raw), width))
        writer.write_record(record, raw, len(raw))
    writer.write_record("byteorder", b"big", 3)
    writer.write_end_of_file()
    assert_same(read_torch_checkpoint(path), {"w": values, "k": torch.arange(3)})


def test_other_values_become_plain_data(save: Save) -> None:
    counts: Any = defaultdict(list)
    counts["a"].append(1)
    value = {
        "model": {"w": torch.ones(1)},
        "size": torch.Size([2, 3]),
        "device": torch.device("cuda:1"),
        "counts": counts,
        "ordered": OrderedDict(b=1, a=2),
        "path": Path("runs"),
        "small": torch.tensor([4, 5]),
        "table": np.arange(6, dtype=np.int32).reshape(2, 3),
        7: "numbers as keys are left out",
    }
    record = read_torch_checkpoint(save(value, "zip")).record
    assert record["size"] == (2, 3)
    assert record["device"] == "cuda:1"
    assert record["counts"] == {"a": [1]}
    assert list(record["ordered"].items()) == [("b", 1), ("a", 2)]
    assert record["path"].kind == "pathlib.PosixPath"
    assert record["small"].tolist() == [4, 5]
    assert record["table"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert 7 not in record


def test_synchronised_batch_norm_reads_like_batch_norm(save: Save) -> None:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(network)
    read = read_torch_checkpoint(save({"model": synchronised}, "zip"))
    assert_same(read, network.state_dict())
    assert read.modules["1"].kind.endswith("SyncBatchNorm")


def test_arrays_are_read_only_views_of_the_file(save: Save, tmp_path: Path) -> None:
    """A large file must cost about its own size at most: float32 stays on the mapped file."""
    array = read_torch_checkpoint(save({"w": torch.ones(1000)}, "zip")).state_dict["w"]
    assert not array.flags.owndata
    assert not array.flags.writeable


def test_reader_imports_neither_torch_nor_the_classes(save: Save) -> None:
    path = save({"model": make_model()}, "zip")
    code = (
        "import sys\n"
        "from scaledyolo.convert.torch_pickle import read_torch_checkpoint\n"
        f"read = read_torch_checkpoint({str(path)!r})\n"
        "assert len(read.state_dict) > 20\n"
        "assert not [m for m in sys.modules if m.split('.')[0] in ('torch', 'models')]\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_torchscript_is_named(tmp_path: Path) -> None:
    path = tmp_path / "script.pt"
    writer = torch._C.PyTorchFileWriter(str(path))
    for name in ("data.pkl", "constants.pkl"):
        writer.write_record(name, b"\x80\x02N.", 4)
    writer.write_end_of_file()
    with pytest.raises(FormatError, match="TorchScript"):
        read_torch_checkpoint(path)
