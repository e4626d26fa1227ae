"""What is said before a training begins: what is trained on what, and what would cost accuracy and is easily mended."""

from __future__ import annotations

from collections.abc import Iterator

from lightning_fabric import Fabric

from scaledyolo.arch.spec import ModelSpec
from scaledyolo.data.anchors import SUFFICIENT_RECALL
from scaledyolo.data.dataset import Dataset
from scaledyolo.errors import DataError, counted
from scaledyolo.train.fitted_anchors import learnable_share
from scaledyolo.train.manifest import Run
from scaledyolo.train.progress import Progress
from scaledyolo.train.recipe import Recipe

_MOST_NAMES = 8  # class names that are listed; the rest are counted
_PRECISIONS = {"32": "float32", "bf16": "bfloat16", "16": "float16"}


def opening(fabric: Fabric, run: Run, train: Dataset, val: Dataset | None) -> Iterator[str]:
    """The lines that tell what is about to be trained, on which images and on what machine."""
    recipe, spec = run.recipes[-1], run.spec
    stages = ", then ".join(stage.name for stage in run.recipes)
    yield (
        f"{spec.name} at {spec.size} pixels: recipe {stages}, {counted(recipe.schedule.epochs, 'epoch')}, batches of "
        f"{recipe.batch}, on {fabric.device.type} in {_PRECISIONS.get(run.settings.precision, run.settings.precision)}"
    )
    chosen = "" if val is None else f", {_counted(val)} to choose the best epoch by"
    yield f"{_counted(train)} to learn from{chosen}; {_classes(train)}"
    for what, dataset in (("to learn from", train), ("to choose by", val)):
        problems = [] if dataset is None else dataset.report.problems
        if problems:
            yield (
                f"warning: broken items in the images {what}: {len(problems)}, the first: {problems[0]}; "
                "`scaledyolo doctor` tells more"
            )
    if val is not None and not val.class_counts().sum():
        yield f"warning: the images to choose by have no boxes, so no epoch is better than another ({val.source})"
    shared = 0 if val is None else len(set(train.annotations.paths) & set(val.annotations.paths))
    if shared and val is not None:
        yield (
            f"warning: {shared} of the {len(val)} images to choose by are also learnt from, so their AP says nothing "
            "of new images; --val-split 0.2 keeps a fifth apart"
        )


def position(progress: Progress, epochs: int, batches: int) -> str:
    """Where a resumed training of so many epochs stands, ``batches`` in an epoch, in words."""
    if progress.epoch >= epochs:
        return "its only epoch is done already" if epochs == 1 else f"all of its {epochs} epochs are done already"
    return f"goes on in epoch {progress.epoch + 1} of {epochs}, after {progress.batch} of {batches} batches"


def check_boxes(train: Dataset) -> None:
    """Refuse images without a single box to learn from.

    Raises:
        DataError: says what was wrong with the labels, or where they are looked for.
    """
    if train.class_counts().sum():
        return
    problems = train.report.problems
    reason = (
        f"; {counted(len(problems), 'item was', 'items were')} left out, the first: {problems[0]}" if problems else ""
    )
    raise DataError(
        f"{train.source}: {counted(len(train), 'image')} and not a single box to learn from{reason}; "
        "`scaledyolo doctor` looks at every file"
    )


def anchor_advice(data: Dataset, spec: ModelSpec, recipe: Recipe) -> str | None:
    """A sentence that proposes better anchors where these cannot learn enough of the boxes; else None."""
    share = learnable_share(spec, recipe, data)
    if share >= SUFFICIENT_RECALL:
        return None
    return (
        f"the anchors can learn only {100 * share:.1f} % of the boxes at {spec.size} pixels; a larger --size, or "
        "anchors fitted to them (--set fit_anchors=true; `scaledyolo anchors` shows which) can learn more"
    )


def _counted(dataset: Dataset) -> str:
    return f"{counted(len(dataset), 'image')} with {counted(int(dataset.class_counts().sum()), 'box', 'boxes')}"


def _classes(dataset: Dataset) -> str:
    names = ", ".join(dataset.names[:_MOST_NAMES])
    more = dataset.num_classes - _MOST_NAMES
    return f"classes: {names}" + (f" and {more} more" if more > 0 else "")
