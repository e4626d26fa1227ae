"""Darknet ``.weights`` files: a header, then nothing but float32 numbers in the order of the layers.

The file says neither names nor shapes nor a checksum, so the network says what is expected and every byte is accounted
for. Order within a layer (docs: formats): normalised convolution beta, gamma, mean, variance, weights; other
convolution bias, weights; [batchnorm] beta, gamma, mean, variance; weighted [shortcut] its weights.
"""

from __future__ import annotations

import mmap
import os
import re
import struct
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

import numpy as np
import numpy.typing as npt

from scaledyolo.arch.graph import Graph, Node
from scaledyolo.arch.ops import Add, Affine, BatchNorm, Conv, Implicit
from scaledyolo.convert.darknet_cfg import NORM_EPS, DarknetModel
from scaledyolo.errors import ConversionError, WeightsError
from scaledyolo.files import atomic_file

Array = npt.NDArray[np.float32]

_FLOAT = np.dtype("<f4")
# Pre-training files are cut after a number of sections and say so: darknet53.conv.74
_PARTIAL_NAME = re.compile(r"\.conv\.(\d{1,5})$")
# What people find under the name of a weight file; none of these is a sensible version number.
_OTHER_FORMATS: Mapping[bytes, str] = {
    b"pk\x03\x04": "a zip archive, perhaps a PyTorch checkpoint",
    b"version https": "a Git LFS pointer",
    b"<!doctype": "a web page (the download went wrong)",
    b"<html": "a web page (the download went wrong)",
    b"[net]": "a cfg",
}
_NORM_ORDER = ("bias", "weight", "running_mean", "running_var")
_MAX_CLASSES = 10_000


@dataclass(frozen=True)
class DarknetWeights:
    """The content of a ``.weights`` file.

    Attributes:
        arrays: float32 arrays named and shaped like ``graph.parameters``.
        major, minor, revision: version of the format; current files are 0, 2, 5.
        seen: images seen in training.
        header_bytes: 20, or 16 in files from before version 0.2.
        loaded_nodes: names of the nodes that the file holds parameters for; not all in a partial file.
        num_non_finite: how many of the numbers are infinite or no number at all.
    """

    arrays: Mapping[str, Array]
    major: int
    minor: int
    revision: int
    seen: int
    header_bytes: int
    loaded_nodes: tuple[str, ...]
    num_non_finite: int

    @property
    def version(self) -> tuple[int, int, int]:
        """Major, minor and revision, as :func:`write_weights` takes them."""
        return self.major, self.minor, self.revision


@dataclass(frozen=True, slots=True)
class _Header:
    version: tuple[int, int, int]
    seen: int

    @property
    def long(self) -> bool:
        """Whether ``seen`` has 64 bits. The rule is Darknet's own."""
        return self.version[0] * 10 + self.version[1] >= 2

    @property
    def num_bytes(self) -> int:
        return 20 if self.long else 16

    def pack(self) -> bytes:
        return struct.pack("<iiiQ" if self.long else "<iiiI", *self.version, self.seen)


def file_order(graph: Graph) -> Iterator[tuple[Node, tuple[str, ...]]]:
    """Every node with parameters and the names of its tensors, both in the order of the file.

    Raises:
        ConversionError: a node has parameters for which the format has no place.
    """
    for node in graph:
        keys: tuple[str, ...] = ()
        if isinstance(node.op, Conv):
            norm = tuple(f"norm.{key}" for key in _NORM_ORDER) if node.op.norm else ()
            if node.op.norm == node.op.bias:
                raise _no_place(node, "a Darknet convolution has either a bias or a normalisation")
            keys = (*(norm or ("bias",)), "weight")
        elif isinstance(node.op, BatchNorm):
            keys = _NORM_ORDER
        elif isinstance(node.op, Add) and node.op.weights != "none":
            keys = ("weights",)
        elif isinstance(node.op, Affine | Implicit):
            raise _no_place(node, "Darknet has no such layer")
        if keys:
            yield node, tuple(f"{node.name}.{key}" for key in keys)


def _no_place(node: Node, reason: str) -> ConversionError:
    kind = type(node.op).__name__
    return ConversionError(f"a .weights file has no place for the parameters of node {node.name!r} ({kind}): {reason}")


def expected_bytes(graph: Graph, header_bytes: int = 20) -> int:
    """Size of the ``.weights`` file of a network in bytes."""
    return header_bytes + _FLOAT.itemsize * sum(_node_size(graph, names) for _, names in file_order(graph))


