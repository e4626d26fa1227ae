"""Model scaling as operations on specs: size, depth, width, stages, activation (paper sections 3, 4.2 and 4.3).

Every function returns a new, valid spec. Anchors are data fitted to a dataset at an input size; no rule generates them
from those of another network, so they are kept, cut, or (for a new level) doubled as a start to be re-estimated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from fractions import Fraction
from types import MappingProxyType
from typing import TypeAlias

from scaledyolo.arch.blocks import RESNEXT_GROUPS
from scaledyolo.arch.cost import node_costs
from scaledyolo.arch.graph import Graph
from scaledyolo.arch.ops import Activated, Activation
from scaledyolo.arch.spec import ModelSpec, Neck, Stage
from scaledyolo.errors import SpecError, UsageError

Anchors: TypeAlias = tuple[tuple[float, float], ...]  # (width, height) in pixels
Masks: TypeAlias = tuple[tuple[int, ...], ...]  # positions in the list of anchors, by level

# Channels of all published networks are multiples of this, which suits the vector units of most hardware.
CHANNEL_MULTIPLE = 8

# Necks whose number of pyramid levels is free.
_PYRAMIDS = ("fpn", "pan", "csp-fpn", "csp-pan", "elan-pan", "e-elan-pan", "tiny")


def scaled(
    spec: ModelSpec,
    *,
    depth: float | Fraction = 1,
    width: float | Fraction = 1,
    size: int | None = None,
    multiple: int = CHANNEL_MULTIPLE,
    keep_stem: bool = False,
    name: str | None = None,
) -> ModelSpec:
    """The network with its depth and width multiplied, designed for another input side.

    Args:
        spec: the network to scale.
        depth: factor on the repetitions of every stage of backbone and neck; n > 1 becomes max(1, round(n * depth)),
            halves rounded up, a single block stays single.
        width: factor on all channels but those of the predictions, rounded up to ``multiple``.
        size: side of the input in pixels; by default unchanged.
        multiple: what channels are rounded up to. A "pcb" stage is rounded to twice that, for its halves.
        keep_stem: leave the first convolution alone, as yolov4x-mish and yolov4-csp-s do.
        name: of the new spec; by default the old one with what was changed.

    Raises:
        UsageError: a factor or ``multiple`` is not positive.
    """
    if width <= 0 or depth <= 0 or multiple < 1:
        raise UsageError(f"factors must be positive, got width {width}, depth {depth}, multiple {multiple}")
    width, depth = _decimal(width), _decimal(depth)

    def wide(channels: int, to: int = multiple) -> int:
        return round_channels(channels * width, to)

    def deep(count: int) -> int:
        return max(1, math.floor(count * depth + Fraction(1, 2))) if count > 1 else count

    stem = spec.stem if keep_stem else replace(spec.stem, channels=wide(spec.stem.channels))
    return replace(
        spec,
        name=name or spec.name + _suffix(width, depth, size),
        size=size or spec.size,
        stem=stem,
        stages=tuple(
            replace(
                stage,
                channels=wide(stage.channels, _stage_multiple(stage, multiple)),
                depth=_odd(deep(stage.depth)) if stage.block == "conv" else deep(stage.depth),
                hidden=None if stage.hidden is None else wide(stage.hidden),
                out=None if stage.out is None else wide(stage.out),
            )
            for stage in spec.stages
        ),
        neck=replace(
            spec.neck,
            widths=tuple(map(wide, spec.neck.widths)),
            depth=deep(spec.neck.depth),
            hidden=tuple(map(wide, spec.neck.hidden)),
            growth=tuple(map(wide, spec.neck.growth)),
        ),
        head=replace(spec.head, auxiliary=tuple(map(wide, spec.head.auxiliary))),
    )


def round_channels(channels: float | Fraction, multiple: int = CHANNEL_MULTIPLE) -> int:
    """The least multiple of ``multiple`` that is not below ``channels``."""
    return max(math.ceil(channels / multiple), 1) * multiple


def aligned(spec: ModelSpec, multiple: int) -> ModelSpec:
    """The network with every number of channels rounded up to a multiple of the hardware's vector width."""
    return scaled(spec, multiple=multiple, name=f"{spec.name}-by{multiple}")


