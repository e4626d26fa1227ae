"""Values of a foreign pickle as plain Python data: what is understood is converted, the rest is only named."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from scaledyolo.convert.pickle_machine import Global, Inert
from scaledyolo.convert.torch_storage import Tensor

MAX_DEPTH = 40
MAX_VALUES = 200_000
# Attributes (strides, anchors) are small; larger tensors belong to the weights and are not repeated here.
MAX_ATTRIBUTE_BYTES = 2**20
_NUMPY_CODES = frozenset(("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "u2", "u4", "u8", "b1"))
_LISTS = frozenset(("builtins.set", "__builtin__.set", "builtins.frozenset", "__builtin__.frozenset"))


@dataclass(frozen=True)
class Unread:
    """Stands for a value that is not plain data; ``kind`` says what the file calls it."""

    kind: str


class PlainData:
    """Converts values of one file, within one budget; ``array`` reads a tensor."""

    def __init__(self, array: Callable[[Tensor], np.ndarray[Any, Any]]) -> None:
        self._array = array
        self._left = MAX_VALUES

    def convert(self, value: Any, depth: int = 0) -> Any:
        """Return ``value`` as None, bool, number, str, bytes, list, tuple, dict, array or ``Unread``."""
        self._left -= 1
        if depth > MAX_DEPTH or self._left < 0:
            return Unread("nested or repeated too often")
        if value is None or isinstance(value, bool | int | float | str | bytes):
            return value
        if isinstance(value, list | tuple):
            parts = [self.convert(part, depth + 1) for part in value]
            return tuple(parts) if isinstance(value, tuple) else parts
        if isinstance(value, dict):
            return {_plain_key(key): self.convert(part, depth + 1) for key, part in value.items()}
        if isinstance(value, Tensor):
            return self._array(value) if value.nbytes <= MAX_ATTRIBUTE_BYTES else Unread("torch.Tensor")
        if isinstance(value, Inert):
            return self._object(value, depth)
        return Unread(str(value) if isinstance(value, Global) else type(value).__name__)

    def _object(self, value: Inert, depth: int) -> Any:
        kind = str(value.kind)
        if kind in _LISTS:
            first = value.args[0] if value.args and isinstance(value.args[0], list) else []
            return [self.convert(part, depth + 1) for part in [*first, *value.items]]
        if value.kind.module in ("numpy.core.multiarray", "numpy._core.multiarray"):
            return _numpy_value(value)
        if kind == "torch.device":
            return ":".join(str(part) for part in value.args if isinstance(part, str | int))
        if value.entries:  # a dict of another class: defaultdict, EasyDict, Munch
            return self.convert(value.entries, depth + 1)
        return Unread(kind)


def _plain_key(key: Any) -> Any:
    if isinstance(key, tuple):
        return tuple(_plain_key(part) for part in key)
    return key if isinstance(key, str | bytes | int | float | None) else str(getattr(key, "kind", key))


def as_bytes(value: Any) -> bytes | None:
    """Bytes of a pickle; protocols below 3 write them as ``_codecs.encode(text, 'latin1')``."""
    if isinstance(value, bytes):
        return value
    encoded = isinstance(value, Inert) and str(value.kind) == "_codecs.encode" and bool(value.args)
    text = value.args[0] if encoded else None
    if isinstance(text, str) and all(ord(letter) < 256 for letter in text):
        return text.encode("latin-1")
    return None


def _numpy_dtype(value: Any) -> np.dtype[Any] | None:
    if not isinstance(value, Inert) or str(value.kind) != "numpy.dtype" or not value.args:
        return None
    code = value.args[0]
    if not isinstance(code, str) or code not in _NUMPY_CODES:
        return None
    order = value.state[1] if isinstance(value.state, tuple) and len(value.state) > 1 else "<"
    return np.dtype((">" if order == ">" else "<") + code)


def _numpy_value(value: Inert) -> Any:
    """A NumPy scalar as a Python number, a small array as an array; other things stay unread."""
    unread = Unread(str(value.kind))
    shape: Any = ()
    if value.kind.name == "scalar" and len(value.args) == 2:
        dtype, data = _numpy_dtype(value.args[0]), as_bytes(value.args[1])
    elif value.kind.name == "_reconstruct" and isinstance(value.state, tuple) and len(value.state) == 5:
        _, shape, dtype_record, is_fortran, content = value.state
        dtype, data = _numpy_dtype(dtype_record), None if is_fortran else as_bytes(content)
    else:
        return unread
    proper = isinstance(shape, tuple) and len(shape) <= 8 and all(type(n) is int and 0 <= n < 2**31 for n in shape)
    if dtype is None or data is None or not proper or len(data) > MAX_ATTRIBUTE_BYTES or len(data) % dtype.itemsize:
        return unread
    flat = np.frombuffer(data, dtype).astype(dtype.newbyteorder("="))
    count = 1
    for extent in shape:
        count *= extent
    if count != flat.size:
        return unread
    return flat.reshape(shape) if shape else flat[0].item()