def _node_size(graph: Graph, names: tuple[str, ...]) -> int:
    return sum(prod(graph.parameters[name]) for name in names)


def read_weights(
    path: str | os.PathLike[str], network: Graph | DarknetModel, *, allow_partial: bool | None = None
) -> DarknetWeights:
    """Read a ``.weights`` file for a network.

    Args:
        path: the file.
        network: the graph, or the model that :func:`read_cfg` returned: with it the section number in the name of a
            partial file (``yolov4.conv.137``) is checked too.
        allow_partial: whether the file may end after any layer; default: only if its name says so.

    Raises:
        WeightsError: the file is not a weight file, or holds fewer or more bytes than the network needs; says how many,
            in which layer it ends and which class count would fit.
        ConversionError: the network has parameters that the format cannot hold.
    """
    graph = network.graph if isinstance(network, DarknetModel) else network
    source = os.fspath(path)
    cut = _PARTIAL_NAME.search(Path(source).name)
    partial = allow_partial if allow_partial is not None else cut is not None
    try:
        with Path(source).open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            header = _read_header(file.read(20), source, size)
            num_floats = _check_size(graph, source, size, header.num_bytes, partial)
            arrays, loaded = _read_arrays(graph, file.fileno(), header.num_bytes, num_floats)
    except OSError as error:
        raise WeightsError(f"{source}: cannot be read: {error.strerror or error}") from None
    if cut and partial and isinstance(network, DarknetModel):
        _check_cut(network, source, int(cut.group(1)), loaded)
    non_finite = sum(int(array.size - np.count_nonzero(np.isfinite(array))) for array in arrays.values())
    return DarknetWeights(arrays, *header.version, header.seen, header.num_bytes, loaded, non_finite)


def _read_header(start: bytes, source: str, size: int) -> _Header:
    for magic, what in _OTHER_FORMATS.items():
        if start.lower().startswith(magic):
            raise WeightsError(f"{source}: is {what}, not a Darknet .weights file")
    if size < 16:
        raise WeightsError(f"{source}: holds {size} bytes, fewer than the 16 of the shortest header")
    version = struct.unpack("<iii", start[:12])
    long = version[0] * 10 + version[1] >= 2
    if long and size < 20:
        raise WeightsError(f"{source}: holds {size} bytes, fewer than the 20 of its header")
    (seen,) = struct.unpack_from("<Q" if long else "<I", start, 12)
    return _Header(version, seen)


def _check_size(graph: Graph, source: str, size: int, header_bytes: int, partial: bool) -> int:
    """How many numbers to read: all that the network has, or all that a partial file has."""
    expected = expected_bytes(graph, header_bytes)
    if size == expected:
        return (expected - header_bytes) // _FLOAT.itemsize
    found = f"{source}: holds {size} bytes, but {graph.name} needs {expected}"
    if size > expected:
        raise WeightsError(f"{found}: {size - expected} too many{_class_hint(graph, size, header_bytes)}")
    position = header_bytes
    for node, names in file_order(graph):
        if partial and position == size > header_bytes:
            break
        position += _FLOAT.itemsize * _node_size(graph, names)
        if position > size:
            hint = _class_hint(graph, size, header_bytes)
            between = "; a partial file must end between two layers" if partial else ""
            raise WeightsError(f"{found}: it ends within node {node.name!r}{hint or between}")
        if not partial and position == size:
            raise WeightsError(
                f"{found}: it ends after node {node.name!r}{_class_hint(graph, size, header_bytes)}; "
                "if it is a pre-training file that ends there on purpose, allow partial files"
            )
    return (size - header_bytes) // _FLOAT.itemsize


def _class_hint(graph: Graph, size: int, header_bytes: int) -> str:
    """Says for which class count a file of this size would fit, if there is one.

    Only the convolutions before the heads depend on it; each has (inputs + 1) numbers for every output channel.
    """
    per_class = 0
    for head in graph.heads:
        source = head.inputs[0]
        node = graph[source] if source != Graph.INPUT else None
        if node is None or not isinstance(node.op, Conv) or node.op.norm:
            return ""
        fan_in = graph.in_channels(node)[0] // node.op.groups * node.op.kernel**2
        per_class += len(graph.head_op(head).mask) * (fan_in + 1)
    surplus, rest = divmod(size - expected_bytes(graph, header_bytes), _FLOAT.itemsize)
    if not per_class or rest or surplus % per_class:
        return ""
    classes = graph.num_classes + surplus // per_class
    if not 1 <= classes <= _MAX_CLASSES:
        return ""
    return f"; it fits exactly with {classes} classes in place of {graph.num_classes}"


