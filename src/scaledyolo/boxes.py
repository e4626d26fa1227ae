"""Box arithmetic: the only place where box formats are converted and overlaps are computed.

Everything is written against the array API standard, so the same lines serve NumPy at run time and torch (CPU,
GPU, with gradients) in training. A box is the last axis of an array, of length 4; all other axes broadcast. The
formats:

    xyxy    left, top, right, bottom
    cxcywh  centre x, centre y, width, height
    tlwh    left, top, width, height (COCO's)

Unless a name says ``normalised``, coordinates are pixels of one frame, with the origin at the outer corner of the
first pixel: width = right - left. Everything is computed in the dtype given, which should be a floating one.
"""

from __future__ import annotations

from typing import Any, TypeAlias

from array_api_compat import array_namespace, is_numpy_array, is_torch_array

# NumPy array or torch tensor; the array API has no static type that both satisfy.
Array: TypeAlias = Any

# Guards the divisions of the training losses in float32; small against the area of one pixel.
EPSILON = 1e-7
# Guards the divisions of suppression, where boxes may be normalised: the smallest normal float32, which changes no
# quotient.
TINY = 1.1754944e-38


def _columns(boxes: Array) -> tuple[Array, Array, Array, Array]:
    return boxes[..., 0], boxes[..., 1], boxes[..., 2], boxes[..., 3]


def _stack(*columns: Array) -> Array:
    return array_namespace(*columns).stack(columns, axis=-1)


def xyxy_to_cxcywh(boxes_xyxy: Array) -> Array:
    """Corners (..., 4) to centre and size (..., 4)."""
    left, top, right, bottom = _columns(boxes_xyxy)
    return _stack((left + right) / 2, (top + bottom) / 2, right - left, bottom - top)


def cxcywh_to_xyxy(boxes_cxcywh: Array) -> Array:
    """Centre and size (..., 4) to corners (..., 4)."""
    x, y, width, height = _columns(boxes_cxcywh)
    return _stack(x - width / 2, y - height / 2, x + width / 2, y + height / 2)


def xyxy_to_tlwh(boxes_xyxy: Array) -> Array:
    """Corners (..., 4) to top-left corner and size (..., 4), the format of COCO files."""
    left, top, right, bottom = _columns(boxes_xyxy)
    return _stack(left, top, right - left, bottom - top)


def tlwh_to_xyxy(boxes_tlwh: Array) -> Array:
    """Top-left corner and size (..., 4) to corners (..., 4)."""
    left, top, width, height = _columns(boxes_tlwh)
    return _stack(left, top, left + width, top + height)


def normalise(boxes: Array, height: int, width: int) -> Array:
    """Pixels to fractions of a frame of ``height`` x ``width`` pixels; boxes (..., 4) of any format."""
    x0, y0, x1, y1 = _columns(boxes)
    return _stack(x0 / width, y0 / height, x1 / width, y1 / height)


def clip_xyxy(boxes_xyxy: Array, height: int, width: int) -> Array:
    """The boxes (..., 4), cut at the borders of a frame of ``height`` x ``width`` pixels."""
    xp = array_namespace(boxes_xyxy)
    left, top, right, bottom = _columns(boxes_xyxy)
    return _stack(
        xp.clip(left, 0, width), xp.clip(top, 0, height), xp.clip(right, 0, width), xp.clip(bottom, 0, height)
    )


def area(boxes_xyxy: Array) -> Array:
    """Area (...) of the boxes (..., 4) in square pixels; 0 for a box whose corners are in the wrong order."""
    left, top, right, bottom = _columns(boxes_xyxy)
    return _positive(right - left) * _positive(bottom - top)


def _positive(lengths: Array) -> Array:
    return at_least(lengths, 0)


def at_least(values: Array, limit: float) -> Array:
    """The values (...), those below ``limit`` replaced by it; NaN stays NaN.

    This is ``clip``, which costs ten times as much as NumPy's ``maximum`` where there are only a few boxes. Under torch
    a number in ``maximum`` would have to be copied to the device.
    """
    xp = array_namespace(values)
    return xp.maximum(values, limit) if is_numpy_array(values) else xp.clip(values, limit, None)


def at_most(values: Array, limit: float) -> Array:
    """The values (...), those above ``limit`` replaced by it; see :func:`at_least`."""
    xp = array_namespace(values)
    return xp.minimum(values, limit) if is_numpy_array(values) else xp.clip(values, None, limit)


def _intersection_and_union(a_xyxy: Array, b_xyxy: Array) -> tuple[Array, Array]:
    xp = array_namespace(a_xyxy, b_xyxy)
    a_left, a_top, a_right, a_bottom = _columns(a_xyxy)
    b_left, b_top, b_right, b_bottom = _columns(b_xyxy)
    width = _positive(xp.minimum(a_right, b_right) - xp.maximum(a_left, b_left))
    height = _positive(xp.minimum(a_bottom, b_bottom) - xp.maximum(a_top, b_top))
    intersection = width * height
    return intersection, area(a_xyxy) + area(b_xyxy) - intersection


