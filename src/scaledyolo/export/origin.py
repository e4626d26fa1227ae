"""Where an artefact comes from: recorded in its metadata by `export`, found again by `verify`.

Three keys of the provenance: ``exported_from``, JSON: the files of the model relative to the artefact's folder, or the
name of official weights; ``exported_digest``, SHA-256 over these files; ``exported_tensors``, SHA-256 over the values
of the network, which are the same in whatever file they lie. A file that has changed since is not taken for the model:
what was trained on in the meantime is another network.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Final

import numpy as np

from scaledyolo.artefact import ModelFacts
from scaledyolo.checkpoint import Checkpoint
from scaledyolo.default_model import default_model_file
from scaledyolo.errors import ScaledYoloError, UsageError
from scaledyolo.model import load_model, load_spec
from scaledyolo.runnable import PathLike, file_digest
from scaledyolo.weights import Array

FROM: Final = "exported_from"
DIGEST: Final = "exported_digest"
TENSORS: Final = "exported_tensors"

Source = PathLike | tuple[PathLike, PathLike]


class MissingOriginError(UsageError):
    """The model that an artefact was exported from is not recorded, or not found from here."""


def record_origin(source: Source, artefact: Path) -> dict[str, str]:
    """What goes into the provenance of an artefact that is exported from ``source``, which can be read."""
    files = _files(source)
    if files is None:
        return {FROM: json.dumps([str(source)]), DIGEST: _digest([_official(str(source))])}
    folder = artefact.resolve().parent
    return {FROM: json.dumps([_relative(file.resolve(), folder) for file in files]), DIGEST: _digest(files)}


def tensors_digest(weights: Mapping[str, Array]) -> str:
    """SHA-256 over the name, shape and values of every tensor of a network."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        values = np.ascontiguousarray(weights[name], np.float32)
        digest.update(f"{name} {values.shape} ".encode())
        digest.update(values.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def check_same_network(artefact: Path, facts: ModelFacts, model: Checkpoint) -> None:
    """Refuse to judge an artefact by a network that it does not come from.

    Raises:
        UsageError: the values of ``model`` are not those that the metadata records; where it records none, none is
            refused.
    """
    recorded = facts.provenance.get(TENSORS)
    if recorded in (None, tensors_digest(model.weights)):
        return
    try:
        source = f" ({' and '.join(_recorded(artefact, facts.provenance))})"
    except MissingOriginError:  # exported by a program, from memory
        source = ""
    raise UsageError(
        f"{artefact}: the model it is compared with is not the one it was exported from{source}, so its mark is "
        "left as it is; give that one with --against, or see the differences with --no-mark"
    )


def find_origin(artefact: Path, facts: ModelFacts, names: PathLike | None = None) -> Checkpoint:
    """The model that an artefact was exported from.

    Looked for where it lay as seen from the artefact, then beside the artefact, then in the current folder; official
    weights in the cache, the default model in the package.

    Args:
        artefact: its file or folder.
        facts: its metadata.
        names: file with the class names, for models that do not hold them.

    Raises:
        MissingOriginError: it is not recorded or not there; says what to give.
        UsageError: it is not the same any more.
    """
    recorded = _recorded(artefact, facts.provenance)
    changed = None
    for source, files in _places(artefact, recorded):
        if not all(file.is_file() for file in files):
            continue
        if _digest(files) == facts.provenance.get(DIGEST):
            return load_model(source, names=names)
        changed = source
    if changed is None:
        raise MissingOriginError(
            f"{artefact}: the model it was exported from, {' and '.join(recorded)}, is not found from here; "
            "give it with --against MODEL"
        )
    words = " ".join(map(str, changed)) if isinstance(changed, tuple) else str(changed)
    raise UsageError(
        f"{artefact}: {words} has changed since it was exported; export it again, or compare with what it is now: "
        f"--against {words} --no-mark"
    )


def _recorded(artefact: Path, provenance: Mapping[str, str]) -> list[str]:
    try:
        recorded = json.loads(provenance[FROM])
    except (KeyError, ValueError):
        recorded = None
    if not isinstance(recorded, list) or not 1 <= len(recorded) <= 2:
        raise MissingOriginError(
            f"{artefact}: its metadata does not name the file of the model it was exported from; "
            "give the model with --against MODEL"
        )
    return [str(item) for item in recorded]


def _places(artefact: Path, recorded: Sequence[str]) -> Iterator[tuple[Source, list[Path]]]:
    """Where the model may lie: what `load_model` takes, and the files it reads."""
    if _files(recorded[0]) is None:
        with contextlib.suppress(ScaledYoloError):  # not in the cache, or not what it should be
            yield recorded[0], [_official(recorded[0])]
        return
    folder = artefact.resolve().parent
    names = [PurePosixPath(item).name for item in recorded]
    for files in ([folder / item for item in recorded], [folder / name for name in names], [Path(n) for n in names]):
        yield (files[0] if len(files) == 1 else (files[0], files[1])), files
    with contextlib.suppress(ScaledYoloError):  # this copy of the package may come without one
        default = default_model_file()
        if [default.name] == names:
            yield default, [default]


def _files(source: Source) -> list[Path] | None:
    """The files of a model in the order of `load_model`; None for the name of official weights."""
    if isinstance(source, (tuple, list)):
        return [Path(item) for item in source]
    path = Path(source)
    if path.suffix.lower() in (".cfg", ".weights"):
        return [path.with_suffix(".cfg"), path.with_suffix(".weights")]
    return [path] if path.suffix.lower() == ".safetensors" else None


def _official(name: str) -> Path:
    from scaledyolo.download import fetch

    return fetch(load_spec(name).name, allow_download=False)


def _relative(file: Path, folder: Path) -> str:
    """Path from the artefact's folder, which holds when both are moved together; never one that names a user."""
    try:
        return Path(os.path.relpath(file, folder)).as_posix()
    except ValueError:  # another drive
        return file.name


def _digest(files: Sequence[Path]) -> str:
    digests = [file_digest(file) for file in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()
