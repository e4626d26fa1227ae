"""Hostile and damaged checkpoints: nothing runs, nothing hangs, and every refusal is one FormatError."""

from __future__ import annotations

import contextlib
import io
import pickle
import random
import struct
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from scaledyolo.convert.pickle_machine import MAX_OPCODES
from scaledyolo.convert.torch_pickle import LEGACY_MAGIC, LEGACY_PROTOCOL, read_torch_checkpoint
from scaledyolo.errors import FormatError

# Pieces of pickle protocol 2, written by hand so that streams no honest pickler writes can be made.
START, STOP = b"\x80\x02", b"."
NONE, MARK, TUPLE, DICT, LIST = b"N", b"(", b"t", b"}", b"]"
REDUCE, BUILD, SETITEM, NEWOBJ, PERSISTENT = b"R", b"b", b"s", b"\x81", b"Q"


def text(value: str) -> bytes:
    raw = value.encode()
    return b"X" + struct.pack("<I", len(raw)) + raw


def integer(value: int) -> bytes:
    return pickle.dumps(value, 2)[2:-1]


def name(module: str, attribute: str) -> bytes:
    return f"c{module}\n{attribute}\n".encode()


def many(*values: bytes) -> bytes:
    return MARK + b"".join(values) + TUPLE


def call(function: bytes, *arguments: bytes) -> bytes:
    return function + many(*arguments) + REDUCE


def storage(key: str = "0", numel: int = 4, kind: str = "FloatStorage") -> bytes:
    return many(text("storage"), name("torch", kind), text(key), text("cpu"), integer(numel)) + PERSISTENT


def tensor(
    size: tuple[int, ...] = (4,), stride: tuple[int, ...] = (1,), offset: int = 0, of: bytes | None = None
) -> bytes:
    return call(
        name("torch._utils", "_rebuild_tensor_v2"),
        of or storage(),
        integer(offset),
        many(*map(integer, size)),
        many(*map(integer, stride)),
        b"\x89",
        call(name("collections", "OrderedDict")),
    )


def state_dict(**entries: bytes) -> bytes:
    return DICT + b"".join(text(key) + value + SETITEM for key, value in entries.items())


WEIGHTS = np.arange(4, dtype="<f4").tobytes()


def write_zip(path: Path, body: bytes, records: dict[str, bytes] | None = None, compression: int = 0) -> Path:
    with zipfile.ZipFile(path, "w", compression) as archive:
        archive.writestr("archive/data.pkl", START + body + STOP)
        for record, content in (records or {"data/0": WEIGHTS}).items():
            archive.writestr(f"archive/{record}", content)
    return path


def write_legacy(path: Path, body: bytes, tail: bytes | None = None) -> Path:
    head = b"".join(pickle.dumps(value, 2) for value in (LEGACY_MAGIC, LEGACY_PROTOCOL, {"little_endian": True}))
    keys = pickle.dumps(["0"], 2) + struct.pack("<q", 4) + WEIGHTS if tail is None else tail
    path.write_bytes(head + START + body + STOP + keys)
    return path


def legacy_storage(numel: int = 4, view: bytes = NONE) -> bytes:
    parts = (text("storage"), name("torch", "FloatStorage"), text("0"), text("cpu"), integer(numel), view)
    return many(*parts) + PERSISTENT


def with_extra(extra: bytes) -> bytes:
    """An honest state dict beside a hostile value."""
    return state_dict(extra=extra, model=state_dict(w=tensor()))


