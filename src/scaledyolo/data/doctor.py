"""What is worth knowing about a data set before a network is trained on it, and what would make the training useless.

Facts are measured here, in plain numbers; :func:`findings` judges them in plain words. A finding *blocks* where the
training could not find anything at all: no boxes, no class in common, boxes that no anchor can learn.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from scaledyolo.arch.graph import Graph
from scaledyolo.arch.memory import training_bytes
from scaledyolo.data.anchors import SUFFICIENT_RECALL, AnchorFit, fit_of, label_sizes
from scaledyolo.data.cache import ImageSource
from scaledyolo.data.canvases import Canvases
from scaledyolo.data.dataset import Dataset
from scaledyolo.data.near_duplicates import Twin, looks, near_duplicates
from scaledyolo.errors import counted

Level = Literal["blocks", "warning", "fine"]

LEAST_RECALL = 0.05  # of the anchors; below this nothing can be learnt
TINY_SIDE = 2.0  # pixels; augmentation drops smaller boxes
SMALL_SIDE = 8.0  # pixels; the finest usual stride
_MANY_SMALL = 0.2  # share of the boxes
_MANY_BACKGROUND = 0.5  # share of the images
_UNEVEN = 100.0  # boxes of the most frequent class for each of the rarest
_RARE = 20  # boxes of a class
_MANY_OUTSIDE = 0.2  # share of the boxes that reach beyond their image
_QUANTILES = (0.0, 0.1, 0.5, 0.9, 1.0)
# Kinds of problems of the readers that concern the pairing of images and labels.
_PAIRING = ("missing-image", "missing-label")


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at, and what it means."""

    level: Level
    topic: str
    text: str


@dataclass(frozen=True)
class SplitFacts:
    """One part of a data set in numbers. Sizes are the square roots of areas in pixels of the network input."""

    name: str
    source: str
    images: int
    boxes: int
    background: int  # images without a box
    class_counts: dict[str, int]
    problems: dict[str, int]  # by kind
    first_problems: tuple[str, ...]
    sizes: tuple[float, ...]  # smallest, 10 %, median, 90 %, largest; empty without boxes
    tiny: float  # share of boxes with a side below 2 pixels
    small: float  # share of boxes with a side below 8 pixels


@dataclass(frozen=True)
class Duplicates:
    """Images of one split that show the same as one of another."""

    first: str  # split
    second: str
    count: int  # images of the second split
    files: tuple[tuple[str, str], ...]  # the pairs most alike


@dataclass(frozen=True)
class Diagnosis:
    """Everything that was found out, and the judgement."""

    model: str
    size: int
    batch: int
    splits: tuple[SplitFacts, ...]  # the first is learnt from, the second chosen by
    anchors: AnchorFit | None  # of the boxes to learn from
    duplicates: tuple[Duplicates, ...]
    training_bytes: int
    cache_bytes: int  # of the images to learn from and of those to choose by
    findings: tuple[Finding, ...]

    @property
    def blocks(self) -> bool:
        """Whether a training could find nothing."""
        return any(finding.level == "blocks" for finding in self.findings)


def examine(
    splits: Mapping[str, Dataset],
    graph: Graph,
    size: int,
    *,
    batch: int = 16,
    shown: int = 8,
    progress: Callable[[int], object] | None = None,
) -> Diagnosis:
    """Measure and judge a data set for a network.

    Args:
        splits: the parts by name; the first is learnt from, the second is what the best epoch is chosen by.
        graph: the network.
        size: side of its input in pixels.
        batch: images of a training step, for the estimate of memory.
        shown: bad items and near-duplicates that are listed.
        progress: called with the number of images looked at.
    """
    train = next(iter(splits.values()))
    sizes = label_sizes(train, size)
    used = [anchor for head in graph.detects for anchor in head.level_anchors]
    facts = tuple(split_facts(name, dataset, size, shown) for name, dataset in splits.items())
    anchors = fit_of(sizes, used) if len(sizes) else None
    duplicates = tuple(_duplicates(splits, shown, progress))
    return Diagnosis(
        model=graph.name,
        size=size,
        batch=batch,
        splits=facts,
        anchors=anchors,
        duplicates=duplicates,
        training_bytes=training_bytes(graph, size, size, batch, "32"),
        cache_bytes=ImageSource(train, size).num_bytes
        + sum(Canvases(val, size, size).num_bytes for val in tuple(splits.values())[1:2]),
        findings=tuple(findings(facts, anchors, duplicates, size)),
    )


