"""Darknet cfg files: :func:`read_cfg` makes a graph of one, :func:`write_cfg` (its own module) one of a graph."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from scaledyolo.arch.graph import Graph
from scaledyolo.arch.ops import Decoding, Shape
from scaledyolo.convert.darknet_grammar import Section, read_sections, read_text
from scaledyolo.convert.darknet_heads import HEADS
from scaledyolo.convert.darknet_layers import MAX_SIDE, Assembly, add_section
from scaledyolo.convert.darknet_write import write_cfg
from scaledyolo.errors import CfgError, SpecError

# Darknet adds this to the variance in training, inference and fusion alike.
NORM_EPS = 1e-5
# Weight of the new batch in the running statistics on a GPU, where the published weights were trained (0.1 on a CPU).
NORM_MOMENTUM = 0.01


@dataclass(frozen=True)
class DarknetModel:
    """A network as a Darknet cfg describes it.

    Attributes:
        graph: the network; the node of section number i is named ``layer<i>``.
        sections: for every section after [net], the node that it became; None where it only renames (a route of one
            layer, dropout, empty). The holder of an implicit vector stands for the node that uses it.
        net: the options of [net] as written, training options included.
    """

    graph: Graph
    sections: tuple[str | None, ...]
    net: Mapping[str, str]


def read_cfg(
    path_or_text: str | os.PathLike[str],
    *,
    name: str | None = None,
    decoding: Decoding | None = None,
    strict: bool = True,
) -> DarknetModel:
    """Read a Darknet cfg into a graph.

    Args:
        path_or_text: path of the file, or its text (a string with a line break or a ``[`` in front).
        name: name of the graph; default: that of the file.
        decoding: how the boxes of all [yolo] heads are decoded, in place of what the cfg says. The cfgs of the
            PyTorch code base of YOLOv4-CSP need "sigmoid-squared": they say otherwise, and their code ignores it.
        strict: an unknown key is an error; otherwise it is ignored, as in Darknet.

    Returns:
        The model. Anchors of [region] become pixels of the network input; its size is that of [net].

    Raises:
        CfgError: one sentence with file and line.
    """
    text, source = read_text(path_or_text)
    net_section, *layers = read_sections(text, source, strict=strict)
    height, width = _network_size(net_section)
    channels = net_section.integer("channels", 3, 1, 1024)
    net = Assembly({Graph.INPUT: Shape(channels, height, width)}, _size_hint(height, width), decoding)
    for section in layers:
        add_section(section, net, HEADS)
    _check_heads(net, source, layers)
    try:
        graph = Graph(
            name=name or Path(source).stem,
            nodes=tuple(net.nodes),
            height=height,
            width=width,
            channels=channels,
            resize="letterbox" if net_section.flag("letter_box") else "stretch",
            norm_eps=NORM_EPS,
            norm_momentum=NORM_MOMENTUM,
        )
    except SpecError as error:
        raise CfgError(f"{source}: {error}") from None
    options = {key: option.value for key, option in net_section.options.items()}
    return DarknetModel(graph, tuple(net.own), options)


def _network_size(net: Section) -> tuple[int, int]:
    for key in ("height", "width"):
        if not net.has(key):
            raise net.error(f"[net] must say the {key} of the network input in pixels")
    return net.integer("height", 0, 1, MAX_SIDE), net.integer("width", 0, 1, MAX_SIDE)


def _size_hint(height: int, width: int) -> str:
    if height % 32 == 0 and width % 32 == 0:
        return ""
    return f"; the network size {width}x{height} in [net] is not a multiple of 32"


def _check_heads(net: Assembly, source: str, layers: list[Section]) -> None:
    """Refuse what is no detector, and heads that disagree about the classes."""
    head_sections = [section for section in layers if section.kind in HEADS]
    if not head_sections:
        raise CfgError(f"{source}: has neither [yolo] nor [region], so it does not describe a detector")
    first = head_sections[0].integer("classes", 20, 1, MAX_SIDE)
    for section in head_sections:
        classes = section.integer("classes", 20, 1, MAX_SIDE)
        if classes != first:
            raise section.error(f"classes={classes} here, but {first} in the first head; they must agree", "classes")


__all__ = ["NORM_EPS", "NORM_MOMENTUM", "DarknetModel", "read_cfg", "write_cfg"]
