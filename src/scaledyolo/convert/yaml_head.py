"""What the last module of a network numbered by a yaml file says: anchors and classes."""

from __future__ import annotations

from dataclasses import replace

from scaledyolo.arch.scaling import num_stages
from scaledyolo.arch.spec import ModelSpec
from scaledyolo.arch.zoo import ZOO
from scaledyolo.convert.key_map import Tensors, anchor_tensor
from scaledyolo.convert.torch_pickle import ForeignCheckpoint
from scaledyolo.errors import ConversionError


def check_not_fused(tensors: Tensors) -> None:
    """Refuse networks whose normalisation is gone.

    Raises:
        ConversionError: says what to convert instead.
    """
    if not any(key.endswith(("bn.weight", "bn.running_mean")) for key in tensors):
        raise ConversionError(
            "it has no batch normalisation, so it was fused for inference; convert the checkpoint from before that"
        )


def with_head(spec: ModelSpec, tensors: Tensors, checkpoint: ForeignCheckpoint) -> ModelSpec:
    """The spec with the anchors of the file (training may have replaced them) and the class count of its predictions.

    Raises:
        ConversionError: anchors or predictions do not fit the levels of the spec.
    """
    num_levels = len(spec.neck.widths)
    anchors = _anchors(checkpoint, num_levels, finest_stride=2 ** (num_stages(spec) - num_levels + 1))
    if anchors is not None:
        per_level = len(anchors) // num_levels
        masks = tuple(tuple(range(i * per_level, (i + 1) * per_level)) for i in range(num_levels))
        spec = replace(spec, anchors=anchors, masks=masks)
    elif not any((spec.stages, spec.neck) == (known.stages, known.neck) for known in ZOO.values()):
        raise ConversionError("it holds no anchors (anchor_grid), which only networks of the zoo can do without")
    per_level = len(spec.masks[0])
    key = next((key for key in tensors if key.endswith(".m.0.weight")), "")
    filters = tensors[key].shape[0] if key and tensors[key].ndim else 0
    classes, rest = divmod(filters - 5 * per_level, per_level)
    if rest or classes < 1:
        raise ConversionError(
            f"tensor {key or 'm.0.weight'!r} has {filters} filters, which is not {per_level} anchors times "
            "(5 + classes)"
        )
    return replace(spec, num_classes=classes)


def _anchors(
    checkpoint: ForeignCheckpoint, num_levels: int, finest_stride: int
) -> tuple[tuple[float, float], ...] | None:
    """Anchors in pixels, finest level first: the anchor_grid, or else the anchors, which are in cells of each level."""
    values, num_axes, unit = anchor_tensor(checkpoint, "anchor_grid"), 6, 1
    if values is None:
        values, num_axes, unit = anchor_tensor(checkpoint, "anchors"), 3, finest_stride
    if values is None:
        return None
    if values.ndim != num_axes or values.shape[0] != num_levels or values.shape[-1] != 2 or not values.size:
        raise ConversionError(f"its anchors of shape {values.shape} are not made for {num_levels} levels")
    levels = values.astype(float).reshape(num_levels, -1, 2).tolist()
    scales = [1.0 if unit == 1 else float(unit << level) for level in range(num_levels)]
    anchors = [(w * scale, h * scale) for level, scale in zip(levels, scales, strict=True) for w, h in level]
    if not all(0 < side < float("inf") for pair in anchors for side in pair):
        raise ConversionError("its anchors are not positive numbers")
    return tuple(anchors)