def split_facts(name: str, dataset: Dataset, size: int, shown: int) -> SplitFacts:
    """The numbers of one part at this network input side."""
    notes = dataset.annotations
    sides = label_sizes(dataset, size)
    least = sides.min(axis=1) if len(sides) else np.zeros(0)
    return SplitFacts(
        name=name,
        source=dataset.source,
        images=len(dataset),
        boxes=len(sides),
        background=int((np.diff(notes.offsets) == 0).sum()),
        class_counts=dict(zip(dataset.names, dataset.class_counts().tolist(), strict=True)),
        problems=dataset.report.counts,
        first_problems=tuple(str(problem) for problem in dataset.report.problems[:shown]),
        sizes=tuple(np.quantile(np.sqrt(sides.prod(axis=1)), _QUANTILES).round(1).tolist()) if len(sides) else (),
        tiny=float((least < TINY_SIDE).mean()) if len(sides) else 0.0,
        small=float((least < SMALL_SIDE).mean()) if len(sides) else 0.0,
    )


def _duplicates(
    splits: Mapping[str, Dataset], shown: int, progress: Callable[[int], object] | None
) -> list[Duplicates]:
    """Between the split that is learnt from and each other."""
    seen = {name: looks(dataset, progress=progress) for name, dataset in splits.items()}
    first, *others = splits
    found = []
    for second in others:
        twins = near_duplicates(seen[first], seen[second])
        found.append(
            Duplicates(
                first=first,
                second=second,
                count=len({twin.second for twin in twins}),
                files=tuple(_files(twins[:shown], splits[first], splits[second])),
            )
        )
    return found


def _files(twins: Sequence[Twin], first: Dataset, second: Dataset) -> list[tuple[str, str]]:
    return [(first.path(twin.first), second.path(twin.second)) for twin in twins]


# --- the judgement ---


def findings(
    splits: Sequence[SplitFacts], anchors: AnchorFit | None, duplicates: Sequence[Duplicates], size: int
) -> list[Finding]:
    """What the numbers mean, what blocks first."""
    found = [finding for split in splits for finding in (*_reading(split), *_boxes(split, size))]
    found += _classes(splits)
    found += _anchors(anchors, size)
    found += [_twins(one, splits) for one in duplicates]
    return by_gravity(found)


def by_gravity(found: Iterable[Finding]) -> list[Finding]:
    """What blocks first, what is fine last."""
    order: tuple[Level, ...] = ("blocks", "warning", "fine")
    return sorted(found, key=lambda finding: order.index(finding.level))


def _reading(split: SplitFacts) -> list[Finding]:
    pairing = {kind: split.problems[kind] for kind in _PAIRING if kind in split.problems}
    rest = {kind: count for kind, count in split.problems.items() if kind not in pairing}
    found = []
    if pairing:
        found.append(Finding("warning", "pairing", f"{split.name}: {_counted(pairing)}; check the folders and names"))
    else:
        found.append(Finding("fine", "pairing", f"{split.name}: every image and label has its counterpart"))
    if rest:
        text = f"{split.name}: {_counted(rest)}; the first: {split.first_problems[0]}"
        found.append(Finding("warning", "broken items", text))
    else:
        found.append(Finding("fine", "broken items", f"{split.name}: all images decode, all labels make sense"))
    return found


def _boxes(split: SplitFacts, size: int) -> list[Finding]:
    outside = split.problems.get("outside", 0)
    if split.boxes and outside > _MANY_OUTSIDE * split.boxes:
        beyond = f"{counted(outside, 'box reaches', 'boxes reach')} beyond the image"
        text = f"{split.name}: {beyond}, and {split.boxes} can be used"
        mistaken = "are the columns really centre x, centre y, width and height, as shares of the image?"
        return [Finding("warning", "box places", f"{text}; {mistaken}"), *_box_sizes(split, size)]
    return _box_sizes(split, size)


