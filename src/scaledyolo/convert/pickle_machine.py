"""A pickle reader that knows no callables: names stay names, objects stay records of what was asked for.

``pickle.Unpickler`` with a restricted ``find_class`` still *calls* what lies on its stack, trusts the copyreg
extension registry and allocates whatever sizes the stream claims. Here nothing on the stack can be called at all:
a GLOBAL is pushed as the inert value ``Global(module, name)``; REDUCE, NEWOBJ, INST and OBJ look that name up in a
dict of our own builders and otherwise push an ``Inert`` that remembers class, arguments and state. Opcodes are
decoded by the standard library's ``pickletools.genops``, which only parses. Semantics of the opcodes: pickletools,
PEP 307, 3154 and 574.
"""

from __future__ import annotations

import mmap
import pickletools
import struct
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

# A pickled network takes about 155 opcodes and 370 bytes per module: 155,000 and 0.4 MB for 1,000 modules. The limits
# only keep a hostile file from costing more than seconds and some hundred megabytes.
MAX_OPCODES = 4_000_000
MAX_STREAM_BYTES = 64 * 2**20
MAX_LINE_BYTES = 64 * 2**10
# Larger integers as dict keys could be chosen to share one hash value, which makes a dict quadratic.
MAX_KEY_INTEGER = 2**63


class RefusedPickleError(Exception):
    """A pickle that is damaged, hostile or uses what data never needs; the text says which, without a file name."""


