"""Core ML's folder: a program is saved, its metadata read and changed, on any system."""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from scaledyolo.convert.coreml_writer import import_coremltools
from scaledyolo.errors import FormatError

SUFFIX: Final = ".mlpackage"
_MODEL: Final = Path("Data/com.apple.CoreML/model.mlmodel")  # what coremltools calls them
_WEIGHTS: Final = Path("Data/com.apple.CoreML/weights/weight.bin")


def save_package(program: Any, path: Path, metadata: Mapping[str, str]) -> None:
    """Optimise a MIL program, in float32, and write it as a folder."""
    tools = import_coremltools()
    with contextlib.redirect_stderr(io.StringIO()), warnings.catch_warnings():  # progress bars, and files left open
        warnings.simplefilter("ignore")
        model = tools.convert(
            program,
            convert_to="mlprogram",
            compute_precision=tools.precision.FLOAT32,
            minimum_deployment_target=tools.target.iOS15,
            skip_model_load=True,
        )
        model.user_defined_metadata.update(metadata)
        model.save(str(path))
        del model
        gc.collect()  # takes coremltools' own temporary folders away, as large as the model, and not some time later


def package_files(path: Path) -> tuple[Path, Path]:
    """The files that make up a network: its description and its weights.

    Raises:
        FormatError: they are not there.
    """
    for part in (_MODEL, _WEIGHTS):
        if not (path / part).is_file():
            raise FormatError(f"{path}: not a Core ML package; {part} is missing")
    return path / _MODEL, path / _WEIGHTS


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of a package.

    Raises:
        FormatError: it is none.
        MissingPackageError: coremltools is not installed.
    """
    return dict(_read(path).description.metadata.userDefined)


def change_metadata(path: Path, metadata: Mapping[str, str]) -> None:
    """Put other texts into a package, in place."""
    model = _read(path)
    model.description.metadata.userDefined.update(metadata)
    (path / _MODEL).write_bytes(model.SerializeToString())


def _read(path: Path) -> Any:
    description, _ = package_files(path)
    import_coremltools()
    messages = importlib.import_module("coremltools.proto.Model_pb2")
    decode_error = importlib.import_module("google.protobuf.message").DecodeError
    model = messages.Model()
    try:
        model.ParseFromString(description.read_bytes())
    except decode_error as error:
        raise FormatError(f"{path}: not a Core ML model ({error})") from None
    return model