def _enclosing_size(a_xyxy: Array, b_xyxy: Array) -> tuple[Array, Array]:
    """Width and height of the smallest box around both."""
    xp = array_namespace(a_xyxy, b_xyxy)
    a_left, a_top, a_right, a_bottom = _columns(a_xyxy)
    b_left, b_top, b_right, b_bottom = _columns(b_xyxy)
    width = xp.maximum(a_right, b_right) - xp.minimum(a_left, b_left)
    height = xp.maximum(a_bottom, b_bottom) - xp.minimum(a_top, b_top)
    return width, height


def _squared_distance_ratio(a_xyxy: Array, b_xyxy: Array, eps: float) -> Array:
    """Squared distance of the centres over the squared diagonal of the enclosing box, in [0, 1)."""
    a_left, a_top, a_right, a_bottom = _columns(a_xyxy)
    b_left, b_top, b_right, b_bottom = _columns(b_xyxy)
    across = (b_left + b_right - a_left - a_right) / 2
    down = (b_top + b_bottom - a_top - a_bottom) / 2
    width, height = _enclosing_size(a_xyxy, b_xyxy)
    return (across * across + down * down) / (width * width + height * height + eps)


def iou(a_xyxy: Array, b_xyxy: Array, eps: float = EPSILON) -> Array:
    """Intersection over union (...) of boxes (..., 4) and (..., 4), elementwise with broadcasting; 0 to 1.

    Two boxes without area have IoU 0. Gradients flow under torch.
    """
    intersection, union = _intersection_and_union(a_xyxy, b_xyxy)
    return intersection / (union + eps)


def giou(a_xyxy: Array, b_xyxy: Array, eps: float = EPSILON) -> Array:
    """Generalised IoU (...), elementwise: IoU minus the empty share of the enclosing box; -1 to 1.

    Source: Rezatofighi et al. 2019, equation 2 and algorithm 1.
    """
    intersection, union = _intersection_and_union(a_xyxy, b_xyxy)
    width, height = _enclosing_size(a_xyxy, b_xyxy)
    enclosing = width * height
    return intersection / (union + eps) - (enclosing - union) / (enclosing + eps)


def diou(a_xyxy: Array, b_xyxy: Array, eps: float = EPSILON) -> Array:
    """Distance IoU (...), elementwise: IoU minus squared centre distance over squared enclosing diagonal.

    Source: Zheng et al. 2020 (Distance-IoU Loss), equation 6.
    """
    return iou(a_xyxy, b_xyxy, eps) - _squared_distance_ratio(a_xyxy, b_xyxy, eps)


def ciou(predicted_xyxy: Array, target_xyxy: Array, eps: float = EPSILON) -> Array:
    """Complete IoU (...), elementwise: DIoU minus the difference in aspect ratio, weighted by alpha.

    Under torch the gradient reaches both arguments; alpha counts as a constant, as in the paper's implementation.
    Compute in float32: in half precision ``eps`` is lost.

    Source: Zheng et al. 2020 (Distance-IoU Loss), equations 8 to 11.
    """
    xp = array_namespace(predicted_xyxy, target_xyxy)
    overlap = iou(predicted_xyxy, target_xyxy, eps)
    difference = _aspect_angle(target_xyxy, eps) - _aspect_angle(predicted_xyxy, eps)
    aspect = (4 / xp.pi**2) * difference * difference
    alpha = _constant(aspect) / (1 - _constant(overlap) + _constant(aspect) + eps)
    return overlap - _squared_distance_ratio(predicted_xyxy, target_xyxy, eps) - alpha * aspect


def _aspect_angle(boxes_xyxy: Array, eps: float) -> Array:
    left, top, right, bottom = _columns(boxes_xyxy)
    return array_namespace(boxes_xyxy).atan((right - left) / (bottom - top + eps))


def _constant(values: Array) -> Array:
    """The values cut off from the gradient; NumPy has none."""
    return values.detach() if is_torch_array(values) else values


def distance_penalised_iou(a_xyxy: Array, b_xyxy: Array, exponent: float = 0.6, eps: float = EPSILON) -> Array:
    """``IoU - (d² / c²) ** exponent`` (...), elementwise: what Darknet's greedynms and diounms compare.

    With exponent 1 it is DIoU. The exponent is Darknet's own; the DIoU paper has none. Not meant for gradients: that
    of a power below 1 is infinite where the centres coincide.
    """
    return iou(a_xyxy, b_xyxy, eps) - _squared_distance_ratio(a_xyxy, b_xyxy, eps) ** exponent


def iou_matrix(a_xyxy: Array, b_xyxy: Array, eps: float = TINY) -> Array:
    """IoU (..., n, m) of every box of (..., n, 4) with every box of (..., m, 4)."""
    return iou(a_xyxy[..., :, None, :], b_xyxy[..., None, :, :], eps)
