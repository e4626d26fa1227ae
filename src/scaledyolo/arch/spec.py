"""ModelSpec: a whole network in about ten values. :func:`scaledyolo.arch.lower.lower` turns it into a graph."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from scaledyolo.arch.ops import Activation, Decoding
from scaledyolo.errors import SpecError

Block = Literal["conv", "residual", "csp", "csp-wide", "resnext", "pcb", "elan", "e-elan"]
Downsample = Literal["conv", "grouped-conv", "maxpool", "maxpool-same", "conv-pool", "wide-conv-pool", "none"]
NeckKind = Literal["fpn", "pan", "csp-fpn", "csp-pan", "elan-pan", "e-elan-pan", "tiny", "passthrough", "plain"]
NormForm = Literal["branch", "concat"]
Gathered = Literal["even", "all"]  # of the convolutions of an ELAN: every second one from the last, or every one
HeadConv = Literal["conv", "rep"]

MOST_REPEATS = 1000  # of a block; P7 has 15, and what a file from anybody asks for is laid node by node
PARTITIONS = ((1, 3), (2, 2), (3, 1))  # the ways to share out the four slices of a "pcb" (paper Table 9)


def _check_repeats(what: str, value: int) -> None:
    if not 0 <= value <= MOST_REPEATS:
        raise SpecError(f"{what} must lie between 0 and {MOST_REPEATS}, got {value}")


@dataclass(frozen=True, slots=True)
class Stem:
    """The first convolution; ``stride`` 2 in the tiny networks and in ResNeXt."""

    channels: int
    kernel: int = 3
    stride: int = 1
    space_to_depth: bool = False  # blocks of 2 x 2 pixels become channels before it (YOLOv7-W6 and larger)

    @property
    def halvings(self) -> int:
        """How often it halves the resolution."""
        return self.stride.bit_length() - 1 + self.space_to_depth


@dataclass(frozen=True, slots=True)
class Stage:
    """One backbone stage: a downsampling, then ``depth`` repetitions of its block.

    ``channels`` is the width of the computation: what the stage puts out, except for "pcb" and "resnext", whose
    concatenation puts out twice as much, and "elan", which puts out ``out`` channels where that is given. ``hidden`` is
    the width inside a residual or an "elan" (default half). ``partition`` is the a x b of a "pcb" (paper Table 9): a of
    its four slices go straight out, b through the transition.
    """

    block: Block
    channels: int
    depth: int = 1
    downsample: Downsample = "conv"
    hidden: int | None = None
    partition: tuple[int, int] = (2, 2)
    split_activation: Activation | None = None  # of the two convolutions that open a "resnext" stage
    out: int | None = None  # channels that an "elan" puts out, where they are not ``channels``
    gathered: Gathered = "even"  # which of its ``depth`` convolutions an "elan" concatenates

    def __post_init__(self) -> None:
        if self.channels < 1:
            raise SpecError(f"a stage needs at least one channel, got {self.channels}")
        _check_repeats("the depth of a stage", self.depth)
        if self.partition not in PARTITIONS:
            raise SpecError(f"partition {self.partition} does not share out four slices; use one of {PARTITIONS}")


@dataclass(frozen=True, slots=True)
class Neck:
    """What lies between backbone and heads; ``widths`` are its output channels from the finest level to the coarsest.

    ``depth`` counts the convolution pairs of each reversed (CSP) stage, or the 3x3 convolutions of each ELAN, whose
    widths are ``hidden`` (of its two 1x1) and ``growth`` (of its 3x3), by level. ``spp`` pools follow ``spp_lead``
    convolutions (a 3x3 and a 1x1) and are followed by ``spp_pairs`` pairs, or the first convolution of a pair where
    that is 0; in the CSP and ELAN necks they form the SPPCSP block.
    """

    kind: NeckKind
    widths: tuple[int, ...]
    depth: int = 2
    spp: bool = True
    spp_lead: bool = True
    spp_pairs: int = 1
    spp_input_first: bool = False  # concatenated as [x, 5, 9, 13], as the "concat" form always is; else [13, 9, 5, x]
    hidden: tuple[int, ...] = ()
    growth: tuple[int, ...] = ()
    gathered: Gathered = "all"
    downsample: Downsample = "conv"  # on the bottom-up path

    @property
    def is_elan(self) -> bool:
        """Whether its stages are (extended) ELANs."""
        return self.kind in ("elan-pan", "e-elan-pan")

    def __post_init__(self) -> None:
        _check_repeats("the depth of a neck", self.depth)
        _check_repeats("spp_pairs of a neck", self.spp_pairs)
        wanted = len(self.widths) if self.is_elan else 0
        if (len(self.hidden), len(self.growth)) != (wanted, wanted):
            raise SpecError(
                f"a neck {self.kind!r} of {len(self.widths)} levels needs {wanted} values each of hidden and growth, "
                f"got {len(self.hidden)} and {len(self.growth)}"
            )


@dataclass(frozen=True, slots=True)
class Head:
    """What predicts, at every level. All but the defaults is YOLOv7's, and vanishes for inference.

    ``conv`` "rep" has a 1x1 convolution beside the 3x3, summed before the activation. ``implicit`` adds a learned
    vector before the prediction and multiplies one after it. ``auxiliary`` are the widths, finest level first, of the
    second heads by which the top-down path is trained.
    """

    conv: HeadConv = "conv"
    implicit: bool = False
    auxiliary: tuple[int, ...] = ()


@dataclass(frozen=True)
class ModelSpec:
    """A network of the family as data.

    ``norm_form`` says where CSP blocks normalise: "branch", each convolution its own (cfg form: Darknet, csp branch),
    or "concat", once over the concatenation (yaml form: the published P5, P6, P7). In the neck the two are not
    equivalent.
    """

    name: str
    size: int  # side of the square input in pixels at which it is trained and counted
    stem: Stem
    stages: tuple[Stage, ...]
    neck: Neck
    anchors: tuple[tuple[float, float], ...]  # (width, height) in pixels
    masks: tuple[tuple[int, ...], ...]  # anchors of each level, finest level first
    num_classes: int = 80
    activation: Activation = "mish"
    neck_activation: Activation | None = None  # where it differs from the backbone's
    decoding: Decoding = "sigmoid-squared"
    scale_xy: tuple[float, ...] = ()  # grid sensitivity of each level (exp decoding); empty means 1
    norm_form: NormForm = "branch"
    norm_eps: float = 1e-5
    norm_momentum: float = 0.03
    heads_last: bool = False  # heads after the whole neck instead of each at its level
    head: Head = Head()
    resize: Literal["letterbox", "stretch"] = "letterbox"
    subnet: str = ""  # the once-for-all cut that is left of it (arch.subnet), such as "without-stage-p7"; empty: all

    def __post_init__(self) -> None:
        if self.num_classes < 1:
            raise SpecError(f"{self.name}: a detector needs at least one class, got {self.num_classes}")
        if len(self.masks) != len(self.neck.widths):
            raise SpecError(f"{self.name}: {len(self.masks)} anchor masks for {len(self.neck.widths)} pyramid levels")
        if self.scale_xy and len(self.scale_xy) != len(self.masks):
            raise SpecError(f"{self.name}: {len(self.scale_xy)} values of scale_xy for {len(self.masks)} levels")
        if self.head.auxiliary and len(self.head.auxiliary) != len(self.masks):
            raise SpecError(f"{self.name}: {len(self.head.auxiliary)} auxiliary heads for {len(self.masks)} levels")

    def with_classes(self, num_classes: int) -> ModelSpec:
        """The same network for another number of classes."""
        return replace(self, num_classes=num_classes)

    def with_size(self, size: int) -> ModelSpec:
        """The same network designed for another input side in pixels."""
        return replace(self, size=size)

    def with_anchors(self, anchors: Sequence[tuple[float, float]]) -> ModelSpec:
        """The same network with these anchors, smallest first, shared out over its levels from fine to coarse."""
        starts = itertools.accumulate((len(mask) for mask in self.masks), initial=0)
        masks = tuple(tuple(range(start, start + len(mask))) for start, mask in zip(starts, self.masks, strict=False))
        return replace(self, anchors=tuple(anchors), masks=masks)

    def to_dict(self) -> dict[str, Any]:
        """Plain values (numbers, strings, lists) that :meth:`from_dict` reads back."""
        from scaledyolo.strict import to_mapping

        return to_mapping(self)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> ModelSpec:
        """Build a spec from plain values, strictly.

        Raises:
            SpecError: a key is unknown (the nearest known is named) or missing, or a value has the wrong shape.
        """
        from scaledyolo.strict import from_mapping

        name = values.get("name")
        return from_mapping(cls, values, name if isinstance(name, str) else "spec", SpecError)