def attacks(sentinel: Path) -> dict[str, bytes]:
    """Streams that would create ``sentinel`` if anything they name were run, or that bend the machine."""
    command = text(f"touch {sentinel}")
    write = text(f"open({str(sentinel)!r}, 'w').close()")
    system = name("os", "system")
    getter = call(name("builtins", "getattr"), call(name("builtins", "__import__"), text("os")), text("system"))
    return {
        "reduce os.system": call(system, command),
        "reduce posix.system": call(name("posix", "system"), command),
        "eval": call(name("builtins", "eval"), write),
        "exec of Python 2": call(name("__builtin__", "exec"), write),
        "getattr chain": call(getter, command),
        "dotted name": b"\x80\x04" + text("os") + text("path.os.system") + b"\x93" + many(command) + REDUCE,
        "nested reduce": call(call(call(name("functools", "partial"), system), command)),
        "subprocess": call(name("subprocess", "Popen"), LIST + text("touch") + b"a" + text(str(sentinel)) + b"a"),
        "inst": MARK + command + b"ios\nsystem\n",
        "obj": MARK + system + command + b"o",
        "newobj": system + many(command) + NEWOBJ,
        "newobj_ex": system + many(command) + DICT + b"\x92",
        "setstate": call(name("models.yolo", "Model")) + DICT + text("__setstate__") + system + SETITEM + BUILD,
        "own setitem": call(name("models.yolo", "Model")) + text("__class__") + system + SETITEM,
        "append to object": call(name("models.yolo", "Model")) + MARK + command + b"e",
        "add to set": b"\x8f" + MARK + command + b"\x90",
        "module attribute": call(name("torch", "load"), text(str(sentinel))),
        "codecs": call(name("_codecs", "encode"), command, text("rot13")),
        "reconstructor": call(name("copyreg", "_reconstructor"), system, name("builtins", "object"), NONE),
        "rebuild from type": call(
            name("torch._tensor", "_rebuild_from_type_v2"), system, name("torch", "Tensor"), many(command), NONE
        ),
        "ordered dict of calls": call(name("collections", "OrderedDict"), LIST + many(system, command) + b"a"),
    }


REFUSED_BODIES: dict[str, bytes] = {
    "extension registry 1": with_extra(b"\x82\x01"),
    "extension registry 4": with_extra(b"\x84\x01\x00\x00\x00"),
    "out-of-band buffer": with_extra(b"\x97"),
    "persistent text": with_extra(b"Pstorage\n"),
    "persistent number": with_extra(integer(5) + PERSISTENT),
    "persistent junk": with_extra(many(text("storage"), integer(1)) + PERSISTENT),
    "persistent other": with_extra(many(*[text("module")] * 5) + PERSISTENT),
    "storage of os.system": with_extra(
        many(text("storage"), name("os", "system"), text("0"), text("cpu"), integer(4)) + PERSISTENT
    ),
    "build on a name": with_extra(name("os", "system") + DICT + BUILD),
    "call a string": with_extra(text("os.system") + many() + REDUCE),
    "arguments no tuple": with_extra(name("os", "system") + LIST + REDUCE),
    "append to a name": with_extra(name("os", "system") + NONE + b"a"),
    "set an item of a tuple": with_extra(many() + NONE + NONE + SETITEM),
    "list as key": DICT + LIST + NONE + SETITEM,
    "huge key": DICT + integer(2**70) + NONE + SETITEM,
    "name not text": with_extra(NONE + NONE + b"\x93"),
    "empty stack": b"0000",
    "unknown memo": b"h\x07",
    "no mark": NONE + TUPLE,
    "two values": NONE + NONE,
    "unknown opcode": b"\xff",
    "endless line": b"V" + b"a" * 100_000,
    "long that lies": b"\x8b\xff\xff\xff\x7f1",
    "bytes that lie": b"\x8e" + b"\xff" * 7 + b"\x7f",
    "text that lies": b"X\xff\xff\xff\xffabc",
    "number with 100,000 digits": b"I" + b"9" * 10_000 + b"\n",
    "no weights": state_dict(epoch=integer(3)),
    "nothing": NONE,
    "weights that are names": state_dict(model=state_dict(w=name("os", "system"))),
    "size and stride differ": state_dict(w=tensor((2, 2), (1,))),
    "negative size": state_dict(w=tensor((-1,), (1,))),
    "negative stride": state_dict(w=tensor((2,), (-1,))),
    "negative offset": state_dict(w=tensor((2,), (1,), -1)),
    "behind the storage": state_dict(w=tensor((4,), (1,), 1)),
    "stride behind the storage": state_dict(w=tensor((2,), (4,))),
    "overflow in 64 bits": state_dict(w=tensor((2**32, 2**32), (2**32, 1))),
    "overflow to zero": state_dict(w=tensor((2**40, 2**40), (0, 0))),
    "size beyond any memory": state_dict(w=tensor((2**62,), (1,))),
    "expanded beyond reason": state_dict(w=tensor((2**30,), (0,))),
    "100 dimensions": state_dict(w=tensor((1,) * 100, (1,) * 100)),
    "truth as size": state_dict(
        w=call(name("torch._utils", "_rebuild_tensor"), storage(), integer(0), many(b"\x88"), many(b"\x88"))
    ),
    "storage too long": state_dict(w=tensor(of=storage(numel=2**40))),
    "storage longer than its record": state_dict(w=tensor(of=storage(numel=5))),
    "storage shorter than its record": state_dict(w=tensor((2,), of=storage(numel=2))),
    "storage missing": state_dict(w=tensor(of=storage("1"))),
    "storage outside": state_dict(w=tensor(of=storage("../../etc/passwd"))),
    "conjugated": state_dict(
        w=call(
            name("torch._utils", "_rebuild_tensor_v2"),
            *(storage(), integer(0), many(integer(4)), many(integer(1)), b"\x89", NONE, state_dict(conj=b"\x88")),
        )
    ),
    "tensor without storage": state_dict(w=call(name("torch._utils", "_rebuild_tensor_v2"), NONE, NONE, NONE, NONE)),
    "tensor without arguments": state_dict(w=call(name("torch._utils", "_rebuild_tensor_v2"))),
    "parameter without data": state_dict(w=call(name("torch._utils", "_rebuild_parameter"))),
}


