"""The layout ``model.<index>.`` of YOLOv7: modules numbered as in its yaml files, nearly every convolution a module.

The numbering follows from the spec, stage by stage: what halves the resolution, then the ELAN, then the concatenations
and sums without weights, each with a number of its own. Poolings of several branches have one number for each branch in
yolov7 and X, and one for all in E6 and larger; so have spatial pyramids everywhere but in tiny. Heads come last, then
auxiliary heads, then one module for the predictions of all levels.

A checkpoint may have the form that is trained. It becomes the deploy form, exactly: implicit vectors are multiplied
into the predictions, auxiliary heads are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import NamedTuple

from scaledyolo.arch.graph import Graph
from scaledyolo.arch.lower import lower
from scaledyolo.arch.ops import Activation, Conv, Implicit
from scaledyolo.arch.spec import Downsample, Head, ModelSpec
from scaledyolo.arch.zoo import TRAINING_FORMS, ZOO, find
from scaledyolo.arch.zoo_v7 import TRAINING_SUFFIX, deploy_form
from scaledyolo.convert.fold import fold_implicit, without_auxiliary
from scaledyolo.convert.key_map import KeyMap, Tensors, recorded_activation, recorded_norm_eps, weight_tensors
from scaledyolo.convert.torch_pickle import ForeignCheckpoint
from scaledyolo.convert.yaml_head import check_not_fused, with_head
from scaledyolo.errors import ConversionError
from scaledyolo.weights import Weights

# Parts of the names of tensors that no other family has.
_MARKS = ("rbr_dense", ".ia.", ".im.", ".m2.")
# Batch normalisation's epsilon in the code that trains these networks, for files that do not record it.
NORM_EPS = 1e-3

_PREDICTION = re.compile(r"model\.\d{1,4}\.m\.\d{1,2}\.weight")
_SPP_CSP = ("main", "bypass", "lead1", "lead2", "pair1.conv1", "pair1.conv2", "out")  # cv1 to cv7
_WIDE_CONV_POOL = ("before", "down", "pooled")  # cv1 to cv3
_REP = {"dense": "rbr_dense", "pointwise": "rbr_1x1"}


class Place(NamedTuple):
    """A node and the path of its module in the checkpoint."""

    node: str
    path: str


@dataclass
class _Numbering:
    """Hands out the numbers of modules, one after the other."""

    index: int = 0

    def single(self, *nodes: str) -> Iterator[Place]:
        """Modules of one convolution each."""
        for node in nodes:
            yield Place(node, f"model.{self.index}")
            self.index += 1

    def block(self, scope: str, members: tuple[str, ...]) -> Iterator[Place]:
        """One module of several convolutions, cv1, cv2 and so on."""
        for number, member in enumerate(members, start=1):
            yield Place(f"{scope}.{member}", f"model.{self.index}.cv{number}")
        self.index += 1

    def skip(self, count: int = 1) -> None:
        """Modules without weights."""
        self.index += count


def is_elan_layout(tensors: Tensors) -> bool:
    """Whether tensors named by modules are those of YOLOv7.

    They are if it alone has such names, if its pooling block is normalised convolution by convolution, or, as in
    yolov7-tiny, if no module has convolutions of its own.
    """
    pyramids = [key.removesuffix(".cv7.conv.weight") for key in tensors if key.endswith(".cv7.conv.weight")]
    return (
        any(mark in key for key in tensors for mark in _MARKS)
        or any(f"{path}.cv2.conv.weight" in tensors for path in pyramids)
        or not any(".cv1." in key for key in tensors)
    )


def elan_map(checkpoint: ForeignCheckpoint, network: str | None = None) -> KeyMap:
    """The network of a checkpoint of this layout, in the form that the file has, and the names of its tensors.

    Args:
        checkpoint: what the file holds.
        network: name of the network in the zoo; by default the one that fits, or else the nearest.

    Raises:
        ConversionError: the file has another number of levels, or its predictions do not fit.
        UsageError: the zoo has no ``network``.
    """
    tensors = weight_tensors(checkpoint)
    check_not_fused(tensors)
    activation, eps = recorded_activation(checkpoint), recorded_norm_eps(checkpoint)
    maps = []
    for spec in _candidates(tensors, network):
        spec = with_head(_activated(spec, activation), tensors, checkpoint)
        spec = replace(spec, norm_eps=NORM_EPS if eps is None else eps)
        graph = lower(spec)
        maps.append(KeyMap(graph, parameter_keys(spec, graph), spec))
    return next(
        (found for found in maps if not found.difference(tensors)),
        max(maps, key=lambda found: found.num_matching(tensors)),
    )


def _candidates(tensors: Tensors, network: str | None) -> list[ModelSpec]:
    """Both forms of every network, or of the one that was named, with as many levels as the file."""
    known = [spec for spec in (*ZOO.values(), *TRAINING_FORMS.values()) if spec.neck.is_elan]
    if network is not None:
        name = find(network).name.removesuffix(TRAINING_SUFFIX)
        known = [spec for spec in known if spec.name.removesuffix(TRAINING_SUFFIX) == name]
        if not known:
            raise ConversionError(f"its tensors are named as in YOLOv7's networks, but {name} is built otherwise")
    num_levels = sum(bool(_PREDICTION.fullmatch(key)) for key in tensors)
    fitting = [spec for spec in known if len(spec.masks) == num_levels]
    if not fitting:
        counts = " or ".join(str(count) for count in sorted({len(spec.masks) for spec in known}))
        raise ConversionError(
            f"it predicts at {num_levels} levels, but {network or 'YOLOv7'} does at {counts}; files named by module "
            f"numbers are converted if they are of {', '.join(spec.name for spec in known if spec.name in ZOO)}, or of "
            "YOLOv4-P5, P6, P7 and their relatives"
        )
    return fitting


def _activated(spec: ModelSpec, activation: Activation | None) -> ModelSpec:
    """The spec with the activation that the file records; it is renamed where that is another one."""
    if activation in (None, spec.activation):
        return spec
    base = spec.name.removesuffix(TRAINING_SUFFIX)
    return replace(spec, name=f"{base}-{activation}{spec.name.removeprefix(base)}", activation=activation)


def deployed(found: KeyMap, weights: Weights) -> tuple[KeyMap, Weights]:
    """The network for inference and its weights: equal outputs, without implicit vectors and auxiliary heads."""
    if found.spec is None or found.spec == deploy_form(found.spec):
        return found, weights
    spec = deploy_form(found.spec)
    graph = lower(spec)
    _, folded = fold_implicit(*without_auxiliary(found.graph, weights))
    keys = {name: found.keys[name] for name in graph.parameters}
    return KeyMap(graph, keys, spec), {name: folded[name] for name in graph.parameters}


def deploy_note(found: KeyMap) -> str:
    """What :func:`deployed` does to a network, as a sentence; empty where it does nothing."""
    head = found.spec.head if found.spec is not None else Head()
    done = []
    if head.implicit:
        done.append(f"the implicit vectors of {len(found.graph.heads)} levels were multiplied into the predictions")
    if head.auxiliary:
        done.append(f"{len(head.auxiliary)} auxiliary heads were left out")
    return f"it has the form that is trained; {' and '.join(done)}, which changes no output" if done else ""


def places(spec: ModelSpec) -> Iterator[Place]:
    """Every node with weights and the path of its module, in the order of the numbers."""
    count = _Numbering(int(spec.stem.space_to_depth))
    yield from count.single("backbone.stem")
    for number, stage in enumerate(spec.stages, start=1):
        scope = f"backbone.stage{number}"
        yield from _halving(count, scope, stage.downsample)
        if stage.downsample == "conv-pool":
            count.skip()
        if stage.block == "conv":
            yield from count.single(*(f"{scope}.conv{index + 1}" for index in range(stage.depth)))
        else:
            yield from _elans(count, scope, stage.depth, extended=stage.block == "e-elan")
    yield from _neck(count, spec)
    yield from _heads(count, spec)


def _halving(count: _Numbering, scope: str, kind: Downsample) -> Iterator[Place]:
    """What halves the resolution, without the concatenation that follows two branches."""
    if kind == "conv":
        yield from count.single(f"{scope}.down")
    elif kind == "maxpool":
        count.skip()
    elif kind == "conv-pool":
        count.skip()
        yield from count.single(*(f"{scope}.{member}" for member in ("pooled", "before", "down")))
    else:
        yield from count.block(scope, _WIDE_CONV_POOL)


def _elans(count: _Numbering, scope: str, depth: int, *, extended: bool) -> Iterator[Place]:
    for inner in (f"{scope}.first", f"{scope}.second") if extended else (scope,):
        row = (f"{inner}.conv{index + 1}" for index in range(depth))
        yield from count.single(f"{inner}.bypass", f"{inner}.main", *row)
        count.skip()
        yield from count.single(f"{inner}.out")
    if extended:
        count.skip()


def _neck(count: _Numbering, spec: ModelSpec) -> Iterator[Place]:
    neck, levels = spec.neck, _level_names(spec)
    extended = neck.kind == "e-elan-pan"
    yield from _pyramid(count, f"neck.top_down.{levels[-1]}", in_one=neck.spp_pairs > 0)
    for level in reversed(levels[:-1]):
        scope = f"neck.top_down.{level}"
        yield from count.single(f"{scope}.reduce")
        count.skip()
        yield from count.single(f"{scope}.lateral")
        count.skip()
        yield from _elans(count, scope, neck.depth, extended=extended)
    for level in levels[1:]:
        scope = f"neck.bottom_up.{level}"
        yield from _halving(count, scope, neck.downsample)
        count.skip()
        yield from _elans(count, scope, neck.depth, extended=extended)


def _pyramid(count: _Numbering, scope: str, *, in_one: bool) -> Iterator[Place]:
    if in_one:
        yield from count.block(scope, _SPP_CSP)
        return
    yield from count.single(f"{scope}.bypass", f"{scope}.main")
    count.skip(4)  # three pools and their concatenation
    yield from count.single(f"{scope}.pair1.conv1")
    count.skip()
    yield from count.single(f"{scope}.out")


def _heads(count: _Numbering, spec: ModelSpec) -> Iterator[Place]:
    levels = _level_names(spec)
    for level in levels:
        if spec.head.conv == "conv":
            yield from count.single(f"head.{level}.conv")
            continue
        for member, name in _REP.items():
            yield Place(f"head.{level}.rep.{member}", f"model.{count.index}.{name}")
        count.skip()
    if spec.head.auxiliary:
        yield from count.single(*(f"head.auxiliary.{level}.conv" for level in levels))
    for number, level in enumerate(levels):
        for member, name in (("predict", "m"), ("add", "ia"), ("multiply", "im")):
            if member == "predict" or spec.head.implicit:
                yield Place(f"head.{level}.{member}", f"model.{count.index}.{name}.{number}")
        if spec.head.auxiliary:
            yield Place(f"head.auxiliary.{level}.predict", f"model.{count.index}.m2.{number}")


def _level_names(spec: ModelSpec) -> list[str]:
    coarsest = spec.stem.halvings + len(spec.stages)
    return [f"p{number}" for number in range(coarsest - len(spec.masks) + 1, coarsest + 1)]


def parameter_keys(spec: ModelSpec, graph: Graph | None = None) -> dict[str, str]:
    """Name of the tensor of every parameter of a network of this layout."""
    graph = graph or lower(spec)
    paths = dict(places(spec))
    return {
        f"{node.name}.{suffix}": f"{paths[node.name]}.{_leaf(node.op, paths[node.name], suffix)}"
        for node in graph
        for suffix in node.op.parameters(*graph.in_channels(node))
    }


def _leaf(op: object, path: str, suffix: str) -> str:
    if isinstance(op, Implicit):
        return suffix
    assert isinstance(op, Conv)
    if not op.norm:
        return suffix
    conv, norm = ("0", "1") if path.rpartition(".")[2] in _REP.values() else ("conv", "bn")
    return f"{norm}.{suffix.removeprefix('norm.')}" if suffix.startswith("norm.") else f"{conv}.{suffix}"
