"""One file holds a model: weights, the spec or graph of the network, class names, provenance. Safetensors, no pickle.

The tensors are named like the parameters of the graph. The metadata of the file carries, as JSON:

``format``        ``scaledyolo/1``
``spec``          the ModelSpec, or
``graph``         the graph, for a cfg that no spec describes
``class_names``   names by contiguous class id
``category_ids``  the ids of the original data set by contiguous class id, or null
``provenance``    where the weights come from, their licence, how they were made: texts by topic
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from scaledyolo.arch.graph import Graph
from scaledyolo.arch.graph_io import graph_from_dict, graph_to_dict
from scaledyolo.arch.lower import lower
from scaledyolo.arch.spec import ModelSpec
from scaledyolo.errors import CheckpointError, SpecError
from scaledyolo.files import atomic_file
from scaledyolo.strict import parse_json
from scaledyolo.weights import Weights, check_weights

FORMAT = "scaledyolo/1"
_LENGTH_BYTES = 8
_DTYPES = ("F16", "F32", "F64")  # of safetensors, that NumPy reads as they are


@dataclass(frozen=True, kw_only=True)
class Description:
    """Everything of a checkpoint but its weights.

    ``spec`` is None where only the graph describes the network. ``category_ids[i]`` is the id that class ``i`` had in
    its data set. ``provenance`` holds texts by topic.
    """

    graph: Graph
    class_names: tuple[str, ...]
    spec: ModelSpec | None = None
    category_ids: tuple[int, ...] | None = None
    provenance: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for values, what in ((self.class_names, "class names"), (self.category_ids, "category ids")):
            if values is not None and len(values) != self.graph.num_classes:
                raise CheckpointError(
                    f"{self.graph.name}: {len(values)} {what} for a network of {self.graph.num_classes} classes; "
                    "give one for each class"
                )


@dataclass(frozen=True, kw_only=True)
class Checkpoint(Description):
    """A trained or converted model: ``weights`` maps every name of ``graph.parameters`` to a float32 array."""

    weights: Weights

    def __post_init__(self) -> None:
        super().__post_init__()
        check_weights(self.graph, self.weights)


def save_checkpoint(path: str | os.PathLike[str], checkpoint: Checkpoint, *, dtype: str = "float32") -> None:
    """Write a checkpoint atomically; the same checkpoint gives the same bytes.

    Args:
        path: where to.
        checkpoint: what.
        dtype: "float16" halves the file. What has one dimension only, biases and the scales and statistics of
            normalisations, stays float32: few values of wide range.

    Raises:
        OutputError: the file cannot be written (disk full, no permission); nothing half-written remains.
    """
    from safetensors.numpy import save

    tensors = {
        name: np.ascontiguousarray(value, dtype if value.ndim > 1 else np.float32)
        for name, value in checkpoint.weights.items()
    }
    network = {"spec": checkpoint.spec.to_dict()} if checkpoint.spec else {"graph": graph_to_dict(checkpoint.graph)}
    metadata = {
        "format": FORMAT,
        **{key: json.dumps(value) for key, value in network.items()},
        "class_names": json.dumps(checkpoint.class_names, ensure_ascii=False),
        "category_ids": json.dumps(checkpoint.category_ids),
        "provenance": json.dumps(dict(checkpoint.provenance), ensure_ascii=False),
    }
    with atomic_file(Path(path)) as temporary, temporary.open("wb") as file:
        file.writelines(_ordered(save(tensors, metadata)))


def _ordered(content: bytes) -> Iterator[bytes | memoryview]:
    """The parts of a safetensors file, with the texts of its header in order, which the library leaves to chance.

    A file is the length of the header in 8 bytes, little endian, the header as JSON filled up with spaces to a multiple
    of 8, and the tensors.
    """
    end = _LENGTH_BYTES + int.from_bytes(content[:_LENGTH_BYTES], "little")
    header = json.loads(content[_LENGTH_BYTES:end])
    header["__metadata__"] = dict(sorted(header["__metadata__"].items()))
    text = json.dumps(header, ensure_ascii=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % _LENGTH_BYTES)
    yield len(text).to_bytes(_LENGTH_BYTES, "little")
    yield text
    yield memoryview(content)[end:]


def load_checkpoint(path: str | os.PathLike[str]) -> Checkpoint:
    """Read a checkpoint, strictly; weights come as float32.

    Raises:
        CheckpointError: the file is missing, damaged, of another program, or does not fit its own description.
    """
    with _open(Path(path)) as file:
        described = _describe(dict(file.metadata() or {}), path)
        stored = {name: file.get_slice(name).get_dtype() for name in file.keys()}  # noqa: SIM118
        other = next((name for name, dtype in stored.items() if dtype not in _DTYPES), None)
        if other is not None:
            raise CheckpointError(
                f"{path}: tensor {other!r} is stored as {stored[other]}; save it as float32 or float16"
            )
        weights = {name: np.asarray(file.get_tensor(name), np.float32) for name in stored}
    try:
        return Checkpoint(**vars(described), weights=weights)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: {error}") from None


def load_description(path: str | os.PathLike[str]) -> Description:
    """Read everything of a checkpoint but its weights.

    Raises:
        CheckpointError: the file is missing, damaged or of another program.
    """
    with _open(Path(path)) as file:
        return _describe(dict(file.metadata() or {}), path)


def _describe(metadata: dict[str, str], path: str | os.PathLike[str]) -> Description:
    if metadata.get("format") != FORMAT:
        raise CheckpointError(
            f"{path}: not a scaledyolo checkpoint (format {metadata.get('format')!r}); "
            "convert foreign weights with `scaledyolo convert SRC DST`"
        )
    try:
        facts: dict[str, Any] = {key: parse_json(value) for key, value in metadata.items() if key != "format"}
        spec = ModelSpec.from_dict(facts["spec"]) if "spec" in facts else None
        category_ids = facts["category_ids"]
        return Description(
            graph=lower(spec) if spec else graph_from_dict(facts["graph"]),
            class_names=tuple(map(str, facts["class_names"])),
            spec=spec,
            category_ids=None if category_ids is None else tuple(map(int, category_ids)),
            provenance={str(key): str(value) for key, value in facts["provenance"].items()},
        )
    except (CheckpointError, SpecError) as error:
        raise CheckpointError(f"{path}: {error}") from None
    except (KeyError, ValueError, TypeError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{path}: the description inside the file is damaged ({error})") from None


@contextlib.contextmanager
def _open(path: Path) -> Iterator[Any]:
    from safetensors import SafetensorError, safe_open

    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        with safe_open(path, framework="numpy") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: damaged or not a safetensors file ({error})") from None