def module(parameters: bytes = DICT, buffers: bytes = DICT, modules: bytes = DICT) -> bytes:
    state = state_dict(_parameters=parameters, _buffers=buffers, _modules=modules)
    return call(name("models.yolo", "Model")) + state + BUILD


def module_cycle() -> bytes:
    """A module that is its own child."""
    state = state_dict(_parameters=DICT, _buffers=DICT, _modules=state_dict(a=b"h\x01"))
    return call(name("m", "M")) + b"q\x01" + state + BUILD


def module_bomb(levels: int = 40) -> bytes:
    """Every level holds the one below twice: 2**40 modules in a few kilobytes."""
    body = module()
    for level in range(levels):
        body += b"q" + bytes([level]) + b"0"
        body += module(modules=state_dict(a=b"h" + bytes([level]), b=b"h" + bytes([level])))
    return body


REFUSED_BODIES |= {
    "module cycle": module_cycle(),
    "module bomb": module_bomb(),
    "module without name": module(modules=DICT + integer(1) + module() + SETITEM),
    "child that is none": module(modules=state_dict(a=text("child"))),
    "parameter that is none": module(parameters=state_dict(w=call(name("os", "system"), text("true")))),
}


@pytest.mark.parametrize("case", attacks(Path("x")))
@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_attack_is_inert(tmp_path: Path, case: str, write: Callable[[Path, bytes], Path]) -> None:
    sentinel = tmp_path / "ran"
    body = with_extra(attacks(sentinel)[case])
    if write is write_legacy:
        body = body.replace(storage(), legacy_storage())
    read = read_torch_checkpoint(write(tmp_path / "attack.pt", body))
    assert not sentinel.exists()
    np.testing.assert_array_equal(read.state_dict["w"], np.arange(4, dtype=np.float32))


@pytest.mark.parametrize("case", REFUSED_BODIES)
def test_impossible_content_is_refused_in_one_sentence(tmp_path: Path, case: str) -> None:
    path = write_zip(tmp_path / "bad.pt", REFUSED_BODIES[case])
    started = time.monotonic()
    with pytest.raises(FormatError) as caught:
        read_torch_checkpoint(path)
    assert time.monotonic() - started < 5
    message = str(caught.value)
    assert str(path) in message
    assert "\n" not in message
    assert len(message) < 600 + len(str(path))


