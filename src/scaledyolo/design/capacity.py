"""What stands in place of accuracy before anything was trained: what a network can see, times how much it works on it.

Capacity is a number by which networks are ordered, 100 for YOLOv4-CSP at 640 pixels on COCO. It is a product that
follows the paper's order. What is decided first, {input size, stages}, decides what can be *seen*: a box of A cells of
the finest map counts A / (A + 1.5), and less where it is larger than the receptive field of the coarsest head. What is
decided next, {depth, width}, decides the *work* for each pixel: w multiply-accumulates count w / (w + 10,600), so that
work brings less and less. Three factors near 1 are for the family, the activation, and depth and width out of balance.

Each constant comes from one published experiment in which everything else was held alike; the tests repeat that
arithmetic, and hold the result against networks that were not used: CSP at 512, x-mish, P5, P6 and P7 come out within
4 % of their published AP beside CSP at 640.

What it does not claim: that a capacity of 60 will give any particular AP on your data; that two networks whose
capacities differ by a few points will finish in that order; anything about few images or short training, where a
smaller network is often the better one. It says which of two networks has more to work with. Only training and
evaluating both tells which is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from scaledyolo.design.candidates import Candidate, Network
from scaledyolo.errors import DataError

if TYPE_CHECKING:
    from scaledyolo.data.dataset import Dataset

Values = npt.NDArray[np.float64]

# Sizes of COCO's boxes: the square roots of their areas as shares of the long side of the image, in the middle of each
# tenth of the boxes (2,619 boxes of val2017), and how much longer their long side is in the middle.
_COCO_ROOTS: Final = (0.018, 0.030, 0.041, 0.056, 0.077, 0.107, 0.149, 0.213, 0.303, 0.524)
_COCO_ELONGATION: Final = 1.28
COCO_BOXES: Final[Values] = np.outer(_COCO_ROOTS, (_COCO_ELONGATION, 1 / _COCO_ELONGATION))

# YOLOv4 at 320, 416, 512 and 608 pixels has AP 38.0, 41.2, 43.0 and 43.5 (YOLOv4, Table 8; Darknet's table of models):
# with COCO's boxes, A / (A + 1.5) gives these ratios within 2 %.
HALF_SEEN_CELLS: Final = 1.5
# YOLOv7, Table 1: three networks re-trained alike have AP 24.9 (tiny at 416), 30.8 (csp-s at 320) and 50.3 (csp at
# 640). The last two, with sizes and balance accounted for, give the work that counts half, in multiply-accumulates for
# each pixel; the first the factor of the tiny family.
HALF_WORK: Final = 10_600
TINY_WORTH: Final = 0.953
# YOLOv4, Table 3: CSPDarknet53 classifies 77.8 % with leaky and 78.7 % with Mish. No such figure is published for
# Swish, which is taken for Mish's equal.
SMOOTH_WORTH: Final = 78.7 / 77.8
# YOLOv7, Table 3: scaled to about equal cost by width alone 52.4, by depth alone 52.7, by both (depth 1.5, width 1.25)
# 52.9: so much is lost for each squared doubling of depth over width.
IMBALANCE: Final = 0.0129
_BALANCED: Final = math.log2(1.5 / 1.25)
_DEPTH_OF_P5: Final = 15 / 8  # beside YOLOv4-CSP, whose depth counts as 1

# YOLOv4-CSP at 640 pixels, which has capacity 100.
_REFERENCE_SIZE: Final = 640
_REFERENCE_MACS: Final = 60_119_859_200
_REFERENCE_STRIDE: Final = 8
_MOST_BOXES = 1000  # of a data set; quantiles of the sizes do as well as all of them


def boxes_of(dataset: Dataset) -> Values:
    """(n, 2) width and height of boxes as shares of the long side of their image, at most 1000, spread over all sizes.

    Raises:
        DataError: the data set has no boxes.
    """
    from scaledyolo.data.anchors import label_sizes

    shares = label_sizes(dataset, 1)
    shares = shares[(shares > 0).all(axis=1)]
    if not len(shares):
        raise DataError(f"{dataset.source}: has no boxes by which a network could be chosen; leave --data out")
    ordered = shares[np.argsort(shares.prod(axis=1), kind="stable")]
    chosen: Values = ordered[np.linspace(0, len(ordered) - 1, min(len(ordered), _MOST_BOXES)).round().astype(int)]
    return chosen


def seen(boxes: Values, size: int, finest_stride: int, receptive_field: float) -> float:
    """How much of boxes (m, 2), given as shares of an input side of ``size`` pixels, a network sees: mean, 0 to 1."""
    cells = boxes.prod(axis=1) * (size / finest_stride) ** 2
    inside = np.minimum(receptive_field / (boxes.max(axis=1) * size), 1)
    return float((cells / (cells + HALF_SEEN_CELLS) * inside).mean())


def worth(candidate: Candidate) -> float:
    """The factor for family, activation, and balance of depth and width; about 1."""
    factor = TINY_WORTH if _is_tiny(candidate.network) else _balance(candidate.network)
    return factor * (1.0 if candidate.activation in ("mish", "swish") else 1 / SMOOTH_WORTH)


def _is_tiny(network: Network) -> bool:
    return any(stage.block == "pcb" for stage in network.spec.stages)


def _balance(network: Network) -> float:
    """What is left by the ratio of depth to width: 1 at its best."""
    depth = float(network.depth) * (_DEPTH_OF_P5 if network.family.startswith("p") else 1)
    return math.exp(-IMBALANCE * (math.log2(depth / float(network.width)) - _BALANCED) ** 2)


def capacities(candidates: Sequence[Candidate], boxes: Values = COCO_BOXES) -> Values:
    """(n,) capacity of each candidate for boxes (m, 2) given as shares of the side of the input."""

    @cache
    def seen_by(size: int, finest_stride: int, field: int) -> float:
        return seen(boxes, size, finest_stride, field)

    reference = seen(COCO_BOXES, _REFERENCE_SIZE, _REFERENCE_STRIDE, math.inf)
    view = [
        seen_by(one.size, one.network.profile.strides[0], one.network.receptive_field) / reference for one in candidates
    ]
    work = np.array([_work(one.macs, one.size) for one in candidates]) / _work(_REFERENCE_MACS, _REFERENCE_SIZE)
    factors = np.array([worth(one) for one in candidates])
    capacity: Values = 100 * np.array(view) * factors * work
    return capacity


def _work(macs: int, size: int) -> float:
    """What multiply-accumulates on an input of ``size`` x ``size`` pixels count, 0 to 1."""
    each = macs / size**2
    return each / (each + HALF_WORK)
