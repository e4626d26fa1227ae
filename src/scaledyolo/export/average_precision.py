"""AP of a network that puts out raw maps, and of one that puts out detections."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from scaledyolo.artefact import EmbeddedNms, ModelFacts
from scaledyolo.data.tta import TtaPass
from scaledyolo.errors import DataError, counted
from scaledyolo.postprocess import NMS, Candidates, suppress
from scaledyolo.runnable import Runnable, rows_as_candidates
from scaledyolo.views import View

if TYPE_CHECKING:
    from scaledyolo.data.dataset import Dataset
    from scaledyolo.evaluate.protocols import Protocol


def average_precision(network: Runnable, data: Dataset, artefact: ModelFacts) -> float:
    """COCO's AP (0 to 1) of a network on a data set, at the size and by the rules of an artefact.

    Raw maps are decoded and suppressed by the protocol of the published figures. Where suppression is part of the
    artefact its own thresholds hold, for the artefact and for the model that it is compared with: what it dropped
    cannot be had back, so such an AP only compares with its like.

    Args:
        network: the artefact, or the model.
        data: images and boxes.
        artefact: what the artefact says about itself.

    Raises:
        DataError: the data set has another number of classes.
    """
    from scaledyolo.evaluate.coco import coco_metrics
    from scaledyolo.evaluate.run import ground_truth, predict_views

    facts = network.facts
    if data.num_classes != len(facts.class_names):
        raise DataError(
            f"{facts.name} knows {counted(len(facts.class_names), 'class', 'classes')}, {data.source} has "
            f"{data.num_classes}; compare on the data set that the model was trained for"
        )
    found = predict_views(data, (_view(network, artefact),), _protocol(artefact), resize=artefact.resize)
    return float(coco_metrics(ground_truth(data), found).ap)


def _protocol(artefact: ModelFacts) -> Protocol:
    from scaledyolo.evaluate.protocols import COCO, Protocol

    if artefact.nms is None:
        return COCO
    rules = artefact.nms
    return Protocol("embedded", rules.confidence, rules.iou, rules.max_detections, multi_label=False)


def _view(network: Runnable, artefact: ModelFacts) -> View:
    whole = TtaPass(artefact.height, artefact.width)
    if artefact.nms is None:
        return View(network.run, network.facts.detects, whole)
    if network.facts.nms is None:
        return _SuppressedView(network.run, network.facts.detects, whole, artefact.nms)
    return _RowsView(network.run, network.facts.detects, whole)


@dataclass(frozen=True, slots=True)
class _RowsView(View):
    """An end-to-end network: its rows are detections already, and suppressing them once more changes nothing."""

    def decode(
        self,
        maps: Sequence[npt.NDArray[np.floating]],
        threshold: float,
        multi_label: bool = False,
        class_filter: Sequence[int] | None = None,
    ) -> list[Candidates]:
        return rows_as_candidates(maps, threshold, class_filter)


@dataclass(frozen=True, slots=True)
class _SuppressedView(View):
    """Raw maps, decoded and suppressed as an end-to-end network would."""

    rules: EmbeddedNms

    def decode(
        self,
        maps: Sequence[npt.NDArray[np.floating]],
        threshold: float,
        multi_label: bool = False,
        class_filter: Sequence[int] | None = None,
    ) -> list[Candidates]:
        rules = self.rules
        nms = NMS(iou=rules.iou, class_agnostic=rules.class_agnostic, max_detections=rules.max_detections)
        # Not super(): a dataclass with slots is made anew, and the function would belong to the old class.
        found = View.decode(self, maps, threshold, multi_label, class_filter)
        return [suppress(item, nms) for item in found]
