"""The layout ``model.<index>.`` of Scaled-YOLOv4's large networks: modules numbered as in their yaml file.

The numbering follows from the spec: stem; a downsampling and a stage in turn; pooling; for each finer level
[reduce, upsample, lateral, concatenate, stage]; the 3x3 of the finest head; for each coarser level
[down, concatenate, stage, the 3x3 of its head]; the predictions of all levels. Modules
without weights have a number too.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import NamedTuple

from scaledyolo.arch.graph import Graph
from scaledyolo.arch.lower import lower
from scaledyolo.arch.ops import Activation, BatchNorm, Conv
from scaledyolo.arch.spec import ModelSpec, Neck, Stage, Stem
from scaledyolo.arch.zoo import ZOO, find
from scaledyolo.convert.key_map import (
    KeyMap,
    Tensors,
    recorded_activation,
    recorded_norm_eps,
    weight_tensors,
)
from scaledyolo.convert.torch_pickle import ForeignCheckpoint
from scaledyolo.convert.yaml_head import check_not_fused, with_head
from scaledyolo.errors import ConversionError

_KEY = re.compile(r"model\.(\d{1,4})\.(.+)")
_REPEAT = re.compile(r"m\.(\d{1,4})\.cv2\.conv\.weight")
_NUMBERED = re.compile(r"(block|pair)(\d+)\.conv([12])")

# Name of a node below its scope: name of the module below its number.
_CSP = {"main": "cv1", "bypass": "cv2", "tail": "cv3", "out": "cv4", "norm": "bn"}
_REVERSED_CSP = {"main": "cv1", "bypass": "cv2", "out": "cv3", "norm": "bn"}
_SPP_CSP = {
    "main": "cv1",
    "bypass": "cv2",
    "lead1": "cv3",
    "lead2": "cv4",
    "pair1.conv1": "cv5",
    "pair1.conv2": "cv6",
    "norm": "bn",
    "out": "cv7",
}
_RESIDUAL = {"block1.conv1": "cv1", "block1.conv2": "cv2"}
_SINGLE = {"": ""}


class _Row(NamedTuple):
    """One module with weights: its number, the scope of its nodes and their names in the module."""

    number: int
    scope: str
    members: Mapping[str, str]


def is_yaml_layout(tensors: Tensors) -> bool:
    """Whether all tensors are named by the number of a module."""
    return all(_KEY.fullmatch(key) for key in tensors)


def yaml_map(checkpoint: ForeignCheckpoint, network: str | None = None) -> KeyMap:
    """The network of a checkpoint of this layout and the names of its tensors.

    Args:
        checkpoint: what the file holds.
        network: name of the network in the zoo; by default widths and depths follow from the shapes, so that networks
            trained with other ones are understood as well.

    Raises:
        ConversionError: it is a network of another family, or one of its tensors does not fit.
        UsageError: the zoo has no ``network``.
    """
    tensors = weight_tensors(checkpoint)
    if network is None:
        spec = _Shapes(tensors).spec(recorded_activation(checkpoint) or "mish")
    else:
        spec = find(network)
        if spec.norm_form != "concat" or spec.neck.kind != "csp-pan":
            raise ConversionError(
                f"its tensors are named by the modules of a yaml file, as in {', '.join(_yaml_networks())}, "
                f"but {spec.name} is built otherwise"
            )
    eps = recorded_norm_eps(checkpoint)
    spec = with_head(spec, tensors, checkpoint)
    spec = replace(spec, norm_eps=eps if eps is not None else spec.norm_eps)
    graph = lower(spec)
    return KeyMap(graph, parameter_keys(spec, graph), spec)


def _yaml_networks() -> list[str]:
    return [spec.name for spec in ZOO.values() if spec.norm_form == "concat"]


# From the spec to the names


def _rows(spec: ModelSpec) -> Iterator[_Row]:
    levels = _level_names(spec)
    yield _Row(0, "backbone.stem", _SINGLE)
    for number, stage in enumerate(spec.stages, start=1):
        yield _Row(2 * number - 1, f"backbone.stage{number}.down", _SINGLE)
        yield _Row(2 * number, f"backbone.stage{number}", _RESIDUAL if stage.block == "residual" else _CSP)
    index = 2 * len(spec.stages) + 1
    yield _Row(index, f"neck.top_down.{levels[-1]}", _SPP_CSP)
    for level in reversed(levels[:-1]):
        scope = f"neck.top_down.{level}"
        yield _Row(index + 1, f"{scope}.reduce", _SINGLE)
        yield _Row(index + 3, f"{scope}.lateral", _SINGLE)
        index += 5
        yield _Row(index, scope, _REVERSED_CSP)
    index += 1
    yield _Row(index, f"head.{levels[0]}.conv", _SINGLE)
    for level in levels[1:]:
        yield _Row(index + 1, f"neck.bottom_up.{level}.down", _SINGLE)
        yield _Row(index + 3, f"neck.bottom_up.{level}", _REVERSED_CSP)
        index += 4
        yield _Row(index, f"head.{level}.conv", _SINGLE)
    for number, level in enumerate(levels):
        yield _Row(index + 1, f"head.{level}.predict", {"": f"m.{number}"})


def _level_names(spec: ModelSpec) -> list[str]:
    coarsest = len(spec.stages)
    return [f"p{number}" for number in range(coarsest - len(spec.masks) + 1, coarsest + 1)]


def parameter_keys(spec: ModelSpec, graph: Graph | None = None) -> dict[str, str]:
    """Name of the tensor of every parameter of a network of this layout."""
    graph = graph or lower(spec)
    scopes = {row.scope: row for row in _rows(spec)}
    keys: dict[str, str] = {}
    for node in graph:
        suffixes = node.op.parameters(*graph.in_channels(node))
        if not suffixes:
            continue
        row, member = _place(scopes, node.name)
        path = ".".join(filter(None, (f"model.{row.number}", member)))
        for suffix in suffixes:
            keys[f"{node.name}.{suffix}"] = f"{path}.{_leaf(node.op, suffix)}"
    return keys


def _place(scopes: Mapping[str, _Row], node: str) -> tuple[_Row, str]:
    """The row whose scope is the longest that contains the node, and the node's name in the module."""
    scope, inner = node, ""
    while scope not in scopes:
        scope, _, last = scope.rpartition(".")
        inner = f"{last}.{inner}" if inner else last
        if not scope:
            raise ConversionError(f"node {node!r} has no place in a yaml file of the large networks")
    row = scopes[scope]
    numbered = _NUMBERED.fullmatch(inner)
    if inner not in row.members and numbered:
        return row, f"m.{int(numbered.group(2)) - 1}.cv{numbered.group(3)}"
    if inner not in row.members:
        raise ConversionError(f"node {node!r} has no place in a yaml file of the large networks")
    return row, row.members[inner]


