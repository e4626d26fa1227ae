"""The detection heads of a Darknet cfg, [yolo] and [region], as :class:`Detect` nodes (docs: decode)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal, cast

from scaledyolo.arch.ops import Conv, Decoding, Detect
from scaledyolo.convert.darknet_grammar import Section
from scaledyolo.convert.darknet_layers import Assembly, Translator
from scaledyolo.errors import nearest

MAX_CLASSES = 10_000
MAX_ANCHORS = 100
_NMS_KINDS = ("default", "greedynms", "diounms")

NmsKind = Literal["default", "greedynms", "diounms"]


def _anchors(section: Section, count: int) -> tuple[tuple[float, float], ...]:
    """The pairs of ``anchors``; at least ``count`` of them."""
    numbers = section.numbers("anchors")
    if len(numbers) % 2 or len(numbers) < 2 * count:
        raise section.error(
            f"anchors in [{section.kind}] must be at least num={count} pairs of width and height, "
            f"got {len(numbers)} numbers",
            "anchors",
        )
    if any(not 0 < value < 1e6 for value in numbers):
        raise section.error(f"anchors in [{section.kind}] must be positive sizes", "anchors")
    return tuple(zip(numbers[::2], numbers[1::2], strict=True))


def _check_filters(section: Section, net: Assembly, source: str, num_anchors: int, num_classes: int) -> None:
    """Refuse the most common mistake in cfgs: classes changed without filters of the convolution before the head."""
    expected = num_anchors * (5 + num_classes)
    channels = net.shapes[source].channels
    if channels == expected:
        return
    conv = net.conv_before(source)
    place = f"the [convolutional] of {conv}" if conv else f"layer {section.index - 1}"
    raise section.error(
        f"[{section.kind}] with {num_anchors} anchors and classes={num_classes} needs filters="
        f"{num_anchors} x (5 + {num_classes}) = {expected} in {place}, which has {channels}",
        "classes",
    )


def _nms(section: Section) -> tuple[NmsKind, float]:
    kind = section.text("nms_kind", "default")
    if kind not in _NMS_KINDS:
        hint = nearest(kind[:60], _NMS_KINDS)
        raise section.error(f"nms_kind={kind[:60]!r} in [{section.kind}] is unknown.{hint}", "nms_kind")
    return cast(NmsKind, kind), section.number("beta_nms", 0.6)


def _decoding(section: Section, net: Assembly, source: str) -> tuple[Decoding, float, bool]:
    """Decoding family, grid sensitivity, and whether the map went through a logistic already."""
    new_coords = section.flag("new_coords")
    decoding: Decoding = net.decoding or ("sigmoid-squared" if new_coords else "exp")
    scale = section.number("scale_x_y", 1.0)
    if decoding != "sigmoid-squared":
        if not 1.0 <= scale <= 10.0:
            raise section.error(f"scale_x_y={scale:g} in [{section.kind}] is outside 1..10", "scale_x_y")
        return decoding, scale, False
    if new_coords and scale != 2.0 and net.decoding is None:
        raise section.error(
            f"new_coords=1 goes with scale_x_y=2.0, got {scale:g}; to decode with 2 all the same, "
            "ask for decoding sigmoid-squared",
            "scale_x_y",
        )
    conv = net.ops.get(net.conv_before(source) or "")
    # Sensitivity stays at its neutral value: this family has its own, fixed at 2.
    return decoding, 1.0, isinstance(conv, Conv) and conv.activation == "logistic"


def _yolo(section: Section, net: Assembly) -> str:
    source = net.previous(section)
    num_classes = section.integer("classes", 20, 1, MAX_CLASSES)
    total = section.integer("num", 1, 1, MAX_ANCHORS)
    mask = section.integers("mask") or tuple(range(total))
    anchors = _anchors(section, total)
    if any(not 0 <= index < len(anchors) for index in mask):
        raise section.error(f"mask={section.text('mask', '')[:60]} points outside the {len(anchors)} anchors", "mask")
    _check_filters(section, net, source, len(mask), num_classes)
    decoding, scale_xy, activated = _decoding(section, net, source)
    if decoding == "region":
        raise section.error("a [yolo] head cannot be decoded as [region]")
    nms_kind, beta_nms = _nms(section)
    op = Detect(
        anchors=anchors,
        mask=mask,
        num_classes=num_classes,
        decoding=decoding,
        scale_xy=scale_xy,
        activated=activated,
        nms_kind=nms_kind,
        beta_nms=beta_nms,
    )
    return net.emit(section, op, source)


def _region(section: Section, net: Assembly) -> str:
    if section.has("tree"):
        raise section.error("[region] with a tree of classes (YOLO9000) is not supported", "tree")
    source = net.previous(section)
    section.integer("coords", 4, 4, 4)
    num_classes = section.integer("classes", 20, 1, MAX_CLASSES)
    num_anchors = section.integer("num", 1, 1, MAX_ANCHORS)
    # The anchors of YOLOv2 are counted in cells of the map; here all anchors are pixels of the input.
    cells = _anchors(section, num_anchors)[:num_anchors]
    _check_filters(section, net, source, num_anchors, num_classes)
    image, grid = net.shapes["image"], net.shapes[source]
    across, down = image.width / grid.width, image.height / grid.height
    nms_kind, beta_nms = _nms(section)
    op = Detect(
        anchors=tuple((width * across, height * down) for width, height in cells),
        mask=tuple(range(num_anchors)),
        num_classes=num_classes,
        decoding="region",
        softmax=section.flag("softmax"),
        nms_kind=nms_kind,
        beta_nms=beta_nms,
    )
    return net.emit(section, op, source)


HEADS: Mapping[str, Translator] = {"yolo": _yolo, "region": _region}
