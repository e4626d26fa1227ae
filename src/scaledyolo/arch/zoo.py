"""Every network of the papers as a named spec.

Sources: Scaled-YOLOv4 (arXiv 2011.08036) sections 3-5, Tables 8, 9, 11 and 13; the cfg files of AlexeyAB/darknet; the
published parameter counts. Names are those of the cfg files; ``-cfg`` and ``-yaml`` tell the normalisation form apart
where both exist.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from types import MappingProxyType

from scaledyolo.arch.anchors import (
    ANCHORS_P5,
    ANCHORS_P6,
    ANCHORS_P7,
    ANCHORS_TINY,
    ANCHORS_V2,
    ANCHORS_V2_VOC,
    ANCHORS_V3,
    ANCHORS_V4,
    Anchors,
    level_masks,
)
from scaledyolo.arch.ops import Activation
from scaledyolo.arch.spec import Block, Downsample, ModelSpec, Neck, NeckKind, Stage, Stem
from scaledyolo.arch.zoo_v7 import v7_family, v7_training_forms
from scaledyolo.errors import UsageError, nearest


def _stages(block: Block, widths: tuple[int, ...], depths: tuple[int, ...]) -> tuple[Stage, ...]:
    return tuple(Stage(block, width, depth) for width, depth in zip(widths, depths, strict=True))


# Backbones

_WIDTHS = (64, 128, 256, 512, 1024)
_DEPTHS = (1, 2, 8, 8, 4)
DARKNET53 = _stages("residual", _WIDTHS, _DEPTHS)
# CSPDarknet53 with the full-width first stage of YOLOv4; the "s" turns it back into a plain residual (paper 4.1).
CSP_DARKNET53 = (Stage("csp-wide", 64, 1), *_stages("csp", _WIDTHS[1:], _DEPTHS[1:]))
CSP_DARKNET53S = (Stage("residual", 64, 1), *_stages("csp", _WIDTHS[1:], _DEPTHS[1:]))
CSP_SMALL = (Stage("residual", 32, 1, hidden=32), *_stages("csp", (64, 128, 256, 512), (1, 1, 1, 1)))
CSP_X = (Stage("residual", 80, 1), *_stages("csp", (160, 320, 640, 1280), (3, 10, 10, 5)))

# Neck widths, finest level first; each head is twice as wide.
_NECK = (128, 256, 512)


# Families


def yolov3(name: str, size: int, *, spp: bool) -> ModelSpec:
    """YOLOv3: Darknet-53, three levels, leaky (Redmon and Farhadi 2018)."""
    return ModelSpec(
        name=name,
        size=size,
        stem=Stem(32),
        stages=DARKNET53,
        neck=Neck("fpn", _NECK, spp=spp),
        anchors=ANCHORS_V3,
        masks=level_masks(3),
        activation="leaky",
        decoding="exp",
        resize="stretch",
    )


def yolov4() -> ModelSpec:
    """YOLOv4: CSPDarknet53 (Mish), SPP and PAN (leaky) (Bochkovskiy et al. 2020)."""
    return replace(
        yolov3("yolov4", 608, spp=True),
        stages=CSP_DARKNET53,
        neck=Neck("pan", _NECK),
        anchors=ANCHORS_V4,
        activation="mish",
        neck_activation="leaky",
        scale_xy=(1.2, 1.1, 1.05),
    )


def csp(name: str, size: int = 640, activation: Activation = "mish") -> ModelSpec:
    """YOLOv4-CSP: CSPDarknet53s and a CSP-ized PAN (paper section 4.1)."""
    return ModelSpec(
        name=name,
        size=size,
        stem=Stem(32),
        stages=CSP_DARKNET53S,
        neck=Neck("csp-pan", _NECK),
        anchors=ANCHORS_V4,
        masks=level_masks(3),
        activation=activation,
    )


def csp_x(name: str, activation: Activation = "mish") -> ModelSpec:
    """YOLOv4-CSP widened by 1.25 and deepened (yolov4x-mish); a second pair follows the pooling."""
    neck = Neck("csp-pan", (160, 320, 640), depth=3, spp_pairs=2)
    return replace(csp(name, activation=activation), stages=CSP_X, neck=neck)


def csp_small(name: str, activation: Activation = "mish") -> ModelSpec:
    """YOLOv4-CSP-S ("pacsp-s"): half the width, one block a stage."""
    neck = Neck("csp-pan", (64, 128, 256), depth=1, spp_lead=False)
    return replace(csp(name, activation=activation), stages=CSP_SMALL, neck=neck, heads_last=True)


# Depths of the large family: twice CSPDarknet53's less one, printed as "2^d" in the paper (section 4.3).
_LARGE_WIDTHS = (64, 128, 256, 512, 1024, 1024, 1024)
_LARGE_DEPTHS = (1, 3, 15, 15, 7, 7, 7)
_LARGE_NECK = (128, 256, 512, 512, 512)


def large(name: str, size: int, num_stages: int, width: float, anchors: Anchors) -> ModelSpec:
    """YOLOv4-P5, P6, P7: CSP in every stage, ``num_stages`` of them, all widths times ``width`` (paper Figure 4)."""

    def wide(channels: int) -> int:
        return int(channels * width)

    return ModelSpec(
        name=name,
        size=size,
        stem=Stem(wide(32)),
        stages=_stages("csp", tuple(map(wide, _LARGE_WIDTHS[:num_stages])), _LARGE_DEPTHS[:num_stages]),
        neck=Neck("csp-pan", tuple(map(wide, _LARGE_NECK[: num_stages - 2])), depth=3),
        anchors=anchors,
        masks=level_masks(num_stages - 2, 4),
        norm_form="concat",
        norm_eps=1e-3,
        heads_last=True,
    )


def cfg_form(spec: ModelSpec, name: str) -> ModelSpec:
    """The network with every convolution of a CSP block normalised on its own, as in Darknet's files."""
    return replace(spec, name=name, norm_form="branch", norm_eps=1e-5)