def _leaf(op: object, suffix: str) -> str:
    if isinstance(op, Conv) and op.norm:
        return f"bn.{suffix.removeprefix('norm.')}" if suffix.startswith("norm.") else f"conv.{suffix}"
    assert isinstance(op, Conv | BatchNorm)
    return suffix


# From the shapes to the spec


class _Shapes:
    """Reads widths and depths off the shapes of the tensors."""

    def __init__(self, tensors: Tensors) -> None:
        self.tensors = tensors
        self.numbers = [int(match.group(1)) for match in map(_KEY.fullmatch, tensors) if match]

    def spec(self, activation: Activation) -> ModelSpec:
        """The zoo's spec of these widths and depths, or one of its own; classes and anchors are not set yet."""
        top = self._pooling()
        detect = max(self.numbers)
        num_levels = sum(key.startswith(f"model.{detect}.m.") and key.endswith(".weight") for key in self.tensors)
        stages = tuple(self._stage(number) for number in range(1, (top - 1) // 2 + 1))
        if detect != top + 9 * num_levels - 7 or not 2 <= num_levels < len(stages) + 1:
            raise self._foreign(
                f"with its pooling at module {top} and {num_levels} levels the predictions would be module "
                f"{top + 9 * num_levels - 7}, but they are module {detect}"
            )
        finest_first = [top + 5 * step for step in reversed(range(num_levels))]
        widths = tuple(self.filters(f"model.{index}.cv1.conv.weight") for index in finest_first)
        neck = Neck("csp-pan", widths, depth=self._repeats(finest_first[0]))
        stem = Stem(self.filters("model.0.conv.weight"))
        return self._named(stem, stages, neck, activation)

    def _named(self, stem: Stem, stages: tuple[Stage, ...], neck: Neck, activation: Activation) -> ModelSpec:
        known = [ZOO[name] for name in _yaml_networks()]
        for spec in known:
            if (spec.stem, spec.stages, spec.neck) == (stem, stages, neck):
                same = activation == spec.activation
                return spec if same else replace(spec, name=f"{spec.name}-{activation}", activation=activation)
        like = min(known, key=lambda spec: abs(len(spec.stages) - len(stages)))
        masks = like.masks[:1] * len(neck.widths)  # until the anchors are read
        return replace(
            like, name="scaled-yolov4", stem=stem, stages=stages, neck=neck, masks=masks, activation=activation
        )

    def filters(self, key: str) -> int:
        """Output channels of a convolution."""
        if key not in self.tensors:
            raise self._foreign(f"tensor {key!r} is missing")
        shape = self.tensors[key].shape
        if len(shape) != 4 or not shape[0]:
            raise ConversionError(f"tensor {key!r} of shape {tuple(shape)} is no convolution")
        return int(shape[0])

    def _pooling(self) -> int:
        """Number of the module of spatial pyramid pooling, the only one with seven convolutions."""
        with_seven = [n for n in sorted(set(self.numbers)) if f"model.{n}.cv7.conv.weight" in self.tensors]
        check_not_fused(self.tensors)
        if len(with_seven) != 1 or with_seven[0] % 2 == 0:
            raise self._foreign("no module is the CSP pooling block with the convolutions cv1 to cv7")
        return with_seven[0]

    def _stage(self, number: int) -> Stage:
        width = self.filters(f"model.{2 * number - 1}.conv.weight")
        if f"model.{2 * number}.cv4.conv.weight" in self.tensors:
            return Stage("csp", width, self._repeats(2 * number))
        hidden = self.filters(f"model.{2 * number}.cv1.conv.weight")
        return Stage("residual", width, 1, hidden=hidden if hidden != width // 2 else None)

    def _repeats(self, index: int) -> int:
        prefix = f"model.{index}."
        inner = (key.removeprefix(prefix) for key in self.tensors if key.startswith(prefix))
        numbers = [int(match.group(1)) for match in map(_REPEAT.fullmatch, inner) if match]
        missing = set(range(max(numbers, default=-1) + 1)) - set(numbers)
        if missing:
            raise self._foreign(f"tensor '{prefix}m.{min(missing)}.cv2.conv.weight' is missing")
        return len(numbers)

    def _foreign(self, reason: str) -> ConversionError:
        known = ", ".join(_yaml_networks())
        return ConversionError(
            f"{reason}; files named by module numbers are converted if they have the layout of {known} (any width and "
            "depth), or that of YOLOv7's networks, not those of YOLOv5 and others"
        )
