"""Tensors of a PyTorch checkpoint as NumPy views on the mapped file: storages, views, element types, bounds.

A tensor in a checkpoint is (storage, offset, size, stride), counted in elements; storages may be shared. Everything
is checked in Python integers before NumPy sees it, because a file may claim any number.
"""

from __future__ import annotations

import math
import mmap
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from scaledyolo.convert.pickle_machine import Builder, Global, Inert, RefusedPickleError

MAX_DIMENSIONS = 32
MAX_EXTENT = 2**48
# Views may repeat elements (stride 0, shared storages), but weights have no use for many times the bytes of their file.
MAX_EXPANSION = 16
FREE_EXPANSION_BYTES = 64 * 2**20


@dataclass(frozen=True)
class ElementType:
    """How one element lies in the file: ``code`` is NumPy's kind and width, ``name`` that of torch."""

    name: str
    code: str
    itemsize: int


_ELEMENT_TYPES = {
    name: ElementType(name, code, itemsize)
    for name, code, itemsize in (
        ("float64", "f8", 8),
        ("float32", "f4", 4),
        ("float16", "f2", 2),
        ("bfloat16", "u2", 2),
        ("complex64", "c8", 8),
        ("complex128", "c16", 16),
        ("int64", "i8", 8),
        ("int32", "i4", 4),
        ("int16", "i2", 2),
        ("int8", "i1", 1),
        ("uint64", "u8", 8),
        ("uint32", "u4", 4),
        ("uint16", "u2", 2),
        ("uint8", "u1", 1),
        ("bool", "u1", 1),
    )
}
_STORAGE_NAMES = {
    "DoubleStorage": "float64",
    "FloatStorage": "float32",
    "HalfStorage": "float16",
    "BFloat16Storage": "bfloat16",
    "ComplexFloatStorage": "complex64",
    "ComplexDoubleStorage": "complex128",
    "LongStorage": "int64",
    "IntStorage": "int32",
    "ShortStorage": "int16",
    "CharStorage": "int8",
    "ByteStorage": "uint8",
    "BoolStorage": "bool",
    "UntypedStorage": "uint8",
}
STORAGE_TYPES: Mapping[str, ElementType] = {
    f"{module}.{storage}": _ELEMENT_TYPES[name]
    for storage, name in _STORAGE_NAMES.items()
    for module in ("torch", "torch.cuda", "torch.storage")
}


@dataclass(frozen=True)
class Storage:
    """A run of elements named by ``key``; a legacy view starts ``first`` elements into it."""

    key: str
    elements: ElementType
    numel: int
    first: int = 0
    root_numel: int = 0


@dataclass(frozen=True, eq=False)
class Tensor:
    """A view on a storage, counted in its own ``elements``, which torch's rebuild v3 sets apart from the storage's."""

    storage: Storage
    offset: int
    size: tuple[int, ...]
    stride: tuple[int, ...]
    elements: ElementType

    @property
    def nbytes(self) -> int:
        """Bytes of the dense tensor."""
        return math.prod(self.size) * self.elements.itemsize


def _is_count(value: object, limit: int = MAX_EXTENT) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value <= limit


def storage_from_id(identifier: object) -> Storage:
    """Read torch's persistent id ``('storage', type, key, location, numel[, view])``."""
    proper = isinstance(identifier, tuple) and len(identifier) in (5, 6)
    if not isinstance(identifier, tuple) or not proper or identifier[0] not in ("storage", b"storage"):
        raise RefusedPickleError("its pickle refers to outside data that is no tensor storage")
    kind, key, numel = identifier[1], identifier[2], identifier[4]
    elements = STORAGE_TYPES.get(str(kind)) if isinstance(kind, Global) else None
    if elements is None:
        raise RefusedPickleError(f"it holds a storage of type {str(kind)[:100] if isinstance(kind, Global) else '?'}")
    if isinstance(key, bytes):
        key = key.decode("latin-1")
    if not isinstance(key, str) or not _is_count(numel):
        raise RefusedPickleError("a tensor storage has no proper name or length")
    view = identifier[5] if len(identifier) == 6 else None
    if view is None:
        return Storage(key, elements, numel, 0, numel)
    if not isinstance(view, tuple) or len(view) != 3 or not (_is_count(view[1]) and _is_count(view[2])):
        raise RefusedPickleError(f"the view on storage {key!r} is not described properly")
    if view[1] + view[2] > numel:
        raise RefusedPickleError(f"the view on storage {key!r} ends behind it")
    return Storage(key, elements, view[2], view[1], numel)