def test_dangerous_names_are_reported(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "attack.pt", with_extra(call(name("os", "system"), text("true"))))
    read = read_torch_checkpoint(path)
    assert read.unknown_globals == ("os.system",)
    assert read.suspicious_globals == ("os.system",)


def test_nothing_runs_under_an_audit_hook(tmp_path: Path) -> None:
    """A separate interpreter records what Python itself reports: no process, no code, no import, no file but ours."""
    sentinel = tmp_path / "ran"
    paths = [write_zip(tmp_path / f"{i}.pt", with_extra(body)) for i, body in enumerate(attacks(sentinel).values())]
    code = """
import sys, zipfile, zlib
from pathlib import Path
from scaledyolo.convert.torch_pickle import read_torch_checkpoint
paths = sys.argv[1:]
read_torch_checkpoint(paths[0])
bad = ("os.system", "os.exec", "os.posix_spawn", "subprocess.Popen", "exec", "compile", "import", "pickle.find_class",
       "os.fork", "socket.connect", "os.remove", "shutil.rmtree", "ctypes.dlopen")
seen = []
def hook(event, args):
    if event in bad or (event == "open" and str(args[0]) not in paths):
        seen.append((event, str(args[:2])))
sys.addaudithook(hook)
for path in paths:
    read_torch_checkpoint(path)
assert not seen, seen
assert "torch" not in sys.modules and "pickle" not in sys.argv
"""
    subprocess.run([sys.executable, "-c", code, *map(str, paths)], check=True, capture_output=True, text=True)
    assert not sentinel.exists()


def test_state_bound_to_a_name_does_not_leak_into_the_next_file(tmp_path: Path) -> None:
    """Two objects of one class in one file, and two files, share nothing."""
    poisoned = many(call(name("m", "M")) + state_dict(a=integer(1)) + BUILD, call(name("m", "M")))
    first = read_torch_checkpoint(write_zip(tmp_path / "a.pt", with_extra(poisoned)))
    second = read_torch_checkpoint(write_zip(tmp_path / "b.pt", with_extra(call(name("m", "M")))))
    assert second.record["extra"].kind == "m.M"
    assert [part.kind for part in first.record["extra"]] == ["m.M", "m.M"]


@pytest.mark.parametrize("opening", [b"]", b"}" + text("a"), b"(", name("m", "M") + b"("])
def test_deep_nesting_neither_recurses_nor_crashes(tmp_path: Path, opening: bytes) -> None:
    """100,000 levels of lists, dicts, tuples and objects: either refused or cut off, never a RecursionError."""
    closing = {b"]": b"a", b"}" + text("a"): SETITEM, b"(": TUPLE, name("m", "M") + b"(": TUPLE + REDUCE}[opening]
    body = opening * 100_000 + NONE + closing * 100_000
    read = read_torch_checkpoint(write_zip(tmp_path / "deep.pt", with_extra(body)))
    assert "w" in read.state_dict


def test_repeated_halves_do_not_explode(tmp_path: Path) -> None:
    """x = (x, x) forty times is 2**40 values to whoever walks it; as a key it would be hashed 2**40 times."""
    doubled = many() + b"2\x86" * 60
    assert "w" in read_torch_checkpoint(write_zip(tmp_path / "value.pt", with_extra(doubled))).state_dict
    with pytest.raises(FormatError, match="as a key"):
        read_torch_checkpoint(write_zip(tmp_path / "key.pt", DICT + doubled + NONE + SETITEM))