def yaml_form(spec: ModelSpec, name: str) -> ModelSpec:
    """The network with CSP blocks normalised over their concatenation, as in the published PyTorch checkpoints."""
    return replace(spec, name=name, norm_form="concat", norm_eps=1e-3)


def tiny(name: str, *, size: int = 416, partition: tuple[int, int] = (2, 2), levels: int = 2) -> ModelSpec:
    """YOLOv4-tiny: CSPOSANet, partial in computational block, growth rate half the base (paper 3.2, Figure 3)."""
    downsamples: tuple[Downsample, ...] = ("conv", "maxpool", "maxpool")
    pcb = tuple(
        Stage("pcb", width, downsample=down, partition=partition)
        for width, down in zip((64, 128, 256), downsamples, strict=True)
    )
    # The two-level network leaves its first anchor unused and reads the fourth on both levels, as published.
    masks = ((1, 2, 3), (3, 4, 5)) if levels == 2 else level_masks(3)
    return ModelSpec(
        name=name,
        size=size,
        stem=Stem(32, stride=2),
        stages=(*pcb, Stage("conv", 512, downsample="maxpool")),
        neck=Neck("tiny", (64, 128, 256)[-levels:], spp=False),
        anchors=ANCHORS_TINY if levels == 2 else ANCHORS_V4,
        masks=masks,
        activation="leaky",
        decoding="exp",
        scale_xy=(1.05,) * levels,
        resize="stretch",
    )


def tiny_csp_darknet(name: str) -> ModelSpec:
    """tinyCD53s of Table 9: the small CSP backbone under the tiny pyramid (reconstructed; equals the printed FLOPs)."""
    return replace(tiny(name), stem=Stem(32), stages=CSP_SMALL)


