"""YOLOv7 (arXiv 2207.02696): its seven networks as specs, for inference and as they are trained.

Source: the published networks and their parameter counts. ``-training`` are the forms that are trained: implicit
vectors around the predictions and, in the four large networks, auxiliary heads; both vanish for inference, exactly.
Without it, names mean the deploy form, in which a RepConv (only yolov7 has some) is still two convolutions. In
``yolov7-cfg`` it is one, as in Darknet's file.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

from scaledyolo.arch.anchors import ANCHORS_V3, ANCHORS_V4, ANCHORS_W6, Anchors, level_masks
from scaledyolo.arch.ops import Activation
from scaledyolo.arch.spec import Block, Downsample, Gathered, Head, ModelSpec, Neck, NeckKind, Stage, Stem

TRAINING_SUFFIX = "-training"

# Widths of the outputs of stages and neck at width 1; those inside the ELANs, which no factor changes. Finest first.
_P5_STAGES, _P5_INNER = (256, 512, 1024, 1024), (64, 128, 256, 256)
_P6_STAGES, _P6_INNER = (128, 256, 512, 768, 1024), (64, 128, 256, 384, 512)
_FIRST: Downsample = "conv"
_LATER: Downsample = "conv-pool"  # of P5, from the second ELAN on
_P5_NECK, _P6_NECK = (128, 256, 512), (128, 256, 384, 512)


def _family(
    name: str,
    size: int,
    stem: Stem,
    stages: tuple[Stage, ...],
    neck: Neck,
    anchors: Anchors,
    activation: Activation = "swish",
) -> ModelSpec:
    return ModelSpec(
        name=name,
        size=size,
        stem=stem,
        stages=stages,
        neck=neck,
        anchors=anchors,
        masks=level_masks(len(neck.widths)),
        activation=activation,
        norm_eps=1e-3,
        heads_last=True,
    )


def p5(
    name: str, *, width: Fraction = Fraction(1), depth: int = 4, gathered: Gathered = "all", narrowing: int = 2
) -> ModelSpec:
    """YOLOv7 and YOLOv7-X: every scale is halved by a strided convolution and a pool side by side.

    Scaling multiplies what the ELANs put out, not what is inside them, and lengthens their rows; in the neck, what they
    ``gathered`` and how much their 3x3 convolutions narrow change with it (section 4.2 of the paper).
    """

    def wide(channels: int) -> int:
        return int(channels * width)

    stages = [Stage("conv", wide(64))]
    before, downsample = wide(128), _FIRST
    for channels, hidden in zip(_P5_STAGES, _P5_INNER, strict=True):
        stages.append(Stage("elan", before, depth, downsample, hidden, out=wide(channels)))
        before, downsample = wide(channels), _LATER
    neck = Neck(
        "elan-pan",
        tuple(map(wide, _P5_NECK)),
        depth=depth,
        spp_input_first=True,
        hidden=_P5_NECK,
        growth=tuple(channels // narrowing for channels in _P5_NECK),
        gathered=gathered,
        downsample="conv-pool",
    )
    return _family(name, 640, Stem(wide(32)), tuple(stages), neck, ANCHORS_V4)


def p6(
    name: str, *, width: Fraction = Fraction(1), depth: int = 4, downsample: Downsample = "conv", extended: bool = False
) -> ModelSpec:
    """YOLOv7-W6, E6, D6, E6E (``extended``): four levels, and pixels become channels before the first convolution."""

    def wide(channels: int) -> int:
        return int(channels * width)

    block: Block = "e-elan" if extended else "elan"
    kind: NeckKind = "e-elan-pan" if extended else "elan-pan"
    neck = Neck(
        kind,
        tuple(map(wide, _P6_NECK)),
        depth=depth,
        spp_input_first=True,
        hidden=_P6_NECK,
        growth=tuple(channels // 2 for channels in _P6_NECK),
        downsample=downsample,
    )
    stages = tuple(
        Stage(block, wide(channels), depth, downsample, hidden)
        for channels, hidden in zip(_P6_STAGES, _P6_INNER, strict=True)
    )
    return _family(name, 1280, Stem(wide(64), space_to_depth=True), stages, neck, ANCHORS_W6)


def tiny(name: str) -> ModelSpec:
    """YOLOv7-tiny: short ELANs between max pools, leaky, three levels."""
    stages = (
        Stage("elan", 64, 2, hidden=32, gathered="all"),
        Stage("elan", 64, 2, "maxpool", 64, out=128, gathered="all"),
        Stage("elan", 128, 2, "maxpool", 128, out=256, gathered="all"),
        Stage("elan", 256, 2, "maxpool", 256, out=512, gathered="all"),
    )
    inner = (32, 64, 128)
    neck = Neck("elan-pan", (64, 128, 256), depth=2, spp_lead=False, spp_pairs=0, hidden=inner, growth=inner)
    return _family(name, 640, Stem(32, stride=2), stages, neck, ANCHORS_V3, "leaky")


def v7_family() -> Iterator[ModelSpec]:
    """The networks for inference."""
    yield tiny("yolov7-tiny")
    yield replace(p5("yolov7"), head=Head(conv="rep"))
    yield replace(p5("yolov7-cfg"), norm_eps=1e-5)
    yield p5("yolov7x", width=Fraction(5, 4), depth=6, gathered="even", narrowing=1)
    yield p6("yolov7-w6")
    yield p6("yolov7-e6", width=Fraction(5, 4), depth=6, downsample="wide-conv-pool")
    yield p6("yolov7-d6", width=Fraction(3, 2), depth=8, downsample="wide-conv-pool")
    yield p6("yolov7-e6e", width=Fraction(5, 4), depth=6, downsample="wide-conv-pool", extended=True)


def v7_training_forms() -> Iterator[ModelSpec]:
    """The networks as they are trained, named with :data:`TRAINING_SUFFIX`."""
    for spec in v7_family():
        if spec.name == "yolov7-cfg":
            continue
        head = replace(spec.head, implicit=True, auxiliary=_auxiliary(spec))
        yield replace(spec, name=spec.name + TRAINING_SUFFIX, head=head)


def _auxiliary(spec: ModelSpec) -> tuple[int, ...]:
    """Widths of the auxiliary heads: those of the lead heads, but W6 has the ones of E6. The P5 networks have none."""
    if not spec.stem.space_to_depth:
        return ()
    widths = (160, 320, 480, 640) if spec.name == "yolov7-w6" else spec.neck.widths
    return tuple(2 * width for width in widths)


def deploy_form(spec: ModelSpec) -> ModelSpec:
    """The network for inference of one that is trained; a network without training form as it is."""
    head = replace(spec.head, implicit=False, auxiliary=())
    return replace(spec, name=spec.name.removesuffix(TRAINING_SUFFIX), head=head)