def test_endless_stream_is_cut_off(tmp_path: Path) -> None:
    with pytest.raises(FormatError, match="operations"):
        read_torch_checkpoint(write_zip(tmp_path / "long.pt", b"N0" * (MAX_OPCODES // 2 + 1)))


def test_memo_index_allocates_nothing(tmp_path: Path) -> None:
    body = with_extra(NONE + b"r\xff\xff\xff\x7f")
    assert "w" in read_torch_checkpoint(write_zip(tmp_path / "memo.pt", body)).state_dict


# Containers


def test_compressed_record_is_refused(tmp_path: Path) -> None:
    records = {"data/0": bytes(2**22)}
    path = write_zip(tmp_path / "bomb.pt", state_dict(w=tensor()), records, zipfile.ZIP_DEFLATED)
    with pytest.raises(FormatError, match="compressed"):
        read_torch_checkpoint(path)


def test_damaged_weights_are_noticed(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "w.pt", state_dict(w=tensor()))
    path.write_bytes(path.read_bytes().replace(WEIGHTS, WEIGHTS[:-1] + b"\x41"))
    with pytest.raises(FormatError, match="checksum"):
        read_torch_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "empty"),
        (b"<html>", "neither a zip"),
        (b"PK\x03\x04 and then nothing", "zip directory"),
        (pickle.dumps({"a": 1}), "neither a zip|magic|damaged"),
        (pickle.dumps(LEGACY_MAGIC, 2) + pickle.dumps(7, 2), "protocol"),
        (pickle.dumps(LEGACY_MAGIC, 2), "damaged"),
    ],
)
def test_wrong_containers(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "x.pt"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=message):
        read_torch_checkpoint(path)


def test_missing_file_and_folder(tmp_path: Path) -> None:
    for path in (tmp_path / "none.pt", tmp_path):
        with pytest.raises(FormatError, match="cannot be opened"):
            read_torch_checkpoint(path)


@pytest.mark.parametrize("count", [0, 2])
def test_zip_needs_exactly_one_pickle(tmp_path: Path, count: int) -> None:
    path = tmp_path / "x.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("readme", "")
        for index in range(count):
            archive.writestr(f"{index}/data.pkl", b"\x80\x02N.")
    with pytest.raises(FormatError, match="data.pkl"):
        read_torch_checkpoint(path)


def test_unknown_byte_order(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "x.pt", state_dict(w=tensor()), {"data/0": WEIGHTS, "byteorder": b"middle"})
    with pytest.raises(FormatError, match="byte order"):
        read_torch_checkpoint(path)


LEGACY_BODY = state_dict(w=tensor(of=legacy_storage()))


@pytest.mark.parametrize(
    "tail",
    [
        b"",
        pickle.dumps(["0"], 2),
        pickle.dumps(["0"], 2) + struct.pack("<q", 4) + WEIGHTS[:-1],
        pickle.dumps(["0"], 2) + struct.pack("<q", 3) + WEIGHTS,
        pickle.dumps(["0"], 2) + struct.pack("<q", -1) + WEIGHTS,
        pickle.dumps(["0"], 2) + struct.pack("<q", 2**62) + WEIGHTS,
        pickle.dumps(["9"], 2) + struct.pack("<q", 4) + WEIGHTS,
        pickle.dumps([], 2),
        pickle.dumps("0", 2),
        pickle.dumps([["0"]], 2),
    ],
)
def test_legacy_storages_that_do_not_fit(tmp_path: Path, tail: bytes) -> None:
    with pytest.raises(FormatError):
        read_torch_checkpoint(write_legacy(tmp_path / "x.pt", LEGACY_BODY, tail))


def test_legacy_view_of_a_storage(tmp_path: Path) -> None:
    view = many(text("view"), integer(1), integer(2))
    body = state_dict(w=tensor((2,), of=legacy_storage(view=view)))
    read = read_torch_checkpoint(write_legacy(tmp_path / "view.pt", body))
    assert read.state_dict["w"].tolist() == [1, 2]
    outside = state_dict(w=tensor((2,), of=legacy_storage(view=many(text("view"), integer(3), integer(2)))))
    with pytest.raises(FormatError, match="ends behind"):
        read_torch_checkpoint(write_legacy(tmp_path / "view.pt", outside))


