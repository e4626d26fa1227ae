"""Why an evaluation came out near zero: the usual mistakes leave traces that can be told apart."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from scaledyolo.evaluate.arrays import GroundTruth, Predictions
from scaledyolo.evaluate.coco import coco_metrics

NEARLY_NOTHING = 0.02  # AP50 below which a reason is looked for
_CLEARLY_MORE = 0.2  # AP50 without regard to classes from which on the boxes themselves are found
_ONE_CLASS = ("object",)


def explain_low_figures(truth: GroundTruth, found: Predictions, ap50: float) -> str | None:
    """A sentence on what is most likely wrong where AP50 is near zero; None where it is not.

    Args:
        truth: what was to be found.
        found: all detections, above the low confidence at which AP is measured.
        ap50: of these, 0 to 1, or nan without anything to find.
    """
    if ap50 >= NEARLY_NOTHING:
        return None
    if not (~truth.crowd).any():
        return "there is not a single box to find, so no figure is defined; are the label files where they should be?"
    if not len(found):
        return "the model finds nothing at all; was it trained to the end, and on images like these?"
    blind = coco_metrics(*without_classes(truth, found)).ap50
    if blind > _CLEARLY_MORE:
        return (
            f"the boxes are found (AP50 {blind:.3f} when classes are left aside) but called by other names: the order "
            "of the classes of this data is not that of the data which the model learnt from"
        )
    return (
        f"the surest of {len(found)} detections lie on no object, classes left aside (AP50 {blind:.3f}); a model that "
        "was trained briefly does this, and so do labels of other images, or another --resize or --size than it learnt "
        "with; `scaledyolo detect` draws what it sees"
    )


def without_classes(truth: GroundTruth, found: Predictions) -> tuple[GroundTruth, Predictions]:
    """The same boxes, all of one class."""
    one_class = replace(truth, class_names=_ONE_CLASS, category_ids=(1,), class_ids=np.zeros_like(truth.class_ids))
    return one_class, replace(found, num_classes=1, class_ids=np.zeros_like(found.class_ids))