def _extents(values: object, what: str) -> tuple[int, ...]:
    if not isinstance(values, tuple | list) or len(values) > MAX_DIMENSIONS or not all(map(_is_count, values)):
        raise RefusedPickleError(f"a tensor has an impossible {what}")
    return tuple(values)


def _tensor(args: tuple[Any, ...], elements: ElementType | None = None) -> Tensor:
    if len(args) < 4 or not isinstance(args[0], Storage) or not _is_count(args[1]):
        raise RefusedPickleError("a tensor is not described properly")
    storage, offset = args[0], args[1]
    size, stride = _extents(args[2], "size"), _extents(args[3], "stride")
    elements = elements or storage.elements
    if len(size) != len(stride):
        raise RefusedPickleError(f"a tensor has {len(size)} sizes but {len(stride)} strides")
    tensor = Tensor(storage, offset, size, stride, elements)
    reach = offset if 0 in size else offset + 1 + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    if 0 not in size and reach * elements.itemsize > storage.numel * storage.elements.itemsize:
        raise RefusedPickleError(
            f"a tensor of size {list(size)} ends at {reach} in storage {storage.key!r} of {storage.numel} elements"
        )
    return tensor


def _rebuild_v2(args: tuple[Any, ...]) -> Tensor:
    if len(args) > 6 and args[6]:
        raise RefusedPickleError("a tensor is stored conjugated or negated, which weights never are")
    return _tensor(args)


def _rebuild_v3(args: tuple[Any, ...]) -> Tensor | Inert:
    name = args[6] if len(args) > 6 else None
    if not isinstance(name, Global) or name.module != "torch" or name.name not in _ELEMENT_TYPES:
        # float8 and friends: no trouble unless the weights need it.
        return Inert(Global("torch._utils", "_rebuild_tensor_v3"), args)
    return _tensor(args, _ELEMENT_TYPES[name.name])


def _rebuild_parameter(args: tuple[Any, ...]) -> Any:
    if not args:
        raise RefusedPickleError("a parameter without data")
    return args[0]


def _rebuild_from_type(args: tuple[Any, ...]) -> Any:
    """``(function, type, arguments, state)``: a tensor that carries Python attributes."""
    function = str(args[0]) if args else ""
    if function not in _TENSOR_BUILDERS or len(args) < 3 or not isinstance(args[2], tuple):
        return Inert(Global("torch._tensor", "_rebuild_from_type"), args)
    return _TENSOR_BUILDERS[function](args[2])


def _pairs(args: tuple[Any, ...]) -> dict[Any, Any] | Inert:
    """``OrderedDict()`` or, from Python 2, ``OrderedDict([[key, value], ...])``."""
    pairs = args[0] if args else []
    if not isinstance(pairs, list) or not all(isinstance(p, list | tuple) and len(p) == 2 for p in pairs):
        return Inert(Global("collections", "OrderedDict"), args)
    if not all(isinstance(key, str) for key, _ in pairs):
        return Inert(Global("collections", "OrderedDict"), args)
    return dict(pairs)