def yolov3_tiny() -> ModelSpec:
    """YOLOv3-tiny: seven convolutions between max pools, two levels."""
    widths = (32, 64, 128, 256, 512)
    stages = tuple(Stage("conv", width, downsample="maxpool") for width in widths)
    return replace(
        tiny("yolov3-tiny"),
        stem=Stem(16),
        stages=(*stages, Stage("conv", 1024, downsample="maxpool-same")),
        masks=((0, 1, 2), (3, 4, 5)),
        scale_xy=(),
    )


def csresnext50(name: str, size: int) -> ModelSpec:
    """CSPResNeXt-50 with YOLOv4's neck (Wang et al. 2019, CSPNet)."""
    stages = (
        Stage("resnext", 128, 3, downsample="maxpool"),
        Stage("resnext", 256, 3, downsample="grouped-conv", split_activation="linear"),
        Stage("resnext", 512, 5, downsample="grouped-conv", split_activation="linear"),
        Stage("resnext", 1024, 2, downsample="grouped-conv"),
    )
    return replace(
        yolov4(),
        name=name,
        size=size,
        stem=Stem(64, kernel=7, stride=2),
        stages=stages,
        activation="leaky",
        neck_activation=None,
    )


def yolov2(name: str, num_classes: int, anchors: Anchors) -> ModelSpec:
    """YOLOv2: Darknet-19 with the passthrough from stride 16 (Redmon and Farhadi 2016)."""
    stages = tuple(
        Stage("conv", width, depth, downsample="maxpool")
        for width, depth in ((64, 1), (128, 3), (256, 3), (512, 5), (1024, 5))
    )
    return ModelSpec(
        name=name,
        size=416,
        stem=Stem(32),
        stages=stages,
        neck=Neck("passthrough", (512,), spp=False),
        anchors=anchors,
        masks=((0, 1, 2, 3, 4),),
        num_classes=num_classes,
        activation="leaky",
        decoding="region",
        resize="stretch",
    )


def yolov2_tiny() -> ModelSpec:
    """YOLOv2-tiny (coco): six max pools, no passthrough."""
    stages = tuple(Stage("conv", width, downsample="maxpool") for width in (32, 64, 128, 256, 512))
    return replace(
        yolov2("yolov2-tiny", 80, ANCHORS_V2),
        stem=Stem(16),
        stages=(*stages, Stage("conv", 1024, downsample="maxpool-same")),
        neck=Neck("plain", (256,), spp=False),
    )


TABLE8_BACKBONES = {"d53": DARKNET53, "cd53s": CSP_DARKNET53S}
TABLE8_NECKS: Mapping[str, NeckKind] = {"fpnspp": "fpn", "cfpnspp": "csp-fpn", "panspp": "pan", "cpanspp": "csp-pan"}


def table8(backbone: str, neck: str, activation: Activation) -> ModelSpec:
    """A network of the paper's Table 8: D53 or CD53s, one of four necks, leaky or Mish, at 608."""
    spec = csp(f"table8-{backbone}-{neck}-{activation}", 608, activation)
    return replace(spec, stages=TABLE8_BACKBONES[backbone], neck=Neck(TABLE8_NECKS[neck], _NECK))


# The zoo


