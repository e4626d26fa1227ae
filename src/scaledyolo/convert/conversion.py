"""From one file of weights to another: what ``scaledyolo convert`` does.

``.weights`` with its cfg, ``.pt`` and ``.pth`` become a checkpoint (``.safetensors``); a checkpoint becomes
``.weights`` with a cfg beside it, or a cfg alone. Nothing is approximated: what cannot be exact is refused.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from scaledyolo.arch.graph import Graph
from scaledyolo.arch.lower import lower
from scaledyolo.arch.subnet import cut_graph
from scaledyolo.arch.zoo import ALIASES, ZOO, find
from scaledyolo.checkpoint import Checkpoint, load_checkpoint, load_description, save_checkpoint
from scaledyolo.classes import category_ids_of, default_names, given_names
from scaledyolo.convert.conversion_report import ConversionReport, LayerMatch, darknet_places, foreign_sources
from scaledyolo.convert.conversion_request import Options, check_request
from scaledyolo.convert.darknet import checkpoint_of, from_darknet, read_pair, sha256
from scaledyolo.convert.darknet_cfg import NORM_EPS, DarknetModel, read_cfg, write_cfg
from scaledyolo.convert.darknet_weights import write_weights
from scaledyolo.convert.foreign_keys import read_foreign
from scaledyolo.convert.norm_form import branch_form, branch_weights
from scaledyolo.convert.torch_pickle import ForeignCheckpoint, read_torch_checkpoint
from scaledyolo.errors import CheckpointError, ConversionError, SpecError, UsageError
from scaledyolo.files import atomic_file
from scaledyolo.subnet import subnet_checkpoint

PathLike = str | os.PathLike[str]


@dataclass(frozen=True)
class _Source:
    """A model that was read, and what there is to say about it."""

    checkpoint: Checkpoint
    layers: tuple[LayerMatch, ...]
    layout: str
    notes: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()


def convert(source: PathLike, destination: PathLike, options: Options | None = None) -> ConversionReport:
    """Convert a file; all or nothing: on an error no file has appeared or changed.

    Args:
        source: ``.weights`` (or its ``.cfg``; the other half lies beside it or is given), ``.pt``, ``.pth`` or
            ``.safetensors``; the name of a network of the zoo for a ``.cfg``.
        destination: ``.safetensors``, ``.weights`` (a ``.cfg`` of the same name is written with it) or ``.cfg``.
        options: what the files do not say.

    Returns:
        What matched, layer by layer.

    Raises:
        UsageError: the two kinds of file do not go together, the destination exists, or an option has no meaning here.
        FormatError: the source is damaged or does not fit its network.
        ConversionError: the conversion cannot be exact, with the reason.
    """
    options = options or Options()
    source, destination = Path(source), Path(destination)
    outputs, kind = check_request(source, destination, options)
    if kind[1] == ".cfg":
        return _write_cfg_only(source, destination, options)
    try:
        read = _READERS[kind[0]](source, options)
    except (ConversionError, SpecError) as error:
        raise ConversionError(f"{source}: {error}") from None
    read = _cut(read, options.subnet) if options.subnet else read
    read = replace(read, checkpoint=_labelled(read.checkpoint, options))
    if kind[1] == ".safetensors":
        save_checkpoint(destination, read.checkpoint)
        layers, notes = read.layers, read.notes
    else:
        layers, notes = _write_darknet(source, outputs, read)
    return _report(source, outputs, replace(read, layers=layers, notes=notes))


# Reading


def _read_darknet(source: Path, options: Options) -> _Source:
    weights = source.with_suffix(".weights") if source.suffix.lower() == ".cfg" else source
    if not weights.is_file():
        raise UsageError(f"{source}: its weights {weights} do not exist; give the .weights file, and this as --cfg")
    cfg = Path(options.cfg) if options.cfg is not None else source.with_suffix(".cfg")
    if options.cfg is None and (options.network is not None or not cfg.is_file()):
        return _read_darknet_by_name(weights, cfg, options)
    pair = read_pair(cfg, weights, decoding=options.decoding)
    checkpoint = checkpoint_of(pair, names=options.names, name_by_spec=True)
    places = darknet_places(pair.model.graph, pair.model, pair.weights.header_bytes)
    layers = _layers(checkpoint.graph, dict(zip((node.name for node in checkpoint.graph), places, strict=True)))
    return _Source(checkpoint, layers, "Darknet")


def _read_darknet_by_name(weights: Path, cfg: Path, options: Options) -> _Source:
    name = options.network or weights.stem
    if options.network is None and name.lower() not in {**ZOO, **ALIASES}:
        raise UsageError(
            f"{weights}: its network is not known, as there is no {cfg}; give it with --cfg, or its name with --network"
        )
    spec = find(name)
    if options.decoding is not None:
        spec = replace(spec, decoding=options.decoding, scale_xy=spec.scale_xy if options.decoding == "exp" else ())
    checkpoint = from_darknet(spec, weights)
    if options.names is not None:
        given = given_names(options.names)
        checkpoint = replace(checkpoint, class_names=given, category_ids=category_ids_of(given))
    model = read_cfg(write_cfg(checkpoint.graph))
    places = darknet_places(model.graph, model, int(checkpoint.provenance["darknet_header_bytes"]))
    layers = _layers(checkpoint.graph, dict(zip((node.name for node in checkpoint.graph), places, strict=True)))
    note = f"no cfg was given, so the network is {spec.name} of the zoo"
    return _Source(checkpoint, layers, "Darknet", (note,))


def _read_torch(source: Path, options: Options) -> _Source:
    foreign = read_torch_checkpoint(source)
    model = read_foreign(foreign, cfg=options.cfg, network=options.network, decoding=options.decoding)
    graph = model.graph
    if options.names is not None:
        names = given_names(options.names)
    else:
        names = model.class_names or default_names(graph.num_classes)
    checkpoint = Checkpoint(
        graph=graph,
        weights=model.weights,
        class_names=names,
        spec=model.spec,
        category_ids=category_ids_of(names),
        provenance=_torch_provenance(source, foreign, model.layout, options),
    )
    used = model.absorbed.union(model.keys.values())
    return _Source(
        checkpoint,
        _layers(graph, foreign_sources(graph, model.keys)),
        f"PyTorch, named by {model.layout}",
        model.notes,
        _pickle_warnings(foreign),
        tuple(key for key in foreign.state_dict if key.removeprefix("module.") not in used),
    )


def _torch_provenance(source: Path, foreign: ForeignCheckpoint, layout: str, options: Options) -> dict[str, str]:
    facts = {
        "source": "PyTorch",
        "pickle_layout": f"{foreign.layout}, named by {layout}",
        "pickle_entry": foreign.source or "top level",
        "weights_file": source.name,
        "weights_sha256": sha256(source),
    }
    epoch = foreign.record.get("epoch")
    if isinstance(epoch, int) and epoch >= 0:
        facts["epoch"] = str(epoch)
    if options.cfg is not None:
        facts |= {"cfg_file": Path(options.cfg).name, "cfg_sha256": sha256(Path(options.cfg))}
    return facts


def _pickle_warnings(foreign: ForeignCheckpoint) -> tuple[str, ...]:
    if not foreign.suspicious_globals:
        return ()
    shown = ", ".join(name[:80] for name in foreign.suspicious_globals[:5])
    return (f"the pickle names {shown}, which torch.load might have run; nothing of it was executed, do not trust it",)


def _read_checkpoint(source: Path, options: Options) -> _Source:
    return _Source(load_checkpoint(source), (), "checkpoint")


_READERS: Mapping[str, Callable[[Path, Options], _Source]] = {
    ".weights": _read_darknet,
    ".cfg": _read_darknet,
    ".pt": _read_torch,
    ".pth": _read_torch,
    ".safetensors": _read_checkpoint,
}


def _cut(read: _Source, subnet: str) -> _Source:
    """What was read, reduced to a once-for-all subnet."""
    checkpoint = subnet_checkpoint(read.checkpoint, subnet)
    sources = {layer.target: layer.source for layer in read.layers}
    layers = _layers(checkpoint.graph, {node.name: sources.get(node.name, node.name) for node in checkpoint.graph})
    note = f"only a part of the network was taken: {subnet}"
    return replace(read, checkpoint=checkpoint, layers=layers, notes=(*read.notes, note))


def _labelled(checkpoint: Checkpoint, options: Options) -> Checkpoint:
    licence = {"licence": options.licence} if options.licence else {}
    return replace(checkpoint, provenance={**checkpoint.provenance, **licence})


def _layers(graph: Graph, sources: Mapping[str, str]) -> tuple[LayerMatch, ...]:
    """One row for every node with parameters; ``sources`` says where each comes from."""
    with_weights = [node for node in graph if _has_weights(graph, node.name)]
    return tuple(LayerMatch.of(graph, node, sources[node.name], node.name) for node in with_weights)


def _has_weights(graph: Graph, name: str) -> bool:
    node = graph[name]
    return bool(node.op.parameters(*graph.in_channels(node)))


# Writing


def _write_cfg_only(source: Path, destination: Path, options: Options) -> ConversionReport:
    is_file = source.suffix.lower() == ".safetensors"
    described = load_description(source) if is_file else None
    graph = described.graph if described else lower(find(str(source)))
    graph = branch_form(cut_graph(graph, options.subnet) if options.subnet else graph)
    text = _cfg_text(graph, described.provenance if described else {})
    with atomic_file(destination) as temporary:
        temporary.write_text(text, encoding="utf-8")
    return ConversionReport(
        sources=(str(source),),
        outputs=(str(destination),),
        network=graph.name,
        num_classes=graph.num_classes,
        layout="network only",
        has_weights=False,
        layers=_darknet_layers(graph, read_cfg(text), 20, {}),
        notes=("the cfg describes the network, the weights stay where they are",) if is_file else (),
    )


def _write_darknet(
    source: Path, outputs: tuple[Path, ...], read: _Source
) -> tuple[tuple[LayerMatch, ...], tuple[str, ...]]:
    """Write weights and cfg; neither appears where one of them cannot be written."""
    checkpoint = read.checkpoint
    facts = checkpoint.provenance
    try:
        graph, weights = branch_form(checkpoint.graph), branch_weights(checkpoint.graph, checkpoint.weights)
        text = _cfg_text(graph, facts)
    except ConversionError as error:
        raise ConversionError(f"{source}: {error}") from None
    version, seen = _header(source, facts)
    weights_path, cfg_path = outputs
    with atomic_file(cfg_path) as temporary:
        temporary.write_text(text, encoding="utf-8")
        write_weights(weights_path, graph, weights, seen=seen, version=version)
    notes = read.notes
    if graph.norm_eps != NORM_EPS:
        shift = graph.norm_eps - NORM_EPS
        notes += (f"Darknet's epsilon is {NORM_EPS:g}: {shift:g} was added to every variance, which is exact",)
    header_bytes = 20 if version[0] * 10 + version[1] >= 2 else 16
    sources = {layer.target: layer.source for layer in read.layers}
    return _darknet_layers(graph, read_cfg(text), header_bytes, sources), notes


def _darknet_layers(
    graph: Graph, written: DarknetModel, header_bytes: int, sources: Mapping[str, str]
) -> tuple[LayerMatch, ...]:
    """One row for every node with parameters and its place in the weight file; ``sources`` where it came from."""
    places = darknet_places(written.graph, written, header_bytes)
    return tuple(
        LayerMatch.of(graph, node, sources.get(node.name, node.name), place)
        for node, place in zip(graph, places, strict=True)
        if _has_weights(graph, node.name)
    )


def _cfg_text(graph: Graph, facts: Mapping[str, str]) -> str:
    """The cfg, with the way of suppression that the source cfg asked for."""
    asked = facts.get("nms_kind", "default")
    is_silent = all(op.nms_kind == "default" for op in graph.detects)
    head = {"nms_kind": asked, "beta_nms": facts.get("beta_nms", "0.6")}
    known = asked in ("greedynms", "diounms")
    return write_cfg(graph, head=head if known and is_silent else None)


def _header(source: Path, facts: Mapping[str, str]) -> tuple[tuple[int, int, int], int]:
    """Version and images seen of the .weights file that the checkpoint came from, Darknet's own by default."""
    try:
        major, minor, revision = map(int, facts.get("darknet_version", "0.2.5").split("."))
        return (major, minor, revision), int(facts.get("images_seen", "0"))
    except ValueError:
        raise CheckpointError(f"{source}: its record of the Darknet header is damaged") from None


def _report(source: Path, outputs: tuple[Path, ...], read: _Source) -> ConversionReport:
    checkpoint = read.checkpoint
    non_finite = sum(int(array.size - np.count_nonzero(np.isfinite(array))) for array in checkpoint.weights.values())
    damaged = (f"{non_finite:,} of the weights are infinite or not a number",) if non_finite else ()
    return ConversionReport(
        sources=(str(source),),
        outputs=tuple(map(str, outputs)),
        network=checkpoint.graph.name,
        num_classes=checkpoint.graph.num_classes,
        layout=read.layout,
        layers=read.layers,
        left_out=read.left_out,
        notes=read.notes,
        warnings=read.warnings + damaged,
        provenance=checkpoint.provenance,
    )