def _read_arrays(
    graph: Graph, descriptor: int, header_bytes: int, num_floats: int
) -> tuple[dict[str, Array], tuple[str, ...]]:
    """Copy the arrays out of the mapped file: what is returned does not depend on the file any more."""
    arrays: dict[str, Array] = {}
    loaded: list[str] = []
    if not num_floats:
        return arrays, ()
    with mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) as mapped:
        numbers = np.frombuffer(mapped, _FLOAT, num_floats, header_bytes)
        position = 0
        for node, names in file_order(graph):
            if position == num_floats:
                break
            for name in names:
                shape = graph.parameters[name]
                end = position + prod(shape)
                arrays[name] = numbers[position:end].astype(np.float32).reshape(shape)
                position = end
            loaded.append(node.name)
        del numbers  # the map cannot be closed while an array looks into it
    return arrays, tuple(loaded)


def _check_cut(model: DarknetModel, source: str, cut: int, loaded: tuple[str, ...]) -> None:
    """Refuse a partial file that ends elsewhere than its name says: it belongs to another network."""
    if cut > len(model.sections):
        raise WeightsError(f"{source}: its name means {cut} sections, but {model.graph.name} has {len(model.sections)}")
    before = set(model.sections[:cut])
    expected = tuple(node.name for node, _ in file_order(model.graph) if node.name in before)
    if loaded != expected:
        last = loaded[-1] if loaded else "the header"
        raise WeightsError(
            f"{source}: its name means the first {cut} sections, which end with {(expected or ('no layer',))[-1]!r}, "
            f"but it ends with {last!r}, so it belongs to another network than {model.graph.name}"
        )


def write_weights(
    path: str | os.PathLike[str],
    graph: Graph,
    arrays: Mapping[str, npt.NDArray[np.floating]],
    *,
    seen: int = 0,
    version: tuple[int, int, int] = (0, 2, 5),
    allow_partial: bool = False,
) -> None:
    """Write a ``.weights`` file, all or nothing: a file of this name is replaced only when the new one is complete.

    A network trained with another epsilon than Darknet's 1e-5 is converted exactly: the difference goes into the
    variances.

    Args:
        path: the file.
        graph: the network.
        arrays: its parameters, named and shaped like ``graph.parameters``.
        seen: images seen in training; Darknet continues its schedule from it.
        version: of the format. Before 0.2 the header is four bytes shorter.
        allow_partial: write the leading layers that ``arrays`` has, as pre-training files do.

    Raises:
        WeightsError: a parameter is missing, unknown or of another shape.
        ConversionError: the network has parameters that the format cannot hold.
        OutputError: the file cannot be written; one of this name is unchanged.
    """
    header = _Header(version, seen)
    if not 0 <= seen < 2 ** (64 if header.long else 32):
        raise WeightsError(f"seen={seen} does not fit into the header of a .weights file")
    names = _names_to_write(graph, arrays, allow_partial)
    shift = graph.norm_eps - NORM_EPS
    blocks = (_bytes_of(name, np.asarray(arrays[name]), shift) for name in names)
    with atomic_file(Path(path)) as temporary, temporary.open("wb") as file:
        file.write(header.pack())
        for block in blocks:
            file.write(block)


def _names_to_write(graph: Graph, arrays: Mapping[str, npt.NDArray[np.floating]], allow_partial: bool) -> list[str]:
    order = [name for _, names in file_order(graph) for name in names]
    if allow_partial:
        present = len([name for name in order if name in arrays])
        order = order[:present]
    for name in order:
        if name not in arrays:
            raise WeightsError(f"parameter {name!r} of {graph.name} is missing; a .weights file has no gaps")
        shape = tuple(np.shape(arrays[name]))
        if shape != graph.parameters[name]:
            raise WeightsError(f"parameter {name!r} has shape {shape}, but {graph.name} needs {graph.parameters[name]}")
    unknown = sorted(set(arrays) - set(order))
    if unknown:
        raise WeightsError(f"{graph.name} has no parameter {unknown[0]!r} that could be written")
    return order


def _bytes_of(name: str, array: npt.NDArray[np.floating], shift: float) -> bytes:
    """Little-endian bytes; variances moved from the graph's epsilon to Darknet's."""
    if shift and name.endswith("running_var"):
        array = array.astype(np.float64) + shift
        if np.any(array < 0):
            raise ConversionError(f"{name}: variances this small cannot be moved to Darknet's epsilon of {NORM_EPS:g}")
    return np.ascontiguousarray(array, _FLOAT).tobytes()
