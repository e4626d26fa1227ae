"""Views of an image: which network looks, and at what version of the canvas.

One network that sees the canvas as it is: the plain case. Test-time augmentation lets it look three times (training
spec 6.1), an ensemble lets several networks look (6.2). However many views there are, their candidates, brought back to
the canvas, are merged once, by :func:`scaledyolo.postprocess.merge_views`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from scaledyolo.arch.ops import Detect
from scaledyolo.data.letterbox import Image, images_to_input
from scaledyolo.data.tta import TtaPass, tta_passes
from scaledyolo.errors import DataError, UsageError
from scaledyolo.postprocess import Candidates, decode_candidates

if TYPE_CHECKING:
    from scaledyolo.artefact import ModelFacts
    from scaledyolo.runnable import Runnable

NetworkInput = npt.NDArray[np.float32]  # (batch, 3, height, width), 0 to 1
# Maps an input to the raw map of each head.
RunNetwork = Callable[[NetworkInput], Sequence[npt.NDArray[np.floating]]]


@dataclass(frozen=True, slots=True)
class View:
    """One network and what it is shown."""

    run: RunNetwork
    detects: tuple[Detect, ...]  # the heads, in the order of the maps
    augmentation: TtaPass  # from the canvas to the input of the network

    def decode(
        self,
        maps: Sequence[npt.NDArray[np.floating]],
        threshold: float,
        multi_label: bool = False,
        class_filter: Sequence[int] | None = None,
    ) -> list[Candidates]:
        """Candidates of each image in pixels of the canvas; see :func:`~scaledyolo.postprocess.decode_candidates`."""
        size = self.augmentation.padded_size
        found = decode_candidates(maps, self.detects, size, threshold, multi_label, class_filter)
        if self.augmentation.changes_nothing:
            return found
        return [replace(one, boxes_xyxy=self.augmentation.undo(one.boxes_xyxy).astype(np.float32)) for one in found]


def views_of(networks: Sequence[Runnable], height: int, width: int, *, tta: bool = False) -> tuple[View, ...]:
    """The views of a canvas of ``height`` x ``width`` pixels by each of several networks.

    Args:
        networks: one, or an ensemble.
        height: of the canvas, a multiple of every network's largest stride; so is ``width``.
        tta: whether each network looks three times.

    Raises:
        SpecError: the size does not fit a network.
        DataError: the networks of an ensemble do not know the same classes.
        UsageError: several views are asked of a network exported for one size or with suppression inside.
    """
    views = []
    for number, network in enumerate(networks, start=1):
        facts = network.facts
        facts.check_size(height, width)
        _check_classes(networks[0].facts, facts, number)
        if facts.nms is not None and (tta or len(networks) > 1):
            raise UsageError(
                f"{facts.name}: suppression is part of this exported network, but views are merged before it; "
                "use the checkpoint, or export it without --nms"
            )
        if tta and not facts.dynamic:
            raise UsageError(
                f"{facts.name}: exported for {facts.height}x{facts.width} only, but test-time augmentation shows it "
                "other sizes too; use the checkpoint, or export it with --dynamic"
            )
        views += [View(network.run, facts.detects, one) for one in _passes(height, width, facts.max_stride, tta)]
    return tuple(views)


def prepare_views(networks: Sequence[Runnable], height: int, width: int, count: int, *, tta: bool = False) -> None:
    """Have each network ready for what :func:`views_of` shows it of ``count`` canvases at once."""
    for network in networks:
        for one in _passes(height, width, network.facts.max_stride, tta):
            network.prepare(count, *one.padded_size)


def _passes(height: int, width: int, stride: int, tta: bool) -> Sequence[TtaPass]:
    return tta_passes(height, width, stride) if tta else (TtaPass(height, width, max_stride=stride),)


def _check_classes(first: ModelFacts, other: ModelFacts, number: int) -> None:
    """Raise :class:`DataError` that names the first difference between the classes of model 1 and model ``number``."""
    expected, found = first.class_names, other.class_names
    if expected == found:
        return
    here, there = f"model 1 ({first.name})", f"model {number} ({other.name})"
    if len(expected) != len(found):
        difference = f"{here} knows {len(expected)} classes, {there} {len(found)}"
    else:
        place = next(row for row, name in enumerate(expected) if name != found[row])
        difference = f"class {place} is {expected[place]!r} in {here}, {found[place]!r} in {there}"
    raise DataError(f"{difference}; an ensemble needs models of the same classes in the same order")


def inputs_of(views: Sequence[View], canvases: Sequence[Image]) -> list[NetworkInput]:
    """The batch that each view looks at; networks that are shown the same share it."""
    inputs: dict[TtaPass, NetworkInput] = {}
    for view in views:
        if view.augmentation not in inputs:
            inputs[view.augmentation] = images_to_input([view.augmentation.apply(canvas) for canvas in canvases])
    return [inputs[view.augmentation] for view in views]


def relative_cost(views: Sequence[View]) -> float:
    """Pixels that all views look at, over those of the canvas; 1 in the plain case."""
    first = views[0].augmentation
    return sum(float(np.prod(view.augmentation.padded_size)) for view in views) / (first.height * first.width)


def describe_views(views: Sequence[View], merge: str) -> str:
    """One line for people: what looks at each image, and what that costs."""
    sizes = ", ".join(str(view.augmentation) for view in views)
    cost = f"{relative_cost(views):.2f} times the pixels of one"
    return f"{len(views)} views of each image ({sizes}), {cost}, merged by {merge}"