def _decimal(factor: float | Fraction) -> Fraction:
    """0.1 as 1/10, not as the binary number next to it, which would round 320 channels up to 40 instead of 32."""
    return Fraction(factor).limit_denominator(10**6)


def _stage_multiple(stage: Stage, multiple: int) -> int:
    if stage.block == "pcb":
        return 2 * multiple
    return math.lcm(multiple, RESNEXT_GROUPS) if stage.block == "resnext" else multiple


def _odd(count: int) -> int:
    """Plain convolutions alternate 3x3 and 1x1, and a stage must end with a 3x3."""
    return count if count % 2 else count - 1


def _suffix(width: Fraction, depth: Fraction, size: int | None) -> str:
    parts = [f"-w{float(width):g}" if width != 1 else "", f"-d{float(depth):g}" if depth != 1 else ""]
    return "".join(parts) + (f"-{size}" if size else "")


def num_stages(spec: ModelSpec) -> int:
    """How often the network halves its input: 5 for a P5 network, 6 for a P6."""
    stages = sum(stage.downsample not in ("none", "maxpool-same") for stage in spec.stages)
    return spec.stem.halvings + stages


def with_stages(spec: ModelSpec, count: int, *, size: int | None = None, anchors: Anchors | None = None) -> ModelSpec:
    """The network with its coarsest level at stride 2^count: P5 to P6 to P7, and back (paper section 4.3).

    A new stage repeats the last one in width and depth, a new pyramid level the coarsest one; the finest level stays.
    So P5 with six stages is P6, and P5 at width 1.25 with seven is P7, but for the anchors: by default a removed level
    takes its anchors along and a new one gets those of the level below times two, to be re-estimated on the data.

    Args:
        spec: the network; its last stage is the one that is repeated.
        count: how often the new network halves its input.
        size: side of the input in pixels; by default the old one, rounded up to a multiple of 2^count.
        anchors: (width, height) in pixels, as many for every level as there are now, finest level first.

    Raises:
        UsageError: the neck has one fixed level, no level would be left, the anchors do not fit in number, or the spec
            is a subnet.
    """
    if spec.subnet:
        raise UsageError(f"{spec.name} is cut to {spec.subnet!r} already; scale the whole network, and cut that")
    more = count - num_stages(spec)
    levels = len(spec.masks) + more
    if spec.neck.kind not in _PYRAMIDS:
        raise UsageError(f"{spec.name}: the level of its {spec.neck.kind!r} neck is fixed; stages cannot come or go")
    if levels < 1:
        raise UsageError(f"{spec.name}: {count} stages would leave no pyramid level; the least is {count - levels + 1}")
    stages = [*spec.stages, *spec.stages[-1:] * more]
    pool, masks = _level_anchors(spec, levels) if anchors is None else _shared_out(spec, levels, anchors)
    stride = 2**count
    return replace(
        spec,
        name=f"{spec.name}-p{count}" if more else spec.name,
        size=size or -(-spec.size // stride) * stride,
        stages=tuple(stages[: len(spec.stages) + more]),
        neck=_with_levels(spec.neck, levels),
        head=replace(spec.head, auxiliary=_continued(spec.head.auxiliary, levels)),
        anchors=pool,
        masks=masks,
        scale_xy=(spec.scale_xy + spec.scale_xy[-1:] * max(more, 0))[:levels],
    )


def _with_levels(neck: Neck, levels: int) -> Neck:
    widths, hidden, growth = (_continued(values, levels) for values in (neck.widths, neck.hidden, neck.growth))
    return replace(neck, widths=widths, hidden=hidden, growth=growth)


def _continued(values: tuple[int, ...], levels: int) -> tuple[int, ...]:
    """One value for each level: those of new levels repeat the coarsest one's; none stay none."""
    return (values + values[-1:] * levels)[:levels]


def _level_anchors(spec: ModelSpec, levels: int) -> tuple[Anchors, Masks]:
    """Anchors and masks cut to ``levels``, or continued with twice the anchors of the coarsest level."""
    anchors, masks = list(spec.anchors), list(spec.masks[:levels])
    while len(masks) < levels:
        coarsest = [anchors[index] for index in masks[-1]]
        masks.append(tuple(range(len(anchors), len(anchors) + len(coarsest))))
        anchors += [(2 * width, 2 * height) for width, height in coarsest]
    used = max(max(mask) for mask in masks) + 1
    return tuple(anchors[:used]), tuple(masks)


def _shared_out(spec: ModelSpec, levels: int, anchors: Anchors) -> tuple[Anchors, Masks]:
    each = len(spec.masks[0])
    if len(anchors) != levels * each:
        raise UsageError(f"{spec.name}: {levels} levels of {each} anchors need {levels * each}, got {len(anchors)}")
    return tuple(anchors), tuple(tuple(range(each * level, each * (level + 1))) for level in range(levels))


def deepened(spec: ModelSpec) -> ModelSpec:
    """Twice every depth less one: how YOLOv4-CSP becomes the large family (the paper's d_s = 1, 3, 15, 15, 7, 7, 7)."""
    stages = tuple(replace(stage, depth=2 * stage.depth - 1) for stage in spec.stages)
    return replace(
        spec, name=f"{spec.name}-deep", stages=stages, neck=replace(spec.neck, depth=2 * spec.neck.depth - 1)
    )


def tiny_scaled(
    spec: ModelSpec, *, growth: int | None = None, partition: tuple[int, int] | None = None, name: str | None = None
) -> ModelSpec:
    """A tiny network with another growth rate or another partition of its blocks (paper section 3.2, Table 9).

    Args:
        spec: a network of "pcb" stages.
        growth: g of the first block (32 in yolov4-tiny); all widths follow in proportion, so that g stays b/2.
        partition: a x b, the slices of each block that go straight on and through the transition.
        name: of the new spec; by default the old one with what was changed.

    Raises:
        UsageError: the network has no "pcb" stage, or ``growth`` is not positive.
        SpecError: the partition does not share out four slices.
    """
    blocks = [stage for stage in spec.stages if stage.block == "pcb"]
    if not blocks:
        raise UsageError(f"{spec.name} has no partial blocks (pcb) whose growth rate could be scaled; use scaled()")
    if growth is not None and growth < 1:
        raise UsageError(f"the growth rate must be at least 1, got {growth}")
    label = spec.name
    if growth is not None:
        spec = scaled(spec, width=Fraction(2 * growth, blocks[0].channels), multiple=1)
        label += f"-g{growth}"
    if partition is not None:
        stages = tuple(replace(stage, partition=partition) if stage.block == "pcb" else stage for stage in spec.stages)
        spec = replace(spec, stages=stages)
        label += f"-{partition[0]}x{partition[1]}"
    return replace(spec, name=name or label)


# Activations


@dataclass(frozen=True, slots=True)
class ActivationWork:
    """What one activation asks of the processor for one value, as its formula is written."""

    arithmetic: int  # additions, multiplications, divisions, comparisons
    transcendental: int  # exponentials, logarithms, hyperbolic tangents


ACTIVATION_WORK: Mapping[Activation, ActivationWork] = MappingProxyType(
    {
        "linear": ActivationWork(0, 0),
        "relu": ActivationWork(1, 0),
        "relu6": ActivationWork(2, 0),
        "leaky": ActivationWork(2, 0),  # max(x, 0.1 x)
        "logistic": ActivationWork(2, 1),  # 1 / (1 + exp(-x))
        "swish": ActivationWork(3, 1),  # x / (1 + exp(-x))
        "mish": ActivationWork(2, 3),  # x tanh(log(1 + exp(x)))
        "tanh": ActivationWork(0, 1),
        "elu": ActivationWork(2, 1),
        "selu": ActivationWork(4, 1),
        "gelu": ActivationWork(4, 1),
        "hard_mish": ActivationWork(5, 0),
    }
)


@dataclass(frozen=True, slots=True)
class ActivationCost:
    """What the activations of a network cost for one image."""

    values: int  # activated values, "linear" not counted
    arithmetic: int
    transcendental: int


def activation_cost(graph: Graph, height: int | None = None, width: int | None = None) -> ActivationCost:
    """Work of all activations, which the tables of FLOPs leave out; for the graph's own size by default."""
    values = arithmetic = transcendental = 0
    for row in node_costs(graph, height or graph.height, width or graph.width):
        op = row.node.op
        if not isinstance(op, Activated) or op.activation == "linear":
            continue
        count, work = math.prod(row.out), ACTIVATION_WORK[op.activation]
        values += count
        arithmetic += count * work.arithmetic
        transcendental += count * work.transcendental
    return ActivationCost(values, arithmetic, transcendental)


def with_activation(spec: ModelSpec, activation: Activation, *, everywhere: bool = True) -> ModelSpec:
    """The network with another activation; parameters and convolutions stay, :func:`activation_cost` changes.

    ``everywhere`` includes a neck that has its own; otherwise only the backbone's changes.

    Raises:
        SpecError: there is no such activation.
    """
    if activation not in ACTIVATION_WORK:
        raise SpecError(f"there is no activation {activation!r}; known are {', '.join(ACTIVATION_WORK)}")
    neck = None if everywhere else spec.neck_activation or spec.activation
    return replace(spec, name=f"{spec.name}-{activation}", activation=activation, neck_activation=neck)


# The published relatives of YOLOv4-CSP: what the rules above give, and what has to be said besides.


def csp_to_x(csp: ModelSpec) -> ModelSpec:
    """yolov4x-mish from yolov4-csp: 1.25 times width and depth but for the stem, a second pair after the pooling."""
    larger = scaled(csp, width=Fraction(5, 4), depth=Fraction(5, 4), keep_stem=True, name="yolov4x-mish")
    return replace(larger, neck=replace(larger.neck, spp_pairs=2))


def csp_to_small(csp: ModelSpec) -> ModelSpec:
    """yolov4-csp-s from yolov4-csp: half the width, depth 1/8, and four things that no factor says.

    The stem stays; the first residual does not narrow; the pooling has no leading pair; heads come last.
    """
    smaller = scaled(csp, width=Fraction(1, 2), depth=Fraction(1, 8), keep_stem=True, name="yolov4-csp-s")
    first = replace(smaller.stages[0], hidden=smaller.stages[0].channels)
    neck = replace(smaller.neck, spp_lead=False)
    return replace(smaller, stages=(first, *smaller.stages[1:]), neck=neck, heads_last=True)


def csp_to_p5(csp: ModelSpec, anchors: Anchors, size: int = 896) -> ModelSpec:
    """yolov4-p5 from yolov4-csp: depths 2n - 1, CSP in the first stage too, four anchors a level.

    The published checkpoints also normalise over concatenations ("concat" form) and put the heads last.
    """
    deep = deepened(csp)
    stages = (replace(deep.stages[0], block="csp"), *deep.stages[1:])
    levels = len(csp.masks)
    return replace(
        deep,
        name="yolov4-p5",
        size=size,
        stages=stages,
        anchors=anchors,
        masks=tuple(tuple(range(4 * level, 4 * level + 4)) for level in range(levels)),
        norm_form="concat",
        norm_eps=1e-3,
        heads_last=True,
    )