def _box_sizes(split: SplitFacts, size: int) -> list[Finding]:
    if not split.boxes:
        text = f"{split.name}: {counted(split.images, 'image')} and not a single box"
        return [Finding("blocks", "boxes", f"{text}; are the label files where they should be?")]
    median = split.sizes[2]
    boxes = f"{counted(split.boxes, 'box', 'boxes')} on {counted(split.images, 'image')}"
    text = f"{split.name}: {boxes}, half of them smaller than {median:g} pixels"
    found = [Finding("fine", "boxes", f"{text} at {size}")]
    if split.tiny > 1 - LEAST_RECALL:
        text = f"{split.name}: {_percent(split.tiny)} of the boxes are below {TINY_SIDE:g} pixels at {size}"
        found.append(Finding("blocks", "box sizes", f"{text}; train at a larger size or on tiles"))
    elif split.small > _MANY_SMALL:
        text = f"{split.name}: {_percent(split.small)} of the boxes are below {SMALL_SIDE:g} pixels at {size}"
        found.append(Finding("warning", "box sizes", f"{text}; a larger size or a finer stride would help"))
    if split.background > _MANY_BACKGROUND * split.images:
        have = "has" if split.background == 1 else "have"
        share = f"{split.background} of {counted(split.images, 'image')}"
        text = f"{split.name}: {share} {have} no box; are labels missing?"
        found.append(Finding("warning", "background", text))
    return found


def _classes(splits: Sequence[SplitFacts]) -> list[Finding]:
    train, *others = splits
    found = _shifted_ids(splits)
    learnt = {name for name, count in train.class_counts.items() if count}
    for other in others:
        wanted = {name for name, count in other.class_counts.items() if count}
        unknown = sorted(wanted - learnt)
        if wanted and not wanted & learnt:
            text = f"no class of {other.name} has a box in {train.name}; the class lists are mixed up"
            found.append(Finding("blocks", "classes", text))
        elif unknown:
            text = f"{other.name} has classes without a box in {train.name}: {', '.join(unknown)}"
            found.append(Finding("warning", "classes", text))
    empty = sorted(set(train.class_counts) - learnt)
    if empty:
        found.append(Finding("warning", "classes", f"{train.name}: classes without a box: {', '.join(empty)}"))
    counts = [count for count in train.class_counts.values() if count]
    if len(counts) > 1 and max(counts) > _UNEVEN * min(counts):
        ratio = max(counts) / min(counts)
        text = f"{train.name}: the most frequent class has {ratio:.0f} times the boxes of the rarest"
        found.append(Finding("warning", "classes", f"{text}; try --set image_weights=true"))
    rare = sorted(name for name, count in train.class_counts.items() if 0 < count < _RARE)
    if rare:
        text = f"{train.name}: fewer than {_RARE} boxes of {', '.join(rare)}; expect little there"
        found.append(Finding("warning", "classes", text))
    enough = f"{counted(len(learnt), 'class', 'classes')}, each with enough boxes to learn from"
    return found or [Finding("fine", "classes", enough)]


def _shifted_ids(splits: Sequence[SplitFacts]) -> list[Finding]:
    """The commonest slip in class ids: nothing is of the first class, and something is beyond the last."""
    first = next(iter(splits[0].class_counts), None)
    beyond = sum(split.problems.get("wrong-class", 0) for split in splits)
    if first is None or not beyond or any(split.class_counts.get(first) for split in splits):
        return []
    text = f"no box is of the first class, {first}, and {beyond} are of a class beyond the last"
    return [Finding("blocks", "classes", f"{text}; the ids seem to count from 1, so every object has a wrong name")]


def _anchors(fit: AnchorFit | None, size: int) -> list[Finding]:
    if fit is None:
        return []
    text = f"the anchors can learn {_percent(fit.recall)} of the boxes at {size}"
    if fit.recall < LEAST_RECALL:
        return [Finding("blocks", "anchors", f"{text}; run `scaledyolo anchors`")]
    if fit.recall < SUFFICIENT_RECALL:
        return [Finding("warning", "anchors", f"{text}; `scaledyolo anchors` proposes better ones")]
    return [Finding("fine", "anchors", f"{text}, {fit.mean_matches:.1f} anchors each")]


def _twins(one: Duplicates, splits: Sequence[SplitFacts]) -> Finding:
    images = next(split.images for split in splits if split.name == one.second)
    if not one.count:
        return Finding("fine", "near-duplicates", f"no image of {one.second} shows the same as one of {one.first}")
    show = "shows" if one.count == 1 else "show"
    text = f"{one.count} of {counted(images, 'image')} of {one.second} {show} the same as one of {one.first}"
    return Finding("warning", "near-duplicates", f"{text}; the figures of {one.second} will be too good")


def _counted(problems: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in problems.items())


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"
