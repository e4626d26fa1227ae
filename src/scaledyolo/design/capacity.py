"""What stands in place of accuracy before anything was trained: compute, weighed, times what the geometry can reach.

Capacity is a number by which networks are ordered, 100 for YOLOv4-CSP at 640 pixels. It is

    100 * reach * (effective GMACs / those of YOLOv4-CSP at 640) ** EXPONENT

*Effective* MACs are those of the convolutions times three factors: what a MAC of the family was worth, what Mish adds,
and how far depth and width are out of balance. Each constant comes from one published experiment in which everything
else was held alike, and the test of this module repeats that arithmetic. *Reach* is the mean over the boxes of how much
of one the network can see: all of it, unless its shorter side is below the finest stride (then several objects share a
cell) or its longer side is above the receptive field of the coarsest head.

What it does not claim: that a capacity of 60 will give any particular AP; that two networks whose capacities differ by
a few points will finish in that order; anything about data unlike COCO, short training or few images, where a smaller
network is often the better one. It only says which of two networks has more to work with. Only training and evaluating
both tells which is better.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Final

import numpy as np
import numpy.typing as npt

from scaledyolo.arch.zoo import ANCHORS_V4
from scaledyolo.design.candidates import Candidate, Network
from scaledyolo.errors import DataError

if TYPE_CHECKING:
    from scaledyolo.data.dataset import Dataset

Values = npt.NDArray[np.float64]

# YOLOv4-CSP at 640 pixels, by which capacity is scaled.
REFERENCE_GMACS: Final = 60.1198592

# YOLOv7, Table 1: three networks re-trained alike reach AP 24.9 (tiny at 416), 30.8 (csp-s at 320) and 50.3 (csp at
# 640). The last two give the exponent, the first what a MAC of a tiny network is worth beside one of a CSP network.
EXPONENT: Final = 0.134
TINY_WORTH: Final = 0.152
# YOLOv4, Table 3: CSPDarknet53 classifies 77.8 % with leaky and 78.7 % with Mish. No such figure is published for
# Swish, which is taken for Mish's equal.
SMOOTH_WORTH: Final = 1.09
# YOLOv7, Table 3: one network scaled to about equal cost by width alone 52.4, by depth alone 52.7, by both 52.9. Out of
# balance by a factor 2 from depth = 1.2 width, a MAC loses a tenth of its worth.
IMBALANCE: Final = 0.096
_BALANCED: Final = math.log2(1.5 / 1.25)
_DEPTH_OF_P5: Final = 15 / 8  # beside YOLOv4-CSP, whose depth counts as 1

# Sizes of boxes as shares of the side of the input, where no data set is given: COCO's, in the nine sizes that
# YOLOv4's anchors gather them in at 512 pixels.
COCO_BOXES: Final[Values] = np.array(ANCHORS_V4) / 512
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


def effective_gmacs(candidate: Candidate) -> float:
    """Giga multiply-accumulates for one image, weighed by what published experiments found them worth."""
    worth = TINY_WORTH if _is_tiny(candidate.network) else _balance(candidate.network)
    if candidate.activation in ("mish", "swish"):
        worth *= SMOOTH_WORTH
    return worth * candidate.macs / 1e9


def _is_tiny(network: Network) -> bool:
    return any(stage.block == "pcb" for stage in network.spec.stages)


def _balance(network: Network) -> float:
    """What a MAC is worth by the ratio of depth to width: 1 at its best."""
    depth = float(network.depth) * (_DEPTH_OF_P5 if network.family.startswith("p") else 1)
    return math.exp(-IMBALANCE * (math.log2(depth / float(network.width)) - _BALANCED) ** 2)


def capacities(candidates: Sequence[Candidate], boxes: Values = COCO_BOXES) -> Values:
    """(n,) capacity of each candidate for boxes (m, 2) given as shares of the side of the input."""

    @cache
    def reached(size: int, finest: int, field: int) -> float:
        return reach(boxes, size, finest, field)

    return np.array(
        [
            100
            * reached(one.size, one.network.profile.strides[0], one.network.receptive_field)
            * (effective_gmacs(one) / (REFERENCE_GMACS * SMOOTH_WORTH)) ** EXPONENT
            for one in candidates
        ]
    )


def reach(boxes: Values, size: int, finest_stride: int, receptive_field: int) -> float:
    """Mean over boxes (m, 2), given in shares of ``size`` pixels, of how much of each a network can see: 0 to 1."""
    shorter, longer = boxes.min(axis=1) * size, boxes.max(axis=1) * size
    return float((np.minimum(shorter / finest_stride, 1) * np.minimum(receptive_field / longer, 1)).mean())
