"""What is said before a training begins: things that would cost accuracy and are easily mended."""

from __future__ import annotations

from scaledyolo.arch.spec import ModelSpec
from scaledyolo.data.anchors import SUFFICIENT_RECALL, fit_of, label_sizes
from scaledyolo.data.dataset import Dataset
from scaledyolo.train.recipe import Recipe


def anchor_advice(data: Dataset, spec: ModelSpec, recipe: Recipe) -> str | None:
    """A sentence that proposes better anchors where these cannot learn enough of the boxes; else None."""
    sizes = label_sizes(data, spec.size)
    if recipe.assignment.rule != "scaled" or not len(sizes):
        return None  # the other rules give every object its best anchor, however bad
    used = [spec.anchors[index] for index in sorted({index for mask in spec.masks for index in mask})]
    recall = fit_of(sizes, used, threshold=recipe.assignment.anchor_threshold).recall
    if recall >= SUFFICIENT_RECALL:
        return None
    return (
        f"the anchors can learn only {100 * recall:.1f} % of the boxes at {spec.size} pixels; `scaledyolo anchors` "
        "proposes better ones and writes them into a spec file for --model"
    )
