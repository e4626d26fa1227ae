"""What is asked of a conversion, and whether it makes sense: checked before anything is read or written."""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from scaledyolo.arch.ops import Decoding
from scaledyolo.arch.zoo import ALIASES, ZOO
from scaledyolo.errors import UsageError, nearest

PathLike = str | os.PathLike[str]

SUFFIXES = (".weights", ".cfg", ".pt", ".pth", ".safetensors")
_TORCH = (".pt", ".pth")
_PARTIAL = re.compile(r"\.conv\.\d{1,5}")


@dataclass(frozen=True)
class Options:
    """What the user says about a conversion; None where the files decide.

    Attributes:
        cfg: the cfg that describes the weights.
        network: name of the network in the zoo.
        names: class names, or a file with one a line.
        decoding: how boxes are decoded, in place of what the source says.
        licence: licence of the weights, kept in the checkpoint.
        subnet: the once-for-all subnet to cut out of the model, see :func:`scaledyolo.arch.subnet.cut`.
        force: whether existing files may be replaced.
    """

    cfg: PathLike | None = None
    network: str | None = None
    names: PathLike | Sequence[str] | None = None
    decoding: Decoding | None = None
    licence: str = ""
    subnet: str | None = None
    force: bool = False


def check_request(source: Path, destination: Path, options: Options) -> tuple[tuple[Path, ...], tuple[str, str]]:
    """The files that will be written and the kinds of source and destination (a suffix; "" for a name of the zoo).

    Raises:
        UsageError: a file is missing or would be overwritten, the kinds do not go together, or an option is of no use.
    """
    outputs = _outputs(destination)
    if _is_zoo_name(source) and destination.suffix.lower() == ".cfg":
        kind = ("", ".cfg")
    else:
        _check_source(source)
        kind = (source.suffix.lower(), destination.suffix.lower())
    _check_kinds(source, destination, kind, options.subnet)
    _check_options(kind, options)
    _check_outputs(outputs, options.force)
    return outputs, kind


def _outputs(destination: Path) -> tuple[Path, ...]:
    suffix = destination.suffix.lower()
    if suffix in _TORCH:
        raise UsageError(f"{destination}: PyTorch pickles are read but never written; convert to .safetensors")
    if suffix == ".onnx":
        raise UsageError(f"{destination}: formats of runtimes are written by `scaledyolo export MODEL --format onnx`")
    if suffix not in SUFFIXES:
        raise UsageError(
            f"{destination}: the destination must end in .safetensors, .weights or .cfg.{nearest(suffix, SUFFIXES)}"
        )
    return (destination, destination.with_suffix(".cfg")) if suffix == ".weights" else (destination,)


def _is_zoo_name(source: Path) -> bool:
    return str(source).lower() in ZOO or str(source).lower() in ALIASES


def _check_source(source: Path) -> None:
    if not source.exists():
        hint = "; a network of the zoo by name has no weights, it becomes a .cfg only" if _is_zoo_name(source) else ""
        raise UsageError(f"{source}: no such file{hint}")
    if source.is_dir():
        raise UsageError(f"{source}: is a folder; give a file of weights")
    if _PARTIAL.fullmatch("".join(source.suffixes[-2:])):
        number = source.suffix[1:]
        raise UsageError(
            f"{source}: holds the first {number} sections of a network only, from which training starts; "
            "only complete weights can be converted"
        )
    if source.suffix.lower() not in SUFFIXES:
        raise UsageError(
            f"{source}: files of kind {source.suffix or '(none)'!r} are not understood; give one of "
            f"{', '.join(SUFFIXES)}.{nearest(source.suffix.lower(), SUFFIXES)}"
        )


def _check_kinds(source: Path, destination: Path, kind: tuple[str, str], subnet: str | None) -> None:
    """Refuse pairs between which there is nothing to convert."""
    darknet = (".weights", ".cfg")
    if kind == (".cfg", ".weights"):
        raise UsageError(f"{source}: a cfg holds no weights; give the .weights file")
    if kind[0] in darknet and kind[1] in darknet:
        raise UsageError(f"{source} to {destination}: both are Darknet's; convert to .safetensors, and from it")
    if kind[0] in _TORCH and kind[1] == ".cfg":
        raise UsageError(f"{source} to {destination}: convert to .weights, which writes its cfg too")
    if kind == (".safetensors", ".safetensors") and not subnet:
        raise UsageError(f"{source} to {destination}: both are checkpoints already, there is nothing to convert")


def _check_options(kind: tuple[str, str], options: Options) -> None:
    """Refuse options that the files have no use for, rather than ignore them."""
    described = (("--cfg", options.cfg), ("--network", options.network), ("--decoding", options.decoding))
    if kind[0] in (".safetensors", ""):
        for option, value in described:
            if value is not None:
                raise UsageError(f"{option}: the source describes its network itself; leave it out")
    if kind[1] != ".safetensors":
        for option, given in (("--names", options.names is not None), ("--licence", bool(options.licence))):
            if given:
                raise UsageError(f"{option}: Darknet's files have no place for it; leave it out")


def _check_outputs(outputs: Sequence[Path], force: bool) -> None:
    for path in outputs:
        if not path.parent.is_dir():
            raise UsageError(f"{path}: the folder {path.parent} does not exist")
        if path.is_dir():
            raise UsageError(f"{path}: is a folder; give the name of a file")
        if path.exists() and not force:
            raise UsageError(f"{path}: exists already; give another name, or --force to replace it")
