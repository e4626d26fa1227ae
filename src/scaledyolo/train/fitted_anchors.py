"""Anchors for the data before a training begins, where those of the network could learn too few of its boxes."""

from __future__ import annotations

from scaledyolo.arch.spec import ModelSpec
from scaledyolo.checkpoint import Checkpoint
from scaledyolo.data.anchors import SUFFICIENT_RECALL, anchors_in_use, fit_anchors, fit_of, label_sizes
from scaledyolo.data.dataset import Dataset
from scaledyolo.errors import DataError
from scaledyolo.train.recipe import Recipe


def learnable_share(spec: ModelSpec, recipe: Recipe, data: Dataset) -> float:
    """The boxes, from 0 to 1 of all, that some anchor of a network can learn under a recipe; 1 without boxes.

    Only the rule "scaled" leaves boxes out; the other rules give every object its best anchor, however bad.
    """
    sizes = label_sizes(data, spec.size)
    if recipe.assignment.rule != "scaled" or not len(sizes):
        return 1.0
    return fit_of(sizes, anchors_in_use(spec), threshold=recipe.assignment.anchor_threshold).recall


def with_fitted_anchors(
    spec: ModelSpec, recipe: Recipe, data: Dataset, start: Checkpoint | None
) -> tuple[ModelSpec, str | None]:
    """The network with anchors for the data, and a sentence that says so; the same and None where it is left as it is.

    Training specification 6.5: anchors are fitted where fewer than 98 % of the boxes could be learnt, and kept where
    that gains nothing. The same data give the same anchors, whatever the seed of the training.

    Args:
        spec: the network, with the classes and the input size of the training.
        recipe: fits anchors or not.
        data: images to learn from.
        start: weights that the training begins with; where they have as many classes, their predictions are taken over.
    """
    taken_over = start is not None and start.graph.num_classes == spec.num_classes
    if not recipe.fit_anchors or taken_over or learnable_share(spec, recipe, data) >= SUFFICIENT_RECALL:
        return spec, None
    try:
        fitted = fit_anchors(spec, data, threshold=recipe.assignment.anchor_threshold)
    except DataError:  # fewer boxes than anchors: nothing to fit
        return spec, None
    if fitted.after.recall <= fitted.before.recall:
        return spec, None
    return fitted.spec, (
        f"fitted anchors to the boxes at {spec.size} pixels: {100 * fitted.after.recall:.1f} % of them can be learnt "
        f"instead of {100 * fitted.before.recall:.1f} % (--set fit_anchors=false keeps the anchors of {spec.name})"
    )
