"""From what a user names to a model: zoo names, spec files, Darknet cfgs with their weights, checkpoints.

Which model a bare name means, where official weights and the default model compete, says ``default_model.py``.
"""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from scaledyolo.arch.graph import Graph
from scaledyolo.arch.lower import lower
from scaledyolo.arch.spec import ModelSpec
from scaledyolo.arch.zoo import ALIASES, ZOO, find
from scaledyolo.default_model import DEFAULT, TITLE_KEY, default_model_file, stands_in_for
from scaledyolo.errors import FormatError, SpecError, UsageError
from scaledyolo.strict import parse_json, parse_yaml

if TYPE_CHECKING:
    from scaledyolo.checkpoint import Checkpoint

PathLike = str | os.PathLike[str]
SPEC_SUFFIXES = (".yaml", ".yml", ".json")


def load_graph(source: PathLike, *, num_classes: int | None = None) -> Graph:
    """The network that ``source`` names, without weights: zoo name, spec file, Darknet cfg, checkpoint or "default".

    Raises:
        ScaledYoloError: there is no such network or file, it is damaged, or its class count cannot be changed.
    """
    path = default_model_file() if os.fspath(source) == DEFAULT else Path(source)
    suffix = path.suffix.lower()
    if suffix in SPEC_SUFFIXES:
        spec = read_spec(path)
        return lower(spec.with_classes(num_classes) if num_classes is not None else spec)
    if suffix == ".cfg":
        from scaledyolo.convert.darknet_cfg import read_cfg

        return _with_classes(read_cfg(path).graph, num_classes, source)
    if suffix == ".safetensors":
        from scaledyolo.checkpoint import load_description

        return _with_classes(load_description(path).graph, num_classes, source)
    spec = _find(source)
    return lower(spec.with_classes(num_classes) if num_classes is not None else spec)


def _with_classes(graph: Graph, num_classes: int | None, source: PathLike) -> Graph:
    if num_classes not in (None, graph.num_classes):
        raise UsageError(
            f"{source}: made for {graph.num_classes} classes, which a file with a fixed network cannot change; "
            f"name a network of the zoo for {num_classes}"
        )
    return graph


def _find(source: PathLike) -> ModelSpec:
    name = str(source)
    if name.lower() in ZOO or name.lower() in ALIASES:
        return find(name)
    if os.sep in name or Path(name).suffix:
        missing = "no such file" if not Path(name).exists() else "not a file that describes a network"
        raise UsageError(f"{name}: {missing}; give a zoo name, .yaml, .cfg or .safetensors")
    return find(name)


def load_spec(source: PathLike) -> ModelSpec:
    """The spec that ``source`` names: zoo name or spec file.

    Raises:
        ScaledYoloError: there is no such network or file, or the file does not describe one.
    """
    path = Path(source)
    if os.fspath(source) == DEFAULT:
        raise UsageError(f"{DEFAULT} is a trained model, not a network alone; start from it with --weights {DEFAULT}")
    return read_spec(path) if path.suffix.lower() in SPEC_SUFFIXES else _find(source)