def _all() -> Iterator[ModelSpec]:
    yield yolov2("yolov2", 80, ANCHORS_V2)
    yield yolov2("yolov2-voc", 20, ANCHORS_V2_VOC)
    yield yolov2_tiny()
    yield yolov3("yolov3", 416, spp=False)
    yield yolov3("yolov3-spp", 608, spp=True)
    yield yolov3_tiny()
    yield yolov4()
    yield tiny("yolov4-tiny")
    yield tiny("yolov4-tiny-3l", size=608, levels=3)
    yield csp("yolov4-csp")
    yield yaml_form(csp("yolov4-csp"), "yolov4-csp-yaml")
    yield replace(csp("yolov4-csp-swish", activation="swish"), heads_last=True)
    yield csp_small("yolov4-csp-s")
    yield csp_small("yolov4-csp-s-leaky", "leaky")
    yield csp_x("yolov4x-mish")
    yield csp_x("yolov4-csp-x-swish", "swish")
    for spec in (
        large("yolov4-p5", 896, 5, 1.0, ANCHORS_P5),
        large("yolov4-p6", 1280, 6, 1.0, ANCHORS_P6),
        large("yolov4-p7", 1536, 7, 1.25, ANCHORS_P7),
    ):
        yield spec
        yield cfg_form(spec, f"{spec.name}-cfg")
    yield csresnext50("csresnext50-panet-spp-original-optimal", 608)
    yield replace(csresnext50("csresnext50-panet-spp", 608), anchors=ANCHORS_V3, scale_xy=())
    for backbone in TABLE8_BACKBONES:
        for neck in TABLE8_NECKS:
            yield table8(backbone, neck, "leaky")
            yield table8(backbone, neck, "mish")
    yield tiny("table9-cosa-1x3x", partition=(1, 3))
    yield tiny("table9-cosa-3x1x", partition=(3, 1))
    yield tiny_csp_darknet("table9-tinycd53s")
    yield from v7_family()


ZOO: Mapping[str, ModelSpec] = MappingProxyType({spec.name: spec for spec in _all()})

# As YOLOv7 is trained; found by name, but listed under the name of the network only.
TRAINING_FORMS: Mapping[str, ModelSpec] = MappingProxyType({spec.name: spec for spec in v7_training_forms()})

# Other names by which the networks are known: papers, repositories, the acceptance table.
ALIASES: Mapping[str, str] = MappingProxyType(
    {
        "yolov4-csp-cfg": "yolov4-csp",
        "yolov4-csp-yamlform": "yolov4-csp-yaml",
        "yolov4-p5-cfgform": "yolov4-p5-cfg",
        "yolov4-p6-cfgform": "yolov4-p6-cfg",
        "yolov4-p7-cfgform": "yolov4-p7-cfg",
        "yolov4-p5-yaml": "yolov4-p5",
        "yolov4-p6-yaml": "yolov4-p6",
        "yolov4-p7-yaml": "yolov4-p7",
        "yolov4-csp-s-mish": "yolov4-csp-s",
        "pacsp-s": "yolov4-csp-s",
        "yolov4-csp-x-mish": "yolov4x-mish",
        "yolov4-csp-x": "yolov4x-mish",
        "x-mish": "yolov4x-mish",
        "csp-swish": "yolov4-csp-swish",
        "csp-x-swish": "yolov4-csp-x-swish",
        "cd53-panspp": "yolov4",
        "cd53-panspp(=yolov4)": "yolov4",
        "table9-cosa-2x2x": "yolov4-tiny",
        "cosa-1x3x": "table9-cosa-1x3x",
        "cosa-2x2x": "yolov4-tiny",
        "cosa-3x1x": "table9-cosa-3x1x",
        "tinycd53s": "table9-tinycd53s",
        "tiny-yolov3": "yolov3-tiny",
        "tiny-yolov4": "yolov4-tiny",
        "yolov7-x": "yolov7x",
        **{name.replace("-training", "-deploy"): name.removesuffix("-training") for name in TRAINING_FORMS},
        **{
            f"table8-{backbone}-{neck}": f"table8-{backbone}-{neck}-mish"
            for backbone in TABLE8_BACKBONES
            for neck in TABLE8_NECKS
        },
    }
)


def find(name: str) -> ModelSpec:
    """The spec of a zoo name or alias, in any case; with "-training" behind it the form in which YOLOv7 is trained.

    Raises:
        UsageError: there is no such network; names the nearest.
    """
    key = name.lower()
    key = ALIASES.get(key, key)
    if key in TRAINING_FORMS:
        return TRAINING_FORMS[key]
    if key not in ZOO:
        raise UsageError(f"there is no network named {name!r} in the zoo.{nearest(key, [*ZOO, *ALIASES])}")
    return ZOO[key]