def _sizes(args: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(args[0]) if args and isinstance(args[0], tuple | list) else ()


def _object(args: tuple[Any, ...]) -> Inert:
    """``copyreg._reconstructor(class, base, state)``, the object protocol of pickle 0 and 1."""
    if not args or not isinstance(args[0], Global):
        raise RefusedPickleError("an object without a class")
    return Inert(args[0])


_TENSOR_BUILDERS: Mapping[str, Builder] = {
    "torch._utils._rebuild_tensor": _tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_v2,
    "torch._utils._rebuild_tensor_v3": _rebuild_v3,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch._utils._rebuild_parameter_with_state": _rebuild_parameter,
}
BUILDERS: Mapping[str, Builder] = {
    **_TENSOR_BUILDERS,
    "torch._tensor._rebuild_from_type": _rebuild_from_type,
    "torch._tensor._rebuild_from_type_v2": _rebuild_from_type,
    "torch.Size": _sizes,
    "collections.OrderedDict": _pairs,
    "copyreg._reconstructor": _object,
    "copy_reg._reconstructor": _object,
}


def is_known(name: Global) -> bool:
    """Whether this reader gives a meaning of its own to the name."""
    text = str(name)
    return text in BUILDERS or text in STORAGE_TYPES or (name.module == "torch" and name.name in _ELEMENT_TYPES)


@dataclass(frozen=True)
class Segment:
    """Where the bytes of one storage lie in the file; ``crc32`` only where the container keeps one."""

    start: int
    nbytes: int
    crc32: int | None = None


def check_sum(data: mmap.mmap, segment: Segment, what: str) -> None:
    """Raise RefusedPickleError if the container keeps a checksum of the segment and the bytes have another."""
    if segment.crc32 is None:
        return
    with memoryview(data) as whole, whole[segment.start : segment.start + segment.nbytes] as part:
        if zlib.crc32(part) != segment.crc32:
            raise RefusedPickleError(f"{what} is damaged (its checksum does not match)")


class StorageFile:
    """The storages of one checkpoint, mapped and not copied."""

    def __init__(self, data: mmap.mmap, segments: Mapping[str, Segment], byteorder: str) -> None:
        self._data = data
        self._segments = segments
        self._order = ">" if byteorder == "big" else "<"
        self._checked: set[str] = set()
        self._budget = MAX_EXPANSION * len(data) + FREE_EXPANSION_BYTES

    def array(self, tensor: Tensor) -> npt.NDArray[Any]:
        """Return the tensor as a read-only array in native byte order; bfloat16 becomes float32, the rest is kept.

        Arrays are views on the mapped file where the layout allows it. Raises RefusedPickleError where the file does
        not hold what the tensor needs.
        """
        segment = self._segment(tensor.storage)
        self._budget -= tensor.nbytes
        if self._budget < 0:
            raise RefusedPickleError(f"its tensors claim more than {MAX_EXPANSION} times the bytes of the file")
        elements = tensor.elements
        dtype = np.dtype(self._order + elements.code)
        start = tensor.storage.first * tensor.storage.elements.itemsize + tensor.offset * elements.itemsize
        try:
            if 0 in tensor.size:
                array: npt.NDArray[Any] = np.empty(tensor.size, dtype)
            else:
                strides = tuple(step * elements.itemsize for step in tensor.stride)
                array = np.ndarray(tensor.size, dtype, self._data, segment.start + start, strides)
        except (ValueError, TypeError, OverflowError, MemoryError) as error:
            raise RefusedPickleError(f"a tensor of size {list(tensor.size)} cannot be built ({error})") from error
        return _native(array, elements)

    def _segment(self, storage: Storage) -> Segment:
        segment = self._segments.get(storage.key)
        if segment is None:
            raise RefusedPickleError(f"the data of storage {storage.key!r} is missing")
        promised = storage.root_numel * storage.elements.itemsize
        if segment.nbytes != promised or segment.start + segment.nbytes > len(self._data):
            available = min(segment.nbytes, max(0, len(self._data) - segment.start))
            raise RefusedPickleError(f"storage {storage.key!r} should have {promised} bytes but has {available}")
        if storage.key not in self._checked:
            self._check_sum(storage.key, segment)
        return segment

    def _check_sum(self, key: str, segment: Segment) -> None:
        self._checked.add(key)
        check_sum(self._data, segment, f"the data of storage {key!r}")


def _native(array: npt.NDArray[Any], elements: ElementType) -> npt.NDArray[Any]:
    if elements.name == "bfloat16":  # the upper half of a float32
        array = (array.astype(np.uint32) << np.uint32(16)).view(np.float32)
    elif elements.name == "bool":
        array = array != 0
    elif not array.dtype.isnative or not array.flags.aligned:
        array = array.astype(array.dtype.newbyteorder("="))
    array = np.asarray(array)
    array.flags.writeable = False
    return array