def read_spec(path: Path) -> ModelSpec:
    """A spec from a YAML or JSON file.

    Raises:
        FormatError: the file is missing or not YAML or JSON.
        SpecError: a key is unknown or missing, or a value does not fit.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise FormatError(f"{path}: {getattr(error, 'strerror', None) or 'not a text file'}") from None
    values: Any
    if path.suffix.lower() == ".json":
        try:
            values = parse_json(text)
        except ValueError as error:
            raise FormatError(f"{path}: not JSON ({error})") from None
    else:
        import yaml

        try:
            values = parse_yaml(text)
        except yaml.YAMLError as error:
            raise FormatError(f"{path}: not YAML ({' '.join(str(error).split())})") from None
    try:
        return ModelSpec.from_dict(values)
    except (SpecError, AttributeError) as error:
        message = error if isinstance(error, SpecError) else "a spec is a mapping of values"
        raise SpecError(f"{path}: {message}") from None


def load_model(
    source: PathLike | tuple[PathLike, PathLike],
    *,
    names: PathLike | Sequence[str] | None = None,
    download: bool = False,
) -> Checkpoint:
    """The trained model that ``source`` names.

    Args:
        source: a checkpoint (.safetensors), a Darknet pair ``("x.cfg", "x.weights")`` or either of its two files where
            the other lies beside it under the same name, the name of official weights, or "default" for the model
            that comes with the package. That model also stands in for official weights of its network that were not
            downloaded, with a warning.
        names: class names, or a file with one a line; by default those in the checkpoint or beside the Darknet cfg.
        download: whether official weights that are not in the cache may be fetched.

    Raises:
        ScaledYoloError: there is no such model, it is damaged, or its parts do not fit.
    """
    if isinstance(source, (tuple, list)):
        if len(source) != 2:
            raise UsageError(f"a Darknet model is a pair (cfg, weights), got {len(source)} files")
        return _load_darknet(Path(source[0]), Path(source[1]), names)
    path = chosen_file(source, download=download)
    if path != Path(source) and os.fspath(source) != DEFAULT:
        warnings.warn(stand_in_notice(os.fspath(source)), stacklevel=2)
    suffix = path.suffix.lower()
    if suffix == ".safetensors":
        return _load_checkpoint(path, names)
    if suffix in (".cfg", ".weights"):
        other = path.with_suffix(".weights" if suffix == ".cfg" else ".cfg")
        if not other.is_file():
            raise UsageError(f"{path}: its other half {other} does not exist; give both, cfg and weights")
        return _load_darknet(path.with_suffix(".cfg"), path.with_suffix(".weights"), names)
    if suffix in (".pt", ".pth"):
        raise UsageError(f"{path}: convert it first: scaledyolo convert {path} {path.with_suffix('.safetensors')}")
    if suffix in SPEC_SUFFIXES:
        raise UsageError(f"{path}: describes a network, without weights; give a .safetensors or a Darknet pair")
    return _load_official(str(source), download)


def chosen_file(source: PathLike, *, download: bool = False) -> Path:
    """``source`` as a path, but the file of the default model where that is meant or has to stand in.

    Raises:
        UsageError: the default model is meant, and this copy of the package came without it.
    """
    name = os.fspath(source)
    if name == DEFAULT:
        return default_model_file()
    if download or name.lower() not in (*ZOO, *ALIASES) or not stands_in_for(find(name).name):
        return Path(source)
    from scaledyolo.download import is_downloaded

    return Path(source) if is_downloaded(find(name).name) else default_model_file()


def stand_in_notice(name: str) -> str:
    """What to tell about the default model in the place of official weights that are not there."""
    return (
        f"official weights of {name} are not downloaded, so this is {default_title()}; "
        f"`scaledyolo download {find(name).name}` fetches them"
    )


def default_title() -> str:
    """The default model in a few words.

    Raises:
        ScaledYoloError: it is missing or damaged.
    """
    from scaledyolo.checkpoint import load_description

    described = load_description(default_model_file())
    title = described.provenance.get(TITLE_KEY, f"{described.graph.name}, {len(described.class_names)} classes")
    return f"the default model ({title})"


def _load_checkpoint(path: Path, names: PathLike | Sequence[str] | None) -> Checkpoint:
    from scaledyolo.checkpoint import load_checkpoint
    from scaledyolo.classes import replacing_names

    checkpoint = load_checkpoint(path)
    if names is None:
        return checkpoint
    given, ids = replacing_names(
        names, checkpoint.category_ids, num_classes=checkpoint.graph.num_classes, place=os.fspath(path)
    )
    return replace(checkpoint, class_names=given, category_ids=ids)


def _load_darknet(cfg: Path, weights: Path, names: PathLike | Sequence[str] | None) -> Checkpoint:
    from scaledyolo.convert.darknet import load_darknet

    return load_darknet(cfg, weights, names=names)


def _load_official(name: str, download: bool) -> Checkpoint:
    from scaledyolo.convert.darknet import from_darknet
    from scaledyolo.download import fetch

    spec = _find(name)
    if spec.neck.is_elan:
        entry = f"{spec.name.removesuffix('-cfg')}-pt"
        raise UsageError(
            f"{name}: its official weights are a PyTorch file; convert them once: `scaledyolo download {entry}`, then "
            f"scaledyolo convert with the file that it names and {name}.safetensors"
        )
    weights = fetch(spec.name, allow_download=download)
    if weights.suffix != ".weights":
        raise UsageError(
            f"{name}: its official weights are a PyTorch file; convert them once: "
            f"scaledyolo convert {weights} {name}.safetensors"
        )
    return from_darknet(spec, weights)
