"""The layout ``module_list.<section>.`` of PyTorch networks built from a Darknet cfg (csp, u3 and YOLOR code).

The numbers are those of the sections of the cfg, so the cfg is needed to name the tensors. Without it every network of
the zoo is tried with the cfg that Darknet users have of it.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import replace

from scaledyolo.arch.graph import Graph
from scaledyolo.arch.lower import lower
from scaledyolo.arch.ops import Conv, Decoding, Implicit
from scaledyolo.arch.spec import ModelSpec
from scaledyolo.arch.zoo import ZOO
from scaledyolo.convert.darknet_cfg import DarknetModel, read_cfg, write_cfg
from scaledyolo.convert.key_map import KeyMap, Tensors
from scaledyolo.convert.recognise import as_logits, recognise
from scaledyolo.errors import ConversionError

# Of the PyTorch code that builds networks from a cfg, in which such checkpoints are trained.
NORM_EPS = 1e-4
DECODING: Decoding = "sigmoid-squared"  # whatever the cfg says: that code decodes nothing else

_KEY = re.compile(r"module_list\.(\d{1,4})\.(Conv2d|BatchNorm2d|implicit)\b.*")


def is_section_layout(tensors: Tensors) -> bool:
    """Whether all tensors are named by the number of a section."""
    return all(_KEY.fullmatch(key) for key in tensors)


def section_map(cfg: str | os.PathLike[str], decoding: Decoding | None) -> KeyMap:
    """Names of the tensors of a checkpoint that was trained with this cfg.

    Raises:
        CfgError: the cfg is missing or damaged.
        ConversionError: it has weights for which the layout is not known.
    """
    model = read_cfg(cfg, decoding=decoding or DECODING)
    graph = replace(as_logits(model.graph), norm_eps=NORM_EPS, norm_momentum=0.03, resize="letterbox")
    keys = _keys(model, graph)
    spec = recognise(graph)
    if spec is None:
        return KeyMap(graph, keys)
    target = lower(spec)
    named = {old.name: new.name for old, new in zip(graph, target, strict=True)}
    return KeyMap(target, {_renamed(name, named): key for name, key in keys.items()}, spec)


def _renamed(parameter: str, names: dict[str, str]) -> str:
    """The parameter of a node ``layer<i>`` under the name of the node in another graph."""
    node, _, suffix = parameter.partition(".")
    return f"{names[node]}.{suffix}"


def zoo_maps(tensors: Tensors, decoding: Decoding | None) -> Iterator[KeyMap]:
    """Names of the tensors for every network of the zoo that a cfg can describe, with the file's class count."""
    for spec in ZOO.values():
        if _is_numbered_by_cfg(spec):
            yield network_map(spec, tensors, decoding)


def _is_numbered_by_cfg(spec: ModelSpec) -> bool:
    """Whether that code trains it from a cfg whose sections stand in the order of our nodes; YOLOv7's do not."""
    return spec.norm_form == "branch" and spec.decoding != "region" and not spec.neck.is_elan


def network_map(spec: ModelSpec, tensors: Tensors, decoding: Decoding | None) -> KeyMap:
    """Names of the tensors for one network of the zoo.

    Raises:
        ConversionError: no cfg that the PyTorch code understands describes it.
    """
    if not _is_numbered_by_cfg(spec):
        raise ConversionError(
            f"its tensors are numbered by the sections of a cfg, but that code has no cfg of {spec.name}"
        )
    spec = trained_in_torch(spec, decoding)
    graph = lower(spec)
    model = read_cfg(write_cfg(graph))
    keys = _keys(model, model.graph, graph)
    predict = keys[f"{graph.heads[0].inputs[0]}.weight"]
    classes = _num_classes(tensors, predict, len(graph.detects[0].mask))
    if classes and classes != spec.num_classes:
        spec = spec.with_classes(classes)
        graph = lower(spec)
    return KeyMap(graph, keys, spec)


def trained_in_torch(spec: ModelSpec, decoding: Decoding | None) -> ModelSpec:
    """The network as that code trains it."""
    decoding = decoding or DECODING
    scale_xy = spec.scale_xy if decoding == "exp" else ()
    return replace(spec, decoding=decoding, scale_xy=scale_xy, norm_eps=NORM_EPS, resize="letterbox")


def _num_classes(tensors: Tensors, key: str, num_anchors: int) -> int:
    """Classes of a prediction; 0 where the tensor is no prediction of so many anchors."""
    filters = tensors[key].shape[0] if key in tensors and tensors[key].ndim == 4 else 0
    classes, rest = divmod(filters, num_anchors)
    return classes - 5 if not rest and classes > 5 else 0


def _keys(model: DarknetModel, graph: Graph, named: Graph | None = None) -> dict[str, str]:
    """Source tensor of every parameter; ``named`` is the same network under the names that are wanted."""
    section: dict[str, int] = {}
    for index, name in enumerate(model.sections):
        if name is not None:
            section.setdefault(name, index)  # an implicit vector belongs to its holder, which comes first
    keys: dict[str, str] = {}
    for node, target in zip(graph, named or graph, strict=True):
        for suffix in node.op.parameters(*graph.in_channels(node)):
            if not isinstance(node.op, Conv | Implicit):
                raise ConversionError(
                    f"section {section[node.name]} of the cfg has weights of its own ({type(node.op).__name__}), which "
                    "no checkpoint of this layout is known to have"
                )
            keys[f"{target.name}.{suffix}"] = f"module_list.{section[node.name]}.{_leaf(suffix)}"
    return keys


def _leaf(suffix: str) -> str:
    if suffix.startswith("norm."):
        return f"BatchNorm2d.{suffix.removeprefix('norm.')}"
    return suffix if suffix == "implicit" else f"Conv2d.{suffix}"
