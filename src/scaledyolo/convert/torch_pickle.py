"""Reads foreign PyTorch checkpoints (``.pt``, ``.pth``) without torch and without running anything they name.

Two containers: a zip of ``data.pkl`` and one raw record per storage (torch >= 1.6), and the older run of pickles
followed by the storages. In both, what was saved is either a plain state dict or a whole pickled module, whose
``_parameters``, ``_buffers`` and ``_modules`` give the same names in the same order as ``module.state_dict()``: own
tensors first, then children. Arrays are views on the memory-mapped file, so a file of 500 MB costs little memory;
keep it unchanged while they are in use.
"""

from __future__ import annotations

import mmap
import os
import struct
import sys
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy.typing as npt

from scaledyolo.convert.foreign_values import PlainData
from scaledyolo.convert.pickle_machine import ByteReader, Global, Inert, RefusedPickleError, load_data
from scaledyolo.convert.torch_storage import (
    BUILDERS,
    Segment,
    Storage,
    StorageFile,
    Tensor,
    check_sum,
    is_known,
    storage_from_id,
)
from scaledyolo.errors import FormatError

Container = Literal["zip", "legacy"]
Layout = Literal["module", "state dict"]

LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_PROTOCOL = 1001
# Where training programs of the family keep weights, best first: the moving average is what they evaluate and release.
WEIGHT_KEYS = ("ema", "model", "state_dict", "model_state_dict")
_ZIP_ERRORS = (
    zipfile.BadZipFile, ValueError, OSError, EOFError, OverflowError, NotImplementedError, struct.error
)  # fmt: skip
MAX_MODULES = 20_000
MAX_MODULE_DEPTH = 64
# Names of the standard library that honest checkpoints contain.
_HARMLESS_ROOTS = frozenset(("collections", "_codecs", "copyreg", "pathlib", "argparse", "datetime", "decimal", "enum"))
_HARMLESS_BUILTINS = frozenset(
    ("set", "frozenset", "list", "dict", "tuple", "int", "float", "bool", "str", "bytes", "complex", "object", "slice")
)


@dataclass(frozen=True)
class ForeignModule:
    """One pickled module: its class by name and its plain attributes (``eps``, ``stride``, ``nc``, ...)."""

    kind: str
    attributes: Mapping[str, Any]


@dataclass(frozen=True)
class ForeignCheckpoint:
    """Everything of use in a foreign checkpoint, as plain data.

    Attributes:
        state_dict: tensors by name in the order of the reference's ``state_dict()``; read-only, element types of the
            file (bfloat16 as float32), native byte order.
        container: ``"zip"`` or ``"legacy"``.
        layout: ``"module"`` for a pickled module, ``"state dict"`` for plain tensors.
        source: key of the top-level dict that the weights were taken from (``"ema"``, ``"model"``, ...), or "" if they
            are the top level itself.
        modules: for pickled modules, class and plain attributes by path; ``""`` is the root, whose attributes hold
            ``yaml``, ``names``, ``nc`` and ``stride`` where the reference sets them.
        record: the other top-level entries (``epoch``, ``best_fitness``, ``training_results``, ...), weights and
            optimizer left out.
        unknown_globals: every name in the file that has no meaning to this reader, sorted; none was imported.
    """

    state_dict: dict[str, npt.NDArray[Any]]
    container: Container
    layout: Layout
    source: str
    modules: dict[str, ForeignModule] = field(default_factory=dict)
    record: dict[str, Any] = field(default_factory=dict)
    unknown_globals: tuple[str, ...] = ()

    @property
    def attributes(self) -> Mapping[str, Any]:
        """Plain attributes of the root module; empty for a state dict."""
        return self.modules[""].attributes if "" in self.modules else {}

    @property
    def suspicious_globals(self) -> tuple[str, ...]:
        """Unknown names that point into Python itself, such as ``os.system``: ``torch.load`` might have called them."""
        return tuple(name for name in self.unknown_globals if _is_suspicious(name))


