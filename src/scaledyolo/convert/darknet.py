"""A Darknet pair, cfg and weights, becomes a checkpoint."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from scaledyolo.arch.graph import Graph
from scaledyolo.arch.lower import lower
from scaledyolo.arch.ops import Decoding
from scaledyolo.arch.spec import ModelSpec
from scaledyolo.checkpoint import Checkpoint
from scaledyolo.classes import category_ids_of, default_category_ids, default_names, given_names, read_names
from scaledyolo.convert.darknet_cfg import DarknetModel, read_cfg
from scaledyolo.convert.darknet_weights import DarknetWeights, read_weights
from scaledyolo.convert.recognise import as_logits, recognise, rename
from scaledyolo.errors import ConversionError

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class DarknetPair:
    """A cfg and the weights that were read for it."""

    model: DarknetModel
    weights: DarknetWeights
    cfg_path: Path
    weights_path: Path


def read_pair(cfg: PathLike, weights: PathLike, *, decoding: Decoding | None = None) -> DarknetPair:
    """Read cfg and weights; the file of weights has to fit to the byte.

    Raises:
        CfgError, WeightsError: a file is damaged or they do not fit each other.
    """
    model = read_cfg(cfg, decoding=decoding)
    return DarknetPair(model, read_weights(weights, model.graph), Path(cfg), Path(weights))


def load_darknet(
    cfg: PathLike,
    weights: PathLike,
    *,
    names: PathLike | Sequence[str] | None = None,
    decoding: Decoding | None = None,
    name_by_spec: bool = False,
) -> Checkpoint:
    """Read a Darknet pair into a checkpoint.

    ``names``: class names or a file of them; by default a .names file beside the cfg, then COCO's or VOC's by number.
    ``name_by_spec``: look the network up in the zoo, so that its nodes carry the names of the family (for converting;
    a detector does not need it).
    """
    return checkpoint_of(read_pair(cfg, weights, decoding=decoding), names=names, name_by_spec=name_by_spec)


def checkpoint_of(
    pair: DarknetPair, *, names: PathLike | Sequence[str] | None = None, name_by_spec: bool = False
) -> Checkpoint:
    """The checkpoint of a pair that was read; arguments as for :func:`load_darknet`."""
    graph, arrays = as_logits(pair.model.graph), dict(pair.weights.arrays)
    spec = recognise(graph) if name_by_spec else None
    if spec is not None:
        target = lower(spec)
        graph, arrays = target, rename(graph, target, arrays)
    known = class_names(graph.num_classes, names, beside=pair.cfg_path)
    return Checkpoint(
        graph=graph,
        weights=arrays,
        class_names=known,
        spec=spec,
        category_ids=category_ids_of(known),
        provenance=provenance(pair.weights, {"cfg": pair.cfg_path, "weights": pair.weights_path}, pair.model.graph),
    )


def from_darknet(spec: ModelSpec, weights: PathLike) -> Checkpoint:
    """Official .weights for a network of the zoo, whose nodes stand in the order of its cfg.

    Raises:
        ConversionError: the nodes of this network do not (YOLOv7), so that the cfg is needed.
    """
    if spec.neck.is_elan:
        raise ConversionError(
            f"{weights}: Darknet's file of {spec.name} has its layers in an order that its cfg alone tells; give that "
            "cfg too (--cfg, or beside the weights under the same name), or take the PyTorch file"
        )
    graph = lower(spec)
    read = read_weights(weights, graph)
    return Checkpoint(
        graph=graph,
        weights=dict(read.arrays),
        class_names=default_names(graph.num_classes),
        spec=spec,
        category_ids=default_category_ids(graph.num_classes),
        provenance=provenance(read, {"weights": Path(weights)}, graph),
    )


def class_names(num_classes: int, names: PathLike | Sequence[str] | None, *, beside: Path) -> tuple[str, ...]:
    """Class names as given, from the .names file of the same stem, or the known ones of that number of classes."""
    if names is None:
        own = beside.with_suffix(".names")
        found = read_names(own) if own.is_file() else ()
        return found if len(found) == num_classes else default_names(num_classes)
    return given_names(names)


def provenance(weights: DarknetWeights, files: Mapping[str, Path], graph: Graph) -> dict[str, str]:
    """Where the weights come from, as texts; enough to write the same .weights file again, byte by byte."""
    facts = {
        "source": "Darknet",
        "darknet_version": ".".join(map(str, weights.version)),
        "darknet_header_bytes": str(weights.header_bytes),
        "images_seen": str(weights.seen),
        "nms_kind": graph.detects[0].nms_kind,
        "beta_nms": repr(graph.detects[0].beta_nms),
    }
    for role, path in files.items():
        facts[f"{role}_file"] = path.name
        facts[f"{role}_sha256"] = sha256(path)
    return facts


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()
