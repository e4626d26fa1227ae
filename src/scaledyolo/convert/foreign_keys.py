"""Foreign PyTorch checkpoints become weights of our networks: which layout, which network, which tensor goes where.

Four layouts are understood: modules numbered by a yaml file (:mod:`yaml_layout`: P5, P6, P7, csp; :mod:`elan_layout`:
YOLOv7, in whichever form), modules numbered by a Darknet cfg (:mod:`section_layout`: csp, tiny, YOLOR-like), and state
dicts of our own networks. Every parameter needs a tensor of its shape and every tensor a parameter.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace

from scaledyolo.arch.graph import Graph
from scaledyolo.arch.lower import lower
from scaledyolo.arch.ops import Activation, ChannelSplit, Conv, Decoding
from scaledyolo.arch.spec import ModelSpec
from scaledyolo.arch.zoo import ZOO, find
from scaledyolo.convert.elan_layout import deploy_note, deployed, elan_map, is_elan_layout
from scaledyolo.convert.key_map import (
    KeyMap,
    Tensors,
    recorded_activation,
    recorded_names,
    recorded_norm_eps,
    weight_tensors,
)
from scaledyolo.convert.section_layout import is_section_layout, network_map, section_map, zoo_maps
from scaledyolo.convert.torch_pickle import ForeignCheckpoint
from scaledyolo.convert.yaml_layout import is_yaml_layout, yaml_map
from scaledyolo.errors import ConversionError
from scaledyolo.weights import Weights

# Ablations of the papers: nobody publishes checkpoints of them, but some have the tensors of a published network.
_EXPERIMENTS = ("table8-", "table9-")


@dataclass(frozen=True)
class ForeignModel:
    """A foreign checkpoint as one of our networks.

    Attributes:
        graph: the network.
        weights: float32 arrays by name of ``graph.parameters``.
        keys: the tensor of the file that each of them was.
        layout: a phrase for what the tensors are named by.
        spec: the spec of the graph where it has one.
        class_names: names that the file carries.
        notes: what had to be assumed, one sentence each.
        absorbed: tensors that became part of others or that only training needs.
    """

    graph: Graph
    weights: Weights
    keys: Mapping[str, str]
    layout: str
    spec: ModelSpec | None = None
    class_names: tuple[str, ...] | None = None
    notes: tuple[str, ...] = ()
    absorbed: frozenset[str] = frozenset()


def read_foreign(
    checkpoint: ForeignCheckpoint,
    *,
    cfg: str | os.PathLike[str] | None = None,
    network: str | None = None,
    decoding: Decoding | None = None,
) -> ForeignModel:
    """Find the network of a foreign checkpoint and take its weights, strictly.

    Args:
        checkpoint: what :func:`read_torch_checkpoint` returned.
        cfg: the Darknet cfg it was trained with, for tensors named by its sections.
        network: name of the network in the zoo, where the tensors alone do not tell.
        decoding: how its boxes are decoded, in place of what its code base does.

    Raises:
        ConversionError: no network fits, or several do; names the first tensor that does not and what to give.
        CfgError: the cfg is missing or damaged.
        UsageError: the zoo has no ``network``.
    """
    tensors = weight_tensors(checkpoint)
    if not tensors:
        raise ConversionError("it holds no weights")
    if is_section_layout(tensors):
        layout = "sections of a cfg"
        found, notes = _by_sections(checkpoint, tensors, cfg, network, decoding)
    elif cfg is not None:
        raise ConversionError(
            f"its tensors (such as {next(iter(tensors))!r}) are not numbered by sections of a cfg; leave --cfg out"
        )
    elif is_yaml_layout(tensors) and is_elan_layout(tensors):
        layout = "modules of a yaml file"
        found = elan_map(checkpoint, network)
        notes = tuple(filter(None, (deploy_note(found),)))
    elif is_yaml_layout(tensors):
        layout = "modules of a yaml file"
        found, notes = yaml_map(checkpoint, network), ()
        if found.spec is not None and found.spec.name not in ZOO:
            notes = (_inferred(found.spec),)
    else:
        layout = "nodes of our own networks"
        found, notes = _by_nodes(checkpoint, tensors, network, decoding)
    difference = found.difference(tensors)
    if difference:
        raise ConversionError(f"it does not fit {found.graph.name} ({found.graph.num_classes} classes): {difference}")
    final, weights = deployed(found, found.take(tensors))
    return ForeignModel(
        graph=final.graph,
        weights=weights,
        keys=final.keys,
        layout=layout,
        spec=final.spec,
        class_names=recorded_names(checkpoint, final.graph.num_classes),
        notes=notes,
        absorbed=frozenset(found.keys.values()) - frozenset(final.keys.values()),
    )


def _inferred(spec: ModelSpec) -> str:
    widths = ", ".join(str(stage.channels) for stage in spec.stages)
    depths = ", ".join(str(stage.depth) for stage in spec.stages)
    return (
        f"no network of the zoo has these shapes; read from them: stages {widths} wide and {depths} deep, "
        f"activation {spec.activation}, size {spec.size} assumed"
    )


def _by_sections(
    checkpoint: ForeignCheckpoint,
    tensors: Tensors,
    cfg: str | os.PathLike[str] | None,
    network: str | None,
    decoding: Decoding | None,
) -> tuple[KeyMap, tuple[str, ...]]:
    notes: tuple[str, ...] = ()
    if cfg is not None:
        found = section_map(cfg, decoding)
    elif network is not None:
        found = network_map(find(network), tensors, decoding)
    else:
        found, notes = _choose(list(zoo_maps(tensors, decoding)), tensors, recorded_activation(checkpoint))
        if _has_two_readings(found.graph) and not found.difference(tensors):
            raise ConversionError(
                f"its tensors fit {found.graph.name}, of which PyTorch code knows two readings: each split goes on "
                "with the second half of the channels, as in Darknet, or with the first (route_lhalf); give the cfg it "
                f"was trained with (--cfg), or --network {found.graph.name} for Darknet's reading"
            )
    return _with_norm_eps(found, recorded_norm_eps(checkpoint)), notes


def _by_nodes(
    checkpoint: ForeignCheckpoint, tensors: Tensors, network: str | None, decoding: Decoding | None
) -> tuple[KeyMap, tuple[str, ...]]:
    specs = [find(network)] if network is not None else list(ZOO.values())
    maps = []
    for spec in specs:
        graph = lower(spec)
        predict = tensors.get(f"{graph.heads[0].inputs[0]}.weight")
        if predict is None or predict.ndim != 4 or "backbone.stem.weight" not in tensors:
            continue
        classes = predict.shape[0] // len(spec.masks[0]) - 5
        adapted = replace(spec, num_classes=max(1, classes), decoding=decoding or spec.decoding)
        graph = lower(adapted)
        maps.append(KeyMap(graph, {name: name for name in graph.parameters}, adapted))
    if not maps:
        raise ConversionError(
            f"its tensors are named as in no layout that is understood (such as {next(iter(tensors))!r}); understood "
            "are model.<module>. of YOLOv4-P5, P6, P7 and YOLOv7, module_list.<section>. of networks built from a cfg, "
            "and our own"
        )
    found, notes = _choose(maps, tensors, recorded_activation(checkpoint))
    return _with_norm_eps(found, recorded_norm_eps(checkpoint)), notes


def _has_two_readings(graph: Graph) -> bool:
    """Whether the network splits channels: an older PyTorch port goes on with the other half, with the same tensors."""
    return any(isinstance(node.op, ChannelSplit) for node in graph)


def _with_norm_eps(found: KeyMap, eps: float | None) -> KeyMap:
    if eps is None or eps == found.graph.norm_eps:
        return found
    spec = replace(found.spec, norm_eps=eps) if found.spec is not None else None
    return replace(found, graph=replace(found.graph, norm_eps=eps), spec=spec)


def _choose(maps: list[KeyMap], tensors: Tensors, activation: Activation | None) -> tuple[KeyMap, tuple[str, ...]]:
    """The one network that fits; the nearest where none does, so that the caller can say what differs."""
    fitting = [found for found in maps if not found.difference(tensors)]
    if not fitting:
        return max(maps, key=lambda found: found.num_matching(tensors)), ()
    different: list[KeyMap] = []
    for found in fitting:
        if all(found.graph.signature() != other.graph.signature() for other in different):
            different.append(found)
    if activation is not None:
        different = [found for found in different if activation in _activations(found.graph)] or different
    published = [found for found in different if not found.graph.name.startswith(_EXPERIMENTS)]
    chosen = different if len(different) == 1 else published
    if len(chosen) != 1:
        names = " and ".join(found.graph.name for found in chosen or different)
        raise ConversionError(
            f"its tensors fit {names} alike, which compute different things; say which with --network, or give the cfg "
            "it was trained with (--cfg)"
        )
    others = [found.graph.name for found in different if found is not chosen[0]]
    if not others:
        return chosen[0], ()
    note = (
        f"the tensors fit {' and '.join(others)} as well (other activations); {chosen[0].graph.name} was taken, "
        "--network or --cfg decides otherwise"
    )
    return chosen[0], (note,)


def _activations(graph: Graph) -> set[str]:
    return {node.op.activation for node in graph if isinstance(node.op, Conv)}
