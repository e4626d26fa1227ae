"""Which boxes of one class overlap: an exact join on sorted edges instead of a matrix of all pairs.

If IoU(a, b) > t then the intersection is wider than t times either box. So with a to the left of b, b begins before
``a.left + (1 - t) a.width``. Sorted by (class, left), the possible partners of a box therefore stand in one run
of rows, which two binary searches find; the same bound is then checked vertically, and only what is left is computed.
Classes are compared as integers: nothing is shifted by an offset, so boxes of any size and position stay apart.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from array_api_compat import array_namespace, device, is_numpy_array

from scaledyolo.boxes import Array, at_least

# (n, 4) and (n, 4) xyxy to (n,): an overlap that never exceeds IoU.
Overlap = Callable[[Array, Array], Array]

# Pairs computed at once. NumPy: small enough for a core's cache; torch: large enough to fill a GPU.
NUMPY_CHUNK = 1 << 16
TORCH_CHUNK = 1 << 21
# Rounding of a limit relative to a coordinate, in units of its magnitude: four float32 steps.
SLACK = 5e-7


@dataclass(frozen=True, slots=True, eq=False)
class BoxIndex:
    """Boxes sorted by class, then left edge."""

    boxes_xyxy: Array  # (n, 4)
    rows: Array  # (n,) int64, position in the arrays that were indexed
    start: Array  # (n,) int64, ascending and unique: class and rank of the left edge
    end: Array  # (n,) int64, partners to the right start below this
    top: Array  # (n,)
    top_limit: Array  # (n,), partners begin above this

    def __len__(self) -> int:
        return int(self.rows.shape[0])

    def take(self, which: Any) -> BoxIndex:
        """The boxes of a mask (n,) or of ascending positions; the order stays."""
        columns = (self.boxes_xyxy, self.rows, self.start, self.end, self.top, self.top_limit)
        return BoxIndex(*(column[which] for column in columns))


def index_boxes(boxes_xyxy: Array, class_ids: Array, threshold: float) -> BoxIndex:
    """Sort boxes (n, 4), all finite, of classes (n,) int64 for the search of pairs with IoU > ``threshold``."""
    xp = array_namespace(boxes_xyxy)
    count = boxes_xyxy.shape[0]
    left = xp.asarray(boxes_xyxy[:, 0], copy=True)  # contiguous, as binary search wants it
    left_limit = _begin_limit(left, boxes_xyxy[:, 2], threshold)
    by_left = xp.argsort(left)
    sorted_left = left[by_left]
    # Stable: within a class the order by left edge stays, and the position in it is the rank.
    sorted_class = class_ids[by_left]
    by_class = xp.argsort(sorted_class)
    rows = by_left[by_class]
    base = sorted_class[by_class] * (count + 1)
    end = base + xp.searchsorted(sorted_left, left_limit[rows], side="right")
    boxes_xyxy = xp.take(boxes_xyxy, rows, axis=0)
    top = xp.asarray(boxes_xyxy[:, 1], copy=True)
    return BoxIndex(boxes_xyxy, rows, base + by_class, end, top, _begin_limit(top, boxes_xyxy[:, 3], threshold))


def _begin_limit(begin: Array, end: Array, threshold: float) -> Array:
    """Where a partner must begin at the latest, on one axis; never too early by rounding."""
    xp = array_namespace(begin)
    return end - threshold * (end - begin) + SLACK * (xp.abs(begin) + xp.abs(end))


def pairs_within(index: BoxIndex, overlap: Overlap, threshold: float) -> tuple[Array, Array]:
    """Rows (m,) and rows (m,) of all unordered pairs of one class with overlap > ``threshold``."""
    return _collect(index, index, overlap, threshold)


def pairs_between(a: BoxIndex, b: BoxIndex, overlap: Overlap, threshold: float) -> tuple[Array, Array]:
    """Rows of ``a`` (m,) and of ``b`` (m,) with one class and overlap > ``threshold``; a box is no partner of itself.

    Both must be taken from one index.
    """
    xp = array_namespace(a.rows)
    first_a, first_b = _collect(a, b, overlap, threshold)
    second_b, second_a = _collect(b, a, overlap, threshold)
    return xp.concat((first_a, second_a)), xp.concat((first_b, second_b))


def count_windows(index: BoxIndex) -> int:
    """How many pairs :func:`pairs_within` would have to look at."""
    xp = array_namespace(index.rows)
    return int(xp.sum(_windows(index, index)[1]))


def _windows(a: BoxIndex, b: BoxIndex) -> tuple[Array, Array]:
    """For each of ``a`` the position in ``b`` of the first possible partner to the right of it, and their number."""
    xp = array_namespace(a.rows)
    first = xp.searchsorted(b.start, a.start, side="right")
    return first, at_least(xp.searchsorted(b.start, a.end, side="left") - first, 0)


def _collect(a: BoxIndex, b: BoxIndex, overlap: Overlap, threshold: float) -> tuple[Array, Array]:
    xp = array_namespace(a.rows)
    found_a, found_b = [a.rows[:0]], [b.rows[:0]]
    for i, j in _chunks(*_windows(a, b)):
        (near,) = xp.nonzero((b.top[j] < a.top_limit[i]) & (a.top[i] < b.top_limit[j]))
        i, j = i[near], j[near]
        overlaps = overlap(xp.take(a.boxes_xyxy, i, axis=0), xp.take(b.boxes_xyxy, j, axis=0))
        (hit,) = xp.nonzero(overlaps > threshold)
        found_a.append(a.rows[i[hit]])
        found_b.append(b.rows[j[hit]])
    return xp.concat(found_a), xp.concat(found_b)


def _chunks(first: Array, count: Array) -> Iterator[tuple[Array, Array]]:
    """Positions (m,) and (m,) of all pairs (i, first[i] .. first[i] + count[i] - 1), a chunk at a time."""
    xp = array_namespace(first)
    chunk = NUMPY_CHUNK if is_numpy_array(first) else TORCH_CHUNK
    (nonempty,) = xp.nonzero(count > 0)
    first, count = first[nonempty], count[nonempty]
    total = xp.cumulative_sum(count)
    num_chunks = int(total[-1]) // chunk + 1 if total.shape[0] else 0
    limits = xp.arange(num_chunks + 1, dtype=total.dtype, device=device(total)) * chunk
    bounds = xp.searchsorted(total, limits, side="right").tolist()
    bounds[:1], bounds[-1:] = [0], [int(total.shape[0])] * bool(bounds)
    for low, high in pairwise(bounds):
        if low == high:
            continue
        begin = total[low:high] - count[low:high]  # running number of each row's first pair
        offset = first[low:high] - begin
        numbers = xp.arange(int(begin[0]), int(total[high - 1]), dtype=total.dtype, device=device(total))
        yield xp.repeat(nonempty[low:high], count[low:high]), numbers + xp.repeat(offset, count[low:high])
