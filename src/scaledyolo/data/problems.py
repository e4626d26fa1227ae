"""What is wrong with a data set, item by item: place, reason and what was done about it."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Literal, NamedTuple, get_args

from scaledyolo.errors import DataError, UsageError, counted, nearest

Policy = Literal["fail", "skip", "fix"]
Kind = Literal[
    "zero-size",
    "reversed",
    "outside",
    "not-finite",
    "wrong-class",
    "duplicate",
    "column-count",
    "not-a-number",
    "malformed",
    "missing-field",
    "missing-image",
    "missing-label",
    "unreadable-image",
    "size-mismatch",
]
Action = Literal["skipped", "fixed"]

# Annotation tools round to whole pixels or six digits: a box this far beyond the border is cut without a word.
OUTSIDE_TOLERANCE = 1.0
_SHOWN = 5


@dataclass(frozen=True)
class Problem:
    """One bad item: ``file:place: reason``. place is a line, ``line:column`` or a JSON path such as ``images[3]``."""

    kind: Kind
    file: str
    place: str
    reason: str
    action: Action

    def __str__(self) -> str:
        where = f"{self.file}:{self.place}" if self.place else self.file
        return f"{where}: {self.reason} ({self.action})"


@dataclass
class Report:
    """Problems found while reading, under one policy.

    ``fail`` collects everything and then raises in `finish`; ``skip`` leaves every bad item out; ``fix`` repairs what
    can be repaired (cuts boxes at the border, swaps reversed corners, drops repeated rows) and skips the rest.
    """

    policy: Policy = "fix"
    problems: list[Problem] = field(default_factory=list)
    num_background: int = 0  # images without any box; legitimate, but worth knowing
    num_polygons: int = 0  # segmentation polygons turned into boxes

    def __post_init__(self) -> None:
        if self.policy not in get_args(Policy):
            known = get_args(Policy)
            raise UsageError(
                f"unknown policy {self.policy!r} for bad items; use one of {', '.join(known)}."
                f"{nearest(self.policy, known)}"
            )

    def add(self, kind: Kind, file: object, place: object, reason: str, *, fixable: bool = False) -> bool:
        """Record a problem; True if the caller should repair the item, False if it should leave it out."""
        fixed = fixable and self.policy == "fix"
        action: Action = "fixed" if fixed else "skipped"
        self.problems.append(Problem(kind, str(file), str(place), reason, action))
        return fixed

    @property
    def counts(self) -> dict[str, int]:
        """Number of problems of each kind, most frequent first."""
        return dict(Counter(problem.kind for problem in self.problems).most_common())

    def merge(self, other: Report) -> None:
        """Take over what another reader found."""
        self.problems.extend(other.problems)
        self.num_background += other.num_background
        self.num_polygons += other.num_polygons

    def finish(self) -> None:
        """Raise DataError naming the first problems if the policy is ``fail`` and there are any."""
        if self.policy != "fail" or not self.problems:
            return
        first = "; ".join(f"{p.file}:{p.place}: {p.reason}" for p in self.problems[:_SHOWN])
        more = f"; and {len(self.problems) - _SHOWN} more" if len(self.problems) > _SHOWN else ""
        raise DataError(
            f"{counted(len(self.problems), 'bad item')} in the data set: {first}{more}. "
            "Repair them, or choose bad='fix' to repair or bad='skip' to leave them out."
        )

    def __str__(self) -> str:
        if not self.problems:
            return "no problems found"
        kinds = ", ".join(f"{count} {kind}" for kind, count in self.counts.items())
        return "\n".join([f"{counted(len(self.problems), 'problem')}: {kinds}", *map(str, self.problems)])


class RawBox(NamedTuple):
    """A box as read: xyxy in pixels of its image, contiguous class id, and where it stands in the file."""

    left: float
    top: float
    right: float
    bottom: float
    class_id: int
    place: str
    crowd: bool = False
    difficult: bool = False
    area: float | None = None  # of the object's mask, where the file gives one (COCO)


def accept_box(box: RawBox, height: int, width: int, report: Report, file: object) -> RawBox | None:
    """The box, repaired if needed and allowed, inside the image; None (and a reported problem) if it is left out."""
    left, top, right, bottom = box[:4]
    if not all(map(math.isfinite, (left, top, right, bottom))):
        report.add("not-finite", file, box.place, f"box has a coordinate that is not finite: {_numbers(box)}")
        return None
    if right < left or bottom < top:
        if not report.add("reversed", file, box.place, f"box corners are reversed: {_numbers(box)}", fixable=True):
            return None
        left, right = min(left, right), max(left, right)
        top, bottom = min(top, bottom), max(top, bottom)
    if right == left or bottom == top:
        size = f"{right - left:g}x{bottom - top:g}"
        report.add("zero-size", file, box.place, f"box has zero size ({size} pixels): {_numbers(box)}")
        return None
    if right <= 0 or bottom <= 0 or left >= width or top >= height:
        report.add("outside", file, box.place, f"box lies outside the image of {width}x{height}: {_numbers(box)}")
        return None
    beyond = max(-left, -top, right - width, bottom - height)
    if beyond > OUTSIDE_TOLERANCE and not report.add(
        "outside",
        file,
        box.place,
        f"box reaches {beyond:.1f} pixels beyond the image of {width}x{height}: {_numbers(box)}",
        fixable=True,
    ):
        return None
    return box._replace(
        left=max(left, 0.0), top=max(top, 0.0), right=min(right, float(width)), bottom=min(bottom, float(height))
    )


def accept_boxes(boxes: list[RawBox], height: int, width: int, report: Report, file: object) -> list[RawBox]:
    """All boxes of one image that can be used; rows that say the same twice are kept once."""
    kept: list[RawBox] = []
    seen: dict[tuple[float, ...], str] = {}
    for raw in boxes:
        box = accept_box(raw, height, width, report, file)
        if box is None:
            continue
        key = (box.left, box.top, box.right, box.bottom, box.class_id)
        if key in seen:
            report.add("duplicate", file, box.place, f"repeats the box at {seen[key]}", fixable=True)
            continue
        seen[key] = box.place
        kept.append(box)
    if not kept:
        report.num_background += 1
    return kept


def _numbers(box: RawBox) -> str:
    return f"left {box.left:g}, top {box.top:g}, right {box.right:g}, bottom {box.bottom:g}"