def assert_reads_or_refuses(path: Path) -> None:
    """Any other exception than FormatError passes through and fails the test."""
    with contextlib.suppress(FormatError):
        read = read_torch_checkpoint(path)
        assert all(isinstance(array, np.ndarray) for array in read.state_dict.values())


def _honest(write: Callable[[Path, bytes], Path], path: Path) -> bytes:
    of = storage() if write is write_zip else legacy_storage()
    inner = module(parameters=state_dict(w=tensor(of=of)), buffers=state_dict(b=tensor((2,), offset=2, of=of)))
    model = module(modules=state_dict(m=inner))
    write(path, state_dict(epoch=integer(3), names=LIST + text("cat") + b"a", model=model))
    return path.read_bytes()


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_truncation_anywhere_is_refused(tmp_path: Path, write: Callable[[Path, bytes], Path]) -> None:
    path = tmp_path / "x.pt"
    whole = _honest(write, path)
    assert list(read_torch_checkpoint(path).state_dict) == ["m.w", "m.b"]
    for length in range(len(whole)):
        path.write_bytes(whole[:length])
        with pytest.raises(FormatError):
            read_torch_checkpoint(path)


@pytest.mark.parametrize("write", [write_zip, write_legacy])
def test_random_damage_reads_or_raises_format_error(tmp_path: Path, write: Callable[[Path, bytes], Path]) -> None:
    path = tmp_path / "x.pt"
    whole = _honest(write, path)
    generator = random.Random(20)
    started = time.monotonic()
    for _ in range(1500):
        damaged = bytearray(whole)
        for _ in range(generator.choice((1, 1, 2, 5, 20))):
            damaged[generator.randrange(len(damaged))] = generator.randrange(256)
        path.write_bytes(damaged)
        assert_reads_or_refuses(path)
    assert time.monotonic() - started < 20


@pytest.mark.parametrize("seed", range(4))
def test_random_opcodes_read_or_raise_format_error(tmp_path: Path, seed: int) -> None:
    """Streams of valid opcodes in random order reach states that flipped bytes rarely do."""
    generator = random.Random(seed)
    pieces = [
        *(NONE, MARK, TUPLE, DICT, LIST, REDUCE, BUILD, SETITEM, NEWOBJ, PERSISTENT, b"ios\nsystem\n", b"q\x01"),
        *(b"a", b"e", b"u", b"l", b"d", b"0", b"1", b"2", b"\x85", b"\x86", b"\x87", b"o", b"h\x01", b"\x94"),
        *(b"\x8f", b"\x90", b"\x91"),
        *(text("model"), text("storage"), integer(1), storage(), tensor(), name("os", "system"), b"\x93", b"\x92"),
        *(name("torch._utils", "_rebuild_parameter"), name("collections", "OrderedDict"), name("torch", "Size")),
        name("copyreg", "_reconstructor"),
    ]  # fmt: skip
    path = tmp_path / "x.pt"
    for _ in range(250):
        body = b"".join(generator.choices(pieces, k=generator.randrange(2, 30)))
        assert_reads_or_refuses(write_zip(path, with_extra(body) if generator.random() < 0.5 else body))


def test_hand_made_streams_are_what_pickle_understands() -> None:
    """The helpers of this file write real pickles: the standard unpickler reads back a harmless one."""
    body = START + state_dict(a=many(integer(1), text("x")), b=LIST + integer(-2) + b"a") + STOP
    assert pickle.load(io.BytesIO(body)) == {"a": (1, "x"), "b": [-2]}


@pytest.mark.parametrize("case", ["reduce os.system", "eval", "getattr chain", "inst", "obj"])
def test_attacks_have_teeth(tmp_path: Path, case: str) -> None:
    """The standard unpickler does run these streams, so an absent sentinel above means something."""
    sentinel = tmp_path / "ran"
    pickle.loads(START + attacks(sentinel)[case] + STOP)
    assert sentinel.exists()