@dataclass(frozen=True)
class Global:
    """The name of something importable, never imported."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, repr=False)
class Inert:
    """What a stream wanted to construct: its class by name, and everything that was handed to it."""

    kind: Global
    args: tuple[Any, ...] = ()
    keywords: Mapping[str, Any] | None = None
    state: Any = None
    items: list[Any] = field(default_factory=list)
    entries: dict[Any, Any] = field(default_factory=dict)

    @property
    def attributes(self) -> dict[Any, Any]:
        """The ``__dict__`` the object would have had; empty where its state is something else."""
        state = self.state[0] if isinstance(self.state, tuple) and len(self.state) == 2 else self.state
        return state if isinstance(state, dict) else {}


class ByteReader:
    """File-like window on a mapped file that never hands out more than a bounded number of bytes."""

    def __init__(self, data: mmap.mmap | bytes, start: int = 0, stop: int | None = None) -> None:
        self._data = data
        self.position = start
        self._stop = len(data) if stop is None else min(stop, len(data))
        self._limit = min(self._stop, start + MAX_STREAM_BYTES)

    def read(self, size: int) -> bytes:
        """Return ``size`` bytes, or fewer at the end of the window."""
        end = self.position + max(size, 0)
        if end > self._limit and self._limit < self._stop:
            raise RefusedPickleError(f"its pickle is larger than {MAX_STREAM_BYTES >> 20} MiB")
        chunk = self._data[self.position : min(end, self._stop)]
        self.position += len(chunk)
        return bytes(chunk)

    def readline(self) -> bytes:
        """Return one line with its newline; the line may have at most ``MAX_LINE_BYTES``."""
        stop = min(self._limit, self.position + MAX_LINE_BYTES)
        found = self._data.find(b"\n", self.position, stop)
        if found < 0:
            raise RefusedPickleError(f"a text argument at byte {self.position} does not end")
        return self.read(found + 1 - self.position)

    def tell(self) -> int:
        """Position in the underlying data."""
        return self.position


Builder = Callable[[tuple[Any, ...]], Any]
_NUMBERS = ("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4", "FLOAT", "BINFLOAT")
_STRINGS = ("STRING", "BINSTRING", "SHORT_BINSTRING", "UNICODE", "SHORT_BINUNICODE", "BINUNICODE", "BINUNICODE8")
_BYTES = ("BINBYTES", "SHORT_BINBYTES", "BINBYTES8", "BYTEARRAY8")
_PUSHED = frozenset((*_NUMBERS, *_STRINGS, *_BYTES))
_CONSTANTS: Mapping[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
    "EMPTY_SET": lambda: Inert(Global("builtins", "set")),
}
_IGNORED = frozenset(("PROTO", "FRAME", "STOP"))
_SCALARS = (str, bytes, float, bool, type(None))


def load_data(
    reader: ByteReader,
    builders: Mapping[str, Builder],
    persistent_load: Callable[[object], Any] | None = None,
) -> tuple[Any, set[Global]]:
    """Read one pickle from ``reader``, which is left just behind it.

    Arguments:
        builders: what may be built, by dotted name; each gets the argument tuple and must only read it.
        persistent_load: turns a persistent id into a value; without it persistent ids are refused.

    Returns the value, and all names that the stream mentions. Raises RefusedPickleError for what is not plain data.
    """
    machine = _Machine(builders, persistent_load)
    try:
        for count, (opcode, argument, _) in enumerate(pickletools.genops(reader)):  # type: ignore[arg-type]
            if count >= MAX_OPCODES:
                raise RefusedPickleError(f"its pickle has more than {MAX_OPCODES} operations")
            machine.step(opcode.name, argument)
        return machine.result(), machine.globals
    except (ValueError, TypeError, IndexError, KeyError, AttributeError, OverflowError, struct.error) as error:
        reason = str(error)[:200]
        raise RefusedPickleError(f"its pickle is damaged near byte {reader.tell()} ({reason})") from error


class _Machine:
    """The stack, marks and memo of one stream."""

    def __init__(self, builders: Mapping[str, Builder], persistent_load: Callable[[object], Any] | None) -> None:
        self.globals: set[Global] = set()
        self._builders = builders
        self._persistent_load = persistent_load
        self._stack: list[Any] = []
        self._marked: list[list[Any]] = []
        self._memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """Carry out one opcode."""
        if name in _PUSHED:
            self._stack.append(bytes(argument) if isinstance(argument, bytearray) else argument)
        elif name in _CONSTANTS:
            self._stack.append(_CONSTANTS[name]())
        elif name not in _IGNORED:
            action = _ACTIONS.get(name)
            if action is None:
                raise RefusedPickleError(f"its pickle uses {name}, which data never needs")
            action(self, argument)

    def result(self) -> Any:
        """The value left by STOP."""
        if len(self._stack) != 1 or self._marked:
            raise RefusedPickleError("its pickle does not leave exactly one value")
        return self._stack.pop()

    # Stack and memo

    def mark(self, _: Any) -> None:
        self._marked.append(self._stack)
        self._stack = []

    def _pop_mark(self) -> list[Any]:
        above = self._stack
        self._stack = self._marked.pop()
        return above

    def pop(self, _: Any) -> None:
        if self._stack:
            self._stack.pop()
        else:
            self._pop_mark()

    def pop_to_mark(self, _: Any) -> None:
        self._pop_mark()

    def duplicate(self, _: Any) -> None:
        self._stack.append(self._stack[-1])

    def put(self, index: int) -> None:
        self._memo[index] = self._stack[-1]

    def memoize(self, _: Any) -> None:
        self.put(len(self._memo))

    def get(self, index: int) -> None:
        self._stack.append(self._memo[index])

    # Containers

    def tuple_from_mark(self, _: Any) -> None:
        values = tuple(self._pop_mark())
        self._stack.append(values)

    def tuple_of(self, length: int) -> None:
        if len(self._stack) < length:
            raise IndexError("too few values for a tuple")
        values = tuple(self._stack[-length:])
        del self._stack[-length:]
        self._stack.append(values)

    def list_from_mark(self, _: Any) -> None:
        values = self._pop_mark()
        self._stack.append(values)

    def dict_from_mark(self, _: Any) -> None:
        values = self._pop_mark()
        self._stack.append(_assign({}, values))

    def frozenset_from_mark(self, _: Any) -> None:
        values = self._pop_mark()
        self._stack.append(Inert(Global("builtins", "frozenset"), items=values))

    def append(self, _: Any) -> None:
        value = self._stack.pop()
        self._extend([value])

    def extend_from_mark(self, _: Any) -> None:
        self._extend(self._pop_mark())

    def _extend(self, values: list[Any]) -> None:
        target = self._stack[-1]
        if isinstance(target, Inert):
            target = target.items
        if not isinstance(target, list):
            raise RefusedPickleError(f"its pickle appends to {_describe(target)}")
        target.extend(values)

    def set_item(self, _: Any) -> None:
        value = self._stack.pop()
        key = self._stack.pop()
        _assign(self._stack[-1], [key, value])

    def set_items_from_mark(self, _: Any) -> None:
        values = self._pop_mark()
        _assign(self._stack[-1], values)

    # Names and objects

    def name(self, argument: str) -> None:
        module, _, name = argument.partition(" ")
        self._push_global(module, name)

    def name_from_stack(self, _: Any) -> None:
        name = self._stack.pop()
        self._push_global(self._stack.pop(), name)

    def _push_global(self, module: Any, name: Any) -> None:
        if not isinstance(module, str) or not isinstance(name, str):
            raise RefusedPickleError("its pickle gives a name that is not text")
        found = Global(module, name)
        self.globals.add(found)
        self._stack.append(found)

    def _build(self, kind: Any, args: Any, keywords: Any = None) -> None:
        if not isinstance(kind, Global | Inert) or not isinstance(args, tuple):
            raise RefusedPickleError(f"its pickle calls {_describe(kind)}")
        if isinstance(kind, Inert):  # the result of a call is called again, as in getattr(...)(...)
            self._stack.append(Inert(kind.kind, args, keywords))
            return
        builder = None if keywords else self._builders.get(str(kind))
        self._stack.append(Inert(kind, args, keywords) if builder is None else builder(args))

    def reduce(self, _: Any) -> None:
        args = self._stack.pop()
        self._build(self._stack.pop(), args)

    def new_with_keywords(self, _: Any) -> None:
        keywords = self._stack.pop()
        args = self._stack.pop()
        self._build(self._stack.pop(), args, keywords if isinstance(keywords, dict) else None)

    def instance(self, argument: str) -> None:
        args = tuple(self._pop_mark())
        self.name(argument)
        self._build(self._stack.pop(), args)

    def object_from_mark(self, _: Any) -> None:
        kind, *args = self._pop_mark()
        self._build(kind, tuple(args))

    def build(self, _: Any) -> None:
        state = self._stack.pop()
        target = self._stack[-1]
        if isinstance(target, Inert):
            target.state = state
        elif isinstance(target, str | bytes | int | float | tuple | Global | None):
            raise RefusedPickleError(f"its pickle sets attributes of {_describe(target)}")
        # Dicts, lists and what a builder returned have no attributes that matter: state_dict()._metadata ends here.

    def persistent(self, argument: str) -> None:
        self._stack.append(self._resolve(argument))

    def persistent_from_stack(self, _: Any) -> None:
        self._stack.append(self._resolve(self._stack.pop()))

    def _resolve(self, identifier: object) -> Any:
        if self._persistent_load is None:
            raise RefusedPickleError("its pickle refers to outside data where none can be")
        return self._persistent_load(identifier)


def _assign(target: Any, values: list[Any]) -> Any:
    if isinstance(target, Inert):
        target = target.entries
    if not isinstance(target, dict) or len(values) % 2:
        raise RefusedPickleError(f"its pickle sets items of {_describe(target)}")
    for key, value in zip(values[::2], values[1::2], strict=True):
        target[_checked_key(key)] = value
    return target


def _checked_key(key: Any) -> Any:
    """Keys that hash in constant time; nested tuples would take exponential time when they repeat their parts."""
    parts = key if isinstance(key, tuple) else (key,)
    for part in parts:
        small = isinstance(part, int) and -MAX_KEY_INTEGER <= part < MAX_KEY_INTEGER
        if not small and not isinstance(part, (*_SCALARS, Global, Inert)):
            raise RefusedPickleError(f"its pickle uses {_describe(part)} as a key")
    return key


def _describe(value: Any) -> str:
    if isinstance(value, Global):
        return f"the name {str(value)[:100]!r}"
    return f"an object of type {type(value).__name__}"


_ACTIONS: Mapping[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "POP": _Machine.pop,
    "POP_MARK": _Machine.pop_to_mark,
    "DUP": _Machine.duplicate,
    "PUT": _Machine.put,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "MEMOIZE": _Machine.memoize,
    "GET": _Machine.get,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "TUPLE": _Machine.tuple_from_mark,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "LIST": _Machine.list_from_mark,
    "DICT": _Machine.dict_from_mark,
    "FROZENSET": _Machine.frozenset_from_mark,
    "APPEND": _Machine.append,
    "APPENDS": _Machine.extend_from_mark,
    "ADDITEMS": _Machine.extend_from_mark,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items_from_mark,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name_from_stack,
    "REDUCE": _Machine.reduce,
    "NEWOBJ": _Machine.reduce,
    "NEWOBJ_EX": _Machine.new_with_keywords,
    "INST": _Machine.instance,
    "OBJ": _Machine.object_from_mark,
    "BUILD": _Machine.build,
    "PERSID": _Machine.persistent,
    "BINPERSID": _Machine.persistent_from_stack,
}
