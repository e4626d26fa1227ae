"""Which images are meant: data sets, splits, shares and lists in the words of the command line.

A part of a data set is written as

    train           the split of that name
    all             every image, whatever its split
    images.txt      the images that a text file lists, one a line
    train[:80%]     a share of any of these, from 0 to 80 %, drawn by the names of the image files

and where two parts are named, one to learn from and one to choose by, as the share that is kept apart: ``0.2``.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from scaledyolo.data.dataset import (
    Dataset,
    concatenate,
    select_by_list,
    select_share,
    with_classes_of,
    without_images,
)
from scaledyolo.data.formats import open_dataset, split_names
from scaledyolo.data.image_files import ImageCheck
from scaledyolo.data.problems import Policy
from scaledyolo.data.yolo_txt import SPLIT_SYNONYMS
from scaledyolo.errors import DataError, UsageError, nearest

ALL = "all"
_PART = re.compile(r"(?P<base>[^\[\]]+)(\[(?P<first>[^:\]]*):(?P<last>[^:\]]*)\])?")
_PERCENT = re.compile(r"\d+(\.\d*)?%")
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Part:
    """A part of a data set: ``base``, a split, "all" or a list file, and the share of it from ``first`` to ``last``."""

    base: str
    first: float = 0.0
    last: float = 1.0

    @property
    def is_list(self) -> bool:
        """Whether ``base`` is a file that lists images."""
        return self.base.lower().endswith(".txt")

    @property
    def is_whole(self) -> bool:
        """Whether no share is taken."""
        return (self.first, self.last) == (0.0, 1.0)

    def absolute(self) -> Part:
        """The same part, its list file found from any folder."""
        return replace(self, base=str(Path(self.base).expanduser().absolute())) if self.is_list else self

    def share(self, first: float, last: float) -> Part:
        """The share from ``first`` to ``last`` of this part."""
        width = self.last - self.first
        return Part(self.base, self.first + first * width, self.first + last * width)

    def __str__(self) -> str:
        if self.is_whole:
            return self.base
        first, last = (
            f"{round(100 * edge, 6):g}%" if edge not in (0.0, 1.0) else "" for edge in (self.first, self.last)
        )
        return f"{self.base}[{first}:{last}]"


def parse_part(text: str) -> Part:
    """A part from its text, such as ``val``, ``images.txt`` or ``train[80%:]``.

    Raises:
        UsageError: it is a bare share, or the share in it makes no sense.
    """
    if _as_share(text) is not None:
        raise UsageError(
            f"{text} of which images? Say all[:{100 * float(text):g}%], or train[{100 - 100 * float(text):g}%:] for "
            f"what --val-split {text} kept apart from train"
        )
    found = _PART.fullmatch(text.strip())
    if found is None:
        raise UsageError(f"{text!r} names no part of a data set; write a split, a .txt file, or a share: train[:80%]")
    if found["first"] is None:
        return Part(found["base"])
    edges = [_edge(found[name].strip(), default, text) for name, default in (("first", 0.0), ("last", 1.0))]
    if edges[0] >= edges[1]:
        raise UsageError(f"{text!r} holds no image: its share ends where it begins or before")
    return Part(found["base"], *edges)


def _edge(text: str, default: float, whole: str) -> float:
    if not text:
        return default
    value = float(text[:-1]) / 100 if _PERCENT.fullmatch(text) else -1.0
    if not 0.0 <= value <= 1.0:
        raise UsageError(f"{whole!r}: {text!r} is no percentage from 0% to 100%; write a share like train[20%:80%]")
    return value


def _as_share(text: str) -> float | None:
    """The number that a text is; None where it is none."""
    try:
        return float(text)
    except ValueError:
        return None


def parse_pair(split: str, val_split: str) -> tuple[Part, Part]:
    """The part to learn from and the part to choose by.

    ``val_split`` may be a share: so much of ``split`` is kept apart. Both may be shares, of all images.

    Raises:
        UsageError: a share that is none, or one that leaves nothing.
    """
    wanted, kept = _as_share(split), _as_share(val_split)
    for text, share in ((split, wanted), (val_split, kept)):
        if share is not None and not 0.0 < share < 1.0:
            raise UsageError(f"a share of the images lies between 0 and 1, got {text}")
    if wanted is not None:
        if kept is None:
            raise UsageError(f"--split {split} needs a share as --val-split too, such as {1 - wanted:g}")
        if wanted + kept > 1.0 + _ROUNDING:
            raise UsageError(f"--split {split} and --val-split {val_split} together are more than all images")
        return Part(ALL, 0.0, min(wanted, 1.0 - kept)), Part(ALL, 1.0 - kept, 1.0)
    part = parse_part(split)
    if kept is None:
        return part, parse_part(val_split)
    return part.share(0.0, 1.0 - kept), part.share(1.0 - kept, 1.0)


def open_part(
    paths: Sequence[str | Path], part: str | Part, *, bad: Policy = "fix", check: ImageCheck = "header"
) -> Dataset:
    """The same part of one or several data sets as one, their classes merged by name.

    Raises:
        DataError: nothing usable is there, or the class names of the sources contradict each other.
        UsageError: the part cannot be understood, or there is no source.
    """
    chosen = parse_part(part) if isinstance(part, str) else part
    split = None if chosen.is_list or chosen.base == ALL else chosen.base
    dataset = merge([open_dataset(path, split, bad=bad, check=check) for path in paths])
    if chosen.is_list:
        dataset = replace(select_by_list(dataset, chosen.base), source=f"{dataset.source} in {chosen.base}")
    if not chosen.is_whole:
        share = select_share(dataset, chosen.first, chosen.last)
        dataset = replace(share, source=f"{dataset.source}, {chosen}")
    if len(dataset) == 0:
        raise DataError(f"{dataset.source}: holds no image; take a larger share or a longer list")
    return dataset


def open_pair(
    paths: Sequence[str | Path], split: str, val_split: str, *, bad: Policy = "fix", check: ImageCheck = "header"
) -> tuple[Dataset, Dataset]:
    """Images to learn from and images to choose the best epoch by, with the same classes.

    Images that a list names for ``val_split`` are taken out of those to learn from.

    Raises:
        DataError: nothing usable is there, or the two have different classes.
        UsageError: a part cannot be understood.
    """
    part, val_part = parse_pair(split, val_split)
    train = open_part(paths, part, bad=bad, check=check)
    _check_val(paths, val_part)
    val = open_part(paths, val_part, bad=bad, check=check)
    if val_part.is_list and val_part.base != part.base:
        rest = without_images(train, val)
        if len(rest) == 0:
            raise DataError(f"{val_part.base}: lists every image of {train.source}; nothing is left to learn from")
        train = rest
    return train, with_classes_of(val, train)


def _check_val(paths: Sequence[str | Path], part: Part) -> None:
    """Refuse data that is divided, but has no such split to choose by.

    Raises:
        DataError: says how to keep images apart.
    """
    if part.is_list or part.base == ALL:
        return
    wanted = SPLIT_SYNONYMS.get(part.base, (part.base,))
    for path in paths:
        known = split_names(Path(path).expanduser())
        if known and not set(known) & set(wanted):
            raise DataError(
                f"{path}: has no split {part.base!r}, only {', '.join(known)}; name one with --val-split, or keep a "
                f"fifth of the training images apart with --val-split 0.2.{nearest(part.base, known)}"
            )


def merge(datasets: Sequence[Dataset]) -> Dataset:
    """Several sources as one, classes merged by name, those of the first source first.

    Raises:
        DataError: names that differ only in spelling, or a source without names of its own beside one with.
        UsageError: there is no source.
    """
    if not datasets:
        raise UsageError("no data set given; name at least one with --data")
    if len(datasets) == 1:
        return datasets[0]
    for one, other in itertools.combinations(datasets, 2):
        _check_names(one, other)
    return concatenate(datasets, classes="merge")


def _check_names(one: Dataset, other: Dataset) -> None:
    nameless = [dataset for dataset in (one, other) if dataset.names == _made_up(dataset.num_classes)]
    if len(nameless) == 1:
        raise DataError(
            f"{nameless[0].source}: has no class names, so its classes cannot be merged with those of the other "
            "source; put a classes.txt beside it"
        )
    spelled = {_plain(name): name for name in one.names}
    for name in other.names:
        same = spelled.get(_plain(name), name)
        if same != name:
            raise DataError(
                f"{one.source} calls a class {same!r} and {other.source} calls one {name!r}; give them the same name, "
                "or clearly different ones"
            )


def _made_up(count: int) -> tuple[str, ...]:
    """What the readers call classes that have no name."""
    return tuple(f"class{number}" for number in range(count))


def _plain(name: str) -> str:
    return re.sub(r"[\s_-]+", "", name).casefold()