def read_torch_checkpoint(path: str | os.PathLike[str]) -> ForeignCheckpoint:
    """Read the weights and the plain data of a PyTorch checkpoint without torch; nothing named in the file is imported.

    Arguments:
        path: a file written by ``torch.save``, in the zip or in the older container.

    Raises FormatError with one sentence if the file is not such a checkpoint, is damaged, or claims impossible sizes.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if os.fstat(file.fileno()).st_size == 0:
                raise FormatError(f"{path} is empty.")
            data = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise FormatError(f"{path} cannot be opened: {error.strerror or error}.") from error
    try:
        opened = _open_zip(path, data) if data[:4] == b"PK\x03\x04" else _open_legacy(data)
        return _read(opened)
    except RefusedPickleError as error:
        reason = " ".join(str(error).split())
        raise FormatError(f"{path} cannot be read as a PyTorch checkpoint: {reason}.") from error


@dataclass(frozen=True)
class _Opened:
    """A container whose pickle is read and whose storages are located."""

    container: Container
    content: Any
    names: frozenset[Global]
    storages: StorageFile


# Containers


def _open_zip(path: Path, data: mmap.mmap) -> _Opened:
    records = _zip_records(path)
    pickles = [name for name in records if name == "data.pkl" or name.endswith("/data.pkl")]
    if len(pickles) != 1:
        raise RefusedPickleError(f"it is a zip file with {len(pickles) or 'no'} data.pkl inside")
    prefix = pickles[0][: -len("data.pkl")]
    if f"{prefix}constants.pkl" in records:
        raise RefusedPickleError("it is a TorchScript program; save the weights with torch.save(model.state_dict())")
    where = _locate(data, records[pickles[0]])
    byteorder = "little"
    if f"{prefix}byteorder" in records:
        order = _locate(data, records[f"{prefix}byteorder"])
        byteorder = bytes(data[order.start : order.start + min(order.nbytes, 16)]).decode("latin-1").strip()
    if byteorder not in ("little", "big"):
        raise RefusedPickleError(f"its byte order is {byteorder!r}")
    check_sum(data, where, "its data.pkl")
    reader = ByteReader(data, where.start, where.start + where.nbytes)
    content, names = load_data(reader, BUILDERS, storage_from_id)
    folder = f"{prefix}data/"
    segments = {n[len(folder) :]: _locate(data, i) for n, i in records.items() if n.startswith(folder)}
    return _Opened("zip", content, frozenset(names), StorageFile(data, segments, byteorder))


def _zip_records(path: Path) -> dict[str, zipfile.ZipInfo]:
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except _ZIP_ERRORS as error:
        raise RefusedPickleError(f"its zip directory is damaged ({str(error)[:200]})") from error
    records = {entry.filename: entry for entry in entries}
    if len(records) != len(entries):
        raise RefusedPickleError("its zip directory lists a name twice")
    return records


def _locate(data: mmap.mmap, entry: zipfile.ZipInfo) -> Segment:
    """Find the bytes of an uncompressed zip record; torch.save never compresses, so a compressed one is refused."""
    name = entry.filename[:100]
    if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 0x1 or entry.compress_size != entry.file_size:
        raise RefusedPickleError(f"its record {name!r} is compressed or encrypted, which torch.save never does")
    header = data[entry.header_offset : entry.header_offset + 30] if entry.header_offset >= 0 else b""
    if len(header) < 30 or header[:4] != b"PK\x03\x04":
        raise RefusedPickleError(f"its record {name!r} is not where the zip directory says")
    name_length, extra_length = struct.unpack_from("<HH", header, 26)
    start = entry.header_offset + 30 + name_length + extra_length
    if start + entry.file_size > len(data):
        raise RefusedPickleError(f"its record {name!r} is cut off")
    return Segment(start, entry.file_size, entry.CRC)


def _open_legacy(data: mmap.mmap) -> _Opened:
    """Magic number, protocol, system record, object, storage keys; then per key an int64 length and raw elements.

    The elements are little-endian on every machine; the length counts elements of the type first saved for the key.
    """
    reader = ByteReader(data)
    if data[:1] != b"\x80" or load_data(reader, {})[0] != LEGACY_MAGIC:
        raise RefusedPickleError("it is neither a zip file nor begins with the magic number of torch.save")
    protocol, _ = load_data(reader, {})
    if protocol != LEGACY_PROTOCOL:
        raise RefusedPickleError(f"its protocol is {str(protocol)[:40]}, not {LEGACY_PROTOCOL}")
    load_data(reader, {})
    storages: dict[str, Storage] = {}

    def resolve(identifier: object) -> Any:
        if isinstance(identifier, tuple) and len(identifier) == 4 and identifier[0] == "module":
            return identifier[1]  # a class together with its source code
        storage = storage_from_id(identifier)
        storages.setdefault(storage.key, storage)
        return storage

    content, names = load_data(reader, BUILDERS, resolve)
    keys, _ = load_data(reader, {})
    segments = _legacy_segments(data, reader.tell(), keys, storages)
    return _Opened("legacy", content, frozenset(names), StorageFile(data, segments, "little"))


def _legacy_segments(
    data: mmap.mmap, position: int, keys: object, storages: Mapping[str, Storage]
) -> dict[str, Segment]:
    if not isinstance(keys, list) or len(keys) > len(storages):
        raise RefusedPickleError("its list of storages is damaged")
    segments: dict[str, Segment] = {}
    for key in keys:
        storage = storages.get(key) if isinstance(key, str) else None
        length = data[position : position + 8]
        if storage is None or len(length) < 8:
            raise RefusedPickleError("it ends before all storages or lists an unknown one")
        (numel,) = struct.unpack("<q", length)
        nbytes = numel * storage.elements.itemsize
        if numel != storage.root_numel or position + 8 + nbytes > len(data):
            left = max(0, len(data) - position - 8)
            raise RefusedPickleError(
                f"storage {key!r} should have {storage.root_numel} elements, claims {numel}, and {left} bytes are left"
            )
        segments[key] = Segment(position + 8, nbytes)
        position += 8 + nbytes
    return segments


# What was saved


def _read(opened: _Opened) -> ForeignCheckpoint:
    top = _entries(opened.content)
    source, weights = _find_weights(opened.content, top)
    plain = PlainData(opened.storages.array)
    modules: dict[str, ForeignModule] = {}
    tensors: dict[str, npt.NDArray[Any]] = {}
    if _is_module(weights):
        for path, module in _walk(weights):
            modules[path] = _describe_module(module, plain)
            for name, tensor in _own_tensors(path, module):
                tensors[name] = opened.storages.array(tensor)
    else:
        tensors = {
            name: opened.storages.array(value) for name, value in _entries(weights).items() if isinstance(value, Tensor)
        }
    left_out = {*WEIGHT_KEYS, "optimizer"} if source else set(top)
    return ForeignCheckpoint(
        state_dict=tensors,
        container=opened.container,
        layout="module" if modules else "state dict",
        source=source,
        modules=modules,
        record={key: plain.convert(value) for key, value in top.items() if key not in left_out},
        unknown_globals=tuple(sorted(str(name) for name in opened.names if not is_known(name))),
    )


def _entries(value: Any) -> dict[str, Any]:
    """Text-keyed entries of a dict, or of an object that subclasses one."""
    entries = value.entries if isinstance(value, Inert) else value
    return {key: part for key, part in entries.items() if isinstance(key, str)} if isinstance(entries, dict) else {}


def _find_weights(content: Any, top: Mapping[str, Any]) -> tuple[str, Any]:
    if _is_module(content):
        return "", content
    for key in WEIGHT_KEYS:
        if _is_module(top.get(key)) or _is_state_dict(top.get(key)):
            return key, top[key]
    if _is_state_dict(content):
        return "", content
    known = ", ".join(repr(key[:40]) for key in list(top)[:8]) or "none"
    places = ", ".join(WEIGHT_KEYS)
    raise RefusedPickleError(f"it holds no weights under {places} or at its top level (its keys: {known})")


def _is_state_dict(value: Any) -> bool:
    entries = {key: part for key, part in _entries(value).items() if not key.endswith("_extra_state")}
    return bool(entries) and all(isinstance(part, Tensor) for part in entries.values())


def _is_module(value: Any) -> bool:
    if not isinstance(value, Inert):
        return False
    return all(isinstance(value.attributes.get(key), dict) for key in ("_parameters", "_buffers", "_modules"))


def _walk(root: Inert) -> Iterator[tuple[str, Inert]]:
    """Yield every module with its path in depth-first definition order, shared ones once per path."""
    waiting: list[tuple[str, Any, int]] = [("", root, 0)]
    count = 0
    while waiting:
        path, module, depth = waiting.pop()
        count += 1
        if not _is_module(module):
            raise RefusedPickleError(f"its module {path[:100]!r} is not a torch module")
        if depth > MAX_MODULE_DEPTH or count + len(waiting) > MAX_MODULES:
            raise RefusedPickleError("its modules are nested without end")
        yield path, module
        children = [(name, child) for name, child in module.attributes["_modules"].items() if child is not None]
        for name, child in reversed(children):
            waiting.append((_join(path, name), child, depth + 1))


def _own_tensors(path: str, module: Inert) -> Iterator[tuple[str, Tensor]]:
    transient = _members(module.attributes.get("_non_persistent_buffers_set"))
    parameters, buffers = module.attributes["_parameters"], module.attributes["_buffers"]
    persistent = [(name, value) for name, value in buffers.items() if name not in transient]
    for name, value in [*parameters.items(), *persistent]:
        if value is None:
            continue
        full = _join(path, name)
        if not isinstance(value, Tensor):
            kind = value.kind if isinstance(value, Inert) else type(value).__name__
            raise RefusedPickleError(f"its tensor {full[:100]!r} is of the unsupported kind {str(kind)[:100]}")
        yield full, value


def _members(value: Any) -> list[Any]:
    if not isinstance(value, Inert):
        return []
    first = value.args[0] if value.args and isinstance(value.args[0], list) else []
    return [*first, *value.items]


def _join(path: str, name: Any) -> str:
    if not isinstance(name, str) or not name:
        raise RefusedPickleError("a part of its network has no proper name")
    return f"{path}.{name}" if path else name


_TORCH_PRIVATE = frozenset(("dump_patches", "training", "call_super_init"))


def _describe_module(module: Inert, plain: PlainData) -> ForeignModule:
    public = {
        key: value
        for key, value in module.attributes.items()
        if isinstance(key, str) and not key.startswith("_") and key not in _TORCH_PRIVATE
    }
    return ForeignModule(str(module.kind), {key: plain.convert(value) for key, value in public.items()})


def _is_suspicious(name: str) -> bool:
    root, _, rest = name.partition(".")
    if root in ("builtins", "__builtin__"):
        return rest not in _HARMLESS_BUILTINS
    return root in {*sys.stdlib_module_names, "nt", "posix", "commands"} - _HARMLESS_ROOTS
